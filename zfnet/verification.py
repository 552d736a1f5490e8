"""Compare a traced model with the model itself, to find what tracing does not see.

Both run on one image of noise. The inputs and outputs of every module, and the model's output, must be equal; this also
finds writes that do not reach the output. The model runs as a twin in eval mode with recording hooks: the model itself
does not change. Every step of the graph keeps its input, as when all layers are recorded. A step that writes where the
graph does not expect it raises an error that names it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from zfnet.checks import in_eval_mode
from zfnet.errors import InputError, first_line

Graph = Any  # of graph.py, which imports this file
_PRECISION = {torch.float64: 1e-8, torch.float32: 1e-4}  # of the largest value; both run the same operations
_COARSE = 2e-2  # of shorter types
_REASONS = "such as a hidden write, random numbers, state that it keeps between calls, or isinstance(x, Tensor)"


def verified(graph: Graph, image: Tensor, wanted: fx.Node) -> dict[fx.Node, Any]:
    """The values of the graph's steps on noise in the shape of an image (1, C, H, W), equal to the model's own.

    If the model fails on images of this size, everything before the failure is compared, and `wanted`. Raises
    InputError if values differ.
    """
    for distribution in (torch.randn, torch.rand):  # what gives NaN, such as a root, hides what comes after it
        noise = distribution(image.shape, generator=torch.Generator().manual_seed(0), device="cpu")
        noise = noise.to(image)
        theirs = _observed(graph, noise)
        if not any(bool(tensor.isnan().any()) for tensor in _tensors(theirs.output)):
            break
    calls = _pairs(graph, theirs)
    last = list(graph.nodes) if theirs.finished else _reached(graph, calls, wanted)
    try:
        values: dict[fx.Node, Any] = graph.run(noise, last, lambda *step: _careful(graph, *step), keep=graph.nodes)
    except InputError:  # a number that was traced may be that of another size
        for guard in graph.guards:
            graph.check_guards(graph.run(noise, [*graph.inputs, guard], graph.call))
        raise
    graph.check_guards(values)
    _check_memory(graph, values)
    for node, call in calls.items():
        if call.output is not None and call.unhooked is not None and not _alike(call.unhooked, call.output):
            raise InputError(
                f"a forward hook changes what {graph.names[node]} ({graph.operation(node)}) of "
                f"{type(graph.model).__name__} gives: remove it, or make a module of what it does"
            )
        source = next((n for n in node.all_input_nodes if n in graph.carriers), None)
        if source is not None and source in values:
            _compare(graph, node, "is given", values[source], call.given)
        if node in values:
            _compare(graph, node, "gives", values[node], call.output)
    if theirs.finished:
        ours = _tensors(fx.map_arg(graph.returned, values.__getitem__))
        expected = _tensors(theirs.output)
        if not _all_alike(ours, expected):
            raise _difference(graph, "the output", "has")
    elif isinstance(values[wanted], Tensor) and wanted not in graph.path(calls):
        with _Search(values[wanted]) as search:
            _run(graph, in_eval_mode(graph.model, apart=True), noise)
        if not search.found:
            size = f"{noise.shape[-2]} x {noise.shape[-1]} pixels"
            raise InputError(
                f"{type(graph.model).__name__} itself fails on images of {size} ({theirs.failure}), and never gives "
                f"what the traced network gives at {graph.names[wanted]} ({graph.operation(wanted)})"
            )
    return values


# ---- the model itself ------------------------------------------------------------------------------------------------


@dataclass
class _Call:
    """A module's input and output; None: not a tensor, or it failed."""

    given: Tensor | None
    output: Tensor | None = None
    unhooked: Tensor | None = None  # what its forward gave, before any hook


@dataclass
class _Observation:
    """The run of the model itself."""

    calls: dict[str, list[_Call]] = field(default_factory=dict)  # by the module's name
    output: Any = None
    failure: str = ""

    @property
    def finished(self) -> bool:
        return not self.failure


def _observed(graph: Graph, noise: Tensor) -> _Observation:
    twin, observation = in_eval_mode(graph.model, apart=True), _Observation()
    for name in {str(node.target) for node in graph.nodes if node.op == "call_module"}:
        _note_calls(twin.get_submodule(name), observation.calls.setdefault(name, []))
    attributes = [_attributes(module) for module in twin.modules()]
    held = {name: tensor.clone() for name, tensor in _held(twin).items()}
    observation.output, observation.failure = _run(graph, twin, noise)
    now = _held(twin)
    if changed := next((name for name, tensor in held.items() if name in now and not _same(now[name], tensor)), None):
        raise InputError(
            f"{type(graph.model).__name__} writes to {changed} when it is run, so its answers may change from call to "
            "call: keep forward from changing the model in evaluation"
        )
    if observation.finished and not all(map(_holds, twin.modules(), attributes)):
        observation.calls = {name: list(calls) for name, calls in observation.calls.items()}
        again, _ = _run(graph, twin, noise)
        if not _all_alike(_tensors(again), _tensors(observation.output)):
            raise InputError(
                f"{type(graph.model).__name__} gives another output when it is called again: keep forward from "
                "changing the model in evaluation"
            )
    return observation


def _attributes(module: nn.Module) -> dict[Any, Any]:
    """A module's attributes, and what its lists, sets and dictionaries hold."""
    attributes: dict[Any, Any] = dict(vars(module))
    for name, value in vars(module).items():
        if isinstance(value, list | set | dict):
            held = value.items() if isinstance(value, dict) else enumerate(value)
            attributes |= {(name, key): entry for key, entry in held}
    return attributes


