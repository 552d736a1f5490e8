"""What is written of photographs: PASCAL VOC's annotations, which objects are in one and where, and CSV tables."""

import csv
import io
from typing import Any, NamedTuple
from xml.etree import ElementTree

from zfnet.data.folders import Folder
from zfnet.errors import InputError, first_line

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
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise InputError(f"cannot read {folder.path / file}: {first_line(error)}") from None
    return Annotation((root.findtext("filename") or "").strip() or None, objects)


def _object(element: ElementTree.Element) -> Annotated:
    box, corners = element.find("bndbox"), None
    if box is not None:
        top, left, bottom, right = (float(box.findtext(end) or "") for end in ENDS)
        corners = top - 1, left - 1, bottom, right
    difficult = (element.findtext("difficult") or "0").strip() == "1"
    return Annotated((element.findtext("name") or "").strip(), difficult, corners)


def read_table(folder: Folder, file: str) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    """The columns of a CSV file, and its rows with their line numbers. Raises InputError if it cannot be read."""
    try:
        rows = csv.DictReader(io.StringIO(folder.read(file).decode("utf-8-sig"), newline=""))
        return list(rows.fieldnames or []), [(rows.line_num, row) for row in rows]
    except (OSError, UnicodeError, csv.Error) as error:
        raise InputError(f"cannot read {folder.path / file}: {first_line(error)}") from None
