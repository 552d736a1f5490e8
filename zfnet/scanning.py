"""The strongest activations of every feature map over a dataset: one pass, all layers and maps at once.

A scan keeps the place of each strong activation (value, image, row, column), never a tensor: its memory does not grow
with the dataset. It takes the maximum of every map in each batch, and searches for the place of a maximum only if it
enters the top k. Equal values go to the lower image, then row, then column, so that the result does not depend on batch
size, on how the dataset was cut into shards, or on their order. Where a layer clips its values from above (ReLU6), maps
are ranked by the value before the clip: otherwise all nine may be equal, and the order of the files would choose them.
Zeiler & Fergus (2014), Figure 2: the top nine of a feature map over the validation set.
"""

import operator
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from tqdm import tqdm

from zfnet.checks import check_images, check_weights, device_and_dtype, pair, undifferentiated
from zfnet.data.batches import Batch, Batches
from zfnet.data.images import as_images
from zfnet.errors import InputError, with_article
from zfnet.files import remove
from zfnet.gathering import Gathering, Maxima, Part, Statistics, widened
from zfnet.graph import Graph, graph_of
from zfnet.identity import Identity, digest, read_sealed, write_sealed
from zfnet.processes import from_all, from_process, processes
from zfnet.winners import TopActivations

SAVE_EVERY = 30.0  # seconds between two saves of a scan's state
ANEW = "delete it, or start again with fresh=True"

_CLIPS = (F.relu6, F.hardtanh, F.hardtanh_)
_CLAMPS = (torch.clamp, torch.clamp_, torch.clip, torch.clip_)


class Scan(dict[str, TopActivations]):
    """What `scan` gives: a dictionary of the strongest activations, `TopActivations` by the layer's name.

    Attributes:
        images: how many images were read.
        broken: a message for each image that could not be read.
        statistics: how often and how strongly each map fires, by layer, where they were gathered; else None.
        sampled: (S,) int64, the images of which the statistics keep every map's maximum.
        class_images: (K + 1,) int64, counts images by label; last: those without one.
    """

    def __init__(
        self,
        tops: Mapping[str, TopActivations],
        images: int,
        broken: Sequence[str],
        statistics: Mapping[str, Statistics] | None = None,
        sampled: Tensor | None = None,
        class_images: Tensor | None = None,
    ):
        super().__init__(tops)
        self.images, self.broken, self.statistics = images, broken, statistics
        self.sampled = torch.empty(0, dtype=torch.int64) if sampled is None else sampled
        self.class_images = torch.zeros(1, dtype=torch.int64) if class_images is None else class_images

    def merge(self, other: "Scan") -> "Scan":
        """The scan of both; exact for scans of disjoint parts of a dataset, in any order but that of `broken`.

        A part of which no image could be read has no layers.

        Args:
            other: of the same layers, with the same k.

        Raises:
            InputError: for scans of different layers, or of another k.
        """
        if self and other and set(self) != set(other):
            layer = min(set(self) ^ set(other))
            raise InputError(f"cannot merge scans of different layers: only one has {layer}")
        if not torch.equal(self.sampled, other.sampled) or (self.statistics is None) != (other.statistics is None):
            raise InputError(
                "cannot merge scans of parts of different datasets, or one with and one without statistics"
            )
        statistics = None
        if self.statistics is not None and other.statistics is not None:
            statistics = _joined(self.statistics, other.statistics)
        classes = max(len(self.class_images), len(other.class_images)) - 1
        class_images = widened(self.class_images, classes) + widened(other.class_images, classes)
        if statistics is not None:
            statistics = {layer: one._replace(sums=widened(one.sums, classes)) for layer, one in statistics.items()}
        broken = [*self.broken, *other.broken]
        return Scan(_joined(self, other), self.images + other.images, broken, statistics, self.sampled, class_images)


T = TypeVar("T", TopActivations, Statistics)


def _joined(ours: Mapping[str, T], theirs: Mapping[str, T]) -> dict[str, T]:
    """Merge two mappings by layer; one may be empty."""
    layers = ours or theirs
    return {layer: ours[layer].merge(theirs[layer]) if ours and theirs else layers[layer] for layer in layers}


