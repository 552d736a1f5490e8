"""One activation on its way down."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from torch import nn
from torchvision.models import squeezenet1_0

from experiments.output.pages import Page
from experiments.questions import steps
from zfnet import Deconvnet, InputError, receptive_field, scan
from zfnet.data.preprocessing import Preprocessing
from zfnet.recording import activations


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def unit(box=(0, 0, 9, 9)):
    return steps.Unit(0, 0, 1, 1, 2.0, box, True)


def test_steps_follows_one_activation_down(model, data, tmp_path):
    result = steps.main(model, data, tmp_path, layer="relu2", rank=0, progress=False)
    unit, path = result["ours"]["unit"], result["ours"]["steps"]
    top = scan(model, data, ["relu2"], 1, progress=False)["relu2"]
    assert unit["value"] == float(top.value.max())
    assert [s["operation"] for s in path] == ["start", "rectify", "filter", "unpool", "rectify", "filter"]
    assert path[0]["not_zero"] == 1
    assert path[-1]["shape"] == [3, 32, 32]
    assert files(tmp_path) == {"figure.png", "figure.pdf", "unit.png", "unit.pdf", "result.json"}
    assert result["settings"]["map"] == unit["map"]


def test_the_unit_sees_nothing_beyond_the_image(model, data, tmp_path):
    ours = steps.main(model, data, tmp_path, layer="relu2", images=8, progress=False)["ours"]
    top = scan(model, data, ["relu2"], 8, indices=range(8), progress=False)["relu2"]
    field = receptive_field(model, "relu2", 32)
    inside = [
        value
        for value, row, column in zip(*(of.flatten().tolist() for of in (top.value, top.row, top.column)), strict=True)
        if min(field.box(row, column)) >= 0 and max(field.box(row, column)) <= 32
    ]
    assert ours["unit"]["value"] == max(inside) < top.value.max()
    assert min(ours["box"]) >= 0 and max(ours["box"]) <= 32


def test_no_more_images_are_read_than_asked_for(model, data, tmp_path, monkeypatch):
    read, get = [], type(data).__getitem__
    monkeypatch.setattr(type(data), "__getitem__", lambda self, i: read.append(i) or get(self, i))
    result = steps.main(model, data, tmp_path, layer="relu2", images=3, workers=0, progress=False)
    assert set(read) == {0, 1, 2} and result["settings"]["images"] == 3


def test_of_a_map_and_a_rank(model, data, tmp_path):
    top = scan(model, data, ["relu2"], 3, progress=False)["relu2"]
    live = int((top.value[:, 2] > 0).nonzero()[0])
    ours = steps.main(model, data, tmp_path, layer="relu2", map=live, rank=2, rules="guided", progress=False)["ours"]
    assert (ours["unit"]["map"], ours["unit"]["value"]) == (live, float(top.value[live, 2]))


@pytest.mark.parametrize("size", [4, 200])
def test_grey_is_zero_in_every_plane(size):
    """As in projections: white is above 0, black below; whether drawn as squares or as an image."""
    plane = torch.zeros(size, size)
    plane[: size // 2, : size // 4], plane[:, -size // 4 :] = 1, -2
    page = Page(2)
    steps.draw_plane(page, plane, 0, 0, 100)
    page.y = 100
    figure = page.done()
    figure.set_dpi(200)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = torch.as_tensor(np.asarray(canvas.buffer_rgba()).copy())[..., :3].int()
    assert (pixels[50, 50] - 128).abs().max() <= 1
    assert pixels[88, 12].tolist() == pixels[50, 50].tolist()
    assert (pixels[20, 12] - 191).abs().max() <= 2  # half of the largest
    assert pixels[50, 88].max() <= 1


def test_a_unit_is_drawn_as_squares_of_one_size(model, data, tmp_path):
    steps.main(model, data, tmp_path, layer="relu2", interpolation="nearest", progress=False)
    ours = json.loads((tmp_path / "result.json").read_text())["ours"]
    picture = np.asarray(Image.open(tmp_path / "unit.png").convert("RGB")).astype(int)
    rows, columns = ours["box"][2] - ours["box"][0], ours["box"][3] - ours["box"][1]
    side = (picture.shape[1] - 2 * steps.WIDE_GAP) // 3
    scale = side // max(rows, columns)
    top, left = 4 + steps.LINE, side + steps.WIDE_GAP
    patch = picture[top : top + scale * rows, left : left + scale * columns]
    pixels = patch[scale // 2 :: scale, scale // 2 :: scale]
    assert np.abs(patch - pixels.repeat(scale, 0).repeat(scale, 1)).max() == 0
    image, box = Preprocessing.of(model).pixels(data[ours["image"]][0]).clamp(0, 1), ours["box"]
    cut = (255 * image[:, box[0] : box[2], box[1] : box[3]]).round().permute(1, 2, 0).numpy()
    assert np.abs(pixels - cut).max() <= 1


class Fork(nn.Module):
    """Two branches that are joined, and a pooling below them."""

    def __init__(self):
        super().__init__()
        self.stem, self.relu, self.pool = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)
        self.left, self.right, self.dropout = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 3, padding=1), nn.Dropout()

    def forward(self, x):
        x = self.pool(self.relu(self.stem(x)))
        return self.dropout(torch.cat([self.left(x), self.right(x)], 1))


def fork_steps():
    deconvnet = Deconvnet(Fork().eval())
    recording = deconvnet.record(torch.randn(1, 3, 12, 12), ["dropout"])
    return deconvnet, recording, steps.way_down(deconvnet, recording, "dropout", unit())


def test_where_branches_part_and_meet():
    deconvnet, recording, path = fork_steps()
    assert [(s.layer, s.verb, s.before, s.branches) for s in path] == [
        ("dropout", "start", 0, ""),
        ("cat", "split", 0, "branch 1 of 2"),
        ("cat", "split", 0, "branch 2 of 2"),
        ("right", "filter", 2, "1 of 2 branches summed"),
        ("left", "filter", 1, "2 of 2 branches summed"),
        ("pool", "unpool", 4, ""),
        ("relu", "rectify", 5, ""),
        ("stem", "filter", 6, ""),
    ]
    signal = torch.zeros_like(recording.activations["dropout"])
    signal[0, 0, 1, 1] = 2
    assert torch.equal(path[-1].signal[None], deconvnet.project(recording, "dropout", signal))


def test_around_poolings():
    assert steps.around_poolings(fork_steps()[2]) == [0, 4, 5, 6, 7]


def test_of_a_deep_network_the_steps_around_poolings(data, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(Page, "caption", lambda self, words: said.append(words))
    drawn = []
    monkeypatch.setattr(steps, "draw", lambda page, path, which, *rest: drawn.append([path[n].layer for n in which]))
    model = squeezenet1_0().eval()
    model.preprocessing = data.transform
    for every in (False, True):
        steps.main(model, data, tmp_path, layer="features.5.cat", images=2, every=every, progress=False)
    assert drawn[0] == ["features.5.cat", "features.3.squeeze", "features.2", "features.1"]
    assert len(drawn[1]) > steps.FEW and "every=true draws all" in said[0] and "every=true" not in said[1]


def test_long_names_are_broken_behind_a_mark():
    assert steps.broken("features.3.expand1x1_activation", 25) == "features.3.expand1x1_\nactivation"
    assert steps.broken("relu1", 25) == "relu1"
    assert steps.broken("a" * 30, 25) == "a" * 25 + "\n" + "a" * 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"map": 8}, "no map 8 in relu2: there are 8"),
        ({"map": -1}, "no map -1"),
        ({"shown": 0}, "shown is 0; give at least 1"),
        ({"shown": 30}, "30 maps do not fit side by side"),
        ({"images": -2}, "images is -2; give at least 1"),
        ({"rank": -1}, "rank is -1; give at least 0"),
        ({"rank": 12}, "rank|k=13"),
        ({"rules": "guide"}, "no rule set 'guide'"),
    ],
)
def test_mistakes_are_refused_in_words_and_leave_nothing(model, data, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        steps.main(model, data, tmp_path / "out", **{"layer": "relu2", "progress": False} | settings)
    assert not list(tmp_path.iterdir())


def test_a_dead_map_is_named(model, data, tmp_path):
    bias = model.conv2.bias.detach().clone()
    try:
        model.conv2.bias.data[5] = -1e3
        assert activations(Deconvnet(model).graph, data[0][0][None], ["relu2"])["relu2"][0, 5].max() == 0
        with pytest.raises(InputError, match="map 5 of relu2 has no activation above 0"):
            steps.main(model, data, tmp_path, layer="relu2", map=5, progress=False)
    finally:
        model.conv2.bias.data.copy_(bias)
