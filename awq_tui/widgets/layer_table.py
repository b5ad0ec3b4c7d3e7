"""A sortable table of rows described by columns; a click on a heading sorts, and once more turns the order around."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from rich.text import Text
from textual import on
from textual.message import Message
from textual.widgets import DataTable

from awq_tui.layer_columns import Column, Order, sort_rows
from awq_tui.widgets.glyphs import glyphs


class LayerTable(DataTable[Text]):
    """Shows any rows with any columns; the cursor stays on its row while the order changes."""

    DEFAULT_CSS = """
    LayerTable {
        height: 1fr;
        scrollbar-size-horizontal: 0;
        scrollbar-size-vertical: 1;
        & > .datatable--fixed { background: $panel; color: $foreground; }
    }
    """

    class Chosen(Message):
        """The cursor is on another row."""

        def __init__(self, row: object) -> None:
            self.row = row
            super().__init__()

    class Sorted(Message):
        """The order changed."""

    def __init__(self, order: Order, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, cursor_type="row", zebra_stripes=True)
        self._glyphs = glyphs()
        self.order = order
        self.shown: list[Any] = []
        """The rows in the order they are drawn."""
        self._rows: Sequence[Any] = ()
        self._columns: Sequence[Column[Any]] = ()
        self._style: Callable[[Any, Column[Any]], str] = lambda row, column: ""
        self._marks: Callable[[Any, Column[Any]], str] = lambda row, column: ""

    def show(
        self,
        rows: Sequence[Any],
        columns: Sequence[Column[Any]],
        style: Callable[[Any, Column[Any]], str],
        mark: Callable[[Any, Column[Any]], str],
    ) -> None:
        """Fill the table. `style` colours a cell, `mark` adds a character that says the same."""
        if columns is not self._columns and self.order.key not in [column.key for column in columns]:
            self.order = Order()
        self._rows, self._columns, self._style, self._marks = rows, columns, style, mark
        self._fill()

    def sort_by(self, step: int) -> None:
        """Sort by the column `step` places beside the present one; before the first lies the model's own order."""
        keys = ["", *(column.key for column in self._columns)]
        self._sort(Order(keys[(keys.index(self.order.key) + step) % len(keys)], True))

    def turn_around(self) -> None:
        if self.order.key:
            self._sort(Order(self.order.key, not self.order.descending))

    @property
    def chosen(self) -> Any | None:
        """The row under the cursor."""
        return self.shown[self.cursor_row] if 0 <= self.cursor_row < len(self.shown) else None

    @property
    def columns_shown(self) -> Sequence[Column[Any]]:
        """The columns, as last shown."""
        return self._columns

    @property
    def order_heading(self) -> str:
        """The heading of the column that rules the order; empty for the model's own order."""
        return next((self._heading(column) for column in self._columns if column.key == self.order.key), "")

    def _sort(self, order: Order) -> None:
        self.order = order
        self._fill()
        self.call_after_refresh(self._reveal_sorted_column)
        self.post_message(self.Sorted())

    def _fill(self) -> None:
        kept, scroll = self.chosen, self.scroll_x
        self.shown = sort_rows(self._rows, self._columns, self.order)
        rows = [[self._cell(row, column) for column in self._columns] for row in self.shown]
        self.clear(columns=True)
        for index, column in enumerate(self._columns):
            heading = Text(self._heading(column), justify=justify_of(column))
            # DataTable measures only when idle, and keeps what it painted before that at the width of the headings.
            width = max(text.cell_len for text in (heading, *(row[index] for row in rows)))
            self.add_column(heading, width=width, key=column.key)
        self.fixed_columns = 2 if len(self._columns) > 10 else 1
        for row in rows:
            self.add_row(*row)
        place = self.shown.index(kept) if kept in self.shown else 0
        self.move_cursor(row=place, animate=False)
        self.scroll_to(x=scroll, animate=False, force=True)
        self.post_message(self.Chosen(self.chosen))

    def _heading(self, column: Column[Any]) -> str:
        name = column.heading.replace("α", self._glyphs.alpha).replace("Δ", self._glyphs.delta)
        if column.key != self.order.key:
            return name
        return f"{name} {self._glyphs.falling if self.order.descending else self._glyphs.rising}"

    def _reveal_sorted_column(self) -> None:
        """Scroll sideways until the column that now rules can be seen."""
        keys = [column.key for column in self._columns]
        if self.order.key not in keys:
            return
        widths = [column.get_render_width(self) for column in self.ordered_columns]
        index, fixed = keys.index(self.order.key), sum(widths[: self.fixed_columns])
        start = sum(widths[:index])
        if index >= self.fixed_columns:
            left, right = start - fixed, start + widths[index] - self.size.width
            self.scroll_to(x=min(max(self.scroll_x, right), left), animate=False, force=True)

    def _cell(self, row: Any, column: Column[Any]) -> Text:
        text = column.text(row) + self._marks(row, column)
        return Text(text, style=self._style(row, column), justify=justify_of(column))

    @on(DataTable.HeaderSelected)
    def _press_heading(self, event: DataTable.HeaderSelected) -> None:
        event.stop()
        key = str(event.column_key.value)
        self._sort(Order(key, not self.order.descending if key == self.order.key else True))

    @on(DataTable.RowHighlighted)
    def _choose(self, event: DataTable.RowHighlighted) -> None:
        event.stop()
        self.post_message(self.Chosen(self.chosen))


def justify_of(column: Column[Any]) -> Literal["left", "right"]:
    """Words to the left, numbers to the right."""
    return "left" if column.left else "right"
