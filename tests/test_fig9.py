"""Figure 9 from end to end on a tiny network; the paper's curve as measured."""

import pytest

from experiments.figures import fig9
from tests.stand_ins import held_out, pretrained

# training images of each class, accuracy, half width of the bar
CURVE = """
1 27.2 0.9, 2 39.2 2.3, 3 46.1 0.8, 4 51.8 0.3, 5 54.9 0.4, 6 57.0 0.6, 7 58.9 0.6, 10 62.6 0.5, 15 65.7 0.2,
30 70.6 0.2, 45 72.7 0.4, 60 74.2 0.3
"""
FILES = {"table.md", "figure.png", "figure.pdf", "result.json"}


@pytest.fixture(scope="module")
def model():
    return pretrained()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_papers_curve_is_whole():
    points = [tuple(map(float, point.split())) for point in CURVE.split(",")]
    assert [(n, *pair) for n, pair in fig9.PAPER.rows["pretrained"].items()] == points
    assert fig9.PAPER.rows["Bo et al. 2013"] == {60: (55.2, 0.3)}
    assert points[4][1] < 55.2 < points[5][1]  # six images pass what others reached with 60


def test_fig9_from_end_to_end(model, tmp_path):
    settings = {"layer": "4", "per_class": [1, 3], "folds": 2, "progress": False}
    result = fig9.main(model, held_out(), tmp_path / "a", **settings)
    assert {file.name for file in (tmp_path / "a").iterdir()} == FILES
    assert result["experiment"] == "fig9" and set(result["paper"]) == set(result["ours"])
    assert set(result["ours"]["accuracy"]) == {"pretrained"}
    assert all(len(rates) == 2 for rows in result["ours"]["each"].values() for rates in rows.values())
    assert fig9.main(model, held_out(), tmp_path / "b", **settings)["ours"] == result["ours"]


def test_the_table_of_a_curve_reads_downwards(model, tmp_path):
    counts = [1, 2, 3, 4, 5]
    fig9.main(model, held_out(), tmp_path, layer="4", per_class=counts, folds=2, progress=False)
    head, _, *lines = (tmp_path / "table.md").read_text().split("\n\n")[0].splitlines()
    assert [cell.strip() for cell in head.split("|")[1:-1]] == [
        "images",
        "paper, Bo et al. 2013",
        "paper, pretrained",
        "ours, pretrained",
    ]
    assert [line.split("|")[1].strip() for line in lines] == list(map(str, counts))
    assert lines[0].split("|")[3].strip() == "27.2 ± 0.9"
