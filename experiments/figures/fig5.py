"""Figure 5: how far features move when the image is shifted, enlarged or turned, and how the answer changes.

The caption's sense: five images undergo vertical translation, scale and rotation (rows). Columns: the images, the
Euclidean distance of their features from those of the untransformed image in layers 1 and 7, and the probability of
the true label.

What to look for: in layer 1 the distance is large at once; in layer 7 it grows in proportion to a shift or an
enlargement. The answer is stable under these two, and not under rotation, unless the object looks the same when it is
turned.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from experiments.output.feature_maps import network_name, which_layers
from experiments.output.pages import LINE, TILE_GAP, Page, shortened, style_of
from experiments.output.results import Result
from experiments.output.tables import table
from experiments.setup.checks import at_least, stand_for
from experiments.setup.datasets import class_names, class_of
from experiments.setup.hints import Amounts, Count, Length, Limits, Natural, Palette, Seed, Width
from experiments.setup.options import Reading, stateless
from zfnet import InputError
from zfnet.analysis.invariance import NOTHING, Invariance, invariance, linearity, reach, rise, transformed
from zfnet.data.images import Images, as_images, image_size
from zfnet.data.preprocessing import Preprocessing
from zfnet.graph import Graph
from zfnet.recording import activations

PAPER: dict[str, Any] = {  # the axes as the arXiv version prints them
    "translation": {"range": [-60, 60], "distance": [10, 0.8]},
    "scale": {"range": [1, 1.8], "distance": [12, 0.7]},
    "rotation": {"range": [0, 360], "distance": [15, 1.4]},
}
CLAIMS = {kind: ("dramatic at once", "quasi-linear" if kind != "rotation" else "") for kind in PAPER}  # layers 1 and 7
UNITS = {"translation": "vertical translation, pixels", "scale": "scale", "rotation": "rotation, degrees"}
SHOWN = {"translation": (0.0, 1.0), "scale": (0.5, 1.0), "rotation": (1 / 8, 3 / 8)}  # where in the range, besides none
DISTANCES = {"rms": "Euclidean distance / √units", "euclidean": "Euclidean distance", "relative": "relative distance"}
CLAIMED = {"linearity": ".2f", "rise": ".0%"}  # and how they are written
DASHES = ("-", "--", ":")
TILE = 80  # pixels: 1 cm
NOTES = (
    "Linearity: how much of the variance of distances a line through zero explains; 1: proportional, below 0: less "
    "than a constant. Early rise: the distance at a tenth of the largest transform, as a share of the largest; "
    '10%: proportional. The paper: small transforms have a "dramatic effect" in layer 1; layer 7 is "quasi-linear" '
    "for translation and scale."
)


class Example(NamedTuple):
    """An image that is transformed."""

    number: int
    file: str | None
    label: int
    target: int  # the network's class of that label
    name: str
    picture: Tensor


def main(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    layers: Annotated[Sequence[str], Length(2)] = ("relu1", "relu7"),
    images: Annotated[Sequence[Natural], Length()] | None = None,
    count: Count = 5,
    correct: bool = True,
    seed: Seed = 0,
    translations: Amounts | None = None,
    scales: Annotated[Sequence[Annotated[float, Limits(0, 1000, above=True)]], Length()] | None = None,
    rotations: Amounts | None = None,
    fill: Literal["grey", "black", "edge", "reflect"] = "grey",
    distance: Literal["rms", "euclidean", "relative"] = "rms",
    style: Palette = "safe",
    width: Width = 6.9,
    **reading: Unpack[Reading],
) -> dict[str, Any]:
    """Transform a few images of different classes; draw how far features move and how the answer changes.

    Args:
        model: the network.
        data: labelled images.
        out: the folder of the result.
        layers: two, which stand for the paper's 1 and 7.
        images: their indices; null: `count` images by seed, each of another class.
        count: number of images.
        correct: take only images that the network classifies correctly.
        seed: of the choice of images.
        translations: pixels down; null: the paper's range, 60 of 224, scaled to the image's size.
        scales: magnifications; null: the paper's, 1 to 1.8.
        rotations: degrees anticlockwise; null: the paper's, 0 to 360.
        fill: of the uncovered area: "grey", "black", "edge" or "reflect".
        distance: "rms": Euclidean, divided by the square root of the number of units; "euclidean"; "relative": to the
            length of the untransformed image's features.
        style: colours: "safe" for colour-blind readers, or "paper".
        width: of the page, inches.
        reading: see `Reading`.
    """
    result, page, colours = Result("fig5", out, locals()), Page(width), style_of(style).lines
    stand_for(layers, (1, 7))
    graph = Graph(model)
    examples = _examples(graph, as_images(data), images, count, correct, seed)
    pictures, labels = [e.picture for e in examples], [e.target for e in examples]
    how: Any = {"fill": fill, "distance": distance} | {k: v for k, v in stateless(reading).items() if k != "workers"}
    amounts = _amounts(pictures[0].shape[1], translations, scales, rotations)
    series = {kind: invariance(graph, pictures, labels, layers, kind, a, **how) for kind, a in amounts.items()}
    numbers = {kind: _numbers(kind, response) for kind, response in series.items()}
    words = f"{which_layers(graph, layers, (1, 7))}\n{NOTES}"
    result.text(f"{_table(numbers, layers)}\n\n{words}")
    draw(page, examples, series, numbers, DISTANCES[distance], colours, Preprocessing.of(model), fill)
    by = "chosen by number" if images else f"by seed {seed}" + " among those that it classifies correctly" * correct
    page.caption(f"{network_name(model)}, {len(examples)} images, {by}; uncovered areas: {fill}. {words}")
    result.figure(page.done())
    result.settings["image_size"] = pictures[0].shape[1]
    ours = {"images": [{"index": e.number, "file": e.file, "label": e.label, "class": e.name} for e in examples]}
    paper = {kind: dict.fromkeys(numbers[kind]) | PAPER[kind] | {"probability": [0, 1]} for kind in PAPER}
    return result.finish(ours | numbers, paper)


def _amounts(side: int, *given: Sequence[float] | None) -> dict[str, Sequence[float]]:
    """The given amounts, or the paper's, scaled to images of so many pixels."""
    papers: Any = [round(n * side / 224) for n in range(-60, 61, 5)], [1 + n / 20 for n in range(17)], range(0, 361, 10)
    return {kind: own or list(paper) for kind, own, paper in zip(PAPER, given, papers, strict=True)}


