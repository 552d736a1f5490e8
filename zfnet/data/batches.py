"""Batches of images in a known order, decoded by worker processes.

Every batch says which items it holds, so what is found in it can be traced to its image. An item that cannot
be loaded is left out and named, and does not end a scan of a million others.
"""

import contextlib
import operator
import os
import pickle
import signal
from collections.abc import Generator, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from zfnet.data.images import BrokenImage
from zfnet.errors import InputError

_FEW = 256  # below this, workers that must import torch first (spawned, not forked) do not pay


class Batch(NamedTuple):
    index: Tensor  # type: ignore[assignment]  # (N,), int64: which items of the dataset
    images: Tensor  # (N, 3, H, W)
    labels: Tensor  # (N,), int64: -1 where the dataset has none


class _Read(NamedTuple):
    """What a worker sends back. Lists, because every tensor would cost the main process a file descriptor."""

    items: list[int]
    images: Tensor | None
    labels: list[int]
    broken: list[str]
    error: str | None


def _name(dataset: Any, index: int) -> str:
    return f"item {index} ({dataset.file(index)})" if hasattr(dataset, "file") else f"item {index}"


def _check_finite(images: Tensor, index: list[int], dataset: Any) -> None:
    if images.is_floating_point() and not images.sum().isfinite():  # one pass; the images only when it fails
        for i, image in zip(index, images, strict=True):
            if not image.isfinite().all():
                raise InputError(f"the image of {_name(dataset, i)} has values that are not finite")


