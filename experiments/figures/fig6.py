"""Figure 6: the visualisation as a debugger: three networks, trained alike, by their filters and projections.

The caption's sense: (a) first-layer filters without renormalisation, where one dominates; (b) those of Krizhevsky et
al.'s network, 11x11 with stride 4; (c) ours, 7x7 with stride 2; (d, e) projections of layer 2 of the latter two.

What to look for: grey tiles in (a, b, c) are filters that do next to nothing. The paper sees in (b) very coarse and
very fine filters with little between, and dead ones, in (c) fewer dead ones and more of the middle; in (d), not in (e),
the lattice of the large stride. The numbers below the panels are what the eye is asked for:
`zfnet/analysis/filters.py` says how each is measured. A stride of 4 aliases what is finer than 1/8 cycles per pixel,
one of 2 what is finer than 1/4: compare the ratios to the image patches that the same filters or maps respond to.
"""

import functools
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from experiments.output.feature_maps import TILE_GAP, Look, Panel, chosen, panel_of
from experiments.output.pages import DPI, LINE, Page, letters
from experiments.output.results import Result
from experiments.output.tables import table
from experiments.setup.checks import at_least, grid, one_of
from experiments.setup.hints import Count, Grid, Seed
from experiments.setup.networks import Networks
from experiments.setup.options import Showing
from zfnet import Deconvnet, InputError, Patches, TopActivations, ZFNet, receptive_field, rendering, scan
from zfnet.analysis.filters import BANDS, aliased_energy, dominance, faint, spectral_energy
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
GAP = 30  # pixels between panels
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
    "layer 2: energy of projections beyond conv1's lattice, %": "layer2_aliased",
    "layer 2: the same of the image patches, %": "layer2_patches_aliased",
    "layer 2: projections / image patches": "layer2_aliased_ratio",
    "validation error, %": "validation_error",
}


@dataclass
class Seen:
    """A network by its numbers, its filters and its projections."""

    numbers: dict[str, Any]
    filters: Tensor  # (C, 3, k, k), RGB
    panel: Panel | None  # of the layer-2 maps that are drawn; None where all are dead


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
    scale: Literal["panel", "filter"] = "panel",
    **options: Unpack[Showing],
) -> dict[str, Any]:
    """Draw and measure filters and projections of three networks, which are trained unless they are there.

    A network whose training diverges is reported as such.

    Args:
        data: the images.
        out: the folder of the result.
        networks: of the data set, by their training.
        architecture: a ZFNet, from which Krizhevsky et al.'s is derived.
        recipe: how all three are trained, but that the first is not renormalised.
        maps: rows and columns of layer-2 maps that are drawn.
        k: activations of each map; of each filter of layer 1, image patches to compare it with.
        seed: of the choice of maps.
        scale: all filters of a panel have one scale ("panel"), so that one that dominates leaves the others grey, or
            each its own ("filter").
        options: see `Showing` and `Reading`.
    """
    result, (look, reading) = Result("fig6", out, locals()), Look.of(options)
    page = Page(look.width)
    check(architecture, recipe, maps, k, scale)
    krizhevsky = functools.partial(ZFNet, **variant("krizhevsky", **architecture.keywords))  # type: ignore[attr-defined]
    forms: dict[str, tuple[Callable[[], nn.Module], Recipe]] = {
        "fig3 not renormalised": (architecture, replace(recipe, max_filter_rms=None)),
        "krizhevsky": (krizhevsky, recipe),
        "fig3": (architecture, recipe),
    }
    seen: dict[str, Seen | str] = {}
    for name, (make, how) in forms.items():
        try:
            model, history = networks.trained(name, make, how)
        except Diverged as error:
            seen[name] = str(error).partition(":")[0]
            continue
        deconvnet = look.deconvnet(model)
        tops = scan(deconvnet.graph, data, LAYERS, k, **reading)
        numbers = measured(deconvnet, data, tops, recipe.max_filter_rms)  # type: ignore[arg-type]
        numbers["validation_error"] = history[-1].get("validation_error")
        seen[name] = seen_of(deconvnet, data, tops[LAYERS[1]], numbers, maps, seed, look)
    if all(isinstance(outcome, str) for outcome in seen.values()):
        raise InputError(f"all three trainings diverged: lower the learning rate ({recipe.learning_rate})")
    enlargements = compose(page, seen, scale, look)
    page.caption(caption(enlargements, len(data), k, seed, scale, look) + " ".join(remarks(seen)))
    result.figure(page.done())
    result.text("\n\n".join([summary(seen), *remarks(seen)]))
    result.settings |= {"bands": list(BANDS), "images": len(data), "dataset": type(data).__name__}
    ours = {n: {"diverged": s} if isinstance(s, str) else {"diverged": None, **s.numbers} for n, s in seen.items()}
    return result.finish(ours, {name: dict.fromkeys(numbers) | PAPER[name] for name, numbers in ours.items()})


