"""Figure 2: feature maps of each layer, by what activates them most and by what they respond to in it.

The caption's sense: for a random subset of feature maps, the nine strongest activations over the validation set, each
projected down to pixels through the deconvnet, beside the patches of the images that caused them.

What to look for: the patches of one map share something, and the projection says what. Edges and colours in layer 1
(where the filters themselves are shown), corners and textures above, then parts, then objects in varying pose; what
the patches differ in (background, colour) is missing from the projections.
"""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from experiments.output.pages import DPI, check_choice, how_chosen, norm_rules, page, place, text
from experiments.output.pages import chosen as _chosen
from experiments.output.results import Provenance, results, write_result
from zfnet import Deconvnet, InputError, TopActivations, receptive_field, scan
from zfnet.checks import pair
from zfnet.data.images import as_images
from zfnet.data.preprocessing import Preprocessing
from zfnet.deconvnet import project_top
from zfnet.errors import unknown_name
from zfnet.graph import Graph
from zfnet.receptive_fields import ReceptiveField
from zfnet.rendering import GREY, grid, outside, resized, signed_image

GRIDS = ((3, 3), (4, 4), (3, 4), (5, 2), (5, 2))  # rows and columns of feature maps, layers 1 to 5
LAYER_GAP, CAPTION, SIDE_GAP, MAP_GAP, TILE_GAP = 40, 86, 24, 7, 1  # pixels


@dataclass
class Panel:
    """What is drawn of one layer."""

    title: str
    layer: str
    left: str
    right: str
    rows: int
    columns: int
    signals: Tensor  # (maps, n, 3, S, S): projections, where n is k, or filters, where it is 1
    patches: Tensor  # (maps, k, 3, S, S) in 0..1
    empty: Tensor  # (maps, k): where there is no activation above 0
    scaling: dict[str, Any]  # of signals: see zfnet.rendering.contrast

    @property
    def side(self) -> int:
        """Tiles along one side of a feature map's block."""
        return math.ceil(math.sqrt(self.patches.shape[1]))

    def width(self, tile: int) -> int:
        return 2 * self.extent(tile, self.columns) + SIDE_GAP

    def height(self, tile: int) -> int:
        return self.extent(tile, self.rows) + CAPTION

    def extent(self, tile: int, maps: int) -> int:
        """Pixels of a row or column of maps."""
        return maps * (self.side * (tile + TILE_GAP) - TILE_GAP) + (maps - 1) * MAP_GAP

    def draw(self, tile: int) -> tuple[Tensor, Tensor]:
        """Projections and patches as two images (3, H, W)."""
        block = self.side * (tile + TILE_GAP) - TILE_GAP
        maps, count = self.signals.shape[:2]
        size = (block, block) if count == 1 else (tile, tile)
        left = signed_image(resized(self.signals.flatten(0, 1), size), **self.scaling).unflatten(0, (maps, count))
        right = resized(self.patches.flatten(0, 1), (tile, tile)).clamp(0, 1).unflatten(0, (maps, -1))
        right[self.empty] = 1
        if count > 1:
            left[self.empty] = 1

        def whole(tiles: Tensor) -> Tensor:
            columns = self.side if tiles.shape[1] > 1 else 1
            blocks = [_square(grid(tiles_of_map, columns, TILE_GAP), block) for tiles_of_map in tiles]
            return grid(torch.stack(blocks), self.columns, MAP_GAP)

        return whole(left), whole(right)


def _square(image: Tensor, side: int) -> Tensor:
    """The image at the top of a white square: k need not fill one."""
    whole = image.new_ones(3, side, side)
    whole[:, : image.shape[1], : image.shape[2]] = image
    return whole


