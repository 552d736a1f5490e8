"""Figure 3: the architecture, drawn from the model itself.

The caption's sense: a crop of the image is the input; each layer convolves with its filters and rectifies, and some
pool and normalise contrast; the last layers are fully connected, and a softmax gives the classes' probabilities.

What to look for: maps become smaller and more numerous. The figure shows the output of every step that all paths from
the image pass through; for a residual block or an inception module, this is the output of the block.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Annotated, Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Polygon
from torch import fx, nn

from experiments.output.pages import SIZE
from experiments.output.results import Result
from experiments.setup.checks import at_least
from experiments.setup.hints import Count, Limits
from zfnet import ZFNet
from zfnet.checks import Pair, pair
from zfnet.graph import Graph, Shapes

PAPER = {  # output: maps, rows, columns
    "conv1": {"output": [96, 110, 110], "kernel": [7, 7], "stride": [2, 2]},
    "pool1": {"output": [96, 55, 55], "kernel": [3, 3], "stride": [2, 2]},
    "conv2": {"output": [256, 26, 26], "kernel": [5, 5], "stride": [2, 2]},
    "pool2": {"output": [256, 13, 13], "kernel": [3, 3], "stride": [2, 2]},
    "conv3": {"output": [384, 13, 13], "kernel": [3, 3], "stride": [1, 1]},
    "conv4": {"output": [384, 13, 13], "kernel": [3, 3], "stride": [1, 1]},
    "conv5": {"output": [256, 13, 13], "kernel": [3, 3], "stride": [1, 1]},
    "pool5": {"output": [256, 6, 6], "kernel": [3, 3], "stride": [2, 2]},
    "fc6": {"output": [4096], "kernel": None, "stride": None},
    "fc7": {"output": [4096], "kernel": None, "stride": None},
    "fc8": {"output": [1000], "kernel": None, "stride": None},
}
WORDS = {  # names of operations in the figure; others keep their own
    "Conv2d": "filters",
    "Linear": "fully connected",
    "ReLU": "ReLU",
    "relu": "ReLU",
    "BatchNorm2d": "batch norm",
    "ContrastNorm": "contrast norm",
    "LocalResponseNorm": "contrast norm",
    "Dropout": "dropout",
    "SwitchMaxPool2d": "max pool",
    "MaxPool2d": "max pool",
    "max_pool2d": "max pool",
    "AvgPool2d": "average pool",
    "AdaptiveAvgPool2d": "average pool",
    "adaptive_avg_pool2d": "average pool",
    "avg_pool2d": "average pool",
    "add": "sum of branches",
    "iadd": "sum of branches",
    "cat": "branches joined",
}
COLOURS = {"image": "0.88", "filters": "#a9cbe8", "pooled": "#bfe0b4", "branches": "#cdbbe3", "units": "#f3c78b"}
RGB = ("#e58b84", "#8fcb8a", "#86aee3")
INK, PALE = "0.3", "0.5"
NOTE = "Sides grow with the square root of the map size, depths and bars with the logarithm of the number."

# in inches: a map's side for the square root of its size, a slice of a stack, a bar for log2 of its units
SIDE, SLICE, BAR = 0.115, 0.034, 0.125
ACROSS, UP = 0.30, 0.22  # how a map recedes, in sides
COLUMN, GAP, LINE, MARGIN = 0.86, 0.3, 0.145, 0.2


@dataclass
class Layer:
    """One block of the figure: the output of a step, and a description of the steps since the block before."""

    name: str
    kind: str  # a key of COLOURS
    output: tuple[int, ...]  # (maps, rows, columns) or (units,)
    noun: str
    words: list[str] = field(default_factory=list)
    kernel: Pair | None = None
    stride: Pair | None = None

    @property
    def count(self) -> str:
        return f"{self.output[0]} {self.noun}"

    @property
    def size(self) -> str:
        return _by(self.output[1:])

    @property
    def side(self) -> float:
        return SIDE * math.sqrt(max(self.output[1:], default=0))

    @property
    def slices(self) -> int:
        return min(self.output[0], round(2.2 * math.log2(self.output[0] + 1)))

    @property
    def width(self) -> float:
        return SLICE * self.slices + ACROSS * self.side if self.side else BAR

    @property
    def height(self) -> float:
        return (1 + UP) * self.side if self.side else BAR * math.log2(self.output[0] + 1)


def layers(model: nn.Module, image_size: int) -> list[Layer]:
    """The blocks of the figure for images of that size, the image first."""
    graph = Graph(model)
    shapes = graph.shapes(pair(image_size), graph.output)
    image = tuple(shapes[graph.inputs[0]][1:])
    drawn = [Layer("image", "image", image, "channel" if image[0] == 1 else "colours")]
    output = drawn[0].output
    for steps in _stretches(graph, shapes):
        before, shape, last = drawn[-1], output, steps[-1]
        output = tuple(shapes[last][1:])
        output = output[:1] if output[1:] == (1, 1) else output
        operation, kernel = graph.operation(last), graph.argument(last, "kernel_size")
        if not any(_weighted(graph, step) for step in steps):
            if "pad" in operation.lower():
                before.words.append(f"pad to {_by(output[1:])}")
                continue
            if math.prod(output) == math.prod(shape) and not kernel:
                if len(output) < len(shape):
                    before.words.append(f"flatten to {output[0]}")
                elif len(steps) == 1 and not any(word in operation.lower() for word in ("flatten", "adaptive")):
                    before.words += _said(graph, last)
                continue
        layer = Layer(graph.names[last], "pooled", output, "units" if len(output) == 1 else "maps")
        if len(steps) > 1:
            names = [graph.names[step].split(".") for step in steps]
            shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*names, strict=False))
            layer.name, layer.kind = ".".join(parts[0] for parts in shared) or layer.name, "branches"
            kernels = [graph.argument(step, "kernel_size") for step in steps if _weighted(graph, step)]
            layer.words.append(f"{len(kernels)} convolution{'s' if len(kernels) > 1 else ''}")
            layer.words.append(", ".join(_by(kernel) for kernel in sorted({pair(k) for k in kernels if k})))
        elif _weighted(graph, last):
            layer.kind = "filters" if kernel else "units"
        layer.words += _said(graph, last)
        if kernel:
            layer.kernel, layer.stride = pair(kernel), pair(graph.argument(last, "stride") or kernel)
        drawn.append(layer)
    if len(drawn[-1].output) == 1:
        drawn[-1].noun = "classes"
        drawn[-1].words.append("softmax")
    return drawn


def _stretches(graph: Graph, shapes: Shapes) -> Iterator[list[fx.Node]]:
    """The steps in order, split after each step that all paths from the image to the output pass through."""
    path = [step for step in graph.path([graph.output]) if step in shapes]
    order = {step: n for n, step in enumerate(path)}
    stretch, reach = [], 0
    for n, step in enumerate(path):
        stretch.append(step)
        if reach <= n:  # nothing before it is read after it
            if step not in graph.inputs:
                yield stretch
            stretch = []
        reach = max([reach, *(order[reader] for reader in step.users if reader in order)])


def _weighted(graph: Graph, step: fx.Node) -> bool:
    return isinstance(graph.module(step), nn.Conv2d | nn.Linear)


def _said(graph: Graph, step: fx.Node) -> list[str]:
    """A step in words, line by line."""
    word, kernel = WORDS.get(graph.operation(step), graph.operation(step)), graph.argument(step, "kernel_size")
    if not kernel:
        return [word]
    return [f"{word} {_by(pair(kernel))}", f"stride {_once(pair(graph.argument(step, 'stride') or kernel))}"]


def _by(sizes: Sequence[int]) -> str:
    return " × ".join(map(str, sizes))  # noqa: RUF001


def _once(sizes: Pair) -> str:
    return str(sizes[0]) if sizes[0] == sizes[1] else _by(sizes)


def main(
    model: nn.Module, out: str | Path, *, image_size: Count | None = None, width: Annotated[float, Limits(4)] = 6.9
) -> dict[str, Any]:
    """Draw the architecture from the model itself.

    Args:
        model: the network.
        out: the folder of the result.
        image_size: of the images, pixels; null: the network's own.
        width: of the page at most, inches; a deep network continues in the next row.
    """
    result = Result("fig3", out, locals())
    at_least(4, width=width)
    size: int = image_size or model.preprocessing.size  # type: ignore[union-attr, assignment]
    drawn, parameters = layers(model, size), sum(p.numel() for p in model.parameters())
    result.settings["image_size"] = size
    result.figure(draw(drawn, f"{type(model).__name__}, {parameters:,} parameters", width))
    sizes = {x.name: {"output": x.output, "kernel": x.kernel, "stride": x.stride} for x in drawn[1:]}
    known = PAPER if isinstance(model, ZFNet) else {}
    paper = {"layers": {name: known.get(name) for name in sizes}, "image_size": 224}
    return result.finish({"layers": sizes, "image_size": size, "parameters": parameters}, paper)


# ---- drawing, in inches ----------------------------------------------------------------------------------------------


def draw(drawn: list[Layer], title: str, width: float) -> Figure:
    """The blocks in as many rows as they need, each with its words beneath."""
    spans = [max(layer.width + GAP, COLUMN) for layer in drawn]
    ends = list(accumulate(spans))
    for rows in range(math.ceil(ends[-1] / (width - 2 * MARGIN)), len(drawn) + 1):
        lines: list[list[tuple[Layer, float]]] = [[] for _ in range(rows)]
        for layer, span, end in zip(drawn, spans, ends, strict=True):
            lines[int(rows * (end - span / 2) / ends[-1])].append((layer, span))
        lines = [line for line in lines if line]
        if max(sum(span for _, span in line) for line in lines) <= width - 2 * MARGIN:
            break
    above = [max(layer.height for layer, _ in line) + 0.3 for line in lines]
    below = [LINE * max(len(layer.words) for layer, _ in line) + 0.65 for line in lines]
    wide = max(4.8, *(sum(span for _, span in line) + 2 * MARGIN for line in lines))  # the note needs 4.8
    high = sum(above) + sum(below) + 0.55
    figure = Figure(figsize=(wide, high), facecolor="white")
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, wide), ylim=(0, high))
    axis.axis("off")
    axis.text(MARGIN, high - 0.12, title, fontsize=9, weight="bold", va="top")
    axis.text(MARGIN, 0.1, NOTE, fontsize=SIZE, color=PALE)
    top, source = high - 0.4, None
    for line, blocks, words in zip(lines, above, below, strict=True):
        left = MARGIN
        for layer, span in line:
            x, y = left + (span - layer.width) / 2, top - 0.3 - (blocks - 0.3 + layer.height) / 2
            _block(axis, layer, x, y)
            _words(axis, layer, left + span / 2, y + layer.height + 0.05, top - blocks - 0.12)
            _lead(axis, source, layer, x, y)
            source, left = (layer, x, y), left + span
        top -= blocks + words
    return figure


def _block(axis: Axes, layer: Layer, x: float, y: float) -> None:
    """A stack of maps seen from the front and above, or a bar of units; (x, y) is its lower left corner."""
    side, across, up = layer.side, ACROSS * layer.side, UP * layer.side
    if not side:
        _face(axis, COLOURS[layer.kind], (x, y), (x + BAR, y), (x + BAR, y + layer.height), (x, y + layer.height))
        return
    colours = RGB if layer.kind == "image" and layer.slices == 3 else [COLOURS[layer.kind]] * layer.slices
    for colour in colours:
        far = x + SLICE
        _face(axis, colour, (x, y), (far, y), (far, y + side), (x, y + side))
        lid = (x, y + side), (far, y + side), (far + across, y + side + up), (x + across, y + side + up)
        _face(axis, _lighter(colour, 0.6), *lid)
        x = far
    _face(axis, _lighter(COLOURS[layer.kind], 0.3), *_window(layer, x, y, 0, 0, 1))


def _window(layer: Layer, x: float, y: float, across: float, up: float, part: float) -> list[tuple[float, float]]:
    """Corners of a square on the last map of the stack at (x, y); place and size are fractions of the map's side."""
    corners = ((across, up), (across + part, up), (across + part, up + part), (across, up + part))
    return [(x + ACROSS * layer.side * a, y + layer.side * (UP * a + b)) for a, b in corners]


