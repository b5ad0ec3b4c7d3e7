"""The layout the Triton kernels read: tiles of int16, several weights to an element, one after the other in memory.

A tile is TILE_OUT outputs by `planes * plane` inputs. Its inputs are cut into planes of `plane` (16, 32 or 64)
consecutive ones, and element `i` holds input `i` of every plane. So a program reads one contiguous stretch of memory
per step, each plane of the weights meets a plain contiguous slice of the activations, and neighbouring elements hold
neighbouring inputs, the order in which tensor cores want their operands.

    bits   planes   words   fields
    8      2        1       plane j at bit 8 j
    4      4        1       plane j at bit 4 j
    2      8        1       plane j at bit 2 j
    3      16       3       two low bits as at 2 bits, 8 planes to a word; the third bits in the last word, where few
                            shifts put each on top of its field

A plane lies in one group. Groups that are no multiple of a plane are padded to one, so any group size fits; where that
would more than double the weight (groups of fewer than 8 inputs) it is refused. Outputs and inputs are padded to whole
tiles; padded groups have the scale 0. Zero points are kept as the float16 number 1024 + z: the bits of a field under
the exponent of 1024 read as 1024 + q, and the difference q - z is exact. A group's zero point stands above the bits of
its scale in one integer, so that they take one load. Symmetric weights need no zero points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from awq_kernels.int_weight import IntWeight

PLANES = {2: 8, 3: 16, 4: 4, 8: 2}
"""Bits to planes in a tile."""
WIDEST_PLANE = {2: 16, 3: 16, 4: 32, 8: 64}
"""Bits to inputs in a plane, where groups allow it: 128 inputs to a tile, 256 at 3 bits."""
NARROWEST_PLANE = 16
"""Inputs that one tensor-core instruction takes."""
TILE_OUT = 64
"""Outputs of a tile; a program takes a part of it, or several."""
INTEGERS = {
    torch.float16: (torch.int16, torch.int32), torch.bfloat16: (torch.int16, torch.int32),
    torch.float32: (torch.int32, torch.int64),
}  # fmt: skip
"""The dtypes of scales to integers as wide and twice as wide."""
MAGIC = 1024
"""float16 numbers from 1024 to 2047 have their integer offset in the low bits."""


@dataclass(frozen=True)
class PlaneTiles:
    """A weight in tiles; `pack_tiles` makes it, `unpack_tiles` gives the `IntWeight` back."""

    words: torch.Tensor
    """int16 [out_tiles, in_tiles, n_words, TILE_OUT, plane], contiguous."""
    groups: torch.Tensor
    """[out_tiles, padded groups, TILE_OUT]: the scales in the checkpoint's dtype where the weight is symmetric; else
    integers of twice their width, the scale's bits in the lower half, 1024 + zero_point as float16 above them."""
    scale_dtype: torch.dtype
    bits: int
    group_size: int
    """Inputs per group."""
    planes_per_group: int
    """Planes of a group, the padded one included."""
    in_features: int
    out_features: int

    @property
    def plane(self) -> int:
        """Inputs per plane."""
        return self.words.shape[4]

    @property
    def in_tiles(self) -> int:
        return self.words.shape[1]

    @property
    def groups_per_tile(self) -> int:
        """Into how many parts of one group each a tile is cut."""
        planes = PLANES[self.bits]
        return planes // math.gcd(planes, self.planes_per_group)

    @property
    def symmetric(self) -> bool:
        return self.groups.is_floating_point()

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads of it."""
        return self.words.nbytes + self.groups.nbytes


def obstacle(weight: IntWeight) -> str | None:
    """Why `weight` cannot be put into tiles, as a clause, or None when it can."""
    if weight.bits not in PLANES:
        return f"the tiles hold 2, 3, 4 or 8 bits, not {weight.bits}"
    if weight.n_groups > 1 and 2 * weight.group_size < NARROWEST_PLANE:
        return f"groups of {weight.group_size} inputs would each be padded to {NARROWEST_PLANE} in the tiles"
    return None


def pack_tiles(weight: IntWeight) -> PlaneTiles:
    """Put `weight` into tiles on its own device. Raises ValueError with the `obstacle` when that is not possible."""
    if reason := obstacle(weight):
        raise ValueError(reason)
    plane, planes_per_group = _planes(weight)
    tile_in = PLANES[weight.bits] * plane
    grouped = weight.q.view(weight.out_features, weight.n_groups, weight.group_size)
    q = F.pad(grouped, (0, planes_per_group * plane - weight.group_size)).flatten(1)
    pad_out, pad_in = -weight.out_features % TILE_OUT, -q.shape[1] % tile_in
    q = F.pad(q, (0, pad_in, 0, pad_out))
    pad_groups = -(-q.shape[1] // (planes_per_group * plane)) - weight.n_groups

    def by_group(values: torch.Tensor) -> torch.Tensor:
        padded = F.pad(values, (0, pad_groups, 0, pad_out))
        return padded.view(-1, TILE_OUT, padded.shape[1]).transpose(1, 2).contiguous()

    scale = by_group(weight.scale)
    return PlaneTiles(
        words=_pack_words(q, weight.bits, plane),
        groups=scale if weight.symmetric else _pack_groups(scale, by_group(weight.zero_point)),
        scale_dtype=scale.dtype,
        bits=weight.bits,
        group_size=weight.group_size,
        planes_per_group=planes_per_group,
        in_features=weight.in_features,
        out_features=weight.out_features,
    )


def unpack_tiles(packed: PlaneTiles) -> IntWeight:
    """The weight that `pack_tiles` was given, exactly."""
    planes = torch.stack([_unpack_plane(packed.words, packed.bits, j) for j in range(PLANES[packed.bits])])
    q = planes.permute(1, 3, 2, 0, 4).flatten(0, 1).flatten(1)  # [padded out, padded in]
    n_groups = packed.in_features // packed.group_size
    q = q[: packed.out_features, : n_groups * packed.planes_per_group * packed.plane]
    q = q.view(packed.out_features, n_groups, -1)[:, :, : packed.group_size]

    def by_output(values: torch.Tensor) -> torch.Tensor:
        return values.transpose(1, 2).flatten(0, 1)[: packed.out_features, :n_groups]

    scale, zero_point = map(by_output, _unpack_groups(packed))
    return IntWeight(
        q.flatten(1).contiguous(), scale.contiguous(), zero_point.contiguous(), packed.group_size, packed.bits
    )


def join_tiles(weights: Sequence[PlaneTiles]) -> PlaneTiles | None:
    """The outputs of all weights in a row, or None when they do not read the same inputs alike.

    All but the last must fill their tiles.
    """
    first = weights[0]
    if any(_inputs(weight) != _inputs(first) for weight in weights):
        return None
    if any(weight.out_features % TILE_OUT for weight in weights[:-1]):
        return None
    groups = [weight.groups for weight in weights]
    if not all(weight.symmetric for weight in weights):
        groups = [_pack_groups(*_unpack_groups(weight)) for weight in weights]
    return replace(
        first,
        words=torch.cat([weight.words for weight in weights]),
        groups=torch.cat(groups),
        out_features=sum(weight.out_features for weight in weights),
    )


def split_tiles(whole: PlaneTiles, out_features: Sequence[int]) -> list[PlaneTiles]:
    """The parts of a joined weight, reading its memory."""
    parts, first = [], 0
    for rows in out_features:
        tiles = slice(first, first := first + -(-rows // TILE_OUT))
        parts.append(replace(whole, words=whole.words[tiles], groups=whole.groups[tiles], out_features=rows))
    return parts


def _inputs(weight: PlaneTiles) -> tuple[object, ...]:
    """What weights must share to be read together."""
    return weight.bits, weight.group_size, weight.in_features, weight.scale_dtype


def _pack_groups(scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """Scales and zero points (uint8), alike in shape, to one integer for both."""
    same, double = INTEGERS[scale.dtype]
    magic = (zero_point.to(torch.float16) + MAGIC).view(torch.int16)
    lower = scale.view(same).to(double) & (1 << 8 * scale.itemsize) - 1
    return magic.to(double) << 8 * scale.itemsize | lower


def _unpack_groups(packed: PlaneTiles) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points (uint8), [out_tiles, padded groups, TILE_OUT]."""
    groups = packed.groups
    if packed.symmetric:
        return groups, torch.full(groups.shape, 1 << (packed.bits - 1), dtype=torch.uint8, device=groups.device)
    same, _ = INTEGERS[packed.scale_dtype]
    magic = (groups >> 8 * packed.scale_dtype.itemsize).to(torch.int16).view(torch.float16)
    return groups.to(same).view(packed.scale_dtype), (magic - MAGIC).to(torch.uint8)


