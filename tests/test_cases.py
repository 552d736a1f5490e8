"""Situations that users of such tools have met: the right value, or one line that says what is wrong and what to do."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_close, check_units, deconvnet_by_autograd, extent, measured_support
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import models

from zfnet import Deconvnet, InputError, layer_table, occlusion_maps, project_top, receptive_field, scan
from zfnet.graph import Graph


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message and len(message) < 1000
    return message


def check_projections(model: nn.Module, layer: str, images: Tensor) -> None:
    """That a signal and single units come down as autograd says, in float64."""
    model.double().eval()
    images = images.double()
    deconvnet = Deconvnet(model)
    recording = deconvnet.record(images, [layer])
    activation = recording.activations[layer]
    assert activation.any()
    expected = deconvnet_by_autograd(model, images, layer, activation)
    assert_close(deconvnet.project(recording, layer, activation), expected)
    check_units(deconvnet, images, layer)


def classifier(*before: nn.Module, maps: int = 8, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(*before, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(maps, classes)).eval()


class BatchNormAct2d(nn.BatchNorm2d):
    """As in timm: a ReLU inside."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class StdConv2d(nn.Conv2d):
    """A convolution with standardised weights."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class ConvAct(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class Halved(nn.Conv2d):
    """Changed in a method that `forward` calls."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight / 2, bias) - 0.1


class NormedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight), self.bias)


class Leaky(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, 0.3)


class Branching(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


class Renamed(nn.ReLU):
    """A subclass that changes nothing."""


class TestSubclasses:
    """A rule is for a forward pass, not for a class name."""

    @pytest.mark.parametrize(
        "make",
        [
            lambda: [nn.BatchNorm2d(8), Renamed()],
            lambda: [BatchNormAct2d(8)],
            lambda: [StdConv2d(8, 8, 3, padding=1), nn.ReLU()],
            lambda: [ConvAct(8, 8, 3, padding=1)],
            lambda: [Halved(8, 8, 3, padding=1), nn.ReLU()],
        ],
        ids=["Renamed", "BatchNormAct2d", "StdConv2d", "ConvAct", "Halved"],
    )
    def test_what_a_subclass_does_is_what_is_transposed(self, make: Callable[[], list[nn.Module]]) -> None:
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *make(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.3, 0.3)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.uniform_(module.bias, -0.5, 0.5)
        check_projections(model, str(len(model) - 1), torch.randn(1, 3, 12, 12))

    def test_a_linear_layer(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), NormedLinear(8 * 64, 6))
        check_projections(model, "3", torch.randn(1, 3, 10, 10))

    def test_a_subclass_that_is_traced_to_what_has_no_rule(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), Leaky(), nn.Conv2d(8, 4, 3))
        with pytest.raises(InputError, match=r"^no deconvnet rule for leaky_relu at 1\.leaky_relu; "):
            Deconvnet(model).project_units(torch.randn(1, 3, 9, 9), "2", [[0, 0, 2, 2]])

    def test_a_subclass_that_cannot_be_traced(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), Branching(), nn.Conv2d(8, 4, 3))
        with pytest.raises(InputError, match=r"Branching") as error:
            Deconvnet(model).project_units(torch.randn(1, 3, 9, 9), "2", [[0, 0, 2, 2]])
        one_line(error)

    def test_occlusion(self) -> None:
        model = classifier(StdConv2d(3, 8, 3, padding=1), nn.ReLU(), Halved(8, 8, 3, padding=1), nn.ReLU()).double()
        image = torch.randn(3, 24, 24, dtype=torch.float64)
        first, second = (occlusion_maps(model, image, size=8, step=4, incremental=way) for way in (True, False))
        assert_close(first.activity, second.activity)
        assert_close(first.probability, second.probability)


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.join = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), nn.Conv2d(16, 4, 1)
        self.relu = nn.ReLU()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.relu(self.join(torch.cat([self.features(first), self.features(second)], 1)))


class WithNumbers(Siamese):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(4, 4)

    def forward(self, x: Tensor, meta: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x).mean((2, 3)) + self.embedding(meta)


