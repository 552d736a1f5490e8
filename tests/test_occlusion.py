"""Occlusion in windows against the same squares on whole images, at every place of the square, border and all."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from captum.attr import Occlusion
from oracles import plain_occlusion
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from zfnet import InputError, ZFNet, occlusion_maps, receptive_field
from zfnet.analysis.occlusion import TILE, _Sweep, multiply_adds, planned
from zfnet.checks import evaluating, pair
from zfnet.graph import Graph
from zfnet.windows import Window


def zfnet(**more):
    small = {"maps": (6, 8, 8, 8, 8), "hidden": (12, 12), "image_size": 96, "init": "he"}
    return ZFNet(7, **small | more)


def lively(model):
    """Running statistics and biases that differ from map to map, so that no term may be forgotten."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.uniform_(module.bias, -0.1, 0.1)
    return model.eval()


# model, side of the image, layer whose activity is summed
NETWORKS = {
    "zfnet": (zfnet, 96, "relu5"),
    "zfnet right and below": (lambda: zfnet(border="right and below", image_size=97), 97, "pool2"),
    "krizhevsky": (lambda: zfnet(conv1=(11, 4), conv2=(5, 1, 2), norm="before pool"), 96, "relu4"),
    "alexnet": (lambda: models.alexnet(num_classes=7), 80, "features.11"),
    "vgg11": (lambda: models.vgg11(num_classes=7), 48, "features.19"),
    "squeezenet": (lambda: models.squeezenet1_0(num_classes=7), 70, "features.12.cat"),
    "resnet18": (lambda: models.resnet18(num_classes=7), 72, "layer4.1.relu_1"),
    "googlenet": (
        lambda: models.googlenet(num_classes=7, aux_logits=True, transform_input=True, init_weights=False),
        64,
        "inception5b.cat",
    ),
}


def assert_equal_to_plain(model, image, layer, size, step, fill=0.0, tolerance=1e-5, **more):
    """All three maps of the strongest feature map; labels where the two best classes are not tied."""
    ours = occlusion_maps(model, image, size=size, step=step, fill=fill, layer=layer, **more)
    with torch.no_grad():
        logits, sums = plain_occlusion(model, image, pair(size), pair(step), torch.as_tensor(fill).to(image), layer)
    activity, probability = sums[..., ours.map], logits.softmax(2)[..., ours.target]
    for found, true in ((ours.activity, activity), (ours.probability, probability)):
        assert found.shape == true.shape
        assert (found - true).abs().max() <= tolerance * true.abs().max()
    best = logits.topk(2, 2).values
    clear = best[..., 0] - best[..., 1] > tolerance * logits.abs().max()
    assert torch.equal(ours.label[clear], logits.argmax(2)[clear])
    assert clear.float().mean() > 0.9
    assert activity.numel() == 1 or activity.max() > activity.min()
    return ours


