"""What figures of feature maps share: which maps are drawn, and a page on which pictures lie pixel for pixel."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from zfnet.errors import InputError, unknown_name
from zfnet.operations import DECONVNET, DIFFERENTIATED_NORMS, Rules
from zfnet.scanning import TopActivations

DPI = 200
NORMS = {"identity": DECONVNET, "gradient": DECONVNET | DIFFERENTIATED_NORMS}  # contrast normalisation in reverse


def norm_rules(norm: str) -> Rules:
    """The rule set in which contrast normalisation is passed through ("identity"), or differentiated ("gradient")."""
    if norm not in NORMS:
        raise unknown_name("norm", norm, NORMS)
    return NORMS[norm]


def check_choice(choose: Any, layers: Sequence[str]) -> None:
    """InputError unless `chosen` knows this way to choose."""
    if isinstance(choose, str) and choose not in ("random", "strongest"):
        raise unknown_name("way to choose maps", choose, ("random", "strongest", "[map, ...]"))
    if isinstance(choose, Mapping):
        for layer in choose:
            if layer not in layers:
                raise unknown_name("layer in choose", layer, layers)


def chosen(layer: str, top: TopActivations, count: int, choose: Any, random: torch.Generator) -> list[int]:
    """The maps to draw, at most `count`: by number, by layer and number, or those that are ever above 0.

    Of these the "strongest", or any by "random"; maps that are above 0 on fewer than k images come last.
    """
    total = len(top.value)
    if not isinstance(choose, str):
        maps = list(choose.get(layer, []) if isinstance(choose, Mapping) else choose)
        for m in maps:
            if type(m) is not int or not 0 <= m < total:
                raise InputError(f"no map {m!r} in {layer}: there are {total}")
        return maps
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


def page(width: int, height: int) -> Figure:
    """An empty figure of so many pixels."""
    return Figure(figsize=(width / DPI, height / DPI), facecolor="white")


def text(figure: Figure, x: float, y: float, words: str, **style: Any) -> None:
    """Text whose middle is at pixel (x, y) from the top left."""
    width, height = (side * DPI for side in figure.get_size_inches())
    figure.text(x / width, 1 - y / height, words, va="center", **style)


def frame(figure: Figure, x: float, y: float, columns: float, rows: float) -> tuple[float, float, float, float]:
    """Where matplotlib puts axes of so many pixels, their top left at (x, y)."""
    width, height = (side * DPI for side in figure.get_size_inches())
    return x / width, 1 - (y + rows) / height, columns / width, rows / height


def place(figure: Figure, image: Tensor, x: float, y: float) -> None:
    """An image (3, H, W) pixel for pixel, its top left at (x, y)."""
    rows, columns = image.shape[1:]
    axes = figure.add_axes(frame(figure, x, y, columns, rows))
    axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="none", aspect="auto")
    axes.axis("off")
