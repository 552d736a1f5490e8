"""How one activation gets back to pixels: every step of its way down, drawn.

What to look for: *unpooling* sends each value to the place where its maximum came from, which the forward pass
remembered as a switch; *rectification* takes away what is negative; *filtering* with the transposed filters spreads one
layer's maps over those of the layer below. What began as one number ends as a pattern in the unit's receptive field.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from experiments.output.results import Provenance, results, write_result
from zfnet import Deconvnet, InputError, receptive_field, scan
from zfnet.checks import device_and_dtype
from zfnet.data.preprocessing import Preprocessing
from zfnet.rendering import contrast, signed_image

VERBS = {
    "relu": "rectify",
    "relu_": "rectify",
    "conv2d": "filter",
    "linear": "filter",
    "maxpool2d": "unpool",
    "switchmaxpool2d": "unpool",
    "max_pool2d": "unpool",
    "contrastnorm": "pass",
    "dropout": "pass",
    "cat": "split",
    "add": "branch",
    "iadd": "branch",
}


class Step(NamedTuple):
    """A signal on its way down, after an operation of a layer was undone."""

    layer: str
    verb: str
    signal: Tensor  # (C, H, W)

    @property
    def alive(self) -> int:
        return int((self.signal != 0).sum())


def main(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    layer: str = "relu5",
    map: int | None = None,
    rank: int = 0,
    images: int | None = None,
    shown: int = 3,
    batch_size: int = 64,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Find a strong activation of the layer, draw its way down to pixels, and return what result.json holds.

    map: the feature map; None: the one with the strongest activation. rank: 0 for the map's strongest image.
    images: look for it among the first so many only. shown: how many maps of each signal are drawn.
    """
    provenance = Provenance(model)
    deconvnet = Deconvnet(model)
    count = len(data) if images is None else min(images, len(data))
    tops = scan(
        deconvnet.graph,
        data,
        [layer],
        rank + 1,
        indices=range(count),
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )
    top = tops[layer]
    if map is None:
        map = int(top.value[:, rank].argmax())
    if not 0 <= map < len(top.value):
        raise InputError(f"no map {map} in {layer}: there are {len(top.value)}")
    if not top.value[map, rank] > 0:
        raise InputError(f"map {map} of {layer} has no activation above 0 of rank {rank} on these {tops.images} images")
    value = float(top.value[map, rank])
    index, _, row, column = top.units([map])[rank].tolist()
    image = data[int(index)][0][None].to(**device_and_dtype(model))
    recording = deconvnet.record(image, [layer])
    signal = torch.zeros_like(recording.activations[layer])
    signal[(0, map, row, column)[: signal.ndim]] = value  # type: ignore[index]
    steps = [Step(layer, "start", _maps(signal))]
    for name, operation, signals in deconvnet.steps(recording, layer, signal):
        verb = VERBS.get(operation.lower(), operation)
        if verb != "pass":
            steps.append(Step(name, verb, _maps(signals)))
    preprocessing = Preprocessing.of(model)
    box = receptive_field(deconvnet.graph, layer, tuple(image.shape[-2:])).box(row, column)  # type: ignore[arg-type]
    ours = {
        "unit": {"layer": layer, "map": map, "row": row, "column": column, "value": value},
        "image": index,
        "file": data.file(index) if hasattr(data, "file") else None,
        "box": list(box),
        "steps": [
            {"layer": s.layer, "operation": s.verb, "shape": list(s.signal.shape), "not_zero": s.alive} for s in steps
        ],
    }
    settings = {"model": type(model).__name__, "layer": layer, "map": map, "rank": rank, "images": tops.images}
    with results(out) as folder:
        picture = preprocessing.pixels(image[0]).clamp(0, 1).cpu()
        figure = draw(picture, preprocessing, steps, box, (map, row, column, value), shown)
        figure.savefig(folder / "figure.png", dpi=110)
        figure.savefig(folder / "figure.pdf")
        return write_result(folder, "steps", dict.fromkeys(ours), ours, settings, provenance)


def _maps(signal: Tensor) -> Tensor:
    """The signal of the one image as maps (C, H, W); a fully connected layer's as one row."""
    return signal[0].detach().cpu() if signal.ndim == 4 else signal.detach().cpu().reshape(1, 1, -1)


