"""A field for each map: where branches are joined, a unit sees only through its own.

Small networks with fields worked by hand, then the joined layers of torchvision's, against the support of the gradient
of a unit of that map alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from oracles import (
    CrossMap,
    assert_close,
    check_units,
    extent,
    measured_support,
    measured_supports,
    on_the_image,
    positions,
)
from torch import Tensor, nn
from torchvision import models

from zfnet import Deconvnet, InputError, layer_table, receptive_field
from zfnet.graph import Graph

SIZE = (20, 22)


class Branches(nn.Module):
    """A stem of 3 x 3, then two maps through 1 x 1 beside two through 3 x 3 and two through 5 x 5, joined."""

    def __init__(self, after: nn.Module | Callable[[Tensor], Tensor]):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.small, self.middle = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 3, padding=1)
        self.large = nn.Conv2d(4, 2, 5, padding=2)
        self.after, self.last = after, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.last(F.relu(self.after(torch.cat([self.small(x), self.middle(x), self.large(x)], 1))))


class Residual(nn.Module):
    """What passes by is added to what has gone through 3 x 3, two maps of four at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 4, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :4] + self.conv(x)


class Shuffled(nn.Module):
    """ShuffleNetV2's unit: half of the maps pass by, half go through 3 x 3, and the halves are interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        passing, changed = x.chunk(2, 1)
        x = torch.cat([passing, self.conv(changed)], 1)
        return x.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2)


def split_and_joined(x: Tensor) -> Tensor:
    first, last = x.split([4, 2], 1)
    return torch.cat([last, first], 1)


class Flipped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1)


class Case(NamedTuple):
    after: Callable[[], nn.Module | Callable[[Tensor], Tensor]]
    sizes: list[int]  # of each map's field, by hand
    stride: int = 1


CASES = {
    # stem 3; through 1 x 1, 3 x 3 and 5 x 5: 3, 5 and 7
    "joined": Case(nn.Identity, [3, 3, 5, 5, 7, 7]),
    "batch norm": Case(lambda: nn.BatchNorm2d(6), [3, 3, 5, 5, 7, 7]),
    "SiLU": Case(nn.SiLU, [3, 3, 5, 5, 7, 7]),
    "depthwise": Case(lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6), [5, 5, 7, 7, 9, 9]),
    "depthwise, two of each": Case(lambda: nn.Conv2d(6, 12, 3, 2, 1, groups=6), [5] * 4 + [7] * 4 + [9] * 4, 2),
    "three groups": Case(lambda: nn.Conv2d(6, 9, 1, groups=3), [3, 3, 3, 5, 5, 5, 7, 7, 7]),
    "two groups": Case(lambda: nn.Conv2d(6, 4, 3, padding=1, groups=2), [7, 7, 9, 9]),
    "one group": Case(lambda: nn.Conv2d(6, 2, 3, padding=1), [9, 9]),
    "max pooling": Case(lambda: nn.MaxPool2d(2), [4, 4, 6, 6, 8, 8], 2),
    "average pooling": Case(lambda: nn.AvgPool2d(3, 2), [5, 5, 7, 7, 9, 9], 2),
    "shuffle of maps": Case(lambda: nn.ChannelShuffle(2), [3, 5, 3, 7, 5, 7]),
    "ShuffleNet": Case(Shuffled, [3, 7, 3, 9, 5, 9]),
    "flip of maps": Case(lambda: lambda x: x.flip(1), [7, 7, 5, 5, 3, 3]),
    "roll of maps": Case(lambda: lambda x: x.roll(1, 1), [7, 3, 3, 5, 5, 7]),
    "every second map": Case(lambda: lambda x: x[:, 1::2], [3, 5, 7]),
    "maps by number": Case(lambda: lambda x: x[:, [5, 0, 2]], [7, 3, 5]),
    "split": Case(lambda: split_and_joined, [7, 7, 3, 3, 5, 5]),
    "padded with maps": Case(lambda: lambda x: F.pad(x, (0, 0, 0, 0, 2, 0))[:, 2:], [3, 3, 5, 5, 7, 7]),
    # of three neighbours: itself and one on each side
    "LRN": Case(lambda: nn.LocalResponseNorm(3, 0.5), [3, 5, 5, 7, 7, 7]),
    # of four: the two before, itself and one after
    "LRN of an even size": Case(lambda: nn.LocalResponseNorm(4, 0.5), [3, 5, 5, 7, 7, 7]),
    "LRN of five": Case(lambda: nn.LocalResponseNorm(5, 0.5), [5, 5, 7, 7, 7, 7]),
    "cross-map LRN": Case(lambda: nn.CrossMapLRN2d(3, 0.5), [3, 5, 5, 7, 7, 7]),
    # maps 0..3 (3, 3, 5, 5) and 3 x 3 of groups 0..2 (5) and 3..5 (7)
    "residual": Case(Residual, [7, 7, 9, 9]),
    "add of other maps": Case(lambda: lambda x: x + x.flip(1), [7, 7, 5, 5, 7, 7]),
    "sum of chunks": Case(lambda: lambda x: x.unflatten(1, (2, 3)).sum(1), [5, 7, 7]),
    "mean of maps": Case(lambda: lambda x: x.mean(1, keepdim=True), [7]),
    "stacked and unstacked": Case(
        lambda: lambda x: torch.stack([x, x.flip(1)], 2).flatten(1, 2), [3, 7] * 2 + [5] * 4 + [7, 3] * 2
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_fields_by_hand(name: str) -> None:
    after, sizes, stride = CASES[name]
    model = Branches(after()).eval()
    graph = Graph(model)
    for m, side in enumerate(sizes):
        field = receptive_field(graph, "last", SIZE, m)
        assert (field.size, field.stride) == ((side, side), (stride, stride)), m
    whole = receptive_field(graph, "last", SIZE)
    assert whole.size == (max(sizes),) * 2 and whole.stride == (stride, stride)
    for row, column in positions(SIZE[0] // stride - 1, SIZE[1] // stride - 1):
        boxes = [receptive_field(graph, "last", SIZE, m).box(row, column) for m in range(len(sizes))]
        union = (*(min(box[i] for box in boxes) for i in (0, 1)), *(max(box[i] for box in boxes) for i in (2, 3)))
        assert whole.box(row, column) == union


@pytest.mark.parametrize("name", CASES)
def test_fields_are_what_is_measured(name: str) -> None:
    after, sizes, _ = CASES[name]
    model = Branches(after()).eval()
    graph = Graph(model)
    rows, columns = model(torch.zeros(1, 3, *SIZE)).shape[2:]
    for row, column in positions(rows, columns):
        for m in (None, *range(len(sizes))):
            support = measured_support(model, "last", SIZE, row, column, m)
            assert receptive_field(graph, "last", SIZE, m).seen(row, column) == extent(support), (m, row, column)


@pytest.mark.parametrize("name", [name for name in CASES if name != "SiLU"])
def test_single_units_of_branches(name: str) -> None:
    """`project_units` is `project`, each unit in the box of its own field, on canvases of the largest size."""
    after, sizes, _ = CASES[name]
    model = Branches(after()).double().eval()
    deconvnet, images = Deconvnet(model), torch.randn(2, 3, *SIZE, dtype=torch.float64)
    check_units(deconvnet, images, "last")
    units = [[1, m, 4, 3] for m in range(len(sizes))]
    patches = deconvnet.project_units(images, "last", units)
    assert patches.crops.shape == patches.projections.shape == (len(units), 3, max(sizes), max(sizes))
    for m, (crop, box) in enumerate(zip(patches.crops, patches.boxes, strict=True)):
        field = receptive_field(deconvnet.graph, "last", SIZE, m)
        assert tuple(box.tolist()) == field.box(4, 3)
        top, left, bottom, right = (max(edge, 0) for edge in field.box(4, 3))
        expected = torch.zeros_like(images[1])
        expected[:, top:bottom, left:right] = images[1, :, top:bottom, left:right]
        assert torch.equal(on_the_image(crop, box, SIZE), expected), "a crop is the image in the box, and nothing else"
    alone = deconvnet.project_units(images, "last", units[:1])
    assert alone.crops.shape[-1] == sizes[0], "units of one call share canvases, and no others do"


def test_the_table_of_layers_gives_the_range() -> None:
    """In a joined layer, the field of the maps that see least and of those that see most."""
    rows = {row.layer: row for row in layer_table(Branches(nn.MaxPool2d(2)), SIZE)}
    fields = {layer: (row.smallest_field, row.receptive_field) for layer, row in rows.items()}
    assert fields["cat"] == ((3, 3), (7, 7))
    assert fields["after"] == ((4, 4), (8, 8))
    assert fields["stem"] == ((3, 3), (3, 3))


def test_a_tuple_of_tensors_has_no_window() -> None:
    model = Branches(lambda x: torch.cat(x.split([4, 2], 1)[::-1], 1))
    with pytest.raises(InputError, match=r"^no window for \S+ at \S+, so receptive fields behind it are not known"):
        receptive_field(model, "last", SIZE)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_the_legacy_normalisation_never_forgets_its_first_map(size: int) -> None:
    """torch's CrossMapLRN2d keeps map 0 in its running sum: every map sees what map 0 sees."""
    norm, maps = nn.CrossMapLRN2d(size, 0.5), torch.rand(1, 6, 4, 4, dtype=torch.float64)
    assert_close(CrossMap(norm, False)(maps), norm(maps))
    model = Branches(nn.Sequential(Flipped(), norm))  # map 0 sees 7 pixels
    assert [receptive_field(model, "last", SIZE, m).size[0] for m in range(6)] == [7] * 6


