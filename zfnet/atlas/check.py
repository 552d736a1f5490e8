"""Check an atlas: compare its files with their digests, and compute a sample of it again."""

import contextlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from tqdm import tqdm

from zfnet.atlas.build import SITE, prepared
from zfnet.atlas.consistency import READING, damaged, disagreements
from zfnet.atlas.images import Reader
from zfnet.atlas.layers import ACROSS, PER, Layer
from zfnet.atlas.links import weights
from zfnet.atlas.panels import QUANTILES, Examples, Painter, Panels
from zfnet.atlas.pictures import LOSSLESS, Bytes, encoded
from zfnet.atlas.writing import FILES, FORMAT, OF_SYSTEMS, OURS, digest_of, read_script
from zfnet.data.images import as_images, image_size
from zfnet.errors import InputError, first_line
from zfnet.extended import RULE_SETS
from zfnet.graph import Graph
from zfnet.identity import network_identity
from zfnet.recording import activations
from zfnet.winners import TopActivations

CLOSE = 1e-3  # of a number: how far one that is computed again may be from it
LOST = 4.0  # of 255: the mean absolute difference of a tile beyond the codec's own, and
TIMES = 1.5  # how many times the codec's own it may be: what it makes of the computed tiles, encoded once more
FLIPPED = 0.01  # of a mask's pixels that may be on the other side of its limit


class Differences(list[str]):
    """The differences, as sentences, and how much was compared."""

    def __init__(self) -> None:
        super().__init__()
        self.values = self.tiles = 0


def check(
    model: nn.Module | Graph,
    dataset: Any,
    folder: str | os.PathLike[str],
    *,
    samples: int = 50,
    seed: int = 0,
    progress: bool = True,
) -> Differences:
    """Compare an atlas with what a network computes; return what differs, as sentences: nothing where all is the same.

    All files are compared with their digests, and the network and images with those that the atlas says. Then a random
    sample of maps is computed again: a forward pass of the whole image, boxes, projections, crops, masks and links.

    Args:
        model: the network.
        dataset: its images.
        folder: of the atlas.
        samples: how many maps.
        seed: of which are drawn.
        progress: show a progress bar.
    Raises InputError for a folder that is not an atlas, or an atlas with layers that the network does not have.
    """
    path, found = Path(folder), Differences()
    _check_files(path, found)
    try:
        _compare(model, dataset, path, found, samples, seed, progress)
    except InputError as error:
        if not found:
            raise
        found.append(f"{error}.")  # a file that is missing, or was changed: it is among what differs
    except READING as error:
        found.append(f"The folder cannot be compared: {damaged(error)}.")
    return found


