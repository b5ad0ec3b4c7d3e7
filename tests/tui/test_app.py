"""The shell: sections, back, help, palette, themes, sizes, failures, signals, first paint."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pyte
import pytest
from textual.command import CommandPalette

from awq_engine.errors import BadInputError
from awq_engine.storage import home
from awq_tui import app as app_module
from awq_tui.app import SECTIONS, AwqApp
from awq_tui.machine import Gpu, Machine, Memory, host_memory, parse_gpu
from awq_tui.screens.choose import ChooseScreen
from awq_tui.screens.error import ErrorModal
from awq_tui.screens.help import HelpScreen
from awq_tui.screens.inspect import InspectScreen
from awq_tui.screens.jump import JumpScreen
from awq_tui.screens.models import ModelsScreen
from awq_tui.screens.run import RunScreen
from awq_tui.screens.runs import RunsScreen
from awq_tui.screens.too_small import TooSmallScreen
from awq_tui.settings import load_settings, settings_path
from awq_tui.widgets.layer_table import LayerTable
from awq_tui.widgets.top_bar import describe_machine
from tests.tui.hosting import DEADLINE, SIZES, screen_text, until
from tests.tui.recorded_run import append, block, new_run, opening, recorded_run
from tests.tui.test_preferences import configure

SECTION_SCREENS = [
    ("2", "runs", RunsScreen),
    ("3", "inspect", ChooseScreen),
    ("4", "chat", ChooseScreen),
    ("1", "models", ModelsScreen),
]


@pytest.mark.parametrize("size", [*SIZES, (60, 16), (200, 50)])
async def test_every_section_is_one_key_away_and_draws_at_every_size(size: tuple[int, int]) -> None:
    app = AwqApp()
    async with app.run_test(size=size, notifications=True) as pilot:
        for key, section, screen in SECTION_SCREENS:
            await pilot.press(key)
            await until(pilot, lambda screen=screen: isinstance(app.screen, screen))
            await until(pilot, lambda section=section: app.screen.query_one(f"#tab-{section}").has_class("-active"))
            assert "awq-tui" in screen_text(pilot)
            assert " ? Help" in screen_text(pilot).splitlines()[-1]


async def test_f6_goes_round_the_sections_even_while_typing() -> None:
    app = AwqApp()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await pilot.press("slash", "1")
        for section in (*SECTIONS[1:], "models"):
            await pilot.press("f6")
            await until(pilot, lambda section=section: app.current_mode == section)


async def test_inspect_without_results_says_where_they_come_from() -> None:
    app = AwqApp()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await pilot.press("3")
        await until(pilot, lambda: "Nothing has been quantized yet" in screen_text(pilot))
        await pilot.press("4")
        await until(pilot, lambda: "demo stories" in screen_text(pilot))


async def test_a_section_keeps_its_place_and_a_second_press_goes_to_its_start(tmp_path: Path) -> None:
    run = recorded_run(tmp_path)
    app = AwqApp()
    async with app.run_test(size=(100, 30), notifications=True) as pilot:
        app.open_run(run)
        await until(pilot, lambda: isinstance(app.screen, RunScreen))
        await pilot.press("1")
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen))
        await pilot.press("2")
        await until(pilot, lambda: isinstance(app.screen, RunScreen))
        await pilot.press("2")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen))


async def test_back_from_an_inspection_leads_to_where_it_was_opened(tmp_path: Path) -> None:
    run = recorded_run(tmp_path)
    app = AwqApp()
    async with app.run_test(size=(100, 30), notifications=True) as pilot:
        app.open_run(run)
        await until(pilot, lambda: isinstance(app.screen, RunScreen))
        app.open_inspect(run)
        await until(pilot, lambda: app.current_mode == "inspect" and len(app.screen_stack) == 2)
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, RunScreen))
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen))
        await pilot.press("escape")
        await pilot.pause()
        assert isinstance(app.screen, RunsScreen)


async def test_the_app_opens_on_the_run_it_was_given(tmp_path: Path) -> None:
    run = recorded_run(tmp_path)
    app = AwqApp(run.id)
    async with app.run_test(size=(100, 30), notifications=True) as pilot:
        await until(pilot, lambda: isinstance(app.screen, RunScreen))


async def test_an_unknown_run_is_a_sentence() -> None:
    app = AwqApp("nonesuch")
    async with app.run_test(size=(100, 30), notifications=True) as pilot:
        await until(pilot, lambda: isinstance(app.screen, ErrorModal) and "no run 'nonesuch'" in screen_text(pilot))


async def test_a_run_that_is_going_on_is_offered_at_once(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    lock = run.take_lock()
    append(run, [*opening(4, Path(run.config().output), run.config()), *block(0)])
    app = AwqApp()
    async with app.run_test(size=(100, 30), notifications=True) as pilot:
        await until(pilot, lambda: "is being quantized now" in screen_text(pilot))
        assert "●1" in screen_text(pilot)
        os.close(lock)
        await until(pilot, lambda: "●1" not in screen_text(pilot))


@pytest.mark.parametrize("key", ["1", "2", "3", "4"])
async def test_help_names_the_screen_and_every_key_in_its_footer(key: str) -> None:
    app = AwqApp()
    async with app.run_test(size=(120, 60), notifications=True) as pilot:
        await pilot.press(key)
        await pilot.pause()
        shown = {a.binding.description for a in app.screen.active_bindings.values() if a.binding.show}
        await pilot.press("question_mark")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen))
        text = screen_text(pilot)
        assert all(description in text for description in shown)
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, HelpScreen))


@pytest.mark.parametrize("screen", ["models", "runs"])
async def test_every_shown_key_has_an_id_and_a_tooltip(screen: str) -> None:
    app = AwqApp()
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        app.action_section(screen)
        await pilot.pause()
        for active in app.screen.active_bindings.values():
            if active.binding.show and not active.binding.system and active.binding.key != "ctrl+p":
                assert active.binding.id, active.binding
                assert active.tooltip, active.binding


async def test_the_palette_offers_every_action_of_the_screen() -> None:
    app = AwqApp()
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen) and app.screen.is_mounted)
        titles = {command.title for command in app.get_system_commands(app.screen)}
        assert {"Find", "Chat", "Quantize", "Runs", "Inspect", "Help", "Quit", "Theme", "Screenshot"} <= titles
        await pilot.press("ctrl+p")
        await until(pilot, lambda: isinstance(app.screen, CommandPalette))
        await pilot.press(*"runs", "enter")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen))


async def test_a_theme_is_remembered() -> None:
    app = AwqApp()
    async with app.run_test(notifications=True) as pilot:
        assert app.theme == "awq-dark"
        await pilot.press("ctrl+t")
        await until(pilot, lambda: load_settings().theme == "awq-light")
    assert AwqApp().theme == "awq-light"


async def test_the_section_is_remembered() -> None:
    app = AwqApp()
    async with app.run_test(notifications=True) as pilot:
        await pilot.press("2")
        await until(pilot, lambda: load_settings().section == "runs")
    app = AwqApp()
    async with app.run_test(notifications=True) as pilot:
        await until(pilot, lambda: isinstance(app.screen, RunsScreen))


async def test_jump_mode_puts_a_letter_on_every_place() -> None:
    app = AwqApp()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen) and "demo stories" in screen_text(pilot))
        await pilot.press("ctrl+o")
        await until(pilot, lambda: isinstance(app.screen, JumpScreen))
        assert "demo stories" in screen_text(pilot), "what is jumped to stays in sight"
        names = [getattr(widget, "section", widget.id) for widget in app.screen._targets.values()]
        assert names == ["models", "runs", "inspect", "chat", "compare", "find", "models"]
        await pilot.press("h")
        await until(pilot, lambda: app.screen.query_one("#find").has_focus)
        await pilot.press("ctrl+o", "s")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen))
        await pilot.press("ctrl+o", "escape")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen))


@pytest.mark.parametrize("theme", ["awq-dark", "awq-light", "awq-contrast", "ansi-dark", "ansi-light"])
async def test_every_theme_draws_every_section(theme: str) -> None:
    app = AwqApp()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        app.theme = theme
        for key in "12345":
            await pilot.press(key)
            await pilot.pause()
        assert "Chat" in screen_text(pilot)


async def test_keys_can_be_rebound_by_id() -> None:
    configure('[keys]\n"section.runs" = "g"')
    app = AwqApp()
    async with app.run_test(notifications=True) as pilot:
        await pilot.press("g")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen))


@pytest.mark.parametrize("text", ["{", "[]", '{"theme": 7, "folders": "x", "section": []}', '{"theme": "gone"}'])
def test_damaged_settings_are_the_defaults(text: str) -> None:
    settings_path().parent.mkdir(parents=True)
    settings_path().write_text(text)
    assert load_settings().folders == ()
    assert AwqApp().theme == "awq-dark"


async def test_a_small_terminal_is_told_and_recovers() -> None:
    app = AwqApp()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        app.show_error("Seen", "The sheet of a modal is loaded now.")
        await until(pilot, lambda: "Seen" in screen_text(pilot))
        await pilot.press("escape")
        await pilot.resize_terminal(50, 12)
        await until(pilot, lambda: isinstance(app.screen, TooSmallScreen) and "50x12" in screen_text(pilot))
        assert "Models" not in screen_text(pilot)
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen))


async def test_errors_and_toasts_show_brackets_and_escapes_as_text() -> None:
    app = AwqApp()
    async with app.run_test(size=(100, 30), notifications=True) as pilot:
        app.notify("failed: [/tmp/x] \x1b[31m", title="[b]oh[/]")
        await until(pilot, lambda: "failed: [/tmp/x] ␛[31m" in screen_text(pilot))
        app.show_error("In [/here]", "tensor [a=b]\x1b[2J is damaged")
        await until(pilot, lambda: "tensor [a=b]␛[2J is damaged" in screen_text(pilot))
        assert "In [/here]" in screen_text(pilot)
        await pilot.press("c")
        assert app.clipboard == "In [/here]\ntensor [a=b]␛[2J is damaged"
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen))


async def test_a_failing_worker_is_shown_and_the_app_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise BadInputError("The folder is on fire.")

    monkeypatch.setattr("awq_tui.catalog.folder_entries", refuse)
    app = AwqApp()
    async with app.run_test(size=(100, 30), notifications=True) as pilot:
        await until(pilot, lambda: isinstance(app.screen, ErrorModal) and "on fire" in screen_text(pilot))
        await pilot.press("escape", "2")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen))


async def test_ctrl_c_quits_only_when_pressed_twice() -> None:
    app = AwqApp()
    async with app.run_test(size=(100, 30), notifications=True) as pilot:
        await pilot.press("ctrl+c")
        await until(pilot, lambda: "ctrl+c again" in screen_text(pilot))
        assert app.is_running
        await pilot.press("ctrl+c")
        await until(pilot, lambda: not app.is_running)
    assert app.return_code == 0


def test_the_machine_is_described_in_a_line(tmp_path: Path) -> None:
    gpu = parse_gpu("NVIDIA H200, 87, 1024, 143771\n")
    assert gpu == Gpu("NVIDIA H200", Memory(1024 << 20, 143771 << 20), 87)
    assert parse_gpu("GRID A100, [N/A], 1024, 143771") == Gpu("GRID A100", Memory(1024 << 20, 143771 << 20))
    machine = Machine(Memory(14 * 10**9, 64 * 10**9), gpu)
    texts = ("H200 87 % 1.1/151 GB · host 14.0/64.0 GB", "H200 87 % 1.1/151 GB", "H200 1.1/151 GB", "GPU 1.1/151 GB")
    for text in texts:
        assert describe_machine(machine, len(text)) == text
    assert describe_machine(machine, 3) == texts[-1]
    assert parse_gpu("No devices were found") is None
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable: 40 kB\n")
    assert host_memory(tmp_path / "meminfo") == Memory(60 * 1024, 100 * 1024)
    assert host_memory(tmp_path / "absent").used == 0


# the real process in a real terminal

SCRIPT = "import sys; from awq_tui.app import main; sys.exit(main())"


class Terminal:
    """The app in a pseudo-terminal with a screen that can be read."""

    def __init__(self, script: str = SCRIPT) -> None:
        environment = {**os.environ, "TERM": "xterm-256color", "TEXTUAL_ANIMATIONS": "none"}
        self.started = time.monotonic()
        self.child = pexpect.spawn(
            sys.executable, ["-c", script], dimensions=(24, 80), env=environment, timeout=DEADLINE
        )
        self.screen = pyte.Screen(80, 24)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""

    def until(self, condition: Callable[[], object]) -> None:
        """Read what the app draws until `condition` holds."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            try:
                data = self.child.read_nonblocking(1 << 16, timeout=0.1)
            except pexpect.TIMEOUT:
                data = b""
            except pexpect.EOF:
                break
            self.raw += data
            self._stream.feed(data)
            if condition():
                return
        raise AssertionError(f"never happened:\n{self.text}")

    @property
    def text(self) -> str:
        return "\n".join(self.screen.display)

    def end(self) -> int:
        """Wait for the end; the exit code."""
        self.raw += self.child.read()
        self.child.wait()
        assert self.child.exitstatus is not None, "killed by a signal"
        return self.child.exitstatus


