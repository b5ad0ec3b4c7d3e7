"""The AWQ clip search: shrink a group's range when what is clipped costs less than the finer grid gains.

For each row and group both ends of the range are shrunk together to 1.00, 0.94, ... 0.34 of what they were, then each
end is moved alone, up to three steps either way, twice over (AutoAWQ keeps one bound for both ends and stops at 0.55;
with 3 bits and fewer the difference is large). A range is judged by the error it makes in that group's share of the
output: d G_gg d^T with the group's diagonal block of the Gram matrix.
"""

from __future__ import annotations

import torch

from awq_engine.quantize import QParams, choose_qparams, group_ranges, row_slices, snap_
from awq_engine.spec import QuantSpec
from awq_engine.statistics import InputStatistics

STEP = 0.06
STEPS_TOGETHER = 11
STEPS_ALONE = (-3, -2, -1, 1, 2, 3)
ROUNDS = 2


def choose_clip(weight: torch.Tensor, statistics: InputStatistics, spec: QuantSpec) -> tuple[QParams, float]:
    """The best grid of every group among the shrunken ranges, and the share of groups that were shrunk.

    Args:
        weight: float32 [out, in].
    """
    gram = _diagonal_blocks(statistics.gram, spec.group_of(weight.shape[1]))
    parts = [_Ranges(weight[rows], gram, spec) for rows in row_slices(weight)]
    for part in parts:
        part.search()
    grids = [part.grid() for part in parts]
    best = QParams(torch.cat([grid.scale for grid in grids]), torch.cat([grid.zero_point for grid in grids]))
    return best, float(torch.cat([part.clipped() for part in parts]).float().mean())


class _Ranges:
    """The range of every group of some rows, as shares of the full one: float32 [rows, n_groups]."""

    def __init__(self, weight: torch.Tensor, gram: torch.Tensor, spec: QuantSpec) -> None:
        self._groups = spec.grouped(weight)
        self._gram = gram
        self._spec = spec
        self._full_low, self._full_high = group_ranges(weight, spec)
        self._low, self._high = torch.ones_like(self._full_low), torch.ones_like(self._full_high)
        self._error = self._error_of(self._low, self._high)

    def search(self) -> None:
        for step in range(1, STEPS_TOGETHER + 1):
            share = torch.full_like(self._low, 1 - STEP * step)
            self._offer(share, share)
        for _ in range(ROUNDS):
            low, high = self._low, self._high
            for step in STEPS_ALONE:
                self._offer((low + STEP * step).clamp(0, 1), high)
            low, high = self._low, self._high
            for step in STEPS_ALONE:
                self._offer(low, (high + STEP * step).clamp(0, 1))

    def grid(self) -> QParams:
        return choose_qparams(self._full_low * self._low, self._full_high * self._high, self._spec)

    def clipped(self) -> torch.Tensor:
        return (self._low < 1) | (self._high < 1)

    def _offer(self, low: torch.Tensor, high: torch.Tensor) -> None:
        """Take these shares where they are better."""
        error = self._error_of(low, high)
        better = error < self._error
        self._error = torch.where(better, error, self._error)
        self._low, self._high = torch.where(better, low, self._low), torch.where(better, high, self._high)

    def _error_of(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """Output error of each row and group, float32 [rows, n_groups]."""
        qparams = choose_qparams(self._full_low * low, self._full_high * high, self._spec)
        scale, zero = qparams.scale[..., None], qparams.zero_point[..., None]
        snapped = snap_(self._groups / scale, scale, zero, self._spec.levels)
        difference = snapped.sub_(self._groups).transpose(0, 1)  # [n_groups, rows, group_size]
        return (torch.bmm(difference, self._gram) * difference).sum(-1).T


def _diagonal_blocks(gram: torch.Tensor, group_size: int) -> torch.Tensor:
    """[n_groups, group_size, group_size] from [in, in]."""
    n_groups = gram.shape[0] // group_size
    blocks = gram.view(n_groups, group_size, n_groups, group_size)
    return torch.diagonal(blocks, dim1=0, dim2=2).permute(2, 0, 1)
