"""Figure 4 on a tiny network with snapshots made here: its winners are the scan's, its pictures their projections."""

import copy
import json
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from experiments.figures import fig4
from experiments.output.feature_maps import Look
from experiments.run import command_line
from experiments.setup.configuration import configured
from zfnet import Deconvnet, InputError, scan, weights
from zfnet.data.preprocessing import Preprocessing
from zfnet.data.scenes import Scenes
from zfnet.rendering import outside

LAYERS = ["relu1", "relu2"]
EPOCHS = [1, 2, 5, 9]  # 5 and 9 are one and the same


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = OrderedDict(
        conv1=nn.Conv2d(3, 5, 5, 2),
        relu1=nn.ReLU(inplace=True),
        pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
        conv2=nn.Conv2d(5, 7, 3, padding=1),
        relu2=nn.ReLU(inplace=True),
        mean=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        fc=nn.Linear(7, 16),
    )
    model = nn.Sequential(layers).eval()
    model.preprocessing = Preprocessing(size=32, resize=36)
    return model


@pytest.fixture(scope="module")
def networks() -> dict[int, nn.Sequential]:
    """At epoch 1 map 3 of layer 1 is dead, and map 2 of layer 2 is at the end."""
    made = {1: network(1), 2: network(2), 5: network(3), 9: network(3)}
    made[1].conv1.bias.data[3] = -1e3
    for n in (5, 9):
        made[n].conv2.bias.data[2] = -1e3
    return made


