"""The whole app in ASCII."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.cells import cell_len

import awq_tui
from awq_tui.app import AwqApp
from awq_tui.ascii_filter import in_ascii
from tests.tui.hosting import screen_text, until
from tests.tui.recorded_run import recorded_run


def test_no_sign_of_ours_becomes_a_question_mark() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in Path(awq_tui.__file__).parent.rglob("*.py"))
    signs = {character for character in sources if not character.isascii()}
    assert {sign for sign in signs if in_ascii(sign) == "?"} == set()


@pytest.mark.parametrize("text", ["plain", "╭─ α ─╮", "名前 é", "a\u0301", ""])
def test_cells_stay_where_they_are(text: str) -> None:
    assert in_ascii(text).isascii()
    assert len(in_ascii(text)) == cell_len(text)


async def test_every_screen_is_drawn_in_ascii(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWQ_TUI_ASCII", "1")
    run = recorded_run(tmp_path / "awq-home")
    app = AwqApp()
    async with app.run_test(size=(100, 30), notifications=True) as pilot:
        await until(pilot, lambda: "demo stories" in screen_text(pilot))
        for key in "12345":
            await pilot.press(key)
            await pilot.pause()
            assert screen_text(pilot).isascii()
        app.open_run(run)
        await until(pilot, lambda: "loss kept vs rounding" in screen_text(pilot))
        app.notify("done… ✓")
        await until(pilot, lambda: "done" in screen_text(pilot))
        found = re.findall(r"[^\x00-\x7f]", screen_text(pilot))
        assert not found
