"""Following a run from a screen: one reader per screen, off the UI thread, a new snapshot when something changed.

The journal is the only source, so a live run, a run re-attached to and a run that ended last week are one code path.
Nothing here draws; a thread worker calls `poll` and posts what it returns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from awq_engine.config import RunConfig
from awq_engine.errors import AwqError
from awq_engine.runs import Run, RunStatus
from awq_engine.state import RunState, reduce

LIVE_INTERVAL = 0.15
"""Seconds between two looks at the journal while an engine works."""
IDLE_INTERVAL = 1.0
"""Seconds between two looks when none does: another terminal may resume the run."""


@dataclass(frozen=True)
class Snapshot:
    """What is known of a run at one moment."""

    state: RunState
    status: RunStatus
    cancelling: bool
    """A stop was asked for and the engine has not yet followed."""
    unreadable: int
    """Journal lines this version could not read."""


class RunClient:
    """Follows one run's journal; use it from one thread at a time."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._reader = run.reader()
        self._state = RunState()
        self._last: Snapshot | None = None

    def poll(self) -> Snapshot | None:
        """The newest snapshot, or None when nothing changed since the last call.

        The lock is looked at before the journal is read: whatever a dead engine still wrote has then been read too.
        """
        running = self._run.is_locked()
        for record in self._reader.read():
            self._state = reduce(self._state, record)
        cancelling = running and self._run.cancel_requested()
        snapshot = Snapshot(self._state, self._status(running), cancelling, self._reader.skipped)
        changed = self._last is None or self._key(snapshot) != self._key(self._last)
        self._last = snapshot
        return snapshot if changed else None

    @property
    def interval(self) -> float:
        """Seconds until `poll` is worth calling again."""
        return LIVE_INTERVAL if self._last is None or self._last.status is RunStatus.RUNNING else IDLE_INTERVAL

    def _status(self, running: bool) -> RunStatus:
        """As `Run.status`, which reads the whole journal; asked only when this client does not know the answer."""
        if running:
            return RunStatus.RUNNING
        known = self._last
        if known and known.status is not RunStatus.RUNNING and known.state.last_seq == self._state.last_seq:
            return known.status
        return self._run.status()

    @staticmethod
    def _key(snapshot: Snapshot) -> tuple[int, RunStatus, bool, int]:
        return snapshot.state.last_seq, snapshot.status, snapshot.cancelling, snapshot.unreadable


def follow(client: RunClient, post: Callable[[Snapshot], object], stop: threading.Event) -> None:
    """Poll until `stop` is set, handing every changed snapshot to `post`; made for a thread of its own."""
    while not stop.is_set():
        if (snapshot := client.poll()) is not None:
            post(snapshot)
        stop.wait(client.interval)


def log_tail(run: Run, max_lines: int = 400, max_bytes: int = 200_000) -> list[str]:
    """The last lines of the engine's log; empty when there is none yet. Raw text: make it harmless before drawing."""
    try:
        with run.log_path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - max_bytes))
            data = file.read()
    except OSError:
        return []
    return data.decode("utf-8", "replace").replace("\r", "\n").splitlines()[-max_lines:]


def config_of(run: Run) -> RunConfig | None:
    """The request, or None when its file cannot be read: the journal alone is enough to look at a run."""
    try:
        return run.config()
    except AwqError:
        return None
