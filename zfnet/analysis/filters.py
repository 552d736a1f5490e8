"""What the eye is asked of filters and projections, in numbers: does one dominate, how fine are they, do they alias?

    power(f) = sum over channels |DFT(signal)(f)|^2        f: rows and columns, cycles per pixel, each in -1/2..1/2

A filter's power is its response to gratings, so it is taken of the filter as it is: with its mean, and zero-padded,
which puts filters of every size on one frequency axis.  A layer of stride s keeps every s-th place: gratings of more
than 1 / (2 s) cycles per pixel along rows or columns then look like coarser ones.  Zeiler & Fergus (2014), Figure 6.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from zfnet.errors import InputError

BANDS = (1 / 6, 1 / 3)  # cycles per pixel: low, middle and high are the thirds of what a row of pixels can hold
SIZE = 128  # pixels: smaller signals are zero-padded to it
FAINT = 0.1


def filter_rms(weight: Tensor) -> Tensor:
    """The root mean square (C,) of each filter of weight (C, ...), over its own weights."""
    return weight.flatten(1).square().mean(1).sqrt()


def dominance(weight: Tensor) -> float:
    """The largest filter RMS over the median one: 1 where all are alike; infinite where half of them are zero."""
    rms = filter_rms(weight)
    return float(rms.max() / rms.quantile(0.5))


def faint(weight: Tensor, share: float = FAINT) -> Tensor:
    """Which filters (C,) have an RMS below `share` of the median one: their weights hardly left zero."""
    rms = filter_rms(weight)
    return (rms == 0) | (rms < share * rms.quantile(0.5))


def power(signal: Tensor, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """The power (N, n, n) of signals (N, C, H, W), summed over channels, and the n frequencies in cycles per pixel.

    n is `size`, or the signal's longer side where that is more.  Power sums to n^2 times the signal's sum of squares.
    """
    if signal.ndim != 4 or not signal.is_floating_point():
        raise InputError(f"a tensor {tuple(signal.shape)} of {signal.dtype} has no spectrum; give float (N, C, H, W)")
    n = max(size, *signal.shape[2:])
    found = [signal.new_zeros(0, n, n)]
    if len(signal):  # some FFT libraries refuse to transform nothing
        found += [torch.fft.fft2(part, s=(n, n)).abs().square().sum(1) for part in signal.split(64)]
    return torch.cat(found), torch.fft.fftfreq(n, dtype=signal.dtype, device=signal.device)


def spectral_energy(signal: Tensor, bands: Sequence[float] = BANDS, size: int = SIZE) -> Tensor:
    """The shares (N, bands + 1) of the power of signals (N, C, H, W) between radial cut-offs, coarse to fine.

    bands: increasing, in cycles per pixel; 1/2 is the finest that a row holds, a diagonal holds 0.71.  A cut-off
    belongs to the band below it.  Shares sum to 1; those of a signal that is zero are zero.
    """
    edges = [-1.0, *bands, 1.0]
    if any(low >= high for low, high in pairwise(edges)) or (bands and bands[0] <= 0):
        raise InputError(f"bands are {list(bands)}; give increasing cut-offs between 0 and 1 cycles per pixel")
    energy, frequency = power(signal, size)
    radius = torch.hypot(frequency[:, None], frequency[None, :])
    return torch.stack([_share(energy, (radius > low) & (radius <= high)) for low, high in pairwise(edges)], 1)


def aliased_energy(signal: Tensor, stride: int, size: int = SIZE) -> Tensor:
    """The share (N,) of the power of signals (N, C, H, W) that one value in `stride` rows and columns cannot hold.

    It lies above 1 / (2 stride) cycles per pixel along rows or columns.  Of a filter: what the layer takes in and folds
    onto coarser frequencies.  Of a projection: what comes from the layer's lattice of places and its filters' fine
    structure, not from what its maps can tell apart.  White noise: 1 - 1 / stride^2.
    """
    if stride < 1:
        raise InputError(f"stride is {stride}; give a positive number of pixels")
    energy, frequency = power(signal, size)
    above = frequency.abs() > 1 / (2 * stride)
    return _share(energy, above[:, None] | above[None, :])


def _share(energy: Tensor, where: Tensor) -> Tensor:
    total = energy.sum((1, 2))
    return (energy * where).sum((1, 2)) / total.where(total > 0, 1)
