"""From signals to pictures: a projection has a sign and no scale, an image has 0..1.

Zero is mid-grey, as in the paper, and the strongest value of either sign lies at the end of the range: a signal and its
multiples give the same picture.  A few extreme values would turn all others grey, so the range ends at a quantile of
the values that are not zero, and what lies beyond is cut off.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from zfnet.errors import InputError

GREY = 0.5


def contrast(signal: Tensor, *, together: int = 1, quantile: float = 0.995) -> Tensor:
    """Signals (N, ...) scaled to -1..1, zero staying zero: each by its own range, or `together` successive ones.

    The range is the `quantile` of the absolute values that are not zero; larger ones become -1 or 1.
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


def signed_image(signal: Tensor, **scaling: float) -> Tensor:
    """Signals (N, 3, H, W) as images in 0..1 around mid-grey, scaled as by `contrast`."""
    return GREY + GREY * contrast(signal, **scaling)  # type: ignore[arg-type]


def saturated(images: Tensor, factor: float) -> Tensor:
    """Images (N, 3, H, W) in 0..1 with stronger colours: each pixel's distance from its own grey, times `factor`."""
    grey = images.mean(1, keepdim=True)
    return (grey + factor * (images - grey)).clamp(0, 1)


def outside(boxes: Tensor, image_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Which pixels (N, 1, *size) of canvases at boxes (N, 4: top, left, bottom, right) lie outside the image."""
    rows = boxes[:, :1] + torch.arange(size[0], device=boxes.device)
    columns = boxes[:, 1:2] + torch.arange(size[1], device=boxes.device)
    beyond = [(where < 0) | (where >= extent) for where, extent in zip((rows, columns), image_size, strict=True)]
    return (beyond[0][:, :, None] | beyond[1][:, None, :])[:, None]


def on_image(canvases: Tensor, boxes: Tensor, image_size: tuple[int, int], fill: float = 0.0) -> Tensor:
    """Canvases (N, C, S, S) where their boxes (N, 4: top, left, bottom, right) lie in images: (N, C, H, W).

    What lies outside the image is lost; around a canvas is `fill`.
    """
    whole = canvases.new_full((*canvases.shape[:2], *image_size), fill)
    for image, canvas, (top, left, bottom, right) in zip(whole, canvases, boxes.tolist(), strict=True):
        part = canvas[:, max(-top, 0) : max(image_size[0] - top, 0), max(-left, 0) : max(image_size[1] - left, 0)]
        image[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = part
    return whole


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images or signals (N, C, H, W) at another size, without aliasing; a signal's fine grain cancels out.

    Resize a signal before its contrast is set, or what is left of it will be faint.
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True)


def grid(tiles: Tensor, columns: int, gap: int = 0, fill: float = 1.0) -> Tensor:
    """Tiles (N, 3, H, W) in reading order as one image (3, rows, columns), `gap` pixels of `fill` between them."""
    if columns < 1:
        raise InputError(f"a grid of {columns} columns")
    count, channels, height, width = tiles.shape
    rows = -(-count // columns)
    whole = tiles.new_full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), fill)
    for n, tile in enumerate(tiles):
        top, left = n // columns * (height + gap), n % columns * (width + gap)
        whole[:, top : top + height, left : left + width] = tile
    return whole
