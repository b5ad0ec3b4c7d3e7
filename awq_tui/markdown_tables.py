"""Tables of Markdown in as many cells as there are: columns give way in proportion, and their texts are wrapped."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from textual.content import Content

from awq_tui.widgets.glyphs import glyphs

LEAST_COLUMN = 3
"""Cells."""


def table_lines(rows: Sequence[Sequence[Content]], width: int) -> list[Content]:
    """The heading, a rule, and the other rows, in `width` cells where every column can have `LEAST_COLUMN`."""
    columns = max(map(len, rows), default=0)
    if not columns:
        return []
    chars = glyphs()
    wishes = [
        max((row[column].cell_length for row in rows if column < len(row)), default=0) for column in range(columns)
    ]
    widths = column_widths(wishes, width - 3 * (columns - 1))
    edge = Content.styled(f" {chars.edge} ", ".text--rule")
    rule = Content.styled(f"{chars.axis}{chars.cross}{chars.axis}".join(chars.axis * w for w in widths), ".text--rule")
    heading, *others = rows
    head = [line.stylize(".text--strong") for line in _row_lines(heading, widths, edge)]
    return [*head, rule, *(line for row in others for line in _row_lines(row, widths, edge))]


def column_widths(wishes: Sequence[int], room: int) -> list[int]:
    """What each column gets of `room` cells: all it wishes, or the widest ones give way first."""
    widths = [max(LEAST_COLUMN, wish) for wish in wishes]
    while sum(widths) > room and max(widths) > LEAST_COLUMN:
        widest = max(widths)
        second = max((width for width in widths if width < widest), default=LEAST_COLUMN)
        holders = [index for index, width in enumerate(widths) if width == widest]
        excess = -(-(sum(widths) - room) // len(holders))
        for index in holders:
            widths[index] = max(LEAST_COLUMN, second, widest - excess)
    return widths


def _row_lines(row: Sequence[Content], widths: Sequence[int], edge: Content) -> list[Content]:
    cells = [cell.wrap(width) for cell, width in zip(row, widths, strict=False)]
    cells += [[Content("")]] * (len(widths) - len(cells))
    return [
        edge.join(_filled(line or Content(""), width) for line, width in zip(line_cells, widths, strict=True))
        for line_cells in zip_longest(*cells)
    ]


def _filled(line: Content, width: int) -> Content:
    return line.pad_right(max(0, width - line.cell_length))