def _compare(
    model: nn.Module | Graph, dataset: Any, path: Path, found: Differences, samples: int, seed: int, progress: bool
) -> None:
    """Add the differences in numbers and pictures to `found`."""
    index = _read(path, "data/index.js")
    if index["format"] != FORMAT:
        raise InputError(f"{path} is an atlas of format {index['format']!r}, this version reads {FORMAT}")
    images = as_images(dataset)
    if (size := image_size(images)) != tuple(index["image_size"]):
        found.append(f"The images are of {size[0]} x {size[1]} pixels, those of the atlas of another size.")
        return
    found += disagreements(path, index, images)
    known, own = index["provenance"], model.model if isinstance(model, Graph) else model
    if known.get("architecture") != network_identity(own)["architecture"]:
        found.append(f"The atlas is of another network than this {type(own).__name__}: {index['model']}.")
        return
    if index["rules"] not in RULE_SETS:
        raise InputError(f"{path} was projected by custom rules, which its folder does not contain")
    columns = [_read(path, f"data/{number}/columns.js") for number in range(len(index["layers"]))]
    names = [layer["name"] for layer in index["layers"]]
    maps = {name: column["map"] for name, column in zip(names, columns, strict=True)}
    job = prepared(model, images, names, maps, index["rules"], index["k"])
    now = network_identity(job.graph.model)
    now |= {"preprocessing": job.preprocessing.identity(), "data": images.identity()}
    if known.get("weights") != now["weights"]:
        found.append("The network's weights differ from those of the atlas.")
    for name, what in (("preprocessing", "How images are prepared is"), ("data", "The images are")):
        if known.get(name) != now[name]:
            found.append(f"{what} not what the atlas was made with.")
    random = np.random.default_rng(seed)
    layers = [layer for layer in job.layers if not all(columns[layer.number]["dead"])]
    for layer in job.layers:
        entry = json.loads(json.dumps(layer.entry(index["layers"][layer.number]["dead"])))
        if changed := [name for name in entry if entry[name] != index["layers"][layer.number].get(name)]:
            found.append(f"{layer.name}: {', '.join(changed)} in the index is not what this network has.")
    chosen: dict[int, list[int]] = {}
    for _ in range(samples if layers else 0):
        layer = layers[int(random.integers(len(layers)))]
        live = [row for row, dead in enumerate(columns[layer.number]["dead"]) if not dead]
        chosen.setdefault(layer.number, []).append(live[int(random.integers(len(live)))])
    below = [layer.below for layer in job.layers]
    feed, read = weights(job.deconvnet, [layer.node for layer in job.layers], below, job.image_size)
    compared, uses = list[_Compared](), Counter[int]()
    for number, rows in sorted(chosen.items()):
        for row in sorted({*rows}):
            with _said(found, f"map {columns[number]['map'][row]} of {names[number]}"):
                one = _Compared(path, index, job.layers[number], row, found)
                uses.update(one.images * 2)
                compared.append(one)
    reader = Reader(job.images, uses, job.image_size, job.graph.channels, 0)
    painter = Painter(job.deconvnet, job.preprocessing, job.image_size, reader, index["pixels"] != "none", strict=False)
    with tqdm(total=samples, unit=" maps", desc="check", disable=not progress) as bar:
        for one in compared:
            number = one.layer.number
            with _said(found, one.name):
                one.all(painter, {"weight": feed[number], "readers": read[number]})
            bar.update(chosen[number].count(one.row))


@contextlib.contextmanager
def _said(found: Differences, name: str) -> Iterator[None]:
    """Turn errors of missing or damaged files into sentences."""
    try:
        yield
    except InputError as error:
        found.append(f"{name}: {error}.")
    except READING as error:
        found.append(f"{name}: {damaged(error)}.")


