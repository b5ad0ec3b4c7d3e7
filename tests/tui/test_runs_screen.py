"""The runs screen, driven by keys over recorded journals."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from textual.pilot import Pilot

from awq_engine import events as e
from awq_engine.errors import UsageError
from awq_engine.format import age
from awq_engine.runs import Run, RunStatus, list_runs
from awq_tui.app import AwqApp
from awq_tui.screens.confirm import ConfirmModal
from awq_tui.screens.error import ErrorModal
from awq_tui.screens.run import RunScreen
from awq_tui.screens.runs import RunsScreen, column_widths
from tests.engine.safetensors_files import model_folder
from tests.tui.hosting import SIZES, screen_text, until
from tests.tui.recorded_run import append, block, new_run, opening, recorded_run


@contextlib.asynccontextmanager
async def runs(size: tuple[int, int] = (120, 40)) -> AsyncIterator[Pilot[None]]:
    """The app on the runs section."""
    app = AwqApp()
    async with app.run_test(size=size, notifications=True) as pilot:
        await pilot.press("2")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen))
        yield pilot


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Run]:
    """A run in its second block, with this process as its engine."""
    run = new_run(tmp_path)
    lock = run.take_lock()
    append(run, [*opening(4, Path(run.config().output), run.config()), *block(0), *list(block(1))[:4]])
    yield run
    os.close(lock)


def runs_screen(pilot: Pilot[None]) -> RunsScreen:
    assert isinstance(pilot.app.screen, RunsScreen)
    return pilot.app.screen


def enabled(pilot: Pilot[None]) -> set[str]:
    bindings = pilot.app.screen.active_bindings.values()
    return {active.binding.description for active in bindings if active.enabled and active.binding.show}


async def test_without_runs_the_way_to_one_is_shown() -> None:
    async with runs() as pilot:
        await until(pilot, lambda: "No runs yet" in screen_text(pilot))
        await pilot.press("r", "x", "d", "i", "c", "enter")
        assert isinstance(pilot.app.screen, RunsScreen)


@pytest.mark.parametrize("size", SIZES)
async def test_a_live_run_shows_how_far_it_is_and_can_be_cancelled(live: Run, size: tuple[int, int]) -> None:
    async with runs(size) as pilot:
        await until(pilot, lambda: "● running" in screen_text(pilot))
        text = screen_text(pilot)
        for words in ("Qwen2.5-0.5B", "W4 g128 balanced", "quantizing · 1 of 4 blocks", "Runs ●1"):
            assert words in text
        assert "Cancel" in enabled(pilot)
        assert not {"Resume", "Delete", "Chat"} & enabled(pilot)
        await pilot.press("x")
        assert live.cancel_requested()


async def test_a_live_run_moves_on_by_itself(live: Run) -> None:
    async with runs() as pilot:
        await until(pilot, lambda: "1 of 4 blocks" in screen_text(pilot))
        append(live, [*block(1), *block(2)])
        await until(pilot, lambda: "3 of 4 blocks" in screen_text(pilot))


async def test_enter_opens_the_run_and_escape_returns_to_the_list(live: Run) -> None:
    async with runs() as pilot:
        await until(pilot, lambda: runs_screen(pilot).current)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, RunScreen))
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(pilot.app.screen, RunsScreen))


async def test_an_interrupted_run_is_resumed_by_a_new_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = recorded_run(tmp_path, finished_blocks=2)
    started: list[Run] = []
    monkeypatch.setattr(AwqApp, "start_engine", lambda app, run: started.append(run))
    async with runs() as pilot:
        await until(pilot, lambda: "⚠ interrupted" in screen_text(pilot))
        assert "Resume" in enabled(pilot)
        await pilot.press("r")
        await until(pilot, lambda: isinstance(pilot.app.screen, RunScreen))
    assert started == [run]


async def test_an_engine_that_cannot_start_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded_run(tmp_path, finished_blocks=2)

    def refuse(run: Run, *, queued: bool) -> None:
        raise UsageError(f"Run {run.id} is taken [/by] another engine.")

    monkeypatch.setattr("awq_engine.runs.spawn_engine", refuse)
    async with runs() as pilot:
        await until(pilot, lambda: "⚠ interrupted" in screen_text(pilot))
        await pilot.press("r")
        await until(pilot, lambda: isinstance(pilot.app.screen, ErrorModal) and "taken [/by]" in screen_text(pilot))


async def test_delete_asks_first_and_keeps_the_output(tmp_path: Path) -> None:
    run = recorded_run(tmp_path)
    output = model_folder(Path(run.config().output))
    async with runs() as pilot:
        await until(pilot, lambda: "✓ done" in screen_text(pilot))
        await pilot.press("d")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmModal) and "stays" in screen_text(pilot))
        await pilot.press("enter")  # the cursor starts on Keep
        await until(pilot, lambda: isinstance(pilot.app.screen, RunsScreen))
        assert list_runs() == [run]
        await pilot.press("d")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmModal))
        await pilot.press("y")
        await until(pilot, lambda: "No runs yet" in screen_text(pilot))
    assert list_runs() == []
    assert output.is_dir()


async def test_a_failed_run_shows_its_sentence_as_text(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    failed = e.RunFailed("The tensor [/x] is damaged\x1b[2J.", 2)
    append(run, [*opening(4, Path(run.config().output), run.config()), failed])
    async with runs() as pilot:
        await until(pilot, lambda: "✗ failed" in screen_text(pilot) and "[/x] is damaged␛[2J" in screen_text(pilot))


async def test_an_unreadable_run_can_still_be_deleted(tmp_path: Path) -> None:
    run = recorded_run(tmp_path, finished_blocks=1)
    (run.path / "run.json").write_text("{not json")
    async with runs() as pilot:
        await until(pilot, lambda: "is not a run description" in screen_text(pilot))
        await pilot.press("d", "y")
        await until(pilot, lambda: "No runs yet" in screen_text(pilot))


async def test_the_cursor_stays_on_its_run_when_a_newer_one_appears(tmp_path: Path) -> None:
    old = recorded_run(tmp_path, finished_blocks=1)
    async with runs() as pilot:
        await until(pilot, lambda: runs_screen(pilot).current)
        newer = old.path.with_name("99991231-235959-newer-w4")
        newer.mkdir()
        (newer / "run.json").write_bytes((old.path / "run.json").read_bytes())
        await until(pilot, lambda: len(pilot.app.summaries) == 2)  # type: ignore[attr-defined]
        current = runs_screen(pilot).current
        assert current is not None
        assert (current.run, current.status) == (old, RunStatus.INTERRUPTED)


def test_ages_are_told_in_one_unit() -> None:
    assert [age(seconds) for seconds in (-5, 12, 300, 3 * 3600, 50 * 3600)] == ["0 s", "12 s", "5 min", "3 h", "2 d"]


@pytest.mark.parametrize("room", [40, 67, 107, 200])
def test_columns_fill_the_room_they_have(room: int) -> None:
    assert sum(column_widths(room).values()) == max(room, 61)
