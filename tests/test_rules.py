"""Every operation that has a rule, one at a time in a small network: the walk back, units and fields against twins."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_close, check_units, deconvnet_by_autograd, extent, measured_support, positions
from torch import Tensor, nn
from torchvision.ops import Permute, StochasticDepth

from zfnet import DECONVNET, Deconvnet, InputError, Operation, SwitchMaxPool2d, receptive_field, rule
from zfnet.operations import UNSWITCHED

SIZE = (12, 14)


class Call(nn.Module):
    """A function as a module, which is traced into."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Weighted(nn.Module):
    """A function of the maps and of a parameter of some shape."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *shape: int):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


class Rectifier(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp_min(0.0)


def chunks(x: Tensor) -> Tensor:
    return x.unflatten(1, (2, 4))


Steps = dict[str, Callable[[], nn.Module]]


def functions(table: dict[str, Callable[[Tensor], Tensor]]) -> Steps:
    return {name: lambda function=function: Call(function) for name, function in table.items()}


TRANSPOSED: Steps = {
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(8, 6, 2, 2),
    "ConvTranspose2d, padded": lambda: nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1),
    "ConvTranspose2d, stride 3 over kernel 2": lambda: nn.ConvTranspose2d(8, 6, 2, 3),
    "ConvTranspose2d, groups and dilation": lambda: nn.ConvTranspose2d(8, 6, (3, 2), 1, 1, groups=2, dilation=2),
    "F.conv_transpose2d": lambda: Weighted(lambda x, w: F.conv_transpose2d(x, w, None, 2, 1), 8, 6, 4, 4),
    "torch.conv_transpose2d": lambda: Weighted(lambda x, w: torch.conv_transpose2d(x, w, stride=2), 8, 6, 2, 2),
}
RESAMPLED: Steps = {
    "Upsample": lambda: nn.Upsample(scale_factor=2),
    "Upsample, size": lambda: nn.Upsample((17, 30)),
    "Upsample, bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "Upsample, bilinear, corners": lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    "UpsamplingNearest2d": lambda: nn.UpsamplingNearest2d(scale_factor=3),
    "UpsamplingBilinear2d": lambda: nn.UpsamplingBilinear2d(size=(20, 21)),
    **functions(
        {
            "interpolate, nearest": lambda x: F.interpolate(x, scale_factor=2),
            "interpolate, nearest, (2, 3)": lambda x: F.interpolate(x, scale_factor=(2.0, 3.0)),
            "interpolate, nearest-exact": lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"),
            "interpolate, nearest-exact, size": lambda x: F.interpolate(x, (17, 20), mode="nearest-exact"),
            "interpolate, bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
            "interpolate, bilinear, size": lambda x: F.interpolate(x, (17, 20), mode="bilinear"),
            "interpolate, bilinear, corners": lambda x: F.interpolate(x, (17, 20), None, "bilinear", True),
            "interpolate, downwards": lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear"),
            "interpolate, nearest, downwards": lambda x: F.interpolate(x, size=(5, 7)),
            "interpolate, as another": lambda x: F.interpolate(F.avg_pool2d(x, 2), x.shape[2:], mode="nearest"),
        }
    ),
}
PADDED: Steps = {
    "ZeroPad2d": lambda: nn.ZeroPad2d((1, 0, 0, 1)),
    "ConstantPad2d": lambda: nn.ConstantPad2d(1, 0.0),
    "ConstantPad2d of another value": lambda: nn.ConstantPad2d((1, 0, 1, 1), 0.7),
    "ConstantPad2d, cropping": lambda: nn.ConstantPad2d((-1, 1, 1, -2), 0.0),
    "CircularPad2d": lambda: nn.CircularPad2d(1),
    "ReflectionPad2d": lambda: nn.ReflectionPad2d((1, 2, 1, 0)),
    "ReplicationPad2d": lambda: nn.ReplicationPad2d(2),
    "Conv2d, circular": lambda: nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular"),
    "Conv2d, reflect": lambda: nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"),
    "Conv2d, replicate": lambda: nn.Conv2d(8, 6, 3, padding=1, padding_mode="replicate"),
    "Conv2d, same": lambda: nn.Conv2d(8, 6, (4, 3), padding="same"),
    **functions(
        {
            "F.pad": lambda x: F.pad(x, (1, 1, 1, 0)),
            "F.pad, of maps": lambda x: F.pad(x, (0, 0, 0, 0, 0, 2)),
            "F.pad, constant": lambda x: F.pad(x, (1, 1, 1, 0), "constant", 0.3),
            "F.pad, reflect": lambda x: F.pad(x, (1, 1, 1, 0), mode="reflect"),
            "F.pad, replicate": lambda x: F.pad(x, (1, 1, 1, 0), mode="replicate"),
            "F.pad, circular": lambda x: F.pad(x, (1, 1, 1, 0), mode="circular"),
        }
    ),
}
MOVED: Steps = {
    "PixelShuffle": lambda: nn.PixelShuffle(2),
    "PixelUnshuffle": lambda: nn.PixelUnshuffle(2),
    "ChannelShuffle": lambda: nn.ChannelShuffle(2),
    "Permute, twice": lambda: nn.Sequential(Permute([0, 2, 3, 1]), Permute([0, 3, 1, 2])),
    **functions(
        {
            "F.pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
            "F.pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
            "flip": lambda x: x.flip(3),
            "torch.flip": lambda x: torch.flip(x, (2, 3)),
            "flip of maps": lambda x: x.flip(1),
            "torch.roll": lambda x: torch.roll(x, 1, 2),
            "roll": lambda x: x.roll((2, -3), (2, 3)),
            "roll of maps": lambda x: x.roll(3, 1),
            "einsum": lambda x: torch.einsum("bchw->bchw", x),
            "einsum, transposed": lambda x: torch.einsum("bchw->bcwh", x),
            "einsum, summed": lambda x: torch.einsum("bchw->bhw", x).unsqueeze(1),
            "crop": lambda x: x[:, 2:, 1:-2, 3:],
            "every second": lambda x: x[:, :, ::2, 1::2],
            "transpose": lambda x: x.transpose(2, 3),
        }
    ),
}
SUMMED: Steps = functions(
    {
        "sum of chunks": lambda x: chunks(x).sum(1),
        "sum": lambda x: x.sum(1, keepdim=True),
        "torch.sum": lambda x: torch.sum(chunks(x), dim=2),
        "mean of chunks": lambda x: chunks(x).mean(2),
        "torch.mean": lambda x: torch.mean(x, 1, True),
        "sum over rows": lambda x: x + x.sum(2, keepdim=True),
        "mean over all": lambda x: x - x.mean((2, 3), keepdim=True),
        "differences": lambda x: x[:, :, 1:] - x[:, :, :-1],
        "constants": lambda x: 2 * x / 3 - 1 + -x,
    }
)
CAST: Steps = functions(
    {
        "to": lambda x: x.to(x.dtype),
        "to, float32 and back": lambda x: x.to(torch.float32).to(x.dtype),
        "float": lambda x: x.float().double(),
        "half": lambda x: x.half().double(),
        "bfloat16": lambda x: x.bfloat16().double(),
        "type_as": lambda x: x.float().type_as(x),
        "type": lambda x: x.type(torch.float64),
        "contiguous": lambda x: x.contiguous(),
        "clone": lambda x: x.clone(),
    }
)
IDLE: Steps = {
    "Dropout2d": lambda: nn.Dropout2d(),
    "Dropout3d": lambda: nn.Dropout3d(),
    "FeatureAlphaDropout": lambda: nn.FeatureAlphaDropout(),
    "AlphaDropout": lambda: nn.AlphaDropout(),
    "Identity": lambda: nn.Identity(),
    "StochasticDepth": lambda: StochasticDepth(0.5, "row"),
    **functions(
        {
            "F.dropout": lambda x: F.dropout(x, 0.5, False),
            "F.alpha_dropout": lambda x: F.alpha_dropout(x, 0.5, False),
            "F.feature_dropout": lambda x: F.feature_alpha_dropout(x, 0.5, False),
        }
    ),
}
NORMALISED: Steps = {
    "BatchNorm2d": lambda: nn.BatchNorm2d(8),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(8),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(8),
    "InstanceNorm2d, affine": lambda: nn.InstanceNorm2d(8, affine=True),
    "InstanceNorm2d, running": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "F.instance_norm": lambda: Call(F.instance_norm),
    "GroupNorm": lambda: nn.GroupNorm(2, 8),
    "F.group_norm": lambda: Weighted(lambda x, w: F.group_norm(x, 4, w, w), 8),
    "LocalResponseNorm": lambda: nn.LocalResponseNorm(5, 0.1),
    "CrossMapLRN2d": lambda: nn.CrossMapLRN2d(5, 0.1),
    "F.local_response_norm": lambda: Call(lambda x: F.local_response_norm(x, 3, 0.1)),
}
POOLED: Steps = {
    "MaxPool2d": lambda: nn.MaxPool2d(3, 2, 1),
    "MaxPool2d, dilated": lambda: nn.MaxPool2d(2, 1, dilation=2),
    "AvgPool2d": lambda: nn.AvgPool2d((2, 3), padding=(0, 1)),
    "AvgPool2d, border not counted": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "AdaptiveAvgPool2d": lambda: nn.AdaptiveAvgPool2d((5, 4)),
    "AdaptiveMaxPool2d": lambda: nn.AdaptiveMaxPool2d((5, 4)),
    **functions(
        {
            "F.max_pool2d": lambda x: F.max_pool2d(x, 3, stride=2),
            "torch.max_pool2d": lambda x: torch.max_pool2d(x, 2),
            "F.max_pool2d_with_indices": lambda x: F.max_pool2d_with_indices(x, 2)[0],
            "F.max_pool2d, return_indices": lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True)[0],
            "F.adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, (5, 4)),
            "F.avg_pool2d": lambda x: F.avg_pool2d(x, 2, ceil_mode=True),
            "F.adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (4, 7)),
        }
    ),
}
RECTIFIED: Steps = {
    "ReLU": lambda: nn.ReLU(),
    "ReLU6": lambda: nn.ReLU6(),
    "Threshold": lambda: nn.Threshold(0, 0),
    "Threshold, in place": lambda: nn.Threshold(0.0, 0.0, inplace=True),
    "subclass": lambda: Rectifier(),
    **functions(
        {
            "clamp": lambda x: x.clamp(min=0),
            "clamp, by position": lambda x: x.clamp(0),
            "torch.clamp": lambda x: torch.clamp(x, min=0.0),
            "clamp_min": lambda x: x.clamp_min(0),
            "torch.clamp_min": lambda x: torch.clamp_min(x, 0),
            "clip": lambda x: x.clip(min=0),
            "F.threshold": lambda x: F.threshold(x, 0.0, 0.0),
            "torch.threshold": lambda x: torch.threshold(x, 0, 0),
        }
    ),
}
OPERATIONS = TRANSPOSED | RESAMPLED | PADDED | MOVED | SUMMED | CAST | IDLE | NORMALISED | POOLED | RECTIFIED
ROUNDED = {"to, float32 and back": 1e-6, "float": 1e-6, "half": 5e-3, "bfloat16": 5e-2, "type_as": 1e-6}
# refused by name where only a window of each unit is asked for
WITHOUT_WINDOW = {"transpose", "einsum, transposed", "einsum, summed", "sum over rows"}
# may have no window: where a receptive field is not the same for all units, or is not one box
UNEVEN = {
    *WITHOUT_WINDOW,
    *TRANSPOSED,
    *RESAMPLED,
    *(name for name in PADDED if re.search("Circ|circ|Refl|refl|Repl|repl|same|of maps", name)),
    *("flip", "torch.flip", "torch.roll", "roll", "transpose", "einsum, transposed", "PixelShuffle", "F.pixel_shuffle"),
    *("AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "F.adaptive_max_pool2d", "F.adaptive_avg_pool2d"),
    *("AvgPool2d, border not counted", "F.avg_pool2d"),
}
ACTIVATIONS: Steps = {
    type(module).__name__: lambda module=module: copy.deepcopy(module)
    for module in (
        *(nn.LeakyReLU(), nn.PReLU(), nn.ELU(), nn.SELU(), nn.CELU(), nn.GELU(), nn.SiLU(), nn.Mish(), nn.RReLU()),
        *(nn.Hardswish(), nn.Hardsigmoid(), nn.Sigmoid(), nn.LogSigmoid(), nn.Tanh(), nn.Softplus(), nn.Softsign()),
        *(nn.Softshrink(1e-3), nn.Hardshrink(1e-3), nn.Tanhshrink()),
    )
} | functions(
    {
        "leaky_relu": lambda x: F.leaky_relu(x),
        "silu": lambda x: F.silu(x),
        "gelu": lambda x: F.gelu(x),
        "hardswish": lambda x: F.hardswish(x),
        "softplus": lambda x: F.softplus(x),
        "elu": lambda x: F.elu(x),
        "sigmoid": lambda x: torch.sigmoid(x),
        "tanh": lambda x: x.tanh(),
        "exp": lambda x: x.exp(),
        "abs": lambda x: x.abs(),
        "pow": lambda x: x**2,
        "sqrt": lambda x: x.sqrt(),
        "mul": lambda x: x * x,
        "clamp, below -1": lambda x: x.clamp(min=-1),
        "threshold": lambda x: F.threshold(x, -1.0, 0.0),
    }
)


def drawn(step: nn.Module) -> nn.Sequential:
    """conv1, the step, conv2 and relu with random weights and statistics, in float64."""
    maps = step.eval()(torch.randn(1, 8, *SIZE)).shape[1]
    model = nn.Sequential()
    model.add_module("conv1", nn.Conv2d(3, 8, 3, padding=1))
    model.add_module("step", step)
    model.add_module("conv2", nn.Conv2d(maps, 4, 3, padding=1))
    model.add_module("relu", nn.ReLU())
    for name, tensor in step.state_dict().items():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 2) if "var" in name else nn.init.normal_(tensor)
    return model.double().eval()


def check_fields(model: nn.Sequential, tell: bool) -> None:
    """That fields of the last layer are what is measured; where they need not be known, they may be refused by name."""
    rows, columns = model(torch.zeros(1, 3, *SIZE, dtype=torch.float64)).shape[2:]
    for m in (None, 0):
        try:
            field = receptive_field(model, "relu", SIZE, m)
        except InputError as error:
            if tell:
                raise
            assert re.search(r"^no window for \S+ at \S+, [^\n]*$", str(error))
            continue
        for row, column in positions(rows, columns):
            seen = extent(measured_support(model, "relu", SIZE, row, column, m))
            assert field.seen(row, column) == seen, (m, row, column)
            top, left, bottom, right = field.box(row, column)
            assert top <= seen[0] and left <= seen[1] and bottom >= seen[2] and right >= seen[3], (m, row, column)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_way_back_is_the_transpose(name: str) -> None:
    model = drawn(OPERATIONS[name]())
    images = torch.randn(2, 3, *SIZE, dtype=torch.float64)
    deconvnet = Deconvnet(model)
    recording = deconvnet.record(images, ["relu"])
    activation = recording.activations["relu"]
    assert_close(activation, model(images).detach(), ROUNDED.get(name, 1e-12))
    signal = activation * (torch.rand_like(activation) < 0.3)
    ours = deconvnet.project(recording, "relu", signal)
    assert_close(ours, deconvnet_by_autograd(model, images, "relu", signal), ROUNDED.get(name, 1e-10))


@pytest.mark.parametrize("name", OPERATIONS)
def test_single_units(name: str) -> None:
    deconvnet, images = Deconvnet(drawn(OPERATIONS[name]())), torch.randn(2, 3, *SIZE, dtype=torch.float64)
    if name in WITHOUT_WINDOW:
        with pytest.raises(InputError, match=r"^no window for \S+ at step\S*, .* with whole=True$"):
            check_units(deconvnet, images, "relu")
    check_units(deconvnet, images, "relu", ROUNDED.get(name, 1e-10), whole=name in WITHOUT_WINDOW)


@pytest.mark.parametrize("name", OPERATIONS | ACTIVATIONS)
def test_fields(name: str) -> None:
    check_fields(drawn((OPERATIONS | ACTIVATIONS)[name]()), name not in UNEVEN)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_what_is_not_linear_is_refused_by_name(name: str) -> None:
    deconvnet = Deconvnet(drawn(ACTIVATIONS[name]()))
    recording = deconvnet.record(torch.randn(1, 3, *SIZE), ["relu"])
    signal = torch.ones_like(recording.activations["relu"])
    with pytest.raises(InputError, match=rf"^no deconvnet rule for _?{name.split(',')[0]}\b.* at step.*; [^\n]*$"):
        deconvnet.project(recording, "relu", signal)


class SegNet(nn.Module):
    """An encoder that keeps its switches, and a decoder that unpools by them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.conv3, self.conv4 = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.pool, self.unpool, self.last = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x, switches = self.pool(F.relu(self.conv1(x)))
        shape = x.shape
        x, deeper = self.pool(F.relu(self.conv2(x)))
        x = self.unpool(F.relu(self.conv3(x)), deeper, output_size=shape)
        return self.last(self.conv4(F.max_unpool2d(x, switches, 2)))


