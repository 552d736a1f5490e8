"""The strongest activations of every feature map over a dataset: one pass, all layers and maps at once.

A scan keeps where a map was strongest (value, image, row, column), never a tensor: its memory does not grow with the
dataset. Of each batch it takes the maximum of every map, and searches for the place of a maximum only where it enters
the top k. Equal values go to the lower image, then row, then column, so that the result does not depend on batch size,
on how the dataset was cut into shards, or on their order. Where a layer clips its values from above (ReLU6), maps are
ranked by the value before the clip: otherwise all nine may be equal, and the order of the files would choose them.
Zeiler & Fergus (2014), Figure 2: the top nine of a feature map over the validation set.
"""

import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from tqdm import tqdm

from zfnet.checks import check_images, check_weights, device_and_dtype, undifferentiated
from zfnet.data.batches import Batch, Batches
from zfnet.data.images import Images, as_images
from zfnet.errors import InputError
from zfnet.files import remove
from zfnet.graph import Graph, graph_of
from zfnet.identity import Identity, digest, read_sealed, write_sealed

SAVE_EVERY = 30.0  # seconds between two saves of a scan's state
ANEW = "delete it, or start anew with fresh=True"

Units = Tensor  # (M, 4), int64: image, map, row and column of each unit, as `Deconvnet.project_units` takes them

_CLIPS = (F.relu6, F.hardtanh, F.hardtanh_)
_CLAMPS = (torch.clamp, torch.clamp_, torch.clip, torch.clip_)


class _Columns(NamedTuple):
    value: Tensor
    image: Tensor
    row: Tensor
    column: Tensor
    unclipped: Tensor


class TopActivations(_Columns):
    """The k strongest activations of each of C feature maps, strongest first; every field is (C, k).

    Where there are fewer than k, value and unclipped are -inf, and image, row and column (int64) are -1. `unclipped`
    ranks them: the values before a ReLU6 or Hardtanh clips them; in any other layer, `value`.
    """

    __slots__ = ()

    def __new__(
        cls, value: Tensor, image: Tensor, row: Tensor, column: Tensor, unclipped: Tensor | None = None
    ) -> "TopActivations":
        return super().__new__(cls, value, image, row, column, value if unclipped is None else unclipped)

    @classmethod
    def none(cls, maps: int, k: int, like: Tensor) -> "TopActivations":
        """No activations yet, on the device and of the type of `like`."""
        positions = torch.full((3, maps, k), -1, device=like.device)
        return cls(like.new_full((maps, k), -torch.inf), *positions.unbind())

    def to(self, device: torch.device | str) -> "TopActivations":
        return TopActivations(*(column.to(device) for column in self))

    def merge(self, other: "TopActivations") -> "TopActivations":
        """The k strongest of both; exact for scans of disjoint parts of a dataset, in any order."""
        if self.value.shape != other.value.shape:
            shapes = " and ".join(f"{top.value.shape[0]} maps, k={top.value.shape[1]}" for top in (self, other))
            raise InputError(f"cannot merge scans of different shapes ({shapes}); scan every part with the same k")
        return self._join(other)

    def _join(self, other: "TopActivations") -> "TopActivations":
        """The k strongest of both, of which the other may have more than k."""
        both = TopActivations(*(torch.cat(pair, 1) for pair in zip(self, other, strict=True)))
        order = torch.arange(both.value.shape[1], device=both.value.device).expand_as(both.value)
        for key in (both.column, both.row, both.image, both.unclipped):  # the most important last
            largest_first = key is both.unclipped
            order = order.gather(1, key.gather(1, order).argsort(dim=1, descending=largest_first, stable=True))
        order = order[:, : self.value.shape[1]]
        return TopActivations(*(column.gather(1, order) for column in both))

    def units(self, maps: Iterable[int] | None = None) -> Units:
        """The winners of some maps, all by default, as units (len(maps) * k, 4), map by map, strongest first.

        A missing winner keeps its row: its image is -1. Raises InputError for maps that the layer does not have.
        """
        count, k = self.value.shape
        if maps is not None and not isinstance(maps, Iterable):
            raise InputError(f"maps is {maps!r}; give a list of map numbers")
        chosen = torch.as_tensor(list(range(count) if maps is None else maps), dtype=torch.int64)
        if len(unknown := chosen[(chosen < 0) | (chosen >= count)]):
            raise InputError(f"no map {int(unknown[0])}: the layer has {count}, numbered from 0")
        image, row, column = (entries.cpu()[chosen].flatten() for entries in (self.image, self.row, self.column))
        return torch.stack([image, chosen.repeat_interleave(k), row, column], 1)


