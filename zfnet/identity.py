"""The identity of a result: a short digest of everything that it depends on. If any of it changes, old files are not
read.

Scan states, feature caches, checkpoints, trained networks and stored measurements all use it. A file of `write_sealed`
keeps an identity, which is one digest for each thing that its content depends on, by name, and a digest of the content
itself. `read_sealed` compares both, so that an error can name what differs.
Files of text have their digest within, as `stamped` puts it there.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from itertools import chain
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from zfnet.errors import InputError, first_line
from zfnet.files import declared_size, makes_bytearrays, open_regular, write_atomically

Identity = Mapping[str, Any]  # a digest, or a short plain value in JSON, of each thing that a result depends on

_FORMAT = 3  # of files with an identity; those of format 2 did not say how long they are
_LENGTH = 32  # of a digest
_MOST = 2**24  # bytes of a seal
BLANK = "the digest of this file is here."  # of the length of a digest, which takes its place; see `stamped`
# what torch keeps on every module (hooks, and what is visited by itself), and what is no part of the computation
_MODULE = {*vars(nn.Module()), "preprocessing", "paddings", "random_weights"}


def digest(*parts: Any) -> str:
    """A digest of the parts, in their order.

    Args:
        parts: bytes, tensors and arrays (type, shape and every bit), modules (classes, settings, parameters and
            buffers), numbers, strings and None, and lists, tuples and mappings of all these; mappings are read by key.
    """
    return _hash("parts", *map(_digest, parts)).hex()


def network_identity(model: nn.Module) -> dict[str, str]:
    """The digests of a model's `architecture` (classes and settings) and of its `weights` (parameters and buffers)."""
    settings = [
        (name, type(module).__module__, type(module).__qualname__, _settings(module))
        for name, module in model.named_modules()
    ]
    weights = dict(chain(model.named_parameters(), model.named_buffers()))  # buffers that are not saved as well
    return {"architecture": digest(settings), "weights": digest(weights)}


def printed(value: Any) -> str:
    """A value's printed form, without addresses, which differ from run to run."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def difference(before: Identity, now: Identity) -> str:
    """The differences between two identities, by name, with values that are not digests; "" if they are equal."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    values = {name: [str(identity.get(name)) for identity in (before, now)] for name in names}
    plain = [name for name in names if max(map(len, values[name])) < _LENGTH]
    words = [f"{name} ({values[name][0]}, now {values[name][1]})" for name in plain]
    return ", ".join([*words, *(name for name in names if name not in plain)])


class Damaged(InputError):
    """A file whose content is not what was written."""


