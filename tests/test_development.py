"""Snapshots against slow twins: every activation correlated, every projection made alone, every scan its own."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Subset

from zfnet import Deconvnet, InputError, TopActivations, scan
from zfnet.analysis.development import changed, correlations_with_last, likenesses, scan_together, settled_epoch
from zfnet.data.preprocessing import Preprocessing
from zfnet.data.scenes import Scenes
from zfnet.graph import Graph

LAYERS = ["relu1", "relu2"]


def network(seed: int, **dead: int) -> nn.Sequential:
    """A network of that seed; of each layer that is named, one map is never above 0."""
    torch.manual_seed(seed)
    layers = OrderedDict(
        conv1=nn.Conv2d(3, 5, 5, 2),
        relu1=nn.ReLU(inplace=True),
        pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
        conv2=nn.Conv2d(5, 7, 3, padding=1),
        relu2=nn.ReLU(inplace=True),
    )
    for layer, m in dead.items():
        layers[layer].bias.data[m] = -1e3
    return nn.Sequential(layers).eval()


@pytest.fixture(scope="module")
def networks() -> list[nn.Sequential]:
    return [network(1, conv1=3), network(2), network(3, conv2=2)]


@pytest.fixture(scope="module")
def data() -> Scenes:
    return Scenes("train", 12, size=32, transform=Preprocessing(size=32, resize=36))


def test_one_pass_finds_what_a_scan_of_each_does(networks, data) -> None:
    reads = []

    class Counted(Scenes):
        def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
            reads.append(i)
            return super().__getitem__(i)

    images = Counted("train", 12, size=32, transform=data.transform)
    together = scan_together(networks, images, LAYERS, 2, progress=False, workers=0)
    assert sorted(reads) == list(range(12))
    for model, found in zip(networks, together, strict=True):
        alone = scan(model, data, LAYERS, 2, progress=False)
        assert (list(found), found.images, found.broken) == (LAYERS, 12, [])
        for layer in LAYERS:
            assert all(torch.equal(*columns) for columns in zip(found[layer], alone[layer], strict=True))


def test_layers_of_branches_keep_their_names(data) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.one(x))
            return F.relu(F.relu(self.two(x)) + x).mean((2, 3))

    models = [Branches().eval(), Branches().eval()]
    layers = Graph(models[0]).layers
    assert len(layers) > 4
    for model, found in zip(models, scan_together(models, data, layers, 1, progress=False), strict=True):
        for layer, top in scan(model, data, layers, 1, progress=False).items():
            assert torch.equal(found[layer].value, top.value)


def test_layers_that_there_are_not_are_refused_by_the_name_that_was_given(networks, data) -> None:
    with pytest.raises(InputError, match="no layer of Sequential 'relu7'"):
        scan_together(networks, data, ["relu7"], 1, progress=False)


def test_correlations_are_those_of_all_activations(networks, data) -> None:
    images = torch.stack([data[i][0] for i in (0, 3, 4, 7)])
    found = correlations_with_last(networks, Subset(data, [7, 0, 3, 4]), LAYERS, progress=False)
    for layer in LAYERS:
        depth = [name for name, _ in networks[-1].named_children()].index(layer) + 1
        with torch.no_grad():
            each = [model[:depth](images).double().movedim(1, 0).flatten(1) for model in networks]
        for n, x in enumerate(each):
            for m in range(len(x)):
                expected = float(torch.corrcoef(torch.stack([x[m], each[-1][m]]))[0, 1])
                if not each[-1][m].any():
                    assert found[layer][n, m].isnan()
                else:
                    assert float(found[layer][n, m]) == pytest.approx(
                        expected if x[m].any() else 0, rel=1e-9, abs=1e-12
                    )


def test_likenesses_are_the_cosines_of_whole_projections(networks, data) -> None:
    top = scan(networks[-1], data, ["relu2"], 1, progress=False)["relu2"]
    found = likenesses([Deconvnet(m) for m in networks], data, {"relu2": top}, at_once=3, progress=False)["relu2"]
    for m in range(7):
        image, row, column = (int(places[m, 0]) for places in (top.image, top.row, top.column))
        projections = []
        for model in networks:
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


def test_settled_is_where_a_curve_stays_above() -> None:
    assert settled_epoch([1, 2, 5, 9], [0.1, 0.9, 0.95, 1.0], 0.9) == 2
    assert settled_epoch([1, 2, 5, 9], [0.95, 0.2, 0.95, 1.0], 0.9) == 5
    assert settled_epoch([1, 2, 5, 9], [0.9, 0.9, 0.9, 1.0], 0.9) == 1
    assert settled_epoch([1, 2, 5, 9], [0.1, 0.2, 0.3, 1.0], 0.9) is None
    assert settled_epoch([1, 2, 5, 9], [None, None, None, None], 0.9) is None


def test_a_map_whose_image_stays_has_not_changed() -> None:
    def top(value, image):
        places = torch.tensor(image)[:, None]
        return TopActivations(torch.tensor(value)[:, None], places, places, places)

    tops = [top([1.0, 1.0, 0.0, 1.0], [0, 1, 2, 3]), top([2.0, 2.0, 2.0, 2.0], [0, 5, 6, 3]), top([0.0] * 4, [0] * 4)]
    assert changed(tops) == [None, 1 / 3, None]
