"""Runs compared: of a network and itself in another order nothing may be lost, and of strangers little is there."""

import copy
import json
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from experiments.output.feature_maps import Look, Panel
from experiments.questions import seeds
from experiments.run import command_line
from experiments.setup.models import build
from experiments.setup.networks import seen_by
from zfnet import Deconvnet, InputError, TopActivations, scan
from zfnet.analysis.matching import Similarity, match
from zfnet.data.preprocessing import Preprocessing
from zfnet.data.scenes import Scenes
from zfnet.training import Recipe

LAYERS = ["relu1", "relu2"]
PREPROCESSING = Preprocessing(size=32, resize=36)


def architecture() -> nn.Module:
    layers = OrderedDict(
        conv1=nn.Conv2d(3, 6, 5, 2),
        relu1=nn.ReLU(inplace=True),
        pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
        conv2=nn.Conv2d(6, 8, 3, padding=1),
        relu2=nn.ReLU(inplace=True),
        flat=nn.Flatten(),
        fc=nn.Linear(392, 16),
    )
    return nn.Sequential(layers)


class Untrained:
    """In the place of Networks: a network by its seed, changed as the test says instead of trained."""

    preprocessing, device = PREPROCESSING, "cpu"

    def __init__(self, change=lambda model, seed: model):
        self.change, self.asked = change, []

    def trained(self, name: str, architecture, recipe: Recipe):
        self.asked.append((name, recipe))
        model = self.change(build(architecture, preprocessing=PREPROCESSING, seed=recipe.seed), recipe.seed)
        return SimpleNamespace(model=model, history=[{"validation_error": 0.25}])


@pytest.fixture(scope="module")
def data() -> Scenes:
    return Scenes("val", 12, size=32, transform=PREPROCESSING)


@pytest.fixture
def compared(data, tmp_path):
    def compared(networks=None, **settings):
        settings = {"layers": LAYERS, "k": 4, "width": 6, "progress": False, "recipe": Recipe()} | settings
        networks = networks or Untrained()
        return seeds.main(data, tmp_path / "a" / "b", networks=networks, architecture=architecture, **settings)

    return compared


ORDERS = {"conv1": [3, 1, 5, 0, 2, 4], "conv2": [7, 2, 0, 5, 1, 3, 6, 4]}


def reordered(model: nn.Module, seed: int) -> nn.Module:
    """The network of seed 0; for other seeds with its maps in another order."""
    model = build(architecture, preprocessing=PREPROCESSING, seed=0)
    if seed:
        model.conv1.weight.data = model.conv1.weight.data[ORDERS["conv1"]]
        model.conv1.bias.data = model.conv1.bias.data[ORDERS["conv1"]]
        model.conv2.weight.data = model.conv2.weight.data[ORDERS["conv2"]][:, ORDERS["conv1"]]
        model.conv2.bias.data = model.conv2.bias.data[ORDERS["conv2"]]
    return model


def test_a_network_and_itself_in_another_order_are_the_same(compared, capsys) -> None:
    ours = compared(Untrained(reordered))["ours"]
    assert ours["compared"] == [(0, 1), (0, 2), (1, 2)]
    for layer, order in zip(LAYERS, ORDERS.values(), strict=True):
        found = ours["layers"][layer]
        for name in ("mean", "fitted_mean", "alike", "best_mean", "same_partner", "cka"):
            assert found["trained"][name] == pytest.approx([1, 1, 1], abs=1e-6), name
        assert max(found["one_trained"]["mean"] + found["untrained"]["mean"]) < 0.99
        assert max(found["other_images"]["mean"]) < min(found["trained"]["mean"])
        assert max(found["untrained"]["cka"]) < 0.99
        assert found["trained"]["matched_maps"] == [len(found["pairs"])] * 3
        assert found["maps"] - found["dead"]["0"] - found["rare"]["0"] == len(found["pairs"]) > 3
        for first, second, correlation, _ in found["pairs"]:
            assert order[second] == first
            assert correlation == pytest.approx(1, abs=1e-6)
        assert found["shared"] == pytest.approx(
            [4, 4, 4], abs=1
        )  # fewer for a map that fires on fewer than four images
        for mean, low, high in found["trained"]["random"]:
            assert low <= mean <= high <= 1
    assert ours["shared_by_chance"] == pytest.approx(16 / 6)
    assert "Most of them in every layer" in capsys.readouterr().out


