"""Figure 6: the visualisation as a debugger: filters and projections of three networks, trained in the same way.

The caption's sense: (a) first-layer filters without renormalisation, where one dominates; (b) those of Krizhevsky et
al.'s network, 11x11 with stride 4; (c) ours, 7x7 with stride 2; (d, e) projections of layer 2 of the latter two.
We add (f): the largest filter of (a) and (c) over training. Renormalisation acts once it reaches the limit.

What to look for: grey tiles in (a, b, c) are filters that do almost nothing. The paper sees in (b) very coarse and very
fine filters with little between, and dead ones, in (c) fewer dead ones and more of the middle; in (d), not in (e), the
lattice of the large stride. The numbers below the panels measure what the paper judges by eye;
`zfnet/analysis/filters.py` defines them. A stride of 4 aliases what is finer than 1/8 cycles per pixel, one of 2 what
is finer than 1/4: compare the ratios to the image patches that the same filters or maps respond to. With several seeds
each network is trained with each of them, and the paper's claims are counted by seed.
"""

import functools
import itertools
import math
import statistics
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn
from typing_extensions import Unpack

from experiments.output.feature_maps import TILE_GAP, Look, Panel, chosen, panel_of
from experiments.output.pages import DPI, LINE, Page, letters, style_of
from experiments.output.results import Result
from experiments.output.tables import deviation, measured, plus_minus, table
from experiments.setup.checks import at_least, grid, one_of
from experiments.setup.hints import Count, Grid, Seed
from experiments.setup.networks import Networks, seen_by
from experiments.setup.options import Showing
from zfnet import Deconvnet, InputError, Patches, ZFNet, receptive_field, rendering, scan
from zfnet.analysis.filters import (
    BANDS,
    aliased_energy,
    dominance,
    faint,
    lattice,
    mean_aliased,
    spectral_energy,
    together,
)
from zfnet.data.images import image_size
from zfnet.data.preprocessing import Preprocessing
from zfnet.deconvnet import project_top
from zfnet.model import variant
from zfnet.scanning import Scan
from zfnet.training import Diverged, Recipe, filter_rms

LAYERS = ("relu1", "relu2")
TITLES = {"fig3 not renormalised": "ours, not renormalised", "krizhevsky": "Krizhevsky et al.", "fig3": "ours"}
FILTERS = (("a", "fig3 not renormalised"), ("b", "krizhevsky"), ("c", "fig3"))
PROJECTIONS = (("d", "krizhevsky"), ("e", "fig3"))
GEOMETRY = {"fig3 not renormalised": (7, 2), "krizhevsky": (11, 4), "fig3": (7, 2)}
PAPER = {name: {"kernel": kernel, "stride": stride, "filters": 96} for name, (kernel, stride) in GEOMETRY.items()}
GAP, CURVES = 30, 260  # pixels between panels; height of (f)
BAND_NAMES = ("low", "middle", "high")
ROWS = {  # of the table: each number's name in result.json
    "conv1: kernel, pixels": "kernel",
    "conv1: stride, pixels": "stride",
    "layer 1: filters": "filters",
    "layer 1: dead filters (never above 0), %": "dead_filters",
    "layer 1: faint filters (RMS below a tenth of the median), %": "faint_filters",
    "layer 1: largest filter RMS / median": "largest_rms_over_median",
    "layer 1: largest filter RMS": "largest_rms",
    "layer 1: filters at the limit of RMS or above, %": "filters_at_limit",
    "layer 1: energy below 1/6 cycles per pixel, %": "low",
    "layer 1: energy from 1/6 to 1/3, %": "middle",
    "layer 1: energy above 1/3, %": "high",
    "layer 1: energy that conv1's stride aliases, %": "aliased",
    "layer 1: the same of the image patches, %": "patches_aliased",
    "layer 1: filters / image patches": "aliased_ratio",
    "layer 2: dead maps (never above 0), %": "layer2_dead_maps",
    "layer 2: energy of projections below 1/6, %": "layer2_low",
    "layer 2: energy of projections from 1/6 to 1/3, %": "layer2_middle",
    "layer 2: energy of projections above 1/3, %": "layer2_high",
    "layer 2: energy of projections that conv1's stride cannot hold, %": "layer2_aliased",
    "layer 2: the same of the image patches, %": "layer2_patches_aliased",
    "layer 2: projections / image patches": "layer2_aliased_ratio",
    "layer 2: power of projections at conv1's lattice / beside it": "layer2_lattice",
    "layer 2: the same of conv1's filters": "filters_lattice",
    "validation error, %": "validation_error",
}
LABELS = {number: row for row, number in ROWS.items()}
CLAIMS = {  # the paper's: which number is larger in which network
    "without renormalisation one filter of layer 1 dominates": (
        "largest_rms_over_median",
        "fig3 not renormalised",
        "fig3",
    ),
    "layer 1 of 7x7, stride 2, has fewer dead filters": ("dead_filters", "krizhevsky", "fig3"),
    "layer 2 behind it has fewer dead maps": ("layer2_dead_maps", "krizhevsky", "fig3"),
    "layer 1 of 7x7, stride 2, has more of the middle frequencies": ("middle", "fig3", "krizhevsky"),
    "layer 2 behind it has less aliasing, by energy": ("layer2_aliased_ratio", "krizhevsky", "fig3"),
    "layer 2 behind it has less aliasing, at the lattice": ("layer2_lattice", "krizhevsky", "fig3"),
}


