"""The drawing characters: block elements where the terminal speaks UTF-8, plain ASCII where it does not.

Colour never carries meaning alone, so every state that has a colour has a character here too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Glyphs:
    """One set of characters; those of plots are one cell wide, those within sentences may be longer."""

    eighths: str
    """Nine bars, from empty to a full cell."""
    axis: str
    tick: str
    edge: str
    """Left edge of a plot."""
    point: str
    best: str
    levels: str
    """Five shades: how much of the rounding loss is left, from little to more than all."""
    planned: str
    working: str
    filled: str
    empty: str
    arrow: str
    dot: str
    """Separates parts of a sentence."""
    alpha: str
    delta: str
    rising: str
    falling: str
    outlier: str
    done: str
    failed: str
    ellipsis: str
    folded: str
    opened: str
    bullet: str
    quote: str
    cross: str
    """Where two lines of a table meet."""


UNICODE = Glyphs(
    eighths=" ▁▂▃▄▅▆▇█", axis="─", tick="┴", edge="│", point="•", best="◆", levels="░▒▓█!", planned="·", working="◌",
    filled="█", empty="░", arrow="→", dot="·", alpha="α", delta="Δ", rising="▲", falling="▼", outlier="●",
    done="✓", failed="✗", ellipsis="…", folded="▸", opened="▾",
    bullet="•", quote="▌", cross="┼",
)  # fmt: skip
ASCII = Glyphs(
    eighths=" ..::||##", axis="-", tick="+", edge="|", point="*", best="O", levels=".-=#!", planned="'", working="o",
    filled="#", empty=".", arrow="->", dot="-", alpha="alpha", delta="d ", rising="^", falling="v",
    outlier="*", done="ok", failed="x", ellipsis="...", folded=">", opened="v", bullet="*", quote="|", cross="+",
)  # fmt: skip


POOR_TERMINALS = ("linux", "vt100", "vt220", "dumb")
"""Their fonts lack most of our characters, whatever encoding they speak."""


def choose_glyphs(encoding: str | None, environment: Mapping[str, str]) -> Glyphs:
    """`AWQ_TUI_ASCII=1` forces ASCII, `0` forbids it; otherwise encoding and kind of the terminal decide."""
    if wish := environment.get("AWQ_TUI_ASCII", ""):
        return UNICODE if wish == "0" else ASCII
    speaks = (encoding or "").lower().replace("-", "").startswith("utf")
    return UNICODE if speaks and environment.get("TERM", "") not in POOR_TERMINALS else ASCII


def glyphs() -> Glyphs:
    """The set for this process's terminal; Textual draws on stderr."""
    return choose_glyphs(getattr(sys.__stderr__, "encoding", None), os.environ)
