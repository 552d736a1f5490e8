"""A folder of files on the disk or in a zip: `photos.zip/train` names one, as on Python's own import path.

A zip is read where it lies, without unpacking. Every process opens it for itself, because processes that share
an open file share the place at which it is read.
"""

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zfnet.errors import InputError


def _is_hidden(file: str) -> bool:
    return file.startswith((".", "__MACOSX/")) or "/." in file


def _order(file: str) -> list[str]:
    return file.split("/")


def _unreadable(error: OSError) -> InputError:
    return InputError(f"cannot read {error.filename}: {error.strerror or error}")


class Folder:
    """What lies below a path: a folder, a zip, or a folder in a zip. InputError if it is none of these.

    Files go by their path from here, with forward slashes. Hidden files and folders are not listed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._zip = next((path for path in (self.path, *self.path.parents) if path.is_file()), None)
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        if self._zip is None:
            if not self.path.is_dir():
                raise InputError(f"{self.path} does not exist; give a folder or a zip")
            return
        inside = self.path.relative_to(self._zip).parts
        self._prefix = "".join(f"{part}/" for part in inside)
        if not any(name.startswith(self._prefix) for name in self._archive.namelist()):
            raise InputError(f"{self._zip} holds no folder {'/'.join(inside)}")

    @property
    def _archive(self) -> zipfile.ZipFile:
        """The zip as this process has opened it."""
        if self._opened is None or self._opened[0] != os.getpid():
            assert self._zip is not None
            try:
                self._opened = os.getpid(), zipfile.ZipFile(self._zip)
            except OSError as error:
                raise _unreadable(error) from None
            except zipfile.BadZipFile as error:
                reason = f"is a file, not a folder or a whole zip ({error})"
                raise InputError(f"{self._zip} {reason}; if it was downloaded, fetch it again") from None
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def files(self) -> list[str]:
        """All files below, in an order that is the same everywhere; links are followed, but not in circles."""
        if self._zip is None:
            try:
                return list(_below(str(self.path), ""))
            except OSError as error:
                raise _unreadable(error) from None
        return sorted((name for name in self._names() if not name.endswith("/")), key=_order)

    def folders(self) -> list[str]:
        """The names of the folders that lie directly in this one, in order."""
        if self._zip is None:
            try:
                return sorted(entry.name for entry in os.scandir(self.path) if entry.is_dir() and entry.name[0] != ".")
            except OSError as error:
                raise _unreadable(error) from None
        return sorted({name.partition("/")[0] for name in self._names() if "/" in name})

    def _names(self) -> set[str]:
        below = (name.removeprefix(self._prefix) for name in self._archive.namelist() if name.startswith(self._prefix))
        return {name for name in below if name and not _is_hidden(name)}

    def __contains__(self, file: str) -> bool:
        if self._zip is None:
            return (self.path / file).is_file()
        return self._prefix + file in self._archive.NameToInfo

    def read(self, file: str) -> bytes:
        """The content of a file; OSError if it is not there, and what zipfile raises for one that is damaged."""
        if self._zip is None:
            return (self.path / file).read_bytes()
        if file not in self:
            raise FileNotFoundError(2, "No such file in the zip", file)
        return self._archive.read(self._prefix + file)

    def stamp(self, file: str) -> tuple[int, int]:
        """What a file has no longer once it was changed: its size, and when it was written or, in a zip, its CRC."""
        if self._zip is None:
            about = (self.path / file).stat()
            return about.st_size, about.st_mtime_ns
        inside = self._archive.getinfo(self._prefix + file)
        return inside.file_size, inside.CRC


def _below(folder: str, prefix: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            yield prefix + entry.name
        elif not (entry.is_symlink() and _leads_back(entry.path, folder)):
            yield from _below(entry.path, f"{prefix}{entry.name}/")


def _leads_back(link: str, folder: str) -> bool:
    """Whether a link goes to a folder that it lies in, so that it would be followed for ever."""
    return Path(folder).resolve().is_relative_to(Path(link).resolve())
