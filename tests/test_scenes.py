import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from zfnet.data.preprocessing import Preprocessing
from zfnet.data.scenes import BASE, CLASSES, HELD_OUT, Scenes, render, rendering
from zfnet.errors import InputError

GREEN = [
    [53, 61, 43, 44, 50, 41, 53, 47, 39, 40, 58, 78, 69, 78, 81, 79],
    [53, 49, 38, 61, 86, 152, 172, 165, 125, 85, 53, 52, 57, 72, 74, 81],
    [53, 41, 49, 105, 125, 116, 162, 120, 93, 148, 120, 62, 47, 69, 72, 84],
    [64, 41, 52, 138, 143, 103, 137, 108, 114, 169, 140, 80, 36, 57, 72, 85],
    [56, 45, 63, 125, 128, 150, 141, 116, 155, 122, 100, 127, 60, 63, 69, 61],
    [43, 33, 65, 128, 90, 114, 167, 129, 149, 136, 125, 145, 73, 49, 70, 69],
    [56, 34, 55, 107, 149, 155, 173, 204, 167, 113, 109, 144, 75, 43, 62, 63],
    [54, 52, 48, 81, 117, 92, 118, 166, 142, 122, 95, 136, 59, 42, 53, 64],
    [48, 38, 37, 48, 66, 86, 104, 134, 97, 126, 113, 87, 41, 36, 48, 64],
    [46, 38, 43, 30, 56, 77, 113, 101, 98, 122, 116, 59, 31, 49, 63, 69],
    [49, 48, 50, 38, 64, 51, 61, 68, 57, 54, 59, 29, 47, 66, 64, 59],
    [43, 50, 52, 53, 59, 41, 35, 39, 44, 42, 40, 58, 49, 58, 66, 57],
    [49, 50, 51, 56, 56, 57, 52, 53, 42, 38, 46, 52, 59, 58, 59, 61],
    [44, 54, 52, 54, 61, 72, 79, 67, 70, 59, 47, 66, 59, 63, 65, 51],
    [47, 47, 50, 49, 62, 83, 98, 83, 63, 55, 59, 56, 49, 62, 63, 51],
    [42, 33, 42, 46, 57, 51, 63, 61, 52, 52, 61, 63, 57, 57, 49, 59],
]
CHECKSUMS = [
    2492858598,
    1361790648,
    1872180145,
    2709852258,
    475336394,
    3392270112,
    3196683139,
    4031113235,
    1355295988,
    3793862956,
    2896582748,
    1699401412,
    2961260488,
    2268656801,
    3652004324,
    1688716224,
    261671866,
    1098116822,
    1494855605,
    4284775099,
    1196489532,
    3284772421,
    2246910099,
    2506237002,
]


def same(a, b):
    truth = a[1::2] == b[1::2]
    return truth and (a.image == b.image).all() and (a.mask == b.mask).all()


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
    both = large.parts.keys() & small.parts.keys()
    shift = np.array([np.array(large.parts[name]) / 2 - small.parts[name] for name in both])
    assert len(both) > 2 and np.median(np.abs(shift)) <= 0.5
    assert (np.abs(shift) <= 2).mean() > 0.9  # what is thinner than a pixel may end earlier


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
        assert boxes.min() >= 0 and boxes.max() <= 80 and (boxes[:, :2] < boxes[:, 2:]).all()
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
    monkeypatch.setitem(rendering.DRAW, "nothing", lambda frame: None)
    with_it, without = (render(7, 96, classes=(kind,)) for kind in (name, "nothing"))
    assert not without.mask.any() and without.parts == {}
    change = with_it.image.astype(int) - without.image
    near = with_it.mask.copy()
    for _ in range(3):  # an edge is lit, and blurred, a few pixels beyond it
        near[1:] |= near[:-1]
        near[:-1] |= near[1:]
        near[:, 1:] |= near[:, :-1]
        near[:, :-1] |= near[:, 1:]
    assert (change[~near] > 0).mean() < 0.005  # the tip of a whisker, thinner than half a pixel
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
    with pytest.raises(InputError, match=r"no split 'trian' .*'train'"):
        Scenes("trian")
    with pytest.raises(InputError, match="no split 'test'"):
        render(0, 16, split="test")
    with pytest.raises(InputError, match=r"no classes 'heldout' .*'held_out'"):
        Scenes(classes="heldout")
    with pytest.raises(InputError, match=r"no class 'dgo' .*'dog'"):
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


def test_several_objects_are_of_different_classes_and_all_to_be_seen():
    data = Scenes("val", 24, size=64, classes="held_out", objects=3)
    for i, marks in enumerate(data.presence):
        scene = data.scene(i)
        assert sorted(scene.objects) == (marks == 1).nonzero()[0].tolist()
        assert scene.label == i % 8 == data.labels[i]
        assert np.stack(list(scene.objects.values())).sum(0).max() == 1  # masks do not overlap
        assert min(mask.mean() for mask in scene.objects.values()) > 0.01
    assert {len(data.scene(i).objects) for i in range(24)} == {1, 2, 3}
    with pytest.raises(InputError, match="9 objects of different classes; give 1 to 8"):
        Scenes("val", 1, size=64, classes="held_out", objects=9)


def test_the_truth_is_in_the_pixels_of_the_items():
    for index in range(6):
        scene, plain = render(index, 64, objects=3), Scenes(size=64, objects=3).truth(index)
        assert (plain.mask.numpy() == scene.mask).all() and plain.parts == scene.parts
        for (top, left, bottom, right), mask in zip(
            plain.objects, [mask for mask in scene.objects.values() if mask.any()], strict=True
        ):
            assert mask[top:bottom, left:right].sum() == mask.sum() and mask[top].any() and mask[bottom - 1].any()
            assert mask[:, left].any() and mask[:, right - 1].any()
        large, small = Scenes(size=64, transform=Preprocessing(size=64)), Preprocessing(size=30, resize=32)
        assert (large.truth(index).mask.numpy() == large.scene(index).mask).all()
        half = Scenes(size=64, transform=small).truth(index)
        cropped = large.truth(index).mask[2:62, 2:62].float()
        assert (half.mask.float() - F.avg_pool2d(cropped[None], 2)[0]).abs().max() <= 1
        assert abs(half.mask.float().mean() - cropped.mean()) < 0.02
    assert Scenes(size=64, transform=lambda image: image[::2]).truth(0) is None
