"""From `conf/model/*.yaml` to a network with its weights and its preprocessing."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from zfnet import weights as files
from zfnet.data.transforms import Preprocessing


def build(
    architecture: Callable[[], nn.Module],
    *,
    weights: str | Path | None = None,
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
) -> nn.Module:
    """A network by the function that makes it, with the weights of a file, or random ones by seed.

    preprocessing: for random weights and for files that do not say how their photographs were prepared.
    InputError if the file is not there or holds another architecture.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = architecture()
    model.preprocessing = preprocessing or Preprocessing()  # type: ignore[assignment]
    if weights is not None:
        files.load(model, weights, otherwise=preprocessing)
    return model.eval()
