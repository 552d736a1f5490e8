"""The ablations of several networks, side by side, computed from their trials."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.ablation.analysis import (
    BETTER,
    CONTROL,
    EQUIVALENT,
    PICTURE,
    RIVALS,
    UNDECIDED,
    WORSE,
    Compared,
    Primary,
    analysed,
    difference,
)
from experiments.ablation.report import cell, clear, listed, squares
from experiments.ablation.units import FIELD
from experiments.output.tables import table
from zfnet.analysis.statistics import MARGIN, Contrast

GUIDED = "guided x field"
MASKED = "masked crop"  # of task B, by PICTURE
ANOTHER = "another map x field"  # a control
PAIRS = ("extreme", "percentile")  # of queries of task B
JUDGED = [(f"B/{pair}", MASKED, "crop") for pair in PAIRS]
OTHER_SQUARES = ("A1/unmatched", "A1/blur", "A1/patch")
MARKS = {
    BETTER: "**{}**",
    WORSE: "**{}**",
    EQUIVALENT: "{}, equivalent",
    UNDECIDED: "{}",
}  # of a contrast, by its verdict
Networks = Mapping[str, Mapping[str, Any]]  # what `estimates` finds, by network


def estimates(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The output of `analysis.analysed` for each network, by its name, from `ours` of its result."""
    return {name: analysed(ours, ["A1", "B", "sanity"]) for name, ours in results.items()}


def primary_table(networks: Networks) -> str:
    """The primary contrasts, a row for each network and a column for each layer; bold if better or worse."""
    rows = [
        [
            f"`{name}`",
            *(MARKS[contrast.verdict].format(signed(contrast.difference)) for contrast in analysis["primary"].values()),
        ]
        for name, analysis in networks.items()
    ]
    head = ["", *(f"layer {n}" for n in range(1, max(map(len, rows))))]
    return table(head, [row + [""] * (len(head) - len(row)) for row in rows])


def verdicts(networks: Networks) -> str:
    """How many primary contrasts have each verdict, in a sentence."""
    outcomes = [contrast.verdict for analysis in networks.values() for contrast in analysis["primary"].values()]
    better, worse, equivalent, undecided = (outcomes.count(verdict) for verdict in MARKS)
    return (
        f"Of {len(outcomes)} contrasts of {len(networks)} networks the projection is better in {better}, worse in "
        f"{worse}, equivalent in {equivalent}, and {undecided} are not decided."
    )


def sentences(networks: Networks) -> str:
    """The verdicts of the primary contrasts in sentences, and a table of others."""
    layers: list[list[Primary]] = [[*analysis["primary"].values()] for analysis in networks.values()]
    depth = [sum(row[n].verdict == BETTER for row in layers if n < len(row)) for n in range(max(map(len, layers)))]
    worse_places = worse_in(networks)
    words = [
        "Bold: p < 0.05 by Holm's correction over the layers of a network. *Equivalent*: within "
        f"±{MARGIN:g} by two one-sided tests.",
        verdicts(networks),
        f"By layer it is better in {listed(map(str, depth))} networks.",
        *([f"It is worse in {listed(worse_places)}."] if worse_places else []),
    ]
    tasks = (("A1", CONTROL, FIELD), *(("A1", PICTURE, one) for one in (CONTROL, ANOTHER)))
    guided = (("A1", GUIDED, FIELD), ("A1", PICTURE, GUIDED))
    compared = exploratory(networks, [*((task, PICTURE, FIELD) for task in OTHER_SQUARES), *tasks, *guided, *JUDGED])
    return f"{' '.join(words)}\n\n{compared}"


def exploratory(networks: Networks, comparisons: Sequence[tuple[str, str, str]]) -> str:
    """In how many layers one picture is right more often than another: task, picture, the other.

    A layer counts if its 95 % interval lies on one side of 0.
    """
    rows = []
    for task, picture, other in comparisons:
        kind, _, pair = task.partition("/")
        where = f"B, {pair} queries" if kind == "B" else f"A1, {squares(task)}"
        if contrasts := differences(networks, task, picture, other):  # of a task that was measured
            rows.append([where, picture, other, *sides(contrasts)])
    head = ["task", "picture", "compared with", "more often right, layers", "less often right, layers", "of layers"]
    return f"Exploratory, and not corrected:\n\n{table(head, rows)}"


def worse_in(networks: Networks) -> list[str]:
    """The layers, by network, in which the projection is worse than the field."""
    places = []
    for name, ours in networks.items():
        numbers = [n for n, contrast in enumerate(ours["primary"].values(), 1) if contrast.verdict == WORSE]
        if numbers:
            places.append(f"`{name}`, layer{'s' * (len(numbers) > 1)} {listed(map(str, numbers))}")
    return places


def differences(networks: Networks, task: str, picture: str, rival: str = FIELD) -> list[Contrast | None]:
    """How much more often a picture is right than another, in all layers of all networks."""
    tasks = [analysis["compared"].get(task, {}) for analysis in networks.values()]
    return [
        comparison.differences.get(difference(picture, rival)) for layers in tasks for comparison in layers.values()
    ]


def pointing_table(networks: Networks) -> str:
    """Task A1 in every layer: the primary contrast, controls, and other squares."""
    rows = []
    for name, analysis in networks.items():
        for layer, contrast in analysis["primary"].items():
            tasks = [analysis["compared"].get(task, {}).get(layer) for task in ("A1", *OTHER_SQUARES)]
            p = "-" if contrast.corrected is None else f"{contrast.corrected:.2g}"
            rows.append([f"`{name}`", layer, "all", *pointing(tasks, [p, contrast.verdict])])
            for area in tasks[0].strata if tasks[0] else ():
                parts = [task and task.strata.get(area) for task in tasks]
                rows.append([f"`{name}`", layer, area, *pointing(parts, ["", ""])])
    head = [
        "network",
        "layer",
        "maps that see",
        f"{PICTURE}: right",
        "field: right",
        "difference",
        "p, corrected",
        "verdict",
    ]
    head += ["shuffled minus field", f"{GUIDED} minus field"]
    return table([*head, *(f"difference, {squares(task)}" for task in OTHER_SQUARES)], rows)


