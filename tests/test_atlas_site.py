"""The pages of an atlas in a real browser, by double click and over a server: what they show is what the data say."""

import functools
import http.server
import io
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.atlases import HOSTILE, LAYERS, Layer, put, read, write_atlas
from tests.chromium import PROGRAM, Chromium

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on the path")
AXE = Path(sys.prefix) / "node_modules" / "axe-core" / "axe.min.js"
PAGES = {
    "overview": "#/",
    "layer": "#/layer/block.2%2Frelu?sort=fires",
    "map": "#/block.2%2Frelu/3",
    "masked": "#/relu1/4?view=masked",
    "boxes": "#/relu6/5?view=image",
    "larger": "#/relu3/2",
    "dead": "#/relu3/35",
    "image": "#/image/{image}",
    "compare": "#/units/relu1:17,block.2%2Frelu:3",
    "atlases": "#/units/relu1:17?with=../other",
    "search": "#/search?q=dog",
    "lost": "#/relu9/3",
}
NAME = "block.2/relu"
BLOCK = 1  # its number
HEADING = "document.querySelector('#main h1')?.textContent"
WRITTEN = """(async () => {
    await atlas.load("images");  // a map's page is drawn before the names of its images are read
    await new Promise((go) => setTimeout(go));
    return document.querySelector("#main").innerText;
})()"""
CELLS = "[...document.querySelectorAll('.maps li a')].map((link) => Number(link.hash.split('/').pop()))"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four atlases side by side, each in its folder."""
    folder = tmp_path_factory.mktemp("atlases")
    write_atlas(folder / "plain")
    write_atlas(folder / "none", pixels="none")
    write_atlas(folder / "hostile", hostile=True)
    write_atlas(folder / "other", seed=1, title="Another atlas", model="other layers")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """The address at which the folder is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


class Reader:
    """Somebody who reads the atlases of a folder in a window of the browser."""

    def __init__(self, browser: Chromium, base: str, folder: Path) -> None:
        self.browser, self.base, self.folder = browser, base, folder
        self.image = read(folder / "plain", "images")["id"][0]

    def open(self, hash: str, atlas: str = "plain") -> None:
        """Open an address in a window that knows nothing."""
        self.browser.new_window()
        self.browser.open(f"{self.base}/{atlas}/index.html{hash.format(image=self.image)}")
        self.settle()

    def settle(self) -> str:
        """Wait until the page of the address is drawn; its heading."""
        self.browser.until("window.atlas?.current && atlas.current.key === atlas.read(location.hash).key")
        return self.browser.until(HEADING)

    def go(self, hash: str) -> str:
        self.browser.evaluate(f"void (location.hash = {json.dumps(hash)})")
        return self.settle()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.browser, name)

    def text(self, selector: str) -> str:
        return self.browser.until(f"document.querySelector({json.dumps(selector)})?.innerText")

    def all(self, selector: str, expression: str = "e.textContent") -> list[Any]:
        return self.browser.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => {expression})")

    def choose(self, selector: str, value: str) -> None:
        """Choose an entry of a list."""
        self.browser.evaluate(
            f"""(() => {{
                const list = document.querySelector({json.dumps(selector)});
                list.value = {json.dumps(value)};
                list.dispatchEvent(new Event("change", {{ bubbles: true }}));
            }})()"""
        )

    def picture(self, selector: str) -> np.ndarray:
        """The pixels of an element on the screen."""
        return np.asarray(Image.open(io.BytesIO(self.browser.screenshot(selector))).convert("RGB")).astype(int)


@pytest.fixture(params=["file", "http"])
def reader(request: pytest.FixtureRequest, browser: Chromium, folder: Path, server: str) -> Iterator[Reader]:
    """A reader on a wide screen; after the test the page must have had no complaint."""
    browser.viewport(1280, 900)
    browser.prefer(color_scheme="light")
    browser.complaints()
    yield Reader(browser, folder.as_uri() if request.param == "file" else server, folder)
    assert not browser.complaints()


over_a_server = pytest.mark.parametrize("reader", ["http"], indirect=True)
from_a_file = pytest.mark.parametrize("reader", ["file"], indirect=True)


# --- every view says what the data say


def test_the_overview_draws_the_network_and_every_layer(reader: Reader) -> None:
    reader.open(PAGES["overview"])
    assert reader.settle() == "Made-up atlas"
    assert reader.all(".network a .name") == [layer.name for layer in LAYERS]
    assert reader.all(".network .size")[:2] == ["3 @ 64\u00d764", "24 @ 16\u00d716"]
    assert reader.all(".layers h3 a") == [layer.name for layer in LAYERS]
    assert "3 dead" in reader.all(".layers .facts")[BLOCK]
    assert reader.text(".notice") == "The weights are random: this network has learned nothing."
    reader.until("document.querySelectorAll('[data-layer=\"0\"] li').length === 12")
    provenance = dict(zip(reader.all(".provenance th"), reader.all(".provenance td"), strict=True))
    assert provenance["seed"] == "0"


