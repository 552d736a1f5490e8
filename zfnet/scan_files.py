"""Scans that are kept in a folder: read again if their identity is the same, and only the requested layers.

`top.safetensors` has the winners, `<layer>/value`, `/image`, `/row`, `/column`, and `/unclipped` where the layer clips;
`statistics.safetensors` has the statistics, `<layer>/fires`, `/histogram`, `/sums`, `/maxima`, `/places`, with
`sampled` and `class_images`. `scan.json` has the identity of the network and images, and a digest of every layer. It is
removed before the others are replaced, and written last: if it exists, they are of the same scan.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from zfnet.checks import device_and_dtype
from zfnet.data.images import as_images
from zfnet.errors import InputError, first_line
from zfnet.files import locked, open_regular, remove, write_atomically
from zfnet.gathering import Statistics
from zfnet.graph import Graph, graph_of
from zfnet.identity import BLANK, Damaged, Identity, difference, digest, is_stamped, stamped
from zfnet.processes import by_first, processes
from zfnet.scanning import Scan, scan, scan_identity, steps_of
from zfnet.winners import TopActivations

TOP, STATISTICS, CONTENTS = "top.safetensors", "statistics.safetensors", "scan.json"
SHARDS = "shards"  # the folder of the parts of a scan, within its own
ANEW = "delete the folder, or start again with fresh=true"
_FORMAT = 1
_MOST = 2**28  # bytes of a scan.json that is read: it names every broken image
_OF_SHARDS = ("shard", "batch_size")  # what a shard's identity has besides that of the whole


class _Layer(NamedTuple):
    """A layer that is kept."""

    name: str
    k: int
    maps: int  # 0: none of the images of this part could be read
    clipped: bool
    top: str  # digests
    statistics: str

    @property
    def columns(self) -> list[str]:
        """Its winners, as they are stored."""
        fields = TopActivations._fields
        return [f"{self.name}/{field}" for field in (fields if self.clipped else fields[:4])]

    @property
    def gathered(self) -> list[str]:
        return [f"{self.name}/{field}" for field in Statistics._fields]


class _Contents(NamedTuple):
    """The content of a scan.json."""

    identity: dict[str, str]
    images: int
    broken: list[str]
    counts: str  # a digest of `sampled` and `class_images`
    layers: list[_Layer]

    @property
    def by_name(self) -> dict[str, _Layer]:
        return {layer.name: layer for layer in self.layers}

    def lacks(self, identity: Identity, layers: Sequence[str], k: int) -> list[str]:
        """The layers that are not kept here, or with fewer winners."""
        if difference(self.identity, identity):
            return list(layers)
        return [name for name in layers if name not in self.by_name or self.by_name[name].k < k]


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_scan(folder: str | Path, scan: Scan, identity: Identity, *, empty: Mapping[str, int] | None = None) -> None:
    """Write a scan with its statistics into a folder. The same scan has the same bytes.

    Args:
        folder: its content is replaced.
        scan: with statistics, of layers by the names that their steps have in the graph.
        identity: see `zfnet.scanning.scan_identity`.
        empty: k by layer, for a scan of which no image could be read.
    """
    if scan.statistics is None:
        raise InputError("the scan has no statistics, which are kept with it: scan with gather=True")
    folder, layers = Path(folder), [_Layer(name, k, 0, False, "", "") for name, k in (empty or {}).items()]
    counts = {"sampled": scan.sampled, "class_images": scan.class_images}
    tops: dict[str, Tensor] = {}
    gathered = dict(counts)
    for name, top in scan.items():
        clipped = not torch.equal(top.value, top.unclipped)
        layer = _Layer(
            name, top.value.shape[1], len(top.value), clipped, *map(digest, (list(top), list(scan.statistics[name])))
        )
        layers.append(layer)
        tops |= zip(layer.columns, top, strict=False)
        gathered |= zip(layer.gathered, scan.statistics[name], strict=True)
    contents = _Contents(dict(identity), scan.images, list(scan.broken), digest(counts), layers)
    written = contents._asdict() | {"layers": [layer._asdict() for layer in layers]}
    text = json.dumps({"format": _FORMAT, **written, "digest": BLANK}, indent=1, sort_keys=True)
    files = {TOP: tops, STATISTICS: gathered}
    for file, tensors in files.items():
        _write(folder / f"{file}.new", {name: tensor.contiguous() for name, tensor in tensors.items()})
    remove(folder / CONTENTS)
    try:
        for file in files:
            os.replace(folder / f"{file}.new", folder / file)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {first_line(error)}") from None
    write_atomically(folder / CONTENTS, stamped(f"{text}\n".encode()))


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors without a copy of them in memory."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), path)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {path}: {first_line(error)}") from None


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_scan(
    folder: str | Path, identity: Identity, layers: Sequence[str] | None = None, k: int | None = None
) -> Scan | None:
    """The scan that a folder keeps; None where there is none of this identity, of these layers, or of as many as k.

    Args:
        folder: of `write_scan`.
        identity: what a scan would depend on now; see `zfnet.scanning.scan_identity`.
        layers: to read, by name; None: all that there are. No other is loaded.
        k: winners of each map; None: as many as there are.

    Raises:
        InputError: for a folder that is damaged.
    """
    folder = Path(folder)
    contents = _contents(folder)
    if contents is None or difference(contents.identity, identity):
        return None
    names = [layer.name for layer in contents.layers] if layers is None else list(layers)
    if contents.lacks(identity, names, k or 0):
        return None
    try:
        return _loaded(folder, contents, names, k)
    except Damaged:
        if _contents(folder) in (contents, None):
            raise
    return read_scan(folder, identity, layers, k)  # another run has replaced it meanwhile


def _contents(folder: Path) -> _Contents | None:
    """The content of a folder; None if it is empty. Raises Damaged if `write_scan` did not write it."""
    path = folder / CONTENTS
    if not os.path.lexists(path):
        return None
    try:
        with open_regular(path) as file:
            raw = file.read(_MOST)
        read = json.loads(raw)
        if read["format"] != _FORMAT:
            raise Damaged(f"{path} is of format {read['format']!r}, but this version reads {_FORMAT}; {ANEW}")
        whole = is_stamped(raw, read.pop("digest")) and read.pop("format") == _FORMAT
        contents = _Contents(**read | {"layers": [_Layer(**layer) for layer in read["layers"]]})
    except OSError as error:
        raise Damaged(f"cannot read {path}: {first_line(error)}; {ANEW}") from None
    except Damaged:
        raise
    except InputError as error:
        raise Damaged(f"{error}; {ANEW}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise Damaged(f"{path} is damaged, or not a scan; {ANEW}")
    return contents


def _loaded(folder: Path, contents: _Contents, names: Sequence[str], k: int | None) -> Scan:
    layers = [contents.by_name[name] for name in names]
    tops, statistics = {}, {}
    with _opened(folder / TOP) as file:
        for layer in layers:
            if layer.maps:
                top = TopActivations(*(file.get_tensor(column) for column in layer.columns))
                _check(folder / TOP, layer.name, digest(list(top)), layer.top)
                tops[layer.name] = TopActivations(*(column[:, :k] for column in top)) if k else top
    with _opened(folder / STATISTICS) as file:
        counts = {name: file.get_tensor(name) for name in ("sampled", "class_images")}
        _check(folder / STATISTICS, "counts of images", digest(counts), contents.counts)
        for layer in layers:
            if layer.maps:
                gathered = Statistics(*(file.get_tensor(column) for column in layer.gathered))
                _check(folder / STATISTICS, layer.name, digest(list(gathered)), layer.statistics)
                statistics[layer.name] = gathered
    return Scan(tops, contents.images, contents.broken, statistics, **counts)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file of safetensors; Damaged for what it lacks, or is not."""
    try:
        open_regular(path).close()
        with safe_open(path, framework="pt") as file:
            yield file
    except Damaged:
        raise
    except (OSError, SafetensorError, ValueError, InputError) as error:
        raise Damaged(f"{path} is damaged ({first_line(error)}); {ANEW}") from None