def scan(
    model: nn.Module | Graph,
    dataset: Any,
    layers: Sequence[str | nn.Module],
    k: int = 9,
    *,
    batch_size: int = 64,
    distinct: bool = True,
    indices: Iterable[int] | None = None,
    shard: tuple[int, int] | None = None,
    shared: bool = False,
    gather: bool = False,
    workers: int | None = None,
    state: str | Path | None = None,
    keep_state: bool = False,
    fresh: bool = False,
    progress: bool = True,
    known: Identity | None = None,
) -> Scan:
    """Find the k strongest activations of every feature map of the layers over a dataset.

    Zeiler & Fergus (2014), Figure 2: the nine strongest of each feature map over the validation set.

    Args:
        model: a network, or the graph of one.
        dataset: what `as_images` takes. Images that cannot be read are left out, and named in the result's `broken`.
        layers: names, or modules of the model.
        k: how many of each map.
        batch_size: images that are run at once; the result does not depend on it.
        distinct: count an image once for a map, at its strongest position; otherwise any positions.
        indices: scan only these images; `Scan.merge` joins such parts.
        shard: (number from 0, count): scan only that part, which is cut at whole batches: merged, all parts are the
            scan of one process, to the bit. A part of which no image can be read has no layers.
        shared: share the work with the other processes of `torchrun`, which must all call this; each gets the result.
        gather: gather statistics of every map as well; see `zfnet.gathering`.
        workers: processes that read images; by default as many as there are cores, up to eight.
        state: a file that keeps an interrupted scan; the same call resumes from it.
        keep_state: leave the finished scan in that file, for a caller that has more to do before it can be deleted.
        fresh: start again and overwrite `state`.
        progress: show a progress bar.
        known: what `scan_identity` gave, where the caller has it: it may take as long as reading all images.

    Raises:
        InputError: for unknown layers, fewer images than k, images that do not fit the network, NaN, and a `state` that
            is damaged or of another scan.
    """
    how: dict[str, Any] = {"batch_size": batch_size, "distinct": distinct, "gather": gather, "workers": workers}
    how |= {"keep_state": keep_state, "fresh": fresh, "known": known}
    if shared and processes()[1] > 1:
        number, count = processes()
        if indices is not None or shard is not None:
            raise InputError("processes share a whole dataset: leave out indices and shard, or shared")
        return _shared(
            device_and_dtype(graph_of(model).model)["device"],
            lambda: scan(
                *(model, dataset, layers, k),
                **how,
                shard=(number, count),
                state=None if state is None else part_file(state, number, count),
                progress=progress and number == 0,
            ),
        )
    graph, images = graph_of(model), as_images(dataset)
    check_weights(graph.model)
    nodes = steps_of(graph, layers)
    chosen = _chosen(indices, len(images), k, distinct, shard, batch_size)
    file = None if state is None else Path(state)
    identity: Identity = {}
    if file:
        identity = dict(known or scan_identity(graph, images, distinct)) | _request(graph, chosen, nodes, k, gather)
    start = _Progress(0, {}, [], Gathering.none(images) if gather else None)
    if file and fresh:
        remove(file)  # now: what is killed before it saves must not leave the old one
    elif file and os.path.exists(file):
        content = read_sealed(file, identity, ANEW)
        start = start.of(content, file, graph, [graph.names[node] for node in nodes.values()], k, chosen)
    reached = start
    batches = Batches(images, batch_size, indices=chosen[start.done :], workers=workers)
    bar = tqdm(total=len(chosen), initial=start.done, unit=" images", desc="scan", disable=not progress)

    kept = bool(start.tops)

    def save() -> None:
        nonlocal kept
        if file and (reached.tops or reached.done):
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
    if not reached.tops and shard is None:
        raise InputError(_none_read(len(chosen), reached.broken))
    if keep_state:
        save()
    elif file:
        remove(file)
    found = {layer: graph.names[node] for layer, node in nodes.items() if reached.tops}
    tops = {layer: reached.tops[name].to("cpu") for layer, name in found.items()}
    read = len(chosen) - len(reached.broken)
    if reached.gathered is None:
        return Scan(tops, read, reached.broken)
    gathered = reached.gathered.counted()
    statistics = {layer: gathered.statistics[name].to("cpu") for layer, name in found.items()}
    return Scan(tops, read, reached.broken, statistics, gathered.sampled, gathered.class_images)


def part_file(file: str | Path, number: int, count: int) -> Path:
    """The file of state of one of several processes."""
    return Path(f"{file}.{number}-of-{count}")


def _none_read(images: int, broken: Sequence[str]) -> str:
    return f"none of the {images} images could be read: {(*broken, 'there are none')[0]}"


