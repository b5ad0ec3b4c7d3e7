"""Norms, rotations and gates against float64: on a GPU where there is one, otherwise in Triton's interpreter.

`test_interpreted.py` starts a process of its own for the latter.
"""

from __future__ import annotations

import pytest
import torch

from awq_kernels import between
from awq_kernels.plane import INTERPRETED

if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a GPU or TRITON_INTERPRET=1", allow_module_level=True)
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float16, torch.float32]
ROUNDING = {torch.float16: 2.0**-11, torch.float32: 2e-6}
"""Largest relative error of a number that is rounded once; in float32 also of the arithmetic before."""


@pytest.fixture(autouse=True)
def _poison(nan_filled_outputs: None) -> None:
    pass


def random(*shape: int, dtype: torch.dtype = torch.float16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + seed)
    return torch.randn(shape, generator=generator).to(dtype).to(DEVICE)


def check(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Each number is rounded once; where terms cancel, an error of float32 arithmetic is left."""
    assert found.shape == expected.shape
    excess = (found.double() - expected).abs() - ROUNDING[found.dtype] * expected.abs()
    assert float(excess.max()) < 1e-6 * float(expected.abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "width"), [(1, 64), (3, 100), (2, 1536)])
@pytest.mark.parametrize("has_delta", [False, True])
def test_add_norm(n: int, width: int, has_delta: bool, dtype: torch.dtype) -> None:
    x, delta = random(n, width, dtype=dtype), random(n, width, dtype=dtype, seed=1) if has_delta else None
    weight = random(width, dtype=dtype)
    total, y = between.add_norm(x, delta, weight, 1e-5)
    assert torch.equal(total, x if delta is None else x + delta), "as torch keeps it"
    exact = total.double()
    check(y, exact / (exact.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("queries", "keys", "width"), [(4, 2, 64), (3, 1, 80), (2, 2, 6)])
@pytest.mark.parametrize("normed", [False, True])
def test_turn(queries: int, keys: int, width: int, normed: bool, dtype: torch.dtype) -> None:
    """Three tokens to places that are not in order; what else is in the cache stays."""
    n, capacity = 3, 9
    heads, gains = random(n, queries + 2 * keys, width, dtype=dtype), random(2, width, dtype=dtype)
    angles = random(n, 1, width // 2, dtype=torch.float32).repeat(1, 1, 2)
    sign = torch.where(torch.arange(width, device=DEVICE) < width // 2, -1, 1)
    cos, sin = angles.cos().to(dtype), (angles.sin() * sign).to(dtype)
    cache, places = random(2, keys, capacity, width, dtype=dtype), torch.tensor([4, 0, 7], device=DEVICE)
    before = cache.clone()
    found = between.turn(heads, cache, places, cos, sin, (gains, 1e-5, 1e-2) if normed else None)
    exact = heads.double()[:, : queries + keys]
    if normed:
        epsilon = torch.tensor([1e-5] * queries + [1e-2] * keys, device=DEVICE)[:, None]
        gain = gains.double().repeat_interleave(torch.tensor([queries, keys], device=DEVICE), dim=0)
        exact = exact / (exact.square().mean(-1, keepdim=True) + epsilon).sqrt() * gain
    turned = exact * cos.double() + exact.roll(width // 2, -1) * sin.double()
    check(found, turned[:, :queries])
    check(cache[0, :, places].transpose(0, 1), turned[:, queries:])
    assert torch.equal(cache[1, :, places].transpose(0, 1), heads[:, queries + keys :])
    others = [place for place in range(capacity) if place not in (4, 0, 7)]
    assert torch.equal(cache[:, :, others], before[:, :, others])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "width"), [(1, 16), (2, 1024), (3, 1500)])
def test_gate(n: int, width: int, dtype: torch.dtype) -> None:
    """Also far out, where the exponential overflows."""
    x = random(n, 2 * width, dtype=dtype)
    x[0, :4] = torch.tensor([200.0, -200.0, 0.0, -10.0])
    gate, up = x.double().chunk(2, dim=-1)
    check(between.gate(x), gate * torch.sigmoid(gate) * up)


@pytest.mark.skipif(not INTERPRETED, reason="a GPU computes with bfloat16")
def test_the_interpreter_refuses_bfloat16() -> None:
    with pytest.raises(NotImplementedError, match="bfloat16"):
        between.gate(torch.zeros(1, 8, dtype=torch.bfloat16))
