"""Every family of torchvision's ReLU classifiers, small: the walk back, units, fields and occlusion against twins.

`python scripts/zoo.py` does the same at full size for every network.
"""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset
from torchvision import models

from experiments.setup.models import architecture, classifiers
from scripts.zoo import REFUSED, ZOO, check, drawn
from zfnet import Deconvnet, InputError, occlusion_maps, scan
from zfnet.graph import Graph

ROOT = Path(__file__).resolve().parent.parent

SMALL = {  # the least of each family, and the side of images for it
    "vgg11_bn": 48,
    "squeezenet1_1": 64,
    "googlenet": 48,
    "resnet18": 48,
    "mnasnet0_5": 48,
    "mobilenet_v2": 48,
    "shufflenet_v2_x0_5": 48,
    "regnet_x_400mf": 48,
}
LARGER = {
    "alexnet": 96,
    "vgg11": 48,
    "squeezenet1_0": 64,
    "inception_v3": 96,
    "resnext50_32x4d": 48,
    "wide_resnet50_2": 40,
    "densenet121": 48,
}


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGER)])
def test_one_of_each_family(name: str) -> None:
    row = check(thin(drawn(name, num_classes=5)), (SMALL | LARGER)[name], supports=1)
    assert row.project <= 1e-9 and row.in_float64 <= 1e-9 and row.occlusion <= 1e-9
    assert row.project_units <= 1e-5
    assert row.fields == 5


def thin(model: nn.Module) -> nn.Module:
    """With few units in fully connected layers, which are most of the weights and nearly nothing to test."""
    if isinstance(model, models.AlexNet | models.VGG):
        into = next(m for m in model.classifier if isinstance(m, nn.Linear)).in_features
        model.classifier = nn.Sequential(nn.Linear(into, 8), nn.ReLU(True), nn.Dropout(), nn.Linear(8, 5)).double()
    return model.eval()


def test_the_zoo_is_all_of_torchvisions_relu_classifiers() -> None:
    assert set(ZOO) | set(REFUSED) == set(classifiers()) and len(ZOO) == 43
    assert {"resnet152", "densenet201", "vgg19_bn", "regnet_x_32gf", "mnasnet1_3"} < set(ZOO)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("efficientnet_b0", "SiLU at features.8.2"),
        ("convnext_tiny", "layer_norm at classifier.0.layer_norm"),
        ("regnet_y_400mf", "mul at trunk_output.block4.block4-5.f.se.mul of two feature maps"),
        ("mobilenet_v3_small", "Hardswish at classifier.1"),
        ("swin_t", "LayerNorm at norm"),
        ("vit_b_32", "LayerNorm at encoder.ln"),
        ("maxvit_t", "Tanh at classifier.4"),
    ],
)
def test_what_has_no_deconvnet_is_refused_by_name(name: str, says: str) -> None:
    deconvnet = Deconvnet(architecture(name)())
    layer, side = deconvnet.graph.layers[-1], 224 if name in ("vit_b_32", "maxvit_t") else 64
    recording = deconvnet.record(torch.randn(1, 3, side, side), [layer])
    advice = "" if name == "maxvit_t" else 'give rules="extended", or '  # which has no rule for a tanh that is no gate
    with pytest.raises(InputError, match=f"^no deconvnet rule for {re.escape(says)}; {advice}register one with @rule$"):
        deconvnet.project(recording, layer, torch.ones_like(recording.activations[layer]))


@pytest.mark.parametrize("ask", ["scan", "project_units", "occlusion_maps"])
def test_a_layer_of_neither_maps_nor_units_is_one_line(ask: str) -> None:
    model = drawn("shufflenet_v2_x0_5").float()
    images = torch.randn(1, 3, 64, 64)
    does = {
        "scan": lambda layer: scan(model, TensorDataset(images), [layer], 1, progress=False),
        "project_units": lambda layer: Deconvnet(model).project_units(images, layer, [[0, 0, 0, 0]]),
        "occlusion_maps": lambda layer: occlusion_maps(model, images, size=32, step=32, layer=layer),
    }
    with pytest.raises(InputError) as error:
        does[ask]("stage2.0.view")
    assert str(error.value) == (
        "stage2.0.view (view) gives a tensor of shape (1, 2, 24, 8, 8); choose a layer that gives feature maps "
        "(images, maps, rows, columns) or (images, rows, columns, maps), tokens (images, tokens, maps), or fully "
        "connected units (images, units)"
    )
    does[ask]("fc")  # fully connected units are maps of one place


def test_steps_that_know_nothing_of_the_image_are_no_layers() -> None:
    graph = Graph(drawn("shufflenet_v2_x0_5"))
    assert {"stage2.0.view", "mean", "fc"} <= set(graph.layers)
    with pytest.raises(InputError) as error:
        graph.node("stage2.0.size")
    assert str(error.value).startswith("no layer of ShuffleNetV2 'stage2.0.size' (did you mean 'stage2.0.view'?)")
    assert " more ..., " in str(error.value) and len(str(error.value)) < 1000


def blocks(page: str) -> list[str]:
    """The Python of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_the_worked_example_of_a_rule() -> None:
    (example,) = blocks("docs/rules.md")
    assert len(example.strip().splitlines()) < 15
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 2, 3)).double()
    images = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    unit = [[0, 1, 2, 2]]
    with pytest.raises(InputError, match='no deconvnet rule for SiLU at 1; give rules="extended", or register'):
        Deconvnet(model).project_units(images, "2", unit)
    namespace: dict = {}
    exec(example, namespace)
    patch = Deconvnet(model, rules=namespace["rules"]).project_units(images, "2", unit)
    upper = (patch.values * model[2].weight[1]).clamp(min=0)
    assert torch.allclose(patch.projections[0], torch.nn.functional.conv_transpose2d(upper, model[0].weight))


@pytest.mark.slow
def test_the_readmes_ten_lines_run_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = blocks("README.md")
    assert len(example.strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "photographs").mkdir(parents=True)
    for n in range(10):
        noise = torch.randint(256, (260, 300, 3), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(tmp_path / "my" / "photographs" / f"{n}.png")
    model = drawn("resnet50").float()  # random weights: no download
    monkeypatch.setattr(models, "resnet50", lambda weights: model)
    found: dict = {}
    exec(example, found)
    patches = found["patches"]
    assert patches.crops.shape == patches.projections.shape and len(patches.crops) == 27 and patches.projections.any()
