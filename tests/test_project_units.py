"""A unit projected from its crop equals the unit projected from the whole image, at every border and corner.

In float64 the two agree to 1e-10 on any network.  In float32 they sum in different orders, and where two values of a
pooling window nearly tie, a difference in the last bit turns a switch: the projection then is another, equally right.
So the float32 test runs a network of small integers, whose forward pass is exact in float32 in any order.
"""

import inspect
from collections.abc import Callable
from functools import cache
from itertools import zip_longest

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from zfnet import DECONVNET, Deconvnet, InputError, Patches, ZFNet, receptive_field
from zfnet.operations import DIFFERENTIATED_NORMS, UNRECTIFIED, UNSWITCHED

UNITS = torch.int64


def from_the_image(deconvnet: Deconvnet, images: Tensor, layer: str, units: Tensor) -> tuple[Tensor, Tensor]:
    """Values (M,) and projections (M, 3, H, W) of units, each of the whole image by itself."""
    recording = deconvnet.record(images, [layer])
    activation = recording.activations[layer]
    values, pixels = images.new_empty(len(units)), images.new_empty(len(units), *images.shape[1:])
    of_image = [[m for m, unit in enumerate(units.tolist()) if unit[0] == i] for i in range(len(images))]
    for together in zip_longest(*of_image):  # one unit of each image at a time
        signal = torch.zeros_like(activation)
        chosen = [m for m in together if m is not None]
        for m in chosen:
            where = tuple(units[m].tolist()[: activation.ndim])
            values[m] = signal[where] = activation[where]
        projected = deconvnet.project(recording, layer, signal)
        for m in chosen:
            pixels[m] = projected[units[m, 0]]
    return values, pixels


def cut(image: Tensor, box: list[int]) -> Tensor:
    """What a box (top, left, bottom, right) holds of an image (3, H, W), zero where it leaves it."""
    top, left, bottom, right = box
    out = image.new_zeros(3, bottom - top, right - left)
    for row in range(max(top, 0), min(bottom, image.shape[1])):
        for column in range(max(left, 0), min(right, image.shape[2])):
            out[:, row - top, column - left] = image[:, row, column]
    return out


def assert_same(
    patches: Patches, images: Tensor, units: Tensor, values: Tensor, pixels: Tensor, precision: float
) -> None:
    torch.testing.assert_close(patches.values, values, rtol=precision, atol=0)
    for m, (box, unit) in enumerate(zip(patches.boxes.tolist(), units.tolist(), strict=True)):
        crop, inside = (torch.zeros_like(patches.crops[m]) for _ in range(2))  # zero beyond the box
        crop[:, : box[2] - box[0], : box[3] - box[1]] = cut(images[unit[0]], box)
        inside[:, : box[2] - box[0], : box[3] - box[1]] = cut(pixels[m], box)
        assert torch.equal(patches.crops[m], crop)
        largest = pixels[m].abs().max()
        assert (patches.projections[m] - inside).abs().max() <= precision * largest, unit
        top, left, bottom, right = (max(0, edge) for edge in box)
        outside = pixels[m].clone()
        outside[:, top:bottom, left:right] = 0
        assert not outside.any(), unit  # the box holds all of the projection


