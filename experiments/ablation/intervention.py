"""Task A: of two squares over an image, which one lowers the unit more? After Zimmermann et al. (2021).

The unit is the strongest of its map in an image that is not among its nine strongest. Squares are laid at 25 places
over what it sees, and the unit's remaining activation is measured. The two squares of a trial are matched: they are
neighbours in the order of how much of the effective field they cover, and among these the pair that differs most.
Otherwise one square would be in the middle and one at a corner, and the field alone would be right. A1: a
picture of *this* image answers by how much of its mask lies under each square. A2: pictures of the *other* nine
answer: in each, the square that covers most of the mask is cut out, and the judge says which of the two squares'
contents is more similar to these nine.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from experiments.ablation.judge import Judge, cut, standardised
from experiments.ablation.units import Units
from zfnet.analysis import faithfulness
from zfnet.analysis.choices import answers, extremes, matched_extremes, squares, under
from zfnet.checks import pair
from zfnet.views import cut as windows

FILLS = ("grey", "blur", "patch")  # of the squares: the mean colour, the blurred image, the same place of another one
FEW = 5  # units of each map, under squares of other fills than the first
ORACLE = "oracle"  # the mask of the measured drops themselves: an upper limit for masks


Trials = dict[str, list[Any]]  # columns of equal length: numbers, words or None


def trials(units: Units, references: Units, judge: Judge | None) -> dict[str, Trials]:
    """The trials of one layer by task, one for each unit that the two squares lower by different amounts.

    "A1" and "A2" are of grey squares that are matched; "A1/unmatched" of those that lower the unit most and least; and
    "A1/blur" and "A1/patch" of matched squares with another fill, over the strongest FEW units of each map.

    Args:
        units: the queries; `references` are other units of the same maps.
        judge: of A2, which is left out without one.
    """
    boxes, masks = squares(units.inside), units.masks(references)
    field, found = under(units.field(references), boxes), {}
    for fill in FILLS:
        remaining = left(units, boxes, fill, None if fill == FILLS[0] else first_of_maps(units.maps, FEW))
        masks[ORACLE] = units.strongest(drops(remaining, boxes, units), faithfulness.SHARE)
        kept, both, columns = pairs(units, boxes, remaining, field)
        found["A1" if fill == FILLS[0] else f"A1/{fill}"] = columns | pointed(units, masks, both, kept)
        if fill == FILLS[0]:
            if judge is not None:
                found["A2"] = columns | generalised(units, references, judge, kept, both)
            kept, both, columns = pairs(units, boxes, remaining)
            found["A1/unmatched"] = columns | pointed(units, masks, both, kept)
    return found


def pointed(units: Units, masks: Mapping[str, Tensor], both: Tensor, kept: Tensor) -> Trials:
    """The answers of A1, by picture."""
    return {name: units.answers(name, answers(under(mask, both)), kept) for name, mask in masks.items()}


def pairs(
    units: Units, boxes: Tensor, remaining: Tensor, control: Tensor | None = None
) -> tuple[Tensor, Tensor, Trials]:
    """Which units have a trial, their two squares (M, 2, 4), the right one first, and the columns of the trials."""
    if control is None:
        ends, differ = extremes(remaining, units.random)
    else:
        ends, differ = matched_extremes(remaining, control, units.random)
    kept = differ.nonzero().flatten().cpu()
    shares = (remaining.take_along_dim(ends, 1) / units.values[:, None])[kept]
    columns: Trials = units.columns(kept) | {"left": shares[:, 0].tolist(), "left by the other": shares[:, 1].tolist()}
    return kept, boxes.take_along_dim(ends[:, :, None], 1), columns


def generalised(units: Units, references: Units, judge: Judge, kept: Tensor, both: Tensor) -> Trials:
    """The answers of A2, by picture of the references."""
    described = judge.describe(cut(units.crops.repeat_interleave(2, 0), both.flatten(0, 1)))
    return {
        picture: units.answers(picture, answers(likeness(units, references, described, mask, judge)), kept)
        for picture, mask in references.masks(references).items()
    }


def left(units: Units, boxes: Tensor, fill: str, rows: Tensor | None = None) -> Tensor:
    """The activations (M, P) that remain under squares: boxes (M, P, 4).

    If rows are given, other units keep theirs under all squares, and so have no trial.
    """
    rows = torch.arange(len(units.maps)) if rows is None else rows
    ground, crops, inside = filled(units, fill)[rows], units.crops[rows], units.inside[rows]
    remaining = units.values[:, None].repeat(1, boxes.shape[1])
    for column, box in enumerate(boxes[rows].unbind(1)):
        canvases = torch.where(covered(box, inside)[:, None], ground, crops)
        remaining[rows, column] = units.respond(canvases, rows)
    return remaining


def first_of_maps(maps: Tensor, count: int) -> Tensor:
    """The rows of the first units of each map (M,), which are the strongest."""
    return ((maps[:, None] == maps[None]).tril(-1).sum(1) < count).nonzero().flatten()


def covered(boxes: Tensor, inside: Tensor) -> Tensor:
    """Which pixels (M, S, S) lie in boxes (M, 4: top, left, bottom, right)."""
    sides = []
    for axis, extent in enumerate(inside.shape[1:]):
        index = torch.arange(extent, device=boxes.device)
        sides.append((index >= boxes[:, axis, None]) & (index < boxes[:, axis + 2, None]))
    return sides[0][:, :, None] & sides[1][:, None]


def filled(units: Units, fill: str) -> Tensor:
    """The pixels (M, C, S, S) of the squares: what replaces those of the units."""
    count = len(units.images)
    if fill != "patch" or count == 1:
        return units.ground(FILLS[0] if fill == "patch" else fill)
    image = units.units[:, 0] + torch.randint(1, count, (len(units.units),), generator=units.random)
    return windows(units.images, (image % count).tolist(), units.boxes, pair(units.crops.shape[-2:]))


def drops(remaining: Tensor, boxes: Tensor, units: Units) -> Tensor:
    """The mean drop of a unit under the squares that cover each pixel: (M, S, S), from 0."""
    total, count = (torch.zeros(units.inside.shape, device=boxes.device) for _ in range(2))
    for box, drop in zip(boxes.unbind(1), (units.values[:, None] - remaining).clamp(min=0).unbind(1), strict=True):
        over = covered(box, units.inside)
        total += over * drop[:, None, None]
        count += over
    return total / count.clamp(min=1)


def likeness(units: Units, references: Units, described: Tensor, mask: Tensor, judge: Judge) -> Tensor:
    """Similarity of each square's content (described, two of each unit) to the masked references of its map.

    Returns:
        (M, 2), the mean cosine over the references of the unit's map.
    """
    boxes = squares(references.inside)
    densest = extremes(-under(mask, boxes), references.random)[0][:, 0]
    best = boxes.take_along_dim(densest[:, None, None], 1)[:, 0]
    shown = cut((mask & covered(best, mask))[:, None].float(), best)[:, 0].clamp(0, 1)
    known, asked = standardised(judge.describe(cut(references.crops, best), shown), described)
    known, asked = (torch.nn.functional.normalize(x, dim=1) for x in (known, asked))
    same = (units.maps[:, None] == references.maps[None]).to(known)
    mean = same @ known / same.sum(1, keepdim=True).clamp(min=1)  # of unit vectors, so that its product is the mean
    return (asked.view(len(units.maps), 2, -1) * mean[:, None]).sum(2)
