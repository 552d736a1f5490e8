"""Which pixels a unit sees, and which part of every step it depends on: window arithmetic on the traced graph.

Output i of a step with kernel k, stride s, padding p and dilation d reads its input from i s - p, over d (k - 1) + 1
places. Followed down to the image this is the receptive field; followed up it says which part of each step must be
computed to know one unit.  Every step's window has one size for all units of a layer and moves with them, so that the
windows of many units can be run, forward and back, as one batch (`Windows`): exactly what the unit depends on, and
nothing else.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from zfnet.checks import Pair, pair
from zfnet.graph import Graph, Shapes, convolution_arguments, pool_arguments


class Window(NamedTuple):
    """How one output of a step reads its input; pairs are (rows, columns)."""

    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    fill: float = 0.0  # what is read outside the input
    inside: Callable[[Tensor], Tensor] | None = None  # the step where the border has been read; None: it has none
    spread: Callable[[Tensor], Tensor] | None = None  # what an `aligned` change adds to all outputs that it reaches

    def span(self, axis: int) -> int:
        return self.dilation[axis] * (self.kernel[axis] - 1) + 1

    def reads(self, low: Any, high: Any, axis: int) -> tuple[Any, Any]:
        """The range of input that outputs low..high-1 read: numbers, or tensors of them."""
        start = low * self.stride[axis] - self.padding[axis]
        return start, start + (high - 1 - low) * self.stride[axis] + self.span(axis)

    def reaches(self, low: Any, high: Any, axis: int) -> tuple[Any, Any]:
        """The range of outputs that inputs low..high-1 reach, the transpose of `reads`."""
        first = low + self.padding[axis] - self.span(axis) + 1
        return -(-first // self.stride[axis]), (high - 1 + self.padding[axis]) // self.stride[axis] + 1

    def aligned(self, low: Any, high: Any, axis: int) -> tuple[Any, Any]:
        """The range low..high-1, longer by stride - 1 places, so that it begins where some output's reading ends."""
        early = (low + self.padding[axis] - self.span(axis) + 1) % self.stride[axis]
        return low - early, high - early + self.stride[axis] - 1


POINTWISE = Window()
WHOLE = None  # an output depends on the whole input, or it is not known on what


def _convolution(graph: Graph, node: fx.Node, shapes: Shapes) -> Window | None:
    given = convolution_arguments(graph, node, shapes.numbers)
    weight, bias, stride, dilation, groups = (given[n] for n in ("weight", "bias", "stride", "dilation", "groups"))
    computed = isinstance(graph.argument(node, "weight"), fx.Node)  # anew in every run
    if given["padding_mode"] != "zeros" or computed:
        return WHOLE
    window = Window(
        pair(weight.shape[2:]),
        stride,
        given["padding"],
        dilation,
        0.0,
        lambda x: F.conv2d(x, weight, bias, stride, 0, dilation, groups),
    )
    beyond = window.span(0) - 1, window.span(1) - 1
    if beyond[0] < stride[0] and beyond[1] < stride[1]:
        return window  # no place is read twice: what a change reaches costs as much by reading
    return window._replace(spread=lambda x: F.conv2d(x, weight, None, stride, beyond, dilation, groups))


def _max_pool(graph: Graph, node: fx.Node, shapes: Shapes) -> Window:
    given = pool_arguments(graph, node, shapes.numbers)
    kernel, stride, padding, dilation = (pair(given[n]) for n in ("kernel_size", "stride", "padding", "dilation"))
    return Window(kernel, stride, padding, dilation, fill=-math.inf)


def _average_pool(graph: Graph, node: fx.Node, shapes: Shapes) -> Window | None:
    defaults = {
        "kernel_size": None,
        "stride": None,
        "padding": 0,
        "ceil_mode": False,
        "count_include_pad": True,
        "divisor_override": None,
    }
    given = {name: graph.argument(node, name, default, shapes.numbers) for name, default in defaults.items()}
    kernel, padding = pair(given["kernel_size"]), pair(given["padding"])
    stride, divisor = pair(given["stride"] or kernel), given["divisor_override"]
    window = Window(kernel, stride, padding, inside=lambda x: F.avg_pool2d(x, kernel, stride, divisor_override=divisor))
    (source,) = (s for s in node.all_input_nodes if s in shapes)
    overhangs = any(
        window.reads(0, shapes[node][axis], axis)[1] > shapes[source][axis] + padding[axis] for axis in (-2, -1)
    )
    if divisor is None and (overhangs or (padding != (0, 0) and not given["count_include_pad"])):
        return WHOLE  # the divisor changes at the border: it is not the same for all units
    return window


