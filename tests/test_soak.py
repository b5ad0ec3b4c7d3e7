"""Nothing grows that should not: `benchmarks.soak` with numbers that take minutes instead of hours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.soak import soak_blocks, soak_engines, soak_runs, soak_turns

GROWTH_MB = 12.0
"""What memory may differ by: an allocator keeps what it once had."""


@pytest.mark.slow
@pytest.mark.parametrize(("soak", "times"), [(soak_runs, 100), (soak_turns, 1_000), (soak_engines, 5)])
def test_nothing_leaks(soak: Callable[[int], dict[str, Any]], times: int) -> None:
    row = soak(times)
    assert float(row["late_mb"]) - float(row["early_mb"]) < GROWTH_MB, row
    assert (row["late_files"], row["late_threads"]) == (row["early_files"], row["early_threads"]), row
    assert row["late_children"] == 0, row


@pytest.mark.slow
def test_five_hundred_blocks_take_what_five_hundred_blocks_take() -> None:
    """The journal grows with the blocks, memory hardly."""
    few, many = soak_blocks(50), soak_blocks(500)
    assert many["peak_mb"] - few["peak_mb"] < 100, (few, many)
    assert many["journal_kb"] < 12 * few["journal_kb"], (few, many)
