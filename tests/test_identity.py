"""One identity: if anything that a result depends on changes, nothing old is read; if nothing does, it is."""

import contextlib
import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from experiments.ablation import ablation, measure
from experiments.setup.networks import Networks
from zfnet import InputError, scan, weights
from zfnet.analysis.features import features
from zfnet.data.photos import Photos
from zfnet.data.preprocessing import Preprocessing
from zfnet.data.scenes import Scenes
from zfnet.graph import Graph
from zfnet.identity import BLANK, Damaged, digest, is_stamped, network_identity, read_sealed, stamped, write_sealed
from zfnet.training import Recipe, train

# ---- the digest ------------------------------------------------------------------------------------------------------

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_bit_counts(dtype: torch.dtype) -> None:
    values = torch.tensor([1.0, -0.0, torch.nan, torch.inf, 3.0], dtype=dtype)
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[values.element_size()]
    seen = {digest(values)}
    for n in range(len(values)):
        changed = values.clone()
        changed.view(bits)[n] ^= 1
        seen.add(digest(changed))
    assert len(seen) == 6
    assert digest(values.clone()) == digest(values)


def test_type_shape_and_kind_count_and_memory_does_not() -> None:
    numbers = torch.arange(6.0).reshape(1, 1, 2, 3)
    others = [numbers.flatten(), numbers.double(), numbers.int(), numbers.numpy(), numbers.tolist(), numbers.bool()]
    scalars = [
        torch.tensor(1.0),
        torch.tensor([1.0]),
        torch.tensor(True),
        torch.tensor(1),
        1,
        1.0,
        True,
        "1",
        b"1",
        None,
    ]
    empty = [torch.zeros(0), torch.zeros(0, 3), torch.zeros(0, dtype=torch.bfloat16), [], {}, "", b""]
    values = [numbers, *others, *scalars, *empty, 0.0, -0.0, float("nan"), np.float32([1]), np.array("a")]
    assert len({digest(value) for value in values}) == len(values)
    images = torch.randn(2, 3, 4, 5)
    assert digest(images.contiguous(memory_format=torch.channels_last)) == digest(images)
    assert digest(images.transpose(0, 1).contiguous().transpose(0, 1)) == digest(images)
    assert digest(images.requires_grad_()) == digest(images.detach())
    assert digest(np.int64(3)) == digest(3)


def test_where_one_part_ends_and_the_next_begins_counts() -> None:
    tensor = torch.zeros(2)
    parts = [("ab",), ("a", "b"), (["a", "b"],), (["a", ["b"]],), ("b", "a"), (b"a", b"b"), (b"ab",)]
    parts += [(tensor, tensor), ([tensor, tensor],), (torch.zeros(4),), ([tensor], [tensor]), ({"a": tensor},)]
    assert len({digest(*each) for each in parts}) == len(parts)
    assert digest({"a": tensor, "b": [1]}) == digest({"b": (1,), "a": tensor})
    with pytest.raises(TypeError, match="no digest of object"):
        digest([object()])


class Scaled(nn.Module):
    def __init__(self, scale: float = 1.0, function: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.scale, self.function, self.names = scale, function, {"b", "a", "c", "d"}
        self.register_buffer("offset", torch.zeros(3), persistent=False)
        self.weight = nn.Parameter(torch.ones(3))


class Other(Scaled):
    pass


def test_a_modules_class_settings_weights_and_buffers_count() -> None:
    shifted, trained = Scaled(), Scaled()
    shifted.offset += 1
    trained.weight.data[2] = 1 + 2**-23
    models = [Scaled(), Scaled(2.0), Scaled(function=torch.sigmoid), Other(), shifted, trained, Scaled().half()]
    assert len({digest(model) for model in models}) == len(models)
    assert digest(Scaled().train()) == digest(Scaled().eval().requires_grad_(False)) == digest(Scaled())


def test_a_network_that_was_saved_and_loaded_is_the_same(tmp_path) -> None:
    model = Preprocessing().attach(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)))
    before = network_identity(model)
    weights.save(model, tmp_path / "w.safetensors")
    twin = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
    assert network_identity(twin) != before
    assert network_identity(weights.load(twin, tmp_path / "w.safetensors")) == before


