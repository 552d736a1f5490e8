"""Table 6: PASCAL VOC 2012: what is in a photograph that shows several things.

The caption's sense: average precision for each of 20 classes, of a pretrained network with a new softmax, beside the
best of the competition.

What to look for: the softmax names one class for each image, which may show several, and the paper is still close to
methods made for this task. A separate classifier for each class does not have this handicap.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm
from typing_extensions import Unpack

from experiments.output.pages import OKABE_ITO, caption, plots
from experiments.output.results import Result
from experiments.output.tables import deviation, mean, measured, percent, shown, table
from experiments.setup.checks import at_least
from experiments.setup.hints import Count, Seed, Share
from experiments.setup.options import Reading
from experiments.tables.transfer import SCRATCH, Control, duplicates, frozen, remarks
from zfnet import InputError
from zfnet.analysis.transfer import PRESENCE, Presence, Rows, Split, precisions, transferred_presence
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
PAPER: dict[str, Sequence[Any]] = dict(zip(CLASSES, PRINTED, strict=True))
PAPER |= {"mean": (74.3, 82.2, 82.8, 79.0), "# won": (0, 11, 6, 3)}  # as printed, by ECCV
WON = (
    "Of the printed means only that of Zeiler & Fergus is the mean of its column. # won: in how many classes a column "
    "is the best of the paper's four, as ECCV prints it (0, 15 and 5 before Oquab et al. were added), or of ours."
)
KINDS = {"exclusive": "one softmax", "each class": "a classifier for each class", SCRATCH: SCRATCH}
Precisions = dict[str, dict[str, list[float]]]  # by column and class: one for each fold that has the class, %


def main(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    layer: str = "relu7",
    folds: Count = 5,
    crops: Literal[1, 10] = 1,
    scratch: partial[nn.Module] | None = None,
    recipe: Recipe | None = None,
    pretraining: str | None = None,
    threshold: Share = 0.95,
    cache: str | Path = "outputs/features",
    seed: Seed = 0,
    **reading: Unpack[Reading],
) -> dict[str, Any]:
    """Classify images that show several things, by features of a pretrained network, and from scratch.

    Args:
        model: the pretrained network.
        data: images with the classes in each (`presence`).
        out: the folder of the result.
        layer: whose output is classified.
        folds: number of random halves for training; data sets with their own lists have one fold.
        crops: of every image; 1, or 10, whose features are averaged.
        scratch: a partial that makes the network to train from scratch, with one softmax; null: none.
        recipe: how that is trained.
        pretraining: a folder of images that the model was trained on; near duplicates of them are left out.
        threshold: near duplicates have a normalised correlation above this.
        cache: the folder of features, which are computed once.
        seed: of folds, of classifiers and of training from scratch.
        reading: see `Reading`.
    """
    result = Result("table6", out, locals())
    at_least(1, folds=folds)
    if not hasattr(data, "presence"):
        raise InputError("Table 6 needs images with the classes that are in each: data=voc2012, or data=several")
    presence, classes, progress = data.presence, list(data.classes), reading.get("progress", True)
    left_out = duplicates(data, pretraining, threshold, progress)
    drawn = parted(presence, data.official_split, folds, seed, classes, left_out)
    rows = frozen(model, data, [layer], cache, crops=crops, **reading)[layer]
    scores, chosen = classified(rows, presence, drawn, seed, progress)
    if scratch is not None:
        control = Control(data, scratch, recipe, len(classes), **reading)
        scores[SCRATCH] = from_scratch(control, presence, drawn, seed)
    precision = {kind: by_class(each, classes) for kind, each in scores.items()}
    won = wins(precision, classes)
    sizes = {"folds": len(drawn), "train": len(drawn[0].train), "test": len(drawn[0].test), "images": len(presence)}
    notes = _notes(f"{type(model).__name__}, {layer}", data, sizes) + remarks([*left_out.values()], scratch, recipe)
    published = {name: PAPER.get(name, (None,) * len(COLUMNS)) for name in [*classes, "mean", "# won"]}
    result.text("\n".join([_table(published, precision, won), "", *notes, WON]))
    result.figure(draw(published, precision, " ".join(notes)))
    result.settings |= {**sizes, "classes": classes, "unit": "%"}
    ours = {**measured("precision", precision), "C": chosen, "left_out": [*left_out.values()], "won": won}
    paper = {name: dict(zip(COLUMNS, values, strict=True)) for name, values in published.items()}
    return result.finish(ours, {"precision": paper, "won": paper.pop("# won")})


def classified(
    rows: NDArray[Any], presence: Presence, drawn: Sequence[Split], seed: int, progress: bool
) -> tuple[dict[str, list[Rows]], dict[str, list[float]]]:
    """By kind of classifier: for each fold the average precision of each class, and the C chosen."""
    scores: dict[str, list[Rows]] = {kind: [] for kind in PRESENCE}
    chosen: dict[str, list[float]] = {kind: [] for kind in PRESENCE}
    folds = [(kind, fold, part) for kind in PRESENCE for fold, part in enumerate(drawn)]
    for kind, fold, part in tqdm(folds, unit=" folds", desc="classify", disable=not progress):
        values, c = transferred_presence(rows, presence, part, kind, seed + fold)
        scores[kind].append(values)
        chosen[kind].append(c)
    return scores, chosen


def from_scratch(control: Control, presence: Presence, drawn: Sequence[Split], seed: int) -> list[Rows]:
    """For each fold the average precision of each class, by a network trained on nothing but its training images."""
    scores = []
    for fold, part in enumerate(drawn):
        images, labels = (presence[part.train] == 1).nonzero()  # an image once for each class that is in it
        answers = control.probabilities(part.train[images], labels, part.test, seed + fold)
        scores.append(precisions(answers, presence[part.test]))
    return scores


def parted(
    presence: Presence,
    parts: Sequence[str] | None,
    folds: int,
    seed: int,
    classes: Sequence[str],
    without: Mapping[int, str] = {},
) -> list[Split]:
    """The data's own fold, or halves drawn by seed. Raises InputError for a class that no fold can train and test."""
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