def _check(path: Path, what: str, now: str, written: str) -> None:
    if now != written:
        raise Damaged(f"{path} is damaged: its {what} is not what was written; {ANEW}")


# ---- scans that are kept ---------------------------------------------------------------------------------------------


def kept_scan(
    model: nn.Module | Graph,
    dataset: Any,
    folder: str | Path,
    layers: Sequence[str | nn.Module],
    k: int = 9,
    *,
    batch_size: int = 64,
    distinct: bool = True,
    shard: tuple[int, int] | None = None,
    workers: int | None = None,
    fresh: bool = False,
    progress: bool = True,
) -> Scan:
    """Read the scan of these layers, with its statistics, from a folder; missing layers are scanned now and kept there.

    A scan of another network or other images is replaced, and a message says so. An interrupted scan resumes. Under
    `torchrun` the processes share the work, and each gets the result.

    Args:
        model, dataset, layers, k, batch_size, distinct, workers, progress: see `zfnet.scan`.
        folder: of the scan. Other layers in it are kept.
        shard: (number from 0, count): scan only that part, which is kept in a folder of its own, shards/3-of-64;
            `merge_shards` joins them.
        fresh: scan again, and ignore what is kept.

    Raises:
        InputError: for a folder that is damaged, or in which another run is scanning.
    """
    graph, images, folder = graph_of(model), as_images(dataset), Path(folder)
    device = device_and_dtype(graph.model)["device"]
    names = {name: graph.names[node] for name, node in steps_of(graph, layers).items()}
    whole = by_first(lambda: dict(scan_identity(graph, images, distinct)), device)
    identity = whole
    if shard is not None:
        if processes()[1] > 1:
            raise InputError("the processes of torchrun share the whole scan: leave out shard, or torchrun")
        folder, identity = shard_folder(folder, *shard), whole | _of_shard(*shard, batch_size)
    lacking = by_first(lambda: _lacking(folder, identity, list(names.values()), k, fresh), device)
    if lacking:
        request = digest([identity, sorted(lacking), k, batch_size])
        state = folder / f"scan-{request[:8]}.partial"
        how: dict[str, Any] = {"batch_size": batch_size, "distinct": distinct, "workers": workers, "progress": progress}
        how |= {"state": state, "keep_state": True, "fresh": fresh, "known": identity, "gather": True}
        with contextlib.ExitStack() as stack:
            by_first(lambda: _enter(stack, folder), device)
            scanned = scan(graph, images, lacking, k, shard=shard, shared=shard is None, **how)
            by_first(lambda: _keep(folder, scanned, identity, dict.fromkeys(lacking, k), fresh), device)
            del scanned
    kept = by_first(lambda: read_scan(folder, identity, list(names.values()), k), device)
    if kept is None:
        raise InputError(f"the scan in {folder} was replaced by another run meanwhile; run this again")
    tops = {name: kept[step] for name, step in names.items() if step in kept}
    statistics = {name: (kept.statistics or {})[names[name]] for name in tops}
    return Scan(tops, kept.images, kept.broken, statistics, kept.sampled, kept.class_images)


