"""Inspect and Chat begin here: pick the result to inspect, or the model to talk to."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Static

from awq_tui import catalog
from awq_tui.background import in_thread
from awq_tui.places import Place
from awq_tui.run_book import RunSummary
from awq_tui.screens.section import SectionScreen
from awq_tui.widgets.model_table import ModelTable

TITLES = {"inspect": "Whose layers do you want to see?", "chat": "Who do you want to talk to?"}
EMPTY = {
    "inspect": "Nothing has been quantized yet. Press 1, pick a model and start a run; its layers then show up here.",
    "chat": "No model is on this machine yet. Press 1 to find one.",
}


class ChoiceTable(ModelTable):
    """The same list with another verb."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "Open", id="choose.open", tooltip="Open the model under the cursor."),
    ]


class ChooseScreen(SectionScreen):
    """`purpose` is `inspect` or `chat`."""

    CSS_PATH = "choose.tcss"
    HELP = "Pick a finished result to see its layers, or a model to talk to."

    def __init__(self, purpose: str) -> None:
        super().__init__()
        self._purpose = purpose
        self._outputs: tuple[Path, ...] = ()
        self._wanted = ""
        """The model to put the cursor on at first."""

    def place(self) -> Place:
        entry = self.query_one(ChoiceTable).current
        return {"model": entry.key if entry else self._wanted}

    def body(self) -> ComposeResult:
        with Vertical(id="choices", classes="pane") as pane:
            pane.border_title = TITLES[self._purpose]
            yield ChoiceTable()
            yield Static(EMPTY[self._purpose], id="nothing", markup=False)

    def on_mount(self) -> None:
        self.query_one(ChoiceTable).focus()
        self._wanted = self.awq.kept_place(self._purpose).get("model", "")
        self.watch(self.awq, "summaries", self._runs_changed, init=False)

    def on_screen_resume(self) -> None:
        self._reload()

    def _runs_changed(self, summaries: tuple[RunSummary, ...]) -> None:
        outputs = tuple(output for summary in summaries if (output := summary.output) is not None)
        if outputs != self._outputs:
            self._outputs = outputs
            self._reload()

    def _reload(self) -> None:
        summaries = self.awq.summaries
        self.run_worker(partial(self._list, summaries), group="list", exclusive=True, exit_on_error=False)

    async def _list(self, summaries: tuple[RunSummary, ...]) -> None:
        results = await in_thread(catalog.result_entries, summaries)
        folders = await in_thread(catalog.folder_entries, catalog.default_roots(self.awq.settings.folders))
        entries = catalog.merge(results, folders)
        if self._purpose == "inspect":
            entries = [entry for entry in entries if entry.has_report]
        else:
            entries = catalog.merge(
                entries, [await in_thread(catalog.demo_entry)], await in_thread(catalog.cache_entries)
            )
            entries = [entry for entry in entries if not entry.problem]
        table = self.query_one(ChoiceTable)
        table.show(entries)
        table.select(self._wanted)
        self._wanted = ""
        self.set_class(not entries, "-empty")

    @on(ChoiceTable.RowSelected)
    def _choose(self) -> None:
        entry = self.query_one(ChoiceTable).current
        if entry is None:
            return
        if self._purpose == "chat":
            self.awq.open_chat(entry.model)
        elif entry.path is not None:
            self.awq.open_inspect(entry.path)
