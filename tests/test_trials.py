"""Trials for people: the page tells nothing of what is right, and answers come back as they were given."""

import base64
import hashlib
import io
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from chromium import PROGRAM, Chromium
from PIL import Image

from experiments.ablation.trials import CAUGHT, COLUMNS, Failed, Trial, score, write
from zfnet import InputError


def images(count: int, seed: int, side: int = 8) -> list[torch.Tensor]:
    """So many different images (3, side, side), uint8."""
    torch.manual_seed(seed)
    return list(torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8))


@pytest.fixture(scope="module")
def trials() -> list[Trial]:
    """Six of each task and four that are easy; the first option is always right."""
    made = []
    for n in range(16):
        common = {"options": images(2, n), "right": 0, "layer": "conv1", "map": n % 4, "image": n}
        catch = {"id": f"easy {n}", "catch": True} if n >= 12 else {"id": f"trial {n}"}
        references = images(3, 100 + n % 4)
        if n % 2:
            name = "masked crop" if n % 3 else "crop"
            trial = Trial(task="B", picture=name, strongest=references, weakest=images(3, 200), **common, **catch)
        else:
            some = references if n % 3 else []
            trial = Trial(task="A2", picture="crop" if some else "none", strongest=some, **common, **catch)
        made.append(trial)
    return made


