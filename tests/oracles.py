"""Slow twins: the library's ideas once more, shorter, more obvious, and derived another way.

    deconvnet_by_autograd   the backward pass of the model with two derivatives replaced
    ZFNetDeconvnet          the paper's network and its deconvnet written out layer by layer
    dense_deconvnet         one dense Jacobian per layer, transposed
    measured_support        a receptive field as the pixels that the gradient of a unit of one map reaches
    check_units             that single units are projected as the whole image is, and canvases hold nothing else
    plain_occlusion         the image with a square at each position, run whole, one after the other
    top_k                   the strongest activations with all of them in memory
    correlations            of all pairs of maps, one pair at a time
    linear_cka              of two layers, by the kernels of all positions
    voc_average_precision   the area under a precision-recall curve, as the devkit of PASCAL VOC adds it up

None of them imports anything of zfnet.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torchvision.models.feature_extraction import NodePathTracer

RELUS = (F.relu, torch.relu, Tensor.relu)
RELUS_IN_PLACE = (torch.relu_, Tensor.relu_)
CLAMPS = (torch.clamp, Tensor.clamp, torch.clamp_min, Tensor.clamp_min, torch.clip, Tensor.clip)
CLAMPS_IN_PLACE = (torch.clamp_, Tensor.clamp_, torch.clamp_min_, Tensor.clamp_min_, Tensor.clip_)
THRESHOLDS = (F.threshold, torch.threshold)  # F.threshold is `_threshold` of its module


class Rectified(torch.autograd.Function):
    """ReLU, or ReLU6 with top=6, of which the backward pass rectifies the signal and forgets the forward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, top: float | None = None) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0, top)

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor, None]:
        return signal.clamp(min=0), None


class Unrectified(Rectified):
    """ReLU, of which the backward pass does nothing."""

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor, None]:
        return signal, None


class Guided(Rectified):
    """ReLU, of which the backward pass rectifies the signal and lets it through only where the unit fired."""

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor, None]:
        return signal.clamp(min=0) * (ctx.saved_tensors[0] > 0), None


class NormalisedForward(torch.autograd.Function):
    """Contrast normalisation, of which the backward pass does nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
        return F.local_response_norm(x, size, alpha, beta, k)

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor | None, ...]:
        return signal, None, None, None, None


class ScaledBack(torch.autograd.Function):
    """Batch normalisation in evaluation, whose gradient is the signal times the gain."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, *given: Any) -> Tensor:
        ctx.gain = gain.view(1, -1, *[1] * (x.ndim - 2))
        return F.batch_norm(x, *given[:4], eps=given[4])

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor | None, ...]:
        return signal * ctx.gain, *[None] * 6


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch normalisation with a gradient written out: torch's own is wrong on processors where the signal lies
    otherwise in memory than the input, as behind `x.flatten(2).transpose(1, 2)`. The output is torch's, to the bit: a
    deep network with gates can amplify rounding by 1e9."""
    if training or running_mean is None or running_var is None:  # of weights, to standardise them
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    gain = (running_var + eps).pow(-0.5) * (1 if weight is None else weight)
    return ScaledBack.apply(x, gain, running_mean, running_var, weight, bias, eps)


def held_statistics(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Group normalisation, of which the backward pass takes mean and variance for constants."""
    groups = x.reshape(len(x), num_groups, -1)
    mean, variance = groups.mean(2, keepdim=True).detach(), groups.var(2, correction=0, keepdim=True).detach()
    out = ((groups - mean) / (variance + eps).sqrt()).view_as(x)
    by_map = (1, -1, *[1] * (x.ndim - 2))
    return out if weight is None else out * weight.view(by_map) + bias.view(by_map)


