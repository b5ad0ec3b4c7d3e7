"""Choose one of the runs that have layers to show."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import DataTable, Static

from awq_engine.format import age
from awq_engine.runs import Run
from awq_engine.sanitize import one_line, plain
from awq_tui.ellipsis import shorten
from awq_tui.run_book import RunSummary
from awq_tui.screens.runs import recipe
from awq_tui.widgets.key_bar import KeyBar

ROOMY = 100
"""Cells of the terminal from which names have all the room they want."""
RECIPE_WIDTH = 24


class PickRunTable(DataTable[Text]):
    """The list."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "select_cursor", "Choose", id="pick_run.choose")]


class PickRunModal(ModalScreen[Run | None]):
    """Dismissed with the chosen run."""

    CSS_PATH = "modal.tcss"
    DEFAULT_CSS = "PickRunModal PickRunTable { height: auto; max-height: 20; background: $surface; }"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "close", "Cancel", id="pick_run.close")]

    def __init__(self, title: str, summaries: Sequence[RunSummary]) -> None:
        super().__init__()
        self._title = title
        self._summaries = [summary for summary in summaries if summary.has_layers]

    def compose(self) -> ComposeResult:
        with Vertical(classes="modal") as box:
            box.border_title = plain(self._title)
            yield PickRunTable(cursor_type="row", show_header=False)
            if not self._summaries:
                yield Static("There is no other run with finished layers.", markup=False)
        yield KeyBar()

    def on_mount(self) -> None:
        table, now = self.query_one(PickRunTable), time.time()
        narrow = self.app.size.width < ROOMY
        model, text = (20, 8) if narrow else (28, 16)
        for name, width in {"model": model, "recipe": RECIPE_WIDTH, "text": text, "age": 4}.items():
            table.add_column(name, width=width)
        for summary in self._summaries:
            file = summary.file
            table.add_row(
                Text(shorten(one_line(summary.model_name), model), "bold"),
                Text(shorten(recipe(summary), RECIPE_WIDTH)),
                Text(shorten(one_line(file.config.calibration), text) if file else ""),
                Text(age(now - file.created) if file else "", "dim", justify="right"),
            )  # fmt: skip

    @on(PickRunTable.RowSelected)
    def _choose(self) -> None:
        row = self.query_one(PickRunTable).cursor_row
        self.dismiss(self._summaries[row].run)

    def action_close(self) -> None:
        self.dismiss(None)
