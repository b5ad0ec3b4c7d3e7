"""Ways to do the same that take turns: each once in every round, so that a machine that is busy slows all of them.

What counts is the median over rounds of the ratio of times within a round.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from awq_engine.detached import QUIET_THREADS


def as_the_chat_worker_runs(module: str) -> None:
    """Begin `python -m module` anew with threads that sleep when idle, unless they do already."""
    if any(os.environ.get(name) != value for name, value in QUIET_THREADS.items()):
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], {**os.environ, **QUIET_THREADS})


def take_turns(ways: Mapping[str, Callable[[], float]], rounds: int) -> list[dict[str, float]]:
    """Seconds by way for every round, after one that warms up."""
    return [{name: measure() for name, measure in ways.items()} for _ in range(rounds + 1)][1:]


def compared(rounds: list[dict[str, float]], column: str) -> Iterator[dict[str, Any]]:
    """A row for each way; `column` has its median in milliseconds, the first way is ours."""
    ours = next(iter(rounds[0]))
    for way in rounds[0]:
        ratios = sorted(times[way] / times[ours] for times in rounds)
        yield {
            "rounds": len(rounds), "way": way,
            column: f"{1000 * statistics.median(times[way] for times in rounds):.1f}",
            "time_over_ours": f"{statistics.median(ratios):.2f}", "spread": f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
        }  # fmt: skip