def by_class(folds: Sequence[Rows], classes: Sequence[str]) -> dict[str, list[float]]:
    """Average precisions of each class, %, in the folds that have it to train and test on; means over classes."""
    rows = np.stack(folds)
    columns = {
        name: [percent(p) for p in column if not np.isnan(p)] for name, column in zip(classes, rows.T, strict=True)
    }
    return columns | {"mean": [percent(float(p)) for p in np.nanmean(rows, 1)]}


def wins(precision: Precisions, classes: Sequence[str]) -> dict[str, int]:
    """The number of classes in which each column has the highest mean; ties count for no column."""
    won = Counter(dict.fromkeys(precision, 0))
    for name in classes:
        means = {kind: mean(column[name]) or 0.0 for kind, column in precision.items()}
        best = [kind for kind, value in means.items() if value == max(means.values())]
        won.update(best if len(best) == 1 else [])
    return dict(won)


def _table(published: Mapping[str, Sequence[Any]], precision: Precisions, won: Mapping[str, int]) -> str:
    rows: list[list[Any]] = []
    for name, values in published.items():
        ours = [won[kind] if name == "# won" else column[name] for kind, column in precision.items()]
        cells = [each if isinstance(each, int) else shown(each) if each else "" for each in ours]
        rows.append([name, *("" if value is None else value for value in values), *cells])
    return table(["", *(f"paper: {c}" for c in COLUMNS), *(f"ours: {KINDS[kind]}" for kind in precision)], rows)


def _notes(features: str, data: Any, sizes: Mapping[str, int]) -> list[str]:
    """The definition of the numbers, and differences from the paper."""
    how = "trained on VOC's train, tested on its val."
    if data.official_split is None:
        how = f"± and bars: standard deviation (n - 1) over {sizes['folds']} folds, half of the images to train on."
    return [
        "Average precision, %: the area under the precision-recall curve, each precision the best at that recall or a "
        f"higher one (VOC's rule since 2010); difficult objects left out; {how}",
        f"Pretrained: {features}. What differs from the paper: network and images, {sizes['images']:,} of "
        f"{type(data).__name__}, {sizes['train']:,} to train on; there 11,540 of VOC 2012's train and val, tested by "
        "VOC's server. In one softmax an image of several classes counts in parts for each; the paper says nothing of "
        "them.",
    ]


def draw(published: Mapping[str, Sequence[Any]], precision: Precisions, words: str) -> Figure:
    """A line for each class: the paper's number and ours."""
    names = [name for name in published if name != "# won"]
    figure = plots(1.5 + 0.18 * len(names))
    axis = figure.subplots()
    known = [(published[name][-1], y) for y, name in enumerate(names) if published[name][-1] is not None]
    axis.plot(*zip(*known, strict=True), "D", color="0.45", mfc="white", ms=5, label="paper, VOC 2012 test")
    for n, (kind, column) in enumerate(precision.items()):
        rows = [(mean(column[name]), y + 0.2 * (n - 1), deviation(column[name]) or 0) for y, name in enumerate(names)]
        x, y, bars = zip(*(row for row in rows if row[0] is not None), strict=True)
        how: dict[str, Any] = {"fmt": "os^"[n], "ms": 3.5, "lw": 0.9, "color": OKABE_ITO[n]}
        axis.errorbar(x, y, xerr=bars, label=f"ours: {KINDS[kind]}", **how)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="average precision, %", xlim=(0, 101), ylim=(len(names) - 0.5, -0.5))
    axis.grid(color="0.93")
    axis.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    caption(figure, words)
    return figure
