"""Every line that is drawn, in ASCII: for terminals that show nothing else.

Plots choose their characters themselves (`widgets/glyphs`), because some of theirs mean a number; this filter takes
over the others of that table and cares for all the rest at once, the frames, marks and scroll bars that Textual draws
included. A character takes as many cells as before, so nothing moves.
"""

from __future__ import annotations

from dataclasses import fields

from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from awq_tui.widgets.glyphs import ASCII, UNICODE, Glyphs

_SHAPES = ("eighths", "levels")
"""Glyphs whose ASCII ones mean something only beside each other."""
_GLYPHS = {
    ord(sign): getattr(ASCII, field.name)
    for field in fields(Glyphs)
    if field.name not in _SHAPES and len(sign := getattr(UNICODE, field.name)) == len(getattr(ASCII, field.name)) == 1
}
_SIGNS = {
    "+": "┌┐└┘├┤┬╭╮╰╯┏┓┗┛╋╔╗╚╝╬",
    "-": "━═╌╍▔▁▂🬂🬭–—",
    "|": "┃║‖▏▎▍▐▕╎╏",
    "#": "▓▇▉▊▋▀▄■",
    ".": "▃·…",
    ":": "▒▅▆",
    "*": "◉⏺",
    "o": "○",
    "O": "⭘",
    "x": "✘╳",
    "v": "✓✔↓⌄",
    "^": "▴↑⌃",
    ">": "→▶⏵",
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
"""Those of Textual, and of ours that are more than one ASCII character where they need not fit a cell."""
_TABLE = _GLYPHS | {ord(sign): ascii_sign for ascii_sign, signs in _SIGNS.items() for sign in signs}


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
