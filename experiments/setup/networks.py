"""Trained networks, found by the identity of their training, or trained from scratch."""

import copy
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import TensorDataset

from experiments.setup.models import build
from zfnet import weights
from zfnet.data.images import ForeignImages, as_images
from zfnet.data.preprocessing import Preprocessing
from zfnet.errors import InputError, with_article
from zfnet.identity import digest
from zfnet.training import Checkpoint, Recipe, in_memory, processes, run_identity, train

EPOCHS = (1, 2, 5, 10, 20, 30, 40, 64)  # whose weights are kept: Figure 4's
MEMORY = 4 * 2**30  # bytes of images that are read once and kept; larger data sets are read in every epoch


def described(model: nn.Module, recipe: Recipe, training: Any, validation: Any) -> dict[str, Any]:
    """The metadata of a run's weights; `model` has its initial weights."""
    return {
        "architecture": type(model).__name__,
        "identity": run_identity(model, training, validation, recipe),
        "classes": list(as_images(training).classes),
    }


def find_trained(files: Iterable[Path], identity: dict[str, Any]) -> Path | None:
    """The first of these files of weights whose training had this identity; see `zfnet.training.run_identity`.

    InputError if one of the files before it is damaged.
    """
    for file in files:
        if file.exists():
            try:
                metadata = weights.read_metadata(file)
            except InputError as error:
                raise InputError(f"{error}; delete it to train again") from None
            if metadata.get("identity") == identity and isinstance(metadata.get("history"), list):
                return file
    return None


def seen_by(model: nn.Module, data: Any) -> Any:
    """The images as a network sees them that was trained by an experiment, less the mean image of its training.

    Args:
        model: the network; training by the recipe's `pixel_mean` left its mean image in its preprocessing.
        data: the images by the preprocessing that the network had before. They stay as they are.
    """
    preprocessing = Preprocessing.of(model)
    if preprocessing.mean_image is None:
        return data
    seen = holder = copy.copy(data)
    if isinstance(seen, ForeignImages):
        seen.dataset = holder = copy.copy(seen.dataset)
    if not hasattr(holder, "transform"):
        raise InputError(f"{with_article(data)} has no transform, to subtract a mean image: set pixel_mean=false")
    holder.transform = preprocessing
    return seen


class Trained(NamedTuple):
    model: nn.Module  # in eval mode, with its preprocessing
    history: list[dict[str, float]]


class Networks:
    """The networks of one data set, each trained once and kept in a folder.

    Args:
        folder: where they are kept.
        training: uint8 images and labels, read when they are first needed.
        validation: as `training`, or None.
        preprocessing: of all the networks.
        also: other files of weights to search first, such as those of experiment=train.
        device: where they are trained.
        fresh: restart interrupted trainings instead of resuming them.
        workers: processes that read images; None: one for each core, up to eight.
        progress: show progress bars.
    """

    def __init__(
        self,
        folder: str | Path,
        training: Any,
        validation: Any,
        preprocessing: Preprocessing,
        *,
        also: Iterable[Path] = (),
        device: torch.device | str = "cpu",
        fresh: bool = False,
        workers: int | None = None,
        progress: bool = True,
    ):
        self.folder, self.preprocessing, self.device = Path(folder), preprocessing, device
        self.also, self.fresh, self.workers, self.progress = list(also), fresh, workers, progress
        self._training, self._validation = training, validation

    @functools.cached_property
    def training(self) -> TensorDataset:
        return self._held(self._training, "training images")

    @functools.cached_property
    def validation(self) -> Any:  # None where there are none
        return self._validation and self._held(self._validation, "validation images")

    @property
    def classes(self) -> list[str]:
        """Names of the classes; none where the images have none."""
        return list(as_images(self._training).classes)

    def _held(self, dataset: Any, description: str) -> TensorDataset:
        return in_memory(dataset, limit=MEMORY, workers=self.workers, progress=self.progress, description=description)

    def trained(self, name: str, architecture: Callable[[], nn.Module], recipe: Recipe) -> Trained:
        """The network of that name, architecture, recipe and seed (the recipe's); it is trained if it does not exist.

        An interrupted run resumes. Raises InputError if training fails, such as for a loss that is not finite.
        """
        model = build(architecture, preprocessing=self.preprocessing, seed=recipe.seed).to(self.device)
        metadata = described(model, recipe, self._training, self._validation)
        key = digest(metadata["identity"])[:8]
        folder = self.folder / f"{name}, seed {recipe.seed}, {key}"
        files = [*self.folder.glob(f"*, {key}/model.safetensors"), *self.also]
        if file := find_trained(files, metadata["identity"]):
            try:
                weights.load(model, file)
            except InputError as error:
                raise InputError(f"{error}; delete it to train again") from None
            return Trained(model.eval(), weights.read_metadata(file)["history"])
        if self.progress and processes()[0] == 0:
            print(f"training {name}, seed {recipe.seed}")
        how: Any = {"fresh": self.fresh, "workers": self.workers, "progress": self.progress}
        history = train(model, self.training, self.validation, recipe, folder=folder, **how)
        if processes()[0] == 0:
            weights.save(model, folder / "model.safetensors", name=name, history=history, **metadata)
            Checkpoint(folder).remove()
        if processes()[1] > 1:
            dist.barrier()
        return Trained(model, history)
