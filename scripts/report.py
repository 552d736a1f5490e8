"""Write docs/claims.md, and the tables of numbers in README.md and docs/, from the committed results.

    python scripts/report.py            # writes them
    python scripts/report.py --check    # exits with 1 if they differ from what it would write

It reads results/<experiment>/<name>/result.json, which experiments wrote, results/bench/*.json of scripts/bench.py,
results/zoo/timm.json of scripts/zoo.py, and published/*.json. In pages it replaces the text between <!-- numbers: NAME
--> and <!-- end -->.
"""

import argparse
import contextlib
import json
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.ablation import networks
from experiments.output.results import ROOT, read_result
from experiments.output.tables import shown, table
from experiments.tables.runs import flat
from experiments.tables.table6 import KINDS
from scripts import beside, families, pieces, reasons, scale, seeds, speeds
from scripts.claims import CLAIMS, MISSING, UNTESTED, Claim
from scripts.reasons import linked
from zfnet.errors import InputError, first_line, unknown_name
from zfnet.files import write_atomically
from zfnet.weights import read_metadata

HEAD = """# The paper's claims

What Zeiler & Fergus (2014) say, and what we measured. Each claim has a rule, and the thresholds of the rules are ours.
`python scripts/report.py` writes this page from the files in `results/`. Settings, versions, processor and seed are in
each file.

- *Reproduced*: every result fulfils the rule.
- *Partly reproduced*: at least one result fulfils half of the rule or more.
- *Not reproduced*: no result fulfils half of the rule.
- *Not decided*: no result tells, for instance because an interval holds 0.

Most rules have parts, such as seeds, folds or transforms; we count the parts that hold. Most thresholds were set before
the results. Some rules became stricter or clearer when results were known. The history of `scripts/claims.py` shows it.

The networks here are small and see few images. A claim that fails here may hold at the paper's size. Where a number is
of one network, another seed may give another. In the commands `data/` is a folder of
[data sets](reproduce.md#data).
"""


VERDICTS = ("reproduced", "partly", "not", "not decided", UNTESTED)
IN_FULL = {
    "reproduced": "Reproduced",
    "partly": "Partly reproduced",
    "not": "Not reproduced",
    "not decided": "Not decided",
}


def results(pattern: str) -> dict[str, dict[str, Any]]:
    """The committed results whose folders match a pattern, by folder."""
    files = sorted((ROOT / "results").glob(f"{pattern}/result.json"))
    return {str(file.parent.relative_to(ROOT / "results")): read_result(file) for file in files}


def published() -> dict[str, dict[str, Any]]:
    """The metadata of the networks that come with the sources, by name."""
    metadata = {}
    for file in sorted((ROOT / "published").glob("*.json")):
        try:
            metadata[file.stem] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            raise InputError(
                f"published/{file.name} is damaged: take it from the repository, or publish again"
            ) from None
    return metadata


@contextlib.contextmanager
def complete(name: str) -> Iterator[None]:
    """Turn errors of Python into InputError if a file lacks an entry."""
    try:
        yield
    except (LookupError, TypeError, AttributeError) as error:
        cause = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{name} lacks an entry ({cause}): make it again with this version") from error


def command(result: Mapping[str, Any]) -> str:
    """The command that wrote a result."""
    words = shlex.split(result["provenance"]["command"])[1:]
    return " ".join(["python experiments/run.py", *map(quoted, words)])


def quoted(word: str) -> str:
    """A word for the shell: as it is, or in double quotes where that is easier to read than shlex.quote."""
    escaped = shlex.quote(word)
    return escaped if escaped == word or not re.fullmatch(r"[^\"$`\\!]*", word) else f'"{word}"'


