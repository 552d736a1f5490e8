"""Slide a square over an image fast: compute only what the square changes.

A square changes only a window of every step's maps, larger from step to step; the rest equals that of the clean image.
One step, along one axis: a convolution of kernel 3 and padding 1, and a square that has changed places 3 and 4.

    source   . . . x x . . .      the square's window of the source: places 3 and 4
    read     . c c x x c c .      the step reads places 1 to 6; `c` comes from the clean image
    output   . . y y y y . .      the square's window of the output: places 2 to 5

A convolution with a larger kernel than stride may do the reverse, which reads nothing beside the window, since it is
linear: the outputs are the clean ones, and what the change (x less the clean values) spreads to.

Squares are arranged as a grid. Some rows of it (a `Strip`), crossed with some columns (another), are a tile; the
windows of a tile's squares have one size and run as one batch (`SquareWindows`). A step that reads all places (flatten,
global pooling) is given whole maps again: the clean ones, with the windows put in.
"""

import contextlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from zfnet.analysis.occlusion.readout import Reading, Readout, summed
from zfnet.checks import Pair, pair
from zfnet.graph import Graph, Shapes
from zfnet.windows import WHOLE, Window

TILE = 8  # rows and columns of squares in a tile, at most: the windows of more fall out of the processor's caches
# Every tile starts every step once more, whatever its size. So one more run of rows (or columns) of squares costs more
# than its windows: this many times a row's mean. It was chosen by timing ZFNet; it decides no digit.
TILE_COST = 0.33
OUTSIDE = (0.0, -math.inf)  # what steps may read outside of maps


class Ranges(NamedTuple):
    """Places low..high-1 along one axis, for each of several squares: both (n,) int64."""

    low: Tensor
    high: Tensor

    @property
    def size(self) -> int:
        """The size of ranges that are all of one size."""
        return int(self.high[0] - self.low[0])

    def places(self) -> Tensor:
        """All places (n, size) int64 of ranges that are all of one size."""
        return self.low[:, None] + torch.arange(self.size)

    def select(self, squares: Tensor) -> "Ranges":
        return Ranges(self.low[squares], self.high[squares])

    def of_one_size(self, extent: int) -> "Ranges":
        """Ranges of one size that contain these, within 0..extent-1."""
        size = max(
            1, int((self.high - self.low).max())
        )  # if the steps are wider than the squares, the last square may lie outside
        low = self.low.clamp(max=extent - size)
        return Ranges(low, low + size)


Area = tuple[Ranges, Ranges]  # of rows and of columns


@dataclass(frozen=True)
class Plan:
    """The windows that the squares change, in the steps that are computed in windows."""

    squares: Area
    changes: dict[fx.Node, Area]  # the part of each step's output that the squares reach
    windows: dict[fx.Node, Window]  # how each step reads its sources
    extents: dict[fx.Node, Pair]  # rows and columns of each step's maps


def known_window(graph: Graph, node: fx.Node, shapes: Shapes) -> Window | None:
    """The window through which a step reads maps; None if it reads all places, or if it is not known which."""
    if node not in shapes or not any(source in shapes for source in node.all_input_nodes):
        return None
    if shapes.last(node) or any(shapes.last(source) for source in node.all_input_nodes):
        return None  # windows are cut where places lie along the last axes
    window = graph.window(node, shapes)
    return window if window is not None and window.slides and window.fill in OUTSIDE else None


