"""Would another training run give the same units? Two runs that differ in their seed, map by map.

The feature maps of one run are paired one to one with those of the other, so that the correlations of their
activations add up to the most: Li, Yosinski, Clune, Lipson & Hopcroft (2016), "Convergent Learning", arXiv:1511.07543.
Maps of different networks correlate somewhat anyway, because they see the same images: what counts is by how much
more than with an untrained network.

What to look for: the best pairs show the same patches and the same projections, the worst nothing in common; and
whether the curve of the two runs stands as far above that of the untrained network in high layers as in low ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from experiments.output.feature_maps import MAP_GAP, Look, Panel, panel_of
from experiments.output.pages import LINE, Page, Style, style_of
from experiments.output.results import Result
from experiments.output.tables import table
from experiments.setup.checks import as_list, at_least
from experiments.setup.hints import Count, Names, Palette, Seed
from experiments.setup.models import build
from experiments.setup.networks import Networks
from experiments.setup.options import Showing, stateless
from zfnet import Deconvnet, InputError, TopActivations, receptive_field, scan
from zfnet.analysis.matching import bipartite_matching, correlations
from zfnet.data.images import image_size
from zfnet.data.preprocessing import Preprocessing
from zfnet.graph import Graph
from zfnet.training import Recipe

SHOWN = {"best": 0.0, "median": 0.5, "worst": 1.0}  # where in a layer's pairs, by falling correlation
ALIKE = 0.5  # maps of two runs with a correlation above this count as the same
CURVES = {  # each one's label, colour by number, and line
    "best": ("best partner, shared or not", 0, ":"),
    "trained": ("one to one", 0, "-"),
    "untrained": ("with an untrained network", 1, "--"),
    "shuffled": ("with other images (chance)", 7, "-."),
}
HEAD, PLOTS, PAIR_GAP, HALF_GAP, LINE_GAP = 3 * LINE + 4, 300, 32, 12, 18  # pixels


class Line(NamedTuple):
    """What is drawn of one layer: for each shown pair its words, and the map of each run."""

    title: str
    pairs: list[tuple[str, list[Panel]]]


def main(
    data: Any,
    out: str | Path,
    *,
    networks: Networks,
    architecture: Callable[[], nn.Module],
    recipe: Recipe,
    layers: Names = ("relu1", "relu2", "relu3", "relu4", "relu5"),
    seed: Seed = 0,
    other: Seed = 1,
    k: Count = 9,
    drawn: Count = 4,
    style: Palette = "safe",
    **options: Unpack[Showing],
) -> dict[str, Any]:
    """Train a network twice, match the maps of each layer, and draw pairs of maps and their correlations.

    Args:
        data: the images.
        out: the folder of the result.
        networks: of the data set, by their training.
        architecture: of the network.
        recipe: how both are trained, but for the seed.
        layers: by name.
        seed: of the first run; the control, which is not trained, has a third, or it would be kin to a run.
        other: the seed of the second run.
        k: strongest images of a map, counted where the other map has them too.
        drawn: how many of these activations are drawn.
        style: colours of the curves: "safe" for colour-blind readers, or "paper".
        options: see `Showing` and `Reading`.
    """
    result, (look, reading), colours = Result("seeds", out, locals()), Look.of(options), style_of(style)
    page, layers = Page(look.width), as_list(layers)
    result.settings |= {"layers": layers, "alike": ALIKE, "dataset": type(data).__name__}
    check(seed, other, k, drawn, len(data))
    control = untrained(networks, architecture, max(seed, other) + 1, layers)
    runs = {n: networks.trained("network", architecture, replace(recipe, seed=n)) for n in (seed, other)}
    deconvnets = {f"seed {n}": look.deconvnet(run.model) for n, run in runs.items()}
    first, second = (deconvnet.graph for deconvnet in deconvnets.values())
    matrices = {
        "trained": correlations(first, second, data, layers, **stateless(reading)),
        "untrained": correlations(first, control, data, layers, **stateless(reading)),
        "shuffled": correlations(first, second, data, layers, shuffle_seed=seed, **stateless(reading)),
    }
    scans = [scan(graph, data, layers, k, **reading) for graph in (first, second)]
    compared, curves, lines = {}, {}, []
    for layer in layers:
        tops = [maxima[layer] for maxima in scans]
        compared[layer], curves[layer] = compare({what: by[layer] for what, by in matrices.items()}, tops)
        lines.append(line_of(layer, deconvnets, data, tops, compared[layer]["pairs"], drawn, look))
    draw_pairs(page, lines)
    draw_curves(page, curves, colours)
    kind, images = type(control.model).__name__, scans[0].images
    page.caption(f"{kind}, trained twice (seeds {seed} and {other}), {images:,} images. {caption(k, drawn, look)}")
    result.figure(page.done())
    errors = {str(n): run.history[-1].get("validation_error") for n, run in runs.items()}
    ours = {"layers": compared, "images": images, "shared_by_chance": k * k / images, "validation_error": errors}
    result.text(f"{summary(ours, k)}\n\n{answer(compared)}")
    return result.finish(ours)


def check(seed: int, other: int, k: int, drawn: int, images: int) -> None:
    """InputError for settings out of range."""
    at_least(1, drawn=drawn)
    if seed == other:
        raise InputError(f"seed and other are both {seed}: two runs need two seeds")
    if not 1 <= k <= images:
        raise InputError(f"k is {k}; give a number from 1 to that of the images, {images}")


def untrained(networks: Networks, architecture: Callable[[], nn.Module], seed: int, layers: Sequence[str]) -> Graph:
    """The control; InputError, before minutes of training, for layers that it does not have."""
    control = Graph(build(architecture, preprocessing=networks.preprocessing, seed=seed))
    control.model.to(networks.device)
    for layer in layers:
        control.node(layer)
    return control


def compare(matrices: Mapping[str, Tensor], tops: Sequence[TopActivations]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Numbers of one layer, and the correlations of the first network's live maps with their partners, by curve.

    A pair is [map, map, correlation, images among the strongest of both]; pairs stand by falling correlation.

    Args:
        matrices: the correlations (C, C) with each other network.
        tops: the strongest activations in both runs.
    """
    live = [top.value[:, 0] > 0 for top in tops]
    curves = {what: maps[tuple(bipartite_matching(maps).T)][live[0]] for what, maps in matrices.items()}
    curves["best"] = matrices["trained"].amax(1)[live[0]]
    pairs = bipartite_matching(matrices["trained"])
    pairs = pairs[live[0][pairs[:, 0]] & live[1][pairs[:, 1]]]
    correlation = matrices["trained"][tuple(pairs.T)]
    images = [top.image.where(top.value > 0, -1 - n) for n, top in enumerate(tops)]  # what is 0 is no strong activation
    ones, others = (winners[maps] for winners, maps in zip(images, pairs.T, strict=True))
    shared = (ones[:, :, None] == others[:, None, :]).sum((1, 2))
    order = correlation.argsort(descending=True, stable=True)
    columns = [column[order].tolist() for column in (*pairs.T, correlation, shared)]
    numbers = {
        "maps": len(live[0]),
        "live": [int(mask.sum()) for mask in live],
        **{
            what: {"mean": float(c.mean()), "median": float(c.median()), "alike": float((c > ALIKE).double().mean())}
            for what, c in curves.items()
        },
        "shared": float(shared.double().mean()),
        "pairs": [list(row) for row in zip(*columns, strict=True)],
    }
    return numbers, curves


