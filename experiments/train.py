"""Training, by the paper's recipe or another; the other experiments find the trained network.

What to look for: both error rates fall, the validation error ends well below chance, and the network does not wait for
its images.
"""

import contextlib
import csv
import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn
from torch.utils.data import Dataset

from experiments.output.pages import DPI, plots
from experiments.output.results import Result, is_first
from experiments.setup.checks import as_list
from experiments.setup.hints import Count, Names, Natural
from experiments.setup.networks import EPOCHS, MEMORY, described
from zfnet import scan, weights
from zfnet.data.batches import Broken
from zfnet.data.crops import preprocessing_of, views
from zfnet.data.images import as_images
from zfnet.files import write_atomically
from zfnet.graph import Graph
from zfnet.training import Checkpoint, Recipe, error_rates, in_memory, processes, train

PAPER = {"epochs": 70, "history": None, "validation_top1": 0.384, "validation_top5": 0.165, "waiting": None}


def main(
    model: nn.Module,
    training: Any,
    out: str | Path,
    *,
    validation: Any = None,
    recipe: Recipe | None = None,
    crops: Literal[1, 10] | None = None,
    layers: Names | None = None,
    snapshots: Sequence[Count] = EPOCHS,
    fresh: bool = False,
    workers: Natural | None = None,
    progress: bool = True,
    allow_broken: bool = False,
) -> dict[str, Any]:
    """Train the model in place; write model.safetensors, the curves and the error rates.

    Args:
        model: with its initial weights and its preprocessing.
        training, validation: (image, label) by index, images as uint8.
        out: the folder of the result; from the first epoch on it holds a checkpoint, metrics.csv, the curves, and in
            epochs/ the weights after `snapshots` and the last epoch.
        recipe: how to train.
        crops: of every validation image, averaged at the end, 1 or 10; null: 10 if images have a margin for them.
        layers: layers in which to count dead maps, which are never above 0 on a validation image; null: none.
        snapshots: epochs whose weights are kept.
        fresh: remove the checkpoint of an interrupted run and start again.
        workers: processes that read images; null: one for each core, up to eight.
        progress: show progress bars.
        allow_broken: continue even if more than 1 % of the images cannot be read.
    """
    recipe, out = recipe or Recipe(), Path(out)
    result = Result("train", out, locals())
    _check_layers(model, layers or ())
    reading: dict[str, Any] = {"workers": workers, "progress": progress}
    options = reading | {"allow_broken": allow_broken}
    images, broken = _held("training", training, **options)
    checks, broken_checks = _held("validation", validation, **options) if validation else (None, [])
    metadata = described(model, recipe, training, validation)
    with _tensorboard(out / "tensorboard") as board:

        def on_epoch(history: list[dict[str, float]]) -> None:
            _show(history, out, board)
            if (epoch := len(history)) in (*snapshots, recipe.epochs):
                weights.save(model, out / "epochs" / f"epoch-{epoch:04d}.safetensors", epoch=epoch, **metadata)

        history = train(model, images, checks, recipe, folder=out, fresh=fresh, on_epoch=on_epoch, **options)
    ours: dict[str, Any] = {"epochs": len(history), "history": history}
    ours["broken_images"] = sorted({*broken, *broken_checks, *chain(*history.broken.values())})
    crops = checks and (crops or (10 if recipe.stored_size or recipe.max_shift != 0 else 1))
    ours |= _measured(model, checks, recipe, crops, layers or (), reading) if checks else {}
    ours["waiting"] = sum(entry["waiting"] * entry["seconds"] for entry in history) / _seconds(history)
    result.settings |= {"crops": crops, "images": len(images), "validation_images": len(checks or ())}
    result.settings |= {"dataset": _name(training), "processes": processes()[1], "parameters": size_of(model)}
    result.file(lambda folder: weights.save(model, folder / "model.safetensors", history=history, **metadata))
    written = result.finish(ours, {key: PAPER[key] for key in PAPER if key in ours})
    if is_first():
        Checkpoint(out).remove()
        print(summary(ours, crops, len(images)))
    return written


def _check_layers(model: nn.Module, layers: Sequence[str]) -> None:
    """Raises InputError before training for a layer that the model does not have."""
    if layers:  # a network that cannot be traced can be trained, if no layer is asked for
        graph = Graph(model)
        for layer in as_list(layers):
            graph.node(layer)


def _held(kind: str, data: Any, *, allow_broken: bool, **reading: Any) -> tuple[Any, list[str]]:
    """The images in memory, if they fit, and the names of those that could not be read."""
    broken = Broken(kind, len(data), allow_broken)
    return in_memory(data, limit=MEMORY, description=f"{kind} images", broken=broken, **reading), broken.names


