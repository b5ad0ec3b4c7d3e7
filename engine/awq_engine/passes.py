"""The calibration tokens' way through one block, batch by batch, here or in several processes.

What a pass is for is a function of one batch. Where results are sums, each batch's part is added in the order of the
batches, and a part is the same number whether it is made here or elsewhere: so are the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import nn

from awq_engine.capture import BlockInputs
from awq_engine.carried import Carried
from awq_engine.originals import Originals
from awq_engine.workers import Workers

R = TypeVar("R")


class Sums(Protocol):
    """What batches add to."""

    def merge(self, other: Self) -> None:
        """Add what another one has gathered."""
        ...


S = TypeVar("S", bound=Sums)


@dataclass(frozen=True)
class Batch:
    """One batch at one block."""

    number: int
    block: nn.Module
    index: int
    inputs: BlockInputs
    """Of this batch alone: what the block reads now."""
    original: BlockInputs | None
    """What the original block read, where that is asked for."""
    originals: Originals | None

    def linear(self, name: str) -> nn.Linear:
        """One of the block's linears, by its name inside the block."""
        linear = self.block.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        return linear

    def output(self) -> torch.Tensor:
        """The block's output as it is now, float32 [batch, seq, hidden_size]."""
        return self.inputs.output(self.block, self.index, 0)

    def original_output(self) -> torch.Tensor:
        """The original block's output on what it read."""
        assert self.originals is not None
        assert self.original is not None
        with self.originals.computing():
            return self.original.output(self.block, self.index, 0)

    def token_weights(self) -> torch.Tensor | None:
        """How much each token counts, float32 [batch, seq]; None when all count the same."""
        return self.inputs.token_weights()


@dataclass(frozen=True)
class Passes:
    """All batches of a stream at one block."""

    workers: Workers
    block: nn.Module
    index: int
    inputs: BlockInputs
    original: BlockInputs | None = None
    originals: Originals | None = None

    def each(self, read: Callable[[Batch], R], final: bool = False) -> Iterator[R]:
        """What `read` makes of every batch, in order; `final` when later blocks are to go on from here."""
        task = _Task(self.block, self.index, self.originals, read)
        pieces = (self._piece(number) for number in range(len(self.inputs)))
        for number, (result, left) in enumerate(self.workers.map(task, pieces)):
            for stream, carried in zip((self.inputs, self.original), left, strict=True):
                if stream is not None and stream.handover is not None and carried is not None:
                    stream.handover.leave(number, carried, final)
            yield result

    def add_up(self, read: Callable[[Batch, S], object], total: S) -> S:
        """`total`, to which `read` has added every batch."""
        if self.workers.away:
            for part in self.each(_Part(read, type(total))):
                total.merge(part)
        else:
            for _ in self.each(lambda batch: read(batch, total)):
                pass
        return total

    def outputs(self, final: bool = False) -> Iterator[torch.Tensor]:
        """The block's output for each batch, in order."""
        return self.each(Batch.output, final)

    def advance(self) -> None:
        """Replace the hidden states by the block's outputs."""
        for number, output in enumerate(self.outputs(final=True)):
            self.inputs.hidden[number] = output

    def _piece(self, number: int) -> tuple[int, BlockInputs, BlockInputs | None]:
        original = None if self.original is None else self.original.alone(self.index, number)
        return number, self.inputs.alone(self.index, number), original


@dataclass(frozen=True)
class _Part(Generic[S]):
    """What one batch adds to nothing."""

    read: Callable[[Batch, S], object]
    nothing: Callable[[], S]

    def __call__(self, batch: Batch) -> S:
        sums = self.nothing()
        self.read(batch, sums)
        return sums


_Left = tuple[Carried | None, Carried | None]
"""What the block left to later ones in each stream."""


@dataclass(frozen=True)
class _Task(Generic[R]):
    """One batch after the other through one block."""

    block: nn.Module
    index: int
    originals: Originals | None
    read: Callable[[Batch], R]

    def __call__(self, piece: tuple[int, BlockInputs, BlockInputs | None]) -> tuple[R, _Left]:
        number, inputs, original = piece
        result = self.read(Batch(number, self.block, self.index, inputs, original, self.originals))
        return result, (_left(inputs), _left(original))


def _left(stream: BlockInputs | None) -> Carried | None:
    return None if stream is None or stream.handover is None else stream.handover.left(0)
