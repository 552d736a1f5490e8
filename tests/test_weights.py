import argparse
import contextlib
import hashlib
import importlib
import io
import json
import os
import pickle
import re
import stat
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from onnx import helper
from onnx.reference import ReferenceEvaluator
from torch import nn
from torchvision.models import squeezenet1_0

from zfnet.data.batches import Batches
from zfnet.data.photos import Photos
from zfnet.data.preprocessing import Preprocessing
from zfnet.errors import InputError
from zfnet.model import ZFNet
from zfnet.weights import ADAPTERS, load, read_metadata, save

CAFFE = Preprocessing(
    size=227, mode="warp", channels="BGR", scale=255.0, mean=(104.0, 117.0, 123.0), std=(1.0, 1.0, 1.0)
)


def small(seed=0, maps=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, maps, 3), nn.BatchNorm2d(maps), nn.ReLU(), nn.Conv2d(maps, 2, 1))


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def saved(tmp_path, model=None, **metadata):
    model = model or small()
    model.preprocessing = CAFFE
    save(model, tmp_path / "w.safetensors", **metadata)
    return tmp_path / "w.safetensors"


def torch_saved(tmp_path, state, **settings):
    torch.save(state, tmp_path / "w.pth", **settings)
    return tmp_path / "w.pth"


def refused(path, model=None, **settings):
    """The message, once it is clear that the model was left as it was."""
    model = model or small(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load(model, path, **settings)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not hasattr(model, "preprocessing")
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


# --- what is saved is loaded


def test_round_trip(tmp_path):
    path = saved(tmp_path, architecture={"maps": [4, 2]}, classes=["ant", "bee"], note="1")
    model = small(1)
    assert load(model, path) is model
    assert same(model, small()) and model.preprocessing == CAFFE
    metadata = read_metadata(path)
    assert metadata.pop("preprocessing")["channels"] == "BGR"
    assert metadata == {"architecture": {"maps": [4, 2]}, "classes": ["ant", "bee"], "note": "1"}


def test_memory_format_and_mode_are_kept(tmp_path):
    path = saved(tmp_path, small().to(memory_format=torch.channels_last))
    model = small(1).to(memory_format=torch.channels_last).train()
    weight = model[0].weight
    load(model, path)
    assert model[0].weight is weight and weight.is_contiguous(memory_format=torch.channels_last)
    assert same(model, small()) and model.training and weight.requires_grad


def test_shared_weights_are_saved(tmp_path):
    def shared(seed):
        torch.manual_seed(seed)
        layer = nn.Linear(2, 2)
        return nn.Sequential(layer, layer)

    assert same(load(shared(1), saved(tmp_path, shared(0))), shared(0))


def test_saving_is_atomic(tmp_path, monkeypatch):
    path = saved(tmp_path)
    before = path.read_bytes()

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(InputError, match=r"cannot write .*w\.safetensors: No space left on device"):
        saved(tmp_path, small(1))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["w.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="has other permissions")
def test_saved_file_can_be_read_by_whom_the_umask_lets(tmp_path):
    old = os.umask(0o022)
    try:
        assert stat.S_IMODE(saved(tmp_path).stat().st_mode) == 0o644
    finally:
        os.umask(old)


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(InputError, match=r"no preprocessing; set model\.preprocessing"):
        save(small(), tmp_path / "w")
    with pytest.raises(InputError, match="metadata date is not JSON"):
        saved(tmp_path, date=object())
    model = small()
    with torch.no_grad():
        model[3].bias[1] = float("nan")
    with pytest.raises(InputError, match=r"3\.bias has values that are not finite"):
        saved(tmp_path, model)
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .*file/"):
        saved(tmp_path / "file")


# --- files from elsewhere


def prefixed(prefix, state=None):
    return {f"{prefix}{name}": tensor for name, tensor in (state or small().state_dict()).items()}


CHECKPOINTS = {  # as people write them
    "plain": lambda state: state,
    "without counters": lambda state: {name: tensor for name, tensor in state.items() if "num_batches" not in name},
    "double": lambda state: {name: tensor.double() for name, tensor in state.items()},
    "DataParallel": lambda state: prefixed("module.", state),
    "torch.compile": lambda state: prefixed("_orig_mod.", state),
    "compiled DataParallel": lambda state: prefixed("module._orig_mod.", state),
    "Lightning": lambda state: {"state_dict": prefixed("model.", state), "epoch": 3, "hyper_parameters": {"lr": 0.1}},
    "Lightning, compiled": lambda state: {"state_dict": prefixed("net._orig_mod.", state)},
    "torch's tutorial": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}, "loss": 0.5},
    "torchvision's references": lambda state: {
        "model": state,
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(1)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "lr_scheduler": {"_schedulers": [{"last_epoch": 1}], "_milestones": [5]},
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, val_crop_size=224, output_dir="."),
        "model_ema": {"n_averaged": torch.tensor(7), **prefixed("module.", zeros(state))},
        "scaler": {"scale": 65536.0},
    },
    "own": lambda state: {"net": prefixed("module.", state), "acc": 90},
    "weights": lambda state: {"weights": state},
    "nested": lambda state: {"state_dict": {"model": state, "optimizer": {}}},
    "settings of the same name": lambda state: {"model": {"name": "small"}, "state_dict": state},
    "arguments beside": lambda state: {"state_dict": state, "args": argparse.Namespace(lr=0.1, layers=[1, 2])},
    "numpy beside": lambda state: {"state_dict": state, "best": np.float64(1), "step": np.int32(7)},
}


