"""The network's sizes and numbers are the paper's, and it computes what torch's own layers compute.

It works with the tools that people use on networks: each gives the same outputs and, where it can train, gradients.
"""

import copy
import pickle
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torchvision.models.feature_extraction import create_feature_extractor

from zfnet import InputError, ZFNet
from zfnet.model import CHANGES, VARIANTS, ContrastNorm, variant

LAYERS = [
    "conv1",
    "relu1",
    "pool1",
    "norm1",
    "conv2",
    "relu2",
    "pool2",
    "norm2",
    "conv3",
    "relu3",
    "conv4",
    "relu4",
    "conv5",
    "relu5",
    "pool5",
    "flatten",
    "fc6",
    "relu6",
    "drop6",
    "fc7",
    "relu7",
    "drop7",
    "fc8",
]
SMALL = {"maps": (4, 6, 8, 8, 6), "hidden": (10, 10), "num_classes": 5}
BORDERS = ("both", "right and below")


def outputs(model: nn.Sequential, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    for name, module in model.named_children():
        images = module(images)
        yield name, images.clone()


@pytest.mark.parametrize("border", BORDERS)
def test_map_sizes_of_figure_3(border: str) -> None:
    model = ZFNet(border=border, **SMALL).eval()
    sides = {name: x.shape[-1] for name, x in outputs(model, torch.randn(1, 3, 224, 224)) if x.ndim == 4}
    names = ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5")
    assert [sides[name] for name in names] == [110, 55, 26, 13, 13, 13, 13, 6]


@pytest.mark.parametrize("border", BORDERS)
def test_map_sizes_of_the_replication(border: str) -> None:
    model = ZFNet(**variant("krizhevsky", border=border, **SMALL)).eval()
    sides = {name: x.shape[-1] for name, x in outputs(model, torch.randn(1, 3, 224, 224)) if x.ndim == 4}
    names = ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5")
    assert [sides[name] for name in names] == [55, 27, 27, 13, 13, 13, 13, 6]


def count(maps: tuple[int, ...], kernels: tuple[int, ...], hidden: tuple[int, ...]) -> int:
    """Weights and biases, by hand."""
    convolutions = sum((a * k * k + 1) * b for a, b, k in zip((3, *maps), maps, kernels, strict=False))
    widths = (maps[-1] * 6 * 6, *hidden, 1000)
    return convolutions + sum((a + 1) * b for a, b in pairwise(widths))


FIG3, KRIZHEVSKY = (7, 5, 3, 3, 3), (11, 5, 3, 3, 3)
MAPS, DEEPER = (96, 256, 384, 384, 256), (96, 256, 512, 1024, 512)
PARAMETERS = {  # in the order of Table 3
    "krizhevsky": 62_378_344,
    "krizhevsky without layers 3, 4": count((96, 256, 256), (11, 5, 3), (4096, 4096)),
    "krizhevsky without layer 7": count(MAPS, KRIZHEVSKY, (4096,)),
    "krizhevsky without layers 6, 7": count(MAPS, KRIZHEVSKY, ()),
    "krizhevsky without layers 3, 4, 6, 7": count((96, 256, 256), (11, 5, 3), ()),
    "krizhevsky fc 2048": count(MAPS, KRIZHEVSKY, (2048, 2048)),
    "krizhevsky fc 8192": count(MAPS, KRIZHEVSKY, (8192, 8192)),
    "fig3": 62_357_608,
    "fig3 fc 2048": 28_848_232,
    "fig3 fc 8192": 154_542_184,
    "fig3 512-1024-512": 107_627_624,
    "fig3 fc 8192, 512-1024-512": 237_560_936,
}


def test_the_count_by_hand_is_the_papers() -> None:
    assert count(MAPS, FIG3, (4096, 4096)) == PARAMETERS["fig3"]
    assert count(MAPS, KRIZHEVSKY, (4096, 4096)) == PARAMETERS["krizhevsky"]
    assert count(DEEPER, FIG3, (8192, 8192)) == PARAMETERS["fig3 fc 8192, 512-1024-512"]


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_of_table_3(name: str) -> None:
    with torch.device("meta"):
        model = ZFNet(**variant(name))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_the_variants_are_the_rows_of_table_3() -> None:
    assert list(VARIANTS) == list(PARAMETERS)
    assert {change for _, change in VARIANTS.values()} == set(CHANGES)


def test_a_variant_scales_with_its_network() -> None:
    small = {"maps": [12, 24, 48, 48, 36], "hidden": [64, 32], "num_classes": 7, "conv1": [5, 2]}
    same = {"maps": (12, 24, 48, 48, 36), "hidden": (64, 32), "reference": (MAPS, (4096, 4096))}
    assert variant("fig3", **small) == small | same
    wide = variant("fig3 fc 8192, 512-1024-512", **small)
    more = {"maps": (12, 24, 64, 128, 72), "hidden": (128, 64), "reference": (DEEPER, (8192, 8192))}
    assert wide == small | more
    bare = variant("krizhevsky without layers 3, 4, 6, 7", **small)
    assert (bare["maps"], bare["hidden"], bare["conv1"]) == ((12, 24, None, None, 36), (), (11, 4))
    assert small["maps"] == [12, 24, 48, 48, 36]


@pytest.mark.parametrize(
    ("name", "architecture", "message"),
    [
        ("fig3 fc 2047", {}, "no variant 'fig3 fc 2047' (did you mean 'fig3 fc 2048'?)"),
        ("fig3 fc 2048", {"hidden": [64]}, "made from a network with layers 1 to 7; got maps (96, 256"),
        ("krizhevsky without layers 3, 4", {"maps": (4, 6, None, None, 6)}, "with layers 1 to 7"),
    ],
)
def test_variants_that_cannot_be(name: str, architecture: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        variant(name, **architecture)


def test_layer_names() -> None:
    assert [name for name, _ in ZFNet(**SMALL).named_children()] == LAYERS
    shorter = ZFNet(**(SMALL | {"maps": (4, 6, None, None, 6), "hidden": (10,)}))
    gone = {"conv3", "relu3", "conv4", "relu4", "fc7", "relu7", "drop7"}
    assert [name for name, _ in shorter.named_children()] == [name for name in LAYERS if name not in gone]


def test_order_of_norm_and_pool() -> None:
    names = [name for name, _ in ZFNet(norm="before pool", **SMALL).named_children()]
    assert names[:4] == ["conv1", "relu1", "norm1", "pool1"]
    assert not any(name.startswith("norm") for name, _ in ZFNet(norm=None, **SMALL).named_children())


def stock(model: ZFNet, border: str, norm: str) -> nn.Sequential:
    """Figure 3 in torch's own layers, with the weights of `model`."""
    contrast = {n: nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0) for n in (1, 2)}
    pools = {n: nn.MaxPool2d(3, 2, ceil_mode=True) for n in (1, 2)}
    tails = {n: (pools[n], contrast[n]) if norm == "after pool" else (contrast[n], pools[n]) for n in (1, 2)}
    conv1 = nn.Conv2d(3, 96, 7, 2, 1 if border == "both" else 0)
    layers = (
        *(() if border == "both" else (nn.ZeroPad2d((0, 1, 0, 1)),)),
        conv1,
        nn.ReLU(),
        *tails[1],
        nn.Conv2d(96, 256, 5, 2),
        nn.ReLU(),
        *tails[2],
        nn.Conv2d(256, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(9216, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    twin = nn.Sequential(*layers).to(model.conv1.weight.dtype)
    twin.load_state_dict(dict(zip(twin.state_dict(), model.state_dict().values(), strict=True)))
    return twin.eval()


@pytest.mark.parametrize("norm", ["after pool", "before pool"])
@pytest.mark.parametrize("border", BORDERS)
def test_the_output_is_that_of_torchs_layers(border: str, norm: str) -> None:
    model = ZFNet(10, hidden=(64, 64), border=border, norm=norm, init="he").double().eval()
    nn.init.normal_(model.conv1.bias)
    images = 50 * torch.randn(2, 3, 224, 224, dtype=torch.float64)  # large enough for the normalisation to matter
    with torch.no_grad():
        ours, theirs = model(images), stock(model, border, norm)(images)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * float(theirs.abs().max()))


def test_each_layer_is_torchs_in_single_precision() -> None:
    model = ZFNet(10, hidden=(64, 64), init="he").eval()
    x = 50 * torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        for ours, theirs in zip(model, stock(model, "both", "after pool"), strict=False):
            if isinstance(ours, nn.Flatten):
                break
            expected = theirs(x.clone())
            x = ours(x)
            torch.testing.assert_close(x, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("maps", [1, 3, 8])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6])
def test_contrast_norm_is_torchs(size: int, maps: int) -> None:
    x = (9 * torch.randn(2, maps, 5, 7, dtype=torch.float64)).requires_grad_()
    ours, theirs = (norm(size, 1e-2, 0.75, 2.0)(x) for norm in (ContrastNorm, nn.LocalResponseNorm))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    signal = torch.randn_like(x)
    gradients = [torch.autograd.grad(y, x, signal)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("beta", [0.5, 0.75, 1.0])
@pytest.mark.parametrize("shape", [(1, 6, 1, 1), (5, 6, 3, 1), (9, 96, 7, 5), (0, 6, 3, 3)], ids=str)
def test_contrast_norm_for_shapes_and_powers(shape: tuple[int, ...], beta: float, dtype: torch.dtype) -> None:
    x = 50 * torch.randn(shape, dtype=dtype)
    for layout in (torch.contiguous_format, torch.channels_last):
        ours = ContrastNorm(5, 1e-3, beta, 1.5)(x.contiguous(memory_format=layout))
        assert ours.dtype == dtype
        precision = 1e-12 if dtype == torch.float64 else 1e-6
        torch.testing.assert_close(ours, F.local_response_norm(x, 5, 1e-3, beta, 1.5), rtol=precision, atol=precision)


def test_contrast_norm_worked_example() -> None:
    # size 3, alpha 3, k 1, beta 1: each map over 1 + its own square and its neighbours'
    x = torch.tensor([1.0, 2, 0, 3]).view(1, 4, 1, 1)
    expected = [1 / (1 + 1 + 4), 2 / (1 + 1 + 4 + 0), 0, 3 / (1 + 0 + 9)]
    torch.testing.assert_close(ContrastNorm(3, 3.0, 1.0, 1.0)(x).flatten(), torch.tensor(expected))


def test_contrast_norm_can_be_differentiated_twice() -> None:
    x = torch.randn(2, 6, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ContrastNorm(5, 1.0, 0.75, 1.0), x)
    assert torch.autograd.gradgradcheck(ContrastNorm(5, 1.0, 0.75, 1.0), x)


# --- the tools that people use


def small(**settings: Any) -> tuple[ZFNet, Tensor]:
    """A network in eval mode, and images whose squares overflow in half precision."""
    return ZFNet(image_size=64, init="he", dropout=0.0, **(SMALL | settings)).eval(), 300 * torch.randn(5, 3, 64, 64)


def close(ours: Tensor, theirs: Tensor, precision: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=precision * float(theirs.detach().abs().max()))


def gradients(network: Any, model: nn.Module, images: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(F.cross_entropy(network(images), torch.arange(5)), list(model.parameters())))


def exported(model: nn.Module, images: Tensor) -> Any:
    batches = {"input": {0: torch.export.Dim("batch")}}
    return torch.export.export(model, (images[:2],), dynamic_shapes=batches).module()


def extracted(model: nn.Module, images: Tensor) -> Any:
    extractor = create_feature_extractor(model, {"fc8": "logits"})
    return lambda batch: extractor(batch)["logits"]


TOOLS = {
    "create_feature_extractor": extracted,
    "jit.trace": lambda model, images: torch.jit.trace(model, images[:2]),
    "export": exported,
    "compile": lambda model, images: torch.compile(model, backend="aot_eager"),
}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("tool", TOOLS)
def test_tools_compute_the_same(tool: str, training: bool) -> None:
    model, images = small()
    model.train(training)
    network = TOOLS[tool](model, images)
    own = dict(network.named_parameters()) if isinstance(network, torch.fx.GraphModule) else {}  # export copies them
    holder = network if own else model
    close(network(images), model(images))
    for ours, theirs in zip(gradients(network, holder, images), gradients(model, model, images), strict=True):
        close(ours, theirs, 1e-4)


def test_feature_extractor_gives_every_layer() -> None:
    model, images = small()
    features = create_feature_extractor(model, LAYERS)(images)
    for (name, expected), place in zip(outputs(model, images), LAYERS, strict=True):
        assert name == place
        if not name.startswith(("conv", "fc6", "fc7")):  # those are rectified in place
            assert torch.equal(features[name], expected)


def test_onnx_export_computes_the_same(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, images = small()
    path, batches = tmp_path / "zfnet.onnx", ({0: torch.export.Dim("batch")},)
    torch.onnx.export(model, (images[:2],), path, dynamo=True, dynamic_shapes=batches, verbose=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    close(torch.from_numpy(logits), model(images).detach())


@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float16, 0.01), (torch.bfloat16, 0.06)], ids=["half", "bfloat"]
)
def test_half_precision(dtype: torch.dtype, precision: float) -> None:
    model, images = small()
    half = copy.deepcopy(model).to(dtype)
    logits = half(images.to(dtype))
    assert logits.dtype == dtype
    close(logits.float(), model(images), precision)
    x = 300 * torch.randn(2, 6, 5, 5)
    close(ContrastNorm()(x.to(dtype)).float(), F.local_response_norm(x, 5, 5e-4, 0.75, 2.0), precision / 5)
    with torch.autocast("cpu", dtype):
        close(ContrastNorm()(x), F.local_response_norm(x, 5, 5e-4, 0.75, 2.0), 1e-6)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in half.parameters())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_slices(duplicate: Any) -> None:
    model, images = small()
    other = duplicate(model)
    assert torch.equal(other(images), model(images)) and other.image_size == 64
    assert all(p is not q for p, q in zip(other.parameters(), model.parameters(), strict=True))
    head, rest = other[:8], other[8:]
    assert [name for name, _ in head.named_children()] == LAYERS[:8] and head[-1] is other.norm2
    assert torch.equal(rest(head(images)), model(images))


def test_shapes_are_told_without_values() -> None:
    with torch.device("meta"):
        assert ZFNet(image_size=64, **SMALL)(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
    model, images = small()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
    assert model(images).isfinite().all()  # nothing without values was remembered


def test_grey_images() -> None:
    model = ZFNet(image_size=64, channels=1, **SMALL)
    assert model.conv1.weight.shape == (4, 1, 7, 7) and model(torch.randn(2, 1, 64, 64)).shape == (2, 5)


def test_gradients_reach_every_parameter() -> None:
    model = ZFNet(image_size=96, init="he", dropout=0.0, **SMALL)
    F.cross_entropy(model(torch.randn(8, 3, 96, 96)), torch.arange(8) % 5).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def inputs(model: nn.Module) -> dict[str, int]:
    """How many numbers each unit of a layer reads."""
    layers = model.named_children()
    return {name: layer.weight[0].numel() for name, layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_papers_weights_are_carried_over_as_gain(name: str) -> None:
    with torch.device("meta"):  # too large to be filled, but its shapes are known
        papers = inputs(ZFNet(**variant(name)))
    torch.manual_seed(0)
    small = ZFNet(20, **variant(name, maps=(32, 64, 96, 96, 64), hidden=(256, 256), image_size=64))
    assert inputs(small).keys() == papers.keys()
    for layer, count in inputs(small).items():
        deviation = float(small.get_submodule(layer).weight.detach().std())
        assert deviation * count**0.5 == pytest.approx(0.01 * papers[layer] ** 0.5, rel=0.05), layer


@pytest.mark.parametrize("name", ["fig3 fc 2048", "fig3 512-1024-512"])
def test_at_the_papers_widths_the_gain_is_one(name: str) -> None:
    torch.manual_seed(0)
    model = ZFNet(20, **variant(name))
    for layer in inputs(model):
        assert float(model.get_submodule(layer).weight.detach().std()) == pytest.approx(0.01, rel=0.02), layer


@pytest.mark.parametrize(("init", "deviation"), [("paper", 0.01), ("he", (2 / (256 * 9)) ** 0.5)], ids=["paper", "he"])
def test_initial_weights(init: str, deviation: float) -> None:
    model = ZFNet(hidden=(16,), init=init)
    assert abs(float(model.conv3.weight.detach().std()) / deviation - 1) < 0.01
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"maps": (96, 256, 384)}, "maps must be five positive numbers"),
        ({"maps": (None, 256, 384, 384, 256)}, "maps must be five positive numbers"),
        ({"maps": (96, 0, 384, 384, 256)}, "maps must be five positive numbers"),
        ({"hidden": (1, 2, 3)}, "hidden must be at most two positive numbers"),
        ({"hidden": (0,)}, "hidden must be at most two positive numbers"),
        ({"border": "bath"}, "no border 'bath' (did you mean 'both'?)"),
        ({"norm": "after pol"}, "no norm 'after pol' (did you mean 'after pool'?)"),
        ({"init": "hee"}, "no init 'hee' (did you mean 'he'?)"),
        ({"reference": ((96, 256, None, 384, 256), (4096, 4096))}, "reference has no conv3, which the network has"),
        ({"reference": (MAPS, (4096,))}, "reference has no fc7, which the network has"),
        ({"reference": "x"}, "reference is 'x'; give maps and hidden, as ((96, 256"),
        ({"image_size": 20}, "images of 20 pixels are too small for ZFNet: nothing is left after layer 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value),
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        ZFNet(**(SMALL | arguments))
