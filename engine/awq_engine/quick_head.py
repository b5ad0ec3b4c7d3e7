"""An output head in floats, read in 4 bits first: only for those who ask for it.

On a CPU a head of 32000 x 2048 floats takes a third of every token's time next to blocks in 4 bits. Here its integers
(plain rounding in groups of 32) give all logits, and the floats give those of the likeliest `EXACT` tokens again. So
every token that is ever drawn in practice has its exact logit; the others, which share what probability is left, are
off by what 4 bits lose, some percent of how far unlikely tokens lie apart.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from awq_engine.quantize import choose_qparams, group_ranges, round_to_grid, row_slices, to_int_weight
from awq_engine.spec import QuantSpec
from awq_kernels import cpu

EXACT = 256
SPEC = QuantSpec(4, 32, symmetric=False)


class QuickHead:
    """Logits of one token at a time."""

    def __init__(self, head: nn.Linear) -> None:
        """`ValueError` says why this head cannot be read so."""
        if head.weight.device.type != "cpu" or head.in_features % SPEC.group_size or head.out_features % 16:
            raise ValueError("only a head on the CPU with multiples of 32 inputs and 16 outputs can be read in 4 bits")
        self._head = head
        self._weight = cpu.join([_rounded(head.weight[rows].detach()) for rows in row_slices(head.weight)])
        if self._weight is None:
            raise ValueError("the head cannot be rounded in pieces")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[1, hidden] to [1, vocabulary]; more rows are computed in floats throughout."""
        if len(x) != 1:
            return self._head(x)
        assert self._weight is not None
        logits = cpu.matmul(x, self._weight, self._head.bias)
        likeliest = logits[0].topk(min(EXACT, logits.shape[1])).indices
        bias = None if self._head.bias is None else self._head.bias[likeliest]
        logits[0, likeliest] = F.linear(x, self._head.weight[likeliest], bias)[0]
        return logits


def _rounded(weight: torch.Tensor) -> cpu.CpuWeight:
    floats = weight.float()
    qparams = choose_qparams(*group_ranges(floats, SPEC), SPEC)
    return cpu.pack_cpu(to_int_weight(round_to_grid(floats, qparams, SPEC), qparams, SPEC))
