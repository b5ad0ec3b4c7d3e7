"""Run directories: private, found by prefix, and their status told by lock and journal alone."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from awq_engine import runs
from awq_engine.config import RunConfig
from awq_engine.errors import BadInputError, UsageError
from awq_engine.events import Event, RunCancelled, RunFailed, RunFinished, Warned
from awq_engine.journal import Journal
from awq_engine.runs import RunStatus, create_run, find_run, list_runs
from awq_engine.storage import write_atomically

LOCK = """
import sys, time
from pathlib import Path
from awq_engine.runs import Run
Run(Path(sys.argv[1])).take_lock()
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def run() -> runs.Run:
    return create_run(RunConfig("/models/Tiny-Llama 1.5", "/out"))


def journal(run: runs.Run, *events: Event) -> None:
    with Journal(run.journal_path) as write:
        for event in events:
            write(event)


def test_new_run_is_private_and_holds_its_request(run: runs.Run, home: Path) -> None:
    assert run.path.parent == home / "runs"
    assert run.id.endswith("-tiny-llama-1-5-w4")
    assert run.config() == RunConfig("/models/Tiny-Llama 1.5", "/out")
    for path in (home / "runs", run.path, run.blocks_dir):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_runs_of_the_same_second_get_names_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda _: "20260101-000000")
    ids = [create_run(RunConfig("m", "/out")).id for _ in range(3)]
    assert len(set(ids)) == 3
    assert {run.id for run in list_runs()} == set(ids)


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        (RunFinished({}), RunStatus.DONE),
        (RunCancelled(1), RunStatus.CANCELLED),
        (RunFailed("no", 2), RunStatus.FAILED),
        (Warned("and then nothing"), RunStatus.INTERRUPTED),
        (None, RunStatus.INTERRUPTED),
    ],
)
def test_status_is_the_last_word_once_the_lock_is_free(run: runs.Run, ending: Event | None, status: RunStatus) -> None:
    if ending is not None:
        journal(run, ending)
    assert run.status() is status
    assert status.resumable == (status is not RunStatus.DONE)
    descriptor = run.take_lock()
    assert run.status() is RunStatus.RUNNING
    os.close(descriptor)
    assert run.status() is status


def test_lock_of_another_process_counts_and_dies_with_it(run: runs.Run) -> None:
    process = subprocess.Popen([sys.executable, "-c", LOCK, str(run.path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        assert run.status() is RunStatus.RUNNING
        with pytest.raises(UsageError, match="already being worked on"):
            run.take_lock()
        with pytest.raises(UsageError, match="still running; cancel it first"):
            run.remove()
    finally:
        process.kill()
        process.communicate()
    assert run.status() is RunStatus.INTERRUPTED


def test_cancel_is_a_file_that_another_terminal_can_touch(run: runs.Run) -> None:
    assert not run.cancel_requested()
    run.request_cancel()
    assert runs.Run(run.path).cancel_requested()
    run.clear_cancel()
    run.clear_cancel()
    assert not run.cancel_requested()


def test_run_is_found_by_id_prefix_and_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for day in ("20260101", "20260102"):
        monkeypatch.setattr(time, "strftime", lambda _, day=day: f"{day}-000000")
        made.append(create_run(RunConfig("m", "/out")))
    assert find_run(made[0].id) == find_run("20260101") == made[0]
    assert find_run("latest") == made[1] == list_runs()[0]
    with pytest.raises(BadInputError, match="fits 2 runs"):
        find_run("2026")
    for name in ("", "nothing"):
        with pytest.raises(BadInputError, match="There is no run"):
            find_run(name)


def test_full_id_wins_over_being_a_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda _: "20260101-000000")
    first, second = create_run(RunConfig("m", "/out")), create_run(RunConfig("m", "/out"))
    assert second.id.startswith(first.id)
    assert find_run(first.id) == first


def test_directories_that_are_no_runs_are_not_listed(run: runs.Run, home: Path) -> None:
    (home / "runs" / "99999999-stray").mkdir()
    assert list_runs() == [run]


def test_removing_takes_the_directory_only(run: runs.Run, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    run.remove()
    assert not run.path.exists()
    assert output.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"version": 1}'])
def test_damaged_request_is_bad_input_that_names_the_file(run: runs.Run, content: bytes) -> None:
    (run.path / "run.json").write_bytes(content)
    with pytest.raises(BadInputError, match=r"run\.json"):
        run.config()


def test_interrupted_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def no_sync(_: int) -> None:
        raise OSError("power is gone")

    monkeypatch.setattr(os, "fsync", no_sync)
    with pytest.raises(OSError, match="power"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_engine_inherits_the_lock_and_works_in_a_session_of_its_own(
    run: runs.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for Python that says where it runs, then waits."""
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho "session $(ps -o sid= -p $$) in $(pwd) with $1 $2 $4"\nexec sleep 60\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    run.request_cancel()
    process = runs.spawn_engine(run)
    try:
        assert run.status() is RunStatus.RUNNING
        assert not run.cancel_requested()
        deadline = time.monotonic() + 60
        while not run.log_path.read_text().endswith("\n") and time.monotonic() < deadline:
            time.sleep(0.01)
        said = run.log_path.read_text().split()
        assert int(said[1]) == process.pid != os.getsid(0)
        assert said[3] == "/"
        assert said[5:7] == ["-m", "awq_engine.worker"]
        assert int(said[7]) > 2
    finally:
        process.kill()
        process.wait()
    assert run.status() is RunStatus.INTERRUPTED