def judged(claim: Claim) -> tuple[str, list[str]]:
    """The verdict over all results of a claim, and each one's numbers."""
    if claim.pattern is None:
        return UNTESTED, [claim.rule]
    judged_results = of_claim(claim)
    if not judged_results:
        return MISSING, []
    outcomes = {}
    for name, result in judged_results.items():
        with complete(f"results/{name}/result.json"):
            outcomes[name] = claim.judge(result)
    shares = [share for share, _ in outcomes.values()]
    decided = [share for share in shares if share is not None]
    if not decided:
        verdict = "not decided"
    elif max(decided) < 0.5:
        verdict = "**not**"
    else:
        verdict = "reproduced" if shares == [1] * len(shares) else "partly"
    return verdict, [f"{linked(name)}: {words}" for name, (_, words) in outcomes.items()]


def of_claim(claim: Claim) -> dict[str, dict[str, Any]]:
    """The results that a claim is judged by, by folder."""
    if claim.pattern is None:
        return {}
    selection = {}
    for name, result in results(claim.pattern).items():
        with complete(f"results/{name}/result.json"):
            # a result that is older than a setting was made as the claim asks: with the setting's default
            if all(result["settings"].get(key, value) == value for key, value in claim.settings):
                selection[name] = result
    return selection


def claims_page() -> str:
    """docs/claims.md: the verdicts in short, a section for each claim, and the commands of all results."""
    verdicts, sections = defaultdict[str, list[str]](list), []
    for claim in CLAIMS:
        verdict, numbers = judged(claim)
        words = IN_FULL.get(verdict.strip("*"), verdict.capitalize())
        title = f"{claim.item}: {claim.title}"
        verdicts[words].append(f"- [{title}](#{anchor(title)})")
        sections.append(section(claim, title, words, numbers))
    order = [*IN_FULL.values(), *(words for words in verdicts if words not in IN_FULL.values())]
    lists = [f"**{words}**\n\n" + "\n".join(verdicts[words]) for words in order if words in verdicts]
    groups = defaultdict[str, dict[str, str]](dict)
    for name, result in results("*/*").items():
        groups[name.partition("/")[0]][name] = command(result)
    blocks = [f"### {experiment}\n\n{commands(lines)}" for experiment, lines in groups.items()]
    ranks = f"## What the strongest images depend on\n\n{words}" if (words := reasons.ranks({})) else ""
    appendix = [
        "## Commands",
        "The commands of all other results, each below the name of its folder in `results/`.",
        *blocks,
    ]
    return "\n\n".join(filter(None, [HEAD.strip(), "## Verdicts", *lists, *sections, ranks, *appendix])) + "\n"


def section(claim: Claim, title: str, verdict: str, numbers: Sequence[str]) -> str:
    """A claim: what the paper says, the verdict, the rule, the numbers, the reason, and where the commands are."""
    if claim.pattern is None:
        return f"## {title}\n\n{claim.says}\n\n**{verdict}**: {claim.rule}."
    results_of_claim = of_claim(claim)
    parts = [
        f"## {title}",
        claim.says,
        f"**{verdict}.** Rule: {claim.rule}.",
        "<!-- measured -->\n" + "\n".join(f"- {line}" for line in numbers) + "\n<!-- end -->" if numbers else "",
    ]
    if results_of_claim:
        with complete(f"a result of {title!r}"):
            parts.append(claim.why(results_of_claim))
        experiments = sorted({name.partition("/")[0] for name in results_of_claim})
        parts.append("Commands: " + ", ".join(f"[{name}](#{anchor(name)})" for name in experiments) + ".")
    return "\n\n".join(filter(None, parts))


def commands(lines: Mapping[str, str]) -> str:
    """A block of commands, each below the name of its result."""
    return "```bash\n" + "\n".join(f"# {name}\n{line}" for name, line in lines.items()) + "\n```"


