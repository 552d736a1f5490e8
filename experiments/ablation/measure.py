"""What is measured of units: how much pictures show of what a unit responds to, and what projections depend on.

`zfnet.analysis.faithfulness` defines pictures and measures. M units of one layer have pictures (M, 3, S, S).
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from tqdm import tqdm
from typing_extensions import Unpack

from experiments.output.feature_maps import chosen, dead_maps
from experiments.setup.checks import at_least, one_of
from experiments.setup.models import build
from experiments.setup.options import Reading
from zfnet import Deconvnet, InputError, TopActivations, receptive_field, scan
from zfnet.analysis import faithfulness
from zfnet.analysis.faithfulness import PICTURES, WEIGHTS
from zfnet.analysis.likeness import cosine, similarity, with_shuffled_weights
from zfnet.analysis.statistics import Bootstrap, Estimate
from zfnet.checks import pair
from zfnet.data.images import as_images
from zfnet.data.preprocessing import Preprocessing
from zfnet.deconvnet import Patches
from zfnet.graph import graph_of
from zfnet.identity import Identity, digest, read_sealed, write_sealed
from zfnet.operations import DECONVNET, DIFFERENTIATED_NORMS, GRADIENT, GUIDED, UNRECTIFIED
from zfnet.recording import activations
from zfnet.rendering import GREY, outside, resized, signed_image

SIGNALS = {"projection": DECONVNET, "gradient": GRADIENT, "guided": GUIDED}
SHOWN = ("crop", "projection", "masked crop")  # the pictures that a person would be shown
MEASURES = {  # all are larger where a picture is better
    "sufficiency": "activation left with the strongest pixels",
    "necessity": "activation lost without them",
    "pixels": "units told apart by pixels",
    "network": "units told apart by a second network",
    "energy on object": "share of what is shown that is on the object",
    "points at object": "the strongest pixel is on the object",
    "energy on parts": "share of what is shown that is on parts of the object",
    "points at parts": "the strongest pixel is on a part",
}
CHOICES: dict[str, dict[str, Any] | None] = {  # how else this reproduction could project: options of `Deconvnet`
    "windows overwrite": {"collisions": "overwrite"},
    "windows: max": {"collisions": "max"},
    "norm differentiated": {"rules": DECONVNET | DIFFERENTIATED_NORMS},
    "not rectified": {"rules": DECONVNET | UNRECTIFIED},
    "switches of another image": None,  # the projection of the map's next image: switches are all it knows of an image
    "signal 1": {},  # in place of the activation
}
JUDGED = ("features.4.cat", "features.8.cat", "features.12.cat")  # layers of the second network
THUMBNAIL, JUDGED_SIZE = (16, 16), (64, 64)  # pixels, to which pictures are resized to be told apart
PIXELS = 2**27  # of all pictures of a layer of one kind: those of very deep networks are many times the image
ANEW = "delete it, or start anew with fresh=True"
STATES = ("scan.partial", "ablation.partial")  # of a run that was stopped
EXAMPLES = 2  # maps of each layer whose pictures are drawn

Values = dict[str, dict[str, Tensor]]  # (M,), of each picture, comparison, signal or choice, by measure
Estimates = dict[str, dict[str, Estimate | None]]  # their means over maps
Curves = dict[str, dict[str, list[float]]]  # by picture: activation left with shares of pixels "kept", and "removed"


class Comparison(NamedTuple):
    """Two pictures of the same units: by how much is the first better?"""

    one: str
    other: str

    @property
    def name(self) -> str:
        return f"{self.one} - {self.other}"

    @property
    def of_shown(self) -> bool:
        """Whether both are pictures that a person would be shown."""
        return self.one in SHOWN and self.other in SHOWN

    @property
    def of_crops(self) -> bool:
        """Whether both show pixels of the crop, in another order."""
        return PICTURES[self.one].content == PICTURES[self.other].content == "crop"


COMPARISONS = (
    Comparison("projection", "crop"),
    *(Comparison("masked crop", other) for other in ("crop", "projection", "centre", "random", "edges")),
    *(Comparison("masked crop", other) for other in ("masked by gradient", "masked by guided")),
    *(Comparison("projection", other) for other in ("gradient", "guided")),
)


@dataclass(frozen=True)
class Protocol:
    """The settings that decide the numbers; `main` says what they mean."""

    layers: list[str]
    maps: int
    k: int
    shares: Sequence[float]
    fill: str
    judge: str | None
    draws: int
    seed: int

    def check(self, images: int) -> "Protocol":
        """Itself, with no more activations of a map than there are images; InputError for what there is not."""
        one_of("fill", self.fill, faithfulness.FILLS)
        at_least(1, maps=self.maps, k=self.k)
        at_least(100, draws=self.draws)
        return replace(self, shares=faithfulness.check_shares(self.shares), k=min(self.k, images))

    @property
    def settings(self) -> dict[str, Any]:
        """As result.json says them: the second network by its file's name."""
        return asdict(self) | {"judge": "untrained" if self.judge is None else Path(self.judge).name}