LEFT_ALTERNATE_SCREEN = b"\x1b[?1049l"
SHOWN_CURSOR = b"\x1b[?25h"


def test_ctrl_q_ends_with_code_0_and_a_sane_terminal() -> None:
    terminal = Terminal()
    terminal.until(lambda: "demo stories" in terminal.text)
    terminal.child.send("\x11")
    assert terminal.end() == 0
    assert LEFT_ALTERNATE_SCREEN in terminal.raw
    assert SHOWN_CURSOR in terminal.raw


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_signals_restore_the_terminal(number: signal.Signals, code: int) -> None:
    terminal = Terminal()
    terminal.until(lambda: "demo stories" in terminal.text)
    terminal.child.kill(number)
    assert terminal.end() == code
    assert LEFT_ALTERNATE_SCREEN in terminal.raw


def test_a_bug_ends_with_code_1_a_report_and_a_sane_terminal() -> None:
    bug = "from awq_tui.app import AwqApp, main\nAwqApp.action_help = lambda self: 1 / 0\nimport sys; sys.exit(main())"
    terminal = Terminal(bug)
    terminal.until(lambda: "demo stories" in terminal.text)
    terminal.child.send("?")
    assert terminal.end() == 1
    assert LEFT_ALTERNATE_SCREEN in terminal.raw
    (report,) = (home() / "crashes").iterdir()
    assert "ZeroDivisionError" in report.read_text()
    assert b"the report is in" in terminal.raw


def test_quitting_does_not_wait_for_a_slow_hub() -> None:
    slow = "import time, awq_tui.catalog as c\nc.cache_entries = lambda: time.sleep(60)\n" + SCRIPT
    terminal = Terminal(slow)
    terminal.until(lambda: "demo stories" in terminal.text)
    asked = time.monotonic()
    terminal.child.send("\x11")
    assert terminal.end() == 0
    assert time.monotonic() - asked < 30


def test_main_returns_the_code_of_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AwqApp, "run", lambda app: app.exit(return_code=130))
    assert app_module.main() == 130


async def test_tables_take_the_colours_of_a_new_theme() -> None:
    run = recorded_run(home())
    app = AwqApp()
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        app.open_inspect(run)
        await until(pilot, lambda: isinstance(app.screen, InspectScreen) and app.screen.rows)
        table = app.screen.query_one(LayerTable)

        def colours() -> set[str]:
            return {str(cell.style) for cell in table.get_column("loss_ratio") if cell.style}

        before = colours()
        app.theme = "awq-light"
        await until(pilot, lambda: before and colours().isdisjoint(before))
