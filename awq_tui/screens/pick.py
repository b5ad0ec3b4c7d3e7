"""Choose one model of a short list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static

from awq_engine.errors import AwqError
from awq_engine.models import parse_model
from awq_engine.report import read_report
from awq_engine.sanitize import plain
from awq_tui import catalog
from awq_tui.catalog import Entry, Where
from awq_tui.run_book import RunSummary
from awq_tui.widgets.key_bar import KeyBar
from awq_tui.widgets.model_table import ModelTable


class PickTable(ModelTable):
    """The same list with another verb."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "Choose", id="pick.choose"),
    ]


class PickModal(ModalScreen[str | None]):
    """Dismissed with what a chat names the chosen model by."""

    CSS_PATH = "modal.tcss"
    DEFAULT_CSS = """
    PickModal PickTable { height: auto; max-height: 20; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "close", "Cancel", id="pick.close")]

    def __init__(self, title: str, entries: Sequence[Entry]) -> None:
        super().__init__()
        self._title = title
        self._entries = list(entries)

    def compose(self) -> ComposeResult:
        with Vertical(classes="modal") as box:
            box.border_title = plain(self._title)
            yield PickTable()
            if not self._entries:
                yield Static("There is no other model on this machine.", markup=False)
        yield KeyBar()

    def on_mount(self) -> None:
        self.query_one(PickTable).show(self._entries)

    @on(PickTable.RowSelected)
    def _choose(self) -> None:
        entry = self.query_one(PickTable).current
        if entry is not None:
            self.dismiss(entry.model)

    def action_close(self) -> None:
        self.dismiss(None)


def comparison_entries(model: str, summaries: tuple[RunSummary, ...], folders: Sequence[str]) -> list[Entry]:
    """What may stand beside a model: first what it was quantized from, then all others on this machine; blocks."""
    original = original_of(model)
    here = catalog.merge(
        catalog.result_entries(summaries),
        catalog.folder_entries(catalog.default_roots(folders)),
        [catalog.demo_entry()],
        catalog.cache_entries(),
    )
    others = [entry for entry in here if not entry.problem and entry.model != model and str(entry.path) != model]
    first = [replace(entry, name=f"{entry.name} (original)") for entry in others if entry.model == original]
    if original and not first:
        first = [_named(original)]
    return catalog.merge(first, (entry for entry in others if entry.model != original))


def original_of(model: str) -> str | None:
    """What a quantized model was made from, as its report says; None when that is not known. Blocks."""
    try:
        target = parse_model(model)
        found = read_report(target).get("config", {}).get("model") if isinstance(target, Path) else None
    except (AwqError, OSError, AttributeError):
        return None
    return found if isinstance(found, str) and found else None


def _named(model: str) -> Entry:
    path = Path(model)
    if path.is_dir():
        return catalog.describe_folder(path, Where.DISK, name=f"{path.name} (original)")
    return Entry(Where.HUB, f"{model} (original)", model)