@from_a_file
def test_a_deep_network_shows_all_its_layers(reader: Reader) -> None:
    """Of 400 convolutions those of the layers are drawn; the rest is counted."""
    deep = reader.folder / "deep"
    shutil.copytree(reader.folder / "plain", deep)
    index = read(deep, "index")
    own = index["network"]
    index["network"] = [step | {"layer": None, "name": f"{step['name']}.{i}"} for i in range(50) for step in own] + own
    put(deep, "index", index)
    reader.open(PAGES["overview"], "deep")
    assert reader.all(".network a .name") == [layer.name for layer in LAYERS]
    assert reader.all(".left-out") == ["\u2026 400 steps"]
    right = reader.all(".network li", "e.getBoundingClientRect().right")
    assert max(right) < 1280


@from_a_file
def test_a_warning_comes_before_the_network(reader: Reader) -> None:
    reader.open(PAGES["overview"])
    above = "document.querySelector('.notice').compareDocumentPosition(document.querySelector('.network')) & 4"
    assert reader.evaluate(above)


def test_a_map_shows_its_nine_and_its_numbers(reader: Reader) -> None:
    reader.open(PAGES["map"])
    item = read(reader.folder / "plain", f"{BLOCK}/0")[3]
    images = read(reader.folder / "plain", "images")
    names = [images["file"][images["id"].index(image)] for image in item["image"]]
    reader.until(f"document.querySelector('.nine .file').title === {json.dumps(names[0])}")
    assert reader.all(".nine .file", "e.title") == names
    assert [float(value) for value in reader.all(".nine .value")] == pytest.approx(item["value"], rel=1e-3)
    assert reader.all(".nine a", "e.hash") == [f"#/image/{image}" for image in item["image"]]
    assert len(reader.all(".nine .tile.crop")) == len(reader.all(".nine .tile.projection")) == 9
    assert reader.all(".nine .tile.crop", "e.ariaLabel")[1] == f"crop 2 of 9 of map 3, from image {names[1]}"
    assert "27 \u00d7 27 pixels, enlarged 4 times. Grey is zero" in reader.text("#main p.meaning")
    assert len(reader.all(".histogram .winner")) == 9
    assert len(reader.all(".histogram .bar")) == len(item["bins"])
    assert reader.all(".histogram .bar title")[-1].endswith("image" if item["bins"][-1][1] == 1 else "images")
    links = reader.all(".neighbours section:first-child .links a", "decodeURIComponent(e.hash)")
    assert links == [f"#/{LAYERS[layer].name}/{map}" for layer, map, _ in item["weight"]]
    assert len(reader.all(".examples .tile")) == 4
    assert [int(text.replace(",", "")) for text in reader.all(".steps td:last-child")] == item["steps"]
    classes = read(reader.folder / "plain", "index")["classes"]
    assert reader.all("aside tbody th") == [classes[label] for label, *_ in item["classes"]]
    assert reader.all("aside tbody tr", "e.lastChild.textContent")[0] == "25 %"  # chance


@from_a_file
def test_the_histogram_marks_values_in_their_order(reader: Reader) -> None:
    reader.open(PAGES["map"])
    marks = reader.all(".histogram .winner", "Number(/M([\\d.]+)/.exec(e.getAttribute('d'))[1])")
    assert marks == sorted(marks, reverse=True)
    value = read(reader.folder / "plain", f"{BLOCK}/0")[3]["value"]
    bars = reader.all(".histogram .bar", "[Number(e.getAttribute('x')), Number(e.getAttribute('width'))]")
    left, width = bars[-1]
    assert left <= marks[value.index(max(value))] <= left + width + 1  # in the last bin that has an image


@pytest.mark.parametrize("view, kinds", [("crop", ["crop"]), ("projection", ["projection"]), ("masked", ["masked"])])
def test_the_switch_changes_what_the_tiles_show(reader: Reader, view: str, kinds: list[str]) -> None:
    reader.open(PAGES["map"])
    reader.click(f"[data-view={view}]")
    reader.until(f"location.hash.endsWith('?view={view}')")
    reader.until(f"document.querySelector('.nine.{view}')")
    for kind in ("crop", "projection", "masked"):
        assert len(reader.all(f".nine .tile.{kind}")) == (9 if kind in kinds else 0)
    assert reader.all(".switch [aria-pressed=true]", "e.dataset.view") == [view]


def test_whole_images_have_the_box_of_the_unit(reader: Reader) -> None:
    reader.open(PAGES["boxes"])
    item = read(reader.folder / "plain", "2/0")[2]
    assert item["map"] == 5
    style = reader.all(".nine .box", "[e.style.top, e.style.left, e.style.width, e.style.height].map(parseFloat)")
    for (top, left, width, height), box in zip(style, item["box"], strict=True):
        inside = [min(max(edge, 0), 64) * 100 / 64 for edge in box]
        assert [top, left, top + height, left + width] == pytest.approx(inside, abs=0.01)
    reader.until("[...document.querySelectorAll('.nine img')].every((image) => image.naturalWidth)")


