"""Statistics of maps: equal to counting image by image, whatever the batches and shards."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import zfnet.gathering
from zfnet import InputError, scan
from zfnet.data.images import Images
from zfnet.errors import BrokenImage
from zfnet.gathering import BINS, EDGES, SAMPLED, UNIT, Statistics, sample, widened
from zfnet.identity import digest, write_sealed
from zfnet.scanning import Scan

LAYERS = ["0", "1", "2", "4"]


class Labelled(Images):
    """Images of which some cannot be read, with labels that only the items know."""

    def __init__(self, images: Tensor, labels: list[int], broken: tuple[int, ...] = ()) -> None:
        self.images, self.own, self.broken, self.at = images, labels, broken, -1

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if i == self.at:
            raise KeyboardInterrupt
        if i in self.broken:
            raise BrokenImage("torn")
        return self.images[i], self.own[i]

    def identity(self) -> str:
        return digest(self.images, self.own, list(self.broken))


@pytest.fixture(scope="module", autouse=True)
def few() -> None:
    """A sample smaller than the data."""
    patch = pytest.MonkeyPatch()
    patch.setattr(zfnet.gathering, "SAMPLED", 9)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.Flatten(), nn.Linear(64, 3)).double()
    model[0].weight.data[0] = 0  # a dead map
    model[0].bias.data[0] = -1
    return model


@pytest.fixture(scope="module")
def images() -> Labelled:
    torch.manual_seed(1)
    images = 3 * torch.randn(41, 3, 8, 8).double()
    images[20:30] *= 1e-7
    labels = [-1 if i % 7 == 3 else int(i * i % 5) for i in range(41)]
    return Labelled(images, labels, (0, 13, 14, 15, 40))


def by_hand(maps: Tensor, data: Labelled, sampled: list[int]) -> list[list]:
    """The statistics of maps (N, C, H, W), image by image, in Python's numbers."""
    edges = [float(edge) for edge in EDGES]
    counts = maps.shape[1]
    classes = max(label for i, label in enumerate(data.own) if i not in data.broken) + 1
    fires, histogram = [0] * counts, [[0] * BINS for _ in range(counts)]
    sums = [[0] * (classes + 1) for _ in range(counts)]
    maxima, places = [[-math.inf] * len(sampled) for _ in range(counts)], [[-1] * len(sampled) for _ in range(counts)]
    for i, c in itertools.product(range(len(maps)), range(counts)):
        if i in data.broken:
            continue
        plane = [float(value) for value in maps[i, c].flatten()]
        value = float(np.float32(max(plane)))
        fires[c] += value > 0
        histogram[c][next(n for n in range(BINS) if edges[n] < value <= edges[n + 1])] += 1
        sums[c][data.own[i]] += round(value * 2**24)
        if i in sampled:
            maxima[c][sampled.index(i)], places[c][sampled.index(i)] = value, plane.index(max(plane))
    return [fires, histogram, sums, maxima, places]


def check(found: Scan, model: nn.Module, data: Labelled) -> None:
    values, outputs = data.images, {}
    for n, layer in enumerate(model):
        values = outputs[str(n)] = layer(values).detach()
    labels = [label for i, label in enumerate(data.own) if i not in data.broken]
    assert found.images == len(labels)
    assert found.class_images.tolist() == [labels.count(n) for n in range(max(labels) + 1)] + [labels.count(-1)]
    for layer, statistics in found.statistics.items():
        maps = outputs[layer] if outputs[layer].ndim == 4 else outputs[layer][..., None, None]
        assert [column.tolist() for column in statistics] == by_hand(maps, data, found.sampled.tolist()), layer
        assert [column.dtype for column in statistics] == [
            *(torch.int64, torch.int32, torch.int64, torch.float32, torch.int32)
        ]


@pytest.mark.parametrize("batch_size", [1, 4, 41])
def test_equals_counting_by_hand(model, images, batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zfnet.gathering, "_AT_ONCE", 10)
    found = scan(model, images, LAYERS, 3, gather=True, batch_size=batch_size, progress=False)
    check(found, model, images)
    assert found.statistics["1"].fires[0] == 0


