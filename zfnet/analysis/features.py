"""What a frozen network makes of a data set, computed once and kept on the disk, for classifiers to be trained on.

Features are rows of numbers, one for each image, in memory-mapped files that are as large as they are and no larger in
memory.  A file's name has a digest of all that its numbers depend on (weights, architecture, preprocessing, images,
layer), so that features of another network are never read.  Zeiler & Fergus (2014), section 5.
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from tqdm import tqdm

from zfnet.checks import check_images, check_weights, evaluating
from zfnet.data.batches import Batches
from zfnet.data.preprocessing import Preprocessing
from zfnet.errors import InputError, unknown_name
from zfnet.files import write_atomically
from zfnet.graph import Graph, graph_of
from zfnet.training import crop_side, network_input, views

SAVE_EVERY = 30.0  # seconds between two notes of how far a run has come
TYPES = ("float16", "float32")


def features(
    model: nn.Module | Graph,
    dataset: Any,
    layers: Sequence[str],
    folder: str | os.PathLike[str],
    *,
    limit: int | None = None,
    crops: int = 1,
    dtype: str = "float32",
    batch_size: int = 64,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, np.ndarray]:
    """The outputs (N, D) of layers for the N images of a dataset, by layer, as memory-mapped arrays in `folder`.

    limit: the most numbers of one image; larger maps are averaged over areas of their plane until they fit.
    crops: 1, or 10, whose features are averaged: of images that leave a margin, bytes as `Stored` gives them.
    dtype: "float16" halves the files; what does not fit it is an InputError.
    folder: or one file of it, which is then read, and must have been made by this very network of these images.
    A run that was stopped goes on; what the folder has is read.  InputError for unknown layers, broken images and NaN.
    """
    graph = graph_of(model)
    if dtype not in TYPES:
        raise unknown_name("type of features", dtype, TYPES)
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; give at least 1 number an image")
    nodes = {layer: graph.node(layer) for layer in layers}
    check_weights(graph.model)
    about = f"{_digest(graph.model, dataset)} {crops} {dtype}"
    with evaluating(graph.model):
        sample = _crops(graph.model, dataset[0][0][None], crops)[0]
        shapes = graph.shapes((sample.shape[-2], sample.shape[-1]), graph.nodes[-1])
    files, place = {}, Path(folder)
    named = place.is_file()
    for layer, node in nodes.items():
        if node not in shapes:
            raise InputError(f"{layer} gives no tensor to be features of")
        width = math.prod(_side(tuple(shapes[node][1:]), limit))
        files[layer] = _File(place.parent if named else place, layer, about, (len(dataset), width), dtype)
    if named and [place] != [file.path for file in files.values()]:
        raise InputError(f"{place} holds features of other weights, images or layers; give its folder to make them")
    missing = {layer: file for layer, file in files.items() if not file.whole}
    if missing:
        _compute(graph, dataset, missing, limit, crops, batch_size, workers, progress)
    return {layer: file.read() for layer, file in files.items()}


def _compute(
    graph: Graph,
    dataset: Any,
    files: dict[str, "_File"],
    limit: int | None,
    crops: int,
    batch_size: int,
    workers: int | None,
    progress: bool,
) -> None:
    first = min(file.done for file in files.values())
    arrays = {layer: file.write() for layer, file in files.items()}
    nodes = {layer: graph.node(layer) for layer in files}
    batches = Batches(dataset, batch_size, indices=range(first, len(dataset)), workers=workers)
    done, saved = first, monotonic()
    try:
        with tqdm(total=len(dataset), initial=first, unit=" images", desc="features", disable=not progress) as bar:
            for batch in batches:
                if batches.broken:
                    raise InputError(f"{batches.broken[0]}; every image needs its features: mend or remove it")
                found: dict[str, Tensor] = {}
                with evaluating(graph.model):
                    parts = _crops(graph.model, batch.images, crops)
                    for part in parts:
                        values = graph.run(check_images(graph.model, part), list(nodes.values()), graph.call)
                        for layer, node in nodes.items():
                            found[layer] = found.get(layer, 0) + _row(values[node], limit) / len(parts)
                for layer, rows in found.items():
                    with np.errstate(over="ignore"):  # refused below, by name
                        arrays[layer][batch.index] = rows.cpu().numpy().astype(arrays[layer].dtype)
                    if not np.isfinite(arrays[layer][batch.index]).all():
                        raise InputError(f"{layer} has values that {arrays[layer].dtype} cannot hold")
                done = int(batch.index[-1]) + 1
                bar.update(len(batch.index))
                if monotonic() - saved > SAVE_EVERY:
                    _note(files, arrays, done)
                    saved = monotonic()
        if batches.broken:
            raise InputError(f"{batches.broken[0]}; every image needs its features: mend or remove it")
    finally:
        _note(files, arrays, done)
    arrays.clear()
    for file in files.values():
        file.finish()


def _note(files: dict[str, "_File"], arrays: dict[str, np.memmap], done: int) -> None:
    for layer, file in files.items():
        arrays[layer].flush()
        file.note(done)


def _crops(model: nn.Module, images: Tensor, crops: int) -> list[Tensor]:
    images_ = network_input(model, images)
    return views(images_, crop_side(model, images), crops) if images.dtype == torch.uint8 or crops != 1 else [images_]


def _side(shape: tuple[int, ...], limit: int | None) -> tuple[int, ...]:
    """The shape of what is kept of one image's output: its maps' planes made smaller until they fit."""
    if len(shape) != 3 or limit is None or math.prod(shape) <= limit:
        return shape
    side = max(1, math.isqrt(limit // shape[0]))
    return shape[0], min(side, shape[1]), min(side, shape[2])


def _row(value: Tensor, limit: int | None) -> Tensor:
    shape = tuple(value.shape[1:])
    kept = _side(shape, limit)
    return (value if kept == shape else F.adaptive_avg_pool2d(value, (kept[1], kept[2]))).float().flatten(1)


def _digest(model: nn.Module, dataset: Any) -> str:
    """What tells the features of one network and data set from others'; of images that no file has, three."""
    digest = hashlib.blake2b(repr((repr(model), len(dataset))).encode(), digest_size=8)
    how = Preprocessing.of(model)
    digest.update(how.to_json().encode())
    tensors = [*model.state_dict().values(), *([how.mean_image] if how.mean_image is not None else [])]
    if isinstance(dataset, TensorDataset):
        tensors += dataset.tensors[:1]
    else:
        tensors += [dataset[i][0] for i in sorted({0, len(dataset) // 2, len(dataset) - 1})]
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    if hasattr(dataset, "stamp"):
        digest.update("\n".join(dataset.stamp(i) for i in range(len(dataset))).encode())
    return digest.hexdigest()


class _File:
    """One layer's features: FOLDER/LAYER-DIGEST.npy once it is whole, .part and a note of how far it is before."""

    def __init__(self, folder: Path, layer: str, about: str, shape: tuple[int, int], dtype: str):
        key = hashlib.blake2b(f"{about} {layer} {shape[1]}".encode(), digest_size=8).hexdigest()
        self.path, self.shape, self.dtype = folder / f"{layer}-{key}.npy", shape, np.dtype(dtype)
        self.part, self.state = self.path.with_suffix(".part"), self.path.with_suffix(".json")

    def _fits(self, path: Path) -> bool:
        try:
            array = np.load(path, mmap_mode="r")
        except (OSError, ValueError):  # not there, or cut short
            return False
        return array.shape == self.shape and array.dtype == self.dtype

    @property
    def whole(self) -> bool:
        return self._fits(self.path)

    @property
    def done(self) -> int:
        """How many rows an earlier run has written."""
        try:
            done = int(json.loads(self.state.read_text(encoding="utf-8"))["done"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return done if self._fits(self.part) else 0

    def read(self) -> np.ndarray:
        return np.load(self.path, mmap_mode="r")

    def write(self) -> np.memmap:
        try:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            if self._fits(self.part):
                return np.lib.format.open_memmap(self.part, "r+")
            return np.lib.format.open_memmap(self.part, "w+", self.dtype, self.shape)
        except OSError as error:
            raise InputError(f"cannot write {self.part}: {error.strerror or error}") from None

    def note(self, done: int) -> None:
        write_atomically(self.state, json.dumps({"done": done}).encode())

    def finish(self) -> None:
        os.replace(self.part, self.path)
        self.state.unlink(missing_ok=True)
