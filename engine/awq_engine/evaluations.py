"""What was measured on a run's output: kept in the run's directory, made by a process of its own.

    RUN/evaluation.json     the newest measurement: what it was made with, and what was found
    RUN/evaluating.json     how far the measurement is that goes on now, or why the last one failed
    RUN/evaluation.lock     flock held by the process that measures this run or will
    RUN/evaluation.log      what it printed
    RUN/stop-evaluation     touch it: the measurement ends after the present window

As with runs, what goes on is told by the lock. Standard library only: the app imports this module.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awq_engine.locks import is_locked, take_lock
from awq_engine.runs import QUIET_THREADS, Run
from awq_engine.shapes import field_checks
from awq_engine.storage import write_atomically

RESULT, PROGRESS, LOCK, LOG, STOP = (
    "evaluation.json", "evaluating.json", "evaluation.lock", "evaluation.log", "stop-evaluation"
)  # fmt: skip


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
class Measuring:
    """How a measurement stands."""

    evaluation: Evaluation | None = None
    """The newest that is complete."""
    going_on: bool = False
    done: int = 0
    """Windows; 0 of 0 while it waits for its turn or loads the models."""
    total: int = 0
    error: str = ""
    """Why the last one failed; empty after one that went well."""


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
    data = _read(run, RESULT)
    return data.get("result") if data.get("settings") == settings else None


def store_evaluation(run: Run, settings: dict[str, Any], found: dict[str, Any]) -> None:
    """Keep a measurement with the run."""
    _write(run, RESULT, {"settings": settings, "result": found})


def read_evaluation(run: Run) -> Evaluation | None:
    """The newest complete measurement against the original, or None."""
    found = _read(run, RESULT).get("result")
    checks = field_checks(Evaluation)
    if not isinstance(found, dict) or not all(name in found and fits(found[name]) for name, fits in checks.items()):
        return None
    return Evaluation(**{name: found[name] for name in checks})


def measuring(run: Run) -> Measuring:
    """How the measurement of a run stands at this moment."""
    going_on = is_locked(run.path / LOCK)
    state = _read(run, PROGRESS)
    done, total = (number if isinstance(number := state.get(key), int) else 0 for key in ("done", "total"))
    return Measuring(read_evaluation(run), going_on, done, total, "" if going_on else str(state.get("error", "")))


def report_progress(run: Run, **state: Any) -> None:
    """Say how far the measurement is (`done`, `total`), or why it ended (`error`)."""
    _write(run, PROGRESS, state)


def end_progress(run: Run) -> None:
    """There is nothing more to say: the measurement is complete."""
    (run.path / PROGRESS).unlink(missing_ok=True)


def request_stop(run: Run) -> None:
    """The measurement ends after the present window."""
    (run.path / STOP).touch()


def stop_requested(run: Run) -> bool:
    return (run.path / STOP).exists()


def take_evaluation_lock(run: Run) -> int | None:
    """The descriptor that holds the lock, or None when a measurement of this run goes on already."""
    return take_lock(run.path / LOCK)


def spawn_evaluation(runs: Sequence[Run], settings: dict[str, Any]) -> subprocess.Popen[bytes] | None:
    """Start measuring runs one after the other, detached; None when all are being measured already.

    The locks are taken here and inherited, so no run is measured twice at a time. Poll the returned process now and
    then, or it stays a zombie. Raises `OSError`.
    """
    locks = {run: lock for run in runs if (lock := take_evaluation_lock(run)) is not None}
    if not locks:
        return None
    for run in locks:
        (run.path / STOP).unlink(missing_ok=True)
        report_progress(run)
    pairs = [f"{lock}:{run.path}" for run, lock in locks.items()]
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "awq_engine.evaluation_worker", json.dumps(settings), *pairs]
    try:
        with (next(iter(locks)).path / LOG).open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
                env={**QUIET_THREADS, **os.environ, **quiet}, pass_fds=list(locks.values()),
            )  # fmt: skip
    finally:
        for lock in locks.values():
            os.close(lock)


def _read(run: Run, name: str) -> dict[str, Any]:
    """A JSON object; empty when there is none that can be read."""
    try:
        data = json.loads((run.path / name).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _write(run: Run, name: str, data: dict[str, Any]) -> None:
    with contextlib.suppress(FileNotFoundError):  # the run was deleted meanwhile
        write_atomically(run.path / name, (json.dumps(data, indent=2) + "\n").encode())
