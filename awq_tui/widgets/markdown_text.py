"""Markdown that grows, in one widget: loses no text and leaves the keyboard its time.

Textual's own Markdown makes a widget of every paragraph and lays all of them out at every change, which took half of a
core at 100 tokens a second. Here only the last block of the text is parsed again when more comes, lines are kept, and
only what changed is drawn. What comes is collected in between; the pause is a multiple of what the last drawing cost,
and longer while somebody types. At the end the whole text is parsed once more, because a definition far down may make a
link of words far up.
"""

from __future__ import annotations

import time
from typing import ClassVar

from rich.segment import Segment
from textual.content import Content
from textual.geometry import Region, Size
from textual.selection import Selection
from textual.strip import Strip
from textual.style import Style
from textual.timer import Timer
from textual.widget import Widget

from awq_tui.app import AwqApp
from awq_tui.markdown_blocks import Block, parse_blocks

MIN_REST = 0.2
"""Seconds between two drawings: five a second are read as one stream, and cost under a tenth of a core."""
REST_PER_COST = 10.0
"""How much longer than a drawing the pause after it is."""
MAX_REST = 1.0
TYPING_REST = 0.1
"""Seconds to wait again when a key was pressed just now."""
PATIENCE = 4
"""How often in a row a drawing waits for typing to pause."""
FIRST_REST = 0.02
"""Before the first drawing; Textual's timers never fire after 0."""


class MarkdownText(Widget):
    """Feed it fragments; `finish` draws what is left at once."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "text--heading", "text--strong", "text--emphasis", "text--struck", "text--link", "text--code", "text--block",
        "text--quote", "text--mark", "text--rule", "code--comment", "code--keyword", "code--string", "code--number",
        "code--name",
    }  # fmt: skip
    DEFAULT_CSS = """
    MarkdownText {
        height: auto;
        & > .text--heading { color: $accent; text-style: bold; }
        & > .text--strong { text-style: bold; }
        & > .text--emphasis { text-style: italic; }
        & > .text--struck { text-style: strike; }
        & > .text--link { text-style: underline; }
        & > .text--code { color: $accent; }
        & > .text--block { background: $panel; }
        & > .text--quote { color: $primary; }
        & > .text--mark { color: $primary; }
        & > .text--rule { color: $foreground 60%; }
        & > .code--comment { color: $foreground 60%; text-style: italic; }
        & > .code--keyword { color: $primary; }
        & > .code--string { color: $success; }
        & > .code--number { color: $warning; }
        & > .code--name { color: $secondary; text-style: bold; }
        &:ansi > .text--heading { color: ansi_yellow; }
        &:ansi > .text--code { color: ansi_yellow; }
        &:ansi > .text--block { color: ansi_cyan; background: ansi_default; }
        &:ansi > .text--quote { color: ansi_blue; }
        &:ansi > .text--mark { color: ansi_blue; }
        &:ansi > .text--rule { color: ansi_default; text-style: dim; }
        &:ansi > .code--comment { color: ansi_default; text-style: dim; }
        &:ansi > .code--keyword { color: ansi_blue; }
        &:ansi > .code--string { color: ansi_green; }
        &:ansi > .code--number { color: ansi_yellow; }
        &:ansi > .code--name { color: ansi_cyan; }
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._text = ""
        self._finished: list[Block] = []
        """What no further text can change."""
        self._growing: list[Block] = []
        """The last block, made of the text from `_growing_from` on."""
        self._growing_from = 0
        self._timer: Timer | None = None
        self._rest = FIRST_REST
        self._patience = PATIENCE
        self._lines: list[Content] = []
        self._width = -1
        """That the lines are made for; -1 when they are to be made."""
        self._strips: dict[int, Strip] = {}
        """By line, those that were drawn and have not changed."""

    @property
    def text(self) -> str:
        """Everything fed so far, drawn or not."""
        return self._text

    def feed(self, fragment: str) -> None:
        """Add text; it is drawn soon."""
        self._text += fragment
        if self._timer is None:
            self._timer = self.set_timer(self._rest, self._draw_when_quiet)

    def replace(self, text: str) -> None:
        """`text` in the place of everything fed so far."""
        self._start_over()
        self._text = ""
        self.feed(text)

    def finish(self) -> None:
        """Draw the whole text, as if it had come in one piece."""
        if self._timer is not None:
            self._timer.stop()
        self._start_over()
        self._draw()

    def _start_over(self) -> None:
        self._finished, self._growing, self._growing_from = [], [], 0
        self._strips.clear()

    def _draw_when_quiet(self) -> None:
        """A picture of new text holds up a key, so it leaves some room to somebody who types."""
        if self._patience and isinstance(self.app, AwqApp) and self.app.is_typed_in:
            self._patience -= 1
            self._timer = self.set_timer(TYPING_REST, self._draw_when_quiet)
        else:
            self._draw()

    def _draw(self) -> None:
        started = time.thread_time()
        self._timer, self._patience = None, PATIENCE
        width, height = self.size.width, len(self._lines)
        unchanged = len(self._lines_of(self._finished, width)) if width else 0
        self._parse()
        self._width = -1
        for y in [y for y in self._strips if y >= unchanged]:
            del self._strips[y]
        if width and len(self._laid_out(width)) == height:
            self.refresh(Region(0, unchanged, width, height - unchanged))
        else:
            self.refresh(layout=True)
        self._rest = min(max(MIN_REST, REST_PER_COST * (time.thread_time() - started)), MAX_REST)

    def _parse(self) -> None:
        tail = self._text[self._growing_from :]
        found = parse_blocks(tail)
        self._finished += found[:-1]
        self._growing = found[-1:]
        if found:
            self._growing_from += sum(len(line) + 1 for line in tail.split("\n")[: found[-1].start])

    def _laid_out(self, width: int) -> list[Content]:
        """All lines, in at most `width` cells."""
        if width != self._width:
            if self._width != -1:
                self._strips.clear()
            self._width = width
            self._lines = self._lines_of([*self._finished, *self._growing], width)
        return self._lines

    @staticmethod
    def _lines_of(blocks: list[Block], width: int) -> list[Content]:
        """With an empty line between two blocks."""
        lines: list[Content] = []
        for block in blocks:
            if lines:
                lines.append(Content(""))
            lines += block.lines(width)
        return lines

    # Textual's side

    def get_content_width(self, container: Size, viewport: Size) -> int:
        return container.width

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self._laid_out(width))

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._strips.clear()

    def render_line(self, y: int) -> Strip:
        lines = self._laid_out(self.size.width)
        if y >= len(lines):
            return Strip.blank(self.size.width, self.rich_style)
        if y not in self._strips:
            self._strips[y] = self._strip(lines[y], y)
        return self._strips[y]

    def _strip(self, line: Content, y: int) -> Strip:
        base = self.visual_style
        if (selection := self.text_selection) is not None and (span := selection.get_span(y)) is not None:
            start, end = span
            chosen = self.screen.get_visual_style("screen--selection")
            line = line.stylize(chosen, start, len(line) if end == -1 else end)
        segments = [
            Segment(text, (base + style).rich_style)
            for text, style in line.render(base, "", parse_style=self._named_style)
        ]
        return Strip(segments).adjust_cell_length(self.size.width, base.rich_style).apply_offsets(0, y)

    def _named_style(self, name: str | Style) -> Style:
        """Textual gives a component's part of a style without its background."""
        return self.get_visual_style("text--block") if name == ".text--block" else self._get_style(name)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The lines as they are drawn."""
        return selection.extract("\n".join(line.plain for line in self._lines)), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        self._strips.clear()
        self.refresh()
