"""Table 6: PASCAL VOC 2012: what is in a photograph that shows several things.

The caption's sense: average precision for each of 20 classes, of a pretrained network with a new softmax, beside the
best of the competition.

What to look for: the softmax names one class an image, where several may be, and the paper still comes within reach of
methods made for it. A classifier for every class by itself does not have that handicap.
"""

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from experiments.output.results import Provenance, results, table, write_result
from experiments.tables.table3 import deviation, percent, shown
from experiments.tables.transfer import Control, duplicates, frozen
from zfnet import InputError
from zfnet.analysis.transfer import Split, precisions, transferred_presence
from zfnet.data.pascal import CLASSES
from zfnet.training import Recipe

COLUMNS = ("Sande et al. 2012", "Yan et al. 2012", "Oquab et al. 2014", "Zeiler & Fergus")
PRINTED = (
    (92.0, 97.3, 94.6, 96.0),
    (74.2, 84.2, 82.9, 77.1),
    (73.0, 80.8, 88.2, 88.4),
    (77.5, 85.3, 60.3, 85.5),
    (54.3, 60.8, 60.3, 55.8),
    (85.2, 89.9, 89.0, 85.8),
    (81.9, 86.8, 84.4, 78.6),
    (76.4, 89.3, 90.7, 91.2),
    (65.2, 75.4, 72.1, 65.0),
    (63.2, 77.8, 86.8, 74.4),
    (63.2, 77.8, 69.0, 67.7),
    (68.9, 83.0, 92.1, 87.8),
    (78.2, 87.5, 93.4, 86.0),
    (81.0, 90.1, 88.6, 85.1),
    (91.6, 95.0, 96.1, 90.9),
    (55.9, 57.8, 64.3, 52.2),
    (69.4, 79.2, 86.6, 83.6),
    (65.4, 73.4, 62.3, 61.1),
    (86.7, 94.5, 91.1, 91.8),
    (77.4, 80.7, 79.8, 76.1),
)
PAPER = dict(zip(CLASSES, PRINTED, strict=True)) | {"mean": (74.3, 82.2, 82.8, 79.0)}  # the means as printed
KINDS = {"exclusive": "one softmax", "each class": "a classifier for each class"}
SCRATCH = "from scratch"


