"""Scans: equal to brute force, whatever the batches, shards and interruptions."""

import copy
import itertools
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from oracles import top_k
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import zfnet.scanning
from zfnet import Deconvnet, InputError, TopActivations, ZFNet, scan
from zfnet.data.images import Images
from zfnet.errors import BrokenImage
from zfnet.graph import Graph
from zfnet.identity import digest, write_sealed

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
    assert [column.tolist()[0] for column in top] == [[9, 5, 5], [1, 0, 3], [1, 0, 0], [2, 1, 0], [9, 5, 5]]
    assert top.units().tolist() == [[1, 0, 1, 2], [0, 0, 0, 1], [3, 0, 0, 0]]
    everywhere = scan(nn.Sequential(red), images, ["0"], 3, distinct=False, progress=False)["0"]
    assert [column.tolist()[0] for column in everywhere][:4] == [[9, 5, 5], [1, 0, 0], [1, 0, 1], [2, 1, 0]]


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


class Interrupted(Images):
    """Images of which one, at first, is where the user loses patience."""

    def identity(self) -> str:
        return digest(self.images)

    def __init__(self, images: Tensor, at: int, error: BaseException | type[BaseException] = KeyboardInterrupt):
        self.images, self.at, self.error, self.reads = images, at, error, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        self.reads += 1
        if i == self.at:
            raise self.error
        return self.images[i], 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError("of another size"), RuntimeError("a worker died")])
def test_interrupted_goes_on_where_it_was(error, model, images, tmp_path: Path) -> None:
    state, whole = tmp_path / "scan.safetensors", scan(model, images, LAYERS, 5, progress=False)
    dataset = Interrupted(images, 13, error)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        scan(model, dataset, LAYERS, 5, batch_size=4, state=state, progress=False)
    assert state.exists()
    dataset.at, dataset.reads = -1, 0
    resumed = scan(model, dataset, LAYERS, 5, batch_size=4, state=state, progress=False)
    assert dataset.reads == 23 - 12  # three whole batches were done
    assert all(equal(resumed[layer], whole[layer]) for layer in LAYERS)
    assert not list(tmp_path.iterdir())


def test_a_state_that_is_removed_during_a_scan_is_said(model, images, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(zfnet.scanning, "SAVE_EVERY", 0.0)
    state = tmp_path / "state"

    class Removing(Interrupted):
        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            if i == 9:
                state.unlink()
            return super().__getitem__(i)

    settings = {"batch_size": 4, "state": state, "keep_state": True, "progress": False}
    scan(model, Removing(images, at=-1), LAYERS, 5, **settings)
    assert capsys.readouterr().err == f"{state} was removed during the scan; it is written again\n"
    assert state.exists()


def test_a_finished_scan_can_be_kept_and_is_then_read(model, images, tmp_path: Path) -> None:
    state, dataset = tmp_path / "scan.safetensors", Interrupted(images, at=-1)
    settings = {"batch_size": 4, "state": state, "progress": False}
    whole = scan(model, dataset, LAYERS, 5, keep_state=True, **settings)
    assert (state.exists(), dataset.reads) == (True, 23)
    again = scan(model, dataset, LAYERS, 5, **settings)
    assert (state.exists(), dataset.reads, again.images) == (False, 23, 23)
    assert all(equal(again[layer], whole[layer]) for layer in LAYERS)


@pytest.mark.parametrize("calls", range(1, 12))
def test_an_interrupt_in_the_middle_of_a_batch_leaves_nothing_of_it(calls: int, tmp_path, monkeypatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()).double()
    model = Graph(model)  # which the first scan compares with the model, so that the next does not
    images, layers = torch.randn(10, 3, 9, 9).double(), ["1", "3"]
    whole = scan(model, images, layers, 3, progress=False)
    call, seen = Graph.call, []

    def interrupted(graph: Graph, *arguments: object) -> object:
        seen.append(1)
        if len(seen) == calls:
            raise KeyboardInterrupt
        return call(graph, *arguments)

    arguments = {"batch_size": 4, "state": tmp_path / "state", "progress": False}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Graph, "call", interrupted)
        scan(model, images, layers, 3, **arguments)
    assert (tmp_path / "state").exists() == (calls > 4)  # four steps a batch
    resumed = scan(model, images, layers, 3, **arguments)
    assert all(equal(resumed[layer], whole[layer]) for layer in layers)


