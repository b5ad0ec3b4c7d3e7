"""An input that keeps only what can be printed: a pasted or suggested escape sequence never reaches the terminal."""

from __future__ import annotations

from textual.widgets import Input


class PlainInput(Input):
    """Control and bidirectional characters are dropped from the value, however they came in."""

    def validate_value(self, value: str) -> str:
        """Called by Textual before every change of the value."""
        return "".join(character for character in value if character.isprintable())
