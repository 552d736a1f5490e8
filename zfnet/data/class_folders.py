"""Class folders: train/ and val/ with a folder for each class, in a folder or a zip; Tiny ImageNet too."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from zfnet.data.annotations import read_table, read_text
from zfnet.data.folders import Folder
from zfnet.data.photos import Photos
from zfnet.errors import InputError, unknown_name

SPLITS = ("train", "val")
IMAGENET_CLASSES = 1000


def home_of(folder: Folder, split: str) -> Folder | None:
    """The folder that holds the folder `split`: this one, or the only zip or else the only folder in it, and so on."""
    seen = set()
    while split not in (folders := folder.folders()):
        seen.add(os.path.realpath(folder.path))
        zips = [path.name for path in folder.path.glob("*.zip") if os.path.isfile(path)]
        inside = zips or folders
        if len(inside) != 1 or inside[0] in SPLITS or os.path.realpath(folder.path / inside[0]) in seen:
            return None
        folder = Folder(folder.path / inside[0])
    return folder


def class_folders(
    root: str | Path, split: str, transform: Callable[[Any], Tensor], names: Mapping[str, str] | None = None
) -> Photos:
    """The photographs of train/ or val/, labelled in the order of train's class folders.

    Args:
        root: the folder or zip that holds both, or holds such a folder.
        split: "train" or "val".
        transform: makes an image a tensor (3, size, size).
        names: what to call the class folders; None: as classes.csv or words.txt in the folder say.

    Raises:
        InputError: the splits differ in their classes, or there are none.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    folder = Folder(Path(root).expanduser())
    home = home_of(folder, split)
    if home is None:
        raise InputError(f"{root} has no folder {split!r} of class folders; available: {_list(folder.folders())}")
    photos = Folder(home.path / split)
    dataset = Photos(photos.path, transform=transform)
    classes = _classes(home, dataset, photos)
    order = {name: label for label, name in enumerate(classes)}
    wnids = _class_of_each(dataset, photos)
    if unknown := next((name for name in wnids if name not in order), None):
        raise InputError(
            f"{photos.path} has the class {unknown!r}, which {home.path / 'train'} does not have; remove or add it"
        )
    dataset.labels = [order[name] for name in wnids]
    readable = {**_names(home), **(names or {})}
    dataset.classes = [readable.get(name, name) for name in classes]
    return dataset


def _classes(home: Folder, dataset: Photos, photos: Folder) -> list[str]:
    """The names of train's class folders, in the order of their labels."""
    if not dataset.classes:
        raise InputError(
            f"{photos.path} has photographs ({dataset.file(0)}) instead of class folders; sort them into class folders"
        )
    if empty := sorted({*photos.folders()} - {*dataset.classes}):
        raise InputError(f"{photos.path / empty[0]} has no photographs; add some, or delete the folder")
    if "train" in home.folders():
        classes = Folder(home.path / "train").folders()
    elif len(dataset.classes) == IMAGENET_CLASSES:  # the validation set alone has them all
        classes = list(dataset.classes)
    else:
        raise InputError(f"{home.path} has no folder 'train', which defines the classes; add it")
    if len(classes) < 2:
        raise InputError(f"{home.path / 'train'} has {len(classes)} class folder(s); at least two are needed")
    return classes


def _class_of_each(dataset: Photos, photos: Folder) -> list[str]:
    """The class folder of each photograph; in Tiny ImageNet's validation set, what its list says instead."""
    wnids = [dataset.classes[label] for label in dataset.labels or ()]
    if not photos.mentions("val_annotations.txt"):
        return wnids
    rows = (line.split("\t") for line in read_text(photos, "val_annotations.txt").splitlines())
    listed = {row[0]: row[1] for row in rows if len(row) > 1}  # file, class, box
    return [listed.get(PurePosixPath(dataset.file(i)).name, name) for i, name in enumerate(wnids)]


def _names(home: Folder) -> dict[str, str]:
    """The names of the class folders (the first of several), from classes.csv or Tiny ImageNet's words.txt."""
    pairs: list[list[Any]] = []
    if home.mentions("classes.csv"):
        pairs = [[row.get("wnid"), row.get("name")] for _, row in read_table(home, "classes.csv")[1]]
    elif home.mentions("words.txt"):
        pairs = [line.split("\t") for line in read_text(home, "words.txt").splitlines()]
    return {pair[0]: pair[1].partition(",")[0] for pair in pairs if len(pair) == 2 and all(pair)}


def _list(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "no folder"
