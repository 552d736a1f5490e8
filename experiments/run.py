"""Run an experiment: python experiments/run.py experiment=fig2 [model=...] [data=...] [seed=...] [key=value]

Without arguments: all figures, of a small network on rendered scenes.  The result lies in
outputs/<experiment>/<model>-<data>/, or where `out=` says.  With -m, `k=4,9` runs one after the other.
"""

import contextlib
import inspect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

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

from experiments.overrides import CONF, GIVEN, check, configured, single
from experiments.results import results
from zfnet.errors import InputError, first_line

PLACED = ("experiment", "model", "data", "++out")  # the folder's name says these


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


def check_type(name: str, value: Any, hint: Any) -> None:
    """InputError for a value that is plainly not of the type that the experiment's signature says."""
    hints = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [get_origin(h) or h for h in hints]
    if type(value) in (int, bool, str):  # else True is a number, and text a list of letters
        fits = type(value) in kinds or (type(value) is int and float in kinds)
    else:
        fits = any(isinstance(value, kind) for kind in kinds)
    if not fits and Any not in kinds:
        wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "a name", type(None): "null"}
        raise InputError(f"{name} is {value!r}; give {' or '.join(wanted.get(k, 'a list') for k in kinds)}")


def device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"no device {name!r}: {first_line(error)}") from None
    return torch.device(name)


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


def run(experiment: str, words: Sequence[str], below: str | Path = "") -> Any:
    """Run one experiment as its words say, and return its result; it lies in the folder of results, or `below` it."""
    config = configured(words)
    if type(config.seed) is not int:
        raise InputError(f"seed is {config.seed!r}; give a whole number")
    main = get_object(config.experiment._target_)
    parameters = inspect.signature(main).parameters
    for key in sorted(OmegaConf.missing_keys(config)):
        group = key.partition(".")[0]
        if group in parameters:
            raise InputError(f"{group}={config.hydra.runtime.choices[group]} needs {key}=...")
    choices = config.hydra.runtime.choices
    out = Path(config.out or Path("outputs", experiment, f"{choices.model}-{choices.data}"), below)
    with open_dict(config):  # the file beside the result says all settings
        for name, p in parameters.items():
            if name not in GIVEN and name not in config.experiment and p.default is not p.empty:
                config.experiment[name] = p.default
    settings: Any = OmegaConf.to_container(config.experiment, resolve=True)
    for name, hint in get_type_hints(main).items():
        if name in settings and not (isinstance(settings[name], dict) and "_target_" in settings[name]):
            check_type(name, settings[name], hint)
    given: dict[str, Any] = {"out": out}
    if "model" in parameters:
        given["model"] = network(config, words)
        with open_dict(config):  # a file of weights brings its own
            config.model.preprocessing.update(asdict(given["model"].preprocessing))
    if "data" in parameters:
        given["data"] = made(config.data)(given["model"].preprocessing)
    if "validation" in parameters:
        given["validation"] = made(config.data)(given["model"].preprocessing, split="val")
    result = made(config.experiment, _partial_=True)(**given)
    with results(out) as files:
        text = OmegaConf.to_yaml(
            OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]), resolve=True
        )
        (files / "config.yaml").write_text(text, encoding="utf-8")
    print(f"{experiment}: {out}")
    return result


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def task(config: DictConfig) -> None:
    job = HydraConfig.get()
    words = list(job.overrides.task)
    swept = ""
    if job.mode == RunMode.MULTIRUN:  # each point in a folder of its own
        point = [w.removeprefix("++").removeprefix("experiment.") for w in words if w.split("=")[0] not in PLACED]
        swept = ",".join(point).replace("/", "_")
    with in_one_line():
        asked = single(configured(words), words)
        for experiment, mine in asked:
            run(experiment, mine, Path(experiment if config.out and len(asked) > 1 else "", swept))


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
