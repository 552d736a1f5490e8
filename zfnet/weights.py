"""Trained weights in files, with the preprocessing that they were trained with.

Weights are of no use without knowing how their photographs were prepared, so neither is saved or loaded
without the other. A file's format is recognised by its content, and none is read in a way that could run code from it,
or that takes much more memory than the model. Files that `save` wrote have a digest of every byte, which finds damage.
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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from zfnet.data.preprocessing import Model, Preprocessing
from zfnet.errors import InputError, first_line, unknown_name
from zfnet.files import declared_size, open_regular, write_atomically
from zfnet.identity import BLANK, Damaged, digest, is_stamped, stamped

MEAN_IMAGE = "preprocessing.mean_image"  # among the tensors of a file that `save` wrote
DIGEST, TENSORS = "zfnet.digest", "zfnet.tensors"  # among its metadata: digests of the header and of the tensors
HEADER = 2**24  # bytes of a header that is read
SPARE = 2**28  # bytes that a file may hold beside 16 times what the model does: optimizers, averages, double precision
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
        raise type(error)(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {first_line(error)}") from None
    except damaged as error:
        reason = first_line(error)
        raise InputError(f"cannot read weights from {path}, it may be cut short or damaged: {reason}") from None


def _check_size(path: Path, size: int, most: int) -> None:
    if size > most:
        sizes = f"{size / 2**20:,.0f} MiB, and {most / 2**20:,.0f} MiB is the most that is read for this model"
        raise InputError(f"{path} says that it holds {sizes}; save the weights alone")


def _stored(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file. Damaged if it has a digest and any bit of its header was changed."""
    with _reading(path, Exception):
        with open_regular(path) as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            _check_size(path, length, HEADER)
            header = file.read(length)
        metadata = json.loads(header).get("__metadata__", {})
        stored = {str(name): str(value) for name, value in metadata.items()}
    if DIGEST not in stored and "preprocessing" in stored:
        advice = "its weights may be damaged: check them, and save them again"
        warnings.warn(f"{path} has no digest, as files of an older version: {advice}", stacklevel=4)
    elif DIGEST in stored and not is_stamped(start + header, stored[DIGEST]):
        raise Damaged(f"{path} is damaged: its header does not match its checksum")
    return stored


def _read_safetensors(path: Path, most: int) -> dict[str, Weights]:
    stored = _stored(path)
    with _reading(path, Exception), safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if DIGEST in stored and digest(tensors) != stored.get(TENSORS):
            raise Damaged(f"{path} is damaged: its weights do not match their checksum")
    metadata = _decoded(stored)
    if "preprocessing" not in stored:
        return {"": Weights(tensors, None, metadata)}
    with _reading(path, Exception):
        paddings = _paddings(metadata.pop("paddings", {}))
        preprocessing = _preprocessing(stored["preprocessing"], tensors.pop(MEAN_IMAGE, None))
    return {"": Weights(tensors, preprocessing, metadata, paddings)}


def _decoded(stored: dict[str, str]) -> dict[str, Any]:
    metadata: dict[str, Any] = {name: text for name, text in stored.items() if name not in (DIGEST, TENSORS)}
    for name, text in metadata.items():
        with contextlib.suppress(ValueError, RecursionError):  # other libraries' entries are plain strings
            metadata[name] = json.loads(text)
    return metadata


def _paddings(stored: Any) -> dict[str, tuple[int, ...]]:
    if not isinstance(stored, dict):
        raise InputError(f"its paddings are a {type(stored).__name__}")
    for name, padding in stored.items():
        if not isinstance(padding, list) or not all(type(n) is int and 0 <= n < 1000 for n in padding):
            raise InputError(f"its padding of {_short(name)} is no list of pixels")
    return {name: tuple(padding) for name, padding in stored.items()}


def _preprocessing(text: str, mean_image: Tensor | None) -> Preprocessing:
    settings = json.loads(text)
    if isinstance(settings, dict) and settings.get("channels", "RGB") not in ("RGB", "BGR", "grey"):
        _check_count(settings.get("channels"))
    preprocessing = Preprocessing.from_json(text)
    if mean_image is not None:
        size, shape = (preprocessing.channel_count, *preprocessing.image_size), tuple(mean_image.shape)
        fits = len(shape) == 3 and shape[0] == size[0] and shape[1] >= size[1] and shape[2] >= size[2]
        if not fits or mean_image.dtype != torch.float32:
            raise InputError(f"its mean image is {shape} of {mean_image.dtype}, for images {size}")
        _check_finite({MEAN_IMAGE: mean_image}, "its preprocessing")
    return replace(preprocessing, mean_image=mean_image)


