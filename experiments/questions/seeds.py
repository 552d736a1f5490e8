"""Would another training run give the same units? Runs that differ in their seed, map by map.

The feature maps of one run are paired one to one with those of another, so that the correlations of their activations
add up to the most: Li, Yosinski, Clune, Lipson & Hopcroft (2016), "Convergent Learning", arXiv:1511.07543. The images
are split at random into halves: maps are paired on the first, and every number is of the second. Every two runs are
compared. Linear CKA compares layers as a whole: Kornblith, Norouzi, Lee & Hinton (2019), arXiv:1905.00414.

Maps of different networks correlate somewhat anyway, because they see the same images: what counts is by how much
more than of networks before training, than where the two networks see different images, and than pairs at random.

What to look for: the best pairs show the same patches and the same projections, the worst nothing in common; and
whether the curves of trained runs stand as far above those of untrained networks in high layers as in low ones.
"""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Subset
from typing_extensions import Unpack

from experiments.output.feature_maps import MAP_GAP, Look, Panel, panel_of
from experiments.output.pages import LINE, Page, Style, style_of
from experiments.output.results import Result
from experiments.output.tables import table
from experiments.setup.checks import as_list, at_least
from experiments.setup.hints import Count, Names, Palette, Seed
from experiments.setup.models import build
from experiments.setup.networks import MEMORY, Networks, seen_by
from experiments.setup.options import Reading, Showing, stateless
from zfnet import Deconvnet, InputError, TopActivations, receptive_field, scan
from zfnet.analysis.matching import Matching, Similarity, match, similarities
from zfnet.data.images import image_size
from zfnet.data.preprocessing import Preprocessing
from zfnet.graph import Graph
from zfnet.training import Recipe, in_memory

SHOWN = {"best": 0.0, "median": 0.5, "worst": 1.0}  # where in a layer's pairs, by falling correlation
ALIKE = 0.5  # maps of two runs with a correlation above this count as the same
KINDS = {  # what is compared, by its name in result.json: how a table calls it, and its curve's colour and line
    "trained": ("two runs", 0, "-"),
    "one_trained": ("one of them before training", 1, "--"),
    "untrained": ("both before training", 2, "--"),
    "other_images": ("two runs, on different images", 7, "-."),
}
HEAD, PLOTS, PAIR_GAP, HALF_GAP, LINE_GAP = 3 * LINE + 4, 300, 32, 12, 18  # pixels


class Line(NamedTuple):
    """What is drawn of one layer: for each shown pair its words, and the map of each run."""

    title: str
    pairs: list[tuple[str, list[Panel]]]


class Compared(NamedTuple):
    """A layer of two networks: paired on one half of the images, compared on the other."""

    matching: Matching
    cka: float  # on the half that was held out
    dimensions: tuple[float, float]  # of each network's activations, on the same half
    silent: list[dict[str, int]]  # of each network: maps that are constant on both halves, and on one of them


Comparisons = dict[str, dict[str, list[Compared]]]  # by layer and kind, of every two runs


