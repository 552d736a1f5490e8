"""From `conf/model/*.yaml`, or the name of a classifier of torchvision's or timm's, to a network ready for photographs.

The layers that stand for the paper's are listed there, or found in the traced graph (`auto`).
"""

import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from zfnet import weights as files
from zfnet.data.preprocessing import Preprocessing, Size
from zfnet.errors import InputError, first_line, unknown_name

SETTINGS: dict[str, dict[str, Any]] = {  # transform_input: as the published weights need
    "googlenet": {"transform_input": True, "init_weights": True},
    "inception_v3": {"transform_input": True, "init_weights": True},
}


def zoo() -> Any:
    """The module `torchvision.models`, whose import takes a second."""
    from torchvision import models

    return models


def classifiers() -> list[str]:
    """The names of torchvision's classifiers."""
    names: list[str] = zoo().list_models(module=zoo())
    return names


def architecture(name: str, **settings: Any) -> Callable[..., nn.Module]:
    """The function that makes one of torchvision's classifiers, by default with random weights."""
    return partial(getattr(zoo(), name), **(SETTINGS.get(name, {}) | settings))


def settings_of(name: str) -> dict[str, Any] | None:
    """The configuration of a classifier of torchvision, or of timm (timm/NAME); None for any other name."""
    if name.startswith("timm/"):
        known, preprocessing = _timms(name[5:])
        target = {"_target_": "timm.create_model", "model_name": name[5:], "num_classes": known["num_classes"]}
        return _settings(target, preprocessing)
    if name not in classifiers():
        return None
    target = {"_target_": f"torchvision.models.{name}", "num_classes": 1000, **SETTINGS.get(name, {})}
    return _settings(target, _torchvisions(zoo().get_model_weights(name).DEFAULT))


def _settings(target: Mapping[str, Any], preprocessing: Preprocessing) -> dict[str, Any]:
    how = {name: list(v) if isinstance(v, tuple) else v for name, v in preprocessing.settings.items()}
    return {
        "_target_": "experiments.setup.models.build",
        "architecture": {**target, "_partial_": True},
        "weights": None,
        "preprocessing": {"_target_": "zfnet.data.preprocessing.Preprocessing", **how},
        "layers": "auto",
        "layer7": "auto",
    }


def build(
    architecture: Callable[..., nn.Module],
    *,
    weights: str | Path | None = None,
    preprocessing: Preprocessing | None = None,
    entry: str | None = None,
    sha256: str | None = None,
    seed: int = 0,
) -> nn.Module:
    """A network by the function that makes it, with published weights, those of a file, or random ones.

    Args:
        architecture: makes the network.
        weights: null: random; DEFAULT, or another of torchvision's names for the weights it publishes: downloaded,
            with the preprocessing they were trained with; PACKAGE: those of an installed package; else a file.
        preprocessing: for random weights, and for files without their own preprocessing.
        entry: of a file: see `zfnet.weights.load`.
        sha256: of a file: see `zfnet.weights.load`.
        seed: of random weights.
    Raises InputError if the weights do not exist or belong to another architecture.
    """
    theirs = None
    if weights == "PACKAGE":
        weights = _packaged(architecture)
    elif published(weights):
        theirs = _published(architecture, str(weights))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = network_of(architecture, theirs)
    if theirs or weights is None:
        (theirs.preprocessing if theirs else preprocessing or Preprocessing()).attach(model)
    else:
        files.load(model, weights, default_preprocessing=preprocessing, entry=entry, sha256=sha256)
        model.class_names = files.read_metadata(weights).get("classes", [])  # type: ignore[assignment]
        if preprocessing is not None and model.preprocessing is preprocessing:  # the file has none of its own
            print(
                f"{weights} does not say how its images were prepared; taken: {preprocessing.to_json()}; "
                "model.preprocessing.NAME=... changes it",
                file=sys.stderr,
            )
    arguments = getattr(architecture, "keywords", {})
    its_own = any(arguments.get(name) for name in ("weights", "pretrained"))  # which torchvision's and timm's load
    model.random_weights = weights is None and not its_own  # type: ignore[assignment]
    return model.eval()


