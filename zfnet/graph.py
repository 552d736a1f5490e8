"""A traced model: the list of its steps (modules, functions, methods), in the order in which a tensor meets them.

A model is traced once and never modified: nothing is hooked or replaced. The graph is executed step by step through a
callback. In-place operations work on a copy if their input is needed later, and an operation with several outputs is
split into one step for each output.
"""

import inspect
import operator
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from zfnet.aliases import Aliases
from zfnet.attention import multihead_attention
from zfnet.checks import Pair, device_and_dtype, in_eval_mode, pair, undifferentiated
from zfnet.errors import InputError, first_line, unknown_name, with_article
from zfnet.identity import digest, network_identity, printed
from zfnet.operations import (
    DECONVNET,
    SIGNATURES,
    SPLITS,
    SWITCHED,
    TURNED,
    Layout,
    Rules,
    Step,
    layout_behind,
    maps_at_the_end,
    maps_second,
    moves_axes,
    named,
    piece,
    pool_arguments,
    switches_of,
    with_maps_first,
    written,
)
from zfnet.switches import pool
from zfnet.tracing import (
    Tracer,
    call,
    first_channels,
    gives_number,
    runs_torchs_forward,
    tells_shape,
    unwrapped,
    usual_size,
)
from zfnet.verification import verified
from zfnet.windows import WHOLE, Window, maps_first, maps_last


class Shapes(Mapping[fx.Node, torch.Size]):
    """The shape of each step's maps (1, C, H, W) or units (1, C), for one image of some size, and the window that it
    reads by.

    Networks may keep maps along the last axis, as (N, H, W, C) or as tokens (N, T, C); `maps` gives all of them alike.
    The places of tokens are rows of one column.
    """

    def __init__(self) -> None:
        self.outputs: dict[fx.Node, torch.Size] = {}  # as the steps give them
        self.layouts: dict[fx.Node, Layout] = {}
        self.numbers: dict[fx.Node, Any] = {}  # what the others give: sizes, parameters and what is made of them
        self.windows: dict[fx.Node, Window | None] = {}
        self.paths: dict[fx.Node, Window | None] = {}  # the windows of what a signal comes back through
        self.places: dict[fx.Node, Any] = {}  # the windows that its units depend on: see deconvnet._Located.by_window
        self.fields: dict[fx.Node, Any] = {}  # of the maps of each step: see receptive_fields.map_fields

    def __getitem__(self, node: fx.Node) -> torch.Size:
        shape = self.outputs[node]
        if not self.last(node):
            return shape
        return torch.Size((shape[0], shape[-1], *shape[1:-1], *[1] * (len(shape) == 3)))

    def last(self, node: fx.Node) -> bool:
        """Whether the step's maps lie along the last axis of its output."""
        dimensions = len(self.outputs.get(node, ()))
        if dimensions < 3 or node not in self.layouts:
            return False
        layout = self.layouts[node]
        if not layout.maps:  # of a single map the places tell
            return layout.is_like(maps_at_the_end(dimensions)) and not layout.is_like(maps_second(dimensions))
        return layout.maps == {dimensions - 1}

    def are_maps(self, node: fx.Node) -> bool:
        """Whether a step gives, for each image, feature maps or fully connected units."""
        shape = self.outputs.get(node, torch.Size())
        if len(shape) not in (2, 3, 4) or shape[0] != 1:
            return False
        if len(shape) == 2 or self.last(node):
            return True
        maps, rows, columns = self.layouts[node]
        return len(shape) == 4 and (not maps or 1 in maps) and maps - {1} <= rows | columns

    def in_order(self, node: fx.Node) -> bool:
        """Whether the places of its maps lie as in the image: not so where windows are cut out and set side by side."""
        return any(self.layouts[node].is_like(kind(len(self.outputs[node]))) for kind in (maps_second, maps_at_the_end))

    def maps(self, node: fx.Node, output: Tensor) -> Tensor:
        """The output of a step as maps (N, C, H, W), in the same memory; units (N, C) as they are."""
        return maps_first(output) if self.last(node) else output

    def own(self, node: fx.Node, maps: Tensor) -> Tensor:
        """The inverse of `maps`."""
        return maps_last(maps, len(self.outputs[node])) if self.last(node) else maps

    def __iter__(self) -> Iterator[fx.Node]:
        return iter(list(self.outputs))  # another thread may add some

    def __len__(self) -> int:
        return len(self.outputs)


