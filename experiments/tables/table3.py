"""Table 3: the effect of layers and their widths, by training each variant from scratch.

The caption's sense: ImageNet 2012 error rates as the network of Krizhevsky et al. (2012) and that of Figure 3 are
changed: layers removed, other widths of the fully connected layers, more maps in layers 3 to 5.

What to look for, first: the training errors. The paper's network without layers 3, 4, 6 and 7 fails because it cannot
fit its training images (71.1 %, the whole network 35.1 %), so only images that such a network cannot fit can show the
paper's order: tiny_imagenet with 60 classes or more, or scenes of all classes (data.classes=all). Then: removing layers
3 and 4, or 6 and 7, costs little, and all four a lot: depth matters. Wider fully connected layers fit the training
images better and the others no better; more maps in layers 3 to 5 help both.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from experiments.output.results import Result
from experiments.output.tables import dots, interval, mean, measured, percent, shown, table
from experiments.setup.checks import at_least, one_of
from experiments.setup.hints import Count
from experiments.setup.networks import Networks
from experiments.tables.runs import Key, read_runs
from experiments.tables.variants import COLUMNS, departures, measurements, train_each
from zfnet import InputError
from zfnet.model import VARIANTS, variant
from zfnet.training import Recipe, rate_falls

PAPER = {  # errors, %, in the order of COLUMNS; 27.4 twice, as printed
    "krizhevsky": (35.1, 40.5, 18.1),
    "krizhevsky without layers 3, 4": (41.8, 45.4, 22.1),
    "krizhevsky without layer 7": (27.4, 40.0, 18.4),
    "krizhevsky without layers 6, 7": (27.4, 44.8, 22.4),
    "krizhevsky without layers 3, 4, 6, 7": (71.1, 71.3, 50.1),
    "krizhevsky fc 2048": (40.3, 41.7, 18.8),
    "krizhevsky fc 8192": (26.8, 40.0, 18.1),
    "fig3": (33.1, 38.4, 16.5),
    "fig3 fc 2048": (38.2, 40.2, 17.6),
    "fig3 fc 8192": (22.0, 38.8, 17.0),
    "fig3 512-1024-512": (18.8, 37.5, 16.0),
    "fig3 fc 8192, 512-1024-512": (10.0, 38.3, 16.9),
}
TITLES = {"krizhevsky": "Replication of Krizhevsky et al.", "fig3": "Figure 3"}
DEPTH = [  # the rows of variants=depth
    "krizhevsky",
    "krizhevsky without layers 3, 4",
    "krizhevsky without layers 6, 7",
    "krizhevsky without layers 3, 4, 6, 7",
]
FLAT = 0.5  # %: a validation error that falls by less in the last third of a training is called flat
Measured = Mapping[Key, Mapping[str, Any]]


def main(
    networks: Networks,
    out: str | Path,
    *,
    architecture: partial[nn.Module],
    recipe: Recipe,
    seeds: Count = 2,
    variants: Literal["depth"] | Sequence[str] | None = None,
    runs: str | None = None,
    fresh: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Train variants of two architectures from scratch, and compare their errors.

    Args:
        networks: where networks are kept.
        out: the folder of the result.
        architecture: a partial of ZFNet that makes the network of Figure 3, by which all widths are scaled.
        recipe: how each network is trained; seeds count from the recipe's.
        seeds: networks of each variant.
        variants: the rows, by name; depth: the four in which layers are removed, and their whole network; null: all.
        runs: a folder with results of experiment=variant, in it or anywhere below it: nothing is trained, and networks,
            data, recipe and seeds are those of the results; null: the networks are trained.
        fresh: restart interrupted trainings instead of resuming them.
        progress: print which network is trained.
    """
    result = Result("table3", out, locals())
    at_least(1, seeds=seeds)
    names, notes = rows_of(variants), []
    if runs is None:
        scaled(architecture.keywords)  # a network that has not these layers is refused before hours of training
        keys = [(name, seed) for name in names for seed in range(seeds)]
        trained = train_each(keys, networks, architecture, recipe, progress)
        each = {
            (name, recipe.seed + seed): measurements(network, networks)
            for (name, seed), network in zip(keys, trained, strict=True)
        }
        result.settings |= {"images": len(networks.training), "validation_images": len(networks.validation)}
    else:
        stored = read_runs(runs)
        each = {key: run for key, run in stored.measurements.items() if key[0] in names}
        notes = [*absent(names, each), *(f"Not every run records {name}." for name in stored.unsaid)]
        result.settings |= {**stored.settings, "seeds": None, "runs": stored.sources}
        result.seed = None  # each run has its own
    if not each:
        raise InputError(f"no run of {' or '.join(names)} in {runs}")
    result.settings["unit"] = "%"
    return write(result, each, notes)


