"""Table 3: the paper's numbers as printed, ours by arithmetic on known ones."""

import json
import re
from functools import partial

import pytest
from scipy import stats

from experiments.run import run
from experiments.setup.commands import spelled
from experiments.setup.configuration import configured
from experiments.setup.objects import Objects
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


def measurements_of(errors, history=()):
    """Measurements by (variant, seed), from the three errors of each."""
    return {
        key: {"error": dict(zip(table3.COLUMNS, each, strict=True)), "parameters": 1, "history": list(history)}
        for key, each in errors.items()
    }


def test_table3_means_deviations_and_differences_of_known_errors(networks, tmp_path, monkeypatch):
    order = {name: place for place, name in enumerate(VARIANTS)}

    def known(run, _):
        name, seed = run.model.known
        base = float(order[name] + {7: 0, 8: 1, 9: 5}[seed])  # mean + 2, deviation the square root of 7
        return measurements_of({0: (base, 100 - base, base / 2)})[0]

    monkeypatch.setattr(table3, "measurements", known)
    result = table3.main(networks, tmp_path, architecture=ARCHITECTURE, recipe=RECIPE, seeds=3, progress=False)
    for name, place in order.items():
        assert result["ours"]["error"][name]["train_top1"] == pytest.approx(place + 2)
        assert result["ours"]["deviation"][name]["train_top1"] == pytest.approx(7**0.5)
        assert result["ours"]["deviation"][name]["validation_top5"] == pytest.approx(7**0.5 / 2)
    assert list(result["ours"]["difference"]) == [name for name in VARIANTS if name not in ("krizhevsky", "fig3")]
    for name, columns in result["ours"]["difference"].items():
        place = order[name] - order[VARIANTS[name][0]]  # the same for all seeds
        assert [of["mean"] for of in columns.values()] == pytest.approx([place, -place, place / 2])
        assert columns["train_top1"]["each"] == pytest.approx([place] * 3)
    assert "rank_correlation" not in result["ours"]
    text = (tmp_path / "table.md").read_text()
    assert "| 2.0 ± 2.6 " in text and "| 98.0 ± 2.6 " in text and "of 3 networks for each row" in text
    assert "512-1024-512 is 8-16-12 here, and fc 2048 is 4-4" in text
    assert "layers 3, 4, 6, 7 the train error is 6.0 ± 2.6, of the whole network 2.0 ± 2.6; in the paper 71.1" in text


def test_papers_differences():
    assert list(table3.papers("krizhevsky without layers 3, 4, 6, 7").values()) == [36.0, 30.8, 32.0]
    assert list(table3.papers("fig3 512-1024-512").values()) == [-14.3, -0.9, -0.5]
    assert list(table3.papers("krizhevsky fc 8192").values()) == [-8.3, -0.5, 0.0]


def test_differences_are_paired_by_seed():
    shift = {0: 0.0, 1: 20.0, 2: -30.0, 3: 0.0}  # of a seed, in both networks: it is not in the differences
    by = {("fig3", seed): (30 + shift[seed], 40 + shift[seed], 20.0) for seed in (2, 0, 1)}
    by |= {("fig3 fc 2048", seed): (31 + shift[seed] + seed / 10, 40 + shift[seed], 19.0) for seed in (0, 1, 2, 3)}
    compared = table3.compare("fig3 fc 2048", measurements_of(by))
    assert compared["train_top1"]["each"] == pytest.approx([1.0, 1.1, 1.2])  # seed 3 has no partner
    half = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    assert compared["train_top1"]["interval"] == pytest.approx((1.1 - half, 1.1 + half))
    assert [of["verdict"] for of in compared.values()] == ["as in the paper", "not decided", "contrary"]
    alone = table3.compare("fig3 fc 2048", measurements_of({key: by[key] for key in by if key[1] == 0}))
    assert alone["train_top1"]["interval"] is None and alone["train_top1"]["verdict"] == "one seed: not decided"


