"""torch's attention module as one step with one output, and the part of it that goes through the values.

`nn.MultiheadAttention` gives a tensor and, if asked, its weights. A graph takes the tensor alone.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from zfnet.checks import call_in_eval_mode


def multihead_attention(
    query: Tensor, key: Tensor, value: Tensor, attention: nn.MultiheadAttention, settings: Mapping[str, Any]
) -> Tensor:
    """The output of the module, without its weights.

    Args:
        query, key, value: as the module takes them.
        settings: further arguments of its `forward`, by name.
    """
    out: Tensor = call_in_eval_mode(attention, query, key, value, **settings)[0]
    return out


def value_path(
    attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, **settings: Any
) -> Callable[[Tensor], Tensor]:
    """The module as a function of the values alone, up to a constant: the attention weights are held fixed."""
    asked = {**settings, "need_weights": True, "average_attn_weights": False}
    weights = call_in_eval_mode(attention, query, key, value, **asked)[1]  # ([N,] heads, targets, sources)
    projection = attention.v_proj_weight
    if projection is None:
        projection = attention.in_proj_weight.chunk(3)[2]

    def path(values: Tensor) -> Tensor:
        values = F.linear(values, projection)
        if values.ndim == 3 and not attention.batch_first:
            values = values.transpose(0, 1)
        values = values.unflatten(-1, (attention.num_heads, -1)).transpose(-2, -3)
        out = (weights[..., : values.shape[-2]] @ values).transpose(-2, -3).flatten(-2)
        if out.ndim == 3 and not attention.batch_first:
            out = out.transpose(0, 1)
        return F.linear(out, attention.out_proj.weight)

    return path
