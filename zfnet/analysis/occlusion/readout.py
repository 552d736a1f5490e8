"""The numbers for each square: the activity of one feature map, the score of one class, and the likeliest class."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from zfnet.checks import pair
from zfnet.errors import InputError, unknown_name
from zfnet.graph import Graph
from zfnet.operations import named
from zfnet.windows import maps_first

# how the outputs (N, classes, ...) of a network become the scores of its classes
SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda outputs: outputs.softmax(1),
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,  # of logarithms of probabilities
    "identity": lambda outputs: outputs,
}
# last step of a network -> the score that its outputs need; after any other step they are logits
ENDINGS: dict[Any, str] = {
    **dict.fromkeys(
        named(
            "nn.Softmax nn.Softmax2d F.softmax torch.softmax Tensor.softmax nn.Softmin F.softmin nn.Sigmoid F.sigmoid "
            "torch.sigmoid Tensor.sigmoid torch.sigmoid_ Tensor.sigmoid_ nn.Hardsigmoid F.hardsigmoid"
        ),
        "identity",
    ),
    **dict.fromkeys(
        named("nn.LogSoftmax F.log_softmax torch.log_softmax Tensor.log_softmax nn.LogSigmoid F.logsigmoid"), "exp"
    ),
    **dict.fromkeys((torch.special.softmax, torch.special.expit), "identity"),
    torch.special.log_softmax: "exp",
}
# steps that keep every value: the network's last step that computes anything is before them
KEEPING = dict.fromkeys(
    named(
        "nn.Identity nn.Dropout F.dropout nn.Flatten torch.flatten Tensor.flatten Tensor.view Tensor.reshape "
        "torch.reshape torch.squeeze Tensor.squeeze operator.getitem Tensor.contiguous Tensor.float Tensor.to"
    ),
    True,
)

Reading = tuple[Tensor, ...]  # activity (N,), score (N,) and, where classes are told apart, label (N,) int64


def wide(values: Tensor) -> Tensor:
    """The values in float32, or in their own type where that is wider: what is summed up must not overflow."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def summed(maps: Tensor) -> Tensor:
    """The sum over space of each map: (N, C, ...) -> (N, C)."""
    return wide(maps.reshape(*maps.shape[:2], -1)).sum(2)


def number_below(count: int, kind: str, number: int, owner: str) -> int:
    """The number, or InputError if there are not as many."""
    if not 0 <= number < count:
        raise InputError(f"no {kind} {number} in {owner}: there are {count}")
    return number


@dataclass(frozen=True)
class Readout:
    """How activity, score and label are read from the values of two steps of a graph."""

    layer: fx.Node
    map: int
    output: fx.Node
    score: Callable[[Tensor], Tensor]
    target: int | None  # None: `score` gives the scores (N,) of one class
    binary: bool  # whether the one output is the score of class 1, and 1 less that of class 0
    labelled: bool  # whether the outputs are one number for each of several classes
    maps_last: bool = False  # whether the layer's maps lie along the last axis of its output

    def activity(self, values: Tensor) -> Tensor:
        """The activity (N,) of the map, from the layer's output."""
        return summed(maps_first(values) if self.maps_last else values)[:, self.map]

    def read(self, outputs: Any, activity: Tensor) -> Reading:
        """Score and label for the network's outputs, beside the activity (N,)."""
        label = (outputs.flatten(1).argmax(1),) if self.labelled else ()
        if self.target is None:
            scores = self.score(outputs)
            if not isinstance(scores, Tensor) or scores.shape != activity.shape:
                shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
                raise InputError(f"score gives {shape} for {len(activity)} images; it must give one number for each")
            return activity, wide(scores), *label
        scores = summed(self.score(columns(outputs, len(activity))))
        if self.binary:
            return activity, scores[:, 0] if self.target else 1 - scores[:, 0], (scores[:, 0] > 0.5).long()
        return activity, scores[:, self.target], *label


def columns(outputs: Tensor, count: int) -> Tensor:
    """The outputs for `count` images as (count, classes, ...), in float32 or wider."""
    return wide(outputs if outputs.ndim > 1 else outputs.reshape(count, -1))


def readout(
    graph: Graph,
    clean: dict[fx.Node, Any],
    layer: fx.Node,
    map: int | None,
    score: str | Callable[[Tensor], Tensor],
    target: int | None,
) -> Readout:
    """How to read the numbers, from the network's output for the image without a square; see `occlusion_maps`."""
    output, shapes = graph.output, graph.shapes(pair(clean[graph.inputs[0]].shape[-2:]), layer)
    last = shapes.last(layer)
    sums, outputs, name = summed(shapes.maps(layer, clean[layer]))[0], clean[output], type(graph.model).__name__
    map = int(sums.argmax()) if map is None else number_below(len(sums), "map", map, graph.names[layer])
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else ()
    flat = len(shape) < 2 or shape[1] == outputs.numel()
    labelled = len(shape) > 1 and flat and shape[1] > 1
    if not isinstance(score, str):
        if target is not None:
            raise InputError("score is a function, which chooses the class itself; leave target out")
        return Readout(layer, map, output, score, None, False, labelled, last)
    if score not in ("auto", *SCORES):
        raise unknown_name("score", score, ("auto", *SCORES))
    if not isinstance(outputs, Tensor):
        raise InputError(f"{name} gives no single tensor of outputs; give score= a function (outputs -> (N,))")
    single = outputs.numel() == 1
    binary = single and score != "identity"
    if score == "auto":
        score = automatic(graph, outputs)
    elif score == "softmax" and single:
        raise InputError(f"{name} has one output, whose softmax is always 1; give score='sigmoid' or 'identity'")
    scores = summed(SCORES[score](columns(outputs, 1)))[0]
    count = 2 if binary else len(scores)
    best = 1 if binary else int((outputs if labelled else scores).argmax())
    target = best if target is None else number_below(count, "class", target, "the network")
    return Readout(layer, map, output, SCORES[score], target, binary, labelled, last)


def automatic(graph: Graph, outputs: Tensor) -> str:
    """Which of `SCORES` makes probabilities of the outputs (1, classes, ...); InputError where it is not known."""
    name = type(graph.model).__name__
    if outputs.ndim > 1 and outputs.shape[1] != outputs.numel():
        shape = ", ".join(str(length) for length in outputs.shape[1:])
        raise InputError(
            f"{name} gives outputs of shape (N, {shape}), not (N, classes): give score='identity' to sum the target "
            "over its places, or a function (outputs -> (N,))"
        )
    last = graph.output
    while graph.lookup(KEEPING, last):
        last = next(source for source in last.all_input_nodes if source in graph.carriers)
    if score := graph.lookup(ENDINGS, last):
        return str(score)
    values = columns(outputs, 1).double()
    if values.numel() > 1 and bool((values >= 0).all()) and abs(float(values.sum()) - 1) < 1e-3:
        raise InputError(
            f"the outputs of {name} add up to 1, but its last step is {graph.operation(graph.output)}: give "
            "score='identity' if they are probabilities, score='softmax' if they are logits"
        )
    return "softmax" if values.numel() > 1 else "sigmoid"
