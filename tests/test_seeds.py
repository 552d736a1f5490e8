"""Two runs compared: of a network and itself in another order nothing may be lost, and of strangers little is there."""

import copy
import json
import sys
from collections import OrderedDict
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
from zfnet import Deconvnet, InputError, TopActivations, scan
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
        settings = {"layers": LAYERS, "k": 4, "width": 6, "progress": False} | settings
        networks = networks or Untrained()
        return seeds.main(
            data, tmp_path / "a" / "b", networks=networks, architecture=architecture, recipe=Recipe(), **settings
        )

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
    for layer, order in zip(LAYERS, ORDERS.values(), strict=True):
        found = ours["layers"][layer]
        assert found["trained"]["mean"] == pytest.approx(1, abs=1e-6)
        assert found["trained"]["alike"] == found["best"]["alike"] == 1
        assert found["untrained"]["mean"] < 0.99
        assert len(found["pairs"]) == found["live"][0] == found["live"][1] > 3
        for first, second, correlation, _ in found["pairs"]:
            assert order[second] == first
            assert correlation == pytest.approx(1, abs=1e-6)
        assert found["shared"] == pytest.approx(4, abs=0.5)  # fewer for a map that fires on fewer than four images
    assert ours["shared_by_chance"] == pytest.approx(16 / 12)
    assert "Most of them in every layer" in capsys.readouterr().out


def killed(model: nn.Module, seed: int) -> nn.Module:
    model.conv1.bias.data[seed] = -1e3  # map 3 of the first run, map 1 of the second
    return model


def test_two_seeds_give_two_networks_and_a_third_the_control(compared, tmp_path, capsys) -> None:
    networks = Untrained(killed)
    result, out = compared(networks, seed=3, other=1), tmp_path / "a" / "b"
    assert networks.asked == [("network", Recipe(seed=3)), ("network", Recipe(seed=1))]
    for found in result["ours"]["layers"].values():
        for what in ("trained", "untrained"):  # none of the three is another
            assert found[what]["mean"] < 0.99
        assert found["best"]["mean"] >= found["trained"]["mean"]
        correlations = [pair[2] for pair in found["pairs"]]
        assert correlations == sorted(correlations, reverse=True)
    found = result["ours"]["layers"]["relu1"]
    assert found["live"] == [5, 5]
    assert all(first != 3 and second != 1 for first, second, *_ in found["pairs"])

    assert {path.name for path in out.iterdir()} == {"figure.png", "figure.pdf", "result.json", "table.md"}
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    assert set(result["paper"]) == set(result["ours"])
    assert result["ours"]["validation_error"] == {"3": 0.25, "1": 0.25}
    assert Image.open(out / "figure.png").width == 1200
    printed = capsys.readouterr().out
    assert (out / "table.md").read_text() == printed
    assert f"relu1 {found['trained']['alike']:.0%} (" in printed


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
    for one, other in zip(plain, guided, strict=True):
        assert (one.signals.shape[1], other.signals.shape[1]) == (4, 3)
        assert torch.equal(one.patches[:, :3], other.patches)
        assert not torch.equal(one.signals[:, :3], other.signals)
        for width in (50, 97, 300):
            assert one.extent(one.tile(width), 1) <= width < one.extent(one.tile(width) + 1, 1)


def test_worked_example() -> None:
    """Four maps on ten images: 0 and 1 are the other's 1 and 0, 2 meets a dead map, 3 is dead."""
    first = torch.tensor([[0.7, 1, 0, 0], [0.6, 0.8, 0, 0.1], [0] * 4, [0] * 4], dtype=torch.float64)
    found = {"trained": first, "untrained": first / 2}

    def tops(images: list[list[int]], values: list[list[float]]) -> TopActivations:
        places = torch.zeros(4, 2, dtype=torch.int64)
        return TopActivations(torch.tensor(values), torch.tensor(images), places, places)

    ones = tops([[5, 6], [7, 8], [0, 1], [0, 1]], [[2.0, 1], [2, 1], [2, 0], [0, 0]])
    others = tops([[8, 9], [6, 5], [0, 1], [0, 1]], [[2.0, 1], [2, 1], [0, 0], [2, 0]])
    numbers, curves = seeds.compare(found, [ones, others])
    assert numbers["live"] == [3, 3]
    assert numbers["pairs"][:2] == [[0, 1, 1.0, 2], [1, 0, 0.6, 1]]
    assert all(shared == 0 for *_, shared in numbers["pairs"][2:])
    assert curves["trained"].tolist() == [1.0, 0.6, 0]
    assert curves["best"].tolist() == [1.0, 0.8, 0]
    assert numbers["trained"]["alike"] == pytest.approx(2 / 3)
    assert numbers["untrained"]["alike"] == 0  # half of 1 is not above one half


def test_the_answer_follows_the_numbers() -> None:
    def layer(trained: float) -> dict:
        return {"trained": {"alike": trained}, "untrained": {"alike": 0.125}}

    assert "relu1 75% (12%), relu2 50% (12%)" in seeds.answer({"relu1": layer(0.75), "relu2": layer(0.5)})
    for shares, where in (((0.75, 0.5), "relu1."), ((0.75, 0.6), "every layer."), ((0.1, 0.2), "no layer.")):
        told = seeds.answer({f"relu{n}": layer(share) for n, share in enumerate(shares, 1)})
        assert told.endswith(f"Most of them in {where}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1}, "seed and other are both 1"),
        ({"layers": ["relu7"]}, "no layer of Sequential 'relu7'"),
        ({"k": 13}, "k is 13"),
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


def test_the_command_trains_twice_and_not_again(tmp_path: Path, monkeypatch, capsys) -> None:
    words = ["experiment=seeds", "layers=[relu1]", "data.count={train: 12, val: 9}", "train.epochs=1", "width=5"]
    words += ["model.architecture.maps=[4,4,4,4,4]", "model.architecture.hidden=[8]", "model.preprocessing.size=64"]
    words += ["model.architecture.image_size=64", "workers=0", "device=cpu"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    for trained in (["network, seed 0", "network, seed 1"], []):
        command_line()
        printed = capsys.readouterr().out
        assert [line[9:] for line in printed.splitlines() if line.startswith("training ")] == trained
        assert "Would another training run give the same units?" in printed
