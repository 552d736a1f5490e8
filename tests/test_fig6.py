"""Figure 6 on networks that are not trained: which are asked for, what is measured of them, what is drawn."""

import copy
import functools
import json
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from experiments.figures import fig6
from experiments.output.feature_maps import Look
from experiments.run import command_line
from experiments.setup.networks import Trained
from zfnet import Deconvnet, InputError, ZFNet, receptive_field, scan
from zfnet.analysis.filters import aliased_energy, spectral_energy
from zfnet.data.preprocessing import Preprocessing
from zfnet.data.scenes import Scenes
from zfnet.training import Diverged, Recipe

NAMES = ["fig3 not renormalised", "krizhevsky", "fig3"]
ARCHITECTURE = functools.partial(ZFNet, 4, maps=(6, 6, 4, 4, 4), hidden=(8, 8), image_size=67, init="he")
RECIPE = Recipe(epochs=3, max_filter_rms=0.1, seed=5)
PREPROCESSING = Preprocessing(size=67, resize=70, channels="BGR")


class Networks:
    """Random networks by seed; `change(name, model)` may alter one, or raise what its training would.

    Without renormalisation the largest filter grows by 0.03 an epoch from the seed's hundredth on.
    """

    def __init__(self, change=lambda name, model: None, recorded=True):
        self.change, self.recorded, self.asked = change, recorded, {}

    def trained(self, name, architecture, recipe):
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            model = architecture().eval()
        model.preprocessing = PREPROCESSING
        with torch.no_grad():
            self.change(name, model)
        self.asked[name, recipe.seed] = model, recipe
        history = [{"epoch": n, "validation_error": 0.5 / n} for n in range(1, 5)]
        for entry in history if self.recorded else ():
            size = recipe.seed / 100 + 0.03 * entry["epoch"]
            entry["largest_filter_rms"] = min(size, recipe.max_filter_rms or size)
        return Trained(model, history)


@pytest.fixture(scope="module")
def data():
    return Scenes("val", 6, size=67, transform=PREPROCESSING)


def main(data, out, networks, **settings):
    settings = {"maps": [1, 2], "k": 4, "width": 4, "progress": False, "workers": 0, **settings}
    return fig6.main(data, out, networks=networks, **{"architecture": ARCHITECTURE, "recipe": RECIPE, **settings})


@pytest.fixture(scope="module")
def drawn(data, tmp_path_factory):
    def change(name, model):
        if name == "fig3 not renormalised":
            model.conv1.weight[0] *= 50
            model.conv1.weight[1] *= 1e-3
            model.conv1.bias[2] = -1e4
            model.conv2.bias[:3] = -1e4

    out, networks = tmp_path_factory.mktemp("fig6") / "out", Networks(change)
    return out, main(data, out, networks), networks


def test_it_writes_what_it_returns(drawn):
    out, result, _ = drawn
    assert {path.name for path in out.iterdir()} == {"figure.png", "figure.pdf", "table.md", "result.json"}
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    assert list(result["paper"]) == list(result["ours"])
    for told in (result["ours"]["mean"], result["ours"]["deviation"], result["ours"]["each"], result["paper"]["mean"]):
        assert list(told) == NAMES
        assert all(list(row) == list(fig6.ROWS.values()) for row in told.values())
    assert result["paper"]["mean"]["krizhevsky"]["kernel"] == result["ours"]["mean"]["krizhevsky"]["kernel"] == 11
    assert Image.open(out / "figure.png").width == 800


