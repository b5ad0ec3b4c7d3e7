"""A histogram of a fold's channel scales on a log10 axis.

The engine bins, with a number of bins that no screen chose; this widget spreads the bins over the columns there are, so
the shares stay right at every width. A column that holds anything at all shows at least one eighth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from awq_engine import format as fmt
from awq_tui.widgets.glyphs import Glyphs, glyphs
from awq_tui.widgets.plot import Plot, Row, centred_notice, place_labels

NICE_VALUES = (1.0, 3.0)
"""Axis labels are these times powers of ten."""
END_LABEL = 6
"""Cells at both ends of the axis that belong to the labels of its ends."""


@dataclass(frozen=True)
class Bins:
    """Counts over equal steps of log10(channel scale)."""

    low: float
    high: float
    counts: tuple[int, ...]

    @classmethod
    def from_event(cls, data: Mapping[str, Any] | None) -> Bins | None:
        """The `histogram` of an event or a report; None when there is none or it holds nothing."""
        try:
            bins = cls(float(data["low"]), float(data["high"]), tuple(int(n) for n in data["counts"])) if data else None
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        finite = bins and math.isfinite(bins.low) and math.isfinite(bins.high)
        return bins if bins and finite and any(n > 0 for n in bins.counts) else None


class Histogram(Plot):
    """Bars over a labelled axis; readable from 20x4 cells."""

    def __init__(self, *, glyph_set: Glyphs | None = None, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._glyphs = glyph_set or glyphs()
        self._bins: Bins | None = None

    def show(self, data: Mapping[str, Any] | None) -> None:
        """Draw the `histogram` of an event; None draws why there is none."""
        bins = Bins.from_event(data)
        if bins != self._bins:
            self._bins = bins
            self.redraw()

    def draw(self, width: int, height: int) -> list[Row]:
        if self._bins is None:
            return centred_notice(width, height, "no channel scale")
        if height < 4:
            return [[(row, "plot--mark")] for row in bar_rows(rebin(self._bins.counts, width), height, self._glyphs)]
        title = f"channel scales (log10), {fmt.count(sum(self._bins.counts))} channels"
        bars = bar_rows(rebin(self._bins.counts, width), height - 3, self._glyphs)
        axis, labels = axis_rows(self._bins, width, self._glyphs)
        return [
            [(title[:width], "plot--axis")],
            *[[(row, "plot--mark")] for row in bars],
            [(axis, "plot--axis")],
            [(labels, "plot--axis")],
        ]


def rebin(counts: Sequence[int], width: int) -> list[float]:
    """The counts spread over `width` columns in proportion to the overlap of bins and columns; the sum stays."""
    columns = [0.0] * width
    for index, count in enumerate(counts):
        start, end = index * width / len(counts), (index + 1) * width / len(counts)
        for column in range(int(start), min(width, math.ceil(end))):
            overlap = min(end, column + 1) - max(start, column)
            columns[column] += count * max(0.0, overlap) / (end - start)
    return columns


def bar_rows(columns: Sequence[float], height: int, chars: Glyphs) -> list[str]:
    """Bars as text, top row first; the highest column fills the height."""
    highest = max(columns, default=0.0) or 1.0
    eighths = [max(1 if count > 0 else 0, round(8 * height * count / highest)) for count in columns]
    return [
        "".join(chars.eighths[min(8, max(0, level - 8 * (height - 1 - row)))] for level in eighths)
        for row in range(height)
    ]


def axis_rows(bins: Bins, width: int, chars: Glyphs) -> tuple[str, str]:
    """The axis line with ticks, and the channel scales (not their logarithms) under it."""
    span = bins.high - bins.low
    if span <= 0:
        return chars.axis * width, place_labels(width, [(width // 2, fmt.number(10**bins.low))])

    def column(value: float) -> int:
        return min(width - 1, int((math.log10(value) - bins.low) / span * width))

    ends = {0: fmt.number(10**bins.low), width - 1: fmt.number(10**bins.high)}
    powers = range(math.floor(bins.low) - 1, math.ceil(bins.high) + 1)
    values = [nice * 10.0**power for power in powers for nice in NICE_VALUES]
    inside = {column(value): f"{value:g}" for value in values if bins.low <= math.log10(value) <= bins.high}
    marks = ends | {at: text for at, text in inside.items() if END_LABEL < at < width - 1 - END_LABEL}
    line = "".join(chars.tick if index in marks else chars.axis for index in range(width))
    return line, place_labels(width, list(marks.items()))
