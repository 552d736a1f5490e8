"""The checkpoint of a training run: what the run depends on, and how far it has come.

A run resumes only from a checkpoint with its own identity and an intact content; else InputError says what differs.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import nn

from zfnet.data.images import as_images
from zfnet.data.preprocessing import Preprocessing
from zfnet.errors import InputError
from zfnet.identity import Damaged, Identity, digest, network_identity, read_sealed, write_sealed
from zfnet.training.processes import processes
from zfnet.training.recipe import Recipe

ANEW = "start anew with fresh=True or in another folder"


def run_identity(model: nn.Module, dataset: Any, validation: Any, recipe: Recipe) -> dict[str, Any]:
    """What the result of a training run depends on, by name, as JSON values.

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


class Checkpoint:
    """The last state of a run and the one before it, in a folder."""

    def __init__(self, folder: str | Path, identity: Identity | None = None):
        self.path, self.identity = Path(folder) / "checkpoint.pt", dict(identity or {})
        self.previous = self.path.with_name("checkpoint.previous.pt")

    def read(self) -> dict[str, Any] | None:
        """The last intact state; None where there is none. InputError if it is of another run, or none is intact."""
        damage: Damaged | None = None
        for path in (self.path, self.previous):
            if not path.exists():
                continue
            try:
                state: dict[str, Any] = read_sealed(path, self.identity, ANEW)
            except Damaged as error:
                damage = damage or error
                continue
            if path == self.previous and processes()[0] == 0:
                reason = "damaged" if damage else "missing"
                print(f"{self.path} is {reason}; resuming from {path}", file=sys.stderr)
            return state
        if damage:
            raise damage
        return None

    def write(self, state: Mapping[str, Any]) -> None:
        """Keep a state of this run, and the one before."""
        write_sealed(self.path, self.identity, dict(state), self.previous)

    def remove(self) -> None:
        """Remove both states."""
        for path in (self.path, self.previous):
            path.unlink(missing_ok=True)