def test_a_field_beyond_the_image_is_a_whole_image_with_a_box(reader: Reader) -> None:
    reader.open(PAGES["larger"])
    assert "whole images, with the box of what the unit sees" in reader.text("#main p.meaning")
    assert len(reader.all(".nine .tile .box")) == 18


@over_a_server
def test_values_before_the_clip_are_said(reader: Reader) -> None:
    reader.open("#/relu6/5")
    item = read(reader.folder / "plain", "2/0")[2]
    assert item["unclipped"][0] > 6 == item["value"][0]
    assert f"({item['unclipped'][0]:.4g})" in reader.all(".nine .value")[0]


@from_a_file
def test_a_dead_map_says_so(reader: Reader) -> None:
    reader.open(PAGES["dead"])
    assert "above zero on none of the 60 images" in reader.text(".notice")
    assert not reader.all(".nine")


def test_an_image_lists_its_maps_with_their_boxes(reader: Reader) -> None:
    reader.open(PAGES["image"])
    winners = read(reader.folder / "plain", "winners/0")[str(reader.image)]
    layers = sorted({entry[0] for entry in winners})
    assert reader.all(".switch.many button", "Number(e.dataset.layer)") == layers
    for layer in layers:
        reader.click(f".switch.many [data-layer='{layer}']")
        reader.until(f"location.hash.endsWith('layer=' + encodeURIComponent({json.dumps(LAYERS[layer].name)}))")
        maps = sorted((entry[2], -entry[5], entry[1]) for entry in winners if entry[0] == layer)
        reader.until(f"document.querySelectorAll('.boxes rect').length === {len(maps)}")
        reader.until(
            f"atlas.index.layers[{layer}].name === document.querySelector('.detail b').textContent.split(' ')[0]"
        )
        assert reader.all(".by-layer a b", "Number(e.lastChild.textContent)") == [map for _, _, map in maps]
    reader.point(".by-layer li:last-child a")
    last = maps[-1][2]
    assert reader.until("document.querySelector('.boxes rect.on')?.dataset.map") == str(last)
    assert reader.until(f"document.querySelector('.detail').textContent.includes('map {last}')")
    entry = next(entry for entry in winners if entry[0] == layers[-1] and entry[1] == last)
    box = reader.evaluate("['x', 'y'].map((n) => Number(document.querySelector('.boxes rect.on').getAttribute(n)))")
    assert box == [max(entry[7], 0.5), max(entry[6], 0.5)]


def test_search_finds_layers_maps_classes_and_files(reader: Reader) -> None:
    reader.open("#/search?q=relu3 17")
    assert reader.all("section .links a", "e.hash") == ["#/relu3/17"]
    reader.go("#/search?q=relu")
    reader.until("document.querySelectorAll('section ul li').length === 4")
    reader.go("#/search?q=0003")
    images = read(reader.folder / "plain", "images")
    assert reader.until("document.querySelector('.pictures a')?.title") == "photographs/0003.jpg"
    assert images["file"][images["id"].index(3)] == "photographs/0003.jpg"
    reader.go("#/search?q=dog")
    columns = read(reader.folder / "plain", "0/columns")
    dog = columns["class"].count(1)
    assert reader.until("document.querySelector('section h3 a')?.textContent") == f"all {dog} maps"
    reader.go("#/search?q=nothing of the kind")
    assert reader.until("/Nothing is called/.test(document.querySelector('.said').textContent)")


@over_a_server
def test_typing_into_the_search_keeps_the_focus_and_one_step_of_history(reader: Reader) -> None:
    reader.open(PAGES["overview"])
    steps = reader.evaluate("history.length")
    reader.press("/")
    for letter in "relu":
        reader.press(letter)
        reader.until(f"location.hash.endsWith({json.dumps(letter)})")
    assert reader.until("document.querySelectorAll('section ul li').length === 4")
    assert reader.evaluate("document.activeElement.id") == "find"
    assert reader.evaluate("history.length") == steps + 1


# --- sorting and filtering


def ordered(columns: dict[str, list[Any]], sort: str, descending: bool, classes: list[str]) -> list[int]:
    """The maps in the order of a column: an oracle that knows nothing of the page's code."""
    rows = range(len(columns["map"]))
    if sort == "class":
        key = {
            row: (classes[columns["class"][row]], -columns["agree"][row], row)
            for row in rows
            if columns["class"][row] >= 0
        }
    else:
        key = {row: (columns[sort][row], row) for row in rows if columns[sort][row] is not None}
    known = sorted(key, key=key.get, reverse=descending)
    return [columns["map"][row] for row in [*known, *(row for row in rows if row not in key)]]


