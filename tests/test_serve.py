"""The served mode: what it says of a picture is what loops over the network say, and strangers get clear answers.

The server runs for real, on a socket, and is asked through http.client and through bare sockets.
"""

import contextlib
import http.client
import io
import itertools
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import sequential
from PIL import Image
from torch import nn

from tests import served
from tests.served import Server, png, saved
from zfnet.atlas.answers import Answers, Ranks, said
from zfnet.atlas.reading import AtlasFolder
from zfnet.atlas.server import Limits, is_local, listen
from zfnet.atlas.writing import read_script
from zfnet.data.preprocessing import Preprocessing
from zfnet.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
CLASSES = [f"class {number}" for number in range(7)]
LAYERS = ["conv1", "relu1", "pool1", "relu6", "fc"]
IMAGES = 23


def network(seed: int = 0, **changes: Any) -> nn.Sequential:
    torch.manual_seed(seed)
    return sequential(
        Preprocessing(**({"size": 32, "resize": 36} | changes)),
        conv1=nn.Conv2d(3, 6, 5, 2),
        relu1=nn.ReLU(inplace=True),
        pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
        conv2=nn.Conv2d(6, 8, 3, padding=1),
        scaled=nn.BatchNorm2d(8),
        relu6=nn.ReLU6(inplace=True),
        mean=nn.AdaptiveAvgPool2d(2),
        flat=nn.Flatten(),
        fc=nn.Linear(32, 7),
    )


class Atlas(NamedTuple):
    model: nn.Sequential
    folder: Path
    pictures: list[bytes]
    answers: Answers


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    model = network()
    with torch.no_grad():
        model.scaled.weight.mul_(8)  # so that ReLU6 clips
        model.conv1.bias[2] = -100  # a map that never fires
    pictures = [png(seed) for seed in range(IMAGES)]
    images = torch.stack([model.preprocessing(Image.open(io.BytesIO(content))) for content in pictures])
    folder = served.write(tmp_path_factory.mktemp("served") / "atlas", model, images, LAYERS, CLASSES)
    return Atlas(model, folder, pictures, Answers(model, folder))


# ---- what the network says -------------------------------------------------------------------------------------------


def test_every_map_of_every_layer_is_what_the_network_gives(atlas: Atlas) -> None:
    for seed in (100, 101, 3):
        image = atlas.answers.prepared(png(seed))
        answer = atlas.answers.answer(image, 100)
        for layer, maps in zip(LAYERS, answer.layers, strict=True):
            clipped = layer == "relu6"
            expected = served.maxima(atlas.model, image[None], layer)
            assert sorted(found.map for found in maps) == list(range(len(expected)))
            for found in maps:
                ((value, row, column),) = expected[found.map]
                assert found.unclipped == pytest.approx(value, abs=1e-5)
                assert found.value == pytest.approx(min(value, 6) if clipped else value, abs=1e-5)
                assert (found.row, found.column) == (row, column)
                assert found.position == found.map and found.fires == (value > 0)


def test_quantiles_are_shares_of_the_images(atlas: Atlas) -> None:
    """Exact where the atlas keeps the strongest values, within the bin of the histogram elsewhere."""
    images = torch.stack([atlas.answers.prepared(content) for content in atlas.pictures])
    everything = {layer: served.maxima(atlas.model, images, layer) for layer in LAYERS}
    exact = 0
    for seed in range(200, 260):
        answer = atlas.answers.answer(atlas.answers.prepared(png(seed)), 100)
        for layer, maps in zip(LAYERS, answer.layers, strict=True):
            for found in maps:
                values = [value for value, _, _ in everything[layer][found.map]]
                smaller = sum(value < found.unclipped for value in values)
                if smaller > IMAGES - served.K and found.unclipped > 0:
                    assert found.quantile == smaller / IMAGES
                    exact += 1
                low = sum(served.bin_of(value) < served.bin_of(found.unclipped) for value in values)
                high = sum(served.bin_of(value) <= served.bin_of(found.unclipped) for value in values)
                assert low / IMAGES <= found.quantile <= high / IMAGES
    assert exact > 100


def test_a_picture_of_the_atlas_gives_what_the_atlas_has(atlas: Atlas) -> None:
    checked = 0
    for number, layer in enumerate(LAYERS):
        for about in atlas.answers.atlas.maps(number):
            for rank, image in enumerate(about["image"]):
                answer = atlas.answers.answer(atlas.answers.prepared(atlas.pictures[image]), 100)
                found = next(entry for entry in answer.layers[number] if entry.map == about["map"])
                assert found.value == pytest.approx(about["value"][rank], abs=1e-4), layer
                assert (found.row, found.column) == (about["row"][rank], about["column"][rank])
                assert found.quantile == (IMAGES - 1 - rank) / IMAGES
                checked += 1
    assert checked > 50


