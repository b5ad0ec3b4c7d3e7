"""Recipes: a form's values under a name, to be used for other models; all in `recipes.json` beside the runs.

No Textual here. What depends on the model (its name, the output folder) is not part of a recipe.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from awq_engine.config import Format, Method, Preset
from awq_engine.errors import BadInputError
from awq_engine.format import preset_label
from awq_engine.storage import home, write_atomically
from awq_tui.draft import Draft, TextSource

OWN_OF_MODEL = ("model", "output", "overwrite")
"""Fields of a draft that no recipe holds."""
_ENUMS = {"preset": Preset, "method": Method, "layout": Format, "text_source": TextSource}


def recipes_path() -> Path:
    return home() / "recipes.json"


def load_recipes() -> dict[str, Draft]:
    """Every recipe by its name, in the order of saving; raises `BadInputError` when the file cannot be read."""
    path = recipes_path()
    try:
        data = json.loads(path.read_bytes())
        return {str(name): _draft(values) for name, values in data.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BadInputError(f"{path} cannot be read ({error}); mend or remove it to save recipes.") from error


def save_recipe(name: str, draft: Draft) -> None:
    """Keep a draft under a name, in the place of an older one of that name; raises `BadInputError` or `OSError`."""
    _write({**load_recipes(), name: draft})


def delete_recipe(name: str) -> None:
    """Raises `BadInputError` or `OSError`."""
    _write({key: draft for key, draft in load_recipes().items() if key != name})


def describe_recipe(draft: Draft) -> str:
    """`W4 g128 balanced awq, builtin, 128 x 512`, and what else is unusual."""
    label = preset_label(
        draft.bits, draft.group_size, draft.preset, method=draft.method, symmetric=draft.symmetric
    )  # fmt: skip
    text = draft.text if draft.text_source in (TextSource.FILE, TextSource.HUB) else draft.text_source.value
    parts = [f"{label} {draft.layout}", text, f"{draft.samples} x {draft.seq_len}"]
    parts += [f"{draft.target_bpw} bits/weight"] if draft.target_bpw else []
    parts += [draft.overrides] if draft.overrides else []
    return ", ".join(parts)


def _draft(values: dict[str, Any]) -> Draft:
    """A stored recipe; fields it lacks have their defaults, those this version does not know are left out."""
    fields = {field.name: field for field in dataclasses.fields(Draft) if field.name not in OWN_OF_MODEL}
    known: dict[str, Any] = {}
    for name, value in values.items():
        if name in _ENUMS:
            known[name] = _ENUMS[name](value)
        elif name in fields:
            if type(value) is not type(fields[name].default):
                raise TypeError(f"{name} is {value!r}")
            known[name] = value
    return Draft(model="", output="", **known)


def _write(recipes: dict[str, Draft]) -> None:
    stored = {
        name: {key: value for key, value in dataclasses.asdict(draft).items() if key not in OWN_OF_MODEL}
        for name, draft in recipes.items()
    }
    path = recipes_path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, (json.dumps(stored, indent=2) + "\n").encode())
