"""Variants of one network, as Tables 2 and 3 train them; layers 6 and 7 of one differ in width, to tell them apart."""

from dataclasses import asdict, replace
from functools import partial

import pytest
from torchvision.models import alexnet

from experiments.setup.configuration import configured
from experiments.tables.variants import PAPERS, departures, train_each
from tests.stand_ins import ARCHITECTURE, RECIPE, TINY, Networks
from zfnet import InputError, ZFNet
from zfnet.model import variant
from zfnet.training import Recipe


@pytest.mark.parametrize(
    ("name", "hidden", "layers"),
    [
        ("krizhevsky without layer 7", (8,), ["fc6", "fc8"]),
        ("krizhevsky without layers 6, 7", (), ["fc8"]),
        ("fig3 fc 2048", (4, 3), ["fc6", "fc7", "fc8"]),
        ("fig3 fc 8192", (16, 12), ["fc6", "fc7", "fc8"]),
    ],
)
def test_a_variant_changes_the_layers_that_it_names(name: str, hidden: tuple[int, ...], layers: list[str]) -> None:
    changed = variant(name, maps=(3, 4, 5, 5, 4), hidden=(8, 6), image_size=64, num_classes=3)
    assert changed["hidden"] == hidden
    model = ZFNet(**changed)
    assert [layer for layer, _ in model.named_children() if layer.startswith("fc")] == layers
    assert [model.get_submodule(layer).out_features for layer in layers] == [*hidden, 3]


def test_it_is_said_which_network_of_how_many_is_trained(capsys):
    runs = [("krizhevsky", 0), ("fig3", 0), ("fig3 512-1024-512", 2)]
    networks = Networks()
    models = [model for model, _ in train_each(runs, networks, ARCHITECTURE, RECIPE)]
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("network")] == [
        "network 1 of 3: krizhevsky, seed 7",
        "network 2 of 3: fig3, seed 7",
        "network 3 of 3: fig3 512-1024-512, seed 9",
    ]
    assert models == list(networks.made.values())
    assert models[2].conv4.out_channels > models[1].conv4.out_channels


def test_networks_that_cannot_be_changed_are_refused_before_training():
    networks = Networks()
    with pytest.raises(InputError, match="the tables change ZFNet"):
        next(train_each([("fig3", 0)], networks, partial(alexnet), RECIPE))
    with pytest.raises(InputError, match="no variant 'fig33'"):
        next(train_each([("fig3", 0), ("fig33", 0)], networks, ARCHITECTURE, RECIPE))
    assert not networks.asked


SETTINGS = {"architecture": TINY, "recipe": asdict(RECIPE), "images": 24, "validation_images": 12}


def test_departures_say_how_far_an_error_can_be_told():
    words = departures(SETTINGS)
    assert "24 images of 64 pixels and 6 classes for 1 epochs" in words
    assert "12 validation images" in words and "has a standard error of 14.4" in words  # 100 * (0.5 * 0.5 / 12) ** 0.5


def test_departures_name_what_is_not_the_papers():
    recipe = Recipe(schedule="plateau", pixel_mean=True, stored_size=256, precision="float32")
    paper = {"architecture": {}, "recipe": asdict(recipe)}
    assert "otherwise the recipe of its section 3" in departures(SETTINGS | paper)
    words = departures(SETTINGS)
    assert "for 70; narrower networks, batch_size 8 for 128, schedule constant for plateau, init he for paper" in words
    other = {"architecture": {}, "recipe": asdict(replace(recipe, optimizer="adam", precision="auto"))}
    changes = "optimizer adam for sgd, precision auto (half on a GPU, float32 elsewhere) for float32"
    assert f"for 70; {changes}; 12 validation images" in departures(SETTINGS | other)


def test_papers_values_are_those_of_its_configuration():
    config = configured(["train=paper", "model=zfnet"])
    told = {**config.model.architecture, **config.train}
    defaults = {"dropout": 0.5, "init": "paper"}  # of ZFNet
    assert {name: told.get(name, defaults.get(name)) for name in PAPERS} == PAPERS | {"precision": "auto"}
