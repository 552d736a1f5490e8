"""The paper's numbers beside ours, for the page of each figure and table in docs/paper/.

One table serves all experiments: what `paper` and `ours` of a result.json have under the same name stands in one row.
ENTRIES says which names are shown.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from experiments.output.tables import table
from scripts.claims import CLAIMS, Claim
from scripts.reasons import linked

Result = Mapping[str, Any]
ENTRIES: dict[str, tuple[str, ...]] = {  # the names of each experiment's rows, as patterns
    "fig2": ("k", "patch_sizes", "grids", "images", "dataset"),
    "fig3": ("layers/*/output", "image_size", "parameters"),
    "fig4": ("epochs", "settled_epoch/*", "rate_fell", "images", "dataset"),
    "fig5": ("*/range", "*/distance", "*/linearity", "*/probability_kept"),
    "fig6": (
        *("mean/*/kernel", "mean/*/stride", "mean/*/filters", "mean/*/dead_filters"),
        *("mean/*/largest_rms_over_median", "mean/*/layer2_dead_maps", "mean/*/*_lattice", "claims/*"),
    ),
    "fig7": ("square", "step", "places", "correlation", "images/*/class", "images/*/probability/*", "on_object/*"),
    "fig9": ("accuracy/*",),
    "table1": ("right eye/*", "left eye/*", "nose/*", "random/*"),
    "table2": ("error/*", "sixth/*/difference", "sixth/*/p"),
    "table3": ("error/*", "difference/*_top1"),
    "table4": ("accuracy/*",),
    "table5": ("accuracy/*",),
    "table6": ("precision/*",),
    "table7": ("accuracy/*",),
}
OTHERWISE = {  # where the paper's numbers have another name than ours
    "table6": (r"precision/(.+)/Zeiler & Fergus", r"precision/exclusive/\1")
}
PLACES = {"table1": "layer 5|layer 7", "fig7": "image 1|image 2|image 3"}  # what an entry of a list is of
ALSO_PAPER = ("fig4",)  # whose rows are of other layers in the paper
WORDS = {
    "k": "images of each map",
    "grids": "maps drawn: rows x columns",
    "patch_sizes": "size of a patch in layers 1 to 5, pixels",
    "image_size": "size of the image, pixels",
    "output": "maps, rows and columns",
    "epochs": "epochs drawn",
    "settled_epoch": "settled at epoch",
    "rate_fell": "learning rate fell at epoch",
    "range": "range",
    "distance": "largest distance in layers 1 and 7",
    "linearity": "linearity in layers 1 and 7",
    "probability_kept": "share of the probability that is kept",
    "fig3": "7x7, stride 2",
    "fig3 not renormalised": "7x7, stride 2, not renormalised",
    "krizhevsky": "11x11, stride 4",
    "dead_filters": "share of dead filters, layer 1",
    "largest_rms_over_median": "largest RMS of a filter over the median",
    "layer2_dead_maps": "share of dead maps, layer 2",
    "layer2_lattice": "power at the lattice over beside it, layer 2",
    "filters_lattice": "the same of the filters alone",
    "square": "square, pixels",
    "step": "step, pixels",
    "places": "places",
    "correlation": "correlation of activity and probability, images 1 to 3",
    "on_object": "the square that changes most is on the object",
    "chance": "by chance",
    "best_place": "at the best fixed place",
    "train_top1": "train, top-1, %",
    "validation_top1": "validation, top-1, %",
    "validation_top5": "validation, top-5, %",
    "sixth": "(b) in place of a sixth network of Figure 3",
    "difference": "difference",
    "exclusive": "one softmax",
    "each class": "a classifier for each class",
}
CROSSED = ("output", "grids", "places")  # sizes
LACKING = {"settled_epoch": "not before the last"}
SILENT = ("mean", "layers", "error", "accuracy", "precision", "claims", "images")  # of a path, which say nothing
NETWORKS = ("fig6",)  # where "fig3" and "krizhevsky" are first layers; in tables they are networks
NAMED = {"fig3": "Figure 3", "krizhevsky": "Krizhevsky et al."}


def beside(experiment: str, results: Mapping[str, Result], verdicts: Mapping[str, str], commands: Sequence[str]) -> str:
    """What the page of a figure or table says from its results.

    Args:
        experiment: its name, as "table3".
        results: of that experiment, by folder.
        verdicts: of all claims, by what they say.
        commands: that wrote the results.
    """
    made = [[linked(name, "../.."), *origin(of)] for name, of in results.items()]
    claims = [[claim.says, verdicts[claim.says]] for claim in CLAIMS if is_about(claim, experiment)]
    parts = [numbers(experiment, results), "How each result was made:"]
    parts.append(table(["result", "of", "seed", "machine", "time"], made))
    parts.append("The commands, where `data/` is a folder of photographs:")
    parts.append("\n".join(f"    {command}" for command in commands))
    if claims:
        parts += ["What it comes to, by the rules of [the claims](../claims.md):", table(["claim", "here"], claims)]
    return "\n\n".join(parts)


def numbers(experiment: str, results: Mapping[str, Result]) -> str:
    """The table of numbers: a row for each name, a column for the paper and for each result."""
    columns = [dict(rows(experiment, "paper", next(iter(results.values()))))]
    for result in results.values():
        columns[0] |= {key: text for key, text in rows(experiment, "paper", result) if text}
        columns.append(dict(rows(experiment, "ours", result)))
    names = dict.fromkeys(name for column in (*columns[1:], columns[0]) for name in column)
    if experiment not in ALSO_PAPER:
        names = {name: None for name in names if any(column.get(name) for column in columns[1:])}
    cells = [[words(experiment, name), *(column.get(name) or "" for column in columns)] for name in names]
    return table(["", "paper", *(name.partition("/")[2] for name in results)], cells)


def rows(experiment: str, side: str, result: Result) -> Iterator[tuple[str, str]]:
    """Names and numbers of the paper's or of our side of a result, in words."""
    of = result[side]
    deviations, each = (dict(leaves(of.get(name) or {}, ("",))) for name in ("deviation", "each"))
    for path, value in leaves(of):
        name = "/".join(map(str, path))
        if side == "paper" and experiment in OTHERWISE:
            name = re.sub(*OTHERWISE[experiment], name)
        if not any(fnmatchcase(name, pattern) for pattern in ENTRIES[experiment]):
            continue
        if side == "paper":
            yield name, printed(value, path)
            continue
        key = ("", *path[1:])
        several = each.get(key)
        n = len(several) if isinstance(several, list) else 0
        cross = " x " if path[-1] in CROSSED else ", "
        yield name, shown(value, deviations.get(key), n, cross) or LACKING.get(path[0], "")


