"""Does a picture of a unit depend on the weights, and is it more than the image's edges? Two checks of similarity.

Sanity, after Adebayo et al. (2018), arXiv:1810.03292, who did not test deconvnets: the weights are shuffled, from the
top in a cascade or in one part of the network at a time, and the unit's pictures before and after are compared. So are,
with no weight shuffled, those of the unit and of another map at its place. Recovery, after Nie et al. (2018),
arXiv:1805.07039: how similar is a picture to the image's edges, to another map's picture at its place, and to its own
if pooling is undone without switches?

Units of a layer look at the middle of their fields, whatever the weights. This alone makes all their pictures similar,
so we also measure *partial* similarity: given the layer's mean field, the mean ranks of pixels in such pictures of
other maps in other images. If a unit does not fire, its gradient is zero and the similarity None.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiments.ablation.units import ANOTHER, SIGNALS, Units
from zfnet.analysis.faithfulness import energy, sobel
from zfnet.analysis.likeness import cosine, hog_correlation, ranks, similarity, ssim, stages, with_shuffled_weights
from zfnet.checks import pair
from zfnet.graph import Graph
from zfnet.operations import SWITCHED, UNSWITCHED, Rules
from zfnet.views import cut

RULES = ("projection", *SIGNALS)
PARTS = 5  # of the network, at most, in which weights are shuffled
CASCADE, ALONE = "cascade", "alone"
PARTIAL = "partial"  # similarity, given the layer's mean field
MEASURES = {"similarity": similarity, PARTIAL: similarity, "cosine": cosine, "ssim": ssim, "hog": hog_correlation}
WITHOUT = "{} without switches".format  # a rule set

Columns = dict[str, list[Any]]  # of equal length


def trials(units: Units, others: Units) -> Columns:
    """Similarity of pictures of the strongest unit of each map before and after weights are shuffled.

    Columns: map, image, rows and columns (of what the map sees), rule, shuffled (the part of the network, in a cascade
    the lowest; None if none is), how ("cascade", "alone", or "another map"), similarity, partial, cosine, ssim, hog.

    Args:
        units: of one layer.
        others: of the same layer, by which its mean field is measured.
    """
    units, others = units.strongest_of_maps(), others.strongest_of_maps()
    sets = rule_sets(units)
    before = {rule: units.pictures(rules) for rule, rules in sets.items()}
    fields = {rule: mean_field(units, others, rules) for rule, rules in sets.items()}
    parts = []
    for kinds, shuffled, picture in comparisons(units):
        for rule, rules in sets.items():
            values = listed(likeness(units, before[rule], picture(rules), fields[rule]))
            parts += [columns(units, {"rule": rule, "shuffled": shuffled, "how": how}) | values for how in kinds]
    return joined(parts)


def rule_sets(units: Units) -> dict[str, Rules]:
    """The compared pictures: the projection, by the rules of the units' deconvnet, and the others."""
    return {"projection": units.deconvnet.rules, **SIGNALS}


def comparisons(units: Units) -> Iterator[tuple[list[str], str | None, Callable[[Rules], Tensor]]]:
    """How pictures are made others, which part of the network is shuffled, and what makes them by a rule set."""
    yield [ANOTHER], None, partial(of_another_map, units)
    graph, parts = units.deconvnet.graph, stages(units.deconvnet.graph, units.layer)
    spread = {round(n * (len(parts) - 1) / (PARTS - 1)) for n in range(PARTS)}
    for number, (top, below) in enumerate(parts):
        if number not in spread:
            continue
        # of the topmost part both are the same
        runs = [([CASCADE], units.layer), ([ALONE], top)] if number else [([CASCADE, ALONE], top)]
        for kinds, first in runs:
            shuffled = Graph(with_shuffled_weights(graph, first, below, units.random), verify=False)
            yield kinds, top, partial(units.pictures, model=shuffled)


def of_another_map(units: Units, rules: Rules) -> Tensor:
    """The pictures (M, C, S, S) of other maps at the same places; 0, which is like nothing, where there is no other."""
    another = units.another_map()
    pictures = units.pictures(rules, units=another)
    return torch.where((another[:, 1] != units.maps).to(pictures.device)[:, None, None, None], pictures, 0.0)


def recovery(units: Units, others: Units) -> Columns:
    """Similarity, given the layer's mean field, of pictures of the strongest unit of each map to other pictures.

    Columns: map, image, rows and columns (of what the map sees), rule (also "projection without switches", and so on,
    where something is pooled), edges (of the image), another (the picture of another map at the same place), unswitched
    (its own without switches).

    Args:
        units: of one layer.
        others: of the same layer, by which its mean field is measured.
    """
    units, others = units.strongest_of_maps(), others.strongest_of_maps()
    graph, sets = units.deconvnet.graph, rule_sets(units)
    if any(graph.lookup(SWITCHED, node) for node in graph.path([graph.node(units.layer)])):
        sets |= {WITHOUT(rule): {**rules, **UNSWITCHED} for rule, rules in sets.items()}
    pictures = {rule: units.pictures(rules) for rule, rules in sets.items()}
    edges = edges_of(units)
    parts = []
    for rule, rules in sets.items():
        compared = {"edges": edges, "another": of_another_map(units, rules)}
        compared["unswitched"] = pictures.get(WITHOUT(rule), torch.zeros_like(edges))  # which is like nothing
        field = mean_field(units, others, rules)
        values = {to: likeness(units, pictures[rule], x, field, [PARTIAL])[PARTIAL] for to, x in compared.items()}
        parts.append(columns(units, {"rule": rule}) | listed(values))
    return joined(parts)


def edges_of(units: Units) -> Tensor:
    """Sobel's derivatives of the images, where the units see them: (M, 2 C, S, S)."""
    everywhere = torch.ones_like(units.images[:, 0], dtype=torch.bool)
    return cut(sobel(units.images, everywhere), units.units[:, 0].tolist(), units.boxes, pair(units.crops.shape[-2:]))


def mean_field(units: Units, others: Units, rules: Rules) -> Tensor:
    """The mean field of a layer: the mean ranks of pixels in pictures of other units: (M, S, S)."""
    return units.field(others, ranks(energy(others.pictures(rules).double()), others.inside).to(units.inside.device))


def likeness(
    units: Units, a: Tensor, b: Tensor, field: Tensor, measures: Iterable[str] = tuple(MEASURES)
) -> dict[str, Tensor]:
    """Similarity of pictures (M, C, S, S) of units, by each measure: (M,), float64, NaN if undefined."""
    values = {name: torch.full((len(units.maps),), torch.nan).double() for name in measures}
    for size in units.strata.unique(dim=0):
        rows, (height, width) = units.of_stratum(size), size.tolist()
        x, y = (pictures[rows, :, :height, :width].double() for pictures in (a, b))
        inside, given = (planes[rows, :height, :width] for planes in (units.inside, field))
        for name in measures:
            values[name][rows] = MEASURES[name](x, y, inside, *([given] if name == PARTIAL else [])).cpu()
    return values


def columns(units: Units, same: dict[str, Any]) -> Columns:
    """The columns that identify units, and constant columns."""
    return units.columns() | {name: [value] * len(units.maps) for name, value in same.items()}


def listed(values: dict[str, Tensor]) -> Columns:
    """Values (M,) as columns; None in place of NaN."""
    return {name: [None if math.isnan(v) else v for v in column.tolist()] for name, column in values.items()}


def joined(tables: Sequence[Columns]) -> Columns:
    """Columns one below the other."""
    return {name: [value for table in tables for value in table[name]] for name in tables[0]}