def zeros(state):
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


@pytest.mark.parametrize("wrap", CHECKPOINTS.values(), ids=CHECKPOINTS)
@pytest.mark.parametrize("new", [True, False])
def test_state_dicts(tmp_path, wrap, new):
    path = torch_saved(tmp_path, wrap(small().state_dict()), _use_new_zipfile_serialization=new)
    model = load(small(1), path, preprocessing=Preprocessing())
    assert same(model, small()) and model.preprocessing == Preprocessing()
    assert read_metadata(path) == {}


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "net.", "module._orig_mod."])
def test_prefixes_in_safetensors(tmp_path, prefix):
    path = tmp_path / "w"
    safetensors.torch.save_file(prefixed(prefix), path)
    assert same(load(small(1), path, preprocessing=Preprocessing()), small())


def test_prefixes_that_are_the_models_own_stay(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.model = small(seed)

    for state in (Wrapped(0).state_dict(), prefixed("module.", Wrapped(0).state_dict())):
        assert same(load(Wrapped(1), torch_saved(tmp_path, state), preprocessing=CAFFE), Wrapped(0))
    state = {**prefixed("model."), "loss.weight": torch.ones(1)}  # not all share it
    assert "8 missing (first 0.weight), 10 unexpected (first" in refused(torch_saved(tmp_path, state))


@pytest.mark.parametrize("name", ["model_ema", "ema", "state_dict_ema"])
def test_averaged_weights_only_where_there_are_no_others(tmp_path, name):
    averaged = {"n_averaged": torch.tensor(5), **prefixed("module.")}
    path = torch_saved(tmp_path, {"state_dict": small(2).state_dict(), name: averaged})
    assert same(load(small(1), path, preprocessing=CAFFE), small(2))
    with pytest.warns(UserWarning, match=rf"the EMA weights of .*w\.pth are used \({name}\)"):
        assert same(load(small(1), path, preprocessing=CAFFE, entry=name), small())
    assert f"no entry of {path} 'nett'" in refused(path, entry="nett", preprocessing=CAFFE)
    torch.save({name: averaged, "epoch": 3}, path)
    with pytest.warns(UserWarning, match="the EMA weights"):
        assert same(load(small(1), path, preprocessing=CAFFE), small())


def test_several_entries_that_fit(tmp_path):
    path = torch_saved(tmp_path, {"model": small(2).state_dict(), "net": small().state_dict()})
    assert "2 sets of weights that fit the model: give entry=model or net" in refused(path, preprocessing=CAFFE)
    assert same(load(small(1), path, preprocessing=CAFFE, entry="net"), small())
    torch.save({"model": small(maps=7).state_dict(), "net": small().state_dict()}, path)  # only one of them
    assert same(load(small(1), path, preprocessing=CAFFE), small())


def test_torchscript_is_named(tmp_path):
    path = tmp_path / "w"
    torch.jit.save(torch.jit.trace(small().eval(), torch.zeros(1, 3, 8, 8)), path)
    assert "is a TorchScript archive; load it with torch.jit.load and save its state_dict()" in refused(path)


def test_checksum(tmp_path):
    path = saved(tmp_path)
    correct = hashlib.sha256(path.read_bytes()).hexdigest()
    assert same(load(small(1), path, sha256=correct.upper()), small())
    assert f"has SHA-256 {correct}, not {'0' * 64}: another file, or a damaged one" in refused(path, sha256="0" * 64)


def test_preprocessing_is_never_assumed(tmp_path):
    state = small().state_dict()
    plain = tmp_path / "plain.safetensors"
    safetensors.torch.save_file(state, plain, {"format": "pt"})
    assert read_metadata(plain) == {"format": "pt"}
    for path in (plain, torch_saved(tmp_path, state)):
        assert "does not say how its photographs were prepared; give preprocessing=" in refused(path)
        assert load(small(), path, preprocessing=CAFFE).preprocessing == CAFFE


def test_preprocessing_of_the_file_is_not_overruled(tmp_path):
    path = saved(tmp_path)
    assert "has its own preprocessing" in refused(path, preprocessing=Preprocessing())
    assert load(small(), path, preprocessing=CAFFE).preprocessing == CAFFE


def test_the_mean_image_belongs_to_the_preprocessing(tmp_path):
    model = replace(CAFFE, mean_image=torch.ones(3, 227, 227)).attach(small())
    save(model, tmp_path / "w")
    assert torch.equal(load(small(1), tmp_path / "w").preprocessing.mean_image, torch.ones(3, 227, 227))
    assert "has its own preprocessing" in refused(tmp_path / "w", preprocessing=CAFFE)


def test_bad_preprocessing_in_a_file(tmp_path):
    path = tmp_path / "w"
    for metadata, message in (
        ({"preprocessing": '{"size": 224}'}, "preprocessing lacks resize"),
        ({"preprocessing": CAFFE.to_json(), "paddings": "[1]"}, "its paddings are a list"),
    ):
        safetensors.torch.save_file(small().state_dict(), path, metadata)
        with pytest.warns(UserWarning, match="has no digest, as files of an older version"):
            assert message in refused(path)


# --- files that do not fit, or are damaged, or dangerous


def test_other_architecture_is_named(tmp_path):
    path = saved(tmp_path, small(maps=5), architecture="small(maps=5)")
    message = refused(path)
    assert "fit Sequential: 7 misshapen (first 0.weight: (5, 3, 3, 3) in the file, (4, 3, 3, 3) in" in message
    assert 'saved from "small(maps=5)"' in message
    message = refused(saved(tmp_path, nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(2, 2, bias=False))))
    assert "5 missing (first 1.bias), 1 misshapen (first 1.weight" in message
    message = refused(saved(tmp_path, nn.Sequential(*small(), nn.Linear(2, 2))))
    assert "2 unexpected (first 4.bias)" in message and "missing" not in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(tmp_path, value):
    state = small().state_dict()
    state["3.weight"][1, 2] = value
    path = torch_saved(tmp_path, state)
    assert "3.weight has values that are not finite" in refused(path, preprocessing=CAFFE)


