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
MORE_TARGETS = ["cuda:89", "cuda:120", "hip:gfx90a", "hip:gfx942", "hip:gfx1100", "hip:gfx1201"]
Facts = dict[str, dict[str, dict[str, int]]]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    return compile_for(TARGETS, tmp_path_factory.mktemp("triton"))


def compile_for(targets: list[str], cache: Path) -> Facts:
    """Facts per target and kernel, compiled afresh in a process without the interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, Path(__file__).parent / "aot_compile.py", *targets],
        env=environment | {"TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    facts: dict[str, Any] = json.loads(run.stdout)
    return facts


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_spills(compiled: Facts, target: str) -> None:
    for kernel, facts in compiled[target].items():
        assert facts["stack"] == 0, f"{kernel} on {target}: {facts}"
        assert facts["local_memory"] == 0, f"{kernel} on {target}: {facts}"


@pytest.mark.parametrize("target", TARGETS)
def test_products_use_the_tensor_cores(compiled: Facts, target: str) -> None:
    products = {name: facts for name, facts in compiled[target].items() if name.startswith("matmul")}
    assert products
    for kernel, facts in products.items():
        assert facts["tensor_core"] > 0, f"{kernel} on {target}: {facts}"


@pytest.mark.parametrize("target", TARGETS)
def test_few_tokens_leave_room_for_many_programs(compiled: Facts, target: str) -> None:
    """Eight programs of 64 threads on a processor with 65536 registers: at most 128 each."""
    for kernel in ("matmul_g128", "matmul_g64", "matmul_g32", "matmul_g128_bf16"):
        assert compiled[target][kernel]["reg"] <= 128


@pytest.mark.slow
def test_the_other_devices(tmp_path: Path) -> None:
    """Every further NVIDIA and AMD generation compiles, spills nothing and multiplies with its tensor cores."""
    for target, kernels in compile_for(MORE_TARGETS, tmp_path).items():
        for kernel, facts in kernels.items():
            spilled = facts.get("local_memory", 0) + facts.get("vgpr_spill_count", 0)
            assert spilled == 0, f"{kernel} on {target}: {facts}"
            assert facts["tensor_core"] > 0 or not kernel.startswith("matmul"), f"{kernel} on {target}: {facts}"
