"""Error feedback along both sides of a weight: what a row's rounding breaks, the rows after it help to mend.

With the price of an error D written tr(M D G D^T), G of the inputs and M of the outputs, plain error feedback (GPTQ)
makes a rounding error good within its row only. Here it is also made good across rows, as far as M says that their
outputs stand in for each other (YAQA, arXiv:2505.22988). With G = U^T U and M = V^T V, both upper triangular, A and B
the strictly upper parts of V and U after each row was divided by its diagonal, E = W - Q:

    base    = W + A E                 rows already rounded (below) move this one
    target  = base + (base - Q) B^T   columns already rounded (to the right) move this one
    Q       = round(target)

Tiles of the weight whose row and column tiles add up to the same number do not depend on each other and are rounded at
once. Within a tile rows do not see each other's errors.
"""

from __future__ import annotations

import torch

from awq_engine.cholesky import damped_factor
from awq_engine.error_feedback import feedback_factor
from awq_engine.quantize import QParams, snap_
from awq_engine.spec import QuantSpec
from awq_engine.statistics import InputStatistics

OUTPUT_DAMPING = 0.3
"""Of the mean diagonal of the outputs' Gram matrix: gradients are few and noisy, and another text's are others."""
ROW_TILE = 8
COLUMN_TILE = 32


def round_with_two_sided_feedback_(
    weight: torch.Tensor, statistics: InputStatistics, grams: list[torch.Tensor], qparams: QParams, spec: QuantSpec
) -> torch.Tensor:
    """Grid values that change the model's prediction least, greedily, in the place of `weight`.

    Args:
        weight: float32 [out, in].
        statistics: of the inputs the rounded weight will really see.
        grams: diagonal blocks of E[g g^T] of the gradients at its outputs, float32 [n, n] each.
        qparams: the grid of every group.
    """
    columns, along = feedback_factor(statistics)
    along = _padded_square(along, COLUMN_TILE)
    groups = columns.new_zeros(len(along))
    groups[: len(columns)] = columns // spec.group_of(len(columns))
    start = 0
    for gram in grams:
        order, across = _row_factor(gram)
        rows = order + start
        tiles = _Tiles(
            errors=_padded(weight[rows[:, None], columns], 0.0, COLUMN_TILE),
            scale=_padded(qparams.scale[rows], 1.0, 1), zero=_padded(qparams.zero_point[rows], 0.0, 1),
            groups=groups, across=across, along=along, levels=spec.levels,
        )  # fmt: skip
        weight[rows[:, None], columns] = tiles.round()[: len(rows), : len(columns)]
        start += len(rows)
    return weight


def _row_factor(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The order of the rows, least important first, and V with the rows of each tile multiplied by its inverse tile."""
    diagonal = gram.diagonal()
    order = torch.argsort(diagonal, stable=True)
    damping = (OUTPUT_DAMPING * diagonal.mean()).clamp(min=1e-30).expand_as(diagonal)
    factor = _padded_square(damped_factor(gram, damping, order), ROW_TILE)
    for start in range(0, len(factor), ROW_TILE):
        rows = slice(start, start + ROW_TILE)
        factor[rows] = torch.linalg.solve_triangular(factor[rows, rows], factor[rows], upper=True)
    return order, factor


def _padded(matrix: torch.Tensor, value: float, column_tile: int) -> torch.Tensor:
    """`matrix` [rows, columns] filled up to whole tiles with `value`; itself where nothing is missing."""
    pad = (0, -matrix.shape[1] % column_tile, 0, -matrix.shape[0] % ROW_TILE)
    return torch.nn.functional.pad(matrix, pad, value=value) if any(pad) else matrix


def _padded_square(factor: torch.Tensor, tile: int) -> torch.Tensor:
    """`factor` [n, n] filled up to whole tiles with the identity; itself where nothing is missing."""
    size = len(factor) + -len(factor) % tile
    if size == len(factor):
        return factor
    padded = torch.eye(size, device=factor.device)
    padded[: len(factor), : len(factor)] = factor
    return padded


class _Tiles:
    """A weight on its way to the grid, tile by tile, from the last to the first."""

    def __init__(
        self, errors: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, groups: torch.Tensor,
        across: torch.Tensor, along: torch.Tensor, levels: int,
    ) -> None:  # fmt: skip
        self.errors = errors
        """The weights, until their errors W - Q take their place."""
        self.misses = torch.zeros_like(errors)
        """base - Q of what is rounded."""
        self.rounded = torch.empty_like(errors)
        self.scale, self.zero, self.levels = scale, zero, levels
        self.groups = groups
        """Of each column: which of a row's grids it is on."""
        self.across, self.along = across, along

    def round(self) -> torch.Tensor:
        n_rows, n_columns = self.errors.shape[0] // ROW_TILE, self.errors.shape[1] // COLUMN_TILE
        for wave in reversed(range(n_rows + n_columns - 1)):
            rows = range(max(0, wave - n_columns + 1), min(n_rows, wave + 1))
            self._round_wave([(self._rows(r), self._columns(wave - r)) for r in rows])
        return self.rounded

    def _rows(self, index: int) -> slice:
        return slice(index * ROW_TILE, (index + 1) * ROW_TILE)

    def _columns(self, index: int) -> slice:
        return slice(index * COLUMN_TILE, (index + 1) * COLUMN_TILE)

    def _round_wave(self, tiles: list[tuple[slice, slice]]) -> None:
        """Round tiles that do not depend on each other, column by column, from right to left."""
        base = torch.stack([self._base(*tile).T for tile in tiles], 1)  # [column, tile, row]
        target = base + torch.stack([self._along(*tile).T for tile in tiles], 1)
        scale = torch.stack([self.scale[r][:, self.groups[c]].T for r, c in tiles], 1)
        zero = torch.stack([self.zero[r][:, self.groups[c]].T for r, c in tiles], 1)
        factor = torch.stack([self.along[c, c] for _, c in tiles], -1)[..., None]  # [column, from column, tile, 1]
        misses = torch.empty_like(base)
        for i in reversed(range(COLUMN_TILE)):
            q = snap_(target[i].div_(scale[i]), scale[i], zero[i], self.levels)
            torch.sub(base[i], q, out=misses[i])
            target[:i].addcmul_(factor[:i, i], misses[i])
        for number, tile in enumerate(tiles):
            rounded = target[:, number].T
            self.rounded[tile] = rounded
            self.misses[tile] = misses[:, number].T
            self.errors[tile] -= rounded

    def _base(self, rows: slice, columns: slice) -> torch.Tensor:
        return self.errors[rows, columns] + self.across[rows, rows.stop :] @ self.errors[rows.stop :, columns]

    def _along(self, rows: slice, columns: slice) -> torch.Tensor:
        return self.misses[rows, columns.stop :] @ self.along[columns, columns.stop :].T
