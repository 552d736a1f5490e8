"""Train a network as the paper did: SGD with momentum, and filters renormalised after every step.

    filter <- filter * min(1, 0.1 / RMS(filter))       for every convolution filter, over its own weights

Everything random comes from the seed, the epoch and the step, so that a run that was killed goes on to the same weights
as one that was not, and processes that share the work (`torchrun`) draw what one process would have drawn.
Zeiler & Fergus (2014), section 3.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import TensorDataset
from tqdm import tqdm

from zfnet.checks import device_and_dtype, evaluating
from zfnet.data.batches import Batch, Batches
from zfnet.errors import InputError, first_line, unknown_name
from zfnet.files import write_atomically

SAVE_EVERY = 300.0  # seconds between two checkpoints within an epoch
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CHOICES = {
    "optimizer": ("sgd", "adam"),
    "schedule": ("plateau", "cosine", "constant"),
    "crops": ("random", "ten"),
    "precision": ("auto", *PRECISIONS),
}


class Diverged(InputError):
    """A loss or a weight that is not finite."""


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the paper's, or, where it says nothing, plain.

    `conf/train/paper.yaml` says which is which.
    """

    epochs: int = 70
    batch_size: int = 128  # of all processes together
    learning_rate: float = 0.01
    optimizer: str = "sgd"  # "adam" (AdamW) learns without hand-tuned rates where there are minutes, not days
    momentum: float = 0.9
    weight_decay: float = 0.0
    max_filter_rms: float | None = 0.1  # None: filters are not renormalised
    schedule: str = "constant"  # "cosine": up over the first tenth of the steps, then down to zero
    factor: float = 0.1  # "plateau": by which the rate is multiplied when the validation error has not
    patience: int = 3  # fallen by a thousandth for more than so many epochs
    stored_size: int | None = None  # side of the images that crops are taken from; None: what the network sees
    crops: str = "random"  # where crops are taken: anywhere, or at the "ten" places of evaluation
    max_shift: int = 0  # pixels by which crops may leave the image, each way; its border is repeated there
    flip: bool = True  # half of the images are mirrored
    pixel_mean: bool = False  # subtract the training images' mean at every pixel, not that of the channel
    precision: str = "auto"  # of the products: half on GPUs (the weights stay float32), float32 elsewhere
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("patience", 0), ("max_shift", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
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
        """The optimizer of the model's parameters."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                model.parameters(), self.learning_rate, self.momentum, weight_decay=self.weight_decay
            )
        betas = (self.momentum, 0.999)
        return torch.optim.AdamW(model.parameters(), self.learning_rate, betas, weight_decay=self.weight_decay)

    def rate(self, step: int, steps: int, errors: Sequence[float] = ()) -> float:
        """The learning rate at a step, after epochs with these validation errors."""
        if self.schedule == "plateau":
            return _after_plateaus(self.learning_rate, self.factor, self.patience, tuple(errors))
        if self.schedule == "constant":
            return self.learning_rate
        rise = max(1, steps // 10)
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        return self.learning_rate * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


@functools.lru_cache(maxsize=1)  # the same for all steps of an epoch
def _after_plateaus(rate: float, factor: float, patience: int, errors: tuple[float, ...]) -> float:
    told = ReduceLROnPlateau(
        torch.optim.SGD([torch.zeros(1)], rate), factor=factor, patience=patience, threshold=1e-3, threshold_mode="abs"
    )
    for error in errors:
        told.step(error)
    return told.optimizer.param_groups[0]["lr"]


def renormalise(model: nn.Module, rms: float = 0.1) -> None:
    """Scale every convolution filter whose root mean square exceeds `rms` back to it."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                size = module.weight.square().mean((1, 2, 3), keepdim=True).sqrt()
                module.weight.mul_((rms / size).clamp(max=1))


# ---- images ----------------------------------------------------------------------------------------------------------


def _shown(batches: Batches, what: str, progress: bool, *, leave: bool = True) -> Iterator[Batch]:
    """The batches, with a progress bar."""
    with tqdm(total=len(batches.indices), unit=" images", desc=what, disable=not progress, leave=leave) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch.index))


def in_memory(
    dataset: Any, *, limit: float = math.inf, workers: int | None = None, progress: bool = True, what: str = "read"
) -> Any:
    """All images and labels, read once by worker processes; the dataset itself if they take more than `limit` bytes."""
    if isinstance(dataset, TensorDataset) or (limit < math.inf and dataset[0][0].nbytes * len(dataset) > limit):
        return dataset
    images, labels, batches = [], [], Batches(dataset, workers=workers)
    for batch in _shown(batches, what, progress):
        images.append(batch.images)
        labels.append(batch.labels)
    if not images:
        raise InputError(f"none of the {len(dataset)} images could be read: {batches.broken[0]}")
    return TensorDataset(torch.cat(images), torch.cat(labels))


