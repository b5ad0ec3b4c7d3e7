"""Ranges, steps and rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from awq_engine.quantize import choose_qparams, group_ranges, round_to_grid, round_to_nearest, to_int_weight
from awq_engine.spec import QuantSpec
from awq_kernels.reference import dequantize

ASYMMETRIC = QuantSpec(bits=4, group_size=8, symmetric=False)


def test_asymmetric_vector():
    """The published vector: scale 0.2, zero point 5, halves rounded to even."""
    weight = torch.tensor([[-1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 1.5, 2.0]])
    qparams = choose_qparams(*group_ranges(weight, ASYMMETRIC), ASYMMETRIC)
    stored = to_int_weight(round_to_grid(weight, qparams, ASYMMETRIC), qparams, ASYMMETRIC)

    assert stored.scale.item() == torch.tensor(0.2).half().item()
    assert stored.zero_point.item() == 5
    # 0.25 / 0.2 and -0.5 / 0.2 lie at 1.25 and -2.5; the float16 step is a hair below 0.2, so -2.5 rounds down
    assert stored.q.tolist() in ([[0, 3, 5, 6, 7, 10, 13, 15]], [[0, 2, 5, 6, 8, 10, 13, 15]])


def test_group_of_one_sign_keeps_its_values_apart():
    """AutoAWQ leaves zero out of the range and collapses such a group to a single value."""
    weight = torch.tensor([[0.5, 0.6, 0.7, 0.8]])
    rounded = round_to_nearest(weight, QuantSpec(4, 4, False))

    assert torch.allclose(rounded, torch.tensor([[0.48, 0.587, 0.693, 0.8]]), atol=2e-3)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [32, 64, -1])
def test_error_is_at_most_half_a_step(symmetric: bool, group_size: int):
    """Every weight lands on the nearest grid value; symmetric grids have their zero in the middle."""
    spec = QuantSpec(4, group_size, symmetric)
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(1))
    qparams = choose_qparams(*group_ranges(weight, spec), spec)
    rounded = round_to_grid(weight, qparams, spec)
    step = qparams.scale.repeat_interleave(spec.group_of(128), 1)

    # asymmetric zero points are rounded too, so the outermost value may miss its end by up to a whole step
    assert ((rounded - weight).abs() <= step * (0.51 if symmetric else 1.01)).all()
    if symmetric:
        assert (qparams.zero_point == 8).all()


@settings(max_examples=100)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32, allow_subnormal=False), min_size=16, max_size=16),
    st.booleans(),
)
def test_integers_hold_exactly_what_was_rounded(values: list[float], symmetric: bool):
    """Integers, steps and zero points reproduce the rounded floats to the last bit, for any finite weights."""
    spec = QuantSpec(4, 8, symmetric)
    weight = torch.tensor(values).view(1, 16)
    qparams = choose_qparams(*group_ranges(weight, spec), spec)
    rounded = round_to_grid(weight, qparams, spec)

    assert torch.isfinite(rounded).all()
    assert torch.equal(dequantize(to_int_weight(rounded, qparams, spec)), rounded)
    assert torch.equal(round_to_grid(rounded, qparams, spec), rounded)


def test_group_of_zeros_stays_zero():
    """A dead group has a step that float16 can hold, and no NaN."""
    assert torch.equal(round_to_nearest(torch.zeros(2, 32), QuantSpec(4, 32, False)), torch.zeros(2, 32))
