"""Uniform integer quantization of a weight in groups: ranges, steps, rounding.

    asymmetric:  scale = (hi - lo) / (2**bits - 1),  zero_point = round(-lo / scale)
    symmetric:   zero_point = 2**(bits - 1) everywhere, scale just covers both ends
    q = clamp(round(w / scale) + zero_point, 0, 2**bits - 1),  w_hat = (q - zero_point) * scale

Zero always lies in the range (AutoAWQ leaves it out, and a group of one sign collapses to a single value). Steps are
rounded to float16, the dtype they are stored in, before anything is rounded to them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from awq_engine.spec import QuantSpec
from awq_kernels.int_weight import IntWeight

SMALLEST_SCALE = 2.0**-24
"""The smallest positive float16: a group of zeros gets it."""


@dataclass(frozen=True)
class QParams:
    """The grid of every group."""

    scale: torch.Tensor
    """float32 [out, n_groups], each value exactly a float16."""
    zero_point: torch.Tensor
    """float32 [out, n_groups], whole numbers 0..levels."""


def group_ranges(weight: torch.Tensor, spec: QuantSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Lowest and highest value of each group, zero included: two float32 [out, n_groups]."""
    groups = spec.grouped(weight)
    return groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)


def choose_qparams(low: torch.Tensor, high: torch.Tensor, spec: QuantSpec) -> QParams:
    """The grid that just covers `low` <= 0 <= `high` (float32 [out, n_groups] each)."""
    if spec.symmetric:
        middle = 2 ** (spec.bits - 1)
        scale = _storable(torch.maximum(high / (middle - 1), -low / middle))
        return QParams(scale, torch.full_like(scale, middle))
    scale = _storable((high - low) / spec.levels)
    return QParams(scale, (-low / scale).round_().clamp_(0, spec.levels))


def round_to_grid(weight: torch.Tensor, qparams: QParams, spec: QuantSpec) -> torch.Tensor:
    """The nearest grid value of every weight, float32 [out, in]."""
    scale, zero = qparams.scale[..., None], qparams.zero_point[..., None]
    q = (spec.grouped(weight) / scale).round_().add_(zero).clamp_(0, spec.levels)
    return q.sub_(zero).mul_(scale).view_as(weight)


def round_to_nearest(weight: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    """Plain rounding with full ranges (RTN), as float32 [out, in]."""
    return round_to_grid(weight, choose_qparams(*group_ranges(weight, spec), spec), spec)


def to_int_weight(rounded: torch.Tensor, qparams: QParams, spec: QuantSpec) -> IntWeight:
    """The integers of values that already lie on the grid.

    Args:
        rounded: float32 [out, in], as `round_to_grid` returns it.
    """
    q = (spec.grouped(rounded) / qparams.scale[..., None]).round_() + qparams.zero_point[..., None]
    return IntWeight(
        q=q.clamp_(0, spec.levels).to(torch.uint8).view(rounded.shape).contiguous(),
        scale=qparams.scale.to(torch.float16).contiguous(),
        zero_point=qparams.zero_point.to(torch.uint8).contiguous(),
        group_size=spec.group_of(rounded.shape[1]),
        bits=spec.bits,
    )


def _storable(scale: torch.Tensor) -> torch.Tensor:
    """Round steps to float16, neither zero nor infinite."""
    finite = scale.clamp(SMALLEST_SCALE, torch.finfo(torch.float16).max)
    return finite.to(torch.float16).float()
