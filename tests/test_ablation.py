"""The ablation end to end on a tiny network, its counts, its words, and what becomes of a run that was stopped."""

import copy
import json

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from experiments.ablation import ablation
from experiments.setup.configuration import configured
from zfnet import Deconvnet, InputError, scan
from zfnet.analysis.faithfulness import PICTURES
from zfnet.data.photos import Photos
from zfnet.data.preprocessing import Preprocessing
from zfnet.data.scenes import Scenes

FEW = {"layers": ["relu1", "relu2"], "maps": 3, "k": 4, "shares": [0, 10, 40, 100], "draws": 100, "progress": False}


@pytest.fixture
def model(model):
    return copy.deepcopy(model)


@pytest.fixture
def undrawn(monkeypatch):
    """Without the figure, which takes longer than all it shows."""
    monkeypatch.setattr(ablation, "draw", lambda *_: Figure((1, 1)))


def measure(model, data, out, **settings):
    return ablation.main(model, data, out, **{**FEW, **settings})


def test_it_writes_what_it_returns_and_says_it_in_words(model, data, tmp_path, capsys):
    result = measure(model, data, tmp_path)
    names = {"figure.png", "figure.pdf", "pictures.png", "result.json", "table.md", "report.md"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert set(result["paper"]) == set(result["ours"])
    assert Image.open(tmp_path / "figure.png").width > 1000
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "table.md").read_text()
    layers = result["ours"]["layers"]
    for layer in ("relu1", "relu2"):
        rows = [line for line in printed.splitlines() if line.startswith(f"| {layer} | ")]
        assert len(rows) == len(PICTURES) + len(ablation.PAIRS) + len(ablation.CHOICES) + len(
            layers[layer]["likeness"]["projection"]
        )
    crop = layers["relu2"]["measures"]["crop"]["sufficiency"]
    assert f"{crop[0]:.2f} ({crop[1]:.2f} to {crop[2]:.2f})" in printed
    words = (tmp_path / "report.md").read_text()
    assert "4 images of each map, not the paper's nine" in words
    named = {line.split(":")[0]: line.split(" | ")[1:] for line in words.splitlines() if line.startswith("| ")}
    for measure_ in ("sufficiency", "necessity", "pixels", "network", "energy on object", "points at parts"):
        for cell, numbers in zip(named[f"| {measure_}"], layers.values(), strict=True):
            assert cell.strip("|* ") == ", ".join(ablation.unbeaten(numbers, measure_))


