"""Files of weights in the formats in which they are published: safetensors, npz, torch's, and ONNX for ZFNets.

A file's format is recognised by its content. None is read in a way that could run code from it, or that takes much more
memory than the model: sizes are compared first. Files that `zfnet.weights.save` wrote have a digest of every byte.
"""

import contextlib
import json
import math
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor, nn

from zfnet.data.preprocessing import Preprocessing
from zfnet.errors import InputError, first_line, with_article
from zfnet.files import NO_ZIP, declared_size, makes_bytearrays, open_regular
from zfnet.identity import Damaged, digest, is_stamped

MEAN_IMAGE = "preprocessing.mean_image"  # among the tensors of a file of ours
DIGEST, TENSORS = "zfnet.digest", "zfnet.tensors"  # among its metadata: digests of the header and of the tensors
HEADER = 2**24  # bytes of a header that is read
ENTRIES = ("state_dict", "model_state_dict", "model", "net", "weights")  # of checkpoints
AVERAGED = ("model_ema", "ema", "state_dict_ema")  # entries with an exponential moving average of the weights
# What often stands beside weights. None of it is built: each is read as a `_Beside`, so that nothing of it can run.
BESIDE = ("argparse.Namespace", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")


@dataclass(frozen=True)
class Weights:
    """The content of a file, under the names of its model."""

    tensors: dict[str, Tensor]
    preprocessing: Preprocessing | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    paddings: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of modules whose own is not the trained one
    modules: dict[str, dict[str, Any]] = field(default_factory=dict)  # what the model has to have, in this order


def short(text: str, most: int = 100) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}... ({len(text):,} characters)"


def check_finite(tensors: dict[str, Tensor], where: str) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise InputError(f"{where}: {short(name)} has values that are not finite")


