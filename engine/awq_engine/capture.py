"""What each decoder block is called with: the hidden states that enter the first, and every block's other arguments.

The model runs once per batch with its blocks replaced by recorders that pass hidden states through untouched, so masks,
rotary embeddings and whatever else an architecture hands its blocks are caught without knowing the architecture and
without loading a block. Arguments are shared between blocks and batches where they are equal.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from awq_engine.carried import Carried, Handover, Linker, Mapping, Returned
from awq_engine.errors import BadInputError
from awq_engine.skeleton import Skeleton
from awq_engine.spill import Batches, NewBatches, copied


@dataclass(frozen=True)
class BlockCall:
    """The arguments of one block call, but for the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    hidden_keyword: str | None
    """Name under which the hidden states are passed, or None when they come first."""

    @property
    def carries(self) -> bool:
        """Whether an argument depends on the blocks before."""
        return any(isinstance(value, Mapping | Returned) for value in (*self.args, *self.kwargs.values()))

    def run(self, block: nn.Module, hidden: torch.Tensor, carried: Carried) -> tuple[torch.Tensor, Carried]:
        """The block's output hidden states, shaped as `hidden` [batch, seq, hidden_size], and what it hands on."""
        args = [carried.fill(value) for value in self.args]
        kwargs = {name: carried.fill(value) for name, value in self.kwargs.items()}
        if self.hidden_keyword is None:
            output = block(hidden, *args, **kwargs)
        else:
            output = block(*args, **{self.hidden_keyword: hidden}, **kwargs)
        if isinstance(output, torch.Tensor):
            return output, carried
        return output[0], Carried(carried.mappings, tuple(output[1:]))


@dataclass(frozen=True)
class NoCall(BlockCall):
    """A block that text does not run through, such as one for pictures."""

    def run(self, block: nn.Module, hidden: torch.Tensor, carried: Carried) -> tuple[torch.Tensor, Carried]:
        """Everything as it came."""
        return hidden, carried


class PassStoppedError(Exception):
    """Ends a pass early: what was wanted has been seen."""


@dataclass
class BlockInputs:
    """Batches of hidden states on their way through the blocks."""

    hidden: Batches
    """float32 [batch, seq, hidden_size] each."""
    calls: list[list[BlockCall]] = field(repr=False)
    """By block, then by batch."""
    device: torch.device
    """Where blocks run; hidden states wait in host memory."""
    weights: list[torch.Tensor] | None = field(default=None, repr=False)
    """How much each token counts, float32 [batch, seq] each; None when all count the same."""
    handover: Handover | None = field(default=None, repr=False)
    """What blocks hand on beside the hidden states; None when that is nothing."""
    store: NewBatches = field(default=list, repr=False)
    """Where hidden states are kept."""
    _running: int = field(default=0, init=False, repr=False)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.calls[0])

    def output(self, block: nn.Module, index: int, batch: int, final: bool = False) -> torch.Tensor:
        """The block's output for one batch; `final` when later blocks are to go on from here."""
        self._running = batch
        hidden, call = self.hidden[batch], self.calls[index][batch]
        if self.handover is None:
            return call.run(block, hidden.to(self.device), Carried())[0].to(hidden.device)
        carried = self.handover.entering(index, batch).to(self.device)
        output, carried = call.run(block, hidden.to(self.device), carried)
        self.handover.leave(batch, carried.to(hidden.device), final)
        return output.to(hidden.device)

    def handed_on(self, block: nn.Module, index: int) -> torch.Tensor:
        """Everything that later blocks get from this one for the first batch, as one float32 vector."""
        carried = Carried() if self.handover is None else self.handover.entering(index, 0).to(self.device)
        output, carried = self.calls[index][0].run(block, self.hidden[0].to(self.device), carried)
        handed = carried.tensors() if self.handover is not None else []
        return torch.cat([tensor.float().flatten() for tensor in (output, *handed)])

    def read(self, batch: int) -> torch.Tensor:
        """The hidden states of one batch, whose weights `token_weights` gives from now on."""
        self._running = batch
        return self.hidden[batch]

    def outputs(self, block: nn.Module, index: int) -> Iterator[torch.Tensor]:
        """The block's output for each batch, in order."""
        for batch in range(len(self)):
            yield self.output(block, index, batch)

    def token_weights(self) -> torch.Tensor | None:
        """The weights of the batch that `outputs` runs now, float32 [batch, seq]."""
        return None if self.weights is None else self.weights[self._running]

    def alone(self, index: int, batch: int) -> BlockInputs:
        """One batch at block `index` without the others; shares memory."""
        weights = None if self.weights is None else [self.weights[batch]]
        handover = None if self.handover is None else Handover([self.handover.entering(index, batch)], index)
        calls = [[self.calls[index][batch]]] * (index + 1)
        return BlockInputs([self.hidden[batch]], calls, self.device, weights, handover)

    def advance(self, block: nn.Module, index: int) -> None:
        """Replace the hidden states by the block's outputs."""
        for batch in range(len(self)):
            self.hidden[batch] = self.output(block, index, batch, final=True)

    def fork(self) -> BlockInputs:
        """The same hidden states, to go another way from here on."""
        handover = None if self.handover is None else self.handover.fork()
        hidden = copied(self.hidden, self.store)
        return BlockInputs(hidden, self.calls, self.device, self.weights, handover, self.store)

    def first(self, n_tokens: int) -> BlockInputs:
        """As many leading batches as hold `n_tokens`, at least one; shares memory."""
        count, total = 0, 0
        while count < len(self) and (count == 0 or total < n_tokens):
            total += self.hidden[count].shape[0] * self.hidden[count].shape[1]
            count += 1
        calls = [calls[:count] for calls in self.calls]
        return BlockInputs(self.hidden, calls, self.device, self.weights, self.handover, self.store)