def _face(axis: Axes, colour: Any, *corners: tuple[float, float]) -> None:
    axis.add_patch(Polygon(corners, facecolor=colour, edgecolor=INK, linewidth=0.35, joinstyle="round"))


def _lighter(colour: Any, amount: float) -> tuple[float, ...]:
    return tuple(1 - (1 - c) * (1 - amount) for c in to_rgb(colour))


def _words(axis: Axes, layer: Layer, x: float, top: float, bottom: float) -> None:
    """The size above a block, and beneath it its name, number of maps, and what was done."""
    style: dict[str, Any] = {"ha": "center", "fontsize": SIZE}
    axis.text(x, top, layer.size, va="bottom", **style)
    axis.text(x, bottom, layer.count, va="top", weight="bold", **style)
    axis.text(x, bottom - LINE, layer.name, va="top", color=PALE, **style | {"fontsize": SIZE})
    for n, word in enumerate(layer.words, 2):
        axis.text(x, bottom - n * LINE, word, va="top", **style | {"fontsize": SIZE})


def _lead(axis: Axes, source: tuple[Layer, float, float] | None, layer: Layer, x: float, y: float) -> None:
    """The link from the block before: the filter and its output, or an arrow."""
    if not source:
        return
    before, left, low = source
    goal = (x - 0.02, y + (layer.side or layer.height) / 2)
    if left > x:  # in the row above
        start = (x - 0.25, goal[1])
    elif layer.kind == "filters" and layer.kernel and before.side:
        part = min(SIDE * math.sqrt(max(layer.kernel)) / before.side, 1)
        corners = _window(before, left + SLICE * before.slices, low, (1 - part) / 2, (1 - part) / 2, part)
        for corner in corners[1:3]:
            axis.plot(*zip(corner, goal, strict=True), color=INK, lw=0.5)
        _face(axis, "#d9655b", *corners)
        gap = (left + before.width + goal[0]) / 2, (corners[2][1] + goal[1]) / 2
        axis.text(*gap, _once(layer.kernel), fontsize=SIZE, ha="center", va="bottom")
        return
    else:
        start = (left + before.width + 0.02, goal[1])
    axis.add_patch(FancyArrowPatch(start, goal, arrowstyle="-|>", mutation_scale=6, lw=0.6, color=INK))