def anchor(title: str) -> str:
    """The anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


# ---- README ----------------------------------------------------------------------------------------------------------


def trained_table() -> str:
    """Networks that were trained: accuracy, dead maps and time."""
    rows, groups = [], defaultdict[str, dict[str, dict[str, Any]]](dict)
    for name, run in results("train/*").items():
        groups[name.partition("/")[2].partition(",")[0]][name] = run
    for data, seeds_of_data in groups.items():
        alike(seeds_of_data)
        runs = list(seeds_of_data.values())
        single_crop = [100 - 100 * run["ours"]["history"][-1]["validation_error"] for run in runs]
        ten_crops = [100 - 100 * run["ours"]["validation_top1"] for run in runs]
        counts = [count for run in runs for count in run["ours"]["dead_maps"].values()]
        dead = max(count["dead"] / count["maps"] for count in counts)
        longest = max(runs, key=lambda run: minutes(run["ours"]["history"]))
        settings, provenance = runs[0]["settings"], longest["provenance"]
        training = (
            f"{settings['images']:,} + {settings['validation_images']:,} images, {settings['recipe']['epochs']} epochs"
        )
        duration = minutes(longest["ours"]["history"])
        cost = f"{duration:.1f} min, {provenance['threads']} thread(s) of {provenance['device']}"
        rows.append(
            [f"`{data}`: {training}; {len(runs)} seed(s)", shown(single_crop), shown(ten_crops), f"{dead:.1%}", cost]
        )
    head = ["", "top-1, %", "over ten crops, %", "dead maps, worst layer", "longest, epochs x median"]
    return table(head, rows) if rows else MISSING


def alike(runs: Mapping[str, Mapping[str, Any]]) -> None:
    """InputError unless the runs of one row, by folder, differ in nothing but the seed."""
    settings = {name: flat(run["settings"]) for name, run in runs.items()}
    first, expected = next(iter(settings.items()))
    for name, values_of_run in settings.items():
        for key in sorted({*values_of_run, *expected} - {"seed", "recipe.seed"}):
            if values_of_run.get(key) != expected.get(key):
                message = (
                    f"{key} is {values_of_run.get(key)} in results/{name}, and {expected.get(key)} in results/{first}"
                )
                raise InputError(f"{message}: runs of one row differ in their seed alone; give one another name")


def minutes(history: Sequence[Mapping[str, float]]) -> float:
    """The time of a training: its epochs times their median, because it may have been interrupted and resumed."""
    return len(history) * median(epoch["seconds"] for epoch in history) / 60


def published_table() -> str:
    """The networks that come with the sources."""
    rows = []
    for name, metadata in published().items():
        errors = metadata["validation_error"]
        dead = ", ".join(f"{count['dead']} of {count['maps']}" for count in metadata["dead_maps"].values())
        top = [f"{100 - 100 * errors[crops]['top1']:.1f}" for crops in ("1 crops", "10 crops")]
        words = shlex.join(["python", "experiments/run.py", *shlex.split(metadata["training"]["command"])[1:]])
        size = f"{metadata['bytes'] / 1e6:.1f} MB"
        history = read_metadata(ROOT / "published" / metadata["file"])["history"]
        rows.append([f"`{name}`", *top, dead, size, f"`{words}`", f"{minutes(history):.0f} min"])
    head = [
        "network",
        "top-1, %",
        "over ten crops, %",
        "dead maps of layers 1 to 5",
        "size",
        "command",
        "time: epochs x median",
    ]
    return table(head, rows) if rows else MISSING


def first_figures() -> str:
    """How long the figures took that the command without an experiment draws."""
    seconds, machines = {}, set()
    for figure in ("fig2", "fig5", "fig7"):
        for result in results(f"{figure}/zfnet_small-scenes").values():
            provenance = result["provenance"]
            seconds[figure.replace("fig", "Figure ")] = provenance["seconds"]
            machines.add(f"{provenance['threads']} thread(s) of {provenance['device']}")
    if len(seconds) < 3 or len(machines) > 1:
        return MISSING
    times = ", ".join(f"{name} {duration:.0f} s" for name, duration in seconds.items())
    total = f"{sum(seconds.values()):.0f} s"
    return f"When the committed results were made, with {machines.pop()}, they took {total}: {times}."


def lattice_table() -> str:
    """The energy of Figure 2's projections beyond the first layer's stride, and the strength of its lattice."""
    rows = []
    for name, result in results("fig2/*").items():
        lattice = result["ours"]["lattice"]
        kinds = {kind: [energy[kind] for energy in lattice["layers"].values()] for kind in ("projections", "patches")}
        cells = [*kinds.values(), [lattice["filters"]]]
        shares = [spread([100 * energy["beyond"] for energy in numbers], 0) for numbers in cells]
        rows.append(
            [f"`{name}`", *shares, *(spread([energy["lattice"] for energy in numbers], 1) for numbers in cells)]
        )
    head = ["", "fine, %: projections", "patches", "filters", "grid: projections", "patches", "filters"]
    return table(head, rows) if rows else MISSING


def spread(values: Sequence[float], digits: int) -> str:
    """The least and the largest of several numbers."""
    ends = dict.fromkeys(f"{value:.{digits}f}" for value in (min(values), max(values)))
    return " to ".join(ends)


def depth_table() -> str:
    """What removing layers of Krizhevsky's network costs, in points of validation error, beside the paper's."""
    rows, flags = [], list[bool]()
    for name, result in results("table3/*").items():
        ours, paper = result["ours"], result["paper"]["error"]
        flags += [of["flat"] for of in ours["training"].values()]
        for layers in ("3, 4", "6, 7", "3, 4, 6, 7"):
            if of := ours["difference"].get(variant := f"krizhevsky without layers {layers}"):
                of, seeds = of["validation_top1"], len(ours["seeds"][variant])
                bounds = "" if of["interval"] is None else " to ".join(f"{end:+.1f}" for end in of["interval"])
                paper_points = paper[variant]["validation_top1"] - paper["krizhevsky"]["validation_top1"]
                rows.append([f"`{name}`", layers, seeds, f"{of['mean']:+.1f}", bounds, f"{paper_points:+.1f}"])
    if not rows:
        return MISSING
    head = ["", "layers removed", "seeds", "points of validation error", "95 % interval", "paper"]
    words = f"The validation error was flat over the last third of {flags.count(True)} of {len(flags)} trainings."
    return f"{table(head, rows)}\n\n{words}"


def dead_maps() -> str:
    """How many maps of layer 2 died in the runs of the network that is trained by the paper's recipe."""
    runs = results("train/zfnet_small-tiny_imagenet, seed *").values()
    counts = [run["ours"]["dead_maps"]["relu2"] for run in runs]
    rates = {run["settings"]["recipe"]["learning_rate"] for run in runs}
    if not counts or len(rates) > 1:
        return MISSING
    words = ", ".join(f"{count['dead']} of {count['maps']}" for count in counts)
    return f"At a rate of {rates.pop()}, maps of layer 2 died in the runs of `zfnet_small` above: {words}."


