"""Train a network as the paper did: SGD with momentum, and filters renormalised after every step.

    filter <- filter * min(1, 0.1 / RMS(filter))       for every convolution filter, over its own weights

Everything random comes from the seed and the epoch, so that a run that was stopped goes on to the same weights as one
that was not.  Zeiler & Fergus (2014), section 3.
"""

import io
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from tqdm import tqdm

from zfnet.data.batches import Batches
from zfnet.errors import InputError, unknown
from zfnet.files import write_atomically
from zfnet.record import evaluating, like

SCHEDULES = ("constant", "cosine")
OPTIMIZERS = ("sgd", "adam")


class Diverged(InputError):
    """The loss is not finite: what a recipe can do to a network, and Figure 6 shows."""


@dataclass(frozen=True)
class Recipe:
    """How to train.  Learning rate, momentum, batch and rms are the paper's."""

    epochs: int = 70
    batch_size: int = 128
    learning_rate: float = 0.01
    optimizer: str = "sgd"  # "adam" learns without hand-tuned rates where there are minutes, not days
    momentum: float = 0.9
    weight_decay: float = 0.0
    rms: float | None = 0.1  # None: filters are not renormalised
    schedule: str = "constant"  # "cosine": up over the first tenth of the steps, then down to zero
    shift: int = 0  # pixels by which images are shifted at random, each way
    flip: bool = True  # half of the images are mirrored
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0; got {getattr(self, name)}")
        for kind, choice, choices in (
            ("schedule", self.schedule, SCHEDULES),
            ("optimizer", self.optimizer, OPTIMIZERS),
        ):
            if choice not in choices:
                raise unknown(kind, choice, choices)

    def optimise(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of the model's parameters."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                model.parameters(), self.learning_rate, self.momentum, weight_decay=self.weight_decay
            )
        betas = (self.momentum, 0.999)
        return torch.optim.AdamW(model.parameters(), self.learning_rate, betas, weight_decay=self.weight_decay)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate at a step."""
        if self.schedule == "constant":
            return self.learning_rate
        rise = max(1, steps // 10)
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        return self.learning_rate * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


def renormalise(model: nn.Module, rms: float = 0.1) -> None:
    """Scale every convolution filter whose root mean square exceeds `rms` back to it."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                size = module.weight.square().mean((1, 2, 3), keepdim=True).sqrt()
                module.weight.mul_((rms / size).clamp(max=1))


def in_memory(dataset: Any, *, workers: int | None = None, progress: bool = True, what: str = "read") -> TensorDataset:
    """All images and labels of a dataset that fits, read once by worker processes."""
    if isinstance(dataset, TensorDataset):
        return dataset
    images, labels, batches = [], [], Batches(dataset, workers=workers)
    with tqdm(total=len(dataset), unit=" images", desc=what, disable=not progress) as bar:
        for batch in batches:
            images.append(batch.images)
            labels.append(batch.labels)
            bar.update(len(batch.index))
    if not images:
        raise InputError(f"none of the {len(dataset)} images could be read: {batches.broken[0]}")
    return TensorDataset(torch.cat(images), torch.cat(labels))


