"""The networks that come with the sources: whole, small, as good as is said, and found by a command that names none."""

import hashlib
import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch

from experiments.run import command_line
from experiments.setup.commands import spelled
from experiments.setup.configuration import configured
from experiments.setup.objects import Objects
from experiments.setup.published import FOLDER, checksums, find
from scripts import publish
from zfnet import InputError, weights
from zfnet.data.scenes import Scenes
from zfnet.training import error_rates

NAMES = ["zfnet_small-scenes", "zfnet_small-tiny_imagenet_60"]


def record(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


def objects(*words: str) -> Objects:
    known = spelled(list(words))
    return Objects(configured(known), known, lambda *_: pytest.fail("nothing is to be trained"))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_what_its_record_says(name: str) -> None:
    known, content = record(name), (FOLDER / f"{name}.safetensors").read_bytes()
    digits = hashlib.sha256(content).hexdigest()
    assert len(content) == known["bytes"] <= 3_000_000
    assert digits == known["sha256"] == checksums()[f"{name}.safetensors"]
    metadata = weights.read_metadata(FOLDER / f"{name}.safetensors")
    assert len(metadata["history"]) == known["trained"]["epochs"]
    assert metadata["identity"]["max_filter_rms"] == 0.1 and metadata["identity"]["optimizer"] == "sgd"
    assert known["training"]["dirty"] is False


def test_there_is_no_other_file() -> None:
    assert {path.name for path in FOLDER.glob("*.safetensors")} == set(checksums())
    assert {path.stem for path in FOLDER.glob("*.json")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_fewer_than_a_twentieth_of_the_maps_of_any_layer_are_dead(name: str) -> None:
    counts = record(name)["dead_maps"]
    assert list(counts) == ["relu1", "relu2", "relu3", "relu4", "relu5"]
    assert all(count["dead"] < 0.05 * count["maps"] for count in counts.values()), counts


@pytest.mark.parametrize("name", NAMES)
def test_no_filter_is_above_the_limit(name: str) -> None:
    model = weights.load(objects(*words_for(name)).model, FOLDER / f"{name}.safetensors")
    for layer in (1, 2, 3, 4, 5):
        filters = model.get_submodule(f"conv{layer}").weight.detach()
        assert filters.square().mean((1, 2, 3)).sqrt().max() < 0.1 * (1 + 1e-3)  # half precision
    first = model.conv1.weight.detach().square().mean((1, 2, 3)).sqrt()
    assert first.max() / first.median() < 1.7


def words_for(name: str) -> list[str]:
    return ["experiment=fig2"] + (["data=photos", "data.root=."] if name.endswith("60") else [])


@pytest.mark.parametrize("name", NAMES)
def test_the_command_takes_the_network_for_its_images(name: str) -> None:
    made = objects(*words_for(name))
    published = weights.load(objects(*words_for(name)).model, FOLDER / f"{name}.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(made.model.parameters(), published.parameters(), strict=True))
    classes = weights.read_metadata(FOLDER / f"{name}.safetensors")["classes"]
    assert made.config.model.architecture.num_classes == len(classes)
    assert made.config.model.architecture.image_size == made.model.preprocessing.size
    assert made.config.model.weights == "published"  # in config.yaml, on every machine


def test_it_is_as_good_as_its_record_says() -> None:
    model, known = objects("experiment=fig2").model, record("zfnet_small-scenes")
    scenes = Scenes("val", 200, size=224)
    pixels = torch.stack([(255 * scenes[i][0]).round().to(torch.uint8) for i in range(200)])
    labels = torch.tensor(scenes.labels[:200])
    top1, _ = error_rates(model, torch.utils.data.TensorDataset(pixels, labels))
    assert abs(top1 - known["validation_error"]["1 crops"]["top1"]) < 0.025  # three standard errors


def test_a_damaged_file_is_named(tmp_path, monkeypatch) -> None:
    for file in FOLDER.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damaged = tmp_path / "zfnet_small-scenes.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0\0")
    monkeypatch.setattr("experiments.setup.published.FOLDER", tmp_path)
    with pytest.raises(InputError, match=r"zfnet_small-scenes\.safetensors"):
        objects("experiment=fig2").model  # noqa: B018


@pytest.mark.parametrize("content", [None, b"abc", b"\xff\xfe"], ids=["none", "one word", "no text"])
def test_a_damaged_list_of_networks_is_one_line(tmp_path, monkeypatch, content: bytes | None) -> None:
    monkeypatch.setattr("experiments.setup.published.FOLDER", tmp_path)
    if content is not None:
        (tmp_path / "SHA256SUMS").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read .*SHA256SUMS, .*: take it from the repository, or give "):
        find("zfnet_small", "scenes")


def test_what_is_published_is_said() -> None:
    with pytest.raises(
        InputError, match="no weights of zfnet are published for these images, only for zfnet_small-scenes, "
    ):
        find("zfnet", "scenes")


def said(monkeypatch: pytest.MonkeyPatch, *words: str) -> dict:
    """What the result of a command says."""
    monkeypatch.setattr(sys, "argv", ["run.py", *words, "out=out"])
    monkeypatch.setattr("experiments.output.results.COMMAND", shlex.join(sys.argv))
    command_line()
    return json.loads(Path("out", "result.json").read_text())["ours"]


def test_publishing_measures_before_it_replaces(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "published"
    shutil.copytree(FOLDER, folder)
    monkeypatch.setattr(publish, "FOLDER", folder)
    monkeypatch.chdir(tmp_path)
    few = ["data.side=64", "data.count.train=32", "data.count.val=16", "train.epochs=1", "train.batch_size=16"]
    said(monkeypatch, "experiment=train", *few)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(publish, "measured", lambda *_: (_ for _ in ()).throw(InputError("no")))
        with pytest.raises(InputError, match="no"):
            publish.publish(Path("out"))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before

    publish.publish(Path("out"))
    changed = {file.name for file in folder.iterdir() if file.read_bytes() != before[file.name]}
    assert changed == {"zfnet_small-scenes.json", "zfnet_small-scenes.safetensors", "SHA256SUMS"}
    known, content = (
        json.loads((folder / "zfnet_small-scenes.json").read_text()),
        (folder / "zfnet_small-scenes.safetensors").read_bytes(),
    )
    assert known["sha256"] == hashlib.sha256(content).hexdigest() and known["validation_images"] == 16
    assert known["training"]["command"].endswith("out=out")

    said(monkeypatch, "experiment=train", *few, "data.classes=all")
    with pytest.raises(InputError, match="was trained on other classes: give these data another name"):
        publish.publish(Path("out"))
    said(monkeypatch, "experiment=train", *few, "model.architecture.hidden=[8,8]")
    with pytest.raises(InputError, match=r"^model\.architecture\.hidden makes another network than commands do by its"):
        publish.publish(Path("out"))


def test_a_committed_result_has_no_weights_to_publish() -> None:
    folder = FOLDER.parent / "results" / "train" / "zfnet_small-tiny_imagenet, seed 0"
    with pytest.raises(InputError, match=r"cannot read .*seed 0/model.safetensors: No such file"):
        publish.publish(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_training_again_gives_as_good_a_network(name: str, tmp_path: Path, monkeypatch, real_data) -> None:
    """By the command of the record; digits depend on the processor, and the rest by no more than seeds differ."""
    known = record(name)
    (tmp_path / "data").symlink_to(real_data)
    monkeypatch.chdir(tmp_path)
    words = [word for word in shlex.split(known["training"]["command"])[1:] if not word.startswith("out=")]
    again = said(monkeypatch, *words)
    assert abs(again["validation_top1"] - known["validation_error"]["10 crops"]["top1"]) < 0.04
    assert all(
        abs(again["dead_maps"][layer]["dead"] - count["dead"]) < 5 for layer, count in known["dead_maps"].items()
    )
    last = again["history"][-1]
    assert last["largest_filter_rms"] / last["median_filter_rms"] < 1.7
    if name != "zfnet_small-scenes":
        return
    shutil.move("out", "again")
    figures = [said(monkeypatch, "experiment=fig5", *more) for more in (["model.weights=again/model.safetensors"], [])]
    for kind in ("translation", "scale"):  # Figure 5: layer 1 moves at once, layer 7 in proportion
        assert all(figure[kind]["linearity"][0] < figure[kind]["linearity"][1] for figure in figures)
        assert abs(figures[0][kind]["probability_kept"] - figures[1][kind]["probability_kept"]) < 0.15
