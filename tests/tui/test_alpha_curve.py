"""The search curve as text."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from awq_tui.widgets.alpha_curve import AlphaCurve, Curve, best_label, point_cells
from awq_tui.widgets.glyphs import ASCII, UNICODE
from awq_tui.widgets.plot import row_text

POINTS = [[step / 20, 1e-4 * (1 + 8 * (step / 20 - 0.5) ** 2)] for step in range(20)]


def drawn(points: list[list[float]], width: int, height: int, ascii_only: bool = False) -> list[str]:
    curve = AlphaCurve(glyph_set=ASCII if ascii_only else UNICODE)
    curve._curve = Curve.from_points(points)
    return [row_text(row) for row in curve.draw(width, height)]


def test_a_small_pane_says_and_marks_the_best() -> None:
    rows = drawn(POINTS, 38, 6)
    assert rows[0] == "best α 0.50, 0.33x unscaled"
    assert rows[1].startswith(" 3.0e-4│•")
    assert rows[4].startswith(" 1.0e-4│")
    assert rows[4].count("◆") == 1
    assert rows[5].split() == ["0.00", "0.47", "0.95"]


def test_the_best_point_sits_at_its_alpha() -> None:
    plot = [row[8:] for row in drawn(POINTS, 60, 10)[1:-1]]
    column = next(row.index("◆") for row in plot if "◆" in row)
    assert column == round(0.5 / 0.95 * 51)


def test_ascii_uses_no_other_characters() -> None:
    assert "".join(drawn(POINTS, 38, 6, ascii_only=True)).isascii()


def test_no_search_is_said() -> None:
    assert "no search" in "".join(drawn([], 38, 6))
    assert Curve.from_points([["a", 1.0]]) is None  # type: ignore[list-item]


def test_points_that_are_not_finite_are_left_out() -> None:
    curve = Curve.from_points([[0.0, 1.0], [0.5, math.nan], [1.0, math.inf]])
    assert curve == Curve((0.0,), (1.0,))


def test_a_flat_or_zero_curve_does_not_divide_by_zero() -> None:
    assert best_label(Curve((0.0, 1.0), (0.0, 0.0)), UNICODE) == "best α 0.00"
    assert len(drawn([[0.0, 0.0], [1.0, 0.0]], 38, 6)) == 6
    assert len(drawn([[0.5, 1e-4]], 38, 6)) == 6


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1e6)), min_size=1, max_size=40),
    st.integers(8, 100),
    st.integers(2, 30),
)
def test_every_point_lands_inside_the_plot(points: list[tuple[float, float]], width: int, height: int) -> None:
    curve = Curve.from_points(points)
    assert curve is not None
    cells = point_cells(curve, width, height)
    assert all(0 <= row < height and 0 <= column < width for row, column in cells)
    assert sum(cells.values()) == 1
