"""The inspect screen: columns, order, filter, types, export, and reports that cannot be trusted."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from pathlib import Path

import pytest
from textual.widgets import Input

from awq_engine.events import BlockFinished, LinearQuantized
from awq_engine.report import build_report, layer_rows
from awq_engine.runs import Run
from awq_engine.state import replay
from awq_tui.layer_columns import LAYER_COLUMNS, Order, filter_rows, sort_rows, to_csv
from awq_tui.screens.error import ErrorModal
from awq_tui.screens.inspect import InspectScreen
from awq_tui.screens.pick_run import PickRunModal
from awq_tui.widgets.error_bars import ErrorBars
from awq_tui.widgets.glyphs import ASCII, UNICODE
from awq_tui.widgets.layer_table import LayerTable
from awq_tui.widgets.plot import row_text
from tests.tui.hosting import SIZES, screen_text, staged, until
from tests.tui.recorded_run import OUTLIER, append, block, new_run, recorded_run


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return recorded_run(tmp_path)


@pytest.fixture
def checkpoint(run: Run, tmp_path: Path) -> Path:
    """A folder with the report of `run`."""
    folder = tmp_path / "Model-AWQ"
    folder.mkdir()
    state = replay(run.records())
    (folder / "quantization_report.json").write_text(json.dumps(build_report(state, state.result or {})))
    return folder


def table_of(screen: InspectScreen) -> LayerTable:
    return screen.query_one(LayerTable)


@pytest.mark.parametrize("size", SIZES)
async def test_a_run_and_its_report_show_the_same_rows(run: Run, checkpoint: Path, size: tuple[int, int]) -> None:
    shown = []
    for source in (run, checkpoint):
        screen = InspectScreen(source)
        async with staged(screen, size) as pilot:
            await until(pilot, lambda screen=screen: len(table_of(screen).shown) == 28)
            await until(pilot, lambda pilot=pilot: "Its channels keep" in screen_text(pilot))
            shown.append(table_of(screen).shown)
            assert "28 layers, by ratio ▼" in screen_text(pilot)
            assert "self_attn.q_proj" in screen_text(pilot)
    assert shown[0] == shown[1]


async def test_every_column_of_the_design_is_there(run: Run) -> None:
    screen = InspectScreen(run)
    async with staged(screen, (190, 40)) as pilot:
        await until(pilot, lambda: table_of(screen).shown)
        await pilot.pause()
        heading = next(line for line in screen_text(pilot).splitlines() if "rounding" in line)
        assert heading.replace(" ▼", "").split() == [column.heading for column in LAYER_COLUMNS]


async def test_keys_sort_by_the_next_column_and_turn_the_order(run: Run) -> None:
    screen = InspectScreen(run)
    async with staged(screen, (80, 24)) as pilot:
        table = table_of(screen)
        await until(pilot, lambda: table.shown)
        await pilot.press("S", "S")
        await until(pilot, lambda: "AWQ ▼" in screen_text(pilot))
        await pilot.press("s", "s")
        await until(pilot, lambda: "by ratio ▼" in screen_text(pilot))
        ratios = [row.loss_ratio for row in table.shown]
        assert ratios == sorted(ratios, reverse=True)
        await pilot.press("o")
        await until(pilot, lambda: "ratio ▲" in screen_text(pilot))
        assert [row.loss_ratio for row in table.shown] == sorted(ratios)


async def test_the_cursor_stays_on_its_row_while_the_order_changes(run: Run) -> None:
    screen = InspectScreen(run)
    async with staged(screen) as pilot:
        table = table_of(screen)
        await until(pilot, lambda: table.shown)
        await pilot.press("down", "down")
        kept = table.chosen
        await pilot.press("o")
        assert table.chosen is kept
        assert table.cursor_row != 2


async def test_a_click_on_a_heading_sorts(run: Run) -> None:
    screen = InspectScreen(run)
    async with staged(screen) as pilot:
        table = table_of(screen)
        await until(pilot, lambda: table.shown)
        await pilot.click(LayerTable, offset=(3, 0))
        await until(pilot, lambda: table.order == Order("block", descending=True))
        await pilot.click(LayerTable, offset=(3, 0))
        await until(pilot, lambda: table.order == Order("block", descending=False))


async def test_the_filter_takes_blocks_names_and_outliers(run: Run) -> None:
    screen = InspectScreen(run)
    async with staged(screen) as pilot:
        table = table_of(screen)
        await until(pilot, lambda: table.shown)
        await pilot.press("slash", *"1 down")
        await until(pilot, lambda: [(row.block, row.name) for row in table.shown] == [(1, "mlp.down_proj")])
        await pilot.press("enter")
        assert table.has_focus
        await pilot.press("slash", "escape")
        await until(pilot, lambda: len(table.shown) == 28)
        await pilot.press("slash", *"outlier")
        await until(pilot, lambda: [(row.block, row.name) for row in table.shown] == [OUTLIER])
        assert "●" in screen_text(pilot)
        screen.query_one(Input).value = "nothing like this"
        await until(pilot, lambda: "No layer fits the filter" in screen_text(pilot))


async def test_by_type_has_one_row_per_type(run: Run) -> None:
    screen = InspectScreen(run)
    async with staged(screen) as pilot:
        table = table_of(screen)
        await until(pilot, lambda: table.shown)
        await pilot.press("t")
        await until(pilot, lambda: len(table.shown) == 7)
        ratios = [row.loss_ratio for row in table.shown]
        assert ratios == sorted(ratios, reverse=True)
        await until(pilot, lambda: f"highest loss of {table.shown[0].role}" in screen_text(pilot))
        await pilot.press("t")
        await until(pilot, lambda: len(table.shown) == 28)


async def test_the_filter_drops_what_cannot_be_printed(run: Run) -> None:
    screen = InspectScreen(run)
    async with staged(screen) as pilot:
        screen.query_one(Input).value = "\x1b[31mdown"
        await until(pilot, lambda: screen.query_one(Input).value == "[31mdown")


async def test_a_table_painted_before_it_is_idle_keeps_whole_cells(run: Run) -> None:
    screen = InspectScreen(run)
    async with staged(screen, (80, 24)) as pilot:
        await until(pilot, lambda: len(table_of(screen).shown) == 28)
        screen.action_by_type()
        screen_text(pilot)
        await until(pilot, lambda: "types of 28" in screen_text(pilot))
        assert " gate_proj " in screen_text(pilot)


async def test_export_writes_what_is_shown_and_says_where(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    screen = InspectScreen(checkpoint)
    async with staged(screen) as pilot:
        await until(pilot, lambda: table_of(screen).shown)
        await pilot.press("slash", *"down", "enter")
        await until(pilot, lambda: len(table_of(screen).shown) == 4)
        await pilot.press("e")
        await until(pilot, lambda: "4 rows written" in screen_text(pilot))
    with (tmp_path / "awq-layers-Model-AWQ.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["layer"] for row in rows} == {"mlp.down_proj"}
    assert (tmp_path / "awq-layers-Model-AWQ.svg").read_text().startswith("<svg")
    stored = json.loads((tmp_path / "awq-layers-Model-AWQ.json").read_text())
    assert [float(row["loss_final"]) for row in rows] == [row["loss_final"] for row in stored]


@pytest.mark.parametrize("size", SIZES)
async def test_two_runs_stand_side_by_side(run: Run, tmp_path: Path, size: tuple[int, int]) -> None:
    other = recorded_run(tmp_path, n_blocks=2)
    screen = InspectScreen(run)
    async with staged(screen, size) as pilot:
        await until(pilot, lambda: len(table_of(screen).shown) == 28 and pilot.app.summaries)
        await pilot.press("m")
        await until(pilot, lambda: isinstance(pilot.app.screen, PickRunModal))
        await pilot.press("enter")
        await until(pilot, lambda: screen.other == other and len(table_of(screen).shown) == 14)
        await until(pilot, lambda: "14 layers of both, by B/A" in screen_text(pilot))
        assert all(pair.change in (None, 1.0) for pair in table_of(screen).shown)
        await until(pilot, lambda: "A  block" in screen_text(pilot) and "B  block" in screen_text(pilot))
        await pilot.press("t", "z")
        await until(pilot, lambda: len(table_of(screen).shown) == 7 and not table_of(screen).display)
        await pilot.press("z", "e")
        await until(pilot, lambda: list(run.path.glob("awq-pairs-by-type-*.csv")))
        await pilot.press("t", "m")
        await until(pilot, lambda: screen.other is None and len(table_of(screen).shown) == 28)


async def test_runs_of_different_models_have_nothing_to_compare(run: Run, tmp_path: Path) -> None:
    other = new_run(tmp_path)
    renamed = [dataclasses.replace(event, name="x.y") for event in block(0) if isinstance(event, LinearQuantized)]
    append(other, [*renamed, *[event for event in block(0) if isinstance(event, BlockFinished)]])
    screen = InspectScreen(run)
    async with staged(screen) as pilot:
        await until(pilot, lambda: table_of(screen).shown and pilot.app.summaries)
        await screen._read_other(other)
        await until(pilot, lambda: "no layer in common" in screen_text(pilot))
        assert screen.other is None


async def test_export_into_a_folder_that_cannot_be_written_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("awq_tui.screens.inspect.write_atomically", refuse)
    screen = InspectScreen(run)
    async with staged(screen) as pilot:
        await until(pilot, lambda: table_of(screen).shown)
        await pilot.press("e")
        await until(pilot, lambda: isinstance(pilot.app.screen, ErrorModal) and "Permission" in screen_text(pilot))


async def test_rows_arrive_while_the_run_works(tmp_path: Path) -> None:
    run = recorded_run(tmp_path, finished_blocks=1)
    lock = run.take_lock()
    screen = InspectScreen(run)
    async with staged(screen) as pilot:
        await until(pilot, lambda: len(table_of(screen).shown) == 7)
        append(run, block(1))
        await until(pilot, lambda: len(table_of(screen).shown) == 14)
    os.close(lock)


@pytest.mark.parametrize("damage", ["no report", "not json", "no rows", "wrong types", "odd curve"])
async def test_a_report_that_cannot_be_trusted_is_one_sentence(checkpoint: Path, damage: str) -> None:
    file = checkpoint / "quantization_report.json"
    report = json.loads(file.read_text())
    if damage == "no report":
        file.unlink()
    elif damage == "not json":
        file.write_text("{")
    elif damage == "no rows":
        file.write_text("{}")
    else:
        report["layers"][3]["mean" if damage == "wrong types" else "losses"] = "seven"
        file.write_text(json.dumps(report))
    screen = InspectScreen(checkpoint)
    async with staged(screen) as pilot:
        await until(pilot, lambda: isinstance(pilot.app.screen, ErrorModal))
        assert "That did not work" in screen_text(pilot)


async def test_names_from_a_report_are_harmless(checkpoint: Path) -> None:
    file = checkpoint / "quantization_report.json"
    report = json.loads(file.read_text())
    report["layers"][0]["name"] = "x[/bold]\x1b[2J\n.q_proj"
    file.write_text(json.dumps(report))
    screen = InspectScreen(checkpoint)
    async with staged(screen) as pilot:
        await until(pilot, lambda: "x[/bold]␛[2J" in screen_text(pilot))


def test_unknown_values_sort_last_both_ways(run: Run) -> None:
    rows = layer_rows(replay(run.records()))
    for descending in (True, False):
        values = [row.alpha for row in sort_rows(rows, LAYER_COLUMNS, Order("alpha", descending))]
        known = [value for value in values if value is not None]
        assert values == sorted(known, reverse=descending) + [None] * (len(values) - len(known))
        assert len(known) < len(values)


def test_a_number_means_a_block_not_a_part_of_one(run: Run) -> None:
    rows = layer_rows(replay(run.records()))
    assert {row.block for row in filter_rows(rows, "1", set())} == {1}


def test_csv_leaves_unknown_values_empty(run: Run) -> None:
    rows = [row for row in layer_rows(replay(run.records())) if row.alpha is None]
    first = next(csv.DictReader(to_csv(rows, LAYER_COLUMNS).splitlines()))
    assert first["alpha"] == ""
    assert float(first["loss_ratio"]) == 1.0


@pytest.mark.parametrize("chars", [UNICODE, ASCII])
def test_error_bars_compare_with_plain_rounding(chars) -> None:
    bars = ErrorBars(glyph_set=chars)
    bars._changes = (0.5, -0.75)
    weight, output = (row_text(row) for row in bars.draw(80, 2))
    assert weight.count(chars.filled) > 4 * output.count(chars.filled)
    assert weight.startswith("weight error   +50%")
    assert output.startswith("output error   -75%")
    bars._changes = (None, None)
    assert [row_text(row).split()[-1] for row in bars.draw(80, 2)] == ["-", "-"]