class Graph:
    """A model as the list of its steps, each under torchvision's graph name (`features.12`, `layer4.1.add`).

    Everything that takes a model also takes its graph: make one to trace the model once. Threads may share it.

    Args:
        model: wrappers (DataParallel, `torch.compile`) are looked into.
        operations: what is known of operations; a module type that is in it is one step.
        verify: compare the graph with the model itself, before anything is said about images of a size (see
            `verification.py`); it costs two to three forward passes of one image, once for each
            size.
        image_size: of the images for which conditions on sizes are looked up, pixels; None: that which the model says
            it is made for, or 224 x 224. For others, of which a condition comes out otherwise, the graph is refused.
        inputs: values for further arguments of `forward`, by name; without them the defaults are taken.

    Raises:
        InputError: for a model whose control flow depends on the data, or that writes into parts of its tensors.
    """

    def __init__(
        self,
        model: nn.Module,
        operations: Rules = DECONVNET,
        *,
        verify: bool = True,
        image_size: int | Pair | None = None,
        **inputs: Any,
    ):
        if not isinstance(model, nn.Module):
            raise InputError(f"the model is {with_article(model)}; give a torch.nn.Module")
        self.model = unwrapped(model)
        self.operations = dict(operations)
        self.image_size = usual_size(self.model) if image_size is None else pair(image_size)
        tracer = Tracer(self.model, self._is_leaf, inputs, self._example)
        try:
            with undifferentiated(self.model):
                graph = tracer.trace(in_eval_mode(self.model, apart=True))
        except InputError:
            raise
        except Exception as error:  # the model's own code runs here, and may raise anything
            raise InputError(
                f"{type(self.model).__name__} cannot be traced{tracer.failed} ({first_line(error)}); a deconvnet needs "
                "a model without control flow that depends on the data: make that part a module with a rule of its own"
            ) from error
        self._constants, self.guards = tracer.constants, dict(tracer.guards)
        self.given_inputs, self._verify = inputs, verify
        self.names: dict[fx.Node, str] = {}
        self.nodes: list[fx.Node] = []
        self.carriers: set[fx.Node] = set()  # the steps that depend on what is in the image, not on its size alone
        self._overwrites: set[fx.Node] = set()
        self._memory: dict[fx.Node, fx.Node] = {}  # the first of the steps whose outputs share memory
        self._read(graph, tracer.names())
        self.returned = next(node.args[0] for node in graph.nodes if node.op == "output")
        self.output = self._first_output(graph)
        self.inputs = [node for node in self.nodes if node.op == "placeholder"]
        self._by_name = {self.names[n]: n for n in self.nodes if n.op.startswith("call") and n in self.carriers}
        self._shapes: dict[Pair, Shapes] = {}
        self._lock = threading.RLock()  # of _shapes
        self._channels: int | None = None

    def _is_leaf(self, module: nn.Module) -> bool:
        of_its_class = type(module) in self.operations and "forward" not in vars(module)
        return of_its_class or runs_torchs_forward(module)

    def _example(self) -> Tensor:
        """An image of the size at which conditions on sizes are looked up; `shapes` checks them for others."""
        return torch.zeros(1, first_channels(self.model), *self.image_size, **device_and_dtype(self.model))

    # -- reading the traced graph

    def _first_output(self, graph: fx.Graph) -> fx.Node:
        """The step whose value the model returns; of several, the first that carries a signal."""
        (output,) = (node for node in graph.nodes if node.op == "output")
        return next((node for node in output.all_input_nodes if node in self.carriers), self.nodes[-1])

    def _read(self, graph: fx.Graph, names: Mapping[fx.Node, str]) -> None:
        memory, aliases = self._memory, Aliases(self._key, self.refuse_write)
        for node in graph.nodes:
            if node.op == "output" or self._taken_apart(node, names):
                continue
            if not node.args and "input" in node.kwargs:  # torch's name for the first argument
                node.kwargs, node.args = {k: v for k, v in node.kwargs.items() if k != "input"}, (node.kwargs["input"],)
            if node.target is operator.setitem:
                x, index, value = node.args
                node.target, node.args = written, (x, value, operator.getitem, (index,), {})
            out = node.kwargs.get("out")
            if isinstance(out, fx.Node):  # it becomes a step whose output takes the place of another
                node.kwargs, node.meta["in_place"] = {k: v for k, v in node.kwargs.items() if k != "out"}, True
            elif out is not None:
                raise InputError(f"{node.name} of {type(self.model).__name__} writes to out=: write it without out=")
            self.nodes.append(node)
            self.names[node] = self.names.get(node) or names.get(node, node.name)
            source = out or (node.args[0] if node.args else None)
            if isinstance(source, fx.Node) and self._changes_in_place(node):
                memory[node] = memory[source]
                self._check_root(node, memory[source])
                for number, added in enumerate(aliases.write(node, source)):
                    self.names[added] = f"{self.names[node]}_written_{number}"
                if not node.meta.get("in_place"):
                    self._overwrites.add(node)
            else:
                memory[node] = memory[source] if isinstance(source, fx.Node) and aliases.may_view(node) else node
                aliases.add(node)
            if node.op == "placeholder" or self.carriers.intersection(node.all_input_nodes):
                decided = tells_shape(node) or node.target is switches_of
                self.carriers.update(() if decided else (node,))

    def _taken_apart(self, node: fx.Node, names: Mapping[fx.Node, str]) -> bool:
        """Whether the step gives several tensors; then each of its readers is made to compute the piece it reads."""
        split = self._key(node)
        if node.op == "placeholder" or not node.users:
            return False
        if any(user.target is not operator.getitem or not isinstance(user.args[1], int) for user in node.users):
            return False
        if not node.args:  # all are given by name
            return self._takes_attention(node, names)
        if split in SPLITS:
            for user in list(node.users):
                user.target, user.kwargs = piece, node.kwargs
                user.args = (node.args[0], split, user.args[1], *node.args[1:])
            return True
        if self._takes_attention(node, names):
            return True
        argument, row = self.arguments(node, node.args, node.kwargs), self.lookup(SWITCHED, node)
        if row is None or not (argument("return_indices", False) or self.operation(node).endswith("with_indices")):
            return False
        pooling, defaults = row
        arguments = pool_arguments(argument, defaults)
        for user in list(node.users):
            if user.args[1] == 0:
                values = F.max_pool2d if pooling is pool else F.adaptive_max_pool2d
                user.target, user.args, user.kwargs = values, (node.args[0],), arguments
                self.names[user] = names.get(node, node.name)
            else:
                user.target, user.args = switches_of, (node.args[0], pooling, arguments)
        return True

    def _takes_attention(self, node: fx.Node, names: Mapping[fx.Node, str]) -> bool:
        """Whether the step is attention of which only the first output is read; then its readers compute that."""
        module = self.module(node)
        if type(module) is not nn.MultiheadAttention or any(u.args[1] != 0 and u.users for u in node.users):
            return False
        order = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights")
        given = dict(zip(order, node.args, strict=False)) | node.kwargs
        inputs = [given.pop(name) for name in order[:3]]
        for user in list(node.users):
            if user.args[1] != 0:  # as of `out, _ = attention(...)`
                user.graph.erase_node(user)
                continue
            arguments: Any = (*inputs, module, given)
            user.target, user.args = multihead_attention, arguments
            self.names[user] = names.get(node, node.name)
        return True

    def _changes_in_place(self, node: fx.Node) -> bool:
        """Whether the step overwrites its first input."""
        if node.meta.get("in_place"):
            return not gives_number(node)  # `n += 1` gives another number
        module = self.module(node)
        if module is not None:
            return getattr(module, "inplace", False) is True
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):
            return True
        return node.op == "call_function" and bool(self.arguments(node, node.args, node.kwargs)("inplace", False))

    def _check_root(self, node: fx.Node, root: fx.Node) -> None:
        """Raises InputError if a step overwrites a parameter or buffer."""
        if root.op == "get_attr" and root.target not in self._constants:
            raise InputError(
                f"{self.names[node]} ({self.operation(node)}) of {type(self.model).__name__} writes to {root.target}, "
                "so its answers would change from call to call: keep forward from changing the model in evaluation"
            )

    def shares_memory(self, one: fx.Node, other: fx.Node) -> bool:
        """Whether one step's output is, or may be, a view of the other's, or both of a third's."""
        return self._memory[one] is self._memory[other]

    def refuse_write(self, node: fx.Node, other: fx.Node) -> InputError:
        """The error for a step that overwrites the output of another, which is read later."""
        reader = next((user.name for user in other.users if user > node), "a step")
        return InputError(
            f"{self.names[node]} ({self.operation(node)}) of {type(self.model).__name__} works in place on memory that "
            f"{reader} reads later as {self.names[other]}: write it without the in-place operation"
        )

    def identity(self) -> dict[str, str]:
        """The identity of the steps' values: the model's `architecture` and `weights`, and the `steps`.

        The steps cover what classes and settings do not: the code of `forward`, values passed to it, functions, hooks.
        """
        text = [
            (self.names[node], node.op, self.operation(node), printed((node.args, node.kwargs))) for node in self.nodes
        ]
        with undifferentiated(self.model):
            return network_identity(self.model) | {"steps": digest(text, self._constants)}

    # -- steps by name

    @property
    def layers(self) -> list[str]:
        """The names of the steps that compute something of the image, in order."""
        return list(self._by_name)

    def name(self, layer: str | nn.Module) -> str:
        """The name of a layer: a name stays as it is; a module has the name that its model gives it."""
        if isinstance(layer, str):
            return layer
        for name, module in self.model.named_modules():
            if module is layer:
                return str(name)
        raise InputError(f"the layer {type(layer).__name__} is not a module of this {type(self.model).__name__}")

    def node(self, layer: str | nn.Module) -> fx.Node:
        """The step of a layer: a graph name, the module itself, or a module's name, which stands for its last step."""
        name = self.name(layer)
        if name in self._by_name:
            calls = [node for node in self.nodes if node.op == "call_module" and node.target == name]
            if not isinstance(layer, str) and len(calls) > 1:
                raise InputError(f"the module {name} is used more than once: name its step, {name}, {name}_1, ...")
            return self._by_name[name]
        names = self.layers
        within = [n for n, other in enumerate(names) if other.startswith(f"{name}.")]
        if name and within and within[-1] - within[0] + 1 == len(within):
            steps = [self._by_name[names[n]] for n in within]
            candidates = [
                step for step in steps if step.users.keys() - steps
            ]  # a hook may have steps that nobody reads
            return (candidates or steps)[-1]
        raise unknown_name(f"layer of {type(self.model).__name__}", name, names)

    def check_maps(self, node: fx.Node, shapes: Shapes) -> None:
        """InputError if a step's output is neither feature maps nor fully connected units."""
        if shapes.are_maps(node):
            return
        gives = f"a tensor of shape {tuple(shapes.outputs[node])}" if node in shapes else "several tensors"
        raise InputError(
            f"{self.names[node]} ({self.operation(node)}) gives {gives}; choose a layer that gives feature maps "
            "(images, maps, rows, columns) or (images, rows, columns, maps), tokens (images, tokens, maps), or fully "
            "connected units (images, units)"
        )

    # -- what a step is

    def overwrites(self, node: fx.Node) -> bool:
        """Whether the step works in place, on its first input."""
        return node in self._overwrites

    def module(self, node: fx.Node) -> nn.Module | None:
        return self.model.get_submodule(str(node.target)) if node.op == "call_module" else None

    def operation(self, node: fx.Node) -> str:
        """The name of the step's operation: `Conv2d`, `relu`, `add`."""
        module = self.module(node)
        if module is not None:
            return type(module).__name__
        turned = node.target is getattr and node.args[1] in TURNED
        target = node.args[1] if node.target is piece or turned else node.target
        return target if isinstance(target, str) else getattr(target, "__name__", str(target))

    def kind(self, node: fx.Node) -> str:
        """What `operation` is a kind of: of a module, the class whose `forward` it runs."""
        if node.op != "call_module":
            return self.operation(node)
        return next(str(kind.__name__) for kind in self._key(node).__mro__ if "forward" in vars(kind))

    def _key(self, node: fx.Node) -> Any:
        if node.op == "call_module":
            return type(self.model.get_submodule(str(node.target)))
        if node.target is getattr and node.args[1] in TURNED:
            return getattr(Tensor, str(node.args[1]))
        return getattr(Tensor, str(node.target), None) if node.op == "call_method" else node.target

    def lookup(self, table: Mapping[Any, Any], node: fx.Node) -> Any:
        """The row of a table of operations for this step, or None: of a module, that of the class whose `forward` it
        runs."""
        key = self._key(node)
        if node.op != "call_module":
            return table.get(key) or table.get(f"{getattr(key, '__module__', '')}.{getattr(key, '__name__', '')}")
        for ancestor in key.__mro__:
            if ancestor in table:
                return table[ancestor]
            if "forward" in vars(ancestor):
                return None
        return None

    def arguments(self, node: fx.Node, args: Any, kwargs: Any) -> Callable[..., Any]:
        """A function of a name and a default: the step's argument, wherever it was given, in `args` and `kwargs`."""
        module = self.module(node)
        if module is not None:
            return lambda name, default=None: getattr(module, name, default)
        bound = dict(zip(_signature(self._key(node)), args, strict=False)) | dict(kwargs)
        if "axis" in bound:  # NumPy's name, which torch takes too
            bound["dim"] = bound["axis"]
        return lambda name, default=None: bound.get(name, default)

    def argument(self, node: fx.Node, name: str, default: Any = None) -> Any:
        """An argument of a step by name, as the graph has it."""
        return self.arguments(node, node.args, node.kwargs)(name, default)

    def is_given(self, node: fx.Node) -> bool:
        """Whether it is a parameter, a buffer or a constant, which is there before anything runs."""
        return node.op == "get_attr"

    def given(self, node: fx.Node) -> Any:
        """The parameter, buffer or constant."""
        if node.target in self._constants:
            return self._constants[str(node.target)].to(device_and_dtype(self.model)["device"])
        return operator.attrgetter(str(node.target))(self.model)

    def path(self, last: Collection[fx.Node]) -> list[fx.Node]:
        """The steps that `last` depend on, and they themselves, in order."""
        needed = set(last)
        for node in reversed(self.nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
        return [node for node in self.nodes if node in needed]

    def reads_sizes(self, last: fx.Node) -> bool:
        """Whether steps up to `last` take the sizes of tensors, which tell how many images there are."""
        sources = {source for node in self.path([last]) for source in node.all_input_nodes}
        return any(source not in self.carriers and not self.is_given(source) for source in sources)

    # -- running

    def run(
        self,
        images: Tensor,
        last: Collection[fx.Node],
        apply: Callable[[fx.Node, Any, Any], Any],
        keep: Collection[fx.Node] = (),
        read: Callable[[fx.Node, fx.Node, Any], Any] = lambda node, source, value: value,
        steps: Collection[fx.Node] | None = None,
    ) -> dict[fx.Node, Any]:
        """Run the steps up to `last` on images and return their values and those to `keep`.

        Args:
            images: (N, C, H, W).
            apply: computes a step from its arguments.
            read: what a step sees of a source's value.
            steps: of those that carry a signal, run these alone; the value of another is None.
        A value is freed after its last reader. An InputError names the step that failed.
        """
        path, keep = self.path(last), {*keep, *last}  # in place, a later step would overwrite what is returned
        if steps is not None:
            path = [node for node in path if node in steps or node not in self.carriers]
        left = dict.fromkeys(path, 0)
        for node in path:
            for source in node.all_input_nodes:
                left[source] = left.get(source, 0) + 1
        values: dict[fx.Node, Any] = {}
        for node in path:
            if node in self.inputs:
                values[node] = images
            elif self.is_given(node):
                values[node] = self.given(node)
            else:
                self._run_step(node, values, left, keep, apply, read, images.shape)
            for source in node.all_input_nodes:
                left[source] -= 1
                if not left[source] and source not in keep:
                    values.pop(source, None)
        return values

    def _run_step(
        self,
        node: fx.Node,
        values: dict[fx.Node, Any],
        left: Mapping[fx.Node, int],
        keep: Collection[fx.Node],
        apply: Callable[[fx.Node, Any, Any], Any],
        read: Callable[[fx.Node, fx.Node, Any], Any],
        shape: torch.Size,
    ) -> None:
        overwritten, original = node.args[0] if node in self._overwrites else None, None
        if isinstance(overwritten, fx.Node) and (left[overwritten] > 1 or self._is_kept(overwritten, keep, values)):
            original = values[overwritten]
            values[overwritten] = original.clone()
        seen = {source: read(node, source, values.get(source)) for source in node.all_input_nodes}
        args, kwargs = fx.map_arg((node.args, node.kwargs), seen.__getitem__)
        try:
            values[node] = apply(node, args, kwargs)
        except torch.OutOfMemoryError:
            raise
        except InputError:
            raise
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
            raise InputError(
                f"{self.names[node]} ({self.operation(node)}) of {type(self.model).__name__} fails on images of shape "
                f"{tuple(shape)}: {first_line(error)}"
            ) from error
        if original is not None:
            values[overwritten] = original  # type: ignore[index]

    def _is_kept(self, node: fx.Node, keep: Collection[fx.Node], values: Mapping[fx.Node, Any]) -> bool:
        """Whether a step's memory holds a value that is to be kept, its own or that of a step it is a view of.

        Images are the caller's, constants the model's.
        """
        memory = self._memory[node]
        if memory.op in ("placeholder", "get_attr"):
            return True
        return any(other in values and self._memory.get(other) is memory for other in keep)

    def call(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Run the step as the model does."""
        return call(self.model, node, args, kwargs)

    # -- shapes and windows

    @property
    def channels(self) -> int:
        """How many channels the images have that the model reads, found by trying its first convolution."""
        if self._channels is None:
            first = next((n for n in self.nodes if n in self.carriers and self._key(n) in _CONVOLUTIONS), None)
            guess = first_channels(self.model)
            self._channels = next((c for c in (guess, 3, 1, *range(2, 65)) if first and self._runs(first, c)), guess)
        return self._channels

    def _runs(self, node: fx.Node, channels: int) -> bool:
        try:
            with undifferentiated(self.model):
                self.run(torch.zeros(1, channels, 64, 64, **device_and_dtype(self.model)), [node], self.call)
        except InputError:
            return False
        return True

    def shapes(self, image_size: Pair, last: fx.Node) -> Shapes:
        """The output shape of each step up to `last`, for one image of that size.

        Raises:
            InputError: if the graph does not do what the model does with such images.
        """
        image_size = pair(image_size)
        if min(image_size) < 1:
            raise InputError(
                f"images of {image_size[0]} x {image_size[1]} pixels; give at least one row and one column"
            )
        with self._lock:
            known = self._shapes.get(image_size, Shapes())
            if last not in known.outputs and last not in known.numbers:
                with undifferentiated(self.model):
                    values = self._tried(image_size, last)
                for node, value in values.items():
                    if isinstance(value, Tensor) and node in self.carriers:
                        known.outputs[node] = value.shape
                    elif not self.is_given(node):
                        known.numbers[node] = value
                self._find_layouts(known)
                self._shapes[image_size] = known  # now that nothing was refused
        return known

    def _find_layouts(self, shapes: Shapes) -> None:
        """Along which axes the maps and places of each step lie."""
        for node in self.nodes:
            if node in shapes.layouts or node not in shapes.outputs:
                continue
            sources = [node, *self._sources(node, shapes)]
            usual = {source: maps_second(len(shapes.outputs[source])) for source in sources}
            before = [shapes.layouts.get(source, usual[source]) for source in sources[1:]]
            plain = before == [usual[source] for source in sources[1:]]
            plain = plain and all(len(shapes.outputs[source]) < 5 for source in sources)
            if plain and not moves_axes(self.operation(node)):
                shapes.layouts[node] = usual[node]
            else:
                with undifferentiated(self.model):
                    shapes.layouts[node] = layout_behind(self.step(node, shapes), before)

    def _tried(self, image_size: Pair, last: fx.Node) -> dict[fx.Node, Any]:
        """The values of the steps up to `last`, and maybe of others, on an image of that size."""
        try:
            image = torch.zeros(1, self.channels, *image_size, **device_and_dtype(self.model))
        except RuntimeError as error:
            raise InputError(f"no memory for an image of {image_size[0]} x {image_size[1]} pixels") from error
        if self._verify and not image.is_meta:
            return verified(self, image, last)
        path = self.path([last, *self.guards])
        values = self.run(image, path, self.call, path)
        self.check_guards(values)
        return values

    def check_guards(self, values: Mapping[fx.Node, Any]) -> None:
        """Raises InputError if conditions on the sizes of tensors have other values than in the trace."""
        size = values[self.inputs[0]].shape
        for node, assumed in self.guards.items():
            if node in values and bool(values[node]) != assumed:
                raise InputError(
                    f"{type(self.model).__name__} takes another path for images of {size[-2]} x {size[-1]} pixels: its "
                    "control flow depends on their size; give Graph(model, image_size=...)"
                )

    def check_size(self, images: Tensor, last: Iterable[fx.Node]) -> None:
        """InputError if the graph does not do what the model does with images (N, C, H, W) of this size, up to
        `last`."""
        for node in last:
            self.shapes(pair(images.shape[-2:]), node)

    def _sources(self, node: fx.Node, shapes: Shapes) -> list[fx.Node]:
        return [source for source in node.all_input_nodes if source in shapes]

    def step(self, node: fx.Node, shapes: Shapes) -> Step:
        """A step as it is in the model, for images of the size that `shapes` is of."""

        def known(source: fx.Node) -> Any:
            return self.given(source) if self.is_given(source) else shapes.numbers.get(source, source)

        sources = self._sources(node, shapes)
        args, kwargs = fx.map_arg((node.args, node.kwargs), known)

        def call(*inputs: Tensor) -> Any:
            values = dict(zip(sources, inputs, strict=True))
            filled = fx.map_arg((node.args, node.kwargs), lambda n: values[n] if n in values else known(n))
            return self.call(node, *filled)

        return Step(
            self.names[node],
            self.operation(node),
            self.kind(node),
            self.module(node),
            node,
            sources,
            [shapes.outputs[source] for source in sources],
            shapes.outputs[node],
            self.arguments(node, args, kwargs),
            call,
            [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)],
            lookup=self.lookup,
        )

    def _seen(self, node: fx.Node, shapes: Shapes) -> Step:
        """A step as its window sees it: the maps of all that it reads and gives lie along the second axis."""
        step = self.step(node, shapes)
        return with_maps_first(step, [shapes.last(source) for source in step.sources], shapes.last(node))

    def window(self, node: fx.Node, shapes: Shapes) -> Window | None:
        """How one output of this step reads its input, for images of the size that `shapes` is of; None if it is not
        known."""
        if node not in shapes.windows:
            rows = (self.lookup(table, node) for table in (self.operations, DECONVNET))
            window = next((row.window for row in rows if row is not None and row.window is not None), None)
            if len(shapes[node]) < 3:
                window = WHOLE  # units without a place
            elif not all(source in shapes for source in node.all_input_nodes if source in self.carriers):
                window = None  # it reads several tensors at once
            elif window is not None and not isinstance(window, Window):
                with torch.no_grad():
                    window = window(self._seen(node, shapes))
            elif window is not WHOLE and any(
                shapes[s][-2:] != shapes[node][-2:] for s in node.all_input_nodes if s in shapes
            ):
                window = None
            if window is None and shapes.last(node) and len(shapes.outputs[node]) == 3:
                window = WHOLE  # where in the image a token is from, is not followed
            shapes.windows[node] = window
        return shapes.windows[node]

    def path_window(self, node: fx.Node, shapes: Shapes) -> Window | None:
        """The window of what a signal comes back through; that of `window`, where the step decides nothing."""
        if node not in shapes.paths:
            row = self.lookup(self.operations, node)
            path = None if row is None or len(shapes[node]) < 3 else row.path
            if path is not None and not isinstance(path, Window):
                path = path(self._seen(node, shapes))
            shapes.paths[node] = path or self.window(node, shapes)
        return shapes.paths[node]


_CONVOLUTIONS = named("nn.Conv2d F.conv2d torch.conv2d nn.ConvTranspose2d F.conv_transpose2d")


def _signature(function: Any) -> tuple[str, ...]:
    if function in SIGNATURES:
        return SIGNATURES[function]
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a function that is not written in Python
        return ()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)


def graph_of(model: "nn.Module | Graph") -> Graph:
    """The graph of a model, traced unless it was."""
    return model if isinstance(model, Graph) else Graph(model)
