"""EXTENDED against autograd with gates, statistics and attention weights as constants; equal to DECONVNET elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import assert_close, check_units, deconvnet_by_autograd, on_the_image, positions
from torch import Tensor, nn
from torchvision import models

from experiments.ablation import ablation, measure
from experiments.figures import fig2, fig7
from experiments.questions import steps
from scripts.zoo import ZOO, drawn, extended_layers, layer_deviation, randomised
from zfnet import DECONVNET, EXTENDED, GRADIENT, GUIDED, Deconvnet, InputError, receptive_field, rule
from zfnet.data.scenes import Scenes
from zfnet.extended import PASSED_NORMS, SLOPED

SIDE = 10


class Between(nn.Module):
    """conv1 -> a function of its maps -> conv2, in float64."""

    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module, maps: int = 8):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(maps, 6, 3)
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.function(self.conv1(x), *self.parts))


def between(function: Callable[..., Tensor], *modules: nn.Module, maps: int = 8) -> nn.Module:
    torch.manual_seed(0)
    model = randomised(Between(function, *modules, maps=maps))
    for module in model.modules():
        if isinstance(module, nn.LayerNorm) and module.weight is not None:
            nn.init.normal_(module.weight), nn.init.normal_(module.bias)
    return model


def as_tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def as_maps(x: Tensor) -> Tensor:
    return x.transpose(1, 2).unflatten(2, (SIDE, SIDE))


def squeezed(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    """Squeeze and excitation."""
    return x * torch.sigmoid(second(F.relu(first(x.mean((2, 3), keepdim=True)))))


def attended(x: Tensor, keys: nn.Module) -> Tensor:
    """Self-attention of places, by hand."""
    tokens = as_tokens(x)
    weights = (tokens @ keys(tokens).mT).mul(0.1).softmax(-1)
    return as_maps(torch.matmul(weights, tokens))


def einsum(x: Tensor, keys: nn.Module) -> Tensor:
    tokens = as_tokens(x)
    weights = F.softmax(torch.einsum("n i c, n j c -> n i j", tokens, keys(tokens)), -1)
    return as_maps(torch.einsum("n i j, n j c -> n i c", weights, tokens))


def by_torch(x: Tensor, keys: nn.Module) -> Tensor:
    tokens = as_tokens(x)
    return as_maps(F.scaled_dot_product_attention(tokens * 2, keys(tokens), tokens))


def multihead(x: Tensor, attention: nn.Module) -> Tensor:
    tokens = as_tokens(x)
    if not attention.batch_first:
        tokens = tokens.transpose(0, 1)
    out, _ = attention(tokens, tokens, tokens, need_weights=False)
    return as_maps(out if attention.batch_first else out.transpose(0, 1))


def channels_last(x: Tensor, norm: nn.Module) -> Tensor:
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def talking_heads(x: Tensor, keys: nn.Module, mix: nn.Module) -> Tensor:
    """Attention by four heads, whose weights a linear layer mixes."""
    heads = as_tokens(x).unflatten(2, (4, 2)).transpose(1, 2)
    weights = (heads @ keys(heads).mT).softmax(-1)
    weights = mix(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return as_maps((weights @ heads).transpose(1, 2).flatten(2))


def blended(x: Tensor, keys: nn.Module) -> Tensor:
    """Attention weights that are the sum of two, by a gate that is a parameter."""
    tokens = as_tokens(x)
    share = torch.sigmoid(keys.bias[:1].view(1, 1, 1))
    weights = (1 - share) * (tokens @ keys(tokens).mT).softmax(-1) + share * keys(tokens @ tokens.mT[..., :8]).mean(
        -1, keepdim=True
    ).softmax(1)
    return as_maps(weights @ tokens)


def response_norm(x: Tensor, gain: nn.Module) -> Tensor:
    """ConvNeXt V2's: each map times its share of the energy."""
    energy = x.norm(p=2, dim=(2, 3), keepdim=True)
    share = energy / (energy.mean(1, keepdim=True) + 1e-6)
    return x + torch.addcmul(gain.bias.view(1, -1, 1, 1), gain.weight.view(1, -1, 1, 1), x * share)


def windows(x: Tensor) -> Tensor:
    """Sums of neighbours, by unfolding and folding."""
    return F.fold(F.unfold(x, 3, padding=1), (SIDE, SIDE), 3, padding=1) + x.unfold(2, 1, 1).squeeze(-1)


