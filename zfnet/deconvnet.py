"""The deconvnet: walk the traced graph backwards, and hand each step to a small rule.

    max-pool -> unpool by its switches    ReLU -> rectify the signal    convolution -> filter with transposed weights

The signal starts as the chosen activation, zero everywhere else, and ends in the pixels of the image. Branches need no
rule of their own: what a step's readers send back is added. The rules are those of `operations.py`. Zeiler & Fergus
(2014), section 2.1.
"""

import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from zfnet.checks import (
    Pair,
    check_images,
    check_number,
    check_signal,
    check_units,
    check_weights,
    device_and_dtype,
    pair,
    undifferentiated,
)
from zfnet.data.batches import Batches
from zfnet.errors import InputError, unknown_name, with_article
from zfnet.extended import RULE_SETS, extends
from zfnet.graph import Graph, Shapes
from zfnet.operations import DECONVNET, OTHER, Operation, Rules, Step
from zfnet.receptive_fields import boxes_of, map_fields, receptive_field
from zfnet.recording import Recording, of_units, of_windows, record
from zfnet.switches import COLLISIONS
from zfnet.views import PathWindows, Places, RepeatedImages, UnitWindows, View, cut, no_window, places_of
from zfnet.winners import TopActivations, Units

Observe = Callable[[fx.Node, Tensor], None]  # a step, and the complete signal that came down to its output


class Patches(NamedTuple):
    """Units with their receptive fields: M crops of the images and M projections into them.

    A canvas (S, S) begins at the top left of its box. It is zero beyond the box, and where the box leaves the image.

    Attributes:
        crops: (M, C, S, S), what each unit sees of its image.
        projections: (M, C, S, S), what the deconvnet gives of each unit.
        boxes: (M, 4) int64, top, left, bottom, right in input pixels; ends exclusive, not clipped to the image.
        values: (M,), the units' activations.
    """

    crops: Tensor
    projections: Tensor
    boxes: Tensor
    values: Tensor


@dataclass(frozen=True)
class _Located:
    """Units (M, 4: image, map, row, column) of one layer, with their fields in images of one size."""

    graph: Graph
    node: fx.Node
    shapes: Shapes
    units: Tensor
    boxes: Tensor  # (M, 4) int64
    size: Pair  # of the largest box

    def index(self, batch: Tensor, windows: bool) -> tuple[Tensor, ...]:
        """The units' positions in the activations of their images, or of their windows."""
        _, maps, rows, columns = self.units[batch].unbind(1)
        if windows:
            rows, columns = torch.zeros_like(rows), torch.zeros_like(columns)
        return (torch.arange(len(maps)), maps, rows, columns)[: len(self.shapes[self.node])]

    def activation(self, recording: Recording) -> Tensor:
        """The layer's maps (m, C, h, w), or units (m, C), in a recording of it."""
        return self.shapes.maps(self.node, recording.activations[self.graph.names[self.node]])

    def zeros(self, recording: Recording) -> Tensor:
        """A signal of zeros at the layer's output."""
        like = recording.images
        zeros = torch.zeros(recording.outputs[self.node], dtype=recording.types[self.node], device=like.device)
        return _channels_last(zeros) if zeros.ndim == 4 and not self.shapes.last(self.node) else zeros

    def by_window(self, back: bool = False) -> Iterator[tuple[Tensor, dict[fx.Node, Places] | None]]:
        """Groups of units (m,) whose maps have the same fields, with the windows of every step that they depend on.

        The windows are None where they do not slide.

        Args:
            back: only the windows of the path back; see `places_of`.
        """
        fields = map_fields(self.graph, self.node, self.shapes)
        if fields.low is None or fields.high is None or fields.stride is None:
            yield torch.arange(len(self.units)), None
            return
        cache = self.shapes.places.setdefault(self.node, {})  # depends on geometry alone: the same for all calls
        if not cache:
            cache["kinds"] = torch.cat([fields.low, fields.high], 1).unique(dim=0, return_inverse=True)[1]
        kinds = cache["kinds"][self.units[:, 1]]
        for number in kinds.unique().tolist():
            if (number, back) not in cache:
                maps = cache["kinds"] == number
                cache[number, back] = places_of(self.graph, self.node, maps, self.shapes, back=back)
            yield (kinds == number).nonzero().flatten(), cache[number, back]


