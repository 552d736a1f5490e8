"""The atlas: every number and every picture against slow computations that share nothing with it, and the folder."""

import hashlib
import importlib
import json
import math
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import deconvnet_by_autograd, top_k
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from experiments.questions import atlas as experiment
from experiments.setup.configuration import configured
from zfnet import Deconvnet, InputError, atlas, receptive_field, scan
from zfnet.atlas.layers import names_of
from zfnet.atlas.links import nearest_above, nearest_below, weights
from zfnet.atlas.panels import Painter
from zfnet.data.images import Images
from zfnet.data.preprocessing import Preprocessing
from zfnet.graph import Graph
from zfnet.recording import activations
from zfnet.rendering import signed_image

LAYERS = ["relu1", "relu2"]
building = importlib.import_module("zfnet.atlas.build")  # `zfnet.atlas.build` is the function


class Fire(nn.Module):
    """As in SqueezeNet: a squeeze, and two branches that see differently, joined."""

    def __init__(self):
        super().__init__()
        self.squeeze, self.relu = nn.Conv2d(8, 3, 1), nn.ReLU()
        self.expand1, self.expand3 = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 3, padding=1)

    def forward(self, x):
        x = self.relu(self.squeeze(x))
        return torch.cat([self.relu(self.expand1(x)), self.relu(self.expand3(x))], 1)


def network(**more):
    """A small network on images of 24 x 24; its weights come from torch's seed."""
    torch.manual_seed(3)
    layers = {
        "conv1": nn.Conv2d(3, 8, 5, 2, padding=1),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(8, 10, 3, padding=1),
        "relu2": nn.ReLU(inplace=True),
        **more,
    }
    model = nn.Sequential(OrderedDict(layers)).eval()
    model.preprocessing = Preprocessing(size=24, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    return model


def pictures(model, count=40, classes=4, size=24):
    """Images that are blobs, so that codecs lose little of them, as the network sees them, and their labels."""
    generator = torch.Generator().manual_seed(1)
    small = torch.rand(count, 3, 5, 5, generator=generator)
    images = nn.functional.interpolate(small, (size, size), mode="bilinear").clamp(0, 1)
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.preprocessing.mean, model.preprocessing.std))
    labels = torch.arange(count) % classes
    return TensorDataset((images - mean) / std, labels)


def script(path):
    """What a data file gives the page, read without the library."""
    text = path.read_text()
    name, value = re.fullmatch(r'atlas\.put\("([^"]*)",(.*)\);\n', text, re.DOTALL).groups()
    return name, json.loads(value)


def read(folder, name):
    found, value = script(folder / "data" / f"{name}.js")
    assert found == {"index": "index", "images": "images"}.get(name, found)
    return value


