"""What the model is told and how it draws: the system prompt, temperature, top-p, length, seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, Label, Static, TextArea

from awq_tui.chat_client import Sampling


@dataclass(frozen=True)
class ChatSettings:
    """What holds for the next reply."""

    system: str = ""
    sampling: Sampling = field(default_factory=Sampling)


class SamplingModal(ModalScreen[ChatSettings | None]):
    """Dismissed with the new settings, or None when they stay."""

    CSS_PATH = "modal.tcss"
    DEFAULT_CSS = """
    SamplingModal .field { height: 1; }
    SamplingModal .field Label { width: 16; color: $text-muted; }
    SamplingModal .field Input { width: 20; }
    SamplingModal TextArea { height: 5; margin-bottom: 1; border: round $border-blurred; }
    SamplingModal #sampling-problem { color: $text-error; height: auto; margin-top: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f2,ctrl+s", "save", "Use", key_display="f2", id="sampling.save", priority=True,
                tooltip="Use these from the next reply on."),
        Binding("escape", "close", "Keep as it was", id="sampling.close"),
    ]  # fmt: skip
    FIELDS = (("temperature", "temperature"), ("top_p", "top-p"), ("max_tokens", "max tokens"), ("seed", "seed"))

    def __init__(self, settings: ChatSettings) -> None:
        super().__init__()
        self._settings = settings

    def compose(self) -> ComposeResult:
        with Vertical(classes="modal") as box:
            box.border_title = "System prompt and sampling"
            yield TextArea(self._settings.system, id="system", show_line_numbers=False, placeholder="System prompt")
            for name, label in self.FIELDS:
                value = getattr(self._settings.sampling, name)
                with Horizontal(classes="field"):
                    yield Label(label)
                    yield Input("" if value is None else f"{value:g}", placeholder="random", id=name, compact=True)
            yield Static("", id="sampling-problem", markup=False)
        yield Footer(show_command_palette=False)

    @on(Input.Submitted)
    def action_save(self) -> None:
        try:
            sampling = read_sampling({name: self.query_one(f"#{name}", Input).value for name, _ in self.FIELDS})
        except ValueError as error:
            self.query_one("#sampling-problem", Static).update(str(error))
        else:
            self.dismiss(ChatSettings(self.query_one("#system", TextArea).text.strip(), sampling))

    def action_close(self) -> None:
        self.dismiss(None)


def read_sampling(texts: dict[str, str]) -> Sampling:
    """The settings as written; `ValueError` holds a sentence that names the field and what it can be."""
    seed = texts["seed"].strip()
    return Sampling(
        temperature=_number("temperature", texts["temperature"], 0.0, 10.0),
        top_p=_number("top-p", texts["top_p"], 0.01, 1.0),
        max_tokens=_whole("max tokens", texts["max_tokens"], 1, 1_000_000),
        seed=_whole("seed", seed, 0, 2**63 - 1) if seed else None,
    )


def _number(name: str, text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise ValueError(f"The {name} must be a number from {low:g} to {high:g}, not '{text}'.")
    return value


def _whole(name: str, text: str, low: int, high: int) -> int:
    if not text.strip().isdecimal() or not low <= int(text) <= high:
        raise ValueError(f"The {name} must be a whole number from {low} to {high}, not '{text}'.")
    return int(text)
