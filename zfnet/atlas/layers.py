"""The layers of an atlas: their properties that do not depend on images, and the sizes of their pictures."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from zfnet.atlas.links import nearest_above, nearest_below
from zfnet.checks import Pair, pair
from zfnet.deconvnet import Deconvnet
from zfnet.errors import InputError
from zfnet.graph import Graph
from zfnet.layers import every, spread, trunk
from zfnet.operations import DECONVNET, Rules
from zfnet.receptive_fields import LayerUnits, layer_table, map_fields
from zfnet.scanning import _clips_from_above

TILE, OVERVIEW, SIDE = 72, 48, 2048  # pixels: the longer side of a tile and of one of an overview; of a sprite, at most
PER = {"tiles": 24, "masks": 96, "overview": 256, "maps": 64}  # maps in a file of each kind
ACROSS = {"tiles": 1, "masks": 4, "overview": 16}  # of these, maps in a line


@dataclass(frozen=True)
class Layer:
    """One layer of an atlas."""

    number: int
    name: str
    node: fx.Node
    maps: int  # of the network
    chosen: Tensor  # (rows,) int64: the maps in the atlas
    table: LayerUnits
    shown: Pair  # pixels of the image in a tile
    whole: bool  # tiles are whole images
    clipped: bool
    sizes: Mapping[str, Pair]  # pixels of a stored tile, mask, overview tile and example
    below: Sequence[int]
    sources: Sequence[str]  # the names of those below
    above: Sequence[int]
    steps: Sequence[tuple[str, str]]  # name and operation of each step of the way down, from the layer to the image
    fields: bool  # whether its maps see differently
    exact: bool  # False: the field is that of the way back; the activation depends on more
    kernel: Pair | None
    stride: Pair | None
    kernel_of: str | None

    @property
    def rows(self) -> int:
        return len(self.chosen)

    @property
    def size(self) -> Pair:
        output = self.table.output
        return (output[1], output[2]) if len(output) == 3 else (1, 1)

    def entry(self, dead: int) -> dict[str, Any]:
        """Its entry in the atlas' index."""
        field = self.table.receptive_field
        return {
            "name": self.name,
            "operation": self.table.operation,
            "maps": self.maps,
            "rows": self.rows,
            "size": self.size,
            "kernel": self.kernel,
            "stride": self.stride,
            "field": field,
            "field_stride": self.table.receptive_stride,
            "fields": self.fields,
            "exact": self.exact,
            "whole": self.whole,
            "clipped": self.clipped,
            "dead": dead,
            **self.sizes,
            "shown": self.shown,
            "per": PER,
            "across": ACROSS,
            "below": self.below,
            "above": self.above,
            "steps": self.steps,
            "kernel_of": self.kernel_of,
        }


