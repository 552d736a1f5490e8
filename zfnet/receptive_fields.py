"""Which pixels a unit sees, map by map, and the table of layers.

A map behind a concatenation sees only through its own branch: one layer of SqueezeNet has maps whose units see 19
pixels and maps whose units see 27. The field of every map of every step comes from one pass over the graph, from the
image up.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from zfnet.checks import Pair, pair
from zfnet.errors import InputError
from zfnet.graph import Graph, Shapes, graph_of
from zfnet.operations import moved_window
from zfnet.views import follow, no_window
from zfnet.windows import WHOLE, count_maps

_NOTHING = 2**40  # where the field of a map begins that sees nothing, such as a map of zeros; it ends before
Box = tuple[int, int, int, int]  # top, left, bottom, right in input pixels, ends exclusive


class Fields(NamedTuple):
    """The receptive fields of the maps of one step: unit (row, column) of map c sees from low[c] + stride * (row,
    column).

    Without low and high (C, 2), an output depends on the whole image, or on what is not `known`.
    """

    low: Tensor | None = None
    high: Tensor | None = None  # ends exclusive
    stride: Pair | None = None  # None: fields differ from unit to unit
    unknown: fx.Node | None = None  # the step that has no window
    exact: bool = True  # False: of the path back alone; the forward pass decides by more of the image

    @property
    def whole(self) -> bool:
        return self.low is None and self.unknown is None


def map_fields(graph: Graph, node: fx.Node, shapes: Shapes) -> Fields:
    """The receptive fields of the maps of a step; those of all steps below it are kept in `shapes.fields`."""
    if node not in shapes.fields:
        for step in graph.path([node]):
            if step in shapes and step not in shapes.fields:
                shapes.fields[step] = _fields(graph, step, shapes)
    fields: Fields = shapes.fields[node]
    return fields


def _fields(graph: Graph, step: fx.Node, shapes: Shapes) -> Fields:
    if step in graph.inputs:
        corner = torch.zeros(count_maps(shapes[step]), 2, dtype=torch.int64)
        return Fields(corner, corner + 1, (1, 1))
    sources, window = [source for source in step.all_input_nodes if source in shapes], graph.path_window(step, shapes)
    decided = window.decided if window else ()
    below = {number: shapes.fields[source] for number, source in enumerate(sources) if number not in decided}
    if window is WHOLE or any(fields.whole for fields in below.values()):
        return Fields()
    if unknown := next((fields.unknown for fields in below.values() if fields.unknown), None if window else step):
        return Fields(unknown=unknown)
    assert window is not None
    outputs, lows, highs, strides = count_maps(shapes[step]), [], [], set()
    for number, (low, high, stride, *_) in below.items():
        assert low is not None and high is not None
        if stride is not None and window.slides:
            reach = torch.tensor([window.reads(0, 1, axis) for axis in (0, 1)]) - torch.tensor([0, 1])
            low, high = (edge + torch.tensor(stride) * reach[:, n] for n, edge in enumerate((low, high)))
            strides.add((stride[0] * window.stride[0], stride[1] * window.stride[1]))
        else:
            strides.add((0, 0))
        reads = window.maps_read(number, outputs, len(low))
        if reads is None:
            lows.append(low.amin(0).expand(outputs, 2))
            highs.append(high.amax(0).expand(outputs, 2))
        else:
            absent = (reads < 0)[:, :, None]
            lows.append(low[reads].masked_fill(absent, _NOTHING).amin(1))
            highs.append(high[reads].masked_fill(absent, -_NOTHING).amax(1))
    stride = strides.pop() if len(strides) == 1 and (0, 0) not in strides else None
    exact = window is graph.window(step, shapes) and all(fields.exact for fields in below.values())
    return Fields(torch.stack(lows).amin(0), torch.stack(highs).amax(0), stride, exact=exact)


@dataclass(frozen=True)
class ReceptiveField:
    """Which pixels the units of a layer see: unit (row, column) begins at start + stride * (row, column).

    `receptive_field` makes it. With rules that hold decisions of the forward pass (EXTENDED), it is the field of the
    path back, and `exact` is False: a gate or a statistic depends on more of the image.

    Behind a step that mixes all places (flatten, global pooling) stride and start are 0. Behind one whose windows do
    not slide evenly (upsampling) `stride` is None, `size` that of the unit that sees most, and `box` is what the unit
    sees.

    Attributes:
        size: of what a unit sees: (rows, columns) in input pixels, and so are all pairs.
        stride: from one unit's field to the next one's; None: it differs from unit to unit.
        start: the top left corner of the field of unit (0, 0), negative where it begins beyond the image.
        image_size: of the images.
    """

    size: Pair
    stride: Pair | None
    start: Pair
    image_size: Pair
    _graph: Graph
    _node: fx.Node
    _maps: Tensor  # (C,) bool

    @property
    def exact(self) -> bool:
        """Whether the unit depends on nothing else; if not, the field is that of the path back alone."""
        return map_fields(self._graph, self._node, self._graph.shapes(self.image_size, self._node)).exact

    def box(self, row: int, column: int) -> Box:
        """Top, left, bottom, right in input pixels, ends exclusive, not clipped to the image."""
        if self.stride is None:
            return self.seen(row, column)
        top, left = self.start[0] + self.stride[0] * row, self.start[1] + self.stride[1] * column
        return top, left, top + self.size[0], left + self.size[1]

    def seen(self, row: int, column: int) -> Box:
        """The part of the box that reaches the unit: within the image, and within the borders of every step between."""
        shapes = self._graph.shapes(self.image_size, self._node)
        if map_fields(self._graph, self._node, shapes).whole:
            return 0, 0, *self.image_size
        parts = follow(self._graph, self._node, (row, column), self._maps, shapes, clip=True)
        if parts is None:
            return 0, 0, *self.image_size
        if self._graph.inputs[0] not in parts:
            return 0, 0, 0, 0
        (top, bottom), (left, right), _ = parts[self._graph.inputs[0]]
        return top, left, bottom, right


def receptive_field(
    model: nn.Module | Graph, layer: str | nn.Module, image_size: int | Pair, map: int | None = None
) -> ReceptiveField:
    """The receptive field of a layer's units, exact at borders and on branched graphs.

    Dumoulin & Visin (2016), arXiv:1603.07285.

    Args:
        model: a network, or the graph of one.
        layer: a step's name, a module's name, or the module.
        image_size: of the input, pixels: (rows, columns), or one number for both.
        map: the feature map; None: the union over all maps.

    Raises:
        InputError: for a layer or map that does not exist, and behind a step whose window is not known.
    """
    graph = graph_of(model)
    node, size = graph.node(layer), pair(image_size)
    shapes = graph.shapes(size, node)
    if node not in shapes:
        graph.check_maps(node, shapes)
    fields, count = map_fields(graph, node, shapes), shapes[node][1]
    if map is not None and not (isinstance(map, int) and 0 <= map < count):
        raise InputError(f"no map {map!r} in {graph.names[node]}: there are {count}")
    maps = torch.ones(count_maps(shapes[node]), dtype=torch.bool)
    if map is not None and len(shapes[node]) == 4:
        maps = torch.arange(count) == map
    if fields.unknown:
        raise no_window(graph, fields.unknown)
    if fields.low is None or fields.high is None:
        return ReceptiveField(size, (0, 0), (0, 0), size, graph, node, maps)
    if fields.stride is None:
        return _uneven(ReceptiveField((0, 0), None, (0, 0), size, graph, node, maps), shapes[node][-2:])
    low, high = fields.low[maps].amin(0).tolist(), fields.high[maps].amax(0).tolist()
    if low[0] > high[0]:
        return ReceptiveField((0, 0), (0, 0), (0, 0), size, graph, node, maps)
    return ReceptiveField(
        (high[0] - low[0], high[1] - low[1]), fields.stride, (low[0], low[1]), size, graph, node, maps
    )


def _uneven(field: ReceptiveField, extent: torch.Size) -> ReceptiveField:
    """The field with the size of that of the unit that sees most, along rows and columns."""
    rows = [field.seen(row, 0) for row in range(extent[0])]
    columns = [field.seen(0, column) for column in range(extent[1])]
    size = max(bottom - top for top, _, bottom, _ in rows), max(right - left for _, left, _, right in columns)
    return ReceptiveField(size, None, field.start, field.image_size, field._graph, field._node, field._maps)


def boxes_of(graph: Graph, node: fx.Node, shapes: Shapes, image_size: Pair, units: Tensor) -> Tensor:
    """What units (M, 4: image, map, row, column) of a layer see, whose windows do not slide evenly: boxes (M, 4)."""
    different, which = units[:, 1:].unique(dim=0, return_inverse=True)
    maps, boxes = torch.arange(shapes[node][1]), []
    for number, row, column in different.tolist():
        field = ReceptiveField((0, 0), None, (0, 0), image_size, graph, node, maps == number)
        boxes.append(field.seen(row, column))
    return torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4)[which]


class LayerUnits(NamedTuple):
    """One row of the table of layers. All pairs are (rows, columns), in pixels.

    Attributes:
        layer: its name.
        operation: what it does: Conv2d, ReLU, add.
        output: (maps, rows, columns) of its output, or (units,).
        units: how many elements that are.
        kernel: of a convolution or pooling, in elements of its input; None for others.
        stride: the same.
        receptive_field: of the maps that see most, in input pixels; None: not known.
        smallest_field: of the maps that see least.
        receptive_stride: from one unit's field to the next one's.
        parameters: how many it has.
    """

    layer: str
    operation: str
    output: tuple[int, ...]
    units: int
    kernel: Pair | None
    stride: Pair | None
    receptive_field: Pair | None
    smallest_field: Pair | None
    receptive_stride: Pair | None
    parameters: int


def layer_table(model: nn.Module | Graph, image_size: int | Pair) -> list[LayerUnits]:
    """The table of layers: a unit is one element of a layer's output; all units of a feature map share one filter.

    Args:
        model: a network, or the graph of one.
        image_size: of the input, pixels: (rows, columns), or one number for both.

    Returns:
        One `LayerUnits` for each step that gives feature maps or units, in the order of the graph.
    """
    graph, size = graph_of(model), pair(image_size)
    shapes = graph.shapes(size, graph.output)
    table = []
    for node in graph.nodes:
        if node not in shapes or node in graph.inputs:
            continue
        module, window = graph.module(node), graph.window(node, shapes)
        row = graph.lookup(graph.operations, node)
        pools = window is not None and window.slides and window.inside is not None
        pools = pools and row is not None and row.window is not moved_window
        largest, smallest, stride = _sizes(graph, node, shapes, size)
        table.append(
            LayerUnits(
                graph.names[node],
                graph.operation(node),
                tuple(shapes[node][1:]),
                math.prod(shapes[node][1:]),
                window.kernel if window and pools else None,
                window.stride if window and pools else None,
                largest,
                smallest,
                stride,
                sum(p.numel() for p in module.parameters()) if module is not None else 0,
            )
        )
    return table


def _sizes(
    graph: Graph, node: fx.Node, shapes: Shapes, image_size: Pair
) -> tuple[Pair | None, Pair | None, Pair | None]:
    """The largest and smallest field of a step's maps, and the fields' stride."""
    fields = map_fields(graph, node, shapes)
    if fields.unknown or fields.low is None or fields.high is None:
        known = None if fields.unknown else image_size
        return known, known, None if fields.unknown else (0, 0)
    if fields.stride is None:
        maps = torch.ones(len(fields.low), dtype=torch.bool)
        size = _uneven(ReceptiveField((0, 0), None, (0, 0), image_size, graph, node, maps), shapes[node][-2:]).size
        return size, size, None
    union = (fields.high.amax(0) - fields.low.amin(0)).clamp(min=0).tolist()
    smallest = (fields.high - fields.low).amin(0).clamp(min=0).tolist()
    return (union[0], union[1]), (smallest[0], smallest[1]), fields.stride