@dataclass
class Seen:
    """A network by its numbers, its filters and its projections."""

    numbers: dict[str, Any]  # of them "sizes": the largest first-layer RMS after each epoch, None: not recorded
    filters: Tensor  # (C, 3, k, k), RGB
    panel: Panel | None  # of the layer-2 maps that are drawn; None where all are dead, and of all seeds but the first


Outcomes = dict[str, list[Seen | str]]  # each network by seed; or why its training diverged


def main(
    data: Any,
    out: str | Path,
    *,
    networks: Networks,
    architecture: Callable[..., nn.Module],
    recipe: Recipe,
    maps: Grid = (4, 4),
    k: Count = 9,
    seed: Seed = 0,
    seeds: Count = 1,
    scale: Literal["panel", "filter"] = "panel",
    **options: Unpack[Showing],
) -> dict[str, Any]:
    """Draw and measure filters and projections of three networks, which are trained if they do not exist yet.

    A network whose training diverges is reported as such.

    Args:
        data: the images.
        out: the folder of the result.
        networks: the trained networks of the data set.
        architecture: a ZFNet, from which Krizhevsky et al.'s is derived.
        recipe: how all three are trained; the first without renormalisation. Seeds count from the recipe's.
        maps: rows and columns of layer-2 maps that are drawn.
        k: activations of each map, and image patches of each filter of layer 1.
        seed: of the choice of maps.
        seeds: trainings of each network; the first is drawn, and the numbers are of all.
        scale: all filters of a panel have one scale ("panel"), so that one that dominates leaves the others grey, or
            each its own ("filter").
        options: see `Showing` and `Reading`.
    """
    result, (look, reading) = Result("fig6", out, locals()), Look.of(options)
    page = Page(look.width)
    check(architecture, recipe, maps, k, seeds, scale)
    forms, limit = forms_of(architecture, recipe), float(recipe.max_filter_rms or 0)
    seen: Outcomes = {name: [] for name in forms}
    for n, name in itertools.product(range(seeds), forms):
        make, how = forms[name]
        try:
            trained = networks.trained(name, make, replace(how, seed=how.seed + n))
        except Diverged as error:
            seen[name].append(str(error).partition(":")[0])
            continue
        deconvnet, images = look.deconvnet(trained.model), seen_by(trained.model, data)
        tops = scan(deconvnet.graph, images, LAYERS, k, **reading)
        random, count = torch.Generator().manual_seed(seed), 0 if n else maps[0] * maps[1]
        drawn = chosen(LAYERS[1], tops[LAYERS[1]], count, "random", random)
        seen[name].append(seen_of(deconvnet, trained.history, images, tops, limit, drawn, maps[1], look))
    if all(isinstance(outcome, str) for outcomes in seen.values() for outcome in outcomes):
        raise InputError(f"all trainings diverged: lower the learning rate ({recipe.learning_rate})")
    first = {name: outcomes[0] for name, outcomes in seen.items()}
    enlargements, notes = compose(page, first, scale, look), remarks(seen, limit, recipe.seed)
    draw_sizes(page, seen, limit)
    page.caption(caption(enlargements, len(data), k, (seed, recipe.seed, seeds), scale, look) + " ".join(notes))
    result.figure(page.done())
    result.text("\n\n".join([summary(seen), claims(seen), *notes]))
    result.settings |= {"bands": list(BANDS), "images": len(data), "dataset": type(data).__name__}
    ours = numbers(seen, limit)
    return result.finish(ours, {"mean": {name: dict.fromkeys(ours["mean"][name]) | PAPER[name] for name in seen}})