def test_three_networks_that_differ_in_one_thing(drawn):
    models, recipes = ({name: pair[n] for (name, _), pair in drawn[2].asked.items()} for n in (0, 1))
    assert list(models) == NAMES
    assert [recipes[name].max_filter_rms for name in NAMES] == [None, 0.1, 0.1]
    assert {recipe.seed for recipe in recipes.values()} == {5} and {r.epochs for r in recipes.values()} == {3}
    geometry = {name: (m.conv1.kernel_size[0], m.conv1.stride[0]) for name, m in models.items()}
    assert geometry == dict(zip(NAMES, [(7, 2), (11, 4), (7, 2)], strict=True))
    order = {name: [n for n in m._modules if n.endswith("1")] for name, m in models.items()}
    assert order["krizhevsky"] == ["conv1", "relu1", "norm1", "pool1"]
    assert order["fig3"] == order["fig3 not renormalised"] == ["conv1", "relu1", "pool1", "norm1"]


def test_dead_faint_and_dominating_filters_are_counted(drawn):
    without, ours = (drawn[1]["ours"]["mean"][name] for name in ("fig3 not renormalised", "fig3"))
    (filters,) = drawn[1]["ours"]["each_filter"]["fig3 not renormalised"]
    assert filters["dead"] == [False, False, True, False, False, False]
    assert filters["faint"] == [False, True, False, False, False, False]
    assert (without["dead_filters"], without["faint_filters"]) == (1 / 6, 1 / 6)
    assert without["largest_rms_over_median"] > 30 > 2 > ours["largest_rms_over_median"]
    assert without["largest_rms"] == max(filters["rms"])
    assert without["filters_at_limit"] == sum(rms > 0.1 for rms in filters["rms"]) / 6
    assert without["layer2_dead_maps"] >= 0.5
    assert not set(drawn[1]["ours"]["layer2_drawn"]["fig3 not renormalised"]) & {0, 1, 2}
    assert ours["validation_error"] == 0.125


def test_shares_are_the_mean_of_filters_that_live(drawn):
    model, _ = drawn[2].asked["fig3 not renormalised", 5]
    live = model.conv1.weight.detach()[[0, 3, 4, 5]]
    numbers = drawn[1]["ours"]["mean"]["fig3 not renormalised"]
    assert [numbers[n] for n in ("low", "middle", "high")] == pytest.approx(spectral_energy(live).mean(0).tolist())
    assert numbers["aliased"] == pytest.approx(float(aliased_energy(live, 2).mean()))


@pytest.mark.parametrize(("name", "stride"), [("fig3 not renormalised", 2), ("krizhevsky", 4), ("fig3", 2)])
def test_filters_are_compared_with_the_patches_that_they_respond_to(drawn, data, name, stride):
    model, numbers = drawn[2].asked[name, 5][0], drawn[1]["ours"]["mean"][name]
    (filters,) = drawn[1]["ours"]["each_filter"][name]
    top, field = (
        scan(model, data, ["relu1"], 4, progress=False, workers=0)["relu1"],
        receptive_field(model, "relu1", 67),
    )
    lost = []
    for m, rank in (top.value > 0).nonzero().tolist():
        if filters["dead"][m] or filters["faint"][m]:
            continue
        upper, left, lower, right = field.box(int(top.row[m, rank]), int(top.column[m, rank]))
        whole = torch.nn.functional.pad(data[int(top.image[m, rank])][0][None], [20] * 4)
        lost.append(float(aliased_energy(whole[..., upper + 20 : lower + 20, left + 20 : right + 20], stride)))
    assert numbers["patches_aliased"] == pytest.approx(sum(lost) / len(lost), rel=1e-4)
    for prefix in ("", "layer2_"):
        ratio = numbers[f"{prefix}aliased"] / numbers[f"{prefix}patches_aliased"]
        assert numbers[f"{prefix}aliased_ratio"] == pytest.approx(ratio, rel=1e-12)
    assert f"{numbers['aliased_ratio']:.3f}" in (drawn[0] / "table.md").read_text()


