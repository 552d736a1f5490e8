"""Class folders: train/ and val/ with a folder for each class, in a folder or a zip; Tiny ImageNet too."""

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from zfnet.data.folders import Folder
from zfnet.data.photos import Photos
from zfnet.errors import InputError, unknown_name

SPLITS = ("train", "val")
IMAGENET_CLASSES = 1000


def home_of(folder: Folder, split: str) -> Folder | None:
    """The folder that holds the folder `split`: this one, or the only zip or else the only folder in it, and so on."""
    folders = folder.folders()
    if split in folders:
        return folder
    zips = [path.name for path in folder.path.glob("*.zip")] if folder.path.is_dir() else []
    inside = zips or folders
    if len(inside) == 1 and inside[0] not in SPLITS:
        return home_of(Folder(folder.path / inside[0]), split)
    return None


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
        raise InputError(f"{root} has no folder {split!r} of class folders; there is: {_list(folder.folders())}")
    photos = Folder(home.path / split)
    dataset = Photos(photos.path, transform=transform)
    classes = _classes(home, dataset, photos)
    order = {name: label for label, name in enumerate(classes)}
    wnids = _class_of_each(dataset, photos)
    if unknown := next((name for name in wnids if name not in order), None):
        raise InputError(
            f"{photos.path} has the class {unknown!r}, which {home.path / 'train'} has not; remove or add it"
        )
    dataset.labels = [order[name] for name in wnids]
    readable = {**_names(home), **(names or {})}
    dataset.classes = [readable.get(name, name) for name in classes]
    return dataset


def _classes(home: Folder, dataset: Photos, photos: Folder) -> list[str]:
    """The names of train's class folders, in the order of their labels."""
    if not dataset.classes:
        raise InputError(
            f"{photos.path} has photographs ({dataset.file(0)}) where class folders belong; sort them into some"
        )
    if empty := sorted({*photos.folders()} - {*dataset.classes}):
        raise InputError(f"{photos.path / empty[0]} has no photographs; put some there, or delete the folder")
    if "train" in home.folders():
        classes = Folder(home.path / "train").folders()
    elif len(dataset.classes) == IMAGENET_CLASSES:  # the validation set alone has them all
        classes = list(dataset.classes)
    else:
        raise InputError(f"{home.path} has no folder 'train', which says what classes there are; add it")
    if len(classes) < 2:
        raise InputError(f"{home.path / 'train'} has {len(classes)} class folder(s); two are the least")
    return classes


def _class_of_each(dataset: Photos, photos: Folder) -> list[str]:
    """The class folder of each photograph; in Tiny ImageNet's validation set, what its list says instead."""
    wnids = [dataset.classes[label] for label in dataset.labels or ()]
    if "val_annotations.txt" not in photos:
        return wnids
    rows = (line.split("\t") for line in text_of(photos, "val_annotations.txt").splitlines())
    listed = {row[0]: row[1] for row in rows if len(row) > 1}  # file, class, box
    return [listed.get(PurePosixPath(dataset.file(i)).name, name) for i, name in enumerate(wnids)]


def _names(home: Folder) -> dict[str, str]:
    """What the class folders are called (the first of several names), by classes.csv or Tiny ImageNet's words.txt."""
    pairs: list[list[Any]] = []
    if "classes.csv" in home:
        rows = csv.DictReader(io.StringIO(text_of(home, "classes.csv"), newline=""))
        pairs = [[row.get("wnid"), row.get("name")] for row in rows]
    elif "words.txt" in home:
        pairs = [line.split("\t") for line in text_of(home, "words.txt").splitlines()]
    return {pair[0]: pair[1].partition(",")[0] for pair in pairs if len(pair) == 2 and all(pair)}


def text_of(folder: Folder, file: str) -> str:
    return folder.read(file).decode("utf-8-sig", errors="replace")


def _list(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "no folder"
