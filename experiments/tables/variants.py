"""What Tables 2 and 3 share: networks that are changes of one, each trained from scratch unless it was before."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from torch import nn

from experiments.output.tables import percent
from experiments.setup.networks import Networks
from zfnet import InputError, ZFNet
from zfnet.model import variant
from zfnet.training import Recipe, error_rates

COLUMNS = {"train_top1": "train top-1", "validation_top1": "val top-1", "validation_top5": "val top-5"}


def train_each(
    runs: Sequence[tuple[str, int]],
    networks: Networks,
    architecture: partial[nn.Module],
    recipe: Recipe,
    progress: bool = True,
) -> Iterator[nn.Module]:
    """The networks (variant, seed) in turn, trained or read; seeds count from the recipe's."""
    if getattr(architecture, "func", None) is not ZFNet:
        raise InputError("the tables change ZFNet; give a model that it makes: model=zfnet_mini, zfnet, ...")
    for name, _ in runs:  # a network that cannot be changed is refused before hours of training
        variant(name, **architecture.keywords)
    for n, (name, seed) in enumerate(runs, 1):
        if progress:
            print(f"network {n} of {len(runs)}: {name}, seed {recipe.seed + seed}", file=sys.stderr)
        changed = partial(architecture, **variant(name, **architecture.keywords))
        yield networks.trained(name, changed, replace(recipe, seed=recipe.seed + seed)).model


def errors_of(model: nn.Module, networks: Networks) -> dict[str, float]:
    """A network's errors, %, on images as they are, by Table 3's columns."""
    rates = *error_rates(model, networks.training, top=(1,)), *error_rates(model, networks.validation, top=(1, 5))
    return dict(zip(COLUMNS, map(percent, rates), strict=True))


def departures(networks: Networks, recipe: Recipe, architecture: partial[nn.Module]) -> str:
    """What differs from the paper, in a sentence or two."""
    sizes = {"image_size": 224, "num_classes": 1000} | architecture.keywords
    images, checks = len(networks.training), len(networks.validation)
    return (
        f"What differs from the paper: {images:,} images of {sizes['image_size']} pixels and {sizes['num_classes']} "
        f"classes for {recipe.epochs} epochs, there 1.3 million of 224 pixels and 1000 classes for 70; {checks:,} "
        f"validation images, which tell an error of 30% to ± {100 * (0.21 / checks) ** 0.5:.1f}, there 50,000."
    )
