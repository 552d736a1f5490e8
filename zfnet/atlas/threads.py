"""Threads that project, and where the time goes.

torch's own threads wait for each other in every small operation. Beside processes that read images and threads that
encode pictures they wait for most of the time. Here each thread works alone, on its own units.
"""

import contextlib
import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

MOST = 6  # threads: each takes a tenth of a gigabyte, and more in deep networks


@contextlib.contextmanager
def each_alone() -> Iterator[int]:
    """How many threads torch may use, each of which then computes by itself."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)  # of threads that begin from now on, too
    try:
        yield min(count, MOST)
    finally:
        torch.set_num_threads(count)


def for_each(
    work: Callable[..., None], jobs: Iterable[tuple[Any, ...]], threads: int, done: Callable[[], None]
) -> None:
    """Do the work with the arguments of every job, in as many threads; an error of one ends all.

    Args:
        work: what is done; it may be done for several jobs at once.
        jobs: their arguments, made by this thread as they are needed.
        threads: how many.
        done: is called whenever this thread has waited for the others.
    """
    waiting: deque[Future[None]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for job in jobs:
            waiting.append(pool.submit(work, *job))
            while len(waiting) > threads:
                waiting.popleft().result()
            done()
        while waiting:
            waiting.popleft().result()
        done()
    finally:
        pool.shutdown(cancel_futures=True)


def release_memory() -> None:
    """Give freed memory back to the system, of which glibc keeps much for each thread; elsewhere nothing."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


class Clock:
    """The seconds that went into each part of the work."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._beside: dict[str, float] = {}
        self._last = time.perf_counter()
        self._lock = threading.Lock()

    def __call__(self, name: str) -> None:
        """Add the time since the last call to this part."""
        now = time.perf_counter()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now

    @contextlib.contextmanager
    def beside(self, name: str) -> Iterator[None]:
        """For the threads that this one waits for: what they do meanwhile."""
        begin = time.perf_counter()
        yield
        with self._lock:
            self._beside[name] = self._beside.get(name, 0.0) + time.perf_counter() - begin

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by part; the time spent waiting for threads is divided among their parts."""
        seconds = dict(self._seconds)
        waited, total = seconds.pop("waiting", 0.0), sum(self._beside.values())
        for name, part in self._beside.items():
            seconds[name] = seconds.get(name, 0.0) + waited * part / total
        return seconds
