"""What each way to round a linear costs the whole model: the rise of KL(original || rounded), to second order.

A change D of one weight moves the linear's output at token t by D x_t, and with g_t the gradient there

    KL  =  1/2 mean_t (g_t . D x_t)**2  +  higher orders

(OBD, LeCun 1990; FIT, arXiv:2210.08502). Nothing is averaged before D is known, which is sharper than a forecast from
the moments of x and g. Left out is what one token's change does together with others', which matters for values, whose
errors attention averages. Where the gradients come from: `sensitivity.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from awq_engine.fused import by_site
from awq_engine.quantize import round_to_nearest
from awq_engine.sensitivity import Sensitivity
from awq_engine.spec import QuantSpec

TOKENS = 4096
"""Calibration tokens the forecast is made on."""

Costs = dict[QuantSpec, float]
"""Forecast KL in nats per token, by how the linear is rounded."""


@torch.no_grad()
def rounding_costs(
    block: nn.Module, index: int, names: list[str], specs: Callable[[nn.Linear], Iterable[QuantSpec]],
    sensitivity: Sensitivity,
) -> dict[str, Costs]:  # fmt: skip
    """The cost of every linear of an original block under every spec to try on it.

    Linears that share a site are looked at together, one site at a time, to keep few inputs and gradients in memory.
    """
    found: dict[str, Costs] = {}
    for site in by_site(names).values():
        calls, n_tokens = sensitivity.linear_calls(block, index, site, TOKENS)
        for name in site:
            linear = block.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            pairs = [(x, g) for called, x, g in calls if called == name]
            found[name] = {spec: _cost(linear.weight, spec, pairs) / n_tokens for spec in specs(linear)}
    return found


def _cost(weight: torch.Tensor, spec: QuantSpec, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Half the sum over tokens of (g . D x)**2; `pairs` are float32 [tokens, in] and [tokens, out]."""
    difference = round_to_nearest(weight, spec).sub_(weight)
    return sum(float(((x @ difference.T) * g).sum(-1).square().sum()) for x, g in pairs) / 2
