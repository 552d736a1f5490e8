"""WebDataset shards as a dataset with random access: photographs in tars, read without unpacking.

WebDataset's tars are made to be read from front to back. An index of where each picture's bytes are lets any of them
be read at any time, which a scan needs twice: each process has its part, and winners are read again. The index takes
one pass over the headers, and is kept. Nothing is unpacked.
A sample is what WebDataset calls one: members that follow each other and have the same name up to the first dot of the
file's name, its key. https://github.com/webdataset/webdataset
"""

import contextlib
import glob
import itertools
import json
import os
import re
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from zfnet.data.folders import MOST_BYTES
from zfnet.data.images import Images, transform_identity
from zfnet.data.photos import item_image, read_photograph
from zfnet.data.tars import Member, members
from zfnet.errors import BrokenImage, InputError, first_line, printable, unknown_name
from zfnet.files import open_regular
from zfnet.identity import Damaged, digest, read_sealed, write_sealed

PICTURES = ("jpg", "jpeg", "png", "webp", "ppm")
_KIND, _VERSION = "index of WebDataset tars", 1
_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_TARS = 1_000_000
_MOST_CLASSES = 1_000_000  # a list of their names is made
_MOST_LABEL = {"cls": 2**6, "json": 2**20}  # bytes
_MOST_OPEN = 100  # tars at once
_MOST_SEAL = 2**16  # bytes of the first line of an index

Tars = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


