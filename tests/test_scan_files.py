"""Scans that are kept: read where they are of the same network and images, and never otherwise."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import zfnet.scan_files
from zfnet import InputError, scan
from zfnet.data.images import Images
from zfnet.errors import BrokenImage
from zfnet.identity import digest
from zfnet.scan_files import kept_scan, merge_shards, read_scan, shard_folder, write_scan
from zfnet.scanning import Scan, scan_identity

LAYERS = ["1", "3"]
HOW = {"batch_size": 4, "workers": 0, "progress": False}
FILES = ["scan.json", "statistics.safetensors", "top.safetensors"]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU6(), nn.Conv2d(5, 4, 3), nn.ReLU()).double().eval()


class Counted(Images):
    """Images that count how often they are read; one is where the user loses patience."""

    def __init__(self, images: Tensor, broken: tuple[int, ...] = (5, 12)) -> None:
        self.images, self.broken, self.reads, self.at = images, broken, 0, -1

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        self.reads += 1
        if i == self.at:
            raise KeyboardInterrupt
        if i in self.broken:
            raise BrokenImage("torn")
        return self.images[i], i % 3

    def identity(self) -> str:
        return digest(self.images)


@pytest.fixture
def images() -> Counted:
    return Counted(5 * torch.randn(23, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double())


def same(a: Scan, b: Scan) -> bool:
    assert (list(a), a.images, a.broken) == (list(b), b.images, b.broken)
    columns = [[x.sampled, x.class_images, *(c for n in x for c in (*x[n], *x.statistics[n]))] for x in (a, b)]
    return all(map(torch.equal, *columns))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def whole(images: Counted, layers: list[str] = LAYERS, k: int = 4, model: nn.Module | None = None) -> Scan:
    return scan(model or network(), images, layers, k, gather=True, **HOW)


def test_what_is_written_is_read(images, tmp_path: Path) -> None:
    identity = scan_identity(network(), images)
    assert read_scan(tmp_path, identity) is None
    write_scan(tmp_path / "a", whole(images), identity)
    write_scan(tmp_path / "b", whole(images), identity)
    assert files(tmp_path / "a") == FILES
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in FILES)
    assert same(read_scan(tmp_path / "a", identity), whole(images))
    assert same(read_scan(tmp_path / "a", identity, ["3"], 2), whole(images, ["3"], 2))
    with safe_open(tmp_path / "a" / "top.safetensors", "pt") as file:
        names = [f"{layer}/{column}" for layer in LAYERS for column in ("value", "image", "row", "column")]
        assert sorted(file.keys()) == sorted([*names, "1/unclipped"])  # of the ReLU6 alone
        assert torch.equal(file.get_tensor("3/value"), whole(images)["3"].value)


def test_layers_and_winners_that_are_not_there_are_not_read(images, tmp_path: Path) -> None:
    identity = scan_identity(network(), images)
    write_scan(tmp_path, whole(images), identity)
    assert read_scan(tmp_path, identity, ["1", "2"]) is None
    assert read_scan(tmp_path, identity, ["1"], 5) is None
    assert read_scan(tmp_path, identity, [], 5) == {}


def test_a_scan_without_statistics_is_not_kept(images, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gather=True"):
        write_scan(tmp_path, scan(network(), images, LAYERS, **HOW), {})


def doubled(model: nn.Sequential, data: Counted) -> dict:
    model[2].weight.data[0, 0, 0, 0] += 1
    return {}


def other_setting(model: nn.Sequential, data: Counted) -> dict:
    model[2].padding = (1, 1)
    return {}


def other_step(model: nn.Sequential, data: Counted) -> dict:
    model[1] = nn.ReLU()
    return {}


def other_image(model: nn.Sequential, data: Counted) -> dict:
    data.images = data.images.clone()
    data.images[3, 0, 0, 0] += 1
    return {}


def single(model: nn.Sequential, data: Counted) -> dict:
    model.float()
    data.images = data.images.float()
    return {}


def any_place(model: nn.Sequential, data: Counted) -> dict:
    return {"distinct": False}


@pytest.mark.parametrize("change", [doubled, other_setting, other_step, other_image, single, any_place])
def test_if_one_thing_changes_nothing_old_is_read(change: Callable, images, tmp_path: Path, capsys) -> None:
    kept_scan(network(), images, tmp_path, LAYERS, 4, **HOW)
    model = network()
    how = change(model, images)
    assert read_scan(tmp_path, scan_identity(model, images, **how)) is None
    images.reads = 0
    found = kept_scan(model, images, tmp_path, LAYERS, 4, **HOW, **how)
    assert images.reads == 23 and files(tmp_path) == FILES
    assert f"{tmp_path} has a scan that was made with different " in capsys.readouterr().err
    assert same(found, scan(model, images, LAYERS, 4, gather=True, **HOW, **how))


def test_a_kept_scan_is_read_and_not_made_again(images, tmp_path: Path) -> None:
    first = kept_scan(network(), images, tmp_path, LAYERS, 4, **HOW)
    images.reads = 0
    assert same(kept_scan(network(), images, tmp_path, LAYERS, 4, **HOW), first)
    assert same(kept_scan(network(), images, tmp_path, ["3"], 2, **HOW), first_of(first))
    assert images.reads == 0 and same(first, whole(images))


def first_of(found: Scan) -> Scan:
    top = type(found["3"])(*(column[:, :2] for column in found["3"]))
    return Scan({"3": top}, found.images, found.broken, {"3": found.statistics["3"]}, found.sampled, found.class_images)


def test_what_is_lacking_is_scanned_and_the_rest_stays(images, tmp_path: Path) -> None:
    kept_scan(network(), images, tmp_path, ["1"], 6, **HOW)
    assert same(kept_scan(network(), images, tmp_path, LAYERS, 4, **HOW), whole(images))
    images.reads = 0
    assert same(kept_scan(network(), images, tmp_path, ["1"], 6, **HOW), six(images))
    assert images.reads == 23  # by `six`
    images.reads = 0
    kept_scan(network(), images, tmp_path, ["3"], 5, **HOW)
    assert images.reads == 23
    images.reads = 0
    kept_scan(network(), images, tmp_path, ["1"], 6, **HOW)
    kept_scan(network(), images, tmp_path, ["3"], 5, **HOW)
    assert images.reads == 0


def six(images: Counted) -> Scan:
    return whole(images, ["1"], 6)


def test_fresh_scans_anew(images, tmp_path: Path) -> None:
    kept_scan(network(), images, tmp_path, LAYERS, 4, **HOW)
    images.reads = 0
    kept_scan(network(), images, tmp_path, ["3"], 4, fresh=True, **HOW)
    kept_scan(network(), images, tmp_path, ["1"], 4, **HOW)  # which stays
    assert images.reads == 23


def test_when_other_images_can_be_read_the_other_layers_are_dropped(images, tmp_path: Path) -> None:
    kept_scan(network(), images, tmp_path, ["1"], 4, **HOW)
    images.broken = (5,)
    assert same(kept_scan(network(), images, tmp_path, ["3"], 4, **HOW), whole(images, ["3"]))
    assert read_scan(tmp_path, scan_identity(network(), images), ["1"]) is None


@pytest.mark.parametrize("at", [2, 9, 22])
def test_an_interrupted_scan_goes_on(images, at: int, tmp_path: Path) -> None:
    images.at = at
    with pytest.raises(KeyboardInterrupt):
        kept_scan(network(), images, tmp_path, LAYERS, 4, **HOW)
    assert not (tmp_path / "scan.json").exists()
    images.at, images.reads = -1, 0
    found = kept_scan(network(), images, tmp_path, LAYERS, 4, **HOW)
    assert images.reads == 23 - at // 4 * 4
    assert files(tmp_path) == FILES and same(found, whole(images))


@pytest.mark.parametrize("written", range(5))
def test_a_kill_while_it_is_written_leaves_the_old_scan_or_none(images, written: int, tmp_path, monkeypatch) -> None:
    """The old one until the new one is whole, then nothing, then the new one; and the scan is not made again."""
    kept_scan(network(), images, tmp_path, ["1"], 4, **HOW)
    steps: list[int] = []

    def stopped(function: Callable, *arguments: object) -> None:
        steps.append(1)
        if len(steps) > written:
            raise KeyboardInterrupt
        function(*arguments)

    with monkeypatch.context() as patch:
        for name in ("_write", "write_atomically", "remove"):
            patch.setattr(zfnet.scan_files, name, partial(stopped, getattr(zfnet.scan_files, name)))
        with pytest.raises(KeyboardInterrupt):
            kept_scan(network(), images, tmp_path, LAYERS, 4, **HOW)
    images.reads = 0
    old = read_scan(tmp_path, scan_identity(network(), images), ["1"])
    assert (old is not None) == (written != 3)
    assert same(kept_scan(network(), images, tmp_path, ["3"], 4, **HOW), lone(images))
    assert images.reads == 23  # by `lone`
    assert files(tmp_path) == FILES or written == 4  # when the scan was read, nothing is removed


def lone(images: Counted) -> Scan:
    return whole(images, ["3"])


# ---- damage ----------------------------------------------------------------------------------------------------------


def test_damage_is_named(images, tmp_path: Path) -> None:
    kept_scan(network(), images, tmp_path, LAYERS, 4, **HOW)
    identity = scan_identity(network(), images)
    for name in FILES:
        content = (tmp_path / name).read_bytes()
        for n in range(0, len(content), 41 if name == "scan.json" else 173):
            (tmp_path / name).write_bytes(content[:n] + bytes([content[n] ^ 4]) + content[n + 1 :])
            with pytest.raises(InputError, match="delete the folder, or start again with fresh=true") as caught:
                read_scan(tmp_path, identity)
            assert "\n" not in str(caught.value) and str(tmp_path / name) in str(caught.value)
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match="delete the folder"):
            kept_scan(network(), images, tmp_path, LAYERS, 4, **HOW)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "scan.json").write_text("[]")
    assert same(kept_scan(network(), images, tmp_path, LAYERS, 4, fresh=True, **HOW), whole(images))
    assert same(read_scan(tmp_path, identity), whole(images))


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_or_is_none(images, name: str, tmp_path: Path) -> None:
    kept_scan(network(), images, tmp_path, LAYERS, 4, **HOW)
    (tmp_path / name).unlink()
    identity = scan_identity(network(), images)
    if name == "scan.json":
        assert read_scan(tmp_path, identity) is None
    else:
        with pytest.raises(InputError, match=f"{name} is damaged"):
            read_scan(tmp_path, identity)
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="it is not a file"):
        read_scan(tmp_path, identity)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "3", '{"format": 2}', '{"format": 1}', '"a"', "[" * 10**5])
def test_a_table_of_contents_of_something_else(images, text: str, tmp_path: Path) -> None:
    (tmp_path / "scan.json").write_text(text)
    with pytest.raises(InputError, match=f"^{tmp_path}/scan.json is .*delete the folder"):
        kept_scan(network(), images, tmp_path, LAYERS, 4, **HOW)


def test_no_layer_is_loaded_that_is_not_asked_for(images, tmp_path: Path) -> None:
    kept_scan(network(), images, tmp_path, LAYERS, 4, **HOW)
    for name in FILES[1:]:
        with open(tmp_path / name, "r+b") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            end = file.tell()
            for tensor, about in header.items():
                if tensor.startswith("3/"):
                    file.seek(end + about["data_offsets"][0])
                    file.write(b"\xff" * (about["data_offsets"][1] - about["data_offsets"][0]))
    identity = scan_identity(network(), images)
    assert same(read_scan(tmp_path, identity, ["1"]), whole(images, ["1"]))
    with pytest.raises(InputError, match="its 3 is not what was written"):
        read_scan(tmp_path, identity)


# ---- shards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 9])
def test_shards_merge_to_the_files_of_one_process(images, count: int, tmp_path: Path) -> None:
    kept_scan(network(), images, tmp_path / "one", LAYERS, 4, **HOW)
    for n in torch.randperm(count, generator=torch.Generator().manual_seed(count)).tolist():
        kept_scan(network(), images, tmp_path / "many", LAYERS, 4, shard=(n, count), **HOW)
    assert merge_shards(network(), images, tmp_path / "many") == LAYERS
    for name in FILES:
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name


def test_a_shard_that_cannot_be_read_merges_too(images, tmp_path: Path) -> None:
    images.broken = tuple(range(4))
    for n in range(6):
        part = kept_scan(network(), images, tmp_path, LAYERS, 4, shard=(n, 6), **HOW)
        assert (not part) == (n == 0)
    images.reads = 0
    assert not kept_scan(network(), images, tmp_path, LAYERS, 4, shard=(0, 6), **HOW) and not images.reads
    merge_shards(network(), images, tmp_path)
    assert same(kept_scan(network(), images, tmp_path, LAYERS, 4, **HOW), whole(images))


def test_shards_of_which_none_can_be_read(images, tmp_path: Path) -> None:
    images.broken = tuple(range(23))
    for n in range(2):
        kept_scan(network(), images, tmp_path, LAYERS, 4, shard=(n, 2), **HOW)
    with pytest.raises(InputError, match="none of the 23 images could be read: item 0"):
        merge_shards(network(), images, tmp_path)


def test_a_shard_that_was_interrupted_goes_on(images, tmp_path: Path) -> None:
    images.at = 17
    with pytest.raises(KeyboardInterrupt):
        kept_scan(network(), images, tmp_path, LAYERS, 4, shard=(1, 2), **HOW)
    images.at, images.reads = -1, 0
    kept_scan(network(), images, tmp_path, LAYERS, 4, shard=(1, 2), **HOW)
    assert images.reads == 23 - 16


def test_what_is_missing_and_what_is_foreign_is_said(images, tmp_path: Path) -> None:
    def sharded(n: int, count: int = 3, model: nn.Module | None = None, **other: object) -> None:
        how = {"layers": LAYERS, "k": 4} | HOW | other
        kept_scan(model or network(), images, tmp_path, shard=(n, count), **how)

    def refused(message: str, count: int | None = None) -> None:
        with pytest.raises(InputError, match=message):
            merge_shards(network(), images, tmp_path, count)

    refused("there are no shards")
    sharded(1)
    refused(r"2 of 3 shards are missing in .*: 0, 2; scan with shard=0/3$")
    sharded(0)
    sharded(2, model=network(1))
    refused(r"2-of-3 was made with different weights; scan it again: shard=2/3 fresh=true")
    sharded(2, batch_size=8)
    refused(r"2-of-3 was made with different batch_size \(8, now 4\)")
    sharded(2, k=5, fresh=True)
    refused("2-of-3 has other layers than .*0-of-3, or another k")
    sharded(0, 2)
    refused("shards of 2, 3: give their number, such as count=2")
    shard_folder(tmp_path, 2, 3).joinpath("top.safetensors").write_bytes(b"")
    sharded(2, fresh=True)
    merge_shards(network(), images, tmp_path, 3)
    assert same(read_scan(tmp_path, scan_identity(network(), images)), whole(images))


def test_a_merge_keeps_other_layers(images, tmp_path: Path) -> None:
    kept_scan(network(), images, tmp_path, ["2"], 3, **HOW)
    for n in range(2):
        kept_scan(network(), images, tmp_path, LAYERS, 4, shard=(n, 2), **HOW)
    merge_shards(network(), images, tmp_path)
    assert list(read_scan(tmp_path, scan_identity(network(), images))) == ["2", *LAYERS]


def test_two_runs_do_not_scan_into_one_folder(images, tmp_path: Path) -> None:
    inner: list[str] = []

    class Twice(Counted):
        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            if i == 9 and not inner:
                with pytest.raises(InputError, match=f"another run is scanning in {tmp_path}") as caught:
                    kept_scan(network(), images, tmp_path, LAYERS, 4, **HOW)
                inner.append(str(caught.value))
            return super().__getitem__(i)

    assert same(kept_scan(network(), Twice(images.images), tmp_path, LAYERS, 4, **HOW), whole(images))
    assert inner


def test_layers_can_be_modules_and_have_other_names(images, tmp_path: Path) -> None:
    model = network()
    assert list(kept_scan(model, images, tmp_path, [model[3]], 4, **HOW)) == ["3"]
