"""Run an experiment: python experiments/run.py experiment=fig2 [model=...] [data=...] [seed=...] [key=value]

Without arguments: all figures, of a small network on rendered scenes. The result lies in
outputs/<experiment>/<model>-<data>/, or where `out=` says. With -m, `k=4,9` runs one after the other.
Training shares its batches among processes: torchrun --nproc-per-node=4 experiments/run.py experiment=train
"""

import contextlib
import inspect
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import hydra
import torch
import torch.distributed as dist
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from experiments.output.results import results
from experiments.setup.commands import CONF, GIVEN, check, configured, own_model, single
from experiments.setup.models import head, published, spread
from experiments.setup.networks import Networks, find_trained
from zfnet import weights
from zfnet.data.preprocessing import Preprocessing, Stored
from zfnet.errors import InputError, first_line
from zfnet.graph import Graph
from zfnet.identity import difference, digest
from zfnet.training import processes, run_identity

PLACED = ("experiment", "model", "data", "++out")  # the folder's name says these
TRAINING = {"training": "train", "validation": "val"}  # uint8 images of these splits
LONGEST = 200  # bytes of a folder's name; file systems take 255
SHARED = ("train", "variant")  # experiments whose work several processes share


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
        phrases = {int: "a whole number", float: "a number", bool: "true or false", str: "a name", type(None): "null"}
        raise InputError(f"{name} is {value!r}; give {' or '.join(phrases.get(k, 'a list') for k in kinds)}")


def device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and processes()[1] > 1:
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"no device {name!r}: {first_line(error)}") from None
    return torch.device(name)


@contextlib.contextmanager
def torchrun(experiments: Sequence[str]) -> Iterator[None]:
    """Under torchrun, the group of its processes."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if not set(experiments) <= set(SHARED):
        raise InputError(f"torchrun is for experiment={' and '.join(SHARED)}; run {', '.join(experiments)} with python")
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def dataset(config: DictConfig, transform: Preprocessing | Stored, **more: Any) -> Any:
    """The configured data set, its images as the transform gives them."""
    settings = OmegaConf.masked_copy(config.data, [str(key) for key in config.data if key != "trained_on"])
    return made(settings)(transform, **more)


def called(config: DictConfig) -> str:
    """The model's name; of one's own, its class's."""
    name = config.hydra.runtime.choices.model
    return str(config.model.architecture._target_).rpartition(".")[2] if name == "own" else name


def find_layers(config: DictConfig) -> None:
    """Put in place of `auto` the layers that stand for the paper's, found in the network, where the experiment names
    them."""
    model, asked = config.model, OmegaConf.to_yaml(config.experiment)
    finders = {"layers": spread, "layer7": head}
    names = [name for name in finders if model.get(name) == "auto" and f"model.{name}" in asked]
    if names:
        graph, size = Graph(made(model.architecture)()), made(model.preprocessing).size
        model.update({name: finders[name](graph, size) for name in names})


def trained(config: DictConfig, words: Sequence[str]) -> Path:
    """The weights of the configured network, trained as configured: by an earlier run, or else now.

    They lie in outputs/train/<model>-<data>/, or beside it if a network that was trained otherwise is there.
    """
    choices = config.hydra.runtime.choices
    data = config.data.get("trained_on") or choices.data
    kinds = ["++model.architecture", "++model.preprocessing", "++train", "train=", "++device"]
    kinds += ["++data."] if data == choices.data else []
    words = [word for word in words if word.startswith(tuple(kinds))]
    words += ["experiment=train", f"model={choices.model}", f"data={data}"]
    files = trained_files(f"{called(config)}-{data}")
    path = files[0]
    try:
        settings = configured(words)
        parts = given(settings, words, ("model", *TRAINING))
        identity = run_identity(parts["model"], parts["training"], parts["validation"], made(settings.train))
    except InputError as error:
        if not path.exists():
            raise
        raise InputError(f"{error}; model.weights={path} takes the network that is there, however trained") from None
    if file := find_trained(files, identity):
        return file
    if not path.exists():
        reason = f"{path} is not there yet: training it first"
    else:
        before = weights.read_metadata(path).get("identity")
        changes = difference(before, identity) if before else "an older version did not record how"
        path = path.parent.with_name(f"{path.parent.name}-{digest(identity)[:8]}") / path.name
        reason = (
            f"{files[0]} was trained otherwise ({changes}): training {path} first; "
            f"model.weights={files[0]} takes the former"
        )
    print(reason, file=sys.stderr)
    run("train", [*words, f"++out={path.parent}"])
    return path


def trained_files(name: str) -> list[Path]:
    """Where experiment=train leaves the weights of <model>-<data>, and those that were trained otherwise."""
    folder = Path("outputs", "train")
    return [folder / name / "model.safetensors", *sorted(folder.glob(f"{name}-*/model.safetensors"))]


def count_classes(config: DictConfig) -> int | None:
    """How many classes the network's weights say they have, or, for random ones that must be told, the data."""
    count, classes = config.model.architecture.num_classes, None
    if config.model.weights and not published(config.model.weights):
        classes = weights.read_metadata(config.model.weights).get("classes")
    elif count is None:
        classes = dataset(config, made(config.model.preprocessing), split="val").classes
    if count is None and not classes:
        source = config.model.weights or f"data={config.hydra.runtime.choices.data}"
        raise InputError(f"{source} names no classes: give model.architecture.num_classes=")
    return len(classes) if classes else count


