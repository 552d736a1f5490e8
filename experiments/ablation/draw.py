"""The ablation's figures: what is left of activations, measures and likeness by layer, and the pictures themselves."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

from experiments.ablation.measure import EXAMPLES, MEASURES, SIGNALS, Measurements, Protocol, Sample
from experiments.ablation.report import intervals, label, source
from experiments.output.feature_maps import Look
from experiments.output.pages import LINE, Page, caption, enlarged, hatched, plots
from zfnet.analysis.faithfulness import PICTURES, SHARE, strongest
from zfnet.analysis.statistics import Estimate
from zfnet.rendering import GREY

Rows = Mapping[str, Mapping[str, Sequence[Estimate | None]]]  # by title, and by picture: an estimate for each layer

COLUMNS = 5  # layers beside each other
GAP = 5  # pixels between pictures
CURVES = (  # rows: which curves, whether of the crop's pixels or of a signal's own, and what they are
    ("kept", False, "signal's strongest\npixels shown"),
    ("kept", True, "crop's strongest\npixels shown"),
    ("removed", True, "crop's strongest\npixels removed"),
)
OTHERS = {  # pictures that a projection may be like
    "all shuffled": "the same unit in a network whose weights are shuffled",
    "another map, same place": "another map at the same place",
    "same map, another image": "the same map in another image",
    "edges of the crop": "edges of the crop",
    "nearness of the centre": "nearness of the centre",
}


class Mark(NamedTuple):
    """How pictures are drawn in plots, by the weight that orders their pixels."""

    words: str
    number: int | None  # of the style's colours; None: grey
    line: Any
    point: str

    def colour(self, lines: Sequence[str]) -> str:
        return "0.55" if self.number is None else lines[self.number]


MARKS = {
    "square": Mark("square from the centre", 7, "-", "s"),
    "disc": Mark("disc from the centre", 3, (0, (2, 1)), "v"),
    "projection": Mark("projection", 0, "-", "o"),
    "gradient": Mark("gradient", 2, (0, (4, 1.5)), "D"),
    "guided": Mark("guided back-propagation", 1, (0, (6, 1.5, 1, 1.5)), "^"),
    "random": Mark("random", None, (0, (1, 1)), "X"),
    "edges": Mark("edges", 4, (0, (3, 1, 1, 1, 1, 1)), "P"),
}


def draw_curves(measured: Measurements, protocol: Protocol, lines: Sequence[str], width: float) -> Figure:
    """What is left of the activation by the share of pixels that are shown, or removed; a column for each layer."""
    layers = list(measured.layers.items())
    blocks = [layers[n : n + COLUMNS] for n in range(0, len(layers), COLUMNS)]
    rows = [(block, *curves) for block in blocks for curves in CURVES]
    figure = plots(1.1 + 1.25 * len(rows), width)
    axes = figure.subplots(len(rows), len(blocks[0]), squeeze=False, sharey="row")
    for line, (block, key, of_crop, words) in zip(axes, rows, strict=True):
        line[0].set_ylabel(f"activation left:\n{words}")
        for axis in line[len(block) :]:
            axis.axis("off")
        for axis, (layer, result) in zip(line, block, strict=False):
            axis.axhline(1, color="0.8", linewidth=0.6, zorder=0)
            for name, (content, weight, _) in PICTURES.items():
                if name == "crop" or (name != "shrunk crop" and of_crop == (content == "crop")):
                    style = {"color": MARKS[weight].colour(lines), "linestyle": MARKS[weight].line}
                    axis.plot(protocol.shares, result.curves[name][key], linewidth=1.1, **style)
            if key == "removed":
                axis.set_xlabel("pixels, %")
            else:
                axis.tick_params(labelbottom=False)
            if not of_crop:
                axis.set_title(f"{layer}\n{' x '.join(map(str, result.size))} pixels", size=7)
    for mark in MARKS.values():
        axes[0, 0].plot([], [], color=mark.colour(lines), linestyle=mark.line, label=mark.words)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    words = (
        f"Means over units; pixels are ordered as the legend says, and removed ones become {protocol.fill}. Top row: "
        "signals are shown to the network at a figure's contrast, so that more than 1 may be left; the crop, from its "
        "centre outwards, is there for comparison."
    )
    caption(figure, f"{source(measured, protocol)} {words}")
    return figure


def draw_measures(measured: Measurements, protocol: Protocol, lines: Sequence[str], width: float) -> Figure:
    """Every measure of every picture, layer by layer."""
    results = measured.layers.values()
    rows = {
        f"{m}: {MEASURES[m]}": {p: [r.measures[p].get(m) for r in results] for p in PICTURES} for m in measured.measures
    }
    words = f"Removed pixels become {protocol.fill}. Filled: pixels of the crop; open: a signal; dotted line: chance."
    words = f"{source(measured, protocol)} {words} Larger is better. {intervals(protocol)}"
    figure = by_layer(rows, list(measured.layers), lines, (width, 0.93), words)
    for axis, measure in zip(figure.axes, measured.measures, strict=True):
        if measure in ("pixels", "network"):
            for n, result in enumerate(results):
                axis.hlines(result.chance, n - 0.5, n + 0.5, color="0.4", linewidth=0.6, linestyle=":", zorder=0)
    return figure


def draw_likeness(measured: Measurements, protocol: Protocol, lines: Sequence[str], width: float) -> Figure:
    """How like each signal is what it should not be like, layer by layer."""
    results = measured.layers.values()
    rows = {words: {s: [r.likeness[s].get(other) for r in results] for s in SIGNALS} for other, words in OTHERS.items()}
    words = (
        f"Rank correlation of the energies of two pictures; no point: one of them is constant. {intervals(protocol)}"
    )
    return by_layer(rows, list(measured.layers), lines, (width, 0.75), f"{source(measured, protocol)} {words}")


def by_layer(rows: Rows, layers: Sequence[str], lines: Sequence[str], size: tuple[float, float], words: str) -> Figure:
    """Rows of points with intervals, in the pictures' marks; size: of a row, inches."""
    figure = plots(1 + size[1] * len(rows), size[0])
    axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, pictures) in zip(axes, rows.items(), strict=True):
        for n, (name, estimates) in enumerate(pictures.items()):
            mark, content = MARKS[PICTURES[name].weight], PICTURES[name].content
            fill = "bottom" if name == "shrunk crop" else "full" if content == "crop" else "none"
            style = {"color": mark.colour(lines), "fmt": mark.point, "markersize": 4, "linewidth": 0.8}
            points = [(i + 0.84 * ((n + 0.5) / len(pictures) - 0.5), *e[:3]) for i, e in enumerate(estimates) if e]
            x, mean, low, high = torch.tensor(points).reshape(-1, 4).T
            bars = torch.stack([mean - low, high - mean]).clamp(min=0)
            axis.errorbar(x, mean, bars, fillstyle=fill, label=label(name) if axis is axes[0] else None, **style)
        for n in range(1, len(layers)):
            axis.axvline(n - 0.5, color="0.85", linewidth=0.6, zorder=0)
        axis.set_title(title, loc="left", size=7)
        axis.set_xticks(range(len(layers)), layers)
        axis.set(xlim=(-0.5, len(layers) - 0.5), ymargin=0.15)
        axis.tick_params(axis="x", length=0)
    figure.legend(loc="outside upper center", ncols=6, frameon=False)
    caption(figure, words)
    return figure


