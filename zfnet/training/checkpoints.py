"""The checkpoint of a training run: its identity and its progress.

A run resumes only from an undamaged checkpoint with its own identity; otherwise an InputError says what differs.
`check_state` compares all of a state with the run before any of it is loaded.
"""

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zfnet.data.images import as_images
from zfnet.data.preprocessing import Preprocessing
from zfnet.errors import InputError, with_article
from zfnet.files import remove
from zfnet.identity import Damaged, Identity, digest, network_identity, read_sealed, write_sealed
from zfnet.processes import processes
from zfnet.training.recipe import Recipe

ANEW = "start again with fresh=True or in another folder"


def run_identity(model: nn.Module, dataset: Any, validation: Any, recipe: Recipe) -> dict[str, Any]:
    """The identity of a training run's result, by name, as JSON values.

    Args:
        model: with its initial weights.
        dataset: images and labels to train on.
        validation: images and labels to validate on, or None.
        recipe: how it is trained.
    """
    preprocessing, network = Preprocessing.of(model), network_identity(model)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    identity = asdict(recipe) | {
        "architecture": digest(network["architecture"], frozen),
        "initial weights": network["weights"],
        "preprocessing": digest(preprocessing.settings, preprocessing.mean_image),
    }
    for role, data in (("training", dataset), ("validation", validation)):
        if data is not None:
            images = as_images(data)
            identity |= {f"{role} labels": digest(images.labels), f"{role} images": images.identity()}
    return identity


class Checkpoint:
    """The last state of a run and the one before it, in a folder."""

    def __init__(self, folder: str | Path, identity: Identity | None = None):
        self.path, self.identity = Path(folder) / "checkpoint.pt", dict(identity or {})
        self.previous = self.path.with_name("checkpoint.previous.pt")
        self.source = self.path  # the file of the state that was read
        self.damaged = False  # whether the last state is, and must not take the place of the one before
        self.kept = False  # whether this run has a state there

    def read(self) -> dict[str, Any] | None:
        """The last undamaged state; None without any. InputError if it is of another run, or all are damaged."""
        damage: Damaged | None = None
        for path in (self.path, self.previous):
            if not os.path.exists(path):
                continue
            try:
                state: dict[str, Any] = read_sealed(path, self.identity, ANEW)
            except Damaged as error:
                damage = damage or error
                continue
            if not isinstance(state, dict):
                raise InputError(f"{path} is not a checkpoint of this run: it holds {_shown(state)}; {ANEW}")
            self.source, self.damaged = path, damage is not None
            if path == self.previous and processes()[0] == 0:
                reason = "damaged" if damage else "missing"
                print(f"{self.path} is {reason}; resuming from {path}", file=sys.stderr)
            return state
        if damage:
            raise damage
        return None

    def write(self, state: Mapping[str, Any]) -> None:
        """Keep a state of this run, and the one before."""
        if self.kept and not os.path.exists(self.path):
            print(f"{self.path} was removed during the run; it is written again", file=sys.stderr)
        write_sealed(self.path, self.identity, dict(state), None if self.damaged else self.previous)
        self.damaged, self.kept = False, True

    def remove(self) -> None:
        """Remove both states."""
        remove(self.path, self.previous)


# ---- is a state one of this run? -------------------------------------------------------------------------------------

_ENTRY = {"epoch", "loss", "train_error", "learning_rate", "seconds", "images_per_second", "waiting"}
_FILTERS = {"largest_filter_rms", "median_filter_rms"}  # of a network with convolutions
_VALIDATION = {"validation_error", "validation_top5"}
_SLOTS = {  # what an optimizer keeps of a parameter, and the least value; a step is a number, all else has its shape
    torch.optim.SGD: {"momentum_buffer": -math.inf},
    torch.optim.AdamW: {"step": 0.0, "exp_avg": -math.inf, "exp_avg_sq": 0.0},
}


class _Stranger(Exception):
    """A value that no state of this run could have."""


