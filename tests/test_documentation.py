"""The commands and the Python of README.md and of docs/ are what they say.

Python runs, in the order of a page, and prints the ```text block that follows it. Commands of experiments are composed
and checked as the command line does it before anything runs; those that take seconds run. Of other commands the files,
names and options are looked up. What cannot run stands behind a comment that says why: <!-- not run: REASON -->.
"""

import contextlib
import io
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torchvision
from PIL import Image

from experiments import run as running
from experiments.setup.commands import parsed, spelled
from experiments.setup.configuration import CONF, configured, suite
from experiments.setup.objects import Objects
from scripts import bench, windows
from zfnet import InputError, ZFNet, atlas
from zfnet.data import Preprocessing, Scenes

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if "gallery" not in page.parts)]
REASON = re.compile(r"<!-- not run: (.+) -->")
PROGRAMS = ("python", "pip", "pytest", "torchrun", "bash", "sphinx-build", "ruff", "git")
SECONDS = ("stripes", "units")  # experiments that run here; the others have tests of their own
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
COMMANDS = {
    tuple(words): block.where
    for block in reversed(ALL)
    if block.language in ("bash", "indented") and not block.reason and str(block.page.relative_to(ROOT)) not in DONE
    for words in commands(block)
}  # each once, with the first place that has it
PYTHON = sorted({block.page for block in ALL if block.language == "python" and not block.reason})


def test_blocks_are_of_known_kinds() -> None:
    kinds = {block.language for block in ALL}
    assert kinds <= {"bash", "python", "text", "indented", "", "{toctree}", "{eval-rst}"}
    assert len(COMMANDS) > 60 and len(PYTHON) > 8


def test_every_line_of_a_bash_block_is_a_command() -> None:
    for block in ALL:
        if block.language == "bash" and not block.reason:
            lines = block.text.replace("\\\n", " ").splitlines()
            other = [line for line in lines if line.split(" ")[0] not in PROGRAMS and not line.startswith("#")]
            assert not [line for line in other if line.strip()], block.where


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the pages expect it: the published networks, photographs, and a network of your own."""
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
    (tmp_path / "NETWORK").mkdir()
    (tmp_path / "NETWORK" / "model.safetensors").symlink_to(ROOT / "published" / "zfnet_small-scenes.safetensors")
    return tmp_path


# ---- commands --------------------------------------------------------------------------------------------------------


def compose(words: list[str]) -> None:
    """Check the words of an experiment as the command line does before anything runs.

    [model=...] may be left out, and is; shard=0/4,... goes on. A launcher that is not installed is looked up.
    """
    words = [word.replace(",...", "") for word in words if not word.startswith(("[", "--help"))]
    swept = "-m" in words
    launchers = [word for word in words if word.startswith("hydra/launcher=")]
    assert all((CONF / "hydra" / "launcher" / f"{word.partition('=')[2]}.yaml").exists() for word in launchers)
    words = spelled([word for word in words if word not in ("-m", *launchers)], swept)
    single = [word for word in words if not parsed(word, swept)[1].is_sweep_override()]
    for _, own in suite(configured(single), single):
        Objects(configured(own), own, running.run)


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


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: f"{COMMANDS[words]} {' '.join(words)[-60:]}")
def test_commands(words: tuple[str, ...], place: Path, run: Callable[..., tuple[int, list[str]]]) -> None:
    if "experiments/run.py" not in words:
        look_up(list(words))
        return
    own = list(words[words.index("experiments/run.py") + 1 :])
    compose(own)
    if own in [[f"experiment={name}"] for name in SECONDS]:
        assert run(*own) == (0, [])


def test_what_a_page_has_wrong_is_found(place: Path) -> None:
    with pytest.raises(InputError, match="'layer'"):
        compose(["experiment=fig2", "layer=[relu3]"])
    for words in (["pip", "install", "-e", ".[nope]"], ["python", "scripts/bench.py", "scam"]):
        with pytest.raises(AssertionError):
            look_up(words)
    page = place / "page.md"
    page.write_text("<!-- not run: a reason -->\n```bash\na\n```\n\n    python b\n\ntext\n```python\nc\n\nd\n```\n")
    found = [(block.line, block.language, block.text, block.reason) for block in blocks(page)]
    assert found == [(2, "bash", "a", "a reason"), (6, "indented", "python b", ""), (9, "python", "c\n\nd", "")]


# ---- Python ----------------------------------------------------------------------------------------------------------


def small_resnet(weights: str) -> torch.nn.Module:
    """A ResNet with the layer names of ResNet50 up to the one that pages look into, of random weights: no download."""
    assert weights == "DEFAULT"
    torch.manual_seed(0)
    layers = torchvision.models.resnet.Bottleneck
    return torchvision.models.ResNet(layers, [1, 4, 1, 1], num_classes=10, width_per_group=8).eval()


def prepared(page: Path) -> dict[str, object]:
    """What a page supposes: a network and images of the reader's own, and an atlas of them."""
    if page.name != "atlas.md":
        return {}
    torch.manual_seed(0)
    network = ZFNet(16, maps=(4, 4, 18, 4, 18), hidden=(8,), init="he").eval()
    network.preprocessing = Preprocessing(resize=224)
    dataset = Scenes("val", 12, transform=network.preprocessing)
    atlas.build(network, dataset, "outputs/atlas/zfnet_small-scenes", progress=False)
    shutil.copy(ROOT / "docs" / "fig7.jpg", "dog.jpg")
    return {"model": network, "dataset": dataset}


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: str(page.relative_to(ROOT)))
def test_python(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.models, "resnet50", small_resnet)
    known = prepared(page)
    before = ""
    for block in blocks(page):
        if block.language == "python" and not block.reason:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block.text, block.where, "exec"), known)
            before = printed.getvalue()
        elif block.language == "text" and before:
            assert block.text.strip() == before.strip(), block.where
            before = ""


def test_the_picture_of_windows_is_what_is_computed() -> None:
    assert windows.FILE.read_text(encoding="utf-8") == windows.drawn(), "run python scripts/windows.py"
