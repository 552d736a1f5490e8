"""How one activation gets back to pixels: every step of its way down, drawn.

What to look for: *unpooling* sends each value to the place of its maximum, which the forward pass recorded as a switch;
*rectification* removes negative values; *filtering* with the transposed filters spreads one layer's maps over those of
the layer below. One number becomes a pattern in the unit's receptive field.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from typing_extensions import Unpack

from experiments.output.feature_maps import Look, network_name
from experiments.output.pages import LINE, Page, box, enlarged, frame, heat, show
from experiments.output.results import Result
from experiments.setup.checks import at_least
from experiments.setup.hints import Count, Natural
from experiments.setup.options import Showing
from zfnet import Deconvnet, InputError, TopActivations, receptive_field, scan
from zfnet.checks import pair
from zfnet.data.images import Box, as_images, image_size
from zfnet.data.preprocessing import Preprocessing
from zfnet.graph import Graph
from zfnet.recording import Recording
from zfnet.rendering import contrast as scaled

VERBS = dict.fromkeys(("relu", "relu_"), "rectify") | dict.fromkeys(("conv2d", "linear"), "filter")
VERBS |= dict.fromkeys(("maxpool2d", "switchmaxpool2d", "max_pool2d"), "unpool")
VERBS |= dict.fromkeys(("contrastnorm", "dropout"), "pass") | {"cat": "split", "add": "branch", "iadd": "branch"}
FEW, LETTERS = 20, 25  # steps that are all drawn; letters in a line of words
GAP, WIDE_GAP = 6, 24  # pixels between tiles, and between the pictures of a unit


class Unit(NamedTuple):
    """The activation whose way is followed."""

    image: int
    map: int
    row: int
    column: int
    value: float
    box: Box  # what it sees
    inside: bool  # whether all of that is in the image


class Step(NamedTuple):
    """A signal on its way down, after an operation of a layer was undone."""

    layer: str
    verb: str
    signal: Tensor  # (C, H, W)
    before: int  # the step whose signal it undoes the operation for
    branches: str  # where ways part or meet

    @property
    def alive(self) -> int:
        return int((self.signal != 0).sum())

    @property
    def numbers(self) -> dict[str, Any]:
        """For result.json."""
        shape = list(self.signal.shape)
        return {"layer": self.layer, "operation": self.verb, "shape": shape, "not_zero": self.alive}


def main(
    model: nn.Module,
    data: Any,
    out: str | Path,
    *,
    layer: str = "relu5",
    map: Natural | None = None,
    rank: Natural | None = None,
    images: Count | None = 64,
    shown: Count = 3,
    every: bool = False,
    **options: Unpack[Showing],
) -> dict[str, Any]:
    """Follow one strong activation down to pixels, step by step; a second figure, unit, shows what its unit is.

    Args:
        model: the network.
        data: the images.
        out: the folder of the result.
        layer: where it starts.
        map: the feature map; null: any.
        rank: 0 for the map's strongest image, 1 for the next; null: the strongest activation whose receptive field
            lies inside its image, if there is one.
        images: search only the first so many images; null: all.
        shown: number of maps to draw of each signal, the strongest.
        every: draw every step, also of a deep network; otherwise only the steps around poolings.
        options: see `Showing` and `Reading`.
    """
    result, (look, reading) = Result("steps", out, locals()), Look.of(options)
    at_least(1, images=images or 1, shown=shown)
    at_least(0, rank=rank or 0)
    page, deconvnet, photographs = Page(look.width), look.deconvnet(model), as_images(data)
    size = image_size(photographs)
    deconvnet.check([layer], size)
    count = min(images or len(data), len(data))
    k = min(9, count) if rank is None else rank + 1
    tops = scan(deconvnet.graph, data, [layer], k, indices=range(count), **reading)
    unit = strongest(deconvnet.graph, layer, tops[layer], map, rank, size)
    image = photographs[unit.image][0]
    recording = deconvnet.record(image[None], [layer])
    steps = way_down(deconvnet, recording, layer, unit)
    drawn = range(len(steps)) if every or len(steps) <= FEW else around_poolings(steps)
    draw(page, steps, drawn[:-1], unit, shown)
    draw_pictures(page, image, steps[-1], unit, look, Preprocessing.of(model))
    of = f"{network_name(model)}, image {unit.image}, of {tops.images:,}"
    page.caption(f"{of}; {caption(unit, len(drawn), len(steps))} {look.words}")
    result.figure(page.done())
    result.figure(draw_unit(image, steps, unit, look, Preprocessing.of(model)), "unit")
    result.settings |= {"map": unit.map, "images": tops.images}
    return result.finish(numbers(layer, unit, photographs.file(unit.image), steps))


def numbers(layer: str, unit: Unit, file: str | None, steps: Sequence[Step]) -> dict[str, Any]:
    """What result.json says."""
    return {
        "unit": {"layer": layer, **{name: getattr(unit, name) for name in ("map", "row", "column", "value")}},
        "image": unit.image,
        "file": file,
        "box": list(unit.box),
        "steps": [step.numbers for step in steps],
    }


def caption(unit: Unit, drawn: int, steps: int) -> str:
    """What the figure of the steps shows."""
    place = "inside it" if unit.inside else "partly outside it"
    some = "" if drawn == steps else f" Of {steps} steps those around poolings; every=true draws all."
    return (
        f"the unit's field is {place}. Down the left side, then down the right.{some} All maps: the sum of absolute "
        "values at each place; single maps: the strongest. In each, mid-grey is 0, white above it and black below, and "
        "each has its own scale."
    )


def strongest(
    graph: Graph, layer: str, top: TopActivations, map: int | None, rank: int | None, size: tuple[int, int]
) -> Unit:
    """The strongest activation whose field lies inside the image, if there is one, or that is given by rank."""
    count, k = top.value.shape
    if map is not None and not 0 <= map < count:
        raise InputError(f"no map {map} in {layer}: there are {count}")
    asked = torch.ones(count, k, dtype=torch.bool)
    for n, axis in ((map, torch.arange(count)[:, None]), (rank, torch.arange(k))):
        asked &= (axis == n) if n is not None else True
    units = []
    for place in top.value.where(asked, -torch.inf).flatten().argsort(descending=True, stable=True).tolist():
        entry: Any = [values.flatten()[place].item() for values in top]
        value, image, row, column, _ = entry
        if not value > 0 or not asked.flatten()[place]:
            break
        seen = receptive_field(graph, layer, size, place // k).box(row, column)
        inside = min(seen[:2]) >= 0 and seen[2] <= size[0] and seen[3] <= size[1]
        units.append(Unit(image, place // k, row, column, value, seen, inside))
        if inside or rank is not None:
            return units[-1]
    if not units:
        which = f"map {map} of {layer} has" if map is not None else f"{layer} has"
        raise InputError(f"{which} no activation above 0 of rank {rank or 0} on these images; try more images")
    return units[0]


def way_down(deconvnet: Deconvnet, recording: Recording, layer: str, unit: Unit) -> list[Step]:
    """The signal at the start and after each step that changes it, to the projection."""
    graph, start = deconvnet.graph, deconvnet.graph.node(layer)
    shapes = graph.shapes(pair(recording.images.shape[-2:]), start)
    signal = torch.zeros_like(recording.activations[layer])
    maps = shapes.maps(start, signal)
    maps[(0, unit.map, unit.row, unit.column)[: maps.ndim]] = unit.value  # type: ignore[index]
    path = set(graph.path([start]))
    steps, last = [Step(layer, "start", _maps(maps), 0, "")], {start: 0}  # where signals came from, by node
    parts: Counter[Any] = Counter()
    for name, operation, sent in deconvnet.steps(recording, layer, signal):
        node, verb = graph.node(name), VERBS.get(operation.lower(), operation)
        sources = [source for source in node.all_input_nodes if source in recording.outputs]
        source = sources[parts[node]]
        parts[node] += 1
        parts[source, "met"] += 1
        meeting = sum(user in path for user in source.users)
        if verb == "pass":
            last[source] = last[node]
            continue
        branches = f"branch {parts[node]} of {len(sources)}" if len(sources) > 1 else ""
        if meeting > 1:
            branches = f"{parts[source, 'met']} of {meeting} branches summed"
        steps.append(Step(name, verb, _maps(shapes.maps(source, sent)), last[node], branches))
        last[source] = len(steps) - 1
    return steps


def _maps(signal: Tensor) -> Tensor:
    """The signal of the one image as maps (C, H, W); a fully connected layer's as one row."""
    return signal[0].detach().cpu() if signal.ndim == 4 else signal.detach().cpu().reshape(1, 1, -1)