def mean_image(dataset: Any, preprocessing: Any, *, workers: int | None = None, progress: bool = True) -> Tensor:
    """The mean (3, S, S) at every pixel of uint8 images (3, S, S), in the network's channels and scale."""
    total, seen = torch.zeros(()), 0
    for _, images, _ in _shown(Batches(dataset, workers=workers), "mean image", progress):
        total, seen = total + images.sum(0, dtype=torch.float64), seen + len(images)
    return (preprocessing.arranged(total / seen) * (preprocessing.scale / 255)).float()


def network_input(model: nn.Module, images: Tensor) -> Tensor:
    """Images on the model's device, in the memory format that convolves fastest; uint8 ones normalised."""
    place = device_and_dtype(model)
    images = images.to(place["device"]).contiguous(memory_format=torch.channels_last)
    return (model.preprocessing.normalise(images) if images.dtype == torch.uint8 else images).to(place["dtype"])  # type: ignore


def side_of(model: nn.Module, images: Tensor) -> int:
    """The side of what the network sees of images (N, 3, S, S); InputError if they are smaller."""
    side: int = model.preprocessing.size if images.dtype == torch.uint8 else images.shape[-1]  # type: ignore
    if min(images.shape[-2:]) < side:
        raise InputError(f"images of {images.shape[-2]} x {images.shape[-1]} pixels have no crops of {side}")
    return side


def _five(margin: tuple[int, int]) -> Tensor:
    """Where crops begin that leave a margin: the four corners and the centre, (5, 2)."""
    (down, right), middle = margin, [round(m / 2) for m in margin]
    return torch.tensor([[0, 0], [0, right], [down, 0], [down, right], middle])


def _bordered(images: Tensor, pixels: int) -> Tensor:
    """Images (N, 3, H, W) with their border repeated all around; F.pad does not do it to bytes."""
    for dim in (2, 3) if pixels else ():
        ends = (images.narrow(dim, end, 1).repeat_interleave(pixels, dim) for end in (0, -1))
        images = torch.cat([next(ends), images, next(ends)], dim)
    return images


def augment(
    images: Tensor,
    recipe: Recipe,
    random: torch.Generator,
    side: int | None = None,
    *,
    whole: int | None = None,
    share: slice = slice(None),
) -> Tensor:
    """Images (N, 3, H, W), of each a random crop (3, side, side), or all of it, mirrored or not.

    whole, share: how many images the batch has, and which of them these are; what one gets does not depend on that.
    """
    count = whole or len(images)
    rows, columns = (side, side) if side else images.shape[-2:]
    margin = (images.shape[-2] - rows, images.shape[-1] - columns)
    if recipe.crops == "ten":
        shift, places = 0, _five(margin)[torch.randint(5, (count,), generator=random)]
    else:
        shift, extent = recipe.max_shift, torch.tensor([m + 2 * recipe.max_shift + 1 for m in margin])
        places = (torch.rand(count, 2, generator=random, dtype=torch.float64) * extent).long()
    mirrored = (torch.rand(count, generator=random) < 0.5) & recipe.flip
    if not (any(margin) or shift or recipe.flip):
        return images
    images = _bordered(images, shift)
    # of a share that is short of broken images, the first
    pairs = zip(images, places[share].tolist(), strict=False)
    images = torch.stack([image[:, r : r + rows, c : c + columns] for image, (r, c) in pairs])
    mirrored = mirrored[share][: len(images)].nonzero()[:, 0].to(images.device)
    images[mirrored] = images[mirrored].flip(3)
    return images


def views(images: Tensor, side: int, crops: int, pad: int = 0) -> list[Tensor]:
    """The central crop (N, 3, side, side) of images, or ten: four corners and the centre, and all mirrored.

    pad: pixels by which the border is repeated first, for images that leave the corners no margin.
    """
    if crops not in (1, 10):
        raise InputError(f"crops is {crops}; give 1, the centre, or 10, with the corners and all mirrored")
    if crops == 10:
        images = _bordered(images, pad)
    places = _five((images.shape[-2] - side, images.shape[-1] - side)).tolist()
    five = [images[..., r : r + side, c : c + side] for r, c in (places if crops == 10 else places[-1:])]
    return five + [x.flip(3) for x in five] if crops == 10 else five


