"""Ranges, steps and rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from awq_engine.quantize import (
    SMALLEST_SCALE,
    choose_qparams,
    group_ranges,
    round_to_grid,
    round_to_nearest,
    row_slices,
    to_int_weight,
)
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


def test_ranges_hold_zero():
    weight = torch.tensor([[-3.0, -2.0, 0.5, 0.25], [1.0, -1.0, 0.125, -0.125]])
    low, high = group_ranges(weight, QuantSpec(4, 2, False))

    assert low.tolist() == [[-3, 0], [-1, -0.125]]
    assert high.tolist() == [[0, 0.5], [1, 0.125]]


@pytest.mark.parametrize(("low", "high", "scale"), [(-4.0, 1.0, 0.5), (-1.0, 3.5, 0.5), (0.0, 0.0, SMALLEST_SCALE)])
def test_symmetric_steps_just_cover_the_end_that_reaches_further(low: float, high: float, scale: float):
    """-8 steps to +7: the grid reaches one step further down."""
    qparams = choose_qparams(torch.tensor([[low]]), torch.tensor([[high]]), QuantSpec(4, 8, True))
    assert (qparams.scale.item(), qparams.zero_point.item()) == (scale, 8)


@pytest.mark.parametrize("step_dtype", ["float16", "bfloat16"])
def test_steps_are_numbers_of_the_dtype_they_are_stored_in(step_dtype: str):
    """Of both in the end: readers convert, and what is infinite in one of them would be lost."""
    spec = QuantSpec(4, 8, False, step_dtype=step_dtype)
    weight = torch.tensor([[0.1] * 7 + [1.7], [-1e9] * 8, [1e-12] * 8])
    qparams = choose_qparams(*group_ranges(weight, spec), spec)
    stored = to_int_weight(round_to_grid(weight, qparams, spec), qparams, spec)

    assert stored.scale.dtype == getattr(torch, step_dtype)
    assert torch.equal(stored.scale.float(), qparams.scale)
    assert stored.scale[0].item() == torch.tensor(1.7 / 15).to(stored.scale.dtype).item()
    assert stored.scale[1:].flatten().tolist() == [65280, SMALLEST_SCALE]
    assert torch.isfinite(stored.scale.to(torch.float16)).all()


@pytest.mark.parametrize(("rows", "columns"), [(5000, 16), (5000, 4096), (3, 1 << 23), (1, 1)])
def test_rows_are_worked_on_in_pieces_of_bounded_size(rows: int, columns: int):
    weight = torch.empty(rows, columns, device="meta")
    pieces = [range(rows)[piece] for piece in row_slices(weight)]

    assert [row for piece in pieces for row in piece] == list(range(rows))
    assert all(len(piece) * columns <= max(1 << 22, columns) and len(piece) <= 2048 for piece in pieces)
    assert len(pieces) == 1 or len(pieces[0]) == max(1, min(2048, (1 << 22) // columns))


@pytest.mark.parametrize(("low", "high", "zero"), [(-0.76, 0.74, 8), (-0.74, 0.76, 7), (0.0, 1.5, 0), (-1.5, 0.0, 15)])
def test_zero_points_are_the_nearest_level_to_zero(low: float, high: float, zero: int):
    qparams = choose_qparams(torch.tensor([[low]]), torch.tensor([[high]]), ASYMMETRIC)
    assert (qparams.scale.item(), qparams.zero_point.item()) == (torch.tensor(0.1).half().item(), zero)


@pytest.mark.parametrize(("low", "zero"), [(0.0, 1), (-0.05, 1), (-0.7, 5)])
def test_a_range_is_widened_where_zero_points_start_at_one(low: float, zero: int):
    """So that its highest value, 1.4, stays on the grid of levels 0 to 15."""
    spec = QuantSpec(4, 8, False, lowest_zero=1)
    qparams = choose_qparams(torch.tensor([[low]]), torch.tensor([[1.4]]), spec)
    top = qparams.scale * (spec.levels - qparams.zero_point)

    assert qparams.scale.item() == pytest.approx((1.4 - min(low, -0.1)) / 15, rel=1e-3)
    assert qparams.zero_point.item() == zero
    assert top.item() == pytest.approx(1.4, abs=qparams.scale.item() / 2)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_integers_of_other_widths(bits: int):
    spec = QuantSpec(bits, 8, False)
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(bits))
    qparams = choose_qparams(*group_ranges(weight, spec), spec)
    rounded = round_to_grid(weight, qparams, spec)
    stored = to_int_weight(rounded, qparams, spec)

    assert (stored.bits, stored.q.max().item()) == (bits, spec.levels)
    assert torch.equal(dequantize(stored), rounded)


def test_integers_stay_on_the_device_their_weights_are_on():
    """On the one that has no numbers a tensor of any other cannot be mixed in."""
    weight = torch.empty(4, 16, device="meta")
    qparams = choose_qparams(*group_ranges(weight, ASYMMETRIC), ASYMMETRIC)
    stored = to_int_weight(round_to_grid(weight, qparams, ASYMMETRIC), qparams, ASYMMETRIC)

    assert {tensor.device.type for tensor in (stored.q, stored.scale, stored.zero_point)} == {"meta"}
