"""Table 3: the paper's numbers as printed, ours by arithmetic on known ones."""

import json
import re
from functools import partial

import pytest

from experiments.run import run
from experiments.tables import table3
from tests.stand_ins import ARCHITECTURE, RECIPE, TINY, Networks, printed
from zfnet import InputError, ZFNet
from zfnet.model import VARIANTS
from zfnet.training import error_rates

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


@pytest.fixture
def networks():
    return Networks()


def test_table3_prints_the_papers_numbers(networks, tmp_path):
    table3.main(networks, tmp_path, architecture=ARCHITECTURE, recipe=RECIPE, seeds=1, progress=False)
    result = json.loads((tmp_path / "result.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {"figure.png", "figure.pdf", "result.json", "table.md"}
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
    labels = [line.split("|")[1].strip() for line in (tmp_path / "table.md").read_text().splitlines()[2:4]]
    assert labels == ["krizhevsky without layers 3, 4", "Figure 3"]  # not "- ...": its own network is not there
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 0}, "seeds is 0"),
        ({"variants": ["fig33"]}, "no variant 'fig33' (did you mean 'fig3'?)"),
        ({"architecture": partial(ZFNet, **TINY | {"hidden": [8]})}, "with layers 1 to 7; got maps (4, 6"),
    ],
    ids=str,
)
def test_mistakes_are_named_before_anything_is_trained(networks, tmp_path, settings, message):
    with pytest.raises(InputError, match=re.escape(message)):
        table3.main(networks, tmp_path / "out", **{"architecture": ARCHITECTURE, "recipe": RECIPE} | settings)
    assert not networks.asked
    assert not list(tmp_path.iterdir())


def test_photographs_to_train_on_need_a_folder():
    with pytest.raises(InputError, match=re.escape("data=photos needs data.root=")):
        run("table3", ["experiment=table3", "data=photos"])
