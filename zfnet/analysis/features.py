"""The outputs of a frozen network for a dataset, computed once and kept on disk, for classifiers to be trained on.

Features are stored one row per image in memory-mapped files, so they need not fit in memory. A file's name has a digest
of all that its numbers depend on (weights, architecture, preprocessing, images, layer), so features of another network
are never read, and a note beside it has a digest of its bytes, so damage is noticed. One run at a time writes a file.
Zeiler & Fergus (2014), section 5.
"""

import contextlib
import errno
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from tqdm import tqdm

from zfnet.checks import check_images, check_weights, undifferentiated
from zfnet.data.batches import Batches
from zfnet.data.crops import crop_size, views
from zfnet.data.images import Images, as_images
from zfnet.data.preprocessing import Preprocessing
from zfnet.errors import InputError, first_line, unknown_name
from zfnet.files import locked, open_regular, remove, sync_folder
from zfnet.graph import Graph, graph_of
from zfnet.identity import Identity, digest, read_sealed, write_sealed
from zfnet.training.evaluation import network_input

SAVE_EVERY = 30.0  # seconds between two records of progress
TYPES = ("float16", "float32")


def features(
    model: nn.Module | Graph,
    dataset: Any,
    layers: Sequence[str],
    folder: str | os.PathLike[str],
    *,
    max_features: int | None = None,
    crops: int = 1,
    dtype: str = "float32",
    batch_size: int = 64,
    workers: int | None = None,
    fresh: bool = False,
    progress: bool = True,
) -> dict[str, np.ndarray]:
    """The outputs (N, D) of layers for the N images of a dataset, by layer, as memory-mapped arrays.

    Args:
        dataset: what `as_images` takes.
        folder: where features are kept, or one file of it, which must have been made by this network from these images.
            Existing features are read, and an interrupted run resumes.
        max_features: the most numbers for one image; larger maps are averaged over areas of their plane until they fit.
        crops: 1, or 10, whose features are averaged: of images that leave a margin, bytes as `Stored` gives them.
        dtype: "float32", or "float16", which halves the files.
        workers: processes that read images; by default as many as there are cores, up to eight.
        fresh: compute these features again, even if they exist.

    Raises:
        InputError: for unknown layers, broken images, values that `dtype` cannot hold, files that are damaged, and
            features that another run is computing.
    """
    graph, images = graph_of(model), as_images(dataset)
    if dtype not in TYPES:
        raise unknown_name("type of features", dtype, TYPES)
    if max_features is not None and max_features < 1:
        raise InputError(f"max_features is {max_features}; give at least 1 number an image")
    if isinstance(layers, str) or not len(images):
        raise InputError("features need a list of layers, such as layers=['relu7'], and a dataset that is not empty")
    check_weights(graph.model)
    if os.path.isfile(folder) and (fresh or Path(folder).suffix != ".npy"):
        raise InputError(f"{folder} is a file{' of another kind' * (not fresh)}; give the folder of features")
    files = _files(graph, images, layers, Path(folder), max_features, crops, dtype)
    if fresh or not all(file.complete() for file in files.values()):
        if os.path.isdir(folder):
            _remove_leftovers(Path(folder))
        with contextlib.ExitStack() as stack:
            for file in sorted(files.values(), key=lambda file: file.path):
                stack.enter_context(file.locked())
            if fresh:
                for file in files.values():
                    file.remove()
            # asked anew: a run that has just ended may have computed them
            if missing := [file for file in files.values() if not file.complete()]:
                _compute(graph, images, missing, crops, batch_size, workers, progress)
    return {layer: np.load(file.path, mmap_mode="r") for layer, file in files.items()}


def _files(
    graph: Graph, images: Images, layers: Sequence[str], folder: Path, max_features: int | None, crops: int, dtype: str
) -> dict[str, "_File"]:
    """The file of each layer, by layer."""
    with undifferentiated(graph.model):
        sample = _views(graph.model, images[0][0][None], crops)[0]
        shapes = graph.shapes((sample.shape[-2], sample.shape[-1]), graph.output)
    preprocessing = Preprocessing.of(graph.model)
    identity = graph.identity() | {
        "preprocessing": digest(preprocessing.settings, preprocessing.mean_image),
        "images": images.identity(),
        "crops": str(crops),
        "dtype": dtype,
        "format": "2",  # of the note: those of format 1 had a digest of the rows alone
    }
    files = {}
    for layer in layers:
        node = graph.node(layer)
        if node not in shapes:
            raise InputError(f"{layer} gives no tensor, so it has no features")
        kept = _kept_shape(tuple(shapes[node][1:]), max_features)
        own = identity | {"layer": graph.names[node], "max_features": str(kept)}  # as far as it changes anything
        path = folder if os.path.isfile(folder) else folder / f"{_file_name(layer)}-{digest(own)[:16]}.npy"
        files[layer] = _File(path, layer, node, own, kept, (len(images), math.prod(kept)), np.dtype(dtype))
    if os.path.isfile(folder) and len(files) > 1:
        raise InputError(f"{folder} is a file of one layer; give a folder for {len(files)} layers")
    return files


