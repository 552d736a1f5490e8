"""Tables in Markdown and as pictures; means and deviations of known numbers."""

import statistics

import numpy as np
import pytest
from scipy import stats

from experiments.output.tables import deviation, dots, interval, mean, measured, percent, shown, table


def test_deviation_is_that_of_a_sample():
    assert deviation([1.0, 3.0]) == pytest.approx(2**0.5)
    assert deviation([1.0]) is None and mean([]) is None
    assert shown([30.04]) == "30.0"
    assert shown([10.0, 20.0]) == "15.0 ± 7.1"
    assert percent(0.29) == 29


def test_interval_is_students():
    assert interval([1.0]) is None and interval([]) is None
    values = [1.0, 4.0, 2.5, 3.0]
    scale = statistics.stdev(values) / 2
    assert interval(values) == pytest.approx(stats.t.interval(0.95, 3, statistics.mean(values), scale))


def test_intervals_of_three_seeds_cover_what_they_claim():
    random = np.random.default_rng(0)
    bounds = [interval(random.normal(2.0, 3.0, 3).tolist()) for _ in range(4000)]
    covered = sum(low < 2.0 < high for low, high in bounds)
    assert 0.94 < covered / 4000 < 0.96


def test_measurements_are_told_by_mean_deviation_and_each():
    told = measured("error", {"row": {15: [10.0, 20.0], 30: [5.0], 60: []}})
    assert told == {
        "error": {"row": {"15": 15.0, "30": 5.0, "60": None}},
        "deviation": {"row": {"15": pytest.approx(50**0.5), "30": None, "60": None}},
        "each": {"row": {"15": [10.0, 20.0], "30": [5.0], "60": []}},
    }


def test_numbers_of_a_table_stand_to_the_right():
    lines = ["|    |     n |", "|----|------:|", "| a  | 1,234 |", "| bb |       |"]
    assert table(["", "n"], [["a", 1234], ["bb", ""]]).splitlines() == lines


def test_dots_are_the_papers_numbers_and_ours():
    columns = {"train": "train top-1", "val": "val top-1"}
    figure = dots(["a", "b"], [{"train": 5.0}, {"val": 7.0}], [{"val": [1.0, 3.0]}, {}], columns, "What they are.")
    train, val = figure.axes
    lines = [[line for line in axis.lines if len(line.get_xdata())] for axis in (train, val)]
    marks = [[(line.get_marker(), *line.get_xdata()) for line in several] for several in lines]
    assert marks[0] == [("D", 5.0)]
    assert ("D", 7.0) in marks[1] and ("|", 1.0, 3.0) in marks[1] and ("o", 2.0) in marks[1]
    assert [label.get_text() for label in train.get_yticklabels()] == ["a", "b"]
    assert figure.get_figwidth() == 6.9 and figure.get_supxlabel() == "What they are."
