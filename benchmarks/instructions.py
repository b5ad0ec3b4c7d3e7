"""What the products compile to for devices that are not here: instructions per weight, registers, spills, wide loads.

    python -m benchmarks.instructions                         all that ships, written into docs/kernels.md (minutes)
    python -m benchmarks.instructions --json --quick cuda:90  the decode kernels for one device, as JSON

Triton compiles for any device without one, and its disassembler is in the wheel. At full memory bandwidth a device has
only so many thread-instructions for each weight it reads (an H200 3.8 at 4 bits), so the count of the inner loop says
what limits a kernel. Counted are the instructions of the loop with the tensor-core instructions, times its threads,
over the weights of a step; on AMD vector instructions only, as scalar ones are issued beside them.

Run without TRITON_INTERPRET: under the interpreter there is nothing to compile.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from awq_kernels import product
from awq_kernels.int_weight import IntWeight
from awq_kernels.launches import TABLE, Device, Launch, family_of, shipped
from awq_kernels.tiles import PLANES, PlaneTiles, pack_tiles

TARGETS = (
    "cuda:80", "cuda:86", "cuda:89", "cuda:90", "cuda:120", "hip:gfx90a", "hip:gfx942", "hip:gfx1100", "hip:gfx1201",
)  # fmt: skip
BITS = tuple(PLANES)
DOCUMENT = Path(__file__).parents[1] / "docs/kernels.md"
MARK = "<!-- written by python -m benchmarks.instructions -->"
NVIDIA_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
POINTERS = {
    "words_ptr": "*i16", "group_ptr": "*i32", "experts_ptr": "*i32", "rows_ptr": "*i32"
}  # fmt: skip
"""Those not named here point to activations or results."""
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
NOT_ALIGNED = ("n_rows", "rows_per_token", "in_tiles", "n_groups", "first_tile", "end_row")
"""Arguments that are no multiple of 16 as a rule."""


@dataclass(frozen=True)
class Case:
    """A product as it is compiled: a weight, and a launch."""

    bits: int
    activations: str
    group_size: int
    launch: Launch
    experts: bool = False
    """Whether rows are spread over experts."""

    @property
    def name(self) -> str:
        launch = self.launch
        layout = f"{launch.tokens}x{launch.outputs} s{launch.slices} w{launch.warps} p{launch.stages}"
        return f"W{self.bits} {self.activations} g{self.group_size} {layout}{' experts' if self.experts else ''}"


@dataclass(frozen=True)
class Facts:
    """What came out."""

    per_weight: float
    """Thread-instructions of the inner loop for each weight."""
    registers: int
    spilled: int
    """Registers spilled and bytes of stack, and instructions on either."""
    shared: int
    """Bytes of shared memory."""
    wide_loads: int
    """16-byte loads from memory in the loop."""
    tensor_core: int
    """Tensor-core instructions in the loop."""


def cases(target: str, quick: bool = False) -> Iterator[Case]:
    """What ships for a device; `quick` some of it for the smallest block of tokens and a weight of middle width."""
    device = device_named(target)
    blocks = list(TABLE[device.family])

    def case(
        bits: int, activations: str, group_size: int, out_features: int = 4096, block: int = blocks[0], **options: bool
    ) -> Case:
        launch = shipped(example(bits, group_size), out_features, block, device)
        return Case(bits, activations, group_size, launch, **options)

    yield case(4, "fp16", 128)
    yield case(4, "fp16", 32)
    yield case(3, "fp16", 128)
    yield case(4, "bf16", 128)
    if quick:
        return
    yield case(4, "fp16", 128, experts=True)
    for block, bits, out_features in itertools.product(blocks, BITS, (1024, 4096, 1 << 16)):
        yield case(bits, "fp16", 128, out_features, block)
        if bits == 4 and block == blocks[0]:
            for activations, group_size in itertools.product(TYPES, (128, 64, 32)):
                yield case(4, activations, group_size, out_features)
        if block <= 16 and out_features == 4096:
            yield case(bits, "bf16", 128, block=block)


def device_named(target: str) -> Device:
    """As many processors as put 4096 outputs in the middle of the table's widths."""
    backend, _, arch = target.partition(":")
    if backend == "cuda":
        return Device(family_of(int(arch)), 100, "nvidia")
    return Device("gfx9" if arch.startswith("gfx9") else "gfx11", 100, "amd")


def measure(target: str, case: Case) -> Facts:
    """Compile a product and count."""
    compiled, threads = compile_product(target, case)
    tiles = example(case.bits, case.group_size)
    weights = PLANES[case.bits] * tiles.plane * case.launch.outputs * case.launch.slices
    read = _nvidia_facts if target.startswith("cuda") else _amd_facts
    return read(compiled, threads / weights)


def compile_product(target: str, case: Case) -> tuple[Any, int]:
    """The compiled kernel and the threads of a program."""
    gpu = gpu_target(target)
    tiles = example(case.bits, case.group_size)
    assembly = device_named(target).assembly
    constants = product.compiled_for(tiles, case.launch, TYPES[case.activations], assembly)
    constants |= {"HAS_BIAS": True, "EXPERTS": case.experts}
    compiled = compile_kernel(gpu, product._product_kernel, constants, f"*{case.activations}")
    return compiled, case.launch.warps * gpu.warp_size


