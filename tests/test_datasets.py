"""Every data set in each of the layouts it is found in; nothing is fetched."""

import csv
import hashlib
import io
import os
import pickle
import shutil
import tarfile
import time
import urllib.error
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from experiments.setup import datasets
from experiments.setup.objects import OF_DATA
from zfnet.data import class_folders
from zfnet.data.batches import Batches
from zfnet.data.preprocessing import Preprocessing, Stored
from zfnet.errors import InputError
from zfnet.training import in_memory

CONF = Path(__file__).resolve().parent.parent / "conf" / "data"
WNIDS = ["n03", "n01", "n02"]


BYTES = Stored(Preprocessing(size=8, resize=8))


def configured(name, **settings):
    """The data set as its configuration file makes it, with nothing but these settings changed."""
    config = OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), settings)
    for key in OF_DATA:
        config.pop(key, None)
    return instantiate(config)(BYTES)


def refused(name, **settings):
    with pytest.raises(InputError) as caught:
        configured(name, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def picture(shade):
    data = io.BytesIO()
    Image.new("RGB", (12, 9), (shade, shade, shade)).save(data, "JPEG", quality=95)
    return data.getvalue()


def put(root, *files):
    """Photographs, each of the shade that its class folder's digit says."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        wnid = next(part for part in Path(file).parts if part in WNIDS)
        (root / file).write_bytes(picture(40 * int(wnid[-1])))
    return root


def both(root, inner="", names=WNIDS):
    for split, count in (("train", 3), ("val", 2)):
        put(root, *(f"{inner}{split}/{wnid}/{split}_{i}.JPEG" for wnid in names for i in range(count)))
    return root


def zipped(folder, target):
    paths = sorted(folder.rglob("*"))  # before the zip is one of them
    with zipfile.ZipFile(target, "w") as archive:
        for path in paths:
            archive.write(path, path.relative_to(folder).as_posix())
    return target


def check(dataset, length, classes, workers=0):
    """The labels that are listed are those of the items, and name the class whose shade the photograph has."""
    assert len(dataset) == length and list(dataset.classes) == list(classes)
    assert all(type(label) is int for label in dataset.labels)
    assert [label for _, label in dataset] == list(dataset.labels)
    assert set(dataset.labels) == set(range(len(classes)))
    for image, label in dataset:
        assert image.dtype == torch.uint8 and image.shape == (3, 8, 8)
        assert abs(int(image[0, 4, 4]) - 40 * (label + 1)) <= 2
    assert len(list(Batches(dataset, 4, workers=workers))) == -(-length // 4)


# ---- class folders ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["folders", "in one folder", "zip", "zip of one folder", "zip in a folder"])
def root(request, tmp_path):
    """One data set in each layout that it may have."""
    files, root = tmp_path / "files", tmp_path / "root"
    both(files, "deep/" if "one folder" in request.param else "")
    if request.param in ("folders", "in one folder"):
        return files
    root.mkdir()
    (root / "README.txt").write_text("what is in the zip")
    target = zipped(files, root / "photos.zip")
    return root if request.param == "zip in a folder" else target


@pytest.mark.parametrize("name", ["tiny_imagenet", "imagenet", "imagenette"])
def test_train_and_val_wherever_they_lie(name, root):
    check(configured(name, root=str(root), split="train"), 9, sorted(WNIDS))
    check(configured(name, root=str(root)), 6, sorted(WNIDS))


def test_photos_of_a_split_wherever_it_lies(root):
    assert len(configured("photos", root=str(root), split="train")) == 9
    dataset = configured("photos", root=str(root))
    assert len(dataset) == 6 and dataset.classes == sorted(WNIDS)
    assert {Path(dataset.file(i)).name for i in range(6)} == {"val_0.JPEG", "val_1.JPEG"}


def test_photos_without_splits(tmp_path):
    put(tmp_path / "flat", "n01/1.JPEG", "n02/2.JPEG")
    for root in (tmp_path / "flat", zipped(tmp_path / "flat", tmp_path / "a.zip")):
        dataset = datasets.photos(Preprocessing(size=32, resize=32), root=root)
        assert dataset.labels == [0, 1] and dataset.file(1) == "n02/2.JPEG"
    assert "no folder 'train'" in refused("photos", root=str(root), split="train")
    with pytest.raises(InputError, match="no folder 'val' of photographs to validate on: make it, or give"):
        datasets.photos(BYTES, root=root)


def test_validation_labels_are_those_of_the_training_set(tmp_path):
    both(tmp_path)
    shutil.rmtree(tmp_path / "val" / "n01")
    dataset = configured("tiny_imagenet", root=str(tmp_path))
    assert dataset.classes == ["n01", "n02", "n03"] and dataset.labels == [1, 1, 2, 2]


def test_names_come_from_the_table(tmp_path):
    both(tmp_path)
    with open(tmp_path / "classes.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [["wnid", "name"], ["n02", "lion, king of beasts"], ["n01", "goldfish"], ["n9", "x"]]
        )
    check(configured("tiny_imagenet", root=str(tmp_path), split="train"), 9, ["goldfish", "lion", "n03"])


def test_tiny_imagenet_as_it_is_handed_out(tmp_path):
    put(tmp_path, *(f"tiny-imagenet-200/train/{wnid}/images/{wnid}_{i}.JPEG" for wnid in WNIDS for i in range(3)))
    home = tmp_path / "tiny-imagenet-200"
    (home / "words.txt").write_text("n02\tlion, king of beasts\nn01\tgoldfish\n")
    (home / "val/images").mkdir(parents=True)
    order = ["n02", "n01", "n03", "n02"]
    for i, wnid in enumerate(order):
        (home / f"val/images/val_{i}.JPEG").write_bytes(picture(40 * int(wnid[-1])))
    rows = [f"val_{i}.JPEG\t{wnid}\t0\t0\t9\t9\n" for i, wnid in enumerate(order)]
    (home / "val/val_annotations.txt").write_text("".join(rows))
    for path in (tmp_path, zipped(tmp_path, tmp_path / "tiny-imagenet-200.zip")):
        check(configured("tiny_imagenet", root=str(path), split="train"), 9, ["goldfish", "lion", "n03"])
        check(configured("tiny_imagenet", root=str(path)), 4, ["goldfish", "lion", "n03"])
    (home / "val/val_annotations.txt").write_text("".join(rows[:3]))
    assert "class 'images', which" in refused("tiny_imagenet", root=str(home))


def test_imagenette_has_names(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "IMAGENETTE", {"n01": "tench", "n02": "church", "n03": "parachute"})
    both(tmp_path, "imagenette2-160/")
    check(configured("imagenette", root=str(tmp_path)), 6, ["tench", "church", "parachute"])


def test_names_of_imagenet_and_imagenette_agree():
    """Ten of the thousand, in the same order, since both are ordered by folder; torchvision's own names begin so."""
    positions = [datasets.IMAGENET.index(name) for name in datasets.IMAGENETTE.values()]
    assert len(datasets.IMAGENET) == 1000 and len(positions) == 10 and positions == sorted(positions)
    assert list(datasets.IMAGENETTE) == sorted(datasets.IMAGENETTE)
    assert {
        wnid: names[0] for wnid, names in torchvision.datasets.Imagenette._WNID_TO_CLASS.items()
    } == datasets.IMAGENETTE


def test_the_validation_set_of_imagenet_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "IMAGENET", ["tench", "goldfish", "great white shark"])
    monkeypatch.setattr(class_folders, "IMAGENET_CLASSES", 3)
    both(tmp_path)
    shutil.rmtree(tmp_path / "train")
    check(configured("imagenet", root=str(tmp_path)), 6, ["tench", "goldfish", "great white shark"])
    assert "no folder 'train'" in refused("imagenet", root=str(tmp_path), split="train")
    shutil.rmtree(tmp_path / "val/n02")
    assert "no folder 'train', which defines" in refused("imagenet", root=str(tmp_path))


