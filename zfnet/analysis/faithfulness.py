"""Which pixels does a picture of a unit mark, and what replaces removed pixels?

A picture of a unit weights the pixels that the unit sees. Those of the largest weights are kept, or removed and filled,
and the remaining activation is measured.

Shapes: M pictures of one layer's units are (M, C, S, S) for images of C channels, their weights (M, S, S), and `inside`
(M, S, S), bool, marks the pixels that lie in the image.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from zfnet.errors import unknown_name

FILLS = ("grey", "blur", "noise")
SHARE = 20.0  # percent of the pixels that a masked picture shows


def energy(signal: Tensor) -> Tensor:
    """The sum of squares over the channels of a signal (M, C, S, S): (M, S, S), float32 or wider."""
    return signal.to(torch.promote_types(signal.dtype, torch.float32)).square().sum(1)


def sobel(crops: Tensor, inside: Tensor) -> Tensor:
    """Sobel's derivatives of each channel: (M, 2 C, S, S), first C across, then C down.

    Their `energy` is the squared strength of edges, whatever their direction. They are 0 along the image's border,
    which is no edge.

    Args:
        crops: (M, C, S, S).
        inside: (M, S, S), bool.
    """
    across = crops.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    filters = torch.stack([across, across.T])[:, None]
    channels = F.pad(crops, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]
    by_channel: Tensor = F.conv2d(channels, filters).unflatten(0, crops.shape[:2])  # (M, C, 2, S, S)
    return by_channel.transpose(1, 2).flatten(1, 2) * surrounded(inside)[:, None]


def surrounded(inside: Tensor) -> Tensor:
    """Which pixels (M, S, S), bool, lie inside the image (M, S, S), bool, with all their neighbours on the canvas."""
    return ~F.max_pool2d((~inside)[:, None].float(), 3, 1, 1)[:, 0].bool()


def ranked(weights: Tensor, inside: Tensor, generator: torch.Generator) -> Tensor:
    """The rank of each pixel by falling weight (M, S, S), from 0; equals in random order, those outside last."""
    flat = weights.masked_fill(~inside, -torch.inf).flatten(1)
    count = flat.shape[1]
    places = torch.arange(count) + torch.randint(
        count, (len(flat), 1), generator=generator
    )  # another start in each row
    drawn = torch.randperm(count, generator=generator)[places % count].to(flat.device)
    order = drawn.gather(1, flat.gather(1, drawn).argsort(dim=1, descending=True, stable=True))
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(count, device=flat.device).expand_as(order))
    return rank.view_as(weights)


def strongest(rank: Tensor, inside: Tensor, percent: float) -> Tensor:
    """Which pixels (M, S, S), bool, are among the strongest `percent` of those inside the image."""
    count = (inside.sum((1, 2)) * (percent / 100)).round()
    return (rank < count[:, None, None]) & inside


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
