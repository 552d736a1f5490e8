"""Batches of images in a known order, decoded by worker processes.

Every batch lists its items, so that results can be traced to their images. An item that cannot be loaded is left out
and named; it does not end a scan of a million others.
"""

import contextlib
import math
import multiprocessing
import os
import pickle
import signal
import traceback
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from zfnet.data.images import Images, TensorImages, as_images, read_item
from zfnet.errors import BrokenImage, InputError

MOST_BROKEN = 0.01  # of the images to train or validate on, unless more are allowed
_FEW = 256  # below this, starting workers takes longer than reading


class Batch(NamedTuple):
    """Some items of a dataset.

    Attributes:
        index: (N,) int64, which items of the dataset.
        images: (N, C, H, W).
        labels: (N,) int64, -1 where the dataset has none.
    """

    index: Tensor  # type: ignore[assignment]
    images: Tensor
    labels: Tensor


class _Read(NamedTuple):
    """The answer of a worker. It holds lists, because every tensor would cost the main process a file descriptor."""

    items: list[int]
    images: Tensor | None
    labels: list[int]
    broken: list[str]
    error: str | None


def _check_finite(images: Tensor, index: list[int], dataset: Images) -> None:
    if images.is_floating_point() and not images.sum().isfinite():  # one pass; the images only when it fails
        for i, image in zip(index, images, strict=True):
            if not image.isfinite().all():
                raise InputError(f"the image of {dataset.name(i)} has values that are not finite")


def check_alike(first: Tensor, second: Tensor, *names: str) -> None:
    """InputError, with their names, for two images that are not of one size and type."""
    if first.shape != second.shape:
        what, sizes = "size", [" x ".join(map(str, image.shape)) for image in (first, second)]
    elif first.dtype != second.dtype:  # bytes in 0..255 would be taken for floats in 0..1
        what, sizes = "type", [str(image.dtype) for image in (first, second)]
    else:
        return
    both = " and ".join(f"{name} is {size}" for name, size in zip(names, sizes, strict=True))
    raise InputError(f"{both}; a batch needs one {what}, so give the dataset a transform")


def _room(count: int, image: Tensor) -> Tensor:
    """Room for so many images like this one; in a worker, in the memory that it shares with the main process.

    A batch is filled image by image: a list of them, their stack and its shared copy would be three times the memory,
    and the system would allocate new pages for every batch.
    """
    shape = (count, *image.shape)
    if get_worker_info() is None or image.device.type != "cpu":
        return torch.empty(shape, dtype=image.dtype, device=image.device)
    size = max(math.prod(shape) * image.element_size(), 1)
    storage = torch.UntypedStorage._new_shared(size)  # as torch's default_collate asks for it; nothing public does
    return torch.empty(0, dtype=image.dtype).set_(storage).view(shape)


class _Reader(Dataset[_Read]):
    """A dataset whose item is a whole batch: the work of a worker."""

    def __init__(self, dataset: Images) -> None:
        self.dataset = dataset

    def __getitem__(self, chunk: list[int]) -> _Read:
        read = _Read([], None, [], [], None)
        images = torch.empty(0)
        try:
            for i in chunk:
                try:
                    image, label = read_item(self.dataset, i)
                except BrokenImage as error:
                    read.broken.append(str(error))
                    continue
                if read.items:
                    check_alike(images[0], image, self.dataset.name(read.items[0]), self.dataset.name(i))
                else:
                    images = _room(len(chunk), image)
                images[len(read.items)] = image
                read.items.append(i)
                read.labels.append(label)
            if not read.items:
                return read
            images = images[: len(read.items)]
            _check_finite(images, read.items, self.dataset)
            return read._replace(images=images)
        except InputError as error:  # as a message: raised here, it would come back as a worker's traceback
            return read._replace(error=str(error))


def _checked(indices: Iterable[int], length: int) -> Tensor:
    chosen = torch.as_tensor(indices if isinstance(indices, Tensor) else list(indices))
    if chosen.numel() == 0:
        return torch.empty(0, dtype=torch.int64)
    if chosen.ndim != 1 or chosen.dtype == torch.bool or chosen.is_floating_point():
        raise InputError(f"indices are {tuple(chosen.shape)} of {chosen.dtype}; give whole numbers (N,)")
    if len(outside := chosen[(chosen < 0) | (chosen >= length)]):
        raise InputError(f"index {outside[0].item()} is outside a dataset of {length} items")
    return chosen.long().cpu()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_method() -> str:
    """How this Python starts processes. Asking must not fix the method."""
    return multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]


