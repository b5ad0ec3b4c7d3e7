"""Following a journal: live, re-attached, finished, dead."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from awq_engine import events as e
from awq_engine.runs import RunStatus
from awq_engine.state import Phase, replay
from awq_tui.run_client import Replay, RunClient, Snapshot, follow, log_tail
from tests.tui.recorded_run import START, append, block, ending, new_run, opening, recorded_run


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path))


def polled(client: RunClient) -> Snapshot:
    snapshot = client.poll()
    assert snapshot is not None
    return snapshot


def test_a_finished_run_is_replayed_at_once(tmp_path: Path) -> None:
    run = recorded_run(tmp_path)
    snapshot = polled(RunClient(run))
    assert snapshot.status is RunStatus.DONE
    assert snapshot.state == replay(run.records())
    assert snapshot.state.phase is Phase.DONE


def test_nothing_new_is_no_snapshot(tmp_path: Path) -> None:
    client = RunClient(recorded_run(tmp_path))
    assert client.poll() is not None
    assert client.poll() is None


def test_a_live_run_grows_and_its_end_is_seen(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    output = Path(run.config().output)
    lock = run.take_lock()
    client = RunClient(run)
    assert polled(client).status is RunStatus.RUNNING
    append(run, opening(2, output, run.config()))
    assert polled(client).state.n_blocks == 2
    append(run, [*block(0), *block(1)])
    assert len(polled(client).state.blocks) == 2
    append(run, ending(output))
    os.close(lock)
    assert polled(client).status is RunStatus.DONE


def test_an_engine_that_dies_without_a_word_is_noticed(tmp_path: Path) -> None:
    run = recorded_run(tmp_path, finished_blocks=1)
    lock = run.take_lock()
    client = RunClient(run)
    assert polled(client).status is RunStatus.RUNNING
    os.close(lock)
    snapshot = polled(client)
    assert snapshot.status is RunStatus.INTERRUPTED
    assert snapshot.status.resumable
    assert client.poll() is None


def test_a_resumed_run_is_running_again(tmp_path: Path) -> None:
    run = recorded_run(tmp_path, finished_blocks=1)
    client = RunClient(run)
    assert polled(client).status is RunStatus.INTERRUPTED
    lock = run.take_lock()
    assert polled(client).status is RunStatus.RUNNING
    os.close(lock)


def test_a_wish_to_stop_shows_until_the_engine_follows(tmp_path: Path) -> None:
    run = recorded_run(tmp_path, finished_blocks=1)
    lock = run.take_lock()
    client = RunClient(run)
    assert not polled(client).cancelling
    run.request_cancel()
    assert polled(client).cancelling
    append(run, [e.RunCancelled(1)])
    os.close(lock)
    last = polled(client)
    assert (last.status, last.cancelling) == (RunStatus.CANCELLED, False)


def test_corrupt_lines_are_counted_not_fatal(tmp_path: Path) -> None:
    run = recorded_run(tmp_path)
    with run.journal_path.open("ab") as file:
        file.write(b'{"kind":"from_the_future","seq":999}\nnot json\n')
    snapshot = polled(RunClient(run))
    assert snapshot.unreadable == 2
    assert snapshot.state.phase is Phase.DONE


def test_follow_posts_until_stopped(tmp_path: Path) -> None:
    run = recorded_run(tmp_path, finished_blocks=1)
    seen: list[Snapshot] = []
    stop = threading.Event()
    lock = run.take_lock()
    thread = threading.Thread(target=follow, args=(RunClient(run), seen.append, stop))
    thread.start()
    append(run, block(1))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (seen and len(seen[-1].state.blocks) == 2):
        time.sleep(0.01)
    stop.set()
    thread.join(60)
    os.close(lock)
    assert len(seen[-1].state.blocks) == 2
    assert not thread.is_alive()


def test_the_log_tail_is_bounded_and_decodes_anything(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    assert log_tail(run) == []
    run.log_path.write_bytes(b"".join(b"line %d\n" % i for i in range(1000)) + b"bad \xff byte\rnext")
    tail = log_tail(run, max_lines=3)
    assert tail == ["line 999", "bad \ufffd byte", "next"]


def test_a_replay_goes_through_the_whole_run_at_its_speed(tmp_path: Path) -> None:
    run = recorded_run(tmp_path)
    now = 0.0
    replay = Replay(run, lambda: now)
    replay.speed = 10.0
    seen = []
    while not seen or seen[-1].status is RunStatus.RUNNING:
        if (snapshot := replay.poll()) is not None:
            seen.append(snapshot)
        now += 0.5
    records = run.records()
    assert now == pytest.approx((records[-1].time - records[0].time) / 10, abs=1.0)
    assert seen[-1].state == RunClient(run).poll().state
    assert [snapshot.state.last_seq for snapshot in seen] == sorted({snapshot.state.last_seq for snapshot in seen})
    assert all(snapshot.now == snapshot.state.updated for snapshot in seen)
    assert replay.poll() is None


def test_a_long_pause_is_cut_short(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    times = iter([START, START + 1, START + 86_400, START + 86_401])
    append(run, list(block(0))[:4], lambda: next(times))
    now = 0.0
    replay = Replay(run, lambda: now)
    replay.speed = 1.0
    replay.poll()
    now = 63.0
    assert replay.poll().state.last_seq == 4
