"""What to write down about an exception nobody foresaw, so that it can be reported. Standard library only.

A report holds the traceback, the versions and the command; never the environment, the values of variables or a token.
"""

from __future__ import annotations

import os
import platform
import sys
import time
import traceback
from importlib import metadata
from pathlib import Path

from awq_engine.sanitize import redacted
from awq_engine.storage import home

PACKAGES = ("awq-tui", "torch", "triton", "transformers", "huggingface_hub", "textual")


def write_crash_report(error: BaseException) -> Path:
    """Write a report on `error` under the user's data folder (readable by the user only) and return its path."""
    folder = home() / "crashes"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    path.touch(mode=0o600)
    path.write_text(redacted(_report(error)), encoding="utf-8", errors="replace")
    return path


def versions() -> dict[str, str]:
    """Python's and our packages' versions; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _report(error: BaseException) -> str:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    listed = ", ".join(f"{name} {version}" for name, version in versions().items())
    trace = "".join(traceback.format_exception(error))
    return f"command: {command}\nsystem: {platform.platform()}\nversions: {listed}\n\n{trace}"