STEPS: dict[str, Callable[[], nn.Module]] = {
    **{
        kind.__name__: lambda kind=kind: between(lambda x, f: f(x), kind())
        for kind in (nn.SiLU, nn.GELU, nn.Mish, nn.Hardswish, nn.ELU, nn.SELU, nn.CELU, nn.Softplus, nn.LeakyReLU)
    },
    "PReLU": lambda: between(lambda x, f: f(x), nn.PReLU(8)),
    "F.gelu, approximate": lambda: between(lambda x: F.gelu(x, approximate="tanh")),
    "SiLU, in place": lambda: between(lambda x, f: f(x), nn.SiLU(inplace=True)),
    "squeeze and excitation": lambda: between(squeezed, nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)),
    "a gate first": lambda: between(lambda x, f: torch.sigmoid(f(x)) * x, nn.Conv2d(8, 8, 1)),
    "a gate in place": lambda: between(lambda x, f: (x + 0).mul_(f(x).sigmoid()), nn.Conv2d(8, 8, 1)),
    "a gate of places": lambda: between(lambda x, f: x * torch.sigmoid(f(x)), nn.Conv2d(8, 1, 1)),
    "a gate of places without a sigmoid": lambda: between(lambda x, f: x * f(x), nn.Conv2d(8, 1, 1)),
    "a gate of maps without a sigmoid": lambda: between(lambda x: x * x.mean((2, 3), keepdim=True)),
    "a gate behind a view": lambda: between(
        lambda x, f: x * f(x.mean((2, 3))).sigmoid().view(-1, 8, 1, 1), nn.Linear(8, 8)
    ),
    "a gate by hard sigmoid": lambda: between(lambda x, f: x * F.hardsigmoid(f(x)), nn.Conv2d(8, 8, 1)),
    "LayerNorm, channels last": lambda: between(channels_last, nn.LayerNorm(8)),
    "LayerNorm of whole maps": lambda: between(lambda x, f: f(x), nn.LayerNorm((8, SIDE, SIDE))),
    "LayerNorm without weights": lambda: between(channels_last, nn.LayerNorm(8, elementwise_affine=False)),
    "F.layer_norm": lambda: between(lambda x: F.layer_norm(x, x.shape[1:], eps=1e-3)),
    "GroupNorm": lambda: between(lambda x, f: f(x), nn.GroupNorm(2, 8)),
    "InstanceNorm2d": lambda: between(lambda x, f: f(x), nn.InstanceNorm2d(8, affine=True)),
    "RMSNorm": lambda: between(channels_last, nn.RMSNorm(8)),
    "RMSNorm with an epsilon": lambda: between(channels_last, nn.RMSNorm(8, eps=1e-2)),
    "attention by hand": lambda: between(attended, nn.Linear(8, 8)),
    "attention by einsum": lambda: between(einsum, nn.Linear(8, 8)),
    "attention by talking heads": lambda: between(talking_heads, nn.Linear(2, 2), nn.Linear(4, 4)),
    "attention by a blend": lambda: between(blended, nn.Linear(8, 8)),
    "attention by torch": lambda: between(by_torch, nn.Linear(8, 8)),
    "global response normalisation": lambda: between(response_norm, nn.LayerNorm(8)),
    "a linear unit, gated by SiLU": lambda: between(lambda x, f: F.silu(f(x)) * x, nn.Conv2d(8, 8, 1)),
    "RMS norm by hand": lambda: between(lambda x: x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)),
    "layer norm by hand": lambda: between(
        lambda x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-6).sqrt()
    ),
    "a unit vector at each place": lambda: between(lambda x: x / x.norm(dim=1, keepdim=True)),
    "the larger of two": lambda: between(lambda x, f: torch.maximum(x, f(x)), nn.Conv2d(8, 8, 1)),
    "the largest of four": lambda: between(
        lambda x, f: f(x.unflatten(1, (2, 4)).amax(1).reshape_as(x[:, :4])), nn.Conv2d(4, 8, 1)
    ),
    "a linear unit, gated by ReLU": lambda: between(lambda x, f: x * F.relu6(f(x)), nn.Conv2d(8, 8, 1)),
    "unfolded and folded": lambda: between(lambda x: F.silu(windows(x))),
    "Conv1d of places": lambda: between(
        lambda x, f: F.silu(f(x.flatten(2)).unflatten(2, (SIDE, SIDE))), nn.Conv1d(8, 8, 3, padding=1)
    ),
    "MultiheadAttention": lambda: between(multihead, nn.MultiheadAttention(8, 2, batch_first=True)),
    "MultiheadAttention, places first": lambda: between(multihead, nn.MultiheadAttention(8, 4)),
}