def test_values_too_large_for_the_model_are_named(tmp_path):
    state = {name: tensor.double() for name, tensor in small().state_dict().items()}
    state["0.bias"][0] = 1e300
    assert "0.bias has values" in refused(torch_saved(tmp_path, state), preprocessing=CAFFE)


def content(kind):
    file = io.BytesIO()
    if kind == "npz":
        np.savez(file, **{name: tensor.numpy() for name, tensor in small().state_dict().items()})
    elif kind == "safetensors":
        return safetensors.torch.save(small().state_dict())
    else:
        torch.save(small().state_dict(), file, _use_new_zipfile_serialization=kind == "torch")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["safetensors", "npz", "torch", "old torch"])
@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.99])
def test_file_cut_short(tmp_path, kind, share):
    whole = content(kind)
    path = tmp_path / "w"
    path.write_bytes(whole)
    load(small(1), path, preprocessing=CAFFE)
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(path, preprocessing=CAFFE)


@pytest.mark.parametrize("kind", ["safetensors", "npz", "torch", "old torch"])
def test_damaged_bytes_are_one_line_or_harmless(tmp_path, kind):
    whole, path, rng = content(kind), tmp_path / "w", np.random.default_rng(0)
    for _ in range(150):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(0, len(whole), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        with contextlib.suppress(InputError):
            load(small(1), path, preprocessing=CAFFE)


def test_file_missing_or_something_else(tmp_path):
    assert "No such file" in refused(tmp_path / "nothing")
    assert "Is a directory" in refused(tmp_path)
    (tmp_path / "text").write_text("conv1 0.1 0.2")
    assert "not a file of weights; known are safetensors, npz, torch, onnx" in refused(tmp_path / "text")
    assert "holds list" in refused(torch_saved(tmp_path, [1, 2]))
    assert "'epoch' is not a tensor" in refused(torch_saved(tmp_path, {"epoch": 1, **small().state_dict()}))
    assert "under 'model' holds more than weights: 'name' is" in refused(
        torch_saved(tmp_path, {"model": {"name": "small"}})
    )


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["torch", "old torch", "pickle", "npz"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, how):
    sprung, path = tmp_path / "sprung", tmp_path / "w"
    if how == "pickle":
        path.write_bytes(pickle.dumps({"0.weight": Trap(sprung)}))
    elif how == "npz":
        with open(path, "wb") as file:
            np.savez(file, weight=np.array([Trap(sprung)], dtype=object))
    else:
        torch.save({"0.weight": Trap(sprung)}, path, _use_new_zipfile_serialization=how == "torch")
    message = refused(path)
    assert "is refused" in message and "could run code" in message
    assert {"npz": "weight", "pickle": "a pickle"}.get(how, "mkdir") in message
    assert not sprung.exists()


def test_what_stands_beside_weights_is_not_built(tmp_path, monkeypatch):
    beside = {"args": argparse.Namespace(lr=1), "best": np.float64(1)}
    path = torch_saved(tmp_path, {"model": small().state_dict(), **beside})

    def built(*_):
        raise AssertionError("it ran")

    monkeypatch.setattr(argparse, "Namespace", built)
    monkeypatch.setattr(sys.modules[np.float64(1).__reduce__()[0].__module__], "scalar", built)
    assert same(load(small(1), path, preprocessing=CAFFE), small())
    torch.save({"model": small().state_dict(), "args": Path("somewhere")}, path)
    assert "pathlib.PosixPath could run code; save the model's state_dict()" in refused(path)


def test_whole_model_is_refused_by_its_class(tmp_path):
    message = refused(torch_saved(tmp_path, small()))
    assert "torch.nn.modules.container.Sequential" in message and "save the model's state_dict()" in message


# --- SqueezeNet from Caffe

FIRES = {2: 16, 3: 16, 4: 32, 5: 32, 6: 48, 7: 48, 8: 64, 9: 64}  # maps after squeezing; 4 times as many on each side
REAL = Path(os.environ.get("ZFNET_REAL_DATA", "nowhere"))
PUBLISHED = REAL / "squeezenet_v1.0" / "squeezenet_v1.0_dc.npz"
needs_published = pytest.mark.skipif(not PUBLISHED.is_file(), reason="ZFNET_REAL_DATA has no squeezenet_v1.0")
needs_photos = pytest.mark.skipif(
    not (REAL / "imagenet_samples").is_dir(), reason="ZFNET_REAL_DATA has no imagenet_samples"
)


def invented(path):
    """Random weights in the form of the published ones."""
    shapes, maps = {"conv1": (96, 3, 7, 7)}, 96
    for fire, squeezed in FIRES.items():
        shapes[f"fire{fire}/conv1x1_1"] = (squeezed, maps, 1, 1)
        shapes[f"fire{fire}/conv1x1_2"] = (4 * squeezed, squeezed, 1, 1)
        shapes[f"fire{fire}/conv3x3_2"] = (4 * squeezed, squeezed, 3, 3)
        maps = 8 * squeezed
    shapes["conv_final"] = (1000, maps, 1, 1)
    rng = np.random.default_rng(0)
    arrays = {}
    for layer, shape in shapes.items():
        spread = (2 / np.prod(shape[1:])) ** 0.5
        arrays[f"{layer}/weight"] = rng.normal(0, spread, shape).astype(np.float32)
        arrays[f"{layer}/bias"] = rng.normal(0, 0.1, shape[0]).astype(np.float32)
    np.savez(path, **arrays)
    return path


def prototxt(arrays, x):
    """The network as its prototxt lists it."""

    def conv(x, layer, **settings):
        weight, bias = (torch.from_numpy(arrays[f"{layer}/{kind}"]) for kind in ("weight", "bias"))
        return F.relu(F.conv2d(x, weight, bias, **settings))

    def pool(x):
        return F.max_pool2d(x, 3, 2, ceil_mode=True)

    x = pool(conv(x, "conv1", stride=2))
    for fire in FIRES:
        x = conv(x, f"fire{fire}/conv1x1_1")
        x = torch.cat([conv(x, f"fire{fire}/conv1x1_2"), conv(x, f"fire{fire}/conv3x3_2", padding=1)], 1)
        x = pool(x) if fire in (4, 8) else x
    return conv(x, "conv_final", padding=1).mean((2, 3))


@pytest.mark.parametrize("published", [False, pytest.param(True, marks=[needs_published, needs_photos])])
def test_squeezenet_computes_what_its_prototxt_says(tmp_path, published):
    path = PUBLISHED if published else invented(tmp_path / "w.npz")
    model = load(squeezenet1_0().eval(), path)
    assert model.preprocessing == CAFFE
    if published:
        photos = Photos(REAL / "imagenet_samples", transform=model.preprocessing)
        x, label = photos[0][0][None], photos.labels[0]
    else:
        x, label = 30 * torch.randn(1, 3, 227, 227, generator=torch.Generator().manual_seed(0)), None
    with torch.no_grad(), np.load(path) as arrays:
        ours, expected = model(x), prototxt(arrays, x)
    assert expected.std() > 0
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert label is None or ours.argmax() == label


def test_padding_that_came_with_weights_is_saved_with_them(tmp_path):
    first = load(squeezenet1_0().eval(), invented(tmp_path / "w.npz"))
    save(first, tmp_path / "w.safetensors")
    second = load(squeezenet1_0().eval(), tmp_path / "w.safetensors")
    x = torch.randn(1, 3, 99, 99, generator=torch.Generator().manual_seed(0))
    assert second.classifier[1].padding == (1, 1)
    with torch.no_grad():
        assert torch.equal(first(x), second(x))
    save(small(), tmp_path / "small", preprocessing=CAFFE, paddings={"9": [1, 1]})
    assert "1 unexpected (first padding of 9)" in refused(tmp_path / "small", small(1))


def test_squeezenet_that_does_not_fit(tmp_path):
    path = invented(tmp_path / "w.npz")
    assert "does not fit Sequential: 8 missing (first 0.weight), 52 unexpected" in refused(path)
    with np.load(path) as arrays:
        np.savez(path, **{name: arrays[name] for name in arrays if name != "fire9/conv3x3_2/bias"}, extra=[1.0])
    model = squeezenet1_0()
    message = refused(path, model)
    assert "1 missing (first features.12.expand3x3.bias), 1 unexpected (first extra)" in message
    assert model.classifier[1].padding == (0, 0)


def test_adapter_is_one_row(tmp_path, monkeypatch):
    monkeypatch.setitem(ADAPTERS, "nothing", lambda tensors: None)
    assert same(load(small(1), saved(tmp_path)), small())


@pytest.mark.slow
@needs_published
@needs_photos
def test_squeezenet_recognises_photographs():
    model = load(squeezenet1_0().eval(), PUBLISHED)
    photos = Photos(REAL / "imagenet_samples", transform=model.preprocessing)
    right = 0
    with torch.inference_mode():
        for _, images, labels in Batches(photos):
            right += (model(images).argmax(1) == labels).sum().item()
    assert right / len(photos) >= 0.63


# --- published ZFNets


def pytorchcv_zfnet(name, maps):
    """pytorchcv's own network at random weights, biases included, and the one here that its file is for."""
    theirs = getattr(importlib.import_module("pytorchcv.models.zfnet"), name)(num_classes=10).eval()
    for parameter in theirs.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.1)
    return theirs, ZFNet(10, maps=maps, norm="before pool", contrast=(5, 1e-4, 0.75, 2.0)).eval()


