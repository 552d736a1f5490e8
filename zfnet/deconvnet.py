"""The deconvnet: walk the traced graph backwards, and hand each step to a small rule.

    max-pool -> unpool by its switches    ReLU -> rectify the signal    convolution -> filter with transposed weights

The signal starts as the chosen activation, zero everywhere else, and ends in the pixels of the image.  Biases add
nothing on the way down, and contrast normalisation is passed through.  Branches need no rule of their own: what a
step's readers send back is added.  Zeiler & Fergus (2014), section 2.1.

To teach it another operation, register a rule: it takes the step and the signal at the step's output, and returns the
signal at its input (one for each input, if there are several).

    @rule(nn.SiLU)
    def silu(step, signal):
        return signal.clamp(min=0)
"""

import math
import operator
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.ops import stochastic_depth

from zfnet.checks import Pair, check_images, check_weights, evaluating, pair
from zfnet.errors import InputError, unknown_name
from zfnet.graph import LEAVES, Graph, Shapes, convolution_arguments, piece
from zfnet.recording import Recording, record
from zfnet.scanning import TopActivations
from zfnet.switches import COLLISIONS, unpool
from zfnet.windows import POINTWISE, WHOLE, WINDOWS, Places, Windows, places_of, rearranged

NORMS = ("identity", "gradient")
RECTIFIERS = {  # what a ReLU lets through on the way down: only signals above 0, only where its input was above 0
    "deconvnet": (True, False),
    "gradient": (False, True),
    "guided": (True, True),
    "none": (False, False),
}


@dataclass(frozen=True)
class Options:
    """The choices that the paper leaves open, or that are made to ablate it."""

    collisions: str = "add"
    norm: str = "identity"
    rectify: str = "deconvnet"


@dataclass(frozen=True)
class Step:
    """One step of the graph on the way down, with what its forward pass left behind."""

    graph: Graph
    node: fx.Node
    recording: Recording
    options: Options

    @property
    def name(self) -> str:
        return self.graph.names[self.node]

    @property
    def module(self) -> Any:
        """The module, or None for a function or method."""
        return self.graph.module(self.node)

    @property
    def padded(self) -> bool:
        """Whether the step pads its input itself; False where it reads a window, border included."""
        return self.recording.view.padded

    @property
    def sources(self) -> list[fx.Node]:
        """The steps whose signal it reads, each once."""
        return [s for s in self.node.all_input_nodes if self.graph.names[s] in self.recording.shapes]

    @property
    def shapes(self) -> list[torch.Size]:
        """The shape of each input, as the step sees it."""
        return [self.recording.seen[self.node, s] for s in self.sources]

    def argument(self, name: str, default: Any = None) -> Any:
        """An argument of the step by name, wherever it was given: module attribute, position or keyword."""
        return self.graph.argument(self.node, name, default, self.recording.values)

    @property
    def switches(self) -> Tensor:
        """(N, C, h, w), int64, of a max-pooling step."""
        return self.recording.switches[self.name]

    @property
    def inputs(self) -> list[Tensor]:
        """The forward pass's inputs, for rules that `need` them."""
        return [self.recording.view.read(self.node, s, self.recording.values[s]) for s in self.sources]

    def call(self, *inputs: Tensor) -> Tensor:
        """Do the step on other inputs."""
        if self.graph.overwrites(self.node):
            inputs = tuple(x.clone() for x in inputs)
        values = dict(zip(self.sources, inputs, strict=True))

        def value(source: fx.Node) -> Any:
            return values[source] if source in values else self.recording.values[source]

        args, kwargs = fx.map_arg((self.node.args, self.node.kwargs), value)  # type: ignore[misc]
        return self.recording.view.call(self.node, args, kwargs)

    def refuse(self, why: str = "") -> InputError:
        what = f"no deconvnet rule for {self.graph.operation(self.node)} at {self.name}{why}"
        return InputError(f"{what}; register one with @rule")


class Rule(NamedTuple):
    back: Callable[[Step, Tensor], Tensor | Sequence[Tensor]]
    needs: Callable[[Options], bool]  # whether the forward pass's inputs are to be kept


RULES: dict[Any, Rule] = {}


