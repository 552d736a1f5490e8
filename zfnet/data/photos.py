"""Folders of photographs as a dataset, on the disk or in a zip.

The labels come from the folder: its class folders, or a CSV file that lists its photographs. Whatever its
format, a photograph is loaded as upright 8-bit RGB; one that cannot be loaded is named (`BrokenImage`).
"""

import io
import itertools
import math
import os
import re
import struct
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from zfnet.data.annotations import read_annotation, read_table
from zfnet.data.folders import Folder, Listing
from zfnet.data.images import DAMAGED_IMAGE, Images, Truth, box_after, transform_identity, transformed
from zfnet.data.memory import memory_limit
from zfnet.data.preprocessing import rgb_tensor, upright_rgb
from zfnet.errors import BrokenImage, InputError, first_line, printable, unknown_name

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".webp", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpf", ".jpx"),
)
_FILE_COLUMNS, _NAME_COLUMNS = ("file", "filename", "path", "image"), ("class_name", "class")
_MOST_CLASSES = 1_000_000  # a list of their names is made
# recognised by content; without this list Pillow would run an interpreter on a PostScript file named .jpg
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "JPEG2000")
# of images too, in formats that are not read
_OTHERS = (
    *(".heic", ".heif", ".avif", ".jxl", ".psd", ".svg", ".tga", ".ico", ".exr", ".hdr", ".eps", ".dcm", ".mpo"),
    *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)
# A worker that decodes one image stays below this. Decoding and turning upright take up to 13 bytes a pixel in the
# first formats (JPEG's are CMYK), and up to 25 in others, or with transparency or more than 8 bits.
_MOST_BYTES = 2**30
_BYTES, _MORE_BYTES = 14, 26
_PLAIN_FORMATS, _PLAIN_MODES = ("JPEG", "MPO", "PNG", "BMP", "GIF", "PPM"), ("1", "L", "P", "RGB", "CMYK")
_COPIES = 2  # of the file's content, which a decoder may make
_MOST_ASPECT = 1000
_SCAN, _TILE_WIDTH, _TILE_LENGTH = b"\xff\xda", 322, 323
_BYTE_STRINGS = (1, 2, 6, 7)  # types of tags that stay bytes
_MOST_SCANS = (
    2**32
)  # pixels times scans of a progressive JPEG, which has about ten: each takes a second for 2**28 pixels
_MOST_SLOW = 2**23  # pixels where Pillow's decoder is written in Python: of a PNM with another white, a BMP with runs
_MOST_VALUES = 2**17  # in the tags of a TIFF, such as places of strips and tiles, that become objects of Python


def _opened(content: bytes) -> ImageFile.ImageFile:
    """The image as Pillow opens it, of which only the header is read."""
    if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        _check_tags(content)
    return Image.open(io.BytesIO(content), formats=_FORMATS)


def _decoded(content: bytes) -> Image.Image:
    """The image as Pillow opens it, unless decoding would take too much memory or time."""
    image = _opened(content)
    width, height = image.size
    if max(width, height) > _MOST_ASPECT * min(width, height):
        raise InputError(f"{width} x {height} pixels: one side is more than {_MOST_ASPECT:,} times the other")
    plain = image.format in _PLAIN_FORMATS and image.mode in _PLAIN_MODES and "transparency" not in image.info
    most = (_MOST_BYTES - _COPIES * len(content)) // (_BYTES if plain else _MORE_BYTES)
    if any(tile[0] in Image.DECODERS for tile in image.tile[:1]):
        most = min(most, _MOST_SLOW)
    if width * height > most:
        kind = f"{image.format} of mode {image.mode}"
        raise InputError(f"{width} x {height} pixels, more than the {most:,} that are read of a {kind}")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tile = [image.tag_v2.get(tag, 1) for tag in (_TILE_WIDTH, _TILE_LENGTH)]
        if math.prod(tile) > most:
            raise InputError(f"tiles of {tile[0]} x {tile[1]} pixels, more than the {most:,} that are read")
    if image.format in ("JPEG", "MPO") and (scans := content.count(_SCAN)) * width * height > _MOST_SCANS:
        raise InputError(f"{scans:,} scans of {width} x {height} pixels, which would take too long")
    return image


