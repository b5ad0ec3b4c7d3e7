"""Which recipe should I ship?  Every finished run with what was measured on it, and KL against size.

Rows come from the app's run summaries only, so a measurement that another terminal started shows up here as well.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Input, Static

from awq_engine import format as fmt
from awq_engine.evaluations import EVALUATION, evaluation_settings, spawn_evaluation
from awq_engine.runs import Run
from awq_engine.sanitize import one_line
from awq_engine.speeds import SPEED
from awq_engine.storage import write_atomically
from awq_tui.background import in_thread
from awq_tui.layer_columns import Column, Order, to_csv
from awq_tui.places import Place
from awq_tui.results import RESULT_COLUMNS, ResultRow, as_markdown, comparable, frontier, result_rows
from awq_tui.run_book import RunSummary
from awq_tui.screens.evaluate import EvaluateModal, Measurement
from awq_tui.screens.section import SectionScreen
from awq_tui.widgets.frontier_chart import Dot, FrontierChart
from awq_tui.widgets.glyphs import glyphs
from awq_tui.widgets.layer_table import LayerTable
from awq_tui.widgets.plain_input import PlainInput
from awq_tui.widgets.speed_pane import SpeedPane

FOR_A_RESULT = ("evaluate", "evaluate_all", "benchmark", "stop", "chat", "inspect", "export")
"""Actions that need one under the cursor."""
EMPTY = "Nothing has been quantized yet. Press 1, pick a model and start a run; what comes out is compared here."


class ResultTable(LayerTable):
    """The table, with the key that opens a line."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "screen.inspect", "Inspect", id="compare.inspect", tooltip="The layers of this result."),
    ]


