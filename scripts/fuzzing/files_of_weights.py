"""Files of weights in every format that is read, with hostile tensors, metadata, archives and bytes.

A file must be refused in one line that names it, the model as it was, bit for bit; or be loaded, and the model then
has the numbers that an independent reader finds in the file.
"""

import contextlib
import functools
import io
import json
import os
import pickle
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors.torch
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from scripts.fuzzing import flips
from zfnet import ZFNet, formats, weights
from zfnet.checks import pair
from zfnet.data.preprocessing import Preprocessing
from zfnet.errors import InputError
from zfnet.identity import BLANK, digest, stamped

HOW = Preprocessing(size=8, resize=8)
State = dict[Any, Any]


def _nested(tensor: Tensor) -> Tensor:
    return torch.nested.nested_tensor([tensor.flatten(), tensor.flatten()[:1]])


def _poisoned(value: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: torch.full_like(tensor, value if tensor.is_floating_point() else -1)


TENSORS: list[Callable[[Tensor], Any]] = [  # what may stand in the place of a tensor
    lambda tensor: tensor.to_sparse() if tensor.ndim else tensor,
    lambda tensor: tensor.to_sparse_csr() if tensor.ndim == 2 else tensor.to_sparse(),
    lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
    lambda tensor: tensor.to("meta"),
    lambda tensor: _nested(tensor) if tensor.numel() else tensor,
    lambda tensor: tensor.double(),
    lambda tensor: tensor.half(),
    lambda tensor: tensor.bfloat16(),
    lambda tensor: tensor.to(torch.float8_e4m3fn),
    lambda tensor: tensor.to(torch.complex64),
    lambda tensor: tensor.long(),
    lambda tensor: tensor.to(torch.uint8),
    lambda tensor: tensor.bool(),
    lambda tensor: tensor.mT if tensor.ndim >= 2 else tensor[None],
    lambda tensor: tensor.flatten(),
    lambda tensor: tensor[None],
    lambda tensor: tensor[:0] if tensor.ndim else tensor.new_empty(0),
    lambda tensor: tensor[:-1] if tensor.ndim else tensor[None],
    lambda tensor: tensor.flatten()[:1].expand(tensor.shape) if tensor.numel() else tensor,
    lambda tensor: tensor.flatten()[:1].expand(10**9) if tensor.numel() else tensor,
    lambda tensor: torch.cat([tensor[None], tensor[None]])[1],  # a view of a larger one
    lambda tensor: tensor.flip(0) if tensor.ndim else tensor,
    lambda tensor: tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor,
    lambda tensor: nn.Parameter(tensor) if tensor.is_floating_point() else tensor,
    _poisoned(float("nan")),
    _poisoned(float("inf")),
    _poisoned(-1),
    lambda tensor: tensor * 1e30,
    lambda tensor: tensor.double() * 1e200,
    lambda tensor: tensor.tolist(),
    lambda tensor: {"a": tensor},
    lambda tensor: [tensor],
    lambda tensor: None,
    lambda tensor: 10**400,
    lambda tensor: "a\nb" * 1000,
]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    tied = nn.Linear(4, 4)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4), tied, tied)


@functools.cache
def state() -> dict[str, Tensor]:
    return network().state_dict()


