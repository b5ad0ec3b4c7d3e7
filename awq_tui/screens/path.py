"""Name a model that no scan finds: a folder anywhere on the disk, or `org/name` on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.suggester import Suggester
from textual.widgets import Input, Static

from awq_engine.errors import AwqError, BadInputError
from awq_engine.models import HubId, parse_model
from awq_tui import catalog
from awq_tui.background import in_thread
from awq_tui.catalog import Entry, Where
from awq_tui.widgets.key_bar import KeyBar
from awq_tui.widgets.plain_input import PlainInput

EXPLANATION = """A model folder, a folder of model folders, or org/name on the Hub.
Enter adds it, → completes a path."""


class FolderSuggester(Suggester):
    """Completes the last part of a path with the first folder that fits; the right arrow accepts."""

    def __init__(self) -> None:
        super().__init__(use_cache=False, case_sensitive=True)

    async def get_suggestion(self, value: str) -> str | None:
        return await in_thread(complete_folder, value) if "/" in value else None


def complete_folder(value: str) -> str | None:
    """`value` with its last part completed to the first visible folder in sorted order, or None."""
    head, _, tail = value.rpartition("/")
    try:
        names = sorted(path.name for path in Path(f"{head}/").expanduser().iterdir() if path.is_dir())
    except (OSError, RuntimeError):
        return None
    found = next((name for name in names if name.startswith(tail) and (tail or not name.startswith("."))), None)
    return f"{head}/{found}/" if found else None


class PathModal(ModalScreen[list[Entry]]):
    """Dismissed with the models found there; stays open with a sentence while there are none."""

    CSS_PATH = "modal.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Cancel", id="path.cancel"),
    ]

    def compose(self) -> ComposeResult:
        with Vertical(classes="modal") as box:
            box.border_title = "Add models"
            yield Static(EXPLANATION, markup=False)
            yield PlainInput(placeholder="~/models/...", suggester=FolderSuggester(), id="path", compact=True)
            yield Static(id="path-problem", markup=False)
        yield KeyBar()

    @on(Input.Submitted)
    async def _look(self, event: Input.Submitted) -> None:
        try:
            entries = await in_thread(entries_at, event.value.strip())
        except AwqError as error:
            self.query_one("#path-problem", Static).update(f"✗ {error}")
        else:
            self.dismiss(entries)


def entries_at(text: str) -> list[Entry]:
    """The models that a typed path or Hub id means; `BadInputError` when there are none."""
    if not text:
        raise BadInputError("Type a path or a Hub id.")
    target = parse_model(text)
    if isinstance(target, HubId):
        return [Entry(Where.HUB, text, text)]
    if not target.exists():
        raise BadInputError(f"There is no folder {target}.")
    entries = catalog.folder_entries([target])
    if not entries:
        if (target / "config.json").exists():
            raise BadInputError(catalog.describe_folder(target, Where.DISK).problem)
        raise BadInputError(f"{target} holds no model: no config.json and no safetensors weights were found.")
    return entries
