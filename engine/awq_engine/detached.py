"""Processes that outlive whoever starts them, and what processes that compute are given on the way.

Standard library only: the app imports this module.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

RETURNED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(4 << 20)}
"""Environment of engines: glibc gives freed arrays of a piece's size back to the system. On its own it begins to hoard
what is smaller than 32 MB: 185 MB of a run of 1.2 GB."""
QUIET_THREADS = {"GOMP_SPINCOUNT": "0"}
"""Environment of processes that compute: idle OpenMP threads sleep instead of spinning. On a busy machine spinning cost
the bundled model nine tenths of its chat speed."""
NICENESS = 5
"""Of processes that compute, as of nice(1): where they take every core, keys on the screen still come first."""
_QUIET_LIBRARIES = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}


def spawn_detached(
    module: str, arguments: Sequence[str], log: Path, locks: Sequence[int], environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start `python -m module`: it survives this process, its terminal and its session. Raises `OSError`.

    Args:
        log: what it prints is added to this file.
        locks: descriptors of held locks; the process inherits them, so that there is no moment without a holder. The
            caller closes its own.
        environment: beside this process's own, which goes first.
    Returns:
        The process. Poll it now and then, or it stays a zombie.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True, cwd="/", env={**(environment or {}), **os.environ, **_QUIET_LIBRARIES},
            pass_fds=locks,
        )  # fmt: skip
