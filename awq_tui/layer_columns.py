"""The columns of the inspect screen: what each shows, what it sorts by, and what goes into an exported file."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from awq_engine import format as fmt
from awq_engine.report import LayerRow, RoleSummary, awq_loss
from awq_engine.sanitize import one_line

Row = TypeVar("Row")
Value = float | str | None


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column over rows of one type."""

    key: str
    """Its name in exported files."""
    heading: str
    value: Callable[[Row], Value]
    """What it sorts by; None sorts last both ways."""
    show: Callable[[Any], str] = str
    """The value as text."""
    left: bool = False
    """Aligned left, as words are."""

    def text(self, row: Row) -> str:
        value = self.value(row)
        return fmt.UNKNOWN if value is None else self.show(value)


LAYER_COLUMNS: tuple[Column[LayerRow], ...] = (
    Column("block", "block", lambda row: row.block),
    Column("layer", "layer", lambda row: row.name, one_line, left=True),
    Column("alpha", "α", lambda row: row.alpha, fmt.number),
    Column("mean", "mean", lambda row: row.mean, fmt.number),
    Column("max", "max", lambda row: row.max, fmt.number),
    Column("min", "min", lambda row: row.min, fmt.number),
    Column("std", "std", lambda row: row.std, fmt.number),
    Column("max_over_mean", "max/mean", lambda row: row.max_over_mean, fmt.times),
    Column("share_above_2x", ">2x", lambda row: row.share_above_2x, fmt.share),
    Column("share_above_5x", ">5x", lambda row: row.share_above_5x, fmt.share),
    Column("share_below_half", "<0.5x", lambda row: row.share_below_half, fmt.share),
    Column("loss_rounding", "rounding", lambda row: row.loss_rounding, fmt.loss),
    Column("loss_awq", "AWQ", awq_loss, fmt.loss),
    Column("loss_final", "final", lambda row: row.loss_final, fmt.loss),
    Column("loss_ratio", "ratio", lambda row: row.loss_ratio, fmt.times),
    Column("weight_change", "Δweight", lambda row: row.weight_change, fmt.change),
    Column("output_change", "Δoutput", lambda row: row.output_change, fmt.change),
)
ROLE_COLUMNS: tuple[Column[RoleSummary], ...] = (
    Column("type", "type", lambda row: row.role, one_line, left=True),
    Column("layers", "layers", lambda row: row.layers),
    Column("alpha", "α", lambda row: row.alpha, fmt.number),
    Column("max_over_mean", "max/mean", lambda row: row.max_over_mean, fmt.times),
    Column("loss_rounding", "rounding", lambda row: row.loss_rounding, fmt.loss),
    Column("loss_awq", "AWQ", lambda row: row.loss_awq, fmt.loss),
    Column("loss_final", "final", lambda row: row.loss_final, fmt.loss),
    Column("loss_ratio", "ratio", lambda row: row.loss_ratio, fmt.times),
)


@dataclass(frozen=True)
class Order:
    """Which column the rows are sorted by; by none, they stay in the order of the model."""

    key: str = ""
    descending: bool = True

    def __str__(self) -> str:
        return f"{'-' if self.descending else ''}{self.key}"

    @classmethod
    def read(cls, text: str) -> Order:
        """Of what `str` made of it."""
        return cls(text.removeprefix("-"), text.startswith("-"))


def sort_rows(rows: Iterable[Row], columns: Sequence[Column[Row]], order: Order) -> list[Row]:
    """Sorted rows; those without a value come last in both directions."""
    found = next((column for column in columns if column.key == order.key), None)
    if found is None:
        return list(rows)
    pairs = [(found.value(row), row) for row in rows]
    known = [pair for pair in pairs if pair[0] is not None]
    known.sort(key=_first, reverse=order.descending)
    return [row for _, row in known] + [row for value, row in pairs if value is None]


def _first(pair: tuple[Any, object]) -> Any:
    return pair[0]


def filter_rows(rows: Iterable[LayerRow], wanted: str, marked: set[tuple[int, str]]) -> list[LayerRow]:
    """Rows that fit every word: a block's number, a part of a layer's name, or `outlier`."""
    words = wanted.lower().split()
    return [row for row in rows if all(_fits(row, word, marked) for word in words)]


def _fits(row: LayerRow, word: str, marked: set[tuple[int, str]]) -> bool:
    if word.isdecimal():
        return row.block == int(word)
    return word in row.name.lower() or ("outlier".startswith(word) and (row.block, row.name) in marked)


def to_csv(rows: Sequence[Row], columns: Sequence[Column[Row]]) -> str:
    """A header and a line per row; numbers in full, unknown ones empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.key for column in columns])
    writer.writerows([column.value(row) for column in columns] for row in rows)
    return text.getvalue()


def to_json(rows: Sequence[Any]) -> str:
    """Every field of every row, curves and histograms included."""
    return json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n"
