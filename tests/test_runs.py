"""Runs made elsewhere make one table only where they differ in nothing but the variant and the seed."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial

import pytest
from torch.utils.data import TensorDataset

from experiments import variant
from experiments.output.results import read_result
from experiments.setup.commands import spelled
from experiments.setup.configuration import configured
from experiments.setup.objects import Objects
from experiments.tables import table3
from experiments.tables.runs import flat, read_runs
from experiments.tables.table3 import DEPTH
from tests.stand_ins import ARCHITECTURE, RECIPE, TINY, Networks
from zfnet import InputError, ZFNet
from zfnet.identity import BLANK, stamped

SETTINGS = {"architecture": ARCHITECTURE, "recipe": RECIPE, "progress": False}
RUNS = [(name, seed) for name in DEPTH[:2] for seed in (7, 8)]


def make(folder, name, seed, networks=None, architecture=ARCHITECTURE, **recipe):
    how = replace(RECIPE, seed=seed, **recipe)
    variant.main(folder, networks=networks or Networks(), architecture=architecture, recipe=how, variant=name)
    return folder / "result.json"


def rewrite(file, change):
    """Change a result, with a digest that fits."""
    result = json.loads(file.read_text())
    change(result)
    file.write_bytes(stamped(json.dumps(result | {"digest": BLANK}).encode()))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for n, (name, seed) in enumerate(RUNS):
        make(folder / "elsewhere" / str(n), name, seed)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "runs")


def test_a_table_of_runs_is_that_of_the_same_networks_trained(made, tmp_path):
    networks = Networks()
    together = table3.main(networks, tmp_path / "together", **SETTINGS, runs=str(made))
    assert not networks.asked
    trained = table3.main(Networks(), tmp_path / "trained", **SETTINGS, seeds=2, variants=DEPTH[:2])
    assert together["ours"] == trained["ours"] and together["paper"] == trained["paper"]
    apart = {"seeds", "variants", "runs", "classes", "digests", "fresh", "progress"}
    for result in (together, trained):
        result["settings"]["recipe"].pop("seed", None)
    one, other = ({k: v for k, v in r["settings"].items() if k not in apart} for r in (together, trained))
    assert one == other
    texts = [(tmp_path / name / "table.md").read_text() for name in ("together", "trained")]
    assert texts[0].replace(f"No run of: {'; '.join(n for n in table3.PAPER if n not in DEPTH[:2])}.\n", "") == texts[1]


def test_a_table_of_runs_says_where_they_come_from(made, tmp_path):
    result = table3.main(Networks(), tmp_path, **SETTINGS, runs=str(made))
    runs = result["settings"]["runs"]
    assert list(runs) == [f"{name}, seed {seed}" for name, seed in RUNS]
    sources = [read_result(made / "elsewhere" / str(n) / "result.json") for n in range(4)]
    assert [run["digest"] for run in runs.values()] == [source["digest"] for source in sources]
    assert result["provenance"]["seed"] is None and "seed" not in result["settings"]["recipe"]


def test_what_is_missing_is_said(folder, tmp_path):
    shutil.rmtree(folder / "elsewhere" / "3")
    table3.main(Networks(), tmp_path / "out", **SETTINGS, runs=str(folder), variants=DEPTH[:3])
    text = (tmp_path / "out" / "table.md").read_text()
    assert "No run of: krizhevsky without layers 6, 7." in text
    assert "No run of krizhevsky without layers 3, 4, seed 8." in text
    assert "one seed: not decided" in text
    with pytest.raises(InputError, match=f"no run of fig3 in {re.escape(str(folder))}"):
        table3.main(Networks(), tmp_path / "out", **SETTINGS, runs=str(folder), variants=["fig3"])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"epochs": 2}, "recipe.epochs is 2, but 1 in "),
        ({"learning_rate": 0.02}, "recipe.learning_rate is 0.02, but 0.01 in "),
        ({"architecture": partial(ZFNet, **TINY | {"init": "paper"})}, "architecture.init is paper, but he in "),
    ],
    ids=["epochs", "rate", "init"],
)
def test_runs_that_differ_are_refused(folder, how, words):
    file = make(folder / "other", "krizhevsky", 9, **how)
    with pytest.raises(InputError) as error:
        read_runs(folder)
    assert str(error.value).startswith(f"{file}: {words}{folder / 'elsewhere' / '0' / 'result.json'}; ")


@pytest.mark.parametrize("name", ["images", "validation_images", "classes"])
def test_runs_on_other_images_are_refused(folder, name):
    rewrite(folder / "elsewhere" / "2" / "result.json", lambda result: result["settings"].update({name: 5}))
    with pytest.raises(InputError, match=f"{name} is 5, but "):
        read_runs(folder)


@pytest.mark.parametrize("kind", ["training", "validation"])
def test_as_many_other_images_are_refused(folder, kind):
    networks = Networks()
    images, labels = getattr(networks, kind).tensors
    setattr(networks, kind, TensorDataset(images.flip(0), labels))
    make(folder / "other", "krizhevsky", 9, networks)
    with pytest.raises(InputError, match=f"digests.{kind} is "):
        read_runs(folder)


def test_what_a_run_does_not_say_is_not_compared_but_said(folder, tmp_path):
    rewrite(folder / "elsewhere" / "2" / "result.json", lambda result: result["settings"].pop("classes"))
    assert read_runs(folder).unsaid == ["classes"]
    table3.main(Networks(), tmp_path / "out", **SETTINGS, runs=str(folder))
    assert "Not every run records classes." in (tmp_path / "out" / "table.md").read_text()


def test_a_network_and_seed_twice_is_refused(folder):
    shutil.copytree(folder / "elsewhere" / "1", folder / "again")
    files = folder / "again" / "result.json", folder / "elsewhere" / "1" / "result.json"
    message = f"{files[0]} and {files[1]} are both of krizhevsky, seed 8; keep one of them"
    with pytest.raises(InputError, match=re.escape(message)):
        read_runs(folder)


def test_files_that_are_no_runs(folder):
    before = read_runs(folder)
    rewrite(make(folder / "train", "krizhevsky", 7), lambda result: result.update(experiment="train"))
    assert read_runs(folder) == before  # another experiment's is left out
    file = make(folder / "old", "krizhevsky", 9)
    rewrite(file, lambda result: result["ours"].pop("history"))
    with pytest.raises(InputError, match=re.escape(f"{file} does not say history: run experiment=variant again")):
        read_runs(folder)
    rewrite(file, lambda result: result["settings"].update(variant="fig4") or result["ours"].update(history=[]))
    with pytest.raises(InputError, match=re.escape(f"{file} is of 'fig4', which is not a row of Table 3")):
        read_runs(folder)
    file.write_text(file.read_text().replace("fig4", "fig3"))
    with pytest.raises(InputError, match="is damaged, was changed"):
        read_runs(folder)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="no result of experiment=variant in "):
        read_runs(folder)


def test_settings_by_their_full_names():
    assert flat({"a": 1, "b": {"c": [2], "d": {"e": None}}}) == {"a": 1, "b.c": [2], "b.d.e": None}


def test_no_images_are_needed(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = spelled(["experiment=table3", f"runs={made}"])
    result = Objects(configured(words), words, None).experiment(tmp_path / "out")
    assert result["ours"]["seeds"] == {name: [7, 8] for name in DEPTH[:2]}
    assert result["settings"]["images"] == 24
