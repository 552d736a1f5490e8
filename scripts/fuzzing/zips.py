"""Zips of photographs and the tables that label them, damaged or odd.

A zip is read like a folder, entry by entry: what is read has the pixels and the label that were put in, and all else is
named in one printable line. A table is read with the labels that it was written with, or refused in one line.
"""

import csv
import functools
import io
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scripts.fuzzing.images import ABSURD, MUTATIONS, check, check_line
from zfnet.data import Photos
from zfnet.data.class_folders import class_folders
from zfnet.errors import InputError

LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
# where the numbers of each record are, from its beginning, and how long they are
FIELDS = {
    LOCAL: ((4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)),
    CENTRAL: ((4, 2), (6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (38, 4), (42, 4)),
    END: ((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)),
}
CLASSES = ("ant", "bée", "cat, wild")
ODD_NAMES = (
    "../x.png",
    "/etc/x.png",
    "C:\\x.png",
    "ant\\x.png",
    "ant/../x.png",
    "a\x1b[1m/\nx.png",
    ".",
    "/",
    "ant//x.png",
    "é.png",
)


def case(seed: int, folder: Path) -> str:
    rng = random.Random(seed)
    if rng.random() < 0.35:
        return table(rng, folder)
    path = folder / rng.choice(("a.zip", "\x1b[1mred.zip", "two\nlines.zip"))
    whole = rng.random() < 0.15
    path.write_bytes(made(rng) if whole else damaged(rng))
    return outcome(rng, path)


def outcome(rng: random.Random, path: Path) -> str:
    """The outcome of reading a zip."""
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            if rng.random() < 0.2:
                data = class_folders(path, "train", lambda image: np.asarray(image))  # type: ignore[arg-type, return-value]
            else:
                data = Photos(path, transform=np.asarray)
        for warning in said:
            check_line(str(warning.message))
    except InputError as error:
        check_line(str(error))
        return "refused"
    broken = 0
    for i in range(len(data)):
        check_line(data.name(i))
        try:
            pixels, label = data[i]
        except InputError as error:
            check_line(str(error))
            broken += 1
            continue
        expected = photographs().get(data.file(i).rpartition("/")[2])
        if expected is not None and not np.array_equal(pixels, expected[1]):
            raise AssertionError(f"{data.file(i)!r} has other pixels")
        check(label in range(-1, len(data.classes)), f"label {label} of {len(data.classes)} classes")
    return "named broken" if broken else "left out" if data.skipped else "read"


@functools.cache
def photographs() -> dict[str, tuple[bytes, Any]]:
    """A file's name, content and pixels."""
    found = {}
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, ("PNG", "BMP")[number % 2])
        found[f"{number}.png"] = file.getvalue(), pixels
    return found


def made(rng: random.Random) -> bytes:
    """A whole zip, perhaps with odd entries."""
    file = io.BytesIO()
    prefix = rng.choice(("", "", "train/", "photos/train/"))
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", rng.choice((0, 8, 8, 8, 12, 14))) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for number, (name, (content, _)) in enumerate(photographs().items()):
            archive.writestr(f"{prefix}{CLASSES[number % len(CLASSES)]}/{name}", content)
        for _ in range(rng.choice((0, 0, 1, 2))):
            rng.choice(EXTRAS)(rng, archive)
        if rng.random() < 0.1:
            archive.comment = rng.choice((b"note", b"PK\5\6" * 9, b"\0" * 65535))
    return file.getvalue()


def _odd_name(rng: random.Random, archive: zipfile.ZipFile) -> None:
    archive.writestr(rng.choice(ODD_NAMES), photographs()["0.png"][0])


def _twice(rng: random.Random, archive: zipfile.ZipFile) -> None:
    if archive.namelist():
        name = rng.choice(archive.namelist())
        archive.writestr(name, photographs().get(name[-5:], [b"again"])[0])


