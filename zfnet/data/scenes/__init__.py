"""Rendered pictures of 24 kinds of objects, whose class, mask and parts are known because we drew them.

The ground, the light and the colours do not depend on the class. The same index and seed give the same picture on every
machine, and at every size the same scene.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from zfnet.data.images import Box, Images, Truth, box_after, transform_identity, transformed
from zfnet.data.preprocessing import Preprocessing, rgb_tensor
from zfnet.data.scenes.drawing import Array
from zfnet.data.scenes.rendering import BASE, CLASSES, HELD_OUT, SPLITS, VERSION, Scene, labels_of, render, sides
from zfnet.errors import InputError, unknown_name

__all__ = ["BASE", "CLASSES", "HELD_OUT", "SPLITS", "Scene", "Scenes", "render"]


class Scenes(Images):
    """A dataset of rendered scenes, made when asked for: (image, label) like torchvision's.

    Args:
        split: "train" or "val", whose scenes differ.
        count: the number of scenes.
        size: pixels, one number or (rows, columns).
        seed: another seed gives other scenes.
        classes: "base" (16), "held_out" (8) or "all".
        objects: the most there are in a scene, each of another class.
        transform: takes the image as (H, W, 3) uint8; without one images are (3, H, W) float32 in 0..1.

    Raises:
        InputError: for an unknown split or classes, a count below 1, a size below 16, a negative seed.
    """

    def __init__(
        self,
        split: str = "train",
        count: int = 4000,
        *,
        size: int | tuple[int, int] = 224,
        seed: int = 0,
        classes: str = "base",
        objects: int = 1,
        transform: Callable[[Array], Any] | None = None,
    ):
        subsets = {"base": BASE, "held_out": HELD_OUT, "all": CLASSES}
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        if classes not in subsets:
            raise unknown_name("classes", classes, subsets)
        if count < 1:
            raise InputError(f"a dataset of {count} scenes; count is at least 1")
        if seed < 0:
            raise InputError(f"seeds count from 0; got {seed}")
        self.split, self.count, self.size, self.seed = split, count, sides(size), seed
        self.classes, self.objects, self.transform = subsets[classes], objects, transform
        self.labels = [i % len(self.classes) for i in range(count)]
        self._labels(0)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Any, int]:
        scene = self.scene(i)
        if self.transform is None:
            return rgb_tensor(Image.fromarray(scene.image)), scene.label
        return transformed(self.transform, scene.image, self.file(i)), scene.label

    @property
    def presence(self) -> Array:
        """Marks (N, classes), int8, without drawing; 1 where an object of the class is in the scene, else -1."""
        marks = np.full((self.count, len(self.classes)), -1, dtype=np.int8)
        for i in range(self.count):
            marks[i, self._labels(i)] = 1
        return marks

    def _labels(self, i: int) -> list[int]:
        return labels_of(i, seed=self.seed, classes=len(self.classes), split=self.split, objects=self.objects)

    def scene(self, i: int) -> Scene:
        """Scene i with its mask and parts; IndexError beyond the end."""
        return render(
            self._index(i), self.size, seed=self.seed, classes=self.classes, split=self.split, objects=self.objects
        )

    def file(self, i: int) -> str:
        """A name for scene i: scenes/train/000123."""
        return f"scenes/{self.split}/{self._index(i):06d}"

    def basis(self) -> Any:
        transform = transform_identity(self.transform)
        settings = VERSION, self.split, self.count, self.size, self.seed, self.objects
        return None if transform is None else [settings, transform]

    def truth(self, i: int) -> Truth | None:
        """The first object's mask and parts, and the boxes of what can be seen of all; None where the transform does
        not say where it puts a pixel.
        """
        scene, seen = self.scene(i), box_after(self.transform)
        if seen is None:
            return None
        rows, columns = self.size
        mask = torch.from_numpy(scene.mask)
        if isinstance(self.transform, Preprocessing):
            drawn = np.repeat(255 * scene.mask[..., None].astype(np.uint8), 3, axis=2)
            mask = self.transform.pixels(self.transform(drawn))[0] > 0.5
        objects = [_bounds(shape) for shape in scene.objects.values() if shape.any()]
        return Truth(
            mask,
            [seen(box, columns, rows) for box in objects],
            {part: seen(box, columns, rows) for part, box in scene.parts.items()},
        )

    def _index(self, i: int) -> int:
        if not -self.count <= i < self.count:
            raise IndexError(f"scene {i} of {self.count}")
        return i % self.count


def _bounds(mask: Array) -> Box:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
