"""Deconvolution or cropping? Measures what the paper's Figure 2 leaves to the eye: projections against crops.

A picture of a unit is good if it tells what the unit will do. A: of two squares over an image, which lowers the unit
more? B: of two images, which activates the feature map more? Projections, guided back-propagation and gradients mark
pixels of the crop, and so does the effective field, which knows where units of the layer look and nothing of this one:
it is the baseline. There are also checks: how pictures change when the weights are shuffled, how similar they are to
the image's edges, and how much of the activation their pixels keep.

What to look for: whether projection x field is right more often than the field alone, layer by layer; the report's
first sentences say it, with Holm's correction. Whether the mask of a shuffled network is no better than the field.
Everything else is exploratory. docs/ablation.md has the method.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from torch import nn
from typing_extensions import Unpack

from experiments.ablation.draw import draw_choices, draw_pictures, draw_sanity, draw_sufficiency
from experiments.ablation.measure import STATES, Protocol, examples, measure, study
from experiments.ablation.people import PAGE, export_trials, score_answers
from experiments.ablation.report import report, tables
from experiments.output.pages import Page, style_of
from experiments.output.results import Result
from experiments.setup.checks import as_list
from experiments.setup.hints import Count, Length, Names, Palette, Seed, Width
from experiments.setup.options import Reading

Tasks = Annotated[Sequence[Literal["intervention", "prediction", "sanity", "sufficiency"]], Length()]


def main(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    layers: Names = ("relu1", "relu2", "relu3", "relu4", "relu5"),
    maps: Count = 64,
    rules: Literal["deconvnet", "extended", "gradient", "guided"] = "deconvnet",
    judge: str | None = None,
    tasks: Tasks = ("intervention", "prediction", "sanity", "sufficiency"),
    scans: Path | None = None,
    export: str | None = None,
    answers: str | Sequence[str] | None = None,
    seed: Seed = 0,
    style: Palette = "safe",
    width: Width = 6.9,
    **reading: Unpack[Reading],
) -> dict[str, Any]:
    """Measure what pictures tell about their units: projections, crops, gradients, and controls.

    Args:
        model: the network.
        data: the images.
        out: the folder of the result; an interrupted run resumes after its last task.
        layers: by name.
        maps: feature maps of each layer, drawn by seed from those that are above 0 on twenty images or more.
        rules: the rule set of projections; "extended" is for networks that the deconvnet refuses: docs/rules.md.
        judge: the second network, which answers instead of people: a file of weights of torchvision's SqueezeNet v1.0;
            "dreamsim", if that package is installed; null: EfficientNet-Lite0, of the extra [weights]. Without it tasks
            A2 and B are left out.
        tasks: which are measured: "intervention" (A), "prediction" (B), "sanity", "sufficiency"; see docs/ablation.md.
        scans: the folder of kept scans of this network and these images; other experiments read them too.
        export: a name, such as trials: only write a page of that name with questions for people.
        answers: only score these files, which people saved from that page.
        seed: of the choice of maps, and of all random numbers.
        style: colours of the lines: "safe" for colour-blind readers, or "paper".
        width: of the figures, inches.
        reading: see `Reading`.
    """
    result = Result("ablation", out, locals())
    protocol = Protocol(as_list(layers), maps, judge, seed, rules)
    result.settings |= protocol.settings
    if answers is not None:
        return score_answers(result, as_list(answers, "answers"), export or PAGE)
    if export is not None:
        return export_trials(result, model, data, protocol, export, scans, **reading)
    known = study(model, data, Path(out), protocol, scans, **reading)
    ours = measure(known, Path(out), protocol, as_list(tasks), **reading)
    lines, measured = style_of(style).lines, {task for layer in ours["layers"].values() for task in layer["trials"]}
    for task in [task for task in ("A1", "A2", "B") if task in measured]:
        result.figure(draw_choices(ours, task, lines, width), task)
    result.figure(draw_pictures(Page(width), examples(known.layers.values())), "pictures")
    result.figure(draw_sanity(ours, lines, width), "sanity")
    result.figure(draw_sufficiency(ours, lines, width), "sufficiency")
    result.text(tables(ours), printed=False)
    result.text(report(ours, result.settings), "report.md")
    written = result.finish(ours)
    for name in STATES:
        (Path(out) / name).unlink(missing_ok=True)
    return written