class CompareScreen(SectionScreen):
    """The fifth section."""

    CSS_PATH = "compare.tcss"
    AUTO_FOCUS = "#results"
    HELP = (
        "Every finished run: size, time and memory, and, once it is measured, perplexity, the KL divergence from the "
        "original in nats per token with its standard error, and how often both like the same next token best. The "
        "chart shows the runs that can be compared with the one under the cursor: same original, same text. Benchmark "
        "times its products on this machine, checked against float64, and how fast it writes."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("e", "evaluate", "Measure", id="compare.evaluate", tooltip="Compare this result with its original."),
        Binding("E", "evaluate_all", "Measure all", id="compare.evaluate_all",
                tooltip="Measure what is shown and not measured yet."),
        Binding("b", "benchmark", "Benchmark", id="compare.benchmark",
                tooltip="How fast this machine multiplies with it, and writes."),
        Binding("v", "other_pane", "Speed/chart", id="compare.pane", tooltip="The chart, or the benchmark."),
        Binding("x", "stop", "Stop", id="compare.stop", tooltip="Stop measuring this result."),
        Binding("c", "chat", "Chat", id="compare.chat", tooltip="Talk to this result."),
        Binding("slash", "filter", "Filter", key_display="/", id="compare.filter", tooltip="Words of model or recipe."),
        Binding("s", "sort(1)", "Sort", id="compare.sort", tooltip="Sort by the next column."),
        Binding("o", "turn_around", "Order", id="compare.order", show=False, tooltip="Turn the order around."),
        Binding("p", "export", "Export", id="compare.export", tooltip="Write the table as CSV and Markdown, here."),
        Binding("escape", "leave", "Back", id="compare.leave", show=False, tooltip="Out of the filter."),
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[ResultRow] = []
        self._measurement = Measurement()
        self._wanted = ""
        """The run to put the cursor on at first."""

    def place(self) -> Place:
        return {
            "filter": self.query_one(Input).value,
            "order": str(self.table.order),
            "run": self.current.run.id if self.current else self._wanted,
        }

    def body(self) -> ComposeResult:
        with Horizontal(id="compare-head"):
            yield Static("", id="compare-title", markup=False)
            yield PlainInput(placeholder="/ qwen W4 best", id="compare-filter", compact=True)
        with Vertical(id="compare-panes"):
            yield ResultTable(Order("kl", False), id="results")
            yield Static(EMPTY, id="no-results", markup=False)
            with Vertical(id="compare-chart", classes="pane"):
                yield Static("", id="compare-about", markup=False)
                yield FrontierChart(id="frontier")
            with VerticalScroll(id="compare-speed", classes="pane", can_focus=False):
                yield SpeedPane(id="speed")

    def on_mount(self) -> None:
        self.query_one("#compare-chart").border_title = "Comparable results"
        self.query_one("#compare-speed").border_title = "On this machine"
        if kept := self.awq.kept_place("compare"):
            self.query_one(Input).value = kept.get("filter", "")
            self.table.order = Order.read(kept.get("order", ""))
            self._wanted = kept.get("run", "")
        self.watch(self.awq, "summaries", self._runs_changed)

    @property
    def table(self) -> ResultTable:
        return self.query_one(ResultTable)

    @property
    def current(self) -> ResultRow | None:
        """The run under the cursor."""
        return self.table.chosen

    # drawing

    def _runs_changed(self, summaries: tuple[RunSummary, ...]) -> None:
        rows = result_rows(summaries)
        if rows != self.rows or not rows:
            self.rows = rows
            self._show()

    @on(Input.Changed, "#compare-filter")
    def _show(self) -> None:
        words = self.query_one(Input).value.lower().split()
        shown = [row for row in self.rows if all(word in f"{row.model} {row.recipe}".lower() for word in words)]
        kept = self.current.run.id if self.current else self._wanted
        self.table.show(shown, RESULT_COLUMNS, self._style, lambda row, column: "")
        for place, row in enumerate(self.table.shown):
            if row.run.id == kept:
                self.table.move_cursor(row=place, animate=False)
        measured = sum(row.evaluation is not None for row in shown)
        runs = "1 finished run" if len(shown) == 1 else f"{len(shown)} finished runs"
        self.query_one("#compare-title", Static).update(f"{runs}, {measured} measured")
        self.set_class(not self.rows, "-empty")
        self._show_chart()

    def recolour(self) -> None:
        self._show()

    def _style(self, row: ResultRow, column: Column[ResultRow]) -> str:
        if column.key == "label":
            return "bold"
        best = row.run in frontier(comparable(row, self.rows))
        return self.app.theme_variables["success"].removeprefix("ansi_") if column.key == "kl" and best else ""

    @on(LayerTable.Chosen)
    def _show_chart(self) -> None:
        row = self.current
        rows = comparable(row, self.rows) if row else []
        best = frontier(rows)
        dots = [Dot(r.label, r.nbytes, r.evaluation.kl, r.run in best) for r in rows if r.evaluation and r.nbytes]
        self.query_one(FrontierChart).show(dots, self._why_nothing(row))
        self.query_one("#compare-about", Static).update(describe(row) if row else "")
        self.query_one(SpeedPane).show(row)
        self.refresh_bindings()

    def _why_nothing(self, row: ResultRow | None) -> str:
        if row is None:
            return ""
        return "e measures this result against its original" if row.output else "its output folder is gone"

    # keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only the keys that make sense for the run under the cursor."""
        if not self.is_mounted or action not in FOR_A_RESULT:
            return True
        row = self.current
        if row is None:
            return None
        allowed = {
            "evaluate": row.output is not None and not row.measuring.going_on,
            "benchmark": row.output is not None and not row.timing.going_on,
            "stop": row.measuring.going_on or row.timing.going_on,
            "chat": row.output is not None,
            "evaluate_all": bool(self._unmeasured()),
        }
        return allowed.get(action, True)

    def _unmeasured(self) -> list[ResultRow]:
        return [row for row in self.table.shown if row.output and not row.evaluation and not row.measuring.going_on]

    def action_evaluate(self) -> None:
        if row := self.current:
            self._ask([row], f"Measure {Path(row.model).name} {row.recipe}")

    def action_evaluate_all(self) -> None:
        rows = self._unmeasured()
        self._ask(rows, f"Measure {len(rows)} results")

    def _ask(self, rows: list[ResultRow], title: str) -> None:
        def answered(found: Measurement | None) -> None:
            if found is not None:
                self._measurement = found
                self.run_worker(partial(self._measure, rows, found), group="measure", exit_on_error=False)

        self.app.push_screen(EvaluateModal(title, self._measurement), answered)

    async def _measure(self, rows: list[ResultRow], wanted: Measurement) -> None:
        def spawn() -> None:
            settings = evaluation_settings(wanted.text, wanted.seq_len, wanted.max_tokens, "auto")
            process = spawn_evaluation([row.run for row in rows], settings)
            if process is not None:
                self.awq.reap(process)

        await in_thread(spawn)

    def action_benchmark(self) -> None:
        if row := self.current:
            self.add_class("-speed")
            self.run_worker(partial(self._benchmark, row.run), group="measure", exit_on_error=False)

    async def _benchmark(self, run: Run) -> None:
        process = await in_thread(SPEED.spawn, [run], {"backend": "auto", "device": "auto"})
        if process is not None:
            self.awq.reap(process)

    def action_other_pane(self) -> None:
        self.toggle_class("-speed")

    def action_stop(self) -> None:
        if row := self.current:
            for job, standing in ((EVALUATION, row.measuring), (SPEED, row.timing)):
                if standing.going_on:
                    job.request_stop(row.run)
            self.notify("It stops after the present step.", timeout=3)

    def action_inspect(self) -> None:
        if row := self.current:
            self.awq.open_inspect(row.run)

    def action_chat(self) -> None:
        if (row := self.current) and row.output:
            self.awq.open_chat(str(row.output))

    def action_filter(self) -> None:
        self.query_one(Input).focus()

    @on(Input.Submitted, "#compare-filter")
    def _leave_filter(self) -> None:
        self.table.focus()

    async def action_leave(self) -> None:
        if self.query_one(Input).has_focus:
            self.query_one(Input).value = ""
            self.table.focus()
        else:
            await self.awq.action_back()

    def action_sort(self, step: int) -> None:
        self.table.sort_by(step)

    def action_turn_around(self) -> None:
        self.table.turn_around()

    def action_export(self) -> None:
        rows, folder = self.table.shown, Path.cwd()
        try:
            write_atomically(folder / "awq-results.csv", to_csv(rows, RESULT_COLUMNS).encode())
            write_atomically(folder / "awq-results.md", as_markdown(rows).encode())
        except OSError as error:
            self.awq.show_error("Nothing was exported", f"{folder} cannot be written to: {error.strerror or error}.")
        else:
            self.notify(f"{len(rows)} lines written to {folder / 'awq-results'}.csv and .md", title="Exported")


def describe(row: ResultRow) -> str:
    """What the figures of a row were measured on, why the last measurement failed, or that there is none."""
    found, dot = row.evaluation, f" {glyphs().dot} "
    if row.measuring.error:
        return f"{glyphs().failed} {one_line(row.measuring.error)}"
    if row.measuring.going_on:
        done = f"{row.measuring.done} of {row.measuring.total} windows" if row.measuring.total else "loading"
        return f"measuring: {done}"
    if found is None:
        return "not measured yet"
    original = fmt.number(found.perplexity_original)
    text = f"{found.tokens} tokens of {one_line(found.text)} in windows of {found.seq_len}"
    return f"{text}{dot}perplexity {fmt.number(found.perplexity)}, of the original {original}"