def held_instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Instance normalisation: each map is a group, or batch normalisation by the running statistics."""
    if not use_input_stats:
        return batch_norm(x, running_mean, running_var, weight, bias, eps=eps)
    return held_statistics(x, x.shape[1], weight, bias, eps)


SMOOTH = (F.silu, F.gelu, F.mish, F.hardswish, F.elu, F.selu, F.celu, F.softplus, F.leaky_relu, F.prelu)
SQUASHING = (F.sigmoid, torch.sigmoid, Tensor.sigmoid, F.hardsigmoid, F.tanh, torch.tanh, Tensor.tanh)
STATISTICS = (torch.norm, Tensor.norm, torch.rsqrt, Tensor.rsqrt, torch.var, Tensor.var, torch.std, Tensor.std)
SOFTMAXES = (F.softmax, torch.softmax, Tensor.softmax)


def gated_product(first: Any, second: Any) -> Tensor:
    """A product in which an activation is a constant, if the other factor is none, or what is the same for all maps or
    places."""
    gates = [getattr(x, "activated", False) for x in (first, second)]
    if not all(getattr(x, "requires_grad", False) for x in (first, second)):
        pass  # the other is a gate, or a constant
    elif first.ndim == second.ndim == 4 and first.shape != second.shape:
        small = first.numel() < second.numel()
        first, second = first.detach() if small else first, second if small else second.detach()
    elif gates == [True, False]:
        first = first.detach()
    elif gates == [False, True]:
        second = second.detach()
    return torch.mul(first, second)


class RectifiedBehind(torch.autograd.Function):
    """Any function, of which the backward pass rectifies the signal."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable, args: tuple, kwargs: dict) -> Tensor:
        return function(x.clone(), *args, **kwargs)

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor | None, ...]:
        return signal.clamp(min=0), None, None, None


