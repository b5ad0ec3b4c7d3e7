"""Names cut in the middle: what tells models and results apart is at their end."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size


def shorten(text: str, width: int) -> str:
    """`text` in at most `width` cells, the middle left out where it is too long."""
    if cell_len(text) <= width:
        return text
    tail_width = 3 * (width - 1) // 5
    tail = text
    while cell_len(tail) > tail_width:
        tail = tail[1:]
    return set_cell_size(text, width - 1 - cell_len(tail)).rstrip() + "…" + tail
