"""The objects of a configuration: the network, the images, and networks that are trained on them.

An experiment's YAML says which of these its function gets, as `model: ${model}`. Each is made once, when it is first
used. What the configuration leaves open is filled in: trained weights, the number of classes, the layers.
"""

import contextlib
import copy
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from experiments.setup.checks import by_number, check_folder
from experiments.setup.configuration import OBJECTS, check_experiment, check_groups, configured, key_of, refused
from experiments.setup.hints import Count, check
from zfnet import weights
from zfnet.data.preprocessing import Preprocessing, Stored
from zfnet.errors import InputError, first_line
from zfnet.identity import difference, digest

# what trained weights depend on, besides the data
OF_DATA = ("trained_on", "side", "published", "licence")  # settings of a data set that are no arguments of its function
TRAINING_KEYS = ("model.architecture", "model.preprocessing", "train", "training", "validation", "device", "trust")
OF_RUNS = ("model", "train", "seed", "device", "networks", "experiment.seeds", "experiment.fresh")  # trained before
OF_PUBLISHED = ("data.side", "data.trained_on", "model.sha256")  # what such weights have of their own
SHARED = ("train", "variant", "scan")  # experiments whose work several processes share


def made(settings: Any, *arguments: Any, **more: Any) -> Any:
    """The object that the configured function makes. Raises its InputError, or one for unknown arguments."""
    try:
        with refused():
            return instantiate(settings, *arguments, **more, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, TypeError) and "argument" in str(error.__cause__):
            raise InputError(first_line(error.__cause__)) from None
        if error.__cause__ is None or isinstance(error.__cause__, ImportError):  # not found, or not allowed
            raise InputError(" ".join(str(error).partition("\nfull_key")[0].split())) from None
        raise


def called(config: DictConfig) -> str:
    """The model's name in folder names; for your own network, the name of its class."""
    name = config.hydra.runtime.choices.model
    return str(config.model.architecture._target_).rpartition(".")[2] if name == "own" else name.replace("/", "-")


