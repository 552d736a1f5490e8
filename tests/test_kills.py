"""A small part of `scripts/kills.py`, and that it sees a run that is not what it would have been."""

import subprocess
import sys

import pytest

from scripts import kills

SLOW = ("ablation", kills.COMMAND)
JOBS = [pytest.param(job, marks=pytest.mark.slow if job in SLOW else ()) for job in (*kills.RUNS, kills.COMMAND)]


@pytest.mark.parametrize("job", JOBS)
def test_a_killed_run_comes_to_the_same(job):
    words = [sys.executable, str(kills.ROOT / "scripts/kills.py"), "2", "--jobs", job]  # a process without threads
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f" {job}: 0 runs" in run.stdout


def test_a_run_that_comes_to_something_else_is_seen(monkeypatch):
    ends = iter([(1, "whole"), (1, "whole"), (2, "cut"), (1, "whole")])
    monkeypatch.setattr(kills, "finish", lambda *_: ([next(ends), ["file"]], 0.2))
    monkeypatch.setattr(kills, "killed", lambda *_: (1, " SIGKILL"))
    count, failures = kills.tried(3, ["scan"], first=0)
    assert count == {"scan": 3}
    assert list(failures) == [1]
    assert "came to another end" in failures[1]
