"""The module in the place of a linear."""

from __future__ import annotations

import pytest
import torch
from rounded_checkpoint import round_plainly
from torch import nn

from awq_engine.linear import QuantizedLinear
from awq_kernels.dispatch import prepare
from awq_kernels.reference import dequantize


@pytest.mark.parametrize(("backend", "tolerance"), [("reference", 1e-6), ("cpu", 7e-3)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_computes_what_the_dequantized_linear_computes(backend: str, tolerance: float, with_bias: bool) -> None:
    weight = round_plainly(torch.randn(48, 128, generator=torch.Generator().manual_seed(1)), 64)
    float_linear = nn.Linear(128, 48, bias=with_bias)
    float_linear.weight.data = dequantize(weight)
    bias = float_linear.bias.detach() if with_bias else None
    linear = QuantizedLinear(prepare(weight, backend, "cpu"), bias)
    x = torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(2))
    expected = float_linear(x).detach()
    assert (linear(x) - expected).norm() / expected.norm() < tolerance


def test_has_no_parameters_and_says_what_it_is() -> None:
    linear = QuantizedLinear(prepare(round_plainly(torch.ones(16, 32), 32), "reference", "cpu"))
    assert (linear.in_features, linear.out_features) == (32, 16)
    assert not list(linear.parameters())
    assert "32 -> 16" in repr(linear)


def test_a_bias_of_another_size_is_refused() -> None:
    prepared = prepare(round_plainly(torch.ones(16, 32), 32), "reference", "cpu")
    with pytest.raises(ValueError, match=r"bias has shape \[8\], expected \[16\]"):
        QuantizedLinear(prepared, torch.zeros(8))