HELD = ("GroupNorm", "InstanceNorm2d")  # by DECONVNET, too


def images(count: int = 2, side: int = SIDE) -> Tensor:
    return torch.randn(count, 3, side, side, dtype=torch.float64)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_holds_what_the_forward_pass_decided(name: str) -> None:
    model, x = STEPS[name](), images()
    deconvnet = Deconvnet(model, rules="extended")
    recording = deconvnet.record(x, ["conv2"])
    signal = torch.randn_like(recording.activations["conv2"])
    ours = deconvnet.project(recording, "conv2", signal)
    assert_close(ours, deconvnet_by_autograd(model, x, "conv2", signal, extended=True), 1e-10)
    assert ours.abs().max() > 0


@pytest.mark.parametrize("name", STEPS)
def test_the_gradient_goes_through_anything(name: str) -> None:
    model, x = STEPS[name](), images()
    deconvnet = Deconvnet(model, rules="gradient")
    recording = deconvnet.record(x, ["conv2"])
    signal = torch.randn_like(recording.activations["conv2"])
    theirs = deconvnet_by_autograd(model, x, "conv2", signal, rectify="gradient", norm="gradient")
    assert_close(deconvnet.project(recording, "conv2", signal), theirs, 1e-10)


@pytest.mark.parametrize("rules", ["gradient", "guided"])
@pytest.mark.parametrize(
    "function", [lambda x: x * x, lambda x: x.clamp(min=-0.2), lambda x: x.abs().sqrt() / (1 + x.exp())]
)
def test_the_gradient_is_taken_where_a_closer_rule_refuses(function: Callable, rules: str) -> None:
    model, x = between(function), images()
    deconvnet = Deconvnet(model, rules=rules)
    recording = deconvnet.record(x, ["conv2"])
    signal = torch.randn_like(recording.activations["conv2"])
    theirs = deconvnet_by_autograd(model, x, "conv2", signal, rectify="gradient", norm="gradient")
    assert_close(deconvnet.project(recording, "conv2", signal), theirs, 1e-10)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x, f: x * f(x), "mul at mul of two feature maps, neither of which is a gate"),
        (lambda x, f: x.tanh() * f(x).sigmoid(), "mul at mul of two feature maps, which are both gates"),
        (lambda x, f: x * x, "mul at mul of two feature maps"),
        (lambda x, f: f(x).sin(), "sin at sin"),
        (lambda x, f: x.mT @ x, "matmul at matmul of a feature map with itself|matmul at matmul of two feature maps"),
    ],
)
def test_what_is_no_gate_is_refused_by_name(function: Callable, why: str) -> None:
    deconvnet = Deconvnet(between(function, nn.Conv2d(8, 8, 1)), rules="extended")
    recording = deconvnet.record(images(), ["conv2"])
    with pytest.raises(InputError, match=f"^no deconvnet rule for ({why})[^;\n]*; register one with @rule$"):
        deconvnet.project(recording, "conv2", recording.activations["conv2"])


@pytest.mark.parametrize("name", [name for name in STEPS if name not in HELD])
def test_deconvnet_refuses_and_names_the_way_on(name: str) -> None:
    deconvnet = Deconvnet(STEPS[name]())
    recording = deconvnet.record(images(), ["conv2"])
    with pytest.raises(InputError, match=r'; give rules="extended", or register one with @rule$'):
        deconvnet.project(recording, "conv2", recording.activations["conv2"])


def test_a_leaky_rectifier_may_keep_its_slope() -> None:
    x = images()
    for activation in (nn.LeakyReLU(0.2), nn.PReLU(8, 0.3)):
        model = between(lambda x, f: f(x), activation)
        deconvnet = Deconvnet(model, rules=EXTENDED | SLOPED)
        recording = deconvnet.record(x, ["conv2"])
        signal = torch.randn_like(recording.activations["conv2"])
        below = F.conv_transpose2d(signal, model.conv2.weight)
        bent = F.leaky_relu(below, 0.2) if isinstance(activation, nn.LeakyReLU) else F.prelu(below, activation.weight)
        expected = F.conv_transpose2d(bent, model.conv1.weight, padding=1)
        assert_close(deconvnet.project(recording, "conv2", signal), expected)


