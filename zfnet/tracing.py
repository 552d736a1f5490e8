"""Read a model with `torch.fx`, under torchvision's names for its steps.

fx calls `forward` with proxies that record operations. This tracer adds what fx does not record: which modules run
torch's own `forward`, that `x += y` changes x, and conditions on the sizes of tensors, which are evaluated for an
example image and recorded as guards.
"""

import functools
import inspect
import operator
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from zfnet.checks import Pair, call_in_eval_mode, makes_weights
from zfnet.errors import InputError, unknown_name

_TORCH = "torch.nn.modules"
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# methods of torch's layers that a subclass may replace without changing what the layer computes
_SETTINGS = {"__init__", "__repr__", "__setstate__", "extra_repr", "reset_parameters", "train", "record"}
# methods and attributes that tell of a tensor's shape and type, not of its values
_NUMBER_METHODS = {"size", "dim", "numel", "ndimension"}
_SHAPE_METHODS = _NUMBER_METHODS | {"new_zeros", "new_ones", "new_full", "new_tensor"}
_SHAPE_FUNCTIONS = (torch.zeros_like, torch.ones_like, torch.full_like)
_SHAPE_ATTRIBUTES = {"shape", "ndim", "dtype", "device"}
_TRACING = threading.Lock()  # fx patches torch.nn.Module while it traces


def runs_torchs_forward(module: nn.Module) -> bool:
    """Whether a module runs the `forward` of a layer of torch's, the methods that this calls, and no hook but torch's.

    Hooks of torch.nn.utils make weights; others may change what comes out.
    """
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    if not all(map(makes_weights, hooks)):
        return False
    if "forward" in vars(module) or isinstance(module, _CONTAINERS):
        return False
    ancestors = type(module).__mro__
    for n, ancestor in enumerate(ancestors):
        of_torch = ancestor.__module__.startswith(_TORCH)
        if "forward" in vars(ancestor):
            return of_torch
        methods = {name for name, value in vars(ancestor).items() if inspect.isfunction(value)} - _SETTINGS
        if not of_torch and any(hasattr(base, name) for base in ancestors[n + 1 :] for name in methods):
            return False
    return False


def tells_shape(node: fx.Node) -> bool:
    """Whether a step gives the shape or type of a tensor, or something made of these alone."""
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    return node.target in _SHAPE_FUNCTIONS or (node.target is getattr and node.args[1] in _SHAPE_ATTRIBUTES)


def gives_number(node: fx.Node) -> bool:
    """Whether a step gives a number made of the sizes of tensors, not a tensor."""
    if node.target in _NUMBER_METHODS or (node.target is getattr and node.args[1] in _SHAPE_ATTRIBUTES):
        return True
    inputs = node.all_input_nodes
    return getattr(node.target, "__module__", "") == "_operator" and bool(inputs) and all(map(gives_number, inputs))


def _of_shapes_alone(node: fx.Node) -> bool:
    if tells_shape(node) or node.op == "get_attr":
        return True
    return bool(node.all_input_nodes) and all(_of_shapes_alone(source) for source in node.all_input_nodes)