def forms_of(
    architecture: Callable[..., nn.Module], recipe: Recipe
) -> dict[str, tuple[Callable[[], nn.Module], Recipe]]:
    """The three networks and how each is trained."""
    krizhevsky = functools.partial(ZFNet, **variant("krizhevsky", **architecture.keywords))  # type: ignore[attr-defined]
    return {
        "fig3 not renormalised": (architecture, replace(recipe, max_filter_rms=None)),
        "krizhevsky": (krizhevsky, recipe),
        "fig3": (architecture, recipe),
    }


def check(architecture: Any, recipe: Recipe, maps: Sequence[int], k: int, seeds: int, scale: str) -> None:
    """Raises InputError before training if the figure cannot be drawn."""
    if (network := getattr(architecture, "func", architecture)) is not ZFNet:
        name = getattr(network, "__name__", network)
        raise InputError(f"Figure 6 compares variants of ZFNet; {name} is not a ZFNet: give model=zfnet")
    if recipe.max_filter_rms is None:
        raise InputError("Figure 6 renormalises filters in all trainings but one: give train.max_filter_rms")
    at_least(1, k=k, seeds=seeds)
    grid(maps, "maps")
    one_of("scale", scale, ("panel", "filter"))


def seen_of(
    deconvnet: Deconvnet,
    history: Sequence[dict[str, float]],
    data: Any,
    tops: Scan,
    limit: float,
    drawn: list[int],
    columns: int,
    look: Look,
) -> Seen:
    """A network by its numbers, all its filters, and the projections of the layer-2 maps that are drawn."""
    preprocessing, size, panel = Preprocessing.of(deconvnet.model), image_size(data), None
    numbers = numbers_of(deconvnet, data, tops, limit) | {"layer2_drawn": drawn}
    numbers["validation_error"] = history[-1].get("validation_error")
    numbers["sizes"] = [entry.get("largest_filter_rms") for entry in history]
    if drawn:
        how = columns, receptive_field(deconvnet.graph, LAYERS[1], size), preprocessing, look
        panel = panel_of("", deconvnet, data, LAYERS[1], tops[LAYERS[1]], drawn, *how)
    weight: Any = deconvnet.model.conv1.weight  # type: ignore[union-attr]
    return Seen(numbers, preprocessing.rgb(weight.detach().float().cpu()), panel)


def numbers_of(deconvnet: Deconvnet, data: Any, tops: Scan, limit: float) -> dict[str, Any]:
    """A ZFNet's filters, and the projections of all its layer-2 maps, in numbers; `limit` is of the filters' RMS."""
    first, second = (tops[layer] for layer in LAYERS)
    conv1: Any = deconvnet.graph.model.conv1
    weight, stride = conv1.weight.detach().float().cpu(), conv1.stride[0]
    rms, largest = filter_rms(weight), dominance(weight)
    dead, weak = ~(first.value[:, 0] > 0), faint(weight)
    strong, live = ~(dead | weak), (second.value[:, 0] > 0).nonzero().flatten().tolist()
    causes = project_top(deconvnet, data, LAYERS[0], first, strong.nonzero().flatten().tolist())
    patches = project_top(deconvnet, data, LAYERS[1], second, live)
    projected, active = patches.projections.float().cpu(), (patches.values > 0).cpu()
    bands = dict(zip(BAND_NAMES, spectral_energy(weight).T.tolist(), strict=True))
    each = {"rms": rms, "dead": dead, "faint": weak, "aliased": aliased_energy(weight, stride)}
    return {
        "kernel": weight.shape[-1],
        "stride": stride,
        "filters": len(weight),
        "dead_filters": float(dead.double().mean()),
        "faint_filters": float(weak.double().mean()),
        "largest_rms_over_median": largest if math.isfinite(largest) else None,
        "largest_rms": float(rms.max()),
        "filters_at_limit": float((rms > limit * (1 - 1e-3)).double().mean()),
        **shares(weight, strong, causes, stride),
        "layer2_dead_maps": 1 - len(live) / len(second.value),
        **{f"layer2_{name}": share for name, share in shares(projected, active, patches, stride).items()},
        "layer2_lattice": lattice(projected, stride, active),
        "filters_lattice": lattice(together(weight), stride),
        "each_filter": {name: column.tolist() for name, column in each.items()} | bands,
    }


