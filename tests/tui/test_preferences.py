"""`config.toml`: read with defaults, told by name where it cannot be."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from awq_tui.preferences import Notify, Preferences, load_preferences, preferences_path

DOCUMENTED = Path(__file__).parents[2] / "docs" / "configuration.md"


def configure(text: str) -> None:
    preferences_path().parent.mkdir(parents=True, exist_ok=True)
    preferences_path().write_text(text, encoding="utf-8")


def test_without_a_file_the_defaults_hold() -> None:
    assert load_preferences() == (Preferences(), [])


def test_every_key_is_read() -> None:
    configure(
        'theme = "nord"\nnotify = "osc9"\nsave_chats = false\nascii = true\nanimations = false\n'
        'folders = ["~/big"]\n[keys]\n"chat.again" = "f10"\n'
    )
    expected = Preferences("nord", Notify.OSC9, False, True, False, ("~/big",), {"chat.again": "f10"})
    assert load_preferences() == (expected, [])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('them = "nord"', "there is no key 'them'; did you mean theme?"),
        ("xyz = 1", "there is no key 'xyz'; the keys are theme, notify"),
        ("ascii = 1", "ascii is 1, but has to be true or false"),
        ("theme = true", "theme is True, but has to be a text"),
        ('notify = "horn"', "notify is 'horn', but can be off, bell, osc9"),
        ("notify = []", r"notify is \[\], but can be"),
        ("keys = 3", "keys is a table of texts"),
        ("folders = [1]", "folders is a list of texts"),
        ("theme = ", "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_named_and_costs_nothing_else(text: str, sentence: str) -> None:
    configure(f"animations = false\n{text}\n")
    found, (problem,) = load_preferences()
    assert re.search(sentence, problem)
    assert str(preferences_path()) in problem
    assert found == (Preferences() if "cannot be read" in problem else Preferences(animations=False))


def test_every_key_is_documented() -> None:
    text = DOCUMENTED.read_text(encoding="utf-8")
    for item in dataclasses.fields(Preferences):
        assert re.search(rf"^`{item.name}`", text, re.MULTILINE), item.name
