"""Shared by Tables 2 and 3: variants of one network, each trained from scratch if it does not exist."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn
from torch.utils.data import TensorDataset

from experiments.output.tables import percent
from experiments.setup.networks import Networks, Trained
from zfnet import InputError, ZFNet
from zfnet.data.images import as_images
from zfnet.identity import digest
from zfnet.model import MAPS, variant
from zfnet.training import Recipe, error_rates

COLUMNS = {"train_top1": "train top-1", "validation_top1": "val top-1", "validation_top5": "val top-5"}
PAPERS = {  # the training of section 3, or of train=paper where the paper says nothing; other settings are departures
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "momentum": 0.9,
    "batch_size": 128,
    "schedule": "plateau",
    "dropout": 0.5,
    "init": "paper",
    "flip": True,
    "pixel_mean": True,
    "max_filter_rms": 0.1,
    "weight_decay": 0.0,
    "stored_size": 256,
    "max_shift": 0,
    "precision": "float32",  # train=paper: auto
}


def train_each(
    runs: Sequence[tuple[str, int]],
    networks: Networks,
    architecture: partial[nn.Module],
    recipe: Recipe,
    progress: bool = True,
) -> Iterator[Trained]:
    """The networks (variant, seed) in turn, trained or read; seeds count from the recipe's."""
    if getattr(architecture, "func", None) is not ZFNet:
        raise InputError("the tables change ZFNet; give a model that it makes: model=zfnet_small, zfnet, ...")
    for name, _ in runs:  # a network that cannot be changed is refused before hours of training
        variant(name, **architecture.keywords)
    for n, (name, seed) in enumerate(runs, 1):
        if progress:
            print(f"network {n} of {len(runs)}: {name}, seed {recipe.seed + seed}", file=sys.stderr)
        changed = partial(architecture, **variant(name, **architecture.keywords))
        yield networks.trained(name, changed, replace(recipe, seed=recipe.seed + seed))


def measurements(trained: Trained, networks: Networks) -> dict[str, Any]:
    """The measurements of one network: errors, %, on unaugmented images, by Table 3's columns; parameters; history."""
    model = trained.model
    rates = *error_rates(model, networks.training, top=(1,)), *error_rates(model, networks.validation, top=(1, 5))
    error = dict(zip(COLUMNS, map(percent, rates), strict=True))
    return {"error": error, "parameters": sum(p.numel() for p in model.parameters()), "history": trained.history}


def contents(data: Any) -> str:
    """A digest of images and labels, in any folder; if they do not fit in memory, of the labels alone."""
    return digest(*data.tensors) if isinstance(data, TensorDataset) else digest(as_images(data).labels)


def departures(settings: Mapping[str, Any]) -> str:
    """The differences from the paper, in a sentence or two.

    Args:
        settings: of the result: `architecture`, `recipe`, and the numbers of `images` and `validation_images`.
    """
    architecture = {"image_size": 224, "num_classes": 1000, "dropout": 0.5, "init": "paper"} | settings["architecture"]
    recipe = architecture | settings["recipe"]
    if recipe["precision"] == "auto":
        recipe["precision"] = "auto (half on a GPU, float32 elsewhere)"
    changes = [f"{name} {recipe[name]} for {paper}" for name, paper in PAPERS.items() if recipe[name] != paper]
    if tuple(architecture.get("maps", MAPS)) != MAPS:
        changes = ["narrower networks", *changes]
    checks = settings["validation_images"]
    return (
        f"What differs from the paper: {settings['images']:,} images of {architecture['image_size']} pixels and "
        f"{architecture['num_classes']} classes for {recipe['epochs']} epochs, there 1.3 million of 224 pixels and "
        f"1000 classes for 70; {', '.join(changes) or 'otherwise the recipe of its section 3'}; "
        f"{checks:,} validation images, there 50,000. An error of 50% on {checks:,} images has a standard error of "
        f"{100 * (0.25 / checks) ** 0.5:.1f}."
    )
