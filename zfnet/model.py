"""ZFNet: the network of Zeiler & Fergus (2014), Figure 3, and by other arguments each variant of its Table 3.

    image 224 -> conv1 110 -> pool1 55 -> conv2 26 -> pool2 13 -> conv3, conv4, conv5 13 -> pool5 6 -> fc6, fc7, fc8

Every convolution is followed by a ReLU; layers 1 and 2 then max-pool (3x3, stride 2, windows overlap and cover the
border: ceil mode) and normalise contrast across maps, in this order.  The paper gives neither padding nor
normalisation constants: one pixel around the image is the only padding that gives its map sizes with torch's
rounding, and the constants are Krizhevsky et al.'s (2012).
"""

import functools
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from zfnet.errors import InputError, unknown_name
from zfnet.switches import SwitchMaxPool2d

CHANGES = {  # rows of Table 3: factors of the maps of layers 3, 4, 5 and of the widths of 6, 7; None: layer removed
    "": ((1, 1, 1), (1, 1)),
    "without layers 3, 4": ((None, None, 1), (1, 1)),
    "without layer 7": ((1, 1, 1), (1, None)),
    "without layers 6, 7": ((1, 1, 1), (None, None)),
    "without layers 3, 4, 6, 7": ((None, None, 1), (None, None)),
    "fc 2048": ((1, 1, 1), (1 / 2, 1 / 2)),
    "fc 8192": ((1, 1, 1), (2, 2)),
    "512-1024-512": ((4 / 3, 8 / 3, 2), (1, 1)),
    "fc 8192, 512-1024-512": ((4 / 3, 8 / 3, 2), (2, 2)),
}
NETWORKS: dict[str, dict[str, Any]] = {  # the two that Table 3 changes
    "krizhevsky": {"conv1": (11, 4), "conv2": (5, 1, 2), "norm": "before pool"},
    "fig3": {},
}
VARIANTS = {  # name -> (network, change), in the table's order: each network's seven and five rows
    f"{network} {change}".strip(): (network, change)
    for network, changes in (("krizhevsky", list(CHANGES)[:7]), ("fig3", ["", *list(CHANGES)[5:]]))
    for change in changes
}
MAPS, HIDDEN = (96, 256, 384, 384, 256), (4096, 4096)
PLACES = 6 * 6  # of the paper's layer 5, which fc6 reads
CHOICES: dict[str, tuple[str | None, ...]] = {
    "border": ("both", "right and below"),
    "norm": ("after pool", "before pool", None),
    "init": ("paper", "he", "quiet"),
}
CONTRAST = (5, 5e-4, 0.75, 2.0)  # size, alpha, beta and k of contrast normalisation: Krizhevsky et al.'s


