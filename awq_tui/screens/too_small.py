"""Shown while the terminal is smaller than the screens can be drawn in."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.screen import ModalScreen
from textual.widgets import Static


class TooSmallScreen(ModalScreen[None]):
    """The app takes it away as soon as the terminal has grown."""

    CSS = """
    TooSmallScreen { align: center middle !important; background: $background !important; }
    TooSmallScreen Static { width: 100%; text-align: center; }
    """
    """Important, because the sheet of the other modals lets the screen below shine through."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__()
        self._needed = f"{width}x{height}"

    def compose(self) -> ComposeResult:
        yield Static(markup=False)

    def on_resize(self) -> None:
        size = self.app.size
        text = f"This terminal is too small: {size.width}x{size.height}, and awq-tui needs {self._needed}.\n"
        self.query_one(Static).update(text + "Make it larger, or press ctrl+q to quit.")