def test_another_process_comes_to_the_same_digest() -> None:
    script = """
import torch
from zfnet.identity import digest
model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.ReLU())
model.names, model.function = {"b", "a", "c", "d"}, lambda x: x
torch.nn.init.ones_(model[0].weight), torch.nn.init.zeros_(model[0].bias)
answer = digest(model, {"a": torch.ones(2), "b": 1.5})
print(answer)
"""
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(script, scope)
    environment = {**os.environ, "PYTHONPATH": ".", "PYTHONHASHSEED": "1"}  # the order of sets depends on the last
    command = [sys.executable, "-c", script]
    folder = Path(__file__).parent.parent
    run = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == scope["answer"]


def test_a_sealed_file_names_what_differs(tmp_path) -> None:
    path, identity = tmp_path / "file", {"weights": "1", "k": "9"}
    content = {"a": [1, "b"], "c": torch.arange(3.0)}
    damaged = "is damaged: its content does not match its checksum"
    write_sealed(path, identity, content)
    kept = path.read_bytes()
    assert str(read_sealed(path, {"k": "9", "weights": "1"}, "delete it")) == str(content)
    for data, now, message in (
        (kept, {"weights": "2", "k": "8"}, "was made with different weights (1, now 2), k (9, now 8)"),
        (kept, identity | {"dtype": "a"}, "was made with different dtype (None, now a)"),
        (kept[:-1] + b"x", identity, damaged),
        (
            kept.replace(b'"k": "9"', b'"k": "8"'),
            {"weights": "1", "k": "8"},
            "is damaged: its content does not match its checksum",
        ),
        (kept.replace(b'"format": 3', b'"format": 4'), identity, "is of format 4, but this version reads format 3"),
        (b"", identity, "is damaged, or of an older format that is no longer read"),
        (b"[\n", identity, "is damaged, or of an older format that is no longer read"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError) as error:
            read_sealed(path, now, "delete it")
        assert str(error.value) == f"{path} {message}; delete it"
    path.unlink()
    with pytest.raises(InputError, match=r"^cannot read .*file: No such file or directory; delete it$"):
        read_sealed(path, identity, "delete it")
    write_sealed(path, identity, 1)
    write_sealed(path, identity, 2, tmp_path / "previous")
    assert [read_sealed(tmp_path / name, identity, "") for name in ("previous", "file")] == [1, 2]


def test_every_bit_of_a_sealed_file_counts(tmp_path) -> None:
    # 1E-05 is 1e-05 to JSON, and an escape may have small or capital letters: the same seal with a bit changed
    path, identity = tmp_path / "file", {"learning_rate": 1e-05, "name": "\u00e9", "sizes": [1, 2]}
    write_sealed(path, identity, [1.0])
    whole = path.read_bytes()
    head = whole.index(b"\n") + 1
    for place in (*range(head + 30), *range(head + 30, len(whole), 31)):
        for bit in {5, place % 8}:  # the fifth makes a capital letter of a small one
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            with pytest.raises(Damaged, match=f"^{path} is "):
                read_sealed(path, identity, "delete it")
    for wrong in (whole + b"\0", whole[:-1], whole[:head], whole.replace(b"\n", b"", 1), b"\n" + whole):
        path.write_bytes(wrong)
        with pytest.raises(Damaged):
            read_sealed(path, identity, "delete it")


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_sealed_file_that_somebody_else_made_runs_no_code(tmp_path) -> None:
    path = tmp_path / "file"
    write_sealed(path, {}, Trap(tmp_path / "sprung"))
    with pytest.raises(InputError, match=r"was not written by zfnet .*; delete it$") as caught:
        read_sealed(path, {}, "delete it")
    assert "\n" not in str(caught.value) and not (tmp_path / "sprung").exists()
    for line in (b"[" * 99_999, b'{"format": 3, "identity": [], "bytes": 0, "content": ""}', b"\xff", b"9" * 5000):
        path.write_bytes(line + b"\n")
        with pytest.raises(Damaged):
            read_sealed(path, {}, "")
    with open(path, "wb") as file:
        file.truncate(2**40)  # of holes
    with pytest.raises(Damaged):
        read_sealed(path, {}, "")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match="it is not a file; delete it"):
        read_sealed(path, {}, "delete it")


