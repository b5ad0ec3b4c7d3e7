"""Every run, live or past: what it is doing, how far it is, and what can be done with it."""

from __future__ import annotations

import time
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.coordinate import Coordinate
from textual.widgets import DataTable, Static

from awq_engine.errors import AwqError
from awq_engine.format import age, preset_label, size
from awq_engine.paths import shown_path
from awq_engine.runs import RunStatus
from awq_engine.sanitize import one_line, plain
from awq_engine.state import Phase
from awq_tui.background import in_thread
from awq_tui.ellipsis import shorten
from awq_tui.places import Place
from awq_tui.run_book import RunSummary
from awq_tui.screens.confirm import ConfirmModal
from awq_tui.screens.section import SectionScreen
from awq_tui.widgets.glyphs import glyphs
from awq_tui.widgets.progress_bar import bar

GLYPHS = {
    RunStatus.RUNNING: "●",
    RunStatus.DONE: "✓",
    RunStatus.CANCELLED: "■",
    RunStatus.FAILED: "✗",
    RunStatus.INTERRUPTED: "⚠",
}
QUEUED = "○"
"""Of a running engine that waits for other runs."""
PAUSED = "‖"
COLOURS = {
    RunStatus.RUNNING: "primary",
    RunStatus.DONE: "success",
    RunStatus.CANCELLED: "warning",
    RunStatus.FAILED: "error",
    RunStatus.INTERRUPTED: "warning",
}
WIDTHS = {"status": 13, "recipe": 18, "progress": 12, "age": 6}
MIN_MODEL_WIDTH = 12
BAR = 6
"""Cells of the progress bar."""
AGE_INTERVAL = 30.0
"""Seconds between two drawings of how old the runs are."""
ROOMY = 100
"""Cells from which the recipe column has room for every word."""
ROOMY_RECIPE = 30
ACTIONS: dict[str, tuple[RunStatus, ...]] = {
    "resume": (RunStatus.CANCELLED, RunStatus.FAILED, RunStatus.INTERRUPTED),
    "cancel": (RunStatus.RUNNING,),
    "delete": (RunStatus.DONE, RunStatus.CANCELLED, RunStatus.FAILED, RunStatus.INTERRUPTED),
    "inspect": tuple(RunStatus),
    "chat": (RunStatus.DONE,),
}
"""In which states of a run a key means something."""


