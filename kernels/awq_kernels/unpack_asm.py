"""The few instructions that turn packed integers into tensor-core operands, as inline assembly for NVIDIA and AMD.

One 32-bit register holds a field of two neighbouring elements, so masks and 16-bit pair arithmetic handle two weights
at a time; the compilers do not find this by themselves. A field at bit `o` under the exponent of M (1024 in float16,
128 in bfloat16) reads as M + q 2**o, and one multiply-add gives q - z exactly:

    (M + q 2**o) * 2**-o + offset,   offset = -(M 2**-o + z)

Fields that reach beyond the mantissa (10 bits, 7 bits) are shifted down first. 8-bit weights do not fit into bfloat16's
7 bits. Their low seven read as 128 + low; the eighth becomes, inverted and under a sign, the lowest bit of an exponent,
and reads as 128 high - 256. The sum of both is q - 128, exactly.

The steps are the same for both vendors and are written down in either's assembly. A block takes the tile's words, an
offset per plane and its constants, and gives the weights of every plane. The tests emulate the text it becomes for all
bit patterns; on a GPU they compare it with plain Triton.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

from awq_kernels.tiles import MAGIC, PLANES, third_bit

Activations = Literal["fp16", "bf16"]
Kind = Literal["shift", "mask", "flip", "scale"]
MANTISSA_BITS = {"fp16": 10, "bf16": 7}
MAGIC_BITS = {"fp16": 0x6400, "bf16": 0x4300}
"""1024 and 128: the bits of a field fit below them."""
ONE_BITS = {"fp16": 0x3C00, "bf16": 0x3F80}
MINUS_256 = 0xC380
"""In bfloat16; with its lowest exponent bit inverted it is -128."""


class Step(NamedTuple):
    """One instruction. Registers are called w (words), z (offsets), p (planes) and t (in between), with a number.

    shift   to = source >> amount; << where it is negative
    mask    to = (source & amount, in either half) | other
    flip    to = (source & amount, in either half) ^ -256, in bfloat16 only
    scale   to = source * 2**-amount + other, in float pairs
    """

    kind: Kind
    to: str
    source: str
    amount: int
    other: str = ""


class Unpack(NamedTuple):
    """A block of inline assembly for `tl.inline_asm_elementwise`, two elements to a register."""

    text: str
    constraints: str
    n_outputs: int
    """Planes, and behind them registers that are of no use afterwards."""
    constants: tuple[int, ...]
    """16-bit patterns the block takes behind words and offsets."""
    bases: tuple[float, ...]
    """By plane: its offset is this minus 1024 + z, the form in which zero points are stored."""
    floats: Activations
    """The type of offsets and results."""


def unpack(assembly: str | None, bits: int, activations: Activations | None) -> Unpack | None:
    """The block for a device's assembly (`nvidia`, `amd` or None) and the activations' type; None where there is none.

    AMD's devices have no pairs of bfloat16 to compute with: what they give in float16 is converted, exactly.
    """
    if not activations:
        return None
    return nvidia(bits, activations) if assembly == "nvidia" else amd(bits) if assembly == "amd" else None


@functools.cache
def nvidia(bits: int, activations: Activations) -> Unpack:
    """PTX, for compute capability 8.0 and later."""
    steps = _steps(bits, activations)
    planes, n_words = PLANES[bits], _n_words(bits)
    number = {"p": 0, "w": planes, "z": planes + n_words}
    temporaries = dict.fromkeys(step.to for step in steps if step.to[0] == "t")

    def register(name: str) -> str:
        return name if name in temporaries else f"${number[name[0]] + int(name[1:])}"

    lines = [_ptx(step, activations, register) for step in steps]
    text = "{ .reg .b32 " + ", ".join(["factor", *temporaries]) + ";\n" + "\n".join(lines) + " }"
    constraints = ["=&r"] * planes + ["r"] * (n_words + planes)
    return Unpack(text, ",".join(constraints), planes, (), _bases(bits, activations), activations)


@functools.cache
def amd(bits: int) -> Unpack:
    """GCN, for gfx9 and later.

    One scalar register is all that an instruction of gfx9 may read: masks and factors are in one, the magic number is
    not. Registers for what comes in between are outputs of their own.
    """
    steps = _steps(bits, "fp16")
    planes, n_words = PLANES[bits], _n_words(bits)
    temporaries = list(dict.fromkeys(step.to for step in steps if step.to[0] == "t"))
    names = [f"p{j}" for j in range(planes)] + temporaries
    names += [f"w{j}" for j in range(n_words)] + [f"z{j}" for j in range(planes)]
    constants: dict[int, str] = {MAGIC_BITS["fp16"]: f"${len(names)}"}

    def register(name: str) -> str:
        return f"${names.index(name)}"

    def constant(pattern: int) -> str:
        return constants.setdefault(pattern, f"${len(names) + len(constants)}")

    lines = [_gcn(step, register, constant) for step in steps]
    n_outputs = planes + len(temporaries)
    constraints = ["=&v"] * n_outputs + ["v"] * (n_words + planes + 1) + ["s"] * (len(constants) - 1)
    bases = _bases(bits, "fp16")
    return Unpack("\n".join(lines), ",".join(constraints), n_outputs, tuple(constants), bases, "fp16")


def _steps(bits: int, activations: Activations) -> list[Step]:
    builder = _Builder()
    for plane in range(PLANES[bits]):
        if bits == 3:
            _three_bits(builder, plane, activations)
        elif bits > MANTISSA_BITS[activations]:
            _seven_bits_and_one(builder, plane, bits * plane)
        else:
            shift, at = _field(bits, plane, activations)
            source = builder.shifted("w0", shift)
            builder.add("mask", f"p{plane}", source, ((1 << bits) - 1) << at, "magic")
            builder.add("scale", f"p{plane}", f"p{plane}", at, f"z{plane}")
    return builder.steps


def _three_bits(builder: _Builder, plane: int, activations: Activations) -> None:
    """Two bits from the plane's word, the third from the last one."""
    shift, at = _field(3, plane, activations)
    third = builder.shifted("w2", third_bit(plane) - at - 2)
    builder.add("mask", f"p{plane}", builder.shifted(f"w{plane // 8}", shift), 3 << at, "magic")
    builder.add("mask", f"p{plane}", third, 4 << at, f"p{plane}")
    builder.add("scale", f"p{plane}", f"p{plane}", at, f"z{plane}")