@torch.no_grad()
def capture_inputs(
    skeleton: Skeleton,
    batches: Sequence[torch.Tensor],
    progress: Callable[[int, int], None] = lambda done, total: None,
    store: NewBatches = list,
) -> BlockInputs:
    """Catch the first block's input and every block's arguments for each batch of token ids (int64 [batch, seq]).

    Raises `BadInputError` when the architecture does not simply hand hidden states from block to block.
    """
    hidden = store()
    calls: list[list[BlockCall]] = [[] for _ in skeleton.blocks]
    entering: list[Carried] = []
    shared = _Shared()
    with skeleton.loaded_outer() as model:
        tail = _output_tail(skeleton, batches[0][:1, :8])
        for done, batch in enumerate(batches):
            recorder = _Recorder(tail)
            with recorder.installed(skeleton.blocks):
                model.base_model(input_ids=batch.to(skeleton.device), use_cache=False)
            first, batch_calls, carried = recorder.result(len(skeleton.blocks), shared)
            hidden.append(first.cpu())
            entering.append(carried)
            for block_calls, call in zip(calls, batch_calls, strict=True):
                block_calls.append(call)
            progress(done + 1, len(batches))
    handover = Handover(entering) if any(call.carries for block_calls in calls for call in block_calls) else None
    return BlockInputs(hidden, calls, skeleton.device, handover=handover, store=store)


