"""Damaged files: one of each kind that zfnet writes and reads again, with a bit flipped, or cut, longer or overwritten.

Every damage must be found: the file is named in one line of an error; or, where there is a last good file or no digest
to compare with, in a note on the screen, and the content is then what was written. Right content without a message is a
failure as well: the digest did not cover that bit.
"""

import contextlib
import functools
import io
import json
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from experiments.ablation.measure import read_trials
from experiments.output.results import Result, read_result
from experiments.setup.networks import find_trained
from zfnet import scan, weights
from zfnet.analysis.features import features
from zfnet.data.images import Images
from zfnet.data.preprocessing import Preprocessing
from zfnet.errors import InputError
from zfnet.identity import digest, write_sealed
from zfnet.training import Checkpoint

HOW = Preprocessing(size=8, resize=8)
IDENTITY = {"weights": digest(1), "images": digest(2), "learning_rate": 1e-05, "name": "\u00e9t\u00e9 \n"}
READING: dict[str, Any] = {"workers": 0, "progress": False, "batch_size": 4}


class Stopped(Images):
    """Images, of which one is where the user stops a run, if asked to."""

    def __init__(self, at: int = -1):
        self.at, self.images = at, torch.rand(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        if i == self.at:
            raise KeyboardInterrupt
        return self.images[i], -1

    def identity(self) -> str:
        return digest(self.images)


@functools.cache
def network() -> nn.Module:
    torch.manual_seed(0)
    return HOW.attach(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)))


def state(step: int) -> dict[str, Any]:
    return {"model": network().state_dict(), "position": {"step": step, "history": [{"loss": 0.5, "epoch": 1}]}}


def write_checkpoints(folder: Path) -> None:
    for step in (1, 2):
        Checkpoint(folder, IDENTITY).write(state(step))


def write_checkpoint(folder: Path) -> None:
    Checkpoint(folder, IDENTITY).write(state(1))


def read_checkpoint(folder: Path) -> Any:
    read = Checkpoint(folder, IDENTITY).read()
    assert digest(read) == digest(state(1)), "another state is read"
    return read


def write_scan(folder: Path) -> None:
    scan(network(), Stopped(), ["0", "2"], 3, state=folder / "scan.partial", keep_state=True, **READING)


def write_features(folder: Path, at: int = -1) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        features(network(), Stopped(at), ["4"], folder, **READING)


def write_weights(folder: Path) -> None:
    history = [{"epoch": 1, "loss": 1e-05}]
    weights.save(network(), folder / "w.safetensors", identity=IDENTITY, history=history, classes=["\u00e9", "0" * 32])