def killed(model: nn.Module, seed: int) -> nn.Module:
    model.conv1.bias.data[seed] = -1e3  # map 3 of the first run, map 4 of the second, and so on
    return model


def test_every_two_runs_are_compared_and_dead_maps_are_left_out(compared, tmp_path, capsys) -> None:
    networks = Untrained(killed)
    out = tmp_path / "a" / "b"
    result = compared(networks, recipe=Recipe(seed=3))
    assert networks.asked == [("network", Recipe(seed=n)) for n in (3, 4, 5)]
    ours = result["ours"]
    assert ours["seeds"] == [3, 4, 5] and ours["compared"] == [(3, 4), (3, 5), (4, 5)]
    assert ours["images"] == {"matched_on": 6, "held_out": 6}
    for found in ours["layers"].values():
        for kind in seeds.KINDS:  # none of the networks is another
            assert max(found[kind]["mean"]) < 0.99
            assert all(len(of) == 3 for of in found[kind].values())
        correlations = [pair[2] for pair in found["pairs"]]
        assert correlations == sorted(correlations, reverse=True)
    found = ours["layers"]["relu1"]
    assert found["dead"] == {"3": 1, "4": 1, "5": 1} and found["rare"] == {"3": 0, "4": 0, "5": 0}
    assert found["trained"]["matched_maps"] == [5, 5, 5] and found["untrained"]["matched_maps"] == [6, 6, 6]
    assert all(first != 3 and second != 4 for first, second, *_ in found["pairs"])

    assert {path.name for path in out.iterdir()} == {"figure.png", "figure.pdf", "result.json", "table.md"}
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    assert set(result["paper"]) == set(ours)
    assert ours["validation_error"] == {"3": 0.25, "4": 0.25, "5": 0.25}
    assert Image.open(out / "figure.png").width == 1200
    printed = capsys.readouterr().out
    assert (out / "table.md").read_text() == printed
    assert "| relu1 |    6 | 1, 1, 1      | 0, 0, 0 " in printed
    assert "maps paired at random, 3 x 1,000 times" in printed and "on 6 others" in printed


def test_halves_are_all_images_once() -> None:
    for count in (4, 7, 100):
        first, second = (half.indices for half in seeds.halved(range(count), 0))
        assert sorted(first + second) == list(range(count)) and len(second) - len(first) in (0, 1)
        assert first == sorted(first) and second == sorted(second)
    assert seeds.halved(range(100), 0)[0].indices != seeds.halved(range(100), 1)[0].indices


def test_images_are_those_of_the_training_less_its_mean_image(data) -> None:
    model = build(architecture, preprocessing=PREPROCESSING)
    assert seen_by(model, data) is data
    mean = torch.rand(3, 32, 32)
    replace(PREPROCESSING, mean_image=mean).attach(model)
    seen = seen_by(model, data)
    pixels = PREPROCESSING.pixels(data[3][0])
    torch.testing.assert_close(seen[3][0], (pixels - mean) / torch.tensor(PREPROCESSING.std)[:, None, None])
    torch.testing.assert_close(PREPROCESSING.pixels(data[3][0]), pixels)  # and the data are as they were
    with pytest.raises(InputError, match="a list has no transform"):
        seen_by(model, [data[3]])


