"""PASCAL VOC by its annotations, written here; what is difficult, broken or not there."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.setup import datasets
from zfnet import InputError
from zfnet.data.pascal import CLASSES, Pascal
from zfnet.data.preprocessing import Preprocessing

HOW = Preprocessing(size=32, resize=36)


def annotate(root, name, *things, image=None):
    """A photograph with its annotation: things are (class, difficult)."""
    for folder in ("JPEGImages", "Annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (50, 40), (99, 150, 20)).save(root / "JPEGImages" / f"{name}.jpg")
    objects = "".join(f"<object><name>{c}</name><difficult>{d}</difficult></object>" for c, d in things)
    text = f"<annotation><filename>{image or name}.jpg</filename>{objects}</annotation>"
    (root / "Annotations" / f"{name}.xml").write_text(text)


@pytest.fixture
def root(tmp_path):
    annotate(tmp_path, "a", ("cat", 0), ("cat", 1), ("dog", 1))
    annotate(tmp_path, "b", ("person", 0), ("sofa", 0))
    annotate(tmp_path, "c", ("cat", 1))
    return tmp_path


def test_presence_is_1_there_minus_1_not_and_0_where_all_is_difficult(root):
    data = Pascal(root, transform=HOW)
    expected = np.full((3, 20), -1)
    for image, name, mark in ((0, "cat", 1), (0, "dog", 0), (1, "person", 1), (1, "sofa", 1), (2, "cat", 0)):
        expected[image, CLASSES.index(name)] = mark
    assert np.array_equal(data.presence, expected)
    assert [data.file(i) for i in range(3)] == ["a.jpg", "b.jpg", "c.jpg"] and data.official_split is None
    assert data[1][0].shape == (3, 32, 32) and data[1][1] == -1


def test_vocs_own_lists_part_the_photographs(root):
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("c\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("a\n")
    data = datasets.voc2012(HOW, root=root)
    assert [(data.file(i), data.official_split[i]) for i in range(len(data))] == [("a.jpg", "test"), ("c.jpg", "train")]
    (root / "ImageSets" / "Main" / "val.txt").write_text("a\nz\n")
    with pytest.raises(InputError, match="lists z, which has no annotation"):
        Pascal(root)


def test_torchvisions_layout_is_found(root, tmp_path_factory):
    outer = tmp_path_factory.mktemp("voc")
    (outer / "VOCdevkit").mkdir()
    (outer / "VOCdevkit" / "VOC2012").symlink_to(root)
    assert len(datasets.voc2012(HOW, root=outer)) == 3


def test_what_is_wrong_with_an_annotation_is_one_line(root):
    def refused(message):
        with pytest.raises(InputError, match=re.escape(message)) as error:
            Pascal(root)
        assert "\n" not in str(error.value)

    file = root / "Annotations" / "b.xml"
    whole = file.read_text()
    file.write_text(whole[:40])
    refused(f"cannot read {file}: ")
    file.write_text("<annotation></annotation>")
    refused(f"{file} has no filename")
    annotate(root, "b", ("unicorn", 0))
    refused(f"no class of PASCAL VOC, which {file} has, 'unicorn'")
    annotate(root, "b", image="lost")
    refused(f"{file} names lost.jpg, which is not in {root / 'JPEGImages'}")
    for annotation in (root / "Annotations").iterdir():
        annotation.unlink()
    refused("no annotations (*.xml)")
    (root / "Annotations").rmdir()
    refused("has no folder Annotations")


def test_real_annotations(real_data):
    data = datasets.voc2012(HOW, root=real_data / "voc2012")
    assert data.presence.shape == (100, 20) and (data.presence == 1).any(0).all()


@pytest.mark.skipif(os.name == "nt", reason="there are no such things there")
@pytest.mark.parametrize("file", ["Annotations/d.xml", "ImageSets/Main/val.txt", "JPEGImages/a.jpg"])
def test_what_is_no_file_is_named_and_not_waited_for(root, file):
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("a b c")
    (root / file).unlink(missing_ok=True)
    os.mkfifo(root / file)
    if file.startswith("Annotations"):
        assert len(Pascal(root)) == 3  # it is not an annotation
        return
    with pytest.raises(InputError, match=re.escape(Path(file).name)):
        Pascal(root)


@pytest.mark.parametrize("number", ["nan", "inf", "x", ""])
def test_a_box_that_is_no_box_is_refused(root, number):
    box = "".join(f"<{end}>{number}</{end}>" for end in ("ymin", "xmin", "ymax", "xmax"))
    text = f"<annotation><filename>a.jpg</filename><object><name>cat</name><bndbox>{box}</bndbox></object></annotation>"
    (root / "Annotations/a.xml").write_text(text)
    with pytest.raises(InputError, match=r"cannot read .*a\.xml: "):
        Pascal(root)
