"""timm's networks: projections are what autograd says, or the network is refused by name.

Of convolutional ReLU networks by DECONVNET, and of every family, the smallest, by EXTENDED: see scripts/families.py.
"""

import re

import pytest
import torch
from oracles import assert_close, deconvnet_by_autograd, on_the_image
from torch import Tensor, nn

from scripts.families import families, known, line
from scripts.zoo import TIMM, drawn_timm, strongest
from zfnet import Deconvnet, InputError

pytest.importorskip("timm")

FAST = ("test_resnet", "resnet10t", "resnetv2_18", "regnetx_002", "mobilenetv2_035", "mnasnet_050", "dla46x_c")
SLOW = [name for name in TIMM if name not in FAST]
# what has gates, activations without a rule, or attention
REFUSED = {
    "semnasnet_050": "mul",
    "legacy_seresnet18": "mul|Sigmoid",
    "darknet17": "LeakyReLU",
    "skresnet18": "mul|softmax",
    "resnest14d": "mul|RadixSoftmax|softmax",
    "ese_vovnet19b_dw": "mul|Hardsigmoid",
    "ghostnet_050": "mul|Hardsigmoid",
    "rexnet_100": "mul|SiLU",
}
LARGER = {"inception_v3": 96, "inception_v4": 96, "inception_resnet_v2": 96, "vgg11_bn": 224, "resnet50_clip": 224}


def rectified(model: nn.Module, images: Tensor) -> list[str]:
    """The names of all modules that give maps (N, C, H, W) without a value below 0, once, in order."""
    calls: dict[str, list[bool]] = {}
    handles = [
        module.register_forward_hook(
            lambda module, inputs, output, name=name: calls.setdefault(name, []).append(
                isinstance(output, Tensor) and output.ndim == 4 and output.shape[-1] > 1 and bool((output >= 0).all())
            )
        )
        for name, module in model.named_modules()
        if "relu" in type(module).__name__.lower()
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return [name for name, rectifies in calls.items() if rectifies == [True]]


def check(name: str) -> None:
    """That a sparse signal and single units of three layers come down as autograd says."""
    side = LARGER.get(name, 64)
    model, images = drawn_timm(name), torch.randn(1, 3, side, side, dtype=torch.float64)
    layers = rectified(model, images)
    deconvnet = Deconvnet(model)
    for module in dict.fromkeys(layers[len(layers) * part // 3 - 1] for part in (1, 2, 3)):
        layer = deconvnet.graph.name(module)
        recording = deconvnet.record(images, [layer])
        activation = recording.activations[layer]
        signal = activation * (torch.rand_like(activation) < 0.1)
        theirs = deconvnet_by_autograd(model, images, module, signal)
        assert_close(deconvnet.project(recording, layer, signal), theirs, 1e-8)
        units = strongest(activation)
        patches = deconvnet.project_units(images, layer, units)
        for unit, canvas, box in zip(map(tuple, units.tolist()), patches.projections, patches.boxes, strict=True):
            signal = torch.zeros_like(activation)
            signal[unit] = activation[unit]
            theirs = deconvnet_by_autograd(model, images, module, signal)
            assert_close(on_the_image(canvas, box, (side, side)), theirs[0], 1e-8)


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_projections_are_autograds(name: str) -> None:
    check(name)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_relu_network_is_refused_by_name(name: str) -> None:
    deconvnet, images = Deconvnet(drawn_timm(name)), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    layer = deconvnet.graph.layers[-1]
    recording = deconvnet.record(images, [layer])
    with pytest.raises(InputError) as error:
        deconvnet.project(recording, layer, recording.activations[layer])
    assert re.fullmatch(rf"no deconvnet rule for ({REFUSED[name]}) at \S+[^\n]*", str(error.value))


ROWS = known()
SMALL = [family for family, row in ROWS.items() if row.get("parameters", 1e9) < 1e7]


@pytest.mark.parametrize("family", ["byobnet", "convnext", "efficientnet", "mambaout"])
def test_a_small_family_is_equal(family: str) -> None:
    row = line(family, f"test_{family}")
    assert row["result"] == "equal" and row["compared"] == 5 and row["layers"] == 5, row


@pytest.mark.slow
@pytest.mark.parametrize("family", SMALL)
def test_no_small_family_is_wrong(family: str) -> None:
    row = line(family, ROWS[family]["network"])
    assert row["result"] in ("equal", "refused"), row


def test_every_family_is_equal_or_refused_by_name() -> None:
    results = [row["result"] for row in ROWS.values()]
    assert set(ROWS) == set(families()) and set(results) == {"equal", "refused"}
    assert results.count("equal") >= 0.7 * len(results)