def test_a_norm_may_be_passed_through() -> None:
    model, x = between(channels_last, nn.LayerNorm(8)), images()
    deconvnet = Deconvnet(model, rules=EXTENDED | PASSED_NORMS)
    recording = deconvnet.record(x, ["conv2"])
    signal = torch.randn_like(recording.activations["conv2"])
    expected = F.conv_transpose2d(F.conv_transpose2d(signal, model.conv2.weight), model.conv1.weight, padding=1)
    assert_close(deconvnet.project(recording, "conv2", signal), expected)


def test_whether_an_attention_module_gives_its_weights_decides_nothing() -> None:
    def asked(x: Tensor, attention: nn.Module) -> Tensor:
        tokens = as_tokens(x)
        return as_maps(attention(tokens, tokens, tokens)[0])

    attention, x = nn.MultiheadAttention(8, 2, batch_first=True).double(), images()
    pixels = []
    for function in (multihead, asked):
        deconvnet = Deconvnet(between(function, attention), rules="extended")
        recording = deconvnet.record(x, ["conv2"])
        pixels.append(deconvnet.project(recording, "conv2", recording.activations["conv2"]))
    assert_close(*pixels)


def selected(x: Tensor, first: nn.Module, second: nn.Module, weigh: nn.Module, places: bool = False) -> Tensor:
    """Selective kernels: of two branches, set side by side, each map takes its share of both."""
    branches = torch.stack([first(x), second(x)], 1)
    mixed = branches.sum(1) if places else branches.sum(1).mean((2, 3), keepdim=True)
    return (branches * weigh(mixed).unflatten(1, (2, 8)).softmax(1)).sum(1)


@pytest.mark.parametrize("places", [True, False])
@pytest.mark.parametrize("kernel", [1, 3, 8])  # as the windows are 1 x 1, of 8 places, and of neither
def test_a_gate_of_branches_in_windows(places: bool, kernel: int) -> None:
    parts = [nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 16, 1)]
    model, side = between(lambda *given: selected(*given, places=places), *parts), 24
    model.conv2 = nn.Conv2d(8, 6, kernel).double()
    deconvnet, x = Deconvnet(model, rules="extended"), images(2, side)
    located = deconvnet._located("conv2", [[0, 0, 5, 5]], 2, (side, side))
    assert [type(run).__name__ for run in deconvnet._strategies(located, False)] == ["_ByPath"]
    check_units(deconvnet, x, "conv2")