def draw(
    image: Tensor,
    preprocessing: Preprocessing,
    steps: list[Step],
    box: tuple[int, int, int, int],
    unit: tuple[int, int, int, float],
    shown: int,
) -> Figure:
    """One line for each step: what was done, where the signal is, and its strongest maps."""
    *steps, last = steps
    half = -(-(len(steps) + 2) // 2)
    wide = shown + 2
    figure = Figure(figsize=(2 * (1.15 * wide + 1.3), 1.22 * half + 0.9), facecolor="white")
    ratios = [1.5, *[1] * (wide - 1)]
    axes = figure.subplots(half, 2 * wide + 1, squeeze=False, width_ratios=[*ratios, 0.15, *ratios])
    for axis in axes.flat:
        axis.axis("off")
    lines = [axes[n % half][(wide + 1) * (n // half) :][:wide] for n in range(2 * half)]
    for line in (lines[1], lines[half]):
        line[1].set_title("all maps", fontsize=7, pad=2)
    _words(lines[0][0], "image", f"box: what the unit sees,\n{box[2] - box[0]} x {box[3] - box[1]} pixels")
    _picture(lines[0][1], image, box)
    chosen: list[int] = []
    before: Step | None = None
    for line, step in zip(lines[1:], steps, strict=False):
        if before is None or step.verb not in ("rectify", "unpool") or len(step.signal) != len(before.signal):
            strength = step.signal.clamp(min=0).sum((1, 2))  # what the next rectification lets through
            chosen = [m for m in strength.argsort(descending=True, stable=True)[:shown].tolist() if strength[m] > 0]
        _words(line[0], _title(step), _explain(step, before, unit))
        _show(line[1], step.signal.abs().sum(0), signed=False)
        for axis, m in zip(line[2:], chosen, strict=False):
            _show(axis, step.signal[m], signed=True)
            axis.set_title(f"map {m}", fontsize=7, pad=2)
        before = step
    line = lines[len(steps) + 1]
    _words(line[0], f"{last.layer}: {last.verb}", f"the projection,\n{_shape(last.signal)}")
    pixels = preprocessing.rgb(last.signal)
    _picture(line[1], signed_image(pixels[None])[0], box)
    top, left, bottom, right = (max(edge, 0) for edge in box)
    for axis, picture, name in ((line[2], pixels, "in its box"), (line[3], image, "the patch")) if shown > 1 else ():
        crop = picture[:, top:bottom, left:right]
        _picture(axis, signed_image(crop[None])[0] if picture is pixels else crop)
        axis.set_title(name, fontsize=7, pad=2)
    note = "Down the left side, then down the right.  All maps: the strength at each place.  Red above 0, blue below."
    figure.text(0.01, 0.008, f"{note}  Each picture has its own scale.", fontsize=7, color="0.35")
    figure.subplots_adjust(0.01, 0.035, 0.99, 0.975, 0.06, 0.22)
    return figure


def _shape(signal: Tensor) -> str:
    return " x ".join(str(n) for n in signal.shape)


def _title(step: Step) -> str:
    return f"{step.layer}: one activation" if step.verb == "start" else f"{step.layer}: {step.verb}"


def _explain(step: Step, before: Step | None, unit: tuple[int, int, int, float]) -> str:
    """What was done, in numbers."""
    shape, alive = _shape(step.signal), step.alive
    if before is None:
        map, row, column, value = unit
        return f"map {map}, row {row}, column {column}:\n{value:.3g}; all other units 0\n{shape}"
    if step.verb == "rectify":
        negatives = int((before.signal < 0).sum())
        return f"{negatives:,} negative values to 0\n{shape}\n{alive:,} not zero"
    if step.verb == "unpool":
        return f"each value to its switch\n{shape}\n{alive:,} not zero"
    if step.verb == "filter":
        return f"transposed filters\n{shape}\n{alive:,} not zero"
    return f"{shape}\n{alive:,} not zero"


def _words(axis: Axes, title: str, text: str) -> None:
    axis.text(0, 0.92, title, weight="bold", fontsize=8.5, va="top")
    axis.text(0, 0.72, text, fontsize=7.2, va="top", linespacing=1.35)
    axis.set(xlim=(0, 1), ylim=(0, 1))


def _picture(axis: Axes, image: Tensor, box: tuple[int, int, int, int] | None = None) -> None:
    axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="antialiased")
    if box:
        top, left, bottom, right = box
        axis.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, color="red", lw=1.4))
        axis.set(xlim=(-0.5, image.shape[2] - 0.5), ylim=(image.shape[1] - 0.5, -0.5))


def _show(axis: Axes, plane: Tensor, *, signed: bool) -> None:
    """A plane (H, W): red above zero and blue below it, or the strength alone as ink."""
    strength = contrast(plane[None], quantile=0.999)[0].numpy()
    low, colours = (-1, "RdBu_r") if signed else (0, "Greys")
    axis.imshow(strength, cmap=colours, vmin=low, vmax=1, interpolation="nearest", aspect="equal")
    axis.axis("on")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color="0.7", linewidth=0.5)
