"""What the kernels compile to on devices that are not here: no register may spill, tensor cores must be used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
TARGETS = ["cuda:80", "cuda:90"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, int]]]:
    """Facts per target and kernel, compiled afresh in a process without the interpreter."""
    cache = tmp_path_factory.mktemp("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, Path(__file__).parent / "aot_compile.py", *TARGETS],
        env=environment | {"TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    facts: dict[str, Any] = json.loads(run.stdout)
    return facts


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_spills(compiled: dict[str, dict[str, dict[str, int]]], target: str) -> None:
    for kernel, facts in compiled[target].items():
        assert facts["stack"] == 0, f"{kernel} on {target}: {facts}"
        assert facts["local_memory"] == 0, f"{kernel} on {target}: {facts}"


@pytest.mark.parametrize("target", TARGETS)
def test_products_use_the_tensor_cores(compiled: dict[str, dict[str, dict[str, int]]], target: str) -> None:
    products = {name: facts for name, facts in compiled[target].items() if name.startswith("matmul")}
    assert products
    for kernel, facts in products.items():
        assert facts["tensor_core"] > 0, f"{kernel} on {target}: {facts}"


@pytest.mark.parametrize("target", TARGETS)
def test_few_tokens_leave_room_for_many_programs(compiled: dict[str, dict[str, dict[str, int]]], target: str) -> None:
    """Eight programs of 64 threads on a processor with 65536 registers: at most 128 each."""
    for kernel in ("matmul_g128", "matmul_g64", "matmul_g32", "matmul_g128_bf16"):
        assert compiled[target][kernel]["reg"] <= 128