def error_rates(
    models: nn.Module | Sequence[nn.Module],
    dataset: Any,
    *,
    top: Sequence[int] = (1, 5),
    crops: int = 1,
    pad: int = 0,
    batch_size: int = 128,
    workers: int | None = None,
    progress: bool = False,
) -> tuple[float, ...]:
    """For each n of `top` the share of images whose label is not among the n most probable classes.

    Probabilities are averaged over models and over crops (1, or 10: see `views`); all models see the same images.
    """
    models = [models] if isinstance(models, nn.Module) else list(models)
    wrong, seen = _errors(models, Batches(dataset, batch_size, workers=workers), top, crops, pad, progress)
    return tuple((wrong / max(seen, 1)).tolist())


def _errors(
    models: list[nn.Module], batches: Batches, top: Sequence[int], crops: int, pad: int, progress: bool
) -> tuple[Tensor, int]:
    """How many labels are missed, for each of `top`, and how many there are."""
    wrong, seen = torch.zeros(len(top), dtype=torch.float64), 0
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        for _, images, labels in _shown(batches, "evaluate", progress, leave=False):
            mean: Any = 0
            for model in models:
                for x in views(network_input(model, images), side_of(model, images), crops, pad):
                    mean = mean + model(x).softmax(1)
            best = mean.topk(min(max(top), mean.shape[1])).indices.cpu()
            hit = best == labels[:, None]
            wrong += torch.tensor([int((~hit[:, :n].any(1)).sum()) for n in top])
            seen += len(labels)
    return wrong, seen


# ---- processes -------------------------------------------------------------------------------------------------------


def processes() -> tuple[int, int]:
    """This process' number and how many share the work."""
    running = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if running else (0, 1)


def _ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The items; each next one is made in a thread of its own while the present one is worked on."""
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = worker.submit(next, items, None)
            yield item


def _sum(values: Tensor) -> Tensor:
    """The sum over all processes."""
    if processes()[1] > 1:
        dist.all_reduce(values)
    return values


def _generator(*numbers: int) -> torch.Generator:
    """A random generator of its own for every seed, epoch and step."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1)


def _precision(recipe: Recipe, device: torch.device) -> torch.dtype:
    if recipe.precision != "auto":
        return PRECISIONS[recipe.precision]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


# ---- training --------------------------------------------------------------------------------------------------------


