"""Which feature map of one network corresponds to which of another, and how alike two layers are as a whole. ::

    correlation of maps i and j = E[(x_i - mean_i) (y_j - mean_j)] / (deviation_i deviation_j)

over all images of a dataset and all positions of a layer. Bipartite matching pairs the maps so that the sum of their
correlations is largest; semi-matching gives each map its best partner, which several may share. Both are those of Li,
Yosinski, Clune, Lipson & Hopcroft (2016), "Convergent Learning: Do different neural networks learn the same
representations?", arXiv:1511.07543. A matching finds likeness in noise, too: `match` finds it on some images and
measures it on others. ::

    linear CKA = |Y'X|^2 / (|X'X| |Y'Y|), with Frobenius norms, of maps less their means

compares the layers without a matching: Kornblith, Norouzi, Lee & Hinton (2019), "Similarity of Neural Network
Representations Revisited", arXiv:1905.00414. X (P, C) and Y (P, D) have a row for each position of each image, as for
the correlations. ::

    dimensions = (sum of v)^2 / (sum of v^2), of the eigenvalues v of the maps' covariance

is the participation ratio: 1 if all maps vary together, C if all C maps vary as much and independently (Gao et al.,
2017, "A theory of multineuronal dimensionality, dynamics and measurement", doi:10.1101/214262).

Only sums are kept, in float64: memory does not grow with the dataset.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from tqdm import tqdm

from zfnet.checks import check_weights
from zfnet.data.batches import Batches
from zfnet.errors import InputError
from zfnet.graph import Graph, graph_of
from zfnet.recording import activations


class Similarity(NamedTuple):
    """How alike the maps of one layer are in two networks."""

    correlation: Tensor  # (C, D), float64; 0 where a map is constant
    varies: tuple[Tensor, Tensor]  # (C,) and (D,), bool: the maps that are not constant, such as 0 on all images
    cka: float  # linear CKA, 0 to 1; NaN if all maps of a layer are constant
    dimensions: tuple[float, float]  # of the layer's activations in each network; see below; NaN as for `cka`


class Matching(NamedTuple):
    """The maps of two networks, paired on some images and compared on others that were held out.

    Maps that are constant on either part of the images are left out. Without any pair, means are NaN.
    """

    live: tuple[Tensor, Tensor]  # (C,) and (D,), bool: the maps that take part
    pairs: Tensor  # (P, 2), int64: P is the smaller number of live maps
    correlation: Tensor  # (P,), float64: of the pairs, on the images held out
    fitted: Tensor  # (P,), float64: of the pairs, on the images that they were paired on
    best: Tensor  # (live of the first,), float64: of each map and its best partner, shared or not, on those held out
    random: Tensor  # (permutations,), float64: means over maps that are paired at random, on the images held out
    agreement: float  # the share of the pairs that a matching on the images held out has as well
    reliability: float | None  # of the pairs' correlations; see `split_half_reliability`


class _Moments:
    """The joint second moments of maps x (P, C) and y (P, D) at P positions, batch by batch (Chan et al., 1983).

    Args:
        x, y: the first batch, which `add` is given as well.
        own: also those of x with itself, and of y.
    """

    def __init__(self, x: Tensor, y: Tensor, own: bool = False):
        self.count = 0
        self.origins = x[0], y[0]  # subtracted first, so that a constant map is exactly zero
        self.means = [torch.zeros_like(x[0]), torch.zeros_like(y[0])]
        self.squares = [torch.zeros_like(x[0]), torch.zeros_like(y[0])]
        self.products = x.new_zeros(x.shape[1], y.shape[1])
        self.own = [maps.new_zeros(maps.shape[1], maps.shape[1]) for maps in (x, y)] if own else []

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
        for n, products in enumerate(self.own):
            products += centred[n].T @ centred[n] + torch.outer(shifts[n], shifts[n]) * (before * len(x) / self.count)

    def correlation(self) -> Tensor:
        deviations = torch.outer(*(squares.sqrt() for squares in self.squares))
        return torch.where(deviations > 0, self.products / deviations, 0.0).clamp(-1, 1)

    def similarity(self) -> Similarity:
        """InputError unless `own` is set."""
        norms = [float(products.norm()) for products in self.own]
        cka = float(self.products.norm()) ** 2 / (norms[0] * norms[1]) if all(norms) else math.nan
        varies = [(squares > 0).cpu() for squares in self.squares]
        traces = [float(products.trace()) for products in self.own]
        ratios = [(trace / norm) ** 2 if norm else math.nan for trace, norm in zip(traces, norms, strict=True)]
        return Similarity(
            self.correlation().cpu(),
            (varies[0], varies[1]),
            min(cka, 1.0) if cka == cka else cka,
            (ratios[0], ratios[1]),
        )


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
    moments = _moments(first, second, dataset, layers, False, shuffle_seed, batch_size, workers, progress)
    return {layer: sums.correlation().cpu() for layer, sums in moments.items()}


def similarities(
    first: nn.Module | Graph,
    second: nn.Module | Graph,
    dataset: Any,
    layers: Sequence[str] | Mapping[str, str],
    *,
    shuffle_seed: int | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Similarity]:
    """As `correlations`, with linear CKA and the maps that are constant: by the first network's layer."""
    moments = _moments(first, second, dataset, layers, True, shuffle_seed, batch_size, workers, progress)
    return {layer: sums.similarity() for layer, sums in moments.items()}


