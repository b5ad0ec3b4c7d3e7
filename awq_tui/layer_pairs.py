"""Two runs of the same model, layer by layer: what another recipe, width or text did to each.

A pair is a layer of the first run with its namesake in the second; layers that only one run quantized have no pair.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awq_engine import format as fmt
from awq_engine.report import LayerRow, RoleSummary, layer_rows, read_report, rows_of_report, summarize_roles
from awq_engine.runs import Run
from awq_engine.sanitize import one_line
from awq_engine.state import replay
from awq_tui.layer_columns import Column


@dataclass(frozen=True)
class LayerPair:
    """One layer in two runs."""

    first: LayerRow
    second: LayerRow

    @property
    def block(self) -> int:
        return self.first.block

    @property
    def name(self) -> str:
        return self.first.name

    @property
    def change(self) -> float | None:
        """Final loss of the second over that of the first; below 1 the second is better."""
        return _over(self.second.loss_final, self.first.loss_final)


@dataclass(frozen=True)
class RolePair:
    """All layers of one type in two runs; only those that both have."""

    first: RoleSummary
    second: RoleSummary

    @property
    def role(self) -> str:
        return self.first.role

    @property
    def change(self) -> float | None:
        """As of a layer, of the mean losses."""
        return _over(self.second.loss_final, self.first.loss_final)


def _over(second: float, first: float) -> float | None:
    return second / first if first > 0 else None


def rows_of(source: Run | Path) -> list[LayerRow]:
    """The rows of a run as far as it is, or of a folder's report; blocks, raises `BadInputError`."""
    if isinstance(source, Run):
        return layer_rows(replay(source.records()))
    return rows_of_report(read_report(source), str(source))


def pair_rows(first: Iterable[LayerRow], second: Iterable[LayerRow]) -> list[LayerPair]:
    """The layers that both have, in the order of the first."""
    others = {(row.block, row.name): row for row in second}
    return [LayerPair(row, others[row.block, row.name]) for row in first if (row.block, row.name) in others]


def pair_roles(pairs: Iterable[LayerPair]) -> list[RolePair]:
    """One line per type."""
    chosen = list(pairs)
    first = summarize_roles(pair.first for pair in chosen)
    second = {summary.role: summary for summary in summarize_roles(pair.second for pair in chosen)}
    return [RolePair(summary, second[summary.role]) for summary in first]


def _width(row: LayerRow) -> str | None:
    if row.bits is None:
        return None
    return f"{row.bits} {'row' if row.group_size == -1 else f'g{row.group_size}'}"


_FIGURES: tuple[Column[Any], ...] = (
    Column("change", "B/A", lambda pair: pair.change, fmt.times),
    Column("loss_final_a", "final A", lambda pair: pair.first.loss_final, fmt.loss),
    Column("loss_final_b", "final B", lambda pair: pair.second.loss_final, fmt.loss),
    Column("loss_ratio_a", "ratio A", lambda pair: pair.first.loss_ratio, fmt.times),
    Column("loss_ratio_b", "ratio B", lambda pair: pair.second.loss_ratio, fmt.times),
    Column("alpha_a", "α A", lambda pair: pair.first.alpha, fmt.number),
    Column("alpha_b", "α B", lambda pair: pair.second.alpha, fmt.number),
    Column("max_over_mean_a", "max/mean A", lambda pair: pair.first.max_over_mean, fmt.times),
    Column("max_over_mean_b", "max/mean B", lambda pair: pair.second.max_over_mean, fmt.times),
)
"""Of pairs of either kind."""
PAIR_COLUMNS: tuple[Column[LayerPair], ...] = (
    Column("block", "block", lambda pair: pair.block),
    Column("layer", "layer", lambda pair: pair.name, one_line, left=True),
    *_FIGURES,
    Column("bits_a", "bits A", lambda pair: _width(pair.first)),
    Column("bits_b", "bits B", lambda pair: _width(pair.second)),
)
ROLE_PAIR_COLUMNS: tuple[Column[RolePair], ...] = (
    Column("type", "type", lambda pair: pair.role, one_line, left=True),
    Column("layers", "layers", lambda pair: pair.first.layers),
    *_FIGURES,
)
