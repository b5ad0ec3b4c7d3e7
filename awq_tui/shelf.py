"""The models that can be picked now: what was found on this machine and on the Hub, what is fetched, as one list.

No Textual here. The models screen puts in what it finds, as it finds it, and shows what `Shelf.shown` makes of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from awq_engine.downloads import Download
from awq_tui.catalog import Entry, Where, merge, without_limits

ORDERS: dict[str, Callable[[Entry], float | str]] = {
    "as found": lambda entry: 0,
    "by parameters": lambda entry: -(entry.parameters or 0),
    "by size": lambda entry: -(entry.nbytes or 0),
    "by downloads": lambda entry: -(entry.downloads or 0),
    "by name": lambda entry: entry.name.lower(),
}
"""What the list is sorted by; the Hub gives its models by downloads."""


@dataclass
class Shelf:
    """Each kind of model in the order of finding."""

    demo: Sequence[Entry] = ()
    results: Sequence[Entry] = ()
    folders: Sequence[Entry] = ()
    cache: Sequence[Entry] = ()
    hub: Sequence[Entry] = ()
    """What the Hub found for the words of the query."""
    downloads: Sequence[Download] = ()

    def shown(self, query: str, order: str) -> list[Entry]:
        """What fits `query`, each model once, what is on this machine first."""
        local = merge(self.demo, self.results, self.folders, self.cache)
        names = {entry.model for entry in local}
        limits = " ".join(word for word in query.split() if not without_limits(word))
        here = [entry for entry in local if entry.matches(query)]
        found = [entry for entry in self.hub if entry.model not in names and entry.matches(limits)]
        begun = [entry for entry in self._begun() if entry.model not in names and entry.matches(query)]
        return [self._with_progress(entry) for entry in sorted(merge(here, found, begun), key=ORDERS[order])]

    def download_of(self, entry: Entry | None) -> Download | None:
        """How far a model of the Hub has been fetched, if that was begun."""
        return next((found for found in self.downloads if entry and found.spec == entry.model), None)

    def _begun(self) -> Iterator[Entry]:
        """Models that are fetched, or were in part: they stay in sight without being looked for."""
        return (Entry(Where.HUB, found.spec, found.spec) for found in self.downloads if found.total)

    def _with_progress(self, entry: Entry) -> Entry:
        found = self.download_of(entry)
        if found is None or not found.total or entry.where is not Where.HUB:
            return entry
        return dataclasses.replace(entry, fetched=f"{'↓' if found.going_on else '✗'} {found.done / found.total:.0%}")
