"""Kill runs at random moments, resume them, and compare their results with an uninterrupted run.

    python scripts/kills.py [N] [--jobs training,scan,...] [--first SEED] [--save docs/faults.json]

A run has its own folder and its own process group: training (a checkpoint after every step), a scan, shards of one,
features, the ablation, and the bare command, all small, the last of them as a new process of Python. It gets SIGKILL,
SIGTERM or SIGINT, alone or with the processes that it started, up to three times; then it runs to its end. Its results
must then equal those of an uninterrupted run, digit by digit and picture by picture, and its files as well. Locks do
not count: the lock of a killed run is free.
"""

import argparse
import atexit
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from PIL import Image
from torch import nn

import experiments.ablation.ablation as ablation
import experiments.ablation.measure
import zfnet.analysis.features
import zfnet.scanning
import zfnet.training.loop
from experiments.setup.networks import Networks
from zfnet import scan
from zfnet.analysis.features import features
from zfnet.data.photos import Photos
from zfnet.data.preprocessing import Preprocessing, Stored
from zfnet.errors import InputError
from zfnet.identity import digest
from zfnet.scan_files import STATISTICS, TOP, kept_scan, merge_shards
from zfnet.training import Recipe

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SECONDS = 180.0  # a run that takes longer hangs
PREPROCESSING = Preprocessing(size=32, resize=36)
SMALL = [  # of the bare command
    *("data.count={train:48,val:48}", "train.epochs=2", "train.max_shift=4", "train.batch_size=8"),
    *("model.preprocessing.size=64", "model.preprocessing.resize=72", "model.architecture.image_size=64"),
    *(
        "model.weights=trained",
        "model.architecture.maps=[4,6,6,6,6]",
        "model.architecture.hidden=[8,8]",
        "correct=false",
    ),
]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU()]
    return PREPROCESSING.attach(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).eval())


# --- runs: each works in the current folder, resumes from its files, and returns its result


def training(photos: Path) -> Any:
    zfnet.training.loop.SAVE_EVERY = 0.0
    data = Photos(photos, transform=Stored(PREPROCESSING))
    recipe = Recipe(epochs=3, batch_size=16, max_shift=2)
    networks = Networks("networks", data, data, PREPROCESSING, workers=2, progress=False)
    model, history = networks.trained("small", network, recipe)
    return digest(model), [entry["loss"] for entry in history]


def scanning(photos: Path) -> Any:
    zfnet.scanning.SAVE_EVERY = 0.0
    data = Photos(photos, transform=PREPROCESSING)
    how: dict[str, Any] = {"batch_size": 8, "workers": 2, "state": "scan.partial", "progress": False}
    tops = scan(network(), data, ["1", "4"], 5, **how)
    return {layer: digest(list(top)) for layer, top in tops.items()}, tops.images, tops.broken


def computing_features(photos: Path) -> Any:
    zfnet.analysis.features.SAVE_EVERY = 0.0
    data = Photos(photos, transform=PREPROCESSING)
    how: dict[str, Any] = {"batch_size": 8, "workers": 2, "progress": False}
    outputs = features(network(), data, ["4", "6"], "features", **how)
    return {layer: digest(rows) for layer, rows in outputs.items()}


def ablating(photos: Path) -> Any:
    zfnet.scanning.SAVE_EVERY = 0.0
    data = Photos(photos, transform=PREPROCESSING)
    experiments.ablation.measure.FEWEST = experiments.ablation.measure.REFERENCES
    experiments.ablation.measure.TASKS.pop("prediction", None)  # which needs more images
    how: dict[str, Any] = {"layers": ["1", "4"], "maps": 3}
    return ablation.main(network(), data, "ablation", workers=2, progress=False, batch_size=8, **how)["ours"]