def rule(
    *operations: Any, window: Any = POINTWISE, needs: Callable[[Options], bool] = lambda options: False
) -> Callable:
    """Register a rule for operations: module types, functions, or methods such as `Tensor.add`.

    window: which places of its input one place of the output depends on: POINTWISE (the same), WHOLE (any), or a
    function of (graph, step, shapes) that returns a Window.  needs: whether the rule, under these options, reads
    `step.inputs`.
    """

    def register(back: Callable) -> Callable:
        for operation in operations:
            RULES[operation] = Rule(back, needs)
            WINDOWS.setdefault(operation, window)
            if isinstance(operation, type):
                LEAVES.add(operation)
        return back

    return register


@rule(nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d, window=WHOLE)
@rule(nn.MaxPool2d, F.max_pool2d)
def unpool_by_switches(step: Step, signal: Tensor) -> Tensor:
    return unpool(signal, step.switches, step.shapes[0][-2:], step.options.collisions)  # type: ignore[arg-type]


@rule(
    nn.ReLU,
    F.relu,
    torch.relu,
    Tensor.relu,
    torch.relu_,
    Tensor.relu_,
    F.relu_,
    F.relu6,
    nn.Hardtanh,
    F.hardtanh,
    needs=lambda options: RECTIFIERS[options.rectify][1],
)
def rectify(step: Step, signal: Tensor) -> Tensor:
    if step.argument("min_val", -1.0 if step.graph.operation(step.node) == "hardtanh" else 0.0) != 0:
        raise step.refuse(" that lets values below 0 through")
    positive, masked = RECTIFIERS[step.options.rectify]
    if positive:
        signal = signal.clamp(min=0)
    if masked:
        (x,) = step.inputs
        signal = signal * ((x > 0) & (step.call(x) == x))  # ReLU6 lets nothing above 6 through
    return signal


@rule(nn.Conv2d, F.conv2d)
def filter_transposed(step: Step, signal: Tensor) -> Tensor:
    given = convolution_arguments(step.graph, step.node, step.recording.values)
    weight, stride, dilation, groups = (given[n] for n in ("weight", "stride", "dilation", "groups"))
    if given["padding_mode"] != "zeros" or (step.padded and isinstance(step.argument("padding"), str)):
        return transpose(step, signal)  # "same" may pad more at the end
    padding, size = given["padding"] if step.padded else (0, 0), step.shapes[0][-2:]
    if weight.shape[1] <= 4 and groups == 1 and dilation == (1, 1) and max(stride) > 1:
        return _filter_to_pixels(signal, weight, stride, padding, size)
    # rows and columns at the end that no window reached come back as zeros
    spare = [
        length - ((n - 1) * s - 2 * p + d * (k - 1) + 1)
        for length, n, s, p, d, k in zip(
            size, signal.shape[-2:], stride, padding, dilation, weight.shape[2:], strict=True
        )
    ]
    return F.conv_transpose2d(signal, weight, None, stride, padding, spare, groups, dilation)


