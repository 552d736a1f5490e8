"""What `save_to_disk` of Hugging Face's `datasets` wrote is the folder of photographs that it was made of."""

import io
import json
import os
import pickle
import re
import socket
import sys
import zlib
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
from zfnet.data.batches import Batches
from zfnet.data.hugging_face import HuggingFace
from zfnet.data.images import as_images
from zfnet.data.photos import Photos
from zfnet.data.preprocessing import Preprocessing, Stored
from zfnet.errors import InputError

datasets = pytest.importorskip("datasets", reason="datasets is not installed")
datasets.disable_progress_bars()

CONF = Path(__file__).resolve().parent.parent / "conf" / "data" / "hugging_face.yaml"
HOW = Preprocessing(size=16, resize=16)


def picture(seed: int, kind: str = "png", mode: str = "RGB", **options) -> bytes:
    pixels = np.random.default_rng(seed).integers(256, size=(10 + seed % 5, 12, 4), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[..., :3]).convert(mode).save(file, kind, **options)
    return file.getvalue()


def table(count: int = 10, names=("cat", "dog", "bird"), **columns):
    """Pictures with labels 0, 1, 2, 0, ... ; of other columns, their features."""
    content = {
        "image": [{"bytes": picture(n), "path": f"somewhere/{n:02d}.png"} for n in range(count)],
        "label": [n % 3 for n in range(count)],
    }
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
    for name, (feature, values) in columns.items():
        content[name], features[name] = values, feature
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


def saved(folder: Path, dataset=None, **more) -> Path:
    (table() if dataset is None else dataset).save_to_disk(str(folder), **more)
    return folder


