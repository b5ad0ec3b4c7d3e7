"""Drift correction: let a linear make up for what the rounding before it did to its inputs.

A linear deep in a quantized model reads inputs x' that differ from the original's x. Before it is rounded, its weight
is moved to the ridge regression of the original outputs on the present inputs:

    T = argmin_T  E|x' T^T - x W^T|^2  +  ridge * |(T - W') D^1/2|^2,     D = diag E[x' x'^T]

with W' the present weight (which equals W but for folds). The ridge is relative to each channel's own power, so a loud
channel cannot buy the correction of quiet ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from awq_engine.capture import BlockInputs
from awq_engine.cholesky import damped_factor, solve
from awq_engine.statistics import InputStatistics, weigh

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
    block: nn.Module, teacher: nn.Module, name: str, inputs: BlockInputs, original: BlockInputs, index: int
) -> torch.Tensor:
    """E[x_present x_original^T] of what `name` reads in `block` on `inputs` and in `teacher` on `original`."""
    total: torch.Tensor | None = None
    weight = 0.0
    pairs = zip(
        _inputs_of(block, name, inputs, index), _inputs_of(teacher, name, original, index), strict=True
    )  # fmt: skip
    for present, before in pairs:
        weighted, sum_of_weights = weigh(present, inputs.token_weights())
        product = weighted.T @ before
        total = product if total is None else total.add_(product)
        weight += sum_of_weights
    assert total is not None
    return total / (weight or 1.0)


def _inputs_of(block: nn.Module, name: str, inputs: BlockInputs, index: int) -> Iterator[torch.Tensor]:
    """For each batch, what the linear reads: float32 [tokens, in]."""
    caught: list[torch.Tensor] = []
    handle = block.get_submodule(name).register_forward_pre_hook(
        lambda _, args: caught.append(args[0].reshape(-1, args[0].shape[-1]).float())
    )
    try:
        for _ in inputs.outputs(block, index):
            yield torch.cat(caught)
            caught.clear()
    finally:
        handle.remove()
