"""Where the person writes: enter sends, shift+enter or ctrl+j starts a new line."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

FOREIGN_KEYS = ("f6", "f7")
"""Keys that a text area takes for selecting and the app for other things."""


class Prompt(TextArea):
    """Grows from one line to eight."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "Send", id="prompt.send", show=False, tooltip="Send the text."),
        Binding("shift+enter,ctrl+j", "new_line", "New line", key_display="^j", id="prompt.new_line", show=False,
                tooltip="shift+enter works only in terminals that can tell it from enter; ctrl+j everywhere."),
    ]  # fmt: skip
    DEFAULT_CSS = """
    Prompt { height: auto; max-height: 8; border: round $border-blurred; padding: 0 1; }
    Prompt:focus { border: round $primary; }
    """

    class Submitted(Message):
        """The person sent `text`; the prompt is left as it is."""

        def __init__(self, text: str) -> None:
            self.text = text
            super().__init__()

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(
            id=id, soft_wrap=True, show_line_numbers=False, highlight_cursor_line=False, compact=False,
            placeholder="Say something; enter sends, ctrl+j starts a line",
        )  # fmt: skip
        for key in FOREIGN_KEYS:
            self._bindings.key_to_bindings.pop(key, None)

    async def _on_key(self, event: events.Key) -> None:
        """Run our bindings here, in the order of typing.

        A priority binding would overtake characters that still wait in this widget's queue, and send half of what was
        typed or pasted quickly. An ordinary one is run by the screen, after characters that were typed later: while
        the app is busy, backspace would take away the wrong one.
        """
        active = None if event.is_printable else self.screen.active_bindings.get(event.key)
        if active is not None and active.node is self:
            event.stop()
            event.prevent_default()
            await self.run_action(active.binding.action)

    def action_send(self) -> None:
        if self.text.strip():
            self.post_message(self.Submitted(self.text))

    def action_new_line(self) -> None:
        self.insert("\n")
