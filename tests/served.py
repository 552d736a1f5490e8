"""An atlas of a tiny network, whose numbers come from loops over the network itself, and a server to be asked.

Nothing of zfnet ranks or counts. The atlas has what the served mode reads, and a site of one bare page.
"""

import contextlib
import hashlib
import http.client
import io
import json
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from zfnet.atlas import server
from zfnet.atlas.answers import Answers
from zfnet.data.preprocessing import Preprocessing
from zfnet.identity import network_identity

K, PER = 3, 4
EDGES = [-float("inf"), -4.0, -1.0, -0.25, -0.0625, 0.0625, 0.25, 0.5, 1.0, 2.0, 4.0, float("inf")]


def put(folder: Path, file: str, name: str, value: Any) -> None:
    path = folder / "data" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"atlas.put({json.dumps(name)}, {json.dumps(value)});\n", encoding="utf-8")


def seal(folder: Path) -> None:
    """Write files.json, of all files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "files.json")
    digests = {str(path.relative_to(folder)): hashlib.blake2b(path.read_bytes()).hexdigest() for path in files}
    (folder / "files.json").write_text(json.dumps(digests), encoding="utf-8")


def maxima(model: nn.Module, images: Tensor, layer: str) -> list[list[tuple[float, int, int]]]:
    """Of each map, of each image: the largest activation before a clip, and its first row and column."""
    found: dict[str, Tensor] = {}
    module = model.get_submodule(layer)
    if isinstance(module, nn.ReLU6):
        handle = module.register_forward_pre_hook(lambda _, inputs: found.update(x=inputs[0].clone()))
    else:
        handle = module.register_forward_hook(lambda _, __, output: found.update(x=output.clone()))
    result: list[list[tuple[float, int, int]]] = []
    with torch.no_grad():
        for image in images:
            model(image[None])
            x = found["x"] if found["x"].ndim == 4 else found["x"][..., None, None]
            for number, plane in enumerate(x[0]):
                result += [[]] if number == len(result) else []
                best = max((float(v), -r, -c) for r, line in enumerate(plane) for c, v in enumerate(line))
                result[number].append((best[0], -best[1], -best[2]))
    handle.remove()
    return result


def bin_of(value: float) -> int:
    return next(i for i in range(len(EDGES) - 1) if EDGES[i] < value <= EDGES[i + 1])


def entry(number: int, values: list[tuple[float, int, int]], clipped: bool) -> dict[str, Any]:
    """What an atlas has of one map."""
    order = sorted(range(len(values)), key=lambda image: (-values[image][0], image))[:K]
    order = [image for image in order if values[image][0] > 0]
    bins: dict[int, int] = {}
    for value, _, _ in values:
        bins[bin_of(value)] = bins.get(bin_of(value), 0) + 1
    unclipped = [values[image][0] for image in order]
    about = {
        "map": number,
        "value": [min(value, 6.0) for value in unclipped] if clipped else unclipped,
        "image": order,
        "row": [values[image][1] for image in order],
        "column": [values[image][2] for image in order],
        "label": [-1] * len(order),
        "box": [[0, 0, 5, 5]] * len(order),
        "bins": sorted([number, count] for number, count in bins.items()),
        "fires": sum(value > 0 for value, _, _ in values) / len(values),
    }
    return about | ({"unclipped": unclipped} if clipped else {})


def write(folder: Path, model: nn.Module, images: Tensor, layers: list[str], classes: list[str]) -> Path:
    """The folder of an atlas of these layers of a model over prepared images (N, C, H, W)."""
    how = Preprocessing.of(model)
    about = []
    for number, layer in enumerate(layers):
        clipped = isinstance(model.get_submodule(layer), nn.ReLU6)
        maps = [entry(n, values, clipped) for n, values in enumerate(maxima(model, images, layer))]
        for first in range(0, len(maps), PER):
            put(folder, f"{number}/{first // PER}.js", f"maps/{number}/{first // PER}", maps[first : first + PER])
        put(folder, f"{number}/columns.js", f"columns/{number}", {"map": list(range(len(maps)))})
        per = {"tiles": 24, "masks": 96, "examples": 128, "overview": 256, "maps": PER}
        about.append(
            {"name": layer, "rows": len(maps), "maps": len(maps), "clipped": clipped, "whole": False, "per": per}
        )
    index = {
        "format": 1,
        "image_size": list(how.image_size),
        "images": len(images),
        "classes": classes,
        "k": K,
        "rules": "deconvnet",
        "bins": [None, *EDGES[1:-1], None],
        "layers": about,
        "provenance": network_identity(model) | {"preprocessing": how.identity()},
    }
    put(folder, "index.js", "index", index)
    (folder / "index.html").write_text("<!DOCTYPE html><html><body><script src=app.js></script></body></html>")
    seal(folder)
    return folder


def png(seed: int, width: int = 50, height: int = 41) -> bytes:
    """A picture with light and dark patches."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return saved(small.resize((width, height), Image.Resampling.BICUBIC))


def saved(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    image.save(file := io.BytesIO(), kind, **more)
    return file.getvalue()


class Server:
    """A server on a free port of this machine, in a thread."""

    def __init__(self, answers: Answers, limits: server.Limits) -> None:
        self._socket = server.listen("127.0.0.1", 0)
        self.port = self._socket.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self._server = server.Server(answers, limits=limits)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    def ask(self, path: str, body: Any = None, method: str | None = None, **headers: str) -> tuple[int, Any]:
        """The status and the content of an answer; of JSON, the value."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method or ("GET" if body is None else "POST"), path, body, named)
            reply = connection.getresponse()
            self.headers, content = reply.headers, reply.read()
        is_json = (reply.getheader("content-type") or "").startswith("application/json")
        return reply.status, json.loads(content) if is_json else content

    def raw(self, content: bytes, ends: bool = False) -> bytes:
        """What comes back to these bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(content)
            if ends:
                connection.shutdown(socket.SHUT_WR)
            parts = []
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                while part := connection.recv(2**16):
                    parts.append(part)
        return b"".join(parts)
