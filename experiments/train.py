"""Training, by the paper's recipe or another; the other experiments find the network that it leaves.

What to look for: both error rates fall, and the validation error ends well below that of guessing.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import nn

from experiments.results import Provenance, results, write_result
from zfnet import weights
from zfnet.train import Recipe, error_rate, in_memory, train


def main(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    validation: Any = None,
    recipe: Recipe | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train the model in place; write model.safetensors, the curves and the error rates.

    Each epoch's end is kept in `out`, and a run that was stopped goes on from there; at the end only results are left.
    """
    recipe = recipe or Recipe()
    provenance = Provenance(model, seed=recipe.seed)
    out = Path(out)
    images = in_memory(data, workers=workers, progress=progress, what="training images")
    checks = validation and in_memory(validation, workers=workers, progress=progress, what="validation images")
    history = train(model, images, checks, recipe, folder=out, progress=progress)
    ours: dict[str, Any] = {"epochs": len(history), "history": history}
    if checks:
        ours |= {
            "validation_top1": history[-1]["validation_error"],
            "validation_top5": error_rate(model, checks, top=5),
        }
    paper = {"epochs": 70, "history": None, "validation_top1": 0.384, "validation_top5": 0.165}
    settings = {
        "model": type(model).__name__, "recipe": asdict(recipe), "images": len(images),
        "validation_images": len(checks) if checks else 0, "dataset": _name(data), "parameters": _size(model),
    }  # fmt: skip
    with results(out) as folder:
        weights.save(
            model, folder / "model.safetensors", architecture=type(model).__name__, recipe=asdict(recipe),
            classes=list(getattr(data, "classes", [])),
        )  # fmt: skip
        _curves(history).savefig(folder / "figure.png", dpi=150)
        result = write_result(folder, "train", {key: paper[key] for key in ours}, ours, settings, provenance)
    (out / "checkpoint.pt").unlink(missing_ok=True)
    return result


def _name(data: Any) -> str | None:
    return data.file(0).rpartition("/")[0] if hasattr(data, "file") else None


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _curves(history: list[dict[str, float]]) -> Figure:
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    epochs = [entry["epoch"] for entry in history]
    for key, label in (("train_error", "training"), ("validation_error", "validation")):
        if key in history[0]:
            axes.plot(epochs, [100 * entry[key] for entry in history], marker=".", label=label)
    axes.set(xlabel="epoch", ylabel="error, %", ylim=(0, None))
    axes.legend()
    return figure
