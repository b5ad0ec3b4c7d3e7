"""Quantized weights as llama.cpp stores them: blocks of 32 inputs with their step in float16.

    Q4_0    w = d * (q - 8)         symmetric weights of up to 4 bits, exactly
    Q4_1    w = d * q + m           all others of up to 4 bits: q and d exactly, m = -d * zero rounded to float16
    Q8_0    w = d * q               symmetric weights of 8 bits, exactly; what fits no block is requantized to it

A group of 64 or 128 inputs is several blocks with the same step.
"""

from __future__ import annotations

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Blocks

from awq_kernels.int_weight import IntWeight
from awq_kernels.reference import dequantize

BLOCK = 32
"""Inputs."""


def blocks_for(weight: IntWeight) -> Blocks | None:
    """The blocks that hold `weight` without requantizing it; None when there are none."""
    steps = weight.scale.half()
    fits = weight.group_size % BLOCK == 0 and weight.order is None and bool(torch.isfinite(steps).all())
    if not fits or not torch.equal(steps.float(), weight.scale.float()):
        return None
    if weight.bits <= 4:
        return Blocks.Q4_0 if weight.symmetric else Blocks.Q4_1
    return Blocks.Q8_0 if weight.symmetric else None


def fallback_for(weight: IntWeight) -> Blocks:
    """What a weight is requantized to when `blocks_for` has nothing."""
    return Blocks.Q8_0 if weight.in_features % BLOCK == 0 else Blocks.F16


def pack(weight: IntWeight, blocks: Blocks) -> np.ndarray:
    """uint8 [out_features, bytes per row]."""
    if blocks is not blocks_for(weight):
        return gguf.quants.quantize(dequantize(weight).numpy(), blocks).view(np.uint8)
    steps = _per_block(weight.scale.half(), weight)
    q = weight.q.int().view(weight.out_features, -1, BLOCK)
    if blocks is Blocks.Q8_0:
        parts = (steps, (q - (1 << (weight.bits - 1))).to(torch.int8))
    elif blocks is Blocks.Q4_0:
        parts = (steps, _nibbles(q + 8 - (1 << (weight.bits - 1))))
    else:
        least = -weight.scale.float() * weight.zero_point.float()
        parts = (steps, _per_block(least.half(), weight), _nibbles(q))
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=-1).flatten(1).numpy()


def _per_block(values: torch.Tensor, weight: IntWeight) -> torch.Tensor:
    """[out, groups] -> [out, blocks, 1]."""
    return values.repeat_interleave(weight.group_size // BLOCK, dim=1).unsqueeze(-1)


def _nibbles(q: torch.Tensor) -> torch.Tensor:
    """[out, blocks, 32] -> uint8 [out, blocks, 16]: byte j holds inputs j (low) and j + 16 (high)."""
    low, high = q.to(torch.uint8).chunk(2, dim=-1)
    return low | high << 4


def worst_error(weight: IntWeight, blocks: Blocks) -> torch.Tensor:
    """The most by which any weight of a row may differ once written, float32 [out_features, 1]."""
    largest = dequantize(weight).abs().amax(dim=1, keepdim=True)
    if blocks is not blocks_for(weight):
        # half a step of 2 / 254 of the largest weight, and the rounding of that step to float16
        return largest * (2.0**-10 if blocks is Blocks.F16 else 1 / 254 + 2.0**-11)
    least = (weight.scale.float() * weight.zero_point.float()).amax(dim=1, keepdim=True)
    return least * 2.0**-11 if blocks is Blocks.Q4_1 else torch.zeros_like(largest)
