"""Deconvolution or cropping? What the paper leaves to the eye in its Figure 2, projections beside crops, in numbers.

The same feature maps and the same strongest activations of each are shown as the crop of the receptive field, as the
projection, and as the crop masked by the projection's strongest pixels; as gradient and guided back-propagation in
place of the deconvnet; and as baselines that need no network: a crop shrunk about its centre, masks at the centre and
at random, an edge detector. `zfnet.analysis.faithfulness` defines what is measured. A difference counts where its
interval, by drawing units and images again, leaves out 0.

What to look for: whether the masked crop leaves more of the activation than the shrunk crop and the random mask, layer
by layer: only then does the projection say where in its receptive field a unit looks. Whether the projection tells
units apart better than the crop. And whether it changes when the weights do: a picture that does not tells of the
image, not of the network.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from experiments.output.pages import DPI, chosen, page, place, text
from experiments.output.results import Provenance, results, table, write_result
from experiments.setup.models import build
from zfnet import Deconvnet, InputError, TopActivations, receptive_field, scan
from zfnet.analysis.faithfulness import (
    FILLS,
    PICTURES,
    WEIGHTS,
    Bootstrap,
    area,
    check_shares,
    cosine,
    curve,
    energy_inside,
    ground,
    points_inside,
    ranks,
    recognised,
    similarity,
    strongest,
    with_shuffled_weights,
)
from zfnet.data.images import as_images
from zfnet.data.preprocessing import Preprocessing
from zfnet.deconvnet import Patches
from zfnet.errors import unknown_name
from zfnet.graph import graph_of
from zfnet.identity import Identity, digest, network_identity, read_sealed, write_sealed
from zfnet.operations import DECONVNET, DIFFERENTIATED_NORMS, GRADIENT, GUIDED, UNRECTIFIED
from zfnet.receptive_fields import ReceptiveField
from zfnet.recording import activations
from zfnet.rendering import GREY, outside, resized, signed_image

SHARES = (0, 1, 2, 5, 10, 20, 35, 50, 75, 100)  # percent of the pixels
SIGNALS: dict[str, dict[str, Any]] = {  # "gradient" and "guided" also differentiate the normalisation
    "projection": {},
    "gradient": {"rules": GRADIENT},
    "guided": {"rules": GUIDED},
}
CHOICES: dict[str, dict[str, Any]] = {  # of this reproduction, and what else could have been chosen
    "windows overwrite": {"collisions": "overwrite"},
    "windows: max": {"collisions": "max"},
    "norm differentiated": {"rules": DECONVNET | DIFFERENTIATED_NORMS},
    "not rectified": {"rules": DECONVNET | UNRECTIFIED},
    "switches of another image": {},
    "signal 1": {},  # in place of the activation
}
SHOWN = ("crop", "projection", "masked crop")
BASELINES = ("shrunk crop", "centre", "random", "edges")
PAIRS = [
    ("projection", "crop"),
    ("masked crop", "crop"),
    ("masked crop", "projection"),
    *(("masked crop", other) for other in BASELINES[1:]),
    ("masked crop", "masked by gradient"),
    ("masked crop", "masked by guided"),
    ("projection", "gradient"),
    ("projection", "guided"),
]
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
OTHERS = (  # pictures that a projection may be like
    "all shuffled",
    "another map, same place",
    "same map, another image",
    "edges of the crop",
    "nearness of the centre",
)
JUDGED = ("features.4.cat", "features.8.cat", "features.12.cat")  # layers of the second network
EXAMPLES = 2  # maps of each layer whose pictures are drawn
PIXELS = 2**27  # of all pictures of a layer of one kind: those of very deep networks are many times the image
THUMBNAIL, JUDGED_SIDE = 16, 64  # pixels, to which pictures are resized to be told apart
STYLES: dict[str, dict[str, Any]] = {
    "crop": {"color": "C7", "lw": 2},
    "projection": {"color": "C0", "lw": 2},
    "masked crop": {"color": "C3", "lw": 2},
    "gradient": {"color": "C2", "ls": ":"},
    "masked by gradient": {"color": "C2"},
    "guided": {"color": "C1", "ls": ":"},
    "masked by guided": {"color": "C1"},
    "shrunk crop": {"color": "C7", "ls": ":"},
    "centre": {"color": "C4"},
    "random": {"color": "0.6", "ls": "--"},
    "edges": {"color": "C5"},
}


def main(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    layers: Sequence[str] = ("relu1", "relu2", "relu3", "relu4", "relu5"),
    maps: int = 16,
    k: int = 9,
    shares: Sequence[float] = SHARES,
    fill: str = "grey",
    judge: str | None = None,
    draws: int = 2000,
    seed: int = 0,
    batch_size: int = 64,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure every picture of `maps` maps of each layer, drawn by seed; return what result.json holds.

    k: of a map's strongest activations; all images, if there are fewer. shares: percent of the pixels that are kept or
    removed. fill: what stands in their place, "grey" (the mean colour), "blur" or "noise".
    judge: weights of torchvision's SqueezeNet v1.0, the second network by which units are told apart; None: untrained,
    so that it knows neither these images nor these units. draws: of the bootstrap.
    A run that was stopped goes on after the last layer that was done.
    """
    provenance = Provenance(model, seed=seed)
    layers = [layers] if isinstance(layers, str) else list(layers)
    shares = check_shares(shares)
    if fill not in FILLS:
        raise unknown_name("fill", fill, FILLS)
    for name, value, least in (("maps", maps, 1), ("k", k, 1), ("draws", draws, 100)):
        if value < least:
            raise InputError(f"{name} is {value}; give {least} or more")
    k = min(k, len(data))
    network = build(torchvision.models.squeezenet1_0, weights=judge, preprocessing=Preprocessing())
    network.to(next(model.parameters()).device)
    deconvnet = Deconvnet(model)
    for layer in layers:
        deconvnet.graph.node(layer)
    states = [Path(out) / name for name in ("scan.partial", "ablation.partial")]
    tops = scan(
        deconvnet.graph,
        data,
        layers,
        k,
        batch_size=batch_size,
        workers=workers,
        state=states[0],
        keep_state=True,
        progress=progress,
    )
    settings: dict[str, Any] = {
        "model": type(model).__name__,
        "layers": layers,
        "maps": maps,
        "k": k,
        "shares": shares,
        "fill": fill,
        "judge": "untrained" if judge is None else Path(judge).name,
        "draws": draws,
        "seed": seed,
        "dataset": type(data).__name__,
        "images": tops.images,
    }
    drawn = {layer: chosen(layer, tops[layer], maps, "random", torch.Generator().manual_seed(seed)) for layer in layers}
    if not any(drawn.values()):
        states[0].unlink(missing_ok=True)
        raise InputError(f"no feature map of {', '.join(layers)} is ever above 0 on these {tops.images} images")
    identity = network_identity(model) | {
        "images": as_images(data).identity(),
        "settings": digest(settings),
        "judge": digest(network),
        "winners": digest({layer: list(top) for layer, top in tops.items()}),
    }
    done = _kept(states[1], identity)
    preprocessing = Preprocessing.of(model)
    for n, layer in enumerate(layers):
        if drawn[layer] and layer not in done:
            sample = Sample.of(
                deconvnet, data, layer, tops[layer], drawn[layer], draws=draws, seed=seed, progress=progress
            )
            done[layer] = measured(sample, layers[:n], shares, fill, data, network, preprocessing)
            write_sealed(states[1], identity, json.dumps(done))
    done = {layer: done[layer] for layer in layers if layer in done}
    counts = {
        layer: {
            "maps": len(top.value),
            "dead": int((~(top.value[:, 0] > 0)).sum()),
            "drawn": len(drawn[layer]),
            "fewer than k": int(((top.value[drawn[layer]] > 0).sum(1) < k).sum()),
        }
        for layer, top in tops.items()
    }
    ours = {
        "layers": done,
        "counts": counts,
        "classes": _classes(deconvnet, data, seed, draws),
        "images": tops.images,
        "broken_images": tops.broken,
    }
    shown = {}
    for layer in done:
        strongest_of = TopActivations(*(column[:, :1] for column in tops[layer]))
        first_maps = drawn[layer][:EXAMPLES]
        shown[layer] = Sample.of(deconvnet, data, layer, strongest_of, first_maps, draws=1, seed=seed, progress=False)
    with results(out) as folder:
        examples = draw_pictures(shown, preprocessing)
        examples.savefig(folder / "pictures.png", dpi=DPI)
        figure = draw(done, shares, settings)
        figure.savefig(folder / "figure.png", dpi=DPI)
        figure.savefig(folder / "figure.pdf")
        words = tables(done)
        (folder / "table.md").write_text(words + "\n", encoding="utf-8")
        (folder / "report.md").write_text(report(ours, settings) + "\n", encoding="utf-8")
        result = write_result(folder, "ablation", dict.fromkeys(ours), ours, settings, provenance)
    for state in states:
        state.unlink(missing_ok=True)
    print(words)
    return result


