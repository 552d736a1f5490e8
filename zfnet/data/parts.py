"""The places of parts of objects in the network's image: eyes and noses, rendered or annotated by hand.

A box is top, left, bottom, right in pixels of the network's image, ends exclusive. Rendered scenes know theirs; those
of photographs come from a CSV file with the columns file, part, x, y, side: the centre of a square in pixels of the
upright photograph, from its top left corner, x to the right and y down. Left and right are the viewer's.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zfnet.data.annotations import read_table
from zfnet.data.folders import Folder
from zfnet.data.images import Box, Images, as_images, box_after
from zfnet.data.photos import ImageFiles
from zfnet.errors import InputError, unknown_name

COLUMNS = ("file", "part", "x", "y", "side")


def parts_of(
    data: Any, names: Sequence[str], *, table: str | os.PathLike[str] | None = None, kind: str | None = None
) -> dict[int, dict[str, Box]]:
    """The boxes of the named parts, by item of the dataset; items that lack one are left out.

    InputError for a bad table, a part that nothing has, or a box that is not wholly in the image.

    Args:
        data: a dataset that knows the parts of its items, or photographs.
        names: parts, each with its words in any order: "left eye" is left_eye and eye_left.
        table: the CSV file; None: the dataset's own boxes.
        kind: only items of this class, where the dataset has its own boxes.
    """
    images = as_images(data)
    boxes = _known(images, kind) if table is None else _listed(images, Path(table))
    known = sorted({part for parts in boxes.values() for part in parts})
    for name in names:
        if _words(name) not in map(_words, known):
            raise unknown_name("part", name, [part.replace("_", " ") for part in known])
    chosen = {}
    for item, parts in boxes.items():
        by_words = {_words(part): box for part, box in parts.items()}
        if all(_words(name) in by_words for name in names):
            chosen[item] = {name: by_words[_words(name)] for name in names}
            _check_inside(images, item, chosen[item])
    return chosen


def _words(name: str) -> frozenset[str]:
    return frozenset(name.lower().replace("_", " ").split())


def _known(images: Images, kind: str | None) -> dict[int, Mapping[str, Box]]:
    """The boxes of parts that the dataset knows."""
    if kind is not None and kind not in images.classes:
        raise unknown_name("class", kind, images.classes)
    labels = images.labels if images.labels is not None else [images[i][1] for i in range(len(images))]
    boxes = {}
    for item, label in enumerate(labels):
        if kind is None or images.classes[label] == kind:
            truth = images.truth(item)
            if truth is None or truth.parts is None:
                columns = ", ".join(COLUMNS)
                raise InputError(f"{images.title} has no boxes of parts: give a CSV file with the columns {columns}")
            boxes[item] = truth.parts
    return boxes


def _listed(images: Images, table: Path) -> dict[int, Mapping[str, Box]]:
    """The boxes of parts that a table lists."""
    if not isinstance(images, ImageFiles):
        raise InputError(f"{table} lists parts of photographs, and {images.title} has no files")
    seen = box_after(images.transform)
    if seen is None:
        raise InputError(f"{type(images.transform).__name__} does not say where it puts a box; use a Preprocessing")
    columns, rows = read_table(Folder(table.parent), table.name)
    if missing := [column for column in COLUMNS if column not in columns]:
        raise InputError(f"{table} has no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
    items = {images.file(i): i for i in range(len(images))}
    sizes: dict[int, tuple[int, int]] = {}
    boxes: dict[int, dict[str, Box]] = {}
    for line, row in rows:
        file, part, *numbers = (row[column] for column in COLUMNS)
        if file not in items:
            raise InputError(f"{table} line {line}: {file} is not among the {len(items)} photographs of {images.root}")
        try:
            x, y, side = map(float, numbers)
        except (TypeError, ValueError):
            x = y = side = math.nan
        if not (math.isfinite(x + y + side) and side > 0):
            raise InputError(f"{table} line {line}: x, y, side are {', '.join(map(str, numbers))}; give three numbers")
        item = items[file]
        if item not in sizes:
            sizes[item], boxes[item] = images.image(item).size, {}
        width, height = sizes[item]
        if not part or part in boxes[item]:
            raise InputError(f"{table} line {line}: {file} has {f'{part} twice' if part else 'a part without a name'}")
        box = y - side / 2, x - side / 2, y + side / 2, x + side / 2
        if min(box) < 0 or box[2] > height or box[3] > width:
            raise InputError(f"{table} line {line}: {part} reaches outside {file}, which is {width} x {height} pixels")
        boxes[item][part] = seen(box, width, height)
    if not boxes:
        raise InputError(f"{table} lists no parts")
    return dict(boxes)


def _check_inside(images: Images, item: int, parts: Mapping[str, Box]) -> None:
    height, width = images[item][0].shape[-2:]
    for name, (top, left, bottom, right) in parts.items():
        if not (0 <= top < bottom <= height and 0 <= left < right <= width):
            raise InputError(
                f"{name} of {images.file(item)} (rows {top} to {bottom}, columns {left} to {right}) is not in the"
                f" {height} x {width} pixels that the network sees"
            )
