"""The line of keys at the bottom."""

from __future__ import annotations

from typing import ClassVar

import pytest
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType

from awq_tui.widgets.key_bar import Key, KeyBar, fit
from tests.tui.hosting import screen_text, until

KEYS = [Key("a", "a", "Alpha"), Key("b", "b", "Beta"), Key("question_mark", "?", "Help", lasting=True)]


@pytest.mark.parametrize(
    ("width", "labels"), [(99, "Alpha Beta Help"), (25, "Alpha Beta Help"), (24, "Alpha … Help"), (8, "… Help")]
)
def test_help_stays_when_other_keys_give_way(width: int, labels: str) -> None:
    assert " ".join(item.label for item in fit(KEYS, width)) == labels


class Pressed(App[None]):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("a", "press('a')", "Alpha"),
        Binding("b", "press('b')", "Beta"),
        Binding("h", "press('h')", "Hidden", show=False),
    ]
    pressed = ""
    allowed: bool | None = True

    def compose(self) -> ComposeResult:
        yield KeyBar()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self.allowed if action == "press" and parameters == ("b",) else True

    def action_press(self, key: str) -> None:
        self.pressed += key


async def test_the_bar_follows_the_bindings_and_can_be_clicked() -> None:
    app = Pressed()
    async with app.run_test(size=(40, 3)) as pilot:
        await until(pilot, lambda: " a Alpha  b Beta" in screen_text(pilot))
        assert "Hidden" not in screen_text(pilot)
        await pilot.click(KeyBar, offset=(12, 0))
        await until(pilot, lambda: app.pressed == "b")
        app.allowed = None  # dimmed
        app.screen.refresh_bindings()
        await pilot.click(KeyBar, offset=(12, 0))
        await pilot.click(KeyBar, offset=(30, 0))
        await pilot.click(KeyBar, offset=(2, 0))
        await until(pilot, lambda: app.pressed == "ba")
        app.allowed = False
        app.screen.refresh_bindings()
        await until(pilot, lambda: "Beta" not in screen_text(pilot))
