"""The ablation end to end on a tiny network: known answers, the files, and interrupted runs."""

import copy
import json
import sys
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import sequential
from torch import nn

from experiments.ablation import ablation, intervention, measure, people, sufficiency
from experiments.ablation.intervention import FILLS, ORACLE, covered, filled, left
from experiments.ablation.measure import Protocol, study
from experiments.ablation.trials import Trial
from experiments.ablation.units import FIELD, MASKS, Units
from experiments.output.results import Result
from experiments.setup.configuration import configured
from zfnet import Deconvnet, InputError
from zfnet.analysis.choices import squares
from zfnet.analysis.statistics import two_way
from zfnet.data.preprocessing import Preprocessing
from zfnet.data.scenes import Scenes

FEW = {"layers": ["relu1", "relu2"], "maps": 2, "progress": False, "workers": 0}
FIGURES = ("pictures", "A1", "sanity", "sufficiency")
TASKS = {"A1", "A2", "A1/unmatched", "A1/blur", "A1/patch", "B", "sanity", "recovery", "sufficiency", "necessity"}


class MeanColour:
    """A judge that sees the mean colour of what is shown."""

    model = nn.Conv2d(3, 1, 1)  # by whose weights a run knows its judge

    def describe(self, parts, shown=None):
        weights = torch.ones(len(parts), *parts.shape[2:]) if shown is None else shown
        return (parts * weights[:, None]).sum((2, 3)) / weights.sum((1, 2))[:, None].clamp(min=1e-6)


@pytest.fixture
def model(model):
    return copy.deepcopy(model)


@pytest.fixture(scope="module")
def many():
    return Scenes("val", 240, size=32, transform=Preprocessing(size=32, resize=36))


@pytest.fixture
def judged(monkeypatch):
    """Task A2 and B are judged by a mean colour, and asked of fewer images."""
    monkeypatch.setattr(measure, "judge_of", lambda *_: MeanColour())


def run(model, data, out, **settings):
    return ablation.main(model, data, out, **{**FEW, **settings})


@pytest.mark.usefixtures("judged")
def test_it_writes_every_trial_and_what_they_come_to(model, many, tmp_path, capsys):
    result = run(model, many, tmp_path)
    names = {f"{name}.{kind}" for name in (*FIGURES, "A2", "B") for kind in ("png", "pdf")}
    assert {path.name for path in tmp_path.iterdir()} == names | {"result.json", "table.md", "report.md"}
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert capsys.readouterr().out.rstrip("\n") == (tmp_path / "report.md").read_text().rstrip("\n")
    for layer in result["ours"]["layers"].values():
        assert set(layer["trials"]) == TASKS
        for task, columns in layer["trials"].items():
            assert len({len(column) for column in columns.values()}) == 1, task
            assert set(columns["map"]) <= set(layer["drawn"])
        asked = {task: list(zip(of["map"], of["image"], strict=True)) for task, of in layer["trials"].items()}
        for fill in ("A1/blur", "A1/patch"):
            assert 0 < max(Counter(m for m, _ in asked[fill]).values()) <= intervention.FEW
            assert set(asked[fill]) <= set(asked["A1"])
        for task in ("A1", "A2", "A1/unmatched"):
            columns = layer["trials"][task]
            assert all(a <= b for a, b in zip(columns["left"], columns["left by the other"], strict=True))
            assert {*columns[FIELD]} <= {0, 0.5, 1}


@pytest.mark.usefixtures("judged")
def test_some_of_the_tasks(model, many, tmp_path):
    every = run(model, many, tmp_path / "every")["ours"]["layers"]
    some = run(model, many, tmp_path / "some", tasks=["prediction", "intervention"])["ours"]["layers"]
    for layer, found in some.items():
        known = every[layer]["trials"]
        assert found["trials"] == {task: of for task, of in known.items() if task[0] in "AB"}
    assert "There is no trial" in (tmp_path / "some" / "report.md").read_text()


class Branches(nn.Module):
    """Maps that see 5 pixels and maps that see 9, joined, at 32 x 32."""

    def __init__(self):
        super().__init__()
        self.preprocessing = Preprocessing(size=32, resize=36)
        self.stem, self.narrow, self.wide = nn.Conv2d(3, 6, 5, 2), nn.Conv2d(6, 2, 1), nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return torch.cat([torch.relu(self.narrow(x)), torch.relu(self.wide(x))], 1)