def shares(signals: Tensor, which: Tensor, patches: Patches, stride: int) -> dict[str, float | None]:
    """The mean shares of the energy of `which` (N,) filters or projections (N, C, H, W), and of their image patches."""

    def mean(values: Tensor, which: Tensor) -> float | None:
        return float(values[which].mean()) if which.any() else None

    columns = dict(zip(BAND_NAMES, spectral_energy(signals).T, strict=True))
    aliased = mean_aliased(signals, stride, which)
    images = mean_aliased(patches.crops.float().cpu(), stride, (patches.values > 0).cpu())
    ratio = aliased / images if aliased is not None and images else None
    means = {name: mean(column, which) for name, column in columns.items()}
    return means | {"aliased": aliased, "patches_aliased": images, "aliased_ratio": ratio}


def values(outcomes: Sequence[Seen | str], name: str) -> list[Any]:
    """A number for each seed; None if its training diverged or the number does not exist."""
    return [None if isinstance(outcome, str) else outcome.numbers[name] for outcome in outcomes]


def known(outcomes: Sequence[Seen | str], name: str) -> list[Any]:
    return [value for value in values(outcomes, name) if value is not None]


def first_above(sizes: Sequence[float | None], limit: float) -> int | None:
    """The first epoch after which the largest filter is above the limit; None if it never is."""
    return next((n for n, size in enumerate(sizes, 1) if size is not None and size > limit), None)


def numbers(seen: Outcomes, limit: float) -> dict[str, Any]:
    """The entries of result.json by network: numbers over the seeds and for each seed, and notes."""
    lists = {name: {number: known(outcomes, number) for number in ROWS.values()} for name, outcomes in seen.items()}
    sizes = {name: values(outcomes, "sizes") for name, outcomes in seen.items()}
    above = {name: [first_above(row or (), limit) for row in rows] for name, rows in sizes.items()}
    return measured("mean", lists) | {
        "each": {name: {n: values(outcomes, n) for n in ROWS.values()} for name, outcomes in seen.items()},
        "diverged": {name: [o if isinstance(o, str) else None for o in outcomes] for name, outcomes in seen.items()},
        "claims": {claim: counted(seen, claim)._asdict() for claim in CLAIMS},
        "largest_rms_by_epoch": sizes,
        "first_epoch_above_limit": above,
        "each_filter": {name: values(outcomes, "each_filter") for name, outcomes in seen.items()},
        "layer2_drawn": {name: values(outcomes[:1], "layer2_drawn")[0] for name, outcomes in seen.items()},
    }


class Counted(NamedTuple):
    """The number of seeds in which a claim of the paper holds."""

    as_claimed: int
    contrary: int
    equal: int

    @property
    def words(self) -> str:
        if not any(self):
            return "cannot be told"
        words = {"yes": self.as_claimed, "the contrary": self.contrary, "equal": self.equal}
        return ", ".join(f"{word} in {n} of {sum(self)}" for word, n in words.items() if n)


def counted(seen: Outcomes, claim: str) -> Counted:
    """A claim by the seeds of which both networks have the number."""
    number, larger, smaller = CLAIMS[claim]
    pairs = zip(values(seen[larger], number), values(seen[smaller], number), strict=True)
    signs = [(a > b) - (a < b) for a, b in pairs if a is not None and b is not None]
    return Counted(signs.count(1), signs.count(-1), signs.count(0))


