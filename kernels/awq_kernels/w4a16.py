"""4-bit weights times 16-bit activations in Triton, for CUDA, ROCm and XPU (and, to test it, Triton's interpreter).

For a few tokens the product is limited by reading weights, so `_matmul_kernel` reads them once, as they are: q - z is
exact in 16 bits, products are summed in float32 by the tensor cores, and each group's scale is applied to its float32
sum. No weight is ever rounded to 16 bits; the only rounding is that of the result. The weights are the left operand, as
that one must have 16 rows anyway, while the tokens may be as few as 8.

Where there are fewer tiles of outputs than the device can run at once, the inputs are split as well. The parts are
written apart in float32 and summed by a second kernel in a fixed order: unlike atomic additions that gives the same
bits each time.

For many tokens the product is limited by arithmetic: there the weights are dequantized to the activations' dtype and
the vendor's matrix product runs.
"""

# Triton's language is Python in form only: constexpr takes plain numbers, static_range iterates at compile time.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import contextlib
import functools

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from awq_kernels.layout import TILE_OUT, PlaneTiles

MAX_TOKENS = 64
"""From here on dequantizing first is faster: the tensor cores' share in the fused kernel no longer hides."""
PROGRAMS_PER_PROCESSOR = 8
"""Programs of 64 threads that must be resident on each processor to keep enough bytes in flight."""


@triton.jit
def _plane(tile, zero, j: tl.constexpr):
    """float16 q - z of plane `j`: nibble bits under the exponent of 1024, minus 1024 + z."""
    bits = ((tile >> (4 * j)) & 0xF) | 0x6400
    return bits.to(tl.int16).to(tl.float16, bitcast=True) - zero[:, None]


