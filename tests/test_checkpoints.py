"""Checkpoints: a run resumes from its own only, and from an intact one only."""

import errno
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from zfnet import InputError
from zfnet.data.preprocessing import Preprocessing
from zfnet.identity import difference, read_sealed, write_sealed
from zfnet.training import Checkpoint, Recipe, run_identity, train

RECIPE = Recipe(epochs=4, batch_size=8)
ANEW = "start again with fresh=True or in another folder"


def network(dropout: float = 0.1, seed: int = 0, **attributes) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(400, 4))
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def frozen() -> nn.Module:
    model = network()
    model[0].weight.requires_grad = False
    return model


class Plain(nn.ReLU):
    """A layer with a plain attribute and a buffer that is not saved."""

    def __init__(self, scale: float = 1, offset: float = 0) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("offset", torch.tensor(offset), persistent=False)


def with_plain(**settings) -> nn.Module:
    model = network()
    model[1] = Plain(**settings)
    return model


def images(count: int, pixel: float = 0, label: int = 0) -> TensorDataset:
    """Random images and labels; the last pixel and label changed by this much."""
    generator = torch.Generator().manual_seed(count)
    data, labels = torch.randn(count, 3, 12, 12, generator=generator), torch.randint(4, (count,), generator=generator)
    data[-1, -1, -1, -1] += pixel
    labels[-1] = (labels[-1] + label) % 4
    return TensorDataset(data, labels)


class Stopped(Exception):
    """What stops a run."""


def run(folder: Path | None, model=None, data=None, validation=None, recipe: Recipe = RECIPE, **settings):
    """Train; returns the model and how many epochs were new."""
    epochs = []
    model = model or network()
    data, validation = (images(48) if data is None else data), (images(16) if validation is None else validation)
    train(model, data, validation or None, recipe, folder=folder, progress=False, on_epoch=epochs.append, **settings)
    return model, len(epochs)


def stop(folder: Path, after: int = 2, recipe: Recipe = RECIPE) -> Path:
    """A run that is stopped after epochs, in the next one; returns its checkpoint."""

    def on_epoch(history) -> None:
        if len(history) == after + 1:
            raise Stopped

    with pytest.raises(Stopped):
        train(network(), images(48), images(16), recipe, folder=folder, progress=False, on_epoch=on_epoch)
    return folder / "checkpoint.pt"


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def whole() -> nn.Module:
    """The network of a run that is not stopped."""
    return run(None)[0]


def test_a_stopped_run_resumes(whole, tmp_path: Path) -> None:
    stop(tmp_path)
    resumed, new = run(tmp_path)
    assert new == 2 and same(resumed, whole)