def write_sealed(
    path: str | os.PathLike[str], identity: Identity, content: Any, previous: str | os.PathLike[str] | None = None
) -> None:
    """Write content to a file, atomically: first a line with its seal, then what `torch.save` makes of it.

    Args:
        identity: of the content.
        content: numbers, strings and tensors, in lists and dictionaries.
        previous: an existing file at `path` is moved to this path; None: it is replaced.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    kept, raw = dict(identity), buffer.getbuffer()
    seal = {"format": _FORMAT, "identity": kept, "bytes": len(raw), "content": digest(kept, raw)}

    def write(file: BinaryIO) -> None:
        file.write(_line(seal))
        file.write(raw)
        if previous is not None and os.path.exists(path):
            file.flush()
            os.fsync(file.fileno())  # the new file is whole before the old one loses its name
            os.replace(path, previous)

    write_atomically(path, write)


def read_sealed(path: str | os.PathLike[str], identity: Identity, remedy: str) -> Any:
    """The content of a file of `write_sealed`, on the CPU.

    The digest finds damage, not manipulation: anybody who can write the file can also make its digest. Nothing in a
    file can run code, but its content may have any type; callers check it before they index it.

    Args:
        identity: that a new result would have.
        remedy: what the user can do, for the error.

    Raises:
        Damaged: if the file is damaged or incomplete.
        InputError: if it cannot be opened, or was made under another identity.
    """
    try:
        with open_regular(path) as file:
            known, content = _unsealed(file)
    except Damaged as error:
        raise Damaged(f"{path} is {error}; {remedy}") from None
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {first_line(error)}; {remedy}") from None
    if changes := difference(known, identity):
        raise InputError(f"{path} was made with different {changes}; {remedy}")
    try:
        if declared_size(file := io.BytesIO(content)) > len(content) or makes_bytearrays(file):
            raise ValueError("entries that grow when they are read")
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # it has the right digest, but no version of ours wrote it
        raise Damaged(f"{path} was not written by zfnet ({first_line(error)}); {remedy}") from None


def _line(seal: Mapping[str, Any]) -> bytes:
    return json.dumps(seal).encode() + b"\n"


def _unsealed(file: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """The identity and the content of a sealed file. Raises Damaged, with the reason, if it is damaged."""
    line = file.readline(_MOST)
    try:
        seal = json.loads(line)
        number, known, size, expected = (seal[name] for name in ("format", "identity", "bytes", "content"))
        whole = line == _line(seal) and isinstance(known, dict)  # a changed bit may leave what the JSON means
    except (ValueError, LookupError, TypeError, RecursionError):
        raise Damaged("damaged, or of an older format that is no longer read") from None
    if number != _FORMAT:
        raise Damaged(f"of format {number!r}, but this version reads format {_FORMAT}")
    length = os.fstat(file.fileno()).st_size - len(line)
    if not whole or size != length or digest(known, content := file.read(length)) != expected:
        raise Damaged("damaged: its content does not match its checksum")
    return known, content


def stamped(content: bytes) -> bytes:
    """The content, with the digest of all of it in the place of its one BLANK; `is_stamped` checks it."""
    if content.count(BLANK.encode()) != 1:
        raise ValueError("a digest needs one place")
    return content.replace(BLANK.encode(), _stamp(content))


def is_stamped(content: bytes, stamp: Any) -> bool:
    """Whether `stamped` gave this content, and the digest in it is this one: no bit was changed since."""
    known = stamp.encode() if isinstance(stamp, str) else b""
    blank = content.replace(known, BLANK.encode()) if len(known) == _LENGTH else b""
    return content.count(known) == 1 and _stamp(blank) == known


def _stamp(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_LENGTH // 2).hexdigest().encode()


def _digest(part: Any) -> bytes:
    if isinstance(part, Tensor):
        values = part.detach().cpu().contiguous().reshape(-1)  # copies only what is not contiguous
        return _hash(f"tensor {part.dtype} {tuple(part.shape)}", values.view(torch.uint8).numpy())
    if isinstance(part, np.ndarray):
        return _hash(f"array {part.dtype.str} {part.shape}", np.ascontiguousarray(part).reshape(-1).view(np.uint8))
    if isinstance(part, nn.Module):
        return _digest(["model", network_identity(part)])
    if isinstance(part, bytes | memoryview):
        return _hash("bytes", part)
    try:
        return _hash("json", json.dumps(part, sort_keys=True).encode())
    except TypeError:  # it holds tensors, or the like
        pass
    if isinstance(part, Mapping):
        return _hash("mapping", *sorted(_digest([key, value]) for key, value in part.items()))
    if isinstance(part, list | tuple):
        return _hash("list", *map(_digest, part))
    if isinstance(part, np.generic):
        return _digest(part.item())
    raise TypeError(f"no digest of {type(part).__name__}")


def _hash(kind: str, *contents: Any) -> bytes:
    """The hash of buffers: the kind ends where the first begins, and all but a single one are of 16 bytes."""
    total = hashlib.blake2b(kind.encode() + b"\0", digest_size=16)
    for content in contents:
        total.update(content)
    return total.digest()


def _settings(module: nn.Module) -> dict[str, Any]:
    return {name: _setting(value) for name, value in vars(module).items() if name not in _MODULE}


def _setting(value: Any) -> Any:
    """A module's attribute as something that has a digest; of objects that are not known, what they print."""
    if value is None or isinstance(value, bool | int | float | str | Tensor | np.ndarray):
        return value
    if isinstance(value, Mapping):
        return {str(key): _setting(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_setting(entry) for entry in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    return printed(value)
