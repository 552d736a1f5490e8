"""The ablation end to end on a tiny network, its counts, its words, and what becomes of a run that was stopped."""

import copy
import json
from dataclasses import asdict

import pytest
import torch
import torchvision
from matplotlib.figure import Figure
from PIL import Image

from experiments.ablation import ablation, draw, measure, report
from experiments.ablation.measure import CHOICES, COMPARISONS, SHOWN, Comparison, LayerResult
from experiments.output.feature_maps import Look
from experiments.setup.configuration import configured
from experiments.setup.models import build
from zfnet import Deconvnet, InputError, scan
from zfnet.analysis.faithfulness import PICTURES
from zfnet.analysis.statistics import Estimate
from zfnet.data.photos import Photos
from zfnet.data.preprocessing import Preprocessing
from zfnet.data.scenes import Scenes

FEW = {"layers": ["relu1", "relu2"], "maps": 3, "k": 4, "shares": [0, 10, 40, 100], "draws": 100, "progress": False}


@pytest.fixture
def model(model):
    return copy.deepcopy(model)


@pytest.fixture
def undrawn(monkeypatch):
    """Without the figures, which take longer than all they show."""
    for name in ("draw_curves", "draw_measures", "draw_likeness", "draw_pictures"):
        monkeypatch.setattr(ablation, name, lambda *_: Figure((1, 1)))


def measured(model, data, out, **settings):
    return ablation.main(model, data, out, **{**FEW, **settings})


def test_it_writes_what_it_returns_and_says_it_in_words(model, data, tmp_path, capsys):
    result = measured(model, data, tmp_path, width=5)
    figures = {f"{name}.{kind}" for name in ("figure", "measures", "likeness", "pictures") for kind in ("png", "pdf")}
    assert {path.name for path in tmp_path.iterdir()} == figures | {"result.json", "table.md", "report.md"}
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert set(result["paper"]) == set(result["ours"])
    assert {Image.open(tmp_path / name).width for name in figures if name.endswith("png")} == {1000}
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "table.md").read_text()
    layers = result["ours"]["layers"]
    for layer in ("relu1", "relu2"):
        rows = [line for line in printed.splitlines() if line.startswith(f"| {layer} | ")]
        likeness = layers[layer]["likeness"]["projection"]
        assert len(rows) == len(PICTURES) + len(COMPARISONS) + len(CHOICES) + len(likeness)
    crop = layers["relu2"]["measures"]["crop"]["sufficiency"]
    assert f"{crop[0]:.2f} ({crop[1]:.2f} to {crop[2]:.2f})" in printed
    words = (tmp_path / "report.md").read_text()
    assert "4 images of each map, not the paper's nine" in words
    named = {line.split(":")[0]: line.split(" | ")[1:] for line in words.splitlines() if line.startswith("| ")}
    for name in ("sufficiency", "necessity", "pixels", "network", "energy on object", "points at parts"):
        for cell, numbers in zip(named[f"| {name}"], json.loads(json.dumps(layers)).values(), strict=True):
            assert cell.strip("|* ") == ", ".join(report.unbeaten(LayerResult.of(numbers), name))


@pytest.mark.usefixtures("undrawn")
def test_what_must_be_so_is_so(model, data, tmp_path):
    layers = measured(model, data, tmp_path)["ours"]["layers"]
    for numbers in layers.values():
        for name, curves in numbers["curves"].items():
            if PICTURES[name].content == "crop":
                assert curves["kept"][-1] == pytest.approx(1) == curves["removed"][0]
                assert curves["kept"][0] == pytest.approx(curves["removed"][-1])
        assert numbers["choices"]["signal 1"]["cosine"][0] == pytest.approx(1)
        assert numbers["choices"]["signal 1"]["energy on object"][:3] == pytest.approx([0, 0, 0], abs=1e-5)
        assert numbers["measures"]["crop"]["necessity"] == numbers["measures"]["shrunk crop"]["necessity"]
        for measures in numbers["measures"].values():
            assert all(low <= mean <= high for mean, low, high, _ in (e for e in measures.values() if e))
    first = layers["relu1"]  # of which a projection is its filter, by every rule, whatever the image
    assert first["differences"]["projection - guided"]["sufficiency"][:3] == pytest.approx([0, 0, 0], abs=1e-6)
    assert first["likeness"]["projection"]["same map, another image"][0] == pytest.approx(1)
    assert "shuffled above relu1" in layers["relu2"]["likeness"]["guided"]
    unrectified = layers["relu2"]["choices"]["not rectified"]
    assert max(abs(x) for x in unrectified["energy on object"][:3]) > 1e-3 and unrectified["cosine"][0] < 0.99