NORMS: dict[str, Callable[[], nn.Module]] = {
    "of whole maps": lambda: nn.LayerNorm((8, SIDE, SIDE)),
    "of a map": lambda: nn.LayerNorm((SIDE, SIDE)),
    "of a row": lambda: nn.LayerNorm(SIDE, elementwise_affine=False),
    "of whole maps, by its size": lambda: nn.RMSNorm((8, SIDE, SIDE)),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("kernel", [1, 3, SIDE + 1])  # the windows of the last are as large as the maps, and move
def test_a_norm_whose_scale_differs_from_place_to_place(name: str, kernel: int) -> None:
    model, x = between(lambda x, norm: norm(x), NORMS[name]()), images()
    model.conv2 = nn.Conv2d(8, 40, kernel, padding=kernel // 2).double()
    nn.init.normal_(model.parts[0].weight) if model.parts[0].weight is not None else None
    deconvnet = Deconvnet(model, rules="extended")
    check_units(deconvnet, x, "conv2")
    assert not receptive_field(deconvnet.graph, "conv2", SIDE).exact


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["LayerNorm, channels last", "RMSNorm", "GroupNorm", "InstanceNorm2d"])
@pytest.mark.parametrize("size", [1e-3, 1e3])  # squares of the first are less than an epsilon, of the second infinite
def test_statistics_of_short_types_are_taken_as_torch_takes_them(name: str, kind: torch.dtype, size: float) -> None:
    model, x, pixels = STEPS[name]().float(), images().float(), []
    model.conv1.weight.data *= size
    model.conv1.bias.data.zero_()
    signal = torch.randn(2, 6, SIDE - 2, SIDE - 2)
    for dtype in (torch.float32, kind):
        deconvnet = Deconvnet(model.to(dtype), rules="extended")
        recording = deconvnet.record(x.to(dtype), ["conv2"])
        pixels.append(deconvnet.project(recording, "conv2", signal.to(dtype)).float())
    assert pixels[0].abs().max() > 0
    assert_close(pixels[1], pixels[0], 0.05)


def by_name(x: Tensor, attention: nn.Module) -> Tensor:
    tokens = as_tokens(x)
    return as_maps(attention(query=tokens, key=tokens, value=tokens)[0])


def masked(x: Tensor, attention: nn.Module) -> Tensor:
    tokens = as_tokens(x)
    return as_maps(attention(tokens, tokens, tokens, key_padding_mask=tokens[..., 0] > 1)[0])


@pytest.mark.parametrize("function", [by_name, masked])
def test_attention_is_held_however_it_is_given_its_arguments(function: Callable) -> None:
    model, x = between(function, nn.MultiheadAttention(8, 2, batch_first=True)), images()
    deconvnet = Deconvnet(model, rules="extended")
    recording = deconvnet.record(x, ["conv2"])
    signal = torch.randn_like(recording.activations["conv2"])
    below = F.conv_transpose2d(signal, model.conv2.weight)
    attention, tokens = model.parts[0], as_tokens(recording_of(deconvnet, x, "conv1"))
    mask = {"key_padding_mask": tokens[..., 0] > 1} if function is masked else {}
    weights = attention(tokens, tokens, tokens, average_attn_weights=False, **mask)[1].detach()
    leaf = tokens.clone().requires_grad_()
    values = F.linear(leaf, attention.in_proj_weight[16:]).unflatten(2, (2, 4)).transpose(1, 2)
    out = as_maps(F.linear((weights @ values).transpose(1, 2).flatten(2), attention.out_proj.weight))
    (tokens_back,) = torch.autograd.grad(out, leaf, below)
    expected = F.conv_transpose2d(as_maps(tokens_back), model.conv1.weight, padding=1)
    assert_close(deconvnet.project(recording, "conv2", signal), expected.detach(), 1e-10)


def recording_of(deconvnet: Deconvnet, x: Tensor, layer: str) -> Tensor:
    return deconvnet.record(x, [layer]).activations[layer]


CONDITIONS: dict[str, Callable[..., Tensor]] = {
    "a constant in the gradient": lambda x, f: x + (f(x).round() - x).detach(),
    "where": lambda x, f: torch.where(x > 0, x, f(x)),
    "a mask": lambda x, f: x * (f(x) > 0).to(x.dtype),
    "filled": lambda x, f: f(x).masked_fill(x < 0, 0.5),
    "sorted": lambda x, f: torch.gather(x, 1, f(x).argsort(1)),
    "bounds": lambda x, f: torch.clamp(x, torch.zeros_like(x), f(x).abs()),
    "weights": lambda x, f: F.prelu(F.group_norm(x, 2, f(x)[0, :, 0, 0]), f(x)[0, :, 1, 1]),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_the_gradient_passes_conditions_by(name: str) -> None:
    model, x = between(CONDITIONS[name], nn.Conv2d(8, 8, 1)), images(1)
    deconvnet = Deconvnet(model, rules="gradient")
    recording = deconvnet.record(x, ["conv2"])
    signal = torch.randn_like(recording.activations["conv2"])
    leaf = x.clone().requires_grad_()
    (theirs,) = torch.autograd.grad(model(leaf), leaf, signal)
    assert_close(deconvnet.project(recording, "conv2", signal), theirs, 1e-10)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (
            lambda x, f: torch.einsum("nchw,nchw,nchw->nchw", f(x).sigmoid(), x, x),
            "einsum .* of a feature map with itself",
        ),
        (lambda x, f: torch.div(x, x.norm(dim=1, keepdim=True), rounding_mode="floor"), "div .* that rounds"),
        (
            lambda x, f: F.layer_norm(x, (SIDE,), f(x).mean((0, 1, 2))),
            "layer_norm .* whose weights depend on the image",
        ),
        (lambda x, f: F.group_norm(x, 2, f(x).mean((0, 2, 3))), "group_norm .* whose weights depend on the image"),
        (lambda x, f: F.prelu(x, f(x).mean((0, 2, 3))), "prelu .* whose weights depend on the image"),
        (lambda x, f: torch.clamp(x, torch.zeros_like(x), f(x)), "clamp .* whose bounds depend on the image"),
        (lambda x, f: f(x) * (x.sigmoid() + x.mT), "mul .*, neither of which is a gate"),
        (
            lambda x, f: F.scaled_dot_product_attention(x, f(x), torch.ones(1, 8, SIDE, SIDE).double()),
            "scaled_dot_product_attention .* whose values do not depend on the image",
        ),
    ],
)
def test_what_is_not_linear_is_refused(function: Callable, why: str) -> None:
    deconvnet, x = Deconvnet(between(function, nn.Conv2d(8, 8, 1)), rules="extended"), images(1)
    recording = deconvnet.record(x, ["conv2"])
    with pytest.raises(InputError, match=f"^no deconvnet rule for {why}; register one with @rule$"):
        deconvnet.project(recording, "conv2", recording.activations["conv2"])


