"""EXTENDED: a deconvnet for networks with other activations than ReLU. It is an extension of the paper.

A deconvnet keeps what the forward pass *decided* and transposes the rest. Max pooling decides which input wins, and the
switches keep that. A gate, the statistics of a normalisation and the weights of an attention map are decisions of the
forward pass, too. With these fixed, the rest is linear:

    activation that is nearly a ReLU (SiLU, GELU, ...)  -> rectify the signal, as at a ReLU
    feature map times a gate                            -> the signal times the gate; the gate itself gets none
    layer, RMS, group, instance normalisation           -> the signal times the scale that the statistics gave
    attention                                           -> the attention weights, transposed, to the values alone

`docs/rules.md` derives each rule and says what is lost.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from zfnet.attention import multihead_attention, value_path
from zfnet.operations import (
    BUILT_ON,
    DECONVNET,
    DROPOUTS,
    GRADIENT,
    GROUP_NORMS,
    GUIDED,
    LAYER_NORMS,
    MOVES,
    RECTIFIERS,
    RMS_NORMS,
    SHIFTED_ATTENTION,
    TURNED,
    UNCHANGED,
    Operation,
    Part,
    Rules,
    Step,
    gradient,
    group_norm,
    named,
    normalized_shape,
    scale,
    the_input,
    through,
    unevenly,
    vector_jacobian,
    wide,
)
from zfnet.windows import POINTWISE, WHOLE, Window

SMOOTH = named(
    "nn.SiLU F.silu nn.GELU F.gelu nn.Mish F.mish nn.Hardswish F.hardswish nn.ELU F.elu F.elu_ nn.SELU F.selu F.selu_ "
    "torch.selu torch.selu_ nn.CELU F.celu F.celu_ torch.celu torch.celu_ nn.Softplus F.softplus"
)
LEAKY = named(
    "nn.LeakyReLU F.leaky_relu F.leaky_relu_ nn.PReLU F.prelu torch.prelu Tensor.prelu nn.RReLU F.rrelu torch.rrelu"
)
GATES = named(  # what a gate ends in
    "nn.Sigmoid F.sigmoid torch.sigmoid torch.sigmoid_ Tensor.sigmoid Tensor.sigmoid_ nn.Hardsigmoid F.hardsigmoid "
    "nn.Tanh F.tanh torch.tanh torch.tanh_ Tensor.tanh Tensor.tanh_ nn.Softmax nn.Softmax2d F.softmax torch.softmax "
    "Tensor.softmax"
)
STATISTICS = named("torch.norm Tensor.norm torch.rsqrt Tensor.rsqrt torch.var Tensor.var torch.std Tensor.std")
PRODUCTS = named(
    "operator.mul torch.mul Tensor.mul Tensor.mul_ torch.matmul Tensor.matmul operator.matmul torch.bmm Tensor.bmm "
    "torch.einsum"
)
DIVISIONS = named("operator.truediv torch.div Tensor.div Tensor.div_")
MAXIMA = named("torch.amax Tensor.amax torch.amin Tensor.amin torch.maximum torch.minimum")
GATED = named("nn.GLU F.glu")
ARITHMETIC = named(
    "torch.mean Tensor.mean torch.sum Tensor.sum torch.sqrt Tensor.sqrt operator.add operator.sub operator.neg "
    "operator.mul operator.truediv torch.add torch.sub torch.mul torch.div Tensor.add Tensor.sub Tensor.mul Tensor.div "
    "Tensor.add_ Tensor.sub_ Tensor.mul_ Tensor.div_"
)


def rectify(step: Step, signal: Tensor) -> Tensor:
    if len(step.sources) != 1:
        raise step.refuse(" whose weights depend on the image")
    return signal.clamp(min=0)


def slope(step: Step, signal: Tensor) -> Tensor:
    """The transpose of a leaky rectifier, as if every place had the sign of its signal."""
    if len(step.sources) != 1:
        raise step.refuse(" whose weights depend on the image")
    slopes = step.argument("weight")  # of PReLU: one for each map
    if slopes is None and "rrelu" in step.kind.lower():
        slopes = (step.argument("lower", 1 / 8) + step.argument("upper", 1 / 3)) / 2
    elif slopes is None:
        slopes = step.argument("negative_slope", 0.01)
    elif slopes.numel() > 1:
        slopes = slopes.view(1, -1, *[1] * (signal.ndim - 2))
    return torch.where(signal > 0, signal, signal * slopes)


def is_gate(step: Step, source: fx.Node, shape: Sequence[int]) -> bool:
    """Whether a factor of a product is a gate: it ends in a sigmoid or the like, or is one number for all places, or
    for all maps."""
    places = {(shape[first : first + 2], step.output[first : first + 2]) for first in (1, 2)}
    if len(shape) == len(step.output) == 4 and any(own == (1, 1) != whole for own, whole in places):
        return True
    if step.kind in ("mul", "mul_") and len(shape) == len(step.output) == 4:
        alike = [n for n in range(4) if shape[n] == step.output[n]]
        if any(shape[axis] == 1 and alike == [n for n in range(4) if n != axis] for axis in (1, 3)):
            return True
    return _decides(step, source)


def _decides(step: Step, node: fx.Node, mixed: bool = False) -> bool:
    """Whether a tensor is made only of decisions: sigmoids and the like, and statistics, moved, scaled and added.

    Attention weights may also be mixed by linear layers, as those of talking heads are. Behind a sigmoid or a tanh,
    which may be an activation, such a layer gives a feature map.
    """
    if step.lookup(_GATES, node):
        return not mixed or bool(step.lookup(_SOFTMAX_GATES, node))
    mixes = bool(step.lookup(_MIXED, node))
    if not mixes and not step.lookup(_KEPT, node):
        return False
    sources = [source for source in node.all_input_nodes if not _is_constant(source)]
    return bool(sources) and all(_decides(step, source, mixed or mixes) for source in sources)


def _is_constant(node: fx.Node, steps: int = 6) -> bool:
    """Whether a step gives a size, or what is made of parameters in so many steps."""
    if node.op == "get_attr" or node.target == "size" or (node.target is getattr and node.args[1] not in TURNED):
        return True
    return steps > 0 and node.op != "placeholder" and all(_is_constant(n, steps - 1) for n in node.all_input_nodes)


def gates_of(step: Step) -> list[bool]:
    """Which of the tensors that a step reads are gates; where none is, an activation is one, as in a SwiGLU."""
    if step.decided:  # of whole maps, which windows do not tell from places
        return [source in step.decided for source in step.sources]
    gates = [is_gate(step, source, shape) for source, shape in zip(step.sources, step.shapes, strict=True)]
    return gates if any(gates) else [_is_activation(step, source) for source in step.sources]


def _is_activation(step: Step, node: fx.Node) -> bool:
    """Whether a tensor comes from an activation, which nothing has changed since."""
    while step.lookup(_REPEATED, node) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return bool(step.lookup(_ACTIVATIONS, node))


def extends(step: Step, rules: Rules) -> bool:
    """Whether EXTENDED has a rule for a step that this rule set, like DECONVNET, refuses."""
    row, *others = (step.lookup(table, step.node) for table in (EXTENDED, DECONVNET, rules))
    if row is None or row.back is None or row.back in [other.back for other in others if other is not None]:
        return False
    if row.back is hold_divisor:
        return len(step.sources) == 2 and is_gate(step, step.sources[1], step.shapes[1])
    return row.back is not hold_gate or (len(step.sources) == 2 and gates_of(step).count(False) == 1)


def gated_window(step: Step) -> Window | None:
    """The window of a product: the same place of the gated factor, with the gate held fixed; matrices add up places."""
    if step.kind not in ("mul", "mul_"):
        return WHOLE
    if len(step.sources) != 2 or (gates := gates_of(step)).count(False) != 1:
        return None
    if any(len(shape) != len(step.output) for shape in step.shapes):
        return None  # one gate for all images
    gated = step.shapes[gates.index(False)]
    return POINTWISE._replace(decided=(gates.index(True),)) if gated[1:] == step.output[1:] else None


def hold_gate(step: Step, signal: Tensor) -> Sequence[Part]:
    """A feature map times a gate that is held fixed, or times a constant."""
    if len(step.sources) < 2:
        if step.kind == "einsum" or "matmul" in step.kind or step.kind == "bmm":
            return _transposed_product(step, signal)
        return scale(step, signal)
    gates = gates_of(step)
    if gates.count(False) != 1:
        how = "neither of which is a gate" if not any(gates) else "which are both gates"
        raise step.refuse(f" of two feature maps, {how}")
    number = gates.index(False)
    if _operands(step).count(step.sources[number]) > 1:  # of an einsum of three
        raise step.refuse(" of a feature map with itself")
    return _toward(step, signal, number)


def hold_divisor(step: Step, signal: Tensor) -> Sequence[Part]:
    """A feature map by a statistic that is held fixed, or by a constant."""
    rounds = step.argument("rounding_mode")
    if rounds or len(step.sources) < 2 or not is_gate(step, step.sources[1], step.shapes[1]):
        return scale(step, signal)
    return _toward(step, signal, 0)


def _transposed_product(step: Step, signal: Tensor) -> Sequence[Part]:
    if len(_operands(step)) != 1:
        raise step.refuse(" of a feature map with itself")
    return vector_jacobian(step.call, [signal.new_zeros(shape) for shape in step.shapes], signal)


def _operands(step: Step) -> list[fx.Node]:
    """The feature maps among the arguments of a product, each as often as it is there."""
    found: list[fx.Node] = []
    fx.map_arg((step.node.args, step.node.kwargs), lambda node: found.append(node) if node in step.sources else None)
    return found


def _toward(step: Step, signal: Tensor, number: int) -> Sequence[Part]:
    """The transpose of a step that is linear in one of its inputs, while the others are held fixed."""
    parts: list[Part] = [None] * len(step.sources)
    if step.kind in ("mul", "mul_") and step.shapes[number] == signal.shape:
        parts[number] = signal * step.read_input(1 - number)  # the gate alone is read
        return parts
    inputs = step.inputs

    def call(x: Tensor) -> Tensor:
        out: Tensor = step.call(*inputs[:number], x, *inputs[number + 1 :])
        return out

    (parts[number],) = vector_jacobian(call, [torch.zeros_like(inputs[number])], signal)
    return parts


def gated_unit(step: Step, signal: Tensor) -> Tensor:
    """GLU: the first half of the maps, times a sigmoid of the second."""
    (x,) = step.inputs
    dim = step.argument("dim", -1)
    gate = x.chunk(2, dim)[1].sigmoid()
    return torch.cat([signal * gate, torch.zeros_like(signal)], dim)


def layer_norm(step: Step, signal: Tensor) -> Tensor:
    """Multiply by the scale of the forward pass's statistics, held fixed."""
    x = wide(the_input(step))
    dims = tuple(range(-len(normalized_shape(step)), 0))
    eps = step.argument("eps", None if _is_rms(step) else 1e-5)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    power = x.square().mean(dims, keepdim=True) if _is_rms(step) else x.var(dims, correction=0, keepdim=True)
    weight = step.argument("weight")
    held = signal * (power + eps).rsqrt().to(signal.dtype)
    return held if weight is None else held * weight