def _kept(path: Path, identity: Identity) -> dict[str, Any]:
    """The layers that were done before this run was interrupted; InputError if they are damaged or of another run."""
    if not path.exists():
        return {}
    layers: dict[str, Any] = json.loads(read_sealed(path, identity, "delete it to measure anew"))
    return layers


# ---- one layer -------------------------------------------------------------------------------------------------------


@dataclass
class Sample:
    """The strongest activations of some maps of one layer, M in all, with what is drawn by seed for them."""

    deconvnet: Deconvnet
    layer: str
    field: ReceptiveField
    images: Tensor
    items: list[int]  # (M,): which image of the data each is of
    units: Tensor  # (M, 4), as in `project_units`
    patches: Patches
    inside: Tensor  # (M, S, S) bool: which pixels a unit sees
    bootstrap: Bootstrap
    seed: int
    progress: bool

    @classmethod
    def of(
        cls,
        deconvnet: Deconvnet,
        data: Any,
        layer: str,
        top: TopActivations,
        maps: Sequence[int],
        *,
        draws: int,
        seed: int,
        progress: bool,
    ) -> "Sample":
        units = top.units(maps)[top.value[list(maps)].flatten() > 0]
        items, units[:, 0] = units[:, 0].unique(return_inverse=True)
        images = torch.stack([data[int(i)][0] for i in items])
        field = receptive_field(deconvnet.graph, layer, tuple(images.shape[-2:]))  # type: ignore[arg-type]
        if len(units) * math.prod(field.size) > PIXELS:
            seen = f"{field.size[0]} x {field.size[1]} pixels"
            raise InputError(
                f"{layer}: {len(units)} pictures of {seen}, which its units see, are too many to hold; "
                "give fewer maps, or other layers"
            )
        patches = deconvnet.project_units(images, layer, units)
        beyond = outside(patches.boxes, field.image_size, (patches.crops.shape[2], patches.crops.shape[3]))[:, 0]
        bootstrap = Bootstrap(units[:, 1], units[:, 0], torch.Generator().manual_seed(seed), draws)
        unit_items = items[units[:, 0]].tolist()
        return cls(deconvnet, layer, field, images, unit_items, units, patches, ~beyond, bootstrap, seed, progress)

    @property
    def random(self) -> torch.Generator:
        """The same numbers again and again: so weights that are equal in two pictures are drawn alike in both."""
        return torch.Generator().manual_seed(self.seed)

    @cached_property
    def signals(self) -> dict[str, Tensor]:
        """(M, 3, S, S) by name."""
        others = {name: self.projected(**rules).projections for name, rules in SIGNALS.items() if rules}
        return {"projection": self.patches.projections} | others

    def projected(self, *, of: nn.Module | None = None, units: Tensor | None = None, **options: Any) -> Patches:
        """From 1 for every unit: it differs in scale alone, and is not zero where a unit does not fire."""
        units = self.units if units is None else units
        deconvnet = Deconvnet(of or self.deconvnet.model, **options)
        return deconvnet.project_units(self.images, self.layer, units, signals=torch.ones(len(units)))

    def ranks(self, weight: str, signals: Mapping[str, Tensor]) -> Tensor:
        return ranks(weight, self.patches.crops, signals, self.inside, self.random)

    def bar(self, steps: Iterable[Any], what: str) -> Iterable[Any]:
        return tqdm(list(steps), desc=f"{self.layer}, {what}", unit=" steps", disable=not self.progress)

    def estimate(self, values: Tensor) -> list[float] | None:
        estimate = self.bootstrap(values)
        return list(estimate) if estimate else None

    @cached_property
    def following(self) -> Tensor:
        """For each picture the next one of its map, the first for the last; itself where a map has but one."""
        maps, following = self.units[:, 1], torch.arange(len(self.units))
        for m in maps.unique():
            rows = (maps == m).nonzero().flatten()
            following[rows] = rows.roll(-1)
        return following

    def of_others(self, values: Tensor) -> Tensor:
        """Without those that a map's only picture has in comparison with itself."""
        return torch.where(self.following == torch.arange(len(values)), torch.nan, values.cpu())


