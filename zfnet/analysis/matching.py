"""Which feature map of one network corresponds to which of another, by the correlation of their activations. ::

    correlation of maps i and j = E[(x_i - mean_i) (y_j - mean_j)] / (deviation_i deviation_j)

over all images of a dataset and all positions of a layer. Bipartite matching pairs the maps so that the sum of their
correlations is largest; semi-matching gives each map its best partner, which several may share. Both are those of Li,
Yosinski, Clune, Lipson & Hopcroft (2016), "Convergent Learning: Do different neural networks learn the same
representations?", arXiv:1511.07543.

Only sums are kept, in float64: memory does not grow with the dataset.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from tqdm import tqdm

from zfnet.checks import check_weights
from zfnet.data.batches import Batches
from zfnet.errors import InputError
from zfnet.graph import Graph, graph_of
from zfnet.recording import activations


class _Moments:
    """The joint second moments of maps x (P, C) and y (P, D) at P positions, batch by batch (Chan et al., 1983)."""

    def __init__(self, x: Tensor, y: Tensor):
        self.count = 0
        self.origins = x[0], y[0]  # subtracted first, so that a constant map is exactly zero
        self.means = [torch.zeros_like(x[0]), torch.zeros_like(y[0])]
        self.squares = [torch.zeros_like(x[0]), torch.zeros_like(y[0])]
        self.products = x.new_zeros(x.shape[1], y.shape[1])

    def add(self, x: Tensor, y: Tensor) -> None:
        before, self.count = self.count, self.count + len(x)
        centred, shifts = [], []
        for n, (rows, origin) in enumerate(zip((x, y), self.origins, strict=True)):
            rows = rows - origin
            mean = rows.mean(0)
            centred.append(rows.sub_(mean))
            shifts.append(mean - self.means[n])
            self.squares[n] += centred[n].square().sum(0) + shifts[n].square() * (before * len(x) / self.count)
            self.means[n] += shifts[n] * (len(x) / self.count)
        self.products += centred[0].T @ centred[1] + torch.outer(*shifts) * (before * len(x) / self.count)

    def correlation(self) -> Tensor:
        deviations = torch.outer(*(squares.sqrt() for squares in self.squares))
        return torch.where(deviations > 0, self.products / deviations, 0.0).clamp(-1, 1)


def correlations(
    first: nn.Module | Graph,
    second: nn.Module | Graph,
    dataset: Any,
    layers: Sequence[str] | Mapping[str, str],
    *,
    shuffle_seed: int | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Correlate each map of one network with each map of another: (C, D), float64, by the first network's layer.

    One pass over the dataset. Constant maps correlate by 0.

    Args:
        first, second: networks, or graphs of them.
        dataset: of images, or of (image, label).
        layers: names, or a mapping from the first network's names to the second's.
        shuffle_seed: shows the second network other images than the first; the correlations are then due to chance.
        batch_size: images that are run at once.
        workers: processes that read images; see `zfnet.data.Batches`.
        progress: show a progress bar.

    Raises:
        InputError: for layers whose maps differ in size.
    """
    graphs = graph_of(first), graph_of(second)
    names = dict(layers) if isinstance(layers, Mapping) else {layer: layer for layer in layers}
    for graph in graphs:
        check_weights(graph.model)
    moments: dict[str, _Moments] = {}
    with tqdm(total=len(dataset), unit=" images", desc="correlations", disable=not progress) as bar:
        for images, others in _pairs(dataset, shuffle_seed, batch_size, workers):
            first_maps = activations(graphs[0], images, list(names), batch_size)
            second_maps = activations(graphs[1], others, list(names.values()), batch_size)
            for layer, other in names.items():
                maps = first_maps[layer], second_maps[other]
                if maps[0].shape[2:] != maps[1].shape[2:]:
                    sizes = (" x ".join(map(str, m.shape[2:])) or "one position" for m in maps)
                    raise InputError(
                        f"maps of {layer} and {other} have different sizes ({', '.join(sizes)}): give layers that match"
                    )
                x, y = (m.movedim(1, -1).reshape(-1, m.shape[1]).double() for m in maps)
                moments.setdefault(layer, _Moments(x, y)).add(x, y)
            bar.update(len(images))
    if not moments:
        raise InputError(f"nothing to correlate: {len(names)} layers, too few of {len(dataset)} images could be read")
    return {layer: sums.correlation().cpu() for layer, sums in moments.items()}


def _pairs(dataset: Any, seed: int | None, batch_size: int, workers: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """The images for the two networks: the same, or, by a seed, each image of a random cycle with the one before it."""
    if seed is None:
        yield from ((batch.images, batch.images) for batch in Batches(dataset, batch_size, workers=workers))
        return
    cycle = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    ends: list[Tensor] = []  # the first image of all, and the last one so far
    for images in (batch.images for batch in Batches(dataset, batch_size, indices=cycle, workers=workers)):
        if ends:
            yield images[:1], ends[1]
        if len(images) > 1:
            yield images[1:], images[:-1]
        ends = [ends[0] if ends else images[:1], images[-1:]]
    if ends and len(dataset) > 1:
        yield ends[0], ends[1]


def bipartite_matching(correlation: Tensor) -> Tensor:
    """The min(C, D) pairs (P, 2) of maps, no map twice, whose correlations (C, D) have the largest sum."""
    pairs = linear_sum_assignment(correlation.numpy(), maximize=True)
    return torch.stack([torch.from_numpy(maps) for maps in pairs], 1)


def semi_matching(correlation: Tensor) -> Tensor:
    """Each of the first network's maps with its best partner by correlation (C, D), which several may share: (C, 2)."""
    return torch.stack([torch.arange(len(correlation)), correlation.argmax(1)], 1)
