"""Trace a model once, run it forward step by step, and keep what was asked for.

A model is read with `torch.fx` into a `Graph`: a list of steps (modules, functions, methods) under torchvision's
names, in the order a tensor meets them.  Nothing is hooked or patched: the graph is run by calling each step in turn,
and whoever runs it says, step by step, what is done.  In-place steps are run so that no value that is still wanted is
overwritten.  Steps that give several tensors are read as their pieces, each of which is one step.
"""

import inspect
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from zfnet.checks import device_and_dtype, evaluating, pair
from zfnet.errors import InputError, first_line, unknown_name
from zfnet.switches import adaptive_pool, pool

Numbers = Mapping[fx.Node, Any]  # what steps gave that carry no signal

LEAVES: set[type] = set()  # modules outside torch.nn that are one step: those with a rule of their own
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# positional arguments of functions that hide their signature behind a dispatcher
SIGNATURES: dict[Callable, tuple[str, ...]] = {
    F.max_pool2d: ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    F.avg_pool2d: ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    F.adaptive_max_pool2d: ("input", "output_size", "return_indices"),
    F.adaptive_avg_pool2d: ("input", "output_size"),
    F.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    F.linear: ("input", "weight", "bias"),
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    F.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
    F.hardtanh: ("input", "min_val", "max_val", "inplace"),
    F.pad: ("input", "pad", "mode", "value"),
}
SPLITS = (torch.chunk, Tensor.chunk, torch.split, Tensor.split, torch.unbind, Tensor.unbind, torch.tensor_split)
# methods that tell of a tensor's shape and type, not of its values
_SHAPES = ("size", "dim", "numel", "ndimension", "new_zeros", "new_ones", "new_full", "new_tensor")


class _Tracer(NodePathTracer):
    def is_leaf_module(self, m: nn.Module, qualname: str) -> bool:
        of_torch = any(c.__module__.startswith("torch.nn.modules") and c is not nn.Module for c in type(m).__mro__)
        return type(m) in LEAVES or (of_torch and not isinstance(m, _CONTAINERS))


def _in_place(module: nn.Module | None, node: fx.Node) -> bool:
    """Whether the step overwrites its first input."""
    if module is not None:
        return getattr(module, "inplace", False) is True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_method":
        return name.endswith("_") and not name.endswith("__")
    try:
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments  # type: ignore[arg-type]
    except (TypeError, ValueError):
        given = dict(node.kwargs)
    return bool(given.get("inplace", False)) or (name.endswith("_") and not name.endswith("__"))


def piece(x: Tensor, split: Callable, index: int, *args: Any, **kwargs: Any) -> Tensor:
    """One of the tensors that a step of `SPLITS` gives."""
    return split(x, *args, **kwargs)[index]