@pytest.mark.parametrize(("name", "maps"), [("zfnet", (96, 256, 384, 384, 256)), ("zfnetb", (96, 256, 512, 1024, 512))])
def test_pytorchcvs_zfnets_compute_the_same_here(tmp_path, name, maps):
    theirs, ours = pytorchcv_zfnet(name, maps)
    path = torch_saved(tmp_path, theirs.state_dict())
    load(ours, path)
    assert ours.preprocessing == Preprocessing()
    images = 3 * torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)
    if name == "zfnet":
        for norm, says in [
            ("after pool", "norm1 comes before pool1 in the file, and after it in the model"),
            ("before pool", "norm1.alpha is 0.0001 in the file, 0.0005 in the model"),
            (None, "2 missing (first norm1)"),
        ]:
            assert says in refused(path, ZFNet(10, norm=norm))


ZOO = {"maps": (4, 4, 12, 10, 8), "hidden": (16, 12), "conv1": (7, 2, 0), "norm": "before pool"}


def zfnet512(path, extra=None, opset=8):
    """A file of the graph of ONNX Model Zoo's ZFNet-512, names included, with fewer maps."""
    tensors, nodes, last = {}, [], "gpu_0/data_0"

    def weight(name, *shape):
        tensors[name] = np.random.default_rng(len(tensors)).normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        return name

    def step(operation, *weights, **attributes):
        nonlocal last
        nodes.append(helper.make_node(operation, [last, *weights], [f"gpu_0/{len(nodes)}"], **attributes))
        last = nodes[-1].output[0]

    channels = 3
    for n, maps in enumerate(ZOO["maps"], 1):
        side, stride, pad = {1: (7, 2, 0), 2: (5, 2, 0)}.get(n, (3, 1, 1))
        filters = weight(f"gpu_0/conv{n}_w_0", maps, channels, side, side), weight(f"gpu_0/conv{n}_b_0", maps)
        step("Conv", *filters, kernel_shape=[side] * 2, strides=[stride] * 2, pads=[pad] * 4)
        step("Relu")
        if n < 3:
            step("LRN", size=5, alpha=1e-4, beta=0.75, bias=1.0)
        if n in (1, 2, 5):
            step("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, *[1 if n == 5 else 0] * 2])
        channels = maps
    tensors["shape"] = np.array([-1, 36 * channels])
    step("Reshape", "shape")
    before = 36 * channels
    for n, width in zip((6, 7, 8), (*ZOO["hidden"], 10), strict=True):
        step("Gemm", weight(f"gpu_0/fc{n}_w_0", width, before), weight(f"gpu_0/fc{n}_b_0", width), transB=1)
        if n < 8:
            step("Relu")
            step("Dropout")
        before = width
    tensors["gpu_0/fc8_w_0"] /= 50  # or one class would have it all
    step(extra or "Softmax", **({} if extra else {"axis": 1}))
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("gpu_0/data_0", last)]
    initial = [
        onnx.numpy_helper.from_array(array if name == "shape" else array.astype(np.float32), name)
        for name, array in tensors.items()
    ]
    graph = helper.make_graph(nodes, "zfnet512", values[:1], values[1:], initial)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]), path)
    return path


