"""Paths that people type: a path that can be asked about, or a sentence. Standard library only."""

from __future__ import annotations

import os
from pathlib import Path

from awq_engine.errors import UsageError

LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Bytes that Linux and macOS take (macOS: 1023 for a path)."""


def typed_path(text: str) -> Path:
    """`text` with `~` resolved; `UsageError` for what no system takes as a path."""
    encoded = os.fsencode(text.encode("utf-8", "surrogateescape"))
    if b"\0" in encoded or len(encoded) > LONGEST_PATH or any(len(p) > LONGEST_NAME for p in encoded.split(b"/")):
        raise UsageError(f"'{text[:60]}' cannot be a path: it is too long or holds a NUL character.")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UsageError(f"'{text}' begins with the home folder of a user who is not known here.") from None


def shown_path(path: str | Path) -> str:
    """As people write it: `~` for their home folder."""
    text, own = str(path), str(Path.home())
    return f"~{text[len(own) :]}" if text == own or text.startswith(f"{own}/") else text
