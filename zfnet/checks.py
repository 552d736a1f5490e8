"""Checks of arguments, and the state in which a model runs."""

import contextlib
import copy
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zfnet.errors import InputError, with_article

Pair = tuple[int, int]  # (rows, columns)


def pair(value: int | Sequence[int]) -> Pair:
    """Rows and columns, from one number for both or from two. Raises InputError for anything else."""
    with contextlib.suppress(TypeError):
        return (operator.index(value),) * 2  # type: ignore[arg-type]
    with contextlib.suppress(TypeError, ValueError):
        rows, columns = map(operator.index, value)  # type: ignore[arg-type]
        return rows, columns
    raise InputError(f"a size is {value!r}; give one whole number, or (rows, columns)")


def device_and_dtype(model: nn.Module) -> dict[str, Any]:
    """The device and floating-point type of a model's first parameter."""
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return {"device": first.device, "dtype": first.dtype}


def in_eval_mode(
    module: nn.Module, *, apart: bool = False, twins: dict[nn.Module, nn.Module] | None = None
) -> nn.Module:
    """A twin of a module in eval mode that shares its parameters.

    The module itself, which other threads may use or train, does not change: neither its mode nor its hooks. Attributes
    that `forward` sets stay with the twin.

    Args:
        module: the module to copy.
        apart: give the twin its own buffers and other tensors, into which `forward` may write.
        twins: those that were made already, by module; a module that is used twice has one twin.
    """
    twins = {} if twins is None else twins
    if module not in twins:
        twin = twins[module] = object.__new__(type(module))
        own: dict[str, Any] = {
            n: copy.copy(v) if isinstance(v, dict | list | set) else v for n, v in vars(module).items()
        }
        if apart:
            for tensors in (own, own["_buffers"]):
                tensors |= {name: value.clone() for name, value in tensors.items() if isinstance(value, Tensor)}
        forward: Any = own.get("forward")
        if getattr(forward, "__self__", None) is module:
            own["forward"] = forward.__func__.__get__(twin)
        own["_modules"] = {
            name: None if child is None else in_eval_mode(child, apart=apart, twins=twins)
            for name, child in module._modules.items()
        }
        own.pop("_compiled_call_impl", None)  # it would call the module itself; so would one of `torch.compile`
        if "_orig_mod" in module._modules:
            own["forward"] = own["_modules"]["_orig_mod"]
        vars(twin).update(own | {"training": False})
    return twins[module]


def call_in_eval_mode(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The output of a module in eval mode, whatever its own mode."""
    if not module.training and not any(child.training for child in module.modules()):
        return module(*args, **kwargs)
    return in_eval_mode(module)(*args, **kwargs)


@contextlib.contextmanager
def undifferentiated(model: nn.Module) -> Iterator[None]:
    """Without gradients, inference mode or autocast, for this thread alone; the weights that hooks make are current."""
    device = device_and_dtype(model)["device"].type
    with torch.inference_mode(False), torch.no_grad(), contextlib.ExitStack() as stack:
        if torch.amp.is_autocast_available(device):
            stack.enter_context(torch.autocast(device, enabled=False))
        _make_weights(model)
        yield


def makes_weights(hook: Any) -> bool:
    """Whether a hook is one of torch.nn.utils: weight and spectral normalisation, pruning."""
    return type(hook).__module__.startswith("torch.nn.utils")


def _make_weights(model: nn.Module) -> None:
    """Let hooks update the weights from the current parameters: rules read them without calling the module."""
    for module in model.modules():
        if hooks := [hook for hook in module._forward_pre_hooks.values() if makes_weights(hook)]:
            twin = in_eval_mode(module)
            before = dict(vars(twin))
            for hook in hooks:
                hook(twin, ())
            made = {name: value for name, value in vars(twin).items() if value is not before.get(name)}
            vars(module).update(made)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, `undifferentiated`, for a model that is called itself and by one thread; each module's mode is
    restored at the end, also after an error."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with undifferentiated(model):
            yield
    finally:
        for module in training:
            module.training = True


def check_weights(model: nn.Module) -> None:
    """Raises InputError for NaN or infinity in a parameter or buffer, and for lazy parameters without a size."""
    for name, weight in model.state_dict(keep_vars=True).items():
        if nn.parameter.is_lazy(weight):
            raise InputError(f"{name} of {type(model).__name__} has no size yet; run the model once on images")
        weight = weight.detach()
        if weight.is_floating_point() and not weight.sum().isfinite() and not weight.isfinite().all():
            raise InputError(f"NaN or infinity in {name} of {type(model).__name__}")


def check_images(model: nn.Module, images: Tensor) -> Tensor:
    """Images (N, C, H, W) on the model's device and of its type; InputError for any other shape, NaN and infinity."""
    if not isinstance(images, Tensor):
        raise InputError(f"images are {with_article(images)}; give a float tensor (N, channels, rows, columns)")
    if not _is_dense(images):
        raise InputError("images are a sparse, nested, quantised or meta tensor; give a dense one, with its values")
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(
            f"images must be floats of shape (N, channels, rows, columns); got {images.dtype} {tuple(images.shape)}"
        )
    if not images.sum().isfinite() and not images.isfinite().all():
        bad = (~torch.isfinite(images)).flatten(1).any(1).nonzero().flatten().tolist()
        raise InputError(f"NaN or infinity in {len(bad)} of {len(images)} images, first in image {bad[0]}")
    images = images.detach().to(**device_and_dtype(model))
    if images.is_inference():
        with torch.inference_mode(False):  # which others cannot be written to outside of
            return images.clone()
    return images


def check_units(units: Any) -> Tensor:
    """Units (M, 4), int64 and on the CPU, from a tensor, an array or rows of numbers; InputError for anything else."""
    wanted = "give whole numbers (M, 4): image, map, row, column"
    try:
        if isinstance(units, Tensor) and not _is_dense(units):
            raise TypeError
        entries = torch.as_tensor(units.detach().cpu() if isinstance(units, Tensor) else np.asarray(units))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"units are {with_article(units)} that does not hold numbers; {wanted}") from None
    if entries.shape == (0,):
        entries = entries.reshape(0, 4).long()
    whole = not (entries.is_floating_point() or entries.is_complex() or entries.dtype == torch.bool)
    if entries.ndim != 2 or entries.shape[1] != 4 or not whole:
        raise InputError(f"units are {entries.dtype} of shape {tuple(entries.shape)}; {wanted}")
    return entries.long()


def check_signal(signal: Any, shape: Sequence[int], what: str) -> Tensor:
    """A signal of a shape, from a tensor, an array or numbers; InputError for anything else, NaN and infinity.

    Args:
        signal: what is checked.
        shape: that it must have.
        what: the beginning of the error.
    """
    try:
        if isinstance(signal, Tensor) and not _is_dense(signal):
            raise TypeError
        values = signal.detach() if isinstance(signal, Tensor) else torch.as_tensor(np.asarray(signal))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"{what}; got {with_article(signal)} that does not hold numbers") from None
    if values.shape != tuple(shape) or values.is_complex() or values.dtype == torch.bool:
        raise InputError(f"{what}; got {values.dtype} {tuple(values.shape)}")
    if not values.isfinite().all():
        raise InputError(f"{what}; got NaN or infinity")
    return values


def check_number(name: str, value: Any) -> int:
    """A whole number from 1; InputError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name} is {value!r}; give a whole number from 1")
    return min(int(value), 2**62)


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized or tensor.is_nested)