def test_zfnet512_computes_what_its_graph_says(tmp_path):
    path, model = zfnet512(tmp_path / "zfnet512.onnx"), ZFNet(10, contrast=(5, 1e-4, 0.75, 1.0), **ZOO).eval()
    load(model, path, default_preprocessing=CAFFE)
    assert model.preprocessing == CAFFE
    images = 20 * torch.randn(4, 3, 224, 224)  # as many as maps: onnx's reference takes one number for the other
    (theirs,) = ReferenceEvaluator(str(path)).run(None, {"gpu_0/data_0": images.numpy()})
    with torch.no_grad():
        ours = model(images).softmax(1)
    assert ours.max() < 0.99
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"contrast": (5, 5e-4, 0.75, 1.0)}, "does not fit ZFNet: norm1.alpha is 0.0001 in the file, 0.0005 in the"),
        ({"contrast": (5, 1e-4, 0.75, 2.0)}, "does not fit ZFNet: norm1.k is 1 in the file, 2.0 in the model"),
        ({"contrast": (5, 1e-4, 0.75, 1.0), "conv1": (7, 2, 1)}, "conv1.padding is (0, 0) in the file, (1, 1) in the"),
        ({"norm": "after pool"}, "norm1 comes before pool1 in the file, and after it in the model"),
        ({"hidden": (12, 12)}, "3 misshapen"),
    ],
)
def test_zfnet512_that_does_not_fit(tmp_path, wrong, says):
    path = zfnet512(tmp_path / "zfnet512.onnx")
    assert says in refused(path, ZFNet(10, **(ZOO | wrong)), default_preprocessing=CAFFE)


