"""Figure 7: what a grey square, slid over the image, does to a layer-5 feature map and to the classifier.

The caption's sense: (a) images, with a square that covers them part by part; (b) for each place of it, the activity of
one layer-5 map, summed over space, the one that is strongest without the square; (c) that map projected down into this
image (black frame) and into others; (d) the probability of the true class; (e) the most probable class.

What to look for: where (b) falls, the square hides the structure that (c) shows, so the projection speaks of what does
stimulate the map; where (d) falls, it hides what the class depends on, which should be the object and not the scene.
The two need not be one place. The paper leaves both to the eye; here (b) and (d) are correlated, and where the
objects' masks are known it is counted how often the minimum of (d) is on the object.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.stats import binomtest
from torch import Tensor, nn
from tqdm import tqdm

from experiments.output.pages import DPI, frame, page, place, text
from experiments.output.results import Provenance, results, write_result
from experiments.setup.datasets import IMAGENET, class_of
from zfnet import Deconvnet, InputError, OcclusionMaps, occlusion_maps, scan
from zfnet.checks import device_and_dtype
from zfnet.data.preprocessing import Preprocessing
from zfnet.graph import Graph
from zfnet.rendering import resized, signed_image

SIDE, SQUARE, PLACES = 224, 50, 30  # measured in the paper's bitmaps: a 50-pixel square, every 6 pixels
LABELS = 8  # classes that a legend names

PAPER: dict[str, Any] = {
    "square": SQUARE,
    "step": 6,
    "places": [PLACES, PLACES],
    "correlation": [0.66, -0.39, -0.19],  # of (b) and (d), by the rank of their colours
    "images": [
        {
            "class": "Pomeranian",
            "probability": {"lowest": 0.053, "median": 0.957, "highest": 0.987, "at": [84, 96]},
            "activity": {"at": [72, 114]},
            "labels": {"Pomeranian": 879, "tennis ball": 9, "Pekinese": 9, "Keeshond": 3},
        },
        {
            "class": "car wheel",
            "probability": {"lowest": 0.006, "median": 0.144, "highest": 0.295, "at": [12, 156]},
            "activity": {"at": [84, 42]},
            "labels": {"cab": 435, "racer": 326, "car wheel": 129, "police van": 10},
        },
        {
            "class": "Afghan hound",
            "probability": {"lowest": 0.004, "median": 0.375, "highest": 0.757, "at": [144, 102]},
            "activity": {"at": [78, 156]},
            "labels": {
                "Afghan hound": 762,
                "Gordon setter": 48,
                "mortarboard": 27,
                "ice lolly": 21,
                "fur coat": 17,
                "academic gown": 11,
                "Irish setter": 6,
                "Vizsla": 5,
                "Australian terrier": 2,
                "neck brace": 1,
            },
        },
    ],
    "on_object": None,
}


@dataclass
class Row:
    """One image of the figure."""

    name: str
    picture: Tensor  # (3, H, W) in 0..1
    maps: OcclusionMaps
    projections: Tensor  # (n, 3, S, S) in 0..1, this image's first
    classes: Sequence[str]
    known: bool  # whether the class is the image's own


def main(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    layer: str = "relu5",
    images: int | Sequence[int] = 3,
    size: int | Sequence[int] | None = None,
    step: int | Sequence[int] | None = None,
    fill: float | Sequence[float] = 0.0,
    others: int = 3,
    measured: int = 64,
    seed: int = 0,
    batch_size: int = 64,
    workers: int | None = None,
    width: int = 2400,
    progress: bool = True,
) -> dict[str, Any]:
    """Slide the square over each image, draw the five columns, measure; return what result.json holds.

    images: so many at random, by seed, or these. size: of the square, pixels; None: the paper's share of the image's
    side, 50 of 224. step: None: what comes nearest to the paper's 30 x 30 places. fill: of normalised images; 0 is
    the mean, the paper's grey. others: images beside this one that the map is projected into, its strongest.
    measured: where masks are known, images on which it is counted whether the lowest probability is on the object.
    Where the network does not know an image's class, its likeliest one stands for it, and nothing is counted.
    """
    provenance = Provenance(model, seed=seed)
    random = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(data), generator=random).tolist()
    drawn = _chosen(images, shuffled, len(data))
    if others < 0 or measured < 0 or width < 800:
        raise InputError(f"others={others}, measured={measured}, width={width}: give at least 0, 0 and 800")
    deconvnet = Deconvnet(model)
    deconvnet.graph.node(layer)
    extent = tuple(data[drawn[0]][0].shape[-2:])
    side = min(extent)
    size = round(SQUARE / SIDE * side) if size is None else size
    step = max(1, round((side - max(_pair(size))) / (PLACES - 1))) if step is None else step

    classes = _classes(deconvnet.graph, data, extent)

    def occluded(index: int) -> OcclusionMaps:
        image, label = data[index]
        if label < 0:
            raise InputError(f"image {index}{_named(data, index)} has no label; give data.labels, or class folders")
        target = class_of(data, label, len(classes))
        return occlusion_maps(deconvnet.graph, image, size=size, step=step, fill=fill, layer=layer, target=target)

    swept = {i: occluded(i) for i in tqdm(drawn, unit=" images", desc="occlude", disable=not progress)}
    tops = scan(
        deconvnet.graph,
        data,
        [layer],
        others + 1,
        batch_size=batch_size,
        workers=workers,
        state=Path(out) / "scan.partial",
        progress=progress,
    )
    preprocessing = Preprocessing.of(model)
    own = {i: class_of(data, data[i][1], len(classes)) is not None for i in drawn}
    known = all(own.values())
    rows = []
    for index, maps in swept.items():
        winners = [i for i in tops[layer].image[maps.map].tolist() if i not in (index, -1)][:others]
        signals = torch.cat([_projected(deconvnet, data[i][0], layer, maps.map) for i in (index, *winners)])
        picture = preprocessing.pixels(data[index][0]).clamp(0, 1)
        projections = signed_image(preprocessing.rgb(signals).cpu())
        rows.append(Row(f"image {index}", picture, maps, projections, classes, own[index]))
    first = rows[0].maps
    ours = {
        "square": size,
        "step": step,
        "places": list(first.probability.shape),
        "correlation": [correlation(row.maps.activity, row.maps.probability) for row in rows],
        "images": [{"image": i, "file": _file(data, i)} | _numbers(maps, classes) for i, maps in swept.items()],
        "on_object": None,
    }
    if hasattr(data, "scene") and measured and known:
        chosen = tqdm(shuffled[:measured], unit=" images", desc="measure", disable=not progress)
        ours["on_object"] = on_object((swept.get(i) or occluded(i), data.scene(i).mask) for i in chosen)
    settings = {
        "model": type(model).__name__,
        "images": list(swept),
        "layer": layer,
        "size": size,
        "step": step,
        "fill": fill,
        "seed": seed,
        "scanned": tops.images,
        "measured": measured,
    }
    note = (
        f"{type(model).__name__}, {layer}.  "
        f"Squares of {size} pixels, every {step}: {first.probability.numel()} places.  "
        f"In (a) the square is where the {'true' if known else 'likeliest'} class is least probable."
    )
    with results(out) as folder:
        figure = draw(rows, note, width)
        figure.savefig(folder / "figure.png", dpi=DPI)
        figure.savefig(folder / "figure.pdf")
        return write_result(folder, "fig7", PAPER, ours, settings, provenance)


def _pair(value: int | Sequence[int]) -> Sequence[int]:
    return (value, value) if isinstance(value, int) else value


def _chosen(images: int | Sequence[int], shuffled: list[int], count: int) -> list[int]:
    if isinstance(images, int):
        images = shuffled[: max(images, 0)]
    if not images:
        raise InputError("no image is asked for; give how many, or their numbers: images=[0,5]")
    for i in images:
        if type(i) is not int or not 0 <= i < count:
            raise InputError(f"no image {i!r} in the data: there are {count}")
    return list(dict.fromkeys(images))


def _file(data: Any, index: int) -> str | None:
    return data.file(index) if hasattr(data, "file") else None


def _named(data: Any, index: int) -> str:
    return f" ({_file(data, index)})" if _file(data, index) else ""


def _classes(graph: Graph, data: Any, size: tuple[int, int]) -> list[str]:
    """The names of the network's classes: ImageNet's if it has 1000, or the data's; else their numbers."""
    names = [str(name) for name in getattr(data, "classes", ())]
    count = max(2, graph.shapes(size, graph.output)[graph.output][-1])  # one output tells two classes apart
    if count == len(IMAGENET):
        return list(IMAGENET)
    return names if len(names) == count else [f"class {n}" for n in range(count)]


