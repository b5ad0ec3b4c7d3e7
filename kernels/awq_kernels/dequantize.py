"""Weights in tiles as floats, for products of many tokens: limited by memory, so written in plain Triton."""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from awq_kernels.plane import field, level, load_group, load_words, tile_constants
from awq_kernels.tiles import TILE_OUT, PlaneTiles


@triton.jit
def _dequantize_kernel(
    words_ptr,
    group_ptr,
    w_ptr,
    first_tile,
    in_features,
    end_row,
    n_groups,
    BITS: tl.constexpr,
    PLANES: tl.constexpr,
    PLANE: tl.constexpr,
    GROUP: tl.constexpr,
    PLANES_PER_GROUP: tl.constexpr,
    TILE_OUT: tl.constexpr,
    ZERO: tl.constexpr,
    SCALE: tl.constexpr,
):
    """One tile of the weight, written as floats [end_row - TILE_OUT * first_tile, in_features]."""
    WORDS: tl.constexpr = BITS * PLANES // 16
    out_tile, in_tile = first_tile + tl.program_id(0), tl.program_id(1)
    row, i = tl.arange(0, TILE_OUT), tl.arange(0, PLANE)
    n = out_tile * TILE_OUT + row
    element = row[:, None] * PLANE + i[None, :]
    tile_ptr = words_ptr + (out_tile * tl.num_programs(1) + in_tile).to(tl.int64) * (WORDS * TILE_OUT * PLANE)
    words = load_words(tile_ptr + element, WORDS, TILE_OUT * PLANE)
    for plane in tl.static_range(PLANES):
        group = (in_tile * PLANES + plane) // PLANES_PER_GROUP
        scale, zero = load_group(group_ptr + (out_tile * n_groups + group) * TILE_OUT + row, ZERO, SCALE)
        w = level(field(words, plane, BITS), zero[:, None], tl.float32) * scale[:, None]
        within = (in_tile * PLANES + plane) % PLANES_PER_GROUP * PLANE + i
        k = group * GROUP + within
        inside = (n[:, None] < end_row) & ((within < GROUP) & (k < in_features))[None, :]
        at = w_ptr + (n - first_tile * TILE_OUT)[:, None].to(tl.int64) * in_features + k[None, :]
        tl.store(at, w.to(w_ptr.dtype.element_ty), mask=inside)


def dequantize(tiles: PlaneTiles, dtype: torch.dtype) -> torch.Tensor:
    """The weight as floats, `dtype` [out_features, in_features]; rounded once, from float32."""
    return dequantize_rows(tiles, dtype, 0, tiles.words.shape[0])


def dequantize_rows(tiles: PlaneTiles, dtype: torch.dtype, first_tile: int, end_tile: int) -> torch.Tensor:
    """The outputs of some tiles, `dtype` [at most TILE_OUT * (end_tile - first_tile), in_features]."""
    end_row = min(end_tile * TILE_OUT, tiles.out_features)
    shape = (end_row - first_tile * TILE_OUT, tiles.in_features)
    w = torch.empty(shape, dtype=dtype, device=tiles.words.device)
    _dequantize_kernel[(end_tile - first_tile, tiles.in_tiles)](
        tiles.words, tiles.groups, w,
        first_tile, tiles.in_features, end_row, tiles.groups.shape[1], **tile_constants(tiles),
    )  # fmt: skip
    return w