def transfer_table() -> str:
    """Frozen networks on other images, beside networks that are trained from scratch."""
    rows = [
        [f"`{name}`", label, ", ".join(map(shown, ours)), ", ".join(map(str, paper))]
        for name, result in (results("table[4567]/*") | results("fig9/*")).items()
        for label, ours, paper in transferred(result)
    ]
    return table(["", "", "ours, %", "paper, %"], rows) if rows else MISSING


def transferred(result: Mapping[str, Any]) -> list[tuple[str, list[list[float]], list[float]]]:
    """The rows of a result of Tables 4 to 7 or Figure 9: what was measured, of each fold, and the paper's numbers."""
    accuracies, kind = result["ours"]["each"], result["experiment"]
    if kind == "table6":
        paper = result["paper"]["precision"]["mean"]["Zeiler & Fergus"]
        return [
            (f"mean precision, {KINDS[row]}", [folds["mean"]], [paper] * (row == "exclusive"))
            for row, folds in accuracies.items()
        ]
    papers = result["paper"]["accuracy"]
    if kind == "table7":
        layers = [row for row in accuracies if row.startswith("SVM")]
        numbers = ", ".join(row.removeprefix("SVM (").removesuffix(")") for row in layers)
        return [
            (f"SVM on layers {numbers}", [accuracies[row] for row in layers], [papers[row][0][0] for row in layers])
        ]
    return [
        (
            f"{row}, {', '.join(folds)} a class",
            [*folds.values()],
            [papers[row][n][0] for n in folds if n in papers.get(row, {})],
        )
        for row, folds in accuracies.items()
    ]


