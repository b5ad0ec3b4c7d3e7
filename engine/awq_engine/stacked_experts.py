"""The experts of a mixture multiplied together on a GPU, instead of one after the other.

transformers' own loop asks the device which experts were chosen and calls their linears one by one: dozens of launches
for a token, and a wait in each block. Here all experts' weights lie in a row and one launch multiplies every token with
the experts it goes to (`awq_kernels.experts`). Gate, activation and norm around the products are transformers' own.

Only mixtures under transformers' interface for experts are taken, and only where a few tokens give what its own loop
gives; all others stay as they are. The linears stay too, reading the same memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from awq_engine.experts import FusedWeight
from awq_engine.linear import QuantizedLinear
from awq_kernels.dispatch import join
from awq_kernels.launches import Launches
from awq_kernels.tiles import PlaneTiles

CHECKED_TOKENS, CHECKED_CHOICES = 3, 2
TOLERANCE = 1e-2
"""Largest relative difference from transformers' loop that 16-bit rounding explains."""
Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Stack:
    """One of the products that every expert has."""

    tiles: PlaneTiles
    """Of all experts in a row; `out_features` is one expert's."""
    bias: torch.Tensor | None
    """[n_experts, out_features]."""
    n_experts: int
    alternating: int
    """How many linears' outputs alternate; 1 where they follow each other."""
    launches: Launches | None

    def __call__(self, x: torch.Tensor, routing: Any) -> torch.Tensor:
        """[n_rows, out_features] for x [n_tokens, in_features], see `matmul_experts`."""
        from awq_kernels.experts import matmul_experts

        y = matmul_experts(x.contiguous(), self.tiles, routing, self.bias, self.launches)
        return y if self.alternating == 1 else y.unflatten(1, (self.alternating, -1)).transpose(1, 2).flatten(1)


def stack_experts(model: nn.Module) -> int:
    """Let every mixture of `model` that can multiply its experts together; returns how many could."""
    return sum(_stack(module) for module in list(model.modules()) if hasattr(module, "_apply_gate"))


@torch.inference_mode()
def _stack(module: Any) -> bool:
    """Replace the forward of one mixture, if that is right for it."""
    fused = [value for value in vars(module).values() if isinstance(value, FusedWeight)]
    stacks = [stack for weight in fused if (stack := _read(weight)) is not None]
    if len(fused) != 2 or len(stacks) != 2 or len(fused[0].names) != (2 if module.has_gate else 1):
        return False
    forward = partial(_forward, module, *stacks)
    if not _agrees(module, forward, stacks[0]):
        return False
    module.forward = forward
    return True


def _read(weight: FusedWeight) -> Stack | None:
    """All experts' linears of one product, joined; None where they are not alike or do not fill their tiles."""
    n_experts = weight.shape[0]
    linears = [weight.owner.get_submodule(f"{expert}.{name}") for expert in range(n_experts) for name in weight.names]
    quantized = [linear for linear in linears if isinstance(linear, QuantizedLinear)]
    if len(quantized) != len(linears) or (joined := join([linear.prepared for linear in quantized])) is None:
        return None
    whole, parts = joined
    if not isinstance(whole.packed, PlaneTiles):
        return None
    for linear, part in zip(quantized, parts, strict=True):
        linear.prepared = part
    biases = [linear.bias for linear in quantized if linear.bias is not None]
    return Stack(
        tiles=replace(whole.packed, out_features=whole.out_features // n_experts),
        bias=torch.cat(biases).view(n_experts, -1) if biases else None,
        n_experts=n_experts,
        alternating=len(weight.names) if weight.interleaved else 1,
        launches=whole.launches,
    )


def _forward(
    module: Any, up: Stack, down: Stack, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """hidden [n_tokens, width], chosen and weights [n_tokens, experts per token], to [n_tokens, width]."""
    from awq_kernels.experts import block_for, route

    rows = chosen.reshape(-1)
    routing = route(rows, up.n_experts, block_for(len(rows), up.n_experts, hidden.device))
    x = up(hidden, routing)
    x = down(module._apply_gate(x) if module.has_gate else module.act_fn(x), routing)
    if module.has_post_expert_norm:
        x = module.post_expert_norm(x)
    return (x * weights.reshape(-1, 1)).view(*chosen.shape, -1).sum(dim=1).to(hidden.dtype)


def _agrees(module: Any, forward: Forward, up: Stack) -> bool:
    """Whether a few tokens come out as transformers' own loop has them."""
    generator = torch.Generator().manual_seed(0)
    device, dtype = up.tiles.words.device, _dtype(module)
    hidden = torch.randn(CHECKED_TOKENS, up.tiles.in_features, generator=generator).to(device, dtype)
    chosen = torch.rand(CHECKED_TOKENS, up.n_experts, generator=generator).argsort(1)[:, :CHECKED_CHOICES].to(device)
    weights = torch.rand(chosen.shape, generator=generator).to(device, dtype)
    expected = module(hidden, chosen, weights).float()
    found = forward(hidden, chosen, weights).float()
    return bool((found - expected).norm() <= TOLERANCE * expected.norm())


def _dtype(module: nn.Module) -> torch.dtype:
    """Of the activations: that of what is not quantized nearby, float16 where all is."""
    floats = [tensor.dtype for tensor in [*module.parameters(), *module.buffers()] if tensor.is_floating_point()]
    return floats[0] if floats else torch.float16
