"""A folder of files on the disk or in a zip: `photos.zip/train` names one, as on Python's own import path.

A zip is read without unpacking. Every process opens it for itself, because processes that share an open file share its
position. Pipes, devices and broken links are never opened, and files that do not fit in memory are never read.
"""

import errno
import os
import stat
import struct
import zipfile
import zlib
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from zfnet.errors import InputError, first_line

MOST_BYTES = 2**27  # of a file
MOST_RATIO = 1000  # of an entry of a zip to what it was compressed to; that of an empty bitmap comes near
_SMALL = 2**20  # bytes of an entry that may be compressed to anything
_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link"}
_DEVICE = "a device"
# what zipfile raises for a damaged zip, beside OSError
_DAMAGED = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, struct.error, zlib.error),
    *(ValueError, LookupError, EOFError, OverflowError, MemoryError, RuntimeError),
)

DAMAGED = (OSError, *_DAMAGED)  # what `Folder.read` raises


class Listing(NamedTuple):
    """The content of a folder, by paths with forward slashes."""

    files: list[str]
    folders: list[str]  # these paths end with a slash
    odd: dict[str, str]  # what cannot be read, file or folder, and what it is instead


def _is_hidden(file: str) -> bool:
    return file.startswith((".", "__MACOSX/")) or "/." in file


def _refuse(error: OSError) -> NoReturn:
    raise InputError(f"cannot read {error.filename}: {error.strerror or error}") from None


def _kind(path: str | os.PathLike[str]) -> str | None:
    """The kind of a path that is not a file that can be opened; None for a file."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if os.path.islink(path):
            return "a link to itself" if error.errno == errno.ELOOP else "a link to nothing"
        return None if error.errno == errno.ENOENT else error.strerror
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), _DEVICE)


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe would be waited for


def _check_length(length: int) -> None:
    if length > MOST_BYTES:
        raise OSError(errno.EFBIG, f"it has {length:,} bytes, more than the {MOST_BYTES:,} that are read")


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The content of a file. Raises OSError if it is too long or not a file."""
    if kind := _kind(path):
        raise OSError(errno.EINVAL, f"it is {kind}, not a file" if kind.startswith("a ") else kind)
    with open(path, "rb", opener=_open_at_once) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):  # it has been replaced since
            raise OSError(errno.EINVAL, "it is not a file")
        _check_length(about.st_size)
        return file.read(about.st_size)


