"""Texts on their way from a source to the tokenizer, and the record of what was left out on the way."""

from __future__ import annotations

from dataclasses import dataclass, field

Spans = tuple[tuple[int, int], ...]
"""Ranges of characters, in order, first included, last not."""


@dataclass(frozen=True)
class Document:
    """One text, or an excerpt of it."""

    text: str
    answers: Spans | None = None
    """The model's own turns in a conversation; None where that is not asked, or all text counts the same."""
    number: int = 0
    """Which document of its source this is, or is an excerpt of."""

    def excerpt(self, start: int, stop: int) -> Document:
        """The characters from `start` to before `stop`."""
        if self.answers is None:
            return Document(self.text[start:stop], None, self.number)
        inside = [(max(a, start) - start, min(b, stop) - start) for a, b in self.answers if b > start and a < stop]
        return Document(self.text[start:stop], tuple(inside), self.number)


@dataclass
class Notes:
    """What happened to a source's rows that a person should know: how often, and where first."""

    _found: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, what: str, where: str = "", count: int = 1) -> None:
        """`what` is a clause that a number can follow, such as `lines that are not JSON, left out`."""
        before, first = self._found.get(what, (0, where))
        self._found[what] = (before + count, first)

    def clauses(self) -> list[str]:
        """For people, in the order in which things happened first."""
        return [
            f"{what}: {count}" + (f" (first {where})" if where else "") for what, (count, where) in self._found.items()
        ]


@dataclass(frozen=True)
class Documents:
    """What a source gave."""

    items: list[Document]
    """In order, none empty."""
    source: str
    """Where they come from, for people."""
    detail: str = ""
    """What was left out or done to them, as clauses; empty when nothing was."""
    mixed: bool = False
    """Any number of documents from the front is a fair sample of the whole."""

    @property
    def texts(self) -> list[str]:
        return [document.text for document in self.items]
