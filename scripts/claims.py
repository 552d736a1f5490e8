"""The claims of Zeiler & Fergus (2014), and the rules by which our results are judged; `scripts/report.py` uses it.

A judge takes a result.json. It returns the share of its rule that holds, from 0 to 1, or None if the result does not
decide it, and the numbers in words.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import mean
from typing import Any, NamedTuple

from experiments.output.tables import interval
from scripts import reasons
from scripts.reasons import FEW, PARTS

LATTICE = ("layer2_lattice", "filters_lattice")  # of Figure 6
WIDER = {"fig3 512-1024-512": "more maps", "fig3 fc 8192": "wider fully connected layers"}
UNTESTED, MISSING = "cannot be tested here", "no result yet"
Result = dict[str, Any]
Outcome = tuple[float | None, str]


class Claim(NamedTuple):
    """What the paper says, when a result fulfils it, and which results are judged."""

    item: str  # of the paper
    title: str
    says: str
    rule: str  # or, where nothing here can test it, why
    pattern: str | None = None  # of folders in results/
    judge: Callable[[Result], Outcome] = lambda _: (0.0, "")
    why: Callable[[Mapping[str, Result]], str] = lambda _: ""  # from the results by name, in Markdown
    settings: tuple[tuple[str, Any], ...] = ()  # of the results that are judged; names and values


def share(parts: Iterable[bool]) -> float:
    flags = list(parts)
    return sum(flags) / len(flags)


def known(values: Iterable[float | None]) -> list[float]:
    """Without the seeds whose training diverged."""
    return [value for value in values if value is not None]


# ---- judges ----------------------------------------------------------------------------------------------------------


def architecture(result: Result) -> Outcome:
    """The sizes of all layers, and the number of parameters, which follows from them."""
    ours, paper = result["ours"], result["paper"]
    return share([ours["layers"] == paper["layers"]]), f"all sizes, {ours['parameters']:,} parameters"


def sensitivity(result: Result) -> Outcome:
    """Linearity is 1 where the distance grows in proportion to the transform, and below 0 where it jumps at once."""
    ours = {kind: result["ours"][kind]["linearity"] for kind in ("translation", "scale")}
    numbers = "; ".join(f"{kind}: {low:.2f} and {high:.4f}" for kind, (low, high) in ours.items())
    return share(high > 0.5 and low < 0 for low, high in ours.values()), f"linearity of layers 1 and 7, {numbers}"


def stability(result: Result) -> Outcome:
    shares = {kind: result["ours"][kind]["probability_kept"] for kind in ("translation", "scale")}
    numbers = ", ".join(f"{kind} {value:.2f}" for kind, value in shares.items())
    return share(value >= 0.8 for value in shares.values()), f"probability kept: {numbers}"


def rotation(result: Result) -> Outcome:
    shares = {kind: result["ours"][kind]["probability_kept"] for kind in ("rotation", "translation", "scale")}
    rotated, *remaining = shares.values()
    numbers = ", ".join(f"{kind} {value:.2f}" for kind, value in shares.items())
    return share(rotated < rest for rest in remaining), f"probability kept: {numbers}"


def occlusion(result: Result) -> Outcome:
    measure = result["ours"]["on_object"]
    minima, best_place = measure["probability"], measure["best_place"]["share"]
    low, high = minima["interval"]
    words = f"{minima['share']:.0%} of {measure['images']} images (95 %: {low:.0%} to {high:.0%})"
    return share(
        [low > measure["chance"], low > best_place]
    ), f"{words}; best fixed place {best_place:.0%}, chance {measure['chance']:.0%}"


def correspondence(layer: int) -> Callable[[Result], Outcome]:
    """Masks of one part change features more alike than masks at random places, in layer 5 and no longer in layer 7."""

    def alike(result: Result, layer: int) -> list[bool]:
        rows = {part: result["ours"][part][layer] for part in PARTS}
        random = result["ours"]["random"][layer]["mean"]
        return [row["mean"] < random and row["p"] < 0.05 for row in rows.values()]

    def judge(result: Result) -> Outcome:
        words = reasons.distances(result, layer)
        if layer == 0:
            return share(alike(result, 0)), words
        lost = share(not one for one in alike(result, 1))
        present = all(alike(result, 0))
        return (lost if present or lost < 1 else None), words  # what was not there in layer 5 cannot be lost

    return judge


def transfer(result: Result) -> Outcome:
    """Every number of training images a class, every fold."""
    accuracies = result["ours"]["each"]
    pairs = {n: (accuracies["pretrained"][n], accuracies["from scratch"][n]) for n in accuracies["pretrained"]}
    numbers = "; ".join(f"{n} a class: {mean(a):.1f} and {mean(b):.1f} %" for n, (a, b) in pairs.items())
    return share(x > y for a, b in pairs.values() for x, y in zip(a, b, strict=True)), numbers


def deeper(result: Result) -> Outcome:
    """Each layer against the one before it, by the mean over folds."""
    means = [result["ours"]["accuracy"][f"SVM ({n})"] for n in (1, 2, 3, 4, 5)]
    numbers = ", ".join(f"{value:.1f}" for value in means)
    parts = [after > before for before, after in pairwise(means)]
    return (share(parts) if means[-1] > means[0] else 0.0), f"layers 1 to 5: {numbers} %"


def settling(result: Result) -> Outcome:
    """Each layer no later than the next and before the last; the first soon, and before the learning rate fell."""
    ends, in_time = result["ours"]["settled_epoch"], result["ours"]["settled_before_rate_fell"]
    epochs = [float("inf") if end is None else end for end in ends.values()]
    numbers = ", ".join("the last" if end is None else str(end) for end in ends.values())
    fall_epochs = result["ours"]["rate_fell"]
    parts = [a <= b and a < epochs[-1] for a, b in pairwise(epochs)]
    parts += [epochs[0] <= FEW, next(iter(in_time.values())) is True]
    fall_words = (
        "is not recorded"
        if fall_epochs is None
        else f"was in epoch {', '.join(map(str, fall_epochs))}"
        if fall_epochs
        else "never came"
    )
    words = f"layers 1 to {len(epochs)} settle at epoch {numbers}; a fall of the learning rate {fall_words}"
    return share(parts), words


def dominance(result: Result) -> Outcome:
    networks = result["ours"]["each"]
    plain, renormalised = (networks[name]["largest_rms_over_median"] for name in ("fig3 not renormalised", "fig3"))
    words = f"largest over median RMS: {listed(plain)} without, {listed(renormalised)} with renormalisation, by seed"
    if None in [*plain, *renormalised]:
        return None, words
    return share([*(value >= 2 for value in plain), *(value <= 1.7 for value in renormalised)]), words


def by_seed(claim: str, number: str, percent: bool = False) -> Callable[[Result], Outcome]:
    """A claim of Figure 6 that each seed decides: 11x11 stride 4 against 7x7 stride 2."""

    def judge(result: Result) -> Outcome:
        counts, networks = result["ours"]["claims"][claim], result["ours"]["each"]
        rows = [networks[name][number] for name in ("krizhevsky", "fig3")]
        words = "11x11, stride 4: {}; 7x7, stride 2: {}, by seed".format(*(listed(row, percent) for row in rows))
        if not any(value for row in rows for value in row):
            return None, words
        complete = sum(counts.values()) == len(networks["fig3"][number])
        return (counts["as_claimed"] / sum(counts.values()) if complete else None), words

    return judge


def listed(values: Iterable[float | None], percent: bool = False) -> str:
    """Numbers by seed; "none" for a seed without one."""
    return ", ".join("none" if value is None else f"{value:.1%}" if percent else f"{value:.2f}" for value in values)


def lattices(result: Result) -> Outcome:
    """Relative to the filters' own number, which projections have if the signal is unordered: up to 1.2 times is no
    lattice.

    The paper compares the two, so that one which has less than the other counts as well.
    """
    networks = result["ours"]["each"]
    stride_4, stride_2 = (
        [a / b if a is not None and b else None for a, b in zip(*(networks[name][n] for n in LATTICE), strict=True)]
        for name in ("krizhevsky", "fig3")
    )
    words = f"against the filters' own: stride 4 {listed(stride_4)}; stride 2 {listed(stride_2)}, by seed"
    if len(known(stride_4)) < len(stride_4) or len(known(stride_2)) < len(stride_2):
        return None, words
    order = [b < a for a, b in zip(stride_4, stride_2, strict=True)]
    return share([*(value > 1.2 for value in stride_4), *(value <= 1.2 for value in stride_2), *order]), words


def depth(result: Result) -> Outcome:
    """All four layers against twice each pair of them, seed by seed, by the error on validation images."""
    differences = {
        name.removeprefix("krizhevsky without "): entry for name, entry in result["ours"]["difference"].items()
    }
    names = [f"layers {n}" for n in ("3, 4", "6, 7", "3, 4, 6, 7")]
    if not set(names) <= set(differences) or not all(differences[name]["validation_top1"]["each"] for name in names):
        return None, "not all of these networks were trained"
    if len({tuple(result["ours"]["seeds"][f"krizhevsky without {name}"]) for name in names}) > 1:
        return None, "these networks are not of the same seeds"
    rows = {name.removeprefix("layers "): differences[name]["validation_top1"]["each"] for name in names}
    words = "validation error in points: " + ", ".join(f"without {n} {mean(entry):+.1f}" for n, entry in rows.items())
    middle, full, both = rows.values()
    if len({len(middle), len(full), len(both)}) > 1 or len(both) < 2:
        return None, f"{words}; too few seeds"
    pairs = {"3, 4": middle, "6, 7": full}
    excess = {
        n: interval([d - 2 * p for p, d in zip(entry, both, strict=True)]) or (0.0, 0.0) for n, entry in pairs.items()
    }
    words += "; all four minus twice " + ", minus twice ".join(
        f"{n}: {low:+.1f} to {high:+.1f} (95 %)" for n, (low, high) in excess.items()
    )
    flags = [entry["flat"] for entry in result["ours"]["training"].values()]
    words += f"; the error was flat at the end of {flags.count(True)} of {len(flags)} trainings"
    parts = [decided(bounds, bounds[0] > 0) for bounds in excess.values()]
    return (None if None in parts else share(part == 1 for part in parts)), words


def decided(bounds: Sequence[float], holds: bool) -> float | None:
    """The share of a rule that an interval decides: None if it contains 0."""
    return None if bounds[0] <= 0 <= bounds[1] else share([holds])


def underfitting(result: Result) -> Outcome:
    difference = result["ours"]["difference"].get("krizhevsky without layers 3, 4, 6, 7")
    if difference is None or not difference["train_top1"]["each"]:
        return None, "these networks were not trained, or not with the same seed"
    train, checks = difference["train_top1"], difference["validation_top1"]
    words = f"{train['mean']:+.1f} points of train error, {checks['mean']:+.1f} of validation error"
    if train["interval"] is None:
        return None, f"{words}; one seed"
    low, high = train["interval"]
    holds = low > 0 and train["mean"] >= checks["mean"] / 2
    return decided((low, high), holds), f"{words} (train, 95 %: {low:+.1f} to {high:+.1f})"


def width(result: Result) -> Outcome:
    """More maps in layers 3 to 5, and wider fully connected layers, against Figure 3's network of the same seed."""
    differences = {name: entry for name, entry in result["ours"]["difference"].items() if name in WIDER}
    errors = {
        name: [entry[column] for column in ("train_top1", "validation_top1")] for name, entry in differences.items()
    }
    words = "; ".join(
        f"{WIDER[name]}: train {train['mean']:+.1f}, validation {checks['mean']:+.1f}"
        for name, (train, checks) in errors.items()
    )
    if len(differences) < len(WIDER) or any(entry["interval"] is None for pair in errors.values() for entry in pair):
        return None, f"{words} points; too few seeds" if words else "not measured"
    falls = [
        all(entry["interval"][1] < 0 for entry in errors["fig3 512-1024-512"]),
        errors["fig3 fc 8192"][0]["interval"][1] < 0,
    ]
    train, checks = (entry["each"] for entry in errors["fig3 fc 8192"])
    low, high = interval([b - a for a, b in zip(train, checks, strict=True)]) or (0.0, 0.0)
    return share(
        [*falls, low > 0]
    ), f"{words} points (of the latter validation less train, 95 %: {low:+.1f} to {high:+.1f})"


