"""Every screen as text, at three sizes and in three themes, against files that a person has looked at.

The files hold what stands on the screen and no colours: those of Textual's own widgets shift with every release, and
nobody reads a list of colours anyway. What is asked of colours is asked in words instead: every theme draws the same
text, and no character is harder to read against its ground than `READABLE`. After a wanted change, look at

    UPDATE_SNAPSHOTS=1 pytest tests/tui/test_snapshots.py && git diff tests/tui/snapshots
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from rich.style import Style
from textual.pilot import Pilot

from awq_engine import estimate
from awq_engine import runs as runs_on_disk
from awq_engine.demo import MODEL
from awq_engine.estimate import Speed
from awq_engine.storage import home
from awq_tui import watcher
from awq_tui.app import AwqApp
from awq_tui.catalog import demo_entry
from awq_tui.chat_client import ChatClient
from awq_tui.machine import Gpu, Machine, Memory
from awq_tui.screens import configure as configure_module
from awq_tui.screens import runs as runs_screen
from awq_tui.screens.chat import ChatScreen
from awq_tui.themes import THEMES
from tests.tui.hosting import screen_text, until
from tests.tui.recorded_run import measured_run, recorded_run

FOLDER = Path(__file__).parent / "snapshots"
SIZES = ((80, 24), (120, 40), (200, 60))
READABLE = 3.0
"""Least contrast, as WCAG counts it, of letters and digits."""

Shown = Callable[[AwqApp, Pilot[None]], Awaitable[object]]


@pytest.fixture(autouse=True)
def _same_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing on the screen depends on where and when the tests run."""
    speed = Speed(1e11, "measured in another run")
    gpu = Gpu("NVIDIA GeForce RTX 4090", Memory(1_000_000_000, 24_000_000_000), busy=7)
    monkeypatch.setattr(watcher, "probe_machine", lambda: Machine(Memory(8_000_000_000, 32_000_000_000), gpu))
    seconds = itertools.count()
    monkeypatch.setattr(runs_on_disk.time, "strftime", lambda *_: f"20260101-{next(seconds):06}")
    monkeypatch.setattr(runs_screen, "age", lambda seconds: "3 d")
    monkeypatch.setattr(estimate, "measured_speed", lambda device="auto": speed)
    monkeypatch.setattr(configure_module, "measured_speed", lambda device="auto": speed)


async def models(app: AwqApp, pilot: Pilot[None]) -> None:
    await until(pilot, lambda: "24.0 GB free" in screen_text(pilot))


async def configure(app: AwqApp, pilot: Pilot[None]) -> None:
    app.open_configure(demo_entry())
    await until(pilot, lambda: "Ready: ctrl+s" in screen_text(pilot))


async def runs(app: AwqApp, pilot: Pilot[None]) -> None:
    for finished in (None, 1):
        recorded_run(Path("/models"), finished_blocks=finished)
    await pilot.press("2")
    await until(pilot, lambda: "interrupted" in screen_text(pilot))


async def run(app: AwqApp, pilot: Pilot[None]) -> None:
    app.open_run(recorded_run(Path("/models")))
    await until(pilot, lambda: "read back and compared" in screen_text(pilot))


async def inspect(app: AwqApp, pilot: Pilot[None]) -> None:
    app.open_inspect(recorded_run(Path("/models")))
    await until(pilot, lambda: "28 layers" in screen_text(pilot))


async def compare(app: AwqApp, pilot: Pilot[None]) -> None:
    for kl, preset, size in ((0.031, "fast", 4), (0.012, "balanced", 4), (0.009, "best", 5)):
        measured_run(home(), kl, {"preset": preset}, size * 100_000_000)
    await pilot.press("5")
    await until(pilot, lambda: "3 measured" in screen_text(pilot))


async def chat(app: AwqApp, pilot: Pilot[None]) -> None:
    command = [sys.executable, str(Path(__file__).with_name("fake_chat_worker.py")), "normal"]
    await app._show("chat", ChatScreen("tiny", ChatClient("tiny", command)))
    await until(pilot, lambda: isinstance(app.screen, ChatScreen) and app.screen.ready)
    await pilot.press(*"hello", "enter")
    await until(pilot, lambda: "tok/s" in screen_text(pilot))


async def help_of_a_run(app: AwqApp, pilot: Pilot[None]) -> None:
    await run(app, pilot)
    await pilot.press("question_mark")
    await until(pilot, lambda: "How far the run is" in screen_text(pilot))


@pytest.mark.parametrize("show", [models, configure, runs, run, inspect, compare, chat, help_of_a_run])
async def test_screen(show: Shown) -> None:
    app = AwqApp()
    async with app.run_test(size=SIZES[0], notifications=True) as pilot:
        await show(app, pilot)
        await until(pilot, lambda: app.machine)
        app.clear_notifications()
        for size in SIZES:
            await pilot.resize_terminal(*size)
            for theme in THEMES:
                app.theme = theme.name
                await until(pilot, lambda: settled(pilot), "a screen that stays as it is")
                faint = [] if app.screen.is_modal else faintest(pilot)  # what lies behind is dimmed
                assert not faint, f"{theme.name} at {size}: {faint}"
                compare_with(FOLDER / f"{show.__name__}-{size[0]}x{size[1]}.txt", scrubbed(screen_text(pilot)))


def settled(pilot: Pilot[None]) -> bool:
    """Whether the picture is the same as a moment ago."""
    before = getattr(pilot, "_seen", None)
    now = screen_text(pilot)
    pilot._seen = now  # pyright: ignore[reportAttributeAccessIssue]
    return before == now


def scrubbed(text: str) -> str:
    """Without what is another thing at every start: folders."""
    for folder in (str(MODEL), str(home()), str(Path.cwd())):
        text = text.replace(folder, "FOLDER")
    text = re.sub(r"(FOLDER|/tmp/|/home/|\S*…\S*/)\S*", "FOLDER", text)
    text = re.sub(r"FOLDER +", "FOLDER ", text)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def compare_with(file: Path, text: str) -> None:
    if os.environ.get("UPDATE_SNAPSHOTS"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), f"{file.name} shows something else; see this file's first lines"


def faintest(pilot: Pilot[None]) -> list[tuple[str, float]]:
    """Texts that are drawn with less contrast than they need."""
    found = []
    for strip in pilot.app.screen._compositor.render_strips():
        for text, style, _ in strip:
            if style and re.search(r"[A-Za-z0-9]", text) and (ratio := contrast(style)) < READABLE:
                found.append((text, round(ratio, 2)))
    return found


def contrast(style: Style) -> float:
    """(L1 + 0.05) / (L2 + 0.05) of the brighter and the darker colour."""
    if style.color is None or style.bgcolor is None:
        return 21.0
    first, second = (luminance(*color.get_truecolor()) for color in (style.color, style.bgcolor))
    return (max(first, second) + 0.05) / (min(first, second) + 0.05)


def luminance(*channels: int) -> float:
    """Relative, of sRGB."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