def test_broken_images_are_counted_once_when_a_scan_resumes(model, tmp_path: Path) -> None:
    class Torn(WithBroken):
        at = 6  # in the batch after one whose last image is broken

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            if i == self.at:
                raise KeyboardInterrupt
            return super().__getitem__(i)

        def identity(self) -> str:
            return "torn"

    dataset, arguments = Torn(), {"batch_size": 4, "state": tmp_path / "state", "progress": False}
    with pytest.raises(KeyboardInterrupt):
        scan(model, dataset, ["relu5"], 9, **arguments)
    dataset.at = -1
    resumed = scan(model, dataset, ["relu5"], 9, **arguments)
    assert (resumed.images, len(resumed.broken)) == (10, 2)
    assert equal(resumed["relu5"], scan(model, WithBroken(), ["relu5"], 9, progress=False)["relu5"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_reduced_precision_can_be_interrupted(dtype: torch.dtype, tmp_path: Path) -> None:
    model, state = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6()).to(dtype), tmp_path / "state"
    dataset = Interrupted(torch.randn(10, 3, 9, 9), at=7)
    with pytest.raises(KeyboardInterrupt):
        scan(model, dataset, ["1"], 3, batch_size=2, state=state, progress=False)
    dataset.at = -1
    resumed = scan(model, dataset, ["1"], 3, batch_size=2, state=state, progress=False)["1"]
    assert resumed.value.dtype == dtype
    assert equal(resumed, scan(model, dataset, ["1"], 3, batch_size=2, progress=False)["1"])


def test_values_that_overflow_are_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()).half()
    model[0].weight.data[:] = 6e4
    images = torch.zeros(5, 3, 4, 4)
    images[3] = 2
    with pytest.raises(InputError, match=r"^1 gives NaN or infinity, in torch.float16, on image 3$"):
        scan(model, images, ["1"], 2, progress=False)


def clip(x: Tensor, how: str) -> Tensor:
    return {
        "relu6": lambda: F.relu6(x),
        "relu6 in place": lambda: F.relu6(x, inplace=True),
        "hardtanh": lambda: F.hardtanh(x, 0.0, 6.0),
        "hardtanh_": lambda: F.hardtanh_(x, 0.0, 6.0),
        "clamp": lambda: torch.clamp(x, 0, 6),
        "method": lambda: x.clamp(min=0, max=6),
        "method in place": lambda: x.clamp_(0, 6),
    }[how]()


class Clips(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.first, self.last = how, nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 4, 1)
        self.module = {"ReLU6": nn.ReLU6(), "ReLU6 in place": nn.ReLU6(True), "Hardtanh": nn.Hardtanh(0, 6)}.get(how)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = clip(x, self.how) if self.module is None else self.module(x)
        return self.last(x)


FUNCTIONS = ["relu6", "relu6 in place", "hardtanh", "hardtanh_", "clamp", "method", "method in place"]


@pytest.mark.parametrize("distinct", [True, False], ids=["distinct", "any place"])
@pytest.mark.parametrize("how", [*FUNCTIONS, "ReLU6", "ReLU6 in place", "Hardtanh"])
def test_saturated_maps_are_ranked_by_what_is_clipped(how: str, distinct: bool) -> None:
    model = Clips(how).double()
    model.first.weight.data *= 20
    model.first.weight.data[3] = -model.first.weight.data[3].abs()  # never above 0
    images = torch.rand(20, 3, 5, 5).double()
    images[7] = images[2]
    layer = Graph(model).layers[1]
    found = scan(model, images, [layer, "last"], 9, batch_size=6, distinct=distinct, progress=False)
    before = F.conv2d(images, model.first.weight)
    unclipped, *where = top_k(before, 9, distinct)
    top = found[layer]
    assert equal((top.unclipped, *top[1:4]), (unclipped, *where))
    assert torch.equal(top.value, unclipped.clamp(0, 6)) and top.value.eq(6).all(1).any()
    assert equal(found["last"], top_k(model.last(before.clamp(0, 6)), 9, distinct))  # the network computes as before
    parts = [
        scan(model, images, [layer], 9, indices=range(n, 20, 3), distinct=distinct, progress=False) for n in range(3)
    ]
    for first, second, third in itertools.permutations(part[layer] for part in parts):
        assert all(map(torch.equal, first.merge(second).merge(third), top))