@pytest.mark.parametrize(
    ("function", "at"),
    [
        (lambda x: F.leaky_relu_(x.clone(), 0.3), 0.3),
        (lambda x: torch.rrelu(x, 0.2, 0.4), 0.3),
        (lambda x: torch.rrelu(x), 11 / 48),
    ],
)
def test_the_slope_of_a_function_of_torchs_own(function: Callable, at: float) -> None:
    model, x = between(function), images()
    deconvnet = Deconvnet(model, rules=EXTENDED | SLOPED)
    recording = deconvnet.record(x, ["conv2"])
    below = F.leaky_relu(F.conv_transpose2d(recording.activations["conv2"], model.conv2.weight), at)
    expected = F.conv_transpose2d(below, model.conv1.weight, padding=1)
    assert_close(deconvnet.project(recording, "conv2", recording.activations["conv2"]), expected)


def test_extended_knows_the_rules_that_are_registered(tables: None) -> None:
    model, x, pixels = between(lambda x: x.sin()), images(), []

    @rule(torch.Tensor.sin)
    def through(step: object, signal: Tensor) -> Tensor:
        return signal

    for rules in ("deconvnet", "extended"):
        deconvnet = Deconvnet(model, rules=rules)
        recording = deconvnet.record(x, ["conv2"])
        pixels.append(deconvnet.project(recording, "conv2", recording.activations["conv2"]))
    assert torch.equal(*pixels)


@pytest.mark.parametrize("name", ["squeeze and excitation", "GroupNorm"])
def test_activations_of_parts_of_images_are_refused_behind_a_gate(name: str) -> None:
    deconvnet, x = Deconvnet(STEPS[name](), rules="extended"), images()
    patches = deconvnet.project_units(x, "conv2", [[0, 1, 0, 0]])
    with pytest.raises(InputError, match=r"^what units of conv2 give depends on more than their receptive fields, by"):
        deconvnet.activations_of(patches.crops, "conv2", [[0, 1, 0, 0]], SIDE)


def test_one_gate_for_all_images_has_no_field() -> None:
    model = between(lambda x: x * x.mean().sigmoid())
    assert receptive_field(Deconvnet(model, rules="extended").graph, "conv2", SIDE).size == (SIDE, SIDE)
    Deconvnet(model, rules="extended").project_units(images(), "conv2", [[0, 0, 3, 3], [1, 1, 0, 0]])


RELU = ["resnet18", "squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v2", "googlenet"]


@pytest.mark.parametrize("name", [*RELU, *(pytest.param(n, marks=pytest.mark.slow) for n in ZOO if n not in RELU)])
def test_extended_is_deconvnet_bit_for_bit_on_relu_networks(name: str) -> None:
    model = drawn(name).float()
    side = 96 if name.startswith(("inception", "alexnet")) else 64
    x, pixels = torch.randn(1, 3, side, side), []
    for rules in (DECONVNET, EXTENDED):
        deconvnet = Deconvnet(model, rules=rules)
        layer = deconvnet.graph.layers[-1]
        recording = deconvnet.record(x, [layer])
        pixels.append(deconvnet.project(recording, layer, recording.activations[layer]))
    assert torch.equal(*pixels)


