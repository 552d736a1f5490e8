"""Table 3: what layers and their widths are worth, by training each variant from scratch.

The caption's sense: ImageNet 2012 error rates as the network of Krizhevsky et al. (2012) and that of Figure 3 are
changed: layers removed, other widths of the fully connected layers, more maps in layers 3 to 5.

What to look for: removing layers 3 and 4, or 6 and 7, costs little, and all four a lot: depth matters. Wider fully
connected layers fit the training images better and the others no better; more maps in layers 3 to 5 help both.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr
from torch import nn

from experiments.output.results import Result
from experiments.output.tables import dots, measured, shown, table
from experiments.setup.checks import at_least, one_of
from experiments.setup.hints import Count
from experiments.setup.networks import Networks
from experiments.tables.variants import COLUMNS, departures, errors_of, train_each
from zfnet.model import VARIANTS, variant
from zfnet.training import Recipe

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
    seeds: Count = 2,
    variants: Sequence[str] | None = None,
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
        variants: the rows to train, by name; null: all.
        fresh: start trainings anew that were stopped.
        progress: say which network is trained.
    """
    result = Result("table3", out, locals())
    at_least(1, seeds=seeds)
    for name in variants or ():
        one_of("variant", name, VARIANTS)
    names = [name for name in VARIANTS if name in (variants or VARIANTS)]
    errors: dict[str, dict[str, list[float]]] = {name: {column: [] for column in COLUMNS} for name in names}
    parameters: dict[str, int] = {}
    runs = [(name, seed) for name in names for seed in range(seeds)]
    for (name, _), model in zip(runs, train_each(runs, networks, architecture, recipe, progress), strict=True):
        for column, rate in errors_of(model, networks).items():
            errors[name][column].append(rate)
        parameters[name] = sum(p.numel() for p in model.parameters())
    published = {name: dict(zip(COLUMNS, PAPER[name], strict=True)) for name in names}
    ours = {**measured("error", errors), "parameters": parameters}
    ranks = {column: rank_correlation(published, ours["error"], column) for column in COLUMNS}
    rank, differences = ranks["validation_top1"], departures(networks, recipe, architecture)
    spread = f"mean ± standard deviation (n - 1) of {seeds} networks" if seeds > 1 else "one network"
    notes = [
        f"Errors in %; ours: {spread} for each row, both errors after training, on images as they are.",
        "The paper prints 27.4 twice.",
        "Order of the rows by val top-1, the paper's and ours: "
        + ("there is none." if rank is None else f"Spearman's rank correlation {rank:.2f}."),
        _scaled(architecture),
        differences,
    ]
    below = {name: f"- {change}" if network in names else name for name, (network, change) in VARIANTS.items()}
    labels = [TITLES.get(name, below[name]) for name in names]
    head = ["", *(f"paper {c}" for c in COLUMNS.values()), *(f"ours {c}" for c in COLUMNS.values()), "parameters"]
    rows = [[*PAPER[name], *map(shown, errors[name].values()), parameters[name]] for name in names]
    cells = [[label, *row] for label, row in zip(labels, rows, strict=True)]
    result.text("\n".join([table(head, cells), "", *notes]))
    words = f"Errors, %. Ours: {spread} for each row. {differences}"
    result.figure(dots(labels, list(published.values()), list(errors.values()), COLUMNS, words))
    result.settings |= {"images": len(networks.training), "validation_images": len(networks.validation), "unit": "%"}
    return result.finish({**ours, "rank_correlation": ranks}, {"error": published})


def rank_correlation(
    paper: Mapping[str, Mapping[str, float]], ours: Mapping[str, Mapping[str, float]], column: str
) -> float | None:
    """Spearman's, over the rows; None where one side has no order."""
    pairs = [(paper[name][column], ours[name][column]) for name in ours]
    if any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return None
    return float(spearmanr(pairs).statistic)


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