class Curves:
    """What is left of a sample's activations, by the content and the ranks of pixels."""

    def __init__(self, sample: Sample, shares: Sequence[float], fill: str):
        self.sample, self.shares = sample, shares
        self.ground = ground(sample.patches.crops, sample.inside, fill, sample.random)
        self.known: dict[str, Tensor] = {}

    def activations_of(self, canvases: Tensor) -> Tensor:
        """The activations of canvases; of those that were seen before, as curves end alike, without a second run."""
        key = digest(canvases)
        if key not in self.known:
            sample, field = self.sample, self.sample.field
            self.known[key] = sample.deconvnet.activations_of(canvases, sample.layer, sample.units, field.image_size)
        return self.known[key]

    def __call__(self, content: Tensor, rank: Tensor, *, keep: bool) -> Tensor:
        values, inside = self.sample.patches.values, self.sample.inside
        curves = curve(self.activations_of, values, content, self.ground, rank, inside, self.shares, keep=keep)
        return curves.double().cpu()


@dataclass
class Viewer:
    """What can be said of a sample's pictures without its network."""

    sample: Sample
    truth: dict[str, Tensor]  # (M, S, S) bool, by kind
    judge: nn.Module
    preprocessing: Preprocessing

    @property
    def chance(self) -> float:
        """How many pictures are told apart by it."""
        maps = self.sample.units[:, 1]
        return recognised(torch.zeros(len(maps), 1), maps)[1]

    def displayed(self, signals: Tensor) -> Tensor:
        """Signals as the network sees the pictures that figures show of them, their zero its mean colour."""
        picture, grey = signed_image(self.preprocessing.rgb(signals)), torch.full_like(signals, GREY)
        return self.preprocessing.normalise(picture) - self.preprocessing.normalise(grey)

    def __call__(self, shown: Tensor, energy: Tensor, rank: Tensor) -> dict[str, Tensor]:
        """Measures (M,) of pictures (M, 3, S, S), how much of each pixel is shown (M, S, S), and ranks."""
        maps, inside = self.sample.units[:, 1], self.sample.inside
        of = {
            "pixels": recognised(resized(shown, (THUMBNAIL, THUMBNAIL)).flatten(1).cpu(), maps)[0],
            "network": recognised(_judged(self.judge, self.preprocessing, shown).cpu(), maps)[0],
        }
        for kind, mask in self.truth.items():
            mask = mask.to(inside.device)
            partly = (mask & inside).any(2).any(1) & (inside & ~mask).any(2).any(1)  # else no picture can be wrong
            of[f"energy on {kind}"] = torch.where(partly, energy_inside(energy, mask), torch.nan)
            of[f"points at {kind}"] = torch.where(partly, points_inside(rank, mask), torch.nan)
        return of


