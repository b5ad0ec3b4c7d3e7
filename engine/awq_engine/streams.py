"""The hidden states that travel through the model during a run, in memory or, where that is short, on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from awq_engine.capture import BlockInputs
from awq_engine.config import RunConfig
from awq_engine.disk import check_disk
from awq_engine.estimate import Estimate
from awq_engine.format import size
from awq_engine.memory import available_bytes
from awq_engine.passes import Passes
from awq_engine.plan import Plan
from awq_engine.recipe import Recipe
from awq_engine.runs import Run
from awq_engine.spill import Batches, NewBatches, SpilledBatches, copied
from awq_engine.storage import write_atomically
from awq_engine.workers import Workers

BATCH_TOKENS = 4096
BATCH_NUMBERS = 1 << 23
"""Tokens, and numbers that the widest linear reads of them, that go through a block at once."""


class BatchSize:
    """How many sequences go through a block at once: fewer from the moment on that they were too many.

    Sums over tokens are made batch by batch, so another size gives other last bits. It is therefore kept with the run:
    what is resumed goes on as it was.
    """

    def __init__(self, run: Run, plan: Plan, ids: torch.Tensor) -> None:
        self._path = run.path / "batch_size"
        width = max((linear.in_features for linear in plan.linears), default=1)
        most = max(1, min(len(ids), min(BATCH_TOKENS, BATCH_NUMBERS // width) // ids.shape[1]))
        self.now = int(self._path.read_bytes()) if self._path.exists() else most

    def halve(self) -> bool:
        """Whether that can be done."""
        if self.now == 1:
            return False
        self.now //= 2
        write_atomically(self._path, str(self.now).encode())
        return True


class Streams:
    """Which hidden states there are depends on the recipe."""

    def __init__(self, recipe: Recipe, inputs: BlockInputs, probe: BlockInputs, workers: Workers) -> None:
        self.recipe = recipe
        self.workers = workers
        self.inputs = inputs
        """What blocks are calibrated on: of the original model, or of the quantized one (`recipe.sequential`)."""
        self.original: BlockInputs | None = None
        """Of the original model, when both are needed."""
        if recipe.drift:
            self.original = inputs.fork()
        self.probe = probe
        """One sequence through the quantized model, always."""

    def advance(self, block: nn.Module, index: int, outputs: Batches) -> None:
        """Move on past a quantized `block`, given the original block's `outputs`."""
        if self.recipe.sequential:
            Passes(self.workers, block, index, self.inputs).advance()
        if self.original is not None:
            self.original.hidden = outputs
        elif not self.recipe.sequential:
            self.inputs.hidden = outputs
        self.probe.advance(block, index)

    def replay(self, block: nn.Module, index: int, install: Callable[[], None]) -> None:
        """Move on past a block that is done: first as the original, then, after `install`, as quantized."""
        with torch.no_grad():
            source = self.original or (None if self.recipe.sequential else self.inputs)
            outputs = []
            if source is not None:
                outputs = copied(Passes(self.workers, block, index, source).outputs(), source.store)
            install()
            self.advance(block, index, outputs)


def hidden_store(config: RunConfig, folder: Path, forecast: Estimate, warn: Callable[[str], None]) -> NewBatches:
    """Memory, or a file in `folder` where memory is too small; the numbers are the same."""
    limit = config.max_memory or available_bytes()
    needed = forecast.peak_host_bytes + (forecast.hidden_bytes if forecast.spills else 0)
    if needed <= limit:
        return list
    check_disk(folder, forecast.hidden_bytes, "hidden states that do not fit into memory")
    why = f"the run takes about {size(needed)}, and may take {size(limit)}"
    warn(f"hidden states ({size(forecast.hidden_bytes)}) are kept on disk: {why} of memory")
    return lambda: SpilledBatches(folder)
