"""Tars in WebDataset's layout with damaged or false headers, with right checksums or wrong ones.

Every picture that is read has the pixels of one that was put in, with a label that one could have; all else is named in
one printable line. A tar that is whole is read as it is.
"""

import functools
import io
import random
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from scripts.fuzzing.images import check, check_line
from scripts.fuzzing.zips import photographs
from zfnet.data.tars import BLOCK
from zfnet.data.web_dataset import WebDataset
from zfnet.errors import InputError

FIELDS = ((0, 100), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155), (482, 1))  # of a header
VALUES = b"0123456789\xff\x80\0 xgLKSV./\\\n="
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def case(seed: int, folder: Path) -> str:
    rng = random.Random(seed)
    path = folder / rng.choice(("a.tar", "\x1b[1mred.tar", "two\nlines.tar"))
    count = rng.randint(1, 4)
    content, whole = made(rng, count), rng.random() < 0.1
    path.write_bytes(content if whole else damaged(rng, content))
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            data = WebDataset(path, transform=np.asarray)
        for warning in said:
            check_line(str(warning.message))
    except InputError as error:
        check_line(str(error))
        check(not whole, f"a whole tar is refused: {error}")
        return "refused"
    return outcome(data, count if whole else None)


def outcome(data: WebDataset, count: int | None) -> str:
    """What comes of reading what was not refused, of so many pictures if it is whole."""
    known, broken = [pixels for _, pixels in photographs().values()], 0
    for i in range(len(data)):
        check_line(data.name(i))
        try:
            pixels, label = data[i]
        except InputError as error:
            check_line(str(error))
            broken += 1
            continue
        check(any(np.array_equal(pixels, one) for one in known), f"{data.file(i)!r} has pixels of its own")
        check(label in (-1, 3, 4), f"label {label}")
    if count is not None:
        check(len(data) == count and not broken and not data.skipped, "a whole tar is read in part")
    data.basis()
    return "named broken" if broken else "left out" if data.skipped else "read"


def made(rng: random.Random, count: int) -> bytes:
    """A whole tar of so many samples."""
    file = io.BytesIO()
    format = rng.choice(FORMATS)
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        start = rng.choice(("", "a/", "./", "x" * 80 + "/"))
        for n in range(count):
            files: dict[str, bytes] = {"png": rng.choice([content for content, _ in photographs().values()])}
            files |= {"cls": b"3"} if rng.random() < 0.5 else {}
            files |= {"json": b'{"label": 4}'} if rng.random() < 0.5 else {}
            key = start + rng.choice(("", "y" * 150 if format != tarfile.USTAR_FORMAT else "é")) + str(n)
            for kind, content in files.items():
                member = tarfile.TarInfo(f"{key}.{kind}")
                member.size = len(content)
                if rng.random() < 0.2:
                    member.pax_headers = {"comment": "z" * rng.randrange(600)}
                archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def damaged(rng: random.Random, content: bytes) -> bytes:
    """The same with headers that are changed, moved or gone."""
    data: Any = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        headers = _headers(data)
        if not headers:
            break
        start, kind = rng.choice(headers), rng.random()
        if kind < 0.5:
            place, length = rng.choice(FIELDS)
            text = rng.choice(
                (bytes(rng.choice(VALUES) for _ in range(length)), b"%0*o" % (length, rng.choice(_sizes())))
            )
            data[start + place : start + place + length] = text[:length].ljust(length, b"\0")
        elif kind < 0.65:
            data[start + rng.randrange(BLOCK)] ^= 1 << rng.randrange(8)
        elif kind < 0.8:
            other = rng.choice(headers)
            data[start : start + BLOCK] = data[other : other + BLOCK]
        elif kind < 0.9:
            del data[rng.randrange(len(data)) :]
        else:
            data[start:start] = rng.choice((bytes(BLOCK), data[start : start + BLOCK], bytes(2 * BLOCK)))
    if rng.random() < 0.8:
        for start in _headers(data):
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + BLOCK])
    return bytes(data)


def _headers(data: bytearray) -> list[int]:
    return [start for start in range(0, len(data) - BLOCK + 1, BLOCK) if data[start + 257 : start + 262] == b"ustar"]


@functools.cache
def _sizes() -> tuple[int, ...]:
    return (0, 1, 100, 511, 512, 513, 5000, 2**30, 2**33 - 1)
