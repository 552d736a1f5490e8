"""A limit on the memory of some lines of code: a decoder may take any amount for a damaged file."""

import contextlib
import threading
from collections.abc import Iterator

from torch.utils.data import get_worker_info

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]


@contextlib.contextmanager
def memory_limit(most: int) -> Iterator[None]:
    """Raise MemoryError, within, for what would take more than `most` bytes beyond what the process has now.

    Only on Linux, and only in a worker or where the process has a single thread: others would be refused memory too.
    """
    alone = threading.active_count() == 1 or get_worker_info() is not None
    before = _taken() if resource and alone else None
    if before is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [limit for limit in (before + most, soft) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _taken() -> int | None:
    """The bytes of data that this process has; None where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[5]) * resource.getpagesize()
    except (OSError, LookupError, ValueError):
        return None
