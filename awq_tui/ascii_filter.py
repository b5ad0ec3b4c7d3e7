"""Every line that is drawn, in ASCII: for terminals that show nothing else.

Plots choose their characters themselves (`widgets/glyphs`), because some of theirs mean a number; this filter takes
care of all the rest at once, the frames, marks and scroll bars that Textual draws included. A character takes as many
cells as before, so nothing moves.
"""

from __future__ import annotations

from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

_SIGNS = {
    "+": "┌┐└┘├┤┬┴┼╭╮╰╯┏┓┗┛╋╔╗╚╝╬",
    "-": "─━═╌╍▔▁▂🬂🬭–—",
    "|": "│┃║‖▏▎▍▌▐▕╎╏",
    "#": "█▓▇▉▊▋▀▄■",
    ".": "░▃·…",
    ":": "▒▅▆",
    "*": "●•◉⏺",
    "o": "○◌",
    "O": "◆⭘",
    "x": "✗✘╳",
    "v": "✓✔▼▾↓⌄",
    "^": "▲▴↑⌃",
    ">": "→▶▸⏵",
    "<": "←◀◂⏴",
    "!": "⚠",
    "%": "⊘",
    "=": "⏎↵≡",
    "a": "α",
    "d": "Δ",
    '"': "“”",
    "'": "‘’",
    "~": "±",
    " ": "\u00a0",
}
_TABLE = {ord(sign): ascii_sign for ascii_sign, signs in _SIGNS.items() for sign in signs}


class AsciiFilter(LineFilter):
    """Signs become their nearest ASCII ones, and letters that ASCII lacks a question mark per cell."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [Segment(in_ascii(text), style, control) for text, style, control in segments]


def in_ascii(text: str) -> str:
    """`text` in ASCII and in as many cells."""
    if text.isascii():
        return text
    known = text.translate(_TABLE)
    return known if known.isascii() else "".join(c if c.isascii() else "?" * cell_len(c) for c in known)