def main(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    layer: str = "relu7",
    folds: int = 5,
    crops: int = 1,
    scratch: partial[nn.Module] | None = None,
    recipe: Recipe | None = None,
    pretraining: str | None = None,
    threshold: float = 0.95,
    cache: str | Path = "outputs/features",
    seed: int = 0,
    batch_size: int = 64,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train classifiers of what is in an image; write the table, its picture and result.json.

    layer: its features. folds: how often half of the images are drawn to train on; where the data have lists of their
    own (`parts`), one fold is theirs. scratch: the network of the control, trained by `recipe`, with one softmax;
    None: no control. crops, pretraining, threshold, cache: as in `experiments.tables.transfer`.
    """
    provenance = Provenance(model, seed=seed)
    if folds < 1:
        raise InputError(f"folds is {folds}; give at least 1")
    if not hasattr(data, "presence"):
        raise InputError("Table 6 needs images with the classes that are in each: data=voc2012, or data=several")
    presence, classes = data.presence, list(data.classes)
    left_out = duplicates(data, pretraining, threshold, progress)
    drawn = parted(presence, data.official_split, folds, seed, classes, left_out)
    rows = frozen(model, data, [layer], cache, crops=crops, batch_size=batch_size, workers=workers, progress=progress)[
        layer
    ]
    fold_precisions: dict[str, list[NDArray[np.float64]]] = {kind: [] for kind in KINDS}
    chosen: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tqdm(total=len(drawn) * len(KINDS), unit=" folds", desc="classify", disable=not progress) as bar:
        for kind in KINDS:
            for fold, part in enumerate(drawn):
                scores, c = transferred_presence(rows, presence, part, kind, seed + fold)
                fold_precisions[kind].append(scores)
                chosen[kind].append(c)
                bar.update()
    if scratch is not None:
        control = Control(data, scratch, recipe or Recipe(), len(classes), workers, progress)
        fold_precisions[SCRATCH] = []
        for fold, part in enumerate(drawn):
            images, labels = (presence[part.train] == 1).nonzero()  # an image once for each class that is in it
            answers = control.probabilities(part.train[images], labels, part.test, seed + fold)
            fold_precisions[SCRATCH].append(precisions(answers, presence[part.test]))
    precision = {kind: by_class(scores, classes) for kind, scores in fold_precisions.items()}
    published = {name: PAPER.get(name, (None,) * 4) for name in [*classes, "mean"]}
    note = _note(model, layer, data, presence, drawn, scratch, recipe, [*left_out.values()])
    text = f"{_table(published, precision)}\n\n{note}"
    print(text)
    ours = {
        "precision": {kind: {n: _mean(p) for n, p in column.items()} for kind, column in precision.items()},
        "deviation": {kind: {n: deviation(p) for n, p in column.items()} for kind, column in precision.items()},
        "each": precision,
        "C": chosen,
        "left_out": [*left_out.values()],
    }
    paper = {name: dict(zip(COLUMNS, values, strict=True)) for name, values in published.items()}
    settings = {
        "model": type(model).__name__,
        "layer": layer,
        "folds": len(drawn),
        "images": len(presence),
        "classes": classes,
        "crops": crops,
        "train": len(drawn[0].train),
        "test": len(drawn[0].test),
        "seed": seed,
        "threshold": threshold,
        "scratch": scratch and {str(k): v for k, v in scratch.keywords.items()},
        "dataset": type(data).__name__,
        "unit": "%",
    }
    with results(out) as folder:
        (folder / "table.md").write_text(text + "\n", encoding="utf-8")
        figure = draw(published, precision, f"{type(model).__name__} {layer}, {len(presence):,} images")
        figure.savefig(folder / "figure.png", dpi=150)
        figure.savefig(folder / "figure.pdf")
        return write_result(folder, "table6", {**dict.fromkeys(ours), "precision": paper}, ours, settings, provenance)


def parted(
    presence: NDArray[np.int8],
    parts: Sequence[str] | None,
    folds: int,
    seed: int,
    classes: Sequence[str],
    without: Mapping[int, str] = {},
) -> list[Split]:
    """The data's own fold, or halves drawn by seed. InputError for a class that none has to train and test on."""
    images = np.array([i for i in range(len(presence)) if i not in without], dtype=np.int64)
    if parts is not None:
        part_names = np.array([parts[i] for i in images], dtype=object)
        drawn = [Split(images[part_names == "train"], images[part_names == "test"])]
    else:
        orders = [np.random.default_rng([seed, fold]).permutation(images) for fold in range(folds)]
        drawn = [Split(*(np.sort(half) for half in np.split(order, [len(order) // 2]))) for order in orders]
    coverage = [np.logical_and(*((presence[half] == 1).any(0) for half in part)) for part in drawn]
    if not (usable := np.any(coverage, 0)).all():
        name, count = classes[int(usable.argmin())], int((presence[images, int(usable.argmin())] == 1).sum())
        raise InputError(
            f"{name!r} is in {count} image(s), in no fold to train and to test on; give more, or more folds"
        )
    return drawn


def by_class(folds: Sequence[NDArray[np.float64]], classes: Sequence[str]) -> dict[str, list[float]]:
    """Average precisions of each class, %, in the folds that have it to train and test on; means over classes."""
    rows = np.stack(folds)
    columns = {
        name: [percent(p) for p in column if not np.isnan(p)] for name, column in zip(classes, rows.T, strict=True)
    }
    return columns | {"mean": [percent(float(p)) for p in np.nanmean(rows, 1)]}


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None


def _table(published: Mapping[str, Sequence[Any]], precision: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    head = ["", *(f"paper: {column}" for column in COLUMNS), *(f"ours: {KINDS.get(kind, kind)}" for kind in precision)]
    return table(
        head,
        [
            [
                name,
                *("" if value is None else value for value in values),
                *(shown(column[name]) if column[name] else "" for column in precision.values()),
            ]
            for name, values in published.items()
        ],
    )


def _note(
    model: nn.Module,
    layer: str,
    data: Any,
    presence: NDArray[np.int8],
    drawn: Sequence[Split],
    scratch: partial[nn.Module] | None,
    recipe: Recipe | None,
    left_out: Sequence[str],
) -> str:
    """What the numbers are, and what differs from the paper."""
    own = data.official_split is not None
    words = [
        "Average precision, %: the area under the precision-recall curve, each precision the best at that recall or a "
        "higher one (VOC's rule since 2010); difficult objects left out; "
        + (
            "trained on VOC's train, tested on its val."
            if own
            else f"mean ± standard deviation (n - 1) of {len(drawn)} folds, half of the images to train on, of the "
            "folds that have the class in both halves."
        ),
        f"Pretrained: {type(model).__name__}, {layer}.  What differs from the paper: network and images, "
        f"{len(presence):,} of {type(data).__name__}, {len(drawn[0].train):,} to train on; there 11,540 of VOC 2012's "
        "train and val, tested by VOC's server.  In one softmax an image of several classes counts in parts for each; "
        "the paper says nothing of them.",
        "Of the printed means only that of Zeiler & Fergus is the mean of its column.",
    ]
    if scratch is not None and recipe is not None:
        side = scratch.keywords.get("image_size", 224)
        words.append(
            f"From scratch: another, smaller network with one softmax, on {side} pixels, {recipe.epochs} epochs."
        )
    if left_out:
        words.append(f"Left out as near duplicates of pretraining images: {len(left_out)}: {'; '.join(left_out[:5])}.")
    return "\n".join(words)


def draw(
    published: Mapping[str, Sequence[Any]], precision: Mapping[str, Mapping[str, Sequence[float]]], title: str
) -> Figure:
    """A line for each class: the paper's number and ours."""
    figure = Figure(figsize=(7.5, 1.2 + 0.27 * len(published)), layout="constrained")
    axis = figure.subplots()
    known = [(values[-1], y) for y, values in enumerate(published.values()) if values[-1] is not None]
    axis.plot(*zip(*known, strict=True), "D", color="0.45", mfc="white", label="paper, VOC 2012 test")
    for n, (kind, column) in enumerate(precision.items()):
        for y, percentages in enumerate(column.values()):
            if percentages:
                axis.errorbar(
                    statistics.mean(percentages),
                    y + 0.16 * (n - 1),
                    xerr=deviation(percentages),
                    fmt="os^"[n],
                    ms=4,
                    lw=0.9,
                    color=f"C{n}",
                    label="" if y else f"ours: {KINDS.get(kind, kind)}",
                )
    axis.set_yticks(range(len(published)), published)
    axis.set(xlabel="average precision, %", xlim=(0, 101))
    axis.invert_yaxis()
    axis.set_title(f"Ours: {title}", fontsize=9)
    axis.grid(color="0.93")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure
