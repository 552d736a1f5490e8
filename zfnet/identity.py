"""What a result depends on, as one short digest: if any of it changes, nothing old is read.

Scan states, feature caches, checkpoints, trained networks and stored measurements all use it.
"""

import hashlib
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def digest(*parts: Any) -> str:
    """A digest of all that the parts hold, in their order.

    Args:
        parts: bytes, tensors and arrays (type, shape and content), models (class, settings and weights), and whatever
            JSON can write; mappings are read by key.
    """
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        total.update(hashlib.blake2b(_content(part), digest_size=16).digest())
    return total.hexdigest()


def _content(part: Any) -> bytes:
    if isinstance(part, bytes):
        return b"bytes" + part
    if isinstance(part, nn.Module):
        state = sorted(part.state_dict().items())
        return b"model" + digest(repr(part), *(entry for pair in state for entry in pair)).encode()
    if isinstance(part, np.ndarray):
        part = torch.from_numpy(np.ascontiguousarray(part))
    if isinstance(part, Tensor):
        values = part.detach().cpu().contiguous().reshape(-1)
        return f"{part.dtype} {tuple(part.shape)} ".encode() + values.view(torch.uint8).numpy().tobytes()
    return b"json" + json.dumps(part, sort_keys=True).encode()