def _examples(
    graph: Graph, data: Images, images: Sequence[int] | None, count: int, correct: bool, seed: int
) -> list[Example]:
    """The images that are transformed."""
    classes = class_names(graph.model, data, graph.shapes(image_size(data), graph.output)[graph.output][-1])
    if images is None:
        at_least(1, count=count)
        images = _of_different_classes(graph, data, classes, count, correct, seed)
    elif not images:
        raise InputError("images is empty: give numbers, or null for some by seed")
    if unknown := [i for i in images if not 0 <= i < len(data)]:
        raise InputError(f"no image {unknown[0]}: there are {len(data)}")
    examples = []
    for i in images:
        picture, label = data[i]
        name = str(data.classes[label]) if data.classes else str(label)
        if (target := class_of(data, label, classes)) is None:
            raise InputError(f"image {i} shows {name!r}, which is not one of the {len(classes)} classes of the network")
        examples.append(Example(i, data.file(i), label, target, name, picture))
    return examples


def _of_different_classes(
    graph: Graph, data: Images, classes: Sequence[str], count: int, correct: bool, seed: int
) -> list[int]:
    """The indices of `count` images by seed; if `correct`, only images that the network classifies correctly."""
    output = graph.layers[-1]
    image_of_label: dict[int, int] = {}
    for i in torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist():
        known = data.labels[i] if data.labels else -1
        if known in image_of_label or (known >= 0 and class_of(data, known, classes) is None):
            continue
        image, label = data[i]
        if label < 0:
            raise InputError(f"image {i} has no label: give data with labels (labels.csv or class folders)")
        target = class_of(data, label, classes)
        right = not correct or activations(graph, image[None], [output])[output].argmax() == target
        if target is None or label in image_of_label or not right:
            continue
        image_of_label[label] = i
        if len(image_of_label) == count:
            return list(image_of_label.values())
    which = "classes that the network classifies correctly" if correct else "classes"
    raise InputError(
        f"{len(data)} images show {len(image_of_label)} {which}, and count is {count}; take fewer"
        + (", or correct=false" if correct else "")
    )


