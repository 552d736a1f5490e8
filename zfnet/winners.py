"""The strongest activations of feature maps: the winners of every map, as values and as units.

Equal values go to the lower image, then row, then column: what is joined of parts does not depend on their order.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from zfnet.errors import InputError

Units = Tensor  # (M, 4), int64: image, map, row and column of each unit, as `Deconvnet.project_units` takes them


class _Columns(NamedTuple):
    value: Tensor
    image: Tensor
    row: Tensor
    column: Tensor
    unclipped: Tensor


class TopActivations(_Columns):
    """The k strongest activations of each of C feature maps, strongest first; every field is (C, k).

    Where there are fewer than k, value and unclipped are -inf, and image, row and column are -1.

    Attributes:
        value: the activations.
        image: int64, the index of the image in the dataset.
        row: int64, the row of the position in the map.
        column: int64, its column.
        unclipped: what ranks them: the values before a ReLU6 or Hardtanh clips them; in any other layer, `value`.
    """

    __slots__ = ()

    def __new__(
        cls, value: Tensor, image: Tensor, row: Tensor, column: Tensor, unclipped: Tensor | None = None
    ) -> "TopActivations":
        return super().__new__(cls, value, image, row, column, value if unclipped is None else unclipped)

    @classmethod
    def none(cls, maps: int, k: int, like: Tensor) -> "TopActivations":
        """No activations yet, on the device and of the type of `like`."""
        positions = torch.full((3, maps, k), -1, device=like.device)
        return cls(like.new_full((maps, k), -torch.inf), *positions.unbind())

    def to(self, device: torch.device | str) -> "TopActivations":
        """The same on another device."""
        return TopActivations(*(column.to(device) for column in self))

    def merge(self, other: "TopActivations") -> "TopActivations":
        """The k strongest of both; exact for scans of disjoint parts of a dataset, in any order.

        Args:
            other: of the same layer, with as many activations of each map.

        Raises:
            InputError: for another number of maps or another k.
        """
        if self.value.shape != other.value.shape:
            shapes = " and ".join(f"{top.value.shape[0]} maps, k={top.value.shape[1]}" for top in (self, other))
            raise InputError(f"cannot merge scans of different shapes ({shapes}); scan every part with the same k")
        return self.join(other)

    def join(self, other: "TopActivations") -> "TopActivations":
        """The k strongest of both, of which the other may have more than k."""
        union = TopActivations(*(torch.cat(pair, 1) for pair in zip(self, other, strict=True)))
        order = torch.arange(union.value.shape[1], device=union.value.device).expand_as(union.value)
        for key in (union.column, union.row, union.image, union.unclipped):  # the most important last
            largest_first = key is union.unclipped
            order = order.gather(1, key.gather(1, order).argsort(dim=1, descending=largest_first, stable=True))
        order = order[:, : self.value.shape[1]]
        return TopActivations(*(column.gather(1, order) for column in union))

    def units(self, maps: Iterable[int] | None = None) -> Units:
        """The winners of some maps, all by default, as units (len(maps) * k, 4), map by map, strongest first.

        Args:
            maps: their numbers from 0; None: all.

        Returns:
            Image, map, row and column of each. A missing winner keeps its row: its image is -1.

        Raises:
            InputError: for maps that the layer does not have.
        """
        count, k = self.value.shape
        if maps is not None and not isinstance(maps, Iterable):
            raise InputError(f"maps is {maps!r}; give a list of map numbers")
        numbers = torch.as_tensor(list(range(count) if maps is None else maps), dtype=torch.int64)
        if len(unknown := numbers[(numbers < 0) | (numbers >= count)]):
            raise InputError(f"no map {int(unknown[0])}: the layer has {count}, numbered from 0")
        image, row, column = (entries.cpu()[numbers].flatten() for entries in (self.image, self.row, self.column))
        return torch.stack([image, numbers.repeat_interleave(k), row, column], 1)
