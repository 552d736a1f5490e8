"""The table of layers: the number of units, the origin of map sizes, and the size of a unit's patch.

A unit is one element of a layer's output (feature map, row, column). All units of a feature map share one filter, so a
layer has as many filters as maps. What to look for: the receptive fields, which are the sizes of Figure 2's patches.
"""

from pathlib import Path
from typing import Any

from torch import nn

from experiments.output.results import Result
from experiments.output.tables import table
from experiments.setup.hints import Count
from zfnet import layer_table

PAPER = {  # Figure 3: maps, rows, columns
    "conv1": [96, 110, 110],
    "pool1": [96, 55, 55],
    "conv2": [256, 26, 26],
    "pool2": [256, 13, 13],
    "conv3": [384, 13, 13],
    "conv4": [384, 13, 13],
    "conv5": [256, 13, 13],
    "pool5": [256, 6, 6],
    "fc6": [4096],
    "fc7": [4096],
}


def main(model: nn.Module, out: str | Path, *, image_size: Count | None = None) -> dict[str, Any]:
    """Print the table of layers: sizes, units, kernels, receptive fields, parameters.

    Args:
        model: the network.
        out: the folder of the result.
        image_size: of the images, pixels; null: the network's own.
    """
    result = Result("units", out, locals())
    size: int = image_size or model.preprocessing.size  # type: ignore[union-attr, assignment]
    rows = layer_table(model, size)
    head = ["layer", "operation", "output", "units", "kernel", "stride", "patch", "patch stride", "parameters"]
    lines: list[list[Any]] = []
    for r in rows:
        extents = (
            _pair(r.kernel),
            _pair(r.stride),
            _range(r.smallest_field, r.receptive_field),
            _pair(r.receptive_stride),
        )
        lines.append([r.layer, r.operation, " x ".join(map(str, r.output)), r.units, *extents, r.parameters])
    total = sum(p.numel() for p in model.parameters())
    notes = f"{type(model).__name__}, images of {size} x {size} pixels; {total:,} parameters."
    if maps := [r for r in rows if len(r.output) == 3 and r.parameters]:
        count, height, width = maps[0].output
        notes += (
            f"\nLayer 1 has {count} x {height} x {width} = {maps[0].units:,} units: a unit is one element of the "
            "output. "
            f"All {height * width:,} units of a feature map share one filter, so there are {count} filters."
        )
    result.text(f"{table(head, lines)}\n\n{notes}")
    result.settings["image_size"] = size
    output = {r.layer: list(r.output) for r in rows}
    extra = {"layers": [r._asdict() for r in rows], "image_size": size, "parameters": total}
    return result.finish({"output": output, **extra}, {"output": {name: PAPER.get(name) for name in output}})


def _range(smallest: tuple[int, int] | None, largest: tuple[int, int] | None) -> str | int:
    """The fields of a layer's maps, which behind joined branches differ."""
    if largest is None:
        return "not known"
    return _pair(largest) if smallest == largest else f"{_pair(smallest)} to {_pair(largest)}"


def _pair(sizes: tuple[int, int] | None) -> str | int:
    """Rows and columns as one number where they are the same."""
    return "" if sizes is None else sizes[0] if sizes[0] == sizes[1] else f"{sizes[0]} x {sizes[1]}"