def around_poolings(steps: Sequence[Step]) -> list[int]:
    """The start and the end, what comes to each pooling and leaves it, and what a rectification behind it leaves."""
    chosen = {0, len(steps) - 1}
    for n, step in enumerate(steps):
        if step.verb == "unpool":
            chosen |= {step.before, n}
        elif step.verb == "rectify" and steps[step.before].verb == "unpool":
            chosen.add(n)
    return sorted(chosen)


def draw(page: Page, steps: Sequence[Step], drawn: Sequence[int], unit: Unit, shown: int) -> None:
    """Two columns of steps: what was done, where the signal is, and its strongest maps."""
    half, wide = -(-len(drawn) // 2), (page.columns - LINE) // 2
    text = round(wide * 0.38)
    tile = min((wide - text) // (shown + 1) - GAP, 4 * LINE)
    if tile < LINE:
        raise InputError(f"{shown} maps do not fit side by side; give a smaller shown, or a larger width")
    high, top = 6 * LINE, page.y
    for n, step in enumerate(steps[which] for which in drawn):
        if not n or step.before != drawn[n - 1] or step.verb not in ("rectify", "unpool"):
            strength = step.signal.clamp(min=0).sum((1, 2))  # what the next rectification lets through
            maps = [m for m in strength.argsort(descending=True, stable=True)[:shown].tolist() if strength[m] > 0]
        x, y = n // half * (wide + LINE), top + n % half * high
        title = broken(step.layer)
        page.text(x, y + LINE / 2, title, weight="bold", va="top")
        page.text(x, y + (title.count("\n") + 1.6) * LINE, explained(step, steps[step.before], unit), va="top")
        planes = [(step.signal.abs().sum(0), "all maps"), *((step.signal[m], f"map {m}") for m in maps)]
        for column, (plane, name) in enumerate(planes):
            left = x + text + column * (tile + GAP)
            page.text(left + tile / 2, y + LINE / 2, name, ha="center")
            draw_plane(page, plane, left, y + LINE, tile)
    page.y += half * high


def draw_plane(page: Page, plane: Tensor, x: float, y: float, tile: int) -> None:
    """A plane (H, W) as projections are shown: mid-grey is 0, white above it and black below."""
    values = scaled(plane[None], quantile=0.999)[0]
    if max(plane.shape) <= tile // 2:
        axes = page.axes(x, y, tile, tile)
        heat(axes, values, "gray", vmin=-1, vmax=1)
    else:
        extent = [min(n, tile) for n in plane.shape]
        where = torch.nn.functional.adaptive_max_pool2d(values.abs()[None], extent, return_indices=True)[1]
        values = values.flatten()[where[0]]  # of the cells in a pixel the strongest
        shades = ((values + 1) / 2).expand(3, -1, -1)
        axes = page.image(enlarged(shades[None], (tile, tile), "nearest")[0], x, y)
    frame(axes)


def broken(name: str, letters: int = LETTERS) -> str:
    """A long name in several lines, behind its dots and underscores."""
    if len(name) <= letters:
        return name
    cut = max(name.rfind(mark, 0, letters) for mark in "._") + 1 or letters
    return f"{name[:cut]}\n{broken(name[cut:], letters)}"


def explained(step: Step, before: Step, unit: Unit) -> str:
    """The numbers of a step, in words."""
    shape = " x ".join(str(n) for n in step.signal.shape)
    if step.verb == "start":
        words = f"map {unit.map}: {unit.value:.4g}\nrow {unit.row}, column {unit.column}"
    elif step.verb == "rectify":
        words = f"rectify: {before.alive - step.alive:,} values to 0"
    else:
        words = {"unpool": "unpool, to the switches", "filter": "filter, transposed"}.get(step.verb, step.verb)
    return "\n".join(filter(None, [words, shape, f"{step.alive:,} not 0", step.branches]))


def draw_pictures(page: Page, image: Tensor, last: Step, unit: Unit, look: Look, preprocessing: Preprocessing) -> None:
    """The image and the projection, whole and in the unit's box."""
    side = (page.columns - 3 * GAP) // 4
    whole, signal = preprocessing.pixels(image).clamp(0, 1), preprocessing.rgb(last.signal)
    top, left, bottom, right = (max(edge, 0) for edge in unit.box)
    part = (slice(None), slice(top, bottom), slice(left, right))
    pictures = {"image": whole, "projection": signal, "projection, in its box": signal[part], "patch": whole[part]}
    for n, (name, picture) in enumerate(list(pictures.items())[: 2 if whole[part].shape == whole.shape else 4]):
        factor = side / max(picture.shape[1:])
        size = (round(picture.shape[1] * factor), round(picture.shape[2] * factor))
        shown = look.pictures(picture[None], size) if n in (1, 2) else enlarged(picture[None], size, look.interpolation)
        page.text(n * (side + GAP), page.y + LINE / 2, f"{name}, x {factor:.2g}")
        axes = page.axes(n * (side + GAP), page.y + LINE, size[1], size[0])
        show(axes, shown[0])
        if n < 2:
            box(axes, unit.box, factor)
            axes.set(xlim=(-0.5, size[1] - 0.5), ylim=(size[0] - 0.5, -0.5))
    page.y += LINE + side


def draw_unit(image: Tensor, steps: Sequence[Step], unit: Unit, look: Look, preprocessing: Preprocessing) -> Figure:
    """A unit on one page: the image with what it sees, that patch, and the projection of its activation."""
    page = Page(look.width)
    side = (page.columns - 2 * WIDE_GAP) // 3
    whole, signal = preprocessing.pixels(image).clamp(0, 1), preprocessing.rgb(steps[-1].signal)
    top, left, bottom, right = (max(edge, 0) for edge in unit.box)
    part = (slice(None), slice(top, bottom), slice(left, right))
    rows, columns = whole[part].shape[1:]
    names = "image", "image patch", "projection"
    for n, (name, picture) in enumerate(zip(names, (whole, whole[part], signal[part]), strict=True)):
        factor = side / max(picture.shape[1:])
        how = look.interpolation if n else "bicubic"
        if how == "nearest" and factor > 1:
            factor = float(int(factor))  # all squares of one size
        size = (round(picture.shape[1] * factor), round(picture.shape[2] * factor))
        shown = look.pictures(picture[None], size) if n == 2 else enlarged(picture[None], size, how)
        x, extent = n * (side + WIDE_GAP), " x ".join(map(str, picture.shape[1:]))
        page.text(x, page.y + LINE / 2, f"{name}, {extent} pixels, x {factor:.2g}")
        axes = page.axes(x, page.y + LINE, size[1], size[0])
        show(axes, shown[0])
        if not n:
            box(axes, unit.box, factor)
            axes.set(xlim=(-0.5, size[1] - 0.5), ylim=(size[0] - 0.5, -0.5))
    page.y += LINE + side
    shape = " x ".join(map(str, steps[0].signal.shape))
    page.caption(
        f"One unit: row {unit.row}, column {unit.column} of feature map {unit.map} of {steps[0].layer}, whose output "
        f"is {shape}. On this image its activation is {unit.value:.4g}. It sees {rows} x {columns} pixels of the "
        f"image: the box, and the patch. The projection is this activation brought down to pixels. {look.words}"
    )
    return page.done()
