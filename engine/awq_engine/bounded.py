"""A chat template is a program out of a stranger's model folder: here it runs with an end, of time and of memory.

transformers' sandbox keeps it from Python's objects, files and network, but not from looping over a range of ranges or
from repeating a text a billion times. The alarm interrupts loops and what C code checks for signals in (powers of large
numbers, regular expressions); the limit on the address space, put on for as long as the template runs, ends what would
take memory in one step. Only a process's main thread can be interrupted, so templates are rendered there.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from awq_engine.errors import BadInputError

SECONDS = 10.0
"""Real templates take milliseconds, a long conversation with many tools a tenth of a second."""
MEMORY = 1 << 30
"""Bytes on top of what the process has."""


@contextmanager
def bounded(what: str, seconds: float = SECONDS, memory: int = MEMORY) -> Iterator[None]:
    """Inside, `BadInputError` about `what` after `seconds`, or when it wants more than `memory` bytes."""
    try:
        with _time_limit(seconds), _memory_limit(memory):
            yield
    except _Expired:
        raise BadInputError(f"{what} takes more than {seconds:g} seconds; use another.") from None
    except MemoryError as error:
        raise BadInputError(f"{what} wants more than {memory >> 20} MiB of memory; use another.") from error


class _Expired(BaseException):
    """Jinja takes any `Exception` while it folds constants for a reason not to, and computes them once more later."""


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise _Expired

    handler = signal.signal(signal.SIGALRM, ring)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, interval)
        signal.signal(signal.SIGALRM, handler)


@contextmanager
def _memory_limit(memory: int) -> Iterator[None]:
    """Where the system tells how much address space is in use (Linux)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * os.sysconf("SC_PAGE_SIZE") + memory
    known = [value for value in (soft, hard) if value != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([limit, *known]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
