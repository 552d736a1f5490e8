"""The report of an ablation: two pages of sentences made from the trials, and tables of every estimate."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.ablation.analysis import (
    BASELINES,
    CHANCE,
    CHOICES,
    CONTROL,
    CONTROLS,
    PICTURE,
    UNDECIDED,
    Compared,
    Typical,
    analysed,
    difference,
    logistic,
)
from experiments.ablation.intervention import ORACLE
from experiments.ablation.units import FIELD
from experiments.output.tables import table
from zfnet.analysis.statistics import MARGIN, Contrast, Estimate

ByLayer = Mapping[str, Compared]

FEW = (FIELD, PICTURE, CONTROL)  # of the pictures of sufficiency and necessity; `table.md` has them all
CONDITION = "grey/10"  # of sufficiency and necessity: the fill and the percentage
RECOVERED = ("projection", "projection without switches", "gradient")  # rules in the report
OTHERS = {
    "edges": "the image's edges",
    "another": "another map's picture at the same place",
    "unswitched": "the same picture without switches",
}
PEOPLE = (
    "People were right in 92 % with nine natural images, in 82 % with nine synthetic ones, and in 73 % and 65 % with "
    "one of each kind (Borowski et al. 2021, arXiv:2010.12606). Judges, stimuli and network are others here: those "
    "numbers give the scale, and a difference from them means nothing."
)


def report(ours: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Two pages in Markdown.

    Args:
        ours: as for `analysis.analysed`, and "network", "dataset", "images" (how many), "judge" (its name, or None) and
            "broken_images"; of each layer "maps" and "dead" (how many) and "drawn" (the maps' numbers).
        settings: of the experiment; the report uses "seed" and "queries" (units of each map that task A asks about).
    """
    estimates = analysed(ours)
    compared = estimates["compared"]
    first = compared.get("A1", {})
    parts = [
        "# Deconvolution or cropping?",
        failed_control(first),
        answer(ours, estimates),
        source(ours, first, settings),
        "## Does a projection tell more than where units look anyway?",
        "Two squares are laid over an image. Which of them reduces the unit's activation more (task A1)? A mask of "
        "this image answers by how many of its pixels lie under each. The *effective field* is the mean squared "
        "gradient of other maps on other images: where units of a layer look, whichever they are. The two squares are"
        " neighbours in the order of what they cover of the field. This makes the field less useful, but not useless."
        f" The primary contrast is how much more often *{PICTURE}* is right than the field alone, with Holm's "
        "correction over the layers. It was fixed in advance; how squares are matched was changed after a pilot on "
        "eight maps of SqueezeNet, of which its own result is not fully independent. *Equivalent* is a difference "
        f"within ±{MARGIN:g}, by two one-sided tests of 5 %.",
        "\n".join(primary(layer, ours, settings, estimates) for layer in ours["layers"]),
        control(first),
        changes(estimates),
        check(ours, estimates),
        "## Exploratory: all that follows",
        exploratory(compared),
        *pointing(first),
        *generalising(compared.get("A2", {})),
        *prediction(compared),
        *sanity(estimates["sanity"]),
        *recovery(estimates["recovery"]),
        *sufficiency(compared),
        "## Limits",
        limits(ours, first),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


# ---- words for numbers -----------------------------------------------------------------------------------------------


def cell(estimate: Contrast | Estimate | None, sign: str = "", digits: int = 2) -> str:
    """A mean and its interval; "-" if there is none."""
    if estimate is None:
        return "-"
    mean, low, high = (f"{round(x, digits) + 0.0:{sign}.{digits}f}" for x in estimate[:3])
    return mean if math.isnan(estimate.low) else f"{mean} ({low} to {high})"


def gain(contrast: Contrast | Estimate | None) -> str:
    return cell(contrast, "+", 3)


def clear(contrast: Contrast | None) -> int:
    """1 or -1 where an interval, to three digits, lies wholly above or below 0, else 0."""
    return (
        0
        if contrast is None or math.isnan(contrast.low)
        else int(round(contrast.low, 3) > 0) - int(round(contrast.high, 3) < 0)
    )


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def size(comparison: Compared) -> str:
    nouns = {"map": comparison.maps, "image": comparison.images, "trial": comparison.trials}
    return ", ".join(counted(number, noun) for noun, number in nouns.items())


def span(numbers: Iterable[int]) -> str:
    low, *_, high = sorted([*numbers] * 2)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def sizes(tasks: ByLayer) -> str:
    """How many maps, images and trials the layers have."""
    maps, images, trials = (
        span(getattr(comparison, name) for comparison in tasks.values()) for name in ("maps", "images", "trials")
    )
    return f"In each layer {trials} trials of {maps} maps in {images} images."


def listed(words: Iterable[str]) -> str:
    *first, end = words
    return f"{', '.join(first)} and {end}" if first else end


def sides(contrasts: Mapping[str, Contrast | None]) -> str:
    """Which intervals lie above 0, and which below, with their numbers."""
    words = []
    for side, word in ((1, "above"), (-1, "below")):
        terms = [f"{name} {gain(contrast)}" for name, contrast in contrasts.items() if clear(contrast) == side]
        words += [f"{word} 0 in {listed(terms)}"] if terms else []
    count = sum(contrast is not None for contrast in contrasts.values())
    return "; ".join(words) or f"no interval of {count} excludes 0"


def by_layer(tasks: ByLayer, picture: str, rival: str) -> dict[str, Contrast | None]:
    """A difference, layer by layer."""
    return {layer: comparison.differences.get(difference(picture, rival)) for layer, comparison in tasks.items()}


def against(tasks: ByLayer, pairs: Iterable[tuple[str, str]]) -> str:
    """A line for each pair of pictures that some layer has a contrast of."""
    contrasts = {f"{picture} minus {rival}": by_layer(tasks, picture, rival) for picture, rival in pairs}
    return "\n".join(f"- {name}: {sides(layers)}." for name, layers in contrasts.items() if any(layers.values()))


def grid(rows: Mapping[str, Mapping[str, str]], layers: Iterable[str]) -> str:
    """A table with a column for each layer."""
    layers = list(layers)
    return table(["", *layers], [[name, *(row.get(layer, "-") for layer in layers)] for name, row in rows.items()])


def means(tasks: ByLayer, names: Sequence[str] | None = None) -> dict[str, dict[str, str]]:
    """The rows of a grid: every picture, or only those of `names`, with its mean in each layer."""
    pictures = dict.fromkeys(
        name for comparison in tasks.values() for name in comparison.means if names is None or name in names
    )
    return {name: {layer: cell(comparison.means.get(name)) for layer, comparison in tasks.items()} for name in pictures}


# ---- the primary contrasts -------------------------------------------------------------------------------------------


def failed_control(tasks: ByLayer) -> str:
    """The first lines if the mask of a shuffled network beats the field: the gain is then not due to learning."""
    contrasts = by_layer(tasks, CONTROL, FIELD)
    gains = {layer: contrast for layer, contrast in contrasts.items() if clear(contrast) > 0}
    if not gains:
        return ""
    numbers = listed(f"{layer} by {gain(contrast)}, {size(tasks[layer])}" for layer, contrast in gains.items())
    return (
        "**A control failed.** A network with shuffled weights has learned nothing. Its mask should be right no more "
        f"often than the effective field. It is right more often in {numbers}. What other masks gain there need not be "
        "what the network has learned."
    )


def answer(ours: Mapping[str, Any], estimates: Mapping[str, Any]) -> str:
    """The answer to the title's question, in a few sentences."""
    verdicts: dict[str, list[str]] = {}
    for layer, contrast in estimates["primary"].items():
        verdicts.setdefault(contrast.verdict, []).append(layer)
    words = (
        "**In short.** Task A: which pixels matter to a unit? Compared with a map of where units of its layer look "
        f"anyway, the projection is {listed(f'{verdict} in {listed(layers)}' for verdict, layers in verdicts.items())}."
    )
    pairs = {
        name[2:]: by_layer(tasks, "masked crop", "crop")
        for name, tasks in estimates["compared"].items()
        if name[:2] == "B/"
    }
    if pairs:
        differences = "; ".join(f"{pair} queries, {sides(contrasts)}" for pair, contrasts in pairs.items())
        words += " Task B: which of two images activates a map more? The crop masked by the projection minus the whole "
        words += f"crop: {differences}."
    return f"{words} How a projection looks to people is not measured here."


def source(ours: Mapping[str, Any], tasks: ByLayer, settings: Mapping[str, Any]) -> str:
    maps, trials = (sum(getattr(comparison, name) for comparison in tasks.values()) for name in ("maps", "trials"))
    words = f"{ours['network']}, {counted(ours['images'], 'image')} ({ours['dataset']}): "
    rules = settings.get("rules", "deconvnet")
    note = "" if rules == "deconvnet" else f" Projections are made by the rules {rules.upper()}."
    words += f"{counted(len(ours['layers']), 'layer')}, {counted(maps, 'feature map')}, {trials:,} trials of task A1"
    return (
        f"{words}; maps drawn by seed {settings['seed']}.{note} Brackets hold 95 % intervals, which allow for other "
        "maps and images of this network. `table.md` has every estimate, `result.json` every trial."
    )


def primary(layer: str, ours: Mapping[str, Any], settings: Mapping[str, Any], estimates: Mapping[str, Any]) -> str:
    """The primary contrast of a layer, in words."""
    contrast, corrected, verdict = estimates["primary"][layer]
    comparison: Compared | None = estimates["compared"].get("A1", {}).get(layer)
    if comparison is None:
        return f"- **{layer}: {UNDECIDED}.** There is no trial."
    tied_units = len(ours["layers"][layer]["drawn"]) * settings["queries"] - comparison.trials
    counts = size(comparison) + (
        f", and {counted(tied_units, 'unit')} whose activation both squares reduce by the same amount"
        if tied_units
        else ""
    )
    if contrast is None:
        return f"- **{layer}: {UNDECIDED}.** {counts}: too few for an interval."
    shares = f"{PICTURE} {cell(comparison.means[PICTURE])}, field {cell(comparison.means[FIELD])}"
    if corrected is None:
        return f"- **{layer}: {UNDECIDED}.** {gain(contrast)}, too few for an interval: {shares}; {counts}."
    p = "p < 0.0001" if corrected < 0.0001 else f"p = {corrected:.2g}"
    words = f"- **{layer}: {verdict}.** {gain(contrast)}, {p} corrected: {shares}; {counts}."
    if contrast.equivalent and clear(contrast):
        words += " The interval excludes 0, but the difference is too small to count."
    field = comparison.means[FIELD]
    if field and field.high < CHANCE:
        words += " The field is below chance here: what is above the field need not be above chance."
    if ties := {
        name: n for name in (FIELD, PICTURE) if (n := comparison.undecided.get(name, 0)) > comparison.trials / 10
    }:
        words += (
            f" Undecided, and half right: {listed(f'{name} {n} of {comparison.trials}' for name, n in ties.items())}."
        )
    if comparison.strata:
        gains = listed(
            f"{area} pixels {gain(part.differences.get(difference()))} ({counted(part.maps, 'map')})"
            for area, part in comparison.strata.items()
        )
        words += f" Its maps see areas of {len(comparison.strata)} sizes: {gains}."
    return words


def control(tasks: ByLayer) -> str:
    """The mask of a shuffled network against the field, in all layers."""
    contrasts = by_layer(tasks, CONTROL, FIELD)
    if not any(contrasts.values()):
        return "There is no control by a network with shuffled weights."
    numbers = ", ".join(f"{layer} {gain(contrast)}" for layer, contrast in contrasts.items())
    return f"Control: the mask of the network with shuffled weights ({CONTROL}) minus the field is {numbers}."


def changes(estimates: Mapping[str, Any]) -> str:
    """The primary contrast with other squares, and by how much they change it."""
    rows = {
        squares(task): {layer: gain(contrast) for layer, contrast in by_layer(tasks, PICTURE, FIELD).items()}
        for task, tasks in estimates["compared"].items()
        if task.startswith("A1/")
    }
    if not rows:
        return "There is no trial with other squares."
    contrasts = {
        f"{layer} ({squares(f'A1/{name}')})": contrast
        for layer, variants in estimates["changes"].items()
        for name, contrast in variants.items()
    }
    return (
        "The same contrast with squares of another fill, and with the two that reduce the activation most and least "
        f"(exploratory):\n\n{grid(rows, estimates['primary'])}\n\n"
        f"What other squares change of it, on the same units: {sides(contrasts)}. {best(estimates['compared'])}"
    )


def best(compared: Mapping[str, ByLayer]) -> str:
    """How often the best picture is right with each kind of squares: near chance, a contrast says little."""
    words = []
    for task, tasks in compared.items():
        layers = [
            [m.mean for name, m in comparison.means.items() if m and name != ORACLE] for comparison in tasks.values()
        ]
        highest = [max(means) for means in layers if means]
        if task.partition("/")[0] == "A1" and highest:
            words.append(f"{min(highest):.2f} to {max(highest):.2f} with {squares(task)}")
    note = "Where this is near chance, a contrast decides nothing."
    return f"Of all masks but the oracle the best is right in {listed(words)}, by layer. {note}" if words else ""


def squares(task: str) -> str:
    """Which squares a task of A has."""
    kind = task.partition("/")[2]
    return "unmatched grey squares" if kind == "unmatched" else f"{kind or 'grey'} squares"


def check(ours: Mapping[str, Any], estimates: Mapping[str, Any]) -> str:
    """The primary contrasts by another method."""
    odds = logistic(ours)
    if odds is None:
        return "The check by a mixed-effects logistic model was not made: statsmodels is not installed."
    layers = {layer: estimate for layer, estimate in odds.items() if estimate}
    if not layers:
        return "A mixed-effects logistic model can be fitted in no layer: maps are too few, or a mask is always right."
    numbers = ", ".join(f"{layer} {cell(estimate, '+')} of {estimate.values:,}" for layer, estimate in layers.items())
    signs = {layer: int(estimate.low > 0) - int(estimate.high < 0) for layer, estimate in layers.items()}
    verdicts = {layer: clear(estimates["primary"][layer].difference) for layer in layers}
    contrary = [layer for layer, sign in signs.items() if sign * verdicts[layer] < 0]
    extra = [layer for layer, sign in signs.items() if sign and not verdicts[layer]]
    return (
        "As a check, a mixed-effects logistic model gives log odds, of trials without an undecided answer: "
        f"{numbers}. Its intervals are too short where the effect differs between maps. It contradicts the sign above "
        f"in {listed(contrary) if contrary else 'no layer'}, and excludes 0 where the primary contrast does not in "
        f"{listed(extra) if extra else 'no layer'}."
    )


# ---- what is exploratory ---------------------------------------------------------------------------------------------


def exploratory(compared: Mapping[str, ByLayer]) -> str:
    count = sum(len(comparison.differences) for tasks in compared.values() for comparison in tasks.values())
    return (
        f"Nothing here was fixed in advance or is corrected: of {count:,} differences, 5 of 100 intervals exclude 0 "
        "by chance alone."
    )


def pointing(tasks: ByLayer) -> list[str]:
    """Task A1: all pictures."""
    if not tasks:
        return []
    pairs = [(PICTURE, control) for control in CONTROLS[:2]]
    pairs += [(picture, FIELD) for picture in ("guided x field", "projection")]
    return [
        "**A1, other pictures of the image itself: share right.** Chance is 0.50. The oracle, the mask of the measured "
        f"drops, shows what such a mask can reach. {sizes(tasks)}",
        grid(means(tasks), tasks),
        against(tasks, pairs),
    ]


def generalising(tasks: ByLayer) -> list[str]:
    """Task A2: pictures of other images."""
    if not tasks:
        return ["There is no trial of task A2."]
    return [
        "**A2, pictures of the nine strongest other images: share right.** Chance is 0.50. The judge says which "
        f"square's content is more like what the masks show. {sizes(tasks)}",
        grid(means(tasks, FEW), tasks),
        against(tasks, [(PICTURE, FIELD), (PICTURE, CONTROL), ("projection", FIELD), ("guided x field", FIELD)]),
    ]


def prediction(compared: Mapping[str, ByLayer]) -> list[str]:
    """Task B beside what people reached."""
    pairs = {name.partition("/")[2]: tasks for name, tasks in compared.items() if name.startswith("B/")}
    if not pairs:
        return ["There is no trial of task B."]
    layers = dict.fromkeys(layer for tasks in pairs.values() for layer in tasks)
    pictures = ("crop", "masked crop", "random crop")
    rows = {f"{name}, {pair}": row for pair, tasks in pairs.items() for name, row in means(tasks, pictures).items()}
    differences = [
        f"- Masked crop minus crop, {pair} queries: {sides(by_layer(tasks, 'masked crop', 'crop'))}."
        for pair, tasks in pairs.items()
    ]
    counts = " ".join(f"{sizes(tasks)[:-1]}, {pair} queries." for pair, tasks in pairs.items())
    return [
        "**B, which of two images activates the map more: share right.** Chance is 0.50. The judge compares both with "
        f"nine strong and nine weak references. {counts} {PEOPLE}",
        grid(rows, layers),
        "\n".join(differences),
    ]


def sanity(similarities: Mapping[str, Any]) -> list[str]:
    """Similarity after all weights are shuffled, the last step of the cascade."""
    ends: dict[str, Any] = {"cascade": {}, "another map": {}}
    for kind, layers in ends.items():
        for layer, rules in similarities.items():
            layers[layer] = {rule: [*entry[kind].values()][-1] for rule, entry in rules.items() if kind in entry}
    cascade, swaps = ends.values()
    rules = dict.fromkeys(rule for entry in cascade.values() for rule in entry)
    rows = {f"{rule}, given the field": typical(cascade, rule, "partial") for rule in rules}
    rows["projection, plain"] = typical(cascade, "projection", "similarity")
    rows["projection of another map instead, given the field"] = typical(swaps, "projection", "partial")
    if not any(rows.values()):
        return ["There is no trial of sanity, or no picture has a value in it."]
    return [
        "**Sanity: likeness to the same picture after all weights are shuffled.** Rank correlation of energies: 1 is "
        "the same picture. The plain one also sees that all units of a layer look at the middle of what they see; "
        "given the mean field of the layer's other units, 0 is no likeness. The control is another map's projection at "
        f"the same place, with the trained weights. {pairs_of(cascade)}",
        grid({name: row for name, row in rows.items() if row}, similarities),
    ]


def recovery(similarities: Mapping[str, Any]) -> list[str]:
    """Similarity of a picture to others that do not depend on the unit."""
    rows = {
        f"{rule}: {words}": typical(similarities, rule, measure)
        for measure, words in OTHERS.items()
        for rule in RECOVERED
    }
    if not any(rows.values()):
        return ["There is no trial of recovery, or no picture has a value in it."]
    return [
        "**Recovery: how like a projection is to pictures that do not depend on its map.** Partial rank correlation of "
        "energies, given the field. "
        f"{pairs_of(similarities)} 1 is the same picture: the nearer to 1, the less a picture tells which map it is "
        "of.",
        grid({name: row for name, row in rows.items() if row}, similarities),
    ]


def typical(similarities: Mapping[str, Any], rule: str, measure: str) -> dict[str, str]:
    """Means by layer, where any picture has a value."""
    entries = {layer: entry[rule][measure] for layer, entry in similarities.items() if measure in entry.get(rule, {})}
    return {layer: cell(entry.mean) for layer, entry in entries.items() if entry.median is not None}


def pairs_of(similarities: Mapping[str, Any]) -> str:
    """How many pairs of pictures likenesses are the means of."""
    entries = [entry for _, entry in flat(similarities) if entry.median is not None]
    if not entries:
        return "No picture has a value."
    pairs = span(entry.mean.values if entry.mean else 0 for entry in entries)
    undefined = span(entry.undefined for entry in entries)
    return f"Each number is of {pairs} pairs of pictures; {undefined} are undefined, because one is zero everywhere."


def sufficiency(compared: Mapping[str, ByLayer]) -> list[str]:
    """The activation that remains with only a mask's pixels, and the activation lost without them."""
    rows: dict[str, dict[str, str]] = {}
    lines, examples = [], {}
    for kind, words in {"sufficiency": "left", "necessity": "lost"}.items():
        conditions = {
            name.partition("/")[2]: layers for name, layers in compared.items() if name.startswith(f"{kind}/")
        }
        if not conditions:
            continue
        condition = CONDITION if CONDITION in conditions else next(iter(conditions))
        examples[condition] = conditions[condition]
        rows |= {f"{name}: {words}": row for name, row in means(conditions[condition], FEW).items()}
        contrasts = [c for tasks in conditions.values() for c in by_layer(tasks, PICTURE, FIELD).values() if c]
        gains, losses = (sum(clear(contrast) == side for contrast in contrasts) for side in (1, -1))
        lines.append(
            f"- {kind.capitalize()}, {PICTURE} minus {FIELD}: "
            f"{sides(by_layer(conditions[condition], PICTURE, FIELD))}. "
            f"Over all layers, fills and percentages: above 0 in {gains}, below in {losses} of {len(contrasts)}."
        )
    if not rows:
        return ["There is no trial of sufficiency or necessity."]
    (condition, tasks), *_ = examples.items()
    fill, _, percent = condition.partition("/")
    return [
        f"**Sufficiency and necessity: the share of the activation** that is left when a mask's {percent} % of the "
        f"pixels alone are shown, and that is lost without them ({fill} in their place). {sizes(tasks)}",
        grid(rows, tasks),
        "\n".join(lines),
    ]


def limits(ours: Mapping[str, Any], tasks: ByLayer) -> str:
    """Limits of the numbers."""
    lines = [
        f"One network, {ours['network']}, and one set of {counted(ours['images'], 'image')}: no interval is for other "
        "networks.",
        "Masked images differ from those that the network was trained on.",
        "Of 24 pairs of neighbours the one whose activations differ most is asked about: other pairs are harder.",
    ]
    if ours["judge"]:
        lines.append(f"A2 and B depend on their judge, {ours['judge']}, a network and not a person.")
    if failures := len(ours["broken_images"]):
        lines.append(f"{counted(failures, 'image')} could not be read.")
    dead_maps = [
        f"{entry['dead']} of {entry['maps']} in {layer}" for layer, entry in ours["layers"].items() if entry["dead"]
    ]
    if dead_maps:
        lines.append(f"Maps that are never above 0 are left out: {listed(dead_maps)}.")
    maxima = {
        layer: max(entry.undecided.items(), key=lambda item: item[1])
        for layer, entry in tasks.items()
        if entry.undecided
    }
    ties = [f"{layer} {name} {n:,} of {tasks[layer].trials:,}" for layer, (name, n) in maxima.items() if n]
    if ties:
        lines.append(f"An undecided answer counts as half right; the picture with most of them is {listed(ties)}.")
    if gaps := [layer for layer in ours["layers"] if layer not in tasks]:
        lines.append(f"There is no trial of task A1 in {listed(gaps)}.")
    return "\n".join(f"- {line}" for line in lines)


# ---- every estimate --------------------------------------------------------------------------------------------------


def tables(ours: Mapping[str, Any]) -> str:
    """Every estimate in Markdown; `ours` as for `analysis.analysed`."""
    estimates = analysed(ours)
    rows = [
        [
            layer,
            gain(contrast.difference),
            "-" if contrast.corrected is None else f"{contrast.corrected:.2g}",
            contrast.verdict,
        ]
        for layer, contrast in estimates["primary"].items()
    ]
    parts = [
        "Brackets hold 95 % intervals. Primary, with p corrected over the layers; all other tables are exploratory.",
        table(["layer", difference(), "p", "verdict"], rows),
    ]
    for kind, baseline in BASELINES.items():
        rows = [
            [name, layer, area, part.maps, part.images, part.trials, *row]
            for name, tasks in estimates["compared"].items()
            if name.partition("/")[0] == kind
            for layer, comparison in tasks.items()
            for area, part in {"all": comparison, **comparison.strata}.items()
            for row in comparisons(part, baseline)
        ]
        measure = "right" if kind in CHOICES else "left" if kind == "sufficiency" else "lost"
        head = ["task", "layer", "sees", "maps", "images", "trials", "picture", measure, f"minus {baseline}", "p"]
        parts += [table([*head, "equivalent", "undecided"], rows)] if rows else []
    rows = [[*of_fill, *concluded(contrast)] for of_fill, contrast in flat(estimates["changes"])]
    parts += (
        [table(["layer", "squares", "primary contrast, minus that of A1", "p", "equivalent"], rows)] if rows else []
    )
    for kind, head in (("sanity", ["rule", "how", "shuffled", "measure"]), ("recovery", ["rule", "other"])):
        rows = [[*names, *likeness(typical)] for names, typical in flat(estimates[kind])]
        parts += [table(["layer", *head, "mean", "median", "pairs", "undefined"], rows)] if rows else []
    return "\n\n".join(parts) + "\n"


def comparisons(comparison: Compared, baseline: str) -> list[list[Any]]:
    """Each picture against the baseline, then all other contrasts."""
    rows, keys = [], [difference(picture, baseline) for picture in comparison.means]
    for picture, mean in comparison.means.items():
        contrast = comparison.differences.get(difference(picture, baseline))
        rows.append([picture, cell(mean, digits=3), *concluded(contrast), comparison.undecided.get(picture, "")])
    rows += [
        [name, "", *concluded(comparison.differences[name]), ""] for name in comparison.differences if name not in keys
    ]
    return rows


def concluded(contrast: Contrast | None) -> list[str]:
    if contrast is None:
        return ["-", "-", "-"]
    if math.isnan(contrast.p):
        return [gain(contrast), "-", "-"]
    return [gain(contrast), f"{contrast.p:.2g}", "yes" if contrast.equivalent else "no"]


def likeness(entry: Typical) -> list[Any]:
    median = "-" if entry.median is None else f"{entry.median:.3f}"
    return [cell(entry.mean, digits=3), median, entry.mean.values if entry.mean else 0, entry.undefined]


def flat(tree: Any, names: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """The entries of nested dictionaries, with their keys."""
    if not isinstance(tree, Mapping):
        return [(names, tree)]
    return [row for name, value in tree.items() for row in flat(value, (*names, name))]
