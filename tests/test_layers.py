"""Which layers stand for the paper's, found in any network."""

import pytest
import torch
from torch import nn
from torchvision import models

from zfnet import Deconvnet, InputError
from zfnet.extended import RULE_SETS
from zfnet.graph import Graph
from zfnet.layers import chosen, every, head, spread


@pytest.mark.parametrize(
    ("name", "layers", "layer7"),
    [
        ("alexnet", ["features.1", "features.4", "features.7", "features.9", "features.11"], "classifier.5"),
        ("vgg11", ["features.1", "features.4", "features.9", "features.14", "features.19"], "classifier.4"),
        ("resnet50", ["relu", "layer1.2.relu_2", "layer2.3.relu_2", "layer3.5.relu_2", "layer4.2.relu_2"], "flatten"),
        ("densenet121", ["features.relu0", *(f"features.transition{n}.relu" for n in (1, 2, 3)), "relu"], "flatten"),
        ("shufflenet_v2_x0_5", ["conv1.2", "stage2.3.cat", "stage3.3.cat", "stage3.7.cat", "conv5.2"], "mean"),
    ],
)
def test_layers_spread_over_the_depth(name: str, layers: list[str], layer7: str) -> None:
    graph = Graph(getattr(models, name)(weights=None))
    assert (spread(graph, 224), head(graph, 224)) == (layers, layer7)


def test_before_relu6_strong_activations_differ() -> None:
    model = models.mobilenet_v2().eval()
    graph = Graph(model)
    layers = spread(graph, 64)
    blocks = [f"features.{n}.conv.0.1" for n in (2, 4, 7, 14)]
    assert layers == [*blocks, "features.18.1"]
    assert all(graph.operation(graph.node(layer)) == "BatchNorm2d" for layer in layers)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_network_with_fewer_layers_has_those(count: int) -> None:
    parts = [m for n in range(count) for m in (nn.Conv2d(4 if n else 3, 4, 3, 1 + n % 2), nn.ReLU())]
    model = nn.Sequential(*parts, nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(1, 3, 32, 32))
    assert spread(Graph(model), 32) == [str(2 * n + 1) for n in range(count)]


def test_a_network_without_layers_is_one_line() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(4 * 36, 2))
    with pytest.raises(
        InputError, match=r"^Sequential has no activation or join that .* zfnet\.layer_table lists them$"
    ):
        spread(Graph(model), 8)


REPETITIONS = {"Dropout", "flatten", "Identity", "chunk", "view"}  # moves and what does nothing in evaluation
NETWORKS = ["squeezenet1_0", "shufflenet_v2_x0_5", "mobilenet_v3_small", "resnet18"]


@pytest.mark.parametrize("rules", ["deconvnet", "guided"])
@pytest.mark.parametrize("name", NETWORKS)
def test_all_layers_are_those_whose_units_can_be_projected(name: str, rules: str) -> None:
    """Tried on every step of the network."""
    deconvnet = Deconvnet(getattr(models, name)(weights=None).eval(), rules=rules)
    graph, image, projected = deconvnet.graph, torch.randn(1, 3, 64, 64), []
    for layer in graph.layers:
        try:
            deconvnet.project_units(image, layer, [[0, 0, 0, 0]], whole=True)
        except InputError:
            continue
        projected.append(layer)
    expected = [layer for layer in projected if graph.operation(graph.node(layer)) not in REPETITIONS]
    assert every(graph, 64, RULE_SETS[rules]) == expected


def test_behind_a_permutation_only_maps_are_layers() -> None:
    graph = Graph(models.convnext_tiny(weights=None))
    small, large = graph.shapes((64, 64), graph.output), graph.shapes((128, 128), graph.output)
    layers = every(graph, 64, RULE_SETS["gradient"])
    nodes = [graph.node(layer) for layer in layers]
    assert all(small[node][:2] == large[node][:2] for node in nodes)
    assert any(len(small[node]) == 4 for node in nodes) and 5 < len(layers) < len(graph.layers)


def test_what_a_rule_does_not_know_ends_the_layers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 4, 3))
    assert every(Graph(model), 8) == ["0"]
    assert every(Graph(model), 8, RULE_SETS["gradient"]) == ["0", "1", "2"]
    with pytest.raises(InputError, match=r"^Sequential has no layer of feature maps whose units can be projected$"):
        every(Graph(nn.Sequential(nn.Sigmoid())), 8)


def test_layers_are_chosen_by_name_or_by_word() -> None:
    graph = Graph(models.alexnet(weights=None))
    assert chosen(graph, 224, "auto") == spread(graph, 224)
    assert chosen(graph, 224, "all") == every(graph, 224)
    assert chosen(graph, 224, ("features.1",)) == ["features.1"]