@contextlib.contextmanager
def loaded_head(
    skeleton: Skeleton, ids: torch.Tensor
) -> Iterator[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    """A function from token ids, int64 [batch, seq], and what left the last block for them to the model's logits.

    Args:
        ids: any tokens, to see by what blocks return.
    """
    with skeleton.loaded_outer(head=True) as model:
        recorder = _Recorder(_output_tail(skeleton, ids[:1, :8]))

        def logits(ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            recorder.replacement = hidden.to(skeleton.device)
            return model(input_ids=ids.to(skeleton.device), use_cache=False).logits.float()

        with recorder.installed(skeleton.blocks):
            yield logits


@contextlib.contextmanager
def loaded_tail(
    skeleton: Skeleton, ids: torch.Tensor
) -> Iterator[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    """As `loaded_head`, but to what the head, which there must be, reads: float32 [batch * seq, hidden_size]."""
    caught: list[torch.Tensor] = []

    def catch(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        caught.append(inputs[0].reshape(-1, inputs[0].shape[-1]).float())
        raise PassStoppedError

    head: nn.Module = skeleton.model.get_output_embeddings()  # pyright: ignore[reportAssignmentType]
    with loaded_head(skeleton, ids) as logits:

        def read(ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            with contextlib.suppress(PassStoppedError):
                logits(ids, hidden)
            if not caught:
                raise BadInputError("This architecture does not call its output head, which cannot be quantized.")
            return caught.pop()

        handle = head.register_forward_pre_hook(catch)
        try:
            yield read
        finally:
            handle.remove()


@torch.no_grad()
def finish_forward(skeleton: Skeleton, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """The model's logits, float32 [batch, seq, vocabulary] in host memory, when its last block returned `hidden`."""
    with loaded_head(skeleton, ids) as logits:
        return logits(ids, hidden).cpu()


class _Shared:
    """Equal tensors, once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], torch.Tensor] = {}
        self._seen: dict[int, torch.Tensor] = {}
        """Of one pass, whose tensors live as long: identity -> what stands for it."""

    def next_pass(self) -> None:
        """Forget the identities of tensors that may be gone."""
        self._seen.clear()

    def __call__(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, tuple | list):
            return type(value)(self(item) for item in value)
        return value

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in self._seen:
            self._seen[id(tensor)] = self._equal(tensor)
        return self._seen[id(tensor)]

    def _equal(self, tensor: torch.Tensor) -> torch.Tensor:
        digest = hashlib.sha256(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data).digest()
        return self._known.setdefault((digest, tensor.shape, tensor.dtype, tensor.device), tensor)


class _Recorder:
    """Stands in for every block's forward during one pass."""

    def __init__(self, tail: tuple[Any, ...] | None) -> None:
        """`tail` follows the hidden states in a block's return value."""
        self._linker = Linker(tail)
        self.replacement: torch.Tensor | None = None
        """Returned in the hidden states' stead."""
        self._hidden: torch.Tensor | None = None
        self._calls: dict[int, BlockCall] = {}
        self._last: tuple[int, tuple[int, torch.Size, int]] | None = None
        """The block called last, and what tells whether its output reaches the next one as it is."""

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
            keyword = None if args else _hidden_keyword(kwargs)
            hidden = args[0] if keyword is None else kwargs.pop(keyword)
            if self.replacement is None:
                self._follow(index, hidden)
            linked = {name: self._linker.link(value) for name, value in kwargs.items()}
            self._calls[index] = BlockCall(tuple(map(self._linker.link, args[1:])), linked, keyword)
            output = hidden if self.replacement is None else self.replacement
            tail = self._linker.tail()
            return output if tail is None else (output, *tail)

        return forward

    def _follow(self, index: int, hidden: torch.Tensor) -> None:
        """Note one block's input, and refuse what is not handed from each block to the next untouched."""
        state = (hidden.data_ptr(), hidden.shape, hidden._version)
        if self._last is None:
            self._hidden = hidden.clone()
        elif index <= self._last[0]:
            raise BadInputError(
                f"This architecture runs decoder block {index} after block {self._last[0]}, so its blocks are no plain "
                "sequence; it is not supported."
            )
        elif state != self._last[1]:
            raise BadInputError(
                f"This architecture computes something between decoder blocks {self._last[0]} and {index}; "
                "it is not supported."
            )
        self._last = (index, state)

    def result(self, n_blocks: int, shared: _Shared) -> tuple[torch.Tensor, list[BlockCall], Carried]:
        """What enters the first block, the call of every block, and what else is carried into the first."""
        if self._hidden is None:
            raise BadInputError("This architecture calls none of its decoder blocks for text; it is not supported.")
        shared.next_pass()
        calls = [self._calls.get(index, NoCall((), {}, None)) for index in range(n_blocks)]
        kept = [type(c)(shared(c.args), {k: shared(v) for k, v in c.kwargs.items()}, c.hidden_keyword) for c in calls]
        return self._hidden, kept, self._linker.carried(shared)


def _hidden_keyword(kwargs: dict[str, Any]) -> str:
    """Which of a block's keyword arguments holds the hidden states."""
    tensors = [name for name, value in kwargs.items() if isinstance(value, torch.Tensor)]
    return "hidden_states" if "hidden_states" in tensors else tensors[0]


def _output_tail(skeleton: Skeleton, ids: torch.Tensor) -> tuple[Any, ...] | None:
    """What block 0 returns after the hidden states; None when it returns the bare tensor."""
    if skeleton.output_tail == ():
        output = _first_output(skeleton, ids)
        skeleton.output_tail = None if isinstance(output, torch.Tensor) else tuple(output[1:])
    return skeleton.output_tail


def _first_output(skeleton: Skeleton, ids: torch.Tensor) -> Any:
    """What block 0 returns for some tokens."""
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
    if not seen:
        raise BadInputError("This architecture does not call its first decoder block for text; it is not supported.")
    return seen[0]
