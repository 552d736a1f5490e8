"""`fresh`: a stopped run is resumed, refused if anything has changed, or started anew."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from experiments.figures import fig2, fig7
from experiments.setup import networks
from experiments.setup.choices import names
from experiments.setup.commands import spelled
from experiments.setup.configuration import configured
from experiments.setup.networks import Networks
from experiments.setup.objects import Objects
from experiments.setup.options import READING, SHOWING, Reading, Showing
from experiments.tables.transfer import frozen
from tests.stand_ins import ARCHITECTURE, RECIPE
from zfnet import InputError, scanning
from zfnet.data.scenes import Scenes

SUITES = ("figures", "tables", "all")
STATELESS = ("fig3", "units", "stripes", "merge", "serve")


@pytest.mark.parametrize("experiment", [name for name in names("experiment") if name not in SUITES])
def test_what_keeps_a_state_can_be_started_anew(experiment):
    settings = configured([f"experiment={experiment}"]).experiment
    assert ("fresh" in settings) == (experiment not in STATELESS)
    assert not settings.get("fresh")


def test_defaults_are_those_of_the_options():
    assert set(READING) == set(Reading.__annotations__)
    assert set(READING | SHOWING) == set(Showing.__annotations__)


@pytest.fixture
def interrupted(monkeypatch):
    """Has Ctrl-C pressed at a call of a function of a module, in a block."""

    def at(call, module, name):
        patch = pytest.MonkeyPatch()
        function, calls = getattr(module, name), []

        def counted(*arguments, **settings):
            calls.append(name)
            if len(calls) == call:
                patch.undo()
                raise KeyboardInterrupt
            return function(*arguments, **settings)

        patch.setattr(module, name, counted)

    return at


FIG2 = {"layers": ["relu1"], "grids": [[1, 2]], "k": 2, "width": 3, "batch_size": 4, "workers": 0, "progress": False}
FIG7 = {"layer": "relu2", "images": [0], "others": 1, "measured": 0, "size": 8, "step": 12}
FIG7 |= {"batch_size": 4, "workers": 0, "progress": False}


CHANGES = {  # what differs, in the words of the error
    fig2.main: {"layers": ({"layers": ["relu2"]}, "layers"), "distinct": ({"distinct": False}, "distinct")},
    fig7.main: {"layer": ({"layer": "relu1"}, "layers"), "others": ({"others": 2}, "k (2, now 3)")},
}


@pytest.mark.parametrize(("main", "settings"), [(fig2.main, FIG2), (fig7.main, FIG7)], ids=["fig2", "fig7"])
def test_a_scan_resumed_with_something_changed(main, settings, model, data, tmp_path, interrupted):
    interrupted(2, scanning, "_scan_batch")
    with pytest.raises(KeyboardInterrupt):
        main(model, data, tmp_path / "out", **settings)
    assert (tmp_path / "out" / "scan.partial").exists()
    for change, says in CHANGES[main].values():
        with pytest.raises(InputError, match=r"was made with different .*fresh=True") as error:
            main(model, data, tmp_path / "out", **settings | change)
        assert says in str(error.value)
    anew = main(model, data, tmp_path / "out", **settings | change, fresh=True)
    assert anew["ours"] == main(model, data, tmp_path / "other", **settings | change)["ours"]
    assert not (tmp_path / "out" / "scan.partial").exists()


@pytest.mark.parametrize(("module", "settings"), [(fig2, FIG2), (fig7, FIG7)], ids=["fig2", "fig7"])
def test_a_run_that_is_stopped_while_it_draws_does_not_scan_again(module, settings, model, data, tmp_path, monkeypatch):
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "compose" if module is fig2 else "draw", stopped)
        module.main(model, data, tmp_path / "out", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(scanning, "_scan_batch", stopped)
        resumed = module.main(model, data, tmp_path / "out", **settings)
    assert resumed["ours"] == module.main(model, data, tmp_path / "other", **settings)["ours"]
    assert not (tmp_path / "out" / "scan.partial").exists()


def test_other_images_and_another_network(model, data, tmp_path, interrupted):
    interrupted(2, scanning, "_scan_batch")
    with pytest.raises(KeyboardInterrupt):
        fig2.main(model, data, tmp_path, **FIG2)
    others = Scenes("val", 12, size=32, seed=1, transform=data.transform)
    with pytest.raises(InputError, match="different images"):
        fig2.main(model, others, tmp_path, **FIG2)
    with torch.random.fork_rng(), torch.no_grad():
        model.conv1.weight.mul_(2)
    try:
        with pytest.raises(InputError, match="different weights"):
            fig2.main(model, data, tmp_path, **FIG2)
    finally:
        model.conv1.weight.data.div_(2)
    assert fig2.main(model, data, tmp_path, **FIG2)  # which resumes


def test_features_are_computed_anew(model, data, tmp_path):
    frozen(model, data, ["relu2"], tmp_path, progress=False)
    (file,) = tmp_path.glob("*.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged.*fresh=True"):
        frozen(model, data, ["relu2"], tmp_path, progress=False)
    assert len(frozen(model, data, ["relu2"], tmp_path, progress=False, fresh=True)["relu2"]) == len(data)
    assert file.read_bytes()[-1] == content[-1] ^ 1


@pytest.mark.parametrize("fresh", [False, True])
def test_networks_that_an_experiment_trains(fresh, model, data, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(networks, "train", lambda *arguments, **settings: asked.update(settings) or [])
    kept = Networks(tmp_path, data, None, model.preprocessing, fresh=fresh, progress=False)
    monkeypatch.setattr(Networks, "training", data)
    kept.trained("a", partial(ARCHITECTURE), RECIPE)
    assert asked["fresh"] == fresh


def test_a_network_that_is_trained_first_is_trained_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    small = ["model.architecture.maps=[4,4,4,4,4]", "model.architecture.hidden=[8]", "data.count={train: 4, val: 2}"]
    for fresh in (False, True):
        words = spelled(["experiment=fig2", "model.weights=trained", "k=2", *small, f"fresh={str(fresh).lower()}"])
        Objects(configured(words), words, lambda _, words: asked.append("++experiment.fresh=true" in words)).trained()
    assert asked == [False, True]


def test_the_command_line_says_how_to_start_anew(run, tmp_path, interrupted):
    line = [
        "experiment=fig2",
        "model.weights=null",
        "model.architecture.maps=[4,4,4,4,4]",
        "model.architecture.hidden=[8]",
    ]
    line += ["layers=[relu1]", "grids=[[1,1]]", "data.count={train: 4, val: 6}", "batch_size=2", "k=2", "workers=0"]
    interrupted(2, scanning, "_scan_batch")
    assert run(*line)[0] == 130
    status, lines = run(*line, "data.seed=1")
    assert status == 2 and "different images" in lines[-1] and "fresh=true" in lines[-1]
    assert run(*line, "data.seed=1", "fresh=true")[0] == 0
    result = json.loads(next(Path().glob("outputs/fig2/*/result.json")).read_text())
    assert "fresh" not in result["settings"]
