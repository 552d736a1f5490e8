"""Shared by figures of feature maps: which maps to draw, how to show projections, and a layer's block of tiles."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from experiments.output.pages import enlarged, hatched
from experiments.output.tables import table
from experiments.setup.checks import by_number, one_of, share
from experiments.setup.options import READING, SHOWING, Reading
from zfnet import Deconvnet, InputError, TopActivations
from zfnet.checks import pair
from zfnet.data.preprocessing import Preprocessing
from zfnet.deconvnet import project_top
from zfnet.errors import unknown_name
from zfnet.extended import RULE_SETS
from zfnet.graph import Graph
from zfnet.operations import DECONVNET, DIFFERENTIATED_NORMS
from zfnet.receptive_fields import ReceptiveField
from zfnet.rendering import grid, outside, resized, signed_image
from zfnet.scanning import Scan

MAP_GAP, TILE_GAP = 7, 1  # pixels between the blocks of two maps, and between two tiles of a map


class Look(NamedTuple):
    """How projections are made and shown: see `Showing`; each has its own scale ("patch") or its map's ("map")."""

    rules: str = SHOWING["rules"]
    collisions: str = SHOWING["collisions"]
    norm: str = SHOWING["norm"]
    contrast: float = SHOWING["contrast"]
    colour: str = SHOWING["colour"]
    interpolation: str = SHOWING["interpolation"]
    width: float = SHOWING["width"]
    scale: str = "patch"

    @classmethod
    def of(cls, options: Mapping[str, Any], scale: str = "patch") -> tuple["Look", Reading]:
        """The look of an experiment's options, and how images are read. Raises InputError for unknown values."""
        look = cls(**{name: value for name, value in options.items() if name not in READING}, scale=scale)
        share(contrast=look.contrast)
        one_of("rule set", look.rules, RULE_SETS)
        one_of("norm", look.norm, ("identity", "gradient"))
        one_of("colour", look.colour, ("rgb", "grey"))
        one_of("interpolation", look.interpolation, ("bicubic", "nearest"))
        one_of("scale", look.scale, ("patch", "map"))
        reading: Any = {name: value for name, value in options.items() if name in READING}
        return look, reading

    def deconvnet(self, model: nn.Module) -> Deconvnet:
        """A deconvnet with these rules."""
        more = DIFFERENTIATED_NORMS if self.norm == "gradient" else {}
        return Deconvnet(model, rules=RULE_SETS[self.rules] | more, collisions=self.collisions)

    def pictures(self, signals: Tensor, size: tuple[int, int], together: int = 1) -> Tensor:
        """Signals (N, 3, H, W) as pictures (N, 3, *size) in 0..1; `together` successive ones share a scale."""
        signals = enlarged(signals, size, self.interpolation)  # before its contrast is set, or it will be faint
        if self.colour == "grey":
            signals = signals.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        return signed_image(signals, together=together, quantile=self.contrast)

    @property
    def words(self) -> str:
        """For a caption: how projections are made and scaled, and what grey means."""
        own = self.scale == "patch"
        whose = "Each projection has its own scale" if own else "The projections of a map share a scale"
        quantile = f"the {100 * self.contrast:g}th percentile of its non-zero absolute values"
        end = "its largest value" if self.contrast == 1 else quantile
        grey = ", without colour" if self.colour == "grey" else ""
        others = [f"{self.rules} rules"] * (self.rules != "deconvnet") + [f"norm {self.norm}"] * (
            self.norm != "identity"
        )
        others += [f"collisions {self.collisions}"] * (self.collisions != "add")
        rules = f"Projected by {', '.join(others)}. " if others else ""
        return f"{rules}{whose}{grey}: mid-grey is 0, black and white are minus and plus {end}."


def network_name(model: nn.Module) -> str:
    """For a caption: the network, and that its weights are random, where that is known."""
    return type(model).__name__ + " with random weights" * getattr(model, "random_weights", False)


