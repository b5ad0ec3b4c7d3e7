"""The list of models: where, name, architecture, parameters, dtype and marks, size."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.widgets import DataTable

from awq_engine.format import count, size
from awq_engine.sanitize import one_line
from awq_tui.catalog import Entry
from awq_tui.ellipsis import shorten

WIDTHS = {"where": 6, "arch": 7, "params": 6, "dtype": 11, "size": 7}
MIN_NAME_WIDTH = 16


class ModelTable(DataTable[Text]):
    """Shows entries and knows which one the cursor is on; the name column takes what width is left."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "Quantize", id="models.quantize", tooltip="Choose how to quantize it."),
    ]

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, cursor_type="row")
        self._entries: list[Entry] = []
        self._name_width = 0

    @property
    def current(self) -> Entry | None:
        """The entry under the cursor."""
        return self._entries[self.cursor_row] if 0 <= self.cursor_row < len(self._entries) else None

    def show(self, entries: list[Entry]) -> None:
        """Replace the list; the cursor stays on the same model where it is still there."""
        if entries == self._entries:
            return
        before = self.current
        self._entries = entries
        self._fill(before.key if before else None)

    def select(self, key: str) -> None:
        """Put the cursor on the entry with this key, if it is in the list."""
        for row, entry in enumerate(self._entries):
            if entry.key == key:
                self.move_cursor(row=row, animate=False)

    def on_resize(self, event: events.Resize) -> None:
        others = sum(WIDTHS.values()) + 2 * self.cell_padding * (len(WIDTHS) + 1)
        width = max(MIN_NAME_WIDTH, self.size.width - others - self.styles.scrollbar_size_vertical)
        if width != self._name_width:
            self._name_width = width
            self._add_columns()
            self._fill(self.current.key if self.current else None)

    def _add_columns(self) -> None:
        self.clear(columns=True)
        self.add_column("where", width=WIDTHS["where"])
        self.add_column("name", width=self._name_width)
        for name in ("arch", "params", "dtype", "size"):
            heading = f"{name:>{WIDTHS[name]}}" if name in ("params", "size") else name
            self.add_column(heading, width=WIDTHS[name])

    def _fill(self, key: str | None) -> None:
        if not self._name_width:
            return
        self.clear()
        for entry in self._entries:
            self.add_row(*self._cells(entry), key=entry.key)
        if key is not None:
            self.select(key)

    def _cells(self, entry: Entry) -> list[Text]:
        style = "dim" if entry.problem else ""
        downloads = f" ↓{count(entry.downloads).replace(' ', '')}" if entry.downloads else ""
        name = Text(shorten(one_line(entry.name), self._name_width - len(downloads)), style)
        name.append(downloads, "dim")
        arch = Text(shorten(one_line(entry.arch), WIDTHS["arch"]), style)
        params = Text(f"{count(entry.parameters):>{WIDTHS['params']}}", style)
        nbytes = Text(f"{size(entry.nbytes):>{WIDTHS['size']}}", style)
        return [Text(entry.where, style or "bold"), name, arch, params, Text(mark(entry), style), nbytes]


def mark(entry: Entry) -> str:
    """The dtype and what is special about the model, each mark a glyph and a word."""
    if entry.fetched:
        return entry.fetched
    if entry.problem:
        return "✗ unusable"
    if entry.quantized:
        return f"◆ {one_line(entry.quantized)}"[: WIDTHS["dtype"]]
    return f"{one_line(entry.dtype)} ⊘gated".strip() if entry.gated else one_line(entry.dtype)