class WebDataset(Images):
    """The pictures of tars in WebDataset's layout, in the order in which they lie; items are (image, label).

    The picture of a sample is its .jpg, .jpeg, .png, .webp or .ppm. Its label is the whole number in its .cls, or else
    `label` in its .json, a whole number (also as text) or a class's name; -1 where it has neither (a .txt is a caption,
    and not read). `skipped` lists samples without a picture, and members that are no plain files or whose names are not
    paths inside the tar; a warning counts them.

    Args:
        tars: a pattern (`photos-{000000..000146}.tar`, `{a,b}`, `*`), a tar, a folder of tars, or a list of these.
        transform: makes an upright RGB image of Pillow's into an item's image; by default float32 (3, H, W) in 0..1.
        classes: the names in the order of the labels' numbers. By default those in `classnames.txt` beside the first
            tar, one a line, if there is one; else the names in the .json, sorted, or the numbers.
        picture: the extension of the picture, such as "jpg" or "left.png", where a sample has several.
        index: a file that keeps the index; by default one beside the first tar, if that folder can be written to.
            It is made again when the names, sizes or times of the tars have changed.

    Raises:
        InputError: for tars that are missing, damaged, cut short or compressed, for a repeated key, and for
            invalid labels.
    """

    skipped: list[str]

    def __init__(
        self,
        tars: Tars,
        *,
        transform: Callable[[Image.Image], Any] | None = None,
        classes: Sequence[str] | None = None,
        picture: str | None = None,
        index: str | os.PathLike[str] | None = None,
    ) -> None:
        self.transform = transform
        self.tars = tars_of(tars)
        self._stamps = [_stamp(path) for path in self.tars]
        home = os.path.dirname(self.tars[0])
        self._names = [os.path.relpath(path, home or ".").replace(os.sep, "/") for path in self.tars]
        self._index = self._kept_index(index, picture)
        self._open: dict[int, _Descriptor] = {}
        self.skipped = self._index.skipped
        if self.skipped:
            count = f"{self.tars[0]}{' and others' if len(self.tars) > 1 else ''}: {len(self.skipped)} sample(s)"
            warnings.warn(printable(f"{count} are not read, first {self.skipped[0]}"), stacklevel=2)
        if not len(self):
            known = f"known are {', '.join(PICTURES)}" if picture is None else f"asked for is .{picture}"
            raise InputError(f"no pictures in {self.tars[0]}; {known}")
        self.classes, self.labels = self._classes_and_labels(home, classes)

    def __len__(self) -> int:
        return len(self._index.offset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        assert self.labels is not None
        return item_image(self.image(index), self.transform, self._path(index)), self.labels[index]

    def image(self, index: int) -> Image.Image:
        """The picture as upright RGB, before any transform. BrokenImage if it is damaged, InputError if its tar is."""
        entry = self._entry(index)
        tar = self._opened(int(self._index.tar[entry]))
        offset, length = int(self._index.offset[entry]), int(self._index.length[entry])
        return read_photograph(lambda: _read(tar, offset, length), self._path(index))

    def file(self, index: int) -> str:
        """The name of a tar, and in it that of a picture: `photos-000003.tar/00031.jpg`."""
        entry = self._entry(index)
        start = int(self._index.name_end[entry - 1]) if entry else 0
        name = self._index.names[start : int(self._index.name_end[entry])].numpy().tobytes()
        return f"{self._names[int(self._index.tar[entry])]}/{name.decode('utf-8', 'surrogateescape')}"

    def basis(self) -> Any:
        transform = transform_identity(self.transform)
        if transform is None:
            return None
        places = [self._index.tar, self._index.offset, self._index.length, self._index.names]
        return [list(zip(self._names, self._stamps, strict=True)), digest(*places), self.labels, transform]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}

    def _entry(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"no item {index} of {len(self)}")
        return index % len(self)

    def _path(self, index: int) -> str:
        return os.path.join(os.path.dirname(self.tars[0]), self.file(index))

    def _opened(self, number: int) -> "_Descriptor":
        """A tar, opened once in this process; InputError if it is not the one that the index is of."""
        tar = self._open.get(number)
        if tar is None:
            if _stamp(path := self.tars[number]) != self._stamps[number]:
                raise InputError(f"{path} has changed since it was indexed; start again")
            tar = _Descriptor(path)
            if len(self._open) >= _MOST_OPEN:
                self._open = {}  # who still reads one keeps it open
            self._open[number] = tar
        return tar

    def _kept_index(self, file: str | os.PathLike[str] | None, picture: str | None) -> "_Index":
        """The index as it is kept, or else made, and kept if it can be."""
        identity = {"what": _KIND}
        basis = digest(_VERSION, list(zip(self._names, self._stamps, strict=True)), picture)
        name = f"index-{digest(self._names, picture)[:8]}.zfnet"
        path = Path(file) if file is not None else Path(os.path.dirname(self.tars[0])) / name
        if os.path.lexists(path):
            _check_ours(path)
            with contextlib.suppress(Damaged):
                if (index := _Index.of(read_sealed(path, identity, "delete it"), basis)) is not None:
                    return index
        index = _made(self.tars, self._names, picture)
        if stale := next((p for p, s in zip(self.tars, self._stamps, strict=True) if _stamp(p) != s), None):
            raise InputError(f"{stale} changed while it was read; start again when it is written")
        try:
            write_sealed(path, identity, index._asdict() | {"basis": basis})
        except InputError:
            if file is not None:
                raise
        return index

    def _classes_and_labels(self, home: str, classes: Sequence[str] | None) -> tuple[list[str], list[int]]:
        source, listed = "classes", None if classes is None else list(classes)
        if listed is None and os.path.isfile(path := os.path.join(home, "classnames.txt")):
            source, listed = path, _lines(path)
        labels, own = self._index.label, self._index.classes
        most = int(labels.max())
        if own and listed is not None:
            place = {name: number for number, name in enumerate(listed)}
            if unknown := next((name for name in own if name not in place), None):
                raise unknown_name(f"class in {source}", unknown, listed)
            number = torch.tensor([*(place[name] for name in own), -1])
            return listed, number[labels].tolist()
        if listed is not None and most >= len(listed):
            raise InputError(f"{self.tars[0]} has the label {most}, but {source} has {len(listed)} names")
        return listed or own or [str(number) for number in range(most + 1)], labels.tolist()


