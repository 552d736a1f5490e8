"""A trained network is found by the identity of its training; if anything else was asked for, it is trained."""

import functools
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from experiments import train
from experiments.run import run
from experiments.setup.commands import spelled
from experiments.setup.configuration import configured
from experiments.setup.models import build
from experiments.setup.networks import Networks
from experiments.setup.objects import Objects
from zfnet import InputError, ZFNet, weights
from zfnet.data.preprocessing import Preprocessing
from zfnet.training import Recipe

SMALL = functools.partial(ZFNet, 16, maps=(4, 4, 4, 4, 4), hidden=(4,), image_size=64, init="he")
HOW = Preprocessing(size=64, resize=64)
RECIPE = Recipe(epochs=1, batch_size=4)


def images(count: int, pixel: int = 0, label: int = 0) -> TensorDataset:
    """Random bytes and labels; the last pixel and label changed by this much."""
    generator = torch.Generator().manual_seed(count)
    data = torch.randint(256, (count, 3, 64, 64), dtype=torch.uint8, generator=generator)
    data[-1, -1, -1, -1] += pixel
    return TensorDataset(data, (torch.arange(count) + label * (torch.arange(count) == count - 1)) % 16)


def networks(folder: Path, training=None, validation=None, preprocessing=HOW, **settings) -> Networks:
    return Networks(folder, training or images(8), validation or images(6), preprocessing, progress=False, **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where one network was trained."""
    folder = tmp_path_factory.mktemp("networks")
    model, history = networks(folder).trained("small", SMALL, RECIPE)
    assert model.preprocessing == HOW and len(history) == 1 and not model.training
    return folder


def test_a_damaged_network_is_named_and_not_trained_in_silence(folder, untrained, tmp_path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (path,) = tmp_path.rglob("model.safetensors")
    whole = path.read_bytes()
    for place in (3, 8, 20, 300, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError, match=rf"{re.escape(str(path))}.*; delete it to train again$") as caught:
            networks(tmp_path).trained("small", SMALL, RECIPE)
        assert "\n" not in str(caught.value)


@pytest.fixture
def untrained(monkeypatch) -> None:
    """Training fails."""
    monkeypatch.setattr(sys.modules["experiments.setup.networks"], "train", None)


def test_a_network_is_trained_once_whatever_it_is_called(folder, untrained) -> None:
    again = networks(folder).trained("small", SMALL, RECIPE)
    other = networks(folder).trained("by another name", SMALL, RECIPE)
    assert again.history == other.history and len(again.history) == 1 and not again.model.training
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), other.model.parameters(), strict=True))
    (file,) = (path for path in folder.rglob("*") if path.is_file())
    assert file.name == "model.safetensors" and file.parent.name.startswith("small, seed 0, ")


ANOTHER = replace(HOW, std=(1.0, 1.0, 1.0))
CHANGES = {
    "seed": ({}, SMALL, replace(RECIPE, seed=1)),
    "recipe": ({}, SMALL, replace(RECIPE, max_filter_rms=None)),
    "dropout": ({}, functools.partial(SMALL, dropout=0.1), RECIPE),
    "initial weights": ({}, functools.partial(SMALL, init="quiet"), RECIPE),
    "a pixel": ({"training": images(8, pixel=1)}, SMALL, RECIPE),
    "a label": ({"training": images(8, label=1)}, SMALL, RECIPE),
    "validation pixel": ({"validation": images(6, pixel=1)}, SMALL, RECIPE),
    "validation label": ({"validation": images(6, label=1)}, SMALL, RECIPE),
    "preprocessing": ({"preprocessing": ANOTHER}, SMALL, RECIPE),
}


@pytest.mark.parametrize("change", CHANGES)
def test_its_like_is_trained_apart(folder, untrained, change: str) -> None:
    settings, architecture, recipe = CHANGES[change]
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        networks(folder, **settings).trained("small", architecture, recipe)


def test_the_network_of_the_train_experiment_is_not_trained_again(tmp_path, untrained) -> None:
    network = build(SMALL, preprocessing=HOW, seed=3)
    recipe = replace(RECIPE, seed=3)
    train.main(network, images(8), tmp_path / "train", validation=images(6), recipe=recipe, progress=False)
    also = [tmp_path / "none" / "model.safetensors", tmp_path / "train" / "model.safetensors"]
    model, history = networks(tmp_path, also=also).trained("small", SMALL, recipe)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), network.parameters(), strict=True))
    assert len(history) == 1
    with pytest.raises(TypeError):
        networks(tmp_path, also=also).trained("small", SMALL, replace(recipe, seed=4))


# ---- weights: trained ------------------------------------------------------------------------------------------------

WORDS = [
    "model.architecture.maps=[4,4,4,4,4]",
    "model.architecture.hidden=[8]",
    "model.architecture.image_size=64",
    "train.epochs=1",
]
COUNT = "data.count={train: 12, val: 6}"
USUAL = Path("outputs", "train", "zfnet_small-scenes", "model.safetensors")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder in which a network was trained, and not evaluated."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def asked(home, monkeypatch) -> Iterator[list[list[str]]]:
    """The words of the trainings that are run; the first is, of the others it is only noted that they would be."""
    monkeypatch.chdir(home)
    if not USUAL.exists():
        trained()
    return []


def trained(*words: str, asked: list[list[str]] | None = None) -> Path:
    """Where the trained weights are; with `asked`, the words of a training are noted and nothing is trained."""
    known = spelled(["experiment=fig2", "model.weights=trained", "k=2", *WORDS, COUNT, *words])
    train = run if asked is None else lambda experiment, more: asked.append(more)
    return Objects(configured(known), known, train).trained()


@pytest.mark.parametrize("words", [[], ["k=3"], ["seed=5"], ["data.split=train"]], ids=str)
def test_trained_weights_are_those_of_this_training(asked, words, capsys) -> None:
    assert trained(*words, asked=asked) == USUAL
    assert asked == [] and not capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "difference"),
    [
        ("train.epochs=2", "epochs (1, now 2)"),
        ("train.seed=1", "seed (0, now 1)"),
        ("train=short", "optimizer (sgd, now adam)"),
        ("model.architecture.dropout=0.2", "architecture"),
        ("model.architecture.init=he", "initial weights"),
        ("model.preprocessing.std=[2,2,2]", "preprocessing"),
        ("data.seed=1", "training"),
        ("data.count={train: 13, val: 6}", "training labels, training images"),
        ("data.count={train: 12, val: 7}", "validation labels, validation images"),
    ],
)
def test_weights_of_another_training_are_not_taken(asked, word: str, difference: str, capsys) -> None:
    before = USUAL.read_bytes()
    path = trained(word, asked=asked)
    assert path.parent.parent == USUAL.parent.parent and path.parent.name.startswith("zfnet_small-scenes-")
    assert f"++out={path.parent}" in asked[0] and USUAL.read_bytes() == before
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{USUAL} was trained with other settings (") and difference in line
    assert line.endswith(f": training {path} first; model.weights={USUAL} uses the former")


def test_both_trainings_are_kept_and_found(home, monkeypatch, capsys) -> None:
    monkeypatch.chdir(home)
    first = trained()
    second = trained("train.epochs=2")
    assert second != first == USUAL and "epochs (1, now 2)" in capsys.readouterr().err
    assert [trained(*more) for more in ((), ("train.epochs=2",))] == [first, second]
    assert len(weights.read_metadata(second)["history"]) == 2
    assert not capsys.readouterr().err


def test_weights_that_cannot_be_told_are_refused(home, asked, monkeypatch) -> None:
    def missing(*arguments, **settings):
        raise InputError("no folder 'train' of photographs to train on")

    monkeypatch.setattr(Objects, "_dataset", missing)
    with pytest.raises(InputError, match=f"to train on; model.weights={USUAL} uses the existing network"):
        trained()


def test_the_training_experiment_keeps_a_network_that_was_trained_otherwise(home, asked, capsys) -> None:
    before = USUAL.read_bytes()
    words = ["model=zfnet_small", *WORDS, COUNT, "train.epochs=2", "progress=false"]
    run("train", spelled(["experiment=train", *words]))
    printed = capsys.readouterr()
    assert USUAL.read_bytes() == before and "was trained with other settings and is kept" in printed.err
    (line,) = (line for line in printed.out.splitlines() if line.startswith("train: "))
    assert weights.read_metadata(Path(line[7:], "model.safetensors"))["history"][-1]["epoch"] == 2
    run("train", spelled(["experiment=train", *words[:-2], "progress=false"]))  # the same again is no other network
    assert f"train: {USUAL.parent}" in capsys.readouterr().out


def test_an_experiment_says_which_weights_it_takes(home, asked, capsys) -> None:
    few = ["layers=[relu1]", "grids=[[1,1]]", "k=1", "progress=false"]
    run("fig2", spelled(["experiment=fig2", "model.weights=trained", "k=2", *WORDS, COUNT, *few]))
    assert capsys.readouterr().out.endswith(f"fig2: outputs/fig2/zfnet_small-scenes, of {USUAL}\n")


# ---- weights: published ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word", ["train.epochs=3", "data.side=128", "train=short", "model.architecture.dropout=0.1", "validation=train"]
)
def test_a_setting_of_training_means_nothing_to_a_network_that_is_trained(word: str) -> None:
    words = spelled(["experiment=fig2", "model.weights=published", word])
    key = word.partition("=")[0]
    with pytest.raises(
        InputError, match=f"{key} has no effect on the published network, .*: give model.weights=trained"
    ):
        Objects(configured(words), words, run)


@pytest.mark.parametrize("word", ["train.epochs=3", "train=short", "model=zfnet", "seeds=3", "seed=1", "fresh=true"])
def test_a_setting_of_training_means_nothing_to_runs_that_lie_there(word: str) -> None:
    words = spelled(["experiment=table3", "runs=results/variant", word])
    name = word.partition("=")[0]
    with pytest.raises(InputError, match=rf"^{name} has no effect on runs, which are trained already: leave it"):
        Objects(configured(words), words, run)


def test_a_network_that_is_not_published_is_refused_by_name(tmp_path) -> None:
    words = spelled(["experiment=fig2", "model=zfnet", "model.weights=published"])
    with pytest.raises(InputError, match="no weights of zfnet are published for these images"):
        Objects(configured(words), words, run).model  # noqa: B018


@pytest.mark.parametrize("weights", ["published", "trained", "null"])
def test_networks_from_scratch_have_the_size_of_the_data_whatever_weights_others_have(weights: str) -> None:
    words = spelled(["experiment=table3", f"model.weights={weights}"])
    assert Objects(configured(words), words, run).config.model.architecture.image_size == 64


@pytest.mark.parametrize("model", ["zfnet", "squeezenet1_0"])
def test_a_size_of_the_data_that_the_network_does_not_take_is_refused(model: str) -> None:
    words = spelled(["experiment=fig2", f"model={model}", "data.side=32"])
    with pytest.raises(InputError, match=r"data.side has no effect: the network's architecture has its"):
        Objects(configured(words), words, run)


# ---- the size of images ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (["data=scenes"], 224),
        (["data=held_out"], 224),
        (["data=tiny_imagenet", "data.root=."], 64),
        (["data=photos", "data.root=."], 224),  # trained on scenes
        (["model.architecture.image_size=96"], 96),
    ],
    ids=lambda value: str(value),
)
def test_a_network_sees_images_of_the_size_that_its_data_have(words: list[str], size: int) -> None:
    known = spelled(["experiment=fig2", "model.weights=null", *words])
    config = Objects(configured(known), known, run).config
    assert (config.model.architecture.image_size, config.model.preprocessing.size) == (size, size)
    assert config.model.preprocessing.resize == size  # nothing is enlarged to be cropped


def test_a_network_sees_images_of_the_size_that_its_weights_say(home, asked) -> None:
    known = spelled(["experiment=fig2", f"model.weights={USUAL}", *WORDS[:2], COUNT])
    made = Objects(configured(known), known, run)
    assert made.config.model.architecture.image_size == 64 == made.model.preprocessing.size
    assert made.data[0][0].shape == (3, 64, 64)
