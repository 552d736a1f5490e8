"""The table of operations.

An `Operation` says how a signal goes back through it, which window of its input an output depends on, and whether its
rule needs the forward input. A *rule set* is a mapping from operations (module types, functions, methods of Tensor)
to these:

    DECONVNET   max pooling -> unpool by switches, ReLU -> rectify the signal, convolution -> filter with the
                transposed weights
    GRADIENT    ReLU -> pass the signal where the unit fired: Simonyan et al. (2013), arXiv:1312.6034
    GUIDED      both: Springenberg et al. (2014), arXiv:1412.6806

Biases add nothing in reverse, and the signal passes through contrast normalisation: Zeiler & Fergus (2014), section
2.1. Every other linear operation is transposed. An operation without a rule raises an error that names it. To add one,
write a function of the step and the signal at its output that returns the signal at its input (one for each input, if
there are several):

    @rule(nn.SiLU)
    def rectify_silu(step, signal):
        return signal.clamp(min=0)
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from zfnet.attention import multihead_attention
from zfnet.checks import Pair, pair
from zfnet.errors import InputError
from zfnet.model import ContrastNorm
from zfnet.switches import adaptive_pool, pool, unpool
from zfnet.windows import ALL, POINTWISE, WHOLE, Window, count_maps, maps_first, maps_last


@dataclass(frozen=True)
class Step:
    """One step of a traced model, as a rule or a window sees it.

    Attributes:
        name: of the step, as `layer4.1.relu`.
        operation: as ReLU6.
        module: the module; None for a function or method.
        argument: a function (name, default) that gives a module's attribute, or an argument of the call.
        call: runs the step on other inputs.
        switches: of max pooling: (N, C, h, w), int64.
    """

    name: str  # layer4.1.relu
    operation: str  # ReLU6
    kind: str  # Hardtanh: of a module, the class whose `forward` it runs
    module: Any  # None for a function or method
    node: fx.Node
    sources: Sequence[fx.Node]  # the steps whose signal it reads, each once
    shapes: Sequence[torch.Size]  # of each of them, as the step sees it
    output: torch.Size
    argument: Callable[..., Any]  # (name, default=None): a module attribute, or an argument by position or keyword
    call: Callable[..., Any]
    constants: Sequence[Tensor] = ()  # other tensors among its arguments: parameters, and tensors computed from them
    read_input: Callable[[int], Tensor] = torch.empty  # by the number of its source
    switches: Tensor | None = None  # (N, C, h, w) int64, of max pooling
    padded: bool = True  # False: what the step sees holds its border already
    collisions: str = "add"
    lookup: Callable[[Mapping[Any, Any], fx.Node], Any] = lambda table, node: None  # the row of a step in a table
    maps_last: bool = False  # the maps of all that it reads and gives lie along the last axis in the model
    decided: Sequence[fx.Node] = ()  # the sources that are held fixed, where it sees windows of them
    advice: Callable[[], str] = str  # what else can be done where there is no rule

    @property
    def inputs(self) -> list[Tensor]:
        """The forward pass's inputs, for operations that declare `reads_input`."""
        return [self.read_input(number) for number in range(len(self.sources))]

    def refuse(self, reason: str = "") -> InputError:
        """The error for a step that has no rule."""
        return InputError(
            f"no deconvnet rule for {self.operation} at {self.name}{reason}; {self.advice()}register one with @rule"
        )


Part = Tensor | None  # the signal at one input of a step; None: the walk back ends there
Back = Callable[[Step, Tensor], Tensor | Sequence[Part]]


class Operation(NamedTuple):
    """How a signal goes back through an operation, and on what an output of it depends.

    Args:
        back: (step, signal at the output) -> signal at the input, or one for each input; None: refused by name.
        window: a Window, or a function of the step that returns one; None: that of DECONVNET, if it has one.
        reads_input: whether `back` reads `step.inputs`.
        path: the window, or a function of the step that returns it, that the signal comes back through while the
            forward pass's decisions are held fixed; None: `window`, which includes what the decisions depend on.
    """

    back: Back | None
    window: Window | Callable[[Step], Window | None] | None = None
    reads_input: bool = False
    path: Window | Callable[[Step], Window | None] | None = None


Rules = Mapping[Any, Operation]

# ---- arguments -------------------------------------------------------------------------------------------------------

# arguments by position, of functions without a signature that Python can read
SIGNATURES: dict[Any, tuple[str, ...]] = {
    F.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    F.conv_transpose2d: ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    F.linear: ("input", "weight", "bias"),
    torch.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
    F.max_pool2d: ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    torch.max_pool2d: ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    F.avg_pool2d: ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    F.adaptive_max_pool2d: ("input", "output_size", "return_indices"),
    F.adaptive_avg_pool2d: ("input", "output_size"),
    F.hardtanh_: ("input", "min_val", "max_val"),
    torch.threshold_: ("input", "threshold", "value"),
    torch.threshold: ("input", "threshold", "value"),
    **dict.fromkeys((torch.clamp, Tensor.clamp, Tensor.clamp_, torch.clip, Tensor.clip), ("input", "min", "max")),
    **dict.fromkeys((torch.clamp_min, Tensor.clamp_min, Tensor.clamp_min_), ("input", "min")),
    **dict.fromkeys((torch.mean, Tensor.mean, torch.sum, Tensor.sum), ("input", "dim", "keepdim")),
    **dict.fromkeys((torch.cat, torch.concat, torch.stack), ("tensors", "dim")),
    **dict.fromkeys((torch.softmax, Tensor.softmax, torch.log_softmax, Tensor.log_softmax), ("input", "dim")),
    F.pixel_shuffle: ("input", "upscale_factor"),
    F.pixel_unshuffle: ("input", "downscale_factor"),
    torch.einsum: ("equation", "operand"),
    torch.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    F.scaled_dot_product_attention: ("query", "key", "value", "attn_mask", "dropout_p", "is_causal"),
    **dict.fromkeys((torch.prelu, Tensor.prelu), ("input", "weight")),
    F.leaky_relu_: ("input", "negative_slope"),
    **dict.fromkeys((torch.rrelu, torch.rrelu_), ("input", "lower", "upper")),
}
POOL = {"kernel_size": None, "stride": None, "padding": 0, "ceil_mode": False, "dilation": 1}
# max pooling -> how it gives (values, switches), and the arguments that this takes
SWITCHED: dict[Any, tuple[Callable[..., tuple[Tensor, Tensor]], dict[str, Any]]] = {
    nn.MaxPool2d: (pool, POOL),
    F.max_pool2d: (pool, POOL),
    torch.max_pool2d: (pool, POOL),
    F.max_pool2d_with_indices: (pool, POOL),
    nn.AdaptiveMaxPool2d: (adaptive_pool, {"output_size": None}),
    F.adaptive_max_pool2d: (adaptive_pool, {"output_size": None}),
    F.adaptive_max_pool2d_with_indices: (adaptive_pool, {"output_size": None}),
}


def pool_arguments(argument: Callable[..., Any], defaults: Mapping[str, Any] = POOL) -> dict[str, Any]:
    """The arguments of a pooling step, module or function."""
    values = {name: argument(name, default) for name, default in defaults.items()}
    return values | ({"stride": values["stride"] or values["kernel_size"]} if "stride" in values else {})


