"""A progress bar in text."""

from __future__ import annotations

from awq_tui.widgets.glyphs import Glyphs


def bar(fraction: float, width: int, chars: Glyphs) -> str:
    """A progress bar of `width` cells and the percentage."""
    filled = int(fraction * width)
    return f"{chars.filled * filled}{chars.empty * (width - filled)} {int(100 * fraction):>3} %"
