"""A launch for every device, weight and number of tokens, and what was measured before what ships."""

from __future__ import annotations

import pytest
import torch
from truth import random_weight

from awq_kernels.launches import (
    TABLE,
    Device,
    Launch,
    Launches,
    device_of,
    family_of,
    shape_key,
    shipped,
    token_block,
)
from awq_kernels.tiles import PLANES, TILE_OUT, pack_tiles

NVIDIA, AMD = Device("sm_90", 132, "nvidia"), Device("gfx9", 304, "amd")


@pytest.mark.parametrize("family", TABLE)
def test_the_table_has_every_block_and_only_powers_of_two(family: str) -> None:
    assert {16, 32} <= set(TABLE[family]) <= {8, 16, 32, 64}
    for block, widths in TABLE[family].items():
        for launch in widths:
            assert launch.tokens == block
            assert launch.outputs <= TILE_OUT
            assert launch.slices in (1, launch.warps)
            for number in (launch.tokens, launch.outputs, launch.slices, launch.warps):
                assert number & (number - 1) == 0


def test_blocks_hold_the_tokens_and_suit_the_tensor_cores() -> None:
    assert [token_block(n, NVIDIA) for n in (1, 8, 9, 16, 17, 33, 64)] == [8, 8, 16, 16, 32, 64, 64]
    assert [token_block(n, AMD) for n in (1, 8, 17, 64)] == [16, 16, 32, 64]
    assert [token_block(n, Device("gfx11", 96, "amd")) for n in (1, 17, 64)] == [16, 32, 32]


@pytest.mark.parametrize(
    ("capability", "family"), [(80, "sm_80"), (86, "sm_86"), (89, "sm_86"), (90, "sm_90"), (120, "sm_86")]
)
def test_nvidia_families(capability: int, family: str) -> None:
    assert family_of(capability) == family


@pytest.mark.parametrize("in_tiles", [1, 2, 3, 7])
def test_no_more_slices_than_tiles(in_tiles: int) -> None:
    launch = shipped(pack_tiles(random_weight(64, 128 * in_tiles, 128)), 4096, 8, NVIDIA)
    assert 1 <= launch.slices <= in_tiles
    assert launch.warps >= 1


def test_narrow_weights_are_cut_into_more_programs() -> None:
    tiles = pack_tiles(random_weight(64, 1024, 128))
    narrow, wide = (shipped(tiles, rows, 8, NVIDIA) for rows in (1024, 1 << 16))
    assert narrow.outputs < wide.outputs
    assert narrow.slices > wide.slices


def test_several_groups_in_a_tile_ask_for_wider_programs() -> None:
    weights = (pack_tiles(random_weight(64, 1024, group_size)) for group_size in (128, 64, 32))
    assert [shipped(tiles, 1024, 8, NVIDIA).outputs for tiles in weights] == [16, 32, 32]


def test_three_bits_have_less_in_flight_as_their_tiles_are_longer() -> None:
    four, three = (shipped(pack_tiles(random_weight(64, 2048, 128, bits=b)), 8192, 8, NVIDIA) for b in (4, 3))
    assert (four.stages, three.stages) == (3, 2)


def test_what_was_measured_comes_first() -> None:
    tiles = pack_tiles(random_weight(64, 256, 128))
    fast = Launch(16, 16, 2, 2, 2)
    block = token_block(1, device_of(torch.device("cpu")))
    launches = Launches({shape_key(tiles, block, torch.float16): fast})
    assert launches.pick(tiles, 1, torch.float16) == fast
    assert launches.pick(tiles, 1, torch.bfloat16) == Launches().pick(tiles, 1, torch.bfloat16)


def test_every_bit_width_has_a_key_of_its_own() -> None:
    tiles = [pack_tiles(random_weight(64, 256, 128, bits=bits)) for bits in PLANES]
    assert len({shape_key(packed, 8, torch.float16) for packed in tiles}) == len(PLANES)
