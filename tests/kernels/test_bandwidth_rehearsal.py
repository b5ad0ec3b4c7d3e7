"""The benchmark that waits for a GPU, rehearsed in Triton's interpreter: every line but the graph runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
BROKEN_PEER = "raise RuntimeError('this peer [/x] does not load')"


def test_a_rehearsal_with_a_peer_that_fails(tmp_path: Path) -> None:
    """It is said, and the others are measured; nothing is written to the results."""
    (tmp_path / "gemlite.py").write_text(BROKEN_PEER)
    results = ROOT / "benchmarks/results/kernel_bandwidth.csv"
    before = results.read_bytes() if results.exists() else None
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.kernel_bandwidth"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "gemlite is left out: RuntimeError: this peer [/x] does not load" in run.stderr
    rows = [line.split() for line in run.stdout.splitlines() if line.startswith("64 128")]
    assert [(row[3], row[4]) for row in rows] == [("64", "1"), ("64", "70"), ("32", "1"), ("32", "70")]
    assert all(float(row[-1]) > 0 for row in rows), "the product in floats was timed"
    assert (results.read_bytes() if results.exists() else None) == before