def _check_files(path: Path, found: Differences) -> None:
    try:
        digests = dict(json.loads((path / FILES).read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not an atlas: {FILES} cannot be read ({first_line(error)})") from None
    for name, digest in digests.items():
        try:
            if digest_of((path / name).read_bytes()) != digest:
                found.append(f"{name} was changed since the atlas was built.")
        except OSError:
            found.append(f"{name} is missing.")
    known = {*digests, FILES, *OURS}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if not file.is_dir() and name not in known and file.name not in OF_SYSTEMS:
            found.append(f"{name} is not a file of the atlas.")
    if lost := sorted(
        {file.relative_to(SITE).as_posix() for file in SITE.rglob("*") if file.is_file()} - digests.keys()
    ):
        found.append(f"{lost[0]}, of the pages, is not in {FILES}.")


def _read(path: Path, name: str) -> Any:
    try:
        return read_script((path / name).read_bytes())[1]
    except (OSError, ValueError) as error:
        raise InputError(f"{path / name} cannot be read: {first_line(error)}") from None


class _Compared:
    """One map of an atlas, computed again."""

    def __init__(self, path: Path, index: Any, layer: Layer, row: int, found: Differences):
        self.path, self.index, self.layer, self.row, self.found = path, index, layer, row, found
        shard = _read(path, f"data/{layer.number}/{row // PER['maps']}.js")
        self.entry = shard[row % PER["maps"]]
        self.map = int(layer.chosen[row])
        self.name = f"map {self.map} of {layer.name}"

    @property
    def images(self) -> list[int]:
        """Those in which it is said to be strong, and of its examples."""
        return [*self.entry["image"], *(example["image"] for example in self.entry["examples"])]

    def all(self, painter: Painter, links: dict[str, Any]) -> None:
        entry, layer = self.entry, self.layer
        if entry["map"] != self.map:
            self._say(f"is stored as map {entry['map']}")
            return
        top, shown = self._top(), self._examples()
        try:
            self._activations(painter)
            panels = painter.panels(layer, top, shown, torch.tensor([self.row]))
        except InputError as error:
            self._say(f"cannot be computed again: {error}")
            return
        count = len(entry["value"])
        if panels.boxes[0, :count].tolist() != entry["box"]:
            self._say("has other boxes")
        for place, example in enumerate(entry["examples"]):
            if panels.example_boxes[0, place].tolist() != example["box"]:
                self._say("has other boxes of examples")
        self._numbers("focus", entry["focus"], panels.focus[0, :count], 0.02)
        self._numbers("area", entry["area"], panels.area[0, :count], 0.02)
        if count:
            self._numbers("steps", entry["steps"], panels.steps[0].numpy(), 0.02)
        self._links("signal", panels.signal.of(0))
        for side, table in links.items():
            self._links(side, table.of(self.map))
        self._pictures(panels, count)

    def _say(self, what: str) -> None:
        self.found.append(f"{self.name} {what}.")

    def _top(self) -> TopActivations:
        """The winners that the atlas says."""
        entry, count = self.entry, len(self.entry["value"])
        top = TopActivations.none(self.layer.maps, self.index["k"], torch.empty(0))
        for column, name in zip(top, ("value", "image", "row", "column", "unclipped"), strict=True):
            column[self.map, :count] = torch.tensor(entry.get(name, entry["value"]), dtype=column.dtype)
        return top

    def _examples(self) -> Examples:
        shown = Examples(torch.zeros(1, len(QUANTILES)), *(torch.full((1, len(QUANTILES)), -1) for _ in range(3)))
        for place, example in enumerate(self.entry["examples"]):
            for column, name in zip(shown, ("value", "image", "row", "column"), strict=True):
                column[0, place] = example[name]
        return shown

    def _activations(self, painter: Painter) -> None:
        """Each winner's value in a forward pass of its whole image, of which it must be the maximum."""
        graph, layer, entry = painter.deconvnet.graph, self.layer, self.entry
        before = graph.names[layer.node.args[0]] if layer.clipped else layer.name  # type: ignore[index]
        values = entry.get("unclipped", entry["value"])
        places = [*zip(entry["image"], entry["row"], entry["column"], values, strict=True)]
        places += [tuple(e[name] for name in ("image", "row", "column", "value")) for e in entry["examples"]]
        known = sorted({*self.images})
        (images,) = painter.reader.groups([known])
        outputs = activations(graph, images, [before])[before][:, self.map].float().cpu()
        for image, row, column, value in places:
            maps = outputs[known.index(image)].reshape(layer.size)
            here, largest = float(maps[row, column]), float(maps.max())
            allowed = CLOSE * max(abs(value), 1e-3)
            self.found.values += 1
            if abs(here - value) > allowed:
                self._say(f"is {value:g} at ({row}, {column}) of image {image}; this network computes {here:g}")
            elif largest - here > allowed:
                self._say(f"is stronger in image {image} than at ({row}, {column}): {largest:g}")

    def _numbers(self, name: str, stored: Sequence[float], computed: NDArray[Any], allowed: float) -> None:
        self.found.values += len(stored)
        far = [
            f"{old:g}, now {new:g}"
            for old, new in zip(stored, computed.tolist(), strict=True)
            if abs(old - new) > allowed * max(abs(new), 0.05)
        ]
        if far:
            self._say(f"has another {name} ({far[0]})")

    def _links(self, name: str, computed: Sequence[tuple[int, int, float]]) -> None:
        """Those that are stored must be among those that are computed, and the other way round, but for near ties."""
        stored = {(layer, m): weight for layer, m, weight in self.entry[name]}
        now = {(layer, m): weight for layer, m, weight in computed}
        self.found.values += len(stored)
        weakest = min((abs(weight) for weight in now.values()), default=0.0)
        for link in stored.keys() | now.keys():
            old, new = stored.get(link), now.get(link)
            if old is None or new is None:
                weight = abs(new if old is None else old)  # type: ignore[arg-type]
                far = len(stored) != len(now) or abs(weight - weakest) > 0.02 * max(weight, weakest)
            else:
                far = abs(old - new) > 0.02 * max(abs(old), abs(new))
            if far:
                self._say(f"has other links ({name})")
                return

    def _pictures(self, panels: Panels, count: int) -> None:
        lost = self._lost
        layer, k, row = self.layer, self.index["k"], self.row
        encoding, folder = self.index["encoding"], self.path / "tiles" / str(self.layer.number)
        (height, width), (eh, ew) = layer.sizes["tile"], layer.sizes["example"]
        parts, tiles = len(panels.tiles[0]) // k, panels.tiles[0]
        sheet = _sheet(folder / f"{row // PER['tiles']}.{encoding}")
        top = row % PER["tiles"] * height
        for part in range(parts):
            what = "projection" if part == parts - 1 else "crop"
            for rank in range(count):
                place = part * k + rank
                cell = sheet[top : top + height, place * width : (place + 1) * width]
                self._tile(what, cell, tiles[place], lost(tiles[place]))
        if panels.examples is not None:
            for place in range(len(self.entry["examples"])):
                left = parts * k * width + place * ew
                example = panels.examples[0, place]
                self._tile("example", sheet[top : top + eh, left : left + ew], example, lost(example))
        if not count:
            return
        (height, width), across, n = layer.sizes["overview"], ACROSS["overview"], row % PER["overview"]
        sheet = _sheet(folder / f"overview-{row // PER['overview']}.{encoding}")
        top, left = n // across * height, n % across * parts * width
        for part in range(parts):
            cell = sheet[top : top + height, left + part * width : left + (part + 1) * width]
            self._tile("tile of the overview", cell, panels.overview[0, part], lost(panels.overview[0, part]))
        (height, width), across, n = layer.sizes["mask"], ACROSS["masks"], row % PER["masks"]
        alpha = _sheet(folder / f"masks-{row // PER['masks']}.png", "RGBA")[..., 3]
        top, left = n // across * height, n % across * k * width
        for rank in range(count):
            cell = alpha[top : top + height, left + rank * width : left + (rank + 1) * width]
            self.found.tiles += 1
            if cell.shape != (height, width) or ((cell == 0) != panels.masks[0, rank]).mean() > FLIPPED:
                self._say("has another mask")

    def _lost(self, tile: Bytes) -> float:
        """The difference that the codec itself makes in a tile."""
        encoding, lossless = self.index["encoding"], min(self.layer.sizes["tile"]) < LOSSLESS
        with Image.open(io.BytesIO(encoded(tile, encoding, lossless=lossless))) as image:
            return _difference(np.array(image.convert("RGB")), tile)

    def _tile(self, what: str, stored: Bytes, computed: Bytes, loss: float) -> None:
        self.found.tiles += 1
        if stored.shape != computed.shape:
            self._say(f"has a {what} of another size")
            return
        difference = _difference(stored, computed)
        if difference > LOST + TIMES * loss:
            self._say(f"has another {what}: a mean difference of {difference:.0f} of 255")


def _difference(one: Bytes, other: Bytes) -> float:
    """The mean absolute difference of two pictures, of 255."""
    return float(np.abs(one.astype(float) - other).mean())


def _sheet(path: Path, mode: str = "RGB") -> Bytes:
    try:
        with Image.open(path) as image:
            return np.array(image.convert(mode))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {first_line(error)}") from None