class Convolution(NamedTuple):
    """The arguments of a convolution, in rows and columns; "same" pads one more at the end if the total is
    odd."""

    weight: Tensor
    bias: Tensor | None
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    @classmethod
    def of(cls, argument: Callable[..., Any]) -> "Convolution":
        weight, padding, dilation = argument("weight"), argument("padding", 0), pair(argument("dilation", 1))
        if isinstance(padding, str):
            reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            padding = [r // 2 if padding == "same" else 0 for r in reach]
        stride, groups = pair(argument("stride", 1)), argument("groups", 1)
        return cls(weight, argument("bias"), stride, pair(padding), dilation, groups)


# ---- windows ---------------------------------------------------------------------------------------------------------


def _grouped(groups: int, inputs: int, outputs: int) -> str | tuple[Tensor, ...]:
    """The maps that each output map of a grouped convolution reads: those of its group."""
    if groups == 1:
        return ALL
    group, size = torch.arange(outputs) // (outputs // groups), inputs // groups
    return (group[:, None] * size + torch.arange(size),)


def convolution_window(step: Step) -> Window | None:
    if len(step.sources) != 1:
        return None  # its weights depend on the image
    convolution = Convolution.of(step.argument)
    kernel = pair(convolution.weight.shape[2:])
    maps = _grouped(convolution.groups, step.shapes[0][1], step.output[1])

    def inside(x: Tensor, argument: Callable[..., Any]) -> Tensor:
        weight, bias, stride, _, dilation, groups = Convolution.of(argument)
        return F.conv2d(x, weight, bias, stride, 0, dilation, groups)

    window = Window(kernel, convolution.stride, convolution.padding, convolution.dilation, 0.0, inside, maps=maps)
    if (mode := step.argument("padding_mode", "zeros")) != "zeros":
        start = convolution.padding
        end = [window.span(axis) - 1 - start[axis] for axis in (0, 1)] if step.argument("padding") == "same" else start

        def padded(x: Tensor) -> Tensor:
            return F.pad(x, (start[1], end[1], start[0], end[0]), mode=mode)

        return unevenly(window._replace(padding=(0, 0)), step, _supports(padded, step.shapes[0]))
    margin = window.span(0) - 1, window.span(1) - 1
    if margin[0] < convolution.stride[0] and margin[1] < convolution.stride[1]:
        return window  # no place is read twice: reading costs no more than spreading

    def spread(x: Tensor, argument: Callable[..., Any]) -> Tensor:
        weight, _, stride, _, dilation, groups = Convolution.of(argument)
        return F.conv2d(x, weight, None, stride, margin, dilation, groups)

    return window._replace(spread=spread)


def unevenly(window: Window, step: Step, before: tuple[Tensor, Tensor] | None = None) -> Window:
    """A sliding window as a table, for a step that cannot be computed in windows.

    Args:
        window: the sliding window.
        step: the step.
        before: the supports of a padding that comes first; None: no such padding.
    """
    axes = []
    for axis in (0, 1):
        rows = torch.arange(step.output[axis - 2])
        lows, highs = window.reads(rows, rows + 1, axis)
        extent = len(before[axis]) if before else step.shapes[0][axis - 2]
        lows, highs = lows.clamp(min=0), highs.clamp(max=extent)
        if before:
            parts = [before[axis][int(a) : int(b)] for a, b in zip(lows, highs, strict=True)]
            lows, highs = (torch.stack([part[:, n].aminmax()[n] for part in parts]) for n in (0, 1))
        axes.append(torch.stack([lows, highs], 1))
    return Window(maps=window.maps, table=(axes[0], axes[1]))


def _supports(call: Callable[[Tensor], Tensor], shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Which rows and which columns the outputs of a linear, separable step read, found by running the step on each
    row and column alone."""
    axes = []
    for axis in (-2, -1):
        length, breadth = shape[axis], min(shape[-3 - axis], 64)
        supports = []
        for basis in torch.eye(length, dtype=torch.float64).split(64):
            lines = basis[:, None, :, None].expand(-1, 1, -1, breadth)
            output = call(lines if axis == -2 else lines.mT.contiguous())
            supports.append((output != 0).any(1).any(-3 - axis))
        reads = torch.cat(supports).int()  # (inputs, outputs)
        low = torch.where(reads.any(0), reads.argmax(0), length)
        axes.append(torch.stack([low, torch.where(reads.any(0), length - reads.flip(0).argmax(0), 0)], 1))
    return axes[0], axes[1]


def measured_window(step: Step) -> Window | None:
    """The window of a linear step that treats rows, columns and maps apart: resampling, padding, flips and rolls."""
    input_shape, output_shape = step.shapes[0], step.output
    if len(step.sources) != 1 or len(input_shape) != 4 or len(output_shape) != 4:
        return None
    numbers = torch.arange(1.0, input_shape[1] + 1, dtype=torch.float64).view(1, -1, 1, 1).expand(1, *input_shape[1:])
    result = step.call(numbers)  # maps that hold one number each keep it, so the number tells the input map
    maps = result[0].amax((1, 2)).round().long()[:, None] - 1
    copies = torch.isclose(result, (maps + 1).double()[None, :, :, None].expand_as(result))
    if not (copies | (result == 0)).all():  # 0 is read beyond the border
        return None
    return Window(maps=(maps,), table=_supports(step.call, input_shape))


def transposed_window(step: Step) -> Window | None:
    """Output i of a transposed convolution, or an unpooling, reads the inputs whose windows reach it."""
    if step.argument("weight") is None:  # unpooling
        kernel, dilation, maps = pair(step.argument("kernel_size")), (1, 1), POINTWISE.maps
        stride = pair(step.argument("stride") or kernel)
    else:
        kernel, dilation = pair(step.argument("weight").shape[2:]), pair(step.argument("dilation", 1))
        stride, (inputs, outputs) = pair(step.argument("stride", 1)), _maps(step)
        maps = _grouped(step.argument("groups", 1), inputs, outputs)
    padding, axes = pair(step.argument("padding", 0)), []
    for axis in (0, 1):
        length = step.shapes[0][axis - 2]
        taps = (
            torch.arange(step.output[axis - 2])[:, None] + padding[axis] - dilation[axis] * torch.arange(kernel[axis])
        )
        source = taps.div(stride[axis], rounding_mode="floor")
        valid = (taps % stride[axis] == 0) & (source >= 0) & (source < length)
        low = torch.where(valid, source, length).amin(1)
        axes.append(torch.stack([low, torch.where(valid, source + 1, 0).amax(1)], 1))
    return Window(maps=maps, table=(axes[0], axes[1]))


def _maps(step: Step) -> tuple[int, int]:
    """How many maps a step reads and gives."""
    return step.shapes[0][1], step.output[1]


def max_pool_window(step: Step) -> Window:
    pooling = pool_arguments(step.argument)
    kernel, stride, padding, dilation = (pair(pooling[n]) for n in ("kernel_size", "stride", "padding", "dilation"))

    def inside(x: Tensor, argument: Callable[..., Any]) -> Tensor:
        return F.max_pool2d(x, kernel, stride, 0, dilation)

    return Window(kernel, stride, padding, dilation, -math.inf, inside)


def average_pool_window(step: Step) -> Window:
    pooling = pool_arguments(step.argument, POOL | {"count_include_pad": True, "divisor_override": None})
    kernel, stride, padding = (pair(pooling[name]) for name in ("kernel_size", "stride", "padding"))

    def inside(x: Tensor, argument: Callable[..., Any]) -> Tensor:
        return F.avg_pool2d(x, kernel, stride, divisor_override=argument("divisor_override"))

    window = Window(kernel, stride, padding, inside=inside)
    ends = (window.reads(0, step.output[axis - 2], axis)[1] - padding[axis] for axis in (0, 1))
    overhangs = any(end > length for end, length in zip(ends, step.shapes[0][-2:], strict=True))
    if pooling["divisor_override"] is None and (overhangs or (any(padding) and not pooling["count_include_pad"])):
        return unevenly(window, step)  # the divisor changes at the border: it is not the same for all units
    return window


def adaptive_pool_window(step: Step) -> Window:
    """Windows that share the maps: of one size where they can be shared evenly."""
    inputs, outputs = pair(step.shapes[0][-2:]), pair(step.output[-2:])
    if outputs == (1, 1):
        return WHOLE
    averages = "avg" in step.kind.lower()
    if averages and not any(length % count for length, count in zip(inputs, outputs, strict=True)):
        kernel = inputs[0] // outputs[0], inputs[1] // outputs[1]
        return Window(kernel, kernel, inside=lambda x, argument: F.avg_pool2d(x, kernel))
    axes = []
    for length, count in zip(inputs, outputs, strict=True):
        index = torch.arange(count)
        axes.append(torch.stack([index * length // count, -(-(index + 1) * length // count)], 1))
    return Window(table=(axes[0], axes[1]))


def pad_window(step: Step) -> Window | None:
    if step.argument("mode", "constant") != "constant" or step.maps_last:
        return measured_window(step)
    pads, value = step.argument("padding") or step.argument("pad"), float(step.argument("value") or 0)
    padding = [int(p) for p in pads] + [0] * max(0, 4 - len(pads))
    left, _, top, _, *around = padding
    if not around:
        return Window(padding=(top, left), fill=value, inside=lambda x, argument: x)
    maps = F.pad(torch.arange(step.shapes[0][1]), tuple(around[:2]), value=-1)[
        :, None
    ]  # maps of zeros, in front and behind
    return Window(
        padding=(top, left),
        fill=value,
        inside=lambda x, argument: F.pad(x, (0, 0, 0, 0, *around), value=value),
        maps=(maps,),
    )


def joined_window(step: Step) -> Window | None:
    """Concatenation of maps: each map of the output reads its own branch alone."""
    branches, dim = step.argument("tensors"), step.argument("dim", 0) % len(step.output)
    if not isinstance(branches, Sequence) or not 0 < dim < len(step.output) - 2:
        return None
    join = torch.stack if step.kind == "stack" else torch.cat
    number = {source: n for n, source in enumerate(step.sources)}
    shapes = dict(zip(step.sources, step.shapes, strict=True))
    owners, numbers = [], []
    for branch in branches:  # a parameter is a branch, too
        shape = shapes[branch] if branch in number else branch.shape
        owners.append(torch.full(shape[1:-2], number.get(branch, -1)))
        numbers.append(torch.arange(count_maps(shape)).view(shape[1:-2]))
    owner, index = (join(parts, dim - 1).flatten()[:, None] for parts in (owners, numbers))
    window = Window(maps=tuple(index.where(owner == n, -1) for n in range(len(step.sources))))
    varies = any(isinstance(branch, Tensor) and branch.shape[-2:].numel() > 1 for branch in branches)
    return unevenly(window, step) if varies else window  # a constant map differs from place to place


def moved_window(step: Step) -> Window | None:
    """The window of a step that only moves elements (views, slices, permutations), found by moving their numbers.

    It has one if each place of the output takes all its maps from one place of the input, and these places are evenly
    spaced.
    """
    input_shape, output_shape = step.shapes[0], step.output
    if len(step.sources) != 1 or min(len(input_shape), len(output_shape)) < 3 or input_shape[0] != output_shape[0]:
        return None
    if not input_shape.numel() or not output_shape.numel():  # a view of nothing
        return None
    numbers = step.call(torch.arange(input_shape.numel()).view(input_shape))
    order, position = numbers // (input_shape[-2] * input_shape[-1]), numbers % (input_shape[-2] * input_shape[-1])
    starts, distances = [], []
    for axis, index in ((-2, position // input_shape[-1]), (-1, position % input_shape[-1])):
        line = index.movedim(axis, 0).flatten(1)[:, 0]
        distance = int(line[1] - line[0]) if len(line) > 1 else 1
        spaced = line[0] + distance * torch.arange(len(line)).view(-1, *[1] * (-1 - axis))
        if distance < 1 or not torch.equal(index, spaced.expand_as(index)):
            return None
        starts.append(int(line[0]))
        distances.append(distance)
    if not torch.equal(order, order[..., :1, :1].expand_as(order)):
        return None
    maps, shape = order[0, ..., 0, 0].flatten(), tuple(output_shape[1:-2])
    keeps_maps = torch.equal(maps, torch.arange(count_maps(input_shape)))
    (top, left), (row_stride, column_stride) = starts, distances

    def inside(x: Tensor, argument: Callable[..., Any]) -> Tensor:
        x = x[..., ::row_stride, ::column_stride]
        x = x.reshape(len(x), -1, *x.shape[-2:])
        x = x if keeps_maps else x[:, maps.to(x.device)]
        return x.reshape(len(x), *shape, *x.shape[-2:])

    return Window(stride=(row_stride, column_stride), padding=(-top, -left), inside=inside, maps=(maps[:, None],))


def written_window(step: Step) -> Window | None:
    """The window of a step that overwrites whole maps: each of these then reads the new value's map."""
    x, value, view, args, kwargs = (step.argument(name) for name in ("x", "value", "view", "args", "kwargs"))
    shapes = dict(zip(step.sources, step.shapes, strict=True))
    if x not in shapes or any(source not in (x, value) for source in step.sources) or len(shapes[x]) != 4:
        return None
    if view not in (operator.getitem, piece, Tensor.narrow, torch.narrow, Tensor.select, torch.select, Tensor.detach):
        return None  # the view depends on sizes, which differ in windows
    maps, places = shapes[x][1], shapes[x][-2:].numel()
    numbers = view(torch.arange(maps * places).view(1, *shapes[x][1:]), *args, **kwargs)
    if numbers.shape[-2:] != shapes[x][-2:] or not torch.equal(
        numbers % places, torch.arange(places).view(shapes[x][-2:]).expand_as(numbers)
    ):
        return None
    targets = (numbers // places)[..., 0, 0].flatten()
    kept, sources = torch.arange(maps), torch.full((maps,), -1)
    kept[targets], sources[targets] = -1, torch.arange(len(targets))
    reads = {x: kept[:, None]}
    if value in shapes:
        if shapes[value][1:] != numbers.shape[1:]:
            return None
        reads[value] = sources[:, None]
    elif isinstance(value, Tensor) and max(value.shape[-2:], default=1) > 1:
        return None
    return Window(maps=tuple(reads[source] for source in step.sources))


def flipped_window(step: Step) -> Window | None:
    """The window of flips and rolls, which move maps or places."""
    return moved_window(step) or measured_window(step)


def shuffled_window(step: Step) -> Window | None:
    """Pixel shuffle: each place reads one place and one map of the input; which map depends on the place."""
    factor, (inputs, outputs) = step.argument("upscale_factor"), _maps(step)
    table = [torch.arange(length)[:, None] // factor + torch.arange(2) for length in step.output[-2:]]
    return Window(maps=_grouped(outputs, inputs, outputs), table=(table[0], table[1]))


def unshuffled_window(step: Step) -> Window | None:
    factor, (inputs, outputs) = pair(step.argument("downscale_factor")), _maps(step)
    return Window(
        factor,
        factor,
        inside=lambda x, argument: F.pixel_unshuffle(x, factor[0]),
        maps=_grouped(inputs, inputs, outputs),
    )


def einsum_window(step: Step) -> Window | None:
    """The window of an einsum that only permutes; one that adds up has none."""
    inputs, _, outputs = str(step.argument("equation")).replace(" ", "").partition("->")
    window = moved_window(step) if sorted(inputs) == sorted(outputs) else None
    return window and window._replace(inside=None)


def reduced_window(step: Step) -> Window | None:
    """Sums and means: over all places, or over maps of one place."""
    shape, dims = step.shapes[0], step.argument("dim")
    dims = range(len(shape)) if dims is None else (dims,) if isinstance(dims, int) else dims
    axes = {d % len(shape) for d in dims}
    if {len(shape) - 2, len(shape) - 1} <= axes:
        return WHOLE
    if not axes or max(axes) >= len(shape) - 2 or 0 in axes:
        return None
    numbers = torch.arange(count_maps(shape)).view(shape[1:-2])
    remaining = [d for d in range(numbers.ndim) if d + 1 not in axes]
    order = numbers.permute(*remaining, *(d - 1 for d in sorted(axes)))
    return Window(maps=(order.reshape(math.prod(shape[d + 1] for d in remaining), -1),))


def normed_window(step: Step) -> Window:
    """Local response normalisation: a map reads its neighbours, `size` of them."""
    size, maps = step.argument("size"), _maps(step)[0]
    before, after = size // 2, (size - 1) // 2
    if step.kind == "CrossMapLRN2d":  # torch's has as many on each side, and its running sum always keeps map 0
        before = after
    neighbours = torch.arange(maps)[:, None] + torch.arange(-before, after + 1)
    neighbours = neighbours.where((neighbours >= 0) & (neighbours < maps), -1)
    if step.kind == "CrossMapLRN2d":
        neighbours = torch.cat([torch.zeros(maps, 1, dtype=torch.int64), neighbours], 1)
    return Window(maps=(neighbours,))


def softmax_window(step: Step) -> Window | None:
    dim = step.argument("dim", 1)
    return Window(maps=ALL) if dim is not None and 0 < dim % len(step.output) < len(step.output) - 2 else None


def normalized_shape(step: Step) -> tuple[int, ...]:
    """The last axes of a layer normalisation's input, which it takes its statistics over."""
    shape = step.argument("normalized_shape", ())
    return (shape,) if isinstance(shape, int) else tuple(shape)


def layer_norm_window(step: Step) -> Window | None:
    if len(normalized_shape(step)) > 1:
        return WHOLE
    return Window(maps=ALL) if step.maps_last else None


def linear_window(step: Step) -> Window | None:
    if len(step.output) < 3:
        return WHOLE
    return Window(maps=ALL) if step.maps_last else None


def shifted_window(step: Step) -> Window:
    """The windows of torchvision's shifted attention: places that are in one window after the shift."""
    shift, table = step.argument("shift_size"), []
    for axis, size in enumerate(step.argument("window_size")):
        extent = step.shapes[0][axis - 2]
        length = -(-extent // size) * size
        offset = shift[axis] if size < length else 0
        positions = (torch.arange(length) - offset) % length  # where each row is after the shift
        region = positions // size + (positions >= length - offset) * length
        members = [(region == number).nonzero().flatten() for number in region[:extent].tolist()]
        table.append(torch.stack([torch.stack([rows[0], (rows[-1] + 1).clamp(max=extent)]) for rows in members]))
    return Window(maps=ALL, table=(table[0], table[1]))


def arithmetic_window(step: Step) -> Window | None:
    """Of sums and products: the same place of each input; a constant that differs from place to place does not
    slide."""
    if any(shape[-2:] != step.output[-2:] or len(shape) != len(step.output) for shape in step.shapes):
        return WHOLE if all(shape[-2:] in ((1, 1), step.output[-2:]) for shape in step.shapes) else None
    if any(max(constant.shape[-2:], default=1) > 1 for constant in step.constants):
        return unevenly(POINTWISE, step)
    return POINTWISE


# ---- maps along the last axis ----------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """Along which axes of a tensor its maps, rows and columns lie; those that are split lie along several."""

    maps: frozenset[int]
    rows: frozenset[int]
    columns: frozenset[int]

    def is_like(self, other: "Layout") -> bool:
        """Whether both agree where both are known: a single map, row or column has no axis."""
        return all(not own or own == axes for own, axes in zip(self, other, strict=True))


def maps_second(dimensions: int) -> Layout:
    """(N, C, H, W), (N, C, T), (N, C)."""
    axes = [1] if dimensions < 3 else [1, max(2, dimensions - 2), dimensions - 1]
    return Layout(*(frozenset(axes[n : n + 1]) for n in range(3)))


def maps_at_the_end(dimensions: int) -> Layout:
    """(N, H, W, C), and tokens (N, T, C)."""
    return Layout(*(frozenset([max(1, axis)]) for axis in (dimensions - 1, dimensions - 3, dimensions - 2)))


def layout_behind(step: Step, before: Sequence[Layout]) -> Layout:
    """The layout of a step's output.

    Args:
        before: those of the tensors that the step reads.
    """
    dimensions = len(step.output)
    default = maps_second(dimensions)
    if dimensions < 3 or step.lookup(_READ_SECOND, step.node):
        return default
    if step.kind == "einsum" and len(step.sources) > 1 and (layout := _layout_of_einsum(step, before)):
        return layout
    if not step.lookup(_MOVED, step.node) or len(step.sources) != 1:
        candidates = (layout for layout, shape in zip(before, step.shapes, strict=True) if len(shape) == dimensions)
        layout = next(candidates, default)
        if (
            step.lookup(_MAKE_LAST, step.node) and layout.maps != default.maps
        ):  # with maps along the second axis it would mix places
            return layout._replace(maps=frozenset([dimensions - 1]))
        return layout
    (shape,), (layout,) = step.shapes, before
    maps, rows, columns = (_moved(step.call, shape, axes) for axes in layout)
    tokens = len(layout.rows) == 1 and layout.rows == layout.columns
    if tokens and len(rows) == 2 and max(rows) - min(rows) == 1:  # which become rows and columns
        rows, columns = frozenset([min(rows)]), frozenset([max(rows)])
    return Layout(maps, rows, columns)


def _layout_of_einsum(step: Step, before: Sequence[Layout]) -> Layout | None:
    """The layout of an einsum of several tensors, by the letters of their axes; None where no axis of maps is left."""
    terms, _, output = str(step.argument("equation")).replace(" ", "").partition("->")
    operands = [a for a in step.node.args[1:] if isinstance(a, fx.Node) and a in step.sources]
    if "." in terms or not output or len(operands) != len(step.node.args) - 1:
        return None
    layout_of = dict(zip(step.sources, before, strict=True))
    axes: list[set[int]] = [set(), set(), set()]
    for term, operand in zip(terms.split(","), operands, strict=True):
        for output_axes, input_axes in zip(axes, layout_of[operand], strict=True):
            output_axes |= {output.index(term[axis]) for axis in input_axes if term[axis] in output}
    return Layout(*map(frozenset, axes)) if axes[0] else None


def _moved(call: Callable[[Tensor], Tensor], shape: Sequence[int], axes: frozenset[int]) -> frozenset[int]:
    """The new positions of axes that a step moves."""
    sizes = [length if axis in axes else 1 for axis, length in enumerate(shape)]
    result = call(torch.arange(float(math.prod(sizes)), dtype=torch.float64).view(sizes).expand(*shape).contiguous())
    return frozenset(d for d in range(result.ndim) if result.numel() and (result != result.narrow(d, 0, 1)).any())


def with_maps_first(step: Step, before: Sequence[bool], after: bool) -> Step:
    """A step as if the maps of all that it reads and gives lay along the second axis.

    Args:
        before, after: whether those that it reads, and the output, have their maps along the last axis.
    """
    if not (after or any(before)):
        return step
    dimensions = len(step.output if after else next(s for s, last in zip(step.shapes, before, strict=True) if last))
    order = [0, dimensions - 1, *range(1, dimensions - 1)]  # where each axis was

    def call(*inputs: Tensor) -> Any:
        own = (
            maps_last(x, len(shape)) if last else x for x, last, shape in zip(inputs, before, step.shapes, strict=True)
        )
        out = step.call(*own)
        return maps_first(out) if after else out

    def first(x: Tensor) -> Tensor:
        return maps_first(x.view(*[1] * (dimensions - x.ndim), *x.shape)) if x.ndim < dimensions else maps_first(x)

    def argument(name: str, default: Any = None) -> Any:
        value = step.argument(name, default)
        if name == "dim" and isinstance(value, int | Sequence) and not isinstance(value, str):
            dims = [order.index(d % dimensions) for d in ([value] if isinstance(value, int) else value)]
            return dims[0] if isinstance(value, int) else dims
        if name == "tensors" and after and isinstance(value, Sequence):
            return [first(part) if isinstance(part, Tensor) else part for part in value]
        return value

    def shape_of(shape: torch.Size) -> torch.Size:
        return maps_first(torch.empty(shape, device="meta")).shape

    shapes = [shape_of(shape) if last else shape for shape, last in zip(step.shapes, before, strict=True)]
    output = shape_of(step.output) if after else step.output
    constants = [first(x) for x in step.constants] if after else step.constants
    return replace(
        step,
        shapes=shapes,
        output=output,
        argument=argument,
        call=call,
        constants=constants,
        maps_last=after and all(before),
    )


# ---- rules -----------------------------------------------------------------------------------------------------------


def vector_jacobian(call: Callable[..., Tensor], inputs: Sequence[Tensor], signal: Tensor) -> Sequence[Tensor]:
    """The gradient of one step at these inputs, by autograd."""
    with torch.enable_grad():
        # contiguous: torch's batch normalisation gives wrong gradients on processors if the two lie otherwise
        variables = [x.detach().contiguous().requires_grad_() for x in inputs]
        outputs, signal = call(*variables), signal.contiguous()
        return torch.autograd.grad(outputs, variables, signal, allow_unused=True, materialize_grads=True)


def transpose(step: Step, signal: Tensor) -> Sequence[Tensor]:
    """The transpose of any step that is linear, up to a constant, in its inputs."""
    return vector_jacobian(step.call, [signal.new_zeros(shape) for shape in step.shapes], signal)


def transpose_alone(step: Step, signal: Tensor) -> Sequence[Tensor]:
    """The transpose of a step that is linear in one tensor, if its weights or places do not depend on the image."""
    if len(step.sources) != 1:
        raise step.refuse(" of which weights or places depend on the image")
    return transpose(step, signal)


def add(step: Step, signal: Tensor) -> Sequence[Tensor]:
    """Every summand gets the signal; a subtracted one gets it with the opposite sign."""
    binary = step.kind in ("add", "add_") and not step.node.kwargs and len(step.node.args) == 2
    distinct = len(set(step.node.args)) == 2  # x + x has one source, which gets it twice
    if binary and distinct and all(shape == signal.shape for shape in step.shapes):
        return [signal] * len(step.shapes)
    return transpose(step, signal)


def gradient(step: Step, signal: Tensor) -> Sequence[Part]:
    """The gradient of any step at the forward pass's inputs; a condition or an index has none."""
    inputs = step.inputs
    differentiable = [number for number, x in enumerate(inputs) if x.is_floating_point()]
    if not differentiable:
        return [None] * len(inputs)

    def call(*leaves: Tensor) -> Tensor:
        values = dict(zip(differentiable, leaves, strict=True))
        output: Tensor = step.call(*(values.get(number, x) for number, x in enumerate(inputs)))
        return output

    gradients = dict(
        zip(differentiable, vector_jacobian(call, [inputs[number] for number in differentiable], signal), strict=True)
    )
    return [gradients.get(number) for number in range(len(inputs))]


def or_gradient(back: Back) -> Back:
    """A rule that falls back to the gradient for steps that `back` refuses."""

    def apply(step: Step, signal: Tensor) -> Tensor | Sequence[Part]:
        try:
            return back(step, signal)
        except InputError:
            return gradient(step, signal)

    return apply


def the_input(step: Step) -> Tensor:
    """The input of a step whose weights do not depend on the image; else an InputError."""
    if list(step.sources) != list(step.node.args[:1]):
        raise step.refuse(" whose weights depend on the image")
    return step.read_input(0)


def wide(x: Tensor) -> Tensor:
    """x in the type that torch computes statistics in: squares may overflow a 16-bit type."""
    return x.float() if x.dtype.itemsize < 4 else x


def through(step: Step, signal: Tensor) -> Sequence[Tensor]:
    return [signal, *(signal.new_zeros(shape) for shape in step.shapes[1:])]  # of `x.type_as(y)` y gets none


def through_type(step: Step, signal: Tensor) -> Sequence[Part]:
    """The signal through a change of type; conditions and whole numbers have no gradient."""
    signals = through(step, signal)
    return signals if step.read_input(0).is_floating_point() else [None] * len(signals)


def stop(step: Step, signal: Tensor) -> Tensor:
    """A signal of zeros, as autograd gives."""
    return torch.zeros_like(signal)


def through_dropout(step: Step, signal: Tensor) -> Tensor:
    if step.module is None and step.argument("training", True) and step.argument("p", 0.5) > 0:
        raise step.refuse(", which drops at random in evaluation too")
    return signal


def unpool_by_switches(step: Step, signal: Tensor) -> Tensor:
    assert step.switches is not None
    return unpool(signal, step.switches, pair(step.shapes[0][-2:]), step.collisions)


def unpool_to_centres(step: Step, signal: Tensor) -> Tensor:
    """Without switches: a value goes to the centre of its window, of four in the middle the upper left one.

    A centre beyond the border, as of some 2 x 2 windows with a padding of 1, has none.
    """
    size = pair(step.shapes[0][-2:])
    rows, columns = (_centres(step, axis, signal.shape[axis - 2]).to(signal.device) for axis in (0, 1))
    row_mask, column_mask = ((n >= 0) & (n < extent) for n, extent in zip((rows, columns), size, strict=True))
    signal, switches = signal[..., row_mask, :][..., column_mask], rows[row_mask, None] * size[1] + columns[column_mask]
    return unpool(signal, switches.expand(signal.shape), size, step.collisions)


def _centres(step: Step, axis: int, outputs: int) -> Tensor:
    """The places, along one axis, of the centres of a max pooling's windows: (outputs,)."""
    places = torch.arange(outputs)
    if "adaptive" in step.kind.lower():
        extent = step.shapes[0][axis - 2]
        return (places * extent // outputs - (-(places + 1) * extent // outputs) - 1) // 2
    pooling = pool_arguments(step.argument)
    kernel, stride, padding, dilation = (
        pair(pooling[name])[axis] for name in ("kernel_size", "stride", "padding", "dilation")
    )
    return places * stride - (padding if step.padded else 0) + (kernel - 1) // 2 * dilation


def _check_floor(step: Step) -> None:
    """Refuse a clamp or threshold that is not a rectifier."""
    if len(step.sources) != 1:
        raise step.refuse(" whose bounds depend on the image")
    name = step.kind.lower()
    floor: Any = 0
    if "hardtanh" in name:
        floor = step.argument("min_val", -1.0)
    elif "clamp" in name or "clip" in name:
        floor = step.argument("min")
    elif "threshold" in name and (step.argument("threshold"), step.argument("value")) != (0, 0):
        floor = None
    if floor is None or (bool(floor.any()) if isinstance(floor, Tensor) else floor != 0):
        raise step.refuse(" that lets values below 0 through")


def rectify(step: Step, signal: Tensor) -> Tensor:
    _check_floor(step)
    return signal.clamp(min=0)


def pass_where_fired(step: Step, signal: Tensor) -> Tensor:
    _check_floor(step)
    (x,) = step.inputs
    mask: Tensor = (x > 0) & (step.call(x) == x)  # ReLU6 lets nothing above 6 through
    return signal * mask


def rectify_where_fired(step: Step, signal: Tensor) -> Tensor:
    return pass_where_fired(step, signal.clamp(min=0))


def filter_transposed(step: Step, signal: Tensor) -> Tensor | Sequence[Tensor]:
    if len(step.sources) != 1:
        raise step.refuse(" whose weights depend on the image")
    weight, _, stride, padding, dilation, groups = Convolution.of(step.argument)
    if step.argument("padding_mode", "zeros") != "zeros" or (step.padded and isinstance(step.argument("padding"), str)):
        return transpose(step, signal)  # "same" may pad more at the end
    padding, size = padding if step.padded else (0, 0), pair(step.shapes[0][-2:])
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


def _filter_to_pixels(signal: Tensor, weight: Tensor, stride: Pair, padding: Pair, size: Pair) -> Tensor:
    """A transposed convolution into few channels, as an ordinary one that makes stride x stride pixels at every place.

    torch's own runs into three channels at a fraction of the speed.
    """
    maps, channels, *kernel = weight.shape
    taps = [-(-k // s) for k, s in zip(kernel, stride, strict=True)]  # places that reach one pixel
    excess = [t * s - k for t, s, k in zip(taps, stride, kernel, strict=True)]
    filters = F.pad(weight, (0, excess[1], 0, excess[0])).view(maps, channels, taps[0], stride[0], taps[1], stride[1])
    filters = filters.permute(1, 3, 5, 0, 2, 4).flatten(0, 2).flip(2, 3).contiguous(memory_format=torch.channels_last)
    pixels = F.conv2d(signal, filters, padding=(taps[0] - 1, taps[1] - 1))
    pixels = pixels.unflatten(1, (channels, *stride)).permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)
    pixels = pixels[..., padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]
    return F.pad(pixels, (0, size[1] - pixels.shape[-1], 0, size[0] - pixels.shape[-2]))


def filter_linear(step: Step, signal: Tensor) -> Tensor:
    if len(step.sources) != 1:
        raise step.refuse(" whose weights depend on the image")
    weight: Tensor = step.argument("weight")
    return signal @ weight


def batch_norm(step: Step, signal: Tensor) -> Tensor:
    if len(step.sources) != 1:
        raise step.refuse(" whose weights depend on the image")
    if step.argument("running_mean") is None or (step.module is None and step.argument("training", False)):
        raise step.refuse(" without running statistics")
    weight, variance = step.argument("weight"), step.argument("running_var")
    gain: Tensor = (variance + step.argument("eps", 1e-5)).rsqrt()
    gain = gain if weight is None else gain * weight
    return signal * gain.to(signal).view(-1, *[1] * (signal.ndim - 2))


def group_norm(step: Step, signal: Tensor) -> Tensor | Sequence[Tensor]:
    """Multiply by the scale of the forward pass's fixed statistics; instance normalisation has groups of one map."""
    if not _reads_statistics(step):
        return transpose(step, signal)
    x = wide(the_input(step))
    groups = step.argument("num_groups", x.shape[1])
    scale: Tensor = x.unflatten(1, (groups, -1)).flatten(2).var(2, correction=0)
    scale = (scale + step.argument("eps", 1e-5)).rsqrt().repeat_interleave(x.shape[1] // groups, 1).to(signal.dtype)
    weight = step.argument("weight")
    scale = scale if weight is None else scale * weight
    return signal * scale.view(*scale.shape, *[1] * (x.ndim - 2))


def _reads_statistics(step: Step) -> bool:
    """Whether a normalisation takes the statistics of its input, not those of the training images."""
    if step.argument("running_mean") is None:
        return True
    return step.module is None and bool(step.argument("use_input_stats", True))


def group_norm_window(step: Step) -> Window:
    return WHOLE if _reads_statistics(step) else POINTWISE


def scale(step: Step, signal: Tensor) -> Sequence[Tensor]:
    """A feature map times a constant; the product of two feature maps is not linear."""
    operands = (*step.node.args, *step.node.kwargs.values())
    factors = [a for a in operands if a in step.sources]  # x * x has two
    if step.argument("rounding_mode"):
        raise step.refuse(" that rounds")
    if len(factors) != 1 or ("div" in step.kind and operands[1] is factors[0]):
        raise step.refuse(" of two feature maps")
    return transpose(step, signal)


def add_product(step: Step, signal: Tensor) -> Sequence[Tensor]:
    """x + a * b, of which a or b is a constant."""
    if len([factor for factor in step.node.args[1:3] if factor in step.sources]) > 1:
        raise step.refuse(" of two feature maps")
    return transpose(step, signal)


def contract(step: Step, signal: Tensor) -> Sequence[Tensor]:
    if len(step.sources) != 1 or len(step.node.args) != 2:
        raise step.refuse(" of several tensors")
    return transpose(step, signal)


def put_back(step: Step, signal: Tensor) -> Sequence[Tensor]:
    """The signal of the written places goes to what was written, and the rest to the tensor written into."""
    if any(source not in step.node.args[:2] for source in step.sources):
        raise step.refuse(" to places that depend on the image")
    return transpose(step, signal)


# ---- the table -------------------------------------------------------------------------------------------------------

_NAMESPACES = {"nn": nn, "F": F, "torch": torch, "Tensor": Tensor, "operator": operator}


def named(names: str) -> list[Any]:
    """The operations of these names, such as `nn.ReLU F.relu`."""
    return [getattr(_NAMESPACES[space], name) for space, name in (entry.split(".") for entry in names.split())]


def piece(x: Tensor, split: Callable[..., Any], index: int, *args: Any, **kwargs: Any) -> Tensor:
    """One of the tensors that an operation of `SPLITS` gives."""
    part: Tensor = split(x, *args, **kwargs)[index]
    return part


def switches_of(x: Tensor, pooling: Callable[..., Any], arguments: Mapping[str, Any]) -> Tensor:
    """The switches of a max pooling that was asked to return its indices."""
    indices: Tensor = pooling(x, **arguments)[1]
    return indices


def written(x: Tensor, value: Any, view: Callable[..., Tensor], args: Any, kwargs: Any) -> Tensor:
    """x with a value in place of one of its views."""
    numbers = view(torch.arange(x.numel(), device=x.device).view(x.shape), *args, **kwargs)
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device).expand(numbers.shape)
    return x.flatten().scatter(0, numbers.flatten(), value.flatten()).view(x.shape)


TURNED = ("T", "mT")  # attributes that move elements
SPLITS = named("torch.chunk Tensor.chunk torch.split Tensor.split torch.unbind Tensor.unbind torch.tensor_split")
MOVES = [  # operations that move elements, and do nothing else
    piece,
    *named(
        "operator.getitem torch.unsqueeze Tensor.unsqueeze torch.squeeze Tensor.squeeze nn.Flatten torch.flatten "
        "Tensor.flatten nn.Unflatten torch.unflatten Tensor.unflatten Tensor.view Tensor.reshape torch.reshape "
        "torch.permute Tensor.permute torch.transpose Tensor.transpose torch.movedim Tensor.movedim Tensor.expand "
        "Tensor.repeat Tensor.narrow torch.narrow Tensor.select torch.select Tensor.swapaxes torch.swapaxes "
        "Tensor.swapdims torch.swapdims Tensor.moveaxis torch.moveaxis torch.movedim Tensor.diagonal torch.diagonal "
        "Tensor.view_as Tensor.reshape_as Tensor.expand_as Tensor.broadcast_to torch.broadcast_to Tensor.t torch.t "
        "nn.ChannelShuffle F.channel_shuffle torch.channel_shuffle Tensor.T Tensor.mT"
    ),
]
RECTIFIERS = named(
    "nn.ReLU F.relu F.relu_ F.relu6 torch.relu torch.relu_ Tensor.relu Tensor.relu_ nn.Hardtanh F.hardtanh "
    "F.hardtanh_ nn.Threshold F.threshold torch.threshold torch.threshold_ torch.clamp Tensor.clamp Tensor.clamp_ "
    "torch.clip Tensor.clip torch.clamp_min Tensor.clamp_min Tensor.clamp_min_"
)
CONTRAST_NORMS = [ContrastNorm, *named("nn.LocalResponseNorm F.local_response_norm nn.CrossMapLRN2d")]
DROPOUTS = named(
    "nn.Dropout nn.Dropout1d nn.Dropout2d nn.Dropout3d nn.AlphaDropout nn.FeatureAlphaDropout F.dropout F.dropout1d "
    "F.dropout2d F.dropout3d F.alpha_dropout F.feature_alpha_dropout"
)
TYPES = named(
    "Tensor.to Tensor.float Tensor.double Tensor.half Tensor.bfloat16 Tensor.type Tensor.type_as"
)  # the values, of another type
UNCHANGED = [*named("nn.Identity Tensor.contiguous Tensor.clone torch.clone Tensor.detach"), *TYPES]
SHIFTED_ATTENTION = "torchvision.models.swin_transformer.shifted_window_attention"
LAYER_NORMS = named("nn.LayerNorm F.layer_norm torch.layer_norm")
RMS_NORMS = [
    operation
    for space, name in ((nn, "RMSNorm"), (F, "rms_norm"), (torch, "rms_norm"))
    if (operation := getattr(space, name, None)) is not None
]
GROUP_NORMS = named("nn.GroupNorm F.group_norm torch.group_norm nn.InstanceNorm2d F.instance_norm")
_ELEMENTWISE = (
    "abs acos asin atan celu cos elu erf exp expm1 gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu log log10 "
    "log1p log2 logsigmoid mish neg prelu reciprocal relu round rrelu rsqrt selu sigmoid sign silu "
    "sin sinh softplus softshrink softsign sqrt square tan tanh tanhshrink threshold floor ceil sgn logit "
    "clamp clamp_max clip nan_to_num positive"
)
_ELEMENTWISE_MODULES = (
    "nn.CELU nn.ELU nn.GELU nn.Hardshrink nn.Hardsigmoid nn.Hardswish nn.LeakyReLU nn.LogSigmoid nn.Mish nn.PReLU "
    "nn.RReLU nn.SELU nn.SiLU nn.Sigmoid nn.Softplus nn.Softshrink nn.Softsign nn.Tanh nn.Tanhshrink"
)


def _rows(
    operations: Sequence[Any], back: Back | None, window: Any = POINTWISE, reads_input: bool = False
) -> dict[Any, Operation]:
    return dict.fromkeys(operations, Operation(back, window, reads_input))


DECONVNET: dict[Any, Operation] = {
    # elementwise: their windows are known, whether or not they have a rule
    **_rows(named(_ELEMENTWISE_MODULES), None),
    **{
        getattr(space, spelling): Operation(None, POINTWISE)
        for name in _ELEMENTWISE.split()
        for spelling in (name, f"{name}_")
        for space in (torch, F, Tensor)
        if callable(getattr(space, spelling, None))
    },
    **_rows(
        named("torch.maximum torch.minimum torch.where torch.lerp torch.pow Tensor.pow operator.pow"),
        None,
        arithmetic_window,
    ),
    **_rows(
        named("nn.Softmax nn.LogSoftmax nn.Softmax2d F.softmax F.log_softmax torch.softmax Tensor.softmax"),
        None,
        softmax_window,
    ),
    **_rows([*LAYER_NORMS, *RMS_NORMS], None, layer_norm_window),
    **_rows([F.scaled_dot_product_attention, multihead_attention], None, WHOLE),
    # functions of torchvision's models, which are imported with these
    **_rows([SHIFTED_ATTENTION], None, shifted_window),
    **_rows(["torchvision.models.swin_transformer._patch_merging_pad"], transpose, measured_window),
    # the paper's three
    **_rows(
        named("nn.MaxPool2d F.max_pool2d torch.max_pool2d F.max_pool2d_with_indices"),
        unpool_by_switches,
        max_pool_window,
    ),
    **_rows(RECTIFIERS, rectify),
    **_rows(named("nn.Conv2d F.conv2d torch.conv2d"), filter_transposed, convolution_window),
    **_rows(CONTRAST_NORMS, through, normed_window),
    # linear, or held fixed
    **_rows(
        named("nn.AdaptiveMaxPool2d F.adaptive_max_pool2d F.adaptive_max_pool2d_with_indices"),
        unpool_by_switches,
        adaptive_pool_window,
    ),
    **_rows(named("nn.Linear F.linear"), filter_linear, linear_window),
    **_rows(named("nn.BatchNorm1d nn.BatchNorm2d nn.SyncBatchNorm F.batch_norm torch.batch_norm"), batch_norm),
    **_rows(GROUP_NORMS, group_norm, group_norm_window, reads_input=True),
    **_rows(named("nn.AvgPool2d F.avg_pool2d"), transpose, average_pool_window),
    **_rows(named("nn.AdaptiveAvgPool2d F.adaptive_avg_pool2d"), transpose, adaptive_pool_window),
    **_rows(named("nn.ConvTranspose2d F.conv_transpose2d nn.MaxUnpool2d F.max_unpool2d"), transpose, transposed_window),
    **_rows(
        named("nn.Upsample nn.UpsamplingNearest2d nn.UpsamplingBilinear2d F.interpolate F.upsample"),
        transpose,
        measured_window,
    ),
    **_rows(named("nn.ReflectionPad2d nn.ReplicationPad2d nn.CircularPad2d"), transpose, measured_window),
    **_rows(named("nn.ConstantPad2d F.pad"), transpose, pad_window),
    **_rows(named("nn.PixelShuffle F.pixel_shuffle"), transpose, shuffled_window),
    **_rows(named("nn.PixelUnshuffle F.pixel_unshuffle"), transpose, unshuffled_window),
    **_rows(named("torch.flip Tensor.flip torch.roll Tensor.roll"), transpose, flipped_window),
    **_rows(named("torch.cat torch.concat torch.stack"), transpose, joined_window),
    **_rows(named("torch.mean Tensor.mean torch.sum Tensor.sum"), transpose, reduced_window),
    **_rows(named("torch.einsum"), contract, einsum_window),
    **_rows(MOVES, transpose, moved_window),
    **_rows([written], put_back, written_window),
    **_rows(named("torch.addcmul Tensor.addcmul"), add_product, arithmetic_window),
    **_rows(  # linear, without a window rule
        named(
            "nn.Conv1d F.conv1d nn.Conv3d F.conv3d nn.ConvTranspose1d F.conv_transpose1d nn.AvgPool1d F.avg_pool1d "
            "nn.AdaptiveAvgPool1d F.adaptive_avg_pool1d nn.Unfold F.unfold nn.Fold F.fold Tensor.unfold torch.rot90 "
            "Tensor.rot90 Tensor.index_select torch.index_select torch.gather Tensor.gather Tensor.masked_fill "
            "torch.masked_fill torch.cumsum Tensor.cumsum torch.tile Tensor.tile torch.repeat_interleave "
            "Tensor.repeat_interleave torch.take_along_dim"
        ),
        transpose_alone,
        None,
    ),
    **_rows(named("Tensor.zero_ Tensor.fill_"), transpose),  # constants
    **_rows(named("Tensor.index_fill_ Tensor.index_add_ Tensor.index_copy_"), transpose, None),
    **_rows(
        named(
            "operator.add operator.sub torch.add torch.sub Tensor.add Tensor.add_ Tensor.sub Tensor.sub_ operator.neg "
            "torch.neg Tensor.neg Tensor.neg_ torch.neg_ Tensor.copy_"
        ),
        add,
        arithmetic_window,
    ),
    **_rows(
        named("operator.mul operator.truediv torch.mul torch.div Tensor.mul Tensor.mul_ Tensor.div Tensor.div_"),
        scale,
        arithmetic_window,
    ),
    # identities in evaluation
    **_rows(DROPOUTS, through_dropout),
    **_rows(UNCHANGED, through),
    "torchvision.ops.stochastic_depth.stochastic_depth": Operation(
        through_dropout, POINTWISE
    ),  # imported with its models
}
# operations by the axis of their input that holds the maps: the second; the last; an axis that they may move
_READ_SECOND = dict.fromkeys(
    named(
        "nn.Conv2d F.conv2d torch.conv2d nn.ConvTranspose2d F.conv_transpose2d nn.MaxPool2d F.max_pool2d "
        "torch.max_pool2d nn.AdaptiveMaxPool2d F.adaptive_max_pool2d nn.AvgPool2d F.avg_pool2d nn.AdaptiveAvgPool2d "
        "F.adaptive_avg_pool2d nn.BatchNorm2d F.batch_norm nn.GroupNorm F.group_norm nn.InstanceNorm2d nn.Upsample "
        "F.interpolate nn.PixelShuffle F.pixel_shuffle nn.PixelUnshuffle F.pixel_unshuffle"
    ),
    True,
)
_MAKE_LAST = dict.fromkeys(named("nn.Linear F.linear"), True)
_MOVED = dict.fromkeys([*MOVES, *named("torch.einsum torch.mean Tensor.mean torch.sum Tensor.sum")], True)
# alternatives to the paper's choices, to be added to a rule set
UNRECTIFIED: dict[Any, Operation] = _rows(RECTIFIERS, through)
UNSWITCHED: dict[Any, Operation] = _rows(list(SWITCHED), unpool_to_centres, None)
DIFFERENTIATED_NORMS: dict[Any, Operation] = {
    **_rows(CONTRAST_NORMS, gradient, normed_window, reads_input=True),
    **_rows(GROUP_NORMS, gradient, group_norm_window, reads_input=True),
}
_REFUSING = (
    scale,
    contract,
    batch_norm,
    put_back,
    add_product,
    transpose_alone,
)  # rules that are not for all of an operation's uses
OTHER = "any other operation"  # the key of the row for operations without their own row
GRADIENT: dict[Any, Operation] = (
    {key: row if row.back else Operation(gradient, row.window, reads_input=True) for key, row in DECONVNET.items()}
    | DIFFERENTIATED_NORMS
    | {
        key: Operation(or_gradient(row.back), row.window, True)
        for key, row in DECONVNET.items()
        if row.back in _REFUSING
    }
    | _rows(RECTIFIERS, or_gradient(pass_where_fired), reads_input=True)
    | _rows(TYPES, through_type, reads_input=True)
    | _rows(named("Tensor.detach"), stop)
    | {OTHER: Operation(gradient, None, reads_input=True)}
)
GUIDED = GRADIENT | _rows(RECTIFIERS, or_gradient(rectify_where_fired), reads_input=True)


def is_repetition(row: Operation | None) -> bool:
    """Whether an operation with this row of DECONVNET only passes on or moves its input, in evaluation."""
    if row is None:
        return False
    passes_on = row.back in (through, through_dropout) and row.window is POINTWISE
    return passes_on or row.window is moved_window


def moves_axes(operation: str) -> bool:
    """Whether an operation of that name exchanges axes, so that the second may no longer hold the maps."""
    moving = ("permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "t", "einsum")
    return operation in (*moving, *TURNED)


BUILT_ON: list[dict[Any, Operation]] = []  # the rule sets that extend DECONVNET


def rule(
    *operations: Any, window: Window | Callable[[Step], Window | None] | None = None, reads_input: bool = False
) -> Callable[[Back], Back]:
    """Add a rule for operations to DECONVNET, and to EXTENDED; a Deconvnet that exists already keeps its own.

    It decorates a function of the step and the signal at its output, which returns the signal at its input: one for
    each input, if there are several.

    Args:
        operations: module types, functions, or methods such as `Tensor.add`.
        window: see `Operation`; None leaves the window as it is.
        reads_input: whether the rule reads `step.inputs`.
    """

    def register(back: Back) -> Back:
        for operation in operations:
            row = DECONVNET.get(operation)
            for rules in (DECONVNET, *BUILT_ON):
                rules[operation] = Operation(back, window or (row and row.window), reads_input)
        return back

    return register
