"""Tables 2 and 3: the paper's numbers as printed, ours by arithmetic on known ones, and networks that both share."""

import json
import re
import statistics
from functools import partial

import pytest
import torch
from torch.utils.data import TensorDataset
from torchvision.models import alexnet

from experiments.run import run
from experiments.setup import networks as trained_once
from experiments.setup.configuration import configured
from experiments.setup.networks import Trained
from experiments.tables import table2, table3
from zfnet import InputError, ZFNet
from zfnet.data.preprocessing import Preprocessing
from zfnet.model import VARIANTS
from zfnet.training import Recipe, error_rates

# train top-1, val top-1, val top-5
TABLE3 = """
Krizhevsky replication | 35.1 | 40.5 | 18.1
- layers 3,4 removed | 41.8 | 45.4 | 22.1
- layer 7 removed | 27.4 | 40.0 | 18.4
- layers 6,7 removed | 27.4 | 44.8 | 22.4
- layers 3,4,6,7 removed | 71.1 | 71.3 | 50.1
- fc 2048 | 40.3 | 41.7 | 18.8
- fc 8192 | 26.8 | 40.0 | 18.1
Fig-3 model | 33.1 | 38.4 | 16.5
- fc 2048 | 38.2 | 40.2 | 17.6
- fc 8192 | 22.0 | 38.8 | 17.0
- 512,1024,512 | 18.8 | 37.5 | 16.0
- fc 8192 and 512,1024,512 | 10.0 | 38.3 | 16.9
"""
# val top-1, val top-5, test top-5
TABLE2 = """
Gunji et al. 2012 | - | - | 26.2
DeCAF (ECCV only) | - | - | 19.2
Krizhevsky 1 net | 40.7 | 18.2 | -
Krizhevsky 5 nets | 38.1 | 16.4 | 16.4
Krizhevsky* 1 net (2011+2012 data) | 39.0 | 16.6 | -
Krizhevsky* 7 nets | 36.7 | 15.4 | 15.3
replication, 1 net | 40.5 | 18.1 | -
Fig 3, 1 net | 38.4 | 16.5 | -
Fig 3, 5 nets (a) | 36.7 | 15.3 | 15.3
512-1024-512, 1 net (b) | 37.5 | 16.0 | 16.1
(a)+(b), 6 nets | 36.0 | 14.7 | 14.8
Howard (ECCV only) | - | - | 13.5
Clarifai (ECCV only) | - | - | 11.7
"""
RECIPE = Recipe(epochs=1, batch_size=8, max_shift=4, seed=7)
TINY = {"maps": [4, 6, 6, 6, 6], "hidden": [8, 8], "image_size": 64, "num_classes": 6, "init": "he"}


def printed(text):
    rows = [line.split(" | ")[1:] for line in text.strip().splitlines()]
    return [[None if cell == "-" else float(cell) for cell in row] for row in rows]


