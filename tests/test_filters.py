"""Filters in numbers: Parseval, gratings in their bands, and the sampling theorem behind the aliased share."""

import math

import pytest
import torch

from zfnet import InputError
from zfnet.analysis.filters import (
    aliased_energy,
    dominance,
    faint,
    filter_rms,
    lattice,
    mean_aliased,
    power,
    spectral_energy,
    together,
)


def grating(rows: float, columns: float, size: int = 24, phase: float = 0.3) -> torch.Tensor:
    """A grating (1, 1, size, size) of so many periods along each side; float64."""
    at = torch.arange(size, dtype=torch.float64) / size
    return torch.cos(2 * math.pi * (rows * at[:, None] + columns * at[None, :]) + phase)[None, None]


@pytest.fixture
def weight():
    return torch.randn(5, 3, 7, 7, dtype=torch.float64)


@pytest.mark.parametrize("size", [7, 8, 31])
def test_power_is_the_transform_written_out_and_keeps_the_energy(weight, size):
    energy, frequency = power(weight, size)
    at = torch.arange(7, dtype=torch.float64)
    for u, v in ((0, 0), (2, 5), (size - 1, 3)):
        angle = 2 * math.pi * (frequency[u] * at[:, None] + frequency[v] * at[None, :])
        direct = (weight * angle.cos()).sum((2, 3)) ** 2 + (weight * angle.sin()).sum((2, 3)) ** 2
        torch.testing.assert_close(energy[:, u, v], direct.sum(1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(energy.sum((1, 2)) / size**2, weight.square().sum((1, 2, 3)), rtol=1e-10, atol=0)


def test_a_signal_larger_than_the_size_is_not_cut():
    assert power(torch.ones(1, 3, 9, 12), 4)[0].shape == (1, 12, 12)


def test_shares_sum_to_one_whatever_the_scale(weight):
    shares = spectral_energy(weight, (0.1, 0.25, 0.4))
    assert shares.shape == (5, 4)
    torch.testing.assert_close(shares.sum(1), torch.ones(5, dtype=torch.float64), rtol=1e-10, atol=0)
    torch.testing.assert_close(spectral_energy(-3 * weight, (0.1, 0.25, 0.4)), shares, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("signal", "band"),
    [
        (torch.ones(1, 1, 24, 24, dtype=torch.float64), 0),  # a constant
        (grating(0, 2), 0),
        (grating(3, 2), 0),
        (grating(4, 0), 0),  # 1/6: a cut-off belongs below
        (grating(5, 0), 1),
        (grating(4, 4), 1),
        (grating(-6, 5), 1),
        (grating(0, 9), 2),
        (grating(7, -7), 2),
        (grating(12, 12, phase=0), 2),  # a checkerboard
    ],
)
def test_a_grating_is_all_in_its_band(signal, band):
    expected = torch.zeros(1, 3, dtype=torch.float64)
    expected[0, band] = 1
    torch.testing.assert_close(spectral_energy(signal, size=24), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [7, 11])
def test_small_filters_are_mostly_where_their_grating_is(size):
    middle = grating(size / 4, 0, size, phase=0)  # a quarter cycle per pixel
    for signal, band in ((torch.ones_like(middle), 0), (middle, 1), (grating(size / 2, size / 2, size, 0), 2)):
        shares = spectral_energy(signal)[0]
        assert int(shares.argmax()) == band and shares[band] > 0.7


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_what_is_not_aliased_comes_back_from_every_stride_th_place(stride):
    size = 24
    coarse = sum(grating(r, c, size, r + c) for r, c in ((0, 0), (1, 2), (-2, 1), (size // (2 * stride) - 1, 0)))
    assert float(aliased_energy(coarse, stride, size)) < 1e-12
    kept = torch.zeros_like(coarse)
    kept[..., ::stride, ::stride] = coarse[..., ::stride, ::stride]
    spectrum = torch.fft.fft2(kept)
    passed = torch.fft.fftfreq(size, dtype=torch.float64).abs() < 1 / (2 * stride)
    back = torch.fft.ifft2(spectrum * (passed[:, None] & passed[None, :])).real * stride**2
    torch.testing.assert_close(back, coarse, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("stride", "periods", "looks_like"), [(4, 5, -1), (4, 7, 1), (3, 6, -2), (2, 11, -1)])
def test_what_is_aliased_looks_like_a_coarser_grating(stride, periods, looks_like):
    fine, coarse = grating(0, periods), grating(0, looks_like)
    torch.testing.assert_close(fine[..., ::stride], coarse[..., ::stride], rtol=0, atol=1e-12)
    assert float(aliased_energy(fine, stride, 24)) == pytest.approx(1, abs=1e-12)
    assert float(aliased_energy(coarse, stride, 24)) == pytest.approx(0, abs=1e-12)


def test_aliased_of_noise_is_what_the_smaller_square_leaves():
    noise = torch.randn(60, 3, 16, 16)
    for stride in (1, 2, 4):
        assert float(aliased_energy(noise, stride).mean()) == pytest.approx(1 - 1 / stride**2, abs=0.02)
    assert not aliased_energy(noise, 1).any()


def test_a_grating_as_fine_as_the_lattice_is_not_held():
    for periods, share in ((5, 0), (6, 1)):  # of 24 pixels: 6 is a quarter cycle per pixel
        assert float(aliased_energy(grating(0, periods), 2, 24)) == pytest.approx(share, abs=1e-12)
    assert not aliased_energy(grating(12, 12, phase=0), 1, 24).any()


def test_the_mean_is_of_the_signals_that_count(weight):
    which = torch.tensor([True, False, True, False, False])
    assert mean_aliased(weight, 2, which) == pytest.approx(float(aliased_energy(weight, 2)[[0, 2]].mean()))
    assert mean_aliased(weight, 2) == pytest.approx(float(aliased_energy(weight, 2).mean()))
    assert mean_aliased(weight, 2, which & False) is None


def gratings(cycles: float) -> torch.Tensor:
    """Filters (12, 3, 7, 7): gratings of so many cycles per pixel in all directions, fading to the edge."""
    at, angle = torch.arange(7) - 3.0, torch.arange(12)[:, None, None] * math.pi / 12
    wave = torch.cos(2 * math.pi * cycles * (angle.cos() * at[:, None] + angle.sin() * at) + angle)
    return (wave * torch.exp(-(at[:, None] ** 2 + at**2) / 8))[:, None].expand(-1, 3, -1, -1)


def projected(weight: torch.Tensor, signal: torch.Tensor, stride: int) -> torch.Tensor:
    return torch.nn.functional.conv_transpose2d(signal, weight, stride=stride)


@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("cycles", [0.15, 0.3, None])
def test_filters_placed_without_order_keep_their_own_spectrum(stride, cycles):
    weight = torch.randn(12, 3, 7, 7) if cycles is None else gratings(cycles)
    weight = weight * torch.arange(1, 13)[:, None, None, None]  # strong ones count for more
    pixels = projected(weight, torch.randn(150, 12, 10, 10), stride)
    assert mean_aliased(pixels, stride) == pytest.approx(mean_aliased(together(weight), stride), abs=0.015)
    assert lattice(pixels, stride) == pytest.approx(lattice(together(weight), stride), rel=0.1)
    summed = power(weight)[0].sum(0, keepdim=True)
    torch.testing.assert_close(power(together(weight))[0], summed, rtol=1e-4, atol=1e-4 * float(summed.max()))


@pytest.mark.parametrize("weight", [gratings(0.15), torch.ones(12, 3, 7, 7)], ids=["gratings", "boxes"])
def test_a_lattice_stands_out_from_what_its_filters_have(weight):
    everywhere, every_second = torch.randn(40, 12, 1, 1).expand(-1, -1, 13, 13), torch.zeros(40, 12, 13, 13)
    every_second[..., ::2, ::2] = everywhere[..., ::2, ::2]  # four pixels apart
    for signal in (everywhere, every_second):
        assert lattice(projected(weight, signal, 2), 2) > 5 * lattice(together(weight), 2)


@pytest.mark.parametrize("stride", [2, 3, 4, 10])
def test_lattices_are_told_from_noise_by_their_frequency(stride):
    noise = torch.randn(40, 3, 64, 64)
    assert lattice(noise, stride) == pytest.approx(1, abs=0.05)
    noise[..., ::stride, :] += stride
    assert lattice(noise, stride) > 2
    assert lattice(noise, stride) == pytest.approx(lattice(-7 * noise, stride), rel=1e-5)
    which = torch.arange(40) < 30
    assert lattice(noise, stride, which) == pytest.approx(lattice(noise[:30], stride), rel=1e-6)


def test_another_lattice_is_none():
    noise = torch.randn(40, 3, 64, 64)
    noise[..., ::3] += 3
    assert lattice(noise, 3) > 2
    for stride in (2, 4):
        assert lattice(noise, stride) == pytest.approx(1, abs=0.1)


def test_without_a_stride_or_power_there_is_no_lattice(weight):
    assert lattice(weight, 1) is lattice(weight * 0, 2) is lattice(weight[:0], 2) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype):
    weight = (300 * torch.randn(4, 3, 7, 7)).to(dtype)  # its squares are too large for float16
    torch.testing.assert_close(filter_rms(weight), filter_rms(weight.float()))
    torch.testing.assert_close(spectral_energy(weight), spectral_energy(weight.float()))
    torch.testing.assert_close(aliased_energy(weight, 2), aliased_energy(weight.float(), 2))


def test_a_signal_that_is_zero_has_no_shares():
    nothing = torch.zeros(2, 3, 7, 7)
    assert not spectral_energy(nothing).any()
    assert not aliased_energy(nothing, 4).any()


def test_sizes_of_filters():
    weight = torch.tensor([3.0, 1.0, 1.0, 0.09, 0.11, 1.0, 0.0])[:, None, None, None] * torch.ones(7, 3, 2, 2)
    weight[:, 1] *= -1
    torch.testing.assert_close(filter_rms(weight), torch.tensor([3.0, 1.0, 1.0, 0.09, 0.11, 1.0, 0.0]))
    assert dominance(weight) == 3
    assert faint(weight).tolist() == [False, False, False, True, False, False, True]
    assert faint(weight, 0.5).sum() == 3
    assert faint(weight * 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: spectral_energy(x, (0.3, 0.2)), r"bands are \[0.3, 0.2\]; give increasing"),
        (lambda x: spectral_energy(x, (0.0,)), "between 0 and 1"),
        (lambda x: aliased_energy(x, 0), "stride is 0"),
        (lambda x: power(x[0]), r"a tensor \(3, 7, 7\)"),
        (lambda x: power(x.long()), "of torch.int64"),
    ],
)
def test_refused_in_words(call, message):
    with pytest.raises(InputError, match=message):
        call(torch.zeros(2, 3, 7, 7))