def compile_kernel(gpu: GPUTarget, kernel: Any, constants: dict[str, Any], floats: str) -> Any:
    """As a launch would with aligned tensors and sizes that are multiples of 16."""
    options = {name: constants[name] for name in ("num_warps", "num_stages") if name in constants}
    constants = {name: value for name, value in constants.items() if name not in options}
    names = kernel.arg_names
    pointers = {name: floats for name in names if name.endswith("_ptr")} | POINTERS
    source = ASTSource(
        fn=kernel,
        signature={name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={
            (at,): [["tt.divisibility", 16]]
            for at, name in enumerate(names)
            if name not in constants and name not in NOT_ALIGNED
        },
    )
    return triton.compile(source, target=gpu, options=options)


def gpu_target(name: str) -> GPUTarget:
    backend, _, arch = name.partition(":")
    if backend == "cuda":
        return GPUTarget("cuda", int(arch), 32)
    return GPUTarget("hip", arch, 64 if arch.startswith("gfx9") else 32)


def example(bits: int, group_size: int) -> PlaneTiles:
    """A small asymmetric weight; sizes are arguments of the kernel, not what it is compiled for."""
    shape = (64, 4096)
    zero_point = torch.zeros(shape[0], shape[1] // group_size, dtype=torch.uint8)
    scale = torch.ones(zero_point.shape, dtype=torch.float16)
    return pack_tiles(IntWeight(torch.zeros(shape, dtype=torch.uint8), scale, zero_point, group_size, bits))


def _nvidia_facts(compiled: Any, threads_per_weight: float) -> Facts:
    """From the disassembly."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, sass = (
            subprocess.run([NVIDIA_TOOLS / "cuobjdump", option, file.name], capture_output=True, text=True, check=True)
            for option in ("-res-usage", "-sass")
        )
    used = {key: int(value) for key, value in re.findall(r"(REG|STACK):(\d+)", usage.stdout)}
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)([^;]*);", sass.stdout)
    code = [(int(address, 16), opcode, rest) for address, opcode, rest in found if opcode != "NOP"]
    loops = []
    for address, opcode, rest in code:
        to = re.search(r"0x([0-9a-f]+)", rest) if opcode.startswith("BRA") else None
        if to and int(to[1], 16) < address:
            loops.append([op for at, op, _ in code if int(to[1], 16) <= at <= address])
    loop = Counter(_busiest(loops, "MMA"))
    return Facts(
        per_weight=round(loop.total() * threads_per_weight, 2),
        registers=used["REG"],
        spilled=used["STACK"] + sum(opcode.startswith(("LDL", "STL")) for _, opcode, _ in code),
        shared=compiled.metadata.shared,
        wide_loads=sum(n for op, n in loop.items() if op.startswith(("LDGSTS", "LDG")) and op.endswith("128")),
        tensor_core=sum(n for op, n in loop.items() if "MMA" in op),
    )


def _amd_facts(compiled: Any, threads_per_weight: float) -> Facts:
    """From the assembly, where inline assembly is a line like any other."""
    assembly = compiled.asm["amdgcn"]
    used = {key: int(n) for key, n in re.findall(r"\.(vgpr_\w+|private_segment_fixed_size):\s*(\d+)", assembly)}
    lines, labels, loops = assembly.splitlines(), {}, []
    for at, line in enumerate(lines):
        if label := re.match(r"(\.LBB\w+):", line):
            labels[label[1]] = at
        to = re.search(r"s_c?branch\w*\s+(\.LBB\w+)", line)
        if to and to[1] in labels:
            body = (re.match(r"\s*((?:v|ds|buffer|global|flat)_\w+)", line) for line in lines[labels[to[1]] : at])
            loops.append([instruction[1] for instruction in body if instruction])
    loop = Counter(_busiest(loops, "mma"))
    return Facts(
        per_weight=round(loop.total() * threads_per_weight, 2),
        registers=used["vgpr_count"],
        spilled=used["vgpr_spill_count"] + used["private_segment_fixed_size"],
        shared=compiled.metadata.shared,
        wide_loads=sum(n for op, n in loop.items() if re.match(r"(global|buffer)_load_(dwordx4|b128)", op)),
        tensor_core=sum(n for op, n in loop.items() if "mma" in op or "mfma" in op),
    )


def _busiest(loops: list[list[str]], what: str) -> list[str]:
    """The loop with the most tensor-core instructions."""
    return max(loops, key=lambda loop: sum(what in op.replace("mfma", "mma") for op in loop), default=[])


def document(facts: dict[str, dict[str, Facts]]) -> str:
    """The tables of docs/kernels.md, a device each."""
    lines = [MARK, f"Triton {triton.__version__}.", ""]
    for target, by_case in facts.items():
        lines += [
            f"### {target}",
            "",
            "| product | per weight | registers | spilled | shared, KB | wide loads | tensor |",
        ]
        lines.append("|---|---:|---:|---:|---:|---:|---:|")
        for name, found in by_case.items():
            numbers = (found.registers, found.spilled, found.shared >> 10, found.wide_loads, found.tensor_core)
            lines.append(f"| {name} | {found.per_weight:.2f} | " + " | ".join(map(str, numbers)) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=TARGETS, metavar="TARGET", help="cuda:90, hip:gfx942, ...")
    parser.add_argument("--quick", action="store_true", help="the smallest block of tokens and one width only")
    parser.add_argument("--json", action="store_true", help="print JSON and leave docs/kernels.md alone")
    args = parser.parse_args()
    facts: dict[str, dict[str, Facts]] = {}
    for target in args.targets:
        facts[target] = {case.name: measure(target, case) for case in dict.fromkeys(cases(target, args.quick))}
        print(f"{target}: {len(facts[target])} products", file=sys.stderr)
    if args.json:
        print(json.dumps({target: {name: asdict(f) for name, f in found.items()} for target, found in facts.items()}))
    else:
        before = DOCUMENT.read_text(encoding="utf-8").partition(MARK)[0]
        DOCUMENT.write_text(before + document(facts), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
