"""Cutting names in the middle."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from awq_tui.ellipsis import shorten


def test_what_fits_is_left_alone() -> None:
    assert shorten("model", 5) == "model"


def test_the_end_that_tells_results_apart_is_kept() -> None:
    assert shorten("kidstory-llama-3.7M-AWQ-W4-G128", 22) == "kidstory-…-AWQ-W4-G128"


@pytest.mark.parametrize("width", range(2, 20))
def test_wide_characters_never_overflow(width: int) -> None:
    assert cell_len(shorten("模型-名前-とても長い名前-模型", width)) <= width
