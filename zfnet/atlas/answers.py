"""A network's answers about one picture, compared with its atlas: how unusual each map's activation is for that map.

A map's strongest activation in the picture is compared with the map's histogram over the atlas' images: the quantile is
the share of images whose maximum is smaller. Within a bin it is interpolated, and at the top, where the atlas keeps
the strongest values themselves, it is exact. One forward pass serves all layers.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn

from zfnet.analysis.occlusion import OcclusionMaps, occlusion_maps
from zfnet.analysis.occlusion.readout import SCORES, automatic, columns, summed
from zfnet.atlas.reading import AtlasFolder
from zfnet.checks import check_images, undifferentiated
from zfnet.data.photos import read_photograph
from zfnet.data.preprocessing import Preprocessing
from zfnet.deconvnet import Deconvnet
from zfnet.errors import InputError
from zfnet.graph import Shapes
from zfnet.receptive_fields import Box, map_fields, receptive_field
from zfnet.rendering import outside, signed_image

CLASSES, MAPS = 5, 32  # that an answer has: the most probable, and of each layer the most unusual
SQUARE, STEP = 50 / 224, 12 / 224  # of an occlusion map, in sides of the image: the paper's square, and half its steps
_SAME = 1e-5  # relative difference that rounding alone may make, as between batches of other sizes
_STEPS = 10**5  # of the graph that are followed to find what a layer's units see: about a second
_Array = np.ndarray[Any, Any]
_Alike = tuple[Tensor, list[tuple[int, int]], list[tuple[int, int]]]  # maps (C,), and what their rows and columns see


class ClassAnswer(NamedTuple):
    """One class: its number, its name ("" where it is not known), and its probability."""

    number: int
    name: str
    probability: float


class MapAnswer(NamedTuple):
    """One map's strongest unit in a picture.

    Attributes:
        position: of the map in the atlas' lists of its layer.
        map: its number.
        quantile: the share of the atlas' images whose maximum is smaller.
        said: the same in words.
        value: the activation.
        unclipped: before the layer clips it; where none does, `value`.
        row: of the unit.
        column: of the unit.
        box: the unit's field, in pixels of the network's image, possibly beyond it; None: not known.
        fires: whether the activation is above 0.
        dead: whether the map fires on none of the atlas' images.
    """

    position: int
    map: int
    quantile: float
    said: str
    value: float
    unclipped: float
    row: int
    column: int
    box: Box | None
    fires: bool
    dead: bool


class ImageAnswer(NamedTuple):
    """The network's answer about a picture.

    Attributes:
        classes: the most probable first.
        note: why there are none; else empty.
        layers: of each layer of the atlas, the most unusual first.
    """

    classes: list[ClassAnswer]
    note: str
    layers: list[list[MapAnswer]]


class UnitAnswer(NamedTuple):
    """A unit's projection and what it sees: pictures (3, rows, columns) in 0..1.

    Attributes:
        crop: what the unit sees.
        projection: its projection.
        box: in pixels of the network's image.
        whole: whether the pictures are of the whole image, in place of the box.
        value: its activation.
        row: of the unit.
        column: of the unit.
    """

    crop: Tensor
    projection: Tensor
    box: Box | None
    whole: bool
    value: float
    row: int
    column: int


class _Pass(NamedTuple):
    """A forward pass: by layer, activations (C, H, W), as they are and as they rank, and the outputs."""

    values: list[Tensor]
    ranking: list[Tensor]
    outputs: Any


class Ranks:
    """The distribution of the maxima of a layer's maps over an atlas' images.

    Args:
        maps: of the layer, as the atlas has them.
        edges: of the histograms' bins, B + 1.
        images: how many each histogram counts.
        k: how many of the strongest values of a map the atlas keeps.
    """

    def __init__(self, maps: Sequence[dict[str, Any]], edges: _Array, images: int, k: int) -> None:
        self.images, self.edges = images, edges
        self.map = np.array([entry["map"] for entry in maps], dtype=np.int64)
        self.counts = np.zeros((len(maps), len(edges) - 1), dtype=np.int32)
        self.stored = np.full((len(maps), k), -np.inf)
        for row, entry in enumerate(maps):
            if entry["bins"]:
                bins, counts = zip(*entry["bins"], strict=True)
                self.counts[row, list(bins)] = counts
            values = entry.get("unclipped", entry["value"])[:k]
            self.stored[row, : len(values)] = values
        self.below = self.counts.cumsum(1) - self.counts  # images in lower bins
        self.dead = (self.counts[:, edges[:-1] >= 0].sum(1) == 0) & ~(self.stored > 0).any(1)
        self._bins = np.searchsorted(edges[1:-1], self.stored)  # bin i: edges[i] < v <= edges[i + 1]

    def quantiles(self, values: _Array, rows: _Array | None = None) -> _Array:
        """The share of the images whose maximum is below a value (M,) of each of the maps `rows` (M,), or of all."""
        rows = np.arange(len(self.map)) if rows is None else rows
        v, stored, is_stored = values.astype(np.float64), self.stored[rows], self.stored[rows] > -np.inf
        number = np.searchsorted(self.edges[1:-1], v)
        below, count = self.below[rows, number], self.counts[rows, number]
        low, high = self.edges[number], self.edges[number + 1]
        in_bin = is_stored & (self._bins[rows] == number[:, None])  # stored values of the bin lie at its upper end
        high = np.minimum(high, np.where(in_bin, stored, np.inf).min(1))
        spread = np.isfinite(low) & np.isfinite(high) & (low * self.edges[number + 1] >= 0) & (high > low)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(spread, np.clip((v - low) / (high - low), 0, 1), 0)
        estimates = below + (count - in_bin.sum(1)).clip(0) * share
        weakest = np.where(is_stored, stored, np.inf).min(1)
        above_weakest = v >= weakest * (1 - _SAME * np.sign(weakest))
        exact_counts = self.images - (stored >= (v - _SAME * np.abs(v))[:, None]).sum(1)
        has_exact = above_weakest | (~is_stored.all(1) & (v > 0))  # where fewer are kept, no other image fires
        quantiles: _Array = np.where(has_exact, exact_counts, estimates) / max(self.images, 1)
        return quantiles.clip(0, 1)

    def order(self, values: _Array, quantiles: _Array) -> _Array:
        """The maps' rows, the most unusual first: those that fire, by quantile, then against their own strongest."""
        strongest = self.stored[:, 0]
        with np.errstate(invalid="ignore", divide="ignore"):
            relative = np.where(strongest > 0, values / strongest, values)
        order: _Array = np.lexsort((self.map, -relative, -quantiles, values <= 0))
        return order


