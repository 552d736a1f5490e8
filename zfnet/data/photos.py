"""Folders of photographs as a dataset, on the disk or in a zip.

The labels come from the folder: its class folders, or a CSV file that lists its photographs. Whatever its
format, a photograph is loaded as 8-bit RGB, the right way up; one that cannot be is named (`BrokenImage`).
"""

import csv
import io
import itertools
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from PIL import Image, UnidentifiedImageError

from zfnet.data.folders import Folder
from zfnet.data.images import BrokenImage
from zfnet.data.preprocessing import rgb_tensor, upright_rgb
from zfnet.errors import InputError, unknown_name

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm")
# told by content; without this list Pillow would hand a PostScript file named .jpg to an interpreter
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """The photograph in a file (an animation's first frame) as upright 8-bit RGB, or BrokenImage."""
    return _read_image(Path(path), lambda: Path(path).read_bytes())


def _read_image(path: Path, read: Callable[[], bytes]) -> Image.Image:
    data = None
    try:
        data = read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata, which pixels do not depend on
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                return upright_rgb(image)
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        reason = "the file is empty (zero bytes)" if data == b"" else _reason(error)
        raise BrokenImage(f"cannot load {path}: {reason}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return "so many pixels that it looks like a decompression bomb"
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


class _Found(NamedTuple):
    file: str  # from the root, with forward slashes
    label: int | None
    name: str | None


def _from_folders(folder: Folder) -> list[_Found]:
    files = [file for file in folder.files() if file.lower().endswith(EXTENSIONS)]
    flat = next((file for file in files if "/" not in file), None)
    if flat is None:
        return [_Found(file, None, file.partition("/")[0]) for file in files]
    if any("/" in file for file in files):
        raise InputError(
            f"{folder.path} holds class folders and, beside them, {flat}; move it, or list all in labels.csv"
        )
    return [_Found(file, None, None) for file in files]


def _from_table(folder: Folder, table: Path) -> list[_Found]:
    try:
        text = Folder(table.parent).read(table.name).decode("utf-8-sig")
        rows = csv.DictReader(io.StringIO(text, newline=""))
        columns = list(rows.fieldnames or [])
        name_column = next((column for column in ("class_name", "class") if column in columns), None)
        if "file" not in columns or (name_column is None and "class_index" not in columns):
            raise InputError(
                f"{table} has the columns {', '.join(columns) or 'none'};"
                " it needs file, and class_index, class_name or class"
            )
        found = [_from_row(table, rows.line_num, row, name_column) for row in rows]
    except (OSError, UnicodeError, csv.Error) as error:
        raise InputError(f"cannot read {table}: {getattr(error, 'strerror', None) or error}") from None
    found.sort(key=lambda photo: PurePosixPath(photo.file).parts)
    for photo, following in itertools.pairwise(found):
        if photo.file == following.file:
            raise InputError(f"{table} lists {photo.file} twice")
    if absent := [photo.file for photo in found if photo.file not in folder]:
        raise InputError(f"{table} lists {len(absent)} file(s) that are not in {folder.path}, first {absent[0]}")
    return found


def _from_row(table: Path, line: int, row: dict[str, str | None], name_column: str | None) -> _Found:
    file, index, name = row["file"], row.get("class_index"), row.get(name_column or "")
    if not file or PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
        raise InputError(f"{table} line {line}: file is {file!r}; give a path inside the folder")
    if "class_index" not in row:
        if not name:
            raise InputError(f"{table} line {line}: {file} has no {name_column}")
        return _Found(file, None, name)
    if not (index or "").isdecimal():
        raise InputError(f"{table} line {line}: class_index is {index!r}; give a whole number from 0")
    return _Found(file, int(index or ""), name or None)


def _label(source: Path, found: list[_Found], classes: Sequence[str] | None) -> tuple[list[str], list[int], list[str]]:
    """The files, the labels and the classes' names, from what was found and what was asked for."""
    files = [photo.file for photo in found]
    labels = [photo.label for photo in found if photo.label is not None]
    names = [photo.name for photo in found if photo.name is not None]
    if labels:
        if classes is not None and max(labels) >= len(classes):
            raise InputError(f"{source} has class_index {max(labels)}, of {len(classes)} classes")
        return files, labels, list(classes or _class_names(source, found, max(labels) + 1))
    if not names:
        if classes is not None:
            raise InputError(f"{source} is a flat folder, which has no classes; give labels=")
        return files, [-1] * len(files), []
    there = sorted(set(names))
    wanted = there if classes is None else list(classes)
    for name in wanted:
        if name not in there:
            raise unknown_name(f"class in {source} named", name, there)
        if wanted.count(name) > 1:
            raise InputError(f"classes names {name!r} twice")
    label = {name: index for index, name in enumerate(wanted)}
    kept = [(file, label[name]) for file, name in zip(files, names, strict=True) if name in label]
    return [file for file, _ in kept], [label for _, label in kept], wanted


def _class_names(source: Path, found: list[_Found], count: int) -> list[str]:
    """What the table calls its classes; a class without a photograph is called by its number."""
    names: dict[int, str] = {}
    for photo in found:
        if photo.label is not None and photo.name is not None:
            name = names.setdefault(photo.label, photo.name)
            if name != photo.name:
                raise InputError(f"{source}: class {photo.label} is {name!r} and {photo.name!r}")
    return [names.get(label, str(label)) for label in range(count)]


class Photos(torch.utils.data.Dataset):
    """The photographs of a folder, in an order that is the same everywhere; items are (image, label).

    The folder may be or lie in a zip (`photos.zip`, `photos.zip/train`), which is read where it is. A label
    is an index into `classes`. It comes from `labels`, a CSV file (a path from the folder; by default its
    `labels.csv` if there is one) with a column `file` and one of `class_index`, `class_name` or `class`.
    Without one it comes from the class folders, sorted by name and searched in depth; a flat folder has label
    -1 throughout. `classes` gives the names in the order of their labels: photographs of other classes are
    left out; with `class_index` it only names them. Hidden files and folders are ignored. The image is what
    `transform` makes of upright RGB (Pillow), or float32 (3, H, W) in 0..1. InputError says what is amiss.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        labels: str | os.PathLike[str] | None = None,
        transform: Callable[[Image.Image], Any] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.root = Path(root)
        self.transform = transform
        self._folder = Folder(self.root)
        table = self.root / ("labels.csv" if labels is None else labels)
        if labels is not None or "labels.csv" in self._folder:
            source, found = table, _from_table(self._folder, table)
        else:
            source, found = self.root, _from_folders(self._folder)
        if not found:
            raise InputError(f"no photographs in {source}; known are {', '.join(EXTENSIONS)}")
        self._files, self.labels, self.classes = _label(source, found, classes)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.image(index)
        if self.transform is None:
            return rgb_tensor(image), self.labels[index]
        try:
            return self.transform(image), self.labels[index]
        except InputError as error:
            raise InputError(f"{self.root / self._files[index]}: {error}") from None

    def image(self, index: int) -> Image.Image:
        """The photograph as upright RGB, before any transform; BrokenImage if it cannot be loaded."""
        file = self._files[index]
        return _read_image(self.root / file, lambda: self._folder.read(file))

    def file(self, index: int) -> str:
        """The path of a photograph from the folder, with forward slashes."""
        return self._files[index]

    def stamp(self, index: int) -> str:
        """A photograph's path, and what it has no longer once it was changed."""
        return f"{self._files[index]} {self._folder.stamp(self._files[index])}"