_Record = Callable[[Tensor, View | None], Recording]  # runs images, or windows of them, up to the layer


class _Run(NamedTuple):
    """The forward pass of a batch of units."""

    pixels: Tensor  # (m, C, h, w): the image, or its window, of each unit
    recording: Recording  # in which its signal goes back
    values: Tensor  # (m,) its activation


class _Strategy(Protocol):
    """How a batch of units runs: the network's input, its steps' view of it, and the part of the result to cut out."""

    def batches(self, memory: int) -> Iterator[Tensor]: ...
    def run(self, batch: Tensor, images: Tensor, record: "_Record") -> "_Run": ...
    def index(self, batch: Tensor) -> tuple[Tensor, ...]: ...
    def crop(self, batch: Tensor, pixels: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class _ByImage:
    """Each unit from its whole image; its box is then cut out."""

    located: _Located
    members: Tensor

    def batches(self, memory: int) -> Iterator[Tensor]:
        members = self.members[self.located.units[self.members, 0].argsort(stable=True)]
        yield from members.split(max(1, memory // max(s.numel() for s in self.located.shapes.values())))

    def run(self, batch: Tensor, images: Tensor, record: _Record) -> _Run:
        numbers, image = self.located.units[batch, 0], torch.arange(len(batch))
        if not self.located.graph.reads_sizes(self.located.node):
            numbers, image = numbers.unique(return_inverse=True)
        recording = record(_channels_last(images[numbers.to(images.device)]), None)
        index = (image, *self.index(batch)[1:])
        values = self.located.activation(recording)[index]
        if len(numbers) < len(batch):
            recording = of_units(recording, RepeatedImages(self.located.graph, image))
        return _Run(images[self.located.units[batch, 0].to(images.device)], recording, values)

    def index(self, batch: Tensor) -> tuple[Tensor, ...]:
        return self.located.index(batch, windows=False)

    def crop(self, batch: Tensor, pixels: Tensor) -> Tensor:
        located = self.located
        if torch.equal(located.boxes[batch], torch.tensor((0, 0, *pixels.shape[-2:])).expand(len(batch), 4)):
            return pixels
        return cut(pixels, range(len(batch)), located.boxes[batch], located.size)


@dataclass(frozen=True)
class _ByWindow:
    """Units whose maps have the same fields, each from the windows that it depends on."""

    located: _Located
    members: Tensor
    places: dict[fx.Node, Places]

    @property
    def elements(self) -> dict[fx.Node, int]:
        """How many numbers each step gives in the windows of one unit."""
        return {n: math.prod((*self.located.shapes[n][1:-2], *p.size)) for n, p in self.places.items()}

    @property
    def pays(self) -> bool:
        """Whether the windows of a unit are smaller than a whole image; those of a deep layer may not be."""
        return sum(self.elements.values()) < sum(self.located.shapes[n].numel() for n in self.places)

    def batches(self, memory: int) -> Iterator[Tensor]:
        yield from self.members.split(max(1, memory // max(self.elements.values())))

    def windows(self, batch: Tensor) -> UnitWindows:
        rows, columns = self.located.units[batch, 2:].unbind(1)
        return UnitWindows(self.located.graph, self.places, self.located.shapes, rows, columns)

    def run(self, batch: Tensor, images: Tensor, record: _Record) -> _Run:
        view = self.windows(batch)
        pixels = view.cut(images, self.located.units[batch, 0].tolist())
        recording = record(pixels, view)
        return _Run(pixels, recording, self.located.activation(recording)[self.index(batch)])

    def index(self, batch: Tensor) -> tuple[Tensor, ...]:
        return self.located.index(batch, windows=True)

    def _inset(self, batch: Tensor) -> tuple[int, int, int, int]:
        """The place of the box in the window of the image: top, left, and its rows and columns."""
        places, (row, column) = self.places[self.located.graph.inputs[0]], self.located.units[batch[0], 2:].tolist()
        top, left, bottom, right = self.located.boxes[batch[0]].tolist()
        first = [s + d * u for s, d, u in zip(places.start, places.stride, (row, column), strict=True)]
        return top - first[0], left - first[1], bottom - top, right - left

    def crop(self, batch: Tensor, pixels: Tensor) -> Tensor:
        top, left, rows, columns = self._inset(batch)
        size = self.located.size
        part = pixels[..., top : top + rows, left : left + columns]
        return part if size == (rows, columns) else F.pad(part, (0, size[1] - columns, 0, size[0] - rows))

    def canvas(self, batch: Tensor, canvases: Tensor) -> Tensor:
        """The windows of the image whose boxes hold canvases, the transpose of `crop`."""
        top, left, rows, columns = self._inset(batch)
        size = self.places[self.located.graph.inputs[0]].size
        part = canvases[..., :rows, :columns]
        if size != (rows, columns):
            part = F.pad(part, (left, size[1] - left - columns, top, size[0] - top - rows))
        return part.contiguous(memory_format=torch.channels_last)


def _channels_last(images: Tensor) -> Tensor:
    """The memory layout in which convolutions, and above all transposed ones, are fastest."""
    return images.contiguous(memory_format=torch.channels_last)


class _ByPath(_ByWindow):
    """Units whose forward pass needs whole images, because of gates; the way back is by window."""

    def batches(self, memory: int) -> Iterator[Tensor]:
        """In the order of the images: each image runs once for a batch."""
        limit = max(1, memory // max(self.elements.values()))
        image_limit = max(1, memory // max(shape.numel() for shape in self.located.shapes.values()))
        members = self.members[self.located.units[self.members, 0].argsort(stable=True)]
        images = self.located.units[members, 0].unique_consecutive(return_inverse=True)[1]
        for group in range(int(images[-1]) // image_limit + 1):
            yield from members[images // image_limit == group].split(limit)

    def run(self, batch: Tensor, images: Tensor, record: _Record) -> _Run:
        located = self.located
        numbers, image = located.units[batch, 0].unique(return_inverse=True)
        recording = record(_channels_last(images[numbers.to(images.device)]), None)
        rows, columns = located.units[batch, 2:].unbind(1)
        view = PathWindows(located.graph, self.places, located.shapes, rows, columns, image)
        pixels = view.cut(images, located.units[batch, 0].tolist())
        activation = located.activation(recording)
        values = activation[(image, *located.units[batch, 1:].unbind(1))[: activation.ndim]]
        return _Run(pixels, of_windows(recording, view), values)


class Deconvnet:
    """The deconvnet of a model: projects activations back to pixels.

    The model is used in eval mode and never modified. Threads may share a deconvnet. Zeiler & Fergus (2014), section
    2.1.

    Args:
        model: a module, or its Graph.
        rules: a rule set, or the name of one: "deconvnet", "extended", "gradient" or "guided".
        collisions: what becomes of several values that overlapping pooling windows send to one place: "add" (the
            transpose of pooling), "overwrite" (the last window wins), "max".
        verify: compare the traced network with the model itself, once for each size of images; see Graph.

    Raises:
        InputError: for NaN in the weights, and for a model that cannot be traced.
    """

    def __init__(
        self, model: nn.Module | Graph, *, rules: Rules | str = DECONVNET, collisions: str = "add", verify: bool = True
    ):
        if isinstance(rules, str):
            if rules not in RULE_SETS:
                raise unknown_name("rule set", rules, RULE_SETS)
            rules = RULE_SETS[rules]
        elif not isinstance(rules, Mapping) or not all(isinstance(row, Operation) for row in rules.values()):
            raise InputError(
                "rules are not a rule set; give DECONVNET | {operation: Operation(...)}, or a name: 'guided'"
            )
        if collisions not in COLLISIONS:
            raise unknown_name("collision rule", str(collisions), COLLISIONS)
        if isinstance(model, Graph) and _paths(rules) != _paths(model.operations):  # other receptive fields
            model = Graph(model.model, rules, verify=verify, image_size=model.image_size, **model.given_inputs)
        self.graph = model if isinstance(model, Graph) else Graph(model, rules, verify=verify)
        self.model, self.rules, self.collisions = self.graph.model, dict(rules), collisions
        check_weights(self.model)

    def _reads_input(self, node: fx.Node) -> bool:
        """Whether the value of this step is an input that some rule reads."""
        return any(row is not None and row.reads_input for row in map(self._row, node.users))

    def _row(self, node: fx.Node) -> Operation | None:
        """The rule set's row of a step."""
        row: Operation | None = self.graph.lookup(self.rules, node)
        return self.rules.get(OTHER) if row is None or row.back is None else row

    def record(self, images: Tensor, layers: Sequence[str | nn.Module] | None = None) -> Recording:
        """Run images forward, up to the deepest of the layers, and keep their activations and all switches.

        Args:
            images: (N, C, H, W), as the network is given them.
            layers: names or modules; None keeps every layer.

        Returns:
            The activations of these layers, and the switches of every max pooling below them.

        Raises:
            InputError: for an unknown layer, NaN, or images that are too small.
        """
        check_weights(self.model)  # training may have changed them
        with undifferentiated(self.model):
            return record(self.graph, check_images(self.model, images), layers, self._reads_input)

    def steps(self, recording: Recording, layer: str | nn.Module, signal: Tensor) -> list[tuple[str, str, Tensor]]:
        """The way down, step by step: (layer, operation, signal) for the signal that has come through each step.

        Args:
            recording: of the images, from `record`.
            layer: where the signal starts.
            signal: in the shape of the layer's output.

        Returns:
            One entry for each step. The signal of the last one is the projection, in the shape of the images.

        Raises:
            InputError: for a layer that was not recorded, a signal of another shape, and a step without a rule.
        """
        with undifferentiated(self.model):
            return list(self._walk(recording, layer, signal))

    def _step(self, node: fx.Node, recording: Recording) -> Step:
        """A step as its rule sees it, with what its forward pass left behind."""
        graph, view = self.graph, recording.view
        sources = [source for source in node.all_input_nodes if source in recording.outputs]

        def value_of(source: fx.Node) -> Any:
            return recording.values.get(source, source)

        def call(*inputs: Tensor) -> Any:
            copies = [x.clone() for x in inputs] if graph.overwrites(node) else inputs
            values = dict(zip(sources, copies, strict=True))

            def value(source: fx.Node) -> Any:
                return values[source] if source in values else view.read(node, source, recording.values.get(source))

            return view.call(node, *fx.map_arg((node.args, node.kwargs), value))

        def read(number: int) -> Tensor:
            window: Tensor = view.read(node, sources[number], recording.values[sources[number]])
            # beyond the border a window may hold NaN or infinity; times the zero signal there it would give NaN
            return window if view.padded else window.nan_to_num(0.0, 0.0, 0.0)

        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n if n in sources else value_of(n))
        step = Step(
            graph.names[node],
            graph.operation(node),
            graph.kind(node),
            graph.module(node),
            node,
            sources,
            [recording.seen[node, source] for source in sources],
            recording.outputs[node],
            graph.arguments(node, args, kwargs),
            call,
            read_input=read,
            switches=recording.switches.get(graph.names[node]),
            padded=view.padded,
            collisions=self.collisions,
            lookup=graph.lookup,
            decided=view.decided(node),
            advice=lambda: 'give rules="extended", or ' if extends(step, self.rules) else "",
        )
        return step

    def _walk(
        self,
        recording: Recording,
        layer: str | nn.Module,
        signal: Tensor,
        observe: Observe | None = None,
        ends: Collection[fx.Node] = (),
    ) -> Iterator[tuple[str, str, Tensor]]:
        """The way down, step by step. `observe` gets each step's signal once all its readers have sent theirs, and
        must not change it; the walk does not go on below the `ends`."""
        graph, start = self.graph, self.graph.node(layer)
        if not isinstance(recording, Recording):
            raise InputError(f"a recording is {with_article(recording)}; give what record() returns")
        if start not in recording.outputs:
            raise InputError(f"{graph.name(layer)} was not recorded: record it, or a layer above it")
        shape, images = recording.outputs[start], recording.images
        message = f"a signal at {graph.name(layer)} has the shape of that layer's output, {tuple(shape)}"
        signals = {start: check_signal(signal, shape, message).to(images.device, recording.types[start])}
        for node in reversed(graph.path([start])):
            if node not in signals:
                continue
            if observe is not None:
                observe(node, signals[node])
            if node in graph.inputs or node in ends:
                continue
            step, row = self._step(node, recording), self._row(node)
            if row is None or row.back is None:
                raise step.refuse()
            missing = [source for source in node.all_input_nodes if source in graph.carriers - recording.outputs.keys()]
            if missing and (recording.view.steps is None or missing[0] in recording.view.steps):
                raise step.refuse(f" of {graph.names[missing[0]]}, which gives several tensors")
            parts = row.back(step, signals.pop(node))
            for source, part in zip(step.sources, (parts,) if isinstance(parts, Tensor) else parts, strict=True):
                if part is None:
                    continue
                part = recording.view.place(node, source, part).to(recording.types[source])
                signals[source] = signals[source] + part if source in signals else part
                yield graph.names[node], graph.operation(node), signals[source]
        if not any(image in signals for image in graph.inputs) and not ends:
            raise InputError(f"{graph.name(layer)} does not depend on the image")

    def project(self, recording: Recording, layer: str | nn.Module, signal: Tensor) -> Tensor:
        """Project a signal down to the pixels of the images.

        Args:
            recording: of the images, from `record`.
            layer: where the signal starts; it must have been recorded, or a layer above it.
            signal: in the shape of the layer's output.

        Returns:
            The projections, (N, C, H, W).

        Raises:
            InputError: for a layer that was not recorded, a signal of another shape, and a step without a rule.
        """
        with undifferentiated(self.model):
            return self._down(recording, layer, signal)

    def _down(
        self, recording: Recording, layer: str | nn.Module, signal: Tensor, observe: Observe | None = None
    ) -> Tensor:
        steps = self._walk(recording, layer, signal, observe)
        ((_, _, pixels),) = deque(steps, maxlen=1)  # the last step reaches the image
        return pixels

    def _located(
        self,
        layer: str | nn.Module,
        units: Units | Sequence[Sequence[int]],
        images: int,
        size: Pair,
        whole: bool = False,
    ) -> _Located:
        """Units of a layer, of so many images of that size, with their receptive fields."""
        units, node = check_units(units), self.graph.node(layer)
        shapes = self.graph.shapes(size, node)
        self.graph.check_maps(node, shapes)
        extents = zip(("image", "map", "row", "column"), (images, *shapes[node][1:], 1, 1), strict=False)
        for column, (name, extent) in enumerate(extents):
            outside = units[(units[:, column] < 0) | (units[:, column] >= extent), column]
            if len(outside):
                raise InputError(f"no {name} {int(outside[0])} in {self.graph.name(layer)}: there are {extent}")
        boxes = torch.tensor((0, 0, *size)).expand(len(units), 4)
        if whole:
            return _Located(self.graph, node, shapes, units, boxes, size)
        fields = map_fields(self.graph, node, shapes)
        if fields.unknown:
            raise no_window(self.graph, fields.unknown)
        if fields.low is None or fields.high is None:
            return _Located(self.graph, node, shapes, units, boxes, size)
        if fields.stride is None:
            boxes = boxes_of(self.graph, node, shapes, size, units)
        else:
            offset = torch.tensor(fields.stride) * units[:, 2:]
            boxes = torch.cat([fields.low[units[:, 1]] + offset, fields.high[units[:, 1]] + offset], 1)
            boxes[boxes[:, 0] > boxes[:, 2]] = 0  # of a map that sees nothing
        if not len(units):
            return _Located(self.graph, node, shapes, units, boxes, receptive_field(self.graph, layer, size).size)
        largest = (boxes[:, 2:] - boxes[:, :2]).amax(0).tolist()
        return _Located(self.graph, node, shapes, units, boxes, (largest[0], largest[1]))

    def _strategies(self, located: _Located, whole: bool) -> Iterator[_Strategy]:
        # a pooling window beyond the field sends zero, which adds nothing, but overwrites what another sends
        windowed = not whole and self.collisions == "add"
        back = windowed and not self.graph.reads_sizes(located.node)
        for (members, places), (_, path) in zip(located.by_window(), located.by_window(back), strict=True):
            kind, windows = (_ByWindow, places) if places else (_ByPath, path)
            if windowed and windows and kind(located, members, windows).pays:
                yield kind(located, members, windows)
            else:
                yield _ByImage(located, members)

    def check(self, layers: Sequence[str | nn.Module], image_size: int | Pair) -> None:
        """Project a unit of each layer on an image of zeros, before anything long is done.

        Args:
            layers: names or modules.
            image_size: of the images, pixels: (rows, columns), or one number for both.

        Raises:
            InputError: for a layer that there is not, that gives no maps, and for a step without a rule.
        """
        size, graph = pair(image_size), self.graph
        image = torch.zeros(1, graph.channels, *size, **device_and_dtype(self.model))
        for layer in layers:
            shapes = graph.shapes(size, graph.node(layer))
            graph.check_maps(graph.node(layer), shapes)
            unit = [0, 0, *(extent // 2 for extent in shapes[graph.node(layer)][2:]), 0, 0][:4]
            self.project_units(image, layer, [unit], signals=image.new_ones(1), whole=True)

    def project_units(
        self,
        images: Tensor,
        layer: str | nn.Module,
        units: Units | Sequence[Sequence[int]],
        *,
        signals: Tensor | None = None,
        whole: bool = False,
        memory: int = 2**24,
        observe: Callable[[str, Tensor, Tensor], None] | None = None,
    ) -> Patches:
        """Project single units, each from its own activation, and crop their receptive fields.

        Only each unit's receptive field is run, in batches, or the whole image where that is less; the result is the
        same.

        Args:
            images: (N, C, H, W), as the network is given them.
            layer: name or module.
            units: (M, 4) int64: image, map, row, column (row and column 0 in fully connected layers).
            signals: (M,) what each unit starts from instead of its activation.
            whole: return whole images instead of receptive fields, which in deep networks may be many times as large.
            memory: bytes that the largest step of one batch may take.
            observe: is called on the way down with a step's name, the complete signals (m, maps, ...) at its output,
                and which of the units (m,) they are of, from the layer itself to the image; it must not change them.

        Raises:
            InputError: for units that do not exist, images that are too small, and NaN.
        """
        images, memory = check_images(self.model, images), check_number("memory", memory)
        located = self._located(layer, units, len(images), pair(images.shape[-2:]), whole)
        count = len(located.units)

        def forward(pixels: Tensor, view: View | None) -> Recording:
            return record(self.graph, pixels, [self.graph.names[located.node]], self._reads_input, view)

        if signals is not None:
            signals = check_signal(signals, (count,), f"signals are finite numbers, one for each of {count} units")
        with undifferentiated(self.model):
            crops, projections = (images.new_zeros(count, images.shape[1], *located.size) for _ in range(2))
            values = images.new_zeros(count)
            for run in self._strategies(located, whole) if count else ():
                for batch in run.batches(memory // images.element_size()):
                    pixels, recording, activation = run.run(batch, images, forward)
                    values[batch] = activation.to(values)
                    signal = located.zeros(recording)
                    start = activation if signals is None else signals.to(activation)[batch]
                    located.shapes.maps(located.node, signal)[run.index(batch)] = start
                    crops[batch] = run.crop(batch, pixels)
                    observer = None if observe is None else partial(_tell, observe, located, batch)
                    projections[batch] = run.crop(batch, self._down(recording, layer, signal, observer))
        return Patches(crops, projections, located.boxes.to(images.device), values)

    def activations_of(
        self,
        canvases: Tensor,
        layer: str | nn.Module,
        units: Units | Sequence[Sequence[int]],
        image_size: int | Pair,
        *,
        memory: int = 2**24,
    ) -> Tensor:
        """The activations (M,) of units whose receptive fields hold canvases, such as changed crops of `project_units`.

        Where a canvas leaves the image the network pads, whatever the canvas holds there.

        Args:
            layer: name or module.
            canvases: (M, C, S, S), as large as the largest field; each holds its unit's box at its top left.
            units: (M, 4) as in `project_units`; from which image they come counts for nothing.
            image_size: of the images that the canvases are parts of, pixels.
            memory: bytes that the largest step of one batch may take.

        Raises:
            InputError: for canvases of another size, units that do not exist, NaN, and a layer whose units depend on
                more than their fields, as behind a gate that EXTENDED holds fixed.
        """
        canvases, memory = check_images(self.model, canvases), check_number("memory", memory)
        units = check_units(units) * torch.tensor((0, 1, 1, 1))
        located = self._located(layer, units, 1, pair(image_size))
        if not map_fields(self.graph, located.node, located.shapes).exact:
            raise InputError(
                f"what units of {self.graph.name(layer)} give depends on more than their receptive fields, by a gate "
                "or a statistic that is held fixed; change whole images, and record() them"
            )
        if canvases.shape != (len(units), canvases.shape[1], *located.size):
            shape = (len(units), canvases.shape[1], *located.size)
            name = self.graph.name(layer)
            raise InputError(f"{len(units)} units of {name} look at canvases {shape}; got {tuple(canvases.shape)}")
        with undifferentiated(self.model):
            values = canvases.new_zeros(len(canvases))
            for members, places in located.by_window() if len(units) else ():
                run = _ByWindow(located, members, places) if places else _ByImage(located, members)
                for batch in run.batches(memory // canvases.element_size()):
                    pixels = _filled(run, batch, canvases[batch.to(canvases.device)])
                    view = run.windows(batch) if isinstance(run, _ByWindow) else None
                    recording = record(self.graph, pixels, [self.graph.names[located.node]], lambda node: False, view)
                    values[batch] = located.activation(recording)[run.index(batch)].to(values)
        return values


def _paths(rules: Rules) -> dict[Any, Any]:
    """The part of a rule set that receptive fields depend on."""
    return {key: row.path for key, row in rules.items() if row.path}


def _tell(
    observe: Callable[[str, Tensor, Tensor], None], located: _Located, batch: Tensor, node: fx.Node, signal: Tensor
) -> None:
    observe(located.graph.names[node], located.shapes.maps(node, signal), batch)


def _filled(run: _ByWindow | _ByImage, batch: Tensor, canvases: Tensor) -> Tensor:
    """The network's input in which the units' boxes hold canvases."""
    if isinstance(run, _ByWindow):
        return run.canvas(batch, canvases)
    size = pair(next(iter(run.located.shapes.values()))[-2:])
    if torch.equal(run.located.boxes[batch], torch.tensor((0, 0, *size)).expand(len(batch), 4)):
        return canvases
    images = canvases.new_zeros(*canvases.shape[:2], *size)
    for image, canvas, (top, left, bottom, right) in zip(
        images, canvases, run.located.boxes[batch].tolist(), strict=True
    ):
        image[:, top:bottom, left:right] = canvas[:, : bottom - top, : right - left]
    return images


def project_top(
    deconvnet: Deconvnet,
    dataset: Any,
    layer: str | nn.Module,
    top: TopActivations,
    maps: Sequence[int],
    *,
    whole: bool = False,
    batch_size: int = 256,
    workers: int | None = None,
) -> Patches:
    """Crops and projections of some feature maps' strongest activations, map by map, strongest first.

    Zeiler & Fergus (2014), Figure 2.

    Args:
        deconvnet: of the model that was scanned.
        dataset: the one that was scanned.
        layer: name or module.
        top: the layer's result of that scan, k activations of each map.
        maps: the numbers of the feature maps.
        whole: as in `project_units`.
        batch_size: images that are read and held at a time.
        workers: processes that read images; see `zfnet.data.Batches`.

    Returns:
        len(maps) * k patches; all is zero where a map has fewer than k activations.

    Raises:
        InputError: for maps that the layer does not have, and an image that can no longer be read.
    """
    if not isinstance(top, TopActivations):
        raise InputError(f"top is of type {type(top).__name__}; give one layer's activations: scan(...)[layer]")
    units = top.units(maps)
    winners = (units[:, 0] >= 0).nonzero().flatten()
    images, position = units[winners, 0].unique(return_inverse=True)
    batches = Batches(dataset, batch_size, indices=images, workers=workers)
    parts: list[tuple[Tensor, Patches]] = []
    for first, batch in zip(range(0, len(images), batch_size), batches, strict=True):
        if batches.broken:
            raise InputError(f"{batches.broken[0]}; it was scanned, and cannot be read again")
        mask = (position >= first) & (position < first + len(batch.index))
        local = units[winners[mask]]
        local[:, 0] = position[mask] - first
        parts.append((winners[mask], deconvnet.project_units(batch.images, layer, local, whole=whole)))
    if not parts:
        image = next(iter(Batches(dataset, 1, indices=[0], workers=0))).images
        parts.append((winners, deconvnet.project_units(image, layer, units[:0], whole=whole)))
    size = [max(patches.crops.shape[axis] for _, patches in parts) for axis in (2, 3)]
    sample = parts[0][1]
    shape = (len(units), sample.crops.shape[1], *size)
    patches = Patches(
        sample.crops.new_zeros(shape),
        sample.projections.new_zeros(shape),
        sample.boxes.new_zeros(len(units), 4),
        sample.values.new_zeros(len(units)),
    )
    for index, part in parts:
        index, (rows, columns) = index.to(part.values.device), part.crops.shape[2:]
        patches.crops[index, :, :rows, :columns] = part.crops
        patches.projections[index, :, :rows, :columns] = part.projections
        patches.boxes[index], patches.values[index] = part.boxes, part.values
    return patches
