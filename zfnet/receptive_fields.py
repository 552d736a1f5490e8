"""Which pixels a unit sees, and the table of layers."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import fx, nn

from zfnet.checks import Pair, pair
from zfnet.graph import SWITCHED, Graph, graph_of
from zfnet.windows import WINDOWS, Places, _follow, places_of, rearranged, window_of


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


def layer_table(model: nn.Module | Graph, image_size: int | Pair) -> list[LayerUnits]:
    """The table of layers: a unit is one element of a layer's output; all units of a feature map share one filter."""
    graph, size = graph_of(model), pair(image_size)
    shapes = graph.shapes(size, graph.nodes[-1])
    table = []
    for node in graph.nodes:
        if node not in shapes or node in graph.inputs:
            continue
        module, window, rf = (
            graph.module(node),
            window_of(graph, node, shapes),
            receptive_field(graph, graph.names[node], size),
        )
        windowed = window is not None and (window.inside is not None or graph.lookup(SWITCHED, node))
        windowed = windowed and graph.lookup(WINDOWS, node) is not rearranged
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