def which_layers(graph: Graph, layers: Sequence[str], numbers: Sequence[int]) -> str:
    """For a caption: which steps stand for the paper's layers, and other readings of its layers."""
    ends = [graph.node(layer) for layer in layers]
    for n, end in enumerate(ends):
        while len(end.users) == 1 and any(word in graph.kind(*end.users).lower() for word in ("pool", "norm")):
            (end,) = end.users
        ends[n] = end
    others = [graph.names[end] for end in ends]
    stand = " and ".join(f"{number} is {layer}" for number, layer in zip(numbers, layers, strict=True))
    if others == list(layers):
        return f"Layer {stand}; the paper's may end before or after pooling and normalisation."
    return (
        f"Layer {stand}; the paper's layers may end after the pooling and normalisation that follow: "
        f"layers=[{','.join(others)}]."
    )


def check_choice(choose: Any, layers: Sequence[str]) -> None:
    """Raises InputError unless `chosen` has this way to choose."""
    if isinstance(choose, str) and choose not in ("random", "strongest"):
        raise unknown_name("way to choose maps", choose, ("random", "strongest", "[map, ...]"))
    if isinstance(choose, Mapping):
        for layer in choose:
            one_of("layer in choose", layer, layers)
    if isinstance(choose, str | Mapping | Sequence):
        lists = choose.values() if isinstance(choose, Mapping) else [choose]
        if all(isinstance(maps, Sequence) for maps in lists):
            return
    raise InputError(f"choose is {choose!r}; give random, strongest, maps as [0, 5], or maps by layer")


def check_numbers(choose: Any, layers: Sequence[str], graph: Graph, image_size: tuple[int, int]) -> None:
    """InputError, before the images are scanned, for maps by number that a layer does not have."""
    for layer in () if isinstance(choose, str) else layers:
        node = graph.node(layer)
        by_number(layer, graph.shapes(image_size, node)[node][1], choose)


def chosen(layer: str, top: TopActivations, count: int, choose: Any, random: torch.Generator) -> list[int]:
    """The maps to draw, at most `count`: by number, by layer and number, or those that are ever above 0.

    Of these the "strongest", or any by "random"; maps that are above 0 on fewer than k images come last.
    """
    total = len(top.value)
    if not isinstance(choose, str):
        return by_number(layer, total, choose)
    winners = (top.value > 0).sum(1)
    live = winners.nonzero().flatten()
    if choose == "strongest":
        return live[top.value[live, 0].argsort(descending=True, stable=True)][:count].tolist()
    live = live[torch.randperm(len(live), generator=random)]
    rare = (winners[live] < top.value.shape[1]).int()
    return sorted(live[rare.argsort(stable=True)][:count].tolist())


def how_chosen(choose: Any, seed: int) -> str:
    """The words for a caption."""
    return f"at random (seed {seed})" if choose == "random" else "by strength" if choose == "strongest" else "by number"


def dead_maps(top: TopActivations) -> list[int]:
    """The maps that are never above 0."""
    return (~(top.value[:, 0] > 0)).nonzero().flatten().tolist()


def scan_table(found: Scan, k: int | None) -> tuple[str, dict[str, Any]]:
    """A scan as a table and for result.json.

    Args:
        found: the scan, with statistics.
        k: requested images of each map.
    """
    dead = {layer: int((statistics.fires == 0).sum()) for layer, statistics in (found.statistics or {}).items()}
    layers = {layer: {"maps": len(top.value), "dead": dead[layer]} for layer, top in found.items()}
    rows = [[layer, count["maps"], count["dead"], found.images] for layer, count in layers.items()]
    text = table(["layer", "maps", "dead maps", "images"], rows) if rows else "no image of this part could be read"
    if found.broken:
        text += f"\n\n{len(found.broken):,} image(s) could not be read, first: {found.broken[0]}"
    labelled = int(found.class_images[:-1].sum())
    counts = {"images": found.images, "labelled_images": labelled, "broken_images": list(found.broken)}
    return text, {"layers": layers, **counts, "k": k}


def marked(pictures: Tensor, outside: Tensor, empty: Tensor) -> Tensor:
    """Pictures (N, 3, H, W), hatched `outside` (N, h, w) the image, and white if `empty` (N,)."""
    beyond = enlarged(outside[:, None].float(), pair(pictures.shape[-2:]), "nearest")[:, 0] > 0.5
    pictures = torch.stack([hatched(*tile) for tile in zip(pictures, beyond, strict=True)])
    pictures[empty] = 1
    return pictures


