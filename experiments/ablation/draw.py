"""The ablation's figures: each task by layer, from the trials alone, and what the pictures of some units show."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from experiments.ablation.analysis import BASELINES, CHANCE, CONTROL, PICTURE, Compared, analysed, difference
from experiments.ablation.report import pairs_of, sizes, squares
from experiments.ablation.units import FIELD, Units
from experiments.output.pages import LINE, Page, caption, enlarged, hatched, plots
from zfnet.analysis.statistics import MARGIN, Contrast
from zfnet.data.preprocessing import Preprocessing
from zfnet.rendering import GREY

COLUMNS = 5  # layers beside each other
PLAIN = "projection, plain"
GAP, EXAMPLES = 5, 2  # pixels between pictures; units of each layer whose pictures are drawn
DASHED, DOTTED = (0, (4, 1.5)), (0, (1, 1.5))
KEPT = (FIELD, PICTURE, "guided x field", CONTROL, "random")  # masks of sufficiency and necessity that are drawn
SYMBOLS, STRATA = "osDX", "v^<>"  # of conditions; of strata, from the smallest area
QUESTIONS = {
    "A1": "Which of two squares lowers the unit more? A picture of the image itself answers.",
    "A2": "Which of two squares lowers the unit more? Pictures of the nine strongest other images answer, by a judge.",
    "B": "Which of two images activates the map more? Pictures of nine strong and nine weak images answer, by a judge.",
}


class Mark(NamedTuple):
    """How a picture, or a rule, is drawn; what is multiplied by the field is a solid line with filled points."""

    number: int | None  # of the style's colours; None: grey
    point: str
    line: Any = "-"
    fill: Any = "full"

    def style(self, lines: Sequence[str]) -> dict[str, Any]:
        colour = "0.55" if self.number is None else lines[self.number]
        return {"color": colour, "linestyle": self.line, "marker": self.point, "fillstyle": self.fill}


MARKS = {
    FIELD: Mark(7, "s"),
    "centre": Mark(None, "v"),
    "projection": Mark(0, "o", DASHED, "none"),
    "projection x field": Mark(0, "o"),
    "guided": Mark(1, "^", DASHED, "none"),
    "guided x field": Mark(1, "^"),
    "gradient": Mark(2, "D", DASHED, "none"),
    "gradient x field": Mark(2, "D"),
    "shuffled x field": Mark(3, "X"),
    "another map x field": Mark(4, "P"),
    "edges x field": Mark(5, "v"),
    "noise x field": Mark(None, "D"),
}


def draw_choices(ours: Mapping[str, Any], task: str, lines: Sequence[str], width: float) -> Figure:
    """The share of right answers of every picture, and its difference from the baseline, by layer.

    Args:
        ours: as for `report.report`.
        task: "A1", "A2" or "B".
        lines: the style's colours.
        width: inches.
    """
    conditions = analysed(ours, [task])["compared"]
    names = list(dict.fromkeys(name for tasks in conditions.values() for of in tasks.values() for name in of.means))
    rows = [(block, baseline) for block in blocks(ours) for baseline in ("", BASELINES[task])]
    figure = plots(1.1 + len(rows) * (0.45 + (0.12 + 0.025 * len(conditions)) * len(names)), width)
    axes = figure.subplots(len(rows), len(rows[0][0]), squeeze=False, sharex="row", sharey=True)
    for line, (block, baseline) in zip(axes, rows, strict=True):
        for axis, layer in panels(line, block):
            axis.axvline(0 if baseline else CHANCE, color="0.4", linewidth=0.7, linestyle=DOTTED, zorder=1)
            axis.set_xlabel(f"minus {baseline}" if baseline else "share right")
            axis.set_title("" if baseline else layer, size=7)
            axis.tick_params(axis="y", length=0)
            if baseline:
                axis.axvspan(-MARGIN, MARGIN, color="0.9", linewidth=0, zorder=0)
            for n, (condition, tasks) in enumerate(conditions.items()):
                offset = 0.7 * ((n + 0.5) / len(conditions) - 0.5)
                style = {"color": lines[n], "marker": SYMBOLS[n], "label": label(condition)}
                if layer in tasks:
                    shares(axis, tasks[layer], names, baseline, offset, style)
                if layer in tasks and not n:
                    strata(axis, tasks[layer], names, baseline, offset)
    axes[0, 0].set(yticks=range(len(names)), yticklabels=names, ylim=(max(len(names), 1) - 0.5, -0.5))
    for axis in axes[:, 0]:
        for words in axis.get_yticklabels():
            words.set_fontweight("bold" if words.get_text() == PICTURE else "normal")
    if len(conditions) > 1:
        legend(figure, axes)
    name, first = next(iter(conditions.items()), ("", {}))
    words = (
        f"{QUESTIONS[task]} Means over maps and 95 % intervals; dotted: chance, or no difference; grey: ±{MARGIN:g}."
    )
    if len(conditions) > 1:
        words += f" The numbers of trials are those of {label(name)}."
    if any(of.strata for of in first.values()):
        words += (
            f" Open triangles, of {label(name)}: means of the maps that see the smallest area (down) and the next "
            "larger one (up), without their intervals."
        )
    caption(figure, f"{source(ours, first)} {words}")
    return figure


def shares(
    axis: Axes, of: Compared, names: Sequence[str], baseline: str, offset: float, style: Mapping[str, Any]
) -> None:
    """The estimates of one layer, a row for each picture."""
    for y, name in enumerate(names):
        if contrast := beyond(of, name, baseline):
            ends = [[contrast.mean - contrast.low], [contrast.high - contrast.mean]]
            axis.errorbar(contrast.mean, y + offset, xerr=ends, markersize=3, linewidth=0.8, linestyle="", **style)


def strata(axis: Axes, of: Compared, names: Sequence[str], baseline: str, offset: float) -> None:
    """The means of the maps that see as much, as open symbols."""
    for symbol, part in zip(STRATA, of.strata.values(), strict=False):
        for y, name in enumerate(names):
            if contrast := beyond(part, name, baseline):
                mean = contrast.mean
                axis.plot(
                    mean, y + offset, symbol, color="black", markersize=3.5, fillstyle="none", markeredgewidth=0.5
                )


def beyond(of: Compared, name: str, baseline: str) -> Contrast | None:
    """A picture's mean, or its difference from the baseline."""
    return of.differences.get(difference(name, baseline)) if baseline else of.means.get(name)


