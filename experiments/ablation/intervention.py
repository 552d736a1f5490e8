"""Task A: of two squares over an image, which one lowers the unit more? After Zimmermann et al. (2021).

The unit is the strongest of its map in an image that is not among its nine strongest. Of squares at 25 places over what
it sees, one lowers the unit most and one least: that is measured. A1: a picture of *this* image answers by how much of
its mask lies under each square. A2: pictures of the *other* nine answer: in each, the square under which most of the
mask lies is cut out, and the judge says which of the two squares' contents is more like these nine.
"""

import torch
from torch import Tensor

from experiments.ablation.judge import Judge, cut, standardised
from experiments.ablation.units import Units
from zfnet.analysis import faithfulness
from zfnet.analysis.choices import answers, extremes, squares, under

FILLS = ("grey", "blur", "patch")  # of the squares: the mean colour, the blurred image, another image's pixels
ORACLE = "oracle"  # the mask of the measured drops themselves: what a picture of this format can reach


Trials = dict[str, list[float | None]]  # columns of equal length


def trials(units: Units, references: Units, judge: Judge, fill: str = "grey") -> tuple[Trials, Trials]:
    """The trials A1 and A2 of one layer, one for each unit that some square lowers more than another.

    Args:
        units: the queries; `references` are other units of the same maps.
        fill: of the squares, one of FILLS.
    """
    boxes = squares(units.inside)
    remaining = left(units, boxes, fill)
    ends, differ = extremes(remaining, units.random)
    kept = differ.nonzero().flatten()
    both = boxes[torch.arange(len(boxes))[:, None], ends]  # (M, 2, 4), the right one first
    columns: Trials = {
        "map": units.maps[kept].tolist(),
        "image": units.items[kept].tolist(),
        "rows": units.strata[kept, 0].tolist(),
        "columns": units.strata[kept, 1].tolist(),
        "left": (remaining.amin(1) / units.values)[kept].tolist(),
    }
    masks = units.masks(references)
    masks[ORACLE] = units.strongest(drops(remaining, boxes, units), faithfulness.SHARE)
    first = {picture: answers(under(mask, both))[kept].tolist() for picture, mask in masks.items()}
    described = judge.describe(cut(units.crops.repeat_interleave(2, 0), both.flatten(0, 1)))
    second = {
        picture: answers(likeness(units, references, described, mask, judge))[kept].tolist()
        for picture, mask in references.masks(references).items()
    }
    return columns | first, columns | second


def left(units: Units, boxes: Tensor, fill: str) -> Tensor:
    """The activations (M, P) that are left under squares: boxes (M, P, 4)."""
    ground = filled(units, fill)
    canvases = (torch.where(covered(box, units.inside)[:, None], ground, units.crops) for box in boxes.unbind(1))
    return torch.stack([units.respond(canvas) for canvas in canvases], 1)


def covered(boxes: Tensor, inside: Tensor) -> Tensor:
    """Which pixels (M, S, S) lie in boxes (M, 4: top, left, bottom, right)."""
    sides = []
    for axis, extent in enumerate(inside.shape[1:]):
        index = torch.arange(extent, device=boxes.device)
        sides.append((index >= boxes[:, axis, None]) & (index < boxes[:, axis + 2, None]))
    return sides[0][:, :, None] & sides[1][:, None]


def filled(units: Units, fill: str) -> Tensor:
    """What squares put in the place of the units' pixels: (M, C, S, S)."""
    if fill != "patch":
        return faithfulness.ground(units.crops, units.inside, fill, units.random)
    other = torch.arange(len(units.items))
    for shift in range(1, len(other)):  # the next unit of another image; its own where there is none
        alone = units.items[other] == units.items
        if not alone.any():
            break
        other = torch.where(alone, torch.arange(len(other)).roll(-shift), other)
    return torch.where((units.inside & units.inside[other])[:, None], units.crops[other], 0.0)


def drops(remaining: Tensor, boxes: Tensor, units: Units) -> Tensor:
    """By how much squares over each pixel lower its unit, on average: (M, S, S), from 0."""
    total, count = (torch.zeros(units.inside.shape) for _ in range(2))
    for box, drop in zip(boxes.unbind(1), (units.values[:, None] - remaining).clamp(min=0).unbind(1), strict=True):
        over = covered(box, units.inside)
        total += over * drop[:, None, None]
        count += over
    return total / count.clamp(min=1)


def likeness(units: Units, references: Units, described: Tensor, mask: Tensor, judge: Judge) -> Tensor:
    """How like each square's content (described, two of each unit) is what the mask shows of its map's references.

    Returns:
        (M, 2), the mean cosine over the references of the unit's map.
    """
    boxes = squares(references.inside)
    densest = extremes(-under(mask, boxes), references.random)[0][:, 0]
    best = boxes[torch.arange(len(boxes)), densest]
    shown = cut((mask & covered(best, mask))[:, None].float(), best)[:, 0].clamp(0, 1)
    known, asked = standardised(judge.describe(cut(references.crops, best), shown), described)
    known, asked = (torch.nn.functional.normalize(x, dim=1) for x in (known, asked))
    same = (units.maps[:, None] == references.maps[None]).to(known)
    mean = same @ known / same.sum(1, keepdim=True).clamp(min=1)  # of unit vectors, so that its product is the mean
    return (asked.view(len(units.maps), 2, -1) * mean[:, None]).sum(2)