def fitted(size: Pair, most: int) -> Pair:
    """A size whose longer side has at most so many pixels, of the same proportions."""
    scale = min(1.0, most / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _narrowed(size: Pair, most: int) -> Pair:
    """A size with at most so many columns, of the same proportions."""
    return size if size[1] <= most else (max(1, round(size[0] * most / size[1])), most)


def names_of(
    graph: Graph, image_size: Pair, layers: str | Sequence[str | nn.Module] | None, rules: Rules = DECONVNET
) -> list[str]:
    """The names of the layers that `layers` selects, in the network's order.

    Args:
        layers: names or modules; None or "auto": five that stand for the paper's; "all": every layer whose units can
            be projected.
        rules: that they are projected by.

    Raises:
        InputError: for a layer that does not exist or gives no maps, and if there is none.
    """
    if layers is None or layers == "auto":
        return spread(graph, image_size)
    if layers == "all":
        return every(graph, image_size, rules)
    if isinstance(layers, str | nn.Module) or not isinstance(layers, Iterable):
        raise InputError(f"layers is {layers!r}; give a list of layers, all, or auto")
    nodes = {graph.node(layer): None for layer in layers}
    if not nodes:
        raise InputError("an atlas needs at least one layer; layers is empty")
    for node in nodes:
        graph.check_maps(node, graph.shapes(image_size, node))
    return [graph.names[node] for node in graph.nodes if node in nodes]


def chosen_maps(maps: Any, names: Sequence[str], counts: Sequence[int]) -> list[Tensor]:
    """The maps of each layer that are in the atlas.

    Args:
        maps: None: all; a number: so many of each layer, the first; a list of maps, for each layer; or a dictionary of
            these by layer, where layers that are not in it have all maps.

    Raises:
        InputError: for maps that a layer does not have, and an empty choice.
    """
    if isinstance(maps, Mapping):
        for name in maps:
            if name not in names:
                raise InputError(
                    f"maps names {name!r}, which is not a layer of this atlas; its layers are {', '.join(names)}"
                )
    return [
        _chosen(maps.get(name) if isinstance(maps, Mapping) else maps, name, count)
        for name, count in zip(names, counts, strict=True)
    ]


def _chosen(maps: Any, name: str, count: int) -> Tensor:
    if maps is None:
        return torch.arange(count)
    if type(maps) is int and maps >= 1:
        return torch.arange(min(maps, count))
    if isinstance(maps, str) or not isinstance(maps, Iterable):
        raise InputError(f"maps is {maps!r}; give a list of map numbers, or how many of each layer, from 1")
    numbers = list(maps)
    for number in numbers:
        if type(number) is not int or not 0 <= number < count:
            raise InputError(f"no map {number!r} in {name}: there are {count}, numbered from 0")
    if not numbers:
        raise InputError(f"maps is empty for {name}; give a list of map numbers, or leave maps out for all")
    return torch.tensor(sorted({*numbers}))


def plan(deconvnet: Deconvnet, image_size: Pair, names: Sequence[str], maps: Any, k: int) -> list[Layer]:
    """The layers of an atlas.

    Args:
        deconvnet: of the network.
        image_size: rows and columns.
        names: of the layers; see `names_of`.
        maps: see `chosen_maps`.
        k: tiles of each map.
    """
    graph = deconvnet.graph
    nodes = [graph.node(name) for name in names]
    below = nearest_below(graph, nodes)
    above = nearest_above(below)
    shapes = graph.shapes(image_size, graph.output)
    for node in nodes:
        if node not in shapes:
            shapes = graph.shapes(image_size, node)
    counts = [shapes[node][1] for node in nodes]
    table = {row.layer: row for row in layer_table(graph, image_size)}
    layers = []
    for number, (node, chosen) in enumerate(zip(nodes, chosen_maps(maps, names, counts), strict=True)):
        row, fields = table[graph.names[node]], map_fields(graph, node, shapes)
        field = None if fields.unknown else row.receptive_field
        whole = field is None or math.prod(field) > 2 * math.prod(image_size)
        shown = image_size if whole or field is None else (max(1, field[0]), max(1, field[1]))
        longest = max(1, min(TILE, SIDE // (2 * k + 4)))
        tile = fitted(shown, longest)
        sizes = {
            "tile": tile,
            "mask": _narrowed(tile, max(1, SIDE // (ACROSS["masks"] * k))),
            "overview": fitted(shown, min(OVERVIEW, SIDE // (2 * ACROSS["overview"]))),
            "example": fitted(tile, OVERVIEW),
        }
        source = node if row.kernel else _convolution(graph, node)
        kernel = table.get(graph.names[source]) if source is not None else None
        layers.append(
            Layer(
                *(number, graph.names[node], node, counts[number], chosen, row, shown, whole),
                clipped=clips(graph, node),
                sizes=sizes,
                below=below[number],
                sources=[graph.names[nodes[source]] for source in below[number]],
                above=above[number],
                steps=[
                    (graph.names[step], "image" if step in graph.inputs else graph.operation(step))
                    for step in reversed(graph.path([node]))
                    if step in graph.carriers and step in shapes
                ],
                fields=fields.low is not None
                and fields.high is not None
                and len(torch.cat([fields.low, fields.high], 1).unique(dim=0)) > 1,
                exact=fields.exact,
                kernel=kernel.kernel if kernel else None,
                stride=kernel.stride if kernel else None,
                kernel_of=None
                if source is None or (source is node and not _is_convolution(graph, node))
                else graph.names[source],
            )
        )
    return layers


def clips(graph: Graph, node: fx.Node) -> bool:
    """Whether a step clips its values from above, so that maps are ranked before it."""
    return _clips_from_above(graph, node, node.args, node.kwargs)


def _is_convolution(graph: Graph, node: fx.Node) -> bool:
    return "conv" in graph.operation(node).lower()


def _convolution(graph: Graph, node: fx.Node) -> fx.Node | None:
    """The convolution that a step's maps come from, if there is but one: none behind joined branches."""
    while True:
        if _is_convolution(graph, node):
            return node
        sources = [source for source in node.all_input_nodes if source in graph.carriers]
        if len(sources) != 1 or sources[0] in graph.inputs or "linear" in graph.operation(node).lower():
            return None
        (node,) = sources


def network(graph: Graph, image_size: Pair, layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """The steps that every path from the image passes through, and the layers, in order, for the drawing."""
    numbers = {layer.name: layer.number for layer in layers}
    shown = {graph.names[node] for node in trunk(graph, graph.output)} | numbers.keys()
    return [
        {
            "name": row.layer,
            "operation": row.operation,
            "output": [*row.output, 1, 1][:3] if len(row.output) < 3 else row.output[-3:],
            "kernel": row.kernel,
            "stride": row.stride,
            "field": row.receptive_field,
            "layer": numbers.get(row.layer),
        }
        for row in layer_table(graph, pair(image_size))
        if row.layer in shown
    ]