def test_a_scan_of_a_clipped_layer_resumes(tmp_path: Path) -> None:
    model = Clips("ReLU6 in place").double()
    dataset = Interrupted(9 * torch.randn(12, 3, 5, 5).double(), at=9)
    arguments = {"k": 5, "batch_size": 4, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        scan(model, dataset, ["module"], state=tmp_path / "state", **arguments)
    dataset.at = -1
    resumed = scan(model, dataset, ["module"], state=tmp_path / "state", **arguments)["module"]
    assert all(map(torch.equal, resumed, scan(model, dataset, ["module"], **arguments)["module"]))


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.ReLU()), nn.Sequential(nn.Threshold(1, 0))], ids=["ReLU", "Threshold"]
)
def test_other_layers_are_ranked_by_their_values(model: nn.Module) -> None:
    top = scan(model, torch.randn(9, 3, 4, 4), ["0"], 5, progress=False)["0"]
    assert torch.equal(top.unclipped, top.value)


def test_units_keep_the_rows_of_missing_winners(model, images) -> None:
    top = scan(model, images, ["fc8"], 30, distinct=False, progress=False)["fc8"]
    units = top.units([4, 1])
    assert units.shape == (60, 4) and units.dtype == torch.int64
    assert units[:, 1].tolist() == [4] * 30 + [1] * 30
    assert torch.equal(units[:30, 0], top.image[4]) and units[23:30].tolist() == [[-1, 4, -1, -1]] * 7
    assert top.units([]).shape == (0, 4)
    for maps, message in (([1, 10], "no map 10: the layer has 10"), ([-1], "no map -1"), (3, "maps is 3; give a list")):
        with pytest.raises(InputError, match=message):
            top.units(maps)


def test_scans_of_another_k_are_not_merged(model, images) -> None:
    tops = [scan(model, images, ["fc8"], k, progress=False)["fc8"] for k in (3, 4)]
    with pytest.raises(InputError, match=r"different shapes \(10 maps, k=3 and 10 maps, k=4\)"):
        tops[0].merge(tops[1])


def test_an_image_that_is_listed_twice_is_scanned_once(model, images) -> None:
    twice = scan(model, images, ["fc8"], 9, indices=[3, 1, 3, 2], progress=False)
    assert twice.images == 3
    assert equal(twice["fc8"], scan(model, images, ["fc8"], 9, indices=[1, 2, 3], progress=False)["fc8"])


def test_the_result_is_a_mapping(model, images) -> None:
    found = scan(model, images, LAYERS, 3, progress=False)
    assert list(found) == list(found.keys()) == LAYERS and len(found) == 4 and "conv5" not in found
    assert (found.images, found.broken) == (23, [])


def test_layers_can_be_modules(model, images) -> None:
    found = scan(model, images, [model.relu5], 3, progress=False)
    assert equal(found["relu5"], scan(model, images, ["relu5"], 3, progress=False)["relu5"])


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    model, state = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), tmp_path / "state"
    arguments = {"k": 2, "state": state, "progress": False}
    images = torch.randn(4, 3, 6, 6)
    scan(model, images, ["1"], keep_state=True, **arguments)
    whole = state.read_bytes()
    for n in range(8, len(whole), 7):
        state.write_bytes(whole[:n] + bytes([whole[n] ^ 4]) + whole[n + 1 :])
        with pytest.raises(InputError, match="delete it, or start again with fresh=True") as caught:
            scan(model, images, ["1"], **arguments)
        assert "\n" not in str(caught.value) and str(state) in str(caught.value)
    scan(model, images, ["1"], fresh=True, **arguments)
    assert not state.exists()


def columns(value, image):
    return [value, image, image, image, value]


ONE, NONE = torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.int64)
STATES = [
    *(None, [], {}, {"done": 0, "tops": {}}, {"done": 0, "tops": {}, "broken": [], "more": 1}),
    *({"done": done, "tops": {"1": columns(ONE, NONE)}, "broken": []} for done in (-1, 10**9, 0.5, "a", True)),
    *(
        {"done": 1, "tops": tops, "broken": []}
        for tops in ([], {}, {"0": columns(ONE, NONE)}, {"1": 3}, {"1": [ONE] * 6})
    ),
    *({"done": 1, "tops": {"1": columns(ONE, NONE)}, "broken": broken} for broken in ("a", None, [1])),
    *(
        {"done": 1, "tops": {"1": columns(value, image)}, "broken": []}
        for value, image in (
            *((ONE[:, :1], NONE), (ONE, NONE[:1]), (ONE * torch.nan, NONE), (ONE.long(), NONE), (ONE, ONE)),
            *((ONE, NONE - 2), (ONE, NONE + 4), (ONE.to_sparse(), NONE), (ONE[None], NONE[None]), (3, NONE)),
        )
    ),
]


