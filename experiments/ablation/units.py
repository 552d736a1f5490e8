"""Units of one layer: the parts of images that they see, their projections and other pictures, and their masks."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from zfnet import Deconvnet, receptive_field
from zfnet.analysis import faithfulness
from zfnet.analysis.choices import effective_field, extents, smoothed
from zfnet.analysis.likeness import with_shuffled_weights
from zfnet.checks import pair
from zfnet.graph import Graph
from zfnet.operations import GRADIENT, GUIDED, Rules
from zfnet.recording import activations
from zfnet.rendering import outside
from zfnet.views import cut

SIGNALS: Mapping[str, Rules] = {"guided": GUIDED, "gradient": GRADIENT}
WHOLE = 64  # pictures of whole images that are held at a time
MEMORY = 2**25  # bytes that a step may take: neither more nor less is faster
FIELD, SHUFFLED, ANOTHER = "effective field", "shuffled network", "another map"
MASKS = {  # by picture, the weights whose product orders the pixels
    FIELD: (FIELD,),
    "centre": ("centre",),
    "projection": ("projection",),
    "projection x field": ("projection", FIELD),
    "guided": ("guided",),
    "guided x field": ("guided", FIELD),
    "gradient": ("gradient",),
    "gradient x field": ("gradient", FIELD),
    "shuffled x field": (SHUFFLED, FIELD),
    "another map x field": (ANOTHER, FIELD),
    "edges x field": ("edges", FIELD),
    "noise x field": ("noise", FIELD),
}


class Units:
    """M units of one layer.

    Args:
        deconvnet: of the network; by its rules is what is called the projection.
        data: images by index.
        layer: the units' layer.
        units: (M, 4): image (in the data), map, row, column.
        seed: of what is random.
    """

    def __init__(self, deconvnet: Deconvnet, data: Any, layer: str, units: Tensor, seed: int):
        self.deconvnet, self.data, self.layer, self.seed = deconvnet, data, layer, seed
        self.items, self.maps = units[:, 0].contiguous(), units[:, 1].contiguous()
        known, local = self.items.unique(return_inverse=True)
        self.units = torch.cat([local[:, None], units[:, 1:]], 1)
        self.images = torch.stack([data[i][0] for i in known.tolist()])
        self.image_size = pair(self.images.shape[-2:])
        patches = deconvnet.project_units(self.images, layer, self.units, signals=torch.ones(len(units)))
        self.crops, self.boxes, self.values = patches.crops, patches.boxes, patches.values
        self.inside = ~outside(self.boxes, self.image_size, pair(self.crops.shape[-2:]))[:, 0]
        self.projection = smoothed(faithfulness.energy(patches.projections), self.inside)  # the weights of that name

    @property
    def random(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    @cached_property
    def strata(self) -> Tensor:
        """(M, 2): the rows and columns of what each unit's map sees, which differ between branches of a layer."""
        return (self.boxes[:, 2:] - self.boxes[:, :2]).cpu()

    @cached_property
    def alone(self) -> Tensor:
        """Which units' maps see another area than all other maps: they have no field, and no other map: (M,), bool."""
        alike = (self.strata[:, None] == self.strata[None]).all(2)
        return ~(alike & (self.maps[:, None] != self.maps[None])).any(1)

    def answers(self, picture: str, values: Tensor, rows: Tensor) -> list[float | None]:
        """Values (M,) by a picture, of some rows; None where a unit has no such picture."""
        lacking = self.alone & (not {FIELD, ANOTHER}.isdisjoint(MASKS.get(picture, ())))
        return [None if lacking[n] else float(values[n]) for n in rows.tolist()]

    def ground(self, fill: str) -> Tensor:
        """The fill of the units' pixels: (M, C, S, S); see `faithfulness.ground`."""
        fills = torch.zeros_like(self.crops)
        for size in self.strata.unique(dim=0):
            rows, (height, width) = self.of_stratum(size), size.tolist()
            crops, inside = self.crops[rows, :, :height, :width], self.inside[rows, :height, :width]
            fills[rows, :, :height, :width] = faithfulness.ground(crops, inside, fill, self.random)
        return fills

    def columns(self, rows: Tensor | None = None) -> dict[str, list[int]]:
        """The columns of trials for all units, or for some rows: map, image, and the size of the map's field."""
        rows = torch.arange(len(self.maps)) if rows is None else rows
        known = {"map": self.maps, "image": self.items, "rows": self.strata[:, 0], "columns": self.strata[:, 1]}
        return {name: column[rows].tolist() for name, column in known.items()}

    def of_stratum(self, size: Tensor) -> Tensor:
        """Which units' maps see so many rows and columns: (m,), int64."""
        return (self.strata == size).all(1).nonzero().flatten()

    def respond(self, canvases: Tensor, rows: Tensor | None = None) -> Tensor:
        """The activations of all units, or of those of some rows, with canvases in the place of what they see.

        Behind a gate a unit also depends on the rest of its image, which stays as it is.
        """
        units = self.units if rows is None else self.units[rows]
        if receptive_field(self.deconvnet.graph, self.layer, self.image_size).exact:
            return self.deconvnet.activations_of(canvases, self.layer, units, self.image_size, memory=MEMORY)
        boxes = self.boxes if rows is None else self.boxes[rows]
        values = canvases.new_zeros(len(units))
        for some in torch.arange(len(units)).split(max(1, MEMORY // self.images[0].nbytes)):
            images = pasted(self.images[units[some, 0]], canvases[some], boxes[some])
            (maps,) = activations(self.deconvnet.graph, images, [self.layer]).values()
            index = (torch.arange(len(some)), *units[some, 1:].unbind(1))
            values[some] = maps[index].to(values)
        return values

    def strongest_of_maps(self) -> "Units":
        """The strongest unit of each map."""
        order = self.values.argsort(descending=True, stable=True).cpu()
        rows = torch.stack([order[self.maps[order] == m][0] for m in self.maps.unique()])
        units = torch.cat([self.items[:, None], self.units[:, 1:]], 1)[rows]
        return Units(self.deconvnet, self.data, self.layer, units, self.seed)

    def pictures(self, rules: Rules, *, model: nn.Module | Graph | None = None, units: Tensor | None = None) -> Tensor:
        """The projections from 1 at each unit: (M, C, S, S)."""
        units = self.units if units is None else units
        deconvnet, size = Deconvnet(model or self.deconvnet.graph, rules=rules), pair(self.crops.shape[-2:])
        ones = torch.ones(len(units))
        if receptive_field(deconvnet.graph, self.layer, self.image_size).size == size:
            return deconvnet.project_units(self.images, self.layer, units, signals=ones).projections
        parts = []  # the gradient of a gate is of the whole image, of which the field is cut
        for some in torch.arange(len(units)).split(WHOLE):
            whole = deconvnet.project_units(self.images, self.layer, units[some], signals=ones[some], whole=True)
            parts.append(cut(whole.projections, range(len(some)), self.boxes[some], size))
        return torch.cat(parts)

    def energy(self, rules: Rules, *, model: nn.Module | None = None, units: Tensor | None = None) -> Tensor:
        """The squares (M, S, S) of pictures, smoothed; see `choices.smoothed`."""
        return smoothed(faithfulness.energy(self.pictures(rules, model=model, units=units)), self.inside)

    def another_map(self) -> Tensor:
        """The same units of the next of the maps that see as much; of their own, where there is but one."""
        units = self.units.clone()
        for size in self.strata.unique(dim=0):
            alike = self.of_stratum(size)
            known = self.maps[alike].unique()
            units[alike, 1] = known.roll(-1)[torch.searchsorted(known, self.maps[alike])]
        return units

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Smoothed weights (M, S, S) by name: all but the effective field, which is measured on other units."""
        pictures = {"projection": self.projection} | {name: self.energy(rules) for name, rules in SIGNALS.items()}
        shuffled = with_shuffled_weights(self.deconvnet.graph, self.layer, None, self.random)
        pictures[SHUFFLED] = self.energy(self.deconvnet.rules, model=shuffled)
        pictures[ANOTHER] = self.energy(self.deconvnet.rules, units=self.another_map())
        pictures["centre"] = self.nearness()
        pictures["noise"] = self.noise()
        pictures["edges"] = smoothed(faithfulness.energy(faithfulness.sobel(self.crops, self.inside)), self.inside)
        return pictures

    def noise(self) -> Tensor:
        """Random weights (M, S, S), brought to the bandwidth of all others."""
        return smoothed(torch.rand(self.inside.shape, generator=self.random).to(self.crops), self.inside)

    def nearness(self) -> Tensor:
        """How near each pixel is to the middle of what the unit's map sees: (M, S, S), from 0."""
        index = [torch.arange(n, device=self.inside.device) for n in self.inside.shape[1:]]
        middle = (self.strata.to(self.inside.device) - 1) / 2
        rows, columns = (i[None] - m[:, None] for i, m in zip(index, middle.T, strict=True))
        distance = (rows.square()[:, :, None] + columns.square()[:, None, :]).sqrt()
        return (distance.flatten(1).amax(1)[:, None, None] - distance) * self.inside

    def field(self, others: "Units", weights: Tensor | None = None) -> Tensor:
        """The effective field (M, S, S): the mean weights of other maps in other images, of maps that see as much.

        Args:
            others: of the same layer.
            weights: of the others; None: their smoothed squared gradients.
        """
        weights = others.weights["gradient"] if weights is None else weights
        found = torch.zeros(self.inside.shape, dtype=weights.dtype, device=self.inside.device)
        own = torch.stack([self.maps, self.items], 1)
        for size in self.strata.unique(dim=0):
            here, there = self.of_stratum(size), others.of_stratum(size)
            rows, columns = size.tolist()
            seen, inside = (x[there][:, :rows, :columns] for x in (weights, others.inside))
            field = effective_field(seen, inside, others.maps[there], others.items[there], own[here])
            found[here, :rows, :columns] = field * self.inside[here][:, :rows, :columns]
        return found

    def masks(self, others: "Units", share: float = faithfulness.SHARE) -> dict[str, Tensor]:
        """For each picture the `share` % of the pixels (M, S, S), bool, that it shows.

        Args:
            others: of the same layer, by which the effective field is measured.
            share: of the pixels that the unit sees.
        """
        weights = self.weights | {FIELD: self.field(others)}
        return {
            picture: self.strongest(torch.stack([weights[name] for name in names]).prod(0), share)
            for picture, names in MASKS.items()
        }

    def strongest(self, weights: Tensor, share: float) -> Tensor:
        """The `share` % of pixels of the largest weights (M, S, S), bool; ties are in random order."""
        rank = faithfulness.ranked(weights, self.inside, self.random)
        return faithfulness.strongest(rank, self.inside, share)

    def extents(self) -> Tensor:
        return extents(self.inside)


def pasted(images: Tensor, canvases: Tensor, boxes: Tensor) -> Tensor:
    """Copies of images (M, C, H, W) in which boxes (M, 4), where they are inside, hold canvases (M, C, S, S)."""
    images = images.clone()
    height, width = images.shape[-2:]
    for image, canvas, (top, left, bottom, right) in zip(images, canvases, boxes.tolist(), strict=True):
        rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
        image[:, rows, columns] = canvas[
            :, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ]
    return images