def _numbers(kind: str, response: Invariance) -> dict[str, Any]:
    """For each layer the largest distance, and the two numbers of the claims as means over images."""
    far = reach(kind, response.amounts)
    layers = list(response.distance.values())
    kept = response.probability / response.probability[:, far.argmin(), None]
    return {
        "range": [float(response.amounts.min()), float(response.amounts.max())],
        "distance": [float(d.max()) for d in layers],
        "rise": [_mean(rise(far, d)) for d in layers],
        "linearity": [_mean(linearity(far, d)) for d in layers],
        "probability": [float(response.probability.min()), float(response.probability.max())],
        "probability_kept": _mean(kept.mean(1)),
        "curves": {
            "amounts": response.amounts.tolist(),
            "probability": response.probability.tolist(),
            **{layer: d.tolist() for layer, d in response.distance.items()},
        },
    }


def _mean(values: Tensor) -> float | None:
    mean = float(values.mean())
    return mean if math.isfinite(mean) else None  # of an image that nothing changes


def _shown(of: Mapping[str, Any], n: int) -> list[str]:
    """Linearity and early rise of a layer."""
    return ["" if of[name][n] is None else format(of[name][n], how) for name, how in CLAIMED.items()]


def _table(numbers: Mapping[str, Any], layers: Sequence[str]) -> str:
    head: list[str] = ["transform"]
    for number, layer in zip((1, 7), layers, strict=True):
        head += [f"layer {number}, {layer}: linearity", "early rise", "paper"]
    return table(head, [[k, *_shown(of, 0), CLAIMS[k][0], *_shown(of, 1), CLAIMS[k][1]] for k, of in numbers.items()])


def draw(
    page: Page,
    examples: Sequence[Example],
    series: Mapping[str, Invariance],
    numbers: Mapping[str, Any],
    distance: str,
    colours: Sequence[str],
    preprocessing: Preprocessing,
    fill: str,
) -> None:
    """Three rows of transforms, four columns: the images, two distances, the probability."""
    left, high = 2 * LINE, max(len(examples) * (TILE + TILE_GAP), 260)
    first = left + 3 * (TILE + TILE_GAP) + 10
    wide = (page.columns - first) / 3
    styles: list[dict[str, Any]] = [
        {"color": colours[n % len(colours)], "ls": DASHES[n // len(colours) % 3]} for n in range(len(examples))
    ]
    one, seven = series["scale"].distance
    units = {f"layer 1: {one}": distance, f"layer 7: {seven}": distance, "output": "P(true class)"}
    for column, (title, unit) in enumerate(units.items()):
        page.text(first + (column + 0.55) * wide, page.y + LINE / 2, title, ha="center", weight="bold", size=8)
        page.text(first + (column + 0.55) * wide, page.y + 1.5 * LINE, unit, ha="center")
    page.y += 2 * LINE + 6
    for kind, response in series.items():
        low, end = float(response.amounts.min()), float(response.amounts.max())
        shown = [low + share * (end - low) for share in SHOWN[kind]]
        shown = [shown[0], NOTHING[kind], shown[1]] if kind == "translation" else [NOTHING[kind], *shown]
        tiles = [
            transformed(e.picture, kind, a, fill=fill, preprocessing=preprocessing) for e in examples for a in shown
        ]
        amounts = [f"{amount:g}" + "°" * (kind == "rotation") for amount in shown]
        frames = [style["color"] for style in styles for _ in shown]
        page.tiles(preprocessing.pixels(torch.stack(tiles)), amounts, left, page.y, TILE, frames)
        page.text(LINE / 2, page.y + LINE + high / 2, UNITS[kind], rotation=90, ha="center")
        for column, values in enumerate([*response.distance.values(), response.probability]):
            axes = page.axes(first + column * wide + 70, page.y + LINE, wide - 90, high)
            for style, curve, example in zip(styles, values, examples, strict=True):
                axes.plot(response.amounts, curve, **style, lw=1.2, label=shortened(example.name))
            axes.set(xlim=(low, end) if end > low else None, ylim=(0, 1.03) if column == 2 else (0, None))
            axes.set_xlabel(UNITS[kind], labelpad=2)
            axes.tick_params(width=0.6, length=2, pad=2)
            axes.grid(alpha=0.25)
            if column < 2:
                words = "linearity {}, early rise {}".format(*_shown(numbers[kind], column))
                page.text(first + column * wide + 70, page.y + LINE / 2, words, color="0.25")
        page.y += high + 7 * LINE // 2
    page.legend(axes)
