"""Figure 6: the visualisation as a debugger: three networks, trained alike, by their filters and projections.

The caption's sense: (a) first-layer filters without renormalisation, where one dominates; (b) those of Krizhevsky et
al.'s network, 11x11 with stride 4; (c) ours, 7x7 with stride 2; (d, e) projections of layer 2 of the latter two.

What to look for: grey tiles in (a, b, c) are filters that do next to nothing. The paper sees in (b) very coarse and
very fine filters with little between, and dead ones, in (c) fewer dead ones and more of the middle; in (d), not in (e),
the lattice of the large stride. The numbers below the panels are what the eye is asked for:
`zfnet/analysis/filters.py` says how each is measured. A coarser lattice holds less of anything: compare (d) and (e)
each with its image patches.
"""

import functools
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from experiments.figures.fig2 import MAP_GAP, TILE_GAP, _chosen
from experiments.output.results import Provenance, results, table, write_result
from experiments.setup.networks import Networks
from zfnet import Deconvnet, InputError, ZFNet, scan
from zfnet.analysis.filters import BANDS, aliased_energy, dominance, faint, filter_rms, spectral_energy
from zfnet.data.preprocessing import Preprocessing
from zfnet.deconvnet import project_top
from zfnet.errors import unknown_name
from zfnet.model import variant
from zfnet.rendering import grid, resized, signed_image
from zfnet.training import Diverged, Recipe

LAYERS = ("relu1", "relu2")
INCHES = 12  # the width of the figure; its height is that of the tiles, and 2 more for words
TITLES = {"fig3 not renormalised": "ours, not renormalised", "krizhevsky": "Krizhevsky et al.", "fig3": "ours"}
PANELS = (
    ("a", "fig3 not renormalised", 1),
    ("b", "krizhevsky", 1),
    ("c", "fig3", 1),
    ("d", "krizhevsky", 2),
    ("e", "fig3", 2),
)
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
    "layer 2: dead maps (never above 0), %": "layer2_dead_maps",
    "layer 2: energy of projections below 1/6, %": "layer2_low",
    "layer 2: energy of projections from 1/6 to 1/3, %": "layer2_middle",
    "layer 2: energy of projections above 1/3, %": "layer2_high",
    "layer 2: energy of projections beyond conv1's lattice, %": "layer2_aliased",
    "layer 2: the same of the image patches, %": "layer2_patches_aliased",
    "validation error, %": "validation_error",
}


@dataclass
class Seen:
    """A network by its numbers, its filters and its projections."""

    numbers: dict[str, Any]
    filters: Tensor  # (C, 3, k, k), RGB
    projections: Tensor  # (maps, k, 3, S, S), RGB, of the maps that are drawn
    empty: Tensor  # (maps, k): where there is no activation above 0