def network(config: DictConfig, words: Sequence[str]) -> nn.Module:
    """The configured network with its weights, on its device."""
    if config.model.weights == "trained":
        config.model.weights = str(trained(config, words))
    if "num_classes" in config.model.architecture:
        config.model.architecture.num_classes = count_classes(config)
    keys = ["_target_", "architecture", "weights", "preprocessing", "entry", "sha256", "seed"]
    settings = OmegaConf.masked_copy(config.model, keys)
    return made(settings, seed=config.seed).to(device(config.device))


def given(config: DictConfig, words: Sequence[str], names: Collection[str]) -> dict[str, Any]:
    """What an experiment's function is given, of these names: see `conf/` for the rest."""
    arguments: dict[str, Any] = {}
    if "networks" in names:  # from scratch
        config.model.weights = None
    if {"model", "networks"} & set(names):
        model = network(config, words)
        how: Preprocessing = model.preprocessing  # type: ignore[assignment]
        with open_dict(config):  # a file of weights brings its own
            config.model.preprocessing.update(how.settings)
        arguments["model"] = model
    if "data" in names:
        arguments["data"] = dataset(config, how)
    if {"training", "networks"} & set(names):
        stored = Stored(how, config.train.get("stored_size"))
        arguments |= {name: dataset(config, stored, split=split) for name, split in TRAINING.items()}
    if "networks" in names:
        choices = config.hydra.runtime.choices
        name = f"{called(config)}-{choices.data}"
        arguments["networks"] = Networks(
            Path("outputs", "networks", name),
            arguments["training"],
            arguments["validation"],
            how,
            also=trained_files(name),
            device=next(model.parameters()).device,
        )
    return {name: what for name, what in arguments.items() if name in names}


def run(experiment: str, words: Sequence[str], below: str | Path = "") -> Any:
    """Run one experiment as its words say, and return its result; it lies in the folder of results, or `below` it."""
    config = configured(words)
    if type(config.seed) is not int:
        raise InputError(f"seed is {config.seed!r}; give a whole number")
    main = get_object(config.experiment._target_)
    parameters = inspect.signature(main).parameters
    needed = {*parameters} | ({"data"} if {"training", "networks"} & {*parameters} else set())
    if {"model", "networks"} & needed and not OmegaConf.is_missing(config.model.architecture, "_target_"):
        find_layers(config)  # before anything reads them
    for key in sorted(OmegaConf.missing_keys(config)):
        group = key.partition(".")[0]
        if group in needed:
            raise InputError(f"{group}={config.hydra.runtime.choices[group]} needs {key}=...")
    choices = config.hydra.runtime.choices
    out = Path(config.out or Path("outputs", experiment, f"{called(config)}-{choices.data}"), below)
    with open_dict(config):  # the file beside the result says all settings
        for name, p in parameters.items():
            if name not in GIVEN and name not in config.experiment and p.default is not p.empty:
                config.experiment[name] = p.default
    settings: Any = OmegaConf.to_container(config.experiment, resolve=True)
    for name, hint in get_type_hints(main).items():
        if name in settings and not (isinstance(settings[name], dict) and "_target_" in settings[name]):
            check_type(name, settings[name], hint)
    # first: settings may name what it fills in, such as ${model.weights} and the number of classes
    arguments = given(config, words, parameters)
    result = made(config.experiment, _partial_=True)(out=out, **arguments)
    with results(out) as files:
        text = OmegaConf.to_yaml(
            OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]), resolve=True
        )
        (files / "config.yaml").write_text(text, encoding="utf-8")
    if processes()[0] == 0:
        random = config.model.weights is None and {"model", "data"} <= {*parameters} and "training" not in parameters
        print(f"{experiment}: {out}" + (", of random weights; model.weights=FILE gives others" if random else ""))
    return result


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def task(config: DictConfig) -> None:
    job = HydraConfig.get()
    words = list(job.overrides.task)
    swept = ""
    if job.mode == RunMode.MULTIRUN:  # each point in a folder of its own
        point = [w.removeprefix("++").removeprefix("experiment.") for w in words if w.split("=")[0] not in PLACED]
        swept = ",".join(point).replace("/", "_")
        if len(swept.encode()) > LONGEST:
            swept = f"{swept[: LONGEST // 4]}...{digest(swept)[:8]}"
    with in_one_line():
        experiments = single(configured(words), words)
        with torchrun([experiment for experiment, _ in experiments]):
            failed = 0
            for experiment, own_words in experiments:
                try:
                    run(experiment, own_words, Path(experiment if config.out and len(experiments) > 1 else "", swept))
                except InputError as error:
                    if len(experiments) == 1:
                        raise
                    failed += 1  # the others of a suite can still be drawn
                    print(f"run.py: {experiment}: {error}", file=sys.stderr)
            if failed:
                raise InputError(f"{failed} of {len(experiments)} experiments failed")


def command_line() -> None:
    # jobs that a launcher starts elsewhere import this, too
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")]))
    with in_one_line():
        sys.path.append(os.getcwd())  # where a network of one's own may lie
        sys.argv[1:] = own_model(sys.argv[1:])
        arguments = get_args_parser().parse_args()
        words = check(arguments.overrides)
        configured([word for word in words if word.startswith("hydra/")] if arguments.multirun else words)
        known = dict(zip(arguments.overrides, words, strict=True))
        sys.argv[1:] = [known.get(word, word) for word in sys.argv[1:]]
        task()


if __name__ == "__main__":
    command_line()
