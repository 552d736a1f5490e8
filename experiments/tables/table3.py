"""Table 3: what layers and their widths are worth, by training each variant from scratch.

The caption's sense: ImageNet 2012 error rates as the network of Krizhevsky et al. (2012) and that of Figure 3 are
changed: layers removed, other widths of the fully connected layers, more maps in layers 3 to 5.

What to look for: removing layers 3 and 4, or 6 and 7, costs little, and all four a lot: depth matters. Wider fully
connected layers fit the training images better and the others no better; more maps in layers 3 to 5 help both.
"""

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import nn

from experiments.output.results import Provenance, results, table, write_result
from experiments.setup.networks import Networks
from zfnet import InputError, ZFNet
from zfnet.errors import unknown_name
from zfnet.model import VARIANTS, variant
from zfnet.training import Recipe, error_rates

COLUMNS = {"train_top1": "train top-1", "validation_top1": "val top-1", "validation_top5": "val top-5"}
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


def main(
    networks: Networks,
    out: str | Path,
    *,
    architecture: partial[nn.Module],
    recipe: Recipe,
    seeds: int = 2,
    variants: Sequence[str] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train each variant with each of `seeds` seeds; write the table, its picture and result.json.

    architecture: makes the network of Figure 3 whose changes the variants are: by it all widths are scaled.
    variants: the rows to train; None: all. Errors are in %; training images are measured after training, as they are.
    """
    provenance = Provenance(seed=recipe.seed)
    if seeds < 1:
        raise InputError(f"seeds is {seeds}: how many networks are trained of each variant; give at least 1")
    for name in variants or ():
        if name not in VARIANTS:
            raise unknown_name("variant", name, VARIANTS)
    names = [name for name in VARIANTS if name in (variants or VARIANTS)]
    errors: dict[str, dict[str, list[float]]] = {name: {column: [] for column in COLUMNS} for name in names}
    parameters: dict[str, int] = {}
    runs = [(name, seed) for name in names for seed in range(seeds)]
    for (name, _), model in zip(runs, train_each(runs, networks, architecture, recipe, progress), strict=True):
        rates = *error_rates(model, networks.training, top=(1,)), *error_rates(model, networks.validation, top=(1, 5))
        for column, rate in zip(COLUMNS, rates, strict=True):
            errors[name][column].append(percent(rate))
        parameters[name] = sum(p.numel() for p in model.parameters())
    published = {name: dict(zip(COLUMNS, PAPER[name], strict=True)) for name in names}
    means = {name: {column: statistics.mean(rates) for column, rates in row.items()} for name, row in errors.items()}
    ours: dict[str, Any] = {
        "error": means,
        "deviation": {
            name: {column: deviation(rates) for column, rates in row.items()} for name, row in errors.items()
        },
        "each": errors,
        "parameters": parameters,
        "rank_correlation": {column: rank_correlation(published, means, column) for column in COLUMNS},
    }
    labels = [TITLES.get(name) or f"- {VARIANTS[name][1]}" for name in names]
    text = _table(labels, published, errors, parameters)
    spread = f"mean ± standard deviation (n - 1) of {seeds} networks" if seeds > 1 else "one network"
    rank = ours["rank_correlation"]["validation_top1"]
    notes = [
        f"Errors in %; ours: {spread} for each row, both errors after training, on images as they are.",
        "The paper prints 27.4 twice.",
        "Order of the rows by val top-1, the paper's and ours: "
        + ("there is none." if rank is None else f"Spearman's rank correlation {rank:.2f}."),
        _scaled(architecture),
        departures(networks, recipe, architecture),
    ]
    text = f"{text}\n\n" + "\n".join(notes) + "\n"
    print(text)
    settings = {
        "architecture": architecture.keywords,
        "recipe": asdict(recipe),
        "seeds": seeds,
        "images": len(networks.training),
        "validation_images": len(networks.validation),
        "unit": "%",
    }
    paper = {**dict.fromkeys(ours), "error": published}
    with results(out) as folder:
        (folder / "table.md").write_text(text, encoding="utf-8")
        dots(labels, list(published.values()), list(errors.values()), COLUMNS).savefig(folder / "figure.png", dpi=150)
        return write_result(folder, "table3", paper, ours, settings, provenance)


# ---- for Table 2 as well ---------------------------------------------------------------------------------------------


def train_each(
    runs: Sequence[tuple[str, int]],
    networks: Networks,
    architecture: partial[nn.Module],
    recipe: Recipe,
    progress: bool = True,
) -> Iterator[nn.Module]:
    """The networks (variant, seed) in turn, trained or read; seeds count from the recipe's."""
    if getattr(architecture, "func", None) is not ZFNet:
        raise InputError("the tables change ZFNet; give a model that it makes: model=zfnet_mini, zfnet, ...")
    for name, _ in runs:  # a network that cannot be changed is refused before hours of training
        variant(name, **architecture.keywords)
    for n, (name, seed) in enumerate(runs, 1):
        if progress:
            print(f"network {n} of {len(runs)}: {name}, seed {recipe.seed + seed}", file=sys.stderr)
        changed = partial(architecture, **variant(name, **architecture.keywords))
        yield networks.trained(name, changed, replace(recipe, seed=recipe.seed + seed)).model


def percent(rate: float) -> float:
    return round(100 * rate, 6)  # 29, not 28.999999999999996


def deviation(rates: Sequence[float]) -> float | None:
    """The standard deviation of a sample; None of a single number."""
    return statistics.stdev(rates) if len(rates) > 1 else None


def shown(rates: Sequence[float]) -> str:
    """Mean and standard deviation."""
    spread = deviation(rates)
    return f"{statistics.mean(rates):.1f}" + ("" if spread is None else f" ± {spread:.1f}")


def departures(networks: Networks, recipe: Recipe, architecture: partial[nn.Module]) -> str:
    """What differs from the paper, in a sentence or two."""
    sizes = {"image_size": 224, "num_classes": 1000} | architecture.keywords
    images, checks = len(networks.training), len(networks.validation)
    return (
        f"What differs from the paper: {images:,} images of {sizes['image_size']} pixels and {sizes['num_classes']} "
        f"classes for {recipe.epochs} epochs, there 1.3 million of 224 pixels and 1000 classes for 70; {checks:,} "
        f"validation images, which tell an error of 30% to ± {100 * (0.21 / checks) ** 0.5:.1f}, there 50,000."
    )


def rank_correlation(
    paper: Mapping[str, Mapping[str, float]], ours: Mapping[str, Mapping[str, float]], column: str
) -> float | None:
    """Spearman's, over the rows; None where one side has no order."""
    pairs = [(paper[name][column], ours[name][column]) for name in ours]
    if any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return None
    return float(spearmanr(pairs).statistic)


def dots(
    labels: Sequence[str],
    paper: Sequence[Mapping[str, float | None]],
    ours: Sequence[Mapping[str, Sequence[float]]],
    columns: Mapping[str, str],
) -> Figure:
    """The table as a picture: a line for each row, a panel for each column, the paper's number and ours."""
    figure = Figure(figsize=(2.6 + 2.6 * len(columns), 1.1 + 0.3 * len(labels)), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axis, (column, title) in zip(panels, columns.items(), strict=True):
        for y, (published, measurements) in enumerate(zip(paper, ours, strict=True)):
            if published.get(column) is not None:
                axis.plot(published[column], y, "D", color="0.45", markerfacecolor="white", markersize=6)
            if rates := measurements.get(column):
                axis.plot(rates, [y] * len(rates), "|", color="#d0433a", alpha=0.5, markersize=9)
                axis.errorbar(statistics.mean(rates), y, xerr=deviation(rates), fmt="o", color="#d0433a", markersize=5)
        axis.set_title(f"{title} error, %", fontsize=10)
        axis.grid(axis="y", color="0.92")
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].invert_yaxis()
    panels[0].plot([], [], "D", color="0.45", markerfacecolor="white", label="paper, ImageNet")
    panels[0].errorbar([], [], xerr=[], fmt="o", color="#d0433a", label="ours: mean and standard deviation")
    panels[0].plot([], [], "|", color="#d0433a", alpha=0.5, markersize=9, label="each network of ours")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


# ---- Table 3 alone ---------------------------------------------------------------------------------------------------


def _table(
    labels: Sequence[str],
    paper: Mapping[str, Mapping[str, float]],
    errors: Mapping[str, Mapping[str, Sequence[float]]],
    parameters: Mapping[str, int],
) -> str:
    head = ["", *(f"paper {c}" for c in COLUMNS.values()), *(f"ours {c}" for c in COLUMNS.values()), "parameters"]
    return table(
        head,
        [
            [label, *paper[name].values(), *map(shown, errors[name].values()), parameters[name]]
            for label, name in zip(labels, errors, strict=True)
        ],
    )


def _scaled(architecture: partial[nn.Module]) -> str:
    """What the paper's widths are here."""
    wide = {name: variant(name, **architecture.keywords) for name in ("fig3", "fig3 fc 2048", "fig3 512-1024-512")}
    maps, more = wide["fig3"]["maps"], wide["fig3 512-1024-512"]["maps"][2:]
    hidden, half = wide["fig3"]["hidden"], wide["fig3 fc 2048"]["hidden"]
    return (
        f"Widths are scaled: maps {'-'.join(map(str, maps))} and fully connected layers {'-'.join(map(str, hidden))} "
        f"for the paper's 96-256-384-384-256 and 4096-4096; so 512-1024-512 is {'-'.join(map(str, more))} here, "
        f"and fc 2048 is {'-'.join(map(str, half))}."
    )