@pytest.fixture(scope="module")
def trained(networks, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    for n, model in networks.items():
        weights.save(model, folder / "epochs" / f"epoch-{n:04d}.safetensors")
    return folder / "model.safetensors"  # which nobody reads


@pytest.fixture(scope="module")
def data():
    return Scenes("train", 12, size=32, transform=Preprocessing(size=32, resize=36))


def small(data, weights, out, **more):
    """Figure 4 of a network that is none of the snapshots."""
    model = more.pop("model", None) or network(0)
    return fig4.main(model, data, out, weights=weights, **{"layers": LAYERS, "width": 3, "progress": False, **more})


@pytest.fixture(scope="module")
def figure(data, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("fig4") / "out"
    return out, small(data, trained, out, maps=4, batch_size=4)


@pytest.fixture
def seen(monkeypatch) -> list[fig4.Panel]:
    """The panels that are drawn."""
    panels: list[fig4.Panel] = []
    draw = fig4.draw_panels
    monkeypatch.setattr(
        fig4, "draw_panels", lambda page, these, *rest: panels.extend(these) or draw(page, these, *rest)
    )
    return panels


@pytest.fixture
def captions(monkeypatch) -> list[str]:
    """The captions that are written."""
    written: list[str] = []
    write = fig4.Page.caption
    monkeypatch.setattr(fig4.Page, "caption", lambda page, words: written.append(words) or write(page, words))
    return written


def test_it_writes_what_it_returns(figure):
    out, result = figure
    assert files(out) == {"figure.png", "figure.pdf", "table.md", "result.json"}
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    assert set(result["paper"]) == set(result["ours"])
    assert result["ours"]["epochs"] == EPOCHS
    assert Image.open(out / "figure.png").width == 600


def test_winners_are_those_of_each_snapshots_scan(figure, networks, data):
    for n, model in networks.items():
        for layer, top in scan(model, data, LAYERS, 1, progress=False).items():
            found = figure[1]["ours"]["winners"][layer][n]
            for column in ("value", "image", "row", "column"):
                assert found[column] == getattr(top, column)[:, 0].tolist()
            assert found["file"] == [data.file(i) for i in found["image"]]


def test_a_snapshot_like_the_last_is_like_it(figure):
    ours = figure[1]["ours"]
    for layer in LAYERS:
        for name in ("activations", "projections"):
            assert ours[name][layer][2:] == pytest.approx([1, 1], abs=1e-14)
            assert all(value < 0.9 for value in ours[name][layer][:2])
        assert ours["changed"][layer][0] is None
        assert ours["changed"][layer][3] == 0
        assert ours["settled_epoch"][layer] == 5


def test_changed_is_the_share_of_winners_that_are(figure):
    for layer in LAYERS:
        winners = figure[1]["ours"]["winners"][layer]
        pairs = zip(winners[2]["image"], winners[5]["image"], winners[2]["value"], winners[5]["value"], strict=True)
        other = [a != b for a, b, *values in pairs if min(values) > 0]
        assert figure[1]["ours"]["changed"][layer][2] == pytest.approx(sum(other) / len(other), rel=1e-12)


def test_dead_maps_are_counted_and_left_empty(figure, data, trained, tmp_path, seen):
    ours = figure[1]["ours"]
    assert ours["dead_maps"]["relu1"] == {1: [3], 2: [], 5: [], 9: []}
    assert ours["dead_maps"]["relu2"][9] == [2]
    assert 2 not in ours["drawn"]["relu2"]
    small(data, trained, tmp_path, layers=["relu1"], choose=[3, 0])
    assert seen[0].tiles.empty.tolist() == [[True, False, False, False], [False] * 4]
    picture = seen[0].draw(10, Look(contrast=1.0), enhance=1.0)
    assert picture.shape == (3, 2 * 10 + fig4.GAP, 4 * 10 + 3 * fig4.GAP)
    assert (picture[:, :10, :10] == 1).all()
    assert not (picture[:, :10, 10 + fig4.GAP : 20] == 1).all()


def test_what_is_drawn_is_the_winners_projection(networks, data, trained, tmp_path, seen):
    ours = small(data, trained, tmp_path, choose={"relu2": [4]}, epochs=[9, 2])["ours"]
    assert ours["epochs"] == [2, 9]
    assert [(panel.layer, panel.maps) for panel in seen] == [("relu2", [4])]
    for place, n in enumerate(ours["epochs"]):
        winner = {name: column[4] for name, column in ours["winners"]["relu2"][n].items()}
        deconvnet, image = Deconvnet(networks[n]), data[winner["image"]][0][None]
        patch = deconvnet.project_units(image, "relu2", [[0, 4, winner["row"], winner["column"]]])
        expected = Preprocessing(size=32, resize=36).rgb(patch.projections)[0]
        torch.testing.assert_close(seen[0].tiles.signals[0, place], expected, rtol=1e-4, atol=1e-6)
        beyond = outside(patch.boxes, (32, 32), expected.shape[-2:])[0, 0]
        assert torch.equal(seen[0].tiles.outside[0, place], beyond)


def test_what_lies_outside_the_image_is_not_grey(data, trained, tmp_path, seen):
    small(data, trained, tmp_path, layers=["relu2"])
    picture, tiles = seen[0].draw(17, Look(), enhance=1.5), seen[0].tiles  # a pixel for each
    pixels = picture.unfold(1, 17, 17 + fig4.GAP).unfold(2, 17, 17 + fig4.GAP)
    beyond = tiles.outside & ~tiles.empty[:, :, None, None]
    assert beyond.any() and not beyond.all()
    assert {round(value, 2) for value in pixels[0][beyond].tolist()} == {0.72, 1.0}


def test_colours_are_enhanced_and_grey_has_none(data, trained, tmp_path, seen):
    small(data, trained, tmp_path, layers=["relu1"])
    plain, strong, grey = (
        seen[0].draw(5, Look(contrast=1.0, colour=colour), enhance)
        for colour, enhance in (("rgb", 1.0), ("rgb", 1.5), ("grey", 1.5))
    )
    spread = [(picture.amax(0) - picture.amin(0)).mean() for picture in (plain, strong, grey)]
    assert spread[1] > 1.2 * spread[0] > 0
    assert spread[2] < 1e-6


def test_rules_change_projections_and_not_winners(figure, data, trained, tmp_path, captions):
    ours = small(data, trained, tmp_path, maps=4, rules="guided", batch_size=4)["ours"]
    assert "Projected by guided rules" in captions[0]
    for name in ("winners", "activations", "drawn"):
        assert json.dumps(ours[name]) == json.dumps(figure[1]["ours"][name])
    assert ours["projections"]["relu2"] != figure[1]["ours"]["projections"]["relu2"]


def with_history(networks, folder: Path, rates: list[float] | None, schedule: str | None = None) -> Path:
    """Snapshots of a training with these learning rates; None: without a history."""
    metadata = {"identity": {"schedule": schedule}} if schedule else {}
    for n, model in networks.items():
        weights.save(model, folder / "epochs" / f"epoch-{n:04d}.safetensors", **metadata)
    history = {} if rates is None else {"history": [{"learning_rate": rate} for rate in rates]}
    weights.save(networks[9], folder / "model.safetensors", **metadata, **history)
    return folder / "model.safetensors"


@pytest.mark.parametrize("schedule", ["cosine", "plateau", None])
def test_a_rate_that_falls_to_zero_is_said(schedule, networks, data, tmp_path, captions):
    file = with_history(networks, tmp_path / "train", [0.1, 0.2, 0.1, 0.0], schedule)
    small(data, file, tmp_path / "out", layers=["relu1"], maps=1)
    assert ("every layer settles by construction" in captions[0]) == (schedule == "cosine")
    assert ("learning rate fell in epochs 3, 4" in captions[0]) == (schedule != "cosine")


@pytest.mark.parametrize(
    ("rates", "falls", "early", "words"),
    [
        ([0.1] * 9, [], True, "The learning rate did not fall"),
        (
            [0.1] * 5 + [0.01] * 2 + [0.001] * 2,
            [6, 8],
            True,
            "before the first of them: relu1, relu2; not before: none",
        ),
        (
            [0.1] * 4 + [0.01] * 5,
            [5],
            False,
            "before the first of them: none; not before: relu1, relu2",
        ),  # during epoch 5
        (None, None, None, "When the learning rate fell is not recorded"),
    ],
)
def test_what_settled_before_the_rate_fell(rates, falls, early, words, networks, data, tmp_path, captions):
    ours = small(data, with_history(networks, tmp_path / "train", rates), tmp_path / "out")["ours"]
    assert ours["settled_epoch"] == {"relu1": 5, "relu2": 5}
    assert ours["rate_fell"] == falls
    assert ours["settled_before_rate_fell"] == {"relu1": early, "relu2": early}
    assert words in captions[0]
    answer = {True: "yes", False: "no", None: "not recorded"}[early]
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert [line.split("|")[-2].strip() for line in lines[2:4]] == [answer] * 2
    told = [line for line in lines if line.startswith("The learning rate fell in epochs")]
    assert told == (
        [] if falls is None else [f"The learning rate fell in epochs: {', '.join(map(str, falls)) or 'none'}"]
    )


def test_what_never_settles_did_not_before_the_rate_fell():
    for falls in ([3], []):
        early = fig4.before_the_rate_fell({"relu1": None, "relu2": 2}, falls)["settled_before_rate_fell"]
        assert early == {"relu1": False, "relu2": True}


def test_the_network_is_trained_so_that_its_epochs_are_kept():
    assert configured(["experiment=fig4"]).model.weights == "trained"


def test_the_model_is_left_as_it_was_found(data, trained, tmp_path):
    model = network(0).train()
    before = copy.deepcopy(model.state_dict())
    small(data, trained, tmp_path, model=model, layers=["relu1"], maps=1)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("where", ["scan", "comparison"])
def test_a_run_that_was_stopped_goes_on(where, figure, data, trained, tmp_path, monkeypatch):
    class Interrupted(Scenes):
        reads = 0

        def __getitem__(self, i):
            Interrupted.reads += 1
            if where == "scan" and Interrupted.reads == 10:  # one tells the size, and a batch has four
                raise KeyboardInterrupt
            return super().__getitem__(i)

    images = Interrupted("train", 12, size=32, transform=data.transform)
    if where == "comparison":

        def interrupted(*arguments, **settings):
            raise KeyboardInterrupt

        monkeypatch.setattr(fig4, "likenesses", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small(images, trained, tmp_path / "out", maps=4, batch_size=4)
    assert files(tmp_path) == {"scan.partial"}
    monkeypatch.undo()
    scanned: list[int] = []
    scan_together = fig4.scan_together

    def counted(*arguments, **settings):
        before = Interrupted.reads
        found = scan_together(*arguments, **settings)
        scanned.append(Interrupted.reads - before)
        return found

    monkeypatch.setattr(fig4, "scan_together", counted)
    result = small(images, trained, tmp_path / "out", maps=4, batch_size=4)
    assert scanned == [4 if where == "scan" else 0]  # of 12
    ours, expected = ({**r["ours"], "dataset": None} for r in (result, figure[1]))
    assert json.dumps(ours) == json.dumps(expected)
    assert "scan.partial" not in files(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": None}, "random weights have no snapshots"),
        (
            {"weights": "nowhere/model.safetensors"},
            "no snapshots epoch-.* in nowhere/epochs; train the network with exp",
        ),
        ({"epochs": [2, 3]}, "no snapshot of epoch 3 in .*; there are 1, 2, 5, 9"),
        ({"layers": ["relu7"]}, "no layer of Sequential 'relu7'"),
        ({"choose": "best"}, "no way to choose maps 'best'"),
        ({"choose": {"relu9": [1]}}, "no layer in choose 'relu9'"),
        ({"maps": 0}, "maps is 0"),
        ({"probes": 0}, "probes is 0"),
        ({"enhance": -1}, "enhance is -1"),
        ({"contrast": 0}, "contrast is 0"),
        ({"settled": 1.5}, "settled is 1.5"),
        ({"width": 50}, "width is 50"),
        ({"rules": "guide"}, "no rule set 'guide'"),
        ({"colour": "green"}, "no colour 'green'"),
        ({"style": "dark"}, "no style 'dark'"),
    ],
)
def test_it_refuses_in_words_and_leaves_nothing(data, trained, tmp_path, settings, message):
    with pytest.raises(InputError, match=message) as error:
        small(data, settings.pop("weights", trained), tmp_path / "a" / "b", **settings)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_one_snapshot_is_a_figure_too(data, trained, tmp_path):
    ours = small(data, trained, tmp_path, layers=["relu1"], maps=2, epochs=[1])["ours"]
    for name in ("activations", "projections"):
        assert ours[name] == {"relu1": pytest.approx([1], abs=1e-14)}
    assert (ours["changed"], ours["settled_epoch"]) == ({"relu1": [None]}, {"relu1": None})


def test_published_weights_have_no_snapshots_wherever_the_command_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "epochs").mkdir()
    (tmp_path / "epochs" / "epoch-0001.safetensors").touch()  # of another network
    with pytest.raises(InputError, match=r"published weights have no snapshots; give model.weights=trained"):
        fig4.snapshots("published")


def test_the_command_trains_first_and_finds_its_snapshots(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["model.architecture.maps=[4,4,4,4,4]", "model.architecture.hidden=[8]", "data.count={train: 24, val: 8}"]
    words += ["train.epochs=3", "maps=2", "width=4"]
    monkeypatch.setattr(sys, "argv", ["run.py", "experiment=fig4", *words])
    command_line()
    out = tmp_path / "outputs" / "fig4" / "zfnet_small-scenes"
    result = json.loads((out / "result.json").read_text())
    assert (result["ours"]["epochs"], result["ours"]["images"]) == ([1, 2, 3], 24)
    assert "| relu5" in capsys.readouterr().out
