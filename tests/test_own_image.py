"""The page of your own image, in a real Chromium, over a running server, on an atlas that zfnet built."""

import base64
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import sequential
from torch import nn

import zfnet.atlas
from tests.chromium import PROGRAM, Chromium
from tests.served import Server, png
from zfnet.atlas.answers import Answers
from zfnet.atlas.server import Limits
from zfnet.data import Photos
from zfnet.data.preprocessing import Preprocessing

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium to show the page")
AXE = Path(sys.prefix) / "node_modules" / "axe-core" / "axe.min.js"  # what .ci/run installs
SIZE, LAYERS, IMAGES = 48, ["relu1", "pool1", "relu6"], 14
ANSWERED = "document.querySelector('.own-figures')"
PLACE = "document.querySelector('#own-maps').textContent"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = sequential(
        Preprocessing(size=SIZE, resize=SIZE + 4),
        conv1=nn.Conv2d(3, 6, 5, 2),
        relu1=nn.ReLU(inplace=True),
        pool1=nn.MaxPool2d(3, 2),
        conv2=nn.Conv2d(6, 20, 3, padding=1),
        scaled=nn.BatchNorm2d(20),
        relu6=nn.ReLU6(inplace=True),
        mean=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        fc=nn.Linear(20, 3),
    )
    with torch.no_grad():
        model.scaled.weight.mul_(9)
    return model


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(IMAGES):
        kind = folder / ("cat", "dog", "<b>bird")[number % 3]
        kind.mkdir(exist_ok=True)
        (kind / f"{number}.png").write_bytes(png(number, 70, 60))
    return folder


@pytest.fixture(scope="module")
def answers(photos: Path) -> Answers:
    model = network()
    data = Photos(photos, transform=model.preprocessing)
    folder = photos.parent / "atlas"
    zfnet.atlas.build(model, data, folder, layers=LAYERS, workers=0, progress=False)
    return Answers(model, folder)


@pytest.fixture(scope="module")
def server(answers: Answers) -> Iterator[Server]:
    with Server(answers, Limits(bytes=2**20, pixels=10**6)) as server:
        yield server


@pytest.fixture
def page(server: Server, tmp_path: Path) -> Iterator[Chromium]:
    with Chromium(tmp_path) as page:
        page.viewport(1280, 900)
        page.open(f"http://{server.host}/#/own")
        page.until("document.querySelector('#own-file')")
        yield page
        assert page.complaints() == []


def choose(page: Chromium, file: Path) -> None:
    chosen = page.send("Runtime.evaluate", expression="document.querySelector('#own-file')")["result"]["objectId"]
    page.send("DOM.setFileInputFiles", files=[str(file)], objectId=chosen)


@pytest.fixture
def answered(page: Chromium, tmp_path: Path) -> Chromium:
    (tmp_path / "mine.png").write_bytes(png(77))
    choose(page, tmp_path / "mine.png")
    page.until(ANSWERED)
    return page


def test_a_photograph_of_a_built_atlas_gives_its_activations(answers: Answers, photos: Path) -> None:
    data, checked = Photos(photos), 0
    for number in range(len(LAYERS)):
        for about in answers.atlas.maps(number):
            for rank, image in enumerate(about["image"]):
                content = (photos / data.file(image)).read_bytes()
                found = answers.answer(answers.prepared(content), 100).layers[number]
                (entry,) = [entry for entry in found if entry.map == about["map"]]
                assert entry.value == pytest.approx(about["value"][rank], abs=1e-4)
                assert entry.quantile == pytest.approx((IMAGES - 1 - rank) / IMAGES)
                assert list(entry.box or ()) == about["box"][rank]
                checked += 1
    assert checked > 100


def test_a_chosen_picture_is_answered(answered: Chromium, answers: Answers, tmp_path: Path) -> None:
    expected = answers.answer(answers.prepared(png(77)))
    rows = "[...document.querySelectorAll('.own-classes tbody th')].map((cell) => cell.textContent)"
    assert answered.evaluate(rows) == [entry.name for entry in expected.classes]
    maps = "[...document.querySelectorAll('.own-map b')].map((cell) => cell.textContent)"
    assert answered.evaluate(maps) == [f"map {entry.map}" for entry in expected.layers[-1]]
    assert answered.evaluate("document.querySelectorAll('.own-list > li:not([hidden])').length") == 16
    answered.click(".own-more")
    assert answered.evaluate("document.querySelectorAll('.own-list > li:not([hidden])').length") == 20
    assert answered.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert answered.evaluate("document.title").startswith("Your own image")


