"""A failure in full: a title, text that can be scrolled and copied, nothing else to decide."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from awq_tui.widgets.key_bar import KeyBar


class ErrorModal(ModalScreen[None]):
    """Both texts are shown as they are, never as markup; make them harmless (`plain`) before."""

    CSS_PATH = "modal.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c", "copy", "Copy", id="error.copy", tooltip="Copy the text to the clipboard (OSC 52)."),
        Binding("escape,enter,q", "close", "Close", id="error.close", tooltip="Back to the screen below."),
    ]

    def __init__(self, title: str, message: str) -> None:
        super().__init__(classes="-error")
        self._title = title
        self.message = message

    def compose(self) -> ComposeResult:
        with Vertical(classes="modal") as box:
            box.border_title = Content(self._title)
            with VerticalScroll():
                yield Static(self.message, markup=False)
        yield KeyBar()

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(f"{self._title}\n{self.message}")
        self.app.notify("Copied.", markup=False, timeout=2)

    def action_close(self) -> None:
        self.dismiss()
