"""Hugging Face's datasets, as `Dataset.save_to_disk` writes them: a folder of Arrow files with random access.

The package `datasets` finds a row; its picture is decoded here, with the same limits as a file of a folder, and not by
`datasets`, which would also follow addresses. Nothing is downloaded: only the folder is read.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from zfnet.data.folders import MOST_BYTES
from zfnet.data.images import IMAGE_KEYS, LABEL_KEYS, Images, transform_identity
from zfnet.data.photos import item_image, read_photograph
from zfnet.errors import BrokenImage, InputError, first_line, unknown_name
from zfnet.files import open_regular

_MOST_STATE = 2**26  # bytes of state.json
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))


class HuggingFace(Images):
    """The images of a dataset that `save_to_disk` of Hugging Face's `datasets` wrote; items are (image, label).

    `as_images` takes a dataset that is loaded already, and has `datasets` decode it.

    Args:
        root: the folder of a `Dataset`, or that of a `DatasetDict`, of which `split` says which.
        split: of a `DatasetDict`.
        transform: makes an upright RGB image of Pillow's into an item's image; by default float32 (3, H, W) in 0..1.
        image: the column of the images, of type `Image` or of bytes; by default `image` or `img`, or the only `Image`.
        label: the column of the labels, of type `ClassLabel`, whole numbers or text; by default `label` or `labels`, or
            the only `ClassLabel`. Without one every label is -1.

    Raises:
        InputError: for a folder that is none of these, for columns of another type, and where `datasets` is missing.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        split: str | None = None,
        transform: Callable[[Image.Image], Any] | None = None,
        image: str | None = None,
        label: str | None = None,
    ) -> None:
        self.root, self.transform = Path(root), transform
        folder = _folder(self.root, split)
        self._fingerprint, self._stamps = _state(folder)
        rows = _loaded(folder)
        self._image = _image_column(folder, rows.features, image)
        self.classes, self.labels = _labels(folder, rows, _label_column(folder, rows.features, label))
        rows, self._paths = rows.select_columns([self._image]).with_format(None), None
        if _kind(rows.features[self._image]) == "Image":
            import datasets

            rows = rows.cast_column(self._image, datasets.Image(decode=False))
            self._paths = rows.flatten().select_columns([f"{self._image}.path"])
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        assert self.labels is not None
        return item_image(self.image(index), self.transform, self._name(index)), self.labels[index]

    def image(self, index: int) -> Image.Image:
        """The picture as upright RGB, before any transform; BrokenImage if it is damaged or not in the dataset."""
        return read_photograph(lambda: _content(self._rows[index][self._image]), self._name(index))

    def file(self, index: int) -> str | None:
        """The name of the picture's file, if the dataset has it."""
        path = None if self._paths is None else self._paths[index][f"{self._image}.path"]
        return (path or "").replace("\\", "/").rpartition("/")[2] or None

    def basis(self) -> Any:
        transform = transform_identity(self.transform)
        return None if transform is None else [self._fingerprint, self._stamps, self._image, self.labels, transform]

    def _name(self, index: int) -> str:
        return f"{self.name(index)} of {self.root}"


def splits_of(root: str | os.PathLike[str]) -> list[str]:
    """The splits of a saved `DatasetDict`; none for anything else."""
    path = Path(root) / "dataset_dict.json"
    if (Path(root) / "state.json").is_file() or not path.is_file():
        return []
    names = _json(path).get("splits")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _folder(root: Path, split: str | None) -> Path:
    """The folder of one `Dataset`; InputError if there is none."""
    if "::" in str(root) or re.match(r"[a-z][a-z0-9+]+:/", str(root)):
        raise InputError(f"{root} is not a path on this disk; download the dataset, and save it with save_to_disk")
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; give the one that save_to_disk wrote")
    if (root / "state.json").is_file():
        if split is not None:
            raise InputError(f"{root} is a single Dataset, without splits; leave out split={split}")
        return root
    if not (root / "dataset_dict.json").is_file():
        raise InputError(f"{root} has no state.json and no dataset_dict.json; give a folder that save_to_disk wrote")
    names = splits_of(root)
    if split is None:
        raise InputError(f"{root} has the splits {', '.join(names) or '(none)'}; say which with split=")
    if split not in names or split != os.path.basename(split):
        raise unknown_name(f"split in {root} named", str(split), names)
    return root / split


