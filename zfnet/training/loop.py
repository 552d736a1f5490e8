"""The training loop: SGD with momentum, and filters renormalised after every step.

    filter <- filter * min(1, 0.1 / RMS(filter))       for every convolution filter, over its own weights

All random numbers come from the seed, the epoch and the step. So a killed run resumes and reaches the same weights, and
processes that share the work (`torchrun`) draw the same numbers as one process. Zeiler & Fergus (2014), section 3.
"""

import contextlib
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from zfnet.checks import check_weights, device_and_dtype
from zfnet.data.batches import Batches, Broken
from zfnet.data.crops import augment, crop_size, mean_image, on_device, preprocessing_of
from zfnet.data.images import as_images
from zfnet.errors import InputError, first_line
from zfnet.files import locked
from zfnet.processes import from_all, from_first, processes, total
from zfnet.training.checkpoints import Checkpoint, check_state, run_identity
from zfnet.training.evaluation import check_labels, missed_in, network_input
from zfnet.training.recipe import Recipe

SAVE_EVERY = 300.0  # seconds between two checkpoints within an epoch
Epochs = list[dict[str, float]]  # of each: loss, error rates, speed


class History(Epochs):
    """Loss, error rates and speed of each epoch of a run.

    `broken` names the images that could not be read, by what they are for: "training" and "validation".
    """

    def __init__(self, epochs: Epochs, broken: Mapping[str, Sequence[str]]) -> None:
        super().__init__(epochs)
        self.broken = {kind: list(names) for kind, names in broken.items()}


class Diverged(InputError):
    """A loss or a weight that is not finite."""


def renormalise(model: nn.Module, rms: float = 0.1) -> None:
    """Scale every convolution filter whose root mean square exceeds `rms` back to it."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                size = module.weight.square().mean((1, 2, 3), keepdim=True).sqrt()
                module.weight.mul_((rms / size).clamp(max=1))


def filter_rms(weight: Tensor) -> Tensor:
    """The root mean square (C,) of each filter of weight (C, ...), over its own weights; float32 or wider."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32)).flatten(1).square().mean(1).sqrt()