def _filter_to_pixels(
    signal: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], size: Any
) -> Tensor:
    """A transposed convolution into few channels, as an ordinary one that makes stride x stride pixels at every place.

    torch's own runs into three channels at a fraction of the speed.
    """
    maps, channels, *kernel = weight.shape
    taps = [-(-k // s) for k, s in zip(kernel, stride, strict=True)]  # places that reach one pixel
    short = [t * s - k for t, s, k in zip(taps, stride, kernel, strict=True)]
    filters = F.pad(weight, (0, short[1], 0, short[0])).view(maps, channels, taps[0], stride[0], taps[1], stride[1])
    filters = filters.permute(1, 3, 5, 0, 2, 4).flatten(0, 2).flip(2, 3).contiguous(memory_format=torch.channels_last)
    pixels = F.conv2d(signal, filters, padding=(taps[0] - 1, taps[1] - 1))
    pixels = pixels.unflatten(1, (channels, *stride)).permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)
    pixels = pixels[..., padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]
    return F.pad(pixels, (0, size[1] - pixels.shape[-1], 0, size[0] - pixels.shape[-2]))


@rule(nn.Linear, F.linear, window=WHOLE)
def filter_linear(step: Step, signal: Tensor) -> Tensor:
    return signal @ step.argument("weight")


@rule(nn.LocalResponseNorm, F.local_response_norm, needs=lambda options: options.norm == "gradient")
def contrast_norm(step: Step, signal: Tensor) -> Tensor | Sequence[Tensor]:
    if step.options.norm == "identity":
        return signal
    return torch.func.vjp(step.call, *step.inputs)[1](signal)


@rule(nn.GroupNorm, F.group_norm, window=WHOLE, needs=lambda options: True)
def group_norm(step: Step, signal: Tensor) -> Tensor | Sequence[Tensor]:
    """By the forward pass's statistics, which norm="gradient" differentiates too."""
    (x,) = step.inputs
    if step.options.norm == "gradient":
        return torch.func.vjp(step.call, x)[1](signal)
    scale = x.unflatten(1, (step.argument("num_groups"), -1)).flatten(2).var(2, correction=0)
    scale = (scale + step.argument("eps", 1e-5)).rsqrt().repeat_interleave(x.shape[1] // scale.shape[1], 1)
    weight = step.argument("weight")
    scale = scale if weight is None else scale * weight
    return signal * scale.view(*scale.shape, *[1] * (x.ndim - 2))


@rule(
    nn.BatchNorm1d, nn.BatchNorm2d, F.batch_norm, window=lambda graph, node, shapes: POINTWISE
)  # of its parameters, too
def batch_norm(step: Step, signal: Tensor) -> Sequence[Tensor]:
    if step.argument("running_mean") is None or (step.module is None and step.argument("training")):
        raise step.refuse(" without running statistics")
    return transpose(step, signal)


@rule(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.Identity, F.dropout, F.dropout2d)
@rule(stochastic_depth, Tensor.contiguous, Tensor.clone)
def through(step: Step, signal: Tensor) -> Tensor:
    return signal


MOVES = (  # steps that move elements, and do nothing else
    operator.getitem,
    piece,
    torch.unsqueeze,
    Tensor.unsqueeze,
    torch.squeeze,
    Tensor.squeeze,
    nn.Flatten,
    torch.flatten,
    Tensor.flatten,
    nn.Unflatten,
    Tensor.unflatten,
    Tensor.view,
    Tensor.reshape,
    torch.reshape,
    torch.permute,
    Tensor.permute,
    torch.transpose,
    Tensor.transpose,
    Tensor.expand,
    Tensor.repeat,
    nn.ChannelShuffle,
)


@rule(nn.AvgPool2d, F.avg_pool2d, nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d, torch.cat, torch.stack)
@rule(nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, F.pad, Tensor.mean, torch.mean, window=WHOLE)
@rule(operator.add, operator.sub, operator.neg, torch.add, torch.sub, torch.neg)
@rule(Tensor.add, Tensor.add_, Tensor.sub, Tensor.sub_, Tensor.neg)
@rule(*MOVES, window=rearranged)
def transpose(step: Step, signal: Tensor) -> Sequence[Tensor]:
    """The transpose of any step that is linear, up to a constant, in its inputs: autograd on that step alone."""
    zeros = [signal.new_zeros(shape) for shape in step.shapes]
    return torch.func.vjp(step.call, *zeros)[1](signal)


@rule(operator.mul, operator.truediv, torch.mul, torch.div, Tensor.mul, Tensor.mul_, Tensor.div, Tensor.div_)
def scale(step: Step, signal: Tensor) -> Sequence[Tensor]:
    """A feature map times a constant; the product of two feature maps is not linear."""
    maps = [a for a in (*step.node.args, *step.node.kwargs.values()) if a in step.sources]  # x * x has two
    divisor = "div" in step.graph.operation(step.node) and step.node.args[1] is maps[0]
    if len(maps) != 1 or divisor:
        raise step.refuse(" of two feature maps")
    return transpose(step, signal)


class Patches(NamedTuple):
    """Units with their receptive fields: M crops of the images and M projections into them.

    A canvas lies where its box does, and is zero where the box leaves the image.
    """

    crops: Tensor  # (M, 3, S, S)
    projections: Tensor  # (M, 3, S, S)
    boxes: Tensor  # (M, 4) int64: top, left, bottom, right in input pixels, ends exclusive, unclipped
    values: Tensor  # (M,) the units' activations


@dataclass(frozen=True)
class _Placed:
    """Units (M, 4: image, map, row, column) of one layer, and what they depend on in images of one size."""

    graph: Graph
    units: Tensor
    shapes: Shapes
    places: dict[fx.Node, Places] | None  # None: all of the image
    boxes: Tensor  # (M, 4) int64
    size: Pair

    @property
    def windowed(self) -> dict[fx.Node, int]:
        """How many numbers each step gives in the windows of one unit."""
        return {n: math.prod((*self.shapes[n][1:-2], *p.size)) for n, p in (self.places or {}).items()}

    @property
    def small(self) -> bool:
        """Whether the windows of a unit are less than a whole image, which those of a deep layer may not be."""
        return sum(self.windowed.values()) < sum(self.shapes[n].numel() for n in self.windowed)

    def batches(self, memory: int, alone: bool) -> Iterator[slice]:
        """As many units at a time as have their largest step in so many numbers: their windows', or whole images'."""
        sizes = self.windowed.values() if alone and self.places else (s.numel() for s in self.shapes.values())
        count = max(1, memory // max(sizes))
        yield from (slice(first, first + count) for first in range(0, len(self.units), count))

    def view(self, some: slice) -> Windows | None:
        _, _, rows, columns = self.units[some].unbind(1)
        return Windows(self.graph, self.places, self.shapes, rows, columns) if self.places else None

    def where(self, some: slice, activation: Tensor, alone: bool) -> tuple[Tensor, ...]:
        """The units' places in the activations of their windows, or of whole images."""
        _, maps, rows, columns = self.units[some].unbind(1)
        if alone:
            rows, columns = torch.zeros_like(rows), torch.zeros_like(columns)
        return (torch.arange(len(maps)), maps, rows, columns)[: activation.ndim]


class Deconvnet:
    """The deconvnet paired with a model, which is used in eval mode and left as it was found.

    collisions: what becomes of several values that overlapping pooling windows send to one place: "add" (the transpose
    of pooling), "overwrite" (the last window wins), "max".
    norm: contrast normalisation in reverse: "identity", or its "gradient".
    rectify: ReLUs in reverse: "deconvnet" rectifies the signal, "gradient" passes it where the unit fired (Simonyan et
    al., arXiv:1312.6034), "guided" does both (Springenberg et al., arXiv:1412.6806), "none" neither; True is the first,
    False the last.  In all other steps they agree: for the gradient of a network with contrast normalisation give
    norm="gradient" too.
    InputError for NaN in the weights, and for a model that cannot be traced.
    """

    def __init__(
        self, model: nn.Module, *, collisions: str = "add", norm: str = "identity", rectify: str | bool = "deconvnet"
    ):
        if isinstance(rectify, bool):
            rectify = "deconvnet" if rectify else "none"
        choices = {"collision rule": (collisions, COLLISIONS), "norm": (norm, NORMS), "rectify": (rectify, RECTIFIERS)}
        for kind, (choice, known) in choices.items():
            if choice not in known:
                raise unknown_name(kind, choice, known)
        self.model, self.graph = model, Graph(model)
        self.options = Options(collisions, norm, rectify)
        check_weights(model)

    def _needs(self, node: fx.Node) -> bool:
        """Whether the value of this step is an input that some rule reads."""
        found = (self.graph.lookup(RULES, user) for user in node.users)
        return any(row is not None and row.needs(self.options) for row in found)

    def record(self, images: Tensor, layers: Sequence[str] | None = None) -> Recording:
        """Run images (N, 3, H, W) forward, up to the deepest of `layers`, and keep their activations and all switches.

        None keeps every layer.  InputError for an unknown layer, NaN, or images that are too small.
        """
        with evaluating(self.model):
            return record(self.graph, check_images(self.model, images), layers, self._needs)

    def steps(self, recording: Recording, layer: str, signal: Tensor) -> list[tuple[str, str, Tensor]]:
        """The way down, step by step: (layer, operation, signal) for the signal that has come through each step.

        The last one is the projection, in the shape of the images.
        """
        with evaluating(self.model):
            return list(self._walk(recording, layer, signal))

    def _walk(self, recording: Recording, layer: str, signal: Tensor) -> Iterator[tuple[str, str, Tensor]]:
        node = self.graph.node(layer)
        if layer not in recording.shapes:
            raise InputError(f"{layer} was not recorded: record it, or a layer above it")
        if signal.shape != recording.shapes[layer]:
            shapes = f"{tuple(recording.shapes[layer])}; got {tuple(signal.shape)}"
            raise InputError(f"a signal at {layer} has the shape of that layer's output, {shapes}")
        signals = {node: signal}
        for here in reversed(self.graph.path([node])):
            if here in self.graph.inputs or here not in signals:
                continue
            step, row = Step(self.graph, here, recording, self.options), self.graph.lookup(RULES, here)
            if row is None:
                raise step.refuse()
            if apart := [s for s in here.all_input_nodes if s in self.graph.carriers and s not in step.sources]:
                raise Step(self.graph, apart[0], recording, self.options).refuse(", which gives several tensors")
            sent = row.back(step, signals.pop(here))
            sent = (sent,) if isinstance(sent, Tensor) else sent
            for source, part in zip(step.sources, sent, strict=True):
                part = recording.view.place(here, source, part)
                signals[source] = signals[source] + part if source in signals else part
                yield self.graph.names[here], self.graph.operation(here), signals[source]
        if not any(n in signals for n in self.graph.inputs):
            raise InputError(f"{layer} does not depend on the image")

    def project(self, recording: Recording, layer: str, signal: Tensor) -> Tensor:
        """Project a signal, in the shape of the layer's output, down to the pixels of the images: (N, 3, H, W)."""
        with evaluating(self.model):
            ((_, _, pixels),) = deque(self._walk(recording, layer, signal), maxlen=1)
        return pixels

    def _placed(
        self, layer: str, units: Tensor | Sequence[Sequence[int]], images: int, size: Pair, whole: bool = False
    ) -> _Placed:
        """Units of a layer, of so many images of that size, with what they depend on."""
        units = torch.as_tensor(units, dtype=torch.int64).cpu().reshape(-1, 4)
        node = self.graph.node(layer)
        shapes = self.graph.shapes(size, node)
        self.graph.check_maps(node, shapes.get(node))
        extents = zip(("image", "map", "row", "column"), (images, *shapes[node][1:], 1, 1), strict=False)
        for column, (name, extent) in enumerate(extents):
            bad = units[(units[:, column] < 0) | (units[:, column] >= extent), column]
            if len(bad):
                raise InputError(f"no {name} {int(bad[0])} in {layer}: there are {extent}")
        places = None if whole else places_of(self.graph, node, shapes)
        here = places[self.graph.inputs[0]] if places else Places((0, 0), (0, 0), size)
        corner = torch.tensor(here.start) + torch.tensor(here.stride) * units[:, 2:]
        return _Placed(
            self.graph, units, shapes, places, torch.cat([corner, corner + torch.tensor(here.size)], 1), here.size
        )

    def project_units(
        self,
        images: Tensor,
        layer: str,
        units: Tensor | Sequence[Sequence[int]],
        *,
        signals: Tensor | None = None,
        whole: bool = False,
        memory: int = 2**24,
    ) -> Patches:
        """Project single units, each from its own activation, and crop their receptive fields.

        images (N, 3, H, W); units (M, 4) int64: image, map, row, column (row and column 0 in fully connected layers).
        A unit depends on its receptive field alone, so only that is run forward and back, many units at a time, or the
        whole image where that is less; the result is that of the whole image.  signals (M,): what each starts from
        instead of its activation.  whole: give whole images, not receptive fields, of which those of deep networks may
        be many times as large.  memory: bytes that the largest step of one batch may take.
        InputError for units that are not there, images that are too small, and NaN.
        """
        images = check_images(self.model, images)
        placed = self._placed(layer, units, len(images), tuple(images.shape[-2:]), whole)  # type: ignore[arg-type]
        units = placed.units
        # a pooling window beyond the crop sends zero, which adds nothing, but overwrites what another sends
        alone = placed.small and self.options.collisions == "add"
        crops, pixels = (images.new_zeros(len(units), 3, *placed.size) for _ in range(2))
        values = images.new_zeros(len(units))
        with evaluating(self.model):
            for some in placed.batches(memory // images.element_size(), alone):
                image, view = units[some, 0], placed.view(some)
                crop = view.cut(images, image.tolist()) if view else images[image.to(images.device)]
                crops[some] = crop
                part = crop if alone or not view else images[image.to(images.device)]
                recording = record(self.graph, part, [layer], self._needs, view if alone else None)
                activation = recording.activations[layer]
                where = placed.where(some, activation, alone)
                values[some] = activation[where]
                signal = torch.zeros_like(activation)
                signal[where] = values[some] if signals is None else signals[some].to(activation)
                projection = self.project(recording, layer, signal)
                pixels[some] = view.cut(projection, range(len(image))) if view and not alone else projection
        return Patches(crops, pixels, placed.boxes.to(images.device), values)

    def activations_of(
        self,
        canvases: Tensor,
        layer: str,
        units: Tensor | Sequence[Sequence[int]],
        image_size: int | Pair,
        *,
        memory: int = 2**24,
    ) -> Tensor:
        """The activations (M,) of units whose receptive fields hold canvases (M, 3, S, S), in images of `image_size`.

        units (M, 4) as in `project_units`, of which a canvas may be a crop; from which image they come counts for
        nothing.  Where a canvas leaves the image the network pads, whatever the canvas holds there.
        InputError for canvases of another size than the receptive field, units that are not there, and NaN.
        """
        canvases = check_images(self.model, canvases)
        units = torch.as_tensor(units, dtype=torch.int64).reshape(-1, 4) * torch.tensor((0, 1, 1, 1))
        placed = self._placed(layer, units, 1, pair(image_size))
        if canvases.shape != (len(placed.units), 3, *placed.size):
            wanted = f"{len(placed.units)} units of {layer} look at canvases {(len(placed.units), 3, *placed.size)}"
            raise InputError(f"{wanted}; got {tuple(canvases.shape)}")
        values = canvases.new_zeros(len(canvases))
        with evaluating(self.model):
            for some in placed.batches(memory // canvases.element_size(), True):
                some_canvases = canvases[some].contiguous(memory_format=torch.channels_last)
                recording = record(self.graph, some_canvases, [layer], lambda node: False, placed.view(some))
                activation = recording.activations[layer]
                values[some] = activation[placed.where(some, activation, placed.places is not None)]
        return values


def project_top(
    deconvnet: Deconvnet,
    dataset: Any,
    layer: str,
    top: TopActivations,
    maps: Sequence[int],
    *,
    whole: bool = False,
    at_once: int = 256,
) -> Patches:
    """Crops and projections (len(maps) * k) of some feature maps' strongest activations, map by map, strongest first.

    dataset: the one that was scanned, read `at_once` images at a time.  whole: as in `project_units`.  Where a map has
    fewer than k, all is zero.
    """
    maps = list(maps)
    k = top.value.shape[1]
    image, row, column = (places[maps].flatten() for places in (top.image, top.row, top.column))
    units = torch.stack([image, torch.tensor(maps).repeat_interleave(k), row, column], 1)
    found = (image >= 0).nonzero().flatten()
    parts: list[tuple[Tensor, Patches]] = []
    needed, place = image[found].unique(return_inverse=True)
    for first in range(0, len(needed), at_once):
        some = needed[first : first + at_once]
        inside = (place >= first) & (place < first + at_once)
        here = found[inside]
        items = [dataset[int(i)] for i in some]
        images = torch.stack([item[0] if isinstance(item, tuple | list) else item for item in items])
        local = units[here]
        local[:, 0] = place[inside] - first
        parts.append((here, deconvnet.project_units(images, layer, local, whole=whole)))
    sample = parts[0][1] if parts else deconvnet.project_units(dataset[0][0][None], layer, units[:0], whole=whole)
    every = Patches(*(part.new_zeros(len(units), *part.shape[1:]) for part in sample))
    for here, patches in parts:
        for column, part in zip(every, patches, strict=True):
            column[here.to(column.device)] = part
    return every
