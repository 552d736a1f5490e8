"""From `conf/data/*.yaml` to a dataset: items (transform(image), label), and the names of its classes.

The transform is a `Preprocessing`, which gives what the network sees, or for training a `Stored`, which gives 8 bits.
Splits are "train" and "val" everywhere, and a label means the same class in both.
"""

import contextlib
import os
import shutil
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor
from torchvision.datasets import CIFAR10, Imagenette
from torchvision.datasets.imagenet import parse_devkit_archive, parse_train_archive, parse_val_archive
from torchvision.models import ResNet18_Weights

from experiments.setup.hints import Count, Seed
from zfnet.data.annotations import read_table
from zfnet.data.class_folders import class_folders, home_of
from zfnet.data.folders import Folder
from zfnet.data.hugging_face import HuggingFace, splits_of
from zfnet.data.images import Images, as_images
from zfnet.data.pascal import Pascal
from zfnet.data.photos import Photos
from zfnet.data.preprocessing import Stored
from zfnet.data.scenes import SPLITS, Scenes
from zfnet.data.web_dataset import WebDataset
from zfnet.errors import InputError, first_line, unknown_name

IMAGENET = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]  # 1000 names, in the order of their folders
IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


class Transform(Protocol):
    """A function from an image, Pillow's or uint8 (H, W, 3), to a tensor (3, size, size)."""

    @property
    def size(self) -> int: ...
    def __call__(self, image: Any) -> Tensor: ...


def class_names(model: Any, data: Any, count: int) -> list[str]:
    """The names of a network's `count` classes: from its weights, or from data with as many classes, or ImageNet's.

    A network whose weights name no classes is assumed to be trained on data with as many classes.
    """
    for names in (getattr(model, "class_names", ()), _classes(data), IMAGENET):
        if len(names) == count:
            return list(names)
    return [f"class {n}" for n in range(count)]


def class_of(data: Any, label: int, names: Sequence[str]) -> int | None:
    """Which of a network's classes a data set's label is, by its name; None where the network has no such class.

    Args:
        data: images whose `classes` are named, or else their labels are the network's.
        label: of one of its images.
        names: the network's; see `class_names`.
    """
    classes = _classes(data)
    if not classes or classes == list(names):
        return label
    name = classes[label] if 0 <= label < len(classes) else None
    return names.index(name) if name is not None and names.count(name) == 1 else None


def _classes(data: Any) -> list[str]:
    return [str(name) for name in getattr(data, "classes", ())]


def scenes(
    transform: Transform,
    /,
    *,
    split: str = "val",
    count: Mapping[str, Count],
    classes: Literal["base", "held_out", "all"] = "base",
    objects: Count = 1,
    seed: Seed = 0,
) -> Scenes:
    """Rendered scenes, at the size that the transform gives."""
    if split not in count:
        raise unknown_name("split of scenes", str(split), count)
    return Scenes(
        split, count[split], size=transform.size, seed=seed, classes=classes, objects=objects, transform=transform
    )


def photos(
    transform: Transform, /, *, root: str | Path, split: str | None = "val", labels: str | None = None
) -> Photos:
    """Photographs of `root`/`split`; if there is no such folder, all of `root`, unless it is for training."""
    root = Path(root).expanduser()
    home = split and home_of(Folder(root), split)
    if split and not home and (split == "train" or isinstance(transform, Stored)):
        use = "train on" if split == "train" else "validate on: make it, or give validation=train"
        raise InputError(f"{root} has no folder {split!r} of photographs to {use}")
    return Photos(home.path / split if split and home else root, labels=labels, transform=transform)


def web_dataset(
    transform: Transform,
    /,
    *,
    root: str | Path | Sequence[str],
    split: str | None = "val",
    picture: str | None = None,
    index: str | None = None,
) -> WebDataset:
    """Tars in WebDataset's layout: a pattern, a folder or a list.

    `{split}` in a pattern stands for the split; of a folder its folder `split` is taken. To look at, not to train on,
    the whole root is taken where it has neither.
    """
    tars = [str(Path(part).expanduser()) for part in ([root] if isinstance(root, str | Path) else root)]
    if split and len(tars) == 1 and os.path.isdir(home := os.path.join(tars[0], split)):
        tars = [home]
    elif any("{split}" in part for part in tars):
        tars = [part.replace("{split}", split or "*") for part in tars]
    elif split == "train" or (split and isinstance(transform, Stored)):
        advice = "give a folder that has one, or a pattern with {split}"
        raise InputError(
            f"{tars[0]} does not say which tars belong to the split {split!r}, which training needs; {advice}"
        )
    return WebDataset(tars, transform=transform, picture=picture, index=index)


def hugging_face(
    transform: Transform,
    /,
    *,
    root: str | Path,
    split: str | None = "val",
    image: str | None = None,
    label: str | None = None,
) -> HuggingFace:
    """What `save_to_disk` of Hugging Face's `datasets` wrote: a `Dataset`, or a `DatasetDict` with splits.

    The split "val" is also called "validation", "valid" or "test". To look at, not to train on, a `Dataset` is taken
    whatever the split.
    """
    root = Path(root).expanduser()
    names = splits_of(root)
    if names and split == "val":
        split = next((name for name in ("val", "validation", "valid", "test") if name in names), split)
    if not names:
        if split == "train" or (split and isinstance(transform, Stored)):
            raise InputError(
                f"{root} is a single Dataset, without the split {split!r}, which training needs; save a DatasetDict"
            )
        split = None
    return HuggingFace(root, split=split, transform=transform, image=image, label=label)


