"""Faults of the processes around an engine: a second one, and whoever started it dying."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from awq_engine.errors import UsageError
from awq_engine.runs import Run, RunStatus, list_runs
from tests.faults import arms
from tests.faults.bench import Bench, files_of, fork_engine

Tried = Iterator[tuple[str, object, str | None]]
STARTERS = 10
LONGEST = 120
"""Seconds that a started engine may take."""


def second_engines(bench: Bench, asked: Namespace) -> Tried:
    """Whoever wants to work on a run that is being worked on is told so; the first engine never notices."""
    run, reached, go_on = bench.new_run(), bench.root / "reached", bench.root / "go-on"

    def wait() -> None:
        reached.touch()
        while not go_on.exists():
            time.sleep(0.01)

    first = fork_engine(run, arms.at_event("block_started", wait))
    while not reached.exists():
        time.sleep(0.01)
    problems = [_taken(run) for _ in range(5)]
    said = _command("resume", run.id)
    go_on.touch()
    code = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
    for number, problem in enumerate(problems):
        yield "second engine", f"lock, attempt {number + 1}", problem
    refused = said.returncode == 2 and "is running; watch it" in said.stderr
    yield "second engine", "awq-tui resume", None if refused else f"{said.returncode} {said.stderr}"
    yield "second engine", "the first", bench.problem_after(run, code)


def _taken(run: Run) -> str | None:
    try:
        os.close(run.take_lock())
    except UsageError as error:
        return None if "already being worked on" in str(error) else str(error)
    return "the lock was given twice"


def deaths_of_starters(bench: Bench, asked: Namespace) -> Tried:
    """`awq-tui quantize` is killed: the engine it may have started works on to the end, or there is a run to resume."""
    rng = random.Random(asked.seed)
    os.environ["OMP_NUM_THREADS"] = "1"  # as many as the bench's engines have
    for _ in range(min(STARTERS, asked.moments)):
        folder = bench.root / f"starter-{rng.random()}"
        folder.mkdir()
        moment = rng.uniform(0.2, 3.0)
        before = {run.id for run in list_runs()}
        starter = subprocess.Popen(_quantize(bench, folder / "out"), stderr=subprocess.DEVNULL)
        time.sleep(moment)
        starter.send_signal(signal.SIGKILL)
        starter.wait()
        started = [run for run in list_runs() if run.id not in before]
        problem = _after_starter(bench, started[0]) if started else None
        yield "starter killed", f"{moment:.2f} s", problem if len(started) < 2 else "more than one run"


def _quantize(bench: Bench, output: Path) -> list[str]:
    config = bench.config
    return [
        sys.executable, "-m", "awq_engine.cli", "quantize", config.model, "-o", str(output), "--group-size", "32",
        "--calibration", config.calibration, "--samples", "4", "--seq-len", "64", "--preset", config.preset.value,
        "--device", "cpu",
    ]  # fmt: skip


def _after_starter(bench: Bench, run: Run) -> str | None:
    _wait_for_orphans()
    if run.status() is not RunStatus.DONE:
        return bench.problem_after(run, -signal.SIGKILL)
    return None if files_of(Path(run.config().output)) == bench.expected else "other files"


def _wait_for_orphans() -> None:
    """Engines whose starter died are this process's now."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "awq_engine.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False)
