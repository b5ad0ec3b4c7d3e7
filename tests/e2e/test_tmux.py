"""In tmux: a window closed in the middle of a run, an engine killed, the app killed; nothing is lost by it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from awq_engine.events import RunStarted
from awq_engine.runs import Run, RunStatus
from tests.e2e.conftest import COMMAND, Workplace
from tests.processes import still_there

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
PATIENCE = 90.0


class Tmux:
    """A server of its own with one window, in which a shell runs."""

    def __init__(self, workplace: Workplace) -> None:
        self._server = ["tmux", "-S", str(workplace.folder / "tmux"), "-f", "/dev/null"]
        self._environment = {**os.environ, **workplace.env}
        self._environment.pop("TMUX", None)
        self._here = workplace.here
        self.open_window()

    def open_window(self) -> None:
        self._tmux("new-session", "-d", "-x", "100", "-y", "30", "-c", str(self._here), "sh")
        self.type("PS1='ready> '; clear")
        self.wait_until(lambda: self.screen().startswith("ready>"), "a shell")

    def close_window(self) -> None:
        """As a person who closes the terminal: everything in it is hung up."""
        server = int(self._tmux("display-message", "-p", "#{pid}"))
        self._tmux("kill-server")
        assert still_there([server]) == []

    def type(self, command: str) -> None:
        self._tmux("send-keys", "-l", command)
        self._tmux("send-keys", "Enter")

    def press(self, key: str) -> None:
        self._tmux("send-keys", key)

    def screen(self) -> str:
        return self._tmux("capture-pane", "-p")

    def foreground(self) -> int:
        """The process that the shell of the window waits for."""
        shell = self._tmux("display-message", "-p", "#{pane_pid}").strip()
        return int(Path(f"/proc/{shell}/task/{shell}/children").read_text().split()[0])

    def wait_for(self, text: str) -> None:
        self.wait_until(lambda: text in self.screen(), text)

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"Waited in vain for {what!r}.\n{self.screen()}")
            time.sleep(0.1)

    def _tmux(self, *arguments: str) -> str:
        done = subprocess.run([*self._server, *arguments], env=self._environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def tmux(workplace: Workplace) -> Iterator[Tmux]:
    (workplace.home / "settings.json").unlink(missing_ok=True)
    window = Tmux(workplace)
    yield window
    window.close_window()


def test_a_run_survives_its_window_and_the_app_its_engine(tmux: Tmux, workplace: Workplace) -> None:
    tmux.type(f"{shlex.quote(COMMAND)} demo")
    tmux.wait_for("loss kept vs rounding")
    (path,) = (workplace.home / "runs").iterdir()
    run = Run(path)
    tmux.wait_until(lambda: starts_of(run), "the engine's first word")
    tmux.close_window()
    assert run.status() is RunStatus.RUNNING

    tmux.open_window()
    tmux.type(shlex.quote(COMMAND))
    tmux.wait_for("loss kept vs rounding")  # the app comes back to the run
    assert run.status() is RunStatus.RUNNING
    os.kill(starts_of(run)[-1].pid, signal.SIGKILL)
    tmux.wait_for("The engine ended without a word")
    tmux.press("r")
    tmux.wait_until(lambda: len(starts_of(run)) == 2, "a second engine")
    tmux.wait_for("x Cancel")
    tmux.press("x")
    tmux.wait_for("Stop this run")
    tmux.press("y")
    tmux.wait_for("Stopped as you asked")
    tmux.press("C-q")
    tmux.wait_for("ready>")


def starts_of(run: Run) -> list[RunStarted]:
    return [record.event for record in run.records() if isinstance(record.event, RunStarted)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_gives_back_the_window_as_it_was(tmux: Tmux, number: signal.Signals) -> None:
    tmux.type("clear; echo what was there before")
    tmux.wait_for("what was there before")
    tmux.type(f"{shlex.quote(COMMAND)}; echo ended with $?")
    tmux.wait_for("demo stories")
    os.kill(tmux.foreground(), number)
    tmux.wait_for(f"ended with {128 + number}")
    lines = [line for line in tmux.screen().splitlines() if line.strip()]
    assert lines[0].endswith("what was there before")
    assert len(lines) == 4, lines  # two commands, what they said, and the prompt
