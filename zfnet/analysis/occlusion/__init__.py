"""A grey square slid over the image: which places a feature map and the class depend on, exactly and incrementally.

A square changes only a window of every step, larger from step to step; the rest is what the clean image gave.  The
window arithmetic of receptive fields, run forwards, says where these windows lie, and the windows of many squares run
as one batch.  A step that mixes all places (flatten, global pooling) is given whole maps again: the clean ones, with
the windows put in.  Zeiler & Fergus (2014), section 4.2 and Figure 7.
"""

import contextlib
import itertools
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from tqdm import tqdm

from zfnet.checks import Pair, check_images, check_weights, evaluating, pair
from zfnet.errors import InputError, unknown_name
from zfnet.graph import Graph, Shapes, graph_of
from zfnet.operations import SWITCHED, pool_arguments
from zfnet.views import WholeMaps as Whole
from zfnet.windows import WHOLE, Window

TILE = 8  # rows and columns of squares whose windows run together, at most: more fall out of the caches
TILE_COST = 0.33  # of one more row or column of tiles, in rows or columns of squares: what it costs beside its places
# steps that may give each map's mean, and whether over "all" places (of a map of one place) or the "given" dimensions
MEANS = {nn.AdaptiveAvgPool2d: "all", F.adaptive_avg_pool2d: "all", torch.mean: "given", Tensor.mean: "given"}
OUTSIDE = (0.0, -math.inf)  # what steps may read outside of maps
MAPS = ("activity", "probability", "label")


def _window(graph, node, shapes):
    window = graph.window(node, shapes)
    return window if window is not None and window.slides and window.fill in OUTSIDE else None


@dataclass(frozen=True)
class OcclusionMaps:
    """What a network says with the square at each place: maps (rows, columns), one entry for each square."""

    activity: Tensor  # sum over space of feature map `map` of `layer`
    probability: Tensor  # of class `target`
    label: Tensor  # int64: the most probable class
    boxes: Tensor  # (rows, columns, 4) int64, the squares: top, left, bottom, right in input pixels, ends exclusive
    clean: tuple[float, float, int]  # activity, probability and label without a square
    layer: str
    map: int
    target: int
    image_size: Pair

    def heat(self, of: str = "probability") -> Tensor:
        """What "probability" or "activity" loses, averaged over the squares that cover each pixel: (H, W).

        This is the map that Captum's `Occlusion` gives; NaN where no square came.  InputError for another name.
        """
        if of not in MAPS[:2]:
            raise unknown_name("heat map of", of, MAPS[:2])
        lost = self.clean[MAPS.index(of)] - getattr(self, of)
        covers = []  # which squares' rows cover which rows of pixels, and columns
        for edges, length in zip((self.boxes[:, 0, ::2], self.boxes[0, :, 1::2]), self.image_size, strict=True):
            pixels = torch.arange(length, device=edges.device)
            covers.append(((edges[:, :1] <= pixels) & (pixels < edges[:, 1:])).to(lost))
        rows, columns = covers
        return rows.T @ lost @ columns / (rows.sum(0)[:, None] * columns.sum(0))


class Ranges(NamedTuple):
    """Places low..high-1 along one axis, for each of several squares: both (n,) int64."""

    low: Tensor
    high: Tensor

    @property
    def size(self) -> int:
        """Of ranges that are all of one size."""
        return int(self.high[0] - self.low[0])

    def places(self) -> Tensor:
        """(n, size) int64, of ranges that are all of one size."""
        return self.low[:, None] + torch.arange(self.size)

    def of(self, squares: Tensor) -> "Ranges":
        return Ranges(self.low[squares], self.high[squares])

    def even(self, extent: int) -> "Ranges":
        """Ranges of one size that contain these, within 0..extent-1."""
        size = max(1, int((self.high - self.low).max()))  # with steps wider than squares, the last may lie outside
        low = self.low.clamp(max=extent - size)
        return Ranges(low, low + size)


Change = tuple[Ranges, Ranges]  # of rows and of columns


@dataclass(frozen=True)
class Plan:
    """What squares at all places change, for the steps that are computed in windows."""

    squares: Change
    changes: dict[fx.Node, Change]  # the outputs of each step that the squares reach
    windows: dict[fx.Node, Window]
    extents: dict[fx.Node, Pair]  # rows and columns of each step's maps


