"""Expert by expert, what the tokens of now were before: the pairs that drift correction needs behind a router.

The quantized blocks before pass on other hidden states than the original ones, so a router does not always send a token
where it did originally, and the rows of an expert's inputs then and now are not the same tokens. What the expert would
originally have made of a token is the question, whoever sends it there: so the original computes with the present
routing. Mixtures hand their experts the routing as tensors of integers; these are noted in one pass and given back in
the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from awq_engine.drift import Pairs, Projection
from awq_engine.experts import expert_linears
from awq_engine.passes import Batch
from awq_engine.statistics import InputStatistics


@dataclass
class ExpertPairs:
    """Of several experts' linears, by name."""

    found: dict[str, Pairs] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    """Those whose tokens cannot be told: they come sorted, without their numbers."""

    def merge(self, other: ExpertPairs) -> None:
        for name, pairs in other.found.items():
            self.found.setdefault(name, Pairs()).merge(pairs)
        self.unknown |= other.unknown

    def means(self, name: str, linear: nn.Linear) -> tuple[InputStatistics, torch.Tensor | None]:
        """The statistics of what a linear reads, and E[p(x) x'^T] where there are pairs."""
        statistics, cross = self.found.get(name, Pairs()).means(linear)
        return statistics, None if name in self.unknown else cross


@dataclass(frozen=True)
class ReadExpertPairs:
    """Takes in what linears of experts read now, and what the original would have given them of the same tokens."""

    projections: Mapping[str, Projection]
    """By linear."""

    def __call__(self, batch: Batch, sums: ExpertPairs) -> None:
        names = list(self.projections)
        routing = _Routing(batch.block, names)
        with routing.noted():
            present = _read(batch.block, names, batch.output)
        with routing.given_back():
            before = _read(batch.block, names, batch.original_output)
        for name, x, old in zip(names, present, before, strict=True):
            if x is not None:
                sums.found.setdefault(name, Pairs()).add(x, old, self.projections[name], batch.token_weights())
        sums.unknown |= routing.unknown


def _read(block: nn.Module, names: Sequence[str], run: Callable[[], object]) -> list[torch.Tensor | None]:
    """What each linear reads while `run` runs, float32 [tokens, in]; None where it is not called."""
    caught: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    def hook(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def catch(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            caught[name].append(args[0].reshape(-1, args[0].shape[-1]).float())

        return catch

    handles = [block.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [torch.cat(calls) if calls else None for calls in caught.values()]


class _Routing:
    """Which tokens went to which experts of a block in one pass."""

    def __init__(self, block: nn.Module, names: Sequence[str]) -> None:
        experts = expert_linears(block)
        self._names = {name: experts[name].owner for name in names if name in experts}
        self._owners = {owner: block.get_submodule(owner) for owner in dict.fromkeys(self._names.values())}
        self._seen: dict[str, list[torch.Tensor]] = {}
        self._sorted: set[str] = set()

    @property
    def unknown(self) -> set[str]:
        """Linears whose experts got their tokens sorted, with a list of how many go to each."""
        return {name for name, owner in self._names.items() if owner in self._sorted}

    def noted(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the routing is remembered."""

        def note(owner: str) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
                self._seen[owner] = [arg for arg in args if _is_index(arg)]
                if any(isinstance(arg, list) for arg in args):
                    self._sorted.add(owner)

            return hook

        return self._hooked(note)

    def given_back(self) -> contextlib.AbstractContextManager[None]:
        """Inside, experts are called with the routing remembered."""

        def give(owner: str) -> Callable[..., tuple[Any, ...]]:
            def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
                seen = iter(self._seen[owner])
                return tuple(next(seen) if _is_index(arg) else arg for arg in args)

            return hook

        return self._hooked(give)

    @contextlib.contextmanager
    def _hooked(self, hook: Callable[[str], Callable[..., Any]]) -> Iterator[None]:
        handles = [module.register_forward_pre_hook(hook(owner)) for owner, module in self._owners.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _is_index(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.is_floating_point()
