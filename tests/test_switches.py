"""`unpool` is the transpose of `pool`: the law for any geometry, then the numbers of one small plane."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from zfnet import InputError, SwitchMaxPool2d, pool, unpool

COLLISIONS = ("add", "overwrite", "max")


@st.composite
def poolings(draw: st.DrawFn) -> tuple[tuple[int, ...], dict[str, Any]]:
    """A shape (N, C, H, W) and arguments of a pooling that fits it."""
    kernel = draw(st.tuples(*[st.integers(1, 4)] * 2))
    geometry = {
        "kernel_size": kernel,
        "stride": draw(st.none() | st.tuples(*[st.integers(1, 4)] * 2)),
        "padding": tuple(draw(st.integers(0, k // 2)) for k in kernel),
        "ceil_mode": draw(st.booleans()),
    }
    plane = tuple(draw(st.integers(k, 12)) for k in kernel)
    return (draw(st.integers(1, 3)), draw(st.integers(1, 3)), *plane), geometry


def gather(x: Tensor, switches: Tensor) -> Tensor:
    return x.flatten(2).gather(2, switches.flatten(2)).view_as(switches)


@settings(max_examples=150, deadline=None)
@given(poolings(), st.integers(0, 2**31))
def test_unpool_is_the_transpose_of_pool(pooling: tuple[tuple[int, ...], dict[str, Any]], seed: int) -> None:
    shape, geometry = pooling
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(shape, generator=generator, dtype=torch.float64)
    values, switches = pool(pooled, **geometry)
    # the switches fix a linear map: x -> what x has at the switches
    x = torch.randint(-9, 10, shape, generator=generator).double()
    v = torch.randint(-9, 10, values.shape, generator=generator).double()
    assert (unpool(v, switches, shape[2:]) * x).sum() == (v * gather(x, switches)).sum()  # integers: exact
    assert torch.equal(gather(pooled, switches), values)


@settings(max_examples=100, deadline=None)
@given(poolings(), st.integers(0, 2**31), st.booleans())
def test_pool_is_torchs(pooling: tuple[tuple[int, ...], dict[str, Any]], seed: int, ties: bool) -> None:
    shape, geometry = pooling
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x = x.round() if ties else x
    values, switches = pool(x, **geometry)
    assert torch.equal(values, F.max_pool2d(x, **geometry))
    assert switches.dtype == torch.int64 and switches.shape == values.shape


@settings(max_examples=60, deadline=None)
@given(poolings(), st.integers(0, 2**31))
def test_the_first_of_equal_values_wins(pooling: tuple[tuple[int, ...], dict[str, Any]], seed: int) -> None:
    shape, geometry = pooling
    x = torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(seed)).float()
    _, switches = pool(x, **geometry)
    rows, columns = shape[2:]
    stride = geometry["stride"] or geometry["kernel_size"]
    for n, c, i, j in torch.cartesian_prod(*map(torch.arange, switches.shape)).view(-1, 4).tolist():
        top, left = i * stride[0] - geometry["padding"][0], j * stride[1] - geometry["padding"][1]
        window = [
            r * columns + s
            for r in range(max(top, 0), min(top + geometry["kernel_size"][0], rows))
            for s in range(max(left, 0), min(left + geometry["kernel_size"][1], columns))
        ]
        plane = x[n, c].flatten().tolist()
        assert switches[n, c, i, j] == max(window, key=lambda place: (plane[place], -place))


# 3x3 windows, stride 2: the 9 in the middle lies in all four and wins them, also against the 9 that comes after it
PLANE = [[1, 2, 3, 0, 7], [4, 0, 5, 6, 0], [0, 8, 9, 1, 2], [3, 4, 0, 0, 1], [9, 1, 2, 5, 0]]
SENT = [[1, 4], [-2, 3]]
BACK = {
    "add": [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 6, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
    "overwrite": [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 3, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
    "max": [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 4, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
}


@pytest.mark.parametrize("collisions", COLLISIONS)
def test_worked_example_one_place_wins_all(collisions: str) -> None:
    values, switches = pool(torch.tensor([[PLANE]]).float(), 3, 2)
    assert values.tolist() == [[[[9, 9], [9, 9]]]]
    assert switches.tolist() == [[[[12, 12], [12, 12]]]]
    signal = unpool(torch.tensor([[SENT]]).float(), switches, (5, 5), collisions)
    assert signal.tolist() == [[BACK[collisions]]]


@pytest.mark.parametrize(
    ("collisions", "expected"),
    [
        ("add", [5, 0, 7, 0, 0, 0, -3, 0, 0]),
        ("overwrite", [5, 0, 7, 0, 0, 0, -2, 0, 0]),
        ("max", [5, 0, 7, 0, 0, 0, -1, 0, 0]),
    ],
    ids=COLLISIONS,
)
def test_worked_example_of_one_row(collisions: str, expected: list[int]) -> None:
    # windows [8 1 2] [2 1 2] [2 1 9] [9 1 3]: of the equal twos the first wins, and the 9 wins twice
    x = torch.tensor([8.0, 1, 2, 1, 2, 1, 9, 1, 3])[None, None, None]
    values, switches = pool(x, (1, 3), (1, 2))
    assert values.flatten().tolist() == [8, 2, 9, 9]
    assert switches.flatten().tolist() == [0, 2, 6, 6]
    signal = unpool(torch.tensor([5.0, 7, -1, -2])[None, None, None], switches, (1, 9), collisions)
    assert signal.flatten().tolist() == expected


def test_ceil_mode_gives_back_the_size_that_was_pooled() -> None:
    x = torch.randn(1, 2, 110, 110)
    values, switches = pool(x, 3, 2, ceil_mode=True)
    assert values.shape[2:] == (55, 55)
    signal = unpool(values, switches, (110, 110))
    assert signal.shape == x.shape
    won = signal != 0
    times = torch.zeros_like(x).flatten(2).scatter_add_(2, switches.flatten(2), torch.ones_like(values).flatten(2))
    assert torch.equal(signal[won], (x * times.view_as(x))[won])  # each value where it was, once for each window


@pytest.mark.parametrize("collisions", COLLISIONS)
def test_the_same_again_gives_the_same_bits(collisions: str) -> None:
    x = F.avg_pool2d(torch.randn(2, 8, 60, 60), 5, 1)  # smooth: many windows share a maximum
    values, switches = pool(x, 3, 2, ceil_mode=True)
    signal = torch.randn_like(values)
    first = unpool(signal, switches, (56, 56), collisions)
    assert all(torch.equal(first, unpool(signal, switches, (56, 56), collisions)) for _ in range(5))


def test_overwrite_keeps_the_last_window_in_reading_order() -> None:
    x = F.avg_pool2d(torch.randn(2, 3, 30, 30), 5, 1)
    values, switches = pool(x, 3, 2)
    signal = torch.randn_like(values)
    expected = torch.zeros(2, 3, 26 * 26)
    for n, c, place in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(values[0, 0].numel())):
        expected[n, c, switches[n, c].flatten()[place]] = signal[n, c].flatten()[place]
    assert torch.equal(unpool(signal, switches, (26, 26), "overwrite").flatten(2), expected)


@pytest.mark.parametrize("collisions", COLLISIONS)
def test_windows_apart_make_the_rules_agree(collisions: str) -> None:
    values, switches = pool(torch.randn(2, 3, 9, 9), 3)
    signal = torch.randn_like(values)
    assert torch.equal(unpool(signal, switches, (9, 9), collisions), F.max_unpool2d(signal, switches, 3))


@pytest.mark.parametrize("geometry", [(3, 2, 0, True), (3, 2, 1, False), (2, None, 0, False)], ids=str)
def test_switch_max_pool_is_drop_in(geometry: tuple[Any, ...]) -> None:
    kernel, stride, padding, ceil_mode = geometry
    ours = SwitchMaxPool2d(kernel, stride, padding, ceil_mode=ceil_mode)
    stock = nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil_mode)
    assert isinstance(ours, nn.MaxPool2d)
    x = torch.randn(2, 3, 17, 20, requires_grad=True)
    values, switches = ours.record(x)
    assert torch.equal(ours(x), stock(x)) and torch.equal(values, stock(x))
    assert torch.equal(gather(x, switches), values)
    signal = torch.randn_like(values)
    (gradient,) = torch.autograd.grad(stock(x), x, signal)
    torch.testing.assert_close(unpool(signal, switches, (17, 20)), gradient)
    assert not list(ours.buffers()) and ours.__dict__.keys() == stock.__dict__.keys()  # it remembers nothing


def test_a_collision_rule_that_does_not_exist() -> None:
    values, switches = pool(torch.randn(1, 1, 4, 4), 2)
    with pytest.raises(InputError, match=r"no collision rule 'ad' \(did you mean 'add'\?\); available: add, overwrite"):
        unpool(values, switches, (4, 4), "ad")


@pytest.mark.gpu
@pytest.mark.parametrize("collisions", COLLISIONS)
def test_the_same_on_cuda(collisions: str) -> None:
    x = torch.randint(-9, 9, (4, 8, 55, 55)).float()  # many ties
    here, there = pool(x, 3, 2, ceil_mode=True), pool(x.cuda(), 3, 2, ceil_mode=True)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(here, there, strict=True))
    signal = torch.randint_like(here[0], -99, 99)
    assert torch.equal(
        unpool(signal, here[1], (55, 55), collisions), unpool(signal.cuda(), there[1], (55, 55), collisions).cpu()
    )