def draw_sanity(ours: Mapping[str, Any], lines: Sequence[str], width: float) -> Figure:
    """Similarity of a picture to itself after one or more layers are shuffled, by layer."""
    estimates = analysed(ours, ["sanity"])["sanity"]
    hows = {"cascade": "shuffled down to a part", "alone": "one part shuffled"}
    rows = [(block, how) for block in blocks(ours) for how in hows]
    figure = plots(1.2 + 1.35 * len(rows), width)
    axes = figure.subplots(len(rows), len(rows[0][0]), squeeze=False, sharey=True)
    for line, (block, how) in zip(axes, rows, strict=True):
        line[0].set_ylabel(f"{hows[how]}:\nrank correlation")
        for axis, layer in panels(line, block):
            axis.axhline(0, color="0.4", linewidth=0.7, linestyle=DOTTED, zorder=0)
            axis.set_title(layer if how == "cascade" else "", size=7)
            rules = {rule: of.get(how, {}) for rule, of in estimates.get(layer, {}).items()}
            most = max(map(len, rules.values()), default=0)
            for rule, steps in rules.items():
                style = MARKS[rule].style(lines) | {"fillstyle": "full", "linestyle": "-"}
                at = range(1, len(steps) + 1)
                curve(axis, at, [of["partial"].mean for of in steps.values()], style, f"{rule}, given the field")
                if rule == "projection":
                    style |= {"linestyle": DASHED, "fillstyle": "none"}
                    curve(axis, at, [of["similarity"].mean for of in steps.values()], style, PLAIN)
            axis.set_xlim(0.5, max(most, 1) + 0.5)
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
            axis.set_xlabel("part of the network" if how == "alone" else "")
    legend(figure, axes)
    words = (
        "Similarity of energies to the picture of the trained network, given the mean field of the layer's other "
        "units; for the projection also without the field. Weights are shuffled in at most five parts of the "
        "network, counted from the unit's own layer, 1, down to the image. Means over maps and 95 % intervals."
    )
    caption(figure, f"{ours['network']}, {ours['images']:,} images. {pairs_of(estimates)} {words}")
    return figure


def draw_sufficiency(ours: Mapping[str, Any], lines: Sequence[str], width: float) -> Figure:
    """The share of the activation that remains, and that is lost, by the share of pixels, layer and fill."""
    kinds = {"sufficiency": "remaining", "necessity": "lost"}
    estimates = analysed(ours, list(kinds))["compared"]
    curves = list(dict.fromkeys(tuple(name.split("/")[:2]) for name in estimates)) or [("sufficiency", "grey")]
    rows = [(block, kind, fill) for block in blocks(ours) for kind, fill in curves]
    figure = plots(1.2 + 1.25 * len(rows), width)
    axes = figure.subplots(len(rows), len(rows[0][0]), squeeze=False, sharey="row")
    for row, (line, (block, kind, fill)) in enumerate(zip(axes, rows, strict=True)):
        line[0].set_ylabel(f"activation {kinds[kind]},\n{fill}")
        of_share = {name.split("/")[2]: of for name, of in estimates.items() if name.startswith(f"{kind}/{fill}/")}
        for axis, layer in panels(line, block):
            means = {n: tasks[layer].means for n, tasks in enumerate(of_share.values()) if layer in tasks}
            for name in KEPT:
                style = MARKS.get(name, Mark(None, ".", DOTTED)).style(lines)
                curve(axis, list(means), [of.get(name) for of in means.values()], style, name)
            axis.set_xticks(range(len(of_share)), list(of_share))
            axis.tick_params(labelbottom=row % len(curves) == len(curves) - 1)
            axis.set_title(layer if row % len(curves) == 0 else "", size=7)
            axis.set_xlabel("pixels, %" if row % len(curves) == len(curves) - 1 else "")
    legend(figure, axes)
    words = (
        "Remaining: a mask's pixels alone are shown. Lost: they are removed. What is not shown is filled as the rows "
        "say. Means over maps and 95 % intervals; table.md has the other masks."
    )
    caption(figure, f"{source(ours, next(iter(estimates.values()), {}))} {words}")
    return figure


