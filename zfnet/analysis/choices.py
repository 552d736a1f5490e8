"""Two-alternative forced choices: does a picture of a unit tell what the unit will do? ::

    intervention    of two squares laid over an image, which one lowers the unit more? Zimmermann et al. (2021),
                    arXiv:2106.12447
    prediction      of two images, which one activates the feature map more? Borowski et al. (2021), arXiv:2010.12606

A picture gives a number for each alternative; the larger is its answer, and a tie is half right. By chance half of the
answers are right. The baseline is the `effective_field`: where the units of a layer look on average.

Shapes: M units have weights (M, S, S), and `inside` (M, S, S), bool, marks the pixels that a unit sees, a rectangle.
"""

import torch
from torch import Tensor

from zfnet.errors import InputError

BANDWIDTH = 1 / 16  # of the sides of what a unit sees
SIDE, ACROSS = 0.4, 5  # squares of 0.4 sides, at 5 x 5 places


def extents(inside: Tensor) -> Tensor:
    """The rectangle of each unit's pixels: (M, 4: top, left, bottom, right), int64.

    Args:
        inside: (M, S, S), bool.

    Raises:
        InputError: if a unit sees no pixel, or no rectangle.
    """
    ends = []
    for side in (inside.any(2), inside.any(1)):
        first, last = side.int().argmax(1), side.shape[1] - side.flip(1).int().argmax(1)
        ends.append((first, last))
    (top, bottom), (left, right) = ends
    if not torch.equal((bottom - top) * (right - left), inside.sum((1, 2))):
        raise InputError("the area that a unit sees must be a rectangle of one pixel or more")
    return torch.stack([top, left, bottom, right], 1)


def smoothed(weights: Tensor, inside: Tensor, bandwidth: float = BANDWIDTH) -> Tensor:
    """Weights (M, S, S) from 0, averaged over their neighbourhood, a Gaussian; 0 where a unit does not see.

    All pictures get one bandwidth, because a smoother one may win by its smoothness alone. At a border the mean is over
    the pixels inside.

    Args:
        bandwidth: the Gaussian's deviation, in sides of what a unit sees.
    """
    boxes, planes = extents(inside), weights.to(torch.promote_types(weights.dtype, torch.float32)) * inside
    sides, kernels = boxes[:, 2:] - boxes[:, :2], []
    for axis, extent in enumerate(inside.shape[1:]):
        index = torch.arange(extent, device=planes.device)
        steps = (index[:, None] - index[None]) / (bandwidth * sides[:, axis, None, None])
        seen = (index >= boxes[:, axis, None]) & (index < boxes[:, axis + 2, None])
        kernels.append(torch.softmax((-steps.square() / 2).to(planes).masked_fill(~seen[:, None], -torch.inf), 2))
    rows, columns = kernels
    return rows @ planes @ columns.transpose(1, 2) * inside


def effective_field(weights: Tensor, inside: Tensor, maps: Tensor, images: Tensor, own: Tensor) -> Tensor:
    """Where units look on average: for each of Q units the mean weight of other maps in other images.

    Each counts by its weights' shares of their sum; the mean at a pixel is over those that see it. Without any other
    unit it is uniform. After Luo et al. (2016), arXiv:1701.04128, who measure it for a layer.

    Args:
        weights, inside: (M, S, S), such as the squared gradients of M units of a layer that see boxes of one size.
        maps, images: (M,), whose they are.
        own: (Q, 2), the map and the image of each of the Q units, which are left out of its field.

    Returns:
        (Q, S, S), in the precision of the weights, float32 at least.
    """
    wide = weights.to(torch.promote_types(weights.dtype, torch.float32)).flatten(1)
    shares = wide / wide.sum(1, keepdim=True).clamp(min=torch.finfo(wide.dtype).tiny)
    others = ((maps[None] != own[:, :1]) & (images[None] != own[:, 1:])).to(wide)
    count = others @ inside.flatten(1).to(wide)
    mean = torch.where(count > 0, others @ shares / count.clamp(min=1), 0.0)
    mean[~others.any(1)] = 1.0
    return mean.view(len(own), *weights.shape[1:])


