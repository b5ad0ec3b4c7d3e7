"""Streaming Markdown without losing text and without starving the keyboard.

Textual's own stream handles about one token per redraw, and a redraw of a long list costs 70 ms. Here fragments are
collected and appended in one go; after each append the feed rests for a multiple of what the append cost. Three more
rules keep the text whole: the widget starts empty and is only ever appended to, HTML is not interpreted (it would
swallow `vector<int>` and everything in unclosed tags), and at the end the full text is rendered once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from markdown_it import MarkdownIt
from textual.widgets import Markdown

MIN_REST = 0.12
"""Seconds between two redraws: about eight a second."""
REST_PER_COST = 4.0
"""Redrawing may take a fifth of the time."""


def reply_parser() -> MarkdownIt:
    """GitHub-like Markdown whose HTML is plain text."""
    return MarkdownIt("gfm-like", {"html": False})


class MarkdownFeed:
    """Feeds one empty `Markdown` widget; create it on the event loop."""

    def __init__(self, markdown: Markdown) -> None:
        self._markdown = markdown
        self._waiting: list[str] = []
        self._text: list[str] = []
        self._anew = False
        """What is drawn is to be taken away first."""
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    @property
    def text(self) -> str:
        """Everything fed so far, drawn or not."""
        return "".join(self._text)

    def feed(self, fragment: str) -> None:
        """Add text; it is drawn soon."""
        self._waiting.append(fragment)
        self._text.append(fragment)
        self._news.set()

    def replace(self, text: str) -> None:
        """Draw `text` in the place of everything fed so far."""
        self._anew = True
        self._waiting, self._text = [text], [text]
        self._news.set()

    async def finish(self) -> None:
        """Draw the whole text once more, as if it had come in one piece."""
        await self.stop()
        await self._markdown.update(self.text)

    async def stop(self) -> None:
        """Draw nothing more."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        while await self._news.wait():
            self._news.clear()
            fragment = "".join(self._waiting)
            self._waiting.clear()
            started = time.perf_counter()
            if self._anew:
                self._anew = False
                await self._markdown.update("")
            await self._markdown.append(fragment)
            await asyncio.sleep(max(MIN_REST, REST_PER_COST * (time.perf_counter() - started)))
