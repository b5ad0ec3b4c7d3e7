"""Where two answers to the same question part: their words compared, for the two columns of a comparison."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

MAX_WORDS = 1500
"""Words of each answer that are matched; comparing costs the product of both. What follows counts as different."""
_WORD = re.compile(r"\s*\S+|\s+$")


@dataclass(frozen=True)
class Span:
    """A stretch of one answer."""

    text: str
    differs: bool
    """The other answer does not have it here."""


@dataclass(frozen=True)
class Comparison:
    """Two answers, taken apart at their differences."""

    first: tuple[Span, ...]
    second: tuple[Span, ...]
    same_start: int
    """Words until they part."""
    shared: float
    """Share of the words, 0 to 1, that both have in the same order."""


def compare_answers(first: str, second: str) -> Comparison:
    """Match the words of two answers, white space aside; takes up to a second, so call it off the event loop."""
    words = [_WORD.findall(text) for text in (first, second)]
    bare = [[word.strip() for word in side[:MAX_WORDS]] for side in words]
    blocks = SequenceMatcher(None, *bare, autojunk=False).get_matching_blocks()
    total = sum(map(len, words))
    same = sum(block.size for block in blocks)
    start = blocks[0].size if blocks[0].a == blocks[0].b == 0 else 0
    return Comparison(
        tuple(_spans(words[0], [(block.a, block.size) for block in blocks])),
        tuple(_spans(words[1], [(block.b, block.size) for block in blocks])),
        start, 2 * same / total if total else 1.0,
    )  # fmt: skip


def _spans(words: Sequence[str], same: Sequence[tuple[int, int]]) -> Iterator[Span]:
    """The words joined, those outside the `same` stretches (start, length) marked."""
    place = 0
    for start, length in [*same, (len(words), 0)]:
        if start > place:
            yield Span("".join(words[place:start]), True)
        if length:
            yield Span("".join(words[start : start + length]), False)
        place = max(place, start + length)
