"""Which pixels a unit sees, and which part of every step it depends on: window arithmetic on the traced graph.

Output i of a step with kernel k, stride s, padding p and dilation d reads its input from i s - p, over d (k - 1) + 1
places. Followed down to the image this is the receptive field; followed up it says which part of each step must be
computed to know one unit.  Every step's window has one size for all units of a layer and moves with them, so that the
windows of many units can be run, forward and back, as one batch (`Windows`): exactly what the unit depends on, and
nothing else.
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from zfnet.record import SWITCHED, Graph, Whole, graph_of, pool_arguments

Pair = tuple[int, int]


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


def pair(value: int | Sequence[int]) -> Pair:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _convolution(graph: Graph, node: fx.Node) -> Window | None:
    conv: Any = graph.module(node)
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return WHOLE
    window = Window(
        conv.kernel_size, conv.stride, conv.padding, conv.dilation, 0.0,
        lambda x: F.conv2d(x, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups),
    )  # fmt: skip
    beyond = window.span(0) - 1, window.span(1) - 1
    if beyond[0] < conv.stride[0] and beyond[1] < conv.stride[1]:
        return window  # no place is read twice: what a change reaches costs as much by reading
    return window._replace(
        spread=lambda x: F.conv2d(x, conv.weight, None, conv.stride, beyond, conv.dilation, conv.groups)
    )


def _max_pool(graph: Graph, node: fx.Node) -> Window:
    given = pool_arguments(graph, node)
    kernel, stride, padding, dilation = (pair(given[n]) for n in ("kernel_size", "stride", "padding", "dilation"))
    return Window(kernel, stride, padding, dilation, fill=-math.inf)


def _average_pool(graph: Graph, node: fx.Node) -> Window | None:
    given = {name: graph.argument(node, name) for name in ("kernel_size", "stride", "padding", "divisor_override")}
    kernel, padding = pair(given["kernel_size"]), pair(given["padding"] or 0)
    stride = pair(given["stride"] or kernel)
    outside_counts = padding == (0, 0) or graph.argument(node, "count_include_pad", True)
    if graph.argument(node, "ceil_mode", False) or not outside_counts:
        return WHOLE  # the divisor changes at the border: it is not the same for all units
    return Window(
        kernel, stride, padding, fill=0.0,
        inside=lambda x: F.avg_pool2d(x, kernel, stride, divisor_override=given["divisor_override"]),
    )  # fmt: skip


def _zero_pad(graph: Graph, node: fx.Node) -> Window:
    left, _, top, _ = graph.argument(node, "padding")
    return Window(padding=(top, left), inside=lambda x: x)


def _join(graph: Graph, node: fx.Node) -> Window | None:
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    return POINTWISE if dim in (1, -3) else WHOLE


# operation -> Window, or what makes one from (graph, step); what is not here is WHOLE.  `deconvnet.rule` adds rows.
WINDOWS: dict[Any, Window | Callable[[Graph, fx.Node], Window | None] | None] = {
    nn.Conv2d: _convolution,
    nn.MaxPool2d: _max_pool,
    F.max_pool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    F.avg_pool2d: _average_pool,
    nn.ZeroPad2d: _zero_pad,
    torch.cat: _join,
}


def window_of(graph: Graph, node: fx.Node) -> Window | None:
    """How one output of this step reads its input; WHOLE where that is not known."""
    parameters = [operator.attrgetter(str(s.target))(graph.model) for s in node.all_input_nodes if s.op == "get_attr"]
    if any(max(p.shape[-2:], default=1) > 1 for p in parameters if isinstance(p, Tensor)):
        return WHOLE  # a map of its own, which differs from place to place
    row = graph.lookup(WINDOWS, node)
    return row(graph, node) if callable(row) else row


class Places(NamedTuple):
    """Windows of one step: that of unit (row, column) begins at start + stride * (row, column)."""

    start: Pair
    stride: Pair
    size: Pair


def _follow(
    graph: Graph, node: fx.Node, unit: Pair, shapes: dict[fx.Node, torch.Size], clip: bool
) -> dict[fx.Node, tuple[Pair, Pair]] | None:
    """The part (rows, columns) of each step that one unit of `node` depends on; None if it depends on everything.

    With `clip`, the part within the steps' own borders.
    """
    parts = {node: ((unit[0], unit[0] + 1), (unit[1], unit[1] + 1))}
    for step in reversed(graph.path([node])):
        if step not in parts or not step.all_input_nodes:
            continue
        sources = [s for s in step.all_input_nodes if s in shapes]
        window = window_of(graph, step)
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


@dataclass(frozen=True)
class ReceptiveField:
    """Which pixels the units of a layer see: unit (row, column) begins at start + stride * (row, column)."""

    size: Pair  # all pairs are (rows, columns), in input pixels
    stride: Pair
    start: Pair
    image_size: Pair
    _graph: Graph
    _node: fx.Node

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """Top, left, bottom, right in input pixels, ends exclusive, not clipped to the image."""
        top, left = self.start[0] + self.stride[0] * row, self.start[1] + self.stride[1] * column
        return top, left, top + self.size[0], left + self.size[1]

    def seen(self, row: int, column: int) -> tuple[int, int, int, int]:
        """The part of the box that reaches the unit: within the image, and within the borders of every step between."""
        shapes = self._graph.shapes(self.image_size, self._node)
        parts = _follow(self._graph, self._node, (row, column), shapes, clip=True)
        if parts is None:
            return 0, 0, *self.image_size
        (top, bottom), (left, right) = parts[self._graph.inputs[0]]
        return top, left, bottom, right


def receptive_field(model: nn.Module | Graph, layer: str, image_size: int | Pair) -> ReceptiveField:
    """The receptive field of a layer's units, for images of `image_size` (rows and columns, or one number for both).

    A layer behind a step that mixes all places (flatten, global pooling) sees the whole image: stride and start are 0.
    InputError for a layer that does not exist.  Dumoulin & Visin (2016), arXiv:1603.07285, has the arithmetic.
    """
    graph = graph_of(model)
    node, size = graph.node(layer), pair(image_size)
    places = places_of(graph, node, graph.shapes(size, node))
    here = places[graph.inputs[0]] if places else Places((0, 0), (0, 0), size)
    return ReceptiveField(here.size, here.stride, here.start, size, graph, node)


def places_of(graph: Graph, node: fx.Node, shapes: dict[fx.Node, torch.Size]) -> dict[fx.Node, Places] | None:
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


class Windows(Whole):
    """Steps see the windows that a batch of units (rows (M,), columns (M,)) of one layer depends on, and no more."""

    padded = False

    def __init__(
        self,
        graph: Graph,
        places: dict[fx.Node, Places],
        shapes: dict[fx.Node, torch.Size],
        rows: Tensor,
        columns: Tensor,
    ):
        super().__init__(graph)
        self.places, self.units = places, (rows.cpu(), columns.cpu())
        self.extent = {step: tuple(shapes[step][-2:]) for step in places}
        self._window = {step: window_of(graph, step) or POINTWISE for step in places}
        self._read = {
            (step, source): (
                self._offset(step, source, 0),
                self._offset(step, source, 1),
                self._outside(step, source),
            )
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
        return x.index_copy(0, which, x[which].masked_fill(mask, value))

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
        inside = self._window[node].inside
        return inside(args[0]) if inside else self.graph.call(node, args, kwargs)

    def place(self, node: fx.Node, source: fx.Node, signal: Tensor) -> Tensor:
        rows, columns, outside = self._read[node, source]
        if outside is not None:
            signal = self._fill(signal, outside, 0.0)
        size = self.places[source].size
        if tuple(signal.shape[-2:]) == size:
            return signal
        return F.pad(signal, (columns.start, size[1] - columns.stop, rows.start, size[0] - rows.stop))


class LayerUnits(NamedTuple):
    """One row of the table of layers; output is (maps, rows, columns)."""

    layer: str
    operation: str
    output: tuple[int, ...]
    units: int
    kernel: Pair | None
    stride: Pair | None
    receptive_field: Pair
    receptive_stride: Pair
    parameters: int


def units(model: nn.Module | Graph, image_size: int | Pair) -> list[LayerUnits]:
    """The table of layers: a unit is one element of a layer's output; all units of a feature map share one filter."""
    graph, size = graph_of(model), pair(image_size)
    shapes = graph.shapes(size, graph.nodes[-1])
    table = []
    for node in graph.nodes:
        if node not in shapes or node in graph.inputs:
            continue
        module, window, rf = graph.module(node), window_of(graph, node), receptive_field(graph, graph.names[node], size)
        windowed = window is not None and (window.inside is not None or graph.lookup(SWITCHED, node))
        table.append(
            LayerUnits(
                graph.names[node],
                graph.operation(node),
                tuple(shapes[node][1:]),
                math.prod(shapes[node][1:]),
                window.kernel if window and windowed else None,
                window.stride if window and windowed else None,
                rf.size,
                rf.stride,
                sum(p.numel() for p in module.parameters()) if module is not None else 0,
            )
        )
    return table
