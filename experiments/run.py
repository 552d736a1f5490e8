"""Run an experiment: python experiments/run.py experiment=fig2 [model=...] [data=...] [seed=...] [key=value]

Without arguments: all figures, of a small network on rendered scenes.  The result lies in
outputs/<experiment>/<model>-<data>/, or where `out=` says.  With -m, `k=4,9` runs one after the other.
"""

import contextlib
import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import hydra
import torch
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from experiments.overrides import check, configured, first_line, single
from experiments.results import results
from zfnet.errors import InputError


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


def made(settings: DictConfig, *arguments: Any, **more: Any) -> Any:
    """What the configured function makes; its InputError, or one for arguments that it does not have."""
    try:
        return instantiate(settings, *arguments, **more, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, TypeError) and "argument" in str(error.__cause__):
            raise InputError(first_line(error.__cause__)) from None
        raise


def device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"no device {name!r}: {first_line(error)}") from None
    return torch.device(name)


def folder(config: DictConfig, experiment: str, swept: str = "") -> Path:
    """Where the result lies; that of one point of a sweep in a folder of its own."""
    choices = config.hydra.runtime.choices
    return Path(config.out or Path("outputs", experiment, f"{choices.model}-{choices.data}"), swept)


def trained(config: DictConfig, words: Sequence[str]) -> Path:
    """The checkpoint that training leaves; where there is none yet, train."""
    choices = config.hydra.runtime.choices
    data = config.model.get("trained_on") or choices.data
    path = Path("outputs", "train", f"{choices.model}-{data}", "model.safetensors")
    if not path.exists():
        print(f"{path} is not there yet: training it first", file=sys.stderr)
        kinds = ["++model.architecture", "++model.preprocessing", "++train", "train=", "++device"]
        kinds += ["++data."] if data == choices.data else []
        mine = [word for word in words if word.startswith(tuple(kinds))]
        run("train", [*mine, "experiment=train", f"model={choices.model}", f"data={data}"])
    return path


def network(config: DictConfig, words: Sequence[str]) -> nn.Module:
    """The configured network with its weights, on its device."""
    if config.model.weights == "trained":
        config.model.weights = str(trained(config, words))
    settings = OmegaConf.masked_copy(config.model, ["_target_", "architecture", "weights", "preprocessing", "seed"])
    return made(settings, seed=config.seed).to(device(config.device))


def run(experiment: str, words: Sequence[str], swept: str = "") -> Any:
    """Run one experiment as its words say, and return its result."""
    config = configured(words)
    if type(config.seed) is not int:
        raise InputError(f"seed is {config.seed!r}; give a whole number")
    parameters = inspect.signature(get_object(config.experiment._target_)).parameters
    for key in sorted(OmegaConf.missing_keys(config)):
        group = key.partition(".")[0]
        if group in parameters:
            raise InputError(f"{group}={config.hydra.runtime.choices[group]} needs {key}=...")
    out = folder(config, experiment, swept)
    given: dict[str, Any] = {"out": out}
    if "model" in parameters:
        given["model"] = network(config, words)
    if "data" in parameters:
        given["data"] = made(config.data)(given["model"].preprocessing)
    with open_dict(config):
        for name, p in parameters.items():  # the file beside the result says all settings
            if name not in given and name not in config.experiment and p.default is not p.empty:
                config.experiment[name] = p.default
    result = made(config.experiment, _partial_=True)(**given)
    with results(out) as files:
        text = OmegaConf.to_yaml(OmegaConf.masked_copy(config, [k for k in config if k != "hydra"]), resolve=True)
        (files / "config.yaml").write_text(text, encoding="utf-8")
    print(f"{experiment}: {out}")
    return result


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def task(config: DictConfig) -> None:
    job = HydraConfig.get()
    words = list(job.overrides.task)
    swept = job.job.override_dirname.replace("/", "_") if job.mode == RunMode.MULTIRUN else ""
    with in_one_line():
        for experiment, mine in single(configured(words), words):
            run(experiment, mine, swept)


def command_line() -> None:
    with in_one_line():
        arguments = get_args_parser().parse_args()
        words = check(arguments.overrides)
        if not arguments.multirun:
            configured(words)
        known = dict(zip(arguments.overrides, words, strict=True))
        sys.argv[1:] = [known.get(word, word) for word in sys.argv[1:]]
        task()


if __name__ == "__main__":
    command_line()
