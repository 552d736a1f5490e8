"""Error rates of one network or several, over one or ten crops."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zfnet.checks import device_and_dtype, evaluating
from zfnet.data.batches import Batches, warn_of_broken
from zfnet.data.crops import crop_size, preprocessing_of, views, with_progress
from zfnet.errors import InputError


def network_input(model: nn.Module, images: Tensor) -> Tensor:
    """Images on the model's device, in the memory format that convolves fastest; uint8 ones normalised."""
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise InputError(f"images are {images.dtype}; give floats, or uint8 for the model's preprocessing")
    target = device_and_dtype(model)
    images = images.to(target["device"]).contiguous(memory_format=torch.channels_last)
    return (preprocessing_of(model).normalise(images) if images.dtype == torch.uint8 else images).to(target["dtype"])


def check_labels(labels: Tensor, classes: int) -> None:
    """Raises InputError for a label outside the network's classes."""
    least, most = int(labels.min()), int(labels.max())
    if not 0 <= least <= most < classes:
        raise InputError(f"labels are {least}..{most}, but the network has {classes} classes: give it more classes")


def error_rates(
    models: nn.Module | Sequence[nn.Module], dataset: Any, *, top: Sequence[int] = (1, 5), **how: Any
) -> tuple[float, ...]:
    """For each n of `top`, the share of images that the networks miss: see `missed`, which says the arguments."""
    return tuple(missed(models, dataset, top=top, **how).double().mean(0).tolist())


def missed(
    models: nn.Module | Sequence[nn.Module],
    dataset: Any,
    *,
    top: Sequence[int] = (1, 5),
    crops: int = 1,
    pad: int = 0,
    batch_size: int = 128,
    workers: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Whether each image's label is not among the n most probable classes, for each n of `top`: bool (N, len(top)).

    Images that cannot be read are left out, with a warning.

    Args:
        models: one network, or several whose probabilities are averaged; all see the same images.
        dataset: (image, label) by index.
        top: numbers of classes.
        crops: 1 or 10 crops of each image, whose probabilities are averaged; see `zfnet.data.crops.views`.
        pad: pixels by which images are extended before ten crops are taken.
        batch_size: images that are run at once.
        workers: processes that read images; None: one for each core, up to eight.
        progress: show a progress bar.

    Raises:
        InputError: if no image can be read, and for labels that are none of the networks' classes.
    """
    models = [models] if isinstance(models, nn.Module) else list(models)
    batches = Batches(dataset, batch_size, workers=workers)
    misses = missed_in(batches, models, top, crops, pad, progress)
    if not len(misses):
        raise InputError(f"no image could be read to measure errors on: {(*batches.broken, 'there is none')[0]}")
    warn_of_broken(batches.broken)
    return misses


def missed_in(
    batches: Batches,
    models: Sequence[nn.Module],
    top: Sequence[int],
    crops: int = 1,
    pad: int = 0,
    progress: bool = False,
) -> Tensor:
    """As `missed`, of the images of these batches that can be read; none is no mistake."""
    misses = [torch.zeros(0, len(top), dtype=torch.bool)]
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        for _, images, labels in with_progress(batches, "evaluate", progress, leave=False):
            mean: Any = 0
            for model in models:
                for view in views(network_input(model, images), crop_size(model, images), crops, pad):
                    mean = mean + model(view).softmax(1)
            check_labels(labels, mean.shape[1])
            best = mean.topk(min(max(top), mean.shape[1])).indices.cpu()
            hit = best == labels[:, None]
            misses.append(torch.stack([~hit[:, :n].any(1) for n in top], 1))
    return torch.cat(misses)
