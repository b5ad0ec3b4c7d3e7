"""Drift correction: let a linear make up for what the rounding before it did to its inputs.

A linear deep in a quantized model reads inputs x' that differ from the original's x. Before it is rounded, its weight
is moved to the ridge regression of the original outputs on the present inputs:

    T = argmin_T  E|x' T^T - x W^T|^2  +  ridge * |(T - W') D^1/2|^2,     D = diag E[x' x'^T] + floor * its median

with W' the present weight (which equals W but for folds). The ridge is relative to each channel's own power, so a loud
channel cannot buy the correction of quiet ones. The floor is for the quietest: what their weights would have to become
to do some good widens the range of their whole group, and so its steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from awq_engine.cholesky import damped_factor, solve
from awq_engine.passes import Batch
from awq_engine.quantize import row_slices
from awq_engine.statistics import InputStatistics, Moments, add_product, added, read_input, weigh

RIDGE = 0.1
FLOOR = 0.01
"""Of the channels' median power, which a few loud ones do not move."""


Projection = Callable[[torch.Tensor], torch.Tensor]
"""Makes of a linear's original inputs, float32 [tokens, in], what is correlated with its present ones."""


def as_they_are(x: torch.Tensor) -> torch.Tensor:
    """The inputs themselves: right where several linears read them."""
    return x


def correct_drift(present: torch.Tensor, statistics: InputStatistics, wanted: torch.Tensor) -> torch.Tensor:
    """The corrected weight, float32 [out, in], in the place of `wanted`.

    Args:
        present: the linear's weight now, float32 [out, in].
        statistics: of the present inputs.
        wanted: E[o x'^T] with o the original outputs in the units of the present ones, float32 [out, in].
    """
    gram, power = statistics.gram, statistics.gram.diagonal()
    missing = wanted.addmm_(present, gram, alpha=-1)
    factor = damped_factor(gram, RIDGE * (power + FLOOR * power.median()) + 1e-6 * power.mean() + 1e-30)
    for rows in row_slices(missing):
        missing[rows] = solve(factor, missing[rows].mT).mT
    return missing.add_(present)


@dataclass
class Pairs:
    """What a linear reads, x', and its products with what it originally read, x."""

    moments: Moments = field(default_factory=Moments)
    cross: torch.Tensor | None = None
    weight: float = 0.0
    """Of the tokens in `cross`."""

    def add(
        self, x: torch.Tensor, before: torch.Tensor | None, projection: Projection, weights: torch.Tensor | None
    ) -> None:
        """Take in x' and x, float32 [tokens, in] each.

        Batches in which a router sends it other tokens than before have no pairs to compare.
        """
        self.moments.add(x, weights)
        if before is not None and len(x) == len(before) > 0:
            weighted, weight = weigh(x, weights)
            self.cross = add_product(self.cross, projection(before), weighted)
            self.weight += weight

    def merge(self, other: Pairs) -> None:
        self.moments.merge(other.moments)
        self.cross = added(self.cross, other.cross)
        self.weight += other.weight

    def means(self, linear: nn.Linear) -> tuple[InputStatistics, torch.Tensor | None]:
        """The statistics of x', and E[p(x) x'^T]; None when there were no pairs."""
        statistics = self.moments.means(linear.in_features, linear.weight.device)
        if self.cross is None or not statistics.n_tokens:
            return statistics, None
        return statistics, self.cross.to(linear.weight.device).div_(self.weight or 1.0)


@dataclass(frozen=True)
class ReadPairs:
    """Takes in what one linear reads now and what it originally read, in passes that go no further."""

    name: str
    calls: int
    """In a pass."""
    projection: Projection = as_they_are

    def __call__(self, batch: Batch, sums: Pairs) -> None:
        linear = batch.linear(self.name)
        x = read_input(linear, batch.output, self.calls)
        before = read_input(linear, batch.original_output, self.calls)
        sums.add(x, before, self.projection, batch.token_weights())