@cache
def ablations(rules: str = "deconvnet") -> networks.Networks:
    """The estimates of every network of the ablation, by these rules."""
    by_name = {Path(name).name: result for name, result in results("ablation/*").items()}
    selection = {name: of["ours"] for name, of in by_name.items() if of["settings"].get("rules", "deconvnet") == rules}
    return networks.estimates(selection)


def ablation_table(render: Callable[[networks.Networks], str], rules: str = "deconvnet") -> str:
    """A table of all networks that the ablation was made of by these rules."""
    return render(ablations(rules)) if ablations(rules) else MISSING


def claims_table() -> str:
    """The verdicts alone."""
    return table(["paper", "claim", "here"], [[claim.item, claim.says, judged(claim)[0]] for claim in CLAIMS])


def verdicts() -> str:
    """How many claims came to each verdict, in a sentence."""
    outcomes = [judged(claim)[0].strip("*") for claim in CLAIMS]
    counts = ", ".join(f"{outcomes.count(verdict)} {verdict}" for verdict in dict.fromkeys([*VERDICTS, *outcomes]))
    return f"Of {len(outcomes)} claims of the paper, by rules that were written down: {counts}."


@cache
def all_verdicts() -> dict[str, str]:
    """The verdict of each claim, by what it says."""
    return {claim.says: judged(claim)[0] for claim in CLAIMS}


def beside_table(experiment: str) -> str:
    """The paper's numbers beside ours, for one of its figures or tables."""
    entries = results(f"{experiment}/*")
    return (
        beside.beside(experiment, entries, all_verdicts(), [command(entry) for entry in entries.values()])
        if entries
        else MISSING
    )


def bench(name: str) -> dict[str, Any] | None:
    """What scripts/bench.py measured, from results/bench/<name>.json; None if it is not there."""
    file = ROOT / "results" / "bench" / f"{name}.json"
    if not file.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(
            f"results/bench/{name}.json is damaged: take it from the repository, or measure again"
        ) from None
    return record


def bench_table(name: str, render: Callable[[Sequence[Mapping[str, Any]]], str]) -> str:
    """A table of what scripts/bench.py measured, from results/bench/<name>.json."""
    record = bench(name)
    if record is None:
        return MISSING
    return f"{measured([name], record)}\n\n{render(record['rows'])}"


def measured(names: Sequence[str], record: Mapping[str, Any]) -> str:
    """How benchmarks were made: command, machine and versions."""
    machine, torch = record["machine"], record["versions"]["torch"]
    return f"`python scripts/bench.py {' '.join(names)}`, on {machine} with {record['hardware']}, torch {torch}:"


def speeds_table(names: Sequence[str], rows: Sequence[str] = tuple(speeds.WORDS)) -> str:
    """How quick zfnet is beside others, of several benchmarks; those of one machine and version stand in one table."""
    groups = defaultdict[tuple[str, ...], list[tuple[str, dict[str, Any]]]](list)
    for name in names:
        if record := bench(name):
            setting = (record["machine"], record["hardware"], record["versions"]["torch"], record["versions"]["captum"])
            groups[setting].append((name, record))
    if not groups:
        return MISSING
    parts = []
    for group in groups.values():
        group_rows = [row for _, record in group for row in record["rows"]]
        head = measured([name for name, _ in group], group[0][1]).removesuffix(":")
        parts.append(f"{head}, Captum {group[0][1]['versions']['captum']}:\n\n{speeds.speed_table(group_rows, rows)}")
    return "\n\n".join(parts)