@pytest.mark.usefixtures("undrawn")
def test_what_a_crop_shows_of_the_object_is_the_share_of_its_area(model, data, tmp_path):
    found = measured(model, data, tmp_path, layers=["relu2"], maps=1)["ours"]["layers"]["relu2"]
    (m,) = found["maps"]
    top = scan(model, data, ["relu2"], 4, progress=False)["relu2"]
    shares, hits = [], []
    for image, row, column in zip(*(c[m].tolist() for c in (top.image, top.row, top.column)), strict=True):
        upper, left = 4 * row - 4, 4 * column - 4  # conv1 5/2, pool1 3/2, conv2 3 with padding: 17 pixels, every 4th
        mask = torch.as_tensor(data.scene(image).mask)
        seen = mask[max(upper, 0) : upper + 17, max(left, 0) : left + 17].float()
        if 0 < seen.mean() < 1:
            shares.append(float(seen.mean()))
            hits.append(float(mask[upper + 8, left + 8]))
    assert found["measures"]["crop"]["energy on object"][0] == pytest.approx(sum(shares) / len(shares))
    assert found["measures"]["crop"]["points at object"][0] == pytest.approx(sum(hits) / len(hits))
    assert found["measures"]["crop"]["points at object"][3] == len(hits)


@pytest.mark.usefixtures("undrawn")
def test_objects_in_boxes(model, tmp_path):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "JPEGImages").mkdir()
    ends = {"xmin": 9, "ymin": 1, "xmax": 24, "ymax": 32}  # columns 8 to 24 of 32
    box = "".join(f"<{end}>{at}</{end}>" for end, at in ends.items())
    for n in range(6):
        Image.fromarray(Scenes("val", 6, size=32).scene(n).image).save(tmp_path / f"JPEGImages/{n}.png")
        (tmp_path / f"Annotations/{n}.xml").write_text(
            f"<annotation><object><bndbox>{box}</bndbox></object></annotation>"
        )
    model.preprocessing = Preprocessing(size=32, resize=32)
    photos = Photos(tmp_path, transform=model.preprocessing)
    found = measured(model, photos, tmp_path / "out", layers=["relu2"], maps=1)["ours"]["layers"]["relu2"]
    (m,) = found["maps"]
    top = scan(model, photos, ["relu2"], 4, progress=False)["relu2"]
    lefts = [4 * column - 4 for column in top.column[m].tolist()]
    widths = [min(left + 17, 32) - max(left, 0) for left in lefts]
    shares = [(min(left + 17, 24) - max(left, 8)) / width for left, width in zip(lefts, widths, strict=True)]
    partly = [share for share in shares if 0 < share < 1]
    assert found["measures"]["crop"]["energy on object"][0] == pytest.approx(sum(partly) / len(partly))
    assert "energy on parts" not in found["measures"]["crop"]


