"""Run a traced model forward and keep what was asked for."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from zfnet.checks import check_images, evaluating
from zfnet.graph import SWITCHED, Graph, pool_arguments
from zfnet.windows import Whole


@dataclass
class Recording:
    """What a forward pass left behind, by layer name: the activations asked for, and all max-poolings' switches."""

    images: Tensor  # (N, 3, H, W)
    view: Whole
    activations: dict[str, Tensor] = field(default_factory=dict)
    switches: dict[str, Tensor] = field(default_factory=dict)  # (N, C, h, w), int64
    shapes: dict[str, torch.Size] = field(default_factory=dict)
    seen: dict[tuple[fx.Node, fx.Node], torch.Size] = field(default_factory=dict)  # (step, source): as it is read
    values: dict[fx.Node, Any] = field(default_factory=dict)  # what rules need besides: numbers, kept inputs


def record(
    graph: Graph,
    images: Tensor,
    layers: Collection[str] | None,
    needs: Callable[[fx.Node], bool],
    view: Whole | None = None,
) -> Recording:
    """Run images (N, 3, H, W) forward up to the deepest of `layers`, or to the end if None.

    Kept are these layers' activations, all switches and shapes, and the values that are needed besides.
    """
    wanted = {graph.node(name) for name in (graph.layers if layers is None else layers)}
    view = view or Whole(graph)
    recording = Recording(images, view)

    def read(node: fx.Node, source: fx.Node, value: Any) -> Any:
        value = view.read(node, source, value)
        if isinstance(value, Tensor):
            recording.seen[node, source] = value.shape
        return value

    def apply(node: fx.Node, args: tuple, kwargs: dict) -> Any:
        name = graph.names[node]
        if switched := graph.lookup(SWITCHED, node):
            border = {} if view.padded else {"padding": 0, "ceil_mode": False}
            out, recording.switches[name] = switched[0](
                args[0], **(pool_arguments(graph, node, recording.values) | border)
            )
        else:
            out = view.call(node, args, kwargs)
        if isinstance(out, Tensor) and node in graph.carriers:
            recording.shapes[name] = out.shape
        else:
            recording.values[node] = out
        return out

    recording.shapes.update((graph.names[node], images.shape) for node in graph.inputs)
    # the image is kept too: it is the caller's, whatever works in place on it
    besides = {node for node in graph.nodes if node.op in ("get_attr", "placeholder") or needs(node)}
    values = graph.run(images, wanted, apply, wanted | besides, read)
    recording.activations = {
        graph.names[n]: values[n] for n in graph.nodes if n in wanted and isinstance(values[n], Tensor)
    }
    recording.values.update((node, value) for node, value in values.items() if node in besides)
    return recording


def activations(graph: Graph, images: Tensor, layers: Sequence[str], batch_size: int = 64) -> dict[str, Tensor]:
    """The outputs of the layers, by name, for images (N, 3, H, W); nothing else is kept."""
    nodes = [graph.node(layer) for layer in layers]
    parts = []
    with evaluating(graph.model):
        for some in check_images(graph.model, images).split(batch_size):
            values = graph.run(some, nodes, graph.call, nodes)
            parts.append([values[node] for node in nodes])
    return {layer: torch.cat(outputs) for layer, outputs in zip(layers, zip(*parts, strict=True), strict=True)}
