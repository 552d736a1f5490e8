"""Does a picture show what a unit responds to?  Measures of what is put before a person, by what a network makes of it.

A picture of a unit is a content (the crop of its receptive field, or a signal projected into it) and a weight for
every pixel, by which pixels are kept or removed, strongest first, and which says how much of it is shown:

    sufficiency    keep a share q of the pixels, fill the rest: how much of the unit's activation is left?
    necessity      remove these pixels of the crop instead: how much of it is lost?
    match          from the picture alone, can its unit be told from others?
    energy_inside, points_inside     where the truth is known: how much of what is shown is on the object?
    similarity     of two pictures; `shuffled` gives the network with which to ask whether weights matter at all

None asks a person; each says only what the network itself makes of the pictures.  M pictures of one layer's units are
(M, 3, S, S), their weights (M, S, S), and `inside` (M, S, S), bool, says which pixels lie in the image.
"""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata
from torch import Tensor, nn

from zfnet.errors import InputError, unknown_name
from zfnet.graph import Graph

FILLS = ("grey", "blur", "noise")
SHARE = 20.0  # percent of the pixels: what a masked picture shows


class Picture(NamedTuple):
    """What is shown, by which weight its pixels count, and the percentage of them that a person sees."""

    content: str  # "crop", or the name of a signal
    weight: str  # one of `WEIGHTS`, or the name of a signal
    share: float = 100.0


PICTURES = {
    "crop": Picture("crop", "square"),  # it has no order of its own: keeping a share of it shrinks it about its centre
    "projection": Picture("projection", "projection"),
    "masked crop": Picture("crop", "projection", SHARE),
    "gradient": Picture("gradient", "gradient"),
    "masked by gradient": Picture("crop", "gradient", SHARE),
    "guided": Picture("guided", "guided"),
    "masked by guided": Picture("crop", "guided", SHARE),
    "shrunk crop": Picture("crop", "square", SHARE),
    "centre": Picture("crop", "disc", SHARE),
    "random": Picture("crop", "random", SHARE),
    "edges": Picture("crop", "edges", SHARE),
}


# ---- the order of pixels ---------------------------------------------------------------------------------------------


