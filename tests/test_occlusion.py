"""Occlusion in windows against the same squares on whole images, at every place of the square, border and all."""

import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from captum.attr import Occlusion
from oracles import plain_occlusion
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from zfnet import InputError, ZFNet, occlusion_maps, receptive_field
from zfnet.analysis.occlusion import multiply_adds, square_boxes
from zfnet.analysis.occlusion.incremental import (
    TILE,
    TILE_COST,
    SquareWindows,
    Sweep,
    cheapest_runs,
    fully_connected,
    make_plan,
)
from zfnet.analysis.occlusion.readout import readout
from zfnet.checks import pair, undifferentiated
from zfnet.graph import Graph
from zfnet.views import UnitWindows, WholeMaps, places_of
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


def test_of_a_layer_that_the_next_step_overwrites():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(392, 3)
    )
    image = torch.randn(3, 18, 18)
    assert_equal_to_plain(lively(model), image, "0", 5, 4)
    maps = occlusion_maps(model, image, size=5, step=4, layer="0", incremental=False)
    with torch.no_grad():
        squared = image.clone()
        squared[:, :5, :5] = 0
        expected = model[0](squared[None])[0, maps.map].sum()
    assert maps.activity[0, 0].item() == pytest.approx(expected.item(), rel=1e-4)


MEANS = {
    "both": lambda x: x.mean((2, 3)),
    "from the end": lambda x: torch.mean(x, dim=[-1, -2]),
    "one by one": lambda x: x.mean(3).mean(2),
    "pooled": lambda x: F.adaptive_avg_pool2d(x, 1),
    "of flat maps": lambda x: x.flatten(2).mean(2),
}