def test_the_most_unusual_maps_come_first(atlas: Atlas) -> None:
    answer = atlas.answers.answer(atlas.answers.prepared(png(300)), 100)
    for maps in answer.layers:
        keys = [(found.fires, found.quantile) for found in maps]
        assert keys == sorted(keys, reverse=True)
    few = atlas.answers.answer(atlas.answers.prepared(png(300)), 2)
    assert few.layers == [maps[:2] for maps in answer.layers]


def test_a_dead_map_is_named_where_it_fires(atlas: Atlas) -> None:
    relu = LAYERS.index("relu1")
    answer = atlas.answers.answer(atlas.answers.prepared(png(300)), 100)
    dead = answer.layers[relu][-1]
    assert (dead.map, dead.dead, dead.fires, dead.quantile) == (2, True, False, 0)
    strong = torch.full((3, 32, 32), 1e4) * atlas.model.conv1.weight[2].mean((1, 2)).sign()[:, None, None]
    (found,) = [entry for entry in atlas.answers.answer(strong, 100).layers[relu] if entry.map == 2]
    assert found.fires and found.dead and found.said == "it fires on none of the 23 images"


def test_classes_are_the_softmax_of_the_outputs(atlas: Atlas) -> None:
    image = atlas.answers.prepared(png(400))
    with torch.no_grad():
        expected = atlas.model(image[None])[0].double().exp()
    expected /= expected.sum()
    classes = atlas.answers.answer(image).classes
    assert [entry.number for entry in classes] == expected.argsort(descending=True)[:5].tolist()
    assert [entry.name for entry in classes] == [CLASSES[entry.number] for entry in classes]
    assert [entry.probability for entry in classes] == pytest.approx(expected.sort(descending=True)[0][:5].tolist())


def test_the_units_that_see_a_pixel_are_those_that_it_can_change(atlas: Atlas) -> None:
    """NaN in one pixel reaches all that see it."""
    image = atlas.answers.prepared(png(500))
    for place in ((0, 0), (13, 27), (31, 31), (16, 2)):
        answer = atlas.answers.see(image, *place, 100)
        for number, layer in enumerate(LAYERS):
            inputs = layer == "relu6"
            clean, touched = (_outputs(atlas.model, x, layer, inputs) for x in (image, _with_nan(image, *place)))
            seen = touched.isnan()
            expected = clean.where(seen, -torch.inf).flatten(1).max(1)
            found = {entry.map: entry for entry in answer[number]}
            if layer == "fc":  # each of its units depends on the whole image
                assert set(found) == set(range(7))
                continue
            assert set(found) == set(seen.flatten(1).any(1).nonzero().flatten().tolist())
            for map, entry in found.items():
                assert seen[map, entry.row, entry.column]
                assert entry.unclipped == pytest.approx(float(expected.values[map]), abs=1e-5)
    with pytest.raises(InputError, match="no pixel 32, 0 in an image of 32 x 32"):
        atlas.answers.see(image, 32, 0)


def _with_nan(image: torch.Tensor, row: int, column: int) -> torch.Tensor:
    image = image.clone()
    image[:, row, column] = torch.nan
    return image


def _outputs(model: nn.Module, image: torch.Tensor, layer: str, inputs: bool) -> torch.Tensor:
    """What a layer gives, or is given: (C, H, W)."""
    found = {}

    def keep(_: nn.Module, given: Any, output: Any) -> None:
        found["x"] = (given[0] if inputs else output).clone()

    module = model.get_submodule(layer)
    handle = module.register_forward_pre_hook(lambda m, given: keep(m, given, None)) if inputs else None
    handle = handle or module.register_forward_hook(keep)
    with torch.no_grad():
        model(image[None])
    handle.remove()
    return found["x"][0] if found["x"].ndim == 4 else found["x"][0, :, None, None]


