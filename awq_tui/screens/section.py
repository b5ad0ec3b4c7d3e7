"""What the screens of the app have in common: the bar on top, the footer, and failures shown instead of fatal."""

from __future__ import annotations

from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.screen import Screen
from textual.worker import Worker, WorkerState

from awq_tui.app import AwqApp
from awq_tui.places import Place
from awq_tui.widgets.key_bar import KeyBar
from awq_tui.widgets.top_bar import TopBar

FLAT_HEIGHT = 20
"""Rows below which a screen has the class `-flat`, beside the app's `-low`."""


class SectionScreen(Screen[None]):
    """Subclasses say in `HELP` what they are for and compose their `body`."""

    HELP: ClassVar[str | None] = None

    kept: Place = {}  # noqa: RUF012 - replaced, never changed
    """Where the person was on this screen at the last start; used once, when it is mounted."""

    def compose(self) -> ComposeResult:
        yield TopBar()
        yield from self.body()
        yield KeyBar()

    def body(self) -> ComposeResult:
        """Everything between the bar and the footer."""
        yield from ()

    @on(events.Mount)
    def _follow_theme(self) -> None:
        self.app.theme_changed_signal.subscribe(self, lambda _: self.recolour())

    def recolour(self) -> None:
        """Draw anew what has its colours from the theme that was."""

    def place(self) -> Place:
        """What to find again at the next start."""
        return {}

    def on_resize(self) -> None:
        self.set_class(self.app.size.height < FLAT_HEIGHT, "-flat")
        self.call_after_refresh(self.refresh_bindings)  # some keys make sense only where there is little room

    def on_screen_resume(self) -> None:
        self.catch_up()

    def catch_up(self) -> None:
        """Draw what came while another section was on show: nothing is drawn for a screen that nobody sees."""

    @property
    def awq(self) -> AwqApp:
        """The app, as the type it is."""
        assert isinstance(self.app, AwqApp)
        return self.app

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        if event.state is WorkerState.ERROR and event.worker.error is not None:
            self.awq.show_failure(event.worker.error)