@pytest.mark.parametrize("sort", ["map", "strength", "fires", "selectivity", "focus", "class"])
def test_every_sort_both_ways(reader: Reader, sort: str) -> None:
    reader.viewport(1280, 2000)
    reader.open(f"#/layer/{NAME}")  # with a slash as it is
    columns = read(reader.folder / "plain", f"{BLOCK}/columns")
    classes = read(reader.folder / "plain", "index")["classes"]
    if sort != "map":
        reader.choose("#sort", sort)
        reader.until(f"location.hash.includes('sort={sort}')")
    first = reader.evaluate("document.querySelector('.direction').textContent") == "↓"
    for descending in (first, not first):
        words = "descending" if descending else "ascending"
        assert reader.until(f"document.querySelector('.said').textContent.includes({json.dumps(words)})")
        assert reader.evaluate(CELLS) == ordered(columns, sort, descending, classes)
        reader.click(".direction")


@from_a_file
@pytest.mark.parametrize(
    "query, keeps",
    [
        ("class=dog", lambda columns, row: columns["class"][row] == 1),
        ("min=0.75", lambda columns, row: columns["fires"][row] >= 0.75),
        ("dead=hide", lambda columns, row: not columns["dead"][row]),
        ("class=1&min=0.7&dead=hide", lambda columns, row: columns["class"][row] == 1 and columns["fires"][row] >= 0.7),
        ("class=cat&min=1", lambda columns, row: False),
    ],
)
def test_filters(reader: Reader, query: str, keeps: Any) -> None:
    reader.viewport(1280, 2000)
    reader.open(f"#/layer/block.2%2Frelu?{query}")
    columns = read(reader.folder / "plain", f"{BLOCK}/columns")
    kept = [columns["map"][row] for row in range(40) if keeps(columns, row)]
    assert reader.evaluate(CELLS) == kept
    assert reader.text(".said").startswith(f"{len(kept)} of 40 maps")
    assert reader.evaluate("document.querySelector('.empty').hidden") == bool(kept)


@over_a_server
def test_filters_by_hand_change_the_address_and_keep_the_focus(reader: Reader) -> None:
    reader.open(PAGES["layer"])
    reader.click("#min")
    reader.type("75")
    reader.until("location.hash.includes('min=0.75')")
    assert reader.evaluate("document.activeElement.id") == "min"
    reader.click("#dead")
    reader.until("location.hash.includes('dead=hide')")
    reader.choose("#class", "1")
    reader.until("location.hash.includes('class=dog')")
    assert reader.text(".said").startswith(f"{len(reader.evaluate(CELLS))} of 40 maps, by share of images")


@from_a_file
def test_a_long_list_draws_what_is_near_the_window(reader: Reader) -> None:
    reader.viewport(360, 500)
    reader.open("#/layer/block.2%2Frelu")
    reader.until(f"{CELLS}.length > 0")
    drawn = reader.evaluate(CELLS)
    assert 0 < len(drawn) < 40
    reader.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    reader.until(f"{CELLS}.includes(39)")
    assert reader.evaluate(CELLS) == sorted(reader.evaluate(CELLS))


# --- addresses


def test_back_and_forward_restore_page_state_and_place(reader: Reader) -> None:
    reader.viewport(600, 400)
    reader.open(PAGES["overview"])
    reader.go("#/layer/block.2%2Frelu")
    reader.choose("#sort", "strength")
    reader.until("location.hash.includes('sort=strength')")
    reader.evaluate("window.scrollTo(0, 900)")
    reader.until("window.scrollY === 900")
    order = reader.evaluate(CELLS)
    reader.evaluate("document.querySelector('.maps li:last-child a').click()")
    assert reader.settle().startswith("block.2/relu map")
    assert reader.evaluate("window.scrollY") == 0
    reader.evaluate("history.back()")
    reader.until("location.hash.includes('sort=strength')")
    assert reader.settle() == NAME
    assert reader.until("window.scrollY === 900")
    assert reader.evaluate("document.querySelector('#sort').value") == "strength"
    assert set(order) & set(reader.evaluate(CELLS))
    reader.evaluate("history.back()")
    reader.until("document.querySelector('#sort').value === 'map'")
    reader.evaluate("history.back()")
    reader.until(f"{HEADING} === 'Made-up atlas'")
    reader.evaluate("history.go(3)")
    reader.until(f"{HEADING}.startsWith('block.2/relu map')")


@from_a_file
def test_a_sort_brings_the_reader_to_the_top_of_the_list(reader: Reader) -> None:
    reader.viewport(600, 400)
    reader.open("#/layer/block.2%2Frelu")
    reader.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    reader.choose("#sort", "strength")
    reader.until("location.hash.includes('sort=strength')")
    columns = read(reader.folder / "plain", f"{BLOCK}/columns")
    best = columns["map"][int(np.argmax(columns["strength"]))]
    assert reader.until(f"{CELLS}[0] === {best}")
    assert reader.evaluate("document.querySelector('.maps li a').getBoundingClientRect().top < innerHeight")


