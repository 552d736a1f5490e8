"""Which layers of any network to look into: those that stand for the paper's, or all that have feature maps.

The paper's are 1 to 5, spread over the depth, and 7, below the classifier.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, fx

from zfnet.checks import Pair, device_and_dtype, pair, undifferentiated
from zfnet.errors import InputError
from zfnet.graph import Graph, Shapes
from zfnet.operations import DECONVNET, Operation, Rules, is_repetition

DEPTHS = 5  # the paper's layers 1 to 5
# operations, in lower case, that end a part of a network
ACTIVATIONS = ("relu", "relu6", "silu", "gelu", "hardswish", "mish", "elu", "leakyrelu", "leaky_relu", "prelu")
JOINS = ("add", "cat")


def spread(graph: Graph, size: int | Pair) -> list[str]:
    """Five layers that stand for the paper's 1 to 5; all layers of a network that has fewer.

    Candidates are activations and joins that every path from the image passes through; a join that only its own
    activation reads is none, as the activation is the same part of the network. The five are the last candidates
    of each size of map. If there are more sizes, they are spread evenly over these; if there are fewer, the widest gaps
    are halved. A ReLU6 is replaced by the step before it, because all its strong activations are 6.

    Args:
        graph: the network.
        size: of the images, pixels: (rows, columns), or one number for both.

    Raises:
        InputError: if there is no such layer.
    """
    joints = _joints(graph, pair(size))
    if not joints:
        raise InputError(
            f"{type(graph.model).__name__} has no activation or join that every path from the image passes "
            "through, so that no layer stands for one of the paper's: name its layers; zfnet.layer_table lists them"
        )
    shapes = graph.shapes(pair(size), graph.output)
    ends = [i for i, n in enumerate(joints) if i + 1 == len(joints) or shapes[n][2:] != shapes[joints[i + 1]][2:]]
    if len(ends) > DEPTHS:
        ends = [ends[round(i * (len(ends) - 1) / (DEPTHS - 1))] for i in range(DEPTHS)]
    while len(ends) < min(DEPTHS, len(joints)):
        gaps = [(later - before, before) for before, later in zip([-1, *ends], ends, strict=False)]
        gap, before = max(gaps)
        ends = sorted([*ends, before + (gap + 1) // 2])
    return [graph.names[_unclipped(graph, joints[i])] for i in ends]


def _unclipped(graph: Graph, node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0] if graph.operation(node).lower() == "relu6" else node


def trunk(graph: Graph, last: fx.Node) -> list[fx.Node]:
    """The steps that every path from the image to `last` passes through, in order, including both."""
    path = [n for n in graph.path([last]) if n in graph.carriers]
    positions = {node: position for position, node in enumerate(path)}
    last_read = [0] * len(path)
    for position, reader in enumerate(path):
        for source in positions.keys() & set(reader.all_input_nodes):
            last_read[positions[source]] = position
    passed, open_until = [], 0
    for position, node in enumerate(path):
        if open_until <= position:
            passed.append(node)
        open_until = max(open_until, last_read[position])
    return passed


def _joints(graph: Graph, size: Pair) -> list[fx.Node]:
    """The activations and joins behind a convolution that every path from the image passes through.

    A join that only its own activation reads is left out: the activation is the same part of the network.
    """
    shapes, path = graph.shapes(size, graph.output), graph.path([graph.output])
    operations = {node: graph.operation(node).lower() for node in path}
    first = next((position for position, node in enumerate(path) if "conv" in operations[node]), len(path))
    behind = {node for node in path[first:] if operations[node] in (*ACTIVATIONS, *JOINS) and node in shapes}
    maps = {n for n in behind if shapes.are_maps(n) and shapes.in_order(n) and max(shapes[n][2:], default=1) > 1}
    joints = [n for n in trunk(graph, graph.output) if n in maps]
    activated = {n for n in joints if all(operations.get(reader) in ACTIVATIONS for reader in n.users)}
    return [n for n in joints if operations[n] not in JOINS or n not in activated]


def head(graph: Graph, size: int | Pair) -> str:
    """The layer that stands for the paper's 7: the last before the classifier.

    Args:
        graph: the network.
        size: of the images, pixels: (rows, columns), or one number for both.
    """
    shapes = graph.shapes(pair(size), graph.output)
    path = [n for n in graph.path([graph.output]) if n in shapes]
    heads = [n for n in path if len(shapes[n]) == 2 and "linear" not in graph.operation(n).lower()]
    heads = [n for n in heads if "dropout" not in graph.operation(n).lower()]
    return graph.names[(heads or path)[-1]]


def every(graph: Graph, size: int | Pair, rules: Rules = DECONVNET) -> list[str]:
    """All layers that have feature maps, or fully connected units, whose units can be projected, in their order.

    Layers that only repeat another are left out: dropout in evaluation, identities, flatten and the like.

    Args:
        graph: the network.
        size: of the images, pixels: (rows, columns), or one number for both.
        rules: that they are projected by.

    Raises:
        InputError: if there is none.
    """
    size = pair(size)
    shapes = graph.shapes(size, graph.output)
    projected, found = set(graph.inputs), []
    for node in graph.path([graph.output]):
        if node in graph.inputs or node not in graph.carriers:
            continue
        sources = [source for source in node.all_input_nodes if source in graph.carriers]
        if node in shapes and all(s in projected and s in shapes for s in sources):
            with undifferentiated(graph.model):
                projected.update([node] if _takes_a_signal(graph, node, shapes, graph.lookup(rules, node)) else [])
        if node in projected and shapes.are_maps(node) and not is_repetition(graph.lookup(DECONVNET, node)):
            found.append(graph.names[node])
    if not found:
        raise InputError(f"{type(graph.model).__name__} has no layer of feature maps whose units can be projected")
    return found


def _takes_a_signal(graph: Graph, node: fx.Node, shapes: Shapes, row: Operation | None) -> bool:
    """Whether the rule of a step takes a signal back, tried with zeros."""
    if row is None or row.back is None:
        return False

    def zeros(shape: torch.Size) -> Tensor:
        return torch.zeros(shape, **device_and_dtype(graph.model))

    step, signal = graph.step(node, shapes), zeros(shapes.outputs[node])
    switches = signal.long() if signal.ndim == 4 else None

    def call(*inputs: Tensor) -> Any:  # in place, it would change what a rule differentiates by
        return step.call(*(x.clone() for x in inputs))

    try:
        row.back(
            replace(step, call=call, read_input=lambda number: zeros(step.shapes[number]), switches=switches), signal
        )
    except InputError:
        return False
    return True


def chosen(
    graph: Graph, size: int | Pair, layers: Sequence[str] | Literal["auto", "all"], rules: Rules = DECONVNET
) -> list[str]:
    """Layers by name: "auto" are the five of `spread`, "all" those of `every`, others stay as they are."""
    if layers == "auto":
        return spread(graph, size)
    return every(graph, size, rules) if layers == "all" else list(layers)
