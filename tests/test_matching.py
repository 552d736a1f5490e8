"""Correlations and matching: equal to numpy's of all activations at once, and laws of what may not change them."""

import copy
import itertools

import pytest
import torch
from oracles import correlations as by_numpy
from oracles import linear_cka
from torch import Tensor, nn
from torch.utils.data import Dataset

from zfnet import Deconvnet, InputError, ZFNet
from zfnet.analysis.matching import (
    Similarity,
    agreement,
    bipartite_matching,
    correlations,
    match,
    random_matchings,
    semi_matching,
    similarities,
    split_half_reliability,
)
from zfnet.errors import BrokenImage

LAYERS = ["conv1", "relu1", "pool2", "relu5", "fc8"]
MAPS = (6, 8, 8, 8, 8)


def network(seed: int, maps: tuple[int, ...] = MAPS) -> ZFNet:
    torch.manual_seed(seed)
    return ZFNet(10, maps=maps, hidden=(8,), image_size=64, init="he").double().eval()


@pytest.fixture(scope="module")
def first() -> ZFNet:
    return network(0)


@pytest.fixture(scope="module")
def second() -> ZFNet:
    return network(1, (6, 8, 8, 8, 5))


@pytest.fixture(scope="module")
def images() -> Tensor:
    torch.manual_seed(2)
    return torch.randn(11, 3, 64, 64).double()


@pytest.fixture(scope="module")
def matrices(first, second, images) -> dict[str, Tensor]:
    return correlations(first, second, images, LAYERS, batch_size=4, progress=False)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_equal_to_numpy_of_all_activations_at_once(matrices, first, second, images) -> None:
    a, b = (Deconvnet(model).record(images, LAYERS).activations for model in (first, second))
    for layer in LAYERS:
        close(matrices[layer], by_numpy(a[layer], b[layer]))
    assert matrices["relu5"].shape == (8, 5)


@pytest.mark.parametrize("batch_size", [1, 11])
def test_batches_do_not_matter(matrices, first, second, images, batch_size: int) -> None:
    again = correlations(first, second, images, LAYERS, batch_size=batch_size, progress=False)
    for layer in LAYERS:
        close(again[layer], matrices[layer])


def test_exchanged_networks_transpose(matrices, first, second, images) -> None:
    swapped = correlations(second, first, images, LAYERS, batch_size=4, progress=False)
    for layer in LAYERS:
        close(swapped[layer], matrices[layer].T)


def test_far_from_zero_nothing_is_lost() -> None:
    """Where a mean of 1e6 deviations would leave sums of squares four digits."""
    still = nn.Sequential(nn.Conv2d(3, 4, 1)).double()
    lifted = copy.deepcopy(still)
    lifted[0].bias.data += 1e6
    images = torch.randn(5, 3, 4, 4).double()
    maps = [correlations(still, other, images, ["0"], batch_size=2, progress=False)["0"] for other in (still, lifted)]
    torch.testing.assert_close(maps[0], maps[1], rtol=0, atol=1e-8)  # what is lost is lost in the bias itself


def test_a_network_and_itself_with_its_maps_in_another_order(first, images) -> None:
    order = torch.randperm(8)
    mixed = copy.deepcopy(first)
    scale = torch.rand(8, 1, 1, 1).double() + 0.5  # of positive activations: no correlation changes
    mixed.conv5.weight.data = (first.conv5.weight.data * scale)[order]
    mixed.conv5.bias.data = (first.conv5.bias.data * scale.flatten())[order]
    correlation = correlations(first, mixed, images, ["relu5"], batch_size=4, progress=False)["relu5"]
    for matching in (bipartite_matching, semi_matching):
        pairs = matching(correlation)
        assert pairs[:, 0].tolist() == list(range(8))
        assert order[pairs[:, 1]].tolist() == list(range(8))
        close(correlation[tuple(pairs.T)], torch.ones(8).double())


def test_constant_maps_correlate_with_nothing(first, images) -> None:
    model = copy.deepcopy(first)
    model.conv1.weight.data[:2] = 0
    constants = [1 / 3, 0.7, -1e3]  # the first two rounded: their mean need not be exactly themselves
    model.conv1.bias.data[:3] = torch.tensor(constants, dtype=torch.float64)
    correlation = correlations(model, first, images, ["relu1"], batch_size=3, progress=False)["relu1"]
    assert not correlation[:3].any()
    assert correlation[3:].ne(0).all()
    itself = correlations(model, model, images, ["relu1"], batch_size=3, progress=False)["relu1"]
    close(itself.diagonal(), torch.tensor([0, 0, 0, 1, 1, 1]).double())


