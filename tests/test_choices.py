"""Choices between two alternatives, against loops over pixels and cases whose answer is known."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from zfnet import InputError
from zfnet.analysis.choices import (
    answers,
    effective_field,
    extents,
    extremes,
    matched_extremes,
    nearer,
    smoothed,
    squares,
    under,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def seen(size, *boxes):
    """What units see, as boxes."""
    inside = torch.zeros(len(boxes), size, size, dtype=torch.bool)
    for plane, (top, left, bottom, right) in zip(inside, boxes, strict=True):
        plane[top:bottom, left:right] = True
    return inside


BOXES = (0, 0, 9, 9), (2, 0, 9, 5), (4, 4, 5, 5)


def test_a_units_rectangle():
    assert extents(seen(9, *BOXES)).tolist() == [list(box) for box in BOXES]


@pytest.mark.parametrize("wrong", [seen(5, (2, 2, 2, 2)), seen(5, (0, 0, 2, 2)) | seen(5, (3, 3, 5, 5))])
def test_what_is_no_rectangle_is_refused(wrong):
    with pytest.raises(InputError, match="rectangle"):
        extents(wrong)


def test_smoothing_leaves_what_is_even_and_adds_nothing_outside():
    inside = seen(16, (0, 0, 16, 16), (3, 0, 16, 11))
    assert torch.allclose(smoothed(inside.float(), inside), inside.float())
    spike = torch.zeros(2, 16, 16)
    spike[:, 8, 5] = 1
    smooth = smoothed(spike, inside, 1 / 8)
    assert smooth.flatten(1).argmax(1).tolist() == [8 * 16 + 5] * 2
    assert smooth[0, 8, 7] > smooth[0, 8, 8] > 0
    assert not smooth[~inside].any()
    assert torch.equal(smoothed(spike + 5 * ~inside, inside, 1 / 8), smooth)  # what lies outside counts for nothing


def test_smoothing_is_that_of_scipy():
    weights, inside = torch.rand(2, 40, 30, generator=seeded()).double(), torch.zeros(2, 40, 30, dtype=torch.bool)
    inside[0], inside[1, 5:, :21] = True, True
    smooth = smoothed(weights, inside)
    for plane, seen_, mine in zip(weights * inside, inside.double(), smooth, strict=True):
        sigma = [side / 16 for side in (seen_.any(1).sum().item(), seen_.any(0).sum().item())]
        blurred, weight = (gaussian_filter(x.numpy(), sigma, mode="constant", truncate=9) for x in (plane, seen_))
        expected = torch.from_numpy(blurred / weight.clip(min=1e-300)) * seen_
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-9)


def test_a_units_smoothing_is_that_of_its_own_box():
    weights = torch.rand(3, 20, 20, generator=seeded())
    inside = seen(20, (0, 0, 20, 20), (0, 0, 10, 10), (0, 0, 20, 20))
    smooth = smoothed(weights, inside)
    alone = smoothed(weights[1:2, :10, :10], inside[1:2, :10, :10])
    assert torch.allclose(smooth[1, :10, :10], alone[0], atol=1e-6)
    assert torch.allclose(smooth[::2], smoothed(weights[::2], inside[::2]))


def test_the_effective_field_leaves_out_a_units_own_map_and_image():
    weights, inside = torch.rand(6, 4, 4, generator=seeded()), torch.rand(6, 4, 4, generator=seeded(1)) > 0.3
    weights = weights * inside
    maps, images = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 0, 2, 1, 3])
    own = torch.tensor([[0, 0], [1, 2], [5, 9]])
    fields = effective_field(weights, inside, maps, images, own)
    for field, (m, i) in zip(fields, own.tolist(), strict=True):
        for row, column in itertools.product(range(4), repeat=2):
            rest = [n for n in range(6) if maps[n] != m and images[n] != i and inside[n, row, column]]
            expected = sum(float(weights[n, row, column] / weights[n].sum()) for n in rest) / max(len(rest), 1)
            assert float(field[row, column]) == pytest.approx(expected, abs=1e-6)


def test_without_others_the_field_is_even():
    weights = torch.rand(2, 3, 3, generator=seeded())
    ones = torch.ones(2, 3, 3, dtype=torch.bool)
    assert (effective_field(weights, ones, torch.zeros(2), torch.arange(2), torch.tensor([[0, 0]])) == 1).all()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 3), st.integers(0, 3))
def test_squares_lie_within_what_a_unit_sees_and_reach_its_ends(rows, columns, top, left):
    inside = seen(50, (top, left, top + rows, left + columns))
    boxes = squares(inside)[0]
    assert len(boxes) == 25
    sizes = (boxes[:, 2:] - boxes[:, :2]).unique(dim=0)
    assert sizes.tolist() == [[max(1, round(0.4 * rows)), max(1, round(0.4 * columns))]]
    assert boxes.amin(0)[:2].tolist() == [top, left]
    assert boxes.amax(0)[2:].tolist() == [top + rows, left + columns]
    assert boxes[0].tolist()[:2] == [top, left] and boxes[1, 0] == top and boxes[5, 1] == left  # row by row


def test_the_sum_under_a_square_is_that_of_its_pixels():
    weights, inside = torch.rand(3, 9, 9, generator=seeded()), seen(9, *BOXES)
    boxes = squares(inside)
    for plane, row, found in zip(weights, boxes, under(weights, boxes), strict=True):
        for (top, left, bottom, right), value in zip(row.tolist(), found.tolist(), strict=True):
            assert value == pytest.approx(float(plane[top:bottom, left:right].sum()))


def test_extremes_and_their_ties():
    values = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    ends, differ = extremes(values, seeded())
    assert ends[0].tolist() == [1, 0] and differ.tolist() == [True, False]
    ties = torch.tensor([[0.0, 0.0, 0.0, 5.0]])
    assert {int(extremes(ties, seeded(s))[0][0, 0]) for s in range(30)} == {0, 1, 2}


def test_matched_extremes_are_neighbours_in_the_controls_order():
    values = torch.tensor([[0.0, 9.0, 4.0, 3.0], [5.0, 1.0, 2.0, 9.0], [2.0, 2.0, 2.0, 2.0]])
    control = torch.tensor([[1.0, 4.0, 2.0, 3.0]]).expand(3, 4)  # order: 0, 2, 3, 1
    ends, differ = matched_extremes(values, control, seeded())
    assert ends[:2].tolist() == [[3, 1], [1, 3]] and differ.tolist() == [True, True, False]
    random = torch.rand(500, 25, generator=seeded(1))
    control = torch.rand(500, 25, generator=seeded(2))
    ends, _ = matched_extremes(random, control, seeded())
    right = control.take_along_dim(ends, 1)
    place = control.argsort(1).argsort(1).take_along_dim(ends, 1)
    assert (place.diff(dim=1).abs() == 1).all() and (random.take_along_dim(ends, 1).diff(dim=1) > 0).all()
    assert 0.4 < float((right[:, 0] > right[:, 1]).double().mean()) < 0.6  # the control is at chance


def test_a_tie_is_half_right():
    assert answers(torch.tensor([[2.0, 1.0], [1.0, 2.0], [1.0, 1.0]])).tolist() == [1, 0, 0.5]


def test_the_query_that_is_like_the_strongest_references_is_taken():
    strongest, weakest = torch.tensor([[1.0, 0.0]]).expand(9, 2), torch.tensor([[0.0, 1.0]]).expand(9, 2)
    one, other = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.2, 0.8]])
    found = nearer(one, other, strongest[None], weakest[None])
    assert found > 0 and nearer(other, one, strongest[None], weakest[None]) == -found
    assert nearer(one, one, strongest[None], weakest[None]) == 0