def sharding(photos: Path) -> Any:
    """Three shards and their merge, into a folder that keeps another layer already."""
    zfnet.scanning.SAVE_EVERY = 0.0
    data, folder = Photos(photos, transform=PREPROCESSING), "scans"
    how: dict[str, Any] = {"batch_size": 8, "workers": 2, "progress": False}
    kept_scan(network(), data, folder, ["2"], 3, **how)
    for number in (2, 0, 1):
        kept_scan(network(), data, folder, ["1", "4"], 5, shard=(number, 3), **how)
    merge_shards(network(), data, folder)
    tops = kept_scan(network(), data, folder, ["1", "2", "4"], 3, **how)
    columns = {layer: [*top, *(tops.statistics or {})[layer]] for layer, top in tops.items()}
    files = {name: digest(Path(folder, name).read_bytes()) for name in (TOP, STATISTICS)}
    return digest(columns, tops.class_images), tops.images, tops.broken, files


RUNS: dict[str, Callable[[Path], Any]] = {
    "training": training,
    "scan": scanning,
    "shards": sharding,
    "features": computing_features,
    "ablation": ablating,
}
COMMAND = "command"
SHARES = {"training": 5, "scan": 5, "shards": 4, "features": 5, "ablation": 3, COMMAND: 2}  # how often a run is chosen


# --- processes

groups: list[int] = []  # of the runs that were started


@atexit.register
def end() -> None:
    """Leave no run behind."""
    for group in groups[-1:]:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)


def start(job: str, folder: Path, photos: Path) -> int:
    """Start a run in a process group of its own; its number."""
    if job == COMMAND:
        with open(folder.with_suffix(".log"), "ab") as log:
            words = [sys.executable, str(ROOT / "experiments/run.py"), *SMALL]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}  # the same sums in every run
            how: dict[str, Any] = {"stdout": log, "stderr": log, "env": environment}
            groups.append(subprocess.Popen(words, cwd=folder, start_new_session=True, **how).pid)
            return groups[-1]
    process = os.fork()
    if process:
        with contextlib.suppress(OSError):
            os.setpgid(process, process)
        groups.append(process)
        return process
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setpgid(0, 0)
        with open(folder.with_suffix(".log"), "ab", buffering=0) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.chdir(folder)
        answer = RUNS[job](photos)
        folder.with_suffix(".json").write_text(json.dumps(answer))
        status = 0
    except KeyboardInterrupt:
        status = 130
    except InputError as error:
        print(f"refused: {error}", file=sys.stderr)
        status = 2
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(process: int, seconds: float) -> int | None:
    """The exit status of a process, if it ends within so many seconds: minus the signal that it died of."""
    end = monotonic() + seconds
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if monotonic() > end:
            return None
        sleep(0.005)


def group_is_gone(group: int, seconds: float = 30.0) -> bool:
    """Whether nothing of a process group is left after so long: workers end when they see that their parent did."""
    end = monotonic() + seconds
    while monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        sleep(0.01)
    return False


def finish(job: str, folder: Path, photos: Path) -> tuple[Any, float]:
    """Run to the end: what it came to with the files that it left, and the seconds."""
    began = monotonic()
    process = start(job, folder, photos)
    status = ended(process, SECONDS)
    if status is None:
        os.killpg(process, signal.SIGKILL)
        ended(process, 10)
        raise AssertionError(f"hung; see {folder.with_suffix('.log')}")
    seconds = monotonic() - began
    if status:
        last = folder.with_suffix(".log").read_text(errors="replace").strip().splitlines()[-1:]
        raise AssertionError(f"ended with status {status}: {''.join(last)[:200]}")
    answer = commanded(folder) if job == COMMAND else json.loads(folder.with_suffix(".json").read_text())
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.endswith(".lock"))
    return [answer, files], seconds


def commanded(folder: Path) -> dict[str, Any]:
    """The results of the bare command, without times: numbers, tables, and pictures."""
    answer: dict[str, Any] = {}
    for path in sorted(folder.glob("outputs/*/*/*")):
        if path.name == "result.json":
            result = json.loads(path.read_text())
            answer[str(path)] = timeless({name: result[name] for name in ("ours", "settings")})
        elif path.suffix in (".png", ".md", ".yaml") and "train" not in path.parts:
            answer[str(path)] = digest(path.read_bytes())
    return {name.partition("outputs/")[2]: entry for name, entry in answer.items()}


TIMES = ("seconds", "images_per_second", "waiting")


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: timeless(entry) for name, entry in value.items() if name not in TIMES}
    return [timeless(entry) for entry in value] if isinstance(value, list) else value


# --- the trial


