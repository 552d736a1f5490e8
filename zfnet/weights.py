"""Trained weights in files, with the preprocessing that they were trained with.

Weights are of no use without knowing how their photographs were prepared, so neither is saved or loaded
without the other. A file's format is recognised by its content, and none is read in a way that could run code from it.
Weights published under other names are renamed by an adapter: one function in `ADAPTERS`.
"""

import contextlib
import hashlib
import json
import math
import os
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from zfnet.data.preprocessing import Model, Preprocessing
from zfnet.errors import InputError, first_line, unknown_name
from zfnet.files import write_atomically

MEAN_IMAGE = "preprocessing.mean_image"  # among the tensors of a file that `save` wrote
PREFIXES = ("module.", "model.", "_orig_mod.", "net.")  # DataParallel, Lightning, torch.compile, own wrappers
ENTRIES = ("state_dict", "model_state_dict", "model", "net", "weights")  # of checkpoints
AVERAGED = ("model_ema", "ema", "state_dict_ema")  # entries with an exponential moving average of the weights
# What often stands beside weights. None of it is built: each is read as a `_Beside`, so that nothing of it can run.
BESIDE = ("argparse.Namespace", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")


@dataclass(frozen=True)
class Weights:
    """What a file holds, under the names of the model that it is for."""

    tensors: dict[str, Tensor]
    preprocessing: Preprocessing | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    paddings: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of modules whose own is not the trained one
    modules: dict[str, dict[str, Any]] = field(default_factory=dict)  # what the model has to have, in this order


# --- files, by their content


@contextlib.contextmanager
def _reading(path: Path, *damaged: type[Exception]) -> Iterator[None]:
    """One line that names the file for all that can be wrong with it; `damaged` is what a library raises then."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    except damaged as error:
        reason = first_line(error)
        raise InputError(f"cannot read weights from {path}, it may be cut short or damaged: {reason}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {first_line(error)}") from None


def _read_safetensors(path: Path) -> dict[str, Weights]:
    with _reading(path, safetensors.SafetensorError), safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        stored = file.metadata() or {}
    metadata = _decoded(stored)
    if not stored.get("preprocessing"):
        return {"": Weights(tensors, None, metadata)}
    with _reading(path, AttributeError, TypeError, ValueError):
        paddings = {name: tuple(map(int, padding)) for name, padding in metadata.pop("paddings", {}).items()}
    mean = tensors.pop(MEAN_IMAGE, None)
    preprocessing = replace(Preprocessing.from_json(stored["preprocessing"]), mean_image=mean)
    return {"": Weights(tensors, preprocessing, metadata, paddings)}


def _decoded(stored: dict[str, str]) -> dict[str, Any]:
    metadata: dict[str, Any] = dict(stored)
    for name, text in stored.items():
        with contextlib.suppress(ValueError):  # other libraries' entries are plain strings
            metadata[name] = json.loads(text)
    return metadata


def _archive(path: Path) -> list[str]:
    """The names in a zip archive; none where it is damaged or something else."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error):
        return []


def _read_npz(path: Path) -> dict[str, Weights]:
    damaged = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, SyntaxError, ValueError)
    tensors = {}
    with _reading(path, *damaged), np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            try:
                tensors[name] = torch.from_numpy(arrays[name])
            except ValueError as error:
                if "allow_pickle" not in str(error):
                    raise
                raise InputError(f"{path} is refused: {name} holds Python objects, which could run code") from None
    return {"": Weights(tensors)}


class _Beside:
    """What stands in a checkpoint beside its weights, its content forgotten."""

    def __new__(cls, *_: Any) -> "_Beside":
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass


def _read_torch(path: Path) -> dict[str, Weights]:
    if any(name.endswith("/constants.pkl") for name in _archive(path)):
        raise InputError(f"{path} is a TorchScript archive; load it with torch.jit.load and save its state_dict()")
    beside = torch.serialization.safe_globals([(_Beside, name) for name in BESIDE])
    damaged = (RuntimeError, AssertionError, AttributeError, EOFError, LookupError, TypeError, ValueError, struct.error)
    try:
        with warnings.catch_warnings(), beside, _reading(path, *damaged):
            warnings.simplefilter("ignore")  # of pickles it then refuses
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its own message says how to load the file all the same
        code = re.search(r"GLOBAL (\S+)", str(error))
        why = f"its {code[1]} could run code" if code else "it is cut short, or a pickle that could run code"
        raise InputError(f"{path} is refused: {why}; save the model's state_dict()") from None
    states = _entries(content)
    problems = {entry: _not_weights(state) for entry, state in states.items()}
    weights = {entry: Weights(dict(state)) for entry, state in states.items() if not problems[entry]}
    if not weights:
        entry, problem = next(iter(problems.items()))
        raise InputError(f"{path}{f' under {entry!r}' * bool(entry)} holds {problem}")
    return weights


