"""The pictures of an atlas: tiles of units, masks of what a projection covers, and the sprites that hold many of them.

Beyond the image, and beyond what a map of joined branches sees, a tile is white. In projections mid-grey is 0, and each
has its own scale.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, features
from torch import Tensor

from zfnet.checks import Pair, pair
from zfnet.errors import InputError, unknown_name
from zfnet.rendering import outside, resized, signed_image

Bytes = NDArray[np.uint8]
Format = Literal["webp", "avif"]
FORMATS = ("webp", "avif")
QUALITY = {"webp": 50, "avif": 45}  # a sprite of the densest tiles is 0.3 MB, of which a page loads one
GREY = 128  # of 255: where a mask hides
COVERED, HALF = 0.9, 0.5  # shares of a projection: what a mask shows, and of its squares, for its focus
BLURRED = 24  # pixels of a mask from which it is blurred
LOSSLESS = 24  # pixels of a tile below which what a codec loses would show


def check_format(encoding: str) -> None:
    """Raises InputError for an unknown format, or one that this Pillow cannot write."""
    if encoding not in FORMATS:
        raise unknown_name("format", str(encoding), FORMATS)
    if not features.check(encoding):
        raise InputError(
            f"this Pillow cannot write {encoding}; update it (pip install -U pillow), or give another format"
        )


@dataclass(frozen=True)
class Canvases:
    """The crops of M units and their projections, at the size of the image's pixels."""

    crops: Tensor  # (M, 3, h, w) in 0..1
    projections: Tensor  # (M, C, h, w)
    signals: Tensor  # (M, 3, h, w): the projections as RGB
    beyond: Tensor  # (M, 1, h, w) bool: beyond the image, or beyond the field
    _smaller: dict[Pair, Tensor] = field(default_factory=dict, repr=False)

    def of(self, some: Tensor) -> "Canvases":
        """Those of some of the units."""
        return Canvases(self.crops[some], self.projections[some], self.signals[some], self.beyond[some])

    def crop_tiles(self, size: Pair) -> Bytes:
        """Crops (M, *size, 3)."""
        return crop_tiles(self.crops, self.beyond, size)

    def projection_tiles(self, size: Pair) -> Bytes:
        """Projections (M, *size, 3)."""
        picture = signed_image(self._resized(size))
        return as_bytes(picture.masked_fill(smaller(self.beyond, size), 1.0))

    def _resized(self, size: Pair) -> Tensor:
        if size not in self._smaller:
            self._smaller[size] = resized(self.signals, size)
        return self._smaller[size]

    def masks(self, tile: Pair, size: Pair) -> NDArray[np.bool_]:
        """The pixels (M, *size) that hold 90 % of what a tile shows: the smallest set, and what ties with its last."""
        energy = self._resized(tile).abs().sum(1, keepdim=True)
        if size != tile:
            energy = F.adaptive_avg_pool2d(energy, size)
        if max(size) >= BLURRED:
            energy = F.avg_pool2d(energy, 3, 1, 1)
        energy = energy.masked_fill(smaller(self.beyond, size), 0.0)[:, 0]
        return covered(energy.flatten(1), COVERED)[1].reshape(energy.shape)

    def focus(self) -> NDArray[np.float64]:
        """The smallest share of the field's pixels that holds half of the projection's sum of squares: (M,)."""
        inside = ~self.beyond[:, 0].flatten(1)
        energy = self.projections.square().sum(1).flatten(1) * inside
        pixels = inside.sum(1).clamp(min=1).cpu().numpy()
        counts, _ = covered(energy, HALF)
        share: NDArray[np.float64] = counts / pixels
        return share


def covered(energy: Tensor, share: float) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """How few of the entries of each row (M, n) hold a share of its sum, and which: (M,) and (M, n)."""
    rows = energy.float().cpu().numpy()
    largest = -np.sort(-rows, axis=1)
    sums = np.cumsum(largest, axis=1, dtype=np.float64)
    counts = (sums < share * sums[:, -1:]).sum(1) + 1
    limit = largest[np.arange(len(rows)), counts - 1]
    counts[sums[:, -1] == 0] = 0
    return counts, (rows >= limit[:, None]) & (rows > 0)


def beyond(boxes: Tensor, image_size: Pair, shown: Pair) -> Tensor:
    """Which pixels of canvases lie beyond the image or the box: (M, 1, *shown)."""
    return outside(boxes, image_size, shown)