def compared(sample: Sample, curves: Curves, viewer: Viewer) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Every measure (M,) of every picture, and its mean curves."""
    crops, inside = sample.patches.crops, sample.inside
    rank = {weight: sample.ranks(weight, sample.signals) for weight in (*WEIGHTS, *SIGNALS)}
    content = {"crop": crops} | {name: viewer.displayed(signal) for name, signal in sample.signals.items()}
    pairs = dict.fromkeys((picture.content, picture.weight) for picture in PICTURES.values())
    kept = {(c, w): curves(content[c], rank[w], keep=True) for c, w in sample.bar(pairs, "keep")}
    removed = {w: curves(crops, rank[w], keep=False) for w in sample.bar(rank, "remove")}
    measures: dict[str, dict[str, Tensor]] = {}
    means: dict[str, Any] = {}
    for name, (what, weight, share) in PICTURES.items():
        mask = strongest(rank[weight], inside, share)
        shown = torch.where(mask[:, None], content[what], 0.0)
        of = measures[name] = {"sufficiency": area(kept[what, weight], curves.shares)}
        means[name] = {"kept": kept[what, weight].mean(0).tolist()}
        if what == "crop":  # what a signal's pixels are worth is asked of the crop
            of["necessity"] = 1 - area(removed[weight], curves.shares)
            means[name]["removed"] = removed[weight].mean(0).tolist()
        energy = mask.to(crops) if what == "crop" else shown.square().sum(1)
        of |= viewer(shown, energy, rank[weight])
    return measures, means


def likeness(sample: Sample, below: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How like each signal is what it should not be like: by shuffled weights, from the top down to `below` in turn,
    of another map at the same place, of the same map in another image; the edges of the crop; and how near the
    centre is, where many paths from a unit meet in any network of this shape."""
    units, maps = sample.units, sample.units[:, 1].unique()
    other = units.clone()
    other[:, 1] = maps.roll(1)[torch.searchsorted(maps, units[:, 1].contiguous())]
    edges, near = (WEIGHTS[w](sample.patches.crops, sample.inside, sample.random)[:, None] for w in ("edges", "disc"))
    likenesses: dict[str, dict[str, Any]] = {}
    for name, rules in sample.bar(SIGNALS.items(), "shuffle"):
        pictures = {}
        for end in (*reversed(below), None):
            title = f"shuffled above {end}" if end else "all shuffled"
            twin = with_shuffled_weights(sample.deconvnet.graph, sample.layer, end, sample.random)
            pictures[title] = sample.projected(of=twin, **rules).projections
        pictures["edges of the crop"], pictures["nearness of the centre"] = edges.sqrt(), (near - near.min()).sqrt()
        pictures["another map, same place"] = sample.projected(units=other, **rules).projections
        pictures["same map, another image"] = sample.signals[name][sample.following]
        values = {what: similarity(sample.signals[name], picture, sample.inside) for what, picture in pictures.items()}
        values["same map, another image"] = sample.of_others(values["same map, another image"])
        if len(maps) == 1:
            del values["another map, same place"]
        likenesses[name] = {what: sample.estimate(correlations) for what, correlations in values.items()}
    return likenesses