def same(a: Scan, b: Scan) -> bool:
    columns = [[*x[layer], *x.statistics[layer]] for x in (a, b) for layer in LAYERS]
    assert (list(a), a.images) == (list(b), b.images)
    pairs = zip(columns[: len(LAYERS)], columns[len(LAYERS) :], strict=True)
    alike = all(all(map(torch.equal, ours, theirs)) for ours, theirs in pairs)
    return alike and all(map(torch.equal, (a.sampled, a.class_images), (b.sampled, b.class_images)))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_shards_merge_to_the_whole_in_any_order(model, images, count: int) -> None:
    how = {"k": 4, "gather": True, "batch_size": 4, "progress": False}
    whole = scan(model, images, LAYERS, **how)
    parts = [scan(model, images, LAYERS, shard=(n, count), **how) for n in range(count)]
    assert [message for part in parts for message in part.broken] == whole.broken
    random = np.random.default_rng(0)
    for _ in range(4):
        merged, *others = (parts[n] for n in random.permutation(count))
        for other in others:
            merged = merged.merge(other)
        assert same(merged, whole)


def test_shards_begin_where_batches_do(model, images) -> None:
    tops = [scan(model, images, ["1"], 30, shard=(n, 3), batch_size=4, progress=False)["1"] for n in range(3)]
    assert [int(top.image[top.image >= 0].min()) // 4 for top in tops] == [0, 3, 7]  # of eleven


@pytest.mark.parametrize("shard", [(3, 3), (-1, 2), (0, 0), 3, (0.5, 2), "ab", (0, 1, 2)])
def test_a_shard_that_is_none(model, images, shard) -> None:
    with pytest.raises(InputError, match="give \\(number, count\\), numbered from 0"):
        scan(model, images, LAYERS, 3, shard=shard, progress=False)


def test_a_shard_of_indices_is_refused(model, images) -> None:
    with pytest.raises(InputError, match="a shard is of the whole dataset"):
        scan(model, images, LAYERS, 3, shard=(0, 2), indices=[1, 2], progress=False)


def test_an_empty_shard_and_one_that_cannot_be_read_add_nothing(model, images) -> None:
    data = Labelled(images.images[:8], images.own[:8], (0, 1))
    how = {"k": 3, "gather": True, "batch_size": 2, "progress": False}
    whole = scan(model, data, LAYERS, **how)
    parts = [scan(model, data, LAYERS, shard=(n, 5), **how) for n in range(5)]
    assert [len(part) for part in parts] == [0, 0, 4, 4, 4]
    assert [(part.images, len(part.broken)) for part in parts[:2]] == [(0, 0), (0, 2)]
    merged = parts[0].merge(parts[3]).merge(parts[1]).merge(parts[4]).merge(parts[2])
    assert same(merged, whole)
    assert merged.broken == whole.broken


def test_of_a_clipping_layer_the_maxima_before_the_clip_are_gathered(images) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU6()).double()
    model[0].weight.data *= 20
    found = scan(model, images, ["0", "1"], 3, gather=True, batch_size=7, progress=False)
    assert found["1"].value.max() == 6 < found.statistics["1"].maxima.max()
    assert all(map(torch.equal, *found.statistics.values()))


@pytest.mark.parametrize("labels", [None, [-1] * 10])
def test_without_labels_all_images_are_in_the_last_column(model, images, labels) -> None:
    tensors = (images.images[:10],) if labels is None else (images.images[:10], torch.tensor(labels))
    found = scan(model, TensorDataset(*tensors), LAYERS, 3, gather=True, progress=False)
    assert found.class_images.tolist() == [10] and found.statistics["1"].sums.shape == (5, 1)


def test_classes_that_no_image_has_are_counted(model, images) -> None:
    data = Labelled(images.images[:10], [0, -1] * 5)
    data.classes = ("a", "b", "c")
    found = scan(model, data, ["1"], 3, gather=True, progress=False)
    assert found.class_images.tolist() == [5, 0, 0, 5] and found.statistics["1"].sums.shape == (5, 4)


def test_labels_that_are_no_classes_are_named(model, images) -> None:
    data = Labelled(images.images[:4], [0, 70000, 1, -1])
    with pytest.raises(
        InputError, match=r"^the label of item 1 is 70000; statistics by class take labels below 65536$"
    ):
        scan(model, data, ["1"], 3, gather=True, progress=False)


