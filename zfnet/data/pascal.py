"""PASCAL VOC: photographs in which several classes may be, and which they are by their annotations.

`presence` has VOC's own marks: 1 where a class is in a photograph, -1 where it is not, and 0 where all that is there of
it is marked difficult, which counts neither way.  Everingham et al. (2010), doi:10.1007/s11263-009-0275-4.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zfnet.data.folders import Folder
from zfnet.data.photos import Photos
from zfnet.errors import InputError, unknown_name

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
LISTS = {"train": "ImageSets/Main/train.txt", "test": "ImageSets/Main/val.txt"}  # the labels of its test are not public


class Pascal(Photos):
    """The annotated photographs of a folder with JPEGImages/ and Annotations/; items are (image, -1).

    Where ImageSets/Main/ has train.txt and val.txt, only the photographs that these list, and `parts` says of each
    whether it is to train or to test on; else `parts` is None.  InputError for an annotation that is broken, names an
    image that is not there or a class that VOC has not.
    """

    def __init__(self, root: str | os.PathLike[str], *, transform: Callable[[Image.Image], Any] | None = None) -> None:
        home = Folder(root)
        for name in ("JPEGImages", "Annotations"):
            if name not in home.folders():
                raise InputError(f"{root} has no folder {name}; give that of PASCAL VOC, VOCdevkit/VOC2012")
        super().__init__(Path(root) / "JPEGImages", transform=transform)
        annotations = Folder(Path(root) / "Annotations")
        there = {file.removesuffix(".xml"): file for file in annotations.files() if file.endswith(".xml")}
        self.parts: list[str] | None = None
        if all(file in home for file in LISTS.values()):
            listed = {name: part for part, file in LISTS.items() for name in home.read(file).decode().split()}
            if lost := next((name for name in listed if name not in there), None):
                raise InputError(f"{root}/ImageSets/Main lists {lost}, which has no annotation")
            there = {name: file for name, file in there.items() if name in listed}
            self.parts = [listed[name] for name in there]
        if not there:
            raise InputError(f"no annotations (*.xml) in {annotations.path}")
        images, self._files, rows = set(self._files), [], []
        for file in there.values():
            image, row = _read(annotations, file)
            if image not in images:
                raise InputError(f"{annotations.path / file} names {image}, which is not in {self.root}")
            self._files.append(image)
            rows.append(row)
        self.labels, self.classes = [-1] * len(rows), list(CLASSES)
        self.presence: NDArray[np.int8] = np.stack(rows)


def _read(folder: Folder, file: str) -> tuple[str, NDArray[np.int8]]:
    """The image that an annotation is of, and what is in it."""
    path = folder.path / file
    try:
        root = ElementTree.fromstring(folder.read(file))
    except (OSError, ElementTree.ParseError) as error:
        raise InputError(f"cannot read {path}, it may be cut short: {error}") from None
    image, marks = root.findtext("filename"), np.full(len(CLASSES), -1, dtype=np.int8)
    if not image:
        raise InputError(f"{path} has no filename: it is no annotation of PASCAL VOC")
    for thing in root.iter("object"):
        name = (thing.findtext("name") or "").strip()
        if name not in CLASSES:
            raise unknown_name(f"class of PASCAL VOC, which {path} has,", name, CLASSES)
        place = CLASSES.index(name)
        marks[place] = max(marks[place], int((thing.findtext("difficult") or "0").strip() != "1"))
    return image.strip(), marks
