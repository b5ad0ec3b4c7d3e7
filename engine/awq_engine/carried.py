"""What decoder blocks hand on beside the hidden states.

Some architectures let later blocks read what an earlier one made: keys and values kept in a mapping that all blocks
are called with (Gemma 3n, Gemma 4), or something that a block returns after the hidden states and the next one is
called with (the indices of a sparse attention). Such arguments are not the same whenever a block runs, so a captured
call holds a placeholder for them, and every stream of hidden states carries its own values.

A block runs many times while it is being quantized. What it leaves to later blocks is kept from its first run, which is
with its original weights, until a run is declared final; every other run works on a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Mapping:
    """Stands for one of the mappings that all blocks are called with."""

    number: int


@dataclass(frozen=True)
class Returned:
    """Stands for what the block before returned at this place after the hidden states."""

    position: int


@dataclass(frozen=True)
class Carried:
    """The values of the placeholders for one batch."""

    mappings: tuple[MutableMapping[Any, Any], ...] = ()
    returned: tuple[Any, ...] = ()

    def copy(self) -> Carried:
        """The same with mappings that can be written to."""
        return Carried(tuple(copy.copy(mapping) for mapping in self.mappings), self.returned)

    def fill(self, value: Any) -> Any:
        """The argument that a placeholder stands for; any other value as it is."""
        if isinstance(value, Mapping):
            return self.mappings[value.number]
        return self.returned[value.position] if isinstance(value, Returned) else value

    def tensors(self) -> list[torch.Tensor]:
        """All tensors, in a fixed order."""
        return list(_tensors([*(mapping[key] for mapping in self.mappings for key in mapping), self.returned]))

    def to(self, device: torch.device) -> Carried:
        """All tensors on `device`."""
        for mapping in self.mappings:
            for key in list(mapping):
                mapping[key] = _moved(mapping[key], device)
        return Carried(self.mappings, _moved(self.returned, device))


class Handover:
    """What passes from block to block in one stream, batch by batch."""

    def __init__(self, first: list[Carried], index: int = 0) -> None:
        """`first` is what enters block `index`, by batch."""
        self._index = index
        self._entering = first
        self._leaving: list[Carried | None] = [None] * len(first)

    def fork(self) -> Handover:
        """A stream of its own from here on."""
        return Handover(list(self._entering))

    def entering(self, index: int, batch: int) -> Carried:
        """A copy of what block `index` is given; blocks are asked about in their order."""
        if index != self._index:
            self._entering = [after or before for after, before in zip(self._leaving, self._entering, strict=True)]
            self._leaving = [None] * len(self._entering)
            self._index = index
        return self._entering[batch].copy()

    def left(self, batch: int) -> Carried | None:
        """What the present block left; None before it ran."""
        return self._leaving[batch]

    def leave(self, batch: int, carried: Carried, final: bool) -> None:
        """Keep what the block left, if it is its first run on the batch or the final one."""
        if final or self._leaving[batch] is None:
            self._leaving[batch] = carried


class Linker:
    """Finds the arguments that need placeholders during one capturing pass."""

    def __init__(self, tail: tuple[Any, ...] | None) -> None:
        """`tail` is what blocks return after the hidden states, None for a bare tensor."""
        self._tail = tail
        self._given: tuple[Any, ...] = ()
        self._found: list[MutableMapping[Any, Any]] = []

    def link(self, value: Any) -> Any:
        """A placeholder for an argument that depends on earlier blocks, or the value itself."""
        if isinstance(value, MutableMapping):
            if not any(value is known for known in self._found):
                self._found.append(value)
            return Mapping(next(number for number, known in enumerate(self._found) if known is value))
        matches = [p for p, given in enumerate(self._given) if given is value and isinstance(value, torch.Tensor)]
        return Returned(matches[0]) if matches else value

    def tail(self) -> tuple[Any, ...] | None:
        """What the next block shall return after the hidden states: values that can be told from all others."""
        if self._tail is None:
            return None
        self._given = tuple(value.clone() if isinstance(value, torch.Tensor) else value for value in self._tail)
        return self._given

    def carried(self, shared: Callable[[Any], Any]) -> Carried:
        """What enters the first block; `shared` is applied to every value."""
        mappings = tuple(copy.copy(mapping) for mapping in self._found)
        for mapping in mappings:
            for key in list(mapping):
                mapping[key] = shared(mapping[key])
        return Carried(mappings)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(_moved(item, device) for item in value)
    return value
