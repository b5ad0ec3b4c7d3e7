"""Tiles hold the integers they were given, padded, and say what they cannot hold."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from truth import random_weight

from awq_kernels.int_weight import IntWeight
from awq_kernels.tiles import (
    MAGIC,
    PLANES,
    TILE_OUT,
    join_tiles,
    obstacle,
    pack_tiles,
    split_tiles,
    third_bit,
    unpack_tiles,
)

SHAPES = [
    (64, 128, 128), (72, 288, 32), (1, 96, 96), (65, 320, 64), (128, 768, 256), (24, 48, 16), (8, 5, 5), (70, 144, 48),
    (33, 216, 24), (65, 200, 8), (10, 1100, 110),
]  # fmt: skip


def assert_same(back: IntWeight, weight: IntWeight) -> None:
    assert torch.equal(back.q, weight.q)
    assert torch.equal(back.scale, weight.scale)
    assert back.scale.dtype == weight.scale.dtype
    assert torch.equal(back.zero_point, weight.zero_point)
    assert (back.group_size, back.bits) == (weight.group_size, weight.bits)


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("bits", PLANES)
@pytest.mark.parametrize(("out_features", "in_features", "group_size"), SHAPES)
def test_round_trip(out_features: int, in_features: int, group_size: int, bits: int, symmetric: bool) -> None:
    weight = random_weight(out_features, in_features, group_size, symmetric, bits)
    assert_same(unpack_tiles(pack_tiles(weight)), weight)


@settings(max_examples=60)
@given(
    bits=st.sampled_from(sorted(PLANES)),
    out_features=st.integers(1, 150),
    group_size=st.integers(8, 300),
    n_groups=st.integers(1, 9),
    scale=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    symmetric=st.booleans(),
)
def test_any_shape_survives(
    bits: int, out_features: int, group_size: int, n_groups: int, scale: torch.dtype, symmetric: bool
) -> None:
    weight = random_weight(out_features, group_size * n_groups, group_size, symmetric, bits)
    weight = IntWeight(weight.q, weight.scale.to(scale), weight.zero_point, group_size, bits)
    assert_same(unpack_tiles(pack_tiles(weight)), weight)


@pytest.mark.parametrize(("bits", "plane"), [(8, 64), (4, 32), (2, 16)])
def test_field_j_of_element_i_is_input_i_of_plane_j(bits: int, plane: int) -> None:
    """The layout itself, not only that it can be undone."""
    weight = random_weight(128, 256, 128, bits=bits)
    words = pack_tiles(weight).words
    assert words.shape == (2, 2, 1, TILE_OUT, plane)
    for j in range(PLANES[bits]):
        found = (int(words[1, 1, 0, 5, 7]) >> (bits * j)) & ((1 << bits) - 1)
        assert found == weight.q[64 + 5, 128 + j * plane + 7]


def test_three_bits_are_two_and_one() -> None:
    weight = random_weight(64, 256, 128, bits=3)
    words = pack_tiles(weight).words
    assert words.shape == (1, 1, 3, TILE_OUT, 16)
    for j in range(16):
        low = (int(words[0, 0, j // 8, 5, 7]) >> (2 * (j % 8))) & 3
        assert low | (int(words[0, 0, 2, 5, 7]) >> third_bit(j) & 1) << 2 == weight.q[5, j * 16 + 7]


def test_padded_groups_have_no_weight() -> None:
    packed = pack_tiles(random_weight(72, 288, 32))
    assert packed.groups.shape == (2, 12, TILE_OUT)
    scale, magic_zero = packed.groups.view(torch.float16).unflatten(-1, (-1, 2)).unbind(-1)
    assert not scale[:, 9:].any()
    assert not scale[1, :, 72 - TILE_OUT :].any()
    assert (magic_zero >= MAGIC).all()


@pytest.mark.parametrize("scale", [torch.float16, torch.bfloat16, torch.float32])
def test_a_group_is_one_integer(scale: torch.dtype) -> None:
    """The scale's bits below, those of the zero point above."""
    weight = random_weight(64, 256, 64, scale_dtype=scale)
    group = int(pack_tiles(weight).groups[0, 2, 7])
    width = 8 * scale.itemsize
    bits = torch.tensor([group % (1 << width)]).to(torch.int64)
    found = bits.to(torch.int32 if width == 32 else torch.uint16).view(scale)
    assert torch.equal(found[0], weight.scale[7, 2])
    assert group >> width == 0x6400 + int(weight.zero_point[7, 2])


@pytest.mark.parametrize("bits", PLANES)
def test_bytes_are_the_bits_and_the_groups(bits: int) -> None:
    """Nothing is stored twice, and symmetric weights store no zero points."""
    shape, groups = 128 * 1024, 128 * 8
    asymmetric, symmetric = (pack_tiles(random_weight(128, 1024, 128, even, bits)) for even in (False, True))
    assert symmetric.nbytes == shape * bits // 8 + groups * 2
    assert asymmetric.nbytes == symmetric.nbytes + groups * 2


@pytest.mark.parametrize(("group_size", "bits", "words"), [(4, 4, "padded to 16"), (128, 5, "not 5"), (2, 2, "padded")])
def test_what_does_not_fit_is_said(group_size: int, bits: int, words: str) -> None:
    weight = random_weight(16, 384, group_size, bits=bits)
    assert words in str(obstacle(weight))
    with pytest.raises(ValueError, match=words):
        pack_tiles(weight)


@pytest.mark.parametrize("bits", PLANES)
def test_joined_weights_share_their_memory(bits: int) -> None:
    """Also where only some of them are symmetric."""
    weights = [
        random_weight(rows, 256, 64, symmetric, bits) for rows, symmetric in ((128, False), (64, True), (40, False))
    ]
    whole = join_tiles([pack_tiles(weight) for weight in weights])
    assert whole is not None
    assert torch.equal(unpack_tiles(whole).q, torch.cat([weight.q for weight in weights]))
    for part, weight in zip(split_tiles(whole, [128, 64, 40]), weights, strict=True):
        assert_same(unpack_tiles(part), weight)
        assert part.words.untyped_storage().data_ptr() == whole.words.untyped_storage().data_ptr()


@pytest.mark.parametrize("other", [(64, 256, 128), (64, 128, 64)], ids=str)
def test_weights_that_read_differently_are_not_joined(other: tuple[int, int, int]) -> None:
    packed = pack_tiles(random_weight(64, 256, 64))
    assert join_tiles([packed, pack_tiles(random_weight(*other))]) is None
    assert join_tiles([pack_tiles(random_weight(72, 256, 64)), packed]) is None
    assert join_tiles([packed, pack_tiles(random_weight(64, 256, 64, bits=8))]) is None