def _entries(content: Any, depth: int = 2) -> dict[str, Any]:
    """What may be state dicts in a checkpoint, by their entry; "" for a checkpoint that is itself a state dict."""
    states: dict[str, Any] = {}
    if isinstance(content, dict) and depth:
        for name in (*ENTRIES, *AVERAGED):
            if isinstance(content.get(name), dict):
                inner = _entries(content[name], depth - 1)
                states |= {f"{name}.{entry}" if entry else name: state for entry, state in inner.items()}
    if not states and isinstance(content, dict):
        content = {name: value for name, value in content.items() if name != "n_averaged"}  # AveragedModel's counter
    return states or {"": content}


def _not_weights(state: Any) -> str:
    """Why what a checkpoint holds is no state dict; nothing if it is one."""
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        return f"{type(state).__name__}; save the model's state_dict() instead"
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    return f"more than weights: {others[0]!r} is no tensor; save the state_dict() alone" if others else ""


_ZFNET_STEPS = {"Conv": "conv", "Gemm": "fc", "LRN": "norm", "MaxPool": "pool"}
_SILENT_STEPS = ("Relu", "Reshape", "Flatten", "Dropout", "Softmax")


def _read_onnx(path: Path) -> dict[str, Weights]:
    """A ZFNet's: tensors under the names that `zfnet.ZFNet` has for its layers, and their geometry."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise InputError(f"{path} is read by onnx, which is not installed: pip install 'zfnet[onnx]'") from None
    with _reading(path, DecodeError, ValueError, TypeError):
        graph = onnx.load(str(path), load_external_data=False).graph
        values = {entry.name: torch.from_numpy(onnx.numpy_helper.to_array(entry).copy()) for entry in graph.initializer}
    tensors, modules, last = {}, {}, {"conv": 0, "fc": 5}
    for node in graph.node:
        if node.op_type in _SILENT_STEPS:
            continue
        if node.op_type not in _ZFNET_STEPS:
            raise InputError(f"{path} is no ZFNet: it has {node.op_type}; of ONNX files only ZFNets are read")
        attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        kind = _ZFNET_STEPS[node.op_type]
        if kind in last:
            last[kind] += 1
        name = f"{kind}{last.get(kind, last['conv'])}"
        with _reading(path, KeyError, ValueError):
            modules[name] = _geometry(node.op_type, attributes)
            for part, entry in zip(("weight", "bias"), node.input[1:], strict=False):
                tensors[f"{name}.{part}"] = values[entry]
        if kind == "fc" and not attributes.get("transB", 0):
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"].T.contiguous()
    return {"": Weights(tensors, modules=modules)}


def _geometry(operation: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """What a step of an ONNX graph says, as attributes of the module that does the same."""
    if operation == "LRN":
        return {"k": attributes["bias"]} | {name: attributes[name] for name in ("size", "alpha", "beta")}
    if operation == "Gemm":
        return {}
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    # pooling beyond the end is ceil mode: the sizes of maps tell
    padding = (top, left) if operation == "MaxPool" or (top, left) == (bottom, right) else (top, left, bottom, right)
    return {
        "kernel_size": tuple(attributes["kernel_shape"]),
        "stride": tuple(attributes["strides"]),
        "padding": padding,
    }


def _read(path: Path) -> dict[str, Weights]:
    """The weights in a file, by the entry of a checkpoint; "" in files that hold nothing else."""
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{":
        return _read_safetensors(path)
    if start.startswith((b"PK", b"\x80")):  # a zip archive or, before torch 1.6, a pickle
        names = _archive(path)
        return _read_npz(path) if names and all(name.endswith(".npy") for name in names) else _read_torch(path)
    if start.startswith(b"\x08"):  # the first field of ONNX, the version of the format
        return _read_onnx(path)
    raise InputError(f"{path} is no file of weights; known are safetensors, npz, torch, onnx")


# --- weights published under other names


def _renamed(tensors: dict[str, Tensor], layers: dict[str, str], separator: str) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(separator)
        renamed[f"{layers[layer]}.{kind}" if layer in layers else name] = tensor
    return renamed


_CAFFE_SQUEEZENET = {"conv1": "features.0", "conv_final": "classifier.1"} | {
    f"fire{fire}/{theirs}": f"features.{index}.{ours}"
    for fire, index in {2: 3, 3: 4, 4: 5, 5: 7, 6: 8, 7: 9, 8: 10, 9: 12}.items()
    for theirs, ours in {"conv1x1_1": "squeeze", "conv1x1_2": "expand1x1", "conv3x3_2": "expand3x3"}.items()
}


def _from_caffe_squeezenet(tensors: dict[str, Tensor]) -> Weights | None:
    """SqueezeNet v1.0 (Iandola 2016) from Caffe, for torchvision's `squeezenet1_0`.

    Its last convolution pads by 1, torchvision's by 0: the weights bring the padding they were trained with.
    """
    if "conv_final/weight" not in tensors and "fire2/conv1x1_1/weight" not in tensors:
        return None
    preprocessing = Preprocessing(
        size=227, resize=256, mode="warp", channels="BGR", scale=255.0, mean=(104.0, 117.0, 123.0), std=1.0
    )
    return Weights(_renamed(tensors, _CAFFE_SQUEEZENET, "/"), preprocessing, paddings={"classifier.1": (1, 1)})


_PYTORCHCV_ZFNET = {
    f"features.stage{stage}.unit{unit}.conv": f"conv{n}"
    for n, (stage, unit) in enumerate([(1, 1), (2, 1), (3, 1), (3, 2), (3, 3)], 1)
} | {"output.fc1.fc": "fc6", "output.fc2.fc": "fc7", "output.fc3": "fc8"}


def _from_pytorchcv_zfnet(tensors: dict[str, Tensor]) -> Weights | None:
    """pytorchcv's `zfnet` and `zfnetb`, for ZFNet with norm="before pool" and torch's own alpha, a fifth of ours."""
    first = tensors.get("features.stage1.unit1.conv.weight")
    if first is None or first.shape[2:] != (7, 7) or "output.fc3.weight" not in tensors:
        return None
    modules: dict[str, dict[str, Any]] = {}
    for n, padding in ((1, (1, 1)), (2, (0, 0))):
        modules[f"conv{n}"] = {"stride": (2, 2), "padding": padding}
        modules[f"norm{n}"] = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0}
        modules[f"pool{n}"] = {}
    return Weights(_renamed(tensors, _PYTORCHCV_ZFNET, "."), Preprocessing(), modules=modules)


# each takes the tensors of a file and gives Weights, or None if their names are not the ones it knows
ADAPTERS: dict[str, Callable[[dict[str, Tensor]], Weights | None]] = {
    "SqueezeNet v1.0 (Caffe)": _from_caffe_squeezenet,
    "ZFNet (pytorchcv)": _from_pytorchcv_zfnet,
}


# --- load and save


def _versions(weights: Weights) -> Iterator[Weights]:
    """The weights under the names of the file, then without each prefix that all names share; renamed by adapters."""
    tensors, prefix = weights.tensors, ""
    while True:
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        adapted = (adapt(tensors) for adapt in ADAPTERS.values())
        yield next(filter(None, adapted), replace(weights, tensors=tensors))
        shared = [p for p in PREFIXES if tensors and all(name.startswith(p) for name in tensors)]
        if not shared:
            return
        prefix = shared[0]


def _weights_for(model: nn.Module, path: Path, entry: str | None) -> Weights:
    """The weights of a file that are the model's; InputError if there are none, or several."""
    entries = _read(path)
    if entry is not None and entry not in entries:
        raise unknown_name(f"entry of {path}", entry, entries)
    plain = [name for name in entries if name.split(".")[-1] not in AVERAGED]
    names = [entry] if entry is not None else plain or list(entries)
    nearest = {
        name: min(_versions(entries[name]), key=lambda w: sum(map(len, _misfits(model, w).values()))) for name in names
    }
    fitting = [name for name, weights in nearest.items() if not _misfits(model, weights)]
    if len(fitting) > 1:
        raise InputError(f"{path} holds {len(fitting)} sets of weights that fit: give entry={' or '.join(fitting)}")
    name = (fitting or names)[0]
    weights = nearest[name]
    problems = [f"{len(misfits)} {kind} (first {misfits[0]})" for kind, misfits in _misfits(model, weights).items()]
    if problems := problems or _other_modules(model, weights.modules):
        saved = weights.metadata.get("architecture")
        origin = f"; it was saved from {json.dumps(saved)}" if saved else ""
        raise InputError(f"{path} does not fit {type(model).__name__}: {', '.join(problems)}{origin}")
    if name not in plain:
        warnings.warn(f"the EMA weights of {path} are used ({name})", stacklevel=3)
    return weights


