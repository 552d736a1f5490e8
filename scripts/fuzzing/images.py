"""Folders with one good photograph and one that is damaged, absurd or not a file.

The good one is always read. The other is read into a finite tensor of the right shape, or is named in one printable
line: by BrokenImage, by InputError, or among what the folder leaves out.
"""

import functools
import io
import os
import random
import socket
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from zfnet.data import Batches, Photos, Preprocessing
from zfnet.data.preprocessing import Stored
from zfnet.errors import BrokenImage, InputError, printable

Maker = Callable[[random.Random], bytes]
ABSURD = (0, 1, 2, 3, 7, 127, 128, 255, 256, 1000, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
NUMBERS = ("<H", ">H", "<I", ">I", "<Q", ">Q")
ENDINGS = (".jpg", ".jpeg", ".png", ".PNG", ".tif", ".gif", ".bmp", ".webp", ".ppm", ".jp2", ".jpx", ".apng", ".pnm")
NAMES = (
    "b",
    "a b",
    "é",
    "\x1b[31mred\x1b[0m",
    "two\nlines",
    "tab\there",
    "\udcff\udcfe",
    "\u202ereversed",
    "%s{0}",
    "b" * 200,
)


def case(seed: int, folder: Path) -> str:
    rng = random.Random(seed)
    root = folder / "photos"
    home = root / rng.choice(("", "", "cat", "\x1b[1mcat", "\udce9"))
    home.mkdir(parents=True)
    (home / "good.png").write_bytes(samples()["PNG RGB"])
    name = rng.choice(NAMES[:2] * 5 + NAMES) + rng.choice(ENDINGS)
    if rng.random() < 0.08:
        rng.choice(ODD)(home / name)
    else:
        (home / name).write_bytes(content(rng))
    return judged(rng, root, name)


def judged(rng: random.Random, root: Path, name: str) -> str:
    """The outcome of reading the folder."""
    transform, shape = rng.choice(list(transforms().values()))
    grey_only = 3 if shape is None else shape[0]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data = Photos(root, transform=transform)
    check(len(data.skipped) == 0 or any("not read" in str(warning.message) for warning in said), "left out in silence")
    for warning in said:
        check_line(str(warning.message))
    files = [data.file(i).rpartition("/")[2] for i in range(len(data))]
    check("good.png" in files, "the good photograph is not listed")
    check(name in files or any(name in path for path in data.skipped), "the other file is neither listed nor left out")
    outcomes = {file: outcome(data, i, shape, grey_only) for i, file in enumerate(files)}
    check(outcomes["good.png"] == "read", f"the good photograph is {outcomes['good.png']}")
    if transform is not None and rng.random() < 0.2:  # and so do batches
        batches = Batches(data, 2, workers=0)
        try:
            count = sum(len(batch.index) for batch in batches)
            check(count + len(batches.broken) == len(files), "an image is missing")
        except InputError as error:
            check_line(str(error))
    return outcomes.get(name, "left out")


def outcome(data: Photos, index: int, shape: tuple[int, ...] | None, channels: int) -> str:
    try:
        image, label = data[index]
    except InputError as error:
        check_line(str(error))
        check(printable(data.file(index)) in str(error), "the file is not named")
        return "named broken" if isinstance(error, BrokenImage) else "refused"
    check(isinstance(image, torch.Tensor) and image.ndim == 3 and len(image) == channels, "no image")
    check(shape is None or tuple(image.shape) == shape, f"of shape {tuple(image.shape)}")
    check(bool(image.sum().isfinite()) if image.is_floating_point() else image.dtype == torch.uint8, "not finite")
    check(type(label) is int, "no label")
    return "read"


def check(condition: bool, fault: str) -> None:
    if not condition:
        raise AssertionError(fault)


def check_line(message: str) -> None:
    check(message.isprintable() and 0 < len(message) < 6000, f"not a printable line: {message[:300]!r}")
    message.encode()


@functools.cache
def transforms() -> dict[str, tuple[Any, tuple[int, ...] | None]]:
    return {
        "small": (Preprocessing(size=32, resize=40), (3, 32, 32)),
        "default": (Preprocessing(), (3, 224, 224)),
        "grey": (Preprocessing(size=(32, 24), resize=40, channels="grey", mean=0.4, std=0.2), (1, 32, 24)),
        "warped": (
            Preprocessing(size=32, resize=32, mode="warp", channels="BGR", interpolation="bicubic"),
            (3, 32, 32),
        ),
        "stored": (Stored(Preprocessing(size=32, resize=40), 48), (3, 48, 48)),
        "none": (None, None),
    }


# --- what is not a file


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    home = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name[-80:] if len(os.fsencode(path.name)) > 90 else path.name)
        if not os.path.lexists(path):
            os.rename(path.name[-80:], path.name)
    finally:
        os.chdir(home)