def main(
    data: Any,
    out: str | Path,
    *,
    networks: Networks,
    architecture: Callable[..., nn.Module],
    recipe: Recipe,
    maps: Sequence[int] = (4, 4),
    k: int = 9,
    seed: int = 0,
    scale: str = "panel",
    quantile: float = 0.995,
    batch_size: int = 64,
    workers: int | None = None,
    width: int = 2400,
    progress: bool = True,
) -> dict[str, Any]:
    """Train the three networks unless they are there, scan a dataset with each, draw, measure; return what result.json
    holds.

    architecture: a partial of ZFNet, from which Krizhevsky et al.'s is derived. recipe: of all three, but that the
    first is not renormalised; a network whose training diverges is reported as such. maps: rows and columns of
    layer-2 maps drawn, at random by seed. k: projections of each. scale: all filters of a panel have one grey scale
    ("panel"), so that one that dominates leaves the others grey, or each its own ("filter").
    quantile: of a projection's absolute values, where its grey scale ends. width: of the picture, pixels.
    """
    _check(architecture, recipe, maps, scale, quantile, width)
    provenance = Provenance(seed=seed)
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
        seen[name] = look(
            model,
            data,
            k,
            maps[0] * maps[1],
            seed,
            recipe.max_filter_rms,  # type: ignore[arg-type]
            batch_size=batch_size,
            workers=workers,
            progress=progress,
        )
        seen[name].numbers["validation_error"] = history[-1].get("validation_error")  # type: ignore[union-attr]
    if all(isinstance(s, str) for s in seen.values()):
        raise InputError(f"all three trainings diverged: lower the learning rate ({recipe.learning_rate})")

    ours = {n: {"diverged": s} if isinstance(s, str) else {"diverged": None, **s.numbers} for n, s in seen.items()}
    kernels = {"fig3 not renormalised": (7, 2), "krizhevsky": (11, 4), "fig3": (7, 2)}
    published = {n: {"kernel": kernels[n][0], "stride": kernels[n][1], "filters": 96} for n in seen}
    paper = {n: dict.fromkeys(numbers) | published[n] for n, numbers in ours.items()}
    text = _table(seen)
    print(text)
    settings = {
        "recipe": asdict(recipe),
        "architecture": dict(architecture.keywords),  # type: ignore[attr-defined]
        "maps": list(maps),
        "k": k,
        "seed": seed,
        "scale": scale,
        "quantile": quantile,
        "bands": list(BANDS),
        "images": len(data),
        "dataset": type(data).__name__,
    }
    with results(out) as folder:
        note = f"{len(data):,} images.  Energy: below 1/6, from 1/6 to 1/3, above 1/3 cycles per pixel.  "
        note += (
            "All filters of a panel have one grey scale" if scale == "panel" else "Each filter has its own grey scale"
        )
        note += ", each projection its own." if scale == "panel" else ", and each projection."
        figure = compose(seen, maps[1], scale, quantile, width, note)
        figure.savefig(folder / "figure.png", dpi=width / INCHES)
        figure.savefig(folder / "figure.pdf", dpi=width / INCHES)
        (folder / "table.md").write_text(text + "\n", encoding="utf-8")
        return write_result(folder, "fig6", paper, ours, settings, provenance)


def _check(architecture: Any, recipe: Recipe, maps: Sequence[int], scale: str, quantile: float, width: int) -> None:
    network = getattr(architecture, "func", architecture)
    if network is not ZFNet:
        raise InputError(
            f"Figure 6 compares forms of ZFNet; {getattr(network, '__name__', network)} is none: take model=zfnet"
        )
    if recipe.max_filter_rms is None:
        raise InputError(
            "Figure 6 trains once without renormalisation; it needs a recipe with it: give train.max_filter_rms"
        )
    if len(maps) != 2 or not all(type(n) is int and n > 0 for n in maps):
        raise InputError(f"maps is [rows, columns] of feature maps; got {list(maps)}")
    if scale not in ("panel", "filter"):
        raise unknown_name("scale", scale, ("panel", "filter"))
    if not 0 < quantile <= 1:
        raise InputError(f"quantile is {quantile}; give a number above 0, up to 1")
    if width < 400:
        raise InputError(f"a picture of {width} pixels is too narrow; give a width of at least 400")


