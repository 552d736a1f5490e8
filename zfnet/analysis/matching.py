"""Which feature map of one network is which of another: by the correlation of their activations over a dataset.

    correlation of maps i and j = E[(x_i - mean_i) (y_j - mean_j)] / (deviation_i deviation_j)

over all images and all places of a layer.  A one-to-one matching pairs the maps so that their correlations add up to
the most; without that condition each map takes its best partner, which several may share.  Both, and the names, are
those of Li, Yosinski, Clune, Lipson & Hopcroft (2016), "Convergent Learning: Do different neural networks learn the
same representations?", arXiv:1511.07543: bipartite matching and semi-matching.

Only sums are kept, in float64: memory is that of the correlations, however large the dataset.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from tqdm import tqdm

from zfnet.checks import check_weights, device_and_dtype, evaluating
from zfnet.data.batches import Batches
from zfnet.errors import InputError
from zfnet.graph import Graph, graph_of


class _Moments:
    """The joint second moments of maps x (P, C) and y (P, D) at P places, batch by batch (Chan et al., 1983)."""

    def __init__(self, x: Tensor, y: Tensor):
        self.count = 0
        self.origins = x[0], y[0]  # taken away first: a constant map is then exactly zero, not nearly
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
    shuffled: int | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Correlation (C, D), float64, of each map of one network with each map of another, by the first one's layer.

    Over all images of a dataset of (image, label) and all places of a layer, in one pass; 0 for a map that is constant.
    layers: names, or for each of the first network's the second's.
    shuffled: a seed, by which the second network sees the images in another order: what is left is what chance gives.
    InputError for unknown layers, and for layers whose maps are of different sizes.
    """
    graphs = graph_of(first), graph_of(second)
    names = dict(layers) if isinstance(layers, Mapping) else {layer: layer for layer in layers}
    nodes = [
        {layer: graph.node(layer) for layer in wanted}
        for graph, wanted in zip(graphs, (list(names), list(names.values())), strict=True)
    ]
    for graph in graphs:
        check_weights(graph.model)

    def activations(which: int, images: Tensor) -> dict[str, Tensor]:
        graph, wanted = graphs[which], nodes[which].values()
        found = graph.run(images.to(**device_and_dtype(graph.model)), wanted, graph.call, keep=wanted)
        return {layer: found[node] for layer, node in nodes[which].items()}

    moments: dict[str, _Moments] = {}
    bar = tqdm(total=len(dataset), unit=" images", desc="correlations", disable=not progress)
    with evaluating(graphs[0].model), evaluating(graphs[1].model), bar:
        for images, others in _pairs(dataset, shuffled, batch_size, workers):
            found = activations(0, images), activations(1, others)
            for layer, other in names.items():
                maps = found[0][layer], found[1][other]
                if maps[0].shape[2:] != maps[1].shape[2:]:
                    sizes = (" x ".join(map(str, m.shape[2:])) or "one place" for m in maps)
                    raise InputError(
                        f"maps of {layer} and {other} have different sizes ({', '.join(sizes)}): give layers that match"
                    )
                x, y = (m.movedim(1, -1).reshape(-1, m.shape[1]).double() for m in maps)
                moments.setdefault(layer, _Moments(x, y)).add(x, y)
            bar.update(len(images))
    if not moments:
        raise InputError(f"nothing to correlate: {len(names)} layers, and none of {len(dataset)} images could be read")
    return {layer: sums.correlation().cpu() for layer, sums in moments.items()}


def _pairs(dataset: Any, shuffled: int | None, batch_size: int, workers: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """What the two networks see, batch by batch: the same images, or by a seed no image together with itself."""
    batches = Batches(dataset, batch_size, workers=workers)
    if shuffled is None:
        yield from ((batch.images, batch.images) for batch in batches)
        return
    cycle = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(shuffled))
    order = torch.empty_like(cycle)
    order[cycle] = cycle.roll(1)
    for one, other in zip(batches, Batches(dataset, batch_size, indices=order, workers=workers), strict=False):
        both = min(len(one.images), len(other.images))  # images that cannot be read are missing from either
        yield one.images[:both], other.images[:both]


def match(correlation: Tensor, *, one_to_one: bool = True) -> Tensor:
    """Pairs (P, 2) of maps by their correlation (C, D), in the order of the first network's.

    one_to_one: P = min(C, D) pairs, no map twice, whose correlations add up to the most (bipartite matching).  Else all
    P = C maps with their best partners (semi-matching).
    """
    if one_to_one:
        pairs = linear_sum_assignment(correlation.numpy(), maximize=True)
        return torch.stack([torch.from_numpy(maps) for maps in pairs], 1)
    return torch.stack([torch.arange(len(correlation)), correlation.argmax(1)], 1)