class Loose(Siamese):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return super().forward(x, x).mean((2, 3))


class TestTwoInputs:
    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize(("make", "other"), [(Siamese, "second"), (WithNumbers, "meta")])
    def test_a_second_input_is_never_the_image(self, make: Callable[[], nn.Module], other: str) -> None:
        for use in (Deconvnet, Graph, lambda model: occlusion_maps(model, self.images[0], size=8, step=8)):
            with pytest.raises(
                InputError, match=rf"^the model needs {other} besides an image: give it as Graph\(model, {other}="
            ) as error:
                use(make())
            one_line(error)

    def test_the_other_input_is_given(self) -> None:
        model, second = Siamese().double().eval(), torch.randn(1, 3, 16, 16, dtype=torch.float64)
        images = self.images.double().requires_grad_()
        output = model(images, second)
        deconvnet = Deconvnet(Graph(model, second=second))
        recording = deconvnet.record(images.detach(), ["relu"])
        assert_close(recording.activations["relu"], output.detach())

    def test_the_other_input_is_given_to_occlusion(self) -> None:
        model, meta = WithNumbers().double().eval(), torch.randn(1, 4, dtype=torch.float64)
        image = self.images[0].double()
        maps = occlusion_maps(Graph(model, meta=meta), image, size=8, step=8)
        with torch.no_grad():
            own = model(image[None], meta).softmax(1)[0]
        assert maps.target == own.argmax() and maps.clean[1] == pytest.approx(own.max().item(), rel=1e-10)

    def test_an_input_of_no_such_name(self) -> None:
        with pytest.raises(InputError, match=r"'secnod' \(did you mean 'second'\?\)"):
            Graph(Siamese(), secnod=self.images)

    def test_inputs_that_nobody_needs_to_give(self) -> None:
        model = Loose().eval()
        maps = occlusion_maps(model, self.images[0], size=8, step=8)
        assert maps.clean[1] == pytest.approx(model(self.images).softmax(1).max().item(), rel=1e-5)


class ChannelNorm(nn.Module):
    """Layer normalisation over the maps of each position, as in ConvNeXt."""

    def __init__(self, maps: int):
        super().__init__()
        self.norm = nn.LayerNorm(maps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TestUnknownFields:
    """A step of which the window is not known: the measured field, or a refusal by name, never the whole image."""

    @pytest.mark.parametrize(
        "step",
        [
            nn.ReLU(),
            nn.LeakyReLU(),
            nn.SiLU(),
            nn.GELU(),
            nn.Sigmoid(),
            ChannelNorm(4),
            nn.SyncBatchNorm(4),
            nn.ConvTranspose2d(4, 4, 2, 2),
            nn.Upsample(scale_factor=2),
            nn.ReflectionPad2d(1),
            nn.AdaptiveAvgPool2d(7),
            nn.Unfold(3, padding=1),
            nn.Softmax2d(),
            nn.LPPool2d(2, 3),
        ],
        ids=lambda step: type(step).__name__,
    )
    def test_measured_or_refused(self, step: nn.Module) -> None:
        step = nn.Sequential(step, nn.Unflatten(2, (32, 32))) if isinstance(step, nn.Unfold) else step
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), step, nn.LazyConv2d(4, 3, padding=1)).eval()
        rows, columns = model(torch.zeros(1, 3, 32, 32)).shape[2:]
        try:
            field = receptive_field(model, "2", 32)
        except InputError as error:
            assert re.fullmatch(
                r"no window for \S+ at 1\S*, so receptive fields behind it are not known; [^\n]*", str(error)
            )
            return
        for row, column in ((0, 0), (rows // 2, columns // 2), (rows - 1, 0)):
            assert field.seen(row, column) == extent(measured_support(model, "2", (32, 32), row, column))

    def test_elementwise_steps_never_hide_a_field(self) -> None:
        for step in (nn.LeakyReLU(), nn.SiLU(), nn.GELU(), nn.Sigmoid(), nn.SyncBatchNorm(4)):
            model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), step, nn.Conv2d(4, 4, 3, padding=1))
            assert receptive_field(model, "2", 64).size == (5, 5)

    def test_the_table_of_layers_does_not_guess(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LPPool2d(2, 3), nn.Conv2d(4, 4, 3))
        assert [row.receptive_field for row in layer_table(model, 32)] == [(3, 3), None, None]