def test_every_bit_of_a_stamped_text_counts() -> None:
    text = stamped(f'{{"rate": 1e-05, "digest": "{BLANK}"}}\n'.encode())
    stamp = json.loads(text)["digest"]
    assert is_stamped(text, stamp)
    for place in range(len(text)):
        for bit in range(8):
            wrong = text[:place] + bytes([text[place] ^ 1 << bit]) + text[place + 1 :]
            assert not is_stamped(wrong, stamp)
            with contextlib.suppress(ValueError):
                assert not is_stamped(wrong, json.loads(wrong).get("digest"))
    assert not is_stamped(text + text, stamp) and not is_stamped(text, None) and not is_stamped(b"", "")
    for content in (b"", BLANK.encode() * 2):
        with pytest.raises(ValueError, match="a digest needs one place"):
            stamped(content)


# ---- all users, and all that may change ------------------------------------------------------------------------------

HOW = Preprocessing(size=32, resize=36)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    below = nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU()
    model = nn.Sequential(*below, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 24)).eval()
    model.preprocessing = HOW
    return model


def scenes(**changes: Any) -> Scenes:
    return Scenes(**{"split": "val", "count": 6, "size": 32, "transform": HOW} | changes)


@dataclass
class Run:
    """All that a result may depend on."""

    model: nn.Module
    data: Any
    settings: Mapping[str, Any]


def changed_weight(run: Run) -> Run:
    run.model[5].weight.data[0, 0] += 2**-20  # of a layer above those that are scanned
    return run


def changed_buffer(run: Run) -> Run:
    run.model[1].running_mean[2] += 1
    return run


def changed_setting(run: Run) -> Run:
    run.model[1].eps = 1e-3
    return run


def double(run: Run) -> Run:
    run.model.double()
    return run


def changed_pixel(run: Run) -> Run:
    run.data = (run.data[0].clone(), run.data[1])
    run.data[0][3, 1, 2, 2] += 1
    return run


def changed_label(run: Run) -> Run:
    run.data = (run.data[0], run.data[1].flip(0))
    return run


def with_data(**changes: Any) -> Callable[[Run], Run]:
    return lambda run: replace(run, data=scenes(**changes))


def with_settings(**changes: Any) -> Callable[[Run], Run]:
    return lambda run: replace(run, settings={**run.settings, **changes})


MODEL = {"weight": changed_weight, "buffer": changed_buffer, "setting": changed_setting, "dtype": double}
TENSORS = {"pixel": changed_pixel}
DATA = {
    "split": with_data(split="train"),
    "count": with_data(count=7),
    "seed": with_data(seed=5),
    "classes": with_data(classes="held_out"),
    "objects": with_data(objects=2),
    "size": with_data(size=(32, 40)),
    "transform": with_data(transform=Preprocessing(size=32, resize=36, mean=(0, 0, 0))),
}


