"""Stored images, read once, and their crops for training and evaluation."""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torchvision.transforms.functional as TF
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from tqdm import tqdm

from zfnet.data.batches import Batch, Batches, Broken, check_alike, warn_of_broken
from zfnet.data.preprocessing import Preprocessing, Size
from zfnet.errors import InputError


def with_progress(batches: Batches, description: str, progress: bool, *, leave: bool = True) -> Iterator[Batch]:
    """The batches, counted by a progress bar."""
    with tqdm(total=len(batches.indices), unit=" images", desc=description, disable=not progress, leave=leave) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch.index))


def in_memory(
    dataset: Any,
    *,
    limit: float = math.inf,
    workers: int | None = None,
    progress: bool = True,
    description: str = "read",
    broken: Broken | None = None,
) -> Any:
    """All images and labels of a dataset, read once, as a TensorDataset; InputError if no image can be read.

    A warning counts those that cannot.

    Args:
        dataset: as for `Batches`; a TensorDataset is returned as it is.
        limit: bytes; a dataset whose images take more is returned as it is.
        workers: as for `Batches`.
        progress: show a progress bar, with this `description`.
        broken: keeps the names of images that cannot be read, and says how many may be; None: any number.
    """
    if isinstance(dataset, TensorDataset):
        return dataset
    images, labels, batches = [], [], Batches(dataset, workers=workers)
    for batch in _alike(with_progress(batches, description, progress), batches):
        if batch.images[0].nbytes * len(dataset) > limit:
            return dataset
        images.append(batch.images)
        labels.append(batch.labels)
    if not images:
        raise InputError(f"none of the {len(dataset)} images could be read: {batches.broken[0]}")
    _tell(batches.broken, broken)
    return TensorDataset(torch.cat(images), torch.cat(labels))


def on_device(dataset: Any, device: torch.device) -> Any:
    """A TensorDataset of bytes with its images on a GPU, if they take at most half of its free memory.

    Any other dataset, and all where the device is no GPU, are returned as they are: their batches are copied one by
    one. The other half is the network's.
    """
    bytes_ = type(dataset) is TensorDataset and dataset.tensors[0].dtype == torch.uint8
    if device.type != "cuda" or not bytes_ or dataset.tensors[0].nbytes > torch.cuda.mem_get_info(device)[0] // 2:
        return dataset
    return TensorDataset(dataset.tensors[0].to(device), *dataset.tensors[1:])


def _alike(items: Iterator[Batch], batches: Batches) -> Iterator[Batch]:
    """The items; InputError for one whose images are of another size or type than those of the first."""
    first = None
    for batch in items:
        first = first or batch
        names = (batches.dataset.name(int(index[0])) for index in (first.index, batch.index))
        check_alike(first.images[0], batch.images[0], *names)
        yield batch


def _tell(messages: list[str], broken: Broken | None) -> None:
    if broken is None:
        warn_of_broken(messages, stacklevel=3)
    else:
        broken.add(messages)
        broken.warn(stacklevel=3)


def mean_image(
    dataset: Any,
    preprocessing: Preprocessing,
    *,
    workers: int | None = None,
    progress: bool = True,
    broken: Broken | None = None,
) -> Tensor:
    """The mean (3, S, S) at every pixel of uint8 images (3, S, S), in the channels and scale of a preprocessing.

    Images that cannot be read are left out; see `in_memory`.
    """
    total, count, batches = torch.zeros(()), 0, Batches(dataset, workers=workers)
    for _, images, _ in _alike(with_progress(batches, "mean image", progress), batches):
        if images.dtype != torch.uint8:
            raise InputError(f"images are {images.dtype}; only uint8 images have a pixel mean: set pixel_mean=false")
        total, count = total + images.sum(0, dtype=torch.float64), count + len(images)
    _tell(batches.broken, broken)
    if not count:
        raise InputError("there are no images to take the mean of")
    return (preprocessing.arranged(total / count) * (preprocessing.scale / 255)).float().cpu()


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """The preprocessing of a model. Raises InputError without one."""
    preprocessing = getattr(model, "preprocessing", None)
    if not isinstance(preprocessing, Preprocessing):
        raise InputError(
            f"{type(model).__name__} has no preprocessing, which uint8 images need: set model.preprocessing"
        )
    return preprocessing