def main(
    data: Any,
    out: str | Path,
    *,
    networks: Networks,
    architecture: Callable[[], nn.Module],
    recipe: Recipe,
    layers: Names = ("relu1", "relu2", "relu3", "relu4", "relu5"),
    seed: Seed = 0,
    seeds: Count = 3,
    k: Count = 9,
    drawn: Count = 4,
    permutations: Count = 1000,
    style: Palette = "safe",
    **options: Unpack[Showing],
) -> dict[str, Any]:
    """Train a network several times, match the maps of every two runs, and draw pairs of maps and their correlations.

    Args:
        data: the images; none of them is trained on.
        out: the folder of the result.
        networks: of the data set, by their training.
        architecture: of the network.
        recipe: how all are trained; seeds count from the recipe's.
        layers: by name.
        seed: of the halves of the images, and of the random pairings and orders of the baselines.
        seeds: trainings, two or more; pairs of maps are drawn of the first two, and the numbers are of every two.
        k: strongest images of a map, counted where the other map has them too.
        drawn: how many of these activations are drawn.
        permutations: pairings of maps at random, for each two runs.
        style: colours of the curves: "safe" for colour-blind readers, or "paper".
        options: see `Showing` and `Reading`.
    """
    result, (look, reading), colours = Result("seeds", out, locals()), Look.of(options), style_of(style)
    page, layers, runs = Page(look.width), as_list(layers), range(recipe.seed, recipe.seed + seeds)
    result.settings |= {"layers": layers, "alike": ALIKE, "dataset": type(data).__name__}
    check(seeds, k, drawn, permutations, len(data))
    initial = {n: untrained(networks, architecture, n, layers) for n in runs}
    trained = {n: networks.trained("network", architecture, replace(recipe, seed=n)) for n in runs}
    deconvnets = {n: look.deconvnet(run.model) for n, run in trained.items()}
    halves = [held(half, reading) for half in halved(seen_by(trained[recipe.seed].model, data), seed)]
    graphs = {n: deconvnet.graph for n, deconvnet in deconvnets.items()}
    compared = comparisons(graphs, initial, halves, layers, permutations, seed, reading)
    scans = {n: scan(graph, halves[1], layers, k, **reading) for n, graph in graphs.items()}
    numbers = {x: numbers_of(compared[x], {n: entries[x] for n, entries in scans.items()}) for x in layers}
    lines = []
    for layer in layers:
        args = {f"seed {n}": deconvnets[n] for n in runs[:2]}, halves[1], [scans[n][layer] for n in runs[:2]]
        lines.append(line_of(layer, *args, numbers[layer]["pairs"], drawn, look))
    draw_pairs(page, lines)
    draw_curves(page, {x: {kind: curves(entries) for kind, entries in compared[x].items()} for x in layers}, colours)
    kind = type(graphs[recipe.seed].model).__name__
    page.caption(f"{kind}, trained {seeds} times. {caption(runs, [len(half) for half in halves], k, drawn, look)}")
    result.figure(page.done())
    ours = everything(numbers, {n: run.history for n, run in trained.items()}, halves, k, permutations)
    result.text(summary(ours))
    return result.finish(ours)


def everything(
    numbers: Mapping[str, Any],
    histories: Mapping[int, Sequence[Mapping[str, float]]],
    halves: Sequence[Any],
    k: int,
    permutations: int,
) -> dict[str, Any]:
    """What result.json says; the histories are those of the trainings, by seed."""
    return {
        "seeds": list(histories),
        "compared": list(itertools.combinations(histories, 2)),
        "images": {"matched_on": len(halves[0]), "held_out": len(halves[1])},
        "permutations": permutations,
        "layers": dict(numbers),
        "k": k,
        "shared_by_chance": k * k / len(halves[1]),
        "validation_error": {str(n): history[-1].get("validation_error") for n, history in histories.items()},
    }


def check(seeds: int, k: int, drawn: int, permutations: int, images: int) -> None:
    """InputError for settings out of range."""
    at_least(1, drawn=drawn, permutations=permutations)
    at_least(2, seeds=seeds)
    if not 1 <= k <= images // 2:
        raise InputError(f"k is {k}; give a number from 1 to that of half of the images, {images // 2}")


def untrained(networks: Networks, architecture: Callable[[], nn.Module], seed: int, layers: Sequence[str]) -> Graph:
    """A run before its training; InputError, before minutes of training, for layers that it does not have."""
    graph = Graph(build(architecture, preprocessing=networks.preprocessing, seed=seed))
    graph.model.to(networks.device)
    for layer in layers:
        graph.node(layer)
    return graph


