"""How a network is trained: the paper's recipe, or another."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from zfnet.data.preprocessing import Size
from zfnet.errors import InputError, unknown_name

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CHOICES = {
    "optimizer": ("sgd", "adam"),
    "schedule": ("plateau", "cosine", "constant"),
    "crops": ("random", "ten"),
    "precision": ("auto", *PRECISIONS),
}


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are the paper's, or plain ones where the paper gives no value.

    `conf/train/paper.yaml` says which values are the paper's. Zeiler & Fergus (2014), section 3.

    Args:
        epochs: how often every image is seen.
        batch_size: images in a step, of all processes together.
        learning_rate: of the first step.
        optimizer: "sgd", or "adam" (AdamW).
        momentum: of SGD.
        weight_decay: of either.
        max_filter_rms: filters with a larger root mean square are scaled back to it; None: they are not.
        schedule: "constant"; "plateau": the rate is lowered where the validation error flattens; "cosine": it rises
            over the first tenth of the steps, then falls to zero.
        factor: learning-rate multiplier at a plateau.
        patience: epochs without an improvement of 0.001 in validation error before that.
        stored_size: side of the images that crops are taken from, in pixels; None: what the network sees.
        crops: "random": anywhere; "ten": at the places of evaluation.
        max_shift: pixels by which crops may leave the image on each side; None: the paper's; see `shift`.
        flip: mirror half of the images.
        pixel_mean: subtract the training images' mean at every pixel, not the channel's.
        precision: of products; "auto": half on GPUs (the weights stay float32), float32 elsewhere.
        seed: of all random numbers.

    Raises:
        InputError: if a value is out of range.
    """

    epochs: int = 70
    batch_size: int = 128
    learning_rate: float = 0.01
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    max_filter_rms: float | None = 0.1
    schedule: str = "constant"
    factor: float = 0.1
    patience: int = 3
    stored_size: int | None = None
    crops: str = "random"
    max_shift: int | None = 0
    flip: bool = True
    pixel_mean: bool = False
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {"epochs": 1, "batch_size": 1, "patience": 0, "max_shift": 0, "stored_size": 1}
        for name, least in counts.items():
            value = getattr(self, name)
            optional = name in ("max_shift", "stored_size")
            if not (optional and value is None) and (type(value) is not int or value < least):
                raise InputError(f"{name} is {value!r}; give a whole number from {least}")
        for name, lowest, most in (
            ("learning_rate", 0, math.inf),
            ("momentum", -1e-9, 1),
            ("weight_decay", -1e-9, math.inf),
            ("factor", 0, 1),
            ("max_filter_rms", 0, math.inf),
        ):
            value = getattr(self, name)
            if value is not None and not lowest < value < most:
                raise InputError(
                    f"{name} is {value}; give a number {'above' if lowest == 0 else 'from'} 0"
                    + (f" and below {most}" if most < math.inf else "")
                )
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise unknown_name(name, str(getattr(self, name)), choices)

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Make the optimizer of the model's parameters."""
        rate, decay = self.learning_rate, self.weight_decay
        if self.optimizer == "sgd":
            return torch.optim.SGD(model.parameters(), rate, self.momentum, weight_decay=decay)
        return torch.optim.AdamW(model.parameters(), rate, (self.momentum, 0.999), weight_decay=decay)

    def rate(self, step: int, steps: int, errors: Sequence[float] = ()) -> float:
        """The learning rate at a step.

        Args:
            step: number of the step in the whole run, from 0.
            steps: how many the run has.
            errors: validation errors of the epochs so far.
        """
        if self.schedule == "plateau":
            return _after_plateaus(self.learning_rate, self.factor, self.patience, tuple(errors))
        if self.schedule == "constant":
            return self.learning_rate
        rise = max(1, steps // 10)
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        return self.learning_rate * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2

    def shift(self, size: Size) -> int:
        """The pixels by which crops of that size may leave the image on each side, whose border is repeated there.

        By the paper's measure it is a 14th of the shortest side: the margin of crops of 224 pixels in 256.
        """
        return min(size) // 14 if self.max_shift is None else self.max_shift

    def pad(self, size: Size) -> int:
        """The pixels by which images are extended before ten crops are taken: 0 where they have a margin."""
        return 0 if self.stored_size else self.shift(size)

    def dtype(self, device: torch.device) -> torch.dtype:
        """The type of products on a device."""
        if self.precision != "auto":
            return PRECISIONS[self.precision]
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


@functools.lru_cache(maxsize=1)  # the same for all steps of an epoch
def _after_plateaus(rate: float, factor: float, patience: int, errors: tuple[float, ...]) -> float:
    optimizer = torch.optim.SGD([torch.zeros(1)], rate)
    schedule = ReduceLROnPlateau(optimizer, factor=factor, patience=patience, threshold=1e-3, threshold_mode="abs")
    for error in errors:
        schedule.step(error)
    return float(optimizer.param_groups[0]["lr"])