@pytest.mark.usefixtures("judged")
def test_every_task_takes_maps_that_see_areas_of_two_sizes(many, tmp_path):
    torch.manual_seed(0)
    layer = run(Branches().eval(), many, tmp_path, layers=["cat"], maps=5)["ours"]["layers"]["cat"]
    for task, columns in layer["trials"].items():
        assert {*columns["rows"]} == {5, 9}, task
        for n, seen in enumerate(columns["rows"]):
            assert (seen == 5) == (columns["map"][n] < 2)


@pytest.mark.usefixtures("judged")
def test_the_same_seed_gives_the_same_digits_whether_it_was_stopped_or_not(model, many, tmp_path, monkeypatch):
    whole = run(model, many, tmp_path / "whole")["ours"]

    def stop(layer):
        raise KeyboardInterrupt

    tasks = dict(measure.TASKS)
    with monkeypatch.context() as patch:
        patch.setitem(measure.TASKS, "sufficiency", stop)
        with pytest.raises(KeyboardInterrupt):
            run(model, many, tmp_path / "stopped")
    done = []
    for name, task in tasks.items():
        monkeypatch.setitem(measure.TASKS, name, lambda layer, n=name, t=task: done.append((layer.name, n)) or t(layer))
    assert run(model, many, tmp_path / "stopped")["ours"] == whole
    assert done == [("relu1", "sufficiency"), *(("relu2", name) for name in tasks)]
    assert run(model, many, tmp_path / "other", seed=1)["ours"]["layers"] != whole["layers"]


