"""The truth every kernel is tested against: plain torch, one line of arithmetic per function.

Nothing here is fast. `dequantize` computes `(q - zero_point) * scale` in float32 and rounds once, at the end, to the
dtype asked for; `matmul` multiplies in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from awq_kernels.int_weight import IntWeight


def dequantize(weight: IntWeight, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight as floats, `dtype` [out_features, in_features]; exact in float32 for float16 and bfloat16 scales."""
    groups = weight.q.view(weight.out_features, weight.n_groups, weight.group_size)
    levels = groups.float().sub_(weight.zero_point.float()[:, :, None])  # [out, n_groups, group_size]
    levels *= weight.scale.float()[:, :, None]
    columns = levels.view(weight.out_features, weight.in_features)
    return (columns if weight.order is None else columns[:, weight.order.argsort()]).to(dtype)


def matmul(x: torch.Tensor, weight: IntWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x @ dequantize(weight).T + bias`, computed in float32 and returned in the dtype of `x`.

    Args:
        x: [..., in_features], any float dtype.
        bias: [out_features] or None.
    Returns:
        [..., out_features] in the dtype of `x`.
    """
    bias = None if bias is None else bias.float()
    return F.linear(x.float(), dequantize(weight), bias).to(x.dtype)
