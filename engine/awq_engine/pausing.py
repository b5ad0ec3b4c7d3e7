"""A run that can wait: the engine lies still after its present step for as long as `RUN/pause` is there.

It keeps its memory and its lock. Nothing is lost when it is killed meanwhile: it then is a run that died between two
steps, and resumes as such.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from awq_engine import events as e
from awq_engine.journal import EventSink
from awq_engine.runs import Run

INTERVAL = 0.2
"""Seconds between two looks for the end of the pause."""


@dataclass(frozen=True)
class PausableRun(Run):
    """A run as its engine sees it."""

    emit: EventSink

    def raise_if_cancelled(self) -> None:
        """The moment to stop, where a cancel was asked for, or to wait, where a pause was; says so in the journal."""
        super().raise_if_cancelled()
        if not self.pause_requested():
            return
        self.emit(e.Paused())
        while self.pause_requested():
            time.sleep(INTERVAL)
            super().raise_if_cancelled()
        self.emit(e.Continued())