FAST = ["efficientnet_b0", "mobilenet_v3_small", "regnet_y_400mf", "convnext_tiny", "swin_t", "swin_v2_t", "vit_b_32"]
OTHERS = [n for n in models.list_models(module=models) if n not in (*ZOO, *FAST, "vit_h_14", "regnet_y_128gf")]


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_torchvisions_other_classifiers_equal_autograd(name: str) -> None:
    model, side = drawn(name), 224 if name.startswith(("vit", "maxvit")) else 64
    x = torch.randn(1, 3, side, side, dtype=torch.float64)
    for rules in ("extended", "gradient"):
        deconvnet = Deconvnet(model, rules=rules)
        layers = extended_layers(deconvnet)
        if name == "maxvit_t" and rules == "extended":  # its last is behind a tanh that is no gate
            layers = extended_layers(deconvnet, 6)[:5]
        assert len(layers) == 5
        for layer in layers if name not in ("vit_b_32",) else layers[-2:]:
            assert layer_deviation(deconvnet, x, layer, rules) <= 1e-8, layer


def test_a_unit_of_a_gated_layer_is_projected_as_the_whole_image_is() -> None:
    model = between(squeezed, nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1))
    deconvnet, x = Deconvnet(model, rules="extended"), images()
    patches = deconvnet.project_units(x, "conv2", [[1, 2, 3, 4]])
    recording = deconvnet.record(x, ["conv2"])
    signal = torch.zeros_like(recording.activations["conv2"])
    signal[1, 2, 3, 4] = recording.activations["conv2"][1, 2, 3, 4]
    whole = deconvnet.project(recording, "conv2", signal)[1]
    top, left, bottom, right = patches.boxes[0].tolist()
    inside = whole[:, max(top, 0) : bottom, max(left, 0) : right]
    assert_close(
        patches.projections[0][:, max(-top, 0) :, max(-left, 0) :][:, : inside.shape[1], : inside.shape[2]], inside
    )
    assert inside.abs().max() > 0


FIELDS = [
    *("SiLU", "squeeze and excitation", "a gate behind a view", "a gate of places", "LayerNorm of whole maps"),
    *("GroupNorm", "InstanceNorm2d"),
]


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_is_that_of_the_path_back(name: str) -> None:
    model, x = STEPS[name](), images(1)
    graph = Deconvnet(model, rules="extended").graph
    field = receptive_field(graph, "conv2", SIDE)
    assert field.size == (5, 5) and field.exact == (name == "SiLU")
    for row, column in positions(SIDE - 2, SIDE - 2):
        signal = torch.zeros(1, 6, SIDE - 2, SIDE - 2, dtype=torch.float64)
        signal[..., row, column] = torch.randn(1, 6)
        support = deconvnet_by_autograd(model, x, "conv2", signal, extended=True)[0].abs().sum(0) > 0
        top, left, bottom, right = field.seen(row, column)
        inside = torch.zeros_like(support)
        inside[top:bottom, left:right] = True
        assert not (support & ~inside).any()
    plain = receptive_field(model, "conv2", SIDE)  # all that the unit depends on
    assert plain.exact and (plain.size == (5, 5)) == (name in ("SiLU", "a gate of places"))


WINDOWED = [
    *("squeeze and excitation", "a gate first", "a gate in place", "a gate of places", "a gate by hard sigmoid"),
    *("GroupNorm", "InstanceNorm2d", "LayerNorm, channels last", "RMSNorm"),
]


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize("one", [True, False])
def test_the_way_back_runs_on_windows(name: str, one: bool) -> None:
    model = STEPS[name]()
    model.pool, second = nn.MaxPool2d(3, 2, padding=1), model.conv2
    model.conv2 = nn.Sequential(model.pool, second)
    side, layer = 40, "conv2.1"
    deconvnet, x = Deconvnet(model, rules="extended"), images(3, side)
    shape = deconvnet.record(x, [layer]).activations[layer].shape
    units = [[0 if one else n % 3, n % 6, *place] for n, place in enumerate(positions(*shape[2:]))]
    located = deconvnet._located(layer, units, 3, (side, side))
    assert all(type(run).__name__ in ("_ByPath", "_ByWindow") for run in deconvnet._strategies(located, False))
    patches = deconvnet.project_units(x, layer, units)
    recording = deconvnet.record(x, [layer])
    activations = recording.activations[layer]
    for (image, *place), value, pixels, box in zip(units, patches.values, *patches[1:3], strict=True):
        assert_close(value, activations[(image, *place)])
        signal = torch.zeros_like(activations)
        signal[(image, *place)] = value
        whole = deconvnet_by_autograd(model, x, layer, signal, extended=True)[image]
        assert_close(on_the_image(pixels, box, (side, side)), whole, 1e-10)


