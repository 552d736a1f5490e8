"""Atomic file writes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from zfnet.errors import InputError


def write_atomically(path: str | os.PathLike[str], content: bytes | Callable[[BinaryIO], None]) -> None:
    """Write a temporary file and rename it to `path`: no reader and no crash ever sees half of it.

    `content` is bytes, or a function that writes to an open file. Missing folders are made.
    Raises: InputError if the file cannot be written; an existing file is then unchanged.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        if path.parent.is_dir():
            part.unlink(missing_ok=True)
