"""Run the Triton kernels' tests in a process of their own, in which Triton was told to interpret from the start."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
HERE = Path(__file__).parent


@pytest.mark.skipif(
    torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1", reason="test_w4a16.py runs in this process"
)
def test_the_kernels_pass_in_the_interpreter() -> None:
    """All of `test_w4a16.py`, with at least its 56 products against float64."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--no-header", str(HERE / "test_w4a16.py")]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed, run.stdout
    assert int(passed[1]) >= 56
