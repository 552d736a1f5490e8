"""The table of layers; and docs/units.md, whose blocks are what the commands before them print."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

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
