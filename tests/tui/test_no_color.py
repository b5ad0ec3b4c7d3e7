"""NO_COLOR: Textual's filter fails on a segment without a style, so no widget may draw one."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.screen import Screen

from awq_tui.screens.inspect import InspectScreen
from awq_tui.screens.run import RunScreen
from awq_tui.screens.runs import RunsScreen
from tests.tui.hosting import screen_text, staged, until
from tests.tui.recorded_run import recorded_run


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize(("kind", "words"), [("runs", "W4 g128"), ("run", "rounding"), ("inspect", "84 layers")])
async def test_every_screen_draws_without_colours(
    kind: str, words: str, ascii_only: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("AWQ_TUI_ASCII", "1" if ascii_only else "0")
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path))
    run = recorded_run(tmp_path, n_blocks=12)
    screens: dict[str, Screen[None]] = {"runs": RunsScreen(), "run": RunScreen(run), "inspect": InspectScreen(run)}
    async with staged(screens[kind]) as pilot:
        await until(pilot, lambda: words in screen_text(pilot))
        assert not ascii_only or screen_text(pilot).isascii()