class _Descriptor:
    """A file that stays open as long as somebody knows it: threads may read it while others let go of it."""

    def __init__(self, path: str) -> None:
        try:
            self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise InputError(f"cannot read {path}: {first_line(error)}") from None

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def _read(tar: _Descriptor, offset: int, length: int) -> bytes:
    if length > MOST_BYTES:
        raise BrokenImage(f"it has {length:,} bytes, more than the {MOST_BYTES:,} that are read")
    content = os.pread(tar.number, length, offset)
    if len(content) < length:
        raise BrokenImage(f"the tar ends after {len(content):,} of its {length:,} bytes")
    return content


# ---- which tars ------------------------------------------------------------------------------------------------------


def tars_of(tars: Tars) -> list[str]:
    """The paths of tars that a pattern, a folder, or a list of these stands for; InputError if there are none."""
    if isinstance(tars, str | os.PathLike):
        return _tars(os.fspath(tars))
    paths = [path for part in tars for path in _tars(os.fspath(part))]
    if not paths:
        raise InputError("the list of tars is empty")
    if len(set(paths)) < len(paths):
        raise InputError(f"{max(Counter(paths).items(), key=lambda entry: entry[1])[0]} is listed twice")
    return paths


def _tars(pattern: str) -> list[str]:
    if re.match(r"(pipe:|[a-z][a-z0-9+]+://)", pattern):
        raise InputError(f"{pattern} is not a path; tars are read from the disk: download them first")
    if os.path.isdir(pattern):
        paths = sorted(glob.glob(os.path.join(glob.escape(pattern), "*.tar")))
        if not paths:
            raise InputError(f"{pattern} holds no tars (*.tar)")
        return paths
    paths = []
    for name in [pattern] if os.path.lexists(pattern) else _expanded(pattern):
        paths += [name] if os.path.lexists(name) or not glob.has_magic(name) else sorted(glob.glob(name))
    if not paths:
        raise InputError(f"no tar matches {pattern}")
    if absent := [path for path in paths if not os.path.isfile(path)]:
        others = f", and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise InputError(f"{absent[0]} does not exist{others}; get all tars of {pattern}, or name fewer")
    return paths


def _expanded(pattern: str) -> list[str]:
    """The names that braces stand for, as in a shell: {000..012} and {a,b}."""
    parts: list[list[str]] = []
    for number, text in enumerate(_BRACES.split(pattern)):
        if number % 2 == 0:
            parts.append([text])
        elif match := _RANGE.fullmatch(text):
            first, last = int(match[1][:18]), int(match[2][:18])
            if not 0 <= last - first < _MOST_TARS:
                raise InputError(
                    f"{{{text}}} of {pattern} goes from {first:,} to {last:,}; give a range, such as 00..12"
                )
            parts.append([f"{n:0{len(match[1])}d}" for n in range(first, last + 1)])
        else:
            parts.append(text.split(","))
        if np.prod([len(part) for part in parts], dtype=float) > _MOST_TARS:
            raise InputError(f"{pattern} stands for more than {_MOST_TARS:,} tars")
    return ["".join(name) for name in itertools.product(*parts)]


