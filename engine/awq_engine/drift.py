"""Drift correction: let a linear make up for what the rounding before it did to its inputs.

A linear deep in a quantized model reads inputs x' that differ from the original's x. Before it is rounded, its weight
is moved to the ridge regression of the original outputs on the present inputs:

    T = argmin_T  E|x' T^T - x W^T|^2  +  ridge * |(T - W') D^1/2|^2,     D = diag E[x' x'^T]

with W' the present weight (which equals W but for folds). The ridge is relative to each channel's own power, so a loud
channel cannot buy the correction of quiet ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from awq_engine.capture import BlockInputs
from awq_engine.cholesky import damped_factor, solve
from awq_engine.originals import Originals
from awq_engine.quantize import row_slices
from awq_engine.statistics import Accumulator, InputStatistics, Tap, weigh

RIDGE = 0.1


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
    factor = damped_factor(gram, RIDGE * power + 1e-6 * power.mean() + 1e-30)
    for rows in row_slices(missing):
        missing[rows] = solve(factor, missing[rows].mT).mT
    return missing.add_(present)


def collect_drift(
    block: nn.Module, originals: Originals, linear: nn.Linear, inputs: BlockInputs, original: BlockInputs, index: int,
    projection: Projection = as_they_are,
) -> tuple[InputStatistics, torch.Tensor | None]:  # fmt: skip
    """What `linear` reads in `block` on `inputs`, x', and E[p(x) x'^T] with x what it reads in the original block.

    Batches in which a router sends it other tokens than before have no pairs to compare; None when that is all of them.
    """
    moments = Accumulator(linear.in_features, linear.weight.device, inputs.token_weights)
    total: torch.Tensor | None = None
    weight = 0.0
    present, before = Tap(linear), Tap(linear)
    for batch in range(len(inputs)):
        x = present.read(lambda batch=batch: inputs.output(block, index, batch))
        moments.add(x)
        with originals.computing():
            y = before.read(lambda batch=batch: original.output(block, index, batch))
        if len(x) == len(y) > 0:
            weighted, sum_of_weights = weigh(x, inputs.token_weights())
            y = projection(y)
            total = y.T @ weighted if total is None else total.addmm_(y.T, weighted)
            weight += sum_of_weights
    statistics = moments.result()
    return statistics, total.div_(weight or 1.0) if total is not None and statistics.n_tokens else None