def read_weights(folder: Path) -> Any:
    """The weights, and what their metadata are, however they are asked for."""
    file = folder / "w.safetensors"
    answers: list[Any] = []
    for read in (lambda: weights.read_metadata(file), lambda: find_trained([file], IDENTITY)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                answers.append(read())
        except (InputError, UserWarning) as error:
            assert str(file) in str(error)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    before = digest(model)
    try:
        weights.load(model, file)
    except InputError:
        assert digest(model) == before and not hasattr(model, "preprocessing"), "the model was changed"
        assert answers in ([], [whole_metadata(), file]), f"metadata of a damaged file: {answers}"
        raise
    same = digest(model.state_dict()) == digest(network().state_dict()) and model.preprocessing == HOW
    assert same and answers in ([whole_metadata(), file], []), "other weights or metadata are read"
    return answers


@functools.cache
def whole_metadata() -> dict[str, Any]:
    """What the metadata of the undamaged file are."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_weights(Path(folder))
        return weights.read_metadata(Path(folder, "w.safetensors"))


def write_measurements(folder: Path) -> None:
    trials = {"A1": {"map": [3, 3, 5], "image": [0, 7, 7], "effective field": [1, 0.5, None]}}
    write_sealed(folder / "ablation.partial", IDENTITY, json.dumps({"relu1": {"intervention": trials}}))


def read_measurements(folder: Path) -> Any:
    return read_trials(folder / "ablation.partial", IDENTITY)


def write_result(folder: Path) -> None:
    ours = {"error": 1e-05, "rates": [0.1] * 40, "names": ["\u00e9"], "layers": {"relu1": 0.25, "relu2": None}}
    Result("fig0", folder, {"k": 9, "seed": 0}).finish(ours, {"error": 0.5})


class Kind(NamedTuple):
    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    files: str  # those that may be damaged
    covered: int | None = None  # bytes at the beginning that hold something; the rest is written anew


KINDS = {
    "checkpoint": Kind(write_checkpoint, read_checkpoint, "checkpoint.pt"),
    "checkpoints": Kind(write_checkpoints, read_checkpoint, "checkpoint.pt"),
    "scan state": Kind(write_scan, write_scan, "scan.partial"),
    "features": Kind(write_features, write_features, "*.npy"),
    "note": Kind(write_features, write_features, "*.json"),
    # 8 of 10 rows of 5 numbers
    "features, stopped": Kind(lambda folder: write_features(folder, 9), write_features, "*.part", 128 + 8 * 5 * 4),
    "note, stopped": Kind(lambda folder: write_features(folder, 9), write_features, "*.json"),
    "weights": Kind(write_weights, read_weights, "*.safetensors"),
    "measurements": Kind(write_measurements, read_measurements, "ablation.partial"),
    "result": Kind(write_result, lambda folder: read_result(folder / "result.json"), "result.json"),
}


def case(seed: int, folder: Path) -> str:
    """Damage one file, and read it."""
    choose = random.Random(seed)
    name = choose.choice(list(KINDS))
    kind = KINDS[name]
    kind.write(folder)
    (file,) = folder.glob(kind.files)
    content = file.read_bytes()
    file.write_bytes(damaged(choose, content, kind.covered or len(content)))
    with said() as notes:
        try:
            kind.read(folder)
        except InputError as error:
            message = str(error)
            assert str(file) in message and "\n" not in message, f"{name}: {message}"
            return f"{name}: named"
    assert str(file) in notes.getvalue(), f"{name}: read without a message"
    return f"{name}: noted"


@contextlib.contextmanager
def said() -> Iterator[io.StringIO]:
    """What is printed as errors and warnings."""
    notes = io.StringIO()
    with contextlib.redirect_stderr(notes), warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        yield notes
    notes.write("\n".join(str(warning.message) for warning in given))


def damaged(choose: random.Random, content: bytes, covered: int) -> bytes:
    """The content with something wrong; two in three times a single bit."""
    how = choose.choice([flipped] * 8 + [cut, longer, overwritten, swapped])
    while (wrong := how(choose, content, covered)) == content:
        how = flipped
    return wrong


def flipped(choose: random.Random, content: bytes, covered: int) -> bytes:
    # headers are short, and most of them at the beginning
    place = choose.randrange(min(covered, choose.choice([300, 3000, covered])))
    return content[:place] + bytes([content[place] ^ 1 << choose.randrange(8)]) + content[place + 1 :]


def cut(choose: random.Random, content: bytes, covered: int) -> bytes:
    return content[: choose.choice([0, 1, 8, len(content) - 1, choose.randrange(covered)])]


def longer(choose: random.Random, content: bytes, covered: int) -> bytes:
    return content + choose.choice([b"\0", b"\n", b" ", content, choose.randbytes(choose.randrange(1, 5000))])


def overwritten(choose: random.Random, content: bytes, covered: int) -> bytes:
    start, count = choose.randrange(covered), choose.choice([1, 16, 512, 4096])
    count = min(count, covered - start)
    return content[:start] + choose.choice([bytes(count), choose.randbytes(count)]) + content[start + count :]


def swapped(choose: random.Random, content: bytes, covered: int) -> bytes:
    count = choose.choice([1, 4, 64])
    first, second = sorted(choose.randrange(max(1, covered - count)) for _ in range(2))
    if second < first + count:
        return content
    one, other = content[first : first + count], content[second : second + count]
    return content[:first] + other + content[first + count : second] + one + content[second + count :]
