"""What the committed results say: docs/claims.md, and the tables of numbers in README.md and docs/.

    python scripts/report.py            # writes them
    python scripts/report.py --check    # exits with 1 if they are not what it would write

It reads results/<experiment>/<name>/result.json, which experiments wrote, results/bench/*.json of scripts/bench.py,
results/zoo/timm.json of scripts/zoo.py, and published/*.json. In pages it replaces
what stands between <!-- numbers: NAME --> and <!-- end -->.
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
from scripts import families, pieces, scale, seeds
from scripts.claims import CLAIMS, MISSING, UNTESTED, Claim
from zfnet.errors import InputError, first_line, unknown_name
from zfnet.files import write_atomically
from zfnet.weights import read_metadata

HEAD = """# The paper's claims

What Zeiler & Fergus (2014) say, and what this software measured. Each claim has a rule. A claim is *reproduced* if
every result fulfils its rule, *not* if no result fulfils half of it, and *partly* otherwise. It is *not decided* if no
result tells, such as where an interval has 0 in it. The thresholds of the rules are ours. The networks here are small
and see few images: a claim that fails here may hold at the paper's size. Where a number is of one network, another
seed may give another. `python scripts/report.py` writes this page from the files in `results/`. The
commands below the table wrote them; settings, versions, processor and seed are in each file. In these commands `data/`
is a folder of photographs.
"""


VERDICTS = ("reproduced", "partly", "not", "not decided", UNTESTED)


def results(pattern: str) -> dict[str, dict[str, Any]]:
    """The committed results whose folders match a pattern, by folder."""
    files = sorted((ROOT / "results").glob(f"{pattern}/result.json"))
    return {str(file.parent.relative_to(ROOT / "results")): read_result(file) for file in files}


def published() -> dict[str, dict[str, Any]]:
    """What is known of the networks that come with the sources, by name."""
    known = {}
    for file in sorted((ROOT / "published").glob("*.json")):
        try:
            known[file.stem] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            raise InputError(
                f"published/{file.name} is damaged: take it from the repository, or publish again"
            ) from None
    return known


@contextlib.contextmanager
def complete(name: str) -> Iterator[None]:
    """InputError, in place of what Python raises, where a file lacks what is read of it."""
    try:
        yield
    except (LookupError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{name} has not what is read of it ({what}): make it again with this version") from error


def command(result: Mapping[str, Any]) -> str:
    """The command that wrote a result."""
    words = shlex.split(result["provenance"]["command"])[1:]
    return shlex.join(["python", "experiments/run.py", *words])


def judged(claim: Claim) -> tuple[str, list[str]]:
    """The verdict over all results of a claim, and each one's numbers."""
    if claim.pattern is None:
        return UNTESTED, [claim.rule]
    found = results(claim.pattern)
    if not found:
        return MISSING, []
    outcomes = {}
    for name, result in found.items():
        with complete(f"results/{name}/result.json"):
            outcomes[name] = claim.judge(result)
    shares = [share for share, _ in outcomes.values()]
    told = [share for share in shares if share is not None]
    if not told:
        verdict = "not decided"
    elif max(told) < 0.5:
        verdict = "**not**"
    else:
        verdict = "reproduced" if shares == [1] * len(shares) else "partly"
    return verdict, [f"{words} ([{name}](../results/{name}/result.json))" for name, (_, words) in outcomes.items()]


def claims_page() -> str:
    """docs/claims.md."""
    rows = []
    for claim in CLAIMS:
        verdict, numbers = judged(claim)
        rule = "" if claim.pattern is None else f" *Rule: {claim.rule}.*"
        rows.append([claim.item, claim.says + rule, verdict, "<br>".join(numbers)])
    lines = [f"    {command(result)}    # {name}" for name, result in results("*/*").items()]
    page = [HEAD, table(["paper", "claim", "here", "measured"], rows), "", "## Commands", "", *lines]
    return "\n".join(page) + "\n"


# ---- README ----------------------------------------------------------------------------------------------------------


def trained_table() -> str:
    """Networks that were trained: accuracy, dead maps and time."""
    rows, groups = [], defaultdict[str, dict[str, dict[str, Any]]](dict)
    for name, run in results("train/*").items():
        groups[name.partition("/")[2].partition(",")[0]][name] = run
    for data, named in groups.items():
        alike(named)
        runs = list(named.values())
        one = [100 - 100 * run["ours"]["history"][-1]["validation_error"] for run in runs]
        ten = [100 - 100 * run["ours"]["validation_top1"] for run in runs]
        counts = [count for run in runs for count in run["ours"]["dead_maps"].values()]
        dead = max(count["dead"] / count["maps"] for count in counts)
        longest = max(runs, key=lambda run: minutes(run["ours"]["history"]))
        how, made = runs[0]["settings"], longest["provenance"]
        what = f"{how['images']:,} + {how['validation_images']:,} images, {how['recipe']['epochs']} epochs"
        on = f"{minutes(longest['ours']['history']):.1f} min, {made['threads']} thread(s) of {made['device']}"
        rows.append([f"`{data}`: {what}; {len(runs)} seed(s)", shown(one), shown(ten), f"{dead:.1%}", on])
    head = ["", "top-1, %", "over ten crops, %", "dead maps, worst layer", "longest, epochs x median"]
    return table(head, rows) if rows else MISSING