@pytest.mark.parametrize(
    ("paper", "bounds", "seeds", "words"),
    [
        (3.0, (0.1, 2.0), 3, "as in the paper"),
        (-3.0, (-2.0, -0.1), 3, "as in the paper"),
        (3.0, (-2.0, -0.1), 3, "contrary"),
        (-3.0, (0.1, 2.0), 3, "contrary"),
        (3.0, (-0.1, 2.0), 3, "not decided"),
        (3.0, (0.0, 2.0), 3, "not decided"),
        (3.0, (-2.0, 0.0), 3, "not decided"),
        (0.0, (0.1, 2.0), 3, "the paper has none"),
        (3.0, None, 1, "one seed: not decided"),
        (3.0, None, 0, "no seed in common: not decided"),
    ],
)
def test_a_verdict_is_the_side_of_zero(paper, bounds, seeds, words):
    assert table3.verdict(paper, bounds, seeds) == words


def epochs(errors, rates=()):
    rates = rates or [0.01] * len(errors)
    pairs = enumerate(zip(errors, rates, strict=True), 1)
    return [{"epoch": n, "validation_error": error, "learning_rate": rate} for n, (error, rate) in pairs]


def test_course_of_a_training():
    history = epochs([0.9, 0.7, 0.65, 0.66, 0.646, 0.647], [0.01, 0.01, 0.01, 0.001, 0.001, 0.0001])
    flat = {"epochs": 6, "before": 65.0, "last_third": 64.6, "flat": True, "rate_fell": [4, 6]}
    assert table3.course(history, 90.0) == flat
    assert not table3.course(epochs([0.9, 0.7, 0.65, 0.66, 0.645, 0.647]), 90.0)["flat"]  # by 0.5
    assert not table3.course(epochs([0.9, 0.9, 0.895]), 90.0)["flat"]  # it learned nothing
    assert table3.course(epochs([0.6, 0.5, 0.55]), 90.0)["last_third"] == 55.0  # it rose: flat
    assert table3.course(epochs([0.6]), 90.0)["flat"] is None and table3.course([], 90.0)["epochs"] == 0


def test_whole_networks_are_said_to_be_flat_or_not():
    falling = epochs([0.9, 0.8, 0.7], [0.01, 0.01, 0.001])
    by = {"fig3, seed 7": falling, "krizhevsky, seed 7": epochs([0.5] * 3), "fig3 fc 2048, seed 7": falling}
    title, *lines = table3.lengths({name: table3.course(history, 90.0) for name, history in by.items()})
    assert "falls by less than 0.5 points" in title
    best, rate = "best validation error", "the learning rate"
    assert lines == [
        f"fig3, seed 7: {best} 80.0 before the last third of 3 epochs, 70.0 in it: not flat; {rate} fell at epoch 3.",
        f"krizhevsky, seed 7: {best} 50.0 before the last third of 3 epochs, 50.0 in it: flat; {rate} never fell.",
        "Flat of the 1 other networks: 0.",
    ]
    assert table3.lengths({"fig3, seed 7": table3.course([], 90.0)}) == []


def test_rows_of_depth():
    removed = [name.removeprefix("krizhevsky without layers ") for name in table3.rows_of("depth")]
    assert removed == ["krizhevsky", "3, 4", "6, 7", "3, 4, 6, 7"]
    assert table3.rows_of(None) == list(VARIANTS)
    assert table3.rows_of(["fig3", "krizhevsky"]) == ["krizhevsky", "fig3"]
    Objects(configured(spelled(["experiment=table3", "variants=depth"])), [], None)  # it is one of the choices
    with pytest.raises(InputError, match="depht"):
        Objects(configured(spelled(["experiment=table3", "variants=depht"])), [], None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 0}, "seeds is 0"),
        ({"variants": []}, "variants is empty: give names of rows, depth, or null for all"),
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