def test_segnet() -> None:
    model = SegNet().double().eval()
    images = torch.randn(2, 3, *SIZE, dtype=torch.float64)
    deconvnet = Deconvnet(model)
    recording = deconvnet.record(images, ["last"])
    signal = recording.activations["last"]
    assert_close(signal, model(images).detach())
    assert len(recording.switches) == 2
    ours = deconvnet.project(recording, "last", signal)
    assert_close(ours, deconvnet_by_autograd(model, images, "last", signal))
    check_units(deconvnet, images, "last")


def there_and_back(x: Tensor) -> Tensor:
    x, switches = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(x, switches, 2)


def test_unpooling_in_integers() -> None:
    """Maxima 4 and 8 of two windows go back to where they were, and the signal comes back from there."""
    model = nn.Sequential(Call(there_and_back))
    image = torch.tensor([[[[1.0, 2, 8, 5], [4, 3, 6, 7]]]])
    deconvnet = Deconvnet(model)
    layer = deconvnet.graph.layers[-1]
    recording = deconvnet.record(image, [layer])
    assert recording.activations[layer].tolist() == [[[[0, 0, 8, 0], [4, 0, 0, 0]]]]
    signal = torch.arange(10.0, 18).view(1, 1, 2, 4)
    assert deconvnet.project(recording, layer, signal).tolist() == [[[[0, 0, 12, 0], [14, 0, 0, 0]]]]