def test_a_map_that_is_pressed_shows_its_unit(answered: Chromium, answers: Answers) -> None:
    answered.click(".switch.many button:nth-child(1)")
    answered.until("document.querySelector('.own-unit h3')?.textContent.startsWith('relu1')")
    answered.click(".own-list li:nth-child(3) button")
    found = answers.answer(answers.prepared(png(77))).layers[0][2]
    answered.until(f"document.querySelector('.own-unit h3').textContent === 'relu1 map {found.map}'")
    assert found.said[1:] in answered.evaluate("document.querySelector('.own-unit .value').textContent")
    assert answered.evaluate("document.querySelectorAll('.own-nine li').length") == 9
    assert answered.evaluate("document.querySelector('.histogram .mark') !== null")
    box = "['x', 'y', 'width', 'height'].map((name) => Number(document.querySelector('.own-box').getAttribute(name)))"
    top, left, bottom, right = found.box
    assert answered.evaluate(box) == pytest.approx([left, top, right - left, bottom - top], abs=1)
    assert answered.evaluate("document.querySelector('.own-figures img').naturalWidth") == right - left
    answered.click(".own-unit h3 a")
    answered.until(f"location.hash === '#/relu1/{found.map}' && document.querySelector('.histogram')")
    answered.evaluate("history.back()")
    answered.until(ANSWERED)  # the picture is still there


@pytest.mark.parametrize("way", ["mouse", "keyboard"])
def test_a_place_is_asked_about(answered: Chromium, answers: Answers, way: str) -> None:
    if way == "mouse":
        answered.click(".own-picture")
        said = answered.until(f"/^Units that see the pixel at row/.test({PLACE}) && {PLACE}")
        row, column = map(int, re.findall(r"\d+", said))
        assert abs(row - SIZE // 2) <= 1 and abs(column - SIZE // 2) <= 1
    else:
        answered.evaluate("document.querySelector('.own-picture').focus()")
        for key in ("ArrowUp", "ArrowLeft", "ArrowLeft", "Enter"):
            answered.press(key)
        step = round(SIZE / 32)
        row, column = SIZE // 2 - step, SIZE // 2 - 2 * step
    answered.until(f"{PLACE} === 'Units that see the pixel at row {row}, column {column}'")
    answered.until(ANSWERED)
    expected = answers.see(answers.prepared(png(77)), row, column)[-1]
    maps = "[...document.querySelectorAll('.own-map b')].map((cell) => cell.textContent)"
    assert answered.evaluate(maps) == [f"map {entry.map}" for entry in expected]
    answered.click(".own-back")
    answered.until(f"{PLACE} === 'Maps, the most unusual first'")
    assert answered.evaluate("getComputedStyle(document.querySelector('.own-back')).display") == "none"
    assert answered.evaluate("location.hash") == "#/own"  # the keys did not lead to another page


def test_an_occlusion_map_is_shown_and_hidden(answered: Chromium) -> None:
    answered.click(".own-occlusion button")
    answered.until("document.querySelector('.own-heat:not([hidden])')")
    said = answered.evaluate("document.querySelector('.own-occlusion .meaning').textContent")
    assert "without a square, at least" in said and "Orange" in said
    painted = "document.querySelector('.own-heat').getContext('2d').getImageData(0, 0, 48, 48).data.some((n) => n > 0)"
    assert answered.evaluate(painted)
    answered.click(".own-occlusion button")
    assert answered.evaluate("document.querySelector('.own-heat').hidden")


def transfer(content: bytes, name: str, kind: str) -> str:
    """JavaScript that makes a DataTransfer with a file."""
    data = json.dumps(base64.b64encode(content).decode())
    return f"""(() => {{
        const bytes = Uint8Array.from(atob({data}), (letter) => letter.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], {json.dumps(name)}, {{ type: {json.dumps(kind)} }}));
        return transfer;
    }})()"""


def test_a_picture_is_dropped_or_pasted(page: Chromium) -> None:
    for event, key in (("DragEvent('drop'", "dataTransfer"), ("ClipboardEvent('paste'", "clipboardData")):
        data = transfer(png(5), "dropped.png", "image/png")
        page.evaluate(
            f"document.body.dispatchEvent(new {event}, {{ bubbles: true, cancelable: true, {key}: {data} }}))"
        )
        page.until(ANSWERED)
        name = "dropped.png" if key == "dataTransfer" else "the pasted picture"
        page.until(f"document.querySelector('.own-status').textContent === '{name}: answered.'")
        page.evaluate("document.querySelector('.own-result').replaceChildren()")
    page.evaluate("document.body.dispatchEvent(new ClipboardEvent('paste', { bubbles: true }))")
    page.until("document.querySelector('.own-status').textContent === 'There is no picture in what was pasted.'")
    page.evaluate("document.body.dispatchEvent(new DragEvent('drop', { bubbles: true }))")
    page.until("document.querySelector('.own-status').textContent.startsWith('What you dropped has no file')")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture", "Cannot load the picture: not an image of a known format."),
        (png(1)[:200], "Cannot load the picture: "),
        (b"\0" * (2**20 + 1), "big.png is larger than the 1 MiB that are taken."),
        (b"", "Cannot load the picture: the file is empty (zero bytes)."),
    ],
    ids=["text", "cut", "large", "empty"],
)
def test_what_is_refused_is_said_in_a_sentence(server: Server, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "big.png").write_bytes(content)
    with Chromium(tmp_path) as page:
        page.open(f"http://{server.host}/#/own")
        page.until("document.querySelector('#own-file')")
        choose(page, tmp_path / "big.png")
        said = page.until("document.querySelector('.own-status.notice')?.textContent")
        assert said.startswith(message) and said.endswith(".")
        faults = [line for line in page.complaints() if "40" not in line and "41" not in line]
        assert faults == []  # but for the answer itself