class RunTable(DataTable[Text]):
    """The list; enter opens the run under the cursor."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "Open", id="runs.open", tooltip="Watch it live, or look back at it."),
    ]


class RunsScreen(SectionScreen):
    """Drawn from the app's run summaries only."""

    CSS_PATH = "runs.tcss"
    HELP = """All runs, newest first. A run works on without this app: close the terminal, come back, and it is here.
An interrupted, cancelled or failed run goes on from its last finished block when you resume it."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("i", "inspect", "Inspect", id="runs.inspect", tooltip="Statistics of the layers finished so far."),
        Binding("c", "chat", "Chat", id="runs.chat", tooltip="Talk to the finished result."),
        Binding("r", "resume", "Resume", id="runs.resume", tooltip="Go on from the last finished block."),
        Binding("x", "cancel", "Cancel", id="runs.cancel", tooltip="Stop after the present step; it can be resumed."),
        Binding("d,delete", "delete", "Delete", id="runs.delete", tooltip="Delete the run, never its output folder."),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._summaries: tuple[RunSummary, ...] = ()
        self._widths: dict[str, int] = {}
        """Of the columns as they are drawn."""
        self._wanted = ""
        """The run to put the cursor on at first."""

    def place(self) -> Place:
        return {"run": self.current.run.id if self.current else self._wanted}

    def body(self) -> ComposeResult:
        with Vertical(id="run-list", classes="pane") as pane:
            pane.border_title = "Runs"
            yield RunTable(cursor_type="row")
            yield Static("No runs yet. Press 1 and pick a model.", id="no-runs", markup=False)
        yield Static(id="run-note", classes="notice", markup=False)

    def on_mount(self) -> None:
        self.table.focus()
        self._wanted = self.awq.kept_place("runs").get("run", "")
        self.watch(self.awq, "summaries", self._show)
        self.set_interval(AGE_INTERVAL, self.catch_up)

    @property
    def table(self) -> RunTable:
        return self.query_one(RunTable)

    @property
    def current(self) -> RunSummary | None:
        """The run under the cursor."""
        row = self.table.cursor_row
        return self._summaries[row] if 0 <= row < len(self._summaries) else None

    def on_resize(self) -> None:
        self.call_after_refresh(self._fill)

    def catch_up(self) -> None:
        if self.is_mounted:
            self._show(self.awq.summaries)

    def _show(self, summaries: tuple[RunSummary, ...]) -> None:
        if not self.is_current:
            return
        kept = self.current.run.id if self.current else self._wanted
        same_runs = [summary.run for summary in summaries] == [summary.run for summary in self._summaries]
        self._summaries = summaries
        if same_runs and self._widths == self._column_widths():
            self._update_cells()
        else:
            self._fill()
            for row, summary in enumerate(summaries):
                if summary.run.id == kept:
                    self.table.move_cursor(row=row, animate=False)
        self._note()

    def _column_widths(self) -> dict[str, int]:
        table = self.table
        return column_widths(table.size.width - 2 * table.cell_padding * (len(WIDTHS) + 1) - 1)

    def _fill(self) -> None:
        """Draw all rows anew: the runs are others, or every width may have changed."""
        table, row = self.table, self.table.cursor_row
        self._widths = self._column_widths()
        table.clear(columns=True)
        for name, width in self._widths.items():
            table.add_column(name, width=width, key=name)
        now = time.time()
        for summary in self._summaries:
            table.add_row(*self._cells(summary, now), key=summary.run.id)
        table.move_cursor(row=row, animate=False)
        self.set_class(not self._summaries, "-empty")

    def recolour(self) -> None:
        self._fill()

    def _update_cells(self) -> None:
        """The table draws itself anew for every cell that is set, so only those that changed are."""
        table, now = self.table, time.time()
        for row, summary in enumerate(self._summaries):
            for column, cell in enumerate(self._cells(summary, now)):
                where = Coordinate(row, column)
                drawn = table.get_cell_at(where)
                if (drawn.plain, drawn.style) != (cell.plain, cell.style):
                    table.update_cell_at(where, cell)

    def _cells(self, summary: RunSummary, now: float) -> list[Text]:
        colour = rich_colour(self.app.theme_variables.get(COLOURS[summary.status], ""))
        glyph, word = GLYPHS[summary.status], str(summary.status)
        if summary.running and summary.state.phase is Phase.QUEUED:
            glyph, word = QUEUED, "queued"
        elif summary.running and summary.state.paused is not None:
            glyph, word = PAUSED, "paused"
        return [
            Text(f"{glyph} {word}", colour),
            Text(shorten(one_line(summary.model_name), self._widths["model"])),
            Text(recipe(summary)),
            Text(bar(summary.state.fraction(), BAR, glyphs()), colour if summary.running else ""),
            Text(age(now - summary.file.created) if summary.file else "", "dim", justify="right"),
        ]

    @on(RunTable.RowHighlighted)
    def _note(self) -> None:
        self.refresh_bindings()
        summary = self.current
        self.query_one("#run-note", Static).update(note(summary) if summary else "")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """A key that means nothing for the run under the cursor is dimmed."""
        if action not in ACTIONS or not self.is_mounted:
            return True
        summary = self.current
        return True if summary and summary.status in ACTIONS[action] else None

    # keys

    @on(RunTable.RowSelected)
    def _open(self) -> None:
        if summary := self.current:
            self.awq.open_run(summary.run)

    def action_inspect(self) -> None:
        if summary := self.current:
            self.awq.open_inspect(summary.run)

    def action_chat(self) -> None:
        summary = self.current
        if summary is None:
            return
        if summary.output is None:
            self.notify("The output folder of this run is gone.", severity="warning")
        else:
            self.awq.open_chat(str(summary.output))

    async def action_resume(self) -> None:
        if (summary := self.current) is None:
            return
        try:
            await in_thread(self.awq.start_engine, summary.run)
        except (AwqError, OSError) as error:
            self.awq.show_failure(error)
        else:
            self.awq.open_run(summary.run)

    def action_cancel(self) -> None:
        if summary := self.current:
            summary.run.request_cancel()
            self.notify(f"{summary.model_name} stops after the present step. r resumes it later.")

    def action_delete(self) -> None:
        if (summary := self.current) is None:
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self._delete(summary)

        kept = f"\nIts result in {summary.output} stays." if summary.output else ""
        question = f"Delete the run {summary.run.id} and its finished blocks?{kept}"
        self.app.push_screen(ConfirmModal(plain(question), "Delete"), answered)

    def _delete(self, summary: RunSummary) -> None:
        try:
            summary.run.remove()
        except (AwqError, OSError) as error:
            self.awq.show_failure(error)


def column_widths(room: int) -> dict[str, int]:
    """Cells of each column when `room` cells are there for text; the model's name takes what is left."""
    widths = {**WIDTHS, "recipe": ROOMY_RECIPE if room >= ROOMY else WIDTHS["recipe"]}
    model = max(MIN_MODEL_WIDTH, room - sum(widths.values()))
    return {"status": widths["status"], "model": model, **widths}


def recipe(summary: RunSummary) -> str:
    """`W4 g128 balanced`."""
    if summary.file is None:
        return "unreadable"
    config = summary.file.config
    return preset_label(config.bits, config.group_size, config.preset, method=config.method, symmetric=config.symmetric)


def note(summary: RunSummary) -> str:
    """One line about the run under the cursor: the problem, the result, or what it is doing."""
    state = summary.state
    if summary.problem:
        return plain(summary.problem)
    if state.error and summary.status is RunStatus.FAILED:
        return plain(f"✗ {state.error.message}")
    if summary.status is RunStatus.DONE:
        bits = (state.result or {}).get("bits_per_weight")
        after = (state.result or {}).get("bytes_after")
        parts = [f"{bits:.2f} bits/weight" if isinstance(bits, float) else "", size(after) if after else ""]
        where = shown_path(summary.output) if summary.output else "the output folder is gone"
        return plain(" · ".join(part for part in (*parts, where) if part))
    blocks = f"{state.blocks_done} of {state.n_blocks} blocks" if state.n_blocks else ""
    return plain(" · ".join(part for part in (f"{state.phase}", blocks, summary.run.id) if part))


def rich_colour(variable: str) -> str:
    """A theme colour as Rich spells it; the ANSI themes say `ansi_green` where Rich says `green`."""
    return variable.removeprefix("ansi_").split(" ")[0]
