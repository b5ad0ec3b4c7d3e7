"""Numbers to text."""

from __future__ import annotations

import math

import pytest

from awq_engine import format as fmt


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (512, "512 B"), (9_100_000, "9.1 MB"), (15_230_000_000, "15.2 GB"), (999_999, "1.0 MB"), (None, "-")],
)
def test_sizes_are_decimal(n_bytes: float | None, text: str) -> None:
    assert fmt.size(n_bytes) == text


@pytest.mark.parametrize(
    ("n", "text"), [(950, "950"), (4_700_000, "4.7 M"), (7_600_000_000, "7.6 B"), (152_000, "152 K")]
)
def test_counts_use_the_letters_of_model_pages(n: float, text: str) -> None:
    assert fmt.count(n) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (7.4, "0:07"),
        (192, "3:12"),
        (59.7, "1:00"),
        (3723, "1:02:03"),
        (-1, "0:00"),
        (None, "-"),
        (math.inf, "-"),
    ],
)
def test_durations_read_like_a_clock(seconds: float | None, text: str) -> None:
    assert fmt.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(4.1e-4, "4.1e-4"), (0.0, "0"), (123.0, "1.2e2"), (math.nan, "-"), (None, "-")]
)
def test_losses_have_two_digits(value: float | None, text: str) -> None:
    assert fmt.loss(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.314, "0.31"), (6.87, "6.87"), (14.9, "14.9"), (2512, "2512"), (3e-5, "3.0e-5"), (0, "0.00")]
)
def test_numbers_keep_about_three_digits(value: float, text: str) -> None:
    assert fmt.number(value) == text


@pytest.mark.parametrize(
    ("factor", "text"), [(0.268, "0.27x"), (6.34, "6.3x"), (120.4, "120x"), (1.999, "2.0x"), (None, "-")]
)
def test_factors_end_in_x(factor: float | None, text: str) -> None:
    assert fmt.times(factor) == text


@pytest.mark.parametrize(("part", "text"), [(0.015, "1.5%"), (0.39, "39%"), (0, "0%"), (1, "100%"), (None, "-")])
def test_shares_are_percentages(part: float | None, text: str) -> None:
    assert fmt.share(part) == text


def test_changes_carry_their_sign() -> None:
    assert (fmt.change(0.12), fmt.change(-0.731), fmt.change(None)) == ("+12%", "-73%", "-")
    assert (fmt.change(8.99), fmt.change(50.2), fmt.change(5066.79), fmt.change(2e7)) == (
        "+899%", "51.2x", "5068x", "2.0e7x"
    )  # fmt: skip


def test_roles_lose_their_suffix_but_never_become_empty() -> None:
    names = ("self_attn.q_proj", "mlp.down_proj", "fc1", "_proj")
    assert [fmt.short_role(name) for name in names] == ["q", "down", "fc1", "_proj"]


def test_a_preset_says_only_what_is_unusual() -> None:
    assert fmt.preset_label(4, 128, "balanced") == "W4 g128 balanced"
    assert fmt.preset_label(4, -1, "fast", method="rtn", symmetric=True) == "W4 row symmetric rtn"
