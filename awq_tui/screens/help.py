"""What the screen below is for and every key that works there, read from its live bindings."""

from __future__ import annotations

from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import ActiveBinding, Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen, Screen
from textual.widgets import Static

from awq_tui.widgets.key_bar import KeyBar

HEADINGS = ("This screen", "Everywhere", "Moving")
HIDDEN_ACTIONS = ("focus_next", "focus_previous", "copy_text", "help_quit")


class HelpScreen(ModalScreen[None]):
    """Explains `subject`; the keymap ids are shown so that `config.toml` can rebind them."""

    CSS_PATH = "modal.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,f1,q,enter", "close", "Close", key_display="esc", id="help.close"),
    ]

    def __init__(self, subject: Screen[Any]) -> None:
        super().__init__()
        self._text = describe_keys(subject)

    def compose(self) -> ComposeResult:
        with Vertical(classes="modal") as box:
            box.border_title = "Help"
            with VerticalScroll():
                yield Static(self._text, markup=False)
        yield KeyBar()

    def action_close(self) -> None:
        self.dismiss()


def describe_keys(screen: Screen[Any]) -> Content:
    """The screen's purpose, then its keys, those that work everywhere, and those that move the cursor."""
    groups: dict[str, dict[str, list[str]]] = {}
    bindings: dict[str, ActiveBinding] = {}
    for active in screen.active_bindings.values():
        binding = active.binding
        if not binding.description or binding.action.rsplit(".", 1)[-1] in HIDDEN_ACTIONS:
            continue
        heading = _heading(active, screen)
        keys = groups.setdefault(heading, {}).setdefault(binding.action, [])
        keys.append(screen.app.get_key_display(binding))
        bindings.setdefault(binding.action, active)
    purpose = getattr(screen, "HELP", None)
    parts = [Content(f"{' '.join(purpose.split())}\n")] if isinstance(purpose, str) else []
    for heading in HEADINGS:
        actions = groups.get(heading, {})
        if not actions:
            continue
        parts.append(Content.styled(f"\n{heading}\n", "bold $accent"))
        parts.extend(_line(keys, bindings[action]) for action, keys in actions.items())
    return Content("").join(parts)


def _heading(active: ActiveBinding, screen: Screen[Any]) -> str:
    """A widget's own keys count as the screen's where we gave them an id; the rest only moves the cursor."""
    if active.node is screen.app:
        return "Everywhere"
    return "This screen" if active.node is screen or active.binding.id else "Moving"


def _line(keys: list[str], active: ActiveBinding) -> Content:
    names = " ".join(dict.fromkeys(keys))
    note = f"  {active.tooltip}" if active.tooltip else ""
    ident = f"  [{active.binding.id}]" if active.binding.id else ""
    return Content.assemble((f"  {names:<16}", "bold"), active.binding.description, note, (f"{ident}\n", "dim"))
