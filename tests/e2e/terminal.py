"""A person at a terminal: the real command on a pseudo-terminal, its screen read back by a terminal emulator.

Nothing here sleeps for a fixed time: every wait polls the screen until a deadline, and a wait that fails shows it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pexpect
import pyte

ENTER, ESCAPE, TAB = "\r", "\x1b", "\t"
UP, DOWN, RIGHT, LEFT = "\x1b[A", "\x1b[B", "\x1b[C", "\x1b[D"
F2, F9 = "\x1bOQ", "\x1b[20~"
ENTER_ALTERNATE, LEAVE_ALTERNATE, SHOW_CURSOR = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h"


def ctrl(letter: str) -> str:
    """What a terminal sends for ctrl and this letter."""
    return chr(ord(letter) & 0x1F)


class Terminal:
    """`command` running in a terminal of `size` (columns, rows); a context manager that leaves no process behind."""

    def __init__(
        self, command: Sequence[str], cwd: Path, env: Mapping[str, str], size: tuple[int, int] = (120, 40)
    ) -> None:
        columns, rows = size
        self.raw = bytearray()
        """Everything the command wrote."""
        self._emulator = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._emulator)
        everything = {**os.environ, **env, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        for name in ("COLUMNS", "LINES"):  # would hide a change of size from the command
            everything.pop(name, None)
        self._process: Any = pexpect.spawn(
            command[0], list(command[1:]), cwd=str(cwd), env=everything, dimensions=(rows, columns), timeout=None
        )
        self._modes = termios.tcgetattr(self._process.child_fd)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.close(force=True)

    # what the person sees

    def screen(self) -> str:
        """The text on the screen at this moment."""
        self._read()
        return self._picture()

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Until `text` is on the screen."""
        self.wait_until(lambda: text in self._picture(), f"{text!r} on the screen", seconds)

    def wait_until(self, condition: Callable[[], object], what: str, seconds: float = 60) -> None:
        """Until `condition`, which may look at the screen, holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            alive = self._read()
            if not alive and not condition():
                raise AssertionError(f"The command ended while {what} was waited for.\n{self._picture()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"Waited {seconds:.0f} s in vain for {what}.\n{self._picture()}")

    def wait_for_cursor(self, text: str, seconds: float = 60) -> None:
        """Until the cursor is on the line that holds `text`: what is typed now goes there."""
        emulator = self._emulator
        self.wait_until(lambda: text in emulator.display[emulator.cursor.y], f"the cursor at {text!r}", seconds)

    def restored(self) -> bool:
        """Whether the terminal is as it was found: the normal screen, a cursor, and the line discipline's modes."""
        left = self.raw.rfind(LEAVE_ALTERNATE) > self.raw.rfind(ENTER_ALTERNATE)
        return left and SHOW_CURSOR in self.raw and termios.tcgetattr(self._process.child_fd) == self._modes

    def _picture(self) -> str:
        return "\n".join(line.rstrip() for line in self._emulator.display)

    # what the person does

    def send(self, *keys: str) -> None:
        """Type, one key after the other."""
        for key in keys:
            self._process.send(key)

    def press(self, *keys: str) -> None:
        """Type like somebody who looks at the screen: each key waits until the one before has shown on it.

        Keys that arrive together all go to the widget that had the focus at that moment.
        """
        for key in keys:
            self._drain()
            seen = len(self.raw)
            self.send(key)
            self.wait_until(lambda seen=seen: len(self.raw) > seen, f"an answer to the key {key!r}")

    def resize(self, columns: int, rows: int) -> None:
        """Drag the corner of the window."""
        self._emulator.resize(rows, columns)
        self._process.setwinsize(rows, columns)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the command."""
        self._process.kill(number)

    def hang_up(self, seconds: float = 30) -> None:
        """Close the window: the terminal is gone, and the kernel tells the command so. Waits for its end."""
        self._process.ptyproc.fileobj.close()
        self._wait(seconds)

    def wait_for_exit(self, seconds: float = 30) -> int:
        """Until the command ends by itself; returns its exit code, 128 + N if signal N killed it."""
        deadline = time.monotonic() + seconds
        while self._read():
            if time.monotonic() > deadline:
                raise AssertionError(f"The command did not end within {seconds:.0f} s.\n{self._picture()}")
        self._wait(seconds)
        status = self._process.exitstatus
        return status if status is not None else 128 + (self._process.signalstatus or 0)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._process.isalive():
            if time.monotonic() > deadline:
                raise AssertionError(f"The command's process did not end within {seconds:.0f} s.\n{self._picture()}")
            time.sleep(0.02)

    def _drain(self) -> None:
        """Draw everything that waits to be read."""
        seen = -1
        while len(self.raw) > seen:
            seen = len(self.raw)
            self._read(seconds=0.01)

    def _read(self, seconds: float = 0.05) -> bool:
        """Draw what the command writes within `seconds`; False once it has closed the terminal."""
        try:
            data = self._process.read_nonblocking(1 << 16, timeout=seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        self._stream.feed(data)
        return True