def _adaptive_average(graph: Graph, node: fx.Node, shapes: Shapes) -> Window | None:
    """Windows of one size where the maps can be shared evenly; the mean of a whole map is not known to be one."""
    (source,) = (s for s in node.all_input_nodes if s in shapes)
    before, after = pair(shapes[source][-2:]), pair(shapes[node][-2:])
    if after == (1, 1) or any(long % short for long, short in zip(before, after, strict=True)):
        return WHOLE
    kernel = before[0] // after[0], before[1] // after[1]
    return Window(kernel, kernel, inside=lambda x: F.avg_pool2d(x, kernel))


def _constant_pad(graph: Graph, node: fx.Node, shapes: Shapes) -> Window | None:
    given = graph.argument(node, "padding", None, shapes.numbers)  # of a module
    given = given or graph.argument(node, "pad", None, shapes.numbers)
    if graph.argument(node, "mode", "constant") != "constant" or (graph.argument(node, "value", 0.0) or 0.0) != 0.0:
        return WHOLE
    left, _, top, _ = (*given, 0, 0)[:4]
    return Window(padding=(top, left), inside=lambda x: x) if len(given) <= 4 else WHOLE


def _join(graph: Graph, node: fx.Node, shapes: Shapes) -> Window | None:
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    return POINTWISE if 0 < dim % len(shapes[node]) < len(shapes[node]) - 2 else WHOLE  # type: ignore[operator]


def rearranged(graph: Graph, node: fx.Node, shapes: Shapes) -> Window | None:
    """The window of a step that only moves elements (views, slices, permutations), found by moving their numbers.

    Whatever it does to maps, it has one if each place of the output takes all its maps from one place of the input, and
    these places are evenly spaced.
    """
    if node not in shapes.orders:
        shapes.orders[node] = _order(graph, node, shapes)
    if shapes.orders[node] is None:
        return WHOLE
    (top, left), (down, across), maps, order = shapes.orders[node]

    def inside(x: Tensor) -> Tensor:
        x = x[..., ::down, ::across]
        x = x.reshape(len(x), -1, *x.shape[-2:])
        x = x if order is None else x[:, order.to(x.device)]
        return x.reshape(len(x), *maps, *x.shape[-2:])

    return Window(stride=(down, across), padding=(-top, -left), inside=inside)


