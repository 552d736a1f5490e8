"""PASCAL VOC's annotations: which objects are in a photograph, and where."""

from typing import NamedTuple
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
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise InputError(f"cannot read {folder.path / file}: {reason}") from None
    return Annotation((root.findtext("filename") or "").strip() or None, objects)


def _object(element: ElementTree.Element) -> Annotated:
    box, corners = element.find("bndbox"), None
    if box is not None:
        top, left, bottom, right = (float(box.findtext(end) or "") for end in ENDS)
        corners = top - 1, left - 1, bottom, right
    difficult = (element.findtext("difficult") or "0").strip() == "1"
    return Annotated((element.findtext("name") or "").strip(), difficult, corners)