@dataclass
class Panel:
    """The drawing of one layer: projections, or filters, beside image patches."""

    title: str
    layer: str
    left: str
    right: str
    columns: int
    signals: Tensor  # (maps, n, 3, S, S): projections, where n is k, or filters, where it is 1
    patches: Tensor  # (maps, k, 3, S, S) in 0..1
    outside: Tensor  # (maps, k, S, S): beyond the image, or beyond what the unit sees
    empty: Tensor  # (maps, k): where there is no activation above 0
    look: Look

    @property
    def rows(self) -> int:
        return -(-len(self.signals) // self.columns)

    @property
    def side(self) -> int:
        """Tiles along one side of a feature map's block."""
        return math.isqrt(self.patches.shape[1] - 1) + 1

    def block(self, tile: int) -> int:
        """Pixels along one side of a feature map's block."""
        return self.side * (tile + TILE_GAP) - TILE_GAP

    def extent(self, tile: int, maps: int) -> int:
        """Pixels of a row or column of maps."""
        return maps * self.block(tile) + (maps - 1) * MAP_GAP

    def enlargement(self, tile: int) -> float:
        """How many times as large as its pixels a tile is."""
        return tile / self.patches.shape[-1]

    def tile(self, width: int) -> int:
        """Pixels along one side of the largest tile that keeps projections or patches within a width; 4 or more."""
        block = (width + MAP_GAP) // self.columns - MAP_GAP
        return max((block + TILE_GAP) // self.side - TILE_GAP, 4)

    def draw(self, tile: int) -> tuple[Tensor, Tensor]:
        """Projections and patches as two images (3, H, W)."""
        block, (maps, n) = self.block(tile), self.signals.shape[:2]
        size = (block, block) if n == 1 else (tile, tile)
        together = n if self.look.scale == "map" else 1
        look = self.look if n > 1 else self.look._replace(contrast=1.0)  # filters have no few extreme values
        left = look.pictures(self.signals.flatten(0, 1), size, together)
        right = enlarged(self.patches.flatten(0, 1), (tile, tile), self.look.interpolation).clamp(0, 1)
        marks = self.outside.flatten(0, 1), self.empty.flatten()
        left, right = left if n == 1 else marked(left, *marks), marked(right, *marks)
        return self._page(left.unflatten(0, (maps, n)), block), self._page(right.unflatten(0, (maps, -1)), block)

    def _page(self, tiles: Tensor, block: int) -> Tensor:
        columns = self.side if tiles.shape[1] > 1 else 1
        blocks = tiles.new_ones(len(tiles), 3, block, block)  # k need not fill a square
        for whole, tiles_of_map in zip(blocks, tiles, strict=True):
            picture = grid(tiles_of_map, columns, TILE_GAP)
            whole[:, : picture.shape[1], : picture.shape[2]] = picture
        return grid(blocks, self.columns, MAP_GAP)


class Tiles(NamedTuple):
    """The strongest activations of some maps, as they are drawn."""

    signals: Tensor  # (maps, k, 3, S, S): projections, RGB
    patches: Tensor  # (maps, k, 3, S, S) in 0..1
    outside: Tensor  # (maps, k, S, S): beyond the image, or beyond what the unit sees
    empty: Tensor  # (maps, k): where there is no activation above 0
    words: str  # what the patches are


def tiles_of(
    deconvnet: Deconvnet,
    data: Any,
    layer: str,
    top: TopActivations,
    maps: Sequence[int],
    field: ReceptiveField,
    preprocessing: Preprocessing,
) -> Tiles:
    """Project the strongest activations of some of a layer's maps, and cut out what they see."""
    shape = (len(maps), top.value.shape[1])
    whole = math.prod(field.size) > 2 * math.prod(field.image_size)  # most of a patch would lie beyond the image
    patches = project_top(deconvnet, data, layer, top, maps, whole=whole)
    crops, signals = preprocessing.pixels(patches.crops).clamp(0, 1).cpu(), patches.projections.cpu()
    if whole:  # what lies outside its field, as seen from there
        boxes = torch.tensor([field.box(row, column) for _, _, row, column in top.units(maps).tolist()])
        corners, image_size = -boxes[:, :2], torch.tensor(field.image_size)
        beyond = outside(torch.cat([corners, corners + image_size], 1), field.size, field.image_size).to(crops)
        words = f"whole images, field {field.size[0]} x {field.size[1]}"
    else:
        beyond = outside(patches.boxes, field.image_size, pair(crops.shape[-2:])).to(crops)
        crops, signals, beyond = (fill_canvas(part, patches.boxes.cpu()) for part in (crops, signals, beyond))
        everything = field.stride == (0, 0) and field.size == field.image_size
        words = "whole images" if everything else f"image patches, {sizes(patches.boxes)}"
    return Tiles(
        preprocessing.rgb(signals).unflatten(0, shape),
        crops.unflatten(0, shape),
        (beyond[:, 0] > 0.5).unflatten(0, shape),
        (patches.values <= 0).unflatten(0, shape).cpu(),
        words,
    )


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
    look: Look,
) -> Panel:
    """Project and render the strongest activations of some of a layer's maps."""
    tiles = tiles_of(deconvnet, data, layer, top, maps, field, preprocessing)
    filters = first_filters(deconvnet, layer, maps, field)
    return Panel(
        title,
        layer,
        "projections" if filters is None else "filters",
        tiles.words,
        min(columns, len(maps)),
        tiles.signals if filters is None else preprocessing.rgb(filters[:, None].cpu()),
        tiles.patches,
        tiles.outside,
        tiles.empty,
        look,
    )


def fill_canvas(canvases: Tensor, boxes: Tensor) -> Tensor:
    """Canvases of units behind joined branches, which see smaller areas, enlarged to the size of the largest."""
    size = pair(canvases.shape[-2:])
    filled = canvases.clone()
    for n, (rows, columns) in enumerate((boxes[:, 2:] - boxes[:, :2]).tolist()):
        if 0 < rows < size[0] or 0 < columns < size[1]:
            filled[n : n + 1] = resized(canvases[n : n + 1, :, :rows, :columns], size)
    return filled


def sizes(boxes: Tensor) -> str:
    """The sizes of receptive fields in words: one, or from the smallest to the largest."""
    extents = (boxes[:, 2:] - boxes[:, :2]).unique(dim=0)
    extents = extents[extents.amin(1) > 0]
    if len(extents) > 1 and (extents[:, 0] == extents[:, 1]).all():  # in short, for a title over a narrow column
        return f"{int(extents[0, 0])} to {int(extents[-1, 0])} pixels"
    words = [f"{rows} x {columns}" for rows, columns in extents.tolist()]
    return f"{words[0]} pixels" if len(words) == 1 else f"{words[0]} to {words[-1]} pixels"


def first_filters(deconvnet: Deconvnet, layer: str, maps: list[int], field: ReceptiveField) -> Tensor | None:
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
    rows = [graph.lookup(DECONVNET, n) for n in graph.path([node]) if n in shapes and n.op.startswith("call")]
    if shapes.last(node) or any(row is None or row.back is None for row in rows):
        return None
    convolutions = [module for module, _ in steps if isinstance(module, nn.Conv2d)]
    others = [window for module, window in steps if not isinstance(module, nn.Conv2d)]
    if len(convolutions) != 1 or any(w is None or w.span(0) > 1 for w in others):
        return None
    row, column = shapes[node][2] // 2, shapes[node][3] // 2
    top, left, bottom, right = field.box(row, column)
    if min(top, left) < 0 or bottom > field.image_size[0] or right > field.image_size[1]:
        return None
    channels = shapes[graph.inputs[0]][1]
    deconvnet = Deconvnet(deconvnet.model)  # other rules look at the forward pass, of a grey image
    recording = deconvnet.record(torch.zeros(len(maps), channels, *field.image_size), [layer])
    signal = torch.zeros_like(recording.activations[layer])
    signal[torch.arange(len(maps)), maps, row, column] = 1
    return deconvnet.project(recording, layer, signal)[..., top:bottom, left:right]
