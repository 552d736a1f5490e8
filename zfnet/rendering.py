"""From signals to pictures: a projection has a sign and no scale, an image has values in 0..1.

Zero is mid-grey, as in the paper. The strongest value of either sign lies at the end of the range, so a signal and its
multiples give the same picture. A few extreme values would turn all others grey: the range therefore ends at a quantile
of the nonzero values, and larger values are clipped.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from zfnet.errors import InputError

GREY = 0.5


def contrast(signal: Tensor, *, together: int = 1, quantile: float = 0.995) -> Tensor:
    """Scale signals to -1..1, with zero at zero.

    Args:
        signal: (N, ...).
        together: how many successive signals share one range.
        quantile: the range ends at this quantile of the nonzero absolute values; larger ones become -1 or 1.
    """
    if not 0 < quantile <= 1:
        raise InputError(f"quantile is {quantile}; give a number above 0, up to 1")
    if together < 1 or len(signal) % together:
        raise InputError(f"{len(signal)} signals cannot be scaled {together} together")
    if not signal.numel():
        return signal
    rows = signal.reshape(len(signal) // together, -1)
    limits = []
    for row in rows.abs():  # torch.quantile refuses long rows: take the value of that rank
        values = row[row > 0]
        rank = max(math.ceil(quantile * len(values)), 1)
        limits.append(values.kthvalue(rank).values if len(values) else row.new_ones(()))
    return (rows / torch.stack(limits)[:, None]).clamp(-1, 1).reshape(signal.shape)


def signed_image(signal: Tensor, *, together: int = 1, quantile: float = 0.995) -> Tensor:
    """Signals (N, C, H, W) as images in 0..1 around mid-grey, scaled as by `contrast`."""
    return GREY + GREY * contrast(signal, together=together, quantile=quantile)


def saturated(images: Tensor, factor: float) -> Tensor:
    """Images (N, 3, H, W) in 0..1 with stronger colours: each pixel's distance from its own grey, times `factor`."""
    grey = images.mean(1, keepdim=True)
    return (grey + factor * (images - grey)).clamp(0, 1)


def outside(boxes: Tensor, image_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Which pixels of canvases lie outside the image, or beyond their box: (N, 1, rows, columns), bool.

    Args:
        boxes: (N, 4: top, left, bottom, right), where the canvases lie, in image pixels.
        image_size, size: rows and columns of the image and of a canvas.
    """
    beyond = []
    for axis, extent in enumerate(image_size):
        index = boxes[:, axis : axis + 1] + torch.arange(size[axis], device=boxes.device)
        beyond.append((index < 0) | (index >= boxes[:, axis + 2 : axis + 3].clamp(max=extent)))
    return (beyond[0][:, :, None] | beyond[1][:, None, :])[:, None]


def on_image(canvases: Tensor, boxes: Tensor, image_size: tuple[int, int], fill: float = 0.0) -> Tensor:
    """Lay canvases on empty images (N, C, rows, columns) of the value `fill`. What lies outside the image is lost.

    Args:
        canvases: (N, C, h, w), of which what is larger than its box is left out.
        boxes: (N, 4: top, left, bottom, right), where they lie, in image pixels.
    """
    images = canvases.new_full((*canvases.shape[:2], *image_size), fill)
    for image, canvas, (top, left, bottom, right) in zip(images, canvases, boxes.tolist(), strict=True):
        rows, columns = (min(end, extent) for end, extent in zip((bottom, right), image_size, strict=True))
        part = canvas[:, max(-top, 0) : max(rows - top, 0), max(-left, 0) : max(columns - left, 0)]
        image[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = part
    return images


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images or signals (N, C, H, W) at another size, without aliasing; a signal's fine grain cancels out.

    Resize a signal before its contrast is set, or what is left of it will be faint.
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True)


def grid(tiles: Tensor, columns: int, gap: int = 0, fill: float = 1.0) -> Tensor:
    """Tiles in reading order as one image (3, rows, columns).

    Args:
        tiles: (N, 3, H, W), or (N, 1, H, W), which becomes RGB.
        columns: tiles in a row, `gap` pixels of the value `fill` between them.
    """
    from torchvision.utils import make_grid  # a second of import time that the library does without

    if columns < 1:
        raise InputError(f"a grid of {columns} columns; give at least 1")
    full = F.pad(tiles, (0, 0, 0, 0, 0, 0, 0, -len(tiles) % columns), value=fill)
    border = gap if len(full) > 1 else 0  # make_grid puts none around a single tile
    framed: Tensor = make_grid(full, columns, gap, pad_value=fill)
    return framed[:, border : framed.shape[1] - border, border : framed.shape[2] - border]
