"""Similarity of pictures: is a picture of a unit similar to pictures that do not depend on the unit?

A projection says something about a unit only if it changes with the weights (Adebayo et al. 2018, arXiv:1810.03292) and
with the map, and if it is more than the image's edges (Nie et al. 2018, arXiv:1805.07039). Four measures of similarity;
Adebayo et al. use the first three, without a field::

    similarity         Spearman's correlation of energies: where is much shown? Given a field: beyond where any unit
                       of the layer shows much
    ssim               structural similarity of magnitudes: are they alike piece by piece?
    hog_correlation    Pearson's correlation of histograms of oriented gradients: do their structures run alike?
    cosine             of the signed pixels

Each is a function (a, b, inside) of pictures (M, C, S, S) and the pixels (M, S, S), bool, that lie in the image; others
are ignored. It gives (M,), float64, symmetric in a and b: 1 if they differ only by a factor above 0, at least -1,
and NaN where it is undefined, as for a picture that is constant. All but the cosine take the energy or magnitude of
pixels: they ignore signs, and the two pictures may differ in their number of channels.

`with_shuffled_weights` makes the other weights, in one of the `stages` or in several; `faithfulness.sobel` the edges; a
deconvnet by the rules `DECONVNET | UNSWITCHED` the projections that do not know where the image had its maxima.
"""

import copy
import itertools

import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor, nn

from zfnet.analysis.faithfulness import energy, surrounded
from zfnet.graph import Graph
from zfnet.layers import trunk
from zfnet.rendering import contrast

WINDOW, DEVIATION = 11, 1.5  # of the structural similarity: pixels; of Wang et al.
STABILISERS = 0.01**2, 0.03**2  # of means and of variances, of pictures in 0..1
ORIENTATIONS = 8
CELLS, CELL = 8, 3  # cells along a side at most, and the pixels of one at least
ROUNDING = 1e-10  # relative: what is left below is no value


def ranks(values: Tensor, inside: Tensor) -> Tensor:
    """The ranks of values (M, S, S) among those inside, from 1, the mean for equal ones; 0 elsewhere: (M, S, S)."""
    ranked = torch.zeros(inside.shape, dtype=torch.float64)
    for row, value, mask in zip(ranked, values.cpu(), inside.cpu(), strict=True):
        row[mask] = torch.from_numpy(rankdata(value[mask].numpy()))
    return ranked


def similarity(a: Tensor, b: Tensor, inside: Tensor, given: Tensor | None = None) -> Tensor:
    """Spearman's rank correlation of the energies of two pictures: (M,), float64.

    With `given` it is partial: the correlation of what is left of both ranks when each is regressed on the ranks of the
    field, (r_ab - r_ag r_bg) / sqrt((1 - r_ag^2) (1 - r_bg^2)) (Kendall & Stuart, The Advanced Theory of Statistics,
    vol. 2). Pictures that are alike only because units of a layer look at the middle of their fields then have 0. A
    constant field changes nothing. NaN also where the field's ranks say all of one picture's.

    Args:
        a, b: pictures (M, C, S, S).
        inside: (M, S, S), bool.
        given: a field (M, S, S), such as the mean energy of other maps on other images, of receptive fields of the same
            size; the larger, the more is shown.
    """
    x, y = (ranks(energy(picture), inside).flatten(1) for picture in (a, b))
    known = None if given is None else ranks(given, inside).flatten(1)
    return _correlation(x, y, inside.flatten(1).cpu(), known)


def cosine(a: Tensor, b: Tensor, inside: Tensor) -> Tensor:
    """The cosine of two pictures (M, C, S, S) as vectors: (M,), float64; -1 if one is the negative of the other."""
    a, b = (x.double().masked_fill(~inside[:, None], 0.0).flatten(1) for x in (a, b))
    return _cosine(a, b)