def test_onnx_files_of_other_networks_and_without_onnx(tmp_path, monkeypatch):
    path = zfnet512(tmp_path / "other.onnx", "Sigmoid")
    assert "is not a ZFNet: it has Sigmoid; of ONNX files only ZFNets are read" in refused(
        path, default_preprocessing=CAFFE
    )
    path.write_bytes(path.read_bytes()[:999])
    assert "it may be cut short or damaged" in refused(path, default_preprocessing=CAFFE)
    monkeypatch.setitem(sys.modules, "onnx", None)
    says = "is read by onnx, which is not installed: pip install 'zfnet[onnx]'"
    assert says in refused(zfnet512(tmp_path / "there.onnx"), default_preprocessing=CAFFE)


# --- every bit of what was saved


@pytest.mark.filterwarnings("error")
def test_a_changed_bit_is_found(tmp_path):
    path = saved(tmp_path, classes=["ant", "bee"], rate=1e-05)
    whole, metadata = path.read_bytes(), read_metadata(path)
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in (*range(0, header, 5), *range(header, len(whole), 97), len(whole) - 1):
        for bit in {5, place % 8}:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            with pytest.raises((InputError, UserWarning), match=re.escape(str(path))):  # a warning of no digest
                load(small(1), path)
            found = pytest.raises((InputError, UserWarning), match=re.escape(str(path)))
            with found if place < header else contextlib.nullcontext():
                assert read_metadata(path) == metadata  # damaged weights are found when they are read
    for wrong in (whole[:-1], whole + b"\0", whole[:header], b""):
        path.write_bytes(wrong)
        refused(path)
        with pytest.raises(InputError):
            read_metadata(path)


def test_a_file_without_a_digest_is_read_with_a_warning(tmp_path):
    path = saved(tmp_path, note="1")
    path.write_bytes(path.read_bytes().replace(b"zfnet.digest", b"zfnet.digesu"))
    model = small(1)
    for read in (lambda: load(model, path), lambda: read_metadata(path)):
        with pytest.warns(UserWarning, match=rf"^{path} has no digest, as files of an older version") as given:
            read()
        assert len(given) == 1
    assert same(model, small())


def test_other_files_have_no_metadata_but_those_called_safetensors_must(tmp_path):
    (tmp_path / "w").write_bytes(b"anything")
    assert read_metadata(tmp_path / "w") == {}
    (tmp_path / "w.safetensors").write_bytes(b"anything")
    for name in ("w.safetensors", "nothing", "."):
        with pytest.raises(InputError, match=r"cannot read|declares"):
            read_metadata(tmp_path / name)


# --- tensors that are no plain numbers

ODD = {
    "a sparse tensor, '0.weight'": lambda w: w.to_sparse(),
    "a quantised tensor, '0.weight'": lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
    "a meta (without data) tensor, '0.weight'": lambda w: w.to("meta"),
    "a nested tensor, '0.weight'": lambda w: torch.nested.nested_tensor([w, w[:1]]),
    "1 of another type (first 0.weight: torch.int64 in the file, torch.float32 in the model)": lambda w: w.long(),
    "1 of another type (first 0.weight: torch.bool": lambda w: w.bool(),
    "1 of another type (first 0.weight: torch.complex64": lambda w: w.to(torch.complex64),
    "1 of another type (first 0.weight: torch.float8_e4m3fn": lambda w: w.to(torch.float8_e4m3fn),
    "1 misshapen (first 0.weight: (1000000000,) in the file": lambda w: w.flatten()[:1].expand(10**9),
}


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("says", ODD)
@pytest.mark.filterwarnings("ignore")  # torch's own, when they are made
def test_odd_tensors_are_named(tmp_path, says, new):
    state = small().state_dict()
    state["0.weight"] = ODD[says](state["0.weight"])
    path = torch_saved(tmp_path, state, _use_new_zipfile_serialization=new)
    message = refused(path, preprocessing=CAFFE)
    assert says in message or (not new and "cannot read weights from" in message)  # some are not in old files at all