def planned(graph: Graph, path: Sequence[fx.Node], image_size: Pair, size: Pair, step: Pair) -> Plan:
    """Squares at every `step` pixels until the image is covered, the last ones cut off by it, and what they change."""
    shapes, start = graph.shapes(image_size, path[-1]), graph.inputs[0]
    ranges = []
    for length, side, stride in zip(image_size, size, step, strict=True):
        low = stride * torch.arange(-(-(length - side) // stride) + 1)
        ranges.append(Ranges(low, (low + side).clamp(max=length)))
    squares = (ranges[0], ranges[1])
    plan = Plan(squares, {start: squares}, {}, {start: image_size})
    for node in path:
        sources = [s for s in node.all_input_nodes if s in shapes]
        window = _window(graph, node, shapes) if sources and node in shapes else None
        if window is None or any(s not in plan.changes for s in sources):
            continue
        extent, ranges = pair(shapes[node][-2:]), []
        for axis in (0, 1):
            lows, highs = zip(*(window.reaches(*plan.changes[s][axis], axis) for s in sources), strict=True)
            low = torch.stack(lows).amin(0).clamp(0, extent[axis] - 1)
            high = torch.stack(highs).amax(0).clamp(max=extent[axis]).maximum(low + 1)  # a range is never empty
            ranges.append(Ranges(low, high))
        plan.changes[node], plan.windows[node], plan.extents[node] = (ranges[0], ranges[1]), window, extent
    return plan


def multiply_adds(
    model: nn.Module | Graph, image_size: int | Pair, size: int | Pair = 50, step: int | Pair = 6
) -> tuple[int, int]:
    """Multiply-adds for one square, mean over its places: of the whole network, and of what the square can reach.

    Of convolutions and fully connected layers; the quotient is what computing nothing but the windows can gain.
    """
    graph, (rows, columns) = graph_of(model), pair(image_size)
    path = graph.path([graph.nodes[-1]])
    shapes = graph.shapes((rows, columns), path[-1])
    changes = planned(graph, path, (rows, columns), pair(size), pair(step)).changes
    plain = reached = 0.0
    for node in path:
        layer = graph.module(node)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            places = float(math.prod(shapes[node][2:]))
            plain += layer.weight.numel() * places
            if node in changes:
                places = math.prod(float((r.high - r.low).double().mean()) for r in changes[node])
            reached += layer.weight.numel() * places
    return round(plain), round(reached)


def _grid(combine: Callable[[Tensor, Tensor], Tensor], rows: Tensor, columns: Tensor) -> Tensor:
    """What rows (a, h) and columns (b, w) of a tile's squares give together, for each square: (a * b, h, w)."""
    return combine(rows[:, None, :, None], columns[None, :, None, :]).flatten(0, 1)


def _rows(maps: Tensor) -> Tensor:
    """Maps (1, ..., H, W) as rows (H * W + 2, C), one for each place; the last two are `OUTSIDE` of them."""
    rows = maps.reshape(len(maps), -1, *maps.shape[-2:]).movedim(1, -1).flatten(0, 2)
    return torch.cat([rows, rows.new_tensor(OUTSIDE)[:, None].expand(-1, rows.shape[1])])


class Look(NamedTuple):
    """Along one axis, the places that a step wants to see of windows, for each of several squares."""

    places: Tensor  # (n, size) int64: which they are
    known: Tensor  # (n, size) bool: which of them are in the windows
    runs: list[tuple[slice, slice, slice]]  # of like squares: which they are; the known among the wanted; in the window

    @classmethod
    def of(cls, wanted: Ranges, windows: Ranges) -> "Look":
        shifts, runs, first = windows.low - wanted.low, [], 0
        places = wanted.places()
        for shift, like in itertools.groupby(shifts.tolist()):
            begin, end = max(shift, 0), max(min(shift + windows.size, wanted.size), 0)
            last = first + sum(1 for _ in like)
            runs.append((slice(first, last), slice(begin, end), slice(begin - shift, max(end, begin) - shift)))
            first = last
        own = places - windows.low[:, None]
        return cls(places, (own >= 0) & (own < windows.size), runs)


class Strip:
    """Some of the squares' rows or columns, and the windows that they change in each step, each of one size for all."""

    def __init__(self, plan: Plan, axis: int, squares: Tensor):
        self.plan, self.axis, self.squares = plan, axis, squares
        self.at = {n: c[axis].of(squares).even(plan.extents[n][axis]) for n, c in plan.changes.items()}
        self._looks: dict[tuple[fx.Node | None, fx.Node], Look] = {}
        self._changed: dict[tuple[fx.Node, fx.Node], tuple[Look, Look]] = {}

    def look(self, node: fx.Node | None, source: fx.Node) -> Look:
        """What `node` reads of the windows of its source; None: all places."""
        if (node, source) not in self._looks:
            here = self.at[source]
            if node is None:
                wanted = Ranges(torch.zeros_like(here.low), torch.full_like(here.low, self.extent(source)))
            else:
                wanted = Ranges(*self.plan.windows[node].reads(*self.at[node], self.axis))
            self._looks[node, source] = Look.of(wanted, here)
        return self._looks[node, source]

    def changed(self, node: fx.Node, source: fx.Node) -> tuple[Look, Look]:
        """What `node` wants of the change of its source's windows; and, of its own windows, what this reaches."""
        if (source, node) not in self._changed:
            window, here = self.plan.windows[node], self.at[source]
            aligned = Ranges(*window.aligned(*here, self.axis))
            reached = Ranges(*window.reaches(*aligned, self.axis))
            self._changed[source, node] = Look.of(aligned, here), Look.of(self.at[node], reached)
        return self._changed[source, node]

    def extent(self, node: fx.Node) -> int:
        return self.plan.extents[node][self.axis]


class Squares(Whole):
    """Steps see, for each square of a tile, the window that it changes, and beside it what the clean image gave.

    clean: what it gave, of each step that is computed in windows, as rows of places.
    """

    padded = False

    def __init__(self, graph: Graph, plan: Plan, clean: dict[fx.Node, Tensor], rows: Strip, columns: Strip):
        super().__init__(graph)
        self.plan, self.clean, self.strips = plan, clean, (rows, columns)
        self.shape = len(rows.squares), len(columns.squares)

    def occluded(self, fill: Tensor) -> Tensor:
        """The windows (M, 3, h, w) of the image, with the squares in them."""
        (source,) = self.graph.inputs
        inside = []
        for strip, squares in zip(self.strips, self.plan.squares, strict=True):
            low, high = (edge[:, None] for edge in squares.of(strip.squares))
            places = strip.at[source].places()
            inside.append((low <= places) & (places < high))
        clean = self.before(source)
        return torch.where(_grid(torch.logical_and, *inside)[:, None].to(clean.device), fill, clean)

    def before(self, source: fx.Node) -> Tensor:
        """What the clean image gave in the windows: (M, C, h, w)."""
        rows, columns = (strip.at[source].places() for strip in self.strips)
        index = _grid(torch.add, rows * self.plan.extents[source][1], columns)
        clean = self.clean[source]
        return clean.index_select(0, index.flatten().to(clean.device)).view(*index.shape, -1).movedim(-1, 1)

    def _sizes(self, looks: Sequence[Look], value: Tensor) -> tuple[int, ...]:
        """Of a tile that holds what is wanted of a value."""
        return *self.shape, *(look.places.shape[1] for look in looks), math.prod(value.shape[1:-2])

    def _tile(self, value: Tensor) -> Tensor:
        """Windows (M, ..., h, w) as (rows of squares, columns of squares, h, w, C)."""
        return value.reshape(*self.shape, -1, *value.shape[-2:]).movedim(2, -1)

    def _lay(self, looks: Sequence[Look], value: Tensor, out: Tensor, add: bool = False) -> Tensor:
        """Put what is known of windows (M, C, h, w) where it is wanted in `out` (rows, columns of squares, h, w, C)."""
        tile = self._tile(value)
        for some, rows, of_rows in looks[0].runs:
            for others, columns, of_columns in looks[1].runs:
                part, known = out[some, others, rows, columns], tile[some, others, of_rows, of_columns]
                part.add_(known) if add else part.copy_(known)
        return out

    def _look(self, node: fx.Node | None, source: fx.Node, value: Tensor, maps: slice, out: Tensor | None) -> Tensor:
        """What `node` sees of a source: its windows, beside them what the clean image gave, outside the window's fill.

        maps: which of the source's maps `value` has.  out: (rows of squares, columns of squares, h, w, C).
        """
        looks = [strip.look(node, source) for strip in self.strips]
        extent = self.plan.extents[source]
        if out is None:
            out = value.new_empty(self._sizes(looks, value))
        self._lay(looks, value, out)
        missing = ~_grid(torch.logical_and, looks[0].known, looks[1].known)
        if missing.any():
            places = [look.places for look in looks]
            within = _grid(torch.logical_and, *((p >= 0) & (p < e) for p, e in zip(places, extent, strict=True)))
            fill = 0.0 if node is None else self.plan.windows[node].fill
            index = _grid(torch.add, places[0] * extent[1], places[1])
            index = index.where(within, math.prod(extent) + OUTSIDE.index(fill))
            where, index = missing.flatten().nonzero().flatten(), index[missing]
            clean = self.clean[source][:, maps].index_select(0, index.to(value.device))
            out.view(-1, out.shape[-1]).index_copy_(0, where.to(value.device), clean)
        out = out.flatten(0, 1).movedim(-1, 1)
        return out.reshape(*value.shape[:-2], *out.shape[-2:])

    def whole(self, source: fx.Node, value: Tensor, maps: slice = slice(None)) -> Tensor:
        """Maps (M, ..., H, W) of a step: the clean ones with the windows in them."""
        return self._look(None, source, value[:, maps], maps, None)

    def mean(self, source: fx.Node, value: Tensor) -> Tensor:
        """The mean (M, C) over all places of each map."""
        clean, places = self.clean[source][: -len(OUTSIDE)].mean(0), math.prod(self.plan.extents[source])
        return clean + (value - self.before(source)).sum((2, 3)) / places

    def read(self, node: fx.Node, source: fx.Node, value: Any) -> Any:
        if node not in self.plan.changes or source not in self.plan.changes or self._joins(node):
            return value
        if self.plan.windows[node].spread:
            before = self.before(source)
            change = torch.sub(value, before, out=before)
            looks = [strip.changed(node, source)[0] for strip in self.strips]
            if self._sizes(looks, change) == self._tile(change).shape:
                return change
            return self._lay(looks, change, change.new_zeros(self._sizes(looks, change))).flatten(0, 1).movedim(-1, 1)
        if all(torch.equal(strip.look(node, source).places, strip.at[source].places()) for strip in self.strips):
            return value
        return self._look(node, source, value, slice(None), None)

    def call(self, node: fx.Node, args: tuple, kwargs: dict) -> Any:
        if node not in self.plan.changes:
            return self.graph.call(node, args, kwargs)
        window = self.plan.windows[node]
        if window.spread:
            source = next(s for s in node.all_input_nodes if s in self.plan.changes)
            out = self.before(node)
            looks = [strip.changed(node, source)[1] for strip in self.strips]
            self._lay(
                looks, window.spread(args[0], self.graph.arguments(node, args, kwargs)), self._tile(out), add=True
            )
            return out
        if self._joins(node):
            sources, values = node.args[0], args[0]
            sizes = [strip.at[node].size for strip in self.strips]
            out = values[0].new_empty(*self.shape, *sizes, sum(value.shape[1] for value in values))
            parts = out.split([value.shape[1] for value in values], -1)
            for source, value, part in zip(sources, values, parts, strict=True):  # type: ignore[arg-type]
                self._look(source=source, node=node, value=value, maps=slice(None), out=part)
            return out.flatten(0, 1).movedim(-1, 1)
        if self.graph.lookup(SWITCHED, node):
            given = pool_arguments(self.graph.arguments(node, args, kwargs))
            return F.max_pool2d(args[0], given["kernel_size"], given["stride"], dilation=given["dilation"])
        return (
            window.inside(args[0], self.graph.arguments(node, args, kwargs))
            if window.inside
            else self.graph.call(node, args, kwargs)
        )

    def _joins(self, node: fx.Node) -> bool:
        """Whether the step lays maps side by side: each source is written once, where it belongs."""
        return node.target is torch.cat and bool(node.args)


def _partition(costs: Tensor, most: int) -> list[int]:
    """Lengths, up to `most`, of the runs of rows (n, kinds) that are cheapest if each row costs its run's maxima."""
    extra = TILE_COST * float(costs.sum(1).mean())
    best: list[tuple[float, list[int]]] = [(0.0, [])]
    for end in range(1, len(costs) + 1):
        ways = []
        for length in range(1, min(most, end) + 1):
            before, lengths = best[end - length]
            here = length * float(costs[end - length : end].amax(0).sum()) + extra
            ways.append((before + here, [*lengths, length]))
        best.append(min(ways))
    return best[-1][1]


class _Sweep:
    """One image's sweep: the clean pass, windows tile by tile, and what sees whole maps for many tiles at once."""

    def __init__(
        self, graph: Graph, image: Tensor, size: Pair, step: Pair, fill: Tensor, layer: str | None, incremental: bool
    ):
        extent, self.start, self.last = pair(image.shape[-2:]), graph.inputs[0], graph.nodes[-1]
        shapes = graph.shapes(extent, self.last)
        self.graph, self.image, self.fill = graph, image, fill
        self.node = graph.node(layer or _last_maps(graph, shapes))
        graph.check_maps(self.node, shapes.get(self.node))
        path = graph.path([self.last, self.node])
        self.plan = planned(graph, path, extent, size, step)
        if not incremental:
            squares = self.plan.squares
            self.plan = Plan(squares, {self.start: squares}, {}, {self.start: extent})
        elif late := [n for n in path if n not in self.plan.changes and _moves(graph, n, shapes)]:
            first = next(n for n in path if n not in self.plan.changes and n in shapes)
            warnings.warn(
                f"occlusion of {type(graph.model).__name__}: {graph.names[first]} ({graph.operation(first)}) is not"
                f" known to work in windows, so {len(late)} convolutions and poolings behind it run in plain batches",
                stacklevel=4,
            )
        inside = self.plan.changes
        self.means = [n for n in path if n not in inside and _is_mean(graph, n, shapes, inside)]
        known = {*inside, *self.means}
        self.edge = [n for n in path if n in known and any(user in path and user not in known for user in n.users)]
        self.values = graph.run(image, [self.last, self.node], graph.call, keep=set(inside))
        logits = self.values[self.last]
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise InputError(f"{type(graph.model).__name__} gives no logits (N, classes) to tell classes by")
        self.clean = {n: _rows(self.values[n].contiguous()) for n in inside}
        self.shapes, self.outside = shapes, [n for n in path if n not in inside and n in shapes]
        self.bytes = {n: shapes[n].numel() * image.element_size() for n in path if n in shapes}

    def _work(self, node: fx.Node) -> int:
        """Multiply-adds at one place of a step's output; at least one for each map."""
        layer = self.graph.module(node)
        return layer.weight.numel() if isinstance(layer, nn.Conv2d) else self.shapes[node][1]

    def batches(self, memory: int, threads: int) -> list[list[tuple[Strip, Strip]]]:
        """Tiles (rows and columns) of squares whose windows are of like size, as many as may be put together.

        The largest come first and there are several for each thread, so that all threads end at about the same time.
        """
        windows, orders = [], []
        for node, (rows, columns) in self.plan.changes.items():
            largest = int((rows.high - rows.low).max() * (columns.high - columns.low).max())
            windows.append(self.bytes[node] * largest // math.prod(self.plan.extents[node]))
        at_once = max(1, memory // max(self.bytes[n] for n in (*self.edge, *self.outside)))
        side = max(1, min(TILE, math.isqrt(memory // max(windows)), math.isqrt(at_once)))
        for axis in (0, 1):
            ranges = [change[axis] for change in reversed(self.plan.changes.values())]
            sizes = torch.stack([r.high - r.low for r in ranges], 1)
            order = torch.tensor(sorted(range(len(sizes)), key=sizes.tolist().__getitem__))
            work = torch.tensor([self._work(n) for n in reversed(self.plan.changes)], dtype=torch.float64)
            parts = _partition(sizes[order] * (work * sizes.double().mean(0)), side)
            orders.append([Strip(self.plan, axis, squares) for squares in order.split(parts)])
        tiles = [(rows, columns) for rows in orders[0] for columns in orders[1]]
        tiles.sort(key=lambda tile: -len(tile[0].squares) * len(tile[1].squares))
        each = min(at_once, 4 * TILE**2) // side**2  # memory must not grow with the places
        each = max(1, min(each, len(tiles) // (3 * threads)))
        return [tiles[first : first + each] for first in range(0, len(tiles), each)]

    def windows(self, rows: Strip, columns: Strip, map: int) -> tuple[dict[fx.Node, Tensor], Tensor | None]:
        """Of one tile: whole maps and means that other steps ask for, and the activity (M,) if its layer is in it."""
        view = Squares(self.graph, self.plan, self.clean, rows, columns)
        sources = {n: n.all_input_nodes[0] if n in self.means else n for n in self.edge}
        wanted = {*sources.values(), self.node} & set(self.plan.changes)
        values = self.graph.run(view.occluded(self.fill), wanted, view.call, wanted, view.read)
        edge = {
            n: view.mean(s, values[s]).view(-1, *self.shapes[n][1:]) if n in self.means else view.whole(s, values[s])
            for n, s in sources.items()
        }
        activity = None
        if self.node in wanted:
            activity = view.whole(self.node, values[self.node], slice(map, map + 1)).flatten(1).sum(1)
        return edge, activity

    def rest(self, edge: dict[fx.Node, Tensor]) -> dict[fx.Node, Any]:
        """The steps that see whole maps."""
        skipped = self.image.new_zeros(0)

        def apply(node: fx.Node, args: tuple, kwargs: dict) -> Any:
            if node in self.plan.changes or node in edge:
                return edge.get(node, skipped)
            layer = self.graph.module(node)
            return _linear(layer, *args) if isinstance(layer, nn.Linear) else self.graph.call(node, args, kwargs)

        return self.graph.run(edge.get(self.start, self.image), [self.last, self.node], apply)

    def run(self, map: int | None, target: int | None, memory: int, progress: bool) -> OcclusionMaps:
        logits, sums = self.values[self.last][0], _sums(self.values[self.node])[0]
        map = int(sums.argmax()) if map is None else _among("map", map, len(sums), self.graph.names[self.node])
        target = int(logits.argmax()) if target is None else _among("class", target, len(logits), "the network")
        clean = float(sums[map]), float(logits.softmax(0)[target]), int(logits.argmax())
        shape = [len(ranges.low) for ranges in self.plan.squares]
        activity, probability = (logits.new_zeros(math.prod(shape)) for _ in range(2))
        label = torch.zeros(math.prod(shape), dtype=torch.int64, device=logits.device)

        @torch.no_grad()  # which is each thread's own
        def answers(tiles: list[tuple[Strip, Strip]]) -> tuple[Tensor, ...]:
            parts = [self.windows(rows, columns, map) for rows, columns in tiles]
            values = self.rest({n: torch.cat([part[n] for part, _ in parts]) for n in self.edge})
            where = torch.cat([(r.squares[:, None] * shape[1] + c.squares).flatten() for r, c in tiles])
            inside = [a for _, a in parts if a is not None]
            active = torch.cat(inside) if inside else _sums(values[self.node])[:, map]
            return where.to(label.device), active, values[self.last].softmax(1)[:, target], values[self.last].argmax(1)

        threads = torch.get_num_threads() if label.device.type == "cpu" else 1
        bar = tqdm(total=len(label), unit=" squares", desc="occlude", disable=not progress)
        with bar, _in_threads(threads) as each:
            for where, *found in each(answers, self.batches(memory, threads)):
                activity[where], probability[where], label[where] = found
                bar.update(len(where))
        (top, bottom), (left, right) = self.plan.squares
        edges = [torch.broadcast_tensors(y[:, None], x) for y, x in ((top, left), (bottom, right))]
        boxes = torch.stack([edge for both in edges for edge in both], 2).to(label.device)
        return OcclusionMaps(
            activity.view(shape),
            probability.view(shape),
            label.view(shape),
            boxes,
            clean,
            self.graph.names[self.node],
            map,
            target,
            self.plan.extents[self.start],
        )


@contextlib.contextmanager
def _in_threads(count: int) -> Iterator[Callable[..., Any]]:
    """A `map` of batches, each by one of torch's threads: sharing every small step, they would wait for each other."""
    if count == 1:
        yield map
        return
    executor = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield executor.map
    finally:
        executor.shutdown(cancel_futures=True)
        torch.set_num_threads(count)  # part of what the others were told is every thread's


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """A fully connected layer, which on many processors oneDNN computes in two thirds of the time of torch's choice."""
    onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if onednn is None or x.device.type != "cpu" or x.dtype != torch.float32 or not torch.backends.mkldnn.enabled:
        return layer(x)
    return onednn(x.contiguous(), layer.weight.contiguous(), layer.bias, "none", [], "")


def _sums(maps: Tensor) -> Tensor:
    """The sum over space of each map: (N, C)."""
    return maps.reshape(*maps.shape[:2], -1).sum(2)


def _among(kind: str, number: int, count: int, where: str) -> int:
    if not 0 <= number < count:
        raise InputError(f"no {kind} {number} in {where}: there are {count}")
    return number


def _is_mean(graph: Graph, node: fx.Node, shapes: Shapes, inside: Collection[fx.Node]) -> bool:
    """Whether the step gives the mean of each map that one of `inside` computes: the sum of what changes will do."""
    sources = node.all_input_nodes
    if len(sources) != 1 or sources[0] not in inside or node not in shapes or len(shapes[sources[0]]) != 4:
        return False
    if not (dimensions := graph.lookup(MEANS, node)):
        return False
    if dimensions == "all":
        return tuple(shapes[node][2:]) == (1, 1)
    given = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else ())
    return not isinstance(given, int | None) and sorted(d % 4 for d in given) == [2, 3]  # type: ignore


def _moves(graph: Graph, node: fx.Node, shapes: Shapes) -> bool:
    """Whether the step is one that slides a window over maps."""
    window = _window(graph, node, shapes) if node in shapes else None
    return window is not None and window.kernel != (1, 1)


def _last_maps(graph: Graph, shapes: Shapes) -> str:
    """The last ReLU that gives maps of more than one place; where there is none, the last step that does."""
    maps = [n for n in graph.nodes if len(shapes.get(n, ())) == 4 and math.prod(shapes[n][2:]) > 1]
    relus = [n for n in maps if "relu" in graph.operation(n).lower()]
    return graph.names[(relus or maps)[-1]]


def occlusion_maps(
    model: nn.Module | Graph,
    image: Tensor,
    *,
    size: int | Sequence[int] = 50,
    step: int | Sequence[int] = 6,
    fill: float | Sequence[float] = 0.0,
    layer: str | None = None,
    map: int | None = None,
    target: int | None = None,
    incremental: bool = True,
    memory: int = 2**27,
    progress: bool = False,
) -> OcclusionMaps:
    """Slide a square over an image (3, H, W), as the network is given it, and read three things at each place.

    size, step: of the square, in input pixels; a pair is (rows, columns).  The last squares end at the image's border.
    fill: what the square holds, one number or three: 0 is the mean of normalised images.
    layer: whose activity is summed; None: the last ReLU that gives maps.
    map: None: the one that is strongest without a square.
    target: the class; None: the most probable one without a square.
    incremental: compute only what a square can reach; what cannot be done so runs in plain batches, with a warning.
    memory: bytes that the largest step of one batch may take; each of torch's threads works on one.
    InputError for a square or step that does not fit, for an unknown layer, map or class, and a model without logits.
    """
    graph = graph_of(model)
    check_weights(graph.model)
    image = check_images(graph.model, image[None] if image.ndim == 3 else image)
    if len(image) != 1:
        raise InputError(f"give one image (3, rows, columns); got {tuple(image.shape)}")
    extent, size, step = pair(image.shape[-2:]), pair(size), pair(step)
    if min(size) < 1 or size[0] > extent[0] or size[1] > extent[1]:
        raise InputError(
            f"a square of {size[0]} x {size[1]} pixels does not fit in an image of {extent[0]} x {extent[1]}"
        )
    if min(step) < 1:
        raise InputError(f"the step is {min(step)} pixels; give at least 1")
    grey = torch.as_tensor(fill, dtype=image.dtype, device=image.device).reshape(-1, 1, 1)
    if len(grey) not in (1, 3) or not grey.isfinite().all():
        raise InputError(f"fill is {fill}; give one number, or one for each of three channels")
    with evaluating(graph.model):
        sweep = _Sweep(graph, image, size, step, grey, layer, incremental)
        return sweep.run(map, target, memory, progress)
