"""The API pages: every public name has an entry and an example, and every example runs."""

import doctest
import re
from pathlib import Path

import pytest

import zfnet
import zfnet.data
import zfnet.training

PAGES = sorted((Path(__file__).resolve().parent.parent / "docs" / "api").glob("*.rst"))
ENTRY = re.compile(r"^\.\. (?:auto|py:)\w+:: (zfnet\.[\w.]+)\n((?:   .*\n|\n)*)", re.MULTILINE)


def entries() -> dict[str, str]:
    """What stands below each directive, by the name that it documents."""
    return {name: text for page in PAGES for name, text in ENTRY.findall(page.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("name", zfnet.__all__)
def test_every_public_name_has_an_entry_with_an_example_of_it(name: str) -> None:
    code = re.findall(r"^   (?:>>>|\.\.\.)(.*)", entries()[f"zfnet.{name}"], re.MULTILINE)
    assert re.search(rf"\b{name}\b", "\n".join(code))


@pytest.mark.parametrize("module", [zfnet.data, zfnet.training], ids=lambda module: module.__name__)
def test_every_public_name_of_a_package_has_an_entry(module) -> None:
    assert not {f"{module.__name__}.{name}" for name in module.__all__} - entries().keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(page: Path) -> None:
    before = dict(zfnet.DECONVNET)
    try:
        result = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    finally:
        zfnet.DECONVNET.clear()
        zfnet.DECONVNET.update(before)  # the page on rules registers one
    assert not result.failed
