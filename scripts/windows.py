"""Draws docs/windows.svg: the window of one unit in each layer below it, and the way of its activation back to pixels.

    python scripts/windows.py            # writes the picture
    python scripts/windows.py --check    # exits with 1 if the file is not what would be drawn

Windows are those of `zfnet.receptive_field`, values those of `Deconvnet.record`, and signals those of
`Deconvnet.steps`, of a network with small whole numbers as weights.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from zfnet import Deconvnet, receptive_field
from zfnet.files import write_atomically

FILE = Path(__file__).resolve().parents[1] / "docs" / "windows.svg"
SIDE, UNIT, LAYERS = 8, (1, 2), ("1", "2", "3")  # pixels of the image; row and column; rectified, pooled, filtered
CELL, GAP, LEFT, TOP = 22, 44, 14, 88  # of the picture, in pixels
TITLES = (("image", "filtered, rectified", "max-pooled", "filtered"), ("filtered", "unpooled", "filtered", "the unit"))
PALE, WINDOW, STRONG, NEGATIVE = "#ffffff", "#cfe3f7", "#f5c56b", "#d8d0ee"


def network() -> nn.Sequential:
    """Two convolutions with max pooling between them, of whole numbers."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Conv2d(1, 1, 3, padding=1, bias=False),
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 1, 0], [1, -1, 1], [0, 1, 0]]))
        model[3].weight.copy_(torch.tensor([[1.0, 0, -1], [2, 1, -2], [1, 0, 1]]))
    return model.eval()


def image() -> Tensor:
    """An image (1, 1, SIDE, SIDE) of the numbers 0 to 3."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return ((3 * rows + columns * columns + rows * columns) % 4).float()[None, None]


def windows(model: nn.Sequential) -> list[tuple[int, int, int, int]]:
    """What UNIT depends on in the image and in each layer: top, left, bottom, right, not clipped."""
    sizes = (SIDE, SIDE, SIDE // 2)
    below = [receptive_field(model[first:], "3", size) for first, size in zip((0, 2, 3), sizes, strict=True)]
    return [*(field.box(*UNIT) for field in below), (UNIT[0], UNIT[1], UNIT[0] + 1, UNIT[1] + 1)]


def passes(model: nn.Sequential) -> tuple[list[Tensor], list[Tensor]]:
    """The values (rows, columns) of the image and of each layer, and the signal at each, from the image up."""
    deconvnet = Deconvnet(model)
    recording = deconvnet.record(image())
    values = [image()[0, 0], *(recording.activations[layer][0, 0] for layer in LAYERS)]
    signal = torch.zeros_like(recording.activations["3"])
    signal[0, 0][UNIT] = values[3][UNIT]
    steps = {name: sent for name, _, sent in deconvnet.steps(recording, "3", signal)}  # by the step that was undone
    return values, [steps["0"][0, 0], steps["2"][0, 0], steps["3"][0, 0], signal[0, 0]]


def grid(
    numbers: Tensor, left: float, top: float, fills: Sequence[Sequence[str]], rectified: bool = False
) -> list[str]:
    """The cells of a map with their numbers, as SVG; `rectified`: negative ones are crossed out."""
    parts = []
    for row, line in enumerate(numbers.tolist()):
        for column, number in enumerate(line):
            x, y = left + CELL * column, top + CELL * row
            parts.append(
                f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="{fills[row][column]}" stroke="#999999"/>'
            )
            if number:
                crossed = ' text-decoration="line-through"' if rectified and number < 0 else ""
                parts.append(f'<text x="{x + CELL / 2:g}" y="{y + CELL / 2 + 4:g}"{crossed}>{number:g}</text>')
    return parts


def outlined(box: tuple[int, int, int, int], left: float, top: float) -> str:
    """The outline of a window, which may leave the map."""
    y, x, bottom, right = box
    size = f'width="{(right - x) * CELL}" height="{(bottom - y) * CELL}"'
    return (
        f'<rect x="{left + x * CELL}" y="{top + y * CELL}" {size} fill="none" stroke="#1f4e9c" '
        'stroke-width="2" stroke-dasharray="5 3"/>'
    )


def drawn() -> str:
    """The picture, as SVG."""
    model = network()
    values, signals = passes(model)
    boxes = windows(model)
    lefts = [LEFT + CELL]
    for numbers in values[:-1]:
        lefts.append(lefts[-1] + CELL * numbers.shape[1] + GAP)
    width = lefts[-1] + CELL * values[-1].shape[1] + LEFT + CELL
    below = TOP + CELL * (SIDE + 2) + GAP
    height = below + CELL * (SIDE + 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11" text-anchor="middle">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    heads = (
        "Forward: the numbers, and what the unit (orange) depends on (blue)",
        "Back, from right to left: its activation on the way to pixels",
    )
    for top, head in ((TOP - 62, heads[0]), (below - 42, heads[1])):
        parts.append(f'<text x="{LEFT}" y="{top}" text-anchor="start" font-size="14">{head}</text>')
    for number, left in enumerate(lefts):
        for titles, top in zip(TITLES, (TOP - CELL - 8, below - 8), strict=True):
            middle = left + CELL * values[number].shape[1] / 2
            parts.append(f'<text x="{middle:g}" y="{top}">{titles[number]}</text>')
        y, x, bottom, right = boxes[number]
        shade = STRONG if number == 3 else WINDOW
        rows, columns = values[number].shape
        fills = [
            [shade if y <= row < bottom and x <= column < right else PALE for column in range(columns)]
            for row in range(rows)
        ]
        parts += grid(values[number], left, TOP, fills)
        parts.append(outlined(boxes[number], left, TOP))
        sent = [[PALE if not cell else STRONG if cell > 0 else NEGATIVE for cell in line] for line in signals[number]]
        parts += grid(signals[number], left, below, sent, rectified=number == 1)
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the file differs")
    if not parser.parse_args().check:
        write_atomically(FILE, drawn().encode())
    elif not FILE.exists() or FILE.read_text(encoding="utf-8") != drawn():
        sys.exit("docs/windows.svg is not what would be drawn: run python scripts/windows.py")


if __name__ == "__main__":
    main()