def ssim(a: Tensor, b: Tensor, inside: Tensor) -> Tensor:
    """The mean structural similarity of the magnitudes of two pictures: (M,), float64.

    Wang et al. (2004), doi:10.1109/TIP.2003.819861: constants 0.01 and 0.03 of the range, Gaussian windows of 11 pixels
    and a deviation of 1.5, or of the largest odd number of pixels that fits, with a deviation smaller by as much. A
    magnitude is the root of the energy, scaled to 0..1 as figures are (`rendering.contrast`), each picture on its own,
    as by Adebayo et al. (2018). The windows lie about every pixel in the image; weights of pixels beyond it are left
    out, and the others add up to 1.
    """
    x, y = (_magnitudes(picture, inside) for picture in (a, b))
    side = min(WINDOW, *(extent - 1 + extent % 2 for extent in inside.shape[1:]))
    offsets = torch.arange(side, dtype=x.dtype, device=x.device) - side // 2
    profile = torch.exp(-0.5 * (offsets / (DEVIATION * side / WINDOW)).square())

    def blurred(planes: Tensor) -> Tensor:
        for kernel in (profile[:, None], profile[None]):
            planes = F.conv2d(planes, kernel[None, None], padding=[n // 2 for n in kernel.shape])
        return planes

    counted = inside[:, None].to(x)
    weight = blurred(counted).where(inside[:, None], 1.0)

    def mean(planes: Tensor) -> Tensor:
        return blurred(planes * counted) / weight

    m, n = mean(x), mean(y)
    variances, covariance = mean(x * x) - m * m + mean(y * y) - n * n, mean(x * y) - m * n
    first, second = STABILISERS
    index = (2 * m * n + first) * (2 * covariance + second) / ((m * m + n * n + first) * (variances + second))
    values = (index * counted).sum((1, 2, 3)) / counted.sum((1, 2, 3))
    return values.masked_fill(_constant(x, inside) | _constant(y, inside), torch.nan)


def hog_correlation(a: Tensor, b: Tensor, inside: Tensor) -> Tensor:
    """Pearson's correlation of the histograms of oriented gradients of two pictures: (M,), float64.

    Dalal & Triggs (2005), doi:10.1109/CVPR.2005.177, of magnitudes scaled as for `ssim`: central differences, 0 where a
    neighbour lies beyond the image; 8 orientations without a sign, between the nearest two of which a gradient is
    shared, weighted by its length; 8 x 8 cells, fewer where a cell would have less than 3 pixels, and at least 2 x 2;
    blocks of 2 x 2 cells, of length 1 each. Blocks without a gradient in the image are left out.
    """
    x, y = (_histograms(_magnitudes(picture, inside), inside) for picture in (a, b))
    seen = _blocks(surrounded(inside)[:, None].to(x)).amax(1, keepdim=True) > 0
    return _correlation(x.flatten(1), y.flatten(1), seen.expand(x.shape).flatten(1))


def _correlation(a: Tensor, b: Tensor, counted: Tensor, given: Tensor | None = None) -> Tensor:
    """Pearson's correlation of values (M, P) over those that are counted, bool; partial, given others: (M,)."""
    count = counted.to(a)
    a, b = (_rest(x * count, count) for x in (a, b))
    if given is not None:
        given = _rest(given * count, count)
        a, b = _rest(a, given), _rest(b, given)
    return _cosine(a, b)


def _rest(values: Tensor, other: Tensor) -> Tensor:
    """Residuals of a regression of values on another vector, both (M, P); 0 if they are only rounding."""
    length = other.square().sum(1, keepdim=True)
    rest = values - (values * other).sum(1, keepdim=True) / length.where(length > 0, 1.0) * other
    kept = rest.norm(dim=1, keepdim=True) > ROUNDING * values.norm(dim=1, keepdim=True)
    return rest.where(kept, 0.0)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of vectors (M, P): (M,); NaN if one is zero."""
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
    return (a * b).sum(1).clamp(-1, 1)


def _magnitudes(pictures: Tensor, inside: Tensor) -> Tensor:
    """Roots of energies in the image, in 0..1: (M, 1, S, S), float64."""
    return contrast((energy(pictures.double()).sqrt() * inside)[:, None])


def _constant(planes: Tensor, inside: Tensor) -> Tensor:
    """Which planes (M, 1, S, S) have one value inside (M, S, S): (M,), bool."""
    low, high = (planes[:, 0].masked_fill(~inside, fill) for fill in (torch.inf, -torch.inf))
    return low.amin((1, 2)) >= high.amax((1, 2))


def _histograms(planes: Tensor, inside: Tensor) -> Tensor:
    """Blocks (M, 4 orientations, B) of the gradients of planes (M, 1, S, S)."""
    padded = F.pad(planes, (1, 1, 1, 1), mode="replicate")
    across, down = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2], padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    length = torch.hypot(across, down) * surrounded(inside)[:, None]
    orientation = torch.atan2(down, across) / torch.pi * ORIENTATIONS  # a full turn is twice as many
    share, lower = orientation - orientation.floor(), orientation.floor().long()
    lengths = planes.new_zeros(len(planes), ORIENTATIONS, *planes.shape[2:])
    lengths.scatter_add_(1, lower % ORIENTATIONS, length * (1 - share))
    lengths.scatter_add_(1, (lower + 1) % ORIENTATIONS, length * share)
    return F.normalize(_blocks(lengths), dim=1, eps=1e-5)


def _blocks(planes: Tensor) -> Tensor:
    """The means of planes (M, C, S, S) over cells, in overlapping blocks of 2 x 2 cells: (M, 4 C, B)."""
    rows, columns = (max(2, min(CELLS, extent // CELL)) for extent in planes.shape[2:])
    return F.unfold(F.adaptive_avg_pool2d(planes, (rows, columns)), 2)


def stages(graph: Graph, layer: str) -> list[tuple[str, str | None]]:
    """The parts of the way from a layer down to the image that have weights: (layer, below), the topmost first.

    A part lies between two steps that all of the image has to come through, so that no branch leads around it: in a
    chain a convolution, in networks of blocks also a block. Both names are arguments of `with_shuffled_weights`.
    """
    ends = reversed(trunk(graph, graph.node(layer)))
    names = [None if end in graph.inputs else graph.names[end] for end in ends]
    parts = [(top, below) for top, below in itertools.pairwise(names) if top is not None]
    return [(top, below) for top, below in parts if _shuffled(graph, top, below)]


def _shuffled(graph: Graph, layer: str, below: str | None) -> list[str]:
    """The names of the weights from `layer` down, up to `below`, the topmost step's first."""
    spared = set(graph.path([graph.node(below)])) if below else set()
    steps = [node for node in reversed(graph.path([graph.node(layer)])) if node not in spared]
    targets = [f"{node.target}." for node in steps if node.op in ("call_module", "get_attr")]  # of an F.conv2d
    weights = [n for n, p in graph.model.named_parameters(remove_duplicate=False) if p.ndim > 1]
    return [name for target in targets for name in weights if f"{name}.".startswith(target)]


def with_shuffled_weights(graph: Graph, layer: str, below: str | None, generator: torch.Generator) -> nn.Module:
    """A copy of the model in which the weights of the layers from `layer` down are shuffled, up to `below`, exclusive.

    A weight keeps its values and loses their order: of a convolution, a linear layer and all others of two dimensions
    or more. Vectors stay where they are: a bias, and the gain of a normalisation, whose statistics stay, too. So each
    map reads something else, and keeps its own scale and threshold. Where a unit does not fire any more, its gradient
    and guided gradient are zero, and likeness to them is NaN.

    Both randomisations of Adebayo et al. (2018), arXiv:1810.03292, are this: from the top in a cascade, with the unit's
    own layer as `layer`, and one layer at a time, with `layer` any one on the way down and `below` the one under it.

    Args:
        graph: of the model, which is left as it is.
        layer: the highest layer whose weights are shuffled.
        below: this layer and all that it depends on keep their weights; None: down to the image.
        generator: of the same state it shuffles a layer in the same way, however far below others are shuffled.
    """
    model = copy.deepcopy(graph.model)
    for name in _shuffled(graph, layer, below):
        weight = model.get_parameter(name)
        drawn = torch.randperm(weight.numel(), generator=generator).to(weight.device)
        weight.data.copy_(weight.data.flatten()[drawn].view_as(weight))
    return model
