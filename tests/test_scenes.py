import zlib

import numpy as np
import pytest
import torch

from zfnet.data import scenes
from zfnet.data.scenes import BASE, CLASSES, HELD_OUT, Scenes, render
from zfnet.errors import InputError


def same(a, b):
    return (a.image == b.image).all() and (a.mask == b.mask).all() and (a.label, a.parts) == (b.label, b.parts)


def halve(image):
    rows, columns = image.shape[0] // 2, image.shape[1] // 2
    return image.reshape(rows, 2, columns, 2, -1).astype(np.float64).mean((1, 3))


def box_of(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


def test_a_scene_is_its_index_and_its_seed():
    scene = render(5, 48, seed=3)
    assert same(scene, render(5, 48, seed=3))
    for other in (render(5, 48, seed=4), render(21, 48, seed=3), render(5, 48, seed=3, split="val")):
        assert other.label == scene.label
        assert (other.image != scene.image).mean() > 0.5


@pytest.mark.parametrize("index", range(0, 24, 3))
def test_another_size_is_the_same_scene(index):
    large, small = render(index, 192, classes=CLASSES), render(index, 96, classes=CLASSES)
    assert np.corrcoef(halve(large.image).ravel(), small.image.ravel())[0, 1] > 0.9
    assert ((halve(large.mask)[:, :, 0] > 0.5) != small.mask).mean() < 0.02
    for name in large.parts.keys() & small.parts.keys():
        assert np.abs(np.array(large.parts[name]) / 2 - small.parts[name]).max() <= 3


def test_a_wider_picture_shows_the_same_square_in_its_middle():
    square, wide = render(2, 64), render(2, (64, 96))
    assert wide.image.shape == (64, 96, 3)
    assert (wide.mask[:, 16:-16] == square.mask).all()


@pytest.mark.parametrize("name", CLASSES)
def test_the_truth_is_true(name):
    for index in range(6):
        scene = render(index, 80, classes=(name,))
        assert scene.image.shape == (80, 80, 3) and scene.image.dtype == np.uint8
        assert scene.mask.dtype == bool and 0.015 < scene.mask.mean() < 0.6
        assert len(scene.parts) >= 3
        boxes = np.array(list(scene.parts.values()))
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= 80).all() and (boxes[:, :2] < boxes[:, 2:]).all()
        for top, left, bottom, right in boxes:
            assert scene.mask[top:bottom, left:right].any()
        top, left, bottom, right = box_of(scene.mask)
        assert (boxes[:, 0].min(), boxes[:, 1].min()) == (top, left)
        assert (boxes[:, 2].max(), boxes[:, 3].max()) == (bottom, right)


@pytest.mark.parametrize("name", ["dog", "cat", "owl", "face"])
def test_left_is_left_in_the_picture_also_when_mirrored(name):
    for index in range(12):
        parts = render(index, 64, classes=(name,)).parts
        assert parts["eye_left"][1] < parts["eye_right"][1]


@pytest.mark.parametrize("name", CLASSES)
def test_only_the_object_and_its_shadow_change_the_ground(name, monkeypatch):
    monkeypatch.setitem(scenes.DRAW, "nothing", lambda frame: None)
    with_it, without = (render(7, 96, classes=(kind,)) for kind in (name, "nothing"))
    assert not without.mask.any() and without.parts == {}
    change = with_it.image.astype(int) - without.image
    near = with_it.mask.copy()
    for _ in range(3):  # an edge is lit, and blurred, a few pixels beyond it
        near[1:] |= near[:-1]
        near[:-1] |= near[1:]
        near[:, 1:] |= near[:, :-1]
        near[:, :-1] |= near[:, 1:]
    assert change[~near].max() <= 0
    assert (np.abs(change).max(2)[with_it.mask] > 8).mean() > 0.8


def test_classes_take_turns():
    assert CLASSES == BASE + HELD_OUT and (len(BASE), len(HELD_OUT), len(set(CLASSES))) == (16, 8, 24)
    for subset, names in (("base", BASE), ("held_out", HELD_OUT), ("all", CLASSES)):
        data = Scenes("val", 48, size=16, classes=subset)
        assert data.classes == names
        assert np.bincount(data.labels).tolist() == [48 // len(names)] * len(names)
        assert [data[i][1] for i in range(0, 48, 7)] == data.labels[::7]


def test_a_dataset_hands_out_tensors_or_what_the_transform_makes():
    data = Scenes("val", 20, size=(16, 24), seed=2)
    image, label = data[17]
    assert image.shape == (3, 16, 24) and image.dtype == torch.float32 and label == 1
    assert (image.permute(1, 2, 0).numpy() == data.scene(17).image.astype(np.float32) / 255).all()
    assert same(data.scene(17), render(17, (16, 24), seed=2, split="val"))

    seen, _ = Scenes("val", 20, size=(16, 24), seed=2, transform=lambda image: image)[17]
    assert isinstance(seen, np.ndarray) and seen.dtype == np.uint8
    assert (seen == data.scene(17).image).all()


def test_files_are_named_after_split_and_index():
    assert len(Scenes(count=200)) == 200
    assert Scenes(count=200).file(123) == "scenes/train/000123"
    assert Scenes("val", 200).file(-1) == "scenes/val/000199"


def test_every_machine_draws_these_numbers():
    assert render(6, 16).image[:, :, 1].tolist() == GREEN
    assert [zlib.crc32(render(i, 40, classes=CLASSES).image.tobytes()) for i in range(24)] == CHECKSUMS


def test_mistakes_are_named():
    for index in (20, -21):
        with pytest.raises(IndexError, match="of 20"):
            Scenes(count=20)[index]
    with pytest.raises(InputError, match="no split 'trian' .*'train'"):
        Scenes("trian")
    with pytest.raises(InputError, match="no split 'test'"):
        render(0, 16, split="test")
    with pytest.raises(InputError, match="no classes 'heldout' .*'held_out'"):
        Scenes(classes="heldout")
    with pytest.raises(InputError, match="no class 'dgo' .*'dog'"):
        render(0, 16, classes=("dgo",))
    with pytest.raises(InputError, match="no classes to draw"):
        render(0, 16, classes=())
    with pytest.raises(InputError, match="count is at least 1"):
        Scenes(count=0)
    with pytest.raises(InputError, match="64 x 15 pixels is too small"):
        Scenes(size=(64, 15))
    with pytest.raises(InputError, match="8 x 8"):
        render(0, 8)
    with pytest.raises(InputError, match="count from 0"):
        render(-1, 16)
    with pytest.raises(InputError, match="count from 0"):
        Scenes(seed=-1)
