"""The run screen, driven by keys over recorded journals."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from awq_engine import events as e
from awq_engine import format as fmt
from awq_engine.runs import Run, RunStatus
from awq_engine.state import replay
from awq_tui.run_client import Snapshot
from awq_tui.run_words import times_line
from awq_tui.screens.confirm import ConfirmModal
from awq_tui.screens.log import LogModal
from awq_tui.screens.run import RunScreen, newest_layer
from awq_tui.widgets.alpha_curve import AlphaCurve
from awq_tui.widgets.glyphs import ASCII
from awq_tui.widgets.heat_map import HeatMap, ratio_level
from awq_tui.widgets.histogram import Histogram
from awq_tui.widgets.layer_detail import fit_parts
from tests.tui.hosting import SIZES, screen_text, staged, until
from tests.tui.recorded_run import START, append, block, ending, new_run, opening, recorded_run


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path))


@pytest.fixture
def live(tmp_path: Path):
    """A run in its second block, with this process as its engine."""
    run = new_run(tmp_path)
    lock = run.take_lock()
    now = time.time()
    append(run, [*opening(4, Path(run.config().output), run.config()), *block(0), *list(block(1))[:4]], lambda: now)
    yield run
    os.close(lock)


def keys_in_footer(screen: RunScreen) -> set[str]:
    return {active.binding.description for active in screen.active_bindings.values() if active.binding.show}


@pytest.mark.parametrize("size", SIZES)
async def test_a_finished_run_shows_its_outcome(tmp_path: Path, size: tuple[int, int]) -> None:
    screen = RunScreen(recorded_run(tmp_path))
    async with staged(screen, size) as pilot:
        await until(pilot, lambda: "988 MB" in screen_text(pilot))
        text = screen_text(pilot)
        for words in (
            "457 MB",
            "4.16 bits/weight",
            "100 %",
            "Qwen2.5-0.5B  W4 g128 balanced",
            "logits differ",
            "best α",
        ):
            assert words in text
        assert {"Inspect", "Chat", "Log"} <= keys_in_footer(screen)
        assert not {"Cancel", "Resume", "Follow"} & keys_in_footer(screen)


@pytest.mark.parametrize("size", SIZES)
async def test_a_live_run_is_followed_until_the_cursor_moves(live: Run, size: tuple[int, int]) -> None:
    screen = RunScreen(live)
    async with staged(screen, size) as pilot:
        heat = screen.query_one(HeatMap)
        await until(pilot, lambda: heat.cursor == (1, "self_attn.q_proj"))
        append(live, list(block(1))[4:])
        await until(pilot, lambda: heat.cursor == (1, "mlp.down_proj"))
        assert "block 1 · mlp.down_proj" in screen_text(pilot)
        await pilot.press("up", "left")
        assert heat.cursor == (0, "mlp.up_proj")
        append(live, block(2))
        await until(pilot, lambda: screen.snapshot is not None and 2 in screen.snapshot.state.blocks)
        assert heat.cursor == (0, "mlp.up_proj")
        assert "Follow" in keys_in_footer(screen)
        await pilot.press("f")
        assert heat.cursor == (2, "mlp.down_proj")
        assert "fell back to plain rounding" in screen_text(pilot)


async def test_the_detail_shows_the_chain_of_losses(tmp_path: Path) -> None:
    screen = RunScreen(recorded_run(tmp_path))
    async with staged(screen) as pilot:
        await until(pilot, lambda: "feedback" in screen_text(pilot))
        text = screen_text(pilot)
        for words in ("rounding", "→ scale", "→ clip", "max/mean", ">5x 1.5%", "<0.5x 8.1%", "Δweight +15%"):
            assert words in text


async def test_a_layer_that_no_fold_reaches_says_so(tmp_path: Path) -> None:
    screen = RunScreen(recorded_run(tmp_path))
    async with staged(screen) as pilot:
        heat = screen.query_one(HeatMap)
        await until(pilot, lambda: heat.cursor is not None)
        await pilot.press("home")
        while heat.cursor != (0, "self_attn.o_proj"):
            await pilot.press("left")
        text = screen_text(pilot)
        assert "Its channels keep their scale" in text
        assert "no channel scale" in text


async def test_a_small_terminal_shows_one_plot_at_a_time(tmp_path: Path) -> None:
    screen = RunScreen(recorded_run(tmp_path))
    async with staged(screen, (80, 24)) as pilot:
        await until(pilot, lambda: "best α" in screen_text(pilot))
        assert screen.query_one(AlphaCurve).size.height >= 5
        assert not screen.query_one(Histogram).size
        await pilot.press("v")
        await until(pilot, lambda: "channel scales" in screen_text(pilot))
        assert "best α" not in screen_text(pilot)
        await pilot.resize_terminal(120, 40)
        await until(pilot, lambda: "best α" in screen_text(pilot) and "channel scales" in screen_text(pilot))


async def test_cancel_asks_first(live: Run) -> None:
    screen = RunScreen(live)
    async with staged(screen) as pilot:
        await until(pilot, lambda: "Cancel" in keys_in_footer(screen))
        await pilot.press("x")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmModal))
        await pilot.press("n")
        await until(pilot, lambda: pilot.app.screen is screen)
        assert not live.cancel_requested()
        await pilot.press("x")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmModal))
        await pilot.press("y")
        await until(pilot, lambda: "stopping after the present step" in screen_text(pilot))
        assert live.cancel_requested()


async def test_a_run_is_paused_and_goes_on(live: Run) -> None:
    screen = RunScreen(live)
    async with staged(screen) as pilot:
        await until(pilot, lambda: "Pause" in keys_in_footer(screen))
        await pilot.press("p")
        await until(pilot, lambda: "pausing after the present step" in screen_text(pilot))
        assert live.pause_requested()
        append(live, [e.Paused()], time.time)
        await until(pilot, lambda: "paused " in screen_text(pilot))
        assert "Continue" in keys_in_footer(screen)
        await pilot.press("p")
        append(live, [e.Continued()], time.time)
        await until(pilot, lambda: "block 2/4" in screen_text(pilot) and "Pause" in keys_in_footer(screen))
        assert not live.pause_requested()


async def test_a_dead_engine_is_noticed_and_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = recorded_run(tmp_path, finished_blocks=2)
    started: list[Run] = []
    monkeypatch.setattr("awq_engine.runs.spawn_engine", lambda run, queued: started.append(run))
    screen = RunScreen(run)
    async with staged(screen) as pilot:
        await until(pilot, lambda: "ended without a word" in screen_text(pilot))
        assert "2 finished blocks are kept" in screen_text(pilot)
        assert f" {fmt.duration(len(run.records()) - 1)} gone" in screen_text(pilot), "the clock stands still"
        assert " left" not in screen_text(pilot)
        pilot.app._engines = []  # type: ignore[attr-defined]
        await pilot.press("r")
        assert started == [run]


async def test_a_failure_shows_the_engines_sentence(tmp_path: Path) -> None:
    run = recorded_run(tmp_path, finished_blocks=1)
    append(run, [e.RunFailed("The disk is full at [/tmp/x]\x1b[2J: 3 GB are missing.", 3)])
    screen = RunScreen(run)
    async with staged(screen, (80, 24)) as pilot:
        await until(pilot, lambda: "The disk is full at [/tmp/x]" in screen_text(pilot))
        assert "\x1b" not in screen_text(pilot)
        assert "1 finished block is kept" in screen_text(pilot)
        assert "Resume" in keys_in_footer(screen)


async def test_the_log_is_shown_as_text(tmp_path: Path) -> None:
    run = recorded_run(tmp_path)
    run.log_path.write_text("loading [bold]x[/] \x1b[31mred\nlast line\n")
    screen = RunScreen(run)
    async with staged(screen) as pilot:
        await pilot.press("l")
        await until(pilot, lambda: isinstance(pilot.app.screen, LogModal) and "last line" in screen_text(pilot))
        assert "loading [bold]x[/]" in screen_text(pilot)
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.screen is screen)


async def test_the_run_ends_while_it_is_watched(tmp_path: Path) -> None:
    run = recorded_run(tmp_path, n_blocks=2, finished_blocks=1)
    lock = run.take_lock()
    screen = RunScreen(run)
    async with staged(screen) as pilot:
        await until(pilot, lambda: screen.snapshot is not None and screen.snapshot.status is RunStatus.RUNNING)
        append(run, [*block(1), *ending(Path(run.config().output))])
        os.close(lock)
        await until(pilot, lambda: "read back and compared" in screen_text(pilot))


async def test_an_unreadable_request_does_not_hide_the_run(tmp_path: Path) -> None:
    run = recorded_run(tmp_path)
    (run.path / "run.json").write_text("{")
    screen = RunScreen(run)
    async with staged(screen) as pilot:
        await until(pilot, lambda: "988 MB" in screen_text(pilot))
        assert run.id in screen_text(pilot)


async def test_the_heat_map_has_a_character_for_every_state(live: Run) -> None:
    screen = RunScreen(live)
    async with staged(screen) as pilot:
        await until(pilot, lambda: "[" in screen_text(pilot))
        heat = screen.query_one(HeatMap)
        rows = ["".join(segment.text for segment in heat.render_line(y)) for y in range(5)]
        assert rows[0].split() == ["q", "k", "v", "o", "gate", "up", "down"]
        assert set("".join(rows[1].split()[1:])) <= set("░▒▓█![]")
        assert set(rows[2].split()[2:]) == {"◌"}
        assert set(rows[3].split()[1:]) == {"·"}
        heat._glyphs = ASCII
        assert all("".join(segment.text for segment in heat.render_line(y)).isascii() for y in range(5))


@pytest.mark.parametrize("size", SIZES)
async def test_the_cursor_is_always_in_view(tmp_path: Path, size: tuple[int, int]) -> None:
    screen = RunScreen(recorded_run(tmp_path, n_blocks=40))
    async with staged(screen, size) as pilot:
        heat = screen.query_one(HeatMap)
        await until(pilot, lambda: heat.cursor == (39, "mlp.down_proj") and "]" in screen_text(pilot))
        for key, block in (("home", 0), ("down", 1), ("pagedown", 11), ("pagedown", 21), ("pageup", 11), ("end", 39)):
            await pilot.press(key)
            await until(pilot, lambda block=block: marked_block(heat) == block, f"{block} after {key}")


def marked_block(heat: HeatMap) -> int | None:
    """The block whose drawn line holds the brackets."""
    lines = ["".join(segment.text for segment in heat.render_line(y)) for y in range(1, heat.size.height)]
    return next((int(line.split()[0]) for line in lines if "[" in line), None)


async def test_a_click_chooses_a_layer(tmp_path: Path) -> None:
    screen = RunScreen(recorded_run(tmp_path))
    async with staged(screen) as pilot:
        heat = screen.query_one(HeatMap)
        await until(pilot, lambda: heat.cursor is not None)
        await pilot.click(HeatMap, offset=(3, 2))
        assert heat.cursor == (1, "self_attn.q_proj")


def test_newest_layer_of_nothing_is_none() -> None:
    from awq_engine.state import RunState

    assert newest_layer(RunState()) is None


@pytest.mark.parametrize(("ratio", "level"), [(None, 0), (0.1, 0), (0.25, 0), (0.3, 1), (0.6, 2), (1.0, 3), (1.01, 4)])
def test_shades_of_a_ratio(ratio: float | None, level: int) -> None:
    assert ratio_level(ratio) == level


def test_parts_are_never_broken() -> None:
    assert fit_parts(["mean 1.09", "max 6.87", "min 0.31"], 20) == ["mean 1.09  max 6.87", "min 0.31"]


def test_before_the_first_block_the_plan_tells_what_is_left(live: Run) -> None:
    started = e.BlockStarted(0, "model.layers.0")
    opened = opening(4, Path("/out"), live.config())
    state = replay(e.Record(number, START, event) for number, event in enumerate([*opened, started], 1))
    snapshot = Snapshot(state, RunStatus.RUNNING, False, False, 0)
    assert "about 1:30 left" in times_line(snapshot, START + 10, expected=100.0)
    assert "about 1:15 left" in times_line(snapshot, START + 90, expected=100.0)
    assert "left" not in times_line(snapshot, START + 10)


async def test_a_finished_run_is_played_again(tmp_path: Path) -> None:
    screen = RunScreen(recorded_run(tmp_path))
    async with staged(screen) as pilot:
        await until(pilot, lambda: "100 %" in screen_text(pilot))
        await pilot.press("p")
        await until(pilot, lambda: "replay" in screen_text(pilot) and "100 %" not in screen_text(pilot))
        assert {"Faster", "Slower", "Replay"} <= keys_in_footer(screen)
        for _ in range(6):
            await pilot.press("plus")
        await until(pilot, lambda: "100 %" in screen_text(pilot) and "read back and compared" in screen_text(pilot))
        await pilot.press("p")
        await until(pilot, lambda: "replay" not in screen_text(pilot))