def test_layers_of_other_names(first, images) -> None:
    other = nn.Sequential(first.conv1, nn.ReLU(inplace=True))
    correlation = correlations(first, other, images, {"conv1": "0", "relu1": "1"}, progress=False)
    for layer in ("conv1", "relu1"):
        close(correlation[layer].diagonal(), torch.ones(6).double())


def test_one_to_one_is_the_best_of_all_permutations() -> None:
    correlation = torch.rand(5, 5).double()
    pairs = bipartite_matching(correlation)
    assert sorted(pairs[:, 1].tolist()) == list(range(5))
    sums = [sum(correlation[i, j] for i, j in enumerate(p)) for p in itertools.permutations(range(5))]
    assert float(correlation[tuple(pairs.T)].sum()) == pytest.approx(float(max(sums)))


def test_worked_example() -> None:
    """Both maps like map 0 best; one of them must do with map 1, and it is the one that loses less."""
    correlation = torch.tensor([[0.9, 0.8], [0.7, 0.1]])
    assert bipartite_matching(correlation).tolist() == [[0, 1], [1, 0]]
    assert semi_matching(correlation).tolist() == [[0, 0], [1, 0]]
    assert bipartite_matching(correlation[:, :1]).tolist() == [[0, 0]]


def test_shuffled_networks_see_different_images(first, images) -> None:
    def shuffled(seed: int, batch_size: int = 64) -> Tensor:
        settings = {"shuffle_seed": seed, "batch_size": batch_size, "progress": False}
        return correlations(first, first, images, ["relu1"], **settings)["relu1"]

    assert shuffled(0).diagonal().abs().max() < 0.2  # of a network and itself, on noise
    close(shuffled(0, batch_size=4), shuffled(0))
    assert not torch.allclose(shuffled(1), shuffled(0))


class Torn(Dataset):
    def __init__(self, images: Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if i == 3:
            raise BrokenImage("cannot load 3.jpg: it is torn")
        return self.images[i], 0


@pytest.mark.parametrize(("count", "torn"), [(2, False), (3, False), (10, False), (10, True)])
def test_shuffled_images_each_once_and_none_with_itself(count: int, torn: bool) -> None:
    """Image n lights map n alone, which then correlates with the map that the other image lights."""
    images = torch.eye(count)[:, None, None, :].repeat(1, 3, 1, 1)
    model, left = nn.Sequential(nn.Flatten()), [n for n in range(count) if n != 3 or not torn]
    for seed in range(10):
        settings = {"shuffle_seed": seed, "batch_size": 4, "workers": 0, "progress": False}
        correlation = correlations(model, model, Torn(images) if torn else images, ["0"], **settings)["0"]
        met = (correlation[:count, :count] > 0.5)[left][:, left].int()
        assert (met.sum(0) == 1).all() and (met.sum(1) == 1).all() and not met.diagonal().any()


def test_images_that_cannot_be_read_are_left_out(first, second, images) -> None:
    rest = torch.cat([images[:3], images[4:]])
    torn, whole = (
        correlations(first, second, data, ["relu5"], batch_size=4, workers=0, progress=False)["relu5"]
        for data in (Torn(images), rest)
    )
    close(torn, whole)
    assert correlations(first, second, Torn(images), ["relu5"], shuffle_seed=0, batch_size=4, progress=False)


def test_networks_are_left_as_they_were(first, second, images) -> None:
    models = [copy.deepcopy(model).train() for model in (first, second)]
    correlations(*models, images, ["relu5"], progress=False)
    assert all(module.training for model in models for module in model.modules())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["relu9"], "no layer of ZFNet 'relu9'"),
        ({"relu1": "relu2"}, "maps of relu1 and relu2 have different sizes \\(30 x 30, 6 x 6\\)"),
        ({"relu5": "fc8"}, "one position"),
        ([], "nothing to correlate: 0 layers"),
    ],
)
def test_refuses_in_words(first, second, images, layers, message: str) -> None:
    with pytest.raises(InputError, match=message):
        correlations(first, second, images, layers, progress=False)


