"""Style sheets are parsed once, and again only for another theme."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import textual.css.stylesheet
from textual.screen import Screen

from awq_tui.screens.help import HelpScreen
from awq_tui.screens.runs import RunsScreen
from tests.tui.hosting import Stage


async def test_every_sheet_is_parsed_once_for_a_theme(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: Counter[tuple[object, ...]] = Counter()
    real = textual.css.stylesheet.parse

    def counting(scope: str, css: str, read_from: object, **options: Any) -> object:
        parsed[read_from, scope, options["tie_breaker"]] += 1
        return real(scope, css, read_from, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(textual.css.stylesheet, "parse", counting)
    app = Stage()
    async with app.run_test() as pilot:
        for screen in (RunsScreen(), Screen()):
            await app.push_screen(screen)
            await pilot.pause()
        await app.push_screen(HelpScreen(app.screen))
        await pilot.pause()
        assert set(parsed.values()) == {1}
        parsed.clear()
        before = app.screen.styles.background
        app.theme = "awq-light"
        await pilot.pause()
        assert set(parsed.values()) == {1}
        assert app.screen.styles.background != before
