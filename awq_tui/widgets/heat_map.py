"""All linears of a run at a glance: a row per block, a column per linear, a character for how much loss is left.

The character says what the colour says. The cell under the cursor stands in brackets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from awq_engine import format as fmt
from awq_engine.state import LayerState, RunState
from awq_tui.widgets.glyphs import Glyphs, glyphs

LayerKey = tuple[int, str]
"""(block, name inside the block), as in `RunState.layers`."""

LEVELS = (0.25, 0.5, 0.75, 1.0)
"""Upper ends of the first four shades, as final loss over rounding loss; above the last one the layer got worse."""
_STYLES = ("heat--good", "heat--good", "heat--fair", "heat--poor", "heat--bad")
MIN_COLUMN, MAX_COLUMN = 3, 7


@dataclass(frozen=True)
class Grid:
    """Which cells there are; it changes only when a plan arrives."""

    blocks: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, layers: Mapping[LayerKey, LayerState]) -> Grid:
        return cls(tuple(sorted({block for block, _ in layers})), tuple(dict.fromkeys(name for _, name in layers)))

    @cached_property
    def widest_heading(self) -> int:
        return max((len(fmt.short_role(name)) for name in self.names), default=0)

    @cached_property
    def gutter(self) -> int:
        """Cells of the block numbers on the left."""
        return len(str(max(self.blocks, default=0))) + 1


class HeatMap(ScrollView, can_focus=True):
    """Loss kept against plain rounding, per linear, with a cursor."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1, 0)", "Layer", id="heat.up", show=False),
        Binding("down", "move(1, 0)", "Layer", id="heat.down", show=False),
        Binding("left", "move(0, -1)", "Layer", id="heat.left", show=False),
        Binding("right", "move(0, 1)", "Layer", id="heat.right", show=False),
        Binding("pageup", "move(-10, 0)", "Layer", id="heat.page_up", show=False),
        Binding("pagedown", "move(10, 0)", "Layer", id="heat.page_down", show=False),
        Binding("home", "move(-1000000, 0)", "Layer", id="heat.first", show=False),
        Binding("end", "move(1000000, 0)", "Layer", id="heat.last", show=False),
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "heat--head", "heat--idle", "heat--now", "heat--good", "heat--fair", "heat--poor", "heat--bad", "heat--cursor",
    }  # fmt: skip
    DEFAULT_CSS = """
    HeatMap {
        scrollbar-size-vertical: 1;
        scrollbar-size-horizontal: 0;
        & > .heat--head { color: $text-muted; }
        & > .heat--idle { color: $text-muted; }
        & > .heat--now { color: $accent; text-style: bold; }
        & > .heat--good { color: $success; }
        & > .heat--fair { color: $primary; }
        & > .heat--poor { color: $warning; }
        & > .heat--bad { color: $error; text-style: bold; }
        & > .heat--cursor { text-style: reverse; }
        &:ansi > .heat--head { color: ansi_default; text-style: dim; }
        &:ansi > .heat--idle { color: ansi_default; text-style: dim; }
        &:ansi > .heat--now { color: ansi_cyan; }
        &:ansi > .heat--good { color: ansi_green; }
        &:ansi > .heat--fair { color: ansi_blue; }
        &:ansi > .heat--poor { color: ansi_yellow; }
        &:ansi > .heat--bad { color: ansi_red; }
    }
    """

    class Moved(Message):
        """The person moved the cursor."""

        def __init__(self, key: LayerKey) -> None:
            self.key = key
            super().__init__()

    def __init__(self, *, glyph_set: Glyphs | None = None, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._glyphs = glyph_set or glyphs()
        self._grid = Grid()
        self._layers: Mapping[LayerKey, LayerState] = {}
        self._current: int | None = None
        self.cursor: LayerKey | None = None

    def show(self, state: RunState) -> None:
        """Draw the layers of `state`."""
        if len(state.layers) != len(self._layers):
            self._grid = Grid.of(state.layers)
        self._layers = state.layers
        self._current = None if state.finished else state.current_block
        self._measure()
        self.refresh()

    def move_to(self, key: LayerKey) -> None:
        """Put the cursor on a layer and scroll it into view; says nothing to anybody."""
        if key not in self._layers or key == self.cursor:
            return
        self.cursor = key
        self.call_after_refresh(self._reveal)
        self.refresh()

    def _reveal(self) -> None:
        """Scroll to the cursor once the sizes are known; heading and block numbers cover a line and a column."""
        if self.cursor in self._layers:
            row, column = self._position(self.cursor)
            cell = Region(column * self.column_width, row, self._grid.gutter + self.column_width, 2)
            self.scroll_to_region(cell, animate=False, force=True)

    def action_move(self, rows: int, columns: int) -> None:
        """Move the cursor; cells that no linear fills are jumped over."""
        if not self._layers:
            return
        row, column = self._position(self.cursor) if self.cursor in self._layers else (0, 0)
        row = min(max(0, row + rows), len(self._grid.blocks) - 1)
        column = min(max(0, column + columns), len(self._grid.names) - 1)
        self._go(row, column, (columns > 0) - (columns < 0) or 1)

    def on_click(self, event: events.Click) -> None:
        row = event.y - 1 + round(self.scroll_y)
        column = (event.x + round(self.scroll_x) - self._grid.gutter) // self.column_width
        on_cell = event.y > 0 and event.x >= self._grid.gutter
        if on_cell and row < len(self._grid.blocks) and column < len(self._grid.names):
            self._go(row, column, 1)

    @property
    def column_width(self) -> int:
        """Wide enough for the headings where there is room, and never below a cell in brackets."""
        headings = self._grid.widest_heading + 1
        room = (self.scrollable_content_region.width - self._grid.gutter) // max(1, len(self._grid.names))
        return max(MIN_COLUMN, min(room, headings, MAX_COLUMN))

    def on_resize(self) -> None:
        self._measure()
        self.call_after_refresh(self._reveal)

    def render_line(self, y: int) -> Strip:
        row = y - 1 + round(self.scroll_y)
        if y == 0:
            gutter, cells = self._heading()
        elif 0 <= row < len(self._grid.blocks):
            gutter, cells = self._block_line(self._grid.blocks[row])
        else:
            return Strip.blank(self.size.width, self.rich_style)
        skipped = round(self.scroll_x) - self._visible.start * self.column_width
        room = self.size.width - self._grid.gutter
        line = Strip([gutter, *Strip(cells).crop(skipped, skipped + room)])
        return line.adjust_cell_length(self.size.width, self.rich_style)

    @property
    def _visible(self) -> range:
        """The columns in view: a block of a mixture of experts has hundreds of linears."""
        width, left = self.column_width, round(self.scroll_x)
        return range(left // width, min(len(self._grid.names), (left + self.size.width) // width + 1))

    def _heading(self) -> tuple[Segment, list[Segment]]:
        width, style = self.column_width, self.get_component_rich_style("heat--head")
        names = [self._grid.names[index] for index in self._visible]
        labels = [Segment(fmt.short_role(name)[: width - 1].center(width), style) for name in names]
        return Segment(" " * self._grid.gutter, style), labels

    def _block_line(self, block: int) -> tuple[Segment, list[Segment]]:
        style = self.get_component_rich_style("heat--now" if block == self._current else "heat--head")
        cells = [self._cell((block, self._grid.names[index])) for index in self._visible]
        return Segment(f"{block:>{self._grid.gutter - 1}} ", style), cells

    def _cell(self, key: LayerKey) -> Segment:
        mark, name = self._mark(key)
        style: Style = self.get_component_rich_style(name)
        if key == self.cursor:
            style += self.get_component_rich_style("heat--cursor", partial=True)
            mark = f"[{mark[1:-1] or mark}]"
        return Segment(mark.center(self.column_width), style)

    def _mark(self, key: LayerKey) -> tuple[str, str]:
        """What fills the cell of a layer, and the component class of its colour."""
        layer = self._layers.get(key)
        if layer is None:
            return " ", "heat--idle"
        if layer.quantized is not None:
            level = ratio_level(layer.loss_ratio)
            return self._glyphs.levels[level] * (self.column_width - 1), _STYLES[level]
        working = layer.scale is not None or layer.block == self._current
        return (self._glyphs.working, "heat--now") if working else (self._glyphs.planned, "heat--idle")

    def _go(self, row: int, column: int, step: int) -> None:
        columns = [*range(column, len(self._grid.names) if step > 0 else -1, step), *range(len(self._grid.names))]
        block = self._grid.blocks[row]
        keys = [(block, self._grid.names[index]) for index in columns]
        found = next((key for key in keys if key in self._layers), None)
        if found is not None:
            self.move_to(found)
            self.post_message(self.Moved(found))

    def _position(self, key: LayerKey | None) -> tuple[int, int]:
        assert key is not None
        return self._grid.blocks.index(key[0]), self._grid.names.index(key[1])

    def _measure(self) -> None:
        width = self._grid.gutter + len(self._grid.names) * self.column_width
        self.virtual_size = Size(width, len(self._grid.blocks) + 1)


def ratio_level(ratio: float | None) -> int:
    """Index into the five shades; a layer that rounding does not hurt at all counts as the best."""
    if ratio is None:
        return 0
    return next((level for level, upper in enumerate(LEVELS) if ratio <= upper + 1e-9), len(LEVELS))


def legend(chars: Glyphs) -> str:
    """What the characters mean, in one line."""
    ends = [f"{chars.levels[level]}<{upper:g}" for level, upper in enumerate(LEVELS)]
    return " ".join([*ends, f"{chars.levels[-1]} worse"])
