"""What each format on disk can hold, and what it weighs. Standard library only: forecasts and the app use it too."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from awq_engine.spec import QuantSpec

SCALE_BYTES = 2
"""Of one stored step, float16 or bfloat16."""
WORD_BITS = 32


class Format(StrEnum):
    """The layout on disk."""

    AWQ = "awq"
    """AutoAWQ GEMM, version "gemm"."""
    COMPRESSED_TENSORS = "compressed-tensors"
    """`pack-quantized`, as llm-compressor writes it."""
    GPTQ = "gptq"
    """GPTQ's first version, which stores zero points minus 1."""
    GPTQ_V2 = "gptq_v2"
    """The same with zero points as they are."""

    @property
    def mixes(self) -> bool:
        """Whether its linears may differ in bits and group size."""
        return self is not Format.AWQ


@dataclass(frozen=True)
class Limits:
    """What one format can hold."""

    title: str
    """For people."""
    bits: tuple[int, ...]
    words_of_outputs: bool
    """Whether the outputs must fill whole 32-bit words."""
    words_of_inputs: bool
    bfloat16: bool
    """Whether the steps of a model in bfloat16 are stored in bfloat16; else in float16."""
    lowest_zero: int = 0
    """The smallest zero point that every reader gets back."""


LIMITS = {
    Format.AWQ: Limits("AutoAWQ GEMM", (4,), True, False, bfloat16=False),
    Format.COMPRESSED_TENSORS: Limits(
        "compressed-tensors pack-quantized", (2, 3, 4, 8), False, False, bfloat16=True
    ),
    Format.GPTQ: Limits("GPTQ", (2, 3, 4, 8), True, True, bfloat16=True, lowest_zero=1),
    Format.GPTQ_V2: Limits("GPTQ v2", (2, 3, 4, 8), True, True, bfloat16=True),
}  # fmt: skip


def bits_problem(layout: Format, bits: int) -> str | None:
    """Why a format cannot hold a bit width, and which ones can; None when it can."""
    if bits in LIMITS[layout].bits:
        return None
    others = [str(other) for other, limits in LIMITS.items() if bits in limits.bits]
    held = _listed([str(n) for n in LIMITS[layout].bits])
    wider = f", or --format {_listed(others)}" if others else ""
    return f"The format {layout} holds only a bit width of {held}, not {bits}; use --bits {held}{wider}."


def misfit(layout: Format, bits: int, out_features: int, in_features: int) -> str | None:
    """Why a format cannot hold a linear of this shape, as a clause about it; None when it can."""
    limits = LIMITS[layout]
    for needed, count, what in (
        (limits.words_of_outputs, out_features, "outputs"), (limits.words_of_inputs, in_features, "inputs")
    ):  # fmt: skip
        if needed and count * bits % WORD_BITS:
            return f"its {count} {what} of {bits} bits do not fill whole 32-bit words, as the format {layout} needs"
    return None


def step_dtype(layout: Format, stored: str) -> str:
    """The dtype of the steps of a weight that the original stores as `stored` (safetensors' spelling)."""
    return "bfloat16" if stored == "BF16" and LIMITS[layout].bfloat16 else "float16"


def packed_bytes(layout: Format, spec: QuantSpec, out_features: int, in_features: int) -> int:
    """Bytes of all tensors that stand in for one weight."""
    groups = -(-in_features // spec.group_of(in_features))
    steps = SCALE_BYTES * groups * out_features
    if layout is Format.COMPRESSED_TENSORS:
        zeros = 0 if spec.symmetric else groups * _words(out_features, spec.bits)
        return 4 * (out_features * _words(in_features, spec.bits) + zeros) + steps + 16  # and the shape, two int64
    order = 0 if layout is Format.AWQ else 4 * in_features  # g_idx
    return out_features * (in_features + groups) * spec.bits // 8 + steps + order


def _words(count: int, bits: int) -> int:
    return -(-count * bits // WORD_BITS)


def _listed(words: list[str]) -> str:
    return " or ".join(", ".join(words).rsplit(", ", 1))