def rows_of(variants: str | Sequence[str] | None) -> list[str]:
    """The names of the rows of `variants`, in the table's order."""
    if variants == "depth":
        variants = DEPTH
    if variants is None:
        return list(VARIANTS)
    if not variants:
        raise InputError("variants is empty: give names of rows, depth, or null for all")
    for name in variants:
        one_of("variant", name, VARIANTS)
    return [name for name in VARIANTS if name in variants]


def absent(names: Sequence[str], each: Measured) -> list[str]:
    """Which rows have no run, and which lack a seed that another row has."""
    seeds = sorted({seed for _, seed in each})
    missing = {name: [seed for seed in seeds if (name, seed) not in each] for name in names}
    rows = [name for name in names if missing[name] == seeds]
    notes = [f"No run of: {'; '.join(rows)}."] if rows else []
    return notes + [
        f"No run of {name}, seed {', '.join(map(str, missing[name]))}."
        for name in names
        if missing[name] and name not in rows
    ]


def write(result: Result, each: Measured, notes: Sequence[str]) -> dict[str, Any]:
    """Write the tables, their picture and result.json from the measurements of each network.

    Args:
        result: with the settings that all networks share.
        each: in the table's order.
        notes: sentences about the runs.
    """
    names = list(dict.fromkeys(name for name, _ in each))
    seeds = {name: [seed for other, seed in each if other == name] for name in names}
    errors = {
        name: {column: [each[name, seed]["error"][column] for seed in seeds[name]] for column in COLUMNS}
        for name in names
    }
    parameters = {name: each[name, seeds[name][0]]["parameters"] for name in names}
    differences = {name: compare(name, each) for name in names if VARIANTS[name][0] in names and VARIANTS[name][1]}
    classes = result.settings["architecture"].get("num_classes", 1000)
    courses = {
        f"{name}, seed {seed}": course(run["history"], 100 - 100 / classes) for (name, seed), run in each.items()
    }
    counts = sorted({len(of) for of in seeds.values()})
    networks = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    spread = f"mean ± standard deviation (n - 1) of {networks} networks" if counts[-1] > 1 else "one network"
    differs = departures(result.settings)
    text = [
        _table(errors, parameters),
        f"\nErrors in %; ours: {spread} for each row, all after training, on images as they are.",
        "The paper prints 27.4 twice.",
        *fits(errors),
        *notes,
        *_differences(differences),
        *lengths(courses),
        scaled(result.settings["architecture"]),
        differs,
    ]
    result.text("\n".join(text))
    published = {name: dict(zip(COLUMNS, PAPER[name], strict=True)) for name in names}
    words = f"Errors, %. Ours: {spread} for each row. {differs}"
    result.figure(dots(labels(names), list(published.values()), list(errors.values()), COLUMNS, words))
    ours = {**measured("error", errors), "seeds": seeds, "parameters": parameters}
    ours |= {"difference": differences, "training": courses}
    return result.finish(ours, {"error": published, "difference": {name: papers(name) for name in differences}})


def papers(name: str) -> dict[str, float]:
    """The paper's errors of a variant minus those of its own whole network."""
    pairs = zip(COLUMNS, PAPER[name], PAPER[VARIANTS[name][0]], strict=True)
    return {column: round(error - whole, 1) for column, error, whole in pairs}


def compare(name: str, each: Measured) -> dict[str, dict[str, Any]]:
    """The differences of a variant's errors to those of its own whole network of the same seed, by column."""
    whole = VARIANTS[name][0]
    seeds = [seed for other, seed in each if other == name and (whole, seed) in each]
    compared: dict[str, dict[str, Any]] = {}
    for column, paper in papers(name).items():
        values = [each[name, seed]["error"][column] - each[whole, seed]["error"][column] for seed in seeds]
        bounds = interval(values)
        outcome = verdict(paper, bounds, len(values))
        compared[column] = {"mean": mean(values), "interval": bounds, "each": values, "verdict": outcome}
    return compared


def verdict(paper: float, bounds: Sequence[float] | None, seeds: int) -> str:
    """Whether a difference is the paper's: by the side of zero on which its whole 95 % interval lies.

    Args:
        paper: the paper's difference.
        bounds: of our interval; None for fewer than two seeds.
        seeds: number of seeds.
    """
    if bounds is None:
        return f"{'one seed' if seeds else 'no seed in common'}: not decided"
    if not paper:
        return "the paper has none"
    if bounds[0] <= 0 <= bounds[1]:
        return "not decided"
    return "as in the paper" if (bounds[0] > 0) == (paper > 0) else "contrary"


