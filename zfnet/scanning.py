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
from zfnet.errors import InputError, unknown_name, with_article
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
        statistics: how often and how strongly each map fires, by layer; None without `gather`.
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

    def __missing__(self, layer: Any) -> TopActivations:
        raise unknown_name("layer of this scan", str(layer), self)

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


def _joined(first: Mapping[str, T], second: Mapping[str, T]) -> dict[str, T]:
    """Merge two mappings by layer; one may be empty."""
    layers = first or second
    return {layer: first[layer].merge(second[layer]) if first and second else layers[layer] for layer in layers}


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
    options: dict[str, Any] = {"batch_size": batch_size, "distinct": distinct, "gather": gather, "workers": workers}
    options |= {"keep_state": keep_state, "fresh": fresh, "known": known}
    if shared and processes()[1] > 1:
        number, count = processes()
        if indices is not None or shard is not None:
            raise InputError("processes share a whole dataset: leave out indices and shard, or shared")
        return _shared(
            device_and_dtype(graph_of(model).model)["device"],
            lambda: scan(
                *(model, dataset, layers, k),
                **options,
                shard=(number, count),
                state=None if state is None else part_file(state, number, count),
                progress=progress and number == 0,
            ),
        )
    graph, images = graph_of(model), as_images(dataset)
    check_weights(graph.model)
    nodes = steps_of(graph, layers)
    selection = _select(indices, len(images), k, distinct, shard, batch_size)
    file = None if state is None else Path(state)
    identity: Identity = {}
    if file:
        identity = dict(known or scan_identity(graph, images, distinct)) | _request(graph, selection, nodes, k, gather)
    start = _Progress(0, {}, [], Gathering.none(images) if gather else None)
    if file and fresh:
        remove(file)  # now: a run that is killed before its first save must not leave the old state
    elif file and os.path.exists(file):
        content = read_sealed(file, identity, ANEW)
        start = start.of(content, file, graph, [graph.names[node] for node in nodes.values()], k, selection)
    reached = start
    batches = Batches(images, batch_size, indices=selection[start.done :], workers=workers)
    bar = tqdm(total=len(selection), initial=start.done, unit=" images", desc="scan", disable=not progress)

    saved = bool(start.tops)

    def save() -> None:
        nonlocal saved
        if file and (reached.tops or reached.done):
            if saved and not os.path.exists(file):
                print(f"{file} was removed during the scan; it is written again", file=sys.stderr)
            write_sealed(file, identity, reached.content())
            saved = True

    saved_at = monotonic()
    try:
        with undifferentiated(graph.model), bar:
            for reached in _whole_batches(graph, set(nodes.values()), batches, selection, start, k, distinct):
                bar.update(reached.done - bar.n)
                if reached.broken:
                    bar.set_postfix(broken=len(reached.broken), refresh=False)
                if monotonic() - saved_at > SAVE_EVERY:
                    save()
                    saved_at = monotonic()
    except BaseException:  # also an error, such as a worker that died at the end of a long scan
        save()
        raise
    if not reached.tops and shard is None:
        raise InputError(_nothing_read(len(selection), reached.broken))
    if keep_state:
        save()
    elif file:
        remove(file)
    names = {layer: graph.names[node] for layer, node in nodes.items() if reached.tops}
    tops = {layer: reached.tops[name].to("cpu") for layer, name in names.items()}
    count_read = len(selection) - len(reached.broken)
    if reached.gathered is None:
        return Scan(tops, count_read, reached.broken)
    gathering = reached.gathered.counted()
    statistics = {layer: gathering.statistics[name].to("cpu") for layer, name in names.items()}
    return Scan(tops, count_read, reached.broken, statistics, gathering.sampled, gathering.class_images)


def part_file(file: str | Path, number: int, count: int) -> Path:
    """The file of state of one of several processes."""
    return Path(f"{file}.{number}-of-{count}")


def _nothing_read(images: int, broken: Sequence[str]) -> str:
    return f"none of the {images} images could be read: {(*broken, 'there are none')[0]}"


def _shared(device: torch.device, scan_part: Callable[[], Scan]) -> Scan:
    """The scan of all processes, of which each scans its own part; an error of one is raised in all."""
    part: Scan | None = None
    error: InputError | None = None
    try:
        part = scan_part()
    except InputError as raised:
        error = raised
    errors = [message for message in from_all(None if error is None else str(error), device) if message is not None]
    if errors:
        raise error or InputError(errors[0])
    assert part is not None
    total: Scan | None = None
    for source in range(processes()[1]):  # one at a time: all parts at once may not fit in memory
        remote = from_process(source, part, device)
        total = remote if total is None else total.merge(remote)
    assert total is not None
    if not total:
        raise InputError(_nothing_read(len(total.broken), total.broken))
    return total


def steps_of(graph: Graph, layers: Sequence[str | nn.Module]) -> dict[str, fx.Node]:
    """The steps to scan, by the names that the result will have for them."""
    if isinstance(layers, str | nn.Module) or not isinstance(layers, Iterable):
        raise InputError("layers must be a list, even for one layer, such as layers=['relu1']")
    nodes = {graph.name(layer): graph.node(layer) for layer in layers}
    if not nodes:
        raise InputError("a scan needs at least one layer; layers is empty")
    return nodes


def _select(
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
        return torch.arange(*_shard_range(shard, images, batch_size))
    if indices is None:
        return torch.arange(images)
    try:
        selection: Tensor = torch.as_tensor(list(indices))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"indices are {with_article(indices)}; give whole numbers (N,)") from None
    if selection.ndim != 1:
        raise InputError(f"indices are of shape {tuple(selection.shape)}; give whole numbers (N,)")
    unique: Tensor = selection.unique()
    return unique