def _ring(path: Path) -> None:
    """Two folders that are linked to each other."""
    for first, second in ((path, path.with_name("other")), (path.with_name("other"), path)):
        first.mkdir(exist_ok=True)
        (first / "link").symlink_to(second)


def _mesh(path: Path) -> None:
    """Folders each of which is linked to all."""
    path.mkdir()
    for i in range(12):
        (path / f"{i}").mkdir()
        for j in range(12):
            (path / f"{i}" / f"to{j}").symlink_to(path / f"{j}")


def _deep(path: Path) -> None:
    """Folders in folders, beyond the longest path there may be."""
    home = os.getcwd()
    try:
        for name in (str(path), *["d" * 40] * 150):
            os.mkdir(name)
            os.chdir(name)
        Path("a.png").write_bytes(samples()["PNG RGB"])
    finally:
        os.chdir(home)


def _sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(3 * 2**30)


ODD: tuple[Callable[[Path], Any], ...] = (
    *(_fifo, _socket, _ring, _mesh, _deep, _sparse, Path.mkdir),
    lambda path: path.symlink_to(path),
    lambda path: path.symlink_to("nothing"),
    lambda path: path.symlink_to("/dev/zero"),
    lambda path: path.symlink_to("/dev/stdin"),
    lambda path: path.symlink_to("/proc/self/mem"),
    lambda path: path.symlink_to(".."),
    lambda path: path.symlink_to("good.png"),
)

# --- files


def content(rng: random.Random) -> bytes:
    """A file: a format's own absurdity, a sample, or one of these with several mutations."""
    kind = rng.random()
    if kind < 0.01:
        return rng.choice((b"", b"x", b"<svg/>", rng.randbytes(300), b"%!PS-Adobe-3.0 EPSF-3.0\n"))
    if kind < 0.02:
        return bomb(*rng.choice(BOMBS))
    data = rng.choice(list(MAKERS.values()))(rng) if kind < 0.5 else rng.choice(list(samples().values()))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 6)) if kind < 0.5 else rng.choice((1, 1, 1, 2, 3, 8))):
        data = rng.choice(MUTATIONS)(rng, data)
    return data


@functools.cache
def samples() -> dict[str, bytes]:
    """A small image in every format and mode that Pillow writes here."""
    noise = np.random.default_rng(0).integers(0, 256, (44, 50, 4), dtype=np.uint8)
    noise[:20] = 90
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    options: dict[str, list[dict[str, Any]]] = {
        "JPEG": [{}, {"progressive": True, "exif": exif}, {"subsampling": 0, "comment": b"c" * 50, "dpi": (9, 9)}],
        "PNG": [{}, {"exif": exif, "dpi": (9, 9)}, {"transparency": 3}, {"save_all": True}],
        "TIFF": [
            *({"compression": c} for c in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "group4")),
            {"exif": exif, "big_tiff": True},
            {"save_all": True},
            {"compression": "lzma"},
            {"compression": "zstd"},
        ],
        "WEBP": [{}, {"lossless": True, "exif": exif}, {"save_all": True}],
        "GIF": [{}, {"save_all": True, "interlace": 1}, {"transparency": 3}],
        "JPEG2000": [{}, {"tile_size": (16, 16)}, {"no_jp2": True, "num_resolutions": 2}, {"irreversible": True}],
        "BMP": [{}],
        "PPM": [{}],
        "MPO": [{"save_all": True}],
    }
    found = {}
    for mode in ("RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F", "PA"):
        image = _in_mode(noise, mode)
        for kind, choices in options.items():
            for number, keywords in enumerate(choices):
                file = io.BytesIO()
                frames = {"append_images": [image.transpose(Image.Transpose.ROTATE_180)]}
                try:
                    image.save(file, kind, **keywords, **frames if "save_all" in keywords else {})
                except (OSError, ValueError, KeyError, TypeError, SystemError):  # the format has no such mode
                    continue
                found[f"{kind} {mode}" + f" {number}" * bool(number)] = file.getvalue()
    return found