def summary(ours: Mapping[str, Any], k: int) -> str:
    """The numbers as a table."""
    three = ["mean", "median", f"above {ALIKE}"]
    head = ["layer", "maps", "live", f"matched: {three[0]}", *three[1:], "best partner: mean"]
    head += [f"untrained: {three[0]}", *three[1:], "shuffled: mean", f"shared of {k} images", "by chance"]
    rows = []
    for layer, n in ours["layers"].items():
        cells = [*n["trained"].values(), n["best"]["mean"], *n["untrained"].values(), n["shuffled"]["mean"]]
        cells += [n["shared"], ours["shared_by_chance"]]
        rows.append([layer, n["maps"], " and ".join(map(str, n["live"])), *(f"{cell:.2f}" for cell in cells)])
    return table(head, rows)


def answer(compared: Mapping[str, Mapping[str, Any]]) -> str:
    """The answer to the question, from the numbers."""
    shares = (f"{layer} {n['trained']['alike']:.0%} ({n['untrained']['alike']:.0%})" for layer, n in compared.items())
    most = [layer for layer, n in compared.items() if n["trained"]["alike"] > 0.5]
    where = "every layer" if len(most) == len(compared) else ", ".join(most) or "no layer"
    return (
        "Would another training run give the same units?  Maps with a partner of their own in the other run, "
        f"correlated above {ALIKE} (in an untrained network): {', '.join(shares)}.  Most of them in {where}."
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
    if not pairs:
        raise InputError(f"{layer}: no two maps that are ever above 0 are matched; have the networks learnt at all?")
    graph, k = next(iter(deconvnets.values())).graph, tops[0].value.shape[1]
    field = receptive_field(graph, layer, image_size(data))
    often = [top.value[:, -1] > 0 for top in tops]
    pairs = [p for p in pairs if often[0][p[0]] and often[1][p[1]]] or pairs  # one image in common is no likeness
    line = Line(f"{layer}, patches of {field.size[0]} x {field.size[1]} pixels", [])
    for name, rank in SHOWN.items():
        *maps, correlation, shared = pairs[round(rank * (len(pairs) - 1))]
        panels = []
        for m, top, (run, deconvnet) in zip(maps, tops, deconvnets.items(), strict=True):
            few = TopActivations(*(column[:, :drawn] for column in top))
            more = layer, few, [m], 1, field, Preprocessing.of(graph.model), look
            panels.append(panel_of(f"{run}, map {m}", deconvnet, data, *more))
        words = f"{name}: correlation {round(correlation, 2) + 0.0:.2f}, {shared} of {k} images shared"
        line.pairs.append((words, panels))
    return line


def caption(k: int, drawn: int, look: Look) -> str:
    """What is drawn, and how it is scaled."""
    return (
        f"Pairs of feature maps, matched one to one; drawn are those above 0 on {k} images or more, by their "
        f"{min(drawn, k)} strongest activations, from different images: projections left (of the first convolution, "
        f"the filter, up to its largest value), image patches right. {look.words} Tiles are enlarged "
        f"({look.interpolation}) as each heading says. Hatched: outside the image. White: no activation above 0. "
        "Curves: all maps of the first run that are ever above 0."
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


def draw_curves(page: Page, curves: Mapping[str, Mapping[str, Tensor]], style: Style) -> None:
    """Sorted correlations of each layer in its own axes."""
    left, right, gap = 84, 24, 46
    wide = (page.columns - left - right + gap) // len(curves) - gap
    lowest = min(float(values.min()) for sorts in curves.values() for values in sorts.values())
    for n, (layer, sorts) in enumerate(curves.items()):
        axes = page.axes(left + n * (wide + gap), page.y + 3.6 * LINE, wide, PLOTS - 6 * LINE)
        for what, (label, number, line) in CURVES.items():
            values = sorts[what].sort(descending=True).values
            axes.plot(torch.linspace(0, 100, len(values)), values, line, color=style.lines[number], label=label, lw=1.1)
        axes.set(xlim=(0, 100), ylim=(min(lowest, -0.05) - 0.05, 1.02), yticks=(0, 0.5, 1), xticks=(0, 50, 100))
        axes.set_title(layer, pad=3)
        axes.tick_params(labelleft=n == 0, length=2)
        axes.grid(color="0.9", lw=0.5)
        if not n:
            axes.set_ylabel("correlation")
            axes.set_xlabel("live maps, sorted, %", labelpad=1)
            axes.legend(loc="lower left", bbox_to_anchor=(-0.42, 1.16), ncols=4, frameon=False)
    page.text(0, page.y + LINE / 2, "How like its partner is each map of the first run?", weight="bold", size=8)
    page.y += PLOTS
