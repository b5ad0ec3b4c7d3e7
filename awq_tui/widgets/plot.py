"""The base of the small plots: lines of styled text, drawn once per change of data, size or theme.

A plot answers `draw(width, height)` with rows of spans; that is a pure function of its data, so tests read the rows as
text. Colours come from component classes, so every theme, the 16-colour ones too, restyles the plots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from textual.strip import Strip
from textual.widget import Widget

Span = tuple[str, str]
"""Text and the component class that styles it; an empty class is the widget's own style."""
Row = list[Span]


class Plot(Widget):
    """A widget whose content is `draw(width, height)`."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"plot--mark", "plot--axis", "plot--best", "plot--bad"}
    DEFAULT_CSS = """
    Plot {
        width: 1fr;
        height: 1fr;
        & > .plot--mark { color: $primary; }
        & > .plot--axis { color: $text-muted; }
        & > .plot--best { color: $success; text-style: bold; }
        & > .plot--bad { color: $error; text-style: bold; }
        &:ansi > .plot--mark { color: ansi_blue; }
        &:ansi > .plot--axis { color: ansi_default; text-style: dim; }
        &:ansi > .plot--best { color: ansi_green; }
        &:ansi > .plot--bad { color: ansi_red; }
    }
    """

    _strips: list[Strip] | None = None

    def draw(self, width: int, height: int) -> list[Row]:
        """At most `height` rows of at most `width` cells."""
        raise NotImplementedError

    def redraw(self) -> None:
        """The data changed."""
        self._strips = None
        self.refresh()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._strips = None

    def on_resize(self) -> None:
        """Also lines that were painted at the new size, but before this event came."""
        self.redraw()

    def render_line(self, y: int) -> Strip:
        if self._strips is None:
            rows = self.draw(*self.size) if self.size.width > 0 and self.size.height > 0 else []
            self._strips = [self.strip(row) for row in rows]
        base = self.rich_style
        strip = (
            self._strips[y] if y < len(self._strips) else Strip([])
        )  # a blank one has a segment without a style, which NO_COLOR fails on
        return strip.adjust_cell_length(self.size.width, base).simplify()

    def strip(self, row: Sequence[Span]) -> Strip:
        """One row of spans with the colours of the present theme."""
        base = self.rich_style
        styles = {name: self.get_component_rich_style(name) if name else base for _, name in row}
        return Strip([Segment(text, styles[name]) for text, name in row])


def row_text(row: Sequence[Span]) -> str:
    """A row without its colours."""
    return "".join(text for text, _ in row)


def place_labels(width: int, labels: Sequence[tuple[int, str]]) -> str:
    """Labels centred on their columns in one line; one that would touch its left neighbour is left out."""
    line = ""
    for column, label in sorted(labels):
        start = min(max(0, column - len(label) // 2), width - len(label))
        if start >= len(line) + (1 if line else 0):
            line = line.ljust(start) + label
    return line.ljust(width)[:width]


def centred_notice(width: int, height: int, text: str) -> list[Row]:
    """One line in the middle: why there is nothing to plot."""
    return [*([[("", "")]] * ((height - 1) // 2)), [(text[:width].center(width), "plot--axis")]]