def test_refuses_broken_weights(first, images) -> None:
    broken = copy.deepcopy(first)
    broken.conv1.bias.data[0] = torch.nan
    with pytest.raises(InputError, match="NaN or infinity in conv1"):
        correlations(first, broken, images, ["relu1"], progress=False)


# ---- linear CKA ------------------------------------------------------------------------------------------------------


def compared(x: Tensor, y: Tensor) -> Similarity:
    """Maps (P, C) and (P, D), in batches, by two networks that see them."""
    images = torch.cat([x, y], 1)[:, :, None, None]
    first, second = (
        nn.Sequential(nn.Conv2d(images.shape[1], n, 1, bias=False)).double() for n in (x.shape[1], y.shape[1])
    )
    pick = torch.eye(images.shape[1], dtype=torch.float64)
    first[0].weight.data = pick[: x.shape[1], :, None, None]
    second[0].weight.data = pick[x.shape[1] :, :, None, None]
    return similarities(first, second, images, ["0"], batch_size=7, progress=False)["0"]


def cka(x: Tensor, y: Tensor) -> float:
    return compared(x, y).cka


@pytest.fixture
def maps() -> tuple[Tensor, Tensor]:
    x = torch.randn(40, 5).double()
    return x, x @ torch.randn(5, 4).double() + torch.randn(40, 4).double()


def test_cka_is_that_of_centred_gram_matrices(first, second, images) -> None:
    """The oracle multiplies kernels (P, P) of all positions; here are second moments (C, D), batch by batch."""
    a, b = (Deconvnet(model).record(images, LAYERS).activations for model in (first, second))
    found = similarities(first, second, images, ["relu5", "pool2", "fc8"], batch_size=4, progress=False)
    for layer, similarity in found.items():
        assert similarity.cka == pytest.approx(linear_cka(a[layer], b[layer]), abs=1e-9)
        close(similarity.correlation, by_numpy(a[layer], b[layer]))


def test_cka_of_itself_is_one_and_is_symmetric(maps) -> None:
    x, y = maps
    assert cka(x, x) == pytest.approx(1)
    assert cka(x, y) == pytest.approx(cka(y, x))
    assert 0 < cka(x, y) < 1


def test_cka_is_invariant_to_rotations_scale_and_shift_and_to_no_other_linear_map(maps) -> None:
    x, y = maps
    rotation = torch.linalg.qr(torch.randn(5, 5).double()).Q
    assert cka(3 * x @ rotation + 7, -0.1 * y) == pytest.approx(cka(x, y))
    stretched = x * torch.tensor([100, 1, 1, 1, 1]).double()
    assert cka(stretched, x) < 0.9  # unlike canonical correlations


def test_cka_of_noise_falls_with_the_number_of_positions() -> None:
    few, many = (cka(torch.randn(n, 4).double(), torch.randn(n, 4).double()) for n in (10, 2000))
    assert many < 0.01 < few


def test_cka_of_constant_maps_is_not_a_number() -> None:
    images = torch.randn(6, 3, 4, 4).double()
    still = nn.Sequential(nn.Conv2d(3, 4, 1)).double()
    still[0].weight.data[:] = 0
    similarity = similarities(still, still, images, ["0"], progress=False)["0"]
    assert similarity.cka != similarity.cka and not similarity.varies[0].any()
    assert similarity.dimensions[0] != similarity.dimensions[0]


def test_dimensions_are_one_where_maps_vary_together_and_their_number_where_they_do_not(maps) -> None:
    together = torch.randn(40, 1).double() * torch.randn(1, 5).double()
    apart = torch.linalg.qr(torch.randn(40, 6).double() - 0).Q
    apart = torch.linalg.qr(apart - apart.mean(0)).Q
    assert compared(together, apart).dimensions == pytest.approx((1, 6))
    x, y = maps
    rotation = torch.linalg.qr(torch.randn(5, 5).double()).Q
    values = torch.linalg.eigvalsh(torch.cov(x.T))
    expected = float(values.sum() ** 2 / values.square().sum())
    assert compared(x, y).dimensions[0] == pytest.approx(expected)
    assert compared(3 * x @ rotation + 7, y).dimensions[0] == pytest.approx(expected)


# ---- matched on some images, compared on others ----------------------------------------------------------------------


def similarity(x: Tensor, y: Tensor) -> Similarity:
    varies = [of.std(0) > 0 for of in (x, y)]
    return Similarity(by_numpy(x[:, :, None, None], y[:, :, None, None]), (varies[0], varies[1]), 0.0, (1.0, 1.0))


