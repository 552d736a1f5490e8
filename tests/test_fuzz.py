"""A small part of `scripts/fuzz.py`, and that its harness sees every kind of failure."""

import os
import sys
import types
from time import sleep

import pytest

from scripts import fuzz

CASES = {"images": 60, "zips": 40, "tars": 40, "checkpoints": 40, "flips": 16, "networks": 40, "lines": 25}


def test_every_kind_is_tried():
    assert set(CASES) == set(fuzz.KINDS)


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_hostile_input_ends_in_an_answer_or_in_one_line(kind):
    count = fuzz.tried(kind, range(10**6, 10**6 + CASES[kind]), minutes=5, progress=False)
    assert not count.failures
    assert count.cases == CASES[kind]


def fails_in_every_way(seed, folder):
    assert not list(folder.iterdir())
    if seed == 1:
        raise ValueError("two\nlines")
    if seed == 2:
        os.kill(os.getpid(), 9)
    if seed == 3:
        sleep(30)
    if seed == 4:
        memory = bytearray(fuzz.MEMORY + 2**26)
        memory[::4096] = b"1" * len(memory[::4096])
    (folder / "file").touch()
    return "read"


def test_the_harness_sees_failures_and_goes_on_after_each(monkeypatch):
    module = types.ModuleType("scripts.fuzzing.demonstration")
    module.case = fails_in_every_way
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(fuzz, "SECONDS", 4.0)
    count = fuzz.tried("demonstration", range(7), minutes=1, progress=False)
    assert count.cases == 7
    assert count.outcomes == {"read": 3}
    assert count.failures[1] == "ValueError: two lines"
    assert count.failures[2] == "the process died with -9"
    assert count.failures[3] == "took more than 4 s"
    assert count.failures[4].endswith("MiB")
    assert count.peak > fuzz.MEMORY
    assert "--only 3" in "".join(count.lines())