def caltech(transform: Transform, /, *, root: str | Path, inside: str, without: str, split: str = "val") -> Photos:
    """Caltech-101 or 256 as torchvision lays them out, or any class folders: all images of all classes but one.

    A split.csv beside the folders (file, split: train or test) fixes the first fold: the dataset's `official_split`.
    Raises InputError for split="train": all images are for testing, so none are left for training.
    """
    _check_measured(split, "Caltech")
    root = Path(root).expanduser()
    candidates = [root / inside, root / "caltech101" / inside, root / "caltech256" / inside]
    home = next((path for path in candidates if os.path.isdir(path)), root)
    folder = Folder(home)
    if len(classes := [name for name in folder.folders() if name != without]) < 2:
        raise InputError(f"{home} has no class folders; set data.root to the folder that holds {inside}")
    dataset = Photos(home, transform=transform, classes=classes)
    if folder.mentions("split.csv"):
        listed = {row.get("file") or "": row.get("split") for _, row in read_table(folder, "split.csv")[1]}
        dataset.official_split = [listed.get(dataset.file(i)) for i in range(len(dataset))]
        if unknown := next((part for part in listed.values() if part not in ("train", "test")), None):
            raise InputError(f"{home / 'split.csv'} has the split {unknown!r}; give train or test")
        if absent := next((file for file in listed if not file or file not in folder), None):
            raise InputError(f"{home / 'split.csv'} names {absent}, which does not exist")
    return dataset


def voc2012(transform: Transform, /, *, root: str | Path, split: str = "val") -> Pascal:
    """PASCAL VOC as torchvision's VOCDetection lays it out, or its folders JPEGImages and Annotations alone.

    All annotated images; ImageSets' lists are the dataset's `official_split`. Raises InputError for split="train".
    """
    _check_measured(split, "PASCAL VOC")
    root = Path(root).expanduser()
    candidates = [root / "VOCdevkit" / "VOC2012", root / "VOC2012", root]
    return Pascal(next((path for path in candidates if os.path.isdir(path / "Annotations")), root), transform=transform)


def tiny_imagenet(transform: Transform, /, *, root: str | Path, split: str = "val") -> Photos:
    """Any train/ and val/ of class folders, in a folder or a zip; also the published layout of Tiny ImageNet."""
    return class_folders(root, split, transform)


def imagenet(transform: Transform, /, *, root: str | Path, split: str = "val") -> Photos:
    """ImageNet's class folders in train/ and val/; where only ILSVRC2012_img_<split>.tar is, it is unpacked first."""
    root = Path(root).expanduser()
    if os.path.isfile(tar := root / f"ILSVRC2012_img_{split}.tar") and not home_of(Folder(root), split):
        print(f"unpacking {tar} once, which takes a long time", file=sys.stderr)
        with _whole(root / split) as part:
            if split == "train":
                parse_train_archive(root, folder=str(part / split))
            else:
                parse_devkit_archive(root)
                parse_val_archive(root, folder=str(part / split))
    dataset = class_folders(root, split, transform)
    if len(dataset.classes) == len(IMAGENET):
        dataset.classes = list(IMAGENET)
    return dataset


def imagenette(transform: Transform, /, *, root: str | Path, split: str = "val", download: bool = False) -> Photos:
    """Imagenette, which has train/ and val/ in one folder of root; `download` gets that of 320 pixels there."""
    _check(split)
    root = Path(root).expanduser()
    folder = root / "imagenette2-320"
    if download and not os.path.isdir(folder):
        with _whole(folder) as part:
            Imagenette(part, size="320px", download=True)
    if not os.path.exists(root) or not home_of(Folder(root), split):
        raise InputError(f"no Imagenette in {root}: set data.root to the folder that holds it, or data.download=true")
    return class_folders(root, split, transform, IMAGENETTE)


def cifar10(transform: Transform, /, *, root: str | Path, split: str = "val", download: bool = False) -> Images:
    """CIFAR-10 as torchvision reads it, in root/cifar-10-batches-py; its test images are "val"."""
    _check(split)
    root = Path(root).expanduser()
    try:
        return as_images(CIFAR10(root, split == "train", transform, download=download))
    except (RuntimeError, OSError) as error:
        todo = "try again" if download else "set data.root to the folder that holds it, or data.download=true"
        raise InputError(f"no complete cifar-10-batches-py in {root} ({first_line(error)}): {todo}") from None


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A temporary folder, which is renamed to that name once it is complete."""
    part = folder.parent / ".part"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        (part / folder.name).rename(folder)
    except (RuntimeError, OSError, tarfile.TarError) as error:
        raise InputError(f"cannot make {folder} ({first_line(error)}); try again, or put it there yourself") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check(split: str) -> None:
    if split not in SPLITS:
        raise unknown_name("split", str(split), SPLITS)


def _check_measured(split: str, name: str) -> None:
    """Raises InputError for training images of a data set whose images are all for testing."""
    _check(split)
    if split == "train":
        raise InputError(
            f"{name} has no training images separate from its test images;"
            " sort images into train/ and val/, and use data=tiny_imagenet"
        )