def _seven_bits_and_one(builder: _Builder, plane: int, shift: int) -> None:
    """Every step is an integer that bfloat16 holds exactly: 128 + low, 128 high - 256, q - 128, q - z."""
    to, high = f"p{plane}", builder.temporary()
    word = builder.shifted("w0", shift)
    builder.add("mask", to, word, 0x7F, "magic")
    builder.add("flip", high, word, 0x80)
    builder.add("scale", to, to, 0, high)
    builder.add("scale", to, to, 0, f"z{plane}")


def _field(bits: int, plane: int, activations: Activations) -> tuple[int, int]:
    """How far the plane's word is shifted down, and where the field is then: within the mantissa, shifted rarely."""
    if bits == 3:
        half, at = 8 * (plane // 4 % 2), 2 * (plane % 4)
        return (half, at) if at + 3 <= MANTISSA_BITS[activations] else (half + at, 0)
    shift, first = 0, bits * plane
    for start in range(0, first + 1, bits):
        if start - shift + bits > MANTISSA_BITS[activations]:
            shift = start
    return shift, first - shift


def _bases(bits: int, activations: Activations) -> tuple[float, ...]:
    if bits > MANTISSA_BITS[activations]:
        return (float(MAGIC + 128),) * PLANES[bits]
    magic = 1 << MANTISSA_BITS[activations]
    return tuple(MAGIC - magic / (1 << _field(bits, plane, activations)[1]) for plane in range(PLANES[bits]))


def _n_words(bits: int) -> int:
    return bits * PLANES[bits] // 16


class _Builder:
    """Steps as they are added; a word is shifted once."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._temporaries = 0
        self._shifted: dict[tuple[str, int], str] = {}

    def add(self, kind: Kind, to: str, source: str, amount: int, other: str = "") -> None:
        self.steps.append(Step(kind, to, source, amount, other))

    def temporary(self) -> str:
        self._temporaries += 1
        return f"t{self._temporaries - 1}"

    def shifted(self, source: str, shift: int) -> str:
        if shift == 0:
            return source
        if (source, shift) not in self._shifted:
            self._shifted[source, shift] = self.temporary()
            self.add("shift", self._shifted[source, shift], source, shift)
        return self._shifted[source, shift]


def _ptx(step: Step, activations: Activations, register: Callable[[str], str]) -> str:
    to, source, other, magic = register(step.to), register(step.source), step.other, MAGIC_BITS[activations]
    match step.kind:
        case "shift":
            return f"{'shr' if step.amount > 0 else 'shl'}.b32 {to}, {source}, {abs(step.amount)};"
        case "mask":
            other = _pair(magic) if other == "magic" else register(other)
            return f"lop3.b32 {to}, {source}, {_pair(step.amount)}, {other}, 0xea;"
        case "flip":
            return f"lop3.b32 {to}, {source}, {_pair(step.amount)}, {_pair(MINUS_256)}, 0x6a;"
        case "scale" if step.amount == 0 and activations == "fp16":
            return f"add.rn.f16x2 {to}, {source}, {register(other)};"
        case "scale":
            kind = "f16x2" if activations == "fp16" else "bf16x2"
            factor = f"mov.b32 factor, {_pair(_power_of_two(activations, -step.amount))};"
            return f"{factor} fma.rn.{kind} {to}, {source}, factor, {register(other)};"


def _gcn(step: Step, register: Callable[[str], str], constant: Callable[[int], str]) -> str:
    to, source = register(step.to), register(step.source)
    match step.kind:
        case "shift":
            return f"v_lsh{'r' if step.amount > 0 else 'l'}rev_b32 {to}, {abs(step.amount)}, {source}"
        case "mask":
            other = constant(MAGIC_BITS["fp16"]) if step.other == "magic" else register(step.other)
            return f"v_and_or_b32 {to}, {source}, {constant(step.amount)}, {other}"
        case "scale" if step.amount == 0:
            return f"v_pk_add_f16 {to}, {source}, {register(step.other)}"
        case "scale":
            factor = constant(_power_of_two("fp16", -step.amount))
            return f"v_pk_fma_f16 {to}, {source}, {factor}, {register(step.other)}"
        case "flip":
            raise ValueError("AMD has no pairs of bfloat16")


def _power_of_two(activations: Activations, exponent: int) -> int:
    """The bits of 2**exponent."""
    return ONE_BITS[activations] + (exponent << MANTISSA_BITS[activations])


def _pair(pattern: int) -> str:
    return f"{pattern * 0x10001:#010x}"