class TestRuleSets:
    """A rule set is a mapping, chosen for each Deconvnet."""

    def model(self) -> nn.Sequential:
        return drawn(nn.SiLU())

    def back(self, step: Any, signal: Tensor) -> Tensor:
        return signal.clamp(min=0)

    def project(self, deconvnet: Deconvnet, images: Tensor) -> Tensor:
        recording = deconvnet.record(images, ["relu"])
        return deconvnet.project(recording, "relu", recording.activations["relu"])

    def expected(self, model: nn.Sequential, images: Tensor) -> Tensor:
        """conv1 transposed of the rectified signal of conv2 transposed."""
        signal = F.conv_transpose2d(model(images).detach(), model.conv2.weight, padding=1).clamp(min=0)
        return F.conv_transpose2d(signal, model.conv1.weight, padding=1).detach()

    def test_a_rule_for_one_deconvnet(self) -> None:
        model, images = self.model(), torch.randn(1, 3, *SIZE, dtype=torch.float64)
        deconvnet = Deconvnet(model, rules=DECONVNET | {nn.SiLU: Operation(self.back)})
        assert_close(self.project(deconvnet, images), self.expected(model, images))
        check_units(deconvnet, images, "relu")
        assert nn.SiLU not in DECONVNET or DECONVNET[nn.SiLU].back is not self.back
        with pytest.raises(InputError, match="no deconvnet rule for SiLU at step"):
            self.project(Deconvnet(model), images)

    def test_a_rule_for_all_that_are_made_later(self, tables: None) -> None:
        model, images = self.model(), torch.randn(1, 3, *SIZE, dtype=torch.float64)
        before = Deconvnet(model)
        assert rule(nn.SiLU)(self.back) == self.back
        assert_close(self.project(Deconvnet(model), images), self.expected(model, images))
        with pytest.raises(InputError, match="no deconvnet rule for SiLU at step"):
            self.project(before, images)

    @pytest.mark.parametrize("name", ["deconvnet", "guided", "gradient"])
    @pytest.mark.parametrize("step", ["ReLU", "ReLU6", "clamp", "Threshold", "MaxPool2d", "BatchNorm2d"])
    def test_the_sets_that_have_names(self, name: str, step: str) -> None:
        model = nn.Sequential(drawn(OPERATIONS[step]()), nn.Conv2d(4, 2, 3), nn.ReLU()).double().eval()
        images = torch.randn(1, 3, *SIZE, dtype=torch.float64)
        deconvnet = Deconvnet(model, rules=name)
        recording = deconvnet.record(images, ["2"])
        signal = torch.randn_like(recording.activations["2"])
        theirs = deconvnet_by_autograd(model, images, "2", signal, rectify=True if name == "deconvnet" else name)
        assert_close(deconvnet.project(recording, "2", signal), theirs)

    @pytest.mark.parametrize("step", ["LocalResponseNorm", "GroupNorm", "InstanceNorm2d", "CrossMapLRN2d"])
    def test_the_gradient_differentiates_the_normalisation(self, step: str) -> None:
        model = drawn(OPERATIONS[step]())
        images = torch.randn(1, 3, *SIZE, dtype=torch.float64, requires_grad=True)
        (theirs,) = torch.autograd.grad(model(images).square().sum() / 2, images)
        deconvnet = Deconvnet(model, rules="gradient")
        recording = deconvnet.record(images.detach(), ["relu"])
        assert_close(deconvnet.project(recording, "relu", recording.activations["relu"]), theirs)

    def test_a_name_that_stands_for_no_set(self) -> None:
        with pytest.raises(InputError, match=r"^no \S*.*'guidde' \(did you mean 'guided'\?\)"):
            Deconvnet(self.model(), rules="guidde")

    def test_what_a_rule_is_told(self) -> None:
        told = {}

        def back(step: Any, signal: Tensor) -> Tensor:
            told.update(module=step.module, shapes=step.shapes, inputs=step.inputs, slope=step.argument("inplace", 3))
            told.update(missing=step.argument("nothing of that name", 7), called=step.call(*step.inputs))
            return signal

        model, images = self.model(), torch.randn(1, 3, *SIZE, dtype=torch.float64)
        self.project(Deconvnet(model, rules=DECONVNET | {nn.SiLU: Operation(back, reads_input=True)}), images)
        before = model.conv1(images)
        assert told["module"] is model.step and told["slope"] is False and told["missing"] == 7
        assert [tuple(shape) for shape in told["shapes"]] == [(1, 8, *SIZE)]
        assert torch.equal(told["inputs"][0], before) and torch.equal(told["called"], F.silu(before))

    def test_switches_are_those_of_the_pooling(self) -> None:
        switches = []

        def back(step: Any, signal: Tensor) -> Tensor:
            switches.append(step.switches)
            return DECONVNET[nn.MaxPool2d].back(step, signal)

        model, images = drawn(nn.MaxPool2d(2)), torch.randn(1, 3, *SIZE, dtype=torch.float64)
        operation = DECONVNET[nn.MaxPool2d]
        rules = DECONVNET | {nn.MaxPool2d: Operation(back, operation.window, operation.reads_input)}
        ours = self.project(Deconvnet(model, rules=rules), images)
        assert torch.equal(ours, self.project(Deconvnet(model), images))
        assert torch.equal(switches[0], F.max_pool2d(model.conv1(images), 2, return_indices=True)[1])


