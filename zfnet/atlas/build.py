"""Build an atlas: a folder of pictures and numbers of every feature map, and the site that shows it.

One scan for all layers; then layer by layer the nine of every map are projected, drawn and encoded, by blocks of maps,
so that memory does not grow with their number. Finished files are kept until the end, so that an interrupted build
resumes.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
import torch
from torch import nn
from tqdm import tqdm

from zfnet.atlas.images import Reader
from zfnet.atlas.layers import ACROSS, PER, Layer, fitted, names_of, network, plan
from zfnet.atlas.links import MOST, Links, weights
from zfnet.atlas.numbers import Numbers
from zfnet.atlas.panels import QUANTILES, Examples, Painter, examples
from zfnet.atlas.pictures import LOSSLESS, Bytes, Sprites, as_bytes, beside, check_format, encoded, encoded_mask
from zfnet.atlas.threads import Clock, each_alone, release_memory
from zfnet.atlas.writing import FORMAT, Partial, check_out, exact, script
from zfnet.checks import Pair, check_number, check_weights
from zfnet.data.batches import Batches
from zfnet.data.images import Images, SubsetImages, as_images, image_size
from zfnet.data.preprocessing import Preprocessing
from zfnet.deconvnet import Deconvnet
from zfnet.errors import InputError, unknown_name
from zfnet.files import locked
from zfnet.gathering import EDGES
from zfnet.graph import Graph
from zfnet.identity import digest, network_identity
from zfnet.operations import Rules
from zfnet.rendering import resized
from zfnet.scan_files import kept_scan
from zfnet.scanning import Scan

BLOCK = 192  # maps that are projected together
SIDE, THUMB = 224, 64  # pixels: the longer side of a whole image, and of one of images="thumbs"
WINNERS = 64  # images in a file of what they win
SITE = Path(__file__).parent / "site"
PIXELS = ("full", "thumbs", "none")
CITE = (
    "The projections are those of: M. D. Zeiler and R. Fergus, Visualizing and Understanding Convolutional Networks, "
    "ECCV 2014. The atlas was made with zfnet."
)
LICENCE = (
    "The licence of the images is not known: look it up before you publish this atlas, or "
    "build it with images=none, which holds no pixel of them."
)
NO_PIXELS = "This atlas holds projections and numbers, and no pixel of an image."


def build(
    model: nn.Module | Graph,
    dataset: Any,
    out: str | os.PathLike[str],
    *,
    layers: str | Sequence[str | nn.Module] | None = None,
    maps: Any = None,
    scan: Scan | None = None,
    scans: str | os.PathLike[str] | None = None,
    images: Literal["full", "thumbs", "none"] = "full",
    format: Literal["webp", "avif"] = "webp",
    rules: Rules | str = "deconvnet",
    title: str | None = None,
    licence: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    random: bool = False,
    seed: int = 0,
    k: int = 9,
    workers: int | None = None,
    batch_size: int = 64,
    progress: bool = True,
    fresh: bool = False,
    spent: dict[str, float] | None = None,
) -> Path:
    """Build an atlas in the folder `out`; return the folder. index.html in it opens by double click.

    It is built in `<out>.partial`, where an interrupted build resumes, and replaces an existing atlas at `out` at the
    very end. The same network, images and settings give the same bytes.

    Args:
        model: the network.
        dataset: what `as_images` takes: images of one size.
        layers: names or modules; None or "auto": five that stand for the paper's; "all".
        maps: None: all maps of a layer; see `zfnet.atlas.layers.chosen_maps`.
        scan: of these layers with `gather=True`; None: the images are scanned now.
        scans: the folder where that scan is kept, and from which it is read if it is there; None: nowhere.
        images: pictures of the images: "full"; "thumbs": whole images are small; "none": projections and numbers only.
        format: of the pictures.
        rules: of the projections; see Deconvnet.
        title: of the first page.
        licence: a sentence that says which of the images may be published; None: unknown.
        provenance: further entries for the first page about how the atlas was made.
        random: whether the weights are random; the first page then says so.
        seed: of the run, for the provenance.
        k: winners of each map; of a `scan` that is given, its own.
        workers: processes that read images.
        batch_size: images that are scanned at a time.
        progress: show progress bars.
        fresh: discard an interrupted build and start again.
        spent: receives the seconds of each part of the work.

    Raises:
        InputError: for unknown layers or maps, a step without a rule, and a folder at `out` that holds something else.
    """
    job = prepared(model, dataset, layers, maps, rules, k if scan is None else _k(scan))
    if images not in PIXELS:
        raise unknown_name("images", str(images), PIXELS)
    check_format(format)
    _check_plain(provenance or {})
    out = Path(out).expanduser().absolute()
    check_out(out)
    identity = job.identity | {"images": images, "encoding": format, "format": str(FORMAT)}
    with locked(out.with_name(f".{out.name}.lock"), f"builds an atlas in {out}"):
        folder = Partial(out, identity, fresh)
        try:
            work = _Work(job, folder, images, format, workers, progress)
            with each_alone():
                work.links()
            if scan is None:
                reading: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
                kept = folder.work / "scan" if scans is None else Path(scans)
                scan = kept_scan(job.graph, job.images, kept, job.names, job.k, fresh=fresh, **reading)
            work.clock("scan")
            with each_alone() as threads:
                work.all(check_scan(scan, job), threads)
            work.finish(title, licence, provenance or {}, random, seed)
        finally:
            folder.close()
    if spent is not None:
        spent |= work.clock.seconds
    return out


def _check_plain(provenance: Mapping[str, Any]) -> None:
    """Raises InputError for provenance that the first page cannot show."""
    for name, value in provenance.items():
        if not isinstance(value, str | int | float | None) or value in (math.inf, -math.inf) or value != value:
            raise InputError(f"provenance {name} is {value!r}; give text, a finite number, or None")


def _k(scan: Scan) -> int:
    return next((top.value.shape[1] for top in scan.values()), 9)


@dataclass
class Job:
    """The subject of an atlas: a network, its images, and the layers."""

    deconvnet: Deconvnet
    images: Images
    image_size: Pair
    k: int
    layers: list[Layer]
    preprocessing: Preprocessing
    rules: str  # their name

    @property
    def graph(self) -> Graph:
        return self.deconvnet.graph

    @property
    def names(self) -> list[str]:
        return [layer.name for layer in self.layers]

    @property
    def identity(self) -> dict[str, str]:
        """The identity of all pictures and numbers."""
        rules = sorted(f"{key} {row.back}" for key, row in self.deconvnet.rules.items())
        return self.graph.identity() | {
            "preprocessing": self.preprocessing.identity(),
            "data": self.images.identity(),
            "rules": digest([rule.partition(" at 0x")[0] for rule in rules]),
            "layers": digest(self.names),
            "maps": digest([layer.chosen for layer in self.layers]),
            "k": str(self.k),
        }


def prepared(model: nn.Module | Graph, dataset: Any, layers: Any, maps: Any, rules: Rules | str, k: int) -> Job:
    """Check everything that can be checked before the images are scanned: also that every layer can be projected."""
    k, deconvnet = check_number("k", k), Deconvnet(model, rules=rules)
    graph, images = deconvnet.graph, as_images(dataset)
    check_weights(graph.model)
    size = image_size(images)
    names = names_of(graph, size, layers, deconvnet.rules)
    preprocessing = _preprocessing(graph.model, images)
    planned = plan(deconvnet, size, names, maps, k)
    deconvnet.check(names, size)
    return Job(deconvnet, images, size, k, planned, preprocessing, rules if isinstance(rules, str) else "own")


def _preprocessing(model: nn.Module, images: Images) -> Preprocessing:
    """How the images were prepared, which pictures of them undo: as their transform says, or else the model.

    Raises:
        InputError: where neither says it, and pixels are not in 0..1.
    """
    source: Any = images
    while isinstance(source, SubsetImages):
        source = source.whole
    for owner in (source, getattr(source, "dataset", None)):
        if isinstance(transform := getattr(owner, "transform", None), Preprocessing):
            return transform
    if getattr(model, "preprocessing", None) is None:
        first = next(iter(Batches(images, 1, workers=0))).images
        low, high = float(first.min()), float(first.max())
        if low < 0 or high > 1:
            raise InputError(
                f"an image has values from {low:.3g} to {high:.3g}, and its preprocessing is not known, so that no "
                "picture can be drawn of it: give the dataset transform=Preprocessing(...), or set model.preprocessing"
            )
    return Preprocessing.of(model)


def check_scan(scan: Scan, job: Job) -> Scan:
    """InputError for a scan that is not of the layers, or without statistics."""
    for layer in job.layers:
        if layer.name not in scan:
            raise unknown_name("scanned layer", layer.name, list(scan))
        if len(scan[layer.name].value) != layer.maps:
            raise InputError(
                f"the scan has {len(scan[layer.name].value)} maps of {layer.name}, the network {layer.maps}"
            )
        images = scan[layer.name].image.sort(1).values
        if ((images[:, 1:] == images[:, :-1]) & (images[:, 1:] >= 0)).any():
            raise InputError("the scan counts an image several times for a map; scan with distinct=True")
    if scan.statistics is None:
        raise InputError("the scan has no statistics; scan with gather=True")
    if scan.images + len(scan.broken) != len(job.images):
        raise InputError(f"the scan is of {scan.images + len(scan.broken)} images, the data has {len(job.images)}")
    if (labels := job.images.labels) is not None and not scan.broken:
        classes = len(scan.class_images) - 1
        counts = torch.tensor([label if 0 <= label < classes else classes for label in labels]).bincount(
            minlength=classes + 1
        )
        if not torch.equal(counts, scan.class_images):
            raise InputError("the scan is of images with other labels; scan these")
    return scan


@dataclass
class _Work:
    """One build."""

    job: Job
    folder: Partial
    pixels: str
    encoding: str
    workers: int | None
    progress: bool
    clock: Clock = field(default_factory=Clock)

    def links(self) -> None:
        """Find which maps feed which."""
        job, part = self.job, "links"
        self.clock("start")
        if known := self.folder.known(part, ""):
            weight, readers = ([_links(one) for one in known[side]] for side in ("weight", "readers"))
        else:
            below = [layer.below for layer in job.layers]
            weight, readers = weights(job.deconvnet, [layer.node for layer in job.layers], below, job.image_size)
            sides = {"weight": weight, "readers": readers}
            content = {side: [[column.tolist() for column in one] for one in table] for side, table in sides.items()}
            self.folder.begin()
            self.folder.finish(part, {"basis": "", **content})
        self.parts, self.weight, self.readers = [part], weight, readers
        self.clock("links")

    def all(self, scan: Scan, threads: int) -> None:
        """Make the files of all layers, and the whole images."""
        job = self.job
        self.scan, self.statistics = scan, scan.statistics or {}
        self.shown = {layer.name: self._examples(layer) for layer in job.layers}
        self.uses = self._uses()
        self.reader = Reader(job.images, self.uses, job.image_size, job.graph.channels, self.workers)
        self.painter = Painter(
            *(job.deconvnet, job.preprocessing, job.image_size, self.reader),
            pixels=self.pixels != "none",
            clock=self.clock,
            threads=threads,
        )
        total, self.entries = sum(layer.rows for layer in job.layers), list[dict[str, Any]]()
        with tqdm(total=total, unit=" maps", desc="atlas", disable=not self.progress) as bar:
            for layer in job.layers:
                self._layer(layer, bar)
        self._images()

    def _examples(self, layer: Layer) -> Examples:
        statistics = self.statistics[layer.name]
        return examples(statistics, self.scan.sampled, layer.chosen, layer.size[1], statistics.fires == 0)

    def _uses(self) -> Counter[int]:
        """How often each image is needed."""
        uses: Counter[int] = Counter()
        for layer in self.job.layers:
            top, shown = self.scan[layer.name], self.shown[layer.name]
            for rows in torch.arange(layer.rows).split(BLOCK):
                maps = layer.chosen[rows]
                for images in (top.image[maps][top.unclipped[maps] > 0], shown.image[rows]):
                    uses.update(images[images >= 0].unique().tolist())
        if self.pixels != "none":
            uses.update(list(uses))
        return uses

    # -- a layer

    def _layer(self, layer: Layer, bar: Any) -> None:
        top, statistics, part = self.scan[layer.name], self.statistics[layer.name], f"layer-{layer.number}"
        basis = digest(list(top), list(statistics), self.scan.class_images, self.scan.sampled, self.scan.images)
        self.parts.append(part)
        known = self.folder.known(part, basis)
        if known is None:
            self.folder.begin()
            known = {
                "basis": basis,
                **self._made(
                    layer,
                    Numbers(
                        *(layer, top, statistics, self.scan.images, self.scan.class_images, self.reader.label),
                        *(self.weight[layer.number], self.readers[layer.number]),
                    ),
                    bar,
                ),
            }
            self.folder.finish(part, known)
        else:
            bar.update(layer.rows)
        self.reader.labels.update({int(image): label for image, label in known["labels"].items()})
        self.entries.append(layer.entry(known["dead"]))

    def _made(self, layer: Layer, numbers: Numbers, bar: Any) -> dict[str, Any]:
        """Make a layer's files; what later parts need to know of them."""
        sizes, pixels, k = layer.sizes, self.pixels != "none", numbers.top.value.shape[1]
        (tile, mask, overview, example), parts = (sizes[n] for n in ("tile", "mask", "overview", "example")), 1 + pixels
        sheets = {
            "tiles": Sprites(PER["tiles"], 1, (tile[0], parts * k * tile[1] + pixels * len(QUANTILES) * example[1])),
            "masks": Sprites(PER["masks"], ACROSS["masks"], (mask[0], k * mask[1]), (), 0),
            "overview": Sprites(PER["overview"], ACROSS["overview"], (overview[0], parts * overview[1])),
        }
        columns: list[dict[str, Any]] = []
        entries: list[dict[str, Any]] = []
        for rows in torch.arange(layer.rows).split(BLOCK):
            shown = Examples(*(column[rows] for column in self.shown[layer.name]))
            panels = self.painter.panels(layer, numbers.top, shown, rows)
            cells = [panels.tiles] if panels.examples is None else [panels.tiles, panels.examples]
            made = {
                "tiles": beside(*cells),
                "masks": beside((~panels.masks).astype(np.uint8), fill=0),
                "overview": beside(panels.overview),
            }
            for kind, cell in made.items():
                for number, sheet in sheets[kind].add(cell):
                    self._sheet(layer, kind, number, sheet)
            for n, number in enumerate(layer.chosen[rows].tolist()):
                columns.append(numbers.column(number, panels.focus[n].tolist()))
                entries.append(numbers.entry(n, number, shown, panels))
            while len(entries) >= PER["maps"]:
                self._entries(layer, len(columns) - len(entries), entries[: PER["maps"]])
                entries = entries[PER["maps"] :]
            release_memory()
            self.clock("encoding and data")
            bar.update(len(rows))
        for kind, sprites in sheets.items():
            for number, sheet in sprites.rest():
                self._sheet(layer, kind, number, sheet)
        if entries:
            self._entries(layer, len(columns) - len(entries), entries)
        lists = {name: [column[name] for column in columns] for name in columns[0]}
        self._put(f"data/{layer.number}/columns.js", f"columns/{layer.number}", lists)
        self.clock("encoding and data")
        return {"dead": sum(lists["dead"]), "labels": {str(i): self.reader.label(i) for i in self._shown_in(layer)}}

    def _shown_in(self, layer: Layer) -> list[int]:
        """The images of a layer's winners and examples."""
        top, shown = self.scan[layer.name], self.shown[layer.name]
        maps = layer.chosen
        images = torch.cat([top.image[maps][top.unclipped[maps] > 0], shown.image.flatten()]).unique()
        wanted: list[int] = images[images >= 0].tolist()
        return wanted

    def _sheet(self, layer: Layer, kind: str, number: int, sheet: Bytes) -> None:
        folder = f"tiles/{layer.number}"
        if kind == "masks":
            self.folder.write(f"{folder}/masks-{number}.png", partial(encoded_mask, sheet))
        else:
            name = f"{number}" if kind == "tiles" else f"{kind}-{number}"
            lossless = min(layer.sizes["tile"]) < LOSSLESS
            make = partial(encoded, sheet, self.encoding, lossless=lossless)
            self.folder.write(f"{folder}/{name}.{self.encoding}", make)

    def _entries(self, layer: Layer, first: int, entries: list[dict[str, Any]]) -> None:
        number = first // PER["maps"]
        self._put(f"data/{layer.number}/{number}.js", f"maps/{layer.number}/{number}", entries)

    def _put(self, path: str, name: str, value: Any) -> None:
        self.folder.write(path, partial(script, name, value))

    # -- all images

    def _images(self) -> None:
        """The whole images, and what they win."""
        job, part, chosen = self.job, "images", sorted(self.uses)
        side = {"full": SIDE, "thumbs": THUMB}.get(self.pixels)
        size = (0, 0) if side is None else fitted(job.image_size, side)
        basis = digest([list(self.scan[layer.name]) for layer in job.layers], chosen)
        self.parts.append(part)
        if self.folder.known(part, basis):
            return
        self.folder.begin()
        groups = [chosen[n : n + 32] for n in range(0, len(chosen), 32)] if side is not None else []
        for group, images in zip(groups, self.reader.groups(groups), strict=True):
            self.clock("reading")
            pictures = as_bytes(resized(self.painter.rgb(images).float().cpu(), size).clamp(0, 1))
            for image, picture in zip(group, pictures, strict=True):
                self.folder.write(f"images/{image}.{self.encoding}", partial(encoded, picture, self.encoding))
            self.clock("encoding and data")
        about = {
            "id": chosen,
            "file": [job.images.file(image) for image in chosen],
            "label": [self.reader.label(image) for image in chosen],
            "size": [size] * len(chosen),
        }
        self._put("data/images.js", "images", about)
        self._winners(chosen)
        self.folder.finish(part, {"basis": basis})
        self.clock("encoding and data")

    def _winners(self, chosen: Sequence[int]) -> None:
        """The winners in each image."""
        won: dict[int, list[list[Any]]] = {image: [] for image in chosen}
        for layer in self.job.layers:
            top = self.scan[layer.name]
            units = top.units(layer.chosen.tolist())
            winners = ((units[:, 0] >= 0) & (top.unclipped[layer.chosen].flatten() > 0)).nonzero().flatten()
            boxes, values = self.painter.boxes(layer, units[winners]), top.value[layer.chosen].flatten()[winners]
            ranks = winners % top.value.shape[1]
            lines = zip(units[winners].tolist(), ranks.tolist(), values.tolist(), boxes.tolist(), strict=True)
            for (image, number, row, column), rank, value, box in lines:
                won[image].append([layer.number, number, rank, row, column, exact(value), *box])
        for n in range(0, len(chosen), WINNERS):
            number = n // WINNERS
            shard = {str(image): won[image] for image in chosen[n : n + WINNERS]}
            self._put(f"data/winners/{number}.js", f"winners/{number}", shard)

    # -- the end

    def finish(self, title: str | None, licence: str | None, more: Mapping[str, Any], random: bool, seed: int) -> None:
        """The index and the site; then the folder takes its place."""
        self.folder.join()
        digests = self.folder.digests_of(self.parts)
        self.folder.begin()
        index = self._index(title, licence, more, random, seed)
        self._put("data/index.js", "index", index)
        for file in sorted(SITE.rglob("*")) if SITE.is_dir() else []:
            if file.is_file():
                self.folder.write(file.relative_to(SITE).as_posix(), file.read_bytes)
        self.folder.join()
        self.folder.publish(digests | self.folder.digests)
        self.clock("end")

    def _index(
        self, title: str | None, licence: str | None, more: Mapping[str, Any], random: bool, seed: int
    ) -> dict[str, Any]:
        job, scan = self.job, self.scan
        model = job.graph.model
        count = len(scan.class_images) - 1
        classes = [*map(str, job.images.classes)]
        classes += [str(number) for number in range(len(classes), count)]
        name, data = type(model).__name__, job.images.title
        notice = licence or LICENCE
        return {
            "format": FORMAT,
            "title": title or f"{name} on {data}",
            "model": name,
            "dataset": data,
            "image_size": job.image_size,
            "channels": job.preprocessing.channel_count,
            "images": scan.images,
            "broken": [without_folders(message) for message in scan.broken[:20]],
            "broken_count": len(scan.broken),
            "classes": classes,
            "class_images": scan.class_images[:count].tolist(),
            "unlabelled": int(scan.class_images[count]),
            "k": job.k,
            "rules": job.rules,
            "pixels": self.pixels,
            "encoding": self.encoding,
            "warnings": warnings(job, scan, self.entries, random),
            "licence": f"{notice} {NO_PIXELS}" if self.pixels == "none" else notice,
            "provenance": provenance(job) | {"seed": seed} | {name: _plain(value) for name, value in more.items()},
            "cite": CITE,
            "bins": [None if math.isinf(edge) else edge for edge in EDGES.tolist()],
            "winners": -(-len(self.uses) // WINNERS),
            "network": network(job.graph, job.image_size, job.layers),
            "layers": self.entries,
        }


def _plain(value: Any) -> Any:
    return without_folders(value) if isinstance(value, str) else value


def _links(columns: Sequence[Any]) -> Links:
    layer, maps, weight = (torch.tensor(column) for column in columns)
    return Links(layer.view(-1, MOST), maps.view(-1, MOST), weight.float().view(-1, MOST))


def warnings(job: Job, scan: Scan, entries: Sequence[Mapping[str, Any]], random: bool) -> list[str]:
    """The warnings of the first page, as sentences."""
    found = []
    if random:
        found.append("The weights are random: what the maps show was not learned.")
    labelled = scan.class_images[:-1]
    few = max(500, job.k * int((labelled > 0).sum()))
    if scan.images < few:
        found.append(
            f"Only {scan.images:,} images were read: with fewer than {few:,}, the strongest images of a map need not "
            "be typical."
        )
    if scan.broken:
        found.append(
            f"{len(scan.broken)} images could not be read and are left out, first: {without_folders(scan.broken[0])}."
        )
    for entry in entries:
        if entry["dead"] > entry["rows"] / 4:
            found.append(f"{entry['dead']} of {entry['rows']} maps of {entry['name']} are above 0 on no image.")
    rare = int(((labelled > 0) & (labelled < 3)).sum())
    if rare:
        found.append(f"{rare} classes have one or two images: their means and selectivity are not reliable.")
    return found


def without_folders(text: str) -> str:
    """A text whose paths are names of files alone: an atlas may be published, and folders tell of a computer."""
    return re.sub(r"(?<![^\s=\[('\"])(?:/[^/:=,\[\]'\"]+)+/", "", text)


def provenance(job: Job) -> dict[str, Any]:
    """How the atlas was made, without entries that differ from run to run."""
    versions = {name: _version(name) for name in ("zfnet", "torch", "torchvision")}
    return {
        **versions,
        "pillow": PIL.__version__,
        **network_identity(job.graph.model),
        "preprocessing": job.preprocessing.identity(),
        "data": job.images.identity(),
        "rules": job.rules,
        "k": job.k,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
