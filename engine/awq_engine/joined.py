"""Linears that read the same input as one product.

Their weights are laid behind one another along the outputs, which changes no number. The modules stay what they were:
each goes on reading its own rows of what is now shared, so nothing is in memory twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from awq_engine.linear import QuantizedLinear
from awq_kernels.dispatch import join


def join_linears(linears: Sequence[nn.Module]) -> Callable[[torch.Tensor], torch.Tensor]:
    """One callable for the outputs of all `linears` in a row; side by side where they cannot be joined."""
    joined = None
    if all(isinstance(linear, QuantizedLinear) for linear in linears):
        joined = _join_quantized([linear for linear in linears if isinstance(linear, QuantizedLinear)])
    elif all(type(linear) is nn.Linear for linear in linears):
        joined = _join_floats([linear for linear in linears if isinstance(linear, nn.Linear)])
    return joined or (lambda x: torch.cat([linear(x) for linear in linears], dim=-1))


def _join_quantized(linears: list[QuantizedLinear]) -> Callable[[torch.Tensor], torch.Tensor] | None:
    found = join([linear.prepared for linear in linears])
    if found is None:
        return None
    whole, parts = found
    for linear, part in zip(linears, parts, strict=True):
        linear.prepared = part
    bias = _join_biases([linear.bias for linear in linears], [linear.out_features for linear in linears])
    return QuantizedLinear(whole, bias)


def _join_floats(linears: list[nn.Linear]) -> Callable[[torch.Tensor], torch.Tensor]:
    rows = [linear.out_features for linear in linears]
    weight = torch.cat([linear.weight.detach() for linear in linears])
    for linear, part in zip(linears, weight.split(rows), strict=True):
        linear.weight = nn.Parameter(part, requires_grad=False)
    bias = _join_biases([linear.bias for linear in linears], rows)
    return lambda x: F.linear(x, weight, bias)


def _join_biases(biases: Sequence[torch.Tensor | None], rows: Sequence[int]) -> torch.Tensor | None:
    """None when there is none; zeros where one is missing."""
    present = [bias for bias in biases if bias is not None]
    if not present:
        return None
    return torch.cat([present[0].new_zeros(n) if b is None else b.detach() for b, n in zip(biases, rows, strict=True)])
