"""Whether something fits on the disk, asked before it is started. Standard library only."""

from __future__ import annotations

import shutil
from pathlib import Path

from awq_engine.errors import ResourceError
from awq_engine.format import size


def check_disk(folder: Path, needed: int, purpose: str) -> None:
    """Raise `ResourceError` unless `needed` bytes are free where `folder` is or will be."""
    free = shutil.disk_usage(existing_parent(folder)).free
    if free < needed:
        raise ResourceError(
            f"Not enough disk space for {purpose}: it needs {size(needed)} at {folder}, where {size(free)} are free."
        )


def existing_parent(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