def draw_pictures(page: Page, measured: Measurements, samples: Mapping[str, Sample], look: Look) -> Figure:
    """Rows: the units of each sample; columns: what is shown of them."""
    tile = (page.columns + GAP) // len(PICTURES) - GAP
    for column, name in enumerate(PICTURES):
        page.text(column * (tile + GAP) + tile / 2, page.y + LINE, textwrap.fill(label(name), 10), ha="center")
    page.y += 2 * LINE
    for layer, sample in samples.items():
        rows, columns = sample.field.size
        maps = ", ".join(map(str, sample.maps.tolist()))
        words = f"{layer}: maps {maps}; {rows} x {columns} pixels, enlarged {tile / columns:.2g} times"
        page.text(0, page.y + 0.8 * LINE, words)
        page.y += round(1.4 * LINE)
        for tiles in tiles_of(sample, look, (tile, tile)):
            for column, picture in enumerate(tiles):
                page.image(picture, column * (tile + GAP), page.y)
            page.y += tile + GAP
    page.caption(
        f"{measured.network}, {measured.images:,} images: of each layer {EXAMPLES} of the maps that were drawn by seed "
        f"{sample.protocol.seed}, a row for each, and of each map the strongest activation. {look.words} Masked crops "
        f"and the four pictures on the right show {SHARE:.0f}% of the crop's pixels; the others, removed, are grey. "
        f"Tiles are enlarged ({look.interpolation}) as said above them. Hatched: outside the image."
    )
    return page.done()


def tiles_of(sample: Sample, look: Look, size: tuple[int, int]) -> torch.Tensor:
    """Every picture of every unit: (M, pictures, 3, *size)."""
    photograph = enlarged(sample.preprocessing.pixels(sample.patches.crops), size, look.interpolation).clamp(0, 1)
    beyond = enlarged((~sample.inside)[:, None].float(), size, "nearest")[:, 0] > 0.5
    tiles = []
    for content, weight, share in PICTURES.values():
        signal = sample.signals.get(content)
        whole = photograph if signal is None else look.pictures(sample.preprocessing.rgb(signal), size)
        shown = strongest(sample.ranks(weight, sample.signals), sample.inside, share)
        hidden = enlarged((~shown)[:, None].float(), size, "nearest") > 0.5  # whole pixels, however large
        pictures = zip(whole.masked_fill(hidden, GREY), beyond, strict=True)
        tiles.append(torch.stack([hatched(picture, where) for picture, where in pictures]))
    return torch.stack(tiles, 1).cpu()
