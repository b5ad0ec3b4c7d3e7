"""KL against size, a letter a run: which recipe should I ship?  Those that no other beats in both stand out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from awq_engine import format as fmt
from awq_tui.widgets.glyphs import glyphs
from awq_tui.widgets.plot import Plot, Row, centred_notice, place_labels

LABEL_WIDTH = 7
MARGIN = 0.08
"""Share of the span that is left free on both sides."""


@dataclass(frozen=True)
class Dot:
    """One run."""

    label: str
    nbytes: int
    kl: float
    """Above 0."""
    is_best: bool
    """No other run is smaller and nearer to the original."""


class FrontierChart(Plot):
    """Log10 of the KL upwards, size to the right; readable from 30x6 cells."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._dots: tuple[Dot, ...] = ()
        self._nothing = ""

    def show(self, dots: Sequence[Dot], nothing: str = "") -> None:
        """Draw the dots, or say why there is nothing to draw."""
        found = tuple(dot for dot in dots if dot.kl > 0)
        if (found, nothing) != (self._dots, self._nothing):
            self._dots, self._nothing = found, nothing
            self.redraw()

    def draw(self, width: int, height: int) -> list[Row]:
        plot_width, plot_height = width - LABEL_WIDTH - 1, height - 3
        if not self._dots or plot_width < 12 or plot_height < 3:
            return centred_notice(width, height, self._nothing)
        chars = glyphs()
        title = "KL from the original against size; marked: nothing smaller is nearer"
        xs = _axis([dot.nbytes for dot in self._dots])
        ys = _axis([math.log10(dot.kl) for dot in self._dots])
        cells = _cells(self._dots, xs, ys, plot_width, plot_height)
        ends = {0: 10 ** ys[1], plot_height - 1: 10 ** ys[0]}
        rows: list[Row] = [[(title[:width], "plot--axis")]]
        for row in range(plot_height):
            label = fmt.loss(ends[row]) if row in ends else ""
            spans: Row = [(f"{label:>{LABEL_WIDTH}}{chars.edge}", "plot--axis")]
            rows.append([*spans, *(cells.get((row, column), (" ", "")) for column in range(plot_width))])
        labels = [(round(part * (plot_width - 1)), xs[0] + part * (xs[1] - xs[0])) for part in (0, 0.5, 1)]
        axis = chars.axis * plot_width
        rows.append([(" " * LABEL_WIDTH + chars.edge + axis, "plot--axis")])
        names = place_labels(plot_width, [(column, fmt.size(value)) for column, value in labels])
        return [*rows, [(" " * (LABEL_WIDTH + 1) + names, "plot--axis")]]


def _axis(values: Sequence[float]) -> tuple[float, float]:
    """Both ends of an axis that shows all values, with a margin; never of no length."""
    low, high = min(values), max(values)
    margin = MARGIN * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def _cells(
    dots: Sequence[Dot], xs: tuple[float, float], ys: tuple[float, float], width: int, height: int
) -> dict[tuple[int, int], tuple[str, str]]:
    """(row, column) -> letter and style, row 0 on top; a dot on a taken place goes to the next free one beside it."""
    cells: dict[tuple[int, int], tuple[str, str]] = {}
    for dot in sorted(dots, key=lambda dot: not dot.is_best):
        column = round((dot.nbytes - xs[0]) / (xs[1] - xs[0]) * (width - 1))
        row = round((1 - (math.log10(dot.kl) - ys[0]) / (ys[1] - ys[0])) * (height - 1))
        while (row, column) in cells and column < width - 1:
            column += 1
        cells[row, column] = (dot.label or "?", "plot--best" if dot.is_best else "plot--mark")
    return cells