def said(quantile: float, images: int, dead: bool = False) -> str:
    """A quantile in words: "stronger than in 99.8 % of the 1,000 images"."""
    if dead:
        return f"it fires on none of the {images:,} images"
    if quantile >= 1:
        return f"stronger than in all {images:,} images"
    if quantile <= 0:
        return f"stronger than in none of the {images:,} images"
    digits = max(1, len(str(images)) - 3)
    percent = int(quantile * 100 * 10**digits + 1e-6) / 10**digits  # rounded down: 100 % would be all
    share = f"{percent:.{digits}f} %" if percent else f"less than {0.1**digits:.{digits}f} %"
    return f"stronger than in {share} of the {images:,} images"


class Answers:
    """A network's answers about pictures, compared with its atlas.

    Args:
        model: the network that the atlas was made with, with its preprocessing.
        folder: the atlas.

    Raises:
        InputError: for an atlas of another network or another preprocessing, and for one that is damaged.
    """

    def __init__(self, model: nn.Module, folder: str | os.PathLike[str] | AtlasFolder) -> None:
        self.atlas = folder if isinstance(folder, AtlasFolder) else AtlasFolder(folder)
        index = self.atlas.index
        self.preprocessing = Preprocessing.of(model)
        self.deconvnet = Deconvnet(model, rules=index["rules"])
        self.graph = self.deconvnet.graph
        self._check(index["provenance"])
        if isinstance(self.preprocessing.channels, int):
            raise InputError(f"the network reads {self.preprocessing.channels} channels, which pictures do not have")
        self.size = self.preprocessing.image_size
        self.layers: list[dict[str, Any]] = index["layers"]
        self.nodes = [self.graph.node(layer["name"]) for layer in self.layers]
        self._edges = np.array([np.nan if edge is None else edge for edge in index["bins"]], dtype=np.float64)
        self._edges[[0, -1]] = -np.inf, np.inf
        self._ranks: dict[int, Ranks] = {}
        self._seeing: dict[int, list[_Alike]] = {}

    def _check(self, provenance: dict[str, Any]) -> None:
        identity = self.graph.identity() | {"preprocessing": self.preprocessing.identity()}
        name = type(self.graph.model).__name__
        for kind in ("architecture", "weights", "preprocessing"):
            if (recorded := provenance.get(kind)) != identity[kind]:
                reason = (
                    f"{'other weights' if kind == 'weights' else f'another {kind}'} than this {name} has"
                    if recorded
                    else f"a network whose {kind} it does not record"
                )
                advice = "give the model=, model.weights= and data= that made it"
                raise InputError(f"{self.atlas.path} was made with {reason}; {advice}")

    # -- pictures

    def prepared(self, content: bytes) -> Tensor:
        """Prepare an image file for the network: (C, H, W). Raises BrokenImage or InputError for other files."""
        return self.preprocessing(read_photograph(lambda: content, "the picture"))

    def pixels(self, image: Tensor) -> Tensor:
        """The network's input as a picture (3, H, W) in 0..1."""
        return self.preprocessing.pixels(image).clamp(0, 1)

    # -- the network

    def answer(self, image: Tensor, maps: int = MAPS) -> ImageAnswer:
        """The network's answer about a prepared image (C, H, W), with so many maps of each layer."""
        run = self._run(image)
        classes, note = self._classes(run.outputs)
        layers = []
        for number in range(len(self.layers)):
            ranks, planes = self.ranks(number), run.ranking[number]
            best, places = planes.flatten(1)[torch.from_numpy(self.ranks(number).map)].max(1)
            layers.append(self._ranked(number, run, ranks, best.numpy(), places.numpy(), maps))
        return ImageAnswer(classes, note, layers)

    def see(self, image: Tensor, row: int, column: int, maps: int = MAPS) -> list[list[MapAnswer]]:
        """The units that see a pixel: of each layer the maps that are strongest there, the most unusual first.

        For each map that unit counts which is strongest among those whose field holds the pixel. Layers whose fields
        are not known have none.
        """
        if not (0 <= row < self.size[0] and 0 <= column < self.size[1]):
            raise InputError(f"no pixel {row}, {column} in an image of {self.size[0]} x {self.size[1]}")
        run = self._run(image)
        layers = []
        for number in range(len(self.layers)):
            ranks = self.ranks(number)
            best, places = self._seen(number, run.ranking[number], row, column)
            layers.append(self._ranked(number, run, ranks, best[ranks.map], places[ranks.map], maps))
        return layers

    def project(
        self, image: Tensor, layer: int, map: int, row: int | None = None, column: int | None = None
    ) -> UnitAnswer:
        """The projection of a unit, and what it sees; without row and column, of the map's strongest unit.

        Args:
            layer: its number in the atlas.
        """
        entry, name = self.layers[self._number(layer)], self.layers[layer]["name"]
        if row is None or column is None:
            run = self._run(image, [layer])
            if not 0 <= map < len(run.ranking[0]):
                raise InputError(f"no map {map} in {name}: there are {len(run.ranking[0])}")
            row, column = divmod(int(run.ranking[0][map].argmax()), run.ranking[0].shape[2])
        unit, whole = [[0, map, row, column]], bool(entry["whole"])
        patches = self.deconvnet.project_units(image[None], name, unit, whole=whole)
        canvases = (patches.boxes.cpu(), self.size, pair_of(patches.crops))
        white = outside(*canvases)
        crop = self.pixels(patches.crops).cpu().masked_fill(white, 1)[0]
        projection = signed_image(self.preprocessing.rgb(patches.projections)).cpu().masked_fill(white, 1)[0]
        box = self._box(name, map, row, column)
        return UnitAnswer(crop, projection, box, whole, float(patches.values[0]), row, column)

    def occlude(self, image: Tensor, target: int | None = None) -> OcclusionMaps:
        """The probability of a class (None: the most probable) with a grey square at each place."""
        size = [max(1, round(side * SQUARE)) for side in self.size]
        step = [max(1, round(side * STEP)) for side in self.size]
        return occlusion_maps(self.graph, image, size=size, step=step, target=target)

    def warm_up(self) -> None:
        """Read what the atlas keeps of its maps, and run the network once: the first answer need not wait for it."""
        self.answer(torch.zeros(self.preprocessing.channel_count, *self.size), 1)

    def ranks(self, layer: int) -> Ranks:
        """The distributions of a layer's maps, read at the first call."""
        if layer not in self._ranks:
            index = self.atlas.index
            self._ranks[layer] = Ranks(self.atlas.maps(layer), self._edges, index["images"], index["k"])
        return self._ranks[layer]

    def _number(self, layer: int) -> int:
        if not 0 <= layer < len(self.layers):
            raise InputError(f"no layer {layer} in the atlas: there are {len(self.layers)}, from 0")
        return layer

    def _run(self, image: Tensor, layers: Sequence[int] | None = None) -> _Pass:
        """Run an image (C, H, W) through all layers and to the end, or up to some layers alone."""
        numbers = range(len(self.layers)) if layers is None else layers
        nodes, graph = [self.nodes[number] for number in numbers], self.graph
        clipped = {self.nodes[number] for number in numbers if self.layers[number]["clipped"]}
        inputs: dict[fx.Node, Tensor] = {}

        def apply(node: fx.Node, args: Any, kwargs: Any) -> Any:
            if node in clipped:
                inputs[node] = args[0].clone()  # the step may overwrite it
            return graph.call(node, args, kwargs)

        images = check_images(graph.model, image[None])
        graph.check_size(images, nodes)
        last = [*nodes, graph.output] if layers is None else nodes
        with undifferentiated(graph.model):
            outputs = graph.run(images, last, apply)
        values = [self._planes(node, outputs[node]) for node in nodes]
        ranking = [
            self._planes(node, inputs[node]) if node in inputs else x for node, x in zip(nodes, values, strict=True)
        ]
        return _Pass(values, ranking, outputs.get(graph.output))

    def _planes(self, node: fx.Node, x: Tensor) -> Tensor:
        """A layer's output as (C, H, W) of float32 on the CPU."""
        shapes = self.graph.shapes(self.size, node)
        self.graph.check_maps(node, shapes)
        x = shapes.maps(node, x)
        planes = (x if x.ndim == 4 else x[..., None, None])[0].float().cpu()
        if not planes.isfinite().all():
            raise InputError(f"{self.graph.names[node]} gives NaN or infinity on this picture")
        return planes

    def _classes(self, outputs: Any) -> tuple[list[ClassAnswer], str]:
        if not isinstance(outputs, Tensor):
            return [], "The network gives no single tensor of outputs, so it names no classes."
        try:
            scores = summed(SCORES[automatic(self.graph, outputs)](columns(outputs, 1)))[0].cpu()
        except InputError as error:
            return [], f"It has no class probabilities: {error}."
        if not scores.isfinite().all():
            raise InputError("the network gives NaN or infinity on this picture")
        names = next((n for n in self._names() if len(n) == len(scores)), [])
        best, index = scores.topk(min(CLASSES, len(scores)))
        classes = zip(index.tolist(), best.tolist(), strict=True)
        return [ClassAnswer(i, str(names[i]) if len(names) else "", p) for i, p in classes], ""

    def _names(self) -> list[Sequence[str]]:
        """Names that the network's classes may have: the atlas', and those that came with the weights."""
        names = getattr(self.graph.model, "class_names", None)
        return [self.atlas.index["classes"], names if isinstance(names, list | tuple) else []]

    def _ranked(
        self, number: int, run: _Pass, ranks: Ranks, best: _Array, places: _Array, count: int
    ) -> list[MapAnswer]:
        """The most unusual maps, of values (R,) at flat places (R,) of the atlas' maps; -1: no unit."""
        name = self.layers[number]["name"]
        units = np.flatnonzero(places >= 0)
        quantiles = np.full(len(best), -1.0)
        quantiles[units] = ranks.quantiles(best[units], units)
        order, answers = ranks.order(best, quantiles), []
        for position in order[places[order] >= 0][:count].tolist():
            map, dead, quantile = int(ranks.map[position]), bool(ranks.dead[position]), float(quantiles[position])
            row, column = divmod(int(places[position]), run.values[number].shape[2])
            box, words = self._box(name, map, row, column), said(quantile, ranks.images, dead)
            value, unclipped = float(run.values[number][map, row, column]), float(best[position])
            fires = unclipped > 0
            answers.append(MapAnswer(position, map, quantile, words, value, unclipped, row, column, box, fires, dead))
        return answers

    def _box(self, layer: str, map: int, row: int, column: int) -> Box | None:
        try:
            return receptive_field(self.graph, layer, self.size, map).box(row, column)
        except InputError:  # behind a step without a window
            return None

    # -- places

    def _seen(self, number: int, planes: Tensor, row: int, column: int) -> tuple[_Array, _Array]:
        """The strongest value (C,) of each map (C, H, W) among units whose field holds a pixel, and its flat place.

        The place is -1 where no unit does.
        """
        best, places = torch.full((len(planes),), -torch.inf), torch.full((len(planes),), -1)
        for maps, *ranges in self._fields(number):
            row_units, column_units = (
                torch.tensor([unit for unit, (low, high) in enumerate(axis) if low <= pixel < high], dtype=torch.int64)
                for axis, pixel in zip(ranges, (row, column), strict=True)
            )
            if len(row_units) and len(column_units):
                part = planes[maps][:, row_units][:, :, column_units]
                best[maps], position = part.flatten(1).max(1)
                places[maps] = (
                    row_units[position // len(column_units)] * planes.shape[2]
                    + column_units[position % len(column_units)]
                )
        return best.numpy(), places.numpy()

    def _fields(self, number: int) -> list[_Alike]:
        """Maps that see alike (C,), and from which pixel to which their units see, row by row and column by column."""
        if number not in self._seeing:
            node = self.nodes[number]
            shapes = self.graph.shapes(self.size, node)
            extent = (*shapes[node][2:], 1, 1)[:2]
            self._seeing[number] = list(self._alike(node, shapes, extent))
        return self._seeing[number]

    def _alike(self, node: fx.Node, shapes: Shapes, extent: tuple[int, ...]) -> list[_Alike]:
        fields, count, name = map_fields(self.graph, node, shapes), shapes[node][1], self.graph.names[node]
        if fields.unknown:
            return []
        if fields.low is None or fields.high is None:
            full = [[(0, size)] * units for size, units in zip(self.size, extent, strict=True)]
            return [(torch.arange(count), full[0], full[1])]
        kinds = torch.cat([fields.low, fields.high], 1).unique(dim=0, return_inverse=True)[1]
        groups, count = [], int(kinds.max()) + 1
        exact = (
            count * sum(extent) * len(self.graph.path([node])) < _STEPS
        )  # exact fields, cut at all borders, if there are few
        for kind in range(count):
            maps = (kinds == kind).nonzero().flatten()
            field = receptive_field(self.graph, name, self.size, int(maps[0]))
            middle = extent[0] // 2, extent[1] // 2  # where a unit sees more than padding
            field_of = field.seen if exact or field.stride is None else field.box
            tops = [field_of(row, middle[1]) for row in range(extent[0])]
            lefts = [field_of(middle[0], column) for column in range(extent[1])]
            groups.append((maps, [(box[0], box[2]) for box in tops], [(box[1], box[3]) for box in lefts]))
        return groups


def pair_of(canvases: Tensor) -> tuple[int, int]:
    """Rows and columns of canvases (N, C, H, W)."""
    height, width = canvases.shape[-2:]
    return height, width
