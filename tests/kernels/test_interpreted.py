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


needed = pytest.mark.skipif(
    torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1",
    reason="they run in this process",
)


def interpret(marks: str, at_least: int) -> None:
    """Runs the kernels' tests that have `marks`."""
    files = [
        str(HERE / "test_product.py"),
        str(HERE / "test_experts.py"),
        str(HERE / "test_between.py"),
        str(HERE.parent / "engine/test_stacked_experts.py"),
        str(HERE.parent / "engine/test_steps.py"),
    ]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--no-header", *files]
    run = subprocess.run(
        [*command, "-m", marks],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed, run.stdout
    assert int(passed[1]) >= at_least


@needed
def test_the_kernels_pass_in_the_interpreter() -> None:
    interpret("not slow and not gpu", at_least=100)


@needed
@pytest.mark.slow
def test_every_combination_passes_in_the_interpreter() -> None:
    interpret("slow", at_least=400)
