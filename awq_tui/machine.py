"""What this machine has, found without torch: host memory from /proc, the GPU from the driver's own tool."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

GPU_QUERY = ("--query-gpu=name,utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits")
PROBE_SECONDS = 5.0
"""A driver that does not answer in this time is treated as absent."""


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    used: int
    total: int

    @property
    def free(self) -> int:
        return self.total - self.used


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: Memory
    busy: int | None = None
    """Percent of the last moment in which it worked; None where the driver does not say."""


@dataclass(frozen=True)
class Machine:
    host: Memory
    gpu: Gpu | None = None


def probe_machine() -> Machine:
    """Look at the machine now; takes up to `PROBE_SECONDS`, so call it off the event loop."""
    return Machine(host_memory(), probe_gpu())


def host_memory(meminfo: Path = Path("/proc/meminfo")) -> Memory:
    """Host memory in bytes; where /proc is absent, everything counts as free."""
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        total, free = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
        return Memory(total - free, total)
    except (OSError, KeyError, ValueError, IndexError):
        return Memory(0, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def probe_gpu() -> Gpu | None:
    """The first NVIDIA GPU, or None when there is none (or its driver does not answer)."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        done = subprocess.run(
            [tool, *GPU_QUERY], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PROBE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_gpu(done.stdout) if done.returncode == 0 else None


def parse_gpu(output: str) -> Gpu | None:
    """The first line of `nvidia-smi`'s CSV: name, percent busy, used MiB, total MiB."""
    try:
        name, busy, used, total = output.strip().splitlines()[0].rsplit(",", 3)
        percent = int(busy) if busy.strip().isdecimal() else None
        return Gpu(name.strip(), Memory(int(float(used)) << 20, int(float(total)) << 20), percent)
    except (IndexError, ValueError):
        return None