def _enter(stack: contextlib.ExitStack, folder: Path) -> None:
    stack.enter_context(locked(folder / "scan.lock", f"is scanning in {folder}"))


def _lacking(folder: Path, identity: Identity, layers: Sequence[str], k: int, fresh: bool) -> list[str]:
    """The layers to scan."""
    if fresh:
        return list(layers)
    contents = _contents(folder)
    if contents is None:
        return list(layers)
    if changes := difference(contents.identity, identity):
        print(f"{folder} has a scan that was made with different {changes}: it is replaced", file=sys.stderr)
    return contents.lacks(identity, layers, k)


def _keep(folder: Path, found: Scan, identity: Identity, k: Mapping[str, int], fresh: bool) -> None:
    """Write a scan, with the other layers that the folder keeps of the same images, and remove what its runs left."""
    contents = None
    with contextlib.suppress(*([Damaged] if fresh else [])):
        contents = _contents(folder)
    if contents is not None and not difference(contents.identity, identity):
        others = [layer.name for layer in contents.layers if layer.name not in k]
        before = read_scan(folder, identity, others) if others else None
        if before is not None and _same_images(before, found):
            statistics = {**(before.statistics or {}), **(found.statistics or {})}
            found = Scan({**before, **found}, found.images, found.broken, statistics, found.sampled, found.class_images)
            k = {layer.name: layer.k for layer in contents.layers} | dict(k)
    write_scan(folder, found, identity, empty={name: count for name, count in k.items() if name not in found})
    remove(*folder.glob("scan-*.partial*"))


