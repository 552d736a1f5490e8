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
# A stored tile may differ from the computed one by TIMES the codec's own difference and LOST, of 255. The codec's own
# is the mean absolute difference that encoding the computed tile makes.
LOST = 4.0
TIMES = 1.5
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
    """Compare an atlas with what a network computes; return the differences as sentences (none: empty).

    All files are compared with their digests, and the network and images with those that the atlas states. Then a
    random sample of maps is computed again: a forward pass of the whole image, boxes, projections, crops, masks, links.

    Args:
        model: the network.
        dataset: its images.
        folder: of the atlas.
        samples: how many maps.
        seed: of the sample.
        progress: show a progress bar.
    Raises InputError for a folder that is not an atlas, or an atlas with layers that the network does not have.
    """
    path, differences = Path(folder), Differences()
    _check_files(path, differences)
    try:
        _compare(model, dataset, path, differences, samples, seed, progress)
    except InputError as error:
        if not differences:
            raise
        differences.append(f"{error}.")  # _check_files has reported the missing or changed file
    except READING as error:
        differences.append(f"The folder cannot be compared: {damaged(error)}.")
    return differences


def _compare(
    model: nn.Module | Graph,
    dataset: Any,
    path: Path,
    differences: Differences,
    samples: int,
    seed: int,
    progress: bool,
) -> None:
    """Add the differences in numbers and pictures to `differences`."""
    index = _read(path, "data/index.js")
    if index["format"] != FORMAT:
        raise InputError(f"{path} is an atlas of format {index['format']!r}, this version reads {FORMAT}")
    images = as_images(dataset)
    if (size := image_size(images)) != tuple(index["image_size"]):
        differences.append(f"The images are of {size[0]} x {size[1]} pixels, those of the atlas of another size.")
        return
    differences += disagreements(path, index, images)
    provenance, network = index["provenance"], model.model if isinstance(model, Graph) else model
    if provenance.get("architecture") != network_identity(network)["architecture"]:
        differences.append(f"The atlas is of another network than this {type(network).__name__}: {index['model']}.")
        return
    if index["rules"] not in RULE_SETS:
        raise InputError(f"{path} was projected by custom rules, which its folder does not contain")
    columns = [_read(path, f"data/{number}/columns.js") for number in range(len(index["layers"]))]
    names = [layer["name"] for layer in index["layers"]]
    maps = {name: column["map"] for name, column in zip(names, columns, strict=True)}
    job = prepared(model, images, names, maps, index["rules"], index["k"])
    identity = network_identity(job.graph.model)
    identity |= {"preprocessing": job.preprocessing.identity(), "data": images.identity()}
    if provenance.get("weights") != identity["weights"]:
        differences.append("The network's weights differ from those of the atlas.")
    for name, subject in (("preprocessing", "How images are prepared is"), ("data", "The images are")):
        if provenance.get(name) != identity[name]:
            differences.append(f"{subject} not what the atlas was made with.")
    random = np.random.default_rng(seed)
    layers = [layer for layer in job.layers if not all(columns[layer.number]["dead"])]
    for layer in job.layers:
        entry = json.loads(json.dumps(layer.entry(index["layers"][layer.number]["dead"])))
        if changes := [name for name in entry if entry[name] != index["layers"][layer.number].get(name)]:
            differences.append(f"{layer.name}: {', '.join(changes)} in the index is not what this network has.")
    draws: dict[int, list[int]] = {}
    for _ in range(samples if layers else 0):
        layer = layers[int(random.integers(len(layers)))]
        live_rows = [row for row, dead in enumerate(columns[layer.number]["dead"]) if not dead]
        draws.setdefault(layer.number, []).append(live_rows[int(random.integers(len(live_rows)))])
    sources = [layer.below for layer in job.layers]
    feeds, readers = weights(job.deconvnet, [layer.node for layer in job.layers], sources, job.image_size)
    comparisons, uses = list[_Compared](), Counter[int]()
    for number, rows in sorted(draws.items()):
        for row in sorted({*rows}):
            with _as_sentences(differences, f"map {columns[number]['map'][row]} of {names[number]}"):
                comparison = _Compared(path, index, job.layers[number], row, differences)
                uses.update(comparison.images * 2)
                comparisons.append(comparison)
    reader = Reader(job.images, uses, job.image_size, job.graph.channels, 0)
    painter = Painter(job.deconvnet, job.preprocessing, job.image_size, reader, index["pixels"] != "none", strict=False)
    with tqdm(total=samples, unit=" maps", desc="check", disable=not progress) as bar:
        for comparison in comparisons:
            number = comparison.layer.number
            with _as_sentences(differences, comparison.name):
                comparison.all(painter, {"weight": feeds[number], "readers": readers[number]})
            bar.update(draws[number].count(comparison.row))


