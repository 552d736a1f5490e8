"""`scripts/gpu.sh`, with a stub in place of Python: what is run, skipped, gone on with after a failure or a stop."""

import os
import shutil
import signal
import subprocess
from pathlib import Path
from time import monotonic, sleep

import pytest

pytestmark = pytest.mark.skipif(not shutil.which("flock"), reason="the script is for Linux")
ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts/gpu.sh"
STUB = r"""#!/usr/bin/env bash
# Python as the script knows it: on a GPU, every part leaves its result, but those that a file in $CASES names
echo "$*" >>"$CASES/calls"
case "$*" in
*cuda.is_available*) echo cuda ;;
*--about*) echo '{"hardware": "stub"}' ;;
esac
for word; do
    case $word in
    occlusion) [[ -e $CASES/fail ]] && { echo "no occlusion today" && exit 3; } ;;
    seed=1) [[ -e $CASES/hang ]] && { echo $$ >>"$CASES/hanging" && exec sleep 60; } ;;
    out=*) out=${word#out=} out=${out//\'/} && mkdir -p "$out" && echo '{}' >"$out/result.json" ;;
    esac
    [[ ${last:-} == --json ]] && echo '{"rows": [{"images_per_second": 50000}]}' >"$word"
    last=$word
done
exit 0
"""
PARTS = ["tests", "bench scan", "bench project", "bench occlusion", "bench train"]


class Runs:
    """Runs the script in folders of its own, with the stub."""

    def __init__(self, folder: Path) -> None:
        self.cases, self.out, self.data = folder / "cases", folder / "out", folder / "data"
        self.cases.mkdir()
        self.data.mkdir()
        python = folder / "python"
        python.write_text(STUB)
        python.chmod(0o755)
        self.environment = os.environ | {"CASES": str(self.cases), "OUT": str(self.out), "PYTHON": str(python)}

    def start(self, *words: str, **settings: str) -> "subprocess.Popen[str]":
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        command = ["bash", str(SCRIPT), *(words or [str(self.data)])]
        before = signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # what is ignored cannot be trapped by a shell
        try:
            return subprocess.Popen(command, env=self.environment | settings, **pipes)
        finally:
            signal.signal(signal.SIGINT, before)

    def run(self, *words: str, **settings: str) -> tuple[int, list[str]]:
        process = self.start(*words, **settings)
        text, _ = process.communicate(timeout=60)
        return process.returncode, text.splitlines()

    def said(self, lines: list[str], what: str) -> list[str]:
        """The parts of which the lines say this."""
        return [line[6:48].strip() for line in lines if line.startswith(f"{what} ")]

    def calls(self) -> int:
        return sum("experiment=variant" in line for line in (self.cases / "calls").read_text().splitlines())


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def test_all_parts_run_once(runs: Runs) -> None:
    status, lines = runs.run()
    passed = runs.said(lines, "PASS")
    assert status == 0 and not runs.said(lines, "FAIL")
    assert passed[:5] == PARTS and len([name for name in passed if name.startswith("krizhevsky")]) == 12
    assert len(list(runs.out.glob("table3/*/result.json"))) == 12 and not list(runs.out.rglob("*.part"))
    seeds = [name[-1] for name in passed if name.startswith("krizhevsky")]
    assert seeds == sorted(seeds)  # one seed after the other
    words = (runs.cases / "calls").read_text()
    assert "model.architecture.maps=[48,128,192,192,128]" in words and "train.epochs=60" in words
    assert "variant='krizhevsky without layers 3, 4, 6, 7'" in words and "--small" not in words
    status, again = runs.run()
    assert status == 0 and runs.calls() == 12
    assert len(runs.said(again, "SKIP")) == 17
    kept = (runs.out / "summary.txt").read_text().splitlines()
    assert runs.said(kept, "PASS")[:5] == PARTS and len(runs.said(kept, "SKIP")) == 17


def test_a_part_that_fails_leaves_the_others_and_is_tried_again(runs: Runs) -> None:
    (runs.cases / "fail").touch()
    status, lines = runs.run()
    assert status == 1 and runs.said(lines, "FAIL") == ["bench occlusion", "all"]
    assert any("no occlusion today" in line for line in lines) and "bench train" in runs.said(lines, "PASS")
    (runs.cases / "fail").unlink()
    status, lines = runs.run()
    assert status == 0 and "bench occlusion" in runs.said(lines, "PASS") and runs.calls() == 12


