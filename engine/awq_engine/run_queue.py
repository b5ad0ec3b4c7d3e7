"""Runs that wait for each other: a queued run begins when no other run is at work.

    RUN/queued    the run waits its turn; gone once it began

A waiting engine holds its run's lock like any other, so the queue needs nobody to keep it: it survives the app, and an
engine that is killed drops out. Of several that wait the oldest begins first.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from awq_engine.runs import Run, list_runs

INTERVAL = 0.5
"""Seconds between two looks at the other runs."""


def others_ahead(run: Run) -> list[Run]:
    """The runs that a queued `run` waits for: those at work, and those queued before it."""
    others = [other for other in list_runs() if other != run and other.is_locked()]
    return [other for other in others if not other.is_queued() or other.id < run.id]


def wait_for_turn(run: Run, on_wait: Callable[[int], object]) -> None:
    """Return when it is this run's turn; at once if it is not queued.

    `on_wait` is told how many runs are ahead whenever that changes. Raises `InterruptedRunError` on a cancel.
    """
    told = 0
    while run.is_queued() and (ahead := others_ahead(run)):
        if len(ahead) != told:
            told = len(ahead)
            on_wait(told)
        run.raise_if_cancelled()
        time.sleep(INTERVAL)
    run.leave_queue()
