"""Which layers of any network stand for the paper's: 1 to 5, spread over the depth, and 7, below the classifier."""

from torch import fx

from zfnet.checks import Pair, pair
from zfnet.errors import InputError
from zfnet.graph import Graph

DEPTHS = 5  # the paper's layers 1 to 5
JOINTS = ("relu", "relu6", "add", "cat")  # operations, in lower case, that end a part of a network


def spread(graph: Graph, size: int | Pair) -> list[str]:
    """Five layers that stand for the paper's 1 to 5; of a network that has fewer, all there are.

    They are taken from the steps that all of the image has to come through, ReLUs and what joins branches, and are
    the last of each size of map; where there are more sizes, evenly spread over these, and where there are fewer, the
    widest gaps are halved. In place of a ReLU6 stands the step before it: of the ReLU6, all that is strong is 6.

    Args:
        graph: the network.
        size: of the images, pixels: (rows, columns), or one number for both.
    Raises InputError if there is no such layer.
    """
    trunk = _trunk(graph, pair(size))
    if not trunk:
        raise InputError(
            f"{type(graph.model).__name__} has no ReLU or joint that all of the image comes through, to stand for a "
            "layer of the paper's: name its layers; zfnet.layer_table lists them"
        )
    shapes = graph.shapes(pair(size), graph.output)
    ends = [i for i, n in enumerate(trunk) if i + 1 == len(trunk) or shapes[n][2:] != shapes[trunk[i + 1]][2:]]
    if len(ends) > DEPTHS:
        ends = [ends[round(i * (len(ends) - 1) / (DEPTHS - 1))] for i in range(DEPTHS)]
    while len(ends) < min(DEPTHS, len(trunk)):
        gaps = [(later - before, before) for before, later in zip([-1, *ends], ends, strict=False)]
        gap, before = max(gaps)
        ends = sorted([*ends, before + (gap + 1) // 2])
    return [graph.names[_unclipped(graph, trunk[i])] for i in ends]


def _unclipped(graph: Graph, node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0] if graph.operation(node).lower() == "relu6" else node


def _trunk(graph: Graph, size: Pair) -> list[fx.Node]:
    """The ReLUs and joints behind a convolution that all of the image has to come through."""
    shapes = graph.shapes(size, graph.output)
    path = [n for n in graph.path([graph.output]) if n in shapes]
    last = {n: max((i for i, reader in enumerate(path) if n in reader.all_input_nodes), default=0) for n in path}
    trunk, open_until, filtered = [], 0, False
    for position, node in enumerate(path):
        filtered = filtered or "conv" in graph.operation(node).lower()
        joins = graph.operation(node).lower() in JOINTS and len(shapes[node]) == 4 and max(shapes[node][2:]) > 1
        if open_until <= position and joins and filtered:
            trunk.append(node)
        open_until = max(open_until, last[node])
    return trunk


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