class Tutorial(nn.Module):
    """PyTorch's network for CIFAR-10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.pool, self.conv2 = nn.Conv2d(3, 6, 5), nn.MaxPool2d(2, 2), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv2(self.pool(F.relu(self.conv1(x))))))
        x = x.view(-1, 16 * 5 * 5)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class TestViews:
    """Maps may lie channels last in memory, and the network flattens them by `view`."""

    @pytest.mark.parametrize("incremental", [True, False])
    def test_occlusion(self, incremental: bool) -> None:
        model, image = Tutorial().eval(), torch.randn(3, 32, 32)
        maps = occlusion_maps(model, image, size=8, step=8, incremental=incremental)
        assert maps.clean[1] == pytest.approx(model(image[None]).softmax(1).max().item(), rel=1e-5)

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_units(self, layout: torch.memory_format) -> None:
        model, images = Tutorial().double().eval(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
        check_units(Deconvnet(model), images.contiguous(memory_format=layout), "fc1")
        check_units(Deconvnet(model), images.contiguous(memory_format=layout), "conv2")

    def test_activations_of_canvases(self) -> None:
        model, images = Tutorial().eval(), torch.randn(2, 3, 32, 32)
        units = [[0, 0, 0, 0], [1, 1, 0, 0]]
        deconvnet = Deconvnet(model)
        expected = deconvnet.record(images, ["fc1"]).activations["fc1"][[0, 1], [0, 1]]
        torch.testing.assert_close(deconvnet.activations_of(images, "fc1", units, 32), expected)


class TestChannels:
    @pytest.mark.parametrize("channels", [1, 2, 4, 13])
    def test_images_have_as_many_as_the_network_reads(self, channels: int) -> None:
        features = [nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU()]
        model = classifier(*features).double()
        images = torch.randn(2, channels, 28, 28, dtype=torch.float64)
        assert scan(model, images, ["4"], k=2, progress=False)["4"].value.shape == (8, 2)
        check_projections(model, "4", images)
        assert Deconvnet(model).project_units(images, "4", [[0, 0, 2, 2]]).crops.shape == (1, channels, 8, 8)
        field = receptive_field(model, "4", 28)
        assert field.size == (8, 8)
        assert field.seen(3, 4) == extent(measured_support(model, "4", (28, 28), 3, 4, channels=channels))
        assert layer_table(model, 28)[0].output == (8, 26, 26)
        maps = occlusion_maps(model, images[0], size=8, step=8)
        assert maps.clean[1] == pytest.approx(model(images[:1]).softmax(1).max().item(), rel=1e-10)

    def test_images_of_other_channels_than_the_network(self) -> None:
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
        with pytest.raises(
            InputError, match=r"\(2, 3, 9, 9\).* 1 channels|\(N, 1, rows, columns\); got .*\(2, 3, 9, 9\)"
        ):
            Deconvnet(model).record(torch.randn(2, 3, 9, 9))

    @pytest.mark.parametrize(
        ("layers", "shape"),
        [
            ([nn.Conv1d(3, 4, 3), nn.ReLU(), nn.MaxPool1d(2)], (1, 3, 64)),
            ([nn.Conv3d(3, 4, 3), nn.ReLU(), nn.MaxPool3d(2)], (1, 3, 8, 16, 16)),
        ],
        ids=["1-D", "3-D"],
    )
    def test_what_is_not_an_image(self, layers: list[nn.Module], shape: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match=r"images|Conv[13]d") as error:
            Deconvnet(nn.Sequential(*layers)).record(torch.randn(shape), ["1"])
        one_line(error)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.fc = nn.Linear(8, 5)


class Mask(Base):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.f(x)
        if mask is not None:
            x = x * mask
        return self.fc(x.mean((2, 3)))


class Labels(Base):
    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        x = self.fc(self.f(x).mean((2, 3)))
        return (x, F.cross_entropy(x, labels)) if labels is not None else x


class Flag(Base):
    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        x = self.f(x)
        return x if return_features else self.fc(x.mean((2, 3)))


class Guard(Base):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError("three channels")
        if x.ndim != 4 or x.size(0) == 0:
            raise ValueError("a batch")
        return self.fc(self.f(x).mean((2, 3)))


class Asserting(Base):
    def forward(self, x: Tensor) -> Tensor:
        images, channels, rows, columns = x.shape
        assert channels == 3 and rows == columns, "square colour images"
        return self.fc(self.f(x).view(images, 8, -1).mean(2))


class TestOptionalArguments:
    @pytest.mark.parametrize("make", [Mask, Labels, Flag, Guard, Asserting])
    def test_the_defaults_stand(self, make: Callable[[], nn.Module]) -> None:
        model, images = make().eval(), torch.randn(6, 3, 16, 16)
        with torch.no_grad():
            output, maps = model(images), model.f(images)
        top = scan(model, images, ["f.3", "fc"], k=2, progress=False)
        torch.testing.assert_close(top["f.3"].value[:, 0], maps.amax((0, 2, 3)))
        torch.testing.assert_close(top["fc"].value[:, 0], output.amax(0))
        assert "fc" in [row.layer for row in layer_table(model, 16)]
        occluded = occlusion_maps(model, images[0], size=8, step=8)
        assert occluded.clean[1] == pytest.approx(output[0].softmax(0).max().item(), rel=1e-5)
        check_projections(model, "f.3", images[:1])

    def test_another_value_than_the_default(self) -> None:
        model, images = Mask().double().eval(), torch.randn(1, 3, 16, 16, dtype=torch.float64)
        mask = (torch.rand(1, 1, 12, 12) > 0.5).double()
        top = scan(Graph(model, mask=mask), images, ["fc"], k=1, progress=False)["fc"]
        torch.testing.assert_close(top.value[:, 0], model(images, mask)[0])
        deconvnet = Deconvnet(Graph(model, mask=mask))
        recording = deconvnet.record(images, ["mul"])
        ours = deconvnet.project(recording, "mul", torch.ones_like(recording.activations["mul"]))
        upper = F.conv_transpose2d(mask.expand(-1, 8, -1, -1), model.f[2].weight).clamp(min=0)
        assert_close(ours, F.conv_transpose2d(upper, model.f[0].weight).detach())

    def test_shapes_that_are_unpacked(self) -> None:
        model = InTheMiddle(lambda self, y: y.view(y.shape[0], 2, 2, *y.shape[2:]).sum(1).repeat(1, 2, 1, 1))
        try:
            check_projections(model, "last", torch.randn(1, 3, 12, 12))
        except InputError as error:
            assert re.fullmatch(r"InTheMiddle cannot be traced[^\n]*", str(error))


class TestWrappers:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    images = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda m: torch.compile(nn.DataParallel(m))])
    def test_unwrapped(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        plain, wrapped = (Deconvnet(m).project_units(self.images, "1", [[0, 0, 3, 3]]) for m in self.both(wrap))
        assert torch.equal(plain.projections, wrapped.projections)
        tops = [scan(m, self.images, ["1"], k=1, progress=False)["1"].value for m in self.both(wrap)]
        assert torch.equal(*tops)
        assert receptive_field(wrap(self.model), "1", 8).size == (3, 3)

    def both(self, wrap: Callable[[nn.Module], nn.Module]) -> tuple[nn.Module, nn.Module]:
        return self.model, wrap(self.model)

    @pytest.mark.parametrize(
        ("convert", "says"),
        [
            (lambda m, x: torch.jit.trace(m, x), r"torch\.jit: give the original model"),
            (lambda m, x: torch.jit.script(m), r"torch\.jit: give the original model"),
            (lambda m, x: torch.export.export(m, (x,)).module(), r"torch\.export: give the original model"),
            (lambda m, x: torch.export.export(m, (x,)), r"ExportedProgram; give a torch\.nn\.Module"),
        ],
        ids=["trace", "script", "module of an export", "export"],
    )
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_what_is_no_model_any_more(self, convert: Callable[[nn.Module, Tensor], Any], says: str) -> None:
        converted = convert(self.model, self.images)
        with pytest.raises(InputError, match=says) as error:
            Deconvnet(converted)
        one_line(error)


class TestReducedPrecision:
    def model(self) -> nn.Sequential:
        model = classifier(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        nn.init.constant_(model[0].bias, 3.0)
        return model

    def test_a_scan_in_bfloat16_that_is_resumed(self, tmp_path: Any) -> None:
        model, images = self.model().bfloat16(), torch.randn(6, 3, 24, 24)
        first, second = (scan(model, images, ["1"], k=2, state=tmp_path / "state", progress=False) for _ in range(2))
        assert torch.equal(first["1"].value, second["1"].value) and torch.equal(first["1"].image, second["1"].image)
        with torch.no_grad():
            expected = model[:2](images.bfloat16())
        torch.testing.assert_close(first["1"].value[:, 0].float(), expected.amax((0, 2, 3)).float())

    def test_sums_in_float16_do_not_overflow(self) -> None:
        model, image = self.model().half(), torch.randn(3, 224, 224)
        with torch.no_grad():
            expected = model.float()[:2](image.half().float()[None]).sum((2, 3)).max().item()
        maps = occlusion_maps(model.half(), image, size=100, step=62)
        assert expected > 65504, "more than float16 holds"
        assert maps.clean[0] == pytest.approx(expected, rel=1e-2)
        assert maps.activity.isfinite().all() and maps.activity.dtype in (torch.float32, torch.float64)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_units_of_a_reduced_model(self, dtype: torch.dtype) -> None:
        model, images = self.model(), torch.randn(1, 3, 16, 16)
        expected = Deconvnet(model).project_units(images, "1", [[0, 0, 3, 3]]).projections
        patches = Deconvnet(model.to(dtype)).project_units(images, "1", [[0, 0, 3, 3]])
        assert patches.projections.dtype == dtype
        assert_close(patches.projections.float(), expected, 2e-2)

    def test_autocast_changes_nothing(self) -> None:
        model, images = self.model(), torch.randn(2, 3, 24, 24)
        uses: dict[str, Callable[[], Tensor]] = {
            "project_units": lambda: Deconvnet(model).project_units(images, "1", [[0, 0, 3, 3]]).projections,
            "record": lambda: Deconvnet(model).record(images, ["1"]).activations["1"],
            "scan": lambda: scan(model, images, ["1"], k=2, progress=False)["1"].value,
            "occlusion_maps": lambda: occlusion_maps(model, images[0], size=8, step=8).probability,
        }
        for name, use in uses.items():
            plain = use()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert torch.equal(use(), plain), name


class TestLayers:
    """A layer is a graph name, a module name where that is unambiguous, or the module."""

    @pytest.fixture(scope="class")
    def model(self) -> nn.Module:
        return models.resnet18().eval()

    @pytest.mark.parametrize("layer", ["layer2", "layer2.1", "layer2.1.relu_1"])
    def test_a_module_stands_for_its_last_step(self, model: nn.Module, layer: str) -> None:
        graph, images = Graph(model), torch.randn(4, 3, 64, 64)
        assert graph.node(layer) is graph.node("layer2.1.relu_1")
        (top,) = scan(model, images, [layer], k=1, progress=False).values()
        with torch.no_grad():
            stem = model.maxpool(model.relu(model.bn1(model.conv1(images))))
            expected = model.layer2(model.layer1(stem))
        torch.testing.assert_close(top.value[:, 0], expected.amax((0, 2, 3)))

    def test_the_module_itself(self, model: nn.Module) -> None:
        graph = Graph(model)
        assert graph.name(model.layer2) == graph.name("layer2")
        assert (
            receptive_field(graph, model.layer1[0].conv1, 64).size == receptive_field(model, "layer1.0.conv1", 64).size
        )
        images = torch.randn(1, 3, 64, 64)
        first, second = (
            Deconvnet(model).project_units(images, layer, [[0, 1, 2, 3]]) for layer in (model.layer1, "layer1")
        )
        assert torch.equal(first.projections, second.projections)

    def test_a_module_of_another_model(self, model: nn.Module) -> None:
        with pytest.raises(InputError, match=r"Conv2d.* ResNet"):
            Graph(model).node(nn.Conv2d(3, 4, 3))

    def test_the_image_is_no_layer(self, model: nn.Module) -> None:
        with pytest.raises(InputError, match=r"^no layer of ResNet 'x'"):
            scan(model, torch.randn(4, 3, 64, 64), ["x"], k=1, progress=False)


class TestMisuse:
    @pytest.fixture(scope="class")
    def deconvnet(self) -> Deconvnet:
        return Deconvnet(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval())

    images = torch.randn(6, 3, 24, 24, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize(
        ("use", "says"),
        [
            (lambda d, x: scan(d.model, DataLoader(TensorDataset(x)), ["1"], k=2, progress=False), "DataLoader"),
            (lambda d, x: scan(d.model, iter(x), ["1"], k=2, progress=False), "iterator|__len__|__getitem__"),
            (lambda d, x: scan(d.model, x, "relu1", k=2, progress=False), r"layers.*\['relu1'\]|layers.*list"),
            (lambda d, x: d.record(x, "1"), r"layers.*\['1'\]|layers.*list"),
            (lambda d, x: d.project_units(x, "1", [[0, 1, 2]]), r"units.*\(M, 4\)"),
            (lambda d, x: d.project_units(x, "1", [[0, 1, 2, 99]]), "no column 99 in 1: there are 22"),
            (lambda d, x: d.project_units(x, "1", [[0.5, 1, 2, 3]]), "units.*(int|whole)"),
            (lambda d, x: d.project_units(x.numpy(), "1", [[0, 0, 1, 1]]), "images must be .*numpy|images.*ndarray"),
            (lambda d, x: d.project_units(x[0], "1", [[0, 0, 1, 1]]), r"images must be .*got .*\(3, 24, 24\)"),
            (lambda d, x: d.project_units(x, "1", [[0, 0, 1, 1]], signals=torch.ones(3)), r"signals .* \(3,\)"),
            (lambda d, x: occlusion_maps(d.model, Image.new("RGB", (24, 24)), size=8, step=8), "image.*Image"),
            (lambda d, x: Deconvnet("resnet18"), "model.*str|str.*model"),
            (lambda d, x: Deconvnet(nn.ReLU), "model.*type|instance|class"),
            (lambda d, x: receptive_field(d.model, "1", "24"), "a size is '24'"),
            (lambda d, x: receptive_field(d.model, "1", 0), r"image_size|image size|too small|0 x 0 pixels"),
        ],
        ids=[
            *("DataLoader", "iterator", "layers as a string", "recorded layers as a string", "units of three numbers"),
            *("a column that is not there", "half a unit", "numpy images", "one image", "too many signals"),
            *("PIL image", "a name for a model", "a class for a model", "size as a string", "no size"),
        ],
    )
    def test_one_line(self, deconvnet: Deconvnet, use: Callable[[Deconvnet, Tensor], Any], says: str) -> None:
        with pytest.raises(InputError, match=says) as error:
            use(deconvnet, self.images)
        one_line(error)

    @pytest.mark.parametrize(("maps", "says"), [([99], "no map 99"), ([-1], "no map -1"), (3, "maps")])
    def test_maps_of_the_top(self, deconvnet: Deconvnet, maps: Any, says: str) -> None:
        top = scan(deconvnet.model, self.images, ["1"], k=2, progress=False)["1"]
        with pytest.raises(InputError, match=says) as error:
            project_top(deconvnet, self.images, "1", top, maps=maps)
        one_line(error)

    def test_a_module_as_a_layer(self, deconvnet: Deconvnet) -> None:
        first, second = (
            scan(deconvnet.model, self.images, [layer], k=2, progress=False) for layer in (deconvnet.model[1], "1")
        )
        assert torch.equal(first["1"].value, second["1"].value)


Body = Callable[[Any, Tensor], Tensor]


class InTheMiddle(nn.Module):
    """Something between two convolutions that may write where it reads."""

    def __init__(self, body: Body):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.last, self.body = nn.ReLU(inplace=True), nn.ReLU(), body

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv2(self.body(self, self.conv1(x))))


def relu_half(self: Any, y: Tensor) -> Tensor:
    F.relu_(y[:, :2])
    return y


def relu_half_by_module(self: Any, y: Tensor) -> Tensor:
    self.relu(y[:, :2])
    return y


def relu_a_chunk(self: Any, y: Tensor) -> Tensor:
    first, _ = y.chunk(2, 1)
    self.relu(first)
    return y


def relu_a_chunk_and_join(self: Any, y: Tensor) -> Tensor:
    first, second = y.chunk(2, 1)
    return torch.cat([self.relu(first), second], 1)


def zero_a_map(self: Any, y: Tensor) -> Tensor:
    y[:, 0] = 0
    return y


def zero_the_border(self: Any, y: Tensor) -> Tensor:
    y[..., 0] = 0
    return y


def assign_half(self: Any, y: Tensor) -> Tensor:
    y[:, :2] = y[:, :2] * 3
    return y


def add_to_a_map(self: Any, y: Tensor) -> Tensor:
    y[:, 0] += 1
    return y


def scale_a_view(self: Any, y: Tensor) -> Tensor:
    y.view(y.shape[0], -1).mul_(2)
    return y


def relu_flat(self: Any, y: Tensor) -> Tensor:
    self.relu(y.flatten(2))
    return y


def scale_detached(self: Any, y: Tensor) -> Tensor:
    y.detach().mul_(3)
    return y


def scale_data(self: Any, y: Tensor) -> Tensor:
    y.data.mul_(3)
    return y


def fill_a_map(self: Any, y: Tensor) -> Tensor:
    y[:, 1].fill_(0.5)
    return y


def copied(self: Any, y: Tensor) -> Tensor:
    z = torch.zeros_like(y)
    z.copy_(y)
    return z


def clamped(self: Any, y: Tensor) -> Tensor:
    y.clamp_(min=0)
    return y


def zeroed(self: Any, y: Tensor) -> Tensor:
    z = y.clone()
    z.zero_()
    return y + z


def view_before(self: Any, y: Tensor) -> Tensor:
    z = y * 1
    view = z[:, :2]
    self.relu(z)
    return torch.cat([view, view], 1)


def old_name(self: Any, y: Tensor) -> Tensor:
    return self.relu(y) + y


def added_in_place(self: Any, y: Tensor) -> Tensor:
    z = y.clone()
    y += z
    return y


def masked(self: Any, y: Tensor) -> Tensor:
    return y.masked_fill_(y < 0, 0.0)


class TestAliases:
    """In-place steps on views: the traced network is the model, or it is refused by name."""

    @pytest.mark.parametrize(
        "body",
        [
            *(relu_half, relu_half_by_module, relu_a_chunk, relu_a_chunk_and_join, zero_a_map, zero_the_border),
            *(assign_half, add_to_a_map, scale_a_view, relu_flat, scale_detached, scale_data, fill_a_map, copied),
            *(clamped, zeroed, view_before, old_name, added_in_place, masked),
        ],
        ids=lambda body: body.__name__,
    )
    def test_the_model_or_a_refusal(self, body: Body) -> None:
        model, images = InTheMiddle(body).double().eval(), torch.randn(2, 3, 12, 12, dtype=torch.float64)
        with torch.no_grad():
            expected = model(images.clone())
        units = [[0, m, 6, 6] for m in range(4)]
        uses: list[Callable[[], Tensor]] = [
            lambda: scan(model, images.clone(), ["last"], 2, progress=False)["last"].value[:, 0],
            lambda: Deconvnet(model).project_units(images.clone(), "last", units).values,
            lambda: Deconvnet(model).record(images.clone(), ["last"]).activations["last"],
        ]
        for use, right in zip(uses, (expected.amax((0, 2, 3)), expected[0, :, 6, 6], expected), strict=True):
            try:
                values = use()
            except InputError as error:
                assert "\n" not in str(error) and re.search(r"InTheMiddle| at \S+", str(error))
            else:
                torch.testing.assert_close(values, right)

    @pytest.mark.parametrize("body", [clamped, old_name, added_in_place])
    def test_what_is_common_works(self, body: Body) -> None:
        check_projections(InTheMiddle(body), "last", torch.randn(1, 3, 12, 12))


class TestHeads:
    """Occlusion finds out whether a network ends in logits, in probabilities or in one logit, or is told."""

    def model(self, end: nn.Module, classes: int = 5) -> nn.Sequential:
        torch.manual_seed(1)
        model = classifier(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), classes=classes)
        model[4].weight.data *= 30
        return model.append(end).eval()

    @pytest.mark.parametrize(
        ("end", "own"),
        [
            (nn.Identity(), lambda y: y.softmax(0)),
            (nn.LogSoftmax(1), lambda y: y.exp()),
            (nn.Softmax(1), lambda y: y),
            (nn.Sigmoid(), lambda y: y),
        ],
        ids=["logits", "LogSoftmax", "Softmax", "Sigmoid"],
    )
    @pytest.mark.parametrize("incremental", [True, False])
    def test_found_out(self, end: nn.Module, own: Callable[[Tensor], Tensor], incremental: bool) -> None:
        model, image = self.model(end), torch.randn(3, 24, 24)
        with torch.no_grad():
            probabilities = own(model(image[None])[0])
        maps = occlusion_maps(model, image, size=8, step=8, incremental=incremental)
        assert maps.target == int(probabilities.argmax())
        assert maps.clean[1] == pytest.approx(float(probabilities[maps.target]), rel=1e-4)

    @pytest.mark.parametrize("end", [nn.Identity(), nn.Sigmoid()], ids=["logit", "probability"])
    def test_one_output(self, end: nn.Module) -> None:
        model, image = self.model(end, classes=1), torch.randn(3, 24, 24)
        with torch.no_grad():
            output = model(image[None])[0, 0]
        probability = float(output if isinstance(end, nn.Sigmoid) else output.sigmoid())
        maps = occlusion_maps(model, image, size=12, step=12)
        assert maps.clean[1] == pytest.approx(probability, rel=1e-4)
        assert len(maps.probability.unique()) > 1, "the squares make a difference"

    @pytest.mark.parametrize(
        ("score", "own"),
        [("softmax", lambda y: y.softmax(0)), ("sigmoid", lambda y: y.sigmoid()), ("identity", lambda y: y)],
    )
    def test_told(self, score: str, own: Callable[[Tensor], Tensor]) -> None:
        model, image = self.model(nn.Identity()), torch.randn(3, 24, 24)
        with torch.no_grad():
            scores = own(model(image[None])[0])
        maps = occlusion_maps(model, image, size=8, step=8, score=score)
        assert maps.clean[1] == pytest.approx(float(scores[maps.target]), rel=1e-4)


def test_work_in_place_behind_a_view_leaves_what_is_kept() -> None:
    """As in timm, where an Identity stands between a normalisation and its ReLU."""
    convolution = nn.Conv2d(3, 4, 3)
    model = nn.Sequential(convolution, nn.Identity(), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3))
    images = torch.randn(1, 3, 9, 9)
    kept = Deconvnet(model).record(images, ["0", "3"]).activations["0"]
    with torch.no_grad():
        assert torch.equal(kept, convolution(images))
    before, behind = images.clone(), nn.Sequential(nn.Identity(), nn.ReLU(inplace=True), convolution)
    Deconvnet(behind).record(images, ["2"])
    assert torch.equal(images, before)


def test_canvases_of_units_behind_circular_padding() -> None:
    """A unit at the border sees the whole image, one in the middle a part of it."""
    model = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")
    deconvnet, units = Deconvnet(nn.Sequential(model)), [[0, 0, 0, 0], [0, 1, 4, 5]]
    patches = deconvnet.project_units(torch.randn(1, 3, 9, 9), "0", units)
    assert_close(deconvnet.activations_of(patches.crops, "0", units, 9), patches.values, 1e-5)
