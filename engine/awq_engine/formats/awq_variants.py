"""AutoAWQ's other layouts of one linear, to be read only: its kernels of GEMV, GEMV-fast (llm-awq's own) and Marlin.

gemv       qweight int32 [out, in // 8]     plain order along the inputs
           qzeros  int32 [out, W], scales float16 [out, 8 W]     W words of groups, padded for the kernel
gemv_fast  qweight int16 [out // 4, in]     four rows woven together, inputs shuffled within every 32
           qzeros  float16 [8 W, out] = -(scale * zero_point), scales float16 [8 W, out]
marlin     qweight int32 [in // 16, 2 out]  tiles of 16 x 16 in the order of tensor cores; symmetric
           scales  float16 [groups, out]    permuted within every 64 outputs, or 32 for a single group
"""

from __future__ import annotations

import torch

from awq_engine.errors import BadInputError
from awq_engine.formats.awq import BITS, NIBBLE_ORDER, WORD
from awq_engine.formats.parts import FLOATS, INT32, Parts, inputs_per_group, take
from awq_engine.formats.words import unpack_words
from awq_engine.spec import QuantSpec
from awq_kernels.int_weight import IntWeight

PARTS = ("qweight", "qzeros", "scales")
MARLIN_PARTS = ("qweight", "scales")
ROWS = 4
"""Rows that GEMV-fast weaves together."""
STRIDE = 64
"""Inputs of one row before the next of the four takes its turn."""
TILE = 16
"""Inputs and outputs of a Marlin tile."""


def unpack_gemv(parts: Parts, spec: QuantSpec, name: str = "weight") -> IntWeight:
    """Read the GEMV layout; `BadInputError` names the tensor that is missing or misshapen."""
    qweight, qzeros = take(parts, "qweight", name, INT32), take(parts, "qzeros", name, INT32)
    scales = take(parts, "scales", name, FLOATS)
    in_features = qweight.shape[1] * WORD
    group_size, n_groups = _groups(in_features, spec, name)
    _check_room(qzeros, qweight.shape[0], qzeros.shape[1] * WORD, n_groups, f"{name}.qzeros")
    _check_room(scales, qweight.shape[0], scales.shape[1], n_groups, f"{name}.scales")
    return IntWeight(
        q=unpack_words(qweight, BITS, in_features),
        scale=scales[:, :n_groups].contiguous(),
        zero_point=unpack_words(qzeros, BITS, n_groups),
        group_size=group_size,
    )


def unpack_gemv_fast(parts: Parts, spec: QuantSpec, name: str = "weight") -> IntWeight:
    """Read the GEMV-fast layout; its zero points are recovered from their products with the scales. Raises as above."""
    qweight, qzeros = take(parts, "qweight", name, (torch.int16,)), take(parts, "qzeros", name, FLOATS)
    scales = take(parts, "scales", name, FLOATS)
    out_features, in_features = qweight.shape[0] * ROWS, qweight.shape[1]
    group_size, n_groups = _groups(in_features, spec, name)
    _check_room(qzeros.T, out_features, qzeros.shape[0], n_groups, f"{name}.qzeros")
    _check_room(scales.T, out_features, scales.shape[0], n_groups, f"{name}.scales")
    if in_features % STRIDE:
        raise BadInputError(f"{name}.qweight has {in_features} inputs, not a multiple of {STRIDE} as gemv_fast has.")
    scale = scales[:n_groups].T.contiguous()
    zero_point = (-qzeros[:n_groups].T.float() / scale.float()).round().clamp(0, 2**BITS - 1)
    words = (qweight[..., None].int() >> (BITS * torch.arange(4))) & (2**BITS - 1)  # [out / 4, in, nibbles]
    woven = words.to(torch.uint8).view(out_features // ROWS, in_features // STRIDE, ROWS, STRIDE)
    rows = woven.transpose(1, 2).reshape(out_features, in_features // 32, 4, 2, 4)
    halves = rows.transpose(3, 4)  # every eight as 0 1 2 3 4 5 6 7 again
    q = halves.transpose(2, 3).reshape(out_features, in_features)
    return IntWeight(q.contiguous(), scale, zero_point.to(torch.uint8), group_size)


def unpack_marlin(parts: Parts, spec: QuantSpec, name: str = "weight") -> IntWeight:
    """Read the Marlin layout, whose zero points are all 8. Raises as above."""
    qweight, scales = take(parts, "qweight", name, INT32), take(parts, "scales", name, FLOATS)
    in_features, out_features = qweight.shape[0] * TILE, qweight.shape[1] // 2
    group_size, n_groups = _groups(in_features, spec, name)
    if tuple(scales.shape) != (n_groups, out_features) or out_features % STRIDE:
        raise BadInputError(
            f"{name}.scales has shape {list(scales.shape)}, expected [{n_groups}, {out_features}] and a multiple of "
            f"{STRIDE} outputs, as marlin has."
        )
    nibbles = unpack_words(qweight, BITS, qweight.shape[1] * WORD)
    order = _marlin_order()
    tiles = torch.empty_like(nibbles).view(-1, order.numel())
    tiles[:, order] = nibbles.view(-1, order.numel())
    tiles = tiles.view(in_features // TILE, out_features // TILE, TILE, TILE)
    q = tiles.transpose(1, 2).reshape(in_features, out_features).T.contiguous()
    scale = scales[:, _marlin_scale_order(n_groups == 1, out_features).argsort()].T.contiguous()
    return IntWeight(q, scale, torch.full((out_features, n_groups), 8, dtype=torch.uint8), group_size)


def _marlin_order() -> torch.Tensor:
    """Where each of 1024 nibbles came from in four tiles of 16 x 16: what a warp's threads hold for one instruction."""
    order = [
        TILE * row + thread // 4 + 8 * half + 256 * tile
        for thread in range(32)
        for tile in range(4)
        for half in range(2)
        for row in (2 * (thread % 4), 2 * (thread % 4) + 1, 2 * (thread % 4) + 8, 2 * (thread % 4) + 9)
    ]
    return torch.tensor(order).view(-1, WORD)[:, list(NIBBLE_ORDER)].flatten()


def _marlin_scale_order(single_group: bool, out_features: int) -> torch.Tensor:
    """Where each scale of a row came from."""
    if single_group:
        span = [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]
    else:
        span = [i + 8 * j for i in range(8) for j in range(8)]
    starts = torch.arange(0, out_features, len(span))
    return (starts[:, None] + torch.tensor(span)).flatten()


def _groups(in_features: int, spec: QuantSpec, name: str) -> tuple[int, int]:
    """Inputs per group, and groups per row."""
    group_size = inputs_per_group(in_features, spec.group_size, f"{name}.qweight")
    return group_size, in_features // group_size


def _check_room(tensor: torch.Tensor, out_features: int, room: int, n_groups: int, name: str) -> None:
    """`tensor` is [out_features, ...] with room for so many groups, some of it padding."""
    if len(tensor) != out_features:
        raise BadInputError(f"{name} is for {len(tensor)} outputs, but qweight has {out_features}.")
    if room < n_groups:
        raise BadInputError(f"{name} has room for {room} groups, but config.json describes {n_groups}.")