CHANGES = {
    "recipe": (
        {"recipe": replace(RECIPE, learning_rate=0.02, seed=1)},
        "learning_rate (0.01, now 0.02), seed (0, now 1)",
    ),
    "dropout": ({"model": network(0.5)}, "architecture"),
    "frozen weights": ({"model": frozen()}, "architecture"),
    "initial weights": ({"model": network(seed=1)}, "initial weights"),
    "preprocessing": ({"model": network(preprocessing=Preprocessing(std=(1, 1, 1)))}, "preprocessing"),
    "a pixel": ({"data": images(48, pixel=1e-3)}, "training images"),
    "a label": ({"data": images(48, label=1)}, "training labels"),
    "fewer images": ({"data": images(47)}, "training labels, training images"),
    "order": ({"data": TensorDataset(*(t.flip(0) for t in images(48).tensors))}, "training labels, training images"),
    "type": ({"data": TensorDataset(images(48).tensors[0].double(), images(48).tensors[1])}, "training images"),
    "validation pixel": ({"validation": images(16, pixel=1e-3)}, "validation images"),
    "validation label": ({"validation": images(16, label=1)}, "validation labels"),
    "no validation": ({"validation": []}, "validation labels, validation images"),
    "images and network": ({"model": network(0.5), "data": images(40)}, "architecture, training labels, training i"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_of_another_run_is_refused_and_stays(change: str, tmp_path: Path) -> None:
    arguments, words = CHANGES[change]
    file = stop(tmp_path)
    before = file.read_bytes()
    with pytest.raises(InputError) as caught:
        run(tmp_path, **arguments)
    assert str(caught.value).startswith(f"{file} was made with different ") and "\n" not in str(caught.value)
    assert words in str(caught.value) and str(caught.value).endswith(f"; {ANEW}")
    assert file.read_bytes() == before


def test_a_fresh_run_takes_nothing_of_the_old_one(tmp_path: Path) -> None:
    stop(tmp_path)
    changed = {"model": network(0.5), "data": images(40)}
    model, new = run(tmp_path, **changed, fresh=True)
    assert new == RECIPE.epochs and same(model, run(None, network(0.5), images(40))[0])
    assert run(tmp_path, network(0.5), images(40))[1] == 0  # and is resumed itself


def test_plain_attributes_and_buffers_that_are_not_saved_are_part_of_the_identity() -> None:
    before, scaled, shifted = (
        run_identity(with_plain(**settings), images(8), None, RECIPE)
        for settings in ({}, {"scale": 2}, {"offset": 1.0})
    )
    assert difference(before, scaled) == "architecture" and difference(before, shifted) == "initial weights"


def test_identity_says_what_differs() -> None:
    first, second = (run_identity(network(), images(8), None, replace(RECIPE, epochs=n)) for n in (1, 3))
    assert difference(first, first) == "" and difference(first, second) == "epochs (1, now 3)"
    assert "validation labels" not in first


def test_a_checkpoint_of_an_older_version_is_refused(tmp_path: Path) -> None:
    old = {"recipe": {"epochs": 4}, "images": 48, "progress": {"history": []}, "model": network().state_dict()}
    torch.save(old, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match=f"is damaged, or of an older format that is no longer read; {ANEW}"):
        run(tmp_path)


def damaged(raw: bytes) -> bytes:
    """The bytes with one bit of the data of a tensor changed, which torch.load does not notice."""
    start = raw.index(b"archive/data/1") + 200
    return raw[:start] + bytes([raw[start] ^ 1]) + raw[start + 1 :]


@pytest.mark.parametrize("damage", [lambda raw: raw[:-500], damaged, lambda raw: b""], ids=["cut", "a bit", "empty"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(whole, damage, tmp_path: Path, capsys) -> None:
    file = stop(tmp_path, after=2)
    file.write_bytes(damage(file.read_bytes()))
    resumed, new = run(tmp_path)
    assert new == 3 and same(resumed, whole)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{file} is damaged; resuming from {tmp_path}/checkpoint.previous.pt"


def test_without_an_intact_checkpoint_it_is_one_line(tmp_path: Path) -> None:
    file = stop(tmp_path, after=1)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt"}
    raw = damaged(file.read_bytes())
    file.write_bytes(raw)
    with pytest.raises(InputError, match=f"is damaged: its content does not match its checksum; {ANEW}"):
        run(tmp_path)
    assert file.read_bytes() == raw
    assert run(tmp_path, fresh=True)[1] == RECIPE.epochs


def test_a_crash_between_two_checkpoints_leaves_the_one_before(whole, tmp_path: Path, capsys) -> None:
    stop(tmp_path, after=2).unlink()
    resumed, new = run(tmp_path)
    assert new == 3 and same(resumed, whole)
    assert "checkpoint.pt is missing; resuming from" in capsys.readouterr().err


def test_no_wrong_byte_is_read(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, {"recipe": {}})
    model, generator = nn.Linear(4, 3), random.Random(0)
    checkpoint.write({"model": model.state_dict(), "position": {"history": [{"loss": 1.0}], "step": 0}})
    raw = checkpoint.path.read_bytes()
    for _ in range(200):
        wrong = bytearray(raw)
        wrong[generator.randrange(len(raw))] ^= 1 << generator.randrange(8)
        checkpoint.path.write_bytes(wrong)
        with pytest.raises(InputError, match=r"is damaged|is of format") as error:
            checkpoint.read()
        assert "\n" not in str(error.value)


def test_a_full_disk_leaves_the_previous_checkpoint(whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, count = os.fsync, iter(range(9))

    def full(descriptor: int) -> None:
        if next(count) == 2:  # of the file, the folder, and the next file
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write .*checkpoint\.pt: No space left on device"):
        run(tmp_path)
    monkeypatch.setattr(os, "fsync", sync)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt"}
    resumed, new = run(tmp_path)
    assert new == 3 and same(whole, resumed)


def test_a_damaged_checkpoint_never_takes_the_place_of_the_good_one(tmp_path: Path) -> None:
    file, previous = stop(tmp_path, after=2), tmp_path / "checkpoint.previous.pt"
    good = previous.read_bytes()
    file.write_bytes(damaged(file.read_bytes()))
    checkpoint = Checkpoint(tmp_path, run_identity(network(), images(48), images(16), RECIPE))
    state = checkpoint.read()
    checkpoint.write(state)
    assert previous.read_bytes() == good  # a kill while this one was written would have left nothing
    checkpoint.write(state)
    assert previous.read_bytes() == file.read_bytes()


def begin(folder: Path, change) -> tuple[nn.Module, InputError | None]:
    """Resume from a checkpoint with the right digest, in which something is changed; the model, and the error."""
    file, model = stop(folder), network()
    identity = run_identity(model, images(48), images(16), RECIPE)
    state = read_sealed(file, identity, "")
    write_sealed(file, identity, change(state) or state)
    try:
        run(folder, model)
    except InputError as error:
        assert str(file) in str(error) and "\n" not in str(error) and str(error).endswith(ANEW)
        return model, error
    return model, None


def put(*keys, value=None):
    """A change: this value at the place that the keys lead to; a function makes it of what is there."""

    def change(state) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value(state[keys[-1]]) if callable(value) else value

    return change


def without(*keys):
    def change(state) -> None:
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    return change


SLOT = ("optimizer", "state", 0, "momentum_buffer")
ABSURD = {
    "nothing": (lambda state: [1], "it holds a list of 1"),
    "no model": (without("model"), "the state lacks model"),
    "more": (put("extra", value=1), "the state has an unknown 'extra'"),
    "weight missing": (without("model", "0.weight"), "the weights lacks 0.weight"),
    "weight too much": (put("model", "9.weight", value=torch.ones(1)), "the weights has an unknown '9.weight'"),
    "weight of another shape": (
        put("model", "0.weight", value=torch.ones(2)),
        "0.weight is (2,) of torch.float32, not",
    ),
    "weight of another type": (put("model", "0.weight", value=lambda w: w.double()), "of torch.float64, not (4, 3"),
    "sparse weight": (put("model", "4.weight", value=lambda w: w.to_sparse()), "4.weight is a tensor"),
    "NaN": (put("model", "0.bias", value=lambda w: w * torch.nan), "0.bias has values that training cannot produce"),
    "NaN momentum": (put(*SLOT, value=lambda w: w * torch.nan), "of 0.weight has values that training cannot produce"),
    "momentum of another shape": (put(*SLOT, value=torch.ones(3)), "is (3,) of torch.float32, not (4, 3, 3, 3)"),
    "momentum missing": (without("optimizer", "state", 0), "the optimizer's state of 0.weight is missing"),
    "no momentum": (put("optimizer", "state", value=lambda _: {}), "the optimizer's state of 0.weight is missing"),
    "other optimizer": (put("optimizer", "param_groups", 0, "momentum", value=0.5), "momentum is 0.5, not 0.9"),
    "step absurd": (put("position", "step", value=10**9), "its step is 1000000000, no whole number from 0 to 6"),
    "step negative": (put("position", "step", value=-1), "its step is -1"),
    "step huge": (put("position", "step", value=10**400), "its step is an enormous number"),
    "step no number": (put("position", "step", value="a\nb"), "its step is 'a\\nb'"),
    "count": (put("position", "count", value=1.0), "its count of images is 1.0, no number from 0 to 0"),
    "no broken images": (without("position", "broken"), "the position lacks broken"),
    "broken images": (put("position", "broken", value={"training": [1]}), "its broken images of training are a list"),
    "broken of what": (put("position", "broken", value={"a": []}), "its broken images are a dict of 1"),
    "no images": (lambda state: state["position"].update(step=6), "its count of images is 0 after 6 steps"),
    "epochs beyond": (put("position", "history", value=lambda entries: entries * 4), "for 4 epochs"),
    "epochs twice": (put("position", "history", value=lambda entries: entries[:1] * 2), "the epoch of entry 2"),
    "history of words": (put("position", "history", value=["a"]), "entry 1 of its history is 'a'"),
    "error": (put("position", "history", 0, "train_error", value=1.5), "train_error of entry 1 of its history is 1.5"),
    "no error": (without("position", "history", 0, "validation_error"), "lacks validation_error"),
    "mean image": (put("mean_image", value=torch.ones(1)), "its mean image is a tensor (1,) of torch.float32, but"),
    "scaler": (put("scaler", "scale", value=1.0), "the scaler has an unknown 'scale'"),
}


@pytest.mark.parametrize("change", ABSURD)
def test_an_absurd_checkpoint_is_refused_and_nothing_of_it_loaded(change: str, tmp_path: Path) -> None:
    model, error = begin(tmp_path, ABSURD[change][0])
    assert error and " is not a checkpoint of this run: " in str(error) and ABSURD[change][1] in str(error)
    assert same(model, network())


def test_momentum_that_shares_its_memory_is_taken_apart(whole, tmp_path: Path) -> None:
    def share(state) -> None:
        slots = state["optimizer"]["state"]
        memory = torch.cat([slots[n]["momentum_buffer"].flatten() for n in (0, 1)])
        for n, part in zip((0, 1), memory.split([108, 4]), strict=True):
            slots[n]["momentum_buffer"] = part.view_as(slots[n]["momentum_buffer"])

    model, error = begin(tmp_path, share)
    assert error is None and same(model, whole)


def test_a_layer_without_gradients_has_no_momentum_and_that_is_no_fault(tmp_path: Path) -> None:
    def branched() -> nn.Module:
        model = network()
        model.unused = nn.Conv2d(3, 4, 3)  # whose filters are shortened all the same
        model.forward = lambda x: nn.Sequential(*list(model)[:5])(x)
        return model

    recipe = replace(RECIPE, max_filter_rms=0.05)
    run(tmp_path, branched(), recipe=replace(recipe, epochs=4))
    assert run(tmp_path, branched(), recipe=recipe)[1] == 0


def test_a_second_run_is_refused_while_the_first_is_alive(tmp_path: Path) -> None:
    def second(history) -> None:
        with pytest.raises(InputError, match=r"another run is training in .*: wait for it, or use another folder"):
            run(tmp_path)

    train(network(), images(48), images(16), RECIPE, folder=tmp_path, progress=False, on_epoch=second)
    assert run(tmp_path)[1] == 0  # and not once it has ended


def test_an_error_of_the_run_is_not_said_to_be_the_folders(tmp_path: Path) -> None:
    def fails(history) -> None:
        raise OSError(errno.ENOENT, "the dataset is gone")

    with pytest.raises(OSError, match="the dataset is gone"):
        train(network(), images(48), None, RECIPE, folder=tmp_path, progress=False, on_epoch=fails)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*file/out"):
        run(tmp_path / "file" / "out")


def test_a_folder_that_is_removed_during_a_run_is_said(tmp_path: Path, capsys) -> None:
    folder, epochs = tmp_path / "run", []

    def on_epoch(history) -> None:
        epochs.append(len(history))
        if len(history) == 2:
            shutil.rmtree(folder)

    train(network(), images(48), None, RECIPE, folder=folder, progress=False, on_epoch=on_epoch)
    assert len(epochs) == RECIPE.epochs
    assert capsys.readouterr().err == f"{folder / 'checkpoint.pt'} was removed during the run; it is written again\n"
    assert (folder / "checkpoint.pt").exists()
