"""A page of questions for people, and the score of their answers.

`write` makes one HTML file, which works from a disk without a connection, and beside it a key with the right answers,
which people must not see. Each person sees the trials in another order, and saves a file of answers; `score` reads
these. The tasks follow Zimmermann et al. (2021), arXiv:2106.12447 ("A2"), and Borowski et al. (2021), arXiv:2010.12606
("B").
"""

import base64
import hashlib
import html
import io
import json
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor, uint8
from torchvision.transforms.functional import to_pil_image

from experiments.setup.checks import one_of, share
from zfnet.errors import InputError
from zfnet.files import open_regular, write_atomically
from zfnet.identity import digest

TASKS = ("A2", "B")
CAUGHT = 0.75  # who has less than this share of the catch trials right is left out
FORMAT = 1  # of files of answers, and of keys
TEMPLATE = Path(__file__).with_name("trials.html")
LOSSLESS = 64  # pixels: smaller images are stored exactly
QUALITY = 90  # of larger ones
SECRET = ("id", "task", "picture", "pair", "layer", "map", "image", "catch", "right")  # what the key says of a trial
ANSWER = ("trial", "option", "left", "confidence", "milliseconds")  # fields of an answer
COLUMNS = ("person", "id", "task", "picture", "pair", "layer", "map", "image", "right", "confidence", "milliseconds")
PERSON = re.compile("[0-9a-f]{16}")  # drawn at random by the page
AGAIN = "get the file from the person again"

Picture = Image.Image | Tensor  # (1 or 3, H, W), uint8


@dataclass(frozen=True)
class Trial:
    """A question to a person: which of two options?

    Args:
        id: a name of its own, by which the answers are told apart later.
        task: "A2", where each option is the image with a square that hides a part of it, or "B".
        picture: the kind of reference images, such as "masked crop".
        layer, map: whose unit it is.
        options: two images; small images should be enlarged before, because a browser enlarges them smoothly.
        right: 0 or 1, the option that lowers the unit more ("A2") or activates the map more ("B").
        strongest: reference images that activate the map most, at most nine; none in "A2" is a control.
        pair: where in the ranking the options of "B" stand, such as "extreme".
        weakest: those that activate it least; "B" needs both.
        image: which image of the data set the question is about, if it is about one.
        catch: whether everybody knows the answer who reads the question.
    """

    id: str
    task: str
    picture: str
    layer: str
    map: int
    options: Sequence[Picture]
    right: int
    strongest: Sequence[Picture] = ()
    weakest: Sequence[Picture] = ()
    pair: str | None = None
    image: int | None = None
    catch: bool = False


