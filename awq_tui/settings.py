"""What the app remembers by itself between starts, in `settings.json` beside the runs; wishes are in `preferences`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from awq_engine.storage import home, write_atomically
from awq_tui.places import Places, read_places


@dataclass(frozen=True)
class Settings:
    """Every field has a default, so an absent or damaged file is simply the defaults."""

    theme: str = "awq-dark"
    folders: tuple[str, ...] = ()
    """Model folders, or folders of model folders, that the person entered."""
    section: str = "models"
    """The one the person was in last."""
    kv_cache: str = "float"
    """What chats keep keys and values in: `float` or `int8`."""
    places: Places = field(default_factory=dict)
    """Where in each section."""


def settings_path() -> Path:
    return home() / "settings.json"


def load_settings() -> Settings:
    """The stored settings; fields that cannot be read keep their defaults."""
    try:
        data = json.loads(settings_path().read_bytes())
    except (OSError, ValueError, RecursionError):
        return Settings()
    if not isinstance(data, dict):
        return Settings()
    theme, folders, section = data.get("theme"), data.get("folders"), data.get("section")
    defaults = Settings()
    return Settings(
        theme=theme if isinstance(theme, str) else defaults.theme,
        folders=tuple(item for item in folders if isinstance(item, str)) if isinstance(folders, list) else (),
        section=section if isinstance(section, str) else defaults.section,
        kv_cache="int8" if data.get("kv_cache") == "int8" else defaults.kv_cache,
        places=read_places(data.get("places")),
    )


def save_settings(settings: Settings) -> None:
    """Write the settings whole or not at all; raises `OSError`."""
    path = settings_path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, (json.dumps(dataclasses.asdict(settings), indent=2) + "\n").encode())
