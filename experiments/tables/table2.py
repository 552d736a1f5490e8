"""Table 2: error rates of single networks and of networks whose answers are averaged.

The caption's sense: ImageNet 2012 error rates of the architecture of Krizhevsky et al. (2012), of that of Figure 3, of
one with 512, 1024 and 512 maps in layers 3 to 5, of several of them together, and of other people's.

What to look for: averaging networks that differ by nothing but their seed lowers the error, and a network of another
architecture lowers it more. The networks are those of Table 3, where it has them.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from experiments.output.results import Result
from experiments.output.tables import dots, measured, percent, shown, table
from experiments.setup.checks import at_least
from experiments.setup.hints import Count, Natural
from experiments.setup.networks import Networks
from experiments.tables.variants import departures, train_each
from zfnet.training import Recipe, error_rates

COLUMNS = {"validation_top1": "val top-1", "validation_top5": "val top-5"}
PAPER = {  # errors, %: val top-1, val top-5, test top-5; *: trained on the data of 2011 and 2012
    "Gunji et al. 2012": (None, None, 26.2),
    "DeCAF": (None, None, 19.2),
    "Krizhevsky et al. 2012, 1 net": (40.7, 18.2, None),
    "Krizhevsky et al. 2012, 5 nets": (38.1, 16.4, 16.4),
    "Krizhevsky et al. 2012*, 1 net": (39.0, 16.6, None),
    "Krizhevsky et al. 2012*, 7 nets": (36.7, 15.4, 15.3),
    "Replication of Krizhevsky et al., 1 net": (40.5, 18.1, None),
    "Figure 3, 1 net": (38.4, 16.5, None),
    "Figure 3, 5 nets (a)": (36.7, 15.3, 15.3),
    "512-1024-512, 1 net (b)": (37.5, 16.0, 16.1),
    "(a) and (b), 6 nets": (36.0, 14.7, 14.8),
    "Howard": (None, None, 13.5),
    "Clarifai": (None, None, 11.7),
}
Groups = Mapping[str, Sequence[Sequence[nn.Module]]]  # networks whose answers are averaged; of several, each one


def main(
    networks: Networks,
    out: str | Path,
    *,
    architecture: partial[nn.Module],
    recipe: Recipe,
    nets: Count = 5,
    pad: Natural | None = None,
    fresh: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Compare single networks, trained from scratch, with several whose answers are averaged.

    Args:
        networks: where networks are kept.
        out: the folder of the result.
        architecture: a partial of ZFNet that makes the network of Figure 3; the other networks are changes of it.
        recipe: how each network is trained; seeds count from the recipe's.
        nets: networks of Figure 3 that are averaged; 5 in the paper.
        pad: pixels by which the border is repeated, to make room for ten crops; null: by what training shifts images,
            where they leave no margin.
        fresh: start trainings anew that were stopped.
        progress: say which network is trained.
    """
    result = Result("table2", out, locals())
    at_least(1, nets=nets)
    if pad is None:
        pad = 0 if recipe.stored_size else recipe.shift(networks.preprocessing.image_size)
    runs = [("krizhevsky", 0), *(("fig3", seed) for seed in range(nets)), ("fig3 512-1024-512", 0)]
    replication, *several, other = train_each(runs, networks, architecture, recipe, progress)
    groups: Groups = {
        "Replication of Krizhevsky et al., 1 net": [[replication]],
        "Figure 3, 1 net": [[model] for model in several],
        "Figure 3, 5 nets (a)": [several],
        "512-1024-512, 1 net (b)": [[other]],
        "(a) and (b), 6 nets": [[*several, other]],
    }
    one, ten = errors(groups, networks), errors(groups, networks, crops=10, pad=pad)
    spread = f"; one net of Figure 3: mean ± standard deviation (n - 1) of {nets}" if nets > 1 else ""
    differences = departures(networks, recipe, architecture)
    notes = (
        f"Errors in %. Ours: over ten crops (corners and centre, and mirrored), and of the centre alone{spread}.\n"
        "We have no test set. *: trained on the data of 2011 and 2012.\n"
        f"{differences}"
    )
    result.text(f"{_table(groups, ten, one)}\n\n{notes}")
    words = f"Validation errors, %; *: trained on the data of 2011 and 2012. Ours: ten crops{spread}; in (a) {nets}."
    drawn = [row for row, rates in PAPER.items() if rates[0] is not None]
    paper = [dict(zip(COLUMNS, PAPER[row], strict=False)) for row in drawn]
    result.figure(dots(drawn, paper, [ten.get(row, {}) for row in drawn], COLUMNS, f"{words} {differences}"))
    result.settings |= {"images": len(networks.training), "validation_images": len(networks.validation), "unit": "%"}
    result.settings |= {"pad": pad, "crops": 10}
    published = {row: dict(zip((*COLUMNS, "test_top5"), rates, strict=True)) for row, rates in PAPER.items()}
    sizes = {row: len(ensembles[0]) for row, ensembles in groups.items()}
    ours = {**measured("error", ten), "one_crop": one, "nets": sizes}
    return result.finish(ours, {"error": published, "nets": dict(zip(groups, (1, 1, 5, 1, 6), strict=True))})


def errors(groups: Groups, networks: Networks, crops: int = 1, pad: int = 0) -> dict[str, dict[str, list[float]]]:
    """Validation errors, %, by row and column, of each group of networks."""
    rows = {}
    for row, ensembles in groups.items():
        rates = [error_rates(models, networks.validation, crops=crops, pad=pad) for models in ensembles]
        columns = ([percent(rate) for rate in column] for column in zip(*rates, strict=True))
        rows[row] = dict(zip(COLUMNS, columns, strict=True))
    return rows


def _table(groups: Groups, ten: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    head = ["", "paper val top-1", "val top-5", "test top-5", "our nets", "our val top-1", "val top-5"]
    rows: list[list[Any]] = []
    for row, rates in PAPER.items():
        ours = [shown(each) for crops in (ten, one) for each in crops.get(row, {}).values()] or [""] * 4
        nets = len(groups[row][0]) if row in groups else ""
        rows.append([row, *("" if rate is None else rate for rate in rates), nets, *ours])
    return table([*head, "one crop: val top-1", "val top-5"], rows)
