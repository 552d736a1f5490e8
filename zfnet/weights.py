"""Trained weights in files, with the preprocessing that they were trained with.

Weights are of no use without knowing how their photographs were prepared, so neither is saved or loaded
without the other. A file is known by its content, and none is read in a way that could run code from it.
Weights published under other names are renamed by an adapter: one function in `ADAPTERS`.
"""

import contextlib
import json
import math
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from zfnet.data.preprocessing import Preprocessing
from zfnet.errors import InputError, first_line
from zfnet.files import write_atomically

Model = TypeVar("Model", bound=nn.Module)
MEAN_IMAGE = "preprocessing.mean_image"  # among the tensors of a file that `save` wrote


@dataclass(frozen=True)
class Weights:
    """What a file holds, under the names of the model that it is for."""

    tensors: dict[str, Tensor]
    preprocessing: Preprocessing | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    paddings: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of modules whose own is not the trained one
    modules: dict[str, dict[str, Any]] = field(default_factory=dict)  # what the model has to have, in this order


# --- files, by their content


def _is_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> Weights:
    with safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        stored = file.metadata() or {}
    text, metadata = stored.get("preprocessing"), _decoded(stored)
    paddings = {name: tuple(map(int, padding)) for name, padding in metadata.pop("paddings", {}).items()}
    preprocessing = Preprocessing.from_json(text) if text else None
    if preprocessing and (mean := tensors.pop(MEAN_IMAGE, None)) is not None:
        preprocessing = replace(preprocessing, mean_image=mean)
    return Weights(tensors, preprocessing, metadata, paddings)


def _decoded(stored: dict[str, str]) -> dict[str, Any]:
    metadata: dict[str, Any] = dict(stored)
    for name, text in stored.items():
        with contextlib.suppress(ValueError):  # other libraries' entries are plain strings
            metadata[name] = json.loads(text)
    return metadata


