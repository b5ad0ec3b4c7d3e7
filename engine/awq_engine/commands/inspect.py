"""`inspect`: the per-layer statistics of a run, even of one still working, or of a model it wrote."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from awq_engine.commands.console import note, result, result_json, table
from awq_engine.errors import BadInputError, ExitCode, UsageError
from awq_engine.format import change, loss, number, share, times
from awq_engine.models import HubId, parse_model
from awq_engine.paths import typed_path
from awq_engine.report import (
    LayerRow,
    RoleSummary,
    awq_loss,
    layer_rows,
    outliers,
    read_report,
    rows_of_report,
    summarize_roles,
)
from awq_engine.runs import find_run, list_runs
from awq_engine.state import replay


@dataclass(frozen=True)
class Column:
    """One column of the table: its name for `--sort`, its heading, its value and how that is written."""

    name: str
    heading: str
    value: Callable[[Any], Any]
    text: Callable[[Any], str] = str


def _field(name: str, heading: str, text: Callable[[Any], str] = str) -> Column:
    return Column(name, heading, lambda row: getattr(row, name), text)


COLUMNS = (
    _field("block", "block"),
    _field("name", "layer"),
    _field("bits", "bits"),
    _field("group_size", "group"),
    _field("tokens", "tokens"),
    _field("alpha", "alpha", number),
    _field("mean", "mean", number),
    _field("max", "max", number),
    _field("min", "min", number),
    _field("std", "std", number),
    _field("max_over_mean", "max/mean", times),
    _field("share_above_2x", ">2x", share),
    _field("share_above_5x", ">5x", share),
    _field("share_below_half", "<0.5x", share),
    _field("loss_rounding", "rounding", loss),
    Column("awq", "AWQ", awq_loss, loss),
    _field("loss_final", "final", loss),
    _field("loss_ratio", "ratio", times),
    _field("weight_change", "Δweight", change),
    _field("output_change", "Δoutput", change),
)
ROLE_COLUMNS = (
    _field("role", "type"),
    _field("layers", "layers"),
    _field("alpha", "alpha", number),
    _field("max_over_mean", "max/mean", times),
    _field("loss_rounding", "rounding", loss),
    Column("awq", "AWQ", lambda row: row.loss_awq, loss),
    _field("loss_final", "final", loss),
    _field("loss_ratio", "ratio", times),
)
ALIASES = {"layer": "name", "type": "role", "rounding": "loss_rounding", "final": "loss_final", "ratio": "loss_ratio"}
ASCENDING = ("block", "name", "role")
"""Columns sorted from small to large; statistics go from large to small, the worst first."""


def inspect(args: argparse.Namespace) -> int:
    """Print the statistics as a table, JSON or CSV."""
    rows, source = load_rows(args.model)
    columns: tuple[Column, ...] = ROLE_COLUMNS if args.by_type else COLUMNS
    items = sort_rows(summarize_roles(rows) if args.by_type else rows, columns, args.sort)
    if args.json:
        result_json(_as_json(source, items, args.by_type))
    elif args.csv:
        _write_csv(columns, items)
    else:
        result(_as_table(columns, items))
        if marked := outliers(rows) if not args.by_type else set():
            note(f"{len(marked)} layers stand out in max/mean among their kind: {_names(marked)}")
    return ExitCode.OK


def load_rows(spec: str) -> tuple[list[LayerRow], str]:
    """The rows of a run or of a model folder, and where they come from."""
    if not typed_path(spec).exists() and _is_run(spec):
        run = find_run(spec)
        rows, source = layer_rows(replay(run.records())), run.id
        if not rows:
            raise BadInputError(
                f"Run {run.id} ({run.status()}) has not finished a layer, so there is nothing to inspect."
            )
        return rows, source
    target = parse_model(spec)
    if isinstance(target, HubId):
        raise BadInputError(f"There is no folder {spec}; inspect reads a run or a model folder on this machine.")
    return rows_of_report(read_report(target), str(target)), str(target)


def _is_run(spec: str) -> bool:
    return spec == "latest" or any(spec and run.id.startswith(spec) for run in list_runs())


def sort_rows(items: Sequence[Any], columns: tuple[Column, ...], by: str | None) -> list[Any]:
    """`items` by the column called `by`; those without a value come last. Raises `UsageError` for an unknown name."""
    if by is None:
        return list(items)
    column = next((column for column in columns if by in (column.name, column.heading, _alias(by, column))), None)
    if column is None:
        names = ", ".join(column.name for column in columns)
        raise UsageError(f"There is no column '{by}' to sort by; choose one of {names}.")
    present = [item for item in items if column.value(item) is not None]
    absent = [item for item in items if column.value(item) is None]
    return sorted(present, key=column.value, reverse=column.name not in ASCENDING) + absent


def _alias(by: str, column: Column) -> str | None:
    return by if ALIASES.get(by) == column.name else None


def _as_table(columns: tuple[Column, ...], items: list[Any]) -> str:
    header = [column.heading for column in columns]
    rows = [[_cell(column, item) for column in columns] for item in items]
    return table(header, rows, right=" ".join(name for name in header if name not in ("layer", "type")))


def _cell(column: Column, item: Any) -> str:
    value = column.value(item)
    return "-" if value is None else column.text(value)


def _as_json(source: str, items: list[Any], by_type: bool) -> dict[str, Any]:
    rows = [dataclasses.asdict(item) for item in items]
    for row, item in zip(rows, items, strict=True):
        if isinstance(item, LayerRow):
            row |= {
                "loss_awq": awq_loss(item),
                "weight_change": item.weight_change,
                "output_change": item.output_change,
            }
    return {"source": source, "types" if by_type else "layers": rows}


def _write_csv(columns: tuple[Column, ...], items: list[LayerRow] | list[RoleSummary]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([column.name for column in columns])
    writer.writerows([column.value(item) for column in columns] for item in items)


def _names(layers: set[tuple[int, str]]) -> str:
    shown = [f"{block} {name}" for block, name in sorted(layers)[:5]]
    return ", ".join(shown) + (", ..." if len(layers) > 5 else "")