@dataclass
class LayerResult:
    """All numbers of one layer."""

    size: list[int]  # of the receptive field
    maps: list[int]
    units: int
    chance: float  # the rate at which units are told apart by chance
    curves: Curves
    measures: Estimates  # by picture
    differences: Estimates  # by comparison
    likeness: Estimates  # by signal: to what it should not be like
    choices: Estimates  # by choice: the cosine with the projection, and what is gained on each measure

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> "LayerResult":
        """From JSON, in which an estimate is a list."""
        tables = {table: entries[table] for table in ("measures", "differences", "likeness", "choices")}
        estimates = {
            table: {name: {m: e and Estimate(*e) for m, e in row.items()} for name, row in rows.items()}
            for table, rows in tables.items()
        }
        return cls(**{**entries, **estimates})


@dataclass
class Counts:
    """Feature maps of a layer."""

    maps: int
    dead: int
    drawn: int
    rare: int  # of those drawn: above 0 on fewer than k images


@dataclass
class Measurements:
    """All numbers of a network."""

    network: str
    dataset: str
    images: int
    broken_images: Sequence[str]
    layers: dict[str, LayerResult]
    counts: dict[str, Counts]
    classes: dict[str, Estimate | None] | None  # how alike pictures of two classes are, by signal

    @property
    def measures(self) -> list[str]:
        """Those that could be taken on these images."""
        rows = [row for result in self.layers.values() for row in result.measures.values()]
        return [measure for measure in MEASURES if any(row.get(measure) for row in rows)]


class Study(NamedTuple):
    """What all samples of a network share."""

    deconvnet: Deconvnet
    data: Any
    protocol: Protocol
    judge: nn.Module  # the second network
    progress: bool


