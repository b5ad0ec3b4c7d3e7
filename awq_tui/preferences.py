"""`config.toml`: what the person wrote down about the app. It is only ever read; `docs/configuration.md` has every key.

It lies in the platform's configuration folder, or where `AWQ_TUI_HOME` points. A key that cannot be used is told by
name with what it can be, and costs nothing but itself.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import platformdirs

from awq_engine.storage import home


class Notify(StrEnum):
    """What happens in the terminal when a run ends."""

    OFF = "off"
    BELL = "bell"
    OSC9 = "osc9"
    """A desktop notification, in terminals that know OSC 9 (iTerm2, WezTerm, kitty, Windows Terminal, ConEmu)."""


@dataclass(frozen=True)
class Preferences:
    """Every key of the file, with what holds without it."""

    theme: str = ""
    """A theme's name; empty: the one chosen last."""
    notify: Notify = Notify.BELL
    save_chats: bool = True
    """Whether conversations are kept on disk."""
    ascii: bool = False
    """Draw with ASCII characters only, as terminals that are not UTF-8 get anyway."""
    animations: bool = True
    folders: tuple[str, ...] = ()
    """Model folders, or folders of model folders, to list besides ./ and ~/models."""
    keys: dict[str, str] = field(default_factory=dict)
    """Binding id -> keys, comma separated; the help of every screen shows the ids."""


def preferences_path() -> Path:
    override = os.environ.get("AWQ_TUI_HOME")
    return (home() if override else platformdirs.user_config_path("awq-tui")) / "config.toml"


def load_preferences() -> tuple[Preferences, list[str]]:
    """What the file says, and a sentence for everything in it that cannot be used."""
    path = preferences_path()
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Preferences(), []
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        return Preferences(), [f"{path} cannot be read: {error}"]
    known: dict[str, Any] = {}
    problems = []
    for name, value in data.items():
        try:
            known[name] = _read(name, value)
        except ValueError as error:
            problems.append(f"{path}: {error}")
    return Preferences(**known), problems


def _read(name: str, value: object) -> Any:
    """The value as its field's type; `ValueError` holds a sentence."""
    defaults = {item.name: getattr(Preferences(), item.name) for item in dataclasses.fields(Preferences)}
    if name not in defaults:
        near = difflib.get_close_matches(name, defaults, 1)
        hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(defaults)}."
        raise ValueError(f"there is no key '{name}'; {hint}")
    if name == "notify":
        if value not in list(Notify):
            raise ValueError(f"notify is {value!r}, but can be {', '.join(Notify)}.")
        return Notify(str(value))
    if name == "keys":
        if isinstance(value, dict) and all(isinstance(keys, str) for keys in value.values()):
            return {str(key): keys for key, keys in value.items()}
        raise ValueError('keys is a table of texts, such as "chat.again" = "ctrl+r".')
    if name == "folders":
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ValueError('folders is a list of texts, such as ["~/models"].')
    if type(value) is not type(defaults[name]):
        kind = "true or false" if isinstance(defaults[name], bool) else "a text"
        raise ValueError(f"{name} is {value!r}, but has to be {kind}.")
    return value
