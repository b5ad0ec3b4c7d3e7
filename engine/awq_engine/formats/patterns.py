"""Linears named to readers by regular expressions: few of them, and good for a server's own names too.

Readers match an expression from the start of a module's name. A server may keep the language model under another prefix
than the checkpoint does, joins some linears into one (`fused.py`), and calls all experts of a block by the one module
that holds them; GPTQ rules and compressed-tensors targets are compared with those names. So an expression

    leaves open what stands before the list of blocks       (?:.*\\.)?layers\\.
    stands for many blocks where these are treated alike    (?:0|3) or \\d+
    has the joined name beside the parts'                   (?:q_proj|k_proj|v_proj|qkv_proj)

Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from awq_engine.fused import EXPERT_ROLES, EXPERTS, by_site, joined_name

ANY_NUMBER = r"\d+"
_BEFORE = r"(?:.*\.)?"
_HOLE = "#"
"""Stands for a number in a name; none has this character."""


@dataclass(frozen=True)
class _Shape:
    """A name with holes for its numbers, and the expressions that may stand at its end."""

    name: str
    """With the list of blocks as its first word: `layers.#.mlp`."""
    ends: tuple[str, ...]


def part_pattern(path: str) -> str:
    """An expression for everything under a part of the model, by the last word of its path."""
    return rf"{_BEFORE}{re.escape(path.rpartition('.')[2])}(?:\..*)?$"


def name_patterns(wanted: Collection[str], linears: Collection[str], *, containers: bool = False) -> list[str]:
    """Expressions that fit exactly the linears `wanted` among `linears`.

    Args:
        containers: whether the module that holds a block's experts is to be fitted with them.
    """
    found: dict[_Shape, set[tuple[str, ...]]] = {}
    present: dict[_Shape, set[tuple[str, ...]]] = {}
    for keys in by_site(linears).values():
        shape, numbers = _site_shape(keys, containers)
        present.setdefault(shape, set()).add(numbers)
        if all(key in wanted for key in keys):
            found.setdefault(shape, set()).add(numbers)
            continue
        for key in keys:
            shape, numbers = _split(key)
            present.setdefault(shape, set()).add(numbers)
            if key in wanted:
                found.setdefault(shape, set()).add(numbers)
    _complete(present, linears)
    return [pattern for shape, numbers in found.items() for pattern in _expressions(shape, numbers, present[shape])]


def _complete(present: dict[_Shape, set[tuple[str, ...]]], linears: Collection[str]) -> None:
    """Count linears of whole sites among those that a single linear's expression must not fit."""
    for key in linears:
        shape, numbers = _split(key)
        if shape in present:
            present[shape].add(numbers)


def _split(key: str) -> tuple[_Shape, tuple[str, ...]]:
    """A name with holes, and what stood in them; the list of blocks is the word before the first number."""
    words = key.split(".")
    first = next((index for index, word in enumerate(words) if word.isdecimal()), len(words))
    words = words[max(0, min(first, len(words) - 1) - 1) :] if first < len(words) else words[-1:]
    name = ".".join(_HOLE if word.isdecimal() else word for word in words[:-1])
    return _Shape(name, (re.escape(words[-1]),)), tuple(word for word in words if word.isdecimal())


def _site_shape(keys: list[str], containers: bool) -> tuple[_Shape, tuple[str, ...]]:
    if EXPERTS in keys[0]:
        container, _, _ = keys[0].partition(EXPERTS)
        shape, numbers = _split(f"{container}{EXPERTS.rstrip('.')}")
        roles = dict.fromkeys([key.partition(EXPERTS)[2].partition(".")[2] for key in keys])
        inside = "|".join(map(re.escape, dict.fromkeys([*roles, *EXPERT_ROLES])))
        optional = "?" if containers else ""
        return _Shape(shape.name, (rf"{shape.ends[0]}(?:\.{ANY_NUMBER}\.(?:{inside})){optional}",)), numbers
    shape, numbers = _split(keys[0])
    roles = [key.rpartition(".")[2] for key in keys]
    joined = joined_name(roles)
    return _Shape(shape.name, tuple(map(re.escape, [*roles, *([joined] if joined else [])]))), numbers


def _expressions(shape: _Shape, wanted: set[tuple[str, ...]], present: set[tuple[str, ...]]) -> Iterator[str]:
    """Expressions for a shape with these numbers in its holes, out of all that are present."""
    if wanted == present:
        yield _expression(shape, [ANY_NUMBER] * shape.name.count(_HOLE))
        return
    firsts = {numbers[:1] for numbers in wanted}
    if wanted == {numbers for numbers in present if numbers[:1] in firsts}:
        yield _expression(shape, [_either(wanted), *[ANY_NUMBER] * (shape.name.count(_HOLE) - 1)])
        return
    for rest in sorted({numbers[1:] for numbers in wanted}):
        yield _expression(shape, [_either({n for n in wanted if n[1:] == rest}), *rest])


def _either(numbers: set[tuple[str, ...]]) -> str:
    firsts = sorted({found[0] for found in numbers}, key=int)
    return firsts[0] if len(firsts) == 1 else f"(?:{'|'.join(firsts)})"


def _expression(shape: _Shape, numbers: list[str]) -> str:
    """The whole expression: what may stand before, the name with its holes filled, and its ends."""
    filled = iter(numbers)
    words = [next(filled) if word == _HOLE else re.escape(word) for word in shape.name.split(".") if word]
    end = shape.ends[0] if len(shape.ends) == 1 else f"(?:{'|'.join(shape.ends)})"
    return _BEFORE + r"\.".join([*words, end]) + "$"
