"""Shared by Tables 4 to 7 and Figure 9: features of a frozen network, with a new classifier, on other images.

Tables 4 and 5 and Figure 9 are one comparison on several sets of images: a pretrained network with a new softmax, and
one that is trained from scratch on those images alone, by the number of training images of each class.
"""

import copy
import inspect
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.metrics import balanced_accuracy_score
from torch import nn
from torch.utils.data import TensorDataset
from tqdm import tqdm
from typing_extensions import Unpack

from experiments.output.pages import caption, plots, style_of
from experiments.output.results import Result
from experiments.output.tables import deviation, measured, percent, plus_minus, shown, table
from experiments.setup.checks import at_least
from experiments.setup.hints import Count, Length, Limits, Palette, Seed, Share
from experiments.setup.networks import Networks
from experiments.setup.options import Reading
from zfnet import InputError
from zfnet.analysis.features import features
from zfnet.analysis.transfer import Split, near_duplicates, split, transferred
from zfnet.checks import evaluating
from zfnet.data.photos import Photos
from zfnet.data.preprocessing import Preprocessing, Stored
from zfnet.training import Recipe, in_memory, network_input

THUMBNAIL = Stored(Preprocessing(size=32, resize=32, mode="warp"))  # in which near duplicates are recognised
PRETRAINED, SCRATCH = "pretrained", "from scratch"
Accuracies = dict[str, dict[int, list[float]]]  # by row and training images of each class: one for each fold, %


class Published(NamedTuple):
    """The paper's numbers: accuracies, %, and their deviations, by row and training images of each class."""

    dataset: str
    classes: int
    rows: Mapping[str, Mapping[int, tuple[float, float | None]]]


@dataclass(frozen=True)
class Settings:
    """Settings of the comparison on another set of images: the arguments of these experiments.

    Args:
        model: the pretrained network.
        data: images with labels.
        out: the folder of the result.
        layer: whose output is classified.
        per_class: training images of each class.
        folds: number of random splits into training and test images.
        test: test images of each class, at most.
        crops: of every image; 1, or 10, whose features are averaged.
        scratch: a partial that makes the network to train from scratch; null: none.
        recipe: its training.
        pretraining: a folder of images that the model was trained on; near duplicates of them are left out.
        threshold: near duplicates have a normalised correlation above this.
        cache: the folder of features, which are computed once.
        seed: of folds, of classifiers and of training from scratch.
        width: of the picture, inches.
        style: of its colours: "safe" for colour-blind readers, or "paper".
        reading: see `Reading`.
    """

    layer: str = "relu7"
    per_class: Annotated[Sequence[Count], Length()] = (15, 30)
    folds: Count = 5
    test: Count = 50
    crops: Literal[1, 10] = 1
    scratch: partial[nn.Module] | None = None
    recipe: Recipe | None = None
    pretraining: str | None = None
    threshold: Share = 0.95
    cache: str | Path = "outputs/features"
    seed: Seed = 0
    width: Annotated[float, Limits(3)] = 6.9
    style: Palette = "safe"

    def check(self) -> None:
        if not self.per_class or min(self.per_class) < 1:
            raise InputError(f"per_class is {list(self.per_class)}; give numbers of images of each class, from 1")
        at_least(1, folds=self.folds)
        at_least(3, width=self.width)
        style_of(self.style)


def comparison(experiment: str, published: Published, summary: str, **defaults: Any) -> Callable[..., dict[str, Any]]:
    """The main function of an experiment that compares; it takes the fields of `Settings` as keywords.

    Args:
        experiment: its name.
        published: the paper's numbers.
        summary: what it does, in a line.
        defaults: settings that differ from those of `Settings`.
    """

    def main(model: nn.Module, data: Any, out: str | Path, **keywords: Any) -> dict[str, Any]:
        reading = {name: keywords.pop(name) for name in Reading.__annotations__ if name in keywords}
        return compare(experiment, published, model, data, out, Settings(**(defaults | keywords)), **reading)

    shared = inspect.signature(compare).parameters
    fields = inspect.signature(partial(Settings, **defaults)).parameters.values()
    keywords = [p.replace(kind=p.KEYWORD_ONLY) for p in fields]
    parameters = [*(shared[name] for name in ("model", "data", "out")), *keywords, shared["reading"]]
    main.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    main.__annotations__ = {p.name: p.annotation for p in parameters}
    main.__doc__ = f"{summary}\n\n" + inspect.cleandoc(Settings.__doc__ or "").partition("\n\n")[2]
    return main


