"""What Tables 4 to 7 and Figure 9 share: settings by name, ten crops, near duplicates, the control."""

import inspect
import re

import numpy as np
import pytest
from PIL import Image

from experiments.figures import fig9
from experiments.output.pages import STYLES
from experiments.setup.commands import spelled
from experiments.setup.configuration import configured
from experiments.setup.options import READING
from experiments.tables import table4, table5
from experiments.tables.transfer import Control, Settings, draw
from tests.stand_ins import CONTROL, held_out, pretrained
from zfnet import InputError
from zfnet.data.photos import Photos
from zfnet.training import Recipe


@pytest.fixture(scope="module")
def model():
    return pretrained()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("main", "name", "per_class"),
    [
        (table4.main, "table4", (15, 30)),
        (table5.main, "table5", (15, 30, 45, 60)),
        (fig9.main, "fig9", (1, 2, 3, 4, 5, 6, 7, 10, 15, 30, 45, 60)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_setting_has_a_name_a_default_and_a_meaning(main, name, per_class):
    parameters = inspect.signature(main).parameters
    assert parameters["per_class"].default == per_class
    assert all(p.default is not p.empty for p in parameters.values() if p.kind is p.KEYWORD_ONLY)
    assert {*vars(Settings())} <= {*parameters} and list(parameters)[:3] == ["model", "data", "out"]
    meanings = re.findall(r"^    (\w+): \S", inspect.getdoc(main), re.MULTILINE)
    assert meanings == list(parameters)
    assert spelled([f"experiment={name}", "folds=3", "workers=0"])[1:] == [
        "++experiment.folds=3",
        "++experiment.workers=0",
    ]
    with pytest.raises(InputError, match=re.escape("did you mean 'threshold'?")):
        spelled([f"experiment={name}", "treshold=0.9"])
    assert not {*configured([f"experiment={name}"]).experiment} - {*parameters, *READING, "_target_"}


def test_a_setting_that_is_none_is_refused(model, tmp_path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'fold'"):
        table4.main(model, held_out(), tmp_path / "out", fold=3)


def test_settings_are_written_down(model, tmp_path):
    how = {"layer": "4", "per_class": [2], "folds": 1, "seed": 5, **CONTROL, "progress": False}
    result = table4.main(model, held_out(), tmp_path, **how)
    expected = {"layer": "4", "per_class": [2], "folds": 1, "test": 50, "threshold": 0.95, "model": "Sequential"}
    assert expected.items() <= result["settings"].items()
    assert result["settings"]["recipe"]["epochs"] == 1 and result["settings"]["scratch"]["image_size"] == 64
    assert result["provenance"]["seed"] == 5 and "progress" not in result["settings"]


def test_features_of_ten_crops(model, tmp_path):
    one, ten, again = (
        table4.main(model, held_out(), tmp_path / n, layer="3", per_class=[3], folds=2, crops=crops, progress=False)
        for n, crops in (("a", 1), ("b", 10), ("c", 10))
    )
    assert ten["settings"]["crops"] == 10 and ten["ours"] == again["ours"]
    assert ten["ours"]["each"] != one["ours"]["each"]


def test_near_duplicates_of_pretraining_images_are_left_out_and_told(model, tmp_path):
    random = np.random.default_rng(0)
    for n in range(12):
        image = random.integers(256, size=(40, 40, 3), dtype=np.uint8)
        for folder in [f"target/{'ab'[n % 2]}"] + ["known"] * (n == 5):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image // 2 + 20 if folder == "known" else image).save(tmp_path / folder / f"{n}.png")
    data = Photos(tmp_path / "target", transform=model.preprocessing)
    arguments = {"layer": "4", "per_class": [4], "folds": 1, "progress": False}
    result = table4.main(model, data, tmp_path / "a", pretraining=str(tmp_path / "known"), **arguments)
    (told,) = result["ours"]["left_out"]
    assert told.startswith("b/5.png is 5.png (0.9") or told.startswith("b/5.png is 5.png (1.0")
    assert "Left out as near duplicates of pretraining images: 1: b/5.png" in (tmp_path / "a/table.md").read_text()
    with pytest.raises(InputError, match="class 1 \\('b'\\) has 5 images: too few for 5 to train"):
        arguments["per_class"] = [5]
        table4.main(model, data, tmp_path / "b", pretraining=str(tmp_path / "known"), **arguments)


@pytest.mark.parametrize("style", ["safe", "paper"])
def test_the_picture_tells_the_papers_curves_from_ours(style):
    accuracy = {"pretrained": {15: [50.0, 60.0], 30: [70.0]}, "from scratch": {15: [10.0], 30: [20.0]}}
    figure = draw(table4.PAPER, accuracy, Settings(width=5.0, style=style), "What it is.")
    (axis,) = figure.axes
    curves = dict(zip(axis.get_legend_handles_labels()[1], (c.lines[0] for c in axis.containers), strict=True))
    assert [*curves] == [f"paper: {row}" for row in table4.PAPER.rows] + ["ours: pretrained", "ours: from scratch"]
    assert curves["ours: pretrained"].get_ydata().tolist() == [55.0, 70.0]
    for row, colour in zip(accuracy, STYLES[style].lines, strict=False):
        assert curves[f"ours: {row}"].get_color() == curves[f"paper: {row}"].get_color() == colour
        assert curves[f"paper: {row}"].get_markerfacecolor() == "white" != curves[f"ours: {row}"].get_markerfacecolor()
    assert curves["paper: DeCAF"].get_color() not in STYLES[style].lines
    assert figure.get_figwidth() == 5 and axis.get_xticks().tolist() == [15, 30]


def test_the_control_learns_from_the_images_of_its_fold_alone(monkeypatch):
    data, trained = held_out(), []

    def train(model, training, *arguments, **settings):
        trained.append(training)
        return []

    monkeypatch.setattr("experiments.setup.networks.train", train)
    control = Control(data, CONTROL["scratch"], Recipe(epochs=1), 8, progress=False)
    fold = np.array([3, 10, 40])
    answers = control.probabilities(fold, np.array([0, 1, 2]), np.array([5, 6]), seed=1)
    assert answers.shape == (2, 8) and answers.sum(1) == pytest.approx(1)
    images, labels = trained[0].tensors
    assert sorted(labels.tolist()) == [0, 1, 2]
    for image, label in zip(images, labels, strict=True):
        assert (image == control.images[fold[label]]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_class": [8]}, "has 8 images: too few for 8 to train and 1 to test on"),
        ({"folds": 0}, "folds is 0"),
        ({"per_class": []}, "per_class is []"),
        ({"per_class": [3, 0]}, "per_class is [3, 0]"),
        ({"width": 0.5}, "width is 0.5; give at least 3"),
        ({"style": "papers"}, "no style 'papers' (did you mean 'paper'?)"),
    ],
    ids=str,
)
def test_mistakes_are_named_and_leave_nothing(model, tmp_path, settings, message):
    with pytest.raises(InputError, match=re.escape(message)):
        table4.main(model, held_out(), tmp_path / "out", **settings, progress=False)
    assert not list(tmp_path.iterdir())
