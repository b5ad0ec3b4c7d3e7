"""What have I got, what could I get, will it fit?  One list over demo, results, folders, cache and Hub."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Input, Static

from awq_engine.errors import NetworkError
from awq_engine.sanitize import plain
from awq_tui import catalog
from awq_tui.app import FIRST_PICTURE
from awq_tui.background import in_thread
from awq_tui.catalog import Entry, Where
from awq_tui.places import Place
from awq_tui.screens.section import SectionScreen
from awq_tui.shelf import ORDERS, Shelf
from awq_tui.widgets.model_details import ModelDetails
from awq_tui.widgets.model_table import ModelTable
from awq_tui.widgets.plain_input import PlainInput

if TYPE_CHECKING:
    from awq_engine.downloads import Download
    from awq_engine.estimate import Speed
    from awq_tui.machine import Machine
    from awq_tui.run_book import RunSummary

DEBOUNCE = 0.3
"""Seconds without a keystroke before the Hub is asked."""
MIN_QUERY = 2
"""Characters before the Hub is asked."""


class FindInput(PlainInput):
    """Narrows the list while typing."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,enter", "screen.list", "To the list", key_display="↓", id="models.list"),
        Binding("escape", "screen.clear_find", "Clear", id="models.clear"),
    ]


class ModelsScreen(SectionScreen):
    """The first screen."""

    CSS_PATH = "models.tcss"
    AUTO_FOCUS = "#models"
    HELP = """Pick a model: enter goes on to choose how it is quantized.
The list holds the bundled demo, results of finished runs, model folders in the current directory and in ~/models, the
Hugging Face cache, and, once you type a name, the Hub. <8b and >500m limit the parameters. ◆ is already quantized, ⊘
wants a licence accepted first."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "find", "Find", key_display="/", id="models.find", tooltip="Narrow the list; search the Hub."),
        Binding(
            "s", "sort", "Sort", id="models.sort", tooltip="As found, by parameters, by size, by downloads, by name."
        ),
        Binding("c", "chat", "Chat", id="models.chat", tooltip="Talk to the model as it is."),
        Binding(
            "d", "download", "Download", id="models.download", tooltip="Fetch it from the Hub, also after you quit."
        ),
        Binding(
            "x",
            "stop_download",
            "Stop",
            id="models.stop_download",
            tooltip="Stop fetching; d goes on later, a second x takes it off the list.",
        ),
        Binding("i", "inspect", "Inspect", id="models.inspect", tooltip="Per-layer statistics of a result."),
        Binding("a", "add", "Type a path", id="models.add", tooltip="Add a folder, or name a model on the Hub."),
        Binding("r", "rescan", "Rescan", id="models.rescan", show=False, tooltip="Look for models again."),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._shelf = Shelf()
        self._searching = False
        """The Hub is asked, or will be in a moment."""
        self._described = ""
        """The model that the details are of."""
        self._outputs: tuple[Path, ...] = ()
        self._speed: Speed | None = None
        self._order = "as found"
        self._wanted = ""
        """The model to put the cursor on once it is found."""

    def place(self) -> Place:
        entry = self.table.current
        key = self._wanted or (entry.key if entry else "")
        return {"find": self.query_one("#find", Input).value, "order": self._order, "model": key}

    def body(self) -> ComposeResult:
        with Horizontal(id="find-bar"):
            yield Static("Find", id="find-label", markup=False)
            yield FindInput(placeholder="name, or org/name on the Hub", id="find", compact=True)
            yield Static(id="badge", markup=False)
        with Horizontal(id="panes"):
            with Vertical(id="list", classes="pane"):
                yield ModelTable(id="models")
                yield Static(id="hub-problem", markup=False)
            with VerticalScroll(id="details-pane", classes="pane", can_focus=False):
                yield ModelDetails(id="details")

    def on_mount(self) -> None:
        self.query_one("#list").border_title = "Models"
        kept = self.awq.kept_place("models")
        self._order = kept.get("order", "") if kept.get("order") in ORDERS else self._order
        self._wanted = kept.get("model", "")
        self.query_one("#find", Input).value = kept.get("find", "")
        self.set_timer(FIRST_PICTURE, self.action_rescan)
        self.watch(self.awq, "summaries", self._runs_changed)
        self.watch(self.awq, "downloads", self._downloads_changed)
        self.watch(self.awq, "machine", self._machine_changed)

    @property
    def table(self) -> ModelTable:
        return self.query_one(ModelTable)

    # finding models

    def action_rescan(self) -> None:
        """Look at the disk and the cache again."""
        self.run_worker(self._scan, group="scan", exclusive=True, exit_on_error=False)

    async def _scan(self) -> None:
        from awq_engine.estimate import measured_speed

        self._shelf.demo = [await in_thread(catalog.demo_entry)]
        self._refresh()
        self._speed = await in_thread(measured_speed)
        self._describe()
        roots = catalog.default_roots(self.awq.settings.folders)
        self._shelf.folders = await in_thread(catalog.folder_entries, roots)
        self._refresh()
        self._shelf.cache = await in_thread(catalog.cache_entries)
        self._refresh()
        self._wanted = ""

    def _runs_changed(self, summaries: tuple[RunSummary, ...]) -> None:
        outputs = tuple(output for summary in summaries if (output := summary.output) is not None)
        if outputs != self._outputs:
            self._outputs = outputs
            self.run_worker(
                partial(self._list_results, summaries), group="results", exclusive=True, exit_on_error=False
            )

    async def _list_results(self, summaries: tuple[RunSummary, ...]) -> None:
        self._shelf.results = await in_thread(catalog.result_entries, summaries)
        self._refresh()

    def _machine_changed(self, machine: Machine | None) -> None:
        self.query_one(ModelDetails).show_machine(machine)

    def _downloads_changed(self, downloads: tuple[Download, ...]) -> None:
        if any(download.finished for download in downloads):
            self.action_rescan()
        self._shelf.downloads = downloads
        self._show_list()
        self._show_download()

    @property
    def download(self) -> Download | None:
        """Of the model under the cursor."""
        return self._shelf.download_of(self.table.current)

    def _show_download(self) -> None:
        self.query_one(ModelDetails).show_download(self.download)
        self.refresh_bindings()

    @on(Input.Changed, "#find")
    def _query_changed(self, event: Input.Changed) -> None:
        query = catalog.without_limits(event.value)
        self._shelf.hub, self._searching = [], len(query) >= MIN_QUERY
        self._show_search("searching the Hub…" if self._searching else "")
        self._refresh()
        self.run_worker(partial(self._search, query), group="hub", exclusive=True, exit_on_error=False)

    async def _search(self, query: str) -> None:
        if not self._searching:
            return
        await asyncio.sleep(DEBOUNCE)
        from awq_tui import hub_catalog

        try:
            self._shelf.hub = await in_thread(hub_catalog.search_hub, query)
        except NetworkError as error:
            self._show_search("⚠ without the Hub", str(error))
        else:
            self._show_search(f"{len(self._shelf.hub)} on the Hub")
        self._searching = False
        self._refresh()

    def _show_search(self, state: str, problem: str = "") -> None:
        self.query_one("#badge", Static).update(state)
        self.query_one("#hub-problem", Static).update(f"⚠ {plain(problem)}" if problem else "")
        self.query_one("#hub-problem").display = bool(problem)

    def _refresh(self) -> None:
        self._show_list()
        self._describe()

    def _show_list(self) -> None:
        self.table.show(self._shelf.shown(self.query_one("#find", Input).value, self._order))
        self.table.select(self._wanted)
        found = self.table.row_count
        order = "" if self._order == "as found" else f", {self._order}"
        self.query_one("#list").border_subtitle = f"{found} model{'' if found == 1 else 's'}{order}"

    # the model under the cursor

    @on(ModelTable.RowHighlighted)
    def _move_on(self) -> None:
        if (entry := self.table.current) is None or entry.key != self._described:
            self._describe()

    def _describe(self) -> None:
        self._show_download()
        self._described = self.table.current.key if self.table.current else ""
        self.run_worker(partial(self._look, self.table.current), group="details", exclusive=True, exit_on_error=False)

    async def _look(self, entry: Entry | None) -> None:
        from awq_tui.details import Details, look_into  # no part of the app's first picture

        if entry and entry.where is Where.HUB:
            self.query_one(ModelDetails).show(Details(entry, looking=not entry.quantized))
            await asyncio.sleep(DEBOUNCE)
        details = await in_thread(look_into, entry, self._speed) if entry else None
        self.query_one(ModelDetails).show(details, "Searching the Hub…" if self._searching else "No model fits.")

    @on(ModelTable.RowSelected)
    def _configure(self) -> None:
        entry = self.table.current
        if entry is None:
            return
        if entry.problem:
            self.awq.show_error("This model cannot be used", entry.problem)
        elif entry.quantized:
            self.notify(f"{entry.name} is already quantized ({entry.quantized}). Press c to chat with it.")
        else:
            self.awq.open_configure(entry)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Chat and Inspect are dimmed where they cannot work; downloads are for models on the Hub."""
        if action not in ("chat", "inspect", "download", "stop_download") or not self.is_mounted:
            return True
        entry = self.table.current
        if action in ("download", "stop_download"):
            going_on = self.download is not None and self.download.going_on
            on_hub = entry is not None and entry.where is Where.HUB
            return on_hub and (self.download is not None if action == "stop_download" else not going_on)
        possible = entry is not None and not entry.problem and (action == "chat" or entry.has_report)
        return True if possible else None

    def action_chat(self) -> None:
        if entry := self.table.current:
            self.awq.open_chat(entry.model)

    def action_download(self) -> None:
        from awq_engine.downloads import spawn_download

        if (entry := self.table.current) is None:
            return
        try:
            process = spawn_download(entry.model)
        except OSError as error:
            self.notify(f"The download could not be started: {error.strerror}.", severity="error")
        else:
            if process is not None:
                self.awq.reap(process)

    def action_stop_download(self) -> None:
        from awq_engine.downloads import forget, request_stop

        if self.download is not None:
            (request_stop if self.download.going_on else forget)(self.download.spec)

    def action_inspect(self) -> None:
        if (entry := self.table.current) and entry.path:
            self.awq.open_inspect(entry.path)

    # keys

    def action_find(self) -> None:
        self.query_one("#find", Input).focus()

    def action_sort(self) -> None:
        names = list(ORDERS)
        self._order = names[(names.index(self._order) + 1) % len(names)]
        self._refresh()

    def action_list(self) -> None:
        self.table.focus()

    def action_clear_find(self) -> None:
        find = self.query_one("#find", Input)
        if find.value:
            find.value = ""
        else:
            self.table.focus()

    def action_add(self) -> None:
        from awq_tui.screens.path import PathModal

        self.app.push_screen(PathModal(), self._added)

    def _added(self, entries: list[Entry] | None) -> None:
        """Remember the folder, show its models first, and put the cursor on the first."""
        if not entries:
            return
        if entries[0].path is not None:
            folders = [str(entry.path) for entry in entries if entry.path]
            known = self.awq.settings.folders
            self.awq.update_settings(folders=(*known, *(folder for folder in folders if folder not in known)))
        if entries[0].where is Where.HUB:
            self._shelf.hub = catalog.merge(entries, self._shelf.hub)
        else:
            self._shelf.folders = catalog.merge(entries, self._shelf.folders)
        self._refresh()
        self.table.select(entries[0].key)
        self.table.focus()
