"""A worked example: what is the largest activation of a unit that sees horizontal stripes, shown vertical stripes?

A network of two filters, one for horizontal and one for vertical stripes, is shown both. What to look for: exact zeros
off the diagonal. A filter's weights sum to zero along every line of the other's stripes, so the result is exactly 0:
whole numbers have no rounding. Where the stripes match, the projection shows them.
"""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.output.pages import LINE, Page, frame, heat
from experiments.output.results import Result
from experiments.output.tables import table
from experiments.setup.hints import Count, Width
from zfnet import Deconvnet, InputError

NAMES = ("horizontal", "vertical")


def stripes(size: int, period: int) -> Tensor:
    """Horizontal and vertical stripes of +1 and -1: (2, 3, size, size)."""
    line = 1.0 - 2.0 * (torch.arange(size) // (period // 2) % 2)
    horizontal = line[:, None].expand(size, size)
    return torch.stack([horizontal, horizontal.T])[:, None].expand(-1, 3, -1, -1).clone()


def two_filters(kernel: int) -> nn.Sequential:
    """Two filters that are stripes themselves, one row or column +1 and the next -1, and a ReLU."""
    conv = nn.Conv2d(3, 2, kernel, bias=False)
    conv.weight = nn.Parameter(stripes(kernel, kernel))
    return nn.Sequential(OrderedDict(conv=conv, relu=nn.ReLU()))


def main(out: str | Path, *, size: Count = 16, kernel: Count = 4, width: Width = 6.9) -> dict[str, Any]:
    """Show two images of stripes to two filters of stripes; print the table of the largest activations.

    Args:
        out: the folder of the result.
        size: of the images, pixels.
        kernel: of the filters, pixels; the period of all stripes.
        width: of the page, inches.
    """
    result, page = Result("stripes", out, locals()), Page(width)
    if kernel > size - size // 2:
        raise InputError(f"kernel is {kernel}; give at most half of the images' size, {size}")
    model, images = two_filters(kernel), stripes(size, kernel)
    deconvnet = Deconvnet(model)
    recording = deconvnet.record(images, ["conv", "relu"])
    before, after = recording.activations["conv"], recording.activations["relu"]
    largest = after.amax((2, 3)).T  # (filter, image)
    rows = [[f"{name} filter", *map(int, row)] for name, row in zip(NAMES, largest.tolist(), strict=True)]
    result.text(table(["largest activation of the", *(f"{name} stripes" for name in NAMES)], rows))
    signal = torch.zeros_like(after)
    signal[torch.arange(2), torch.arange(2), size // 2, size // 2] = largest.diagonal()
    _draw(page, images, after, stripes(kernel, kernel), deconvnet.project(recording, "relu", signal))
    result.figure(page.done())
    ours = {
        "largest": {f: dict(zip(NAMES, row, strict=True)) for f, row in zip(NAMES, largest.tolist(), strict=True)},
        "range_before_relu": {
            f: {i: [float(before[n, m].min()), float(before[n, m].max())] for n, i in enumerate(NAMES)}
            for m, f in enumerate(NAMES)
        },
    }
    return result.finish(ours)


def _draw(page: Page, images: Tensor, activations: Tensor, filters: Tensor, projections: Tensor) -> None:
    """A row for each image: itself, the activations of both filters, the filter that fits, and its projection."""
    titles = ["image", "horizontal filter's\nactivations", "vertical filter's\nactivations"]
    titles += ["filter that fits", "projection of\nthe unit in the middle"]
    left, gap = 2 * LINE, 16
    tile = (page.columns - left) // len(titles) - gap
    top = float(activations.max())
    for n, name in enumerate(NAMES):
        high = page.y + (n == 0) * 2 * LINE
        page.text(LINE / 2, high + tile / 2, f"{name} stripes", rotation=90, ha="center")
        planes = (images[n, 0], *activations[n], filters[n, 0], projections[n, 0])
        for column, (title, plane) in enumerate(zip(titles, planes, strict=True)):
            x, limit = left + column * (tile + gap), top if column in (1, 2) else float(plane.abs().max())
            if not n:
                page.text(x + tile / 2, high - LINE - 2, title, ha="center")
            axes = page.axes(x, high, tile, tile)
            heat(axes, plane, "gray", vmin=-limit, vmax=limit)
            frame(axes)
            if column in (1, 2):
                page.text(x + tile / 2, high + tile + LINE / 2, f"largest: {plane.max():g}", ha="center")
        page.y = high + tile + LINE + gap
    page.caption(
        f"Two filters of {filters.shape[-1]} x {filters.shape[-1]} pixels, and two images of {images.shape[-1]} x "
        f"{images.shape[-1]}. Grey is 0 everywhere, white above it and black below. The activations share one scale; "
        "each other picture has its own. A filter gives exactly 0 on the other's stripes."
    )
