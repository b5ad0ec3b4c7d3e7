"""Linears that the calibration text never calls, and weights that are read past their module.

Some weights are read by other modules than their own (Mamba multiplies by `dt_proj.weight` itself): a reader that puts
a quantized linear there has no such weight to give, so these stay in floats. Other linears have no part in what text
goes through (cross-attention to an encoder or an image, an expert no token was sent to): they are rounded without data,
so that size, skip list and the format of the projections that readers fuse are what the plan said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from awq_engine.folds import InputGroup


def uncalled(names: Iterable[str], groups: Iterable[InputGroup]) -> list[str]:
    """Those of `names` that are in no group of linears that ran."""
    called = {name for group in groups for name in group.consumers}
    return [name for name in names if name not in called]


@torch.no_grad()
def read_past_module(block: nn.Module, names: list[str], forward: Callable[[], torch.Tensor]) -> list[str]:
    """Those of the linears `names` whose present weight changes what `forward` computes.

    Args:
        forward: runs the block, whose modules compute with other weights than these (`Originals.computing`), and
            returns its output.
    """
    if not names or not _matter(block, names, forward):
        return []
    return [name for name in names if _matter(block, [name], forward)]


def _matter(block: nn.Module, names: list[str], forward: Callable[[], torch.Tensor]) -> bool:
    """Whether doubling these weights, which can be undone to the bit, changes the output."""
    before = forward()
    weights = [block.get_submodule(name).get_parameter("weight").data for name in names]
    try:
        for weight in weights:
            weight.mul_(2)
        return not torch.equal(forward(), before)
    finally:
        for weight in weights:
            weight.mul_(0.5)
