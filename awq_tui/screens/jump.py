"""Jump mode: a letter on everything that can be reached on the screen below; the letter goes there.

After posting's jump mode. Fields that are scrolled out of sight have no letter.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from typing import Any, ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.geometry import Offset
from textual.screen import ModalScreen, Screen
from textual.widget import Widget
from textual.widgets import Static

from awq_tui.widgets.key_bar import KeyBar

LETTERS = "asdfghjklqwertyuiopzxcvbnm" + string.digits
"""The home row first."""


class JumpScreen(ModalScreen[Widget | None]):
    """Dismissed with the widget to go to."""

    DEFAULT_CSS = """
    JumpScreen .letter {
        position: absolute;
        width: 3;
        height: 1;
        background: $accent;
        color: $background;
        text-style: bold;
        text-align: center;
    }
    JumpScreen:ansi .letter { text-style: reverse bold; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,ctrl+o", "close", "Stay", key_display="esc", id="jump.close")
    ]

    def __init__(self, targets: Iterable[Widget]) -> None:
        super().__init__()
        self._targets = dict(zip(LETTERS, targets, strict=False))

    def compose(self) -> ComposeResult:
        for letter, target in self._targets.items():
            label = Static(letter, classes="letter", markup=False)
            label.styles.offset = Offset(target.region.x, target.region.y)
            yield label
        yield KeyBar()

    def on_key(self, event: events.Key) -> None:
        target = self._targets.get(event.character or "")
        if target is not None:
            event.stop()
            self.dismiss(target)

    def action_close(self) -> None:
        self.dismiss(None)


def jump_targets(screen: Screen[Any]) -> list[Widget]:
    """What a jump may go to, from top to bottom: all that takes the focus and is in sight, and the sections' names."""
    from awq_tui.widgets.top_bar import SectionTab

    bounds = screen.region
    found = [*screen.query(SectionTab), *screen.focus_chain]
    seen = [
        widget for widget in found if widget.region.area and bounds.contains_region(widget.region.crop_size((1, 1)))
    ]
    return sorted(seen, key=lambda widget: (widget.region.y, widget.region.x))