@contextlib.contextmanager
def reading(path: Path, *damaged: type[Exception]) -> Iterator[None]:
    """Turn every error of a file into one line that names it; `damaged` are the exceptions of its library."""
    try:
        yield
    except InputError as error:
        raise type(error)(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {first_line(error)}") from None
    except damaged as error:
        reason = short(first_line(error), 300)
        raise InputError(f"cannot read weights from {path}, it may be cut short or damaged: {reason}") from None


def _check_size(path: Path, size: int, most: int) -> None:
    if size > most:
        sizes = f"{size / 2**20:,.0f} MiB, and {most / 2**20:,.0f} MiB is the most that is read for this model"
        raise InputError(f"{path} declares {sizes}; save only the weights")


def stored_in(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file. Damaged if it has a digest and any bit of its header was changed."""
    with reading(path, Exception):
        with open_regular(path) as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            _check_size(path, length, HEADER)
            header = file.read(length)
        with safetensors.safe_open(path, "pt") as content:
            stored: dict[str, str] = content.metadata() or {}
    if DIGEST not in stored and "preprocessing" in stored:
        advice = "its weights may be damaged: check them, and save them again"
        warnings.warn(f"{path} has no digest, as files of an older version: {advice}", stacklevel=4)
    elif DIGEST in stored and not is_stamped(start + header, stored[DIGEST]):
        raise Damaged(f"{path} is damaged: its header does not match its checksum")
    return stored


def _read_safetensors(path: Path, most: int) -> dict[str, Weights]:
    stored = stored_in(path)
    if DIGEST in stored:  # all of it is read; of others, only what has the right shape
        _check_size(path, path.stat().st_size, most)
    with reading(path, Exception), safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if DIGEST in stored and digest(tensors) != stored.get(TENSORS):
            remedy = "fetch it again, or delete it to train again"
            raise Damaged(f"{path} is damaged: its weights do not match their checksum; {remedy}")
    metadata = decoded(stored)
    if "preprocessing" not in stored:
        return {"": Weights(tensors, None, metadata)}
    with reading(path, Exception):
        paddings = _paddings(metadata.pop("paddings", {}))
        preprocessing = _preprocessing(stored["preprocessing"], tensors.pop(MEAN_IMAGE, None))
    return {"": Weights(tensors, preprocessing, metadata, paddings)}


def decoded(stored: dict[str, str]) -> dict[str, Any]:
    metadata: dict[str, Any] = {name: text for name, text in stored.items() if name not in (DIGEST, TENSORS)}
    for name, text in metadata.items():
        with contextlib.suppress(ValueError, RecursionError):  # other libraries' entries are plain strings
            metadata[name] = json.loads(text)
    return metadata


def _paddings(stored: Any) -> dict[str, tuple[int, ...]]:
    if not isinstance(stored, dict):
        raise InputError(f"its paddings are {with_article(stored)}")
    for name, padding in stored.items():
        if not isinstance(padding, list) or not all(type(n) is int and 0 <= n < 1000 for n in padding):
            raise InputError(f"its padding of {short(name)} is not a list of pixels")
    return {name: tuple(padding) for name, padding in stored.items()}


def _preprocessing(text: str, mean_image: Tensor | None) -> Preprocessing:
    settings = json.loads(text)
    if isinstance(settings, dict) and settings.get("channels", "RGB") not in ("RGB", "BGR", "grey"):
        _check_count(settings.get("channels"))
    preprocessing = Preprocessing.from_json(text)
    if mean_image is not None:
        size, shape = (preprocessing.channel_count, *preprocessing.image_size), tuple(mean_image.shape)
        fits = len(shape) == 3 and shape[0] == size[0] and shape[1] >= size[1] and shape[2] >= size[2]
        if not fits or mean_image.dtype not in (torch.float32, torch.float16):
            raise InputError(f"its mean image is {shape} of {mean_image.dtype}, for images {size}")
        check_finite({MEAN_IMAGE: mean_image}, "its preprocessing")
        mean_image = mean_image.float()
    return replace(preprocessing, mean_image=mean_image)


def _check_count(channels: Any) -> None:
    if type(channels) is not int or not 0 < channels < 2**16:  # each has a mean, which is kept
        raise InputError(f"its preprocessing has no number of channels below {2**16}")


def _archive(path: Path) -> list[str]:
    """The names in a zip archive; none where it is damaged or something else. InputError if one is there twice."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except NO_ZIP:
        return []
    if len(set(names)) < len(names):  # readers differ in which they take
        raise InputError(f"{path} is damaged: it has {short(max(names, key=names.count))} twice")
    return names


def _check_archive(path: Path) -> None:
    """InputError unless every entry of a zip archive matches its checksum, which torch does not look at."""
    with reading(path, Exception), zipfile.ZipFile(path) as archive:
        if (name := archive.testzip()) is not None:
            raise Damaged(f"{path} is damaged: {short(name)} does not match its checksum; fetch or save it again")


def _read_npz(path: Path, most: int) -> dict[str, Weights]:
    with open_regular(path) as file:
        _check_size(path, declared_size(file), most)
    tensors = {}
    with reading(path, Exception):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as stream:
                    _check_array(path, short(entry.filename), entry.file_size, stream)
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
    """An object in a checkpoint beside its weights; its content is discarded."""

    def __new__(cls, *_: Any) -> "_Beside":
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass


def _read_torch(path: Path, most: int) -> dict[str, Weights]:
    if any(name.endswith("/constants.pkl") for name in _archive(path)):
        raise InputError(f"{path} is a TorchScript archive; load it with torch.jit.load and save its state_dict()")
    with open_regular(path) as file:
        _check_size(path, max(declared_size(file), os.fstat(file.fileno()).st_size), most)
        if makes_bytearrays(file):
            raise InputError(f"{path} is refused: its bytearray could take any memory; save the model's state_dict()")
    beside = torch.serialization.safe_globals([(_Beside, name) for name in BESIDE])
    with warnings.catch_warnings(), beside, reading(path, Exception):
        warnings.simplefilter("ignore")  # of pickles it then refuses
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # its own message says how to load the file all the same
            code = re.search(r"GLOBAL (\S+)", str(error))
            why = f"its {short(code[1])} could run code" if code else "it is cut short, or a pickle that could run code"
            raise InputError(f"{path} is refused: {why}; save the model's state_dict()") from None
    states = _entries(content)
    problems = {entry: _not_weights(state) for entry, state in states.items()}
    weights = {entry: Weights(dict(state)) for entry, state in states.items() if not problems[entry]}
    if not weights:
        entry, problem = next(iter(problems.items()))
        raise InputError(f"{path}{f' under {entry!r}' * bool(entry)} holds {problem}")
    return weights


def _entries(content: Any, depth: int = 2) -> dict[str, Any]:
    """Candidates for state dicts in a checkpoint, by their entry; "" for a checkpoint that is itself a state dict."""
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
    """Why an entry of a checkpoint is not a state dict; empty if it is one."""
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        return f"{type(state).__name__}; save the model's state_dict() instead"
    for name, value in state.items():
        if not isinstance(value, Tensor):
            return f"more than weights: {short(name)!r} is not a tensor; save the state_dict() alone"
        if kind := _unusual(value):
            return f"a {kind} tensor, {short(name)!r}; save dense weights of floats"
    return ""


def _unusual(tensor: Tensor) -> str:
    """Why a tensor is not a plain array of numbers; empty if it is one."""
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
_USUAL: dict[str, dict[str, list[Any]]] = {  # attributes whose other values are refused; the first is the default
    "Conv": {"dilations": [[1, 1]], "group": [1], "auto_pad": [b"NOTSET"]},
    "Gemm": {"alpha": [1.0], "beta": [1.0], "transA": [0], "transB": [0, 1]},
    "MaxPool": {"dilations": [[1, 1]], "auto_pad": [b"NOTSET"], "storage_order": [0]},
}
_SILENT_STEPS = ("Relu", "Reshape", "Flatten", "Dropout", "Softmax")


def _read_onnx(path: Path, most: int) -> dict[str, Weights]:
    """A ZFNet's: tensors under the names that `zfnet.ZFNet` has for its layers, and their geometry."""
    try:
        import onnx
    except ImportError:
        raise InputError(f"{path} is read by onnx, which is not installed: pip install 'zfnet[onnx]'") from None
    _check_size(path, path.stat().st_size, most // 4)  # it holds nothing but the weights, and is kept twice
    with reading(path, Exception):
        graph = onnx.load(str(path), load_external_data=False).graph
        for entry in graph.initializer:
            if entry.external_data or entry.data_location == onnx.TensorProto.EXTERNAL:
                raise InputError(f"{path} is refused: {short(entry.name)} is in another file; save all in one")
        values = {entry.name: torch.from_numpy(onnx.numpy_helper.to_array(entry).copy()) for entry in graph.initializer}
        if len(values) < len(graph.initializer):
            raise InputError(f"{path} is damaged: it has weights of one name twice")
        return {"": _of_nodes(path, graph.node, values, onnx.helper.get_attribute_value)}


def _of_nodes(path: Path, nodes: Iterable[Any], values: dict[str, Tensor], value_of: Callable[[Any], Any]) -> Weights:
    tensors, modules, last = {}, {}, {"conv": 0, "fc": 5}
    for node in nodes:
        if node.op_type in _SILENT_STEPS:
            continue
        if node.op_type not in _ZFNET_STEPS:
            kind = short(node.op_type)
            raise InputError(f"{path} is not a ZFNet: it has {kind}; of ONNX files only ZFNets are read")
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
    """The attributes of an ONNX step, as those of the equivalent module."""
    if operation == "LRN":
        return {"k": attributes["bias"]} | {name: attributes[name] for name in ("size", "alpha", "beta")}
    others = [name for name, usual in _USUAL[operation].items() if attributes.get(name, usual[0]) not in usual]
    if others:
        raise InputError(f"it has a {operation} with {others[0]}={attributes[others[0]]}, which ZFNet does not have")
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


def read(path: Path, most: int) -> dict[str, Weights]:
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
    raise InputError(f"{path} is not a file of weights; known are safetensors, npz, torch, onnx")
