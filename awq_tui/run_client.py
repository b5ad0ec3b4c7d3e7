"""Following a run from a screen: one reader per screen, off the UI thread, a new snapshot when something changed.

The journal is the only source, so a live run, a run re-attached to and a run that ended last week are one code path.
Nothing here draws; a thread worker calls `poll` and posts what it returns.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from awq_engine.config import RunConfig
from awq_engine.errors import AwqError
from awq_engine.runs import Run, RunStatus
from awq_engine.state import Phase, RunState, reduce

LIVE_INTERVAL = 0.15
"""Seconds between two looks at the journal while an engine works."""
IDLE_INTERVAL = 1.0
"""Seconds between two looks when none does: another terminal may resume the run."""


REPLAY_SECONDS = 30.0
LONGEST_PAUSE = 60.0
"""Seconds; a run that lay still, as until somebody resumed it, is played on after this."""
_ENDINGS = {Phase.DONE: RunStatus.DONE, Phase.CANCELLED: RunStatus.CANCELLED, Phase.FAILED: RunStatus.FAILED}


@dataclass(frozen=True)
class Snapshot:
    """What is known of a run at one moment."""

    state: RunState
    status: RunStatus
    cancelling: bool
    """A stop was asked for and the engine has not yet followed."""
    pausing: bool
    """A pause was asked for; `state.paused` tells whether the engine has followed."""
    unreadable: int
    """Journal lines this version could not read."""
    now: float | None = None
    """Unix time at which this was so, in a replay; None for the present."""


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
        pausing = running and self._run.pause_requested()
        snapshot = Snapshot(self._state, self._status(running), cancelling, pausing, self._reader.skipped)
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
    def _key(snapshot: Snapshot) -> tuple[int, RunStatus, bool, bool, int]:
        return (
            snapshot.state.last_seq, snapshot.status, snapshot.cancelling, snapshot.pausing, snapshot.unreadable
        )  # fmt: skip


class Replay:
    """A recorded run played again, with a clock of its own; use it from one thread at a time, but for `speed`."""

    def __init__(self, run: Run, clock: Callable[[], float] = time.monotonic) -> None:
        self._records = run.records()
        times = [record.time for record in self._records]
        self._pauses = [min(after - before, LONGEST_PAUSE) for before, after in pairwise(times)]
        self.speed = max(1.0, 2.0 ** round(math.log2(max(1.0, sum(self._pauses) / REPLAY_SECONDS))))
        """Seconds of the run in one second; at first such that all of it takes about `REPLAY_SECONDS`."""
        self._clock = clock
        self._last = clock()
        self._credit = 0.0
        """Seconds of the run that have passed since the last event that was played."""
        self._played = 0
        self._state = RunState()

    @property
    def interval(self) -> float:
        """Seconds until `poll` is worth calling again."""
        return LIVE_INTERVAL

    def poll(self) -> Snapshot | None:
        """The state by now, or None when nothing happened since the last call."""
        now = self._clock()
        self._credit += (now - self._last) * self.speed
        self._last = now
        before = self._played
        while self._played < len(self._records) and self._credit >= self._pause:
            self._credit -= self._pause
            self._state = reduce(self._state, self._records[self._played])
            self._played += 1
        if self._played == before:
            return None
        at_end = self._played == len(self._records)
        status = _ENDINGS.get(self._state.phase, RunStatus.INTERRUPTED) if at_end else RunStatus.RUNNING
        return Snapshot(self._state, status, False, False, 0, self._records[self._played - 1].time)

    @property
    def _pause(self) -> float:
        """Seconds between the last event that was played and the next."""
        return self._pauses[self._played - 1] if self._played else 0.0


def follow(client: RunClient | Replay, post: Callable[[Snapshot], object], stop: threading.Event) -> None:
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