def _holds(module: nn.Module, attributes: Mapping[Any, Any]) -> bool:
    """Whether a module has still these attributes."""
    now = _attributes(module)
    return now.keys() == attributes.keys() and all(now[name] is attributes[name] for name in attributes)


def _run(graph: Graph, twin: nn.Module, noise: Tensor) -> tuple[Any, str]:
    """The model's output, or the reason of its failure."""
    try:
        return twin(noise.clone(), **graph.given_inputs), ""
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the model's own code: it does not take images of this size
        return None, first_line(error)


class _Search(TorchFunctionMode):
    """Whether any function gives a value."""

    def __init__(self, value: Tensor):
        super().__init__()
        self.value, self.found = value, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.found = self.found or any(_alike(tensor, self.value) for tensor in _tensors(output))
        return output


def _note_calls(module: nn.Module, calls: list[_Call]) -> None:
    """Note what a module of the twin is given and gives, at its call: later steps may overwrite it."""

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        calls.append(_Call(_copy([*args, *kwargs.values()])))

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = unnoted(*args, **kwargs)
        calls[-1].unhooked = _copy(output)
        return output

    def after(module: nn.Module, args: Any, output: Any) -> None:
        calls[-1].output = _copy(output)

    unnoted, module.forward = module.forward, forward
    module.register_forward_pre_hook(before, with_kwargs=True)
    module.register_forward_hook(after)


def _copy(values: Any) -> Tensor | None:
    return next((tensor.clone() for tensor in _tensors(values)), None)


def _tensors(values: Any) -> list[Tensor]:
    """The tensors in what a model takes or returns."""
    if isinstance(values, Tensor):
        return [values]
    parts = values.values() if isinstance(values, Mapping) else values if isinstance(values, Sequence) else ()
    return [] if isinstance(values, str) else [tensor for part in parts for tensor in _tensors(part)]


def _held(model: nn.Module) -> dict[str, Tensor]:
    """The buffers of a model and its modules' other tensors but parameters, by name."""
    return {
        f"{path}.{name}".lstrip("."): tensor
        for path, module in model.named_modules()
        for name, tensor in (*module._buffers.items(), *vars(module).items())
        if isinstance(tensor, Tensor)
    }


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or (one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num()))


# ---- the graph -------------------------------------------------------------------------------------------------------


def _pairs(graph: Graph, observation: _Observation) -> dict[fx.Node, _Call]:
    """The calls of modules by their steps: the first call of a module is its first step."""
    left = {name: iter(calls) for name, calls in observation.calls.items()}
    steps = {node: str(node.target) for node in graph.nodes if node.op == "call_module"}
    counts = {name: sum(target == name for target in steps.values()) for name in left}
    # a module that gives several tensors is a step for each: these are no calls
    known = {name for name, count in counts.items() if observation.finished <= (count == len(observation.calls[name]))}
    pairs = {node: next(left[name], None) for node, name in steps.items() if name in known}
    return {node: call for node, call in pairs.items() if call is not None}


def _reached(graph: Graph, calls: Mapping[fx.Node, _Call], wanted: fx.Node) -> list[fx.Node]:
    """The steps to run of a model that fails, besides `wanted`: those that it has come to."""
    done = [node for node, call in calls.items() if call.output is not None]
    failed = [node for node in calls if node not in done]
    return [wanted, *done, *(source for node in failed for source in node.all_input_nodes), *graph.guards]


def _careful(graph: Graph, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Run a step. Raises InputError if it writes to an input unknown to the graph."""
    inputs = _tensors([*args, *kwargs.values()])
    before = [None if graph.overwrites(node) and x is args[0] else x.clone() for x in inputs]
    output = graph.call(node, args, kwargs)
    if any(copy is not None and not _same(x, copy) for x, copy in zip(inputs, before, strict=True)):
        raise InputError(
            f"{graph.names[node]} ({graph.operation(node)}) of {type(graph.model).__name__} writes to its input: write "
            "it without, or say so with an attribute inplace=True if it is a module"
        )
    return output


def _check_memory(graph: Graph, values: Mapping[fx.Node, Any]) -> None:
    """InputError for a step that works in place on memory that a later step reads by a way unknown to the graph."""
    place = {node: _place(value) for node, value in values.items()}
    for node in graph.nodes:
        source = node.args[0] if node.args else None
        if not graph.overwrites(node) or not isinstance(source, fx.Node) or place.get(source) is None:
            continue
        shared = (n for n in graph.nodes if n < node and n is not source and place.get(n) == place[source])
        for other in shared:
            if not graph.shares_memory(other, source) and any(user > node for user in other.users):
                raise graph.refuse_write(node, other)


def _place(value: Any) -> int | None:
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) and value.layout == torch.strided else None


def _compare(graph: Graph, node: fx.Node, verb: str, ours: Any, theirs: Tensor | None) -> None:
    tensors = _tensors(ours)
    if theirs is not None and tensors and not _alike(tensors[0], theirs):
        raise _difference(graph, f"{graph.names[node]} ({graph.operation(node)})", verb)


def _difference(graph: Graph, what: str, verb: str) -> InputError:
    return InputError(
        f"{what} of the traced {type(graph.model).__name__} {verb} another value than in the model itself: its forward "
        f"does something that tracing does not see, {_REASONS}"
    )


def _all_alike(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(_alike, ours, theirs))


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape or ours.is_floating_point() != theirs.is_floating_point():
        return False
    if torch.equal(ours, theirs) or not ours.is_floating_point():  # mostly they are, to the bit
        return torch.equal(ours, theirs)
    finite = theirs[theirs.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    precision = _PRECISION.get(ours.dtype, _COARSE) * (1 if ours.is_cpu else 10)
    return torch.allclose(ours, theirs, precision, precision * largest, equal_nan=True)