class Scan(dict[str, TopActivations]):
    """The strongest activations by layer, how many images were scanned, and a message for each unreadable one."""

    def __init__(self, tops: Mapping[str, TopActivations], images: int, broken: Sequence[str]):
        super().__init__(tops)
        self.images, self.broken = images, broken


def scan(
    model: nn.Module | Graph,
    dataset: Any,
    layers: Sequence[str | nn.Module],
    k: int = 9,
    *,
    batch_size: int = 64,
    distinct: bool = True,
    indices: Iterable[int] | None = None,
    workers: int | None = None,
    state: str | Path | None = None,
    keep_state: bool = False,
    fresh: bool = False,
    progress: bool = True,
) -> Scan:
    """Find the k strongest activations of every feature map of the layers over a dataset.

    Args:
        dataset: what `as_images` takes. Images that cannot be read are left out, and named in the result's `broken`.
        layers: names, or modules of the model.
        distinct: count an image once for a map, at its strongest position; otherwise any positions.
        indices: scan only these images; `TopActivations.merge` joins such shards.
        workers: processes that read images; by default as many as there are cores, up to eight.
        state: a file that keeps an interrupted scan; the same call resumes from it.
        keep_state: leave the finished scan in that file, for a caller that has more to do before it can be deleted.
        fresh: start anew and overwrite `state`.

    Raises InputError for unknown layers, fewer images than k, images that do not fit the network, NaN, and a `state`
    that is damaged or of another scan.
    """
    graph, images = graph_of(model), as_images(dataset)
    check_weights(graph.model)
    nodes = _nodes(graph, layers)
    chosen = _chosen(indices, len(images), k, distinct)
    file = None if state is None else Path(state)
    identity = _identity(graph, images, chosen, nodes.values(), k, distinct) if file else {}
    start = _Progress(0, {}, [])
    if file and fresh:
        remove(file)  # now: what is killed before it saves must not leave the old one
    elif file and os.path.exists(file):
        content = read_sealed(file, identity, ANEW)
        start = _Progress.of(content, file, graph, [graph.names[node] for node in nodes.values()], k, chosen)
    reached = start
    batches = Batches(images, batch_size, indices=chosen[start.done :], workers=workers)
    bar = tqdm(total=len(chosen), initial=start.done, unit=" images", desc="scan", disable=not progress)

    kept = bool(start.tops)

    def save() -> None:
        nonlocal kept
        if file and reached.tops:
            if kept and not os.path.exists(file):
                print(f"{file} was removed during the scan; it is written again", file=sys.stderr)
            write_sealed(file, identity, reached.content())
            kept = True

    saved_at = monotonic()
    try:
        with undifferentiated(graph.model), bar:
            for reached in _whole_batches(graph, set(nodes.values()), batches, chosen, start, k, distinct):
                bar.update(reached.done - bar.n)
                if reached.broken:
                    bar.set_postfix(broken=len(reached.broken), refresh=False)
                if monotonic() - saved_at > SAVE_EVERY:
                    save()
                    saved_at = monotonic()
    except BaseException:  # an error as well: a worker that died at the end of a long scan
        save()
        raise
    if not reached.tops:
        raise InputError(f"none of the {len(chosen)} images could be read: {(*reached.broken, 'there are none')[0]}")
    if keep_state:
        save()
    elif file:
        remove(file)
    tops = {layer: reached.tops[graph.names[node]].to("cpu") for layer, node in nodes.items()}
    return Scan(tops, len(chosen) - len(reached.broken), reached.broken)


def _nodes(graph: Graph, layers: Sequence[str | nn.Module]) -> dict[str, fx.Node]:
    """The steps to scan, by the names that the result will have for them."""
    if isinstance(layers, str | nn.Module) or not isinstance(layers, Iterable):
        raise InputError("layers must be a list, also for one layer, as in layers=['relu1']")
    nodes = {graph.name(layer): graph.node(layer) for layer in layers}
    if not nodes:
        raise InputError("a scan needs at least one layer; layers is empty")
    return nodes


