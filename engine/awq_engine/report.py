"""Per-layer statistics as rows: from a live run's state or from the `quantization_report.json` beside a checkpoint.

One row type feeds `awq-tui inspect`, the inspect screen and the report file. Standard library only: the app imports
this.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awq_engine.errors import BadInputError
from awq_engine.events import Bins
from awq_engine.shapes import field_checks
from awq_engine.state import LayerState, RunState

REPORT_NAME = "quantization_report.json"
REPORT_VERSION = 1
OUTLIER_FACTOR = 2.0
"""A layer is marked when its max/mean is this many times the median of its role."""


@dataclass(frozen=True)
class LayerRow:
    """The statistics of one quantized linear. Scale statistics are None where no fold reached the layer."""

    block: int
    name: str
    role: str
    out_features: int
    in_features: int
    alpha: float | None
    duo: bool | None
    producer: str | None
    mean: float | None
    max: float | None
    min: float | None
    std: float | None
    max_over_mean: float | None
    share_above_2x: float | None
    share_above_5x: float | None
    share_below_half: float | None
    losses: dict[str, float]
    """Output MSE by step, first `rounding`, last what was written."""
    loss_rounding: float
    loss_final: float
    loss_ratio: float | None
    """final / rounding; None when rounding loses nothing."""
    weight_mse_rounding: float
    weight_mse_final: float
    clipped_share: float
    seconds: float
    curve: list[list[float]]
    """[alpha, loss] points of the search."""
    histogram: Bins | None
    """low, high (log10) and counts of the channel scale."""
    tokens: int | None = None
    """Calibration tokens that the linear read; None in older reports."""
    bits: int | None = None
    """None in reports of older versions."""
    group_size: int | None = None

    @property
    def weight_change(self) -> float | None:
        """Relative change of the weight error against plain rounding (+0.12 is 12 % more)."""
        return self.weight_mse_final / self.weight_mse_rounding - 1 if self.weight_mse_rounding > 0 else None

    @property
    def output_change(self) -> float | None:
        """Relative change of the output error against plain rounding."""
        return self.loss_ratio - 1 if self.loss_ratio is not None else None


_STATISTICS = ("mean", "max", "min", "std", "max_over_mean", "share_above_2x", "share_above_5x", "share_below_half")


def layer_row(layer: LayerState) -> LayerRow | None:
    """The row of a finished linear, or None while it is still to be done."""
    done, scale = layer.quantized, layer.scale
    if done is None:
        return None
    losses = done.losses
    statistics = {name: scale.statistics.get(name) if scale else None for name in _STATISTICS}
    return LayerRow(
        block=layer.block, name=layer.name, role=layer.role, out_features=layer.out_features,
        in_features=layer.in_features, alpha=done.alpha, duo=scale.duo if scale else None,
        producer=scale.producer if scale else None, losses=losses, loss_rounding=next(iter(losses.values()), 0.0),
        loss_final=list(losses.values())[-1] if losses else 0.0, loss_ratio=layer.loss_ratio,
        weight_mse_rounding=done.weight_mse_rounding, weight_mse_final=done.weight_mse_final,
        clipped_share=done.clipped_share, seconds=done.seconds, curve=scale.curve if scale else [],
        histogram=scale.histogram if scale else None, bits=layer.bits, group_size=layer.group_size, tokens=done.tokens,
        **statistics,
    )  # fmt: skip


def layer_rows(state: RunState) -> list[LayerRow]:
    """One row per finished linear, in the order of the plan."""
    return [row for layer in state.layers.values() if (row := layer_row(layer)) is not None]


def build_report(state: RunState, result: dict[str, Any]) -> dict[str, Any]:
    """The content of `quantization_report.json`; a pure function of the journal and the result."""
    return {
        "version": REPORT_VERSION,
        "config": state.run.config if state.run else {},
        "versions": state.run.versions if state.run else {},
        "result": result,
        "calibration": dataclasses.asdict(state.calibration) if state.calibration else None,
        "skipped": state.plan.skipped if state.plan else [],
        "folds": [dataclasses.asdict(fold) for fold in state.folds],
        "fallbacks": [dataclasses.asdict(item) for item in state.fallbacks],
        "warnings": list(state.warnings),
        "blocks": [dataclasses.asdict(block) for _, block in sorted(state.blocks.items())],
        "layers": [dataclasses.asdict(row) for row in layer_rows(state)],
    }


def read_report(folder: Path) -> dict[str, Any]:
    """The report beside a checkpoint; `BadInputError` when there is none or it cannot be read."""
    file = folder / REPORT_NAME
    try:
        report = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise BadInputError(f"{folder} has no {REPORT_NAME}: it was not quantized by awq-tui.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadInputError(f"{file} cannot be read ({error}).") from error
    if not isinstance(report, dict) or not isinstance(report.get("layers"), list):
        raise BadInputError(f"{file} is not a quantization report of awq-tui.")
    return report


def rows_of_report(report: dict[str, Any], where: str = REPORT_NAME) -> list[LayerRow]:
    """The rows stored in a report; unknown fields of a newer version are ignored."""
    checks = field_checks(LayerRow)
    rows = []
    for row in report["layers"]:
        known = {key: value for key, value in row.items() if key in checks} if isinstance(row, dict) else {}
        if wrong := [key for key, value in known.items() if not checks[key](value)]:
            raise BadInputError(f"{where} is damaged: '{wrong[0]}' of a layer is no value that it can have.")
        try:
            rows.append(LayerRow(**known))
        except TypeError as error:
            raise BadInputError(f"{where} lacks statistics this version needs ({error}).") from error
    return rows


@dataclass(frozen=True)
class RoleSummary:
    """One line of `--by-type`: all layers of one role taken together."""

    role: str
    layers: int
    alpha: float | None
    """Mean over the layers that have one; so are all below."""
    max_over_mean: float | None
    loss_rounding: float
    loss_awq: float
    """After scale and clip, before later steps."""
    loss_final: float
    loss_ratio: float | None


def summarize_roles(rows: Iterable[LayerRow]) -> list[RoleSummary]:
    """Group rows by role, in order of first appearance; losses are means over the layers."""
    groups: dict[str, list[LayerRow]] = {}
    for row in rows:
        groups.setdefault(row.role, []).append(row)
    return [_summarize(role, group) for role, group in groups.items()]


def _summarize(role: str, rows: list[LayerRow]) -> RoleSummary:
    rounding, final = (_mean([getattr(row, name) for row in rows]) or 0.0 for name in ("loss_rounding", "loss_final"))
    return RoleSummary(
        role, len(rows), _mean([row.alpha for row in rows]), _mean([row.max_over_mean for row in rows]), rounding,
        _mean([awq_loss(row) for row in rows]) or 0.0, final, final / rounding if rounding > 0 else None,
    )  # fmt: skip


def awq_loss(row: LayerRow) -> float:
    """The loss after scale and clip search, the two steps of AWQ."""
    return row.losses.get("clip", row.losses.get("scale", row.loss_rounding))


def outliers(rows: Iterable[LayerRow]) -> set[tuple[int, str]]:
    """(block, name) of layers whose max/mean stands out among the layers of their role."""
    groups: dict[str, list[LayerRow]] = {}
    for row in rows:
        if row.max_over_mean is not None:
            groups.setdefault(row.role, []).append(row)
    found = set()
    for group in groups.values():
        values = sorted(row.max_over_mean or 0.0 for row in group)
        limit = OUTLIER_FACTOR * values[len(values) // 2]
        found |= {(row.block, row.name) for row in group if (row.max_over_mean or 0.0) > limit}
    return found


def _mean(values: list[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
