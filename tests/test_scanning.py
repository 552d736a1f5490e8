"""Scans: equal to brute force, whatever the batches, shards and interruptions."""

import copy
from pathlib import Path

import pytest
import torch
from oracles import top_k
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import zfnet.scanning
from zfnet import Deconvnet, InputError, TopActivations, ZFNet, scan
from zfnet.data.photos import BrokenImage

LAYERS = ["conv1", "relu1", "pool2", "relu5"]


def network(**changes: object) -> ZFNet:
    settings = {"maps": (6, 8, 8, 8, 8), "hidden": (8,), "image_size": 64, "init": "he"} | changes
    return ZFNet(10, **settings).double()  # float64: what a convolution adds up does not change with the batch's size


@pytest.fixture(scope="module")
def model() -> ZFNet:
    torch.manual_seed(0)
    return network()


@pytest.fixture(scope="module")
def images() -> Tensor:
    torch.manual_seed(1)
    images = torch.randn(23, 3, 64, 64).double()
    images[[7, 19]] = images[2].clone()  # ties between images
    images[11] = 0  # ties between all places
    return images


@pytest.fixture(scope="module")
def activations(model: ZFNet, images: Tensor) -> dict[str, Tensor]:
    return Deconvnet(model).record(images, LAYERS).activations


def equal(a: TopActivations, b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x.to(y.dtype), y) for x, y in zip(a[:4], b[:4], strict=True))


@pytest.mark.parametrize("distinct", [True, False], ids=["distinct", "any place"])
@pytest.mark.parametrize("batch_size", [1, 4, 23, 64])
def test_equals_brute_force_ties_included(model, images, activations, batch_size: int, distinct: bool) -> None:
    found = scan(model, images, LAYERS, 5, batch_size=batch_size, distinct=distinct, progress=False)
    for layer in LAYERS:
        assert equal(found[layer], top_k(activations[layer], 5, distinct)), layer


def test_worked_example() -> None:
    """One map that is the image's red: the strongest pixel of each image, then the images in order."""
    red = nn.Conv2d(3, 1, 1, bias=False)
    red.weight.data = torch.tensor([1.0, 0, 0])[None, :, None, None]
    images = torch.zeros(4, 3, 2, 3)
    images[0, 0] = torch.tensor([[1.0, 5, 2], [5, 0, 0]])  # twice 5: the upper row first
    images[1, 0] = torch.tensor([[0.0, 0, 0], [0, 0, 9]])
    images[3, 0] = torch.tensor([[5.0, 0, 0], [0, 0, 0]])  # 5 again: after image 0
    top = scan(nn.Sequential(red), images, ["0"], 3, progress=False)["0"]
    assert [column.tolist()[0] for column in top] == [[9, 5, 5], [1, 0, 3], [1, 0, 0], [2, 1, 0]]
    everywhere = scan(nn.Sequential(red), images, ["0"], 3, distinct=False, progress=False)["0"]
    assert [column.tolist()[0] for column in everywhere] == [[9, 5, 5], [1, 0, 0], [1, 0, 1], [2, 1, 0]]


@pytest.mark.parametrize("distinct", [True, False], ids=["distinct", "any place"])
def test_shards_merge_to_the_whole_in_any_order(model, images, distinct: bool) -> None:
    def part(indices: range) -> TopActivations:
        return scan(model, images, ["relu5"], 5, indices=indices, distinct=distinct, progress=False)["relu5"]

    whole = part(range(23))
    odd, even, few = part(range(1, 23, 2)), part(range(4, 23, 2)), part(range(0, 4, 2))
    assert equal(odd.merge(few).merge(even), whole)
    assert equal(few.merge(even.merge(odd)), whole)


def test_fully_connected_layers_have_one_place(model, images) -> None:
    top = scan(model, images, ["fc8"], 4, progress=False)["fc8"]
    assert top.value.shape == (10, 4)
    assert not top.row.any() and not top.column.any()


def test_fewer_places_than_k_are_marked(model, images) -> None:
    top = scan(model, images, ["fc8"], 30, distinct=False, progress=False)["fc8"]
    assert torch.equal(top.image >= 0, torch.arange(30).expand(10, 30) < 23)
    assert top.value[:, 23:].eq(-torch.inf).all()


class Interrupted(Dataset):
    """Images of which one, at first, is where the user loses patience."""

    def __init__(self, images: Tensor, at: int):
        self.images, self.at, self.reads = images, at, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        self.reads += 1
        if i == self.at:
            raise KeyboardInterrupt
        return self.images[i], 0


