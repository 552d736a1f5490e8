"""ZFNet with one newer part, for which the paper's deconvnet has no rule.

`CHANGES` says what replaces each part. Everything else is ZFNet's, and so are the initial weights of a seed, except
those behind gates.
"""

from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops import SqueezeExcitation

from zfnet.errors import unknown_name
from zfnet.model import ContrastNorm, ZFNet

REDUCTION = 16  # of maps to those between a gate's two layers: Hu et al. (2018), section 6.1
BEHIND_GATES = ("conv2", "conv3", "conv4", "conv5", "fc6")
Parts = dict[str, nn.Module]


def silu(name: str, part: nn.Module, maps: int) -> Parts:
    """SiLU in place of every ReLU: Hendrycks & Gimpel (2016), arXiv:1606.08415; silu1 stands where relu1 stood."""
    return {name.replace("relu", "silu"): nn.SiLU()} if isinstance(part, nn.ReLU) else {name: part}


def squeeze_excitation(name: str, part: nn.Module, maps: int) -> Parts:
    """A gate behind the ReLU of every convolution: Hu et al. (2018), arXiv:1709.01507; gate1 follows relu1.

    Gates begin near 1/2. The layers behind them begin with twice the weights, so that their outputs begin as ZFNet's:
    with five halves in a row and no batch normalisation, the paper's recipe did not leave chance in five epochs.
    """
    if isinstance(part, nn.Conv2d | nn.Linear) and name in BEHIND_GATES:
        part.weight.data.mul_(2)
    if not isinstance(part, nn.ReLU) or name >= "relu6":
        return {name: part}
    return {name: part, name.replace("relu", "gate"): SqueezeExcitation(maps, max(1, maps // REDUCTION))}


def layer_norm(name: str, part: nn.Module, maps: int) -> Parts:
    """Layer norm over the maps of each place, as in ConvNeXt, in place of contrast normalisation over five maps."""
    return {name: LayerNorm2d(maps, eps=1e-6) if isinstance(part, ContrastNorm) else part}


CHANGES: dict[str, Callable[[str, nn.Module, int], Parts]] = {
    "silu": silu,
    "squeeze-excitation": squeeze_excitation,
    "layer norm": layer_norm,
}


class AlteredZFNet(ZFNet):
    """ZFNet with a change of `CHANGES`.

    Args:
        change: its name.
        architecture: the arguments of ZFNet.
    Raises:
        InputError: for a name that is not in CHANGES, and for what ZFNet refuses.
    """

    def __init__(self, *, change: str, **architecture: Any):
        if change not in CHANGES:
            raise unknown_name("change", change, CHANGES)
        super().__init__(**architecture)
        parts, maps = dict(self.named_children()), 0
        self._modules.clear()
        for name, part in parts.items():
            maps = getattr(part, "out_channels", maps)
            self._modules.update(CHANGES[change](name, part, maps))
