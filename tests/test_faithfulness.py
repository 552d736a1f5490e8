"""Which pixels a mask has, edges of images, and what stands where pixels are removed."""

import pytest
import torch

from zfnet import InputError
from zfnet.analysis.faithfulness import FILLS, energy, ground, ranked, sobel, strongest


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_ranks_are_an_order_that_begins_inside():
    inside = torch.ones(2, 6, 7, dtype=torch.bool)
    inside[1, :2] = False
    weights = torch.randn(2, 6, 7, generator=seeded(1))
    rank = ranked(weights, inside, seeded())
    assert rank.flatten(1).sort(1).values.equal(torch.arange(42).expand(2, 42))
    assert (rank[1][~inside[1]] >= inside[1].sum()).all()
    assert rank.equal(ranked(weights, inside, seeded()))
    assert rank[0].flatten().argsort().equal(weights[0].flatten().argsort(descending=True))
    equal = [ranked(torch.zeros(2, 6, 7), inside, seeded(n)) for n in (0, 1)]
    assert not equal[0].equal(equal[1])  # drawn, and not from the upper left


def test_derivatives_of_each_channel():
    crops = torch.zeros(1, 2, 6, 7)
    crops[:, 0, :, 4:], crops[:, 1, 2:] = 1, -1  # an edge that runs down, and one that runs across
    inside = torch.ones(1, 6, 7, dtype=torch.bool)
    across, down = sobel(crops, inside).chunk(2, 1)
    expected = torch.zeros(2, 2, 6, 7)
    expected[0, 0, :, 3:5], expected[1, 1, 1:3] = 4, -4
    assert across[0].equal(expected[0]) and down[0].equal(expected[1])
    inside[..., :4] = False  # the image ends there: no edge of its own
    assert not sobel(crops, inside)[..., :5].any() and sobel(crops, inside)[:, 3, 1:3, 5:].all()


@pytest.mark.parametrize(("percent", "count"), [(0, 0), (10, 3), (50, 14), (100, 28)])
def test_a_share_is_of_the_pixels_inside(percent, count):
    inside = torch.ones(1, 6, 7, dtype=torch.bool)
    inside[:, :2] = False
    rank = ranked(torch.rand(1, 6, 7, generator=seeded(1)), inside, seeded())
    chosen = strongest(rank, inside, percent)
    assert chosen.sum() == count and not (chosen & ~inside).any()


def test_what_stands_where_pixels_are_removed():
    crops = 3 + 2 * torch.randn(2, 3, 40, 40, generator=seeded())
    inside = torch.ones(2, 40, 40, dtype=torch.bool)
    inside[1, :10] = False
    crops = crops * inside[:, None]
    grey, blur, noise = (ground(crops, inside, fill, seeded()) for fill in FILLS)
    assert not grey.any()
    assert float(noise.mean()) == pytest.approx(3, abs=0.1) and float(noise.std()) == pytest.approx(2, abs=0.1)
    assert float((blur - 3).abs()[inside[:, None].expand_as(blur)].max()) < 1.5  # no darker where the image ends
    flat = ground(torch.full_like(crops, 5) * inside[:, None], inside, "blur", seeded())
    torch.testing.assert_close(flat[1, :, 10:], torch.full((3, 30, 40), 5.0))
    with pytest.raises(InputError, match=r"no fill 'gray' .did you mean 'grey'"):
        ground(crops, inside, "gray", seeded())


@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels(channels):
    generator = seeded(3)
    crops, signal = torch.rand(2, 2, channels, 6, 6, generator=generator)
    inside = torch.ones(2, 6, 6, dtype=torch.bool)
    assert all(ground(crops, inside, fill, generator).shape == crops.shape for fill in FILLS)
    torch.testing.assert_close(energy(signal), (signal**2).sum(1))


def test_half_precision_does_not_overflow():
    crops = (300 + 20 * torch.randn(2, 3, 20, 20, generator=seeded())).half()  # their squares are too large
    inside = torch.ones(2, 20, 20, dtype=torch.bool)
    assert energy(crops).equal(energy(crops.float()))
    for fill in FILLS:
        filled = ground(crops, inside, fill, seeded())
        assert filled.dtype == torch.float16
        torch.testing.assert_close(filled, ground(crops.float(), inside, fill, seeded()).half())