@pytest.mark.usefixtures("undrawn")
def test_what_must_be_so_is_so(model, data, tmp_path):
    layers = measure(model, data, tmp_path)["ours"]["layers"]
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
    found = measure(model, data, tmp_path, layers=["relu2"], maps=1)["ours"]["layers"]["relu2"]
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
    found = measure(model, photos, tmp_path / "out", layers=["relu2"], maps=1)["ours"]["layers"]["relu2"]
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
    runs = [
        measure(model, data, tmp_path / str(n), layers=["relu2"], seed=seed)["ours"] for n, seed in enumerate((3, 3, 4))
    ]
    assert json.dumps(runs[0]) == json.dumps(runs[1])
    assert runs[2]["layers"]["relu2"]["maps"] != runs[0]["layers"]["relu2"]["maps"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("fill", ["blur", "noise"])
def test_other_fills_give_other_numbers(model, data, tmp_path, fill):
    found = [
        measure(model, data, tmp_path, layers=["relu2"], fill=f)["ours"]["layers"]["relu2"] for f in ("grey", fill)
    ]
    one, other = (each["measures"]["random"]["sufficiency"][0] for each in found)
    assert abs(one - other) > 1e-3


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_was_stopped_goes_on(model, data, tmp_path, monkeypatch):
    whole = measure(model, data, tmp_path / "whole")["ours"]
    measured, seen = ablation.measured, []

    def stopped(sample, *rest):
        seen.append(sample.layer)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return measured(sample, *rest)

    monkeypatch.setattr(ablation, "measured", stopped)
    with pytest.raises(KeyboardInterrupt):
        measure(model, data, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"scan.partial", "ablation.partial"}
    again = measure(model, data, tmp_path / "out")["ours"]
    assert seen == ["relu1", "relu2", "relu2"]
    assert json.dumps(again) == json.dumps(whole)
    assert not list((tmp_path / "out").glob("*.partial"))


@pytest.mark.usefixtures("undrawn")
def test_maps_that_do_not_fire_are_counted(model, data, tmp_path):
    model.conv2.bias.data[2:] = -1e3
    model.conv2.weight.data[1], model.conv2.bias.data[1] = 0, -1
    model.conv1.bias.data[:] = -1e3  # relu1 is dead, and relu2 is its bias
    model.conv2.bias.data[0] = 1
    result = measure(model, data, tmp_path)
    counts = result["ours"]["counts"]
    assert counts["relu1"] == {"maps": 6, "dead": 6, "drawn": 0, "fewer than k": 0}
    assert counts["relu2"] == {"maps": 8, "dead": 7, "drawn": 1, "fewer than k": 0}
    assert list(result["ours"]["layers"]) == ["relu2"]
    numbers = result["ours"]["layers"]["relu2"]
    assert numbers["measures"]["random"]["sufficiency"][:3] == [1, 1, 1]  # a constant unit
    assert numbers["likeness"]["gradient"]["all shuffled"] is None  # its gradient is zero
    words = (tmp_path / "report.md").read_text()
    assert "relu1: 6 of 6 maps never fire, and are left out; relu2: 7 of 8 maps" in words


@pytest.mark.usefixtures("undrawn")
def test_maps_that_fire_on_few_images_are_counted(model, data, tmp_path):
    values = scan(model, data, ["relu1"], 3, progress=False)["relu1"].value
    model.conv1.bias.data -= (values[:, 1] + values[:, 2]) / 2  # above 0 on two images
    result = measure(model, data, tmp_path, layers=["relu1"])
    assert result["ours"]["counts"]["relu1"]["fewer than k"] == 3
    assert result["ours"]["layers"]["relu1"]["units"] == 6
    assert "relu1: 3 of the 3 maps drawn are above 0 on fewer than 4 images" in (tmp_path / "report.md").read_text()


@pytest.mark.usefixtures("undrawn")
def test_of_fewer_than_nine_images_all_are_taken(model, tmp_path):
    few = Scenes("val", 5, size=32, transform=model.preprocessing)
    result = measure(model, few, tmp_path, layers=["relu1"], k=9)
    assert result["settings"]["k"] == 5
    assert "5 images of each map, not the paper's nine" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"shares": [0, 101]}, "^shares must lie between 0 and 100 percent; got 101$"),
        ({"shares": [-1, 50]}, "^shares must lie between 0 and 100 percent; got -1"),
        ({"fill": "gray"}, "^no fill 'gray'"),
        ({"maps": 0}, "^maps is 0; give 1 or more$"),
        ({"k": 0}, "^k is 0; give 1 or more$"),
        ({"draws": 3}, "^draws is 3; give 100 or more$"),
        ({"layers": ["relu9"]}, "^no layer of Sequential 'relu9'"),
        ({"judge": "nowhere.npz"}, "nowhere.npz"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(model, data, tmp_path, wrong, says):
    with pytest.raises(InputError, match=says) as error:
        measure(model, data, tmp_path / "out", **wrong)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_network_that_never_fires_is_one_line(model, data, tmp_path):
    model.conv1.bias.data[:] = -1e3
    with pytest.raises(InputError, match=r"^no feature map of relu1 is ever above 0 on these 12 images$"):
        measure(model, data, tmp_path, layers=["relu1"])
    assert not list(tmp_path.iterdir())


def numbers_of(crop, projection, masked):
    """Measures and differences with intervals of ± 0.1."""
    means = dict(zip(ablation.SHOWN, (crop, projection, masked), strict=True))
    return {
        "measures": {name: {"necessity": mean and [mean, mean - 0.1, mean + 0.1, 9]} for name, mean in means.items()},
        "differences": {
            f"{a} - {b}": {
                "necessity": None
                if None in (means[a], means[b])
                else [d := means[a] - means[b], round(d - 0.1, 9), round(d + 0.1, 9), 9]
            }
            for a, b in ablation.PAIRS[:3]
        },
    }


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
    assert ablation.unbeaten(numbers_of(*means), "necessity") == best


def test_an_interval_that_touches_zero_is_no_difference():
    intervals = ([0.1, 0.02, 0.2, 9], [0.1, 0.0, 0.2, 9], [-0.1, -0.2, -0.01, 9], [1e-9, 1e-10, 1e-8, 9])
    assert [ablation.clear(i) for i in (*intervals, None)] == [1, 0, -1, 0, 0]
    signs = {"relu1": 1, "relu2": -1, "relu3": 0}
    assert ablation._effect(signs) == "better in relu1; worse in relu2"
    assert ablation._effect({"relu1": 1, "relu2": 1}) == "better in every layer"
    assert ablation._effect({"relu1": 0}) == "no difference shown"


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
    measure(model, data, tmp_path)
    assert len(seen) == len(set(seen)) > 20


@pytest.mark.usefixtures("undrawn")
def test_fields_too_large_to_hold_are_one_line(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "PIXELS", 1000)
    with pytest.raises(InputError, match=r"^relu2: 12 pictures of 17 x 17 pixels, which its units see, are too many"):
        measure(model, data, tmp_path, layers=["relu2"])
