"""The dataset protocol, which zfnet uses for every dataset of images, and adapters for others.

Subclass `Images`, or pass what you have: `as_images` adapts tensors, torchvision's and Hugging Face's datasets, and
anything else with `__len__` and `__getitem__`. All other code uses only the protocol.
"""

import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from zfnet.data.folders import DAMAGED
from zfnet.data.preprocessing import Preprocessing, rgb_tensor, upright_rgb
from zfnet.errors import BrokenImage, InputError, first_line, printable
from zfnet.identity import digest

Box = tuple[int, int, int, int]  # top, left, bottom, right in pixels; ends exclusive
IMAGE_KEYS, LABEL_KEYS = ("image", "img"), ("label", "labels")  # of items that are mappings
# what Pillow and zipfile raise for damaged files. Not AttributeError and NameError, which would be our own mistakes
DAMAGED_IMAGE = (*DAMAGED, SyntaxError, TypeError, Image.DecompressionBombError)


class Truth(NamedTuple):
    """What is known to be in an image, in the pixels of the dataset's items. Boxes may reach beyond the image.

    Attributes:
        mask: (H, W) bool, the labelled object.
        objects: the boxes of all objects: top, left, bottom, right in pixels, ends exclusive.
        parts: the boxes of those parts of the labelled object that can be seen; None: they are not known.
    """

    mask: Tensor | None = None
    objects: Sequence[Box] = ()
    parts: Mapping[str, Box] | None = None


class Images(Dataset[tuple[Tensor, int]]):
    """A map-style dataset of images. Subclasses give `__len__` and `__getitem__`; all else has a default.

    `__getitem__` raises BrokenImage for an image that cannot be read: it is then left out, and named.

    Attributes:
        classes: the names of the labels, in order.
        labels: every item's label; None: only the items know.
        official_split: "train" or "test" for every item, where the dataset fixes it; else None.
    """

    classes: Sequence[str] = ()
    labels: list[int] | None = None
    official_split: Sequence[str | None] | None = None

    @property
    def title(self) -> str:
        """The dataset's name in results."""
        return type(self).__name__

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """An image (C, H, W) and its label, -1 where it has none."""
        raise NotImplementedError

    def file(self, index: int) -> str | None:
        """The path or name of an item."""
        return None

    def truth(self, index: int) -> Truth | None:
        """Mask and boxes of the objects in an item; None if they are not known."""
        return None

    def name(self, index: int) -> str:
        """What an error calls an item: "item 3 (cat/3.jpg)"."""
        file = self.file(index)
        return f"item {index}" if file is None else f"item {index} ({printable(file)})"

    def identity(self) -> str:
        """A digest of everything that the items depend on: equal digests mean equal items."""
        basis = self.basis()
        about = type(self).__qualname__, list(self.classes), self.official_split and list(self.official_split)
        return digest(about, list(self._item_digests()) if basis is None else basis)

    def basis(self) -> Any:
        """Everything that the items depend on, for `digest`; None, the default: every item is read instead."""
        return None

    def _item_digests(self) -> Iterator[str]:
        for i in range(len(self)):
            try:
                yield digest(*read_item(self, i))
            except BrokenImage as error:
                yield str(error)


def as_images(dataset: Any) -> Images:
    """Adapt a dataset to the protocol: an `Images` is returned as it is.

    A dataset is a Tensor (N, C, H, W), a TensorDataset, a Subset, or anything with `__len__` and `__getitem__` whose
    items are an image, (image, label), or a mapping with `image` or `img` and perhaps `label`. An image is a tensor
    (C, H, W), or one of Pillow's, which becomes float32 (1 or 3, H, W) in 0..1.

    Raises:
        InputError: for what cannot be adapted.
    """
    if isinstance(dataset, Images):
        return dataset
    if isinstance(dataset, Tensor):
        return TensorImages(dataset)
    if type(dataset) is TensorDataset:
        return TensorImages(*dataset.tensors)
    kind = type(dataset).__name__
    if isinstance(dataset, DataLoader):
        raise InputError("a DataLoader has no items by index; pass its dataset, loader.dataset")
    if isinstance(dataset, str | bytes | os.PathLike):
        raise InputError(
            f"{str(dataset)!r} is not a dataset; for a folder of photographs pass Photos({str(dataset)!r})"
        )
    if isinstance(dataset, Mapping):
        raise InputError(
            f"a {kind} is not a dataset; pass one of its entries: {', '.join(map(str, dataset)) or 'none'}"
        )
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise InputError(f"a {kind} has no items by index; pass a map-style dataset, with __len__ and __getitem__")
    return SubsetImages(dataset) if type(dataset) is Subset else ForeignImages(dataset)


