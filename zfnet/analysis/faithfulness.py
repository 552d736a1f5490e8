"""Does a picture show what a unit responds to? Measures by what a network makes of the picture; none asks a person.

A picture is a content (the crop of a unit's receptive field, or a signal projected into it) and a weight by which each
pixel is kept or removed, strongest first.

    sufficiency    keep a share q of the pixels, fill the rest: how much of the unit's activation is left?
    necessity      remove these pixels of the crop instead: how much of it is lost?
    recognition    can the unit be identified from the picture alone?
    energy_inside, points_inside     where the truth is known: how much of what is shown is on the object?

Shapes: M pictures of one layer's units are (M, C, S, S) for images of C channels, their weights (M, S, S), and `inside`
(M, S, S), bool, marks the pixels that lie in the image.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from zfnet.errors import InputError, unknown_name

FILLS = ("grey", "blur", "noise")
SHARE = 20.0  # percent of the pixels that a masked picture shows


class Picture(NamedTuple):
    """What is shown, by which weight its pixels count, and the percentage of them that a person sees."""

    content: str  # "crop", or the name of a signal
    weight: str  # one of `WEIGHTS`, or the name of a signal
    share: float = 100.0


PICTURES = {
    "crop": Picture("crop", "square"),  # it has no order: keeping a share of it crops it about its centre
    "projection": Picture("projection", "projection"),
    "masked crop": Picture("crop", "projection", SHARE),
    "gradient": Picture("gradient", "gradient"),
    "masked by gradient": Picture("crop", "gradient", SHARE),
    "guided": Picture("guided", "guided"),
    "masked by guided": Picture("crop", "guided", SHARE),
    "shrunk crop": Picture("crop", "square", SHARE),
    "centre": Picture("crop", "disc", SHARE),
    "random": Picture("crop", "random", SHARE),
    "edges": Picture("crop", "edges", SHARE),
}


def energy(signal: Tensor) -> Tensor:
    """The sum of squares over the channels of a signal (M, C, S, S): (M, S, S), float32 or wider."""
    return signal.to(torch.promote_types(signal.dtype, torch.float32)).square().sum(1)


def sobel(crops: Tensor, inside: Tensor) -> Tensor:
    """Sobel's derivatives of each channel: (M, 2 C, S, S), first C across, then C down.

    Their `energy` is the squared strength of edges, whatever their direction. They are 0 along the image's border,
    which is no edge. Args: crops (M, C, S, S), and inside (M, S, S), bool.
    """
    across = crops.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    filters = torch.stack([across, across.T])[:, None]
    channels = F.pad(crops, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]
    by_channel: Tensor = F.conv2d(channels, filters).unflatten(0, crops.shape[:2])  # (M, C, 2, S, S)
    return by_channel.transpose(1, 2).flatten(1, 2) * surrounded(inside)[:, None]


def surrounded(inside: Tensor) -> Tensor:
    """Which pixels (M, S, S), bool, lie inside the image (M, S, S), bool, with all their neighbours on the canvas."""
    return ~F.max_pool2d((~inside)[:, None].float(), 3, 1, 1)[:, 0].bool()


def _offsets(crops: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (S, 1) and columns (1, S) of pixels relative to the centre."""
    rows, columns = (torch.arange(n, device=crops.device) - (n - 1) / 2 for n in crops.shape[-2:])
    return rows[:, None], columns[None]


def _square(crops: Tensor, inside: Tensor, generator: torch.Generator) -> Tensor:
    rows, columns = _offsets(crops)
    return -torch.maximum(rows.abs(), columns.abs()).expand(inside.shape)


def _disc(crops: Tensor, inside: Tensor, generator: torch.Generator) -> Tensor:
    rows, columns = _offsets(crops)
    return -(rows.square() + columns.square()).expand(inside.shape)