def course(history: Sequence[Mapping[str, float]], chance: float) -> dict[str, Any]:
    """How a training ended: the best validation error, %, before its last third and in it, and when the rate fell.

    An error within a point of `chance`, %, is not called flat: nothing was learned.
    """
    errors = [percent(entry["validation_error"]) for entry in history]
    third = max(1, len(errors) // 3)
    before, after = min(errors[:-third], default=None), min(errors[-third:], default=None)
    flat = None if before is None or after is None else before - after < FLAT and after < chance - 1
    return {
        "epochs": len(errors),
        "before": before,
        "last_third": after,
        "flat": flat,
        "rate_fell": rate_falls(history),
    }


def fits(errors: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """The criterion: whether the shallow network fails to fit its training images, as in the paper."""
    whole, least = "krizhevsky", DEPTH[-1]
    if not {whole, least} <= set(errors):
        return []
    ours, own = (shown(errors[name]["train_top1"]) for name in (least, whole))
    return [
        f"Underfitting: without layers 3, 4, 6, 7 the train error is {ours}, of the whole network {own}; in the paper "
        f"{PAPER[least][0]} and {PAPER[whole][0]}."
    ]


def lengths(courses: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Whether the whole networks, and how many of the others, were trained until the validation error was flat."""
    known = {name: of for name, of in courses.items() if of["flat"] is not None}
    whole = {name: of for name, of in known.items() if not VARIANTS[name.rpartition(", seed")[0]][1]}
    lines = []
    for name, of in whole.items():
        times, epochs = len(of["rate_fell"]), ", ".join(map(str, of["rate_fell"]))
        fell = "never fell" if not times else f"fell at epoch {epochs}" if times < 6 else f"fell {times} times"
        lines.append(
            f"{name}: best validation error {of['before']:.1f} before the last third of {of['epochs']} epochs, "
            f"{of['last_third']:.1f} in it: {'flat' if of['flat'] else 'not flat'}; the learning rate {fell}."
        )
    others = [of["flat"] for name, of in known.items() if name not in whole]
    if known:
        rule = (
            f"A validation error is flat if it falls by less than {FLAT} points in the last third, and is below chance."
        )
        start = f"\nLong enough? {rule}"
        return [start, *lines, *[f"Flat of the {len(others)} other networks: {sum(others)}."] * bool(others)]
    return []


def scaled(architecture: Mapping[str, Any]) -> str:
    """The scaled widths in words. Raises InputError for a network without layers 1 to 7."""
    wide = {name: variant(name, **architecture) for name in ("fig3", "fig3 fc 2048", "fig3 512-1024-512")}
    maps, more = wide["fig3"]["maps"], wide["fig3 512-1024-512"]["maps"][2:]
    hidden, half = wide["fig3"]["hidden"], wide["fig3 fc 2048"]["hidden"]
    return (
        f"Widths are scaled: maps {'-'.join(map(str, maps))} and fully connected layers {'-'.join(map(str, hidden))} "
        f"for the paper's 96-256-384-384-256 and 4096-4096; so 512-1024-512 is {'-'.join(map(str, more))} here, "
        f"and fc 2048 is {'-'.join(map(str, half))}."
    )


def labels(names: Sequence[str]) -> list[str]:
    """The names of the rows; a change below its own network is named by the change alone."""
    below = {name: f"- {change}" if network in names else name for name, (network, change) in VARIANTS.items()}
    return [TITLES.get(name, below[name]) for name in names]


def _table(errors: Mapping[str, Mapping[str, Sequence[float]]], parameters: Mapping[str, int]) -> str:
    head = ["", *(f"paper {c}" for c in COLUMNS.values()), *(f"ours {c}" for c in COLUMNS.values()), "parameters"]
    rows = [[*PAPER[name], *map(shown, of.values()), parameters[name]] for name, of in errors.items()]
    return table(head, [[label, *row] for label, row in zip(labels(list(errors)), rows, strict=True)])


def _differences(differences: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """The table of the changes, and the rule of its verdicts."""
    rows: list[list[Any]] = []
    for name, columns in differences.items():
        for column, of in columns.items():
            ours = "" if of["mean"] is None else f"{of['mean']:+.1f}"
            bounds = "" if of["interval"] is None else "{:+.1f} to {:+.1f}".format(*of["interval"])
            paper = f"{papers(name)[column]:+.1f}"
            rows.append([name, COLUMNS[column], paper, ours, bounds, len(of["each"]), of["verdict"]])
    if not rows:
        return []
    head = ["change", "error", "paper", "ours", "95% interval", "seeds", "verdict"]
    return [
        f"\n{table(head, rows)}\n",
        "Errors of each change less those of its own network (the first word), seed by seed, in points. The interval "
        "is Student's t over seeds: it covers the noise of training, not the choice of images, which are the same.",
        "Verdict, of the direction alone: as in the paper where the whole interval lies on the paper's side of 0, "
        "contrary where it lies on the other, else not decided. If there were no differences, about "
        f"{len(rows) / 20:.1f} of {len(rows)} intervals would leave out 0 by chance.",
    ]
