"""Exceptions for single linears: `PATTERN=bits:8,group:64` or `PATTERN=skip`.

PATTERN is a glob (`*` is any run of characters, dots too; `?` one character, `[0-3]` one of these) that must fit the
linear's whole name in the checkpoint, such as `model.layers.0.self_attn.q_proj`. The last override that fits a linear
decides alone; what it does not name is as for every other linear. Standard library only: the app imports this.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache

from awq_engine.errors import UsageError

NEAR_NAMES = 3
"""Names suggested for a pattern that fits none."""
_FORM = "write PATTERN=skip, or PATTERN=bits:N,group:N with one of the two or both"


@dataclass(frozen=True)
class Override:
    """One exception."""

    pattern: str
    skip: bool = False
    """Leave the linear as it is."""
    bits: int | None = None
    group_size: int | None = None

    def fits(self, key: str) -> bool:
        """Whether it is meant for the linear that the checkpoint calls `key`."""
        return fnmatchcase(key, self.pattern)

    def __str__(self) -> str:
        values = [("bits", self.bits), ("group", self.group_size)]
        words = ["skip"] if self.skip else [f"{name}:{value}" for name, value in values if value is not None]
        return f"{self.pattern}={','.join(words)}"


@cache
def parse_override(text: str) -> Override:
    """Read one override; `UsageError` says what it should look like."""
    pattern, _, action = (part.strip() for part in text.rpartition("="))
    if not pattern or not action:
        raise UsageError(f"The override '{text}' is not understood: {_FORM}.")
    if action == "skip":
        return Override(pattern, skip=True)
    values: dict[str, int] = {}
    for part in action.split(","):
        name, _, number = (word.strip() for word in part.partition(":"))
        if name not in ("bits", "group") or name in values or not number.lstrip("-").isdecimal():
            raise UsageError(f"The override '{text}' is not understood at '{part}': {_FORM}.")
        values[name] = int(number)
    return Override(pattern, bits=values.get("bits"), group_size=values.get("group"))


def deciding_override(overrides: Iterable[str], key: str) -> Override | None:
    """The last override that fits the linear `key`."""
    found = None
    for text in overrides:
        override = parse_override(text)
        found = override if override.fits(key) else found
    return found


def pattern_problem(overrides: Iterable[str], keys: list[str]) -> str | None:
    """Which override fits none of the linears `keys`, and what it may have meant; None when each fits one."""
    for text in overrides:
        override = parse_override(text)
        if not any(override.fits(key) for key in keys):
            near = ", ".join(_near(override.pattern, keys)) or keys[0]
            return (
                f"The override '{text}' fits none of the {len(keys)} linears; a pattern must fit a whole name, "
                f"as '*' does, and names near it are {near}."
            )
    return None


def _near(pattern: str, keys: list[str]) -> list[str]:
    """Names that hold the pattern's letters, or else look like it, one for each kind of linear."""
    literal = max(pattern.replace("?", "*").split("*"), key=len)
    kinds = {key.rpartition(".")[2]: key for key in reversed(keys)}
    holding = [key for key in kinds.values() if literal.strip(".") in key] if literal.strip(".") else []
    alike = difflib.get_close_matches(literal.rpartition(".")[2], kinds, NEAR_NAMES, 0.5)
    return holding[:NEAR_NAMES] or [kinds[kind] for kind in alike]
