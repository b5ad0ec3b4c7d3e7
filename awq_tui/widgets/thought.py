"""What a reasoning model thought before it answered: one line, folded until the person opens it."""

from __future__ import annotations

import time

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Static

from awq_tui.widgets.glyphs import glyphs

REDRAW_INTERVAL = 0.25
"""Seconds between two drawings of a thought that grows: it is plain text, and may be very long."""


class Thought(Vertical):
    """Not there until `show` brings a text; a click or `toggle` opens and folds it."""

    DEFAULT_CSS = """
    Thought { display: none; height: auto; padding: 0 1; }
    Thought.-there { display: block; }
    Thought > .heading { height: 1; color: $text-muted; }
    Thought > .heading:hover { color: $accent; }
    Thought > .text {
        display: none;
        height: auto;
        padding: 0 1;
        color: $text-muted;
        border-left: outer $border-blurred;
    }
    Thought.-open > .text { display: block; }
    """
    ALLOW_SELECT = True

    def __init__(self) -> None:
        super().__init__()
        self._text = ""
        self._thinking = False
        self._due = 0.0

    def compose(self) -> ComposeResult:
        yield Static("", classes="heading", markup=False)
        yield Static("", classes="text", markup=False)

    def show(self, text: str, thinking: bool) -> None:
        """The thought so far; harmless text already."""
        if (text, thinking) == (self._text, self._thinking):
            return
        ended = self._thinking and not thinking
        self._text, self._thinking = text, thinking
        self.set_class(bool(text) or thinking, "-there")
        if ended or not thinking or time.monotonic() >= self._due:
            self._draw()

    def toggle(self, is_open: bool | None = None) -> None:
        """Open or fold."""
        self.set_class(not self.has_class("-open") if is_open is None else is_open, "-open")
        self._draw()

    def on_click(self) -> None:
        self.toggle()

    def _draw(self) -> None:
        self._due = time.monotonic() + REDRAW_INTERVAL
        chars, is_open = glyphs(), self.has_class("-open")
        words = len(self._text.split())
        name = f"thinking{chars.ellipsis}" if self._thinking else "thought"
        mark = chars.opened if is_open else chars.folded
        self.query_one(".heading", Static).update(f"{mark} {name} {chars.dot} {words} words {chars.dot} f3")
        if is_open:
            self.query_one(".text", Static).update(self._text)