def filter_sizes(model: nn.Module) -> dict[str, float]:
    """The largest and the median root mean square of the filters of the first convolution; {} without one."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        return {}
    sizes = filter_rms(first.weight.detach())
    return {"largest_filter_rms": float(sizes.max()), "median_filter_rms": float(sizes.quantile(0.5))}


def rate_falls(history: Sequence[Mapping[str, float]]) -> list[int]:
    """The epochs, from 2, whose learning rate was lower than that of the epoch before."""
    rates = [entry["learning_rate"] for entry in history]
    return [epoch for epoch, (before, now) in enumerate(pairwise(rates), 2) if now < before]


def train(
    model: nn.Module,
    dataset: Any,
    validation: Any = None,
    recipe: Recipe | None = None,
    *,
    folder: str | Path | None = None,
    fresh: bool = False,
    workers: int | None = None,
    progress: bool = True,
    allow_broken: bool = False,
    on_epoch: Callable[[Epochs], None] | None = None,
) -> History:
    """Train a model in place; returns loss and error rates of each epoch, and the images that could not be read.

    Such images are left out, with a warning that counts them.
    Where `torch.distributed` runs, each process takes its share of every batch.

    Args:
        model: to resume a run, give the architecture and initial weights of its start. State that a model keeps from
            step to step must be in its `state_dict`, or it is lost when a run resumes.
        dataset: (image, label) by index. Images are float (3, H, W), or uint8, which `model.preprocessing` crops and
            normalises.
        validation: (image, label) by index, to measure error rates on after each epoch.
        recipe: how to train; None: the defaults of `Recipe`.
        folder: keeps a checkpoint, written every epoch and every few minutes, from which an interrupted run resumes.
        fresh: remove the checkpoint in `folder` and start again.
        workers: processes that read images; None: one for each core, up to eight.
        progress: show progress bars.
        allow_broken: continue even if more than 1 % of the training or validation images cannot be read.
        on_epoch: called with the history so far after each epoch, before its checkpoint.

    Raises:
        InputError: for labels beyond the model's classes, a folder with a checkpoint of another run or with a run that
            is alive, too many images that cannot be read, and a loss or weights that are not finite: the last good
            checkpoint is then kept.
    """
    recipe = recipe or Recipe()
    rank, world = processes()
    if recipe.batch_size % world:
        raise InputError(f"batch_size {recipe.batch_size} cannot be shared by {world} processes")
    if recipe.schedule == "plateau" and validation is None:
        raise InputError("the schedule plateau needs validation images; give them, or schedule=cosine")
    if not len(as_images(dataset)):
        raise InputError("there are no images to train on")
    if validation is not None and not len(as_images(validation)):
        raise InputError("there are no images to validate on")
    run = _Run(model, dataset, validation, recipe, workers, progress and rank == 0, allow_broken, on_epoch)
    alone = locked(Path(folder, ".lock"), f"is training in {folder}") if folder and rank == 0 else None
    with alone or contextlib.nullcontext():
        if folder and fresh and rank == 0:
            Checkpoint(folder).remove()
        run.begin(folder)
        return run.train()


@dataclass
class _Position:
    """The progress of a run: finished epochs, and the position in the current one."""

    history: Epochs
    step: int = 0  # of the present epoch
    loss: float = 0.0  # sums over its images so far, but for those of steps that are not settled
    wrong: float = 0.0
    count: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0  # for images
    broken: dict[str, list[str]] = field(default_factory=dict)  # names of images, as in `History`


@dataclass
class _Run:
    """One training run; see `train`."""

    model: nn.Module
    dataset: Any
    validation: Any
    recipe: Recipe
    workers: int | None
    progress: bool
    allow_broken: bool
    on_epoch: Callable[[Epochs], None] | None

    def __post_init__(self) -> None:
        model, recipe = self.model, self.recipe
        self.rank, self.world = processes()
        self.device = torch.device(device_and_dtype(model)["device"])
        self.dtype = recipe.dtype(self.device)
        self.optimizer = recipe.make_optimizer(model)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.position = _Position([])
        self.settled_at_once = _settled_at_once(self.device)
        self.unsettled: list[tuple[int, int, Tensor]] = []  # the last steps: number, images, sums of loss and errors
        self._make_broken()
        self.checkpoint: Checkpoint | None = None
        self.saved_at = monotonic()
        self.steps, rest = divmod(len(self.dataset), recipe.batch_size)  # of an epoch
        if rest >= 2 * self.world or not self.steps:  # a single image is no batch, unless there is no other
            self.steps += 1

    def begin(self, folder: str | Path | None) -> None:
        """Resume from the checkpoint of the folder, if it has one."""
        state = None
        if folder:
            arguments = self.model, self.dataset, self.validation, self.recipe
            identity = from_first(run_identity(*arguments) if self.rank == 0 else None, self.device)
            self.checkpoint = Checkpoint(folder, identity)
            state = self.checkpoint.read()
            if state is not None:
                run = self.model, self.optimizer, self.scaler, self.recipe, asdict(self.position)
                check_state(state, self.checkpoint.source, *run, self.steps, self.validation is not None)
        self.dataset, self.validation = (on_device(data, self.device) for data in (self.dataset, self.validation))
        if state:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.position = _Position(**state["position"])
            self._make_broken()
        if self.recipe.pixel_mean:
            preprocessing = preprocessing_of(self.model)
            mean = state["mean_image"] if state else None
            if mean is None:
                reading: Any = {"workers": self.workers, "progress": self.progress, "broken": self.broken["training"]}
                mean = mean_image(self.dataset, preprocessing, **reading)
            self.model.preprocessing = replace(preprocessing, mean_image=mean)  # type: ignore[assignment]
        devices = [self.device] if self.device.type == "cuda" else None
        self.network = DistributedDataParallel(self.model, devices) if self.world > 1 else self.model

    def _make_broken(self) -> None:
        datasets = {"training": self.dataset, "validation": self.validation}
        self.broken = {
            kind: Broken(kind, len(data), self.allow_broken, self.position.broken.get(kind, ()))
            for kind, data in datasets.items()
            if data is not None
        }

    def train(self) -> History:
        history = self.position.history
        while len(history) < self.recipe.epochs:
            self._epoch(len(history) + 1)
            self._finish_epoch()
        self.model.eval()
        return History(history, self._names())

    def _names(self) -> dict[str, list[str]]:
        return {kind: broken.names for kind, broken in self.broken.items()}

    def _batches(self, epoch: int) -> Generator[tuple[int, Tensor, Tensor], None, None]:
        """The remaining steps of the epoch, and this process' share of their batches, ready for the network."""
        recipe, start, share = self.recipe, self.position.step, slice(self.rank, None, self.world)
        order = torch.randperm(len(self.dataset), generator=_generator(recipe.seed, epoch))
        chunks = order.split(recipe.batch_size)[: self.steps]
        shares = [chunk[share] for chunk in chunks[start:]]
        batches = Batches(
            self.dataset,
            recipe.batch_size // self.world,
            indices=torch.cat(shares) if shares else [],
            workers=self.workers,
        )
        step_of = torch.zeros(len(self.dataset), dtype=torch.int64)  # a batch may be missing: all its images are broken
        for number, items in enumerate(shares, start):
            step_of[items] = number
        left_out = 0
        for index, images, labels in batches:
            self.broken["training"].add(batches.broken[left_out:])
            left_out = len(batches.broken)
            step = int(step_of[index[0]])
            size, random = crop_size(self.model, images), _generator(recipe.seed, epoch, step)
            if recipe.pixel_mean:  # the mean at each pixel of the whole image: subtracted before it is cropped
                images = network_input(self.model, images)
            images = augment(
                images,
                random,
                size,
                crops=recipe.crops,
                max_shift=recipe.shift(size),
                flip=recipe.flip,
                batch_size=len(chunks[step]),
                share=share,
            )
            yield step, network_input(self.model, images), labels
        self.broken["training"].add(batches.broken)

    def _epoch(self, epoch: int) -> None:
        recipe, position = self.recipe, self.position
        errors = [entry["validation_error"] for entry in position.history if "validation_error" in entry]
        bar = tqdm(
            total=len(self.dataset),
            initial=int(position.count),
            unit=" images",
            desc=f"epoch {epoch}/{recipe.epochs}",
            disable=not self.progress,
        )
        self.model.train()
        batches = self._batches(epoch)
        if self.device.type != "cpu":  # where the network leaves the processor free
            batches = _ahead(batches)
        clock = monotonic()
        with bar, contextlib.closing(batches):
            for step, images, labels in batches:
                if step > position.step and self.world > 1:
                    reason = f"process {self.rank} has no image for step {position.step + 1}"
                    raise InputError(
                        f"{reason}: {min(self.broken['training'].names)}; remove the images that are broken"
                    )
                position.step = step
                waited = monotonic() - clock
                rate = recipe.rate((epoch - 1) * self.steps + position.step, recipe.epochs * self.steps, errors)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                bar.update(self._step(images, labels, epoch))
                if position.count:
                    loss, error = position.loss / position.count, position.wrong / position.count
                    bar.set_postfix(loss=f"{loss:.3f}", error=f"{error:.1%}", refresh=False)
                position.waited += waited
                position.seconds += monotonic() - clock
                clock = monotonic()
                if self.checkpoint and monotonic() - self.saved_at > SAVE_EVERY:
                    self._settle(epoch)  # nothing is saved of which a loss was not finite
                    self._check_weights(epoch)
                    self._save()
            self._settle(epoch)
            position.seconds += monotonic() - clock

    def _step(self, images: Tensor, labels: Tensor, epoch: int) -> int:
        """One update; returns how many images all processes had."""
        position, recipe = self.position, self.recipe
        # dropout differs between processes: each has other images
        torch.manual_seed(_generator(recipe.seed, epoch, position.step, self.rank).initial_seed())
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self._logits(images)
            check_labels(labels, logits.shape[1])
            labels = labels.to(self.device, non_blocking=True)
            loss = F.cross_entropy(logits, labels, reduction="sum")
        count = len(labels) if self.world == 1 else int(total(torch.tensor([len(labels)], device=self.device)))
        self.optimizer.zero_grad(set_to_none=True)
        # DDP takes the mean over processes; this makes it the mean over images
        self.scaler.scale(loss * (self.world / count)).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if recipe.max_filter_rms is not None:
            renormalise(self.model, recipe.max_filter_rms)
        misses = (logits.detach().argmax(1) != labels).sum()
        sums = total(torch.stack([loss.detach().double(), misses.double()]))
        position.step += 1
        self.unsettled.append((position.step, count, sums))
        if len(self.unsettled) == self.settled_at_once:
            self._settle(epoch)
        return count

    def _settle(self, epoch: int) -> None:
        """Wait for the last steps and add up their losses and errors; `Diverged` for a loss that is not finite."""
        if not self.unsettled:
            return
        position, numbers = self.position, torch.stack([sums for *_, sums in self.unsettled]).tolist()
        for (step, count, _), (loss, wrong) in zip(self.unsettled, numbers, strict=True):
            if not math.isfinite(loss):
                self._stop(f"the loss is {loss}", epoch, step)
            position.loss += loss
            position.wrong += wrong
            position.count += count
        self.unsettled.clear()

    def _logits(self, images: Tensor) -> Tensor:
        try:
            logits: Tensor = self.network(images)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as error:
            name, shape = type(self.model).__name__, tuple(images.shape)
            raise InputError(f"{name} fails on images of shape {shape}: {first_line(error)}") from error
        return logits

    def _stop(self, reason: str, epoch: int, step: int) -> None:
        rate, path = self.recipe.learning_rate, self.checkpoint and self.checkpoint.path
        raise Diverged(
            f"{reason} in epoch {epoch}, step {step}: lower the learning rate ({rate})"
            + (f"; the last good state is in {path}" if path and path.exists() else "")
        )

    def _finish_epoch(self) -> None:
        position, epoch = self.position, len(self.position.history) + 1
        if not position.count:
            raise InputError(f"no image of epoch {epoch} could be read, first: {min(self.broken['training'].names)}")
        count, seconds = position.count, max(position.seconds, 1e-9)
        entry = {"epoch": epoch, "loss": position.loss / count, "train_error": position.wrong / count}
        if self.validation is not None:
            entry |= self._validate()
        entry |= filter_sizes(self.model)
        entry |= {
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": position.seconds,
            "images_per_second": position.count / seconds,
            "waiting": position.waited / seconds,
        }
        self._check_weights(epoch)
        position.history.append(entry)
        self._share_broken()
        self.position = _Position(position.history)
        if self.progress and self.validation is not None:
            tqdm.write(f"epoch {epoch}: validation error {entry['validation_error']:.1%}")
        if self.on_epoch and self.rank == 0:
            self.on_epoch(position.history)
        self._save()

    def _validate(self) -> dict[str, float]:
        share = range(self.rank, len(self.validation), self.world)
        batches = Batches(self.validation, 128, indices=share, workers=self.workers)
        misses = missed_in(batches, [self.model], (1, 5), progress=self.progress)
        self.broken["validation"].add(batches.broken)
        counts = [*misses.sum(0).tolist(), len(misses)]
        top1, top5, images = total(torch.tensor(counts, dtype=torch.float64, device=self.device)).tolist()
        return {"validation_error": top1 / images, "validation_top5": top5 / images}

    def _share_broken(self) -> None:
        """Tell every process of the images that another could not read."""
        for broken in self.broken.values():
            for names in from_all(broken.names, self.device):
                broken.add(names)
            broken.warn(stacklevel=5)

    def _check_weights(self, epoch: int) -> None:
        try:
            check_weights(self.model)
        except InputError as error:
            self._stop(str(error), epoch, self.position.step)

    def _save(self) -> None:
        if self.checkpoint and self.rank == 0:
            self.checkpoint.write(
                {
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "position": asdict(self.position) | {"broken": self._names()},
                    "mean_image": preprocessing_of(self.model).mean_image if self.recipe.pixel_mean else None,
                }
            )
        self.saved_at = monotonic()


def _settled_at_once(device: torch.device) -> int:
    """Steps whose losses are read at once: to read them, the processor waits until a GPU has nothing left to do."""
    return 1 if device.type == "cpu" else 16


def _generator(*numbers: int) -> torch.Generator:
    """A random generator of its own for every seed, epoch and step."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1)


def _ahead(items: Iterator[Any]) -> Generator[Any, None, None]:
    """The items; the next one is made in a thread while the present one is worked on."""
    with ThreadPoolExecutor(1) as worker:
        future = worker.submit(next, items, None)
        while (item := future.result()) is not None:
            future = worker.submit(next, items, None)
            yield item
