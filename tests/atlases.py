"""Made-up atlases: folders in the format that `zfnet.atlas.build` writes, without a network and without photographs.

The numbers are drawn by lot but agree with each other as those of an atlas do: values fall, boxes belong to units, the
images' list has all images that are shown, and `winners` says the same as the maps.
"""

import json
import math
from bisect import bisect_left
from collections import defaultdict
from hashlib import blake2b
from pathlib import Path
from shutil import copyfile, copytree
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import zfnet

SITE = Path(zfnet.__file__).parent / "atlas" / "site"
EDGES: list[Any] = [None, *(-(2 ** (i / 4)) for i in range(80, -81, -1)), *(2 ** (i / 4) for i in range(-80, 81)), None]
HOSTILE = [
    "<script>document.title='broken into'</script>",
    '"><img src=x onerror="window.broken=1">',
    "Blaue Stühle & 'Äpfel' \"süß\"",
    "ein sehr langer Name " * 12,
    "javascript:window.broken=1",
    "a/b.c?d#e%20f",
]


class Layer(NamedTuple):
    """A layer of a made-up atlas; sizes in units, fields and strides in pixels of the image."""

    name: str
    maps: int
    size: int
    field: int | None
    stride: int
    clipped: bool = False
    chosen: tuple[int, ...] | None = None
    dead: int = 0


LAYERS = (
    Layer("relu1", 24, 16, 7, 4),
    Layer("block.2/relu", 40, 8, 27, 8, dead=3),
    Layer("relu6", 30, 8, 43, 8, clipped=True, chosen=(2, 3, 5, 7, 11, 13, 17, 19, 23, 29)),
    Layer("relu3", 36, 4, 151, 16, dead=1),
)


def put(folder: Path, name: str, value: object, *, at: str | None = None) -> None:
    """Write the file of data that has this name."""
    path = folder / "data" / f"{at or name}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"atlas.put({json.dumps(name)}, {json.dumps(value, sort_keys=True, separators=(',', ':'))});\n")


def digits(value: float) -> float:
    return float(f"{value:.5g}")


def bin_of(value: float) -> int:
    """The bin of a value: bin i holds those above edge i and up to edge i + 1."""
    return bisect_left(EDGES, value, 1, len(EDGES) - 1) - 1  # the first and the last edge are at infinity


