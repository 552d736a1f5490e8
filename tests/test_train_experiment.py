"""The experiment that trains a network: what it leaves."""

import copy
import csv
from pathlib import Path

import torch

from experiments import train
from zfnet import weights
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


def test_snapshots_of_an_earlier_run_are_gone(model, data, tmp_path):
    for epochs in (3, 1):
        recipe = Recipe(epochs=epochs, batch_size=6)
        train.main(copy.deepcopy(model), data, tmp_path, recipe=recipe, snapshots=[1, 2, 3], progress=False)
    assert [path.name for path in (tmp_path / "epochs").iterdir()] == ["epoch-0001.safetensors"]
