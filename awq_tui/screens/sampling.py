"""What the model is told and how it draws: the system prompt, and everything that decides the next token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Label, Static, TextArea

from awq_engine.sampling_settings import MAX_STOPS, Sampling
from awq_tui.widgets.choice import Choice
from awq_tui.widgets.key_bar import KeyBar
from awq_tui.widgets.plain_input import PlainInput


@dataclass(frozen=True)
class ChatSettings:
    """What holds for the next reply."""

    system: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    kv_cache: str = "float"
    """What keys and values are kept in; another one loads the model anew."""


KV_CACHES = (("floats", "float"), ("bytes", "int8"))


class SamplingModal(ModalScreen[ChatSettings | None]):
    """Dismissed with the new settings, or None when they stay."""

    CSS_PATH = "modal.tcss"
    AUTO_FOCUS = ""
    DEFAULT_CSS = """
    SamplingModal .field { height: 1; }
    SamplingModal .field Label { width: 14; color: $text-muted; }
    SamplingModal .field Input { width: 16; padding: 0 1; }
    SamplingModal .hint {
        width: 1fr;
        padding-left: 1;
        color: $text-muted;
        text-wrap: nowrap;
        text-overflow: ellipsis;
    }
    SamplingModal TextArea { height: 4; margin-bottom: 1; border: round $border-blurred; }
    SamplingModal #sampling-problem { color: $text-error; height: auto; margin-top: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f2,ctrl+s", "save", "Use", key_display="f2", id="sampling.save", priority=True,
                tooltip="Use these from the next reply on."),
        Binding("escape", "close", "Keep as it was", id="sampling.close"),
    ]  # fmt: skip
    FIELDS = (
        ("temperature", "temperature", "0: always the likeliest token"),
        ("top_p", "top-p", "the likeliest tokens of this probability in all"),
        ("top_k", "top-k", "so many likeliest tokens; 0: all"),
        ("min_p", "min-p", "at least this share of the likeliest one's; 0: all"),
        ("repetition_penalty", "repetition", "above 1: fewer repetitions"),
        ("max_tokens", "max tokens", "of one reply"),
        ("stop", "stop at", "texts, commas between them; \\n: a new line"),
        ("seed", "seed", "empty: another for each reply"),
    )

    def __init__(self, settings: ChatSettings) -> None:
        super().__init__()
        self._settings = settings

    def compose(self) -> ComposeResult:
        with Vertical(classes="modal") as box:
            box.border_title = "System prompt and sampling"
            yield TextArea(self._settings.system, id="system", show_line_numbers=False, placeholder="System prompt")
            for name, label, hint in self.FIELDS:
                with Horizontal(classes="field"):
                    yield Label(label)
                    value = as_text(getattr(self._settings.sampling, name))
                    yield PlainInput(value, id=f"sampling-{name}", compact=True)
                    yield Static(hint, classes="hint", markup=False)
            with Horizontal(classes="field"):
                yield Label("keys, values")
                yield Choice(KV_CACHES, self._settings.kv_cache, id="sampling-kv")
                yield Static("bytes: a longer conversation in the same memory", classes="hint", markup=False)
            yield Static("", id="sampling-problem", markup=False)
        yield KeyBar()

    def on_mount(self) -> None:
        # before the layout is known the terminal's cursor, where input methods write, would be sent elsewhere
        self.call_after_refresh(self.query_one(TextArea).focus)

    @on(Input.Submitted)
    def action_save(self) -> None:
        try:
            sampling = read_sampling(
                {name: self.query_one(f"#sampling-{name}", Input).value for name, *_ in self.FIELDS}
            )
        except ValueError as error:
            self.query_one("#sampling-problem", Static).update(str(error))
        else:
            system, kv_cache = self.query_one("#system", TextArea).text.strip(), self.query_one(Choice).value
            self.dismiss(ChatSettings(system, sampling, str(kv_cache)))

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
        top_k=_whole("top-k", texts["top_k"], 0, 1_000_000),
        min_p=_number("min-p", texts["min_p"], 0.0, 1.0),
        repetition_penalty=_number("repetition penalty", texts["repetition_penalty"], 0.1, 10.0),
        stop=_stops(texts["stop"]),
    )


def as_text(value: float | tuple[str, ...] | None) -> str:
    """A setting as its field shows it."""
    if isinstance(value, tuple):
        return ",".join(stop.replace("\n", "\\n") for stop in value)
    return "" if value is None else f"{value:g}"


def _stops(text: str) -> tuple[str, ...]:
    found = tuple(stop.replace("\\n", "\n") for stop in text.split(",") if stop)
    if len(found) > MAX_STOPS:
        raise ValueError(f"There can be {MAX_STOPS} texts to stop at, not {len(found)}.")
    return found


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