class TensorImages(Images):
    """Images (N, C, H, W) in memory, with or without labels (N,)."""

    def __init__(self, *tensors: Tensor) -> None:
        images = tensors[0]
        if images.ndim != 4 or len(tensors) > 2 or not all(_are_labels(labels) for labels in tensors[1:]):
            shapes = ", ".join(f"{tuple(tensor.shape)} of {tensor.dtype}" for tensor in tensors)
            raise InputError(f"tensors {shapes} are not images (N, C, H, W), with or without whole labels (N,)")
        self.images = images
        self.labels = tensors[1].tolist() if len(tensors) == 2 else [-1] * len(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        assert self.labels is not None
        return self.images[index], self.labels[index]

    def basis(self) -> Any:
        return [digest(self.images), self.labels]


def _are_labels(tensor: Tensor) -> bool:
    return tensor.ndim == 1 and not tensor.is_floating_point() and not tensor.is_complex()


class SubsetImages(Images):
    """Some items of a dataset, as `torch.utils.data.Subset` and `random_split` choose them."""

    def __init__(self, subset: Subset[Any]) -> None:
        self.whole, self.indices = as_images(subset.dataset), [int(i) for i in subset.indices]
        self.classes = self.whole.classes
        if self.whole.labels is not None:
            self.labels = [self.whole.labels[i] for i in self.indices]
        if self.whole.official_split is not None:
            self.official_split = [self.whole.official_split[i] for i in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.whole[self.indices[index]]

    def file(self, index: int) -> str | None:
        return self.whole.file(self.indices[index])

    def truth(self, index: int) -> Truth | None:
        return self.whole.truth(self.indices[index])

    def basis(self) -> Any:
        return None if self.whole.basis() is None else [self.whole.identity(), self.indices]


class ForeignImages(Images):
    """A map-style dataset that does not know the protocol; torchvision's and Hugging Face's keep classes and files.

    Its identity is that of its items, unless it has a method `identity`, or is one of torchvision's in memory with a
    transform that has an identity.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        names = getattr(dataset, "classes", None)
        if isinstance(features := getattr(dataset, "features", None), Mapping):  # Hugging Face's
            names = next((getattr(features[key], "names", None) for key in LABEL_KEYS if key in features), None)
        self.classes = tuple(map(str, names)) if isinstance(names, list | tuple) else ()
        torchvisions = type(dataset).__module__.startswith("torchvision.")
        if torchvisions and hasattr(dataset, "targets") and dataset.target_transform is None:
            targets = torch.as_tensor(dataset.targets)
            self.labels = targets.tolist() if _are_labels(targets) else None
        self.samples = dataset.samples if torchvisions and hasattr(dataset, "samples") else None

    @property
    def title(self) -> str:
        return type(self.dataset).__name__

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return _image_and_label(self.dataset[index], self.name(index))

    def file(self, index: int) -> str | None:
        return str(self.samples[index][0]) if self.samples else None

    def basis(self) -> Any:
        kind = type(self.dataset).__qualname__
        if hasattr(self.dataset, "identity"):
            return [kind, self.dataset.identity()]
        if self.labels is None or not hasattr(self.dataset, "data"):
            return None
        transform = transform_identity(self.dataset.transform)
        return None if transform is None else [kind, digest(self.dataset.data), self.labels, transform]


def read_item(images: Images, index: int) -> tuple[Tensor, int]:
    """An image (C, H, W) and its label, -1 for none. Raises InputError, naming the item, if it is anything else.

    Raises BrokenImage, which names it too, if it cannot be read: two items never have the same message.
    """
    name = images.name(index)
    try:
        item = images[index]
    except BrokenImage as error:
        if printable(images.file(index) or name) in str(error):
            raise
        raise BrokenImage(f"{name}: {error}") from None
    except StopIteration as error:  # it would end the loop of whoever reads, as if there were no more items
        raise InputError(f"{name}: the dataset raised StopIteration") from error
    return _image_and_label(item, name)


def image_size(dataset: Any) -> tuple[int, int]:
    """Rows and columns of the first image of a dataset that can be read; BrokenImage if there is none."""
    images = as_images(dataset)
    error: Exception = InputError("there are no images")
    for i in range(len(images)):
        try:
            height, width = read_item(images, i)[0].shape[-2:]
        except BrokenImage as broken:
            error = broken
        else:
            return height, width
    raise error


def _image_and_label(item: Any, name: str) -> tuple[Tensor, int]:
    image, label = item, -1
    if isinstance(item, Mapping):
        keys = [next((key for key in choices if key in item), None) for choices in (IMAGE_KEYS, LABEL_KEYS)]
        if keys[0] is None:
            raise InputError(f"{name} has the keys {', '.join(map(str, item))}; it needs image or img")
        image, label = item[keys[0]], -1 if keys[1] is None else item[keys[1]]
    elif isinstance(item, tuple | list):
        if not 1 <= len(item) <= 2:
            raise InputError(f"{name} has {len(item)} entries; give an image, or (image, label)")
        image, label = item[0], item[1] if len(item) == 2 else -1
    if isinstance(image, Image.Image):
        grey = image.mode in ("1", "L")
        try:
            image = rgb_tensor(upright_rgb(image))[: 1 if grey else 3]
        except DAMAGED_IMAGE as error:
            raise BrokenImage(f"cannot load the image of {name}: {first_line(error)}") from None
    if not isinstance(image, Tensor) or image.ndim != 3:
        kind = f"a tensor {tuple(image.shape)}" if isinstance(image, Tensor) else f"of type {type(image).__name__}"
        raise InputError(f"the image of {name} is {kind}; give a tensor (C, H, W) or an image of Pillow's")
    if image.is_meta or image.is_quantized or image.layout != torch.strided:
        raise InputError(
            f"the image of {name} is a sparse, quantised or meta tensor; give a dense one, with its values"
        )
    try:
        number = operator.index(label)
        if not -(2**63) <= number < 2**63:
            raise TypeError
    except TypeError:
        shown = " ".join(repr(label).split())[:60]
        raise InputError(f"the label of {name} is {shown}; give a whole number, or -1 for none") from None
    return image.detach(), number  # a worker would hang on what has a gradient


def transformed(transform: Callable[[Any], Any], image: Any, name: str) -> Any:
    """Apply a transform to an image. Raises InputError, naming the image, for any error of the transform.

    Raises BrokenImage if there is not enough memory.
    """
    try:
        return transform(image)
    except InputError as error:
        raise type(error)(f"{name}: {error}") from None
    except MemoryError:
        raise BrokenImage(f"{name}: too large for the transform {type(transform).__name__}") from None
    except Exception as error:
        kind = type(transform).__name__
        raise InputError(f"{name}: the transform {kind} raised {type(error).__name__}: {first_line(error)}") from error


def box_after(transform: Any) -> Callable[[Sequence[float], int, int], Box] | None:
    """What tells where a transform puts a box of an image of that width and height; None where it does not say."""
    if transform is None:
        return lambda box, width, height: (round(box[0]), round(box[1]), round(box[2]), round(box[3]))
    return transform.box if isinstance(transform, Preprocessing) else None


def transform_identity(transform: Any) -> str | None:
    """A digest of what a transform depends on; None if only its results can tell, as for a function."""
    if transform is None:
        return digest(None)
    return digest(type(transform).__qualname__, transform.identity()) if hasattr(transform, "identity") else None