def held_layer_norm(
    x: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Layer normalisation, of which the backward pass takes mean and variance for constants."""
    last = tuple(range(x.ndim - len(tuple(normalized_shape)), x.ndim))
    deviation = (x - x.mean(last, keepdim=True)).detach().square().mean(last, keepdim=True).add(eps).sqrt()
    out = (x - x.mean(last, keepdim=True).detach()) / deviation
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def held_rms_norm(x: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    last = tuple(range(x.ndim - len(tuple(normalized_shape)), x.ndim))
    size = x.detach().square().mean(last, keepdim=True).add(torch.finfo(x.dtype).eps if eps is None else eps).sqrt()
    return x / size if weight is None else x / size * weight


def held_heads(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """`F.multi_head_attention_forward` of self-attention, head by head, whose weights are constants."""
    names = "embed_dim_to_check num_heads in_proj_weight in_proj_bias bias_k bias_v add_zero_attn dropout_p "
    given = dict(zip((names + "out_proj_weight out_proj_bias").split(), args, strict=False)) | kwargs
    width = query.shape[-1] // given["num_heads"]
    weights, biases = (given[f"in_proj_{part}"].chunk(3) for part in ("weight", "bias"))
    q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    heads = []
    for first in range(0, query.shape[-1], width):  # tensors are (places, images, width)
        own = [x[..., first : first + width].transpose(0, 1) for x in (q, k, v)]
        attention = (own[0] @ own[1].mT / width**0.5).softmax(-1).detach()
        heads.append((attention @ own[2]).transpose(0, 1))
    return F.linear(torch.cat(heads, -1), given["out_proj_weight"], given["out_proj_bias"]), None


def held_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    if isinstance(attn_mask, Tensor):
        attn_mask = attn_mask.detach()  # relative positions may depend on the query
    return F.scaled_dot_product_attention(query.detach(), key.detach(), value, attn_mask, *args, **kwargs)


def holding() -> dict[Callable, Callable]:
    """What the forward pass decides besides switches: gates, statistics and attention weights, as constants."""

    def smooth(func: Callable) -> Callable:
        def replacement(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            out = RectifiedBehind.apply(x, func, args, kwargs)
            out.activated = True
            return out

        return replacement

    def constant(func: Callable) -> Callable:
        return lambda *args, **kwargs: func(*args, **kwargs).detach()

    return {
        **{func: smooth(func) for func in SMOOTH},
        **{func: constant(func) for func in (*SQUASHING, *SOFTMAXES, *STATISTICS)},
        **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__), gated_product),
        F.layer_norm: held_layer_norm,
        F.rms_norm: held_rms_norm,
        F.multi_head_attention_forward: held_heads,
        F.scaled_dot_product_attention: held_attention,
    }


class Replaced(TorchFunctionMode):
    """Calls other functions in place of some, wherever they are called from."""

    def __init__(self, replacements: dict[Callable, Callable]):
        super().__init__()
        self.replacements = replacements

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return self.replacements.get(func, func)(*args, **(kwargs or {}))


def part_of(model: nn.Module, layer: str) -> nn.Module:
    """A copy of the model up to a layer, in eval mode; it returns {layer: activation}."""
    twin = copy.deepcopy(model).eval()
    tracer = NodePathTracer(leaf_modules=[nn.LocalResponseNorm])  # no module of torchvision's is one step
    graph = tracer.trace(twin)
    # a user's module is several steps; the last gives its output
    last = [n for n in graph.nodes if f"{tracer.node_to_qualname.get(n)}.".startswith(f"{layer}.")][-1]
    (output,) = (node for node in graph.nodes if node.op == "output")
    output.args = ({layer: last},)
    for node in reversed(list(graph.nodes)):
        if node is last:
            break
        if node is not output:
            graph.erase_node(node)
    return fx.GraphModule(twin, graph)


class Reached(Exception):
    """The forward pass has come to the layer; the only argument is its activation."""


def activation_of(model: nn.Module, layer: str) -> Callable[[Tensor], Tensor]:
    """The model up to a layer, as a function of images, where the layer is a module (`relu_1`: the second call of
    `relu`) or, for models that `torch.fx` can trace, one of torchvision's graph names."""
    modules = dict(model.named_modules())
    name, _, call = (layer, "", "0") if layer in modules else layer.rpartition("_")
    if name not in modules or not call.isdigit():
        part = part_of(model, layer)
        return lambda images: part(images)[layer]

    def run(images: Tensor) -> Tensor:
        calls = []

        def stop(module: nn.Module, inputs: Any, output: Any) -> None:
            calls.append(output)
            if len(calls) > int(call):
                raise Reached(output)

        handle = modules[name].register_forward_hook(stop)
        try:
            model(images)
        except Reached as reached:
            return reached.args[0]
        finally:
            handle.remove()
        raise ValueError(f"{name} is called {len(calls)} times")

    return run


def replace_modules(model: nn.Module, kind: type, make: Callable[[nn.Module], nn.Module]) -> None:
    for name, module in list(model.named_modules()):
        if isinstance(module, kind):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, make(module))


