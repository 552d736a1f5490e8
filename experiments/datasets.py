"""From `conf/data/*.yaml` to a dataset of what a network sees: every image goes through its preprocessing."""

from collections.abc import Mapping
from pathlib import Path

from zfnet.data.photos import Photos
from zfnet.data.scenes import Scenes
from zfnet.data.transforms import Preprocessing
from zfnet.errors import InputError, unknown


def scenes(
    preprocessing: Preprocessing, *, split: str = "val", count: Mapping[str, int], classes: str = "base", seed: int = 0
) -> Scenes:
    """Rendered scenes, at the size that the network sees."""
    if split not in count:
        raise unknown("split of scenes", str(split), count)
    return Scenes(split, count[split], size=preprocessing.size, seed=seed, classes=classes, transform=preprocessing)


def photos(
    preprocessing: Preprocessing, *, root: str | Path, split: str | None = "val", labels: str | None = None
) -> Photos:
    """Photographs of `root`/`split` if there is such a folder, else all of `root`: to measure on, not to train."""
    root = Path(root).expanduser()
    if split and (root / split).is_dir():
        root = root / split
    elif split == "train":
        raise InputError(f"{root} has no folder 'train' of photographs to train on")
    return Photos(root, labels=labels, transform=preprocessing)
