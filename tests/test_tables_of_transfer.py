"""Tables 4 to 7 and Figure 9 from end to end on a tiny network; the paper's numbers as printed."""

import json
import re
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from experiments.figures import fig9
from experiments.run import run
from experiments.tables import table4, table5, table6, table7
from zfnet import InputError, ZFNet
from zfnet.data.photos import Photos
from zfnet.data.preprocessing import Preprocessing
from zfnet.data.scenes import Scenes
from zfnet.training import Recipe

TABLE6 = """
92.0 97.3 94.6 96.0 74.2 84.2 82.9 77.1 73.0 80.8 88.2 88.4 77.5 85.3 60.3 85.5 54.3 60.8 60.3 55.8 85.2 89.9 89.0 85.8
81.9 86.8 84.4 78.6 76.4 89.3 90.7 91.2 65.2 75.4 72.1 65.0 63.2 77.8 86.8 74.4 63.2 77.8 69.0 67.7 68.9 83.0 92.1 87.8
78.2 87.5 93.4 86.0 81.0 90.1 88.6 85.1 91.6 95.0 96.1 90.9 55.9 57.8 64.3 52.2 69.4 79.2 86.6 83.6 65.4 73.4 62.3 61.1
86.7 94.5 91.1 91.8 77.4 80.7 79.8 76.1 74.3 82.2 82.8 79.0
"""
SCRATCH = {
    "scratch": partial(ZFNet, maps=(4, 4, 4, 4, 4), hidden=(8,), image_size=64, init="he"),
    "recipe": Recipe(epochs=1, batch_size=8, max_shift=2),
}
FILES = {"table.md", "figure.png", "figure.pdf", "result.json"}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 16))
    model.preprocessing = Preprocessing(size=32, resize=36)
    return model.eval()


def held_out(model, objects=1, count=64):
    return Scenes("val", count, size=32, classes="held_out", objects=objects, transform=model.preprocessing)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_papers_table6_is_printed_whole():
    printed = [float(number) for number in TABLE6.split()]
    assert [value for row in table6.PAPER.values() for value in row] == printed
    own = [row[3] for name, row in table6.PAPER.items() if name != "mean"]
    assert np.mean(own) == pytest.approx(79.0, abs=0.05)


def test_table6_from_end_to_end_and_again_from_its_cache(model, tmp_path):
    data = held_out(model, objects=3)
    first = table6.main(model, data, tmp_path / "a", layer="4", folds=2, **SCRATCH, progress=False)
    assert {file.name for file in (tmp_path / "a").iterdir()} == FILES
    kept = json.loads((tmp_path / "a" / "result.json").read_text())
    assert set(kept["paper"]) == set(kept["ours"])
    for kind in ("exclusive", "each class", "from scratch"):
        assert list(first["ours"]["precision"][kind]) == [*data.classes, "mean"]
        assert all(0 < p <= 100 for each in first["ours"]["each"][kind].values() for p in each)
        classes = [first["ours"]["each"][kind][name] for name in data.classes]
        assert first["ours"]["each"][kind]["mean"] == pytest.approx(np.mean(classes, 0))
    times = {file: file.stat().st_mtime_ns for file in tmp_path.glob("outputs/**/*.npy")}
    again = table6.main(model, data, tmp_path / "b", layer="4", folds=2, **SCRATCH, progress=False)
    assert again["ours"] == first["ours"]
    assert times == {file: file.stat().st_mtime_ns for file in tmp_path.glob("outputs/**/*.npy")}


def test_folds_of_table6_share_no_image():
    presence = np.where(np.random.default_rng(0).random((40, 3)) < 0.5, 1, -1).astype(np.int8)
    for train, test in table6.parted(presence, None, 5, 0, "abc", {3: "a duplicate"}):
        assert not {*train} & {*test}
        assert {*train} | {*test} == {*range(40)} - {3}
    presence[:, 1] = -1
    presence[5, 1] = 1
    with pytest.raises(InputError, match=re.escape("'b' is in 1 image(s), in no fold to train and to test on")):
        table6.parted(presence, None, 5, 0, "abc")
    parts = ["train"] * 30 + ["test"] * 10
    presence[35, 1] = 1
    (only,) = table6.parted(presence, parts, 5, 0, "abc")
    assert only.train.tolist() == [*range(30)] and only.test.tolist() == [*range(30, 40)]


