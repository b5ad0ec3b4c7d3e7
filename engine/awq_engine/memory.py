"""How much memory there is, and what a person may have written to say how much of it to use.

Standard library only: the app imports this module.
"""

from __future__ import annotations

import re
import resource
from pathlib import Path

from awq_engine.errors import UsageError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of `4GB`, `512MiB`, `1.5g`, `4000000000`; raises `UsageError`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise UsageError(f"{text!r} is no amount of memory; write it like 4GB or 512MB.")
    power = " kmgt".index(match[2].lower()) if match[2] else 0
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def available_bytes() -> int:
    """Memory that can be had without pushing anything out; without limit where the system does not say."""
    limits = [_meminfo(), _cgroup()]
    return min((limit for limit in limits if limit is not None), default=1 << 62)


def total_bytes() -> int:
    """Memory of this machine; 0 where the system does not say."""
    return _field(Path("/proc/meminfo"), "MemTotal") or 0


def resident_bytes() -> int:
    """Memory that this process holds now; 0 where the system does not say."""
    return _field(Path("/proc/self/status"), "VmRSS") or 0


def peak_resident_bytes() -> int | None:
    """Largest resident size of this process since it was started; None where the system does not say."""
    return _field(Path("/proc/self/status"), "VmHWM")


def peak_host_bytes() -> int:
    """Largest resident size of this process so far; `getrusage` would count what its parent was when it forked."""
    return peak_resident_bytes() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _meminfo() -> int | None:
    return _field(Path("/proc/meminfo"), "MemAvailable")


def _field(file: Path, name: str) -> int | None:
    try:
        lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) * 1024 if found else None


def _cgroup() -> int | None:
    """What a container is still allowed."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        counts = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        used -= int(counts.get("inactive_file", 0))  # cached files, given up when memory is asked for
        return None if limit == "max" else max(0, int(limit) - used)
    except (OSError, ValueError):
        return None