def test_maps_that_fire_often_are_drawn_first(data) -> None:
    """One image on which both fire is a perfect correlation, and no picture of a likeness."""
    model = build(architecture, preprocessing=PREPROCESSING)
    top = scan(model, data, ["relu1"], 2, progress=False)["relu1"]
    top.value[0, 1] = 0
    pairs = [[0, 0, 1.0, 1], [1, 1, 0.5, 2], [2, 2, 0.25, 2]]

    def shown(*pairs: list) -> list[str]:
        deconvnets = {"seed 0": Deconvnet(model), "seed 1": Deconvnet(model)}
        line = seeds.line_of("relu1", deconvnets, data, [top, top], pairs, 2, Look(contrast=1.0))
        return [panels[0].title for _, panels in line.pairs]

    assert shown(*pairs) == ["seed 0, map 1", "seed 0, map 1", "seed 0, map 2"]
    assert shown(pairs[0]) == ["seed 0, map 0"] * 3


def test_rules_and_number_of_tiles_change_the_picture_alone(compared, monkeypatch) -> None:
    panels: list[Panel] = []
    panel_of = seeds.panel_of
    monkeypatch.setattr(seeds, "panel_of", lambda *given: panels.append(panel_of(*given)) or panels[-1])
    both = [compared(**settings)["ours"]["layers"] for settings in ({}, {"rules": "guided", "drawn": 3})]
    assert both[0] == both[1]
    plain, guided = panels[6:12], panels[18:]  # six of each layer
    assert any(not torch.equal(one.signals[:, :3], other.signals) for one, other in zip(plain, guided, strict=True))
    for one, other in zip(plain, guided, strict=True):
        assert (one.signals.shape[1], other.signals.shape[1]) == (4, 3)
        assert torch.equal(one.patches[:, :3], other.patches)
        for width in (50, 97, 300):
            assert one.extent(one.tile(width), 1) <= width < one.extent(one.tile(width) + 1, 1)


def test_worked_example() -> None:
    """Four maps on ten images: 0 and 1 are the other's 1 and 0, 2 meets a dead map, 3 is dead."""
    first = torch.tensor([[0.7, 1, 0], [0.6, 0.8, 0.1]], dtype=torch.float64)
    correlation = torch.zeros(4, 4, dtype=torch.float64)
    correlation[:2, :3] = first
    live = torch.tensor([True, True, False, False]), torch.tensor([True, True, False, True])
    similarity = Similarity(correlation, live, 0.9, (2.0, 3.0))
    found = seeds.Compared(match(similarity, similarity), 0.9, (2.0, 3.0), seeds.silent(similarity, similarity))

    def tops(images: list[list[int]], values: list[list[float]]) -> TopActivations:
        places = torch.zeros(4, 2, dtype=torch.int64)
        return TopActivations(torch.tensor(values), torch.tensor(images), places, places)

    ones = tops([[5, 6], [7, 8], [0, 1], [0, 1]], [[2.0, 1], [2, 1], [0, 0], [0, 0]])
    others = tops([[8, 9], [6, 5], [0, 1], [0, 1]], [[2.0, 1], [2, 1], [0, 0], [2, 0]])
    numbers = seeds.numbers_of({kind: [found] for kind in seeds.KINDS}, {0: ones, 1: others})
    assert numbers["dead"] == {"0": 2, "1": 1} and numbers["rare"] == {"0": 0, "1": 0}
    assert numbers["pairs"] == [[0, 1, 1.0, 2], [1, 0, 0.6, 1]]
    assert numbers["shared"] == [1.5]
    assert numbers["dimensions"] == {"trained": {"0": 2.0, "1": 3.0}, "untrained": {"0": 2.0, "1": 3.0}}
    assert numbers["trained"]["mean"] == [0.8] and numbers["trained"]["best_mean"] == [0.9]
    assert numbers["trained"]["alike"] == [1] and numbers["trained"]["cka"] == [0.9]
    assert numbers["trained"]["reliability"] == [None]  # of two pairs nothing can be said


