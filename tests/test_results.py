"""The folder of a result is written atomically."""

import json
import os
import signal
from pathlib import Path
from time import sleep

import pytest

from experiments.output import results
from experiments.output.results import Result, read_result
from zfnet import InputError


def test_results_are_whole_or_not_at_all(tmp_path):
    out = tmp_path / "a" / "b"
    with pytest.raises(RuntimeError), results.results(out) as folder:
        (folder / "half.txt").write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with results.results(out) as folder:
        (folder / "one.txt").write_text("1")
    with results.results(out) as folder:
        (folder / "two.txt").write_text("2")
    assert sorted(path.name for path in out.iterdir()) == ["one.txt", "two.txt"]


def test_a_result_in_the_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"), results.results(tmp_path / "file" / "out"):
        pass


def write(out, word, names=("figure.png", "result.json", "table.md")):
    with results.results(out) as folder:
        for name in names:
            (folder / name).write_text(word)


def test_after_a_kill_between_two_files_there_is_no_result_that_belongs_to_other_files(tmp_path, monkeypatch):
    write(tmp_path, "first")
    moved, replace = [], os.replace

    def dies(source, target):
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, "second")
    monkeypatch.undo()
    assert moved == ["figure.png", "table.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == moved
    write(tmp_path, "second")
    assert {path.read_text() for path in tmp_path.iterdir()} == {"second"}


def test_what_a_killed_run_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    child = os.fork()
    if not child:
        with results.results(tmp_path) as folder:
            (folder / "half.txt").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    with results.results(tmp_path) as own:
        write(tmp_path, "another")
        assert not left.exists()
        assert own.exists()


def test_two_runs_at_once_do_not_mix_their_files(tmp_path, monkeypatch):
    replace = os.replace

    def slow(source, target):
        sleep(os.urandom(1)[0] / 10_000)  # the other run comes between
        replace(source, target)

    monkeypatch.setattr(os, "replace", slow)
    for _ in range(10):
        children = []
        for word in ("one", "two"):
            if not (child := os.fork()):
                write(tmp_path, word, [*(f"{n}.png" for n in range(9)), "result.json"])
                os._exit(0)
            children.append(child)
        for child in children:
            assert os.waitpid(child, 0)[1] == 0
        assert len({path.read_text() for path in tmp_path.iterdir()}) == 1


def test_a_result_is_read_as_it_was_written_and_every_bit_counts(tmp_path):
    ours = {"error": 1e-05, "name": "\u00e9", "rates": [0.1] * 30}
    result = Result("fig0", tmp_path, {"k": 9}).finish(ours)
    path = tmp_path / "result.json"
    assert read_result(path) == json.loads(path.read_text()) == json.loads(json.dumps(result))
    whole = path.read_bytes()
    assert whole.decode().splitlines()[-2] == f'  "digest": "{result["digest"]}"'
    for place in range(0, len(whole), 3):
        for bit in {5, place % 8}:  # the fifth makes a capital letter of a small one
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            with pytest.raises(
                InputError, match=f"^{path} is damaged, was changed, or is of an older version"
            ) as caught:
                read_result(path)
            assert "\n" not in str(caught.value)
    for wrong in (b"", b"[]", b"[" * 99_999, whole[:-1], whole + b" ", whole.replace(b"digest", b"note")):
        path.write_bytes(wrong)
        with pytest.raises(InputError, match="run its experiment again"):
            read_result(path)
    with pytest.raises(InputError, match=r"^cannot read .*: Is a directory"):
        read_result(tmp_path)
