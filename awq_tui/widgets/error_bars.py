"""Weight error beside output error of one layer, both against plain rounding.

AWQ may raise the first while it lowers the second: that is the method, and two bars show it at a glance. The mark in
the middle is plain rounding; a bar that reaches the right end is twice as much or more.
"""

from __future__ import annotations

from awq_engine import format as fmt
from awq_tui.widgets.glyphs import Glyphs, glyphs
from awq_tui.widgets.plot import Plot, Row

LABEL_WIDTH = 21
"""Cells of `weight error   +12%  `."""
LEGEND = "plain rounding"
MAX_BAR = 60


class ErrorBars(Plot):
    """Two lines; from 42 cells on with bars, below that the numbers only."""

    DEFAULT_CSS = "ErrorBars { height: 2; }"

    def __init__(self, *, glyph_set: Glyphs | None = None, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._glyphs = glyph_set or glyphs()
        self._changes: tuple[float | None, float | None] = (None, None)

    def show(self, weight_change: float | None, output_change: float | None) -> None:
        """Relative changes against plain rounding; None where there is nothing to compare."""
        if (weight_change, output_change) != self._changes:
            self._changes = (weight_change, output_change)
            self.redraw()

    def draw(self, width: int, height: int) -> list[Row]:
        weight, output = self._changes
        output_style = "plot--best" if (output or 0) <= 0 else "plot--bad"
        lines = [
            self._line("weight error", weight, width, "plot--mark"),
            self._line("output error", output, width, output_style),
        ]
        return lines[:height]

    def _line(self, name: str, change: float | None, width: int, style: str) -> Row:
        label = f"{name} {fmt.change(change):>6}  "
        room = min(width - LABEL_WIDTH - len(LEGEND) - 2, MAX_BAR)
        if change is None or room < 4:
            return [(label[:width], "plot--axis")]
        legend = f" {self._glyphs.edge} {LEGEND}"
        return [(label, "plot--axis"), *bar(1 + change, room, style, self._glyphs), (legend, "plot--axis")]


def bar(ratio: float, width: int, style: str, chars: Glyphs) -> Row:
    """A bar for 0 to 2 times plain rounding, with a mark at once."""
    filled = round(min(max(ratio, 0.0), 2.0) / 2 * width)
    cells = chars.filled * filled + " " * (width - filled)
    middle = width // 2
    return [(cells[:middle], style), (chars.edge, "plot--axis"), (cells[middle + 1 :], style)]
