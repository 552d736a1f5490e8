"""The experiment that trains a network: what it leaves."""

import copy
import csv
import json
from pathlib import Path

import pytest
import torch

from experiments import train
from zfnet import InputError, weights
from zfnet.data.images import Images, as_images
from zfnet.errors import BrokenImage
from zfnet.training import Recipe


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_training_leaves_weights_and_curves(model, data, tmp_path):
    network, recipe = copy.deepcopy(model), Recipe(epochs=2, batch_size=6)
    result = train.main(network, data, tmp_path, validation=data, recipe=recipe, progress=False)
    snapshots = {"epoch-0001.safetensors", "epoch-0002.safetensors"}
    assert files(tmp_path) == {"figure.png", "model.safetensors", "result.json", "metrics.csv", *snapshots}
    with open(tmp_path / "metrics.csv", newline="") as lines:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)]
    assert rows == result["ours"]["history"]
    assert [entry["epoch"] for entry in result["ours"]["history"]] == [1, 2]
    loaded = weights.load(copy.deepcopy(model), tmp_path / "model.safetensors")
    assert torch.equal(loaded.conv1.weight, network.conv1.weight)
    assert loaded.preprocessing == model.preprocessing
    last = weights.load(copy.deepcopy(model), tmp_path / "epochs" / "epoch-0002.safetensors")
    assert torch.equal(last.conv1.weight, network.conv1.weight)
    first = weights.load(copy.deepcopy(model), tmp_path / "epochs" / "epoch-0001.safetensors")
    assert not torch.equal(first.conv1.weight, network.conv1.weight)


def test_a_layer_that_is_not_there_is_refused_before_training(model, data, tmp_path):
    recipe = Recipe(epochs=1, batch_size=6)
    with pytest.raises(InputError, match="no layer of Sequential 'relu9'"):
        train.main(model, data, tmp_path, validation=data, recipe=recipe, layers=["relu9"], progress=False)
    assert not files(tmp_path) & {"checkpoint.pt", "metrics.csv", "epoch-0001.safetensors"}


def test_snapshots_of_an_earlier_run_are_gone(model, data, tmp_path):
    for epochs in (3, 1):
        recipe = Recipe(epochs=epochs, batch_size=6)
        train.main(copy.deepcopy(model), data, tmp_path, recipe=recipe, snapshots=[1, 2, 3], progress=False)
    assert [path.name for path in (tmp_path / "epochs").iterdir()] == ["epoch-0001.safetensors"]


class Spotty(Images):
    """Images of which some cannot be read."""

    def __init__(self, data, *broken: int):
        self.data, self.broken, self.classes, self.labels = data, broken, data.classes, data.labels

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int):
        if i in self.broken:
            raise BrokenImage(f"cannot load {i}.png")
        return self.data[i]


@pytest.mark.parametrize("limit", [0, 2**30], ids=["read again and again", "in memory"])
def test_broken_images_are_named_in_the_result_and_on_the_screen(model, data, tmp_path, limit, monkeypatch, capsys):
    monkeypatch.setattr(train, "MEMORY", limit)
    spotty, options = (
        Spotty(as_images(data), 0, len(data) - 1),
        {"recipe": Recipe(epochs=1, batch_size=6), "workers": 0},
    )
    with pytest.raises(InputError, match="allow_broken=true"):
        train.main(copy.deepcopy(model), spotty, tmp_path, progress=False, **options)
    with pytest.warns(UserWarning, match="2 training image"):
        result = train.main(copy.deepcopy(model), spotty, tmp_path, progress=False, allow_broken=True, **options)
    names = sorted(f"item {i}: cannot load {i}.png" for i in spotty.broken)
    assert result["ours"]["broken_images"] == names
    assert json.loads((tmp_path / "result.json").read_text())["ours"]["broken_images"] == names
    assert f"2 image(s) could not be read, first: {names[0]}" in capsys.readouterr().out
