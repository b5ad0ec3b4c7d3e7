"""Everything that can go wrong with the machine while a run is at work; `faults` says what survival is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def survived(*arguments: str) -> None:
    command = [sys.executable, "-m", "tests.faults", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["events", "moments", "disk", "files", "machine", "journal"])
def test_runs_survive(kind: str) -> None:
    survived(kind)
