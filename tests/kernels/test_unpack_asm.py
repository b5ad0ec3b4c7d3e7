"""The assembly, instruction by instruction, on every bit pattern and zero point.

What no test can run without a device is emulated from the very text the compiler gets: a register is a pair of 16-bit
halves, of which one holds the pattern under test and the other something else.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from awq_kernels.tiles import PLANES
from awq_kernels.unpack_asm import Activations, Unpack, amd, nvidia, unpack

Registers = dict[str, np.ndarray]
CASES = [("nvidia", bits, kind) for bits in PLANES for kind in ("fp16", "bf16")] + [
    ("amd", bits, "fp16") for bits in PLANES
]


def to_float(halves: np.ndarray, kind: str) -> np.ndarray:
    """uint16 bit patterns to float64."""
    if kind == "fp16":
        return halves.view(np.float16).astype(np.float64)
    return (halves.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def to_bits(values: np.ndarray, kind: str) -> np.ndarray:
    """float64 to uint16, rounded once; bfloat16 must be exact already."""
    if kind == "fp16":
        return values.astype(np.float16).view(np.uint16)
    bits = values.astype(np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any(), "a result is no bfloat16 number"
    return (bits >> 16).astype(np.uint16)


def multiply_add(a: np.ndarray, b: np.ndarray, c: np.ndarray, kind: str) -> np.ndarray:
    """a * b + c of float pairs, rounded once."""
    halves = [np.ascontiguousarray(x.astype(np.uint32)).view(np.uint16) for x in np.broadcast_arrays(a, b, c)]
    x, y, z = (to_float(half, kind) for half in halves)
    return to_bits(x * y + z, kind).view(np.uint32)


def run(text: str, registers: Registers) -> None:
    """Executes PTX or GCN on uint32 registers."""
    body = re.sub(r"\{ \.reg [^;]*;|\}", "", text)
    for instruction in filter(None, (line.strip() for line in re.split(r"[;\n]", body))):
        opcode, _, rest = instruction.partition(" ")
        to, *operands = rest.split(", ")
        values = [registers[o] if o in registers else np.uint32(int(o, 0)) for o in operands]
        registers[to] = SEMANTICS[opcode](*values)


LOP3: dict[int, Callable[..., np.ndarray]] = {0xEA: np.bitwise_or, 0x6A: np.bitwise_xor}
"""Tables of three inputs: (a & b) | c and (a & b) ^ c."""
SEMANTICS: dict[str, Callable[..., np.ndarray]] = {
    "mov.b32": lambda a: a,
    "shr.b32": lambda a, n: a >> n,
    "shl.b32": lambda a, n: a << n,
    "lop3.b32": lambda a, b, c, table: LOP3[int(table)](a & b, c),
    "add.rn.f16x2": lambda a, b: multiply_add(a, np.uint32(0x3C003C00), b, "fp16"),
    "fma.rn.f16x2": lambda a, b, c: multiply_add(a, b, c, "fp16"),
    "fma.rn.bf16x2": lambda a, b, c: multiply_add(a, b, c, "bf16"),
    "v_lshrrev_b32": lambda n, a: a >> n,
    "v_lshlrev_b32": lambda n, a: a << n,
    "v_and_or_b32": lambda a, b, c: (a & b) | c,
    "v_pk_add_f16": lambda a, b: multiply_add(a, np.uint32(0x3C003C00), b, "fp16"),
    "v_pk_fma_f16": lambda a, b, c: multiply_add(a, b, c, "fp16"),
}


def expected(words: list[np.ndarray], bits: int, plane: int) -> np.ndarray:
    """The integers of a plane, as `tiles.py` describes them."""
    if bits != 3:
        return (words[0] >> (bits * plane)) & ((1 << bits) - 1)
    third = (2 * (plane % 4) + 2 + plane // 4 % 2 + 8 * (plane // 8)) % 16
    return ((words[plane // 8] >> (2 * (plane % 8))) & 3) | ((words[2] >> third & 1) << 2)


def offset_of(zero: int, base: float, kind: str) -> np.ndarray:
    """uint16 bits, computed as `plane.offset_of` does."""
    if kind == "bf16" and base == 1024 - 128:
        return to_bits(to_float(np.array([0x6400 + zero], np.uint16), kind) * -(2.0**-66), kind)
    return to_bits(np.array([base - (1024.0 + zero)]), kind)


def execute(block: Unpack, words: list[np.ndarray], zero: int, bits: int, kind: str) -> list[np.ndarray]:
    """The planes, uint32 pairs, for the zero point."""
    pairs = [np.repeat(offset_of(zero, base, kind), 2).view(np.uint32) for base in block.bases]
    constants = [np.uint32(pattern * 0x10001) for pattern in block.constants]
    names = (f"${n}" for n in range(block.n_outputs, 1000))
    registers: Registers = dict(zip(names, [*words, *pairs, *constants], strict=False))
    run(block.text, registers)
    return [registers[f"${plane}"] for plane in range(PLANES[bits])]


@pytest.mark.parametrize(("vendor", "bits", "kind"), CASES)
def test_every_pattern_and_zero_point_is_exact(vendor: str, bits: int, kind: Activations) -> None:
    block = unpack(vendor, bits, kind)
    assert block is not None
    patterns = np.arange(1 << 16, dtype=np.uint32)
    rng = np.random.default_rng(0)
    n_words = bits * PLANES[bits] // 16
    words = [patterns if n == 0 else rng.integers(0, 1 << 16, patterns.size).astype(np.uint32) for n in range(n_words)]
    for order in range(n_words):  # every word in turn runs through all patterns
        low = words[-order:] + words[:-order]
        for zero in {0, 1, (1 << bits) // 2, (1 << bits) - 1}:
            for shift, halves in (
                (0, [w | (~w & 0xFFFF) << 16 for w in low]),
                (16, [w << 16 | (w ^ 0x5A5A) for w in low]),
            ):
                planes = execute(block, halves, zero, bits, kind)
                for plane, found in enumerate(planes):
                    half = (found >> shift & 0xFFFF).astype(np.uint16)
                    q = expected(low, bits, plane).astype(np.float64)
                    assert np.array_equal(to_float(half, kind), q - zero), (plane, zero, shift)


def test_constraints_name_every_operand() -> None:
    for vendor, bits, kind in CASES:
        block = unpack(vendor, bits, kind)
        assert block is not None
        used = {int(n) for n in re.findall(r"\$(\d+)", block.text)}
        assert used == set(range(len(block.constraints.split(","))))


def test_there_is_none_for_other_devices_and_types() -> None:
    assert unpack(None, 4, "fp16") is None
    assert unpack("amd", 4, None) is None
    assert unpack("amd", 4, "bf16") == unpack("amd", 4, "fp16"), "converted afterwards"
    assert unpack("nvidia", 4, None) is None


def test_two_instructions_for_a_pair_of_weights_and_few_shifts() -> None:
    for block in (nvidia(4, "fp16"), amd(4)):
        assert len(re.findall(r"lop3|v_and_or", block.text)) == 4
        assert len(re.findall(r"add\.rn|fma\.rn|v_pk_", block.text)) == 4
        assert len(re.findall(r"shr|v_lsh", block.text)) == 1