def test_a_projection_is_that_of_the_deconvnet(atlas: Atlas) -> None:
    image = atlas.answers.prepared(png(600))
    unit = atlas.answers.project(image, LAYERS.index("pool1"), 3)
    best = next(e for e in atlas.answers.answer(image, 100).layers[LAYERS.index("pool1")] if e.map == 3)
    assert (unit.row, unit.column, unit.box, unit.value) == (best.row, best.column, best.box, pytest.approx(best.value))
    box = unit.box
    assert box is not None and unit.crop.shape == unit.projection.shape == (3, box[2] - box[0], box[3] - box[1])
    patches = atlas.answers.deconvnet.project_units(image[None], "pool1", [[0, 3, unit.row, unit.column]])
    grey = (patches.projections[0] == 0).all(0)
    assert (
        torch.equal(unit.projection[:, grey], torch.full_like(unit.projection[:, grey], 0.5))
        or (unit.projection[:, grey].eq(1) | unit.projection[:, grey].eq(0.5)).all()
    )
    rows, columns = slice(max(box[0], 0), min(box[2], 32)), slice(max(box[1], 0), min(box[3], 32))
    inside = slice(rows.start - box[0], rows.stop - box[0]), slice(columns.start - box[1], columns.stop - box[1])
    assert torch.allclose(unit.crop[:, inside[0], inside[1]], atlas.answers.pixels(image)[:, rows, columns])


def test_quantiles_at_every_turn() -> None:
    """Three values are kept of ten: counts are exact from the third on, and never decrease."""
    edges = np.array([-np.inf, -1, -0.1, 0.1, 1, 2, 4, np.inf])
    maps = [{"map": 5, "bins": [[2, 4], [3, 2], [4, 2], [5, 2]], "value": [3.5, 2.5, 1.9]}]
    ranks = Ranks(maps, edges, 10, 3)

    def quantile(value: float) -> float:
        return float(ranks.quantiles(np.array([value]))[0])

    assert [quantile(v) for v in (5, 3.5, 3.4, 2.5, 2.4, 1.9)] == [1, 0.9, 0.9, 0.8, 0.8, 0.7]
    assert quantile(1.0) == pytest.approx(0.6) and quantile(1.45) == pytest.approx(0.65)
    assert quantile(0) == quantile(0.05) == 0 and quantile(-3) == 0
    grid = [quantile(v) for v in np.linspace(-2, 5, 1000)]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(grid))
    few = Ranks([{"map": 0, "bins": [[2, 8], [4, 2]], "value": [1.8, 1.2]}], edges, 10, 3)
    assert [float(few.quantiles(np.array([v]))[0]) for v in (2, 1.5, 1.2, 0.5)] == [1, 0.9, 0.8, 0.8]


def test_quantiles_in_words() -> None:
    assert said(0.998, 1000) == "stronger than in 99.8 % of the 1,000 images"
    assert said(0.99999, 1000) == "stronger than in 99.9 % of the 1,000 images"
    assert said(0.0004, 1000) == "stronger than in less than 0.1 % of the 1,000 images"
    assert said(1, 1000) == "stronger than in all 1,000 images"
    assert said(0, 1000) == "stronger than in none of the 1,000 images"
    assert said(1 - 1e-6, 10**6) == "stronger than in 99.9999 % of the 1,000,000 images"


@pytest.mark.parametrize("kind", ["weights", "architecture", "preprocessing"])
def test_an_atlas_of_another_network_is_refused(atlas: Atlas, kind: str) -> None:
    other = network(1) if kind == "weights" else network(mean=0.5) if kind == "preprocessing" else atlas.model
    if kind == "preprocessing":
        other.load_state_dict(atlas.model.state_dict())
    if kind == "architecture":
        other = network()
        other.load_state_dict(atlas.model.state_dict())
        other.relu1 = nn.LeakyReLU()
    with pytest.raises(
        InputError, match=f"was made with (other weights|another {kind}) than this Sequential has"
    ) as error:
        Answers(other, atlas.folder)
    assert "\n" not in str(error.value)


def test_damage_is_named(atlas: Atlas, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no atlas in .*nowhere: make one with experiment=atlas"):
        AtlasFolder(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"it has no files.json"):
        _ = AtlasFolder(tmp_path).index
    folder = served.write(tmp_path / "a", atlas.model, torch.zeros(3, 3, 32, 32), ["relu1"], CLASSES)
    file = folder / "data" / "0" / "0.js"
    whole = file.read_bytes()
    for content in (whole[:-9], whole.replace(b"fires", b"fired"), b""):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"0.js is damaged \(it is not what files.json says\)"):
            AtlasFolder(folder).maps(0)
    file.write_bytes(b"alert(1)")
    served.seal(folder)
    with pytest.raises(InputError, match=r"0.js is damaged \(it is not a line atlas.put"):
        AtlasFolder(folder).maps(0)
    file.unlink()
    with pytest.raises(InputError, match="cannot read"):
        AtlasFolder(folder).maps(0)


