"""Features are the network's, computed once; a run that was stopped goes on, and none reads another network's."""

import copy
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from zfnet import InputError
from zfnet.analysis.features import features as compute
from zfnet.data.photos import BrokenImage, Photos
from zfnet.data.preprocessing import Preprocessing, Stored
from zfnet.data.scenes import Scenes
from zfnet.graph import Graph
from zfnet.recording import activations

module = sys.modules["zfnet.analysis.features"]
HOW = Preprocessing(size=32, resize=36)


@pytest.fixture
def model():
    model = nn.Sequential(nn.Conv2d(3, 6, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5))
    model.preprocessing = HOW
    return model.eval()


@pytest.fixture
def data():
    return Scenes("val", 10, size=32, transform=HOW)


def images_of(data):
    return torch.stack([data[i][0] for i in range(len(data))])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_features_are_the_networks_and_are_read_again(model, data, tmp_path, monkeypatch, dtype):
    found = compute(model, data, ["1", "4"], tmp_path, dtype=dtype, batch_size=4, progress=False)
    for layer, values in activations(Graph(model), images_of(data), ["1", "4"]).items():
        assert found[layer].dtype == dtype and isinstance(found[layer], np.memmap)
        tolerance = 1e-5 if dtype == "float32" else 2e-3
        np.testing.assert_allclose(found[layer], values.flatten(1), atol=tolerance, rtol=tolerance)
    monkeypatch.setattr(module, "_compute", None)  # not again
    again = compute(model, data, ["4", "1"], tmp_path, dtype=dtype, progress=False)
    assert all(np.array_equal(again[layer], found[layer]) for layer in found)
    assert {file.suffix for file in tmp_path.iterdir()} == {".npy"}


def other_weights(model, data):
    changed = copy.deepcopy(model)
    changed[0].bias.data[0] += 1
    return changed, data


def other_preprocessing(model, data):
    changed = copy.deepcopy(model)
    changed.preprocessing = Preprocessing(size=32, resize=40)
    return changed, data


def other_images(model, data):
    return model, Scenes("val", 10, size=32, seed=1, transform=HOW)


def an_image_changed(model, data):
    changed = TensorDataset(images_of(data), torch.arange(10))
    changed.tensors[0][3, 0, 0, 0] += 1
    return model, changed


@pytest.mark.parametrize("change", [other_weights, other_preprocessing, other_images, an_image_changed])
def test_features_of_other_weights_preprocessing_or_images_are_not_read(model, data, tmp_path, change):
    if change is an_image_changed:
        data = TensorDataset(images_of(data), torch.arange(10))
    compute(model, data, ["4"], tmp_path, progress=False)
    (known,) = tmp_path.iterdir()
    its = change(model, data)
    with pytest.raises(InputError, match=re.escape(f"{known} holds features of other weights, images or layers")):
        compute(*its, ["4"], known, progress=False)
    compute(*its, ["4"], tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 2
    assert compute(model, data, ["4"], known, progress=False)["4"].shape == (10, 5)


def test_features_of_a_photograph_that_was_changed_are_not_read(model, tmp_path):
    for n in range(5):
        Image.new("RGB", (40, 40), (n, 0, 0)).save(tmp_path / f"{n}.png")
    before = compute(model, Photos(tmp_path, transform=HOW), ["4"], tmp_path / "kept", progress=False)["4"]
    Image.new("RGB", (40, 40), (255, 255, 255)).save(tmp_path / "1.png")
    after = compute(model, Photos(tmp_path, transform=HOW), ["4"], tmp_path / "kept", progress=False)["4"]
    assert (before != after).any(1).tolist() == [False, True, False, False, False]


def test_a_run_that_was_stopped_goes_on(model, data, tmp_path, monkeypatch):
    expected = np.array(compute(model, data, ["1"], tmp_path / "whole", progress=False)["1"])
    seen, normal = [], module._crops

    def stopped(network, images, crops):
        if len(images) > 1:
            seen.append(len(images))
            if len(seen) == 3:
                raise KeyboardInterrupt
        return normal(network, images, crops)

    monkeypatch.setattr(module, "_crops", stopped)
    arguments = {"batch_size": 3, "workers": 0, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        compute(model, data, ["1"], tmp_path / "part", **arguments)
    assert {file.suffix for file in (tmp_path / "part").iterdir()} == {".part", ".json"}
    found = compute(model, data, ["1"], tmp_path / "part", **arguments)["1"]
    assert np.array_equal(found, expected)
    assert seen == [3, 3, 3, 3]  # the last has one image, which is not counted


def test_large_maps_are_averaged_over_areas(model, data, tmp_path):
    found = compute(model, data, ["1"], tmp_path, limit=60, progress=False)["1"]
    whole = activations(Graph(model), images_of(data), ["1"])["1"]
    np.testing.assert_allclose(found, nn.functional.adaptive_avg_pool2d(whole, 3).flatten(1), rtol=1e-5, atol=1e-6)


def test_ten_crops_are_averaged(model, tmp_path):
    stored = TensorDataset(torch.randint(256, (4, 3, 40, 40), dtype=torch.uint8), torch.arange(4))
    found = compute(model, stored, ["4"], tmp_path, crops=10, progress=False)["4"]
    images, corners = stored.tensors[0], [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]
    crops = [HOW.normalise(images[..., r : r + 32, c : c + 32]) for r, c in corners]
    with torch.no_grad():
        expected = torch.stack([model(x) for crop in crops for x in (crop, crop.flip(3))]).mean(0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert Stored(HOW).size == 32


class Torn(Scenes):
    def __getitem__(self, i):
        if i == 3:
            raise BrokenImage("cannot load 3.jpg: it is torn")
        return super().__getitem__(i)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ["9"]}, "no layer of Sequential '9'"),
        ({"dtype": "int8"}, "no type of features 'int8'"),
        ({"limit": 0}, "limit is 0"),
        ({"dataset": Torn("val", 10, size=32, transform=HOW)}, "cannot load 3.jpg: it is torn; every image needs"),
    ],
)
def test_mistakes_are_named(model, data, tmp_path, settings, message):
    arguments = {"dataset": data, "layers": ["4"], "folder": tmp_path / "new", "progress": False} | settings
    with pytest.raises(InputError, match=re.escape(message)):
        compute(model, **arguments)
    assert not list(tmp_path.rglob("*.npy"))


def test_what_float16_cannot_hold_is_an_error(model, data, tmp_path):
    model[4].bias.data[:] = 1e6
    with pytest.raises(InputError, match="4 has values that float16 cannot hold"):
        compute(model, data, ["4"], tmp_path, dtype="float16", progress=False)