def _moments(
    first: nn.Module | Graph,
    second: nn.Module | Graph,
    dataset: Any,
    layers: Sequence[str] | Mapping[str, str],
    own: bool,
    shuffle_seed: int | None,
    batch_size: int,
    workers: int | None,
    progress: bool,
) -> dict[str, _Moments]:
    """The moments of each layer's maps in both networks, over all images and positions."""
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
                if layer not in moments:
                    moments[layer] = _Moments(x, y, own)
                moments[layer].add(x, y)
            bar.update(len(images))
    if not moments:
        raise InputError(f"nothing to correlate: {len(names)} layers, too few of {len(dataset)} images could be read")
    return moments


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


def match(matched: Similarity, held_out: Similarity, *, permutations: int = 1000, seed: int = 0) -> Matching:
    """Pair maps one to one by their correlations on some images, and take their correlations on others.

    Args:
        matched: of the images that maps are paired on.
        held_out: of the images that they are compared on.
        permutations: pairings at random, the chance level of a matching.
        seed: of these.
    """
    masks = [one & other for one, other in zip(matched.varies, held_out.varies, strict=True)]
    first, second = (mask.nonzero().flatten() for mask in masks)
    here, there = (of.correlation[first][:, second] for of in (matched, held_out))
    pairs, again = bipartite_matching(here), bipartite_matching(there)
    fitted, correlation = here[tuple(pairs.T)], there[tuple(pairs.T)]
    return Matching(
        (masks[0], masks[1]),
        torch.stack([first[pairs[:, 0]], second[pairs[:, 1]]], 1),
        correlation,
        fitted,
        there[tuple(semi_matching(here).T)] if here.numel() else correlation,
        random_matchings(there, permutations, seed),
        agreement(pairs, again),
        split_half_reliability(fitted, correlation),
    )


def random_matchings(correlation: Tensor, count: int, seed: int = 0) -> Tensor:
    """The mean correlations (count,) of maps (C, D) that are paired one to one at random, `count` times."""
    random, size = torch.Generator().manual_seed(seed), min(correlation.shape)
    means = []
    for _ in range(count):
        rows, columns = (torch.randperm(n, generator=random)[:size] for n in correlation.shape)
        means.append(correlation[rows, columns].mean())
    return torch.stack(means) if means else correlation.new_zeros(0)


def agreement(pairs: Tensor, others: Tensor) -> float:
    """The share of pairs (P, 2) that another matching (Q, 2) of the same maps has as well; NaN of no pairs."""
    known = set(map(tuple, others.tolist()))
    return sum(pair in known for pair in map(tuple, pairs.tolist())) / len(pairs) if len(pairs) else math.nan


def split_half_reliability(first: Tensor, second: Tensor) -> float | None:
    """How reliable values are that were measured on two halves of the images: 2 r / (1 + r).

    r is Pearson's correlation of the values of one half with those of the other. The formula of Spearman (1910) and
    Brown (1910) makes of it the reliability of values that are measured on all images: the share of their variance
    that is not due to which images these are. None for fewer than three values, for values that are all equal, and for
    a negative r.

    Args:
        first, second: (N,), what was measured on each half.
    """
    if len(first) < 3 or not first.var() > 0 or not second.var() > 0:
        return None
    r = float(torch.corrcoef(torch.stack([first, second]))[0, 1])
    return 2 * r / (1 + r) if r >= 0 else None
