"""Malformed arguments get one line."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zfnet import Deconvnet, InputError, receptive_field

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
UNIT = [0, 1, 2, 2]


@pytest.fixture(scope="module")
def deconvnet() -> Deconvnet:
    torch.manual_seed(0)
    return Deconvnet(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3)))


def assert_one_line(error: pytest.ExceptionInfo[InputError]) -> None:
    assert "\n" not in str(error.value)


UNITS: dict[str, Any] = {
    "fractions": [[0.5, 1, 2, 2]],
    "whole floats": [[0.0, 1.0, 2.0, 2.0]],
    "bools": [[True, False, True, True]],
    "bool tensor": torch.ones(1, 4, dtype=torch.bool),
    "NaN": [[float("nan"), 0, 0, 0]],
    "text": "abcd",
    "bytes": b"abcd",
    "None": None,
    "None within": [[0, None, 1, 1]],
    "dict": {"a": 1},
    "set": {1, 2},
    "number": 3,
    "range": range(4),
    "one unit": UNIT,
    "three columns": [[0, 1, 2]],
    "five columns": [[0, 1, 2, 2, 0]],
    "no columns": torch.zeros(0, 3),
    "ragged": [UNIT, [0, 1]],
    "nested": [[UNIT]],
    "objects": np.array([[0, "a", 2, None]], dtype=object),
    "complex": torch.zeros(1, 4, dtype=torch.complex64),
    "huge": [[0, 10**30, 0, 0]],
    "meta": torch.zeros(1, 4, dtype=torch.int64, device="meta"),
    "sparse": torch.tensor([UNIT]).to_sparse(),
    "no such image": [[2, 0, 0, 0]],
    "no such map": [[0, 5, 0, 0]],
    "no such row": [[0, 0, 3, 0]],
    "no such column": [[0, 0, 0, 3]],
    "negative": [[0, -1, 0, 0]],
}


@pytest.mark.parametrize("kind", UNITS)
def test_malformed_units(deconvnet: Deconvnet, kind: str) -> None:
    with pytest.raises(InputError, match=r"units are|no (image|map|row|column) ") as error:
        deconvnet.project_units(IMAGES, "3", UNITS[kind])
    assert_one_line(error)
    if kind != "no such image":  # which says nothing of canvases
        with pytest.raises(InputError) as error:
            deconvnet.activations_of(torch.zeros(1, 3, 8, 8), "3", UNITS[kind], 12)
        assert_one_line(error)


@pytest.mark.parametrize(
    "units",
    [
        [tuple(UNIT)],
        (tuple(UNIT),),
        np.array([UNIT], dtype=np.uint16),
        torch.tensor([UNIT], dtype=torch.int32),
        [torch.tensor(UNIT)],
        [np.array(UNIT)],
    ],
    ids=["tuples", "tuple", "array", "int32", "tensors", "arrays"],
)
def test_units_of_every_kind(deconvnet: Deconvnet, units: Any) -> None:
    expected = deconvnet.project_units(IMAGES, "3", torch.tensor([UNIT]))
    assert torch.equal(deconvnet.project_units(IMAGES, "3", units).projections, expected.projections)


@pytest.mark.parametrize("units", [[], (), torch.zeros(0, 4).long(), np.zeros((0, 4), int)])
def test_no_units(deconvnet: Deconvnet, units: Any) -> None:
    assert len(deconvnet.project_units(IMAGES, "3", units).projections) == 0


SIGNALS: dict[str, Any] = {
    "too many": torch.ones(2),
    "none": torch.ones(0),
    "number": 1.0,
    "matrix": torch.ones(1, 1),
    "NaN": torch.tensor([float("nan")]),
    "infinity": [float("inf")],
    "complex": torch.ones(1, dtype=torch.complex64),
    "bools": torch.ones(1, dtype=torch.bool),
    "text": "a",
    "texts": ["a"],
    "None": [None],
    "dict": {},
    "meta": torch.ones(1, device="meta"),
    "sparse": torch.ones(1).to_sparse(),
}


@pytest.mark.parametrize("kind", SIGNALS)
def test_malformed_signals(deconvnet: Deconvnet, kind: str) -> None:
    with pytest.raises(InputError, match="signals are finite numbers, one for each of 1 units; got") as error:
        deconvnet.project_units(IMAGES, "3", [UNIT], signals=SIGNALS[kind])
    assert_one_line(error)


@pytest.mark.parametrize("signals", [[2], np.array([2.0]), torch.tensor([2.0], requires_grad=True), torch.tensor([2])])
def test_signals_of_every_kind(deconvnet: Deconvnet, signals: Any) -> None:
    expected = deconvnet.project_units(IMAGES, "3", [UNIT], signals=torch.tensor([2.0])).projections
    assert torch.equal(deconvnet.project_units(IMAGES, "3", [UNIT], signals=signals).projections, expected)


@pytest.mark.parametrize("change", [lambda x: x * torch.nan, lambda x: x[:1], lambda x: x + 0j, lambda x: None, str])
def test_a_malformed_signal_or_recording(deconvnet: Deconvnet, change: Any) -> None:
    recording = deconvnet.record(IMAGES)
    for use in (deconvnet.project, deconvnet.steps):
        with pytest.raises(InputError, match="a signal at 3 has the shape of that layer's output") as error:
            use(recording, "3", change(recording.activations["3"]))
        assert_one_line(error)
        with pytest.raises(InputError, match="a recording is a Tensor; give what record"):
            use(IMAGES, "3", recording.activations["3"])  # type: ignore[arg-type]


with torch.inference_mode():
    INFERENCE = IMAGES.clone()


@pytest.mark.parametrize(
    "images",
    [INFERENCE, IMAGES.clone().requires_grad_(), IMAGES.contiguous(memory_format=torch.channels_last), IMAGES.double()],
    ids=["inference", "requires_grad", "channels last", "double"],
)
def test_images_of_every_kind(deconvnet: Deconvnet, images: Tensor) -> None:
    expected = deconvnet.project_units(IMAGES, "3", [UNIT])
    patches = deconvnet.project_units(images, "3", [UNIT])
    torch.testing.assert_close(patches.projections, expected.projections)
    assert not patches.projections.requires_grad and not patches.crops.requires_grad


def test_within_inference_mode_and_autocast(deconvnet: Deconvnet) -> None:
    expected = deconvnet.project_units(IMAGES, "3", [UNIT]).projections
    with torch.inference_mode():
        assert torch.equal(deconvnet.project_units(IMAGES, "3", [UNIT]).projections, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(deconvnet.project_units(IMAGES, "3", [UNIT]).projections, expected)


@pytest.mark.parametrize(
    "images",
    [IMAGES.to("meta"), IMAGES.to_sparse(), torch.nested.nested_tensor([IMAGES[0]]), IMAGES[:, :, :0], IMAGES[:, :2]],
    ids=["meta", "sparse", "nested", "no rows", "two channels"],
)
def test_malformed_images(deconvnet: Deconvnet, images: Tensor) -> None:
    for use in (lambda: deconvnet.record(images), lambda: deconvnet.project_units(images, "3", [UNIT])):
        with pytest.raises(InputError) as error:
            use()
        assert_one_line(error)


@pytest.mark.parametrize(
    "size", [0, -5, "a", None, 12.0, (12, 12, 12), (12, "a"), (0, 5), 10**9, float("nan"), {}], ids=str
)
def test_malformed_sizes(deconvnet: Deconvnet, size: Any) -> None:
    with pytest.raises(InputError) as error:
        receptive_field(deconvnet.graph, "3", size)
    assert_one_line(error)


def test_sizes_of_every_kind(deconvnet: Deconvnet) -> None:
    sizes = {
        receptive_field(deconvnet.graph, "3", size).size for size in (12, np.int64(12), [12, 12], torch.tensor(12))
    }
    assert sizes == {(8, 8)}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"rules": None}, "rules are not a rule set"),
        ({"rules": 3}, "rules are not a rule set"),
        ({"rules": {nn.ReLU: 3}}, "rules are not a rule set"),
        ({"collisions": 3}, "no collision rule '3'"),
        ({"collisions": None}, "no collision rule 'None'"),
    ],
    ids=str,
)
def test_malformed_options(deconvnet: Deconvnet, arguments: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        Deconvnet(deconvnet.model, **arguments)
    assert_one_line(error)


@pytest.mark.parametrize("memory", [0, -1, "a", None, 1.5, True], ids=str)
def test_malformed_memory(deconvnet: Deconvnet, memory: Any) -> None:
    with pytest.raises(InputError, match=r"memory is .*; give a whole number from 1"):
        deconvnet.project_units(IMAGES, "3", [UNIT], memory=memory)
