"""Tars in WebDataset's layout are the folder they were made of, and what is not whole is refused by name."""

import bz2
import functools
import gzip
import io
import itertools
import json
import lzma
import os
import pickle
import random
import re
import tarfile
import threading
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from experiments.setup.objects import OF_DATA
from zfnet import scan
from zfnet.data import web_dataset
from zfnet.data.batches import Batches
from zfnet.data.photos import Photos
from zfnet.data.preprocessing import Preprocessing, Stored, rgb_tensor
from zfnet.data.tars import BLOCK, members
from zfnet.data.web_dataset import WebDataset, tars_of
from zfnet.errors import BrokenImage, InputError

CONF = Path(__file__).resolve().parent.parent / "conf" / "data" / "web_dataset.yaml"
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
HOW = Preprocessing(size=16, resize=16)


@functools.cache
def picture(seed: int, extension: str = "png", mode: str = "RGB", **options) -> bytes:
    pixels = np.random.default_rng(seed).integers(256, size=(10 + seed % 5, 12, 4), dtype=np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(pixels[..., :3]).convert(mode)
    image.save(file, {"jpg": "jpeg", "ppm": "ppm"}.get(extension, extension), **options)
    return file.getvalue()


def entry(name: str, content: bytes = b"", **about) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in about.items():
        setattr(member, key, value)
    return member, content


def tar(path: Path, *entries, format: int = tarfile.GNU_FORMAT) -> Path:
    """A tar of (name, content), or of what `entry` gives."""
    with tarfile.open(path, "w", format=format, encoding="utf-8", errors="surrogateescape") as archive:
        for name, content in entries:
            member, content = entry(name, content) if isinstance(name, str) else (name, content)
            archive.addfile(member, io.BytesIO(content))
    return path


def shards(folder: Path, count: int = 3, each: int = 4) -> list[Path]:
    """Tars x-0.tar, ..., each with so many pictures and their labels, 0 to 2."""
    return [
        tar(
            folder / f"x-{t}.tar",
            *(
                (f"{n:04d}.{kind}", content)
                for n in range(t * each, (t + 1) * each)
                for kind, content in (("png", picture(n)), ("cls", str(n % 3).encode()))
            ),
        )
        for t in range(count)
    ]


def refused(tars, **more) -> str:
    with pytest.raises(InputError) as caught:
        WebDataset(tars, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(first, second) -> None:
    assert len(first) == len(second)
    for i in range(len(first)):
        (x, label), (y, other) = first[i], second[i]
        assert torch.equal(x, y) and label == other


def read(path: Path) -> list:
    with open(path, "rb") as file:
        return list(members(file.fileno(), str(path)))


# --- the same pictures as in a folder


def test_tars_are_the_folder_they_were_made_of(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = [
        *(picture(n, kind) for n, kind in enumerate(("jpg", "jpeg", "png", "webp", "ppm"))),
        picture(6, "jpg", exif=exif.tobytes()),
        picture(7, "jpg", "CMYK"),
        picture(8, "png", "L"),
        picture(9, "png", "RGBA"),
    ]
    names = ["jpg", "jpeg", "png", "webp", "ppm", "jpg", "JPG", "png", "png"]
    files = [f"{n}.{name}" for n, name in enumerate(names)]
    folder = tmp_path / "folder"
    for n, (file, content) in enumerate(zip(files, kinds, strict=True)):
        (folder / str(n % 2)).mkdir(parents=True, exist_ok=True)
        (folder / str(n % 2) / file).write_bytes(content)
    photos = Photos(folder)
    order = sorted(range(len(files)), key=lambda n: (n % 2, files[n]))
    entries = [[(files[n], kinds[n]), (f"{n}.cls", str(n % 2).encode())] for n in order]
    tar(tmp_path / "a.tar", *itertools.chain(*entries[:4]))
    tar(tmp_path / "b.tar", *itertools.chain(*entries[4:]), format=tarfile.PAX_FORMAT)
    data = WebDataset(tmp_path)
    same(data, photos)
    assert data.classes == photos.classes == ["0", "1"] and data.labels == photos.labels
    assert [data.file(i).rpartition("/")[2] for i in range(9)] == [photos.file(i).rpartition("/")[2] for i in range(9)]
    assert data.file(0) == "a.tar/0.jpg" and data.file(8).startswith("b.tar/")
    photos.transform = data.transform = HOW
    same(data, photos)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    tops = [scan(network, dataset, ["1"], k=3, progress=False, workers=2)["1"] for dataset in (data, photos)]
    assert all(torch.equal(*pair) for pair in zip(*tops, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_read_at_random(tmp_path: Path, workers: int) -> None:
    shards(tmp_path)
    data = WebDataset(tmp_path, transform=HOW)
    order = [11, 0, 5, 5, 9, 1, 10, 2]
    expected = [data[i] for i in order]  # the tars are open when the workers are forked
    batches = list(Batches(data, 3, indices=order, workers=workers))
    assert torch.equal(torch.cat([batch.images for batch in batches]), torch.stack([image for image, _ in expected]))
    assert torch.cat([batch.labels for batch in batches]).tolist() == [label for _, label in expected]


def test_spawned_workers_open_the_tars_themselves(tmp_path: Path) -> None:
    shards(tmp_path)
    data = WebDataset(tmp_path, transform=HOW)
    data[0]
    assert pickle.loads(pickle.dumps(data))._open == {}
    loader = DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert all(torch.equal(image, data[i][0]) for i, (image, _) in enumerate(loader))


def test_threads_read_what_others_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_dataset, "_MOST_OPEN", 1)
    shards(tmp_path)
    data = WebDataset(tmp_path)
    expected, wrong = [data[i][0] for i in range(len(data))], []

    def work(seed: int) -> None:
        for i in random.Random(seed).choices(range(len(data)), k=200):
            if not torch.equal(data[i][0], expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(os.listdir("/proc/self/fd")) < 100 if os.path.exists("/proc/self/fd") else not wrong


# --- the walk over the headers, beside Python's own


@pytest.mark.parametrize("format", FORMATS)
def test_members_are_those_that_python_reads(tmp_path: Path, format: str) -> None:
    chance = random.Random(format)
    names = ["a.png", "deep/" * 12 + "b.png", "é/ü.png", "c" * 90 + ".png", "./d.png", "x y.png", "n\nl.png"]
    names += ["l" * 90 + ".png", "p/" * 70 + "q.png"] if format == "ustar" else ["l" * 300 + ".png", "é" * 200 + ".png"]
    entries = []
    for name in names:
        entries += [
            entry(name, chance.randbytes(chance.choice([0, 1, 511, 512, 513, 3000])), mtime=chance.random() * 9)
        ]
        entries += [entry(name + ".link", type=tarfile.SYMTYPE, linkname="t" * chance.choice([5, 99]))]
        entries += [entry(name + ".hard", type=tarfile.LNKTYPE, linkname=names[0])]
    entries += [entry("folder/", type=tarfile.DIRTYPE), entry("pipe.png", type=tarfile.FIFOTYPE)]
    path = tar(tmp_path / "a.tar", *entries, format=FORMATS[format])
    with tarfile.open(path, errors="surrogateescape", encoding="utf-8") as archive:
        expected = [(m.name, m.offset_data, m.size if m.isreg() else 0, m.isreg()) for m in archive]
    assert [(m.name.rstrip("/"), m.offset, m.length, m.odd is None) for m in read(path)] == expected
    assert len(expected) == len(entries)


def test_a_tar_that_was_cut_is_refused_wherever(tmp_path: Path) -> None:
    whole = tar(tmp_path / "a.tar", ("a.png", picture(1)), ("a" * 150 + ".cls", b"1"), ("b.png", picture(2)))
    content, expected = whole.read_bytes(), read(whole)
    end = -(-(expected[-1].offset + expected[-1].length) // BLOCK) * BLOCK
    for length in [*range(0, end + BLOCK, 97), end, end + BLOCK - 1]:
        whole.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"a\.tar"):
            read(whole)
    for length in (end + BLOCK, end + 2 * BLOCK, len(content)):
        whole.write_bytes(content[:length])
        assert read(whole) == expected


def test_a_header_with_a_changed_bit_is_refused(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", ("a.png", b"x" * 700), ("b.png", b"y"))
    content = path.read_bytes()
    for header in (0, 3 * BLOCK):
        for byte in range(0, BLOCK, 3):
            changed = bytearray(content)
            changed[header + byte] ^= 1 << byte % 8
            path.write_bytes(changed)
            with pytest.raises(InputError, match=rf"a\.tar is damaged at byte {header:,}"):
                read(path)


@pytest.mark.parametrize("packed", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_tars_are_refused(tmp_path: Path, packed) -> None:
    path = shards(tmp_path, 1)[0]
    path.write_bytes(packed(path.read_bytes()))
    assert "is compressed" in refused(path)


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    assert "empty" in refused(tmp_path)
    (tmp_path / "a.tar").write_bytes(picture(0) * 3)
    assert "damaged at byte 0" in refused(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"\0" * 10240)
    assert "no pictures" in refused(tmp_path)
    first, second = shards(tmp_path, 2)
    (tmp_path / "a.tar").write_bytes(first.read_bytes() + second.read_bytes())
    assert "continues after its end" in refused(tmp_path / "a.tar")
    first.write_bytes(first.read_bytes() + bytes(2**20 + 1))
    assert "continues after its end" in refused(first)


def pax(**records: str | bytes) -> tuple[tarfile.TarInfo, bytes]:
    content = b""
    for key, value in records.items():
        text = f" {key.replace('__', '.')}=".encode() + (value if isinstance(value, bytes) else value.encode()) + b"\n"
        length = len(text) + 1
        while len(str(length)) + len(text) != length:
            length += 1
        content += str(length).encode() + text
    return entry("pax", content, type=tarfile.XHDTYPE)


def test_pax_headers_state_name_and_length(tmp_path: Path) -> None:
    header, content = pax(path="long/é.png", size="700")
    body = b"z" * 700
    path = tar(tmp_path / "a.tar", (header, content), entry("short.png", body, size=0))
    raw = bytearray(path.read_bytes())  # addfile wrote no content for a size of 0: put it where the header says it is
    raw[3 * BLOCK : 3 * BLOCK] = body.ljust(2 * BLOCK, b"\0")
    path.write_bytes(raw)
    assert [(m.name, m.length, m.odd) for m in read(path)] == [("long/é.png", 700, None)]
    with tarfile.open(path) as archive:
        assert [(m.name, m.size) for m in archive] == [("long/é.png", 700)]


HOSTILE = {
    "a pax header without records": [entry("x", b"nonsense\n", type=tarfile.XHDTYPE)],
    "a pax record that is too long": [entry("x", b"99 path=a\n", type=tarfile.XHDTYPE)],
    "a pax record of no length": [entry("x", b"0 path=a\n", type=tarfile.XHDTYPE)],
    "a size below 0": [pax(size="-512"), entry("a.png", b"1")],
    "a size of letters": [pax(size="1e3"), entry("a.png", b"1")],
    "a size of many digits": [pax(size="9" * 5000), entry("a.png", b"1")],
    "a size beyond the tar": [pax(size="99999999999"), entry("a.png", b"1")],
    "a global header with a name": [entry("x", pax(path="a")[1], type=tarfile.XGLTYPE), entry("a.png", b"1")],
    "a long name of megabytes": [entry("x", b"a" * 2**17, type=tarfile.GNUTYPE_LONGNAME), entry("a.png", b"1")],
    "a pax name of megabytes": [pax(path="a" * 2**17), entry("a.png", b"1")],
    "pax records of megabytes": [pax(comment="a" * 2**21), entry("a.png", b"1")],
}


@pytest.mark.parametrize("entries", HOSTILE.values(), ids=HOSTILE)
def test_headers_that_lie_are_refused(tmp_path: Path, entries) -> None:
    path = tar(tmp_path / "a.tar", *entries)
    assert refused(path).startswith(str(path))


def test_what_is_no_plain_file_is_skipped(tmp_path: Path) -> None:
    sparse = entry("sparse.png", b"s" * 600)
    sparse[0].type = tarfile.GNUTYPE_SPARSE
    path = tar(
        tmp_path / "a.tar",
        entry("one.png", picture(1)),
        entry("link.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        entry("hard.png", type=tarfile.LNKTYPE, linkname="one.png"),
        entry("pipe.png", type=tarfile.FIFOTYPE),
        sparse,
        pax(GNU__sparse__major="1", GNU__sparse__minor="0"),
        entry("paxsparse.png", b"x" * 100),
        entry("odd.png", b"o" * 100, type=b"M"),
        entry("../up.png", picture(2)),
        entry("/abs.png", picture(2)),
        entry("a\\b.png", picture(2)),
        entry("a//b.png", picture(2)),
        entry("folder/", type=tarfile.DIRTYPE),
        entry(".hidden.png", picture(2)),
        entry("__meta__", b"{}"),
        entry("noextension", b"x"),
        entry("text.txt", b"a caption"),
        entry("two.png", picture(2)),
    )
    with pytest.warns(UserWarning, match=r"11 sample\(s\) are not read, first a\.tar/link\.png \(a link\)"):
        data = WebDataset(path)
    assert [data.file(i) for i in range(len(data))] == ["a.tar/one.png", "a.tar/two.png"]
    reasons = ["a link", "a link", "a named pipe", "a sparse file", "a sparse file", "of type b'M'"]
    odd = [re.search(r"\((.*)\)$", line)[1] for line in data.skipped if "no p" not in line and "not a path" not in line]
    assert odd == reasons
    assert {line for line in data.skipped if "not a path" in line} == {
        f"a.tar/{name} (its name is not a path inside the tar)"
        for name in ("../up.png", "/abs.png", "a\\b.png", "a//b.png")
    }
    assert data.skipped[-1] == "a.tar/text (no picture)"
    assert torch.equal(data[1][0], WebDataset(tar(tmp_path / "b.tar", ("two.png", picture(2))))[0][0])


def test_the_map_of_a_sparse_file_is_passed_over(tmp_path: Path) -> None:
    header = bytearray(entry("s.png", b"")[0].tobuf(tarfile.GNU_FORMAT))
    header[156:157], header[482] = b"S", 1
    header[124:136] = b"%011o\0" % 100
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    more, last = bytearray(BLOCK), bytearray(BLOCK)
    more[504] = 1
    rest = tar(tmp_path / "rest.tar", ("a.png", picture(1))).read_bytes()
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(header + more + last) + b"d" * 100 + bytes(BLOCK - 100) + rest)
    assert [(m.name, m.offset, m.odd) for m in read(path)] == [
        ("s.png", 3 * BLOCK, "a sparse file"),
        ("a.png", 5 * BLOCK, None),
    ]
    with tarfile.open(path) as archive:
        assert archive.getmembers()[1].offset_data == 5 * BLOCK


# --- samples


def grouped(names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """WebDataset's rule, as its documentation has it."""
    samples: list[tuple[str, list[str]]] = []
    for name in names:
        match = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", name)
        assert match
        if not samples or samples[-1][0] != match[1]:
            samples.append((match[1], []))
        samples[-1][1].append(match[2].lower())
    return samples


def test_samples_are_webdatasets(tmp_path: Path) -> None:
    names = ["a.png", "a.cls", "a.b.c", "d.e/f.PNG", "d.e/f.seg.png", "d/g.json", "d/g.png", "h.left.png", "h.png"]
    contents = [b"{}" if name.endswith("json") else b"7" if name.endswith("cls") else picture(1) for name in names]
    data = WebDataset(tar(tmp_path / "a.tar", *zip(names, contents, strict=True)))
    expected = [(key, kinds) for key, kinds in grouped(names) if "png" in kinds]
    assert [data.file(i).lower() for i in range(len(data))] == [f"a.tar/{key}.png" for key, _ in expected]
    assert data.labels == [7, -1, -1, -1] and data.classes == [str(n) for n in range(8)]


def test_the_picture_of_several_is_asked_for(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", ("a.jpg", picture(1, "jpg")), ("a.png", picture(2)), ("a.left.png", picture(3)))
    assert "a has jpg and png; say which with picture=" in refused(path)
    for name, file in (("jpg", "a.jpg"), (".PNG", "a.png"), ("left.png", "a.left.png")):
        assert WebDataset(path, picture=name).file(0) == f"a.tar/{file}"
    with pytest.warns(UserWarning):
        assert "asked for is .seg.png" in refused(path, picture="seg.png")


def test_keys_and_names_that_come_again_are_refused(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", ("a.png", picture(1)), ("b.png", picture(1)), ("a.cls", b"1"))
    assert "has the key a twice, in separate places" in refused(path)
    path = tar(tmp_path / "a.tar", ("a.png", picture(1)), ("a.PNG", picture(1)))
    assert "has a.PNG twice" in refused(path)
    paths = [tar(tmp_path / f"{n}.tar", ("a.png", picture(n))) for n in range(2)]  # of different tars: they may
    assert [WebDataset(paths).file(i) for i in range(2)] == ["0.tar/a.png", "1.tar/a.png"]


LABELS = {
    "numbers": ([("cls", b"2\n"), ("cls", b"0"), ("txt", b"1")], [2, 0, -1], ["0", "1", "2"]),
    "json": ([("json", b'{"label": 3}'), ("json", b'{"caption": "x"}'), ("json", b"[1]")], [3, -1, -1], list("0123")),
    "text of numbers": (
        [("json", b'{"label": "3"}'), ("cls", b"10"), ("json", b'{"label": 2}')],
        [3, 10, 2],
        [*map(str, range(11))],
    ),
    "none": ([("cls", b"-1"), ("json", b'{"label": null}'), ("txt", b"")], [-1, -1, -1], []),
    "names": ([("json", b'{"label": "dog"}'), ("json", b'{"label": "cat"}'), ("txt", b"")], [1, 0, -1], ["cat", "dog"]),
}


@pytest.mark.parametrize("kinds, labels, classes", LABELS.values(), ids=LABELS)
def test_labels(tmp_path: Path, kinds, labels: list[int], classes: list[str]) -> None:
    entries = [
        entry for n, (kind, text) in enumerate(kinds) for entry in ((f"{n}.png", picture(n)), (f"{n}.{kind}", text))
    ]
    data = WebDataset(tar(tmp_path / "a.tar", *entries))
    assert data.labels == labels == [data[i][1] for i in range(3)] and data.classes == classes
    again = WebDataset(tmp_path / "a.tar")
    assert (again.labels, again.classes) == (labels, classes)


def test_a_number_in_cls_comes_before_the_json(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", ("a.json", b'{"label": "no"}'), ("a.png", picture(1)), ("a.cls", b"4"))
    assert WebDataset(path).labels == [4]


BAD_LABELS = {
    "text in cls": ("cls", b"tench"),
    "a fraction in cls": ("cls", b"1.5"),
    "below -1": ("cls", b"-2"),
    "too large": ("cls", b"1000000"),
    "of many digits": ("cls", b"9" * 60),
    "a long cls": ("cls", b"1".rjust(100)),
    "an empty cls": ("cls", b""),
    "no text": ("cls", b"\xff"),
    "no json": ("json", b"{"),
    "deep json": ("json", b"[" * 100_000),
    "a list": ("json", b'{"label": [1, 2]}'),
    "a float": ("json", b'{"label": 1.0}'),
    "true": ("json", b'{"label": true}'),
    "an empty name": ("json", b'{"label": ""}'),
}


@pytest.mark.parametrize("kind, content", BAD_LABELS.values(), ids=BAD_LABELS)
def test_labels_that_are_none_are_refused(tmp_path: Path, kind: str, content: bytes) -> None:
    path = tar(tmp_path / "a.tar", ("a.png", picture(1)), (f"a.{kind}", content))
    assert refused(path).startswith(f"{path}/a.{kind} has no label: ")


def test_numbers_and_names_are_refused(tmp_path: Path) -> None:
    entries = [("a.png", picture(1)), ("a.cls", b"1"), ("b.png", picture(1)), ("b.json", b'{"label": "x"}')]
    path = tar(tmp_path / "a.tar", *entries)
    assert f"a number in {path}/a.cls and a name in {path}/b.json" in refused(path)


def test_names_of_classes(tmp_path: Path) -> None:
    shards(tmp_path)
    assert WebDataset(tmp_path, classes=["x", "y", "z"]).classes == ["x", "y", "z"]
    assert "has the label 2, but classes has 2 names" in refused(tmp_path, classes=["x", "y"])
    (tmp_path / "classnames.txt").write_text("cat\ndog\na bird\n")
    assert WebDataset(tmp_path).classes == ["cat", "dog", "a bird"]
    named = [("a.png", picture(1)), ("a.json", b'{"label": "dog"}'), ("b.png", picture(1))]
    (tmp_path / "more").mkdir()
    path = tar(tmp_path / "more" / "a.tar", *named)
    data = WebDataset(path, classes=["cat", "dog"])
    assert data.labels == [1, -1] and data.classes == ["cat", "dog"]
    assert "no class in classes 'dog'" in refused(path, classes=["cat", "dogs"])


# --- pictures that cannot be read


def test_broken_pictures_are_named_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = bytearray(picture(0))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    contents = [picture(1), b"", b"no picture", picture(2)[:60], bytes(bomb), picture(3), b"\0" * 2**16]
    tar(tmp_path / "a.tar", *((f"{n}.png", content) for n, content in enumerate(contents)))
    monkeypatch.setattr(web_dataset, "MOST_BYTES", 2**16 - 1)
    batches = Batches(WebDataset(tmp_path / "a.tar", transform=HOW), 4, workers=0)
    assert torch.cat([batch.index for batch in batches]).tolist() == [0, 5]
    assert [re.search(r"a\.tar/\d\.png", line)[0] for line in batches.broken] == [
        f"a.tar/{n}.png" for n in (1, 2, 3, 4, 6)
    ]
    assert "empty" in batches.broken[0] and "decompression bomb" in batches.broken[3]
    assert "more than the 65,535 that are read" in batches.broken[-1]


def test_a_tar_that_changes_is_not_read_on(tmp_path: Path) -> None:
    first, second, _ = shards(tmp_path)
    data = WebDataset(tmp_path)
    data[0]
    second.write_bytes(first.read_bytes()[:-BLOCK])
    with pytest.raises(InputError, match=r"x-1\.tar has changed since it was indexed"):
        data[4]
    second.unlink()
    with pytest.raises(InputError, match=r"cannot read .*x-1\.tar"):
        data[4]
    with open(first, "r+b") as file:  # it is open: what is gone of it is noticed
        file.truncate(BLOCK)
    with pytest.raises(BrokenImage, match="the tar ends after 0 of its"):
        data[1]


# --- which tars


def test_patterns(tmp_path: Path) -> None:
    paths = [str(path) for path in shards(tmp_path, 12, 1)]
    (tmp_path / "x-0{1}.tar").write_bytes(b"")
    ordered = sorted(paths)
    assert tars_of(str(tmp_path / "x-{0..11}.tar")) == paths
    assert tars_of(str(tmp_path / "x-{0,3}.tar")) == [paths[0], paths[3]]
    assert tars_of(str(tmp_path / "x-1{,0,1}.tar")) == [paths[1], paths[10], paths[11]]
    assert tars_of(str(tmp_path / "x-[0-9].tar")) == paths[:10]
    assert tars_of([tmp_path / "x-2.tar", str(tmp_path / "x-{0..1}.tar")]) == [paths[2], paths[0], paths[1]]
    assert tars_of(tmp_path / "x-0{1}.tar") == [str(tmp_path / "x-0{1}.tar")]  # it is there
    os.unlink(tmp_path / "x-0{1}.tar")
    assert tars_of(tmp_path) == ordered
    with pytest.raises(InputError, match=r"x-12\.tar does not exist, and 2 more"):
        tars_of(str(tmp_path / "x-{10..14}.tar"))
    for pattern, words in {
        "nothing-*.tar": "no tar matches",
        "x-{9..3}.tar": "goes from 9 to 3",
        "x-{0..9999999}.tar": "goes from 0 to 9,999,999",
        "x-{0..999}{0..9999}.tar": "more than 1,000,000 tars",
    }.items():
        with pytest.raises(InputError, match=words):
            tars_of(str(tmp_path / pattern))
    for address in ("https://a/b.tar", "pipe:curl x", "s3://b/c.tar"):
        with pytest.raises(InputError, match="is not a path"):
            tars_of(address)
    with pytest.raises(InputError, match=r"x-1\.tar is listed twice"):
        tars_of([paths[0], paths[1], paths[1]])
    with pytest.raises(InputError, match="is empty"):
        tars_of([])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no tars"):
        tars_of(tmp_path / "empty")


def test_leading_zeros_are_kept(tmp_path: Path) -> None:
    for name in ("008", "009", "010"):
        tar(tmp_path / f"{name}.tar", ("a.png", picture(1)))
    assert [Path(path).stem for path in tars_of(str(tmp_path / "{008..010}.tar"))] == ["008", "009", "010"]


# --- the index


def indices(folder: Path) -> list[Path]:
    return sorted(folder.glob("index-*.zfnet"))


def never(*_) -> None:
    raise AssertionError("the headers are read again")


def test_the_index_is_kept_and_follows_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    shards(tmp_path / "a")
    first = WebDataset(tmp_path / "a")
    assert len(indices(tmp_path / "a")) == 1
    os.rename(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(web_dataset, "members", never)
    second = WebDataset(str(tmp_path / "b" / "x-{0..2}.tar"))
    assert second.labels == first.labels and [second.file(i) for i in range(12)] == [first.file(i) for i in range(12)]
    assert all(torch.equal(second[i][0], rgb_tensor(second.image(i))) for i in (0, 11))
    with pytest.raises(AssertionError):
        WebDataset(str(tmp_path / "b" / "x-{0..1}.tar"))  # other tars have an index of their own


def test_an_index_of_changed_tars_is_made_anew(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    before = WebDataset(tmp_path, transform=HOW).identity()
    assert WebDataset(tmp_path, transform=HOW).identity() == before
    tar(paths[1], ("new.png", picture(99)), ("new.cls", b"1"))
    data = WebDataset(tmp_path, transform=HOW)
    assert len(data) == 9 and data.file(4) == "x-1.tar/new.png" and data.identity() != before
    content = paths[2].read_bytes()
    os.utime(paths[2], ns=(1, 1))  # the same bytes, written at another time: read anew as well
    again = WebDataset(tmp_path, transform=HOW)
    assert again.identity() != data.identity() and paths[2].read_bytes() == content
    assert len(indices(tmp_path)) == 1


def test_a_damaged_index_is_made_anew(tmp_path: Path) -> None:
    shards(tmp_path)
    data = WebDataset(tmp_path)
    (path,) = indices(tmp_path)
    content = path.read_bytes()
    line = content.index(b"\n") + 1
    for damaged in (content[:-1], content[: line + 5], content[:line] + b"x" + content[line + 1 :], content + b"x"):
        path.write_bytes(damaged)
        assert WebDataset(tmp_path).labels == data.labels and path.read_bytes() == content


def test_a_file_that_is_no_index_is_left_alone(tmp_path: Path) -> None:
    shards(tmp_path)
    mine = tmp_path / "mine.txt"
    mine.write_text("my notes\n")
    assert f"{mine} is not an index of tars" in refused(tmp_path, index=mine)
    assert mine.read_text() == "my notes\n"
    assert "Is a directory" in refused(tmp_path, index=tmp_path)


def test_where_the_index_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tars").mkdir()
    shards(tmp_path / "tars")
    data = WebDataset(tmp_path / "tars", index=tmp_path / "new" / "place")
    assert (tmp_path / "new" / "place").is_file() and not indices(tmp_path / "tars")
    with monkeypatch.context() as patch:
        patch.setattr(web_dataset, "members", never)
        assert WebDataset(tmp_path / "tars", index=tmp_path / "new" / "place").labels == data.labels

    def full(*_) -> None:
        raise InputError("cannot write: no space left")

    monkeypatch.setattr(web_dataset, "write_sealed", full)
    assert WebDataset(tmp_path / "tars").labels == data.labels  # beside the tars: only if it can be
    assert "no space left" in refused(tmp_path / "tars", index=tmp_path / "other")


def test_identity_is_of_all_that_items_depend_on(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", ("a.png", picture(1)), ("a.left.png", picture(2)), ("a.json", b'{"label": "x"}'))
    made = [
        WebDataset(path, transform=HOW),
        WebDataset(path, transform=Preprocessing(size=8, resize=8)),
        WebDataset(path, transform=HOW, picture="left.png"),
        WebDataset(path, transform=HOW, classes=["y", "x"]),
        WebDataset(path),
    ]
    assert len({data.identity() for data in made}) == len(made)
    assert WebDataset(path, transform=lambda image: torch.zeros(3, 2, 2)).basis() is None


# --- from the command line


def configured(transform=HOW, **settings):
    config = OmegaConf.merge(OmegaConf.load(CONF), settings)
    for key in OF_DATA:
        config.pop(key, None)
    return instantiate(config)(transform)


def test_splits_are_folders_or_in_the_pattern(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "f" / split).mkdir(parents=True)
        tar(tmp_path / "f" / split / "a.tar", (f"{split}.png", picture(1)))
        tar(tmp_path / f"p-{split}-0.tar", (f"{split}.png", picture(1)))
    for split in ("train", "val"):
        for root in ("f", "p-{split}-{0..0}.tar"):
            assert configured(root=str(tmp_path / root), split=split).file(0).endswith(f"{split}.png")
    whole = str(tmp_path / "p-{train,val}-0.tar")
    assert len(configured(root=whole)) == 2 and len(configured(root=[str(tmp_path / "p-val-0.tar")])) == 1
    for transform, split in ((HOW, "train"), (Stored(HOW), "val"), (Stored(HOW), "train")):
        with pytest.raises(InputError, match="does not say which tars belong to the split"):
            configured(transform, root=whole, split=split)


def test_real_photographs(real_data: Path, tmp_path: Path) -> None:
    photos = Photos(real_data / "imagenet_samples", transform=HOW)
    files = [(photos.file(i), (photos.root / photos.file(i)).read_bytes()) for i in range(0, 801, 50)]
    samples = [
        entry
        for n, (file, content) in enumerate(files)
        for entry in ((f"{n:03d}.jpg", content), (f"{n:03d}.json", json.dumps({"label": file}).encode()))
    ]
    data = WebDataset(tar(tmp_path / "a.tar", *samples), transform=HOW)
    assert all(torch.equal(data[n][0], photos[i][0]) for n, i in enumerate(range(0, 801, 50)))
    assert [data.classes[label] for label in data.labels] == [file for file, _ in files]