@functools.lru_cache(maxsize=16)
def _band(maps: int, size: int, height: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(maps, maps): which maps (rows) are in the window of which (columns), times `height`."""
    with torch.inference_mode(False):
        index = torch.arange(maps, device=device)
        ahead = index[None, :] - index[:, None]
        near = (ahead <= size // 2) & (ahead >= -((size - 1) // 2))
        return near.to(dtype) * height


class _Normalise(torch.autograd.Function):
    """rows (P, C) of positions and maps -> rows / level ** beta, with level = k + rows ** 2 @ band."""

    @staticmethod
    def forward(rows: Tensor, band: Tensor, k: float, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        level = torch.addmm(rows.new_full((), k), rows * rows, band)  # new_tensor would wait for a GPU
        scale = (level * level.sqrt()).rsqrt_() if beta == 0.75 else level.pow(-beta)
        return rows * scale, level, scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        rows, band, ctx.k, ctx.beta = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(rows, band, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        rows, band, level, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # of a second derivative: level and scale depend on rows
            normalised = rows * torch.addmm(rows.new_full((), ctx.k), rows * rows, band).pow(-ctx.beta)
            return *torch.autograd.grad(normalised, rows, grad, create_graph=True), None, None, None
        direct = grad * scale
        through_level = (direct * rows).div_(level) @ band.T
        return torch.addcmul(direct, rows, through_level, value=-2 * ctx.beta), None, None, None


@torch.fx.wrap  # torch.fx, and so torchvision's create_feature_extractor, keeps it as one step
def contrast_normalised(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """x / (k + alpha / size * sum of squares over `size` maps) ** beta, of x (N, C, H, W).

    The window's sum is one product with a band matrix, and beta=0.75 needs square roots alone. torch pads, pools in
    three dimensions and raises to a power; torch.jit.trace, torch.compile and export record those plain operations.
    Squares of half precision overflow at 256, so types below 32 bits are computed in float32.

    Args:
        x: activations (N, C, H, W).
        size: maps in a window.
        alpha, beta, k: as in `torch.nn.LocalResponseNorm`.
    """
    wide = x.float() if x.dtype.itemsize < 4 else x
    symbolic = type(x) is not Tensor or x.is_meta  # no values: subclasses such as FakeTensor
    if symbolic or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return F.local_response_norm(wide, size, alpha, beta, k).to(x.dtype)
    band = _band(x.shape[1], size, alpha / size, wide.dtype, x.device)
    with torch.autocast(x.device.type, enabled=False):
        # a few images at a time: what does not leave a processor's cache need not be fetched again
        at_once = 4 if x.device.type == "cpu" else max(1, len(x))
        parts = [_normalised(part, band, k, beta) for part in wide.split(at_once)]
    return (torch.cat(parts) if len(parts) > 1 else parts[0]).to(x.dtype)


def _normalised(x: Tensor, band: Tensor, k: float, beta: float) -> Tensor:
    rows = x.movedim(1, -1)
    normalised: Tensor = _Normalise.apply(rows.reshape(-1, len(band)), band, k, beta)[0]
    return normalised.view(rows.shape).movedim(-1, 1)


class ContrastNorm(nn.LocalResponseNorm):
    """Drop-in `nn.LocalResponseNorm` for images, faster: see `contrast_normalised`.

    torch divides alpha by size: Krizhevsky's 1e-4 is alpha=5e-4 here.
    """

    def __init__(self, size: int = 5, alpha: float = 5e-4, beta: float = 0.75, k: float = 2.0):
        super().__init__(size, alpha, beta, k)

    def forward(self, x: Tensor) -> Tensor:
        return contrast_normalised(x, self.size, self.alpha, self.beta, self.k)


def _check(maps: Sequence[int | None], hidden: Sequence[int], **choices: str | None) -> None:
    if len(maps) != 5 or maps[0] is None or any(m is not None and m < 1 for m in maps):
        raise InputError(f"maps must be five positive numbers, None where a layer is left out; got {tuple(maps)}")
    if len(hidden) > 2 or any(h < 1 for h in hidden):
        raise InputError(f"hidden must be at most two positive numbers, for fc6 and fc7; got {tuple(hidden)}")
    for name, choice in choices.items():
        if choice not in CHOICES[name]:
            raise unknown_name(name, str(choice), map(str, CHOICES[name]))


def _check_reference(maps: Sequence[int | None], hidden: Sequence[int], reference: Any) -> None:
    try:
        wide_maps, wide_hidden = reference
    except (TypeError, ValueError):
        raise InputError(f"reference is {reference!r}; give maps and hidden, as {(MAPS, HIDDEN)}") from None
    _check(wide_maps, wide_hidden)
    absent = [f"conv{n}" for n, pair in enumerate(zip(maps, wide_maps, strict=True), 1) if pair[0] and not pair[1]]
    absent += [f"fc{n}" for n in range(6 + len(wide_hidden), 6 + len(hidden))]
    if absent:
        raise InputError(f"reference has no {absent[0]}, which the network has; give it maps and hidden of every layer")


def _convolutions(
    image_size: int,
    channels: int,
    maps: Sequence[int | None],
    first: tuple[Sequence[int], Sequence[int]],
    border: str,
    norm: str | None,
    contrast: tuple[int, float, float, float],
) -> tuple[OrderedDict[str, nn.Module], int]:
    """Layers 1 to 5, and how many values they give of an image."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    excess, side = first[0][0] % first[0][1], image_size
    if border == "right and below":
        layers["pad1"] = nn.ZeroPad2d((0, excess, 0, excess))
        side, excess = side + excess, 0
    geometry = ((*first[0], (excess + 1) // 2), (*first[1], 0), (3, 1, 1), (3, 1, 1), (3, 1, 1))
    for n, (count, (kernel, stride, padding, *_)) in enumerate(zip(maps, geometry, strict=True), 1):
        if count is None:
            continue
        layers[f"conv{n}"] = nn.Conv2d(channels, count, kernel, stride, padding)
        layers[f"relu{n}"] = nn.ReLU(inplace=True)
        side = (side + 2 * padding - kernel) // stride + 1
        if norm == "before pool" and n < 3:
            layers[f"norm{n}"] = ContrastNorm(*contrast)
        if n in (1, 2, 5):
            layers[f"pool{n}"] = SwitchMaxPool2d(3, 2, ceil_mode=True)
            side = -(-(side - 3) // 2) + 1
        if norm == "after pool" and n < 3:
            layers[f"norm{n}"] = ContrastNorm(*contrast)
        if side < 1:
            raise InputError(f"images of {image_size} pixels are too small for ZFNet: nothing is left after layer {n}")
        channels = count
    return layers, channels * side * side


class ZFNet(nn.Sequential):
    """The network of Figure 3, from images (N, channels, image_size, image_size) to logits (N, num_classes).

    Zeiler & Fergus (2014), section 3 and Figure 3; other arguments give the variants of Table 3.

    Args:
        num_classes: number of logits.
        channels: of the images: 3, or 1 for grey ones.
        maps: feature maps of conv1..conv5, None where a layer is left out.
        hidden: widths of fc6 and fc7; a shorter tuple leaves layers out.
        conv1, conv2: (kernel, stride) or (kernel, stride, padding), in pixels.
        border: where the padding of conv1 rounds its map size up: on "both" sides, or "right and below" (cuda-convnet).
        norm: "after pool" (this paper), "before pool" (Krizhevsky et al., 2012), or None.
        contrast: size, alpha, beta and k of the normalisation, by torch's convention: see ContrastNorm.
        dropout: the probability in layers 6 and 7.
        image_size: rows and columns of the images, in pixels.
        init: "paper": N(0, 0.01^2) at the paper's widths; in other networks 0.01 times the root of (inputs of the
            paper's layer / inputs of this one), with which a layer's outputs vary as much as in the paper's network.
            "he": by fan-in (He et al., 2015); "quiet": the same but for conv1, which begins near zero. Biases are zero.
        reference: maps and hidden of the network that has "the paper's widths", for init; see `variant`.

    Raises:
        InputError: for widths, choices or an image size that give no network.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        channels: int = 3,
        maps: tuple[int | None, ...] = MAPS,
        hidden: tuple[int, ...] = HIDDEN,
        conv1: tuple[int, ...] = (7, 2),
        conv2: tuple[int, ...] = (5, 2),
        border: str = "both",
        norm: str | None = "after pool",
        contrast: tuple[int, float, float, float] = CONTRAST,
        dropout: float = 0.5,
        image_size: int = 224,
        init: str = "paper",
        reference: tuple[tuple[int | None, ...], tuple[int, ...]] = (MAPS, HIDDEN),
    ):
        _check(maps, hidden, border=border, norm=norm, init=init)
        _check_reference(maps, hidden, reference)
        layers, width = _convolutions(image_size, channels, maps, (conv1, conv2), border, norm, contrast)
        layers["flatten"] = nn.Flatten()
        for n, units in enumerate(hidden, 6):
            layers[f"fc{n}"] = nn.Linear(width, units)
            layers[f"relu{n}"] = nn.ReLU(inplace=True)
            layers[f"drop{n}"] = nn.Dropout(dropout)
            width = units
        layers["fc8"] = nn.Linear(width, num_classes)
        super().__init__(layers)
        self.image_size = image_size
        self._initialise(init, *reference)
        self.to(memory_format=torch.channels_last)

    def _initialise(self, init: str, maps: Sequence[int | None], hidden: Sequence[int]) -> None:
        layers = {name: module for name, module in self.named_children() if isinstance(module, nn.Conv2d | nn.Linear)}
        wide = None  # inputs of the layer in the paper's network; the first reads the image in both
        for name, layer in layers.items():
            narrow = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
            if name == "fc6" or (name == "fc8" and "fc6" not in layers):
                wide = wide and wide * PLACES
            if init == "paper":
                nn.init.normal_(layer.weight, std=0.01 * math.sqrt((wide or narrow) / narrow))
            else:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            number = int(name[-1])
            wide = maps[number - 1] if number < 6 else hidden[number - 6] if number < 8 else None
        if init == "quiet":
            nn.init.normal_(layers["conv1"].weight, std=0.001)

    def __getitem__(self, index: Any) -> Any:
        """One layer, or the chain of layers of a slice."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self.named_children())[index]))
        return super().__getitem__(index)


def variant(name: str, **architecture: Any) -> dict[str, Any]:
    """The arguments of ZFNet for a row of Table 3, from those of the network of Figure 3 that it is made from.

    The changes are relative, so that they scale with the network: "fc 2048" halves `hidden`, "512-1024-512" makes 4/3,
    8/3 and 2 times as many maps in layers 3, 4, 5; `reference` has the paper's own.

    Args:
        name: one of VARIANTS, such as "krizhevsky without layers 3, 4".
        architecture: arguments of ZFNet.

    Raises:
        InputError: for a name that is not in VARIANTS, and for a network that has not the layers to change.
    """
    if name not in VARIANTS:
        raise unknown_name("variant", name, VARIANTS)
    network, change = VARIANTS[name]
    maps, hidden = tuple(architecture.get("maps", MAPS)), tuple(architecture.get("hidden", HIDDEN))
    if change and (None in maps or len(hidden) != 2):
        raise InputError(f"{name!r} is made from a network with layers 1 to 7; got maps {maps} and hidden {hidden}")
    maps, hidden = _changed(change, maps, hidden)
    reference = _changed(change, MAPS, HIDDEN)
    return {**architecture, **NETWORKS[network], "maps": maps, "hidden": hidden, "reference": reference}


def _changed(
    change: str, maps: Sequence[int | None], hidden: Sequence[int]
) -> tuple[tuple[int | None, ...], tuple[int, ...]]:
    """The widths after a change; without one, as they are."""
    if not change:
        return tuple(maps), tuple(hidden)
    inner, outer = CHANGES[change]
    deep = (round(f * m) if f and m else None for f, m in zip(inner, maps[2:], strict=True))
    return (*maps[:2], *deep), tuple(round(f * h) for f, h in zip(outer, hidden, strict=True) if f)
