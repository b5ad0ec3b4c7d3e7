"""Random weights and tokens, their product in float64, and how near to it a product can come."""

from __future__ import annotations

import torch

from awq_kernels.int_weight import IntWeight

TOLERANCE = {torch.float16: 3e-4, torch.bfloat16: 3.5e-3, torch.float32: 2e-6}
"""Relative Frobenius error that one rounding to the dtype explains."""
FLOAT32_SUMS = 2e-6
"""What sums in float32 of some hundreds of products add to it."""


def random_weight(
    out_features: int,
    in_features: int,
    group_size: int,
    symmetric: bool = False,
    bits: int = 4,
    scale_dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> IntWeight:
    """Every integer, zero point and a wide range of scales; the same for the same arguments."""
    generator = torch.Generator().manual_seed(out_features * 7919 + in_features * 31 + group_size + (seed << 32))
    shape = (out_features, in_features // group_size)
    zero_point = torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8)
    return IntWeight(
        q=torch.randint(0, 2**bits, (out_features, in_features), generator=generator, dtype=torch.uint8),
        scale=(10 ** (torch.rand(shape, generator=generator) * 3 - 4)).to(scale_dtype),
        zero_point=torch.full_like(zero_point, 2 ** (bits - 1)) if symmetric else zero_point,
        group_size=group_size,
        bits=bits,
    )


def random_tokens(n_tokens: int, features: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n_tokens * 1009 + features)
    return torch.randn(n_tokens, features, generator=generator).to(dtype)


def truth(x: torch.Tensor, weight: IntWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The product in float64, on its own arithmetic: nothing of the packages under test."""
    zero_point = weight.zero_point.double().repeat_interleave(weight.group_size, dim=1)
    scale = weight.scale.double().repeat_interleave(weight.group_size, dim=1)
    y = x.double() @ ((weight.q.double() - zero_point) * scale).T
    return y if bias is None else y + bias.double()


def best_error(
    x: torch.Tensor, weight: IntWeight, bias: torch.Tensor | None = None, *, rounded_weights: bool = False
) -> float:
    """What is left of the error when nothing is rounded but the result, once, to the dtype of `x`: the least there is.

    Args:
        rounded_weights: they are rounded to that dtype too, which the vendor's product asks for.
    """
    expected = truth(x, weight, bias)
    y = expected
    if rounded_weights:
        w = truth(torch.eye(weight.in_features), weight).to(x.dtype).double()
        y = x.double() @ w if bias is None else x.double() @ w + bias.double()
    return relative_error(y.to(x.dtype), expected)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double().cpu() - expected).norm() / expected.norm())
