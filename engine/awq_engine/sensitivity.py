"""How much each output of a linear matters to what the model predicts: the second half of the price of an error.

Changing a weight by D changes its linear's outputs by D x. To second order the model's prediction then moves by

    E[(g . D x)^2] / 2  ~  tr(M D G D^T) / 2,     M = E[g g^T],  G = E[x x^T]

with g the gradient of the log-likelihood of a token drawn from the model's own prediction (so M is Fisher information;
the text's next token is not looked at), taken as independent of x (K-FAC, arXiv:1503.05671; for rounding: YAQA,
arXiv:2505.22988). The gradients are carried from the head down through the original blocks, one block in memory at a
time, and wait on disk until their block's turn comes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from awq_engine.capture import BlockCall, capture_inputs, loaded_head
from awq_engine.carried import Carried
from awq_engine.disk import check_disk
from awq_engine.errors import as_known_error, first_line
from awq_engine.passes import Passes
from awq_engine.recipe import OUTPUT_BLOCK, SENSITIVITY_TOKENS
from awq_engine.skeleton import Skeleton
from awq_engine.spill import Batches, NewBatches, SpilledBatches, copied
from awq_engine.storage import write_atomically
from awq_engine.workers import ALONE, Workers

HEAD_TOKENS = 256
"""Tokens that go through the head at once: bounds the memory of their logits."""


GRAM_BYTES = 1 << 28
"""Of outputs' Gram matrices that are taken in one pass."""


class NoGradientsError(Exception):
    """Gradients cannot be carried through a model; the message is the reason."""


class OutputGrams:
    """Diagonal blocks of E[g g^T] by linear, float32 [n, n], n <= `OUTPUT_BLOCK`; on disk until their linear's turn."""

    def __init__(self, folder: Path) -> None:
        self._stored = SpilledBatches(folder)
        self._places: dict[str, range] = {}

    def put(self, name: str, grams: list[torch.Tensor]) -> None:
        start = len(self._stored)
        for gram in grams:
            self._stored.append(gram.cpu())
        self._places[name] = range(start, len(self._stored))

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def get(self, name: str, device: torch.device) -> list[torch.Tensor]:
        return [self._stored[place].to(device) for place in self._places[name]]

    def drop(self, names: Iterable[str]) -> None:
        """Forget some linears'."""
        for name in names:
            self._places.pop(name, None)


_Sequence = tuple[torch.Tensor, torch.Tensor, BlockCall]
"""What enters a block, the gradient at what leaves it (float32 [1, seq, hidden] each), and how the block is called."""


@dataclass(frozen=True)
class Sensitivity:
    """The gradient at every block's output, sequence by sequence, and what the block was called with."""

    folder: Path
    calls: list[list[BlockCall]]
    """By block, then by sequence."""
    device: torch.device

    def output_grams(self, block: nn.Module, index: int, names: list[str], workers: Workers = ALONE) -> OutputGrams:
        """E[g g^T] of each linear's outputs in the original `block`; without those that have no part in its output.

        Of more linears than can be held in `GRAM_BYTES` some at a time.
        """
        kept = OutputGrams(self.folder)
        for some in _held_at_once(block, names):
            for name, grams in self._output_grams(block, index, some, workers).items():
                kept.put(name, grams)
        return kept

    def _output_grams(
        self, block: nn.Module, index: int, names: list[str], workers: Workers
    ) -> dict[str, list[torch.Tensor]]:
        found: dict[str, list[torch.Tensor]] = {}
        n_tokens = 0
        for tokens, grams in workers.map(_GramsOfOne(block, names), self._sequences(index)):
            n_tokens += tokens
            for name, parts in grams.items():
                for gram, part in zip(found.setdefault(name, [torch.zeros_like(p) for p in parts]), parts, strict=True):
                    gram += part
        return {name: [gram / n_tokens for gram in grams] for name, grams in found.items()}

    def linear_calls(
        self, block: nn.Module, index: int, names: list[str], limit: int
    ) -> tuple[list[tuple[str, torch.Tensor, torch.Tensor]], int]:
        """Every call of the linears in the original `block` by the leading sequences, of at most `limit` tokens.

        Returns:
            [(name, input float32 [tokens, in], gradient at the output float32 [tokens, out])], and the number of tokens
            that entered the block.
        """
        found: list[tuple[str, torch.Tensor, torch.Tensor]] = []
        n_tokens = 0
        for hidden, gradient, call in self._sequences(index):
            if n_tokens and n_tokens + hidden.shape[1] > limit:
                break
            n_tokens += hidden.shape[0] * hidden.shape[1]
            for name, x, g in _linear_calls(block, names, call, hidden, gradient):
                found.append((name, x.reshape(-1, x.shape[-1]).float(), g.reshape(-1, g.shape[-1]).float()))
        return found, n_tokens

    def _sequences(self, index: int) -> Iterator[_Sequence]:
        hidden, gradients = (file(self.folder, index) for file in (_hidden_file, _gradient_file))
        return zip(_load(hidden, self.device), _load(gradients, self.device), self.calls[index], strict=True)