@pytest.mark.parametrize("name", NETWORKS)
def test_windows_equal_whole_images_at_every_place(name):
    make, side, layer = NETWORKS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing of these networks may fall back
        assert_equal_to_plain(lively(make()), torch.randn(3, side, side), layer, side // 4, side // 7)


@pytest.mark.parametrize("name", ["zfnet", "squeezenet", "resnet18"])
def test_in_double_precision_they_agree_to_its_last_digits(name):
    make, side, layer = NETWORKS[name]
    image = torch.randn(3, side, side, dtype=torch.float64)
    assert_equal_to_plain(lively(make()).double(), image, layer, side // 4, side // 4, tolerance=1e-12)


@pytest.mark.parametrize(
    ("size", "step", "fill"),
    [((31, 9), (13, 30), 0.0), (1, 19, -2.0), (96, 1, 0.0), ((96, 5), 24, 0.5), (40, 50, (0.1, -0.2, 0.3))],
)
def test_rectangles_single_pixels_and_whole_images_of_any_colour(size, step, fill):
    assert_equal_to_plain(lively(zfnet()), torch.randn(3, 96, 96), "relu5", size, step, fill)


def test_every_place_of_a_small_square_along_one_side():
    assert_equal_to_plain(lively(zfnet()), torch.randn(3, 96, 96), "relu3", (7, 96), 1)


def odd(first=None, **more):
    """Strides that skip pixels, dilation, groups, average pools, a branch with other windows, functional steps."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = first or nn.Conv2d(3, 4, 2, 3)
            self.wide = nn.Conv2d(4, 4, 3, padding=4, dilation=4, groups=2)
            self.long = nn.Conv2d(4, 4, (1, 5), padding=(0, 2))
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            x = F.relu(self.first(x), inplace=True)
            y = self.wide(x)
            z = F.conv2d(F.max_pool2d(x, 3, 1, 1), self.long.weight, self.long.bias, padding=(0, 2))
            x = torch.cat([F.avg_pool2d(torch.relu(y + x), 2), F.max_pool2d(z - x, 2, ceil_mode=False)], 1)
            return self.head(x.mean((2, 3)))

    return lively(Odd())


def test_strides_with_gaps_dilation_groups_and_branches():
    assert_equal_to_plain(odd(), torch.randn(3, 41, 50), "cat", (3, 1), (4, 7))


def test_of_any_layer_and_map_pre_rectified_or_behind_the_windows():
    model, image = lively(zfnet()), torch.randn(3, 96, 96)
    for layer in ("conv1", "conv5", "norm1", "fc6", "relu7", "fc8"):
        assert_equal_to_plain(model, image, layer, 30, 22)
    assert_equal_to_plain(model, image, "relu2", 30, 22, map=3, target=5)


def test_what_has_no_windows_falls_back_and_says_so_once():
    model = odd(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"))
    with pytest.warns(UserWarning, match=r"first \(Conv2d\).*plain batches") as said:
        assert_equal_to_plain(model, torch.randn(3, 30, 30), "cat", 9, 6)
    assert len(said) == 1


def test_incremental_or_not_in_small_batches_or_large_it_is_the_same():
    model, image = lively(zfnet()).double(), torch.randn(3, 96, 96, dtype=torch.float64)
    results = [
        occlusion_maps(model, image, size=30, step=9, incremental=incremental, memory=memory)
        for incremental, memory in ((True, 2**27), (True, 1), (False, 2**27), (False, 2**20))
    ]
    for other in results[1:]:
        for name in ("activity", "probability"):
            torch.testing.assert_close(getattr(other, name), getattr(results[0], name), rtol=1e-10, atol=0)
        assert torch.equal(other.label, results[0].label)


def test_by_default_the_strongest_map_of_the_last_relu_and_the_most_probable_class():
    model, image = lively(zfnet()), torch.randn(3, 96, 96)
    maps = occlusion_maps(model, image, size=40, step=28)
    with torch.no_grad():
        sums, logits = model[:14](image[None])[0].sum((1, 2)), model(image[None])[0]
    assert model[:14][-1] is model.relu5
    assert (maps.layer, maps.map, maps.target) == ("relu5", int(sums.argmax()), int(logits.argmax()))
    assert maps.clean == pytest.approx((float(sums.max()), float(logits.softmax(0).max()), maps.target), rel=1e-5)


def test_boxes_are_the_squares():
    maps = occlusion_maps(lively(odd()), torch.randn(3, 41, 50), size=(10, 20), step=(8, 13))
    assert maps.boxes[:, 0, 0].tolist() == [0, 8, 16, 24, 32]
    assert maps.boxes[:, 0, 2].tolist() == [10, 18, 26, 34, 41]
    assert maps.boxes[0, :, 1].tolist() == [0, 13, 26, 39]
    assert maps.boxes[0, :, 3].tolist() == [20, 33, 46, 50]
    assert maps.probability.shape == maps.activity.shape == maps.label.shape == (5, 4)


def test_the_paper_has_30_by_30_places():
    maps = planned(graph := Graph(zfnet(image_size=224)), graph.nodes, (224, 224), (50, 50), (6, 6)).squares
    assert [len(ranges.low) for ranges in maps] == [30, 30]


@pytest.mark.parametrize(("size", "step"), [((30, 20), (9, 13)), ((16, 16), (16, 16))])
def test_heat_is_captums_map(size, step):
    model, image = lively(zfnet()), torch.randn(3, 96, 96)
    maps = occlusion_maps(model, image, size=size, step=step, fill=0.3, target=2)
    captum = Occlusion(lambda x: model(x).softmax(1))
    with torch.no_grad():
        theirs = captum.attribute(image[None], (3, *size), (3, *step), 0.3, target=2, perturbations_per_eval=8)
    assert (maps.heat() - theirs[0, 0]).abs().max() <= 1e-5 * maps.probability.max()


def test_heat_is_nan_where_no_square_came():
    heat = occlusion_maps(lively(odd()), torch.randn(3, 41, 50), size=5, step=20).heat("activity")
    assert heat.isnan()[5:20].all()
    assert not heat.isnan()[:5, :5].any()


# ---- the arithmetic --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [((3, 3), (2, 2), (1, 1), (1, 1)), ((2, 5), (3, 1), (0, 2), (1, 3))])
def test_an_input_reaches_the_outputs_that_read_it(window):
    window = Window(*window)
    for axis in (0, 1):
        for low in range(-3, 12):
            for high in range(low + 1, low + 6):
                first, end = window.reaches(low, high, axis)
                for output in range(-9, 30):
                    start, stop = window.reads(output, output + 1, axis)
                    assert (first <= output < end) == (start < high and stop > low)


def test_a_square_reaches_the_units_that_see_it():
    graph = Graph(zfnet())
    plan = planned(graph, graph.nodes, (96, 96), (10, 10), (6, 6))
    for layer in ("relu1", "pool1", "relu2", "relu3", "relu5", "pool5"):
        field, ranges = receptive_field(graph, layer, 96), plan.changes[graph.node(layer)][0]
        for square, (low, high) in enumerate(zip(*(r.tolist() for r in ranges), strict=True)):
            top, bottom = plan.squares[0].low[square], plan.squares[0].high[square]
            seeing = [
                row
                for row in range(plan.extents[graph.node(layer)][0])
                if field.box(row, row)[0] < bottom and field.box(row, row)[2] > top
            ]
            assert (low, high) == (seeing[0], seeing[-1] + 1)


def test_multiply_adds_of_the_papers_figure():
    plain, reached = multiply_adds(ZFNet(), 224)
    assert plain == 1_168_032_896  # 1.168 G, and for 50 pixels at step 6 a mean of 3.47 times less
    assert plain / reached == pytest.approx(3.47, abs=0.005)


def test_no_more_is_computed_than_the_squares_can_reach():
    """Counted by torch, of all convolutions and fully connected layers, the clean pass and tiles' slack included."""
    model, image = zfnet(hidden=(64,), image_size=128).double().eval(), torch.randn(3, 128, 128, dtype=torch.float64)
    torch.set_num_threads(1)  # the counter sees its own thread
    spent = {}
    for incremental in (True, False):
        with FlopCounterMode(display=False) as counter:
            maps = occlusion_maps(model, image, size=28, step=4, incremental=incremental)
        spent[incremental] = counter.get_total_flops()
    plain, reached = multiply_adds(model, 128, 28, 4)
    assert spent[False] == pytest.approx(2 * plain * (maps.label.numel() + 1), rel=0.03)  # and contrast normalisation
    assert spent[True] < 1.4 * 2 * reached * maps.label.numel()


def test_memory_does_not_grow_with_the_places():
    graph, image = Graph(zfnet().eval()), torch.randn(1, 3, 96, 96)
    for step in (8, 1):
        with evaluating(graph.model):
            sweep = _Sweep(graph, image, (30, 30), (step, step), torch.zeros(1, 1, 1), None, True)
            batches = sweep.batches(2**27, 2)
        squares = [len(r.squares) * len(c.squares) for batch in batches for r, c in batch]
        assert max(squares) <= TILE**2
        assert max(sum(len(r.squares) * len(c.squares) for r, c in batch) for batch in batches) <= 4 * TILE**2
        places = [(r, c) for batch in batches for rows, columns in batch for r in rows.squares for c in columns.squares]
        assert len(places) == len({(int(r), int(c)) for r, c in places}) == (-(-66 // step) + 1) ** 2


def test_any_number_of_threads_finds_the_same_and_is_left_as_it_was():
    model, image = lively(zfnet()).double(), torch.randn(3, 96, 96, dtype=torch.float64)
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(occlusion_maps(model, image, size=30, step=6))
        assert torch.get_num_threads() == threads
    for other in found[1:]:
        torch.testing.assert_close(other.probability, found[0].probability, rtol=1e-10, atol=0)
        torch.testing.assert_close(other.activity, found[0].activity, rtol=1e-10, atol=0)
        assert torch.equal(other.label, found[0].label)


def test_an_error_in_a_thread_is_the_error_and_leaves_the_threads_as_they_were(monkeypatch):
    monkeypatch.setattr(_Sweep, "rest", lambda self, edge: (_ for _ in ()).throw(InputError("no more")))
    torch.set_num_threads(2)
    with pytest.raises(InputError, match=r"^no more$"):
        occlusion_maps(zfnet(), torch.randn(3, 96, 96), size=30, step=6)
    assert torch.get_num_threads() == 2


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"size": 97}, r"^a square of 97 x 97 pixels does not fit in an image of 96 x 96$"),
        ({"size": (0, 5)}, r"^a square of 0 x 5 pixels does not fit"),
        ({"step": 0}, r"^the step is 0 pixels; give at least 1$"),
        ({"fill": (1.0, 2.0)}, r"^fill is \(1.0, 2.0\); give one number, or one for each of three channels$"),
        ({"layer": "relu6x"}, r"^no layer of ZFNet 'relu6x' \(did you mean 'relu6'\?\)"),
        ({"map": 8}, r"^no map 8 in relu5: there are 8$"),
        ({"target": 7}, r"^no class 7 in the network: there are 7$"),
    ],
)
def test_a_mistake_is_one_line(wrong, says):
    with pytest.raises(InputError, match=says) as error:
        occlusion_maps(zfnet(), torch.randn(3, 96, 96), **{"size": 9, "step": 30} | wrong)
    assert "\n" not in str(error.value)


def test_several_images_or_one_that_is_not_square_for_a_network_that_needs_it_are_one_line():
    with pytest.raises(InputError, match=r"^give one image"):
        occlusion_maps(zfnet(), torch.randn(2, 3, 96, 96))
    with pytest.raises(
        InputError, match=r"^fc6 \(Linear\) of ZFNet fails on images of shape \(1, 3, 96, 128\)"
    ) as error:
        occlusion_maps(zfnet(), torch.randn(3, 96, 128))
    assert "\n" not in str(error.value)


def test_a_network_without_logits_is_refused():
    with pytest.raises(InputError, match=r"^Sequential gives no logits"):
        occlusion_maps(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(3, 20, 20), size=5)


def test_the_model_is_left_as_it_was():
    model = zfnet().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    occlusion_maps(model, torch.randn(3, 96, 96), size=30, step=30)
    assert model.training
    assert model.relu1.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
