"""Uniform integer quantization of a weight in groups: ranges, steps, rounding.

    asymmetric:  scale = (hi - lo) / (2**bits - 1),  zero_point = round(-lo / scale)
    symmetric:   zero_point = 2**(bits - 1) everywhere, scale just covers both ends
    q = clamp(round(w / scale) + zero_point, 0, 2**bits - 1),  w_hat = (q - zero_point) * scale

Zero always lies in the range (AutoAWQ leaves it out, and a group of one sign collapses to a single value). Steps are
rounded to the dtype they are stored in before anything is rounded to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from awq_engine.spec import QuantSpec
from awq_kernels.int_weight import IntWeight

SMALLEST_SCALE = 2.0**-24
"""The smallest positive float16, and a bfloat16 too: a group of zeros gets it."""
LARGEST_SCALE = 65280.0
"""The largest number that is both a float16 and a bfloat16."""

ROWS = 2048
ELEMENTS = 1 << 22
"""Rows of a weight, and numbers in them, that are worked on at a time: bounds the memory of what treats rows alike."""

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class QParams:
    """The grid of every group."""

    scale: torch.Tensor
    """float32 [out, n_groups], each value exactly one of the dtype it is stored in."""
    zero_point: torch.Tensor
    """float32 [out, n_groups], whole numbers lowest_zero..levels."""

    def of(self, rows: slice) -> QParams:
        """The grids of some rows."""
        return QParams(self.scale[rows], self.zero_point[rows])


def row_slices(weight: torch.Tensor) -> Iterator[slice]:
    """The rows of a weight [out, in], as many at a time as are worked on together."""
    step = max(1, min(ROWS, ELEMENTS // weight.shape[1]))
    for start in range(0, len(weight), step):
        yield slice(start, start + step)


def group_ranges(weight: torch.Tensor, spec: QuantSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Lowest and highest value of each group, zero included: two float32 [out, n_groups]."""
    groups = spec.grouped(weight)
    return groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)


def choose_qparams(low: torch.Tensor, high: torch.Tensor, spec: QuantSpec) -> QParams:
    """The grid that just covers `low` <= 0 <= `high` (float32 [out, n_groups] each).

    Where zero points start at 1 (GPTQ's first version), a range without negative values is widened by the level
    below zero, so that its highest value stays on the grid.
    """
    if spec.symmetric:
        middle = 2 ** (spec.bits - 1)
        scale = _storable(torch.maximum(high / (middle - 1), -low / middle), spec)
        return QParams(scale, torch.full_like(scale, middle))
    low = torch.minimum(low, high * (-spec.lowest_zero / (spec.levels - spec.lowest_zero)))
    scale = _storable((high - low) / spec.levels, spec)
    return QParams(scale, (-low / scale).round_().clamp_(spec.lowest_zero, spec.levels))


def round_to_grid(weight: torch.Tensor, qparams: QParams, spec: QuantSpec) -> torch.Tensor:
    """The nearest grid value of every weight, float32 [out, in]."""
    scale, zero = qparams.scale[..., None], qparams.zero_point[..., None]
    return snap_(spec.grouped(weight) / scale, scale, zero, spec.levels).view_as(weight)


def snap_(quotient: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, levels: int) -> torch.Tensor:
    """The nearest grid values, in the place of `quotient`: values divided by their scale; all shapes broadcast."""
    return quotient.round_().add_(zero).clamp_(0, levels).sub_(zero).mul_(scale)


def round_to_nearest(weight: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    """Plain rounding with full ranges (RTN), as float32 [out, in]."""
    return round_to_grid(weight, choose_qparams(*group_ranges(weight, spec), spec), spec)


def to_int_weight(rounded: torch.Tensor, qparams: QParams, spec: QuantSpec) -> IntWeight:
    """The integers of values that already lie on the grid.

    Args:
        rounded: float32 [out, in], as `round_to_grid` returns it.
    """
    q = torch.empty(rounded.shape, dtype=torch.uint8, device=rounded.device)
    for rows in row_slices(rounded):
        grid = qparams.of(rows)
        levels = (spec.grouped(rounded[rows]) / grid.scale[..., None]).round_().add_(grid.zero_point[..., None])
        q[rows] = levels.clamp_(0, spec.levels).view(-1, rounded.shape[1])
    return IntWeight(
        q=q,
        scale=qparams.scale.to(DTYPES[spec.step_dtype]).contiguous(),
        zero_point=qparams.zero_point.to(torch.uint8).contiguous(),
        group_size=spec.group_of(rounded.shape[1]),
        bits=spec.bits,
    )


def _storable(scale: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    """Round steps to the dtype they are stored in, neither zero nor infinite in float16 (readers convert)."""
    finite = scale.clamp(SMALLEST_SCALE, LARGEST_SCALE)
    return finite.to(DTYPES[spec.step_dtype]).float()