@pytest.mark.parametrize("which", ["table4", "table5", "fig9"])
def test_tables_4_and_5_and_figure_9_from_end_to_end(model, tmp_path, which):
    main = {"table4": table4, "table5": table5, "fig9": fig9}[which].main
    more = {} if which == "fig9" else SCRATCH
    data = held_out(model)
    result = main(
        model, data, tmp_path / "a", which=which, layer="4", per_class=[1, 3], folds=2, **more, progress=False
    )
    assert {file.name for file in (tmp_path / "a").iterdir()} == FILES
    assert set(result["paper"]) == set(result["ours"])
    assert set(result["ours"]["accuracy"]) == ({"pretrained"} | ({"from scratch"} if more else set()))
    assert all(len(a) == 2 for rows in result["ours"]["each"].values() for a in rows.values())
    again = main(model, data, tmp_path / "b", which=which, layer="4", per_class=[1, 3], folds=2, **more, progress=False)
    assert again["ours"] == result["ours"]


@pytest.mark.parametrize("main", [table4.main, table6.main, table7.main])
def test_features_of_ten_crops(model, tmp_path, main):
    data = held_out(model, objects=3 if main is table6.main else 1)
    layers = {"layers": ["0", "1", "2", "3", "4", "4"], "per_class": 3} if main is table7.main else {"layer": "3"}
    layers |= {"per_class": [3]} if main is table4.main else {}
    one, ten, again = (
        main(model, data, tmp_path / name, folds=2, crops=crops, **layers, progress=False)
        for name, crops in (("a", 1), ("b", 10), ("c", 10))
    )
    assert ten["settings"]["crops"] == 10 and ten["ours"] == again["ours"]
    assert ten["ours"]["each"] != one["ours"]["each"]


def test_the_table_of_a_curve_reads_downwards(model, tmp_path):
    counts = [1, 2, 3, 4, 5]
    fig9.main(model, held_out(model), tmp_path, which="fig9", layer="4", per_class=counts, folds=2, progress=False)
    head, _, *lines = (tmp_path / "table.md").read_text().split("\n\n")[0].splitlines()
    assert [cell.strip() for cell in head.split("|")[1:-1]] == [
        "images",
        "paper, Bo et al. 2013",
        "paper, pretrained",
        "ours, pretrained",
    ]
    assert [line.split("|")[1].strip() for line in lines] == list(map(str, counts))
    assert lines[0].split("|")[3].strip() == "27.2 ± 0.9"


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


def test_table7_from_end_to_end(model, tmp_path):
    layers = ["0", "1", "2", "3", "3", "4"]
    result = table7.main(model, held_out(model), tmp_path / "a", layers=layers, per_class=3, folds=2, progress=False)
    assert {file.name for file in (tmp_path / "a").iterdir()} == FILES
    assert list(result["ours"]["accuracy"]) == list(table7.PAPER)


@pytest.mark.parametrize(
    ("main", "settings", "message"),
    [
        (table4.main, {"per_class": [8]}, "has 8 images: too few for 8 to train and 1 to test on"),
        (table4.main, {"folds": 0}, "folds is 0"),
        (table4.main, {"per_class": []}, "per_class is []"),
        (table4.main, {"which": "table44"}, "no published table 'table44' (did you mean 'table4'?)"),
        (table6.main, {"folds": 0}, "folds is 0"),
        (table7.main, {"layers": ["1"]}, "layers are 1; give six"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(model, tmp_path, main, settings, message):
    with pytest.raises(InputError, match=re.escape(message)):
        main(model, held_out(model), tmp_path / "out", **settings, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("experiment", ["table4", "table6"])
def test_photographs_need_a_folder(experiment):
    data = {"table4": "caltech101", "table6": "voc2012"}[experiment]
    with pytest.raises(InputError, match=re.escape(f"data={data} needs data.root=")):
        run(experiment, [f"experiment={experiment}", f"data={data}"])
