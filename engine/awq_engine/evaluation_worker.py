"""The process that measures: `python -m awq_engine.evaluation_worker SETTINGS LOCK_FD:RUN_DIR...`.

SETTINGS is the JSON of `evaluations.evaluation_settings`. Each run's lock is inherited and held until the run is
measured; runs are measured one after the other, and only one such process of a person works at a time.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from awq_engine.errors import ExitCode, InterruptedRunError, as_known_error
from awq_engine.evaluations import end_progress, report_progress, stop_requested, store_evaluation
from awq_engine.models import resolve_model
from awq_engine.runs import NICENESS, Run
from awq_engine.storage import home


def main(argv: list[str]) -> int:
    """Measure each run of `argv[1:]`; the exit code of the first failure, or 0."""
    settings: dict[str, Any] = json.loads(argv[0])
    locks = [(int(lock), Run(Path(path))) for lock, _, path in (pair.partition(":") for pair in argv[1:])]
    codes = []
    with (home() / "evaluation.lock").open("wb") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for lock, run in locks:
            codes.append(_measure(run, settings))
            os.close(lock)
    return next((code for code in codes if code), int(ExitCode.OK))


def _measure(run: Run, settings: dict[str, Any]) -> int:
    """Measure one run and keep what was found; what goes wrong is said in its progress."""
    try:
        _evaluate(run, settings)
    except InterruptedRunError as error:
        report_progress(run, error=str(error))
        return int(error.exit_code)
    except Exception as error:
        traceback.print_exc()
        known = as_known_error(error)
        report_progress(run, error=str(known) if known else f"A bug: {type(error).__name__}: {error}")
        return int(known.exit_code if known else ExitCode.BUG)
    end_progress(run)
    return int(ExitCode.OK)


def _evaluate(run: Run, settings: dict[str, Any]) -> None:
    _raise_if_stopped(run)
    from awq_engine.evaluate import evaluate  # torch takes seconds to import

    def on_progress(done: int, total: int) -> None:
        _raise_if_stopped(run)
        report_progress(run, done=done, total=total)

    config = run.config()
    found = evaluate(
        Path(config.output), against=resolve_model(config.model).path, text=settings["text"],
        seq_len=settings["seq_len"], max_tokens=settings["max_tokens"], device=settings["device"],
        on_progress=on_progress,
    )  # fmt: skip
    store_evaluation(run, settings, found.to_json())


def _raise_if_stopped(run: Run) -> None:
    if stop_requested(run):
        raise InterruptedRunError("The measurement was stopped.")


if __name__ == "__main__":
    os.nice(NICENESS)
    sys.exit(main(sys.argv[1:]))