def sliding(n: int, kernel: int, stride: int, padding: int = 0, dilation: int = 1) -> list[int]:
    """The places that window n of a max pooling reads along an axis, some beyond the border."""
    return [n * stride - padding + tap * dilation for tap in range(kernel)]


def sharing(n: int, extent: int, outputs: int) -> list[int]:
    """The places that window n of an adaptive pooling reads."""
    return [i for i in range(extent) if i >= n * extent // outputs and i * outputs < (n + 1) * extent]


WINDOWS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int, int], list[int]]]] = {
    "MaxPool2d": (lambda: nn.MaxPool2d(2), lambda n, *_: sliding(n, 2, 2)),
    "SwitchMaxPool2d": (lambda: SwitchMaxPool2d(3, 2, ceil_mode=True), lambda n, *_: sliding(n, 3, 2)),
    "max_pool2d": (lambda: Call(lambda x: F.max_pool2d(x, 3, 2, 1)), lambda n, *_: sliding(n, 3, 2, 1)),
    "torch.max_pool2d": (lambda: Call(lambda x: torch.max_pool2d(x, (4, 4), 1)), lambda n, *_: sliding(n, 4, 1)),
    "with indices": (
        lambda: Call(lambda x: F.max_pool2d(x, 3, 2, dilation=2, return_indices=True)[0]),
        lambda n, *_: sliding(n, 3, 2, 0, 2),
    ),
    "centres beyond the border": (lambda: nn.MaxPool2d(2, 2, 1, ceil_mode=True), lambda n, *_: sliding(n, 2, 2, 1)),
    "AdaptiveMaxPool2d": (lambda: nn.AdaptiveMaxPool2d(5), sharing),
    "adaptive_max_pool2d": (lambda: Call(lambda x: F.adaptive_max_pool2d(x, (4, 7))), sharing),
    "whole maps": (lambda: nn.AdaptiveMaxPool2d(1), sharing),
}


