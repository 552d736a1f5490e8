"""Table 5 from end to end on a tiny network; the paper's numbers as printed."""

import pytest

from experiments.tables import table5
from tests.stand_ins import CONTROL, held_out, pretrained

# 15, 30, 45, 60 training images of each class
TABLE5 = """
Sohn et al. 2011 | 35.1 | 42.1 | 45.7 | 47.9
Bo et al. 2013 | 40.5 ± 0.4 | 48.0 ± 0.2 | 51.9 ± 0.2 | 55.2 ± 0.3
from scratch | 9.0 ± 1.4 | 22.5 ± 0.7 | 31.2 ± 0.5 | 38.8 ± 1.4
pretrained | 65.7 ± 0.2 | 70.6 ± 0.2 | 72.7 ± 0.4 | 74.2 ± 0.3
"""
FILES = {"table.md", "figure.png", "figure.pdf", "result.json"}


@pytest.fixture(scope="module")
def model():
    return pretrained()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_papers_table5_is_printed_whole():
    for line, (row, curve) in zip(TABLE5.strip().splitlines(), table5.PAPER.rows.items(), strict=True):
        name, *cells = line.split(" | ")
        assert name == row and list(curve) == [15, 30, 45, 60]
        assert [f"{a}" if bar is None else f"{a} ± {bar}" for a, bar in curve.values()] == cells


def test_table5_from_end_to_end(model, tmp_path):
    settings = {"layer": "4", "per_class": [1, 3], "folds": 2, **CONTROL, "progress": False}
    result = table5.main(model, held_out(), tmp_path / "a", **settings)
    assert {file.name for file in (tmp_path / "a").iterdir()} == FILES
    assert result["experiment"] == "table5" and set(result["paper"]) == set(result["ours"])
    assert set(result["ours"]["accuracy"]) == {"pretrained", "from scratch"}
    assert all(len(rates) == 2 for rows in result["ours"]["each"].values() for rates in rows.values())
    assert table5.main(model, held_out(), tmp_path / "b", **settings)["ours"] == result["ours"]
