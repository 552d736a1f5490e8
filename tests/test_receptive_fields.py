"""A box contains the field that is measured with gradients, and is filled by it; then the paper's numbers."""

from collections.abc import Callable

import pytest
import torch
from oracles import extent, measured_support
from torch import nn
from torchvision import models

from zfnet import InputError, ZFNet, layer_table, receptive_field
from zfnet.graph import Graph

THIN = {"maps": (1, 1, 1, 1, 1), "hidden": (2, 2), "num_classes": 2}  # what a unit sees does not depend on the maps
NAMES = ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5")
SIDES = (110, 55, 26, 13, 13, 13, 13, 6)
FIELDS = {  # size, stride and start of each of NAMES
    "both": (
        (7, 2, -1),
        (11, 4, -1),
        (27, 8, -1),
        (43, 16, -1),
        (75, 16, -17),
        (107, 16, -33),
        (139, 16, -49),
        (171, 32, -49),
    ),
    "right and below": (
        (7, 2, 0),
        (11, 4, 0),
        (27, 8, 0),
        (43, 16, 0),
        (75, 16, -16),
        (107, 16, -32),
        (139, 16, -48),
        (171, 32, -48),
    ),
}
SEEN = {  # by the first unit and by the last, along one axis, ends inclusive; border="both"
    "conv1": ((0, 5), (217, 223)),
    "pool1": ((0, 9), (215, 223)),
    "conv2": ((0, 25), (199, 223)),
    "pool2": ((0, 41), (191, 223)),
    "conv3": ((0, 57), (175, 223)),
    "conv4": ((0, 73), (159, 223)),
    "conv5": ((0, 89), (143, 223)),
    "pool5": ((0, 121), (111, 223)),
}
ALEXNET = {
    "features.0": (11, 4, -2),
    "features.2": (19, 8, -2),
    "features.3": (51, 8, -18),
    "features.5": (67, 16, -18),
    "features.6": (99, 16, -34),
    "features.8": (131, 16, -50),
    "features.10": (163, 16, -66),
    "features.12": (195, 32, -66),
}


@pytest.mark.parametrize("border", FIELDS)
def test_the_papers_receptive_fields(border: str) -> None:
    graph = Graph(ZFNet(border=border, **THIN))
    for name, (size, stride, start) in zip(NAMES, FIELDS[border], strict=True):
        field = receptive_field(graph, name, 224)
        assert (field.size, field.stride, field.start) == ((size, size), (stride, stride), (start, start)), name


def test_what_the_papers_border_units_see() -> None:
    graph = Graph(ZFNet(**THIN))
    for name, side in zip(NAMES, SIDES, strict=True):
        (first, last), field = SEEN[name], receptive_field(graph, name, 224)
        assert field.seen(0, side - 1) == (first[0], last[0], first[1] + 1, last[1] + 1), name
        assert field.seen(side - 1, 0) == (last[0], first[0], last[1] + 1, first[1] + 1), name


def test_boxes_by_hand() -> None:
    """conv5's unit 6 sees 139 pixels from -49 + 6 * 16 on."""
    field = receptive_field(ZFNet(**THIN), "conv5", 224)
    assert field.box(6, 6) == (47, 47, 186, 186) == field.seen(6, 6)
    assert field.box(0, 12) == (-49, 143, 90, 282)


def headless(model: nn.Module) -> nn.Module:
    """Without its fully connected layers: most of the weights, and nothing to do with receptive fields."""
    model.classifier = nn.Identity()
    return model


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], tuple[str, ...]]] = {
    "ZFNet": (lambda: ZFNet(**THIN), (224, 224), NAMES),
    "ZFNet, right and below": (lambda: ZFNet(border="right and below", **THIN), (224, 224), NAMES),
    "ZFNet, norm before pool": (lambda: ZFNet(norm="before pool", **THIN), (224, 224), ("norm1", "pool1", "conv5")),
    "AlexNet": (
        lambda: headless(models.alexnet()),
        (224, 224),
        ("features.0", "features.5", "features.7", "features.10", "features.12"),
    ),
    "AlexNet, wide": (lambda: headless(models.alexnet()), (130, 190), ("features.2", "features.5", "features.11")),
    "VGG11": (
        lambda: headless(models.vgg11(init_weights=False)),
        (96, 128),
        ("features.2", "features.8", "features.15", "features.20"),
    ),
    "SqueezeNet1_0": (
        models.squeezenet1_0,
        (160, 130),
        ("features.2", "features.5.cat", "features.9.cat", "features.12.cat"),
    ),
    "ResNet18": (
        models.resnet18,
        (128, 160),
        ("maxpool", "layer1.0.add", "layer2.0.downsample.0", "layer3.1.add", "layer4.1.relu_1"),
    ),
    "GoogLeNet": (
        lambda: models.googlenet(init_weights=False, aux_logits=False),
        (160, 128),
        ("maxpool1", "inception3a.branch3.1.relu", "inception3b.cat", "inception4c.cat"),
    ),
}
MEASURED = [(net, layer) for net, (_, _, layers) in NETS.items() for layer in layers]


