"""Bell and desktop notification."""

from __future__ import annotations

from awq_tui.preferences import Notify
from awq_tui.terminal_notice import terminal_notice


def test_each_kind_writes_its_sequence() -> None:
    assert terminal_notice(Notify.OFF, "tiny: done", {}) == ""
    assert terminal_notice(Notify.BELL, "tiny: done", {}) == "\a"
    assert terminal_notice(Notify.OSC9, "tiny: done", {}) == "\x1b]9;awq-tui: tiny: done\a"


def test_tmux_passes_it_on_and_names_cannot_end_it_early() -> None:
    wrapped = terminal_notice(Notify.OSC9, "evil\x07\x1b]0;owned", {"TMUX": "/tmp/tmux"})
    assert wrapped == "\x1bPtmux;\x1b\x1b]9;awq-tui: evil␇␛]0;owned\a\x1b\\"
