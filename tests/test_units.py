"""The table of layers; and docs/units.md, whose blocks are what the commands before them print."""

import contextlib
import io
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.output.results import read_result
from experiments.questions import units

PAGE = Path(__file__).resolve().parent.parent / "docs" / "units.md"
BLOCKS = {  # each with the indented lines before it
    printed: [line[4:] for line in before.splitlines()]
    for before, printed in re.findall(r"\n\n((?: {4}[^\n]+\n)+)\n```text\n(.*?)```", PAGE.read_text(), re.DOTALL)
}


def test_units_prints_the_table(model, tmp_path, capsys):
    result = units.main(model, tmp_path)
    assert result["ours"]["output"]["relu1"] == [6, 14, 14]
    printed = capsys.readouterr().out
    assert "6 x 14 x 14 = 1,176 units" in printed
    assert (tmp_path / "table.md").read_text() == printed.rstrip("\n") + "\n"


def test_the_page_has_four_blocks():
    assert [len(lines) for lines in BLOCKS.values()] == [1, 1, 8, 1]


@pytest.mark.parametrize("printed", [block for block, lines in BLOCKS.items() if len(lines) == 1])
def test_a_block_of_the_page_is_what_its_command_prints(printed, run, capsys):
    """All of it, or of a long table some rows."""
    (command,) = BLOCKS[printed]
    assert command.startswith("python experiments/run.py ")
    assert run(*shlex.split(command)[2:])[0] == 0
    lines = run.printed.splitlines()
    assert lines[-1].partition(":")[0] in ("units", "stripes")  # where the result lies
    cells = [[re.sub(r"\s+|-+", " ", cell) for cell in line.split("|")] for line in lines[:-1]]
    wanted = [[re.sub(r"\s+|-+", " ", cell) for cell in line.split("|")] for line in printed.splitlines()]
    assert all(row in cells for row in wanted)
    if "right and below" not in command:
        assert printed.splitlines() == lines[:-1]


@pytest.mark.slow
def test_from_how_many_images_the_nine_come_is_what_the_page_says(tmp_path, monkeypatch):
    (printed, lines), *_ = [(block, lines) for block, lines in BLOCKS.items() if len(lines) > 1]
    monkeypatch.chdir(tmp_path)
    for command in lines[:2]:
        words = shlex.split(command)[2:]
        subprocess.run([sys.executable, PAGE.parent.parent / "experiments" / "run.py", *words], check=True)
    code = "\n".join(lines[3:-1])
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code, {})
    assert said.getvalue() == printed


def test_what_the_page_says_of_several_runs_is_so():
    """The sentences behind the tables, as inequalities between every two runs."""
    result = read_result(PAGE.parent.parent / "results" / "seeds" / "zfnet_small-scenes" / "result.json")
    ours = result["ours"]
    layers = list(ours["layers"].values())
    assert len(ours["compared"]) == 3 and sum(ours["images"].values()) == 1000
    of = {kind: [n[kind] for n in layers] for kind in ("trained", "one_trained", "untrained")}
    assert min(of["trained"][0]["alike"]) > 0.5  # some come again: most of layer 1, a minority of 3 to 5
    assert all(max(n["alike"]) < 0.5 for n in of["trained"][2:])
    for n in of["trained"]:  # and whatever the images
        assert all(abs(a - b) < 0.03 for a, b in zip(n["mean"], n["fitted_mean"], strict=True))
        assert min(n["reliability"]) > 0.95
    for after, control in itertools.islice(zip(of["trained"], of["one_trained"], strict=True), 1, None):
        assert min(after["mean"]) > 1.4 * max(control["mean"])  # what comes again is learnt
    assert all(min(n["shared"]) > 5 * ours["shared_by_chance"] for n in layers)
    for before, after in itertools.islice(zip(of["untrained"], of["trained"], strict=True), 2, None):
        assert min(before["mean"]) > max(after["mean"])  # and yet networks before training are more alike
    assert all(sum(b["cka"]) > sum(a["cka"]) for b, a in zip(of["untrained"], of["trained"], strict=True))
    dimensions = [[sum(n["dimensions"][kind].values()) / 3 for n in layers] for kind in ("untrained", "trained")]
    assert all(before < after for before, after in zip(*dimensions, strict=True))
    first = [sum(of[kind][0]["mean"]) / 3 for kind in ("trained", "untrained")]
    assert abs(first[0] - first[1]) < 0.05
    assert all(not any(n["dead"].values()) for number, n in enumerate(layers) if number != 1)
    assert min(layers[1]["dead"].values()) > 0.2 * layers[1]["maps"]
    assert min(of["untrained"][1]["matched_maps"]) > 0.95 * layers[1]["maps"]  # alive before training
