"""experiment=merge: what is missing, and what is of something else, is said."""

from pathlib import Path

import pytest

from experiments.questions import merge
from experiments.questions import scan as experiment
from zfnet import InputError

HOW = {"layers": ["relu1"], "k": 2, "batch_size": 4, "workers": 0, "progress": False}


@pytest.fixture
def shards(model, data, tmp_path: Path) -> Path:
    for shard in ("0/3", "2/3"):
        experiment.main(model, data, tmp_path / "out", scans=tmp_path, shard=shard, **HOW)
    return tmp_path


def test_missing_shards_are_named(model, data, shards):
    with pytest.raises(InputError, match=f"^1 of 3 shards are missing in {shards}/shards: 1; scan with shard=1/3$"):
        merge.main(model, data, shards / "out", scans=shards)
    assert not (shards / "scan.json").exists()


def test_there_may_be_none(model, data, tmp_path):
    with pytest.raises(InputError, match=r"^there are no shards in .*: scan them, shard=0/4 to 3/4$"):
        merge.main(model, data, tmp_path, scans=tmp_path)


def test_shards_of_two_cuts_need_a_count(model, data, shards, capsys):
    for shard in ("0/1", "1/3"):
        experiment.main(model, data, shards / "out", scans=shards, shard=shard, **HOW)
    with pytest.raises(InputError, match=r"has shards of 1, 3: give their number, such as count=1$"):
        merge.main(model, data, shards / "out", scans=shards)
    results = [merge.main(model, data, shards / "out", scans=shards, count=count) for count in (1, 3)]
    assert results[0]["ours"] == results[1]["ours"] and results[0]["ours"]["images"] == 12
    assert "| relu1 |" in capsys.readouterr().out


def test_a_shard_of_another_network_is_named(model, data, shards, with_hidden_layer):
    experiment.main(with_hidden_layer(32), data, shards / "out", scans=shards, shard="1/3", **HOW)
    with pytest.raises(InputError, match=r"shards/1-of-3 was made with different .*weights.*shard=1/3 fresh=true$"):
        merge.main(model, data, shards / "out", scans=shards)
