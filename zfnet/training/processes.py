"""The processes that share a run (`torchrun`); without them, one."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> tuple[int, int]:
    """This process' number and how many share the work."""
    running = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if running else (0, 1)


def total(values: Tensor) -> Tensor:
    """The sum over all processes."""
    if processes()[1] > 1:
        dist.all_reduce(values)
    return values


def from_first(value: Any, device: torch.device) -> Any:
    """The value that the first process gives."""
    values = [value]
    if processes()[1] > 1:
        dist.broadcast_object_list(values, device=device)
    return values[0]


def from_all(value: Any, device: torch.device) -> list[Any]:
    """The values that the processes give, in their order."""
    number, count = processes()
    values = [value if i == number else None for i in range(count)]
    for source in range(count if count > 1 else 0):
        dist.broadcast_object_list(part := [values[source]], src=source, device=device)
        values[source] = part[0]
    return values