def test_alexnet_with_torchs_padding() -> None:
    graph = Graph(headless(models.alexnet()))
    for name, (size, stride, start) in ALEXNET.items():
        field = receptive_field(graph, name, 224)
        assert (field.size, field.stride, field.start) == ((size, size), (stride, stride), (start, start)), name


@pytest.fixture(scope="module")
def built() -> Callable[[str], nn.Module]:
    made: dict[str, nn.Module] = {}

    def build(net: str) -> nn.Module:
        if net not in made:
            made[net] = NETS[net][0]()
        return made[net]

    return build


@pytest.mark.parametrize(("net", "layer"), MEASURED, ids=lambda value: value)
def test_measured_fields(net: str, layer: str, built: Callable[[str], nn.Module]) -> None:
    """Corner, border and interior units: `seen` is exactly what is measured, and the box contains it."""
    size = NETS[net][1]
    model = built(net)
    graph = Graph(model)
    rows, columns = graph.shapes(size, graph.node(layer))[graph.node(layer)][-2:]
    field = receptive_field(graph, layer, size)
    for row, column in {(0, 0), (rows - 1, columns - 1), (0, columns // 2), (rows // 2, columns // 2)}:
        support = measured_support(model, layer, size, row, column)
        seen = field.seen(row, column)
        assert extent(support) == seen, (row, column)
        assert support[seen[0] : seen[2], seen[1] : seen[3]].all(), "the field has no holes"
        box = field.box(row, column)
        assert box[0] <= seen[0] and box[1] <= seen[1] and box[2] >= seen[2] and box[3] >= seen[3]


@pytest.mark.parametrize("layer", ["conv2", "pool2", "conv3"])
def test_interior_boxes_are_filled(layer: str) -> None:
    model = ZFNet(**THIN)
    side, field = dict(zip(NAMES, SIDES, strict=True))[layer], receptive_field(model, layer, 224)
    inside = [i for i in range(side) if field.box(i, i)[0] >= 0 and field.box(i, i)[2] <= 224]
    for i in (inside[0], inside[len(inside) // 2]):
        box = field.box(i, i)
        assert field.seen(i, i) == box == extent(measured_support(model, layer, (224, 224), i, i))


@pytest.mark.parametrize("layer", ["flatten", "fc6", "relu6", "fc8"])
def test_fully_connected_layers_see_everything(layer: str) -> None:
    field = receptive_field(ZFNet(**THIN), layer, 224)
    assert (field.size, field.stride, field.start) == ((224, 224), (0, 0), (0, 0))
    assert field.box(0, 0) == field.seen(0, 0) == (0, 0, 224, 224)


def test_global_pooling_sees_everything() -> None:
    assert receptive_field(models.resnet18(), "avgpool", (64, 96)).box(0, 0) == (0, 0, 64, 96)


def test_kernels_strides_and_paddings_that_differ_by_axis() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, (3, 5), (1, 2), (0, 2)), nn.MaxPool2d((2, 3), (2, 1)))
    field = receptive_field(model, "1", (20, 30))
    assert (field.size, field.stride, field.start) == ((4, 9), (2, 2), (0, -2))
    assert extent(measured_support(model, "1", (20, 30), 3, 0)) == field.seen(3, 0) == (6, 0, 10, 7)


def test_dilated_filters_span_their_holes() -> None:
    field = receptive_field(nn.Sequential(nn.Conv2d(3, 2, 3, dilation=4)), "0", 32)
    assert field.size == (9, 9) and field.box(2, 3) == (2, 3, 11, 12)


def test_one_number_or_two() -> None:
    model = ZFNet(**THIN)
    assert receptive_field(model, "conv5", 224).box(1, 2) == receptive_field(model, "conv5", (224, 224)).box(1, 2)


def test_an_unknown_layer() -> None:
    with pytest.raises(InputError, match=r"no layer of ZFNet 'conv6' \(did you mean 'conv"):
        receptive_field(ZFNet(**THIN), "conv6", 224)


def test_the_table_of_layers() -> None:
    model = ZFNet()
    table = {row.layer: row for row in layer_table(model, 224)}
    first = table["conv1"]
    assert (first.output, first.units, first.operation) == ((96, 110, 110), 1_161_600, "Conv2d")
    assert (first.kernel, first.stride, first.receptive_field) == ((7, 7), (2, 2), (7, 7))
    assert first.parameters == 7 * 7 * 3 * 96 + 96
    assert [table[name].units for name in ("pool1", "relu2", "relu3", "relu5", "pool5", "fc6", "fc8")] == [
        290_400,
        173_056,
        64_896,
        43_264,
        9_216,
        4_096,
        1_000,
    ]
    assert (table["pool2"].kernel, table["pool2"].stride, table["pool2"].receptive_stride) == ((3, 3), (2, 2), (16, 16))
    assert (table["relu5"].kernel, table["fc6"].kernel) == (None, None)
    assert table["fc6"].receptive_field == (224, 224)
    assert sum(row.parameters for row in table.values()) == 62_357_608


def test_the_table_follows_the_image() -> None:
    table = {row.layer: row for row in layer_table(models.resnet18(), (64, 96))}
    assert table["layer4.1.add"].output == (512, 2, 3)
    assert table["fc"].receptive_field == (64, 96)
    assert torch.tensor([row.units for row in table.values()]).gt(0).all()
