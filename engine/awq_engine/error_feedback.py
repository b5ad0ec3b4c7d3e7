"""Rounding with error feedback (GPTQ, arXiv:2210.17323): each column's rounding error is made good by the columns left.

With H = E[x x^T] (damped) and U the upper Cholesky factor of H^-1, rounding column i to its grid leaves the error e =
(w_i - q_i) / U_ii, and the columns after it move by -e U_i. Columns go in order of falling H_ii, the groups' grids
are fixed beforehand, so the stored layout is the plain one (no g_idx).
"""

from __future__ import annotations

import torch

from awq_engine.quantize import QParams
from awq_engine.spec import QuantSpec
from awq_engine.statistics import InputStatistics

DAMPING = 0.01
"""Of the mean diagonal."""
CHUNK = 128
"""Columns whose updates to the rest are applied together."""


def round_with_feedback(
    weight: torch.Tensor, statistics: InputStatistics, qparams: QParams, spec: QuantSpec
) -> torch.Tensor:
    """Grid values whose outputs on the calibration inputs are closest, greedily: float32 [out, in].

    Args:
        weight: float32 [out, in].
        statistics: of the inputs the rounded weight will really see.
        qparams: the grid of every group.
    """
    order = torch.argsort(statistics.gram.diagonal(), descending=True, stable=True)
    factor = _inverse_factor(statistics.gram[order][:, order])
    group_of = torch.arange(weight.shape[1], device=weight.device)[order] // spec.group_of(weight.shape[1])
    scale, zero = qparams.scale[:, group_of], qparams.zero_point[:, group_of]
    rest = weight[:, order].clone()
    rounded = torch.empty_like(rest)
    for start in range(0, rest.shape[1], CHUNK):
        stop = min(start + CHUNK, rest.shape[1])
        chunk = rest[:, start:stop]
        errors = torch.empty_like(chunk)
        for i in range(stop - start):
            column = start + i
            q = (chunk[:, i] / scale[:, column]).round_().add_(zero[:, column]).clamp_(0, spec.levels)
            rounded[:, column] = q.sub_(zero[:, column]).mul_(scale[:, column])
            errors[:, i] = (chunk[:, i] - rounded[:, column]) / factor[column, column]
            chunk[:, i:] -= errors[:, i, None] * factor[column, column:stop]
        rest[:, stop:] -= errors @ factor[start:stop, stop:]
    return rounded[:, torch.argsort(order)]


def _inverse_factor(gram: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factor of the inverse of the damped Gram matrix, float32; dead channels are left alone."""
    damped = gram.double()
    diagonal = damped.diagonal()
    diagonal += DAMPING * diagonal.mean().clamp(min=1e-12)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()
