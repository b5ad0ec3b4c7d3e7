"""Work on a run's output beside the run itself: every kind in a process of its own, which survives its starter.

    RUN/NAME.json      the newest result
    RUN/DOING.json     how far the work is that goes on now, or why the last one failed
    RUN/NAME.lock      flock held by the process that works on this run or will
    RUN/NAME.log       what it printed
    RUN/stop-NAME      touch it: the work ends after the present step

As with runs, what goes on is told by the lock. Standard library only: the app imports this module.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from awq_engine.detached import QUIET_THREADS, spawn_detached
from awq_engine.errors import InterruptedRunError
from awq_engine.locks import is_locked, take_lock
from awq_engine.runs import Run
from awq_engine.storage import write_atomically


@dataclass(frozen=True)
class Standing:
    """How the work on one run stands."""

    going_on: bool = False
    done: int = 0
    """Steps; 0 of 0 while it waits for its turn or loads the model."""
    total: int = 0
    error: str = ""
    """Why the last one failed; empty after one that went well."""


@dataclass(frozen=True)
class SideJob:
    """One kind of work."""

    name: str
    doing: str
    worker: str
    """The module that is run as `python -m WORKER SETTINGS LOCK_FD:RUN_DIR...` (`side_worker`)."""

    def result(self, run: Run) -> dict[str, Any]:
        """The newest one; empty when there is none that can be read."""
        return _read(run, f"{self.name}.json")

    def store(self, run: Run, found: dict[str, Any]) -> None:
        """Keep a result with the run."""
        _write(run, f"{self.name}.json", found)

    def standing(self, run: Run) -> Standing:
        going_on = is_locked(run.path / f"{self.name}.lock")
        state = _read(run, f"{self.doing}.json")
        done, total = (number if isinstance(number := state.get(key), int) else 0 for key in ("done", "total"))
        return Standing(going_on, done, total, "" if going_on else str(state.get("error", "")))

    def report(self, run: Run, **state: Any) -> None:
        """Say how far the work is (`done`, `total`), or why it ended (`error`)."""
        _write(run, f"{self.doing}.json", state)

    def step(self, run: Run, done: int, total: int) -> None:
        """Say how far the work is, or end it with `InterruptedRunError` once a stop was asked for."""
        self.raise_if_stopped(run)
        self.report(run, done=done, total=total)

    def end(self, run: Run) -> None:
        """There is nothing more to say: the work is complete."""
        (run.path / f"{self.doing}.json").unlink(missing_ok=True)

    def request_stop(self, run: Run) -> None:
        """The work ends after the present step."""
        (run.path / f"stop-{self.name}").touch()

    def raise_if_stopped(self, run: Run) -> None:
        """Raises `InterruptedRunError` once a stop was asked for."""
        if (run.path / f"stop-{self.name}").exists():
            raise InterruptedRunError("The measurement was stopped.")

    def take_lock(self, run: Run) -> int | None:
        """The descriptor that holds the lock, or None when such work on this run goes on already."""
        return take_lock(run.path / f"{self.name}.lock")

    def spawn(self, runs: Sequence[Run], settings: dict[str, Any]) -> subprocess.Popen[bytes] | None:
        """Start the work on runs, one after the other, detached; None when it goes on for all of them already.

        The locks are taken here and inherited, so no run is worked on twice at a time. Poll the returned process now
        and then, or it stays a zombie. Raises `OSError`.
        """
        locks = {run: lock for run in runs if (lock := self.take_lock(run)) is not None}
        if not locks:
            return None
        for run in locks:
            (run.path / f"stop-{self.name}").unlink(missing_ok=True)
            self.report(run)
        pairs = [f"{lock}:{run.path}" for run, lock in locks.items()]
        log = next(iter(locks)).path / f"{self.name}.log"
        try:
            return spawn_detached(self.worker, [json.dumps(settings), *pairs], log, list(locks.values()), QUIET_THREADS)
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
