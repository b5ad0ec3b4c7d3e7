"""One decoder block on the workbench: what it is quantized with, what has been done to it, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from awq_engine.capture import BlockInputs
from awq_engine.folds import Fold, InputGroup
from awq_engine.journal import EventSink
from awq_engine.originals import Originals
from awq_engine.passes import Passes
from awq_engine.recipe import Recipe
from awq_engine.sensitivity import OutputGrams, Sensitivity
from awq_engine.spec import QuantSpec
from awq_engine.spill import Batches
from awq_engine.statistics import InputStatistics, Moments, MomentsByName, ReadInputs
from awq_engine.workers import Workers
from awq_kernels.int_weight import IntWeight


@dataclass
class BlockJob:
    """One block with its weights loaded, and all that is needed to quantize it."""

    index: int
    block: nn.Module
    specs: dict[str, QuantSpec]
    """The linears to quantize, by their names inside the block, and how finely each is rounded."""
    inputs: BlockInputs
    """What the block reads: from the original model (`fast`) or from the quantized blocks before it."""
    original: BlockInputs | None
    """What the original block reads, where drift is to be corrected."""
    sensitivity: Sensitivity | None
    """Gradients of the model's prediction at this block's output; only for `best`."""
    probe: BlockInputs
    """One short sequence that has passed through the quantized blocks."""
    recipe: Recipe
    seed: int
    """Of the random scales that folds are probed with."""
    head_dim: int
    stored_dtype: Callable[[str], torch.dtype | None]
    """Parameter inside the block -> dtype it is stored in; None when it cannot be rewritten."""
    emit: EventSink
    checkpoint_cancel: Callable[[], None]
    """Raises when the run is to stop; called between steps."""
    workers: Workers

    def linear(self, name: str) -> nn.Linear:
        """One of the block's linears, by its name inside the block."""
        linear = self.block.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        return linear

    def probe_forward(self) -> torch.Tensor:
        """The block's output on the probe, float32 [1, seq, hidden_size]."""
        return next(self.probe.outputs(self.block, self.index))

    def handed_on(self) -> torch.Tensor:
        """All that later blocks get from this one on the probe, as one vector."""
        return self.probe.handed_on(self.block, self.index)

    def passes(self, originals: Originals | None = None) -> Passes:
        """All calibration tokens through the block as it is now and, given its `originals`, as it was."""
        original = None if originals is None else self.original
        return Passes(self.workers, self.block, self.index, self.inputs, original, originals)

    def collect(self, groups: Sequence[InputGroup]) -> dict[str, InputStatistics]:
        """Statistics of what the groups read now, by their first linear."""
        firsts = [group.consumers[0] for group in groups]
        return self.statistics(self.passes().add_up(ReadInputs(firsts), MomentsByName()), firsts)

    def statistics(self, moments: MomentsByName, names: Iterable[str]) -> dict[str, InputStatistics]:
        """The statistics of some linears, by name."""
        return {name: self.statistics_of(moments.found.get(name, Moments()), name) for name in names}

    def statistics_of(self, moments: Moments, name: str) -> InputStatistics:
        """The statistics of what one linear was called with."""
        linear = self.linear(name)
        return moments.means(linear.in_features, linear.weight.device)


@dataclass
class BlockResult:
    """What comes out of a block."""

    weights: dict[str, IntWeight]
    """By linear name inside the block."""
    changed: dict[str, torch.Tensor]
    """Other parameters that folds changed, in the dtype they are stored in."""
    outputs: Batches
    """Of the original block: the next block's inputs for `fast`, its original inputs where drift is corrected."""
    loss_rounding: float
    """MSE of the block's output under plain rounding."""
    loss_final: float


@dataclass
class Bench:
    """The block on the workbench: original weights, and what has been folded so far."""

    originals: Originals
    columns: dict[str, torch.Tensor] = field(default_factory=dict)
    """By linear: what its input columns were multiplied by, [in]."""
    rows: dict[str, torch.Tensor] = field(default_factory=dict)
    """By linear: what its output rows were divided by, [out]."""
    output_grams: OutputGrams | None = None
    """Moments of the gradients at the linears' original outputs; only for `best`."""
    calls: dict[str, int] = field(default_factory=dict)
    """By the first linear of a group: how often a pass calls it."""
    alphas: dict[str, float] = field(default_factory=dict)
    folds: list[Fold] = field(default_factory=list)


def ones(like: torch.Tensor) -> torch.Tensor:
    return torch.ones(like.shape, device=like.device)
