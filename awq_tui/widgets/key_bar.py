"""The keys that mean something now, in one line at the bottom; a click on one presses it.

Textual's footer has a widget for every key and makes all of them anew whenever one changes: 70 ms, in which no key is
answered. This is one widget. Where a line is too short for all keys, the last ones give way, but never the help, which
tells them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from textual import events
from textual.screen import Screen
from textual.strip import Strip
from textual.widget import Widget

from awq_tui.widgets.glyphs import glyphs

HELP_ACTION = "help"


@dataclass(frozen=True)
class Key:
    """One item of the bar."""

    key: str
    """As Textual names it."""
    display: str
    label: str
    enabled: bool = True
    lasting: bool = False
    """Shown even where the line is too short."""

    @property
    def width(self) -> int:
        """Cells, with one on either side and one between."""
        return cell_len(self.display) + cell_len(self.label) + 3


class KeyBar(Widget):
    """Follows the bindings of the screen it is on."""

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {"bar--key", "bar--label", "bar--off"}
    DEFAULT_CSS = """
    KeyBar {
        dock: bottom;
        height: 1;
        background: $footer-background;
        & > .bar--key { color: $footer-key-foreground; text-style: bold; }
        & > .bar--label { color: $footer-foreground; }
        & > .bar--off { color: $footer-foreground; text-style: dim; }
    }
    """

    _keys: tuple[Key, ...] = ()

    def on_mount(self) -> None:
        self.screen.bindings_updated_signal.subscribe(self, self._follow, immediate=True)
        self._follow(self.screen)

    def _follow(self, screen: Screen[object]) -> None:
        keys = keys_of(screen)
        if keys != self._keys:
            self._keys = keys
            self.refresh()

    def render_line(self, y: int) -> Strip:
        segments = []
        for item in fit(self._keys, self.size.width):
            key, label = ("bar--key", "bar--label") if item.enabled else ("bar--off", "bar--off")
            segments.append(Segment(f" {item.display} ", self.get_component_rich_style(key)))
            segments.append(Segment(f"{item.label} ", self.get_component_rich_style(label)))
        return Strip(segments).adjust_cell_length(self.size.width, self.rich_style)

    def on_click(self, event: events.Click) -> None:
        end = 0
        for item in fit(self._keys, self.size.width):
            end += item.width
            if event.x < end:
                self._press(item)
                return

    def _press(self, item: Key) -> None:
        if not item.key:
            return
        if item.enabled:
            self.app.simulate_key(item.key)
        else:
            self.app.bell()


def keys_of(screen: Screen[object]) -> tuple[Key, ...]:
    """The first key of every action that is to be shown on `screen`, now."""
    found: dict[str, Key] = {}
    for _, binding, enabled, _ in screen.active_bindings.values():
        if binding.show:
            display = screen.app.get_key_display(binding)
            item = Key(binding.key, display, binding.description, enabled, binding.action == HELP_ACTION)
            found.setdefault(binding.action, item)
    return tuple(found.values())


def fit(keys: Sequence[Key], width: int) -> list[Key]:
    """Those of `keys` for which `width` cells have room, with a mark where some are left out."""
    if sum(item.width for item in keys) <= width:
        return list(keys)
    more = Key("", "", glyphs().ellipsis)
    lasting = [item for item in keys if item.lasting]
    room = width - sum(item.width for item in (more, *lasting))
    shown: list[Key] = []
    for item in keys:
        if item.lasting:
            continue
        room -= item.width
        if room < 0:
            break
        shown.append(item)
    return [*shown, more, *lasting]