def entries(folder, layer):
    index = read(folder, "index")
    per, rows = index["layers"][layer]["per"]["maps"], index["layers"][layer]["rows"]
    return [entry for n in range(-(-rows // per)) for entry in script(folder / f"data/{layer}/{n}.js")[1]]


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def tile(folder, layer, row, place):
    """A tile of a sprite: (h, w, 3)."""
    index = read(folder, "index")
    entry = index["layers"][layer]
    height, width = entry["tile"]
    sheet = np.array(Image.open(folder / f"tiles/{layer}/{row // 24}.{index['encoding']}").convert("RGB"))
    return sheet[row % 24 * height :, place * width :][:height, :width].astype(float)


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def data(model):
    return pictures(model)


@pytest.fixture(scope="module")
def folder(model, data, tmp_path_factory):
    return atlas.build(model, data, tmp_path_factory.mktemp("atlas") / "a", layers=LAYERS, progress=False)


@pytest.fixture(scope="module")
def outputs(model, data):
    """The activations of both layers for all images."""
    return activations(Graph(model), data.tensors[0], LAYERS)


# ---- numbers ---------------------------------------------------------------------------------------------------------


def rounded(value):
    return float(f"{value:.5g}")


@pytest.mark.parametrize("layer", [0, 1])
def test_the_winners_are_those_of_a_search_through_everything(folder, outputs, layer):
    values, images, rows, columns = top_k(outputs[LAYERS[layer]], 9)
    for m, entry in enumerate(entries(folder, layer)):
        n = int((values[m] > 0).sum())
        assert entry["map"] == m and len(entry["value"]) == n
        assert torch.equal(torch.tensor(entry["value"]), values[m, :n])
        for name, expected in (("image", images), ("row", rows), ("column", columns)):
            assert entry[name] == expected[m, :n].tolist()
        assert entry["label"] == [image % 4 for image in entry["image"]]


@pytest.mark.parametrize("layer", [0, 1])
def test_statistics_are_those_counted_by_hand(folder, outputs, layer):
    maxima = outputs[LAYERS[layer]].flatten(2).amax(2)  # (N, C)
    columns, edges = read(folder, f"{layer}/columns"), read(folder, "index")["bins"]
    edges = [-math.inf if n == 0 else math.inf if edge is None else edge for n, edge in enumerate(edges)]
    labels = np.arange(40) % 4
    for m, entry in enumerate(entries(folder, layer)):
        own = maxima[:, m].double().numpy()
        assert entry["fires"] == columns["fires"][m] == rounded((own > 0).mean())
        assert entry["mean"] == pytest.approx(own.mean(), rel=1e-4, abs=1e-6)
        bins = {}
        for value in own:
            (place,) = (n for n in range(len(edges) - 1) if edges[n] < value <= edges[n + 1])
            bins[place] = bins.get(place, 0) + 1
        assert entry["bins"] == [[b, n] for b, n in sorted(bins.items())]
        assert columns["dead"][m] == (own.max() <= 0)
        if columns["dead"][m]:
            assert columns["class"][m] == -1 and not entry["value"] and not entry["classes"]
            continue
        means = np.array([own[labels == c].mean() for c in range(4)])
        order = sorted(range(4), key=lambda c: -means[c])
        others = (means.sum() - means.max()) / 3
        index = (means.max() - others) / (means.max() + others)
        assert columns["selectivity"][m] == entry["selectivity"] == pytest.approx(index, rel=1e-3, abs=1e-5)
        assert columns["class"][m] == order[0] == entry["classes"][0][0]
        agree = entry["label"].count(order[0]) / len(entry["label"])
        assert columns["agree"][m] == rounded(agree) == entry["classes"][0][2]
        assert [c for c, _, _ in entry["classes"]] == order
        assert columns["strength"][m] == entry["value"][0]


@pytest.mark.parametrize("layer", [0, 1])
def test_examples_lie_at_the_quantiles(folder, outputs, layer):
    maxima = outputs[LAYERS[layer]].flatten(2).amax(2)
    dead = read(folder, f"{layer}/columns")["dead"]
    for m, entry in enumerate(entries(folder, layer)):
        assert [e["quantile"] for e in entry["examples"]] == ([] if dead[m] else [0.9, 0.5, 0.1, 0])
        ordered = sorted(maxima[:, m].tolist())
        for example in entry["examples"]:
            value = torch.tensor(example["value"])
            assert value == torch.tensor(ordered[round(example["quantile"] * 39)])
            plane = outputs[LAYERS[layer]][example["image"], m]
            assert plane[example["row"], example["column"]] == value == plane.max()
            field = receptive_field(network(), LAYERS[layer], 24)
            assert tuple(example["box"]) == field.box(example["row"], example["column"])


def test_winners_of_images_are_those_of_maps(folder):
    index, images = read(folder, "index"), read(folder, "images")
    won = {}
    for n in range(index["winners"]):
        shard = script(folder / f"data/winners/{n}.js")[1]
        assert [int(image) for image in sorted(shard, key=int)] == images["id"][64 * n : 64 * (n + 1)]
        won |= shard
    found = {tuple(entry[:3]): (int(image), *entry[3:]) for image, all in won.items() for entry in all}
    expected = {}
    for layer in (0, 1):
        for entry in entries(folder, layer):
            for rank, (value, image, row, column, box) in enumerate(
                zip(*(entry[n] for n in ("value", "image", "row", "column", "box")), strict=True)
            ):
                expected[layer, entry["map"], rank] = (image, row, column, value, *box)
    assert found == expected
    assert images["label"] == [image % 4 for image in images["id"]]


# ---- pictures --------------------------------------------------------------------------------------------------------


def crop_of(data, model, image, box, shown):
    """What a box holds, white beyond the image: (h, w, 3), by single pixels."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.preprocessing.mean, model.preprocessing.std))
    pixels = (data.tensors[0][image] * std + mean).clamp(0, 1)
    crop = torch.ones(3, *shown)
    for y in range(box[2] - box[0]):
        for x in range(box[3] - box[1]):
            row, column = box[0] + y, box[1] + x
            if 0 <= row < pixels.shape[1] and 0 <= column < pixels.shape[2]:
                crop[:, y, x] = pixels[:, row, column]
    return crop


def as_tile(picture):
    return (picture * 255).round().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("layer", [0, 1])
def test_tiles_are_crops_and_projections(folder, model, data, layer):
    entry = read(folder, "index")["layers"][layer]
    assert entry["tile"] == entry["shown"] == list(receptive_field(model, LAYERS[layer], 24).size)
    deconvnet = Deconvnet(model)
    for row, found in enumerate(entries(folder, layer)):
        for rank, (image, r, c, box) in enumerate(
            zip(*(found[n] for n in ("image", "row", "column", "box")), strict=True)
        ):
            expected = as_tile(crop_of(data, model, image, box, entry["shown"]))
            assert np.abs(tile(folder, layer, row, rank) - expected).max() <= 1  # small tiles lose nothing
            units = [[0, found["map"], r, c]]
            patches = deconvnet.project_units(data.tensors[0][image : image + 1], LAYERS[layer], units)
            picture = signed_image(patches.projections)[0]
            beyond = [
                [not (0 <= box[0] + y < 24 and 0 <= box[1] + x < 24) for x in range(entry["shown"][1])]
                for y in range(entry["shown"][0])
            ]
            picture[:, torch.tensor(beyond)] = 1
            assert np.abs(tile(folder, layer, row, 9 + rank) - as_tile(picture)).max() <= 1


def test_a_projection_is_that_of_autograd(folder, model, data):
    found = entries(folder, 1)[0]
    image, row, column = (found[name][0] for name in ("image", "row", "column"))
    images = data.tensors[0][image : image + 1].double()
    signal = torch.zeros(1, 10, 5, 5, dtype=torch.float64)
    signal[0, found["map"], row, column] = found["value"][0]
    projection = deconvnet_by_autograd(network().double(), images, "relu2", signal)
    top, left, bottom, right = found["box"][0]
    inner = projection[:, :, max(top, 0) : bottom, max(left, 0) : right]
    picture = as_tile(signed_image(inner)[0])
    stored = tile(folder, 1, 0, 9)[max(-top, 0) :, max(-left, 0) :][: picture.shape[0], : picture.shape[1]]
    assert np.abs(stored - picture).max() <= 1


def test_masks_focus_and_area(folder, model, data):
    """Of the layer whose tiles are small: pixel by pixel, with sets that grow by one pixel."""
    index = read(folder, "index")["layers"][0]
    sheet = np.array(Image.open(folder / "tiles/0/masks-0.png").convert("RGBA"))
    (height, width), deconvnet = index["mask"], Deconvnet(model)
    assert (height, width) == (5, 5)
    for row, found in enumerate(entries(folder, 0)):
        for rank, (image, r, c) in enumerate(zip(*(found[n] for n in ("image", "row", "column")), strict=True)):
            patches = deconvnet.project_units(data.tensors[0][image : image + 1], "relu1", [[0, found["map"], r, c]])
            p = patches.projections[0].double()
            box, cell = found["box"][rank], (row // 4 * height, row % 4 * 9 * width + rank * width)
            inside = [(y, x) for y in range(5) for x in range(5) if 0 <= box[0] + y < 24 and 0 <= box[1] + x < 24]
            shown = covered({(y, x): float(p[:, y, x].abs().sum()) for y, x in inside}, 0.9)
            part = sheet[cell[0] : cell[0] + height, cell[1] : cell[1] + width]
            assert {(y, x) for y in range(5) for x in range(5) if part[y, x, 3] == 0} == shown
            assert (part[part[..., 3] > 0] == (128, 128, 128, 255)).all()
            assert found["area"][rank] == rounded(len(shown) / 25)
            half = covered({(y, x): float(p[:, y, x].square().sum()) for y, x in inside}, 0.5)
            assert found["focus"][rank] == rounded(len(half) / len(inside))


def covered(weights, share):
    """The largest weights, one by one, until they have a share of the sum."""
    chosen, sum_ = set(), 0.0
    for place, weight in sorted(weights.items(), key=lambda item: -item[1]):
        if sum_ >= share * sum(weights.values()):
            break
        chosen.add(place)
        sum_ += weight
    return chosen


def test_large_tiles_are_within_the_tolerance_of_the_codec(tmp_path):
    """Layer 2 of larger kernels, whose tiles are lossy."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 33, 4, padding=2), nn.ReLU()).eval()
    model.preprocessing = Preprocessing(size=96, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    data = pictures(model, 12, size=96)
    folder = atlas.build(model, data, tmp_path / "a", layers=["1"], progress=False)
    entry, worst = read(folder, "index")["layers"][0], 0.0
    for row, found in enumerate(entries(folder, 0)):
        for rank, (image, box) in enumerate(zip(found["image"], found["box"], strict=True)):
            expected = as_tile(crop_of(data, model, image, box, entry["shown"]))
            worst = max(worst, np.abs(tile(folder, 0, row, rank) - expected).mean())
    assert worst < 12
    assert atlas.check(model, data, folder, samples=5, progress=False) == []


def test_overview_and_examples(folder, model, data):
    """They are the same tiles in other places: small ones lose nothing."""
    for layer, rows in ((0, 8), (1, 10)):
        entry = read(folder, "index")["layers"][layer]
        height, width = entry["overview"]
        sheet = np.array(Image.open(folder / f"tiles/{layer}/overview-0.webp").convert("RGB"))
        tiles = np.array(Image.open(folder / f"tiles/{layer}/0.webp").convert("RGB"))
        assert tiles.shape == (rows * entry["tile"][0], 18 * entry["tile"][1] + 4 * entry["example"][1], 3)
        for row, found in enumerate(entries(folder, layer)):
            if not found["value"]:
                continue
            cell = sheet[row // 16 * height :, row % 16 * 2 * width :][:height, : 2 * width]
            assert (cell[:, :width] == tile(folder, layer, row, 0)).all()
            assert (cell[:, width:] == tile(folder, layer, row, 9)).all()
            for place, example in enumerate(found["examples"]):
                crop = as_tile(crop_of(data, model, example["image"], example["box"], entry["shown"]))
                left = 18 * entry["tile"][1] + place * entry["example"][1]
                stored = tiles[row * entry["tile"][0] :, left:][: entry["example"][0], : entry["example"][1]]
                assert np.abs(stored - crop).max() <= 1


def test_whole_images(folder, model, data):
    images = read(folder, "images")
    assert images["size"] == [[24, 24]] * len(images["id"])
    for image in images["id"]:
        stored = np.array(Image.open(folder / f"images/{image}.webp").convert("RGB")).astype(float)
        assert np.abs(stored - as_tile(crop_of(data, model, image, (0, 0, 24, 24), (24, 24)))).mean() < 12


# ---- links -----------------------------------------------------------------------------------------------------------


def table(links):
    return [{(layer, m): weight for layer, m, weight in links.of(n)} for n in range(len(links.layer))]


def linked(model, names, size):
    deconvnet = Deconvnet(model)
    nodes = [deconvnet.graph.node(name) for name in names]
    return weights(deconvnet, nodes, nearest_below(deconvnet.graph, nodes), (size, size))


def check_links(links, matrix, layer):
    """The six largest of each row of a matrix (C, maps below)."""
    for found, row in zip(table(links), matrix, strict=True):
        expected = sorted(enumerate(row.tolist()), key=lambda item: -abs(item[1]))[:6]
        assert found == pytest.approx({(layer, m): weight for m, weight in expected if weight}, rel=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
def test_links_are_sums_of_weights(groups):
    model = network(conv3=nn.Conv2d(10, 12, 3, padding=1, groups=groups), norm3=nn.BatchNorm2d(12), relu3=nn.ReLU())
    nn.init.normal_(model.norm3.weight)
    model.norm3.running_var.uniform_(0.5, 2)
    feed, readers = linked(model, [*LAYERS, "relu3"], 24)
    second = model.conv2.weight.sum((2, 3))
    third = torch.zeros(12, 10)
    for m in range(12):
        first = m // (12 // groups) * (10 // groups)
        scale = model.norm3.weight[m] / (model.norm3.running_var[m] + model.norm3.eps).sqrt()
        third[m, first : first + 10 // groups] = scale * model.conv3.weight[m].sum((1, 2))
    check_links(feed[1], second.detach(), 0)
    check_links(feed[2], third.detach(), 1)
    check_links(readers[0], second.T.detach(), 1)
    check_links(readers[1], third.T.detach(), 2)
    assert not any(table(feed[0])) and not any(table(readers[2]))


def test_links_through_joined_branches():
    model = network(fire=Fire(), conv4=nn.Conv2d(9, 6, 1), relu4=nn.ReLU())
    model.conv2 = nn.Conv2d(8, 8, 3, padding=1)
    with torch.no_grad():
        fire, names = model.fire, ["relu2", "fire.relu", "fire.cat", "relu4"]
        feed, _ = linked(model, names, 24)
        joined = torch.cat([fire.expand1.weight.sum((2, 3)), fire.expand3.weight.sum((2, 3))])
        check_links(feed[1], fire.squeeze.weight.sum((2, 3)), 0)
        check_links(feed[2], joined, 1)
        check_links(feed[3], model.conv4.weight.sum((2, 3)), 2)
        over_all = model.conv4.weight.sum((2, 3)) @ joined @ fire.squeeze.weight.sum((2, 3))
        check_links(linked(model, ["relu2", "relu4"], 24)[0][1], over_all, 0)


def test_the_nearest_layers_below_have_none_between():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.relu = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.ReLU()

        def forward(self, x):
            x = self.relu(self.a(x))
            return x + self.b(x)

    graph = Graph(Skip())
    nodes = [graph.node(name) for name in ("a", "relu", "b", "add")]
    below = nearest_below(graph, nodes)
    assert below == [[], [0], [1], [1, 2]]
    assert nearest_above(below) == [[1], [2, 3], [3], []]
    model = Skip()
    with torch.no_grad():
        feed, _ = linked(model, ["relu", "b", "add"], 8)
        assert table(feed[2]) == [{(0, m): 1.0, (1, m): 1.0} for m in range(3)]  # the way through b ends at b


def test_signal_and_steps_are_what_the_walk_leaves(folder, model, data):
    deconvnet = Deconvnet(model)
    index = read(folder, "index")["layers"][1]
    assert index["steps"] == [
        ["relu2", "ReLU"],
        ["conv2", "Conv2d"],
        ["pool1", "MaxPool2d"],
        ["relu1", "ReLU"],
        ["conv1", "Conv2d"],
        ["input", "image"],
    ]
    for found in entries(folder, 1):
        if not found["value"]:
            continue
        image, row, column = (found[name][0] for name in ("image", "row", "column"))
        recording = deconvnet.record(data.tensors[0][image : image + 1], ["relu2"])
        signal = torch.zeros(1, 10, 5, 5)
        signal[0, found["map"], row, column] = found["value"][0]
        steps = [signal, *(sent for _, _, sent in deconvnet.steps(recording, "relu2", signal))]
        assert found["steps"] == [int((step != 0).sum()) for step in steps]
        arrived = steps[3].abs().sum((0, 2, 3))
        shares = arrived / arrived.sum()
        assert {m: share for _, m, share in found["signal"]} == pytest.approx(
            {m: float(shares[m]) for m in shares.argsort(descending=True)[:6].tolist() if shares[m] > 0}, rel=1e-3
        )


def test_projections_that_are_observed_are_the_same(model, data):
    deconvnet, images = Deconvnet(model), data.tensors[0][:4]
    units = torch.tensor([[i, m, 2, 3] for i in range(4) for m in range(10)])
    seen = {}

    def observe(name, signal, batch):
        for unit, one in zip(batch.tolist(), signal, strict=True):
            assert seen.setdefault((name, unit), one.count_nonzero()) is not None

    plain, observed = (deconvnet.project_units(images, "relu2", units, observe=o) for o in (None, observe))
    assert all(torch.equal(a, b) for a, b in zip(plain, observed, strict=True))
    assert {name for name, _ in seen} == {"relu2", "conv2", "pool1", "relu1", "conv1", "input"}
    assert len(seen) == 6 * 40  # each once


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_the_folder_is_as_it_says(folder):
    known = json.loads((folder / "files.json").read_text())
    there = files(folder)
    assert set(there) == set(known) | {"files.json"}
    assert all(hashlib.blake2b(there[name], digest_size=16).hexdigest() == digest for name, digest in known.items())
    index = read(folder, "index")
    assert index["format"] == 1 and index["images"] == 40 and index["class_images"] == [10] * 4
    assert (index["pixels"], index["encoding"], index["k"], index["rules"]) == ("full", "webp", 9, "deconvnet")
    assert [layer["name"] for layer in index["layers"]] == LAYERS
    first, second = index["layers"]
    assert (first["maps"], first["rows"], first["size"], first["kernel"], first["stride"]) == (
        8,
        8,
        [11, 11],
        [5, 5],
        [2, 2],
    )
    assert (second["kernel_of"], second["below"], first["above"]) == ("conv2", [0], [1])
    assert not second["whole"] and not second["clipped"] and not second["fields"]
    assert [step["name"] for step in index["network"]] == ["conv1", "relu1", "pool1", "conv2", "relu2"]
    assert [step["layer"] for step in index["network"]] == [None, 0, None, None, 1]
    for path in there:
        if path.startswith("tiles"):
            assert max(Image.open(folder / path).size) <= 2048
    for site in building.SITE.rglob("*"):
        if site.is_file():
            assert there[site.relative_to(building.SITE).as_posix()] == site.read_bytes()


def test_a_sheet_of_every_kind_stays_within_2048_pixels(tmp_path):
    """Of tiles of the largest size, and of more maps than any sheet holds."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 300, 90, 6), nn.ReLU()).eval()
    data = torch.rand(10, 3, 96, 96)
    folder = atlas.build(model, data, tmp_path / "a", layers=["1"], k=9, progress=False)
    entry = read(folder, "index")["layers"][0]
    assert entry["tile"] == [72, 72] and entry["mask"] == [56, 56]
    names = {path.name for path in (folder / "tiles/0").iterdir()}
    assert names == {f"{n}.webp" for n in range(13)} | {f"masks-{n}.png" for n in range(4)} | {
        f"overview-{n}.webp" for n in range(2)
    }
    assert all(max(Image.open(path).size) <= 2048 for path in (folder / "tiles/0").iterdir())
    assert [found["map"] for found in entries(folder, 0)] == list(range(300))


def test_the_same_build_gives_the_same_bytes(folder, model, data, tmp_path):
    again = atlas.build(model, data, tmp_path / "again", layers=LAYERS[::-1], progress=False, batch_size=7)
    assert files(again) == files(folder)


def test_any_number_of_threads_gives_the_same_bytes(folder, model, data, tmp_path, monkeypatch):
    monkeypatch.setattr("zfnet.atlas.panels.MOST_BYTES", 2**14)  # many chunks
    known = scan(model, data, LAYERS, gather=True, progress=False)
    made, threads = [], torch.get_num_threads()
    for count in (1, 4):
        torch.set_num_threads(count)
        out = atlas.build(model, data, tmp_path / f"{count}", layers=LAYERS, scan=known, progress=False)
        made.append(files(out))
        assert torch.get_num_threads() == count
    torch.set_num_threads(threads)
    assert made[0] == made[1]


def test_an_error_in_a_thread_ends_the_build(model, data, tmp_path, monkeypatch):
    def fail(self, *_):
        raise InputError("a thread fails")

    monkeypatch.setattr(Painter, "_draw", fail)
    with pytest.raises(InputError, match="a thread fails"):
        atlas.build(model, data, tmp_path / "a", layers=LAYERS, progress=False)


def test_a_stopped_build_goes_on(folder, model, data, tmp_path, monkeypatch):
    made, panels = [], Painter.panels

    def stopped(self, layer, *rest):
        if layer.number == 1:
            raise KeyboardInterrupt
        return panels(self, layer, *rest)

    def counted(self, layer, *rest):
        made.append(layer.name)
        return panels(self, layer, *rest)

    monkeypatch.setattr(Painter, "panels", stopped)
    with pytest.raises(KeyboardInterrupt):
        atlas.build(model, data, tmp_path / "a", layers=LAYERS, progress=False)
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(Painter, "panels", counted)
    monkeypatch.setattr("zfnet.scanning._scan_batch", None)  # which is not called
    out = atlas.build(model, data, tmp_path / "a", layers=LAYERS, progress=False)
    assert made == ["relu2"] and files(out) == files(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_a_stopped_build_left_damaged_is_made_again(folder, model, data, tmp_path, monkeypatch):
    finish = building._Work.finish
    monkeypatch.setattr(building._Work, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        atlas.build(model, data, tmp_path / "a", layers=LAYERS, progress=False)
    (tmp_path / "a.partial/tiles/1/0.webp").write_bytes(b"half")
    (tmp_path / "a.partial/tiles/1/99.webp").write_bytes(b"of an older one")
    monkeypatch.setattr(building._Work, "finish", finish)
    assert files(atlas.build(model, data, tmp_path / "a", layers=LAYERS, progress=False)) == files(folder)


def test_another_build_takes_nothing_of_a_stopped_one(model, data, tmp_path, monkeypatch, capsys):
    finish = building._Work.finish
    monkeypatch.setattr(building._Work, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        atlas.build(model, data, tmp_path / "a", layers=LAYERS, progress=False)
    monkeypatch.setattr(building._Work, "finish", finish)
    out = atlas.build(model, data, tmp_path / "a", layers=LAYERS, maps=2, progress=False)
    assert "is of another atlas (maps" in capsys.readouterr().err
    assert files(out) == files(atlas.build(model, data, tmp_path / "b", layers=LAYERS, maps=2, progress=False))


def test_an_atlas_is_replaced_and_nothing_else(model, data, tmp_path, capsys):
    out = tmp_path / "a"
    atlas.build(model, data, out, layers=["relu1"], maps=1, progress=False)
    (out / ".DS_Store").write_text("of a file manager")
    atlas.build(model, data, out, layers=["relu1"], maps=[2], progress=False)
    assert f"the atlas that was in {out} is replaced" in capsys.readouterr().err
    assert not (out / ".DS_Store").exists() and entries(out, 0)[0]["map"] == 2
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"not part of an atlas \(thesis.tex\)"):
        atlas.build(model, data, other, layers=["relu1"], progress=False)
    (other / "files.json").write_text('["a"]')
    with pytest.raises(InputError, match=r"not part of an atlas \(files.json\)"):
        atlas.build(model, data, other, layers=["relu1"], progress=False)
    assert (other / "thesis.tex").read_text() == "years of work"
    (out / "tiles/notes.txt").write_text("what I think of it")
    with pytest.raises(InputError, match=r"not part of an atlas \(tiles/notes.txt\)"):
        atlas.build(model, data, out, layers=["relu1"], progress=False)
    (tmp_path / "b.partial").mkdir()
    (tmp_path / "b.partial/x").write_text("")
    with pytest.raises(InputError, match="not a build of an atlas"):
        atlas.build(model, data, tmp_path / "b", layers=["relu1"], progress=False)


def test_a_build_that_was_killed_at_its_beginning_goes_on(model, data, tmp_path):
    (tmp_path / "a.partial/.work").mkdir(parents=True)
    out = atlas.build(model, data, tmp_path / "a", layers=["relu1"], maps=1, progress=False)
    assert (out / "index.html").exists() and not (tmp_path / "a.partial").exists()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": 2.0}, "k is 2.0"),
        ({"provenance": {"loss": float("nan")}}, "provenance loss is nan"),
        ({"provenance": {"when": object}}, "provenance when is <class"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(model, data, tmp_path, wrong, says):
    with pytest.raises(InputError, match=says):
        atlas.build(model, data, tmp_path / "a", layers=["relu1"], progress=False, **wrong)
    assert not list(tmp_path.iterdir())


# ---- choices ---------------------------------------------------------------------------------------------------------


def test_some_maps_are_rows(model, data, folder, tmp_path):
    out = atlas.build(model, data, tmp_path / "a", layers=LAYERS, maps={"relu1": [6, 2]}, progress=False)
    assert read(out, "0/columns")["map"] == [2, 6] and read(out, "1/columns")["map"] == list(range(10))
    assert read(out, "index")["layers"][0]["rows"] == 2 and read(out, "index")["layers"][0]["maps"] == 8
    every = entries(folder, 0)
    assert [entry["value"] for entry in entries(out, 0)] == [every[m]["value"] for m in (2, 6)]
    assert [entry["readers"] for entry in entries(out, 0)] == [every[m]["readers"] for m in (2, 6)]
    for row, m in enumerate((2, 6)):
        assert all((tile(out, 0, row, place) == tile(folder, 0, m, place)).all() for place in range(18))


def test_none_of_the_images_pixels(model, data, folder, tmp_path):
    out = atlas.build(model, data, tmp_path / "a", layers=LAYERS, images="none", progress=False)
    assert not (out / "images").exists()
    for layer in (0, 1):
        entry = read(out, "index")["layers"][layer]
        for row, found in enumerate(entries(out, layer)):
            for rank in range(len(found["value"])):
                assert (tile(out, layer, row, rank) == tile(folder, layer, row, 9 + rank)).all()
        size = Image.open(out / f"tiles/{layer}/0.webp").size
        assert size == (9 * entry["tile"][1], entry["rows"] * entry["tile"][0])
        overview = Image.open(out / f"tiles/{layer}/overview-0.webp").size
        assert overview == (16 * entry["overview"][1], entry["overview"][0])
        assert entries(out, layer) == entries(folder, layer)
    assert "no pixel of an image" in read(out, "index")["licence"]


def test_thumbs(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())
    out = atlas.build(model, torch.rand(9, 3, 70, 140), tmp_path / "a", layers=["1"], images="thumbs", progress=False)
    assert read(out, "images")["size"][0] == [32, 64]
    assert Image.open(next((out / "images").iterdir())).size == (64, 32)


def test_avif(model, data, tmp_path, monkeypatch):
    out = atlas.build(model, data, tmp_path / "a", layers=["relu1"], maps=2, format="avif", progress=False)
    assert {path.suffix for path in (out / "tiles/0").iterdir()} == {".avif", ".png"}
    assert atlas.check(model, data, out, samples=4, progress=False) == []
    monkeypatch.setattr("zfnet.atlas.pictures.features.check", lambda name: False)
    with pytest.raises(InputError, match="cannot write avif"):
        atlas.build(model, data, tmp_path / "b", layers=["relu1"], format="avif", progress=False)


def test_fields_larger_than_the_image_are_whole_images(tmp_path):
    model = network(pool2=nn.MaxPool2d(2, 2), conv3=nn.Conv2d(10, 4, 5, padding=4, dilation=2), relu3=nn.ReLU())
    data = pictures(model, 12)
    field = receptive_field(model, "relu3", 24)
    assert math.prod(field.size) > 2 * 24 * 24
    out = atlas.build(model, data, tmp_path / "a", layers=["relu3"], progress=False)
    entry = read(out, "index")["layers"][0]
    assert entry["whole"] and entry["shown"] == [24, 24] and entry["field"] == list(field.size)
    found = next(e for e in entries(out, 0) if e["value"])
    assert tuple(found["box"][0]) == field.box(found["row"][0], found["column"][0])
    expected = as_tile(crop_of(data, model, found["image"][0], (0, 0, 24, 24), (24, 24)))
    assert np.abs(tile(out, 0, found["map"], 0) - expected).mean() < 12


def test_units_without_a_place(tmp_path):
    model = network(flat=nn.Flatten(), fc=nn.Linear(250, 6), relu3=nn.ReLU())
    data = pictures(model, 12)
    out = atlas.build(model, data, tmp_path / "a", layers=["relu2", "relu3"], progress=False)
    entry = read(out, "index")["layers"][1]
    assert (entry["size"], entry["field"], entry["whole"], entry["shown"]) == ([1, 1], [24, 24], False, [24, 24])
    found = entries(out, 1)
    assert any(e["value"] for e in found) and all(box == [0, 0, 24, 24] for e in found for box in e["box"])
    assert atlas.check(model, data, out, samples=5, progress=False) == []


def test_maps_that_see_less_stand_at_the_top_left(tmp_path):
    model = network(fire=Fire())
    model.conv2 = nn.Conv2d(8, 8, 3, padding=1)
    data = pictures(model)
    out = atlas.build(model, data, tmp_path / "a", layers=["fire.cat"], progress=False)
    entry = read(out, "index")["layers"][0]
    assert entry["fields"] and entry["kernel"] is None and entry["kernel_of"] is None
    row, found = next((n, e) for n, e in enumerate(entries(out, 0)) if n < 4 and e["value"])
    top, left, bottom, right = found["box"][0]
    assert bottom - top == right - left < entry["shown"][0]
    picture = tile(out, 0, row, 0)
    assert (picture[bottom - top + 3 :] > 200).all() and (picture[:, right - left + 3 :] > 200).all()


def test_clipped_maps_are_ranked_before_the_clip(tmp_path):
    model = network()
    model.relu2 = nn.ReLU6()
    with torch.no_grad():
        model.conv2.weight *= 40
    data = pictures(model)
    out = atlas.build(model, data, tmp_path / "a", layers=["relu2"], progress=False)
    before = activations(Graph(model), data.tensors[0], ["conv2"])["conv2"]
    values, images, rows, _ = top_k(before, 9)
    saturated = 0
    for m, found in enumerate(entries(out, 0)):
        n = int((values[m] > 0).sum())
        assert torch.equal(torch.tensor(found["unclipped"]), values[m, :n])
        assert found["value"] == [min(value, 6.0) for value in found["unclipped"]]
        assert found["image"] == images[m, :n].tolist() and found["row"] == rows[m, :n].tolist()
        saturated += found["value"].count(6.0)
        assert read(out, "0/columns")["strength"][m] == (found["unclipped"][0] if n else 0)
    assert saturated > 20 and read(out, "index")["layers"][0]["clipped"]
    assert atlas.check(model, data, out, samples=5, progress=False) == []


def test_grey_images(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).eval()
    data = torch.rand(9, 1, 12, 12)
    out = atlas.build(model, data, tmp_path / "a", layers=["1"], progress=False)
    assert read(out, "index")["channels"] == 1
    found = entries(out, 0)
    row = next(n for n, e in enumerate(found) if e["value"])
    top, left, bottom, right = found[row]["box"][0]
    crop = data[found[row]["image"][0], :, top:bottom, left:right].expand(3, -1, -1)
    assert np.abs(tile(out, 0, row, 0) - as_tile(crop)).max() <= 1
    assert atlas.check(model, data, out, samples=5, progress=False) == []


def test_layers_by_name_and_all(model):
    graph = Graph(network(flat=nn.Flatten(), fc=nn.Linear(250, 6)))
    assert names_of(graph, (24, 24), "all") == ["conv1", "relu1", "pool1", "conv2", "relu2", "fc"]
    assert names_of(graph, (24, 24), ["relu2", "conv1", "relu2"]) == ["conv1", "relu2"]


def test_statistics_without_labels(tmp_path, model, data):
    out = atlas.build(model, data.tensors[0], tmp_path / "a", layers=["relu1"], progress=False)
    index, columns = read(out, "index"), read(out, "0/columns")
    assert index["classes"] == [] and index["unlabelled"] == 40
    assert set(columns["class"]) == {-1} and set(columns["selectivity"]) == {None}
    assert all(found["classes"] == [] and set(found["label"]) <= {-1} for found in entries(out, 0))


class Some(Images):
    """Of these images, some that cannot be read; how often each is read is counted."""

    def __init__(self, data, broken=()):
        self.data, self.broken, self.reads = data, broken, []

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        from zfnet.errors import BrokenImage

        self.reads.append(index)
        if index in self.broken:
            raise BrokenImage("it is damaged")
        image, label = self.data[index]
        return image, int(label)

    def basis(self):
        return ["some", list(self.broken)]


def test_broken_images_are_named_on_the_first_page(model, data, tmp_path):
    out = atlas.build(model, Some(data, (3, 20)), tmp_path / "a", layers=["relu1"], workers=0, progress=False)
    index = read(out, "index")
    assert (index["images"], index["broken_count"], len(index["broken"])) == (38, 2, 2)
    assert any("2 images could not be read" in warning and "item 3" in warning for warning in index["warnings"])
    assert not {3, 20} & {image for entry in entries(out, 0) for image in entry["image"]}
    assert not {3, 20} & {example["image"] for entry in entries(out, 0) for example in entry["examples"]}


def test_images_are_read_once_for_all_layers(model, data, tmp_path):
    images = Some(data)
    atlas.build(model, images, tmp_path / "a", layers=LAYERS, workers=0, progress=False)
    assert max(images.reads.count(image) for image in range(40)) <= 3  # by the scan, for the pictures, and its size


def test_images_that_do_not_fit_into_memory_are_read_again(folder, model, data, tmp_path, monkeypatch):
    monkeypatch.setattr("zfnet.atlas.images.MEMORY", 24 * 24 * 3 * 4 * 5)

    out = atlas.build(model, Some(data), tmp_path / "a", layers=LAYERS, workers=0, progress=False)
    theirs, ours = files(folder), files(out)
    differ = {name for name in ours if ours[name] != theirs[name]}
    assert differ <= {"data/index.js", "files.json"}  # where the data's name stands


def test_warnings_licence_and_provenance(model, data, folder, tmp_path):
    index = read(folder, "index")
    assert any("Only 40 images" in warning for warning in index["warnings"])
    assert "licence of the images is not known" in index["licence"]
    assert not any("random" in warning for warning in index["warnings"])
    for name in ("zfnet", "torch", "torchvision", "pillow", "weights", "architecture", "preprocessing", "data", "seed"):
        assert name in index["provenance"]
    out = atlas.build(
        *(model, data, tmp_path / "a"),
        **{"layers": ["relu1"], "random": True, "licence": "All free.", "title": "Mine", "seed": 7},
        provenance={"command": "made by hand"},
        progress=False,
    )
    index = read(out, "index")
    assert any("weights are random" in warning for warning in index["warnings"])
    assert (index["licence"], index["title"]) == ("All free.", "Mine")
    assert (index["provenance"]["command"], index["provenance"]["seed"]) == ("made by hand", 7)


def test_a_scan_that_is_given(folder, model, data, tmp_path):
    known = scan(model, data, LAYERS, gather=True, progress=False)
    out = atlas.build(model, data, tmp_path / "a", layers=LAYERS, scan=known, progress=False)
    assert files(out) == files(folder)
    with pytest.raises(InputError, match="no statistics"):
        atlas.build(
            model, data, tmp_path / "b", layers=LAYERS, progress=False, scan=scan(model, data, LAYERS, progress=False)
        )
    with pytest.raises(InputError, match="no scanned layer 'conv1'"):
        atlas.build(model, data, tmp_path / "b", layers=["conv1"], progress=False, scan=known)
    other = network()
    with torch.no_grad():
        other.conv1.weight[0] += 0.5
    with pytest.raises(InputError, match="the scan says that map 0 of relu1"):
        atlas.build(other, data, tmp_path / "b", layers=LAYERS, scan=known, progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ["relu3"]}, r"no layer of Sequential 'relu3' \(did you mean 'relu"),
        ({"layers": []}, "at least one layer"),
        ({"layers": "relu1"}, "give a list of layers"),
        ({"maps": []}, "maps is empty for relu1"),
        ({"maps": 0}, "maps is 0"),
        ({"maps": [0, 8]}, "no map 8 in relu1: there are 8"),
        ({"maps": {"relu9": [1]}}, "maps names 'relu9', which is not a layer of this atlas; its layers are relu1"),
        ({"images": "some"}, "no images 'some'"),
        ({"format": "jpeg"}, "no format 'jpeg'"),
        ({"rules": "deconv"}, "no rule set 'deconv'"),
        ({"k": 41}, "fewer than k=41"),
    ],
)
def test_mistakes(model, data, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        atlas.build(model, data, tmp_path / "a", **{"layers": ["relu1"], "progress": False} | settings)
    assert not (tmp_path / "a").exists()


def test_what_cannot_be_projected_is_said_before_the_scan(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU()).eval()
    images = Some(TensorDataset(torch.rand(20, 3, 12, 12), torch.arange(20)))
    with pytest.raises(InputError, match="no deconvnet rule for SiLU at 1"):
        atlas.build(model, images, tmp_path / "a", layers=["1"], progress=False)
    assert set(images.reads) == {0}


def test_images_that_are_too_small(tmp_path, model):
    with pytest.raises(InputError, match="conv1"):
        atlas.build(model, torch.rand(9, 3, 2, 2), tmp_path / "a", layers=["relu1"], progress=False)


# ---- check -----------------------------------------------------------------------------------------------------------


def copied(folder, to):
    import shutil

    shutil.copytree(folder, to)
    return to


def rewritten(path: Path, folder: Path, change):
    """Change a file and its digest: whoever can write one can write the other."""
    content = change(path.read_bytes())
    path.write_bytes(content)
    known = json.loads((folder / "files.json").read_text())
    known[path.relative_to(folder).as_posix()] = hashlib.blake2b(content, digest_size=16).hexdigest()
    (folder / "files.json").write_text(json.dumps(known))


def test_nothing_differs(folder, model, data):
    found = atlas.check(model, data, folder, samples=20, progress=False)
    assert found == [] and found.values > 100 and found.tiles > 100


def test_check_finds_a_changed_weight(folder, data):
    changed = network()
    with torch.no_grad():
        changed.conv1.weight[3] *= 1.1
    found = atlas.check(changed, data, folder, samples=60, progress=False)
    assert any("The network's weights differ" in line for line in found)
    assert any(re.search(r"map 3 of relu1 is .*; this network computes", line) for line in found)
    assert not any("map 2 of relu1 is" in line for line in found)


def test_check_finds_other_images(folder, model, data):
    images = data.tensors[0].clone()
    images[7] = images[8]
    found = atlas.check(model, TensorDataset(images, data.tensors[1]), folder, samples=60, progress=False)
    assert any("the images" in line.lower() for line in found) and any("of image 7" in line for line in found)


def test_check_finds_changed_and_missing_files(folder, model, data, tmp_path):
    out = copied(folder, tmp_path / "a")
    (out / "images/0.webp").write_bytes(b"")
    (out / "tiles/0/overview-0.webp").unlink()
    (out / "data/more.js").write_text("")
    found = atlas.check(model, data, out, samples=1, progress=False)
    assert "images/0.webp was changed since the atlas was built." in found
    assert "tiles/0/overview-0.webp is missing." in found
    assert "data/more.js is not a file of the atlas." in found


def test_check_finds_a_changed_number_and_picture_whose_digests_were_changed_too(folder, model, data, tmp_path):
    out = copied(folder, tmp_path / "a")

    def number(content):
        entry = script(out / "data/0/0.js")[1][4]
        old = json.dumps(entry["value"][2])
        assert content.count(old.encode()) >= 1
        return content.replace(old.encode(), json.dumps(entry["value"][2] * 1.05).encode())

    rewritten(out / "data/0/0.js", out, number)
    found = atlas.check(model, data, out, samples=80, progress=False)
    assert any(re.search("map 4 of relu1 is .*; this network computes", line) for line in found)
    assert all("map 4 of relu1" in line or "lists other maps than" in line for line in found)
    out = copied(folder, tmp_path / "b")

    def picture(content):
        import io

        image = Image.open(io.BytesIO(content)).convert("RGB")
        pixels = np.array(image)
        height = read(out, "index")["layers"][1]["tile"][0]
        row = next(n for n, e in enumerate(entries(out, 1)) if e["value"])
        pixels[row * height : (row + 1) * height] = 255 - pixels[row * height : (row + 1) * height]
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "WEBP", lossless=True)
        return buffer.getvalue()

    rewritten(out / "tiles/1/0.webp", out, picture)
    found = atlas.check(model, data, out, samples=80, progress=False)
    assert found and all("of relu2 has another" in line for line in found)


TAMPERED = {
    "fires": ("data/0/0.js", lambda v: v[2].update(fires=v[2]["fires"] / 2), "map 2 of relu1 has"),
    "a histogram": ("data/0/0.js", lambda v: v[2]["bins"][0].__setitem__(1, 1000), "a histogram of another number"),
    "the last winner": ("data/0/0.js", lambda v: v[2].update(value=v[2]["value"][:-1]), "8 winners and fires"),
    "the order of classes": ("data/0/0.js", lambda v: v[2]["classes"].reverse(), "classes out of order"),
    "labels": ("data/0/0.js", lambda v: v[2].update(label=[-1] * 9), "another share of a class"),
    "strength": ("data/0/columns.js", lambda v: v["strength"].__setitem__(2, 99), "another strength on the page"),
    "focus": ("data/0/columns.js", lambda v: v["focus"].reverse(), "another focus on the page"),
    "dead": ("data/0/columns.js", lambda v: v.update(dead=[True] * len(v["dead"])), "another dead on the page"),
    "numbers of maps": ("data/0/columns.js", lambda v: v["map"].reverse(), "another map on the page"),
    "winners": ("data/winners/0.js", lambda v: {i: [] for i in v}, "lists other maps than"),
    "labels of images": ("data/images.js", lambda v: v["label"].reverse(), "has another label"),
    "classes": ("data/index.js", lambda v: v["classes"].reverse(), "classes have other names"),
    "the format": ("data/index.js", lambda v: v.update(format=99), "an atlas of format 99"),
    "all of the index": ("data/index.js", lambda v: {"layers": []}, "was not written by a build (KeyError"),
    "a list in place of columns": ("data/0/columns.js", lambda v: [], "was not written by a build"),
    "a place beyond the map": ("data/0/0.js", lambda v: v[2]["row"].__setitem__(0, 99), "map 2 of relu1"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_check_finds_numbers_that_contradict_each_other(folder, model, data, tmp_path, name):
    path, change, says = TAMPERED[name]
    out = copied(folder, tmp_path / "a")
    old = (out / path).read_bytes()
    called, value = script(out / path)
    other = change(value)
    new = building.script(called, value if other is None else other)
    assert new != old
    rewritten(out / path, out, lambda content: new)
    try:
        found = atlas.check(model, data, out, samples=80, progress=False)
    except InputError as error:
        found = [str(error)]
    assert any(says in line for line in found), found


def test_check_says_what_is_missing_besides_what_was_changed(folder, model, data, tmp_path):
    out = copied(folder, tmp_path / "a")
    (out / "data/index.js").unlink()
    (out / "evil.js").write_text("")
    found = atlas.check(model, data, out, progress=False)
    assert "data/index.js is missing." in found and "evil.js is not a file of the atlas." in found


def test_check_with_images_of_another_size(folder, model, data):
    other = TensorDataset(data.tensors[0][..., :20], data.tensors[1])
    assert "The images are of 24 x 20 pixels" in atlas.check(model, other, folder, progress=False)[0]


def test_tiles_of_long_fields(tmp_path):
    model = network()
    model.conv1 = torch.nn.Conv2d(3, 8, (1, 17), padding=(0, 8))
    data = pictures(model)
    out = atlas.build(model, data, tmp_path / "a", layers=["relu1"], progress=False)
    layer = read(out, "index")["layers"][0]
    assert layer["tile"] == [1, 17]
    assert atlas.check(model, data, out, samples=30, progress=False) == []
    assert all(0 < area < 1 for entry in entries(out, 0) for area in entry["area"])


def test_check_of_no_atlas(model, data, tmp_path):
    with pytest.raises(InputError, match="is not an atlas"):
        atlas.check(model, data, tmp_path, progress=False)


# ---- in a notebook ---------------------------------------------------------------------------------------------------


def test_show(folder, model, data):
    row = next(n for n, e in enumerate(entries(folder, 1)) if len(e["value"]) == 9)
    found = entries(folder, 1)[row]
    panel = atlas.show(model, data, "relu2", found["map"], progress=False)
    assert torch.equal(panel.values, torch.tensor(found["value"])) and panel.boxes.tolist() == found["box"]
    assert panel.images.tolist() == found["image"] and panel.places[:, 0].tolist() == found["row"]
    assert panel.labels == [str(label) for label in found["label"]]
    assert repr(panel).startswith(f"Panel(relu2, map {found['map']}: ")
    page = panel._repr_html_()
    assert page.count("<img") == 18 and page.count("data:image/webp;base64,") == 18
    assert "http" not in page and f"map {found['map']}" in page
    for rank in range(9):
        assert np.abs(tile(folder, 1, row, rank) - as_tile(panel.crops[rank])).max() <= 1
        picture = signed_image(panel.projections[rank : rank + 1])[0]
        inside = tile(folder, 1, row, 9 + rank) != 255
        assert np.abs(tile(folder, 1, row, 9 + rank) - as_tile(picture))[inside].max() <= 1
    known = scan(model, data, ["relu2"], gather=True, progress=False)
    assert torch.equal(atlas.show(model, data, "relu2", found["map"], scan=known, progress=False).crops, panel.crops)


def test_show_what_there_is_not(model, data):
    with pytest.raises(InputError, match="no map 10 in relu2"):
        atlas.show(model, data, "relu2", 10, progress=False)
    with pytest.raises(InputError, match="did you mean 'relu"):
        atlas.show(model, data, "relu3", 0, progress=False)


# ---- the experiment --------------------------------------------------------------------------------------------------


def test_the_experiment(model, data, tmp_path, capsys):
    settings = {"scans": tmp_path / "scan", "layers": LAYERS, "progress": False}
    result = experiment.main(model, data, tmp_path / "a", maps=4, licence="All free.", **settings)
    ours, index = result["ours"], read(tmp_path / "a", "index")
    assert "the weights are random" in " ".join(index["warnings"]).lower() and index["licence"] == "All free."
    assert index["provenance"]["command"] and index["provenance"]["weights_from"] is None
    assert ours["files"] == len(files(tmp_path / "a")) - 1  # before its own result
    assert {"scan", "projection"} <= ours["seconds"].keys()
    assert "seconds: " in capsys.readouterr().out
    assert (tmp_path / "scan/scan.json").exists()
    again = experiment.main(model, data, tmp_path / "b", maps=4, licence="All free.", weights="mine.pt", **settings)
    assert again["ours"]["files"] == ours["files"]
    assert not any("random" in warning for warning in read(tmp_path / "b", "index")["warnings"])
    result = experiment.main(model, data, tmp_path / "c", check=str(tmp_path / "a"), samples=5, **settings)
    assert result["ours"]["differences"] == 0 and result["ours"]["values"] > 0
    assert "all are what this network computes" in capsys.readouterr().out
    other = network()
    with torch.no_grad():
        other.conv2.weight *= 1.1
    with pytest.raises(InputError, match="differences from what this network computes"):
        experiment.main(other, data, tmp_path / "c", check=str(tmp_path / "a"), samples=5, **settings)
    assert "weights differ" in capsys.readouterr().out


def test_the_experiment_replaces_its_own_atlas(model, data, tmp_path):
    settings = {"scans": tmp_path / "scan", "layers": ["relu1"], "progress": False}
    (tmp_path / "a").mkdir()
    (tmp_path / "a/config.yaml").write_text("of a run that failed")
    experiment.main(model, data, tmp_path / "a", maps=1, **settings)
    (tmp_path / "a/config.yaml").write_text("of this run")
    experiment.main(model, data, tmp_path / "a", maps=[3], **settings)
    assert entries(tmp_path / "a", 0)[0]["map"] == 3
    assert not (tmp_path / "a/config.yaml").exists() and (tmp_path / "a/result.json").exists()


@pytest.mark.parametrize(("name", "words"), [("scenes", "free to publish"), ("imagenet", "may not be published")])
def test_data_say_what_may_be_published(name, words):
    config = configured(["experiment=atlas", f"data={name}", *(["data.root=/nowhere"] * (name != "scenes"))])
    assert words in config.experiment.licence
    assert configured(["experiment=atlas", "data=photos", "data.root=/nowhere"]).experiment.licence is None


# ---- networks that are not plain ReLU --------------------------------------------------------------------------------


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(8, 6, 3, padding=1), nn.SiLU()
        self.squeeze = nn.Conv2d(6, 6, 1)

    def forward(self, x):
        x = self.act(self.conv(x))
        return x * torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))


def test_a_gated_network_by_extended_rules(tmp_path):
    torch.manual_seed(1)
    model = network(gated=Gated())
    model.gated.conv = nn.Conv2d(10, 6, 3, padding=1)
    data = pictures(model)
    out = atlas.build(model, data, tmp_path / "a", layers=["relu1", "gated"], rules="extended", progress=False)
    assert read(out, "index")["layers"][1]["field"] == [23, 23]
    assert [layer["exact"] for layer in read(out, "index")["layers"]] == [True, False]
    assert atlas.check(model, data, out, samples=30, progress=False) == []
    weight = [weight for entry in entries(out, 1) for _, _, weight in entry["weight"]]
    assert min(weight) < 0 < max(weight)  # nothing is rectified on the way
    same = atlas.build(Graph(model), data, tmp_path / "b", layers=["relu1", "gated"], rules="extended", progress=False)
    assert files(same) == files(out)


class Attention(nn.Module):
    """Tokens, attention, and maps along the last axis."""

    def __init__(self):
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(10, 2, batch_first=True), nn.LayerNorm(10)
        self.tokens, self.last = nn.Linear(10, 7), nn.Linear(7, 5)

    def forward(self, x):
        rows, columns = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        x = self.tokens(self.norm(x + self.attention(x, x, x)[0]))
        return self.last(x.unflatten(1, (rows, columns))).permute(0, 3, 1, 2)


def test_tokens_and_maps_along_the_last_axis(tmp_path):
    torch.manual_seed(1)
    model = network(attended=Attention())
    data, layers = pictures(model), ["relu1", "attended.tokens", "attended.last"]
    out = atlas.build(model, data, tmp_path / "a", layers=layers, rules="extended", progress=False)
    index = read(out, "index")["layers"]
    side = index[2]["size"]
    assert [layer["maps"] for layer in index[1:]] == [7, 5] and index[1]["size"] == [side[0] * side[1], 1]
    assert atlas.check(model, data, out, samples=30, progress=False) == []
    top = scan(model, data, layers, k=9, progress=False)
    stored = [entry["value"] for entry in entries(out, 1)]
    assert torch.allclose(torch.tensor(stored[3]), top["attended.tokens"].value[3][: len(stored[3])])


def test_a_scan_of_something_else_is_refused(model, data, tmp_path):
    images, labels = data.tensors
    wrong = {
        "other labels": (TensorDataset(images, labels.flip(0) // 2), {}),
        "is of 20 images": (TensorDataset(images[:20], labels[:20]), {}),
        "several times": (data, {"distinct": False}),
    }
    for says, (dataset, settings) in wrong.items():
        scanned = scan(model, dataset, ["relu1"], gather=True, progress=False, **settings)
        with pytest.raises(InputError, match=says):
            atlas.build(model, data, tmp_path / "a", layers=["relu1"], scan=scanned, progress=False)


# ---- how images were prepared ----------------------------------------------------------------------------------------


class Prepared(Images):
    """Images whose preprocessing the dataset knows, and the model does not."""

    def __init__(self, data, preprocessing):
        self.images, self.transform = data.tensors[0], preprocessing
        self.labels = data.tensors[1].tolist()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


def test_the_transform_of_a_dataset_is_undone(folder, model, data, tmp_path):
    own = network()
    preprocessing = own.preprocessing
    del own.preprocessing
    out = atlas.build(own, Prepared(data, preprocessing), tmp_path / "a", layers=LAYERS, progress=False)
    for name, content in files(folder).items():
        if name.startswith(("tiles/", "images/")):
            assert (out / name).read_bytes() == content
    subset = torch.utils.data.Subset(Prepared(data, preprocessing), range(30))
    shown = atlas.show(own, subset, "relu1", 0, progress=False)
    assert 0.1 < shown.crops.mean() < 0.9


def test_values_that_nobody_explains_are_refused(data, tmp_path):
    own = network()
    del own.preprocessing
    with pytest.raises(InputError, match=r"an image has values from -.* and its preprocessing is not known"):
        atlas.build(own, data, tmp_path / "a", layers=LAYERS, progress=False)
    plain = TensorDataset(torch.rand(12, 3, 24, 24))
    atlas.build(own, plain, tmp_path / "a", layers=["relu1"], progress=False)


def test_check_of_another_network(folder, data):
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    other.preprocessing = network().preprocessing
    found = atlas.check(other, data, folder, progress=False)
    assert found == ["The atlas is of another network than this Sequential: Sequential."]