def write(trials: Sequence[Trial], path: Path | str, *, title: str, seed: int) -> Path:
    """Write a page that asks the trials, and beside trials.html its key, trials-KEY.json; returns the key's path.

    Nothing in the page depends on the right answers, on the name of the picture, or on the unit. The same arguments
    give the same bytes.

    Args:
        path: of the page; its name ends in .html.
        title: of the page, which people read.
        seed: draws the order of the trials, and of the two options of each, in both files.

    Raises: InputError for trials that cannot be asked, and if a file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".html":
        raise InputError(f"cannot write trials to {path}: give a name that ends in .html")
    if not trials:
        raise InputError("there are no trials to write")
    for trial in trials:
        _check(trial)
    if repeated := _repeated([trial.id for trial in trials]):
        raise InputError(f"two trials have the id {repeated[0]!r}; give each its own")
    draw = random.Random(seed)
    images: dict[str, int] = {}  # each once, by what it is stored as: trials of a map share their references
    questions, secrets = [], []
    for trial in draw.sample(trials, len(trials)):
        swapped = draw.random() < 0.5
        options = trial.options[::-1] if swapped else trial.options
        question: dict[str, Any] = {"task": trial.task}
        for name, shown in (("strongest", trial.strongest), ("weakest", trial.weakest), ("options", options)):
            question[name] = [images.setdefault(_encoded(image), len(images)) for image in shown]
        questions.append(question)
        secrets.append({name: getattr(trial, name) for name in SECRET} | {"right": int(trial.right) ^ swapped})
    content = {"title": title, "trials": questions, "images": list(images)}
    page = digest(content)[:16]
    key = path.with_name(f"{path.stem}-KEY.json")
    secret = {"format": FORMAT, "page": page, "trials": secrets, "digest": digest(page, secrets)}
    write_atomically(key, json.dumps(secret, indent=1).encode())
    write_atomically(path, _page(title, {"page": page} | content).encode())
    return key


def _check(trial: Trial) -> None:
    """Raises InputError for an invalid trial."""
    one_of("task", trial.task, TASKS)
    if len(trial.options) != 2 or trial.right not in (0, 1):
        raise InputError(
            f"trial {trial.id!r} has {len(trial.options)} options, right is {trial.right}; give 2, and 0 or 1"
        )
    if max(len(trial.strongest), len(trial.weakest)) > 9:
        raise InputError(
            f"trial {trial.id!r} has too many references: give at most 9 of the strongest and of the weakest"
        )
    if trial.task == "B" and not (trial.strongest and trial.weakest):
        raise InputError(f"trial {trial.id!r} lacks references: task B needs the strongest and the weakest")
    for image in (*trial.options, *trial.strongest, *trial.weakest):
        if isinstance(image, Tensor) and (image.dtype != uint8 or image.ndim != 3 or len(image) not in (1, 3)):
            raise InputError(
                f"trial {trial.id!r} has an image of shape {tuple(image.shape)}, {image.dtype}: give (3, H, W), uint8"
            )


def _encoded(image: Picture) -> str:
    picture = (to_pil_image(image) if isinstance(image, Tensor) else image).convert("RGB")
    content = io.BytesIO()
    picture.save(content, "WEBP", lossless=max(picture.size) <= LOSSLESS, quality=QUALITY)
    return base64.b64encode(content.getvalue()).decode()


def _page(title: str, data: Mapping[str, Any]) -> str:
    """The template with its data, and a policy that allows its own script and style and nothing from outside."""
    template = TEMPLATE.read_text(encoding="utf-8")
    allowed = {}
    for tag in ("style", "script"):
        (code,) = re.findall(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
        allowed[tag] = f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
    parts = {
        "title": html.escape(title),
        "data": json.dumps(data).replace("<", "\\u003c"),
        "policy": f"default-src 'none'; img-src data:; style-src {allowed['style']}; script-src {allowed['script']}; "
        "base-uri 'none'; form-action 'none'",
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


class Failed(NamedTuple):
    """How many catch trials a person who is left out had right, and how many answered."""

    right: int
    answered: int


@dataclass(frozen=True)
class Scored:
    """Answers of people, without catch trials.

    Attributes:
        columns: lists of equal length under the names COLUMNS, an entry for each answer; right is 1 or 0.
        people: whose answers these are.
        incomplete: who of these has not answered all trials.
        failed: who was left out for the catch trials.
    """

    columns: dict[str, list[Any]]
    people: list[str]
    incomplete: list[str]
    failed: dict[str, Failed]


def score(answers: Sequence[Path | str], key: Path | str, *, caught: float = CAUGHT) -> Scored:
    """The answers of people, from the files that they saved.

    A person is left out whose share of right answers to catch trials is below `caught`, or who has answered none of
    the page's catch trials. A page without catch trials leaves nobody out.

    Args:
        answers: a file for each person.
        key: the file that was written beside the page.

    Raises: InputError for a file that is damaged or of another page, and for two files of one person.
    """
    share(caught=caught)
    page, trials = _read_key(Path(key))
    files: dict[str, Path] = {}
    scored = Scored({name: [] for name in COLUMNS}, [], [], {})
    for path in map(Path, answers):
        person, choices = _read_answers(path, page, len(trials))
        if person in files:
            raise InputError(f"{files[person]} and {path} are of one person; give the one with more answers")
        files[person] = path
        rows = [trials[choice["trial"]] | choice | {"person": person} for choice in choices]
        rows = [row | {"right": int(row["option"] == trials[row["trial"]]["right"])} for row in rows]
        catches = [row["right"] for row in rows if row["catch"]]
        if any(trial["catch"] for trial in trials) and (not catches or sum(catches) / len(catches) < caught):
            scored.failed[person] = Failed(sum(catches), len(catches))
            continue
        scored.people.append(person)
        if len(choices) < len(trials):
            scored.incomplete.append(person)
        for name, column in scored.columns.items():
            column.extend(row[name] for row in rows if not row["catch"])
    return scored


def _read_key(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """The page of a key, and its trials in the order of the page."""
    content = _read(path)
    fields = content.keys() == {"format", "page", "trials", "digest"}
    if not fields or content["digest"] != digest(content["page"], content["trials"]):
        raise InputError(
            f"{path} is not a key of trials, or is damaged; give the KEY.json that was written beside the page"
        )
    _check_format(path, content)
    return content["page"], content["trials"]


def _read_answers(path: Path, page: str, trials: int) -> tuple[str, list[dict[str, int]]]:
    """A person and the person's answers, in the order in which they were given."""
    content = _read(path)
    fields = content.keys() == {"format", "page", "person", "answers"}
    if not fields or not isinstance(content["answers"], list) or not PERSON.fullmatch(str(content["person"])):
        raise InputError(f"{path} holds no answers to trials, or is damaged; {AGAIN}")
    _check_format(path, content)
    answers, person = content["answers"], str(content["person"])
    if content["page"] != page:
        raise InputError(f"{path} holds answers to another page than the key's; give the key of that page")
    numbers = (range(trials), range(2), range(2), range(1, 4), range(10**10))
    for n, answer in enumerate(answers):
        if not isinstance(answer, dict) or answer.keys() != {*ANSWER}:
            raise InputError(f"{path} is damaged: answer {n} does not have the fields {', '.join(ANSWER)}; {AGAIN}")
        for name, possible in zip(ANSWER, numbers, strict=True):
            if type(answer[name]) is not int or answer[name] not in possible:
                raise InputError(f"{path} is damaged: {name} of answer {n} is {answer[name]!r:.40}; {AGAIN}")
    if repeated := _repeated([answer["trial"] for answer in answers]):
        raise InputError(f"{path} is damaged: it answers trial {repeated[0]} twice; {AGAIN}")
    return person, answers


def _read(path: Path) -> dict[str, Any]:
    """The JSON of a file; empty if it is damaged or not a dictionary."""
    with open_regular(path) as file:
        content = file.read()
    try:
        read = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def _check_format(path: Path, content: Mapping[str, Any]) -> None:
    if content["format"] != FORMAT:
        raise InputError(f"{path} has format {content['format']!r:.40}, but this version reads format {FORMAT}")


def _repeated(names: Sequence[Any]) -> list[Any]:
    """The names that occur more than once."""
    return [name for name, times in Counter(names).items() if times > 1]