def third_bit(plane: int) -> int:
    """Where a 3-bit weight of `plane` has its third bit in the last word.

    The fields of planes 4 h to 4 h + 3 come out at bits 0, 2, 4 and 6 of the first word shifted by 8 h, and the last
    word shifted by h has their third bits just above them. The second word's planes have theirs 8 bits further, the
    last two at bits 0 and 1.
    """
    return (2 * (plane % 4) + 2 + plane // 4 % 2 + 8 * (plane // 8)) % 16


def _planes(weight: IntWeight) -> tuple[int, int]:
    """Inputs per plane: the widest that needs no padding, else the narrowest; and planes per group.

    A single group is padded to whole tiles: then all planes of a tile share their scale.
    """
    widest = WIDEST_PLANE[weight.bits]
    if weight.n_groups == 1:
        tile_in = PLANES[weight.bits] * widest
        return widest, -(-weight.in_features // tile_in) * PLANES[weight.bits]
    plane = widest
    while weight.group_size % plane and plane > NARROWEST_PLANE:
        plane //= 2
    return plane, -(-weight.group_size // plane)


def _pieces(bits: int, plane: int) -> list[tuple[int, int, int, int]]:
    """How the weights of a plane are cut: (word, first bit of the weight, mask, bit in the word)."""
    if bits == 3:
        return [(plane // 8, 0, 3, 2 * (plane % 8)), (2, 2, 1, third_bit(plane))]
    return [(0, 0, (1 << bits) - 1, bits * plane)]


def _pack_words(q: torch.Tensor, bits: int, plane: int) -> torch.Tensor:
    """uint8 [padded out, padded in] to int16 words; plane by plane, so the peak is one int16 matrix beside `q`."""
    in_tiles = q.shape[1] // (PLANES[bits] * plane)
    planes = q.view(-1, TILE_OUT, in_tiles, PLANES[bits], plane).permute(3, 0, 2, 1, 4)
    n_words = bits * PLANES[bits] // 16
    words = q.new_zeros((planes.shape[1], in_tiles, n_words, TILE_OUT, plane), dtype=torch.int16)
    for j in range(PLANES[bits]):
        for word, first, mask, at in _pieces(bits, j):
            words[:, :, word] |= ((planes[j] >> first) & mask).to(torch.int16) << at
    return words


def _unpack_plane(words: torch.Tensor, bits: int, plane: int) -> torch.Tensor:
    """uint8 [out_tiles, in_tiles, TILE_OUT, plane]: the weights of one plane."""
    q = torch.zeros_like(words[:, :, 0])
    for word, first, mask, at in _pieces(bits, plane):
        q |= ((words[:, :, word] >> at) & mask) << first
    return q.to(torch.uint8)
