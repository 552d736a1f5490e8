"""Folders of photographs as a dataset, on the disk or in a zip.

The labels come from the folder: its class folders, or a CSV file that lists its photographs. Whatever its
format, a photograph is loaded as upright 8-bit RGB; one that cannot be loaded is named (`BrokenImage`).
"""

import csv
import io
import itertools
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from zfnet.data.annotations import read_annotation
from zfnet.data.folders import Folder
from zfnet.data.images import Images, Truth, box_after, transform_identity, transformed
from zfnet.data.preprocessing import rgb_tensor, upright_rgb
from zfnet.errors import BrokenImage, InputError, unknown_name

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".webp", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpf", ".jpx"),
)
# told by content; without this list Pillow would hand a PostScript file named .jpg to an interpreter
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "JPEG2000")
# of images too, in formats that are not read
_OTHERS = (
    *(".heic", ".heif", ".avif", ".jxl", ".psd", ".svg", ".tga", ".ico", ".exr", ".hdr", ".eps", ".dcm", ".mpo"),
    *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)
# a worker that decodes one image stays below this
_MOST_BYTES = 2**30
# per pixel while decoding and turning upright: colours and greys; modes that pass through transparency or 16 bits
_BYTES, _MORE_BYTES = 9, 24
_PLAIN_MODES = ("1", "L", "RGB", "CMYK", "YCbCr")
_MOST_ASPECT = 1000  # resizing the shortest side would make the other one enormous
# what Pillow and zipfile raise for damaged files. Not AttributeError and NameError, which would be our own mistakes
_DAMAGED = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, MemoryError, RuntimeError),
    *(struct.error, zlib.error, zipfile.BadZipFile, Image.DecompressionBombError),
)


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """The photograph in a file (an animation's first frame) as upright 8-bit RGB, or BrokenImage."""
    return _read_image(Path(path), lambda: Path(path).read_bytes())


def _read_image(path: Path, read: Callable[[], bytes]) -> Image.Image:
    content = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata, which pixels do not depend on
        try:
            content = read()
            image = _decoded(content)
        except _DAMAGED as error:
            reason = "the file is empty (zero bytes)" if content == b"" else _reason(error)
            raise BrokenImage(f"cannot load {path}: {reason}") from None
        try:
            return upright_rgb(image)
        except (OSError, ValueError) as error:
            raise BrokenImage(f"cannot load {path}: {_reason(error)}") from None


def _decoded(content: bytes) -> Image.Image:
    """The image as Pillow decodes it, unless that would take too much memory."""
    image = Image.open(io.BytesIO(content), formats=_FORMATS)
    width, height = image.size
    if max(width, height) > _MOST_ASPECT * min(width, height):
        raise InputError(f"{width} x {height} pixels: one side is more than {_MOST_ASPECT:,} times the other")
    plain = image.mode in _PLAIN_MODES and "transparency" not in image.info
    most = _MOST_BYTES // (_BYTES if plain else _MORE_BYTES)
    if width * height > most:
        raise InputError(f"{width} x {height} pixels, more than the {most:,} that are read of mode {image.mode}")
    image.load()
    return image


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return "so many pixels that it looks like a decompression bomb"
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


class ImageFiles(Images):
    """Image files of a folder or zip, each with a label; `Photos` and `Pascal` say which."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        files: Sequence[str],
        labels: Sequence[int],
        classes: Sequence[str],
        transform: Callable[[Image.Image], Any] | None,
    ) -> None:
        self.root, self.transform = Path(root), transform
        self.labels, self.classes = list(labels), list(classes)
        self._folder, self._files = Folder(self.root), list(files)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        assert self.labels is not None
        image = self.image(index)
        if self.transform is None:
            return rgb_tensor(image), self.labels[index]
        return transformed(self.transform, image, str(self.root / self._files[index])), self.labels[index]

    def image(self, index: int) -> Image.Image:
        """The photograph as upright RGB, before any transform; BrokenImage if it cannot be loaded."""
        file = self._files[index]
        return _read_image(self.root / file, lambda: self._folder.read(file))

    def file(self, index: int) -> str:
        """The path of a photograph from the folder, with forward slashes."""
        return self._files[index]

    def stamp(self, index: int) -> str:
        """A photograph's path, and what it has no longer once it was changed."""
        try:
            return f"{self._files[index]} {self._folder.stamp(self._files[index])}"
        except OSError:
            return f"{self._files[index]} is missing"

    def basis(self) -> Any:
        transform = transform_identity(self.transform)
        return None if transform is None else [[self.stamp(i) for i in range(len(self))], self.labels, transform]

    def truth(self, index: int) -> Truth | None:
        """The boxes of the objects, for photographs in PASCAL VOC's layout: JPEGImages/x.jpg and Annotations/x.xml.

        None for others, and where the transform does not say where it puts a pixel.
        """
        path = self.root / self._files[index]
        seen = box_after(self.transform)
        if path.parent.name != "JPEGImages" or seen is None:
            return None
        annotation = read_annotation(Folder(path.parent.parent / "Annotations"), f"{path.stem}.xml")
        width, height = self.image(index).size
        return Truth(objects=[seen(thing.box, width, height) for thing in annotation.objects if thing.box])


class _Photo(NamedTuple):
    file: str  # from the root, with forward slashes
    label: int | None
    name: str | None