def pointing(tasks: Sequence[Compared | None], verdict: Sequence[str]) -> list[str]:
    """The cells of task A1 with matched squares, the first of the tasks, and with others."""
    first, *variants = tasks
    cells = [mean(first, PICTURE), mean(first, FIELD), less_field(first, PICTURE), *verdict]
    return [
        *cells,
        *(less_field(first, picture) for picture in (CONTROL, GUIDED)),
        *(less_field(variant, PICTURE) for variant in variants),
    ]


def judged_table(networks: Networks) -> str:
    """Task B and the sanity of projections in every layer."""
    rows = []
    for name, analysis in networks.items():
        for layer in analysis["primary"]:
            tasks = [analysis["compared"].get(f"B/{pair}", {}).get(layer) for pair in PAIRS]
            shares = [mean(task, picture) for task in tasks for picture in ("crop", "masked crop", "random crop")]
            sanity = analysis["sanity"].get(layer, {}).get("projection", {})
            steps = [[*sanity.get(test, {}).values()] for test in ("cascade", "another map")]
            likenesses = [
                cell(values[-1][kind].mean) if values else "-" for kind in ("similarity", "partial") for values in steps
            ]
            rows.append([f"`{name}`", layer, *shares, *likenesses])
    shuffled, another = "all weights shuffled", "another map at its place"
    pictures = ["crop", "masked crop", "random crop"]
    head = ["network", "layer", *(f"{pair} queries: {picture}" for pair in PAIRS for picture in pictures)]
    kinds = ("plain", "given the field")
    return table([*head, *(f"{kind}: {control}" for kind in kinds for control in (shuffled, another))], rows)


def extended_table(networks: Networks) -> str:
    """Task A1 by rules for networks that the deconvnet refuses: against the field, and against other rules."""
    rows = []
    for name, analysis in networks.items():
        for layer, contrast in analysis["primary"].items():
            task = analysis["compared"].get("A1", {}).get(layer)
            p = "-" if contrast.corrected is None else f"{contrast.corrected:.2g}"
            cells = [
                counts(task),
                mean(task, PICTURE),
                mean(task, FIELD),
                signed(contrast.difference),
                p,
                contrast.verdict,
            ]
            cells += [less(task, PICTURE, rival) for rival in (*RIVALS, CONTROL)]
            rows.append([f"`{name}`", layer, *cells, less_field(task, CONTROL)])
    head = ["network", "layer", "trials, maps, images", f"{PICTURE}: right", "field: right", "difference"]
    head += ["p, corrected", "verdict", *(f"{PICTURE} minus {rival}" for rival in (*RIVALS, CONTROL))]
    return table([*head, "shuffled minus field"], rows)


def extended_judged_table(networks: Networks) -> str:
    """Task B of the same networks: whole crops, and crops that are masked by the projection."""
    rows, head = [], ["network", "layer"]
    for pair in PAIRS:
        head += [f"{pair} queries: trials, maps, images", "crop", MASKED, f"{MASKED} minus crop"]
    for name, analysis in networks.items():
        for layer in analysis["primary"]:
            cells = []
            for task in (analysis["compared"].get(f"B/{pair}", {}).get(layer) for pair in PAIRS):
                cells += [counts(task), mean(task, "crop"), mean(task, MASKED), less(task, MASKED, "crop")]
            rows.append([f"`{name}`", layer, *cells])
    return table(head, rows)


def extended_sentences(networks: Networks) -> str:
    """The same of networks by the extended rules."""
    verdicts = [contrast.verdict for analysis in networks.values() for contrast in analysis["primary"].values()]
    better, worse, equivalent, undecided = (verdicts.count(verdict) for verdict in MARKS)
    words = [
        f"Task A1: of {len(verdicts)} contrasts of {len(networks)} networks, with Holm's correction over the layers of "
        f"each, {PICTURE} is better than the field in {better}, worse in {worse}, equivalent (within ±{MARGIN:g}) "
        f"in {equivalent}, and {undecided} are not decided."
    ]
    against = [("A1", PICTURE, rival) for rival in (*RIVALS, CONTROL)]
    return f"{' '.join(words)}\n\n{exploratory(networks, [*against, ('A1', CONTROL, FIELD), *JUDGED])}"


def sides(contrasts: Sequence[Contrast | None]) -> tuple[int, int, int]:
    """How many intervals lie above 0, how many below, and how many contrasts there are."""
    above, below = (sum(clear(contrast) == side for contrast in contrasts) for side in (1, -1))
    return above, below, len(contrasts)


def counts(comparison: Compared | None) -> str:
    return f"{comparison.trials}, {comparison.maps}, {comparison.images}" if comparison else "-"


def less(comparison: Compared | None, picture: str, rival: str) -> str:
    return signed(comparison.differences.get(difference(picture, rival)) if comparison else None)


def signed(contrast: Contrast | None) -> str:
    return cell(contrast, "+")


def mean(comparison: Compared | None, picture: str) -> str:
    return cell(comparison.means.get(picture) if comparison else None)


def less_field(comparison: Compared | None, picture: str) -> str:
    return less(comparison, picture, FIELD)
