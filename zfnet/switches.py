"""Max pooling that remembers where each maximum came from, and its transpose.

A *switch* is the flat index, row * columns + column, of the maximum of one pooling window in the plane that was pooled.
The first of equal values wins. `unpool` puts every value back at its switch. Where windows overlap, one pixel may win
several of them; the values sent to it are added, which makes `unpool` the exact transpose of `pool`.
Zeiler & Fergus (2014), section 2.1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zfnet.errors import unknown_name

COLLISIONS = ("add", "overwrite", "max")


def pool(
    x: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    ceil_mode: bool = False,
    dilation: int | tuple[int, int] = 1,
) -> tuple[Tensor, Tensor]:
    """Max-pool x (N, C, H, W) into values (N, C, h, w) and switches (N, C, h, w), int64.

    A switch is the flat index, row * columns + column, of a window's maximum in the plane that is pooled; of equal
    values the first wins. Zeiler & Fergus (2014), section 2.1.

    Args:
        x: activations (N, C, H, W).
        kernel_size: of the windows, as in `torch.nn.MaxPool2d`, and so are all others.
        stride: from window to window; None: the kernel size.
        padding: on each side; it never wins.
        ceil_mode: whether a last window may reach beyond the border.
        dilation: of the windows.
    """
    return F.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True)


def adaptive_pool(x: Tensor, output_size: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Max-pool x (N, C, H, W) into values and switches of `output_size`, by windows that share the plane evenly."""
    return F.adaptive_max_pool2d(x, output_size, return_indices=True)


def unpool(values: Tensor, switches: Tensor, size: tuple[int, int], collisions: str = "add") -> Tensor:
    """Put values back at their switches in a zero signal: the transpose of `pool`.

    Zeiler & Fergus (2014), section 2.1, which does not say what becomes of values that meet.

    Args:
        values: (N, C, h, w), what is put back.
        switches: flat indices in the plane that was pooled, int64, in the shape of the values.
        size: (rows, columns) of the plane that was pooled: the pooled one does not tell it.
        collisions: where several values meet, "add" adds them, "overwrite" lets the last window in reading order win,
            and "max" the largest value.

    Returns:
        The signal, (N, C, rows, columns).

    Raises:
        InputError: for an unknown collision rule.
    """
    if collisions not in COLLISIONS:
        raise unknown_name("collision rule", collisions, COLLISIONS)
    flat, targets = values.flatten(2), switches.flatten(2)
    plane = flat.new_zeros(*flat.shape[:2], size[0] * size[1])
    if collisions == "max":
        plane.scatter_reduce_(2, targets, flat, "amax", include_self=False)
    else:
        if collisions == "overwrite":
            order = torch.arange(flat.shape[2], device=flat.device).expand_as(targets)
            last = torch.zeros_like(plane, dtype=order.dtype).scatter_reduce_(2, targets, order, "amax")
            flat = flat * (last.gather(2, targets) == order)
        plane.scatter_add_(2, targets, flat)
    return plane.view(*plane.shape[:2], *size)


class SwitchMaxPool2d(nn.MaxPool2d):
    """Drop-in `nn.MaxPool2d` that can also record its switches; it remembers nothing itself."""

    def record(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Max-pool x (N, C, H, W) into values (N, C, h, w) and switches (N, C, h, w), int64."""
        return pool(x, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.dilation)
