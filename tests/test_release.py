"""A release: one version in every file that names it, and a paper with the numbers of the docs."""

import configparser
import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def version() -> str:
    """The version in setup.cfg."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config["metadata"]["version"]


def test_the_citation_has_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version()


def test_the_newest_entry_of_the_changelog_is_this_version() -> None:
    entries = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    released = [entry for entry in entries if entry != "Unreleased"]
    assert entries and released[:1] in ([], [version()])


def test_speeds_in_the_paper_are_those_of_the_docs() -> None:
    docs = "\n".join(page.read_text(encoding="utf-8") for page in ROOT.glob("docs/**/*.md"))
    rows = re.findall(r"^\| (`.+)\|$", (ROOT / "paper.md").read_text(encoding="utf-8"), re.MULTILINE)
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    printed = [[cell.strip() for cell in line.strip("|").split("|")] for line in docs.splitlines() if "|" in line]
    assert cells and all(any(set(row) <= set(line) for line in printed) for row in cells)


def test_the_paper_is_as_long_as_the_journal_asks() -> None:
    text = (ROOT / "paper.md").read_text(encoding="utf-8").split("\n---\n", 1)[1]
    prose = re.sub(r"^(\||#|<!--).*$", "", text, flags=re.MULTILINE)
    assert 600 <= len(prose.split()) <= 1000


def test_every_reference_of_the_paper_has_an_entry_and_every_entry_is_cited() -> None:
    cited = set(re.findall(r"\[@(\w+)\]", (ROOT / "paper.md").read_text(encoding="utf-8")))
    entries = re.findall(r"^@\w+\{(\w+),", (ROOT / "paper.bib").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(entries) == len(set(entries)) and cited == set(entries)


def test_constraints_are_the_versions_of_the_results() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    exact = dict(line.split("==") for line in lines if not line.startswith("#"))
    files = [*ROOT.glob("results/*/*/result.json")]
    assert files
    for file in files:
        versions = json.loads(file.read_text(encoding="utf-8"))["provenance"]["versions"]
        assert versions["python"] in lines[0]
        for package in ("torch", "torchvision", "numpy"):
            assert exact[package] == versions[package], file
