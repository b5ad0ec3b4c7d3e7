"""Runs that lie still and go on."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from awq_engine import cli, pausing
from awq_engine import events as e
from awq_engine.config import RunConfig
from awq_engine.errors import ExitCode, InterruptedRunError
from awq_engine.journal import Journal
from awq_engine.pausing import PausableRun
from awq_engine.runs import Run, create_run
from awq_engine.state import replay

DEADLINE = 60.0


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path))
    monkeypatch.setattr(pausing, "INTERVAL", 0.01)
    return create_run(RunConfig("m", str(tmp_path / "out")))


def wait_for(said: list[e.Event], kind: type[e.Event]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not any(isinstance(event, kind) for event in said):
        assert time.monotonic() < deadline, said
        time.sleep(0.01)


def test_the_engine_lies_still_until_the_pause_ends(run: Run) -> None:
    said: list[e.Event] = []
    seen_by_engine = PausableRun(run.path, said.append)
    seen_by_engine.raise_if_cancelled()
    assert said == []
    run.request_pause()
    engine = threading.Thread(target=seen_by_engine.raise_if_cancelled)
    engine.start()
    wait_for(said, e.Paused)
    engine.join(0.1)
    assert engine.is_alive()
    run.end_pause()
    engine.join(DEADLINE)
    assert said == [e.Paused(), e.Continued()]


def test_a_paused_run_can_be_cancelled(run: Run) -> None:
    run.request_pause()

    def emit(event: e.Event) -> None:
        assert event == e.Paused()
        run.request_cancel()

    with pytest.raises(InterruptedRunError):
        PausableRun(run.path, emit).raise_if_cancelled()


def test_the_clocks_stand_still_in_a_pause(run: Run) -> None:
    now = 1000.0
    with Journal(run.journal_path, lambda: now) as emit:
        emit(e.RunStarted(run.id, {}, {}, 1, "here", "cpu"))
        emit(e.BlockStarted(0, "b"))
        now = 1010.0
        emit(e.Paused())
    state = replay(run.records())
    assert (state.paused, state.elapsed(1500.0)) == (1010.0, 10.0)
    now = 2010.0
    with Journal(run.journal_path, lambda: now) as emit:
        emit(e.Continued())
    state = replay(run.records())
    assert (state.paused, state.elapsed(2015.0), state.block_started) == (None, 15.0, 2000.0)
    now = 2020.0
    with Journal(run.journal_path, lambda: now) as emit:
        emit(e.Paused())
        now = 9000.0  # killed in its pause, and resumed
        emit(e.RunStarted(run.id, {}, {}, 2, "here", "cpu"))
    state = replay(run.records())
    assert (state.paused, state.elapsed(9001.0)) == (None, 21.0)


def test_pause_and_resume_from_the_command_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pause", run.id]) == ExitCode.BAD_INPUT
    assert "is not running (it is interrupted)" in capsys.readouterr().err
    lock = run.take_lock()
    assert cli.main(["pause", run.id]) == 0
    assert run.pause_requested()
    assert cli.main(["resume", run.id]) == 0
    assert f"Run {run.id} goes on" in capsys.readouterr().err
    assert not run.pause_requested()
    assert lock
