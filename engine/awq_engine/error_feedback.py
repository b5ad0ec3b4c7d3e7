"""Rounding with error feedback (GPTQ, arXiv:2210.17323): each column's rounding error is made good by the columns left.

With H = E[x x^T] (damped), the channels in order of rising H_ii and H = U^T U, columns are rounded from the last to the
first, each after it was moved by what the errors made so far can be made good for:

    t_i = w_i + sum_{j > i} e_j U_ij / U_ii,     q_i = round(t_i),     e_j = w_j - q_j

This is GPTQ's rule in the form of LDLQ (arXiv:2307.13304, theorem 6), which needs no inverse: a third of the work, and
one matrix. The groups' grids are fixed beforehand, so the stored layout is the plain one (no g_idx).
"""

from __future__ import annotations

import torch

from awq_engine.cholesky import damped_factor
from awq_engine.quantize import QParams, row_slices, snap_
from awq_engine.spec import QuantSpec
from awq_engine.statistics import InputStatistics

DAMPING = 0.1
"""Of the mean diagonal: more than GPTQ's 0.01, for the sake of text unlike the calibration's."""
CHUNK = 128
"""Columns that take the errors of all columns before them together."""


def round_with_feedback_(
    weight: torch.Tensor, statistics: InputStatistics, qparams: QParams, spec: QuantSpec
) -> torch.Tensor:
    """Grid values whose outputs on the calibration inputs are closest, greedily, in the place of `weight`.

    Args:
        weight: float32 [out, in].
        statistics: of the inputs the rounded weight will really see.
        qparams: the grid of every group.
    """
    order, factor = feedback_factor(statistics)
    # a GPU waits for launches, which are the same for more rows
    for rows in [slice(None)] if weight.is_cuda else row_slices(weight):
        _round_rows(weight[rows], order, factor, qparams.of(rows), spec)
    return weight


def feedback_factor(statistics: InputStatistics) -> tuple[torch.Tensor, torch.Tensor]:
    """The order of the channels, quietest first, and U with its rows divided by its diagonal (made once, then kept)."""
    if not statistics.feedback:
        diagonal = statistics.gram.diagonal()
        order = torch.argsort(diagonal, descending=True, stable=True).flip(0)
        damping = (DAMPING * diagonal.mean()).clamp(min=1e-12).expand_as(diagonal)
        factor = damped_factor(statistics.gram, damping, order)
        statistics.feedback.append((order, factor.div_(factor.diagonal().clone()[:, None])))
    return statistics.feedback[0]


def _round_rows(
    weight: torch.Tensor, order: torch.Tensor, factor: torch.Tensor, grids: QParams, spec: QuantSpec
) -> None:
    """Round `weight` [rows, in] in its place; works on columns that lie together in memory."""
    errors = weight.T.index_select(0, order)  # [in, rows]: the weights, until their errors take their place
    groups = (order // spec.group_of(len(order))).tolist()
    scales, zeros = grids.scale.T.contiguous(), grids.zero_point.T.contiguous()  # [n_groups, rows]
    for stop in range(len(order), 0, -CHUNK):
        start = max(0, stop - CHUNK)
        target = errors[start:stop].addmm(factor[start:stop, stop:], errors[stop:])
        for i in reversed(range(start, stop)):
            column, scale, zero = target[i - start], scales[groups[i]], zeros[groups[i]]
            column.addmv_(errors[i + 1 : stop].T, factor[i, i + 1 : stop])
            snap_(column.div_(scale), scale, zero, spec.levels)
            errors[i] -= column
        weight[:, order[start:stop]] = target.T