@contextlib.contextmanager
def _as_sentences(differences: Differences, name: str) -> Iterator[None]:
    """Turn errors of missing or damaged files into sentences."""
    try:
        yield
    except InputError as error:
        differences.append(f"{name}: {error}.")
    except READING as error:
        differences.append(f"{name}: {damaged(error)}.")


def _check_files(path: Path, differences: Differences) -> None:
    try:
        digests = dict(json.loads((path / FILES).read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not an atlas: {FILES} cannot be read ({first_line(error)})") from None
    for name, digest in digests.items():
        try:
            if digest_of((path / name).read_bytes()) != digest:
                differences.append(f"{name} was changed since the atlas was built.")
        except OSError:
            differences.append(f"{name} is missing.")
    names = {*digests, FILES, *OURS}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if not file.is_dir() and name not in names and file.name not in OF_SYSTEMS:
            differences.append(f"{name} is not a file of the atlas.")
    if missing := sorted(
        {file.relative_to(SITE).as_posix() for file in SITE.rglob("*") if file.is_file()} - digests.keys()
    ):
        differences.append(f"{missing[0]}, of the pages, is not in {FILES}.")


def _read(path: Path, name: str) -> Any:
    try:
        return read_script((path / name).read_bytes())[1]
    except (OSError, ValueError) as error:
        raise InputError(f"{path / name} cannot be read: {first_line(error)}") from None


class _Compared:
    """One map of an atlas, computed again."""

    def __init__(self, path: Path, index: Any, layer: Layer, row: int, differences: Differences):
        self.path, self.index, self.layer, self.row, self.differences = path, index, layer, row, differences
        shard = _read(path, f"data/{layer.number}/{row // PER['maps']}.js")
        self.entry = shard[row % PER["maps"]]
        self.map = int(layer.chosen[row])
        self.name = f"map {self.map} of {layer.name}"

    @property
    def images(self) -> list[int]:
        """The images of its strongest activations and of its examples."""
        return [*self.entry["image"], *(example["image"] for example in self.entry["examples"])]

    def all(self, painter: Painter, links: dict[str, Any]) -> None:
        entry, layer = self.entry, self.layer
        if entry["map"] != self.map:
            self._say(f"is stored as map {entry['map']}")
            return
        top, examples = self._top(), self._examples()
        try:
            self._activations(painter)
            panels = painter.panels(layer, top, examples, torch.tensor([self.row]))
        except InputError as error:
            self._say(f"cannot be computed again: {error}")
            return
        count = len(entry["value"])
        if panels.boxes[0, :count].tolist() != entry["box"]:
            self._say("has other boxes")
        for number, example in enumerate(entry["examples"]):
            if panels.example_boxes[0, number].tolist() != example["box"]:
                self._say("has other boxes of examples")
        self._numbers("focus", entry["focus"], panels.focus[0, :count], 0.02)
        self._numbers("area", entry["area"], panels.area[0, :count], 0.02)
        if count:
            self._numbers("steps", entry["steps"], panels.steps[0].numpy(), 0.02)
        self._links("signal", panels.signal.of(0))
        for side, table in links.items():
            self._links(side, table.of(self.map))
        self._pictures(panels, count)

    def _say(self, text: str) -> None:
        self.differences.append(f"{self.name} {text}.")

    def _top(self) -> TopActivations:
        """The strongest activations that the atlas states."""
        entry, count = self.entry, len(self.entry["value"])
        top = TopActivations.none(self.layer.maps, self.index["k"], torch.empty(0))
        for column, name in zip(top, ("value", "image", "row", "column", "unclipped"), strict=True):
            column[self.map, :count] = torch.tensor(entry.get(name, entry["value"]), dtype=column.dtype)
        return top

    def _examples(self) -> Examples:
        examples = Examples(torch.zeros(1, len(QUANTILES)), *(torch.full((1, len(QUANTILES)), -1) for _ in range(3)))
        for number, example in enumerate(self.entry["examples"]):
            for column, name in zip(examples, ("value", "image", "row", "column"), strict=True):
                column[0, number] = example[name]
        return examples

    def _activations(self, painter: Painter) -> None:
        """Each stored value must be the map's maximum in a forward pass of its whole image."""
        graph, layer, entry = painter.deconvnet.graph, self.layer, self.entry
        source = graph.names[layer.node.args[0]] if layer.clipped else layer.name  # type: ignore[index]
        values = entry.get("unclipped", entry["value"])
        positions = [*zip(entry["image"], entry["row"], entry["column"], values, strict=True)]
        positions += [tuple(e[name] for name in ("image", "row", "column", "value")) for e in entry["examples"]]
        indices = sorted({*self.images})
        (images,) = painter.reader.groups([indices])
        outputs = activations(graph, images, [source])[source][:, self.map].float().cpu()
        for image, row, column, value in positions:
            maps = outputs[indices.index(image)].reshape(layer.size)
            computed, maximum = float(maps[row, column]), float(maps.max())
            tolerance = CLOSE * max(abs(value), 1e-3)
            self.differences.values += 1
            if abs(computed - value) > tolerance:
                self._say(f"is {value:g} at ({row}, {column}) of image {image}; this network computes {computed:g}")
            elif maximum - computed > tolerance:
                self._say(f"is stronger in image {image} than at ({row}, {column}): {maximum:g}")

    def _numbers(self, name: str, stored: Sequence[float], computed: NDArray[Any], tolerance: float) -> None:
        self.differences.values += len(stored)
        deviations = [
            f"{old:g}, now {new:g}"
            for old, new in zip(stored, computed.tolist(), strict=True)
            if abs(old - new) > tolerance * max(abs(new), 0.05)
        ]
        if deviations:
            self._say(f"has another {name} ({deviations[0]})")

    def _links(self, name: str, computed: Sequence[tuple[int, int, float]]) -> None:
        """The stored links must be the computed ones; at the weakest link, a near tie may exchange two."""
        stored = {(layer, m): weight for layer, m, weight in self.entry[name]}
        links = {(layer, m): weight for layer, m, weight in computed}
        self.differences.values += len(stored)
        weakest = min((abs(weight) for weight in links.values()), default=0.0)
        for link in stored.keys() | links.keys():
            old, new = stored.get(link), links.get(link)
            if old is None or new is None:
                weight = abs(new if old is None else old)  # type: ignore[arg-type]
                far = len(stored) != len(links) or abs(weight - weakest) > 0.02 * max(weight, weakest)
            else:
                far = abs(old - new) > 0.02 * max(abs(old), abs(new))
            if far:
                self._say(f"has other links ({name})")
                return

    def _pictures(self, panels: Panels, count: int) -> None:
        loss = self._codec_loss
        layer, k, row = self.layer, self.index["k"], self.row
        encoding, folder = self.index["encoding"], self.path / "tiles" / str(self.layer.number)
        (height, width), (eh, ew) = layer.sizes["tile"], layer.sizes["example"]
        parts, tiles = len(panels.tiles[0]) // k, panels.tiles[0]
        sheet = _sheet(folder / f"{row // PER['tiles']}.{encoding}")
        top = row % PER["tiles"] * height
        for part in range(parts):
            kind = "projection" if part == parts - 1 else "crop"
            for rank in range(count):
                slot = part * k + rank
                cell = sheet[top : top + height, slot * width : (slot + 1) * width]
                self._tile(kind, cell, tiles[slot], loss(tiles[slot]))
        if panels.examples is not None:
            for slot in range(len(self.entry["examples"])):
                left = parts * k * width + slot * ew
                example = panels.examples[0, slot]
                self._tile("example", sheet[top : top + eh, left : left + ew], example, loss(example))
        if not count:
            return
        (height, width), columns, n = layer.sizes["overview"], ACROSS["overview"], row % PER["overview"]
        sheet = _sheet(folder / f"overview-{row // PER['overview']}.{encoding}")
        top, left = n // columns * height, n % columns * parts * width
        for part in range(parts):
            cell = sheet[top : top + height, left + part * width : left + (part + 1) * width]
            self._tile("tile of the overview", cell, panels.overview[0, part], loss(panels.overview[0, part]))
        (height, width), columns, n = layer.sizes["mask"], ACROSS["masks"], row % PER["masks"]
        alpha = _sheet(folder / f"masks-{row // PER['masks']}.png", "RGBA")[..., 3]
        top, left = n // columns * height, n % columns * k * width
        for rank in range(count):
            cell = alpha[top : top + height, left + rank * width : left + (rank + 1) * width]
            self.differences.tiles += 1
            if cell.shape != (height, width) or ((cell == 0) != panels.masks[0, rank]).mean() > FLIPPED:
                self._say("has another mask")

    def _codec_loss(self, tile: Bytes) -> float:
        """The difference that the codec itself makes in a tile."""
        encoding, lossless = self.index["encoding"], min(self.layer.sizes["tile"]) < LOSSLESS
        with Image.open(io.BytesIO(encoded(tile, encoding, lossless=lossless))) as image:
            return _difference(np.array(image.convert("RGB")), tile)

    def _tile(self, kind: str, stored: Bytes, computed: Bytes, loss: float) -> None:
        self.differences.tiles += 1
        if stored.shape != computed.shape:
            self._say(f"has a {kind} of another size")
            return
        difference = _difference(stored, computed)
        if difference > LOST + TIMES * loss:
            self._say(f"has another {kind}: a mean difference of {difference:.0f} of 255")


def _difference(one: Bytes, other: Bytes) -> float:
    """The mean absolute difference of two pictures, of 255."""
    return float(np.abs(one.astype(float) - other).mean())


def _sheet(path: Path, mode: str = "RGB") -> Bytes:
    try:
        with Image.open(path) as image:
            return np.array(image.convert(mode))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {first_line(error)}") from None
