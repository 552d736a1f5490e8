"""Networks trained from scratch for comparison, each once: where the folder has it, it is read."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import TensorDataset

from experiments.models import build
from experiments.train import MEMORY, described
from zfnet import weights
from zfnet.data.preprocessing import Preprocessing
from zfnet.training import Recipe, in_memory, processes, train


class Trained(NamedTuple):
    model: nn.Module  # in eval mode, with its preprocessing
    history: list[dict[str, float]]


class Networks:
    """The networks of one data set.  training, validation: uint8 images and labels, read when they are first needed.

    also: the file that experiment=train leaves, which is read where it is the very network that is asked for.
    """

    def __init__(
        self,
        folder: str | Path,
        training: Any,
        validation: Any,
        preprocessing: Preprocessing,
        *,
        also: str | Path | None = None,
        device: torch.device | str = "cpu",
        workers: int | None = None,
        progress: bool = True,
    ):
        self.folder, self.preprocessing, self.device = Path(folder), preprocessing, device
        self.also, self.workers, self.progress = also and Path(also), workers, progress
        self._training, self._validation = training, validation

    @functools.cached_property
    def training(self) -> TensorDataset:
        return self._held(self._training, "training images")

    @functools.cached_property
    def validation(self) -> Any:  # None where there are none
        return self._validation and self._held(self._validation, "validation images")

    def _held(self, dataset: Any, what: str) -> TensorDataset:
        return in_memory(dataset, limit=MEMORY, workers=self.workers, progress=self.progress, what=what)

    def trained(self, name: str, architecture: Callable[[], nn.Module], recipe: Recipe) -> Trained:
        """The network of that name, architecture, recipe and seed (the recipe's): trained now, unless it was before.

        A run that was stopped goes on.  InputError where training fails, such as for a loss that is not finite.
        """
        model = build(architecture, preprocessing=self.preprocessing, seed=recipe.seed).to(self.device)
        about = described(model, recipe, self._training, self._validation)
        digest = about["fingerprint"]
        folder = self.folder / f"{name}, seed {recipe.seed}, {digest}"
        file = folder / "model.safetensors"
        there = [*self.folder.glob(f"*, {digest}/model.safetensors"), *([self.also] if self.also else [])]
        for known in (path for path in there if path.exists()):
            kept = weights.read_metadata(known)
            if kept.get("fingerprint") == digest:
                weights.load(model, known)
                return Trained(model.eval(), kept["history"])
        if self.progress and processes()[0] == 0:
            print(f"training {name}, seed {recipe.seed}")
        history = train(
            model, self.training, self.validation, recipe, folder=folder, workers=self.workers, progress=self.progress
        )
        if processes()[0] == 0:
            weights.save(model, file, name=name, history=history, **about)
            (folder / "checkpoint.pt").unlink()
        if processes()[1] > 1:
            dist.barrier()
        return Trained(model, history)
