"""Products with the experts of a mixture: one launch for all of them, without asking the device what was routed where.

A row is one token at one of its experts. Rows are sorted by expert and cut into blocks of one expert each, padded with
rows that do not exist; there are as many blocks as there could be at most, those left over have no expert. So sizes
depend on shapes alone, and a step can be captured in a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from awq_kernels.launches import Launches, device_of, token_block
from awq_kernels.product import launch_product
from awq_kernels.tiles import TILE_OUT, PlaneTiles, join_tiles

APART = 16
"""Up to so many rows each gets a block of its own: sorting them takes longer than reading an expert twice."""


@dataclass(frozen=True)
class Routing:
    """Blocks of rows, each with its expert."""

    rows: torch.Tensor
    """int32 [blocks, block]: row numbers; the number of rows where there is none."""
    experts: torch.Tensor
    """int32 [blocks]: -1 for blocks without rows."""
    n_rows: int


def stack_tiles(experts: Sequence[PlaneTiles]) -> PlaneTiles | None:
    """The tiles of all experts in a row, or None when they do not have the same shape, bits and groups.

    `out_features` stays that of one expert. Outputs that do not fill their last tile are padded there.
    """
    out_features = experts[0].out_features
    if any(expert.out_features != out_features for expert in experts):
        return None
    whole = [replace(expert, out_features=len(expert.words) * TILE_OUT) for expert in experts]
    joined = join_tiles(whole)
    return None if joined is None else replace(joined, out_features=out_features)


def route(experts: torch.Tensor, n_experts: int, block: int) -> Routing:
    """Blocks for rows that go to `experts` (int [n_rows], each below `n_experts`), no matter how they are spread."""
    n_rows = len(experts)
    if n_rows <= APART:
        rows = experts.new_full((n_rows, block), n_rows, dtype=torch.int32)
        rows[:, 0] = torch.arange(n_rows, device=experts.device)
        return Routing(rows, experts.to(torch.int32), n_rows)
    order = experts.argsort(stable=True)
    counts = torch.zeros(n_experts, dtype=torch.int64, device=experts.device)
    counts.scatter_add_(0, experts.long(), torch.ones_like(order))
    ends = ((counts + block - 1) // block).cumsum(0)  # of the experts' blocks
    n_blocks = min(n_rows, n_rows // block + min(n_experts, n_rows))
    of_block = torch.searchsorted(ends, torch.arange(n_blocks, device=experts.device), right=True)
    sorted_experts = experts.long()[order]
    within = torch.arange(n_rows, device=experts.device) - (counts.cumsum(0) - counts)[sorted_experts]
    first_block = ends - (counts + block - 1) // block
    rows = experts.new_full((n_blocks * block,), n_rows, dtype=torch.int32)
    rows[first_block[sorted_experts] * block + within] = order.to(torch.int32)
    of_block = torch.where(of_block < n_experts, of_block, -1).to(torch.int32)
    return Routing(rows.view(n_blocks, block), of_block, n_rows)


def block_for(n_rows: int, n_experts: int, device: torch.device) -> int:
    """Rows to a block: as many as an expert has on average, at least what the tensor cores take."""
    return token_block(1 if n_rows <= APART else -(-n_rows // n_experts), device_of(device))


def matmul_experts(
    x: torch.Tensor,
    stack: PlaneTiles,
    routing: Routing,
    bias: torch.Tensor | None = None,
    launches: Launches | None = None,
) -> torch.Tensor:
    """Every row's input times its expert's weight.

    Args:
        x: float16 or bfloat16 [n_tokens, in_features] and contiguous; n_rows is a multiple of n_tokens, and a token's
            rows follow each other.
        stack: from `stack_tiles`.
        bias: [n_experts, out_features] or None.
    Returns:
        [n_rows, out_features] in the dtype of `x`.
    """
    y = torch.empty(routing.n_rows, stack.out_features, dtype=x.dtype, device=x.device)
    if routing.n_rows:
        launch = (launches or Launches()).pick(stack, routing.rows.shape[1], x.dtype)
        blocks, per_token = len(routing.experts), routing.n_rows // len(x)
        launch_product(x, stack, bias, y, launch, blocks, per_token, routing.rows, routing.experts)
    return y
