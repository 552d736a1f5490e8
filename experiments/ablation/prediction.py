"""Task B: of two images, which one activates a feature map more? After Borowski et al. (2021), arXiv:2010.12606.

The nine images that activate the map most and the nine that activate it least are known: the references. Of two other
images, the queries, one comes from the upper and one from the lower part of the ranking of all images. They rank next
to the references, or at the 10th and 90th percentile. A picture is the part of these images that the judge sees. Its
answer is the query that is more similar to the strongest references than to the weakest.

By chance half of the answers are right. The control is the random crop: it does not depend on where in the image the
map is strongest.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.ablation.judge import SIZE, Judge, cut, standardised
from experiments.ablation.units import Units
from experiments.setup.checks import at_least
from zfnet import Deconvnet, InputError, TopActivations
from zfnet.analysis.choices import answers, nearer
from zfnet.analysis.faithfulness import SHARE
from zfnet.rendering import on_image, resized

# no mask by a gradient: it is 0 if a unit does not fire, and a mask of random pixels would give the answer away
CROP, MASKED, WHOLE, RANDOM = PICTURES = ("crop", "masked crop", "whole image", "random crop")
EXTREME, PERCENTILE = "extreme", "percentile"  # the ranks of the queries
REFERENCES = 9  # of the strongest, and of the weakest
TENTH = 10
BATCH = 128  # units that are held at a time; those of one image stay together


def trials(
    deconvnet: Deconvnet,
    data: Any,
    layer: str,
    top: TopActivations,
    maps: Sequence[int],
    judge: Judge,
    references: Units,
    seed: int,
    tasks: int = 20,
) -> dict[str, list[Any]]:
    """The trials of one layer: `tasks` for each map, without pairs of queries that activate it by the same amount.

    Args:
        deconvnet: of the network.
        data: images by index.
        layer: by name.
        top: the scan of the layer, in which each map has all images.
        maps: of the layer, by number.
        judge: tells how alike pictures are.
        references: units of the layer, on which the effective field is measured.
        seed: of the pairs of queries, of the order of ties, and of random places.
        tasks: for each map; half of the queries stand next to the references, half at the percentiles.

    Returns:
        Columns of equal length: "map", "image" (of the upper query), "rows" and "columns" of what the map sees, "pair"
        (EXTREME or PERCENTILE), and for each of PICTURES whether its answer is right: 1, 0, or 0.5 for a tie.

    Raises: InputError if there are too few images.
    """
    random = torch.Generator().manual_seed(seed)
    queries = {EXTREME: tasks - tasks // 2, PERCENTILE: tasks // 2}
    values, units = ranking(top, maps, places(deconvnet, layer, references.image_size), random)
    ranks = asked(values.shape[1], len(maps), queries, random)
    known, index = units.take_along_dim(ranks[:, :, None], 1).flatten(0, 1).unique(dim=0, return_inverse=True)
    sides = (2 * REFERENCES, tasks, tasks)
    shown, upper, lower = index.view(ranks.shape).split(sides, 1)
    _, above, below = values.gather(1, ranks).split(sides, 1)
    kept = (above > below).flatten().nonzero().flatten()
    pairs = [pair for _ in maps for pair, count in queries.items() for _ in range(count)]
    described, strata = [], []
    for some in by_image(known):
        batch = Units(deconvnet, data, layer, some, seed)
        described.append(pictures(batch, judge, references, random))
        strata.append(batch.strata)
    of_upper = torch.cat([known[:, :2], torch.cat(strata)], 1)[upper.flatten()[kept]]
    columns: dict[str, list[Any]] = dict(zip(("image", "map", "rows", "columns"), of_upper.T.tolist(), strict=True))
    columns["pair"] = [pairs[n] for n in kept.tolist()]
    for picture in PICTURES:
        features = torch.cat([batch[picture] for batch in described])
        _, features = standardised(features[shown.flatten()], features)
        of_maps = zip(*(features[rows].double() for rows in (upper, lower, shown)), strict=True)
        scores = torch.cat([nearer(u, w, *s.view(2, 1, REFERENCES, -1)) for u, w, s in of_maps])[kept]
        columns[picture] = answers(torch.stack([scores, -scores], 1)).tolist()
    return columns


def places(deconvnet: Deconvnet, layer: str, image_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a layer's maps; 1 and 1 of a fully connected one."""
    node = deconvnet.graph.node(layer)
    rows, columns = (*deconvnet.graph.shapes(image_size, node)[node][2:], 1, 1)[:2]
    return rows, columns


