"""Hostile input, made at random: images, zips, tars, weights, damaged files, networks, command lines.

    python scripts/fuzz.py [KIND ...] [--cases N] [--first SEED] [--minutes M] [--save docs/faults.json]
    python scripts/fuzz.py images --only 4711         one case again, in this process, with its traceback
    python scripts/fuzz.py --table docs/faults.json   the table of what was saved

A case is made from its seed alone. It fails if anything is raised, a traceback or a wrong answer; if it takes more than
a minute; and if its peak memory is more than 1 GiB above that of the process before its first case. Cases run in a
separate process, which is restarted after a case that kills it. Ctrl-C prints the results so far.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

KINDS = {
    "images": 5000,
    "zips": 1000,
    "tars": 1000,
    "checkpoints": 1000,
    "flips": 500,
    "networks": 10_000,
    "lines": 2000,
}
SECONDS = 60.0  # for a case
MEMORY = 2**30  # bytes of a case, above what the process had before
LIMIT = 4 * 2**30  # bytes above, at which the system refuses memory: a bomb must not end the machine


@dataclass
class Count:
    """The outcomes of the cases of one kind."""

    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)  # by seed
    peak: int = 0  # bytes above the process before its first case
    seconds: float = 0.0

    def add(self, seed: int, outcome: str | None, failure: str | None, peak: int) -> None:
        self.cases += 1
        self.peak = max(self.peak, peak)
        if failure is None and peak > MEMORY:
            failure = f"took {peak / 2**20:,.0f} MiB"
        if failure is None:
            self.outcomes[str(outcome)] += 1
        else:
            self.failures[seed] = failure

    def lines(self) -> Iterator[str]:
        parts = ", ".join(f"{number:,} {outcome}" for outcome, number in self.outcomes.most_common())
        yield f"{self.cases:,} cases in {self.seconds:,.0f} s, at most {self.peak / 2**20:,.0f} MiB: {parts or 'none'}"
        for seed, failure in sorted(self.failures.items()):
            yield f"  FAILED --only {seed}: {failure}"


def memory(name: str) -> int:
    """A line of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def work(kind: str, seeds: Sequence[int], results: Connection) -> None:
    """Try the cases one after the other; send (seed,) before each, and (outcome, failure, peak) after it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and others write there whatever they are told
    torch.set_num_threads(1)
    case = importlib.import_module(f"scripts.fuzzing.{kind}").case
    baseline = memory("VmRSS")
    resource.setrlimit(resource.RLIMIT_DATA, (memory("VmData") + LIMIT,) * 2)
    for seed in seeds:
        results.send((seed,))
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
        outcome = failure = None
        try:
            outcome = case_in_a_folder(case, seed)
        except BaseException as error:
            failure = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        results.send((outcome, failure, memory("VmHWM") - baseline))
    results.close()


def case_in_a_folder(case: Any, seed: int) -> str:
    home = os.getcwd()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            return str(case(seed, Path(folder)))
        finally:
            os.chdir(home)


def tried(kind: str, seeds: Sequence[int], minutes: float, progress: bool = True) -> Count:
    """Try these cases, for so long at most."""
    count, start = Count(), monotonic()
    try:
        while count.cases < len(seeds) and monotonic() - start < 60 * minutes:
            for result in attempts(kind, seeds[count.cases :]):
                count.add(*result)
                if progress and count.cases % 50 == 0:
                    print(f"\r{kind}: {count.cases:,} of {len(seeds):,}", end="", file=sys.stderr, flush=True)
                if monotonic() - start > 60 * minutes:
                    break
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
    count.seconds = monotonic() - start
    return count


def attempts(kind: str, seeds: Sequence[int]) -> Iterator[tuple[int, str | None, str | None, int]]:
    """The outcomes of the cases of one process, up to the case that kills it."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(kind, seeds, theirs), daemon=False)
    process.start()
    theirs.close()
    try:
        for seed in seeds:
            if not ours.poll(10 * SECONDS):  # the first waits for imports
                raise RuntimeError(f"{kind} does not start")
            ours.recv()
            if not ours.poll(SECONDS):
                yield seed, None, f"took more than {SECONDS:.0f} s", 0
                return
            try:
                yield (seed, *ours.recv())
            except EOFError:
                process.join()
                yield seed, None, f"the process died with {process.exitcode}", 0
                return
    finally:
        process.kill()
        process.join()
        ours.close()


def table(saved: dict[str, Any]) -> str:
    """The saved results, as Markdown; outcomes of one kind are one number."""
    rows = ["| | cases | outcome | failed | at most, MiB |", "|---|---|---|---|---|"]
    for kind, count in saved.items():
        outcomes: Counter[str] = Counter()
        for outcome, number in count["outcomes"].items():
            outcomes[outcome.partition(":")[0].partition(";")[0]] += number
        parts = ", ".join(f"{number:,} {outcome}" for outcome, number in outcomes.most_common())
        peak = f"{count['peak'] / 2**20:,.0f}" if count["peak"] else "-"
        rows.append(f"| {kind} | {count['cases']:,} | {parts} | {len(count['failures'])} | {peak} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--cases", type=int, help="of each kind")
    parser.add_argument("--first", type=int, default=0, help="seed; the others follow it")
    parser.add_argument("--minutes", type=float, default=60.0, help="for each kind, at most")
    parser.add_argument("--only", type=int, metavar="SEED", help="one case, in this process")
    parser.add_argument("--save", type=Path, help="a file of JSON, in which other kinds are kept")
    parser.add_argument("--table", type=Path, help="print the results saved in this file")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return
    if unknown := [kind for kind in options.kinds if kind not in KINDS]:
        parser.error(f"no kind {unknown[0]!r}; available: {', '.join(KINDS)}")
    failures = 0
    for kind in options.kinds or KINDS:
        if options.only is not None:
            print(kind, case_in_a_folder(importlib.import_module(f"scripts.fuzzing.{kind}").case, options.only))
            continue
        cases = options.cases or KINDS[kind]
        count = tried(kind, range(options.first, options.first + cases), options.minutes)
        print(f"\r{kind}:", *count.lines(), sep="\n  ")
        failures += len(count.failures)
        if options.save:
            saved = json.loads(options.save.read_text()) if options.save.exists() else {}
            options.save.write_text(json.dumps(saved | {kind: vars(count)}, indent=1) + "\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