def norm_path(step: Step) -> Window | None:
    """The same place and map, where the statistics are of more; None where they are of one place, its own window.

    It does not slide where the scale differs from place to place, by weights or by statistics of a row.
    """
    dimensions = len(normalized_shape(step))
    if step.maps_last and dimensions == 1:
        return None
    alike = dimensions >= len(step.output) - (2 if not step.maps_last else 1)
    return POINTWISE if alike and step.argument("weight") is None else unevenly(POINTWISE, step)


def _is_rms(step: Step) -> bool:
    return "rms" in step.kind.lower()


class _HeldAttention(TorchFunctionMode):
    """Treat attention weights as constants in autograd, wherever they are computed."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        return out.detach() if function in _SOFTMAXES else out


_SOFTMAXES = named("F.softmax torch.softmax Tensor.softmax")


def attend_in_windows(step: Step, signal: Tensor) -> Sequence[Part]:
    """torchvision's attention in shifted windows: to the values, by its own code, whose softmax is held fixed."""

    def call(*inputs: Tensor) -> Tensor:
        with _HeldAttention():
            out: Tensor = step.call(*inputs)
        return out

    return vector_jacobian(call, step.inputs, signal)


def attend(step: Step, signal: Tensor) -> Sequence[Part]:
    """Attention of a module: its weights held fixed, the signal goes to the values."""
    query, key, value = (step.argument(name) for name in ("query", "key", "value"))
    inputs = dict(zip(step.sources, step.inputs, strict=True))
    if value not in inputs:
        raise step.refuse(" whose values do not depend on the image")
    tensors = [inputs.get(x, x) for x in (query, key, value)]
    settings = fx.map_arg(step.argument("settings"), lambda source: inputs[source])  # a mask may be of the image
    path = value_path(step.argument("attention"), *tensors, **settings)
    (part,) = vector_jacobian(path, [inputs[value]], signal)
    return [part if source is value else None for source in step.sources]