def augment(images: Tensor, recipe: Recipe, random: torch.Generator) -> Tensor:
    """Images (N, 3, H, W), each shifted and mirrored at random; what a shift uncovers repeats the border."""
    rows, columns = images.shape[-2:]
    if recipe.shift:
        padded = F.pad(images, [recipe.shift] * 4, mode="replicate")
        corners = torch.randint(2 * recipe.shift + 1, (len(images), 2), generator=random).tolist()
        images = torch.stack([x[:, r : r + rows, c : c + columns] for x, (r, c) in zip(padded, corners, strict=True)])
    if recipe.flip:
        mirrored = (torch.rand(len(images), generator=random) < 0.5).to(images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images


def error_rate(model: nn.Module, dataset: Any, *, batch_size: int = 128, top: int = 1) -> float:
    """The share of images whose label is not among the `top` most probable classes."""
    wrong = seen = 0
    with evaluating(model):
        for _, images, labels in Batches(dataset, batch_size):
            best = model(images.to(**like(model))).topk(top).indices.cpu()
            wrong += int((best != labels[:, None]).all(1).sum())
            seen += len(labels)
    return wrong / seen


def _batches(dataset: Any, recipe: Recipe, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
    order = torch.randperm(len(dataset), generator=random)
    for _, images, labels in Batches(dataset, recipe.batch_size, indices=order):
        if len(images) > 1 or len(dataset) == 1:
            yield augment(images, recipe, random), labels


def train(
    model: nn.Module, dataset: Any, validation: Any = None, recipe: Recipe | None = None, *,
    folder: str | Path | None = None, progress: bool = True,
) -> list[dict[str, float]]:  # fmt: skip
    """Train a model, in place, on a dataset of (image, label); returns loss and error rates of each epoch.

    folder: where each epoch's end is kept, and from which a run that was stopped goes on.  InputError for labels beyond
    the model's classes, and for a loss that is not finite: the last good epoch is kept.
    """
    recipe = recipe or Recipe()
    place, history, start = like(model), [], 0
    optimizer = recipe.optimise(model)
    checkpoint = Path(folder) / "checkpoint.pt" if folder else None
    if checkpoint and checkpoint.exists():
        kept = torch.load(checkpoint, map_location=place["device"], weights_only=True)
        if kept["recipe"] != asdict(recipe) or kept["images"] != len(dataset):
            raise InputError(f"{checkpoint} is of another recipe or dataset: go on with those, or delete it")
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        history, start = kept["history"], len(kept["history"])
    per_epoch = -(-len(dataset) // recipe.batch_size)
    model.train()
    for epoch in range(start, recipe.epochs):
        torch.manual_seed(recipe.seed * 100_003 + epoch)  # dropout
        loss_sum = wrong = seen = 0.0
        bar = tqdm(total=len(dataset), unit=" images", desc=f"epoch {epoch + 1}/{recipe.epochs}", disable=not progress)
        with bar:
            for step, (images, labels) in enumerate(_batches(dataset, recipe, epoch), epoch * per_epoch):
                for group in optimizer.param_groups:
                    group["lr"] = recipe.rate(step, recipe.epochs * per_epoch)
                logits = model(images.to(**place).contiguous(memory_format=torch.channels_last))
                if not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
                    raise InputError(f"labels {int(labels.min())}..{int(labels.max())} for {logits.shape[1]} classes")
                labels = labels.to(logits.device)
                loss = F.cross_entropy(logits, labels)
                if not loss.isfinite():
                    raise Diverged(
                        f"the loss is {float(loss.detach())} in epoch {epoch + 1}, step {step}: lower the learning "
                        f"rate ({recipe.learning_rate})" + (f"; {checkpoint} is the last good epoch" if epoch else "")
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                if recipe.rms is not None:
                    renormalise(model, recipe.rms)
                loss_sum += float(loss.detach()) * len(labels)
                wrong += int((logits.detach().argmax(1) != labels).sum())
                seen += len(labels)
                bar.update(len(labels))
                bar.set_postfix(loss=f"{loss_sum / seen:.3f}", error=f"{wrong / seen:.1%}")
        history.append({"epoch": epoch + 1, "loss": loss_sum / seen, "train_error": wrong / seen})
        if validation is not None:
            history[-1]["validation_error"] = error_rate(model, validation)
            if progress:
                tqdm.write(f"epoch {epoch + 1}: validation error {history[-1]['validation_error']:.1%}")
        if checkpoint:
            buffer = io.BytesIO()
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
            torch.save(state | {"recipe": asdict(recipe), "images": len(dataset)}, buffer)
            write_atomically(checkpoint, buffer.getvalue())
    model.eval()
    return history