def averaging(result: Result) -> Outcome:
    """The networks that are averaged, each against all of them."""
    singles, ensembles = (result["ours"]["each"][f"Figure 3, {n}"]["validation_top1"] for n in ("1 net", "5 nets (a)"))
    bounds = interval([error - ensembles[0] for error in singles])
    words = f"one network {mean(singles):.1f} %, {len(singles)} together {ensembles[0]:.1f} %"
    if bounds is None:
        return None, f"{words}; one network alone"
    return share([bounds[0] > 0]), f"{words} (less, 95 %: {bounds[0]:.1f} to {bounds[1]:.1f})"


def other_architecture(result: Result) -> Outcome:
    """Against the five alone, and against a sixth network of Figure 3 in its place."""
    test, error = result["ours"]["sixth"]["validation_top1"], result["ours"]["error"]
    without_b, with_b = (error[row] for row in ("Figure 3, 5 nets (a)", "(a) and (b), 6 nets"))
    words = " and ".join(f"{without_b[column]:.1f} to {with_b[column]:.1f} %" for column in without_b)
    words += f", top-1 and top-5; top-1 {test['difference']:+.1f} points against a sixth network of Figure 3 "
    words += f"(McNemar, p {test['p']:.2g}: of these two networks, not of other seeds)"
    falls = [with_b[column] < without_b[column] for column in without_b]
    return (None if test["p"] >= 0.05 else share([*falls, test["difference"] < 0])), words


