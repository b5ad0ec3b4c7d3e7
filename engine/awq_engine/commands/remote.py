"""`awq-tui --host user@box ...`: the program on another machine, over ssh.

Models, runs and engines stay there, and so does the app: what travels are keys and pictures. An engine belongs to no
terminal, so a connection that drops harms no run; the app, or what watches a run, is started again as soon as the
machine can be reached, and opens where it was. Everything about reaching it (names, keys, ports, jumps) is ssh's own.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from awq_engine.commands.console import note
from awq_engine.errors import BadInputError, ExitCode, NetworkError, UsageError

PROGRAM = "awq-tui"
TROUBLE, NOT_FOUND = 255, 127
"""What ssh returns for its own failures, and a shell for a program it does not know."""
PAUSES = (1, 2, 5, 10)
"""Seconds before each new try; the last goes on."""
NOTICE = ("ServerAliveInterval=5", "ServerAliveCountMax=3")
"""A connection that is gone is noticed within a quarter of a minute."""
FORWARDED = ("COLORTERM", "NO_COLOR")
"""What a terminal can do and a person wants; ssh itself only sends TERM."""
PLAIN_TERMINAL = "\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1004l\x1b[?2004l\x1b[<u\x1b[?1049l\x1b[?25h\x1b[0m"
"""Mouse, focus, paste and key reports off, out of the app's screen, cursor on: what a cut connection leaves undone."""


def split_host(arguments: Sequence[str]) -> tuple[str, str, list[str]] | None:
    """Host, program there, and the words for it, if `arguments` begin with `--host`."""
    words, options = list(arguments), {"--host": "", "--host-command": PROGRAM}
    while words and words[0].partition("=")[0] in options:
        name, equals, value = words.pop(0).partition("=")
        if not equals:
            value = words.pop(0) if words else ""
        if not value or value.startswith("-"):
            raise UsageError(f"{name} needs a value, such as --host user@box.")
        options[name] = value
    if options["--host"]:
        return options["--host"], options["--host-command"], words
    if options["--host-command"] != PROGRAM:
        raise UsageError("--host-command says where awq-tui is on another machine; which one, says --host.")
    return None


def run_there(host: str, program: str, words: list[str]) -> int:
    """The exit code of `program words...` on `host`; what only looks on comes back after a lost connection."""
    returns = not words or words[0] == "watch"
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    tries = 0
    while True:
        code, reached = _connect(host, program, words, terminal)
        if code == NOT_FOUND:
            raise BadInputError(
                f"There is no {program} on {host}; install it there, or say where it is: --host-command /PATH/awq-tui."
            )
        if code != TROUBLE:
            return code
        if not reached and not tries:
            raise NetworkError(f"ssh cannot reach {host}; what it says stands above.")
        if not returns:
            raise NetworkError(
                f"The connection to {host} was lost; runs go on there: awq-tui --host {shlex.quote(host)} watch latest"
            )
        tries = 1 if reached else tries + 1
        seconds = PAUSES[min(tries, len(PAUSES)) - 1]
        note(f"The connection to {host} was lost; runs go on there. Trying again in {seconds} s (ctrl-c gives up).")
        try:
            time.sleep(seconds)
        except KeyboardInterrupt:
            return ExitCode.INTERRUPTED


def _connect(host: str, program: str, words: list[str], terminal: bool) -> tuple[int, bool]:
    """ssh's exit code, and whether the machine was reached."""
    there = [f"{name}={os.environ[name]}" for name in FORWARDED if os.environ.get(name)]
    command = shlex.join(["sh", "-lc", 'exec env "$@"', "sh", *there, program, *words])  # -l: a person's own PATH
    with tempfile.TemporaryDirectory(prefix="awq-tui-") as folder:
        mark = Path(folder) / "reached"
        options = [*NOTICE, "PermitLocalCommand=yes", f"LocalCommand=touch {shlex.quote(str(mark))}"]
        ssh = ["ssh", *(word for option in options for word in ("-o", option)), "-t" if terminal else "-T", "--", host]
        try:
            code = subprocess.run([*ssh, command], check=False).returncode
        except FileNotFoundError as error:
            raise UsageError("--host works over ssh, which is not installed on this machine.") from error
        if terminal and code == TROUBLE:
            sys.stdout.write(PLAIN_TERMINAL)
            sys.stdout.flush()
        return code, mark.exists()