@pytest.mark.usefixtures("judged")
def test_another_rule_set_does_not_take_up_the_trials_of_the_first(model, many, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(measure.TASKS, "prediction", lambda layer: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(model, many, tmp_path)
    with pytest.raises(InputError, match=r"ablation\.partial was made with different rules"):
        run(model, many, tmp_path, rules="guided")
    guided = run(model, many, tmp_path, rules="guided", fresh=True)
    assert guided["settings"]["rules"] == "guided"
    for layer in guided["ours"]["layers"].values():  # the projection is the guided one
        for task in ("A1", "sufficiency"):
            assert layer["trials"][task]["projection"] == layer["trials"][task]["guided"]
    plain = run(model, many, tmp_path / "plain")
    assert plain["settings"]["rules"] == "deconvnet" and plain["ours"]["layers"] != guided["ours"]["layers"]
    assert "rules GUIDED" in (tmp_path / "report.md").read_text()
    assert "by the rules" not in (tmp_path / "plain" / "report.md").read_text()


@pytest.mark.usefixtures("judged")
def test_of_a_damaged_state_one_line_is_said(model, many, tmp_path, monkeypatch):
    monkeypatch.setitem(measure.TASKS, "prediction", lambda layer: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(model, many, tmp_path)
    with pytest.raises(InputError, match=r"scan\.partial was made with different weights"):
        run(sequential_of(model), many, tmp_path)
    (tmp_path / "ablation.partial").write_text("{}")
    with pytest.raises(InputError, match=r"ablation\.partial is damaged, or of an older format"):
        run(model, many, tmp_path)


def sequential_of(model):
    other = copy.deepcopy(model)
    other.conv1.weight.data.mul_(1.01)
    return other


def test_without_a_judge_two_tasks_are_left_out_and_the_report_says_so(model, many, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "judge_of", lambda *_: None)
    result = run(model, many, tmp_path, layers=["relu2"])["ours"]
    assert set(result["layers"]["relu2"]["trials"]) == TASKS - {"A2", "B"} and result["judge"] is None
    assert not (tmp_path / "B.png").exists()
    assert "A2" in (tmp_path / "report.md").read_text()


@pytest.mark.usefixtures("judged")
def test_mistakes_are_one_line_and_leave_nothing(model, data, many, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"^the data has 12 images that can be read; the tasks need 240 or more$"):
        run(model, data, tmp_path)
    with (
        monkeypatch.context() as patch,
        pytest.raises(
            InputError, match=r"^relu2: 22 pictures of 17 x 17 pixels, .* not fit in memory; give maps=1, or"
        ),
    ):
        patch.setattr(measure, "PIXELS", 22 * 17**2 - 1)
        run(model, many, tmp_path / "large")
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"not fit in memory; give other layers$"):
        patch.setattr(measure, "PIXELS", 1)
        run(model, many, tmp_path / "large")
    model.conv1.bias.data[:] = -1e3
    with pytest.raises(InputError, match=r"^no feature map of relu1 is above 0 on 20 images, which the tasks need$"):
        run(model, many, tmp_path / "dead", layers=["relu1"])
    assert not list((tmp_path / "dead").iterdir())


def test_a_network_does_not_judge_itself():
    from experiments.setup.efficientnet_lite import EfficientNetLite0

    with pytest.raises(InputError, match=r"EfficientNetLite0 would judge itself; give weights of SqueezeNet v1.0"):
        measure.judge_of(EfficientNetLite0(10), None)


def test_dreamsim_judges_where_it_is_installed(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "dreamsim", None)
    with pytest.raises(InputError, match="judge=dreamsim needs a package of that name: pip install dreamsim"):
        measure.judge_of(model, "dreamsim")
    asked = []

    def embed(images):
        assert images.shape[1:] == (3, 224, 224)
        assert images.min() >= 0 and images.max() <= 1
        asked.append(len(images))
        return images.mean((2, 3))

    package = SimpleNamespace(dreamsim=lambda pretrained, device: (SimpleNamespace(embed=embed), None))
    monkeypatch.setitem(sys.modules, "dreamsim", package)
    judge = measure.judge_of(model, "dreamsim")
    pixels = torch.rand(70, 3, 64, 64)
    parts, half = judge.source.normalise(pixels), torch.ones(70, 64, 64)
    grey = judge.source.pixels(torch.zeros(1, 3, 1, 1)).flatten()
    half[:, :, 32:] = 0
    whole, masked = judge.describe(parts), judge.describe(parts, half)
    assert asked == [32, 32, 6] * 2
    torch.testing.assert_close(whole, pixels.mean((2, 3)), atol=1e-3, rtol=0)
    torch.testing.assert_close(masked, (pixels[..., :32].mean((2, 3)) + grey) / 2, atol=5e-3, rtol=0)
    assert Protocol([], 4, "dreamsim", 0).settings["judge"] == "DreamSim"


def test_of_many_images_a_sample_is_ranked(model, many, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "judge_of", lambda *_: None)
    monkeypatch.setattr(measure, "MOST", 40)
    monkeypatch.setattr(measure, "FEWEST", 40)
    found = study(model, many, tmp_path, Protocol(["relu2"], 2, None, 0), progress=False)
    assert len(found.sample) == 40 == found.layers["relu2"].top.value.shape[1] and len(set(found.sample)) == 40
    assert found.sample != list(range(40))


def test_the_configuration_takes_the_networks_layers():
    layers = configured(["experiment=ablation", "model=squeezenet1_0"]).experiment.layers
    assert len(layers) == 5 and layers[4] == "features.12.cat"


# ---- task A on units whose answer is known ---------------------------------------------------------------------------


def bright_spot():
    """One map that reads one pixel, off the middle of the 9 x 9 that it sees; and one that reads another."""
    conv = nn.Conv2d(3, 2, 9, 9)
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.zero_()
        conv.weight[0, :, 1, 6] = 1
        conv.weight[1, :, 6, 1] = 1
    return sequential(Preprocessing(size=27, resize=None, mean=0.0, std=1.0), conv=conv, relu=nn.ReLU())


def units_of(model, count=20, size=27, maps=2):
    torch.manual_seed(3)
    images = [(0.2 + torch.rand(3, size, size), 0) for _ in range(count)]
    units = torch.tensor([(n, m, n % 3, (n + m) % 3) for n in range(count) for m in range(maps)])
    return Units(Deconvnet(model), images, "relu", units, 0)


def test_a_unit_of_one_pixel_is_pointed_at_by_what_depends_on_it():
    units = units_of(bright_spot())
    found = intervention.trials(units, units, None)
    columns = found["A1"]
    assert "A2" not in found and len(columns["map"]) == 40
    for picture in ("projection", "gradient", "guided", ORACLE):  # the field is that of the one other map, elsewhere
        assert sum(columns[picture]) / 40 > 0.95, picture
    for picture in (FIELD, "another map x field"):  # other maps look elsewhere
        assert sum(columns[picture]) / 40 <= 0.6, picture


def blobs(bias=0.0):
    """Four linear maps, each of which sums what lies about another place of the 15 x 15 pixels that it sees."""
    conv = nn.Conv2d(3, 4, 15, 6)
    index = torch.arange(15)
    with torch.no_grad():
        for weight, row, column in zip(conv.weight, (3, 3, 11, 11), (4, 10, 4, 10), strict=True):
            distance = (index - row).square()[:, None] + (index - column).square()[None]
            weight[:] = (-distance / 8).exp()
        conv.bias.fill_(bias)
    return sequential(
        Preprocessing(size=27, resize=None, mean=0.0, std=1.0), relu=conv
    )  # no ReLU, in spite of the name


def test_of_a_linear_unit_gradient_and_projection_point_at_the_right_square():
    units = units_of(blobs(), maps=4)
    boxes = squares(units.inside)
    weights = units.deconvnet.graph.model.relu.weight[units.maps]
    parts = torch.stack(
        [(covered(box, units.inside)[:, None] * weights * units.crops).sum((1, 2, 3)) for box in boxes.unbind(1)], 1
    )
    torch.testing.assert_close(left(units, boxes, "grey"), units.values[:, None] - parts, rtol=1e-4, atol=0)
    columns = intervention.trials(units, units, None)["A1"]
    assert len(columns["map"]) == 80
    for picture in ("projection", "gradient", "guided", "projection x field", ORACLE):
        assert sum(columns[picture]) / 80 > 0.95, picture
    assert sum(columns[FIELD]) / 80 < 0.6


def test_a_unit_that_ignores_its_image_has_no_trial():
    model = blobs(bias=2.0)
    model.relu.weight.data.zero_()
    units = units_of(model, maps=4)
    found = intervention.trials(units, units, None)
    assert {len(column) for columns in found.values() for column in columns.values()} == {0}


def test_in_a_random_network_the_mask_of_a_shuffled_one_is_worth_its_field():
    torch.manual_seed(0)
    preprocessing = Preprocessing(size=27, resize=None, mean=0.0, std=1.0)
    layers = {f"conv{n}": nn.Conv2d(3 if n == 0 else 16, 16, 5) for n in range(3)}
    model = sequential(
        preprocessing,
        conv0=layers["conv0"],
        relu0=nn.ReLU(),
        conv1=layers["conv1"],
        relu1=nn.ReLU(),
        conv2=layers["conv2"],
        relu=nn.ReLU(),
    )
    units = units_of(model, 24, maps=16)
    live = units.values > 0
    known = torch.cat([units.items[:, None], units.units[:, 1:]], 1)[live]
    units = Units(units.deconvnet, units.data, "relu", known, 0)
    columns = intervention.trials(units, units, None)["A1"]
    one, other = (torch.tensor(columns[name]) for name in ("shuffled x field", FIELD))
    maps, images = (torch.tensor(columns[name]) for name in ("map", "image"))
    found = two_way(one - other, maps, images)
    assert len(maps) > 100 and found.low < 0 < found.high, found


def test_what_is_left_under_a_square_is_what_the_network_gives():
    units = units_of(bright_spot(), 4)
    boxes = squares(units.inside)
    remaining = left(units, boxes, "grey")
    for n in range(len(units.maps)):
        row, column = (1, 6) if units.maps[n] == 0 else (6, 1)
        hit = covered(boxes[n], units.inside[n : n + 1].expand(25, -1, -1))[:, row, column]
        assert torch.equal(remaining[n] == 0, hit)
        assert torch.allclose(remaining[n][~hit], units.values[n])


@pytest.mark.parametrize("fill", FILLS)
def test_a_fill_is_of_another_image_or_of_none(fill):
    units = units_of(bright_spot(), 4)
    ground = filled(units, fill)
    assert ground.shape == units.crops.shape and not torch.equal(ground, units.crops)
    if fill == "patch":
        for content, image, (top, left_, bottom, right) in zip(
            ground, units.units[:, 0], units.boxes.tolist(), strict=True
        ):
            same = [torch.equal(content, other[:, top:bottom, left_:right]) for other in units.images]
            assert sum(same) == 1 and not same[image]


def test_sufficiency_and_necessity_of_a_unit_of_one_pixel():
    units = units_of(bright_spot(), 6)
    kept, lost = sufficiency.trials(units, units)
    rows = len(units.maps) * len(sufficiency.SHARES) * 3
    assert {len(column) for column in (*kept.values(), *lost.values())} == {rows} and set(MASKS) <= set(kept)
    grey = [n for n in range(rows) if kept["fill"][n] == "grey"]
    assert all(kept["gradient"][n] == pytest.approx(1) == lost["gradient"][n] for n in grey)
    assert all(kept[FIELD][n] + lost[FIELD][n] == pytest.approx(2 * kept[FIELD][n]) for n in grey)  # one pixel: alike


# ---- people ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("judged")
def test_a_page_for_people_and_its_score(model, many, tmp_path, capsys):
    run(model, many, tmp_path, export="trials")
    assert {path.name for path in (tmp_path / "trials").iterdir()} >= {"trials.html", "trials-KEY.json", "result.json"}
    assert not list(tmp_path.glob("*.partial"))
    key = json.loads((tmp_path / "trials" / "trials-KEY.json").read_text())
    assert {trial["task"] for trial in key["trials"]} == {"A2", "B"} and sum(
        t["catch"] for t in key["trials"]
    ) == people.EASY
    answers = [
        {"trial": n, "option": trial["right"], "left": 0, "confidence": 2, "milliseconds": 900}
        for n, trial in enumerate(key["trials"])
    ]
    for person in ("0" * 16, "1" * 16):
        content = {"format": key["format"], "page": key["page"], "person": person, "answers": answers}
        (tmp_path / f"{person}.json").write_text(json.dumps(content))
    files = [str(file) for file in sorted(tmp_path.glob("*.json"))]
    scored = run(model, many, tmp_path, answers=files)["ours"]
    assert scored["people"] == 2 and set(scored["columns"]["right"]) == {1}
    assert "| 1.00 " in capsys.readouterr().out
    assert "No answer is left." not in (tmp_path / "trials" / "answers" / "table.md").read_text()


@pytest.mark.parametrize("name", ["", "../x", "a/b", "/tmp/x", "a b"])
def test_a_page_has_a_plain_name(model, many, tmp_path, name):
    with pytest.raises(InputError, match=r"^export is .*; give the page a name of letters, digits, - and _, such as"):
        run(model, many, tmp_path, export=name)
    assert not list(tmp_path.iterdir())


def test_a_share_of_people_and_its_interval_are_of_one_estimate(tmp_path, monkeypatch):
    """Units count alike: 22 people are right on two easy units, and two of them are wrong on eight hard ones."""
    rows = [(f"{person}", unit) for person in range(22) for unit in range(10) if unit < 2 or person < 2]
    known = {"task": "B", "pair": "extreme", "picture": "crop", "layer": "relu1"}
    columns = {name: [value] * len(rows) for name, value in known.items()}
    columns |= {"person": [p for p, _ in rows], "map": [u for _, u in rows], "right": [int(u < 2) for _, u in rows]}
    found = SimpleNamespace(columns=columns, people=["a"], failed={}, incomplete=[])
    monkeypatch.setattr(people, "score", lambda *_: found)
    result = Result("ablation", tmp_path, {})
    people.score_answers(result, [], "trials")
    table = (tmp_path / "trials" / "answers" / "table.md").read_text()
    assert "| 0.20 (" in table and "0.73" not in table


@pytest.mark.usefixtures("judged")
def test_trials_for_people_are_right_by_the_network(model, many, tmp_path):
    found = study(model, many, tmp_path, Protocol(["relu2"], 3, None, 0), progress=False)
    trials: list[Trial] = list(people.trials_of(found.layers["relu2"], 2))
    of_b = [trial for trial in trials if trial.task == "B"]
    assert len(of_b) == 5 and sum(trial.catch for trial in of_b) == 2
    assert all(trial.right == 0 and len(trial.options) == 2 for trial in trials)
    assert len({trial.id for trial in trials}) == len(trials)
    top = found.layers["relu2"].top
    for trial in of_b:
        values = dict(zip(top.image[trial.map].tolist(), top.value[trial.map].tolist(), strict=True))
        assert values[trial.image] >= top.value[trial.map].median()


def test_people_see_every_kind_of_picture_with_every_kind_of_query(many, tmp_path):
    torch.manual_seed(0)
    preprocessing = Preprocessing(size=32, resize=36)
    model = sequential(preprocessing, conv=nn.Conv2d(3, 10, 5, 2), relu=nn.ReLU())
    model.conv.bias.data += 1.0
    found = study(model, many, tmp_path, Protocol(["relu"], 10, None, 0), progress=False)
    trials = [trial for trial in people.trials_of(found.layers["relu"], 0) if trial.task == "B"]
    assert len(Counter((trial.picture, trial.pair) for trial in trials)) == 4
    silent = found.layers["relu"].top
    for trial in trials:
        assert silent.value[trial.map].max() > silent.value[trial.map].min()


def test_people_are_not_asked_which_of_two_silent_images_is_stronger(many, tmp_path):
    torch.manual_seed(0)
    model = sequential(Preprocessing(size=32, resize=36), conv=nn.Conv2d(3, 2, 5, 2), relu=nn.ReLU())
    layer = study(model, many, tmp_path, Protocol(["relu"], 2, None, 0), progress=False).layers["relu"]
    value = layer.top.value.clone()
    value[:, 20:] = 0  # above 0 in 20 of 240 images
    layer = replace(layer, top=layer.top._replace(value=value, unclipped=value), maps=[0, 1])
    asked = [trial for n in range(4) for trial in people.trials_of(replace(layer, seed=n), 0) if trial.task == "B"]
    assert {trial.pair for trial in asked} <= {"extreme"}