def _order(graph: Graph, node: fx.Node, shapes: Shapes) -> tuple[Pair, Pair, tuple[int, ...], Tensor | None] | None:
    """The first place, the distance between places, the shape of the output's maps, and which maps of the input they
    are (None: all, in order); None if the output's places are not places of the input."""
    (source,) = (s for s in node.all_input_nodes if s in shapes)
    before, after = shapes[source], shapes[node]
    if min(len(before), len(after)) < 3 or before[0] != after[0]:
        return None

    def value(other: fx.Node) -> Any:
        if other is source:
            return torch.arange(before.numel()).view(before)
        return graph.given(other) if graph.is_given(other) else shapes.numbers[other]

    args, kwargs = fx.map_arg((node.args, node.kwargs), value)  # type: ignore[misc]
    moved = graph.call(node, args, kwargs)
    order, place = moved // (before[-2] * before[-1]), moved % (before[-2] * before[-1])
    distances, spaced = [], True
    for axis, where in ((-2, place // before[-1]), (-1, place % before[-1])):
        line = where.movedim(axis, 0).flatten(1)[:, 0]
        distances.append((int(line[0]), int(line[1] - line[0]) if len(line) > 1 else 1))
        even = distances[-1][0] + distances[-1][1] * torch.arange(len(line)).view(-1, *[1] * (-1 - axis))
        spaced = spaced and distances[-1][1] > 0 and torch.equal(where, even.expand_as(where))
    if not spaced or not torch.equal(order, order[..., :1, :1].expand_as(order)):
        return None
    maps = order[0, ..., 0, 0].flatten()
    (top, down), (left, across) = distances
    every = torch.equal(maps, torch.arange(before[1:-2].numel()))
    return (top, left), (down, across), tuple(after[1:-2]), None if every else maps


# operation -> Window, or what makes one from (graph, step, shapes); what is not here is WHOLE.  `deconvnet.rule` adds
# rows.
WINDOWS: dict[Any, Window | Callable[[Graph, fx.Node, Shapes], Window | None] | None] = {
    nn.Conv2d: _convolution,
    F.conv2d: _convolution,
    nn.MaxPool2d: _max_pool,
    F.max_pool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    F.avg_pool2d: _average_pool,
    nn.AdaptiveAvgPool2d: _adaptive_average,
    F.adaptive_avg_pool2d: _adaptive_average,
    nn.ZeroPad2d: _constant_pad,
    F.pad: _constant_pad,
    torch.cat: _join,
    torch.stack: _join,
}


def window_of(graph: Graph, node: fx.Node, shapes: Shapes) -> Window | None:
    """How one output of this step reads its input, for images of the size that `shapes` is of; WHOLE if not known."""
    row = graph.lookup(WINDOWS, node)
    if callable(row):
        return row(graph, node, shapes)
    if any(shapes[s][-2:] != shapes[node][-2:] for s in node.all_input_nodes if s in shapes):
        return WHOLE  # one place spread over all
    constants = [
        graph.given(s) if graph.is_given(s) else shapes.numbers.get(s)
        for s in node.all_input_nodes
        if s not in graph.carriers
    ]
    if any(max(c.shape[-2:], default=1) > 1 for c in constants if isinstance(c, Tensor)):
        return WHOLE  # a map of its own, which differs from place to place
    return row


class Places(NamedTuple):
    """Windows of one step: that of unit (row, column) begins at start + stride * (row, column)."""

    start: Pair
    stride: Pair
    size: Pair


def _follow(
    graph: Graph, node: fx.Node, unit: Pair, shapes: Shapes, clip: bool
) -> dict[fx.Node, tuple[Pair, Pair]] | None:
    """The part (rows, columns) of each step that one unit of `node` depends on; None if it depends on everything.

    With `clip`, the part within the steps' own borders.
    """
    parts = {node: ((unit[0], unit[0] + 1), (unit[1], unit[1] + 1))}
    for step in reversed(graph.path([node])):
        if step not in parts or not step.all_input_nodes:
            continue
        sources = [s for s in step.all_input_nodes if s in shapes]
        window = window_of(graph, step, shapes)
        if window is None:
            return None
        for source in sources:
            ranges = []
            for axis in (0, 1):
                low, high = window.reads(*parts[step][axis], axis)
                if clip:
                    low, high = max(low, 0), min(high, shapes[source][axis - 2])
                if source in parts:
                    low, high = min(low, parts[source][axis][0]), max(high, parts[source][axis][1])
                ranges.append((low, high))
            parts[source] = (ranges[0], ranges[1])
    return parts


def places_of(graph: Graph, node: fx.Node, shapes: Shapes) -> dict[fx.Node, Places] | None:
    """The windows of every step that units of `node` depend on; None if these are not windows."""
    first, second = (_follow(graph, node, (i, i), shapes, clip=False) for i in (0, 1))
    if first is None or second is None or graph.inputs[0] not in first:
        return None
    return {
        step: Places(
            (rows[0], columns[0]),
            (second[step][0][0] - rows[0], second[step][1][0] - columns[0]),
            (rows[1] - rows[0], columns[1] - columns[0]),
        )
        for step, (rows, columns) in first.items()
    }


class Whole:
    """Steps see the whole output of their sources: the ordinary forward pass."""

    padded = True  # steps see no border yet: they pad for themselves

    def __init__(self, graph: Graph):
        self.graph = graph

    def read(self, node: fx.Node, source: fx.Node, value: Any) -> Any:
        """What `node` sees of its source's value."""
        return value

    def call(self, node: fx.Node, args: tuple, kwargs: dict) -> Any:
        """Do the step on what it sees."""
        return self.graph.call(node, args, kwargs)

    def place(self, node: fx.Node, source: fx.Node, signal: Tensor) -> Tensor:
        """The transpose of `read`: where in its source's output the signal that `node` sends back belongs."""
        return signal


class Windows(Whole):
    """Steps see the windows that a batch of units (rows (M,), columns (M,)) of one layer depends on, and no more."""

    padded = False

    def __init__(self, graph: Graph, places: dict[fx.Node, Places], shapes: Shapes, rows: Tensor, columns: Tensor):
        super().__init__(graph)
        self.places, self.units = places, (rows.cpu(), columns.cpu())
        self.extent = {step: tuple(shapes[step][-2:]) for step in places}
        self._window = {step: window_of(graph, step, shapes) or POINTWISE for step in places}
        self._read = {
            (step, source): (self._offset(step, source, 0), self._offset(step, source, 1), self._outside(step, source))
            for step in places
            for source in step.all_input_nodes
            if source in places
        }

    def _offset(self, step: fx.Node, source: fx.Node, axis: int) -> slice:
        """The part of the source's window, along one axis, that `step` reads."""
        here, there = self.places[step], self.places[source]
        low, high = self._window[step].reads(here.start[axis], here.start[axis] + here.size[axis], axis)
        return slice(low - there.start[axis], high - there.start[axis])

    def _outside(self, step: fx.Node, source: fx.Node) -> tuple[Tensor, Tensor] | None:
        """For units of which a real output of `step` reads beyond the source's border: which they are (m,), and where
        (m, 1, h, w).  None where there is no such unit."""
        window, masks, touched = self._window[step], [], torch.zeros(len(self.units[0]), dtype=torch.bool)
        for axis, unit in enumerate(self.units):
            low = self.places[step].start[axis] + self.places[step].stride[axis] * unit
            high = low + self.places[step].size[axis]
            begin, _ = window.reads(0, 1, axis)
            size = (self.places[step].size[axis] - 1) * window.stride[axis] + window.span(axis)
            extent = self.extent[source][axis]
            where = (low * window.stride[axis] + begin)[:, None] + torch.arange(size)
            masks.append((where < 0) | (where >= extent))
            real_low, real_high = low.clamp(min=0), high.clamp(max=self.extent[step][axis])
            last = (real_high - 1) * window.stride[axis] + begin + window.span(axis)
            touched |= (real_low * window.stride[axis] + begin < 0) | (last > extent)
        if not touched.any():
            return None
        return touched.nonzero().flatten(), (masks[0][touched][:, :, None] | masks[1][touched][:, None, :])[:, None]

    def _fill(self, x: Tensor, outside: tuple[Tensor, Tensor], value: float) -> Tensor:
        which, mask = outside[0].to(x.device), outside[1].to(x.device)
        if len(which) == len(x):
            return x.masked_fill(mask, value)
        channels_last = x.ndim == 4 and x.stride(1) == 1  # which a copy of a part of a tensor does not keep by itself
        out = x.clone(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        return out.index_copy_(0, which, x[which].masked_fill(mask, value))

    def cut(self, images: Tensor, image: Sequence[int]) -> Tensor:
        """The receptive fields (M, 3, S, S) of the units, each in its image, zero where they leave it."""
        start, stride, size = self.places[self.graph.inputs[0]]
        crops = torch.zeros(len(image), images.shape[1], *size, dtype=images.dtype, device=images.device)
        crops = crops.contiguous(memory_format=torch.channels_last)
        for crop, index, row, column in zip(crops, image, *(u.tolist() for u in self.units), strict=True):
            top, left = start[0] + stride[0] * row, start[1] + stride[1] * column
            part = images[index, :, max(top, 0) : max(top + size[0], 0), max(left, 0) : max(left + size[1], 0)]
            crop[:, max(-top, 0) :, max(-left, 0) :][:, : part.shape[1], : part.shape[2]] = part
        return crops

    def read(self, node: fx.Node, source: fx.Node, value: Any) -> Any:
        if (node, source) not in self._read:
            return value
        rows, columns, outside = self._read[node, source]
        value = value[..., rows, columns]
        return value if outside is None else self._fill(value, outside, self._window[node].fill)

    def call(self, node: fx.Node, args: tuple, kwargs: dict) -> Any:
        inside = self._window.get(node, POINTWISE).inside  # sizes are read, too
        return inside(args[0]) if inside else self.graph.call(node, args, kwargs)

    def place(self, node: fx.Node, source: fx.Node, signal: Tensor) -> Tensor:
        rows, columns, outside = self._read[node, source]
        if outside is not None:
            signal = self._fill(signal, outside, 0.0)
        size = self.places[source].size
        if tuple(signal.shape[-2:]) == size:
            return signal
        return F.pad(signal, (columns.start, size[1] - columns.stop, rows.start, size[0] - rows.stop))
