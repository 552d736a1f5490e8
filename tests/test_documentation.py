"""The commands and the Python of README.md and of docs/ are what they say.

Python runs, in the order of a page, and prints the ```text block that follows it. Commands of experiments are composed
and checked as the command line does it before anything runs; those that take seconds run. Of other commands the files,
names and options are looked up. What cannot run stands behind a comment that says why: <!-- not run: REASON -->.
"""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torchvision
from PIL import Image

from experiments.run import run
from experiments.setup.commands import parsed, spelled
from experiments.setup.configuration import configured, suite
from experiments.setup.objects import Objects
from scripts import bench, windows
from zfnet import ZFNet
from zfnet.data import Scenes
from zfnet.weights import load

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if "gallery" not in page.parts)]
REASON = re.compile(r"<!-- not run: (.+) -->")
PROGRAMS = ("python", "pip", "pytest", "torchrun", "bash", "sphinx-build", "ruff", "git")
SECONDS = ("stripes", "steps", "units")  # experiments that run here, of the network that comes with the sources
DONE = {"docs/claims.md": "tests/test_reproduce.py"}  # pages whose commands another test composes


class Block(NamedTuple):
    """Code of a page."""

    page: Path
    line: int
    language: str  # "indented" for a block without a fence
    text: str
    reason: str  # why it does not run; "" if it does

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The code of a page in its order: fenced, or indented by four spaces after an empty line."""
    found, lines, reason = [], page.read_text(encoding="utf-8").splitlines(), ""
    number = 0
    while number < len(lines):
        line, start = lines[number], number
        if match := REASON.fullmatch(line):
            reason = match[1]
        elif match := re.fullmatch(r"(\s*)(```+|:::+)(.*)", line):
            while (number := number + 1) < len(lines) and lines[number].strip() != match[2]:
                pass
            text = "\n".join(lines[start + 1 : number])
            found.append(Block(page, start + 1, match[3].strip(), text, reason))
            reason = ""
        elif line.startswith("    ") and (not start or not lines[start - 1].strip()):
            while number + 1 < len(lines) and (lines[number + 1].startswith("    ") or not lines[number + 1].strip()):
                number += 1
            text = "\n".join(each[4:] for each in lines[start : number + 1]).rstrip()
            found.append(Block(page, start + 1, "indented", text, reason))
            reason = ""
        elif line.strip():
            reason = ""
        number += 1
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command of a block: of a line, of lines that end in a backslash, and of parts joined by &&."""
    text = re.sub(r"<<'END'\n.*?\nEND$", "", block.text.replace("\\\n", " "), flags=re.DOTALL | re.MULTILINE)
    for line in text.splitlines():
        if line.split(" ")[0] in PROGRAMS:
            words = shlex.split(line, comments=True)
            while "&&" in words:
                yield words[: words.index("&&")]
                words = words[words.index("&&") + 1 :]
            yield words


ALL = [block for page in PAGES for block in blocks(page)]
COMMANDS = [
    (block, words)
    for block in ALL
    if block.language in ("bash", "indented") and not block.reason and str(block.page.relative_to(ROOT)) not in DONE
    for words in commands(block)
]
PYTHON = sorted({block.page for block in ALL if block.language == "python" and not block.reason})


def test_blocks_are_of_known_kinds() -> None:
    kinds = {block.language for block in ALL}
    assert kinds <= {"bash", "python", "text", "indented", "", "{toctree}", "{eval-rst}"}
    assert len(COMMANDS) > 60 and len(PYTHON) > 8


def test_every_line_of_a_bash_block_is_a_command() -> None:
    for block in ALL:
        if block.language == "bash" and not block.reason:
            assert len(list(commands(block))) >= len(block.text.replace("\\\n", " ").splitlines()), block.where


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the pages expect it: the published networks, photographs, and a network of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "published").symlink_to(ROOT / "published")
    (tmp_path / "my" / "photographs").mkdir(parents=True)
    for number in range(9):
        noise = torch.randint(256, (80, 90, 3), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(tmp_path / "my" / "photographs" / f"{number}.png")
    (tmp_path / "my" / "module.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self, width=4):\n"
        "        super().__init__(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 4, 3), nn.ReLU())\n"
    )
    return tmp_path


# ---- commands --------------------------------------------------------------------------------------------------------


def compose(words: list[str]) -> None:
    """Check the words of an experiment as the command line does before anything runs."""
    if "--help" in words:
        words.remove("--help")
    swept = "-m" in words
    words = spelled([word for word in words if word != "-m" and word != "..."], swept)
    single = [word for word in words if not parsed(word, swept)[1].is_sweep_override()]
    for name, own in suite(configured(single), single):
        if not swept:
            Objects(configured(own), own, run)
        assert name


def look_up(words: list[str]) -> None:
    """Check that what a command names is there."""
    program, *rest = words
    if program == "pip":
        assert rest[0] in ("install", "download")
        config = ConfigParser()
        config.read(ROOT / "setup.cfg", encoding="utf-8")
        extras = {name for word in rest for names in re.findall(r"\[(.+?)\]", word) for name in names.split(",")}
        assert extras <= set(config["options.extras_require"])
        assert {word.partition("[")[0] for word in rest if "[" in word} <= {".", "zfnet"}
    elif program in ("python", "bash") and rest[0] != "-":
        script = ROOT / rest[0]
        source = script.read_text(encoding="utf-8")
        options = [word.partition("=")[0] for word in rest[1:] if word.startswith("--")]
        assert all(option in source for option in options)
        if script.name == "bench.py":
            names = [word for word in rest[1:] if re.fullmatch("[a-z]+", word)]
            assert all(f"{name} " in bench.__doc__ for name in names)


@pytest.mark.parametrize(("block", "words"), [pytest.param(b, w, id=f"{b.where} {' '.join(w)[-60:]}") for b, w in COMMANDS])
def test_commands(block: Block, words: list[str], place: Path) -> None:
    if "experiments/run.py" not in words:
        look_up(words)
        return
    words = words[words.index("experiments/run.py") + 1 :]
    files = {"FILE": "my/weights.safetensors", "FOLDER": "my/photographs"}
    compose([word.replace("...", "") if word.startswith("shard=") else word for word in words])
    assert files