def _check_tags(content: bytes) -> None:
    """InputError for a TIFF with more values in its first directory than fit in memory as objects."""
    order, big = "<" if content[:1] == b"I" else ">", content[2:4] in (b"+\0", b"\0+")
    offset, count, entry = ("Q", "Q", "HHQ8x") if big else ("I", "H", "HHI4x")
    start = struct.unpack_from(order + offset, content, 8 if big else 4)[0]
    number = struct.unpack_from(order + count, content, start)[0]
    start, size = start + struct.calcsize("=" + count), struct.calcsize("=" + entry)
    whole = memoryview(content)[start : min(start + number * size, len(content))]
    values = 0
    for _, kind, length in struct.iter_unpack(order + entry, whole[: len(whole) // size * size]):
        values += length if kind not in _BYTE_STRINGS and length <= len(content) else 0
    if max(values, number) > _MOST_VALUES:
        raise InputError(f"its tags have {max(values, number):,} values, more than the {_MOST_VALUES:,} that are read")


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return "so many pixels that it looks like a decompression bomb"
    if isinstance(error, MemoryError):
        return f"it takes more than {_MOST_BYTES // 2**20:,} MiB to decode"
    return "not an image of a known format" if isinstance(error, UnidentifiedImageError) else first_line(error)


class TooManyPixels(BrokenImage):
    """An image with more pixels than the reader accepts."""


class NoImage(BrokenImage):
    """The file is not an image of a supported format."""


def check_declared(content: bytes, name: str, most: int) -> None:
    """Check an image file by its header, before anything is decoded.

    Args:
        content: of the file.
        name: what an error calls it.
        most: how many pixels it may have.

    Raises TooManyPixels; NoImage for another format; BrokenImage for a header that cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if not content:
                raise BrokenImage("the file is empty (zero bytes)")
            width, height = _opened(content).size
            if width * height > most:
                raise TooManyPixels(f"{width} x {height} pixels, more than the {most:,} that are taken")
        except BrokenImage as error:
            raise type(error)(f"cannot load {name}: {error}") from None
        except DAMAGED_IMAGE as error:
            kinds = {Image.DecompressionBombError: TooManyPixels, UnidentifiedImageError: NoImage}
            raise kinds.get(type(error), BrokenImage)(f"cannot load {name}: {_reason(error)}") from None


def read_photograph(read: Callable[[], bytes], name: str) -> Image.Image:
    """Load an image file (of an animation, its first frame) as upright RGB.

    Args:
        read: gives the content of the file.
        name: what an error calls it.

    Raises BrokenImage for what cannot be read or decoded, or would take too much memory or time.
    """
    content = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata, which pixels do not depend on
        try:
            with memory_limit(_MOST_BYTES):
                content = read()
                return upright_rgb(_decoded(content))
        except DAMAGED_IMAGE as error:
            reason = "the file is empty (zero bytes)" if content == b"" else _reason(error)
            raise BrokenImage(f"cannot load {name}: {reason}") from None


def item_image(image: Image.Image, transform: Callable[[Image.Image], Any] | None, name: str) -> Any:
    """Apply a transform to a photograph; without one, float32 (3, H, W) in 0..1 unless that is too large."""
    if transform is not None:
        return transformed(transform, image, name)
    if image.width * image.height > (most := _MOST_BYTES // _MORE_BYTES):
        size = f"{image.width} x {image.height} pixels"
        raise BrokenImage(f"cannot load {name}: {size}, more than the {most:,} that are read without a transform")
    return rgb_tensor(image)


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
        path = str(self.root / self._files[index])
        return item_image(self.image(index), self.transform, path), self.labels[index]

    def image(self, index: int) -> Image.Image:
        """The photograph (an animation's first frame) as upright RGB, before any transform, or BrokenImage."""
        return read_photograph(lambda: self._folder.read(self._files[index]), str(self.root / self._files[index]))

    def file(self, index: int) -> str:
        """The path of a photograph from the folder, with forward slashes."""
        return self._files[index]

    def stamp(self, index: int) -> str:
        """A photograph's path, and a stamp that changes with the file."""
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
        path, seen = self.root / self._files[index], box_after(self.transform)
        if path.parent.name != "JPEGImages" or seen is None:
            return None
        annotation = read_annotation(Folder(path.parent.parent / "Annotations"), f"{path.stem}.xml")
        width, height = self.image(index).size
        return Truth(objects=[seen(thing.box, width, height) for thing in annotation.objects if thing.box])


class _Photo(NamedTuple):
    file: str  # from the root, with forward slashes
    label: int | None
    name: str | None


def _skipped(listing: Listing) -> dict[str, str]:
    """Entries that look like images or folders of images and are not read, with the reasons."""
    empty = {folder[:-1] for folder in listing.folders if folder[:-1].lower().endswith(EXTENSIONS)}
    empty = empty and empty - {str(parent) for file in listing.files for parent in PurePosixPath(file).parents}
    odd = {file: kind for file, kind in listing.odd.items() if file.lower().endswith((*EXTENSIONS, *_OTHERS, "/"))}
    odd |= {
        file: "another format: convert it to JPEG or PNG" for file in listing.files if file.lower().endswith(_OTHERS)
    }
    return odd | dict.fromkeys(empty, "a folder")


def _from_folders(folder: Folder, listed: list[str]) -> list[_Photo]:
    files = [file for file in listed if file.lower().endswith(EXTENSIONS)]
    flat = [file for file in files if "/" not in file]
    if flat and len(flat) < len(files):
        advice = "move it, or list all in labels.csv"
        raise InputError(f"{folder.path} holds class folders and, beside them, {flat[0]}; {advice}")
    return [_Photo(file, None, None if flat else file.partition("/")[0]) for file in files]


def _from_table(folder: Folder, table: Path) -> list[_Photo]:
    columns, rows = read_table(Folder(table.parent), table.name)
    roles = _roles(table, columns, rows)
    photos = [_from_row(folder, f"{table} line {line}", row, roles) for line, row in rows]
    photos.sort(key=lambda photo: PurePosixPath(photo.file).parts)
    for photo, following in itertools.pairwise(photos):
        if photo.file == following.file:
            raise InputError(f"{table} lists {photo.file} twice")
    if absent := [photo.file for photo in photos if photo.file not in folder]:
        raise InputError(f"{table} lists {len(absent)} file(s) that are not in {folder.path}, first {absent[0]}")
    return photos


class _Roles(NamedTuple):
    """The columns of a table that say a photograph's path, and its class by number or by name."""

    file: str
    number: str | None
    name: str | None


def _roles(table: Path, columns: list[str], rows: list[tuple[int, dict[str, Any]]]) -> _Roles:
    files, names = ([column for column in known if column in columns] for known in (_FILE_COLUMNS, _NAME_COLUMNS))
    index = "class_index" if "class_index" in columns else None
    if not files or not (names or index or "label" in columns):
        needs = f"it needs {_either(_FILE_COLUMNS)}, and {_either(('class_index', *_NAME_COLUMNS, 'label'))}"
        raise InputError(f"{table} has the columns {', '.join(columns) or 'none'}; {needs}")
    if len(files) > 1 and files[0] != "file":
        raise InputError(f"{table} has the columns {' and '.join(files)}; call the one with the paths file")
    if names or index:
        return _Roles(files[0], index, names[0] if names else None)
    numbers = [re.fullmatch(r"[-+]?[\d.]+", str(row["label"] or "")) is not None for _, row in rows]
    if len(set(numbers)) > 1:
        first, second = (rows[numbers.index(kind)] for kind in (True, False))
        both = " and ".join(f"{row['label']!r} in line {line}" for line, row in (first, second))
        raise InputError(f"{table} has the labels {both}; give numbers or names, not both")
    return _Roles(files[0], "label", None) if all(numbers) else _Roles(files[0], None, "label")


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _from_row(folder: Folder, position: str, row: dict[str, str | None], roles: _Roles) -> _Photo:
    file, index, name = (None if column is None else row[column] for column in roles)
    if file and "\\" in file and file not in folder:
        file = file.replace("\\", "/")  # as Windows writes paths
    if not file or PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
        raise InputError(f"{position}: {roles.file} is {file!r}; give a path inside the folder")
    file = str(PurePosixPath(file))  # a//b and a/./b are a/b
    if roles.number is not None:
        if not (index or "").isdecimal() or int((index or "")[:7]) >= _MOST_CLASSES:
            advice = f"give a whole number from 0 to {_MOST_CLASSES - 1:,}"
            advice += ", or call the column class_name" * (roles.number == "label")
            raise InputError(f"{position}: {roles.number} is {index!r}; {advice}")
        return _Photo(file, int(index or ""), name or None)
    if not name:
        raise InputError(f"{position}: {file} has no {roles.name}")
    return _Photo(file, None, name)


def _chosen(
    source: Path, photos: list[_Photo], classes: Sequence[str] | None
) -> tuple[list[str], list[int], list[str]]:
    """The files, the labels and the classes' names, for the classes asked for."""
    files, numbers = [photo.file for photo in photos], [photo.label for photo in photos if photo.label is not None]
    if numbers:
        if classes is not None and max(numbers) >= len(classes):
            raise InputError(f"{source} has class_index {max(numbers)}, of {len(classes)} classes")
        return files, numbers, list(classes or _class_names(source, photos, max(numbers) + 1))
    known = sorted({photo.name for photo in photos if photo.name is not None})
    if not known and classes is not None:
        raise InputError(f"{source} is a flat folder, which has no classes; give labels=")
    if not known:
        return files, [-1] * len(files), []
    names = known if classes is None else list(classes)
    for name in names:
        if name not in known:
            raise unknown_name(f"class in {source} named", name, known)
        if names.count(name) > 1:
            raise InputError(f"classes names {name!r} twice")
    number: dict[str | None, int] = {name: index for index, name in enumerate(names)}
    kept = [photo for photo in photos if photo.name in number]
    return [photo.file for photo in kept], [number[photo.name] for photo in kept], names


def _class_names(source: Path, photos: list[_Photo], count: int) -> list[str]:
    """The names of the classes in the table; a class without a photograph is named by its number."""
    names: dict[int | None, str] = {}
    for photo in photos:
        if photo.name is not None and photo.name != (name := names.setdefault(photo.label, photo.name)):
            raise InputError(f"{source}: class {photo.label} is {name!r} and {photo.name!r}")
    return [names.get(label, str(label)) for label in range(count)]


class Photos(ImageFiles):
    """The photographs of a folder, in an order that is the same everywhere; items are (image, label).

    A label is an index into `classes`. Labels come from a CSV file, or else from the class folders, sorted by name and
    searched in depth; in a flat folder every label is -1. Hidden files and folders are ignored. `skipped` lists what is
    not read: image files in other formats, entries with an image's name that are not files (pipes, broken links), and
    folders that cannot be opened or are listed already. A warning counts them.

    Args:
        root: a folder, a zip (`photos.zip`), which is read where it is, or a folder in one (`photos.zip/train`).
        labels: a CSV file (a path from the folder) with a column `file` (or `filename`, `path`, `image`) and one of
            `class_index`, `class_name`, `class` or `label` (numbers or names). By default the folder's `labels.csv`, if
            there is one.
        transform: makes an upright RGB image of Pillow's into an item's image; by default float32 (3, H, W) in 0..1.
        classes: the names in the order of their labels: photographs of other classes are left out; with `class_index`
            it only names them.

    Raises:
        InputError: for a bad folder or table.
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
        if labels is not None or folder.mentions("labels.csv"):
            photos = _from_table(folder, source)
        else:
            source, listing = folder.path, folder.listing()
            photos, reasons = _from_folders(folder, listing.files), _skipped(listing)
            self.skipped = sorted(reasons)
        if self.skipped:
            first = f"{self.skipped[0]} ({reasons[self.skipped[0]]})"
            message = f"{source}: {len(self.skipped)} image file(s) or folder(s) are not read, first {first}"
            warnings.warn(printable(message), stacklevel=2)
        if not photos:
            raise InputError(f"no photographs in {source}; known are {', '.join(EXTENSIONS)}")
        super().__init__(root, *_chosen(source, photos, classes), transform)