@pytest.mark.parametrize("page", PAGES)
def test_an_address_in_a_new_window(reader: Reader, page: str) -> None:
    reader.open(PAGES["overview"])
    heading = reader.go(PAGES[page].format(image=reader.image))
    title, address = reader.evaluate("[document.title, location.href]")
    text = reader.evaluate(WRITTEN)
    reader.new_window()
    reader.browser.open(address)
    assert reader.settle() == heading
    assert reader.evaluate(WRITTEN) == text
    assert reader.evaluate("document.title") == title
    assert title != "Made-up atlas" or page == "overview"


@pytest.mark.parametrize(
    "hash, says",
    [
        ("#/layer/nowhere", "no layer “nowhere”. It has: relu1, block.2/relu"),
        ("#/relu1/24", "no map “24”: its maps are 0 to 23"),
        ("#/relu1/-1", "no map “-1”"),
        ("#/relu6/4", "Map 4 of relu6 is not in this atlas: it holds 10 of the layer's 30 maps"),
        ("#/image/999", "The image 999 is not among those"),
        ("#/image/x", "“x” is not the number of an image"),
        ("#/elsewhere", "no page “elsewhere”"),
        ("#/%E0%A4%A/3", "no layer “%E0%A4%A”"),
        ("#/layer/relu1?sort=beauty", "cannot be sorted by “beauty”"),
        ("#/layer/relu1?class=zebra", "no class “zebra”"),
        ("#/units/relu1", "“relu1” does not name a map"),
        ("#/units/relu1:1?with=https://example.org/atlas", "is not a folder as seen from this atlas"),
        ("#/units/relu1:1?with=//example.org/atlas", "is not a folder as seen from this atlas"),
        ("#/units/relu1:1?with=javascript:alert(1)", "is not a folder as seen from this atlas"),
        ("#/own", "no page “own”"),
    ],
)
@from_a_file
def test_a_wrong_address_is_said_with_a_way_back(reader: Reader, hash: str, says: str) -> None:
    reader.open(hash)
    assert says in reader.text("[role=alert]")
    reader.click("#main .buttons a")
    assert reader.until(f"{HEADING} === 'Made-up atlas'")


