"""Rendering: zero is grey, scale does not matter, and every tile is where it should be."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zfnet import InputError
from zfnet.rendering import GREY, contrast, grid, on_image, outside, resized, saturated, signed_image


@pytest.fixture
def signals():
    return torch.randn(4, 3, 6, 5, generator=torch.Generator().manual_seed(0))


def test_zero_is_grey(signals):
    signals[:, :, 2] = 0
    assert (signed_image(signals)[:, :, 2] == GREY).all()
    assert (signed_image(torch.zeros(2, 3, 4, 4)) == GREY).all()


def test_images_lie_in_their_range(signals):
    image = signed_image(signals, quantile=0.5)
    assert image.min() == 0
    assert image.max() == 1


@pytest.mark.parametrize("factor", [1e-20, 0.3, 7.0, 1e20])
def test_scale_does_not_matter(signals, factor):
    torch.testing.assert_close(signed_image(signals * factor), signed_image(signals), rtol=1e-5, atol=1e-5)


def test_sign_mirrors_the_picture_about_grey(signals):
    torch.testing.assert_close(signed_image(-signals), 2 * GREY - signed_image(signals))


def test_the_range_ends_at_the_quantile():
    signal = torch.tensor([0.0, 0.0, 1.0, -2.0, 3.0, -4.0]).reshape(1, 1, 2, 3)
    expected = torch.tensor([0.0, 0.0, 1 / 3, -2 / 3, 1.0, -1.0]).reshape(1, 1, 2, 3)
    torch.testing.assert_close(contrast(signal, quantile=0.75), expected)
    assert contrast(signal, quantile=1.0).flatten().tolist() == [0, 0, 0.25, -0.5, 0.75, -1]


def test_together_or_each_by_its_own_range():
    signals = torch.tensor([1.0, 2.0, 4.0, 8.0])[:, None, None, None]
    assert contrast(signals).flatten().tolist() == [1, 1, 1, 1]
    assert contrast(signals, together=2, quantile=1.0).flatten().tolist() == [0.5, 1, 0.5, 1]


@pytest.mark.parametrize("wrong", [{"quantile": 0.0}, {"quantile": 1.5}, {"together": 3}, {"together": 0}])
def test_contrast_refuses(signals, wrong):
    with pytest.raises(InputError):
        contrast(signals, **wrong)


@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 3))
def test_grid_puts_tiles_in_reading_order(count, columns, gap):
    tiles = torch.arange(1.0, count + 1)[:, None, None, None].expand(-1, 3, 2, 3) / 10
    whole = grid(tiles, columns, gap, fill=-1.0)
    rows = -(-count // columns)
    assert whole.shape == (3, rows * (2 + gap) - gap, columns * (3 + gap) - gap)
    for n in range(count):
        top, left = n // columns * (2 + gap), n % columns * (3 + gap)
        assert (whole[:, top : top + 2, left : left + 3] == tiles[n]).all()
    assert (whole == -1).sum() == whole.numel() - tiles.numel()


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (3, 2)])
def test_grey_tiles_become_rgb(count, columns):
    tiles = torch.rand(count, 1, 4, 5)
    assert torch.equal(grid(tiles, columns, 1), grid(tiles.expand(-1, 3, -1, -1), columns, 1))


def test_grid_refuses_no_columns():
    with pytest.raises(InputError, match="columns"):
        grid(torch.zeros(1, 3, 2, 2), 0)


def test_saturation_stretches_colours_about_each_pixels_grey():
    image = torch.tensor([0.3, 0.5, 0.4])[None, :, None, None].expand(2, 3, 4, 5)
    for factor, expected in ((0, [0.4, 0.4, 0.4]), (1, [0.3, 0.5, 0.4]), (2, [0.2, 0.6, 0.4]), (9, [0.0, 1.0, 0.4])):
        torch.testing.assert_close(saturated(image, factor)[1, :, 2, 3], torch.tensor(expected))


def test_outside_marks_what_leaves_the_image():
    boxes = torch.tensor([[-1, 0, 2, 3], [2, 3, 5, 6]])
    mask = outside(boxes, (4, 5), (3, 3))
    assert mask[0, 0].int().tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert mask[1, 0].int().tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 1]]


def test_resizing_keeps_a_plain_image_plain_and_the_same_size_the_same(signals):
    torch.testing.assert_close(resized(torch.full((1, 3, 7, 7), 0.3), (20, 16)), torch.full((1, 3, 20, 16), 0.3))
    assert resized(signals, (6, 5)) is signals


def test_resizing_cancels_fine_grain():
    checks = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    assert resized(checks.expand(1, 3, 16, 16), (4, 4)).abs().max() < 0.2


def test_canvases_in_their_places():
    canvases = torch.arange(1.0, 10).view(1, 1, 3, 3).repeat(3, 1, 1, 1)
    boxes = torch.tensor([[0, 1, 3, 4], [-1, -2, 2, 1], [2, 3, 5, 6]])
    images = on_image(canvases, boxes, (3, 4), fill=-1.0)[:, 0].int().tolist()
    assert images == [
        [[-1, 1, 2, 3], [-1, 4, 5, 6], [-1, 7, 8, 9]],
        [[6, -1, -1, -1], [9, -1, -1, -1], [-1, -1, -1, -1]],
        [[-1, -1, -1, -1], [-1, -1, -1, -1], [-1, -1, -1, 1]],
    ]
    smaller = on_image(canvases[:1], torch.tensor([[1, 1, 3, 2]]), (3, 4), fill=-1.0)
    assert torch.equal(smaller[0, :, 1:3, 1:2], canvases[0, :, :2, :1]) and int((smaller == -1).sum()) == 10
    far = on_image(canvases[:1], torch.tensor([[5, 0, 8, 3]]), (3, 4))
    assert not far.any()