def _stamp(path: str) -> tuple[int, int]:
    try:
        about = os.stat(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {first_line(error)}") from None
    return about.st_size, about.st_mtime_ns


# ---- the index -------------------------------------------------------------------------------------------------------


class _Index(NamedTuple):
    """The places of the pictures, (N,) each."""

    tar: Tensor  # int32: which of the tars
    offset: Tensor  # int64: of its first byte in it
    length: Tensor  # int64
    label: Tensor  # int64, -1: none
    name_end: Tensor  # int64: where its name ends in `names`, where the next one's begins
    names: Tensor  # uint8
    classes: list[str]  # the names of the labels, where they have names; else none
    skipped: list[str]

    @classmethod
    def of(cls, content: Any, basis: str) -> "_Index | None":
        """The index in a file; None if it is of another basis. Raises Damaged if it is not an index."""
        try:
            if content.pop("basis") != basis:
                return None
            index = cls(**content)
            kinds = {"tar": torch.int32, "names": torch.uint8}
            columns = [(getattr(index, key), kinds.get(key, torch.int64)) for key in cls._fields[:6]]
            right = all(type(column) is Tensor and column.dtype == kind for column, kind in columns)
            right = right and len({column.shape for column, _ in columns[:5]}) == 1 and index.tar.ndim == 1
            right = right and all(type(names) is list for names in (index.classes, index.skipped))
        except (TypeError, ValueError, AttributeError, LookupError):
            right = False
        if not right:
            raise Damaged("no index")
        return index


class _Sample(NamedTuple):
    key: str
    members: Mapping[str, Member]  # by extension, in lower case


def _check_ours(path: Path) -> None:
    """InputError for a file that is not an index, and must not be overwritten by one."""
    with open_regular(path) as file:
        line = file.readline(_MOST_SEAL)
    if f'"what": "{_KIND}"'.encode() not in line:
        raise InputError(f"{path} is not an index of tars; delete it, or give another file as index")


def _made(tars: Sequence[str], names: Sequence[str], picture: str | None) -> _Index:
    """The index of tars, by one pass over their headers."""
    places = {key: array("q") for key in ("tar", "offset", "length", "name_end")}
    labels, listed, skipped = _Labels(), bytearray(), list[str]()
    for number, path in enumerate(tqdm(tars, desc="index", unit=" tars", delay=2, leave=False)):
        tar = _Descriptor(path)
        for sample in _samples(tar, path, names[number], skipped):
            member = _picture(sample, path, names[number], picture, skipped)
            if member is None:
                continue
            labels.take(tar, sample, path)
            listed += member.name.encode("utf-8", "surrogateescape")
            for key, value in zip(places, (number, member.offset, member.length, len(listed)), strict=True):
                places[key].append(value)
    columns = {key: torch.from_numpy(np.array(values, dtype=np.int64)) for key, values in places.items()}
    label, classes = labels.numbers()
    columns |= {"tar": columns["tar"].int(), "names": torch.from_numpy(np.frombuffer(bytes(listed), np.uint8).copy())}
    return _Index(**columns, label=label, classes=classes, skipped=skipped)


def _samples(tar: _Descriptor, path: str, title: str, skipped: list[str]) -> Iterator[_Sample]:
    """The samples of a tar; InputError for a key that comes again later, and for two members of one name."""
    seen: set[str] = set()
    for key, group in itertools.groupby(_named(tar, path, title, skipped), lambda entry: entry[0]):
        if key in seen:
            raise InputError(
                f"{path} has the key {printable(key)} twice, in separate places: sort the tar by name, or rename one"
            )
        seen.add(key)
        sample: dict[str, Member] = {}
        for _, extension, member in group:
            if extension in sample:
                raise InputError(f"{path} has {printable(member.name)} twice; remove one")
            sample[extension] = member
        yield _Sample(key, sample)


def _named(tar: _Descriptor, path: str, title: str, skipped: list[str]) -> Iterator[tuple[str, str, Member]]:
    """Key, extension and member, of members that belong to samples."""
    for member in members(tar.number, path):
        if member.odd == "a folder":
            continue
        name = member.name.removeprefix("./")
        file = name.rpartition("/")[2]
        if file.startswith(".") or (file.startswith("__") and file.endswith("__")):
            continue  # hidden, or WebDataset's own notes
        if "\\" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
            skipped.append(f"{title}/{name} (its name is not a path inside the tar)")
        elif match := _KEY.fullmatch(name):
            yield match[1], match[2].lower(), member._replace(name=name)


def _picture(sample: _Sample, path: str, title: str, picture: str | None, skipped: list[str]) -> Member | None:
    """The picture of a sample; None, and a line in `skipped`, if it has none that can be read."""
    choices = PICTURES if picture is None else (picture.lower().removeprefix("."),)
    known = [extension for extension in sample.members if extension in choices]
    if len(known) > 1:
        raise InputError(f"{path}: {printable(sample.key)} has {' and '.join(known)}; say which with picture=")
    if not known:
        skipped.append(f"{title}/{sample.key} (no picture)")
        return None
    member = sample.members[known[0]]
    if member.odd:
        skipped.append(f"{title}/{member.name} ({member.odd})")
        return None
    return member


class _Labels:
    """The labels of samples as they come: all numbers or all names. InputError for what is neither."""

    def __init__(self) -> None:
        self._labels, self._order = array("q"), dict[str, int]()
        self._first: dict[str, str] = {}  # of each kind of label, the sample that had it first

    def take(self, tar: _Descriptor, sample: _Sample, path: str) -> None:
        """Read the label of one more sample."""
        label: Any = None
        for kind in ("cls", "json"):
            if label is None and (member := sample.members.get(kind)):
                position = f"{path}/{member.name}"
                try:
                    label = _parsed(kind, self._text(tar, member, kind))
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{position} has no label: {first_line(error)}") from None
        if isinstance(label, str):
            label = self._order.setdefault(label, len(self._order))
            self._note("a name", position)
            if len(self._order) > _MOST_CLASSES:
                raise InputError(f"{path} has more than {_MOST_CLASSES:,} classes by name in its .json files")
        elif label is not None and label >= 0:
            self._note("a number", position)
        self._labels.append(-1 if label is None else label)

    def _text(self, tar: _Descriptor, member: Member, kind: str) -> str:
        if member.odd or member.length > _MOST_LABEL[kind]:
            raise ValueError(f"it is {member.odd or f'longer than {_MOST_LABEL[kind]:,} bytes'}")
        return os.pread(tar.number, member.length, member.offset).decode("utf-8")

    def _note(self, kind: str, position: str) -> None:
        self._first.setdefault(kind, position)
        if len(self._first) > 1:
            both = " and ".join(f"{kind} in {position}" for kind, position in self._first.items())
            raise InputError(f"the labels are {both}; give numbers or names, not both")

    def numbers(self) -> tuple[Tensor, list[str]]:
        """The labels (N,), and their classes by name, in order, where they have names."""
        labels, names = torch.from_numpy(np.array(self._labels, dtype=np.int64)), sorted(self._order)
        if names:
            rank = {name: number for number, name in enumerate(names)}
            labels = torch.tensor([*(rank[name] for name in self._order), -1])[labels]
        return labels, names


def _parsed(kind: str, text: str) -> int | str | None:
    """A label from the text of a .cls or .json: a number, a name, or None for none; ValueError if it is odd."""
    if kind == "cls":
        label: Any = int(text) if re.fullmatch(r"\s*(-1|\d+)\s*", text) else text
        if isinstance(label, str):
            raise ValueError(f"it is {text[:40]!r}; give a whole number")
    else:
        content = json.loads(text)
        label = content.get("label") if isinstance(content, dict) else None
    if isinstance(label, str) and re.fullmatch(r"\d{1,9}", label):
        label = int(label)  # as in a .cls; names in order would put 10 before 2
    if label is None or (isinstance(label, str) and label):
        return label
    if type(label) is not int or not -1 <= label < _MOST_CLASSES:
        raise ValueError(
            f"label is {str(label)[:40]!r}; give a whole number from 0 to {_MOST_CLASSES - 1:,}, or a name"
        )
    return label


def _lines(path: str) -> list[str]:
    """The lines of a text file, without empty ones at its end."""
    try:
        with open_regular(path) as file:
            return file.read(MOST_BYTES).decode("utf-8-sig").rstrip().splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {first_line(error)}") from None