@pytest.mark.parametrize("mean", MEANS)
def test_a_network_whose_last_step_is_a_mean_over_places(mean):
    class Loose(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.g, self.r = nn.Conv2d(3, 8, 3), nn.Conv2d(16, 4, 1), nn.ReLU()

        def forward(self, x, *args, **kwargs):
            return MEANS[mean](self.r(self.g(torch.cat([F.relu(self.f(x)), self.f(x)], 1))))

    model, image = lively(Loose()), torch.randn(3, 16, 16)
    plain, quick = (occlusion_maps(model, image, size=8, step=4, incremental=flag) for flag in (False, True))
    for name in ("activity", "probability"):
        torch.testing.assert_close(getattr(quick, name), getattr(plain, name))
    assert torch.equal(quick.label, plain.label) and quick.layer == "r"


def test_of_any_layer_and_map_pre_rectified_or_behind_the_windows():
    model, image = lively(zfnet()), torch.randn(3, 96, 96)
    for layer in ("conv1", "conv5", "norm1", "fc6", "relu7", "fc8"):
        assert_equal_to_plain(model, image, layer, 30, 22)
    assert_equal_to_plain(model, image, "relu2", 30, 22, map=3, target=5)


FALLS_BACK = (
    r"^occlusion of Odd: first \(Conv2d\) has no window rule; "
    r"the 5 convolutions and poolings after it are recomputed in full \(slower\)$"
)


def test_what_has_no_windows_falls_back_and_says_so_once():
    model = odd(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"))
    with pytest.warns(UserWarning, match=FALLS_BACK) as said:
        assert_equal_to_plain(model, torch.randn(3, 30, 30), "cat", 9, 6)
    assert [warning.filename for warning in said] == [__file__]  # the line that calls occlusion_maps


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
    assert square_boxes((224, 224), (50, 50), (6, 6)).shape == (30, 30, 4)


@pytest.mark.parametrize("length", range(5, 20))
@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("step", range(1, 12))
def test_every_square_hides_something_and_the_last_one_reaches_the_border(length, side, step):
    boxes = square_boxes((length, length), (side, side), (step, step))
    low, high = boxes[:, 0, 0], boxes[:, 0, 2]
    assert (low < high).all() and (high <= length).all()
    assert low.tolist() == list(range(0, int(low[-1]) + 1, step))
    assert high[-1] == length or low[-1] + step >= length


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
    plan = make_plan(graph, graph.nodes, (96, 96), square_boxes((96, 96), (10, 10), (6, 6)))
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


def engine(graph, image, boxes, layer, fill=0.0):
    """The engine behind occlusion_maps, for an image (1, C, H, W)."""
    layer, output = graph.node(layer), graph.output
    clean = graph.run(image, [output, layer], graph.call, keep=set(graph.nodes))
    reads = readout(graph, clean, layer, None, "identity", None)
    return Sweep(graph, image, boxes, torch.full((1, 1, 1), fill, dtype=image.dtype), reads, clean)


def test_memory_does_not_grow_with_the_places():
    graph, image = Graph(zfnet().eval()), torch.randn(1, 3, 96, 96)
    for step in (8, 1):
        with undifferentiated(graph.model):
            batches = engine(graph, image, square_boxes((96, 96), (30, 30), (step, step)), "relu5").batches(2**27, 2)
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
    monkeypatch.setattr(Sweep, "rest", lambda self, edge: (_ for _ in ()).throw(InputError("no more")))
    torch.set_num_threads(2)
    with pytest.raises(InputError, match=r"^no more$"):
        occlusion_maps(zfnet(), torch.randn(3, 96, 96), size=30, step=6)
    assert torch.get_num_threads() == 2


def test_runs_are_as_cheap_as_any():
    assert cheapest_runs(torch.tensor([[3.0], [3.0], [9.0], [9.0]]), 8) == [2, 2]
    assert cheapest_runs(torch.tensor([[3.0]] * 5), 2) in ([1, 2, 2], [2, 1, 2], [2, 2, 1])

    def price(costs, lengths):
        runs = costs.split(lengths)
        return sum(len(run) * run.amax(0).sum() for run in runs) + len(runs) * TILE_COST * costs.sum(1).mean()

    def cuts(count, longest):
        for first in range(1, min(count, longest) + 1):
            yield from ([first, *rest] for rest in cuts(count - first, longest))
        if not count:
            yield []

    for longest in (1, 3, 7):
        costs = torch.randint(1, 20, (7, 3)).double()
        best = min(price(costs, lengths) for lengths in cuts(7, longest))
        assert price(costs, cheapest_runs(costs, longest)) == pytest.approx(float(best))


# ---- the two laws of a view ------------------------------------------------------------------------------------------


class Random(nn.Module):
    """Convolutions of any stride, padding, dilation and groups, poolings, sums and joins, in any order."""

    def __init__(self, seed):
        super().__init__()
        draw = random.Random(seed)
        self.steps, channels, side = nn.ModuleList(), 4, 31
        for kind in draw.choices(("convolution", "max", "average", "add", "join", "relu"), k=6):
            kernel, stride = draw.randint(1, 3), draw.randint(1, 2) if side > 12 else 1
            padding = draw.randint(0, kernel // 2)
            if kind == "convolution":
                dilation, groups = draw.randint(1, 2), draw.choice((1, 2))
                step = nn.Conv2d(channels, channels, (kernel, 2), stride, padding, dilation, groups)
            elif kind == "max":
                step = nn.MaxPool2d(kernel, stride, padding)
            elif kind == "average":
                step = nn.AvgPool2d(kernel, stride, padding)
            else:
                step = nn.Conv2d(channels, channels, 3, padding=1) if kind != "relu" else nn.ReLU()
            self.steps.append(step)
            step.kind, side = kind, side // stride
            channels *= 2 if kind == "join" else 1
        self.first, self.head = nn.Conv2d(3, 4, 3, draw.randint(1, 2), 1), nn.Conv2d(channels, 2, 2)

    def forward(self, x):
        x = self.first(x)
        for step in self.steps:
            y = step(x)
            x = x + y if step.kind == "add" else torch.cat([x, y], 1) if step.kind == "join" else y
        return self.head(x)


def random_graph(seed):
    torch.manual_seed(seed)
    graph = Graph(Random(seed).double().eval())
    return graph, torch.randn(2, 3, 31, 27, dtype=torch.float64), graph.output


def assert_place_is_the_transpose_of_read(view, graph, values):
    """<read(x), y> == <x, place(y)>, of what `read` does to x: not of the constants that it lays beside it."""
    checked = 0
    for node in values:
        for source in node.all_input_nodes:
            if getattr(values[source], "ndim", 0) == 4:
                x = torch.randn_like(values[source])
                zero = view.read(node, source, torch.zeros_like(x))
                seen = (view.read(node, source, x.clone()) - zero).nan_to_num(0.0)  # -inf outside of a max pool's input
                signal = torch.randn_like(seen)
                back = view.place(node, source, signal)
                assert back.shape == x.shape
                assert float((seen * signal).sum()) == pytest.approx(float((x * back).sum()), rel=1e-9, abs=1e-9)
                checked += 1
    assert checked >= len(graph.layers)


@pytest.mark.parametrize("seed", range(12))
def test_the_windows_of_squares_keep_the_laws(seed):
    graph, images, last = random_graph(seed)
    boxes = square_boxes((31, 27), (7, 5), (8, 11))
    with undifferentiated(graph.model):
        sweep = engine(graph, images[:1], boxes, graph.names[last], fill=0.7)
        assert last in sweep.plan.changes
        for batch in sweep.batches(2**27, 1):
            for rows, columns in batch:
                view = SquareWindows(graph, sweep.plan, sweep.clean, rows, columns)
                values = graph.run(view.occluded(sweep.fill), [last], view.call, set(graph.nodes), view.read)
                assert_place_is_the_transpose_of_read(view, graph, values)
                occluded = []
                for top, left, bottom, right in boxes[rows.squares][:, columns.squares].flatten(0, 1).tolist():
                    occluded.append(images[0].clone())
                    occluded[-1][:, top:bottom, left:right] = 0.7
                plain = graph.run(torch.stack(occluded), [last], graph.call, set(graph.nodes))
                for node in sweep.plan.changes:  # `call` finds the border already read
                    torch.testing.assert_close(view.whole(node, values[node]), plain[node], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", range(12))
def test_whole_maps_keep_the_laws(seed):
    graph, images, last = random_graph(seed)
    with undifferentiated(graph.model):
        view = WholeMaps(graph)
        values = graph.run(images, [last], view.call, set(graph.nodes), view.read)
        assert_place_is_the_transpose_of_read(view, graph, values)
        torch.testing.assert_close(values[last], graph.model(images), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", range(12))
def test_the_windows_of_units_keep_the_laws(seed):
    graph, images, last = random_graph(seed)
    with undifferentiated(graph.model):
        plain = graph.model(images)
        image, row, column = torch.cartesian_prod(torch.arange(2), *map(torch.arange, plain.shape[2:])).unbind(1)
        shapes = graph.shapes((31, 27), last)
        view = UnitWindows(
            graph, places_of(graph, last, torch.ones(shapes[last][1], dtype=torch.bool), shapes), shapes, row, column
        )
        values = graph.run(view.cut(images, image.tolist()), [last], view.call, set(graph.nodes), view.read)
        assert_place_is_the_transpose_of_read(view, graph, values)
        torch.testing.assert_close(values[last][:, :, 0, 0], plain[image, :, row, column], rtol=1e-10, atol=1e-10)


# ---- the score of any output -----------------------------------------------------------------------------------------


def headed(*head, outputs=5, channels=3):
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, outputs),
        *head,
    ).eval()


class Functional(nn.Module):
    """A network whose last steps are a function's."""

    def __init__(self, function, outputs=5):
        super().__init__()
        self.network, self.function = headed(outputs=outputs), function

    def forward(self, x):
        return self.function(self.network(x))


def softmax(outputs):
    return outputs.softmax(1)


# a network's end, and what makes its outputs probabilities
ENDS = {
    "logits": (lambda: headed(), softmax),
    "dropout": (lambda: headed(nn.Dropout()), softmax),
    "Softmax": (lambda: headed(nn.Softmax(1)), torch.clone),
    "Softmax, Identity": (lambda: headed(nn.Softmax(1), nn.Identity()), torch.clone),
    "LogSoftmax": (lambda: headed(nn.LogSoftmax(1)), torch.exp),
    "Sigmoid": (lambda: headed(nn.Sigmoid()), torch.clone),
    "LogSigmoid": (lambda: headed(nn.LogSigmoid()), torch.exp),
    "F.softmax": (lambda: Functional(lambda x: F.softmax(x, 1)), torch.clone),
    "torch.softmax": (lambda: Functional(lambda x: torch.softmax(x, 1)), torch.clone),
    "Tensor.softmax": (lambda: Functional(lambda x: x.softmax(-1)), torch.clone),
    "softmax, view": (lambda: Functional(lambda x: x[:, :, None, None].softmax(1).view(-1, 5)), torch.clone),
    "F.log_softmax": (lambda: Functional(lambda x: F.log_softmax(x, dim=1)), torch.exp),
    "Tensor.log_softmax": (lambda: Functional(lambda x: x.log_softmax(1)), torch.exp),
    "torch.sigmoid": (lambda: Functional(torch.sigmoid), torch.clone),
    "F.sigmoid": (lambda: Functional(F.sigmoid), torch.clone),
    "scaled": (lambda: Functional(lambda x: 3 * x), softmax),
    "a gate, not an end": (lambda: Functional(lambda x: x * torch.sigmoid(x)), softmax),
    "fully convolutional": (lambda: Functional(lambda x: x[:, :, None, None]), lambda x: x.flatten(1).softmax(1)),
}


@pytest.mark.parametrize("incremental", [True, False])
@pytest.mark.parametrize("end", ENDS)
def test_the_score_is_the_networks_own_probability(end, incremental):
    make, probabilities = ENDS[end]
    model, image = make(), torch.randn(3, 24, 20)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(30)
        own = probabilities(model(image[None]))[0]
    maps = occlusion_maps(model, image, size=10, step=7, incremental=incremental)
    assert (maps.target, maps.clean[2]) == (int(own.argmax()), int(own.argmax()))
    assert maps.clean[1] == pytest.approx(float(own.max()), rel=1e-5)
    readings = (x.flatten(0, 1).tolist() for x in (maps.boxes, maps.probability, maps.label))
    for (top, left, bottom, right), *reading in zip(*readings, strict=True):
        occluded = image.clone()
        occluded[:, top:bottom, left:right] = 0
        with torch.no_grad():
            own = probabilities(model(occluded[None]))[0]
        assert reading == [pytest.approx(float(own[maps.target]), rel=1e-4), int(own.argmax())]


# a network's end with one output, and what makes it a probability
SINGLE_ENDS = {
    "logit": (lambda: headed(outputs=1), torch.sigmoid),
    "probability": (lambda: headed(nn.Sigmoid(), outputs=1), torch.clone),
    "logarithm": (lambda: headed(nn.LogSigmoid(), outputs=1), torch.exp),
    "squeezed": (lambda: Functional(lambda x: x.squeeze(1), outputs=1), torch.sigmoid),
    "squeezed whole": (lambda: Functional(lambda x: torch.sigmoid(x).squeeze(), outputs=1), torch.clone),
    "told": (lambda: headed(outputs=1), torch.sigmoid),
}


@pytest.mark.parametrize("end", SINGLE_ENDS)
def test_one_output_is_the_probability_of_class_1(end):
    make, probability = SINGLE_ENDS[end]
    model, image = make(), torch.randn(3, 24, 24)
    with torch.no_grad():
        own = float(probability(model(image[None])))
    options = {"size": 12, "step": 12, "score": "sigmoid" if end == "told" else "auto"}
    maps = occlusion_maps(model, image, **options)
    assert (maps.target, maps.clean[1:]) == (1, (pytest.approx(own, rel=1e-5), int(own > 0.5)))
    assert torch.equal(maps.label, (maps.probability > 0.5).long())
    other = occlusion_maps(model, image, target=0, **options)
    torch.testing.assert_close(other.probability, 1 - maps.probability)
    assert torch.equal(other.label, maps.label)
    with pytest.raises(InputError, match=r"^no class 2 in the network: there are 2$"):
        occlusion_maps(model, image, target=2, **options)


def test_scores_by_name_and_by_a_function():
    model, image = headed(), torch.randn(3, 24, 24)
    with torch.no_grad():
        logits = model(image[None])[0]
    clean = {
        score: occlusion_maps(model, image, size=12, step=12, target=2, score=score).clean[1]
        for score in ("softmax", "sigmoid", "identity", "exp")
    }
    assert clean == pytest.approx(
        {
            "softmax": float(logits.softmax(0)[2]),
            "sigmoid": float(logits.sigmoid()[2]),
            "identity": float(logits[2]),
            "exp": float(logits.exp()[2]),
        }
    )
    margin = occlusion_maps(model, image, size=12, step=12, score=lambda outputs: outputs[:, 2] - outputs[:, 0])
    assert margin.clean[1] == pytest.approx(float(logits[2] - logits[0]), rel=1e-5)
    assert (margin.target, margin.clean[2]) == (None, int(logits.argmax()))


def test_a_regression_of_one_quantity_has_no_label():
    model, image = headed(outputs=1), torch.randn(3, 24, 24)
    maps = occlusion_maps(model, image, size=12, step=12, score="identity")
    assert (maps.target, maps.label, maps.clean[2]) == (0, None, None)
    assert maps.clean[1] == pytest.approx(float(model(image[None]).detach()), rel=1e-5)


@pytest.mark.parametrize("incremental", [True, False])
def test_a_segmentation_is_summed_over_its_places(incremental):
    model, image = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)), torch.randn(3, 20, 20)
    with torch.no_grad():
        sums = model(image[None])[0].sum((1, 2))
        area = model(image[None]).softmax(1)[0, 1].sum()
    options = {"size": 5, "step": 5, "incremental": incremental}
    maps = occlusion_maps(model, image, score="identity", **options)
    assert (maps.target, maps.label) == (int(sums.argmax()), None)
    assert maps.clean[1] == pytest.approx(float(sums.max()), rel=1e-5)
    assert occlusion_maps(model, image, score="softmax", target=1, **options).clean[1] == pytest.approx(
        float(area), rel=1e-5
    )
    largest = occlusion_maps(model, image, score=lambda outputs: outputs[:, 1].amax((1, 2)), **options)
    assert largest.probability.shape == (4, 4)


class Squashed(nn.Module):
    """Probabilities that no known step makes."""

    def forward(self, x):
        return x.exp() / x.exp().sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
            {},
            r"^Sequential gives outputs of shape \(N, 4, 18, 18\), not \(N, classes\): give score=",
        ),
        (headed(Squashed()), {}, r"^the outputs of Sequential add up to 1, but its last step is truediv: give"),
        (headed(), {"score": "probabilities"}, r"^no score 'probabilities'.*; available: auto, softmax"),
        (headed(outputs=1), {"score": "softmax"}, r"^Sequential has one output, whose softmax is always 1"),
        (headed(), {"score": torch.sigmoid, "target": 1}, "^score is a function, which chooses the class itself"),
        (headed(), {"score": torch.sigmoid}, r"^score gives \(9, 5\) for 9 images; it must give one number for each$"),
        (nn.Sequential(nn.Flatten(), nn.Linear(1200, 3)), {}, r"^no layer of Sequential gives feature maps"),
    ],
)
def test_a_score_that_the_network_does_not_tell_is_one_line(model, options, says):
    with pytest.raises(InputError, match=says) as error:
        occlusion_maps(model, torch.randn(3, 20, 20), size=5, **options)
    assert "\n" not in str(error.value)


