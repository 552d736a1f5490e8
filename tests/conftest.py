"""Options, seeds, and the small networks and images that the tests of experiments share.

`--slow` and a CUDA device decide what is left out.  On a machine that is busy with other work, `--threads 1` is several
times faster: small operations wait for each other.

Every test starts from torch's seed 0, whatever ran before it.  Fixtures of a wider scope than one test run before that:
they seed for themselves, so that the same network is made whichever test asks first.
"""

import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import pdfplumber
import pikepdf
import pytest
import torch
from torch import nn

from zfnet.data.preprocessing import Preprocessing
from zfnet.data.scenes import Scenes
from zfnet.extended import EXTENDED
from zfnet.operations import DECONVNET


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")
    parser.addoption("--threads", type=int, default=2, help="threads of torch; 1 on a busy machine")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow; give --slow to run it"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads"))
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def sequential(preprocessing: Preprocessing, **layers: nn.Module) -> nn.Sequential:
    """Layers under their names, in eval mode, with how their images are prepared."""
    model = nn.Sequential(OrderedDict(layers)).eval()
    model.preprocessing = preprocessing
    return model


@pytest.fixture(scope="module")
def model() -> nn.Sequential:
    """A convolutional network for 16 classes, on images of 32 x 32; a test that changes it takes a copy."""
    torch.manual_seed(0)
    return sequential(
        Preprocessing(size=32, resize=36),
        conv1=nn.Conv2d(3, 6, 5, 2),
        relu1=nn.ReLU(inplace=True),
        pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
        conv2=nn.Conv2d(6, 8, 3, padding=1),
        relu2=nn.ReLU(inplace=True),
        flatten=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        fc=nn.Linear(8, 16),
    )


@pytest.fixture(scope="module")
def data() -> Scenes:
    """Twelve scenes for `model`."""
    return Scenes("val", 12, size=32, transform=Preprocessing(size=32, resize=36))


@pytest.fixture(scope="session")
def with_hidden_layer() -> Callable[[int], nn.Sequential]:
    """Makes a network for 16 classes with one convolution and a hidden layer, on images of so many pixels a side."""

    def make(side: int) -> nn.Sequential:
        torch.manual_seed(0)
        return sequential(
            Preprocessing(size=side, resize=side * 9 // 8),
            conv1=nn.Conv2d(3, 6, 5, 2),
            relu1=nn.ReLU(inplace=True),
            flatten=nn.Flatten(),
            fc6=nn.Linear(6 * ((side - 3) // 2) ** 2, 12),
            relu6=nn.ReLU(inplace=True),
            fc8=nn.Linear(12, 16),
        )

    return make


@pytest.fixture
def real_data() -> Path:
    """The folder of real photographs that ZFNET_REAL_DATA names."""
    if "ZFNET_REAL_DATA" not in os.environ:
        pytest.skip("ZFNET_REAL_DATA names no folder of photographs")
    return Path(os.environ["ZFNET_REAL_DATA"])


@pytest.fixture
def tables() -> Iterator[None]:
    """The table of operations as it was, afterwards."""
    before = [dict(rules) for rules in (DECONVNET, EXTENDED)]
    yield
    for rules, rows in zip((DECONVNET, EXTENDED), before, strict=True):
        rules.clear()
        rules.update(rows)


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str]]]:
    """Runs the command in an empty folder; returns status and the lines of standard error, without progress bars."""
    monkeypatch.chdir(tmp_path)

    from experiments.run import command_line

    def run(*words: str) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["run.py", *words])
        try:
            command_line()
            status = 0
        except SystemExit as end:
            status = end.code
        run.printed, error = capsys.readouterr()
        lines = error.replace("\r", "\n").splitlines()
        return status, [line for line in lines if line.strip() and "images/s" not in line]

    return run


def pictures(pdf: pdfplumber.PDF) -> list[float]:
    """Pixels an inch of the images of a PDF, the coarser of both directions."""
    sizes = [(im["srcsize"], im["x1"] - im["x0"], im["bottom"] - im["top"]) for p in pdf.pages for im in p.images]
    return [72 * min(columns / width, rows / height) for (columns, rows), width, height in sizes]


@pytest.fixture
def images_of() -> Callable[[Path], list[float]]:
    """Finds the resolutions of the images of a PDF."""

    def resolutions(path: Path) -> list[float]:
        with pdfplumber.open(path) as pdf:
            return pictures(pdf)

    return resolutions


@pytest.fixture(autouse=True)
def printable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every PDF that a test draws can be printed: TrueType fonts, text of 7 points, images of 150 ppi, 3 MB."""
    pages = sys.modules.get("experiments.output.pages")
    if pages is None:
        return
    save = pages.save

    def checked(figure: object, path: Path) -> None:
        save(figure, path)
        file = path.with_suffix(".pdf")
        assert file.stat().st_size <= 3 * 10**6, f"{file.name} is too large"
        with pikepdf.open(file) as pdf:
            fonts = [str(o.get("/Subtype")) for o in pdf.objects if isinstance(o, pikepdf.Dictionary)]
            assert "/Type3" not in fonts, f"Type 3 font in {file.name}"
        with pdfplumber.open(file) as pdf:
            sizes = [(c["size"] if c["upright"] else c["x1"] - c["x0"], c["text"]) for p in pdf.pages for c in p.chars]
            small = [letter for size, letter in sizes if size < 6.99]
            assert not small, f"small text in {file.name}: {''.join(small)}"
            assert min(pictures(pdf), default=150) >= 149.5, f"coarse image in {file.name}: {min(pictures(pdf))}"

    for module in list(sys.modules.values()):
        if getattr(module, "save", None) is save and module.__name__.startswith(("experiments", "test_")):
            monkeypatch.setattr(module, "save", checked)
