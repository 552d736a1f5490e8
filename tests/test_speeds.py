"""Tables of what scripts/bench.py measured: every row has words, and what was not measured is said to be so."""

import json
from pathlib import Path

from scripts import bench, report, speeds

ROWS = [
    {"what": "project relu1", "against": "Captum", "ours ms per item": 0.5, "theirs ms per item": 60.0, "ratio": 120.0},
    {
        "what": "occlude ZFNet",
        "against": "plain batches of 8; multiply-adds bound it by 3.5",
        "ours ms per item": 2.0,
        "theirs ms per item": 9.0,
        "ratio": 4.5,
        "bound": 3.47,
    },
    {"what": "something else", "against": "x", "ours ms per item": 1.0, "theirs ms per item": 1.0, "ratio": 1.0},
]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_has_both_times_their_quotient_and_what_it_is_beside() -> None:
    head, _, project, occlude = speeds.speed_table(ROWS).splitlines()
    assert cells(project) == ["`project_units`, layer 1", "0.500", "60.000", "120.00", "Captum"]
    assert cells(occlude)[-1] == "plain batches of 8" and "multiply-adds" not in head
    alone = speeds.speed_table(ROWS, ("occlude ZFNet",)).splitlines()
    assert cells(alone[0])[4] == "multiply-adds" and cells(alone[2])[4] == "3.47"


def test_ratios_in_words() -> None:
    assert speeds.times(ROWS, "project relu1", "Captum") == "120 times as fast as Captum"
    assert speeds.times(ROWS, "occlude ZFNet", "plain batches") == "4.5 times as fast as plain batches"
    assert speeds.times(ROWS, "occlude ZFNet", "Captum") == "not measured beside Captum"


def test_benchmarks_of_another_machine_stand_in_a_table_of_their_own(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(report, "ROOT", tmp_path)
    assert report.speeds_table(("project", "occlusion")) == report.MISSING
    (tmp_path / "results" / "bench").mkdir(parents=True)
    facts = {"machine": "x86_64", "hardware": "2 CPU threads", "versions": {"torch": "2.14", "captum": "0.9"}}
    for name, more in (("project", {}), ("occlusion", {"hardware": "a GPU"})):
        file = tmp_path / "results" / "bench" / f"{name}.json"
        file.write_text(json.dumps({**facts, **more, "rows": ROWS}))
    text = report.speeds_table(("project", "occlusion"))
    assert text.count("python scripts/bench.py") == 2 and "with a GPU, torch 2.14, Captum 0.9:" in text


def test_every_benchmark_that_the_tables_name_is_one() -> None:
    assert all(f"\n{name} " in bench.__doc__ for name in speeds.BENCHES)
    known = {row["what"] for name in speeds.BENCHES for row in (report.bench(name) or {"rows": []})["rows"]}
    assert set(speeds.SHORT) <= set(speeds.WORDS) and set(speeds.WORDS) <= known


def test_depth_is_told_with_its_intervals(monkeypatch) -> None:
    one = {"validation_top1": {"mean": 7.0, "interval": [3.3, 10.6]}}
    variant = "krizhevsky without layers 3, 4"
    paper = {"krizhevsky": {"validation_top1": 40.5}, variant: {"validation_top1": 45.4}}
    ours = {"difference": {variant: one}, "seeds": {variant: [0, 1]}, "training": {"a": {"flat": True}}}
    monkeypatch.setattr(report, "results", lambda _: {"table3/x": {"ours": ours, "paper": {"error": paper}}})
    lines = report.depth_table().splitlines()
    assert cells(lines[2]) == ["`table3/x`", "3, 4", "2", "+7.0", "+3.3 to +10.6", "+4.9"]
    assert lines[-1].endswith("of 1 of 1 trainings.")
    monkeypatch.setattr(report, "results", lambda _: {})
    assert report.depth_table() == report.dead_maps() == report.first_figures() == report.MISSING
