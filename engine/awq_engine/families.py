"""Experts of a mixture taken together: what holds for the linears of one holds for the same linears of all.

A block with 128 experts has 256 groups of linears that read the same tensor. Probed one by one they would cost
thousands of passes, and experts that no token of the probe reaches could not be probed at all. Experts run the same
code, so their groups are one family: folds are probed on all at once, statistics of as many as fit in memory come from
one pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn

from awq_engine.experts import ExpertLinear, expert_linears
from awq_engine.folds import Fold, InputGroup
from awq_engine.recipe import MOMENT_BYTES
from awq_engine.statistics import InputStatistics

Family = tuple[InputGroup, ...]
"""Groups of alike experts, or a single group of other linears."""
FEW = 0.25
"""Tokens per input below which an expert's own statistics say too little about it."""


def families(block: nn.Module, groups: Iterable[InputGroup], names: Iterable[str]) -> list[Family]:
    """The groups in the order of their first members, each with its like of every expert in `names`, traced or not."""
    experts, chosen = expert_linears(block), set(names)
    found: dict[object, dict[int, InputGroup]] = {}
    for group in groups:
        first = experts.get(group.consumers[0])
        if first is None:
            found[group.consumers] = {0: group}
        else:
            found.setdefault((first.owner, first.name), {})[first.number] = group
    return [_completed(members, experts, chosen) for members in found.values()]


def _completed(members: dict[int, InputGroup], experts: Mapping[str, ExpertLinear], chosen: set[str]) -> Family:
    traced = next(iter(members.values()))
    first = experts.get(traced.consumers[0])
    if first is None:
        return tuple(members.values())
    for expert in experts.values():
        if (expert.owner, expert.name) == (first.owner, first.name) and expert.number not in members:
            group = like(traced, expert.number, experts)
            if chosen.issuperset(group.consumers):
                members[expert.number] = group
    return tuple(group for _, group in sorted(members.items()))


def like(group: InputGroup, number: int, experts: Mapping[str, ExpertLinear]) -> InputGroup:
    """The same group of another expert."""
    consumers = tuple(_renamed(name, number, experts) for name in group.consumers)
    return InputGroup(consumers, group.in_features, tuple(_renamed(name, number, experts) for name in group.earlier))


def folds_like(fold: Fold, family: Sequence[InputGroup], experts: Mapping[str, ExpertLinear]) -> list[Fold]:
    """The fold of a family's first group, for each of its groups."""
    folds = []
    for group in family:
        expert = experts.get(group.consumers[0])
        producer = fold.producer if expert is None else _renamed(fold.producer, expert.number, experts)
        folds.append(dataclasses.replace(fold, producer=producer, consumers=group.consumers))
    return folds


def _renamed(name: str, number: int, experts: Mapping[str, ExpertLinear]) -> str:
    return f"{experts[name].owner}.{number}.{experts[name].name}" if name in experts else name


def held_at_once(family: Family) -> Iterator[Family]:
    """A family in slices whose moments fit into `MOMENT_BYTES`."""
    each = max(1, MOMENT_BYTES // (4 * family[0].in_features ** 2))
    for start in range(0, len(family), each):
        yield family[start : start + each]


def few_tokens(statistics: InputStatistics) -> bool:
    """Whether too few vectors were seen for the width of the linear."""
    return statistics.n_tokens < FEW * len(statistics.act_mean)


def stand_in(family: Family, experts: Mapping[str, ExpertLinear]) -> str:
    """What `settle_few` does, as the end of a sentence."""
    if _reads_expert(family, experts):
        return "is rounded as if all its inputs were alike."
    return "are rounded by what all experts read."


def _reads_expert(family: Family, experts: Mapping[str, ExpertLinear]) -> bool:
    """Whether the groups read what other linears of their experts give out."""
    return any(name in experts for name in family[0].earlier)


def settle_few(
    family: Family, statistics: list[InputStatistics], experts: Mapping[str, ExpertLinear]
) -> list[InputStatistics]:
    """Statistics with those of experts that saw too few tokens replaced.

    Where experts read the tokens themselves, all that their siblings read stands in for it. Channels inside an expert
    are its own and mean nothing in another, so there every channel counts alike.
    """
    if family[0].consumers[0] not in experts:
        return statistics
    total = sum(stats.n_tokens for stats in statistics)
    if _reads_expert(family, experts) or not total:
        width, device = len(statistics[0].act_mean), statistics[0].gram.device
        instead = InputStatistics(torch.eye(width, device=device), torch.ones(width, device=device), 0)
    else:
        gram, act_mean = torch.zeros_like(statistics[0].gram), torch.zeros_like(statistics[0].act_mean)
        for stats in statistics:
            gram.add_(stats.gram, alpha=stats.n_tokens / total)
            act_mean.add_(stats.act_mean, alpha=stats.n_tokens / total)
        instead = InputStatistics(gram, act_mean, 0)
    return [
        dataclasses.replace(instead, n_tokens=stats.n_tokens) if few_tokens(stats) else stats for stats in statistics
    ]
