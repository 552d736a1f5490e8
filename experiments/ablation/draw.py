"""The ablation's figures: what is left of activations, measures and likeness by layer, and the pictures themselves."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

from experiments.ablation.measure import MEASURES, SIGNALS, Measurements, Protocol, Sample
from experiments.ablation.report import OTHERS, label, source
from experiments.output.feature_maps import Look
from experiments.output.pages import LINE, Page, caption, enlarged, hatched, plots
from zfnet.analysis.faithfulness import PICTURES, SHARE, Estimate, strongest
from zfnet.rendering import GREY

COLUMNS = 5  # layers beside each other
GAP = 5  # pixels between pictures
CURVES = (  # rows: which curves, of the crop's pixels or of the signal's own, and what they are
    ("kept", False, "activation left:\nsignal's strongest\npixels shown"),
    ("kept", True, "activation left:\ncrop's strongest\npixels shown"),
    ("removed", True, "activation left:\ncrop's strongest\npixels removed"),
)


class Mark(NamedTuple):
    """How a picture is drawn in plots, by the weight that orders its pixels."""

    words: str
    colour: int | str  # the number of one of the style's
    line: Any
    point: str

    def style(self, lines: Sequence[str]) -> dict[str, Any]:
        return {"color": lines[self.colour] if isinstance(self.colour, int) else self.colour}


MARKS = {
    "square": Mark("nearness of the centre (crop)", 7, "-", "s"),
    "projection": Mark("projection", 0, "-", "o"),
    "gradient": Mark("gradient", 2, (0, (4, 1.5)), "D"),
    "guided": Mark("guided back-propagation", 1, (0, (6, 1.5, 1, 1.5)), "^"),
    "disc": Mark("nearness, as a disc", 3, (0, (2, 1)), "v"),
    "random": Mark("random", "0.55", (0, (1, 1)), "X"),
    "edges": Mark("edges", 4, (0, (3, 1, 1, 1, 1, 1)), "P"),
}


def draw_curves(measured: Measurements, protocol: Protocol, lines: Sequence[str], width: float) -> Figure:
    """What is left of the activation by the share of pixels that are shown, or removed; a column for each layer."""
    layers = list(measured.layers.items())
    blocks = [layers[n : n + COLUMNS] for n in range(0, len(layers), COLUMNS)]
    figure = plots(1 + 3.9 * len(blocks), width)
    axes = figure.subplots(len(CURVES) * len(blocks), len(blocks[0]), squeeze=False, sharex=True, sharey="row")
    rows = [(block, *curves) for block in blocks for curves in CURVES]
    for row, (block, key, of_crop, words) in zip(axes, rows, strict=True):
        row[0].set_ylabel(words)
        for axis in row[len(block) :]:
            axis.axis("off")
        for axis, (layer, result) in zip(row, block, strict=False):
            axis.axhline(1, color="0.8", linewidth=0.6, zorder=0)
            for name, picture in PICTURES.items():
                if name == "crop" or (name != "shrunk crop" and of_crop == (picture.content == "crop")):
                    mark = MARKS[picture.weight]
                    axis.plot(
                        protocol.shares,
                        result.curves[name][key],
                        linestyle=mark.line,
                        linewidth=1.1,
                        **mark.style(lines),
                    )
            if key == "kept" and not of_crop:
                axis.set_title(f"{layer}\n{' x '.join(map(str, result.size))} pixels", size=7)
    for axis in axes[-1]:
        axis.set_xlabel("pixels, %")
    handles = [axes[0, 0].plot([], [], linestyle=m.line, label=m.words, **m.style(lines))[0] for m in MARKS.values()]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    caption(
        figure,
        f"{source(measured, protocol)} Lines: means over units; their pixels are ordered by what the legend says. "
        "Signals are shown to the network at a figure's contrast, so that more than 1 may be left.",
    )
    return figure


def draw_measures(measured: Measurements, protocol: Protocol, lines: Sequence[str], width: float) -> Figure:
    """Every measure of every picture, layer by layer."""
    results = measured.layers.values()
    rows = {m: {p: [r.measures[p].get(m) for r in results] for p in PICTURES} for m in measured.measures}
    figure = by_layer({f"{m}: {MEASURES[m]}": row for m, row in rows.items()}, list(measured.layers), lines, width)
    for axis, measure in zip(figure.axes, rows, strict=True):
        if measure in ("pixels", "network"):
            for n, result in enumerate(results):
                axis.hlines(result.chance, n - 0.5, n + 0.5, color="0.4", linewidth=0.6, linestyle=":", zorder=0)
    words = "Larger is better. Points: means over maps; bars: intervals; open: a signal; dotted: by chance."
    caption(figure, f"{source(measured, protocol)} {words}")
    return figure


def draw_likeness(measured: Measurements, protocol: Protocol, lines: Sequence[str], width: float) -> Figure:
    """How like each signal is what it should not be like, layer by layer."""
    results = measured.layers.values()
    rows = {other: {s: [r.likeness[s].get(other) for r in results] for s in SIGNALS} for other in OTHERS}
    figure = by_layer(rows, list(measured.layers), lines, width)
    words = "Rank correlation of the energies of two pictures. Points: means over maps; bars: intervals."
    caption(figure, f"{source(measured, protocol)} {words}")
    return figure


def by_layer(
    rows: Mapping[str, Mapping[str, Sequence[Estimate | None]]],
    layers: Sequence[str],
    lines: Sequence[str],
    width: float,
) -> Figure:
    """Rows of points with intervals: of each picture, in its mark, an estimate for each layer."""
    figure = plots(1 + 0.93 * len(rows), width)
    axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    handles = {}
    for axis, (title, pictures) in zip(axes, rows.items(), strict=True):
        for n, (name, estimates) in enumerate(pictures.items()):
            picture, x = PICTURES[name], 0.84 * ((n + 0.5) / len(pictures) - 0.5)
            fill = "bottom" if name == "shrunk crop" else "full" if picture.content == "crop" else "none"
            style = {"fmt": MARKS[picture.weight].point, "fillstyle": fill, "markersize": 4, "linewidth": 0.8}
            points = [(i + x, e, e.mean - e.low, e.high - e.mean) for i, e in enumerate(estimates) if e]
            xs, means, below, above = (
                zip(*[(x, e.mean, max(b, 0), max(a, 0)) for x, e, b, a in points], strict=True)
                if points
                else ((), (), (), ())
            )
            handles[name] = axis.errorbar(
                xs, means, [below, above], label=label(name), **style, **MARKS[picture.weight].style(lines)
            )
        for n in range(1, len(layers)):
            axis.axvline(n - 0.5, color="0.85", linewidth=0.6, zorder=0)
        axis.set_title(title, loc="left", size=7)
        axis.set_xticks(range(len(layers)), layers)
        axis.set_xlim(-0.5, len(layers) - 0.5)
        axis.tick_params(axis="x", length=0)
    figure.legend(handles=list(handles.values()), loc="outside upper center", ncols=6, frameon=False)
    return figure


def draw_pictures(page: Page, measured: Measurements, samples: Mapping[str, Sample], look: Look) -> Figure:
    """Rows: the units of each sample; columns: what is shown of them."""
    tile = (page.columns + GAP) // len(PICTURES) - GAP
    for column, name in enumerate(PICTURES):
        words = textwrap.fill(label(name), 10)
        page.text(column * (tile + GAP) + tile / 2, page.y + LINE, words, ha="center")
    page.y += 2 * LINE
    for layer, sample in samples.items():
        rows, columns = sample.field.size
        maps = ", ".join(map(str, sample.maps.tolist()))
        page.text(
            0,
            page.y + LINE / 2,
            f"{layer}: maps {maps}; {rows} x {columns} pixels, enlarged {tile / columns:.2g} times",
        )
        page.y += LINE
        for tiles in tiles_of(sample, look, tile):
            for column, picture in enumerate(tiles):
                page.image(picture, column * (tile + GAP), page.y)
            page.y += tile + GAP
    page.caption(
        f"{measured.network}, {measured.images:,} images; of each layer two of the maps that were drawn by seed, and the strongest activation of each. "
        f"{look.words} Crops that are masked, and those to their right, show {SHARE:.0f} % of the pixels: the others, which are removed, are grey. Tiles are enlarged ({look.interpolation}). "
        "Hatched: outside the image."
    )
    return page.done()


def tiles_of(sample: Sample, look: Look, tile: int) -> torch.Tensor:
    """Every picture of every unit: (M, pictures, 3, tile, tile)."""
    size = (tile, tile)
    preprocessing = sample.preprocessing
    photograph = enlarged(preprocessing.pixels(sample.patches.crops), size, look.interpolation).clamp(0, 1)
    beyond = enlarged((~sample.inside)[:, None].float(), size, "nearest")[:, 0] > 0.5
    tiles = []
    for picture in PICTURES.values():
        signal = sample.signals.get(picture.content)
        whole = photograph if signal is None else look.pictures(preprocessing.rgb(signal), size)
        shown = strongest(sample.ranks(picture.weight, sample.signals), sample.inside, picture.share)
        hidden = enlarged((~shown)[:, None].float(), size, "nearest") > 0.5  # whole pixels, however large
        tiles.append(
            torch.stack([hatched(*each) for each in zip(whole.masked_fill(hidden, GREY), beyond, strict=True)])
        )
    return torch.stack(tiles, 1).cpu()