@triton.jit
def _matmul_kernel(
    x_ptr,
    tiles_ptr,
    scale_ptr,
    zero_ptr,
    bias_ptr,
    y_ptr,
    n_tokens,
    in_features,
    out_features,
    in_tiles,
    tiles_per_split,
    GROUP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """One tile of outputs, one part of the inputs, BM tokens; y is [splits, n_tokens, out_features]."""
    out_tile, split = tl.program_id(0), tl.program_id(1)
    Q: tl.constexpr = BK // 4
    PLANES_PER_GROUP: tl.constexpr = 4 if GROUP >= BK else GROUP // Q
    padded_out = tl.num_programs(0) * BN
    row, i = tl.arange(0, BN), tl.arange(0, Q)
    n = out_tile * BN + row
    m = tl.program_id(2) * BM + tl.arange(0, BM)
    acc = tl.zeros((BN, BM), tl.float32)
    first = split * tiles_per_split
    for in_tile in range(first, min(first + tiles_per_split, in_tiles)):
        tile_ptr = tiles_ptr + (out_tile * in_tiles + in_tile) * (BN * Q)
        tile = tl.load(tile_ptr + row[:, None] * Q + i[None, :], eviction_policy="evict_first")
        for part in tl.static_range(4 // PLANES_PER_GROUP):
            group = (in_tile * BK + part * PLANES_PER_GROUP * Q) // GROUP
            zero = tl.load(zero_ptr + group * padded_out + n)
            scale = tl.load(scale_ptr + group * padded_out + n).to(tl.float32)
            group_sum = tl.zeros((BN, BM), tl.float32)
            for plane in tl.static_range(PLANES_PER_GROUP):
                k = in_tile * BK + (part * PLANES_PER_GROUP + plane) * Q + i
                present = (m[None, :] < n_tokens) & (k[:, None] < in_features)
                x = tl.load(x_ptr + m[None, :] * in_features + k[:, None], mask=present, other=0.0)
                w = _plane(tile, zero, part * PLANES_PER_GROUP + plane).to(x.dtype)
                group_sum = tl.dot(w, x, group_sum, input_precision="ieee")
            acc += group_sum * scale[:, None]
    if HAS_BIAS:
        acc += tl.load(bias_ptr + n, mask=n < out_features, other=0.0).to(tl.float32)[:, None]
    y = y_ptr + split * n_tokens * out_features + m[None, :] * out_features + n[:, None]
    tl.store(y, acc.to(y_ptr.dtype.element_ty), mask=(m[None, :] < n_tokens) & (n[:, None] < out_features))


@triton.jit
def _sum_splits_kernel(
    parts_ptr, bias_ptr, y_ptr, size, out_features, splits, BLOCK: tl.constexpr, HAS_BIAS: tl.constexpr
):
    """Sum float32 [splits, size] in the order of the splits, add the bias and round once."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    acc = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        acc += tl.load(parts_ptr + split * size + at, mask=inside, other=0.0)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + at % out_features, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, acc.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _dequantize_kernel(
    tiles_ptr,
    scale_ptr,
    zero_ptr,
    w_ptr,
    in_features,
    out_features,
    GROUP: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """One tile of the weight, written as floats [out_features, in_features]."""
    out_tile, in_tile = tl.program_id(0), tl.program_id(1)
    Q: tl.constexpr = BK // 4
    padded_out = tl.num_programs(0) * BN
    row, i = tl.arange(0, BN), tl.arange(0, Q)
    n = out_tile * BN + row
    tile_ptr = tiles_ptr + (out_tile * tl.num_programs(1) + in_tile) * (BN * Q)
    tile = tl.load(tile_ptr + row[:, None] * Q + i[None, :])
    for plane in tl.static_range(4):
        group = (in_tile * BK + plane * Q) // GROUP
        zero = tl.load(zero_ptr + group * padded_out + n)
        scale = tl.load(scale_ptr + group * padded_out + n).to(tl.float32)
        w = _plane(tile, zero, plane).to(tl.float32) * scale[:, None]
        k = in_tile * BK + plane * Q + i
        inside = (n[:, None] < out_features) & (k[None, :] < in_features)
        at = w_ptr + n[:, None].to(tl.int64) * in_features + k[None, :]
        tl.store(at, w.to(w_ptr.dtype.element_ty), mask=inside)


INTERPRETED = not isinstance(_matmul_kernel, triton.JITFunction)
"""Whether TRITON_INTERPRET=1 was set when this module was imported: kernels run in numpy, on CPU tensors."""


def matmul(
    x: torch.Tensor, weight: PlaneTiles, bias: torch.Tensor | None = None, splits: int | None = None
) -> torch.Tensor:
    """`x @ W.T + bias` with float32 sums, the same bits every time on the same device.

    Args:
        x: float16, bfloat16 or float32 [..., in_features] on the device of `weight`.
        bias: [out_features] or None.
        splits: parts to cut the inputs into; None chooses by the device. More parts than tiles are cut to the tiles.
    Returns:
        [..., out_features] in the dtype of `x`.
    Raises:
        NotImplementedError: bfloat16 under the interpreter, which computes nonsense with it without saying so.
    """
    if INTERPRETED and x.dtype == torch.bfloat16:
        raise NotImplementedError("Triton's interpreter cannot compute with bfloat16; use float16 or float32 there")
    tokens = x.reshape(-1, weight.in_features).contiguous()
    with _on(x.device):
        if tokens.shape[0] > MAX_TOKENS:
            y = F.linear(tokens, dequantize(weight, x.dtype), None if bias is None else bias.to(x.dtype))
        else:
            y = _fused(tokens, weight, bias, splits or _splits(weight, x.device))
    return y.view(*x.shape[:-1], weight.out_features)


def dequantize(weight: PlaneTiles, dtype: torch.dtype) -> torch.Tensor:
    """The weight as floats, `dtype` [out_features, in_features]; rounded once, from float32."""
    w = torch.empty(weight.out_features, weight.in_features, dtype=dtype, device=weight.tiles.device)
    _dequantize_kernel[tuple(weight.tiles.shape[:2])](
        weight.tiles, weight.scale, weight.magic_zero, w, weight.in_features, weight.out_features,
        GROUP=weight.group_size, BN=TILE_OUT, BK=weight.tile_in,
    )  # fmt: skip
    return w


def _fused(x: torch.Tensor, weight: PlaneTiles, bias: torch.Tensor | None, splits: int) -> torch.Tensor:
    """The product of a few tokens, x [n_tokens, in_features]."""
    n_tokens = x.shape[0]
    out_tiles, in_tiles = weight.tiles.shape[:2]
    tiles_per_split = -(-in_tiles // splits)
    splits = -(-in_tiles // tiles_per_split)
    y = torch.empty(n_tokens, weight.out_features, dtype=x.dtype, device=x.device)
    if n_tokens == 0:
        return y
    parts = y if splits == 1 else torch.empty(splits, *y.shape, dtype=torch.float32, device=x.device)
    block = token_block(n_tokens)
    _matmul_kernel[(out_tiles, splits, -(-n_tokens // block))](
        x, weight.tiles, weight.scale, weight.magic_zero, bias if splits == 1 else None, parts,
        n_tokens, weight.in_features, weight.out_features, in_tiles, tiles_per_split,
        GROUP=weight.group_size, BM=block, BN=TILE_OUT, BK=weight.tile_in,
        HAS_BIAS=bias is not None and splits == 1, **launch_options(block),
    )  # fmt: skip
    if splits > 1:
        _sum_splits_kernel[(-(-y.numel() // 1024),)](
            parts, bias, y, y.numel(), weight.out_features, splits, BLOCK=1024, HAS_BIAS=bias is not None
        )
    return y


def token_block(n_tokens: int, hip: bool = torch.version.hip is not None) -> int:
    """Tokens one program works on: a power of two, at least what the tensor core instruction takes."""
    return min(max(16 if hip else 8, 1 << (n_tokens - 1).bit_length()), MAX_TOKENS)


def launch_options(block: int, hip: bool = torch.version.hip is not None) -> dict[str, int]:
    """Warps and pipeline stages for a block of tokens; the tests compile them and check that no register spills."""
    if hip:
        return {"num_warps": 4 if block <= 16 else 8, "num_stages": 2}
    return {"num_warps": 2 if block <= 16 else 4, "num_stages": 4}


def _splits(weight: PlaneTiles, device: torch.device) -> int:
    """Parts of the inputs so that every processor has `PROGRAMS_PER_PROCESSOR` programs, at most one part per tile."""
    out_tiles, in_tiles = weight.tiles.shape[:2]
    return max(1, min(in_tiles, _processors(device) * PROGRAMS_PER_PROCESSOR // out_tiles))


@functools.cache
def _processors(device: torch.device) -> int:
    """Multiprocessors, compute units or (Intel) execution-unit groups of `device`; 1 for the interpreter."""
    if device.type == "cpu":
        return 1
    properties = torch.get_device_module(device).get_device_properties(device)
    return getattr(properties, "multi_processor_count", None) or properties.max_compute_units


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, which must be the tensors' own."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device)
