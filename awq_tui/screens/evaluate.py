"""What to measure with: which text, how long the windows, how many tokens in all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Label, Static

from awq_engine.errors import AwqError, UsageError
from awq_engine.sanitize import plain
from awq_tui.background import in_thread
from awq_tui.widgets.key_bar import KeyBar
from awq_tui.widgets.plain_input import PlainInput

EXPLANATION = (
    "The output is compared with its original on text that it was not calibrated on: perplexity of both, KL and how "
    "often both like the same next token best. It works in a process of its own, also after you leave."
)


@dataclass(frozen=True)
class Measurement:
    """What an evaluation is made with."""

    text: str = "builtin"
    """`builtin`, a file, a folder, or `hub:DATASET`."""
    seq_len: int = 512
    max_tokens: int = 16384


class EvaluateModal(ModalScreen[Measurement | None]):
    """Dismissed with what to measure with, the text made absolute; None when it is given up."""

    CSS_PATH = "modal.tcss"
    DEFAULT_CSS = """
    EvaluateModal .field { height: 1; }
    EvaluateModal .field Label { width: 16; color: $text-muted; }
    EvaluateModal .field Input { width: 1fr; }
    EvaluateModal #evaluate-why { margin-bottom: 1; color: $text-muted; }
    EvaluateModal #evaluate-problem { color: $text-error; height: auto; margin-top: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "start", "Measure", key_display="^s", id="evaluate.start", priority=True),
        Binding("escape", "close", "Cancel", id="evaluate.close"),
        Binding("up", "app.focus_previous", "Field above", show=False),
        Binding("down", "app.focus_next", "Field below", show=False),
    ]

    def __init__(self, title: str, before: Measurement) -> None:
        super().__init__()
        self._title = title
        self._before = before

    def compose(self) -> ComposeResult:
        with Vertical(classes="modal -small") as box:
            box.border_title = plain(self._title)
            yield Static(EXPLANATION, id="evaluate-why", markup=False)
            for name, label, value in (
                ("text", "text", self._before.text),
                ("seq_len", "window", str(self._before.seq_len)),
                ("max_tokens", "tokens in all", str(self._before.max_tokens)),
            ):
                with Horizontal(classes="field"):
                    yield Label(label)
                    yield PlainInput(value, id=name, compact=True)
            yield Static("", id="evaluate-problem", markup=False)
        yield KeyBar()

    @on(Input.Submitted)
    async def action_start(self) -> None:
        values = {name: self.query_one(f"#{name}", Input).value for name in ("text", "seq_len", "max_tokens")}
        try:
            found = await in_thread(read_measurement, values)
        except AwqError as error:
            self.query_one("#evaluate-problem", Static).update(plain(str(error)))
        else:
            self.dismiss(found)

    def action_close(self) -> None:
        self.dismiss(None)


def read_measurement(values: dict[str, str]) -> Measurement:
    """The form's values; raises `UsageError` or `BadInputError` with a sentence."""
    from awq_engine.text_sources import absolute_spec

    text = absolute_spec(values["text"].strip() or "builtin")
    return Measurement(text, _whole("window", values["seq_len"], 2), _whole("tokens in all", values["max_tokens"], 2))


def _whole(name: str, text: str, low: int) -> int:
    if not text.strip().isdecimal() or int(text) < low:
        raise UsageError(f"The {name} must be a whole number from {low} on, not '{text}'.")
    return int(text)