def test_a_data_file_is_a_name_and_a_value() -> None:
    assert read_script(b'atlas.put("maps/0/1", [1, {"a": null}]);\n') == ("maps/0/1", [1, {"a": None}])
    for content in (b"", b"atlas.put()", b'atlas.put("a", 1)', b'atlas.put("a", 1); atlas.put("b", 2);', b"\xff" * 9):
        with pytest.raises(ValueError, match=r"atlas\.put|Extra data|Expecting"):
            read_script(content)


# ---- the server ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(atlas: Atlas) -> Iterator[Server]:
    with Server(atlas.answers, Limits(bytes=2**20, pixels=10**6)) as server:
        yield server


def test_an_answer(server: Server, atlas: Atlas) -> None:
    status, answer = server.ask("/answers?count=3", png(1))
    image = atlas.answers.prepared(png(1))
    expected = atlas.answers.answer(image, 3)
    assert status == 200 and server.headers["cache-control"] == "no-store"
    assert answer["classes"] == [json.loads(json.dumps(entry._asdict())) for entry in expected.classes]
    assert answer["layers"] == json.loads(json.dumps([[e._asdict() for e in maps] for maps in expected.layers]))
    shown = Image.open(io.BytesIO(_decoded(answer["image"])))
    assert torch.allclose(
        torch.from_numpy(np.array(shown)).permute(2, 0, 1) / 255, atlas.answers.pixels(image), atol=1 / 255
    )


def _decoded(address: str) -> bytes:
    import base64

    assert address.startswith("data:image/png;base64,")
    return base64.b64decode(address.partition(",")[2])


def test_the_other_answers(server: Server, atlas: Atlas) -> None:
    image = atlas.answers.prepared(png(1))
    status, unit = server.ask("/projection?layer=2&map=1&row=0&column=4", png(1))
    assert status == 200 and unit["value"] == pytest.approx(atlas.answers.project(image, 2, 1, 0, 4).value)
    assert Image.open(io.BytesIO(_decoded(unit["projection"]))).size == (9, 9)
    status, seen = server.ask("/place?row=3&column=5&count=2", png(1))
    assert status == 200 and [len(maps) for maps in seen["layers"]] == [2] * len(LAYERS)
    status, maps = server.ask("/occlusion?class=3", png(1))
    assert status == 200 and maps["class"] == 3
    with torch.no_grad():
        clean = atlas.model(image[None]).softmax(1)[0, 3]
        top, left, bottom, right = maps["boxes"][1][2]
        image[:, top:bottom, left:right] = 0
        covered = atlas.model(image[None]).softmax(1)[0, 3]
    assert maps["clean"] == pytest.approx(float(clean), abs=1e-5)
    assert maps["probability"][1][2] == pytest.approx(float(covered), abs=1e-5)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/projection?layer=9&map=0", "no layer 9 in the atlas: there are 5, from 0"),
        ("/projection?layer=0&map=99", "no map 99 in conv1: there are 6"),
        ("/projection?layer=0&map=0&row=99&column=0", "no row 99 in conv1"),
        ("/projection?map=0", "layer is missing; give a whole number from 0"),
        ("/projection?layer=-1&map=0", "layer is '-1'; give a whole number"),
        ("/projection?layer=0&map=" + "9" * 5000, "map is '999"),
        ("/place?row=5", "column is missing"),
        ("/place?row=99&column=0", "no pixel 99, 0"),
        ("/occlusion?class=7", "no class 7 in the network: there are 7"),
        ("/answers?count=0", "count is '0'; give a whole number from 1 to 512"),
    ],
)
def test_a_question_that_has_no_answer(server: Server, path: str, message: str) -> None:
    status, answer = server.ask(path, png(1))
    assert status == 400 and message in answer["error"] and "\n" not in answer["error"]


def test_the_first_page_knows_that_it_is_served(server: Server, atlas: Atlas) -> None:
    for path in ("/", "/index.html"):
        status, page = server.ask(path)
        assert status == 200
        assert page.index(b"served.js") < page.index(b"app.js") < page.index(b"own.js") < page.index(b"</body>")
        assert server.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in server.headers["content-security-policy"]
        assert server.headers["x-content-type-options"] == "nosniff"
    assert b"served.js" not in (atlas.folder / "index.html").read_bytes()
    assert server.ask("/served.js")[1].startswith(b'window.ZFNET_SERVED = {"bytes": 1048576')
    for name, kind in (("own.js", "text/javascript"), ("own.css", "text/css"), ("data/index.js", "text/javascript")):
        assert server.ask(f"/{name}")[0] == 200 and server.headers["content-type"] == f"{kind}; charset=utf-8"


