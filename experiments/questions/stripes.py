"""A worked example: what is the largest activation of a unit that sees horizontal stripes, shown vertical stripes?

A network of two filters, one for horizontal and one for vertical stripes, is shown both. What to look for: exact zeros
off the diagonal. A filter's weights sum to zero along every line of the other's stripes, so that nothing is left, and
in whole numbers not even rounding. Where the stripes fit, the projection gives them back.
"""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from experiments.output.results import Provenance, results, table, write_result
from zfnet import Deconvnet
from zfnet.rendering import signed_image

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


def main(out: str | Path, *, size: int = 16, kernel: int = 4) -> dict[str, Any]:
    """Print the table of the largest activations, draw filters, images and activations; write result.json."""
    provenance = Provenance()
    model, images = two_filters(kernel), stripes(size, kernel)
    deconvnet = Deconvnet(model)
    recording = deconvnet.record(images, ["conv", "relu"])
    before, after = recording.activations["conv"], recording.activations["relu"]
    largest = after.amax((2, 3)).T  # (filter, image)
    text = table(
        ["largest activation of the", *(f"{name} stripes" for name in NAMES)],
        [[f"{name} filter", *map(int, row)] for name, row in zip(NAMES, largest.tolist(), strict=True)],
    )
    print(text)
    signal = torch.zeros_like(after)
    signal[torch.arange(2), torch.arange(2), size // 2, size // 2] = largest.diagonal()
    projections = deconvnet.project(recording, "relu", signal)
    ours = {
        "largest": {f: dict(zip(NAMES, row, strict=True)) for f, row in zip(NAMES, largest.tolist(), strict=True)},
        "range_before_relu": {
            f: {i: [float(before[n, m].min()), float(before[n, m].max())] for n, i in enumerate(NAMES)}
            for m, f in enumerate(NAMES)
        },
    }
    with results(out) as folder:
        _draw(stripes(kernel, kernel), images, after, projections).savefig(folder / "figure.png", dpi=110)
        (folder / "table.md").write_text(text + "\n", encoding="utf-8")
        return write_result(folder, "stripes", dict.fromkeys(ours), ours, {"size": size, "kernel": kernel}, provenance)


def _draw(filters: Tensor, images: Tensor, activations: Tensor, projections: Tensor) -> Figure:
    figure = Figure(figsize=(8.2, 3.6), layout="constrained")
    axes = figure.subplots(2, 5)
    columns = (
        "image",
        "activations of the\nhorizontal filter",
        "activations of the\nvertical filter",
        "filter that fits",
        "projection of one unit",
    )
    top = float(activations.max())
    for title, axis in zip(columns, axes[0], strict=True):
        axis.set_title(title, fontsize=9)
    for n, line in enumerate(axes):
        for axis, picture in ((line[0], images[n]), (line[3], filters[n]), (line[4], projections[n])):
            axis.imshow(signed_image(picture[None], quantile=1.0)[0].permute(1, 2, 0).numpy(), interpolation="nearest")
        for m in (0, 1):
            line[1 + m].imshow(activations[n, m].numpy(), cmap="gray", vmin=0, vmax=top, interpolation="nearest")
            line[1 + m].set_xlabel(f"largest: {activations[n, m].max():g}", fontsize=8)
        line[0].set_ylabel(f"{NAMES[n]} stripes", fontsize=9)
        for axis in line:
            axis.set(xticks=[], yticks=[])
    return figure