def test_values_that_are_too_large_to_add_are_named(model, images) -> None:
    large = images.images[:10].clone()
    large[6] *= 1e10
    with pytest.raises(InputError, match=r"^0 gives .*e\+10 on image 6; of 10 images, values below 2.75e\+10 can be"):
        scan(model, large, ["0"], 3, gather=True, progress=False)
    scan(model, large, ["0"], 3, progress=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_reduced_precision_is_gathered_as_it_is(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).to(dtype)
    data = torch.randn(9, 3, 6, 6)
    found = scan(model, data, ["1"], 9, gather=True, progress=False)
    expected = model(data.to(dtype)).amax((2, 3)).T.float()
    assert torch.equal(found.statistics["1"].maxima, expected)
    assert torch.equal(found.statistics["1"].sums[:, 0], (expected.double() * UNIT).round().long().sum(1))


# ---- the bins, the sample, and counts --------------------------------------------------------------------------------


def test_the_edges_are_four_an_octave() -> None:
    assert EDGES.dtype == torch.float32 and len(EDGES) == BINS + 1 == 324
    assert torch.equal(EDGES, -EDGES.flip(0)) and (EDGES.diff() > 0).all()
    above = [2.0**octave * (1 + quarter / 4) for octave in range(-20, 20) for quarter in range(4)]
    assert EDGES[162:].tolist() == [*above, 2.0**20, math.inf]


def test_a_value_on_an_edge_is_in_the_bin_below_it() -> None:
    red = nn.Conv2d(3, 1, 1, bias=False)
    red.weight.data = torch.tensor([1.0, 0, 0])[None, :, None, None]
    edges = EDGES[1:-1]
    for values, bins in (
        (edges, torch.arange(BINS - 1)),
        (torch.nextafter(edges, torch.tensor(torch.inf)), torch.arange(1, BINS)),
        (torch.tensor([0.0, -0.0, 1e-30, -1e-30, 2.0**-20]), torch.tensor([161] * 5)),
        (torch.tensor([3e6, -3e6]), torch.tensor([322, 0])),
    ):
        data = torch.zeros(len(values), 3, 1, 1)
        data[:, 0, 0, 0] = values
        histogram = scan(nn.Sequential(red), data, ["0"], 1, gather=True, progress=False).statistics["0"].histogram[0]
        assert torch.equal(histogram, torch.bincount(bins, minlength=BINS).int())


@pytest.mark.parametrize("images", [0, 1, 9, 10, 11, 100, 10**9])
def test_a_sample_is_of_different_images_and_known_beforehand(images: int) -> None:
    sampled = sample(images)
    assert len(sampled) == min(images, 9) and (sampled.diff() > 0).all()
    assert torch.equal(sampled, sample(images)) and ((sampled >= 0) & (sampled < images)).all()


def test_samples_of_any_size_are_spread_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zfnet.gathering, "SAMPLED", SAMPLED)
    sampled = sample(10**6)
    assert len(sampled) == SAMPLED == 512
    tenths = torch.bincount(sampled * 10 // 10**6, minlength=10)
    assert (tenths > 25).all()  # of 51; six standard deviations are 41, to the nearest


def test_counts_are_widened_before_their_last_column() -> None:
    counts = torch.tensor([[1, 2, 9], [3, 4, 8]])
    assert widened(counts, 4).tolist() == [[1, 2, 0, 0, 9], [3, 4, 0, 0, 8]]
    assert widened(counts, 2) is counts


def test_statistics_of_other_maps_or_samples_are_not_merged() -> None:
    for other in (Statistics.none(4, 2, 5), Statistics.none(3, 2, 6)):
        with pytest.raises(InputError, match="cannot merge statistics of 3 maps, 5 sampled images and"):
            Statistics.none(3, 2, 5).merge(other)
    assert Statistics.none(3, 2, 5).merge(Statistics.none(3, 4, 5)).sums.shape == (3, 5)


def test_scans_of_other_layers_are_not_merged(model, images) -> None:
    one, other = (scan(model, images, layers, 3, gather=True, progress=False) for layers in (["0", "1"], ["0", "4"]))
    with pytest.raises(InputError, match="different layers: only one has 1"):
        one.merge(other)
    with pytest.raises(InputError, match="one with and one without statistics"):
        one.merge(scan(model, images, ["0", "1"], 3, progress=False))


# ---- states ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 9, 22, 39])
def test_an_interrupted_scan_goes_on_to_the_same_statistics(model, images, at: int, tmp_path: Path) -> None:
    data = Labelled(images.images, images.own, images.broken)
    how = {"k": 4, "gather": True, "batch_size": 4, "progress": False}
    whole = scan(model, data, LAYERS, **how)
    data.at = at
    with pytest.raises(KeyboardInterrupt):
        scan(model, data, LAYERS, state=tmp_path / "state", **how)
    data.at = -1
    assert (tmp_path / "state").exists() == (at > 4)
    again = scan(model, data, LAYERS, state=tmp_path / "state", **how)
    assert same(again, whole) and again.broken == whole.broken


def test_a_state_with_statistics_is_no_state_without(model, images, tmp_path: Path) -> None:
    how = {"state": tmp_path / "state", "keep_state": True, "progress": False}
    scan(model, images, ["1"], 3, gather=True, **how)
    with pytest.raises(InputError, match="was made with different statistics"):
        scan(model, images, ["1"], 3, **how)
    scan(model, images, ["1"], 3, fresh=True, **how)
    with pytest.raises(InputError, match="was made with different statistics"):
        scan(model, images, ["1"], 3, gather=True, **how)


def changed(gathered: dict, change: str) -> None:
    fires, histogram, sums, maxima, places = gathered["statistics"]["1"]
    columns = gathered["statistics"]["1"]
    if change == "layer":
        gathered["statistics"]["9"] = gathered["statistics"].pop("1")
    elif change == "nothing":
        gathered.clear()
    elif change == "more":
        gathered["more"] = 1
    elif change == "five":
        columns.pop()
    elif change == "list":
        columns[0] = fires.tolist()
    elif change == "type":
        columns[1] = histogram.long()
    elif change == "maps":
        columns[2] = sums[:-1]
    elif change == "classes":
        columns[2] = sums[:, :-1]
    elif change == "sampled":
        columns[3] = maxima[:, :-1]
    elif change == "nan":
        columns[3] = maxima * torch.nan
    elif change == "place":
        columns[4] = places - 5
    elif change == "count":
        histogram[0, 3] += 1
    elif change == "negative":
        fires[1] = -1
    elif change == "fires":
        fires[1] = 1000
    elif change == "images":
        gathered["class_images"][0] += 1
    elif change == "sparse":
        columns[0] = fires.to_sparse()


CHANGES = ["layer", "nothing", "more", "five", "list", "type", "maps", "classes", "sampled", "nan", "place", "count"]


@pytest.mark.parametrize("change", [*CHANGES, "negative", "fires", "images", "sparse"])
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")  # torch's own
def test_a_state_that_no_scan_wrote_is_named(model, images, change: str, tmp_path: Path) -> None:
    state = tmp_path / "state"
    how = {"gather": True, "state": state, "batch_size": 4, "progress": False}
    scan(model, images, ["1"], 3, keep_state=True, **how)
    line, _, raw = state.read_bytes().partition(b"\n")
    (tmp_path / "raw").write_bytes(raw)
    content = torch.load(tmp_path / "raw", weights_only=True)
    changed(content["gathered"], change)
    write_sealed(state, json.loads(line)["identity"], content)
    with pytest.raises(InputError, match=f"^{state} is not a scan of these layers; delete it, or start"):
        scan(model, images, ["1"], 3, **how)


def test_counting_leaves_what_was_counted_before_as_it_was(model, images) -> None:
    first = scan(model, images, ["1"], 3, gather=True, shard=(0, 2), progress=False, batch_size=4)
    before = [column.clone() for column in first.statistics["1"]]
    second = scan(model, images, ["1"], 3, gather=True, shard=(1, 2), progress=False, batch_size=4)
    first.merge(second)
    assert all(map(torch.equal, before, first.statistics["1"]))


@pytest.mark.gpu
def test_a_gpu_gathers_the_same(images) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU()).double()
    with torch.no_grad():
        for parameter in model.parameters():  # sums that are exact
            parameter.copy_((parameter * 8).round() / 8)
    data = Labelled((images.images * 8).round() / 8, images.own, images.broken)
    here = scan(model, data, ["0", "1"], 3, gather=True, progress=False)
    there = scan(model.cuda(), data, ["0", "1"], 3, gather=True, progress=False)
    for layer in here:
        assert all(map(torch.equal, here.statistics[layer], there.statistics[layer]))


def test_bins_count_the_edges_below_a_value() -> None:
    random = torch.Generator().manual_seed(0)
    values = (torch.randint(-(2**31), 2**31, (200_000,), generator=random)).int().view(torch.float32)
    values = torch.cat([values[values.isfinite()], EDGES[1:-1], torch.tensor([0.0, -0.0, 3.4e38, -3.4e38, 1e-45])])
    expected = torch.searchsorted(EDGES[1:-1], values.double())
    assert torch.equal(zfnet.gathering.bins(values), expected) and expected.min() == 0 and expected.max() == BINS - 1