def _check_count(channels: Any) -> None:
    if type(channels) is not int or not 0 < channels < 2**16:  # each has a mean, which is kept
        raise InputError(f"its preprocessing has no number of channels below {2**16}")


def _archive(path: Path) -> list[str]:
    """The names in a zip archive; none where it is damaged or something else. InputError if one is there twice."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error):
        return []
    if len(set(names)) < len(names):  # readers differ in which they take
        raise InputError(f"{path} is damaged: it has {_short(max(names, key=names.count))} twice")
    return names


def _check_archive(path: Path) -> None:
    """InputError unless every entry of a zip archive matches its checksum, which torch does not look at."""
    with _reading(path, Exception), zipfile.ZipFile(path) as archive:
        if (name := archive.testzip()) is not None:
            raise Damaged(f"{path} is damaged: {_short(name)} does not match its checksum; fetch or save it again")


def _read_npz(path: Path, most: int) -> dict[str, Weights]:
    with open_regular(path) as file:
        _check_size(path, declared_size(file), most)
    tensors = {}
    with _reading(path, Exception):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as stream:
                    _check_array(path, _short(entry.filename), entry.file_size, stream)
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                array = arrays[name]
                tensors[name] = torch.from_numpy(np.asarray(array, array.dtype.newbyteorder("=")))
    return {"": Weights(tensors)}


def _check_array(path: Path, name: str, size: int, file: Any) -> None:
    """InputError for an array of objects, and for one whose header does not say the size that its file has."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise InputError(f"{name} is of the unknown version {version}")
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise InputError(f"{path} is refused: {name} holds Python objects, which could run code")
    if math.prod(shape) * dtype.itemsize != size - file.tell() or min(shape, default=0) < 0:
        raise InputError(f"{name} says that it is {shape} of {dtype}, but its data are {size - file.tell():,} bytes")


class _Beside:
    """What stands in a checkpoint beside its weights, its content forgotten."""

    def __new__(cls, *_: Any) -> "_Beside":
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass


def _read_torch(path: Path, most: int) -> dict[str, Weights]:
    if any(name.endswith("/constants.pkl") for name in _archive(path)):
        raise InputError(f"{path} is a TorchScript archive; load it with torch.jit.load and save its state_dict()")
    with open_regular(path) as file:
        _check_size(path, max(declared_size(file), os.fstat(file.fileno()).st_size), most)
    beside = torch.serialization.safe_globals([(_Beside, name) for name in BESIDE])
    with warnings.catch_warnings(), beside, _reading(path, Exception):
        warnings.simplefilter("ignore")  # of pickles it then refuses
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # its own message says how to load the file all the same
            code = re.search(r"GLOBAL (\S+)", str(error))
            why = (
                f"its {_short(code[1])} could run code" if code else "it is cut short, or a pickle that could run code"
            )
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
    for name, value in state.items():
        if not isinstance(value, Tensor):
            return f"more than weights: {_short(name)!r} is no tensor; save the state_dict() alone"
        if kind := _unusual(value):
            return f"a {kind} tensor, {_short(name)!r}; save dense weights of floats"
    return ""


def _unusual(tensor: Tensor) -> str:
    """What keeps a tensor from being a plain array of numbers; nothing if it is one."""
    if tensor.is_nested:
        return "nested"
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
        return type(tensor).__name__
    if tensor.is_quantized:
        return "quantised"
    if tensor.is_meta:
        return "meta (without data)"
    return "" if tensor.layout == torch.strided else "sparse"


_ZFNET_STEPS = {"Conv": "conv", "Gemm": "fc", "LRN": "norm", "MaxPool": "pool"}
_USUAL: dict[str, dict[str, Any]] = {  # attributes whose other values are refused
    "Conv": {"dilations": [1, 1], "group": 1, "auto_pad": b"NOTSET"},
    "Gemm": {"alpha": 1.0, "beta": 1.0, "transA": 0},
    "MaxPool": {"dilations": [1, 1], "auto_pad": b"NOTSET", "storage_order": 0},
}
_SILENT_STEPS = ("Relu", "Reshape", "Flatten", "Dropout", "Softmax")