def _from_folders(folder: Folder, listed: list[str]) -> list[_Photo]:
    files = [file for file in listed if file.lower().endswith(EXTENSIONS)]
    flat = next((file for file in files if "/" not in file), None)
    if flat is None:
        return [_Photo(file, None, file.partition("/")[0]) for file in files]
    if any("/" in file for file in files):
        raise InputError(
            f"{folder.path} holds class folders and, beside them, {flat}; move it, or list all in labels.csv"
        )
    return [_Photo(file, None, None) for file in files]


def _from_table(folder: Folder, table: Path) -> list[_Photo]:
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
        photos = [_from_row(table, rows.line_num, row, name_column) for row in rows]
    except (OSError, UnicodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"cannot read {table}: {reason}") from None
    photos.sort(key=lambda photo: PurePosixPath(photo.file).parts)
    for photo, following in itertools.pairwise(photos):
        if photo.file == following.file:
            raise InputError(f"{table} lists {photo.file} twice")
    if absent := [photo.file for photo in photos if photo.file not in folder]:
        raise InputError(f"{table} lists {len(absent)} file(s) that are not in {folder.path}, first {absent[0]}")
    return photos


def _from_row(table: Path, line: int, row: dict[str, str | None], name_column: str | None) -> _Photo:
    file, index, name = row["file"], row.get("class_index"), row.get(name_column or "")
    if not file or PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
        raise InputError(f"{table} line {line}: file is {file!r}; give a path inside the folder")
    if "class_index" not in row:
        if not name:
            raise InputError(f"{table} line {line}: {file} has no {name_column}")
        return _Photo(file, None, name)
    if not (index or "").isdecimal():
        raise InputError(f"{table} line {line}: class_index is {index!r}; give a whole number from 0")
    return _Photo(file, int(index or ""), name or None)


def _label(source: Path, photos: list[_Photo], classes: Sequence[str] | None) -> tuple[list[str], list[int], list[str]]:
    """The files, the labels and the classes' names, for the classes asked for."""
    files = [photo.file for photo in photos]
    labels = [photo.label for photo in photos if photo.label is not None]
    names = [photo.name for photo in photos if photo.name is not None]
    if labels:
        if classes is not None and max(labels) >= len(classes):
            raise InputError(f"{source} has class_index {max(labels)}, of {len(classes)} classes")
        return files, labels, list(classes or _class_names(source, photos, max(labels) + 1))
    if not names:
        if classes is not None:
            raise InputError(f"{source} is a flat folder, which has no classes; give labels=")
        return files, [-1] * len(files), []
    known = sorted(set(names))
    chosen = known if classes is None else list(classes)
    for name in chosen:
        if name not in known:
            raise unknown_name(f"class in {source} named", name, known)
        if chosen.count(name) > 1:
            raise InputError(f"classes names {name!r} twice")
    number = {name: index for index, name in enumerate(chosen)}
    kept = [(file, number[name]) for file, name in zip(files, names, strict=True) if name in number]
    return [file for file, _ in kept], [label for _, label in kept], chosen


def _class_names(source: Path, photos: list[_Photo], count: int) -> list[str]:
    """What the table calls its classes; a class without a photograph is called by its number."""
    names: dict[int, str] = {}
    for photo in photos:
        if photo.label is not None and photo.name is not None:
            name = names.setdefault(photo.label, photo.name)
            if name != photo.name:
                raise InputError(f"{source}: class {photo.label} is {name!r} and {photo.name!r}")
    return [names.get(label, str(label)) for label in range(count)]


class Photos(ImageFiles):
    """The photographs of a folder, in an order that is the same everywhere; items are (image, label).

    A label is an index into `classes`. Labels come from a CSV file, or else from the class folders, sorted by name and
    searched in depth; in a flat folder every label is -1. Hidden files and folders are ignored. `skipped` lists image
    files in formats that are not read; a warning counts them.

    Args:
        root: a folder, a zip (`photos.zip`), which is read where it is, or a folder in one (`photos.zip/train`).
        labels: a CSV file (a path from the folder) with a column `file` and one of `class_index`, `class_name` or
            `class`. By default the folder's `labels.csv`, if there is one.
        transform: makes an upright RGB image of Pillow's into an item's image; by default float32 (3, H, W) in 0..1.
        classes: the names in the order of their labels: photographs of other classes are left out; with `class_index`
            it only names them.

    Raises:
        InputError: one line that says what is wrong with the folder or the table.
    """

    skipped: list[str]

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        labels: str | os.PathLike[str] | None = None,
        transform: Callable[[Image.Image], Any] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        folder, self.skipped = Folder(root), []
        source = folder.path / ("labels.csv" if labels is None else labels)
        if labels is not None or "labels.csv" in folder:
            photos = _from_table(folder, source)
        else:
            source, listed = folder.path, folder.files()
            photos = _from_folders(folder, listed)
            self.skipped = [file for file in listed if file.lower().endswith(_OTHERS)]
        if self.skipped:
            message = f"{source}: {len(self.skipped)} image file(s) are not read, first {self.skipped[0]}"
            warnings.warn(f"{message}; convert them to JPEG or PNG", stacklevel=2)
        if not photos:
            raise InputError(f"no photographs in {source}; known are {', '.join(EXTENSIONS)}")
        super().__init__(root, *_label(source, photos, classes), transform)