def main(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    layers: Sequence[str] = ("relu1", "relu2", "relu3", "relu4", "relu5"),
    k: int = 9,
    grids: Sequence[Sequence[int]] | None = None,
    choose: str | Sequence[int] | Mapping[str, Sequence[int]] = "random",
    seed: int = 0,
    distinct: bool = True,
    scale: str = "patch",
    quantile: float = 0.995,
    collisions: str = "add",
    norm: str = "identity",
    batch_size: int = 64,
    workers: int | None = None,
    width: int = 2400,
    progress: bool = True,
) -> dict[str, Any]:
    """Scan a dataset, draw the figure, write every winner of every map; return what result.json holds.

    grids: rows and columns of feature maps for each layer; None: the paper's for five layers, else 4 x 4.
    choose: which maps are drawn: "random" by seed, as in the paper, "strongest", or maps by number, for all layers or
    by layer. A map that is never above 0 is dead: it is counted, and not drawn; one that is above 0 on fewer than k
    images is drawn at random only where there are not enough others. distinct: nine different images.
    scale: each projection has its own grey scale ("patch"), or those of a map have one ("map").
    quantile: of a projection's absolute values, where its grey scale ends. width: of the picture, pixels.
    """
    provenance = Provenance(model, seed=seed)
    layers = [layers] if isinstance(layers, str) else list(layers)
    grids = list(grids or (GRIDS if len(layers) == len(GRIDS) else [(4, 4)] * len(layers)))
    _check(layers, grids, choose, scale, quantile, width)
    preprocessing = Preprocessing.of(model)
    deconvnet = Deconvnet(model, collisions=collisions, rules=norm_rules(norm))
    tops = scan(
        deconvnet.graph,
        data,
        layers,
        k,
        batch_size=batch_size,
        distinct=distinct,
        workers=workers,
        state=Path(out) / "scan.partial",
        progress=progress,
    )
    images = {i for top in tops.values() for i in top.image.flatten().tolist() if i >= 0}
    size = tuple(data[min(images)][0].shape[-2:])

    random = torch.Generator().manual_seed(seed)
    drawn, dead, panels = {}, {}, []
    fields = {layer: receptive_field(deconvnet.graph, layer, size) for layer in layers}  # type: ignore[arg-type]
    for number, (layer, (rows, columns)) in enumerate(zip(layers, grids, strict=True), 1):
        top = tops[layer]
        dead[layer] = (~(top.value[:, 0] > 0)).nonzero().flatten().tolist()
        drawn[layer] = _chosen(layer, top, rows * columns, choose, random)
        if not drawn[layer]:
            continue
        title = f"Layer {number}" if len(layers) == len(GRIDS) else layer
        panels.append(
            panel_of(
                title, deconvnet, data, layer, top, drawn[layer], columns, fields[layer], preprocessing, scale, quantile
            )
        )
    if not panels:
        raise InputError(f"no feature map of {', '.join(layers)} is ever above 0 on these {tops.images} images")

    photographs = as_images(data)

    def winners(layer: str) -> dict[str, list[dict[str, Any]]]:
        top = tops[layer]
        entries: dict[str, list[dict[str, Any]]] = {}
        for m in range(len(top.value)):
            field = receptive_field(deconvnet.graph, layer, fields[layer].image_size, m)
            entries[str(m)] = [
                {
                    "value": value,
                    "image": image,
                    "file": photographs.file(image),
                    "row": row,
                    "column": column,
                    "box": list(field.box(row, column)),
                }
                for value, (image, _, row, column) in zip(top.value[m].tolist(), top.units([m]).tolist(), strict=True)
                if image >= 0
            ]
        return entries

    count, total = sum(map(len, drawn.values())), sum(len(top.value) for top in tops.values())
    note = (
        f"{type(model).__name__}, {tops.images:,} images. {count} of {total:,} feature maps, chosen "
        f"{how_chosen(choose, seed)}; of each, "
        f"the {k} strongest activations" + (", from different images." if distinct else ".")
    )
    paper = {
        "layers": None,
        "k": 9,
        "grids": [list(g) for g in GRIDS],
        "patch_sizes": [7, 27, 75, 107, 139],
        "drawn": None,
        "dead_maps": None,
        "images": 50000,
        "broken_images": None,
        "dataset": "ImageNet 2012 validation",
    }
    ours = {
        "layers": {layer: winners(layer) for layer in layers},
        "k": k,
        "grids": [list(g) for g in grids],
        "patch_sizes": [s[0] if s[0] == s[1] else list(s) for s in (f.size for f in fields.values())],
        "drawn": drawn,
        "dead_maps": dead,
        "images": tops.images,
        "broken_images": tops.broken,
        "dataset": type(data).__name__,
    }
    settings = {
        "model": type(model).__name__,
        "layers": layers,
        "image_size": list(size),
        "choose": choose,
        "seed": seed,
        "distinct": distinct,
        "scale": scale,
        "quantile": quantile,
        "collisions": collisions,
        "norm": norm,
    }
    with results(out) as folder:
        figure = compose(panels, width, note)
        figure.savefig(folder / "figure.png", dpi=DPI)
        figure.savefig(folder / "figure.pdf", dpi=DPI)
        boxes = draw_boxes(data, preprocessing, {layer: (tops[layer], drawn[layer], fields[layer]) for layer in layers})
        boxes.savefig(folder / "boxes.png", dpi=100)
        result = write_result(folder, "fig2", paper, ours, settings, provenance)
    for layer, maps in dead.items():
        if maps:
            print(f"{layer}: {len(maps)} of {len(tops[layer].value)} maps are never above 0 on these images")
    if tops.broken:
        print(f"{len(tops.broken)} image(s) could not be read, first: {tops.broken[0]}")
    return result


