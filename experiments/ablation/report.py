"""The ablation in words: every number with its interval in tables, and a page whose sentences are made from them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
from zfnet.analysis.faithfulness import SHARE, Estimate

OTHERS = (  # pictures that a projection may be like
    "all shuffled",
    "another map, same place",
    "same map, another image",
    "edges of the crop",
    "nearness of the centre",
)
LABELS = {"shrunk crop": "central square", "centre": "central disc", "random": "random pixels"}  # what is shown


def label(name: str) -> str:
    """What a picture, or a comparison, is called where people read it."""
    return " - ".join(LABELS.get(part, part) for part in name.split(" - "))


def source(measured: Measurements, protocol: Protocol) -> str:
    """Where the numbers come from, for captions and the report."""
    drawn, units = sum(c.drawn for c in measured.counts.values()), sum(r.units for r in measured.layers.values())
    return (
        f"{measured.network}, {measured.images:,} images ({measured.dataset}): the {protocol.k} strongest activations "
        f"of {drawn} feature maps in {len(measured.layers)} layers, {units} units, drawn by seed {protocol.seed}. "
        f"Removed pixels become {protocol.fill}. Intervals are of 95 %, from {protocol.draws:,} draws of maps and images."
    )


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

    return "\n\n".join(
        [
            "Means over units, with 95 % intervals; larger is better.",
            rows("picture", lambda result: result.measures, measured.measures),
            "Paired differences: of the same units and images.",
            rows("difference", lambda result: result.differences, measured.measures, "+"),
            "The reproduction's own choices: cosine with its projection, and what is gained by them, in sufficiency and "
            "necessity by the masked crop, else by the projection.",
            rows("choice", lambda result: result.choices, ["cosine", *measured.measures], "+"),
            "How like the picture is another, by the rank correlation of their energies.",
            rows("other", by_other, list(SIGNALS)),
        ]
    )


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
    layers = measured.layers
    chances = [f"{layer} {result.chance:.2f}" for layer, result in layers.items()]
    best = {m: [unbeaten(result, m) for result in layers.values()] for m in measured.measures}
    winners = [
        [f"{m}: {MEASURES[m]}", *(f"**{n[0]}**" if len(n) == 1 else ", ".join(n) or "-" for n in names)]
        for m, names in best.items()
        if any(names)
    ]
    against = {
        label("shrunk crop" if pair.other == "crop" else pair.other): pair for pair in COMPARISONS if pair.of_orders
    }
    similar = [[o, *(cell(r.likeness["projection"].get(o)) for r in layers.values())] for o in OTHERS]
    classes = ", ".join(f"{signal} {cell(estimate)}" for signal, estimate in (measured.classes or {}).items())
    return "\n\n".join(
        [
            "# Deconvolution or cropping?",
            f"{source(measured, protocol)} What is not clear of 0 is not counted as a difference.",
            remarks(measured, protocol.k),
            "## Which of crop, projection and masked crop?",
            "A crop has no order of its own: its pixels are kept from its centre outwards. The masked crop keeps them where "
            f"the projection is strongest; a person sees {SHARE:.0f} % of them. The projection itself is shown to the "
            "network at a figure's contrast, and may excite the unit more than the crop does: then more than 1 is left. "
            "Every second picture of a map is known, and the others are to be told apart: by chance at a rate of "
            f"{', '.join(chances)}. The second network is SqueezeNet ({protocol.settings['judge']}).",
            "Named are those that none of the other two is clearly better than, in bold where there is but one; how much "
            "they differ is in `table.md`.",
            table(["", *layers], winners),
            "## Against gradients and baselines",
            "The crop masked by the projection, against",
            "\n".join(
                f"- {other}: {effects({layer: r.differences[pair.name] for layer, r in layers.items()}, ['sufficiency', 'necessity'])}"
                for other, pair in against.items()
            ),
            "## Does it only recover the image?",
            "How like the projection another picture is, by the rank correlation of their energies:",
            table(["", *layers], similar),
            *(
                [f"Pictures of the likeliest class and of another one, on the same image: {classes}."]
                if classes
                else []
            ),
            "## Do this reproduction's choices matter?",
            "\n".join(
                f"- {name}: {effects({layer: r.choices[name] for layer, r in layers.items()}, measured.measures)}"
                for name in CHOICES
            ),
        ]
    )


def remarks(measured: Measurements, k: int) -> str:
    """What was left out, or is not as in the paper."""
    words = []
    for layer, count in measured.counts.items():
        if count.dead:
            words.append(f"{layer}: {count.dead} of {count.maps} maps never fire, and are left out")
        if count.rare:
            words.append(f"{layer}: {count.rare} of the {count.drawn} maps drawn are above 0 on fewer than {k} images")
    words += [f"{k} images of each map, not the paper's nine"] if k < 9 else []
    words += [f"{len(measured.broken)} images could not be read"] if measured.broken else []
    return "; ".join(words) + "." if words else "No map was left out."
