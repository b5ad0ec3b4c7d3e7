"""Which process works on what, told by locks that end with their process.

Standard library only: the app imports this.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

ATTEMPTS, WAIT = 20, 0.01
"""Who looks whether a lock is held holds it for an instant, so taking one tries so often, so many seconds apart."""


def is_locked(file: Path) -> bool:
    """Whether a process holds the lock `file`; it need not exist."""
    try:
        with file.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def take_lock(file: Path) -> int | None:
    """The descriptor that holds the lock until it is closed everywhere, or None when another process has it."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            time.sleep(WAIT)
    os.close(descriptor)
    return None
