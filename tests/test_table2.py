"""Table 2: the paper's numbers as printed, ours by arithmetic on known ones, and networks shared with Table 3."""

import json
import re
import statistics
from functools import partial

import pytest
import torch
from torch.utils.data import TensorDataset

from experiments.run import run
from experiments.setup import networks as trained_once
from experiments.setup.configuration import configured
from experiments.tables import table2, table3
from tests.stand_ins import ARCHITECTURE, RECIPE, TINY, Networks, printed
from zfnet import InputError, ZFNet
from zfnet.training import error_rates

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


@pytest.fixture
def networks():
    return Networks()


def test_table2_prints_the_papers_numbers(networks, tmp_path):
    table2.main(networks, tmp_path, architecture=ARCHITECTURE, recipe=RECIPE, nets=2, progress=False)
    result = json.loads((tmp_path / "result.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {"figure.png", "figure.pdf", "result.json", "table.md"}
    assert [list(row.values()) for row in result["paper"]["error"].values()] == printed(TABLE2)
    assert set(result["paper"]) == set(result["ours"])
    text = (tmp_path / "table.md").read_text()
    for line, numbers in zip(text.splitlines()[2:15], printed(TABLE2), strict=True):
        cells = [cell.strip() for cell in line.split("|")[2:5]]
        assert [float(cell) if cell else None for cell in cells] == numbers
    assert "We have no test set" in text


def test_table2_averages_the_networks_it_says(networks, tmp_path):
    ours = table2.main(networks, tmp_path, architecture=ARCHITECTURE, recipe=RECIPE, nets=3, progress=False)["ours"]
    assert networks.asked == [("krizhevsky", 7), *(("fig3", s) for s in (7, 8, 9, 10)), ("fig3 512-1024-512", 10)]
    replication, *several, sixth, other = networks.made.values()
    groups = {
        "Replication of Krizhevsky et al., 1 net": replication,
        "Figure 3, 5 nets (a)": several,
        "512-1024-512, 1 net (b)": other,
        "(a) and (b), 6 nets": [*several, other],
        "(a) and a sixth of Figure 3, 6 nets": [*several, sixth],
    }
    for row, models in groups.items():
        ten = error_rates(models, networks.validation, crops=10, pad=RECIPE.max_shift)
        one = error_rates(models, networks.validation)
        assert list(ours["error"][row].values()) == pytest.approx([100 * rate for rate in ten])
        assert [rates for (rates,) in ours["one_crop"][row].values()] == pytest.approx([100 * rate for rate in one])
    single = [100 * error_rates(model, networks.validation, crops=10, pad=RECIPE.max_shift)[0] for model in several]
    assert ours["each"]["Figure 3, 1 net"]["validation_top1"] == pytest.approx(single)
    assert ours["error"]["Figure 3, 1 net"]["validation_top1"] == pytest.approx(statistics.mean(single))
    assert ours["nets"] == dict(zip(ours["nets"], (1, 1, 3, 1, 4, 4), strict=True))


def test_the_sixth_networks_are_compared_image_by_image(networks, tmp_path):
    result = table2.main(networks, tmp_path, architecture=ARCHITECTURE, recipe=RECIPE, nets=2, progress=False)
    sixth, error = result["ours"]["sixth"], result["ours"]["error"]
    text = (tmp_path / "table.md").read_text()
    _, *several, alike, other = networks.made.values()
    images, labels = networks.validation.tensors
    wrong = []
    for models in ([*several, other], [*several, alike]):
        dataset = [TensorDataset(images[n : n + 1], labels[n : n + 1]) for n in range(len(images))]
        rates = [error_rates(models, one, crops=10, pad=RECIPE.max_shift) for one in dataset]
        wrong.append(torch.tensor(rates, dtype=torch.bool))
    for n, (column, test) in enumerate(sixth.items()):
        one, two = (misses[:, n] for misses in wrong)
        assert test["images"] == 12
        assert (test["first_alone"], test["second_alone"]) == (int((one & ~two).sum()), int((two & ~one).sum()))
        mixed, control = error["(a) and (b), 6 nets"], error["(a) and a sixth of Figure 3, 6 nets"]
        assert test["difference"] == pytest.approx(mixed[column] - control[column])
        assert f"{test['difference']:+.1f} (it alone misses {test['first_alone']} images" in text
    assert sum(test["first_alone"] + test["second_alone"] for test in sixth.values())


def test_mcnemar_worked_example():
    first = torch.tensor([1, 1, 1, 1, 1, 0, 1, 1, 0, 0], dtype=torch.bool)
    second = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 0, 0], dtype=torch.bool)
    told = table2.mcnemar(first, second)  # 5 to 1: two-sided p = 2 * (1 + 6) / 2**6
    assert told == {"images": 10, "first_alone": 5, "second_alone": 1, "difference": 40.0, "p": pytest.approx(14 / 64)}
    back = table2.mcnemar(second, first)
    assert back["difference"] == -40.0 and back["p"] == told["p"]
    assert table2.mcnemar(first, first)["p"] == 1.0


def test_mcnemar_finds_a_difference_no_more_often_than_it_says():
    random = torch.Generator().manual_seed(0)
    hard = torch.rand(400, 200, generator=random)  # how hard each image is for both classifiers, 400 times

    def rejected(shift):
        draws = [torch.rand(400, 200, generator=random) < hard + by for by in (0.0, shift)]
        return sum(table2.mcnemar(one, other)["p"] < 0.05 for one, other in zip(*draws, strict=True)) / 400

    assert rejected(0.0) < 0.06  # exact: at most 5 %
    assert rejected(0.3) > 0.9


def test_the_tables_share_their_networks(networks, tmp_path):
    table3.main(networks, tmp_path / "3", architecture=ARCHITECTURE, recipe=RECIPE, seeds=2, progress=False)
    made = len(networks.made)
    table2.main(networks, tmp_path / "2", architecture=ARCHITECTURE, recipe=RECIPE, nets=2, progress=False)
    assert len(networks.made) == made + 2  # the third of Figure 3, and (b), which has its seed


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
    assert ends == ["trained", "stopped", "trained", "trained", "trained"]
    assert table(tmp_path / "again")["ours"] == result["ours"]
    assert len(ends) == 5


def test_the_tables_are_configured_alike():
    first, *others = (configured([f"experiment={name}"]) for name in ("table3", "table2", "variant"))
    for config in others:
        for part in ("model", "data", "train"):
            assert config[part] == first[part]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"nets": 0}, "nets is 0"), ({"architecture": partial(ZFNet, **TINY | {"hidden": []})}, "with layers 1 to 7")],
    ids=str,
)
def test_mistakes_are_named_before_anything_is_trained(networks, tmp_path, settings, message):
    with pytest.raises(InputError, match=re.escape(message)):
        table2.main(networks, tmp_path / "out", **{"architecture": ARCHITECTURE, "recipe": RECIPE} | settings)
    assert not networks.asked
    assert not list(tmp_path.iterdir())


def test_photographs_to_train_on_need_a_folder():
    with pytest.raises(InputError, match=re.escape("data=photos needs data.root=")):
        run("table2", ["experiment=table2", "data=photos"])
