"""Table 7: how much each layer of a network knows of other images' classes.

The caption's sense: the features of one layer at a time, with a linear SVM (layers 1 to 5 and 7) or a softmax (5 and 7)
on top, on Caltech-101 with 30 and Caltech-256 with 60 training images of each class.

What to look for: accuracy rises with depth. In the paper it does so up to layer 7 on Caltech-256, and on Caltech-101
to layer 5, which is level with layer 7 there.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

from experiments.output.results import Provenance, results, table, write_result
from experiments.tables.table3 import deviation, percent, shown
from experiments.tables.transfer import checked, frozen
from zfnet import InputError
from zfnet.analysis.transfer import split, transferred

PAPER = {  # accuracy, %: Caltech-101 (30 a class), Caltech-256 (60 a class)
    "SVM (1)": ((44.8, 0.7), (24.6, 0.4)),
    "SVM (2)": ((66.2, 0.5), (39.6, 0.3)),
    "SVM (3)": ((72.3, 0.4), (46.0, 0.3)),
    "SVM (4)": ((76.6, 0.4), (51.3, 0.1)),
    "SVM (5)": ((86.2, 0.8), (65.6, 0.3)),
    "SVM (7)": ((85.5, 0.4), (71.7, 0.2)),
    "softmax (5)": ((82.9, 0.4), (65.7, 0.5)),
    "softmax (7)": ((85.4, 0.4), (72.6, 0.1)),
}
NUMBERS = (1, 2, 3, 4, 5, 7)  # of the paper's layers


def main(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    layers: Sequence[str] = ("relu1", "relu2", "relu3", "relu4", "relu5", "relu7"),
    per_class: int = 30,
    folds: int = 5,
    crops: int = 1,
    test: int = 50,
    max_features: int | None = 2**15,
    pretraining: str | None = None,
    threshold: float = 0.95,
    cache: str | Path = "outputs/features",
    seed: int = 0,
    batch_size: int = 64,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train SVM and softmax on each layer's features; write the table, its picture and result.json.

    layers: six, which stand for the paper's 1, 2, 3, 4, 5 and 7. per_class: training images of each class.
    max_features: of a layer; larger maps are averaged over areas until they fit. The rest as in `transfer`.
    """
    provenance = Provenance(model, seed=seed)
    if len(layers) != len(NUMBERS):
        raise InputError(f"layers are {', '.join(layers)}; give six, which stand for the paper's {NUMBERS}")
    if folds < 1:
        raise InputError(f"folds is {folds}; give at least 1")
    labels, classes, left_out = checked(data, pretraining, threshold, progress)
    drawn = [
        split(labels, per_class, test=test, seed=seed, fold=f, classes=classes, official=data.official_split)
        for f in range(folds)
    ]
    rows = frozen(
        model,
        data,
        layers,
        cache,
        crops=crops,
        max_features=max_features,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )
    accuracy: dict[str, list[float]] = {row: [] for row in PAPER}
    with tqdm(total=folds * len(layers), unit=" folds", desc="classify", disable=not progress) as bar:
        for number, layer in zip(NUMBERS, layers, strict=True):
            kinds = [kind for kind in ("SVM", "softmax") if f"{kind} ({number})" in PAPER]
            for fold, part in enumerate(drawn):
                scores = transferred(rows[layer], labels, part, kinds, seed + fold)
                for kind, (right, _) in scores.items():
                    accuracy[f"{kind} ({number})"].append(percent(right))
                bar.update()
    widths = {layer: rows[layer].shape[1] for layer in layers}
    text = table(
        ["", "paper, Caltech-101", "paper, Caltech-256", "ours", "layer", "features"],
        [
            [
                row,
                *(f"{mean:.1f} ± {spread:.1f}" for mean, spread in PAPER[row]),
                shown(accuracy[row]),
                layer := layers[NUMBERS.index(int(row[-2]))],
                widths[layer],
            ]
            for row in PAPER
        ],
    )
    notes = (
        f"Mean over classes of the accuracy, %, with {per_class} training images of each class; mean ± standard "
        f"deviation (n - 1) of {folds} folds{', the first of split.csv' if data.official_split else ''}; "
        f"up to {test} test images of each class.\n"
        f"What differs from the paper: {type(model).__name__}; {len(classes)} classes and {len(labels):,} images of "
        f"{type(data).__name__}; maps of more than {max_features} features are averaged over areas, of which "
        "the paper says nothing."
    )
    if left_out:
        notes += f"\nLeft out as near duplicates of pretraining images: {len(left_out)}: {'; '.join(left_out[:5])}."
    text = f"{text}\n\n{notes}"
    print(text)
    ours = {
        "accuracy": {row: statistics.mean(a) for row, a in accuracy.items()},
        "deviation": {row: deviation(a) for row, a in accuracy.items()},
        "each": accuracy,
        "features": widths,
        "left_out": left_out,
    }
    settings = {
        "model": type(model).__name__,
        "layers": list(layers),
        "per_class": per_class,
        "folds": folds,
        "test": test,
        "crops": crops,
        "max_features": max_features,
        "seed": seed,
        "images": len(labels),
        "classes": list(classes),
        "unit": "%",
        "dataset": type(data).__name__,
    }
    with results(out) as folder:
        (folder / "table.md").write_text(text + "\n", encoding="utf-8")
        figure = draw(accuracy, f"{type(model).__name__}, {len(classes)} classes")
        figure.savefig(folder / "figure.png", dpi=150)
        figure.savefig(folder / "figure.pdf")
        return write_result(folder, "table7", {**dict.fromkeys(ours), "accuracy": PAPER}, ours, settings, provenance)


def draw(accuracy: dict[str, list[float]], title: str) -> Figure:
    """Accuracy by layer: the paper's two sets in grey, ours in red; SVM filled, softmax open."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    for kind, fill in (("SVM", None), ("softmax", "white")):
        rows = [row for row in PAPER if row.startswith(kind)]
        x = [int(row[-2]) for row in rows]
        line = "-" if kind == "SVM" else "none"
        for n, (name, marker) in enumerate((("Caltech-101", "^"), ("Caltech-256", "v"))):
            y, spread = zip(*(PAPER[row][n] for row in rows), strict=True)
            axis.errorbar(x, y, spread, color="0.55", marker=marker, mfc=fill, ls=line, label=f"paper, {name}: {kind}")
        ours = [statistics.mean(accuracy[row]) for row in rows]
        bars = [deviation(accuracy[row]) or 0 for row in rows]
        axis.errorbar(x, ours, bars, color="#d0433a", marker="o", mfc=fill, ls=line, label=f"ours: {kind}")
    axis.set(xlabel="layer", ylabel="accuracy, mean over classes, %", ylim=(0, 100), xticks=NUMBERS)
    axis.set_title(f"Ours: {title}", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="0.93")
    axis.legend(fontsize=8, frameon=False)
    return figure
