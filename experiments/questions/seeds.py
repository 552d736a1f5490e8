"""Would another training run give the same units? Two runs that differ in their seed, map by map.

The feature maps of one run are paired one to one with those of the other, so that the correlations of their
activations add up to the most: Li, Yosinski, Clune, Lipson & Hopcroft (2016), "Convergent Learning", arXiv:1511.07543.
Maps of different networks correlate somewhat anyway, because they see the same images: what counts is by how much
more than with an untrained network.

What to look for: the best pairs show the same patches and the same projections, the worst nothing in common; and
whether the curve of the two runs stands as far above that of the untrained network in high layers as in low ones.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from experiments.figures.fig2 import LAYER_GAP, MAP_GAP, TILE_GAP, Panel, panel_of
from experiments.output.pages import DPI, frame, page, place, text
from experiments.output.results import Provenance, results, table, write_result
from experiments.setup.models import build
from experiments.setup.networks import Networks
from zfnet import Deconvnet, InputError, TopActivations, receptive_field, scan
from zfnet.analysis.matching import bipartite_matching, correlations
from zfnet.data.preprocessing import Preprocessing
from zfnet.graph import Graph
from zfnet.training import Recipe

SHOWN = {"best": 0.0, "median": 0.5, "worst": 1.0}  # where in a layer's pairs, by falling correlation
ALIKE = 0.5  # maps of two runs with a correlation above this count as the same
CURVES: dict[str, tuple[str, dict[str, Any]]] = {  # of figure.png
    "best": ("best partner, shared or not", {"color": "C0", "ls": ":"}),
    "trained": ("one to one", {"color": "C0"}),
    "untrained": ("with an untrained network", {"color": "C1"}),
    "shuffled": ("with other images (chance)", {"color": "0.6"}),
}
MARGIN, HEAD, PLOTS, PAIR_GAP, HALF_GAP = 20, 100, 460, 54, 20  # pixels


def main(
    data: Any,
    out: str | Path,
    *,
    networks: Networks,
    architecture: Callable[[], nn.Module],
    recipe: Recipe,
    layers: Sequence[str] = ("relu1", "relu2", "relu3", "relu4", "relu5"),
    seed: int = 0,
    other: int = 1,
    k: int = 9,
    quantile: float = 0.995,
    batch_size: int = 64,
    workers: int | None = None,
    width: int = 2400,
    progress: bool = True,
) -> dict[str, Any]:
    """Train twice, match the maps of each layer, draw pairs and correlations; return what result.json holds.

    seed, other: of the two runs. The control, which is not trained, has a third.
    k: of a map's strongest images, which are drawn, and counted where the other map has them too.
    """
    if seed == other:
        raise InputError(f"seed and other are both {seed}: two runs need two seeds")
    if not 1 <= k <= len(data):
        raise InputError(f"k is {k}; give a number from 1 to that of the images, {len(data)}")
    if width < 1000:
        raise InputError(f"a picture of {width} pixels is too narrow; give a width of at least 1000")
    layers = [layers] if isinstance(layers, str) else list(layers)
    # a seed of its own: a network that began as one of the runs would be its kin
    control = Graph(build(architecture, preprocessing=networks.preprocessing, seed=max(seed, other) + 1))
    control.model.to(networks.device)
    provenance = Provenance(control.model, seed=seed)
    for layer in layers:  # before minutes of training
        control.node(layer)
    runs = {n: networks.trained("network", architecture, replace(recipe, seed=n)) for n in (seed, other)}
    deconvnets = [Deconvnet(run.model) for run in runs.values()]
    first, second = (deconvnet.graph for deconvnet in deconvnets)
    settings: Any = {"batch_size": batch_size, "workers": workers, "progress": progress}
    matrices = {
        "trained": correlations(first, second, data, layers, **settings),
        "untrained": correlations(first, control, data, layers, **settings),
        "shuffled": correlations(first, second, data, layers, shuffle_seed=seed, **settings),
    }
    tops = [scan(graph, data, layers, k, **settings) for graph in (first, second)]

    compared, curves, lines = {}, {}, []
    for layer in layers:
        pair = [top[layer] for top in tops]
        compared[layer], curves[layer] = compare({what: by_layer[layer] for what, by_layer in matrices.items()}, pair)
        if not compared[layer]["pairs"]:
            raise InputError(
                f"{layer}: no two maps that are ever above 0 are matched; have the networks learnt at all?"
            )
        lines.append(
            _line(layer, deconvnets, data, pair, compared[layer]["pairs"], list(runs), networks.preprocessing, quantile)
        )
    count = tops[0].images
    ours = {
        "layers": compared,
        "images": count,
        "shared_by_chance": k * k / count,
        "validation_error": {str(n): run.history[-1].get("validation_error") for n, run in runs.items()},
    }
    kind = type(control.model).__name__
    description = {
        "model": kind,
        "layers": layers,
        "seeds": list(runs),
        "k": k,
        "alike": ALIKE,
        "recipe": asdict(recipe),
        "dataset": type(data).__name__,
    }
    note = (
        f"{kind}, trained twice (seeds {seed} and {other}), {count:,} images.  Pairs of feature maps, "
        f"matched one to one; shown are maps above 0 on {k} images or more, by their {k} strongest activations: "
        "projections left (of the first convolution, the filter), image patches right.  Curves: all maps of the first "
        "run that are not dead."
    )
    with results(out) as folder:
        figure = draw(lines, curves, width, note)
        figure.savefig(folder / "figure.png", dpi=DPI)
        figure.savefig(folder / "figure.pdf", dpi=DPI)
        words = f"{_table(ours, k)}\n\n{answer(compared)}"
        (folder / "table.md").write_text(words + "\n", encoding="utf-8")
        result = write_result(folder, "seeds", dict.fromkeys(ours), ours, description, provenance)
    print(words)
    return result


def compare(matrices: Mapping[str, Tensor], tops: Sequence[TopActivations]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Numbers of one layer, and the correlations of the first network's live maps with their partners, by curve.

    matrices: the correlations (C, C) with each other network. A pair is [map, map, correlation, images among the
    strongest of both], by falling correlation.
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


def _table(ours: Mapping[str, Any], k: int) -> str:
    head = [
        "layer",
        "maps",
        "live",
        "matched: mean",
        "median",
        f"above {ALIKE}",
        "best partner: mean",
        "untrained: mean",
        "median",
        f"above {ALIKE}",
        "shuffled: mean",
        f"shared of {k} images",
        "by chance",
    ]
    rows = []
    for layer, n in ours["layers"].items():
        matched, best, untrained, shuffled = (n[what] for what in ("trained", "best", "untrained", "shuffled"))
        cells = [matched["mean"], matched["median"], matched["alike"], best["mean"]]
        cells += [untrained["mean"], untrained["median"], untrained["alike"], shuffled["mean"]]
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


@dataclass
class Line:
    """What is drawn of one layer: for each shown pair its caption, and each run's map."""

    title: str
    pairs: list[tuple[str, list[Panel]]]


