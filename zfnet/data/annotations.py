"""Annotations of photographs: PASCAL VOC's files, which say which objects are in one and where, and CSV tables."""

import codecs
import csv
import io
import math
from typing import Any, NamedTuple
from xml.etree import ElementTree

from zfnet.data.folders import DAMAGED, Folder
from zfnet.errors import InputError, first_line

# UTF-32 begins as UTF-16 does
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    **dict.fromkeys((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-32"),
    **dict.fromkeys((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-16"),
}
_MOST_VALUES = 2**23  # of a table, which become objects of Python: a row of up to four of them takes 1 KiB
ENDS = ("ymin", "xmin", "ymax", "xmax")  # in pixels that count from 1; both ends are inside


class Annotated(NamedTuple):
    """One object of an annotation; its box is top, left, bottom, right in pixels from 0, ends exclusive."""

    name: str
    difficult: bool
    box: tuple[float, float, float, float] | None


class Annotation(NamedTuple):
    image: str | None  # the photograph's file name
    objects: list[Annotated]


def read_annotation(folder: Folder, file: str) -> Annotation:
    """Read one of VOC's XML files. Raises InputError if it cannot be read."""
    try:
        root = ElementTree.fromstring(folder.read(file))
        objects = [_object(element) for element in root.iterfind("object")]
    except (*DAMAGED, ElementTree.ParseError) as error:
        raise InputError(f"cannot read {folder.path / file}: {first_line(error)}") from None
    return Annotation((root.findtext("filename") or "").strip() or None, objects)


def _object(element: ElementTree.Element) -> Annotated:
    box, corners = element.find("bndbox"), None
    if box is not None:
        top, left, bottom, right = (float(box.findtext(end) or "") for end in ENDS)
        if not math.isfinite(top + left + bottom + right):
            raise ValueError("a box is not finite")
        corners = top - 1, left - 1, bottom, right
    difficult = (element.findtext("difficult") or "0").strip() == "1"
    return Annotated((element.findtext("name") or "").strip(), difficult, corners)


def read_table(folder: Folder, file: str) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    """The columns of a table, in small letters, and its rows with their line numbers.

    Values are parted by commas, or else by semicolons or tabs, as the first line shows; text is as for `read_text`.
    Raises InputError if it cannot be read.
    """
    path, text = folder.path / file, read_text(folder, file)
    header = text.partition("\n")[0]
    delimiter = next((mark for mark in ",;\t" if mark in header), ",")
    try:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
        columns = [name.strip().lower() for name in next(lines, [])]
        rows, count = [], 0
        for values in lines:
            if any(value.strip() for value in values):
                rows.append((lines.line_num, values))
                count += max(len(columns), len(values), 4)
            if count > _MOST_VALUES:
                raise InputError(f"{path} has too many rows: {len(rows):,} of {len(columns)} columns")
    except csv.Error as error:
        raise InputError(f"cannot read {path} line {lines.line_num}: {first_line(error)}") from None
    if twice := next((name for name in columns if name and columns.count(name) > 1), None):
        raise InputError(f"{path} has the column {twice} twice")
    for line, values in rows:
        if any(values[len(columns) :]):
            raise InputError(f"{path} line {line} has {len(values)} values for {len(columns)} columns")
    return columns, [(line, {**dict.fromkeys(columns), **dict(zip(columns, row, strict=False))}) for line, row in rows]


def read_text(folder: Folder, file: str) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark. Raises InputError if it is none."""
    path = folder.path / file
    try:
        content = folder.read(file)
        encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        what = f"{error.encoding.upper()} in line {line}: {error.reason}"
        raise InputError(f"cannot read {path}: it is not text in {what}; save it as UTF-8") from None
    except DAMAGED as error:
        raise InputError(f"cannot read {path}: {first_line(error)}") from None
    if "\0" in text:
        raise InputError(f"cannot read {path}: it holds zero bytes, so it is not text; save it as UTF-8")
    return text
