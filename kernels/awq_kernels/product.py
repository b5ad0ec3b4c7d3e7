"""2, 3, 4 and 8-bit weights times 16-bit activations in Triton, for CUDA, ROCm and XPU (and Triton's interpreter).

For a few tokens the product is limited by reading weights, and on the fastest devices by the instructions spent on
each: `_product_kernel` reads a tile once, as it is, and two instructions per weight later it is in the tensor cores.
q - z is exact in 16 bits, products are summed in float32, and each group's scale is applied to its float32 sum: no
weight is ever rounded, the only rounding is that of the result. The weights are the left operand, as that one must have
16 rows anyway, while the tokens may be as few as 8.

So that every processor has work, a program's warps share not its outputs but its inputs: each takes another slice of
them, and the slices' sums are added up at the end in a fixed order, inside the program. There are no partial results in
memory, no atomic additions, and the same call gives the same bits each time.

Where the device has an `unpack_asm` block for the activations' type it is used; otherwise the same numbers come from
plain Triton. For many tokens the product is limited by arithmetic: there the weights are dequantized to the type of the
activations and the vendor's matrix product runs (`dequantize.py`).
"""

# Triton's language is Python in form only: constexpr takes plain numbers, static_range iterates at compile time, and
# tuples grow by addition only.
# ruff: noqa: RUF005
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from awq_kernels import dequantize
from awq_kernels.launches import Launch, Launches, device_of, on
from awq_kernels.plane import (
    INTERPRETED,
    exactly,
    field,
    level,
    load_group,
    load_words,
    offset_of,
    refuse_bfloat16,
    tile_constants,
)
from awq_kernels.tiles import PLANES, TILE_OUT, PlaneTiles
from awq_kernels.unpack_asm import Activations, Unpack, unpack

MAX_TOKENS = 64
"""Beyond this dequantizing first is faster: the tensor cores' share in the fused kernel no longer hides."""
CHUNK_WEIGHTS = 1 << 27
"""Weights dequantized at once: 256 MiB, in one buffer that torch's allocator hands out again and again."""
ACTIVATIONS: dict[torch.dtype, Activations] = {torch.float16: "fp16", torch.bfloat16: "bf16"}
"""The types there is assembly for."""


