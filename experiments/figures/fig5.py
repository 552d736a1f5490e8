"""Figure 5: how far features move when the image is shifted, enlarged or turned, and what becomes of the answer.

The caption's sense: five images undergo vertical translation, scale and rotation (rows). Columns: the images, the
Euclidean distance of their features from those of the untransformed image in layers 1 and 7, and the probability of
the true label.

What to look for: in layer 1 the distance is large at once; in layer 7 it grows in proportion to a shift or an
enlargement. The answer survives these two, and not a rotation, unless the object looks the same when it is turned.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor, nn

from experiments.output.results import Provenance, results, write_result
from zfnet import InputError
from zfnet.analysis.invariance import NOTHING, Invariance, invariance, linearity, reach, rise, transformed
from zfnet.data.preprocessing import Preprocessing
from zfnet.graph import Graph
from zfnet.recording import activations
from zfnet.rendering import grid, resized

PAPER: dict[str, Any] = {  # the axes as the arXiv version prints them
    "translation": {"range": [-60, 60], "distance": [10, 0.8]},
    "scale": {"range": [1, 1.8], "distance": [12, 0.7]},
    "rotation": {"range": [0, 360], "distance": [15, 1.4]},
}
UNITS = {"translation": "vertical translation, pixels", "scale": "scale", "rotation": "rotation, degrees"}
SHOWN = {"translation": (0.0, 1.0), "scale": (0.5, 1.0), "rotation": (1 / 8, 3 / 8)}  # where in the range, besides none


def main(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    layers: Sequence[str] = ("relu1", "relu7"),
    images: Sequence[int] | None = None,
    count: int = 5,
    correct: bool = True,
    seed: int = 0,
    translations: Sequence[float] | None = None,
    scales: Sequence[float] | None = None,
    rotations: Sequence[float] | None = None,
    fill: str = "grey",
    distance: str = "rms",
    batch_size: int = 64,
    progress: bool = True,
) -> dict[str, Any]:
    """Transform a few images of different classes, draw the curves, and return what result.json holds.

    layers: two, which stand for the paper's 1 and 7. images: by number; None: `count` by seed, each of another class,
    and if `correct` only such as the network names rightly. translations: pixels; None: up to 60 of 224, as the
    paper's, or as large a part of smaller images. scales, rotations (degrees): None: the paper's ranges. fill,
    distance: see `zfnet.analysis.invariance`.
    """
    provenance = Provenance(model, seed=seed)
    if len(layers) != 2:
        raise InputError(f"layers are {', '.join(layers)}; give two, which stand for the paper's layers 1 and 7")
    graph = Graph(model)
    chosen = _chosen(graph, data, images, count, correct, seed)
    pictures, labels = zip(*(data[i] for i in chosen), strict=True)
    side = pictures[0].shape[1]
    amounts = {
        "translation": translations or [round(n * side / 224) for n in range(-60, 61, 5)],
        "scale": scales or [1 + n / 20 for n in range(17)],
        "rotation": rotations or list(range(0, 361, 10)),
    }
    series = {
        kind: invariance(
            graph,
            pictures,
            labels,
            layers,
            kind,
            values,
            fill=fill,
            distance=distance,
            batch_size=batch_size,
            progress=progress,
        )
        for kind, values in amounts.items()
    }
    classes = list(getattr(data, "classes", []))
    names = [str(classes[label]) if classes else str(label) for label in labels]
    records = [
        {"index": i, "file": data.file(i) if hasattr(data, "file") else None, "label": int(label), "class": name}
        for i, label, name in zip(chosen, labels, names, strict=True)
    ]
    ours: dict[str, Any] = {"images": records, **{kind: _numbers(kind, response) for kind, response in series.items()}}
    paper: dict[str, Any] = {"images": None}
    for kind, numbers in PAPER.items():
        paper[kind] = dict.fromkeys(ours[kind]) | numbers | {"probability": [0, 1]}
    settings = {
        "model": type(model).__name__,
        "layers": list(layers),
        "correct": correct and images is None,
        "fill": fill,
        "distance": distance,
        "image_size": side,
        "dataset": type(data).__name__,
    }
    with results(out) as folder:
        preprocessing = Preprocessing.of(model)
        figure = draw(pictures, names, series, layers, fill, distance, preprocessing)
        figure.savefig(folder / "figure.png", dpi=150)
        figure.savefig(folder / "figure.pdf")
        return write_result(folder, "fig5", paper, ours, settings, provenance)


def _chosen(graph: Graph, data: Any, images: Sequence[int] | None, count: int, correct: bool, seed: int) -> list[int]:
    """The images' numbers in the dataset."""
    if images is not None:
        for i in images:
            if not 0 <= i < len(data):
                raise InputError(f"no image {i}: there are {len(data)}")
        if not images:
            raise InputError("images is empty: give numbers, or null for some by seed")
        return list(images)
    if count < 1:
        raise InputError(f"count is {count}; give 1 or more images")
    known = getattr(data, "labels", None)
    image_of_label: dict[int, int] = {}  # label: image
    for i in torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist():
        if known and known[i] in image_of_label:
            continue
        image, label = data[i]
        if label < 0:
            raise InputError(f"image {i} has no label: give data with labels (labels.csv or class folders)")
        output = graph.layers[-1]
        if label in image_of_label or (correct and activations(graph, image[None], [output])[output].argmax() != label):
            continue
        image_of_label[label] = i
        if len(image_of_label) == count:
            return list(image_of_label.values())
    which = "classes that the network names rightly" if correct else "classes"
    raise InputError(
        f"{len(data)} images show {len(image_of_label)} {which}, and count is {count}; take fewer"
        + (", or correct=false" if correct else "")
    )


