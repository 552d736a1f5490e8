"""Table 7: how well each layer's features classify other images.

The caption's sense: the features of one layer at a time, with a linear SVM (layers 1 to 5 and 7) or a softmax (5 and 7)
on top, on Caltech-101 with 30 and Caltech-256 with 60 training images of each class.

What to look for: accuracy rises with depth. In the paper it does so up to layer 7 on Caltech-256, and on Caltech-101
to layer 5, where layers 5 and 7 are equal.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm
from typing_extensions import Unpack

from experiments.output.pages import OKABE_ITO, caption, plots
from experiments.output.results import Result
from experiments.output.tables import deviation, measured, percent, plus_minus, shown, table
from experiments.setup.checks import at_least, stand_for
from experiments.setup.hints import Count, Length, Seed, Share
from experiments.setup.options import Reading
from experiments.tables.transfer import Labelled, frozen, remarks
from zfnet.analysis.transfer import Split, transferred

PAPER = {  # accuracy, %: Caltech-101 (30 a class), Caltech-256 (60 a class)
    "SVM (1)": ((44.8, 0.7), (24.6, 0.4)),
    "SVM (2)": ((66.2, 0.5), (39.6, 0.3)),
    "SVM (3)": ((72.3, 0.4), (46.0, 0.3)),
    "SVM (4)": ((76.6, 0.4), (51.3, 0.1)),
    "SVM (5)": ((86.2, 0.8), (65.6, 0.3)),
    "SVM (7)": ((85.5, 0.4), (71.7, 0.2)),
    "softmax (5)": ((82.9, 0.4), (65.7, 0.5)),
    "softmax (7)": ((85.4, 0.4), (72.6, 0.1)),
}
NUMBERS = (1, 2, 3, 4, 5, 7)  # of the paper's layers


def main(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    layers: Annotated[Sequence[str], Length(6)] = ("relu1", "relu2", "relu3", "relu4", "relu5", "relu7"),
    per_class: Count = 30,
    folds: Count = 5,
    crops: Literal[1, 10] = 1,
    test: Count = 50,
    max_features: Count | None = 2**15,
    pretraining: str | None = None,
    threshold: Share = 0.95,
    cache: str | Path = "outputs/features",
    seed: Seed = 0,
    **reading: Unpack[Reading],
) -> dict[str, Any]:
    """Classify images by the features of each layer, with a linear SVM and a softmax.

    Args:
        model: the pretrained network.
        data: images with labels.
        out: the folder of the result.
        layers: six, which stand for the paper's 1, 2, 3, 4, 5 and 7.
        per_class: training images of each class; in the paper 30 for Caltech-101, 60 for Caltech-256.
        folds: number of random splits into training and test images.
        crops: of every image; 1, or 10, whose features are averaged.
        test: test images of each class, at most.
        max_features: of a layer; larger maps are averaged over areas until they fit; null: all.
        pretraining: a folder of images that the model was trained on; near duplicates of them are left out.
        threshold: near duplicates have a normalised correlation above this.
        cache: the folder of features, which are computed once.
        seed: of folds and of classifiers.
        reading: see `Reading`.
    """
    result, layers = Result("table7", out, locals()), list(layers)
    stand_for(layers, NUMBERS)
    at_least(1, folds=folds)
    progress = reading.get("progress", True)
    images = Labelled(data, pretraining, threshold, progress)
    drawn = images.folds(per_class, folds, test, seed)
    rows = frozen(model, data, layers, cache, crops=crops, max_features=max_features, **reading)
    accuracy = classified([rows[layer] for layer in layers], images, drawn, seed, progress)
    widths = {layer: rows[layer].shape[1] for layer in layers}
    notes = [
        images.words(folds, test, per_class),
        f"What differs from the paper: {type(model).__name__}; {len(images.classes)} classes and "
        f"{len(images.labels):,} images of {type(data).__name__}"
        + (f"; larger layers are averaged over areas to at most {max_features:,} features." if max_features else "."),
        _reading(model, layers),
        *remarks(images.left_out),
    ]
    result.text("\n".join([_table(accuracy, layers, widths), "", *notes]))
    result.figure(draw(accuracy, " ".join(notes)))
    result.settings |= {"images": len(images.labels), "classes": list(images.classes), "unit": "%"}
    ours = {**measured("accuracy", accuracy), "features": widths, "left_out": images.left_out}
    return result.finish(ours, {"accuracy": PAPER})


def classified(
    layers: Sequence[np.ndarray], images: Labelled, drawn: Sequence[Split], seed: int, progress: bool
) -> dict[str, list[float]]:
    """By row of the table, the accuracy of each fold, %, from the features of six layers."""
    accuracy: dict[str, list[float]] = {row: [] for row in PAPER}
    folds = [(n, rows, *part) for n, rows in zip(NUMBERS, layers, strict=True) for part in enumerate(drawn)]
    for n, rows, fold, part in tqdm(folds, unit=" folds", desc="classify", disable=not progress):
        kinds = [kind for kind in ("SVM", "softmax") if f"{kind} ({n})" in PAPER]
        for kind, (right, _) in transferred(rows, images.labels, part, kinds, seed + fold).items():
            accuracy[f"{kind} ({n})"].append(percent(right))
    return accuracy


def _reading(model: nn.Module, layers: Sequence[str]) -> str:
    """The steps at which layers are read, and those after pooling and contrast normalisation."""
    ends = {f"relu{n}": [name for name in (f"norm{n}", f"pool{n}") if hasattr(model, name)] for n in NUMBERS}
    others = ", ".join([*ends.get(layer, []), layer][0] for layer in layers)
    words = f"Layers are read at {', '.join(layers)}"
    if len(set(layers)) < len(layers):
        words += " (a layer of a small network stands for several of the paper's)"
    if not any(ends.get(layer) for layer in layers):
        return f"{words}."
    return f"{words}: before pooling and contrast normalisation. The paper may mean after these: layers=[{others}]."


def _table(accuracy: Mapping[str, Sequence[float]], layers: Sequence[str], widths: Mapping[str, int]) -> str:
    rows: list[list[Any]] = []
    for row, published in PAPER.items():
        layer = layers[NUMBERS.index(int(row[-2]))]
        rows.append([row, *(plus_minus(*pair) for pair in published), shown(accuracy[row]), layer, widths[layer]])
    return table(["", "paper, Caltech-101", "paper, Caltech-256", "ours", "layer", "features"], rows)


def draw(accuracy: Mapping[str, Sequence[float]], words: str) -> Figure:
    """Accuracy by layer: the paper's two sets in grey, ours in colour; SVM filled, softmax open."""
    figure = plots(3.4)
    axis = figure.subplots()
    for kind, fill, line in (("SVM", None, "-"), ("softmax", "white", "none")):
        rows = [row for row in PAPER if row.startswith(kind)]
        x = [int(row[-2]) for row in rows]
        how: dict[str, Any] = {"mfc": fill, "ls": line, "ms": 5, "lw": 1}
        for n, (name, marker) in enumerate((("Caltech-101", "^"), ("Caltech-256", "v"))):
            y, bars = [PAPER[row][n][0] for row in rows], [PAPER[row][n][1] for row in rows]
            axis.errorbar(x, y, bars, color="0.5", marker=marker, label=f"paper, {name}: {kind}", **how)
        y, bars = [statistics.mean(accuracy[row]) for row in rows], [deviation(accuracy[row]) or 0 for row in rows]
        axis.errorbar(x, y, bars, color=OKABE_ITO[1], marker="o", label=f"ours: {kind}", **how)
    axis.set(xlabel="layer", ylabel="accuracy, mean over classes, %", ylim=(0, 100), xticks=NUMBERS)
    axis.grid(color="0.93")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    caption(figure, words)
    return figure
