"""The ablation in words: every number with its interval in tables, and a page whose sentences are made from them."""

from collections.abc import Callable, Mapping, Sequence

from experiments.ablation.measure import (
    CHOICES,
    COMPARISONS,
    MEASURES,
    SHOWN,
    SIGNALS,
    Estimates,
    LayerResult,
    Measurements,
    Protocol,
)
from experiments.output.tables import table
from zfnet.analysis.faithfulness import SHARE
from zfnet.analysis.statistics import Estimate

LABELS = {"shrunk crop": "central square", "centre": "central disc", "random": "random pixels"}  # what is shown


def label(name: str) -> str:
    """What a picture, or a comparison of two, is called where people read it."""
    return " - ".join(LABELS.get(picture, picture) for picture in name.split(" - "))


def source(measured: Measurements, protocol: Protocol) -> str:
    """Where the numbers come from, for captions and the report."""
    drawn, units = sum(c.drawn for c in measured.counts.values()), sum(r.units for r in measured.layers.values())
    return (
        f"{measured.network}, {measured.images:,} images ({measured.dataset}): the {protocol.k} strongest activations "
        f"of {drawn} feature maps in {len(measured.layers)} layers, {units:,} units; maps by seed {protocol.seed}."
    )


def intervals(protocol: Protocol) -> str:
    return f"Means over maps, and their 95% intervals from {protocol.draws:,} draws of maps and images."


def cell(estimate: Estimate | None, sign: str = "") -> str:
    return "-" if estimate is None else "{:{s}.2f} ({:{s}.2f} to {:{s}.2f})".format(*estimate[:3], s=sign)


def tables(measured: Measurements) -> str:
    """Every number with its interval, as four tables."""

    def rows(what: str, rows_of: Callable[[LayerResult], Estimates], columns: Sequence[str], sign: str = "") -> str:
        cells = [
            [layer, label(name), *(cell(row.get(c), "" if c == "cosine" else sign) for c in columns)]
            for layer, result in measured.layers.items()
            for name, row in rows_of(result).items()
        ]
        return table(["layer", what, *columns], cells)

    def by_other(result: LayerResult) -> Estimates:
        others = result.likeness["projection"]
        return {other: {signal: result.likeness[signal].get(other) for signal in SIGNALS} for other in others}

    parts = [
        "Means over units, with 95% intervals; larger is better.",
        rows("picture", lambda result: result.measures, measured.measures),
        "Paired differences: of the same units and images.",
        rows("difference", lambda result: result.differences, measured.measures, "+"),
        "The reproduction's own choices: cosine with its projection, and what is gained by them, in sufficiency and "
        "necessity by the masked crop, else by the projection.",
        rows("choice", lambda result: result.choices, ["cosine", *measured.measures], "+"),
        "How like the picture is another, by the rank correlation of their energies.",
        rows("other", by_other, list(SIGNALS)),
    ]
    if measured.classes:
        estimates = ", ".join(f"{signal} {cell(estimate)}" for signal, estimate in measured.classes.items())
        parts.append(f"Of the likeliest class and of another one, on the same image: {estimates}.")
    return "\n\n".join(parts)


def clear(estimate: Estimate | None) -> int:
    """1 or -1 where an interval, to three digits, lies wholly on one side of 0, else 0."""
    return 0 if estimate is None else int(round(estimate.low, 3) > 0) - int(round(estimate.high, 3) < 0)


def unbeaten(result: LayerResult, measure: str) -> list[str]:
    """Those of the shown pictures that none of the others is clearly better than."""
    losers = set()
    for pictures in COMPARISONS:
        if pictures.of_shown and (side := clear(result.differences[pictures.name].get(measure))):
            losers.add(pictures.other if side > 0 else pictures.one)
    return [name for name in SHOWN if result.measures[name].get(measure) and name not in losers]


def effects(rows: Mapping[str, Mapping[str, Estimate | None]], measures: Sequence[str]) -> str:
    """In which layers something is clearly better, and worse, by each measure; the rows are by layer."""
    words = []
    for measure in measures:
        for side, word in ((1, "better"), (-1, "worse")):
            layers = [layer for layer, row in rows.items() if clear(row.get(measure)) == side]
            where = "every layer" if len(layers) == len(rows) else ", ".join(layers)
            words += [f"{measure} {word} in {where}"] if layers else []
    return "; ".join(words) or "no difference shown"


def report(measured: Measurements, protocol: Protocol) -> str:
    """One page, whose sentences are made from the numbers."""
    layers, measures = measured.layers, measured.measures
    chances = ", ".join(f"{layer} {result.chance:.2f}" for layer, result in layers.items())
    winners = []
    for measure in measures:
        names = [unbeaten(result, measure) for result in layers.values()]
        cells = [f"**{best[0]}**" if len(best) == 1 else ", ".join(best) or "-" for best in names]
        winners += [[f"{measure}: {MEASURES[measure]}", *cells]] if any(names) else []
    orders = {label("shrunk crop" if c.other == "crop" else c.other): c.name for c in COMPARISONS if c.of_crops}
    against = [
        f"- {other}: {effects({layer: r.differences[name] for layer, r in layers.items()}, measures[:2])}"
        for other, name in orders.items()
    ]
    choices = [f"- {c}: {effects({layer: r.choices[c] for layer, r in layers.items()}, measures)}" for c in CHOICES]
    parts = [
        "# Deconvolution or cropping?",
        f"{source(measured, protocol)} Removed pixels become {protocol.fill}. {intervals(protocol)} What is not clear "
        f"of 0 is not counted as a difference. {remarks(measured, protocol.k)}",
        "## Which of crop, projection and masked crop?",
        "A crop has no order of its own: its pixels are kept from its centre outwards. The masked crop keeps those "
        f"where the projection is strongest; people see {SHARE:.0f}% of them. The projection itself is shown to the "
        "network at a figure's contrast, and may excite the unit more than the crop does: then more than 1 is left. "
        "Every second picture of a map is known, and the others are to be told apart; the rates by chance are "
        f"{chances}. The second network is SqueezeNet ({protocol.settings['judge']}).",
        "Named are those that none of the other two is clearly better than, in bold where there is but one; how much "
        "they differ is in `table.md`.",
        table(["", *layers], winners),
        "## Against gradients and baselines",
        "The crop masked by the projection is, against\n\n" + "\n".join(against),
        "## Do this reproduction's choices matter?",
        "\n".join(choices),
    ]
    return "\n\n".join(parts)


def remarks(measured: Measurements, k: int) -> str:
    """What was left out, or is not as in the paper."""
    words = []
    for layer, count in measured.counts.items():
        if count.dead:
            words.append(f"{layer}: {count.dead} of {count.maps} maps never fire, and are left out")
        if count.rare:
            words.append(f"{layer}: {count.rare} of the {count.drawn} maps drawn are above 0 on fewer than {k} images")
    words += [f"{k} images of each map, not the paper's nine"] if k < 9 else []
    words += [f"{len(measured.broken_images)} images could not be read"] if measured.broken_images else []
    return "; ".join(words) + "." if words else "No map was left out."