def _other_modules(model: nn.Module, expected: dict[str, dict[str, Any]]) -> list[str]:
    """Where the model's modules are not those that the weights were trained in, in words."""
    modules = dict(model.named_modules())
    if missing := [name for name in expected if name not in modules]:
        return [f"{len(missing)} missing (first {missing[0]})"]
    for first, second in zip(expected, [name for name in modules if name in expected], strict=True):
        if first != second:
            return [f"{first} comes before {second} in the file, and after it in the model"]
    for name, attributes in expected.items():
        for attribute, value in attributes.items():
            own: Any = getattr(modules[name], attribute)
            own = (own, own) if isinstance(value, tuple) and isinstance(own, int) else own
            close = isinstance(value, float) and math.isclose(own, value, rel_tol=1e-6)  # a file's floats are single
            if own != value and not close:
                shown = f"{value:.6g}" if isinstance(value, float) else value
                return [f"{name}.{attribute} is {shown} in the file, {own} in the model"]
    return []


def _misfits(model: nn.Module, weights: Weights) -> dict[str, list[str]]:
    """The names of tensors that are missing, unexpected, and misshapen; no entry for what none is."""
    own, tensors = model.state_dict(), weights.tensors
    # older files lack BatchNorm's counters, on which no output depends; torch then leaves the model's
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in tensors if name not in own]
    unexpected = unexpected or [f"padding of {n}" for n in weights.paddings if f"{n}.weight" not in own]
    misshapen = [
        f"{name}: {tuple(tensors[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    return {kind: names for kind, names in kinds.items() if names}


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
    entry: str | None = None,
    sha256: str | None = None,
) -> Model:
    """Fill a model with the weights of a file and set `model.preprocessing`; return it.

    There is no default for the preprocessing, because a wrong one degrades results silently. Files that `save` wrote
    and weights that `ADAPTERS` knows have their own. InputError if a file cannot be read or does not fit.

    Args:
        model: what the weights are for; left as it was if they do not fit.
        path: a file that `save` wrote, another safetensors file, a state dict or checkpoint of `torch.save`, an npz
            archive, or a ZFNet's ONNX file. Prefixes of wrappers (`module.`, `_orig_mod.`, ...) are removed.
        preprocessing: how photographs were prepared, for files that do not say so; `Preprocessing()` is that of
            torchvision's ImageNet weights.
        default_preprocessing: the same, but the file's own comes first.
        entry: which entry of a checkpoint; None: the only one that fits. An entry with averaged (EMA) weights is used
            only if the file has no others, with a warning.
        sha256: of the file, in hexadecimal; None: not checked.
    """
    path = Path(os.path.expanduser(path))
    with _reading(path):
        if sha256 is not None and (actual := hashlib.sha256(path.read_bytes()).hexdigest()) != sha256.lower():
            raise InputError(f"{path} has SHA-256 {actual}, not {sha256}: another file, or a damaged one")
        weights = _weights_for(model, path, entry)
    own = weights.preprocessing
    if preprocessing is not None and own is not None and own.identity() != preprocessing.identity():
        raise InputError(f"{path} has its own preprocessing; leave out preprocessing=, or change it afterwards")
    if (preprocessing := preprocessing or own or default_preprocessing) is None:
        raise InputError(
            f"{path} does not say how its photographs were prepared; give preprocessing="
            " (Preprocessing() for torchvision's ImageNet weights)"
        )
    state = model.state_dict()
    tensors = {name: tensor.to(state[name].dtype) for name, tensor in weights.tensors.items()}
    _check_finite(tensors, str(path))
    model.load_state_dict(tensors)  # copies into the parameters, which keep their device and memory format
    for name, padding in weights.paddings.items():
        model.get_submodule(name).padding = padding  # type: ignore[assignment]
    model.paddings = weights.paddings  # type: ignore[assignment]
    return preprocessing.attach(model)


def save(model: nn.Module, path: str | os.PathLike[str], **metadata: Any) -> None:
    """Write a model's weights, its `preprocessing` and JSON values as safetensors, atomically.

    The metadata is what `read_metadata` returns: `architecture`, `classes`, ..., and `preprocessing` if the model has
    none. InputError if there is none at all, for a value that is not finite or not JSON, and if it cannot be written.
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
    path = Path(os.path.expanduser(path))
    with _reading(path, safetensors.SafetensorError):
        with open(path, "rb") as file:
            if file.read(9)[8:] != b"{":
                return {}
        with safetensors.safe_open(path, "pt") as content:
            return _decoded(content.metadata() or {})
