"""What is written to the terminal so that a person who looks elsewhere hears or sees that something ended."""

from __future__ import annotations

from collections.abc import Mapping

from awq_engine.sanitize import one_line
from awq_tui.preferences import Notify

BELL = "\a"


def terminal_notice(kind: Notify, text: str, environment: Mapping[str, str]) -> str:
    """The control sequence, empty for `off`. Inside tmux, OSC 9 is wrapped to reach the terminal around it."""
    if kind is Notify.OFF:
        return ""
    if kind is Notify.BELL:
        return BELL
    sequence = f"\x1b]9;awq-tui: {one_line(text)}{BELL}"
    if "TMUX" in environment:
        doubled = sequence.replace("\x1b", "\x1b\x1b")
        return f"\x1bPtmux;{doubled}\x1b\\"
    return sequence