def photographs(folder: Path) -> Path:
    """Two class folders of noise."""
    randoms = random.Random(0)
    for n in range(96):
        path = folder / "ab"[n % 2] / f"{n:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes("RGB", (40, 40), randoms.randbytes(4800)).save(path)
    return folder


def killed(job: str, folder: Path, photos: Path, seconds: float, randoms: random.Random) -> tuple[int, str]:
    """Kill a run up to three times, each time after a part of the time that it takes: how often, and how."""
    kills, how = 0, ""
    for _ in range(randoms.choice((1, 1, 2, 3))):
        which, whole, moment = randoms.choice(SIGNALS), randoms.random() < 0.5, randoms.uniform(0, seconds)
        process = start(job, folder, photos)
        if ended(process, moment) is not None:  # it was done before
            break
        (os.killpg if whole else os.kill)(process, which)
        how += f" {which.name} to the {'group' if whole else 'process'} after {moment:.2f} s"
        if ended(process, 60) is None:
            os.killpg(process, signal.SIGKILL)
            ended(process, 10)
            raise AssertionError(f"did not end{how}")
        if not group_is_gone(process):
            os.killpg(process, signal.SIGKILL)
            raise AssertionError(f"left processes behind{how}")
        kills += 1
    return kills, how


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", nargs="?", type=int, default=300, metavar="N", help="kills at least; 300 by default")
    parser.add_argument("--jobs", default=",".join(SHARES), help="of these; all by default")
    parser.add_argument("--first", type=int, default=0, help="seed of the first run; the others follow it")
    parser.add_argument("--save", type=Path, help="a file of JSON, in which other counts are kept")
    options = parser.parse_args()
    jobs = options.jobs.split(",")
    if unknown := set(jobs) - {*SHARES}:
        parser.error(f"no job {min(unknown)!r}; available: {', '.join(SHARES)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    count, failures = tried(options.kills, jobs, options.first)
    total = sum(count.values())
    print(f"\r{total} kills of {', '.join(f'{number} {job}' for job, number in count.items())}: ", end="")
    print(f"{len(failures)} runs differ from the uninterrupted one")
    for seed, failure in failures.items():
        print(f"  FAILED --first {seed}: {failure}")
    if options.save:
        saved = json.loads(options.save.read_text()) if options.save.exists() else {}
        saved["kills"] = {"cases": total, "outcomes": count, "failures": failures, "peak": 0}
        options.save.write_text(json.dumps(saved, indent=1) + "\n")
    sys.exit(bool(failures))


def tried(kills: int, jobs: list[str], first: int) -> tuple[Counter[str], dict[int, str]]:
    """How often each job was killed, and what was wrong, by seed."""
    torch.set_num_threads(1)  # a process that used threads cannot be forked
    count: Counter[str] = Counter()
    failures: dict[int, str] = {}
    with tempfile.TemporaryDirectory(prefix="kills-") as home:
        photos = photographs(Path(home) / "photos")
        whole = {}
        for job in jobs:
            folder = Path(home) / f"{job}-whole"
            folder.mkdir()
            whole[job] = finish(job, folder, photos)
        seed = first
        try:
            while sum(count.values()) < kills:
                randoms = random.Random(seed)
                job = randoms.choices(jobs, [SHARES[name] for name in jobs])[0]
                folder = Path(home) / f"{job}-{seed}"
                folder.mkdir()
                how = ""
                try:
                    answer, seconds = whole[job]
                    number, how = killed(job, folder, photos, seconds, randoms)
                    if (end := finish(job, folder, photos)[0]) != answer:
                        raise AssertionError(f"came to another end{difference(end, answer)}")
                    count[job] += number
                    shutil.rmtree(folder)
                except AssertionError as error:
                    count[job] += 1
                    failures[seed] = f"{job}:{how} {error}"
                    print(f"\r{seed}: {failures[seed]}", file=sys.stderr)
                print(f"\r{sum(count.values())} of {kills} kills", end="", file=sys.stderr, flush=True)
                seed += 1
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
    return count, failures


def difference(ours: Any, answer: Any) -> str:
    """Which files are left, or missing."""
    files = set(ours[1]) ^ set(answer[1])
    return f": files {sorted(files)}" if files else ""


if __name__ == "__main__":
    main()