def _numbers(kind: str, response: Invariance) -> dict[str, Any]:
    """Of each layer the largest distance and, as means over images, the two numbers that the claims are about."""
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


def show_tiles(axis: Axes, images: Tensor, titles: Sequence[str], frames: Sequence[str] = (), side: int = 150) -> None:
    """Images (N, 3, H, W) in 0..1 in rows, a title over each column; a frame around each in its colour."""
    tiles = resized(images.cpu(), (side, side)).clamp(0, 1)
    for tile, colour in zip(tiles, frames, strict=False):
        edge = torch.ones(side, side, dtype=torch.bool)
        edge[6:-6, 6:-6] = False
        tile[:, edge] = torch.tensor(to_rgb(colour))[:, None]
    axis.imshow(grid(tiles, len(titles), 6).permute(1, 2, 0).numpy())
    axis.set_xticks([side / 2 + n * (side + 6) for n in range(len(titles))], titles, fontsize=8)
    axis.xaxis.tick_top()
    axis.tick_params(length=0, pad=2)
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def draw(
    pictures: Sequence[Tensor],
    names: Sequence[str],
    series: dict[str, Invariance],
    layers: Sequence[str],
    fill: str,
    distance: str,
    preprocessing: Preprocessing,
) -> Figure:
    """Three rows of transforms, four columns: the images, two distances, the probability."""
    figure = Figure(figsize=(13, 9.4), facecolor="white")
    outer = figure.add_gridspec(
        3, 4, width_ratios=[0.58, 1, 1, 1], left=0.035, right=0.99, top=0.945, bottom=0.1, wspace=0.24, hspace=0.27
    )
    labels = {"rms": "Euclidean distance / √units", "euclidean": "Euclidean distance", "relative": "relative distance"}
    colours = [f"C{n}" for n in range(len(pictures))]
    for row, (kind, response) in enumerate(series.items()):
        amounts = response.amounts
        low, high = float(amounts.min()), float(amounts.max())
        shown = [low + share * (high - low) for share in SHOWN[kind]]
        shown = [shown[0], NOTHING[kind], shown[1]] if kind == "translation" else [NOTHING[kind], *shown]
        tiles = [
            transformed(picture, kind, amount, fill=fill, preprocessing=preprocessing)
            for picture in pictures
            for amount in shown
        ]
        axis = figure.add_subplot(outer[row, 0])
        titles = [f"{amount:g}" + ("°" if kind == "rotation" else "") for amount in shown]
        frames = [colour for colour in colours for _ in shown]
        show_tiles(axis, preprocessing.pixels(torch.stack(tiles)), titles, frames)
        axis.set_ylabel(UNITS[kind], fontsize=9, labelpad=6)
        curves = [*response.distance.values(), response.probability]
        for column, values in enumerate(curves, 1):
            axis = figure.add_subplot(outer[row, column])
            for n, curve in enumerate(values):
                axis.plot(amounts, curve, color=colours[n], label=names[n], lw=1.5)
            ylabel = "P(true class)" if column == 3 else labels[distance]
            axis.set_xlabel(UNITS[kind], fontsize=9)
            axis.set_ylabel(ylabel, fontsize=9)
            axis.set(xlim=(low, high) if high > low else None, ylim=(0, 1.03) if column == 3 else (0, None))
            axis.tick_params(labelsize=8)
            axis.grid(alpha=0.25)
            if not row:
                title = "output" if column == 3 else f"{layers[column - 1]}, for layer {(1, 7)[column - 1]}"
                axis.set_title(title, fontsize=10, weight="bold")
    handles, texts = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, texts, loc="lower center", ncols=len(names), fontsize=9, frameon=False)
    return figure
