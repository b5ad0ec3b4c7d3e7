"""Reasoning models think aloud before they answer; here a reply is taken apart into its thought and its answer.

The whole reply so far is looked at each time, so the same rules hold while it streams, for one that was cut short
inside its thought, and for one that comes back from disk. A thought is what stands between the tags at the very start
of a reply; tags further on, as in code about tags, are text. Some chat templates write the opening tag themselves, so a
closing tag on a line of its own ends a thought too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
)
_ORPHAN = re.compile("|".join(rf"(?:^|\n)[ \t]*{re.escape(closing)}" for _, closing in TAGS))


@dataclass(frozen=True)
class Parts:
    """A reply taken apart."""

    thought: str
    """Empty when there is none."""
    answer: str
    thinking: bool = False
    """The thought has not ended yet."""


def split_thought(text: str, *, complete: bool = True) -> Parts:
    """Thought and answer of a reply; while it is not `complete`, what may yet become a tag is held back."""
    head = text.lstrip()
    for opening, closing in TAGS:
        if head.startswith(opening):
            return _split_open(head[len(opening) :], closing, complete)
    if not complete and head and any(opening.startswith(head) for opening, _ in TAGS):
        return Parts("", "")
    if any(closing in text for _, closing in TAGS) and (found := _ORPHAN.search(text)):
        return Parts(text[: found.start()].strip(), text[found.end() :].lstrip("\n"))
    return Parts("", text if complete else _without_tag_start(text))


def _split_open(text: str, closing: str, complete: bool) -> Parts:
    thought, found, answer = text.partition(closing)
    if found:
        return Parts(thought.strip(), answer.lstrip("\n"))
    return Parts((thought if complete else _without_tag_start(thought)).strip(), "", thinking=not complete)


def _without_tag_start(text: str) -> str:
    """`text` without an end that begins a closing tag."""
    longest = max(len(closing) for _, closing in TAGS)
    for length in range(min(longest, len(text)), 0, -1):
        if any(closing.startswith(text[-length:]) for _, closing in TAGS):
            return text[:-length]
    return text