def alike(runs: Mapping[str, Mapping[str, Any]]) -> None:
    """InputError unless the runs of one row, by folder, differ in nothing but the seed."""
    settings = {name: flat(run["settings"]) for name, run in runs.items()}
    first, expected = next(iter(settings.items()))
    for name, own in settings.items():
        for key in sorted({*own, *expected} - {"seed", "recipe.seed"}):
            if own.get(key) != expected.get(key):
                values = f"{key} is {own.get(key)} in results/{name}, and {expected.get(key)} in results/{first}"
                raise InputError(f"{values}: runs of one row differ in their seed alone; give one another name")


def minutes(history: Sequence[Mapping[str, float]]) -> float:
    """How long a training takes: its epochs times their median, for it may have been stopped and taken up."""
    return len(history) * median(epoch["seconds"] for epoch in history) / 60


def published_table() -> str:
    """The networks that come with the sources."""
    rows = []
    for name, known in published().items():
        errors = known["validation_error"]
        dead = ", ".join(f"{count['dead']} of {count['maps']}" for count in known["dead_maps"].values())
        top = [f"{100 - 100 * errors[crops]['top1']:.1f}" for crops in ("1 crops", "10 crops")]
        words = shlex.join(["python", "experiments/run.py", *shlex.split(known["training"]["command"])[1:]])
        size = f"{known['bytes'] / 1e6:.1f} MB"
        history = read_metadata(ROOT / "published" / known["file"])["history"]
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


def lattice_table() -> str:
    """How much of Figure 2's projections the first layer's stride cannot hold, and how strong its lattice is there."""
    rows = []
    for name, result in results("fig2/*").items():
        told = result["ours"]["lattice"]
        kinds = {kind: [of[kind] for of in told["layers"].values()] for kind in ("projections", "patches")}
        cells = [*kinds.values(), [told["filters"]]]
        shares = [spread([100 * of["beyond"] for of in numbers], 0) for numbers in cells]
        rows.append([f"`{name}`", *shares, *(spread([of["lattice"] for of in numbers], 1) for numbers in cells)])
    head = ["", "energy, %: projections", "patches", "filters", "at the lattice: projections", "patches", "filters"]
    return table(head, rows) if rows else MISSING


def spread(values: Sequence[float], digits: int) -> str:
    """The least and the largest of several numbers."""
    ends = dict.fromkeys(f"{value:.{digits}f}" for value in (min(values), max(values)))
    return " to ".join(ends)


def transfer_table() -> str:
    """What frozen networks know of other images, beside networks that are trained from scratch."""
    rows = [
        [f"`{name}`", what, ", ".join(map(shown, ours)), ", ".join(map(str, paper))]
        for name, result in (results("table[4567]/*") | results("fig9/*")).items()
        for what, ours, paper in transferred(result)
    ]
    return table(["", "", "ours, %", "paper, %"], rows) if rows else MISSING


def transferred(result: Mapping[str, Any]) -> list[tuple[str, list[list[float]], list[float]]]:
    """The rows of a result of Tables 4 to 7 or Figure 9: what was measured, of each fold, and the paper's numbers."""
    each, kind = result["ours"]["each"], result["experiment"]
    if kind == "table6":
        paper = result["paper"]["precision"]["mean"]["Zeiler & Fergus"]
        return [
            (f"mean precision, {KINDS[row]}", [of["mean"]], [paper] * (row == "exclusive")) for row, of in each.items()
        ]
    papers = result["paper"]["accuracy"]
    if kind == "table7":
        layers = [row for row in each if row.startswith("SVM")]
        numbers = ", ".join(row.removeprefix("SVM (").removesuffix(")") for row in layers)
        return [(f"SVM on layers {numbers}", [each[row] for row in layers], [papers[row][0][0] for row in layers])]
    return [
        (f"{row}, {', '.join(of)} a class", [*of.values()], [papers[row][n][0] for n in of if n in papers.get(row, {})])
        for row, of in each.items()
    ]


@cache
def ablations(rules: str = "deconvnet") -> networks.Networks:
    """The estimates of every network that was asked which picture of a unit is better, by these rules."""
    found = {Path(name).name: result for name, result in results("ablation/*").items()}
    chosen = {name: of["ours"] for name, of in found.items() if of["settings"].get("rules", "deconvnet") == rules}
    return networks.estimates(chosen)


def ablation_table(of: Callable[[networks.Networks], str], rules: str = "deconvnet") -> str:
    """A table of all networks that the ablation was made of by these rules."""
    return of(ablations(rules)) if ablations(rules) else MISSING


def claims_table() -> str:
    """The verdicts alone."""
    return table(["paper", "claim", "here"], [[claim.item, claim.says, judged(claim)[0]] for claim in CLAIMS])