def refused(*args, **more) -> str:
    with pytest.raises(InputError) as caught:
        HuggingFace(*args, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_it_is_the_folder_it_was_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def local(connected: socket.socket, address, connect=socket.socket.connect) -> None:
        assert connected.family == socket.AF_UNIX, "it reaches for the network"  # workers send tensors by such
        connect(connected, address)

    monkeypatch.setattr(socket.socket, "connect", local)
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = [
        *(picture(n, kind) for n, kind in enumerate(("jpeg", "png", "webp", "ppm"))),
        picture(6, "jpeg", exif=exif.tobytes()),
        picture(7, "jpeg", "CMYK"),
        picture(8, "png", "L"),
        picture(9, "png", "RGBA"),
    ]
    for n, content in enumerate(contents):
        path = tmp_path / "photos" / "ab"[n % 2] / f"{n}.{('jpg', 'png', 'webp', 'ppm', 'jpg', 'jpg', 'png', 'png')[n]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    photos = Photos(tmp_path / "photos")
    dataset = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "photos"), cache_dir=str(tmp_path / "cache"))
    data = HuggingFace(saved(tmp_path / "saved", dataset["train"]))
    assert len(data) == len(photos) == 8 and data.classes == photos.classes == ["a", "b"]
    order = [next(j for j in range(8) if photos.file(j).endswith(str(data.file(i)))) for i in range(8)]
    assert sorted(order) == list(range(8)) and [photos.labels[j] for j in order] == data.labels
    for i, j in enumerate(order):
        assert torch.equal(data[i][0], photos[j][0]) and data[i][1] == photos[j][1]
    data.transform = HOW
    adapted = as_images(dataset["train"].with_transform(lambda rows: rows))
    assert len(adapted) == 8 and list(adapted.classes) == ["a", "b"] and adapted[0][1] == data[0][1]
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    images = torch.stack([data[i][0] for i in range(8)])
    tops = [scan(network, source, ["1"], k=3, progress=False, workers=w)["1"] for source, w in ((data, 2), (images, 0))]
    assert all(torch.equal(*pair) for pair in zip(*tops, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_read_at_random(tmp_path: Path, workers: int) -> None:
    data = HuggingFace(saved(tmp_path / "a", num_shards=3), transform=HOW)
    order = [9, 0, 5, 5, 1, 8]
    expected = [data[i] for i in order]
    batches = list(Batches(data, 2, indices=order, workers=workers))
    assert torch.equal(torch.cat([batch.images for batch in batches]), torch.stack([image for image, _ in expected]))
    assert torch.cat([batch.labels for batch in batches]).tolist() == [label for _, label in expected]


def test_spawned_workers_read_it(tmp_path: Path) -> None:
    data = HuggingFace(saved(tmp_path / "a"), transform=HOW)
    assert len(pickle.dumps(data)) < 20_000
    loader = DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert all(torch.equal(image, data[i][0]) for i, (image, _) in enumerate(loader))


def test_rows_that_were_chosen_are_those_that_were_saved(tmp_path: Path) -> None:
    data = HuggingFace(saved(tmp_path / "a", table().select([7, 2, 2, 0])))
    whole = HuggingFace(saved(tmp_path / "b"))
    assert [data.file(i) for i in range(4)] == ["07.png", "02.png", "02.png", "00.png"] and data.labels == [1, 2, 2, 0]
    assert all(torch.equal(data[i][0], whole[j][0]) for i, j in enumerate((7, 2, 2, 0)))
    assert [data[i][1] for i in range(4)] == data.labels


def test_a_format_that_was_saved_does_not_matter(tmp_path: Path) -> None:
    data = HuggingFace(saved(tmp_path / "a", table().with_format("numpy", columns=["label"])))
    assert torch.equal(data[3][0], HuggingFace(saved(tmp_path / "b"))[3][0]) and data.labels[:4] == [0, 1, 2, 0]


def test_columns(tmp_path: Path) -> None:
    other = [{"bytes": picture(n + 50), "path": None} for n in range(10)]
    raw = [picture(n + 50) for n in range(10)]
    texts = ["b", "a", None] * 3 + ["b"]
    root = saved(
        tmp_path / "a",
        table(
            depth=(datasets.Image(), other),
            raw=(datasets.Value("binary"), raw),
            text=(datasets.Value("string"), texts),
            number=(datasets.Value("int16"), [-1, *range(9)]),
            score=(datasets.Value("float32"), [0.5] * 10),
        ),
    )
    first, second, third = HuggingFace(root), HuggingFace(root, image="depth"), HuggingFace(root, image="raw")
    assert not torch.equal(first[0][0], second[0][0]) and torch.equal(second[0][0], third[0][0])
    assert first.file(0) == "00.png" and second.file(0) is third.file(0) is None
    assert HuggingFace(root, label="text").labels == [1, 0, -1] * 3 + [1]
    assert HuggingFace(root, label="text").classes == ["a", "b"]
    assert HuggingFace(root, label="number").labels == [-1, *range(9)]
    assert len({first.identity(), second.identity(), HuggingFace(root, label="text").identity()}) == 3
    assert "no column of" in refused(root, image="pictures") and "no column of" in refused(root, label="labels")
    assert "score of" in refused(root, label="score") and "is float32" in refused(root, label="score")
    assert "text holds no images" in refused(root, image="text")
    plain = table().rename_columns({"image": "photo", "label": "fine"})
    data = HuggingFace(saved(tmp_path / "b", plain))
    assert data.labels[:3] == [0, 1, 2] and data.file(1) == "01.png"
    assert HuggingFace(saved(tmp_path / "c", table().remove_columns("label"))).labels == [-1] * 10
    numbers = datasets.Dataset.from_dict({"x": [1, 2]})
    assert "has the columns x (int64); say which holds the images" in refused(saved(tmp_path / "d", numbers))
    arrays = datasets.Dataset.from_dict({"image": [[[1, 2], [3, 4]]]})
    assert "image holds no images: cast_column" in refused(saved(tmp_path / "e", arrays))
    most = (
        table(number=(datasets.Value("int64"), [10**9] * 10)).remove_columns("label").rename_column("number", "label")
    )
    assert "label of" in refused(saved(tmp_path / "f", most))


def test_broken_pictures_are_named_and_left_out(tmp_path: Path) -> None:
    bomb = bytearray(picture(0))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    (tmp_path / "secret.png").write_bytes(picture(3))
    cells = [
        {"bytes": picture(1), "path": "a.png"},
        {"bytes": b"", "path": "a.png"},
        {"bytes": b"nothing", "path": "a.png"},
        {"bytes": bytes(bomb), "path": None},
        None,
        {"bytes": None, "path": str(tmp_path / "secret.png")},
        {"bytes": None, "path": "https://127.0.0.1/a.png"},
        {"bytes": picture(2), "path": "../../b.png"},
    ]
    plain = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    root = saved(tmp_path / "a", datasets.Dataset.from_dict({"image": cells}, datasets.Features({"image": plain})))
    about = json.loads((root / "dataset_info.json").read_text())  # save_to_disk would put what paths lead to in it
    about["features"]["image"] = {"_type": "Image"}
    (root / "dataset_info.json").write_text(json.dumps(about))
    data = HuggingFace(root, transform=HOW)
    batches = Batches(data, 3, workers=0)
    assert torch.cat([batch.index for batch in batches]).tolist() == [0, 7]
    assert [re.search(r"item (\d)", line)[1] for line in batches.broken] == list("123456")
    assert "decompression bomb" in batches.broken[2] and "it has no picture" in batches.broken[3]
    assert all("not in the dataset, but at" in line for line in batches.broken[4:])
    assert data.file(7) == "b.png"


def test_splits(tmp_path: Path) -> None:
    both = datasets.DatasetDict({"train": table(4), "validation": table(3)})
    root = saved(tmp_path / "a", both)
    assert len(HuggingFace(root, split="train")) == 4 and len(HuggingFace(root, split="validation")) == 3
    assert "has the splits train, validation; say which with split=" in refused(root)
    assert "no split in" in refused(root, split="test") and "no split in" in refused(root, split="../a/train")
    assert "is a single Dataset" in refused(root / "train", split="train")


def configured(transform=HOW, **settings):
    config = OmegaConf.merge(OmegaConf.load(CONF), settings)
    for key in OF_DATA:
        config.pop(key, None)
    return instantiate(config)(transform)


def test_splits_from_the_command_line(tmp_path: Path) -> None:
    sizes = {"train": 4, "validation": 3, "test": 2}
    root = str(saved(tmp_path / "a", datasets.DatasetDict({name: table(n) for name, n in sizes.items()})))
    assert [len(configured(root=root, split=split)) for split in ("train", "val", "test")] == [4, 3, 2]
    only = str(saved(tmp_path / "b", datasets.DatasetDict({"test": table(2)})))
    assert len(configured(root=only)) == 2
    single = str(saved(tmp_path / "c"))
    assert len(configured(root=single)) == len(configured(root=single, split=None)) == 10
    for transform, split in ((HOW, "train"), (Stored(HOW), "val")):
        with pytest.raises(InputError, match="without the split"):
            configured(transform, root=single, split=split)


def test_what_was_not_saved_by_datasets_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is not a folder" in refused(tmp_path / "nothing")
    for address in ("s3://bucket/a", "hf:/datasets/a", "zip:/a::/b"):
        assert "is not a path on this disk" in refused(address)
    assert "no state.json and no dataset_dict.json" in refused(tmp_path)
    root = saved(tmp_path / "a")
    state = json.loads((root / "state.json").read_text())
    file = next(root.glob("*.arrow"))
    for changed, words in {
        "": "cannot read",
        "[]": "is not what save_to_disk writes",
        json.dumps(state | {"_data_files": [{"filename": "../b.arrow"}]}): "is not in the folder",
        json.dumps(state | {"_data_files": [{"filename": "b.arrow"}]}): "cannot read",
        json.dumps(state | {"_indices_data_files": [{"filename": "i.arrow"}]}): "old version",
    }.items():
        (root / "state.json").write_text(changed)
        assert words in refused(root)
    (root / "state.json").write_text(json.dumps(state))
    file.write_bytes(file.read_bytes()[:100])
    assert "cannot read the dataset in" in refused(root)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'zfnet[hugging_face]'" in refused(root)


def test_identity_is_of_the_files(tmp_path: Path) -> None:
    root = saved(tmp_path / "a")
    before = HuggingFace(root, transform=HOW).identity()
    assert HuggingFace(root, transform=HOW).identity() == before
    assert HuggingFace(root).identity() != before
    os.utime(next(root.glob("*.arrow")), ns=(1, 1))
    assert HuggingFace(root, transform=HOW).identity() != before
    assert HuggingFace(root, transform=lambda image: torch.zeros(3, 2, 2)).basis() is None
