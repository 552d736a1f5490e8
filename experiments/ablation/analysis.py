"""Estimates of an ablation, computed from the trials in result.json without a network.

A task's trials are columns, lists of equal length; an entry of each is one trial. The columns of KEYS say which trial
it is, and all others are pictures: of a choice ("A1", "A2", "B") the answer, 1 right, 0 wrong, 0.5 undecided; of
"sufficiency" and "necessity" the share of the activation that remains or is lost. None stands for a missing number.

One contrast of each layer is primary, and was named before anything was measured: in task A1, how much more often
"projection x field" is right than the effective field alone. Holm's correction is over the layers of the network. All
other estimates are exploratory: nothing corrects them.
"""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.ablation.units import FIELD
from zfnet.analysis.statistics import MARGIN, Contrast, Estimate, holm, mixed_logistic, two_way
from zfnet.errors import unknown_name

Columns = Mapping[str, Sequence[Any]]

KEYS = (
    "map",
    "image",
    "rows",
    "columns",
    "left",
    "left by the other",
    "pair",
    "fill",
    "share",
    "rule",
    "shuffled",
    "how",
)
PICTURE = "projection x field"  # of the primary contrast, against FIELD
CONTROL = "shuffled x field"  # knows nothing of the trained weights
CONTROLS = (CONTROL, "another map x field", "edges x field", "noise x field")
RIVALS = ("gradient x field", "guided x field")  # the same by other rules
BASELINES = {"A1": FIELD, "A2": FIELD, "B": "crop", "sufficiency": FIELD, "necessity": FIELD}
CONDITIONS = {"B": ("pair",), "sufficiency": ("fill", "share"), "necessity": ("fill", "share")}
CHOICES, CHANCE = ("A1", "A2", "B"), 0.5
LIKENESS = {
    "sanity": (("rule", "how", "shuffled"), ("partial", "similarity", "cosine", "ssim", "hog")),
    "recovery": (("rule",), ("edges", "another", "unswitched")),
}
FEWEST = 8  # maps, and images: `two_way` was tested down to this number; with fewer there is no interval
DIFFERENT = 10
LEVEL = 0.05

BETTER, WORSE, UNDECIDED = "better", "worse", "not decided"
EQUIVALENT = f"equivalent within ±{MARGIN:g}"


class Compared(NamedTuple):
    """The pictures of one task in one layer.

    Attributes:
        maps, images, trials: how many.
        means: by picture; of a choice, the share of right answers, with p against chance.
        differences: by "one - other", over the same trials.
        undecided: by picture, answers of 0.5; empty where the task is no choice.
        strata: the same for the maps with fields of one size, by size; empty if all have the same size.
    """

    maps: int
    images: int
    trials: int
    means: dict[str, Contrast | None]
    differences: dict[str, Contrast | None]
    undecided: dict[str, int]
    strata: dict[str, "Compared"]


class Primary(NamedTuple):
    """The primary contrast of a layer."""

    difference: Contrast | None
    corrected: float | None  # p-value after Holm's correction; None: no test was made
    verdict: str


class Typical(NamedTuple):
    """Similarity of pairs of pictures: a mean with its interval, and the median."""

    mean: Contrast | None
    median: float | None
    undefined: int  # pairs without a value, because a picture is constant


