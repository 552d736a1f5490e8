"""What a result depends on, as one short digest: if any of it changes, nothing old is read.

Scan states, feature caches, checkpoints, trained networks and stored measurements all use it. A file keeps an identity,
which is one digest for each thing that its content depends on, by name, and a digest of the content itself (`seal`).
Whoever reads it compares both (`check_seal`), so that an error can name what differs.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zfnet.errors import InputError

Identity = Mapping[str, str]  # a digest, or a short plain value, of each thing that a result depends on

_FORMAT = 2  # of files with an identity; those of format 1 had a single key
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


def seal(identity: Identity, content: Any) -> str:
    """What a file says of itself: its identity and the digest of its content, as JSON."""
    return json.dumps({"format": _FORMAT, "identity": dict(identity), "content": digest(dict(identity), content)})


def check_seal(path: str | os.PathLike[str], sealed: str | None, identity: Identity, content: Any, remedy: str) -> None:
    """Raise InputError unless a file is whole and was made under this identity.

    Args:
        path: the file, for the error.
        sealed: the file's seal; None where it has none.
        identity: what a result would depend on now.
        content: what was read from the file.
        remedy: what the user can do, for the error.
    """
    try:
        kept = json.loads(sealed or "")
        number, known, expected = kept["format"], kept["identity"], kept["content"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged, or of an older format that is no longer read; {remedy}") from None
    if number != _FORMAT:
        raise InputError(f"{path} is of format {number}, but this version reads format {_FORMAT}; {remedy}")
    if digest(known, content) != expected:
        raise InputError(f"{path} is damaged: its content does not match its checksum; {remedy}")
    if different := [name for name in {**identity, **known} if known.get(name) != identity.get(name)]:
        raise InputError(f"{path} was made with different {', '.join(different)}; {remedy}")


def _digest(part: Any) -> bytes:
    if isinstance(part, Tensor):
        values = part.detach().cpu().contiguous().reshape(-1)  # copies only what is not contiguous
        return _hash(f"tensor {part.dtype} {tuple(part.shape)}", values.view(torch.uint8).numpy())
    if isinstance(part, np.ndarray):
        return _hash(f"array {part.dtype.str} {part.shape}", np.ascontiguousarray(part).reshape(-1).view(np.uint8))
    if isinstance(part, nn.Module):
        return _digest(["model", network_identity(part)])
    if isinstance(part, bytes | bytearray):
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