@pytest.mark.parametrize(("name", "stride"), [("krizhevsky", 4), ("fig3", 2)])
def test_projections_are_measured_one_by_one(drawn, data, name, stride):
    model, _ = drawn[2].asked[name, 5]
    deconvnet, field = Deconvnet(model), receptive_field(model, "relu2", 67)
    top = scan(model, data, ["relu2"], 4, progress=False, workers=0)["relu2"]
    shares, bands = [], []
    for m, rank in (top.value > 0).nonzero().tolist():
        image, row, column = (int(place[m, rank]) for place in top[1:4])
        recording = deconvnet.record(data[image][0][None], ["relu2"])
        signal = torch.zeros_like(recording.activations["relu2"])
        signal[0, m, row, column] = top.value[m, rank]
        projection = deconvnet.project(recording, "relu2", signal)
        upper, left, lower, right = field.box(row, column)
        whole = torch.nn.functional.pad(projection, [60] * 4)
        shares.append(float(aliased_energy(whole[..., upper + 60 : lower + 60, left + 60 : right + 60], stride)))
        bands.append(spectral_energy(whole[..., upper + 60 : lower + 60, left + 60 : right + 60])[0])
    numbers = drawn[1]["ours"]["mean"][name]
    assert numbers["layer2_aliased"] == pytest.approx(sum(shares) / len(shares), rel=1e-4)
    expected = torch.stack(bands).mean(0).tolist()
    assert [numbers[f"layer2_{n}"] for n in ("low", "middle", "high")] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("scale", ["panel", "filter"])
def test_one_that_dominates_leaves_the_others_grey(scale):
    filters = torch.randn(4, 3, 7, 7)
    filters[0] *= 100
    picture, enlarged = fig6.picture_of(fig6.Seen({}, filters, None), 1, scale, Look(), 40)
    assert picture.shape == (3, 38, 38) and enlarged == 18 / 7
    half = picture.shape[-1] // 2
    strength = (picture[:, half + 2 :, half + 2 :] - 0.5).abs().max()
    assert (strength < 0.05) == (scale == "panel")


def test_rules_change_projections_and_not_filters(drawn, data, tmp_path):
    before, guided = drawn[1]["ours"], main(data, tmp_path, Networks(), rules="guided")["ours"]
    for name in ("aliased", "patches_aliased", "layer2_dead_maps", "layer2_patches_aliased"):
        assert guided["mean"]["krizhevsky"][name] == before["mean"]["krizhevsky"][name]
    assert guided["layer2_drawn"]["krizhevsky"] == before["layer2_drawn"]["krizhevsky"]
    assert guided["mean"]["krizhevsky"]["layer2_aliased"] != before["mean"]["krizhevsky"]["layer2_aliased"]


@pytest.fixture(scope="module")
def three(data, tmp_path_factory):
    """Three seeds: that of 6 diverges with 11x11; ours has dead maps in layer 2, and with seed 5 a dead filter."""

    def change(name, model):
        if name == "fig3":
            model.conv2.bias[:2] = -1e4
            model.conv1.bias[0] = -1e4 * (len(networks.asked) < 3)
        elif name == "krizhevsky" and len(networks.asked) == 4:
            raise Diverged("the loss is inf in epoch 1, step 2: lower the learning rate (0.01)")

    out, networks = tmp_path_factory.mktemp("fig6") / "out", Networks(change)
    return out, main(data, out, networks, seeds=3)["ours"], networks


def test_every_network_is_trained_with_each_seed(three):
    out, ours, networks = three
    assert list(networks.asked) == [(n, s) for s in (5, 6, 7) for n in NAMES if (n, s) != ("krizhevsky", 6)]
    for name in NAMES:
        for number in ("largest_rms", "layer2_aliased"):
            each = ours["each"][name][number]
            assert [value is None for value in each] == [False, name == "krizhevsky", False]
            known = torch.tensor([value for value in each if value is not None], dtype=torch.float64)
            assert len(set(known.tolist())) > 1
            assert ours["mean"][name][number] == pytest.approx(float(known.mean()))
            assert ours["deviation"][name][number] == pytest.approx(float(known.std()))
    mean, deviation = (ours[statistic]["fig3"]["layer2_aliased"] for statistic in ("mean", "deviation"))
    assert f"{100 * mean:.1f} ± {100 * deviation:.1f}" in (out / "table.md").read_text()
    assert ours["diverged"]["krizhevsky"] == [None, "the loss is inf in epoch 1, step 2", None]