def _shared(device: torch.device, own: Callable[[], Scan]) -> Scan:
    """The scan of all processes, of which each scans its own part; an error of one is raised in all."""
    part: Scan | None = None
    error: InputError | None = None
    try:
        part = own()
    except InputError as raised:
        error = raised
    errors = [message for message in from_all(None if error is None else str(error), device) if message is not None]
    if errors:
        raise error or InputError(errors[0])
    assert part is not None
    whole: Scan | None = None
    for source in range(processes()[1]):  # one after the other: all at once would take as much memory as there are
        other = from_process(source, part, device)
        whole = other if whole is None else whole.merge(other)
    assert whole is not None
    if not whole:
        raise InputError(_none_read(len(whole.broken), whole.broken))
    return whole


def steps_of(graph: Graph, layers: Sequence[str | nn.Module]) -> dict[str, fx.Node]:
    """The steps to scan, by the names that the result will have for them."""
    if isinstance(layers, str | nn.Module) or not isinstance(layers, Iterable):
        raise InputError("layers must be a list, even for one layer, such as layers=['relu1']")
    nodes = {graph.name(layer): graph.node(layer) for layer in layers}
    if not nodes:
        raise InputError("a scan needs at least one layer; layers is empty")
    return nodes


def _chosen(
    indices: Iterable[int] | None, images: int, k: int, distinct: bool, shard: tuple[int, int] | None, batch_size: int
) -> Tensor:
    """The images to scan, in order."""
    if type(k) is not int or k < 1:
        raise InputError(f"k is {k!r}; give a whole number from 1")
    if indices is None and distinct and images < k:
        raise InputError(f"the dataset has {images} images, fewer than k={k}; lower k, or pass distinct=False")
    if shard is not None:
        if indices is not None:
            raise InputError("a shard is of the whole dataset: leave out indices, or shard")
        return torch.arange(*_cut(shard, images, batch_size))
    if indices is None:
        return torch.arange(images)
    try:
        chosen: Tensor = torch.as_tensor(list(indices))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"indices are {with_article(indices)}; give whole numbers (N,)") from None
    if chosen.ndim != 1:
        raise InputError(f"indices are of shape {tuple(chosen.shape)}; give whole numbers (N,)")
    unique: Tensor = chosen.unique()
    return unique


