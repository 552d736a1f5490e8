"""Table 2: error rates of single networks and of averages of several networks.

The caption's sense: ImageNet 2012 error rates of the architecture of Krizhevsky et al. (2012), of that of Figure 3, of
one with 512, 1024 and 512 maps in layers 3 to 5, of several of them together, and of other people's.

What to look for: averaging networks that differ by nothing but their seed lowers the error. The paper's sixth network,
which is of another architecture, lowers it further; a sixth network of Figure 3, with the same seed, is the control: it
shows how much of this is due to the architecture. Networks that Table 3 has are shared with it.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from scipy.stats import binomtest
from torch import Tensor, nn

from experiments.output.results import Result
from experiments.output.tables import dots, measured, percent, shown, table
from experiments.setup.checks import at_least
from experiments.setup.hints import Count, Natural
from experiments.setup.networks import Networks
from experiments.tables.variants import departures, train_each
from zfnet.training import Recipe, missed

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
MIXED, ALIKE = "(a) and (b), 6 nets", "(a) and a sixth of Figure 3, 6 nets"  # the second is not in the paper
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
        pad: pixels of repeated border, to make room for ten crops; null: as many as training shifts images, if they
            have no margin.
        fresh: restart interrupted trainings instead of resuming them.
        progress: print which network is trained.
    """
    result = Result("table2", out, locals())
    at_least(1, nets=nets)
    if pad is None:
        pad = recipe.pad(networks.preprocessing.image_size)
    runs = [("krizhevsky", 0), *(("fig3", seed) for seed in range(nets + 1)), ("fig3 512-1024-512", nets)]
    trained = train_each(runs, networks, architecture, recipe, progress)
    replication, *several, sixth, other = (model for model, _ in trained)
    groups: Groups = {
        "Replication of Krizhevsky et al., 1 net": [[replication]],
        "Figure 3, 1 net": [[model] for model in several],
        "Figure 3, 5 nets (a)": [several],
        "512-1024-512, 1 net (b)": [[other]],
        MIXED: [[*several, other]],
        ALIKE: [[*several, sixth]],
    }
    misses = outcomes(groups, networks, crops=10, pad=pad)
    one, ten = errors(outcomes(groups, networks)), errors(misses)
    tests = {column: mcnemar(misses[MIXED][0][:, n], misses[ALIKE][0][:, n]) for n, column in enumerate(COLUMNS)}
    spread = f"; one net of Figure 3: mean ± standard deviation (n - 1) of {nets}" if nets > 1 else ""
    result.settings |= {"images": len(networks.training), "validation_images": len(networks.validation), "unit": "%"}
    result.settings |= {"pad": pad, "crops": 10}
    differences = departures(result.settings)
    notes = (
        f"Errors in %. Ours: over ten crops (corners and centre, and mirrored), and of the centre alone{spread}.\n"
        f"We have no test set. *: trained on the data of 2011 and 2012.\n{effect(tests)}\n{differences}"
    )
    result.text(f"{_table(groups, ten, one)}\n\n{notes}")
    words = f"Validation errors, %; *: trained on the data of 2011 and 2012. Ours: ten crops{spread}; in (a) {nets}."
    drawn = [*(row for row, rates in PAPER.items() if rates[0] is not None), ALIKE]
    paper = [dict(zip(COLUMNS, PAPER.get(row, ()), strict=False)) for row in drawn]
    result.figure(dots(drawn, paper, [ten.get(row, {}) for row in drawn], COLUMNS, f"{words} {differences}"))
    published = {row: dict(zip((*COLUMNS, "test_top5"), rates, strict=True)) for row, rates in PAPER.items()}
    sizes = {row: len(ensembles[0]) for row, ensembles in groups.items()}
    ours = {**measured("error", ten), "one_crop": one, "nets": sizes, "sixth": tests}
    return result.finish(ours, {"error": published, "nets": dict(zip(groups, (1, 1, 5, 1, 6), strict=False))})


def outcomes(groups: Groups, networks: Networks, crops: int = 1, pad: int = 0) -> dict[str, list[Tensor]]:
    """Which validation images each group of networks misses, by row: with its best answer, and with all five."""
    return {
        row: [missed(models, networks.validation, crops=crops, pad=pad) for models in ensembles]
        for row, ensembles in groups.items()
    }


def errors(misses: Mapping[str, Sequence[Tensor]]) -> dict[str, dict[str, list[float]]]:
    """Validation errors, %, by row and column, of what each group of networks misses."""
    return {
        row: {column: [percent(float(m[:, n].double().mean())) for m in several] for n, column in enumerate(COLUMNS)}
        for row, several in misses.items()
    }


def mcnemar(first: Tensor, second: Tensor) -> dict[str, float]:
    """Whether one of two classifiers misses more of the same images: McNemar's exact test, two-sided.

    Only images that one of them misses count. If the classifiers are equally good, each misses half of these.
    McNemar (1947), doi:10.1007/BF02295996.

    Args:
        first, second: whether each image is missed; bool (N,).

    Returns:
        the number of images, how many only the first misses and only the second, the difference of the errors in %
        (first - second), and p.
    """
    one, other, images = int((first & ~second).sum()), int((second & ~first).sum()), len(first)
    p = float(binomtest(one, one + other).pvalue) if one + other else 1.0
    difference = percent((one - other) / images)
    return {"images": images, "first_alone": one, "second_alone": other, "difference": difference, "p": p}


def effect(tests: Mapping[str, Mapping[str, float]]) -> str:
    """The gain from the sixth network's architecture, in a sentence."""
    differences = [
        f"{COLUMNS[column]} {test['difference']:+.1f} (it alone misses {test['first_alone']:,} images, the other alone "
        f"{test['second_alone']:,}; p = {test['p']:.2g})"
        for column, test in tests.items()
    ]
    return (
        "Errors of (a) and (b) less those of (a) and a sixth network of Figure 3, on the same "
        f"{tests['validation_top1']['images']:,} images: {', '.join(differences)}. p is McNemar's exact one, "
        "two-sided. It is valid for other images and these networks; other seeds may give another sign."
    )


def _table(groups: Groups, ten: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    head = ["", "paper val top-1", "val top-5", "test top-5", "our nets", "our val top-1", "val top-5"]
    rows: list[list[Any]] = []
    for row in (*PAPER, ALIKE):
        rates = PAPER.get(row, (None, None, None))
        ours = [shown(each) for crops in (ten, one) for each in crops.get(row, {}).values()] or [""] * 4
        nets = len(groups[row][0]) if row in groups else ""
        rows.append([row, *("" if rate is None else rate for rate in rates), nets, *ours])
    return table([*head, "one crop: val top-1", "val top-5"], rows)