@triton.jit
def _operands(words, zeros, SHARED: tl.constexpr, BASES: tl.constexpr, CONSTANTS: tl.constexpr, dtype: tl.constexpr):
    """What a block of assembly takes: the words, an offset for each plane, the constants."""
    shape: tl.constexpr = words[0].shape
    operands = words
    for plane in tl.static_range(len(BASES)):
        offset = offset_of(zeros[plane // SHARED], BASES[plane], dtype)
        operands = operands + (tl.broadcast_to(tl.expand_dims(offset, -1), shape),)
    for constant in tl.static_range(len(CONSTANTS)):
        operands = operands + (tl.full(shape, CONSTANTS[constant], tl.int16),)
    return operands


@triton.jit
def _product_kernel(
    x_ptr,
    words_ptr,
    group_ptr,
    bias_ptr,
    y_ptr,
    experts_ptr,
    rows_ptr,
    n_rows,
    rows_per_token,
    in_features,
    out_features,
    in_tiles,
    n_groups,
    BITS: tl.constexpr,
    PLANES: tl.constexpr,
    PLANE: tl.constexpr,
    GROUP: tl.constexpr,
    PLANES_PER_GROUP: tl.constexpr,
    TILE_OUT: tl.constexpr,
    ZERO: tl.constexpr,
    SCALE: tl.constexpr,
    SHARED: tl.constexpr,
    WHOLE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EXPERTS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    SLICES: tl.constexpr,
    ASM: tl.constexpr,
    CONSTRAINTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    CONSTANTS: tl.constexpr,
    BASES: tl.constexpr,
):
    """BN outputs for BM rows of y [n_rows, out_features].

    SHARED planes in a row lie in one group. WHOLE says that inputs fill tiles and tiles fill steps: nothing need be
    masked; otherwise what lies beyond is read as zeros. ASM and what follows it is an `Unpack`, or empty. With EXPERTS
    a program works on the rows listed for it, with the weights of the expert they go to (see `experts.py`).
    """
    WORDS: tl.constexpr = BITS * PLANES // 16
    PARTS: tl.constexpr = PLANES // SHARED
    TILE: tl.constexpr = WORDS * TILE_OUT * PLANE
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    first_n = tl.program_id(0) * BN
    n = first_n + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    out_tile, end = (first_n // TILE_OUT).to(tl.int64), in_tiles
    if EXPERTS:
        m = tl.load(rows_ptr + m)
        expert = tl.load(experts_ptr + tl.program_id(1))
        if expert < 0:  # all rows lie beyond the last: nothing to do
            expert, end = 0, 0
        out_tile += expert * tl.cdiv(out_features, TILE_OUT)
        if HAS_BIAS:
            bias_ptr += expert * out_features
    words_ptr += out_tile * (in_tiles * TILE)
    group_ptr += out_tile * (n_groups * TILE_OUT)
    row = n % TILE_OUT
    token = tl.minimum(m, n_rows - 1) // rows_per_token  # rows beyond the last one repeat it: no mask in the loop
    i = tl.arange(0, PLANE)
    if SLICES > 1:  # [slices, outputs, inputs] @ [slices, inputs, rows]
        slices = tl.arange(0, SLICES)
        w_slice, w_element = slices[:, None, None], row[None, :, None] * PLANE + i[None, None, :]
        x_token, x_i = token[None, None, :], i[None, :, None]
        group_slice, group_row = slices[:, None], row[None, :]
        acc = tl.zeros((SLICES, BN, BM), tl.float32)
    else:
        w_slice, w_element = 0, row[:, None] * PLANE + i[None, :]
        x_token, x_i = token[None, :], i[:, None]
        group_slice, group_row = 0, row
        acc = tl.zeros((BN, BM), tl.float32)
    x_row = x_ptr + x_token * in_features
    for step in range(0, end, SLICES):
        w_tile, group_tile = step + w_slice, step + group_slice
        if not WHOLE:  # a slice beyond the last tile repeats it, and meets zeros
            w_tile, group_tile = tl.minimum(w_tile, in_tiles - 1), tl.minimum(group_tile, in_tiles - 1)
        words = load_words(words_ptr + w_element + w_tile * TILE, WORDS, TILE_OUT * PLANE)
        scales, zeros = (), ()
        for part in tl.static_range(PARTS):
            if SHARED == PLANES_PER_GROUP:  # a part is a group
                group = group_ptr + (group_tile * (PARTS * TILE_OUT) + group_row) + part * TILE_OUT
            else:
                group = group_ptr + ((group_tile * PLANES + part * SHARED) // PLANES_PER_GROUP * TILE_OUT + group_row)
            scale, zero = load_group(group, ZERO, SCALE)
            scales, zeros = scales + (scale,), zeros + (zero,)
        if ASM != "":
            operands = _operands(words, zeros, SHARED, BASES, CONSTANTS, OUTPUTS[0])
            levels = tl.inline_asm_elementwise(ASM, CONSTRAINTS, operands, dtype=OUTPUTS, is_pure=True, pack=2)
        for part in tl.static_range(PARTS):
            total = tl.zeros(acc.shape, tl.float32)
            for plane in tl.static_range(part * SHARED, part * SHARED + SHARED):
                which = (step + w_slice) * PLANES + plane
                if GROUP == PLANE * PLANES_PER_GROUP:
                    k = which * PLANE + x_i
                    present = k < in_features
                else:  # the groups are padded in the tiles, but not in x
                    within = which % PLANES_PER_GROUP * PLANE + x_i
                    k = which // PLANES_PER_GROUP * GROUP + within
                    present = (within < GROUP) & (k < in_features)
                x = tl.load(x_row + k) if WHOLE else tl.load(x_row + k, mask=present, other=0.0)
                if ASM != "":
                    w = exactly(levels[plane], dtype)
                else:
                    w = level(field(words, plane, BITS), tl.expand_dims(zeros[part], -1), dtype)
                total = tl.dot(w, x, total, input_precision="ieee")
            acc += total * tl.expand_dims(scales[part], -1)
    if SLICES > 1:
        acc = tl.sum(acc, axis=0)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + n, mask=n < out_features, other=0.0).to(tl.float32)[:, None]
    y = y_ptr + m[None, :] * out_features + n[:, None]
    tl.store(y, acc.to(dtype), mask=(m[None, :] < n_rows) & (n[:, None] < out_features))


def matmul(
    x: torch.Tensor, tiles: PlaneTiles, bias: torch.Tensor | None = None, launches: Launches | None = None
) -> torch.Tensor:
    """`x @ W.T + bias` with float32 sums, the same bits every time on the same device.

    Args:
        x: float16, bfloat16 or float32 [..., in_features] on the device of `tiles`.
        bias: [out_features] or None; added in float32.
        launches: how to launch; None takes the table that ships.
    Returns:
        [..., out_features] in the dtype of `x`.
    Raises:
        NotImplementedError: bfloat16 under the interpreter, which computes nonsense with it without saying so.
    """
    refuse_bfloat16(x.dtype)
    tokens = x.reshape(-1, tiles.in_features).contiguous()
    with on(x.device):
        if tokens.shape[0] > MAX_TOKENS or (x.dtype == torch.float32 and not INTERPRETED):
            y = _dequantized(tokens, tiles, bias)
        else:
            y = fused(tokens, tiles, bias, (launches or Launches()).pick(tiles, tokens.shape[0], x.dtype))
    return y.view(*x.shape[:-1], tiles.out_features)


def fused(x: torch.Tensor, tiles: PlaneTiles, bias: torch.Tensor | None, launch: Launch) -> torch.Tensor:
    """The product of a few tokens, x [n_tokens, in_features] and contiguous, launched as told."""
    y = torch.empty(x.shape[0], tiles.out_features, dtype=x.dtype, device=x.device)
    if len(y):
        launch_product(x, tiles, bias, y, launch, -(-len(y) // launch.tokens))
    return y


def launch_product(
    x: torch.Tensor,
    tiles: PlaneTiles,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    launch: Launch,
    blocks: int,
    rows_per_token: int = 1,
    rows: torch.Tensor | None = None,
    experts: torch.Tensor | None = None,
) -> None:
    """Write y [n_rows, out_features], `blocks` blocks of rows; row r has the input x[r // rows_per_token].

    With `rows` and `experts`, `tiles` holds the tiles of all experts in a row, and `bias` is [n_experts, out_features].
    """
    _product_kernel[(-(-tiles.out_features // launch.outputs), blocks)](
        x, tiles.words, tiles.groups, bias, y, experts, rows,
        len(y), rows_per_token, tiles.in_features, tiles.out_features, tiles.in_tiles, tiles.groups.shape[1],
        HAS_BIAS=bias is not None, EXPERTS=experts is not None,
        **compiled_for(tiles, launch, x.dtype, device_of(x.device).assembly),
    )  # fmt: skip


def compiled_for(tiles: PlaneTiles, launch: Launch, dtype: torch.dtype, assembly: str | None) -> dict[str, Any]:
    """What `_product_kernel` is compiled for but the bias: its constants, warps and stages."""
    planes = PLANES[tiles.bits]
    return {
        **tile_constants(tiles),
        "SHARED": planes // tiles.groups_per_tile,
        "WHOLE": tiles.in_tiles * planes * tiles.plane == tiles.in_features and tiles.in_tiles % launch.slices == 0,
        "BM": launch.tokens,
        "BN": launch.outputs,
        "SLICES": launch.slices,
        **_assembly(unpack(assembly, tiles.bits, ACTIVATIONS.get(dtype))),
        "num_warps": launch.warps,
        "num_stages": launch.stages,
    }


def _assembly(block: Unpack | None) -> dict[str, Any]:
    """The kernel's constants for a block of assembly, or for none."""
    if block is None:
        return {"ASM": "", "CONSTRAINTS": "", "OUTPUTS": (), "CONSTANTS": (), "BASES": ()}
    return {
        "ASM": block.text,
        "CONSTRAINTS": block.constraints,
        "OUTPUTS": (tl.float16 if block.floats == "fp16" else tl.bfloat16,) * block.n_outputs,
        "CONSTANTS": tuple(pattern - (pattern >> 15 << 16) for pattern in block.constants),  # as int16
        "BASES": block.bases,
    }


def _dequantized(x: torch.Tensor, tiles: PlaneTiles, bias: torch.Tensor | None) -> torch.Tensor:
    """The product of many tokens, x [n_tokens, in_features], some rows of the weight at a time."""
    bias = None if bias is None else bias.to(x.dtype)
    out_tiles, step = tiles.words.shape[0], max(1, CHUNK_WEIGHTS // (TILE_OUT * tiles.in_features))
    if step >= out_tiles:
        return F.linear(x, dequantize.dequantize_rows(tiles, x.dtype, 0, out_tiles), bias)
    y = torch.empty(x.shape[0], tiles.out_features, dtype=x.dtype, device=x.device)
    for first in range(0, out_tiles, step):
        w = dequantize.dequantize_rows(tiles, x.dtype, first, min(first + step, out_tiles))
        rows = slice(first * TILE_OUT, first * TILE_OUT + w.shape[0])
        y[:, rows] = F.linear(x, w, None if bias is None else bias[rows])
    return y