def _check(layers: list[str], grids: list[Sequence[int]], choose: Any, scale: str, quantile: float, width: int) -> None:
    if len(grids) != len(layers):
        raise InputError(f"{len(layers)} layers and {len(grids)} grids; give one grid, [rows, columns], for each layer")
    for shape in grids:
        if len(shape) != 2 or not all(type(n) is int and n > 0 for n in shape):
            raise InputError(f"a grid is [rows, columns] of feature maps; got {list(shape)}")
    check_choice(choose, layers)
    if scale not in ("patch", "map"):
        raise unknown_name("scale", scale, ("patch", "map"))
    if not 0 < quantile <= 1:
        raise InputError(f"quantile is {quantile}; give a number above 0, up to 1")
    if width < 400:
        raise InputError(f"a picture of {width} pixels is too narrow; give a width of at least 400")


def panel_of(
    title: str,
    deconvnet: Deconvnet,
    data: Any,
    layer: str,
    top: TopActivations,
    maps: list[int],
    columns: int,
    field: ReceptiveField,
    preprocessing: Preprocessing,
    scale: str,
    quantile: float,
) -> Panel:
    """Project and render one layer's maps."""
    k = top.value.shape[1]
    whole = math.prod(field.size) > 2 * math.prod(field.image_size)  # most of a patch would lie beyond the image
    patches = project_top(deconvnet, data, layer, top, maps, whole=whole)
    if whole:  # what lies outside its field, as seen from there
        boxes = torch.tensor([field.box(row, column) for _, _, row, column in top.units(maps).tolist()])
        corners, image_size = -boxes[:, :2], torch.tensor(field.image_size)
        beyond = outside(torch.cat([corners, corners + image_size], 1), field.size, field.image_size)
    else:
        beyond = outside(patches.boxes, field.image_size, pair(patches.crops.shape[-2:]))
    crops = preprocessing.pixels(patches.crops).clamp(0, 1).masked_fill(beyond.to(patches.crops.device), GREY)
    if not whole:
        crops, projections = (as_large_as_the_largest(part, patches.boxes) for part in (crops, patches.projections))
        patches = patches._replace(projections=projections)
    filters = _filters(deconvnet, layer, maps, field)
    if filters is None:
        left, signals = "projections", patches.projections.unflatten(0, (len(maps), k))
        scaling = {"together": k if scale == "map" else 1, "quantile": quantile}
    else:
        left, signals, scaling = "filters", filters[:, None], {"quantile": 1.0}
    extent = sizes(patches.boxes) if not whole else f"{field.size[0]} x {field.size[1]} pixels"
    return Panel(
        title,
        layer,
        left,
        f"whole images: a unit sees {extent}" if whole else f"image patches, {extent}",
        -(-len(maps) // columns),
        min(columns, len(maps)),
        preprocessing.rgb(signals).cpu(),
        crops.unflatten(0, (len(maps), k)).cpu(),
        (patches.values <= 0).unflatten(0, (len(maps), k)).cpu(),
        scaling,
    )


def as_large_as_the_largest(canvases: Tensor, boxes: Tensor) -> Tensor:
    """Canvases whose units see less than others, behind joined branches, enlarged to the size of the largest."""
    size = pair(canvases.shape[-2:])
    enlarged = canvases.clone()
    for n, (rows, columns) in enumerate((boxes[:, 2:] - boxes[:, :2]).tolist()):
        if 0 < rows < size[0] or 0 < columns < size[1]:
            enlarged[n : n + 1] = resized(canvases[n : n + 1, :, :rows, :columns], size)
    return enlarged


def sizes(boxes: Tensor) -> str:
    """The sizes of receptive fields in words: one, or from the smallest to the largest."""
    extents = (boxes[:, 2:] - boxes[:, :2]).unique(dim=0)
    extents = extents[extents.amin(1) > 0]
    words = [f"{rows} x {columns}" for rows, columns in extents.tolist()]
    return f"{words[0]} pixels" if len(words) == 1 else f"{words[0]} to {words[-1]} pixels"


def _filters(deconvnet: Deconvnet, layer: str, maps: list[int], field: ReceptiveField) -> Tensor | None:
    """The filters (maps, C, S, S) of a layer with but one convolution between it and the image; None of any other.

    There all projections of a map are its filter, times the activation.
    """
    graph: Graph = deconvnet.graph
    node = graph.node(layer)
    shapes = graph.shapes(field.image_size, node)
    steps = [
        (graph.module(n), graph.window(n, shapes))
        for n in graph.path([node])
        if n in shapes and n.op.startswith("call")
    ]
    convolutions = [module for module, _ in steps if isinstance(module, nn.Conv2d)]
    others = [window for module, window in steps if not isinstance(module, nn.Conv2d)]
    if len(convolutions) != 1 or any(w is None or w.span(0) > 1 for w in others):
        return None
    row, column = shapes[node][2] // 2, shapes[node][3] // 2
    top, left, bottom, right = field.box(row, column)
    if min(top, left) < 0 or bottom > field.image_size[0] or right > field.image_size[1]:
        return None
    channels = shapes[graph.inputs[0]][1]
    recording = deconvnet.record(torch.zeros(len(maps), channels, *field.image_size), [layer])
    signal = torch.zeros_like(recording.activations[layer])
    signal[torch.arange(len(maps)), maps, row, column] = 1
    return deconvnet.project(recording, layer, signal)[..., top:bottom, left:right]


def compose(panels: Sequence[Panel], width: int, note: str) -> Figure:
    """The figure: layers of like height side by side, each with its projections left and its patches right."""
    lines: list[list[Panel]] = []
    for panel in panels:
        tall = panel.side * panel.rows
        if lines and len(lines[-1]) == 1:
            before = lines[-1][0].side * lines[-1][0].rows
            if min(tall, before) / max(tall, before) >= 0.75:
                lines[-1].append(panel)
                continue
        lines.append([panel])
    margin = LAYER_GAP // 2
    tiles = [max(t for t in range(4, 400) if t == 4 or _wide(line, t) <= width - 2 * margin) for line in lines]
    tiles = [min(t, 130) for t in tiles]
    heights = [max(p.height(t) for p in line) for line, t in zip(lines, tiles, strict=True)]
    notes = textwrap.wrap(note, (width - 2 * margin) // 11)
    height = sum(heights) + LAYER_GAP * len(lines) + 24 * (len(notes) - 1) + 2 * margin
    figure = page(width, height)
    y = margin
    for line, tile, tall in zip(lines, tiles, heights, strict=True):
        x = (width - _wide(line, tile)) // 2
        for panel in line:
            blocks = panel.draw(tile)
            at = (x, x + panel.extent(tile, panel.columns) + SIDE_GAP)
            text(figure, x, y + 24, panel.title, weight="bold", size=10.5)
            if panel.title != panel.layer:
                text(figure, x + 160, y + 26, panel.layer, size=7.5, color="0.35")
            for left, label, block in zip(at, (panel.left, panel.right), blocks, strict=True):
                text(figure, left, y + 62, label, size=7.5)
                place(figure, block, left, y + CAPTION)
            x += panel.width(tile) + LAYER_GAP
        y += tall + LAYER_GAP
    for n, words in enumerate(reversed(notes)):
        text(figure, margin, height - margin - 8 - 24 * n, words, size=6.5, color="0.35")
    return figure


def _wide(line: Sequence[Panel], tile: int) -> int:
    return sum(panel.width(tile) for panel in line) + LAYER_GAP * (len(line) - 1)


def draw_boxes(
    data: Any,
    preprocessing: Preprocessing,
    layers: Mapping[str, tuple[TopActivations, Iterable[int], ReceptiveField]],
    columns: int = 6,
) -> Figure:
    """The strongest winners of some maps as boxes on their whole images: how large is a patch?"""
    layers = {layer: entry for layer, entry in layers.items() if list(entry[1])}
    figure = Figure(figsize=(2 * columns, 2.06 * len(layers)), facecolor="white")
    axes = figure.subplots(len(layers), columns, squeeze=False)
    for line, (layer, (top, maps, field)) in zip(axes, layers.items(), strict=True):
        rows, wide = field.image_size
        for axis in line:
            axis.axis("off")
        for axis, m in zip(line, maps, strict=False):
            if top.image[m, 0] < 0:
                continue
            image = preprocessing.pixels(data[int(top.image[m, 0])][0]).clamp(0, 1)
            axis.imshow(image.permute(1, 2, 0).numpy())
            upper, left, lower, right = field.box(int(top.row[m, 0]), int(top.column[m, 0]))
            corner = left - 0.5, upper - 0.5
            for colour, line_width in (("white", 3.5), ("red", 1.8)):
                axis.add_patch(Rectangle(corner, right - left, lower - upper, fill=False, color=colour, lw=line_width))
            axis.set_title(f"map {m}", fontsize=8, pad=2)
            axis.set_xlim(-0.5, wide - 0.5)
            axis.set_ylim(rows - 0.5, -0.5)
        size = f"{field.size[0]} x {field.size[1]}"
        line[0].text(
            -0.04,
            0.5,
            f"{layer}\n{size} of\n{rows} x {wide} pixels",
            transform=line[0].transAxes,
            ha="right",
            va="center",
            fontsize=8,
        )
    figure.subplots_adjust(0.11, 0.01, 0.99, 0.97, 0.04, 0.16)
    return figure
