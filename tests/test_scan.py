"""experiment=scan: what it keeps and prints, whole and in shards."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import Subset

from experiments.ablation import ablation, measure
from experiments.questions import merge
from experiments.questions import scan as experiment
from zfnet import InputError, scan
from zfnet.scan_files import read_scan
from zfnet.scanning import scan_identity

HOW = {"batch_size": 4, "workers": 0, "progress": False}
KEPT = {"scan.json", "statistics.safetensors", "top.safetensors"}
RESULT = {"result.json", "table.md"}
ALL = ["conv1", "relu1", "pool1", "conv2", "relu2", "flatten", "fc"]  # without `flat`, which repeats


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_a_scan_is_kept_and_told(model, data, tmp_path, capsys):
    result = experiment.main(model, data, tmp_path / "out", scans=tmp_path / "scans", layers="all", k=3, **HOW)
    assert (files(tmp_path / "out"), files(tmp_path / "scans")) == (RESULT, KEPT)
    kept = read_scan(tmp_path / "scans", scan_identity(model, data))
    expected = scan(model, data, ALL, 3, **HOW)
    assert list(kept) == ALL and all(map(torch.equal, kept["relu2"], expected["relu2"]))
    ours = result["ours"]
    assert ours["layers"]["relu2"] == {"maps": 8, "dead": int((expected["relu2"].value[:, 0] <= 0).sum())}
    assert (ours["images"], ours["labelled_images"], ours["broken_images"], ours["k"]) == (12, 12, [], 3)
    assert result["settings"]["layers"] == ALL and "scans" not in result["settings"]
    assert capsys.readouterr().out.splitlines()[2].split() == ["|", "conv1", "|", "6", "|", "0", "|", "12", "|"]


def test_layers_can_be_named_or_spread(model, data, tmp_path):
    for layers, found in ((["relu2"], ["relu2"]), ("fc", ["fc"]), ("auto", ["relu1", "relu2"])):
        result = experiment.main(model, data, tmp_path, scans=tmp_path, layers=layers, k=2, **HOW)
        assert list(result["ours"]["layers"]) == found
    assert set(read_scan(tmp_path, scan_identity(model, data))) == {"relu1", "relu2", "fc"}  # all were kept


def test_shards_and_their_merge_are_the_scan(model, data, tmp_path):
    how = {"layers": ["relu1", "relu2"], "k": 2, **HOW}
    whole = experiment.main(model, data, tmp_path / "a", scans=tmp_path / "whole", **how)
    for shard in ("2/3", "0/3", "1/3"):
        part = experiment.main(model, data, tmp_path / shard, scans=tmp_path / "parts", shard=shard, **how)
        assert part["ours"]["images"] == 4 and files(tmp_path / "parts" / "shards" / f"{shard[0]}-of-3") == KEPT
    merged = merge.main(model, data, tmp_path / "b", scans=tmp_path / "parts")
    assert merged["ours"] == whole["ours"]
    for name in KEPT:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


@pytest.mark.parametrize("shard", ["3", "3/3", "-1/3", "a/b", "1/2/3", "", "1.0/2"])
def test_a_shard_that_is_none_is_one_line(shard, model, data, tmp_path):
    with pytest.raises(InputError, match=r"^shard is .*; give NUMBER/COUNT, numbered from 0: 0/64 to 63/64$"):
        experiment.main(model, data, tmp_path, scans=tmp_path, layers=["relu1"], shard=shard, **HOW)


def test_the_ablation_reads_what_the_scan_kept(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "FEWEST", 2)
    experiment.main(model, data, tmp_path, scans=tmp_path, layers=["relu1", "relu2"], k=12, **HOW)
    before = (tmp_path / "top.safetensors").stat().st_mtime_ns
    protocol = measure.Protocol(["relu2"], 4, None, 0)
    monkeypatch.setattr(measure, "REFERENCES", 0)
    monkeypatch.setattr(measure, "QUERIES", 1)
    found = measure.study(model, data, tmp_path / "ablation", protocol, tmp_path, **HOW, fresh=False)
    expected = scan(model, data, ["relu2"], 12, **HOW)["relu2"]
    assert all(map(torch.equal, found.layers["relu2"].top, expected))
    assert (tmp_path / "top.safetensors").stat().st_mtime_ns == before and not (tmp_path / "ablation").exists()


def test_of_a_sample_the_ablation_keeps_nothing(model, data, tmp_path, monkeypatch):
    for name, value in (("FEWEST", 2), ("MOST", 7), ("REFERENCES", 0), ("QUERIES", 1)):
        monkeypatch.setattr(measure, name, value)
    protocol = measure.Protocol(["relu2"], 4, None, 0)
    found = measure.study(model, data, tmp_path / "out", protocol, tmp_path / "scans", **HOW, fresh=False)
    assert not (tmp_path / "scans").exists() and len(found.sample) == 7
    expected = scan(model, Subset(data, found.sample), ["relu2"], 7, **HOW)["relu2"]
    assert all(map(torch.equal, found.layers["relu2"].top, expected))
    assert ablation.STATES == measure.STATES


WORDS = ["data.count={train: 4, val: 9}", "layers=[relu1,relu2]", "k=2", "batch_size=2", "workers=0", "progress=false"]


def test_a_sweep_over_shards_needs_no_cluster(run):
    data = WORDS[0]
    assert run("-m", "experiment=scan", "shard=0/2,1/2", *WORDS) == (0, [])
    folder = Path("outputs/scan/zfnet_small-scenes")
    assert {path.name for path in (folder / "shards").iterdir()} == {"0-of-2", "1-of-2"}
    settings = sorted(path.read_text() for path in folder.glob("*/settings.yaml"))
    assert ["shard: 0/2" in settings[0], "shard: 1/2" in settings[1]] == [True, True]
    assert run("experiment=merge", data) == (0, [])
    assert json.loads(Path("outputs/merge/zfnet_small-scenes/result.json").read_text())["ours"]["images"] == 9
    first = (folder / "top.safetensors").read_bytes()
    assert run("experiment=scan", *WORDS) == (0, [])  # which reads it
    assert run("experiment=scan", "fresh=true", *WORDS) == (0, [])
    assert (folder / "top.safetensors").read_bytes() == first
    assert files(folder) >= KEPT | RESULT | {"config.yaml"}
    status, lines = run("experiment=scan", *WORDS, "data.count={train: 4, val: 8}")
    assert (status, lines) == (0, [f"{folder} has a scan that was made with different images: it is replaced"])
    status, lines = run("experiment=scan", *WORDS, "layers=some")
    assert status == 2 and lines == ["run.py: layers is 'some'; a list is written in brackets: layers=[some]"]


def test_a_layer_that_was_not_scanned_is_named(model, data):
    top = scan(model, data, ["relu1"], 3, **HOW)
    with pytest.raises(
        InputError, match=r"^no layer of this scan 'relu2' \(did you mean 'relu1'\?\); available: relu1$"
    ):
        top["relu2"]
    assert top.get("relu2") is None and "relu2" not in top