def _compute(
    graph: Graph,
    images: Images,
    files: Sequence["_File"],
    crops: int,
    batch_size: int,
    workers: int | None,
    progress: bool,
) -> None:
    """Write the rows that are missing."""
    first = min(file.done() for file in files)
    arrays = [file.open(first) for file in files]
    # the rows that are written and the hashes up to them: of whole batches, wherever it is interrupted
    reached = first, [file.hash(file.part, first) for file in files]
    batches = Batches(images, batch_size, indices=range(first, len(images)), workers=workers)
    saved_at = monotonic()
    try:
        with tqdm(total=len(images), initial=first, unit=" images", desc="features", disable=not progress) as bar:
            for batch in batches:
                _check_unbroken(batches)
                hashes = [total.copy() for total in reached[1]]
                rows = _rows(graph, files, batch.images, crops)
                for file, array, entries, total in zip(files, arrays, rows, hashes, strict=True):
                    if not np.isfinite(entries).all():
                        raise InputError(f"{file.layer} has values that {file.dtype} cannot hold")
                    array[batch.index] = entries
                    total.update(_bytes(entries))
                reached = int(batch.index[-1]) + 1, hashes
                bar.update(len(batch.index))
                if monotonic() - saved_at > SAVE_EVERY:
                    _check_there(files)
                    _note(files, arrays, *reached)
                    saved_at = monotonic()
        _check_unbroken(batches)
    finally:
        _note(files, arrays, *reached)
    arrays.clear()
    for file in files:
        file.finish()


def _check_there(files: Sequence["_File"]) -> None:
    for file in files:
        if not os.path.exists(file.part):
            raise InputError(f"{file.part} was removed while it was written")


def _check_unbroken(batches: Batches) -> None:
    if batches.broken:
        raise InputError(f"{batches.broken[0]}; features need every image: repair or remove it")


def _rows(graph: Graph, files: Sequence["_File"], images: Tensor, crops: int) -> list[np.ndarray]:
    """The features (N, D) of images, averaged over their crops, for each file and of its type."""
    nodes = [file.node for file in files]
    means: list[Any] = [0] * len(files)
    with undifferentiated(graph.model):
        parts = _views(graph.model, images, crops)
        for part in parts:
            values = graph.run(check_images(graph.model, part), nodes, graph.call)
            means = [mean + file.row(values[file.node]) / len(parts) for mean, file in zip(means, files, strict=True)]
    with np.errstate(over="ignore"):  # the caller refuses what does not fit
        return [mean.cpu().numpy().astype(file.dtype) for mean, file in zip(means, files, strict=True)]


def _note(files: Sequence["_File"], arrays: Sequence[np.memmap], done: int, hashes: Sequence[Any]) -> None:
    for file, array, total in zip(files, arrays, hashes, strict=True):
        array.flush()
        write_sealed(file.note, file.identity, [done, total.hexdigest()])


def _bytes(rows: np.ndarray) -> memoryview:
    return np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data