def printed(value: Any, path: Sequence[Any]) -> str:
    """A number of the paper as the paper prints it."""
    if isinstance(value, Mapping):
        return f"{value['mean']} ± {value['spread']}"
    if not isinstance(value, list):
        return "" if value is None else format(value, ",") if type(value) is int else str(value)
    if path[0] == "accuracy" and not isinstance(value[0], list):  # a mean, and what it varies by
        mean, deviation = value
        return str(mean) if deviation is None else f"{mean} ± {deviation}"
    cross = " x " if path[-1] in CROSSED and not isinstance(value[0], list) else ", "
    below = ("accuracy",) if path[0] == "accuracy" else path
    return cross.join(printed(part, below) for part in value)


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The entries of a result by their path: numbers, lists of numbers, and a mean with its interval."""
    if isinstance(node, Mapping) and not {"spread", "share", "verdict", "as_claimed"} & node.keys():
        for key, value in node.items():
            yield from leaves(value, (*path, key))
    elif isinstance(node, list) and node and isinstance(node[0], Mapping):
        for place, value in enumerate(node):
            yield from leaves(value, (*path, place))
    else:
        yield path, node


def shown(value: Any, deviation: float | None = None, n: int = 0, cross: str = ", ") -> str:
    """An entry in words; "" where there is none."""
    if value is None or value == []:
        return ""
    if isinstance(value, Mapping):
        return told(value)
    if isinstance(value, list):
        if all(isinstance(part, list) for part in value):
            return ", ".join(shown(part, cross=cross) for part in value)
        return cross.join(number(int(part) if part == int(part) else part) for part in value)
    if deviation == 0 and type(value) is int:  # a setting
        return number(value)
    spread = "" if deviation is None else f" ± {number(deviation)}"
    return f"{number(value)}{spread}" + (f", n = {n}" if n > 1 else "")


def told(of: Mapping[str, Any]) -> str:
    """A mean, a share or a count, with what is known of it."""
    if "as_claimed" in of:
        return f"{of['as_claimed']} as claimed, {of['contrary']} contrary, {of['equal']} equal"
    percent = "share" in of
    middle, bounds = of["share" if percent else "mean"], of.get("interval")
    if middle is None:
        return ""
    scale, end = (100, " %") if percent else (1, "")
    text = number(scale * middle) + end
    if "spread" in of:
        text += f" ± {number(of['spread'])}"
    if bounds:
        text += f" (95 %: {number(scale * bounds[0])} to {number(scale * bounds[1])})"
    if of.get("p") is not None:
        text += f", p {of['p']:.4f}"
    if of.get("changed") is not None:
        text += f"; {of['changed']:.0%} of features change"
    return text + (f", n = {len(of['each'])}; {of['verdict']}" if "verdict" in of else "")


def number(value: Any) -> str:
    """A number with three digits or so; a word as it is."""
    if value == 0:
        return "0"
    if not isinstance(value, float):
        return format(value, ",") if type(value) is int else str(value)
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def words(experiment: str, name: str) -> str:
    """The name of a row."""
    parts = []
    for part in name.split("/"):
        if part in SILENT and not name.endswith(part):
            continue
        if part.isdigit() and experiment in PLACES:
            part = PLACES[experiment].split("|")[int(part)]
        network = experiment not in NETWORKS and part.split()[0] in NAMED
        parts.append(re.sub("^(fig3|krizhevsky)", lambda m: NAMED[m[0]], part) if network else WORDS.get(part, part))
    return ", ".join(parts)


def origin(result: Result) -> list[str]:
    """Of how much, with which seed, where and how long a result was made."""
    settings, ours, made = result["settings"], result["ours"], result["provenance"]
    counts = []
    for name in ("images", "scanned", "folds", "seeds", "nets"):
        count = settings.get(name) or ours.get(name)
        if isinstance(count, Mapping):
            sizes = [len(of) if isinstance(of, list) else of for of in count.values()]
            count = f"{min(sizes)} to {max(sizes)}"
        if count:
            counts.append(f"{len(count) if isinstance(count, list) else number(count)} {name}")
    if recipe := settings.get("recipe"):
        counts.append(f"{recipe['epochs']} epochs")
    seconds = sum(run["seconds"] for run in settings.get("runs", {}).values()) or made["seconds"]
    time = f"{seconds / 60:.1f} min" if seconds >= 100 else f"{seconds:.1f} s"
    seed = "" if made["seed"] is None else str(made["seed"])
    return [", ".join(counts), seed, f"{made['threads']} thread(s) of {made['device']}", time]


def is_about(claim: Claim, experiment: str) -> bool:
    """Whether a claim of the paper is one of its figure or table of that name."""
    kind, figure = re.fullmatch(r"(fig|table)(\d)", experiment).groups()  # type: ignore[union-attr]
    title = f"{'Figure' if kind == 'fig' else 'Table'} {figure}"
    judged = claim.pattern is not None and fnmatchcase(experiment, claim.pattern.partition("/")[0])
    return judged or (claim.pattern is None and title in claim.item)
