"""The plain torch truth, against float64 and by hand."""

from __future__ import annotations

import pytest
import torch
from truth import TOLERANCE, random_tokens, random_weight, relative_error, truth

from awq_kernels.int_weight import IntWeight
from awq_kernels.reference import dequantize, matmul


def test_dequantize_by_hand() -> None:
    weight = IntWeight(
        q=torch.tensor([[0, 15, 8, 7]], dtype=torch.uint8),
        scale=torch.tensor([[0.5, 0.25]]),
        zero_point=torch.tensor([[8, 7]], dtype=torch.uint8),
        group_size=2,
    )
    assert dequantize(weight).tolist() == [[-4.0, 3.5, 0.25, 0.0]]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_dequantize_is_exact_in_float32(bits: int) -> None:
    weight = random_weight(24, 96, 32, bits=bits)
    assert torch.equal(dequantize(weight).double(), truth(torch.eye(96), weight).T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_matmul_matches_float64(dtype: torch.dtype) -> None:
    weight = random_weight(30, 192, 64)
    x, bias = random_tokens(9, 192, dtype), random_tokens(1, 30, dtype)[0]
    y = matmul(x.view(3, 3, 192), weight, bias)
    assert y.dtype == dtype
    assert relative_error(y.flatten(0, 1), truth(x, weight, bias)) < TOLERANCE[dtype]


def test_symmetric_weights_have_their_zero_in_the_middle() -> None:
    assert random_weight(8, 32, 32, symmetric=True).symmetric
    assert not random_weight(8, 32, 32).symmetric