def published(weights: str | Path | None) -> bool:
    """Whether it is a name of published weights, such as DEFAULT, and not a file."""
    name = str(weights or "")
    return name.isidentifier() and name == name.upper() and not os.path.exists(name)


class _Published(NamedTuple):
    name: str
    arguments: dict[str, Any]  # with which the architecture loads them
    preprocessing: Preprocessing


def _published(architecture: Callable[..., nn.Module], weights: str) -> _Published:
    """The weights of that name for what `architecture` makes."""
    make, settings = _function(architecture), getattr(architecture, "keywords", {})
    name = getattr(make, "__name__", str(make))
    if getattr(make, "__module__", "").startswith("timm."):
        name = settings["model_name"]
        known, preprocessing = _timms(name)
        if weights != "DEFAULT" or not (known.get("url") or known.get("hf_hub_id")):
            raise InputError(f"timm publishes no weights {weights} of {name}; give a file, or DEFAULT of another name")
        if (classes := settings.get("num_classes", known["num_classes"])) != known["num_classes"]:
            raise InputError(f"timm's weights of {name} are for {known['num_classes']} classes, not {classes}")
        return _Published(f"timm's {name}", {"pretrained": True}, preprocessing)
    if name not in classifiers() or getattr(zoo(), name) is not make:
        raise InputError(f"torchvision publishes no weights {weights} of {name}; give a file")
    choices = zoo().get_model_weights(name)
    if weights not in choices.__members__:
        raise unknown_name(f"weights of {name}", weights, choices.__members__)
    return _Published(str(choices[weights]), {"weights": choices[weights]}, _torchvisions(choices[weights]))


def _packaged(architecture: Callable[..., nn.Module]) -> Path:
    """The file of weights that a package brings for what `architecture` makes."""
    make = _function(architecture)
    if not hasattr(make, "packaged"):
        raise InputError(f"no package brings weights of {getattr(make, '__name__', make)}; give a file")
    file: Path = make.packaged()
    return file


def _function(architecture: Callable[..., nn.Module]) -> Any:
    return architecture.func if isinstance(architecture, partial) else architecture


def network_of(architecture: Callable[..., nn.Module], theirs: _Published | None = None) -> nn.Module:
    """The network. Raises InputError for any error of its function."""
    name, arguments = (theirs.name, theirs.arguments) if theirs else ("the network", {})
    try:
        return architecture(**arguments)
    except OSError as error:  # the cache cannot be written, or there is no connection
        raise InputError(
            f"cannot download {name} ({first_line(error)}); give a file, model.weights=FILE, or run this once "
            "where there is a connection"
        ) from None
    except InputError:
        raise
    except Exception as error:  # whatever its constructor raises for such settings
        line = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if "hydra" in line.filename else f" ({Path(line.filename).name}, line {line.lineno})"
        raise InputError(f"{name} cannot be made: {type(error).__name__}: {first_line(error)}{where}") from error


def _torchvisions(published: Any) -> Preprocessing:
    """torchvision's preprocessing for these weights."""
    how = published.transforms()
    return Preprocessing(
        size=how.crop_size[0],
        resize=how.resize_size[0],
        interpolation=how.interpolation.value,
        mean=tuple(how.mean),
        std=tuple(how.std),
    )


def _timms(name: str) -> tuple[dict[str, Any], Preprocessing]:
    """timm's metadata of a model, and its preprocessing."""
    try:
        import timm
        from timm.data import resolve_data_config
    except ImportError:
        raise InputError("model=timm/NAME needs timm: pip install timm") from None
    if not timm.is_model(name) or ("." in name and name not in timm.list_pretrained()):
        raise unknown_name("model of timm's", name, [*timm.list_models(), *timm.list_pretrained()])
    known = timm.get_pretrained_cfg(name)
    settings = known.to_dict() if known else {"num_classes": 1000}
    how = resolve_data_config(pretrained_cfg=settings)
    size: Size = how["input_size"][1:]
    preprocessing = Preprocessing(
        size=size,
        resize=math.floor(min(size) / how["crop_pct"]),
        interpolation=how["interpolation"],
        mode={"center": "shortest", "squash": "warp"}.get(how["crop_mode"], how["crop_mode"]),  # type: ignore[arg-type]
        mean=how["mean"],
        std=how["std"],
    )
    return settings, preprocessing
