"""Everything that can go wrong with the machine while a run is at work; `tests.faults` says what survival is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.__main__ import KINDS


def survived(*arguments: str) -> None:
    command = [sys.executable, "-m", "tests.faults", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


def test_runs_survive_death_at_every_event() -> None:
    """With the preset that keeps most between its steps."""
    survived("events", "--preset", "best")


@pytest.mark.slow
def test_runs_survive_some_of_every_other_fault() -> None:
    survived("moments", "steps", "full", "broken", "second", "--moments", "2", "--steps", "3")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_runs_and_downloads_survive(kind: str) -> None:
    survived(kind)
