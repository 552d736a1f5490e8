"""How a step of a graph sees its sources: whole maps, or only the windows that single units depend on.

Every step's window has one size for all units of a map and moves with them, so that the windows of many units run,
forward and back, as one batch: exactly what the units depend on, and nothing else.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from zfnet.checks import Pair, device_and_dtype
from zfnet.errors import InputError
from zfnet.graph import Graph, Shapes
from zfnet.windows import POINTWISE, WHOLE, Window, count_maps


class View(Protocol):
    """How the steps of a graph see their sources.

    Two laws hold for every view: `place` is the transpose of `read`, <read(x), y> = <x, place(y)>; and where `padded`
    is False, `call` finds the border already read.
    """

    padded: bool  # whether steps pad their input themselves

    @property
    def steps(self) -> Collection[fx.Node] | None:
        """The steps that carry a signal and are run; None: all."""

    def read(self, node: fx.Node, source: fx.Node, value: Any) -> Any:
        """The part of its source's value that `node` sees."""

    def call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Run the step on what it sees."""

    def decided(self, step: fx.Node) -> Sequence[fx.Node]:
        """The sources of a step that only decide, as gates do; empty if that is not known."""

    def place(self, node: fx.Node, source: fx.Node, signal: Tensor) -> Tensor:
        """Put the signal that `node` sends back at its place in its source's output."""


class WholeMaps:
    """Steps see the whole output of their sources: the ordinary forward pass."""

    padded = True
    steps: Collection[fx.Node] | None = None

    def __init__(self, graph: Graph):
        self.graph = graph

    def read(self, node: fx.Node, source: fx.Node, value: Any) -> Any:
        return value

    def call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        return self.graph.call(node, args, kwargs)

    def decided(self, step: fx.Node) -> Sequence[fx.Node]:
        return ()

    def place(self, node: fx.Node, source: fx.Node, signal: Tensor) -> Tensor:
        return signal


class RepeatedImages(WholeMaps):
    """Steps of the way back see whole maps; several units of one image share its forward pass.

    Args:
        image: (M,) each unit's image, by its position in that pass.
    """

    def __init__(self, graph: Graph, image: Tensor):
        super().__init__(graph)
        self.image = image

    def read(self, node: fx.Node, source: fx.Node, value: Any) -> Any:
        has_signal = isinstance(value, Tensor) and source in self.graph.carriers
        return value[self.image.to(value.device)] if has_signal else value