@pytest.mark.parametrize("m", [6, -1])
def test_a_map_that_is_not_there(m: int) -> None:
    with pytest.raises(InputError, match=rf"^no map {m} in last: there are 6$"):
        receptive_field(Branches(nn.Identity()), "last", SIZE, m)


def test_a_unit_that_sees_nothing_but_padding() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ZeroPad2d(4), nn.Conv2d(4, 4, 3), nn.ReLU()).double()
    nn.init.constant_(model[2].bias, 1.0)
    images = torch.randn(1, 3, *SIZE, dtype=torch.float64)
    top, left, bottom, right = receptive_field(model, "3", SIZE).seen(0, 0)
    assert top >= bottom or left >= right, "the box is empty"
    patches = Deconvnet(model).project_units(images, "3", [[0, 2, 0, 0]])
    assert patches.values.tolist() == [1] and not patches.projections.any()


class Net(NamedTuple):
    make: Callable[[], nn.Module]
    size: tuple[int, int]
    layers: dict[str, list[int]]  # maps of every branch, by layer


def offsets(*widths: int) -> list[int]:
    """The first map and the last of each branch."""
    starts = [sum(widths[:n]) for n in range(len(widths))]
    return sorted({m for start, width in zip(starts, widths, strict=True) for m in (start, start + width - 1)})


