"""Table 6 from end to end on a tiny network; the paper's numbers as printed, and its row of wins by counting them."""

import json
import re

import numpy as np
import pytest

from experiments.run import run
from experiments.tables import table6
from tests.stand_ins import CONTROL, held_out, pretrained
from zfnet import InputError
from zfnet.data.pascal import CLASSES

TABLE6 = """
92.0 97.3 94.6 96.0 74.2 84.2 82.9 77.1 73.0 80.8 88.2 88.4 77.5 85.3 60.3 85.5 54.3 60.8 60.3 55.8 85.2 89.9 89.0 85.8
81.9 86.8 84.4 78.6 76.4 89.3 90.7 91.2 65.2 75.4 72.1 65.0 63.2 77.8 86.8 74.4 63.2 77.8 69.0 67.7 68.9 83.0 92.1 87.8
78.2 87.5 93.4 86.0 81.0 90.1 88.6 85.1 91.6 95.0 96.1 90.9 55.9 57.8 64.3 52.2 69.4 79.2 86.6 83.6 65.4 73.4 62.3 61.1
86.7 94.5 91.1 91.8 77.4 80.7 79.8 76.1 74.3 82.2 82.8 79.0
"""
FILES = {"table.md", "figure.png", "figure.pdf", "result.json"}


@pytest.fixture(scope="module")
def model():
    return pretrained()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_papers_table6_is_printed_whole():
    printed = [float(number) for number in TABLE6.split()]
    assert [value for name, row in table6.PAPER.items() for value in row if name != "# won"] == printed
    own = [row[3] for name, row in table6.PAPER.items() if name in CLASSES]
    assert np.mean(own) == pytest.approx(79.0, abs=0.05)


def test_table6_from_end_to_end_and_again_from_its_cache(model, tmp_path):
    data = held_out(objects=3)
    first = table6.main(model, data, tmp_path / "a", layer="4", folds=2, **CONTROL, progress=False)
    assert {file.name for file in (tmp_path / "a").iterdir()} == FILES
    kept = json.loads((tmp_path / "a" / "result.json").read_text())
    assert set(kept["paper"]) == set(kept["ours"])
    for kind in ("exclusive", "each class", "from scratch"):
        assert list(first["ours"]["precision"][kind]) == [*data.classes, "mean"]
        assert all(0 < p <= 100 for each in first["ours"]["each"][kind].values() for p in each)
        classes = [first["ours"]["each"][kind][name] for name in data.classes]
        assert first["ours"]["each"][kind]["mean"] == pytest.approx(np.mean(classes, 0))
    won = first["ours"]["won"]
    means = [[first["ours"]["precision"][kind][name] for kind in won] for name in data.classes]
    assert [*won.values()] == [sum(row[n] == max(row) and row.count(row[n]) == 1 for row in means) for n in range(3)]
    assert first["paper"]["won"] == dict(zip(table6.COLUMNS, (0, 11, 6, 3), strict=True))
    line = (tmp_path / "a" / "table.md").read_text().split("\n\n")[0].splitlines()[-1]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == ["# won", "0", "11", "6", "3", *map(str, won.values())]
    times = {file: file.stat().st_mtime_ns for file in tmp_path.glob("outputs/**/*.npy")}
    again = table6.main(model, data, tmp_path / "b", layer="4", folds=2, **CONTROL, progress=False)
    assert again["ours"] == first["ours"]
    assert times == {file: file.stat().st_mtime_ns for file in tmp_path.glob("outputs/**/*.npy")}


def test_folds_of_table6_share_no_image():
    presence = np.where(np.random.default_rng(0).random((40, 3)) < 0.5, 1, -1).astype(np.int8)
    for train, test in table6.parted(presence, None, 5, 0, "abc", {3: "a duplicate"}):
        assert not {*train} & {*test}
        assert {*train} | {*test} == {*range(40)} - {3}
    presence[:, 1] = -1
    presence[5, 1] = 1
    with pytest.raises(InputError, match=re.escape("'b' is in 1 image(s), in no fold to train and to test on")):
        table6.parted(presence, None, 5, 0, "abc")
    parts = ["train"] * 30 + ["test"] * 10
    presence[35, 1] = 1
    (only,) = table6.parted(presence, parts, 5, 0, "abc")
    assert only.train.tolist() == [*range(30)] and only.test.tolist() == [*range(30, 40)]


def test_the_papers_wins_are_those_of_its_columns():
    rows = np.array([table6.PAPER[name] for name in CLASSES])
    best = np.bincount(rows.argmax(1), minlength=4)
    assert tuple(best) == table6.PAPER["# won"] and best.sum() == 20
    assert np.bincount(rows[:, [0, 1, 3]].argmax(1)).tolist() == [0, 15, 5]  # the paper before Oquab et al.


def test_wins_of_known_columns():
    precision = {
        "exclusive": {"cat": [50.0, 70.0], "dog": [10.0], "cow": [20.0], "pig": []},
        "each class": {"cat": [59.0], "dog": [30.0], "cow": [20.0], "pig": []},
        "from scratch": {"cat": [1.0], "dog": [20.0], "cow": [2.0], "pig": []},
    }
    assert table6.wins(precision, ["cat", "dog", "cow", "pig"]) == {"exclusive": 1, "each class": 1, "from scratch": 0}


def test_features_of_ten_crops(model, tmp_path):
    one, ten, again = (
        table6.main(model, held_out(objects=3), tmp_path / n, layer="3", folds=2, crops=crops, progress=False)
        for n, crops in (("a", 1), ("b", 10), ("c", 10))
    )
    assert ten["settings"]["crops"] == 10 and ten["ours"] == again["ours"]
    assert ten["ours"]["each"] != one["ours"]["each"]


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (held_out(objects=3), {"folds": 0}, "folds is 0"),
        ([], {}, "Table 6 needs images with the classes that are in each"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(model, tmp_path, data, settings, message):
    with pytest.raises(InputError, match=re.escape(message)):
        table6.main(model, data, tmp_path / "out", **settings, progress=False)
    assert not list(tmp_path.iterdir())


def test_photographs_need_a_folder():
    with pytest.raises(InputError, match=re.escape("data=voc2012 needs data.root=")):
        run("table6", ["experiment=table6", "data=voc2012"])
