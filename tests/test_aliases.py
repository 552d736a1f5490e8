"""Steps in place on views are followed: the traced network is the model, and its projections are autograd's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.fuzzing.networks import by_autograd
from zfnet import Deconvnet, InputError, scan
from zfnet.graph import Graph


class Writing(nn.Module):
    """Two convolutions, between which something writes; the second reads what has become of the first's maps."""

    def __init__(self, body: Callable[[Tensor], Tensor | None]):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.tap, self.body = nn.Identity(), body

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        other = self.body(y)
        y = self.conv2(y)
        return self.tap(y if other is None else y + other)


def a_slice(y: Tensor) -> None:
    F.relu_(y[:, :2])


def views_of_views(y: Tensor) -> Tensor:
    half = y[:, 1:]
    half[:, 1:].select(1, 0).zero_()
    half += 1
    return y[:, :1] * 2 + half[:, :1]


def overlapping_slices(y: Tensor) -> Tensor:
    first, second = y[:, :2], y[:, 1:3]
    first.mul_(2)
    second.add_(1)
    first.relu_()
    return second[:, 1:] + y[:, 1:2]


def another_name(y: Tensor) -> Tensor:
    z = F.dropout(y, training=False)
    z.mul_(3)
    return y


def pieces(y: Tensor) -> Tensor:
    first, second = y.chunk(2, 1)
    third, fourth = second.split(1, 1)
    F.relu(first, inplace=True)
    fourth.copy_(third)
    return second.sum(1, keepdim=True)


def a_view_that_is_read_later(y: Tensor) -> Tensor:
    part = y[:, :2]
    y.mul_(2)
    return torch.cat([part, part], 1)


def items(y: Tensor) -> None:
    y[:, 0] = y[:, 1] * 2
    y[..., 1:-1, 2] = 0
    y[:, :2] *= 3


def transposed(y: Tensor) -> None:
    y.transpose(2, 3)[:, :, 1:].mul_(2)
    y.diagonal(dim1=2, dim2=3).zero_()


def reshaped(y: Tensor) -> None:
    y.view(y.shape[0], -1).mul_(2)
    y.detach().add_(1)
    y.data.mul_(2)


def out(y: Tensor) -> Tensor:
    z = torch.zeros_like(y)
    torch.add(y, 1, out=z)
    torch.mul(y, 2, out=y)
    return z


def a_shift_of_maps(y: Tensor) -> Tensor:
    shifted = torch.zeros_like(y)
    shifted[:, :2, 1:] = y[:, :2, :-1]
    shifted[:, 2:] = y[:, 2:]
    return shifted


def a_copy_by_a_list(y: Tensor) -> None:
    y[:, [0, 1]].mul_(3)


BODIES = [
    *(a_slice, views_of_views, overlapping_slices, another_name, pieces, a_view_that_is_read_later, items, transposed),
    *(reshaped, out, a_shift_of_maps, a_copy_by_a_list),
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_writes_are_followed(body: Callable[[Tensor], Any]) -> None:
    model, images = Writing(body).double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = model(images.clone())
    deconvnet = Deconvnet(model)
    everything = deconvnet.record(images)
    torch.testing.assert_close(everything.activations["tap"], expected)
    with torch.no_grad():
        assert torch.equal(everything.activations["conv1"], model.conv1(images)), "before what is written to it"
    strongest = scan(model, images, ["tap"], k=2, workers=0, progress=False)["tap"].value
    torch.testing.assert_close(strongest, expected.amax((2, 3)).T.sort(1, descending=True).values)
    units = [[0, 0, 0, 0], [1, 1, 3, 4], [1, 3, 7, 6]]
    patches = deconvnet.project_units(images, "tap", units, whole=True)
    projections, values = by_autograd(model, images, "tap", units)
    torch.testing.assert_close(patches.values, values)
    torch.testing.assert_close(patches.projections, projections)


@pytest.mark.parametrize("body", [a_slice, overlapping_slices, pieces, a_view_that_is_read_later])
def test_of_what_writes_whole_maps_windows_are_known(body: Callable[[Tensor], Any]) -> None:
    model, images = Writing(body).double(), torch.randn(1, 3, 12, 12, dtype=torch.float64)
    deconvnet, units = Deconvnet(model), [[0, 1, 5, 6]]
    patches = deconvnet.project_units(images, "tap", units)
    (top, left, bottom, right) = patches.boxes[0].tolist()
    assert (bottom - top, right - left) == (5, 5)
    whole = deconvnet.project_units(images, "tap", units, whole=True).projections
    torch.testing.assert_close(patches.projections, whole[..., top:bottom, left:right])


@pytest.mark.parametrize(
    "write",
    [lambda y: y.flatten(2).mul_(2), lambda y: y.contiguous().mul_(2), lambda y: y.as_strided((2,), (1,)).zero_()],
    ids=["flatten", "contiguous", "as_strided"],
)
def test_what_may_be_a_copy_is_refused(write: Callable[[Tensor], Any]) -> None:
    def body(y: Tensor) -> None:
        write(y)

    with pytest.raises(
        InputError, match=r"^\w+ \(\w+\) of Writing works in place on memory that conv2 reads later as "
    ):
        Graph(Writing(body))


@pytest.mark.parametrize("name", ["weight", "scale"])
def test_writes_to_the_models_own_tensors_are_refused(name: str) -> None:
    class Own(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            getattr(self, name).mul_(0.5)
            return super().forward(x)

    model = Own(3, 4, 3).requires_grad_(False)
    model.register_buffer("scale", torch.ones(1))
    with pytest.raises(InputError, match=f"writes to 0.{name}"):
        Graph(nn.Sequential(model))


def test_the_callers_images_and_constants_are_never_written_to() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.ones = nn.Conv2d(3, 4, 3), torch.ones(1, 1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            x[:, :1].mul_(2)
            return self.conv(x.relu_()) * self.ones

    model, images = Constant(), torch.randn(2, 3, 6, 6)
    before, deconvnet = images.clone(), Deconvnet(model)
    for _ in range(2):
        deconvnet.record(images, ["conv"])
        scan(deconvnet.graph, images, ["conv"], k=1, workers=0, progress=False)
    assert torch.equal(images, before)