def check_state(
    state: Any,
    source: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    recipe: Recipe,
    position: Mapping[str, Any],
    steps: int,
    validated: bool,
) -> None:
    """Raises InputError unless a run of this model, optimizer, scaler and recipe could have written this state.

    Nothing is loaded. A checkpoint's digest finds damage; this check finds files that somebody else made.

    Args:
        source: the file of the state, for the error.
        position: that of a run that begins, whose names the state's must have.
        steps: how many an epoch has.
        validated: whether the run has validation images.
    """
    try:
        _check_keys("the state", state, {"model", "optimizer", "scaler", "position", "mean_image"})
        _check_tensors("the weights", state["model"], model.state_dict())
        _check_keys("the position", state["position"], set(position))
        filtered = any(isinstance(module, nn.Conv2d) for module in model.modules())
        entries = _ENTRY | (_VALIDATION if validated else set()) | (_FILTERS if filtered else set())
        _check_position(state["position"], recipe, steps, entries)
        done = len(state["position"]["history"]) * steps + state["position"]["step"]
        _check_keys("the optimizer", state["optimizer"], {"state", "param_groups"})
        _check_groups(state["optimizer"]["param_groups"], optimizer.state_dict()["param_groups"])
        _check_slots(state["optimizer"]["state"], state["model"], model, optimizer, done)
        _check_scaler(state["scaler"], scaler.state_dict())
        _check_mean_image(state["mean_image"], Preprocessing.of(model) if recipe.pixel_mean else None)
    except _Stranger as error:
        raise InputError(f"{source} is not a checkpoint of this run: {error}; {ANEW}") from None


def _check_keys(name: str, value: Any, expected: set[Any]) -> None:
    if not isinstance(value, dict):
        raise _Stranger(f"{name} is {_shown(value)}")
    if missing := [key for key in expected if key not in value]:
        raise _Stranger(f"{name} lacks {min(map(str, missing))}")
    if extra := [key for key in value if key not in expected]:
        raise _Stranger(f"{name} has an unknown {_shown(extra[0])}")


def _check_number(name: str, value: Any, least: float, most: float, whole: bool = False) -> None:
    if (type(value) is not int and (whole or type(value) is not float)) or not least <= value <= most:
        limits = f"{least:g} to {most:g}" if most < math.inf else f"{least:g}"
        raise _Stranger(f"{name} is {_shown(value)}, no{' whole' * whole} number from {limits}")
    if not value < 2.0**1000:
        raise _Stranger(f"{name} is {_shown(value)}")


def _check_tensors(name: str, values: Any, expected: Mapping[str, Any]) -> None:
    _check_keys(name, values, set(expected))
    for key, own in expected.items():
        if isinstance(own, Tensor):  # a module may keep other things as well
            _check_tensor(f"{name} {key}", values[key], own)


def _check_tensor(name: str, value: Any, like: Tensor, least: float = -math.inf) -> None:
    """A plain tensor of this shape and type, whose numbers are finite and not below the least."""
    plain = type(value) is Tensor and value.layout == torch.strided and not value.is_nested
    if not plain or value.is_quantized or value.device.type != "cpu":
        raise _Stranger(f"{name} is {_shown(value)}")
    if value.shape != like.shape or value.dtype != like.dtype:
        kinds = (f"{tuple(tensor.shape)} of {tensor.dtype}" for tensor in (value, like))
        raise _Stranger("{} is {}, not {}".format(name, *kinds))
    if not value.isfinite().all() or (value.numel() and least > -math.inf and value.min() < least):
        raise _Stranger(f"{name} has values that training cannot produce")


def _check_groups(groups: Any, own: list[dict[str, Any]]) -> None:
    if not isinstance(groups, list) or len(groups) != len(own):
        raise _Stranger(f"the optimizer's groups are {_shown(groups)}")
    for group, ours in zip(groups, own, strict=True):
        _check_keys("a group of the optimizer", group, set(ours))
        _check_number("the learning rate", group["lr"], 0, math.inf)
        for key in ours.keys() - {"lr"}:
            if type(group[key]) is not type(ours[key]) or group[key] != ours[key]:
                raise _Stranger(f"the optimizer's {key} is {_shown(group[key])}, not {_shown(ours[key])}")