def smaller(mask: Tensor, size: Pair) -> Tensor:
    """A mask (M, 1, h, w) at another size: where half of a pixel or more is masked."""
    if pair(mask.shape[-2:]) == size:
        return mask
    return F.adaptive_avg_pool2d(mask.float(), size) >= 0.5


def crop_tiles(crops: Tensor, beyond: Tensor, size: Pair) -> Bytes:
    """Crops (M, 3, h, w) in 0..1 as (M, *size, 3), white beyond the image."""
    picture = resized(crops.masked_fill(beyond, 1.0), size).clamp(0, 1)
    return as_bytes(picture.masked_fill(smaller(beyond, size), 1.0))


def as_bytes(pictures: Tensor) -> Bytes:
    """Pictures (M, 3, h, w) in 0..1 as bytes (M, h, w, 3)."""
    values: Bytes = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return values


# ---- sprites ---------------------------------------------------------------------------------------------------------


class Sprites:
    """Cells of one size, one for each map, laid out in sprites.

    Args:
        per: maps in a sprite.
        across: of these, maps in a line.
        cell: rows and columns of a cell.
        fill: of what no cell covers; for masks, of one channel, 0.
        channels: 3, or none for masks.
    """

    def __init__(self, per: int, across: int, cell: Pair, channels: tuple[int, ...] = (3,), fill: int = 255):
        self.per, self.across, self.cell, self.channels, self.fill = per, across, cell, channels, fill
        self.number = 0
        self._cells: list[Bytes] = []

    def add(self, cells: Bytes) -> Iterator[tuple[int, Bytes]]:
        """The sprites, by number, that are whole with these cells (M, rows, columns, ...)."""
        self._cells += list(cells)
        while len(self._cells) >= self.per:
            yield self._next()

    def rest(self) -> Iterator[tuple[int, Bytes]]:
        """The last sprite, if one has begun."""
        if self._cells:
            yield self._next()

    def _next(self) -> tuple[int, Bytes]:
        cells, self._cells = self._cells[: self.per], self._cells[self.per :]
        rows, columns = self.cell
        lines, across = -(-len(cells) // self.across), min(self.across, self.per)
        sheet = np.full((lines * rows, across * columns, *self.channels), self.fill, dtype=np.uint8)
        for n, cell in enumerate(cells):
            top, left = n // self.across * rows, n % self.across * columns
            sheet[top : top + rows, left : left + columns] = cell
        self.number += 1
        return self.number - 1, sheet


def beside(*tiles: Bytes, height: int | None = None, fill: int = 255) -> Bytes:
    """Cells (M, h, w, ...) of tiles (M, n, h, w, ...) side by side, all n of the first, then all of the next, ..."""
    height = height or max(part.shape[2] for part in tiles)
    parts = []
    for part in tiles:
        short = height - part.shape[2]
        padding: Any = [(0, 0), (0, 0), (0, short), (0, 0), *[(0, 0)] * (part.ndim - 4)]
        part = np.pad(part, padding, constant_values=fill) if short else part
        parts.append(np.moveaxis(part, 1, 2).reshape(len(part), height, -1, *part.shape[4:]))
    return np.concatenate(parts, 2)


def encoded(picture: Bytes, encoding: str, *, lossless: bool = False) -> bytes:
    """An RGB picture (h, w, 3) as a file; where `lossless`, every pixel is kept."""
    buffer = io.BytesIO()
    image = Image.fromarray(picture)
    if encoding == "avif":
        how: dict[str, Any] = {"quality": 100, "subsampling": "4:4:4"} if lossless else {"quality": QUALITY[encoding]}
        image.save(buffer, "AVIF", speed=6, max_threads=1, **how)
    elif lossless:
        image.save(buffer, "WEBP", lossless=True, method=4)
    else:
        image.save(buffer, "WEBP", quality=QUALITY[encoding], method=4)
    return buffer.getvalue()


def encoded_mask(hidden: Bytes) -> bytes:
    """A mask (h, w), 1 where it hides, as a PNG: mid-grey there, transparent elsewhere."""
    image = Image.frombytes("P", (hidden.shape[1], hidden.shape[0]), hidden.tobytes())
    image.putpalette([GREY] * 6)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", bits=1, transparency=b"\x00\xff", optimize=False)
    return buffer.getvalue()
