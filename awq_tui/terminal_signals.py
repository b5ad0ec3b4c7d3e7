"""SIGTERM, SIGHUP and SIGINT end the app in order: without handlers Python dies in the alternate screen.

Plain handlers, not the event loop's: when the terminal is gone, the loop may be blocked on a screen update that nobody
will ever take, and only the deadline set here ends the process then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from awq_engine.errors import ExitCode

SECONDS_TO_QUIT = 5.0
"""After a signal: longer than any orderly end takes."""


class TerminalSignals:
    """Calls `end(exit_code)` at a signal, at any moment and in the main thread."""

    def __init__(self, end: Callable[[int], object]) -> None:
        self._end = end
        self._earlier: dict[int, Any] = {}

    def take(self) -> None:
        """Handle the signals from now on."""
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            with contextlib.suppress(ValueError):  # not in the main thread
                self._earlier[number] = signal.signal(number, self._handle)

    def give_back(self) -> None:
        """They mean again what they meant before."""
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier.clear()

    def _handle(self, number: int, _: object) -> None:
        code = int(ExitCode.INTERRUPTED) if number == signal.SIGINT else 128 + number
        deadline = threading.Timer(SECONDS_TO_QUIT, os._exit, (code,))
        deadline.daemon = True
        deadline.start()
        self._end(code)
