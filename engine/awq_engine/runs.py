"""Run directories: the whole protocol between a screen and an engine.

    RUN/run.json       the request, immutable
    RUN/lock           flock held by the engine for its life
    RUN/journal.jsonl  what happened
    RUN/blocks/        finished blocks
    RUN/engine.log     the engine's stdout and stderr
    RUN/cancel         touch it: the engine stops after the present step
    RUN/pause          while it is there, the engine lies still after the present step (`pausing`)
    RUN/queued         the engine waits until no other run is at work (`run_queue`)

Status is derived from lock and journal, never stored. Standard library and platformdirs only: the app imports this.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from awq_engine.config import RunConfig, RunFile
from awq_engine.detached import QUIET_THREADS, RETURNED_MEMORY, spawn_detached
from awq_engine.errors import BadInputError, InterruptedRunError, UsageError
from awq_engine.events import Record, RunCancelled, RunFailed, RunFinished
from awq_engine.journal import JournalReader, last_record, read_journal
from awq_engine.locks import is_locked, take_lock
from awq_engine.storage import runs_dir, write_atomically


class RunStatus(StrEnum):
    """Derived from the lock and the last words of the journal."""

    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """The engine died without a word; resume goes on from the last finished block."""

    @property
    def resumable(self) -> bool:
        return self in (RunStatus.CANCELLED, RunStatus.FAILED, RunStatus.INTERRUPTED)


_ENDINGS = {RunFinished: RunStatus.DONE, RunCancelled: RunStatus.CANCELLED, RunFailed: RunStatus.FAILED}


@dataclass(frozen=True)
class Run:
    """One run directory."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def journal_path(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def log_path(self) -> Path:
        return self.path / "engine.log"

    @property
    def blocks_dir(self) -> Path:
        return self.path / "blocks"

    @property
    def gradients_dir(self) -> Path:
        """Of the preset `best`, while it runs."""
        return self.path / "gradients"

    def file(self) -> RunFile:
        """The request; `BadInputError` when `run.json` is missing or unreadable."""
        where = self.path / "run.json"
        try:
            return RunFile.loads(where.read_text(encoding="utf-8"), str(where))
        except (OSError, UnicodeDecodeError) as error:
            raise BadInputError(f"{where} cannot be read ({error}); remove the run to be rid of it.") from error

    def config(self) -> RunConfig:
        return self.file().config

    def records(self) -> list[Record]:
        return read_journal(self.journal_path)

    def last_record(self) -> Record | None:
        return last_record(self.journal_path)

    def reader(self) -> JournalReader:
        return JournalReader(self.journal_path)

    def status(self) -> RunStatus:
        """What the lock and the last event say, at this moment."""
        if self.is_locked():
            return RunStatus.RUNNING
        last = self.last_record()
        return _ENDINGS.get(type(last.event), RunStatus.INTERRUPTED) if last else RunStatus.INTERRUPTED

    def is_locked(self) -> bool:
        return is_locked(self.path / "lock")

    def take_lock(self) -> int:
        """Take the lock and return its descriptor, which holds it; `UsageError` if another engine has it."""
        descriptor = take_lock(self.path / "lock")
        if descriptor is None:
            raise UsageError(f"Run {self.id} is already being worked on by another engine; watch it instead.")
        return descriptor

    def request_cancel(self) -> None:
        (self.path / "cancel").touch()

    def clear_cancel(self) -> None:
        (self.path / "cancel").unlink(missing_ok=True)

    def cancel_requested(self) -> bool:
        return (self.path / "cancel").exists()

    def request_pause(self) -> None:
        (self.path / "pause").touch()

    def end_pause(self) -> None:
        (self.path / "pause").unlink(missing_ok=True)

    def pause_requested(self) -> bool:
        return (self.path / "pause").exists()

    def is_queued(self) -> bool:
        """Whether its engine waits, or would wait, for other runs."""
        return (self.path / "queued").exists()

    def leave_queue(self) -> None:
        (self.path / "queued").unlink(missing_ok=True)

    def raise_if_cancelled(self) -> None:
        """The moment to stop, where a cancel was asked for."""
        if self.cancel_requested():
            raise InterruptedRunError(f"Run {self.id} was cancelled; continue it with `awq-tui resume {self.id}`.")

    def staging(self, output: Path) -> Path:
        """Where this run assembles `output`: beside it, under a name of its own."""
        return output.with_name(f".{output.name}.{self.id}.partial")

    def remove(self) -> None:
        """Delete the run directory and what it left half assembled (never the output); refused while it runs."""
        if self.is_locked():
            raise UsageError(f"Run {self.id} is still running; cancel it first (awq-tui cancel {self.id}).")
        with contextlib.suppress(BadInputError):
            shutil.rmtree(self.staging(Path(self.config().output)), ignore_errors=True)
        shutil.rmtree(self.path)


def create_run(config: RunConfig) -> Run:
    """Make a new private run directory holding the request."""
    root = runs_dir()
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        run = Run(_claim_directory(root, _slug(config)))
        run.blocks_dir.mkdir(mode=0o700)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise UsageError(
            f"Runs cannot be kept in {root} ({error.strerror}); set AWQ_TUI_HOME to a folder of yours."
        ) from error
    write_atomically(run.path / "run.json", RunFile(run.id, config, time.time()).dumps().encode())
    return run


def list_runs() -> list[Run]:
    """Every run, newest first; directories without `run.json` are not runs."""
    root = runs_dir()
    if not root.is_dir():
        return []
    return [Run(path) for path in sorted(root.iterdir(), reverse=True) if (path / "run.json").is_file()]


def find_run(name: str) -> Run:
    """The run with this id or unique prefix; `latest` is the newest. Raises `BadInputError`."""
    runs = list_runs()
    if name == "latest" and runs:
        return runs[0]
    matches = [run for run in runs if run.id == name] or [run for run in runs if name and run.id.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise BadInputError(f"'{name}' fits {len(matches)} runs: {', '.join(run.id for run in matches[:5])}.")
    raise BadInputError(f"There is no run '{name}' in {runs_dir()}; `awq-tui runs` lists them.")


def spawn_engine(run: Run, *, queued: bool = False) -> subprocess.Popen[bytes]:
    """Start the engine detached: it survives this process, its terminal and its session.

    A `queued` one begins when no other run is at work.

    The lock is taken here and inherited by the engine, so there is no moment at which a started run looks dead, and no
    second engine can slip in. The caller must poll the returned process now and then, or it stays a zombie.
    """
    descriptor = run.take_lock()
    run.clear_cancel()
    run.end_pause()
    (run.path / "queued").touch() if queued else run.leave_queue()
    arguments, environment = [str(run.path), str(descriptor)], {**QUIET_THREADS, **RETURNED_MEMORY}
    try:
        return spawn_detached("awq_engine.worker", arguments, run.log_path, [descriptor], environment)
    finally:
        os.close(descriptor)


def _claim_directory(root: Path, slug: str) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for attempt in range(1000):
        path = root / (f"{stamp}-{slug}" if attempt == 0 else f"{stamp}-{slug}-{attempt}")
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
            return path
    raise UsageError(f"Too many runs were started in the same second in {root}.")


def _slug(config: RunConfig) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", Path(config.model).name.lower()).strip("-") or "model"
    return f"{name[:40]}-w{config.bits}"
