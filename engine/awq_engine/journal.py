"""The run's only record of progress: an append-only file of numbered JSON lines with one writer.

A line counts only when it ends in a newline, so a torn last line (power loss, kill -9) is cut off by the next writer
and ignored by readers. Whatever an event announces is on disk before its line is. Standard library only.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from awq_engine.events import Event, Record

PROGRESS_SECONDS = 0.2
"""Progress is reported at most this often."""
MAX_LINE = 8 << 20
"""Bytes; a longer line cannot be ours."""
TAIL = 1 << 16
"""Bytes in which the last line is looked for first."""


class EventSink(Protocol):
    """Where the engine's work reports to."""

    def __call__(self, event: Event) -> None: ...


def throttled(report: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """`report(done, total)`, but not more often than the screen can use; the last call always gets through."""
    last = 0.0

    def call(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= PROGRESS_SECONDS:
            last = now
            report(done, total)

    return call


class Journal:
    """Appends events to `path`; open it only while holding the run's lock."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Repair a torn last line, find the next number, open for appending."""
        self._clock = clock
        self._seq = _cut_torn_line(path)
        self._file = path.open("ab", buffering=0)

    def __call__(self, event: Event) -> None:
        """Append one event; a durable one is on disk when this returns."""
        self._seq += 1
        record = Record(self._seq, self._clock(), event)
        line = json.dumps(record.to_json(), separators=(",", ":")).encode() + b"\n"
        while line:  # an unbuffered write may take only a part
            line = line[self._file.write(line) :]
        if event.durable:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class JournalReader:
    """Follows a journal that may still be growing; every call of `read` returns what is new."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.skipped = 0
        """Lines that could not be read (corrupt, or written by a newer version)."""

    def read(self) -> list[Record]:
        """Every complete record since the last call, in order; an absent file is an empty journal."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        complete = data.rfind(b"\n") + 1  # a torn line is read again: its writer may have died and the next cut it off
        self._offset += complete
        return list(self._parse(data[:complete].split(b"\n")))

    def _parse(self, lines: list[bytes]) -> Iterator[Record]:
        for line in lines:
            record = parse_line(line)
            if record is not None:
                yield record
            elif line.strip():
                self.skipped += 1


def parse_line(line: bytes) -> Record | None:
    """One journal line as a record, or None when it is not one."""
    if len(line) > MAX_LINE:
        return None
    try:
        data: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return Record.from_json(data) if isinstance(data, dict) else None


def read_journal(path: Path) -> list[Record]:
    """Every readable record of a journal file."""
    return JournalReader(path).read()


def last_record(path: Path) -> Record | None:
    """The newest readable record, found from the file's end: a journal may have a hundred thousand lines."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            data = file.read()
    except FileNotFoundError:
        return None
    lines = data[: data.rfind(b"\n") + 1].split(b"\n")
    found = next((record for line in reversed(lines) if (record := parse_line(line))), None)
    return found if found or len(data) < TAIL else next(reversed(read_journal(path)), None)


def _cut_torn_line(path: Path) -> int:
    """Cut an incomplete last line off the file; return the last number used (0 for a new file)."""
    if not path.exists():
        return 0
    data = path.read_bytes()
    complete = data.rfind(b"\n") + 1
    if complete != len(data):
        with path.open("r+b") as file:
            file.truncate(complete)
            os.fsync(file.fileno())
    numbers = [record.seq for line in data[:complete].split(b"\n") if (record := parse_line(line))]
    return max(numbers, default=0)