def _line(
    layer: str,
    deconvnets: Sequence[Deconvnet],
    data: Any,
    tops: Sequence[TopActivations],
    pairs: Sequence[Sequence[Any]],
    seeds: Sequence[int],
    preprocessing: Preprocessing,
    quantile: float,
) -> Line:
    k = tops[0].value.shape[1]
    field = receptive_field(deconvnets[0].graph, layer, tuple(data[0][0].shape[-2:]))  # type: ignore[arg-type]
    often = [top.value[:, -1] > 0 for top in tops]
    pairs = [p for p in pairs if often[0][p[0]] and often[1][p[1]]] or pairs  # one image in common is no likeness
    line = Line(f"{layer}, patches of {field.size[0]} x {field.size[1]} pixels", [])
    for name, rank in SHOWN.items():
        *maps, correlation, shared = pairs[round(rank * (len(pairs) - 1))]
        panels = [
            panel_of(f"seed {n}, map {m}", deconvnet, data, layer, top, [m], 1, field, preprocessing, "patch", quantile)
            for n, m, deconvnet, top in zip(seeds, maps, deconvnets, tops, strict=True)
        ]
        line.pairs.append(
            (f"{name}: correlation {round(correlation, 2) + 0.0:.2f}, {shared} of {k} images shared", panels)
        )
    return line