def case(seed: int, folder: Path) -> str:
    """Write one file and load it."""
    choose, path = random.Random(seed), folder / "weights.file"
    name = choose.choice(list(FORMATS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, on the tensors it is asked for
        FORMATS[name](choose, path)
    if name != "special" and choose.random() < 0.3:
        content = path.read_bytes()
        if 0 < len(content) < 2**22:
            path.write_bytes(flips.damaged(choose, content, len(content)))
    model = zfnet() if name == "onnx" else network(1)
    before, attributes = digest(model), sorted(vars(model))
    with flips.said():
        try:
            weights.load(model, path, default_preprocessing=HOW)
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 2000, str(error)[:2000]
            assert digest(model) == before and sorted(vars(model)) == attributes, "the model was changed"
            return f"{name} refused"
    check(model, path, name)
    return f"{name} loaded"


def check(model: nn.Module, path: Path, name: str) -> None:
    """AssertionError unless the model has what the libraries read in the file."""
    theirs = READERS[name](path)
    for key, own in model.state_dict().items():
        candidates = [value for other, value in theirs.items() if other == key or other.endswith(f".{key}")]
        if name == "onnx" and own.ndim == 2:  # which a file may say the other way round
            candidates += [value.mT for value in candidates if value.ndim == 2]
        if not candidates and key.endswith("num_batches_tracked"):
            continue
        assert any(torch.equal(value.to(own.dtype), own) for value in candidates), f"{key} is not what the file says"


# ---- what is written -------------------------------------------------------------------------------------------------


def other_state(choose: random.Random) -> State:
    """A state dict with some entries changed."""
    changed: State = {name: tensor.clone() for name, tensor in state().items()}
    for _ in range(choose.choice([0, 0, 1, 1, 2, 3])):
        name = choose.choice(list(changed))
        match choose.randrange(5):
            case 0:
                del changed[name]
            case 1:
                changed[choose.choice(["extra", "a\nb" * 200, 7, f"module.{name}", "", "\ud800"])] = changed[name]
            case 2:
                changed[name] = changed[choose.choice(list(changed))]
            case _ if isinstance(changed[name], Tensor) and changed[name].numel() < 10**6:
                with contextlib.suppress(RuntimeError, NotImplementedError):  # a change of a changed tensor
                    changed[name] = choose.choice(TENSORS)(changed[name])
            case _:
                changed[name] = None
    return changed or {"a": torch.ones(1)}


def dense_state(choose: random.Random) -> dict[str, Tensor]:
    """As `other_state`, of what every format can hold."""
    return {
        str(name).encode("ascii", "replace").decode(): value.detach().contiguous().clone()
        for name, value in other_state(choose).items()
        if type(value) is Tensor
        and value.layout == torch.strided
        and not (value.is_nested or value.is_meta)
        and not value.is_quantized
        and value.numel() < 10**6
    } or {"a": torch.ones(1)}


def write_torch(choose: random.Random, path: Path, zipped: bool = True) -> None:
    content: Any = other_state(choose)
    for _ in range(choose.choice([0, 0, 1, 2])):
        prefix = choose.choice(["module.", "_orig_mod.", "model."])
        content = {f"{prefix}{name}" if isinstance(name, str) else name: value for name, value in content.items()}
    if choose.random() < 0.4:
        beside = choose.choice([3, 10**400, deep(3000), {"state": {0: torch.ones(2)}}, bytearray(9), {1, 2}])
        content = {choose.choice(["state_dict", "model", "net", "model_ema"]): content, "epoch": beside}
    buffer = io.BytesIO()
    try:
        torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    except (
        RuntimeError,
        NotImplementedError,
        RecursionError,
        UnicodeEncodeError,
        pickle.PicklingError,
        AttributeError,
    ):
        torch.save(dense_state(choose), buffer, _use_new_zipfile_serialization=zipped)
    path.write_bytes(buffer.getvalue())
    if zipped and choose.random() < 0.5:
        path.write_bytes(repacked(choose, buffer.getvalue()))


def deep(levels: int) -> Any:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def repacked(choose: random.Random, content: bytes) -> bytes:
    """A zip archive with entries that are compressed, changed, missing, twice, or absurdly large."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        how = choose.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
        chosen = choose.choice(old.namelist())
        task = choose.choice(["same", "cut", "longer", "missing", "twice", "bomb", "number"])
        with zipfile.ZipFile(buffer, "w", how) as new:
            for name in old.namelist():
                entry = old.read(name)
                if name == chosen and task == "missing":
                    continue
                if name == chosen and task in ("cut", "longer"):
                    entry = entry[: len(entry) // 2] if task == "cut" else entry + bytes(400)
                if task == "number" and name.endswith("data.pkl") and b"K\x10" in entry:  # the size of a tensor
                    entry = entry.replace(
                        b"K\x10", choose.choice([b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"K\x09"])
                    )
                new.writestr(name, entry)
                if name == chosen and task == "twice":
                    new.writestr(name, bytes(len(entry)))
            if task == "bomb":
                with new.open("archive/data/99" if choose.random() < 0.5 else chosen, "w") as file:
                    for _ in range(choose.choice([8, 300])):
                        file.write(bytes(2**20))
    return buffer.getvalue()


def write_npz(choose: random.Random, path: Path) -> None:
    arrays: dict[str, Any] = {}
    for name, tensor in dense_state(choose).items():
        with contextlib.suppress(TypeError):  # types that numpy has not
            arrays[name.replace("/", "_")] = tensor.numpy()
    arrays = arrays or {"a": np.ones(1)}
    name = choose.choice(list(arrays))
    array = arrays[name]
    arrays[name] = choose.choice(
        [
            array,
            array,
            np.array([{}, 1], dtype=object),
            np.asfortranarray(array),
            array.astype(array.dtype.newbyteorder()),
            np.zeros(3, [("a", "f4"), ("\u00e9", "i4")]),
            array.astype("U5"),
            np.zeros((0, 2**40), "f4"),
            np.datetime64("2020-01-01") + np.zeros(3, "m8[D]"),
            array.astype(np.longdouble) if array.dtype.kind == "f" else array,
        ]
    )
    with open(path, "wb") as file:
        (np.savez if choose.random() < 0.5 else np.savez_compressed)(file, **arrays)
    match choose.randrange(4):
        case 0:
            path.write_bytes(repacked(choose, path.read_bytes()))
        case 1:
            with zipfile.ZipFile(path, "a", choose.choice([0, 8])) as archive:
                shape = choose.choice(
                    ["(4611686018427387904,)", "(1000000000,)", "(-1,)", "(1,)", "((1,),)", "(0.5,)", "9"]
                )
                text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
                header = b"\x93NUMPY" + choose.choice([b"\1\0", b"\2\0", b"\3\0", b"\x09\0"])
                archive.writestr(
                    "b.npy", header + struct.pack("<H", len(text)) + text + bytes(choose.choice([0, 4, 99]))
                )


SETTINGS: list[Any] = [
    0,
    -1,
    10**9,
    10**400,
    1.5,
    float("nan"),
    float("inf"),
    None,
    True,
    "",
    "RGB",
    [],
    {},
    [1, 2, 3],
    [0],
]


def metadata(choose: random.Random) -> dict[str, str]:
    """What `save` writes, with something changed."""
    settings: Any = dict(HOW.settings)
    for _ in range(choose.choice([0, 0, 1, 2])):
        settings[choose.choice([*settings, "new"])] = choose.choice(SETTINGS)
    texts = [json.dumps(settings)] * 9 + ["", "null", "[]", "{", "1" * 5000, "[" * 50_000, '"a"', '{"size": 8}']
    stored = {"preprocessing": choose.choice(texts)}
    paddings = [{"0": [1, 1]}, {"0": [1]}, {"0": 1}, {"9": [1, 1]}, {"2": [1, 1]}, {"0": [10**9, 1]}, {"0": [-1, 1]}]
    if choose.random() < 0.4:
        stored["paddings"] = json.dumps(choose.choice([*paddings, [], "a", 1, None, {"0": ["1", 1]}, {"": [1, 1]}]))
    if choose.random() < 0.3:
        stored["architecture"] = choose.choice(["[" * 50_000, "a\nb" * 500, "{}", "NaN"])
    return stored


def write_safetensors(choose: random.Random, path: Path) -> None:
    tensors = dense_state(choose)
    if choose.random() < 0.4:
        means = [(3, 8, 8), (3, 9, 9), (1, 8, 8), (3, 4, 4), (8, 8), (), (3, 8, 8, 1), (0,)]
        mean = torch.full(choose.choice(means), choose.choice([0.5, float("nan"), float("inf")]))
        tensors[formats.MEAN_IMAGE] = choose.choice([mean, mean, mean.double(), mean.bool()])
    if choose.random() < 0.2:
        path.write_bytes(safetensors.torch.save(tensors))
    elif choose.random() < 0.3:  # by somebody else, or an older version
        path.write_bytes(safetensors.torch.save(tensors, metadata(choose)))
    else:
        stored = metadata(choose) | {formats.TENSORS: digest(tensors), formats.DIGEST: BLANK}
        path.write_bytes(stamped(safetensors.torch.save(tensors, stored)))  # of the whole file: the wrong one
        if choose.random() < 0.8:
            content = safetensors.torch.save(tensors, stored)
            length = 8 + int.from_bytes(content[:8], "little")
            path.write_bytes(stamped(content[:length]) + content[length:])
    if choose.random() < 0.2:
        length = choose.choice([0, 1, 2**20, 2**31, 2**63, 2**64 - 1])
        nested = b"{" + choose.choice([b"", b'"a":' + b"[" * 100_000, b'"__metadata__":3}', b'"__metadata__":{"a":1}}'])
        path.write_bytes(struct.pack("<Q", length) + nested + choose.randbytes(choose.choice([0, 100])))


@functools.cache
def zfnet_state() -> dict[str, Tensor]:
    return zfnet(0).state_dict()


def zfnet(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return ZFNet(3, maps=(2, 2, 2, 2, 2), hidden=(3, 3), image_size=64, norm=None)


def write_onnx(choose: random.Random, path: Path) -> None:
    arrays = {name: tensor.numpy() for name, tensor in zfnet_state().items()}
    model, nodes, last = zfnet(), [], "x"
    for name, module in model.named_modules():
        kind, inputs, attributes = "", [f"{name}.weight", f"{name}.bias"], {}
        if isinstance(module, nn.Conv2d):
            pads = [*module.padding, *module.padding] if not isinstance(module.padding, str) else [0] * 4
            kind, attributes = "Conv", {"kernel_shape": module.kernel_size, "strides": module.stride, "pads": pads}
        elif isinstance(module, nn.Linear):
            kind, attributes = "Gemm", {"transB": 1}
        elif name.startswith("pool"):
            pads = [*module.padding, *module.padding] if isinstance(module.padding, tuple) else [module.padding] * 4
            kernel, stride = (pair(value) for value in (module.kernel_size, module.stride))
            kind, inputs, attributes = "MaxPool", [], {"kernel_shape": kernel, "strides": stride, "pads": pads}
        if kind:
            if choose.random() < 0.03:
                odd: list[Any] = [
                    "alpha",
                    "dilations",
                    "group",
                    "kernel_shape",
                    "pads",
                    "strides",
                    "transB",
                    "auto_pad",
                ]
                attributes = attributes | {
                    choose.choice(odd): choose.choice([0, 2.0, [2, 2], "SAME_UPPER", [1], [10**9] * 4])
                }
            if choose.random() < 0.02:
                inputs = choose.choice([[], inputs[:1], ["nowhere", *inputs[1:]], inputs * 2])
            nodes.append(helper.make_node(kind, [last, *inputs], [f"{name}.out"], **attributes))
            last = f"{name}.out"
    if choose.random() < 0.1:
        nodes.append(helper.make_node(choose.choice(["Sigmoid", "Relu", "a\nb", ""]), [last], ["y"]))
    initial = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in arrays.items()]
    entry = choose.choice(initial)
    match choose.randrange(9):
        case 0:
            entry.dims[:] = choose.choice([[10**12], [-1], [2**62, 4], [], [0], [1] * 100, [10**5, 10**5]])
        case 1:
            (path.parent / "outside").write_bytes(entry.raw_data)
            entry.ClearField("raw_data")
            entry.data_location = choose.choice([onnx.TensorProto.EXTERNAL, onnx.TensorProto.DEFAULT])
            where = choose.choice(
                ["outside", str(path.parent / "outside"), "../outside", "/etc/passwd", "weights.file"]
            )
            entry.external_data.add(key="location", value=where)
            os.chdir(path.parent)
        case 2:
            entry.data_type = choose.choice(range(30))
        case 3:
            entry.raw_data = choose.choice([b"", entry.raw_data[:-1], entry.raw_data * 2, bytes(len(entry.raw_data))])
        case 4:
            entry.name = choose.choice(["", "a", "a\nb", initial[0].name])
        case 5:
            entry.ClearField("raw_data")
            entry.float_data.extend([0.5] * choose.choice([0, 1, 9]))
    graph = helper.make_graph(nodes, "zfnet", [], [], initial)
    path.write_bytes(helper.make_model(graph).SerializeToString())


def write_special(choose: random.Random, path: Path) -> None:
    """What is not a file, an empty one, a huge one with holes, a pickle by hand."""
    match choose.randrange(8):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to(
                choose.choice(["/dev/zero", "/dev/null", "nowhere", "weights.file", "/dev/tty", "/proc/self/mem"])
            )
        case 3:
            path.write_bytes(choose.choice([b"", b"P", b"PK", b"\x80", b"\x08", b"\0" * 8 + b"{", b"\x08" * 99]))
        case 4 | 5:
            starts = [
                b"PK\3\4",
                b"\x80\2",
                b"\x08\7",
                struct.pack("<Q", 2**33) + b"{",
                b"",
                struct.pack("<Q", 99) + b"{",
            ]
            with open(path, "wb") as file:
                file.write(choose.choice(starts))
                file.truncate(choose.choice([2**20, 2**31, 2**40]))
        case 6:
            bytearrays = [
                b"cbuiltins\nbytearray\n\x8a\5" + size.to_bytes(5, "little") + b"\x85R." for size in (9, 10**10)
            ]
            opcodes = [
                b"]" * 50_000 + b"a" * 49_999 + b".",
                b"(" * 10**5,
                b"\x8b\xff\xff\xff\x7f",
                b"X\xff\xff\xff\x7fa.",
            ]
            path.write_bytes(
                b"\x80\2"
                + choose.choice(
                    [*opcodes, *bytearrays, b"cos\nsystem\n(S'true'\ntR.", b"ctorch\nTensor\n(J\xff\xff\xff\x7ftR."]
                )
            )
        case _:
            path.write_bytes(choose.choice([b"PK\3\4", b"\x80\2", b"\x08\7", b"\0" * 8 + b"{"]) + choose.randbytes(300))


FORMATS: dict[str, Callable[[random.Random, Path], None]] = {
    "torch": write_torch,
    "legacy torch": functools.partial(write_torch, zipped=False),
    "npz": write_npz,
    "safetensors": write_safetensors,
    "onnx": write_onnx,
    "special": write_special,
}


# ---- what the libraries read in it -----------------------------------------------------------------------------------


def read_torch(path: Path) -> dict[str, Tensor]:
    content = torch.load(path, weights_only=True)
    found: dict[str, Tensor] = {}
    for name, value in content.items():
        found |= {name: value} if isinstance(value, Tensor) else {}
        if isinstance(value, dict):
            found |= {key: entry for key, entry in value.items() if isinstance(entry, Tensor)}
    return found


def read_npz(path: Path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name].astype(arrays[name].dtype.newbyteorder("="))) for name in arrays}


def read_onnx(path: Path) -> dict[str, Tensor]:
    graph = onnx.load(path, load_external_data=False).graph
    return {entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy()) for entry in graph.initializer}


READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    "torch": read_torch,
    "legacy torch": read_torch,
    "npz": read_npz,
    "safetensors": safetensors.torch.load_file,
    "onnx": read_onnx,
    "special": read_torch,
}