def cell(outcomes: Sequence[Seen | str], row: str) -> Any:
    """A number as the table has it: mean and standard deviation over the seeds."""
    column = known(outcomes, ROWS[row])
    if not column or isinstance(column[0], int):
        return column[0] if column else ""
    percent = row.endswith("%")
    column = [100 * value if percent else value for value in column]
    return plus_minus(statistics.mean(column), deviation(column), 1 if percent else 3)


def summary(seen: Outcomes) -> str:
    """The numbers as a table."""
    rows = [[row, *(cell(outcomes, row) for outcomes in seen.values())] for row in ROWS]
    return table(["", *(TITLES[name] for name in seen)], rows)


def claims(seen: Outcomes) -> str:
    """The paper's claims beside our results, as a table."""
    rows = []
    for claim, (number, *pair) in CLAIMS.items():
        row = LABELS[number]
        numbers = (f"{TITLES[name]} {cell(seen[name], row)}" for name in pair)
        rows.append([claim, row, "; ".join(numbers), counted(seen, claim).words])
    return table(["the paper says", "measured by", "here", "so here, by seed?"], rows)


def remarks(seen: Outcomes, limit: float, seed: int) -> list[str]:
    """Notes that the panels cannot show; seeds count from `seed`."""
    notes = [
        f"{TITLES[name]}, seed {seed + n}: diverged, {outcome}."
        for name, outcomes in seen.items()
        for n, outcome in enumerate(outcomes)
        if isinstance(outcome, str)
    ]
    for claim in CLAIMS:
        count = counted(seen, claim)
        if count.contrary > count.as_claimed:
            notes.append(f'Contrary to the paper: "{claim}" ({count.words}).')
    unlimited = [outcome for outcome in seen["fig3 not renormalised"] if isinstance(outcome, Seen)]
    epochs = [first_above(outcome.numbers["sizes"], limit) for outcome in unlimited]
    if any(None in outcome.numbers["sizes"] for outcome in unlimited):
        notes.append("(f) lacks epochs of networks of an older version, which did not record the sizes of filters.")
    elif epochs:
        when = ", ".join("never" if epoch is None else str(epoch) for epoch in epochs)
        notes.append(f"Not renormalised, the largest filter is first above {limit:g} after epoch: {when}.")
    pairs = zip(seen["fig3 not renormalised"], seen["fig3"], strict=True)
    if all(isinstance(a, Seen) and isinstance(b, Seen) and torch.equal(a.filters, b.filters) for a, b in pairs):
        notes.append("No filter reached the limit of RMS, so renormalisation did nothing: (a) and (c) are the same.")
    return notes


def compose(page: Page, seen: dict[str, Seen | str], scale: str, look: Look) -> dict[str, float]:
    """The panels in the paper's layout: filters above, projections below, each over its numbers; how much enlarged."""
    enlargements = {}
    for layer, panels in ((1, FILTERS), (2, PROJECTIONS)):
        wide, top = (page.columns - GAP * (len(panels) - 1)) // len(panels), page.y
        for n, (letter, name) in enumerate(panels):
            x, y, outcome = n * (wide + GAP), top + 1.3 * LINE, seen[name]
            page.text(x, top + LINE / 2, f"({letter}) {TITLES[name]}, layer {layer}", weight="bold", size=8)
            if isinstance(outcome, str):
                words = f"diverged: {outcome}"
            else:
                words = panel_words(outcome.numbers, layer)
                if layer == 1 or outcome.panel:
                    picture, enlargements[letter] = picture_of(outcome, layer, scale, look, wide)
                    page.image(picture, x, y)
                    y += picture.shape[1] + 4
            for line in words.splitlines():
                for part in textwrap.wrap(line, letters(wide / DPI)):
                    page.text(x, y + LINE / 2, part)
                    y += LINE
            page.y = max(page.y, int(y))
        page.y += LINE // 2
    return enlargements


