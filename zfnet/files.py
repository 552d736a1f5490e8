"""Atomic file writes, locks between runs, and safe reading of paths.

Files are written beside their target, under a name that identifies the writer, as in
`.weights.pt.3f2a9c1d.4711.0.part`. The next write in the same folder removes such files of killed runs.
"""

import contextlib
import itertools
import os
import re
import shutil
import socket
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from zfnet.errors import InputError, first_line

_HOST = blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()
_PART = re.compile(rf"\..*\.{_HOST}\.(\d+)\.\d+\.part", re.DOTALL)
_BYTEARRAY = re.compile(rb"c(builtins|__builtin__)\nbytearray\n")  # as every pickle that torch reads has to say it
# what zipfile raises where the table of an archive is damaged, or there is none
NO_ZIP = (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error)
_NUMBERS = itertools.count()  # threads of a process write under different names


def part_of(path: Path) -> Path:
    """The temporary path that this process writes before renaming it to `path`."""
    return path.with_name(f".{path.name[:40]}.{_HOST}.{os.getpid()}.{next(_NUMBERS)}.part")


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders of killed runs of this computer, named as by `part_of`.

    Those of live runs, or of other computers, are kept.
    """
    with contextlib.suppress(OSError):  # a folder that cannot be listed will be named by who writes to it
        for path in list(folder.iterdir()):
            if (match := _PART.fullmatch(path.name)) and not _alive(int(match[1])):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    if os.name == "nt":  # where signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        pass
    return True


def write_atomically(path: str | os.PathLike[str], content: bytes | Callable[[BinaryIO], None]) -> None:
    """Write a temporary file and rename it to `path`: no reader, no crash and no power loss leaves half of it.

    `content` is bytes, or a function that writes to an open file. Missing folders are made.
    Raises: InputError if the file cannot be written; an existing file is then unchanged.
    """
    path = Path(path)
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        with open(part, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {first_line(error)}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def remove(*paths: str | os.PathLike[str]) -> None:
    """Remove files if they exist. Raises InputError if one cannot be removed."""
    for path in paths:
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError) as error:
            raise InputError(f"cannot remove {os.fspath(path)}: {first_line(error)}") from None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a loss of power, if the file system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to read. Raises InputError if it is missing, unreadable, or a folder, pipe, socket or device."""
    try:
        # a pipe without a writer would block
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {os.fspath(path)}: {first_line(error)}") from None
    if stat.S_ISREG(mode := os.fstat(descriptor).st_mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    raise InputError(f"cannot read {os.fspath(path)}: {'Is a directory' if stat.S_ISDIR(mode) else 'it is not a file'}")


def declared_size(file: BinaryIO) -> int:
    """The declared bytes of the entries of a zip archive; 0 if it is damaged or not a zip."""
    try:
        with zipfile.ZipFile(file) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except NO_ZIP:
        return 0
    finally:
        file.seek(0)


def makes_bytearrays(file: BinaryIO) -> bool:
    """Whether a pickle, or one in a zip archive, has a bytearray made, which torch allows: of any size, in no bytes."""
    try:
        with zipfile.ZipFile(file) as archive:
            pickles = [archive.read(name) for name in archive.namelist() if name.lower().endswith(".pkl")]
    except (*NO_ZIP, RuntimeError, EOFError, zlib.error):
        file.seek(0)
        pickles = [file.read()]
    file.seek(0)
    return any(_BYTEARRAY.search(content) for content in pickles)


@contextlib.contextmanager
def locked(file: Path, activity: str) -> Iterator[None]:
    """Lock a folder for this run. Raises InputError if another run holds the lock.

    The system frees the lock of a killed run; its lock file is harmless.

    Args:
        file: an empty file that stands for what is locked; its folder is made if it is missing.
        activity: what a run does and where, for the error, such as "is training in outputs/a".
    """
    lock = FileLock(file, timeout=0)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(f"another run {activity}: wait for it, or use another folder") from None
    except OSError as error:
        raise InputError(f"cannot write to {file.parent}: {first_line(error)}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder may be gone
            file.unlink(missing_ok=True)  # before it is released: who has opened this one is refused
        lock.release()


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other run holds the lock of this folder, if the system has locks of folders."""
    descriptor = None
    with contextlib.suppress(ImportError, OSError):
        import fcntl  # of Unix alone

        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
