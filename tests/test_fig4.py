"""Figure 4 on a tiny network with snapshots made here: its winners are the scan's, its curves the slow twins'."""

import copy
import json
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from experiments.figures import fig4
from experiments.run import command_line
from zfnet import Deconvnet, InputError, TopActivations, scan, weights
from zfnet.data.preprocessing import Preprocessing
from zfnet.data.scenes import Scenes
from zfnet.graph import Graph

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
    return fig4.main(model, data, out, weights=weights, **{"layers": LAYERS, "width": 500, "progress": False, **more})


@pytest.fixture(scope="module")
def figure(data, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("fig4") / "out"
    return out, small(data, trained, out, maps=4)


@pytest.fixture
def seen(monkeypatch) -> list[fig4.Panel]:
    """The panels that are drawn."""
    panels: list[fig4.Panel] = []
    draw = fig4.draw
    monkeypatch.setattr(fig4, "draw", lambda these, *rest, **more: panels.extend(these) or draw(these, *rest, **more))
    return panels


def test_it_writes_what_it_returns(figure):
    out, result = figure
    assert files(out) == {"figure.png", "figure.pdf", "table.md", "result.json"}
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    assert set(result["paper"]) == set(result["ours"])
    assert result["ours"]["epochs"] == EPOCHS
    assert Image.open(out / "figure.png").width == 500


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
    assert seen[0].empty.tolist() == [[True, False, False, False], [False] * 4]
    picture = seen[0].draw(10, quantile=1.0, enhance=1.0)
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
        torch.testing.assert_close(seen[0].signals[0, place], expected, rtol=1e-4, atol=1e-6)


def test_correlations_are_those_of_all_activations(networks, data):
    images = torch.stack([data[i][0] for i in (0, 3, 4, 7)])
    deconvnets = [Deconvnet(networks[n]) for n in (1, 2, 9)]
    found = fig4.correlations_with_last(deconvnets, data, LAYERS, torch.tensor([7, 0, 3, 4]), progress=False)
    for layer in LAYERS:
        depth = [name for name, _ in networks[9].named_children()].index(layer) + 1
        with torch.no_grad():
            each = [networks[n][:depth](images).double().movedim(1, 0).flatten(1) for n in (1, 2, 9)]
        for n, x in enumerate(each):
            for m in range(len(x)):
                expected = float(torch.corrcoef(torch.stack([x[m], each[-1][m]]))[0, 1])
                if not each[-1][m].any():
                    assert found[layer][n, m].isnan()
                else:
                    assert float(found[layer][n, m]) == pytest.approx(
                        expected if x[m].any() else 0, rel=1e-9, abs=1e-12
                    )


def test_likenesses_are_the_cosines_of_whole_projections(networks, data):
    models = [networks[n] for n in (1, 2, 9)]
    top = scan(models[-1], data, ["relu2"], 1, progress=False)["relu2"]
    found = fig4.likenesses([Deconvnet(m) for m in models], data, {"relu2": top}, at_once=3, progress=False)["relu2"]
    for m in range(7):
        image, row, column = (int(places[m, 0]) for places in (top.image, top.row, top.column))
        projections = []
        for model in models:
            deconvnet = Deconvnet(model)
            recording = deconvnet.record(data[image][0][None], ["relu2"])
            signal = torch.zeros_like(recording.activations["relu2"])
            signal[0, m, row, column] = recording.activations["relu2"][0, m, row, column]
            projections.append(deconvnet.project(recording, "relu2", signal).double().flatten())
        if top.value[m, 0] <= 0:
            assert found[:, m].isnan().all()
            continue
        expected = [float(F.cosine_similarity(p, projections[-1], dim=0)) for p in projections]
        assert found[:, m].tolist() == pytest.approx(expected, abs=1e-5)
        assert found[-1, m] == 1


def test_settled_is_where_a_curve_stays_above():
    assert fig4.settled_epoch([1, 2, 5, 9], [0.1, 0.9, 0.95, 1.0], 0.9) == 2
    assert fig4.settled_epoch([1, 2, 5, 9], [0.95, 0.2, 0.95, 1.0], 0.9) == 5
    assert fig4.settled_epoch([1, 2, 5, 9], [0.9, 0.9, 0.9, 1.0], 0.9) == 1
    assert fig4.settled_epoch([1, 2, 5, 9], [0.1, 0.2, 0.3, 1.0], 0.9) is None
    assert fig4.settled_epoch([1, 2, 5, 9], [None, None, None, None], 0.9) is None


def test_a_map_whose_image_stays_has_not_changed():
    def top(value, image):
        places = torch.tensor(image)[:, None]
        return TopActivations(torch.tensor(value)[:, None], places, places, places)

    tops = [top([1.0, 1.0, 0.0, 1.0], [0, 1, 2, 3]), top([2.0, 2.0, 2.0, 2.0], [0, 5, 6, 3]), top([0.0] * 4, [0] * 4)]
    assert fig4.changed(tops) == [None, 1 / 3, None]


def test_snapshots_in_one_network_keep_their_layers_names():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            x = F.relu(self.one(x))
            return F.relu(F.relu(self.two(x)) + x).mean((2, 3))

    alone = Graph(Branches()).layers
    both = Graph(fig4.Snapshots({"epoch1": Branches(), "epoch2": Branches()})).layers
    assert both == [f"epoch{n}.{layer}" for n in (1, 2) for layer in alone]


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
            if where == "scan" and Interrupted.reads == 9:
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

    def counted(*arguments, **settings):
        before = Interrupted.reads
        found = scan(*arguments, **settings)
        scanned.append(Interrupted.reads - before)
        return found

    monkeypatch.setattr(fig4, "scan", counted)
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
        ({"quantile": 0}, "quantile is 0"),
        ({"settled": 1.5}, "settled is 1.5"),
        ({"width": 3}, "width is 3"),
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


def test_the_command_trains_first_and_finds_its_snapshots(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["model.architecture.maps=[4,4,4,4,4]", "model.architecture.hidden=[8]", "data.count={train: 24, val: 8}"]
    words += ["train.epochs=3", "maps=2", "width=800"]
    monkeypatch.setattr(sys, "argv", ["run.py", "experiment=fig4", *words])
    command_line()
    out = tmp_path / "outputs" / "fig4" / "zfnet_small-scenes"
    result = json.loads((out / "result.json").read_text())
    assert (result["ours"]["epochs"], result["ours"]["images"]) == ([1, 2, 3], 24)
    assert "| relu5" in capsys.readouterr().out
