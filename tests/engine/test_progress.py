"""A run as plain lines, and following it to its end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from awq_engine import events as e
from awq_engine.config import RunConfig
from awq_engine.journal import Journal
from awq_engine.progress import ProgressLines, follow
from awq_engine.runs import create_run
from tests.engine.journals import CALIBRATION_SOURCE, block, planned, records, started, whole_run


def lines_of(events: list[e.Event], step: float = 1.0) -> list[str]:
    progress = ProgressLines()
    return [line for record in records(events, step=step) for line in progress.lines(record)]


def test_a_whole_run_reads_as_its_story() -> None:
    assert lines_of(whole_run()) == [
        "run r  engine 42 on cpu, torch 2.13.0",
        "llama with 3.7 M parameters: 4 linears in 2 blocks, 1 kept as they are; 7.3 MB -> 2.7 MB, "
        "4.16 bits per weight",
        "calibration builtin: 128 x 256 tokens from 80 of 90 documents, 7 of them cut; 100 tokens not used; a sample",
        "calibrating 1 of 4",
        "block 1/2  loss 4.0e-3 -> 1.0e-3 (0.25x)  10.0 s  0:10 left",
        "block 2 keeps plain rounding: it was better off",
        "block 2/2  loss 4.0e-3 -> 1.0e-3 (0.25x)  10.0 s",
        "warning: something odd",
        "writing 1 B of 2 B",
        "verified on 64 tokens: logits read back differ by at most 0",
    ]


def test_resumed_run_says_what_was_done_before() -> None:
    assert lines_of([started(resumed_blocks=3)]) == ["run r  engine 42 on cpu, torch 2.13.0, 3 blocks done before"]


def test_download_speaks_only_now_and_then() -> None:
    steps = [e.DownloadProgress(number * 10, 1000, "org/m") for number in range(100)]
    assert lines_of(list(steps), step=1.0)[:2] == [
        "downloading org/m 0 B of 1.0 kB (0 %)",
        "downloading org/m 50 B of 1.0 kB (5 %)",
    ]
    assert len(lines_of(list(steps), step=0.1)) == 2
    assert lines_of([e.DownloadProgress(0, 0)]) == ["downloading  0 B of 0 B"]


def test_another_phase_speaks_at_once() -> None:
    phases = [e.PhaseProgress(phase, 1, 2) for phase in ("calibrating", "calibrating", "verifying")]
    assert lines_of(list(phases), step=0.1) == ["calibrating 1 of 2", "verifying 1 of 2"]


def test_block_without_rounding_loss_has_no_ratio() -> None:
    line = lines_of([planned(), e.BlockFinished(0, 0.0, 0.0, 1.0, "f", "0", 1)])[-1]
    assert "loss 0 -> 0 (-)" in line


def test_names_cannot_steer_the_terminal() -> None:
    (line,) = lines_of([e.Warned("tensor \x1b[2Jevil\nblock 9/9 done")])
    assert "\x1b" not in line
    assert "\n" not in line


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path))


def test_following_ends_when_the_lock_is_free_and_misses_nothing() -> None:
    run = create_run(RunConfig("m", "/out"))
    descriptor = run.take_lock()
    journal = Journal(run.journal_path)
    journal(started())
    seen: list[e.Event | None] = []
    for record in follow(run):
        seen.append(record.event if record else None)
        if seen.count(None) == 1 and record is None:
            journal(planned())
        if seen.count(None) == 2 and record is None:
            journal(e.RunCancelled(0))
            os.close(descriptor)
    journal.close()
    assert [event for event in seen if event] == [started(), planned(), e.RunCancelled(0)]


def test_following_an_ended_run_replays_it() -> None:
    run = create_run(RunConfig("m", "/out"))
    with Journal(run.journal_path) as journal:
        for event in block(0):
            journal(event)
    assert [record.event for record in follow(run) if record] == block(0)


def test_every_source_of_a_mix_has_a_line():
    """And the tokens that count are counted where only answers do."""
    other = {**CALIBRATION_SOURCE, "source": "chat.jsonl", "documents_cut": 0, "dropped_tokens": 0, "detail": ""}
    mixed = e.CalibrationReady("builtin+chat.jsonl", 256, 256, 65536, 100, "a", [CALIBRATION_SOURCE, other], 512)

    assert ProgressLines().lines(e.Record(1, 0.0, mixed)) == [
        "calibration builtin+chat.jsonl: 256 x 256 tokens, 512 of them in answers",
        "  builtin: 128 sequences from 80 of 90 documents, 7 of them cut; 100 tokens not used; a sample",
        "  chat.jsonl: 128 sequences from 80 of 90 documents",
    ]


def test_run_of_an_older_version_reads_without_its_sources():
    """Its journal has none."""
    old = e.CalibrationReady("builtin", 128, 256, 32768, 100, "a sample")
    assert ProgressLines().lines(e.Record(1, 0.0, old)) == ["calibration builtin: 128 x 256 tokens"]
