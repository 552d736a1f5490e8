"""Likeness against laws, slow twins, and pictures whose likeness is known; which weights are shuffled."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr
from torch import Tensor, nn

from zfnet.analysis.likeness import cosine, hog_correlation, similarity, ssim, stages, with_shuffled_weights
from zfnet.graph import Graph

MEASURES = (similarity, cosine, ssim, hog_correlation)
measures = pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.__name__)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, rows: int, columns: int, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, channels, rows, columns, generator=seeded(seed), dtype=torch.float64)


def everywhere(count: int, rows: int, columns: int) -> Tensor:
    return torch.ones(count, rows, columns, dtype=torch.bool)


def cornered(count: int, rows: int, columns: int) -> Tensor:
    """Fields that leave the image at the top and at the left."""
    inside = everywhere(count, rows, columns)
    inside[:, :3], inside[:, :, :1] = False, False
    return inside


# ---- laws ------------------------------------------------------------------------------------------------------------


@measures
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(3, 3), (7, 7), (12, 16)], ids=str)
def test_pictures_that_differ_in_scale_are_alike(measure, dtype, size):
    a, inside = (50 * pictures(2, *size)).to(dtype), everywhere(2, *size)
    values = measure(a, 4 * a, inside)
    assert values.dtype == torch.float64 and values.tolist() == pytest.approx([1, 1], abs=1e-12)


@measures
def test_likeness_is_symmetric_and_of_each_pair(measure):
    a, b, inside = pictures(4, 9, 12), pictures(4, 9, 12, seed=1), cornered(4, 9, 12)
    b[0], b[1], b[2] = -a[0], a[1] + 0.1 * b[1], a[2].flip(0)
    values = measure(a, b, inside)
    assert values.equal(measure(b, a, inside)) and values.abs().max() <= 1
    assert values.tolist() == pytest.approx([float(measure(a[n : n + 1], b[n : n + 1], inside[:1])) for n in range(4)])
    assert values[1] > values[3]
    assert values[0] == pytest.approx(-1 if measure is cosine else 1)
    if measure is not cosine:  # what energies have forgotten: signs, and which channel it was
        assert values[2] == pytest.approx(1)
        assert measure(a, b[:, :1], inside).shape == (4,)


@measures
def test_float32_is_near(measure):
    a, b, inside = pictures(3, 9, 12), pictures(3, 9, 12, seed=1), cornered(3, 9, 12)
    torch.testing.assert_close(measure(a.float(), b.float(), inside), measure(a, b, inside), rtol=0, atol=1e-4)


@measures
def test_pixels_beyond_the_image_count_for_nothing(measure):
    a, b, inside = pictures(2, 9, 12), pictures(2, 9, 12, seed=1), cornered(2, 9, 12)
    other = torch.where(inside[:, None], a, 99.0)
    torch.testing.assert_close(measure(a, b, inside), measure(other, b, inside))
    assert not torch.allclose(measure(a, b, everywhere(2, 9, 12)), measure(other, b, everywhere(2, 9, 12)))
    assert measure(a, b, torch.zeros_like(inside)).isnan().all()


@measures
@pytest.mark.parametrize("level", [0.0, 3.0])
def test_a_picture_without_structure_is_like_nothing(measure, level):
    a, b, inside = pictures(2, 9, 12), pictures(2, 9, 12, seed=1), cornered(2, 9, 12)
    a[0] = torch.where(inside[0], level, 5.0)  # constant, as far as it lies in the image
    expected = measure is not cosine or level == 0
    assert measure(a, b, inside).isnan().tolist() == [expected, False]
    assert measure(a, a, inside).isnan().tolist() == [expected, False]


@measures
def test_independent_noise_is_not_alike(measure):
    values = measure(pictures(20, 16, 16), pictures(20, 16, 16, seed=1), everywhere(20, 16, 16))
    assert abs(float(values.mean())) < (0.25 if measure is ssim else 0.05)  # the mean magnitudes are alike


# ---- ranks -----------------------------------------------------------------------------------------------------------


def test_similarity_is_spearmans_of_energies():
    a, b, inside = pictures(3, 6, 7).round(), pictures(3, 6, 7, seed=1).round(), cornered(3, 6, 7)  # with ties
    expected = [
        spearmanr(x.square().sum(0)[mask], y.square().sum(0)[mask]).statistic
        for x, y, mask in zip(a, b, inside, strict=True)
    ]
    assert similarity(a, b, inside).tolist() == pytest.approx(expected, abs=1e-12)


def by_regression(a: Tensor, b: Tensor, given: Tensor) -> float:
    """The correlation of what least squares leaves of the ranks of two energies when those of a field are known."""
    x, y, z = (rankdata(v.numpy().ravel()) for v in (a.square().sum(0), b.square().sum(0), given))
    known = np.stack([np.ones_like(z), z], 1)
    left = [v - known @ np.linalg.lstsq(known, v, rcond=None)[0] for v in (x, y)]
    return np.corrcoef(*left)[0, 1]


def test_partial_correlation_is_that_of_what_regression_leaves():
    a, b, given = pictures(3, 6, 7).round(), pictures(3, 6, 7, seed=1), pictures(3, 6, 7, 1, seed=2)[:, 0].round()
    b += 0.7 * a
    expected = [by_regression(*row) for row in zip(a, b, given, strict=True)]
    values = similarity(a, b, everywhere(3, 6, 7), given)
    assert values.tolist() == pytest.approx(expected, abs=1e-12)
    ab, ag, bg = (
        similarity(x, y, everywhere(3, 6, 7)) for x, y in ((a, b), (a, given.abs()[:, None]), (b, given.abs()[:, None]))
    )
    by_formula = similarity(a, b, everywhere(3, 6, 7), given.abs())
    torch.testing.assert_close(by_formula, (ab - ag * bg) / ((1 - ag**2) * (1 - bg**2)).sqrt())


def field(count: int, side: int) -> Tensor:
    """Most in the middle, as layers' fields are."""
    offsets = (torch.arange(side, dtype=torch.float64) - side // 2).square()
    return torch.exp(-(offsets[:, None] + offsets) / (side / 3) ** 2).expand(count, side, side)


def test_what_is_alike_by_the_field_alone_is_not_alike_given_the_field():
    shared, inside = field(40, 19), everywhere(40, 19, 19)
    a, b = (shared[:, None] * torch.exp(0.3 * pictures(40, 19, 19, 1, seed=n)) for n in (1, 2))
    plain, partial = similarity(a, b, inside), similarity(a, b, inside, shared)
    assert plain.min() > 0.7
    assert abs(float(partial.mean())) < 4 / (40 * 19 * 19) ** 0.5 and partial.abs().max() < 4 / 19
    alike = shared[:, None] * torch.exp(0.3 * (pictures(40, 19, 19, 1, seed=1) + pictures(40, 19, 19, 1, seed=3)))
    assert similarity(a, alike, inside, shared).min() > 0.4
    assert similarity(a, a, inside, shared).tolist() == pytest.approx([1] * 40)


def test_a_field_that_says_nothing_and_one_that_says_all():
    a, b, inside = pictures(2, 9, 12), pictures(2, 9, 12, seed=1), cornered(2, 9, 12)
    flat = torch.full((2, 9, 12), 3.0)
    torch.testing.assert_close(similarity(a, b, inside, flat), similarity(a, b, inside), rtol=0, atol=1e-12)
    assert similarity(a, b, inside, a.square().sum(1).sqrt()).isnan().all()
    beyond = torch.where(inside, flat, pictures(2, 9, 12, 1, seed=2)[:, 0])
    assert similarity(a, b, inside, beyond).equal(similarity(a, b, inside, flat))


# ---- structure -------------------------------------------------------------------------------------------------------


def magnitude(picture: Tensor, inside: Tensor) -> np.ndarray:
    """The root of the energy in the image, of which the largest 0.5 % are 1."""
    plane = np.sqrt((picture.numpy() ** 2).sum(0)) * inside.numpy()
    values = np.sort(plane[plane > 0])
    return np.minimum(plane / values[math.ceil(0.995 * len(values)) - 1], 1)


def slow_ssim(a: Tensor, b: Tensor, inside: Tensor, side: int) -> float:
    """Wang et al.'s equation 13, one window after the other."""
    x, y, values = magnitude(a, inside), magnitude(b, inside), []
    for row, column in inside.nonzero().tolist():
        pixels = [
            (r, c, math.exp(-((r - row) ** 2 + (c - column) ** 2) / 2 / (1.5 * side / 11) ** 2))
            for r, c in inside.nonzero().tolist()
            if max(abs(r - row), abs(c - column)) <= side // 2
        ]
        weights = np.array([w for *_, w in pixels])
        weights /= weights.sum()
        s, t = (np.array([plane[r, c] for r, c, _ in pixels]) for plane in (x, y))
        m, n = weights @ s, weights @ t
        covariance = weights @ ((s - m) * (t - n))
        variances = weights @ (s - m) ** 2 + weights @ (t - n) ** 2
        values.append((2 * m * n + 1e-4) * (2 * covariance + 9e-4) / (m * m + n * n + 1e-4) / (variances + 9e-4))
    return float(np.mean(values))


@pytest.mark.parametrize(("size", "side"), [((13, 15), 11), ((9, 8), 7), ((4, 6), 3)], ids=str)
def test_structural_similarity_against_a_loop(size, side):
    a, b, inside = pictures(2, *size), pictures(2, *size, seed=1), cornered(2, *size)
    b[0] += 2 * a[0]
    expected = [slow_ssim(*row, side) for row in zip(a, b, inside, strict=True)]
    assert ssim(a, b, inside).tolist() == pytest.approx(expected, abs=1e-12)


def slow_histograms(picture: Tensor, inside: Tensor, cells: tuple[int, int]) -> np.ndarray:
    """Blocks (B, 32) of a picture, NaN where no gradient of the image is in a block."""
    plane, (rows, columns) = magnitude(picture, inside), inside.shape
    lengths, whole = np.zeros((rows, columns, 8)), np.zeros((rows, columns), dtype=bool)
    for r, c in np.ndindex(rows, columns):
        up, down, left, right = max(r - 1, 0), min(r + 1, rows - 1), max(c - 1, 0), min(c + 1, columns - 1)
        whole[r, c] = inside[up : down + 1, left : right + 1].all()
        across, along = plane[r, right] - plane[r, left], plane[down, c] - plane[up, c]
        angle = math.degrees(math.atan2(along, across)) % 180
        for n in range(8):  # triangles of 22.5 degrees to each side, around the circle
            apart = min(abs(angle - 22.5 * n), 180 - abs(angle - 22.5 * n))
            lengths[r, c, n] = whole[r, c] * math.hypot(across, along) * max(0, 1 - apart / 22.5)
    ranges = [
        [slice(n * extent // count, -(-(n + 1) * extent // count)) for n in range(count)]
        for extent, count in zip((rows, columns), cells, strict=True)
    ]
    blocks = []
    for i, j in np.ndindex(cells[0] - 1, cells[1] - 1):
        four = [(ranges[0][i + r], ranges[1][j + c]) for r in (0, 1) for c in (0, 1)]
        block = np.concatenate([lengths[cell].mean((0, 1)) for cell in four])
        seen = any(whole[cell].any() for cell in four)
        blocks.append(block / max(np.linalg.norm(block), 1e-5) if seen else np.full(32, np.nan))
    return np.stack(blocks)


@pytest.mark.parametrize(("size", "cells"), [((25, 13), (8, 4)), ((7, 9), (2, 3)), ((8, 8), (2, 2))], ids=str)
def test_histograms_of_gradients_against_a_loop(size, cells):
    a, b, inside = pictures(2, *size), pictures(2, *size, seed=1), cornered(2, *size)
    inside[1, :, : size[1] // 2 + 2] = False  # blocks with nothing in the image
    b += a
    expected = []
    for row in range(2):
        x, y = (slow_histograms(picture[row], inside[row], cells).ravel() for picture in (a, b))
        expected.append(np.corrcoef(x[~np.isnan(x)], y[~np.isnan(y)])[0, 1])
    assert hog_correlation(a, b, inside).tolist() == pytest.approx(expected, abs=1e-12)


def grating(angle: float, phase: float, side: int = 24) -> Tensor:
    """Whose brightness runs in a direction of so many degrees: (1, side, side), above 0."""
    x = torch.arange(side, dtype=torch.float64)
    along = math.cos(math.radians(angle)) * x + math.sin(math.radians(angle)) * x[:, None]
    return 2 + torch.cos(0.8 * along + phase)[None]


def test_gratings_are_alike_by_orientation():
    turned, moved = (torch.stack([grating(22.5 * n, phase) for n in range(8)]) for phase in (0.3, 1.5))
    inside = everywhere(8, 24, 24)
    by_turn = torch.stack([hog_correlation(turned, moved.roll(n, 0), inside) for n in range(8)])
    assert by_turn[0].min() > 0.85  # wherever the stripes lie
    assert (by_turn[0] > by_turn[[1, 7]] + 0.3).all()  # also of the first and the last, which are neighbours
    assert (by_turn[[1, 7]].amin(0) > by_turn[2:7].amax(0)).all() and by_turn[2:7].max() < 0.1
    opposite = torch.stack([grating(22.5 * n + 180, -0.3) for n in range(8)])  # the same gratings
    assert hog_correlation(turned, opposite, inside).tolist() == pytest.approx([1] * 8)


# ---- other weights ---------------------------------------------------------------------------------------------------


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 6, 3)
    )
    nn.init.uniform_(model[3].weight)
    return model.eval()


@pytest.mark.parametrize(
    ("layer", "below", "shuffled"),
    [
        ("4", None, {"0.weight", "2.weight"}),  # a cascade from layer 4, whose last step this is
        ("4", "1", {"2.weight"}),  # its first step; or layer 4 alone
        ("1", None, {"0.weight"}),  # the layer below alone
        ("5", "4", {"5.weight"}),
        ("4", "4", set()),
    ],
)
def test_which_weights_are_shuffled(layer, below, shuffled):
    model = network()
    before = copy.deepcopy(model.state_dict())
    after = with_shuffled_weights(Graph(model), layer, below, seeded()).state_dict()
    assert {name for name, weight in before.items() if not weight.equal(after[name])} == shuffled
    for name, weight in before.items():
        assert weight.equal(model.state_dict()[name])  # the model itself is left alone
        assert after[name].flatten().sort().values.equal(weight.flatten().sort().values)


class Block(nn.Module):
    """A convolution, two branches that are joined, and a third that leads around them and a convolution behind them."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.last = (nn.Conv2d(n, 4, 1) for n in (3, 4, 4, 8))

    def forward(self, x):
        x = self.stem(x).relu()
        return x + self.last(torch.cat([self.a(x), self.b(x)], 1))


def test_parts_of_a_chain_and_of_a_network_with_branches():
    assert stages(Graph(network()), "4") == [("2", "1"), ("0", None)]
    assert stages(Graph(network()), "1") == [("0", None)]
    graph = Graph(Block().eval())
    assert stages(graph, "add") == [("add", "relu"), ("stem", None)]
    assert stages(graph, "last") == [("last", "cat"), ("cat", "relu"), ("stem", None)]
    (top, below), _ = stages(graph, "add")
    after = with_shuffled_weights(graph, top, below, seeded()).state_dict()
    assert {name for name, weight in graph.model.state_dict().items() if not weight.equal(after[name])} == {
        "a.weight",
        "b.weight",
        "last.weight",
    }


def test_a_layer_is_shuffled_in_the_same_way_however_deep_the_cascade_goes():
    graph = Graph(network())
    whole, above, again = (
        with_shuffled_weights(graph, "4", below, seeded(seed)).state_dict()["2.weight"]
        for below, seed in ((None, 0), ("1", 0), (None, 1))
    )
    assert whole.equal(above) and not whole.equal(again)


def test_weights_of_functional_layers_are_shuffled_too():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.threshold = (
                nn.Parameter(torch.arange(108.0).reshape(4, 3, 3, 3)),
                nn.Parameter(torch.arange(4.0)),
            )

        def forward(self, x):
            return nn.functional.relu(nn.functional.conv2d(x, self.weight, self.threshold))

    model = Functional().eval()
    mixed = with_shuffled_weights(Graph(model), "relu", None, seeded())
    assert not mixed.weight.equal(model.weight) and mixed.weight.flatten().sort().values.equal(model.weight.flatten())
    assert mixed.threshold.equal(model.threshold)
