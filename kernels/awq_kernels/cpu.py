"""4-bit weights on the CPU: torch's own kernel for a few tokens, float32 for many.

`torch._weight_int4pack_mm_for_cpu` computes `w = (q - 8) * scale + zero`, so `zero = (8 - zero_point) * scale`. It is
fast in bfloat16 only (elsewhere it takes a scalar path slower than a float32 linear), so activations, scales and the
result go through bfloat16 there: a relative error of about 2e-3. Its cost grows with every token, while dequantizing
costs the same for any number: beyond `MAX_TOKENS` the weights are dequantized to float32, a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from awq_kernels.int_weight import IntWeight

GROUP_SIZES = (32, 64, 128, 256)
CROSSOVER = {"AVX512": 128, "AVX2": 48}
"""By vector instructions: more tokens are faster dequantized; measured on weights from 512x512 to 11264x2048."""
MAX_TOKENS = CROSSOVER.get(torch.backends.cpu.get_cpu_capability(), 48)
JOINED_ROWS = 64
"""A multiple of the number of outputs that torch packs at a time: 64 with AVX-512, 32 with AVX2, fewer elsewhere."""
CHUNK_WEIGHTS = 4 << 20
"""Weights dequantized at once: 16 MiB of float32."""


@dataclass(frozen=True)
class CpuWeight:
    """A 4-bit weight for the CPU, one byte a weight: once as torch's kernel wants it, once to dequantize from."""

    packed: torch.Tensor
    """uint8 [out_features, in_features / 2], opaque: depends on the processor's vector instructions."""
    scale_and_zero: torch.Tensor
    """bfloat16 [n_groups, out_features, 2]."""
    halves: torch.Tensor
    """uint8 [out_features, in_features / 2]: the first half of the inputs in the low bits, the second in the high."""
    scale: torch.Tensor
    """float32 [out_features, n_groups]."""
    zero_point: torch.Tensor
    """uint8 [out_features, n_groups]."""
    group_size: int


def obstacle(weight: IntWeight) -> str | None:
    """Why torch's CPU kernel cannot take `weight`, as a clause, or None when it can."""
    if weight.bits != 4:
        return f"torch's CPU kernel takes 4 bits, not {weight.bits}"
    if weight.group_size not in GROUP_SIZES:
        return f"torch's CPU kernel takes groups of {GROUP_SIZES} inputs, not {weight.group_size}"
    if weight.out_features % 16:
        return f"torch's CPU kernel takes multiples of 16 outputs, not {weight.out_features}"
    return None


def pack_cpu(weight: IntWeight) -> CpuWeight:
    """Repack `weight` for the CPU. Raises ValueError with the `obstacle` when that is not possible."""
    if reason := obstacle(weight):
        raise ValueError(reason)
    scale = weight.scale.float()
    zero = (8 - weight.zero_point.float()) * scale
    first, second = weight.q.chunk(2, dim=1)
    return CpuWeight(
        packed=torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.q.int(), 1),
        scale_and_zero=torch.stack([scale.T, zero.T], dim=2).to(torch.bfloat16).contiguous(),
        halves=first | (second << 4),
        scale=scale,
        zero_point=weight.zero_point,
        group_size=weight.group_size,
    )


def join(weights: Sequence[CpuWeight]) -> CpuWeight | None:
    """`weights`, which have the same inputs, as one weight with the outputs of all in a row; None if that cannot be.

    torch packs a number of outputs at a time and lays these blocks behind one another. So packed weights can be too, as
    long as each but the last consists of whole blocks, whatever the processor's block is.
    """
    same = len({(weight.group_size, weight.halves.shape[1]) for weight in weights}) == 1
    if not same or any(weight.halves.shape[0] % JOINED_ROWS for weight in weights[:-1]):
        return None
    return CpuWeight(
        packed=torch.cat([weight.packed for weight in weights]),
        scale_and_zero=torch.cat([weight.scale_and_zero for weight in weights], dim=1),
        halves=torch.cat([weight.halves for weight in weights]),
        scale=torch.cat([weight.scale for weight in weights]),
        zero_point=torch.cat([weight.zero_point for weight in weights]),
        group_size=weights[0].group_size,
    )


def split(whole: CpuWeight, weights: Sequence[CpuWeight]) -> list[CpuWeight]:
    """`weights`, of which `whole` was joined, as parts of its memory."""
    rows = [weight.halves.shape[0] for weight in weights]
    parts = [getattr(whole, name).split(rows) for name in ("packed", "halves", "scale", "zero_point")]
    return [
        replace(weight, packed=packed, halves=halves, scale=scale, zero_point=zero_point)
        for weight, packed, halves, scale, zero_point in zip(weights, *parts, strict=True)
    ]


def matmul(x: torch.Tensor, weight: CpuWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x @ W.T + bias` in bfloat16 for a few tokens, in float32 for many.

    Args:
        x: any float dtype [..., in_features], on the CPU.
        bias: [out_features] or None; added in float32.
    Returns:
        [..., out_features] in the dtype of `x`.
    """
    tokens = x.reshape(-1, x.shape[-1])
    if 0 < tokens.shape[0] <= MAX_TOKENS:
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(
            tokens.to(torch.bfloat16).contiguous(), weight.packed, weight.group_size, weight.scale_and_zero
        )
    else:
        y = _matmul_float32(tokens.float(), weight)
    y = y if bias is None else y.float() + bias.float()
    return y.to(x.dtype).view(*x.shape[:-1], weight.halves.shape[0])


def _matmul_float32(tokens: torch.Tensor, weight: CpuWeight) -> torch.Tensor:
    """float32 [n_tokens, in_features] to float32 [n_tokens, out_features]."""
    rows = max(1, CHUNK_WEIGHTS // tokens.shape[1])
    y = tokens.new_empty(tokens.shape[0], weight.halves.shape[0])
    for start in range(0, y.shape[1], rows):
        chunk = slice(start, start + rows)
        y[:, chunk] = F.linear(tokens, _dequantize_rows(weight, chunk))
    return y


def _dequantize_rows(weight: CpuWeight, rows: slice) -> torch.Tensor:
    halves = weight.halves[rows]
    levels = torch.cat([halves & 0xF, halves >> 4], dim=1).float()  # [rows, in_features]
    groups = levels.view(halves.shape[0], -1, weight.group_size)
    groups -= weight.zero_point[rows, :, None]
    groups *= weight.scale[rows, :, None]
    return levels