def curve(
    axis: Axes, x: Sequence[float], estimates: Sequence[Contrast | None], style: Mapping[str, Any], name: str
) -> None:
    """Means and intervals over x."""
    known = [(at, *estimate[:3]) for at, estimate in zip(x, estimates, strict=True) if estimate]
    if known:
        at, mean, low, high = zip(*known, strict=True)
        ends = [[m - e for m, e in zip(mean, low, strict=True)], [e - m for m, e in zip(mean, high, strict=True)]]
        axis.errorbar(at, mean, ends, label=name, markersize=3, linewidth=0.9, elinewidth=0.6, **style)


def legend(figure: Figure, axes: Any) -> None:
    """The names of all lines, once."""
    handles = {name: h for axis in axes.flat for h, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=5, frameon=False)


def blocks(ours: Mapping[str, Any]) -> list[list[str]]:
    """The layers in rows of at most COLUMNS."""
    layers = list(ours["layers"])
    return [layers[n : n + COLUMNS] for n in range(0, len(layers), COLUMNS)]


def panels(line: Sequence[Axes], block: Sequence[str]) -> list[tuple[Axes, str]]:
    """The axes of the layers of a row; what is left of the row stays empty."""
    for axis in line[len(block) :]:
        axis.axis("off")
    return list(zip(line, block, strict=False))


def label(task: str) -> str:
    """The label of a task in legends: its squares, or its queries."""
    kind, _, condition = task.partition("/")
    return f"{condition} queries" if kind == "B" else squares(task)


def source(ours: Mapping[str, Any], tasks: Mapping[str, Compared]) -> str:
    return f"{ours['network']}, {ours['images']:,} images. {sizes(tasks) if tasks else 'There is no trial.'}"


def tiled(plane: Tensor, size: Sequence[int], tile: int, interpolation: str = "bicubic") -> Tensor:
    """The part of a plane (..., S, S) that a unit sees, as a tile (..., tile, tile)."""
    seen = plane[..., : size[0], : size[1]].float()
    return enlarged(seen.reshape(1, -1, *seen.shape[-2:]), (tile, tile), interpolation).view(
        *seen.shape[:-2], tile, tile
    )


def draw_pictures(page: Page, examples: Mapping[str, tuple[Units, Mapping[str, Tensor]]]) -> Figure:
    """Rows: two units of each layer; columns: its crop, and the pixels that every mask shows.

    Args:
        page: an empty page.
        examples: by layer, units and their masks (M, S, S) by picture; see `Units.masks`.
    """
    names = ["crop", *dict.fromkeys(name for _, masks in examples.values() for name in masks)]
    tile = (page.columns + GAP) // len(names) - GAP
    for column, name in enumerate(names):
        page.text(column * (tile + GAP) + tile / 2, page.y + 1.5 * LINE, textwrap.fill(name, 11), ha="center")
    page.y += 3 * LINE
    for layer, (units, masks) in examples.items():
        shown = range(min(EXAMPLES, len(units.maps)))
        page.text(0, page.y + 0.8 * LINE, f"{layer}: maps {', '.join(str(int(units.maps[n])) for n in shown)}")
        page.y += round(1.4 * LINE)
        pixels = Preprocessing.of(units.deconvnet.model).pixels(units.crops)
        for n in shown:
            size = units.strata[n].tolist(), tile
            crop, beyond = tiled(pixels[n], *size).clamp(0, 1), tiled(~units.inside[n], *size, "nearest") > 0.5
            for column, name in enumerate(names):
                if name in masks:
                    hidden = tiled(~masks[name][n], *size, "nearest") > 0.5
                    page.image(hatched(crop.masked_fill(hidden, GREY), beyond), column * (tile + GAP), page.y)
            page.image(hatched(crop, beyond), 0, page.y)
            page.y += tile + GAP
    page.caption(
        "Units, a row for each: what the unit sees, and the pixels of it that each mask shows; the others are grey. "
        "Hatched: outside the image. All are resized to one size (bicubic)."
    )
    return page.done()
