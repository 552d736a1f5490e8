"""Window arithmetic: which part of its input one output of an operation reads.

Output i of an operation with kernel k, stride s, padding p and dilation d reads its input from i s - p, over d (k - 1)
+ 1 places, along rows and along columns. A window also says which *maps* of the input a map of the output reads: all of
them in a convolution, its own in a pooling, those of its branch behind a concatenation. Followed down to the image this
gives the receptive field of a unit; followed up it gives the part of each step that must be computed. Dumoulin &
Visin (2016), arXiv:1603.07285.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zfnet.checks import Pair

SAME, ALL = "same", "all"  # the maps that a map of the output reads: that of its own number, or every one


class Window(NamedTuple):
    """How one output of a step reads its input; pairs are (rows, columns).

    inside: computes the step from an input whose border has been read already, as `inside(input, argument)`; None: the
    step has no border of its own, and is simply called.
    spread: computes what an `aligned` change of the input adds to all outputs that it reaches.
    maps: SAME, ALL, or for each input of the step (maps of the output, r): the r maps of this input that they read, -1
    for none.
    decided: the inputs that only decide, such as a gate; held fixed, nothing comes back through them.
    table: of windows that do not slide evenly, which rows and columns the outputs read: (rows, 2) and (columns, 2).
    """

    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    fill: float = 0.0  # what is read outside the input
    inside: Callable[[Tensor, Callable[..., Any]], Tensor] | None = None
    spread: Callable[[Tensor, Callable[..., Any]], Tensor] | None = None
    maps: str | tuple[Tensor, ...] = SAME
    table: tuple[Tensor, Tensor] | None = None
    decided: tuple[int, ...] = ()

    @property
    def slides(self) -> bool:
        """Whether all outputs read windows of one size, evenly spaced."""
        return self.table is None and self is not WHOLE

    def span(self, axis: int) -> int:
        """The length of a window: from the first to the last place that it reads."""
        return self.dilation[axis] * (self.kernel[axis] - 1) + 1

    def reads(self, low: Any, high: Any, axis: int) -> tuple[Any, Any]:
        """The range of input that outputs low..high-1 read: numbers, or tensors of them."""
        if self.table is not None:
            rows = self.table[axis][max(low, 0) : high]
            return int(rows[:, 0].min()), int(rows[:, 1].max())
        start = low * self.stride[axis] - self.padding[axis]
        return start, start + (high - 1 - low) * self.stride[axis] + self.span(axis)

    def reaches(self, low: Any, high: Any, axis: int) -> tuple[Any, Any]:
        """The range of outputs that inputs low..high-1 reach, the transpose of `reads`."""
        first = low + self.padding[axis] - self.span(axis) + 1
        return -(-first // self.stride[axis]), (high - 1 + self.padding[axis]) // self.stride[axis] + 1

    def aligned(self, low: Any, high: Any, axis: int) -> tuple[Any, Any]:
        """The range low..high-1, longer by stride - 1 places, so that it begins where some output's reading ends."""
        early = (low + self.padding[axis] - self.span(axis) + 1) % self.stride[axis]
        return low - early, high - early + self.stride[axis] - 1

    def maps_read(self, source: int, outputs: int, inputs: int) -> Tensor | None:
        """The maps of one of the step's inputs that each of `outputs` maps reads, (outputs, r); None: all of them."""
        if isinstance(self.maps, tuple):
            return self.maps[source]
        if self.maps == SAME and inputs == outputs:
            return torch.arange(outputs)[:, None]
        return None

    def maps_behind(self, source: int, maps: Tensor, inputs: int) -> Tensor:
        """Which maps (inputs,) bool of one of the step's inputs the `maps` (outputs,) bool depend on."""
        if isinstance(self.maps, tuple):
            reads, needed = self.maps[source][maps], torch.zeros(inputs, dtype=torch.bool)
            needed[reads[reads >= 0]] = True
            return needed
        return maps if self.maps == SAME and inputs == len(maps) else torch.ones(inputs, dtype=torch.bool)


POINTWISE = Window()
WHOLE = Window(kernel=(0, 0), maps=ALL)  # an output depends on every place of the input


def maps_first(x: Tensor) -> Tensor:
    """A step's output whose maps lie along its last axis, (N, H, W, C) or tokens (N, T, C), as maps (N, C, H, W), in
    the same memory. The places of tokens are rows of one column."""
    x = x.movedim(-1, 1)
    return x[..., None] if x.ndim == 3 else x


def maps_last(x: Tensor, dimensions: int) -> Tensor:
    """The inverse of `maps_first`, for an output of so many dimensions."""
    return (x[..., 0] if dimensions == 3 else x).movedim(1, -1)


def count_maps(shape: Sequence[int]) -> int:
    """How many maps an output (N, ..., rows, columns) has."""
    return math.prod(shape[1:-2])
