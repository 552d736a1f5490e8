import json
import sys

import pytest
from PIL import Image

from experiments.run import command_line
from experiments.tables import table1
from zfnet import InputError
from zfnet.analysis.correspondence import correspondence
from zfnet.data.parts import parts_of
from zfnet.data.photos import Photos
from zfnet.data.scenes import Scenes

NAMES = ["right eye", "left eye", "nose"]


@pytest.fixture(scope="module")
def model(with_hidden_layer):
    return with_hidden_layer(64)


@pytest.fixture(scope="module")
def data(model):
    return Scenes("val", 80, size=64, transform=model.preprocessing)


def compare(model, data, out, **settings):
    few = {"layers": ["relu1", "relu6"], "draws": 2, "permutations": 99, "progress": False}
    return table1.main(model, data, out, **(few | settings))


def test_it_writes_what_it_returns_and_prints_the_papers_numbers_beside(model, data, tmp_path, capsys):
    result = compare(model, data, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"figure.png", "figure.pdf", "result.json", "table.md"}
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert set(result["paper"]) == set(result["ours"]) == {*NAMES, "random", "images", "boxes"}
    assert result["paper"]["nose"] == [{"mean": 0.079, "spread": 0.017}, {"mean": 0.069, "spread": 0.011}]
    printed = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() == printed
    lines = printed.splitlines()
    assert [line.split("|")[1].strip() for line in lines[:6] if line] == ["occluded", "-" * 11, *NAMES, "random"]
    assert "0.107 ± 0.017" in lines[5] and "0.073 ± 0.014" in lines[5]
    assert f"{result['ours']['nose'][1]['mean']:.3f} ± " in lines[4]
    assert "Layer 5 is relu1 and 7 is relu6; the paper's may end before or after pooling" in lines[-1]
    assert Image.open(tmp_path / "figure.png").width == 1380


def test_its_numbers_are_those_of_the_library(model, data, tmp_path):
    ours = compare(model, data, tmp_path, seed=4)["ours"]
    boxes = parts_of(data, NAMES, kind="dog")
    assert ours["images"] == [data.file(i) for i in boxes] and len(boxes) > 2
    assert ours["boxes"] == [{part: list(box) for part, box in parts.items()} for parts in boxes.values()]
    found = correspondence(
        model,
        [data[i][0] for i in boxes],
        list(boxes.values()),
        ["relu1", "relu6"],
        draws=2,
        seed=4,
        permutations=99,
        progress=False,
    )
    for n, layer in enumerate(("relu1", "relu6")):
        for part, row in found[layer].items():
            assert ours[part][n] == {**row._asdict(), "interval": list(row.interval)}


def test_some_of_the_images_by_seed(model, data, tmp_path):
    chosen = {tuple(compare(model, data, tmp_path, count=2, seed=seed)["ours"]["images"]) for seed in range(3)}
    assert {len(images) for images in chosen} == {2} and len(chosen) > 1


def test_photographs_with_a_table_of_parts(model, tmp_path, data):
    (tmp_path / "photos").mkdir()
    rows = ["file,part,x,y,side"]
    for n in range(3):
        Image.fromarray(data.scene(n).image).resize((96, 128)).save(tmp_path / "photos" / f"{n}.png")
        rows += [f"{n}.png,nose,50,{60 + n},10", f"{n}.png,left_ear,30.5,50,12"]
    (tmp_path / "parts.csv").write_text("\n".join(rows))
    photos = Photos(tmp_path / "photos", transform=model.preprocessing)
    parts = str(tmp_path / "parts.csv")
    ours = compare(model, photos, tmp_path / "out", parts=parts, names=["nose", "left ear"])["ours"]
    assert set(ours) == {"nose", "left ear", "random", "images", "boxes"}
    assert ours["images"] == ["0.png", "1.png", "2.png"]
    assert ours["boxes"][0]["nose"] == [25, 30, 33, 37]  # 55, 45, 65, 55, times 3/4, less 16 above and 4 on the left


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ["relu1"]}, "give 2, which stand for the paper's 5, 7"),
        ({"layers": ["relu1", "relu7"]}, "no layer of Sequential 'relu7'"),
        ({"names": []}, "names is empty"),
        ({"names": ["left eyes"]}, "no part 'left eyes' .did you mean 'eye left'|did you mean 'left eye'"),
        ({"kind": "dogs"}, "no class 'dogs' .did you mean 'dog'"),
        ({"kind": "wheel"}, "no part 'right eye'"),
        ({"count": 1}, "count is 1; give 2 to"),
        ({"count": 1000}, "count is 1000; give 2 to"),
        ({"parts": "none.csv"}, "Scenes has no files"),
    ],
)
def test_mistakes_are_refused_in_words_and_leave_nothing(model, data, tmp_path, settings, message):
    with pytest.raises(InputError, match=message) as caught:
        compare(model, data, tmp_path / "out", **settings)
    assert not list(tmp_path.iterdir()) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        [
            "experiment=table1",
            "model=squeezenet1_0",
            "model.preprocessing.size=64",
            "model.preprocessing.resize=64",
            "draws=1",
            "permutations=9",
            "count=2",
        ],
        [
            "experiment=fig5",
            "model=zfnet_small",
            "model.architecture.maps=[4,4,4,4,4]",
            "correct=false",
            "count=1",
            "scales=[1,1.2]",
            "rotations=[0,90]",
            "translations=[0,3]",
        ],
    ],
    ids=["table1", "fig5"],
)
def test_they_run_from_the_command_line(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ["model.weights=null", "data.count={train: 1, val: 80}", "progress=false", "out=out"]
    monkeypatch.setattr(sys, "argv", ["run.py", *words, *few])
    command_line()
    assert (tmp_path / "out" / "result.json").exists()


@pytest.mark.slow
def test_the_annotated_dogs(real_data, tmp_path, monkeypatch):
    weights = real_data / "squeezenet_v1.0" / "squeezenet_v1.0_dc.npz"
    words = [
        "experiment=table1",
        "model=squeezenet1_0",
        f"model.weights={weights}",
        "data=photos",
        f"data.root={real_data / 'imagenet_samples'}",
        f"parts={real_data / 'dog_parts' / 'parts.csv'}",
        "draws=2",
        "progress=false",
        f"out={tmp_path / 'out'}",
    ]
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    command_line()
    ours = json.loads((tmp_path / "out" / "result.json").read_text())["ours"]
    assert len(ours["images"]) == 16
    assert all(0 < layer["mean"] < 1 for part in (*NAMES, "random") for layer in ours[part])