def border_and_inside(rows: int, columns: int) -> list[tuple[int, int]]:
    """All units of the border of a map, and some inside."""
    border = [(r, c) for r in range(rows) for c in range(columns) if r in (0, rows - 1) or c in (0, columns - 1)]
    return [*border, (rows // 2, columns // 2), (1, 1), (rows - 2, 1), (rows // 2, columns - 2)]


def strongest_maps(deconvnet: Deconvnet, images: Tensor, layer: str, places: list[tuple[int, int]]) -> Tensor:
    """One unit for every place: of the map, and in one of the images by turns, that is strongest there."""
    activation = deconvnet.record(images, [layer]).activations[layer]
    units = []
    for m, (row, column) in enumerate(places):
        image = m % len(images)
        units.append((image, int(activation[image, :, row, column].argmax()), row, column))
    return torch.tensor(units, dtype=UNITS)


def batch_norm_drawn(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.bias, std=0.2)
    return model


@cache
def zfnet(border: str = "both", norm: str = "after pool", side: int = 224) -> tuple[Deconvnet, Tensor]:
    torch.manual_seed(4)
    model = ZFNet(10, maps=(16, 24, 32, 32, 24), hidden=(32, 32), border=border, norm=norm, init="he", image_size=side)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)  # a bias tells padding from image
    return Deconvnet(model.double()), 20 * torch.randn(2, 3, side, side, dtype=torch.float64)


@cache
def whole_numbers(dtype: torch.dtype) -> tuple[Deconvnet, Tensor]:
    """Figure 3 without contrast normalisation, in integers so small that float32 adds them exactly in any order."""
    torch.manual_seed(6)
    model = ZFNet(10, maps=(16, 24, 32, 32, 24), hidden=(32, 32), norm=None)
    for n, terms in enumerate((20, 24, 12, 8, 6), 1):  # terms of each sum: 9 * 20 * 24 * 12 * 8 * 6 < 2 ** 24
        conv = model.get_submodule(f"conv{n}")
        fan_in = conv.weight[0].numel()
        rows = [torch.randperm(fan_in)[:terms] for _ in range(len(conv.weight))]
        flat = torch.zeros(len(rows), fan_in).scatter_(1, torch.stack(rows), 1.0)
        signs = torch.where(torch.rand_like(flat) < 0.4, -1.0, 1.0)
        conv.weight.data = (flat * signs).view_as(conv.weight)
        nn.init.ones_(conv.bias)
    images = torch.randint(-9, 10, (2, 3, 224, 224))
    return Deconvnet(model.to(dtype)), images.to(dtype)


class TestZFNet:
    @pytest.mark.parametrize("layer", ["relu5", "pool5"])
    @pytest.mark.parametrize("border", ["both", "right and below"])
    def test_the_whole_border_in_float64(self, border: str, layer: str) -> None:
        deconvnet, images = zfnet(border)
        side = {"relu5": 13, "pool5": 6}[layer]
        units = strongest_maps(deconvnet, images, layer, border_and_inside(side, side))
        assert len(units) == {"relu5": 48, "pool5": 20}[layer] + 4
        patches = deconvnet.project_units(images, layer, units)
        assert_same(patches, images, units, *from_the_image(deconvnet, images, layer, units), 1e-10)

    def test_the_whole_border_in_float32(self) -> None:
        deconvnet, images = whole_numbers(torch.float32)
        exact, _ = whole_numbers(torch.float64)
        activation = deconvnet.record(images, ["relu5"]).activations["relu5"]
        assert torch.equal(activation.double(), exact.record(images.double(), ["relu5"]).activations["relu5"])
        units = strongest_maps(deconvnet, images, "relu5", border_and_inside(13, 13))
        patches = deconvnet.project_units(images, "relu5", units)
        assert patches.projections.dtype == torch.float32
        values, pixels = from_the_image(deconvnet, images, "relu5", units)
        assert torch.equal(patches.values, values)
        assert_same(patches, images, units, values, pixels, 1e-5)

    @pytest.mark.parametrize("layer", ["conv1", "pool1", "norm1", "conv2", "norm2", "relu3", "conv4"])
    def test_corners_of_every_layer(self, layer: str) -> None:
        deconvnet, images = zfnet()
        side = deconvnet.record(images[:1], [layer]).activations[layer].shape[-1]
        corners = [(r, c) for r in (0, 1, side - 1) for c in (0, side - 2, side - 1)] + [(side // 2, side // 3)]
        units = strongest_maps(deconvnet, images, layer, corners)
        patches = deconvnet.project_units(images, layer, units)
        assert_same(patches, images, units, *from_the_image(deconvnet, images, layer, units), 1e-10)

    @pytest.mark.parametrize("layer", ["relu2", "relu5", "relu6"])
    def test_canvases_in_the_place_of_receptive_fields(self, layer: str) -> None:
        """Unchanged they give the unit's activation, changed that of the whole image changed there; at borders too."""
        deconvnet, images = zfnet()
        shape = deconvnet.record(images[:1], [layer]).activations[layer].shape[2:]
        places = [(0, 0), (0, shape[1] - 1), (shape[0] - 1, 2), (5, 4)] if shape else [(0, 0)]
        units = torch.tensor([(n % 2, n + 3, r, c) for n, (r, c) in enumerate(places)], dtype=UNITS)
        patches = deconvnet.project_units(images, layer, units)
        torch.testing.assert_close(
            deconvnet.activations_of(patches.crops, layer, units, 224), patches.values, rtol=1e-10, atol=0
        )
        canvases = patches.crops.flip(2).roll(3, 3)
        changed = images[units[:, 0]]
        for image, canvas, (top, left, bottom, right) in zip(changed, canvases, patches.boxes.tolist(), strict=True):
            inside = image[:, max(top, 0) : bottom, max(left, 0) : right]
            inside[:] = canvas[:, max(-top, 0) :, max(-left, 0) :][:, : inside.shape[1], : inside.shape[2]]
        activation = deconvnet.record(changed, [layer]).activations[layer]
        where = (torch.arange(len(units)), *units[:, 1:].T)[: activation.ndim]
        found = deconvnet.activations_of(canvases, layer, units, (224, 224), memory=2**22)
        torch.testing.assert_close(found, activation[where], rtol=1e-10, atol=1e-12)

    def test_canvases_of_another_size_are_refused(self) -> None:
        deconvnet, images = zfnet()
        with pytest.raises(InputError, match=r"1 units of relu2 look at canvases \(1, 3, 27, 27\); got \(1, 3, 9, 9\)"):
            deconvnet.activations_of(images[:1, :, :9, :9], "relu2", [[0, 0, 0, 0]], 224)
        with pytest.raises(InputError, match="no row 26 in relu2: there are 26"):
            deconvnet.activations_of(images[:1, :, :27, :27], "relu2", [[0, 0, 26, 0]], 224)

    @pytest.mark.parametrize("collisions", ["add", "overwrite"])
    def test_a_signal_in_place_of_the_activation(self, collisions: str) -> None:
        deconvnet, images = Deconvnet(zfnet()[0].model, collisions=collisions), zfnet()[1]
        units = strongest_maps(deconvnet, images, "relu3", [(0, 0), (6, 6)])
        one = deconvnet.project_units(images, "relu3", units, signals=torch.tensor([1.0, 3.0]))
        own = deconvnet.project_units(images, "relu3", units)
        scale = torch.tensor([1.0, 3.0]) / own.values
        torch.testing.assert_close(one.projections, own.projections * scale[:, None, None, None], rtol=1e-9, atol=1e-12)
        assert one.values.equal(own.values)

    def test_norm_before_pool(self) -> None:
        deconvnet, images = zfnet(norm="before pool")
        units = strongest_maps(deconvnet, images, "relu5", [(0, 0), (0, 12), (12, 5), (6, 6)])
        patches = deconvnet.project_units(images, "relu5", units)
        assert_same(patches, images, units, *from_the_image(deconvnet, images, "relu5", units), 1e-10)

    @pytest.mark.parametrize(
        "options",
        [
            {"rules": DECONVNET | DIFFERENTIATED_NORMS},
            {"rules": DECONVNET | UNRECTIFIED},
            {"rules": DECONVNET | UNSWITCHED},
            {"rules": "guided"},
            {"collisions": "max"},
            {"collisions": "overwrite"},
        ],
        ids=["norm differentiated", "not rectified", "not switched", "guided", "max", "overwrite"],
    )
    def test_every_option(self, options: dict) -> None:
        model, images = zfnet()[0].model, zfnet()[1]
        deconvnet = Deconvnet(model, **options)
        units = strongest_maps(deconvnet, images, "relu5", [(0, 0), (0, 12), (12, 5), (6, 6)])
        patches = deconvnet.project_units(images, "relu5", units)
        assert_same(patches, images, units, *from_the_image(deconvnet, images, "relu5", units), 1e-10)

    def test_whole_images_where_they_are_asked_for(self) -> None:
        deconvnet, images = zfnet()
        units = strongest_maps(deconvnet, images, "relu3", [(0, 0), (12, 5)])
        patches = deconvnet.project_units(images, "relu3", units, whole=True)
        assert patches.boxes.tolist() == [[0, 0, 224, 224]] * len(units)
        assert torch.equal(patches.crops, images[units[:, 0]])
        values, pixels = from_the_image(deconvnet, images, "relu3", units)
        torch.testing.assert_close(patches.values, values, rtol=1e-10, atol=1e-10)
        assert (patches.projections - pixels).abs().max() <= 1e-10 * pixels.abs().max()

    @pytest.mark.parametrize("layer", ["fc6", "relu7", "fc8"])
    def test_fully_connected_layers_take_the_whole_image(self, layer: str) -> None:
        deconvnet, images = zfnet()
        units = torch.tensor([[0, 3, 0, 0], [1, 0, 0, 0], [0, 9, 0, 0]])
        patches = deconvnet.project_units(images, layer, units)
        assert patches.boxes.tolist() == [[0, 0, 224, 224]] * 3
        assert torch.equal(patches.crops, images[units[:, 0]])
        values, pixels = from_the_image(deconvnet, images, layer, units)
        torch.testing.assert_close(patches.values, values, rtol=1e-10, atol=1e-10)
        assert (patches.projections - pixels).abs().max() <= 1e-10 * pixels.abs().max()

    def test_boxes_by_hand(self) -> None:
        """Unit i of relu5 sees 139 pixels from 16 i - 49 on."""
        deconvnet, images = zfnet()
        patches = deconvnet.project_units(images, "relu5", [[0, 0, 0, 12], [1, 2, 6, 5]])
        assert patches.boxes.tolist() == [[-49, 143, 90, 282], [47, 31, 186, 170]]
        assert patches.boxes.dtype == torch.int64
        assert patches.crops.shape == patches.projections.shape == (2, 3, 139, 139)
        field = receptive_field(deconvnet.model, "relu5", 224)
        assert tuple(patches.boxes[0].tolist()) == field.box(0, 12)

    def test_wide_images(self) -> None:
        deconvnet, _ = zfnet()
        images = 20 * torch.randn(2, 3, 160, 260, dtype=torch.float64)
        rows, columns = deconvnet.record(images[:1], ["relu5"]).activations["relu5"].shape[-2:]
        assert rows != columns
        places = [(r, c) for r in (0, rows - 1) for c in (0, columns // 2, columns - 1)] + [(rows // 2, 0)]
        units = strongest_maps(deconvnet, images, "relu5", places)
        patches = deconvnet.project_units(images, "relu5", units)
        assert_same(patches, images, units, *from_the_image(deconvnet, images, "relu5", units), 1e-10)


TORCHVISION: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], str]] = {
    "AlexNet": (models.alexnet, (127, 96), "features.11"),
    "SqueezeNet1_0": (models.squeezenet1_0, (96, 96), "features.10.cat"),
    "SqueezeNet1_1": (models.squeezenet1_1, (80, 112), "features.12.cat"),
    "ResNet18": (models.resnet18, (96, 96), "layer3.0.relu_1"),
    "ResNet18, wide": (models.resnet18, (64, 112), "layer2.1.add"),
    "GoogLeNet": (lambda: models.googlenet(init_weights=False, aux_logits=False), (64, 80), "inception3b.cat"),
    "GoogLeNet, own preprocessing": (
        lambda: models.googlenet(init_weights=False, aux_logits=False, transform_input=True),
        (64, 64),
        "inception3a.cat",
    ),
    "VGG11_bn": (lambda: nn.Sequential(models.vgg11_bn(init_weights=False).features), (48, 64), "0.17"),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_networks(name: str) -> None:
    make, size, layer = TORCHVISION[name]
    deconvnet = Deconvnet(batch_norm_drawn(make()).double())
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    rows, columns = deconvnet.record(images[:1], [layer]).activations[layer].shape[-2:]
    places = border_and_inside(rows, columns)
    places = places if len(places) <= 24 else places[:: len(places) // 16]
    units = strongest_maps(deconvnet, images, layer, places)
    patches = deconvnet.project_units(images, layer, units)
    assert_same(patches, images, units, *from_the_image(deconvnet, images, layer, units), 1e-10)


class Function(nn.Module):
    """A function as a module, which is traced into."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return inspect.getsource(self.function).strip()[9:-2]


def geometry(**arguments) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), arguments["op"], nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU())


@pytest.mark.parametrize(
    "op",
    [
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.MaxPool2d((2, 3), (1, 2), (0, 1), ceil_mode=True),
        nn.MaxPool2d(2, 3),
        nn.MaxPool2d(3, 1, 1, dilation=2),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.AvgPool2d(2, 2, divisor_override=3),
        nn.ZeroPad2d((3, 0, 1, 2)),
        nn.Conv2d(4, 4, (5, 2), (2, 1), (4, 1), (1, 2), groups=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=2, padding_mode="reflect"),
        nn.Conv2d(4, 4, 1, 3),
        nn.AdaptiveAvgPool2d((5, 4)),
        nn.AdaptiveAvgPool2d((11, 7)),
        nn.AdaptiveMaxPool2d((5, 4)),
        nn.BatchNorm2d(4),
        nn.GroupNorm(2, 4),
        nn.ChannelShuffle(2),
        nn.Conv2d(4, 4, (4, 3), padding="same", dilation=(1, 2)),
        nn.ReflectionPad2d(2),
        Function(lambda x: F.pad(x, (1, -1, 0, 2))),
        Function(lambda x: F.conv2d(F.pad(x, (1, 0, 2, 1), value=0.5), x.new_ones(4, 4, 2, 2))),
        Function(lambda x: x[:, :, 2:-1, ::2]),
        Function(lambda x: x[..., 1::3, 4:]),
        Function(lambda x: torch.cat([x.chunk(2, dim=1)[1], torch.chunk(x, 2, 1)[0]], 1)),
        Function(lambda x: torch.cat([x.split([1, 3], 1)[1], x[:, :1]], 1)),
        Function(lambda x: x.view(x.size(0), 2, 2, x.size(2), x.size(3)).transpose(1, 2).reshape(x.shape)),
        Function(lambda x: x.view(-1, 2, 2, 11, 14).permute(0, 2, 1, 3, 4).flatten(1, 2)),
        Function(lambda x: torch.stack([x[:, 2], x[:, 0], x[:, 1], x[:, 3]], 1)),
        Function(lambda x: x + x.mean((2, 3), keepdim=True)),
        Function(lambda x: x + F.avg_pool2d(x, kernel_size=x.size()[2:])),
    ],
    ids=str,
)
def test_every_unit_behind_any_geometry(op: nn.Module) -> None:
    model = batch_norm_drawn(geometry(op=op)).double()
    deconvnet = Deconvnet(model)
    images = torch.randn(2, 3, 11, 14, dtype=torch.float64)
    _, _, rows, columns = deconvnet.record(images, ["4"]).activations["4"].shape
    units = strongest_maps(deconvnet, images, "4", [(r, c) for r in range(rows) for c in range(columns)])
    patches = deconvnet.project_units(images, "4", units)
    values, pixels = from_the_image(deconvnet, images, "4", units)
    live = values > 0
    assert live.sum() >= len(live) / 4 and not patches.projections[~live].any()
    some = Patches(*(part[live] for part in patches))
    assert_same(some, images, units[live], values[live], pixels[live], 1e-10)


@pytest.mark.parametrize("rules", ["gradient", "guided"])
def test_the_gradient_at_a_border_where_windows_hold_no_number(rules: str) -> None:
    """Pooling windows that lie beyond the image give -inf, which the norm makes NaN: the gradient there is 0, too."""
    torch.manual_seed(0)
    model = ZFNet(10, maps=(8, 8, 8, 8, 8), hidden=(8,), init="he").double()
    for name in ("relu1", "relu2", "relu3"):
        setattr(model, name, nn.SiLU())
    deconvnet, images = Deconvnet(model, rules=rules), 20 * torch.randn(1, 3, 224, 224, dtype=torch.float64)
    units = torch.tensor([(0, 3, row, column) for row, column in ((0, 0), (12, 12), (11, 4), (4, 11))])
    patches = deconvnet.project_units(images, "relu3", units)
    assert_same(patches, images, units, *from_the_image(deconvnet, images, "relu3", units), precision=1e-10)


class TestBatches:
    def test_a_small_memory_gives_the_same(self) -> None:
        deconvnet, images = zfnet()
        units = strongest_maps(deconvnet, images, "relu3", border_and_inside(13, 13)[::4])
        expected = deconvnet.project_units(images, "relu3", units)
        for memory in (1, 2**22):
            patches = deconvnet.project_units(images, "relu3", units, memory=memory)
            assert torch.equal(patches.crops, expected.crops) and torch.equal(patches.boxes, expected.boxes)
            torch.testing.assert_close(patches.values, expected.values, rtol=1e-12, atol=0)
            assert (patches.projections - expected.projections).abs().max() <= 1e-12 * expected.projections.abs().max()

    def test_order_and_repetition(self) -> None:
        deconvnet, images = zfnet()
        units = torch.tensor([[1, 2, 3, 4], [0, 5, 12, 0], [1, 2, 3, 4]])
        patches, backwards = (deconvnet.project_units(images, "relu2", u) for u in (units, units.flip(0)))
        for part, other in zip(patches, backwards, strict=True):
            torch.testing.assert_close(part, other.flip(0), rtol=1e-12, atol=1e-12)

    def test_no_units(self) -> None:
        deconvnet, images = zfnet()
        for layer, side in (("relu3", 75), ("fc8", 224)):
            patches = deconvnet.project_units(images, layer, torch.empty(0, 4, dtype=torch.int64))
            assert patches.crops.shape == patches.projections.shape == (0, 3, side, side)
            assert patches.boxes.shape == (0, 4) and patches.values.shape == (0,)

    def test_a_list_will_do(self) -> None:
        deconvnet, images = zfnet()
        by_list = deconvnet.project_units(images, "relu1", [[0, 1, 5, 6]])
        by_tensor = deconvnet.project_units(images, "relu1", torch.tensor([[0, 1, 5, 6]], dtype=torch.int32))
        assert all(torch.equal(a, b) for a, b in zip(by_list, by_tensor, strict=True))

    @pytest.mark.parametrize(
        ("unit", "message"),
        [
            ([2, 0, 0, 0], "no image 2 in relu5: there are 2"),
            ([0, 24, 0, 0], "no map 24 in relu5: there are 24"),
            ([0, 0, 13, 0], "no row 13 in relu5: there are 13"),
            ([0, 0, 0, -1], "no column -1 in relu5: there are 13"),
        ],
        ids=["image", "map", "row", "column"],
    )
    def test_units_that_are_not_there(self, unit: list[int], message: str) -> None:
        deconvnet, images = zfnet()
        with pytest.raises(InputError, match=message):
            deconvnet.project_units(images, "relu5", [[0, 0, 0, 0], unit])

    def test_places_in_a_layer_without_places(self) -> None:
        deconvnet, images = zfnet()
        with pytest.raises(InputError, match="no row 1 in fc6: there are 1"):
            deconvnet.project_units(images, "fc6", [[0, 0, 1, 0]])

    @pytest.mark.gpu
    def test_on_cuda(self) -> None:
        model = ZFNet(10, maps=(16, 24, 32, 32, 24), hidden=(32, 32), init="he").double()
        images = 20 * torch.randn(2, 3, 224, 224, dtype=torch.float64)
        deconvnet = Deconvnet(model)
        units = strongest_maps(deconvnet, images, "relu5", border_and_inside(13, 13))
        here = deconvnet.project_units(images, "relu5", units)
        there = Deconvnet(model.cuda()).project_units(images.cuda(), "relu5", units.cuda())
        assert torch.equal(here.crops, there.crops.cpu()) and torch.equal(here.boxes, there.boxes.cpu())
        assert (here.projections - there.projections.cpu()).abs().max() <= 1e-10 * here.projections.abs().max()


def test_windows_stay_channels_last_where_a_border_is_filled(monkeypatch):
    formats, convolve, units = set(), F.conv2d, [[0, 0, 0, 0], [0, 0, 6, 6]]

    def noted(x, *args, **kwargs):
        formats.add(x.stride(1) == 1)
        return convolve(x, *args, **kwargs)

    deconvnet, image = Deconvnet(ZFNet().eval()), torch.rand(1, 3, 224, 224)
    crops = deconvnet.project_units(image, "relu4", units).crops
    monkeypatch.setattr(F, "conv2d", noted)
    deconvnet.activations_of(crops, "relu4", units, 224)
    assert formats == {True}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("hooked", ["weight_norm", "spectral_norm", "prune"])
def test_weights_that_hooks_make_are_those_of_now(hooked: str) -> None:
    from torch.nn.utils import prune, spectral_norm, weight_norm

    makes = {
        "weight_norm": weight_norm,
        "spectral_norm": spectral_norm,
        "prune": lambda module: prune.l1_unstructured(module, "weight", 0.3),
    }
    torch.manual_seed(0)
    model = nn.Sequential(
        makes[hooked](nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.MaxPool2d(2), makes[hooked](nn.Conv2d(8, 8, 3))
    )
    deconvnet, images, units = Deconvnet(model), torch.rand(2, 3, 24, 24), torch.tensor([[0, 1, 2, 2], [1, 2, 1, 0]])
    for dtype in (torch.float32, torch.float64):
        deconvnet.project_units(images, "3", units)
        model.to(dtype).train()(images.to(dtype)).square().mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= parameter.grad
        values = deconvnet.project_units(images, "3", units).values
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        expected = model.eval()(images.to(dtype))[tuple(units.T)]
        torch.testing.assert_close(values, expected.detach())
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
