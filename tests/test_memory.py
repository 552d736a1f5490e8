"""A limit on memory holds within it, and is gone behind it."""

import functools
import mmap
import os
import threading
import traceback

import pytest

from zfnet.data.memory import memory_limit

resource = pytest.importorskip("resource")
linux = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="only Linux says what a process takes")


def alone(test):
    """The test in a process of its own, which has one thread whatever ran before it."""

    @functools.wraps(test)
    def run():
        if not (child := os.fork()):
            status = 1
            try:
                test()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0

    return run


@linux
@alone
def test_memory_is_refused_within_the_limit_only():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with memory_limit(2**27):
        bytearray(2**25)
        with pytest.raises(MemoryError):
            bytes(2**32)  # more than earlier tests may have left free in this process, which no limit counts
        with pytest.raises(OSError):
            mmap.mmap(-1, 2**28, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # never from what is free
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    bytes(2**32)


@linux
@alone
def test_a_limit_that_is_lower_already_stays():
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with memory_limit(2**28):
        lower = resource.getrlimit(resource.RLIMIT_DATA)[0]
        assert lower != soft
        with memory_limit(2**40):
            assert resource.getrlimit(resource.RLIMIT_DATA)[0] == lower
    assert resource.getrlimit(resource.RLIMIT_DATA) == (soft, hard)


@linux
def test_other_threads_are_not_refused_memory():
    before, done = resource.getrlimit(resource.RLIMIT_DATA), threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with memory_limit(2**20):
            assert resource.getrlimit(resource.RLIMIT_DATA) == before
    finally:
        done.set()
        thread.join()