def draw(lines: Sequence[Line], curves: Mapping[str, Mapping[str, Tensor]], width: int, note: str) -> Figure:
    """The figure: a line of pairs for each layer, the two runs side by side; below them the sorted correlations."""
    side = lines[0].pairs[0][1][0].side
    room = (width - 2 * MARGIN - (len(SHOWN) - 1) * PAIR_GAP) // len(SHOWN)  # for a pair
    block = ((room - HALF_GAP) // 2 - MAP_GAP) // 2
    tile = (block - side * TILE_GAP) // side
    block = side * (tile + TILE_GAP) - TILE_GAP
    notes = textwrap.wrap(note, (width - 2 * MARGIN) // 11)
    height = 2 * MARGIN + len(lines) * (HEAD + block + LAYER_GAP) + PLOTS + 24 * len(notes)
    figure = page(width, height)
    y = MARGIN
    for line in lines:
        text(figure, MARGIN, y + 18, line.title, weight="bold", size=9)
        for n, (caption, panels) in enumerate(line.pairs):
            x = MARGIN + n * (room + PAIR_GAP)
            text(figure, x, y + 54, caption, size=7.5)
            for panel in panels:
                text(figure, x, y + 82, panel.title, size=6.5, color="0.35")
                for image in panel.draw(tile):
                    place(figure, image, x, y + HEAD)
                    x += block + MAP_GAP
                x += HALF_GAP - MAP_GAP
        y += HEAD + block + LAYER_GAP
    _plots(figure, curves, width, y)
    for n, line_of_note in enumerate(notes):
        text(figure, MARGIN, y + PLOTS + 24 * n + 12, line_of_note, size=6.5, color="0.35")
    return figure


def _plots(figure: Figure, curves: Mapping[str, Mapping[str, Tensor]], width: int, y: int) -> None:
    """Sorted correlations of each layer in its own axes, from y pixels down."""
    text(figure, MARGIN, y + 18, "How like its partner is each map?", weight="bold", size=9)
    left, top, gap = MARGIN + 70, y + 74, 34
    wide, high = (width - left - MARGIN + gap) // len(curves) - gap, PLOTS - 170
    lowest = min(float(values.min()) for sorts in curves.values() for values in sorts.values())
    for n, (layer, sorts) in enumerate(curves.items()):
        x = left + n * (wide + gap)
        axes = figure.add_axes(frame(figure, x, top, wide, high))
        for what, (label, style) in CURVES.items():
            values = sorts[what].sort(descending=True).values
            axes.plot(torch.linspace(0, 100, len(values)), values, label=label, lw=1.2, **style)
        axes.set(xlim=(0, 100), ylim=(min(lowest, -0.05) - 0.05, 1.02), yticks=(0, 0.5, 1), xticks=(0, 50, 100))
        axes.set_title(layer, fontsize=7.5, pad=3)
        axes.tick_params(labelsize=6, labelleft=n == 0, length=2)
        axes.grid(color="0.9", lw=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        if not n:
            axes.set_ylabel("correlation", fontsize=6.5)
            axes.set_xlabel("live maps of the first run, sorted, %", fontsize=6.5)
    corner = frame(figure, width - MARGIN, y, 0, 0)[:2]
    handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="upper right", bbox_to_anchor=corner, ncols=4, fontsize=6.5, frameon=False)