class _Reader(Dataset[_Read]):
    """A dataset whose item is a whole batch: the part of the work that is done in a worker."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, chunk: list[int]) -> _Read:
        read = _Read([], None, [], [], None)
        images: list[Tensor] = []
        try:
            for i in chunk:
                try:
                    image, label = self._item(i)
                except BrokenImage as error:
                    read.broken.append(str(error))
                    continue
                if images and image.shape != images[0].shape:
                    raise InputError(
                        f"{_name(self.dataset, read.items[0])} is {_size(images[0])} and"
                        f" {_name(self.dataset, i)} is {_size(image)};"
                        " a batch needs one size, so give the dataset a transform"
                    )
                images.append(image)
                read.items.append(i)
                read.labels.append(label)
            if not images:
                return read
            stacked = torch.stack(images)
            _check_finite(stacked, read.items, self.dataset)
            return read._replace(images=stacked)
        except InputError as error:  # as a message: raised here, it would come back as a worker's traceback
            return read._replace(error=str(error))

    def _item(self, i: int) -> tuple[Tensor, int]:
        item = self.dataset[i]
        image, label = item if isinstance(item, (tuple, list)) and len(item) == 2 else (item, -1)
        if isinstance(image, Tensor) and image.ndim == 3:
            try:
                return image, operator.index(label)
            except TypeError:
                pass
        kind = type(item).__name__ if image is item else f"({type(image).__name__}, {type(label).__name__})"
        raise InputError(f"{_name(self.dataset, i)} is {kind}; give a tensor (3, H, W) or (tensor, label)")


def _size(image: Tensor) -> str:
    return " x ".join(map(str, image.shape))


def _tensors(dataset: Any) -> tuple[Tensor, Tensor] | None:
    """The images and labels of a dataset that is nothing else, to be sliced."""
    tensors = dataset.tensors if type(dataset) is TensorDataset else (dataset,)
    if not isinstance(tensors[0], Tensor):
        return None
    if len(tensors) > 2 or tensors[0].ndim != 4 or (len(tensors) == 2 and not _are_labels(tensors[1])):
        shapes = ", ".join(f"{tuple(tensor.shape)} of {tensor.dtype}" for tensor in tensors)
        raise InputError(f"tensors {shapes} are no images (N, 3, H, W), with or without whole labels (N,)")
    return tensors[0], tensors[1] if len(tensors) == 2 else torch.full((len(tensors[0]),), -1)


def _are_labels(tensor: Tensor) -> bool:
    return tensor.ndim == 1 and not tensor.is_floating_point() and not tensor.is_complex()


def _checked(indices: Iterable[int], length: int) -> Tensor:
    chosen = torch.as_tensor(indices if isinstance(indices, Tensor) else list(indices))
    if chosen.numel() == 0:
        return torch.empty(0, dtype=torch.int64)
    if chosen.ndim != 1 or chosen.dtype == torch.bool or chosen.is_floating_point():
        raise InputError(f"indices are {tuple(chosen.shape)} of {chosen.dtype}; give whole numbers (N,)")
    outside = chosen[(chosen < 0) | (chosen >= length)]
    if len(outside):
        raise InputError(f"index {outside[0].item()} is outside a dataset of {length} items")
    return chosen.long().cpu()


def _slice(index: Tensor) -> slice | Tensor:
    """The same places as a slice if they follow one another: a slice is a view, not a copy."""
    return slice(int(index[0]), int(index[-1]) + 1) if (index.diff() == 1).all() else index


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _as_it_is(read: Any) -> Any:
    return read


def _leave_ctrl_c_to_the_main_process(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Batches:
    """The items `indices` (default all) of a dataset in their order, as `Batch`es of `batch_size`.

    An item is an image tensor (3, H, W) or (image, label). Items that raise BrokenImage are left out of their
    batch, which is then smaller, and named in `broken`. A Tensor (N, 3, H, W) or a TensorDataset is sliced
    where it lies. Any other dataset is read by `workers` processes, each with one thread; by default one for
    each core up to eight, or none for so few items that starting them would take longer than reading.
    InputError names the item whose image is not finite or not of its batch's size.
    """

    broken: list[str]  # one message for each image left out so far by the present or last iteration

    def __init__(
        self, dataset: Any, batch_size: int = 64, *, indices: Iterable[int] | None = None, workers: int | None = None
    ) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise InputError(f"{type(dataset).__name__} has no items by index; give a map-style dataset")
        for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
            if value is not None and (type(value) is not int or value < least):
                raise InputError(f"{name} is {value!r}; give a whole number from {least}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.indices = _checked(range(len(dataset)) if indices is None else indices, len(dataset))
        self.workers = workers
        self.broken = []
        self._tensors = _tensors(dataset)

    def __len__(self) -> int:
        """The number of batches, should no image be broken."""
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        self.broken = []
        chunks = self.indices.split(self.batch_size) if len(self.indices) else ()
        if self._tensors is not None:
            images, labels = self._tensors
            for index in chunks:
                place = _slice(index)
                batch = Batch(index, images[place], labels[place].long())
                _check_finite(batch.images, index.tolist(), self.dataset)
                yield batch
            return
        with contextlib.closing(self._reads([chunk.tolist() for chunk in chunks])) as reads:
            for read in reads:
                self.broken += read.broken
                if read.error is not None:
                    raise InputError(read.error)
                if read.images is not None:
                    yield Batch(torch.tensor(read.items), read.images, torch.tensor(read.labels))

    def _reads(self, chunks: list[list[int]]) -> Generator[_Read, None, None]:
        reader = _Reader(self.dataset)
        workers = self.workers
        if workers is None:
            workers = min(_cores(), 8) if len(self.indices) >= _FEW and _cores() > 1 else 0
        workers = min(workers, len(chunks))
        if not workers:
            yield from map(reader.__getitem__, chunks)
            return
        loader: DataLoader[_Read] = DataLoader(
            reader,
            batch_size=None,
            sampler=chunks,
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_ctrl_c_to_the_main_process,
            generator=torch.Generator(),  # or the loader would draw a seed from the global generator
        )
        try:
            reads: Any = iter(loader)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InputError(f"worker processes cannot be given the dataset ({error}); use workers=0") from None
        try:
            yield from reads
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):
                raise
            reason = " ".join(str(error).split())
            raise InputError(
                f"a worker process died, often for want of (shared) memory; use fewer workers or 0 ({reason})"
            ) from None
        finally:
            reads._shutdown_workers()  # now, and not when the last traceback that knows them is forgotten
