"""The folder of a result is there whole or not at all."""

import pytest

from experiments.output import results
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