def _read_onnx(path: Path, most: int) -> dict[str, Weights]:
    """A ZFNet's: tensors under the names that `zfnet.ZFNet` has for its layers, and their geometry."""
    try:
        import onnx
    except ImportError:
        raise InputError(f"{path} is read by onnx, which is not installed: pip install 'zfnet[onnx]'") from None
    _check_size(path, path.stat().st_size, most // 4)  # it holds nothing but the weights, and is kept twice
    with _reading(path, Exception):
        graph = onnx.load(str(path), load_external_data=False).graph
        for entry in graph.initializer:
            if entry.external_data or entry.data_location == onnx.TensorProto.EXTERNAL:
                raise InputError(f"{path} is refused: {_short(entry.name)} is in another file; save all in one")
        values = {entry.name: torch.from_numpy(onnx.numpy_helper.to_array(entry).copy()) for entry in graph.initializer}
        return {"": _of_nodes(path, graph.node, values, onnx.helper.get_attribute_value)}


def _of_nodes(path: Path, nodes: Iterable[Any], values: dict[str, Tensor], value_of: Callable[[Any], Any]) -> Weights:
    tensors, modules, last = {}, {}, {"conv": 0, "fc": 5}
    for node in nodes:
        if node.op_type in _SILENT_STEPS:
            continue
        if node.op_type not in _ZFNET_STEPS:
            kind = _short(node.op_type)
            raise InputError(f"{path} is no ZFNet: it has {kind}; of ONNX files only ZFNets are read")
        attributes = {entry.name: value_of(entry) for entry in node.attribute}
        kind = _ZFNET_STEPS[node.op_type]
        if kind in last:
            last[kind] += 1
        name = f"{kind}{last.get(kind, last['conv'])}"
        modules[name] = _geometry(node.op_type, attributes)
        for part, entry in zip(("weight", "bias"), node.input[1:], strict=False):
            tensors[f"{name}.{part}"] = values[entry]
        if kind == "fc" and not attributes.get("transB", 0):
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"].T.contiguous()
    return Weights(tensors, modules=modules)


def _geometry(operation: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """What a step of an ONNX graph says, as attributes of the module that does the same."""
    if operation == "LRN":
        return {"k": attributes["bias"]} | {name: attributes[name] for name in ("size", "alpha", "beta")}
    others = [name for name, usual in _USUAL[operation].items() if attributes.get(name, usual) != usual]
    if others:
        raise InputError(f"it has a {operation} with {others[0]}={attributes[others[0]]}, which ZFNet has not")
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


def _read(path: Path, most: int) -> dict[str, Weights]:
    """The weights in a file of so many bytes at most, by the entry of a checkpoint; "" in files of nothing else."""
    with open_regular(path) as file:
        start = file.read(9)
    if start[8:] == b"{":
        return _read_safetensors(path, most)
    if start.startswith((b"PK", b"\x80")):  # a zip archive or, before torch 1.6, a pickle
        names = _archive(path)
        read = _read_npz if names and all(name.endswith(".npy") for name in names) else _read_torch
        weights = read(path, most)
        if names:
            _check_archive(path)
        return weights
    if start.startswith(b"\x08"):  # the first field of ONNX, the version of the format
        return _read_onnx(path, most)
    raise InputError(f"{path} is no file of weights; known are safetensors, npz, torch, onnx")


def _short(name: str) -> str:
    return name if len(name) <= 100 else f"{name[:60]}... ({len(name):,} characters)"


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
    own = _plain_state(model)
    entries = _read(path, SPARE + 16 * sum(tensor.nbytes for tensor in own.values()))
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
        origin = f"; it was saved from {_short(json.dumps(saved))}" if saved else ""
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
            own: Any = getattr(modules[name], attribute, None)
            own = (own, own) if isinstance(value, tuple) and isinstance(own, int) else own
            numbers = isinstance(value, float) and isinstance(own, int | float)
            close = numbers and math.isclose(own, value, rel_tol=1e-6)  # a file's floats are single
            if own != value and not close:
                shown = f"{value:.6g}" if isinstance(value, float) else value
                return [f"{name}.{attribute} is {shown} in the file, {own} in the model"]
    return []


def _plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a model; InputError if weights cannot be copied into one of them."""
    state: dict[str, Any] = model.state_dict(keep_vars=True)
    for name, own in state.items():
        if not isinstance(own, Tensor) or nn.parameter.is_lazy(own) or own.is_meta:
            raise InputError(f"{name} of {type(model).__name__} has no values yet; run the model once on images")
    return {name: own.detach() for name, own in state.items()}


def _misfits(model: nn.Module, weights: Weights) -> dict[str, list[str]]:
    """The names of tensors that are missing, unexpected, misshapen or of another type; no entry for what none is."""
    own, tensors = model.state_dict(), weights.tensors
    # older files lack BatchNorm's counters, on which no output depends; torch then leaves the model's
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    unexpected = [_short(name) for name in tensors if name not in own]
    unexpected = unexpected or [f"padding of {_short(name)}" for name in _wrong_paddings(model, weights.paddings)]
    both = [name for name in own if name in tensors]
    misshapen = [
        f"{name}: {tuple(tensors[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        for name in both
        if tensors[name].shape != own[name].shape
    ]
    mistyped = [
        f"{name}: {tensors[name].dtype} in the file, {own[name].dtype} in the model"
        for name in both
        if not _can_hold(own[name], tensors[name])
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen, "of another type": mistyped}
    return {kind: names for kind, names in kinds.items() if names}


def _can_hold(own: Tensor, other: Tensor) -> bool:
    """Whether numbers of another type can be those of a parameter or buffer; `_converted` compares their values."""
    floats = other.is_floating_point() and other.itemsize > 1  # those of 8 bits need a scale beside them
    if own.is_floating_point():
        return floats
    whole = not (other.is_floating_point() or other.is_complex() or other.dtype == torch.bool)
    return other.dtype == own.dtype or (own.dtype != torch.bool and not own.is_complex() and (whole or floats))


def _converted(tensor: Tensor, dtype: torch.dtype, where: str) -> Tensor:
    converted = tensor.to(dtype)
    if not dtype.is_floating_point and not torch.equal(converted.to(tensor.dtype), tensor):
        raise InputError(f"{where} has values that {dtype} cannot hold")
    return converted


def _wrong_paddings(model: nn.Module, paddings: dict[str, tuple[int, ...]]) -> list[str]:
    """The modules whose padding is not theirs to have."""
    modules = dict(model.named_modules())
    return [
        name
        for name, padding in paddings.items()
        if not isinstance(module := modules.get(name), nn.Conv2d) or module.padding_mode != "zeros" or len(padding) != 2
    ]


def _check_tied(own: dict[str, Tensor], tensors: dict[str, Tensor], where: str) -> None:
    """InputError for two names of one parameter under which a file has different weights."""
    names: dict[Any, str] = {}
    for name, parameter in own.items():
        first = names.setdefault((parameter.data_ptr(), parameter.shape, parameter.stride()), name)
        both = first != name and parameter.numel() and {first, name} <= tensors.keys()
        if both and not torch.equal(tensors[first], tensors[name]):
            raise InputError(f"{where}: {first} and {name} differ, but are one parameter of the model")


def _check_finite(tensors: dict[str, Tensor], where: str) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise InputError(f"{where}: {_short(name)} has values that are not finite")


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
        if sha256 is not None:
            _check_sha256(path, sha256)
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
    tensors = {
        name: _converted(tensor, state[name].dtype, f"{path}: {name}") for name, tensor in weights.tensors.items()
    }
    _check_finite(tensors, str(path))
    _check_tied(state, tensors, str(path))
    model.load_state_dict(tensors)  # copies into the parameters, which keep their device and memory format
    for name, padding in weights.paddings.items():
        model.get_submodule(name).padding = padding  # type: ignore[assignment]
    model.paddings = weights.paddings  # type: ignore[assignment]
    return preprocessing.attach(model)


def _check_sha256(path: Path, sha256: Any) -> None:
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", sha256.strip()):
        raise InputError(f"{path}: sha256 is {_short(repr(sha256))}; give 64 hexadecimal digits in quotes")
    total = hashlib.sha256()
    with open_regular(path) as file:
        while content := file.read(2**20):
            total.update(content)
    if (actual := total.hexdigest()) != sha256.strip().lower():
        raise InputError(f"{path} has SHA-256 {actual}, not {sha256.strip()}: another file, or a damaged one")


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
    stored = {"preprocessing": preprocessing.to_json(), TENSORS: digest(tensors), DIGEST: BLANK}
    for name, value in metadata.items():
        try:
            stored[name] = json.dumps(value)
        except (TypeError, ValueError) as error:
            raise InputError(f"metadata {name} is not JSON: {error}") from None
    content = memoryview(safetensors.torch.save(tensors, stored))
    length = 8 + int.from_bytes(content[:8], "little")  # of the header

    def write(file: BinaryIO) -> None:
        file.write(stamped(bytes(content[:length])))
        file.write(content[length:])

    write_atomically(path, write)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save` was told about the model, and its preprocessing, as JSON values; {} for files of other formats.

    InputError if it cannot be read or is damaged; only the metadata are checked, the weights when they are loaded.
    """
    path = Path(os.path.expanduser(path))
    with open_regular(path) as file:
        if file.read(9)[8:] != b"{" and path.suffix != ".safetensors":
            return {}
    return _decoded(_stored(path))