def otherwise(
    sample: Sample, curves: Curves, viewer: Viewer, default: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, dict[str, Any]]:
    """What other choices change: the cosine with the projection, and what is gained on the measures by `default`.

    Sufficiency and necessity are those of the masked crop, the others those of the projection.
    """
    changes = {}
    for name, options in sample.bar(CHOICES.items(), "choices"):
        if name == "switches of another image":  # which are all that a projection knows of its image
            pixels = sample.signals["projection"][sample.following]
        else:
            pixels = sample.projected(**options).projections
        order = sample.ranks("other", {"other": pixels})
        kept, removed = (area(curves(sample.patches.crops, order, keep=k), curves.shares) for k in (True, False))
        shown = torch.where(sample.inside[:, None], viewer.displayed(pixels), 0.0)
        masked, whole = default["masked crop"], default["projection"]
        values = {
            "cosine": cosine(sample.patches.projections, pixels),
            "sufficiency": kept - masked["sufficiency"],
            "necessity": 1 - removed - masked["necessity"],
            **{m: v - whole[m] for m, v in viewer(shown, shown.square().sum(1), order).items()},
        }
        if name == "switches of another image":
            values = {what: sample.of_others(numbers) for what, numbers in values.items()}
        changes[name] = {what: sample.estimate(numbers) for what, numbers in values.items()}
    return changes


def measured(
    sample: Sample,
    below: Sequence[str],
    shares: Sequence[float],
    fill: str,
    data: Any,
    judge: nn.Module,
    preprocessing: Preprocessing,
) -> dict[str, Any]:
    """All numbers of one layer; an estimate is mean, low, high, and how many values it comes from."""
    curves, viewer = Curves(sample, shares, fill), Viewer(sample, _truth(data, sample), judge, preprocessing)
    measures, means = compared(sample, curves, viewer)
    return {
        "size": list(sample.field.size),
        "maps": sample.units[:, 1].unique().tolist(),
        "units": len(sample.units),
        "chance": viewer.chance,
        "curves": means,
        "measures": {name: {m: sample.estimate(v) for m, v in of.items()} for name, of in measures.items()},
        "differences": {
            f"{a} - {b}": {
                m: sample.estimate(measures[a][m] - measures[b][m])
                for m in MEASURES
                if m in measures[a] and m in measures[b]
            }
            for a, b in PAIRS
        },
        "likeness": likeness(sample, below),
        "choices": otherwise(sample, curves, viewer, measures),
    }


def _truth(data: Any, sample: Sample) -> dict[str, Tensor]:
    """Where objects, and their parts, are in receptive fields: (M, S, S), bool; nothing where the data do not know."""
    planes = {i: _known(data, i, sample.images.shape[-2:]) for i in set(sample.items)}
    pairs = list(zip(sample.items, sample.patches.boxes.tolist(), strict=True))
    return {kind: torch.stack([_cut(planes[i][kind], box) for i, box in pairs]) for kind in planes[sample.items[0]]}


def _known(data: Any, item: int, size: Sequence[int]) -> dict[str, Tensor]:
    """Where the object, and its parts, are in an image: (H, W), bool."""
    truth = as_images(data).truth(item)
    if truth is None:
        return {}
    planes = {"object": _filled(truth.objects, size) if truth.mask is None else truth.mask}
    return planes if truth.parts is None else planes | {"parts": _filled(truth.parts.values(), size)}


