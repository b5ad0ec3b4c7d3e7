"""What stands in a conversation: the person's turns, the model's replies, and notices of ours.

All text passes through `plain`; none of it is ever parsed as Textual markup, and links in replies are not opened.
"""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Markdown, Static

from awq_engine.sanitize import plain
from awq_tui.widgets.markdown_feed import MarkdownFeed, reply_parser


class Question(Static):
    """What the person said."""

    DEFAULT_CSS = """
    Question {
        margin-top: 1;
        padding: 0 1;
        border-left: outer $accent;
        background: $panel;
        &:ansi { background: ansi_default; }
    }
    """

    def __init__(self, text: str) -> None:
        super().__init__(plain(text), markup=False)


class Notice(Static):
    """A remark of the app inside the conversation."""

    DEFAULT_CSS = """
    Notice { margin-top: 1; padding: 0 1; color: $text-muted; }
    Notice.-error { color: $text-error; border-left: outer $error; }
    """

    def __init__(self, text: str, *, error: bool = False) -> None:
        super().__init__(plain(text), markup=False, classes="-error" if error else "")


class Answer(Vertical):
    """A reply that grows, and a line of figures under it."""

    DEFAULT_CSS = """
    Answer { height: auto; margin-top: 1; }
    Answer > Markdown { height: auto; padding: 0 1; margin: 0; background: transparent; }
    Answer > .figures { padding: 0 1; color: $text-muted; }
    Answer > .figures.-error { color: $text-error; border-left: outer $error; }
    """

    _feed: MarkdownFeed | None = None

    def compose(self) -> ComposeResult:
        yield Markdown(parser_factory=reply_parser, open_links=False)
        yield Static("", classes="figures", markup=False)

    @property
    def text(self) -> str:
        """The reply so far."""
        return self._feed.text if self._feed else ""

    def say(self, figures: str) -> None:
        """What stands under the reply while it is made."""
        self.query_one(".figures", Static).update(figures)

    def feed(self, fragment: str) -> None:
        """More of the reply."""
        if self._feed is None:
            self._feed = MarkdownFeed(self.query_one(Markdown))
        self._feed.feed(plain(fragment))

    async def finish(self, figures: str) -> None:
        """The reply is complete."""
        if self._feed is not None:
            await self._feed.finish()
        self.say(figures)

    async def fail(self, message: str) -> None:
        """The reply will not be completed; what there is of it stays."""
        await self.finish(plain(message))
        self.query_one(".figures", Static).add_class("-error")

    async def on_unmount(self) -> None:
        if self._feed is not None:
            await self._feed.stop()