def halved(data: Any, seed: int) -> list[Subset[Any]]:
    """The images, split at random into two halves; the second has one more of an odd number."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    parts = order[: len(data) // 2], order[len(data) // 2 :]
    return [Subset(data, part.sort().values.tolist()) for part in parts]


def held(half: Subset[Any], reading: Reading) -> Any:
    """The images of a half, in memory if they fit: all networks see them many times."""
    options: Any = {name: value for name, value in reading.items() if name in ("workers", "progress")}
    return in_memory(half, limit=MEMORY, **options)


def comparisons(
    after: Mapping[int, Graph],
    before: Mapping[int, Graph],
    halves: Sequence[Any],
    layers: Sequence[str],
    permutations: int,
    seed: int,
    reading: Reading,
) -> Comparisons:
    """Compare every two runs, layer by layer, and the same before training and on different images.

    Args:
        after, before: the networks after and before training, by seed.
        halves: the images to pair maps on, and those to compare them on.
        layers: by name.
        permutations: pairings at random.
        seed: of these and of the order of different images.
        reading: how images are read.
    """
    results: Comparisons = {layer: {kind: [] for kind in KINDS} for layer in layers}
    for a, b in itertools.combinations(after, 2):
        pairs = {"trained": (after, after), "one_trained": (after, before), "untrained": (before, before)}
        for kind in KINDS:
            first, second = pairs.get(kind, (after, after))
            shuffle = seed if kind == "other_images" else None
            options: Any = {"shuffle_seed": shuffle, **stateless(reading)}
            parts = [similarities(first[a], second[b], half, layers, **options) for half in halves]
            for layer in layers:
                fitted, held_out = (part[layer] for part in parts)
                matching = match(fitted, held_out, permutations=permutations, seed=seed)
                if not len(matching.pairs):
                    raise InputError(
                        f"{layer}: no two maps that are ever above 0 are matched ({KINDS[kind][0]}, seeds {a} and "
                        f"{b}); have the networks learnt at all?"
                    )
                measures = held_out.cka, held_out.dimensions, silent(fitted, held_out)
                results[layer][kind].append(Compared(matching, *measures))
    return results


def silent(fitted: Similarity, held_out: Similarity) -> list[dict[str, int]]:
    """Of each of two networks, how many maps are constant on both halves of the images, and how many on one."""
    counts = []
    for one, other in zip(fitted.varies, held_out.varies, strict=True):
        counts.append({"dead": int((~(one | other)).sum()), "rare": int((one ^ other).sum())})
    return counts


def numbers_of(compared: Mapping[str, Sequence[Compared]], tops: Mapping[int, TopActivations]) -> dict[str, Any]:
    """Numbers of one layer: of each kind a list with one for every two runs, and the pairs of the first two runs.

    A pair is [map, map, correlation, images among the strongest of both]; pairs stand by falling correlation.

    Args:
        compared: by kind, of every two runs.
        tops: by seed, the strongest activations on the images held out.
    """
    overlaps = []
    for (a, b), comparison in zip(itertools.combinations(tops, 2), compared["trained"], strict=True):
        images = [tops[x].image.where(tops[x].value > 0, -1 - n) for n, x in enumerate((a, b))]  # 0 is no activation
        images_a, images_b = (values[maps] for values, maps in zip(images, comparison.matching.pairs.T, strict=True))
        overlaps.append((images_a[:, :, None] == images_b[:, None, :]).sum((1, 2)))
    first = compared["trained"][0].matching
    order = first.correlation.argsort(descending=True, stable=True)
    columns = [column[order].tolist() for column in (*first.pairs.T, first.correlation, overlaps[0])]
    counts: dict[str, dict[str, int]] = {}
    dimensions: dict[str, dict[str, float]] = {"trained": {}, "untrained": {}}
    for n, pair in enumerate(itertools.combinations(map(str, tops), 2)):
        counts |= dict(zip(pair, compared["trained"][n].silent, strict=True))
        for kind, values in dimensions.items():
            values |= dict(zip(pair, compared[kind][n].dimensions, strict=True))
    return {
        "maps": len(first.live[0]),
        **{status: {n: count[status] for n, count in counts.items()} for status in ("dead", "rare")},
        "dimensions": dimensions,
        **{kind: statistics_of(comparison) for kind, comparison in compared.items()},
        "shared": [float(values.double().mean()) for values in overlaps],
        "pairs": [list(row) for row in zip(*columns, strict=True)],
    }


def statistics_of(compared: Sequence[Compared]) -> dict[str, list[Any]]:
    """Numbers of one layer and kind, each for every two runs."""
    matchings = [comparison.matching for comparison in compared]
    return {
        "matched_maps": [len(matching.pairs) for matching in matchings],
        "mean": [float(matching.correlation.mean()) for matching in matchings],
        "fitted_mean": [float(matching.fitted.mean()) for matching in matchings],
        "median": [float(matching.correlation.median()) for matching in matchings],
        "alike": [float((matching.correlation > ALIKE).double().mean()) for matching in matchings],
        "best_mean": [float(matching.best.mean()) for matching in matchings],
        "same_partner": [matching.agreement for matching in matchings],
        "reliability": [matching.reliability for matching in matchings],
        "random": [
            [float(v) for v in (matching.random.mean(), matching.random.min(), matching.random.max())]
            for matching in matchings
        ],
        "cka": [comparison.cka for comparison in compared],
    }


def curves(compared: Sequence[Compared]) -> list[Tensor]:
    """Of every two runs, the correlations of the pairs from the highest to the lowest."""
    return [comparison.matching.correlation.sort(descending=True).values for comparison in compared]


def spread(values: Sequence[float | None], digits: int = 2) -> str:
    """The mean and the range of numbers of every two runs."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "not known"
    mean, low, high = (two_digits(number, digits) for number in (statistics.mean(numbers), min(numbers), max(numbers)))
    return mean if low == high else f"{mean} ({low} to {high})"


