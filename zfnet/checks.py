"""What is checked before anything runs, and the state that a model is run in."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zfnet.errors import InputError

Pair = tuple[int, int]  # (rows, columns)


def pair(value: int | Sequence[int]) -> Pair:
    """Rows and columns, from one number for both or from two; InputError for anything else."""
    sizes = (value, value) if isinstance(value, int) else tuple(value)
    if len(sizes) != 2 or not all(isinstance(size, int) for size in sizes):
        raise InputError(f"a size is {value!r}; give one whole number, or (rows, columns)")
    return sizes[0], sizes[1]


def device_and_dtype(model: nn.Module) -> dict[str, Any]:
    """The device and floating-point type of a model's first parameter."""
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return {"device": first.device, "dtype": first.dtype}


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients or autocast; each module's mode is restored at the end, also after an error."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        device = device_and_dtype(model)["device"].type
        with torch.no_grad(), contextlib.ExitStack() as stack:
            if torch.amp.is_autocast_available(device):
                stack.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        for module in training:
            module.training = True


def check_weights(model: nn.Module) -> None:
    """InputError for NaN or infinity in a parameter or buffer, and for one that a lazy module has not made yet."""
    for name, weight in model.state_dict(keep_vars=True).items():
        if nn.parameter.is_lazy(weight):
            raise InputError(f"{name} of {type(model).__name__} has no size yet; run the model once on images")
        weight = weight.detach()
        if weight.is_floating_point() and not weight.sum().isfinite() and not weight.isfinite().all():
            raise InputError(f"NaN or infinity in {name} of {type(model).__name__}")


def check_images(model: nn.Module, images: Tensor) -> Tensor:
    """Images (N, C, H, W) on the model's device and of its type; InputError for any other shape, NaN and infinity."""
    if not isinstance(images, Tensor):
        raise InputError(f"images are a {type(images).__name__}; give a float tensor (N, channels, rows, columns)")
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(
            f"images must be floats of shape (N, channels, rows, columns); got {images.dtype} {tuple(images.shape)}"
        )
    if not images.sum().isfinite() and not images.isfinite().all():
        bad = (~torch.isfinite(images)).flatten(1).any(1).nonzero().flatten().tolist()
        raise InputError(f"NaN or infinity in {len(bad)} of {len(images)} images, first in image {bad[0]}")
    return images.to(**device_and_dtype(model))
