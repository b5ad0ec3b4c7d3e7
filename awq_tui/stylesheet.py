"""Style sheets that are parsed once for as long as the theme stays.

Textual keeps the rules of 64 sheets. An app of more kinds of widgets, and this is one, parses all of them anew for
every kind that is mounted first, and for every screen and theme besides: 30 to 100 ms each time, in which no key is
answered.
"""

from __future__ import annotations

from textual.cache import LRUCache
from textual.css.stylesheet import Stylesheet

KEPT_SHEETS = 1024
"""More than there are kinds of widgets and screens."""


class LastingStylesheet(Stylesheet):
    """Forgets what it has parsed only when the variables, which are a theme's colours, are others."""

    def __init__(self, *, variables: dict[str, str]) -> None:
        super().__init__(variables=variables)
        self._given = dict(variables)
        self._parse_cache = LRUCache(KEPT_SHEETS)

    def set_variables(self, variables: dict[str, str]) -> None:
        if variables != self._given:
            self._given = dict(variables)
            super().set_variables(variables)

    def reparse(self) -> None:
        """Textual's way starts with nothing; here only new sheets are parsed."""
        self.parse()
