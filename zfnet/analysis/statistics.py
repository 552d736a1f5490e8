"""Means over feature maps and images, with intervals and tests.

A value belongs to a map and to an image. The values of one map are similar, and so are those of one image: they are not
independent, and other maps and images would give another mean. ::

    two_way           the mean, its 95 % interval, a test of 0, and whether it is as good as 0
    holm              p-values of a family of tests, corrected
    mixed_logistic    the same contrast as odds, by a mixed-effects logistic model: a check

In all of them, values are (M,) and the map and image of each value are (M,), int.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import ndtri, stdtr, stdtrit
from torch import Tensor

from zfnet.errors import InputError

MARGIN = 0.03  # the margin of equivalence

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Estimate(NamedTuple):
    """A mean over units with its 95 % interval.

    Attributes:
        mean: the mean.
        low: the lower end of the interval.
        high: the upper end.
        values: how many it is the mean of.
    """

    mean: float
    low: float
    high: float
    values: int


class Contrast(NamedTuple):
    """An `Estimate`, and what it says of a mean of 0: of a paired difference, that there is none.

    Attributes:
        mean: the mean.
        low: the lower end of the interval.
        high: the upper end.
        values: how many it is the mean of.
        p: two-sided, of a mean of 0.
        equivalent: whether the 90 % interval lies inside the margin around 0.
    """

    mean: float
    low: float
    high: float
    values: int
    p: float
    equivalent: bool


def two_way(values: Tensor, maps: Tensor, images: Tensor, margin: float = MARGIN) -> Contrast | None:
    """The mean over maps of the mean over each map's values: its 95 % interval and p-value, for other maps and images.

    The variance is that of sums over maps plus that of sums over images, less that of sums over pairs of both, which
    the two have in common: Cameron, Gelbach & Miller (2011), doi:10.1198/jbes.2010.07136. The parts of maps and of
    images are not taken as less than 0. Intervals are Student's, of Satterthwaite's (1946) degrees of freedom,
    doi:10.2307/3002019. The mean is equivalent to 0 if two one-sided tests of 5 % reject a mean beyond the margin:
    Schuirmann (1987), doi:10.1007/BF01068419. In simulations of 8 to 64 maps, with and without effects of maps and
    images, the intervals hold 92 to 98 of 100 truths.

    None if the values that are not NaN have fewer than two maps or images. If all values are equal, the interval has no
    width, p is NaN, and nothing is concluded. Where few values differ from all others, as of answers that are nearly
    all right, intervals are too short.

    Args:
        values: (M,); differences, for a paired contrast. NaN are left out. To test a share against chance, subtract it.
        maps, images: (M,), of each value.
        margin: of equivalence, in the unit of the values.
    """
    if not margin > 0:
        raise InputError(f"margin is {margin}; give a positive difference, {MARGIN} for a share")
    valid = ~values.isnan().cpu()
    x = values.cpu()[valid].double().numpy()
    rows, columns = (_numbered(clusters.cpu()[valid].numpy()) for clusters in (maps, images))
    if not len(x) or not rows.max() or not columns.max():
        return None
    weights = 1 / np.bincount(rows)[rows]  # maps count alike, however many values they have
    weights /= weights.sum()
    mean = float(weights @ x)
    residuals = weights * (x - mean)
    pairs = _numbered(rows * (columns.max() + 1) + columns)
    own, of_maps, of_images = (_variance_of_sums(residuals, clusters) for clusters in (pairs, rows, columns))
    parts = np.array([own, max(of_maps - own, 0), max(of_images - own, 0)])
    error = math.sqrt(parts.sum())
    degrees = np.array([pairs.max(), rows.max(), columns.max()])
    if error == 0:
        return Contrast(mean, mean, mean, len(x), math.nan, False)
    freedom = error**4 / (parts**2 / degrees).sum()
    half, inner = (float(error * stdtrit(freedom, q)) for q in (0.975, 0.95))
    p = float(2 * stdtr(freedom, -abs(mean) / error))
    return Contrast(mean, mean - half, mean + half, len(x), p, abs(mean) + inner < margin)


def _numbered(clusters: Integers) -> Integers:
    """The cluster of each value, counted from 0 without gaps."""
    numbers: Integers = np.unique(clusters, return_inverse=True)[1]
    return numbers


def _variance_of_sums(residuals: Floats, clusters: Integers) -> float:
    """The variance of a sum of residuals (M,) that are independent between clusters (M,) only."""
    sums = np.bincount(clusters, residuals)
    return float((sums**2).sum()) * len(sums) / (len(sums) - 1)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """P-values, corrected so that a family of tests has the error of one: Holm (1979), jstor.org/stable/4615733.

    The n-th smallest of N is multiplied by N + 1 - n; none comes out smaller than one before it, or above 1. Values of
    None and NaN are no tests: they do not count and come out as None.
    """
    adjusted: list[float | None] = [None] * len(p)
    tests = sorted((value, n) for n, value in enumerate(p) if value is not None and not math.isnan(value))
    largest = 0.0
    for rank, (value, n) in enumerate(tests):
        if not 0 <= value <= 1:
            raise InputError(f"p-value {n} is {value}; give values from 0 to 1")
        largest = adjusted[n] = max(largest, min(1.0, value * (len(tests) - rank)))
    return adjusted


def mixed_logistic(one: Tensor, other: Tensor, maps: Tensor, images: Tensor) -> Estimate | None:
    """The log odds of `one` being right minus those of `other`: a check of `two_way` on differences.

    log odds = constant + effect of the picture + effect of the map + effect of the image, where those of maps and of
    images are normal: a mixed-effects logistic model, Baayen, Davidson & Bates (2008), doi:10.1016/j.jml.2007.12.005.
    It is fitted by statsmodels' variational Bayes. The effect of the picture is the same for all maps and images; if
    it differs between them, the interval is too short.

    None if either is always or never right: such odds are not finite.

    Args:
        one, other: (M,), of two pictures: 1 right, 0 wrong. A trial in which either is NaN or 0.5, a tie, is left out.
        maps, images: (M,), of each trial.

    Raises:
        InputError: without statsmodels.
    """
    try:
        from statsmodels.genmod.bayes_mixed_glm import BinomialBayesMixedGLM
    except ImportError:
        raise InputError("a mixed-effects model needs statsmodels: pip install 'zfnet[stats]'") from None
    answers = torch.stack([one, other]).double().cpu()
    valid = ((answers == 0) | (answers == 1)).all(0)
    answers = answers[:, valid]
    if any(picture.unique().numel() < 2 for picture in answers):
        return None
    clusters = [F.one_hot(c.cpu()[valid].unique(return_inverse=True)[1]) for c in (maps, images)]
    kinds = np.repeat([0, 1], [c.shape[1] for c in clusters])  # of intercepts: each kind has its own variance
    picture = torch.tensor([0.5, -0.5]).repeat_interleave(answers.shape[1])
    fixed = torch.stack([torch.ones_like(picture), picture], 1).numpy()
    model = BinomialBayesMixedGLM(answers.flatten().numpy(), fixed, torch.cat(clusters, 1).repeat(2, 1).numpy(), kinds)
    count = fixed.shape[1] + 2 + len(kinds)
    fit = model.fit_vb(np.zeros(count), np.ones(count), "L-BFGS-B")  # without a start it draws one
    mean, half = float(fit.fe_mean[1]), float(ndtri(0.975) * fit.fe_sd[1])
    return Estimate(mean, mean - half, mean + half, answers.shape[1])
