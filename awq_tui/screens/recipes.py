"""The recipes that were saved: use one for this model, save the form's present values as one, delete one."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import DataTable, Input, Static

from awq_engine.errors import BadInputError
from awq_engine.sanitize import one_line, plain
from awq_tui.draft import Draft
from awq_tui.ellipsis import shorten
from awq_tui.recipes import delete_recipe, describe_recipe, load_recipes, save_recipe
from awq_tui.widgets.key_bar import KeyBar
from awq_tui.widgets.plain_input import PlainInput

NAME_WIDTH = 20


class RecipeTable(DataTable[Text]):
    """The list; the keys for one recipe work while it has the focus."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "Use", id="recipes.use", tooltip="Fill the form with this recipe."),
        Binding("d,delete", "screen.delete", "Delete", id="recipes.delete", tooltip="Delete this recipe."),
    ]


class RecipesModal(ModalScreen[Draft | None]):
    """Dismissed with the recipe to use; `present` are the form's values, which may be saved."""

    CSS_PATH = "modal.tcss"
    DEFAULT_CSS = """
    RecipesModal RecipeTable { height: auto; max-height: 14; margin: 1 0; background: $surface; }
    RecipesModal #recipes-note { height: auto; color: $text-muted; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Close", id="recipes.close"),
        Binding("tab", "app.focus_next", "List or name", show=False),
    ]

    def __init__(self, present: Draft) -> None:
        super().__init__()
        self._present = present
        self._recipes: dict[str, Draft] = {}

    def compose(self) -> ComposeResult:
        with Vertical(classes="modal") as box:
            box.border_title = "Recipes"
            yield PlainInput(placeholder="a name, to save the form's values under", id="name", compact=True)
            yield RecipeTable(cursor_type="row", show_header=False)
            yield Static(id="recipes-note", markup=False)
        yield KeyBar()

    def on_mount(self) -> None:
        self._fill()
        self.query_one(RecipeTable if self._recipes else Input).focus()

    def on_resize(self) -> None:
        self.call_after_refresh(self._fill)

    def _fill(self) -> None:
        self._attempt(self._load)
        table = self.query_one(RecipeTable)
        row = table.cursor_row
        table.clear(columns=True)
        table.display = bool(self._recipes)
        table.add_column("name", width=NAME_WIDTH)
        room = max(20, self.query_one(".modal").content_size.width - NAME_WIDTH - 5)
        table.add_column("what", width=room)
        for name, draft in self._recipes.items():
            what = Text(shorten(one_line(describe_recipe(draft)), room), "dim")
            table.add_row(Text(shorten(one_line(name), NAME_WIDTH), "bold"), what)
        table.move_cursor(row=row, animate=False)

    def _load(self) -> None:
        self._recipes = load_recipes()
        self._say("" if self._recipes else "No recipe yet. Type a name and press enter to save the form's values.")

    @property
    def current(self) -> str | None:
        """The name under the cursor."""
        row = self.query_one(RecipeTable).cursor_row
        names = list(self._recipes)
        return names[row] if 0 <= row < len(names) else None

    @on(RecipeTable.RowSelected)
    def _use(self) -> None:
        if self.current is not None:
            self.dismiss(self._recipes[self.current])

    @on(Input.Submitted)
    def _save(self, event: Input.Submitted) -> None:
        name = event.value.strip()
        if not name:
            return
        replaced = name in self._recipes
        if self._attempt(lambda: save_recipe(name, self._present)):
            self.query_one(Input).value = ""
            self._fill()
            self._say(f"“{one_line(name)}” was {'replaced' if replaced else 'saved'}.")
            self.query_one(RecipeTable).focus()

    def action_delete(self) -> None:
        name = self.current
        if name is not None and self._attempt(lambda: delete_recipe(name)):
            self._fill()

    def action_close(self) -> None:
        self.dismiss(None)

    def _attempt(self, step: Callable[[], None]) -> bool:
        """Do something with the file; whether it went well, and a sentence if not."""
        try:
            step()
        except (BadInputError, OSError) as error:
            self._say(plain(str(error)))
            return False
        return True

    def _say(self, text: str) -> None:
        self.query_one("#recipes-note", Static).update(text)
