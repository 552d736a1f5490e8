"""A square slid over the image: what each part of the picture is worth to a feature map and to the class.

Only what the square can reach is computed.  It changes a window of every step, larger from layer to layer; the rest is
what the clean image gave.  The window arithmetic of receptive fields, run forwards, says where the windows lie; those
of many squares run as one batch.  A step that mixes all places (flatten, global pooling) sees whole maps again: the
clean ones, with the windows put in.  Zeiler & Fergus (2014), sections 4.2 and Figure 7.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from tqdm import tqdm

from zfnet.errors import InputError
from zfnet.receptive_field import POINTWISE, Pair, Window, pair, window_of
from zfnet.record import SWITCHED, Graph, Whole, check_images, check_weights, evaluating, graph_of, pool_arguments

TILE = 5  # rows and columns of squares whose windows run together
Shapes = dict[fx.Node, torch.Size]


@dataclass(frozen=True)
class OcclusionMaps:
    """What a network says with a square at each place; the maps are (rows, columns) of squares."""

    activity: Tensor  # the feature map's activations, summed
    probability: Tensor  # of class `target`
    label: Tensor  # int64, the most probable class
    boxes: Tensor  # (rows, columns, 4) int64, the squares: top, left, bottom, right, ends exclusive
    layer: str
    map: int
    target: int
    clean: tuple[float, float, int]  # activity, probability and label without a square
    image_size: Pair

    def heat(self, of: str = "probability") -> Tensor:
        """What is lost of "probability" or "activity", averaged over the squares that cover each pixel: (H, W).

        Captum's `Occlusion` gives this map.  NaN where no square came.
        """
        lost = self.clean[("activity", "probability").index(of)] - getattr(self, of)
        rows, columns = (
            ((ends[:, :1] <= torch.arange(size)) & (torch.arange(size) < ends[:, 1:])).to(lost)
            for ends, size in zip((self.boxes[:, 0, ::2], self.boxes[0, :, 1::2]), self.image_size, strict=True)
        )
        return rows.T @ lost @ columns / (rows.T @ torch.ones_like(lost) @ columns)


class Range(NamedTuple):
    """The places low..high-1 of a step along one axis, for each of several squares; (n,) each."""

    low: Tensor
    high: Tensor

    def even(self, extent: int) -> "Range":
        """The same with one size for all, within 0..extent-1."""
        size = int((self.high - self.low).max())
        low = self.low.clamp(max=extent - size)
        return Range(low, low + size)

    @property
    def size(self) -> int:
        return int(self.high[0] - self.low[0])

    def same(self, other: "Range") -> bool:
        return self.low.equal(other.low) and self.high.equal(other.high)

    def __getitem__(self, some: Any) -> "Range":  # type: ignore[override]
        return Range(self.low[some], self.high[some])


def changed(graph: Graph, path: Sequence[fx.Node], shapes: Shapes, squares: Range, axis: int) -> dict[fx.Node, Range]:
    """Along one axis: the outputs of each step that the squares can reach; of steps that have windows."""
    found = {graph.inputs[0]: squares}
    for node in path:
        sources = [s for s in node.all_input_nodes if s in shapes]
        window = window_of(graph, node) if sources else None
        if window is None or node in found or any(s not in found for s in sources):
            continue
        extent = shapes[node][axis - 2]
        reached = [window.reaches(*found[source], axis) for source in sources]
        low = torch.stack([low for low, _ in reached]).amin(0).clamp(0, extent - 1)
        high = torch.stack([high for _, high in reached]).amax(0).clamp(max=extent)
        found[node] = Range(low, high.maximum(low + 1))
    return found


class Squares(Whole):
    """Steps see the windows that a tile of squares can change, and around them what the clean image gave.

    ranges: of each step, the rows (a,) and columns (b,) that change; values are (a * b, C, h, w).
    """

    padded = False

    def __init__(self, graph: Graph, clean: dict[fx.Node, Tensor], ranges: dict[fx.Node, tuple[Range, Range]]):
        super().__init__(graph)
        self.clean, self.ranges = clean, ranges

    def _window(self, node: fx.Node) -> Window:
        return window_of(self.graph, node) or POINTWISE

    def _index(self, source: fx.Node, wanted: Sequence[Range]) -> Tensor:
        """Where the wanted places (a * b * h * w,) are in the rows of: the clean map, a border, the tile's windows."""
        extent, windows = self.clean[source].shape[-2:], self.ranges[source]
        here = [each.low[:, None] + torch.arange(each.size) for each in wanted]
        own = [places - window.low[:, None] for places, window in zip(here, windows, strict=True)]
        real = [(places >= 0) & (places < length) for places, length in zip(here, extent, strict=True)]
        changed = [(places >= 0) & (places < window.size) for places, window in zip(own, windows, strict=True)]

        def each(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
            return rows[:, None, :, None], columns[None, :, None, :]

        def flat(places: list[Tensor], width: int) -> Tensor:
            rows, columns = each(*places)
            return rows * width + columns

        def both(masks: list[Tensor]) -> Tensor:
            rows, columns = each(*masks)
            return rows & columns

        area = windows[0].size * windows[1].size
        square = torch.arange(len(own[0]) * len(own[1])).view(len(own[0]), len(own[1]), 1, 1)
        border = extent[0] * extent[1]
        index = torch.where(both(real), flat(here, extent[1]), border)
        return torch.where(both(changed), border + 1 + square * area + flat(own, windows[1].size), index).flatten()

    def look(self, source: fx.Node, value: Tensor, wanted: Sequence[Range], fill: float, maps: slice = slice(None)) -> Tensor:
        """The wanted places of a source's maps: changed where the windows are, else clean; `fill` outside the map."""
        if all(a.same(b) for a, b in zip(wanted, self.ranges[source], strict=True)):
            return value
        clean = rows_of(self.clean[source])[:, maps]
        value = value.reshape(len(value), -1, *value.shape[-2:])[:, maps]
        rows = torch.cat([clean, clean.new_full((1, clean.shape[1]), fill), rows_of(value)])
        picked = rows.index_select(0, self._index(source, wanted).to(rows.device))
        return maps_of(picked, len(value), wanted)

    def read(self, node: fx.Node, source: fx.Node, value: Any) -> Any:
        if source not in self.ranges:
            return value
        if node not in self.ranges:
            return self.whole(source, value)
        window, wanted = self._window(node), []
        for axis, each in enumerate(self.ranges[node]):
            low, _ = window.reads(each.low, each.high, axis)
            wanted.append(Range(low, low + (each.size - 1) * window.stride[axis] + window.span(axis)))
        return self.look(source, value, wanted, window.fill)

    def whole(self, source: fx.Node, value: Tensor, maps: slice = slice(None)) -> Tensor:
        wanted = [
            Range(torch.zeros_like(each.low), torch.full_like(each.low, length))
            for each, length in zip(self.ranges[source], self.clean[source].shape[-2:], strict=True)
        ]
        return self.look(source, value, wanted, 0.0, maps)

    def call(self, node: fx.Node, args: tuple, kwargs: dict) -> Any:
        if node not in self.ranges:
            return self.graph.call(node, args, kwargs)
        if self.graph.lookup(SWITCHED, node):
            given = pool_arguments(self.graph, node)
            return F.max_pool2d(args[0], given["kernel_size"], given["stride"], dilation=given["dilation"])
        inside = self._window(node).inside
        return inside(args[0]) if inside else self.graph.call(node, args, kwargs)


def rows_of(maps: Tensor) -> Tensor:
    """Maps (N, C, H, W) as rows (N * H * W, C), one for each place."""
    return maps.reshape(len(maps), -1, *maps.shape[-2:]).permute(0, 2, 3, 1).reshape(-1, maps[0, ..., 0, 0].numel())


def maps_of(rows: Tensor, count: int, ranges: Sequence[Range]) -> Tensor:
    return rows.view(count, ranges[0].size, ranges[1].size, -1).permute(0, 3, 1, 2)


def occlusion_maps(
    model: nn.Module | Graph,
    image: Tensor,
    *,
    size: int | Sequence[int] = 50,
    step: int | Sequence[int] = 6,
    fill: float | Sequence[float] = 0.0,
    layer: str | None = None,
    map: int | None = None,
    target: int | None = None,
    batch_size: int = 128,
    incremental: bool = True,
    progress: bool = False,
) -> OcclusionMaps:
    graph = graph_of(model)
    check_weights(graph.model)
    image = check_images(graph.model, image[None] if image.ndim == 3 else image)
    extent = tuple(image.shape[-2:])
    size, step = pair(size), pair(step)
    last = graph.nodes[-1]
    shapes = graph.shapes(extent, last)
    squares = []
    for length, side, stride in zip(extent, size, step, strict=True):
        low = torch.arange(-(-(length - side) // stride) + 1) * stride
        squares.append(Range(low, (low + side).clamp(max=length)))
    node = graph.node(layer or "relu5")
    path = graph.path([last, node])
    start = graph.inputs[0]
    changes = [changed(graph, path, shapes, each, axis) for axis, each in enumerate(squares)]
    if not incremental:
        changes = [{start: each} for each in squares]
    maps = Maps(graph, path, image, torch.tensor(fill), squares, changes, node, map, target)
    with evaluating(graph.model):
        return maps.sweep(batch_size)

class Maps:
    def __init__(self, graph, path, image, fill, squares, changes, node, map, target):
        self.graph, self.path, self.image, self.fill, self.squares, self.changes, self.node = graph, path, image, fill, squares, changes, node
        self.map, self.target = map, target
        inside = changes[0]
        self.boundary = [n for n in inside if n is path[-1] or any(r not in inside and r in path for r in n.users)]
        with evaluating(graph.model):
            self.clean = graph.run(image, [path[-1], node], graph.call, keep=set(inside))
        if map is None:
            self.map = int(self.clean[node][0].flatten(1).sum(1).argmax())
        if target is None:
            self.target = int(self.clean[path[-1]][0].argmax())

    def sweep(self, batch_size):
        last = self.path[-1]
        shape = tuple(len(s.low) for s in self.squares)
        out = [torch.zeros(shape), torch.zeros(shape), torch.zeros(shape, dtype=torch.int64)]
        orders = []
        side = max(1, min(TILE, math.isqrt(batch_size)))
        for found in self.changes:
            sizes = torch.stack([r.high - r.low for r in reversed(found.values())], 1).tolist()
            order = torch.tensor(sorted(range(len(sizes)), key=sizes.__getitem__))
            orders.append(order.split(side))
        pending=[]; n=0
        tiles=[(r,c) for r in orders[0] for c in orders[1]]
        for t,(rows, columns) in enumerate(tiles):
            values, activity = self.tile(rows, columns)
            out[0][rows[:,None],columns] = activity.view(len(rows),len(columns))
            pending.append((rows,columns,values)); n+=len(rows)*len(columns)
            if n>=batch_size or t==len(tiles)-1:
                logits = self.head({b: torch.cat([v[b] for *_,v in pending]) for b in self.boundary})
                p = logits.softmax(1)[:,self.target]; l=logits.argmax(1)
                for (r,c,_) in pending:
                    k=len(r)*len(c)
                    out[1][r[:,None],c]=p[:k].view(len(r),-1); out[2][r[:,None],c]=l[:k].view(len(r),-1)
                    p,l=p[k:],l[k:]
                pending=[]; n=0
        return out

    def tile(self, rows, columns):
        start=self.graph.inputs[0]
        ranges={n: (self.changes[0][n][rows].even(self.clean[n].shape[-2]), self.changes[1][n][columns].even(self.clean[n].shape[-1])) for n in self.changes[0]}
        view=Squares(self.graph,self.clean,ranges)
        x=self.clean[start]
        r,c=ranges[start]
        # clean values, then the exact square
        base=rows_of(x)
        yy=r.low[:,None]+torch.arange(r.size); xx=c.low[:,None]+torch.arange(c.size)
        er,ec=self.squares[0][rows],self.squares[1][columns]
        my=(yy>=er.low[:,None])&(yy<er.high[:,None]); mx=(xx>=ec.low[:,None])&(xx<ec.high[:,None])
        idx=(yy[:,None,:,None]*x.shape[-1]+xx[None,:,None,:])
        win=base.index_select(0,idx.flatten()).view(*idx.shape,-1)
        win=torch.where((my[:,None,:,None]&mx[None,:,None,:])[...,None], self.fill, win)
        win=win.flatten(0,1).permute(0,3,1,2)
        wanted={*self.boundary, self.node} if self.node in ranges else self.boundary
        vals=self.graph.run(win, wanted, view.call, read=view.read)
        act=view.whole(self.node, vals[self.node], slice(self.map,self.map+1)).flatten(1).sum(1)
        return {b: view.whole(b, vals[b]) for b in self.boundary}, act

    def head(self, given):
        inside=self.changes[0]
        def apply(node,args,kwargs):
            if node in given: return given[node]
            return None if node in inside else self.graph.call(node,args,kwargs)
        if self.graph.inputs[0] in given:
            raise SystemExit("todo")
        return self.graph.run(self.image,[self.path[-1]],apply)[self.path[-1]]