def scanned(run: Run, folder: Path) -> bool:
    """Whether a scan reads the state of the one before."""
    calls, call = [], Graph.run

    def counted(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        return call(*arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Graph, "run", counted)
        settings = {"layers": ["2"], "k": 2, "progress": False} | run.settings
        scan(run.model, as_tensors(run.data), state=folder / "scan.partial", keep_state=True, **settings)
    return not calls


def computed(run: Run, folder: Path) -> bool:
    """Whether features are read, of the file or of the folder; what the file names has to agree with the folder."""
    before = set(folder.glob("*.npy"))
    settings = {"layers": ["2"], "progress": False} | run.settings
    features(run.model, as_tensors(run.data), folder=folder, **settings)
    if set(folder.glob("*.npy")) == before:
        return True
    for file in before:
        features(run.model, as_tensors(run.data), folder=file, **settings)  # which must be refused
    return False


def as_tensors(data: Any) -> Any:
    return torch.utils.data.TensorDataset(*data) if isinstance(data, tuple) else data


def read_again(user: Callable[[Run, Path], bool], before: Run, after: Run, folder: Path) -> bool | str:
    """Whether the second run reads what the first left; what it says where it refuses."""
    assert not user(before, folder)
    try:
        return user(after, folder)
    except InputError as error:
        return str(error)


def base(data: str) -> Run:
    if data == "scenes":
        return Run(network(), scenes(), {})
    torch.manual_seed(1)
    return Run(network(), (torch.randn(6, 3, 32, 32), torch.arange(6)), {})


CHANGES = [("scenes", name, change) for name, change in {**MODEL, **DATA}.items()] + [
    ("tensors", name, change) for name, change in {**MODEL, **TENSORS}.items()
]
OF_SCANS = {
    "k": with_settings(k=3),
    "distinct": with_settings(distinct=False),
    "layers": with_settings(layers=["0"]),
    "more layers": with_settings(layers=["2", "0"]),
    "indices": with_settings(indices=[0, 1, 2, 4]),
}
OF_FEATURES = {
    "layer": with_settings(layers=["0"]),
    "dtype": with_settings(dtype="float16"),
    "max_features": with_settings(max_features=100),
}
NAMES = {  # what the error calls it, where it is not the change's own name
    "weight": "weights", "buffer": "weights", "setting": "architecture", "dtype": "weights", "pixel": "images",
    "more layers": "layers", **dict.fromkeys(DATA, "images"),
}  # fmt: skip


@pytest.mark.parametrize("user", [scanned, computed])
@pytest.mark.parametrize("data", ["scenes", "tensors"])
def test_what_is_unchanged_is_read(user, data, tmp_path) -> None:
    assert read_again(user, base(data), base(data), tmp_path) is True
    other_batches = replace(base(data), settings={"batch_size": 2, "workers": 0})
    assert read_again(user, base(data), other_batches, tmp_path / "batches") is True


@pytest.mark.parametrize("user", [scanned, computed])
@pytest.mark.parametrize(("data", "name", "change"), CHANGES, ids=[f"{data}-{name}" for data, name, _ in CHANGES])
def test_nothing_old_is_read(user, data, name, change, tmp_path) -> None:
    said = read_again(user, base(data), change(base(data)), tmp_path)
    assert "was made with different" in said and NAMES[name] in said and "delete" in said


@pytest.mark.parametrize("name", OF_SCANS)
def test_a_state_of_a_scan_with_other_settings_is_not_read(name, tmp_path) -> None:
    said = read_again(scanned, base("tensors"), OF_SCANS[name](base("tensors")), tmp_path)
    assert f"scan.partial was made with different {NAMES.get(name, name)}" in said


@pytest.mark.parametrize("name", OF_FEATURES)
def test_features_with_other_settings_are_not_read(name, tmp_path) -> None:
    said = read_again(computed, base("tensors"), OF_FEATURES[name](base("tensors")), tmp_path)
    assert "was made with different" in said and name in said


def test_a_fresh_scan_overwrites_the_state_of_another(tmp_path) -> None:
    assert not scanned(base("tensors"), tmp_path)
    other = replace(base("tensors"), model=network(1))
    with pytest.raises(InputError, match="different weights; delete it, or start again with fresh=True"):
        scanned(other, tmp_path)
    assert not scanned(replace(other, settings={"fresh": True}), tmp_path)
    assert scanned(other, tmp_path)


class ScaledBy(nn.Module):
    """What it does depends on what neither classes nor settings tell."""

    def __init__(self, scale: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.scale = nn.Conv2d(3, 4, 3), scale

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        return self.scale(self.conv(x)) * gain


def test_what_a_network_computes_counts(tmp_path) -> None:
    images, one = torch.rand(6, 3, 8, 8), Graph(ScaledBy(lambda y: y + 1))
    arguments: Any = {"dataset": images, "layers": ["mul"], "progress": False, "workers": 0}
    scan(one, k=2, state=tmp_path / "scan", keep_state=True, **arguments)
    features(one, folder=tmp_path, **arguments)
    assert Graph(ScaledBy(lambda y: y + 1)).identity() == one.identity()
    for other in (Graph(one.model, gain=2.0), Graph(ScaledBy(lambda y: y + 2))):
        with pytest.raises(InputError, match="made with different steps"):
            scan(other, k=2, state=tmp_path / "scan", **arguments)
        expected = other.model(images, **other.given_inputs).detach().flatten(1)
        assert np.allclose(features(other, folder=tmp_path, **arguments)["mul"], expected, atol=1e-6)


@pytest.mark.parametrize("user", [scanned, computed])
def test_a_changed_photograph_is_read_again(user, tmp_path) -> None:
    for n in range(4):
        Image.new("RGB", (40, 40), (60 * n, 0, 0)).save(tmp_path / f"{n}.png")
    run = Run(network(), Photos(tmp_path, transform=HOW), {})
    assert not user(run, tmp_path / "out") and user(run, tmp_path / "out")
    Image.new("RGB", (40, 40), (9, 9, 9)).save(tmp_path / "1.png")
    with pytest.raises(InputError, match="was made with different images; delete"):
        user(replace(run, data=Photos(tmp_path, transform=HOW)), tmp_path / "out")


# ---- training and the experiments ------------------------------------------------------------------------------------

RECIPE = {"epochs": 2, "batch_size": 3, "learning_rate": 0.01, "max_filter_rms": None}
OF_TRAINING = {
    "weight": ("initial weights", changed_weight),
    "buffer": ("initial weights", changed_buffer),
    "pixel": ("training images", changed_pixel),
    "label": ("training labels", changed_label),
    "rate": ("learning_rate", with_settings(learning_rate=0.02)),
    "seed": ("seed", with_settings(seed=3)),
    "validation": ("validation", with_settings(validation=True)),
}


def resumed(run: Run, folder: Path) -> bool:
    """Whether training resumes from the checkpoint of the run before; it is interrupted in its second epoch."""
    settings = RECIPE | run.settings
    data = as_tensors(run.data)
    validation = data if settings.pop("validation", False) else None
    epochs: list[int] = []

    def interrupt(history: list[Any]) -> None:
        epochs.append(len(history))
        if len(history) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run.model, data, validation, Recipe(**settings), folder=folder, progress=False, on_epoch=interrupt)
    return epochs == [2]


def trained(run: Run, folder: Path) -> bool:
    """Whether the experiments find the network that the run before has trained."""
    settings = RECIPE | run.settings
    data = as_tensors(run.data)
    validation = data if settings.pop("validation", False) else None
    networks = Networks(folder, data, validation, HOW, progress=False)
    before = set(folder.rglob("model.safetensors"))
    networks.trained("network", lambda: copy.deepcopy(run.model), Recipe(**settings))
    return set(folder.rglob("model.safetensors")) == before


@pytest.mark.parametrize("user", [resumed, trained])
def test_an_unchanged_training_run_is_read(user, tmp_path) -> None:
    assert read_again(user, base("tensors"), base("tensors"), tmp_path) is True


@pytest.mark.parametrize("name", OF_TRAINING)
def test_a_checkpoint_of_another_run_is_not_read(name, tmp_path) -> None:
    named, change = OF_TRAINING[name]
    said = read_again(resumed, base("tensors"), change(base("tensors")), tmp_path)
    assert "was made with different" in said and named in said


@pytest.mark.parametrize("name", OF_TRAINING)
def test_a_network_that_was_trained_otherwise_is_not_read(name, tmp_path) -> None:
    assert read_again(trained, base("tensors"), OF_TRAINING[name][1](base("tensors")), tmp_path) is False


def test_measurements_of_another_run_are_not_read(tmp_path) -> None:
    def measured(run: Run, folder: Path) -> bool:
        settings = {"layers": ["2"], "maps": 2, "progress": False, "tasks": ["one"]}
        done: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(measure, "FEWEST", 1)
            patch.setattr(measure, "judge_of", lambda *_: None)
            patch.setattr(measure, "drawn", lambda *_: [0])
            patch.setattr(measure, "TASKS", {"one": lambda layer: done.append(layer.name) or {"A1": {}}})
            patch.setattr(ablation, "draw_choices", interrupt)
            with pytest.raises(KeyboardInterrupt):
                ablation.main(run.model, as_tensors(run.data), folder, **settings | run.settings)
        return not done

    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    assert read_again(measured, base("scenes"), base("scenes"), tmp_path / "same") is True
    for name, change in (("seed", with_settings(seed=1)), ("maps", with_settings(maps=1))):
        said = read_again(measured, base("scenes"), change(base("scenes")), tmp_path / name)
        assert f"ablation.partial was made with different {name} (" in said and "start again with fresh=True" in said
    assert "scan.partial was made with different weights" in read_again(
        measured, base("scenes"), changed_weight(base("scenes")), tmp_path / "weight"
    )
    settings = {"fresh": True}
    assert read_again(measured, base("scenes"), replace(base("scenes"), settings=settings), tmp_path / "new") is False
    state = tmp_path / "same" / "ablation.partial"
    known = json.loads(state.read_bytes().partition(b"\n")[0])["identity"]
    for content in ("[]", '{"2": 3}', "{", 3, None):
        write_sealed(state, known, content)
        with pytest.raises(InputError, match=f"^{state} is not a state of this experiment; delete it, or"):
            measured(base("scenes"), tmp_path / "same")
    (tmp_path / "same" / "ablation.partial").write_text('{"key": "old", "layers": {"2": {}}}')
    with pytest.raises(InputError, match=r"ablation\.partial is damaged, or of an older format that is no longer read"):
        measured(base("scenes"), tmp_path / "same")
