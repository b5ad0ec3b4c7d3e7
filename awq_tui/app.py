"""The app: five sections, each with its own stack of screens, over the run directories.

    Models -> Configure      Runs -> Run      Inspect -> one result      Chat -> one model      Compare

The app holds what every screen shares: the summaries of all runs (one follower), the machine, the settings and the
engines it started. Screens are imported when they are first shown, so the first paint waits for nothing, and torch and
transformers are never imported here. Text from outside is made harmless in one place each: `notify`, `show_error`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import events
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.css.query import NoMatches
from textual.notifications import SeverityLevel
from textual.reactive import reactive
from textual.screen import Screen
from textual.theme import Theme
from textual.widget import Widget
from textual.worker import Worker, WorkerState

from awq_engine.errors import AwqError
from awq_engine.sanitize import plain
from awq_tui.ascii_filter import AsciiFilter
from awq_tui.background import in_thread
from awq_tui.places import Place, place_of, screen_of
from awq_tui.preferences import load_preferences
from awq_tui.settings import Settings, load_settings, save_settings
from awq_tui.stylesheet import LastingStylesheet
from awq_tui.terminal_signals import TerminalSignals
from awq_tui.themes import THEMES
from awq_tui.widgets.glyphs import ASCII, glyphs

if TYPE_CHECKING:
    from awq_engine.downloads import Download
    from awq_engine.runs import Run
    from awq_tui.catalog import Entry
    from awq_tui.chats import Chat
    from awq_tui.machine import Machine
    from awq_tui.run_book import RunSummary

SECTIONS = ("models", "runs", "inspect", "chat", "compare")
SWITCH_INTERVAL = 0.0005
"""Seconds a thread that reads journals may keep the interpreter from the keyboard: a key asks for it several times."""
PLACE_INTERVAL = 1.0
"""Seconds between two looks at where the person is: a lost connection leaves no time to store it."""
TYPING = 0.15
"""Seconds after a key in which another is likely."""
QUIT_WINDOW = 2.0
"""Seconds in which a second ctrl+c quits."""
MIN_WIDTH, MIN_HEIGHT = 60, 16
FIRST_PICTURE = 0.1
"""Seconds that are left to the first picture alone, before anything is looked for on the disk."""


def _models_screen() -> Screen[Any]:
    from awq_tui.screens.models import ModelsScreen

    return ModelsScreen()


def _runs_screen() -> Screen[Any]:
    from awq_tui.screens.runs import RunsScreen

    return RunsScreen()


def _compare_screen() -> Screen[Any]:
    from awq_tui.screens.compare import CompareScreen

    return CompareScreen()


def _choose_screen(purpose: str) -> Screen[Any]:
    from awq_tui.screens.choose import ChooseScreen

    return ChooseScreen(purpose)


class AwqApp(App[None]):
    """`main` runs it; `return_code` is the process's exit code."""

    TITLE = "awq-tui"
    CSS_PATH = "app.tcss"
    DEFAULT_MODE = "models"
    MODES: ClassVar[dict[str, str | Callable[[], Screen[Any]]]] = {
        "models": _models_screen,
        "runs": _runs_screen,
        "inspect": partial(_choose_screen, "inspect"),
        "chat": partial(_choose_screen, "chat"),
        "compare": _compare_screen,
    }
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (112, "-normal"), (140, "-wide")]  # noqa: RUF012 - Textual's own type
    VERTICAL_BREAKPOINTS = [(0, "-low"), (30, "-tall")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "section('models')", "Models", id="section.models", show=False, tooltip="Pick a model."),
        Binding("2", "section('runs')", "Runs", id="section.runs", show=False, tooltip="Every run."),
        Binding("3", "section('inspect')", "Inspect", id="section.inspect", show=False,
                tooltip="Per-layer statistics of a result."),
        Binding("4", "section('chat')", "Chat", id="section.chat", show=False, tooltip="Talk to a model."),
        Binding("5", "section('compare')", "Compare", id="section.compare", show=False,
                tooltip="What was measured on every result."),
        Binding("f6", "next_section", "Next section", id="section.next", show=False,
                tooltip="The sections in turn, also while typing."),
        Binding("escape", "back", "Back", id="app.back", show=False, tooltip="To the screen you came from."),
        Binding("question_mark,f1", "help", "Help", key_display="?", id="app.help",
                tooltip="What this screen is for, and its keys."),
        Binding("ctrl+o", "jump", "Jump", id="app.jump", show=False, priority=True,
                tooltip="A letter on everything that can be reached; press it."),
        Binding("ctrl+t", "toggle_dark", "Light/dark", id="app.theme", show=False, tooltip="Switch light and dark."),
        Binding("ctrl+q", "quit", "Quit", id="app.quit", show=False, priority=True,
                tooltip="Quit; runs go on without the app."),
    ]  # fmt: skip

    summaries: reactive[tuple[RunSummary, ...]] = reactive((), init=False, repaint=False)
    """Every run, newest first."""
    downloads: reactive[tuple[Download, ...]] = reactive((), init=False, repaint=False)
    """Models that are being fetched from the Hub, or could not be."""
    machine: reactive[Machine | None] = reactive(None, init=False, repaint=False)

    def __init__(self, run_id: str | None = None) -> None:
        super().__init__()
        self._signals = TerminalSignals(self._end_with)
        self._run_id = run_id
        self.settings = load_settings()
        self.preferences, self._preference_problems = load_preferences()
        if self.preferences.ascii:
            os.environ.setdefault("AWQ_TUI_ASCII", "1")
        if glyphs() is ASCII:
            self._filters.append(AsciiFilter())
        if not self.preferences.animations:
            self.animation_level = "none"
        self._engines: list[subprocess.Popen[bytes]] = []
        self._origins: dict[str, str] = {}
        self._entered: set[str] = set()
        """Sections whose upper screens are open again, or were replaced."""
        self._last_interrupt = self._last_key = float("-inf")
        self._too_small = False
        self._saving = asyncio.Lock()
        self.crash_report: Path | None = None
        for theme in THEMES:
            self.register_theme(theme)
        wanted = os.environ.get("TEXTUAL_THEME") or self.preferences.theme or self.settings.theme
        self.theme = wanted if wanted in self.available_themes else Settings().theme
        self.stylesheet = LastingStylesheet(variables=self.get_css_variables())

    def on_mount(self) -> None:
        self._signals.take()
        self.set_keymap(self.preferences.keys)
        for problem in self._preference_problems:
            self.notify(problem, title="Configuration", severity="warning", timeout=12)
        self.theme_changed_signal.subscribe(self, self._remember_theme)
        self.set_timer(FIRST_PICTURE, self._watch)
        self.set_interval(PLACE_INTERVAL, self._keep_place)
        if self._run_id is None and self.settings.section in SECTIONS:
            self._enter(self.settings.section)
        if self._run_id is not None:
            from awq_engine.runs import find_run

            try:
                self.open_run(find_run(self._run_id))
            except AwqError as error:
                self.show_failure(error)

    # what the screens call

    def open_run(self, run: Run) -> None:
        """Show a run, live or past."""
        from awq_tui.screens.run import RunScreen

        self._open("runs", RunScreen(run))

    def open_inspect(self, source: Run | Path) -> None:
        """Show the per-layer statistics of a run or of a checkpoint folder."""
        from awq_tui.screens.inspect import InspectScreen

        self._open("inspect", InspectScreen(source))

    def open_chat(self, model: str, chat: Chat | None = None) -> None:
        """Talk to a model (a folder, a run id or a Hub id), or go on with a conversation that was kept."""
        from awq_tui.screens.chat import ChatScreen

        self._open("chat", ChatScreen(model, chat=chat))

    def open_configure(self, entry: Entry) -> None:
        """Choose how to quantize a model."""
        from awq_tui.screens.configure import ConfigureScreen

        self._open("models", ConfigureScreen(entry))

    def show_error(self, title: str, message: str) -> None:
        """A modal with text that can be copied; both texts may come from anywhere."""
        from awq_tui.screens.error import ErrorModal

        self.push_screen(ErrorModal(plain(title), plain(message)))

    def show_failure(self, error: BaseException) -> None:
        """One of our sentences for our own errors, the whole traceback for anything unforeseen."""
        if isinstance(error, AwqError):
            self.show_error("That did not work", str(error))
        else:
            self.show_error("Something unforeseen happened", "".join(traceback.format_exception(error)))

    def start_engine(self, run: Run, queued: bool = False) -> None:
        """Start the run's engine, detached, and reap it when it ends; raises `AwqError` or `OSError`."""
        from awq_engine.runs import spawn_engine

        self.reap(spawn_engine(run, queued=queued))

    def reap(self, process: subprocess.Popen[bytes]) -> None:
        """Take note of the end of a detached process, or it stays a zombie."""
        self._engines.append(process)

    def reap_ended(self) -> None:
        """Poll the engines that were started here."""
        self._engines = [engine for engine in self._engines if engine.poll() is None]

    def _watch(self) -> None:
        """Begin to follow the runs and the machine; their modules are no part of the first picture."""
        gc.freeze()  # collections that walk over all modules would hold up keys
        gc.enable()
        sys.setswitchinterval(SWITCH_INTERVAL)
        from awq_tui.watcher import follow_downloads, follow_machine, follow_runs

        self.run_worker(follow_runs(self, offer=self._run_id is None), group="runs", exit_on_error=False)
        self.run_worker(follow_downloads(self), group="downloads", exit_on_error=False)
        self.run_worker(follow_machine(self), group="machine", exit_on_error=False)

    def update_settings(self, **changes: object) -> None:
        """Change the settings and store them; a full or read-only disk costs only the memory of them."""
        self.settings = dataclasses.replace(self.settings, **changes)  # pyright: ignore[reportArgumentType]
        self.run_worker(self._save_settings, group="settings", exit_on_error=False)

    async def _save_settings(self) -> None:
        async with self._saving:
            try:
                await in_thread(save_settings, self.settings)
            except OSError as error:
                self.notify(f"The settings could not be saved: {error.strerror}.", severity="warning")

    def notify(
        self,
        message: str,
        *,
        title: str = "",
        severity: SeverityLevel = "information",
        timeout: float | None = None,
        markup: bool = False,
    ) -> None:
        """A toast; never parsed as markup, because a path in brackets would end the app."""
        super().notify(plain(message), title=plain(title), severity=severity, timeout=timeout, markup=False)

    # sections

    def _open(self, section: str, screen: Screen[Any]) -> None:
        self.run_worker(partial(self._show, section, screen), group="navigation", exit_on_error=False)

    async def _show(self, section: str, screen: Screen[Any]) -> None:
        """Put `screen` alone on top of its section.

        Back leads to where an inspection or a chat was opened; a run's Back leads to the list of runs, and the form
        that started it is done.
        """
        origin = self.current_mode
        self._entered.add(section)
        if section == "runs":
            await self._pop_to_base()
        elif origin != section:
            self._origins[section] = origin
        await self.switch_mode(section)
        await self._pop_to_base()
        await self.push_screen(screen)

    def action_section(self, section: str) -> None:
        """Go to a section as it was left; a second press goes to its first screen."""
        self._origins.pop(section, None)
        if self.current_mode == section:
            self.run_worker(self._pop_to_base, group="navigation", exit_on_error=False)
        else:
            self._enter(section)

    def _enter(self, section: str) -> None:
        """Go there; the first time, with the screens that were open at the last start."""
        self.switch_mode(section)
        if section not in self._entered:
            self._entered.add(section)
            self.run_worker(partial(self._reopen, section), group="navigation", exit_on_error=False)

    async def _reopen(self, section: str) -> None:
        place = place_of(self.settings.places, section, 1)
        screen = await in_thread(screen_of, place) if place else None
        if screen is not None and self.current_mode == section and len(self.screen_stack) == 1:
            await self.push_screen(screen)

    def _keep_place(self) -> None:
        from awq_tui.screens.section import SectionScreen

        section, screens = self.current_mode, self.screen_stack
        try:
            here = tuple(screen.place() for screen in screens if isinstance(screen, SectionScreen))
        except NoMatches:  # one is still being put together
            return
        if here and (here, section) != (self.settings.places.get(section), self.settings.section):
            self.update_settings(places={**self.settings.places, section: here}, section=section)

    def exit(self, *args: Any, **options: Any) -> None:
        """As Textual's; nothing is stored any more once the screens are gone."""
        self._keep_place()
        with contextlib.suppress(OSError):
            save_settings(self.settings)
        super().exit(*args, **options)

    def kept_place(self, section: str) -> Place:
        """Where the person was on the first screen of a section."""
        return place_of(self.settings.places, section, 0)

    def action_next_section(self) -> None:
        self.action_section(SECTIONS[(SECTIONS.index(self.current_mode) + 1) % len(SECTIONS)])

    async def _pop_to_base(self) -> None:
        while len(self.screen_stack) > 1:
            await self.pop_screen()

    async def action_back(self) -> None:
        """Leave the present screen for the one it was opened from."""
        if len(self.screen_stack) > 1:
            self.pop_screen()
        origin = self._origins.pop(self.current_mode, None)
        if origin is not None and len(self.screen_stack) == 1:
            self.switch_mode(origin)

    async def action_pop_screen(self) -> None:
        """Textual's name for the same wish."""
        await self.action_back()

    # help, palette, quitting

    def action_help(self) -> None:
        from awq_tui.screens.help import HelpScreen

        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen(self.screen))

    def action_jump(self) -> None:
        from awq_tui.screens.jump import JumpScreen, jump_targets

        if not self.screen.is_modal:
            self.push_screen(JumpScreen(jump_targets(self.screen)), self._jump)

    def _jump(self, target: Widget | None) -> None:
        from awq_tui.widgets.top_bar import SectionTab

        if isinstance(target, SectionTab):
            self.action_section(target.section)
        elif target is not None:
            target.focus()

    def action_toggle_dark(self) -> None:
        dark, light = ("ansi-dark", "ansi-light") if self.current_theme.ansi else ("awq-dark", "awq-light")
        self.theme = light if self.current_theme.dark else dark

    def action_help_quit(self) -> None:
        """ctrl+c: the second press within two seconds quits."""
        now = time.monotonic()
        if now - self._last_interrupt < QUIT_WINDOW:
            self.exit()
            return
        self._last_interrupt = now
        self.notify("Press ctrl+c again to quit. Runs go on without the app.", timeout=QUIT_WINDOW)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Everything a key does on this screen, and the sections, themes and screenshot."""
        seen: set[str] = set()
        for active in screen.active_bindings.values():
            title = active.binding.description
            if not title or not active.enabled or active.binding.system or title in seen:
                continue
            seen.add(title)
            run = partial(self.run_action, active.binding.action, active.node)
            yield SystemCommand(title, active.tooltip or f"Key {active.binding.key}", run)
        yield SystemCommand("Theme", "Choose among all colour themes, ANSI ones too.", self.action_change_theme)
        yield SystemCommand("Screenshot", "Save this screen as an SVG picture.", self._save_screenshot)

    def _save_screenshot(self) -> None:
        self.set_timer(0.2, self.deliver_screenshot)

    def _remember_theme(self, theme: Theme) -> None:
        if theme.name != self.settings.theme:
            self.update_settings(theme=theme.name)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        if event.state is WorkerState.ERROR and event.worker.error is not None:
            self.show_failure(event.worker.error)

    # the terminal

    @property
    def is_typed_in(self) -> bool:
        """Whether somebody is typing now."""
        return time.monotonic() - self._last_key < TYPING

    async def on_event(self, event: events.Event) -> None:
        if isinstance(event, events.Key):
            self._last_key = time.monotonic()
        await super().on_event(event)

    def tell_terminal(self, sequence: str) -> None:
        """Write a control sequence that draws nothing, where there is a terminal."""
        if self._driver is not None and not self.is_headless:
            self._driver.write(sequence)

    def on_resize(self, event: events.Resize) -> None:
        """Below the smallest usable size, say so instead of drawing ruins."""
        fits = event.size.width >= MIN_WIDTH and event.size.height >= MIN_HEIGHT
        if fits == self._too_small:
            self._cover(not fits)

    def _cover(self, too_small: bool) -> None:
        from awq_tui.screens.too_small import TooSmallScreen

        self._too_small = too_small
        if too_small:
            self.push_screen(TooSmallScreen(MIN_WIDTH, MIN_HEIGHT))
        elif isinstance(self.screen, TooSmallScreen):
            self.pop_screen()

    def _end_with(self, code: int) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(partial(self.exit, return_code=code))

    def on_unmount(self) -> None:
        self._signals.give_back()

    def _handle_exception(self, error: Exception) -> None:
        """An exception nobody caught: keep a report, then let Textual restore the terminal and end."""
        from awq_engine.crash import write_crash_report

        if self.crash_report is None:
            with contextlib.suppress(OSError):
                self.crash_report = write_crash_report(error)
        super()._handle_exception(error)


def main(run_id: str | None = None) -> int:
    """Run the app, opened on a run if one is named; returns the process's exit code."""
    app = AwqApp(run_id)
    app.run()
    if app.crash_report is not None:
        app.error_console.print(
            f"awq-tui stopped because of a bug of its own; the report is in {app.crash_report}. Runs are not affected.",
            markup=False,
            highlight=False,
        )
    return app.return_code or 0