def _cut(shard: tuple[int, int], images: int, batch_size: int) -> tuple[int, int]:
    """The first image of a shard, and the one after its last."""
    try:
        number, count = map(operator.index, shard)
        if not 0 <= number < count:
            raise ValueError
    except (TypeError, ValueError):
        raise InputError(f"shard is {shard!r}; give (number, count), numbered from 0, as in (3, 64)") from None
    batches = -(-images // batch_size)
    first, last = (min(batches * n // count * batch_size, images) for n in (number, number + 1))
    return first, last


class _Progress(NamedTuple):
    """The progress of a scan, always in whole batches."""

    done: int  # how many of the chosen images were scanned, or could not be read
    tops: Mapping[str, TopActivations]  # by the names of the graph
    broken: list[str]
    gathered: Gathering | None = None  # where nothing is gathered

    def content(self) -> dict[str, Any]:
        """The content of a file of state."""
        tops = {layer: [column.cpu().clone() for column in top] for layer, top in self.tops.items()}
        content = {"done": self.done, "tops": tops, "broken": self.broken}
        return content if self.gathered is None else content | {"gathered": self.gathered.content()}

    def of(self, content: Any, file: Path, graph: Graph, layers: Sequence[str], k: int, chosen: Tensor) -> "_Progress":
        """The progress that a file keeps; InputError if no scan of these layers could have written it."""
        device = device_and_dtype(graph.model)["device"]
        try:
            read = _Progress(**content)
            tops = {layer: TopActivations(*columns) for layer, columns in read.tops.items()}
            valid = type(read.done) is int and 0 <= read.done <= len(chosen)
            valid = valid and (set(tops) == set(layers) or (not tops and 0 < read.done == len(read.broken)))
            valid = valid and isinstance(read.broken, list) and all(isinstance(name, str) for name in read.broken)
            valid = valid and all(_is_top(top, k, chosen) for top in tops.values())
            valid = valid and (read.gathered is None) == (self.gathered is None)
            gathered = self.gathered
            if valid and gathered is not None:
                maps = {layer: len(top.value) for layer, top in tops.items()}
                gathered = gathered.of(read.gathered, maps, read.done - len(read.broken), device)
        except (TypeError, ValueError, AttributeError, RuntimeError, LookupError):
            valid = False
        if not valid:
            raise InputError(f"{file} is not a scan of these layers; {ANEW}")
        return read._replace(tops={layer: top.to(device) for layer, top in tops.items()}, gathered=gathered)


def _is_top(top: TopActivations, k: int, chosen: Tensor) -> bool:
    """Whether these are k values and places of each map, in the images that were chosen."""
    plain = all(type(column) is Tensor and column.layout == torch.strided for column in top)
    shapes = {column.shape for column in top} if plain else set()
    if len(shapes) != 1 or top.value.ndim != 2 or top.value.shape[1] != k:
        return False
    floats = all(column.is_floating_point() and not column.isnan().any() for column in (top.value, top.unclipped))
    places = all(column.dtype == torch.int64 and (column >= -1).all() for column in top[1:4])
    return floats and places and bool((torch.isin(top.image, chosen) | (top.image == -1)).all())


def _request(graph: Graph, chosen: Tensor, nodes: Mapping[str, fx.Node], k: int, gather: bool) -> dict[str, str]:
    """Further parts of a state's identity."""
    layers = digest(sorted(graph.names[node] for node in nodes.values()))
    request = {"indices": digest(chosen), "layers": layers, "k": str(k)}
    return request | {"statistics": "gathered"} if gather else request


def scan_identity(model: nn.Module | Graph, dataset: Any, distinct: bool = True) -> Identity:
    """The identity of a scan's result, apart from the layers and k."""
    graph = graph_of(model)
    return graph.identity() | {
        "dtype": str(device_and_dtype(graph.model)["dtype"]),
        "images": as_images(dataset).identity(),
        "distinct": str(distinct),
    }


# ---- one batch -------------------------------------------------------------------------------------------------------


def _whole_batches(
    graph: Graph, nodes: Collection[fx.Node], batches: Batches, chosen: Tensor, start: _Progress, k: int, distinct: bool
) -> Iterator[_Progress]:
    """The progress of the scan after each batch, and at the end. An interrupt leaves all of a batch or none of it."""
    reached = start
    for batch in batches:
        tops, gathered = _scanned(graph, nodes, batch, reached, k, distinct)
        position = int(torch.searchsorted(chosen[start.done :], batch.index[-1]))
        done = start.done + (position // batches.batch_size + 1) * batches.batch_size
        reached = _Progress(min(done, len(chosen)), tops, [*start.broken, *batches.broken], gathered)
        yield reached
    yield _Progress(len(chosen), reached.tops, [*start.broken, *batches.broken], reached.gathered)


def _scanned(
    graph: Graph, nodes: Collection[fx.Node], batch: Batch, before: _Progress, k: int, distinct: bool
) -> tuple[dict[str, TopActivations], Gathering | None]:
    """The strongest activations before a batch and in it, and what is gathered."""
    tops, maxima = dict(before.tops), dict[str, Maxima]()
    sampled = None if before.gathered is None else before.gathered.columns(batch.index)[0]

    def take(node: fx.Node, output: Any) -> TopActivations:
        maps = shapes[node].maps(node, output)
        graph.check_maps(node, shapes[node])
        name, maps = graph.names[node], maps if maps.ndim == 4 else maps[..., None, None]
        if not maps.is_floating_point():
            raise InputError(f"{name} gives {maps.dtype}; choose a layer of floating-point values")
        top = tops.get(name) or TopActivations.none(maps.shape[1], k, maps)
        best, positions = _strongest(maps)
        tops[name] = _update(top, maps, best, positions, batch.index, distinct, name)
        if sampled is not None:
            maxima[name] = Maxima(best.float(), positions[sampled.to(positions.device)].int())
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
    shapes = {node: graph.shapes(pair(images.shape[-2:]), node) for node in nodes}  # which refuse some sizes
    graph.run(images, nodes, apply)
    if before.gathered is None:
        return tops, None
    return tops, before.gathered.with_part(Part(batch.index, batch.labels.cpu(), maxima))


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


def _update(
    top: TopActivations, x: Tensor, best: Tensor, positions: Tensor, index: Tensor, distinct: bool, layer: str
) -> TopActivations:
    """Take in the values x (N, C, H, W), and what `_strongest` finds in them, of the images `index` (N,), which are
    later in the dataset than all before."""
    k = top.value.shape[1]
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
    return top.join(candidates)