def _chosen(indices: Iterable[int] | None, images: int, k: int, distinct: bool) -> Tensor:
    """The images to scan, in order."""
    if type(k) is not int or k < 1:
        raise InputError(f"k is {k!r}; give a whole number from 1")
    if indices is None and distinct and images < k:
        raise InputError(f"the dataset has {images} images, fewer than k={k}; lower k, or pass distinct=False")
    if indices is None:
        return torch.arange(images)
    try:
        chosen: Tensor = torch.as_tensor(list(indices))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"indices are a {type(indices).__name__}; give whole numbers (N,)") from None
    if chosen.ndim != 1:
        raise InputError(f"indices are of shape {tuple(chosen.shape)}; give whole numbers (N,)")
    unique: Tensor = chosen.unique()
    return unique


class _Progress(NamedTuple):
    """How far a scan has come, always by whole batches."""

    done: int  # how many of the chosen images were scanned, or could not be read
    tops: Mapping[str, TopActivations]  # by the names of the graph
    broken: list[str]

    def content(self) -> dict[str, Any]:
        """What is kept in a file."""
        tops = {layer: [column.cpu().clone() for column in top] for layer, top in self.tops.items()}
        return self._asdict() | {"tops": tops}

    @classmethod
    def of(cls, content: Any, file: Path, graph: Graph, layers: Sequence[str], k: int, chosen: Tensor) -> "_Progress":
        """The progress that a file keeps; InputError if no scan of these layers could have written it."""
        device = device_and_dtype(graph.model)["device"]
        try:
            read = cls(**content)
            tops = {layer: TopActivations(*columns) for layer, columns in read.tops.items()}
            valid = type(read.done) is int and 0 <= read.done <= len(chosen) and set(tops) == set(layers)
            valid = valid and isinstance(read.broken, list) and all(isinstance(name, str) for name in read.broken)
            valid = valid and all(_is_top(top, k, chosen) for top in tops.values())
        except (TypeError, ValueError, AttributeError, RuntimeError):
            valid = False
        if not valid:
            raise InputError(f"{file} holds what no scan of these layers writes; {ANEW}")
        return read._replace(tops={layer: top.to(device) for layer, top in tops.items()})


def _is_top(top: TopActivations, k: int, chosen: Tensor) -> bool:
    """Whether these are k values and places of each map, in the images that were chosen."""
    plain = all(type(column) is Tensor and column.layout == torch.strided for column in top)
    shapes = {column.shape for column in top} if plain else set()
    if len(shapes) != 1 or top.value.ndim != 2 or top.value.shape[1] != k:
        return False
    floats = all(column.is_floating_point() and not column.isnan().any() for column in (top.value, top.unclipped))
    places = all(column.dtype == torch.int64 and (column >= -1).all() for column in top[1:4])
    return floats and places and bool((torch.isin(top.image, chosen) | (top.image == -1)).all())


def _identity(
    graph: Graph, images: Images, chosen: Tensor, nodes: Iterable[fx.Node], k: int, distinct: bool
) -> Identity:
    """What a scan depends on."""
    return graph.identity() | {
        "dtype": str(device_and_dtype(graph.model)["dtype"]),
        "images": images.identity(),
        "indices": digest(chosen),
        "layers": digest(sorted(graph.names[node] for node in nodes)),
        "k": str(k),
        "distinct": str(distinct),
    }


# ---- one batch -------------------------------------------------------------------------------------------------------