def _projected(deconvnet: Deconvnet, image: Tensor, layer: str, map: int) -> Tensor:
    """The map's strongest place on an image, projected: (1, 3, S, S)."""
    image = image[None].to(**device_and_dtype(deconvnet.model))
    plane = deconvnet.record(image, [layer]).activations[layer][0, map]
    row, column = divmod(int(plane.argmax()), plane.shape[-1]) if plane.ndim == 2 else (0, 0)
    return deconvnet.project_units(image, layer, [[0, map, row, column]]).projections


def correlation(a: Tensor, b: Tensor) -> float | None:
    """Pearson's r over all positions; None where one map is constant."""
    r = float(torch.corrcoef(torch.stack([a.double().flatten(), b.double().flatten()]))[0, 1])
    return None if math.isnan(r) else r


def _classified(maps: OcclusionMaps) -> tuple[Tensor, int, int]:
    """The most probable class at each place, the class of the probabilities, the most probable one without a square."""
    if maps.label is None or maps.target is None or maps.clean[2] is None:
        raise InputError("Figure 7 needs a network that tells classes apart")
    return maps.label.cpu(), maps.target, maps.clean[2]


def _numbers(maps: OcclusionMaps, classes: Sequence[str]) -> dict[str, Any]:
    def spread(of: Tensor, clean: float) -> dict[str, Any]:
        box = maps.boxes.flatten(0, 1)[int(of.argmin())]
        return {
            "clean": clean,
            "lowest": float(of.min()),
            "median": float(of.median()),
            "highest": float(of.max()),
            "at": box[:2].tolist(),
        }

    label, target, unoccluded = _classified(maps)
    labels, counts = label.unique(return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    return {
        "class": classes[target],
        "without_square": classes[unoccluded],
        "map": maps.map,
        "probability": spread(maps.probability, maps.clean[1]),
        "activity": spread(maps.activity, maps.clean[0]),
        "labels": {classes[int(labels[i])]: int(counts[i]) for i in order},
    }


def on_object(swept: Iterable[tuple[OcclusionMaps, Any]]) -> dict[str, Any]:
    """How often the centre of the square at a map's minimum lies on the object (mask (H, W)), against chance.

    Chance is the share of all squares whose centre does. Intervals are Wilson's, of 95 %.
    """
    hits = {"probability": 0, "activity": 0}
    chance, count = 0.0, 0
    for maps, mask in swept:
        on = torch.as_tensor(mask)[_centres(maps.boxes[..., 0::2]), _centres(maps.boxes[..., 1::2])]
        for name, values in (("probability", maps.probability), ("activity", maps.activity)):
            hits[name] += int(on.flatten()[int(values.argmin())])
        chance, count = chance + float(on.float().mean()), count + 1
    shares = {name: {"share": n / count, "interval": wilson(n, count)} for name, n in hits.items()}
    return {"images": count, "chance": chance / count, **shares}


def _centres(edges: Tensor) -> Tensor:
    return (edges.sum(-1) // 2).cpu()


def wilson(hits: int, count: int) -> list[float]:
    """The 95 % interval of a share (Wilson, 1927)."""
    return list(binomtest(hits, count).proportion_ci(method="wilson"))


def draw(rows: Sequence[Row], note: str, width: int) -> Figure:
    """One line for each image: (a) to (e) of the paper."""
    margin, tile, gap = width // 60, round(0.142 * width), width // 80
    bar = round(0.05 * width)
    across = [margin]
    for extra in (0, bar, 0, bar):
        across.append(across[-1] + tile + extra + gap)
    top, line = round(0.045 * width), tile + round(0.022 * width)
    figure = page(width, top + line * len(rows) + margin)
    titles = (
        "(a) image",
        "(b) activity of the map",
        "(c) its projections",
        "(d) p(true class)" if all(row.known for row in rows) else "(d) p(likeliest)",
        "(e) likeliest class",
    )
    for x, title in zip(across, titles, strict=True):
        text(figure, x + tile / 2, top / 2, title, size=7.5, ha="center")
    for n, row in enumerate(rows):
        y = top + n * line
        _image(figure, row, across[0], y, tile)
        _heat(figure, row.maps.activity, across[1], y, tile, f"map {row.maps.map}")
        _projections(figure, row.projections, across[2], y, tile)
        _heat(figure, row.maps.probability, across[3], y, tile)
        _labels(figure, row, across[4], y, tile)
    text(figure, margin, top + line * len(rows) + margin / 3, note, size=6, color="0.35")
    return figure


def _image(figure: Figure, row: Row, x: float, y: float, tile: int) -> None:
    axes = figure.add_axes(frame(figure, x, y, tile, tile))
    axes.imshow(row.picture.permute(1, 2, 0).numpy())
    box = row.maps.boxes.flatten(0, 1)[int(row.maps.probability.argmin())]
    upper, left, lower, right = box.tolist()
    axes.add_patch(Rectangle((left - 0.5, upper - 0.5), right - left, lower - upper, color=(0.49,) * 3, lw=0))
    axes.axis("off")
    adjective = "true" if row.known else "likeliest"
    text(figure, x, y + tile + 14, f"{adjective}: {_short(row.classes[_classified(row.maps)[1]])}", size=6)


def _heat(figure: Figure, values: Tensor, x: float, y: float, tile: int, below: str = "") -> None:
    axes = figure.add_axes(frame(figure, x, y, tile, tile))
    shown = axes.imshow(values.cpu().numpy(), cmap="jet", interpolation="nearest", aspect="auto")
    axes.axis("off")
    bar = figure.colorbar(shown, cax=figure.add_axes(frame(figure, x + tile + 10, y, tile // 14, tile)))
    bar.ax.tick_params(labelsize=5, width=0.5, length=2)
    bar.outline.set_linewidth(0.5)
    text(figure, x, y + tile + 14, below, size=6)


def _projections(figure: Figure, tiles: Tensor, x: float, y: float, tile: int) -> None:
    """Side by side, this image's first and framed in black."""
    wide, gap = max(1, math.ceil(math.sqrt(len(tiles)))), 6
    side = (tile - gap * (wide - 1)) // wide
    for n, picture in enumerate(resized(tiles, (side, side)).clamp(0, 1)):
        left, upper = x + n % wide * (side + gap), y + n // wide * (side + gap)
        if not n:
            axes = figure.add_axes(frame(figure, left - 4, upper - 4, side + 8, side + 8))
            axes.set_facecolor("black")
            axes.set(xticks=[], yticks=[])
        place(figure, picture, left, upper)


def _labels(figure: Figure, row: Row, x: float, y: float, tile: int) -> None:
    """Each place in the colour of its class; the legend lists the most frequent classes, the rest is grey."""
    labels, *_ = _classified(row.maps)
    names, counts = labels.unique(return_counts=True)
    names = names[counts.argsort(descending=True, stable=True)][:LABELS].tolist()
    shade = dict(zip(names, colormaps["Set1"](range(LABELS))[:, :3].tolist(), strict=False))
    picture = torch.full((*labels.shape, 3), 0.8)
    for label, colour in shade.items():
        picture[labels == label] = torch.tensor(colour)
    axes = figure.add_axes(frame(figure, x, y, tile, tile))
    axes.imshow(picture.numpy(), interpolation="nearest", aspect="auto")
    axes.axis("off")
    total, step = labels.numel(), tile / (LABELS + 1)
    entries = [(shade[n], row.classes[n], int((labels == n).sum())) for n in names]
    if rest := total - sum(count for *_, count in entries):
        entries.append(((0.8, 0.8, 0.8), "others", rest))
    for n, (colour, name, count) in enumerate(entries):
        key = figure.add_axes(frame(figure, x + tile + 12, y + n * step + step / 4, step / 2, step / 2))
        key.set_facecolor(colour)
        key.set(xticks=[], yticks=[])
        for spine in key.spines.values():
            spine.set_visible(False)
        text(figure, x + tile + 22 + step / 2, y + (n + 0.5) * step, f"{_short(name)}, {count}", size=5.5)


def _short(name: str, letters: int = 18) -> str:
    return name if len(name) <= letters else name[: letters - 1] + "…"