def _measured(
    model: nn.Module, checks: Any, recipe: Recipe, crops: Any, layers: Sequence[str], reading: dict[str, Any]
) -> dict[str, Any]:
    """Both error rates on the validation images, and dead maps."""
    pad = recipe.pad(preprocessing_of(model).image_size)
    top1, top5 = error_rates(model, checks, crops=crops, pad=pad, **reading)
    dead = {"dead_maps": dead_maps(model, checks, layers, reading)} if layers else {}
    return {"validation_top1": top1, "validation_top5": top5, **dead}


class _Prepared(Dataset[tuple[Tensor, Any]]):
    """Stored images, prepared for the network."""

    def __init__(self, model: nn.Module, stored: Any):
        self.how, self.stored = preprocessing_of(model), stored

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, i: int) -> tuple[Tensor, Any]:
        image, label = self.stored[i]
        (image,) = views(image[None], self.how.image_size, 1)
        return (self.how.normalise(image) if image.dtype == torch.uint8 else image)[0], label


def dead_maps(
    model: nn.Module, checks: Any, layers: Sequence[str], reading: Mapping[str, Any]
) -> dict[str, dict[str, int]]:
    """How many feature maps of each layer are never above 0 on a validation image, and of how many."""
    tops = scan(model, _Prepared(model, checks), as_list(layers), 1, **reading)
    return {layer: {"dead": int((~(top.value > 0)).sum()), "maps": len(top.value)} for layer, top in tops.items()}


def size_of(model: nn.Module) -> int:
    """The number of parameters of a network."""
    return sum(p.numel() for p in model.parameters())


def _seconds(history: list[dict[str, float]]) -> float:
    return max(sum(entry["seconds"] for entry in history), 1e-9)


def summary(ours: dict[str, Any], crops: int | None, images: int) -> str:
    """The result of a training run, in a line."""
    words = [
        f"{ours['epochs']} epoch{'s' * (ours['epochs'] != 1)}",
        f"{ours['epochs'] * images / _seconds(ours['history']):,.0f} images/s",
    ]
    words.append(f"{ours['waiting']:.1%} of the time waiting for images")
    if "validation_top1" in ours:
        centre = ours["history"][-1]
        words.append(f"validation error {centre['validation_error']:.1%} (top 5: {centre['validation_top5']:.1%})")
        if crops != 1:
            words.append(f"averaged over {crops} crops {ours['validation_top1']:.1%} ({ours['validation_top5']:.1%})")
    if dead := ours.get("dead_maps"):
        counts = ", ".join(f"{layer} {count['dead']} of {count['maps']}" for layer, count in dead.items())
        words.append(f"dead maps: {counts}")
    if broken := ours["broken_images"]:
        words.append(f"{len(broken)} image(s) could not be read, first: {broken[0]}")
    return ", ".join(words)


class _Nowhere:
    """A stand-in for TensorBoard if it is not installed."""

    def add_scalar(self, name: str, value: float, step: int) -> None:
        pass


@contextlib.contextmanager
def _tensorboard(folder: Path) -> Iterator[Any]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        yield _Nowhere()
        return
    if processes()[0]:
        yield _Nowhere()
        return
    with SummaryWriter(str(folder)) as board:
        yield board


def _name(data: Any) -> str | None:
    file = as_images(data).file(0)
    return None if file is None else file.rpartition("/")[0]


def _show(history: list[dict[str, float]], out: Path, board: Any) -> None:
    """Write the curves after an epoch; after the first, remove the snapshots of an earlier run."""
    if len(history) == 1:
        shutil.rmtree(out / "epochs", ignore_errors=True)
    write_atomically(out / "metrics.csv", _csv(history))
    write_atomically(out / "figure.png", _picture(history))
    for name, value in history[-1].items():
        board.add_scalar(name, value, len(history))


def _csv(history: list[dict[str, float]]) -> bytes:
    text = io.StringIO()
    rows = csv.DictWriter(text, list(history[0]), lineterminator="\n")
    rows.writeheader()
    rows.writerows(history)
    return text.getvalue().encode()


def _picture(history: list[dict[str, float]]) -> bytes:
    """The curves as a PNG file."""
    figure = plots(2.4, 3.4)
    axes = figure.subplots()
    epochs = [entry["epoch"] for entry in history]
    curves = {"train_error": "training", "validation_error": "validation", "validation_top5": "validation, top 5"}
    for key, label in curves.items():
        if key in history[0]:
            axes.plot(epochs, [100 * entry[key] for entry in history], marker=".", label=label)
    axes.set(xlabel="epoch", ylabel="error, %", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    file = io.BytesIO()
    figure.savefig(file, dpi=DPI)
    return file.getvalue()