def verdicts() -> str:
    """How many claims came to each verdict, in a sentence."""
    each = [judged(claim)[0].strip("*") for claim in CLAIMS]
    counts = ", ".join(f"{each.count(verdict)} {verdict}" for verdict in dict.fromkeys([*VERDICTS, *each]))
    return f"Of {len(each)} claims of the paper, by rules that were written down: {counts}."


def bench_table(name: str, of: Callable[[Sequence[Mapping[str, Any]]], str]) -> str:
    """A table of what scripts/bench.py measured, from results/bench/<name>.json."""
    file = ROOT / "results" / "bench" / f"{name}.json"
    if not file.exists():
        return MISSING
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(
            f"results/bench/{name}.json is damaged: take it from the repository, or measure anew"
        ) from None
    machine, torch = known["machine"], known["versions"]["torch"]
    how = f"`python scripts/bench.py {name}`, on {machine} with {known['hardware']}, torch {torch}:"
    return f"{how}\n\n{of(known['rows'])}"


def atlas_table() -> str:
    """How long the atlases took, and how large they are."""
    rows = []
    for name, result in results("atlas/*").items():
        ours, seconds = result["ours"], result["ours"]["seconds"]
        made = sum(seconds[part] for part in ("links", "scan", "reading", "projection"))
        rows.append(
            [
                f"`{name}`",
                len(ours["maps"]),
                f"{sum(ours['maps'].values()):,}",
                f"{ours['images']:,}",
                f"{ours['files']:,}",
                f"{ours['bytes'] / 1e6:.0f} MB",
                f"{sum(seconds.values()):.0f} s",
                f"{made / sum(seconds.values()):.0%}",
                f"{ours['peak_memory'] / 2**30:.1f} GiB",
            ]
        )
    head = ["atlas", "layers", "maps", "images", "files", "size", "time", "of it scan and projection", "peak memory"]
    return table(head, rows) if rows else MISSING


def seeds_table() -> str:
    """How alike the units of several runs are."""
    return seeds.likeness(found) if seeds.PAPERS in (found := results("seeds/*")) else MISSING


def dead_table() -> str:
    """How many maps are dead, by the learning rate."""
    if not (found := results("seeds/*")):
        return MISSING
    name = "zfnet_small-scenes"
    return seeds.dead_maps(found, published()[name], read_metadata(ROOT / "published" / f"{name}.safetensors"))


def pieces_table() -> str:
    """What scripts/reproduce.sh runs: how many pieces of each experiment, what they need and how long they took."""
    groups = defaultdict[str, list[dict[str, Any]]](list)
    for name, piece in pieces.pieces().items():
        groups[name.partition("/")[0]].append(piece)
    rows, everything = [], 0.0
    for experiment, group in groups.items():
        seconds = [pieces.expected(piece) for piece in group]
        everything += sum(seconds)
        data = sorted({need.partition("/")[0] for piece in group for need in pieces.needs(piece)})
        longest = max(seconds) / 60
        rows.append([f"`{experiment}/*`", len(group), f"{longest:.1f}", f"{sum(seconds) / 60:.1f}", ", ".join(data)])
    rows.append(["all", sum(map(len, groups.values())), "", f"{everything / 60:.1f}", ""])
    return table(["pieces", "number", "longest, minutes", "together, minutes", "data"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "claims": claims_table,
    "verdicts": verdicts,
    "published": published_table,
    "trained": trained_table,
    "lattice": lattice_table,
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
    "pieces": pieces_table,
    "seeds": seeds_table,
    "dead maps": dead_table,
    "overlap": partial(bench_table, "scan", scale.overlap_table),
}


def filled(text: str, page: str) -> str:
    """A page with its tables of numbers as the results have them."""

    def numbers(match: re.Match[str]) -> str:
        if (name := match[1]) not in TABLES:
            raise unknown_name(f"table of {page}", name, TABLES)
        with complete(f"a file behind {page}'s table {name}"):
            return f"<!-- numbers: {name} -->\n{TABLES[name]()}\n<!-- end -->"

    return re.sub(r"<!-- numbers: ([\w, ]+) -->\n.*?<!-- end -->", numbers, text, flags=re.DOTALL)


def pages() -> dict[Path, str]:
    """What the files should hold."""
    known = {
        ROOT / page: filled((ROOT / page).read_text(encoding="utf-8"), page)
        for page in (
            *("README.md", "paper.md"),
            *(f"docs/{name}.md" for name in ("ablation", "atlas", "reproduce", "rules", "scale", "units")),
        )
    }
    return {ROOT / "docs" / "claims.md": claims_page()} | known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if anything differs")
    check = parser.parse_args().check
    try:
        written = pages()
    except InputError as error:
        sys.exit(f"report.py: {error}")
    for path, text in written.items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        if check:
            sys.exit(f"{path.relative_to(ROOT)} is not what the results say: run python scripts/report.py")
        write_atomically(path, text.encode())
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