def test_views_and_shared_memory_are_read_as_what_they_say(tmp_path):
    state = {name: tensor.clone() for name, tensor in small().state_dict().items()}
    memory = torch.cat([state["0.weight"].flatten(), state["0.bias"]])
    state["0.weight"], state["0.bias"] = memory[:-4].view(4, 3, 3, 3), memory[-4:]
    state["1.bias"] = state["1.bias"][:1].expand(4)
    assert same(load(small(1), torch_saved(tmp_path, state), preprocessing=CAFFE), small())


def test_one_parameter_under_two_names_cannot_have_two_values(tmp_path):
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, layer)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert same(load(nn.Sequential(layer, layer), torch_saved(tmp_path, state), preprocessing=CAFFE), model)
    state["1.weight"] += 1
    with pytest.raises(InputError, match=r"0\.weight and 1\.weight differ, but are one parameter of the model"):
        load(nn.Sequential(layer, layer), torch_saved(tmp_path, state), preprocessing=CAFFE)


@pytest.mark.parametrize("value", [2**40, 0.5, -(2**63)])
def test_numbers_that_a_buffer_cannot_hold_are_named(tmp_path, value):
    model = nn.Module()
    model.register_buffer("count", torch.zeros(2, dtype=torch.int32))
    path = torch_saved(tmp_path, {"count": torch.tensor([1, value])})
    assert "count has values that torch.int32 cannot hold" in refused(path, model, preprocessing=CAFFE)
    torch.save({"count": torch.tensor([1.0, 7.0])}, path)
    assert load(model, path, preprocessing=CAFFE).count.tolist() == [1, 7]


@pytest.mark.parametrize("model", [nn.Linear(2, 2, device="meta"), nn.LazyLinear(2)], ids=["meta", "lazy"])
def test_a_model_without_values_takes_no_weights(tmp_path, model):
    path = torch_saved(tmp_path, nn.Linear(2, 2).state_dict())
    with pytest.raises(InputError, match=r"weight of L.* has no values yet; run the model once on images"):
        load(model, path, preprocessing=CAFFE)


# --- metadata of the wrong type

SETTINGS = {"size": 10**400, "resize": "a", "channels": 10**9, "scale": [1], "mean": 10**400, "std": None, "display": 3}


@pytest.mark.filterwarnings("ignore:.*has no digest")
def test_metadata_of_another_library_under_our_names_are_not_taken_for_ours(tmp_path):
    file = tmp_path / "theirs.safetensors"
    theirs = {"classes": "10", "identity": '"x"', "history": "null", "author": "someone"}
    safetensors.torch.save_file({"a": torch.zeros(1)}, file, theirs)
    assert read_metadata(file) == {"author": "someone"}


@pytest.mark.filterwarnings("ignore:.*has no digest")
def test_metadata_of_wrong_types_are_one_line(tmp_path):
    path, how = tmp_path / "w.safetensors", CAFFE.settings
    texts = [json.dumps(how | {name: value}) for name, value in SETTINGS.items()]
    texts += ["", "null", "[" * 99_999, "9" * 5000, '{"mean": NaN}', json.dumps(how | {"new": 1})]
    for text in texts:
        safetensors.torch.save_file(small().state_dict(), path, {"preprocessing": text})
        refused(path)
    wrong = [{"0": 1}, {"0": [1]}, {"0": [-1, 1]}, {"0": [10**9, 1]}, {"1": [1, 1]}, {"9": [1, 1]}]
    for paddings in (3, "a", [1], *wrong):
        metadata = {"preprocessing": CAFFE.to_json(), "paddings": json.dumps(paddings)}
        safetensors.torch.save_file(small().state_dict(), path, metadata)
        assert "padding" in refused(path)
    for mean in (torch.ones(3), torch.ones(1, 227, 227), torch.ones(3, 9, 9), torch.ones(3, 227, 227).long()):
        state = small().state_dict() | {"preprocessing.mean_image": mean}
        safetensors.torch.save_file(state, path, {"preprocessing": CAFFE.to_json()})
        assert "its mean image is" in refused(path)
    state["preprocessing.mean_image"] = torch.full((3, 227, 227), torch.nan)
    safetensors.torch.save_file(state, path, {"preprocessing": CAFFE.to_json()})
    assert "preprocessing.mean_image has values that are not finite" in refused(path)


def test_sha256_of_the_wrong_form_is_named(tmp_path):
    path = saved(tmp_path)
    correct = hashlib.sha256(path.read_bytes()).hexdigest()
    load(small(), path, sha256=f" {correct}\n")
    for sha256 in (correct[:-1], "", 7, "g" * 64, ["a"]):
        assert "give 64 hexadecimal digits in quotes" in refused(path, sha256=sha256)


# --- bombs, and what is not a file


def repacked(path, change, compression=0):
    """The zip archive with its entries changed."""
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, content in change(entries).items():
            new.writestr(name, content)
    return path


def test_an_archive_of_gigabytes_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, **{"0.weight": np.ones(3)})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("bomb.npy", "w") as file:
        for _ in range(300):
            file.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    assert "declares 300 MiB, and 256 MiB is the most that is read for this model" in refused(path)


