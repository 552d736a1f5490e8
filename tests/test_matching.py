"""Correlations and matching: equal to numpy's of all activations at once, and laws of what may not change them."""

import copy
import itertools

import pytest
import torch
from oracles import correlations as by_numpy
from torch import Tensor, nn
from torch.utils.data import Dataset

from zfnet import Deconvnet, InputError, ZFNet
from zfnet.analysis.matching import bipartite_matching, correlations, semi_matching
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