@pytest.mark.parametrize("content", STATES)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")  # torch's own
def test_a_state_that_no_scan_wrote_is_named(content, tmp_path: Path) -> None:
    model, state = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), tmp_path / "state"
    images, arguments = torch.rand(4, 3, 8, 8), {"k": 2, "state": state, "progress": False}
    scan(model, images, ["1"], keep_state=True, **arguments)
    identity = json.loads(state.read_bytes().partition(b"\n")[0])["identity"]
    write_sealed(state, identity, content)
    with pytest.raises(InputError, match=f"^{state} is not a scan of these layers; delete it, or start again"):
        scan(model, images, ["1"], **arguments)
    scan(model, images, ["1"], fresh=True, **arguments)
    assert not state.exists()


def test_a_state_of_the_old_format_is_refused(model, images, tmp_path: Path) -> None:
    state = tmp_path / "state"
    save_file({"relu5/value": torch.zeros(8, 5)}, state, metadata={"key": "0", "done": "4", "broken": "[]"})
    with pytest.raises(InputError, match="older format that is no longer read; delete it"):
        scan(model, images, ["relu5"], 5, state=state, progress=False)


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


class WithBroken(Images):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if i in (3, 11):
            raise BrokenImage(f"photo{i}.jpg is broken: truncated")
        return torch.full((3, 64, 64), float(i), dtype=torch.float64), 0


def test_broken_images_are_named_and_left_out(model) -> None:
    found = scan(model, WithBroken(), ["relu5"], 9, batch_size=5, progress=False)
    assert found.broken == ["item 3: photo3.jpg is broken: truncated", "item 11: photo11.jpg is broken: truncated"]
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
        ({"layers": "relu5"}, "layers must be a list"),
        ({"layers": None}, "layers must be a list"),
        ({"layers": ["input"]}, "no layer of ZFNet 'input'"),
        ({"k": 0}, "k is 0"),
        ({"k": 2.5}, "k is 2.5"),
        ({"dataset": DataLoader(torch.zeros(9, 3, 64, 64))}, "pass its dataset"),
        ({"dataset": iter(torch.zeros(9, 3, 64, 64))}, "has no items by index"),
        ({"dataset": torch.zeros(9, 3, 64, 64, dtype=torch.uint8)}, "images must be floats"),
        ({"k": 24}, "the dataset has 23 images, fewer than k=24"),
        ({"dataset": torch.zeros(9, 3, 8, 8)}, "(1, 3, 8, 8)"),
        ({"dataset": torch.full((9, 3, 64, 64), torch.nan)}, "item 0"),
    ],
    ids=[
        "layer",
        "no layer",
        "string",
        "none",
        "input",
        "k",
        "k",
        "loader",
        "iterator",
        "bytes",
        "few",
        "small",
        "nan",
    ],
)
def test_bad_input_is_one_clear_line(model, images, change: dict, message: str) -> None:
    given = {"dataset": images, "layers": ["relu5"], "k": 9} | change
    with pytest.raises(InputError) as caught:
        scan(model, given["dataset"], given["layers"], given["k"], progress=False)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_fresh_scan_replaces_is_removed_before_it_begins(model, images, tmp_path: Path) -> None:
    state = tmp_path / "scan"
    scan(model, images, ["relu1"], state=state, keep_state=True, progress=False)
    with pytest.raises(InputError, match="none of the 0 images"):
        scan(model, images, ["relu1"], state=state, fresh=True, indices=[], progress=False)
    assert not state.exists()
    with pytest.raises(InputError, match="cannot remove"):
        scan(model, images, ["relu1"], state=tmp_path, fresh=True, progress=False)


@pytest.mark.parametrize("indices", ["12", 3, [[1, 2], [3, 4]], [None]])
def test_malformed_indices(model, images, indices) -> None:
    with pytest.raises(InputError, match="give whole numbers"):
        scan(model, images, ["relu1"], indices=indices, progress=False)


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
