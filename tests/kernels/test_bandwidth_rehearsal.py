"""The benchmarks that wait for a GPU, rehearsed in Triton's interpreter: every line but the graph runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
RIGHT_PEER = """
from types import SimpleNamespace
DType = SimpleNamespace(FP16=1, BF16=2)
class GemLiteLinear:
    def __init__(self, bits, group_size, in_features, out_features, input_dtype, output_dtype):
        self.group_size = group_size
    def pack(self, q, scale, zero_point, bias):
        groups = q.half().unflatten(1, (-1, self.group_size)) - zero_point[:, :, None]
        self.weight = (groups * scale[:, :, None]).flatten(1)
    def __call__(self, x):
        return x @ self.weight.T
"""
WRONG_PEER = "def awq_gemm_triton(x, q, scales, zeros, split): return x.new_zeros(len(x), scales.shape[1])"
BROKEN_PEER = "raise RuntimeError('this peer [/x] does not load')"


def rehearse(module: str, peers: Path) -> subprocess.CompletedProcess[str]:
    """Run a benchmark with what is in `peers` installed; nothing may be written to its results."""
    results = ROOT / f"benchmarks/results/{module}.csv"
    before = results.read_bytes() if results.exists() else None
    run = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{peers}{os.pathsep}{os.environ.get('PYTHONPATH')}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert (results.read_bytes() if results.exists() else None) == before
    return run


def test_a_rehearsal(tmp_path: Path) -> None:
    run = rehearse("kernel_bandwidth", tmp_path)
    rows = [line.split() for line in run.stdout.splitlines() if line.startswith("64 128")]
    assert [(row[3], row[4]) for row in rows] == [("64", "1"), ("64", "70"), ("32", "1"), ("32", "70")]
    assert all(float(row[-1]) > 0 for row in rows), "the product in floats was timed"


@pytest.mark.slow
def test_peers_that_are_right_wrong_broken_and_not_there(tmp_path: Path) -> None:
    """Who is left out is said with the reason; the others are measured."""
    (tmp_path / "gemlite.py").write_text(RIGHT_PEER)
    (tmp_path / "humming.py").write_text(BROKEN_PEER)
    (tmp_path / "awq/modules/triton").mkdir(parents=True)
    (tmp_path / "awq/__init__.py").touch()
    (tmp_path / "awq/modules/triton/gemm.py").write_text(WRONG_PEER)
    run = rehearse("kernel_peers", tmp_path)
    assert "autoawq is left out: ArithmeticError: its result is wrong by 1.0e+00" in run.stderr
    assert "humming is left out: RuntimeError: this peer [/x] does not load" in run.stderr
    assert "tinygemm is left out: ValueError: it computes in bfloat16 only" in run.stderr
    assert "marlin is left out: ModuleNotFoundError: No module named 'vllm'" in run.stderr
    rows = [line.split() for line in run.stdout.splitlines() if line.startswith("64 128")]
    assert [(row[4], row[8]) for row in rows] == [("1", "gemlite"), ("70", "gemlite")] * 2
    assert "at 70 tokens, over 2 shapes" in run.stdout
