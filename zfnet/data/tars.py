"""The index of a tar, which has no table of contents: one pass over its headers finds the bytes of each member.

A header is a block of 512 bytes before a member's content, and a tar ends with a block of zeros. Python's `tarfile`
reads the header itself; what stands around it is walked here, because a tar that was made to do harm may state any
length: nothing is read beyond the header, and no name or record that is longer than one would be. A tar that is
damaged, cut short, compressed, or continues after its end is refused: a part is never read as the whole.
POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block".
"""

import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from zfnet.errors import InputError, printable

BLOCK = 512
_MOST_NAME = 2**16  # bytes of a name
_MOST_RECORDS = 2**20  # bytes of the records of a pax header
_MOST_DIGITS = 20  # of a number in one
_PADDING = 2**20  # bytes after the end: writers fill up a record of 10 KiB, some more
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard", b"PK": "zip"}
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_BARE = {  # members without content
    tarfile.LNKTYPE: "a link",
    tarfile.SYMTYPE: "a link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.DIRTYPE: "a folder",
}


class Member(NamedTuple):
    """A member of a tar."""

    name: str  # with forward slashes; stray bytes as surrogates
    offset: int  # of its first byte in the tar
    length: int
    odd: str | None  # what it is instead of a plain file


def members(descriptor: int, path: str) -> Iterator[Member]:
    """The members of an open tar in their order, folders included. Raises InputError, with `path`, for an incomplete
    tar.

    Reads with `os.pread`, so that others may read the same descriptor meanwhile.
    """
    size = os.fstat(descriptor).st_size
    _check_kind(descriptor, path, size)
    position, long, name = 0, dict[str, bytes](), "its first member"
    while True:
        block = os.pread(descriptor, BLOCK, position)
        if block.count(0) == len(block) == BLOCK:
            return _check_end(descriptor, path, position, size)
        if len(block) < BLOCK:
            raise InputError(f"{path} has no end after {name}: it was cut short, or is still written; get it again")
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise InputError(f"{path} is damaged at byte {position:,}, after {name} ({error}); get it again") from None
        kind, start, length = header.type, position + BLOCK, header.size
        name, sparse = header.name, kind == tarfile.GNUTYPE_SPARSE
        if sparse:
            start = _after_sparse_map(descriptor, block, start)
        if kind in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE):
            content = _content(descriptor, path, start, length, _MOST_RECORDS)
            records = _records(content, f"{path} at byte {start:,}")
            if kind == tarfile.XGLTYPE and any(key in ("path", "size") or "sparse" in key for key in records):
                raise InputError(f"{path} has a global header with the size or name of all its members; write it again")
            long |= records if kind != tarfile.XGLTYPE else {}
        elif kind == tarfile.GNUTYPE_LONGNAME:
            long["path"] = _content(descriptor, path, start, length, _MOST_NAME).partition(b"\0")[0]
        elif kind != tarfile.GNUTYPE_LONGLINK:
            name, length = _stated(long, name, length, path)
            sparse |= any(key.startswith("GNU.sparse") for key in long)
            odd = "a sparse file" if sparse else None if kind in _PLAIN else _BARE.get(kind, f"of type {kind!r}")
            length = 0 if kind in _BARE else length
            if not 0 <= length <= size - start:
                reason = f"states {length:,} bytes for {printable(name)}, and has {max(size - start, 0):,} more"
                raise InputError(f"{path} {reason}: it is damaged or was cut short; get it again")
            yield Member(name, start, length, odd)
            long = {}
        if length < 0:
            raise InputError(f"{path} is damaged at byte {position:,}: a length below 0; get it again")
        position = start + -(-length // BLOCK) * BLOCK


def _check_kind(descriptor: int, path: str, size: int) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise InputError(f"{path} is not a file; give a tar")
    if not size:
        raise InputError(f"{path} is empty (zero bytes); get it again")
    start = os.pread(descriptor, 8, 0)
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            advice = "unpack it to a plain tar: single images of a compressed one cannot be read"
            raise InputError(f"{path} is compressed ({name}); {advice}")


def _check_end(descriptor: int, path: str, position: int, size: int) -> None:
    """InputError for a tar with something after the zeros that end it, such as another tar."""
    rest = size - position
    if rest > _PADDING or os.pread(descriptor, rest, position).strip(b"\0"):
        raise InputError(f"{path} continues after its end at byte {position:,}: tars cannot be joined by cat; split it")


def _content(descriptor: int, path: str, start: int, length: int, most: int) -> bytes:
    if not 0 <= length <= most:
        raise InputError(f"{path} has a header of {length:,} bytes at byte {start:,}, more than the {most:,} allowed")
    content = os.pread(descriptor, length, start)
    if len(content) < length:
        raise InputError(f"{path} ends within a header: it was cut short; get it again")
    return content


def _records(content: bytes, position: str) -> dict[str, bytes]:
    """The records of a pax header, each `length key=value` and a newline."""
    records: dict[str, bytes] = {}
    at = 0
    while at < len(content) and content[at]:
        space = content.find(b" ", at, at + _MOST_DIGITS)
        length = int(content[at:space]) if content[at : max(space, at)].isdigit() else 0
        record = content[space + 1 : at + length - 1]
        key, equals, value = record.partition(b"=")
        if not equals or content[at + length - 1 : at + length] != b"\n":
            raise InputError(f"{position} has a pax header that is damaged; get it again")
        records[key.decode("utf-8", "replace")] = value
        at += length
    return records


def _stated(long: Mapping[str, bytes], name: str, length: int, path: str) -> tuple[str, int]:
    """The name and length of a member, where headers before its own state them."""
    if (digits := long.get("size")) is not None:
        if not digits.isdigit() or len(digits) > _MOST_DIGITS:
            raise InputError(f"{path} states the length {digits[:40]!r} for {printable(name)}; get it again")
        length = int(digits)
    if (longer := long.get("path")) is not None:
        if len(longer) > _MOST_NAME:
            raise InputError(f"{path} has a name of {len(longer):,} bytes, more than the {_MOST_NAME:,} allowed")
        name = longer.decode("utf-8", "surrogateescape")
    return name, length


def _after_sparse_map(descriptor: int, block: bytes, start: int) -> int:
    """The start of an old GNU sparse file's content: after the blocks that continue its map."""
    more = block[482]
    while more:
        block = os.pread(descriptor, BLOCK, start)
        more = block[504] if len(block) == BLOCK else 0
        start += BLOCK
    return start