class Sample:
    """The activations above 0 of some maps of one layer, M units: their pictures, and what these are worth."""

    def __init__(self, study: Study, layer: str, top: TopActivations, maps: Sequence[int]):
        deconvnet, data, protocol, self.judge, self.progress = study
        self.deconvnet, self.protocol, self.layer = deconvnet, protocol, layer
        self.preprocessing = Preprocessing.of(deconvnet.model)
        self.units = top.units(maps)[top.value[list(maps)].flatten() > 0]  # (M, 4), as in `project_units`
        items, self.units[:, 0] = self.units[:, 0].unique(return_inverse=True)
        self.maps, self.items = self.units[:, 1].contiguous(), items[self.units[:, 0]].tolist()
        self.images = torch.stack([data[int(i)][0] for i in items])
        self.field = receptive_field(deconvnet.graph, layer, pair(self.images.shape[-2:]))
        if len(self.units) * math.prod(self.field.size) > PIXELS:
            raise InputError(
                f"{layer}: {len(self.units)} pictures of {self.field.size[0]} x {self.field.size[1]} pixels, which its "
                "units see, are too many to hold; give fewer maps, or other layers"
            )
        self.patches = deconvnet.project_units(self.images, layer, self.units)
        size = pair(self.patches.crops.shape[-2:])
        self.inside = ~outside(self.patches.boxes, self.field.image_size, size)[:, 0]  # (M, S, S): what a unit sees
        self.truth = truth_of(data, self.items, self.images, self.patches)
        self.ground = faithfulness.ground(self.patches.crops, self.inside, protocol.fill, self.random)
        self.bootstrap = Bootstrap(self.maps, self.units[:, 0], self.random, protocol.draws)
        self.known: dict[str, Tensor] = {}

    @property
    def random(self) -> torch.Generator:
        """The same numbers again and again: so weights that are equal in two pictures are drawn alike in both."""
        return torch.Generator().manual_seed(self.protocol.seed)

    @cached_property
    def signals(self) -> dict[str, Tensor]:
        """(M, 3, S, S) by name."""
        others = {name: self.projected(rules=rules) for name, rules in SIGNALS.items() if name != "projection"}
        return {"projection": self.patches.projections} | others

    def projected(self, *, model: nn.Module | None = None, units: Tensor | None = None, **options: Any) -> Tensor:
        """From 1 for every unit: it differs in scale alone, and is not zero where a unit does not fire."""
        units = self.units if units is None else units
        deconvnet = Deconvnet(model or self.deconvnet.model, **options)
        return deconvnet.project_units(self.images, self.layer, units, signals=torch.ones(len(units))).projections

    def ranks(self, weight: str, signals: Mapping[str, Tensor]) -> Tensor:
        return faithfulness.ranks(weight, self.patches.crops, signals, self.inside, self.random)

    def respond(self, canvases: Tensor) -> Tensor:
        """The units' activations; canvases that were seen before, as curves end alike, are not run again."""
        if (key := digest(canvases)) not in self.known:
            size = self.field.image_size
            self.known[key] = self.deconvnet.activations_of(canvases, self.layer, self.units, size)
        return self.known[key]

    def curve(self, content: Tensor, rank: Tensor, *, keep: bool) -> Tensor:
        """The activation that is left for each share of pixels that are kept, or removed: (M, shares)."""
        clean, shares = self.patches.values, self.protocol.shares
        left = faithfulness.curve(self.respond, clean, content, self.ground, rank, self.inside, shares, keep=keep)
        return left.double().cpu()

    def area(self, curve: Tensor) -> Tensor:
        return faithfulness.area(curve, self.protocol.shares)

    def displayed(self, signals: Tensor) -> Tensor:
        """Signals as the network sees the pictures that figures show of them, their zero its mean colour."""
        picture, grey = signed_image(self.preprocessing.rgb(signals)), torch.full_like(signals, GREY)
        return self.preprocessing.normalise(picture) - self.preprocessing.normalise(grey)

    def described(self, pictures: Tensor) -> Tensor:
        """What the second network makes of pictures: the mean of each map of three layers, (M, D)."""
        pixels = self.preprocessing.pixels(resized(pictures, JUDGED_SIZE))
        maps = activations(graph_of(self.judge), Preprocessing.of(self.judge).normalise(pixels), JUDGED)
        return torch.cat([maps[layer].mean((2, 3)) for layer in JUDGED], 1)

    def view(self, shown: Tensor, energy: Tensor, rank: Tensor) -> dict[str, Tensor]:
        """Measures (M,) of pictures (M, 3, S, S), how much of each pixel is shown (M, S, S), and ranks."""
        measures = {
            "pixels": faithfulness.recognised(resized(shown, THUMBNAIL).flatten(1).cpu(), self.maps)[0],
            "network": faithfulness.recognised(self.described(shown).cpu(), self.maps)[0],
        }
        for kind, mask in self.truth.items():
            mask = mask.to(rank.device)
            on, off = ((self.inside & each).flatten(1).any(1) for each in (mask, ~mask))
            partly = on & off  # else no picture can be wrong
            measures[f"energy on {kind}"] = torch.where(partly, faithfulness.energy_inside(energy, mask), torch.nan)
            measures[f"points at {kind}"] = torch.where(partly, faithfulness.points_inside(rank, mask), torch.nan)
        return measures

    @cached_property
    def next_of_map(self) -> Tensor:
        """For each unit the next one of its map, the first for the last; itself where a map has but one."""
        following = torch.arange(len(self.units))
        for m in self.maps.unique():
            rows = (self.maps == m).nonzero().flatten()
            following[rows] = rows.roll(-1)
        return following

    def unless_alone(self, values: Tensor) -> Tensor:
        """NaN for the only unit of a map, which would be compared with itself."""
        return torch.where(self.next_of_map == torch.arange(len(values)), torch.nan, values.cpu())

    def estimates(self, values: Values) -> Estimates:
        return {name: {m: self.bootstrap(v) for m, v in measures.items()} for name, measures in values.items()}

    def bar(self, steps: Iterable[Any], description: str) -> Iterable[Any]:
        return tqdm(list(steps), desc=f"{self.layer}, {description}", unit=" steps", disable=not self.progress)


