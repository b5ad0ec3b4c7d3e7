"""The AWQ clip search: shrink a group's range when what is clipped costs less than the finer grid gains.

For each row and group the bound is max|w| times 1.00, 0.95, ... 0.55 (AutoAWQ's grid), judged by the error it makes in
that group's share of the output: d G_gg d^T with the group's diagonal block of the Gram matrix.
"""

from __future__ import annotations

import torch

from awq_engine.quantize import QParams, choose_qparams, group_ranges
from awq_engine.spec import QuantSpec
from awq_engine.statistics import InputStatistics

SHRINK_STEPS = 10
SHRINK_STEP = 0.05


def choose_clip(weight: torch.Tensor, statistics: InputStatistics, spec: QuantSpec) -> tuple[QParams, float]:
    """The best grid of every group among the shrunken ranges, and the share of groups that were shrunk.

    Args:
        weight: float32 [out, in].
    """
    groups = spec.grouped(weight)
    gram = _diagonal_blocks(statistics.gram, groups.shape[-1])
    low, high = group_ranges(weight, spec)
    bound = torch.maximum(high, -low)
    best = choose_qparams(low, high, spec)
    best_error = _group_error(groups, best, gram, spec)
    clipped = torch.zeros_like(best_error, dtype=torch.bool)
    for step in range(1, SHRINK_STEPS):
        limit = bound * (1 - SHRINK_STEP * step)
        trial = choose_qparams(torch.maximum(low, -limit), torch.minimum(high, limit), spec)
        error = _group_error(groups, trial, gram, spec)
        better = error < best_error
        best = QParams(
            torch.where(better, trial.scale, best.scale), torch.where(better, trial.zero_point, best.zero_point)
        )
        best_error = torch.where(better, error, best_error)
        clipped |= better
    return best, float(clipped.float().mean())


def _diagonal_blocks(gram: torch.Tensor, group_size: int) -> torch.Tensor:
    """[n_groups, group_size, group_size] from [in, in]."""
    n_groups = gram.shape[0] // group_size
    blocks = gram.view(n_groups, group_size, n_groups, group_size)
    return torch.diagonal(blocks, dim1=0, dim2=2).permute(2, 0, 1)


def _group_error(groups: torch.Tensor, qparams: QParams, gram: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    """Output error of each row and group, float32 [out, n_groups]."""
    scale, zero = qparams.scale[..., None], qparams.zero_point[..., None]
    q = (groups / scale).round_().add_(zero).clamp_(0, spec.levels)
    difference = q.sub_(zero).mul_(scale).sub_(groups).transpose(0, 1)  # [n_groups, out, group_size]
    return (torch.bmm(difference, gram) * difference).sum(-1).T
