"""Rows of figures with what they were measured on, appended to `benchmarks/results/NAME.csv`."""

from __future__ import annotations

import csv
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "results"


def append_rows(name: str, rows: list[dict[str, Any]]) -> Path:
    """Append rows, each with date, commit, device and torch version; the file's columns are those of its first row."""
    path = FOLDER / f"{name}.csv"
    circumstances = {
        "date": time.strftime("%Y-%m-%d"), "commit": _commit(), "device": _device(), "torch": torch.__version__
    }  # fmt: skip
    complete = [{**circumstances, **row} for row in rows]
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(complete[0]))
        if new:
            writer.writeheader()
        writer.writerows(complete)
    return path


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu {platform.machine()} {torch.get_num_threads()} threads"