def ranking(
    top: TopActivations, maps: Sequence[int], places: tuple[int, int], random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """All N images ranked by their activation of each of M maps: values (M, N), falling, and units (M, N, 4).

    Ties are in random order: in a scan the first image comes first, and the order of the files would choose the
    weakest. A rectified map that is 0 everywhere has no strongest place, and gets a random one.
    """
    of = TopActivations(*(column.cpu()[list(maps)] for column in top))
    images = int((of.image >= 0).all(0).sum())
    drawn = torch.rand(len(maps), images, generator=random).argsort(1)
    order = drawn.gather(1, of.unclipped.gather(1, drawn).argsort(dim=1, descending=True, stable=True))
    anywhere = [torch.randint(extent, of.row.shape, generator=random) for extent in places]
    row, column = (torch.where(of.value == 0, a, at) for a, at in zip(anywhere, (of.row, of.column), strict=True))
    units = torch.stack([of.image, torch.as_tensor(maps)[:, None].expand_as(row), row, column], 2)
    return of.unclipped.gather(1, order), units.take_along_dim(order[:, :, None], 1)


def asked(images: int, maps: int, queries: dict[str, int], random: torch.Generator) -> Tensor:
    """The ranks, from 0, of each map's references, the strongest first, and of its upper and its lower queries.

    Args:
        images: in the ranking.
        queries: how many pairs stand next to the references, and how many at the percentiles.

    Returns:
        (M, 2 * REFERENCES + 2 * Q) for Q pairs; the n-th upper and the n-th lower query are a pair.

    Raises: InputError if a query at the percentiles would also be a reference, or stand next to them.
    """
    at_least(2, tasks=sum(queries.values()))
    start = {EXTREME: REFERENCES, PERCENTILE: images // TENTH - queries[PERCENTILE] // 2}
    if start[PERCENTILE] < REFERENCES + queries[EXTREME]:
        needed = TENTH * (REFERENCES + queries[EXTREME] + queries[PERCENTILE] // 2)
        raise InputError(
            f"task B needs {needed} images for {sum(queries.values())} tasks a map; there are {images}: give more "
            "images, or fewer tasks"
        )
    drawn = [
        torch.cat([start[p] + torch.rand(maps, n, generator=random).argsort(1) for p, n in queries.items()], 1)
        for _ in ("upper", "lower")
    ]
    known = torch.arange(REFERENCES).expand(maps, REFERENCES)
    return torch.cat([known, images - 1 - known, drawn[0], images - 1 - drawn[1]], 1)


def by_image(units: Tensor) -> tuple[Tensor, ...]:
    """Units (U, 4), sorted by image, in batches; an image is in one batch alone, so that it is read once."""
    _, count = units[:, 0].unique(return_counts=True)
    batch = (count.cumsum(0) - count) // BATCH  # of each image
    return units.split(batch.repeat_interleave(count).unique(return_counts=True)[1].tolist())


def pictures(units: Units, judge: Judge, references: Units, random: torch.Generator) -> dict[str, Tensor]:
    """The judge's description of each picture of M units: (M, D), by picture."""
    boxes, image = moved(units.boxes, units.image_size), units.units[:, 0]
    crops = cut(units.images[image], boxes)
    mask = units.strongest(units.projection * units.field(references), SHARE)
    shown = cut(on_image(mask[:, None].float(), units.boxes, units.image_size), boxes)[:, 0].clamp(0, 1)
    return {
        CROP: judge.describe(crops),
        MASKED: judge.describe(crops, shown),
        WHOLE: judge.describe(resized(units.images, SIZE))[image],
        RANDOM: judge.describe(cut(units.images[image], moved(units.boxes, units.image_size, random))),
    }


def moved(boxes: Tensor, image_size: tuple[int, int], random: torch.Generator | None = None) -> Tensor:
    """Boxes (M, 4) of the same size inside the image: as near as possible, or at random places.

    A box that is cut at the border would be smaller, and so would reveal the unit's place. A box that is larger than
    the image becomes the image.
    """
    size = torch.tensor(image_size, device=boxes.device)
    sides = torch.minimum(boxes[:, 2:] - boxes[:, :2], size)
    free, corner = size - sides, boxes[:, :2]
    if random is not None:
        drawn = torch.rand(free.shape, generator=random, dtype=torch.float64).to(boxes.device)
        corner = (drawn * (free + 1)).long()
    corner = torch.minimum(corner.clamp(min=0), free)
    return torch.cat([corner, corner + sides], 1)
