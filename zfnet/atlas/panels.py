"""The pictures of some maps of a layer in an atlas: their winners, projected, and examples from the sampled images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from zfnet.atlas.images import Reader
from zfnet.atlas.layers import Layer
from zfnet.atlas.links import Links
from zfnet.atlas.pictures import Bytes, Canvases, beyond, crop_tiles
from zfnet.atlas.threads import Clock, for_each
from zfnet.checks import Pair, pair
from zfnet.data.preprocessing import Preprocessing
from zfnet.deconvnet import Deconvnet
from zfnet.errors import InputError
from zfnet.gathering import Statistics
from zfnet.winners import TopActivations

QUANTILES = (0.9, 0.5, 0.1, 0.0)  # of the examples; 0: the weakest
MOST_BYTES, MOST_IMAGES = 2**23, 2**25  # bytes of the crops of units that are run at a time, and of their images
CLOSE = 1e-3  # relative tolerance between a recomputed value and the scan's


class Examples(NamedTuple):
    """The sampled images of m maps at the quantiles, (m, Q); -1 where there is none."""

    value: Tensor
    image: Tensor
    row: Tensor
    column: Tensor


def examples(statistics: Statistics, sampled: Tensor, maps: Tensor, columns: int, dead: Tensor) -> Examples:
    """The sampled images whose maxima are at the QUANTILES of a map: of n in ascending order, number q (n - 1).

    Args:
        statistics: of the layer.
        sampled: (S,) the sampled images.
        maps: (m,) which maps.
        columns: of the layer's output.
        dead: (C,) maps that have no examples.
    """
    maxima, places = statistics.maxima[maps], statistics.places[maps].long()
    readable = places[:1].flatten() >= 0  # which of the images could be read: the same for all maps
    shape = len(maps), len(QUANTILES)
    if not readable.any():
        return Examples(torch.zeros(shape), *(torch.full(shape, -1) for _ in range(3)))
    order = maxima[:, readable].argsort(dim=1, stable=True)
    ranks = torch.tensor([round(q * (int(readable.sum()) - 1)) for q in QUANTILES])
    columns_of = readable.nonzero().flatten()[order[:, ranks]]
    positions = places.gather(1, columns_of)
    image = sampled[columns_of].masked_fill(dead[maps][:, None], -1)
    return Examples(maxima.gather(1, columns_of), image, positions // columns, positions % columns)


@dataclass
class Panels:
    """The pictures of m maps of a layer; tiles without a winner are white, and their numbers empty."""

    tiles: Bytes  # (m, k or 2k, h, w, 3)
    masks: NDArray[np.bool_]  # (m, k, h, w): what is shown
    examples: Bytes | None  # (m, Q, h, w, 3)
    overview: Bytes  # (m, 1 or 2, h, w, 3)
    focus: NDArray[np.float64]  # (m, k)
    area: NDArray[np.float64]  # (m, k)
    boxes: Tensor  # (m, k, 4)
    example_boxes: Tensor  # (m, Q, 4)
    steps: Tensor  # (m, steps of the layer) int64: numbers that are not zero on the way down from the strongest unit
    signal: Links  # the maps below at which its signal arrives


@dataclass
class Painter:
    """Makes the panels of an atlas.

    Args:
        deconvnet: of the network.
        preprocessing: of its images.
        image_size: rows and columns.
        reader: of the images.
        pixels: whether pictures of the images are made, and not of projections alone.
        clock: measures the time of each kind of work.
        threads: how many project; see `each_alone`.
        strict: whether winners must have the values that the network computes.
    """

    deconvnet: Deconvnet
    preprocessing: Preprocessing
    image_size: Pair
    reader: Reader
    pixels: bool = True
    clock: Clock = field(default_factory=Clock)
    strict: bool = True
    threads: int = 1

    def rgb(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W) as they are shown: (n, 3, H, W) in 0..1."""
        return self.preprocessing.pixels(images).clamp(0, 1)

    def boxes(self, layer: Layer, units: Tensor) -> Tensor:
        """The boxes (m, 4) of units (m, 4) of a layer; where tiles are whole images, those that the browser draws."""
        if not len(units):
            return torch.zeros(0, 4, dtype=torch.int64)
        local = units * torch.tensor((0, 1, 1, 1))
        whole = layer.table.receptive_field is None
        return self.deconvnet._located(layer.name, local, 1, self.image_size, whole=whole).boxes

    def panels(self, layer: Layer, top: TopActivations, shown: Examples, rows: Tensor) -> Panels:
        """The panels of some rows (m,) of a layer.

        Args:
            layer: which.
            top: its winners.
            shown: the examples of these rows.
            rows: numbers of rows.
        Raises InputError where the winners are not what the network computes.
        """
        maps, k = layer.chosen[rows], top.value.shape[1]
        units, values = top.units(maps), top.value[maps].flatten()
        winners = ((units[:, 0] >= 0) & (top.unclipped[maps].flatten() > 0)).nonzero().flatten()
        winners = winners[units[winners, 0].argsort(stable=True)]
        m, size, mask, overview = len(maps), layer.sizes["tile"], layer.sizes["mask"], layer.sizes["overview"]
        parts = 2 if self.pixels else 1
        panels = Panels(
            np.full((m * k, parts, *size, 3), 255, np.uint8),
            np.zeros((m * k, *mask), bool),
            None,
            np.full((m, parts, *overview, 3), 255, np.uint8),
            np.zeros(m * k),
            np.zeros(m * k),
            torch.zeros(m * k, 4, dtype=torch.int64),
            torch.zeros(m, len(QUANTILES), 4, dtype=torch.int64),
            torch.zeros(m, len(layer.steps), dtype=torch.int64),
            Links.none(m),
        )
        panels.boxes[winners] = self.boxes(layer, units[winners])
        arrivals = _Arrivals(self, layer, m)

        def work(chunk: Tensor, images: Tensor) -> None:
            with self.clock.beside("projection"):
                canvases, strengths = self._canvases(layer, units[chunk], images, arrivals.of(chunk, k))
                if self.strict:
                    _check(layer, values[chunk], strengths, units[chunk])
            with self.clock.beside("pictures"):
                self._draw(layer, canvases, chunk, k, panels)

        for_each(work, self._chunks(layer, units, winners), self.threads, lambda: self.clock("waiting"))
        panels.area = panels.masks.mean((1, 2)).reshape(m, k)
        panels.tiles = panels.tiles.reshape(m, k, parts, *size, 3).swapaxes(1, 2).reshape(m, parts * k, *size, 3)
        panels.masks, panels.focus, panels.boxes = (
            panels.masks.reshape(m, k, *mask),
            panels.focus.reshape(m, k),
            panels.boxes.view(m, k, 4),
        )
        panels.steps, panels.signal = arrivals.steps, arrivals.links()
        self._examples(layer, maps, shown, panels)
        return panels

    def _draw(self, layer: Layer, canvases: Canvases, chunk: Tensor, k: int, panels: Panels) -> None:
        """Fill in the tiles, masks and focus of a chunk of units."""
        size, overview, indices = layer.sizes["tile"], layer.sizes["overview"], chunk.numpy()
        if self.pixels:
            panels.tiles[indices, 0] = canvases.crop_tiles(size)
        panels.tiles[indices, -1] = canvases.projection_tiles(size)
        panels.masks[indices] = canvases.masks(size, layer.sizes["mask"])
        panels.focus[indices] = canvases.focus()
        first = (chunk % k == 0).nonzero().flatten()
        if len(first):
            strongest = canvases.of(first)
            if self.pixels:
                panels.overview[indices[first] // k, 0] = strongest.crop_tiles(overview)
            panels.overview[indices[first] // k, -1] = strongest.projection_tiles(overview)

    def whole_canvases(
        self, layer: Layer, units: Tensor, winners: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Bytes, Bytes]]:
        """Crops, projections, and the tiles of both, of the units `winners`, in their order."""
        crops = torch.ones(len(units), 3, *layer.shown)
        projections = torch.zeros(len(units), self.preprocessing.channel_count, *layer.shown)
        tiles = [np.full((len(units), *layer.sizes["tile"], 3), 255, np.uint8) for _ in range(2)]
        for chunk, images in self._chunks(layer, units, winners[units[winners, 0].argsort(stable=True)]):
            canvases, _ = self._canvases(layer, units[chunk], images, None)
            crops[chunk] = canvases.crops.masked_fill(canvases.beyond, 1.0)
            projections[chunk] = canvases.projections
            tiles[0][chunk.numpy()] = canvases.crop_tiles(layer.sizes["tile"])
            tiles[1][chunk.numpy()] = canvases.projection_tiles(layer.sizes["tile"])
        return crops[winners], projections[winners], (tiles[0][winners.numpy()], tiles[1][winners.numpy()])

    def _examples(self, layer: Layer, maps: Tensor, shown: Examples, panels: Panels) -> None:
        """Fill in the examples of maps (m,)."""
        count = len(QUANTILES)
        units = torch.stack([shown.image, maps[:, None].expand(-1, count), shown.row, shown.column], 2).view(-1, 4)
        valid = (units[:, 0] >= 0).nonzero().flatten()
        boxes = panels.example_boxes.view(-1, 4)
        boxes[valid] = self.boxes(layer, units[valid])
        if not self.pixels:
            return
        size = layer.sizes["example"]
        tiles = np.full((len(units), *size, 3), 255, np.uint8)
        valid = valid[units[valid, 0].argsort(stable=True)]

        def work(chunk: Tensor, images: Tensor) -> None:
            with self.clock.beside("pictures"):
                _, local = units[chunk, 0].unique(return_inverse=True)
                visible = self._whole(len(chunk)) if layer.whole else boxes[chunk]
                crops = self._pictures(cut_out(images.float().cpu(), local, visible, layer.shown), visible)
                tiles[chunk.numpy()] = crop_tiles(crops, beyond(visible, self.image_size, layer.shown), size)

        for_each(work, self._chunks(layer, units, valid), self.threads, lambda: self.clock("waiting"))
        panels.examples = tiles.reshape(len(maps), count, *size, 3)

    def _chunks(self, layer: Layer, units: Tensor, selection: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Some of the units, ordered by image, in chunks that fit into memory, each with its images (n, C, H, W).

        The chunks depend only on the units, so a projection is always the same to the bit.
        """
        channels = self.preprocessing.channel_count
        unit_limit = max(1, MOST_BYTES // (4 * max(3, channels) * layer.shown[0] * layer.shown[1]))
        image_limit = max(1, MOST_IMAGES // (4 * channels * self.image_size[0] * self.image_size[1]))
        chunks: list[list[int]] = []
        groups: list[list[int]] = []
        for unit, image in zip(selection.tolist(), units[selection, 0].tolist(), strict=True):
            is_new = not groups or groups[-1][-1] != image
            if not chunks or len(chunks[-1]) == unit_limit or (is_new and len(groups[-1]) == image_limit):
                chunks.append([])
                groups.append([image])
            elif is_new:
                groups[-1].append(image)
            chunks[-1].append(unit)
        for chunk, images in zip(chunks, self.reader.groups(groups), strict=True):
            self.clock("reading")
            yield torch.tensor(chunk), images

    def _canvases(
        self, layer: Layer, units: Tensor, images: Tensor, observe: Callable[[str, Tensor, Tensor], None] | None
    ) -> tuple[Canvases, Tensor]:
        """The crops of units, their projections, and their values."""
        local = units.clone()
        local[:, 0] = units[:, 0].unique(return_inverse=True)[1]
        patches = self.deconvnet.project_units(images, layer.name, local, whole=layer.whole, observe=observe)
        projections = fill(patches.projections.float().cpu(), layer.shown)
        boxes = patches.boxes.cpu()
        crops = self._pictures(fill(patches.crops.float().cpu(), layer.shown), boxes)
        outside = beyond(boxes, self.image_size, layer.shown)
        return Canvases(crops, projections, self.preprocessing.rgb(projections), outside), patches.values.cpu()

    def _whole(self, count: int) -> Tensor:
        """The boxes of whole images."""
        return torch.tensor((0, 0, *self.image_size)).expand(count, 4)

    @cached_property
    def _grey(self) -> tuple[Tensor, Tensor]:
        """The picture of an image of zeros, (1, 3, H, W), and what a channel's 1 adds to it."""
        preprocessing = self.preprocessing
        zero = torch.zeros(1, preprocessing.channel_count, *self.image_size)
        return preprocessing.pixels(zero), torch.tensor(preprocessing.std, dtype=torch.float32).view(
            -1, 1, 1
        ) / preprocessing.scale

    def _pictures(self, crops: Tensor, boxes: Tensor) -> Tensor:
        """Crops (m, C, h, w) of images as they are shown: the same as of whole images, whose mean may be an image."""
        zero, gain = self._grey
        pictures = self.preprocessing.rgb(crops * gain)
        local = torch.zeros(len(boxes), dtype=torch.int64)
        return pictures.add_(cut_out(zero, local, boxes, pair(crops.shape[-2:]))).clamp_(0, 1)


def cut_out(pictures: Tensor, local: Tensor, boxes: Tensor, size: Pair) -> Tensor:
    """Canvases (m, C, *size) with what boxes (m, 4) hold of pictures (n, C, H, W)."""
    crops = torch.zeros(len(boxes), pictures.shape[1], *size)
    for crop, image, (top, left, bottom, right) in zip(crops, local.tolist(), boxes.tolist(), strict=True):
        part = pictures[image, :, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        crop[:, max(-top, 0) :, max(-left, 0) :][:, : part.shape[1], : part.shape[2]] = part
    return crops


def fill(canvases: Tensor, size: Pair) -> Tensor:
    """Canvases at the size of the layer's largest, zero beyond them."""
    rows, columns = canvases.shape[-2:]
    if (rows, columns) == size:
        return canvases
    return F.pad(canvases, (0, size[1] - columns, 0, size[0] - rows))


def _check(layer: Layer, scanned: Tensor, computed: Tensor, units: Tensor) -> None:
    """Raises InputError if units have other values than in the scan: it is of another network or of other images."""
    differs = (scanned - computed.to(scanned)).abs() > CLOSE * scanned.abs().clamp(min=1e-3)
    if differs.any():
        first = int(differs.nonzero()[0])
        image, number, row, column = units[first].tolist()
        raise InputError(
            f"the scan says that map {number} of {layer.name} is {float(scanned[first]):g} at ({row}, {column}) of "
            f"image {image}; this network computes {float(computed[first]):g}: scan again with fresh=True"
        )


class _Arrivals:
    """The signal that arrives at the maps below from the strongest unit of each map."""

    def __init__(self, painter: Painter, layer: Layer, rows: int):
        self.steps = torch.zeros(rows, len(layer.steps), dtype=torch.int64)
        self._columns = {name: column for column, (name, _) in enumerate(layer.steps)}
        graph = painter.deconvnet.graph
        shapes = graph.shapes(painter.image_size, layer.node)
        self._below = dict(zip(layer.sources, layer.below, strict=True))
        self._sums = {name: torch.zeros(rows, shapes[graph.node(name)][1]) for name in self._below}

    def of(self, chunk: Tensor, k: int) -> Callable[[str, Tensor, Tensor], None]:
        """The observer of `project_units` for a chunk of units."""

        def observe(name: str, signal: Tensor, batch: Tensor) -> None:
            units = chunk[batch]
            first = (units % k == 0).nonzero().flatten()
            if not len(first) or name not in self._columns:
                return
            rows, strongest = units[first] // k, signal[first.to(signal.device)]
            self.steps[rows, self._columns[name]] = strongest.flatten(1).count_nonzero(1).cpu()
            if name in self._sums:
                sums = strongest.abs().flatten(2).sum(2) if strongest.ndim > 2 else strongest.abs()
                self._sums[name][rows] = sums.float().cpu()

        return observe

    def links(self) -> Links:
        """The maps below at which most of the signal arrives, with their shares."""
        links = Links.none(len(self.steps))
        total = sum((sums.sum(1, keepdim=True) for sums in self._sums.values()), torch.zeros(len(self.steps), 1))
        for name, sums in self._sums.items():
            weight, which = (sums / total.clamp(min=torch.finfo(torch.float32).tiny)).topk(min(6, sums.shape[1]), 1)
            links = links.merged(torch.full_like(which, self._below[name]), which, weight)
        return links
