"""The strongest activations of every feature map over a dataset: one pass, all layers and maps at once.

A scan keeps where a map was strongest (value, image, row, column), never a tensor: its memory does not grow with the
dataset.  Of each batch it takes the maximum of every map, which costs one look at what the network computed anyway, and
searches for the place of a maximum only where it enters the top k.  Equal values go to the lower image, then row, then
column, so that the result does not depend on batch size, on how the dataset was cut into shards, or on their order.
Zeiler & Fergus (2014), Figure 2: the top nine of a feature map over the validation set.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, fx, nn
from tqdm import tqdm

from zfnet.checks import check_weights, device_and_dtype, evaluating
from zfnet.data.batches import Batches
from zfnet.errors import InputError
from zfnet.files import write_atomically
from zfnet.graph import Graph, graph_of

SAVE_EVERY = 30.0  # seconds between two saves of a scan's state


class TopActivations(NamedTuple):
    """The k strongest activations of each of C feature maps, strongest first: value, and where, each (C, k).

    Where there are fewer than k, value is -inf and image, row and column are -1.
    """

    value: Tensor
    image: Tensor
    row: Tensor
    column: Tensor

    @classmethod
    def none(cls, maps: int, k: int, like: Tensor) -> "TopActivations":
        """Nothing found yet, on the device and of the type of `like`."""
        places = torch.full((3, maps, k), -1, device=like.device)
        return cls(like.new_full((maps, k), -torch.inf), *places.unbind())

    def to(self, device: torch.device | str) -> "TopActivations":
        return TopActivations(*(column.to(device) for column in self))

    def merge(self, other: "TopActivations") -> "TopActivations":
        """The k strongest of both; exact for scans of disjoint parts of a dataset, in any order."""
        both = [torch.cat(pair, 1) for pair in zip(self, other, strict=True)]
        for key in (3, 2, 1, 0):  # the most important last: column, row, image, and the value, largest first
            order = both[key].argsort(dim=1, descending=key == 0, stable=True)
            both = [column.gather(1, order) for column in both]
        return TopActivations(*(column[:, : self.value.shape[1]] for column in both))


class Scan(dict[str, TopActivations]):
    """The result of a scan, by layer; `images` counts the images seen, `broken` names those that could not be read."""

    images: int = 0
    broken: list[str]


def _strongest(x: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum of every map of x (N, C, H, W) and its flat place, of equals the first; each (N, C)."""
    if x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last):
        # one pooling window over the whole map: the reduction that is fast where maps lie side by side
        best, place = F.max_pool2d(x, x.shape[2:], return_indices=True)
        return best.flatten(1), place.flatten(1)
    best, place = x.flatten(2).max(2)
    return best, place