@pytest.fixture(scope="module")
def page(trials, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "trials.html"
    write(trials, path, title="Which one?", seed=5)
    return path


def data_of(page: Path) -> dict:
    """What the page's script reads."""
    (data,) = re.findall(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(data)


def key_of(page: Path) -> dict:
    return json.loads(page.with_name("trials-KEY.json").read_text())


def decoded(text: str) -> torch.Tensor:
    """The image (3, H, W) that the page shows for a text."""
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    return (
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(*image.size[::-1], 3).permute(2, 0, 1)
    )


def answered(page: Path, person: str, wrong=lambda secret: False, count: int | None = None) -> dict:
    """The file of a person who errs where `wrong` says so, after `count` answers."""
    secrets = key_of(page)["trials"]
    order = random.Random(person).sample(range(len(secrets)), len(secrets))
    answers = [
        {
            "trial": n,
            "option": secrets[n]["right"] ^ wrong(secrets[n]),
            "confidence": 1 + n % 3,
            "milliseconds": 100 * n,
            "left": n % 2,
        }
        for n in order[:count]
    ]
    return {"format": 1, "page": key_of(page)["page"], "person": person, "answers": answers}


def saved(content: object, folder: Path, name: str = "answers.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_page_shows_what_was_given_and_the_key_knows_what_is_right(trials, page) -> None:
    data, secrets = data_of(page), key_of(page)["trials"]
    by_id = {trial.id: trial for trial in trials}
    assert len(secrets) == len(data["trials"]) == len(trials) and [s["id"] for s in secrets] != list(by_id)
    for question, secret in zip(data["trials"], secrets, strict=True):
        trial = by_id.pop(secret["id"])
        for name in ("strongest", "weakest"):
            shown = [decoded(data["images"][n]) for n in question[name]]
            assert len(shown) == len(getattr(trial, name))
            assert all(map(torch.equal, shown, getattr(trial, name)))  # small images are exact
        options = [decoded(data["images"][n]) for n in question["options"]]
        assert torch.equal(options[secret["right"]], trial.options[0])
        assert torch.equal(options[1 - secret["right"]], trial.options[1])
        assert question["task"] == secret["task"] == trial.task
        assert all(secret[name] == getattr(trial, name) for name in ("picture", "layer", "map", "image", "catch"))


def test_the_page_does_not_depend_on_what_people_may_not_know(trials, page, tmp_path) -> None:
    changed = [
        replace(t, id=f"x{n}", picture="other", layer="x", map=99, image=None, right=1, catch=not t.catch)
        for n, t in enumerate(trials)
    ]
    write(changed, tmp_path / "trials.html", title="Which one?", seed=5)
    assert (tmp_path / "trials.html").read_bytes() == page.read_bytes()
    now, before = key_of(tmp_path / "trials.html")["trials"], key_of(page)["trials"]
    assert [secret["right"] for secret in now] == [1 - secret["right"] for secret in before]


def test_a_place_in_the_file_does_not_tell_what_is_right(trials, tmp_path) -> None:
    many = [replace(trials[0], id=str(n)) for n in range(400)]
    write(many, tmp_path / "trials.html", title="", seed=0)
    secrets = key_of(tmp_path / "trials.html")["trials"]
    assert 160 < sum(secret["right"] for secret in secrets) < 240  # four deviations of 400 coins
    assert len(data_of(tmp_path / "trials.html")["images"]) == 2  # each is stored once


def test_the_seed_decides_and_nothing_else(trials, page, tmp_path) -> None:
    for seed, name in ((5, "a.html"), (6, "b.html")):
        write(trials, tmp_path / name, title="Which one?", seed=seed)
    assert (tmp_path / "a.html").read_bytes() == page.read_bytes()
    assert (tmp_path / "a-KEY.json").read_text() == page.with_name("trials-KEY.json").read_text()
    assert (tmp_path / "b.html").read_bytes() != page.read_bytes()
    assert json.loads((tmp_path / "b-KEY.json").read_text())["page"] != key_of(page)["page"]


def test_large_images_are_small_files(trials, tmp_path) -> None:
    photograph = Image.radial_gradient("L").resize((224, 200))
    trial = replace(trials[0], options=[photograph, photograph.rotate(90)], strongest=[])
    write([trial], tmp_path / "trials.html", title="", seed=0)
    text = data_of(tmp_path / "trials.html")["images"][0]
    assert len(text) < 8000 and decoded(text).shape == (3, 200, 224)


def test_the_policy_allows_the_page_alone(page) -> None:
    text = page.read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    for tag in ("style", "script"):
        (code,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert "://" not in text and not re.search(r"(src|href)=\"(?!#)", text)


def test_a_title_is_no_markup(trials, tmp_path) -> None:
    title = "</title><script>{{data}} & '\"</script>"
    write(trials[:1], tmp_path / "trials.html", title=title, seed=0)
    text = (tmp_path / "trials.html").read_text()
    assert text.count("<script") == 2 and text.count("</title>") == 1
    assert data_of(tmp_path / "trials.html")["title"] == title


def luminance(colour: str) -> float:
    """As WCAG 2 defines it, of #rgb or #rrggbb."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[n : n + 2], 16) / 255 for n in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("look", [0, 1], ids=["light", "dark"])
def test_contrast_is_that_of_wcag(page, look) -> None:
    variables = re.findall(r":root \{(.*?)\}", page.read_text())[look]
    colours = dict(re.findall(r"--(\w+): (#\w+)", variables))
    for front, back, least in (
        ("text", "ground", 7),
        ("quiet", "ground", 4.5),
        ("on", "accent", 4.5),
        ("accent", "ground", 3),
        ("line", "ground", 3),
    ):
        light, dark = sorted((luminance(colours[front]), luminance(colours[back])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= least, f"{front} on {back}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "A1"}, "no task 'A1'"),
        ({"options": images(3, 0)}, "has 3 options"),
        ({"right": 2}, "right is 2"),
        ({"strongest": images(10, 0)}, "at most 9"),
        ({"task": "B", "strongest": images(1, 0)}, "task B needs the strongest and the weakest"),
        ({"options": [torch.rand(3, 8, 8), torch.rand(3, 8, 8)]}, r"\(3, 8, 8\), torch.float32: give"),
        ({"options": [*images(1, 0), torch.zeros(4, 8, 8, dtype=torch.uint8)]}, r"shape \(4, 8, 8\)"),
    ],
)
def test_trials_that_cannot_be_asked(trials, tmp_path, changes, words) -> None:
    with pytest.raises(InputError, match=words):
        write([replace(trials[0], **changes)], tmp_path / "trials.html", title="", seed=0)
    assert not list(tmp_path.iterdir())


def test_pages_that_cannot_be_written(trials, tmp_path) -> None:
    for some, name, words in (
        ([], "trials.html", "no trials"),
        (trials, "trials", "ends in .html"),
        ([*trials, trials[3]], "trials.html", "two trials have the id 'trial 3'"),
    ):
        with pytest.raises(InputError, match=words):
            write(some, tmp_path / name, title="", seed=0)


def test_error_rates_come_back(trials, page, tmp_path) -> None:
    def third(secret) -> bool:
        return not secret["catch"] and secret["image"] % 3 == 0

    people = {
        "0" * 16: answered(page, "0" * 16),
        "1" * 16: answered(page, "1" * 16, lambda secret: not secret["catch"]),
        "2" * 16: answered(page, "2" * 16, third),
    }
    files = [saved(content, tmp_path, f"{name}.json") for name, content in people.items()]
    scored = score(files, page.with_name("trials-KEY.json"))
    assert scored.people == list(people) and not scored.failed and not scored.incomplete
    columns = scored.columns
    assert tuple(columns) == COLUMNS and {len(column) for column in columns.values()} == {3 * 12}
    by_id = {trial.id: trial for trial in trials if not trial.catch}
    assert {*columns["id"]} == {*by_id}
    for n, name in enumerate(columns["id"]):
        trial = by_id[name]
        for field in ("task", "picture", "pair", "layer", "map", "image"):
            assert columns[field][n] == getattr(trial, field)
        errs = {"0": False, "1": True, "2": trial.image % 3 == 0}[columns["person"][n][0]]
        assert columns["right"][n] == 1 - errs
    secrets = key_of(page)["trials"]
    answer = next(a for a in people["2" * 16]["answers"] if not secrets[a["trial"]]["catch"])
    assert columns["confidence"][24] == answer["confidence"] and columns["milliseconds"][24] == answer["milliseconds"]


def test_who_does_not_look_is_left_out(page, tmp_path) -> None:
    """Four catch trials: three right are enough, two are not; who stops before the first cannot be told."""
    easy = [secret["id"] for secret in key_of(page)["trials"] if secret["catch"]]
    files = [
        saved(answered(page, f"{n:016x}", lambda secret, n=n: secret["id"] in easy[:n]), tmp_path, f"{n}.json")
        for n in range(3)
    ]
    none = answered(page, "f" * 16)
    none["answers"] = [a for a in none["answers"] if not key_of(page)["trials"][a["trial"]]["catch"]]
    files.append(saved(none, tmp_path, "none.json"))
    key = page.with_name("trials-KEY.json")
    scored = score(files, key)
    assert CAUGHT == 0.75 and scored.people == [f"{n:016x}" for n in range(2)]
    assert scored.failed == {f"{2:016x}": Failed(2, 4), "f" * 16: Failed(0, 0)}
    assert {*scored.columns["person"]} == {*scored.people}
    assert score(files, key, caught=0.5).people == [f"{n:016x}" for n in range(3)]
    with pytest.raises(InputError, match="caught is 0"):
        score(files, key, caught=0)


def test_a_page_without_catch_trials_leaves_nobody_out(trials, tmp_path) -> None:
    path = tmp_path / "trials.html"
    write([trial for trial in trials if not trial.catch], path, title="", seed=0)
    content = answered(path, "a" * 16, lambda secret: True)
    scored = score([saved(content, tmp_path)], tmp_path / "trials-KEY.json")
    assert scored.people == ["a" * 16] and not scored.failed and sum(scored.columns["right"]) == 0


def test_who_stops_early_is_counted(page, tmp_path) -> None:
    easy = next(n for n, secret in enumerate(key_of(page)["trials"]) if secret["catch"])
    content = answered(page, "a" * 16)
    content["answers"] = sorted(content["answers"], key=lambda a: a["trial"] != easy)[:5]
    scored = score([saved(content, tmp_path)], page.with_name("trials-KEY.json"))
    assert scored.incomplete == scored.people == ["a" * 16]
    assert len(scored.columns["right"]) <= 4


def test_nobody_has_answered(page) -> None:
    scored = score([], page.with_name("trials-KEY.json"))
    assert scored.people == [] and not any(scored.columns.values())


def change(**fields):
    return lambda content: {**content, **fields}


def first(**fields):
    """A change of the first answer."""
    return lambda content: {**content, "answers": [{**content["answers"][0], **fields}, *content["answers"][1:]]}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: json.dumps(content)[:-20], "holds no answers to trials, or is damaged"),
        (lambda content: "[" * 100_000, "holds no answers"),
        (lambda content: [content], "holds no answers"),
        (lambda content: {"answers": []}, "holds no answers"),
        (change(more=1), "holds no answers"),
        (change(answers={}), "holds no answers"),
        (change(person="Ann"), "holds no answers"),
        (change(person=None), "holds no answers"),
        (change(format=2), "has format 2, but this version reads format 1"),
        (change(page="0" * 16), "answers to another page"),
        (change(page=[]), "answers to another page"),
        (change(answers=[1]), "answer 0 does not have the fields"),
        (first(name="Ann"), "answer 0 does not have the fields"),
        (first(trial=16), "trial of answer 0 is 16"),
        (first(trial=-1), "trial of answer 0 is -1"),
        (first(trial="1"), "trial of answer 0 is '1'"),
        (first(trial=None), "trial of answer 0 is None"),
        (first(option=2), "option of answer 0 is 2"),
        (first(option=True), "option of answer 0 is True"),
        (first(left=2), "left of answer 0 is 2"),
        (first(confidence=0), "confidence of answer 0 is 0"),
        (first(confidence=4), "confidence of answer 0 is 4"),
        (first(milliseconds=-1), "milliseconds of answer 0 is -1"),
        (first(milliseconds=float("nan")), "milliseconds of answer 0 is nan"),
        (first(milliseconds=10**300), "milliseconds of answer 0 is 1000"),
        (lambda c: {**c, "answers": [*c["answers"], c["answers"][0]]}, "it answers trial .* twice"),
    ],
)
def test_damaged_answers_are_named(page, tmp_path, damage, words) -> None:
    path = saved(damage(answered(page, "a" * 16)), tmp_path)
    with pytest.raises(InputError, match=words) as error:
        score([path], page.with_name("trials-KEY.json"))
    assert str(path) in str(error.value) and len(str(error.value).splitlines()) == 1


def test_files_that_are_none(page, tmp_path) -> None:
    key = page.with_name("trials-KEY.json")
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(InputError, match="cannot read"):
            score([path], key)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="holds no answers"):
        score([tmp_path / "bytes.json"], key)


def test_two_files_of_one_person(page, tmp_path) -> None:
    files = [saved(answered(page, "a" * 16, count=n), tmp_path, f"{n}.json") for n in (16, 3)]
    with pytest.raises(InputError, match="are of one person; give the one with more answers"):
        score(files, page.with_name("trials-KEY.json"))


def test_damaged_keys_are_named(page, tmp_path) -> None:
    content = key_of(page)
    flipped = json.loads(json.dumps(content))
    flipped["trials"][0]["right"] ^= 1
    for damaged in ("{", flipped, answered(page, "a" * 16), {**content, "page": "0"}):
        with pytest.raises(InputError, match="is not a key of trials, or is damaged"):
            score([], saved(damaged, tmp_path, "KEY.json"))
    with pytest.raises(InputError, match="has format 2"):
        score([], saved({**content, "format": 2}, tmp_path, "KEY.json"))


class Observer:
    """A person at the page who knows what is right, from the pictures and the key."""

    def __init__(self, browser: Chromium, page: Path) -> None:
        self.browser, self.data, self.secrets = browser, data_of(page), key_of(page)["trials"]

    def shown(self) -> tuple[int, int]:
        """Which trial is on the screen, and the side of its right option; the options are of one trial alone."""
        sources = self.browser.evaluate(
            "[...document.querySelectorAll('#trial .option img')].map(image => image.src.split(',')[1])"
        )
        images = [self.data["images"].index(source) for source in sources]
        (n,) = [n for n, question in enumerate(self.data["trials"]) if sorted(question["options"]) == sorted(images)]
        return n, images.index(self.data["trials"][n]["options"][self.secrets[n]["right"]])

    def visible(self) -> str:
        return self.browser.evaluate("document.querySelector('section:not([hidden])').id")

    def start(self) -> None:
        assert self.visible() == "start" and self.browser.evaluate("document.querySelector('#begin').disabled")
        self.browser.click("#agree")
        self.browser.click("#begin")

    def save(self) -> Path:
        """The file that the page lets a person save."""
        self.browser.click("#download")
        return self.browser.downloaded()


@pytest.mark.skipif(PROGRAM is None, reason="needs Chromium")
def test_people_answer_in_a_browser(page, tmp_path) -> None:
    with Chromium(tmp_path) as browser:
        person = Observer(browser, page)
        narrow = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
        browser.send("Emulation.setDeviceMetricsOverride", **narrow)
        browser.open(page.as_uri())
        fits = "document.documentElement.scrollWidth <= 360"
        assert browser.evaluate(fits)

        # with the keyboard; a pause, and a reload in the middle
        person.start()
        seen = []
        for n in range(16):
            assert person.visible() == "trial" and browser.evaluate(fits)
            trial, side = person.shown()
            seen.append(trial)
            task, strongest, weakest = (person.data["trials"][trial][name] for name in ("task", "strongest", "weakest"))
            words = browser.evaluate("document.activeElement.textContent")
            assert ("square hides" in words) == (task == "A2")
            tiles = browser.evaluate("['strongest', 'weakest'].map(id => document.getElementById(id).children.length)")
            assert tiles == [len(strongest), len(weakest)]
            if n == 4:
                browser.press("2")  # before a choice: nothing
                assert person.shown()[0] == trial
                browser.press("Escape")
                assert person.visible() == "pause"
                browser.press("ArrowLeft")
                browser.press("2")
                browser.click("#resume")
            if n == 9:
                browser.open(page.as_uri())
                assert person.visible() == "pause" and "9 of 16" in browser.evaluate("document.body.innerText")
                browser.click("#resume")
                assert person.shown() == (trial, side)
            err = not person.secrets[trial]["catch"] and trial % 2
            browser.press(("ArrowLeft", "ArrowRight")[side ^ bool(err)])
            browser.press(str(1 + trial % 3))
        assert person.visible() == "end" and sorted(seen) == list(range(16))
        files = [person.save()]
        content = json.loads(files[0].read_text())
        assert files[0].name == f"answers-{content['person']}.json"
        assert [answer["trial"] for answer in content["answers"]] == seen
        assert {answer["left"] for answer in content["answers"]} == {0, 1}
        assert all(answer["confidence"] == 1 + answer["trial"] % 3 for answer in content["answers"])
        assert browser.evaluate("document.querySelector('#text').value") == files[0].read_text()

        # another person, with the mouse, who changes a choice and stops
        browser.click("#anew")
        person.start()
        others = []
        while len(others) < 4 or not any(person.secrets[trial]["catch"] for trial in others):
            trial, side = person.shown()
            others.append(trial)
            for choice in (1 - side, side):
                browser.click(f"#trial .option:nth-of-type({choice + 1})")
            browser.click("#confidence button:nth-of-type(3)")
        browser.click("#stop")
        browser.click("#finish")
        files.append(person.save())
        assert others != seen[: len(others)]

        reported = {event["method"]: [] for event in browser.events}
        for event in browser.events:
            reported[event["method"]].append(event["params"])
        addresses = [sent["request"]["url"] for sent in reported["Network.requestWillBeSent"]]
        complaints = [reported.get(kind) for kind in ("Log.entryAdded", "Runtime.exceptionThrown")]
        assert not any(complaints) and all(address.startswith(("file:", "data:", "blob:")) for address in addresses)

    scored = score(files, page.with_name("trials-KEY.json"))
    assert len(scored.people) == 2 and scored.incomplete == scored.people[1:] and not scored.failed
    right = dict(
        zip(zip(scored.columns["person"], scored.columns["id"], strict=True), scored.columns["right"], strict=True)
    )
    asked = [(n, secret["id"]) for n, secret in enumerate(person.secrets) if not secret["catch"]]
    assert right == {(scored.people[0], name): 1 - n % 2 for n, name in asked} | {
        (scored.people[1], name): 1 for n, name in asked if n in others
    }
