"""Run an experiment: python experiments/run.py experiment=fig2 [model=...] [data=...] [seed=...] [key=value]

Without arguments: all figures, of a small network on rendered scenes. `--help` lists the experiments, and
`experiment=fig2 --help` its settings. The result lies in outputs/<experiment>/<model>-<data>/, or where `out=` says.
With -m, `k=4,9` runs one after the other. Training shares its batches among processes:
torchrun --nproc-per-node=4 experiments/run.py experiment=train
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments.output.results import is_first, results
from experiments.setup.commands import GROUPS, spelled
from experiments.setup.configuration import CONF, configured, key_of, suite
from experiments.setup.objects import Objects, called, distributed
from experiments.setup.overview import overview
from zfnet.errors import InputError
from zfnet.identity import digest

VALUED = ("--cfg", "-c", "--package", "-p", "--info", "-i", "--config-dir", "-cd")  # options of Hydra with a value


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """A user's mistake ends in one line and status 2, Ctrl-C in status 130; our own mistakes keep their traceback."""
    try:
        yield
    except InputError as error:
        print(f"run.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\nrun.py: interrupted; the same command goes on from what was saved", file=sys.stderr)
        raise SystemExit(130) from None


def run(experiment: str, words: Sequence[str], below: str | Path = "") -> Any:
    """Run one experiment as its words say, and return its result; it lies in the folder of results, or `below` it."""
    config = configured(words)
    objects = Objects(config, words, run)
    data = config.hydra.runtime.choices.data
    out = Path(config.out or Path("outputs", experiment, f"{called(config)}-{data}"), below)
    result = objects.experiment(out)
    with results(out) as folder:
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(objects.settings()), encoding="utf-8")
    if is_first():
        random = ", of random weights; model.weights=FILE gives others" if objects.random else ""
        print(f"{experiment}: {out}{random}")
    return result


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def task(config: DictConfig) -> None:
    job = HydraConfig.get()
    words = list(job.overrides.task)
    with in_one_line():
        below = point(words, config) if job.mode == RunMode.MULTIRUN else ""
        experiments = suite(configured(words), words)
        failed = 0
        with distributed([experiment for experiment, _ in experiments]):
            for experiment, own in experiments:
                try:
                    run(experiment, own, Path(experiment if config.out and len(experiments) > 1 else "", below))
                except InputError as error:
                    if len(experiments) == 1:
                        raise
                    failed += 1  # the others of a suite can still be drawn
                    print(f"run.py: {experiment}: {error}", file=sys.stderr)
        if failed:
            raise InputError(f"{failed} of {len(experiments)} experiments failed")


def point(words: Sequence[str], config: DictConfig) -> str:
    """The folder of one point of a sweep, which holds its settings in settings.yaml."""
    return digest([word for word in words if key_of(word) not in (*GROUPS, "out")])[:8]


def command_line() -> None:
    # jobs that a launcher starts elsewhere import this, too
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")]))
    sys.path.append(os.getcwd())  # where a network of one's own may lie
    with in_one_line():
        options = [word for n, word in enumerate(sys.argv) if n and (word[0] == "-" or sys.argv[n - 1] in VALUED)]
        words = [word for word in sys.argv[1:] if word not in options]
        swept = bool({"-m", "--multirun"} & set(options))
        if {"-h", "--help"} & set(options):
            print(overview(words))
            return
        words = spelled(words, swept)
        if not swept:
            configured(words)
        sys.argv[1:] = [*options, *words]
        task()


if __name__ == "__main__":
    command_line()
