"""The pictures of README.md and docs/ are what their commands draw today.

The tolerance is a mean difference of 4 levels of 255 over all pixels, for what a JPEG loses, and for
sums that another processor rounds otherwise. Another map, another image or another caption is beyond it.
"""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import pictures
from zfnet import InputError

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
TOLERANCE = 4.0  # levels of 255, the mean over all pixels
SLOW = 10.0  # seconds; the pictures of slower commands are drawn with --slow
FILES = sorted(file.name for kind in ("jpg", "png") for file in DOCS.glob(f"*.{kind}"))
PAGES = [ROOT / "README.md", *(page for page in DOCS.rglob("*.md") if "gallery" not in page.parts)]
SHOWN = re.compile(r"!\[[^\]]*\]\(([^)\s]+\.(?:png|jpe?g))\)|<img [^>]*src=\"([^\"]+\.(?:png|jpe?g))\"")


def shown(page: Path) -> list[tuple[str, str]]:
    """The pictures of a page by name, each with the text before it."""
    text = page.read_text(encoding="utf-8")
    return [(Path(found[1] or found[2]).name, text[: found.start()]) for found in SHOWN.finditer(text)]


def test_every_picture_has_its_command() -> None:
    assert sorted(pictures.PICTURES) == FILES


def test_every_picture_is_on_a_page_and_no_page_has_another() -> None:
    known = {name for page in PAGES for name, _ in shown(page)}
    assert set(FILES) == known


def test_the_command_stands_before_its_picture() -> None:
    """On this page the last command before a picture is the one that draws it."""
    seen = shown(DOCS / "units.md")
    assert len(seen) >= 7
    for name, before in seen:
        command = re.findall(r"^    python experiments/run\.py (.+)$", before, re.MULTILINE)[-1]
        assert command == pictures.PICTURES[name].command, name


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (picture.seconds > SLOW))
        for name, picture in pictures.PICTURES.items()
    ],
)
def test_a_picture_is_what_its_command_draws(name: str, tmp_path: Path) -> None:
    drawn = pictures.drawn(name, tmp_path)
    assert pictures.difference(drawn, Image.open(DOCS / name)) <= TOLERANCE


@pytest.mark.parametrize("name", FILES)
def test_storing_a_picture_stays_within_half_of_the_tolerance(name: str, tmp_path: Path) -> None:
    picture, file = Image.open(DOCS / name).convert("RGB"), tmp_path / name
    file.write_bytes(pictures.stored(picture, name))
    assert pictures.difference(picture, Image.open(file)) <= TOLERANCE / 2


def test_pictures_that_differ_are_beyond_the_tolerance() -> None:
    """Of another unit, another layer, and a picture whose tiles are those of another map."""
    unit, steps = (Image.open(DOCS / name).convert("RGB") for name in ("unit.jpg", "steps.jpg"))
    assert pictures.difference(unit, steps) == 255  # of another size
    pixels = np.asarray(Image.open(DOCS / "k4.jpg").convert("RGB"))
    assert pictures.difference(Image.fromarray(pixels), Image.fromarray(np.roll(pixels, 113, 1))) > TOLERANCE


def test_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no picture 'none\.jpg'"):
        pictures.drawn("none.jpg", tmp_path)
    monkeypatch.setitem(pictures.PICTURES, "unit.jpg", pictures.Picture("experiment=steps layr=relu2", 1))
    with pytest.raises(InputError, match=r"unit\.jpg: .* failed: run\.py: no setting .layr"):
        pictures.drawn("unit.jpg", tmp_path)
