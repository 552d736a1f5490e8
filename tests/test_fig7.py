"""Figure 7 end to end on a tiny network, and what it measures against examples small enough to check by eye."""

import json
from collections import OrderedDict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from experiments.figures import fig7
from experiments.output.pages import Page
from experiments.setup.configuration import configured
from experiments.setup.datasets import class_names, class_of
from zfnet import InputError, OcclusionMaps, occlusion_maps, receptive_field
from zfnet.graph import Graph
from zfnet.recording import activations


@pytest.fixture(scope="module")
def figure(model, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("fig7") / "out"
    result = fig7.main(model, data, out, layer="relu2", images=[3, 0], measured=4, width=4.5, progress=False)
    return out, result


def test_it_writes_what_it_returns(figure):
    out, result = figure
    assert {path.name for path in out.iterdir()} == {"figure.png", "figure.pdf", "result.json"}
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    assert set(result) == {"experiment", "paper", "ours", "settings", "provenance", "digest"}
    assert set(result["paper"]) == set(result["ours"])
    assert Image.open(out / "figure.png").width == 900  # 4.5 inches


def test_its_numbers_are_those_of_the_maps(figure, model, data):
    _, result = figure
    ours = result["ours"]
    assert (ours["square"], ours["step"], ours["places"]) == (7, 1, [26, 26])  # 50 of 224 pixels, of 32
    for index, found, r in zip((3, 0), ours["images"], ours["correlation"], strict=True):
        image, label = data[index]
        planes = activations(Graph(model), image[None], ["relu2"])["relu2"][0]
        peak = int(planes.amax((1, 2)).argmax())
        maps = occlusion_maps(model, image, size=7, step=1, layer="relu2", map=peak, target=label)
        assert found["image"] == index
        unit = divmod(int(planes[peak].argmax()), planes.shape[2])
        assert found["field"] == list(receptive_field(model, "relu2", 32).box(*unit))
        assert found["changed"] == (maps.label != maps.clean[2]).sum()
        assert found["class"] == data.classes[data[index][1]]
        assert found["map"] == maps.map
        assert sum(found["labels"].values()) == 26 * 26
        assert found["probability"]["lowest"] == pytest.approx(float(maps.probability.min()))
        place = maps.probability.flatten().argmin()
        assert found["probability"]["at"] == [int(place) // 26, int(place) % 26]
        pairs = torch.stack([maps.activity.flatten(), maps.probability.flatten()])
        assert r == pytest.approx(float(torch.corrcoef(pairs)[0, 1]), abs=1e-4)


def test_the_map_by_its_sum_is_the_papers(model, data, tmp_path):
    result = fig7.main(
        model, data, tmp_path, layer="relu1", images=range(12), by="sum", step=25, measured=0, progress=False
    )
    image = [occlusion_maps(model, data[i][0], size=7, step=25, layer="relu1", target=0) for i in range(12)]
    assert [found["map"] for found in result["ours"]["images"]] == [maps.map for maps in image]
    planes = activations(Graph(model), torch.stack([data[i][0] for i in range(12)]), ["relu1"])["relu1"]
    peaks = planes.amax((2, 3)).argmax(1).tolist()
    assert peaks != [maps.map for maps in image]  # or the choice would make no difference here


def test_the_caption_says_what_a_frame_leaves_out(data, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(Page, "caption", lambda self, words: said.append(words))
    for name, norm in (("plain", nn.Identity()), ("gated", nn.GroupNorm(2, 4))):
        layers = (("conv", nn.Conv2d(3, 4, 3)), ("norm", norm), ("relu", nn.ReLU()), ("pool", nn.AdaptiveAvgPool2d(1)))
        tail = (("flat", nn.Flatten()), ("classes", nn.Linear(4, len(data.classes))))
        model = nn.Sequential(OrderedDict((*layers, *tail)))
        fig7.main(model, data, tmp_path / name, layer="relu", images=[0], measured=1, rules="extended", progress=False)
    assert ["the frame is what the unit of (c) sees." in words for words in said] == [True, False]
    assert "is projected to; gates and norms, held fixed, see more of the image" in said[1]


def test_a_constant_map_has_no_correlation():
    a = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    assert fig7.correlation(a, 5 - 2 * a) == pytest.approx(-1)
    assert fig7.correlation(a, torch.ones(2, 2)) is None


def test_on_the_object_or_beside_it():
    edges = torch.tensor([0, 2])
    boxes = torch.stack(
        [edges[:, None].expand(2, 2), edges.expand(2, 2), edges[:, None].expand(2, 2) + 2, edges.expand(2, 2) + 2], 2
    )
    low = torch.tensor([[1.0, 0.0], [1.0, 1.0]])  # least with the square at the upper right, its centre at (1, 3)
    maps = OcclusionMaps(1 - low, low, low.long(), boxes, (0.0, 0.0, 0), "relu5", 0, 0, (4, 4))
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1, 3] = True
    found = fig7.on_object([(maps, mask.numpy()), (maps, ~mask.numpy())])
    assert (found["images"], found["chance"]) == (2, 0.5)
    assert (found["probability"]["share"], found["activity"]["share"]) == (0.5, 0.5)
    assert found["best_place"]["share"] == 0.5
    twice = fig7.on_object([(maps, mask.numpy()), (maps, mask.numpy()), (maps, ~mask.numpy())])
    assert twice["best_place"]["share"] == pytest.approx(2 / 3)  # the upper right; any other: 1 / 3
    assert fig7.on_object([]) is None
    assert fig7.wilson(8, 10) == pytest.approx([0.490, 0.943], abs=1e-3)
    assert fig7.wilson(0, 10)[0] == pytest.approx(0, abs=1e-9)


def test_images_by_seed_are_as_many_as_asked_for(model, data, tmp_path):
    runs = [
        fig7.main(
            model,
            data,
            tmp_path,
            layer="relu2",
            images=2,
            candidates=1,
            step=9,
            measured=0,
            seed=seed,
            width=4,
            progress=False,
        )
        for seed in (1, 1, 2)
    ]
    images = [run["settings"]["images"] for run in runs]
    assert images[0] == images[1] != images[2]
    assert [len(each) for each in images] == [2, 2, 2]
    assert runs[0]["ours"]["on_object"] is None


def captions(monkeypatch):
    """What the captions of pages will say."""
    said = []
    monkeypatch.setattr(Page, "caption", lambda self, words: said.append(words))
    return said


def test_images_by_seed_are_such_that_squares_change_the_answer(model, data, tmp_path, monkeypatch):
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
    changing = [order[4], order[7]]

    def occluded(graph, image, **how):
        index = next(i for i in range(len(data)) if torch.equal(data[i][0], image))
        maps = occlusion_maps(graph, image, **how)
        label = torch.full_like(maps.label, maps.clean[2])
        label[0, 0] += index in changing
        return replace(maps, label=label)

    monkeypatch.setattr(fig7, "occlusion_maps", occluded)
    said = captions(monkeypatch)
    few = {"layer": "relu2", "step": 25, "measured": 0, "progress": False}
    runs = [
        fig7.main(model, data, tmp_path, **few, **settings)["ours"]
        for settings in ({"images": 2}, {"images": 2, "candidates": 6}, {"images": 1}, {"images": order[:2]})
    ]
    assert [[found["image"] for found in ours["images"]] for ours in runs] == [
        changing,
        [order[4], order[0]],
        [order[4]],
        order[:2],
    ]
    assert [ours["tried"] for ours in runs] == [8, 6, 5, 0]
    assert [ours["images"][0]["changed"] for ours in runs] == [1, 1, 1, 0]
    unchanged = ["No square changes the answer in row" in words for words in said]
    assert unchanged == [False, True, False, True]
    assert "in row 2." in said[1] and "in row 1, 2." in said[3]


class Relabelled(torch.utils.data.Dataset):
    def __init__(self, data, label):
        self.data, self.label = data, label

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data[index][0], self.label


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"images": []}, r"^images is empty; .*images=\[0,5\]$"),
        ({"images": 0}, "^images is empty"),
        ({"images": [99]}, "^no image 99 in the data: there are 12$"),
        ({"size": 33}, "^a square of 33 x 33 pixels does not fit in an image of 32 x 32$"),
        ({"step": 0}, "^the step is 0 pixels; give at least 1$"),
        ({"layer": "relu9"}, "^no layer of Sequential 'relu9'"),
        ({"by": "mean"}, "^no way to choose a map 'mean'"),
        ({"candidates": 0}, "^candidates is 0; give at least 1$"),
        ({"others": -1}, "^others is -1; give at least 0$"),
        ({"rules": "guide"}, "^no rule set 'guide'"),
        ({"style": "jet"}, "^no style 'jet'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(model, data, tmp_path, wrong, says):
    with pytest.raises(InputError, match=says) as error:
        fig7.main(model, data, tmp_path / "out", **{"layer": "relu2", "images": [0], "progress": False} | wrong)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("label", "says"), [(16, "no class 16"), (-1, "item 0 has no label")])