def _filled(boxes: Iterable[Sequence[int]], size: Sequence[int]) -> Tensor:
    plane = torch.zeros(*size, dtype=torch.bool)
    for top, left, bottom, right in boxes:
        plane[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    return plane


def _cut(plane: Tensor, box: Sequence[int]) -> Tensor:
    """What a box (top, left, bottom, right) holds of a plane (H, W), False where it leaves it."""
    rows, columns = torch.arange(box[0], box[2])[:, None], torch.arange(box[1], box[3])[None]
    overlap = (rows >= 0) & (rows < plane.shape[0]) & (columns >= 0) & (columns < plane.shape[1])
    return plane[rows.clamp(0, plane.shape[0] - 1), columns.clamp(0, plane.shape[1] - 1)] & overlap


def _judged(judge: nn.Module, preprocessing: Preprocessing, pictures: Tensor) -> Tensor:
    """What the second network makes of pictures, resized: the mean of each map of three layers, (M, D)."""
    own: Preprocessing = judge.preprocessing  # type: ignore[assignment]
    small = resized(pictures, (JUDGED_SIDE, JUDGED_SIDE))
    maps = activations(graph_of(judge), own.normalise(preprocessing.pixels(small)), JUDGED)
    return torch.cat([maps[layer].mean((2, 3)) for layer in JUDGED], 1)


def _classes(deconvnet: Deconvnet, data: Any, seed: int, draws: int, count: int = 16) -> dict[str, Any] | None:
    """How alike the pictures of the likeliest class and of another one are, on the same image; None without classes."""
    graph, random = deconvnet.graph, torch.Generator().manual_seed(seed)
    last = graph.names[graph.output]
    items = torch.randperm(len(data), generator=random)[:count].tolist()
    images = torch.stack([data[i][0] for i in items])
    scores = activations(graph, images, [last])[last]
    if scores.ndim != 2 or scores.shape[1] < 2:
        return None
    first = scores.argmax(1).cpu()
    second = (first + torch.randint(1, scores.shape[1], first.shape, generator=random)) % scores.shape[1]
    rows = torch.arange(len(items))
    bootstrap, mask = Bootstrap(rows, rows, random, draws), torch.ones(len(items), *images.shape[2:]).bool()
    estimates: dict[str, Any] = {}
    for name, rules in SIGNALS.items():
        units = (torch.stack([rows, of, 0 * rows, 0 * rows], 1) for of in (first, second))
        one, other = (
            Deconvnet(deconvnet.model, **rules)
            .project_units(images, last, class_units, signals=torch.ones(len(class_units)))
            .projections
            for class_units in units
        )
        estimate = bootstrap(similarity(one, other, mask))
        estimates[name] = list(estimate) if estimate else None
    return estimates


# ---- words -----------------------------------------------------------------------------------------------------------


def _cell(estimate: Sequence[float] | None, sign: str = "") -> str:
    return "-" if estimate is None else "{:{s}.2f} ({:{s}.2f} to {:{s}.2f})".format(*estimate[:3], s=sign)


def tables(layers: Mapping[str, Any]) -> str:
    """Every number with its interval, as four tables."""
    measures = [m for m in MEASURES if any(of.get(m) for n in layers.values() for of in n["measures"].values())]
    parts = [
        "Means over units, with 95 % intervals; larger is better.\n\n"
        + table(
            ["layer", "picture", *measures],
            [
                [layer, p, *(_cell(of.get(m)) for m in measures)]
                for layer, n in layers.items()
                for p, of in n["measures"].items()
            ],
        ),
        "Paired differences: of the same units and images.\n\n"
        + table(
            ["layer", "difference", *measures],
            [
                [layer, p, *(_cell(of.get(m), "+") for m in measures)]
                for layer, n in layers.items()
                for p, of in n["differences"].items()
            ],
        ),
        "The reproduction's own choices: cosine with its projection, and what is gained by them, in sufficiency and "
        "necessity by the masked crop, else by the projection.\n\n"
        + table(
            ["layer", "choice", "cosine", *measures],
            [
                [layer, c, _cell(of["cosine"]), *(_cell(of.get(m), "+") for m in measures)]
                for layer, n in layers.items()
                for c, of in n["choices"].items()
            ],
        ),
        "How like the picture is another, by the rank correlation of their energies.\n\n"
        + table(
            ["layer", "other", *SIGNALS],
            [
                [layer, what, *(_cell(n["likeness"][s].get(what)) for s in SIGNALS)]
                for layer, n in layers.items()
                for what in n["likeness"]["projection"]
            ],
        ),
    ]
    return "\n\n".join(parts)


def clear(estimate: Sequence[float] | None) -> int:
    """1 or -1 where an interval, to three digits, lies wholly on one side of 0, else 0."""
    return 0 if estimate is None else int(round(estimate[1], 3) > 0) - int(round(estimate[2], 3) < 0)


def unbeaten(numbers: Mapping[str, Any], measure: str) -> list[str]:
    """Those of the shown pictures that none of the others is clearly better than."""
    losers = set()
    for pair in PAIRS[: len(SHOWN)]:
        if side := clear(numbers["differences"]["{} - {}".format(*pair)].get(measure)):
            losers.add(pair[1 if side > 0 else 0])
    return [name for name in SHOWN if numbers["measures"][name].get(measure) and name not in losers]


def report(ours: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """One page, whose sentences are made from the numbers."""
    layers, counts = ours["layers"], ours["counts"]
    units = sum(n["units"] for n in layers.values())
    lines = [
        "# Deconvolution or cropping?",
        f"{settings['model']}, {ours['images']:,} images ({settings['dataset']}): the {settings['k']} strongest "
        f"activations of {sum(c['drawn'] for c in counts.values())} feature maps in {len(layers)} layers, {units} "
        f"units, drawn by seed {settings['seed']}.  Removed pixels become {settings['fill']}.  Intervals are of 95 %, "
        f"from {settings['draws']:,} draws of units and images; what is not clear of 0 is not counted as a difference.",
    ]
    remarks = [
        f"{layer}: {c['dead']} of {c['maps']} maps never fire, and are left out"
        for layer, c in counts.items()
        if c["dead"]
    ]
    remarks += [
        f"{layer}: {c['fewer than k']} of the {c['drawn']} maps drawn are above 0 on fewer than {settings['k']} images"
        for layer, c in counts.items()
        if c["fewer than k"]
    ]
    if settings["k"] < 9:
        remarks.append(f"{settings['k']} images of each map, not the paper's nine")
    if ours["broken_images"]:
        remarks.append(f"{len(ours['broken_images'])} images could not be read")
    lines.append("; ".join(remarks) + "." if remarks else "No map was left out.")
    lines.append("## Which of crop, projection and masked crop?")
    chances = [f"{n['chance']:.2f}" for n in layers.values()]
    if len(set(chances)) == 1:
        by_chance = chances[0]
    else:
        by_chance = ", ".join(f"{layer} {chance}" for layer, chance in zip(layers, chances, strict=True))
    lines.append(
        "A crop has no order of its own: its pixels are kept from its centre outwards.  The masked crop keeps them "
        "where the projection is strongest.  The projection itself is shown to the network at a figure's contrast, "
        "and may excite the unit more than the crop does: then more than 1 is left.  Every second picture of a map is "
        f"known, and the others are to be told apart: by chance {by_chance}.  The second network is "
        f"SqueezeNet ({settings['judge']})."
    )
    lines.append(
        "Named are those that none of the other two is clearly better than, in bold where there is but one; how much "
        "they differ is in `table.md`."
    )
    rows = []
    for measure, meaning in MEASURES.items():
        best = [unbeaten(n, measure) for n in layers.values()]
        if any(best):
            cells = [f"**{names[0]}**" if len(names) == 1 else ", ".join(names) or "-" for names in best]
            rows.append([f"{measure}: {meaning}", *cells])
    lines.append(table(["", *layers], rows))
    lines.append("## Against gradients and baselines")
    lines += [_versus(layers, measure) for measure in ("sufficiency", "necessity")]
    lines.append("## Does it only recover the image?")
    lines += _sanity(layers, ours["classes"])
    lines.append("## Do this reproduction's choices matter?")
    lines.append("\n".join(_choice(layers, name) for name in CHOICES))
    return "\n\n".join(lines)


def _effect(signs: Mapping[str, int]) -> str:
    """In which layers something is clearly better, and worse."""
    phrases = []
    for word, side in (("better", 1), ("worse", -1)):
        layers = [layer for layer, sign in signs.items() if sign == side]
        if layers:
            phrases.append(f"{word} in {'every layer' if len(layers) == len(signs) else ', '.join(layers)}")
    return "; ".join(phrases) or "no difference shown"


def _versus(layers: Mapping[str, Any], measure: str) -> str:
    lines = []
    for one, other in PAIRS[1:2] + PAIRS[len(SHOWN) : -2]:
        signs = {layer: clear(n["differences"][f"{one} - {other}"].get(measure)) for layer, n in layers.items()}
        lines.append(f"- {'shrunk crop' if other == 'crop' else other}: {_effect(signs)}")
    return f"By {measure} the crop masked by the projection is, against\n\n" + "\n".join(lines)


def _sanity(layers: Mapping[str, Any], classes: Mapping[str, Any] | None) -> list[str]:
    lines = []
    for what in OTHERS:
        rows = [f"{layer} {_cell(n['likeness']['projection'].get(what))}" for layer, n in layers.items()]
        lines.append(f"- {what}: {', '.join(rows)}")
    words = ["How like the projection (rank correlation of energies) is\n\n" + "\n".join(lines)]
    if classes:
        estimates = ", ".join(f"{name} {_cell(estimate)}" for name, estimate in classes.items())
        words.append(f"Pictures of the likeliest class and of another one, on the same image: {estimates}.")
    return words


def _choice(layers: Mapping[str, Any], name: str) -> str:
    rows = {layer: n["choices"][name] for layer, n in layers.items()}
    cosines = ", ".join(
        f"{layer} {of['cosine'][0]:.2f}" if of["cosine"] else f"{layer} -" for layer, of in rows.items()
    )
    signs = {
        measure: {layer: clear(of.get(measure)) for layer, of in rows.items()}
        for measure in MEASURES
        if any(of.get(measure) for of in rows.values())
    }
    effects = [f"{measure} {_effect(of)}" for measure, of in signs.items() if any(of.values())]
    return f"- {name}: cosine with the projection {cosines}; {', '.join(effects) or _effect({})}"


# ---- the figure ------------------------------------------------------------------------------------------------------


def draw(layers: Mapping[str, Any], shares: Sequence[float], settings: Mapping[str, Any]) -> Figure:
    """Rows: activation left when pixels are kept, when they are removed; then each measure by layer, with intervals."""
    measures = [m for m in MEASURES if any(of.get(m) for n in layers.values() for of in n["measures"].values())]
    columns = max(len(layers), 4)
    rows = 2 + -(-(len(measures) + 2) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.3 * rows + 0.9), facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False)
    for line, (key, title) in zip(axes, (("kept", "kept"), ("removed", "removed from the crop")), strict=False):
        for axis, (layer, numbers) in zip(line, layers.items(), strict=False):
            _curves(axis, numbers, key, shares)
            axis.set_title(f"{layer}, {' x '.join(map(str, numbers['size']))} pixels", fontsize=8)
            axis.set_xlabel(f"strongest pixels {title}, %", fontsize=7)
        line[0].set_ylabel("activation left", fontsize=7)
    below = axes[2:].flatten()
    for axis, measure in zip(below, measures, strict=False):
        rows_of = {name: [n["measures"][name].get(measure) for n in layers.values()] for name in STYLES}
        _by_layer(axis, list(layers), rows_of, STYLES)
        axis.set_title(MEASURES[measure], fontsize=7)
        if measure in ("pixels", "network"):
            axis.plot([n["chance"] for n in layers.values()], color="0.6", lw=0.7, zorder=0)
    styles = {s: STYLES[s] for s in SIGNALS}
    for axis, what in zip(below[len(measures) :], OTHERS, strict=False):
        _by_layer(
            axis, list(layers), {s: [n["likeness"][s].get(what) for n in layers.values()] for s in SIGNALS}, styles
        )
        axis.set_title(f"likeness: {what}", fontsize=7)
    for axis in axes.flatten():
        axis.tick_params(labelsize=6)
        axis.spines[["top", "right"]].set_visible(False)
        if not axis.has_data():
            axis.axis("off")
    figure.subplots_adjust(0.06, 0.5 / rows / 2.3 + 0.06, 0.98, 1 - 0.3 / rows, wspace=0.28, hspace=0.62)
    handles = [axes[0, 0].plot([], [], label=name, **style)[0] for name, style in STYLES.items()]
    figure.legend(handles=handles, loc="lower center", ncols=6, fontsize=7, frameon=False)
    figure.suptitle(
        f"{settings['model']}, {settings['images']:,} images, {settings['maps']} maps a layer; filled with "
        f"{settings['fill']}; bars: 95 % intervals",
        fontsize=9,
    )
    return figure


def draw_pictures(samples: Mapping[str, Sample], preprocessing: Preprocessing) -> Figure:
    """Rows: the units of each sample; columns: what is shown of them, the pixels that are not in grey."""
    tile, gap, top, left = 180, 10, 60, 220
    rows = sum(len(sample.units) for sample in samples.values())
    figure = page(left + len(PICTURES) * (tile + gap), top + rows * (tile + gap))
    for column, name in enumerate(PICTURES):
        text(figure, left + column * (tile + gap) + tile / 2, top / 2, name, size=6, ha="center")
    y = top
    for layer, sample in samples.items():
        photograph = preprocessing.pixels(sample.patches.crops).clamp(0, 1)
        tiles = []
        for picture in PICTURES.values():
            signal = sample.signals.get(picture.content)
            whole = photograph if signal is None else signed_image(preprocessing.rgb(signal))
            kept = strongest(sample.ranks(picture.weight, sample.signals), sample.inside, picture.share)
            hidden = F.interpolate((~kept)[:, None].to(whole), (tile, tile))  # whole pixels, however large
            tiles.append(resized(whole, (tile, tile)).clamp(0, 1).where(hidden < 0.5, GREY).cpu())
        for unit, line in zip(sample.units.tolist(), torch.stack(tiles, 1), strict=True):
            words = f"{layer}\nmap {unit[1]}\n{' x '.join(map(str, sample.field.size))} pixels"
            text(figure, left - 3 * gap, y + tile / 2, words, size=6, ha="right")
            for column, picture_of in enumerate(line):
                place(figure, picture_of, left + column * (tile + gap), y)
            y += tile + gap
    return figure


def _curves(axis: Axes, numbers: Mapping[str, Any], key: str, shares: Sequence[float]) -> None:
    for name, style in STYLES.items():
        values = numbers["curves"][name].get(key)
        if values and name != "shrunk crop":  # the crop's own curve
            axis.plot(shares, values, **style)
    axis.axhline(1, color="0.85", lw=0.5, zorder=0)


def _by_layer(
    axis: Axes, layers: Sequence[str], rows: Mapping[str, Sequence[Any]], styles: Mapping[str, dict[str, Any]]
) -> None:
    for n, (name, estimates) in enumerate(rows.items()):
        points = [(i, e) for i, e in enumerate(estimates) if e]
        if points:
            x = [i + 0.7 * (n / max(len(rows) - 1, 1) - 0.5) for i, _ in points]
            mean, low, high = (torch.tensor([e[j] for _, e in points]) for j in range(3))
            colour = styles[name]["color"]
            axis.errorbar(
                x,
                mean,
                [(mean - low).clamp(min=0), (high - mean).clamp(min=0)],
                fmt="o" if name in SHOWN else ".",
                color=colour,
                ms=4 if name in SHOWN else 3,
                lw=1,
                mfc="white" if styles[name].get("ls") else colour,
            )
    axis.set_xticks(range(len(layers)), layers, rotation=25, ha="right", rotation_mode="anchor")
