"""Drift correction: let a linear make up for what the rounding before it did to its inputs.

A linear deep in a quantized model reads inputs x' that differ from the original's x. Before it is rounded, its weight
is moved to the ridge regression of the original outputs on the present inputs:

    T = argmin_T  E|x' T^T - x W^T|^2  +  ridge * |(T - W') D^1/2|^2,     D = diag E[x' x'^T]

with W' the present weight (which equals W but for folds). The ridge is relative to each channel's own power, so a loud
channel cannot buy the correction of quiet ones.
"""

from __future__ import annotations

import torch
from torch import nn

from awq_engine.capture import BlockInputs
from awq_engine.cholesky import damped_factor, solve
from awq_engine.originals import Originals
from awq_engine.statistics import InputStatistics, Tap, weigh

RIDGE = 0.01


def correct_drift(
    present: torch.Tensor, original: torch.Tensor, statistics: InputStatistics, cross: torch.Tensor
) -> torch.Tensor:
    """The corrected weight, float32 [out, in].

    Args:
        present: the linear's weight now, float32 [out, in].
        original: the weight the original inputs met, in the units of the present outputs, float32 [out, in].
        statistics: of the present inputs.
        cross: E[x_present x_original^T], float32 [in, in].
    """
    gram, power = statistics.gram, statistics.gram.diagonal()
    missing = (cross @ original.T).addmm_(gram, present.T, alpha=-1)  # [in, out]
    return present + solve(damped_factor(gram, RIDGE * power + 1e-6 * power.mean() + 1e-30), missing).T


def collect_cross_statistics(
    block: nn.Module, originals: Originals, linear: nn.Linear, inputs: BlockInputs, original: BlockInputs, index: int
) -> torch.Tensor | None:
    """E[x_present x_original^T] of what `linear` reads in `block` on `inputs`, and in the original block on `original`.

    Batches in which a router sends it other tokens than before have no pairs to compare; None when that is all of them.
    """
    total: torch.Tensor | None = None
    weight = 0.0
    present, before = Tap(linear), Tap(linear)
    for batch in range(len(inputs)):
        x = present.read(lambda batch=batch: inputs.output(block, index, batch))
        weighted, sum_of_weights = weigh(x, inputs.token_weights())
        with originals.computing():
            y = before.read(lambda batch=batch: original.output(block, index, batch))
        if len(x) == len(y) > 0:
            total = weighted.T @ y if total is None else total.addmm_(weighted.T, y)
            weight += sum_of_weights
    return None if total is None else total.div_(weight or 1.0)
