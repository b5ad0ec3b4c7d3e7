"""What lies between the products of a decoder block, a launch each: sums with their norm, rotations, gates.

The activations of a token are some thousand numbers, so what counts on a GPU is not their arithmetic but how many
kernels are launched: torch takes about twenty for a block, these are four. They compute in float32 and round once to
the type of the activations, where torch rounds after every operation; only the sum of the residual stream is rounded
on its own, as it is kept.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from awq_kernels.launches import on
from awq_kernels.plane import refuse_bfloat16

GATE_BLOCK = 1024
"""Numbers that a program gates."""


@triton.jit
def _add_norm_kernel(
    x_ptr, delta_ptr, weight_ptr, sum_ptr, y_ptr, width, epsilon, HAS_DELTA: tl.constexpr, BLOCK: tl.constexpr
):
    """One row of x, of x + delta if there is one, and of its norm."""
    i = tl.arange(0, BLOCK)
    inside, at = i < width, tl.program_id(0).to(tl.int64) * width + i
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        total = (x + tl.load(delta_ptr + at, mask=inside, other=0.0).to(tl.float32)).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + at, total, mask=inside)
        x = total.to(tl.float32)
    weight = tl.load(weight_ptr + i, mask=inside, other=0.0).to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x) / width + epsilon) * weight
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _turn_kernel(
    heads_ptr,
    queries_ptr,
    cache_ptr,
    places_ptr,
    cos_ptr,
    sin_ptr,
    norms_ptr,
    query_epsilon,
    key_epsilon,
    n_queries,
    n_keys,
    capacity,
    width,
    NORMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One head of one token: a query or key turned, a value as it is; keys and values into the cache."""
    token, head, i = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BLOCK)
    inside, is_query = i < width, head < n_queries
    at = heads_ptr + (token * (n_queries + 2 * n_keys) + head) * width
    x = tl.load(at + i, mask=inside, other=0.0)
    if head < n_queries + n_keys:
        other = (i + width // 2) % width
        turned, partner = x.to(tl.float32), tl.load(at + other, mask=inside, other=0.0).to(tl.float32)
        if NORMS:
            weights = norms_ptr + tl.where(is_query, 0, width)
            factor = tl.rsqrt(tl.sum(turned * turned) / width + tl.where(is_query, query_epsilon, key_epsilon))
            turned = turned * factor * tl.load(weights + i, mask=inside, other=0.0).to(tl.float32)
            partner = partner * factor * tl.load(weights + other, mask=inside, other=0.0).to(tl.float32)
        cos = tl.load(cos_ptr + token * width + i, mask=inside, other=0.0).to(tl.float32)
        sin = tl.load(sin_ptr + token * width + i, mask=inside, other=0.0).to(tl.float32)
        x = (turned * cos + partner * sin).to(x.dtype)
    if is_query:
        tl.store(queries_ptr + (token * n_queries + head) * width + i, x, mask=inside)
    else:
        row = (head - n_queries) * capacity + tl.load(places_ptr + token)
        tl.store(cache_ptr + row * width + i, x, mask=inside)


@triton.jit
def _gate_kernel(x_ptr, y_ptr, width, BLOCK: tl.constexpr):
    """silu(gate) * up for a part of a row of [gate, up]."""
    row, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(x_ptr + row * 2 * width + i, mask=i < width, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * width + width + i, mask=i < width, other=0.0).to(tl.float32)
    small = tl.exp(-tl.abs(gate))  # overflows nowhere
    y = gate * tl.where(gate < 0, small, 1.0) / (1 + small) * up
    tl.store(y_ptr + row * width + i, y.to(y_ptr.dtype.element_ty), mask=i < width)


def add_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`x + delta`, or `x` itself, and its root mean square norm (arXiv:1910.07467), eq. 4.

    Args:
        x: float [n, width], contiguous; `delta` is alike, or None.
        weight: float [width].
    Returns:
        Both [n, width] in the dtype of `x`.
    """
    refuse_bfloat16(x.dtype)
    total, y = x if delta is None else torch.empty_like(x), torch.empty_like(x)
    with on(x.device):
        _add_norm_kernel[(len(x),)](
            x, delta, weight, total, y, x.shape[1], epsilon,
            HAS_DELTA=delta is not None, BLOCK=triton.next_power_of_2(x.shape[1]),
        )  # fmt: skip
    return total, y


def turn(
    heads: torch.Tensor,
    cache: torch.Tensor,
    places: torch.Tensor,
    cos: torch.Tensor,
    signed_sin: torch.Tensor,
    norms: tuple[torch.Tensor, float, float] | None = None,
) -> torch.Tensor:
    """Queries turned by position (RoFormer, arXiv:2104.09864, the two halves as pairs); keys and values to the cache.

    Args:
        heads: float [n, queries + keys + values, width], contiguous; as many keys as values.
        cache: [2, keys, capacity, width], contiguous: keys and values.
        places: int64 [n], where they go.
        cos, signed_sin: [n, 1, width], contiguous; the sines of the first half negative.
        norms: gains [2, width] and epsilons, of queries and of keys, whose heads are normed first; None for none.
    Returns:
        [n, queries, width].
    """
    refuse_bfloat16(heads.dtype)
    n, n_heads, width = heads.shape
    n_keys, capacity = cache.shape[1:3]
    n_queries = n_heads - 2 * n_keys
    queries = heads.new_empty(n, n_queries, width)
    gains, query_epsilon, key_epsilon = norms or (None, 0.0, 0.0)
    with on(heads.device):
        _turn_kernel[(n, n_heads)](
            heads, queries, cache, places, cos, signed_sin, gains, query_epsilon, key_epsilon,
            n_queries, n_keys, capacity, width,
            NORMS=norms is not None, BLOCK=triton.next_power_of_2(width), num_warps=1,
        )  # fmt: skip
    return queries


def gate(x: torch.Tensor) -> torch.Tensor:
    """SwiGLU (arXiv:2002.05202): silu of the first half of `x` times the second; float [n, 2 * width], contiguous."""
    refuse_bfloat16(x.dtype)
    n, width = len(x), x.shape[1] // 2
    y = x.new_empty(n, width)
    with on(x.device):
        _gate_kernel[(n, triton.cdiv(width, GATE_BLOCK))](x, y, width, BLOCK=GATE_BLOCK)
    return y