def call(model: nn.Module, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Run a step as the model does."""
    if node.op == "call_module":
        return call_in_eval_mode(model.get_submodule(str(node.target)), *args, **kwargs)
    if node.op == "call_method":
        x = args[0].contiguous() if node.target == "view" else args[0]  # a view needs its elements in order
        return getattr(x, str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


class _Proxy(fx.Proxy):
    """`x += y` changes x, which other names may stand for; by itself fx reads it as `x = x + y`. `x[i] = y` changes it
    too, and `x.data` is a view of it."""

    @property
    def data(self) -> fx.Proxy:
        return self.tracer.create_proxy("call_method", "detach", (self,), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {}).node.meta["in_place"] = (
            True
        )

    def __len__(self) -> int:
        tracer: Any = self.tracer
        return len(tracer.value_of_shape(self)) if _of_shapes_alone(self.node) else super().__len__()

    def _number(self) -> Any:
        """The value of a number made of sizes, which Python asks for: that of the example, noted as a guard."""
        tracer: Any = self.tracer
        return tracer.number(self)

    def __int__(self) -> int:
        return int(self._number())

    def __float__(self) -> float:
        return float(self._number())

    def __round__(self, digits: int | None = None) -> Any:
        return round(self._number(), digits)


def _in_place(name: str) -> Callable[[Any, Any], Any]:
    def apply(self: Any, other: Any) -> Any:
        result = getattr(operator, name)(self, other)
        result.node.meta["in_place"] = True
        return result

    return apply


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor"):
    setattr(_Proxy, f"__i{_name.rstrip('_')}__", _in_place(_name))


class Tracer(fx.Tracer):
    """`trace(model)` gives an fx.Graph; the tracer then holds names, constants and guards.

    The names are those of torchvision's `create_feature_extractor`: a module's path, and within it the operation.

    Args:
        model: what is traced; `trace` is given its twin in eval mode.
        is_leaf: whether a module is one step.
        inputs: values for arguments of `forward` besides the image.
        image: makes the example for which conditions on sizes are looked up.
    """

    proxy_buffer_attributes = True  # what is made of buffers is made anew when it is run

    def __init__(
        self,
        model: nn.Module,
        is_leaf: Callable[[nn.Module], bool],
        inputs: Mapping[str, Any],
        image: Callable[[], Tensor],
    ) -> None:
        super().__init__()
        self.model, self.thread = model, threading.get_ident()
        self.is_leaf, self.inputs, self.image = is_leaf, inputs, image
        self.stems: dict[fx.Node, str] = {}  # names without a number
        self.module = ""  # the module whose forward is traced
        self.constants: dict[str, Tensor] = {}
        self.of_buffers: dict[fx.Node, bool] = {}
        self.guards: list[tuple[fx.Node, bool]] = []
        self.evaluating = False  # steps are computed for the example, and nothing is traced
        self.failed = ""  # the innermost module that could not be traced

    def trace(self, *args: Any, **kwargs: Any) -> fx.Graph:
        with _TRACING:
            return super().trace(*args, **kwargs)

    def path_of_module(self, mod: nn.Module) -> str:
        try:
            return str(super().path_of_module(mod))
        except NameError:  # of the model itself, called by a function that holds it
            names = (name for name, module in self.model.named_modules() if module is mod)
            if name := next(names, None):
                return str(name)
            raise

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        if self.evaluating or threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, qualname: str) -> bool:
        return self.is_leaf(m)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.evaluating or threading.get_ident() != self.thread:  # another thread runs a model
            return forward(*args, **kwargs)
        outer, self.module = self.module, self.path_of_module(m)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or f" at {self.module} ({type(m).__name__})"
            raise
        finally:
            self.module = outer

    def create_proxy(self, kind: str, *arguments: Any, **more: Any) -> fx.Proxy:
        proxy: fx.Proxy = super().create_proxy(kind, *arguments, **more)
        of_buffers = self._is_of_buffers(proxy.node)  # of every step, so that none has to look further back than one
        if of_buffers and kind != "call_module" and kind.startswith("call"):
            return proxy  # torchvision computes it while it traces, and does not count it
        within = f"{self.module}." if self.module else ""
        step = re.sub(r"_[0-9]+$", "", str(proxy.node))  # fx counts in the whole graph, torchvision within a module
        self.stems[proxy.node] = self.module if kind == "call_module" else within + step
        return proxy

    def names(self) -> dict[fx.Node, str]:
        """What each step is called: as in torchvision, but that a module's own name is of no other step.

        torchvision counts modules `act_1` and `act_2` as `act` and `act_1`, which is the other's name.
        """
        names: dict[fx.Node, str] = {}
        modules = {stem for node, stem in self.stems.items() if node.op == "call_module"}
        taken, repeats = set[str](), defaultdict[str, int](int)
        for node, stem in self.stems.items():
            name = stem
            if node.op != "call_module" or name in taken:
                while name in modules or name in taken:
                    repeats[stem] += 1
                    name = f"{stem}_{repeats[stem]}"
            names[node] = name
            taken.add(name)
        return names

    def _is_of_buffers(self, node: fx.Node) -> bool:
        """Whether a step depends on buffers alone."""
        if node not in self.of_buffers:
            sources = node.all_input_nodes
            if node.op == "get_attr":
                self.of_buffers[node] = any(node.target == name for name, _ in self.root.named_buffers())
            else:
                self.of_buffers[node] = bool(sources) and all(map(self._is_of_buffers, sources))
        return self.of_buffers[node]

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        name, by_position, by_name = _arguments(root_fn, self.inputs)
        proxy = self.create_proxy("placeholder", name, (), {})
        return functools.partial(root_fn, **by_name), [self.root, proxy, *by_position]

    def create_arg(self, a: Any) -> Any:
        known = (*self.root.parameters(), *self.root.buffers()) if isinstance(a, Tensor) else ()
        if not isinstance(a, Tensor) or any(a is tensor for tensor in known):
            return super().create_arg(a)
        names = (name for name, tensor in self.constants.items() if tensor is a)
        name = next(names, f"constant{len(self.constants)}")
        self.constants[name] = a
        return self.create_node("get_attr", name, (), {})

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        if not _of_shapes_alone(obj.node):
            return bool(super().to_bool(obj))  # raises fx's own error
        one, two = (bool(self.value_of_shape(obj, images)) for images in (1, 2))
        if one != two:
            raise InputError(
                "forward has a condition on the number of images, and takes another path for one than for two: leave "
                "it out"
            )
        self.guards.append((obj.node, one))
        return one

    def number(self, obj: fx.Proxy) -> Any:
        if not _of_shapes_alone(obj.node):
            raise fx.proxy.TraceError("a number is made of what is in the image")
        one, two = (self.value_of_shape(obj, images) for images in (1, 2))
        if one != two:
            raise InputError(
                "forward makes another number of one image than of two: take no int() of how many images there are"
            )
        self.guards.append(((obj == one).node, True))
        return one

    def iter(self, obj: fx.Proxy) -> Any:
        if not _of_shapes_alone(obj.node):
            return super().iter(obj)
        return iter([operator.getitem(obj, n) for n in range(len(obj))])

    def value_of_shape(self, proxy: fx.Proxy, images: int = 1) -> Any:
        """The value of a step of the unfinished graph for the example, computed step by step."""
        needed: set[fx.Node] = {proxy.node}
        values: dict[fx.Node, Any] = {}
        for node in reversed(self.graph.nodes):
            needed.update(node.all_input_nodes if node in needed else ())
        self.evaluating = True
        try:
            for node in self.graph.nodes:
                if node in needed:
                    values[node] = self._value(node, values, images)
        finally:
            self.evaluating = False
        return values[proxy.node]

    def _value(self, node: fx.Node, values: Mapping[fx.Node, Any], images: int) -> Any:
        if node.op == "placeholder":
            return self.image().expand(images, -1, -1, -1)
        if node.op == "get_attr":
            state = self.constants | dict(self.root.named_parameters()) | dict(self.root.named_buffers())
            return state[str(node.target)]
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        if node.op == "call_module":  # to call it would trace it
            return self.root.get_submodule(str(node.target)).forward(*args, **kwargs)
        return call(self.root, node, args, kwargs)


def _arguments(forward: Callable[..., Any], inputs: Mapping[str, Any]) -> tuple[str, list[Any], dict[str, Any]]:
    """What `forward` is traced with: the image's name, and the other arguments, given or default, by position and
    name."""
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    image = named[0].name if named else "x"
    if unknown := [name for name in inputs if name not in [p.name for p in named[1:]]]:
        raise unknown_name("input", unknown[0], [p.name for p in named[1:]])
    if missing := [p.name for p in named[1:] if p.default is p.empty and p.name not in inputs]:
        raise InputError(f"the model needs {missing[0]} besides an image: give it as Graph(model, {missing[0]}=...)")
    values = {p: inputs.get(p.name, p.default) for p in named[1:]}
    by_name = {p.name: value for p, value in values.items() if p.kind is p.KEYWORD_ONLY}
    return image, [value for p, value in values.items() if p.name not in by_name], by_name


def unwrapped(model: nn.Module) -> nn.Module:
    """The model in DataParallel, DistributedDataParallel or `torch.compile`; InputError for scripted and exported
    ones."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrapped(model.module)
    if "_orig_mod" in model._modules:
        return unwrapped(model.get_submodule("_orig_mod"))
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(f"{type(model).__name__} was compiled by torch.jit: give the original model")
    if isinstance(model, fx.GraphModule) and "_guards_fn" in model._modules:
        raise InputError("the model was made by torch.export: give the original model")
    return model


def usual_size(model: nn.Module) -> Pair:
    """The size of images that a model, or a part of it, says it is made for; 224 x 224 pixels if none says so."""
    settings = (*model.modules(), getattr(model, "config", None))
    sizes = (getattr(part, name, None) for part in settings for name in ("image_size", "img_size"))
    for size in sizes:
        numbers = size if isinstance(size, tuple | list) else (size, size)
        if len(numbers) == 2 and all(isinstance(n, int) and n > 0 for n in numbers):
            return numbers[0], numbers[1]
    return 224, 224


def first_channels(model: nn.Module) -> int:
    """The input channels of a model's first convolution; without one, 3."""
    kinds = nn.Conv2d, nn.ConvTranspose2d
    convolution = next((module for module in model.modules() if isinstance(module, kinds)), None)
    return convolution.in_channels if convolution else 3
