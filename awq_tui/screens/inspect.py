"""The per-layer statistics of a run or of a checkpoint: where did it hurt, and why?

A run is followed while it works, so rows arrive as layers finish; a checkpoint's report is read once. Rows are checked
by drawing every cell on the reading thread: a damaged report becomes one sentence instead of a broken screen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from pathlib import Path
from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widgets import Input, Static

from awq_engine.errors import AwqError, BadInputError
from awq_engine.report import LayerRow, RoleSummary, layer_rows, outliers, summarize_roles
from awq_engine.runs import Run, find_run
from awq_engine.sanitize import one_line
from awq_engine.storage import write_atomically
from awq_tui.background import in_thread
from awq_tui.layer_columns import LAYER_COLUMNS, ROLE_COLUMNS, Column, Order, filter_rows, to_csv, to_json
from awq_tui.layer_pairs import PAIR_COLUMNS, ROLE_PAIR_COLUMNS, LayerPair, RolePair, pair_roles, pair_rows, rows_of
from awq_tui.places import Place
from awq_tui.run_client import RunClient, Snapshot, config_of, follow
from awq_tui.run_words import title_line
from awq_tui.screens.pick_run import PickRunModal
from awq_tui.screens.section import SectionScreen
from awq_tui.widgets.error_bars import ErrorBars
from awq_tui.widgets.glyphs import glyphs
from awq_tui.widgets.layer_detail import LayerDetail, LayerView, fit_parts, loss_chain, statistics
from awq_tui.widgets.layer_table import LayerTable
from awq_tui.widgets.plain_input import PlainInput


class InspectScreen(SectionScreen):
    """Shows `source`: a run, or a folder with a quantization report."""

    CSS_PATH = "inspect.tcss"
    AUTO_FOCUS = "#inspect-table"
    HELP = (
        "What AWQ did to every linear: the channel scales it chose (mean, max, min, std, max/mean, and the shares of "
        "channels above 2x, above 5x and below half the mean), and the output loss of plain rounding, of AWQ, and of "
        "what was written. A mark beside max/mean is an outlier: more than twice the median of its type. Compare puts "
        "another run beside this one: B/A is its final loss over this one's, below 1 it is the better."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", key_display="/", id="inspect.filter",
                tooltip="Words: a block's number, a part of a name, outlier."),
        Binding("s", "sort(1)", "Sort", id="inspect.sort", tooltip="Sort by the next column."),
        Binding("S", "sort(-1)", "Sort back", id="inspect.sort_back", show=False, tooltip="By the column before."),
        Binding("o", "turn_around", "Order", id="inspect.order", show=False, tooltip="Turn the order around."),
        Binding("t", "by_type", "By type", id="inspect.by_type", tooltip="All layers, or one line per type."),
        Binding("m", "compare", "Compare", id="inspect.compare", tooltip="Beside another run, or alone again."),
        Binding("z", "zoom", "Zoom", id="inspect.zoom", tooltip="The plots alone, or with the table."),
        Binding("e", "export", "Export", id="inspect.export",
                tooltip="Write the rows as CSV and JSON, and the screen as SVG."),
        Binding("escape", "leave", "Back", id="inspect.leave", show=False, tooltip="Out of the filter, then back."),
        Binding("c", "chat", "Chat", id="inspect.chat", tooltip="Talk to this model."),
    ]  # fmt: skip

    class Loaded(Message):
        """Rows were read; newer ones replace older ones that still wait."""

        def __init__(self, rows: list[LayerRow]) -> None:
            self.rows = rows
            super().__init__()

        def can_replace(self, message: Message) -> bool:
            return isinstance(message, InspectScreen.Loaded)

    def __init__(self, source: Run | Path) -> None:
        super().__init__()
        self.source = source
        self.rows: list[LayerRow] | None = None
        self.other: Run | None = None
        """The run this one is compared with."""
        self._other_rows: list[LayerRow] = []
        self.by_type = False
        self._marked: set[tuple[int, str]] = set()
        self._glyphs = glyphs()
        self._stop = threading.Event()

    def body(self) -> ComposeResult:
        with Horizontal(id="inspect-head"):
            yield Static(self._title, id="inspect-title", markup=False)
            yield Static("", id="inspect-mode", markup=False)
            yield PlainInput(placeholder="/ 11, down, outlier", id="inspect-filter", compact=True)
        yield LayerTable(Order("loss_ratio"), id="inspect-table")
        with Vertical(id="inspect-detail", classes="pane"):
            with Horizontal(id="inspect-layers"):
                yield LayerDetail(id="inspect-first")
                yield LayerDetail(id="inspect-second")
            yield ErrorBars()

    def place(self) -> Place:
        table, of_run = self.query_one(LayerTable), isinstance(self.source, Run)
        return {
            "screen": "inspect",
            "run" if of_run else "folder": self.source.id if isinstance(self.source, Run) else str(self.source),
            "filter": self.query_one(Input).value,
            "order": str(table.order),
            "by_type": "yes" if self.by_type else "",
            "zoomed": "yes" if self.has_class("-zoomed") else "",
            "beside": self.other.id if self.other else "",
            "row": str(table.cursor_row),
        }

    def _return(self, kept: Place) -> None:
        """To what was chosen at the last start."""
        self.query_one(Input).value = kept.get("filter", "")
        self.query_one(LayerTable).order = Order.read(kept.get("order", ""))
        self.by_type = bool(kept.get("by_type"))
        self.set_class(bool(kept.get("zoomed")), "-zoomed")

    def on_mount(self) -> None:
        if self.kept:
            self._return(self.kept)
        if isinstance(self.source, Run):
            self.run_worker(self._follow, thread=True, group="follow", exit_on_error=False)
        else:
            self.run_worker(self._read(self.source), group="follow", exit_on_error=False)

    def on_unmount(self) -> None:
        self._stop.set()

    @property
    def _title(self) -> str:
        if isinstance(self.source, Path):
            return one_line(self.source.name or str(self.source))
        return title_line(config_of(self.source), self.source.id, self._glyphs)

    @property
    def label(self) -> str:
        """The source in the names of exported files."""
        return self.source.id if isinstance(self.source, Run) else self.source.name or str(self.source)

    async def _read(self, folder: Path) -> None:
        self.post_message(self.Loaded(await in_thread(_rows_of_folder, folder)))

    def _follow(self) -> None:
        assert isinstance(self.source, Run)
        seen = -1

        def post(snapshot: Snapshot) -> None:
            nonlocal seen
            rows = layer_rows(snapshot.state)
            if len(rows) != seen or snapshot.state.finished:
                seen = len(rows)
                self.post_message(self.Loaded(_checked(rows, str(self.source))))

        follow(RunClient(self.source), post, self._stop)

    # drawing

    @on(Loaded)
    def _load(self, message: Loaded) -> None:
        self.rows = message.rows
        self._marked = outliers(message.rows)
        self._show()
        if kept := self.kept:
            self.kept = {}
            self.run_worker(self._return_to_row(kept), group="other", exit_on_error=False)

    async def _return_to_row(self, kept: Place) -> None:
        with contextlib.suppress(AwqError):  # the run beside this one is gone
            if beside := kept.get("beside"):
                await self._read_other(await in_thread(find_run, beside))
                self.query_one(LayerTable).order = Order.read(kept.get("order", ""))
                self._show()
        if (row := kept.get("row", "")).isdecimal():
            self.query_one(LayerTable).move_cursor(row=int(row), animate=False)

    @on(Input.Changed, "#inspect-filter")
    def _show(self) -> None:
        if self.rows is None:
            return
        rows = self._filtered()
        table = self.query_one(LayerTable)
        if self.other is not None:
            pairs = pair_rows(rows, self._other_rows)
            shown = pair_roles(pairs) if self.by_type else pairs
            columns = ROLE_PAIR_COLUMNS if self.by_type else PAIR_COLUMNS
            table.show(shown, columns, self._style, lambda row, column: "")
        elif self.by_type:
            table.show(summarize_roles(rows), ROLE_COLUMNS, self._style, lambda row, column: "")
        else:
            table.show(rows, LAYER_COLUMNS, self._style, self._mark)
        self._show_mode()

    @on(LayerTable.Sorted)
    def _show_mode(self) -> None:
        """How many of how many, and by what they are sorted."""
        table = self.query_one(LayerTable)
        shown, total = len(self._filtered()), len(self.rows or [])
        found = f"{shown} of {total} layers" if shown != total else f"{total} layers"
        order = f", by {table.order_heading}" if table.order_heading else ""
        if self.other is not None:
            found = f"{len(pair_rows(self._filtered(), self._other_rows))} layers of both"
        self.query_one("#inspect-mode", Static).update(f"{'types of ' if self.by_type else ''}{found}{order}")

    def recolour(self) -> None:
        self._show()

    def _filtered(self) -> list[LayerRow]:
        return filter_rows(self.rows or [], self.query_one(Input).value, self._marked)

    def _is_outlier(self, row: object, column: Column[Any]) -> bool:
        return column.key == "max_over_mean" and isinstance(row, LayerRow) and (row.block, row.name) in self._marked

    def _style(self, row: LayerRow | RoleSummary | LayerPair | RolePair, column: Column[Any]) -> str:
        """Outliers stand out; a ratio is good below one and bad above. The characters in the cell say the same."""
        if self._is_outlier(row, column):
            return f"bold {self._colour('warning')}"
        ratio = column.value(row) if column.key in ("loss_ratio", "change") else None
        if not isinstance(ratio, float) or ratio == 1.0:
            return ""
        return self._colour("success" if ratio < 1 else "error")

    def _colour(self, name: str) -> str:
        """A colour of the theme as the table's cells spell it."""
        return self.app.theme_variables[name].removeprefix("ansi_")

    def _mark(self, row: LayerRow, column: Column[Any]) -> str:
        return f" {self._glyphs.outlier}" if self._is_outlier(row, column) else ""

    @on(LayerTable.Chosen)
    def _show_detail(self, message: LayerTable.Chosen) -> None:
        row = message.row
        if isinstance(row, LayerPair | RolePair):
            self._show_pair(row)
            return
        if isinstance(row, RoleSummary):
            view = self._worst_of(row.role)
        elif isinstance(row, LayerRow):
            view = LayerView.of_row(row)
        else:
            view = LayerView("", note="No layer fits the filter." if self.rows else "No layer is finished yet.")
        self.query_one("#inspect-first", LayerDetail).show(view)
        self.query_one(ErrorBars).show(view.weight_change, view.output_change)

    def _show_pair(self, pair: LayerPair | RolePair) -> None:
        """Both layers, or of a type the layer that lost most in each run."""
        if isinstance(pair, LayerPair):
            views = LayerView.of_row(pair.first), LayerView.of_row(pair.second)
        else:
            views = self._worst_of(pair.role), self._worst_of(pair.role, self._other_rows)
        for letter, name, view in zip("AB", ("#inspect-first", "#inspect-second"), views, strict=True):
            self.query_one(name, LayerDetail).show(dataclasses.replace(view, title=f"{letter}  {view.title}"))

    def _worst_of(self, role: str, rows: list[LayerRow] | None = None) -> LayerView:
        candidates = self._filtered() if rows is None else rows
        row = max((row for row in candidates if row.role == role), key=lambda row: row.loss_final)
        view = LayerView.of_row(row)
        return dataclasses.replace(view, title=f"highest loss of {one_line(role)}: {view.title}")

    # keys

    def action_filter(self) -> None:
        self.query_one(Input).focus()

    @on(Input.Submitted, "#inspect-filter")
    def _leave_filter(self) -> None:
        self.query_one(LayerTable).focus()

    async def action_leave(self) -> None:
        """Out of the filter first, then off the screen."""
        if self.query_one(Input).has_focus:
            self.query_one(Input).value = ""
            self.query_one(LayerTable).focus()
        else:
            await self.awq.action_back()

    def action_sort(self, step: int) -> None:
        self.query_one(LayerTable).sort_by(step)

    def action_turn_around(self) -> None:
        self.query_one(LayerTable).turn_around()

    def action_by_type(self) -> None:
        self.by_type = not self.by_type
        self._show()

    def action_zoom(self) -> None:
        self.toggle_class("-zoomed")

    def action_compare(self) -> None:
        """Choose a run to put beside this one, or end the comparison."""
        if self.other is not None:
            self._put_beside(None, [])
            return
        others = [summary for summary in self.awq.summaries if summary.run != self.source]
        self.app.push_screen(PickRunModal("Beside this run", others), self._chosen)

    def _chosen(self, run: Run | None) -> None:
        if run is not None:
            self.run_worker(self._read_other(run), group="other", exclusive=True, exit_on_error=False)

    async def _read_other(self, run: Run) -> None:
        rows = await in_thread(lambda: _checked(rows_of(run), str(run.path)))
        if not pair_rows(self.rows or [], rows):
            self.notify("The two have no layer in common: they are of different models.", severity="warning")
        else:
            self._put_beside(run, rows)

    def _put_beside(self, run: Run | None, rows: list[LayerRow]) -> None:
        self.other, self._other_rows = run, rows
        self.set_class(run is not None, "-pair")
        self.query_one(LayerTable).order = Order("change" if run else "loss_ratio")
        beside = f"  B  {title_line(config_of(run), run.id, self._glyphs)}" if run else ""
        self.query_one("#inspect-title", Static).update(f"A  {self._title}{beside}" if run else self._title)
        self._show()

    def action_export(self) -> None:
        table = self.query_one(LayerTable)
        folder = self.source.path if isinstance(self.source, Run) else Path.cwd()
        kind = f"{'pairs' if self.other else 'layers'}{'-by-type' if self.by_type else ''}"
        stem = f"awq-{kind}-{self.label}"
        files = {
            "csv": to_csv(table.shown, table.columns_shown), "json": to_json(table.shown),
            "svg": self.app.export_screenshot(title=f"awq-tui {self.label}"),
        }  # fmt: skip
        try:
            for suffix, text in files.items():
                write_atomically(folder / f"{stem}.{suffix}", text.encode())
        except OSError as error:
            self.awq.show_error("Nothing was exported", f"{folder} cannot be written to: {error.strerror or error}.")
        else:
            self.notify(
                f"{len(table.shown)} rows written to {folder / stem}.csv, .json and .svg", title="Exported", timeout=8
            )

    def action_chat(self) -> None:
        self.awq.open_chat(self.source.id if isinstance(self.source, Run) else str(self.source))


def _rows_of_folder(folder: Path) -> list[LayerRow]:
    return _checked(rows_of(folder), str(folder))


def _draw_all(row: LayerRow) -> None:
    for column in LAYER_COLUMNS:
        column.text(row)
    view = LayerView.of_row(row)
    fit_parts([*statistics(view), *loss_chain(view)], 80)


def _checked(rows: list[LayerRow], where: str) -> list[LayerRow]:
    """The rows, if every cell and every pane can be drawn from them; `BadInputError` otherwise."""
    try:
        for row in rows:
            _draw_all(row)
        summarize_roles(rows)
        outliers(rows)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise BadInputError(f"The statistics of {where} are damaged ({error}); quantize the model again.") from error
    return rows