def _random(crops: Tensor, inside: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(inside.shape, generator=generator).to(crops)


def _edges(crops: Tensor, inside: Tensor, generator: torch.Generator) -> Tensor:
    """By Sobel's derivatives of the mean over channels."""
    return energy(sobel(crops.mean(1, keepdim=True), inside))


WEIGHTS: dict[str, Callable[[Tensor, Tensor, torch.Generator], Tensor]] = {
    "square": _square,
    "disc": _disc,
    "random": _random,
    "edges": _edges,
}


def ranks(
    weight: str, crops: Tensor, signals: Mapping[str, Tensor], inside: Tensor, generator: torch.Generator
) -> Tensor:
    """The rank of each pixel by falling weight, from 0: (M, S, S), int64. Pixels outside the image come last.

    Args:
        weight: "square" and "disc" (near the centre, by the larger offset or by distance), "random", "edges" (Sobel's),
            or the name of a signal, which is weighted by its `energy`.
        crops, signals: (M, C, S, S), signals by name.
        inside: (M, S, S), bool.
        generator: puts pixels of equal weight in random order.
    """
    if weight not in (*WEIGHTS, *signals):
        raise unknown_name("weight", weight, (*WEIGHTS, *signals))
    weights = energy(signals[weight]) if weight in signals else WEIGHTS[weight](crops, inside, generator)
    return ranked(weights, inside, generator)


def ranked(weights: Tensor, inside: Tensor, generator: torch.Generator) -> Tensor:
    """The rank of each pixel by falling weight (M, S, S), from 0; equals in random order, those outside last."""
    flat = weights.masked_fill(~inside, -torch.inf).flatten(1)
    drawn = torch.randperm(flat.shape[1], generator=generator).to(flat.device)
    order = drawn[flat[:, drawn].argsort(dim=1, descending=True, stable=True)]
    return order.argsort(dim=1).view_as(weights)  # the inverse of a permutation


def strongest(rank: Tensor, inside: Tensor, percent: float) -> Tensor:
    """Which pixels (M, S, S), bool, are among the strongest `percent` of those inside the image."""
    count = (inside.sum((1, 2)) * (percent / 100)).round()
    return (rank < count[:, None, None]) & inside


def check_shares(shares: Sequence[float]) -> list[float]:
    """Shares in percent, rising; InputError for fewer than two, and outside 0 to 100."""
    if len(shares) < 2 or any(b <= a for a, b in itertools.pairwise(shares)):
        raise InputError(f"shares are {list(shares)}; give two or more percentages, rising")
    for share in shares:
        if not 0 <= share <= 100:
            raise InputError(f"shares must lie between 0 and 100 percent; got {share}")
    return list(shares)


def ground(crops: Tensor, inside: Tensor, fill: str, generator: torch.Generator) -> Tensor:
    """What replaces removed pixels: (M, C, S, S), of the crops.

    Args:
        crops, inside: (M, C, S, S), and (M, S, S), bool.
        fill: "grey" (0, the mean colour), "blur" (Gaussian, of a deviation of S / 8), or "noise" (of the crop's mean
            and deviation, from `generator`).
    """
    if fill not in FILLS:
        raise unknown_name("fill", fill, FILLS)
    if fill == "grey":
        return torch.zeros_like(crops)
    wide = crops.to(torch.promote_types(crops.dtype, torch.float32))
    mask = inside[:, None].to(wide)
    if fill == "noise":
        count = mask.sum((2, 3), keepdim=True)
        mean = (wide * mask).sum((2, 3), keepdim=True) / count
        deviation = ((wide - mean).square() * mask).sum((2, 3), keepdim=True).div(count).sqrt()
        return (mean + deviation * torch.randn(crops.shape, generator=generator).to(wide)).to(crops)
    sigma = [0, 0, *(side / 8 for side in crops.shape[-2:])]
    blurred, weight = (gaussian_filter(x.cpu().numpy(), sigma) for x in (wide * mask, mask))
    return torch.from_numpy(blurred / weight.clip(min=np.finfo(weight.dtype).tiny)).to(crops)


def curve(
    respond: Callable[[Tensor], Tensor],
    clean: Tensor,
    content: Tensor,
    ground: Tensor,
    rank: Tensor,
    inside: Tensor,
    shares: Sequence[float],
    *,
    keep: bool,
) -> Tensor:
    """The share of each unit's activation that is left when pixels are replaced: (M, Q).

    It may exceed 1; it is NaN where `clean` is not above 0.

    Args:
        respond: gives the units' activations (M,) for canvases (M, C, S, S), see `Deconvnet.activations_of`.
        clean: (M,), the activations for the crops.
        content, ground: (M, C, S, S), a picture and what replaces its pixels.
        rank, inside: (M, S, S), see `ranks`.
        shares: Q shares of pixels, percent.
        keep: True keeps the strongest pixels and replaces the others (insertion), False replaces the strongest
            (deletion): Samek et al. (2017), arXiv:1509.06321; Petsiuk et al. (2018), arXiv:1806.07421.
    """
    left = []
    for share in shares:
        mask = strongest(rank, inside, share)[:, None]
        left.append(respond(torch.where(mask == keep, content, ground)))
    return torch.stack(left, 1) / torch.where(clean > 0, clean, torch.nan)[:, None]


def area(curves: Tensor, shares: Sequence[float]) -> Tensor:
    """The mean of curves (..., Q) over Q shares of pixels: 1 if the whole activation is always left."""
    q = torch.tensor(shares, dtype=curves.dtype, device=curves.device)
    return torch.trapezoid(curves, q) / (q[-1] - q[0])


def recognised(features: Tensor, maps: Tensor) -> tuple[Tensor, float]:
    """Which pictures are recognised by their nearest neighbour (Fix & Hodges, 1951), and the rate by chance.

    The 1st, 3rd, ... picture of each map is a reference, the others are queries. A query is recognised (1, else 0) if
    the nearest reference shows the same map, by the cosine of standardised features; references have NaN. By chance,
    the rate is the share of a query's own map among the references.

    `features` (M, D) describe the pictures, `maps` (M,) says which map each shows.
    """
    number = torch.stack([(maps[:n] == m).sum() for n, m in enumerate(maps)])  # of each picture within its map
    reference = number % 2 == 0
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    centred = wide - wide.mean(0)
    spread = centred.std(0)
    rows = F.normalize(torch.where(spread > 0, centred / spread, 0.0).nan_to_num(), dim=1)
    nearest = (rows @ rows[reference].T).argmax(1)
    hits = (maps[reference][nearest] == maps).to(wide)
    chance = (maps[reference][None] == maps[~reference][:, None]).double().mean()
    return hits.masked_fill(reference, torch.nan), float(chance)


def energy_inside(shown: Tensor, truth: Tensor) -> Tensor:
    """The share of nonnegative values (M, S, S) that lies on the truth (M, S, S), bool: (M,); NaN if all are 0.

    The energy-based pointing game of Wang et al. (2020), arXiv:1910.01279.
    """
    shown = shown.to(torch.promote_types(shown.dtype, torch.float32))
    return (shown * truth).sum((1, 2)) / shown.sum((1, 2))


def points_inside(rank: Tensor, truth: Tensor) -> Tensor:
    """Whether the strongest pixel, by ranks (M, S, S), lies on the truth (M, S, S), bool: 1 or 0, (M,).

    The pointing game of Zhang et al. (2016), arXiv:1608.00507, without its tolerance.
    """
    return truth.flatten(1).gather(1, rank.flatten(1).argmin(1)[:, None])[:, 0].to(torch.get_default_dtype())
