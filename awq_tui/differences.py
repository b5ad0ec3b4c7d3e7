"""Where two models part: the words of their answers compared, and what both think of each token of one answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from awq_engine.token_scores import TokenScore, divergence

MAX_WORDS = 1500
"""Words of each answer that are matched; comparing costs the product of both. What follows counts as different."""
_WORD = re.compile(r"\s*\S+|\s+$")


NOTABLE_KL = 0.1
"""Nats at one token from which it is marked although both models like the same token best."""


@dataclass(frozen=True)
class Span:
    """A stretch of one answer."""

    text: str
    differs: bool
    """The other answer does not have it here, or the other model would go on differently."""
    doubtful: bool = False
    """Both models like the same token best, but not nearly as much."""


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


@dataclass(frozen=True)
class Divergence:
    """How far two models are apart over one answer."""

    spans: tuple[Span, ...]
    """The answer, marked."""
    kl: float
    """Mean KL(original || quantized) per token in nats, a lower bound (`token_scores.divergence`)."""
    agreement: float
    """Share of the tokens, 0 to 1, at which both like the same token best."""
    worst: TokenScore
    """The token with the highest KL."""
    worst_kl: float


def compare_scores(original: Sequence[TokenScore], quantized: Sequence[TokenScore]) -> Divergence | None:
    """What two models think of the same answer; None where their tokens are not the same, or there are none."""
    if not original or [score.id for score in original] != [score.id for score in quantized]:
        return None
    kls = [divergence(*pair) for pair in zip(original, quantized, strict=True)]
    same = [first.top[0][0] == second.top[0][0] for first, second in zip(original, quantized, strict=True)]
    spans = tuple(
        Span(score.text, not agrees, agrees and kl > NOTABLE_KL)
        for score, agrees, kl in zip(quantized, same, kls, strict=True)
        if score.text
    )
    worst = max(range(len(kls)), key=kls.__getitem__)
    return Divergence(spans, sum(kls) / len(kls), sum(same) / len(same), quantized[worst], kls[worst])