def check(architecture: Any, recipe: Recipe, maps: Sequence[int], k: int, scale: str) -> None:
    """InputError, before minutes of training, for what the figure cannot be drawn of."""
    if (network := getattr(architecture, "func", architecture)) is not ZFNet:
        name = getattr(network, "__name__", network)
        raise InputError(f"Figure 6 compares forms of ZFNet; {name} is none: take model=zfnet")
    if recipe.max_filter_rms is None:
        raise InputError("Figure 6 renormalises filters in all trainings but one: give train.max_filter_rms")
    at_least(1, k=k)
    grid(maps, "maps")
    one_of("scale", scale, ("panel", "filter"))


def measured(deconvnet: Deconvnet, data: Any, tops: Scan, limit: float) -> dict[str, Any]:
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
        "each_filter": {name: column.tolist() for name, column in each.items()} | bands,
    }


def shares(signals: Tensor, which: Tensor, patches: Patches, stride: int) -> dict[str, float | None]:
    """The mean shares of the energy of `which` (N,) filters or projections (N, C, H, W), and of their image patches."""

    def mean(values: Tensor, which: Tensor) -> float | None:
        return float(values[which].mean()) if which.any() else None

    columns = dict(zip(BAND_NAMES, spectral_energy(signals).T, strict=True))
    aliased = mean(aliased_energy(signals, stride), which)
    images = mean(aliased_energy(patches.crops.float().cpu(), stride), (patches.values > 0).cpu())
    ratio = aliased / images if aliased is not None and images else None
    found = {name: mean(column, which) for name, column in columns.items()}
    return found | {"aliased": aliased, "patches_aliased": images, "aliased_ratio": ratio}


def seen_of(
    deconvnet: Deconvnet,
    data: Any,
    top: TopActivations,
    numbers: dict[str, Any],
    maps: Sequence[int],
    seed: int,
    look: Look,
) -> Seen:
    """A network by its numbers, all its filters, and the projections of some layer-2 maps."""
    model, preprocessing = deconvnet.graph.model, Preprocessing.of(deconvnet.graph.model)
    drawn = chosen(LAYERS[1], top, maps[0] * maps[1], "random", torch.Generator().manual_seed(seed))
    field = receptive_field(deconvnet.graph, LAYERS[1], image_size(data))
    panel = panel_of("", deconvnet, data, LAYERS[1], top, drawn, maps[1], field, preprocessing, look) if drawn else None
    filters = preprocessing.rgb(model.conv1.weight.detach().float().cpu())  # type: ignore[union-attr, operator]
    return Seen(numbers | {"layer2_drawn": drawn}, filters, panel)


def summary(seen: dict[str, Seen | str]) -> str:
    """The numbers as a table."""

    def cell(outcome: Seen | str, row: str, name: str) -> Any:
        value = None if isinstance(outcome, str) else outcome.numbers[name]
        if value is None:
            return ""
        if row.endswith("%"):
            return round(100 * value, 1)
        return value if isinstance(value, int) else float(f"{value:.3g}")

    rows = [[row, *(cell(outcome, row, name) for outcome in seen.values())] for row, name in ROWS.items()]
    return table(["", *(TITLES[name] for name in seen)], rows)


def remarks(seen: dict[str, Seen | str]) -> list[str]:
    """What the panels cannot show."""
    diverged = [f"{TITLES[name]}: diverged, {outcome}." for name, outcome in seen.items() if isinstance(outcome, str)]
    without, ours = seen["fig3 not renormalised"], seen["fig3"]
    same = isinstance(without, Seen) and isinstance(ours, Seen) and torch.equal(without.filters, ours.filters)
    words = "No filter came to the limit of RMS, so renormalisation did nothing: (a) and (c) are the same."
    return [*diverged, words] if same else diverged


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


def caption(enlargements: dict[str, float], images: int, k: int, seed: int, scale: str, look: Look) -> str:
    """What is drawn, how it is scaled, and what the numbers are."""
    whose = "All filters of a panel have one scale" if scale == "panel" else "Each filter has its own scale"
    factors = ", ".join(f"({letter}) {factor:.2g}" for letter, factor in enlargements.items())
    return (
        f"Three ZFNets, {images:,} images. (d, e): maps chosen at random (seed {seed}), of each the projections "
        f"of its {k} strongest activations, from different images. {whose}, up to its largest value. "
        f"{look.words} Tiles are enlarged ({look.interpolation}) by {factors}. Hatched: outside the image. White: no "
        "activation above 0. Energy: low is below 1/6, high above 1/3 cycles per pixel. A stride aliases what is "
        "beyond half its lattice's frequency. As the two strides differ in it, compare the ratios to the image patches "
        "that the same filters or maps respond to most. "
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
    """A panel as an image at most `width` pixels wide, and how many times as large as its pixels it is."""
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