CLAIMS = [
    Claim(
        "Figure 3",
        "the sizes of the maps",
        "An image of 224 pixels gives maps of 110, 55, 26, 13 and 6 pixels.",
        "all sizes are the paper's",
        "fig3/zfnet*",
        architecture,
        reasons.padding,
    ),
    Claim(
        "4.1, Figure 5",
        "layer 1 jumps, layer 7 is nearly linear",
        "Small transforms change layer 1 much at once. Layer 7 changes in proportion, for translation and scale.",
        "linearity is above 0.5 in layer 7 and below 0 in layer 1, for both transforms, on average over five images",
        "fig5/*",
        sensitivity,
        reasons.quasi_linear,
    ),
    Claim(
        "4.1, Figure 5",
        "the answer is stable to translation and scale",
        "The output is stable to translation and scale.",
        "0.8 of the probability of the class is kept for both, on average over five images and the paper's range",
        "fig5/*",
        stability,
        reasons.scaling,
    ),
    Claim(
        "4.1, Figure 5",
        "the answer is not stable to rotation",
        "The output is not stable to rotation.",
        "less of the probability is kept than for translation and for scale, on average over five images",
        "fig5/*",
        rotation,
        reasons.turning,
    ),
    Claim(
        "4.1, Figure 4",
        "lower layers settle first",
        "Lower layers settle within a few epochs, upper layers after 40 to 50 of 70.",
        f"each layer settles no later than the next and before the last epoch, the first within {FEW} epochs and "
        "before the learning rate first fell. A layer has settled when its activations correlate above 0.9 with "
        "those of the last epoch",
        "fig4/*",
        settling,
        reasons.settling,
    ),
    Claim(
        "Figure 6 (a, c)",
        "renormalisation keeps filters alike in size",
        "Without renormalisation one filter of layer 1 dominates; with it none does.",
        "the largest RMS is at least 2 times the median without it, and at most 1.7 times with it, for every seed",
        "fig6/*",
        dominance,
        reasons.dominance,
    ),
    Claim(
        "4.2, Figure 6",
        "7x7 filters leave fewer dead filters in layer 1",
        "With 7x7 filters and a stride of 2, layer 1 has fewer dead filters than with 11x11 and 4.",
        "for every seed; not decided where no filter is dead",
        "fig6/*",
        by_seed("layer 1 of 7x7, stride 2, has fewer dead filters", "dead_filters", percent=True),
        reasons.no_dead_filters,
    ),
    Claim(
        "4.2, Figure 6",
        "7x7 filters leave fewer dead maps in layer 2",
        "Layer 2 behind it has fewer dead maps.",
        "for every seed",
        "fig6/*",
        by_seed("layer 2 behind it has fewer dead maps", "layer2_dead_maps", percent=True),
        reasons.dead_maps,
    ),
    Claim(
        "4.2, Figure 6 (d, e)",
        "a stride of 2 leaves no lattice in layer 2",
        "A stride of 4 leaves its lattice in layer 2, a stride of 2 does not.",
        "for every seed, projections have more than 1.2 times the filters' power at the lattice with a stride of 4, "
        "not with 2, and less with 2 than with 4. Power at the lattice is divided by the power beside it",
        "fig6/*",
        lattices,
        reasons.lattice,
    ),
    Claim(
        "4.3, Figure 7",
        "hiding the object lowers its probability",
        "The probability of the class falls when the object is hidden, not when the background is.",
        "the square that hides the class best is on the object more often (95 %) than chance and than any fixed place. "
        "Only rendered scenes are judged, whose background says nothing of the class",
        "fig7/*",
        occlusion,
        reasons.occlusion,
    ),
    Claim(
        "4.4, Table 1",
        "layer 5 relates the parts of faces",
        "In layer 5 hiding a part of faces (dogs, people) changes features more alike than hiding random places does.",
        "a smaller distance than that of random masks, p below 0.05, for each of the three parts; in brackets, with p, "
        "the share of features that a mask changes",
        "table1/*",
        correspondence(0),
        reasons.zeros,
        (("zeros", "agree"), ("match", "size")),
    ),
    Claim(
        "4.4, Table 1",
        "layer 7 no longer relates them",
        "In layer 7 the effect is almost gone.",
        "for none of the parts p is below 0.05; not decided if neither layer shows an effect",
        "table1/*",
        correspondence(1),
        reasons.last_layer,
        (("zeros", "agree"), ("match", "size")),
    ),
    Claim(
        "5.2, Tables 4 and 5",
        "pretraining beats training from scratch",
        "A new softmax on the features of a pretrained network beats training from scratch on the same images.",
        "in every fold, for every number of training images. From scratch a smaller ZFNet is trained",
        "table[45]/*",
        transfer,
        reasons.transfer,
    ),
    Claim(
        "5.2, Figure 9",
        "six images of a class are enough",
        "Six training images of a class are enough to beat what others reached with sixty (57.0 and 55.2 %).",
        "nobody else's method is run here; `experiment=fig9` draws our curve",
    ),
    Claim(
        "5.3, Table 7",
        "deeper layers transfer better",
        "The deeper the layer, the better its features classify other images (layers 1 to 5).",
        "each layer is better than the one before; not, if layer 5 is no better than layer 1. Photographs that "
        "ImageNet may have as well are not left out",
        "table7/*",
        deeper,
        reasons.deeper,
    ),
    Claim(
        "5.1, Table 3",
        "depth matters",
        "Removing layers 3 and 4, or 6 and 7, costs little. Removing all four costs a lot: depth matters.",
        "without all four the validation error rises by more than twice what it does without each pair (95 %, over "
        "seeds)",
        "table3/*",
        depth,
        reasons.depth,
    ),
    Claim(
        "5.1, Table 3",
        "the shallow network underfits",
        "The network without these four fails by underfitting: its train error is 71.1 %, not 35.1 %.",
        "its train error rises (95 % interval over seeds), by at least half of what the validation error does",
        "table3/*",
        underfitting,
        reasons.fits,
    ),
    Claim(
        "5.1, Table 3",
        "wider layers",
        "More maps in layers 3 to 5 lower train and validation error; wider fully connected layers mostly the first.",
        "95 % over seeds: more maps lower both; wider layers lower the train error, and by more than the other",
        "table3/*",
        width,
        reasons.width,
    ),
    Claim(
        "5.1, Table 2",
        "averaging networks",
        "Averaging five networks lowers the error.",
        "the error is lower than that of the networks it averages (95 % interval over them)",
        "table2/*",
        averaging,
    ),
    Claim(
        "5.1, Table 2",
        "a sixth, larger network",
        "A sixth network with 512, 1024 and 512 maps in layers 3 to 5 lowers it further.",
        "both errors are lower than those of the five, and top-1 also than with a sixth network of Figure 3 in its "
        "place. Not decided if p of the latter is not below 0.05",
        "table2/*",
        other_architecture,
        reasons.sixth,
    ),
    Claim(
        "5.2, Table 6",
        "PASCAL 2012",
        "On PASCAL 2012 the mean is 3.2 points below the best, and five classes are won.",
        "the test images' labels are not public, and nobody else's method is run here",
    ),
    Claim(
        "5.1, Table 2",
        "errors on ImageNet",
        "38.4 and 16.5 % errors on ImageNet 2012, with six networks 36.0 and 14.7 %.",
        "training on ImageNet takes days; `train=paper` has the recipe",
    ),
]
