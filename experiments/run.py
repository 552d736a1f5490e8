"""Run an experiment: python experiments/run.py experiment=fig2 [model=...] [data=...] [seed=...] [key=value]

Without arguments: Figures 2, 4, 5, 6 and 7, of a small network on rendered scenes. `--help` lists the experiments,
`experiment=fig2 --help` its settings. With -m, `k=4,9` runs one after the other; torchrun shares training.
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
from experiments.setup.commands import spelled
from experiments.setup.configuration import CONF, configured, key_of, suite
from experiments.setup.objects import Objects, distributed
from experiments.setup.overview import overview
from zfnet.errors import InputError
from zfnet.identity import digest

VALUED = ("--cfg", "-c", "--package", "-p", "--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp")


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


def run(experiment: str, words: Sequence[str], below: str | Path = "", swept: Sequence[str] = ()) -> Any:
    """Run one experiment; return what its result.json holds. `swept`: the settings of this point of a sweep."""
    objects = Objects(configured(words), words, run)
    result = objects.experiment(out := objects.folder(experiment) / below)
    with results(out) as folder:
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(objects.settings()), encoding="utf-8")
        if swept:
            pairs = [word.partition("=") for word in swept]
            settings = {key: OmegaConf.from_dotlist([f"_={value}"])._ for key, _, value in pairs}
            (folder / "settings.yaml").write_text(OmegaConf.to_yaml(settings), encoding="utf-8")
    if is_first():
        print(f"{experiment}: {out}{objects.origin}")
    return result


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def task(config: DictConfig) -> None:
    words = list(HydraConfig.get().overrides.task)
    swept: list[str] = []
    if HydraConfig.get().mode == RunMode.MULTIRUN:  # each point in a short folder, which says its settings
        swept = [w.lstrip("+~").removeprefix("experiment.") for w in words if key_of(w) != "out"]
    with in_one_line():
        experiments = suite(configured(words), words)
        failed = 0
        with distributed([experiment for experiment, _ in experiments]):
            for experiment, own in experiments:
                folder = experiment if config.out and len(experiments) > 1 else ""
                try:
                    run(experiment, own, Path(folder, digest(swept)[:8] * bool(swept)), swept)
                except InputError as error:
                    if len(experiments) == 1:
                        raise
                    failed += 1  # the others of a suite can still be drawn
                    print(f"run.py: {experiment}: {error}", file=sys.stderr)
        if failed:
            raise InputError(f"{failed} of {len(experiments)} experiments failed")


def command_line() -> None:
    path = [sys.path[0], os.environ.get("PYTHONPATH", "")]  # for jobs that a launcher starts elsewhere
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    sys.path.append(os.getcwd())  # where a network of one's own may lie
    with in_one_line():
        options = [word for n, word in enumerate(sys.argv) if n and (word[:1] == "-" or sys.argv[n - 1] in VALUED)]
        words = [word for word in sys.argv[1:] if word not in options]
        if {"-h", "--help"} & set(options):
            print(overview(words))
            return
        swept = bool({"-m", "--multirun"} & set(options))
        sys.argv[1:] = [*options, *(words := spelled(words, swept))]
        if not swept:
            configured(words)
        task()


if __name__ == "__main__":
    command_line()
