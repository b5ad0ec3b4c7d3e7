"""The journal loses nothing that was written whole, and nothing half written does harm."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awq_engine.events import PhaseProgress, Warned
from awq_engine.journal import MAX_LINE, PROGRESS_SECONDS, Journal, JournalReader, parse_line, read_journal, throttled


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def messages(path: Path) -> list[str]:
    return [record.event.message for record in read_journal(path) if isinstance(record.event, Warned)]


def test_numbers_go_on_after_reopening(path: Path) -> None:
    for part in (["a", "b"], ["c"]):
        with Journal(path, clock=lambda: 5.0) as journal:
            for message in part:
                journal(Warned(message))
    assert [(record.seq, record.time) for record in read_journal(path)] == [(1, 5.0), (2, 5.0), (3, 5.0)]
    assert messages(path) == ["a", "b", "c"]


def test_what_matters_is_on_disk_when_it_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress, which is said often and lost without harm, does not wait for the disk."""
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(path.stat().st_size))
    with Journal(path) as journal:
        journal(PhaseProgress("writing", 1, 2))
        assert synced == []
        journal(Warned("a"))
        assert synced == [path.stat().st_size]


@pytest.mark.parametrize("torn", [b"", b'{"seq":7,"ti', b"no line of ours\n{"])
def test_a_journal_without_a_whole_line_begins_anew(path: Path, torn: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cut off is gone from the disk too, before anything follows it."""
    path.write_bytes(torn)
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(path.stat().st_size))
    with Journal(path) as journal:
        assert synced == ([torn.rfind(b"\n") + 1] if torn else [])
        journal(Warned("a"))
    assert [record.seq for record in read_journal(path)] == [1]


def test_a_disk_that_takes_a_line_in_pieces_gets_all_of_them(path: Path) -> None:
    with Journal(path) as journal:
        whole = journal._file
        journal._file = SimpleNamespace(write=lambda line: whole.write(line[:7]), fileno=whole.fileno)  # type: ignore
        journal(Warned("a long one, of more than seven bytes"))
        whole.close()
        journal._file = whole
    assert messages(path) == ["a long one, of more than seven bytes"]


def test_progress_is_told_now_and_then_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    report = throttled(lambda done, total: told.append((done, total)))
    for done, moment in ((1, 100.0), (2, 100.1), (3, 100.0 + PROGRESS_SECONDS), (4, 100.3), (5, 100.3), (6, 100.3)):
        now = moment
        report(done, 5)
    assert told == [(1, 5), (3, 5), (5, 5), (6, 5)]


def test_reader_loses_nothing_when_a_torn_line_is_cut_off_under_it(path: Path) -> None:
    with Journal(path) as journal:
        journal(Warned("whole"))
    reader = JournalReader(path)
    with path.open("ab") as file:
        file.write(b'{"seq":2,"time":1.0,"kind":"war')
    assert len(reader.read()) == 1
    with Journal(path) as journal:
        for message in ("b", "c", "d"):
            journal(Warned(message))
    assert [record.event for record in reader.read()] == [Warned("b"), Warned("c"), Warned("d")]
    assert reader.skipped == 0


def test_torn_last_line_is_cut_off_wherever_it_was_torn(path: Path) -> None:
    with Journal(path) as journal:
        journal(Warned("whole"))
        journal(Warned("töрn"))
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    for length in range(first, len(data)):
        path.write_bytes(data[:length])
        assert messages(path) == ["whole"]
        with Journal(path) as journal:
            journal(Warned("next"))
        assert [record.seq for record in read_journal(path)] == [1, 2]
        assert messages(path) == ["whole", "next"]


def test_reader_sees_only_what_is_new(path: Path) -> None:
    reader = JournalReader(path)
    assert reader.read() == []
    with Journal(path) as journal:
        journal(Warned("a"))
        assert len(reader.read()) == 1
        assert reader.read() == []
        journal(PhaseProgress("writing", 1, 2))
        assert [record.seq for record in reader.read()] == [2]


def test_reader_waits_for_the_end_of_a_line(path: Path) -> None:
    with Journal(path) as journal:
        journal(Warned("a"))
    data = path.read_bytes()
    path.write_bytes(data[:10])
    reader = JournalReader(path)
    assert reader.read() == []
    path.write_bytes(data)
    assert len(reader.read()) == 1
    assert reader.skipped == 0


def test_unreadable_lines_are_counted_and_skipped(path: Path) -> None:
    with Journal(path) as journal:
        journal(Warned("a"))
    with path.open("ab") as file:
        file.write(b'\xff\xfe\n{"kind": "from the future", "seq": 2, "time": 1}\n[1]\n\n')
    reader = JournalReader(path)
    assert len(reader.read()) == 1
    assert reader.skipped == 3


def test_follower_in_another_thread_misses_nothing(path: Path) -> None:
    def write() -> None:
        with Journal(path) as journal:
            for number in range(200):
                journal(PhaseProgress("writing", number, 200))

    writer = threading.Thread(target=write)
    reader, seen = JournalReader(path), []
    writer.start()
    while writer.is_alive() or len(seen) < 200:
        seen += [record.seq for record in reader.read()]
    writer.join()
    assert seen == list(range(1, 201))


@given(st.binary())
def test_any_bytes_are_a_record_or_nothing(line: bytes) -> None:
    assert parse_line(line) is None


@given(
    st.dictionaries(
        st.sampled_from(["seq", "time", "kind", "message"]),
        st.none() | st.text() | st.integers() | st.floats() | st.lists(st.integers()) | st.just("warned"),
    )
)
def test_any_object_is_a_record_or_nothing(data: dict[str, object]) -> None:
    record = parse_line(json.dumps(data).encode())
    assert record is None or record.event.kind() == data["kind"]


def test_deep_nesting_and_endless_lines_are_refused() -> None:
    assert parse_line(b"[" * 200_000) is None
    assert parse_line(b" " * (MAX_LINE + 1)) is None