@pytest.mark.usefixtures("undrawn")
def test_the_same_seed_gives_the_same_digits(model, data, tmp_path):
    seeds = enumerate((3, 3, 4))
    runs = [measured(model, data, tmp_path / str(n), layers=["relu2"], seed=seed)["ours"] for n, seed in seeds]
    assert json.dumps(runs[0]) == json.dumps(runs[1])
    assert runs[2]["layers"]["relu2"]["maps"] != runs[0]["layers"]["relu2"]["maps"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("fill", ["blur", "noise"])
def test_other_fills_give_other_numbers(model, data, tmp_path, fill):
    found = [
        measured(model, data, tmp_path, layers=["relu2"], fill=f)["ours"]["layers"]["relu2"] for f in ("grey", fill)
    ]
    one, other = (each["measures"]["random"]["sufficiency"][0] for each in found)
    assert abs(one - other) > 1e-3


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_was_stopped_goes_on(model, data, tmp_path, monkeypatch):
    whole = measured(model, data, tmp_path / "whole")["ours"]
    measure_layer, seen = measure.measure_layer, []

    def stopped(sample):
        seen.append(sample.layer)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return measure_layer(sample)

    monkeypatch.setattr(measure, "measure_layer", stopped)
    with pytest.raises(KeyboardInterrupt):
        measured(model, data, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"scan.partial", "ablation.partial"}
    again = measured(model, data, tmp_path / "out")["ours"]
    assert seen == ["relu1", "relu2", "relu2"]
    assert json.dumps(again) == json.dumps(whole)
    assert not list((tmp_path / "out").glob("*.partial"))


@pytest.mark.usefixtures("undrawn")
def test_maps_that_do_not_fire_are_counted(model, data, tmp_path):
    model.conv2.bias.data[2:] = -1e3
    model.conv2.weight.data[1], model.conv2.bias.data[1] = 0, -1
    model.conv1.bias.data[:] = -1e3  # relu1 is dead, and relu2 is its bias
    model.conv2.bias.data[0] = 1
    result = measured(model, data, tmp_path)
    counts = result["ours"]["counts"]
    assert counts["relu1"] == {"maps": 6, "dead": 6, "drawn": 0, "rare": 0}
    assert counts["relu2"] == {"maps": 8, "dead": 7, "drawn": 1, "rare": 0}
    assert list(result["ours"]["layers"]) == ["relu2"]
    numbers = result["ours"]["layers"]["relu2"]
    assert numbers["measures"]["random"]["sufficiency"][:3] == (1, 1, 1)  # a constant unit
    assert numbers["likeness"]["gradient"]["all shuffled"] is None  # its gradient is zero
    words = (tmp_path / "report.md").read_text()
    assert "relu1: 6 of 6 maps never fire, and are left out; relu2: 7 of 8 maps" in words


@pytest.mark.usefixtures("undrawn")
def test_maps_that_fire_on_few_images_are_counted(model, data, tmp_path):
    values = scan(model, data, ["relu1"], 3, progress=False)["relu1"].value
    model.conv1.bias.data -= (values[:, 1] + values[:, 2]) / 2  # above 0 on two images
    result = measured(model, data, tmp_path, layers=["relu1"])
    assert result["ours"]["counts"]["relu1"]["rare"] == 3
    assert result["ours"]["layers"]["relu1"]["units"] == 6
    assert "relu1: 3 of the 3 maps drawn are above 0 on fewer than 4 images" in (tmp_path / "report.md").read_text()


@pytest.mark.usefixtures("undrawn")
def test_of_fewer_than_nine_images_all_are_taken(model, tmp_path):
    few = Scenes("val", 5, size=32, transform=model.preprocessing)
    result = measured(model, few, tmp_path, layers=["relu1"], k=9)
    assert result["settings"]["k"] == 5
    assert "5 images of each map, not the paper's nine" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"shares": [0, 101]}, "^shares must lie between 0 and 100 percent; got 101$"),
        ({"shares": [-1, 50]}, "^shares must lie between 0 and 100 percent; got -1"),
        ({"fill": "gray"}, "^no fill 'gray'"),
        ({"maps": 0}, "^maps is 0; give at least 1$"),
        ({"k": 0}, "^k is 0; give at least 1$"),
        ({"draws": 3}, "^draws is 3; give at least 100$"),
        ({"layers": ["relu9"]}, "^no layer of Sequential 'relu9'"),
        ({"judge": "nowhere.npz"}, "nowhere.npz"),
        ({"style": "bright"}, "^no style 'bright'"),
        ({"contrast": 0}, "^contrast is 0; give a number above 0, up to 1$"),
        ({"colour": "red"}, "^no colour 'red'"),
        ({"interpolation": "linear"}, "^no interpolation 'linear'"),
        ({"width": 1}, "^width is 1; give inches"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(model, data, tmp_path, wrong, says):
    with pytest.raises(InputError, match=says) as error:
        measured(model, data, tmp_path / "out", **wrong)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_network_that_never_fires_is_one_line(model, data, tmp_path):
    model.conv1.bias.data[:] = -1e3
    with pytest.raises(InputError, match=r"^no feature map of relu1 is ever above 0 on these 12 images$"):
        measured(model, data, tmp_path, layers=["relu1"])
    assert not list(tmp_path.iterdir())


def result_of(crop, projection, masked):
    """Of a layer of which but the necessity of the shown pictures is known, with intervals of ± 0.1."""
    means = dict(zip(SHOWN, (crop, projection, masked), strict=True))

    def estimate(*terms):
        if None in terms:
            return None
        mean = terms[0] - sum(terms[1:])
        return Estimate(mean, round(mean - 0.1, 9), round(mean + 0.1, 9), 9)

    measures = {name: {"necessity": estimate(mean)} for name, mean in means.items()}
    shown = [c for c in COMPARISONS if c.of_shown]
    differences = {c.name: {"necessity": estimate(means[c.one], means[c.other])} for c in shown}
    rest = {c.name: {} for c in COMPARISONS if not c.of_shown}
    return LayerResult([7, 7], [0], 9, 0.5, {}, measures, differences | rest, {}, {})


@pytest.mark.parametrize(
    ("means", "best"),
    [
        ((0.2, 0.4, 0.6), ["masked crop"]),
        ((0.2, 0.6, 0.55), ["projection", "masked crop"]),  # better than the crop, but not than each other
        ((0.9, 0.4, 0.6), ["crop"]),
        ((0.2, None, 0.6), ["masked crop"]),
        ((0.5, 0.5, 0.5), ["crop", "projection", "masked crop"]),
        ((None, None, None), []),
    ],
)
def test_who_is_named_is_beaten_by_none(means, best):
    assert report.unbeaten(result_of(*means), "necessity") == best


def test_an_interval_that_touches_zero_is_no_difference():
    intervals = ([0.1, 0.02, 0.2, 9], [0.1, 0.0, 0.2, 9], [-0.1, -0.2, -0.01, 9], [1e-9, 1e-10, 1e-8, 9])
    better, touching, worse, tiny = (Estimate(*interval) for interval in intervals)
    assert [report.clear(estimate) for estimate in (better, touching, worse, tiny, None)] == [1, 0, -1, 0, 0]

    def said(**estimates):
        return report.effects({layer: {"necessity": e} for layer, e in estimates.items()}, ["sufficiency", "necessity"])

    assert said(relu1=better, relu2=worse, relu3=touching) == "necessity better in relu1; necessity worse in relu2"
    assert said(relu1=better, relu2=better) == "necessity better in every layer"
    assert said(relu1=touching) == said(relu1=None) == "no difference shown"


def test_which_comparisons_are_of_which_kind():
    """By what their pictures are, whatever their place in the list."""
    shown = {c.name for c in COMPARISONS if c.of_shown}
    assert shown == {"projection - crop", "masked crop - crop", "masked crop - projection"}
    others = ("crop", "centre", "random", "edges", "masked by gradient", "masked by guided")
    assert {c for c in COMPARISONS if c.of_crops} == {Comparison("masked crop", other) for other in others}


def test_a_layers_numbers_come_back_from_json():
    result = result_of(0.2, None, 0.6)
    again = LayerResult.of(json.loads(json.dumps(asdict(result))))
    assert again == result
    assert isinstance(again.measures["crop"]["necessity"], Estimate)


def test_the_configuration_takes_the_networks_layers():
    layers = configured(["experiment=ablation", "model=squeezenet1_0"]).experiment.layers
    assert len(layers) == 5 and layers[4] == "features.12.cat"


@pytest.mark.usefixtures("undrawn")
def test_no_canvas_is_run_twice(model, data, tmp_path, monkeypatch):
    seen, activations_of = [], Deconvnet.activations_of

    def noted(self, canvases, layer, units, image_size, **options):
        seen.append((layer, canvases.numpy().tobytes()))
        return activations_of(self, canvases, layer, units, image_size, **options)

    monkeypatch.setattr(Deconvnet, "activations_of", noted)
    measured(model, data, tmp_path)
    assert len(seen) == len(set(seen)) > 20


@pytest.mark.usefixtures("undrawn")
def test_fields_too_large_to_hold_are_one_line(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "PIXELS", 1000)
    with pytest.raises(InputError, match=r"^relu2: 12 pictures of 17 x 17 pixels, which its units see, are too many"):
        measured(model, data, tmp_path, layers=["relu2"])


@pytest.fixture
def sample(model, data):
    top = scan(model, data, ["relu2"], 4, progress=False)["relu2"]
    protocol = measure.Protocol(["relu1", "relu2"], 3, 4, [0, 100], "grey", None, 100, 0)
    judge = build(torchvision.models.squeezenet1_0, preprocessing=Preprocessing())
    study = measure.Study(Deconvnet(model), data, protocol, judge, False)
    return measure.Sample(study, "relu2", top, [0, 3])


def test_pictures_show_the_pixels_that_they_keep(sample):
    """In squares of seven, in which no two pixels of the crop blend: the rest is grey, and hatched beyond the image."""
    tiles = draw.tiles_of(sample, Look(interpolation="nearest"), (17 * 7, 17 * 7))
    assert tiles.shape == (len(sample.units), len(PICTURES), 3, 17 * 7, 17 * 7)
    centres = tiles[..., 3::7, 3::7]
    crops = sample.preprocessing.pixels(sample.patches.crops).clamp(0, 1)
    inside = sample.inside[:, None].expand_as(crops)
    assert not inside.all()
    for n, (name, picture) in enumerate(PICTURES.items()):
        if picture.content == "crop":
            kept = (centres[:, n] == crops) & inside
            assert ((centres[:, n] == 0.5) | kept)[inside].all()
            share = kept.all(1).sum((1, 2)) / sample.inside.sum((1, 2))
            assert torch.allclose(share, torch.tensor(picture.share / 100), atol=0.01), name
    beyond = ~inside.repeat_interleave(7, 2).repeat_interleave(7, 3)
    assert tiles[:, 0][beyond].unique().tolist() == pytest.approx([0.72, 1])


def test_projections_in_pictures_have_the_contrast_and_colour_that_are_asked_for(sample):
    which = list(PICTURES).index("projection")
    look, size = Look(contrast=0.5, colour="grey", interpolation="nearest"), (17, 17)
    wanted = look.pictures(sample.preprocessing.rgb(sample.patches.projections), size)
    tiles, default = (draw.tiles_of(sample, each, size)[:, which] for each in (look, Look()))
    inside = sample.inside[:, None].expand_as(wanted)
    assert torch.equal(tiles[inside], wanted[inside]) and not torch.equal(tiles, default)
    assert torch.equal(tiles[:, 0], tiles[:, 2])


def test_objects_that_are_known_of_units_that_see_less_than_others(tmp_path):
    """Behind joined branches, of one and of five pixels, every unit's truth is what the image has in its canvas."""

    class Branches(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow, self.wide = torch.nn.Conv2d(3, 2, 1), torch.nn.Conv2d(3, 2, 5, padding=2)

        def forward(self, x):
            return torch.cat([self.narrow(x), self.wide(x)], 1).relu()

    branches, how = Branches().eval(), Preprocessing(size=32, resize=32)
    branches.preprocessing = how
    data = Scenes("val", 6, size=32, transform=how)
    top = scan(branches, data, ["relu"], 3, progress=False)["relu"]
    protocol = measure.Protocol(["relu"], 4, 3, [0, 100], "grey", None, 100, 0)
    study = measure.Study(Deconvnet(branches), data, protocol, torch.nn.Identity(), False)
    sample = measure.Sample(study, "relu", top, [0, 1, 2, 3])
    assert sample.truth["object"].shape == sample.inside.shape
    boxes = sample.patches.boxes.tolist()
    for item, box, truth, inside in zip(sample.items, boxes, sample.truth["object"], sample.inside, strict=True):
        mask = torch.as_tensor(data.scene(item).mask)
        for row, column in inside.nonzero().tolist():
            assert truth[row, column] == mask[box[0] + row, box[1] + column]


@pytest.mark.parametrize("layers", [1, 7])
def test_figures_of_other_numbers_of_layers(model, data, tmp_path, layers):
    """All points and lines are there, in columns of which there are at most five."""
    result = LayerResult.of(measured(model, data, tmp_path, layers=["relu2"], maps=2, k=2)["ours"]["layers"]["relu2"])
    named = {f"layer {n}": result for n in range(layers)}
    counts = {name: measure.Counts(8, 0, 2, 0) for name in named}
    several = measure.Measurements("net", "Scenes", 12, [], named, counts, None)
    protocol = measure.Protocol(list(named), 2, 2, FEW["shares"], "grey", None, 100, 0)
    lines = ["black"] * 8
    curves = draw.draw_curves(several, protocol, lines, 6.9)
    shown = [axis for axis in curves.axes if axis.axison]
    assert len(shown) == 3 * layers and curves.axes[0].get_gridspec().ncols == min(layers, 5)
    drawn = [line for axis in shown for line in axis.lines if len(line.get_xdata()) == len(FEW["shares"])]
    assert len(drawn) == layers * (4 + 7 + 7)  # the signals and the crop; seven orders shown, and removed
    points = draw.draw_measures(several, protocol, lines, 6.9).axes
    assert len(points) == len(several.measures)
    assert sum(len(c.lines[0].get_xdata()) for c in points[0].containers) == layers * len(PICTURES)


def test_images_of_which_nothing_is_known_do_not_count(model, data, sample, monkeypatch):
    truth, unknown = Scenes.truth, sample.items[0]
    monkeypatch.setattr(Scenes, "truth", lambda self, i: None if i == unknown else truth(self, i))
    again = measure.truth_of(data, sample.items, sample.images, sample.patches)
    for kind, masks in sample.truth.items():
        for item, before, now in zip(sample.items, masks, again[kind], strict=True):
            assert not now.any() if item == unknown else torch.equal(before, now)
    assert unknown in sample.items and len(set(sample.items)) > 1 and sample.truth["object"].any()
    sample.truth = again
    values = sample.view(sample.patches.crops, sample.inside.float(), sample.ranks("square", {}))
    known = torch.tensor([item != unknown for item in sample.items])
    assert values["points at object"][~known].isnan().all()