def look(model: nn.Module, data: Any, k: int, count: int, seed: int, limit: float, **scanning: Any) -> Seen:
    """Measure a ZFNet's filters, and the projections of all its layer-2 maps; keep those of `count` maps for drawing.

    limit: the RMS at which filters are renormalised. Image patches are where the projections are: what the images hold
    beyond the lattice of conv1, the projections may hold as well.
    """
    deconvnet = Deconvnet(model)
    preprocessing = Preprocessing.of(model)
    tops = scan(deconvnet.graph, data, LAYERS, k, **scanning)
    first, second = (tops[layer] for layer in LAYERS)
    conv1: Any = model.conv1
    weight, stride = conv1.weight.detach().float().cpu(), conv1.stride[0]
    dead, weak = ~(first.value[:, 0] > 0), faint(weight)
    energy, aliased = spectral_energy(weight), aliased_energy(weight, stride)
    live = (second.value[:, 0] > 0).nonzero().flatten().tolist()
    patches = project_top(deconvnet, data, LAYERS[1], second, live)
    projected, activity = patches.projections.float().cpu(), (patches.values > 0).cpu()
    rms, largest = filter_rms(weight), dominance(weight)
    numbers = {
        "kernel": weight.shape[-1],
        "stride": stride,
        "filters": len(weight),
        "dead_filters": float(dead.double().mean()),
        "faint_filters": float(weak.double().mean()),
        "largest_rms_over_median": largest if math.isfinite(largest) else None,
        "largest_rms": float(rms.max()),
        "filters_at_limit": float((rms > limit * (1 - 1e-3)).double().mean()),
        **_means(~(dead | weak), energy, aliased),
        "layer2_dead_maps": 1 - len(live) / len(second.value),
        **_means(activity, spectral_energy(projected), aliased_energy(projected, stride), "layer2_"),
        "layer2_patches_aliased": _mean(aliased_energy(patches.crops.float().cpu(), stride), activity),
        "each_filter": {
            "rms": rms.tolist(),
            "dead": dead.tolist(),
            "faint": weak.tolist(),
            "aliased": aliased.tolist(),
            **dict(zip(BAND_NAMES, energy.T.tolist(), strict=True)),
        },
    }
    drawn = _chosen(LAYERS[1], second, count, "random", torch.Generator().manual_seed(seed))
    indices = [live.index(m) for m in drawn]
    numbers["layer2_drawn"] = drawn
    by_map = (part.unflatten(0, (-1, k))[indices] for part in (preprocessing.rgb(projected), ~activity))
    return Seen(numbers, preprocessing.rgb(weight), *by_map)


def _mean(shares: Tensor, which: Tensor) -> float | None:
    """The mean of those that are looked at; None where there are none."""
    return float(shares[which].mean()) if which.any() else None


def _means(which: Tensor, energy: Tensor, aliased: Tensor, prefix: str = "") -> dict[str, float | None]:
    columns = dict(zip(BAND_NAMES, energy.T, strict=True)) | {"aliased": aliased}
    return {prefix + name: _mean(column, which) for name, column in columns.items()}


def _table(seen: dict[str, Seen | str]) -> str:
    def cell(outcome: Seen | str, row: str, name: str) -> Any:
        value = None if isinstance(outcome, str) else outcome.numbers[name]
        if value is None:
            return ""
        return (
            round(100 * value, 1) if row.endswith("%") else value if isinstance(value, int) else float(f"{value:.3g}")
        )

    rows = [[row, *(cell(outcome, row, name) for outcome in seen.values())] for row, name in ROWS.items()]
    return "\n\n".join([table(["", *(TITLES[name] for name in seen)], rows), *_remarks(seen)])


def _remarks(seen: dict[str, Seen | str]) -> list[str]:
    """What the figure cannot show."""
    remarks = [f"{TITLES[name]}: diverged, {outcome}." for name, outcome in seen.items() if isinstance(outcome, str)]
    without, ours = seen["fig3 not renormalised"], seen["fig3"]
    if isinstance(without, Seen) and isinstance(ours, Seen) and torch.equal(without.filters, ours.filters):
        remarks.append("No filter came to the limit of RMS, so renormalisation did nothing: (a) and (c) are the same.")
    return remarks


