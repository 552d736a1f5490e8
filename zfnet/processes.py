"""The processes that share a run (`torchrun`); without them, one."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from zfnet.errors import InputError

T = TypeVar("T")


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
    return from_process(0, value, device)


def from_all(value: Any, device: torch.device) -> list[Any]:
    """The values that the processes give, in their order."""
    return [from_process(source, value, device) for source in range(processes()[1])]


def from_process(source: int, value: Any, device: torch.device) -> Any:
    """The value that one of the processes gives."""
    values = [value if processes()[0] == source else None]
    if processes()[1] > 1:
        dist.broadcast_object_list(values, src=source, device=device)
    return values[0]


def by_first(function: Callable[[], T], device: torch.device) -> T:
    """The result of a function that only the first process calls; its InputError is raised in all."""
    value: T | None = None
    error: str | None = None
    try:
        value = function() if processes()[0] == 0 else None
    except InputError as raised:
        if processes()[1] == 1:
            raise
        error = str(raised)
    outcome: tuple[T, str | None] = from_first((value, error), device)
    if outcome[1] is not None:
        raise InputError(outcome[1])
    return outcome[0]
