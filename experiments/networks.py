"""Networks trained from scratch for comparison, each once: where the folder has it, it is read."""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import TensorDataset

from experiments.models import build
from experiments.train import MEMORY
from zfnet import weights
from zfnet.data.transforms import Preprocessing
from zfnet.train import Recipe, in_memory, processes, train


class Trained(NamedTuple):
    model: nn.Module  # in eval mode, with its preprocessing
    history: list[dict[str, float]]


class Networks:
    """The networks of one data set.  training, validation: uint8 images and labels, read when they are first needed."""

    def __init__(
        self,
        folder: str | Path,
        training: Any,
        validation: Any,
        preprocessing: Preprocessing,
        *,
        device: torch.device | str = "cpu",
        workers: int | None = None,
        progress: bool = True,
    ):
        self.folder, self.preprocessing, self.device = Path(folder), preprocessing, device
        self.workers, self.progress = workers, progress
        self._training, self._validation = training, validation

    @functools.cached_property
    def training(self) -> TensorDataset:
        return self._held(self._training, "training images")

    @functools.cached_property
    def validation(self) -> TensorDataset:
        return self._held(self._validation, "validation images")

    def _held(self, dataset: Any, what: str) -> TensorDataset:
        return in_memory(dataset, limit=MEMORY, workers=self.workers, progress=self.progress, what=what)

    @functools.cached_property
    def _data(self) -> list[Any]:
        """What tells one data set from another, without reading it all."""
        first, last = (self._training[i][0] for i in (0, len(self._training) - 1))
        ends = [hashlib.blake2b(image.numpy().tobytes()).hexdigest() for image in (first, last)]
        return [len(self._training), len(self._validation), ends]

    def trained(self, name: str, architecture: Callable[[], nn.Module], recipe: Recipe) -> Trained:
        """The network of that name, architecture, recipe and seed (the recipe's): trained now, unless it was before.

        A run that was stopped goes on.  InputError where training fails, such as for a loss that is not finite.
        """
        model = build(architecture, preprocessing=self.preprocessing, seed=recipe.seed).to(self.device)
        about = [repr(model), asdict(recipe), self.preprocessing.to_json(), self._data]
        digest = hashlib.blake2b(repr(about).encode(), digest_size=4)
        for weight in model.state_dict().values():
            digest.update(weight.cpu().contiguous().numpy().tobytes())
        folder = self.folder / f"{name}, seed {recipe.seed}, {digest.hexdigest()}"
        file = folder / "model.safetensors"
        if file.exists():
            weights.load(model, file)
            return Trained(model.eval(), weights.read_metadata(file)["history"])
        if self.progress and processes()[0] == 0:
            print(f"training {name}, seed {recipe.seed}")
        history = train(
            model, self.training, self.validation, recipe, folder=folder, workers=self.workers, progress=self.progress
        )
        if processes()[0] == 0:
            classes = list(getattr(self._training, "classes", []))
            weights.save(
                model, file, architecture=type(model).__name__, name=name, recipe=asdict(recipe), history=history,
                classes=classes,
            )  # fmt: skip
            (folder / "checkpoint.pt").unlink()
        if processes()[1] > 1:
            dist.barrier()
        return Trained(model, history)