# ---- strangers -------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def declared_png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A PNG that says it has this size, whatever follows."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def zipped() -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"\0" * 10**6)
    return file.getvalue()


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(Image.new("RGB", (60, 40), "red"), "JPEG", exif=exif)


def uploads() -> dict[str, tuple[bytes, tuple[int, ...]]]:
    """Pictures that are no ordinary ones, by name, and the statuses that they may have."""
    rgb = Image.open(io.BytesIO(png(7, 64, 48)))
    jpeg, gif = saved(rgb, "JPEG"), saved(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)] * 3)
    tiff, webp, bmp = saved(rgb, "TIFF"), saved(rgb, "WEBP"), saved(rgb, "BMP")
    noise = np.random.default_rng(0)
    deep = Image.fromarray(noise.integers(0, 65536, (40, 50), dtype=np.uint16))
    fine, bad, kind, large = (200,), (400,), (415,), (413,)
    cases = {
        "an empty body": (b"", bad),
        "one byte": (b"\x89", kind),
        "text": (b"hello, this is no picture\n" * 50, kind),
        "html": (b"<!DOCTYPE html><script>alert(1)</script>", kind),
        "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', kind),
        "svg with entities": (b'<!DOCTYPE svg [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><svg>&b;</svg>', kind),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit\n", kind),
        "pdf": (b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", kind),
        "a zip": (zipped(), kind),
        "gzip": (b"\x1f\x8b\x08" + b"\0" * 40, kind),
        "an ELF program": (b"\x7fELF" + b"\0" * 100, kind),
        "a pickle": (b"\x80\x04cos\nsystem\n(S'true'\ntR.", kind),
        "zeros": (b"\0" * 10**5, kind),
        "noise": (noise.bytes(10**5), kind),
        "an icon": (saved(rgb, "ICO"), kind),
        "a tga": (saved(rgb, "TGA"), kind),
        "a photoshop head": (b"8BPS\0\1" + b"\0" * 60, kind),
        "a form": (b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\nhi\r\n--x--\r\n', kind),
        "a png's signature": (b"\x89PNG\r\n\x1a\n", (400, 415)),
        "a png with a false checksum": (png(7)[:-20] + b"\0" * 20, (200, 400)),
        "a png cut in half": (png(7)[: len(png(7)) // 2], bad),
        "a jpeg cut in half": (jpeg[: len(jpeg) // 2], bad),
        "a jpeg of its first 20 bytes": (jpeg[:20], (400, 415)),
        "a webp cut in half": (webp[: len(webp) // 2], (400, 415)),
        "a tiff cut in half": (tiff[: len(tiff) // 2], (400, 415)),
        "a bmp cut in half": (bmp[: len(bmp) // 2], bad),
        "a gif's head": (gif[:13], (400, 415)),
        "a png whose pixels are missing": (declared_png(64, 64), bad),
        "a png of 100,000 x 100,000": (declared_png(100_000, 100_000), large),
        "a png of 2**31 - 1 squared": (declared_png(2**31 - 1, 2**31 - 1), (413, 400)),
        "a png without width": (declared_png(0, 10), (400, 415)),
        "a png of 1 x 100,000": (saved(Image.new("RGB", (1, 100_000))), bad),
        "a png of 100,000 x 1": (saved(Image.new("RGB", (100_000, 1))), bad),
        "a bomb of 1,200 x 1,200 zeros": (declared_png(1200, 1200, b"\0" * 1200 * 3601), large),
        "a bomb within the limit": (declared_png(900, 900, b"\0" * 900 * 2701), fine),
        "a bomb with more rows than it says": (declared_png(64, 64, b"\0" * 10**8), (200, 400)),
        "a gif of 30,000 x 30,000": (b"GIF89a" + struct.pack("<HHBBB", 30000, 30000, 0, 0, 0) + gif[13:], large),
        "a bmp of 60,000 x 60,000": (bmp[:18] + struct.pack("<ii", 60000, 60000) + bmp[26:], large),
        "a ppm of 10**9 x 10**9": (b"P6 1000000000 1000000000 255\n", (413, 400)),
        "a ppm with no pixels": (b"P6 64 64 255\n", bad),
        "a tiff with many tags": (b"II*\0\x08\0\0\0\xff\xff" + b"\0" * 10**5, (400, 415)),
        "a tiff that points to itself": (b"II*\0\x08\0\0\0\0\0\x08\0\0\0", (400, 415)),
        "a png with a large comment": (
            png(7)[:33] + chunk(b"zTXt", b"c\0\0" + zlib.compress(b"a" * 10**8)) + png(7)[33:],
            (200, 400),
        ),
        "an animation": (gif, fine),
        "an animated webp": (saved(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)] * 3), fine),
        "an animated png": (saved(rgb, "PNG", save_all=True, append_images=[rgb.rotate(90)] * 3), fine),
        "cmyk": (saved(rgb.convert("CMYK"), "JPEG"), fine),
        "a palette": (saved(rgb.convert("P")), fine),
        "a palette with transparency": (saved(rgb.convert("P"), transparency=3), fine),
        "16 bits": (saved(deep), fine),
        "one bit": (saved(rgb.convert("1")), fine),
        "grey with alpha": (saved(rgb.convert("LA")), fine),
        "alpha": (saved(rgb.convert("RGBA")), fine),
        "32-bit floats": (saved(Image.new("F", (40, 40)), "TIFF"), bad),
        "32-bit integers": (saved(Image.new("I", (40, 40), 10**6), "TIFF"), bad),
        "smaller than the network's image": (saved(Image.new("RGB", (2, 2))), fine),
        "one pixel": (saved(Image.new("RGB", (1, 1))), fine),
        "jpeg 2000": (saved(rgb, "JPEG2000"), fine),
        **{f"turned by EXIF {number}": (rotated(number), fine) for number in (3, 6, 8, 9)},
        "damaged EXIF": (rotated(6).replace(b"Exif\0\0", b"Exif\0\0\xff\xff", 1), (200, 400)),
        "a png after which more comes": (png(7) + zipped(), fine),
        "more than the limit": (saved(Image.fromarray(noise.integers(0, 256, (700, 700, 3), dtype=np.uint8))), large),
    }
    return cases


UPLOADS = uploads()


def test_there_are_fifty_of_them() -> None:
    assert len(UPLOADS) >= 50


@pytest.mark.parametrize("name", UPLOADS)
def test_an_upload_gets_a_clear_answer(server: Server, name: str) -> None:
    content, statuses = UPLOADS[name]
    status, answer = server.ask("/answers", content)
    assert status in statuses, answer
    if status != 200:
        assert set(answer) == {"error"} and answer["error"] and "\n" not in answer["error"]
        assert "Traceback" not in answer["error"] and "0x" not in answer["error"]
    assert server.ask("/answers?count=1", png(1))[0] == 200


def test_a_photograph_is_turned_upright(server: Server) -> None:
    left, right = Image.new("RGB", (60, 40), "red"), Image.new("RGB", (30, 40), "blue")
    left.paste(right, (30, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise: what is left comes to the top
    _, answer = server.ask("/answers", saved(left, "JPEG", exif=exif))
    shown = Image.open(io.BytesIO(_decoded(answer["image"]))).convert("RGB")
    assert shown.getpixel((16, 3))[0] > 200 and shown.getpixel((16, 29))[2] > 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:{port}"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost@evil.example"},
        {"Host": "192.168.0.1:{port}"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost:{port}"},
        {"Origin": "http://127.0.0.1:{port}.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    ],
    ids=str,
)
def test_other_origins_are_refused(server: Server, headers: dict[str, str]) -> None:
    given = {name: value.format(port=server.port) for name, value in headers.items()}
    status, answer = server.ask("/answers", png(1), **given)
    assert status == 403 and answer["error"].startswith("this server ")
    if "Sec-Fetch-Mode" not in headers:
        assert server.ask("/data/index.js", **given)[0] == 403


def test_its_own_page_is_answered(server: Server) -> None:
    for host in (f"127.0.0.1:{server.port}", f"localhost:{server.port}", f"[::1]:{server.port}", "LocalHost"):
        own = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
        assert server.ask("/answers?count=1", png(1), **own)[0] == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert server.ask("/", **link)[0] == 200  # a link that somebody follows
    assert server.ask("/", **link | {"Sec-Fetch-Dest": "iframe"})[0] == 403


TRAVERSALS = [
    "/../secret",
    "/..%2fsecret",
    "/%2e%2e/secret",
    "/%2e%2e%2fsecret",
    "/data/../../secret",
    "/data/..%2f..%2fsecret",
    "/..\\secret",
    "/..%5csecret",
    "//secret",
    "/./../secret",
    "/....//secret",
    "/link",
    "/linked/secret",
    "/%00",
    "/data/index.js%00.png",
    "/" + "a" * 5000,
    "/data",
    "/data/",
    "/etc/passwd",
    "//etc/passwd",
    "/%2fetc%2fpasswd",
    "/C:/secret",
    "http://127.0.0.1/../secret",
]


@pytest.fixture
def beside(atlas: Atlas) -> Iterator[None]:
    secret = atlas.folder.parent / "secret"
    secret.write_text("root: the secret")
    links = {"link": secret, "linked": secret.parent}
    for name, target in links.items():
        (atlas.folder / name).symlink_to(target)
    yield
    for name in links:
        (atlas.folder / name).unlink()


@pytest.mark.parametrize("path", TRAVERSALS)
@pytest.mark.usefixtures("beside")
def test_no_path_leads_out_of_the_folder(server: Server, path: str) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: {server.host}\r\nConnection: close\r\n\r\n".encode()
    reply = server.raw(request)
    assert re.match(rb"HTTP/1.1 4\d\d ", reply) and b"root:" not in reply, reply[:300]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "GET", "TRACE"])
def test_other_methods_are_refused(server: Server, method: str) -> None:
    status, answer = server.ask("/answers", method=method)
    assert status == 405 and answer["error"] == f"{method} is not for /answers"
    assert "access-control-allow-origin" not in server.headers


@pytest.mark.parametrize(
    "content",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"POST /answers HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /answers HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /answers HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"a" * 10**5 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    ],
    ids=range(12),
)
def test_no_request_ends_the_server(server: Server, content: bytes) -> None:
    server.raw(content, ends=True)
    assert server.ask("/answers?count=1", png(1))[0] == 200


def test_a_body_is_limited_with_and_without_its_length(server: Server) -> None:
    large = b"\x89PNG" + b"\0" * (2**20 + 1)
    status, answer = server.ask("/answers", large)
    assert (status, answer["error"]) == (413, "the file is larger than the limit of 1 MiB")
    parts = [b"\0" * 2**16] * 17
    status, answer = server.ask("/answers", iter(parts))  # without Content-Length
    assert status == 413
    endless = b"10000\r\n" + b"\0" * 2**16 + b"\r\n"
    head = f"POST /answers HTTP/1.1\r\nHost: {server.host}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    reply = server.raw(head + endless * 80)  # five times the limit, and no end
    assert reply.startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_come_is_not_waited_for(atlas: Atlas) -> None:
    with Server(atlas.answers, Limits(seconds=1)) as server:
        head = f"POST /answers HTTP/1.1\r\nHost: {server.host}\r\nContent-Length: 1000\r\n\r\nabc".encode()
        others = [threading.Thread(target=server.raw, args=(head,)) for _ in range(20)]
        for thread in others:
            thread.start()
        assert server.ask("/answers?count=1", png(1))[0] == 200  # meanwhile
        reply = server.raw(head)
        assert reply.startswith(b"HTTP/1.1 408 ") and b"the picture did not arrive within 1 seconds" in reply
        for thread in others:
            thread.join()
        assert server.raw(b"GET / HTTP/1.1\r\nHost: loc") == b""  # its head does not come: it is closed


def test_requests_wait_in_line_and_no_more_than_fit(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    going, begun, ended, order = threading.Event(), threading.Semaphore(0), [], []
    answer = Answers.answer

    def slow(self: Answers, image: torch.Tensor, maps: int) -> Any:
        order.append(threading.get_ident())
        begun.release()
        assert going.wait(60)
        return answer(self, image, maps)

    monkeypatch.setattr(Answers, "answer", slow)
    with Server(atlas.answers, Limits(waiting=2)) as server:

        def ask() -> None:
            ended.append(server.ask("/answers?count=1", png(1)))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        assert begun.acquire(timeout=60)
        while len(ended) < 3:  # one is answered, two wait
            time.sleep(0.01)
        assert len(order) == 1
        assert [(status, answer["error"]) for status, answer in ended] == [
            (503, "busy: too many questions at a time; ask again in a few seconds")
        ] * 3
        assert server.ask("/served.js")[0] == 200  # files do not wait
        going.set()
        for thread in threads:
            thread.join()
    assert sorted(status for status, _ in ended) == [200] * 3 + [503] * 3
    assert len(set(order)) == 1  # one thread runs the network


def test_who_goes_away_leaves_the_line(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    going, begun, calls, answer = threading.Event(), threading.Semaphore(0), [], Answers.answer

    def slow(self: Answers, image: torch.Tensor, maps: int) -> Any:
        calls.append(maps)
        begun.release()
        assert going.wait(60)
        return answer(self, image, maps)

    monkeypatch.setattr(Answers, "answer", slow)
    with Server(atlas.answers, Limits(waiting=1)) as server:
        first = threading.Thread(target=server.ask, args=("/answers?count=1", png(1)))
        first.start()
        assert begun.acquire(timeout=60)
        body = png(1)
        head = f"POST /answers?count=2 HTTP/1.1\r\nHost: {server.host}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head + body)
            _until(lambda: server.ask("/answers?count=3", png(1))[0] == 503)
        replies: list[int] = []
        last = threading.Thread(target=lambda: replies.append(_accepted(server)))
        last.start()
        time.sleep(0.1)
        going.set()
        for thread in (first, last):
            thread.join()
    assert replies == [200] and 2 not in calls


def _accepted(server: Server) -> int:
    while (status := server.ask("/answers?count=4", png(1))[0]) == 503:
        time.sleep(0.01)
    return status


def _until(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(0.01)


def test_a_fault_of_ours_is_said_and_survived(
    atlas: Atlas, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("our own mistake")

    with Server(atlas.answers, Limits()) as server:
        with monkeypatch.context() as patch:
            patch.setattr(Answers, "answer", broken)
            status, answer = server.ask("/answers", png(1))
        assert (status, answer["error"]) == (500, "an error in the server: our own mistake")
        assert server.ask("/answers", png(1))[0] == 200
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_only_this_machine_is_listened_to(atlas: Atlas) -> None:
    assert is_local("127.0.0.1") and is_local("::1") and is_local("localhost") and is_local("127.8.8.8")
    assert not is_local("0.0.0.0") and not is_local("::") and not is_local("example.org")
    with listen("127.0.0.1", 0) as taken:
        assert taken.getsockname()[0] == "127.0.0.1"
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"cannot listen on 127\.0\.0\.1, port {port}: .*; give another port"):
            listen("127.0.0.1", port)
    with pytest.raises(InputError, match=r"cannot listen on 256\.1\.1\.1"):
        listen("256.1.1.1", 0)


# ---- the command -----------------------------------------------------------------------------------------------------

SMALL = ["model=own", "model.architecture._target_=small.small", "model.weights=null", "data=scenes"]


def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(
        "from torch import nn\n\ndef small():\n    return nn.Sequential(nn.Conv2d(3, 4, 5, 2), nn.ReLU(), nn.Flatten())"
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 5, 2), nn.ReLU(), nn.Flatten())
    Preprocessing().attach(model)
    served.write(tmp_path / "atlas", model, torch.zeros(3, 3, 224, 224), ["1"], [])
    command = [
        sys.executable,
        str(ROOT / "experiments" / "run.py"),
        "experiment=serve",
        "atlas=atlas",
        "port=0",
        *SMALL,
    ]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        line = process.stdout.readline()
        match = re.fullmatch(r"atlas at http://127\.0\.0\.1:(\d+)/#/own; Ctrl-C ends it\n", line)
        assert match, line + process.stderr.read()
        connection = http.client.HTTPConnection("127.0.0.1", int(match[1]), timeout=60)
        connection.request("POST", "/answers", png(1))
        assert len(json.loads(connection.getresponse().read())["layers"][0]) == 4
        connection.request("POST", "/occlusion", png(1))  # which the network is still at
        connection.sock.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            connection.getresponse()
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out.strip(), error) == (0, "serve: ended", "")
    assert sorted(set(os.listdir(tmp_path)) - {"__pycache__"}) == ["atlas", "small.py"]


def test_the_command_says_what_is_wrong(run: Callable[..., tuple[int, list[str]]], tmp_path: Path) -> None:
    words = ["experiment=serve", "model=zfnet_small", "model.weights=null"]
    assert run(*words) == (
        2,
        ["run.py: no atlas in outputs/atlas/zfnet_small-scenes: make one with experiment=atlas, or give atlas=FOLDER"],
    )
    served.write(tmp_path / "atlas", network(), torch.zeros(3, 3, 32, 32), ["relu1"], CLASSES)
    status, lines = run(*words, "atlas=atlas")
    assert (
        status == 2 and len(lines) == 1 and "atlas was made with another architecture than this ZFNet has" in lines[0]
    )
    status, lines = run(*words, "port=65536")
    assert status == 2 and lines == ["run.py: port is 65536; give a whole number from 0 to 65535"]
