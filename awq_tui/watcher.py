"""What the app looks at all the time: the run directories, the downloads, and this machine's memory.

One follower serves every screen. It starts after the first picture, and works on threads.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from awq_engine.downloads import forget, list_downloads
from awq_tui.background import in_thread
from awq_tui.machine import probe_machine
from awq_tui.run_book import RunBook, RunSummary
from awq_tui.terminal_notice import terminal_notice

if TYPE_CHECKING:
    from awq_tui.app import AwqApp

RUNS_INTERVAL = 0.5
"""Seconds between two looks at the run directories."""
MACHINE_INTERVAL = 5.0


async def follow_runs(app: AwqApp, offer: bool) -> None:
    """Keep `app.summaries` true until cancelled; runs that end are told of, and at first, with `offer`, one at work."""
    book = RunBook()
    while True:
        app.reap_ended()
        running = {summary.run for summary in app.summaries if summary.running}
        app.summaries = await in_thread(book.refresh)
        _tell_ended(app, [summary for summary in app.summaries if summary.run in running and not summary.running])
        if offer:
            _offer_running(app)
            offer = False
        await asyncio.sleep(RUNS_INTERVAL)


async def follow_downloads(app: AwqApp) -> None:
    """Keep `app.downloads` true until cancelled; one that is complete is told of and forgotten."""
    while True:
        app.downloads = tuple(await in_thread(list_downloads))
        for download in app.downloads:
            if download.finished:
                app.notify(f"{download.spec} is here now.", title="Downloaded", timeout=8)
                app.tell_terminal(terminal_notice(app.preferences.notify, f"{download.spec} is here", os.environ))
                await in_thread(forget, download.spec)
        await asyncio.sleep(RUNS_INTERVAL)


async def follow_machine(app: AwqApp) -> None:
    """Keep `app.machine` true until cancelled."""
    while True:
        app.machine = await in_thread(probe_machine)
        await asyncio.sleep(MACHINE_INTERVAL)


def _tell_ended(app: AwqApp, ended: list[RunSummary]) -> None:
    """A toast and a sign of the terminal for every run that ended just now, unless it is on the screen."""
    for summary in ended:
        text = f"{summary.model_name}: {summary.status}"
        if getattr(app.screen, "run", None) != summary.run:
            app.notify(text, title="Run", severity="information" if summary.output else "warning", timeout=10)
        app.tell_terminal(terminal_notice(app.preferences.notify, text, os.environ))


def _offer_running(app: AwqApp) -> None:
    running = [summary for summary in app.summaries if summary.running]
    if running:
        more = f" and {len(running) - 1} more" if len(running) > 1 else ""
        app.notify(f"{running[0].model_name}{more} is being quantized now. Press 2 to watch.", title="Running")
