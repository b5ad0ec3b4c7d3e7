"""Where runs, settings and conversations are kept, and how a file gets there whole.

Standard library and platformdirs only: the app imports this before its first picture.
"""

from __future__ import annotations

import ctypes
import os
from functools import partial
from pathlib import Path

import platformdirs

_HERE, _EXCHANGE = -100, 2
"""Linux's AT_FDCWD and RENAME_EXCHANGE."""


def home() -> Path:
    """Where runs and settings live: `AWQ_TUI_HOME`, or the platform's user data folder."""
    override = os.environ.get("AWQ_TUI_HOME")
    return Path(override).expanduser().absolute() if override else platformdirs.user_data_path("awq-tui")


def runs_dir() -> Path:
    return home() / "runs"


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Temp file, fsync, rename, fsync of the folder: after this the file is whole, or was never there.

    `mode` are the permissions of a new file, less what the process masks.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb", opener=partial(os.open, mode=mode)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames inside `path` survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange(first: Path, second: Path) -> bool:
    """Let two paths change places in one step; False where the system or the file system cannot (only Linux's can)."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0