def measure_sensitivity(
    skeleton: Skeleton, ids: torch.Tensor, folder: Path, seed: int, progress: Callable[[int, int], None],
    store: NewBatches = list, workers: Workers = ALONE,
) -> Sensitivity:  # fmt: skip
    """Carry gradients through the original model for the leading sequences of `ids` (int64 [samples, seq]).

    Args:
        folder: where they wait; gradients that are there already are not made again.
        progress: told (done, total) in block passes.
        store: where hidden states and gradients are kept on their way.
    Raises:
        NoGradientsError: they cannot be carried through this model; says why.
        ResourceError: the disk has no room for them.
    """
    try:
        return _carry_gradients(skeleton, ids, folder, seed, progress, store, workers)
    except RuntimeError as error:  # such as an operation without a derivative
        if as_known_error(error):
            raise
        raise NoGradientsError(first_line(error)) from error


def _carry_gradients(
    skeleton: Skeleton, ids: torch.Tensor, folder: Path, seed: int, progress: Callable[[int, int], None],
    store: NewBatches, workers: Workers,
) -> Sensitivity:  # fmt: skip
    ids = ids[: max(1, SENSITIVITY_TOKENS // ids.shape[1])]
    inputs = capture_inputs(skeleton, list(ids.split(1)), store=store)
    if inputs.handover is not None:
        raise NoGradientsError("its blocks hand on more than hidden states")
    n_blocks = len(skeleton.blocks)
    if not all(_gradient_file(folder, index).is_file() for index in range(n_blocks)):
        check_disk(folder, 4 * n_blocks * ids.numel() * inputs.hidden[0].shape[-1], "the prediction's gradients")
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(n_blocks):
            _save(_hidden_file(folder, index), inputs.hidden)
            with skeleton.loaded_block(index) as block:
                Passes(workers, block, index, inputs).advance()
            progress(index + 1, 2 * n_blocks)
        gradients = copied(_head_gradients(skeleton, ids, inputs.hidden, seed), store)
        inputs.hidden = store()
        for index in reversed(range(n_blocks)):
            _save(_gradient_file(folder, index), gradients)
            hidden = _load(_hidden_file(folder, index), skeleton.device)
            with skeleton.loaded_block(index) as block:
                sequences = zip(hidden, gradients, inputs.calls[index], strict=True)
                for number, gradient in enumerate(workers.map(_CarryThrough(block), sequences)):
                    gradients[number] = gradient
            progress(2 * n_blocks - index, 2 * n_blocks)
    return Sensitivity(folder, inputs.calls, skeleton.device)


def _hidden_file(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.hidden.safetensors"


def _gradient_file(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.gradient.safetensors"


def _save(path: Path, rows: Batches) -> None:
    """bfloat16 is enough for an average over thousands of tokens."""
    write_atomically(path, save({"rows": torch.cat([row.bfloat16() for row in rows])}))


def _load(path: Path, device: torch.device) -> Iterator[torch.Tensor]:
    return (row.to(device, torch.float32) for row in load_file(path)["rows"].split(1))


def _head_gradients(skeleton: Skeleton, ids: torch.Tensor, hidden: Batches, seed: int) -> Iterator[torch.Tensor]:
    """The gradient, at what left the last block, of the log-likelihood of one token drawn at every position."""
    generator = torch.Generator().manual_seed(seed)
    with loaded_head(skeleton, ids) as logits, torch.enable_grad():
        for row, last in zip(ids.split(1), hidden, strict=True):
            found: list[torch.Tensor] = []
            for tokens, part in zip(row.split(HEAD_TOKENS, 1), last.split(HEAD_TOKENS, 1), strict=True):
                part = part.to(skeleton.device).requires_grad_()
                log_p = logits(tokens, part)[0].log_softmax(-1)
                drawn = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator).to(log_p.device)
                found += torch.autograd.grad(log_p.gather(-1, drawn).sum(), part)
            yield torch.cat(found, 1).cpu()


def _reproducible(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The fast attention kernels of CUDA add gradients up in no fixed order."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cuda" else contextlib.nullcontext()


@dataclass(frozen=True)
class _CarryThrough:
    """The gradient at the block's input, on the host, from the one at its output."""

    block: nn.Module

    @torch.enable_grad()
    def __call__(self, sequence: _Sequence) -> torch.Tensor:
        hidden, gradient, call = sequence
        with _reproducible(hidden.device):
            output, _ = call.run(self.block, hidden.requires_grad_(), Carried())
        return torch.autograd.grad(output, hidden, gradient.to(hidden.device))[0].cpu()


@dataclass(frozen=True)
class _GramsOfOne:
    """Tokens of one sequence, and what they add to the sums of g g^T, by linear."""

    block: nn.Module
    names: list[str]

    def __call__(self, sequence: _Sequence) -> tuple[int, dict[str, list[torch.Tensor]]]:
        hidden, gradient, call = sequence
        grams: dict[str, list[torch.Tensor]] = {}
        for name, _, found in _linear_calls(self.block, self.names, call, hidden, gradient):
            parts = [g.T @ g for g in found.reshape(-1, found.shape[-1]).split(OUTPUT_BLOCK, dim=1)]
            grams[name] = [a + b for a, b in zip(grams[name], parts, strict=True)] if name in grams else parts
        return hidden.shape[0] * hidden.shape[1], grams


def _held_at_once(block: nn.Module, names: list[str]) -> Iterator[list[str]]:
    """The linears in slices whose outputs' Gram matrices fit into `GRAM_BYTES`."""
    some: list[str] = []
    held = 0
    for name in names:
        outputs = len(block.get_parameter(f"{name}.weight"))
        size = 4 * outputs * min(outputs, OUTPUT_BLOCK)
        if some and held + size > GRAM_BYTES:
            yield some
            some, held = [], 0
        some.append(name)
        held += size
    if some:
        yield some


@torch.enable_grad()
def _linear_calls(
    block: nn.Module, names: list[str], call: BlockCall, hidden: torch.Tensor, gradient: torch.Tensor
) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Input, and gradient at the output, of every call of a linear that the result depends on."""
    outputs: list[tuple[str, torch.Tensor, torch.Tensor]] = []

    def recorder(name: str) -> Callable[..., None]:
        return lambda _, args, output: outputs.append((name, args[0].detach(), output))

    handles = [block.get_submodule(name).register_forward_hook(recorder(name)) for name in names]
    try:
        with _reproducible(hidden.device):
            result, _ = call.run(block, hidden.requires_grad_(), Carried())
    finally:
        for handle in handles:
            handle.remove()
    reached = [call for call in outputs if call[2].requires_grad]
    if not reached:
        return []
    gradients = torch.autograd.grad(result, [output for _, _, output in reached], gradient, allow_unused=True)
    return [(name, x, g) for (name, x, _), g in zip(reached, gradients, strict=True) if g is not None]
