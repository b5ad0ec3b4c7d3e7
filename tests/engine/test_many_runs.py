"""Lists of very many runs, and of those that are at work."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from awq_engine import events as e
from awq_engine.cli import main
from awq_engine.config import RunConfig
from awq_engine.journal import TAIL, Journal, last_record, parse_line
from awq_engine.runs import Run, create_run
from awq_engine.state import at_a_glance, replay
from awq_tui.run_book import RunBook
from tests.engine import journals as j


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))


def finished_run(blocks: int = 32) -> Run:
    """A run whose journal tells of so many blocks."""
    run = create_run(RunConfig("m", "/out"))
    with Journal(run.journal_path) as emit:
        emit(j.started())
        emit(j.planned())
        for block in range(blocks):
            emit(e.BlockStarted(block, f"model.layers.{block}"))
            for name in j.LINEARS:
                emit(j.quantized(block, name))
            emit(e.BlockFinished(block, 1e-3, 1e-4, 2.0, "blocks/0", "ab", 1 << 30, 1 << 20))
        emit(e.RunFinished(j.RESULT))
    return run


def finished_runs(count: int) -> None:
    run = finished_run()
    for number in range(count - 1):
        shutil.copytree(run.path, run.path.with_name(f"{run.id}-{number:04}"))


@pytest.mark.slow
def test_a_thousand_runs_are_listed_within_a_second() -> None:
    """On the command line and in the app, which then looks at them once a second."""
    finished_runs(1_000)
    book = RunBook()
    for look, seconds in ((lambda: main(["runs"]), 1.0), (book.refresh, 1.0), (book.refresh, 0.5)):
        started = time.process_time()
        look()
        assert time.process_time() - started < seconds


def test_of_a_finished_run_the_last_line_alone_is_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And by the app once only."""
    finished_runs(20)
    read: list[bytes] = []
    monkeypatch.setattr("awq_engine.journal.parse_line", lambda line: read.append(line) or parse_line(line))
    assert main(["runs"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 20 + 1
    book = RunBook()
    assert len(book.refresh()) == 20
    assert {b'"run_finished"' in line for line in read if line} == {True}
    read.clear()
    book.refresh()
    assert read == []


def test_the_last_word_alone_says_what_a_list_shows() -> None:
    run = finished_run(blocks=2)
    whole, glance = replay(run.records()), at_a_glance(run.last_record())
    assert glance is not None
    assert (glance.phase, glance.result, glance.fraction()) == (whole.phase, whole.result, whole.fraction())
    assert glance.elapsed(0.0) == j.RESULT["seconds"]


def test_a_finished_run_that_is_at_work_again_is_read_whole() -> None:
    run = finished_run(blocks=2)
    book = RunBook()
    assert book.refresh()[0].state.plan is None
    lock = run.take_lock()
    assert book.refresh()[0].state.plan is not None
    os.close(lock)


def test_the_last_record_is_found_behind_lines_that_are_none(tmp_path: Path) -> None:
    """Longer than what is read first, damaged, torn."""
    path = tmp_path / "journal.jsonl"
    assert last_record(path) is None
    with Journal(path) as emit:
        emit(e.Warned("first"))
        emit(e.Warned("x" * 2 * TAIL))
    found = last_record(path)
    assert found is not None
    assert found.seq == 2
    with path.open("ab") as file:
        file.write(b"y" * 2 * TAIL + b"\n{torn")
    assert last_record(path) == found


def test_four_runs_are_watched_at_once() -> None:
    """Every line of every journal is read once, whatever their number."""
    runs = [create_run(RunConfig("m", "/out")) for _ in range(4)]
    locks = [run.take_lock() for run in runs]
    journals = [Journal(run.journal_path) for run in runs]
    book = RunBook()
    for block in range(50):
        for emit in journals:
            emit(e.BlockStarted(block, "b"))
        assert {summary.state.current_block for summary in book.refresh()} == {block}
        assert all(summary.running and summary.state.last_seq == block + 1 for summary in book.refresh())
    for emit, lock in zip(journals, locks, strict=True):
        emit.close()
        os.close(lock)