def test_one_seed_has_no_deviation(drawn):
    assert set(drawn[1]["ours"]["deviation"]["fig3"].values()) == {None}
    assert "±" not in (drawn[0] / "table.md").read_text()


def test_claims_are_counted_by_seed_and_contradicted_in_words(three):
    out, ours, _ = three
    dead_maps = ours["claims"]["layer 2 behind it has fewer dead maps"]
    dead = ours["claims"]["layer 1 of 7x7, stride 2, has fewer dead filters"]
    assert dead_maps == {"as_claimed": 0, "contrary": 2, "equal": 0}
    assert dead == {"as_claimed": 0, "contrary": 1, "equal": 1}
    text = (out / "table.md").read_text()
    assert 'Contrary to the paper: "layer 2 behind it has fewer dead maps" (the contrary in 2 of 2)' in text
    assert "the contrary in 1 of 2, equal in 1 of 2" in text
    for claim, (number, larger, smaller) in fig6.CLAIMS.items():
        pairs = zip(ours["each"][larger][number], ours["each"][smaller][number], strict=True)
        signs = [a > b for a, b in pairs if None not in (a, b)]
        assert sum(signs) == ours["claims"][claim]["as_claimed"]
        assert (claim in text.partition("Contrary to the paper")[2]) == (
            ours["claims"][claim]["contrary"] > ours["claims"][claim]["as_claimed"]
        )


def test_networks_see_images_less_the_mean_image_of_their_training(data, tmp_path, monkeypatch):
    trained, seen = replace(PREPROCESSING, mean_image=torch.rand(3, 67, 67)), []

    def scanned(graph, images, *arguments, **settings):
        seen.append(images[0][0])
        return scan(graph, images, *arguments, **settings)

    monkeypatch.setattr(fig6, "scan", scanned)
    main(data, tmp_path / "out", Networks(lambda name, model: trained.attach(model)))
    (image, _), count = Scenes("val", 6, size=67, transform=trained)[0], len(NAMES)
    assert len(seen) == count and all(torch.equal(other, image) for other in seen)
    assert not torch.equal(data[0][0], image)


def test_the_epoch_is_told_in_which_renormalisation_would_act(three):
    out, ours, _ = three
    assert ours["first_epoch_above_limit"]["fig3 not renormalised"] == [2, 2, 2]  # 0.05 + 0.03 n, ..., 0.07 + 0.03 n
    assert ours["first_epoch_above_limit"]["fig3"] == [None] * 3
    assert ours["largest_rms_by_epoch"]["fig3"][0] == pytest.approx([0.08, 0.1, 0.1, 0.1])
    assert "largest filter is first above 0.1 after epoch: 2, 2, 2." in (out / "table.md").read_text()


@pytest.mark.parametrize(
    ("sizes", "epoch"), [([0.05, 0.1, 0.11, 0.09], 3), ([0.2], 1), ([0.1], None), ([], None), ([None, 0.3], 2)]
)
def test_the_first_epoch_above_the_limit(sizes, epoch):
    assert fig6.first_above(sizes, 0.1) == epoch


def test_networks_whose_filter_sizes_were_not_recorded_are_named(data, tmp_path):
    ours = main(data, tmp_path, Networks(recorded=False))["ours"]
    assert ours["largest_rms_by_epoch"]["fig3"] == [[None] * 4]
    text = (tmp_path / "table.md").read_text()
    assert "(f) lacks epochs of networks of an older version" in text and "first above" not in text


