"""The fields of a run as a form, one a line, in groups; up and down walk them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Button, Input, Label, Static

from awq_tui.draft import Draft, TextSource
from awq_tui.draft_fields import ALL, FIELDS, Field
from awq_tui.widgets.choice import Choice
from awq_tui.widgets.plain_input import PlainInput

PLACEHOLDERS = {
    TextSource.FILE: "~/text.txt, .jsonl, .parquet or a folder",
    TextSource.HUB: "dataset[:config][:split][:column]",
}
"""Of the field `text`, which the other sources have no use for."""


class DraftForm(VerticalScroll, inherit_bindings=False, can_focus=False):
    """Up and down are left to the screen, which moves between the fields."""

    DEFAULT_CSS = """
    DraftForm .heading { height: 1; margin-top: 1; color: $text-accent; }
    DraftForm .heading.-first { margin-top: 0; }
    DraftForm .field { height: 1; width: 100%; }
    DraftForm .field Label { width: 13; color: $text-muted; }
    DraftForm .field:focus-within { background: $surface; }
    DraftForm .field:focus-within Label { color: $accent; text-style: bold; }
    DraftForm .field Input { width: 1fr; padding: 0 1; }
    DraftForm .field Input.-short { width: 14; }
    DraftForm Button { margin-left: 13; }
    """

    def __init__(self, start: Draft) -> None:
        super().__init__(id="form")
        self._start = start

    def compose(self) -> ComposeResult:
        for number, (heading, group) in enumerate(FIELDS.items()):
            yield Static(heading, classes="heading" if number else "heading -first", markup=False)
            for field in group:
                yield Horizontal(
                    Label(Content(field.label)), self._widget(field), classes="field", id=f"{field.id}-row"
                )
        yield Horizontal(Button("Start", id="start", variant="primary", compact=True), classes="field")

    def _widget(self, field: Field) -> Widget:
        value = getattr(self._start, field.name)
        if field.options:
            return Choice(list(field.options), value, id=field.id)
        short = "-short" if field.length else None
        return PlainInput(
            value, id=field.id, placeholder=field.placeholder, compact=True, max_length=field.length, classes=short
        )

    def on_mount(self) -> None:
        self.show_needed()

    @property
    def draft(self) -> Draft:
        """The present values."""
        return Draft(self._start.model, **{field.name: self._value(field) for field in ALL})

    def fill(self, draft: Draft, leave: Iterable[str] = ()) -> None:
        """Take over a draft's values, but for those of the names to `leave`."""
        for field in ALL:
            if field.name not in (*leave, "model"):
                self.put(field.name, getattr(draft, field.name))

    def put(self, name: str, value: Hashable) -> None:
        """Change one value; one that is no longer offered is not taken."""
        field = next(field for field in ALL if field.name == name)
        if not field.options:
            self.query_one(f"#{field.id}", Input).value = str(value)
        elif value in [option for _, option in field.options]:
            self.query_one(f"#{field.id}", Choice).choose(value)

    def show_needed(self) -> None:
        """Hide what would change nothing now."""
        draft = self.draft
        self.query_one("#text", Input).placeholder = PLACEHOLDERS.get(draft.text_source, "")
        self.query_one("#text-row").display = draft.text_source in PLACEHOLDERS
        self.query_one("#overwrite-row").display = draft.output_is_there

    def _value(self, field: Field) -> Any:
        found = self.query_one(f"#{field.id}")
        return found.value if isinstance(found, Choice | Input) else None
