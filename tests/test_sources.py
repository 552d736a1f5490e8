"""The same photographs, whatever they are kept in, give the same scan, with and without workers and in shards."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.datasets import ImageFolder

from zfnet import scan
from zfnet.data.hugging_face import HuggingFace
from zfnet.data.photos import Photos
from zfnet.data.preprocessing import Preprocessing
from zfnet.data.web_dataset import WebDataset
from zfnet.scanning import Scan

COUNT = 23
HOW = Preprocessing(size=16, resize=18)
NETWORK = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 4, 3), nn.ReLU())


def zipped(folder: Path, target: Path) -> Any:
    with zipfile.ZipFile(target / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*.jpg"), reverse=True):
            archive.write(path, path.relative_to(folder).as_posix())
    return Photos(target / "a.zip", transform=HOW)


def tars(folder: Path, target: Path) -> Any:
    photos = Photos(folder)
    for number in range(2):
        with tarfile.open(target / f"{number}.tar", "w") as archive:
            for i in range(number * 12, min(12 + number * 12, COUNT)):
                for kind, content in (
                    ("jpg", (folder / photos.file(i)).read_bytes()),
                    ("cls", b"%d" % photos.labels[i]),
                ):
                    member = tarfile.TarInfo(f"{i:03d}.{kind}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return WebDataset(str(target / "{0..1}.tar"), transform=HOW)


def hugging(folder: Path, target: Path) -> Any:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    photos = Photos(folder)
    images = [{"bytes": (folder / photos.file(i)).read_bytes(), "path": photos.file(i)} for i in range(COUNT)]
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(photos.classes))}
    whole = datasets.Dataset.from_dict({"image": images, "label": photos.labels}, datasets.Features(kinds))
    whole.save_to_disk(str(target / "saved"))
    return HuggingFace(target / "saved", transform=HOW)


SOURCES: dict[str, Callable[[Path, Path], Any]] = {
    "zip": zipped,
    "torchvision": lambda folder, target: ImageFolder(str(folder), HOW),
    "WebDataset": tars,
    "Hugging Face": hugging,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    for n in range(COUNT):
        pixels = np.random.default_rng(n).integers(256, size=(20 + n % 7, 24, 3), dtype=np.uint8)
        path = root / f"class{n % 3}" / f"{n:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path, quality=80)
    return root


def scanned(data: Any, **how: Any) -> Scan:
    return scan(NETWORK, data, ["1", "4"], 3, batch_size=4, gather=True, progress=False, **how)


def assert_same(found: Scan, expected: Scan) -> None:
    assert found.images == expected.images and torch.equal(found.class_images, expected.class_images)
    assert found.statistics and expected.statistics
    for layer in expected:
        pairs = [*zip(found[layer], expected[layer], strict=True)]
        pairs += zip(found.statistics[layer], expected.statistics[layer], strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("source", SOURCES)
def test_the_same_photographs_give_the_same_scan(source: str, folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data, expected = SOURCES[source](folder, tmp_path), scanned(Photos(folder, transform=HOW), workers=0)
    for workers in (0, 2):
        assert_same(scanned(data, workers=workers), expected)
    parts = [scanned(data, workers=2, shard=(number, 3)) for number in (2, 0, 1)]
    assert_same(parts[0].merge(parts[1]).merge(parts[2]), expected)