def compare(
    experiment: str,
    published: Published,
    model: nn.Module,
    data: Any,
    out: str | Path,
    settings: Settings,
    **reading: Unpack[Reading],
) -> dict[str, Any]:
    """Train classifiers on features, and networks from scratch; write the table, its picture and result.json."""
    result = Result(experiment, out, {"model": model, "data": data, **vars(settings)})
    settings.check()
    progress, how = reading.get("progress", True), settings
    images = Labelled(data, how.pretraining, how.threshold, progress)
    drawn = {n: images.folds(n, how.folds, how.test, how.seed) for n in how.per_class}
    rows = frozen(model, data, [how.layer], how.cache, crops=how.crops, **reading)[how.layer]
    accuracy: Accuracies = {PRETRAINED: {n: [] for n in drawn}}
    chosen: dict[str, list[float]] = {str(n): [] for n in drawn}
    folds = [(n, fold, part) for n, parts in drawn.items() for fold, part in enumerate(parts)]
    for n, fold, part in tqdm(folds, unit=" folds", desc="classify", disable=not progress):
        right, c = transferred(rows, images.labels, part, seed=how.seed + fold)["softmax"]
        accuracy[PRETRAINED][n].append(percent(right))
        chosen[str(n)].append(c)
    if how.scratch is not None:
        control = Control(data, how.scratch, how.recipe, len(images.classes), **reading)
        accuracy[SCRATCH] = {n: control.accuracies(parts, images.labels, how.seed) for n, parts in drawn.items()}
    notes = _notes(published, settings, type(model).__name__, images)
    result.text("\n".join([_table(published.rows, accuracy), "", *notes]))
    result.figure(draw(published, accuracy, settings, " ".join(notes)))
    result.settings |= {"images": len(images.labels), "classes": list(images.classes), "unit": "%"}
    ours = {**measured("accuracy", accuracy), "C": chosen, "left_out": images.left_out}
    paper = {row: {str(n): list(pair) for n, pair in curve.items()} for row, curve in published.rows.items()}
    return result.finish(ours, {"accuracy": paper})


class Labelled:
    """The images for training and testing, without near duplicates. Raises InputError if they have no labels.

    Args:
        data, pretraining, threshold: see `duplicates`.
        progress: show progress bars.
    """

    def __init__(self, data: Any, pretraining: str | None, threshold: float, progress: bool):
        self.data, self.labels = data, list(getattr(data, "labels", []))
        self.classes: list[str] = list(getattr(data, "classes", []))
        if len(self.classes) < 2 or min(self.labels, default=-1) < 0:
            raise InputError("transfer needs labelled images of two classes or more: class folders, or labels.csv")
        left_out = duplicates(data, pretraining, threshold, progress)
        for i in left_out:
            self.labels[i] = -1  # in no fold
        self.left_out = [*left_out.values()]

    def folds(self, per_class: int, folds: int, test: int, seed: int) -> list[Split]:
        """See `split`."""
        how: dict[str, Any] = {"classes": self.classes, "official": self.data.official_split}
        return [split(self.labels, per_class, test=test, seed=seed, fold=fold, **how) for fold in range(folds)]

    def words(self, folds: int, test: int, per_class: int | None = None) -> str:
        """The definition of an accuracy."""
        training = f"with {per_class}" if per_class else "by"
        spread = f"± and bars: standard deviation (n - 1) over {folds} folds" if folds > 1 else "one fold"
        first = "the first of split.csv, the others " if self.data.official_split else ""
        return (
            f"Accuracy, %, mean over classes, {training} training images of each class; {spread}, {first}drawn from "
            f"all images; up to {test} test images of each class."
        )


def duplicates(data: Any, pretraining: str | None, threshold: float, progress: bool) -> dict[int, str]:
    """The images of a data set that are near duplicates of photographs in the folder `pretraining`, and of which."""
    if pretraining is None:
        return {}
    known = Photos(pretraining)
    images, others = (_stored(d, THUMBNAIL, "compare", progress=progress).tensors[0] for d in (data, known))
    return {
        i: f"{data.file(i)} is {known.file(j)} ({correlation:.3f})"
        for i, j, correlation in near_duplicates(images, others, threshold)
    }


def frozen(
    model: nn.Module, data: Any, layers: Sequence[str], cache: str | Path, *, crops: int = 1, **how: Any
) -> dict[str, np.ndarray]:
    """`features` of a data set, of its images with their margins where they are of ten crops."""
    if crops != 1:
        reading = {name: how[name] for name in ("workers", "progress") if name in how}
        data = _stored(data, Stored(Preprocessing.of(model)), "images", **reading)
    return features(model, data, layers, cache, crops=crops, **how)


def _stored(data: Any, transform: Stored, description: str, **reading: Any) -> TensorDataset:
    """The images of a data set as bytes, and their labels, in memory."""
    other = copy.copy(data)
    other.transform = transform
    if hasattr(other, "size"):  # what is rendered, at that size
        other.size = (transform.size, transform.size)
    return in_memory(other, description=description, **reading)


