"""Tables 4 and 5 and Figure 9: features of a frozen network, with a new classifier, on another set of images.

The captions' sense: Caltech-101 with 15 and 30 training images of each class, Caltech-256 with 15 to 60, and its
accuracy against the number of training images; a pretrained network with a new softmax, and the same trained from
scratch on those images alone.

What to look for: the pretrained network is far ahead, most where there are few images. In the paper six images of a
class are enough to pass what others reached with 60.
"""

import copy
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.metrics import balanced_accuracy_score
from torch import nn
from torch.utils.data import TensorDataset
from tqdm import tqdm

from experiments.output.results import Provenance, results, table, write_result
from experiments.setup.networks import Networks
from experiments.tables.table3 import deviation, percent, shown
from zfnet import InputError
from zfnet.analysis.features import features
from zfnet.analysis.transfer import near_duplicates, split, transferred
from zfnet.checks import evaluating
from zfnet.data.photos import Photos
from zfnet.data.preprocessing import Preprocessing, Stored
from zfnet.errors import unknown_name
from zfnet.training import Recipe, in_memory, network_input

THUMBNAIL = Stored(Preprocessing(size=32, resize=32, mode="warp"))  # of which near duplicates are told
PUBLISHED: dict[str, dict[str, Any]] = {  # accuracy, %, and its deviation, by training images of each class
    "table4": {
        "title": "Caltech-101",
        "classes": 101,
        "folds": 5,
        "rows": {
            "Bo et al. 2013": {30: (81.4, 0.33)},
            "Yang et al. 2009": {15: (73.2, None), 30: (84.3, None)},
            "from scratch": {15: (22.8, 1.5), 30: (46.5, 1.7)},
            "pretrained": {15: (83.8, 0.5), 30: (86.5, 0.5)},
        },
    },
    "table5": {
        "title": "Caltech-256",
        "classes": 256,
        "folds": None,
        "rows": {
            "Sohn et al. 2011": {15: (35.1, None), 30: (42.1, None), 45: (45.7, None), 60: (47.9, None)},
            "Bo et al. 2013": {15: (40.5, 0.4), 30: (48.0, 0.2), 45: (51.9, 0.2), 60: (55.2, 0.3)},
            "from scratch": {15: (9.0, 1.4), 30: (22.5, 0.7), 45: (31.2, 0.5), 60: (38.8, 1.4)},
            "pretrained": {15: (65.7, 0.2), 30: (70.6, 0.2), 45: (72.7, 0.4), 60: (74.2, 0.3)},
        },
    },
    "fig9": {
        "title": "Caltech-256",
        "classes": 256,
        "folds": None,
        "rows": {  # the curve as measured in the paper's plot, its error bars' half width
            "Bo et al. 2013": {60: (55.2, 0.3)},
            "pretrained": {
                1: (27.2, 0.9),
                2: (39.2, 2.3),
                3: (46.1, 0.8),
                4: (51.8, 0.3),
                5: (54.9, 0.4),
                6: (57.0, 0.6),
                7: (58.9, 0.6),
                10: (62.6, 0.5),
                15: (65.7, 0.2),
                30: (70.6, 0.2),
                45: (72.7, 0.4),
                60: (74.2, 0.3),
            },
        },
    },
}


