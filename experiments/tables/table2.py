"""Table 2: error rates of single networks and of networks whose answers are averaged.

The caption's sense: ImageNet 2012 error rates of the architecture of Krizhevsky et al. (2012), of that of Figure 3, of
one with 512, 1024 and 512 maps in layers 3 to 5, of several of them together, and of other people's.

What to look for: averaging networks that differ by nothing but their seed lowers the error, and a network of another
architecture lowers it more. The networks are those of Table 3, where it has them.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from experiments.output.results import Provenance, results, table, write_result
from experiments.setup.networks import Networks
from experiments.tables.table3 import departures, deviation, dots, percent, shown, train_each
from zfnet import InputError
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


def main(
    networks: Networks,
    out: str | Path,
    *,
    architecture: partial[nn.Module],
    recipe: Recipe,
    nets: int = 5,
    pad: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train the networks that are not there yet, average them; write the table, its picture and result.json.

    nets: how many of Figure 3 are averaged, 5 in the paper. pad: by how many pixels the border is repeated, to make
    room for ten crops; None: by what training shifts images, where they leave no margin. Errors are in %.
    """
    provenance = Provenance(seed=recipe.seed)
    if nets < 1:
        raise InputError(f"nets is {nets}: how many networks are averaged; give at least 1")
    if pad is None:
        pad = 0 if recipe.stored_size else recipe.max_shift
    runs = [("krizhevsky", 0), *(("fig3", seed) for seed in range(nets)), ("fig3 512-1024-512", 0)]
    replication, *several, other = train_each(runs, networks, architecture, recipe, progress)
    groups: dict[str, list[list[nn.Module]]] = {  # whose answers are averaged; of several groups, each is measured
        "Replication of Krizhevsky et al., 1 net": [[replication]],
        "Figure 3, 1 net": [[model] for model in several],
        "Figure 3, 5 nets (a)": [several],
        "512-1024-512, 1 net (b)": [[other]],
        "(a) and (b), 6 nets": [[*several, other]],
    }

    def measured(crops: int = 1, pad: int = 0) -> dict[str, dict[str, list[float]]]:
        errors = {}
        for row, ensembles in groups.items():
            rates = [error_rates(models, networks.validation, crops=crops, pad=pad) for models in ensembles]
            columns = ([percent(rate) for rate in column] for column in zip(*rates, strict=True))
            errors[row] = dict(zip(COLUMNS, columns, strict=True))
        return errors

    one, ten = measured(), measured(10, pad)
    text = table(
        [
            "",
            "paper val top-1",
            "val top-5",
            "test top-5",
            "our nets",
            "our val top-1",
            "val top-5",
            "one crop: val top-1",
            "val top-5",
        ],
        [_row(label, groups.get(label, []), ten.get(label, {}), one.get(label, {})) for label in PAPER],
    )
    notes = (
        f"Errors in %.  Ours: over ten crops (corners and centre, and mirrored), and of the centre alone"
        f"{'; one net of Figure 3: mean ± standard deviation (n - 1) of ' + str(nets) if nets > 1 else ''}.\n"
        "We have no test set.  *: trained on the data of 2011 and 2012.\n"
        f"{departures(networks, recipe, architecture)}\n"
    )
    text = f"{text}\n\n{notes}"
    print(text)
    published = {row: dict(zip((*COLUMNS, "test_top5"), errors, strict=True)) for row, errors in PAPER.items()}
    ours = {
        "error": {row: {c: statistics.mean(rates) for c, rates in ten[row].items()} for row in groups},
        "deviation": {row: {c: deviation(rates) for c, rates in ten[row].items()} for row in groups},
        "each": ten,
        "one_crop": one,
        "nets": {row: len(ensembles[0]) for row, ensembles in groups.items()},
    }
    paper = {**dict.fromkeys(ours), "error": published, "nets": dict(zip(groups, (1, 1, 5, 1, 6), strict=True))}
    settings = {
        "architecture": architecture.keywords,
        "recipe": asdict(recipe),
        "nets": nets,
        "crops": 10,
        "pad": pad,
        "images": len(networks.training),
        "validation_images": len(networks.validation),
        "unit": "%",
    }
    with results(out) as folder:
        (folder / "table.md").write_text(text, encoding="utf-8")
        drawn = [row for row in PAPER if PAPER[row][0] is not None]
        picture = dots(drawn, [published[row] for row in drawn], [ten.get(row, {}) for row in drawn], COLUMNS)
        picture.savefig(folder / "figure.png", dpi=150)
        return write_result(folder, "table2", paper, ours, settings, provenance)


def _row(
    label: str, groups: Sequence[Sequence[nn.Module]], ten: Mapping[str, list[float]], one: Mapping[str, list[float]]
) -> list[Any]:
    paper = ["" if error is None else error for error in PAPER[label]]
    ours = [*map(shown, ten.values()), *map(shown, one.values())] or [""] * 4
    return [label, *paper, len(groups[0]) if groups else "", *ours]
