"""Rows find their experts, however they are spread, and every product is that of the right one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from truth import TOLERANCE, random_tokens, random_weight, relative_error, truth

pytest.importorskip("triton")
from awq_kernels.experts import APART, block_for, matmul_experts, route, stack_tiles
from awq_kernels.plane import INTERPRETED
from awq_kernels.tiles import pack_tiles

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
computes = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="needs a GPU or TRITON_INTERPRET=1")


@settings(max_examples=80)
@given(n_experts=st.integers(1, 9), block=st.sampled_from([8, 16, 64]), data=st.data())
def test_every_row_is_in_one_block_of_its_expert(n_experts: int, block: int, data: st.DataObject) -> None:
    experts = torch.tensor(data.draw(st.lists(st.integers(0, n_experts - 1), min_size=1, max_size=200)))
    routing = route(experts, n_experts, block)
    assert routing.rows.shape == (len(routing.experts), block)
    found = [
        (int(row), int(expert))
        for rows, expert in zip(routing.rows, routing.experts, strict=True)
        for row in rows
        if row < len(experts)
    ]
    assert sorted(found) == list(enumerate(experts.tolist()))


def test_blocks_depend_on_sizes_alone() -> None:
    """So that a captured graph holds for any routing."""
    spread = [torch.arange(64) % 8, torch.zeros(64, dtype=torch.int64), torch.randint(0, 8, (64,))]
    assert len({route(experts, 8, 16).rows.shape for experts in spread}) == 1


def test_experts_that_differ_are_not_stacked() -> None:
    """By groups, or by outputs."""
    for sizes in ([(64, 64), (64, 128)], [(64, 64), (60, 64)]):
        assert stack_tiles([pack_tiles(random_weight(rows, 128, group)) for rows, group in sizes]) is None


@computes
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize(("n_tokens", "per_token", "bits"), [(1, 2, 4), (3, 2, 3), (APART, 3, 4), (40, 2, 8)])
def test_products_match_float64(
    n_tokens: int, per_token: int, bits: int, symmetric: bool, nan_filled_outputs: None
) -> None:
    weights = [random_weight(72, 96, 32, symmetric, bits, seed=n) for n in range(5)]
    stack = stack_tiles([pack_tiles(weight.to(DEVICE)) for weight in weights])
    assert stack is not None
    x = random_tokens(n_tokens, 96, torch.float16)
    bias = random_tokens(5, 72, torch.float16)
    experts = torch.randint(0, 4, (n_tokens * per_token,), generator=torch.Generator().manual_seed(1))
    routing = route(experts.to(DEVICE), 5, block_for(len(experts), 5, torch.device(DEVICE)))
    y = matmul_experts(x.to(DEVICE), stack, routing, bias.to(DEVICE))
    expected = torch.stack([truth(x[row // per_token], weights[e], bias[e]) for row, e in enumerate(experts.tolist())])
    assert relative_error(y, expected) < TOLERANCE[torch.float16]