def main(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    which: str = "table4",
    layer: str = "relu7",
    per_class: Sequence[int] = (15, 30),
    folds: int = 5,
    test: int = 50,
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
    """Train classifiers on features, and networks from scratch; write the table, its picture and result.json.

    which: whose published numbers stand beside ours: table4, table5 or fig9. layer: its features. per_class: training
    images of each class. folds: how often they are drawn. test: at most so many test images of each class.
    crops: 1, or 10, whose features are averaged.
    scratch: the network of the control, trained by `recipe`; None: no control. pretraining: a folder of images that
    the model was trained on, of which near duplicates (normalised correlation above `threshold`) are left out.
    cache: where features are kept.
    """
    provenance = Provenance(model, seed=seed)
    if which not in PUBLISHED:
        raise unknown_name("published table", which, PUBLISHED)
    if folds < 1:
        raise InputError(f"folds is {folds}; give at least 1")
    if not per_class or any(n < 1 for n in per_class):
        raise InputError(f"per_class is {list(per_class)}; give numbers of training images of each class, from 1")
    labels, classes, left_out = checked(data, pretraining, threshold, progress)
    drawn = {
        n: [
            split(labels, n, test=test, seed=seed, fold=f, classes=classes, official=data.official_split)
            for f in range(folds)
        ]
        for n in per_class
    }
    rows = frozen(model, data, [layer], cache, crops=crops, batch_size=batch_size, workers=workers, progress=progress)[
        layer
    ]
    accuracy: dict[str, dict[int, list[float]]] = {"pretrained": {}}
    chosen: dict[int, list[float]] = {}
    with tqdm(total=folds * len(drawn), unit=" folds", desc="classify", disable=not progress) as bar:
        for n, parts in drawn.items():
            scores = []
            for fold, part in enumerate(parts):
                scores.append(transferred(rows, labels, part, seed=seed + fold)["softmax"])
                bar.update()
            accuracy["pretrained"][n] = [percent(right) for right, _ in scores]
            chosen[n] = [c for _, c in scores]
    if scratch is not None:
        control = Control(data, scratch, recipe or Recipe(), len(classes), workers, progress)
        targets = np.asarray(labels)
        accuracy["from scratch"] = {
            n: [
                percent(
                    balanced_accuracy_score(
                        targets[part.test],
                        control.probabilities(part.train, targets[part.train], part.test, seed + fold).argmax(1),
                    )
                )
                for fold, part in enumerate(parts)
            ]
            for n, parts in drawn.items()
        }
    published = PUBLISHED[which]
    note = "\n".join(_notes(published, model, layer, data, labels, classes, folds, test, scratch, recipe, left_out))
    text = f"{_table(published['rows'], accuracy)}\n\n{note}"
    print(text)
    paper = {row: {str(n): list(pair) for n, pair in curve.items()} for row, curve in published["rows"].items()}
    ours = {
        "accuracy": {row: {str(n): statistics.mean(a) for n, a in curve.items()} for row, curve in accuracy.items()},
        "deviation": {row: {str(n): deviation(a) for n, a in curve.items()} for row, curve in accuracy.items()},
        "each": {row: {str(n): a for n, a in curve.items()} for row, curve in accuracy.items()},
        "C": {str(n): c for n, c in chosen.items()},
        "left_out": left_out,
    }
    settings = {
        "model": type(model).__name__,
        "layer": layer,
        "per_class": list(per_class),
        "folds": folds,
        "test": test,
        "crops": crops,
        "seed": seed,
        "images": len(labels),
        "classes": list(classes),
        "dataset": type(data).__name__,
        "scratch": scratch and {str(k): v for k, v in scratch.keywords.items()},
        "threshold": threshold,
        "unit": "%",
    }
    with results(out) as folder:
        (folder / "table.md").write_text(text + "\n", encoding="utf-8")
        figure = draw(published, accuracy, f"{len(classes)} classes, {type(model).__name__} {layer}")
        figure.savefig(folder / "figure.png", dpi=150)
        figure.savefig(folder / "figure.pdf")
        return write_result(folder, which, {**dict.fromkeys(ours), "accuracy": paper}, ours, settings, provenance)


def checked(
    data: Any, pretraining: str | None, threshold: float, progress: bool
) -> tuple[list[int], Sequence[str], list[str]]:
    """The label of each image, -1 for near duplicates of images that the network was trained on; classes; which."""
    labels, classes = list(getattr(data, "labels", [])), list(getattr(data, "classes", []))
    if len(classes) < 2 or min(labels, default=-1) < 0:
        raise InputError("transfer needs images of two classes or more, each labelled: class folders, or labels.csv")
    left_out = duplicates(data, pretraining, threshold, progress)
    for i in left_out:
        labels[i] = -1  # in no fold
    return labels, classes, [*left_out.values()]


def frozen(
    model: nn.Module,
    data: Any,
    layers: Sequence[str],
    cache: str | Path,
    *,
    crops: int = 1,
    progress: bool = True,
    workers: int | None = None,
    **how: Any,
) -> dict[str, np.ndarray]:
    """`features` of a data set, of its images with their margins where they are of ten crops."""
    if crops != 1:
        data = _bytes(data, Stored(Preprocessing.of(model)), progress, "images", workers)
    return features(model, data, layers, cache, crops=crops, progress=progress, workers=workers, **how)


def duplicates(data: Any, pretraining: str | None, threshold: float, progress: bool) -> dict[int, str]:
    """The images of a data set that are near duplicates of photographs in the folder `pretraining`, and of which."""
    if pretraining is None:
        return {}
    known = Photos(pretraining)
    images, others = (_bytes(dataset, THUMBNAIL, progress, "compare").tensors[0] for dataset in (data, known))
    return {
        i: f"{data.file(i)} is {known.file(j)} ({correlation:.3f})"
        for i, j, correlation in near_duplicates(images, others, threshold)
    }


def _bytes(data: Any, how: Stored, progress: bool, description: str, workers: int | None = None) -> TensorDataset:
    """The images of a data set as bytes, and their labels, in memory."""
    other = copy.copy(data)
    other.transform = how
    if hasattr(other, "size"):  # what is rendered, at that size
        other.size = (how.size, how.size)
    return in_memory(other, workers=workers, progress=progress, description=description)


class Control:
    """Networks trained from scratch on nothing but a fold's training images."""

    def __init__(
        self,
        data: Any,
        architecture: partial[nn.Module],
        recipe: Recipe,
        classes: int,
        workers: int | None,
        progress: bool,
    ):
        self.architecture = partial(architecture, num_classes=classes)
        side = architecture.keywords.get("image_size", 224)
        self.preprocessing = Preprocessing(size=side, resize=round(side * 9 / 8))
        self.recipe, self.workers, self.progress = recipe, workers, progress
        self.images = _bytes(data, Stored(self.preprocessing), progress, "images", workers).tensors[0]

    def probabilities(self, train: Any, labels: Any, test: Any, seed: int) -> np.ndarray:
        """Of each image `test` the probability of each class (m, C), by the network of that seed.

        train, labels: which images it is trained on, in any order, and as what.
        """
        order = np.random.default_rng(seed).permutation(len(train))
        training = TensorDataset(self.images[train[order]], torch.from_numpy(labels[order]))
        networks = Networks(
            Path("outputs", "networks", "scratch"),
            training,
            None,
            self.preprocessing,
            workers=0,
            progress=self.progress,
        )
        model = networks.trained("scratch", self.architecture, replace(self.recipe, seed=seed)).model
        with evaluating(model):
            batches = self.images[test].split(128)
            return torch.cat([model(network_input(model, images)).softmax(1).cpu() for images in batches]).numpy()


def _table(rows: Mapping[str, Mapping[int, Any]], accuracy: Mapping[str, Mapping[int, Sequence[float]]]) -> str:
    counts = [*next(iter(accuracy.values()))]
    names = [*rows, *(row for row in accuracy if row not in rows)]
    published = {row: [_published(rows.get(row, {}).get(n)) for n in counts] for row in names}
    ours = {row: [shown(curve[n]) for n in counts] for row, curve in accuracy.items()}
    if len(counts) > 4:  # a curve, which reads better downwards
        columns = {f"paper, {row}": published[row] for row in rows} | {f"ours, {row}": of for row, of in ours.items()}
        lines = zip(map(str, counts), *columns.values(), strict=True)
        return table(["images", *columns], [list(line) for line in lines])
    head = ["", *(f"paper, {n}" for n in counts), *(f"ours, {n}" for n in counts)]
    return table(head, [[row, *published[row], *ours.get(row, [""] * len(counts))] for row in names])


def _published(pair: tuple[float, float | None] | None) -> str:
    return "" if pair is None else f"{pair[0]:.1f}" + ("" if pair[1] is None else f" ± {pair[1]:.1f}")


def _notes(
    published: Mapping[str, Any],
    model: nn.Module,
    layer: str,
    data: Any,
    labels: Sequence[int],
    classes: Sequence[str],
    folds: int,
    test: int,
    scratch: partial[nn.Module] | None,
    recipe: Recipe | None,
    left_out: Sequence[str],
) -> list[str]:
    """What the numbers are, and what differs from the paper."""
    words = [
        f"Mean over classes of the accuracy, %, by training images of each class; mean ± standard deviation (n - 1) of "
        f"{folds} folds, {'the first of split.csv, the others ' if data.official_split else ''}drawn from all "
        f"images; up to {test} test images of each class.",
        f"Pretrained: {type(model).__name__}, {layer}, a new softmax.  What differs from the paper: network and "
        f"images, {len(classes)} classes and {len(labels):,} images of {type(data).__name__}, there "
        f"{published['title']} with {published['classes']} classes.",
    ]
    if scratch is not None and recipe is not None:
        side = scratch.keywords.get("image_size", 224)
        words.append(
            f"From scratch: another, smaller network, on images of {side} pixels, {recipe.epochs} epochs; in the paper "
            "the same network on 224."
        )
    if left_out:
        words.append(f"Left out as near duplicates of pretraining images: {len(left_out)}: {'; '.join(left_out[:5])}.")
    return words


def draw(published: Mapping[str, Any], accuracy: Mapping[str, Mapping[int, Sequence[float]]], title: str) -> Figure:
    """Accuracy by training images of each class: the paper's in grey, ours in red."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    for (row, curve), marker in zip(published["rows"].items(), "v^os", strict=False):
        x, y = [*curve], [pair[0] for pair in curve.values()]
        spread = [pair[1] or 0 for pair in curve.values()]
        axis.errorbar(x, y, spread, color="0.55", marker=marker, mfc="white", lw=1, label=f"paper: {row}")
    colours = {"pretrained": "#d0433a", "from scratch": "#3a6fd0"}
    for row, curve in accuracy.items():
        x, y = [*curve], [statistics.mean(a) for a in curve.values()]
        bars = [deviation(a) or 0 for a in curve.values()]
        axis.errorbar(x, y, bars, marker="o", lw=1.5, label=f"ours: {row}", color=colours[row])
    axis.set(xlabel="training images of each class", ylabel="accuracy, mean over classes, %", ylim=(0, 100))
    axis.set_title(f"Paper: {published['title']}, {published['classes']} classes.  Ours: {title}", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="0.93")
    axis.legend(fontsize=8, frameon=False)
    return figure