def _in_mode(noise: np.ndarray[Any, Any], mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    if mode in ("I", "F"):
        return Image.fromarray(noise[..., 0].astype({"I": np.int32, "F": np.float32}[mode]))
    image = Image.fromarray(noise)
    if mode in ("P", "PA"):
        palette = image.convert("RGB").quantize(16)
        return palette if mode == "P" else palette.convert("PA")
    return image.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr", "LAB") else image.convert(mode)


# --- mutations of any file


def _place(rng: random.Random, data: bytes) -> int:
    """A position, more often near the beginning."""
    return rng.randrange(min(len(data), rng.choice((32, 200, 10**9, 10**9))) or 1)


def _flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if changed:
            changed[_place(rng, data)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _number(rng: random.Random, data: bytes) -> bytes:
    form, start = rng.choice(NUMBERS), _place(rng, data)
    size = struct.calcsize(form)
    number = struct.pack(form, rng.choice(ABSURD) % 256**size)
    return data[:start] + number + data[start + size :]


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _remove(rng: random.Random, data: bytes) -> bytes:
    start = _place(rng, data)
    return data[:start] + data[start + rng.choice((1, 2, 4, 12, 100)) :]


def _splice(rng: random.Random, data: bytes) -> bytes:
    other = rng.choice(list(samples().values()))
    start, end = sorted(rng.randrange(len(other) + 1) for _ in range(2))
    place = _place(rng, data)
    return data[:place] + other[start:end] + data[place + rng.choice((0, end - start)) :]


def _repeat(rng: random.Random, data: bytes) -> bytes:
    start = _place(rng, data)
    part = data[start : start + rng.choice((1, 4, 16, 100))]
    return data[:start] + part * rng.choice((2, 3, 1000)) + data[start:]


def _append(rng: random.Random, data: bytes) -> bytes:
    return data + rng.choice((b"\0" * 5000, b"\xff" * 99, rng.randbytes(300), data))


MUTATIONS = (_flip, _flip, _number, _number, _truncate, _remove, _splice, _repeat, _append)

# --- absurdities of single formats, whole but for the one thing


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


@functools.cache
def bomb(width: int, height: int, kind: int = 0, bits: int = 8, interlaced: int = 0) -> bytes:
    """A whole PNG of zeros."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    packer, packed = zlib.compressobj(1), []
    line = b"\0" * ((width * channels * bits + 7) // 8 + 1)
    for start in range(0, height, 64):
        packed.append(packer.compress(line * min(64, height - start)))
    palette = chunk(b"PLTE", bytes(768)) + chunk(b"tRNS", bytes(256)) if kind == 3 else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + palette
        + chunk(b"IDAT", b"".join([*packed, packer.flush()]))
        + chunk(b"IEND", b"")
    )


BOMBS: tuple[Any, ...] = (
    *((13_300, 13_300, 3), (8_700, 8_700), (6_300, 6_300, 6), (6_400, 6_300, 3), (1, 100_000), (1, 1000), (1000, 1, 6)),
    *((3, 2999, 2), (70_000, 70, 2), (6_000, 6_000, 0, 16), (9_000, 9_000, 2), (100_000, 100_000, 0, 1), (500, 70_000)),
)


def _png(rng: random.Random) -> bytes:
    number, text = struct.Struct(">I"), b"x" * rng.choice((10, 3_000_000))
    extra = [
        chunk(b"zTXt", b"key\0\0" + zlib.compress(text, 1)),
        chunk(b"iTXt", b"key\0\1\0\0\0" + zlib.compress(text, 1)),
        chunk(b"iCCP", b"name\0\0" + zlib.compress(text, 1)),
        chunk(b"tEXt", b"XML:com.adobe.xmp\0" + b'tiff:Orientation="' + rng.choice((b"6", b"99", b"x")) + b'"'),
        chunk(b"eXIf", b"MM\0*" + number.pack(rng.choice(ABSURD)) + rng.randbytes(rng.choice((0, 20, 200)))),
        chunk(b"tRNS", rng.randbytes(rng.choice((0, 1, 2, 6, 300)))),
        chunk(b"PLTE", rng.randbytes(rng.choice((0, 1, 3, 48, 768, 9000)))),
        chunk(b"acTL", struct.pack(">II", rng.choice(ABSURD), 0)),
        chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, *(rng.choice(ABSURD) for _ in range(4)), 1, 1, 0, 0)),
        chunk(b"IDAT", b""),
        chunk(rng.randbytes(4), rng.randbytes(20)),
        number.pack(rng.choice(ABSURD)) + b"IDAT",
    ]
    side = rng.choice((1, 2, 7, 30, 1000, 65536, 2**31 - 1))
    size = rng.choice((30, 30, side)), rng.choice((30, 30, side))
    header = struct.pack(
        ">IIBBBBB", *size, rng.choice((1, 2, 4, 8, 16, 3)), rng.choice((0, 2, 3, 4, 6, 5)), 0, 0, rng.choice((0, 1))
    )
    body = zlib.compress(rng.randbytes(rng.choice((1, 5000, 60_000))), 1)
    chunks = [*rng.sample(extra, rng.randrange(4)), chunk(b"IDAT", body), *rng.sample(extra, rng.randrange(2))]
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def _jpeg(rng: random.Random) -> bytes:
    data = samples()[rng.choice(("JPEG RGB", "JPEG RGB 1", "JPEG L", "JPEG CMYK", "JPEG CMYK 1"))]
    start = next((data.find(mark) for mark in (b"\xff\xc0", b"\xff\xc2") if mark in data), 0)
    trick = rng.randrange(4)
    if trick == 0:  # other sides
        sides = [rng.choice((0, 1, 44, 50, 3000, 8500, 65535)) for _ in range(2)]
        return data[: start + 5] + struct.pack(">HH", *sides) + data[start + 9 :]
    if trick == 1:  # another number of channels, or sampling
        place = start + rng.choice((4, 9, 11, 12, 14))
        return data[:place] + bytes([rng.choice((0, 1, 2, 3, 4, 17, 33, 68, 255))]) + data[place + 1 :]
    if trick == 2:  # a scan again and again
        scan, side = data.rfind(b"\xff\xda"), rng.choice((44, 5000, 8000))
        end = data[scan:].removesuffix(b"\xff\xd9")
        head = data[: start + 5] + struct.pack(">HH", side, side) + data[start + 9 : scan]
        return head + end * rng.choice((1, 20, 3000))
    kind = rng.choice((0xE0, 0xE1, 0xE2, 0xED, 0xFE, 0xDB, 0xC4, 0xDD))
    body = rng.choice((b"Exif\0\0", b"MPF\0", b"ICC_PROFILE\0", b"Photoshop 3.0\0", b"http://ns.adobe.com/xap/1.0/\0"))
    body += rng.choice(
        (b"", b"II*\0" + struct.pack("<I", rng.choice(ABSURD)), rng.randbytes(60), b"8BIM" * 9, b"z" * 60_000)
    )
    return (
        data[:2] + bytes([0xFF, kind]) + struct.pack(">H", rng.choice((len(body) + 2, 2, 0, 65535))) + body + data[2:]
    )


def _tiff(rng: random.Random) -> bytes:
    """A TIFF whose tags are drawn."""
    big, order = rng.random() < 0.3, rng.choice("<>")
    side, tile = rng.choice((1, 16, 40, 3000, 2**31 - 1)), rng.choice((16, 48, 20_000, 65_536, 2**31 - 16))
    compression = rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000, 50001, 34712))
    bits = rng.choice((1, 8, 8, 8, 16, 32))
    tags = {
        256: side,
        257: rng.choice((side, 40)),
        258: bits,
        259: compression,
        262: rng.choice((0, 1, 1, 2, 3, 5, 6, 8)),
    }
    tags |= {277: rng.choice((1, 1, 3, 4)), 284: rng.choice((1, 1, 2))}
    packed = zlib.compress(bytes(rng.choice((1600, 100_000))), 1) if compression in (8, 32946) else rng.randbytes(3000)
    tiled = rng.random() < 0.4
    place = 2000
    tags |= {322: tile, 323: tile, 324: place, 325: len(packed)} if tiled else {273: place, 278: side, 279: len(packed)}
    for _ in range(rng.choice((0, 0, 1, 2))):
        tags[rng.choice((*tags, 274, 320, 330, 338, 339, 347, 530, 700, 33723, 34675, 34665, 37724))] = rng.choice(
            ABSURD
        )
    entries = []
    for tag, value in sorted(tags.items()):
        kind, count = (4, 1) if rng.random() > 0.04 else (rng.randrange(19), rng.choice(ABSURD))
        form = "HHQQ" if big else "HHII"
        entries.append(struct.pack(order + form, tag, kind, count, value % 2**32))
    mark = b"II" if order == "<" else b"MM"
    head = mark + (
        struct.pack(order + "HHHQQ", 43, 8, 0, 16, len(entries))
        if big
        else struct.pack(order + "HIH", 42, 8, len(entries))
    )
    return (head + b"".join(entries) + bytes(16)).ljust(place, b"\0") + packed


def _pnm(rng: random.Random) -> bytes:
    numbers = [
        rng.choice((b"0", b"1", b"3", b"40", b"-5", b"7000", b"70000", b"9" * 30, b"1e5", b"x", b"\xb2"))
        for _ in range(2)
    ]
    most = rng.choice((b"255", b"0", b"1", b"254", b"65535", b"65536", b"99999999"))
    gap = rng.choice((b" ", b"\n", b"\n# note\n", b"#" * 9000, b"\0"))
    kind = rng.choice((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"P7", b"Pf", b"PF", b"P0", b"Py"))
    body = rng.choice((rng.randbytes(9000), b"1 " * 5000, b"255 " * 5000, b"9" * 9000, b""))
    return gap.join([kind, *numbers, most]) + b"\n" + body


def _bmp(rng: random.Random) -> bytes:
    sides = [rng.choice((1, 40, 300, 9000, -40, -1, 0, 2**31 - 1, -(2**31))) for _ in range(2)]
    head, bits, compression = (
        rng.choice((12, 40, 52, 56, 64, 108, 124, 7)),
        rng.choice((1, 2, 4, 8, 16, 24, 32, 0)),
        rng.randrange(7),
    )
    colours = rng.choice((0, 2, 16, 256, 2**31))
    about = struct.pack(
        "<IiiHHIIiiII", head, *sides, 1, bits, compression, rng.choice((0, 999, 2**31)), 1, 1, colours, 0
    )
    body = rng.choice(
        (rng.randbytes(6000), b"\xff\0" * 3000, b"\0\0" * 3000, b"\0\2\xff\xff" * 1500, b"\0\1", bytes(90_000))
    )
    start = rng.choice((54, 54, 1078, 0, 2**31))
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, start) + about.ljust(head, b"\0") + body


def _gif(rng: random.Random) -> bytes:
    data = samples()["GIF P"]
    sides = struct.pack("<HH", *(rng.choice((0, 1, 50, 8000, 65535)) for _ in range(2)))
    if rng.random() < 0.5:
        return data[:6] + sides + data[10:]
    start = data.rfind(b"\x2c", 0, len(data) // 2)
    place = struct.pack("<HH", *(rng.choice((0, 1, 60_000)) for _ in range(2)))
    return data[: start + 1] + place + sides + data[start + 9 :] if start > 0 else data


def _webp(rng: random.Random) -> bytes:
    data = samples()[rng.choice(("WEBP RGB", "WEBP RGBA", "WEBP RGB 1", "WEBP RGB 2"))]
    flags, sides = rng.randrange(64), [rng.choice((0, 43, 49, 5000, 16_382, 2**24 - 1)) for _ in range(2)]
    about = struct.pack("<4sII", b"VP8X", 10, flags) + b"".join(struct.pack("<I", side)[:3] for side in sides)
    body = about + data[12:] if rng.random() < 0.5 else data[12:20] + rng.randbytes(3) + data[23:]
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _jpeg2000(rng: random.Random) -> bytes:
    data = samples()[rng.choice(("JPEG2000 RGB", "JPEG2000 L", "JPEG2000 RGBA 2", "JPEG2000 RGB 1"))]
    if rng.random() < 0.6:  # sides of image and tiles, or the number of channels and their sampling
        start = data.find(b"\xff\x51") + 6
        for _ in range(rng.choice((1, 2))):
            place = start + 4 * rng.randrange(8)
            side = rng.choice((0, 1, 2, 44, 50, 3000, 6000, 2**16, 2**31, 2**32 - 1))
            data = data[:place] + struct.pack(">I", side) + data[place + 4 :]
        return data
    start = data.find(b"\xff\x52") + 4
    place = start + rng.randrange(12)
    return data[:place] + bytes([rng.choice((0, 1, 2, 5, 8, 32, 33, 255))]) + data[place + 1 :]


MAKERS: dict[str, Maker] = {
    "PNG": _png,
    "JPEG": _jpeg,
    "TIFF": _tiff,
    "PNM": _pnm,
    "BMP": _bmp,
    "GIF": _gif,
    "WebP": _webp,
    "JPEG 2000": _jpeg2000,
}