def rectifying(relu: type[Rectified]) -> dict[Callable, Callable]:
    """What every way of writing a ReLU is replaced by; a clamp or threshold of another kind stays as it is."""

    def rectify(x: Tensor, top: float | None = None, inplace: bool = False) -> Tensor:
        out = x.copy_(relu.apply(x.clone(), top)) if inplace else relu.apply(x, top)
        out.activated = True
        return out

    def clamped(func: Callable, inplace: bool) -> Callable:
        def replacement(x: Tensor, min: Any = None, max: Any = None) -> Tensor:
            ends = {name: end for name, end in (("min", min), ("max", max)) if end is not None}
            return rectify(x, inplace=inplace) if ends == {"min": 0} else func(x, **ends)

        return replacement

    def thresholded(func: Callable) -> Callable:
        def replacement(x: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
            return rectify(x, inplace=inplace) if threshold == value == 0 else func(x, threshold, value)

        return replacement

    return {
        **dict.fromkeys(RELUS, lambda x, inplace=False: rectify(x, inplace=inplace)),
        **dict.fromkeys(RELUS_IN_PLACE, lambda x: rectify(x, inplace=True)),
        **dict.fromkeys((F.relu6, F.hardtanh), lambda x, *_, inplace=False, **ends: rectify(x, 6.0, inplace)),
        **{func: clamped(func, False) for func in CLAMPS},
        **{func: clamped(func, True) for func in CLAMPS_IN_PLACE},
        **{func: thresholded(func) for func in THRESHOLDS},
    }


class CrossMap(nn.Module):
    """torch's legacy normalisation, written out: map 0 never leaves its running sum, so every map reads that, too."""

    def __init__(self, module: nn.CrossMapLRN2d, passed_through: bool):
        super().__init__()
        self.module, self.passed_through = module, passed_through

    def forward(self, x: Tensor) -> Tensor:
        maps, norm = torch.arange(x.shape[1]), self.module
        reads = ((maps[:, None] - maps).abs() < (norm.size + 1) // 2) | (maps == 0)
        sums = torch.einsum("nchw,dc->ndhw", x.square(), reads.to(x))
        out = x * (norm.k + norm.alpha / norm.size * sums).pow(-norm.beta)
        return x + (out - x).detach() if self.passed_through else out


def by_torchs_own_norm(model: nn.Module, passed_through: bool = False) -> nn.Module:
    """The model with contrast normalisation by F.local_response_norm; the legacy kind, written out, may pass the signal
    through."""
    stock = nn.LocalResponseNorm
    replace_modules(model, stock, lambda module: stock(module.size, module.alpha, module.beta, module.k))
    replace_modules(model, nn.CrossMapLRN2d, lambda module: CrossMap(module, passed_through))
    return model


def deconvnet_by_autograd(
    model: nn.Module,
    images: Tensor,
    layer: str,
    signal: Tensor | Callable[[Tensor], Tensor],
    *,
    norm: str = "identity",
    rectify: bool | str = True,
    extended: bool = False,
) -> Tensor:
    """Autograd through the model, where a ReLU's backward is clamp(signal, 0), and contrast normalisation's nothing.

    A ReLU is what computes one, whatever module it is called from.  Overlapping pooling windows add, as a gradient
    does.

    Args:
        layer: a module's name, or a graph name of torchvision's.
        signal: in the shape of the layer's output, or a function that makes it from that output.
        norm: "identity", also with the statistics of group and instance normalisation held; or "gradient".
        extended: hold gates, statistics of layer norms and attention weights, and rectify at smooth activations.
        rectify: False for a ReLU whose backward does nothing, "guided" for Springenberg's, "gradient" for torch's own.
    """
    twin = by_torchs_own_norm(copy.deepcopy(model).eval(), norm == "identity").requires_grad_(False)
    replacements: dict[Callable, Callable] = {F.batch_norm: batch_norm}
    if rectify != "gradient":
        replacements |= rectifying(Guided if rectify == "guided" else Rectified if rectify else Unrectified)
    if norm == "identity":
        replacements[F.local_response_norm] = lambda x, size, alpha=1e-4, beta=0.75, k=1.0: NormalisedForward.apply(
            x, size, alpha, beta, k
        )
        replacements |= {F.group_norm: held_statistics, F.instance_norm: held_instance_norm}
    if extended:
        replacements |= holding()
    pixels = images.clone().requires_grad_()
    forward = activation_of(twin, layer)
    with Replaced(replacements):
        activation = forward(pixels * 1)  # which may be overwritten
    if callable(signal):
        signal = signal(activation.detach())
    return torch.autograd.grad(activation, pixels, signal)[0]


class ZFNetDeconvnet:
    """The paper's network, ReLU -> pool -> norm, and its deconvnet, line by line; switches are unpooled in numpy."""

    def __init__(self, model: nn.Module):
        self.weight = {name: p.detach() for name, p in model.named_parameters()}

    def conv(self, n: int, x: Tensor, stride: int, padding: int) -> Tensor:
        return F.conv2d(x, self.weight[f"conv{n}.weight"], self.weight[f"conv{n}.bias"], stride, padding)

    def filter(self, n: int, signal: Tensor, stride: int, padding: int, spare: int = 0) -> Tensor:
        return F.conv_transpose2d(signal, self.weight[f"conv{n}.weight"], None, stride, padding, spare)

    @staticmethod
    def unpool(signal: Tensor, switches: Tensor, side: int) -> Tensor:
        images, maps = signal.shape[:2]
        out = np.zeros((images, maps, side * side), dtype=signal.numpy().dtype)
        image, plane = np.ogrid[:images, :maps]
        np.add.at(out, (image[..., None], plane[..., None], switches.flatten(2).numpy()), signal.flatten(2).numpy())
        return torch.from_numpy(out).unflatten(2, (side, side))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, 224, 224) to the activations of relu1..relu7, pool5 and fc8; keeps the switches."""
        a = {}
        a["relu1"] = self.conv(1, images, 2, 1).clamp(min=0)  # 110
        x, self.switches1 = F.max_pool2d(a["relu1"], 3, 2, ceil_mode=True, return_indices=True)  # 55
        x = F.local_response_norm(x, 5, 5e-4, 0.75, 2.0)
        a["relu2"] = self.conv(2, x, 2, 0).clamp(min=0)  # 26
        x, self.switches2 = F.max_pool2d(a["relu2"], 3, 2, ceil_mode=True, return_indices=True)  # 13
        x = F.local_response_norm(x, 5, 5e-4, 0.75, 2.0)
        a["relu3"] = self.conv(3, x, 1, 1).clamp(min=0)  # 13
        a["relu4"] = self.conv(4, a["relu3"], 1, 1).clamp(min=0)
        a["relu5"] = self.conv(5, a["relu4"], 1, 1).clamp(min=0)
        a["pool5"], self.switches5 = F.max_pool2d(a["relu5"], 3, 2, return_indices=True)  # 6
        a["relu6"] = (a["pool5"].flatten(1) @ self.weight["fc6.weight"].T + self.weight["fc6.bias"]).clamp(min=0)
        a["relu7"] = (a["relu6"] @ self.weight["fc7.weight"].T + self.weight["fc7.bias"]).clamp(min=0)
        a["fc8"] = a["relu7"] @ self.weight["fc8.weight"].T + self.weight["fc8.bias"]
        return a

    def project(self, layer: str, signal: Tensor) -> Tensor:
        """A signal in the shape of one of these layers, down to the pixels."""
        depth = ("relu1", "relu2", "relu3", "relu4", "relu5", "pool5", "relu6", "relu7", "fc8").index(layer)
        if depth >= 8:
            signal = signal @ self.weight["fc8.weight"]
        if depth >= 7:
            signal = signal.clamp(min=0) @ self.weight["fc7.weight"]
        if depth >= 6:
            signal = (signal.clamp(min=0) @ self.weight["fc6.weight"]).unflatten(1, (-1, 6, 6))
        if depth >= 5:
            signal = self.unpool(signal, self.switches5, 13)
        if depth >= 4:
            signal = self.filter(5, signal.clamp(min=0), 1, 1)
        if depth >= 3:
            signal = self.filter(4, signal.clamp(min=0), 1, 1)
        if depth >= 2:
            signal = self.filter(3, signal.clamp(min=0), 1, 1)
            signal = self.unpool(signal, self.switches2, 26)
        if depth >= 1:
            signal = self.filter(2, signal.clamp(min=0), 2, 0)
            signal = self.unpool(signal, self.switches1, 110)
        return self.filter(1, signal.clamp(min=0), 2, 1, spare=1)


def dense_deconvnet(layers: Iterable[nn.Module], image: Tensor, signal: Tensor, rectify: bool = True) -> Tensor:
    """Each layer (but ReLUs) as the dense matrix of its derivative at its input, transposed; for very small nets."""
    inputs = [image]
    layers = list(layers)
    for layer in layers:
        inputs.append(layer(inputs[-1]).detach())
    for layer, x in zip(reversed(layers), reversed(inputs[:-1]), strict=True):
        if isinstance(layer, nn.ReLU):
            signal = signal.clamp(min=0) if rectify else signal
        else:
            matrix = torch.autograd.functional.jacobian(layer, x, vectorize=True).reshape(signal.numel(), x.numel())
            signal = (matrix.T @ signal.flatten()).view_as(x)
    return signal


def average(
    x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Tensor:
    """The mean of what a max pooling takes the maximum of; a network may pad with -inf by itself."""
    x = x.masked_fill(x == -torch.inf, 0)
    if dilation in (1, (1, 1)):
        return F.avg_pool2d(x, kernel_size, stride or kernel_size, padding, ceil_mode)
    assert not ceil_mode, "the mean of dilated windows that stand over the border is not in torch"
    kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    return F.conv2d(x, x.new_ones(x.shape[1], 1, *kernel), None, stride or kernel, padding, dilation, x.shape[1])


def averaging() -> dict[Callable, Callable]:
    """Every kind of max pooling by the mean of the same windows, unpooling by its transpose, saturation by nothing."""

    def with_indices(func: Callable) -> Callable:
        def replacement(x: Tensor, *args: Any, return_indices: bool = True, **kwargs: Any) -> tuple[Tensor, Tensor]:
            means = func(x, *args, **kwargs)
            return means, torch.zeros_like(means, dtype=torch.int64)

        return replacement

    def alone(func: Callable) -> Callable:
        return lambda x, *args, return_indices=False, **kwargs: func(x, *args, **kwargs)

    def unpooled(x: Tensor, indices: Tensor, kernel_size: Any, stride: Any, padding: Any, output_size: Any) -> Tensor:
        ones = x.new_ones(x.shape[1], 1, *kernel_size)
        return F.conv_transpose2d(x, ones, None, stride, padding, groups=x.shape[1])

    same = (*RELUS, *RELUS_IN_PLACE, F.relu6, F.hardtanh)
    return dict.fromkeys(same, lambda x, *_, **__: x) | {
        F.max_pool2d: alone(average),
        torch.max_pool2d: alone(average),
        F.max_pool2d_with_indices: with_indices(average),
        F.adaptive_max_pool2d: alone(F.adaptive_avg_pool2d),
        F.adaptive_max_pool2d_with_indices: with_indices(F.adaptive_avg_pool2d),
        F.max_unpool2d: unpooled,
    }


def structural(model: nn.Module) -> nn.Module:
    """A copy of the model in float64 with random positive weights and no biases: nothing cancels, nothing is dead."""
    twin = by_torchs_own_norm(copy.deepcopy(model).double().eval())
    generator = torch.Generator().manual_seed(0)
    for name, parameter in twin.named_parameters():
        if parameter.ndim > 1:
            draw = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) + 0.5
            parameter.data = (draw / parameter[0].numel()).to(parameter.device)
        else:
            nn.init.constant_(parameter, 0 if name.endswith("bias") else 1)
    for module in twin.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            module.reset_running_stats()
    return twin


def measured_supports(
    model: nn.Module,
    layer: str,
    image_size: tuple[int, int],
    row: int,
    column: int,
    maps: Sequence[int],
    *,
    channels: int = 3,
    batch: int = 32,
) -> Tensor:
    """Which pixels (maps, H, W), bool, the units of some feature maps at one position see: those that a gradient
    reaches if all weights are positive and max poolings average.

    Args:
        batch: the number of maps at a time, each of which takes an image of its own.
    """
    twin = structural(model)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, channels, *image_size, generator=generator, dtype=torch.float64) + 0.5
    forward, supports = activation_of(twin, layer), []
    for first in range(0, len(maps), batch):
        chosen = maps[first : first + batch]
        pixels = image.repeat(len(chosen), 1, 1, 1).requires_grad_()
        with Replaced(averaging()):
            activation = forward(pixels)
        units = activation[range(len(chosen)), chosen]
        (gradient,) = torch.autograd.grad(units[:, row, column].sum() if units.ndim == 3 else units.sum(), pixels)
        supports.append(gradient.abs().sum(1) > 0)
    return torch.cat(supports)


def measured_support(
    model: nn.Module,
    layer: str,
    image_size: tuple[int, int],
    row: int,
    column: int,
    map: int | None = None,
    *,
    channels: int = 3,
) -> Tensor:
    """Which pixels (H, W), bool, a unit of one feature map sees, or the units of all maps together (None)."""
    if map is not None:
        return measured_supports(model, layer, image_size, row, column, [map], channels=channels)[0]
    pixels = torch.rand(1, channels, *image_size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    forward = activation_of(structural(model), layer)
    with Replaced(averaging()):
        activation = forward(pixels.requires_grad_())
    units = activation[:, :, row, column] if activation.ndim == 4 else activation
    return torch.autograd.grad(units.sum(), pixels)[0][0].abs().sum(0) > 0


def plain_occlusion(
    model: nn.Module, image: Tensor, size: tuple[int, int], step: tuple[int, int], fill: Tensor, layer: str
) -> tuple[Tensor, Tensor]:
    """Logits (rows, columns, classes) and each map's sum (rows, columns, maps) with a square at every position.

    Squares start at every `step` until the image (3, H, W) is covered; the last ones are cut off by its border.
    """
    twin, logits, maps = part_of(model, layer), [], []
    tops = range(0, min(image.shape[1] - size[0] + step[0], image.shape[1]), step[0])
    lefts = range(0, min(image.shape[2] - size[1] + step[1], image.shape[2]), step[1])
    with torch.no_grad():
        for top in tops:
            for left in lefts:
                occluded = image.clone()
                occluded[:, top : top + size[0], left : left + size[1]] = fill.reshape(-1, 1, 1)
                logits.append(model(occluded[None])[0])
                maps.append(twin(occluded[None])[layer][0])
    logits, maps = (torch.stack(x).unflatten(0, (len(tops), len(lefts))) for x in (logits, maps))
    return logits, maps.flatten(3).sum(3) if maps.ndim > 3 else maps


def extent(support: Tensor) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of what is true in (H, W), ends exclusive."""
    rows, columns = support.any(1).nonzero().flatten(), support.any(0).nonzero().flatten()
    if not len(rows):  # a unit on padding, as a token of a window that hangs over
        return 0, 0, 0, 0
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def positions(rows: int, columns: int) -> list[tuple[int, int]]:
    """The four corners, two edges and the middle, each once."""
    bottom, right = rows - 1, columns - 1
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    return list(dict.fromkeys([*corners, (0, columns // 2), (rows // 2, 0), (rows // 2, columns // 2)]))


def on_the_image(canvas: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """A canvas (C, S, S) at its box (4,) in an image (C, H, W) of zeros; it has to be zero beyond both."""
    top, left, bottom, right = box.tolist()
    low, high = (max(top, 0), max(left, 0)), (min(bottom, size[0]), min(right, size[1]))
    inside = slice(low[0] - top, high[0] - top), slice(low[1] - left, high[1] - left)
    image, beyond = canvas.new_zeros(canvas.shape[0], *size), canvas.clone()
    image[:, low[0] : high[0], low[1] : high[1]] = canvas[:, inside[0], inside[1]]
    beyond[:, inside[0], inside[1]] = 0
    assert not beyond.any(), "a canvas holds something beyond its box or the image"
    return image


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-10) -> None:
    assert theirs.any(), "nothing is compared"
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def check_units(deconvnet: Any, images: Tensor, layer: str, tolerance: float = 1e-10, whole: bool = False) -> None:
    """That `project_units` is `project`, of units in corners, at edges and in the middle, of up to eight maps."""
    recording = deconvnet.record(images, [layer])
    activation = recording.activations[layer]
    maps, rows, columns = (*activation.shape[1:], 1, 1)[:3]
    some = sorted({m * (maps - 1) // 7 for m in range(8)})
    units = [[len(images) - 1, m, *position] for position in positions(rows, columns) for m in some]
    patches = deconvnet.project_units(images, layer, units, signals=torch.ones(len(units)), whole=whole)
    elements = [tuple(unit[: activation.ndim]) for unit in units]
    assert_close(patches.values, torch.stack([activation[element] for element in elements]), tolerance)
    ours, theirs = [], []
    for element, canvas, box in zip(elements, patches.projections, patches.boxes, strict=True):
        signal = torch.zeros_like(activation)
        signal[element] = 1
        theirs.append(deconvnet.project(recording, layer, signal)[-1])
        ours.append(on_the_image(canvas, box, tuple(images.shape[2:])))
    assert_close(torch.stack(ours), torch.stack(theirs), tolerance)


def top_k(activations: Tensor, k: int, distinct: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The k strongest units of each map of activations (N, C, H, W): value, image, row, column, each (C, k).

    From k different images if `distinct`.  Ties go to the lower image, then row, then column.  Where there are fewer
    than k, the rest has the value -inf and the positions -1.
    """
    images, maps, rows, columns = activations.shape
    value = torch.full((maps, k), -torch.inf, dtype=activations.dtype)
    image, row, column = (torch.full((maps, k), -1, dtype=torch.int64) for _ in range(3))
    for m in range(maps):
        plane = activations[:, m].tolist()
        units = [(i, r, c) for i in range(images) for r in range(rows) for c in range(columns)]
        units.sort(key=lambda p: (-plane[p[0]][p[1]][p[2]], p))
        chosen: list[tuple[int, int, int]] = []
        for unit in units:
            if not (distinct and any(unit[0] == other[0] for other in chosen)):
                chosen.append(unit)
            if len(chosen) == k:
                break
        for j, (i, r, c) in enumerate(chosen):
            value[m, j], image[m, j], row[m, j], column[m, j] = plane[i][r][c], i, r, c
    return value, image, row, column


def correlations(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation (C, D) of maps (N, C, H, W) and (N, D, H, W), pair by pair by numpy; 0 of constants."""
    result = torch.zeros(first.shape[1], second.shape[1], dtype=torch.float64)
    for c in range(first.shape[1]):
        for d in range(second.shape[1]):
            x, y = first[:, c].double().flatten().numpy(), second[:, d].double().flatten().numpy()
            if np.ptp(x) > 0 and np.ptp(y) > 0:
                result[c, d] = float(np.corrcoef(x, y)[0, 1])
    return result


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Linear CKA of maps (N, C, ...) and (N, D, ...), a row for each position: HSIC of kernels (P, P), normalised."""
    kernels = []
    for maps in (first, second):
        rows = maps.double().movedim(1, -1).reshape(-1, maps.shape[1]).numpy()
        centre = np.eye(len(rows)) - 1 / len(rows)
        kernels.append(centre @ (rows @ rows.T) @ centre)
    hsic = [float(np.trace(a @ b)) for a, b in ((kernels[0], kernels[1]), (kernels[0],) * 2, (kernels[1],) * 2)]
    return hsic[0] / (hsic[1] * hsic[2]) ** 0.5


def voc_average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """VOCdevkit's VOCap: recall and precision after each image, the envelope made monotone from the right, its area."""
    order = np.argsort(-scores)
    hits = np.cumsum(positive[order])
    recall = [0.0, *(hits / positive.sum()), 1.0]
    precision = [0.0, *(hits / np.arange(1, len(hits) + 1)), 0.0]
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)) if recall[i] != recall[i - 1])