class Part(NamedTuple):
    """The part of one step's output that a unit depends on: ranges of rows and columns, ends exclusive, and maps."""

    rows: Pair
    columns: Pair
    maps: Tensor  # (C,) bool

    def union(self, other: "Part") -> "Part":
        rows, columns = ((min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(self[:2], other[:2], strict=True))
        return Part(rows, columns, self.maps | other.maps)


def follow(
    graph: Graph, node: fx.Node, unit: Pair, maps: Tensor, shapes: Shapes, *, clip: bool
) -> dict[fx.Node, Part] | None:
    """The part of each step that a unit of a layer depends on; None if it depends on everything.

    Args:
        unit: its row and column.
        maps: (C,) bool: the maps that it may be of.
        clip: leave out what lies beyond the steps' own borders.
    Raises InputError for a step whose window is not known.
    """
    parts = {node: Part((unit[0], unit[0] + 1), (unit[1], unit[1] + 1), maps)}
    for step in reversed(graph.path([node])):
        if step not in parts or step in graph.inputs:
            continue
        sources = [source for source in step.all_input_nodes if source in shapes]
        window = graph.path_window(step, shapes)
        if window is WHOLE:
            return None
        if window is None:
            raise no_window(graph, step)
        for number, source in enumerate(sources):
            if number in window.decided:
                continue
            source_maps = window.maps_behind(number, parts[step].maps, count_maps(shapes[source]))
            if not source_maps.any():
                continue
            ranges = [
                window.reads(low, high, axis)
                for axis, (low, high) in enumerate((parts[step].rows, parts[step].columns))
            ]
            if clip:
                ranges = [(max(a, 0), min(b, shapes[source][axis - 2])) for axis, (a, b) in enumerate(ranges)]
                if any(low >= high for low, high in ranges):
                    continue  # the unit sees only padding
            part = Part(ranges[0], ranges[1], source_maps)
            parts[source] = part.union(parts[source]) if source in parts else part
    return parts


def no_window(graph: Graph, step: fx.Node) -> InputError:
    """The error for a step of which it is not known what its outputs depend on."""
    return InputError(
        f"no window for {graph.operation(step)} at {graph.names[step]}, so receptive fields behind it are not known; "
        "register one with @rule(..., window=...), or project whole images with whole=True"
    )


class Places(NamedTuple):
    """Windows of one step: that of unit (row, column) begins at start + stride * (row, column)."""

    start: Pair
    stride: Pair
    size: Pair


def places_of(
    graph: Graph, node: fx.Node, maps: Tensor, shapes: Shapes, *, back: bool = False
) -> dict[fx.Node, Places] | None:
    """The windows of every step that units of these maps (C,) bool depend on; None if these do not slide.

    Args:
        back: of the path back alone, on which decisions of the forward pass are held fixed.
    """
    path = [step for step in graph.path([node]) if step in shapes and step not in graph.inputs]
    windows = [graph.path_window(step, shapes) for step in path]
    if any(window is not None and window.table is not None for window in windows):
        return None
    if not back and any(window is not graph.window(s, shapes) for s, window in zip(path, windows, strict=True)):
        return None  # the decisions depend on more than these windows
    first, second = (follow(graph, node, (i, i), maps, shapes, clip=False) for i in (0, 1))
    if first is None or second is None or graph.inputs[0] not in first:
        return None
    return {
        step: Places(
            (rows[0], columns[0]),
            (second[step].rows[0] - rows[0], second[step].columns[0] - columns[0]),
            (rows[1] - rows[0], columns[1] - columns[0]),
        )
        for step, (rows, columns, _) in first.items()
    }


class UnitWindows:
    """Steps see the windows that a batch of units (rows (M,), columns (M,)) of one layer depends on, and no more."""

    padded = False

    def __init__(self, graph: Graph, places: dict[fx.Node, Places], shapes: Shapes, rows: Tensor, columns: Tensor):
        self.graph, self.places, self.shapes = graph, places, shapes
        self.units = (rows.cpu(), columns.cpu())
        self.steps: Collection[fx.Node] | None = places.keys()
        self._window = {step: graph.path_window(step, shapes) for step in places if step not in graph.inputs}
        self._read = {
            (step, source): (self._offset(step, source, 0), self._offset(step, source, 1), self._outside(step, source))
            for step in self._window
            for source in step.all_input_nodes
            if source in places and source not in self.decided(step)
        }

    def decided(self, step: fx.Node) -> Sequence[fx.Node]:
        """The sources of a step that only decide."""
        window = self._window.get(step)
        if window is None:
            return ()
        sources = [source for source in step.all_input_nodes if source in self.shapes]
        return [sources[number] for number in window.decided]

    def _reads(self, step: fx.Node, axis: int) -> Pair:
        """The range of its sources that the window of unit 0 of a step reads along one axis."""
        window, place = self._window[step], self.places[step]
        assert window is not None
        low, high = window.reads(place.start[axis], place.start[axis] + place.size[axis], axis)
        return low, high

    def _offset(self, step: fx.Node, source: fx.Node, axis: int) -> slice:
        """The part of the source's window, along one axis, that `step` reads."""
        (low, high), start = self._reads(step, axis), self.places[source].start[axis]
        return slice(low - start, high - start)

    def _outside(self, step: fx.Node, source: fx.Node) -> tuple[Tensor, Tensor] | None:
        """Which units (m,) have an output within the maps of `step` that reads beyond the source's border, and where
        (m, 1, h, w). None where there is no such unit."""
        window, masks, crossing = self._window[step], [], torch.zeros(len(self.units[0]), dtype=torch.bool)
        assert window is not None
        for axis, unit in enumerate(self.units):
            place, extents = self.places[step], (self.shapes[step][axis - 2], self.shapes[source][axis - 2])
            low = place.start[axis] + place.stride[axis] * unit
            high = low + place.size[axis]
            begin, _ = window.reads(0, 1, axis)
            size = (place.size[axis] - 1) * window.stride[axis] + window.span(axis)
            positions = (low * window.stride[axis] + begin)[:, None] + torch.arange(size)
            masks.append((positions < 0) | (positions >= extents[1]))
            low, high = low.clamp(min=0), high.clamp(max=extents[0])
            last = (high - 1) * window.stride[axis] + begin + window.span(axis)
            crossing |= (low * window.stride[axis] + begin < 0) | (last > extents[1])
        if not crossing.any():
            return None
        return crossing.nonzero().flatten(), (masks[0][crossing][:, :, None] | masks[1][crossing][:, None, :])[:, None]

    def _fill(self, x: Tensor, outside: tuple[Tensor, Tensor], value: float) -> Tensor:
        units, mask = outside[0].to(x.device), outside[1].to(x.device)
        mask = mask.view(len(mask), *[1] * (x.ndim - 3), *mask.shape[-2:])
        if len(units) == len(x):
            return x.masked_fill(mask, value)
        channels_last = x.ndim == 4 and x.stride(1) == 1  # clone() of a slice would lose this layout
        copy = x.clone(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        return copy.index_copy_(0, units, x[units].masked_fill(mask, value))

    def cut(self, images: Tensor, image: Sequence[int]) -> Tensor:
        """The windows (M, C, h, w) of the image that the units depend on, each in its image, zero where they leave
        it."""
        start, stride, size = self.places[self.graph.inputs[0]]
        corners = torch.stack([s + d * unit for s, d, unit in zip(start, stride, self.units, strict=True)], 1)
        return cut(images, image, torch.cat([corners, corners + torch.tensor(size)], 1), size)

    def read(self, node: fx.Node, source: fx.Node, value: Any) -> Any:
        if (node, source) in self._read:
            rows, columns, outside = self._read[node, source]
            window = self._window[node]
            assert window is not None
            value = self.shapes.maps(source, value)[..., rows, columns]
            return self.shapes.own(source, value if outside is None else self._fill(value, outside, window.fill))
        return self.unseen(node, source) if value is None and source in self.shapes else value

    def unseen(self, node: fx.Node, source: fx.Node) -> Tensor:
        """Zeros, in place of a branch that these units do not see."""
        size = self.shapes[source][-2:]
        if node in self._window:
            size = torch.Size(high - low for low, high in (self._reads(node, axis) for axis in (0, 1)))
        zero = torch.zeros(1, **device_and_dtype(self.graph.model))
        return self.shapes.own(source, zero.expand(len(self.units[0]), *self.shapes[source][1:-2], *size))

    def call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        window = self._window.get(node)  # None for a step that reads sizes
        if window is None or window.inside is None:
            return self.graph.call(node, args, kwargs)
        maps = self.shapes.maps(node.all_input_nodes[0], args[0])
        return self.shapes.own(node, window.inside(maps, self.graph.arguments(node, args, kwargs)))

    def place(self, node: fx.Node, source: fx.Node, signal: Tensor) -> Tensor:
        rows, columns, outside = self._read[node, source]
        signal = self.shapes.maps(source, signal)
        if outside is not None:
            signal = self._fill(signal, outside, 0.0)
        size = self.places[source].size
        if tuple(signal.shape[-2:]) != size:
            signal = F.pad(signal, (columns.start, size[1] - columns.stop, rows.start, size[0] - rows.stop))
        return self.shapes.own(source, signal)


class PathWindows(UnitWindows):
    """Steps of the way back see the windows of the path; the forward pass ran on whole images.

    Args:
        image: (M,) which of the images of that pass each unit is of.
    """

    def __init__(
        self, graph: Graph, places: dict[fx.Node, Places], shapes: Shapes, rows: Tensor, columns: Tensor, image: Tensor
    ):
        super().__init__(graph, places, shapes, rows, columns)
        self.image = image

    def read(self, node: fx.Node, source: fx.Node, value: Any) -> Any:
        """The part of its source's output for whole images that `node` reads."""
        if source not in self.shapes or node not in self._window or not isinstance(value, Tensor | None):
            return value
        if value is not None and self._has_places(node, source):  # each place has its own gate
            place = self.places[node]
            return self.shapes.own(
                source, self._gathered(self.shapes.maps(source, value), place.start, place.size, place)
            )
        if source in self.decided(node) or self._takes_statistics(node):
            return None if value is None else value[self.image.to(value.device)]
        if (node, source) not in self._read or value is None:
            return self.unseen(node, source)
        window = self._window[node]
        assert window is not None
        start = [self._reads(node, axis)[0] for axis in (0, 1)]
        x = self._gathered(self.shapes.maps(source, value), start, self._size_read(node), self.places[node], window)
        outside = self._read[node, source][2]
        return self.shapes.own(source, x if outside is None else self._fill(x, outside, window.fill))

    def _has_places(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether a source that only decides for a step has a value for each place."""
        return source in self.decided(node) and max(self.shapes[source][2:][-2:], default=1) > 1

    def _takes_statistics(self, node: fx.Node) -> bool:
        """Whether a step's rule reads the whole input, whose statistics it holds fixed."""
        window = self._window[node]
        return window is not self.graph.window(node, self.shapes) and window is not None and not window.decided

    def _size_read(self, node: fx.Node) -> Pair:
        (top, bottom), (left, right) = (self._reads(node, axis) for axis in (0, 1))
        return bottom - top, right - left

    def _gathered(
        self, x: Tensor, start: Sequence[int], size: Pair, place: Places, window: Window = POINTWISE
    ) -> Tensor:
        """The windows (M, ..., h, w) of x (N, ..., H, W) that begin at start for unit 0, of each unit's image; whatever
        they hold beyond the border."""
        axes = []
        for axis, unit in enumerate(self.units):
            begins = start[axis] + place.stride[axis] * window.stride[axis] * unit
            axes.append((begins[:, None] + torch.arange(size[axis])).clamp(0, x.shape[axis - 2] - 1).to(x.device))
        image = self.image.to(x.device)[:, None, None]
        return x.movedim((-2, -1), (1, 2))[image, axes[0][:, :, None], axes[1][:, None, :]].movedim((1, 2), (-2, -1))

    def output(self, step: fx.Node) -> torch.Size:
        """The shape of a step's windows; of one that only decides, that of its outputs for the units' images."""
        if step not in self.places:
            return torch.Size((len(self.image), *self.shapes.outputs[step][1:]))
        return self._own_shape(step, self.places[step].size)

    def seen(self, step: fx.Node, source: fx.Node) -> torch.Size:
        """The shape of what a step sees of a source."""
        if self._has_places(step, source):
            return self._own_shape(source, self.places[step].size)
        return self._own_shape(source, self._size_read(step)) if (step, source) in self._read else self.output(source)

    def _own_shape(self, step: fx.Node, size: Pair) -> torch.Size:
        maps = torch.empty((len(self.image), *self.shapes[step][1:-2], *size), device="meta")
        return self.shapes.own(step, maps).shape

    def switches(self, step: fx.Node, switches: Tensor) -> Tensor:
        """The switches (M, C, h, w) of windows, from those of whole images: positions within what they read."""
        place, size = self.places[step], self._size_read(step)
        row_length = self.shapes[step.all_input_nodes[0]][-1]
        switches = self._gathered(switches, place.start, place.size, place)
        positions = []
        for axis, unit in enumerate(self.units):
            window = self._window[step]
            assert window is not None
            low = self._reads(step, axis)[0] + place.stride[axis] * window.stride[axis] * unit
            relative = (switches // row_length, switches % row_length)[axis] - low.to(switches.device).view(-1, 1, 1, 1)
            positions.append(relative.clamp(0, size[axis] - 1))  # positions beyond the border have no signal
        return positions[0] * size[1] + positions[1]


def cut(images: Tensor, image: Sequence[int], boxes: Tensor, size: Pair) -> Tensor:
    """Canvases (M, C, *size) with what boxes (M, 4) hold of images (N, C, H, W), at their top left; zero elsewhere."""
    crops = torch.zeros(len(image), images.shape[1], *size, dtype=images.dtype, device=images.device)
    crops = crops.contiguous(memory_format=torch.channels_last)
    for crop, index, (top, left, bottom, right) in zip(crops, image, boxes.tolist(), strict=True):
        part = images[index, :, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        crop[:, max(-top, 0) :, max(-left, 0) :][:, : part.shape[1], : part.shape[2]] = part
    return crops