class Folder:
    """The content of a folder, a zip, or a folder in a zip. Raises InputError for any other path.

    Files go by their path from here, with forward slashes. Hidden files and folders are not listed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._zip = next((path for path in (self.path, *self.path.parents) if os.path.isfile(path)), None)
        self._opened: tuple[int, _Zip] | None = None
        if self._zip is None:
            if not os.path.isdir(self.path):
                kind = os.path.lexists(self.path) and _kind(self.path)
                state = f"is {kind}, not a folder" if kind else "does not exist"
                raise InputError(f"{self.path} {state}; give a folder or a zip")
            return
        inside = self.path.relative_to(self._zip).parts
        self._prefix = "".join(f"{part}/" for part in inside)
        if not any(name.startswith(self._prefix) for name in (*self._archive.entries, *self._archive.odd)):
            raise InputError(f"{self._zip} holds no folder {'/'.join(inside)}")

    @property
    def _archive(self) -> "_Zip":
        """The zip as this process has opened it."""
        if self._opened is None or self._opened[0] != os.getpid():
            assert self._zip is not None
            self._opened = os.getpid(), _Zip(self._zip)
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def listing(self) -> Listing:
        """All files below, in an order that is the same on every machine, and entries that cannot be read.

        Links are followed, but every folder is listed once.
        """
        if self._zip is None:
            names, odd = _below(self.path)
        else:
            names = self._names(self._archive.entries)
            odd = {
                name.removeprefix(self._prefix): kind
                for name, kind in self._archive.odd.items()
                if name.startswith(self._prefix)
            }
        names = sorted(names, key=lambda name: name.split("/"))
        folders = [name for name in names if name.endswith("/")]
        return Listing([name for name in names if not name.endswith("/")], folders, odd)

    def files(self) -> list[str]:
        """All files below; see `listing`."""
        return self.listing().files

    def folders(self) -> list[str]:
        """The names of the folders that lie directly in this one, in order."""
        if self._zip is not None:
            return sorted({name.partition("/")[0] for name in self._names(self._archive.entries) if "/" in name})
        return sorted(name for name in next(os.walk(self.path, onerror=_refuse))[1] if not _is_hidden(name))

    def _names(self, names: dict[str, Any]) -> list[str]:
        below = (name.removeprefix(self._prefix) for name in names if name.startswith(self._prefix))
        return [name for name in below if name and not _is_hidden(name)]

    def __contains__(self, file: str) -> bool:
        """Whether there is such a file."""
        if self._zip is None:
            return os.path.isfile(self.path / file)
        return self._prefix + file in self._archive.entries

    def mentions(self, file: str) -> bool:
        """Whether something goes by this name, be it a file that can be read or not."""
        if self._zip is None:
            return os.path.lexists(self.path / file)
        names = self._prefix + file, f"{self._prefix}{file}/"
        return any(name in known for known in (self._archive.entries, self._archive.odd) for name in names)

    def read(self, file: str) -> bytes:
        """The content of a file.

        Raises OSError if it does not exist, is too long or not a file, and zipfile's errors if it is damaged.
        """
        return read_file(self.path / file) if self._zip is None else self._archive.read(self._prefix + file)

    def stamp(self, file: str) -> tuple[int, int]:
        """A stamp that changes with the file: its size, and its modification time or, in a zip, its CRC."""
        if self._zip is None:
            about = (self.path / file).stat()
            return about.st_size, about.st_mtime_ns
        inside = self._archive.entries[self._prefix + file]
        return inside.file_size, inside.CRC


class _Zip:
    """The entries of a zip by name, those that can be read and the odd ones. InputError for what is no whole zip."""

    def __init__(self, path: Path) -> None:
        try:
            if _kind(path):  # it has been replaced
                raise zipfile.BadZipFile("File is not a zip file")
            self._archive = zipfile.ZipFile(path)
        except OSError as error:
            raise InputError(f"cannot read {path}: {first_line(error)}") from None
        except _DAMAGED as error:
            reason = f"is a file, not a folder or a whole zip ({first_line(error)})"
            raise InputError(f"{path} {reason}; if it was downloaded, fetch it again") from None
        self.entries: dict[str, zipfile.ZipInfo] = {}
        self.odd: dict[str, str] = {}
        for entry in self._archive.infolist():
            name = entry.filename
            if fault := _fault(name, entry):
                self.odd[name] = fault
            elif name in self.entries and not name.endswith("/"):
                self.odd[name] = "listed twice"
            self.entries[name] = entry
        for name in self.odd:
            del self.entries[name]

    def read(self, name: str) -> bytes:
        if name in self.odd:
            raise OSError(errno.EINVAL, f"it is {self.odd[name]}")
        if name not in self.entries:
            raise FileNotFoundError(2, "No such file in the zip", name)
        entry = self.entries[name]
        length, packed = entry.file_size, entry.compress_size
        _check_length(length)
        if length > max(_SMALL, MOST_RATIO * packed):
            raise OSError(errno.EFBIG, f"{packed:,} bytes would unpack to {length:,}: more than {MOST_RATIO:,} times")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unfold without a limit
            raise OSError(errno.EINVAL, f"it is compressed by method {entry.compress_type}; only deflate is read")
        with self._archive.open(entry) as file:
            content = file.read(length)
        if len(content) != length:
            raise zipfile.BadZipFile(f"it has {len(content):,} bytes of {length:,}")
        return content


def _fault(name: str, entry: zipfile.ZipInfo) -> str | None:
    """The reason why an entry of a zip is not read."""
    if "\\" in name:
        return "named with backslashes"
    if name.startswith("/") or not {"..", ".", ""}.isdisjoint(name.removesuffix("/").split("/")):
        return "its name is not a path inside the zip"
    unix = entry.create_system == 3
    mode = stat.S_IFMT(entry.external_attr >> 16) if unix else 0
    return None if mode in (0, stat.S_IFREG, stat.S_IFDIR) else _KINDS.get(mode, _DEVICE)


def _below(root: Path) -> tuple[list[str], dict[str, str]]:
    """The files and folders below a folder, and what is neither; every folder once, be it reached by a link or not."""
    names: list[str] = []
    odd: dict[str, str] = {}
    seen: set[tuple[int, int]] = set()
    folders, links = deque([""]), deque[str]()  # links are followed when all else is listed, the shortest paths first
    while folders or links:
        queue = folders or links
        prefix = queue.popleft()
        path = os.path.join(root, prefix)
        try:
            about = os.stat(path)
            if (about.st_dev, about.st_ino) in seen:
                odd[prefix] = "a folder that is listed already"
                continue
            seen.add((about.st_dev, about.st_ino))
            entries = _entries(path)
        except OSError as error:
            if not prefix:
                _refuse(error)
            odd[prefix] = error.strerror or str(error)
            continue
        names += [prefix] if prefix else []
        for entry in entries:
            name = prefix + entry.name
            if entry.is_file(follow_symlinks=False):
                names.append(name)
            elif entry.is_dir(follow_symlinks=False):
                queue.append(f"{name}/")
            elif (kind := _kind(entry.path)) is None:
                names.append(name)
            elif kind == _KINDS[stat.S_IFDIR]:
                links.append(f"{name}/")
            else:
                odd[name] = kind
    return names, odd


def _entries(path: str) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return sorted((entry for entry in entries if not _is_hidden(entry.name)), key=lambda entry: entry.name)