def broken(root, how):
    """A data set with one thing wrong, and the root to give."""
    both(root, names=WNIDS)
    if how == "no train":
        (root / "train").rename(root / "training")
    elif how == "no val":
        shutil.rmtree(root / "val")
    elif how == "files":
        shutil.rmtree(root / "train")
        (root / "train").mkdir()
        (root / "train/a.JPEG").write_bytes(picture(1))
    elif how == "file and folders":
        (root / "train/a.JPEG").write_bytes(picture(1))
    elif how == "train is a file":
        shutil.rmtree(root / "train")
        (root / "train").write_text("")
    elif how == "strange class":
        put(root / "val", "n01/1.JPEG")
        (root / "val/n03").rename(root / "val/n04")
    elif how == "one class":
        shutil.rmtree(root / "train/n02"), shutil.rmtree(root / "train/n03")
    elif how == "empty class":
        (root / "train/n025").mkdir()
    elif how == "empty":
        shutil.rmtree(root / "train"), (root / "train").mkdir()
    elif how == "half a zip":
        whole = zipped(root, root.parent / "whole.zip").read_bytes()
        shutil.rmtree(root), root.mkdir()
        (root / "half.zip").write_bytes(whole[: len(whole) // 2])
    elif how == "two zips":
        zipped(root, root.parent / "a.zip")
        shutil.rmtree(root), root.mkdir()
        shutil.copy(root.parent / "a.zip", root / "a.zip"), shutil.copy(root.parent / "a.zip", root / "b.zip")
    elif how == "nothing":
        shutil.rmtree(root)


@pytest.mark.parametrize(
    "how, split, says",
    [
        ("no train", "train", "has no folder 'train' of class folders; available: training, val"),
        ("no train", "val", "no folder 'train', which defines the classes"),
        ("no val", "val", "has no folder 'val' of class folders; available: train"),
        ("files", "train", "train has photographs (a.JPEG) instead of class folders"),
        ("file and folders", "train", "beside them, a.JPEG; move it"),
        ("train is a file", "train", "no folder 'train'"),
        ("strange class", "val", "val has the class 'n04', which"),
        ("one class", "train", "train has 1 class folder(s); at least two are needed"),
        ("one class", "val", "train has 1 class folder(s); at least two are needed"),
        ("empty class", "train", "train/n025 has no photographs; add some"),
        ("empty", "train", "no photographs in"),
        ("half a zip", "train", "half.zip is a file, not a folder or a whole zip"),
        ("two zips", "train", "no folder 'train' of class folders; available: no folder"),
        ("nothing", "train", "does not exist"),
        ("right", "test", "no split 'test'"),
    ],
)
@pytest.mark.parametrize("name", ["tiny_imagenet", "imagenet"])
def test_data_of_the_wrong_shape_is_one_line(tmp_path, how, split, says, name):
    broken(tmp_path / "root", how)
    assert says in refused(name, root=str(tmp_path / "root"), split=split)


# ---- ImageNet's archives ---------------------------------------------------------------------------------------------


def test_a_split_is_found_however_deep_it_lies(tmp_path, monkeypatch):
    monkeypatch.setattr(class_folders, "Folder", _Counted)
    assert class_folders.home_of(_Counted(tmp_path / "0"), "val") is None
    assert _Counted.made > 1000


class _Counted:
    """A folder in which there is always one other."""

    made = 0

    def __init__(self, path):
        self.path = path
        _Counted.made += 1

    def folders(self):
        return ["1"] if _Counted.made < 1500 else []


@pytest.mark.skipif(os.name == "nt", reason="there are no such things there")
def test_a_folder_with_nothing_but_a_link_to_itself_ends(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").symlink_to(tmp_path / "a")
    assert "has no folder 'val' of class folders; available: a" in refused("tiny_imagenet", root=str(tmp_path))


@pytest.mark.skipif(os.name == "nt", reason="there are no such things there")
@pytest.mark.parametrize("file", ["classes.csv", "words.txt", "val/val_annotations.txt"])
def test_a_list_that_is_a_pipe_is_not_waited_for(tmp_path, file):
    both(tmp_path)
    os.mkfifo(tmp_path / file)
    assert f"{file}: it is a named pipe, not a file" in refused("tiny_imagenet", root=str(tmp_path))


def tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """ILSVRC2012_*.tar of three classes, made as the real ones are, with the checksums that torchvision expects."""
    root = tmp_path / "tars"
    root.mkdir()
    inner = {}
    for wnid in WNIDS:
        photos = {f"{wnid}_{i}.JPEG": picture(40 * int(wnid[-1])) for i in range(3)}
        inner[f"{wnid}.tar"] = tar(tmp_path / "inner.tar", photos).read_bytes()
    train = tar(root / "ILSVRC2012_img_train.tar", inner)
    truth = [2, 1, 3, 1]  # numbers of the developers' kit, where n03 is 1, n01 is 2, n02 is 3
    shades = [40 * int(WNIDS[number - 1][-1]) for number in truth]
    photos = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": picture(shade) for i, shade in enumerate(shades)}
    val = tar(root / "ILSVRC2012_img_val.tar", photos)
    kinds = [("ILSVRC2012_ID", int), ("WNID", object), ("words", object), ("gloss", object), ("num_children", int)]
    rows = [(i + 1, wnid, f"{wnid} words, more", "gloss", 0) for i, wnid in enumerate(WNIDS)]
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": np.array([*rows, (4, "n00", "all", "gloss", 3)], dtype=kinds)})
    kit = {"meta.mat": meta.getvalue(), "ILSVRC2012_validation_ground_truth.txt": "\n".join(map(str, truth)).encode()}
    kit = {f"ILSVRC2012_devkit_t12/data/{name}": content for name, content in kit.items()}
    devkit = tar(root / "ILSVRC2012_devkit_t12.tar.gz", kit, "w:gz")
    sums = {"train": (train.name, md5(train)), "val": (val.name, md5(val)), "devkit": (devkit.name, md5(devkit))}
    monkeypatch.setattr(torchvision.datasets.imagenet, "ARCHIVE_META", sums)
    return root


def test_archives_of_imagenet_are_unpacked_once(archives, capsys):
    check(configured("imagenet", root=str(archives), split="train"), 9, sorted(WNIDS))
    check(configured("imagenet", root=str(archives)), 4, sorted(WNIDS))
    assert capsys.readouterr().err.count("unpacking") == 2
    before = (archives / "train").stat().st_mtime_ns
    check(configured("imagenet", root=str(archives), split="train"), 9, sorted(WNIDS))
    assert (archives / "train").stat().st_mtime_ns == before and not capsys.readouterr().err
    official = torchvision.datasets.ImageNet(archives, "val")  # torchvision reads what we left, and labels it as we do
    ours = configured("imagenet", root=str(archives))
    assert ours.labels == official.targets
    assert [str(archives / "val" / ours.file(i)) for i in range(4)] == [path for path, _ in official.samples]


def test_archives_that_cannot_be_unpacked_leave_nothing(archives, monkeypatch):
    (archives / "ILSVRC2012_img_train.tar").write_bytes(b"half")
    assert "ILSVRC2012_img_train.tar is not present" in refused("imagenet", root=str(archives), split="train")

    def interrupted(root, folder):
        put(Path(folder), "n01/1.JPEG")
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets, "parse_train_archive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        configured("imagenet", root=str(archives), split="train")
    assert not (archives / "train").exists() and not (archives / ".part").exists()
    (archives / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    assert "ILSVRC2012_devkit_t12.tar.gz is not present" in refused("imagenet", root=str(archives))


# ---- torchvision's ---------------------------------------------------------------------------------------------------

CIFAR = ["airplane", "automobile", "bird", "cat"]


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Batches as CIFAR-10 has them, of four classes, with the checksums that torchvision expects."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def dump(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, md5(folder / name)]

    def batch(name, labels):
        planes = [np.full(3072, 40 * (label + 1), np.uint8) for label in labels]
        return dump(name, {"data": np.stack(planes), "labels": labels})

    train = [batch("data_batch_1", [0, 3, 2]), batch("data_batch_2", [1, 1])]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", train)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [batch("test_batch", [3, 2, 1, 0])])
    _, checksum = dump("batches.meta", {"label_names": CIFAR})
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": checksum})
    return tmp_path


def test_cifar10(cifar):
    check(configured("cifar10", root=str(cifar), split="train"), 5, CIFAR)
    check(configured("cifar10", root=str(cifar)), 4, CIFAR, workers=2)
    assert "no split 'test'" in refused("cifar10", root=str(cifar), split="test")


def no_network(*arguments, **more):
    raise urllib.error.URLError("no network")


def test_cifar10_that_is_not_whole_says_what_to_set(cifar, monkeypatch, tmp_path):
    (cifar / "cifar-10-batches-py/data_batch_2").write_bytes(b"half")
    for root in (cifar, tmp_path / "nothing"):
        message = refused("cifar10", root=str(root))
        assert f"no complete cifar-10-batches-py in {root}" in message and "data.download=true" in message
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    message = refused("cifar10", root=str(cifar), download=True)
    assert "no network" in message and "try again" in message


def test_imagenette_that_is_not_there_says_what_to_set(tmp_path, monkeypatch):
    assert "data.download=true" in refused("imagenette", root=str(tmp_path / "nothing"))
    assert "data.download=true" in refused("imagenette", root=str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    message = refused("imagenette", root=str(tmp_path), download=True)
    assert f"cannot make {tmp_path / 'imagenette2-320'} (" in message and "no network" in message
    assert not list(tmp_path.iterdir())


def test_imagenette_is_fetched_once(tmp_path, monkeypatch):
    both(tmp_path / "there")
    archive = tmp_path / "imagenette2-320.tgz"
    with tarfile.open(archive, "w:gz") as tgz:
        tgz.add(tmp_path / "there", "imagenette2-320")
    known = {"320px": (archive.as_uri(), md5(archive))}
    monkeypatch.setattr(datasets.Imagenette, "_ARCHIVES", known)
    monkeypatch.setattr(datasets.Imagenette, "_WNID_TO_CLASS", {wnid: (wnid,) for wnid in WNIDS})
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", lambda url, to: shutil.copy(url[7:], to))
    root = tmp_path / "new" / "root"
    check(configured("imagenette", root=str(root), download=True, split="train"), 9, sorted(WNIDS))
    archive.unlink()
    check(configured("imagenette", root=str(root), download=True), 6, sorted(WNIDS))
    assert [path.name for path in root.iterdir()] == ["imagenette2-320"]


# ---- images that are all measured on ---------------------------------------------------------------------------------


def test_caltech_has_all_images_and_its_own_split(tmp_path):
    home = put(tmp_path / "101_ObjectCategories", *(f"{wnid}/{i}.JPEG" for wnid in WNIDS for i in range(2)))
    put(home, "BACKGROUND_Google/n01/1.JPEG")
    dataset = configured("caltech101", root=str(tmp_path))
    check(dataset, 6, sorted(WNIDS))
    assert dataset.official_split is None
    (home / "split.csv").write_text("file,split\nn01/0.JPEG,train\nn02/1.JPEG,test\n")
    dataset = configured("caltech101", root=str(tmp_path))
    assert dataset.official_split == ["train", None, None, "test", None, None]
    (home / "split.csv").write_text("file,split\nn01/0.JPEG,tain\n")
    assert "split.csv has the split 'tain'; give train or test" in refused("caltech101", root=str(tmp_path))
    (home / "split.csv").write_text("file,split\nn01/9.JPEG,train\n")
    assert "split.csv names n01/9.JPEG, which does not exist" in refused("caltech101", root=str(tmp_path))


@pytest.mark.parametrize("name", ["caltech101", "caltech256", "voc2012"])
def test_images_that_are_measured_on_are_not_trained_on(tmp_path, name):
    put(tmp_path, *(f"{wnid}/1.JPEG" for wnid in WNIDS))
    message = refused(name, root=str(tmp_path), split="train")
    assert "has no training images separate from its test images; sort images into train/ and val/" in message
    assert "no split 'test'" in refused(name, root=str(tmp_path), split="test")


# ---- the rest --------------------------------------------------------------------------------------------------------


def test_scenes_are_made_at_the_size_of_the_transform():
    transform = Preprocessing(size=32, resize=36)
    dataset = datasets.scenes(transform, count={"train": 5, "val": 3}, split="train")
    assert len(dataset) == 5 and dataset[0][0].shape == (3, 32, 32) and dataset.labels == [0, 1, 2, 3, 4]
    assert len(dataset.classes) == 16
    with pytest.raises(InputError, match="no split of scenes 'test'"):
        datasets.scenes(transform, count={"train": 5}, split="test")


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_data_set_asks_for_nothing_but_its_root(file):
    config = OmegaConf.load(file)
    assert OmegaConf.missing_keys(config) <= {"root"} and config.split == "val"
    assert config.published in ("scenes", "tiny_imagenet_60") and ("side" in config) != ("trained_on" in config)
    # what is not trained on says what the network was trained on
    assert ("trained_on" in config) == (
        file.stem
        in ("photos", "web_dataset", "hugging_face", "caltech101", "caltech256", "voc2012", "held_out", "several")
    )


# ---- the photographs themselves, where there are any -----------------------------------------------------------------


def test_tiny_imagenet(real_data):
    root = real_data / "tiny_imagenet"
    train, val = (datasets.tiny_imagenet(BYTES, root=root, split=split) for split in ("train", "val"))
    assert (len(train), len(val)) == (10_000, 1_000) and len(train.classes) == 20
    assert train.classes == val.classes and train.classes[0] == "goldfish"
    assert np.bincount(train.labels).tolist() == [500] * 20 and np.bincount(val.labels).tolist() == [50] * 20
    assert sorted(os.listdir(root)) == ["README.txt", "tiny_imagenet_20.zip"]
    started = time.perf_counter()
    images, labels = in_memory(val, workers=2, progress=False).tensors
    print(f"{len(val) / (time.perf_counter() - started):.0f} images/s")
    assert images.shape == (1_000, 3, 8, 8) and labels.tolist() == val.labels
    torch.testing.assert_close(images[617], val[617][0], rtol=0, atol=0)
