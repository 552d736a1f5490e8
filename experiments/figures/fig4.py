"""Figure 4: how features come to be: some maps of each layer at several epochs of training.

The caption's sense: for a random subset of feature maps, the strongest activation over all training images at each of
these epochs, projected down to pixels; the colour contrast is enhanced. A sudden jump in a row is another image
taking the maximum.

What to look for: lower layers are what they will be within a few epochs, upper ones only after many (40 to 50 of the
paper's 70). The curves below the panels measure it: how the activations of a layer's maps on fixed images correlate
with those of the last snapshot; how like the last projection the same unit's is, on the same image; and on how many
maps the strongest image is another than at the snapshot before.
"""

import copy
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import Subset
from tqdm import tqdm

from experiments.output.pages import DPI, check_choice, chosen, frame, how_chosen, norm_rules, page, place, text
from experiments.output.results import Provenance, results, table, write_result
from experiments.train import EPOCHS
from zfnet import Deconvnet, InputError, TopActivations, scan
from zfnet.analysis import matching
from zfnet.data.preprocessing import Preprocessing
from zfnet.deconvnet import project_top
from zfnet.rendering import grid, resized, saturated, signed_image
from zfnet.weights import load

MARGIN, BLOCK_GAP, LABEL, CAPTION, CURVES, GAP = 24, 44, 46, 92, 400, 2  # pixels


