"""Runs on one tiny model, and what is looked at after a fault.

One process imports torch and forks every engine, so that a death costs a second. After each fault the run is resumed
without it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import awq_engine.pipeline  # noqa: F401  imported before forking, so that children start at once
from awq_engine import worker
from awq_engine.config import Preset
from awq_engine.errors import ExitCode
from awq_engine.events import RunFailed
from awq_engine.runs import Run, RunStatus, create_run
from tests.engine.tiny_model import write_tiny_model
from tests.engine.tiny_run import tiny_request

LONGEST_MESSAGE = 600
BECOME_PARENT_OF_ORPHANS = 36
"""prctl's number (Linux)."""
Arm = Callable[[Run], None]
"""Puts a fault into the engine's process, before it begins."""


class Bench:
    """A tiny model, a text, and the files that an undisturbed run makes of them."""

    def __init__(self, root: Path, preset: Preset = Preset.FAST) -> None:
        self.root = root
        self.model = write_tiny_model(root / "model")
        self.config = tiny_request(root, self.model, preset=preset)
        self.text = Path(self.config.calibration)
        self._inputs = files_of(self.model) | {self.text.name: _hash(self.text)}
        ctypes.CDLL(None).prctl(BECOME_PARENT_OF_ORPHANS, 1)
        started = time.perf_counter()
        run = self.new_run()
        assert engine(run) == 0, last_message(run)
        self.seconds = time.perf_counter() - started
        self.expected = files_of(Path(run.config().output))

    def new_run(self, **changes: Any) -> Run:
        """With an output folder of its own."""
        folder = Path(tempfile.mkdtemp(dir=self.root, prefix="place-"))
        return create_run(replace(self.config, output=str(folder / "out"), **changes))

    def overwriting_run(self) -> Run:
        """A run in whose output folder a model lies already."""
        run = self.new_run(overwrite=True)
        output = Path(run.config().output)
        output.mkdir()
        (output / "config.json").write_text("{}")
        return run

    def problem_after(self, run: Run, code: int, words: str = "") -> str | None:
        """What is wrong after a fault that ended the engine with `code`; resumes the run.

        `words` are to be in the message.
        """
        problem = self._message_problem(run, code, words) or self._output_problem(run) or self._losses()
        return problem or self.problem_resuming(run)

    def problem_resuming(self, run: Run) -> str | None:
        output = Path(run.config().output)
        if (again := engine(run)) != 0:
            return f"resuming ended with {again}: {last_message(run)}"
        if run.status() is not RunStatus.DONE or files_of(output) != self.expected:
            return "the resumed run made other files"
        left = sorted(path.name for path in (*output.parent.iterdir(), *run.path.iterdir()) if path.name in LEFTOVERS)
        left += sorted(path.name for path in output.parent.iterdir() if path != output)
        return f"left behind: {left}" if left else self._losses()

    def _message_problem(self, run: Run, code: int, words: str) -> str | None:
        """Dead by a signal it can say nothing; a disk without any room holds no message, and the exit code says so."""
        if code <= 0:
            return None
        said = last_message(run)
        if code not in (ExitCode.BAD_INPUT, ExitCode.NO_RESOURCES, ExitCode.NETWORK):
            return f"ended with exit code {code}: {said}"
        if not said:
            return None if code == ExitCode.NO_RESOURCES and not words else "no message in the journal"
        if words not in said or not said.endswith((".", "!")) or len(said) > LONGEST_MESSAGE:
            return f"the message says too little or too much: {said}"
        return None

    def _output_problem(self, run: Run) -> str | None:
        """The output is the whole new one; or the one that is to be overwritten; or it is not there."""
        output = Path(run.config().output)
        if not output.exists():
            return "the model that was to be overwritten is lost" if run.config().overwrite else None
        found = files_of(output)
        old = run.config().overwrite and list(found) == ["config.json"]
        return None if old or found == self.expected else "an incomplete output under its final name"

    def _losses(self) -> str | None:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            return f"a process was left behind: {pid or 'at work'}"
        except ChildProcessError:
            now = files_of(self.model) | {self.text.name: _hash(self.text)}
            return None if now == self._inputs else "the inputs were changed"


LEFTOVERS = ("gradients", "blocks")


def files_of(folder: Path) -> dict[str, str]:
    """Name -> hash of every file but the report, which has times in it."""
    return {
        file.name: _hash(file) for file in sorted(folder.iterdir()) if file.name != "quantization_report.json"
    }  # fmt: skip


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def last_message(run: Run) -> str:
    """The last thing that an engine said went wrong."""
    found = [record.event.message for record in run.records() if isinstance(record.event, RunFailed)]
    return found[-1] if found else ""


def fork_engine(run: Run, arm: Arm | None = None) -> int:
    """Start an engine on the run; returns its process id."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        log = os.open(run.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        lock = run.take_lock()
        if arm:
            arm(run)
        os._exit(worker.main([str(run.path), str(lock)]))
    return child


def engine(run: Run, arm: Arm | None = None, kill_after: float | None = None) -> int:
    """Let an engine work on the run; its exit status, negative for a signal."""
    child = fork_engine(run, arm)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