def _shard_range(shard: tuple[int, int], images: int, batch_size: int) -> tuple[int, int]:
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

    done: int  # images of the selection that were scanned, or could not be read
    tops: Mapping[str, TopActivations]  # by the names of the graph
    broken: list[str]
    gathered: Gathering | None = None  # None: no statistics

    def content(self) -> dict[str, Any]:
        """The content of a file of state."""
        tops = {layer: [column.cpu().clone() for column in top] for layer, top in self.tops.items()}
        content = {"done": self.done, "tops": tops, "broken": self.broken}
        return content if self.gathered is None else content | {"gathered": self.gathered.content()}

    def of(
        self, content: Any, file: Path, graph: Graph, layers: Sequence[str], k: int, selection: Tensor
    ) -> "_Progress":
        """The progress in a file's content; InputError if no scan of these layers could have written it."""
        device = device_and_dtype(graph.model)["device"]
        try:
            progress = _Progress(**content)
            tops = {layer: TopActivations(*columns) for layer, columns in progress.tops.items()}
            valid = type(progress.done) is int and 0 <= progress.done <= len(selection)
            valid = valid and (set(tops) == set(layers) or (not tops and 0 < progress.done == len(progress.broken)))
            valid = (
                valid and isinstance(progress.broken, list) and all(isinstance(name, str) for name in progress.broken)
            )
            valid = valid and all(_is_top(top, k, selection) for top in tops.values())
            valid = valid and (progress.gathered is None) == (self.gathered is None)
            gathering = self.gathered
            if valid and gathering is not None:
                maps = {layer: len(top.value) for layer, top in tops.items()}
                gathering = gathering.of(progress.gathered, maps, progress.done - len(progress.broken), device)
        except (TypeError, ValueError, AttributeError, RuntimeError, LookupError):
            valid = False
        if not valid:
            raise InputError(f"{file} is not a scan of these layers; {ANEW}")
        return progress._replace(tops={layer: top.to(device) for layer, top in tops.items()}, gathered=gathering)


def _is_top(top: TopActivations, k: int, selection: Tensor) -> bool:
    """Whether `top` has k values and places of each map, in images of the selection."""
    plain = all(type(column) is Tensor and column.layout == torch.strided for column in top)
    shapes = {column.shape for column in top} if plain else set()
    if len(shapes) != 1 or top.value.ndim != 2 or top.value.shape[1] != k:
        return False
    floats = all(column.is_floating_point() and not column.isnan().any() for column in (top.value, top.unclipped))
    places = all(column.dtype == torch.int64 and (column >= -1).all() for column in top[1:4])
    return floats and places and bool((torch.isin(top.image, selection) | (top.image == -1)).all())


def _request(graph: Graph, selection: Tensor, nodes: Mapping[str, fx.Node], k: int, gather: bool) -> dict[str, str]:
    """Further parts of a state's identity."""
    layers = digest(sorted(graph.names[node] for node in nodes.values()))
    request = {"indices": digest(selection), "layers": layers, "k": str(k)}
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
    graph: Graph,
    nodes: Collection[fx.Node],
    batches: Batches,
    selection: Tensor,
    start: _Progress,
    k: int,
    distinct: bool,
) -> Iterator[_Progress]:
    """The progress of the scan after each batch, and at the end. An interrupt leaves all of a batch or none of it."""
    reached = start
    for batch in batches:
        tops, gathering = _scan_batch(graph, nodes, batch, reached, k, distinct)
        position = int(torch.searchsorted(selection[start.done :], batch.index[-1]))
        done = start.done + (position // batches.batch_size + 1) * batches.batch_size
        reached = _Progress(min(done, len(selection)), tops, [*start.broken, *batches.broken], gathering)
        yield reached
    yield _Progress(len(selection), reached.tops, [*start.broken, *batches.broken], reached.gathered)


def _scan_batch(
    graph: Graph, nodes: Collection[fx.Node], batch: Batch, progress: _Progress, k: int, distinct: bool
) -> tuple[dict[str, TopActivations], Gathering | None]:
    """The strongest activations and the statistics after one more batch."""
    tops, maxima = dict(progress.tops), dict[str, Maxima]()
    sampled = None if progress.gathered is None else progress.gathered.columns(batch.index)[0]

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
            take(node, output)  # at once: the next step may overwrite it
            return output
        top = take(node, args[0])  # before the step, which may overwrite its input
        values = graph.call(node, (top.unclipped.clone(), *args[1:]), kwargs)
        tops[graph.names[node]] = top._replace(value=values.where(top.image >= 0, -torch.inf))
        return graph.call(node, args, kwargs)

    images = check_images(graph.model, batch.images)
    shapes = {
        node: graph.shapes(pair(images.shape[-2:]), node) for node in nodes
    }  # raises InputError for some image sizes
    graph.run(images, nodes, apply)
    if progress.gathered is None:
        return tops, None
    return tops, progress.gathered.with_part(Part(batch.index, batch.labels.cpu(), maxima))


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
    """Merge the values x (N, C, H, W) of a batch into `top`.

    Args:
        top: the strongest activations of all earlier images.
        x: the layer's maps.
        best, positions: what `_strongest` gives for x.
        index: (N,) the images, later in the dataset than all before.
        distinct: count an image once for a map.
        layer: for messages.
    """
    k = top.value.shape[1]
    if not best.isfinite().all():
        image = int(index[int((~best.isfinite()).any(1).nonzero()[0])])
        raise InputError(f"{layer} gives NaN or infinity, in {x.dtype}, on image {image}")
    best, order = best.sort(dim=0, descending=True, stable=True)  # (N, C)
    rank, maps = (best[:k] > top.unclipped[:, -1]).nonzero(as_tuple=True)  # of equal values the earlier one stays
    if not len(maps):
        return top
    images = order[rank, maps]
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
