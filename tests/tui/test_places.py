"""The app comes back as it was left: section, screens, cursors, filters, order; whatever is gone costs only itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import Input

from awq_engine.storage import home
from awq_tui.app import AwqApp
from awq_tui.places import place_of, read_places
from awq_tui.screens.choose import ChooseScreen
from awq_tui.screens.compare import CompareScreen
from awq_tui.screens.inspect import InspectScreen
from awq_tui.screens.models import ModelsScreen
from awq_tui.screens.run import RunScreen
from awq_tui.screens.runs import RunsScreen
from awq_tui.settings import load_settings, settings_path
from awq_tui.widgets.heat_map import HeatMap
from awq_tui.widgets.layer_table import LayerTable
from tests.tui.hosting import screen_text, until
from tests.tui.recorded_run import measured_run, recorded_run


async def test_a_run_comes_back_with_its_layer() -> None:
    first, second = recorded_run(home()), recorded_run(home())
    app = AwqApp()
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await pilot.press("2")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen) and app.screen.current is not None)
        assert isinstance(app.screen, RunsScreen)
        app.screen.table.move_cursor(row=1)
        await pilot.pause()
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, RunScreen) and "block 3" in screen_text(pilot))
        await pilot.press("up", "right")
        cursor = app.screen.query_one(HeatMap).cursor
        app.exit()
    app = AwqApp()
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await until(pilot, lambda: isinstance(app.screen, RunScreen) and app.screen.snapshot)
        assert isinstance(app.screen, RunScreen)
        assert app.screen.run in (first, second)
        assert app.screen.query_one(HeatMap).cursor == cursor
        kept = app.screen.run
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen) and app.screen.current)
        assert isinstance(app.screen, RunsScreen)
        assert app.screen.current is not None
        assert app.screen.current.run == kept


async def test_an_inspection_comes_back_with_filter_order_types_and_the_run_beside() -> None:
    source, beside = recorded_run(home()), recorded_run(home())
    app = AwqApp()
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        app.open_inspect(source)
        await until(pilot, lambda: isinstance(app.screen, InspectScreen) and app.screen.rows)
        screen = app.screen
        assert isinstance(screen, InspectScreen)
        screen.query_one(Input).value = "down"
        await screen._read_other(beside)
        await pilot.press("t", "z", "s")
        order = screen.query_one(LayerTable).order
        app.exit()
    app = AwqApp()
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await until(pilot, lambda: isinstance(app.screen, InspectScreen) and app.screen.other)
        screen = app.screen
        assert isinstance(screen, InspectScreen)
        assert (screen.source, screen.other) == (source, beside)
        assert screen.query_one(Input).value == "down"
        assert screen.by_type
        assert screen.has_class("-zoomed")
        assert screen.query_one(LayerTable).order == order


async def test_find_order_and_cursor_of_the_models_come_back() -> None:
    for name in ("small", "smaller"):
        (Path.cwd() / name).mkdir()
        (Path.cwd() / name / "config.json").write_text('{"model_type": "llama"}')
    app = AwqApp()
    async with app.run_test(notifications=True) as pilot:
        await until(pilot, lambda: "smaller" in screen_text(pilot))
        assert isinstance(app.screen, ModelsScreen)
        app.screen.query_one("#find", Input).value = "small"
        await pilot.press("s")
        app.screen.table.move_cursor(row=1)
        wanted = app.screen.table.current
        assert wanted is not None
        app.exit()
    app = AwqApp()
    async with app.run_test(notifications=True) as pilot:
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen) and app.screen.table.current == wanted)
        assert isinstance(app.screen, ModelsScreen)
        assert app.screen.query_one("#find", Input).value == "small"
        assert "by parameters" in str(app.screen.query_one("#list").border_subtitle)


async def test_filter_order_and_cursor_of_the_comparison_come_back() -> None:
    runs = [measured_run(home(), kl) for kl in (0.1, 0.2, 0.3)]
    app = AwqApp()
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await pilot.press("5")
        await until(pilot, lambda: isinstance(app.screen, CompareScreen) and len(app.screen.table.shown) == len(runs))
        assert isinstance(app.screen, CompareScreen)
        app.screen.query_one(Input).value = "w4"
        await pilot.press("o", "down")
        chosen = app.screen.current
        assert chosen is not None
        order = app.screen.table.order
        app.exit()
    app = AwqApp()
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await until(pilot, lambda: isinstance(app.screen, CompareScreen) and app.screen.current)
        assert isinstance(app.screen, CompareScreen)
        assert app.screen.current is not None
        assert app.screen.current.run == chosen.run
        assert app.screen.table.order == order
        assert app.screen.query_one(Input).value == "w4"


async def test_what_is_gone_leaves_the_first_screen_of_its_section() -> None:
    settings_path().parent.mkdir(parents=True)
    settings_path().write_text(
        '{"section": "inspect", "places": {"inspect": [{}, {"screen": "inspect", "folder": "/gone"}],'
        ' "runs": [{"run": "gone"}, {"screen": "run", "run": "gone"}],'
        ' "chat": [{}, {"screen": "chat", "chat": "../x"}]}}'
    )
    app = AwqApp()
    async with app.run_test(notifications=True) as pilot:
        await until(pilot, lambda: isinstance(app.screen, ChooseScreen))
        await pilot.press("2")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen))
        await pilot.press("4")
        await until(pilot, lambda: isinstance(app.screen, ChooseScreen))
        await until(pilot, lambda: load_settings().section == "chat")


@pytest.mark.parametrize("data", [None, 7, [], {"models": 3}, {"models": [[], 7, {"find": 3, "order": []}]}])
def test_damaged_places_are_empty(data: object) -> None:
    assert not any(place_of(read_places(data), "models", depth) for depth in range(4))