class Objects:
    """The objects of one configuration.

    Args:
        config: what `configured` made of the words; it is completed in place.
        words: of the command line, of which those about training are handed to it.
        run: runs an experiment by its name and words: trains a network that is not there yet.
    """

    def __init__(self, config: DictConfig, words: Sequence[str], run: Callable[..., Any]):
        self.config, self.words, self._run = config, words, run
        self._found = False  # whether the weights were found, or trained
        experiment = OmegaConf.to_yaml(config.experiment)
        self.asked = {name for name in OBJECTS if f"${{{name}}}" in experiment}
        groups = set(re.findall(r"\$\{(\w+)", experiment))
        if self.asked - {"model"}:  # all others are made of both
            groups |= {"model", "data"}
        choices = config.hydra.runtime.choices
        for key in sorted(OmegaConf.missing_keys(config)):
            if (group := key.partition(".")[0]) in groups | {"experiment"}:
                raise InputError(f"{group}={choices[group]} needs {key.removeprefix('experiment.')}=...")
        self.device = device(config.device)
        check_folder(config.out)
        if "model" in groups:
            self._find_size(words)
        named = {key_of(word).partition(".")[0] for word in words if "." in key_of(word)}
        check_groups(config, [group for group in ("model", "data", "train") if group in groups | named])
        for part in [config.train] * ("train" in groups | named) + [config.model.preprocessing] * ("model" in groups):
            made(part)  # and so checked
        if not OmegaConf.is_missing(config.model.architecture, "_target_"):
            self._find_layers(experiment)
        check_experiment(self.settings()["experiment"], self.asked)
        self._check_weights(words)
        self.name = f"{called(config)}-{choices.data}"

    def experiment(self, out: Path) -> Any:
        """Run the experiment's function; its result is in the folder `out`."""
        arguments = {name: getattr(self, name) for name in OBJECTS if name in self.asked}
        settings = self.settings()["experiment"]  # now: they may name what objects filled in, as ${model.weights}
        settings = {name: value for name, value in settings.items() if name not in arguments}
        return made(settings, _partial_=True)(out=out, **arguments)

    def settings(self) -> Any:
        """The completed configuration as a mapping; an object of the experiment is a reference to its group."""
        config = copy.deepcopy(self.config)
        with refused(), open_dict(config):
            del config.hydra
            for name in self.asked:
                config.experiment[name] = None
            settings: Any = OmegaConf.to_container(config, resolve=True)
        settings["experiment"] |= {name: f"${{{name}}}" for name in sorted(self.asked)}
        return settings

    def folder(self, experiment: str) -> Path:
        """The folder of the result: `out`, or outputs/<experiment>/<model>-<data>.

        A network that was trained with other settings is not overwritten: the training gets a folder beside it.
        """
        if self.config.out:
            return Path(self.config.out).expanduser()
        if self.config.experiment.get("check"):
            experiment = f"{experiment}-check"  # of a folder that another run made, which is left as it is
        folder = Path("outputs", experiment, self.name)
        if experiment == "train" and (folder / "model.safetensors").exists():
            identity = self.identity
            if weights.read_metadata(folder / "model.safetensors").get("identity") != identity:
                folder = folder.with_name(f"{folder.name}-{digest(identity)[:8]}")
                print(
                    f"{self.name} was trained with other settings and is kept: this training is in {folder}",
                    file=sys.stderr,
                )
        return folder

    @property
    def origin(self) -> str:
        """For the last line: the source of the network's weights."""
        if not {"model", "data"} <= self.asked:
            return ""
        if self.config.model.weights is None:
            return ", with random weights; model.weights=FILE loads others"
        return f", of {self.config.model.weights}" if self._found else ""

    @property
    def fresh(self) -> bool:
        """Whether to ignore the state of an interrupted run."""
        return bool(self.config.experiment.get("fresh"))

    @property
    def identity(self) -> Any:
        """Of the training that the configuration asks for."""
        from zfnet.training import run_identity

        return run_identity(self.model, self.training, self.validation, made(self.config.train))

    @cached_property
    def model(self) -> nn.Module:
        """The network with its weights, on its device."""
        model = self.config.model
        if model.weights == "trained":
            model.weights, self._found = str(self.trained()), True
        if "num_classes" in model.architecture:
            model.architecture.num_classes = self._count_classes()
        keys = ["_target_", "architecture", "weights", "preprocessing", "entry", "sha256", "seed"]
        network: nn.Module = made(OmegaConf.masked_copy(model, keys), seed=self.config.seed, **self._published())
        with open_dict(self.config):  # a file of weights brings its own
            model.preprocessing.update(network.preprocessing.settings)  # type: ignore[union-attr, operator]
        return network.to(self.device)

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing.of(self.model)

    @cached_property
    def data(self) -> Any:
        """The images as the network sees them."""
        return self._dataset(self.preprocessing)

    @cached_property
    def training(self) -> Any:
        """The images to train on, as bytes."""
        return self._stored(self.config.training)

    @cached_property
    def validation(self) -> Any:
        """The images to measure training by, as bytes."""
        return self._stored(self.config.validation)

    @cached_property
    def networks(self) -> Any:
        """Networks that are trained on these images, each once."""
        from experiments.setup.networks import Networks

        return Networks(
            Path(self.config.networks, self.name),
            *(self.training, self.validation, self.preprocessing),
            also=self._trained_files(self.name),
            device=self.device,
            fresh=self.fresh,
        )

    @property
    def scans(self) -> Path:
        """The folder of the scans that are kept of this network and these images."""
        return Path(self.config.scans, self.name).expanduser()

    def trained(self) -> Path:
        """The weights of the network, trained as configured by an earlier run, or else now.

        They are in outputs/train/<model>-<data>/, or beside it if that has a network with other settings.
        """
        choices = self.config.hydra.runtime.choices
        data = self.config.data.get("trained_on") or choices.data
        kinds = (*TRAINING_KEYS, "data") if data == choices.data else TRAINING_KEYS
        words = [word for word in self.words if any(f"{key_of(word)}.".startswith(f"{kind}.") for kind in kinds)]
        words = [word for word in words if key_of(word) not in ("data", "data.split")]
        words += ["experiment=train", f"model={choices.model}", f"data={data}"]
        files = self._trained_files(f"{called(self.config)}-{data}")
        path = files[0]
        try:
            identity = Objects(configured(words), words, self._run).identity
        except InputError as error:
            if not path.exists():
                raise
            advice = f"model.weights={path} uses the existing network, however it was trained"
            raise InputError(f"{error}; {advice}") from None
        from experiments.setup.networks import find_trained

        if file := find_trained(files, identity):
            return file
        if not path.exists():
            reason = f"{path} does not exist yet: training it first"
        else:
            before = weights.read_metadata(path).get("identity")
            changes = difference(before, identity) if before else "an older version did not record how"
            path = path.parent.with_name(f"{path.parent.name}-{digest(identity)[:8]}") / path.name
            advice = f"model.weights={files[0]} uses the former"
            reason = f"{files[0]} was trained with other settings ({changes}): training {path} first; {advice}"
        if self.fresh:
            words.append("++experiment.fresh=true")
        self._check_before_training()
        print(reason, file=sys.stderr)
        words.append(f"++out={path.parent}")
        self._run("train", words)
        return path

    @staticmethod
    def _trained_files(name: str) -> list[Path]:
        """The files of experiment=train for <model>-<data>, and those of other settings."""
        folder = Path("outputs", "train")
        return [folder / name / "model.safetensors", *sorted(folder.glob(f"{name}-*/model.safetensors"))]

    def _dataset(self, transform: Preprocessing | Stored, **more: Any) -> Any:
        data = self.config.data
        settings = OmegaConf.masked_copy(data, [str(key) for key in data if key not in OF_DATA])
        return made(settings)(transform, **more)

    def _stored(self, split: str) -> Any:
        return self._dataset(Stored(self.preprocessing, self.config.train.get("stored_size")), split=split)

    def _published(self) -> dict[str, str]:
        """The file of weights that comes with the sources, and its checksum; {} if other weights are configured."""
        if self.config.model.weights != "published":
            return {}
        from experiments.setup.published import find

        return find(called(self.config), self.config.data.get("published"))

    def _check_weights(self, words: Sequence[str]) -> None:
        """Raises InputError for weights without effect, and for settings of training of a network that is trained
        already.

        Training begins with random weights: the `trained` weights of a suite are for its other experiments.
        """
        model = self.config.model
        if self._from_scratch:
            if model.weights not in (None, "trained", "published"):
                raise InputError("these networks are trained from scratch: leave out model.weights")
            model.weights = None
        trained = [key for key in map(key_of, words) if key.split(".")[0] in OF_RUNS or key in OF_RUNS]
        if trained and self.config.experiment.get("runs") is not None:
            name = trained[0].removeprefix("experiment.")
            raise InputError(
                f"{name} has no effect on runs, which are trained already: leave it out, or leave out runs"
            )
        kinds = [*(kind for kind in TRAINING_KEYS if kind not in ("device", "trust")), *OF_PUBLISHED]
        keys = [key for key in map(key_of, words) if any(f"{key}.".startswith(f"{kind}.") for kind in kinds)]
        if keys and model.weights == "published" and "model" in self.asked:
            reason = f"{keys[0]} has no effect on the published network, which is trained already"
            raise InputError(f"{reason}: give model.weights=trained")

    def _metadata(self) -> dict[str, Any]:
        """The metadata of the file of weights; {} if there is no such file yet."""
        from experiments.setup.models import published

        file = self._published().get("weights") or self.config.model.weights
        return {} if file in (None, "trained") or published(file) else weights.read_metadata(file)

    @property
    def _from_scratch(self) -> bool:
        """Whether the experiment trains its own networks, and uses no other."""
        return "networks" in self.asked and "model" not in self.asked

    def _find_size(self, words: Sequence[str]) -> None:
        """Fill in the size of images that the architecture leaves open: that of the weights' or else of the data.

        InputError for `data.side` where the size is known without it.
        """
        model, data = self.config.model, self.config.data
        if not isinstance(model, DictConfig):
            return
        fixed = model.get("architecture", {}).get("image_size", 0) is not None
        size = None if fixed or self._from_scratch else self._metadata().get("preprocessing", {}).get("size")
        useless = (fixed or size is not None) and model.get("weights") != "published" and self.asked - {"model"}
        if useless and "data.side" in map(key_of, words):
            has = "weights have their" if size is not None else "architecture has its"
            raise InputError(f"data.side has no effect: the network's {has} own size; leave it out")
        if fixed:
            return
        if size is None:
            size = data.side if "side" in data else configured([f"data={data.trained_on}"]).data.side
            check({"side": size}, {"side": Count}, "data.")
        model.architecture.image_size = size

    def _find_layers(self, experiment: str) -> None:
        """Replace `auto` by the layers that stand for the paper's, if the experiment names them."""
        model = self.config.model
        names = [name for name in ("layers", "layer7") if model.get(name) == "auto"]
        if "${layer:" not in experiment:
            names = [name for name in names if f"model.{name}" in experiment]
        if names:
            from experiments.setup.models import network_of
            from zfnet.graph import Graph
            from zfnet.layers import head, spread

            graph, size = Graph(network_of(made(model.architecture))), made(model.preprocessing).size
            finders = {"layers": spread, "layer7": head}
            try:
                model.update({name: finders[name](graph, size) for name in names})
            except InputError as error:
                advice = "on the command line: model.layers=[...]; experiment=units lists them"
                raise InputError(f"{error}; {advice}") from None

    def _check_before_training(self) -> None:
        """Raises InputError now for settings that would otherwise fail only after training."""
        from experiments.setup.models import network_of
        from zfnet.graph import Graph

        settings = self.settings()["experiment"]
        transform = made(self.config.model.preprocessing)
        if "data" in self.asked:
            images, k = len(self._dataset(transform)), settings.get("k")
            if settings.get("distinct") and k > images:
                raise InputError(f"the data has {images} images, fewer than k={k}; lower k, or give distinct=false")
        named = settings.get("layers", [settings.get("layer")])
        layers = [] if isinstance(named, str) else [layer for layer in named if layer]  # "all" is found in any network
        grids = settings.get("grids")
        if grids and len(grids) != len(layers):
            raise InputError(f"{len(layers)} layers and {len(grids)} grids; give one, [rows, columns], for each layer")
        architecture = self.config.model.architecture
        classes = {"num_classes": 2} if architecture.get("num_classes", 2) is None else {}
        graph = Graph(network_of(partial(made(architecture), **classes)))
        shapes = graph.shapes(transform.size, graph.output) if layers else {}
        for layer in layers:
            if (node := graph.node(layer)) in shapes:
                by_number(layer, shapes[node][1], settings.get("choose", "random"))
                by_number(layer, shapes[node][1], [settings["map"]] if type(settings.get("map")) is int else [])

    def _count_classes(self) -> int | None:
        """How many classes the weights say they have, or, for random ones that must be told, the data."""
        from experiments.setup.models import published

        model, classes = self.config.model, None
        if model.weights and not published(model.weights):
            classes = self._metadata().get("classes")
        elif model.architecture.num_classes is None:
            classes = self._dataset(made(model.preprocessing), split="val").classes
        if model.architecture.num_classes is None and not classes:
            source = model.weights or f"data={self.config.hydra.runtime.choices.data}"
            raise InputError(f"{source} names no classes: give model.architecture.num_classes=")
        return len(classes) if classes else model.architecture.num_classes


def device(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU if there is one, under torchrun that of this process."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        torch.zeros(1, device=name).cpu()  # "meta" holds no numbers
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(f"no device {name!r}: {first_line(error)}; give cpu, cuda or auto") from None
    return torch.device(name)


@contextlib.contextmanager
def distributed(experiments: Sequence[str]) -> Iterator[None]:
    """Under torchrun, the group of its processes."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if not set(experiments) <= set(SHARED):
        known = f"{', '.join(SHARED[:-1])} and {SHARED[-1]}"
        raise InputError(f"torchrun is for experiment={known}; run {', '.join(experiments)} with python")
    try:
        # parts of a scan may end at different times; training hangs in a step that takes longer than torch allows
        patience = timedelta(days=7) if set(experiments) == {"scan"} else None
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=patience)
    except ValueError as error:  # such as WORLD_SIZE without what torchrun sets beside it
        raise InputError(f"{first_line(error)}; start several processes by torchrun") from None
    try:
        yield
    finally:
        dist.destroy_process_group()
