"""What the processes of all side jobs do alike: `main` is called as `python -m WORKER SETTINGS LOCK_FD:RUN_DIR...`.

Each run's lock is inherited and held until the work on it is done; runs take turns, and only one such process of a
person works at a time: they share the machine's memory, and one that measures times wants to be alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from awq_engine.errors import ExitCode, InterruptedRunError, outcome
from awq_engine.runs import Run
from awq_engine.side_jobs import SideJob
from awq_engine.storage import home

Work = Callable[[Run, dict[str, Any]], None]


def main(argv: list[str], job: SideJob, work: Work) -> int:
    """Do `work` for each run of `argv[1:]`; the exit code of the first failure, or 0."""
    settings: dict[str, Any] = json.loads(argv[0])
    locks = [(int(lock), Run(Path(path))) for lock, _, path in (pair.partition(":") for pair in argv[1:])]
    codes = []
    with (home() / "evaluation.lock").open("wb") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for lock, run in locks:
            codes.append(_work_on(run, settings, job, work))
            os.close(lock)
    return next((code for code in codes if code), int(ExitCode.OK))


def _work_on(run: Run, settings: dict[str, Any], job: SideJob, work: Work) -> int:
    """Work on one run; what goes wrong is said in its progress."""
    try:
        job.raise_if_stopped(run)
        work(run, settings)
    except InterruptedRunError as error:
        job.report(run, error=str(error))
        return int(error.exit_code)
    except Exception as error:
        traceback.print_exc()
        words, code = outcome(error)
        job.report(run, error=words)
        return code
    job.end(run)
    return int(ExitCode.OK)
