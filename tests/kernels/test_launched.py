"""The way from a call to a compiled kernel, with the very arguments of the call, for devices that are not here.

Triton asks a driver for the device; a stand-in names one, and kernels are compiled but not started. So what only the
launch itself looks at (alignment, types, constants that must be hashable) is seen without a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction
from truth import random_tokens, random_weight

from awq_kernels import between, experts, launches, product
from awq_kernels.launches import Device
from awq_kernels.plane import INTERPRETED
from awq_kernels.tiles import pack_tiles

pytestmark = pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="stands in for a GPU that is not here")
DEVICES = {
    "nvidia": (GPUTarget("cuda", 90, 32), Device("sm_90", 132, "nvidia")),
    "amd": (GPUTarget("hip", "gfx942", 64), Device("gfx9", 304, "amd")),
    "other": (GPUTarget("cuda", 80, 32), Device("sm_80", 108, None)),
}


class StandIn:
    """What Triton asks a driver before it compiles."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target


@pytest.fixture(params=DEVICES)
def launched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, ...], Any]]:
    """Name, grid and compiled kernel of every launch."""
    target, device = DEVICES[request.param]
    found: list[tuple[str, tuple[int, ...], Any]] = []
    run = JITFunction.run

    def compile_only(kernel: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> Any:
        compiled = run(kernel, *args, grid=grid, warmup=True, **options)
        found.append((kernel.fn.__name__, grid, compiled))
        return compiled

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(driver, "_active", StandIn(target))
    for module in (product, launches, experts):
        monkeypatch.setattr(module, "device_of", lambda _: device)
    kernels: list[Any] = [product._product_kernel, product.dequantize._dequantize_kernel]
    for kernel in [*kernels, between._add_norm_kernel, between._turn_kernel, between._gate_kernel]:
        monkeypatch.setattr(kernel, "device_caches", type(kernel.device_caches)(kernel.create_binder))
    return found


def test_calls_compile_with_their_own_arguments(launched: list[tuple[str, tuple[int, ...], Any]]) -> None:
    tiles = pack_tiles(random_weight(200, 512, 128))
    bias = torch.zeros(200, dtype=torch.float16)
    product.matmul(random_tokens(1, 512, torch.float16), tiles, bias)
    product.matmul(random_tokens(70, 512, torch.float16), tiles)
    stack = experts.stack_tiles([pack_tiles(random_weight(64, 256, 128, seed=n)) for n in range(3)])
    assert stack is not None
    routing = experts.route(torch.tensor([0, 2, 2, 1]), 3, 16)
    experts.matmul_experts(random_tokens(2, 256, torch.float16), stack, routing)
    assert [name for name, _, _ in launched] == ["_product_kernel", "_dequantize_kernel", "_product_kernel"]
    assert launched[0][1] == (13, 1), "200 outputs in sixteens"
    assert launched[2][1] == (4, 4), "64 outputs in sixteens, a block for each row"
    assert all(compiled.asm for _, _, compiled in launched)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_lies_between_products_compiles_without_spills(
    launched: list[tuple[str, tuple[int, ...], Any]], dtype: torch.dtype
) -> None:
    """A block of an 8B model; the row of a norm is in registers as a whole."""
    x = torch.zeros(1, 4096, dtype=dtype)
    between.add_norm(x, x, x[0], 1e-5)
    heads, cache = torch.zeros(1, 48, 128, dtype=dtype), torch.zeros(2, 8, 16, 128, dtype=dtype)
    angles = torch.zeros(1, 1, 128, dtype=dtype)
    between.turn(
        heads, cache, torch.zeros(1, dtype=torch.int64), angles, angles, (angles.expand(2, 1, 128), 1e-5, 1e-5)
    )
    between.gate(torch.zeros(1, 2 * 14336, dtype=dtype))
    assert [(name, grid) for name, grid, _ in launched] == [
        ("_add_norm_kernel", (1,)), ("_turn_kernel", (1, 48)), ("_gate_kernel", (1, 14))
    ]  # fmt: skip
    for _, _, compiled in launched:
        assert "ld.local" not in compiled.asm.get("ptx", "")
        assert "vgpr_spill_count: 0" in compiled.asm.get("amdgcn", "vgpr_spill_count: 0")