def header(shape, descr="<f4", version=b"\1\0"):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text


def test_an_array_whose_header_lies_is_named(tmp_path):
    path = tmp_path / "w.npz"
    for content, says in {
        header("(10**12,)"): "cut short or damaged",
        header("(1000000000000,)"): "b.npy says that it is (1000000000000,) of float32, but its data are 0 bytes",
        header("(-1,)") + bytes(4): "b.npy says that it is (-1,)",
        header("(1,)", version=b"\3\0") + bytes(4): "b.npy is of the unknown version (3, 0)",
        header("(1,)", "|O"): "is refused: b.npy holds Python objects",
        header("(1,)") + bytes(5): "but its data are 5 bytes",
    }.items():
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("b.npy", content)
        assert says in refused(path)


def test_arrays_of_any_order_are_read(tmp_path):
    state = {name: tensor.numpy() for name, tensor in small().state_dict().items()}
    state["0.weight"] = np.asfortranarray(state["0.weight"]).astype(">f4")
    np.savez(tmp_path / "w.npz", **state)
    assert same(load(small(1), tmp_path / "w.npz", preprocessing=CAFFE), small())


def test_torch_archives_are_checked_as_torch_does_not(tmp_path):
    def first_of(entries):
        return next(name for name in entries if name.endswith("data/0"))

    whole = torch_saved(tmp_path, small().state_dict()).read_bytes()
    path = tmp_path / "w.pth"
    place = whole.index(small().state_dict()["0.weight"].numpy().tobytes()) + 40
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    assert "data/0 does not match its checksum; fetch or save it again" in refused(path, preprocessing=CAFFE)
    path.write_bytes(whole)
    repacked(path, lambda entries: entries | {first_of(entries): entries[first_of(entries)][:-4]})
    assert "record size" in refused(path, preprocessing=CAFFE)
    path.write_bytes(whole)
    assert same(load(small(1), repacked(path, dict, zipfile.ZIP_DEFLATED), preprocessing=CAFFE), small())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"")
    assert "is damaged: it has" in refused(path, preprocessing=CAFFE)
    deep = b"\x80\2" + b"]" * 99_999 + b"a" * 99_998 + b"."
    huge = b"\x80\2cbuiltins\nbytearray\n\x8a\5" + (10**10).to_bytes(5, "little") + b"\x85R."  # 10 GB of zeros
    for content, says in ((deep, "holds list"), (huge, "its bytearray could take any memory")):
        path.write_bytes(whole)
        repacked(path, lambda entries, content=content: {n: content if ".pkl" in n else e for n, e in entries.items()})
        assert says in refused(path, preprocessing=CAFFE)
        path.write_bytes(content)  # as before torch 1.6
        refused(path, preprocessing=CAFFE)


@pytest.mark.skipif(os.name == "nt", reason="has no such files")
def test_what_is_no_file_is_named(tmp_path):
    path = tmp_path / "w"
    path.symlink_to("/dev/zero")
    assert "it is not a file" in refused(path)
    path.unlink()
    os.mkfifo(path)
    assert "it is not a file" in refused(path)
    path.unlink()
    for start in (b"PK\3\4", b"\x80\2", b"\x08\7", b"\0\0\0\0\2\0\0\0{", b""):
        with open(path, "wb") as file:
            file.write(start)
            file.truncate(2**40)  # of holes
        refused(path)


def changed_onnx(path, change):
    model = onnx.load(path)
    change(model.graph)
    path.write_bytes(model.SerializeToString())
    return refused(path, ZFNet(10, contrast=(5, 1e-4, 0.75, 1.0), **ZOO), default_preprocessing=CAFFE)


def test_onnx_weights_in_another_file_are_refused_wherever_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for where in ("outside", "./outside", str(tmp_path / "outside"), "../outside"):

        def move(graph, where=where):
            entry = graph.initializer[0]
            (tmp_path / "outside").write_bytes(entry.raw_data)
            onnx.external_data_helper.set_external_data(entry, where)
            entry.ClearField("raw_data")
            entry.data_location = onnx.TensorProto.EXTERNAL

        path = zfnet512(tmp_path / "w.onnx")
        assert f"is refused: {onnx.load(path).graph.initializer[0].name} is in another" in changed_onnx(path, move)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda graph: graph.initializer[0].dims.__setitem__(0, 10**12), "cannot reshape"),
        (lambda graph: graph.initializer.append(graph.initializer[0]), "weights of one name twice"),
        (lambda graph: graph.node[-2].input.__delitem__(slice(1, 3)), "2 missing (first fc8.weight)"),
        (lambda graph: graph.node[0].attribute.append(helper.make_attribute("group", 2)), "a Conv with group=2"),
        (lambda graph: graph.node[-2].attribute.append(helper.make_attribute("alpha", 0.5)), "a Gemm with alpha=0.5"),
    ],
)
def test_onnx_graphs_that_say_something_else_are_named(tmp_path, change, says):
    assert says in changed_onnx(zfnet512(tmp_path / "w.onnx"), change)
