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

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from torch import nn
from typing_extensions import Unpack

from experiments.ablation.draw import draw_curves, draw_likeness, draw_measures, draw_pictures
from experiments.ablation.measure import STATES, Protocol, measure
from experiments.ablation.report import report, tables
from experiments.output.feature_maps import Look
from experiments.output.pages import Page, style_of
from experiments.output.results import Result
from experiments.setup.checks import as_list
from experiments.setup.hints import LARGEST, Count, Length, Limits, Names, Palette, Seed, Share, Width
from experiments.setup.options import Reading

SHARES = (0, 1, 2, 5, 10, 20, 35, 50, 75, 100)


def main(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    layers: Names = ("relu1", "relu2", "relu3", "relu4", "relu5"),
    maps: Count = 16,
    k: Count = 9,
    shares: Annotated[Sequence[Annotated[float, Limits(0, 100)]], Length()] = SHARES,
    fill: Literal["grey", "blur", "noise"] = "grey",
    judge: str | None = None,
    draws: Annotated[int, Limits(100, LARGEST)] = 2000,
    seed: Seed = 0,
    style: Palette = "safe",
    contrast: Share = 0.995,
    colour: Literal["rgb", "grey"] = "rgb",
    interpolation: Literal["bicubic", "nearest"] = "bicubic",
    width: Width = 6.9,
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
    look, _ = Look.of({"contrast": contrast, "colour": colour, "interpolation": interpolation, "width": width})
    page, lines = Page(width), style_of(style).lines
    protocol = Protocol(as_list(layers), maps, k, shares, fill, judge, draws, seed).check(len(data))
    measured, examples = measure(model, data, Path(out), protocol, **reading)
    result.figure(draw_curves(measured, protocol, lines, width))
    result.figure(draw_measures(measured, protocol, lines, width), "measures")
    result.figure(draw_likeness(measured, protocol, lines, width), "likeness")
    result.figure(draw_pictures(page, measured, examples, look), "pictures")
    result.text(tables(measured))
    result.text(report(measured, protocol), "report.md", printed=False)
    result.settings |= protocol.settings
    written = result.finish(asdict(measured))
    for name in STATES:
        (Path(out) / name).unlink(missing_ok=True)
    return written
