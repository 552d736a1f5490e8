"""Figure 4: how features develop: some maps of each layer at several epochs of training.

The caption's sense: for a random subset of feature maps, the strongest activation over all training images at each of
these epochs, projected down to pixels; the colour contrast is enhanced. A sudden jump in a row is another image
taking the maximum.

What to look for: lower layers reach their final state within a few epochs, upper ones only after many (40 to 50 of the
paper's 70). The curves below the panels measure this: the correlation of a layer's activations on fixed images with
those of the last snapshot; the similarity of the last projection to the same unit's, on the same image; and the share
of maps whose strongest image changed since the snapshot before. A lower learning rate alone makes a layer settle, so
the claim only counts layers that settle before the rate first falls. An interrupted run resumes from the last half
minute of its scan.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from matplotlib.ticker import NullLocator
from torch import Tensor, nn
from torch.utils.data import Subset
from typing_extensions import Unpack

from experiments.output.feature_maps import Look, Tiles, check_choice, chosen, dead_maps, how_chosen, marked, tiles_of
from experiments.output.pages import LINE, Page, style_of
from experiments.output.results import Result
from experiments.output.tables import table
from experiments.setup.checks import as_list, at_least, share
from experiments.setup.hints import Choice, Count, Length, Limits, Names, Natural, Palette, Seed, Share
from experiments.setup.networks import EPOCHS
from experiments.setup.options import Reading, Showing, stateless
from zfnet import Deconvnet, InputError, TopActivations, receptive_field
from zfnet.analysis.development import changed, correlations_with_last, likenesses, scan_together, settled_epoch
from zfnet.data.images import as_images, image_size
from zfnet.data.preprocessing import Preprocessing
from zfnet.rendering import grid, saturated
from zfnet.scanning import Scan
from zfnet.training import rate_falls
from zfnet.weights import load, read_metadata

PAPER = {
    "epochs": list(EPOCHS),
    "settled_epoch": {"lower layers": "a few", "upper layers": [40, 50]},
    "images": 1_300_000,
    "dataset": "ImageNet 2012 training",
}
BLOCK_GAP, GAP, LABEL, CURVES = 36, 2, 40, 300  # pixels
SMALLEST, LARGEST = 60, 110  # pixels of a tile: as many panels side by side as leave tiles of the smallest size
MARKERS = "osD^v<>p"
Curve = list[float | None]  # a value for each snapshot; None where no map has one


class Panel(NamedTuple):
    """The drawn maps of one layer."""

    title: str
    layer: str
    maps: list[int]
    tiles: Tiles  # (maps, epochs, ...)

    def draw(self, tile: int, look: Look, enhance: float) -> Tensor:
        """The projections as one image (3, H, W): a row for each map, a column for each epoch."""
        pictures = saturated(look.pictures(self.tiles.signals.flatten(0, 1), (tile, tile)), enhance)
        pictures = marked(pictures, self.tiles.outside.flatten(0, 1), self.tiles.empty.flatten())
        return grid(pictures, self.tiles.signals.shape[1], GAP)


def main(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    weights: str | Path | None,
    layers: Names = ("relu1", "relu2", "relu3", "relu4", "relu5"),
    maps: Count = 6,
    choose: Choice = "random",
    epochs: Annotated[Sequence[Natural], Length()] | None = None,
    seed: Seed = 0,
    enhance: Annotated[float, Limits(0)] = 1.5,
    probes: Count = 256,
    settled: Share = 0.9,
    style: Palette = "safe",
    **options: Unpack[Showing],
) -> dict[str, Any]:
    """Draw feature maps at several epochs of training, and measure when each layer reaches its final state.

    Args:
        model: the network.
        data: the training images.
        out: the folder of the result.
        weights: the trained network's file; epochs/epoch-<number>.safetensors must be beside it.
        layers: by name; five stand for the paper's 1 to 5.
        maps: number of maps to draw for each layer.
        choose: which maps are drawn, of those above 0 at the last epoch: see Figure 2's.
        epochs: those to show; null: all whose weights were kept.
        seed: of the choice, and of the images on which activations are correlated.
        enhance: colour contrast: the distance of each pixel from its own grey, times this; 1: as in Figure 2.
        probes: training images on which activations are correlated with those of the last snapshot.
        settled: a layer counts as settled from this mean correlation on.
        style: colours of the curves: "safe" for colour-blind readers, or "paper".
        options: see `Showing` and `Reading`.
    """
    result, (look, reading) = Result("fig4", out, locals()), Look.of(options)
    result.settings["layers"] = layers = as_list(layers)
    check_choice(choose, layers)
    check(maps, probes, enhance, settled)
    page, lines, state = Page(look.width), style_of(style).lines, Path(out) / "scan.partial"
    files = snapshots(weights, epochs)
    deconvnets = [look.deconvnet(load(copy.deepcopy(model), file).eval()) for file in files.values()]
    deconvnets[-1].check(layers, image_size(as_images(data)))
    scans = scan_together([each.graph for each in deconvnets], data, layers, 1, state=state, keep_state=True, **reading)
    tops, random = {layer: [scan[layer] for scan in scans] for layer in layers}, torch.Generator().manual_seed(seed)
    drawn = {layer: chosen(layer, tops[layer][-1], maps, choose, random) for layer in layers}
    panels = panels_of(deconvnets, data, tops, drawn, Preprocessing.of(model))
    subset = Subset(data, torch.randperm(len(data), generator=random)[:probes].tolist())
    curves = measured(deconvnets, data, subset, tops, reading)
    ours = numbers(list(files), scans, curves, settled, recorded_falls(str(weights)), data) | {"drawn": drawn}
    draw_panels(page, panels, list(files), look, enhance)
    draw_curves(page, list(files), curves, settled, ours["rate_fell"] or (), lines)
    which = f"{type(model).__name__}, {scans[0].images:,} images, after {', '.join(map(str, files))} epochs."
    total = sum(len(series[-1].value) for series in tops.values())
    which += f" {sum(map(len, drawn.values()))} of {total:,} feature maps, chosen {how_chosen(choose, seed)}; "
    page.caption(which + words(panels, look, enhance, len(subset)) + rate_words(ours, list(files.values())[-1]))
    result.figure(page.done())
    result.text(summary(ours, settled))
    state.unlink(missing_ok=True)
    return result.finish(ours, PAPER)


def check(maps: int, probes: int, enhance: float, settled: float) -> None:
    """InputError for settings out of range."""
    at_least(1, maps=maps, probes=probes)
    at_least(0, enhance=enhance)
    share(settled=settled)


def snapshots(weights: str | Path | None, epochs: Sequence[int] | None = None) -> dict[int, Path]:
    """The snapshots beside a file of weights, by epoch, or those of `epochs`. InputError if they do not exist."""
    if weights is None or weights == "published":
        kind = weights or "random"
        raise InputError(f"{kind} weights have no snapshots; give model.weights=trained, or a file of experiment=train")
    folder = Path(weights).parent / "epochs"
    files = {int(file.stem[6:]): file for file in sorted(folder.glob("epoch-*.safetensors")) if file.stem[6:].isdigit()}
    if not files:
        raise InputError(f"no snapshots epoch-*.safetensors in {folder}; train the network with experiment=train")
    for n in epochs or ():
        if n not in files:
            raise InputError(f"no snapshot of epoch {n} in {folder}; there are {', '.join(map(str, sorted(files)))}")
    return {n: files[n] for n in sorted(set(epochs or files))}


def recorded_falls(weights: str) -> list[int] | None:
    """The epochs whose learning rate was lower than before; None if the file of weights does not record it."""
    history = read_metadata(weights).get("history") if Path(weights).exists() else None
    if not history or any(entry.get("learning_rate") is None for entry in history):
        return None
    return rate_falls(history)


def before_the_rate_fell(settled: Mapping[str, int | None], falls: Sequence[int] | None) -> dict[str, Any]:
    """Whether each layer had settled before the learning rate first fell; None where that is not known."""
    known = falls is not None
    first = min(falls or (), default=math.inf)
    before = {layer: (epoch is not None and epoch < first) if known else None for layer, epoch in settled.items()}
    return {"rate_fell": falls and list(falls), "settled_before_rate_fell": before}


def panels_of(
    deconvnets: Sequence[Deconvnet],
    data: Any,
    tops: Mapping[str, Sequence[TopActivations]],
    drawn: Mapping[str, list[int]],
    preprocessing: Preprocessing,
) -> list[Panel]:
    """The projections of the maps that are drawn, at each snapshot."""
    panels = []
    for number, (layer, maps) in enumerate(drawn.items(), 1):
        if maps:
            image = data[int(tops[layer][-1].image[maps[0], 0])][0]
            field = receptive_field(deconvnets[-1].graph, layer, image.shape[-2:])
            series = [
                tiles_of(deconvnet, data, layer, top, maps, field, preprocessing)
                for deconvnet, top in zip(deconvnets, tops[layer], strict=True)
            ]
            columns = (torch.cat(column, 1) for column in list(zip(*series, strict=True))[:4])
            tiles = Tiles._make((*columns, series[0].words))
            panels.append(Panel(f"Layer {number}" if len(drawn) == 5 else layer, layer, maps, tiles))
    if not panels:
        raise InputError(f"no feature map of {', '.join(drawn)} is ever above 0 on these images")
    return panels


def measured(
    deconvnets: Sequence[Deconvnet],
    data: Any,
    subset: Any,
    tops: Mapping[str, Sequence[TopActivations]],
    reading: Reading,
) -> dict[str, dict[str, Curve]]:
    """Similarity of each snapshot to the last one, averaged over all maps, by layer."""

    def means(rows: Mapping[str, Tensor]) -> dict[str, Curve]:
        return {layer: [None if m.isnan() else float(m) for m in curve.nanmean(1)] for layer, curve in rows.items()}

    last = {layer: series[-1] for layer, series in tops.items()}
    graphs = [deconvnet.graph for deconvnet in deconvnets]
    return {
        "activations": means(correlations_with_last(graphs, subset, list(tops), **stateless(reading))),
        "projections": means(likenesses(deconvnets, data, last, progress=reading.get("progress", True))),
        "changed": {layer: changed(series) for layer, series in tops.items()},
    }


def numbers(
    epochs: list[int],
    scans: Sequence[Scan],
    curves: Mapping[str, Mapping[str, Curve]],
    settled: float,
    falls: Sequence[int] | None,
    data: Any,
) -> dict[str, Any]:
    """The entries of result.json; `falls`: see `recorded_falls`."""
    images, layers = as_images(data), list(scans[0])

    def winners(top: TopActivations) -> dict[str, list[Any]]:
        columns = {name: getattr(top, name)[:, 0].tolist() for name in ("value", "image", "row", "column")}
        return columns | {"file": [images.file(i) for i in columns["image"]]}

    by_epoch = dict(zip(epochs, scans, strict=True))
    settled_epochs = {layer: settled_epoch(epochs, curve, settled) for layer, curve in curves["activations"].items()}
    return {
        "epochs": epochs,
        "settled_epoch": settled_epochs,
        **before_the_rate_fell(settled_epochs, falls),
        **curves,
        "dead_maps": {layer: {n: dead_maps(scan[layer]) for n, scan in by_epoch.items()} for layer in layers},
        "images": scans[0].images,
        "broken_images": scans[0].broken,
        "dataset": type(data).__name__,
        "winners": {layer: {n: winners(scan[layer]) for n, scan in by_epoch.items()} for layer in layers},
    }


def summary(ours: Mapping[str, Any], settled: float) -> str:
    """The correlations as a table, and notes."""
    last, ends = ours["epochs"][-1], ours["settled_epoch"]
    head = ["activations", *(f"epoch {n}" for n in ours["epochs"]), f"above {settled:g} from"]
    head.append("before the rate first fell")
    answers = {True: "yes", False: "no", None: "not recorded"}
    rows = []
    for layer, curve in ours["activations"].items():
        end = (ends[layer], answers[ours["settled_before_rate_fell"][layer]]) if ends[layer] else ("the last", "")
        rows.append([layer, *("" if r is None else f"{r:.2f}" for r in curve), *end])
    notes = [f"The learning rate fell in epochs: {listed(falls)}"] if (falls := ours["rate_fell"]) is not None else []
    notes += [
        f"{layer}: {len(dead[last])} of {len(ours['winners'][layer][last]['value'])} maps are never above 0 at the end"
        for layer, dead in ours["dead_maps"].items()
        if dead[last]
    ]
    if broken := ours["broken_images"]:
        notes.append(f"{len(broken)} image(s) could not be read, first: {broken[0]}")
    return "\n".join([table(head, rows), *([""] if notes else []), *notes])


def words(panels: Sequence[Panel], look: Look, enhance: float, probes: int) -> str:
    """For the caption: how tiles are scaled, and what the curves are."""
    colours = f" Colours are enhanced: their distance from grey, times {enhance:g}."
    white = " White: never above 0 at that epoch."
    return (
        "of each, the strongest activation at that epoch, projected. "
        f"{look.words}{colours if enhance != 1 and look.colour == 'rgb' else ''} Tiles are enlarged "
        f"({look.interpolation}) as each heading says. Hatched: outside the image."
        f"{white if any(bool(panel.tiles.empty.any()) for panel in panels) else ''} Curves: likeness to the last "
        f"epoch, means over all maps. Left: of activations, on {probes} training images, everywhere. Middle: of "
        "projections, of the unit that is strongest at the end, on its image. Right: the share of maps whose strongest "
        "image is another than at the epoch before."
    )


def rate_words(ours: Mapping[str, Any], snapshot: Path) -> str:
    """For the caption: the course of the learning rate, and its effect on the curves."""
    falls, before = ours["rate_fell"], ours["settled_before_rate_fell"]
    if read_metadata(snapshot).get("identity", {}).get("schedule") == "cosine":
        return " The learning rate of this training falls to 0 at its end: every layer settles by construction."
    if falls is None:
        return " When the learning rate fell is not recorded: a layer may have settled because it fell."
    if not falls:
        return " The learning rate did not fall: no layer settled because of it."
    return (
        f" The learning rate fell in epochs {listed(falls)} (dotted). Settled before the first of them: "
        f"{listed([layer for layer, early in before.items() if early])}; not before: "
        f"{listed([layer for layer, early in before.items() if not early])}. These may have settled because it fell."
    )


def listed(entries: Sequence[Any]) -> str:
    return ", ".join(map(str, entries)) or "none"


def draw_panels(page: Page, panels: Sequence[Panel], epochs: Sequence[int], look: Look, enhance: float) -> None:
    """The panels, as many side by side as leave room to see."""

    def tile_for(count: int) -> int:
        return ((page.columns - BLOCK_GAP * (count - 1)) // count - LABEL) // len(epochs) - GAP

    most = max((n for n in range(1, len(panels) + 1) if tile_for(n) >= SMALLEST), default=1)
    most = -(-len(panels) // -(-len(panels) // most))
    tile = min(max(tile_for(most), 4), LARGEST)
    block = LABEL + len(epochs) * (tile + GAP) - GAP
    for start in range(0, len(panels), most):
        line = panels[start : start + most]
        x = (page.columns - most * block - (most - 1) * BLOCK_GAP) // 2
        for panel in line:
            page.text(x + LABEL, page.y + LINE / 2, panel.title, weight="bold", size=9)
            named = "" if panel.title == panel.layer else f"{panel.layer}, "
            factor = f"{named}enlarged {tile / panel.tiles.signals.shape[-1]:.2g} times"
            page.text(x + LABEL + 130, page.y + LINE / 2, factor, color="0.35")
            top = page.y + 2 * LINE + 12
            for n, epoch in enumerate(epochs):
                page.text(x + LABEL + n * (tile + GAP) + tile / 2, top - LINE / 2 - 2, str(epoch), ha="center")
            for n, m in enumerate(panel.maps):
                page.text(x + LABEL - 6, top + n * (tile + GAP) + tile / 2, str(m), ha="right", color="0.35")
            page.image(panel.draw(tile, look, enhance), x + LABEL, top)
            x += block + BLOCK_GAP
        page.y += 2 * LINE + 12 + max(len(panel.maps) for panel in line) * (tile + GAP) + BLOCK_GAP // 2


def draw_curves(
    page: Page,
    epochs: Sequence[int],
    curves: Mapping[str, Mapping[str, Curve]],
    settled: float,
    falls: Sequence[int],
    colours: Sequence[str],
) -> None:
    """Three small plots in a line: a curve for each layer, and dotted where the learning rate fell."""
    titles = ("correlation of activations", "cosine of projections", "maps with another image")
    span, ticks = math.log(epochs[-1] / epochs[0]), [epochs[-1]]
    for n in reversed(epochs):  # those whose labels do not overlap
        ticks += [n] if math.log(ticks[-1] / n) > 0.09 * span else []
    wide = page.columns // 3
    for n, (title, by_layer) in enumerate(zip(titles, curves.values(), strict=True)):
        axes = page.axes(n * wide + 60, page.y + 2 * LINE, wide - 85, CURVES - 4 * LINE - 16)
        for depth, (layer, curve) in enumerate(by_layer.items()):
            marker, colour = MARKERS[depth % len(MARKERS)], colours[depth % len(colours)]
            values = [math.nan if value is None else value for value in curve]
            axes.plot(epochs, values, marker=marker, color=colour, label=layer, lw=1, ms=3)
        for epoch in falls:
            axes.axvline(epoch - 0.5, color="0.6", lw=0.6, ls=":")
        axes.set_title(title, loc="left")
        axes.set_xscale("log")
        axes.set_xticks(ticks, map(str, ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(epochs[0] / 1.1, epochs[-1] * 1.1)
        low = min((v for curve in by_layer.values() for v in curve if v is not None), default=0)
        axes.set_ylim(min(0, low) - 0.03, 1.03)
        axes.set_xlabel("epoch", labelpad=1)
        if n == 0:
            axes.axhline(settled, color="0.6", lw=0.6, ls="--")
        if n == len(titles) - 1:  # there the curves fall
            axes.legend(*axes.get_legend_handles_labels(), frameon=False, loc="lower left", labelspacing=0.2)
    page.y += CURVES
