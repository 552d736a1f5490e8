"""Figure 7: what a grey square, slid over the image, does to a layer-5 feature map and to the classifier.

The caption's sense: (a) images, with a square that covers them part by part; (b) for each place of it, the activity of
one layer-5 map, summed over space, the one that is strongest without the square; (c) that map projected down into this
image (black frame) and into others; (d) the probability of the true class; (e) the most probable class.

What to look for: where (b) falls, the square hides the structure that (c) shows, so the projection shows what
stimulates the map. Where (d) falls, the square hides what the class depends on, which should be the object and not the
scene. The two places may differ. The paper leaves both to the eye. We correlate (b) and (d), and if the objects' masks
are known, count how often the minimum of (d) is on the object.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle
from scipy.stats import binomtest
from torch import Tensor, nn
from tqdm import tqdm
from typing_extensions import Unpack

from experiments.output.feature_maps import TILE_GAP, Look, Panel, network_name, panel_of
from experiments.output.pages import LINE, Page, Style, box, enlarged, heat, shortened, show, style_of
from experiments.output.results import Result
from experiments.setup.checks import at_least, one_of
from experiments.setup.datasets import class_names, class_of
from experiments.setup.hints import Count, Finite, Grid, Length, Natural, Palette, Seed
from experiments.setup.options import Reading, Showing
from zfnet import Deconvnet, InputError, OcclusionMaps, TopActivations, occlusion_maps, receptive_field, scan
from zfnet.checks import pair
from zfnet.data.images import Box, Images, as_images, image_size
from zfnet.data.preprocessing import Preprocessing
from zfnet.recording import activations

SIDE, SQUARE, PLACES = 224, 50, 30  # measured in the paper's bitmaps: a 50-pixel square, every 6 pixels
LABELS = 7  # classes that a legend names
SHARES, BAR, LEGEND, GAP = (1.5, 1, 1.75, 1, 1), 90, 270, 12  # widths of (a) to (e), and pixels beside them
CHOICES = {"peak": "largest activation", "sum": "largest sum over space"}


def _published(name: str, spread: Sequence[float], places: Sequence[Sequence[int]], labels: Any) -> dict[str, Any]:
    probability = dict(zip(("lowest", "median", "highest"), spread, strict=True)) | {"at": places[0]}
    return {"class": name, "probability": probability, "activity": {"at": places[1]}, "labels": labels}


POMERANIAN = {"Pomeranian": 879, "tennis ball": 9, "Pekinese": 9, "Keeshond": 3}
WHEEL = {"cab": 435, "racer": 326, "car wheel": 129, "police van": 10}
HOUND = {"Afghan hound": 762, "Gordon setter": 48, "mortarboard": 27, "ice lolly": 21, "fur coat": 17}
HOUND |= {"academic gown": 11, "Irish setter": 6, "Vizsla": 5, "Australian terrier": 2, "neck brace": 1}
PAPER: dict[str, Any] = {
    "square": SQUARE,
    "step": 6,
    "places": [PLACES, PLACES],
    "correlation": [0.66, -0.39, -0.19],  # of (b) and (d), by the rank of their colours
    "images": [
        _published("Pomeranian", (0.053, 0.957, 0.987), ([84, 96], [72, 114]), POMERANIAN),
        _published("car wheel", (0.006, 0.144, 0.295), ([12, 156], [84, 42]), WHEEL),
        _published("Afghan hound", (0.004, 0.375, 0.757), ([144, 102], [78, 156]), HOUND),
    ],
}


def main(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    layer: str = "relu5",
    images: Count | Annotated[Sequence[Natural], Length()] = 3,
    candidates: Count = 24,
    by: Literal["peak", "sum"] = "peak",
    size: Count | Grid | None = None,
    step: Count | Grid | None = None,
    fill: Finite | Annotated[Sequence[Finite], Length()] = 0.0,
    others: Natural = 3,
    measured: Natural = 64,
    seed: Seed = 0,
    style: Palette = "safe",
    **options: Unpack[Showing],
) -> dict[str, Any]:
    """Slide a grey square over images; draw its effect on a feature map and on the answer.

    Args:
        model: the network.
        data: labelled images; if the network does not know a class, its likeliest class is used instead.
        out: the folder of the result.
        layer: whose map is drawn.
        images: their indices; or their number: images by seed on which some squares change the answer, as in the paper.
        candidates: images that are tried; if the answer changes on too few, others are drawn too, and the caption says
            so.
        by: the map is the one of the largest activation, its "peak", or of the largest "sum" over space.
        size: of the square, pixels; null: the paper's share of the image's side, 50 of 224.
        step: pixels from square to square; null: the step that is nearest to the paper's 30 x 30 places.
        fill: the square, in normalised images, one number or one a channel; 0 is the mean, the paper's grey.
        others: images beside this one that the map is projected into, its strongest.
        measured: images with masks on which we count whether the minimum of (d) is on the object.
        seed: of the order of images.
        style: colours: "safe" for colour-blind readers, or the "paper"'s.
        options: see `Showing` and `Reading`.
    """
    result, (look, reading) = Result("fig7", out, locals()), Look.of(options)
    page, colours, state = Page(look.width), style_of(style), Path(out) / "scan.partial"
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    at_least(0, others=others, measured=measured)
    at_least(1, candidates=candidates)
    occluder = Occluder(look.deconvnet(model), as_images(data), layer, by, size, step, fill)
    chosen, tried = occluder.choose(images, order, candidates, reading.get("progress", True))
    tops = scan(occluder.graph, data, [layer], others + 1, state=state, keep_state=True, **reading)
    rows = [occluder.row(i, tops[layer], others, look) for i in chosen]
    swept = occluder.with_masks(order[:measured] if all(row.known for row in rows) else [], reading)
    measure = on_object(swept)
    draw(page, rows, colours)
    first = f"of the first {tried} by seed {seed}, those first on which a square changes the answer"
    how = first if tried else "by number"
    words = f"{network_name(model)}, {layer}; {len(rows)} image(s), {how}. {occluder.words(rows, tops.images)}"
    page.caption(f"{words} {look.words} Hatched: outside the image. {in_words(measure)}")
    result.figure(page.done())
    result.settings |= {"images": chosen, "size": occluder.size, "step": occluder.step, "scanned": tops.images}
    if measure:
        print(in_words(measure))
    state.unlink(missing_ok=True)
    return result.finish(occluder.numbers(rows) | {"on_object": measure, "tried": tried}, PAPER)


class Row(NamedTuple):
    """One image of the figure."""

    number: int
    image: Tensor  # (3, H, W) in 0..1, under the square where the class is least probable
    maps: OcclusionMaps
    field: Box  # what the projected unit sees
    panel: Panel  # of its projections, this image's first
    classes: Sequence[str]
    known: bool  # whether the class is the image's own

    @property
    def changed(self) -> int:
        """How many squares change the answer."""
        labels, _, answer = answers(self.maps)
        return int((labels != answer).sum())

    def numbers(self) -> dict[str, Any]:
        """Minima, medians and maxima, and at how many places each class is the likeliest."""
        maps, (labels, target, answer) = self.maps, answers(self.maps)
        spread: dict[str, Any] = {}
        for name, values, clean in (
            ("probability", maps.probability, maps.clean[1]),
            ("activity", maps.activity, maps.clean[0]),
        ):
            numbers = {"clean": clean, "lowest": float(values.min()), "median": float(values.median())}
            place = maps.boxes.flatten(0, 1)[int(values.argmin()), :2].tolist()
            spread[name] = numbers | {"highest": float(values.max()), "at": place}
        names, counts = labels.unique(return_counts=True)
        order = counts.argsort(descending=True, stable=True)
        return {
            "class": self.classes[target],
            "without_square": self.classes[answer],
            "map": maps.map,
            **spread,
            "labels": {self.classes[int(names[i])]: int(counts[i]) for i in order},
            "changed": self.changed,
            "field": list(self.field),
        }


def answers(maps: OcclusionMaps) -> tuple[Tensor, int, int]:
    """The most probable class at each place, the class of the probabilities, the most probable one without a square."""
    if maps.label is None or maps.target is None or maps.clean[2] is None:
        raise InputError("Figure 7 needs a network that tells classes apart")
    return maps.label.cpu(), maps.target, maps.clean[2]


@dataclass
class Occluder:
    """Slides squares over a dataset's images, and reads the answer and a feature map; the fields as in `main`."""

    deconvnet: Deconvnet
    data: Images
    layer: str
    by: str
    size: Any
    step: Any
    fill: float | Sequence[float]
    done: dict[int, OcclusionMaps] = field(default_factory=dict)

    def __post_init__(self) -> None:
        one_of("way to choose a map", self.by, CHOICES)
        self.graph = self.deconvnet.graph
        self.graph.node(self.layer)
        self.extent = image_size(self.data)
        self.deconvnet.check([self.layer], self.extent)
        self.size = round(SQUARE / SIDE * min(self.extent)) if self.size is None else self.size
        gaps = (min(self.extent) - max(pair(self.size))) / (PLACES - 1)
        self.step = max(1, round(gaps)) if self.step is None else self.step
        count = max(2, self.graph.shapes(self.extent, self.graph.output)[self.graph.output][-1])  # 1 tells 2 apart
        self.classes = class_names(self.graph.model, self.data, count)

    def target(self, index: int) -> int | None:
        """The image's class, as the network numbers it; None if the network has no such class."""
        label = self.data[index][1]
        if label < 0:
            raise InputError(f"{self.data.name(index)} has no label; give data.labels, or class folders")
        return class_of(self.data, label, self.classes)

    def activations(self, index: int) -> Tensor:
        """The layer's maps (C, H, W) of an image."""
        maps = activations(self.graph, self.data[index][0][None], [self.layer])[self.layer][0]
        return maps if maps.ndim == 3 else maps[:, None, None]

    def maps(self, index: int) -> OcclusionMaps:
        """The effect of the squares on an image."""
        if index not in self.done:
            map = int(self.activations(index).amax((1, 2)).argmax()) if self.by == "peak" else None
            how: Any = {"size": self.size, "step": self.step, "fill": self.fill, "layer": self.layer, "map": map}
            target = self.target(index)
            self.done[index] = occlusion_maps(self.graph, self.data[index][0], target=target, **how)
            answers(self.done[index])
        return self.done[index]

    def with_masks(self, images: Sequence[int], reading: Reading) -> Iterable[tuple[OcclusionMaps, Tensor]]:
        """The maps of those images whose objects are known, with the objects' masks."""
        for i in tqdm(images, unit=" images", desc="measure", disable=not (images and reading.get("progress", True))):
            truth = self.data.truth(i)
            if truth is not None and truth.mask is not None:
                yield self.maps(i), truth.mask

    def choose(
        self, images: int | Sequence[int], order: Sequence[int], candidates: int, progress: bool
    ) -> tuple[list[int], int]:
        """The images to draw, and how many were tried; 0 if their indices are given."""
        indices = [] if isinstance(images, int) else list(dict.fromkeys(images))
        if unknown := [i for i in indices if type(i) is not int or not 0 <= i < len(self.data)]:
            raise InputError(f"no image {unknown[0]!r} in the data: there are {len(self.data)}")
        count = images if isinstance(images, int) else len(indices)
        if count < 1:
            raise InputError("images is empty; give a number of images, or their indices: images=[0,5]")
        changed: dict[int, bool] = {}
        for i in tqdm(indices or order[: max(candidates, count)], unit=" images", desc="occlude", disable=not progress):
            labels, _, answer = answers(self.maps(i))
            changed[i] = bool((labels != answer).any())
            if not indices and sum(changed.values()) == count:
                break
        best = sorted(changed, key=lambda i: not changed[i])  # stable: in the order of the seed
        return (indices, 0) if indices else (best[:count], len(changed))

    def row(self, index: int, top: TopActivations, others: int, look: Look) -> Row:
        """The drawing of one image."""
        maps, preprocessing = self.maps(index), Preprocessing.of(self.graph.model)
        picture = self.data[index][0].clone()
        upper, left, lower, right = maps.boxes.flatten(0, 1)[int(maps.probability.argmin())].tolist()
        picture[:, upper:lower, left:right] = torch.as_tensor(self.fill).reshape(-1, 1, 1)
        plane = self.activations(index)[maps.map]
        row, column = divmod(int(plane.argmax()), plane.shape[1])
        keep = [0, *[n for n, i in enumerate(top.image[maps.map].tolist()) if i not in (index, -1)][:others]]
        winners = TopActivations(*(values[:, keep] for values in top))
        for values, value in zip(winners, (float(plane.max()), index, row, column, float(plane.max())), strict=True):
            values[maps.map, 0] = value
        field = receptive_field(self.graph, self.layer, self.extent, maps.map)
        how = (self.deconvnet, self.data, self.layer, winners, [maps.map], 1, field, preprocessing, look)
        shown, known = preprocessing.pixels(picture).clamp(0, 1), self.target(index) is not None
        return Row(index, shown, maps, field.box(row, column), panel_of("", *how), self.classes, known)

    def words(self, rows: Sequence[Row], scanned: int) -> str:
        """The columns, for the caption."""
        still = [f"{n}" for n, row in enumerate(rows, 1) if not row.changed]
        unchanged = f" No square changes the answer in row {', '.join(still)}." if still else ""
        square = f"Squares of {self.size} pixels, every {self.step}: {rows[0].maps.probability.numel():,} places."
        exact = receptive_field(self.graph, self.layer, self.extent).exact
        frame = "sees" if exact else "is projected to; gates and norms, held fixed, see more of the image"
        return (
            f"{square}{unchanged} (a) The square where (d) is least; the frame is what the unit of (c) {frame}. (b) "
            f"The sum over space of the map with the {CHOICES[self.by]}. (c) Its strongest activation in this image, "
            f"framed, and in others, of {scanned:,}. (e) At how many places a class is likeliest; bold: without square."
        )

    def numbers(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The entries of result.json about the images."""
        images = [{"image": row.number, "file": self.data.file(row.number)} | row.numbers() for row in rows]
        correlations = [correlation(row.maps.activity, row.maps.probability) for row in rows]
        places = list(rows[0].maps.probability.shape)
        return {"square": self.size, "step": self.step, "places": places, "correlation": correlations, "images": images}


def on_object(swept: Iterable[tuple[OcclusionMaps, Any]]) -> dict[str, Any] | None:
    """How often the centre of the square at a map's minimum lies on the object (mask (H, W)); None without images.

    Also chance, which is the share of all squares whose centre does, and the best fixed place, which is on the object
    in more of these images than any other. Intervals are Wilson's, of 95 %.
    """
    hits: dict[str, list[bool]] = {"probability": [], "activity": []}
    covered = []
    for maps, mask in swept:
        rows, columns = ((maps.boxes[..., n] + maps.boxes[..., n + 2]) // 2 for n in (0, 1))
        covered.append(torch.as_tensor(mask)[rows.cpu(), columns.cpu()].flatten())
        for name, values in (("probability", maps.probability), ("activity", maps.activity)):
            hits[name].append(bool(covered[-1][int(values.argmin())]))
    if not covered:
        return None
    squares, count = torch.stack(covered), len(covered)
    hits["best_place"] = squares[:, squares.sum(0).argmax()].tolist()  # left out, an image would hide the best place
    shares = {name: {"share": sum(of) / count, "interval": wilson(sum(of), count)} for name, of in hits.items()}
    return {"images": count, "chance": sum(float(own.float().mean()) for own in squares) / count, **shares}


def in_words(measure: dict[str, Any] | None) -> str:
    """The hit rate, for the caption."""
    if measure is None:
        return ""
    low, high = measure["probability"]["interval"]
    return (
        f"The square where (d) is least is centred on the object in {measure['probability']['share']:.0%} of "
        f"{measure['images']} images (95%: {low:.0%} to {high:.0%}); no fixed "
        f"place is in more than {measure['best_place']['share']:.0%}, the mean over places is {measure['chance']:.0%}."
    )


def correlation(a: Tensor, b: Tensor) -> float | None:
    """Pearson's r over all positions; None where one map is constant."""
    r = float(torch.corrcoef(torch.stack([a.double().flatten(), b.double().flatten()]))[0, 1])
    return None if math.isnan(r) else r


def wilson(hits: int, count: int) -> list[float]:
    """The 95 % interval of a share (Wilson, 1927)."""
    return list(binomtest(hits, count).proportion_ci(method="wilson"))


def draw(page: Page, rows: Sequence[Row], style: Style) -> None:
    """One line for each image: (a) to (e) of the paper."""
    unit = (page.columns - 2 * BAR - LEGEND - 4 * GAP) / sum(SHARES)
    wide, across = [int(unit * share) for share in SHARES], [0]
    for side, more in zip(wide, (0, BAR, 0, BAR), strict=False):
        across.append(across[-1] + side + more + GAP)
    true = "true" if all(row.known for row in rows) else "likeliest"
    titles = ("(a) image", "(b) activity", "(c) projections", f"(d) p({true})", "(e) answer")
    for x, side, title in zip(across, wide, titles, strict=True):
        page.text(x + side / 2, page.y + LINE / 2, title, ha="center", weight="bold")
    page.y += LINE + 4
    for row in rows:
        image, (high, columns) = page.axes(0, page.y, wide[0], wide[0]), row.maps.image_size
        show(image, enlarged(row.image[None], (wide[0], wide[0]))[0])
        top, left, bottom, right = row.field
        box(image, (max(top, 0), max(left, 0), min(bottom, high), min(right, columns)), wide[0] / columns)
        image.set(xlim=(-0.5, wide[0] - 0.5), ylim=(wide[0] - 0.5, -0.5))
        name = row.classes[answers(row.maps)[1]]
        page.text(0, page.y + wide[0] + LINE / 2, f"{'true' if row.known else 'likeliest'}: {shortened(name)}")
        r = correlation(row.maps.activity, row.maps.probability)
        words = f"map {row.maps.map}", "" if r is None else f"r with (b): {r:.2f}"
        for n, values, below in zip((1, 3), (row.maps.activity, row.maps.probability), words, strict=True):
            mesh = heat(page.axes(across[n], page.y, wide[n], wide[n]), values, style.heat)
            bar = page.figure.colorbar(mesh, cax=page.axes(across[n] + wide[n] + 8, page.y, 12, wide[n]))
            bar.ax.tick_params(width=0.5, length=2, pad=1)
            bar.outline.set_linewidth(0.5)
            page.text(across[n], page.y + wide[n] + LINE / 2, below)
        side = (wide[2] - (row.panel.side - 1) * TILE_GAP) // row.panel.side
        page.text(across[2], page.y + wide[2] + LINE / 2, f"enlarged {row.panel.enlargement(side):.2g} times")
        axes = page.image(row.panel.draw(side)[0], across[2], page.y)
        axes.add_patch(Rectangle((0.5, 0.5), side - 2, side - 2, fill=False, lw=1.5))
        _labels(page, row, across[4], wide[4], style.lines)
        page.y += wide[2] + LINE + GAP


def _labels(page: Page, row: Row, x: float, tile: int, colours: Sequence[str]) -> None:
    """Each place in the colour of its class; the legend lists the most frequent classes, the rest is grey."""
    labels, _, answer = answers(row.maps)
    names, counts = labels.unique(return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    shades = ListedColormap([*colours[:LABELS], "0.8"])
    places = rank[torch.searchsorted(names, labels)].clamp(max=LABELS)
    heat(page.axes(x, page.y, tile, tile), places, shades, vmin=-0.5, vmax=LABELS + 0.5)
    entries = [(int(counts[n]), row.classes[names[n]], names[n] == answer) for n in order[:LABELS].tolist()]
    if rest := int(counts[order[LABELS:]].sum()):
        entries.append((rest, "others", False))
    for n, (count, name, bold) in enumerate(entries):
        y = page.y + n * LINE
        key = page.axes(x + tile + 10, y + 6, 14, 14, facecolor=shades(n), xticks=[], yticks=[])
        key.spines[:].set_visible(False)
        page.text(x + tile + 30, y + LINE / 2, f"{shortened(name, 16)}, {count}", weight="bold" if bold else "normal")
