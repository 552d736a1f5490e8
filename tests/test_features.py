"""Features are the network's, computed once; an interrupted run resumes, and none reads another network's."""

import contextlib
import copy
import errno
import os
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
from zfnet.data.images import Images
from zfnet.data.photos import Photos
from zfnet.data.preprocessing import Preprocessing, Stored
from zfnet.data.scenes import Scenes
from zfnet.errors import BrokenImage
from zfnet.graph import Graph
from zfnet.identity import digest
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
    assert {file.suffix for file in tmp_path.iterdir()} == {".npy", ".json"}


def test_features_that_the_next_step_overwrites_are_those_before(model, data, tmp_path):
    model[1].inplace = True
    found = compute(model, data, ["0", "4"], tmp_path, progress=False)
    with torch.no_grad():
        np.testing.assert_allclose(found["0"], model[0](images_of(data)).flatten(1), atol=1e-5)


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


CHANGES = {
    other_weights: "weights",
    other_preprocessing: "preprocessing",
    other_images: "images",
    an_image_changed: "images",
}


@pytest.mark.parametrize("change", CHANGES)
def test_features_of_other_weights_preprocessing_or_images_are_not_read(model, data, tmp_path, change):
    if change is an_image_changed:
        data = TensorDataset(images_of(data), torch.arange(10))
    compute(model, data, ["4"], tmp_path, progress=False)
    (known,) = tmp_path.glob("*.npy")
    its = change(model, data)
    with pytest.raises(
        InputError, match=re.escape(f" was made with different {CHANGES[change]}; delete {known}, or start")
    ):
        compute(*its, ["4"], known, progress=False)
    compute(*its, ["4"], tmp_path, progress=False)
    assert len(list(tmp_path.glob("*.npy"))) == 2
    assert compute(model, data, ["4"], known, progress=False)["4"].shape == (10, 5)


def test_features_of_a_photograph_that_was_changed_are_not_read(model, tmp_path):
    for n in range(5):
        Image.new("RGB", (40, 40), (n, 0, 0)).save(tmp_path / f"{n}.png")
    before = compute(model, Photos(tmp_path, transform=HOW), ["4"], tmp_path / "kept", progress=False)["4"]
    Image.new("RGB", (40, 40), (255, 255, 255)).save(tmp_path / "1.png")
    after = compute(model, Photos(tmp_path, transform=HOW), ["4"], tmp_path / "kept", progress=False)["4"]
    assert (before != after).any(1).tolist() == [False, True, False, False, False]


class Stopped(Images):
    """Images of which one, at first, is where the user loses patience."""

    def __init__(self, images, at):
        self.images, self.at, self.reads = images, at, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        if i == self.at:
            raise KeyboardInterrupt
        self.reads.append(i)
        return self.images[i], -1

    def identity(self):
        return digest(self.images)


