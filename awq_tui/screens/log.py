"""The end of an engine's log, followed while it is open."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from awq_engine.runs import Run
from awq_engine.sanitize import plain
from awq_tui.run_client import log_tail
from awq_tui.widgets.key_bar import KeyBar

INTERVAL = 1.0
"""Seconds between two looks at the file."""


class LogModal(ModalScreen[None]):
    """Everything the engine and its libraries printed; libraries colour and rewrite lines, which is undone here."""

    CSS_PATH = "modal.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c", "copy", "Copy", id="log.copy", tooltip="Copy the log's end to the clipboard (OSC 52)."),
        Binding("escape,l,q", "close", "Close", key_display="esc", id="log.close"),
    ]

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run
        self._text = ""

    def compose(self) -> ComposeResult:
        with Vertical(classes="modal") as box:
            box.border_title = "engine.log"
            with VerticalScroll():
                yield Static(markup=False)
        yield KeyBar()

    def on_mount(self) -> None:
        self._refresh_text()
        self.query_one(VerticalScroll).anchor()
        self.set_interval(INTERVAL, self._refresh_text)

    def _refresh_text(self) -> None:
        text = "\n".join(plain(line) for line in log_tail(self._run)) or "The engine has printed nothing."
        if text != self._text:
            self._text = text
            self.query_one(Static).update(text)

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(self._text)
        self.app.notify("Copied.", markup=False, timeout=2)

    def action_close(self) -> None:
        self.dismiss()