class Shapes(dict[fx.Node, torch.Size]):
    """The output shape of each step that carries a signal, for one image of some size."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[fx.Node, Any] = {}  # what the others give: sizes, parameters and what is made of them
        self.orders: dict[fx.Node, Any] = {}  # see receptive_field.rearranged


class Graph:
    """A model as the list of its steps, each under torchvision's graph name (`features.12`, `layer4.1.add`).

    Raises InputError for a model whose control flow depends on the data, or that writes into slices of its tensors.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        tracer = _Tracer()
        try:
            with evaluating(model):
                graph = tracer.trace(model)
        except Exception as error:
            raise InputError(
                f"{type(model).__name__} cannot be traced ({first_line(error)}); a deconvnet needs a model "
                "without control flow that depends on the data: hide that part in a module and register it with @rule"
            ) from error
        self.names: dict[fx.Node, str] = {}
        self.nodes: list[fx.Node] = []
        self.carriers: set[fx.Node] = set()  # the steps that depend on what is in the image, not on its size alone
        self._overwrites: set[fx.Node] = set()
        for node in graph.nodes:
            if node.op == "output" or self._taken_apart(node):
                continue
            self.nodes.append(node)
            self.names[node] = tracer.node_to_qualname.get(node, node.name)
            if _in_place(self.module(node), node):
                # whoever reads the overwritten value later reads the result: say so in the graph
                source, seen = node.args[0], False
                for later in graph.nodes:
                    if seen:
                        later.replace_input_with(source, node)  # type: ignore[arg-type]
                    seen = seen or later is node
                self._overwrites.add(node)
            of_shape = node.op == "call_method" and node.target in _SHAPES
            of_shape |= node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device")  # type: ignore[comparison-overlap, index]
            if (node.op == "placeholder" and not node.args) or self.carriers.intersection(node.all_input_nodes):
                self.carriers.update({node} if not of_shape else ())
        self.inputs = [node for node in self.nodes if node.op == "placeholder" and not node.args]
        self._by_name = {name: node for node, name in self.names.items() if node in self.carriers}
        self._shapes: dict[tuple[int, int], Shapes] = {}

    def _taken_apart(self, node: fx.Node) -> bool:
        """Whether the step gives several tensors; then each of its readers is made to compute the piece it reads."""
        split = getattr(Tensor, str(node.target), None) if node.op == "call_method" else node.target
        if not node.op.startswith("call") or split not in SPLITS or not node.args:
            return False
        if any(user.target is not operator.getitem or not isinstance(user.args[1], int) for user in node.users):
            return False
        for user in list(node.users):
            user.target, user.kwargs = piece, node.kwargs
            user.args = (node.args[0], split, user.args[1], *node.args[1:])  # type: ignore[assignment, arg-type]
        return True

    @property
    def layers(self) -> list[str]:
        """The names of the steps that compute something of the image, in order."""
        return [self.names[n] for n in self.nodes if n.op.startswith("call") and n in self.carriers]

    def overwrites(self, node: fx.Node) -> bool:
        """Whether the step works in place, on its first input."""
        return node in self._overwrites

    def node(self, layer: str) -> fx.Node:
        """The step of that name; InputError lists what there is."""
        if layer not in self._by_name:
            raise unknown_name(f"layer of {type(self.model).__name__}", layer, self.layers)
        return self._by_name[layer]

    def check_maps(self, node: fx.Node, output: Any) -> None:
        """InputError if a step's output, or its shape, is neither feature maps nor fully connected units."""
        shape = getattr(output, "shape", output)
        if not isinstance(shape, torch.Size) or len(shape) not in (2, 4):
            gives = f"a tensor of shape {tuple(shape)}" if isinstance(shape, torch.Size) else "several tensors"
            raise InputError(
                f"{self.names[node]} ({self.operation(node)}) gives {gives}; choose a layer that gives feature maps "
                "(images, maps, rows, columns) or fully connected units (images, units)"
            )

    def module(self, node: fx.Node) -> nn.Module | None:
        return self.model.get_submodule(node.target) if node.op == "call_module" else None  # type: ignore[arg-type]

    def operation(self, node: fx.Node) -> str:
        """What the step is called: `Conv2d`, `relu`, `add`."""
        module = self.module(node)
        if module is not None:
            return type(module).__name__
        return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))

    def lookup(self, table: Mapping[Any, Any], node: fx.Node) -> Any:
        """The row of a table of operations (module types, functions, tensor methods) for this step, or None."""
        module = self.module(node)
        if module is not None:
            return next((table[c] for c in type(module).__mro__ if c in table), None)
        return table.get(getattr(Tensor, node.target, None) if node.op == "call_method" else node.target)  # type: ignore[arg-type]

    def argument(self, node: fx.Node, name: str, default: Any = None, numbers: Numbers | None = None) -> Any:
        """An argument of the step by name, wherever it was given: module attribute, position or keyword.

        numbers: what other steps gave, for arguments that come from them.
        """
        module = self.module(node)
        if module is not None:
            return getattr(module, name, default)
        given = dict(zip(SIGNATURES.get(node.target, ()), node.args, strict=False)) | dict(node.kwargs)  # type: ignore[arg-type]
        known = numbers or {}
        return fx.map_arg(given.get(name, default), lambda n: self.given(n) if self.is_given(n) else known.get(n, n))

    def is_given(self, node: fx.Node) -> bool:
        """Whether it is a parameter, a buffer or a default argument, which is there before anything runs."""
        return node.op == "get_attr" or (node.op == "placeholder" and bool(node.args))

    def given(self, node: fx.Node) -> Any:
        """The parameter, buffer or default argument."""
        return node.args[0] if node.op == "placeholder" else operator.attrgetter(str(node.target))(self.model)

    def path(self, last: Collection[fx.Node]) -> list[fx.Node]:
        """The steps that `last` depend on, and they themselves, in order."""
        wanted = set(last)
        for node in reversed(self.nodes):
            if node in wanted:
                wanted.update(node.all_input_nodes)
        return [node for node in self.nodes if node in wanted]

    def run(
        self,
        images: Tensor,
        last: Collection[fx.Node],
        apply: Callable[[fx.Node, tuple, dict], Any],
        keep: Collection[fx.Node] = (),
        read: Callable[[fx.Node, fx.Node, Any], Any] = lambda node, source, value: value,
    ) -> dict[fx.Node, Any]:
        """Run the steps up to `last` on images and return their values and those to `keep`.

        `apply` computes a step from its arguments; `read` says what a step sees of a source's value.  A value is let go
        after its last reader.  An InputError names the step that failed.
        """
        path = self.path(last)
        left = dict.fromkeys(path, 0)
        for node in path:
            for source in node.all_input_nodes:
                left[source] += 1
        values: dict[fx.Node, Any] = {}
        for node in path:
            if node in self.inputs:
                values[node] = images
            elif self.is_given(node):
                values[node] = self.given(node)
            else:
                if node in self._overwrites and (node.args[0] in keep or left[node.args[0]] > 1):  # type: ignore[arg-type, index]
                    values[node.args[0]], original = values[node.args[0]].clone(), values[node.args[0]]  # type: ignore[index]
                else:
                    original = None
                seen = {source: read(node, source, values[source]) for source in node.all_input_nodes}
                args, kwargs = fx.map_arg((node.args, node.kwargs), seen.__getitem__)  # type: ignore[misc]
                try:
                    values[node] = apply(node, args, kwargs)
                except (RuntimeError, ValueError, IndexError) as error:
                    if isinstance(error, InputError | torch.OutOfMemoryError):
                        raise
                    raise InputError(
                        f"{self.names[node]} ({self.operation(node)}) of {type(self.model).__name__} fails on images "
                        f"of shape {tuple(images.shape)}: too small, or of another size than the network's? "
                        f"{first_line(error)}"
                    ) from error
                if original is not None:
                    values[node.args[0]] = original  # type: ignore[index]
            for source in node.all_input_nodes:
                left[source] -= 1
                if not left[source] and source not in keep and source not in last:
                    del values[source]
        return values

    def call(self, node: fx.Node, args: tuple, kwargs: dict) -> Any:
        """Do what the step does in the model."""
        module = self.module(node)
        if module is not None:
            return module(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)  # type: ignore[arg-type]
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def shapes(self, image_size: tuple[int, int], last: fx.Node) -> Shapes:
        """The output shape of each step up to `last`, for one image of that size."""
        known = self._shapes.setdefault(image_size, Shapes())
        if last not in known:

            def apply(node: fx.Node, args: tuple, kwargs: dict) -> Any:
                out = self.call(node, args, kwargs)
                if isinstance(out, Tensor) and node in self.carriers:
                    known[node] = out.shape
                else:
                    known.numbers[node] = out
                return out

            with evaluating(self.model):
                image = torch.zeros(1, 3, *image_size, **device_and_dtype(self.model))
                known.update((node, image.shape) for node in self.inputs)
                self.run(image, [last], apply)
        return known