def alive(pid: str) -> bool:
    """Whether there is such a process, other than one that has ended and waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_what_runs_and_the_next_start_goes_on(runs: Runs, number: signal.Signals) -> None:
    (runs.cases / "hang").touch()
    process, until = runs.start(), monotonic() + 60
    while not (runs.cases / "hanging").exists() or len((runs.cases / "hanging").read_text().split()) < 4:
        assert monotonic() < until
        sleep(0.05)
    process.send_signal(number)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number and runs.said(text.splitlines(), "STOP") == ["all"]
    pids, until = (runs.cases / "hanging").read_text().split(), monotonic() + 60
    while any(map(alive, pids)):  # a process that was killed is there until the kernel has cleared it away
        assert monotonic() < until
        sleep(0.05)
    done = {path.parent.name for path in runs.out.glob("table3/*/result.json")}
    assert len(done) == 4 and all(name.endswith("seed0") for name in done)
    (runs.cases / "hang").unlink()
    status, lines = runs.run()
    assert status == 0 and done <= set(runs.said(lines, "SKIP"))
    assert len(list(runs.out.glob("table3/*/result.json"))) == 12


def test_nothing_begins_after_the_last_minute(runs: Runs) -> None:
    status, lines = runs.run(MINUTES="0")
    assert status == 1 and len(runs.said(lines, "LATE")) >= 17 and not runs.said(lines, "SKIP")


@pytest.mark.parametrize(
    ("settings", "was"),
    [
        ({"SCALE": "0.5"}, "SCALE=0.5 EPOCHS= on cuda"),
        ({"EPOCHS": "7"}, "SCALE=1 EPOCHS=7 on cuda"),
    ],  # the stub multiplies nothing
)
def test_results_of_other_settings_are_not_taken_for_these(runs: Runs, settings: dict[str, str], was: str) -> None:
    runs.run(MINUTES="0", **settings)
    before = sorted(runs.out.rglob("*"))
    status, lines = runs.run()
    assert status == 2 and sorted(runs.out.rglob("*")) == before
    now = "SCALE=1 EPOCHS=60 on cuda"
    assert lines == [f"gpu.sh: {runs.out} has results of {was}, not {now}: give another OUT, or delete it"]


def test_two_do_not_write_to_one_folder(runs: Runs) -> None:
    (runs.cases / "hang").touch()
    first, until = runs.start(), monotonic() + 60
    while not (runs.cases / "hanging").exists():
        assert monotonic() < until
        sleep(0.05)
    status, lines = runs.run()
    first.terminate()
    first.communicate(timeout=60)
    assert status == 2 and "another run" in lines[-1]


@pytest.mark.parametrize(
    ("words", "settings", "says"),
    [
        (("/nowhere",), {}, "there is no /nowhere"),
        (("/", "8"), {}, "give DATA alone, not 8 as well; settings stand in front of the command (--help says all)"),
        ((), {"EPOCHS": "many"}, "EPOCHS is many; give a whole number from 1"),
        ((), {"EPOCHS": "0"}, "EPOCHS is 0; give a whole number from 1"),
        ((), {"AT_ONCE": "08"}, "AT_ONCE is 08; give a whole number from 1"),
        ((), {"SCALE": "2"}, "SCALE is 2; give a number above 0 up to 1"),
        ((), {"SCALE": "0.0"}, "SCALE is 0.0; give a number above 0 up to 1"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(runs: Runs, words: tuple[str, ...], settings: dict[str, str], says: str) -> None:
    status, lines = runs.run(*words, **settings)
    assert status == 2 and lines == [f"gpu.sh: {says}"]


def test_help_is_the_head_of_the_script(runs: Runs) -> None:
    status, lines = runs.run("--help")
    assert status == 0 and lines[0].startswith("All that needs a GPU") and "SCALE" in "\n".join(lines)
    head = SCRIPT.read_text().split("\nset -u\n")[0].splitlines()
    assert lines == [line.removeprefix("#").removeprefix(" ") for line in head[1:]]
