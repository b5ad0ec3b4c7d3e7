"""What stands in a conversation: the person's turns, the model's replies, and notices of ours.

All text passes through `plain`; none of it is ever parsed as Textual markup, and links in replies are not opened.
"""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from awq_engine.sanitize import plain
from awq_tui.differences import Span
from awq_tui.thoughts import Parts, split_thought
from awq_tui.widgets.markdown_text import MarkdownText
from awq_tui.widgets.thought import Thought


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


def _style(span: Span) -> str:
    if span.differs:
        return "bold underline $text-accent"
    return "underline" if span.doubtful else ""


class Answer(Vertical):
    """A reply that grows: its thought, folded, its text, and a line of figures under it."""

    DEFAULT_CSS = """
    Answer { height: auto; margin-top: 1; }
    Answer > MarkdownText { padding: 0 1; }
    Answer > .marked { display: none; height: auto; padding: 0 1; }
    Answer > .figures { padding: 0 1; color: $text-muted; }
    Answer > .figures.-error { color: $text-error; border-left: outer $error; }
    Answer.-marked > MarkdownText { display: none; }
    Answer.-marked > .marked { display: block; }
    """

    _text = ""

    def compose(self) -> ComposeResult:
        yield Thought()
        yield MarkdownText()
        yield Static("", classes="marked", markup=False)
        yield Static("", classes="figures", markup=False)

    @property
    def text(self) -> str:
        """The reply so far, its thought included."""
        return self._text

    def say(self, figures: str) -> None:
        """What stands under the reply while it is made."""
        self.query_one(".figures", Static).update(figures)

    def feed(self, fragment: str) -> None:
        """More of the reply."""
        self._text += plain(fragment)
        self._draw(split_thought(self._text, complete=False))

    def _draw(self, parts: Parts) -> None:
        self.query_one(Thought).show(parts.thought, parts.thinking)
        markdown = self.query_one(MarkdownText)
        known = markdown.text
        if not parts.answer.startswith(known):  # a closing tag without an opening one: that was the thought
            markdown.replace(parts.answer)
        elif fresh := parts.answer[len(known) :]:
            markdown.feed(fresh)

    def finish(self, figures: str) -> None:
        """The reply is complete."""
        self._draw(split_thought(self._text))
        self.query_one(MarkdownText).finish()
        self.say(figures)

    def fail(self, message: str) -> None:
        """The reply will not be completed; what there is of it stays."""
        self.finish(plain(message))
        self.query_one(".figures", Static).add_class("-error")

    def mark(self, spans: Sequence[Span]) -> None:
        """Show the answer as plain text with what differs marked; without spans, as it was."""
        self.set_class(bool(spans), "-marked")
        styled = [(plain(span.text), _style(span)) for span in spans]
        self.query_one(".marked", Static).update(Content.assemble(*styled))
