"""The checkpoint of a training run: what the run depends on, and how far it has come.

A run resumes only from a checkpoint with its own identity and an intact content; else InputError says what differs.
"""

import contextlib
import os
import pickle
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import torch
from filelock import FileLock, Timeout
from torch import nn

from zfnet.data.images import TensorImages, as_images
from zfnet.data.preprocessing import Preprocessing
from zfnet.errors import InputError, first_line
from zfnet.files import write_atomically
from zfnet.identity import digest
from zfnet.training.processes import processes
from zfnet.training.recipe import Recipe

ANEW = "start anew with fresh=True or in another folder"
# what a file that is cut short or has wrong bytes makes torch.load and digest raise
UNREADABLE = (
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)


def run_identity(model: nn.Module, dataset: Any, validation: Any, recipe: Recipe) -> dict[str, Any]:
    """What the result of a training run depends on, by name, as JSON values.

    Args:
        model: with its initial weights.
        dataset: images and labels to train on.
        validation: images and labels to validate on, or None.
        recipe: how it is trained.
    """
    preprocessing = Preprocessing.of(model)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    identity = {
        "recipe": asdict(recipe),
        "architecture": digest(repr(model), frozen),
        "initial weights": digest(*(part for pair in model.state_dict().items() for part in pair)),
        "preprocessing": digest(preprocessing.settings, preprocessing.mean_image),
    }
    for role, data in (("training", dataset), ("validation", validation)):
        if data is not None:
            images = as_images(data)
            identity[f"{role} labels"] = digest(images.labels)
            if isinstance(images, TensorImages):
                identity[f"{role} images"] = digest(images.images)
            else:
                identity[f"{role} dataset"] = images.identity()
    return identity


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between the identities of two runs, in words; "" if nothing does."""
    recipes = before.get("recipe", {}), now.get("recipe", {})
    fields = [name for name in {**recipes[0], **recipes[1]} if recipes[0].get(name) != recipes[1].get(name)]
    words = [f"{name} {recipes[0].get(name)}, now {recipes[1].get(name)}" for name in fields]
    names = [name for name in {**before, **now} if name != "recipe" and before.get(name) != now.get(name)]
    return "; ".join([*words, *([f"other {', '.join(names)}"] if names else [])])


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder; InputError if one is there already."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(f"another run is training in {folder}: wait for it, or use another folder") from None
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # before it is released: who has opened this one is refused
        lock.release()


class Damaged(InputError):
    """A checkpoint whose content is not what was written."""


class Checkpoint:
    """The last state of a run and the one before it, in a folder."""

    def __init__(self, folder: str | Path, identity: Mapping[str, Any] | None = None):
        self.path, self.identity = Path(folder) / "checkpoint.pt", dict(identity or {})
        self.previous = self.path.with_name("checkpoint.previous.pt")

    def read(self) -> dict[str, Any] | None:
        """The last intact state; None where there is none. InputError if it is of another run, or none is intact."""
        damage: InputError | None = None
        for path in (self.path, self.previous):
            if not path.exists():
                continue
            try:
                state = _load(path)
            except Damaged as error:
                damage = damage or error
                continue
            if words := difference(state["identity"], self.identity):
                raise InputError(f"{path} is of another run ({words}): resume that one, or {ANEW}")
            if path == self.previous and processes()[0] == 0:
                print(f"{damage or f'{self.path} is missing'}; resuming from {path}", file=sys.stderr)
            return state
        if damage:
            raise InputError(f"{damage}; put back a copy of it, or {ANEW}")
        return None

    def write(self, state: Mapping[str, Any]) -> None:
        """Keep a state of this run, and the one before."""
        content = {**state, "identity": self.identity}
        content["digest"] = digest(*_leaves(content))

        def save(file: BinaryIO) -> None:
            torch.save(content, file)
            if self.path.exists():
                os.replace(self.path, self.previous)

        write_atomically(self.path, save)

    def remove(self) -> None:
        """Remove both states."""
        for path in (self.path, self.previous):
            path.unlink(missing_ok=True)


def _load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, checked against its digest."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        known = content.pop("digest", None)
        intact = known == digest(*_leaves(content))
    except UNREADABLE as error:
        raise Damaged(f"cannot read {path}, it is no whole checkpoint ({first_line(error)})") from None
    if known is None and "images" in content:
        raise InputError(f"{path} is of an older version, which did not record its images: {ANEW}")
    if not intact:
        raise Damaged(f"cannot read {path}, it is damaged (its content has another digest)")
    return dict(content)


def _leaves(value: Any) -> Iterator[Any]:
    """All that nested mappings and lists hold, in order, as `digest` takes it."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield key
            yield from _leaves(entry)
    elif isinstance(value, list | tuple):
        yield len(value)
        for entry in value:
            yield from _leaves(entry)
    else:
        yield value
