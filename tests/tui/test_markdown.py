"""Markdown as lines, and the widget that shows it while it grows."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator

import pytest
from textual.app import App, ComposeResult
from textual.pilot import Pilot
from textual.selection import SELECT_ALL

from awq_tui.markdown_blocks import parse_blocks
from awq_tui.markdown_tables import column_widths
from awq_tui.widgets.markdown_text import PATIENCE, TYPING_REST, MarkdownText
from tests.tui.hosting import Stage, screen_text

PROSE = """# Title

Use <b>bold</b> and `vector<int>`, <think>a thought</think> and **strong** text.

- one
- two
  - deep

```python
x = {"a": 1}
```

<div>block</div>

| a | b |
|---|---|
| 1 | 2 |

The end.
"""


REFERENCES = "See [the table][1] of all.\n\n- one\n\n- two\n\n[1]: https://example.org/table\n"


def drawn(text: str, width: int = 60) -> list[str]:
    """The lines of all blocks without their styles."""
    return [line.plain.rstrip() for block in parse_blocks(text) for line in block.lines(width)]


def test_lists_are_indented_and_numbered() -> None:
    lines = drawn("- one\n  - inner words that are wrapped\n- two\n\n5. five\n6. six", 16)
    assert lines == ["• one", "  • inner words", "    that are", "    wrapped", "• two", "5. five", "6. six"]


def test_quotes_headings_rules_and_hard_breaks() -> None:
    assert drawn("> a\n> > b\n\n## Title\n\n---\n\none  \ntwo\nthree", 10) == [
        "▌ a", "▌", "▌ ▌ b", "## Title", "──────────", "one", "two three",
    ]  # fmt: skip


def test_code_keeps_its_spaces_and_is_broken_anywhere() -> None:
    assert drawn("```python\nif x:\n    return 'abcdefgh'\n\n# end\n```", 12) == [
        "if x:", "    return '", "abcdefgh'", "", "# end",
    ]  # fmt: skip


def test_markup_of_others_is_text() -> None:
    text = "vector<int> <b>bold</b> [bold]x[/bold] [/x]\n\n<div>\nblock\n</div>"
    assert drawn(text) == ["vector<int> <b>bold</b> [bold]x[/bold] [/x]", "<div> block </div>"]


def test_the_address_of_a_link_is_told_unless_it_is_its_text() -> None:
    assert drawn("[docs](https://a.org/b) and <https://a.org>") == ["docs (https://a.org/b) and https://a.org"]


def test_a_table_takes_the_room_there_is() -> None:
    table = "| name | what it is |\n|---|---|\n| a | a long text that has to be wrapped |\n| b |\n"
    assert drawn(table, 24) == [
        "name │ what it is", "─────┼──────────────────", "a    │ a long text that", "     │ has to be wrapped",
        "b    │",
    ]  # fmt: skip
    assert all(len(line) <= 24 for line in drawn(table, 24))


@pytest.mark.parametrize(("wishes", "room", "widths"), [
    ([4, 9], 20, [4, 9]), ([4, 40], 20, [4, 16]), ([30, 30], 21, [10, 10]), ([9, 9, 9], 3, [3, 3, 3]),
])  # fmt: skip
def test_the_widest_columns_give_way(wishes: list[int], room: int, widths: list[int]) -> None:
    assert column_widths(wishes, room) == widths


@pytest.mark.parametrize("width", [1, 7, 30])
def test_no_line_is_wider_than_there_is_room(width: int) -> None:
    nested = "- a\n" + "".join(f"{'  ' * depth}- 日本語 deep words\n" for depth in range(1, 5))
    for block in parse_blocks(PROSE + nested):
        assert all(line.cell_length <= max(width, 8 + 10) for line in block.lines(width))


class Page(App[None]):
    def compose(self) -> ComposeResult:
        yield MarkdownText()


@pytest.fixture
async def page() -> AsyncIterator[tuple[Pilot[None], MarkdownText]]:
    app = Page()
    async with app.run_test(size=(60, 80)) as pilot:
        yield pilot, app.query_one(MarkdownText)


@pytest.mark.parametrize("step", [1, 3, 7, 50])
@pytest.mark.parametrize("text", [PROSE, REFERENCES])
async def test_text_in_pieces_ends_as_if_it_came_in_one(
    text: str, step: int, page: tuple[Pilot[None], MarkdownText]
) -> None:
    pilot, widget = page
    whole = "\n\n".join("\n".join(line.plain.rstrip() for line in block.lines(60)) for block in parse_blocks(text))
    for start in range(0, len(text), step):
        widget.feed(text[start : start + step])
        if start % (3 * step) == 0:
            widget._draw()  # what the timer does
    widget.finish()
    await pilot.pause()
    assert widget.text == text
    assert screen_text(pilot).rstrip() == whole.rstrip()


async def test_what_was_drawn_before_the_end_is_the_same_but_for_definitions(
    page: tuple[Pilot[None], MarkdownText],
) -> None:
    pilot, widget = page
    steps = random.Random(3)
    start = 0
    while start < len(PROSE):
        size = steps.randint(1, 9)
        widget.feed(PROSE[start : start + size])
        widget._draw()
        start += size
    await pilot.pause()
    growing = screen_text(pilot)
    widget.finish()
    await pilot.pause()
    assert screen_text(pilot) == growing
    for words in ("vector<int>", "<think>a thought", "<div>block", "end."):
        assert words in growing


async def test_replaced_and_selected_text(page: tuple[Pilot[None], MarkdownText]) -> None:
    pilot, widget = page
    widget.feed("a *thought*")
    await pilot.pause(0.1)
    widget.replace("the **answer**\n\n- 1")
    widget.finish()
    await pilot.pause()
    assert screen_text(pilot).rstrip() == "the answer\n\n• 1"
    pilot.app.screen.selections = {widget: SELECT_ALL}
    await pilot.pause()
    assert pilot.app.screen.get_selected_text() == "the answer\n\n• 1"
    assert screen_text(pilot).rstrip() == "the answer\n\n• 1"


async def test_new_text_waits_while_somebody_types_but_not_for_ever() -> None:
    app = Stage()
    async with app.run_test() as pilot:
        text = MarkdownText()
        await app.screen.mount(text)
        await pilot.press("x")
        started = time.monotonic()
        text.feed("a word")
        while not text._lines:
            await pilot.press("x")
        assert TYPING_REST < time.monotonic() - started < 10 * PATIENCE * TYPING_REST