class _Checkpoint:
    """The file in which a run is kept, and the lock that keeps a second run away from it."""

    def __init__(self, folder: str | Path, about: dict[str, Any]):
        self.path, self.about = Path(folder) / "checkpoint.pt", about

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """InputError while another run is alive in the folder."""
        if processes()[0]:
            yield
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(".lock"), timeout=0) as lock:
                try:
                    yield
                finally:  # before it is released: who has opened this one is refused
                    Path(lock.lock_file).unlink()
        except Timeout:
            raise InputError(
                f"another run is training in {self.path.parent}: wait for it, or give another out="
            ) from None
        except OSError as error:
            raise InputError(f"cannot write to {self.path.parent}: {error.strerror or error}") from None

    def read(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            kept = torch.load(self.path, map_location="cpu", weights_only=True)
            about = {key: kept[key] for key in self.about}
        except Exception as error:  # what a damaged file makes torch raise
            raise InputError(
                f"cannot read {self.path}, it may be cut short or damaged: put back a copy of it, or delete it to "
                f"start again ({first_line(error)})"
            ) from None
        for key, value in self.about.items():
            if about[key] != value:
                what = key if key != "recipe" else _first_difference(about[key], value)
                raise InputError(f"{self.path} is of another run ({what}): go on with that, or delete it")
        return kept

    def write(self, state: dict[str, Any]) -> None:
        if processes()[0] == 0:
            write_atomically(self.path, lambda file: torch.save(state | self.about, file))


def _first_difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    name = next(name for name in {**before, **now} if before.get(name) != now.get(name))
    return f"{name} {before.get(name)}, now {now.get(name)}"


@dataclass
class _Progress:
    """Where a run is: the epochs that are done, and what of the present one."""

    history: list[dict[str, float]]
    step: int = 0  # of the present epoch
    loss: float = 0.0  # sums over its images so far
    wrong: float = 0.0
    seen: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0  # for images


def train(
    model: nn.Module,
    dataset: Any,
    validation: Any = None,
    recipe: Recipe | None = None,
    *,
    folder: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
    on_epoch: Callable[[list[dict[str, float]]], None] | None = None,
) -> list[dict[str, float]]:
    """Train a model, in place, on a dataset of (image, label); returns loss and error rates of each epoch.

    Images are float (3, H, W), or uint8, which `model.preprocessing` crops and normalises.  Where `torch.distributed`
    runs, each process takes its share of every batch.
    folder: where a checkpoint is kept, each epoch and every few minutes, and from which a run that was stopped goes on.
    on_epoch: called with the history so far after each epoch, before its checkpoint.
    InputError for labels beyond the model's classes, a folder in which another run is alive, and a loss or weights that
    are not finite: the last good checkpoint is kept.
    """
    recipe = recipe or Recipe()
    rank, world = processes()
    if recipe.batch_size % world:
        raise InputError(f"batch_size {recipe.batch_size} cannot be shared by {world} processes")
    if recipe.schedule == "plateau" and validation is None:
        raise InputError("the schedule plateau needs validation images; give them, or schedule=cosine")
    if not len(dataset):
        raise InputError("there are no images to train on")
    checkpoint = _Checkpoint(folder, {"recipe": asdict(recipe), "images": len(dataset)}) if folder else None
    with checkpoint.alone() if checkpoint else contextlib.nullcontext():
        return _Run(model, dataset, validation, recipe, checkpoint, workers, progress and rank == 0, on_epoch).train()


class _Run:
    """One training run."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Any,
        validation: Any,
        recipe: Recipe,
        checkpoint: _Checkpoint | None,
        workers: int | None,
        progress: bool,
        on_epoch: Callable[[list[dict[str, float]]], None] | None,
    ):
        self.model, self.dataset, self.validation, self.recipe = model, dataset, validation, recipe
        self.checkpoint, self.workers, self.progress, self.on_epoch = checkpoint, workers, progress, on_epoch
        self.rank, self.world = processes()
        self.device = torch.device(device_and_dtype(model)["device"])
        self.dtype = _precision(recipe, self.device)
        self.optimizer = recipe.make_optimizer(model)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.now = _Progress([])
        self.saved_at = monotonic()
        self.per_epoch, last = divmod(len(dataset), recipe.batch_size)
        if last >= 2 * self.world or not self.per_epoch:  # one image alone is no batch, but where it is all there is
            self.per_epoch += 1
        kept = checkpoint.read() if checkpoint else None
        if kept:
            model.load_state_dict(kept["model"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.scaler.load_state_dict(kept["scaler"])
            self.now = _Progress(**kept["progress"])
        if recipe.pixel_mean:
            self._subtract(kept["mean_image"] if kept else None)
        parallel = {"device_ids": [self.device.index]} if self.device.type == "cuda" else {}
        self.net = DistributedDataParallel(model, **parallel) if self.world > 1 else model  # type: ignore[arg-type]

    def _subtract(self, mean: Tensor | None) -> None:
        how = getattr(self.model, "preprocessing", None)
        if how is None:
            raise InputError("pixel_mean needs a model with preprocessing, and images as uint8")
        if mean is None:
            mean = mean_image(self.dataset, how, workers=self.workers, progress=self.progress)
        self.model.preprocessing = replace(how, mean_image=mean)  # type: ignore[assignment]

    def train(self) -> list[dict[str, float]]:
        history = self.now.history
        while len(history) < self.recipe.epochs:
            self._epoch(len(history) + 1)
            self._finish_epoch()
        self.model.eval()
        return history

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """What is left of the epoch: this process' share of every batch, ready for the network."""
        recipe, start, share = self.recipe, self.now.step, slice(self.rank, None, self.world)
        order = torch.randperm(len(self.dataset), generator=_generator(recipe.seed, epoch))
        chunks = order.split(recipe.batch_size)[: self.per_epoch]
        mine = [chunk[share] for chunk in chunks[start:]]
        batches = Batches(
            self.dataset, recipe.batch_size // self.world, indices=torch.cat(mine) if mine else [], workers=self.workers
        )
        for step, (_, images, labels) in enumerate(batches, start):
            side, random = side_of(self.model, images), _generator(recipe.seed, epoch, step)
            if recipe.pixel_mean:  # which is that of the place in the stored image
                images = network_input(self.model, images)
            images = augment(images, recipe, random, side, whole=len(chunks[step]), share=share)
            yield network_input(self.model, images), labels

    def _epoch(self, epoch: int) -> None:
        recipe, now = self.recipe, self.now
        errors = [entry["validation_error"] for entry in now.history if "validation_error" in entry]
        bar = tqdm(
            total=len(self.dataset),
            initial=int(now.seen),
            unit=" images",
            desc=f"epoch {epoch}/{recipe.epochs}",
            disable=not self.progress,
        )
        self.model.train()
        batches = self._batches(epoch)
        if self.device.type != "cpu":  # where the network leaves the processor free
            batches = _ahead(batches)
        clock = monotonic()
        with bar, contextlib.closing(batches):  # type: ignore[type-var]
            for images, labels in batches:
                waited = monotonic() - clock
                rate = recipe.rate((epoch - 1) * self.per_epoch + now.step, recipe.epochs * self.per_epoch, errors)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                count = self._step(images, labels, epoch)
                bar.update(count)
                bar.set_postfix(loss=f"{now.loss / now.seen:.3f}", error=f"{now.wrong / now.seen:.1%}", refresh=False)
                now.waited += waited
                now.seconds += monotonic() - clock
                clock = monotonic()
                self._save_now_and_then()

    def _step(self, images: Tensor, labels: Tensor, epoch: int) -> int:
        """One update; returns how many images all processes had."""
        now, recipe = self.now, self.recipe
        # dropout differs between processes: each has other images
        torch.manual_seed(_generator(recipe.seed, epoch, now.step, self.rank).initial_seed())
        labels = labels.to(self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.net(images)
            if not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
                found = f"labels {int(labels.min())}..{int(labels.max())}"
                raise InputError(f"{found} for a network of {logits.shape[1]} classes: give it as many as there are")
            loss = F.cross_entropy(logits, labels, reduction="sum")
        count = int(_sum(torch.tensor([len(labels)], device=self.device)))
        self.optimizer.zero_grad(set_to_none=True)
        # DDP takes the mean over processes; this makes it the mean over images
        self.scaler.scale(loss * (self.world / count)).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if recipe.max_filter_rms is not None:
            renormalise(self.model, recipe.max_filter_rms)
        wrong = (logits.detach().argmax(1) != labels).sum()
        sums = _sum(torch.stack([loss.detach().double(), wrong.double()])).tolist()
        if not math.isfinite(sums[0]):
            self._stop(f"the loss is {sums[0]}", epoch)
        now.loss, now.wrong, now.seen = now.loss + sums[0], now.wrong + sums[1], now.seen + count
        now.step += 1
        return count

    def _stop(self, what: str, epoch: int) -> None:
        kept = self.checkpoint and self.checkpoint.path
        raise Diverged(
            f"{what} in epoch {epoch}, step {self.now.step + 1}: lower the learning rate ({self.recipe.learning_rate})"
            + (f"; the last good state is in {kept}" if kept and kept.exists() else "")
        )

    def _finish_epoch(self) -> None:
        now, epoch = self.now, len(self.now.history) + 1
        seen = max(now.seen, 1)
        entry = {"epoch": epoch, "loss": now.loss / seen, "train_error": now.wrong / seen}
        if self.validation is not None:
            mine = range(self.rank, len(self.validation), self.world)
            batches = Batches(self.validation, 128, indices=mine, workers=self.workers)
            wrong, count = _errors([self.model], batches, (1, 5), 1, 0, self.progress)
            totals = _sum(torch.cat([wrong, torch.tensor([count])]).to(self.device)).tolist()
            entry |= {"validation_error": totals[0] / totals[2], "validation_top5": totals[1] / totals[2]}
        entry |= {
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": now.seconds,
            "images_per_second": now.seen / max(now.seconds, 1e-9),
            "waiting": now.waited / max(now.seconds, 1e-9),
        }
        self._check_weights(epoch)
        now.history.append(entry)
        self.now = _Progress(now.history)
        if self.progress and self.validation is not None:
            tqdm.write(f"epoch {epoch}: validation error {entry['validation_error']:.1%}")
        if self.on_epoch and self.rank == 0:
            self.on_epoch(now.history)
        self._save()

    def _check_weights(self, epoch: int) -> None:
        for name, weight in self.model.state_dict().items():
            if weight.is_floating_point() and not weight.isfinite().all():
                self._stop(f"{name} is not finite", epoch)

    def _save_now_and_then(self) -> None:
        if self.checkpoint and monotonic() - self.saved_at > SAVE_EVERY:
            self._check_weights(len(self.now.history) + 1)
            self._save()

    def _save(self) -> None:
        if not self.checkpoint:
            return
        how = getattr(self.model, "preprocessing", None)
        self.checkpoint.write(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "progress": asdict(self.now),
                "mean_image": how.mean_image if self.recipe.pixel_mean and how else None,
            }
        )
        self.saved_at = monotonic()