class Atlas:
    """What `write_atlas` is writing: its choices, and what the maps have used so far."""

    def __init__(self, folder: Path, layers: tuple[Layer, ...], **choices: Any) -> None:
        self.folder, self.layers = folder, layers
        self.images, self.classes, self.k = choices["images"], choices["classes"], choices["k"]
        self.pixels, self.copies, self.side = choices["pixels"], choices["copies"], choices["side"]
        self.lot = np.random.default_rng(choices["seed"])
        self.labels = [i % len(self.classes) if self.classes else -1 for i in range(self.images)]
        self.shown: set[int] = set()
        self.winners: dict[int, list[list[float]]] = defaultdict(list)

    def box(self, layer: Layer, row: int, column: int) -> list[int]:
        field = layer.field or self.side
        centre = (layer.stride - 1) // 2
        top, left = row * layer.stride + centre - field // 2, column * layer.stride + centre - field // 2
        return [top, left, top + field, left + field]

    def map(self, number: int, row: int) -> dict[str, Any]:
        """All that is known of one map: `number` is its layer's."""
        layer, lot = self.layers[number], self.lot
        map = layer.chosen[row] if layer.chosen else row
        if row >= (len(layer.chosen) if layer.chosen else layer.maps) - layer.dead:
            lists = ("value", "image", "row", "column", "label", "box", "focus", "area", "examples")
            empty: dict[str, Any] = {key: [] for key in lists}
            nothing = {"map": map, "fires": 0, "mean": 0, "classes": [], "selectivity": None, "steps": [], "weight": []}
            more = {"unclipped": []} if layer.clipped else {}
            return empty | nothing | more | {"bins": [[bin_of(0), self.images]], "signal": [], "readers": []}
        k = min(self.k, self.images)
        values = np.sort(lot.gamma(2, 2, k).astype(np.float32))[::-1]
        item: dict[str, Any] = {"map": map, "image": lot.permutation(self.images)[:k].tolist()}
        item["value"] = [float(str(np.float32(min(value, 6) if layer.clipped else value))) for value in values]
        if layer.clipped:
            item["unclipped"] = [float(str(value)) for value in values]
        item["row"], item["column"] = lot.integers(0, layer.size, (2, k)).tolist()
        item["label"] = [self.labels[image] for image in item["image"]]
        item["box"] = [self.box(layer, *place) for place in zip(item["row"], item["column"], strict=True)]
        self.shown.update(item["image"])
        for rank, image in enumerate(item["image"]):
            place = [item["row"][rank], item["column"][rank], item["value"][rank]]
            self.winners[image].append([number, map, rank, *place, *item["box"][rank]])
        maxima = lot.gamma(2, 0.5, self.images - k).clip(None, float(values[-1])) * (lot.random(self.images - k) > 0.3)
        counts: dict[int, int] = defaultdict(int)
        for value in [*values.tolist(), *maxima.tolist()]:
            counts[bin_of(value)] += 1
        item["bins"] = [[bin, counts[bin]] for bin in sorted(counts)]
        item["fires"] = digits(((maxima > 0).sum() + k) / self.images)
        item["mean"] = digits((maxima.sum() + values.sum()) / self.images)
        means = np.sort(lot.gamma(2, 1, min(5, len(self.classes))))[::-1]
        best = lot.permutation(len(self.classes))[: len(means)].tolist()
        item["classes"] = [
            [c, digits(mean), digits(item["label"].count(c) / k)] for c, mean in zip(best, means, strict=True)
        ]
        item["selectivity"] = digits(lot.random()) if self.classes else None
        item["focus"] = [digits(value) for value in lot.uniform(0.02, 0.5, k)]
        item["area"] = [digits(value) for value in lot.uniform(0.1, 0.9, k)]
        item["examples"] = [self.example(layer, quantile, values[-1] * quantile) for quantile in (0.9, 0.5, 0.1, 0)]
        for name, other, most in (("weight", number - 1, 2), ("signal", number - 1, 1), ("readers", number + 1, 2)):
            near = self.layers[other].maps if 0 <= other < len(self.layers) else 0
            found = lot.permutation(near)[:6].tolist()
            item[name] = [
                [other, m, digits(most * (0.9**i) * (-1 if most == 2 and i % 3 == 1 else 1))]
                for i, m in enumerate(found)
            ]
        item["steps"] = [1, *lot.integers(2, 2000, 3).tolist()]
        return item

    def example(self, layer: Layer, quantile: float, value: float) -> dict[str, Any]:
        image = int(self.lot.integers(self.images))
        self.shown.add(image)
        row, column = self.lot.integers(0, layer.size, 2).tolist()
        unit = {"image": image, "row": row, "column": column, "box": self.box(layer, row, column)}
        return unit | {"quantile": quantile, "value": digits(float(value)), "label": self.labels[image]}

    def picture(self, path: Path, height: int, width: int, tile: tuple[int, int], *, grey: bool = False) -> None:
        """A sheet of tiles of noise about a colour of their own; `grey`: those that look like projections."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rows, columns = math.ceil(height / tile[0]), math.ceil(width / tile[1])
        colours = self.lot.integers(60, 200, (rows, columns, 3))
        pixels = np.kron(colours, np.ones((*tile, 1)))[:height, :width]
        noise = self.lot.normal(0, 10 if self.copies else 40, (height, width, 3))
        pixels = np.where(self.gray(columns, tile, width, height, grey), 128 + noise, pixels + noise / 4)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=70, method=0)

    @staticmethod
    def gray(columns: int, tile: tuple[int, int], width: int, height: int, every: bool) -> np.ndarray:
        """Which pixels are a projection's: of pairs the second, of nine and nine the second nine."""
        of_tile = (np.arange(columns) % 2 == 1) if every else (np.arange(columns) >= columns // 2)
        return np.broadcast_to(np.repeat(of_tile, tile[1])[:width, None], (height, width, 1))

    def sheets(self, number: int, entry: dict[str, Any]) -> None:
        """The pictures of a layer; with `copies` the full sheets are copies of the first."""
        folder, rows, per, across = self.folder / "tiles" / str(number), entry["rows"], entry["per"], entry["across"]
        none = self.pixels == "none"
        wide = self.k * entry["tile"][1] * (1 if none else 2) + (0 if none else 4 * entry["example"][1])
        sizes = {
            "tiles": (entry["tile"], wide),
            "overview": (entry["overview"], 16 * entry["overview"][1] * (1 if none else 2)),
        }
        sizes["masks"] = (entry["mask"], across["masks"] * self.k * entry["mask"][1])
        for kind, (tile, width) in sizes.items():
            for n in range(math.ceil(rows / per[kind])):
                lines = math.ceil(min(per[kind], rows - n * per[kind]) / across[kind])
                name = f"masks-{n}.png" if kind == "masks" else f"{'overview-' if kind == 'overview' else ''}{n}.webp"
                full = lines * across[kind] == per[kind]
                if self.copies and n and full:
                    copyfile(folder / name.replace(str(n), "0"), folder / name)
                elif kind == "masks":
                    self.masks(folder / name, lines * tile[0], width, tile[0])
                else:
                    self.picture(folder / name, lines * tile[0], width, tuple(tile), grey=kind == "overview")

    def masks(self, path: Path, height: int, width: int, side: int) -> None:
        """Rings: mid-grey and opaque outside, transparent inside."""
        path.parent.mkdir(parents=True, exist_ok=True)
        y, x = np.mgrid[:height, :width] % side - side / 2
        hidden = (y**2 + x**2 > (side / 3) ** 2).astype(np.uint8)
        Image.fromarray(np.stack([128 * hidden] * 3 + [255 * hidden], 2), "RGBA").save(path)

    def layer(self, number: int) -> dict[str, Any]:
        """Write a layer; its entry in the index."""
        layer = self.layers[number]
        rows = len(layer.chosen) if layer.chosen else layer.maps
        whole = layer.field is None or layer.field**2 > 2 * self.side**2
        shown = self.side if whole else layer.field
        tile, small = min(shown, 80), min(shown, 48)
        entry: dict[str, Any] = {
            "name": layer.name,
            "operation": "ReLU6" if layer.clipped else "ReLU",
            "maps": layer.maps,
        }
        entry |= {"rows": rows, "size": [layer.size] * 2, "kernel": [3, 3], "stride": [1, 1], "fields": False}
        entry |= {"field": layer.field and [layer.field] * 2, "field_stride": [layer.stride] * 2, "whole": whole}
        entry |= {"clipped": layer.clipped, "dead": layer.dead, "tile": [tile] * 2, "shown": [shown] * 2}
        entry |= {"overview": [small] * 2, "example": [small] * 2, "mask": [min(tile, 56)] * 2}
        entry |= {"per": {"tiles": 24, "masks": 96, "overview": 256, "maps": 64}}
        entry |= {"across": {"tiles": 1, "masks": 4, "overview": 16}, "kernel_of": f"conv{number + 1}"}
        entry |= {
            "below": [number - 1] if number else [],
            "above": [number + 1] if number + 1 < len(self.layers) else [],
        }
        entry["steps"] = [
            [layer.name, entry["operation"]],
            ["conv", "Conv2d"],
            ["pool", "MaxPool2d"],
            ["image", "input"],
        ]
        maps = [self.map(number, row) for row in range(min(rows, 128) if self.copies else rows)]
        if self.copies:
            maps = [maps[row % 128] | {"map": row} for row in range(rows)]
        for n in range(math.ceil(rows / 64)):
            put(self.folder, f"maps/{number}/{n}", maps[64 * n : 64 * (n + 1)], at=f"{number}/{n}")
        columns = self.columns(maps)
        if self.copies:  # no two maps the same, to be sorted
            for name in ("strength", "fires", "selectivity", "focus"):
                columns[name] = [digits(value) for value in self.lot.random(rows).tolist()]
        put(self.folder, f"columns/{number}", columns, at=f"{number}/columns")
        self.sheets(number, entry)
        return entry

    @staticmethod
    def columns(maps: list[dict[str, Any]]) -> dict[str, list[Any]]:
        def mean(values: list[float]) -> float | None:
            return digits(sum(values) / len(values)) if values else None

        columns: dict[str, list[Any]] = {key: [item[key] for item in maps] for key in ("map", "fires", "selectivity")}
        columns["strength"] = [digits((item.get("unclipped") or item["value"] or [0])[0]) for item in maps]
        columns["class"] = [item["classes"][0][0] if item["classes"] else -1 for item in maps]
        columns["agree"] = [item["classes"][0][2] if item["classes"] else 0 for item in maps]
        columns["focus"] = [mean(item["focus"]) for item in maps]
        columns["dead"] = [not item["fires"] for item in maps]
        return columns

    def write_images(self, files: list[str | None]) -> int:
        """The images that maps show, and which maps show them; the number of shards of the latter."""
        ids = sorted(self.shown)
        sizes = [[min(self.side, 224)] * 2 for _ in ids]
        listed = {"id": ids, "file": [files[i] for i in ids], "label": [self.labels[i] for i in ids], "size": sizes}
        put(self.folder, "images", listed)
        for n in range(math.ceil(len(ids) / 64)):
            some = {str(i): self.winners[i] for i in ids[64 * n : 64 * (n + 1)] if i in self.winners}
            put(self.folder, f"winners/{n}", some)
        for place, i in enumerate(ids if self.pixels != "none" else []):
            path = self.folder / "images" / f"{i}.webp"
            if self.copies and place:
                copyfile(self.folder / "images" / f"{ids[0]}.webp", path)
            else:
                self.picture(path, self.side, self.side, (self.side // 8,) * 2)
        return math.ceil(len(ids) / 64)


def write_atlas(
    folder: Path,
    *,
    layers: tuple[Layer, ...] = LAYERS,
    images: int = 60,
    classes: tuple[str, ...] = ("cat", "dog", "house", "tree"),
    k: int = 9,
    pixels: str = "full",
    hostile: bool = False,
    copies: bool = False,
    side: int = 64,
    seed: int = 0,
    title: str = "Made-up atlas",
    model: str = "nine made-up layers",
    site: bool = True,
) -> dict[str, Any]:
    """Write a made-up atlas; the same arguments give the same files.

    Args:
        folder: is made.
        layers: from the image up; a layer whose field has more than twice the image's pixels shows whole images.
        images: of the made-up data set.
        k: units of a map.
        pixels: "full" or "none", as the builder's `images`.
        hostile: classes and files have names that try to break the page.
        copies: fast, for many maps: full sheets of a layer are copies of its first one, maps of its first 128, images
            of the first image; the columns are drawn by lot.
        side: rows and columns of the network's image.
        site: with the pages.

    Returns:
        The index.
    """
    names = HOSTILE if hostile else list(classes)
    files: list[str | None] = [f"photographs/{i:04}.jpg" for i in range(images)]
    if hostile:
        files = [HOSTILE[i % len(HOSTILE)] + str(i) for i in range(images)]
    made = Atlas(folder, layers, images=images, classes=names, k=k, pixels=pixels, copies=copies, side=side, seed=seed)
    entries = [made.layer(number) for number in range(len(layers))]
    network: list[dict[str, Any]] = []
    for number, layer in enumerate(layers):
        step = {"output": [layer.maps, layer.size, layer.size], "kernel": [3, 3], "stride": [2, 2], "field": None}
        network.append(step | {"name": f"conv{number + 1}", "operation": "Conv2d", "layer": None})
        network.append(
            step | {"name": layer.name, "operation": "ReLU", "layer": number, "kernel": None, "stride": None}
        )
    index = {"format": 1, "title": title, "model": model, "dataset": "made-up photographs", "image_size": [side, side]}
    index |= {"channels": 3, "images": images, "broken": ["photographs/9999.jpg is truncated"], "broken_count": 1}
    index |= {"classes": names, "class_images": [made.labels.count(i) for i in range(len(names))], "unlabelled": 0}
    index |= {"k": k, "rules": "deconvnet", "pixels": pixels, "encoding": "webp", "bins": EDGES}
    index |= {"warnings": ["The weights are random: this network has learned nothing."], "licence": None}
    index |= {"provenance": {"zfnet": "0.2.0", "seed": seed, "weights": "0" * 64, "commit": None}}
    index |= {"cite": "Made up for tests.", "network": network, "layers": entries}
    put(folder, "index", index | {"winners": made.write_images(files)})
    if site:
        copytree(SITE, folder, dirs_exist_ok=True)
    digests = {
        path.relative_to(folder).as_posix(): blake2b(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / "files.json").write_text(json.dumps(digests, indent=0, sort_keys=True))
    return index


def read(folder: Path, name: str) -> Any:
    """The value that a file of data puts: read(folder, "0/columns")."""
    text = (folder / "data" / f"{name}.js").read_text()
    return json.loads(text[text.index(",") + 1 : text.rindex(")")])