def analysed(ours: Mapping[str, Any], kinds: Sequence[str] = (*BASELINES, *LIKENESS)) -> dict[str, Any]:
    """All estimates of a result.

    Args:
        ours: of result.json; ours["layers"][layer]["trials"][task] are the columns of trials.
        kinds: of tasks; others are left out.

    Returns:
        A dictionary of
        "primary": layer -> `Primary`, of every layer;
        "compared": task -> layer -> `Compared`. Tasks are "A1", "A2", "A1/blur" and such with other squares,
        "B/extreme", "B/percentile", "sufficiency/grey/10" and such: a task, a fill, a percentage of the pixels;
        "changes": layer -> "blur" and such -> `Contrast`, the primary contrast with these squares minus that of "A1";
        "sanity": layer -> rule -> how -> shuffled -> measure -> `Typical`;
        "recovery": layer -> rule -> other -> `Typical`.
        A layer without trials of a task is not in it.
    """
    estimates: dict[str, Any] = {"primary": {}, "compared": {}, "changes": {}, "sanity": {}, "recovery": {}}
    for layer, result in ours["layers"].items():
        trials = result.get("trials", {})
        for task, columns in trials.items():
            kind = task.partition("/")[0]
            if kind not in BASELINES and kind not in LIKENESS:
                raise unknown_name("task", task, [*BASELINES, *LIKENESS])
            if kind in LIKENESS and kind in kinds and (of_layer := likeness(columns, *LIKENESS[kind])):
                estimates[kind][layer] = of_layer
            if kind in LIKENESS or kind not in kinds:
                continue
            chance = CHANCE if kind in CHOICES else None
            for key, part in groups(columns, CONDITIONS.get(kind, ())).items():
                name = "/".join([task, *map(text, key)])
                estimates["compared"].setdefault(name, {})[layer] = compared(part, BASELINES[kind], chance)
        estimates["changes"][layer] = {task[3:]: change(trials, task) for task in trials if task.startswith("A1/")}
    estimates["primary"] = primary(list(ours["layers"]), estimates["compared"].get("A1", {}))
    return estimates


def primary(layers: Sequence[str], tasks: Mapping[str, Compared]) -> dict[str, Primary]:
    """The primary contrast of each layer, tested together; those without an interval are not."""
    differences = {layer: tasks[layer].differences.get(difference()) if layer in tasks else None for layer in layers}
    corrected = holm([d and d.p for d in differences.values()])
    return {layer: Primary(d, p, verdict(d, p)) for (layer, d), p in zip(differences.items(), corrected, strict=True)}


def verdict(difference: Contrast | None, corrected: float | None) -> str:
    """The verdict of a primary contrast. Equivalence takes precedence: its margin was chosen before."""
    if difference is None or corrected is None:
        return UNDECIDED
    if difference.equivalent:
        return EQUIVALENT
    return UNDECIDED if corrected >= LEVEL else BETTER if difference.mean > 0 else WORSE


def difference(one: str = PICTURE, other: str = FIELD) -> str:
    """The name of a paired difference."""
    return f"{one} - {other}"


def compared(columns: Columns, baseline: str, chance: float | None = None, apart: bool = True) -> Compared:
    """Every picture, and its difference from the baseline.

    Args:
        columns: the trials of one task under one condition.
        baseline: the picture that others are compared with.
        chance: of a choice, the share that is right by chance.
        apart: whether to estimate strata separately, if there are several.
    """
    maps, images = clusters(columns)
    values = {name: numbers(column) for name, column in columns.items() if name not in KEYS}
    pairs = [(one, baseline) for one in values if one != baseline]
    pairs += [(PICTURE, other) for other in (*CONTROLS, *RIVALS)]
    strata = groups(columns, ("rows", "columns")) if apart and "rows" in columns else {}
    return Compared(
        maps=len(maps.unique()),
        images=len(images.unique()),
        trials=len(maps),
        means={name: against(x, maps, images, chance or 0.0) for name, x in values.items()},
        differences={
            difference(one, other): estimate(values[one] - values[other], maps, images)
            for one, other in pairs
            if one in values and other in values
        },
        undecided={} if chance is None else {name: int((x == chance).sum()) for name, x in values.items()},
        strata={
            f"{rows} x {across}": compared(part, baseline, chance, apart=False)
            for (rows, across), part in sorted(strata.items())
            if len(strata) > 1
        },
    )


def against(values: Tensor, maps: Tensor, images: Tensor, chance: float) -> Contrast | None:
    """The mean of values, with the p-value of its difference from chance; the interval of a share ends at 0 and 1."""
    if contrast := estimate(values - chance, maps, images):
        ends = {end: getattr(contrast, end) + chance for end in ("mean", "low", "high")}
        if chance:
            ends |= {"low": max(ends["low"], 0.0), "high": min(ends["high"], 1.0)}
        contrast = contrast._replace(**ends)
    return contrast