def _check_slots(
    slots: Any, weights: Mapping[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer, steps: int
) -> None:
    """Check the optimizer's state of each parameter; each tensor gets its own memory."""
    parameters = dict(enumerate(model.named_parameters()))
    if not isinstance(slots, dict) or not all(type(n) is int and n in parameters for n in slots):
        raise _Stranger(f"the optimizer's state is {_shown(slots)}")
    least = {} if optimizer.defaults.get("momentum") == 0 else _SLOTS[type(optimizer)]
    for n, (name, parameter) in parameters.items():
        where = f"the optimizer's state of {name}"
        if n not in slots:
            if least and steps and parameter.requires_grad and not _is_unused(weights[name], parameter.detach()):
                raise _Stranger(f"{where} is missing")
            continue
        slot = slots[n]
        if not least and isinstance(slot, dict) and all(value is None for value in slot.values()):
            continue  # some versions of torch keep no momentum under its name
        _check_keys(where, slot, set(least))
        for key, lowest in least.items():
            _check_tensor(f"{key} in {where}", slot[key], torch.tensor(0.0) if key == "step" else parameter, lowest)
            slot[key] = slot[key].clone()  # the optimizer takes it as it is, and it may be a view of another
        if "step" in slot and slot["step"] > steps:
            raise _Stranger(f"step in {where} is {slot['step']:g} of {steps}")


def _is_unused(weight: Tensor, initial: Tensor) -> bool:
    """Whether a parameter has had no gradient: it is the initial one, but for the length of its filters."""
    one, other = weight.float(), initial.float().cpu()
    if one.ndim > 1:  # training shortens the filters of all convolutions
        one, other = (F.normalize(tensor.flatten(1), dim=1) for tensor in (one, other))
    return torch.allclose(one, other, rtol=0, atol=1e-6)


def _check_scaler(value: Any, own: Mapping[str, Any]) -> None:
    _check_keys("the scaler", value, set(own))
    for key in own:
        if key in ("scale", "_growth_tracker"):
            _check_number(f"the scaler's {key}", value[key], 0, 2.0**126, whole=key != "scale")
        elif value[key] != own[key]:
            raise _Stranger(f"the scaler's {key} is {_shown(value[key])}, not {own[key]}")


def _check_position(value: dict[str, Any], recipe: Recipe, steps: int, entries: set[str]) -> None:
    history, step = value["history"], value["step"]
    if not isinstance(history, list) or len(history) > recipe.epochs:
        raise _Stranger(f"its history is {_shown(history)} for {recipe.epochs} epochs")
    for epoch, entry in enumerate(history, 1):
        name = f"entry {epoch} of its history"
        _check_keys(name, entry, entries)
        _check_number(f"the epoch of {name}", entry["epoch"], epoch, epoch, whole=True)
        for key in entries - {"epoch"}:
            share = "error" in key or "top5" in key
            _check_number(f"{key} of {name}", entry[key], 0, 1 if share else math.inf)
    last = steps if len(history) < recipe.epochs else 0
    _check_number("its step", step, 0, last, whole=True)
    _check_number("its count of images", value["count"], 0, step * recipe.batch_size)
    _check_number("its count of errors", value["wrong"], 0, value["count"])
    for key in ("loss", "seconds", "waited"):
        _check_number(f"its {key}", value[key], 0, math.inf)
    broken = value["broken"]
    if not isinstance(broken, dict) or not set(broken) <= {"training", "validation"}:
        raise _Stranger(f"its broken images are {_shown(broken)}")
    for kind, names in broken.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise _Stranger(f"its broken images of {kind} are {_shown(names)}")
    if step and not value["count"] and not broken.get("training"):
        raise _Stranger(f"its count of images is 0 after {step} steps")


def _check_mean_image(value: Any, preprocessing: Preprocessing | None) -> None:
    if preprocessing is None:
        if value is not None:
            raise _Stranger(f"its mean image is {_shown(value)}, but the recipe has none")
        return
    shape = tuple(value.shape) if isinstance(value, Tensor) else ()
    size = (preprocessing.channel_count, *preprocessing.image_size)
    if len(shape) != 3 or shape[0] != size[0] or shape[1] < size[1] or shape[2] < size[2]:
        raise _Stranger(f"its mean image is {_shown(value)}, not of {size}")
    _check_tensor("its mean image", value, torch.empty(shape, device="meta"))


def _shown(value: Any) -> str:
    """A few words on a value of any kind."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}" if not value.is_nested else "a nested tensor"
    if isinstance(value, int) and value.bit_length() > 64:  # of which Python may print no more than 4,300 digits
        return "an enormous number"
    if isinstance(value, str | int | float | None) and len(str(value)) < 40:
        return repr(value)
    return f"{with_article(value)}{f' of {len(value)}' if isinstance(value, list | dict | tuple) else ''}"