def _reserve(path: Path) -> None:
    """Reserve disk space for a file; on a full disk a write to a map of the file would end the process."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    path.unlink()
                    raise


def _remove_leftovers(folder: Path) -> None:
    """Remove files of runs that were killed before they recorded their progress."""
    for part in folder.glob("*-" + 16 * "[0-9a-f]" + ".part"):
        if not part.with_suffix(".json").exists():
            with contextlib.suppress(InputError, OSError), locked(part.with_suffix(".lock"), "is at work"):
                part.unlink()


def _file_name(layer: str) -> str:
    """A layer's name as part of a file's."""
    return re.sub(r"[^\w.-]", "_", layer)[:60]


def _views(model: nn.Module, images: Tensor, crops: int) -> Sequence[Tensor]:
    prepared = network_input(model, images)
    if images.dtype != torch.uint8 and crops == 1:
        return (prepared,)
    return views(prepared, crop_size(model, images), crops)


def _kept_shape(shape: tuple[int, ...], max_features: int | None) -> tuple[int, ...]:
    """The shape of what is kept of one image's output: the planes of its maps are made smaller until they fit."""
    if len(shape) != 3 or max_features is None or math.prod(shape) <= max_features:
        return shape
    side = max(1, math.isqrt(max_features // shape[0]))
    return shape[0], min(side, shape[1]), min(side, shape[2])


@dataclass
class _File:
    """The features of one layer: an .npy once it is complete, a .part before, and a .json with its description."""

    path: Path
    layer: str
    node: fx.Node
    identity: Identity
    kept: tuple[int, ...]  # the shape of one image's features
    shape: tuple[int, int]  # (N, D), of all images' features
    dtype: np.dtype[Any]

    @property
    def part(self) -> Path:
        return self.path.with_suffix(".part")

    @property
    def note(self) -> Path:
        return self.path.with_suffix(".json")

    @property
    def remedy(self) -> str:
        path = self.path if os.path.exists(self.path) else self.part
        return f"delete {path}, or start again with fresh=True"

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keep other runs from computing these features."""
        return locked(self.path.with_suffix(".lock"), f"computes features of {self.layer} in {self.path.parent}")

    def complete(self) -> bool:
        if not os.path.exists(self.path):
            return False
        if (done := self.done()) < self.shape[0]:
            raise InputError(f"{self.path} has {done} of {self.shape[0]} rows; {self.remedy}")
        return True

    def done(self) -> int:
        """How many rows are written. Raises InputError if they are damaged, or of another run."""
        path = self.path if os.path.exists(self.path) else self.part
        if not os.path.exists(path) or (path == self.part and not os.path.exists(self.note)):
            return 0
        if not os.path.exists(self.note):
            raise InputError(f"{path} has no {self.note.name} beside it, as files of an older format; {self.remedy}")
        content = read_sealed(self.note, self.identity, self.remedy)
        if not isinstance(content, list) or len(content) != 2 or content[0] not in range(self.shape[0] + 1):
            raise InputError(f"{self.note} was not written by zfnet; {self.remedy}")
        done, total = content
        if self.hash(path, done).hexdigest() != total:
            raise InputError(f"{path} is damaged: its content does not match its checksum; {self.remedy}")
        return int(done)

    def hash(self, path: Path, done: int) -> Any:
        """The hash of a file up to its first rows. Raises InputError if it is not a file of these features."""
        row, damaged = self.shape[1] * self.dtype.itemsize, f"{path} is damaged: it does not hold {self.shape} numbers"
        try:
            with open_regular(path) as file:
                np.lib.format.read_magic(file)
                about, start = np.lib.format.read_array_header_1_0(file), file.tell()
                size = os.fstat(file.fileno()).st_size
                if about != (self.shape, False, self.dtype) or size != start + self.shape[0] * row:
                    raise InputError(f"{damaged}; {self.remedy}")
                file.seek(0)
                total, left = blake2b(), start + done * row
                while left and (content := file.read(min(left, 2**20))):
                    total.update(content)
                    left -= len(content)
        except OSError as error:
            raise InputError(f"cannot read {path}: {first_line(error)}; {self.remedy}") from None
        except InputError:
            raise
        except Exception as error:  # numpy reads the header as Python
            raise InputError(f"{damaged} ({first_line(error)}); {self.remedy}") from None
        return total

    def open(self, done: int) -> np.memmap:
        """The file to write to, with the rows that are done."""
        try:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            if done:
                return np.lib.format.open_memmap(self.part, "r+")
            self.note.unlink(missing_ok=True)
            array = np.lib.format.open_memmap(self.part, "w+", self.dtype, self.shape)
            _reserve(self.part)
            return array
        except (OSError, ValueError) as error:
            raise InputError(f"cannot write {self.part}: {first_line(error)}") from None

    def finish(self) -> None:
        """Give the file its name, once all rows are in it."""
        try:
            os.replace(self.part, self.path)
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {first_line(error)}") from None
        sync_folder(self.path.parent)

    def remove(self) -> None:
        """Remove the files of these features. Raises InputError if this fails."""
        remove(self.path, self.part, self.note)

    def row(self, value: Tensor) -> Tensor:
        """The stored features (N, D) of an output (N, ...)."""
        value = value.float()  # first: a mean of float16 values may overflow
        if value.shape[1:] != self.kept:
            value = F.adaptive_avg_pool2d(value, (self.kept[1], self.kept[2]))
        return value.flatten(1)