def test_networks_that_are_the_same_are_said_to_be(drawn, data, tmp_path):
    words = "renormalisation did nothing"
    assert words not in (drawn[0] / "table.md").read_text()
    main(data, tmp_path, Networks())
    assert words in (tmp_path / "table.md").read_text()


def test_a_training_that_diverges_is_a_result(data, tmp_path, capsys):
    def change(name, model):
        if name == "fig3 not renormalised":
            raise Diverged("the loss is nan in epoch 3, step 7: lower the learning rate (0.01)")

    result = main(data, tmp_path, Networks(change))
    assert result["ours"]["diverged"]["fig3 not renormalised"] == ["the loss is nan in epoch 3, step 7"]
    assert result["ours"]["mean"]["fig3 not renormalised"]["largest_rms"] is None
    assert result["ours"]["diverged"]["fig3"] == [None]
    assert "ours, not renormalised, seed 5: diverged, the loss is nan in epoch 3, step 7." in capsys.readouterr().out
    assert (tmp_path / "figure.png").exists()


def test_layers_that_are_all_dead_are_drawn_as_such(data, tmp_path):
    def change(name, model):
        model.conv1.weight *= 0
        model.conv2.bias -= 1

    ours = main(data, tmp_path, Networks(change))["ours"]["mean"]["fig3"]
    assert (ours["dead_filters"], ours["faint_filters"], ours["layer2_dead_maps"]) == (1, 1, 1)
    assert ours["largest_rms_over_median"] is ours["low"] is ours["layer2_aliased"] is None
    assert ours["patches_aliased"] is ours["aliased_ratio"] is ours["layer2_aliased_ratio"] is None
    assert "nan" not in fig6.panel_words(ours, 1) + fig6.panel_words(ours, 2)


def diverging(name, model):
    raise Diverged("the loss is inf in epoch 1, step 2: lower the learning rate (0.01)")


def failing(name, model):
    raise InputError("labels 0..9 for 4 classes")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"networks": Networks(diverging)}, "all trainings diverged: lower the learning rate"),
        ({"networks": Networks(failing)}, "labels 0..9"),
        ({"architecture": functools.partial(torch.nn.Linear, 3)}, "Linear is not a ZFNet: give model=zfnet"),
        ({"recipe": Recipe(max_filter_rms=None)}, "give train.max_filter_rms"),
        ({"maps": [0, 2]}, "maps is"),
        ({"seeds": 0}, "seeds is 0"),
        ({"scale": "map"}, "no scale 'map'"),
        ({"contrast": 2}, "contrast is 2"),
        ({"width": 60}, "inches"),
        ({"rules": "guide"}, "no rule set 'guide'"),
        ({"colour": "green"}, "no colour 'green'"),
        ({"k": 7}, "fewer than k=7"),
    ],
)
def test_refused_in_words_with_nothing_left(data, tmp_path, settings, message):
    settings = copy.copy(settings)
    networks = settings.pop("networks", Networks())
    with pytest.raises(InputError, match=message):
        main(data, tmp_path / "out", networks, **settings)
    assert not list(tmp_path.iterdir())
    assert not networks.asked or "fewer" in message  # before minutes of training


def test_the_command_trains_all_three(tmp_path, monkeypatch):
    words = ["model.architecture.maps=[4,4,4,4,4]", "model.architecture.hidden=[8,8]", "data.count={train: 16, val: 6}"]
    words += ["experiment=fig6", "train.epochs=1", "maps=[1,1]", "k=1", "width=4", "device=cpu"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    command_line()
    ours = json.loads((tmp_path / "outputs/fig6/zfnet_small-scenes/result.json").read_text())["ours"]
    assert [ours["mean"][name]["kernel"] for name in NAMES] == [7, 11, 7]
    assert all(0 <= ours["mean"][name]["validation_error"] <= 1 for name in NAMES)
    assert all(len(sizes) == 1 and sizes[0] > 0 for (sizes,) in ours["largest_rms_by_epoch"].values())
