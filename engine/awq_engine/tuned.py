"""What was measured on this machine about how to launch its kernels: where it is kept, and what is read at load."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
import torch

from awq_kernels.launches import Launches


def launches_folder() -> Path:
    """`cache/launches` in `AWQ_TUI_HOME`, or in the platform's folder for caches."""
    override = os.environ.get("AWQ_TUI_HOME")
    root = Path(override).expanduser().absolute() / "cache" if override else platformdirs.user_cache_path("awq-tui")
    return root / "launches"


def measured_launches(backend: str, device: torch.device) -> Launches | None:
    """What `awq-tui bench --tune` found on `device`; None where the backend has nothing to tune."""
    if backend != "triton" or device.type == "cpu":
        return None
    from awq_kernels.tuning import measured_file, read_measured

    return read_measured(measured_file(launches_folder(), device))