class Networks:
    """As `experiments.setup.networks.Networks`, but each network is as it begins."""

    preprocessing = Preprocessing(size=64, resize=72)

    def __init__(self):
        images = torch.randint(256, (36, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        self.training = TensorDataset(images[:24], torch.arange(24) % 6)
        self.validation = TensorDataset(images[24:], torch.arange(12) % 6)
        self.made = {}
        self.asked = []

    def trained(self, name, architecture, recipe):
        self.asked.append((name, recipe.seed))
        if (name, recipe) not in self.made:
            torch.manual_seed(recipe.seed)
            model = architecture().eval()
            model.preprocessing = self.preprocessing
            model.known = name, recipe.seed
            self.made[name, recipe] = model
        return Trained(self.made[name, recipe], [])


@pytest.fixture
def networks():
    return Networks()


ARCHITECTURE = partial(ZFNet, **TINY)


# ---- Table 3 ---------------------------------------------------------------------------------------------------------


def test_table3_prints_the_papers_numbers(networks, tmp_path):
    table3.main(networks, tmp_path, architecture=ARCHITECTURE, recipe=RECIPE, seeds=1, progress=False)
    result = json.loads((tmp_path / "result.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {"figure.png", "result.json", "table.md"}
    assert [list(row.values()) for row in result["paper"]["error"].values()] == printed(TABLE3)
    assert list(result["paper"]["error"]) == list(result["ours"]["error"]) == list(VARIANTS)
    assert set(result["paper"]) == set(result["ours"])
    lines = (tmp_path / "table.md").read_text().splitlines()
    for line, numbers in zip(lines[2:14], printed(TABLE3), strict=True):
        assert [float(cell) for cell in line.split("|")[2:5]] == numbers


def test_table3_measures_what_it_trained(networks, tmp_path):
    names = ["fig3", "krizhevsky without layers 3, 4"]
    result = table3.main(
        networks, tmp_path, architecture=ARCHITECTURE, recipe=RECIPE, seeds=2, variants=names, progress=False
    )
    assert networks.asked == [(name, seed) for name in reversed(names) for seed in (7, 8)]
    for (name, recipe), model in networks.made.items():
        each = result["ours"]["each"][name]
        top1, top5 = error_rates(model, networks.validation)
        (train1,) = error_rates(model, networks.training, top=(1,))
        found = [each[column][recipe.seed - 7] for column in table3.COLUMNS]
        assert found == pytest.approx([100 * train1, 100 * top1, 100 * top5])
        assert result["ours"]["parameters"][name] == sum(p.numel() for p in model.parameters())


def test_table3_means_deviations_and_order_of_known_errors(networks, tmp_path, monkeypatch):
    order = {name: place for place, name in enumerate(VARIANTS)}

    def known(model, dataset, *, top):
        name, seed = model.known
        base = (order[name] + {7: 0, 8: 1, 9: 5}[seed]) / 100  # mean + 2, deviation the square root of 7
        return (base,) if dataset is networks.training else (1 - base, base / 2)

    monkeypatch.setattr(table3, "error_rates", known)
    result = table3.main(networks, tmp_path, architecture=ARCHITECTURE, recipe=RECIPE, seeds=3, progress=False)
    for name, place in order.items():
        assert result["ours"]["error"][name]["train_top1"] == pytest.approx(place + 2)
        assert result["ours"]["deviation"][name]["train_top1"] == pytest.approx(7**0.5)
        assert result["ours"]["deviation"][name]["validation_top5"] == pytest.approx(7**0.5 / 2)
    rank = result["ours"]["rank_correlation"]
    text = (tmp_path / "table.md").read_text()
    assert f"Spearman's rank correlation {rank['validation_top1']:.2f}" in text
    assert "| 2.0 ± 2.6 " in text and "| 98.0 ± 2.6 " in text
    assert "512-1024-512 is 8-16-12 here, and fc 2048 is 4-4" in text


def test_rank_correlation_worked_example():
    paper = {name: {"x": error} for name, error in zip("abcd", (10.0, 20.0, 30.0, 40.0), strict=True)}
    ours = {name: {"x": error} for name, error in zip("abcd", (1.0, 3.0, 2.0, 4.0), strict=True)}
    # ranks differ by 0, 1, 1, 0: 1 - 6 * 2 / (4 * 15)
    assert table3.rank_correlation(paper, ours, "x") == pytest.approx(0.8)
    assert table3.rank_correlation(paper, {name: {"x": 5.0} for name in "abcd"}, "x") is None
    assert table3.rank_correlation(paper, {"a": {"x": 1.0}}, "x") is None


def test_deviation_is_that_of_a_sample():
    assert table3.deviation([1.0, 3.0]) == pytest.approx(2**0.5)
    assert table3.deviation([1.0]) is None
    assert table3.shown([30.04]) == "30.0"
    assert table3.shown([10.0, 20.0]) == "15.0 ± 7.1"


# ---- Table 2 ---------------------------------------------------------------------------------------------------------


def test_table2_prints_the_papers_numbers(networks, tmp_path):
    table2.main(networks, tmp_path, architecture=ARCHITECTURE, recipe=RECIPE, nets=2, progress=False)
    result = json.loads((tmp_path / "result.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {"figure.png", "result.json", "table.md"}
    assert [list(row.values()) for row in result["paper"]["error"].values()] == printed(TABLE2)
    assert set(result["paper"]) == set(result["ours"])
    text = (tmp_path / "table.md").read_text()
    for line, numbers in zip(text.splitlines()[2:15], printed(TABLE2), strict=True):
        cells = [cell.strip() for cell in line.split("|")[2:5]]
        assert [float(cell) if cell else None for cell in cells] == numbers
    assert "We have no test set" in text


def test_table2_averages_the_networks_it_says(networks, tmp_path):
    ours = table2.main(networks, tmp_path, architecture=ARCHITECTURE, recipe=RECIPE, nets=3, progress=False)["ours"]
    assert networks.asked == [("krizhevsky", 7), *(("fig3", s) for s in (7, 8, 9)), ("fig3 512-1024-512", 7)]
    replication, *several, other = networks.made.values()
    groups = {
        "Replication of Krizhevsky et al., 1 net": replication,
        "Figure 3, 5 nets (a)": several,
        "512-1024-512, 1 net (b)": other,
        "(a) and (b), 6 nets": [*several, other],
    }
    for row, models in groups.items():
        ten = error_rates(models, networks.validation, crops=10, pad=RECIPE.max_shift)
        one = error_rates(models, networks.validation)
        assert list(ours["error"][row].values()) == pytest.approx([100 * rate for rate in ten])
        assert [rates for (rates,) in ours["one_crop"][row].values()] == pytest.approx([100 * rate for rate in one])
    single = [100 * error_rates(model, networks.validation, crops=10, pad=RECIPE.max_shift)[0] for model in several]
    assert ours["each"]["Figure 3, 1 net"]["validation_top1"] == pytest.approx(single)
    assert ours["error"]["Figure 3, 1 net"]["validation_top1"] == pytest.approx(statistics.mean(single))
    assert ours["nets"] == dict(zip(ours["nets"], (1, 1, 3, 1, 4), strict=True))


def test_the_tables_share_their_networks(networks, tmp_path):
    table3.main(networks, tmp_path / "3", architecture=ARCHITECTURE, recipe=RECIPE, seeds=2, progress=False)
    made = len(networks.made)
    table2.main(networks, tmp_path / "2", architecture=ARCHITECTURE, recipe=RECIPE, nets=3, progress=False)
    assert len(networks.made) == made + 1  # the third of Figure 3


def test_a_table_that_was_stopped_goes_on(networks, tmp_path, monkeypatch):
    ends, train = [], trained_once.train

    def stopped(model, *arguments, **settings):
        if len(ends) == 1:
            ends.append("stopped")
            raise KeyboardInterrupt
        ends.append("trained")
        return train(model, *arguments, **settings)

    monkeypatch.setattr(trained_once, "train", stopped)
    settings = {"architecture": ARCHITECTURE, "recipe": RECIPE, "nets": 1, "progress": False}

    def table(out):
        data = networks.training, networks.validation, networks.preprocessing
        return table2.main(trained_once.Networks(tmp_path / "networks", *data, progress=False), out, **settings)

    with pytest.raises(KeyboardInterrupt):
        table(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    result = table(tmp_path / "out")
    assert ends == ["trained", "stopped", "trained", "trained"]
    assert table(tmp_path / "again")["ours"] == result["ours"]
    assert len(ends) == 4


def test_the_tables_are_configured_alike():
    first, *others = (configured([f"experiment={name}"]) for name in ("table3", "table2", "variant"))
    for config in others:
        for part in ("model", "data", "train"):
            assert config[part] == first[part]


# ---- both ------------------------------------------------------------------------------------------------------------


def test_it_is_said_which_network_of_how_many_is_trained(networks, tmp_path, capsys):
    table2.main(networks, tmp_path, architecture=ARCHITECTURE, recipe=RECIPE, nets=1)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("network")]
    assert said == [
        "network 1 of 3: krizhevsky, seed 7",
        "network 2 of 3: fig3, seed 7",
        "network 3 of 3: fig3 512-1024-512, seed 7",
    ]


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        (table3, {"seeds": 0}, "seeds is 0"),
        (table3, {"variants": ["fig33"]}, "no variant 'fig33' (did you mean 'fig3'?)"),
        (table3, {"architecture": partial(ZFNet, **TINY | {"hidden": [8]})}, "with layers 1 to 7; got maps (4, 6"),
        (table3, {"architecture": partial(alexnet)}, "the tables change ZFNet"),
        (table2, {"nets": 0}, "nets is 0"),
        (table2, {"architecture": partial(ZFNet, **TINY | {"hidden": []})}, "with layers 1 to 7"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_mistakes_are_named_before_anything_is_trained(networks, tmp_path, table, settings, message):
    with pytest.raises(InputError, match=re.escape(message)):
        table.main(networks, tmp_path / "out", **{"architecture": ARCHITECTURE, "recipe": RECIPE} | settings)
    assert not networks.asked
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("experiment", ["table2", "table3", "train"])
def test_photographs_to_train_on_need_a_folder(experiment):
    with pytest.raises(InputError, match=re.escape("data=photos needs data.root=")):
        run(experiment, [f"experiment={experiment}", "data=photos"])
