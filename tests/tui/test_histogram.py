"""The histogram as text, at the sizes it has on the screens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.screen import Screen

from awq_tui.widgets.glyphs import ASCII, UNICODE, choose_glyphs
from awq_tui.widgets.histogram import Bins, Histogram, bar_rows, rebin
from awq_tui.widgets.plot import place_labels, row_text
from tests.tui.hosting import screen_text, staged, until

DATA: dict[str, Any] = {"low": -1.0, "high": 1.0, "counts": [1, 4, 9, 16, 25, 16, 9, 4, 1, 0, 0, 0, 0, 0, 0, 1]}


def drawn(data: dict[str, Any] | None, width: int, height: int, ascii_only: bool = False) -> list[str]:
    histogram = Histogram(glyph_set=ASCII if ascii_only else UNICODE)
    histogram._bins = Bins.from_event(data)
    return [row_text(row) for row in histogram.draw(width, height)]


def test_a_small_pane_is_readable() -> None:
    rows = drawn(DATA, 38, 6)
    assert rows[0] == "channel scales (log10), 86 channels"
    assert rows[1].index("█") == int(4.5 / 16 * 38)
    assert rows[3].endswith("▁")
    assert rows[5].split() == ["0.10", "0.3", "1", "3", "10.0"]
    assert all(len(row) <= 38 for row in rows)


def test_labels_stand_under_their_ticks() -> None:
    ticks, labels = drawn(DATA, 38, 6)[4:]
    column = labels.index(" 1 ") + 1
    assert column == 19
    assert ticks[column] == "┴"


def test_ascii_uses_no_other_characters() -> None:
    assert "".join(drawn(DATA, 38, 6, ascii_only=True)).isascii()


async def test_a_smaller_pane_keeps_the_axis() -> None:
    screen: Screen[None] = Screen()
    async with staged(screen, (60, 20)) as pilot:
        histogram = Histogram(glyph_set=UNICODE)
        await screen.mount(histogram)
        histogram.show(DATA)
        await until(pilot, lambda: "10.0" in screen_text(pilot))
        histogram.styles.height = 10
        screen._refresh_layout()
        assert "10.0" not in screen_text(pilot).splitlines()[9], "painted before the plot heard of its new size"
        await until(pilot, lambda: "10.0" in screen_text(pilot).splitlines()[9])


@pytest.mark.parametrize(
    "data", [None, {}, {"low": 0, "high": 1, "counts": []}, {"low": "x", "high": 1, "counts": [1]}]
)
def test_nothing_to_plot_is_said(data: dict[str, Any] | None) -> None:
    assert "no channel scale" in "".join(drawn(data, 38, 6))


def test_one_value_for_all_channels_is_drawn() -> None:
    rows = drawn({"low": 0.0, "high": 0.0, "counts": [0, 896, 0]}, 30, 6)
    assert rows[-1].split() == ["1.00"]


def test_a_narrow_range_gets_its_ends_as_labels() -> None:
    rows = drawn({"low": 0.1, "high": 0.2, "counts": [1, 2, 3, 4]}, 30, 6)
    assert rows[-1].split() == ["1.26", "1.58"]


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=200), st.integers(1, 150))
def test_rebinning_keeps_the_sum_and_fills_the_width(counts: list[int], width: int) -> None:
    columns = rebin(counts, width)
    assert len(columns) == width
    assert sum(columns) == pytest.approx(sum(counts))
    assert all(column >= 0 for column in columns)


def test_rebinning_to_half_the_width_adds_pairs() -> None:
    assert rebin([1, 2, 3, 4], 2) == [3, 7]


@given(st.lists(st.integers(0, 1_000_000), min_size=1, max_size=60), st.integers(1, 12))
def test_bars_show_every_count_and_the_highest_fills_the_height(columns: list[int], height: int) -> None:
    rows = bar_rows(columns, height, UNICODE)
    assert [len(row) for row in rows] == [len(columns)] * height
    assert [rows[-1][i] != " " for i in range(len(columns))] == [count > 0 for count in columns]
    if max(columns) > 0:
        assert rows[0][columns.index(max(columns))] == "█"


def test_labels_never_overlap() -> None:
    assert place_labels(12, [(0, "0.10"), (3, "0.30"), (11, "10")]) == "0.10      10"


def test_the_terminal_decides_the_characters() -> None:
    assert choose_glyphs("utf-8", {}) is UNICODE
    assert choose_glyphs("ANSI_X3.4-1968", {}) is ASCII
    assert choose_glyphs(None, {}) is ASCII
    assert choose_glyphs("utf-8", {"AWQ_TUI_ASCII": "1"}) is ASCII
    assert choose_glyphs("utf-8", {"TERM": "linux"}) is ASCII
    assert choose_glyphs("utf-8", {"TERM": "linux", "AWQ_TUI_ASCII": "0"}) is UNICODE