def make_plan(graph: Graph, path: Sequence[fx.Node], image_size: Pair, boxes: Tensor) -> Plan:
    """The windows of the steps of `path` that squares (rows, columns, 4: top, left, bottom, right) change."""
    shapes, start = graph.shapes(image_size, path[-1]), graph.inputs[0]
    squares = Ranges(boxes[:, 0, 0], boxes[:, 0, 2]), Ranges(boxes[0, :, 1], boxes[0, :, 3])
    plan = Plan(squares, {start: squares}, {}, {start: image_size})
    for node in path:
        sources = [source for source in node.all_input_nodes if source in shapes]
        window = known_window(graph, node, shapes)
        if window is None or any(source not in plan.changes for source in sources):
            continue
        extent, ranges = pair(shapes[node][-2:]), []
        for axis in (0, 1):
            reached = (window.reaches(*plan.changes[source][axis], axis) for source in sources)
            lows, highs = zip(*reached, strict=True)
            low = torch.stack(lows).amin(0).clamp(0, extent[axis] - 1)
            high = torch.stack(highs).amax(0).clamp(max=extent[axis]).maximum(low + 1)  # a range is never empty
            ranges.append(Ranges(low, high))
        plan.changes[node], plan.windows[node], plan.extents[node] = (ranges[0], ranges[1]), window, extent
    return plan


def _crossed(combine: Callable[[Tensor, Tensor], Tensor], rows: Tensor, columns: Tensor) -> Tensor:
    """The product of rows (a, h) and columns (b, w) of a tile's squares, for each square: (a * b, h, w)."""
    return combine(rows[:, None, :, None], columns[None, :, None, :]).flatten(0, 1)


def _by_place(maps: Tensor) -> Tensor:
    """Maps (1, ..., H, W) as rows (H * W + 2, C), one for each place; the last two are `OUTSIDE` of them."""
    rows = maps.reshape(len(maps), -1, *maps.shape[-2:]).movedim(1, -1).flatten(0, 2)
    return torch.cat([rows, rows.new_tensor(OUTSIDE)[:, None].expand(-1, rows.shape[1])])


class Overlap(NamedTuple):
    """Along one axis, where ranges that a step asks for overlap ranges with known values, for each of several squares.

    Asked for 1..6 and known 3..4: places 1..6, known F F T T F F, and one run: asked 2..3 are known 0..1.
    """

    places: Tensor  # (n, size) int64: the places that are asked for
    known: Tensor  # (n, size) bool: which of them are known
    runs: list[tuple[slice, slice, slice]]  # for neighbouring squares that overlap alike: squares, asked, known

    @classmethod
    def of(cls, asked: Ranges, known: Ranges) -> "Overlap":
        runs, first = [], 0
        for shift, group in itertools.groupby((known.low - asked.low).tolist()):
            start, end = max(shift, 0), max(min(shift + known.size, asked.size), 0)
            last = first + sum(1 for _ in group)
            runs.append((slice(first, last), slice(start, end), slice(start - shift, max(end, start) - shift)))
            first = last
        places = asked.places()
        offsets = places - known.low[:, None]
        return cls(places, (offsets >= 0) & (offsets < known.size), runs)


class Strip:
    """Some rows (or columns) of the grid of squares; in each step, their windows have one size."""

    def __init__(self, plan: Plan, axis: int, squares: Tensor):
        self.plan, self.axis, self.squares = plan, axis, squares
        self.windows = {
            node: area[axis].select(squares).of_one_size(plan.extents[node][axis])
            for node, area in plan.changes.items()
        }
        self._reading: dict[tuple[fx.Node | None, fx.Node], Overlap] = {}
        self._spreading: dict[tuple[fx.Node, fx.Node], tuple[Overlap, Overlap]] = {}

    def reading(self, node: fx.Node | None, source: fx.Node) -> Overlap:
        """The part of its source that `node` reads, and which of it is in the source's windows; None: all places."""
        if (node, source) not in self._reading:
            known = self.windows[source]
            if node is None:
                extent = self.plan.extents[source][self.axis]
                asked = Ranges(torch.zeros_like(known.low), torch.full_like(known.low, extent))
            else:
                asked = Ranges(*self.plan.windows[node].reads(*self.windows[node], self.axis))
            self._reading[node, source] = Overlap.of(asked, known)
        return self._reading[node, source]

    def spreading(self, node: fx.Node, source: fx.Node) -> tuple[Overlap, Overlap]:
        """Which part of its source's change `node` spreads; and which part of its own windows this reaches."""
        if (node, source) not in self._spreading:
            window, change = self.plan.windows[node], self.windows[source]
            aligned = Ranges(*window.aligned(*change, self.axis))
            reached = Ranges(*window.reaches(*aligned, self.axis))
            self._spreading[node, source] = Overlap.of(aligned, change), Overlap.of(self.windows[node], reached)
        return self._spreading[node, source]


