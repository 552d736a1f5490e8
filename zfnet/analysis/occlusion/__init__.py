"""A grey square slid over the image: which places a feature map and the class depend on.

Every square is put into the image, the network is run, and two numbers are read: the activity of one feature map and
the score of one class.  `plain_sweep` does just that; `incremental.sweep` gives the same and computes only what the
square changes.  Zeiler & Fergus (2014), section 4.2 and Figure 7.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

from zfnet.analysis.occlusion.incremental import Sweep, make_plan
from zfnet.analysis.occlusion.readout import Reading, Readout, readout
from zfnet.checks import Pair, check_images, check_weights, pair, undifferentiated
from zfnet.errors import InputError, unknown_name, with_article
from zfnet.graph import Graph, Shapes, graph_of

MAPS = ("activity", "probability")


@dataclass(frozen=True)
class OcclusionMaps:
    """What a network gives with the square at each place: maps (rows, columns), one entry for each square.

    `occlusion_maps` makes it. Zeiler & Fergus (2014), Figure 7.

    Attributes:
        activity: (rows, columns), the sum over space of feature map `map` of `layer`.
        probability: (rows, columns), of class `target`, or what another `score` makes of the outputs.
        label: (rows, columns) int64, the most probable class; None where the outputs are not those of several classes.
        boxes: (rows, columns, 4) int64, the squares: top, left, bottom, right in input pixels, ends exclusive.
        clean: activity, probability and label without a square.
        layer: the layer's name.
        map: the number of its feature map.
        target: the class; None: the score is a function, which reads a class of its own.
        image_size: (rows, columns) of the image, pixels.
    """

    activity: Tensor
    probability: Tensor
    label: Tensor | None
    boxes: Tensor
    clean: tuple[float, float, int | None]
    layer: str
    map: int
    target: int | None
    image_size: Pair

    def heat(self, of: str = "probability") -> Tensor:
        """What "probability" or "activity" loses, averaged over the squares that cover each pixel: (H, W).

        This is the map that Captum's `Occlusion` gives; NaN where no square came.

        Args:
            of: "probability" or "activity".

        Raises:
            InputError: for another name.
        """
        if of not in MAPS:
            raise unknown_name("heat map of", of, MAPS)
        lost = self.clean[0] - self.activity if of == "activity" else self.clean[1] - self.probability
        covers = []  # which squares' rows cover which rows of pixels, and columns
        for edges, length in zip((self.boxes[:, 0, ::2], self.boxes[0, :, 1::2]), self.image_size, strict=True):
            pixels = torch.arange(length, device=edges.device)
            covers.append(((edges[:, :1] <= pixels) & (pixels < edges[:, 1:])).to(lost))
        rows, columns = covers
        return rows.T @ lost @ columns / (rows.sum(0)[:, None] * columns.sum(0))


def square_boxes(image_size: Pair, size: Pair, step: Pair) -> Tensor:
    """Squares at every `step` pixels until the image is covered, the last ones cut off by it: (rows, columns, 4)."""
    if min(size) < 1 or size[0] > image_size[0] or size[1] > image_size[1]:
        square, image = (" x ".join(str(length) for length in lengths) for lengths in (size, image_size))
        raise InputError(f"a square of {square} pixels does not fit in an image of {image}")
    if min(step) < 1:
        raise InputError(f"the step is {min(step)} pixels; give at least 1")
    edges = []
    for length, side, stride in zip(image_size, size, step, strict=True):
        low = torch.arange(0, length - side + stride, stride)
        low = low[low < length]  # a step that is longer than the square may end beyond the image
        edges.append((low, (low + side).clamp(max=length)))
    (top, bottom), (left, right) = edges
    grid = [torch.broadcast_tensors(y[:, None], x) for y, x in ((top, left), (bottom, right))]
    return torch.stack([edge for corner in grid for edge in corner], 2)


def plain_sweep(
    graph: Graph, image: Tensor, boxes: Tensor, fill: Tensor, readout: Readout, batch_size: int
) -> Iterator[tuple[Tensor, Reading]]:
    """Put each square into the whole image (1, C, H, W) and run the network, batch by batch.

    Yields the numbers (M,) of a batch's squares, row by row of `boxes` (rows, columns, 4), and what is read for them.
    """
    call, corners = graph.call, boxes.flatten(0, 1)
    for squares in torch.arange(len(corners)).split(batch_size):
        images = image.repeat(len(squares), 1, 1, 1)
        for picture, (top, left, bottom, right) in zip(images, corners[squares].tolist(), strict=True):
            picture[:, top:bottom, left:right] = fill
        values = graph.run(images, [readout.output, readout.layer], call)
        yield squares, readout.read(values[readout.output], readout.activity(values[readout.layer]))


def occlusion_maps(
    model: nn.Module | Graph,
    image: Tensor,
    *,
    size: int | Sequence[int] = 50,
    step: int | Sequence[int] = 6,
    fill: float | Sequence[float] = 0.0,
    layer: str | nn.Module | None = None,
    map: int | None = None,
    target: int | None = None,
    score: str | Callable[[Tensor], Tensor] = "auto",
    incremental: bool = True,
    memory: int = 2**27,
    progress: bool = False,
) -> OcclusionMaps:
    """Slide a square over an image and read a feature map's activity, a class's score and the label at each place.

    Zeiler & Fergus (2014), section 4.2 and Figure 7.

    Args:
        model: a network, or the graph of one.
        image: (C, H, W), as the network is given it.
        size: of the square, in input pixels; a pair is (rows, columns).
        step: from one square to the next, in input pixels; the last squares end at the image's border.
        fill: what the square holds, one number or one for each channel; 0 is the mean of normalised images.
        layer: whose activity is summed over space; None: the last ReLU that gives maps.
        map: which of its feature maps; None: the one that is strongest without a square.
        target: the class; None: the most probable one without a square. A network with one output, a logit or a
            probability, has the classes 0 and 1, and None is 1.
        score: what the outputs say of a class. "auto": its probability, by the network's last step.
            "softmax", "sigmoid" (one logit, or several labels), "exp" (logarithms) or "identity" (probabilities,
            regression) names it; outputs (N, classes, H, W), as of a segmentation, are then summed over space.
            A function takes the network's outputs and gives one number for each image: (N,).
        incremental: recompute only what a square can reach; steps where that is not possible are recomputed in full.
        memory: bytes that the largest step of one batch may take; each of torch's threads works on a batch.
        progress: show a progress bar.

    Raises:
        InputError: for an argument that does not fit the image or the network.
    """
    graph = graph_of(model)
    image, grey = _checked(graph, image, fill)
    boxes = square_boxes(pair(image.shape[-2:]), pair(size), pair(step))
    with undifferentiated(graph.model):
        clean, node = _clean(graph, image, layer)
        reader = readout(graph, clean, node, map, score, target)
        if incremental:
            batches = Sweep(graph, image, boxes, grey, reader, clean).run(memory)
        else:
            largest = max(x.nbytes for n, x in clean.items() if n in graph.carriers and isinstance(x, Tensor))
            batches = plain_sweep(graph, image, boxes, grey, reader, max(1, memory // largest))
        maps = _collected(batches, boxes, progress)
        without = reader.read(clean[reader.output], reader.activity(clean[node]))
    label = maps[2] if len(maps) > 2 else None
    clean_label = int(without[2]) if len(without) > 2 else None
    numbers = float(without[0]), float(without[1]), clean_label
    boxes, size = boxes.to(image.device), pair(image.shape[-2:])
    return OcclusionMaps(maps[0], maps[1], label, boxes, numbers, graph.names[node], reader.map, reader.target, size)


def _collected(batches: Iterator[tuple[Tensor, Reading]], boxes: Tensor, progress: bool) -> Reading:
    """The numbers of all squares, as maps (rows, columns)."""
    shape = boxes.shape[:2]
    maps: list[Tensor] = []
    with tqdm(total=shape.numel(), unit=" squares", desc="occlude", disable=not progress) as bar:
        for squares, reading in batches:
            maps = maps or [part.new_zeros(shape.numel()) for part in reading]
            for values, part in zip(maps, reading, strict=True):
                values[squares.to(values.device)] = part
            bar.update(len(squares))
    return tuple(values.view(shape) for values in maps)


def _checked(graph: Graph, image: Tensor, fill: float | Sequence[float]) -> tuple[Tensor, Tensor]:
    """One image (1, C, H, W) and the fill (1 or C, 1, 1), as the network takes them."""
    if not isinstance(image, Tensor):
        raise InputError(f"image is {with_article(image)}; give a tensor (channels, rows, columns) of floats")
    check_weights(graph.model)
    image = check_images(graph.model, image[None] if image.ndim == 3 else image).contiguous()
    if len(image) != 1:
        raise InputError(f"give one image (channels, rows, columns); got {tuple(image.shape)}")
    channels = image.shape[1]
    grey = torch.as_tensor(fill, dtype=image.dtype, device=image.device).reshape(-1, 1, 1)
    if len(grey) not in (1, channels) or not grey.isfinite().all():
        raise InputError(f"fill is {fill}; give one number, or one for each of {channels} channels")
    return image, grey


def _clean(graph: Graph, image: Tensor, layer: str | nn.Module | None) -> tuple[dict[fx.Node, Any], fx.Node]:
    """The output of every step for the image without a square, and the step whose activity is read."""
    output = graph.output
    shapes = graph.shapes(pair(image.shape[-2:]), output)
    node = graph.node(_last_maps(graph, shapes) if layer is None else layer)
    graph.check_maps(node, shapes)
    path = graph.path([output, node])
    return graph.run(image, [output, node], graph.call, keep=set(path)), node


def _last_maps(graph: Graph, shapes: Shapes) -> str:
    """The last ReLU that gives maps of more than one place, or else the last step that does."""
    maps = [n for n in graph.nodes[1:] if len(shapes.get(n, ())) == 4 and math.prod(shapes[n][2:]) > 1]
    relus = [n for n in maps if "relu" in graph.operation(n).lower()]
    if not maps:
        raise InputError(f"no layer of {type(graph.model).__name__} gives feature maps; give layer=")
    return graph.names[(relus or maps)[-1]]


def multiply_adds(
    model: nn.Module | Graph, image_size: int | Pair, size: int | Pair = 50, step: int | Pair = 6
) -> tuple[int, int]:
    """Multiply-adds for one square, mean over its places: of the whole network, and of what the square can reach.

    Of convolutions and fully connected layers; the quotient is what computing nothing but the windows can gain.
    Sizes and steps are in pixels; a pair is (rows, columns).
    """
    graph, extent = graph_of(model), pair(image_size)
    path, shapes = graph.path([graph.output]), graph.shapes(extent, graph.output)
    changes = make_plan(graph, path, extent, square_boxes(extent, pair(size), pair(step))).changes
    plain = reached = 0.0
    for node in path:
        layer = graph.module(node)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            places = float(math.prod(shapes[node][2:]))
            plain += layer.weight.numel() * places
            if node in changes:
                places = math.prod(float((r.high - r.low).double().mean()) for r in changes[node])
            reached += layer.weight.numel() * places
    return round(plain), round(reached)
