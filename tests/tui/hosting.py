"""The real app with empty sections: a stage for one screen, without catalogues and probes of the machine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, ClassVar

from textual.pilot import Pilot
from textual.screen import Screen

import awq_tui
from awq_tui.app import AwqApp

SIZES = ((80, 24), (120, 40))
DEADLINE = 60.0
"""Seconds a condition may take on a busy machine."""


class Stage(AwqApp):
    """The app under a test."""

    CSS_PATH = Path(awq_tui.__file__).parent / "app.tcss"
    MODES: ClassVar[dict[str, str | Callable[[], Screen[Any]]]] = dict.fromkeys(
        ("models", "runs", "inspect", "chat", "compare"), Screen
    )


@contextlib.asynccontextmanager
async def staged(screen: Screen[Any], size: tuple[int, int] = (120, 40)) -> AsyncIterator[Pilot[None]]:
    """The app showing `screen`; toasts are really drawn, because one that cannot be drawn ends the app."""
    app = Stage()
    async with app.run_test(size=size, notifications=True) as pilot:
        await app.push_screen(screen)
        await pilot.pause()
        yield pilot


async def until(pilot: Pilot[None], condition: Callable[[], object], what: str = "") -> None:
    """Wait for `condition`; a failure shows the screen."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        await pilot.pause(0.02)
        if condition():
            return
    raise AssertionError(f"never happened: {what or condition}\n{screen_text(pilot)}")


def screen_text(pilot: Pilot[None]) -> str:
    """What a person sees, without colours."""
    lines = pilot.app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in lines)
