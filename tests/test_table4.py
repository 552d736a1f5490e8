"""Table 4 from end to end on a tiny network; the paper's numbers as printed."""

import re

import pytest

from experiments.run import run
from experiments.tables import table4
from tests.stand_ins import CONTROL, held_out, pretrained
from zfnet import InputError

# 15, 30 training images of each class
TABLE4 = """
Bo et al. 2013 | - | 81.4 ± 0.33
Yang et al. 2009 | 73.2 | 84.3
DeCAF | - | 86.1
from scratch | 22.8 ± 1.5 | 46.5 ± 1.7
pretrained | 83.8 ± 0.5 | 86.5 ± 0.5
"""
FILES = {"table.md", "figure.png", "figure.pdf", "result.json"}


@pytest.fixture(scope="module")
def model():
    return pretrained()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_papers_table4_is_printed_whole():
    rows = [line.split(" | ") for line in TABLE4.strip().splitlines()]
    assert list(table4.PAPER.rows) == [name for name, *_ in rows]
    for name, *cells in rows:
        curve = table4.PAPER.rows[name]
        pairs = [[str(v) for v in curve[n] if v is not None] if n in curve else ["-"] for n in (15, 30)]
        assert [" ± ".join(pair) for pair in pairs] == cells


def test_table4_from_end_to_end(model, tmp_path):
    settings = {"layer": "4", "per_class": [1, 3], "folds": 2, **CONTROL, "progress": False}
    result = table4.main(model, held_out(), tmp_path / "a", **settings)
    assert {file.name for file in (tmp_path / "a").iterdir()} == FILES
    assert result["experiment"] == "table4" and set(result["paper"]) == set(result["ours"])
    assert set(result["ours"]["accuracy"]) == {"pretrained", "from scratch"}
    assert all(len(rates) == 2 for rows in result["ours"]["each"].values() for rates in rows.values())
    assert table4.main(model, held_out(), tmp_path / "b", **settings)["ours"] == result["ours"]


def test_photographs_need_a_folder():
    with pytest.raises(InputError, match=re.escape("data=caltech101 needs data.root=")):
        run("table4", ["experiment=table4", "data=caltech101"])
