"""The bar on top of every screen: the sections with their keys, running runs as a badge, the machine at the right."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget
from textual.widgets import Static

from awq_engine.format import size_of
from awq_engine.sanitize import plain
from awq_tui.app import SECTIONS, AwqApp

if TYPE_CHECKING:
    from awq_tui.machine import Machine, Memory
    from awq_tui.run_book import RunSummary

_BRANDS = re.compile(r"^(NVIDIA |GeForce |Tesla )+")
"""Of a GPU's name: what says nothing about it."""


class SectionTab(Static):
    """One section's name; a click goes there."""

    ALLOW_SELECT = False

    def __init__(self, number: int, section: str) -> None:
        super().__init__(markup=False, id=f"tab-{section}")
        self.section = section
        self.number = number
        self._shown = (-1, False)
        self.show(0)

    def show(self, running: int, active: bool = False) -> None:
        """The name, bright on the section that is open, and beside it how many runs are at work."""
        if (running, active) == self._shown:
            return
        self._shown = (running, active)
        badge = f" ●{running}" if running else ""
        number = (f"{self.number} ", "" if active else "dim")
        self.update(Content.assemble(number, self.section.capitalize(), (badge, "bold")))

    async def on_click(self) -> None:
        await self.run_action(f"app.section('{self.section}')")


class MachineLine(Widget):
    """Memory and GPU, in the room that the sections leave."""

    machine: reactive[Machine | None] = reactive(None)

    def render(self) -> Content:
        return Content(describe_machine(self.machine, self.size.width))


class TopBar(Horizontal):
    """Reads the app's shared state; in another app (a test's) it shows the sections only."""

    DEFAULT_CSS = """
    TopBar { dock: top; height: 1; background: $panel; }
    TopBar #brand { width: auto; padding: 0 1; text-style: bold; color: $accent; }
    TopBar SectionTab { width: auto; padding: 0 1; }
    TopBar SectionTab:hover { background: $boost; }
    TopBar SectionTab.-active { background: $primary; color: $text; text-style: bold; }
    TopBar MachineLine { width: 1fr; padding: 0 1; text-align: right; color: $text-muted; text-wrap: nowrap; }
    """

    def compose(self) -> ComposeResult:
        yield Static("awq-tui", id="brand", markup=False)
        for number, section in enumerate(SECTIONS, start=1):
            yield SectionTab(number, section)
        yield MachineLine()

    def on_mount(self) -> None:
        for tab in self.query(SectionTab):
            active = tab.section == self.app.current_mode
            tab.set_class(active, "-active")
            tab.show(0, active)
        if isinstance(self.app, AwqApp):
            self.watch(self.app, "summaries", self._show_runs)
            self.watch(self.app, "machine", self._show_machine)

    def _show_runs(self, summaries: tuple[RunSummary, ...]) -> None:
        tab = self.query_one("#tab-runs", SectionTab)
        tab.show(sum(summary.running for summary in summaries), tab.has_class("-active"))

    def _show_machine(self, machine: Machine | None) -> None:
        self.query_one(MachineLine).machine = machine


def describe_machine(machine: Machine | None, room: int) -> str:
    """`RTX 4090 87 % 21.3/24.0 GB · host 14/64 GB`, used of total; in less `room`, less of it."""
    if machine is None:
        return ""
    host = f"host {_pair(machine.host)}"
    if machine.gpu is None:
        return host
    name, memory = _BRANDS.sub("", plain(machine.gpu.name)), _pair(machine.gpu.memory)
    busy = "" if machine.gpu.busy is None else f"{machine.gpu.busy} % "
    texts = (f"{name} {busy}{memory} · {host}", f"{name} {busy}{memory}", f"{name} {memory}", f"GPU {memory}")
    return next((text for text in texts if len(text) <= room), texts[-1])


def _pair(memory: Memory) -> str:
    return size_of(memory.used, memory.total)