def estimate(values: Tensor, maps: Tensor, images: Tensor) -> Contrast | None:
    """As `two_way`, but without an interval if the spread cannot be estimated.

    This is so for fewer than FEWEST maps or images, and if fewer than DIFFERENT values differ from the most common one.
    """
    known = ~values.isnan()
    if not known.any():
        return None
    differ = int(known.sum() - values[known].unique(return_counts=True)[1].max())
    few = min(len(clusters[known].unique()) for clusters in (maps, images)) < FEWEST
    if not few and differ >= min(DIFFERENT, int(known.sum()) - 1):
        return two_way(values, maps, images)
    means = [values[known & (maps == m)].mean() for m in maps[known].unique()]
    return Contrast(float(torch.stack(means).mean()), math.nan, math.nan, int(known.sum()), math.nan, False)


def change(trials: Mapping[str, Columns], task: str) -> Contrast | None:
    """How much larger the primary contrast is in another task than in "A1", over the units that both have."""
    gains = {}
    for name in ("A1", task):
        columns = trials.get(name, {})
        if PICTURE not in columns or FIELD not in columns:
            return None
        units = zip(columns["map"], columns["image"], strict=True)
        gains[name] = dict(zip(units, numbers(columns[PICTURE]) - numbers(columns[FIELD]), strict=True))
    both = [unit for unit in gains["A1"] if unit in gains[task]]
    maps, images = torch.tensor(both, dtype=torch.long).reshape(-1, 2).T
    values = [float(gains[task][unit] - gains["A1"][unit]) for unit in both]
    return estimate(torch.tensor(values, dtype=torch.float64), maps, images)


def likeness(columns: Columns, conditions: Sequence[str], measures: Sequence[str]) -> dict[str, Any]:
    """`Typical` by the values of the conditions, in their order, and by measure."""
    by_condition: dict[str, Any] = {}
    for key, part in groups(columns, conditions).items():
        inner = by_condition
        for name in key:
            inner = inner.setdefault(text(name), {})
        maps, images = clusters(part)
        for measure in (m for m in measures if m in part):
            values = numbers(part[measure])
            known = values[~values.isnan()]
            median = float(known.quantile(0.5)) if len(known) else None
            inner[measure] = Typical(estimate(values, maps, images), median, len(values) - len(known))
    return by_condition


def logistic(ours: Mapping[str, Any]) -> dict[str, Estimate | None] | None:
    """The primary contrasts in log odds, by a mixed-effects logistic model; None if statsmodels is not installed."""
    if importlib.util.find_spec("statsmodels") is None:
        return None
    odds: dict[str, Estimate | None] = {}
    for layer, result in ours["layers"].items():
        columns = result.get("trials", {}).get("A1", {})
        if columns.get(PICTURE) and columns.get(FIELD):
            one, other, units = numbers(columns[PICTURE]), numbers(columns[FIELD]), clusters(columns)
            if min(len(of.unique()) for of in units) >= FEWEST:
                odds[layer] = mixed_logistic(one, other, *units)
    return odds


def groups(columns: Columns, names: Sequence[str]) -> dict[tuple[Any, ...], Columns]:
    """The trials grouped by the values of some columns, in order of appearance."""
    rows: dict[tuple[Any, ...], list[int]] = {}
    for n, key in enumerate(zip(*(columns[name] for name in ("map", *names)), strict=True)):
        rows.setdefault(key[1:], []).append(n)
    return {key: {name: [column[n] for n in of] for name, column in columns.items()} for key, of in rows.items()}


def clusters(columns: Columns) -> tuple[Tensor, Tensor]:
    """The map and the image of each trial: (M,), int64."""
    maps, images = (torch.tensor(columns[name], dtype=torch.long) for name in ("map", "image"))
    return maps, images


def numbers(column: Sequence[float | None]) -> Tensor:
    """A column as (M,), float64; NaN for None."""
    return torch.tensor([float("nan") if value is None else value for value in column], dtype=torch.float64)


def text(value: Any) -> str:
    """A condition as a key of JSON."""
    return f"{value:g}" if isinstance(value, int | float) else value or "none"