def _same_images(before: Scan, now: Scan) -> bool:
    """Whether two scans of one data set could read the same images."""
    pairs = (before.sampled, now.sampled), (before.class_images, now.class_images)
    same = all(torch.equal(*pair) for pair in pairs)
    return same and (before.images, before.broken) == (now.images, now.broken)


# ---- shards ----------------------------------------------------------------------------------------------------------


def shard_folder(folder: str | Path, number: int, count: int) -> Path:
    """The folder of a shard of a scan."""
    return Path(folder, SHARDS, f"{number}-of-{count}")


def _of_shard(number: int, count: int, batch_size: int) -> dict[str, str]:
    return {"shard": f"{number}/{count}", "batch_size": str(batch_size)}


def merge_shards(
    model: nn.Module | Graph, dataset: Any, folder: str | Path, count: int | None = None, *, distinct: bool = True
) -> list[str]:
    """Merge the shards of `kept_scan` in a folder into one scan; their order does not matter.

    Args:
        model: the network that was scanned.
        dataset: the images.
        folder: where the scan is kept.
        count: number of shards; None: as the existing shards record it.
        distinct: as in the scan.
    Returns: the layers.

    Raises:
        InputError: that names shards which are missing, or belong to another scan.
    """
    folder = Path(folder)
    identity = dict(scan_identity(model, dataset, distinct))
    count = _count_of(folder) if count is None else count
    parts = [(shard_folder(folder, n, count), _contents(shard_folder(folder, n, count))) for n in range(count)]
    if missing := [str(n) for n, (_, contents) in enumerate(parts) if contents is None]:
        some = ", ".join(missing[:20]) + (f" and {len(missing) - 20} more" if len(missing) > 20 else "")
        advice = f"scan with shard={missing[0]}/{count}"
        raise InputError(f"{len(missing)} of {count} shards are missing in {folder / SHARDS}: {some}; {advice}")
    shards = [(path, contents) for path, contents in parts if contents is not None]
    first = shards[0][1]
    sizes = {layer.name: layer.k for layer in first.layers}
    batch_size = int(first.identity.get("batch_size", 0))
    for number, (path, contents) in enumerate(shards):
        scan_it = f"scan it again: shard={number}/{count} fresh=true"
        if changes := difference(contents.identity, identity | _of_shard(number, count, batch_size)):
            raise InputError(f"{path} was made with different {changes}; {scan_it}")
        if {layer.name: layer.k for layer in contents.layers} != sizes:
            raise InputError(f"{path} has other layers than {shards[0][0]}, or another k; {scan_it}")
    whole = _loaded_alone(shards[0])
    for shard in shards[1:]:
        whole = whole.merge(_loaded_alone(shard))
    if not whole:
        raise InputError(
            f"none of the {len(whole.broken)} images could be read: {(*whole.broken, 'there are none')[0]}"
        )
    with contextlib.ExitStack() as stack:
        _enter(stack, folder)
        _keep(folder, whole, identity, sizes, True)
    return list(sizes)


def _loaded_alone(shard: tuple[Path, _Contents]) -> Scan:
    path, contents = shard
    return _loaded(path, contents, [layer.name for layer in contents.layers], None)


def _count_of(folder: Path) -> int:
    """The number of shards that those in a folder record."""
    counts = set()
    for path in (folder / SHARDS).glob("*-of-*"):
        number, _, of = path.name.partition("-of-")
        if number.isdecimal() and of.isdecimal():
            counts.add(int(of))
    if not counts:
        raise InputError(f"there are no shards in {folder / SHARDS}: scan them, shard=0/4 to 3/4")
    if len(counts) > 1:
        choices = ", ".join(map(str, sorted(counts)))
        raise InputError(f"{folder / SHARDS} has shards of {choices}: give their number, such as count={min(counts)}")
    return counts.pop()
