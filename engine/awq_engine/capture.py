"""What each decoder block is called with: the hidden states that enter the first, and every block's other arguments.

The model runs once per batch with its blocks replaced by recorders that pass hidden states through untouched, so masks,
rotary embeddings and whatever else an architecture hands its blocks are caught without knowing the architecture and
without loading a block. Arguments are shared between blocks and batches where they are equal.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from awq_engine.errors import BadInputError
from awq_engine.skeleton import Skeleton


@dataclass(frozen=True)
class BlockCall:
    """The arguments of one block call, but for the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    hidden_keyword: str | None
    """Name under which the hidden states are passed, or None when they come first."""

    def run(self, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """The block's output hidden states, the same shape as `hidden` [batch, seq, hidden_size]."""
        if self.hidden_keyword is None:
            output = block(hidden, *self.args, **self.kwargs)
        else:
            output = block(*self.args, **{self.hidden_keyword: hidden}, **self.kwargs)
        return output if isinstance(output, torch.Tensor) else output[0]


class PassStoppedError(Exception):
    """Ends a pass early: what was wanted has been seen."""


@dataclass
class BlockInputs:
    """Batches of hidden states on their way through the blocks."""

    hidden: list[torch.Tensor]
    """float32 [batch, seq, hidden_size] each."""
    calls: list[list[BlockCall]] = field(repr=False)
    """By block, then by batch."""
    device: torch.device
    """Where blocks run; hidden states wait in host memory."""
    weights: list[torch.Tensor] | None = field(default=None, repr=False)
    """How much each token counts, float32 [batch, seq] each; None when all count the same."""
    _running: int = field(default=0, init=False, repr=False)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.calls[0])

    def output(self, block: nn.Module, index: int, batch: int) -> torch.Tensor:
        """The block's output for one batch."""
        self._running = batch
        hidden = self.hidden[batch]
        return self.calls[index][batch].run(block, hidden.to(self.device)).to(hidden.device)

    def outputs(self, block: nn.Module, index: int) -> Iterator[torch.Tensor]:
        """The block's output for each batch, in order."""
        for batch in range(len(self)):
            yield self.output(block, index, batch)

    def token_weights(self) -> torch.Tensor | None:
        """The weights of the batch that `outputs` runs now, float32 [batch, seq]."""
        return None if self.weights is None else self.weights[self._running]

    def advance(self, block: nn.Module, index: int) -> None:
        """Replace the hidden states by the block's outputs."""
        for batch, output in enumerate(self.outputs(block, index)):
            self.hidden[batch] = output

    def first(self, n_tokens: int) -> BlockInputs:
        """As many leading batches as hold `n_tokens`, at least one; shares memory."""
        count, total = 0, 0
        while count < len(self) and (count == 0 or total < n_tokens):
            total += self.hidden[count].shape[0] * self.hidden[count].shape[1]
            count += 1
        return BlockInputs(self.hidden, [calls[:count] for calls in self.calls], self.device, self.weights)


@torch.no_grad()
def capture_inputs(
    skeleton: Skeleton, batches: Sequence[torch.Tensor], progress: Callable[[int, int], None] = lambda done, total: None
) -> BlockInputs:
    """Catch the first block's input and every block's arguments for each batch of token ids (int64 [batch, seq]).

    Raises `BadInputError` when the architecture does not simply hand hidden states from block to block.
    """
    hidden: list[torch.Tensor] = []
    calls: list[list[BlockCall]] = [[] for _ in skeleton.blocks]
    shared = _Shared()
    with skeleton.loaded_outer() as model:
        tail = _output_tail(skeleton, batches[0][:1, :8])
        for done, batch in enumerate(batches):
            recorder = _Recorder(tail)
            with recorder.installed(skeleton.blocks):
                model.base_model(input_ids=batch.to(skeleton.device), use_cache=False)
            first, batch_calls = recorder.result(len(skeleton.blocks), shared)
            hidden.append(first.cpu())
            for block_calls, call in zip(calls, batch_calls, strict=True):
                block_calls.append(call)
            progress(done + 1, len(batches))
    return BlockInputs(hidden, calls, skeleton.device)


@torch.no_grad()
def finish_forward(skeleton: Skeleton, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """The model's logits, float32 [batch, seq, vocabulary] in host memory, when its last block returned `hidden`."""
    with skeleton.loaded_outer() as model:
        recorder = _Recorder(_output_tail(skeleton, ids[:1, :8]), hidden.to(skeleton.device))
        with recorder.installed(skeleton.blocks):
            return model(input_ids=ids.to(skeleton.device), use_cache=False).logits.float().cpu()


class _Shared:
    """Equal tensors, once."""

    def __init__(self) -> None:
        self._known: list[torch.Tensor] = []

    def __call__(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, tuple | list):
            return type(value)(self(item) for item in value)
        return value

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        for known in self._known:
            if known.shape == tensor.shape and known.dtype == tensor.dtype and torch.equal(known, tensor):
                return known
        self._known.append(tensor)
        return tensor


class _Recorder:
    """Stands in for every block's forward during one pass."""

    def __init__(self, tail: tuple[Any, ...] | None, replacement: torch.Tensor | None = None) -> None:
        """`tail` follows the hidden states in a block's return value; `replacement` is returned in their stead."""
        self._tail = tail
        self._replacement = replacement
        self._seen: dict[int, tuple[torch.Tensor, BlockCall]] = {}

    @contextlib.contextmanager
    def installed(self, blocks: nn.ModuleList) -> Iterator[None]:
        for index, block in enumerate(blocks):
            block.forward = self._forward(index)
        try:
            yield
        finally:
            for block in blocks:
                del block.forward

    def _forward(self, index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            keyword = None if args else next((k for k, v in kwargs.items() if isinstance(v, torch.Tensor)), None)
            hidden = args[0] if args else kwargs.pop(keyword or "")
            self._seen[index] = (hidden, BlockCall(tuple(args[1:]), kwargs, keyword))
            output = hidden if self._replacement is None else self._replacement
            return output if self._tail is None else (output, *self._tail)

        return forward

    def result(self, n_blocks: int, shared: _Shared) -> tuple[torch.Tensor, list[BlockCall]]:
        if missing := [index for index in range(n_blocks) if index not in self._seen]:
            raise BadInputError(
                f"Decoder block {missing[0]} is never called by this architecture; it is not supported."
            )
        calls = [self._seen[index][1] for index in range(n_blocks)]
        kept = [BlockCall(shared(c.args), {k: shared(v) for k, v in c.kwargs.items()}, c.hidden_keyword) for c in calls]
        return self._seen[0][0], kept


def _output_tail(skeleton: Skeleton, ids: torch.Tensor) -> tuple[Any, ...] | None:
    """What block 0 returns after the hidden states; None when it returns the bare tensor."""
    seen: list[Any] = []

    def look(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(output)
        raise PassStoppedError

    with skeleton.loaded_block(0) as block:
        handle = block.register_forward_hook(look)
        try:
            skeleton.model.base_model(input_ids=ids.to(skeleton.device), use_cache=False)
        except PassStoppedError:
            pass
        finally:
            handle.remove()
    return None if isinstance(seen[0], torch.Tensor) else tuple(seen[0][1:])
