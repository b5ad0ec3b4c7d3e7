"""What a decoder block does between its products, in two ways: in plain torch, and in few launches on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import SiLUActivation

Place = slice | torch.Tensor
"""Where tokens go in a cache: consecutive places, or int64 [n]."""


@dataclass(frozen=True)
class Norm:
    """Root mean square norm."""

    weight: torch.Tensor
    """[width]."""
    epsilon: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


@dataclass(frozen=True)
class HeadNorms:
    """Root mean square norms of queries and of keys, head by head."""

    gains: torch.Tensor
    """[2, head_dim]."""
    epsilons: tuple[float, float]

    def __call__(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """[n, queries, head_dim] and [n, keys, head_dim] to both in a row."""
        shape, (first, second) = self.gains.shape[1:], self.epsilons
        normed = F.rms_norm(queries, shape, self.gains[0], first), F.rms_norm(keys, shape, self.gains[1], second)
        return torch.cat(normed, dim=1)


class Steps:
    """The operations in plain torch, on any device and in transformers' order; tensors of one dtype, [n, ...] for n
    tokens."""

    def add_norm(self, x: torch.Tensor, delta: torch.Tensor | None, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
        """`x + delta`, or `x` when there is nothing to add, and its norm; each [n, hidden]."""
        x = x if delta is None else x + delta
        return x, norm(x)

    def turn(
        self,
        heads: torch.Tensor,
        norms: HeadNorms | None,
        cache: torch.Tensor,
        where: Place,
        cos: torch.Tensor,
        signed_sin: torch.Tensor,
    ) -> torch.Tensor:
        """Queries [n, queries, head_dim] turned by position; keys, turned too, and values go into the cache.

        Args:
            heads: [n, queries + keys + values, head_dim].
            norms: of queries and keys before they are turned.
            cache: [2, keys, capacity, head_dim].
            cos, signed_sin: [n, 1, head_dim]; the sines of the first half negative.
        """
        n_keys = cache.shape[1]
        n_queries = heads.shape[1] - 2 * n_keys
        turned, values = heads.split([n_queries + n_keys, n_keys], dim=1)
        if norms is not None:
            turned = norms(*turned.split([n_queries, n_keys], dim=1))
        turned = _rotate(turned, cos, signed_sin)
        cache[0, :, where] = turned[:, n_queries:].transpose(0, 1)
        cache[1, :, where] = values.transpose(0, 1)
        return turned[:, :n_queries]

    def gate(self, gate_up: torch.Tensor, activation: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """The first half of [n, 2 * width] through `activation`, times the second."""
        gate, up = gate_up.chunk(2, dim=-1)
        return activation(gate) * up


class TritonSteps(Steps):
    """A launch for each, rounded once; activations other than silu stay with torch."""

    def add_norm(self, x: torch.Tensor, delta: torch.Tensor | None, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
        from awq_kernels import between

        return between.add_norm(x.contiguous(), delta, norm.weight, norm.epsilon)

    def turn(
        self,
        heads: torch.Tensor,
        norms: HeadNorms | None,
        cache: torch.Tensor,
        where: Place,
        cos: torch.Tensor,
        signed_sin: torch.Tensor,
    ) -> torch.Tensor:
        from awq_kernels import between

        places = torch.arange(where.start, where.stop, device=heads.device) if isinstance(where, slice) else where
        gains = None if norms is None else (norms.gains, *norms.epsilons)
        return between.turn(heads.contiguous(), cache, places, cos, signed_sin, gains)

    def gate(self, gate_up: torch.Tensor, activation: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        if not isinstance(activation, nn.SiLU | SiLUActivation):
            return super().gate(gate_up, activation)
        from awq_kernels import between

        return between.gate(gate_up.contiguous())


def _rotate(x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    """`x` [n, heads, head_dim] turned by position: RoFormer (arXiv:2104.09864), with the two halves as pairs."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), signed_sin)