def truth_of(data: Any, items: Sequence[int], images: Tensor, patches: Patches) -> dict[str, Tensor]:
    """Where objects, and their parts, are in receptive fields: (M, S, S), bool; nowhere if the data do not know."""
    (rows, columns), size = patches.crops.shape[-2:], images.shape[-2:]
    planes: dict[int, dict[str, Tensor]] = {item: {} for item in items}
    for item in planes:
        if truth := as_images(data).truth(item):
            masks = {"object": _filled(truth.objects, size) if truth.mask is None else truth.mask}
            masks |= {} if truth.parts is None else {"parts": _filled(truth.parts.values(), size)}
            planes[item] = {kind: F.pad(mask, (columns, columns, rows, rows)) for kind, mask in masks.items()}
    kinds = dict.fromkeys(kind for masks in planes.values() for kind in masks)
    cuts: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
    for item, (top, left) in zip(items, patches.boxes[:, :2].tolist(), strict=True):
        for kind in kinds:
            plane = planes[item].get(kind, torch.zeros(size[0] + 2 * rows, size[1] + 2 * columns).bool())
            cuts[kind].append(plane[top + rows : top + 2 * rows, left + columns : left + 2 * columns])
    return {kind: torch.stack(masks) for kind, masks in cuts.items()}


def _filled(boxes: Iterable[Sequence[int]], size: Sequence[int]) -> Tensor:
    plane = torch.zeros(*size, dtype=torch.bool)
    for top, left, bottom, right in boxes:
        plane[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    return plane


def measure(
    model: nn.Module, data: Any, out: Path, protocol: Protocol, **reading: Unpack[Reading]
) -> tuple[Measurements, dict[str, Sample]]:
    """All numbers, and of each layer some units whose pictures are shown."""
    judge = build(torchvision.models.squeezenet1_0, weights=protocol.judge, preprocessing=Preprocessing())
    judge.to(next(model.parameters()).device)
    study = Study(Deconvnet(model), data, protocol, judge, reading.get("progress", True))
    layers, k, (scan_state, state) = protocol.layers, protocol.k, (out / name for name in STATES)
    tops = scan(study.deconvnet.graph, data, layers, k, state=scan_state, keep_state=True, **reading)
    drawn = {
        layer: chosen(layer, top, protocol.maps, "random", torch.Generator().manual_seed(protocol.seed))
        for layer, top in tops.items()
    }
    if not any(drawn.values()):
        scan_state.unlink(missing_ok=True)
        raise InputError(f"no feature map of {', '.join(layers)} is ever above 0 on these {tops.images} images")
    identity = study.deconvnet.graph.identity() | {name: str(value) for name, value in protocol.settings.items()}
    identity |= {
        "images": as_images(data).identity(),
        "judge's weights": digest(judge),
        "winners": digest({layer: list(top) for layer, top in tops.items()}),
    }
    results, examples = {} if reading.get("fresh") else read_results(state, identity), {}
    for layer in filter(drawn.get, layers):
        if layer not in results:
            results[layer] = measure_layer(Sample(study, layer, tops[layer], drawn[layer]))
            write_sealed(state, identity, json.dumps({name: asdict(entry) for name, entry in results.items()}))
        strongest = TopActivations(*(column[:, :1] for column in tops[layer]))
        examples[layer] = Sample(study, layer, strongest, drawn[layer][:EXAMPLES])
    counts = {}
    for layer, top in tops.items():
        rare = (top.value[drawn[layer]] > 0).sum(1) < k
        counts[layer] = Counts(len(top.value), len(dead_maps(top)), len(drawn[layer]), int(rare.sum()))
    names = type(model).__name__, type(data).__name__
    return Measurements(*names, tops.images, tops.broken, results, counts, class_likeness(study)), examples


def read_results(state: Path, identity: Identity) -> dict[str, LayerResult]:
    """The layers that a run which was stopped has measured, by name; none where there is no state of it."""
    if not state.exists():
        return {}
    content = read_sealed(state, identity, ANEW)
    try:
        return {layer: LayerResult.of(entries) for layer, entries in json.loads(content).items()}
    except (TypeError, ValueError, AttributeError, LookupError, RecursionError):
        raise InputError(f"{state} holds what no version of this experiment writes; {ANEW}") from None


def measure_layer(sample: Sample) -> LayerResult:
    """All numbers of a layer."""
    values, curves = measure_pictures(sample)
    differences = {
        c.name: {m: v - values[c.other][m] for m, v in values[c.one].items() if m in values[c.other]}
        for c in COMPARISONS
    }
    return LayerResult(
        size=list(sample.field.size),
        maps=sample.maps.unique().tolist(),
        units=len(sample.units),
        chance=faithfulness.recognised(torch.zeros(len(sample.units), 1), sample.maps)[1],
        curves=curves,
        measures=sample.estimates(values),
        differences=sample.estimates(differences),
        likeness=sample.estimates(measure_likeness(sample)),
        choices=sample.estimates(measure_choices(sample, values)),
    )


def measure_pictures(sample: Sample) -> tuple[Values, Curves]:
    """Every measure of every picture, and its mean curves."""
    crops, inside = sample.patches.crops, sample.inside
    rank = {weight: sample.ranks(weight, sample.signals) for weight in (*WEIGHTS, *SIGNALS)}
    content = {"crop": crops} | {name: sample.displayed(signal) for name, signal in sample.signals.items()}
    pairs = dict.fromkeys((picture.content, picture.weight) for picture in PICTURES.values())
    kept = {(c, w): sample.curve(content[c], rank[w], keep=True) for c, w in sample.bar(pairs, "keep")}
    removed = {w: sample.curve(crops, rank[w], keep=False) for w in sample.bar(rank, "remove")}
    values, curves = Values(), Curves()
    for name, (source, weight, share) in PICTURES.items():
        mask = faithfulness.strongest(rank[weight], inside, share)
        shown = torch.where(mask[:, None], content[source], 0.0)
        values[name] = {"sufficiency": sample.area(kept[source, weight])}
        curves[name] = {"kept": kept[source, weight].mean(0).tolist()}
        if source == "crop":  # what a signal's pixels are worth is asked of the crop
            values[name]["necessity"] = 1 - sample.area(removed[weight])
            curves[name]["removed"] = removed[weight].mean(0).tolist()
        energy = mask.to(crops) if source == "crop" else shown.square().sum(1)
        values[name] |= sample.view(shown, energy, rank[weight])
    return values, curves


def measure_likeness(sample: Sample) -> Values:
    """How like each signal is what it should not be like.

    By weights that are shuffled from the top down to each layer below; of another map at the same place, or of the same
    map in another image; the crop's edges; nearness of the centre, where many paths from a unit meet in any network.
    """
    maps, other, layers = sample.maps.unique(), sample.units.clone(), sample.protocol.layers
    other[:, 1] = maps.roll(1)[torch.searchsorted(maps, sample.maps)]
    edges, near = (WEIGHTS[w](sample.patches.crops, sample.inside, sample.random)[:, None] for w in ("edges", "disc"))
    values = Values()
    for name, rules in sample.bar(SIGNALS.items(), "shuffle"):
        signal, pictures = sample.signals[name], {}
        for end in (*reversed(layers[: layers.index(sample.layer)]), None):
            shuffled = with_shuffled_weights(sample.deconvnet.graph, sample.layer, end, sample.random)
            picture = sample.projected(model=shuffled, rules=rules)
            pictures[f"shuffled above {end}" if end else "all shuffled"] = picture
        pictures["edges of the crop"], pictures["nearness of the centre"] = edges.sqrt(), (near - near.min()).sqrt()
        if len(maps) > 1:
            pictures["another map, same place"] = sample.projected(units=other, rules=rules)
        values[name] = {title: similarity(signal, picture, sample.inside) for title, picture in pictures.items()}
        another = similarity(signal, signal[sample.next_of_map], sample.inside)
        values[name]["same map, another image"] = sample.unless_alone(another)
    return values


def measure_choices(sample: Sample, default: Values) -> Values:
    """What other choices change: the cosine with the projection, and what is gained on the measures by `default`.

    Sufficiency and necessity are those of the masked crop, the others those of the projection.
    """
    masked, whole, projections = default["masked crop"], default["projection"], sample.patches.projections
    values = Values()
    for name, options in sample.bar(CHOICES.items(), "choices"):
        signal = projections[sample.next_of_map] if options is None else sample.projected(**options)
        rank = sample.ranks("other", {"other": signal})
        kept, removed = (sample.area(sample.curve(sample.patches.crops, rank, keep=k)) for k in (True, False))
        shown = torch.where(sample.inside[:, None], sample.displayed(signal), 0.0)
        gains = {
            "cosine": cosine(projections, signal, sample.inside),
            "sufficiency": kept - masked["sufficiency"],
            "necessity": 1 - removed - masked["necessity"],
            **{m: v - whole[m] for m, v in sample.view(shown, shown.square().sum(1), rank).items()},
        }
        values[name] = {m: sample.unless_alone(v) if options is None else v for m, v in gains.items()}
    return values


def class_likeness(study: Study) -> dict[str, Estimate | None] | None:
    """How alike the pictures of the likeliest class and of another one are, on 16 images; None without classes."""
    deconvnet, data, protocol = study[:3]
    graph, random = deconvnet.graph, torch.Generator().manual_seed(protocol.seed)
    last = graph.names[graph.output]
    images = torch.stack([data[int(i)][0] for i in torch.randperm(len(data), generator=random)[:16]])
    scores = activations(graph, images, [last])[last]
    if scores.ndim != 2 or scores.shape[1] < 2:
        return None
    first = scores.argmax(1).cpu()
    second = (first + torch.randint(1, scores.shape[1], first.shape, generator=random)) % scores.shape[1]
    rows, zero = torch.arange(len(images)), torch.zeros(len(images), dtype=torch.int64)
    bootstrap, mask = Bootstrap(rows, rows, random, protocol.draws), torch.ones(len(images), *images.shape[2:]).bool()
    estimates = {}
    for name, rules in SIGNALS.items():
        one, other = (
            Deconvnet(deconvnet.model, rules=rules)
            .project_units(images, last, torch.stack([rows, classes, zero, zero], 1), signals=torch.ones(len(rows)))
            .projections
            for classes in (first, second)
        )
        estimates[name] = bootstrap(similarity(one, other, mask))
    return estimates