def draw_sizes(page: Page, seen: Outcomes, limit: float) -> None:
    """(f): the largest filter of the first layer over training, without and with renormalisation."""
    page.text(0, page.y + LINE / 2, "(f) largest RMS of a filter of layer 1", weight="bold", size=8)
    axes = page.axes(70, page.y + 1.5 * LINE, page.columns - 90, CURVES - 4 * LINE)
    for name, colour in zip(("fig3 not renormalised", "fig3"), style_of("safe").lines[1::-1], strict=True):
        label = TITLES[name]
        for sizes in known(seen[name], "sizes"):
            heights = [math.nan if size is None else size for size in sizes]
            axes.plot(range(1, len(heights) + 1), heights, color=colour, lw=0.8, label=label, marker=".", ms=2)
            label = ""
    axes.axhline(limit, color="0.4", lw=0.6, ls="--", label=f"limit of renormalisation, {limit:g}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch", labelpad=1)
    axes.set_ylim(0, None)
    axes.legend(frameon=False, loc="lower right", labelspacing=0.2)
    page.y += CURVES


def caption(
    enlargements: dict[str, float], images: int, k: int, seeds: tuple[int, int, int], scale: str, look: Look
) -> str:
    """The caption: content, scales and numbers; seeds: of the choice, of training, and their number."""
    whose = "All filters of a panel have one scale" if scale == "panel" else "Each filter has its own scale"
    factors = ", ".join(f"({letter}) {factor:.2g}" for letter, factor in enlargements.items())
    drawn = f"(a-e) are of the first of {seeds[2]} seeds ({seeds[1]}), (f) is of all. " if seeds[2] > 1 else ""
    return (
        f"Three ZFNets, {images:,} images. {drawn}(d, e): maps chosen at random (seed {seeds[0]}), of each the "
        f"projections of its {k} strongest activations, from different images. {whose}, up to its largest value. "
        f"{look.words} Tiles are enlarged ({look.interpolation}) by {factors}. Hatched: outside the image. White: no "
        "activation above 0. Energy: low is below 1/6, high above 1/3 cycles per pixel. A stride aliases what is "
        "at or beyond half its lattice's frequency. As the two strides differ in it, compare the ratios to the image "
        "patches that the same filters or maps respond to most. "
    )


def panel_words(numbers: dict[str, Any], layer: int) -> str:
    """The numbers of a panel."""
    n = {name: math.nan if value is None else value for name, value in numbers.items()}
    if layer == 2:
        n |= {name.removeprefix("layer2_"): value for name, value in n.items() if name.startswith("layer2_")}
        first = f"{n['dead_maps']:.0%} of maps dead"
    else:
        first = f"{n['filters']} of {n['kernel']} x {n['kernel']}, stride {n['stride']}: {n['dead_filters']:.0%} dead, "
        first += f"{n['faint_filters']:.0%} faint, largest RMS {n['largest_rms_over_median']:.1f} x median"
    words = (
        f"{first}\nenergy: {', '.join(f'{name} {n[name]:.0%}' for name in BAND_NAMES)}\n"
        f"beyond 1/{2 * n['stride']} cycles per pixel: {n['aliased']:.0%}, {n['aliased_ratio']:.1f} x the image "
        f"patches' {n['patches_aliased']:.0%}"
    )
    return words.replace("nan%", "-").replace("nan", "-")


def picture_of(seen: Seen, layer: int, scale: str, look: Look, width: int) -> tuple[Tensor, float]:
    """A panel as an image at most `width` pixels wide, and its enlargement."""
    if layer == 2 and seen.panel:
        tile = seen.panel.tile(width)
        return seen.panel.draw(tile)[0], seen.panel.enlargement(tile)
    count, size = len(seen.filters), seen.filters.shape[-1]
    side = math.isqrt(count - 1) + 1
    columns = next((c for c in range(side, 2 * side) if count % c == 0), side)  # as near to a square as has no gap
    tile = max(width // columns - 2 * TILE_GAP, size)
    together = count if scale == "panel" else 1
    tiles = look._replace(contrast=1.0).pictures(seen.filters, (tile, tile), together)
    return rendering.grid(tiles, columns, 2 * TILE_GAP), tile / size
