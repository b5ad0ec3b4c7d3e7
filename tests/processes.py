"""Processes that are not our children."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

PATIENCE = 60.0
"""Seconds."""


def still_there(pids: Iterable[int], patience: float = PATIENCE) -> list[int]:
    """Those of `pids` that do not end in time (Linux). The dead whom nobody collects, as in containers, have ended."""
    deadline = time.monotonic() + patience
    while (left := [pid for pid in pids if _lives(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