def compose(seen: dict[str, Seen | str], columns: int, scale: str, quantile: float, width: int, note: str) -> Figure:
    """The five panels in the paper's layout: filters above, projections below, each over its numbers."""
    pictures: dict[str, Tensor] = {}
    for letter, name, layer in PANELS:
        outcome = seen[name]
        if isinstance(outcome, str):
            continue
        share = 0.31 if layer == 1 else 0.475  # of the width
        if layer == 1:
            pictures[letter] = _filters(outcome.filters, scale, int(share * width))
        elif len(outcome.projections):
            pictures[letter] = _projections(outcome, columns, quantile, int(share * width))
    tall = [max((pictures[p].shape[1] for p in line if p in pictures), default=width // 20) for line in ("abc", "de")]
    figure = Figure(figsize=(INCHES, sum(tall) / width * INCHES + 2), facecolor="white", layout="constrained")
    axes = figure.subplot_mosaic("aabbcc\ndddeee", height_ratios=tall)  # type: ignore[arg-type]
    for letter, name, layer in PANELS:
        _panel(axes[letter], f"({letter}) {TITLES[name]}, layer {layer}", pictures.get(letter), seen[name], layer)
    lines = textwrap.wrap(" ".join([note, *_remarks(seen)]), 260)
    figure.supxlabel("\n".join(lines), x=0.005, ha="left", fontsize=6.5, color="0.35")
    return figure


def _panel(axis: Axes, title: str, picture: Tensor | None, outcome: Seen | str, layer: int) -> None:
    axis.set_title(title, fontsize=9, weight="bold", loc="left")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)
    if picture is None:
        words = f"diverged:\n{outcome}" if isinstance(outcome, str) else "no map is ever above 0"
        axis.text(0.5, 0.5, words, ha="center", va="center", fontsize=8, transform=axis.transAxes)
        return
    axis.imshow(picture.permute(1, 2, 0).numpy(), interpolation="antialiased")
    axis.set_anchor("NW")
    axis.set_xlabel(_words(outcome.numbers, layer), fontsize=6.5, loc="left")  # type: ignore[union-attr]


def _words(numbers: dict[str, Any], layer: int) -> str:
    """The numbers of a panel, in three lines."""
    prefix = "" if layer == 1 else "layer2_"
    energy = "energy: " + ", ".join(f"{name} {_per_cent(numbers[prefix + name])}" for name in BAND_NAMES)
    beyond = f"{_per_cent(numbers[prefix + 'aliased'])} of it beyond 1/{2 * numbers['stride']} cycles per pixel"
    if layer == 2:
        return (
            f"{_per_cent(numbers['layer2_dead_maps'])} of maps dead\n{energy}\n"
            f"{beyond}, where the image patches have {_per_cent(numbers['layer2_patches_aliased'])}"
        )
    largest = numbers["largest_rms_over_median"]
    return (
        f"{numbers['filters']} of {numbers['kernel']} x {numbers['kernel']}, stride {numbers['stride']}: "
        f"{_per_cent(numbers['dead_filters'])} dead, {_per_cent(numbers['faint_filters'])} faint, "
        f"largest RMS {'-' if largest is None else format(largest, '.1f')} x median\n{energy}\n"
        f"{beyond}, which the stride aliases"
    )


def _per_cent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _filters(filters: Tensor, scale: str, width: int) -> Tensor:
    """All filters in a grid as near to a square as has no gap, `width` pixels wide."""
    count = len(filters)
    side = math.isqrt(count - 1) + 1
    columns = next((c for c in range(side, 2 * side) if count % c == 0), side)
    tile = max(width // columns - 2 * TILE_GAP, filters.shape[-1])
    tiles = resized(filters, (tile, tile))
    return grid(signed_image(tiles, together=count if scale == "panel" else 1, quantile=1.0), columns, 2 * TILE_GAP)


def _projections(seen: Seen, columns: int, quantile: float, width: int) -> Tensor:
    """A block of tiles for each map, `width` pixels wide."""
    maps, k = seen.projections.shape[:2]
    columns, side = min(columns, maps), math.isqrt(k - 1) + 1
    tile = max((width // columns - MAP_GAP) // side - TILE_GAP, 4)
    tiles = signed_image(resized(seen.projections.flatten(0, 1), (tile, tile)), quantile=quantile)
    tiles = tiles.unflatten(0, (maps, k))
    tiles[seen.empty] = 1
    return grid(torch.stack([grid(tiles_of_map, side, TILE_GAP) for tiles_of_map in tiles]), columns, MAP_GAP)
