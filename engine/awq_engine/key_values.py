"""The keys and values of one decoder block, of every token read so far: in floats, or in bytes where that is wanted.

In bytes a head's key or value of one token has one step, its largest channel over 127. That takes half the memory of
16-bit floats and a quarter of 32-bit ones; what attention looks at is made floats again, a block at a time.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from awq_engine.steps import HeadNorms, Place, Steps

KvCache = Literal["float", "int8"]
LEVELS = 127
SMALLEST = 1e-6
"""Of a step: a head of zeros stays one. A normal number in float16."""


class KeyValues:
    """In floats."""

    kept: ClassVar[KvCache] = "float"

    def __init__(self, heads: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        """`heads` of keys and as many of values, of `width` channels; room for no token yet."""
        self._floats = torch.empty(2, heads, 0, width, dtype=dtype, device=device)

    def grow(self, capacity: int) -> None:
        """Make room for so many tokens, at least as many as before."""
        self._floats = _grown(self._floats, capacity)

    def take(
        self,
        steps: Steps,
        heads: torch.Tensor,
        norms: HeadNorms | None,
        where: Place,
        rotation: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Turned queries [n, queries, width] of `heads` [n, queries + keys + values, width]; the rest goes `where`."""
        return steps.turn(heads, norms, self._floats, where, *rotation)

    def read(self, first: int, stop: int) -> torch.Tensor:
        """Keys and values of the tokens from `first` to before `stop`, [2, heads, tokens, width]."""
        return self._floats[:, :, first:stop]


class ByteKeyValues(KeyValues):
    """In bytes."""

    kept: ClassVar[KvCache] = "int8"

    def __init__(self, heads: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(heads, width, dtype, device)
        self._bytes = torch.empty(2, heads, 0, width, dtype=torch.int8, device=device)
        self._steps = torch.empty(2, heads, 0, 1, dtype=dtype, device=device)

    def grow(self, capacity: int) -> None:
        self._bytes, self._steps = _grown(self._bytes, capacity), _grown(self._steps, capacity)

    def take(
        self,
        steps: Steps,
        heads: torch.Tensor,
        norms: HeadNorms | None,
        where: Place,
        rotation: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        n, (_, kv_heads, _, width) = len(heads), self._bytes.shape
        floats = heads.new_empty(2, kv_heads, n, width)
        queries = steps.turn(heads, norms, floats, slice(0, n), *rotation)
        step = (floats.abs().amax(-1, keepdim=True) / LEVELS).clamp(min=SMALLEST)
        self._bytes[:, :, where] = (floats / step).round().clamp(-LEVELS, LEVELS).to(torch.int8)
        self._steps[:, :, where] = step
        return queries

    def read(self, first: int, stop: int) -> torch.Tensor:
        return self._bytes[:, :, first:stop] * self._steps[:, :, first:stop]


def _grown(tensor: torch.Tensor, capacity: int) -> torch.Tensor:
    """The same with room for `capacity` in its third dimension."""
    new = tensor.new_zeros(*tensor.shape[:2], capacity, tensor.shape[3])
    new[:, :, : tensor.shape[2]] = tensor
    return new