def _state(folder: Path) -> tuple[str, list[tuple[str, int, int]]]:
    """The fingerprint of a saved dataset, and the names, sizes and times of its files."""
    state = _json(folder / "state.json")
    try:
        names = [str(entry["filename"]) for entry in state["_data_files"]]
        fingerprint = str(state["_fingerprint"])
    except (LookupError, TypeError):
        raise InputError(f"{folder / 'state.json'} is not what save_to_disk writes; save the dataset again") from None
    if state.get("_indices_data_files"):
        raise InputError(f"{folder} was saved by an old version of datasets, in another layout; save it again")
    stamps = []
    for name in names:
        if name != os.path.basename(name):
            raise InputError(f"{folder / 'state.json'} names {name!r}, which is not in the folder")
        try:
            about = (folder / name).stat()
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {folder / name}: {first_line(error)}; save the dataset again") from None
        stamps.append((name, about.st_size, about.st_mtime_ns))
    return fingerprint, stamps


def _json(path: Path) -> dict[str, Any]:
    with open_regular(path) as file:
        text = file.read(_MOST_STATE)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {first_line(error)}") from None
    return content if isinstance(content, dict) else {}


def _loaded(folder: Path) -> Any:
    try:
        import datasets
    except ImportError:
        raise InputError("Hugging Face's datasets need their package: pip install 'zfnet[hugging_face]'") from None
    try:
        return datasets.Dataset.load_from_disk(os.path.abspath(folder), keep_in_memory=False)
    except Exception as error:  # of pyarrow, or of any part of datasets
        raise InputError(f"cannot read the dataset in {folder}: {first_line(error)}; save it again") from None


def _kind(feature: Any) -> str:
    """The type of a column: "Image", "ClassLabel", or that of its values."""
    name = type(feature).__name__
    return str(feature.dtype) if name == "Value" else name


def _image_column(folder: Path, features: Any, column: str | None) -> str:
    kinds = {name: _kind(feature) for name, feature in features.items()}
    if column is not None and column not in kinds:
        raise unknown_name(f"column of {folder} named", column, kinds)
    images = [name for name, kind in kinds.items() if kind == "Image"]
    named = [name for name in IMAGE_KEYS if name in kinds]
    chosen = column or next(iter(named), images[0] if len(images) == 1 else None)
    listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    if chosen is None:
        raise InputError(f"{folder} has the columns {listed}; say which holds the images with image=")
    if kinds[chosen] not in ("Image", "binary", "large_binary"):
        advice = f"cast_column({chosen!r}, datasets.Image()) and save it again, or say which with image="
        raise InputError(f"{folder} has the columns {listed}; {chosen} holds no images: {advice}")
    return chosen


def _label_column(folder: Path, features: Any, column: str | None) -> str | None:
    kinds = {name: _kind(feature) for name, feature in features.items()}
    known = (*_INTEGERS, "ClassLabel", "string", "large_string")
    if column is not None:
        if column not in kinds:
            raise unknown_name(f"column of {folder} named", column, kinds)
        if kinds[column] not in known:
            raise InputError(f"{column} of {folder} is {kinds[column]}; labels are whole numbers, ClassLabel or text")
        return column
    named = [name for name in LABEL_KEYS if kinds.get(name) in known]
    classes = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    return next(iter(named), classes[0] if len(classes) == 1 else None)


def _labels(folder: Path, rows: Any, column: str | None) -> tuple[Sequence[str], list[int]]:
    """The classes' names, and the label of each row; -1 where there is none."""
    if column is None:
        return [], [-1] * len(rows)
    values = rows.select_columns([column]).with_format("arrow")[:].column(0).to_pylist()
    if _kind(feature := rows.features[column]) == "ClassLabel":
        names = list(feature.names)
    elif any(isinstance(value, str) for value in values):
        names = sorted({value for value in values if value is not None})
        number = {name: index for index, name in enumerate(names)}
        values = [None if value is None else number[value] for value in values]
    else:
        most = max((value for value in values if value is not None), default=-1)
        names = [str(label) for label in range(most + 1)] if most < 1_000_000 else []
    labels = [-1 if value is None else int(value) for value in values]
    if labels and not -1 <= min(labels) <= max(labels) < len(names):
        raise InputError(f"{column} of {folder} has {min(labels)} to {max(labels)}, of {len(names):,} classes")
    return names, labels


def _content(cell: Any) -> bytes:
    """The bytes of a picture, from what `datasets` has in its place."""
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if content is None:
        path = cell.get("path") if isinstance(cell, dict) else None
        raise BrokenImage(f"its picture is not in the dataset, but at {path}" if path else "it has no picture")
    if len(content) > MOST_BYTES:
        raise BrokenImage(f"it has {len(content):,} bytes, more than the {MOST_BYTES:,} that are read")
    return bytes(content)