def _update(top: TopActivations, x: Tensor, index: Tensor, distinct: bool) -> TopActivations:
    """Take in the activations x (N, C, H, W) of the images `index` (N,), later in the dataset than all before."""
    k = top.value.shape[1]
    best, places = _strongest(x)
    best, which = best.sort(dim=0, descending=True, stable=True)  # (N, C)
    rank, maps = (best[:k] > top.value[:, -1]).nonzero(as_tuple=True)  # equal is not enough: the earlier image stays
    if not len(maps):
        return top
    images = which[rank, maps]
    if distinct:
        value, place = best[rank, maps][:, None], places[images, maps][:, None]
    else:
        planes = x[images, maps].flatten(1)  # (P, H W)
        value, place = (column[:, :k] for column in planes.sort(dim=1, descending=True, stable=True))
    each = value.shape[1]
    found = TopActivations.none(len(top.value), k * each, x)
    slots = (rank * each)[:, None] + torch.arange(each, device=x.device)
    at = (maps[:, None].expand_as(slots), slots)
    origin = index.to(x.device)[images][:, None].expand_as(slots)
    for column, entry in zip(found, (value, origin, place // x.shape[3], place % x.shape[3]), strict=True):
        column[at] = entry
    return top.merge(found)


@dataclass
class _State:
    """The file in which an interrupted scan is kept, with all that its result depends on."""

    path: Path
    key: str

    @classmethod
    def of(cls, path: str | Path, graph: Graph, dataset: Any, indices: Tensor, settings: Any) -> "_State":
        digest = hashlib.blake2b(repr((settings, len(dataset))).encode())
        digest.update(indices.numpy().tobytes())
        for name, weight in sorted(graph.model.state_dict().items()):
            digest.update(name.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
        if hasattr(dataset, "file"):
            digest.update("\n".join(map(dataset.file, indices.tolist())).encode())
        return cls(Path(path), digest.hexdigest())

    def write(self, done: int, tops: dict[str, TopActivations], broken: list[str]) -> None:
        tensors = {f"{layer}/{n}": c.cpu().contiguous() for layer, t in tops.items() for n, c in t._asdict().items()}
        about = {"key": self.key, "done": str(done), "broken": json.dumps(broken)}
        write_atomically(self.path, save(tensors, metadata=about))

    def read(self) -> tuple[int, dict[str, TopActivations], list[str]]:
        """How many images were done, and what was found; nothing if there is no state, or that of another scan."""
        try:
            with safe_open(self.path, framework="pt") as file:
                about = file.metadata()
                if about["key"] != self.key:
                    return 0, {}, []
                layers = {name.rsplit("/", 1)[0] for name in file.keys()}  # noqa: SIM118
                tops = {
                    layer: TopActivations(*(file.get_tensor(f"{layer}/{n}") for n in TopActivations._fields))
                    for layer in layers
                }
                return int(about["done"]), tops, json.loads(about["broken"])
        except (FileNotFoundError, SafetensorError, KeyError, TypeError):
            return 0, {}, []


def scan(
    model: nn.Module | Graph,
    dataset: Any,
    layers: Sequence[str],
    k: int = 9,
    *,
    batch_size: int = 64,
    distinct: bool = True,
    indices: Iterable[int] | None = None,
    workers: int | None = None,
    state: str | Path | None = None,
    keep_state: bool = False,
    progress: bool = True,
) -> Scan:
    """Find the k strongest activations of every feature map of the layers over a dataset of (image, label).

    distinct: each image counts once for a map, at its strongest place; otherwise any places do.
    indices: scan only these images; `merge` joins such shards.
    state: a file where an interrupted scan is kept, and from which the same scan goes on.  keep_state: a finished scan
    stays there too, for a caller who has more to do before it can be forgotten.
    InputError for unknown layers, fewer images than k, images that do not fit the network, NaN.  Images that cannot be
    read are left out and named in `.broken`.
    """
    graph = graph_of(model)
    check_weights(graph.model)
    nodes = {graph.node(layer): layer for layer in layers}
    if k < 1 or not nodes:
        raise InputError(f"a scan needs at least one layer and k of at least 1; got {len(nodes)} layers, k={k}")
    chosen = torch.arange(len(dataset)) if indices is None else torch.as_tensor(list(indices)).sort().values
    if indices is None and distinct and len(chosen) < k:
        raise InputError(f"the dataset has {len(chosen)} images, fewer than k={k}: take a smaller k, or distinct=False")
    saved = _State.of(state, graph, dataset, chosen, (sorted(layers), k, distinct)) if state else None
    done, tops, broken = saved.read() if saved else (0, {}, [])
    place = device_and_dtype(graph.model)
    tops = {layer: top.to(place["device"]) for layer, top in tops.items()}
    batches = Batches(dataset, batch_size, indices=chosen[done:], workers=workers)
    index = chosen

    def apply(node: fx.Node, args: tuple, kwargs: dict) -> Any:
        out = graph.call(node, args, kwargs)
        if node in nodes:  # now: the next step may overwrite it
            graph.check_maps(node, out)
            maps = out if out.ndim == 4 else out[..., None, None]
            top = tops.get(nodes[node])
            top = TopActivations.none(maps.shape[1], k, maps) if top is None else top
            tops[nodes[node]] = _update(top, maps, index, distinct)
        return out

    def keep() -> None:
        if saved and tops:
            saved.write(done, tops, [*broken, *batches.broken])

    saved_at = monotonic()
    bar = tqdm(total=len(chosen), initial=done, unit=" images", desc="scan", disable=not progress)
    try:
        with evaluating(graph.model), bar:
            for index, images, _ in batches:
                graph.run(images.to(**place), nodes.keys(), apply)
                reached = int(torch.searchsorted(chosen, index[-1])) + 1
                bar.update(reached - done)
                done = reached
                if monotonic() - saved_at > SAVE_EVERY:
                    keep()
                    saved_at = monotonic()
            bar.update(len(chosen) - done)
    except KeyboardInterrupt:
        keep()
        raise
    result = Scan((layer, tops[layer].to("cpu")) for layer in layers if layer in tops)
    result.broken = list(dict.fromkeys([*broken, *batches.broken]))
    result.images = len(chosen) - len(result.broken)
    if not result.images:
        first = result.broken[0] if result.broken else "there are none"
        raise InputError(f"none of the {len(chosen)} images could be read: {first}")
    if keep_state:
        keep()
    elif saved:
        saved.path.unlink(missing_ok=True)
    return result