def _whole_batches(
    graph: Graph, nodes: Collection[fx.Node], batches: Batches, chosen: Tensor, start: _Progress, k: int, distinct: bool
) -> Iterator[_Progress]:
    """How far the scan has come after each batch, and at the end. An interrupt leaves all of a batch or none of it."""
    reached = start
    for batch in batches:
        tops = _scanned(graph, nodes, batch, reached.tops, k, distinct)
        position = int(torch.searchsorted(chosen[start.done :], batch.index[-1]))
        done = start.done + (position // batches.batch_size + 1) * batches.batch_size
        reached = _Progress(min(done, len(chosen)), tops, [*start.broken, *batches.broken])
        yield reached
    yield _Progress(len(chosen), reached.tops, [*start.broken, *batches.broken])


def _scanned(
    graph: Graph, nodes: Collection[fx.Node], batch: Batch, before: Mapping[str, TopActivations], k: int, distinct: bool
) -> dict[str, TopActivations]:
    """The strongest activations before a batch and in it."""
    tops = dict(before)

    def take(node: fx.Node, output: Any) -> TopActivations:
        graph.check_maps(node, output)
        name, maps = graph.names[node], output if output.ndim == 4 else output[..., None, None]
        if not maps.is_floating_point():
            raise InputError(f"{name} gives {maps.dtype}; choose a layer of floating-point values")
        top = tops.get(name) or TopActivations.none(maps.shape[1], k, maps)
        tops[name] = _update(top, maps, batch.index, distinct, name)
        return tops[name]

    def apply(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node not in nodes:
            return graph.call(node, args, kwargs)
        if not _clips_from_above(graph, node, args, kwargs):
            output = graph.call(node, args, kwargs)
            take(node, output)  # now: the next step may overwrite it
            return output
        top = take(node, args[0])  # before the step, which may overwrite its input
        values = graph.call(node, (top.unclipped.clone(), *args[1:]), kwargs)
        tops[graph.names[node]] = top._replace(value=values.where(top.image >= 0, -torch.inf))
        return graph.call(node, args, kwargs)

    images = check_images(graph.model, batch.images)
    graph.check_size(images, nodes)
    graph.run(images, nodes, apply)
    return tops


def _clips_from_above(graph: Graph, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a step clips its input at a number: ReLU6, Hardtanh, or clamp with a maximum."""
    module = graph.module(node)
    if module is not None:
        return isinstance(module, nn.Hardtanh) and type(module).forward in (nn.Hardtanh.forward, nn.ReLU6.forward)
    function = getattr(torch, node.target, None) if isinstance(node.target, str) else node.target
    if function in _CLAMPS:
        return isinstance(kwargs.get("max", args[2] if len(args) > 2 else None), int | float)
    if function in (torch.clamp_max, torch.clamp_max_):
        return isinstance(kwargs.get("max", args[1] if len(args) > 1 else None), int | float)
    return function in _CLIPS


def _strongest(x: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum of every map of x (N, C, H, W) and its flat position, of equals the first; each (N, C)."""
    if x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last):
        # one pooling window over the whole map: the reduction that is fast where maps lie side by side
        best, position = F.max_pool2d(x, x.shape[2:], return_indices=True)
        return best.flatten(1), position.flatten(1)
    best, position = x.flatten(2).max(2)
    return best, position


def _update(top: TopActivations, x: Tensor, index: Tensor, distinct: bool, layer: str) -> TopActivations:
    """Take in the values x (N, C, H, W) of the images `index` (N,), later in the dataset than all before."""
    k = top.value.shape[1]
    best, positions = _strongest(x)
    if not best.isfinite().all():
        image = int(index[int((~best.isfinite()).any(1).nonzero()[0])])
        raise InputError(f"{layer} gives NaN or infinity, in {x.dtype}, on image {image}")
    best, which = best.sort(dim=0, descending=True, stable=True)  # (N, C)
    rank, maps = (best[:k] > top.unclipped[:, -1]).nonzero(as_tuple=True)  # equal is not enough: the earlier one stays
    if not len(maps):
        return top
    images = which[rank, maps]
    if distinct:
        value, position = best[rank, maps][:, None], positions[images, maps][:, None]
    else:
        planes = x[images, maps].flatten(1)  # (P, H W)
        value, position = (entries[:, :k] for entries in planes.sort(dim=1, descending=True, stable=True))
    count = value.shape[1]
    candidates = TopActivations.none(len(top.value), k * count, x)
    slots = (rank * count)[:, None] + torch.arange(count, device=x.device)
    target = (maps[:, None].expand_as(slots), slots)
    origin = index.to(x.device)[images][:, None].expand_as(slots)
    entries = (value, origin, position // x.shape[3], position % x.shape[3], value)
    for column, entry in zip(candidates, entries, strict=True):
        column[target] = entry
    return top._join(candidates)