def _leave_ctrl_c_to_the_main_process(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _forget_frames(error: BaseException | None) -> None:
    """Clear the local variables of the frames that an error went through: they would keep workers alive."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def warn_of_broken(broken: Sequence[str], stacklevel: int = 2) -> None:
    """A warning that counts the images that were left out, and names the first."""
    if broken:
        warnings.warn(f"{len(broken)} image(s) could not be read, first: {min(broken)}", stacklevel=stacklevel + 1)


class Broken:
    """The images of a dataset that could not be read, each named once. Raises InputError if there are too many.

    Args:
        kind: what they are for, such as "training".
        total: images of the dataset.
        allowed: whether more than 1 % may be broken, though not all.
        names: those that are known.
    """

    def __init__(self, kind: str, total: int, allowed: bool = False, names: Iterable[str] = ()) -> None:
        self.kind, self.total, self.allowed = kind, total, allowed
        self._names, self._said = dict.fromkeys(names), 0

    @property
    def names(self) -> list[str]:
        """One message for each image."""
        return list(self._names)

    def add(self, messages: Iterable[str]) -> None:
        """Keep those that are new."""
        self._names |= dict.fromkeys(messages)
        count = len(self._names)
        if count and count >= self.total:
            raise InputError(f"none of the {self.total} {self._what()}")
        if count > self.total * MOST_BROKEN and not self.allowed:
            share = f"{count} of {self.total} ({count / self.total:.1%})"
            raise InputError(f"{share} {self._what()}; repair or remove them, or leave them out with allow_broken=true")

    def warn(self, stacklevel: int = 2) -> None:
        """A warning that counts the images and names the first, if there are more than at the last one."""
        if len(self._names) > self._said:
            self._said = len(self._names)
            warnings.warn(f"{self._said} {self._what()}", stacklevel=stacklevel + 1)

    def _what(self) -> str:
        return f"{self.kind} image(s) could not be read, first: {min(self._names)}"


class Batches:
    """The items `indices` of a dataset in their order, as batches: for a scan, and to read its winners again.

    Items that raise BrokenImage are left out of their batch, which is then smaller, and named in `broken`. Tensors are
    sliced without a copy.

    Args:
        dataset: anything that `as_images` takes.
        batch_size: items in a batch.
        indices: whole numbers (N,), in any order and repeated at will; None: all items.
        workers: processes that read; 0: this one. None: one for each core up to eight, but none for a few items, and
            none where processes are not forked (macOS, Windows, Python 3.14): there a script must guard its code with
            `if __name__ == "__main__":` first.

    Raises:
        InputError: for an item whose image is not finite or not of its batch's size.
    """

    broken: list[str]  # one message for each image left out so far by the present or last iteration

    def __init__(
        self, dataset: Any, batch_size: int = 64, *, indices: Iterable[int] | None = None, workers: int | None = None
    ) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
            if value is not None and (type(value) is not int or value < least):
                raise InputError(f"{name} is {value!r}; give a whole number from {least}")
        self.dataset = as_images(dataset)
        self.batch_size = batch_size
        self.indices = _checked(range(len(self.dataset)) if indices is None else indices, len(self.dataset))
        self.workers = workers
        self.broken = []

    def __len__(self) -> int:
        """The number of batches, should no image be broken."""
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        self.broken = []
        chunks = self.indices.split(self.batch_size) if len(self.indices) else ()
        if isinstance(self.dataset, TensorImages):
            images, labels = self.dataset.images, torch.tensor(self.dataset.labels)
            places = self.indices.to(images.device).split(self.batch_size)  # copied once: each copy would wait
            for index, place in zip(chunks, places, strict=False):
                if (index.diff() == 1).all():  # then a slice, which is a view and no copy
                    items = slice(int(index[0]), int(index[-1]) + 1)
                    batch = Batch(index, images[items], labels[items])
                else:
                    batch = Batch(index, images[place], labels[index])
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
        reader, workers = _Reader(self.dataset), self.workers
        if workers is None:
            pays = len(self.indices) >= _FEW and _cores() > 1 and _start_method() == "fork"
            workers = min(_cores(), 8) if pays else 0
        workers = min(workers, len(chunks))
        if not workers:
            yield from map(reader.__getitem__, chunks)
            return
        reads = _started(reader, chunks, workers)
        try:
            yield from reads
        except BaseException as error:
            _forget_frames(error)
            gone = isinstance(error, EOFError | ConnectionError)  # it died while it was sending
            if not gone and not (isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error)):
                raise
            died = " ".join(str(error).split()) or "its connection ended"
        else:
            return
        finally:
            del reads  # the workers end now, and not when the last traceback that knows them is forgotten
        raise InputError(f"a worker process died: {died}; {_advice()}")


def _started(reader: _Reader, chunks: list[list[int]], workers: int) -> Iterator[_Read]:
    """The answers of the worker processes, in the order of the chunks."""
    loader: DataLoader[_Read] = DataLoader(
        reader,
        batch_size=None,
        sampler=chunks,
        num_workers=workers,
        worker_init_fn=_leave_ctrl_c_to_the_main_process,
        generator=torch.Generator(),  # or the loader would draw a seed from the global generator
    )
    try:
        return iter(loader)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(f"worker processes cannot be given the dataset ({error}); use workers=0") from None
    except RuntimeError as error:
        if "bootstrapping phase" not in str(error):
            raise
    raise InputError(f"a worker process cannot start workers; {_advice()}")


def _advice() -> str:
    if _start_method() == "fork":
        return "use fewer workers if memory is short, or workers=0 to read without them"
    return 'put the code of your script under `if __name__ == "__main__":`, or use workers=0'