def squares(inside: Tensor, side: float = SIDE, across: int = ACROSS) -> Tensor:
    """Boxes of squares spread evenly over what each unit sees: (M, P, 4), int64, row by row.

    Args:
        inside: (M, S, S), bool.
        side: of a square, in sides of what the unit sees; at least one pixel.
        across: places in a row and in a column; P = across * across.
    """
    boxes, steps = extents(inside), torch.linspace(0, 1, across, dtype=torch.float64, device=inside.device)
    ends = []
    for axis in (0, 1):
        first, extent = boxes[:, axis], boxes[:, axis + 2] - boxes[:, axis]
        length = (extent * side).round().clamp(min=1)
        start = first[:, None] + (steps * (extent - length)[:, None]).round()
        ends.append((start, start + length[:, None]))
    (top, bottom), (left, right) = ends
    shape = len(inside), across, across
    spread = [t[:, :, None].expand(shape) for t in (top, bottom)], [t[:, None].expand(shape) for t in (left, right)]
    (top, bottom), (left, right) = spread
    return torch.stack([top, left, bottom, right], 3).flatten(1, 2).long()


def under(weights: Tensor, boxes: Tensor) -> Tensor:
    """The sum of weights (M, S, S) in each of P boxes (M, P, 4): (M, P), float64."""
    sums = torch.zeros(len(weights), *(s + 1 for s in weights.shape[1:]), dtype=torch.float64, device=weights.device)
    sums[:, 1:, 1:] = weights.double().cumsum(1).cumsum(2)
    rows = torch.arange(len(weights), device=weights.device)[:, None]
    top, left, bottom, right = boxes.unbind(2)
    return sums[rows, bottom, right] - sums[rows, top, right] - sums[rows, bottom, left] + sums[rows, top, left]


def extremes(values: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Where each row of values (M, P) is lowest and highest: (M, 2), int64, and in which rows the two differ: (M,).

    Ties are broken by the generator. A row of equal values has no answer.
    """
    drawn = torch.rand(values.shape, generator=generator).argsort(1).to(values.device)
    mixed = values.gather(1, drawn)
    ends = drawn.gather(1, torch.stack([mixed.argmin(1), mixed.argmax(1)], 1))
    return ends, values.amin(1) < values.amax(1)


def matched_extremes(values: Tensor, control: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """As `extremes`, for two places that a control hardly distinguishes: neighbours in the order of its values (M, P).

    Of all such pairs it takes the one whose values differ most.
    """
    drawn = torch.rand(values.shape, generator=generator).argsort(1).to(values.device)
    order = drawn.gather(1, control.gather(1, drawn).argsort(dim=1, stable=True))
    sorted_values = values.take_along_dim(order, 1)
    steps = sorted_values.diff(dim=1)
    first = steps.abs().argmax(1, keepdim=True)
    both = order.take_along_dim(torch.cat([first, first + 1], 1), 1)
    rising = steps.take_along_dim(first, 1) > 0
    return torch.where(rising, both, both.flip(1)), steps.amin(1).ne(0) | steps.amax(1).ne(0)


def answers(scores: Tensor) -> Tensor:
    """Which of the answers by scores (M, 2), the right alternative's first, are right: (M,), 1, 0, or 0.5 for a tie."""
    return torch.where(scores[:, 0] == scores[:, 1], 0.5, (scores[:, 0] > scores[:, 1]).double())


def nearer(strong: Tensor, weak: Tensor, strongest: Tensor, weakest: Tensor) -> Tensor:
    """Compare two queries: similarity to the strongest references minus similarity to the weakest, first minus second.

    ``[s(q+, E+) - s(q+, E-)] - [s(q-, E+) - s(q-, E-)]``, above 0 where the answer is right: the machine
    interpretability score of Zimmermann, Klindt & Brendel (NeurIPS 2024), before its squashing; s is the
    mean cosine.

    Args:
        strong, weak: (T, D), what describes the two queries of each of T tasks, the first of which is stronger.
        strongest, weakest: (T, K, D), the references.
    """

    def like(query: Tensor, references: Tensor) -> Tensor:
        return torch.cosine_similarity(query[:, None], references, dim=2).mean(1)

    towards = [like(query, strongest) - like(query, weakest) for query in (strong, weak)]
    return towards[0] - towards[1]