GATED = [name for name in STEPS if name.startswith(("a gate", "a linear unit", "squeeze"))]


@pytest.mark.parametrize("name", GATED)
def test_units_behind_a_gate_are_projected_as_the_whole_image_is(name: str) -> None:
    check_units(Deconvnet(STEPS[name](), rules="extended"), images(), "conv2")


def test_a_gate_of_maps_stays_one_in_windows_of_one_place() -> None:
    def gated(x: Tensor, keys: nn.Module) -> Tensor:
        return F.relu(x) * keys(x.mean((2, 3), keepdim=True))

    model = between(gated, nn.Conv2d(8, 8, 1))
    model.conv2 = nn.Conv2d(8, 6, 1).double()
    check_units(Deconvnet(model, rules="extended"), images(), "conv2")


def test_what_sees_the_whole_image_needs_no_window_above() -> None:
    model = between(lambda x: windows(x.mean((2, 3), keepdim=True).expand_as(x)))
    field = receptive_field(model, "conv2", SIDE)
    assert field.size == (SIDE, SIDE) and field.seen(3, 4) == (0, 0, SIDE, SIDE)


def test_an_efficientnet_has_fields() -> None:
    deconvnet = Deconvnet(drawn("efficientnet_b0").float(), rules="extended")
    field = receptive_field(deconvnet.graph, "features.3", 224)
    assert field.size == (67, 67) and field.stride == (8, 8) and not field.exact
    x = torch.randn(2, 3, 224, 224)
    patches = deconvnet.project_units(x, "features.3", [[0, 1, 10, 10], [1, 2, 0, 27]])
    assert patches.projections.shape == (2, 3, 67, 67)
    recording = deconvnet.record(x, ["features.3"])
    signal = torch.zeros_like(recording.activations["features.3"])
    signal[0, 1, 10, 10] = recording.activations["features.3"][0, 1, 10, 10]
    whole = deconvnet.project(recording, "features.3", signal)[0]
    top, left, bottom, right = patches.boxes[0].tolist()
    inside = whole[:, top:bottom, left:right]
    assert_close(patches.projections[0], inside, 1e-5)
    whole[:, top:bottom, left:right] = 0
    assert not whole.any()


def test_the_rule_sets_stand_on_each_other() -> None:
    kept = {key: row for key, row in DECONVNET.items() if row.back is not None and key not in _PRODUCTS}
    assert all(EXTENDED[key].back == row.back for key, row in kept.items())
    assert set(DECONVNET) <= set(EXTENDED) and set(DECONVNET) <= set(GRADIENT) and set(GRADIENT) == set(GUIDED)


_PRODUCTS = {
    getattr(space, name)
    for space, names in (
        (torch, "mul div einsum"),
        (Tensor, "mul mul_ div div_"),
        (__import__("operator"), "mul truediv"),
    )
    for name in names.split()
}


@pytest.mark.parametrize("experiment", ["fig2", "fig7", "steps", "ablation"])
def test_a_layer_that_cannot_be_projected_is_refused_before_the_images_are_scanned(
    experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Scenes("val", 240, size=32)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(3600, len(data.classes)))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the images were scanned")

    for module in (fig2, fig7, steps, measure):
        for name in ("scan", "kept_scan"):
            monkeypatch.setattr(module, name, never, raising=False)
    main: Any = {"fig2": fig2, "fig7": fig7, "steps": steps, "ablation": ablation}[experiment].main
    layers = {"layer": "1"} if experiment in ("fig7", "steps") else {"layers": ["1"]}
    more = {"fig2": {"grids": [[1, 1]]}}.get(experiment, {})
    with pytest.raises(InputError, match=r"no deconvnet rule for SiLU at 1; .*rules=.extended"):
        main(model, data, tmp_path / "out", **layers, **more)