def _is_npz(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return all(name.endswith(".npy") for name in file.namelist())


def _read_npz(path: Path) -> Weights:
    tensors = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            try:
                tensors[name] = torch.from_numpy(arrays[name])
            except ValueError as error:
                if "allow_pickle" not in str(error):
                    raise
                raise InputError(f"{path} is refused: {name} holds Python objects, which could run code") from None
    return Weights(tensors)


def _is_torch(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2).startswith((b"PK", b"\x80"))  # a zip archive or, before torch 1.6, a pickle


def _read_torch(path: Path) -> Weights:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles it then refuses
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its own message says how to load the file all the same
        code = re.search(r"GLOBAL (\S+)", str(error))
        why = f"its {code[1]} could run code" if code else "it is cut short, or a pickle that could run code"
        raise InputError(f"{path} is refused: {why}; save the model's state_dict()") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise InputError(f"{path} holds {type(state).__name__}; save the model's state_dict() instead")
    if other := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise InputError(f"{path} holds more than weights: {other[0]!r} is no tensor; save the state_dict() alone")
    if state and all(name.startswith("module.") for name in state):  # saved from DataParallel
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return Weights(dict(state))


_ZFNET_STEPS = {"Conv": "conv", "Gemm": "fc", "LRN": "norm", "MaxPool": "pool"}
_SILENT_STEPS = ("Relu", "Reshape", "Flatten", "Dropout", "Softmax")


def _is_onnx(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(1) == b"\x08"  # its first field, the version of the format


def _read_onnx(path: Path) -> Weights:
    """A ZFNet's: tensors under the names that `zfnet.ZFNet` has for its layers, and their geometry."""
    try:
        import onnx
    except ImportError:
        raise InputError(f"{path} is read by onnx, which is not installed: pip install 'zfnet[onnx]'") from None
    graph = onnx.load(str(path), load_external_data=False).graph
    there = {entry.name: torch.from_numpy(onnx.numpy_helper.to_array(entry).copy()) for entry in graph.initializer}
    tensors, modules, last = {}, {}, {"conv": 0, "fc": 5}
    for node in graph.node:
        given = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        if node.op_type in _SILENT_STEPS:
            continue
        if node.op_type not in _ZFNET_STEPS:
            raise InputError(f"{path} is no ZFNet: it has {node.op_type}; of ONNX files only ZFNets are read")
        kind = _ZFNET_STEPS[node.op_type]
        if kind in last:
            last[kind] += 1
        name = f"{kind}{last.get(kind, last['conv'])}"
        modules[name] = _geometry(node.op_type, given)
        for part, entry in zip(("weight", "bias"), node.input[1:], strict=False):
            tensors[f"{name}.{part}"] = there[entry]
        if kind == "fc" and not given.get("transB", 0):
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"].T.contiguous()
    return Weights(tensors, modules=modules)


def _geometry(operation: str, given: dict[str, Any]) -> dict[str, Any]:
    """What a step of an ONNX graph says, as attributes of the module that does the same."""
    if operation == "LRN":
        return {"size": given["size"], "alpha": given["alpha"], "beta": given["beta"], "k": given["bias"]}
    if operation == "Gemm":
        return {}
    top, left, bottom, right = given.get("pads", (0, 0, 0, 0))
    geometry = {"kernel_size": tuple(given["kernel_shape"]), "stride": tuple(given["strides"])}
    if operation == "Conv":
        return geometry | {"padding": (top, left) if (top, left) == (bottom, right) else (top, left, bottom, right)}
    return geometry | {"padding": (top, left)}  # beyond the end it is ceil mode: the sizes of maps tell


FORMATS: dict[str, tuple[Callable[[Path], bool], Callable[[Path], Weights]]] = {
    "safetensors": (_is_safetensors, _read_safetensors),
    "npz": (_is_npz, _read_npz),
    "torch": (_is_torch, _read_torch),
    "onnx": (_is_onnx, _read_onnx),
}


# --- weights published under other names

_CAFFE_SQUEEZENET = {"conv1": "features.0", "conv_final": "classifier.1"} | {
    f"fire{fire}/{theirs}": f"features.{place}.{ours}"
    for fire, place in {2: 3, 3: 4, 4: 5, 5: 7, 6: 8, 7: 9, 8: 10, 9: 12}.items()
    for theirs, ours in {"conv1x1_1": "squeeze", "conv1x1_2": "expand1x1", "conv3x3_2": "expand3x3"}.items()
}


def _from_caffe_squeezenet(tensors: dict[str, Tensor]) -> Weights | None:
    """SqueezeNet v1.0 (Iandola 2016) from Caffe, for torchvision's `squeezenet1_0`.

    Its last convolution pads by 1, torchvision's by 0: the weights bring the padding they were trained with.
    """
    if "conv_final/weight" not in tensors and "fire2/conv1x1_1/weight" not in tensors:
        return None
    renamed = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition("/")
        renamed[f"{_CAFFE_SQUEEZENET[layer]}.{kind}" if layer in _CAFFE_SQUEEZENET else name] = tensor
    preprocessing = Preprocessing(
        size=227, resize=256, mode="warp", channels="BGR", scale=255.0, mean=(104.0, 117.0, 123.0), std=(1.0, 1.0, 1.0)
    )
    return Weights(renamed, preprocessing, paddings={"classifier.1": (1, 1)})


_PYTORCHCV_ZFNET = {
    f"features.stage{stage}.unit{unit}.conv": f"conv{n}"
    for n, (stage, unit) in enumerate([(1, 1), (2, 1), (3, 1), (3, 2), (3, 3)], 1)
} | {"output.fc1.fc": "fc6", "output.fc2.fc": "fc7", "output.fc3": "fc8"}


def _from_pytorchcv_zfnet(tensors: dict[str, Tensor]) -> Weights | None:
    """pytorchcv's `zfnet` and `zfnetb`, for ZFNet with norm="before pool" and torch's own alpha, a fifth of ours."""
    first = tensors.get("features.stage1.unit1.conv.weight")
    if first is None or first.shape[2:] != (7, 7) or "output.fc3.weight" not in tensors:
        return None
    renamed = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        renamed[f"{_PYTORCHCV_ZFNET[layer]}.{kind}" if layer in _PYTORCHCV_ZFNET else name] = tensor
    norm: dict[str, Any] = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0}
    conv1, conv2 = ({"stride": (2, 2), "padding": (p, p)} for p in (1, 0))
    modules: dict[str, dict[str, Any]] = {
        "conv1": conv1,
        "norm1": norm,
        "pool1": {},
        "conv2": conv2,
        "norm2": norm,
        "pool2": {},
    }
    return Weights(renamed, Preprocessing(), modules=modules)


# each takes the tensors of a file and gives Weights, or None if their names are not the ones it knows
ADAPTERS: dict[str, Callable[[dict[str, Tensor]], Weights | None]] = {
    "SqueezeNet v1.0 (Caffe)": _from_caffe_squeezenet,
    "ZFNet (pytorchcv)": _from_pytorchcv_zfnet,
}


# --- load and save


@contextlib.contextmanager
def _in_one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # what a damaged file makes four libraries raise
        reason = first_line(error)
        raise InputError(f"cannot read weights from {path}, it may be cut short or damaged: {reason}") from None


def _read(path: Path) -> Weights:
    with _in_one_line(path):
        for recognises, read in FORMATS.values():
            if recognises(path):
                weights = read(path)
                adapted = (adapt(weights.tensors) for adapt in ADAPTERS.values())
                return next(filter(None, adapted), weights)
    raise InputError(f"{path} is no file of weights; known are {', '.join(FORMATS)}")


def _first(names: list[str], what: str) -> list[str]:
    return [f"{len(names)} {what} (first {names[0]})"] if names else []


def _other_modules(model: nn.Module, modules: dict[str, dict[str, Any]]) -> list[str]:
    """Where the model's modules are not those that the weights were trained in, in words."""
    there = dict(model.named_modules())
    if missing := [name for name in modules if name not in there]:
        return _first(missing, "missing")
    if list(modules) != (order := [name for name in there if name in modules]):
        places = zip(modules, order, strict=True)
        theirs, ours = next((theirs, ours) for theirs, ours in places if theirs != ours)
        return [f"{theirs} comes before {ours} in the file, and after it in the model"]
    for name, wanted in modules.items():
        for attribute, value in wanted.items():
            own: Any = getattr(there[name], attribute)
            own = (own, own) if isinstance(value, tuple) and isinstance(own, int) else own
            close = isinstance(value, float) and math.isclose(own, value, rel_tol=1e-6)  # a file's floats are single
            if own != value and not close:
                shown = f"{value:.6g}" if isinstance(value, float) else value
                return [f"{name}.{attribute} is {shown} in the file, {own} in the model"]
    return []


def _check_fit(model: nn.Module, weights: Weights, path: Path) -> None:
    wanted, given = model.state_dict(), weights.tensors
    # older files lack BatchNorm's counters, on which no output depends; torch then leaves the model's
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in wanted]
    misshapen = [
        f"{name}: {tuple(given[name].shape)} in the file, {tuple(wanted[name].shape)} in the model"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    unexpected = unexpected or [f"padding of {n}" for n in weights.paddings if f"{n}.weight" not in wanted]
    problems = _first(missing, "missing") + _first(unexpected, "unexpected") + _first(misshapen, "misshapen")
    problems = problems or _other_modules(model, weights.modules)
    if problems:
        saved = weights.metadata.get("architecture")
        origin = f"; it was saved from {json.dumps(saved)}" if saved else ""
        raise InputError(f"{path} does not fit {type(model).__name__}: {', '.join(problems)}{origin}")


def _check_finite(tensors: dict[str, Tensor], where: str) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise InputError(f"{where}: {name} has values that are not finite")


def load(
    model: Model,
    path: str | os.PathLike[str],
    *,
    preprocessing: Preprocessing | None = None,
    default_preprocessing: Preprocessing | None = None,
) -> Model:
    """Fill `model` with the weights of a file and set `model.preprocessing`; return it.

    The file is one that `save` wrote, another safetensors file, a state dict of `torch.save` (or a dict with
    one under "state_dict"), an npz archive, a ZFNet's ONNX file, or weights that `ADAPTERS` knows. What `save` wrote
    and what an adapter knows says how photographs are prepared. For other files give `preprocessing`, `Preprocessing()`
    for torchvision's ImageNet weights: none is assumed, because with a wrong one a network still answers,
    only worse; `default_preprocessing` is taken for a file that says nothing. InputError if
    names, shapes, values or the file are not right; the model is then as it was.
    """
    path = Path(path)
    weights = _read(path)
    if preprocessing is None:
        preprocessing = weights.preprocessing or default_preprocessing
    elif weights.preprocessing not in (None, preprocessing):
        raise InputError(f"{path} has its own preprocessing; leave out preprocessing=, or change it afterwards")
    if preprocessing is None:
        raise InputError(
            f"{path} does not say how its photographs were prepared; give preprocessing="
            " (Preprocessing() for torchvision's ImageNet weights)"
        )
    _check_fit(model, weights, path)
    state = model.state_dict()
    tensors = {name: tensor.to(state[name].dtype) for name, tensor in weights.tensors.items()}
    _check_finite(tensors, str(path))
    model.load_state_dict(tensors)  # copies into the parameters, which keep their device and memory format
    for name, padding in weights.paddings.items():
        model.get_submodule(name).padding = padding  # type: ignore[assignment]
    model.paddings = weights.paddings  # type: ignore[assignment]
    model.preprocessing = preprocessing  # type: ignore[assignment]
    return model


def save(model: nn.Module, path: str | os.PathLike[str], **metadata: Any) -> None:
    """Write a model's weights, its `preprocessing` and JSON values as safetensors, whole or not at all.

    `metadata` (`architecture`, `classes`, ...) is what `read_metadata` returns. InputError if the model has
    no `preprocessing` (set it, or give it here), a value is not finite, or the file cannot be written.
    """
    path = Path(path)
    preprocessing = metadata.pop("preprocessing", getattr(model, "preprocessing", None))
    if not isinstance(preprocessing, Preprocessing):
        raise InputError("the model has no preprocessing; set model.preprocessing or give preprocessing=")
    # copies, because safetensors refuses tensors that share memory
    tensors = {
        name: tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
        for name, tensor in model.state_dict().items()
    }
    if preprocessing.mean_image is not None:
        tensors[MEAN_IMAGE] = preprocessing.mean_image.cpu().contiguous()
    _check_finite(tensors, f"{path} not written")
    if getattr(model, "paddings", None):
        metadata["paddings"] = model.paddings
    stored = {"preprocessing": preprocessing.to_json()}
    for name, value in metadata.items():
        try:
            stored[name] = json.dumps(value)
        except (TypeError, ValueError) as error:
            raise InputError(f"metadata {name} is not JSON: {error}") from None
    write_atomically(path, safetensors.torch.save(tensors, stored))


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save` was told about the model, and its preprocessing, as JSON values; {} for other files."""
    path = Path(path)
    with _in_one_line(path):
        if not _is_safetensors(path):
            return {}
        with safetensors.safe_open(path, "pt") as file:
            return _decoded(file.metadata() or {})
    return {}