def _link(rng: random.Random, archive: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("ant/link.png")
    entry.create_system, entry.external_attr = 3, rng.choice((0o120777, 0o010644, 0o020644, 0o140644)) << 16
    archive.writestr(entry, "/etc/passwd")


def _zeros(rng: random.Random, archive: zipfile.ZipFile) -> None:
    archive.writestr("ant/zeros.png", bytes(rng.choice((10**6, 3 * 10**7))), rng.choice((8, 8, 12, 14)))


def _labels(rng: random.Random, archive: zipfile.ZipFile) -> None:
    archive.writestr("labels.csv", rng.choice(("file,class\n", "", "file,class\n0.png,ant\n", "x", "\0")))


EXTRAS: tuple[Callable[[random.Random, zipfile.ZipFile], None], ...] = (
    _odd_name,
    _odd_name,
    _twice,
    _link,
    _zeros,
    _labels,
)


def damaged(rng: random.Random) -> bytes:
    if rng.random() < 0.05:
        return zeros(rng.choice((150, 400)), rng.random() < 0.5)
    data = made(rng)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice((_field, _field, _field, _field, _joined, _extra, *MUTATIONS))(rng, data)
    return data


@functools.cache
def zeros(megabytes: int, lies: bool) -> bytes:
    """A zip with an entry that unfolds to so much, or says that it has 100 bytes and does."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = b"".join([*(packer.compress(bytes(2**20)) for _ in range(megabytes)), packer.flush()])
    length, name = 100 if lies else megabytes * 2**20, b"ant/zeros.png"
    about = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, 0, len(body), length, len(name), 0)
    local = LOCAL + about + name + body
    central = CENTRAL + struct.pack("<H", 20) + about + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    return local + central + END + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)


def _field(rng: random.Random, data: bytes) -> bytes:
    """Another number in a record."""
    mark = rng.choice((LOCAL, CENTRAL, CENTRAL, END))
    starts, start = [], data.find(mark)
    while start >= 0:
        starts.append(start)
        start = data.find(mark, start + 1)
    if not starts:
        return data
    place, size = rng.choice(FIELDS[mark])
    place += rng.choice(starts)
    number = rng.choice((*ABSURD, 9, 12, 14, 20, 45, 64, 93, 97, 99, 100, 2048))
    return data[:place] + (number % 256**size).to_bytes(size, "little") + data[place + size :]


def _joined(rng: random.Random, data: bytes) -> bytes:
    other = made(rng)
    return rng.choice((data + other, other[: rng.randrange(len(other))] + data, b"\x7fELF" + data))


def _extra(rng: random.Random, data: bytes) -> bytes:
    """An entry that keeps its numbers in a field of a zip64."""
    start = data.find(CENTRAL)
    if start < 0 or start + 46 > len(data):
        return data
    name = struct.unpack_from("<H", data, start + 28)[0]
    numbers = b"".join(struct.pack("<Q", rng.choice((*ABSURD, 2**63, 2**64 - 1))) for _ in range(rng.randrange(4)))
    field = struct.pack("<HH", 1, rng.choice((len(numbers), 0, 65535))) + numbers
    changed = bytearray(data[: start + 46 + name] + field + data[start + 46 + name :])
    struct.pack_into("<H", changed, start + 30, len(field))
    for place in rng.sample((20, 24, 42), rng.randrange(4)):
        struct.pack_into("<I", changed, start + place, 2**32 - 1)
    end = changed.rfind(END)
    if 0 <= end <= len(changed) - 16:
        size = struct.unpack_from("<I", changed, end + 12)[0]
        struct.pack_into("<I", changed, end + 12, min(size + len(field), 2**32 - 1))
    return bytes(changed)


# --- tables


def table(rng: random.Random, folder: Path) -> str:
    """The outcome of a table, whole or damaged, beside its photographs or in a zip with them."""
    files = {
        f"{CLASSES[number % 3].partition(',')[0]}/{name}": CLASSES[number % 3]
        for number, name in enumerate(photographs())
    }
    content, whole = written(rng, files)
    zipped = rng.random() < 0.4
    root = folder / ("photos.zip" if zipped else "photos")
    if zipped:
        with zipfile.ZipFile(root, "w") as archive:
            archive.writestr("labels.csv", content)
            for file in files:
                archive.writestr(file, photographs()[file[-5:]][0])
    else:
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_bytes(photographs()[file[-5:]][0])
        (root / "labels.csv").write_bytes(content)
    try:
        data = Photos(root)
    except InputError as error:
        check_line(str(error))
        check(not whole, f"a whole table is refused: {error}")
        return "table refused"
    labels = {data.file(i): data.classes[label] for i, label in enumerate(data.labels or ())}
    known = [files[file] for file in files]
    if whole:
        expected = {file: name if whole == "names" else str(CLASSES.index(name)) for file, name in files.items()}
        check(labels == expected, f"a whole table gives {labels}")
        return "table read"
    check(set(labels) <= set(files), f"files that are not there: {labels}")
    return "table read, damaged" if set(labels.values()) <= {*known, "0", "1", "2"} else "table read, other names"


def written(rng: random.Random, files: dict[str, str]) -> tuple[bytes, str]:
    """A table's content, and whether it is whole: "names", "numbers", or "" for one that is damaged."""
    numbers = rng.random() < 0.4
    label = rng.choice(("class_index", "label") if numbers else ("class_name", "class", "label"))
    header = [rng.choice(("file", "filename", "path", "image", " File", "IMAGE")), rng.choice((label, label.upper()))]
    rows = [[file, str(CLASSES.index(name)) if numbers else name] for file, name in files.items()]
    if rng.random() < 0.3:
        rows = [[row[0].replace("/", "\\"), row[1]] for row in rows]
    rows, header = ([[*row, "note"] for row in rows], [*header, "remark"]) if rng.random() < 0.2 else (rows, header)
    text = io.StringIO()
    quoting = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    writer = csv.writer(text, delimiter=rng.choice(",,;\t"), lineterminator=rng.choice(("\n", "\r\n")), quoting=quoting)
    for row in [header, *rows]:
        writer.writerow(row)
        if rng.random() < 0.05:
            text.write("\n")
    content = text.getvalue().encode(rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32")))
    if rng.random() < 0.5:
        return content, "numbers" if numbers else "names"
    for _ in range(rng.choice((1, 1, 2, 4))):
        content = rng.choice((*MUTATIONS, *TABLE_MUTATIONS))(rng, content)
    return content, ""


def _insert(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(len(data) + 1)
    part = (
        b'"',
        b"\0",
        b"\n",
        b",",
        b";",
        b"\xe9",
        b"\xff\xfe",
        b"../",
        b"x" * 200_000,
        b"-1",
        b"9" * 20,
        b"\x1b[1m",
        b",,,x\n",
        b"a,b,c,d,e\n",
    )
    return data[:place] + rng.choice(part) + data[place:]


def _recoded(rng: random.Random, data: bytes) -> bytes:
    """Text in an encoding that nothing says."""
    return data.decode(errors="ignore").encode(rng.choice(("utf-16-le", "utf-16-be", "latin-1", "cp037")), "replace")


TABLE_MUTATIONS = (_insert, _insert, _insert, _recoded)
