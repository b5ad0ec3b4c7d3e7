"""What was measured on a run's output: a side job whose result says what it was made with, and what was found.

Standard library only: the app imports this module.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awq_engine.runs import Run
from awq_engine.shapes import built
from awq_engine.side_jobs import SideJob, Standing

EVALUATION = SideJob("evaluation", "evaluating", "awq_engine.evaluation_worker")


@dataclass(frozen=True)
class Evaluation:
    """A run's newest measurement; per token of the text, in nats."""

    text: str
    """Where the text comes from, in words."""
    tokens: int
    seq_len: int
    perplexity: float | None
    """None when it is too large for a float."""
    perplexity_original: float | None
    kl: float
    kl_error: float | None
    top1_agreement: float


@dataclass(frozen=True)
class Measuring(Standing):
    """How a measurement stands; its steps are windows of text."""

    evaluation: Evaluation | None = None
    """The newest that is complete."""


def evaluation_settings(text: str, seq_len: int, max_tokens: int, device: str) -> dict[str, Any]:
    """What decides the outcome of an evaluation besides the models; `text` is absolute."""
    return {
        "text": text, "text_changed": newest_change(text), "seq_len": seq_len, "max_tokens": max_tokens,
        "device": device,
    }  # fmt: skip


def newest_change(spec: str) -> float:
    """Unix time at which a text file of `spec`, or a file in a folder of them, last changed; 0 for what is no file."""
    from awq_engine.text_sources import split_mix

    paths = [path for part in split_mix(spec) if (path := Path(part)).is_absolute() and path.exists()]
    files = [file for path in paths for file in (path, *(path.rglob("*") if path.is_dir() else ()))]
    return max((file.stat().st_mtime for file in files), default=0.0)


def stored_evaluation(run: Run, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What was measured on the run's output with these settings, or None."""
    data = EVALUATION.result(run)
    return data.get("result") if data.get("settings") == settings else None


def store_evaluation(run: Run, settings: dict[str, Any], found: dict[str, Any]) -> None:
    """Keep a measurement with the run."""
    EVALUATION.store(run, {"settings": settings, "result": found})


def read_evaluation(run: Run) -> Evaluation | None:
    """The newest complete measurement against the original, or None."""
    return built(Evaluation, EVALUATION.result(run).get("result"))


def measuring(run: Run) -> Measuring:
    """How the measurement of a run stands at this moment."""
    now = EVALUATION.standing(run)
    return Measuring(now.going_on, now.done, now.total, now.error, read_evaluation(run))


def spawn_evaluation(runs: Sequence[Run], settings: dict[str, Any]) -> subprocess.Popen[bytes] | None:
    """Start measuring, as `SideJob.spawn`."""
    return EVALUATION.spawn(runs, settings)