def test_interrupted_goes_on_where_it_was(model, images, tmp_path: Path) -> None:
    state, whole = tmp_path / "scan.safetensors", scan(model, images, LAYERS, 5, progress=False)
    dataset = Interrupted(images, at=13)
    with pytest.raises(KeyboardInterrupt):
        scan(model, dataset, LAYERS, 5, batch_size=4, state=state, progress=False)
    assert state.exists()
    dataset.at, dataset.reads = -1, 0
    resumed = scan(model, dataset, LAYERS, 5, batch_size=4, state=state, progress=False)
    assert dataset.reads == 23 - 12  # three whole batches were done
    assert all(equal(resumed[layer], whole[layer]) for layer in LAYERS)
    assert not list(tmp_path.iterdir())


def test_a_finished_scan_can_be_kept_and_is_then_read(model, images, tmp_path: Path) -> None:
    state, dataset = tmp_path / "scan.safetensors", Interrupted(images, at=-1)
    settings = {"batch_size": 4, "state": state, "progress": False}
    whole = scan(model, dataset, LAYERS, 5, keep_state=True, **settings)
    assert (state.exists(), dataset.reads) == (True, 23)
    again = scan(model, dataset, LAYERS, 5, **settings)
    assert (state.exists(), dataset.reads, again.images) == (False, 23, 23)
    assert all(equal(again[layer], whole[layer]) for layer in LAYERS)


def test_state_of_another_scan_is_not_used(model, images, tmp_path: Path) -> None:
    state, dataset = tmp_path / "scan.safetensors", Interrupted(images, at=13)
    with pytest.raises(KeyboardInterrupt):
        scan(model, dataset, ["relu5"], 5, batch_size=4, state=state, progress=False)
    other = network()
    dataset.at = -1
    assert equal(
        scan(other, dataset, ["relu5"], 5, state=state, progress=False)["relu5"],
        scan(other, images, ["relu5"], 5, progress=False)["relu5"],
    )


def test_state_is_kept_now_and_then(model, images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zfnet.scanning, "SAVE_EVERY", 0)

    class Killed(Interrupted):
        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            if i == self.at:
                raise SystemExit  # no chance to save
            return super().__getitem__(i)

    dataset = Killed(images, at=13)
    with pytest.raises(SystemExit):
        scan(model, dataset, ["relu5"], 5, batch_size=4, state=tmp_path / "s", progress=False)
    dataset.at, dataset.reads = -1, 0
    scan(model, dataset, ["relu5"], 5, batch_size=4, state=tmp_path / "s", progress=False)
    assert dataset.reads == 23 - 12


class WithBroken(Dataset):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if i in (3, 11):
            raise BrokenImage(f"photo{i}.jpg is broken: truncated")
        return torch.full((3, 64, 64), float(i), dtype=torch.float64), 0


def test_broken_images_are_named_and_left_out(model) -> None:
    found = scan(model, WithBroken(), ["relu5"], 9, batch_size=5, progress=False)
    assert found.broken == ["photo3.jpg is broken: truncated", "photo11.jpg is broken: truncated"]
    assert found.images == 10
    assert not set(found["relu5"].image.flatten().tolist()) & {3, 11}


def test_model_is_left_as_it_was(images) -> None:
    model = network()
    model.train()
    model.fc6.eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    scan(model, images, ["relu5"], 3, progress=False)
    assert model.training and model.drop6.training and not model.fc6.training
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ["relu55"]}, "no layer of ZFNet 'relu55' (did you mean 'relu5'?)"),
        ({"layers": []}, "at least one layer"),
        ({"k": 0}, "k=0"),
        ({"k": 24}, "the dataset has 23 images, fewer than k=24"),
        ({"dataset": torch.zeros(9, 3, 8, 8)}, "(9, 3, 8, 8)"),
        ({"dataset": torch.full((9, 3, 64, 64), torch.nan)}, "item 0"),
    ],
    ids=["layer", "no layer", "k", "few", "small", "nan"],
)
def test_bad_input_is_one_clear_line(model, images, change: dict, message: str) -> None:
    given = {"dataset": images, "layers": ["relu5"], "k": 9} | change
    with pytest.raises(InputError) as caught:
        scan(model, given["dataset"], given["layers"], given["k"], progress=False)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_nan_in_the_weights_is_named(images) -> None:
    model = network()
    model.conv3.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match=r"conv3\.weight"):
        scan(model, TensorDataset(images), ["relu5"], progress=False)


@pytest.mark.gpu
def test_scan_on_a_gpu_finds_the_same(model, images) -> None:
    there = scan(copy.deepcopy(model).cuda(), images, ["relu5"], 5, progress=False)["relu5"]
    here = scan(model, images, ["relu5"], 5, progress=False)["relu5"]
    torch.testing.assert_close(there.value, here.value, rtol=1e-10, atol=0)
    assert torch.equal(there.image, here.image)
