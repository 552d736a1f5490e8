import json

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from experiments.figures import fig5
from experiments.output.feature_maps import which_layers
from zfnet import InputError, ZFNet
from zfnet.analysis.invariance import invariance
from zfnet.data.scenes import Scenes
from zfnet.graph import Graph

FEW = {"translations": [-6, 0, 6], "scales": [1, 1.4], "rotations": [0, 90, 180]}


@pytest.fixture(scope="module")
def model(with_hidden_layer):
    return with_hidden_layer(32)


@pytest.fixture(scope="module")
def data(model):
    return Scenes("val", 24, size=32, transform=model.preprocessing)


def draw(model, data, out, **settings):
    return fig5.main(
        model, data, out, **{"layers": ["relu1", "relu6"], "correct": False, "progress": False, **FEW, **settings}
    )


def test_it_writes_what_it_returns(model, data, tmp_path):
    result = draw(model, data, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"figure.png", "figure.pdf", "table.md", "result.json"}
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    paper, ours = result["paper"], result["ours"]
    assert set(paper) == set(ours) == {"images", "translation", "scale", "rotation"}
    assert all(set(paper[kind]) == set(ours[kind]) for kind in ("translation", "scale", "rotation"))
    assert paper["rotation"]["distance"] == [15, 1.4] and paper["translation"]["range"] == [-60, 60]


def test_its_curves_are_those_of_the_library(model, data, tmp_path):
    ours = draw(model, data, tmp_path, images=[7, 3], fill="edge")["ours"]
    assert [(image["index"], image["label"], image["file"]) for image in ours["images"]] == [
        (7, 7, "scenes/val/000007"),
        (3, 3, "scenes/val/000003"),
    ]
    found = invariance(
        model,
        [data[7][0], data[3][0]],
        [7, 3],
        ["relu1", "relu6"],
        "rotation",
        FEW["rotations"],
        fill="edge",
        progress=False,
    )
    curves = ours["rotation"]["curves"]
    assert curves["amounts"] == FEW["rotations"]
    assert curves["probability"] == found.probability.tolist()
    for n, (layer, distance) in enumerate(found.distance.items()):
        assert curves[layer] == distance.tolist()
        assert ours["rotation"]["distance"][n] == distance.max()
    assert [row[1] for row in ours["translation"]["curves"]["relu1"]] == [0, 0]


def test_shifts_are_the_papers_share_of_the_image(tmp_path):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.ReLU(), nn.Flatten())
    data = TensorDataset(torch.rand(1, 3, 56, 56), torch.tensor([0]))
    result = draw(model, data, tmp_path, layers=["0", "1"], count=1, translations=None)
    shifts = result["ours"]["translation"]["curves"]["amounts"]
    assert (len(shifts), min(shifts), max(shifts)) == (25, -15, 15)  # 60 of 224
    assert all(shift == int(shift) for shift in shifts)


def test_images_are_of_different_classes_by_seed_and_right_if_asked(model, data):
    def labels(count, seed=0, correct=False):
        return [e.label for e in fig5._examples(Graph(model), data, None, count, correct, seed)]

    assert labels(5, seed=1) == labels(5, seed=1)
    assert len({tuple(labels(2, seed)) for seed in range(4)}) > 1
    assert len(set(labels(9))) == 9
    with torch.no_grad():
        right = {label for image, label in map(data.__getitem__, range(24)) if model(image[None]).argmax() == label}
    assert right and set(labels(len(right), correct=True)) == right
    with pytest.raises(InputError, match=r"show \d classes that the network classifies correctly, .* or correct=false"):
        labels(16, correct=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ["relu1"]}, "give 2, which stand for the paper's 1, 7"),
        ({"layers": ["relu1", "relu1"]}, "give 2, which stand for the paper's 1, 7"),
        ({"layers": ["relu1", "relu7"]}, "no layer of Sequential 'relu7' .did you mean 'relu6'"),
        ({"images": []}, "images is empty"),
        ({"images": [24]}, "no image 24: there are 24"),
        ({"count": 0}, "count is 0"),
        ({"count": 17}, "show 16 classes, and count is 17; take fewer"),
        ({"scales": [0.0]}, "scale is 0.0"),
        ({"fill": "white"}, "no fill 'white'"),
        ({"distance": "cosine"}, "no distance 'cosine'"),
        ({"style": "jet"}, "no style 'jet'"),
    ],
)
def test_mistakes_are_refused_in_words_and_leave_nothing(model, data, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        draw(model, data, tmp_path / "out", **settings)
    assert not list(tmp_path.iterdir())


def test_the_claims_numbers_are_printed_beside_them(model, data, tmp_path, capsys):
    ours = draw(model, data, tmp_path, count=2)["ours"]
    printed = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() == printed
    row = next(line for line in printed.splitlines() if line.startswith("| scale"))
    for number in ours["scale"]["linearity"]:
        assert f" {number:.2f} " in row
    for number in ours["scale"]["rise"]:
        assert f" {number:.0%} " in row
    assert "dramatic" in row and "quasi-linear" in row
    assert "Layer 1 is relu1 and 7 is relu6;" in printed


def test_what_a_layer_may_mean():
    graph = Graph(ZFNet(4, maps=(2, 2, 2, 2, 2), hidden=(4, 4)))
    words = which_layers(graph, ["relu1", "relu7"], (1, 7))
    assert (
        words.startswith("Layer 1 is relu1 and 7 is relu7; the paper's layers may end after the pooling")
        and "layers=[norm1,relu7]" in words
    )
    assert "layers=[norm1,pool5]" in which_layers(graph, ["relu1", "relu5"], (1, 5))
    assert "layers=[" not in which_layers(graph, ["norm1", "relu7"], (1, 7))


def test_as_many_images_as_there_are_colours_and_more(model, data, tmp_path):
    draw(model, data, tmp_path, images=list(range(10)), rotations=[0, 90], scales=[1, 1.2], style="paper")
    assert Image.open(tmp_path / "figure.png").width == 1380


def test_photographs_without_labels_are_refused(model, tmp_path):
    unlabelled = TensorDataset(torch.rand(3, 3, 32, 32), torch.full((3,), -1))
    with pytest.raises(InputError, match="has no label: give data with labels"):
        draw(model, unlabelled, tmp_path)
    wide = TensorDataset(torch.rand(3, 3, 32, 40), torch.arange(3))
    with pytest.raises(InputError, match="fc6"):
        draw(model, wide, tmp_path, count=2)
