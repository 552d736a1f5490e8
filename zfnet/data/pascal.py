"""PASCAL VOC: photographs in which several classes may be, and which they are by their annotations.

`presence` has VOC's own marks: 1 where a class is in a photograph, -1 where it is not, and 0 where all that is there of
it is marked difficult, which counts neither way.  Everingham et al. (2010), doi:10.1007/s11263-009-0275-4.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zfnet.data.annotations import Annotation, read_annotation, read_text
from zfnet.data.folders import Folder
from zfnet.data.photos import ImageFiles
from zfnet.errors import InputError, unknown_name
from zfnet.identity import digest

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
LISTS = {"train": "ImageSets/Main/train.txt", "test": "ImageSets/Main/val.txt"}  # the labels of its test are not public


class Pascal(ImageFiles):
    """The annotated photographs of a folder with JPEGImages/ and Annotations/; items are (image, -1).

    Where ImageSets/Main/ has train.txt and val.txt, only the photographs that these list are taken, and
    `official_split` says of each whether it is to train or to test on. `presence` is (N, 20).

    Raises:
        InputError: for an annotation that is broken, or that names a missing image or a class that VOC does not have.
    """

    def __init__(self, root: str | os.PathLike[str], *, transform: Callable[[Image.Image], Any] | None = None) -> None:
        home, photos = Folder(root), Path(root) / "JPEGImages"
        for name in (photos.name, "Annotations"):
            if name not in home.folders():
                raise InputError(f"{root} has no folder {name}; give that of PASCAL VOC, VOCdevkit/VOC2012")
        annotations, images = Folder(Path(root) / "Annotations"), set(Folder(photos).files())
        names = [file.removesuffix(".xml") for file in annotations.files() if file.endswith(".xml")]
        if all(home.mentions(file) for file in LISTS.values()):
            listed = {name: part for part, file in LISTS.items() for name in read_text(home, file).split()}
            if absent := listed.keys() - set(names):
                raise InputError(f"{root}/ImageSets/Main lists {min(absent)}, which has no annotation")
            names = [name for name in names if name in listed]
            self.official_split = [listed[name] for name in names]
        if not names:
            raise InputError(f"no annotations (*.xml) in {annotations.path}")
        files, marks = [], []
        for name in names:
            annotation, path = read_annotation(annotations, f"{name}.xml"), annotations.path / f"{name}.xml"
            if annotation.image is None:
                raise InputError(f"{path} has no filename: it is not an annotation of PASCAL VOC")
            if annotation.image not in images:
                raise InputError(f"{path} names {annotation.image}, which is not in {photos}")
            files.append(annotation.image)
            marks.append(_marks(annotation, path))
        super().__init__(photos, files, [-1] * len(files), CLASSES, transform)
        self.presence: NDArray[np.int8] = np.stack(marks)

    def identity(self) -> str:
        return digest(super().identity(), self.presence)


def _marks(annotation: Annotation, path: Path) -> NDArray[np.int8]:
    """VOC's mark of each class, (20,)."""
    marks = np.full(len(CLASSES), -1, dtype=np.int8)
    for thing in annotation.objects:
        if thing.name not in CLASSES:
            raise unknown_name(f"class of PASCAL VOC, which {path} has,", thing.name, CLASSES)
        number = CLASSES.index(thing.name)
        marks[number] = max(marks[number], int(not thing.difficult))
    return marks