@pytest.mark.parametrize(
    "file, hash, damage",
    [
        ("data/index.js", "#/", "missing"),
        ("data/1/columns.js", "#/layer/block.2/relu", "missing"),
        ("data/1/0.js", "#/block.2/relu/3", "damaged"),
        ("data/images.js", "#/image/3", "missing"),
    ],
)
def test_a_missing_or_damaged_file_is_said(reader: Reader, file: str, hash: str, damage: str) -> None:
    broken = reader.folder / f"broken-{reader.base[:4]}-{Path(file).stem}"
    shutil.copytree(reader.folder / "plain", broken)
    path = broken / file
    content = path.read_text()
    path.unlink() if damage == "missing" else path.write_text(content[: len(content) // 2])
    reader.new_window()
    reader.browser.open(f"{reader.base}/{broken.name}/index.html{hash}")
    assert file in reader.until("document.querySelector('[role=alert]')?.textContent")
    assert reader.complaints()
    path.write_text(content)  # the reader completes the folder, and tries again
    reader.click("#main .buttons button")
    reader.until("!document.querySelector('[role=alert]')")


def test_a_missing_picture_is_said(reader: Reader) -> None:
    shutil.copytree(reader.folder / "plain", reader.folder / "blind", dirs_exist_ok=True)
    (reader.folder / "blind" / "tiles" / "1" / "0.webp").unlink(missing_ok=True)
    reader.open(PAGES["map"], "blind")
    assert "tiles/1/0.webp could not be shown" in reader.text("#notices")
    assert reader.complaints()


# --- pictures


def test_tiles_are_cut_from_their_sheets(reader: Reader) -> None:
    """A 7 x 7 tile, enlarged a whole number of times, shows the very pixels of its sheet."""
    reader.open("#/relu1/5")
    sheet = np.asarray(Image.open(reader.folder / "plain" / "tiles" / "0" / "0.webp").convert("RGB")).astype(int)
    reader.until("document.querySelector('.nine .tile')")
    reader.evaluate("new Promise((go) => { const i = new Image(); i.onload = go; i.src = 'tiles/0/0.webp'; })")
    for kind, column in (("crop", 3), ("projection", 9 + 3)):
        shown = reader.picture(f".nine li:nth-child(4) .tile.{kind}")
        assert shown.shape == (112, 112, 3)
        stored = sheet[5 * 7 : 6 * 7, column * 7 : (column + 1) * 7]
        assert np.abs(shown - stored.repeat(16, 0).repeat(16, 1)).max() <= 3
    example = reader.picture(".examples li:nth-child(2) .tile")
    stored = sheet[5 * 7 : 6 * 7, 19 * 7 : 20 * 7].repeat(10, 0).repeat(10, 1)
    assert np.abs(example - stored).max() <= 3


def test_overview_tiles_are_cut_from_their_sheet(reader: Reader) -> None:
    reader.open("#/layer/relu1")
    path = reader.folder / "plain" / "tiles" / "0" / "overview-0.webp"
    sheet = np.asarray(Image.open(path).convert("RGB")).astype(int)
    reader.evaluate("new Promise((go) => { const i = new Image(); i.onload = go; i.src = 'tiles/0/overview-0.webp'; })")
    for place in (0, 1):
        shown = reader.picture(f".maps li:has(a[href='#/relu1/18']) .tile:nth-child({place + 1})")
        x = (2 * 2 + place) * 7  # the third pair of the second line
        stored = sheet[7:14, x : x + 7].repeat(9, 0).repeat(9, 1)
        assert np.abs(shown - stored).max() <= 3


@over_a_server
def test_a_mask_hides_the_rest_in_grey(reader: Reader) -> None:
    reader.open("#/relu1/6?view=masked")
    folder = reader.folder / "plain" / "tiles" / "0"
    reader.evaluate(
        "Promise.all(['masks-0.png', '0.webp'].map((f) => new Promise((go) => { const i = new Image(); i.onload = go;"
        " i.src = 'tiles/0/' + f; })))"
    )
    shown = reader.picture(".nine li:nth-child(3) .tile")
    mask = np.asarray(Image.open(folder / "masks-0.png"))[7:14, (2 * 9 + 2) * 7 : (2 * 9 + 3) * 7, 3]
    crop = np.asarray(Image.open(folder / "0.webp").convert("RGB")).astype(int)[42:49, 14:21]
    expected = np.where(mask[..., None] == 255, 128, crop)
    scale = len(shown) // 7
    assert np.abs(shown - expected.repeat(scale, 0).repeat(scale, 1)).max() <= 3


@over_a_server
def test_an_atlas_without_photographs_shows_none(reader: Reader) -> None:
    for hash in ("#/", "#/layer/relu1?view=crop", "#/relu1/4?view=image", f"#/image/{reader.image}", "#/search?q=000"):
        reader.open(hash, "none")
        assert not reader.all("#main img")
        assert not reader.all(".tile.crop, .tile.masked, .tile.example")
    reader.open("#/relu1/4", "none")
    assert len(reader.all(".nine .tile.projection")) == 9


# --- more atlases, saving


def test_the_same_map_of_two_atlases(reader: Reader) -> None:
    reader.open(PAGES["atlases"])
    assert "different networks (nine made-up layers; other layers)" in reader.text(".notice")
    assert reader.all(".compared > li > p") == ["in Another atlas"]
    for number, name in enumerate(("plain", "other")):
        value = read(reader.folder / name, "0/0")[17]["value"][0]
        said = reader.all(".compared > li", "e.querySelector('dd').textContent")[number]
        assert float(said) == pytest.approx(value, rel=1e-3)
        sheets = reader.all(".compared > li", "e.querySelector('.tile').style.backgroundImage")
        assert f"/{name}/tiles/0/0.webp" in sheets[number]


def test_a_list_of_maps_grows_and_shrinks_by_its_form(reader: Reader) -> None:
    reader.open("#/units/")
    reader.choose("#add-layer", NAME)
    reader.click("#add-map")
    reader.type("7")
    reader.press("Enter")
    reader.until("location.hash === '#/units/block.2%2Frelu:7'")
    reader.until("document.querySelectorAll('.compared > li').length === 1")
    reader.click("#with")
    reader.type("../other")
    reader.press("Enter")
    reader.until("document.querySelectorAll('.compared > li').length === 2")
    assert reader.evaluate("document.querySelector('#share').value === location.href")
    reader.click(".compared button")
    reader.until("document.querySelectorAll('.compared > li').length === 0")


def test_numbers_are_saved_as_json(reader: Reader) -> None:
    reader.open(PAGES["map"])
    reader.click(".save:last-child")
    saved = json.loads(reader.downloaded().read_text())
    item = read(reader.folder / "plain", f"{BLOCK}/0")[3]
    assert (saved["layer"], saved["map"], saved["cite"]) == (NAME, 3, "Made up for tests.")
    assert [unit["value"] for unit in saved["strongest"]] == item["value"]
    assert saved["strongest"][0]["file"].startswith("photographs/")
    assert sum(entry["images"] for entry in saved["histogram"]) == 60


@over_a_server
@pytest.mark.parametrize("view", ["pair", "crop", "projection", "masked", "image"])
def test_a_figure_is_saved_as_png(reader: Reader, view: str) -> None:
    reader.open(f"#/relu1/5?view={view}")
    reader.click(".save")
    figure = np.asarray(Image.open(reader.downloaded()).convert("RGB")).astype(int)
    sheet = np.asarray(Image.open(reader.folder / "plain" / "tiles" / "0" / "0.webp").convert("RGB")).astype(int)
    if view in ("pair", "crop", "projection"):
        column = 9 if view == "projection" else 0
        stored = sheet[35:42, 7 * column : 7 * column + 7]
        tile = figure[84 : 84 + 224, 40 : 40 + 224]
        assert np.abs(tile - stored.repeat(32, 0).repeat(32, 1)).max() <= 3
    assert (figure[:20] == 255).all() and (figure[-20:] == 255).all()  # nothing is cut off
    assert figure[-120:].min() < 100  # the lines that say what it is


@from_a_file
def test_a_page_opened_as_a_file_says_why_it_cannot_save_a_picture(reader: Reader) -> None:
    reader.open(PAGES["map"])
    reader.click(".save")
    assert "python -m http.server" in reader.text("#notices")


# --- for everybody


def test_the_keyboard_alone(reader: Reader) -> None:
    reader.open("#/layer/block.2%2Frelu")
    for _ in range(40):
        reader.press("Tab")
        if reader.evaluate("document.activeElement.closest('.maps') !== null"):
            break
    assert reader.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    reader.press("Enter")
    assert reader.settle() == "block.2/relu map 0"
    assert reader.evaluate("document.activeElement.tagName") == "H1"
    reader.press("ArrowRight")
    reader.until(f"{HEADING} === 'block.2/relu map 1'")
    reader.press("3")
    reader.until("location.hash.endsWith('view=projection')")
    reader.press("ArrowRight")
    reader.until(f"{HEADING} === 'block.2/relu map 2'")
    assert reader.evaluate("location.hash").endswith("view=projection")
    reader.press("ArrowLeft")
    reader.until(f"{HEADING} === 'block.2/relu map 1'")
    reader.press("ArrowDown")
    reader.until(f"{HEADING} === 'relu1 map 1'")
    reader.press("ArrowUp")
    reader.until(f"{HEADING} === 'block.2/relu map 1'")
    reader.press("ArrowUp")  # relu6 has some of its maps only: the last one
    reader.until(f"{HEADING} === 'relu6 map 29'")
    reader.evaluate("Math.random = () => 0.5")  # the 55th of 110 maps
    reader.press("r")
    reader.until(f"{HEADING} === 'block.2/relu map 31'")
    reader.press("?")
    assert reader.until("document.querySelector('#help').open")
    assert reader.evaluate("document.activeElement.closest('#help') !== null")
    reader.press("Escape")
    reader.until("!document.querySelector('#help').open")


@from_a_file
def test_keys_do_nothing_in_a_field_or_with_control(reader: Reader) -> None:
    reader.open(PAGES["map"])
    reader.press("r", control=True)
    reader.press("3", control=True)
    reader.press("/")
    assert reader.until("document.activeElement.id") == "find"
    reader.press("ArrowRight")
    reader.press("Escape")
    assert reader.until("document.activeElement.id !== 'find'")
    assert reader.evaluate("location.hash") == PAGES["map"]


@over_a_server
@pytest.mark.parametrize("page", PAGES)
def test_a_narrow_phone_scrolls_down_only(reader: Reader, page: str) -> None:
    reader.viewport(360, 640, phone=True)
    reader.open(PAGES[page])
    assert reader.evaluate("document.documentElement.scrollWidth") <= 360
    beyond = """[...document.querySelectorAll('#main *')].filter((e) => e.getBoundingClientRect().right > 361
        && !e.closest('.network, .wide, .previews, .unseen, .histogram, .nine .whole, .boxes'))
        .map((e) => e.outerHTML.slice(0, 90))"""
    assert reader.evaluate(beyond) == []


@over_a_server
@pytest.mark.parametrize("page", PAGES)
def test_nothing_jumps_while_a_page_loads(reader: Reader, page: str) -> None:
    """The browser's own measure of layout shifts, over the whole load."""
    reader.open(PAGES[page])
    shifts = """new Promise((go) => {
        const all = [];
        const observer = new PerformanceObserver((list) => all.push(...list.getEntries()));
        observer.observe({ type: "layout-shift", buffered: true });
        const of = ({ node }) => node?.outerHTML?.slice(0, 99);
        setTimeout(() => go(all.map(({ value, sources }) => [value, sources.map(of)])), 150);
    })"""
    found = reader.evaluate(shifts)
    assert sum(value for value, _ in found) < 0.001, found


@over_a_server
def test_dark_and_light_have_the_same_grey_behind_projections(reader: Reader) -> None:
    ground = "getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).map(Number)"
    grey = "getComputedStyle(document.querySelector('.tile.projection')).backgroundColor"
    for scheme in ("light", "dark"):
        reader.prefer(color_scheme=scheme)
        reader.open(PAGES["map"])
        assert (sum(reader.evaluate(ground)) < 3 * 64) == (scheme == "dark")
        assert reader.evaluate(grey) == "rgb(128, 128, 128)"


@over_a_server
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_axe_finds_nothing_serious(reader: Reader, page: str, scheme: str) -> None:
    if not AXE.exists():
        pytest.skip(f"axe-core is not installed at {AXE}")
    reader.prefer(color_scheme=scheme)
    reader.open(PAGES[page])
    reader.evaluate("document.querySelectorAll('details').forEach((e) => (e.open = true))")
    reader.evaluate(AXE.read_text() + "; 0")
    found = reader.evaluate(
        "axe.run().then(({ violations }) => violations.map((v) => [v.id, v.impact, v.nodes.map((n) => n.html)]))"
    )
    assert [entry for entry in found if entry[1] in ("serious", "critical")] == []


@from_a_file
@pytest.mark.parametrize("page", PAGES)
def test_hostile_names_are_text(reader: Reader, page: str) -> None:
    reader.open(PAGES[page].replace("../other", "../hostile").replace("dog", "script"), "hostile")
    reader.evaluate("new Promise((go) => setTimeout(go, 50))")
    assert reader.evaluate("window.broken === undefined && document.title !== 'broken into'")
    assert reader.evaluate("document.querySelectorAll('#main script, #main img[src=x], #main [onerror]').length") == 0
    assert reader.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if page == "map":
        item = read(reader.folder / "hostile", f"{BLOCK}/0")[3]
        assert reader.all(".nine .label", "e.title") == [HOSTILE[label] for label in item["label"]]


@from_a_file
def test_a_hostile_search_is_text(reader: Reader) -> None:
    reader.open("#/search?q=%3Cimg%20src%3Dx%20onerror%3D%22window.broken%3D1%22%3E", "hostile")
    assert "“<img src=x" in reader.text(".said")
    assert reader.evaluate("window.broken === undefined && !document.querySelector('#main img[src=x]')")


@over_a_server
def test_without_scripts_the_page_says_so(reader: Reader) -> None:
    reader.new_window()
    reader.send("Emulation.setScriptExecutionDisabled", value=True)
    reader.browser.open(f"{reader.base}/plain/index.html")
    assert "please allow JavaScript" in reader.evaluate("document.querySelector('noscript').textContent")
    assert reader.evaluate("document.querySelector('noscript').getBoundingClientRect().height") > 0


# --- size


@pytest.mark.slow
def test_fifty_thousand_maps(browser: Chromium, tmp_path: Path) -> None:
    """The bounds of the atlas at its largest; measured here and nowhere else."""
    layers = tuple(Layer(f"relu{i}", 10000, 16, 81, 8) for i in range(1, 6))
    write_atlas(tmp_path / "atlas", layers=layers, images=300, copies=True, side=224)
    files = [path for path in (tmp_path / "atlas").rglob("*") if path.is_file()]
    assert len(files) < 4000
    assert sum(path.stat().st_size for path in files) < 0.7e9
    browser.viewport(1280, 900)
    reader = Reader.__new__(Reader)
    reader.browser, reader.base, reader.folder, reader.image = browser, tmp_path.as_uri(), tmp_path, 0
    reader.open("#/layer/relu4", "atlas")
    drawn = """(async (hash) => {
        const begun = performance.now();
        const before = document.querySelector('.said').textContent;
        history.pushState(null, '', hash);
        window.dispatchEvent(new HashChangeEvent('hashchange'));
        while (document.querySelector('.said').textContent === before) await Promise.resolve();
        document.body.offsetHeight; // laid out
        return performance.now() - begun;
    })"""
    queries = ("sort=strength", "sort=class", "sort=focus&order=desc", "sort=focus&class=dog", "sort=fires&min=0.7")
    times = [[reader.evaluate(f"{drawn}('#/layer/relu4?{query}')") for query in queries] for _ in range(3)]
    assert np.min(times, 0).max() < 100, times  # the best of three: other programs run as well
    browser.complaints()
    begun = "performance.clearResourceTimings(); window.begun = performance.now()"
    for map in (17, 5123, 9999):
        reader.evaluate(begun)
        reader.go(f"#/relu3/{map}")
        reader.until("document.querySelectorAll('.nine .tile').length === 18")
        assert reader.evaluate("performance.now() - window.begun") < 300, map
    browser.new_window()
    browser.send("Network.setCacheDisabled", cacheDisabled=True)
    seen = len(browser.events)
    reader.browser.open(f"{reader.base}/atlas/index.html#/relu3/777")
    reader.settle()
    reader.evaluate("new Promise((go) => setTimeout(go, 1000))")
    names = {e["params"]["request"]["url"] for e in browser.events[seen:] if e["method"] == "Network.requestWillBeSent"}
    loaded = [tmp_path / name.split("#")[0].removeprefix(tmp_path.as_uri() + "/") for name in names if "atlas" in name]
    assert sum(path.stat().st_size for path in loaded) < 0.5e6, [(path.name, path.stat().st_size) for path in loaded]
    assert not browser.complaints()
