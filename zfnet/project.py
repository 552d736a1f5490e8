"""From winners to patches: read the images a scan found, crop receptive fields, project the units into them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zfnet.deconvnet import Deconvnet, Patches
from zfnet.scanning import TopActivations


def project_top(
    deconvnet: Deconvnet, dataset: Any, layer: str, top: TopActivations, maps: Sequence[int], *, whole: bool = False,
    at_once: int = 256,
) -> Patches:  # fmt: skip
    """Crops and projections (len(maps) * k) of some feature maps' strongest activations, map by map, strongest first.

    dataset: the one that was scanned, read `at_once` images at a time.  whole: as in `project_units`.  Where a map has
    fewer than k, all is zero.
    """
    maps = list(maps)
    k = top.value.shape[1]
    image, row, column = (places[maps].flatten() for places in (top.image, top.row, top.column))
    units = torch.stack([image, torch.tensor(maps).repeat_interleave(k), row, column], 1)
    found = (image >= 0).nonzero().flatten()
    parts: list[tuple[Tensor, Patches]] = []
    needed, place = image[found].unique(return_inverse=True)
    for first in range(0, len(needed), at_once):
        some = needed[first : first + at_once]
        inside = (place >= first) & (place < first + at_once)
        here = found[inside]
        items = [dataset[int(i)] for i in some]
        images = torch.stack([item[0] if isinstance(item, tuple | list) else item for item in items])
        local = units[here]
        local[:, 0] = place[inside] - first
        parts.append((here, deconvnet.project_units(images, layer, local, whole=whole)))
    sample = parts[0][1] if parts else deconvnet.project_units(dataset[0][0][None], layer, units[:0], whole=whole)
    every = Patches(*(part.new_zeros(len(units), *part.shape[1:]) for part in sample))
    for here, patches in parts:
        for column, part in zip(every, patches, strict=True):
            column[here.to(column.device)] = part
    return every