def test_a_run_that_was_stopped_goes_on(model, data, tmp_path):
    images = images_of(data)
    expected = np.array(compute(model, images, ["1", "4"], tmp_path / "whole", batch_size=3, progress=False)["1"])
    dataset, arguments = Stopped(images, at=7), {"batch_size": 3, "workers": 0, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        compute(model, dataset, ["1", "4"], tmp_path / "part", **arguments)
    assert {file.suffix for file in (tmp_path / "part").iterdir()} == {".part", ".json"}
    dataset.at, dataset.reads = -1, []
    found = compute(model, dataset, ["1", "4"], tmp_path / "part", **arguments)
    assert np.array_equal(found["1"], expected)
    assert dataset.reads == [0, 6, 7, 8, 9]  # the first, for its size; then what two whole batches had not


def test_an_interrupt_in_the_middle_of_a_batch_leaves_nothing_of_it(model, data, tmp_path, monkeypatch):
    images, call, seen = images_of(data), Graph.call, []
    arguments = {"batch_size": 3, "workers": 0, "progress": False}
    last = None

    def counted(graph, *rest):
        seen.append(1)
        if len(seen) == last:
            raise KeyboardInterrupt
        return call(graph, *rest)

    monkeypatch.setattr(Graph, "call", counted)
    expected = compute(model, images, ["1", "4"], tmp_path / "whole", **arguments)
    last = len(seen) - 3 * 5 + 2  # the second step of the second of four batches
    seen.clear()

    with pytest.raises(KeyboardInterrupt):
        compute(model, Stopped(images, at=-1), ["1", "4"], tmp_path / "part", **arguments)
    last, dataset = None, Stopped(images, at=-1)
    found = compute(model, dataset, ["1", "4"], tmp_path / "part", **arguments)
    assert dataset.reads == [0, *range(3, 10)]  # the first, for its size
    assert all(np.array_equal(found[layer], expected[layer]) for layer in found)


@pytest.mark.parametrize("whole", [True, False], ids=["complete", "interrupted"])
def test_damaged_features_are_named(model, data, tmp_path, whole):
    dataset = Stopped(images_of(data), at=-1 if whole else 7)
    arguments = {"batch_size": 3, "workers": 0, "progress": False}
    with contextlib.suppress(KeyboardInterrupt):
        compute(model, dataset, ["4"], tmp_path, **arguments)
    dataset.at = -1
    (kept,) = (path for path in tmp_path.iterdir() if path.suffix in (".npy", ".part"))
    for path, places in ((kept, (40, 128, 130, 200)), (kept.with_suffix(".json"), (3, 30, 90))):
        content = path.read_bytes()
        for n in places:
            path.write_bytes(content[:n] + bytes([content[n] ^ 1]) + content[n + 1 :])
            with pytest.raises(InputError, match=f"delete {kept}, or start again with fresh=True") as error:
                compute(model, dataset, ["4"], tmp_path, **arguments)
            assert "\n" not in str(error.value)
        path.write_bytes(content)
    kept.unlink()
    assert compute(model, dataset, ["4"], tmp_path, **arguments)["4"].shape == (10, 5)


def test_a_file_without_a_note_is_of_the_old_format(model, data, tmp_path):
    compute(model, data, ["4"], tmp_path, progress=False)
    (note,) = tmp_path.glob("*.json")
    note.unlink()
    with pytest.raises(InputError, match=f"no {note.name} beside it, as files of an older format; delete "):
        compute(model, data, ["4"], tmp_path, progress=False)


def test_means_of_large_float16_maps_do_not_overflow(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU()).half()
    model[0].weight.data[:], model[0].bias.data[:] = 0, 6e4
    images = torch.randn(2, 3, 8, 8)
    found = compute(model, images, ["1"], tmp_path, max_features=4, progress=False)["1"]
    assert (found == torch.tensor(6e4).half().item()).all() and found.shape == (2, 4)


def test_large_maps_are_averaged_over_areas(model, data, tmp_path):
    found = compute(model, data, ["1"], tmp_path, max_features=60, progress=False)["1"]
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
        ({"max_features": 0}, "max_features is 0"),
        (
            {"dataset": Torn("val", 10, size=32, transform=HOW)},
            "cannot load 3.jpg: it is torn; features need every image",
        ),
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


# ---- damaged files, and two runs at once -----------------------------------------------------------------------------


def kept(folder, suffix=".npy"):
    (path,) = folder.glob(f"*{suffix}")
    return path


def test_every_bit_of_features_and_of_their_note_counts(model, data, tmp_path):
    def read():
        return compute(model, data, ["4"], tmp_path, progress=False)

    read()
    for path in (kept(tmp_path), kept(tmp_path, ".json")):
        whole = path.read_bytes()
        for place in range(0, len(whole), 37):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
            with pytest.raises(InputError, match=re.escape(str(path))) as caught:
                read()
            assert "\n" not in str(caught.value) and "or start again with fresh=True" in str(caught.value)
        path.write_bytes(whole)
    assert read()["4"].shape == (10, 5)


def pickled(array):
    return np.array([{}, array], dtype=object)


@pytest.mark.parametrize("other", [lambda a: a[:5], lambda a: a.astype("f8"), np.asfortranarray, pickled, None])
def test_files_that_hold_something_else_are_named(model, data, tmp_path, other):
    arguments = model, data, ["4"], tmp_path
    expected = np.array(compute(*arguments, progress=False)["4"])
    path = kept(tmp_path)
    np.save(path, other(expected)) if other else path.write_bytes(b"")
    with pytest.raises(
        InputError, match=f"^{path} is damaged: it does not hold .*; delete {path}, or start again with"
    ):
        compute(*arguments, progress=False)
    assert np.array_equal(compute(*arguments, fresh=True, progress=False)["4"], expected)
    assert np.array_equal(compute(*arguments, progress=False)["4"], expected)


@pytest.mark.skipif(os.name == "nt", reason="has no pipes")
def test_a_pipe_in_the_place_of_features_is_named(model, data, tmp_path):
    compute(model, data, ["4"], tmp_path, progress=False)
    path = kept(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match="it is not a file"):
        compute(model, data, ["4"], tmp_path, progress=False)


def test_a_note_without_a_file_is_overwritten(model, data, tmp_path):
    expected = np.array(compute(model, data, ["4"], tmp_path, progress=False)["4"])
    kept(tmp_path).unlink()
    assert np.array_equal(compute(model, data, ["4"], tmp_path, progress=False)["4"], expected)


def test_fresh_features_are_computed_anew(model, data, tmp_path, monkeypatch):
    layers, calls = ["1", "4"], []
    before = {layer: np.array(array) for layer, array in compute(model, data, layers, tmp_path, progress=False).items()}
    run = module._compute
    monkeypatch.setattr(module, "_compute", lambda *arguments: calls.append(1) or run(*arguments))
    compute(model, data, layers, tmp_path, progress=False)
    after = compute(model, data, layers, tmp_path, fresh=True, progress=False)
    assert len(calls) == 1 and all(np.array_equal(before[layer], after[layer]) for layer in layers)
    with pytest.raises(InputError, match="is a file; give the folder of features"):
        compute(model, data, ["4"], tmp_path / kept(tmp_path, "4-*.npy").name, fresh=True, progress=False)
    (tmp_path / "photo.jpg").write_bytes(b"1")
    with pytest.raises(InputError, match=r"photo\.jpg is a file of another kind"):
        compute(model, data, ["4"], tmp_path / "photo.jpg", progress=False)
    assert (tmp_path / "photo.jpg").read_bytes() == b"1"


class Meanwhile(Stopped):
    """Images of which one, when it is read, has something else done."""

    def __init__(self, images, at, action):
        super().__init__(images, at=-1)
        self.when, self.action = at, action

    def __getitem__(self, i):
        if i == self.when:
            self.action()
        return super().__getitem__(i)


def test_two_runs_at_once_on_the_same_features_are_refused(model, data, tmp_path):
    images, seen = images_of(data), []
    arguments = {"batch_size": 3, "workers": 0, "progress": False}

    def second():
        dataset.when = -1
        with pytest.raises(InputError, match=f"^another run computes features of 4 in {tmp_path}: wait for it, or use"):
            compute(model, dataset, ["1", "4"], tmp_path, **arguments)
        seen.append(compute(model, dataset, ["0"], tmp_path, **arguments)["0"].shape)  # another layer may be computed

    dataset = Meanwhile(images, 7, second)
    expected = compute(model, images, ["4"], tmp_path / "alone", **arguments)["4"]
    assert np.array_equal(compute(model, dataset, ["4"], tmp_path, **arguments)["4"], expected)
    assert seen == [(10, 6 * 14 * 14)]
    assert {path.suffix for path in tmp_path.iterdir() if path.is_file()} == {".npy", ".json"}


def test_what_a_run_left_that_was_killed_at_once_is_removed(model, data, tmp_path):
    stopped = Stopped(images_of(data), at=7)
    with pytest.raises(KeyboardInterrupt):
        compute(model, stopped, ["1"], tmp_path, batch_size=3, workers=0, progress=False)
    resumable, lost = kept(tmp_path, ".part"), tmp_path / f"relu-{'0' * 16}.part"
    lost.write_bytes(b"half")
    compute(model, data, ["4"], tmp_path, progress=False)
    assert resumable.exists() and not lost.exists()


def test_a_full_disk_is_said_before_anything_is_computed(model, data, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(InputError, match=r"^cannot write .*\.part: No space left on device$"):
        compute(model, data, ["4"], tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_photograph_that_is_gone_is_named(model, tmp_path):
    for n in range(5):
        Image.new("RGB", (40, 40), (n, 0, 0)).save(tmp_path / f"{n}.png")
    photos = Photos(tmp_path, transform=HOW)
    (tmp_path / "3.png").unlink()
    with pytest.raises(InputError, match=r"3\.png.*features need every image: repair or remove it"):
        compute(model, photos, ["4"], tmp_path / "kept", progress=False)
    assert not list((tmp_path / "kept").glob("*.npy"))


def test_a_crash_before_a_complete_file_has_its_name_computes_nothing_twice(model, data, tmp_path):
    dataset, arguments = Stopped(images_of(data), at=-1), {"workers": 0, "progress": False}
    expected = np.array(compute(model, dataset, ["4"], tmp_path, **arguments)["4"])
    path = kept(tmp_path)
    path.rename(path.with_suffix(".part"))
    dataset.reads = []
    assert np.array_equal(compute(model, dataset, ["4"], tmp_path, **arguments)["4"], expected)
    assert dataset.reads == [0]  # for its size


def test_a_file_that_is_removed_while_it_is_written_is_said_at_once(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAVE_EVERY", -1.0)
    dataset = Meanwhile(images_of(data), 4, lambda: kept(tmp_path, ".part").unlink())
    with pytest.raises(InputError, match=r"\.part was removed while it was written$"):
        compute(model, dataset, ["4"], tmp_path, batch_size=2, workers=0, progress=False)
    assert max(dataset.reads) == 5


def test_a_folder_of_an_impossible_name_is_one_line(model, data, tmp_path):
    with pytest.raises(InputError, match=r"^cannot write to .*File name too long$"):
        compute(model, data, ["4"], tmp_path / ("a" * 300), progress=False)
