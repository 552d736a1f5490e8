"""Run a traced model forward and keep the requested activations, and the switches of every max pooling."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from zfnet.checks import check_images, pair, undifferentiated
from zfnet.errors import InputError
from zfnet.graph import Graph
from zfnet.operations import SWITCHED, pool_arguments
from zfnet.views import PathWindows, RepeatedImages, View, WholeMaps


@dataclass
class Recording:
    """What a forward pass left behind: the activations asked for, and the switches of every max pooling.

    `Deconvnet.record` makes it. Zeiler & Fergus (2014), section 2.1.

    Attributes:
        images: (N, C, H, W), which were run.
        activations: by the layer's name: feature maps (N, C, h, w), or units (N, C).
        switches: by the pooling's name: (N, C, h, w), int64; see `pool`.
    """

    images: Tensor
    view: View
    activations: dict[str, Tensor] = field(default_factory=dict)
    switches: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[fx.Node, torch.Size] = field(default_factory=dict)
    types: dict[fx.Node, torch.dtype] = field(default_factory=dict)
    seen: dict[tuple[fx.Node, fx.Node], torch.Size] = field(default_factory=dict)  # (step, source): as it is read
    values: dict[fx.Node, Any] = field(default_factory=dict)  # what rules need besides: numbers, kept inputs


def record(
    graph: Graph,
    images: Tensor,
    layers: Collection[str | nn.Module] | None,
    reads_input: Callable[[fx.Node], bool],
    view: View | None = None,
) -> Recording:
    """Run images (N, C, H, W) forward and keep activations, all switches and shapes.

    Args:
        images: as the view cuts them.
        layers: run up to the deepest of these; None: to the end.
        reads_input: whether a rule reads the value of this step.
        view: how steps see their sources; None: whole maps.
    """
    if layers is not None and (isinstance(layers, str) or not isinstance(layers, Collection)):
        raise InputError(f"layers is {layers!r}; give a list of layers, as in ['relu1']")
    nodes = {graph.name(layer): graph.node(layer) for layer in (graph.layers if layers is None else layers)}
    if view is None:
        view = WholeMaps(graph)
        graph.check_size(images, nodes.values())
    recording = Recording(images, view)

    def read(node: fx.Node, source: fx.Node, value: Any) -> Any:
        value = view.read(node, source, value)
        if isinstance(value, Tensor):
            recording.seen[node, source] = value.shape
        return value

    def apply(node: fx.Node, args: Any, kwargs: Any) -> Any:
        if switched := graph.lookup(SWITCHED, node):
            pooling, defaults = switched
            arguments = pool_arguments(graph.arguments(node, args, kwargs), defaults)
            border = {} if view.padded else {"padding": 0, "ceil_mode": False}
            out, recording.switches[graph.names[node]] = pooling(args[0], **(arguments | border))
        else:
            out = view.call(node, args, kwargs)
        if isinstance(out, Tensor) and node in graph.carriers:
            recording.outputs[node], recording.types[node] = out.shape, out.dtype
        else:
            recording.values[node] = out
        return out

    recording.outputs.update((node, images.shape) for node in graph.inputs)
    recording.types.update((node, images.dtype) for node in graph.inputs)
    besides = {node for node in graph.nodes if node.op in ("get_attr", "placeholder") or reads_input(node)}
    last = set(nodes.values())
    values = graph.run(images, last, apply, last | besides, read, view.steps)
    recording.activations = {name: values[node] for name, node in nodes.items() if isinstance(values[node], Tensor)}
    recording.values.update((node, value) for node, value in values.items() if node in besides)
    return recording


def of_units(whole: Recording, view: RepeatedImages) -> Recording:
    """The inputs of the backward path of several units of an image, from one forward pass of each image."""

    def repeated(shapes: Mapping[Any, torch.Size]) -> dict[Any, torch.Size]:
        return {key: torch.Size((len(view.image), *shape[1:])) for key, shape in shapes.items()}

    switches = {name: tensor[view.image.to(tensor.device)] for name, tensor in whole.switches.items()}
    images, outputs, seen = whole.images[view.image.to(whole.images.device)], whole.outputs, whole.seen
    return replace(whole, images=images, view=view, outputs=repeated(outputs), seen=repeated(seen), switches=switches)


def of_windows(whole: Recording, view: PathWindows) -> Recording:
    """The inputs of the backward path through windows, from a forward pass of whole images."""
    recording = replace(whole, view=view, outputs={}, seen={}, switches={})
    for step in view.places:
        recording.outputs[step] = view.output(step)
        if step in view.graph.inputs:
            continue
        decided = view.decided(step)
        recording.outputs.update((source, view.output(source)) for source in decided if source not in view.places)
        for source in step.all_input_nodes:
            if source in view.places or source in decided:
                recording.seen[step, source] = view.seen(step, source)
        if (switches := whole.switches.get(view.graph.names[step])) is not None:
            recording.switches[view.graph.names[step]] = view.switches(step, switches)
    return recording


def activations(
    graph: Graph, images: Tensor, layers: Sequence[str | nn.Module], batch_size: int = 64
) -> dict[str, Tensor]:
    """The layers' maps (N, C, H, W), or units (N, C), by name, for images (N, C, H, W); nothing else is kept."""
    nodes = {graph.name(layer): graph.node(layer) for layer in layers}
    parts = []
    images = check_images(graph.model, images)
    shapes = {node: graph.shapes(pair(images.shape[-2:]), node) for node in nodes.values()}
    with undifferentiated(graph.model):
        for some in images.split(batch_size):
            values = graph.run(some, nodes.values(), graph.call, nodes.values())
            parts.append([shapes[node].maps(node, values[node]) for node in nodes.values()])
    return {name: torch.cat(outputs) for name, outputs in zip(nodes, zip(*parts, strict=True), strict=True)}
