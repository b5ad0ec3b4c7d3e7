"""The AWQ search of one fold: output loss against alpha on a log axis, the best point marked and said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from awq_engine import format as fmt
from awq_tui.widgets.glyphs import Glyphs, glyphs
from awq_tui.widgets.plot import Plot, Row, centred_notice, place_labels

LABEL_WIDTH = 7
"""Cells of the loss labels on the left, as in `4.1e-4`."""


@dataclass(frozen=True)
class Curve:
    """Points of a search, by rising alpha."""

    alphas: tuple[float, ...]
    losses: tuple[float, ...]

    @classmethod
    def from_points(cls, points: Sequence[Sequence[float]]) -> Curve | None:
        """[alpha, loss] pairs of an event or a report; points that are not finite are left out."""
        try:
            pairs = sorted((float(alpha), float(loss)) for alpha, loss in points)
        except (TypeError, ValueError):
            return None
        finite = [pair for pair in pairs if all(math.isfinite(value) for value in pair) and pair[1] >= 0]
        return cls(*(tuple(values) for values in zip(*finite, strict=True))) if finite else None

    @property
    def best(self) -> int:
        """Index of the smallest loss, the first of equals."""
        return self.losses.index(min(self.losses))


class AlphaCurve(Plot):
    """A dot per grid point; readable from 24x5 cells."""

    def __init__(self, *, glyph_set: Glyphs | None = None, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._glyphs = glyph_set or glyphs()
        self._curve: Curve | None = None

    def show(self, points: Sequence[Sequence[float]]) -> None:
        """Draw the `curve` of an event; an empty one draws why there is none."""
        curve = Curve.from_points(points)
        if curve != self._curve:
            self._curve = curve
            self.redraw()

    def draw(self, width: int, height: int) -> list[Row]:
        if self._curve is None:
            return centred_notice(width, height, "no search for this layer")
        best, axis = best_label(self._curve, self._glyphs), "  loss, log axis"
        title: Row = [(best[:width], "plot--best"), (axis if len(best) + len(axis) <= width else "", "plot--axis")]
        plot_width, plot_height = width - LABEL_WIDTH - 1, height - 2
        if plot_width < 8 or plot_height < 2:
            return [title]
        cells = point_cells(self._curve, plot_width, plot_height)
        rows = [self._plot_row(cells, row, plot_width, plot_height) for row in range(plot_height)]
        return [title, *rows, [(axis_labels(self._curve, plot_width), "plot--axis")]]

    def _plot_row(self, cells: dict[tuple[int, int], bool], row: int, width: int, height: int) -> Row:
        """One line: the loss at its height on the left (top and bottom line only), then the points."""
        assert self._curve is not None
        ends = {0: max(self._curve.losses), height - 1: min(self._curve.losses)}
        label = fmt.loss(ends[row]) if row in ends else ""
        spans: Row = [(f"{label:>{LABEL_WIDTH}}{self._glyphs.edge}", "plot--axis")]
        for column in range(width):
            is_best = cells.get((row, column))
            if is_best is None:
                spans.append((" ", ""))
            else:
                spans.append((self._glyphs.best, "plot--best") if is_best else (self._glyphs.point, "plot--mark"))
        return spans


def best_label(curve: Curve, chars: Glyphs) -> str:
    """`best α 0.55, 0.63x unscaled`: the curve's message without looking at the curve."""
    best = curve.best
    text = f"best {chars.alpha} {curve.alphas[best]:.2f}"
    unscaled = curve.losses[0] if curve.alphas[0] == 0 else 0.0
    return f"{text}, {fmt.times(curve.losses[best] / unscaled)} unscaled" if unscaled > 0 else text


def point_cells(curve: Curve, width: int, height: int) -> dict[tuple[int, int], bool]:
    """(row, column) of every point, row 0 on top; True marks the best one, which wins a cell it shares."""
    floor = max(min(curve.losses), 1e-30)
    logs = [math.log(max(loss, floor)) for loss in curve.losses]
    low, span = min(logs), (max(logs) - min(logs)) or 1.0
    first, alpha_span = curve.alphas[0], (curve.alphas[-1] - curve.alphas[0]) or 1.0
    cells: dict[tuple[int, int], bool] = {}
    for index, (alpha, log) in enumerate(zip(curve.alphas, logs, strict=True)):
        row = round((1 - (log - low) / span) * (height - 1))
        column = round((alpha - first) / alpha_span * (width - 1))
        cells[row, column] = cells.get((row, column), False) or index == curve.best
    return cells


def axis_labels(curve: Curve, width: int) -> str:
    """Alpha at both ends and in the middle, under the points."""
    low, high = curve.alphas[0], curve.alphas[-1]
    marks = [(0, low), (width // 2, (low + high) / 2), (width - 1, high)]
    return " " * (LABEL_WIDTH + 1) + place_labels(width, [(column, f"{alpha:.2f}") for column, alpha in marks])