NETS = {
    "SqueezeNet1_0": Net(
        models.squeezenet1_0,
        (128, 112),
        {
            "features.3.cat": offsets(64, 64),
            "features.5.cat": offsets(128, 128),
            "features.8.cat": offsets(192, 192),
            "features.12.cat": offsets(256, 256),
        },
    ),
    "GoogLeNet": Net(
        lambda: models.googlenet(init_weights=False, aux_logits=False),
        (112, 128),
        {
            "inception3a.cat": offsets(64, 128, 32, 32),
            "inception3b.cat": offsets(128, 192, 96, 64),
            "inception4a.cat": offsets(192, 208, 48, 64),
            "inception4c.cat": offsets(128, 256, 64, 64),
        },
    ),
    "DenseNet121": Net(
        models.densenet121,
        (96, 112),
        {
            "features.denseblock1.denselayer3.cat": offsets(64, 32, 32),
            "features.denseblock1.cat": offsets(64, *[32] * 6),
            "features.denseblock2.denselayer5.cat": offsets(128, *[32] * 4),
        },
    ),
    "ShuffleNetV2": Net(
        models.shufflenet_v2_x0_5,
        (128, 96),
        {
            "stage2.1.cat": [0, 1, 2, 23, 24, 25, 47],
            "stage2.3.view_1": [*range(8), 46, 47],
            "stage3.2.cat": [*range(5), 47, 48, 49, 95],
        },
    ),
}
JOINED = [(net, layer) for net, (_, _, layers) in NETS.items() for layer in layers]


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    return {}


def check_maps(networks: dict[str, nn.Module], net: str, layer: str, maps: list[int] | None) -> None:
    """That the fields of maps, None for all, are what is measured, in a corner and in the middle."""
    make, size, _ = NETS[net]
    model = networks.setdefault(net, make().eval())
    graph = Graph(model)
    channels, rows, columns = graph.shapes(size, graph.node(layer))[graph.node(layer)][1:]
    fields = {m: receptive_field(graph, layer, size, m) for m in (range(channels) if maps is None else maps)}
    for row, column in [(0, 0), (rows // 2, columns // 2)]:
        supports = measured_supports(model, layer, size, row, column, list(fields))
        for (m, field), support in zip(fields.items(), supports, strict=True):
            assert field.seen(row, column) == extent(support), (m, row, column)
    assert len({field.size for field in fields.values()}) > 1, "branches see differently"


@pytest.mark.parametrize(("net", "layer"), JOINED, ids=str)
def test_fields_of_every_branch(net: str, layer: str, networks: dict[str, nn.Module]) -> None:
    check_maps(networks, net, layer, NETS[net].layers[layer])


@pytest.mark.slow
@pytest.mark.parametrize(("net", "layer"), JOINED, ids=str)
def test_fields_of_every_map(net: str, layer: str, networks: dict[str, nn.Module]) -> None:
    check_maps(networks, net, layer, None)


def test_the_fields_of_squeezenets_joined_layers() -> None:
    """In input pixels, without the borders of the image: through 1 x 1 and through 3 x 3."""
    graph = Graph(models.squeezenet1_0())
    sizes = {"features.4.cat": (19, 27), "features.8.cat": (59, 75), "features.10.cat": (91, 107)}
    for layer, (small, large) in (sizes | {"features.12.cat": (123, 155)}).items():
        half = graph.shapes((224, 224), graph.node(layer))[graph.node(layer)][1] // 2
        for m, side in ((0, small), (half - 1, small), (half, large), (2 * half - 1, large)):
            assert receptive_field(graph, layer, 224, m).size == (side, side), layer