# ---- any model, any image --------------------------------------------------------------------------------------------


class Tutorial(nn.Module):
    """PyTorch's tutorial network: a `view` behind the convolutions."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5), nn.Linear(400, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv2(F.max_pool2d(F.relu(self.conv1(x)), 2))), 2)
        return self.fc(x.view(-1, 16 * 5 * 5))


@pytest.mark.parametrize("incremental", [True, False])
def test_a_view_of_the_last_maps(incremental):
    image = torch.randn(32, 32, 3).permute(2, 0, 1)  # as an array of a picture is laid out
    maps = assert_equal_to_plain(Tutorial().eval(), image.contiguous(), "relu_1", 8, 6, incremental=incremental)
    again = occlusion_maps(Tutorial().eval(), image, size=8, step=6, incremental=incremental)
    assert again.probability.shape == maps.probability.shape


@pytest.mark.parametrize("incremental", [True, False])
def test_sums_of_half_precision_do_not_overflow(incremental):
    model, image = headed(), torch.randn(3, 120, 120)
    nn.init.constant_(model[0].bias, 9.0)
    maps = occlusion_maps(model.half(), image, size=60, step=60, incremental=incremental)
    assert maps.activity.dtype == maps.probability.dtype == torch.float32
    true = occlusion_maps(model.float(), image, size=60, step=60, map=maps.map, target=maps.target)
    assert true.activity.min() > torch.finfo(torch.float16).max
    torch.testing.assert_close(maps.activity, true.activity, rtol=1e-2, atol=0)
    torch.testing.assert_close(maps.probability, true.probability, rtol=2e-2, atol=0)
    assert maps.heat("activity").isfinite().all()


@pytest.mark.parametrize("channels", [1, 4, 7])
def test_images_of_any_number_of_channels(channels):
    model, image = headed(channels=channels), torch.randn(channels, 24, 24)
    for fill in (0.5, tuple(range(channels))):
        assert_equal_to_plain(model, image, "1", 8, 8, fill)
    with pytest.raises(InputError, match=rf"give one number, or one for each of {channels} channels$"):
        occlusion_maps(model, image, size=8, fill=(0.0,) * (channels + 1))


def test_a_fully_connected_layer_with_a_forward_of_its_own_keeps_it():
    class Normed(nn.Linear):
        def forward(self, x):
            return F.linear(x, F.normalize(self.weight), self.bias)

    body = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten()
    model = nn.Sequential(*body, Normed(8 * 18 * 18, 6)).eval()
    assert_equal_to_plain(model, torch.randn(3, 20, 20), "1", 6, 7)


def test_onednns_fully_connected_layer_is_torchs():
    layer, x = nn.Linear(300, 70), torch.randn(33, 300)
    with torch.no_grad():
        torch.testing.assert_close(fully_connected(layer, x), layer(x), rtol=1e-5, atol=1e-5)
        assert torch.equal(fully_connected(layer.double(), x.double()), layer(x.double()))


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"size": 97}, r"^a square of 97 x 97 pixels does not fit in an image of 96 x 96$"),
        ({"size": (0, 5)}, r"^a square of 0 x 5 pixels does not fit"),
        ({"step": 0}, r"^the step is 0 pixels; give at least 1$"),
        ({"fill": (1.0, 2.0)}, r"^fill is \(1.0, 2.0\); give one number, or one for each of 3 channels$"),
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


@pytest.mark.parametrize("image", [Image.new("RGB", (96, 96)), torch.zeros(96, 96, 3).numpy()])
def test_an_image_that_is_not_a_tensor_is_one_line(image):
    with pytest.raises(InputError, match=rf"^image is an? {type(image).__name__}; give a tensor"):
        occlusion_maps(zfnet(), image)


def test_the_model_is_left_as_it_was():
    model = zfnet().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    occlusion_maps(model, torch.randn(3, 96, 96), size=30, step=30)
    assert model.training
    assert model.relu1.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
