"""Small changes to a good input, of the kinds that break readers: in its bytes, in its values, in its words."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

Mutator = Callable[[bytes, random.Random], bytes]

BYTES = (
    b"\x00",
    b"\xff",
    b"\x1b[2J",
    b"\n",
    b"{",
    b"[",
    b'"',
    b"\\",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"1e999",
    b"-1",
)
NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 7, 31, 64, 255, 1 << 16, 1 << 31, -(1 << 31), 1 << 63, 1 << 64, 10**30, 10**400, 0.5, -0.0, 1e-320,
    1e308, float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
TEXTS = (
    "", " ", "\x00", "\x1b]0;owned\x07", "\u202e gnp.exe", "\ud800", "[/red]", "[link=file:///etc]", "../../../x",
    "/etc/passwd", "a" * 10_000, "ä" * 300, "%s%n{0}", "re:(", "re:(a+)+$", "-:x", "+:(", "self", "hub:", "1e9", "None",
)  # fmt: skip
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"": None}, [{}] * 3)
DEEP = 5_000


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few flips, cuts, insertions, repetitions."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place, length = rng.randrange(len(changed) + 1), rng.choice((1, 1, 2, 8, 64))
        match rng.randrange(6):
            case 0 if changed:
                changed[place % len(changed)] ^= 1 << rng.randrange(8)
            case 1:
                del changed[place : place + length]
            case 2:
                changed[place:place] = rng.choice(BYTES)
            case 3:
                changed[place:place] = rng.randbytes(length)
            case 4:
                changed[place:place] = changed[place : place + length] * rng.choice((1, 2, 50))
            case _:
                changed = changed[:place] if rng.random() < 0.3 else changed
    return bytes(changed)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """One to three values exchanged, removed or added; now and then the bytes themselves."""
    if rng.random() < 0.15:
        return mutate_bytes(data, rng)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = changed_value(value, rng)
    return dumped(value)


def dumped(value: Any) -> bytes:
    """As JSON, surrogates and all."""
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * DEEP + b"]" * DEEP


def changed_value(value: Any, rng: random.Random) -> Any:
    """`value` with something in it exchanged."""
    inside = isinstance(value, dict | list) and value and rng.random() < 0.85
    if not inside:
        return odd_value(value, rng)
    if isinstance(value, list):
        place = rng.randrange(len(value))
        if rng.random() < 0.2:
            return [*value[:place], *value[place + 1 :]]
        if rng.random() < 0.1:
            return [*value, *value]
        return [*value[:place], changed_value(value[place], rng), *value[place + 1 :]]
    key = rng.choice(list(value))
    if rng.random() < 0.15:
        return {name: item for name, item in value.items() if name != key}
    if rng.random() < 0.1:
        return {rng.choice(TEXTS) if name == key else name: item for name, item in value.items()}
    return {**value, key: changed_value(value[key], rng)}


def odd_value(value: Any, rng: random.Random) -> Any:
    """Something in the place of `value`, often of its own type."""
    choice = rng.random()
    if choice < 0.35 and isinstance(value, int | float):
        return rng.choice((value + 1, value - 1, value * 2, -value, value // 2 if value == value else 0, *NUMBERS))
    if choice < 0.5 and isinstance(value, str):
        place = rng.randrange(len(value) + 1)
        return value[:place] + rng.choice(TEXTS) + value[place:]
    if choice < 0.53:
        nested: Any = value
        for _ in range(rng.choice((3, 100, 900))):
            nested = [nested] if rng.random() < 0.5 else {"a": nested}
        return nested
    return rng.choice((*NUMBERS, *TEXTS, *OTHERS))


def mutate_header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header, or other bytes."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.3 or length > len(data):
        return mutate_bytes(data, rng)
    header = mutate_json(data[8 : 8 + length], rng)
    stated = len(header) if rng.random() < 0.9 else rng.choice((0, 1, max(0, len(header) - 1), 1 << 30, (1 << 64) - 1))
    return stated.to_bytes(8, "little", signed=False) + header + data[8 + length :]


def mutate_lines(data: bytes, rng: random.Random) -> bytes:
    """A file of JSON lines with one of them changed, gone, doubled, moved or torn."""
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            del lines[place]
        case 1:
            lines.insert(rng.randrange(len(lines)), lines[place])
        case 2:
            lines[place] = lines[place][: rng.randrange(len(lines[place]) + 1)]
        case 3:
            rng.shuffle(lines)
        case _:
            lines[place] = mutate_json(lines[place], rng)
    return b"\n".join(lines)


def mutate_words(words: Sequence[str]) -> Mutator:
    """Text in a language of these words: some are put in, taken out, exchanged."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.2:
            return mutate_bytes(data, rng)
        text = data.decode("utf-8", "replace")
        for _ in range(rng.choice((1, 1, 2, 5))):
            place, length = rng.randrange(len(text) + 1), rng.choice((0, 0, 1, 5, 20))
            text = text[:place] + rng.choice(words) + text[place + length :]
        return text.encode()

    return mutate


def crossed(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """The beginning of one input and the end of another."""
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]
