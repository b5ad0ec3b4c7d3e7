"""Models being fetched from the Hub, each by a process of its own that survives the app.

    HOME/downloads/MODEL/state.json   what is fetched, how far it is, and why it ended
    HOME/downloads/MODEL/lock         flock held by the process that fetches it
    HOME/downloads/MODEL/stop         touch it: the process ends, and the next one fetches what is missing
    HOME/downloads/MODEL/log          what it printed

The files go to the Hub's own cache, where every other program finds them. Standard library only: the app imports this.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from awq_engine.detached import spawn_detached
from awq_engine.locks import is_locked, take_lock
from awq_engine.storage import home, write_atomically

STATE, LOCK, STOP, LOG = "state.json", "lock", "stop", "log"


@dataclass(frozen=True)
class Download:
    """How a download stands."""

    spec: str
    """`org/name[@revision]`."""
    done: int = 0
    total: int = 0
    """Bytes to fetch, without what was in the cache; 0 until the Hub has told."""
    finished: bool = False
    error: str = ""
    """Why it ended early, as a sentence."""
    going_on: bool = False


def folder_of(spec: str) -> Path:
    """The download's own folder, which may not exist."""
    return home() / "downloads" / re.sub(r"[^\w.@-]+", "--", spec)


def list_downloads() -> list[Download]:
    """Every download that goes on or was not forgotten, by name."""
    folder = home() / "downloads"
    found = [_read(path) for path in sorted(folder.iterdir())] if folder.is_dir() else []
    return [download for download in found if download is not None]


def report_download(download: Download) -> None:
    """Say how far it is."""
    data = asdict(download)
    del data["going_on"]  # told by the lock
    write_atomically(folder_of(download.spec) / STATE, json.dumps(data).encode())


def spawn_download(spec: str) -> subprocess.Popen[bytes] | None:
    """Start fetching, detached, or go on with what was begun; None when that goes on already. Raises `OSError`.

    Poll the returned process now and then, or it stays a zombie.
    """
    folder = folder_of(spec)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = take_lock(folder / LOCK)
    if descriptor is None:
        return None
    try:
        (folder / STOP).unlink(missing_ok=True)
        report_download(Download(spec))
        return spawn_detached("awq_engine.download_worker", [spec, str(descriptor)], folder / LOG, [descriptor])
    finally:
        os.close(descriptor)


def request_stop(spec: str) -> None:
    """The process ends within a second; complete files are kept."""
    (folder_of(spec) / STOP).touch()


def stop_requested(spec: str) -> bool:
    return (folder_of(spec) / STOP).exists()


def forget(spec: str) -> None:
    """No more is said of a download; nothing that was fetched is deleted."""
    shutil.rmtree(folder_of(spec), ignore_errors=True)


def _read(folder: Path) -> Download | None:
    try:
        data: dict[str, Any] = json.loads((folder / STATE).read_bytes())
        state = Download(
            str(data["spec"]), int(data["done"]), int(data["total"]), bool(data["finished"]), str(data["error"])
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    ended = state.finished or bool(state.error)
    going_on = not ended and is_locked(folder / LOCK)
    died = not ended and not going_on
    error = "The download ended without a word; d fetches what is missing." if died else state.error
    return Download(state.spec, state.done, state.total, state.finished, error, going_on)