def crop_size(model: nn.Module, images: Tensor) -> Size:
    """The rows and columns of what a network sees of images (N, C, H, W); InputError if they are smaller."""
    extent = images.shape[-2], images.shape[-1]
    size = preprocessing_of(model).image_size if images.dtype == torch.uint8 else extent
    if extent[0] < size[0] or extent[1] < size[1]:
        raise InputError(f"cannot take {size[0]} x {size[1]} crops from {extent[0]} x {extent[1]} images")
    return size


def augment(
    images: Tensor,
    random: torch.Generator,
    size: Size | None = None,
    *,
    crops: str = "random",
    max_shift: int = 0,
    flip: bool = True,
    batch_size: int | None = None,
    share: slice = slice(None),
) -> Tensor:
    """A random crop (N, C, *size) of each image, mirrored or not, whatever share of its batch a process has.

    Args:
        images: (N, C, H, W): all of a batch, or one process' share of it.
        random: draws for the whole batch.
        size: rows and columns of the crops; None: those of the images.
        crops: "random": anywhere; "ten": at the five places of `views`.
        max_shift: pixels by which random crops may leave the image on each side; its border is repeated there.
        flip: mirror half of the images.
        batch_size: how many images the whole batch has; None: these.
        share: which images of the batch these are.
    """
    count = batch_size or len(images)
    rows, columns = size or images.shape[-2:]
    margin = (images.shape[-2] - rows, images.shape[-1] - columns)
    if crops == "ten":
        (down, right), centre = margin, [round(m / 2) for m in margin]
        corners = torch.tensor([[0, 0], [0, right], [down, 0], [down, right], centre])
        max_shift, corners = 0, corners[torch.randint(5, (count,), generator=random)]
    else:
        extent = torch.tensor([m + 2 * max_shift + 1 for m in margin])
        corners = (torch.rand(count, 2, generator=random, dtype=torch.float64) * extent).long()
    mirrored = (torch.rand(count, generator=random) < 0.5) & flip
    if not (any(margin) or max_shift or flip):
        return images
    # broken images are left out, so that a share may have fewer images than corners
    corners, mirrored = (drawn[share][: len(images)] for drawn in (corners - max_shift, mirrored))
    return _crops(images, corners, mirrored, (rows, columns))


def _crops(images: Tensor, corners: Tensor, mirrored: Tensor, size: Size) -> Tensor:
    """A crop (N, C, *size) of each image (N, C, H, W) in one gather, on the images' device, pixel by pixel.

    Args:
        corners: (N, 2), the first row and column of each crop; beyond an image its border is repeated.
        mirrored: (N,), bool: which crops are mirrored.
    """
    count, channels, height, width = images.shape
    device = images.device
    # without waiting for the device: what is copied from ordinary memory may be changed at once
    corners, mirrored = corners.to(device, non_blocking=True), mirrored.to(device, non_blocking=True)
    row, column = (torch.arange(extent, device=device) for extent in size)
    column = torch.where(mirrored[:, None], column.flip(0), column)
    rows = (corners[:, :1] + row).clamp(0, height - 1) + torch.arange(0, count * height, height, device=device)[:, None]
    columns = (corners[:, 1:] + column).clamp(0, width - 1)
    places = rows[:, :, None] * width + columns[:, None, :]
    pixels = images.permute(0, 2, 3, 1).reshape(-1, channels)
    return pixels.index_select(0, places.flatten()).view(count, *size, channels).permute(0, 3, 1, 2)


def views(images: Tensor, size: Size, crops: int, pad: int = 0) -> list[Tensor]:
    """The crops of images, 1 or 10 tensors (N, C, *size), that a network's answers are averaged over.

    Args:
        images: (N, C, H, W).
        size: rows and columns of the crops.
        crops: 1, the centre; or 10, the four corners and the centre, and the same of the mirrored images.
        pad: pixels by which the border is repeated before ten crops are taken, of images that leave no margin.
    """
    if crops not in (1, 10):
        raise InputError(f"crops is {crops}; give 1, the centre, or 10, with the corners and all mirrored")
    if crops == 1:
        return [TF.center_crop(images, list(size))]
    return list(TF.ten_crop(_bordered(images, pad), list(size)))


def _bordered(images: Tensor, pixels: int) -> Tensor:
    """Images with their border repeated all around."""
    return TF.pad(images, [pixels], padding_mode="edge") if pixels else images
