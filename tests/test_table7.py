"""Table 7 from end to end on a tiny network."""

import json
import re

import pytest

from experiments.tables import table7
from tests.stand_ins import ARCHITECTURE, held_out, pretrained
from zfnet import InputError
from zfnet.data.preprocessing import Preprocessing
from zfnet.data.scenes import Scenes

FILES = {"table.md", "figure.png", "figure.pdf", "result.json"}
LAYERS = ["0", "1", "2", "3", "3", "4"]


@pytest.fixture(scope="module")
def model():
    return pretrained()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_table7_from_end_to_end(model, tmp_path):
    result = table7.main(model, held_out(), tmp_path / "a", layers=LAYERS, per_class=3, folds=2, progress=False)
    assert {file.name for file in (tmp_path / "a").iterdir()} == FILES
    assert json.loads((tmp_path / "a" / "result.json").read_text()) == json.loads(json.dumps(result))
    assert list(result["ours"]["accuracy"]) == list(table7.PAPER)
    assert all(len(rates) == 2 for rates in result["ours"]["each"].values())
    assert result["ours"]["features"] == {"0": 8 * 14 * 14, "1": 8 * 14 * 14, "2": 128, "3": 128, "4": 16}


def test_it_is_said_which_reading_of_a_layer_is_printed(tmp_path):
    network = ARCHITECTURE()
    how = network.preprocessing = Preprocessing(size=64, resize=72)
    data = Scenes("val", 32, size=64, classes="held_out", transform=how)
    settings = {"per_class": 2, "folds": 1, "progress": False}
    first = table7.main(network.eval(), data, tmp_path / "a", **settings)
    text = (tmp_path / "a" / "table.md").read_text()
    assert "at relu1, relu2, relu3, relu4, relu5, relu7: before pooling and contrast normalisation" in text
    after = ["norm1", "norm2", "relu3", "relu4", "pool5", "relu7"]
    assert f"layers=[{', '.join(after)}]" in text
    other = table7.main(network, data, tmp_path / "b", layers=after, **settings)
    text = (tmp_path / "b" / "table.md").read_text()
    assert f"Layers are read at {', '.join(after)}." in text and "before pooling" not in text
    assert other["ours"]["features"]["pool5"] < first["ours"]["features"]["relu5"]
    lines = text.split("\n\n")[0].splitlines()[2:]
    assert [line.split("|")[5].strip() for line in lines] == [*after, "pool5", "relu7"]


def test_features_of_ten_crops(model, tmp_path):
    layers = ["2", "2", "2", "2", "3", "4"]
    one, ten, again = (
        table7.main(model, held_out(), tmp_path / n, layers=layers, per_class=3, folds=2, crops=crops, progress=False)
        for n, crops in (("a", 1), ("b", 10), ("c", 10))
    )
    assert ten["settings"]["crops"] == 10 and ten["ours"] == again["ours"]
    assert ten["ours"]["each"] != one["ours"]["each"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ["1"]}, "layers are 1; give 6, which stand for the paper's 1, 2, 3, 4, 5, 7"),
        ({"folds": 0}, "folds is 0"),
        ({"per_class": 8}, "has 8 images: too few for 8 to train and 1 to test on"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(model, tmp_path, settings, message):
    with pytest.raises(InputError, match=re.escape(message)):
        table7.main(model, held_out(), tmp_path / "out", **settings, progress=False)
    assert not list(tmp_path.iterdir())