class SquareWindows:
    """A view of the graph (see `zfnet.views`): steps see the windows that the squares of one tile change.

    clean: the outputs for the clean image, of each step that is computed in windows, as rows of places.
    """

    padded = False

    def __init__(self, graph: Graph, plan: Plan, clean: dict[fx.Node, Tensor], rows: Strip, columns: Strip):
        self.graph, self.plan, self.clean, self.strips = graph, plan, clean, (rows, columns)
        self.shape = len(rows.squares), len(columns.squares)

    def occluded(self, fill: Tensor) -> Tensor:
        """The windows (M, C, h, w) of the image, with the squares in them."""
        (source,) = self.graph.inputs
        masks = []
        for strip, squares in zip(self.strips, self.plan.squares, strict=True):
            low, high = (edge[:, None] for edge in squares.select(strip.squares))
            places = strip.windows[source].places()
            masks.append((low <= places) & (places < high))
        clean = self.clean_windows(source)
        return torch.where(_crossed(torch.logical_and, *masks)[:, None].to(clean.device), fill, clean)

    def clean_windows(self, node: fx.Node) -> Tensor:
        """The clean image's values in the windows of a step: (M, C, h, w)."""
        rows, columns = (strip.windows[node].places() for strip in self.strips)
        index = _crossed(torch.add, rows * self.plan.extents[node][1], columns)
        clean = self.clean[node]
        return clean.index_select(0, index.flatten().to(clean.device)).view(*index.shape, -1).movedim(-1, 1)

    def whole(self, source: fx.Node, value: Tensor, maps: slice = slice(None)) -> Tensor:
        """Maps (M, ..., H, W) of a step: the clean ones with the windows in them."""
        return self._beside_clean(None, source, value[:, maps], maps)

    # -- the view ------------------------------------------------------------------------------------------------------

    def read(self, node: fx.Node, source: fx.Node, value: Any) -> Any:
        """A step's input: the windows of its source, or their change if the step spreads a change."""
        if self._reads_as_it_is(node, source):
            return value
        if self.plan.windows[node].spread:
            clean = self.clean_windows(source)
            change = torch.sub(value, clean, out=clean)
            overlaps = self._overlaps(node, source)
            if self._tile_shape(overlaps, change) == self._as_tile(change).shape:
                return change
            tile = change.new_zeros(self._tile_shape(overlaps, change))
            return self._as_windows(self._put_known(overlaps, change, tile), change)
        return self._beside_clean(node, source, value, slice(None))

    def call(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a step on its input: its output in its own windows."""
        if node not in self.plan.changes:
            return self.graph.call(node, args, kwargs)
        window, argument = self.plan.windows[node], self.graph.arguments(node, args, kwargs)
        if window.spread:
            source = next(source for source in node.all_input_nodes if source in self.plan.changes)
            output = self.clean_windows(node)
            overlaps = [strip.spreading(node, source)[1] for strip in self.strips]
            change, tile = self._as_tile(window.spread(args[0], argument)), self._as_tile(output)
            for target, part in self._known_parts(overlaps):
                tile[target].add_(change[part])
            return output
        return window.inside(args[0], argument) if window.inside else self.graph.call(node, args, kwargs)

    def place(self, node: fx.Node, source: fx.Node, signal: Tensor) -> Tensor:
        """The transpose of what `read` does to windows, less the clean values: the signal in the source's windows."""
        if self._reads_as_it_is(node, source):
            return signal
        sizes = (strip.windows[source].size for strip in self.strips)
        tile = signal.new_zeros(*self.shape, *sizes, math.prod(signal.shape[1:-2]))
        signals = self._as_tile(signal)
        for part, target in self._known_parts(self._overlaps(node, source)):
            tile[target] = signals[part]
        return self._as_windows(tile, signal)

    # -- tiles: (rows of squares, columns of squares, h, w, C) ---------------------------------------------------------

    def _reads_as_it_is(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether a step reads the windows of its source as they are: whole maps, pointwise steps."""
        if node not in self.plan.changes or source not in self.plan.changes:
            return True
        return not self.plan.windows[node].spread and all(
            torch.equal(strip.reading(node, source).places, strip.windows[source].places()) for strip in self.strips
        )

    def _overlaps(self, node: fx.Node | None, source: fx.Node) -> list[Overlap]:
        """The part of its source's windows that a step needs (None: one that reads all places), by rows and columns."""
        if node is not None and self.plan.windows[node].spread:
            return [strip.spreading(node, source)[0] for strip in self.strips]
        return [strip.reading(node, source) for strip in self.strips]

    def _tile_shape(self, overlaps: Sequence[Overlap], value: Tensor) -> tuple[int, ...]:
        """The shape of a tile that holds what is asked for of a value (M, ..., h, w)."""
        return *self.shape, *(overlap.places.shape[1] for overlap in overlaps), math.prod(value.shape[1:-2])

    def _as_tile(self, value: Tensor) -> Tensor:
        return value.reshape(*self.shape, -1, *value.shape[-2:]).movedim(2, -1)

    def _as_windows(self, tile: Tensor, like: Tensor) -> Tensor:
        """A tile as windows (M, ..., h, w), with as many maps as `like` has."""
        windows = tile.flatten(0, 1).movedim(-1, 1)
        return windows.reshape(len(windows), *like.shape[1:-2], *windows.shape[-2:])

    @staticmethod
    def _known_parts(overlaps: Sequence[Overlap]) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
        """Pairs of equal parts: of the tile that a step asks for, and of the tile with known values."""
        for squares, asked_rows, known_rows in overlaps[0].runs:
            for column_squares, asked_columns, known_columns in overlaps[1].runs:
                yield (
                    (squares, column_squares, asked_rows, asked_columns),
                    (squares, column_squares, known_rows, known_columns),
                )

    def _put_known(self, overlaps: Sequence[Overlap], value: Tensor, tile: Tensor) -> Tensor:
        """Copy the known windows (M, C, h, w) to their places in `tile`."""
        windows = self._as_tile(value)
        for target, source in self._known_parts(overlaps):
            tile[target] = windows[source]
        return tile

    def _beside_clean(self, node: fx.Node | None, source: fx.Node, value: Tensor, maps: slice) -> Tensor:
        """A step's input: its source's windows, the clean image's values beside them, and the window's fill outside.

        node: None for all places.  maps: which of the source's maps `value` has.
        """
        overlaps, extent = self._overlaps(node, source), self.plan.extents[source]
        tile = value.new_empty(self._tile_shape(overlaps, value))
        self._put_known(overlaps, value, tile)
        missing = ~_crossed(torch.logical_and, overlaps[0].known, overlaps[1].known)
        if missing.any():
            places = [overlap.places for overlap in overlaps]
            within = _crossed(torch.logical_and, *((p >= 0) & (p < e) for p, e in zip(places, extent, strict=True)))
            fill = 0.0 if node is None else self.plan.windows[node].fill
            index = _crossed(torch.add, places[0] * extent[1], places[1])
            index = index.where(within, math.prod(extent) + OUTSIDE.index(fill))
            clean = self.clean[source][:, maps].index_select(0, index[missing].to(value.device))
            positions = missing.flatten().nonzero().flatten().to(value.device)
            tile.view(-1, tile.shape[-1]).index_copy_(0, positions, clean)
        return self._as_windows(tile, value)


def cheapest_runs(costs: Tensor, longest: int) -> list[int]:
    """Cut rows of costs (n, kinds) into runs of up to `longest` neighbours, as cheaply as possible: the runs' lengths.

    The windows of a run have one size, that of the largest, so each row costs as much as the dearest of its run, and
    every run costs `TILE_COST` mean rows besides.  Costs 3 3 9 9 are cut into 2 + 2: 2 x 3 + 2 x 9 and twice the
    extra 2; one run of four would cost 4 x 9 + 2.
    """
    extra = TILE_COST * float(costs.sum(1).mean())
    best: list[tuple[float, list[int]]] = [(0.0, [])]  # the cheapest way to cut the first 0, 1, 2, ... rows
    for end in range(1, len(costs) + 1):
        ways = []
        for length in range(1, min(longest, end) + 1):
            cost, lengths = best[end - length]
            run = length * float(costs[end - length : end].amax(0).sum()) + extra
            ways.append((cost + run, [*lengths, length]))
        best.append(min(ways))
    return best[-1][1]


Tile = tuple[Strip, Strip]


class Sweep:
    """One image's sweep: windows tile by tile, then the steps that read whole maps, for many tiles at once.

    image: (1, C, H, W).  boxes: the grid of squares (rows, columns, 4).  fill: what they hold (1 or C, 1, 1).
    clean: what every step gives for the image without a square.
    """

    def __init__(
        self, graph: Graph, image: Tensor, boxes: Tensor, fill: Tensor, readout: Readout, clean: dict[fx.Node, Any]
    ):
        self.graph, self.image, self.fill, self.readout = graph, image, fill, readout
        self.start, self.last = graph.inputs[0], {readout.output, readout.layer}
        extent = pair(image.shape[-2:])
        self.shapes, path = graph.shapes(extent, readout.output), graph.path(self.last)
        self.plan = make_plan(graph, path, extent, boxes)
        changes = self.plan.changes
        self._warn_of_full_steps([node for node in path if node not in changes and node in self.shapes])
        # the steps whose whole maps other steps read, outside the windows
        exits = {source for node in path if node not in changes for source in node.all_input_nodes}
        self.edge = [node for node in path if node in changes and node in {*exits, readout.output}]
        self.clean = {node: _by_place(clean[node].contiguous()) for node in changes}
        self.bytes = {node: self.shapes[node].numel() * image.element_size() for node in path if node in self.shapes}

    def run(self, memory: int) -> Iterator[tuple[Tensor, Reading]]:
        """The numbers (M,) of some squares, row by row of the grid, and what is read for them; batches in any order."""
        threads = torch.get_num_threads() if self.image.device.type == "cpu" else 1
        with _in_threads(threads) as map_batches:
            yield from map_batches(self.answer, self.batches(memory, threads))

    def _warn_of_full_steps(self, nodes: list[fx.Node]) -> None:
        """Warn where steps that slide a window over maps are among those that are computed in full."""
        windows = [known_window(self.graph, node, self.shapes) for node in nodes]
        count = sum(window is not None and window.kernel != (1, 1) for window in windows)
        if not count:
            return
        graph, first = self.graph, nodes[0]
        reason = "reads whole maps" if graph.window(first, self.shapes) is WHOLE else "has no window rule"
        reason = "gives its maps along the last axis" if self.shapes.last(first) else reason
        warnings.warn(
            f"occlusion of {type(graph.model).__name__}: {graph.names[first]} ({graph.operation(first)}) {reason}; the"
            f" {count} convolutions and poolings after it are recomputed in full (slower)",
            stacklevel=4,  # whoever calls occlusion_maps
        )

    def batches(self, memory: int, threads: int) -> list[list[Tile]]:
        """Tiles of squares whose windows are of like size, as many as may be put together.

        The largest come first and there are several for each thread, so that all threads end at about the same time.
        """
        window_bytes, strips = [], []
        for node, (rows, columns) in self.plan.changes.items():
            largest = int((rows.high - rows.low).max() * (columns.high - columns.low).max())
            window_bytes.append(self.bytes[node] * largest // math.prod(self.plan.extents[node]))
        outside = [size for node, size in self.bytes.items() if node not in self.plan.changes or node in self.edge]
        layers = [(self.graph.module(node), self.shapes[node][1]) for node in reversed(self.plan.changes)]
        # multiply-adds at one place of each step's output; at least one for each map
        places = [layer.weight.numel() if isinstance(layer, nn.Conv2d) else maps for layer, maps in layers]
        work = torch.tensor(places, dtype=torch.float64)
        limit = max(1, memory // max(outside))
        side = max(1, min(TILE, math.isqrt(memory // max(window_bytes)), math.isqrt(limit)))
        for axis in (0, 1):
            ranges = [area[axis] for area in reversed(self.plan.changes.values())]
            sizes = torch.stack([r.high - r.low for r in ranges], 1)
            order = torch.tensor(sorted(range(len(sizes)), key=sizes.tolist().__getitem__))
            runs = cheapest_runs(sizes[order] * (work * sizes.double().mean(0)), side)
            strips.append([Strip(self.plan, axis, squares) for squares in order.split(runs)])
        tiles = [(rows, columns) for rows in strips[0] for columns in strips[1]]
        tiles.sort(key=lambda tile: -len(tile[0].squares) * len(tile[1].squares))
        count = min(limit, 4 * TILE**2) // side**2  # memory must not grow with the places
        count = max(1, min(count, len(tiles) // (3 * threads)))
        return [tiles[first : first + count] for first in range(0, len(tiles), count)]

    def windows(self, rows: Strip, columns: Strip) -> tuple[dict[fx.Node, Tensor], Tensor | None]:
        """Run one tile: the whole maps that other steps need, and the activity (M,) if its layer is in it."""
        view = SquareWindows(self.graph, self.plan, self.clean, rows, columns)
        layer, map = self.readout.layer, self.readout.map
        last = {*self.edge, layer} & set(self.plan.changes)
        values = self.graph.run(view.occluded(self.fill), last, view.call, last, view.read)
        edge = {node: view.whole(node, values[node]) for node in self.edge}
        if layer not in last:
            return edge, None
        return edge, summed(view.whole(layer, values[layer], slice(map, map + 1)))[:, 0]

    def rest(self, edge: dict[fx.Node, Tensor]) -> dict[fx.Node, Any]:
        """Run the steps that see whole maps."""
        placeholder = self.image.new_zeros(0)

        def apply(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if node in self.plan.changes or node in edge:
                return edge.get(node, placeholder)
            layer = self.graph.module(node)
            if isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward:
                return fully_connected(layer, args[0])
            return self.graph.call(node, args, kwargs)

        return self.graph.run(edge.get(self.start, self.image), self.last, apply)

    @torch.no_grad()  # each thread has its own gradient mode
    def answer(self, tiles: list[Tile]) -> tuple[Tensor, Reading]:
        """The numbers (M,) of some tiles' squares, row by row of the grid, and what is read for them."""
        parts = [self.windows(rows, columns) for rows, columns in tiles]
        values = self.rest({node: torch.cat([part[node] for part, _ in parts]) for node in self.edge})
        width = len(self.plan.squares[1].low)
        squares = [(rows.squares[:, None] * width + columns.squares).flatten() for rows, columns in tiles]
        activities = [activity for _, activity in parts if activity is not None]
        activity = torch.cat(activities) if activities else self.readout.activity(values[self.readout.layer])
        return torch.cat(squares), self.readout.read(values[self.readout.output], activity)


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
        torch.set_num_threads(count)  # a worker's setting also changed the other threads'


def fully_connected(layer: nn.Linear, x: Tensor) -> Tensor:
    """A fully connected layer, for many squares at once.

    oneDNN takes two thirds of the time of the library that torch chooses on AMD's processors, a tenth of ZFNet's sweep.
    Its operator is private; if torch lacks it, F.linear is used.
    """
    onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if onednn is None or x.device.type != "cpu" or x.dtype != torch.float32 or not torch.backends.mkldnn.enabled:
        return F.linear(x, layer.weight, layer.bias)
    output: Tensor = onednn(x.contiguous(), layer.weight.contiguous(), layer.bias, "none", [], "")
    return output
