"""The layout the Triton kernels read: tiles of int16, four weights to an element, one after the other in memory.

A tile is BN outputs by BK inputs. Its BK inputs are cut into four planes of BK / 4; nibble `j` of element `i` holds
input `j * BK / 4 + i` of the tile. So a program reads one contiguous stretch of memory per step, plane `j` of the
weights meets a plain contiguous slice of the activations, and after one load the four planes come out of shifts and
masks alone. Neighbouring elements hold neighbouring inputs, the order in which tensor cores want their operands.

Zero points are kept as the float16 number 1024 + z: the bits of a nibble under the exponent of 1024 read as 1024 + q,
and the difference q - z is exact. Outputs and inputs are padded to whole tiles; padded groups have the scale 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from awq_kernels.int_weight import IntWeight

PLANES = 4
TILE_OUT = 64
"""Outputs of a tile: two warps with one tensor-core fragment each, small enough for a dozen programs per processor."""
MAGIC = 1024
"""float16 numbers from 1024 to 2047 have their integer offset in the low bits."""


@dataclass(frozen=True)
class PlaneTiles:
    """A 4-bit weight in tiles; `pack_tiles` makes it, `unpack_tiles` gives the `IntWeight` back."""

    tiles: torch.Tensor
    """int16 [out_tiles, in_tiles, TILE_OUT, tile_in / 4], contiguous."""
    scale: torch.Tensor
    """float [padded groups, padded out_features], the dtype of the checkpoint."""
    magic_zero: torch.Tensor
    """float16 [padded groups, padded out_features]: 1024 + zero_point."""
    group_size: int
    """Inputs per group; all padded inputs when there is one group."""
    in_features: int
    out_features: int

    @property
    def tile_in(self) -> int:
        return self.tiles.shape[3] * PLANES


def obstacle(weight: IntWeight) -> str | None:
    """Why `weight` cannot be put into tiles, as a clause, or None when it can."""
    if weight.bits != 4:
        return f"the tiles hold 4 bits, not {weight.bits}"
    if weight.n_groups > 1 and weight.group_size not in (16, 32, 64) and weight.group_size % 128:
        return f"groups of {weight.group_size} inputs do not fit the tiles (16, 32, 64 or a multiple of 128 do)"
    return None


def pack_tiles(weight: IntWeight) -> PlaneTiles:
    """Put `weight` into tiles on its own device. Raises ValueError with the `obstacle` when that is not possible."""
    if reason := obstacle(weight):
        raise ValueError(reason)
    tile_in = 64 if weight.group_size == 16 else 128  # a plane must not straddle groups
    pad_out, pad_in = -weight.out_features % TILE_OUT, -weight.in_features % tile_in
    q = F.pad(weight.q, (0, pad_in, 0, pad_out))
    group_size = q.shape[1] if weight.n_groups == 1 else weight.group_size
    pad_groups = -(-q.shape[1] // group_size) - weight.n_groups
    return PlaneTiles(
        tiles=_interleave(q, tile_in),
        scale=F.pad(weight.scale, (0, pad_groups, 0, pad_out)).T.contiguous(),
        magic_zero=F.pad(weight.zero_point, (0, pad_groups, 0, pad_out)).T.to(torch.float16).contiguous() + MAGIC,
        group_size=group_size,
        in_features=weight.in_features,
        out_features=weight.out_features,
    )


def unpack_tiles(packed: PlaneTiles) -> IntWeight:
    """The weight that `pack_tiles` was given, exactly."""
    shifts = 4 * torch.arange(PLANES, device=packed.tiles.device)
    nibbles = (packed.tiles[..., None].int() >> shifts) & 0xF  # [out_tiles, in_tiles, TILE_OUT, tile_in / 4, planes]
    q = nibbles.permute(0, 2, 1, 4, 3).reshape(packed.scale.shape[1], -1).to(torch.uint8)
    group_size = min(packed.group_size, packed.in_features)
    rows, groups = slice(packed.out_features), slice(packed.in_features // group_size)
    return IntWeight(
        q=q[rows, : packed.in_features].contiguous(),
        scale=packed.scale.T[rows, groups].contiguous(),
        zero_point=(packed.magic_zero.T[rows, groups] - MAGIC).to(torch.uint8),
        group_size=group_size,
    )


def _interleave(q: torch.Tensor, tile_in: int) -> torch.Tensor:
    """uint8 [padded out, padded in] to int16 tiles; plane by plane, so the peak is one int16 matrix beside `q`."""
    planes = q.view(-1, TILE_OUT, q.shape[1] // tile_in, PLANES, tile_in // PLANES).permute(3, 0, 2, 1, 4)
    tiles = torch.zeros(planes.shape[1:], dtype=torch.int16, device=q.device)
    for j in range(PLANES):
        tiles |= planes[j].to(torch.int16) << (4 * j)
    return tiles
