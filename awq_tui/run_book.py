"""All runs at a glance, followed cheaply: each refresh reads only what the journals gained since the last one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from awq_engine.config import RunFile
from awq_engine.errors import AwqError
from awq_engine.evaluations import Measuring, measuring
from awq_engine.journal import JournalReader
from awq_engine.runs import Run, RunStatus, list_runs
from awq_engine.side_jobs import Standing
from awq_engine.speeds import SPEED, Speeds, read_speeds
from awq_engine.state import Phase, RunState, at_a_glance, reduce

_ENDINGS = {Phase.DONE: RunStatus.DONE, Phase.CANCELLED: RunStatus.CANCELLED, Phase.FAILED: RunStatus.FAILED}
NOT_MEASURED, NOT_TIMED = Measuring(), Standing()


@dataclass(frozen=True, eq=False)
class RunSummary:
    """One line of the runs screen; the same object for as long as nothing is new."""

    run: Run
    status: RunStatus
    state: RunState
    file: RunFile | None
    """None when `run.json` cannot be read; `problem` says why."""
    problem: str = ""
    measuring: Measuring = NOT_MEASURED
    """Of a finished run's output; so are the two below."""
    timing: Standing = NOT_TIMED
    speeds: Speeds | None = None

    @property
    def running(self) -> bool:
        return self.status is RunStatus.RUNNING

    @property
    def has_layers(self) -> bool:
        """Whether there is a finished block; of a run at rest only the end was read."""
        return self.status is RunStatus.DONE or bool(self.state.blocks)

    @property
    def model_name(self) -> str:
        """The last part of the model's folder or Hub id."""
        return Path(self.file.config.model).name if self.file else self.run.id

    @property
    def output(self) -> Path | None:
        """The finished checkpoint's folder, while it exists."""
        if self.status is not RunStatus.DONE or self.file is None:
            return None
        output = (self.state.result or {}).get("output", self.file.config.output)
        return Path(output) if isinstance(output, str) and Path(output).is_dir() else None


class RunBook:
    """Remembers how far each journal was read. Not safe to refresh from two threads at once."""

    def __init__(self) -> None:
        self._entries: dict[Path, _Entry] = {}

    def refresh(self) -> tuple[RunSummary, ...]:
        """Every run, newest first."""
        runs = list_runs()
        self._entries = {run.path: self._entries.get(run.path) or _Entry(run) for run in runs}
        return tuple(entry.summarize() for entry in self._entries.values())


class _Entry:
    def __init__(self, run: Run) -> None:
        self._run = run
        self._reader: JournalReader = run.reader()
        glance = at_a_glance(run.last_record())
        self._at_rest = glance is not None
        self._state = glance or RunState()
        self._file: RunFile | None = None
        self._problem = ""
        self._last: RunSummary | None = None
        self._stamp = 0
        self._known_beside: tuple[Measuring, Standing, Speeds | None] = (NOT_MEASURED, NOT_TIMED, None)
        try:
            self._file = run.file()
        except AwqError as error:
            self._problem = str(error)

    def summarize(self) -> RunSummary:
        """The lock is looked at before the journal: an engine that ends in between has then written its last word."""
        locked = self._run.is_locked()
        if locked and self._at_rest:  # it is at work again: now every line counts
            self._at_rest, self._state = False, RunState()
        for record in () if self._at_rest else self._reader.read():
            self._state = reduce(self._state, record)
        status = RunStatus.RUNNING if locked else _ENDINGS.get(self._state.phase, RunStatus.INTERRUPTED)
        beside = self._beside() if status is RunStatus.DONE else (NOT_MEASURED, NOT_TIMED, None)
        last = self._last
        known = last and (last.status, last.measuring, last.timing, last.speeds)
        if last is None or last.state is not self._state or known != (status, *beside):
            last = self._last = RunSummary(self._run, status, self._state, self._file, self._problem, *beside)
        return last

    def _beside(self) -> tuple[Measuring, Standing, Speeds | None]:
        """What side jobs say; read again when a file came into the directory, or while one is at work."""
        try:
            stamp = self._run.path.stat().st_mtime_ns
        except FileNotFoundError:  # deleted just now
            return NOT_MEASURED, NOT_TIMED, None
        if stamp != self._stamp or any(job.going_on for job in self._known_beside[:2]):
            self._stamp = stamp
            self._known_beside = measuring(self._run), SPEED.standing(self._run), read_speeds(self._run)
        return self._known_beside
