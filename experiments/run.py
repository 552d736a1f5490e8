"""Run an experiment: python experiments/run.py experiment=fig2 [model=...] [data=...] [seed=...] [key=value]

Without arguments: Figures 2, 5 and 7 of a small network on rendered scenes. `--help` lists the experiments,
`experiment=fig2 --help` its settings. With -m, `k=4,9` runs one after the other; torchrun shares training.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from experiments.setup import terminal

if __name__ == "__main__":
    terminal.understand(terminal.leave)  # the imports below take seconds
    terminal.stand_somewhere()

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments.output.results import is_first, results
from experiments.setup.commands import parsed, spelled
from experiments.setup.configuration import CONF, configured, key_of, listed, refused, suite
from experiments.setup.flags import options_of
from experiments.setup.objects import Objects, distributed
from experiments.setup.overview import overview
from experiments.setup.terminal import in_one_line, say
from zfnet.errors import InputError
from zfnet.identity import digest


def run(experiment: str, words: Sequence[str], below: str | Path = "", swept: Sequence[str] = ()) -> Any:
    """Run one experiment; return the content of its result.json. `swept`: the settings of this point of a sweep."""
    objects = Objects(configured(words), words, run)
    result = objects.experiment(out := objects.folder(experiment) / below)
    if result is None:  # it leaves nothing
        return None
    with results(out) as folder:
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(objects.settings()), encoding="utf-8")
        if swept:
            (folder / "settings.yaml").write_text(listed(swept), encoding="utf-8")
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
        with distributed([name for name, _ in experiments]):
            for _, own in experiments if len(experiments) > 1 else ():
                Objects(configured(own), own, run)  # all are checked before the first runs
            for name, own in experiments:
                folder = name if config.out and len(experiments) > 1 else ""
                try:
                    run(name, own, Path(folder, digest(swept)[:8] * bool(swept)), swept)
                except InputError as error:
                    if len(experiments) == 1:
                        raise
                    failed += 1  # the others of a suite can still be drawn
                    say(f"{name}: {error}")
        if failed:
            raise InputError(f"{failed} of {len(experiments)} experiments failed")


def command_line() -> None:
    path = [sys.path[0], os.environ.get("PYTHONPATH", "")]  # for jobs that a launcher starts elsewhere
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    os.environ["MPLBACKEND"] = "agg"  # no window; a notebook sets its own, which is not installed everywhere
    os.environ["HYDRA_FULL_ERROR"] = "1"  # it raises what it would print on several lines
    with in_one_line():
        sys.path.append(os.getcwd())  # the user's own network may be there
        options, words = options_of(sys.argv[1:])
        if "--help" in options:
            print(overview(words))
            return
        swept = "--multirun" in options
        sys.argv[1:] = [*options, *(words := spelled(words, swept))]
        configured([word for word in words if not parsed(word, swept)[1].is_sweep_override()])  # one line, if it fails
        try:
            with refused():
                task()
        except OSError as error:  # of Hydra: experiments end in one line themselves
            raise InputError(f"cannot write {error.filename}: {error.strerror}") from None


if __name__ == "__main__":
    with terminal.attended():
        command_line()