def test_a_server_that_has_ended_is_said(answers: Answers, tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_bytes(png(77))
    with Chromium(tmp_path) as page:
        with Server(answers, Limits()) as server:
            page.open(f"http://{server.host}/#/own")
            page.until("document.querySelector('#own-file')")
        choose(page, tmp_path / "mine.png")
        said = page.until("document.querySelector('.own-status.notice')?.textContent")
        assert said == "The server does not answer. Is it still running?"


def test_there_is_no_webcam(page: Chromium) -> None:
    page.click(".own-drop button")
    said = page.until("document.querySelector('.own-status.notice')?.textContent")
    assert said == "No usable webcam was found."


def test_a_frame_of_the_webcam_is_answered(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Chromium(tmp_path) as page:
        page.open(f"http://{server.host}/#/own")
        page.until("document.querySelector('#own-file')")
        page.evaluate(
            """navigator.mediaDevices.getUserMedia = async () => {
                const canvas = document.createElement("canvas");
                [canvas.width, canvas.height] = [64, 48];
                canvas.getContext("2d").fillRect(0, 0, 30, 30);
                window.stream = canvas.captureStream(10);
                setInterval(() => canvas.getContext("2d").fillRect(Math.random() * 60, 0, 3, 40), 30);
                return window.stream;
            }"""
        )
        page.click(".own-drop button")
        page.until("document.querySelector('.webcam button.first:not([disabled])')")
        page.click(".webcam button.first")
        page.until(ANSWERED)
        assert page.evaluate("window.stream.getTracks().every((track) => track.readyState === 'ended')")
        assert page.evaluate("document.querySelector('.webcam').hidden")
        assert page.complaints() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_the_screen_and_the_reader(answered: Chromium, width: int, scheme: str) -> None:
    answered.prefer(color_scheme=scheme)
    answered.viewport(width, 740, phone=width < 400)
    answered.send("Page.reload")
    answered.until("document.querySelector('#own-file')")
    choose(answered, answered.folder / "mine.png")
    answered.until(ANSWERED)
    assert answered.evaluate("document.documentElement.scrollWidth") <= width
    unnamed = """[...document.querySelectorAll('main button, main a, main input, main select')]
        .filter((part) => !(part.textContent.trim() || part.ariaLabel || part.labels?.length))
        .filter((part) => !part.querySelector("[aria-label]")).length"""
    assert answered.evaluate(unnamed) == 0
    assert answered.evaluate("[...document.images].every((image) => image.hasAttribute('alt'))")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(answered: Chromium, scheme: str) -> None:
    if not AXE.exists():
        pytest.skip(f"axe-core is not installed at {AXE}")
    answered.prefer(color_scheme=scheme, reduced_motion="reduce")
    answered.evaluate(AXE.read_text(encoding="utf-8"))
    found = answered.evaluate(
        "axe.run().then(({ violations }) => violations.map((v) => [v.id, v.impact, v.nodes.map((n) => n.html)]))"
    )
    assert [violation for violation in found if violation[1] in ("serious", "critical")] == []


def test_all_can_be_done_by_keyboard(page: Chromium, tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_bytes(png(77))
    choose(page, tmp_path / "mine.png")
    page.until(ANSWERED)
    page.evaluate("document.querySelector('#own-file').focus()")
    reached = []
    for _ in range(12):
        page.press("Tab")
        reached.append(
            page.evaluate(
                "document.activeElement.className || document.activeElement.id || document.activeElement.textContent"
            )
        )
    assert reached[:4] == ["Webcam", "own-picture", "own-class", "Occlusion map"]
    assert reached[4:7] == LAYERS
    page.evaluate("document.querySelector('.own-list li:nth-child(2) button').focus()")
    page.press("Enter")
    name = page.evaluate("document.querySelector('.own-list li:nth-child(2) b').textContent")
    page.until(f"document.querySelector('.own-unit h3').textContent === 'relu6 {name}'")


def test_the_site_alone_does_not_have_it(answers: Answers, tmp_path: Path) -> None:
    with Chromium(tmp_path) as page:
        page.open((answers.atlas.path / "index.html").resolve().as_uri())
        page.until("document.querySelector('h1')")
        assert page.evaluate("[...document.links].every((link) => !link.href.endsWith('#/own'))")
        assert page.evaluate("atlas.pages.own === undefined && window.ZFNET_SERVED === undefined")


def test_the_served_site_leads_to_it(page: Chromium) -> None:
    page.evaluate("location.hash = '#/'")
    page.until("document.querySelector('a[href=\"#/own\"]')")
    page.click("a[href='#/own']")
    page.until("document.querySelector('#own-file')")
