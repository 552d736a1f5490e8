"""The words of the project: spelling, the length of sentences, links, and phrases that plain English does without."""

import importlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent
WRITTEN = {
    ".bib",
    ".cff",
    ".cfg",
    ".css",
    ".html",
    ".js",
    ".md",
    ".py",
    ".rst",
    ".sh",
    ".toml",
    ".txt",
    ".yaml",
    ".yml",
}
SOURCES = {".css", ".html", ".js", ".py", ".sh", ".yaml", ".yml"}
LONGEST = 35  # words in a sentence


def tracked() -> list[Path]:
    """The files of the repository that people write; in an sdist, where there is no git, all such files."""
    try:
        names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
        files = [ROOT / name for name in names.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        folders = ("conf", "docs", "experiments", "scripts", "tests", "zfnet")
        files = [*ROOT.glob("*"), *(file for folder in folders for file in (ROOT / folder).rglob("*"))]
    return sorted(file for file in files if file.suffix in WRITTEN and file.is_file())


FILES = tracked()
PAGES = [
    file for file in FILES if file.suffix == ".md" and file.name not in ("CHANGELOG.md", "PULL_REQUEST_TEMPLATE.md")
]
HEADED = {"paper.md"}  # begins with YAML


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


# ---- spelling --------------------------------------------------------------------------------------------------------


def test_every_word_is_spelled_right() -> None:
    pytest.importorskip("codespell_lib")
    paths = [name_of(file) for file in FILES]
    done = subprocess.run(["codespell", *paths], cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.stdout and not done.returncode, done.stdout + done.stderr


# ---- sentences -------------------------------------------------------------------------------------------------------


def prose(text: str) -> Iterator[str]:
    """The paragraphs of a Markdown page, without blocks of code, tables, numbers that a script prints, and markup."""
    text = re.sub(r"<!-- (numbers|measured).*?<!-- end -->", "", text, flags=re.DOTALL)
    text = re.sub(r"^(`{3,}|:{3,}|~{3,})[^\n]*\n.*?^\1[^\n]*$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->|<[^>\n]+>", "", text, flags=re.DOTALL)
    lines: list[str] = []
    before = ""
    for line in [*text.splitlines(), ""]:
        indented = line.startswith(("    ", "\t")) and not before.strip()
        before = line if not indented else ""
        starts = re.match(r"\s*([-*+]|\d+[.)]|:)\s", line)
        if indented or not line.strip() or line.lstrip().startswith(("#", "|", "---", "(", "$$")) or starts:
            if lines:
                yield " ".join(lines)
            lines = [line[starts.end() :]] if starts and not indented else []
        else:
            lines.append(line.strip(" >"))
    if lines:
        yield " ".join(lines)


def sentences(text: str) -> Iterator[str]:
    for paragraph in prose(text):
        plain = re.sub(r"`[^`]*`|\$[^$]*\$", "Code", paragraph)
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", plain)
        plain = re.sub(r"\b(et al|e\.g|i\.e|Fig|vs|arXiv|doi)[.:]", r"\1", plain)
        yield from re.split(r"(?<=[.!?])[\"')*_]*\s+(?=[\"'(*_]*[A-Z0-9`])", plain)


def words(sentence: str) -> int:
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_sentences_are_short(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    text = text.split("\n---\n", 1)[1] if page.name in HEADED else text
    long = [f"{words(sentence)} words: {sentence}" for sentence in sentences(text) if words(sentence) > LONGEST]
    assert not long, "\n".join(long)


def test_what_a_sentence_is() -> None:
    text = (
        "# No sentence\n\nOne two (Luo et al. 2016). Three `four five`\nsix! See [a b](c.md).\n\n    code here\n\n"
        "- seven\n  eight\n- nine\n\n| a | table |\n\n```python\nx = 1\n```\n<!-- numbers: x -->\nmany\n<!-- end -->\n"
    )
    expected = ["One two (Luo et al 2016).", "Three Code six!", "See a b.", "seven eight", "nine"]
    assert list(sentences(text)) == expected


# ---- links -----------------------------------------------------------------------------------------------------------

LINK = re.compile(r"\]\((?:<([^>]+)>|([^)\s]+))(?:\s+\"[^\"]*\")?\)|(?:src|href)=\"([^\"]+)\"|<(https?://[^>\s]+)>")


def anchors(text: str) -> set[str]:
    """The anchors of a page: its headings, as GitHub and MyST name them, and those that it names itself."""
    text = re.sub(r"^(`{3,}|:{3,})[^\n]*\n.*?^\1[^\n]*$", "", text, flags=re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE)) | set(
        re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text)
    )
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        named.add(f"{slug}-{sum(slug == one for one in named)}" if slug in named else slug)
    return named


def is_public(name: str) -> bool:
    """Whether a dotted name, such as zfnet.Deconvnet.project, can be imported: the API pages have an anchor of it."""
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            thing: object = importlib.import_module(".".join(parts[:split]))
        except ImportError:
            continue
        for part in parts[split:]:
            thing = getattr(thing, part, None)
        return thing is not None
    return False


def broken(page: Path, target: str) -> str | None:
    """What is wrong with a link, or None."""
    parts = urlsplit(target)
    if parts.scheme in ("http", "https"):
        well = re.fullmatch(r"[\w-]+(\.[\w-]+)+(:\d+)?", parts.netloc) and not re.search(r"\s", target)
        return None if well else "is not an address"
    if parts.scheme:
        return None if parts.scheme == "mailto" else f"has the scheme {parts.scheme}"
    file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    gallery = ROOT / "docs" / "gallery"
    if file.is_relative_to(gallery) and not file.exists():  # made from docs/examples when the site is built
        source = ROOT / "docs" / "examples" / f"{file.stem}.py"
        return None if file.stem == "index" or source.exists() else f"names no example: {source.name}"
    if not file.exists():
        return "leads to no file"
    if parts.fragment and file.suffix == ".md" and not parts.fragment.startswith("zfnet."):
        return None if parts.fragment in anchors(file.read_text(encoding="utf-8")) else "leads to no heading"
    return None if not parts.fragment.startswith("zfnet.") or is_public(parts.fragment) else "names nothing in zfnet"


@pytest.mark.parametrize("page", [file for file in FILES if file.suffix == ".md"], ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^(`{3,})[^\n]*\n.*?^\1[^\n]*$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "", text)
    targets = [next(filter(None, groups)) for groups in LINK.findall(text)]
    wrong = [f"{target} {what}" for target in targets if (what := broken(page, target))]
    assert not wrong, "\n".join(wrong)


def test_a_broken_link_is_found() -> None:
    page = ROOT / "docs" / "rules.md"
    assert not broken(page, "#rules") and not broken(page, "ablation.md#tasks") and not broken(page, "../README.md")
    assert broken(page, "#nowhere") and broken(page, "nowhere.md") and broken(page, "ablation.md#nowhere")
    assert (
        broken(page, "https://nowhere")
        and broken(page, "ftp://example.org")
        and not broken(page, "https://example.org/a")
    )
    assert not broken(page, "ablation.md#zfnet.Deconvnet.project") and broken(page, "ablation.md#zfnet.nothing")


# ---- the citation ----------------------------------------------------------------------------------------------------


def test_the_citation_is_valid() -> None:
    pytest.importorskip("cffconvert")
    command = ["cffconvert", "--validate", "-i", str(ROOT / "CITATION.cff")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- phrases ---------------------------------------------------------------------------------------------------------

FORBIDDEN = {  # what was, and what is plainer
    r"(left|leave[sd]?|is) as (it|they) (was|were) found": "never modified",
    r"no deconvnet meaning": "without a rule",
    r"teach (it|them|a Deconvnet)": "add a rule",
    r"can be left alone": "survives interruption",
    r"(goes|go|went|gone|going) on (from|where|after|at) ": "resumes from",
    r"by these and by those": "these commands print",
    r"of which the others": "the others",
    r"(pixels|images|places) is none": "must lie between ...",
    r"whole or not at all": "atomic",
    r"there whole": "atomic",
    r"without a word": "silently, without a warning",
    r"what is there is (read|skipped|kept)": "existing files are ...",
    r"is what it is called with": "name the thing",
    r"of one's own": "of your own, custom",
    r"\b(are|is) to be had\b": "available",
    r"\bas well may\b": "may also",
    r"gives way to": "is replaced by",
}


@pytest.mark.parametrize("phrase", FORBIDDEN)
def test_phrases_that_do_not_come_back(phrase: str) -> None:
    wrong = []
    for file in FILES:
        if file.name in ("test_words.py", "CHANGELOG.md"):
            continue
        text = re.sub(r"\s*\n\s*(#|//|\*)?\s*", " ", file.read_text(encoding="utf-8"))
        wrong += [f"{name_of(file)}: {text[max(m.start() - 40, 0) : m.end() + 20]}" for m in re.finditer(phrase, text)]
    assert not wrong, f"better: {FORBIDDEN[phrase]}\n" + "\n".join(wrong)
