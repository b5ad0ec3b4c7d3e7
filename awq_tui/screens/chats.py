"""Every conversation that was kept: search them, go on with one, write it out, delete it."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import DataTable, Input, Static

from awq_engine.format import age
from awq_tui.background import in_thread
from awq_tui.chats import Chat, delete_chat, export_chat, list_chats, model_name
from awq_tui.ellipsis import shorten
from awq_tui.screens.confirm import ConfirmModal
from awq_tui.widgets.key_bar import KeyBar
from awq_tui.widgets.plain_input import PlainInput

SETTLE = 0.15
"""Seconds without a keystroke before the files are searched."""
WIDTHS = {"turns": 5, "age": 6}
MODEL_WIDTHS = (16, 30)
"""Cells of the models' names, in a narrow and in a wide table."""


class ChatTable(DataTable[Text]):
    """The list; the keys for one conversation work while it has the focus."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "Open", id="chats.open", tooltip="Go on with this conversation."),
        Binding(
            "slash", "screen.find", "Find", key_display="/", id="chats.find", tooltip="Search in all that was said."
        ),
        Binding("e", "screen.export", "Export", id="chats.export", tooltip="Write it as Markdown and JSON, here."),
        Binding("d,delete", "screen.delete", "Delete", id="chats.delete", tooltip="Delete this conversation."),
    ]


class FindInput(PlainInput):
    """Searches while typing."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,enter", "screen.list", "To the list", key_display="↓", id="chats.list"),
    ]


class ChatsModal(ModalScreen[Chat | None]):
    """Dismissed with the chosen conversation."""

    CSS_PATH = "modal.tcss"
    DEFAULT_CSS = """
    ChatsModal .modal { height: 85%; }
    ChatsModal ChatTable { height: 1fr; margin-top: 1; }
    ChatsModal #chats-note { height: auto; color: $text-muted; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "close", "Close", id="chats.close")]

    def __init__(self) -> None:
        super().__init__()
        self._chats: list[Chat] = []

    def compose(self) -> ComposeResult:
        with Vertical(classes="modal") as box:
            box.border_title = "Conversations"
            yield FindInput(placeholder="words that were said, or a model", id="find-chat", compact=True)
            yield ChatTable(cursor_type="row")
            yield Static(id="chats-note", markup=False)
        yield KeyBar()

    def on_mount(self) -> None:
        self.query_one(ChatTable).focus()
        self._search()

    @on(Input.Changed, "#find-chat")
    def _search(self) -> None:
        query = self.query_one(Input).value
        self.run_worker(partial(self._list, query), group="list", exclusive=True, exit_on_error=False)

    async def _list(self, query: str) -> None:
        if query:
            await asyncio.sleep(SETTLE)
        self._chats = await in_thread(list_chats, query)
        self._fill()
        number = len(self._chats)
        found = f"{number} conversation{'s' if number > 1 else ''}" if number else "No conversation fits."
        nothing = "No conversation yet: they are kept here as soon as a question is answered."
        self.query_one("#chats-note", Static).update(found if query or self._chats else nothing)

    def on_resize(self) -> None:
        self.call_after_refresh(self._fill)

    def _fill(self) -> None:
        table = self.query_one(ChatTable)
        row, now = table.cursor_row, time.time()
        model = MODEL_WIDTHS[table.size.width > 80]
        padding = 2 * table.cell_padding * (len(WIDTHS) + 2) + 1
        title = max(12, table.size.width - model - sum(WIDTHS.values()) - padding)
        table.clear(columns=True)
        for name, width in {"conversation": title, "model": model, **WIDTHS}.items():
            table.add_column(name, width=width)
        for chat in self._chats:
            models = " | ".join(map(model_name, chat.models))
            table.add_row(
                Text(chat.title, overflow="ellipsis"), Text(shorten(models, model)),
                Text(str(len(chat.turns)), justify="right"), Text(age(now - chat.updated), "dim", justify="right"),
            )  # fmt: skip
        table.move_cursor(row=row, animate=False)

    @property
    def current(self) -> Chat | None:
        """The conversation under the cursor."""
        row = self.query_one(ChatTable).cursor_row
        return self._chats[row] if 0 <= row < len(self._chats) else None

    @on(ChatTable.RowSelected)
    def _choose(self) -> None:
        self.dismiss(self.current)

    def action_find(self) -> None:
        self.query_one(Input).focus()

    def action_list(self) -> None:
        self.query_one(ChatTable).focus()

    async def action_export(self) -> None:
        if (chat := self.current) is None:
            return
        try:
            files = await in_thread(export_chat, chat, Path.cwd())
        except OSError as error:
            self.app.notify(f"Nothing was exported: {error.strerror or error}.", severity="error")
        else:
            self.app.notify(f"{files[0]} and .json", title="Exported", timeout=8)

    def action_delete(self) -> None:
        if (chat := self.current) is None:
            return

        async def answered(yes: bool | None) -> None:
            if yes:
                await in_thread(delete_chat, chat)
                self._search()

        self.app.push_screen(ConfirmModal(f"Delete the conversation “{chat.title}”?", "Delete"), answered)

    def action_close(self) -> None:
        self.dismiss(None)
