"""From `conf/model/*.yaml`, or the name of one of torchvision's classifiers, to a network with its preprocessing.

Which of its layers stand for the paper's is said there, or found in the traced graph (`auto`).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import nn
from torchvision import models

from zfnet import weights as files
from zfnet.checks import pair
from zfnet.data.preprocessing import Preprocessing, Size
from zfnet.errors import InputError, first_line, unknown_name
from zfnet.graph import Graph

CLASSIFIERS = tuple(models.list_models(module=models))
SETTINGS: dict[str, dict[str, Any]] = {  # transform_input: as the published weights need
    "googlenet": {"transform_input": True, "init_weights": True},
    "inception_v3": {"transform_input": True, "init_weights": True},
}
DEPTHS = 5  # the paper's layers 1 to 5
JOINTS = ("relu", "relu6", "add", "cat")  # operations, in lower case, that end a part of a network


def architecture(name: str, **settings: Any) -> Callable[..., nn.Module]:
    """What makes one of torchvision's classifiers, with random weights unless it is told otherwise."""
    return partial(getattr(models, name), **(SETTINGS.get(name, {}) | settings))


def settings_of(name: str) -> dict[str, Any] | None:
    """What `conf/model` would say of one of torchvision's classifiers; None for any other name."""
    if name not in CLASSIFIERS:
        return None
    settings = _preprocessing(models.get_model_weights(name).DEFAULT).settings
    return {
        "_target_": "experiments.setup.models.build",
        "architecture": {
            "_target_": f"torchvision.models.{name}",
            "_partial_": True,
            "num_classes": 1000,
            **SETTINGS.get(name, {}),
        },
        "weights": None,
        "preprocessing": {
            "_target_": "zfnet.data.preprocessing.Preprocessing",
            **settings,
            "mean": list(settings["mean"]),
            "std": list(settings["std"]),
        },
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
        weights: None: random; DEFAULT, or another of torchvision's names for the weights it publishes: downloaded into
            its cache, with the preprocessing they were trained with; else a file.
        preprocessing: for random weights and for files that do not say how their photographs were prepared.
        entry, sha256: of a file: see `zfnet.weights.load`.
        seed: of random weights.

    Raises:
        InputError: the weights are not there or are another architecture's.
    """
    theirs = _published(architecture, str(weights)) if published(weights) else None
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        try:
            model = architecture(weights=theirs) if theirs else architecture()
        except (URLError, OSError) as error:  # its cache cannot be written, or it cannot be reached
            raise InputError(
                f"cannot download {theirs} ({first_line(error)}); give a file, model.weights=FILE, or run this once "
                "where there is a connection"
            ) from None
        except ValueError as error:
            raise InputError(f"{theirs or 'the network'} does not fit: {first_line(error)}") from error
    if theirs:
        preprocessing = _preprocessing(theirs)
    if weights is not None and not theirs:
        files.load(model, weights, default_preprocessing=preprocessing, entry=entry, sha256=sha256)
    else:
        (preprocessing or Preprocessing()).attach(model)
    return model.eval()


def published(weights: str | Path | None) -> bool:
    """Whether it is a name that torchvision gives to weights, such as DEFAULT, and no file."""
    name = str(weights or "")
    return name.isidentifier() and name == name.upper() and not Path(name).exists()


def _published(architecture: Callable[..., nn.Module], name: str) -> Any:
    """Torchvision's weights of that name for what `architecture` makes."""
    make = architecture.func if isinstance(architecture, partial) else architecture
    if getattr(make, "__name__", "") not in CLASSIFIERS or getattr(models, make.__name__) is not make:
        raise InputError(f"torchvision publishes no weights {name} of {getattr(make, '__name__', make)}; give a file")
    choices = models.get_model_weights(make.__name__)
    if name not in choices.__members__:
        raise unknown_name(f"weights of {make.__name__}", name, choices.__members__)
    return choices[name]


def _preprocessing(published: Any) -> Preprocessing:
    """What torchvision says that photographs are to go through for these weights."""
    how = published.transforms()
    return Preprocessing(
        size=how.crop_size[0],
        resize=how.resize_size[0],
        interpolation=how.interpolation.value,
        mean=tuple(how.mean),
        std=tuple(how.std),
    )


def spread(graph: Graph, size: int | Size) -> list[str]:
    """Five layers that stand for the paper's 1 to 5, of a network for images of that size.

    They are taken from the steps that all of the image has to come through, ReLUs and what joins branches, and are
    the last of each size of map; where there are more sizes, evenly spread over these, and where there are fewer, the
    widest gaps are halved.
    """
    shapes = graph.shapes(pair(size), graph.output)
    path = [n for n in graph.path([graph.output]) if n in shapes]
    last = {n: max((i for i, reader in enumerate(path) if n in reader.all_input_nodes), default=0) for n in path}
    trunk, open_until, filtered = [], 0, False
    for position, node in enumerate(path):
        filtered = filtered or "conv" in graph.operation(node).lower()
        joins = graph.operation(node).lower() in JOINTS and len(shapes[node]) == 4 and max(shapes[node][2:]) > 1
        if open_until <= position and joins and filtered:
            trunk.append(node)
        open_until = max(open_until, last[node])
    if len(trunk) < DEPTHS:
        raise InputError(
            f"{type(graph.model).__name__} has {len(trunk)} layers that all of the image comes through, not {DEPTHS}: "
            "give model.layers=[...]; experiment=units lists what there is"
        )
    ends = [i for i, n in enumerate(trunk) if i + 1 == len(trunk) or shapes[n][2:] != shapes[trunk[i + 1]][2:]]
    if len(ends) > DEPTHS:
        ends = [ends[round(i * (len(ends) - 1) / (DEPTHS - 1))] for i in range(DEPTHS)]
    while len(ends) < DEPTHS:
        gaps = [(later - before, before) for before, later in zip([-1, *ends], ends, strict=False)]
        gap, before = max(gaps)
        ends = sorted([*ends, before + (gap + 1) // 2])
    return [graph.names[trunk[i]] for i in ends]


def head(graph: Graph, size: int | Size) -> str:
    """The layer that stands for the paper's 7: the last before the classifier."""
    shapes = graph.shapes(pair(size), graph.output)
    path = [n for n in graph.path([graph.output]) if n in shapes]
    heads = [n for n in path if len(shapes[n]) == 2 and "linear" not in graph.operation(n).lower()]
    heads = [n for n in heads if "dropout" not in graph.operation(n).lower()]
    return graph.names[(heads or path)[-1]]
