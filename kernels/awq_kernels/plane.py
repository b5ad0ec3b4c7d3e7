"""What every Triton kernel does with a tile of weights: read it, take out the integers of a plane, make exact floats.

These are the plain forms, without assembly: for the interpreter, for devices that have none, and for dequantization,
which the memory limits and not the instructions.
"""

# Triton's tuples grow by addition only.
# ruff: noqa: RUF005
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from awq_kernels.tiles import PLANES, TILE_OUT, PlaneTiles


@triton.jit
def load_words(first_ptr, WORDS: tl.constexpr, STRIDE: tl.constexpr):
    """The tuple of a tile's words, STRIDE elements apart, from pointers to the first one's elements; read only once."""
    words = ()
    for word in tl.static_range(WORDS):
        words = words + (tl.load(first_ptr + word * STRIDE, eviction_policy="evict_first"),)
    return words


@triton.jit
def load_group(group_ptr, ZERO: tl.constexpr, SCALE: tl.constexpr):
    """Scales in float32 and zero points as float16 1024 + z, from pointers to groups (see `tiles.py`).

    ZERO is all zero points, or 0 where they differ; SCALE is the scales' type.
    """
    group = tl.load(group_ptr)
    if ZERO == 0:
        zero = (group >> SCALE.primitive_bitwidth).to(tl.int16).to(tl.float16, bitcast=True)
        half = group.to(tl.int16 if SCALE.primitive_bitwidth == 16 else tl.int32)
        scale = half.to(SCALE, bitcast=True)
    else:
        zero = tl.full(group.shape, ZERO, tl.float16)
        scale = group
    return scale.to(tl.float32), zero


@triton.jit
def field(words, plane: tl.constexpr, BITS: tl.constexpr):
    """The integers of a plane, int16, from the tuple of a tile's words (see `tiles.py`)."""
    if BITS == 3:
        THIRD: tl.constexpr = (2 * (plane % 4) + 2 + plane // 4 % 2 + 8 * (plane // 8)) % 16  # tiles.third_bit
        q = ((words[plane // 8] >> (2 * (plane % 8))) & 3) | (((words[2] >> THIRD) & 1) << 2)
    else:
        q = (words[0] >> (BITS * plane)) & ((1 << BITS) - 1)
    return q.to(tl.int16)


@triton.jit
def level(q, zero, dtype: tl.constexpr):
    """q - z in `dtype`, exactly, from int16 q and float16 1024 + z."""
    return exactly((q | 0x6400).to(tl.float16, bitcast=True) - zero, dtype)


@triton.jit
def exactly(x, dtype: tl.constexpr):
    """Integers in float16 that fit into 8 bits and a sign, in `dtype`; or what is in `dtype` already."""
    if dtype == tl.bfloat16 and x.dtype != dtype:  # half of a float32; a conversion would round, in many instructions
        return (x.to(tl.float32).to(tl.int32, bitcast=True) >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)


@triton.jit
def offset_of(zero, base: tl.constexpr, dtype: tl.constexpr):
    """base - (1024 + z) in `dtype`, exactly, from float16 1024 + z.

    The bits of that read as bfloat16 are 2**73 + z 2**66, up to z = 127: one instruction makes -(128 + z) of them where
    a subtraction and two conversions take three.
    """
    if dtype == tl.bfloat16 and base == 1024 - 128:
        read = zero.to(tl.int16, bitcast=True).to(tl.bfloat16, bitcast=True)
        return read * tl.full(zero.shape, -(2.0**-66), tl.bfloat16)
    else:
        return (base - zero).to(dtype)


TRITON_TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
INTERPRETED = not isinstance(field, triton.JITFunction)
"""Whether TRITON_INTERPRET=1 was set when this module was imported: kernels run in numpy, on CPU tensors."""


def refuse_bfloat16(dtype: torch.dtype) -> None:
    """`NotImplementedError` under the interpreter, which computes nonsense with bfloat16 without saying so."""
    if INTERPRETED and dtype == torch.bfloat16:
        raise NotImplementedError("Triton's interpreter cannot compute with bfloat16; use float16 or float32 there")


def tile_constants(tiles: PlaneTiles) -> dict[str, Any]:
    """What of `tiles` a kernel is compiled for."""
    return {
        "BITS": tiles.bits,
        "PLANES": PLANES[tiles.bits],
        "PLANE": tiles.plane,
        "GROUP": tiles.group_size,
        "PLANES_PER_GROUP": tiles.planes_per_group,
        "TILE_OUT": TILE_OUT,
        "ZERO": 1024 + (1 << (tiles.bits - 1)) if tiles.symmetric else 0,
        "SCALE": TRITON_TYPES[tiles.scale_dtype],
    }
