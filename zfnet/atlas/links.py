"""Which maps feed which: by the weights between two layers, whatever the images are.

One unit of each map, at an interior place, sends the signal 1 down with nothing rectified. What arrives at a map of a
layer below, summed over its places, is the weight between both. Of each map only the largest are kept.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx

from zfnet.checks import Pair, device_and_dtype, undifferentiated
from zfnet.deconvnet import Deconvnet, _ByImage, _ByWindow
from zfnet.extended import PASSED_ACTIVATIONS
from zfnet.graph import Graph
from zfnet.operations import CONTRAST_NORMS, DECONVNET, UNRECTIFIED
from zfnet.receptive_fields import map_fields
from zfnet.recording import Recording, record
from zfnet.views import View

MOST = 6  # links of each map that are kept
MEMORY = 2**25  # bytes that the largest step of a batch may take


class Links(NamedTuple):
    """The strongest links of each of C maps, strongest first; where there are fewer, the layer is -1."""

    layer: Tensor  # (C, MOST) int64: numbers of layers
    map: Tensor  # (C, MOST) int64
    weight: Tensor  # (C, MOST), with its sign

    @classmethod
    def none(cls, maps: int) -> "Links":
        numbers = torch.full((2, maps, MOST), -1)
        return cls(numbers[0], numbers[1], torch.zeros(maps, MOST))

    def merged(self, layer: Tensor, maps: Tensor, weight: Tensor) -> "Links":
        """The strongest of these and of others (C, n); of equals, those that came first. Zero is no link."""
        both = [torch.cat(pair, 1) for pair in zip(self, (layer, maps, weight), strict=True)]
        order = both[2].abs().argsort(dim=1, descending=True, stable=True)[:, :MOST]
        links = Links(*(column.gather(1, order) for column in both))
        nothing = links.weight == 0
        return Links(links.layer.masked_fill(nothing, -1), links.map.masked_fill(nothing, -1), links.weight)

    def of(self, number: int) -> list[tuple[int, int, float]]:
        """(layer, map, weight) of a map's links."""
        columns = zip(*(column[number].tolist() for column in self), strict=True)
        return [(layer, m, weight) for layer, m, weight in columns if layer >= 0]


def nearest_below(graph: Graph, nodes: Sequence[fx.Node]) -> list[list[int]]:
    """For each of these steps, the numbers of those that it reads with none of them between."""
    numbers = {node: number for number, node in enumerate(nodes)}
    sources = []
    for node in nodes:
        below, seen, waiting = set(), set(), list(node.all_input_nodes)
        while waiting:
            source = waiting.pop()
            if source in seen or source not in graph.carriers:
                continue
            seen.add(source)
            if source in numbers:
                below.add(numbers[source])
            else:
                waiting += source.all_input_nodes
        sources.append(sorted(below))
    return sources


def nearest_above(below: Sequence[Sequence[int]]) -> list[list[int]]:
    """The reverse of `nearest_below`."""
    return [[above for above, sources in enumerate(below) if number in sources] for number in range(len(below))]


def unrectified(deconvnet: Deconvnet) -> Deconvnet:
    """The same deconvnet, whose signal passes rectifiers and contrast normalisation as it is."""
    passed = {norm: DECONVNET[norm] for norm in CONTRAST_NORMS}
    known = {key for key, row in deconvnet.rules.items() if row.back}
    passed |= {key: row for key, row in PASSED_ACTIVATIONS.items() if key in known}
    return Deconvnet(deconvnet.graph, rules=deconvnet.rules | UNRECTIFIED | passed, collisions=deconvnet.collisions)


def weights(
    deconvnet: Deconvnet, nodes: Sequence[fx.Node], below: Sequence[Sequence[int]], image_size: Pair
) -> tuple[list[Links], list[Links]]:
    """For each of the layers: the maps below that feed its maps most, and the maps above that read them most.

    Args:
        nodes: the layers.
        below: of each, the nearest layers below: see `nearest_below`.
        image_size: rows and columns.
    """
    graph, walker = deconvnet.graph, unrectified(deconvnet)
    counts = [graph.shapes(image_size, node)[node][1] for node in nodes]
    feed, read = [Links.none(count) for count in counts], [Links.none(count) for count in counts]
    for number, node in enumerate(nodes):
        if not below[number]:
            continue
        for maps, arrived in _arrivals(walker, node, [nodes[n] for n in below[number]], counts[number], image_size):
            for source, weight in zip(below[number], arrived, strict=True):  # (m, maps of the source)
                some = min(MOST, weight.shape[1])
                which = weight.abs().topk(some, dim=1).indices
                kept = Links(*(column[maps] for column in feed[number]))
                kept = kept.merged(torch.full_like(which, source), which, weight.gather(1, which))
                for column, entries in zip(feed[number], kept, strict=True):
                    column[maps] = entries
                some = min(MOST, len(weight))
                which = weight.abs().topk(some, dim=0).indices
                strongest = weight.gather(0, which).T
                read[source] = read[source].merged(torch.full_like(which.T, number), maps[which.T], strongest)
    return feed, read


def _arrivals(
    walker: Deconvnet, node: fx.Node, ends: Sequence[fx.Node], count: int, image_size: Pair
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """The maps (m,) of a layer, by batches, and what arrives from each of them at the maps of the ends: (m, C)."""
    graph = walker.graph
    name = graph.names[node]
    shapes = graph.shapes(image_size, node)
    middle = [extent // 2 for extent in shapes[node][2:]] or [0, 0]
    units = torch.tensor([[0, number, *middle] for number in range(count)])
    located = walker._located(name, units, 1, image_size, whole=map_fields(graph, node, shapes).unknown is not None)
    grey = torch.zeros(1, graph.channels, *image_size, **device_and_dtype(graph.model))

    def forward(pixels: Tensor, view: View | None) -> Recording:
        return record(graph, pixels, [name], walker._reads_input, view)

    with undifferentiated(graph.model):
        for members, windows in located.by_window():
            run = _ByWindow(located, members, windows) if windows else _ByImage(located, members)
            recording = None
            for batch in run.batches(MEMORY // grey.element_size()):
                if recording is None:  # one for all batches: the images are all alike
                    first = batch
                    recording = run.run(first, grey, forward).recording
                maps = located.units[batch, 1]
                signal = located.zeros(recording)
                _, *index = run.index(first)
                index[0] = maps
                places = tuple(i[: len(maps)] for i in (torch.arange(len(maps)), *index))
                shapes.maps(node, signal)[places] = 1
                arrived: dict[fx.Node, Tensor] = {}

                def observe(step: fx.Node, sent: Tensor, arrived: dict[fx.Node, Tensor] = arrived) -> None:
                    if step in ends:
                        sent = shapes.maps(step, sent)
                        arrived[step] = sent.flatten(2).sum(2) if sent.ndim > 2 else sent

                for _ in walker._walk(recording, name, signal, observe, ends):
                    if len(arrived) == len(ends):
                        break
                empty = [torch.zeros(len(maps), shapes[end][1]) for end in ends]
                found = [arrived.get(end, none)[: len(maps)] for end, none in zip(ends, empty, strict=True)]
                yield maps, [part.float().cpu() for part in found]
