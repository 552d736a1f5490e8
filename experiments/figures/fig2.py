"""Figure 2: the strongest activations of feature maps, projected, beside the patches that caused them.

The caption's sense: for a random subset of feature maps, the nine strongest activations over the validation set, each
projected down to pixels through the deconvnet, beside the patches of the images that caused them.

What to look for: the patches of one map share something, and the projection shows what. Edges and colours in layer 1
(where the filters themselves are shown), corners and textures above, then parts, then objects in varying pose; features
in which the patches differ (background, colour) are missing from the projections.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from typing_extensions import Unpack

from experiments.output.feature_maps import (
    Look,
    Panel,
    check_choice,
    check_numbers,
    chosen,
    dead_maps,
    how_chosen,
    network_name,
    panel_of,
)
from experiments.output.pages import LINE, Page, box, enlarged, show
from experiments.output.results import Result
from experiments.output.tables import table
from experiments.setup.checks import as_list, grid
from experiments.setup.hints import Choice, Count, Grid, Names, Seed
from experiments.setup.options import Showing
from zfnet import Deconvnet, InputError, TopActivations, receptive_field, scan
from zfnet.analysis.filters import lattice, mean_aliased, together
from zfnet.checks import pair
from zfnet.data.images import as_images, image_size, read_item
from zfnet.data.preprocessing import Preprocessing
from zfnet.deconvnet import project_top
from zfnet.graph import Graph
from zfnet.receptive_fields import ReceptiveField
from zfnet.scanning import Scan

GRIDS = ((3, 3), (4, 4), (3, 4), (5, 2), (5, 2))  # rows and columns of feature maps, layers 1 to 5
PAPER = {
    "k": 9,
    "grids": [list(shape) for shape in GRIDS],
    "patch_sizes": [7, 27, 75, 107, 139],
    "images": 50000,
    "dataset": "ImageNet 2012 validation",
}
LAYER_GAP, SIDE_GAP, LARGEST, HEAD = 36, 16, 100, 2 * LINE + 8  # pixels

PATH = (
    " Patches are what the backward path reaches while gates and norms are held fixed; gates and norms depend on more "
    "of the image."
)


def main(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    layers: Names = ("relu1", "relu2", "relu3", "relu4", "relu5"),
    k: Count = 9,
    grids: Sequence[Grid] | None = None,
    choose: Choice = "random",
    seed: Seed = 0,
    distinct: bool = True,
    scale: Literal["patch", "map"] = "patch",
    **options: Unpack[Showing],
) -> dict[str, Any]:
    """Draw the strongest activations of feature maps, projected, beside the patches that caused them.

    Args:
        model: the network.
        data: the images.
        out: the folder of the result.
        layers: by name; five stand for the paper's 1 to 5.
        k: activations of each map.
        grids: rows and columns of feature maps for each layer; null: the paper's for five layers, else 4 x 4.
        choose: which maps are drawn: "random" by seed, as in the paper, "strongest", or maps by number, for all layers
            or by layer. Dead maps, which are never above 0, are left out; those above 0 on fewer than k images come
            last.
        seed: of the choice.
        distinct: take at most one activation from each image.
        scale: each projection has its own scale ("patch"), or those of a map share one ("map").
        options: see `Showing` and `Reading`.
    """
    result, (look, reading) = Result("fig2", out, locals()), Look.of(options, scale)
    layers = as_list(layers)
    grids = checked_grids(layers, grids)
    check_choice(choose, layers)
    page, deconvnet, state = Page(look.width), look.deconvnet(model), Path(out) / "scan.partial"
    expected = image_size(as_images(data))
    deconvnet.check(layers, expected)
    check_numbers(choose, layers, deconvnet.graph, expected)
    tops = scan(deconvnet.graph, data, layers, k, distinct=distinct, state=state, keep_state=True, **reading)
    first = min(i for top in tops.values() for i in top.image.flatten().tolist() if i >= 0)
    size = pair(read_item(as_images(data), first)[0].shape[-2:])
    fields = {layer: receptive_field(deconvnet.graph, layer, size) for layer in layers}
    random, counts = torch.Generator().manual_seed(seed), [rows * columns for rows, columns in grids]
    drawn = {x: chosen(x, tops[x], count, choose, random) for x, count in zip(layers, counts, strict=True)}
    words = caption(tops, drawn, how_chosen(choose, seed), distinct) + PATH * any(not f.exact for f in fields.values())
    panels = panels_of(deconvnet, data, tops, drawn, fields, grids, look)
    compose(page, panels, f"{network_name(model)}, {words} {look.words}")
    result.figure(page.done())
    print(words)
    result.figure(draw_boxes(data, Preprocessing.of(model), tops, drawn, fields, look.width), "boxes")
    above = {panel.layer: drawn[panel.layer] for panel in panels if panel.left == "projections"}
    if seen := lattice_of(deconvnet, data, tops, above):
        result.text(lattice_table(seen))
    result.settings |= {"layers": layers, "image_size": list(size)}
    ours = {"k": k, "grids": [list(shape) for shape in grids], "drawn": drawn, "lattice": seen}
    ours |= numbers(deconvnet.graph, tops, fields, data)
    state.unlink(missing_ok=True)
    return result.finish(ours, PAPER)


def numbers(graph: Graph, tops: Scan, fields: Mapping[str, ReceptiveField], data: Any) -> dict[str, Any]:
    """The entries of result.json about all maps."""
    return {
        "layers": {layer: winners(graph, layer, top, fields[layer], data) for layer, top in tops.items()},
        "patch_sizes": [f.size[0] if f.size[0] == f.size[1] else list(f.size) for f in fields.values()],
        "dead_maps": {layer: dead_maps(top) for layer, top in tops.items()},
        "images": tops.images,
        "broken_images": tops.broken,
        "dataset": type(data).__name__,
    }


def checked_grids(layers: Sequence[str], grids: Sequence[Sequence[int]] | None) -> list[Sequence[int]]:
    """Rows and columns of maps for each layer. Raises InputError for other values."""
    known = list(grids or (GRIDS if len(layers) == len(GRIDS) else [(4, 4)] * len(layers)))
    if len(known) != len(layers):
        raise InputError(f"{len(layers)} layers and {len(known)} grids; give one grid, [rows, columns], for each layer")
    for shape in known:
        grid(shape)
    return known


def panels_of(
    deconvnet: Deconvnet,
    data: Any,
    tops: Scan,
    drawn: Mapping[str, list[int]],
    fields: Mapping[str, ReceptiveField],
    grids: Sequence[Sequence[int]],
    look: Look,
) -> list[Panel]:
    """The panels of the layers that have maps to draw."""
    if not any(drawn.values()):
        raise InputError(f"no feature map of {', '.join(drawn)} is ever above 0 on these {tops.images} images")
    preprocessing = Preprocessing.of(deconvnet.model)
    panels = []
    for number, ((layer, maps), (_, columns)) in enumerate(zip(drawn.items(), grids, strict=True), 1):
        title = f"Layer {number}" if len(drawn) == len(GRIDS) else layer
        if maps:
            shown = (maps, columns, fields[layer], preprocessing, look)
            panels.append(panel_of(title, deconvnet, data, layer, tops[layer], *shown))
    return panels


def caption(tops: Scan, drawn: Mapping[str, Sequence[int]], chosen_how: str, distinct: bool) -> str:
    """How many images, how many maps of how many, and how many are dead."""
    total, k = sum(len(top.value) for top in tops.values()), next(iter(tops.values())).value.shape[1]
    broken = f" {len(tops.broken)} image(s) could not be read, first: {tops.broken[0]}." if tops.broken else ""
    counts = {layer: len(dead_maps(top)) for layer, top in tops.items()}
    dead = [f"{n} of {len(tops[layer].value)} maps of {layer}" for layer, n in counts.items() if n]
    different = ", from different images" if distinct else ""
    return (
        f"{tops.images:,} images.{broken} {sum(map(len, drawn.values()))} of {total:,} feature maps, chosen "
        f"{chosen_how}; of each, the {k} strongest activations{different} (paper: 9, of 50,000 images)."
        + (f" Never above 0, and not drawn: {', '.join(dead)}." if dead else "")
    )


def winners(
    graph: Graph, layer: str, top: TopActivations, field: ReceptiveField, data: Any
) -> dict[str, list[dict[str, Any]]]:
    """The strongest activations of every map of a layer: the value, its place, and the box that its unit sees."""
    photographs = as_images(data)
    entries: dict[str, list[dict[str, Any]]] = {}
    for m in range(len(top.value)):
        own = receptive_field(graph, layer, field.image_size, m)
        units = zip(top.value[m].tolist(), top.units([m]).tolist(), strict=True)
        entries[str(m)] = [
            {"value": value, "image": i, "file": photographs.file(i)}
            | {"row": row, "column": column, "box": list(own.box(row, column))}
            for value, (i, _, row, column) in units
            if i >= 0
        ]
    return entries


def lattice_of(
    deconvnet: Deconvnet, data: Any, tops: Scan, drawn: Mapping[str, Sequence[int]]
) -> dict[str, Any] | None:
    """How much the lattice of the first convolution's stride shows in the projections of some maps.

    None if there is no such convolution, if it has no stride, or if no layer lies above it.
    """
    modules = map(deconvnet.graph.module, deconvnet.graph.nodes)
    first = next((module for module in modules if isinstance(module, nn.Conv2d)), None)
    if not drawn or first is None or first.stride[0] == 1 or first.stride[0] != first.stride[1]:
        return None
    stride, layers = int(first.stride[0]), {}

    def measured(signal: Tensor, which: Tensor | None = None) -> dict[str, float | None]:
        signal = signal.detach().float().cpu()
        return {"beyond": mean_aliased(signal, stride, which), "lattice": lattice(signal, stride, which)}

    for layer, maps in drawn.items():
        patches = project_top(deconvnet, data, layer, tops[layer], maps)
        live = (patches.values > 0).cpu()
        layers[layer] = {"projections": measured(patches.projections, live), "patches": measured(patches.crops, live)}
    return {"stride": stride, "filters": measured(together(first.weight)), "layers": layers}


def lattice_table(told: Mapping[str, Any]) -> str:
    """These numbers as a table, and their meaning."""
    stride, rows = told["stride"], []
    for layer, own in told["layers"].items():
        columns = *own.values(), told["filters"]
        shares = ("" if c["beyond"] is None else round(100 * c["beyond"], 1) for c in columns)
        rows.append([layer, *shares, *("" if c["lattice"] is None else round(c["lattice"], 2) for c in columns)])
    head = ["", "fine, %: projections", "patches", "filters", "grid: projections", "patches", "filters"]
    return (
        f"Does the first layer's stride of {stride} leave a grid in the projections?\n\n{table(head, rows)}\n\n"
        f"fine: the share of energy at 1/{2 * stride} cycles per pixel and above, which this stride cannot hold. "
        f"grid: the power at multiples of 1/{stride} cycles per pixel over the power beside them; 1: no grid. "
        "filters: those of the first layer at random places. What projections have more comes from the stride."
    )


def compose(page: Page, panels: Sequence[Panel], words: str) -> None:
    """Layers of similar height side by side, each with projections left and patches right, and the caption."""
    lines: list[list[Panel]] = []
    for panel in panels:
        if lines and len(lines[-1]) == 1:
            heights = sorted(p.side * p.rows for p in (lines[-1][0], panel))
            if heights[0] / heights[1] >= 0.75:
                lines[-1].append(panel)
                continue
        lines.append([panel])
    enlargements = {}
    for line in lines:
        tile = max(t for t in range(4, LARGEST) if t == 4 or _wide(line, t) <= page.columns)
        x = (page.columns - _wide(line, tile)) // 2
        for panel in line:
            enlargements[panel.title] = panel.enlargement(tile)
            page.text(x, page.y + LINE / 2, panel.title, weight="bold", size=9)
            if panel.title != panel.layer:
                page.text(x + 110, page.y + LINE / 2, panel.layer, color="0.35")
            for label, block in zip((panel.left, panel.right), panel.draw(tile), strict=True):
                page.text(x, page.y + 1.7 * LINE, label)
                page.image(block, x, page.y + HEAD)
                x += panel.extent(tile, panel.columns) + SIDE_GAP
            x += LAYER_GAP - SIDE_GAP
        page.y += HEAD + max(p.extent(tile, p.rows) for p in line) + LAYER_GAP // 2
    factors = ", ".join(f"{factor:.2g} ({title})" for title, factor in enlargements.items())
    white = " White tiles: no activation above 0." if any(bool(panel.empty.any()) for panel in panels) else ""
    drawn = f"Drawn at {factors} times their size, {panels[0].look.interpolation}."
    page.caption(f"{words} {drawn} Hatched: outside the image.{white}")


def _wide(line: Sequence[Panel], tile: int) -> int:
    sides = sum(2 * panel.extent(tile, panel.columns) + SIDE_GAP for panel in line)
    return sides + LAYER_GAP * (len(line) - 1)


def draw_boxes(
    data: Any,
    preprocessing: Preprocessing,
    tops: Scan,
    drawn: Mapping[str, Sequence[int]],
    fields: Mapping[str, ReceptiveField],
    width: float,
    columns: int = 6,
) -> Figure:
    """The strongest winners of some maps as boxes on their whole images: how large is a patch?"""
    page, left, gap = Page(width), 200, 8
    tile = (page.columns - left) // columns - gap
    for layer, maps in drawn.items():
        if not maps:
            continue
        top, field = tops[layer], fields[layer]
        rows, wide = field.image_size
        words = f"{layer}\n{field.size[0]} x {field.size[1]}\nof {rows} x {wide} pixels"
        scale, high = tile / wide, round(tile * rows / wide)
        page.text(left - 14, page.y + LINE + high / 2, words, ha="right")
        for n, m in enumerate(maps[:columns]):
            if top.image[m, 0] >= 0:
                image = preprocessing.pixels(read_item(as_images(data), int(top.image[m, 0]))[0]).clamp(0, 1)
                x = left + n * (tile + gap)
                page.text(x + tile / 2, page.y + LINE / 2, f"map {m}", ha="center")
                axes = page.axes(x, page.y + LINE, tile, high)
                show(axes, enlarged(image[None], (high, tile))[0])
                box(axes, field.box(int(top.row[m, 0]), int(top.column[m, 0])), scale)
                axes.set(xlim=(-0.5, tile - 0.5), ylim=(high - 0.5, -0.5))
        page.y += LINE + high + gap
    page.caption("What the unit of each map's strongest activation sees, as a box on its image.")
    return page.done()
