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
Numbers = tuple[str, ...]
"""What stood in a name's holes."""
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


def outside_blocks(linears: Collection[str]) -> list[str]:
    """Those of `linears` that are in no numbered block; of quantized ones that is the output head."""
    return [key for key in linears if not any(word.isdecimal() for word in key.split("."))]


def name_patterns(wanted: Collection[str], linears: Collection[str], *, containers: bool = False) -> list[str]:
    """Expressions that fit exactly the linears `wanted` among `linears`.

    Args:
        containers: whether the module that holds a block's experts is to be fitted with them.
    """
    found: dict[_Shape, set[Numbers]] = {}
    present: dict[_Shape, set[Numbers]] = {}
    outside = set(outside_blocks(linears))
    numbered = [key for key in linears if key not in outside]
    alone = [_outer_pattern(key, linears) for key in linears if key in wanted and key in outside]
    roles = dict.fromkeys([*filter(None, map(_expert_role, numbered)), *EXPERT_ROLES])
    for keys in by_site(numbered).values():
        if all(key in wanted for key in keys):
            chosen = [_site_shape(keys, [*roles], containers)]
        else:
            chosen = [_split(key) for key in keys if key in wanted]
        for shape, numbers in chosen:
            found.setdefault(shape, set()).add(numbers)
        shape, numbers = _site_shape(keys, [*roles], containers)
        present.setdefault(shape, set()).add(numbers)
    for shape in found:
        present.setdefault(shape, set())
    _count_single(numbered, present)
    return alone + [text for shape, numbers in found.items() for text in _expressions(shape, numbers, present[shape])]


def _outer_pattern(key: str, linears: Collection[str]) -> str:
    """For a linear outside the blocks: as many of its last words as no other linear ends with."""
    words = key.split(".")
    ends = (".".join(words[-count:]) for count in range(1, len(words) + 1))
    unlike = (end for end in ends if not any(f".{other}".endswith(f".{end}") for other in linears if other != key))
    end = next(unlike, None)
    return f"{re.escape(key)}$" if end is None else f"{_BEFORE}{re.escape(end)}$"


def _expert_role(key: str) -> str:
    """What an expert calls one of its linears; "" for other linears."""
    return key.partition(EXPERTS)[2].partition(".")[2]


def _count_single(linears: Collection[str], present: dict[_Shape, set[Numbers]]) -> None:
    """Add what each linear would fill the holes of a shape with, to all shapes that it would fit."""
    by_end: dict[tuple[str, str], list[set[Numbers]]] = {}
    for shape, numbers in present.items():
        for end in shape.ends:
            by_end.setdefault((shape.name, end), []).append(numbers)
    for key in linears:
        shape, numbers = _split(key)
        for known in by_end.get((shape.name, shape.ends[0]), []):
            known.add(numbers)


def _split(key: str) -> tuple[_Shape, Numbers]:
    """A name with holes, and what stood in them; the list of blocks is the word before the first number."""
    words = key.split(".")
    first = next(index for index, word in enumerate(words) if word.isdecimal())
    words = words[max(0, first - 1) :]
    name = ".".join(_HOLE if word.isdecimal() else word for word in words[:-1])
    return _Shape(name, (re.escape(words[-1]),)), tuple(word for word in words if word.isdecimal())


def _site_shape(keys: list[str], expert_roles: list[str], containers: bool) -> tuple[_Shape, Numbers]:
    """For linears that a server joins, or all experts of a block."""
    if EXPERTS in keys[0]:
        shape, numbers = _split(keys[0].partition(EXPERTS)[0] + EXPERTS.rstrip("."))
        inside = "|".join(map(re.escape, expert_roles))
        optional = "?" if containers else ""
        return _Shape(shape.name, (rf"{shape.ends[0]}(?:\.{ANY_NUMBER}\.(?:{inside})){optional}",)), numbers
    shape, numbers = _split(keys[0])
    roles = [key.rpartition(".")[2] for key in keys]
    joined = joined_name(roles)
    return _Shape(shape.name, tuple(map(re.escape, [*roles, *([joined] if joined else [])]))), numbers


def _expressions(shape: _Shape, wanted: set[Numbers], present: set[Numbers]) -> Iterator[str]:
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


def _either(numbers: set[Numbers]) -> str:
    firsts = sorted({found[0] for found in numbers}, key=int)
    return firsts[0] if len(firsts) == 1 else f"(?:{'|'.join(firsts)})"


def _expression(shape: _Shape, numbers: list[str]) -> str:
    """The whole expression: what may stand before, the name with its holes filled, and its ends."""
    filled = iter(numbers)
    words = [next(filled) if word == _HOLE else re.escape(word) for word in shape.name.split(".") if word]
    end = shape.ends[0] if len(shape.ends) == 1 else f"(?:{'|'.join(shape.ends)})"
    return _BEFORE + r"\.".join([*words, end]) + "$"
