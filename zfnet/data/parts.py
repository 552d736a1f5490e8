"""Where the parts of things are in what a network sees: eyes and noses, drawn by us or annotated by hand.

A box is top, left, bottom, right in pixels of the network's image, ends exclusive.  Rendered scenes know theirs; those
of photographs come from a CSV file with the columns file, part, x, y, side: the centre of a square in pixels of the
upright photograph, from its top left corner, x to the right and y down.  Left and right are the viewer's.  Whole
objects are where PASCAL VOC's annotations say.
"""

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from zfnet.data.folders import Folder
from zfnet.data.photos import Photos
from zfnet.data.preprocessing import Preprocessing
from zfnet.data.scenes import Scenes
from zfnet.errors import InputError, first_line, unknown_name

Box = tuple[int, int, int, int]
COLUMNS = ("file", "part", "x", "y", "side")


def parts_of(
    data: Any, names: Sequence[str], *, table: str | os.PathLike[str] | None = None, kind: str | None = None
) -> dict[int, dict[str, Box]]:
    """The boxes of the named parts, by item of the dataset; items that lack one are left out.

    A name is its words in any order: "left eye" is left_eye and eye_left.  table: the CSV file; None: scenes' own
    boxes.  kind: of scenes, this class only.  InputError for a table that cannot be read, a file that is not in the
    dataset, a part that nothing has, and a box that is not wholly in the image.
    """
    found = _of_scenes(data, kind) if table is None else _of_photos(data, Path(table))
    there = sorted({part for _, parts in found.values() for part in parts})
    for name in names:
        if _words(name) not in map(_words, there):
            raise unknown_name("part", name, [part.replace("_", " ") for part in there])
    chosen = {}
    for item, (size, parts) in found.items():
        boxes = {_words(part): box for part, box in parts.items()}
        if all(_words(name) in boxes for name in names):
            chosen[item] = {name: _seen(data, item, size, name, boxes[_words(name)]) for name in names}
    return chosen


def objects_in(data: Any, item: int) -> list[Box] | None:
    """The boxes of the objects in an item, which may reach beyond the image; None where the dataset knows none.

    Known are those of photographs in PASCAL VOC's layout: JPEGImages/x.jpg, and Annotations/x.xml beside it, whose
    pixels count from 1 and ends are inclusive.  InputError if there is no such file, or it cannot be read.
    """
    path = data.root / data.file(item) if isinstance(data, Photos) else Path()
    if path.parent.name != "JPEGImages":
        return None
    name, ends = f"{path.stem}.xml", ("ymin", "xmin", "ymax", "xmax")
    folder = Folder(path.parent.parent / "Annotations")
    try:
        boxes = ElementTree.fromstring(folder.read(name)).iterfind("object/bndbox")
        found = [[float(box.findtext(end) or "") for end in ends] for box in boxes]
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise InputError(
            f"cannot read {folder.path / name}: {getattr(error, 'strerror', None) or first_line(error)}"
        ) from None
    width, height = data.image(item).size
    seen = data.transform.box if isinstance(data.transform, Preprocessing) else lambda box, *_: tuple(map(round, box))
    return [seen((top - 1, left - 1, bottom, right), width, height) for top, left, bottom, right in found]


def _words(name: str) -> frozenset[str]:
    return frozenset(name.lower().replace("_", " ").split())


# the width and height of each item, and its parts' boxes in its own pixels
_Found = dict[int, tuple[tuple[int, int], dict[str, Sequence[float]]]]


def _of_scenes(data: Any, kind: str | None) -> _Found:
    if not isinstance(data, Scenes):
        raise InputError(f"{type(data).__name__} knows no parts: give a CSV file with the columns {', '.join(COLUMNS)}")
    if kind is not None and kind not in data.classes:
        raise unknown_name("class", kind, data.classes)
    chosen = [i for i, label in enumerate(data.labels) if kind is None or data.classes[label] == kind]
    return {i: (data.size[::-1], dict(data.scene(i).parts)) for i in chosen}


def _of_photos(data: Any, table: Path) -> _Found:
    if not isinstance(data, Photos):
        raise InputError(f"{table} lists parts of photographs, and {type(data).__name__} has no files")
    items = {data.file(i): i for i in range(len(data))}
    found: _Found = {}
    for line, row in _rows(table):
        file, part, *numbers = (row[column] for column in COLUMNS)
        if file not in items:
            raise InputError(f"{table} line {line}: {file} is not among the {len(items)} photographs of {data.root}")
        try:
            x, y, side = map(float, numbers)
        except (TypeError, ValueError):
            x = y = side = math.nan
        if not (math.isfinite(x + y + side) and side > 0):
            raise InputError(f"{table} line {line}: x, y, side are {', '.join(map(str, numbers))}; give three numbers")
        if items[file] not in found:
            found[items[file]] = data.image(items[file]).size, {}
        (width, height), parts = found[items[file]]
        if not part or part in parts:
            raise InputError(f"{table} line {line}: {file} has {f'{part} twice' if part else 'a part without a name'}")
        box = y - side / 2, x - side / 2, y + side / 2, x + side / 2
        if min(box) < 0 or box[2] > height or box[3] > width:
            raise InputError(f"{table} line {line}: {part} reaches outside {file}, which is {width} x {height} pixels")
        parts[part] = box
    if not found:
        raise InputError(f"{table} lists no parts")
    return found


def _rows(table: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        with open(table, newline="", encoding="utf-8-sig") as lines:
            rows = csv.DictReader(lines)
            if missing := [column for column in COLUMNS if column not in (rows.fieldnames or [])]:
                raise InputError(f"{table} has no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
            return [(rows.line_num, row) for row in rows]
    except (OSError, UnicodeError, csv.Error) as error:
        raise InputError(f"cannot read {table}: {getattr(error, 'strerror', None) or error}") from None


def _seen(data: Any, item: int, size: tuple[int, int], name: str, box: Sequence[float]) -> Box:
    """The box in the pixels that the network sees."""
    width, height = size
    if isinstance(data.transform, Preprocessing):
        box = data.transform.box(box, width, height)
        height, width = data.transform.image_size
    top, left, bottom, right = map(round, box)
    if top < 0 or left < 0 or bottom > height or right > width or top >= bottom or left >= right:
        raise InputError(
            f"{name} of {data.file(item)} (rows {top} to {bottom}, columns {left} to {right}) is not in the"
            f" {height} x {width} pixels that the network sees"
        )
    return top, left, bottom, right
