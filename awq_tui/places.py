"""Where a person was: of every section the screens, from the first up, and what was chosen on each.

    {"models": [{"find": "qwen", "order": "by size"}], "runs": [{"run": "..."}, {"screen": "run", "run": "..."}]}

A screen makes its `Place` and takes it back; the app keeps them in the settings and opens the upper screens again, by
what they say in `screen`. A place holds texts only, so a damaged file can name no more than what is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from awq_engine.errors import AwqError

if TYPE_CHECKING:
    from awq_tui.screens.section import SectionScreen

Place = Mapping[str, str]
Places = Mapping[str, tuple[Place, ...]]


def read_places(data: object) -> Places:
    """As stored; what is no place is left out."""
    if not isinstance(data, dict):
        return {}
    return {
        section: tuple(map(_read_place, screens))
        for section, screens in data.items()
        if isinstance(section, str) and isinstance(screens, list)
    }


def _read_place(data: object) -> Place:
    known = data.items() if isinstance(data, dict) else ()
    return {name: value for name, value in known if isinstance(name, str) and isinstance(value, str)}


def place_of(places: Places, section: str, depth: int) -> Place:
    """Of the screen that lies on `depth` others; empty when nothing is known of it."""
    screens = places.get(section, ())
    return screens[depth] if depth < len(screens) else {}


def screen_of(place: Place) -> SectionScreen | None:
    """The upper screen that `place` tells of, as it was left; None when what it showed is gone."""
    try:
        screen = _open(place)
    except (AwqError, OSError):
        return None
    if screen is not None:
        screen.kept = place
    return screen


def _open(place: Place) -> SectionScreen | None:
    from awq_engine.runs import find_run

    match place.get("screen"):
        case "run":
            from awq_tui.screens.run import RunScreen

            return RunScreen(find_run(place.get("run", "")))
        case "configure":
            from awq_tui.catalog import find_again
            from awq_tui.screens.configure import ConfigureScreen

            entry = find_again(*(place.get(name, "") for name in ("where", "name", "model", "path")))
            return ConfigureScreen(entry) if entry else None
        case "inspect":
            from awq_tui.screens.inspect import InspectScreen

            folder = Path(place.get("folder", ""))
            if place.get("folder") and not folder.is_dir():
                return None
            return InspectScreen(folder if place.get("folder") else find_run(place.get("run", "")))
        case "chat":
            from awq_tui.chats import chats_dir, load_chat
            from awq_tui.screens.chat import ChatScreen

            if not place.get("chat"):
                return ChatScreen(place["model"]) if place.get("model") else None
            chat = load_chat(chats_dir() / f"{Path(place['chat']).name}.json")
            return ChatScreen(chat.models[0], chat=chat)
    return None