def unique_table() -> str:
    """What zfnet does that other tools do not, with what was measured of it."""
    rows = [row for name in speeds.BENCHES for row in (bench(name) or {"rows": []})["rows"]]
    units, first, fifth = (
        speeds.times(rows, f"project{suffix}", "Captum") for suffix in (", all five", " relu1", " relu5")
    )
    captum, batches = (speeds.times(rows, "occlude ZFNet", rival) for rival in ("Captum", "plain batches"))
    scan = speeds.ratio(rows, "scan relu1..relu5", "")
    cells = [
        [
            "projects single units from their receptive fields alone, many at once, with the result of the whole image",
            "run the whole image for each unit",
            f"five layers: {units}; layer 1: {first}; layer 5: {fifth}",
        ],
        [
            "occludes and computes only what the square can reach; activity, probability and class in one pass",
            "run the whole network for each square",
            f"{captum}; {batches}",
        ],
        [
            "finds the strongest activations of every map of all layers in one pass, and where they are; a stopped "
            "scan resumes, and parts join to the bit",
            "have no such search (Captum, TorchRay), or keep 40 a channel and do not resume (zennit-crp)",
            MISSING if scan is None else f"{scan:.2f} of the speed of a bare forward pass",
        ],
        [
            "computes exact receptive fields of any network that it can trace, at borders and behind branches",
            "have a table for one network (deep-visualization-toolbox), or a threshold on a heatmap (zennit-crp)",
            f"equal to what a gradient reaches in torchvision's ReLU classifiers; {families.fields()}",
        ],
        [
            "draws every figure and table of the paper, and judges each claim by a written rule",
            "draw none of Figures 4, 5 and 6, and do not measure Table 1",
            f"{len(CLAIMS)} claims",
        ],
        [
            "builds an atlas: a site of every feature map, which opens by double click and can be checked",
            "have a live view, or folders of pictures",
            atlas_in_words(),
        ],
        [
            "asks whether a projection marks the pixels that matter to a unit, with controls and intervals",
            "leave it to the eye",
            networks.verdicts(ablations()).removesuffix(".") if ablations() else MISSING,
        ],
    ]
    return table(["zfnet", "other tools", "measured"], cells)


def atlas_table() -> str:
    """How long the atlases took, and how large they are."""
    rows = []
    for name, result in results("atlas/*").items():
        ours, seconds = result["ours"], result["ours"]["seconds"]
        computing = sum(seconds[part] for part in ("links", "scan", "reading", "projection"))
        rows.append(
            [
                f"`{name}`",
                len(ours["maps"]),
                f"{sum(ours['maps'].values()):,}",
                f"{ours['images']:,}",
                f"{ours['files']:,}",
                f"{ours['bytes'] / 1e6:.0f} MB",
                f"{sum(seconds.values()):.0f} s",
                f"{computing / sum(seconds.values()):.0%}",
                f"{ours['peak_memory'] / 2**30:.1f} GiB",
            ]
        )
    head = ["atlas", "layers", "maps", "images", "files", "size", "time", "of it scan and projection", "peak memory"]
    return table(head, rows) if rows else MISSING


def atlas_in_words() -> str:
    """The largest atlas that was made: maps, images, time and size."""
    atlases = [result["ours"] for result in results("atlas/*").values()]
    if not atlases:
        return MISSING
    largest = max(atlases, key=lambda ours: sum(ours["maps"].values()))
    maps, seconds = sum(largest["maps"].values()), sum(largest["seconds"].values())
    return f"{maps:,} maps of {largest['images']:,} photographs: {seconds:.0f} s, {largest['bytes'] / 1e6:.0f} MB"


def seeds_table() -> str:
    """How alike the units of several runs are."""
    return seeds.likeness(entries) if seeds.PAPERS in (entries := results("seeds/*")) else MISSING


def dead_table() -> str:
    """How many maps are dead, by the learning rate."""
    if not (entries := results("seeds/*")):
        return MISSING
    name = "zfnet_small-scenes"
    return seeds.dead_maps(entries, published()[name], read_metadata(ROOT / "published" / f"{name}.safetensors"))


