"""Queued runs begin one after the other."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from awq_engine import events as e
from awq_engine import run_queue
from awq_engine.config import RunConfig
from awq_engine.errors import InterruptedRunError
from awq_engine.progress import ProgressLines
from awq_engine.run_queue import others_ahead, wait_for_turn
from awq_engine.runs import Run, create_run
from awq_engine.state import Phase, RunState, reduce


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Three, the oldest first; none has an engine."""
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path))
    monkeypatch.setattr(run_queue, "INTERVAL", 0.01)
    return sorted((create_run(RunConfig("m", str(tmp_path / "out"))) for _ in range(3)), key=lambda run: run.id)


def queued(run: Run) -> int:
    (run.path / "queued").touch()
    return run.take_lock()


def test_a_queued_run_waits_for_those_at_work_and_those_queued_before(runs: list[Run]) -> None:
    first, second, third = runs
    queued(second)
    queued(third)
    assert others_ahead(second) == []
    assert others_ahead(third) == [second]
    lock = first.take_lock()
    assert others_ahead(second) == [first]
    assert set(others_ahead(third)) == {first, second}
    os.close(lock)


def test_it_begins_when_the_last_one_ends(runs: list[Run]) -> None:
    first, second, _ = runs
    lock = first.take_lock()
    queued(second)
    told: list[int] = []
    begun = threading.Event()

    def wait() -> None:
        wait_for_turn(second, told.append)
        begun.set()

    threading.Thread(target=wait, daemon=True).start()
    assert not begun.wait(0.2)
    os.close(lock)
    assert begun.wait(5)
    assert told == [1]
    assert not second.is_queued()


def test_one_that_is_not_queued_begins_at_once_and_a_cancel_ends_the_waiting(runs: list[Run]) -> None:
    first, second, third = runs
    first.take_lock()
    wait_for_turn(second, lambda ahead: pytest.fail("waited"))
    queued(third)
    third.request_cancel()
    with pytest.raises(InterruptedRunError):
        wait_for_turn(third, lambda ahead: None)


def test_waiting_is_said_and_has_no_clock() -> None:
    record = e.Record(1, 100.0, e.Queued(2))
    state = reduce(RunState(), record)
    assert (state.phase, state.ahead, state.elapsed(200.0)) == (Phase.QUEUED, 2, 0.0)
    assert ProgressLines().lines(record) == ["queued behind 2 other runs"]
