"""Compile the kernels for devices that are not here and print what came out, as one JSON object.

Run as a program without TRITON_INTERPRET: under the interpreter there is nothing to compile.

    python tests/kernels/aot_compile.py cuda:80 cuda:90 hip:gfx942
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from awq_kernels import w4a16

NVIDIA_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
POINTERS = {
    "tiles_ptr": "*i16", "scale_ptr": "*fp16", "zero_ptr": "*fp16", "bias_ptr": "*fp16", "parts_ptr": "*fp32",
}  # fmt: skip
"""The pointers not named here are the activations and results."""
MATMUL = {"BM": 8, "BN": 64, "BK": 128, "HAS_BIAS": True}
KERNELS: dict[str, tuple[Any, dict[str, int | bool]]] = {
    "matmul_g128": (w4a16._matmul_kernel, MATMUL | {"GROUP": 128}),
    "matmul_g64": (w4a16._matmul_kernel, MATMUL | {"GROUP": 64}),
    "matmul_g32": (w4a16._matmul_kernel, MATMUL | {"GROUP": 32}),
    "matmul_g128_64_tokens": (w4a16._matmul_kernel, MATMUL | {"GROUP": 128, "BM": 64}),
    "matmul_g128_bf16": (w4a16._matmul_kernel, MATMUL | {"GROUP": 128}),
    "sum_splits": (w4a16._sum_splits_kernel, {"BLOCK": 1024, "HAS_BIAS": True}),
    "dequantize": (w4a16._dequantize_kernel, {"GROUP": 128, "BN": 64, "BK": 128}),
}


def compile_for(target: GPUTarget, kernel: Any, constants: dict[str, int | bool], activations: str) -> Any:
    """Compile as a launch would with aligned tensors and sizes that are multiples of 16, but for n_tokens."""
    hip = target.backend == "hip"
    options = {}
    if "BM" in constants:
        constants = constants | {"BM": w4a16.token_block(constants["BM"], hip)}
        options = w4a16.launch_options(constants["BM"], hip)
    names = kernel.arg_names
    pointers = {name: activations for name in names if name.endswith("_ptr")} | POINTERS
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
    aligned = {
        (at,): [["tt.divisibility", 16]]
        for at, name in enumerate(names)
        if name not in constants and name not in ("n_tokens", "splits", "in_tiles", "tiles_per_split")
    }
    constexprs = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=aligned)
    return triton.compile(source, target=target, options=options)


def nvidia_facts(cubin: bytes) -> dict[str, int]:
    """Registers, stack and counts of the instructions that matter, from the disassembly."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run([NVIDIA_TOOLS / "cuobjdump", option, file.name], capture_output=True, text=True, check=True)
            for option in ("-res-usage", "-sass")
        )
    facts = {key.lower(): int(value) for key, value in re.findall(r"(REG|STACK|SHARED):(\d+)", usage.stdout)}
    opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", sass.stdout)
    count = Counter(opcodes)
    return facts | {"local_memory": count["LDL"] + count["STL"], "tensor_core": count["HMMA"] + count["HGMMA"]}


def amd_facts(assembly: str) -> dict[str, int]:
    """Registers, spills and tensor-core instructions from the assembly."""
    facts = {key: int(value) for key, value in re.findall(r"\.(vgpr_count|vgpr_spill_count):\s*(\d+)", assembly)}
    return facts | {"tensor_core": len(re.findall(r"v_(?:mfma|wmma)", assembly))}


def facts_of(target: GPUTarget) -> dict[str, dict[str, int]]:
    found = {}
    for name, (kernel, constants) in KERNELS.items():
        assembly = compile_for(target, kernel, constants, "*bf16" if name.endswith("bf16") else "*fp16").asm
        found[name] = nvidia_facts(assembly["cubin"]) if target.backend == "cuda" else amd_facts(assembly["amdgcn"])
    return found


def target_of(name: str) -> GPUTarget:
    backend, _, arch = name.partition(":")
    if backend == "cuda":
        return GPUTarget("cuda", int(arch), 32)
    return GPUTarget("hip", arch, 64 if arch.startswith("gfx9") else 32)


if __name__ == "__main__":
    print(json.dumps({name: facts_of(target_of(name)) for name in sys.argv[1:]}))