class TestUnswitched:
    """Max pooling undone without its switches: every value goes to the centre of its window."""

    def project(self, deconvnet: Deconvnet, images: Tensor, signal: Tensor) -> Tensor:
        return deconvnet.project(deconvnet.record(images, ["relu"]), "relu", signal)

    @pytest.mark.parametrize("name", WINDOWS)
    def test_against_a_loop(self, name: str) -> None:
        make, reads = WINDOWS[name]
        model, images = drawn(make()), torch.randn(2, 3, *SIZE, dtype=torch.float64)
        signal = model(images).detach()
        pooled = F.conv_transpose2d(signal, model.conv2.weight, padding=1)
        spread = torch.zeros(2, 8, *SIZE, dtype=torch.float64)
        middles = [
            [sorted(taps)[(len(taps) - 1) // 2] for taps in (reads(n, extent, outputs) for n in range(outputs))]
            for extent, outputs in zip(SIZE, pooled.shape[2:], strict=True)
        ]
        for i, row in enumerate(middles[0]):
            for j, column in enumerate(middles[1]):
                if 0 <= row < SIZE[0] and 0 <= column < SIZE[1]:
                    spread[:, :, row, column] += pooled[:, :, i, j]
        deconvnet = Deconvnet(model, rules=DECONVNET | UNSWITCHED)
        expected = F.conv_transpose2d(spread, model.conv1.weight, padding=1).detach()
        assert_close(self.project(deconvnet, images, signal), expected)
        check_units(deconvnet, images, "relu")

    def test_it_forgets_where_the_image_had_its_maxima(self) -> None:
        model, images = drawn(nn.MaxPool2d(3, 2)), torch.randn(2, 3, *SIZE, dtype=torch.float64)
        signal = model(images[:1]).detach().repeat(2, 1, 1, 1)
        with_switches, without = (
            self.project(Deconvnet(model, rules=rules), images, signal) for rules in (DECONVNET, DECONVNET | UNSWITCHED)
        )
        assert without[0].equal(without[1]) and not torch.allclose(with_switches[0], with_switches[1])

    def test_other_poolings_go_back_as_before(self) -> None:
        model, images = drawn(nn.AvgPool2d(3, 2)), torch.randn(1, 3, *SIZE, dtype=torch.float64)
        signal = model(images).detach()
        both = [self.project(Deconvnet(model, rules=r), images, signal) for r in (DECONVNET, DECONVNET | UNSWITCHED)]
        assert both[0].equal(both[1])


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 3, 2)])
@pytest.mark.parametrize("shape", [(1, 2, 1, 3), (1, 2, 3, 1), (2, 2, 1, 1), (3, 2, 4, 5)])
def test_batch_norm_scales_a_signal_however_it_lies_in_memory(shape, order) -> None:
    norm = nn.BatchNorm2d(2).double().eval()
    norm.running_var.copy_(torch.tensor([0.5, 3.0]))
    plain = nn.Conv2d(2, 2, 1, bias=False).double()
    nn.init.dirac_(plain.weight)
    network = Deconvnet(nn.Sequential(plain, norm))
    signal = torch.randn(shape).double().permute(order).contiguous()
    signal = signal.permute([order.index(axis) for axis in range(4)])
    sent = network.project(network.record(torch.randn(shape).double(), ["1"]), "1", signal)
    assert_close(sent, signal / (norm.running_var + norm.eps).sqrt().view(1, 2, 1, 1))


def test_a_view_of_nothing_is_no_obstacle() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(x[:, :1])
            F.relu_(y[:, 1:])
            return y * 2

    images = torch.randn(2, 3, 6, 6).double()
    network = Deconvnet(nn.Sequential(nn.Conv2d(3, 3, 3).double(), Nothing()))
    signal = torch.randn(2, 1, 4, 4).double()
    sent = network.project(network.record(images, ["1.mul"]), "1.mul", signal)
    expected = F.conv_transpose2d(2 * signal.clamp(min=0), network.graph.model[0].weight[:1])
    assert_close(sent, expected)
    with pytest.raises(InputError, match="no window"):
        network.project_units(images, "1.mul", [[0, 0, 1, 1]])