def pieces_table() -> str:
    """What scripts/reproduce.sh runs: how many pieces of each experiment, what they need and how long they took."""
    groups = defaultdict[str, list[dict[str, Any]]](list)
    for name, piece in pieces.pieces().items():
        groups[name.partition("/")[0]].append(piece)
    rows, total = [], 0.0
    for experiment, group in groups.items():
        seconds = [pieces.expected(piece) for piece in group]
        total += sum(seconds)
        data = sorted({path.partition("/")[0] for piece in group for path in pieces.needs(piece)})
        longest = max(seconds) / 60
        rows.append([f"`{experiment}/*`", len(group), f"{longest:.1f}", f"{sum(seconds) / 60:.1f}", ", ".join(data)])
    rows.append(["all", sum(map(len, groups.values())), "", f"{total / 60:.1f}", ""])
    return table(["pieces", "number", "longest, minutes", "together, minutes", "data"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "claims": claims_table,
    "verdicts": verdicts,
    "published": published_table,
    "trained": trained_table,
    "first figures": first_figures,
    "lattice": lattice_table,
    "depth": depth_table,
    "dead maps": dead_maps,
    "transfer": transfer_table,
    "ablation": partial(ablation_table, networks.primary_table),
    "contrasts": partial(ablation_table, networks.verdicts),
    "ablation in words": partial(ablation_table, networks.sentences),
    "ablation, pointing": partial(ablation_table, networks.pointing_table),
    "ablation, judged": partial(ablation_table, networks.judged_table),
    "extended, pointing": partial(ablation_table, networks.extended_table, "extended"),
    "extended, judged": partial(ablation_table, networks.extended_judged_table, "extended"),
    "extended in words": partial(ablation_table, networks.extended_sentences, "extended"),
    "scale, measured": partial(bench_table, "scale", scale.measured_table),
    "scale, on paper": partial(bench_table, "scale", scale.paper_table),
    "timm": families.timm_table,
    "atlas": atlas_table,
    "unique": unique_table,
    "speed": partial(speeds_table, ("forward", "scan", "project", "extended", "record", "ablation")),
    "speed, occlusion": partial(speeds_table, ("occlusion",)),
    "speed, in short": partial(speeds_table, ("scan", "project", "occlusion"), speeds.SHORT),
    "pieces": pieces_table,
    "seeds": seeds_table,
    "dead maps by rate": dead_table,
    "overlap": partial(bench_table, "scan", scale.overlap_table),
    **{f"paper, {name}": partial(beside_table, name) for name in beside.ENTRIES},
}


def filled(text: str, page: str) -> str:
    """A page with its tables of numbers as the results have them."""

    def numbers(match: re.Match[str]) -> str:
        if (name := match[1]) not in TABLES:
            raise unknown_name(f"table of {page}", name, TABLES)
        with complete(f"a file behind {page}'s table {name}"):
            return f"<!-- numbers: {name} -->\n{TABLES[name]()}\n<!-- end -->"

    return re.sub(r"<!-- numbers: ([\w, ]+) -->\n.*?<!-- end -->", numbers, text, flags=re.DOTALL)


def texts() -> list[Path]:
    """README.md, paper.md and the pages of the documentation that people write: all but the gallery's and claims.md."""
    docs = sorted(page for page in (ROOT / "docs").rglob("*.md") if "gallery" not in page.parts)
    return [ROOT / "README.md", ROOT / "paper.md", *(page for page in docs if page != ROOT / "docs" / "claims.md")]


def pages() -> dict[Path, str]:
    """What the files should hold."""
    texts_by_page = {page: filled(page.read_text(encoding="utf-8"), str(page.relative_to(ROOT))) for page in texts()}
    return {ROOT / "docs" / "claims.md": claims_page()} | texts_by_page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if anything differs")
    check = parser.parse_args().check
    try:
        contents = pages()
    except InputError as error:
        sys.exit(f"report.py: {error}")
    for path, text in contents.items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        if check:
            sys.exit(f"{path.relative_to(ROOT)} differs from the results: run python scripts/report.py")
        write_atomically(path, text.encode())
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