def test_an_unknown_label_is_one_line(model, data, tmp_path, label, says):
    with pytest.raises(InputError, match=says):
        fig7.main(model, Relabelled(data, label), tmp_path, layer="relu2", images=[0], progress=False)


def test_the_configuration_takes_the_networks_fifth_layer():
    assert configured(["experiment=fig7", "model=squeezenet1_0"]).experiment.layer == "features.12.cat"


def test_of_photographs_with_the_published_squeezenet(real_data):
    """A wheel, a dog, a bird: hiding some place lowers the probability, and most places leave the class as it is."""
    from hydra.utils import instantiate

    from experiments.setup.datasets import photos
    from experiments.setup.models import build

    config = configured(["experiment=fig7", "model=squeezenet1_0"])
    model = build(instantiate(config.model.architecture), weights=real_data / "squeezenet_v1.0/squeezenet_v1.0_dc.npz")
    data = photos(model.preprocessing, root=real_data / "imagenet_samples")
    maps = occlusion_maps(model, data[0][0], step=25, layer="features.12.cat", target=data[0][1])
    assert maps.clean[2] == data[0][1]
    assert maps.probability.min() < 0.5 * maps.clean[1]
    assert (maps.label == data[0][1]).float().mean() > 0.5


@pytest.mark.parametrize(
    ("own", "classes", "count", "label", "of_network"),
    [
        ((), (), 10, 3, 3),  # numbers are all that is known
        ((), ("a", "b"), 2, 1, 1),  # a network that says nothing is taken to be one of these data
        (("b", "a"), ("a", "b"), 2, 1, 0),
        (("c", "d"), ("a", "b"), 2, 1, None),  # as many classes, but others
        (("c", "a", "d"), ("a", "b"), 3, 0, 1),
        ((), ("a", "tench", "goldfish"), 1000, 1, 0),  # ImageNet's, by name
        ((), ("a", "tench", "goldfish"), 1000, 0, None),
        (("crane", "a", "crane"), ("a", "crane"), 3, 1, None),  # the bird or the machine
        ((), tuple(map(str, range(1000))), 1000, 7, 7),  # as many classes as ImageNet, but others
        ((), ("tench", "goldfish"), 16, 1, None),
    ],
)
def test_which_class_of_the_network_a_label_is(own, classes, count, label, of_network):
    data = SimpleNamespace(classes=classes)
    names = class_names(SimpleNamespace(class_names=own), data, count)
    assert len(names) == count
    assert class_of(data, label, names) == of_network


def test_where_the_network_knows_no_such_class_its_likeliest_stands_for_it(data, tmp_path):
    torch.manual_seed(0)
    other = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 4, 5, 2),
            relu=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            fc=nn.Linear(4, 5),
        )
    ).eval()
    other.preprocessing = data.transform
    result = fig7.main(other, data, tmp_path, layer="relu", images=[3], measured=4, width=4.5, progress=False)
    likeliest = int(other(data[3][0][None]).argmax())
    assert result["ours"]["images"][0]["class"] == f"class {likeliest}"
    assert result["ours"]["on_object"] is None  # of classes that it was not trained on