def attend_to_values(step: Step, signal: Tensor) -> Sequence[Part]:
    """Scaled dot-product attention: its weights held fixed, the signal goes to the values."""
    value = step.argument("value")
    if value not in step.sources:
        raise step.refuse(" whose values do not depend on the image")
    if any(step.argument(name) is value for name in ("query", "key")):
        raise step.refuse(" whose values are its queries or keys")
    return _toward(step, signal, list(step.sources).index(value))


def _rows(operations: Sequence[Any], back: Any, reads_input: bool = False, path: Any = None) -> dict[Any, Operation]:
    """Rows without windows: those of DECONVNET stay."""
    return {key: Operation(back, None, reads_input, path) for key in operations}


_GATES: dict[Any, bool] = dict.fromkeys([*GATES, *STATISTICS], True)
_SOFTMAX_GATES: dict[Any, bool] = dict.fromkeys([gate for gate in GATES if "oftmax" in gate.__name__], True)
_KEPT: dict[Any, bool] = dict.fromkeys([*MOVES, *UNCHANGED, *DROPOUTS, *ARITHMETIC], True)
_REPEATED: dict[Any, bool] = dict.fromkeys([*UNCHANGED, *DROPOUTS], True)
_ACTIVATIONS: dict[Any, bool] = dict.fromkeys([*SMOOTH, *LEAKY, *RECTIFIERS], True)
_MIXED: dict[Any, bool] = dict.fromkeys(
    named("nn.Linear F.linear nn.Conv1d F.conv1d nn.Conv2d F.conv2d nn.BatchNorm2d F.batch_norm"), True
)
EXTENDED: dict[Any, Operation] = DECONVNET | {
    **_rows([*SMOOTH, *LEAKY], rectify),
    **_rows(PRODUCTS, hold_gate, True, gated_window),
    **_rows(MAXIMA, gradient, True),  # to what won
    **_rows(DIVISIONS, hold_divisor, True),
    **_rows(GATED, gated_unit, reads_input=True),
    **_rows([*LAYER_NORMS, *RMS_NORMS], layer_norm, True, norm_path),
    **_rows(GROUP_NORMS, group_norm, True, POINTWISE),
    **_rows([multihead_attention], attend, reads_input=True),
    **_rows([F.scaled_dot_product_attention], attend_to_values, reads_input=True),
    **_rows([SHIFTED_ATTENTION], attend_in_windows, reads_input=True),
}
BUILT_ON.append(EXTENDED)
# alternatives, to be added to EXTENDED
SLOPED: dict[Any, Operation] = _rows(LEAKY, slope)
PASSED_ACTIVATIONS: dict[Any, Operation] = _rows([*SMOOTH, *LEAKY], through)
PASSED_NORMS: dict[Any, Operation] = _rows([*LAYER_NORMS, *RMS_NORMS, *GROUP_NORMS], through)
RULE_SETS: dict[str, dict[Any, Operation]] = {
    "deconvnet": DECONVNET,
    "extended": EXTENDED,
    "gradient": GRADIENT,
    "guided": GUIDED,
}
