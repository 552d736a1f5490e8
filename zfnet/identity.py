"""What a result depends on, as one short digest: if any of it changes, nothing old is read.

Scan states, feature caches, checkpoints, trained networks and stored measurements all use it. A file of `write_sealed`
keeps an identity, which is one digest for each thing that its content depends on, by name, and a digest of the content
itself. `read_sealed` compares both, so that an error can name what differs.
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

from zfnet.errors import InputError
from zfnet.files import write_atomically

Identity = Mapping[str, Any]  # a digest, or a short plain value in JSON, of each thing that a result depends on

_FORMAT = 2  # of files with an identity; those of format 1 had a single key
_LENGTH = 32  # of a digest
# what torch keeps on every module (hooks, and what is visited by itself), and what is no part of the computation
_MODULE = {*vars(nn.Module()), "preprocessing"}


def digest(*parts: Any) -> str:
    """A digest of all that the parts hold, in their order.

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


def difference(before: Identity, now: Identity) -> str:
    """What differs between two identities, by name, with values that are not digests; "" if nothing does."""
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
        identity: what the content depends on.
        content: numbers, strings and tensors, in lists and dictionaries.
        previous: where the file is moved that has been at `path`; None: it is replaced.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    kept = dict(identity)
    seal = {"format": _FORMAT, "identity": kept, "content": digest(kept, buffer.getbuffer())}

    def write(file: BinaryIO) -> None:
        file.write(json.dumps(seal).encode() + b"\n")
        file.write(buffer.getbuffer())
        if previous is not None and os.path.exists(path):
            file.flush()
            os.fsync(file.fileno())  # the new file is whole before the old one loses its name
            os.replace(path, previous)

    write_atomically(path, write)


def read_sealed(path: str | os.PathLike[str], identity: Identity, remedy: str) -> Any:
    """The content of a file of `write_sealed`, on the CPU.

    Args:
        identity: what a result would depend on now.
        remedy: what the user can do, for the error.

    Raises:
        Damaged: if the file is not whole.
        InputError: if it cannot be opened, or was made under another identity.
    """
    try:
        with open(path, "rb") as file:
            line, content = file.readline(), file.read()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror or error}); {remedy}") from None
    try:
        seal = json.loads(line)
        number, known, expected = seal["format"], seal["identity"], seal["content"]
    except (ValueError, KeyError, TypeError):
        raise Damaged(f"{path} is damaged, or of an older format that is no longer read; {remedy}") from None
    if number != _FORMAT:
        raise Damaged(f"{path} is of format {number}, but this version reads format {_FORMAT}; {remedy}")
    if digest(known, content) != expected:
        raise Damaged(f"{path} is damaged: its content does not match its checksum; {remedy}")
    if changes := difference(known, identity):
        raise InputError(f"{path} was made with different {changes}; {remedy}")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


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
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))  # an address differs from run to run