def two_digits(value: float, digits: int = 2) -> str:
    """A number with so many digits behind the point; no minus before 0."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def summary(ours: Mapping[str, Any]) -> str:
    """The numbers as tables, and in words: means over every two runs, with their range."""
    return "\n\n".join([likeness_table(ours), matching_table(ours), maps_table(ours), answer(ours)])


def likeness_table(ours: Mapping[str, Any]) -> str:
    """The correlation of matched maps and linear CKA, beside their baselines."""
    rows = []
    for layer, n in ours["layers"].items():
        ranges = n["trained"]["random"]
        mean, low, high = statistics.mean(r[0] for r in ranges), min(r[1] for r in ranges), max(r[2] for r in ranges)
        random = " ".join([two_digits(mean), f"({two_digits(low)} to {two_digits(high)})"])
        rows.append([layer, "matched correlation", *(spread(n[kind]["mean"]) for kind in KINDS), random])
        rows.append(["", "linear CKA", *(spread(n[kind]["cka"]) for kind in KINDS), ""])
    pairings = f"{len(ours['compared'])} x {ours['permutations']:,}"
    return table(
        ["layer", "", *(words for words, *_ in KINDS.values()), f"maps paired at random, {pairings} times"], rows
    )


def matching_table(ours: Mapping[str, Any]) -> str:
    """How far a matching of two runs depends on the images."""
    rows = []
    for layer, n in ours["layers"].items():
        names = ("fitted_mean", "mean", "best_mean", "same_partner", "reliability")
        rows.append([layer, spread(n["trained"]["matched_maps"], 0), *(spread(n["trained"][name]) for name in names)])
    images = ours["images"]
    head = ["layer", "pairs", f"correlation on the {images['matched_on']:,} images matched on"]
    head += [f"on {images['held_out']:,} others", "of the best partner, shared or not"]
    return table([*head, "same partner from either half", "split-half reliability"], rows)


def maps_table(ours: Mapping[str, Any]) -> str:
    """How many maps are dead, and how many have a partner."""
    rows = []
    for layer, n in ours["layers"].items():
        counts = [", ".join(map(str, n[status].values())) for status in ("dead", "rare")]
        alike = [spread(n[kind]["alike"]) for kind in ("trained", "untrained")]
        ranks = [spread(list(n["dimensions"][kind].values()), 1) for kind in ("trained", "untrained")]
        shared = spread(n["shared"]), two_digits(ours["shared_by_chance"])
        rows.append([layer, n["maps"], *counts, *ranks, *alike, *shared])
    head = ["layer", "maps", "dead, by run", "0 on one half of the images", "dimensions", "dimensions before training"]
    head += [
        f"pairs above {ALIKE}",
        f"above {ALIKE} before training",
        f"of {ours['k']} strongest images shared",
        "by chance",
    ]
    return table(head, rows)


def answer(ours: Mapping[str, Any]) -> str:
    """The answer to the question, from the numbers."""
    compared = ours["layers"]
    means = {layer: statistics.mean(n["trained"]["alike"]) for layer, n in compared.items()}
    shares = (
        f"{layer} {means[layer]:.0%} ({statistics.mean(n['untrained']['alike']):.0%})" for layer, n in compared.items()
    )
    majority = [layer for layer, mean in means.items() if mean > 0.5]
    places = "every layer" if len(majority) == len(compared) else ", ".join(majority) or "no layer"
    ranges = {layer: (n["trained"]["mean"], n["untrained"]["mean"]) for layer, n in compared.items()}
    higher = [layer for layer, (after, before) in ranges.items() if min(after) > max(before)]
    lower = [layer for layer, (after, before) in ranges.items() if max(after) < min(before)]
    return (
        f"Would another training run give the same units?  Pairs of maps that correlate above {ALIKE} on images that "
        f"they were not matched on (before training): {', '.join(shares)}.  "
        f"Most of them in {places}.  In every two runs, matched maps correlate more than before training in "
        f"{', '.join(higher) or 'no layer'}, less in {', '.join(lower) or 'no layer'}."
    )


def line_of(
    layer: str,
    deconvnets: Mapping[str, Deconvnet],
    data: Any,
    tops: Sequence[TopActivations],
    pairs: Sequence[Sequence[Any]],
    drawn: int,
    look: Look,
) -> Line:
    """The best, the median and the worst pair of a layer, each map by its strongest activations."""
    graph, k = next(iter(deconvnets.values())).graph, tops[0].value.shape[1]
    field = receptive_field(graph, layer, image_size(data))
    frequent = [top.value[:, -1] > 0 for top in tops]
    pairs = [p for p in pairs if frequent[0][p[0]] and frequent[1][p[1]]] or pairs  # one image in common is no likeness
    line = Line(f"{layer}, patches of {field.size[0]} x {field.size[1]} pixels", [])
    for name, rank in SHOWN.items():
        *maps, correlation, overlap = pairs[round(rank * (len(pairs) - 1))]
        panels = []
        for m, top, (run, deconvnet) in zip(maps, tops, deconvnets.items(), strict=True):
            strongest = TopActivations(*(column[:, :drawn] for column in top))
            args = layer, strongest, [m], 1, field, Preprocessing.of(graph.model), look
            panels.append(panel_of(f"{run}, map {m}", deconvnet, data, *args))
        words = f"{name}: correlation {round(correlation, 2) + 0.0:.2f}, {overlap} of {k} images shared"
        line.pairs.append((words, panels))
    return line


def caption(runs: range, images: Sequence[int], k: int, drawn: int, look: Look) -> str:
    """What is drawn, and how it is scaled."""
    return (
        f"Feature maps are paired one to one on {images[0]:,} images; all else is of {images[1]:,} others. Drawn are "
        f"pairs of seeds {runs[0]} and {runs[1]} that are above 0 on {k} images or more, by their {min(drawn, k)} "
        "strongest activations, from different images: projections left (of the first convolution, the filter, up to "
        f"its largest value), image patches right. {look.words} Tiles are enlarged ({look.interpolation}) as each "
        "heading says. Hatched: outside the image. White: no activation above 0. Curves: one for every two of "
        f"{len(runs)} runs, of all pairs of maps; maps that are 0 on all images of a half have no partner."
    )


def draw_pairs(page: Page, lines: Sequence[Line]) -> None:
    """A line of pairs for each layer, the two runs side by side."""
    room = (page.columns - (len(SHOWN) - 1) * PAIR_GAP) // len(SHOWN)  # for a pair
    for line in lines:
        sample = line.pairs[0][1][0]
        tile = sample.tile(((room - HALF_GAP) // 2 - MAP_GAP) // 2)
        block, title = sample.block(tile), f"{line.title}, enlarged {sample.enlargement(tile):.2g} times"
        page.text(0, page.y + LINE / 2, title, weight="bold", size=8)
        for n, (words, panels) in enumerate(line.pairs):
            x = n * (room + PAIR_GAP)
            page.text(x, page.y + 1.7 * LINE, words)
            for panel in panels:
                page.text(x, page.y + 2.7 * LINE, panel.title, color="0.35")
                for image in panel.draw(tile):
                    page.image(image, x, page.y + HEAD)
                    x += block + MAP_GAP
                x += HALF_GAP - MAP_GAP
        page.y += HEAD + block + LINE_GAP


def draw_curves(page: Page, curves: Mapping[str, Mapping[str, Sequence[Tensor]]], style: Style) -> None:
    """Sorted correlations of each layer in its own axes, one curve for every two runs."""
    left, right, gap = 84, 24, 46
    width = (page.columns - left - right + gap) // len(curves) - gap
    lowest = min(float(values.min()) for kinds in curves.values() for runs in kinds.values() for values in runs)
    for n, (layer, kinds) in enumerate(curves.items()):
        axes = page.axes(left + n * (width + gap), page.y + 3.6 * LINE, width, PLOTS - 6 * LINE)
        for kind, (label, number, line) in KINDS.items():
            for values in kinds[kind]:
                axes.plot(
                    torch.linspace(0, 100, len(values)), values, line, color=style.lines[number], label=label, lw=0.9
                )
                label = "_"  # one entry of the legend for all
        axes.set(xlim=(0, 100), ylim=(min(lowest, -0.05) - 0.05, 1.02), yticks=(0, 0.5, 1), xticks=(0, 50, 100))
        axes.set_title(layer, pad=3)
        axes.tick_params(labelleft=n == 0, length=2)
        axes.grid(color="0.9", lw=0.5)
        if not n:
            axes.set_ylabel("correlation")
            axes.set_xlabel("pairs of maps, sorted, %", labelpad=1)
            axes.legend(loc="lower left", bbox_to_anchor=(-0.42, 1.16), ncols=4, frameon=False)
    page.text(0, page.y + LINE / 2, "How alike are matched maps?", weight="bold", size=8)
    page.y += PLOTS
