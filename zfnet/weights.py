"""Trained weights in files, with the preprocessing that they were trained with.

Weights are useless without the preprocessing of their photographs, so neither is saved or loaded without the other.
Files that `save` wrote have a digest of every byte, which finds damage; `zfnet.formats` reads them and others.
Weights published under other names are renamed by an adapter: one function in `ADAPTERS`.
"""

import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor, nn

from zfnet.data.preprocessing import Model, Preprocessing
from zfnet.errors import InputError, unknown_name
from zfnet.files import open_regular, write_atomically
from zfnet.formats import (
    AVERAGED,
    DIGEST,
    MEAN_IMAGE,
    TENSORS,
    Weights,
    check_finite,
    decoded,
    read,
    reading,
    short,
    stored_in,
)
from zfnet.identity import BLANK, digest, stamped

SPARE = 2**28  # bytes that a file may hold beside 16 times what the model does: optimizers, averages, double precision
PREFIXES = ("module.", "model.", "_orig_mod.", "net.")  # DataParallel, Lightning, torch.compile, own wrappers

OURS = {"classes": list, "identity": dict, "history": list}  # metadata that experiments write, and their types


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
    entries = read(path, SPARE + 16 * sum(tensor.nbytes for tensor in own.values()))
    if entry is not None and entry not in entries:
        raise unknown_name(f"entry of {path}", entry, entries)
    plain = [name for name in entries if name.split(".")[-1] not in AVERAGED]
    names = [entry] if entry is not None else plain or list(entries)
    nearest = {
        name: min(_versions(entries[name]), key=lambda w: sum(map(len, _misfits(model, w).values()))) for name in names
    }
    fitting = [name for name, weights in nearest.items() if not _misfits(model, weights)]
    if len(fitting) > 1:
        raise InputError(
            f"{path} holds {len(fitting)} sets of weights that fit the model: give entry={' or '.join(fitting)}"
        )
    name = (fitting or names)[0]
    weights = nearest[name]
    problems = [f"{len(misfits)} {kind} (first {misfits[0]})" for kind, misfits in _misfits(model, weights).items()]
    if problems := problems or _other_modules(model, weights.modules):
        saved = weights.metadata.get("architecture")
        origin = f"; it was saved from {short(json.dumps(saved))}" if saved else ""
        raise InputError(f"{path} does not fit {type(model).__name__}: {', '.join(problems)}{origin}")
    if name not in plain:
        warnings.warn(f"the EMA weights of {path} are used ({name})", stacklevel=3)
    return weights


def _other_modules(model: nn.Module, expected: dict[str, dict[str, Any]]) -> list[str]:
    """The differences between the model's modules and those of the weights, in words."""
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
    unexpected = [short(name) for name in tensors if name not in own]
    unexpected = unexpected or [f"padding of {short(name)}" for name in _wrong_paddings(model, weights.paddings)]
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
    and weights that `ADAPTERS` knows have their own.

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

    Raises:
        InputError: if a file cannot be read, could run code, or does not fit.
    """
    path = Path(os.path.expanduser(path))
    with reading(path):
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
    check_finite(tensors, str(path))
    _check_tied(state, tensors, str(path))
    model.load_state_dict(tensors)  # copies into the parameters, which keep their device and memory format
    for name, padding in weights.paddings.items():
        model.get_submodule(name).padding = padding  # type: ignore[assignment]
    model.paddings = weights.paddings  # type: ignore[assignment]
    return preprocessing.attach(model)


def _check_sha256(path: Path, sha256: Any) -> None:
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", sha256.strip()):
        raise InputError(f"{path}: sha256 is {short(repr(sha256))}; give 64 hexadecimal digits in quotes")
    total = hashlib.sha256()
    with open_regular(path) as file:
        while content := file.read(2**20):
            total.update(content)
    if (actual := total.hexdigest()) != sha256.strip().lower():
        raise InputError(f"{path} has SHA-256 {actual}, not {sha256.strip()}: another file, or a damaged one")


def save(model: nn.Module, path: str | os.PathLike[str], **metadata: Any) -> None:
    """Write a model's weights, its `preprocessing` and JSON values as safetensors, atomically.

    The metadata is what `read_metadata` returns: `architecture`, `classes`, ..., and `preprocessing` if the model has
    none.

    Args:
        model: whose weights are written.
        path: of the file.
        metadata: JSON values by name.

    Raises:
        InputError: for a model without preprocessing, a value that is not finite or not JSON, and a file that cannot be
            written.
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
    check_finite(tensors, f"{path} not written")
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

    Only the metadata are checked; the weights are when they are loaded.

    Raises:
        InputError: if it cannot be read or is damaged.
    """
    path = Path(os.path.expanduser(path))
    with open_regular(path) as file:
        if file.read(9)[8:] != b"{" and path.suffix != ".safetensors":
            return {}
    metadata = decoded(stored_in(path))
    # under a name of ours, a value of another type is another library's
    return {name: value for name, value in metadata.items() if isinstance(value, OURS.get(name, object))}