def _offsets(crops: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (S, 1) and columns (1, S) of pixels, as seen from the centre."""
    rows, columns = (torch.arange(n, device=crops.device) - (n - 1) / 2 for n in crops.shape[-2:])
    return rows[:, None], columns[None]


def _square(crops: Tensor, inside: Tensor, generator: torch.Generator) -> Tensor:
    rows, columns = _offsets(crops)
    return -torch.maximum(rows.abs(), columns.abs()).expand(inside.shape)


def _disc(crops: Tensor, inside: Tensor, generator: torch.Generator) -> Tensor:
    rows, columns = _offsets(crops)
    return -(rows.square() + columns.square()).expand(inside.shape)


def _random(crops: Tensor, inside: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(inside.shape, generator=generator).to(crops)


def _edges(crops: Tensor, inside: Tensor, generator: torch.Generator) -> Tensor:
    """Sobel's gradient of the grey image; 0 along the image's border, which is no edge."""
    across = crops.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    filters = torch.stack([across, across.T])[:, None]
    grey = F.pad(crops.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    whole = -F.max_pool2d(-inside[:, None].to(crops), 3, 1, 1)[:, 0]
    return F.conv2d(grey, filters).square().sum(1) * whole


WEIGHTS: dict[str, Callable[[Tensor, Tensor, torch.Generator], Tensor]] = {
    "square": _square,
    "disc": _disc,
    "random": _random,
    "edges": _edges,
}


def ranks(
    weight: str, crops: Tensor, signals: Mapping[str, Tensor], inside: Tensor, generator: torch.Generator
) -> Tensor:
    """The rank of each pixel by falling weight, 0 first: (M, S, S) int64.  Equals are drawn, outside comes last.

    weight: "square" and "disc" (near the centre, by the larger offset or by distance), "random", "edges" (Sobel's), or
    one of the signals (M, 3, S, S): its energy, the sum of squares over colours.
    """
    if weight not in (*WEIGHTS, *signals):
        raise unknown_name("weight", weight, (*WEIGHTS, *signals))
    found = signals[weight].square().sum(1) if weight in signals else WEIGHTS[weight](crops, inside, generator)
    flat = found.masked_fill(~inside, -torch.inf).flatten(1)
    drawn = torch.randperm(flat.shape[1], generator=generator).to(flat.device)
    order = drawn[flat[:, drawn].argsort(dim=1, descending=True, stable=True)]
    places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view_as(found)


def strongest(rank: Tensor, inside: Tensor, percent: float) -> Tensor:
    """Which pixels (M, S, S) are among the strongest `percent` of those inside the image."""
    count = (inside.sum((1, 2)) * (percent / 100)).round()
    return (rank < count[:, None, None]) & inside


# ---- sufficiency and necessity ---------------------------------------------------------------------------------------


def check_shares(shares: Sequence[float]) -> list[float]:
    """Shares q in percent, rising; InputError for fewer than two, and outside 0 to 100."""
    if len(shares) < 2 or any(b <= a for a, b in itertools.pairwise(shares)):
        raise InputError(f"shares are {list(shares)}; give two or more percentages, rising")
    for q in shares:
        if not 0 <= q <= 100:
            raise InputError(f"a share of {q} % of the pixels is none; give percentages from 0 to 100")
    return list(shares)


def ground(crops: Tensor, inside: Tensor, fill: str, generator: torch.Generator) -> Tensor:
    """What stands where pixels are removed, (M, 3, S, S): "grey" (0, the mean colour), the crop's "blur", or "noise".

    The blur is Gaussian, its deviation an eighth of the receptive field; the noise has the crop's mean and deviation.
    """
    if fill not in FILLS:
        raise unknown_name("fill", fill, FILLS)
    if fill == "grey":
        return torch.zeros_like(crops)
    where = inside[:, None].to(crops)
    if fill == "noise":
        count = where.sum((2, 3), keepdim=True)
        mean = (crops * where).sum((2, 3), keepdim=True) / count
        deviation = ((crops - mean).square() * where).sum((2, 3), keepdim=True).div(count).sqrt()
        return mean + deviation * torch.randn(crops.shape, generator=generator).to(crops)
    sigma = [0, 0, *(side / 8 for side in crops.shape[-2:])]
    blurred, weight = (gaussian_filter(x.cpu().numpy(), sigma) for x in (crops * where, where))
    return torch.from_numpy(blurred / weight.clip(min=np.finfo(weight.dtype).tiny)).to(crops)


def curve(
    respond: Callable[[Tensor], Tensor],
    clean: Tensor,
    content: Tensor,
    ground: Tensor,
    rank: Tensor,
    inside: Tensor,
    shares: Sequence[float],
    *,
    keep: bool,
) -> Tensor:
    """The share of each unit's activation that is left: (M, Q), for Q shares of pixels in percent.

    keep: the strongest pixels of the content are kept and all others are those of `ground` (insertion), or else the
    strongest are (deletion): Samek et al. (2017), arXiv:1509.06321; Petsiuk et al. (2018), arXiv:1806.07421.
    respond: the units' activations (M,) from canvases, see `Deconvnet.activations_of`; clean (M,): from the crops.
    May exceed 1; NaN where clean is not above 0.
    """
    left = []
    for q in shares:
        mask = strongest(rank, inside, q)[:, None]
        left.append(respond(torch.where(mask == keep, content, ground)))
    return torch.stack(left, 1) / torch.where(clean > 0, clean, torch.nan)[:, None]


def area(curves: Tensor, shares: Sequence[float]) -> Tensor:
    """The area under curves (..., Q), as their mean over shares of pixels: 1 if all of an activation is always left."""
    q = torch.tensor(shares, dtype=curves.dtype, device=curves.device)
    return torch.trapezoid(curves, q) / (q[-1] - q[0])


# ---- telling units apart ---------------------------------------------------------------------------------------------


def match(features: Tensor, maps: Tensor) -> tuple[Tensor, float]:
    """Whether the picture nearest to each is of the same unit, (M,), NaN where that is not asked, and by chance.

    features (M, D) of pictures, maps (M,): whose they are.  Every second picture of a map (the 1st, 3rd, ...) is known,
    the others are asked for: nearest by the cosine of features that are standardised over all M.  Recognition by the
    nearest neighbour, Fix & Hodges (1951).  The chance is the share of its own pictures among the known ones.
    """
    place = torch.stack([(maps[:n] == m).sum() for n, m in enumerate(maps)])
    known = place % 2 == 0
    centred = features - features.mean(0)
    spread = centred.std(0)
    rows = F.normalize(torch.where(spread > 0, centred / spread, 0.0).nan_to_num(), dim=1)
    nearest = (rows @ rows[known].T).argmax(1)
    hits = (maps[known][nearest] == maps).to(features)
    own = (maps[known][None] == maps[~known][:, None]).double().mean()
    return hits.masked_fill(known, torch.nan), float(own)


# ---- where the truth is known ----------------------------------------------------------------------------------------


def energy_inside(shown: Tensor, truth: Tensor) -> Tensor:
    """The share of what is shown (M, S, S), not negative, that lies on the truth (M, S, S), bool: (M,).

    The energy-based pointing game of Wang et al. (2020), arXiv:1910.01279.  NaN where nothing is shown.
    """
    return (shown * truth).sum((1, 2)) / shown.sum((1, 2))


def points_inside(rank: Tensor, truth: Tensor) -> Tensor:
    """Whether the strongest pixel lies on the truth: 1 or 0, (M,).  The pointing game, Zhang et al. (2016),
    arXiv:1608.00507, without its tolerance."""
    return truth.flatten(1).gather(1, rank.flatten(1).argmin(1)[:, None])[:, 0].to(torch.get_default_dtype())


# ---- sanity ----------------------------------------------------------------------------------------------------------


def shuffled(graph: Graph, layer: str, below: str | None, generator: torch.Generator) -> nn.Module:
    """A copy of the model in which the weights of all steps from `layer` down to `below`, exclusive, are shuffled.

    below: None, down to the image.  Each weight keeps its values and loses their order.  Cascading randomisation from
    the top, Adebayo et al. (2018), arXiv:1810.03292.
    """
    model = copy.deepcopy(graph.model)
    spared = set(graph.path([graph.node(below)])) if below else set()
    for node in reversed(graph.path([graph.node(layer)])):
        if node.op == "call_module" and node not in spared:
            for weight in model.get_submodule(str(node.target)).parameters():
                drawn = torch.randperm(weight.numel(), generator=generator).to(weight.device)
                weight.data.copy_(weight.data.flatten()[drawn].view_as(weight))
    return model


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of pictures (M, 3, S, S), (M,): 1 if they differ in scale alone, 0 if they share nothing; NaN if one is zero."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def similarity(a: Tensor, b: Tensor, inside: Tensor) -> Tensor:
    """Spearman's correlation of the energy (sum of squares over colours) of pictures (M, 3, S, S): (M,), float64.

    Over the pixels inside the image; signs are left out, as by Adebayo et al. (2018).  NaN where one is constant.
    """
    energies = [x.square().sum(1).cpu().numpy() for x in (a, b)]
    found = []
    for one, other, where in zip(*energies, inside.cpu().numpy(), strict=True):
        x, y = (rankdata(energy[where]) for energy in (one, other))
        x, y = x - x.mean(), y - y.mean()
        length = np.sqrt((x @ x) * (y @ y))
        found.append(x @ y / length if length > 0 else np.nan)
    return torch.tensor(found, dtype=torch.float64)


# ---- intervals -------------------------------------------------------------------------------------------------------


class Estimate(NamedTuple):
    """A mean over units with its 95 % interval; values: how many are behind it."""

    mean: float
    low: float
    high: float
    values: int


class Bootstrap:
    """Means over units, each the mean over its images, with intervals: units and images are both drawn again.

    maps, images (M,): to which unit and which image each value belongs.  A value's weight in a draw is the product
    of how often its unit and its image were drawn: the pigeonhole bootstrap, Owen (2007), doi:10.1214/07-AOAS122, which
    is mildly conservative.  The interval of a paired difference is that of the values' differences.
    """

    def __init__(self, maps: Tensor, images: Tensor, generator: torch.Generator, draws: int = 2000):
        self.maps = maps.unique(return_inverse=True)[1]
        self.weights = torch.ones(draws, len(maps), dtype=torch.float64)
        for clusters in (self.maps, images.unique(return_inverse=True)[1]):
            count = int(clusters.max()) + 1
            drawn = torch.randint(count, (draws, count), generator=generator)
            times = torch.zeros(draws, count, dtype=torch.float64)
            self.weights *= times.scatter_add_(1, drawn, torch.ones_like(times))[:, clusters]

    def __call__(self, values: Tensor) -> Estimate | None:
        """Of values (M,), without those that are NaN; None if there is none."""
        there = ~values.isnan()
        if not there.any():
            return None
        values, maps = values[there].double().cpu(), self.maps[there.cpu()]
        even = 1 / maps.bincount()[maps].double()  # units count alike, however many images they have
        weights = self.weights[:, there.cpu()] * even
        means = (weights @ values / weights.sum(1)).numpy()
        low, high = np.nanquantile(means, (0.025, 0.975)).tolist()
        return Estimate(float(values @ even / even.sum()), low, high, len(values))
