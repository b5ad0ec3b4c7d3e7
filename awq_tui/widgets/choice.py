"""One of a few, on one line: `○ fast  ● balanced  ○ best`. Left and right move; a click picks."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import ClassVar, Generic, TypeVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

T = TypeVar("T", bound=Hashable)
GAP = 3
"""Cells between two options."""


class Choice(Widget, Generic[T], can_focus=True):
    """Options that cannot work are shown with a cross, and can still be chosen: the screen then says why not."""

    DEFAULT_CSS = """
    Choice { height: 1; width: auto; padding: 0 1; }
    Choice:focus { background: $block-cursor-blurred-background; }
    Choice:focus:ansi { text-style: reverse; }
    Choice:focus:nocolor { text-style: reverse; background: $background; }
    """
    ALLOW_SELECT = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "step(-1)", "Previous", show=False),
        Binding("right,space", "step(1)", "Next", show=False),
    ]

    index: reactive[int] = reactive(0)

    class Changed(Message):
        """Another option was chosen."""

        def __init__(self, choice: Choice[T]) -> None:
            super().__init__()
            self.choice = choice

        @property
        def control(self) -> Choice[T]:
            return self.choice

    def __init__(self, options: Sequence[tuple[str, T]], value: T, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._options = list(options)
        self._unfit: frozenset[T] = frozenset()
        self.set_reactive(Choice.index, [option for _, option in options].index(value))

    @property
    def value(self) -> T:
        return self._options[self.index][1]

    def choose(self, value: T) -> None:
        """Choose the option with this value."""
        self.index = [option for _, option in self._options].index(value)

    def mark_unfit(self, values: Collection[T]) -> None:
        """Draw these options as impossible."""
        self._unfit = frozenset(values)
        self.refresh()

    def render(self) -> Content:
        return Content(" " * GAP).join(self._option(number) for number in range(len(self._options)))

    def _option(self, number: int) -> Content:
        label, value = self._options[number]
        chosen, unfit = number == self.index, value in self._unfit
        glyph = "●" if chosen else "✗" if unfit else "○"
        style = "bold $text-error" if chosen and unfit else "bold $text-primary" if chosen else "dim"
        return Content.styled(f"{glyph} {label}", style)

    def watch_index(self) -> None:
        self.post_message(self.Changed(self))

    def action_step(self, by: int) -> None:
        self.index = (self.index + by) % len(self._options)

    def on_click(self, event: events.Click) -> None:
        start = self.content_region.x - self.region.x
        for number, (label, _) in enumerate(self._options):
            end = start + 2 + len(label)
            if start <= event.x < end:
                self.index = number
            start = end + GAP
