"""Finished runs as lines of a table: what came out, what it took, and what was measured on it."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awq_engine import format as fmt
from awq_engine.evaluations import Evaluation, Measuring
from awq_engine.runs import Run, RunStatus
from awq_engine.sanitize import one_line
from awq_engine.side_jobs import Standing
from awq_engine.speeds import Speeds
from awq_tui.layer_columns import Column
from awq_tui.run_book import RunSummary

LABELS = string.ascii_lowercase + string.ascii_uppercase


@dataclass(frozen=True)
class ResultRow:
    """One finished run."""

    label: str
    """The letter of its dot in the chart; empty when it was not measured, or letters ran out."""
    run: Run
    model: str
    """What was quantized, as the person named it."""
    recipe: str
    calibration: str
    bits_per_weight: float | None
    nbytes: int | None
    """Of all tensors of the output."""
    seconds: float | None
    peak_host_bytes: int | None
    output: Path | None
    """While it is there."""
    measuring: Measuring
    timing: Standing
    speeds: Speeds | None

    @property
    def evaluation(self) -> Evaluation | None:
        return self.measuring.evaluation

    @property
    def tokens_per_second(self) -> float | None:
        """At which this machine writes with it."""
        return self.speeds.writing.tokens_per_second if self.speeds and self.speeds.writing else None

    @property
    def state(self) -> str:
        """What its measurement does, in a word or two; empty when there is nothing to say."""
        for found in (self.measuring, self.timing):
            if found.going_on:
                return f"{100 * found.done // found.total} %" if found.total else "waiting"
        return "failed" if self.measuring.error or self.timing.error else ""


def result_rows(summaries: Iterable[RunSummary]) -> list[ResultRow]:
    """The finished runs, newest first; letters go to the measured ones."""
    labels = iter(LABELS)
    return [
        _row(summary, next(labels, "") if summary.measuring.evaluation else "")
        for summary in summaries
        if summary.status is RunStatus.DONE and summary.file is not None
    ]


def _row(summary: RunSummary, label: str) -> ResultRow:
    assert summary.file is not None
    config, result = summary.file.config, summary.state.result or {}
    recipe = fmt.preset_label(
        config.bits, config.group_size, config.preset, method=config.method, symmetric=config.symmetric
    )
    return ResultRow(
        label, summary.run, config.model, recipe, config.calibration, _number(result, "bits_per_weight"),
        _whole(result, "bytes_after"), _number(result, "seconds"), _whole(result, "peak_host_bytes"), summary.output,
        summary.measuring, summary.timing, summary.speeds,
    )  # fmt: skip


def _number(result: dict[str, Any], key: str) -> float | None:
    value = result.get(key)
    return float(value) if isinstance(value, int | float) else None


def _whole(result: dict[str, Any], key: str) -> int | None:
    value = result.get(key)
    return value if isinstance(value, int) else None


def _kl(value: float) -> str:
    return f"{value:.4f}" if value >= 1e-3 else fmt.loss(value)


RESULT_COLUMNS: tuple[Column[ResultRow], ...] = (
    Column("label", "", lambda row: row.label, left=True),
    Column("model", "model", lambda row: Path(row.model).name or row.model, one_line, left=True),
    Column("recipe", "recipe", lambda row: row.recipe, left=True),
    Column("bits_per_weight", "bits/w", lambda row: row.bits_per_weight, lambda value: f"{value:.2f}"),
    Column("bytes", "size", lambda row: row.nbytes, fmt.size),
    Column("perplexity", "ppl", lambda row: row.evaluation.perplexity if row.evaluation else None, fmt.number),
    Column("kl", "KL", lambda row: row.evaluation.kl if row.evaluation else None, _kl),
    Column("kl_error", "±", lambda row: row.evaluation.kl_error if row.evaluation else None, _kl),
    Column("top1", "top-1", lambda row: row.evaluation.top1_agreement if row.evaluation else None, fmt.share),
    Column("state", "", lambda row: row.state, left=True),
    Column("speed", "tok/s", lambda row: row.tokens_per_second, lambda value: f"{value:.1f}"),
    Column("seconds", "time", lambda row: row.seconds, fmt.duration),
    Column("peak_host_bytes", "memory", lambda row: row.peak_host_bytes, fmt.size),
    Column("calibration", "calibration", lambda row: row.calibration, one_line, left=True),
    Column("run", "run", lambda row: row.run.id, one_line, left=True),
)


def comparable(row: ResultRow, rows: Iterable[ResultRow]) -> list[ResultRow]:
    """The measured rows of the same original on the same text, in windows of the same length."""
    if row.evaluation is None:
        return []
    wanted = (row.model, row.evaluation.text, row.evaluation.seq_len)
    return [r for r in rows if r.evaluation and (r.model, r.evaluation.text, r.evaluation.seq_len) == wanted]


def frontier(rows: Sequence[ResultRow]) -> set[Run]:
    """The runs that no other beats in both size and KL."""
    known = [(row.nbytes, row.evaluation.kl, row.run) for row in rows if row.evaluation and row.nbytes is not None]
    return {
        run
        for nbytes, kl, run in known
        if not any(n <= nbytes and k <= kl and (n, k) != (nbytes, kl) for n, k, _ in known)
    }


def as_markdown(rows: Sequence[ResultRow]) -> str:
    """The table for a README or an issue."""
    columns = [column for column in RESULT_COLUMNS if column.key not in ("label", "state")]
    lines = [[column.heading for column in columns], ["---" if column.left else "---:" for column in columns]]
    lines += [[column.text(row).replace("|", "\\|") for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