class Snapshots(nn.ModuleDict):
    """One network at several epochs, as one network: each image is read once for all of them."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [network(images) for network in self.values()]


@dataclass
class Panel:
    """What is drawn of one layer."""

    title: str
    layer: str
    maps: list[int]
    signals: Tensor  # (maps, epochs, 3, S, S)
    empty: Tensor  # (maps, epochs): where the map is never above 0

    def draw(self, tile: int, quantile: float, enhance: float) -> Tensor:
        """The projections as one image (3, H, W): a row for each map, a column for each epoch."""
        pictures = signed_image(resized(self.signals.flatten(0, 1), (tile, tile)), quantile=quantile)
        pictures = saturated(pictures, enhance)
        pictures[self.empty.flatten()] = 1
        return grid(pictures, self.signals.shape[1], GAP)


def main(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    weights: str | Path | None,
    layers: Sequence[str] = ("relu1", "relu2", "relu3", "relu4", "relu5"),
    maps: int = 6,
    choose: str | Sequence[int] | Mapping[str, Sequence[int]] = "random",
    epochs: Sequence[int] | None = None,
    seed: int = 0,
    enhance: float = 1.5,
    quantile: float = 0.995,
    probes: int = 256,
    settled: float = 0.9,
    collisions: str = "add",
    norm: str = "identity",
    batch_size: int = 64,
    workers: int | None = None,
    width: int = 2400,
    progress: bool = True,
) -> dict[str, Any]:
    """Scan the training images with every snapshot, draw the figure, measure; return what result.json holds.

    weights: the trained network's file, beside which `epochs/epoch-<number>.safetensors` lie. epochs: those to show;
    None: all there are. choose: which maps are drawn, as in Figure 2, of those that are above 0 at the last.
    enhance: colour contrast: each pixel's distance from its own grey, times this; 1: as in Figure 2.
    quantile: of a projection's absolute values, where its grey scale ends.
    probes: training images, drawn by seed, on which activations are correlated with those of the last snapshot.
    settled: the mean correlation from which on a layer counts as settled.
    A run that was stopped goes on from the last half minute of its scan.
    """
    provenance = Provenance(model, seed=seed)
    layers = [layers] if isinstance(layers, str) else list(layers)
    _check(layers, maps, choose, enhance, quantile, probes, settled, width)
    files = snapshots(weights, epochs)
    epochs = list(files)
    networks = Snapshots({f"epoch{n}": load(copy.deepcopy(model), file) for n, file in files.items()}).eval()
    deconvnets = [Deconvnet(network, collisions=collisions, rules=norm_rules(norm)) for network in networks.values()]
    for layer in layers:
        deconvnets[-1].graph.node(layer)
    state = Path(out) / "scan.partial"
    maxima = scan(
        networks,
        data,
        [f"{name}.{layer}" for name in networks for layer in layers],
        1,
        batch_size=batch_size,
        workers=workers,
        state=state,
        keep_state=True,
        progress=progress,
    )
    tops = {layer: [maxima[f"{name}.{layer}"] for name in networks] for layer in layers}
    preprocessing = Preprocessing.of(model)

    random = torch.Generator().manual_seed(seed)
    drawn = {layer: chosen(layer, tops[layer][-1], maps, choose, random) for layer in layers}
    if not any(drawn.values()):
        raise InputError(f"no feature map of {', '.join(layers)} is ever above 0 on these {maxima.images} images")
    panels = []
    for number, layer in enumerate(layers, 1):
        if drawn[layer]:
            signals = [
                preprocessing.rgb(project_top(deconvnet, data, layer, top, drawn[layer]).projections).cpu()
                for deconvnet, top in zip(deconvnets, tops[layer], strict=True)
            ]
            title = f"Layer {number}" if len(layers) == 5 else layer
            empty = torch.stack([top.value[drawn[layer], 0] <= 0 for top in tops[layer]], 1)
            panels.append(Panel(title, layer, drawn[layer], torch.stack(signals, 1), empty))

    indices = torch.randperm(len(data), generator=random)[:probes]
    activations = correlations_with_last(deconvnets, data, layers, indices, workers=workers, progress=progress)
    projections = likenesses(deconvnets, data, {layer: tops[layer][-1] for layer in layers}, progress=progress)
    measures = {
        "activations": {layer: _means(correlation) for layer, correlation in activations.items()},
        "projections": {layer: _means(likeness) for layer, likeness in projections.items()},
        "changed": {layer: changed(tops[layer]) for layer in layers},
    }
    dead = {
        layer: {n: (~(top.value[:, 0] > 0)).nonzero().flatten().tolist() for n, top in zip(epochs, series, strict=True)}
        for layer, series in tops.items()
    }

    def winners(top: TopActivations) -> dict[str, list[Any]]:
        columns = {name: getattr(top, name)[:, 0].tolist() for name in ("value", "image", "row", "column")}
        return columns | {"file": [data.file(i) if hasattr(data, "file") else None for i in columns["image"]]}

    count, total = sum(map(len, drawn.values())), sum(len(series[-1].value) for series in tops.values())
    note = (
        f"{type(model).__name__}, {maxima.images:,} training images, after {_listed(epochs)} epochs.  {count} of "
        f"{total:,} feature maps, chosen {how_chosen(choose, seed)}; of each, the strongest activation at that epoch, "
        "projected.  "
        "Each projection has its own grey scale"
        + (f", and colours are enhanced: their distance from grey, times {enhance:g}.  " if enhance != 1 else ".  ")
        + ("White: never above 0 at that epoch.  " if any(bool(p.empty.any()) for p in panels) else "")
        + f"Below, means over all maps.  Activations: on {min(probes, len(data))} training images, everywhere.  "
        "Projections: of the unit that is strongest at the end, on its image, by their cosine."
    )
    ends = {layer: settled_epoch(epochs, curve, settled) for layer, curve in measures["activations"].items()}
    ours = {
        "epochs": epochs,
        "settled_epoch": ends,
        **measures,
        "drawn": drawn,
        "dead_maps": dead,
        "images": maxima.images,
        "broken_images": maxima.broken,
        "dataset": type(data).__name__,
        "winners": {
            layer: {n: winners(t) for n, t in zip(epochs, series, strict=True)} for layer, series in tops.items()
        },
    }
    paper = dict.fromkeys(ours) | {
        "epochs": list(EPOCHS),
        "settled_epoch": {"lower layers": "a few", "upper layers": [40, 50]},
        "images": 1_300_000,
        "dataset": "ImageNet 2012 training",
    }
    settings = {
        "model": type(model).__name__,
        "weights": str(weights),
        "layers": layers,
        "maps": maps,
        "choose": choose,
        "seed": seed,
        "enhance": enhance,
        "quantile": quantile,
        "probes": probes,
        "settled": settled,
        "collisions": collisions,
        "norm": norm,
    }
    lines = [
        [layer, *("" if r is None else f"{r:.2f}" for r in curve), ends[layer] or "the last"]
        for layer, curve in measures["activations"].items()
    ]
    summary = table(["activations", *(f"epoch {n}" for n in epochs), f"above {settled:g} from"], lines)
    print(summary)
    with results(out) as folder:
        figure = draw(panels, epochs, measures, settled, width, note, quantile=quantile, enhance=enhance)
        figure.savefig(folder / "figure.png", dpi=DPI)
        figure.savefig(folder / "figure.pdf", dpi=DPI)
        (folder / "table.md").write_text(summary + "\n", encoding="utf-8")
        result = write_result(folder, "fig4", paper, ours, settings, provenance)
    state.unlink(missing_ok=True)
    for layer, dead_maps in dead.items():
        if number := len(dead_maps[epochs[-1]]):
            print(f"{layer}: {number} of {len(tops[layer][-1].value)} maps are never above 0 at the end")
    if maxima.broken:
        print(f"{len(maxima.broken)} image(s) could not be read, first: {maxima.broken[0]}")
    return result


def _check(
    layers: Sequence[str],
    maps: int,
    choose: Any,
    enhance: float,
    quantile: float,
    probes: int,
    settled: float,
    width: int,
) -> None:
    check_choice(choose, layers)
    for name, value, least in (
        ("maps", maps, 1),
        ("probes", probes, 1),
        ("enhance", enhance, 0),
        ("width", width, 400),
    ):
        if value < least:
            raise InputError(f"{name} is {value}; give at least {least}")
    for name, share in (("quantile", quantile), ("settled", settled)):
        if not 0 < share <= 1:
            raise InputError(f"{name} is {share}; give a number above 0, up to 1")


def snapshots(weights: str | Path | None, epochs: Sequence[int] | None = None) -> dict[int, Path]:
    """The snapshots beside a file of weights, by epoch; of these `epochs`. InputError if they are not there."""
    if weights is None:
        raise InputError("random weights have no snapshots; give model.weights=trained, or a file of experiment=train")
    folder = Path(weights).parent / "epochs"
    files = {int(file.stem[6:]): file for file in sorted(folder.glob("epoch-*.safetensors")) if file.stem[6:].isdigit()}
    if not files:
        raise InputError(f"no snapshots epoch-*.safetensors in {folder}; train the network with experiment=train")
    for n in epochs or ():
        if n not in files:
            raise InputError(f"no snapshot of epoch {n} in {folder}; there are {_listed(sorted(files))}")
    return {n: files[n] for n in sorted(set(epochs or files))}


def correlations_with_last(
    deconvnets: Sequence[Deconvnet],
    data: Any,
    layers: Sequence[str],
    indices: Tensor,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Tensor]:
    """By layer, how each map's activations at each snapshot correlate with those at the last: (snapshots, maps).

    Pearson's, over all places of the images `indices`. 0 where a map does not vary at a snapshot, NaN where it does
    not at the last.
    """
    probes, last = Subset(data, indices.tolist()), deconvnets[-1].graph
    correlations: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    for deconvnet in tqdm(deconvnets, unit=" snapshots", desc="correlate", disable=not progress):
        matrices = matching.correlations(deconvnet.graph, last, probes, layers, workers=workers, progress=False)
        for layer, correlation in matrices.items():
            correlations[layer].append(correlation.diagonal())
    rows = {layer: torch.stack(diagonals) for layer, diagonals in correlations.items()}
    return {
        layer: curve.where(curve[-1] > 0, torch.nan) for layer, curve in rows.items()
    }  # with itself: 1, or constant


def likenesses(
    deconvnets: Sequence[Deconvnet],
    data: Any,
    tops: Mapping[str, TopActivations],
    *,
    at_once: int = 32,
    progress: bool = True,
) -> dict[str, Tensor]:
    """By layer, how like the last snapshot's projection of its winner that of each snapshot is: (snapshots, maps).

    The cosine between the two, of the same unit on the same image. 0 where that of a snapshot is empty, NaN where that
    of the last is.
    """
    cosines: dict[str, Tensor] = {}
    with tqdm(
        total=sum(len(t.value) for t in tops.values()), unit=" maps", desc="compare", disable=not progress
    ) as bar:
        for layer, top in tops.items():
            parts = []
            for maps in torch.arange(len(top.value)).split(at_once):
                units = top.units(maps.tolist())
                items = [data[i] for i in units[:, 0].tolist()]
                units[:, 0] = torch.arange(len(maps))
                images = torch.stack([item[0] if isinstance(item, tuple | list) else item for item in items])
                projections = [d.project_units(images, layer, units) for d in deconvnets]
                pixels = torch.stack([p.projections.flatten(1) for p in projections]).double()
                dots, own = (pixels * pixels[-1]).sum(2), pixels.square().sum(2)
                cosine = dots / (own * own[-1]).sqrt()
                parts.append(cosine.where(own > 0, 0.0).where(own[-1] > 0, torch.nan).cpu())
                bar.update(len(maps))
            cosines[layer] = torch.cat(parts, 1)
    return cosines


def changed(tops: Sequence[TopActivations]) -> list[float | None]:
    """The share of maps whose strongest image is another than at the snapshot before; of those above 0 at both."""
    shares: list[float | None] = [None]
    for before, now in pairwise(tops):
        live = (before.value[:, 0] > 0) & (now.value[:, 0] > 0)
        other = (before.image[:, 0] != now.image[:, 0])[live]
        shares.append(float(other.double().mean()) if len(other) else None)
    return shares


def settled_epoch(epochs: Sequence[int], curve: Sequence[float | None], level: float) -> int | None:
    """The first snapshot from which on the curve stays at or above the level; None: only the last, like itself."""
    below = [n for n, r in enumerate(curve) if r is None or r < level]
    after = epochs[below[-1] + 1 :] if below else epochs
    return after[0] if len(after) > 1 else None


def _means(rows: Tensor) -> list[float | None]:
    """Means over maps (snapshots, maps), without NaN; None where there is no other."""
    return [None if m.isnan() else float(m) for m in rows.nanmean(1)]


def _listed(epochs: Sequence[int]) -> str:
    return ", ".join(map(str, epochs))


def draw(
    panels: Sequence[Panel],
    epochs: Sequence[int],
    measures: Mapping[str, Mapping[str, Sequence[float | None]]],
    settled: float,
    width: int,
    note: str,
    **contrast: float,
) -> Figure:
    """The panels, as many side by side as leave room to see; below them the curves."""
    columns = len(epochs)

    def tile_for(count: int) -> int:
        return ((width - 2 * MARGIN - BLOCK_GAP * (count - 1)) // count - LABEL) // columns - GAP

    most = max((n for n in range(1, len(panels) + 1) if tile_for(n) >= 80), default=1)
    lines = -(-len(panels) // most)
    most = -(-len(panels) // lines)
    tile = min(max(tile_for(most), 4), 130)
    notes = textwrap.wrap(note, (width - 2 * MARGIN) // 11)
    tall = [
        CAPTION + max(len(p.maps) for p in panels[n : n + most]) * (tile + GAP) for n in range(0, len(panels), most)
    ]
    height = sum(tall) + BLOCK_GAP * lines + CURVES + 24 * len(notes) + MARGIN
    block = LABEL + columns * (tile + GAP) - GAP
    figure, y = page(width, height), 0
    for line, rows in enumerate(tall):
        panels_in_line = panels[line * most : (line + 1) * most]
        x = (width - most * block - (most - 1) * BLOCK_GAP) // 2
        for panel in panels_in_line:
            text(figure, x + LABEL, y + 30, panel.title, weight="bold", size=9)
            if panel.title != panel.layer:
                text(figure, x + LABEL + 135, y + 32, panel.layer, size=6.5, color="0.35")
            for n, epoch in enumerate(epochs):
                middle = x + LABEL + n * (tile + GAP) + tile / 2
                text(figure, middle, y + 72, str(epoch), size=6.5, ha="center")
            for n, m in enumerate(panel.maps):
                middle = y + CAPTION + n * (tile + GAP) + tile / 2
                text(figure, x + LABEL - 8, middle, str(m), size=5.5, ha="right", color="0.35")
            place(figure, panel.draw(tile, **contrast), x + LABEL, y + CAPTION)
            x += block + BLOCK_GAP
        y += rows + BLOCK_GAP
    _curves(figure, y, width, epochs, measures, settled)
    for n, words in enumerate(reversed(notes)):
        text(figure, MARGIN, height - MARGIN - 24 * n, words, size=6.5, color="0.35")
    return figure


def _curves(
    figure: Figure,
    y: int,
    width: int,
    epochs: Sequence[int],
    measures: Mapping[str, Mapping[str, Sequence[float | None]]],
    settled: float,
) -> None:
    """Three small plots in a line: a curve for each layer."""
    titles = {
        "activations": "activations: correlation with the last snapshot's",
        "projections": "projections: likeness to the last snapshot's",
        "changed": "share of maps whose strongest image changed",
    }
    plot_width = (width - 2 * MARGIN) // 3
    for n, (name, title) in enumerate(titles.items()):
        axes = figure.add_axes(frame(figure, MARGIN + n * plot_width + 70, y + 50, plot_width - 100, CURVES - 130))
        curves = measures[name]
        for depth, (layer, curve) in enumerate(curves.items()):
            colour = colormaps["viridis_r"](0.1 + 0.9 * depth / max(1, len(curves) - 1))
            known = [(epoch, value) for epoch, value in zip(epochs, curve, strict=True) if value is not None]
            axes.plot(*zip(*known, strict=True), ".-", color=colour, label=layer, lw=1.1, ms=4) if known else None
        if name == "activations":
            axes.axhline(settled, color="0.6", lw=0.6, ls="--")
            axes.legend(fontsize=6, frameon=False, loc="lower right")
        axes.set_title(title, fontsize=7.5, loc="left")
        axes.set_xscale("log")
        axes.set_xticks(list(epochs), map(str, epochs), fontsize=6)
        axes.minorticks_off()
        axes.tick_params(labelsize=6, length=2)
        low = min((v for curve in curves.values() for v in curve if v is not None), default=0)
        axes.set_ylim(min(0, low) - 0.03, 1.03)
        axes.set_xlabel("epoch", fontsize=6.5, labelpad=1)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
