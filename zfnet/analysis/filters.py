"""Numbers for filters and projections: does one dominate, how fine are they, do they alias? ::

    power(f) = sum over channels |DFT(signal)(f)|^2

f is a pair of frequencies, along rows and columns, each in -1/2..1/2 cycles per pixel.

A filter's power is its response to gratings. The filter keeps its mean, and it is zero-padded, which puts filters of
every size on one frequency axis. A layer of stride s keeps every s-th position: gratings of 1 / (2 s) cycles per pixel
or more along rows or columns then look like coarser ones, or vanish. Zeiler & Fergus (2014), Figure 6.

A projection is a sum of first-layer filters f, placed on the lattice of the first layer's stride. If the signal on it
were unordered (independent numbers of mean 0 and one variance), the projection's expected power would be proportional
to the sum over f of power(f), whatever the stride: to the power of `together(f)`. More power than that at the lattice's
own frequencies, the multiples of 1 / s, comes from the lattice.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from zfnet.errors import InputError
from zfnet.training.loop import filter_rms

BANDS = (1 / 6, 1 / 3)  # cycles per pixel: low, middle and high are the thirds of what a row of pixels can hold
SIZE = 128  # pixels: smaller signals are zero-padded to it
FAINT = 0.1
LINE = 1 / 32  # cycles per pixel to both sides of a lattice's frequency: what 32 pixels can tell apart


def dominance(weight: Tensor) -> float:
    """The largest filter RMS over the median one: 1 where all are alike; infinite where half of them are zero."""
    rms = filter_rms(weight)
    return float(rms.max() / rms.quantile(0.5))


def faint(weight: Tensor, share: float = FAINT) -> Tensor:
    """Which filters (C,), bool, have an RMS below `share` of the median one: their weights hardly left zero."""
    rms = filter_rms(weight)
    return (rms == 0) | (rms < share * rms.quantile(0.5))


def power(signal: Tensor, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """The power (N, n, n) of signals (N, C, H, W), summed over channels, and the n frequencies in cycles per pixel.

    n is `size` or the signal's longer side, whichever is larger. Power sums to n^2 times the signal's sum of squares.
    """
    if signal.ndim != 4 or not signal.is_floating_point():
        raise InputError(f"a tensor {tuple(signal.shape)} of {signal.dtype} has no spectrum; give float (N, C, H, W)")
    signal = signal.to(torch.promote_types(signal.dtype, torch.float32))
    n = max(size, *signal.shape[2:])
    powers = [signal.new_zeros(0, n, n)]
    if len(signal):  # some FFT libraries refuse to transform nothing
        powers += [torch.fft.fft2(part, s=(n, n)).abs().square().sum(1) for part in signal.split(64)]
    return torch.cat(powers), torch.fft.fftfreq(n, dtype=signal.dtype, device=signal.device)


def spectral_energy(signal: Tensor, bands: Sequence[float] = BANDS, size: int = SIZE) -> Tensor:
    """The shares (N, bands + 1) of the power in bands of frequencies, coarse to fine; they sum to 1, or are all zero.

    Args:
        signal, size: see `power`.
        bands: increasing radial cut-offs in cycles per pixel, each part of the band below it; the finest frequency is
            1/2 along a row, and 0.71 along a diagonal.
    """
    edges = [-1.0, *bands, 1.0]
    if any(low >= high for low, high in pairwise(edges)) or (bands and bands[0] <= 0):
        raise InputError(f"bands are {list(bands)}; give increasing cut-offs between 0 and 1 cycles per pixel")
    energy, frequency = power(signal, size)
    radius = torch.hypot(frequency[:, None], frequency[None, :])
    return torch.stack([_share(energy, (radius > low) & (radius <= high)) for low, high in pairwise(edges)], 1)


def aliased_energy(signal: Tensor, stride: int, size: int = SIZE) -> Tensor:
    """The share (N,) of the power of signals that is lost if only every `stride`-th row and column is kept.

    It lies at and above 1 / (2 stride) cycles per pixel along rows or columns. In a filter, the layer folds it onto
    coarser frequencies. In a projection, it comes from the layer's lattice and the fine structure of its filters, not
    from what its maps can distinguish. For white noise it is 1 - 1 / stride^2.

    Args:
        signal, size: see `power`.
        stride: pixels.
    """
    if stride < 1:
        raise InputError(f"stride is {stride}; give a positive number of pixels")
    energy, frequency = power(signal, size)
    above = (frequency.abs() >= 1 / (2 * stride)) & (stride > 1)  # a stride of 1 keeps 1/2 as well
    return _share(energy, above[:, None] | above[None, :])


def mean_aliased(signal: Tensor, stride: int, which: Tensor | None = None) -> float | None:
    """The mean of `aliased_energy` over `which` (N,), bool, signals, or over all; None where there are none."""
    signal = signal if which is None else signal[which]
    return float(aliased_energy(signal, stride).mean()) if len(signal) else None


def lattice(signal: Tensor, stride: int, which: Tensor | None = None, size: int = SIZE) -> float | None:
    """How many times as much power signals have at the frequencies of a stride's lattice as beside them.

    At them is within 1/32 cycles per pixel of 1 / stride, 2 / stride, ... along rows or columns; beside them is up to
    2/32. It is about 1 for white noise and for images; None where there is no power beside them, and for a stride of 1.

    Args:
        signal, size: see `power`; each signal counts alike.
        stride: pixels.
        which: (N,) bool, the signals that count; None: all.
    """
    energy, frequency = power(signal if which is None else signal[which], size)
    lines, width = (frequency * stride).round(), min(LINE, 1 / (4 * stride))
    away = (frequency - lines / stride).abs().where(lines != 0, 1.0)
    shares = (energy.sum(1) + energy.sum(2)) / energy.sum((1, 2)).clamp(min=torch.finfo(energy.dtype).tiny)[:, None]
    at, beside = shares[:, away < width], shares[:, (away >= width) & (away < 2 * width)]
    return float(at.mean() / beside.mean()) if stride > 1 and beside.any() else None


def together(weight: Tensor) -> Tensor:
    """Filters (C, channels, k, k) as one signal, whose power is the sum of theirs."""
    return weight.flatten(0, 1)[None]


def _share(energy: Tensor, selected: Tensor) -> Tensor:
    total = energy.sum((1, 2))
    return (energy * selected).sum((1, 2)) / total.where(total > 0, 1)