def graph_of(model: "nn.Module | Graph") -> Graph:
    """The graph of a model, traced unless it was."""
    return model if isinstance(model, Graph) else Graph(model)


POOL = {"kernel_size": None, "stride": None, "padding": 0, "ceil_mode": False, "dilation": 1}
# max pooling -> how it gives (values, switches), and the arguments that this takes
SWITCHED: dict[Any, tuple[Callable[..., tuple[Tensor, Tensor]], dict[str, Any]]] = {
    nn.MaxPool2d: (pool, POOL),
    F.max_pool2d: (pool, POOL),
    nn.AdaptiveMaxPool2d: (adaptive_pool, {"output_size": None}),
    F.adaptive_max_pool2d: (adaptive_pool, {"output_size": None}),
}


def pool_arguments(graph: Graph, node: fx.Node, numbers: Numbers | None = None) -> dict[str, Any]:
    """The arguments of a max-pooling step, module or function."""
    defaults = graph.lookup(SWITCHED, node)[1]
    given = {name: graph.argument(node, name, default, numbers) for name, default in defaults.items()}
    return given | ({"stride": given["stride"] or given["kernel_size"]} if "stride" in given else {})


def convolution_arguments(graph: Graph, node: fx.Node, numbers: Numbers | None = None) -> dict[str, Any]:
    """The arguments of a convolution, module or function; padding="same" and "valid" in numbers, of rows and columns.

    "same" pads as much on each side, with one more at the end where that does not come out even.
    """
    defaults = {"weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    given = {name: graph.argument(node, name, default, numbers) for name, default in defaults.items()}
    given |= {name: pair(given[name]) for name in ("stride", "dilation")}
    given["padding_mode"] = graph.argument(node, "padding_mode", "zeros")
    if isinstance(given["padding"], str):
        reach = [d * (k - 1) for d, k in zip(given["dilation"], given["weight"].shape[2:], strict=True)]
        given["padding"] = [r // 2 if given["padding"] == "same" else 0 for r in reach]
    return given | {"padding": pair(given["padding"])}
