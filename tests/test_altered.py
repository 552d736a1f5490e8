"""ZFNet with parts that came later: what stands where, and that only EXTENDED projects through it."""

from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops import SqueezeExcitation

from experiments.ablation.intervention import covered, left
from experiments.ablation.units import Units
from experiments.setup.altered import BEHIND_GATES, CHANGES, AlteredZFNet
from experiments.setup.configuration import configured
from zfnet import EXTENDED, GRADIENT, GUIDED, Deconvnet, InputError, ZFNet, receptive_field
from zfnet.analysis.choices import squares
from zfnet.views import cut

SMALL = {"num_classes": 4, "maps": (8, 16, 16, 16, 16), "hidden": (16, 16), "image_size": 64, "init": "he"}
NAMES = {"silu": "zfnet_small_silu", "squeeze-excitation": "zfnet_small_se", "layer norm": "zfnet_small_layer_norm"}


def altered(change: str) -> nn.Module:
    """A network of random weights whose gates and norms differ from map to map."""
    torch.manual_seed(0)
    model = AlteredZFNet(change=change, **SMALL).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=0.5, std=0.5)
    return model


def units_of(change: str, layer: str) -> Units:
    torch.manual_seed(1)
    images = [(torch.randn(3, 64, 64), 0) for _ in range(4)]
    rows = [[n % 4, n % 8, n % 3, 2] for n in range(12)]
    return Units(Deconvnet(altered(change), rules="extended"), images, layer, torch.tensor(rows), 0)


@pytest.mark.parametrize("change", CHANGES)
def test_the_configuration_names_it_and_its_layers(change: str) -> None:
    model = configured(["experiment=ablation", f"model={NAMES[change]}"]).model
    assert model.architecture.change == change
    plain = configured(["experiment=ablation", "model=zfnet_small"]).model
    architecture = {k: v for k, v in model.architecture.items() if k not in ("change", "_target_")}
    assert architecture == {k: v for k, v in plain.architecture.items() if k != "_target_"}
    names = dict(AlteredZFNet(change=change, **SMALL).named_children())
    assert {*model.layers, model.layer7} <= {*names}


def test_what_stands_in_the_place_of_what() -> None:
    plain = list(dict(ZFNet(**SMALL).named_children()))
    silu = dict(AlteredZFNet(change="silu", **SMALL).named_children())
    assert list(silu) == [name.replace("relu", "silu") for name in plain]
    assert sum(isinstance(part, nn.SiLU) for part in silu.values()) == 7
    assert not any(isinstance(part, nn.ReLU) for part in silu.values())
    gated = dict(AlteredZFNet(change="squeeze-excitation", **SMALL).named_children())
    assert [name for name in gated if name not in plain] == [f"gate{n}" for n in range(1, 6)]
    names = list(gated)
    for n, maps in enumerate(SMALL["maps"], 1):
        gate = gated[f"gate{n}"]
        assert names[names.index(f"gate{n}") - 1] == f"relu{n}" and isinstance(gate, SqueezeExcitation)
        assert (gate.fc1.in_channels, gate.fc1.out_channels, gate.fc2.out_channels) == (maps, max(1, maps // 16), maps)
    normed = dict(AlteredZFNet(change="layer norm", **SMALL).named_children())
    assert list(normed) == plain
    assert [normed[f"norm{n}"].normalized_shape for n in (1, 2)] == [(8,), (16,)]
    assert all(isinstance(normed[f"norm{n}"], LayerNorm2d) for n in (1, 2))


@pytest.mark.parametrize("change", CHANGES)
def test_the_first_weights_are_zfnets(change: str) -> None:
    models = []
    for make in (partial(AlteredZFNet, change=change), ZFNet):
        torch.manual_seed(5)
        models.append(dict(make(**SMALL).named_parameters()))
    ours, plain = models
    for name, weight in plain.items():
        twice = change == "squeeze-excitation" and name.removesuffix(".weight") in BEHIND_GATES
        assert torch.equal(ours[name], weight * (2 if twice else 1)), name


def test_a_change_that_there_is_not_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"change 'selu'.*silu"):
        AlteredZFNet(change="selu", **SMALL)


@pytest.mark.parametrize("change", CHANGES)
def test_the_deconvnet_refuses_it_and_extended_does_not(change: str) -> None:
    layer = "silu5" if change == "silu" else "relu5"
    model, images = altered(change), torch.randn(1, 3, 64, 64)
    with pytest.raises(InputError, match=r"no deconvnet rule for .*rules=\"extended\""):
        Deconvnet(model).project_units(images, layer, [(0, 0, 0, 0)])
    extended = Deconvnet(model, rules="extended")
    values = extended.record(images, [layer]).activations[layer][0, :, 1, 1]
    assert extended.project_units(images, layer, [(0, int(values.argmax()), 1, 1)]).projections.any()


# ---- what the ablation makes of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("rules", [EXTENDED, GRADIENT, GUIDED], ids=["extended", "gradient", "guided"])
def test_pictures_are_those_of_whole_images_where_the_unit_looks(change: str, rules: dict) -> None:
    layer = "silu3" if change == "silu" else "relu3"
    units = units_of(change, layer)
    pictures = units.pictures(rules)
    whole = Deconvnet(units.deconvnet.model, rules=rules)
    alone = whole.project_units(units.images, layer, units.units, signals=torch.ones(12), whole=True).projections
    expected = cut(alone, range(12), units.boxes, tuple(units.crops.shape[-2:]))
    torch.testing.assert_close(pictures, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
    assert expected.any()


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_left_is_of_the_whole_image(change: str) -> None:
    """Behind a gate a unit depends on all of its image, and only what lies under the square is changed."""
    layer = "silu3" if change == "silu" else "relu3"
    units = units_of(change, layer)
    graph = units.deconvnet.graph
    assert receptive_field(graph, layer, (64, 64)).exact == (change != "squeeze-excitation")
    torch.testing.assert_close(units.respond(units.crops), units.values)
    boxes = squares(units.inside)
    remaining = left(units, boxes, "grey")
    ground, under = units.ground("grey"), covered(boxes[:, 7], units.inside)
    for n, (image, map_, row, column) in enumerate(units.units.tolist()):
        changed = units.images[image].clone()
        top, start = units.boxes[n, :2].tolist()
        for r, c in (under[n] & units.inside[n]).nonzero().tolist():
            changed[:, top + r, start + c] = ground[n, :, r, c]
        value = units.deconvnet.record(changed[None], [layer]).activations[layer][0, map_, row, column]
        torch.testing.assert_close(remaining[n, 7], value, rtol=1e-4, atol=1e-5)


def test_a_graph_of_other_rules_has_the_fields_of_these() -> None:
    graph = Deconvnet(altered("squeeze-excitation"), rules="extended").graph
    assert not receptive_field(graph, "relu3", (64, 64)).exact
    gradient = Deconvnet(graph, rules="gradient").graph
    assert receptive_field(gradient, "relu3", (64, 64)).size == (64, 64)  # the gradient of a gate is of the image
    assert Deconvnet(graph, rules="extended").graph is graph
