"""Tiles hold the integers they were given, padded, and say what they cannot hold."""

from __future__ import annotations

import pytest
import torch
from truth import random_weight

from awq_kernels.layout import MAGIC, obstacle, pack_tiles, unpack_tiles


@pytest.mark.parametrize(
    ("out_features", "in_features", "group_size"),
    [(64, 128, 128), (72, 288, 32), (1, 96, 96), (65, 320, 64), (128, 768, 256), (24, 48, 16), (8, 5, 5)],
)
def test_round_trip(out_features: int, in_features: int, group_size: int) -> None:
    weight = random_weight(out_features, in_features, group_size)
    back = unpack_tiles(pack_tiles(weight))
    assert torch.equal(back.q, weight.q)
    assert torch.equal(back.scale, weight.scale)
    assert torch.equal(back.zero_point, weight.zero_point)
    assert back.group_size == weight.group_size


def test_nibble_j_of_element_i_is_input_j_quarters_in() -> None:
    """The layout itself, not only that it can be undone."""
    weight = random_weight(128, 256, 128)
    tiles = pack_tiles(weight).tiles
    assert tiles.shape == (2, 2, 64, 32)
    for nibble in range(4):
        found = (int(tiles[1, 1, 5, 7]) >> (4 * nibble)) & 0xF
        assert found == weight.q[64 + 5, 128 + nibble * 32 + 7]


def test_padded_groups_have_no_weight() -> None:
    packed = pack_tiles(random_weight(72, 288, 32))
    assert packed.scale.shape == (12, 128)
    assert not packed.scale[9:].any()
    assert not packed.scale[:, 72:].any()
    assert (packed.magic_zero >= MAGIC).all()


@pytest.mark.parametrize(("group_size", "bits"), [(8, 4), (48, 4), (192, 4), (128, 3)])
def test_what_does_not_fit_is_said(group_size: int, bits: int) -> None:
    weight = random_weight(16, 384, group_size, bits=bits)
    assert obstacle(weight)
    with pytest.raises(ValueError, match=r"bits|groups"):
        pack_tiles(weight)