def test_a_map_that_fires_on_one_half_alone_is_counted_and_left_out() -> None:
    here, there = (torch.tensor(of) for of in ([True, True, False], [True, False, False]))
    halves = [Similarity(torch.eye(3, dtype=torch.float64), (of, of), 1.0, (2.0, 2.0)) for of in (here, there)]
    assert seeds.silent(*halves) == [{"dead": 1, "rare": 1}] * 2
    assert match(*halves).pairs.tolist() == [[0, 0]]


def test_the_spread_is_the_mean_and_the_range() -> None:
    assert seeds.spread([0.1, 0.2, 0.6]) == "0.30 (0.10 to 0.60)"
    assert seeds.spread([None, 0.5]) == seeds.spread([0.5, 0.501]) == "0.50"
    assert seeds.spread([None]) == "not known"
    assert seeds.two_digits(-0.001) == "0.00"


def test_the_answer_follows_the_numbers() -> None:
    def said(*shares: float, other: tuple[float, ...] = (0.125,)) -> str:
        def numbers(*alike: float) -> dict:
            return {"alike": alike, "mean": alike}

        layers = {f"relu{n}": {"trained": numbers(of), "untrained": numbers(*other)} for n, of in enumerate(shares, 1)}
        return seeds.answer({"layers": layers})

    assert "relu1 75% (12%), relu2 50% (12%)" in said(0.75, 0.5)
    for shares, where in (((0.75, 0.5), "relu1."), ((0.75, 0.6), "every layer."), ((0.1, 0.2), "no layer.")):
        assert f"Most of them in {where}" in said(*shares)
    assert "In every two runs, matched maps correlate more than before training in relu1, relu2" in said(0.4, 0.5)
    assert said(0.4, 0.1).endswith("more than before training in relu1, less in relu2.")
    assert said(0.4, other=(0.3, 0.5)).endswith("more than before training in no layer, less in no layer.")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 1}, "seeds is 1; give at least 2"),
        ({"permutations": 0}, "permutations is 0"),
        ({"layers": ["relu7"]}, "no layer of Sequential 'relu7'"),
        ({"k": 7}, "k is 7; give a number from 1 to that of half of the images, 6"),
        ({"width": 1}, "inches"),
        ({"drawn": 0}, "drawn is 0"),
        ({"contrast": 0}, "contrast is 0"),
        ({"colour": "green"}, "no colour 'green'"),
        ({"rules": "guide"}, "no rule set 'guide'"),
        ({"style": "dark"}, "no style 'dark'"),
    ],
)
def test_refuses_in_words_before_it_trains(compared, tmp_path: Path, settings, message: str) -> None:
    networks = Untrained()
    with pytest.raises(InputError, match=message):
        compared(networks, **settings)
    assert not networks.asked
    assert not list(tmp_path.iterdir())


def test_refuses_a_network_that_is_dead(compared, tmp_path: Path) -> None:
    def dead(model: nn.Module, seed: int) -> nn.Module:
        model = copy.deepcopy(model)
        model.conv2.bias.data[:] = -1e3
        return model

    with pytest.raises(InputError, match="relu2: no two maps"):
        compared(Untrained(dead))
    assert not list(tmp_path.iterdir())


def test_the_command_trains_each_network_once(tmp_path: Path, monkeypatch, capsys) -> None:
    words = ["experiment=seeds", "layers=[relu1]", "data.count={train: 12, val: 18}", "train.epochs=1", "width=5"]
    words += ["model.architecture.maps=[4,4,4,4,4]", "model.architecture.hidden=[8]", "model.preprocessing.size=64"]
    words += ["model.architecture.image_size=64", "workers=0", "device=cpu"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    for trained in ([f"network, seed {n}" for n in (0, 1, 2)], []):
        command_line()
        printed = capsys.readouterr().out
        assert [line[9:] for line in printed.splitlines() if line.startswith("training ")] == trained
        assert "Would another training run give the same units?" in printed