def noise(seed: int, count: int = 30, maps: int = 12) -> Tensor:
    return torch.randn(count, maps, generator=torch.Generator().manual_seed(seed)).double()


def test_in_noise_a_matching_finds_what_other_images_do_not_have() -> None:
    found = match(similarity(noise(0), noise(1)), similarity(noise(2), noise(3)))
    assert found.fitted.mean() > 0.2  # of chance alone, on the images that maps were paired on
    assert abs(found.correlation.mean()) < 0.1
    assert found.agreement < 0.4
    assert found.random.mean().abs() < 0.1


def test_maps_in_another_order_and_a_little_noise_are_found_again() -> None:
    order = torch.randperm(12)
    halves = [similarity(x := noise(n), x[:, order] + noise(n + 2) / 2) for n in (0, 1)]
    found = match(*halves)
    assert order[found.pairs[:, 1]].tolist() == found.pairs[:, 0].tolist() == list(range(12))
    assert found.agreement == 1
    assert 0.8 < found.correlation.mean() <= found.best.mean()
    assert found.random.max() < found.correlation.mean()


def test_a_half_and_itself_agree_in_all() -> None:
    half = similarity(noise(0), noise(1))
    found = match(half, half)
    assert torch.equal(found.fitted, found.correlation)
    assert found.agreement == 1 and found.reliability == pytest.approx(1)
    assert found.correlation.mean() > found.random.max()  # the largest sum of all pairings


def test_a_matching_is_over_live_maps_alone() -> None:
    x, y = noise(0), noise(1)
    x[:, 3] = y[:, [5, 6]] = 0
    other = noise(2)
    other[:, 4] = 1
    found = match(similarity(x, y), similarity(other, noise(3)))
    assert [int(mask.sum()) for mask in found.live] == [10, 10]
    assert not {3, 4} & set(found.pairs[:, 0].tolist()) and not {5, 6} & set(found.pairs[:, 1].tolist())
    assert len(found.pairs) == len(found.correlation) == len(found.best) == 10
    nothing = match(similarity(x * 0, y), similarity(x, y))
    assert nothing.pairs.shape == (0, 2) and nothing.reliability is None and nothing.agreement != nothing.agreement


def test_random_pairs_have_the_mean_of_all_pairs() -> None:
    correlation = torch.rand(6, 4).double()
    means = random_matchings(correlation, 4000)
    assert len(means) == 4000 and means.max() <= correlation[tuple(bipartite_matching(correlation).T)].mean()
    assert float(means.mean()) == pytest.approx(float(correlation.mean()), abs=0.01)
    assert torch.equal(random_matchings(correlation, 5, seed=1), random_matchings(correlation, 5, seed=1))
    assert not torch.equal(random_matchings(correlation, 5, seed=1), random_matchings(correlation, 5, seed=2))
    every = {float(correlation[torch.arange(2), torch.tensor(p)].mean()) for p in ([0, 1], [1, 0])}
    assert set(random_matchings(correlation[:2, :2], 50).tolist()) == every


def test_agreement_counts_pairs_in_any_order() -> None:
    pairs = torch.tensor([[0, 1], [1, 0], [2, 2]])
    assert agreement(pairs, pairs.flip(0)) == 1
    assert agreement(pairs, torch.tensor([[0, 1], [1, 2], [2, 0]])) == pytest.approx(1 / 3)


def test_split_half_reliability_is_that_of_both_halves_together() -> None:
    """Values with a noise of the same variance: r is 1/2 for each half, and of the mean of both it is 2/3."""
    random = torch.Generator().manual_seed(0)
    true, *noises = (torch.randn(200_000, generator=random).double() for _ in range(3))
    halves = [true + noise for noise in noises]
    found = split_half_reliability(*halves)
    assert found == pytest.approx(2 / 3, abs=0.01)
    mean = (halves[0] + halves[1]) / 2
    assert found == pytest.approx(float(true.var() / mean.var()), abs=0.01)
    assert split_half_reliability(true, 3 * true + 1) == pytest.approx(1)


@pytest.mark.parametrize(
    "values", [([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [3, 2, 1])], ids=["two", "all equal", "contrary"]
)
def test_reliability_that_is_none(values) -> None:
    assert split_half_reliability(*(torch.tensor(of).double() for of in values)) is None
