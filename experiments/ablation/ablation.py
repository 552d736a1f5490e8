"""Deconvolution or cropping? What the paper leaves to the eye in its Figure 2, projections beside crops, in numbers.

The same feature maps and the same strongest activations of each are shown as the crop of the receptive field, as the
projection, and as the crop masked by the projection's strongest pixels; as gradient and guided back-propagation in
place of the deconvnet; and as baselines that need no network: the middle of the crop, random pixels, edges. A
difference counts where its interval, by drawing maps and images again, leaves out 0.

What to look for: whether the masked crop leaves more of the activation than the middle of the crop and than random
pixels, layer by layer: only then does the projection say where in its receptive field a unit looks. Whether the
projection tells units apart better than the crop. And whether it changes when the weights do: a picture that does not
tells of the image, not of the network.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from typing_extensions import Unpack

from experiments.ablation.draw import draw_curves, draw_likeness, draw_measures, draw_pictures
from experiments.ablation.measure import (
    Counts,
    LayerResult,
    Measurements,
    Protocol,
    Sample,
    likeness_of_classes,
    measure_layer,
)
from experiments.ablation.report import report, tables
from experiments.output.feature_maps import Look, chosen, dead_maps
from experiments.output.pages import Page, style_of
from experiments.output.results import Result
from experiments.setup.checks import as_list
from experiments.setup.models import build
from experiments.setup.reading import Reading
from zfnet import Deconvnet, InputError, TopActivations, scan
from zfnet.data.images import as_images
from zfnet.data.preprocessing import Preprocessing
from zfnet.identity import digest, network_identity, read_sealed, write_sealed

SHARES = (0, 1, 2, 5, 10, 20, 35, 50, 75, 100)
STATES = ("scan.partial", "ablation.partial")  # of a run that was stopped
EXAMPLES = 2  # maps of each layer whose pictures are drawn


def main(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    layers: Sequence[str] = ("relu1", "relu2", "relu3", "relu4", "relu5"),
    maps: int = 16,
    k: int = 9,
    shares: Sequence[float] = SHARES,
    fill: str = "grey",
    judge: str | None = None,
    draws: int = 2000,
    seed: int = 0,
    style: str = "safe",
    contrast: float = 0.995,
    colour: str = "rgb",
    interpolation: str = "bicubic",
    width: float = 6.9,
    **reading: Unpack[Reading],
) -> dict[str, Any]:
    """Measure how well crops, projections and masked crops show what units respond to.

    Args:
        model: the network.
        data: the images.
        out: the folder of the result; a run that was stopped goes on after the last layer that was done.
        layers: by name.
        maps: feature maps of each layer, drawn by seed from those that are ever above 0.
        k: strongest activations of each map; all images, if there are fewer.
        shares: percentages of the pixels that are kept, or removed.
        fill: what stands in the place of removed pixels: "grey" (the mean colour), "blur" or "noise".
        judge: weights of torchvision's SqueezeNet v1.0, the second network by which units are told apart; null:
            untrained, so that it knows neither these images nor these units.
        draws: of maps and images, for the intervals.
        seed: of the maps, the draws, and the random pixels.
        style: colours of the lines: "safe" for colour-blind readers, or "paper".
        contrast: the pictures' scale ends at this quantile of a projection's non-zero absolute values.
        colour: of projections in the pictures: "rgb", or "grey", the mean of their colours.
        interpolation: of the pictures: "bicubic", or "nearest", which shows pixels as squares.
        width: of the figures, inches.
        reading: see `Reading`.
    """
    result = Result("ablation", out, locals())
    look, page, lines = Look(contrast, colour, interpolation).check(), Page(width), style_of(style).lines
    protocol = Protocol(as_list(layers), maps, k, shares, fill, judge, draws, seed).check(len(data))
    measured, examples = measure(model, data, Path(out), protocol, **reading)
    result.figure(draw_curves(measured, protocol, lines, width))
    result.figure(draw_measures(measured, protocol, lines, width), "measures")
    result.figure(draw_likeness(measured, protocol, lines, width), "likeness")
    result.figure(draw_pictures(page, measured, examples, look), "pictures")
    result.text(tables(measured))
    result.text(report(measured, protocol), "report.md", printed=False)
    result.settings |= protocol.settings | {"dataset": measured.dataset, "images": measured.images}
    written = result.finish(measured.json)
    for name in STATES:
        (Path(out) / name).unlink(missing_ok=True)
    return written


def measure(
    model: nn.Module, data: Any, out: Path, protocol: Protocol, **reading: Unpack[Reading]
) -> tuple[Measurements, dict[str, Sample]]:
    """All numbers, and of each layer some units whose pictures are shown."""
    judge = build(torchvision.models.squeezenet1_0, weights=protocol.judge, preprocessing=Preprocessing())
    judge.to(next(model.parameters()).device)
    deconvnet, layers, k = Deconvnet(model), protocol.layers, protocol.k
    scan_state, state = (out / name for name in STATES)
    tops = scan(deconvnet.graph, data, layers, k, state=scan_state, keep_state=True, **reading)
    drawn = {
        layer: chosen(layer, top, protocol.maps, "random", torch.Generator().manual_seed(protocol.seed))
        for layer, top in tops.items()
    }
    if not any(drawn.values()):
        scan_state.unlink(missing_ok=True)
        raise InputError(f"no feature map of {', '.join(layers)} is ever above 0 on these {tops.images} images")
    identity = network_identity(model) | {
        "images": as_images(data).identity(),
        "settings": digest(protocol.settings),
        "judge": digest(judge),
        "winners": digest({layer: list(top) for layer, top in tops.items()}),
    }
    done = json.loads(read_sealed(state, identity, "delete it to measure anew")) if state.exists() else {}
    results = {layer: LayerResult.of(entries) for layer, entries in done.items()}
    examples = {}
    for layer in (layer for layer in layers if drawn[layer]):
        if layer not in results:
            progress = reading.get("progress", True)
            sample = Sample.of(deconvnet, data, layer, tops[layer], drawn[layer], protocol, progress)
            results[layer] = measure_layer(sample, data, judge)
            write_sealed(state, identity, json.dumps({name: asdict(entry) for name, entry in results.items()}))
        strongest = TopActivations(*(column[:, :1] for column in tops[layer]))
        examples[layer] = Sample.of(deconvnet, data, layer, strongest, drawn[layer][:EXAMPLES], protocol)
    counts = {
        layer: Counts(
            len(top.value),
            len(dead_maps(top)),
            len(drawn[layer]),
            int(((top.value[drawn[layer]] > 0).sum(1) < k).sum()),
        )
        for layer, top in tops.items()
    }
    classes = likeness_of_classes(deconvnet, data, protocol.seed, protocol.draws)
    names = type(model).__name__, type(data).__name__
    return Measurements(*names, tops.images, tops.broken, counts, results, classes), examples