class Control:
    """Networks trained from scratch on nothing but a fold's training images."""

    def __init__(
        self, data: Any, architecture: partial[nn.Module], recipe: Recipe | None, classes: int, **reading: Any
    ):
        self.architecture, self.recipe = partial(architecture, num_classes=classes), recipe or Recipe()
        side = architecture.keywords.get("image_size", 224)
        self.preprocessing = Preprocessing(size=side, resize=round(side * 9 / 8))
        self.reading = {"workers": reading.get("workers"), "progress": reading.get("progress", True)}
        self.fresh = reading.get("fresh", False)
        self.images = _stored(data, Stored(self.preprocessing), "images", **self.reading).tensors[0]

    def probabilities(self, train: Any, labels: Any, test: Any, seed: int) -> np.ndarray:
        """The probabilities (m, C) of the images `test`, by the network of that seed.

        train, labels: which images it is trained on, in any order, and as what.
        """
        order = np.random.default_rng(seed).permutation(len(train))
        training = TensorDataset(self.images[train[order]], torch.from_numpy(labels[order]))
        folder = Path("outputs", "networks", "scratch")
        how = self.reading | {"workers": 0, "fresh": self.fresh}
        networks = Networks(folder, training, None, self.preprocessing, **how)
        model = networks.trained("scratch", self.architecture, replace(self.recipe, seed=seed)).model
        with evaluating(model):
            batches = self.images[test].split(128)
            return torch.cat([model(network_input(model, images)).softmax(1).cpu() for images in batches]).numpy()

    def accuracies(self, parts: Sequence[Split], labels: Sequence[int], seed: int) -> list[float]:
        """The accuracy of each fold, %, averaged over classes."""
        numbers, rates = np.asarray(labels), []
        for fold, (train, test) in enumerate(parts):
            answers = self.probabilities(train, numbers[train], test, seed + fold).argmax(1)
            rates.append(percent(balanced_accuracy_score(numbers[test], answers)))
        return rates


def remarks(
    left_out: Sequence[str], scratch: partial[nn.Module] | None = None, recipe: Recipe | None = None
) -> list[str]:
    """Notes on training from scratch and on near duplicates, if there are any."""
    words = []
    if scratch is not None:
        side, epochs = scratch.keywords.get("image_size", 224), (recipe or Recipe()).epochs
        words.append(f"From scratch: another network, on {side} pixels, {epochs} epochs; the paper: the same, on 224.")
    if left_out:
        words.append(f"Left out as near duplicates of pretraining images: {len(left_out)}: {'; '.join(left_out[:5])}.")
    return words


def _notes(published: Published, settings: Settings, model: str, images: Labelled) -> list[str]:
    """The definition of the numbers, and differences from the paper."""
    return [
        images.words(settings.folds, settings.test),
        f"Pretrained: {model}, {settings.layer}, a new softmax. What differs from the paper: network and images, "
        f"{len(images.classes)} classes and {len(images.labels):,} images of {type(images.data).__name__}, there "
        f"{published.dataset} with {published.classes} classes.",
        *remarks(images.left_out, settings.scratch, settings.recipe),
    ]


def _table(rows: Mapping[str, Mapping[int, Any]], accuracy: Accuracies) -> str:
    counts = [*accuracy[PRETRAINED]]
    names = [*rows, *(row for row in accuracy if row not in rows)]
    published = {row: [plus_minus(*rows[row][n]) if n in rows.get(row, {}) else "" for n in counts] for row in names}
    ours = {row: [shown(curve[n]) for n in counts] for row, curve in accuracy.items()}
    if len(counts) > 4:  # a curve, which reads better downwards
        columns = {f"paper, {row}": published[row] for row in rows} | {f"ours, {row}": of for row, of in ours.items()}
        lines = zip(map(str, counts), *columns.values(), strict=True)
        return table(["images", *columns], [list(line) for line in lines])
    head = ["", *(f"paper, {n}" for n in counts), *(f"ours, {n}" for n in counts)]
    return table(head, [[row, *published[row], *ours.get(row, [""] * len(counts))] for row in names])


def draw(published: Published, accuracy: Accuracies, settings: Settings, words: str) -> Figure:
    """Accuracy by training images of each class: ours filled, the paper's open, others' in grey."""
    figure = plots(3.4, settings.width)
    axis = figure.subplots()
    colours = dict(zip((PRETRAINED, SCRATCH), style_of(settings.style).lines, strict=False))
    how: dict[str, Any] = {"ms": 4, "lw": 1}
    for (row, curve), marker in zip(published.rows.items(), "v^sD<", strict=False):
        y, bars = [value for value, _ in curve.values()], [spread or 0 for _, spread in curve.values()]
        own = how | {"color": colours.get(row, "0.5"), "mfc": "white", "ls": "--" if row in colours else ":"}
        if len(curve) == 1:
            axis.axhline(*y, lw=1, ls=":", color="0.5")
        own["marker"] = "o" if row in colours else marker
        axis.errorbar([*curve], y, bars, label=f"paper: {row}", **own)
    for row, rates in accuracy.items():
        y, bars = [*map(statistics.mean, rates.values())], [deviation(each) or 0 for each in rates.values()]
        axis.errorbar([*rates], y, bars, marker="o", label=f"ours: {row}", color=colours[row], **how)
    axis.set(xlabel="training images of each class", ylabel="accuracy, mean over classes, %", ylim=(0, 100))
    counts = {*settings.per_class}.union(*published.rows.values())
    if len(counts) <= 6:
        axis.set_xticks(sorted(counts))
    axis.grid(color="0.93")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    caption(figure, words)
    return figure
