"""The rounding of one block's linears, input group by input group: drift, clip, round, report.

Which of these steps are taken is the recipe's business; what a group reads is measured anew where the recipe wants
everything rounded before to be seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from awq_engine import events as e
from awq_engine.block_job import Bench, BlockJob, ones
from awq_engine.drift import Pairs, Projection, ReadPairs, as_they_are
from awq_engine.experts import ExpertLinear, expert_linears
from awq_engine.families import Family, few_tokens, settle_few, stand_in
from awq_engine.folds import InputGroup
from awq_engine.linear_rounding import LinearJob, round_linears
from awq_engine.quantize import row_slices
from awq_engine.rounded import Rounded
from awq_engine.routing import ExpertPairs, ReadExpertPairs
from awq_engine.runtime import with_memory
from awq_engine.statistics import InputStatistics, Moments, ReadOnlyInput


def round_groups(
    job: BlockJob, bench: Bench, groups: Family, held: dict[str, InputStatistics], rounded: Rounded
) -> None:
    """Clip and round the linears of some groups.

    Args:
        held: what groups read in the original block; what is not there is taken from the block as it is now.
        rounded: what is rounded already; these groups' linears are added.
    """
    experts = expert_linears(job.block)
    found, crosses = _observe(job, bench, groups, held)
    _warn_of_few(job, groups, found, experts)
    statistics = settle_few(groups, found, experts)
    del found

    def linears() -> Iterator[list[LinearJob]]:
        for group in groups:
            stats, cross = statistics.pop(0), crosses.pop(0)  # nothing is kept of a group that is done
            if bench.output_grams and group.consumers[0] in experts and few_tokens(stats):
                bench.output_grams.drop(group.consumers)  # as few gradients say as little
            job.checkpoint_cancel()
            jobs = (_linear_job(job, bench, name, stats, cross) for name in group.consumers)
            yield from ([each] for each in jobs) if len(groups) == 1 else [list(jobs)]

    for results in job.workers.map(round_linears, linears()):
        for result in results:
            job.emit(with_memory(result.event))
            rounded.add(result.event.name, result.weight)


def _linear_job(
    job: BlockJob, bench: Bench, name: str, stats: InputStatistics, cross: torch.Tensor | None
) -> LinearJob:
    present = job.linear(name).weight.data
    units = bench.rows.get(name, ones(present[:, 0]))
    return LinearJob(
        job.index, name, job.specs[name], job.recipe, present, bench.originals[f"{name}.weight"],
        bench.columns.get(name, ones(present[0])), units, stats, cross, _folded_grams(bench, name, units),
        bench.alphas.get(name),
    )  # fmt: skip


def _scaled(bench: Bench, first: str, held: dict[str, InputStatistics]) -> InputStatistics | None:
    """What a group reads now that folds were applied; given up by `held`, where memory is short."""
    stats = held.pop(first, None)
    columns = bench.columns.get(first)
    return stats if stats is None or columns is None else stats.scaled(columns)


def _observe(
    job: BlockJob, bench: Bench, groups: Family, held: dict[str, InputStatistics]
) -> tuple[list[InputStatistics], list[torch.Tensor | None]]:
    """What the groups read, and for each E[p(x) x'^T] where its drift is to be corrected and can be told (`drift`)."""
    scaled = [_scaled(bench, group.consumers[0], held) for group in groups]
    known = [statistics for statistics in scaled if statistics is not None]
    if len(known) == len(groups):
        return known, [None] * len(groups)
    if not job.recipe.drift or job.original is None:
        return _present_statistics(job, bench, groups), [None] * len(groups)
    projections = {group.consumers[0]: _projection(job, bench, group) for group in groups}
    passes, first = job.passes(bench.originals), groups[0].consumers[0]
    if len(groups) > 1 or first in expert_linears(job.block):
        pairs = passes.add_up(ReadExpertPairs(projections), ExpertPairs())
        means = [pairs.means(name, job.linear(name)) for name in projections]
        return [s for s, _ in means], [None if few_tokens(s) else cross for s, cross in means]
    read = ReadPairs(first, bench.calls.get(first, 0), projections[first])
    statistics, cross = passes.add_up(read, Pairs()).means(job.linear(first))
    return [statistics], [cross]


def _projection(job: BlockJob, bench: Bench, group: InputGroup) -> Projection:
    """To the original outputs where they are narrower than the inputs, and so is what they leave in memory."""
    name, *others = group.consumers
    if others or job.linear(name).out_features >= group.in_features:
        return as_they_are
    return _OriginalOutputs(bench.originals[f"{name}.weight"], bench.rows.get(name))


@dataclass(frozen=True)
class _OriginalOutputs:
    """What the original linear makes of x, float32 [tokens, in], in the units of its present outputs: [tokens, out]."""

    weight: torch.Tensor
    units: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        outputs = torch.cat([x @ self.weight[rows].float().T for rows in row_slices(self.weight)], -1)
        return outputs if self.units is None else outputs.div_(self.units)


def _warn_of_few(
    job: BlockJob, groups: Family, found: list[InputStatistics], experts: Mapping[str, ExpertLinear]
) -> None:
    """Say which experts saw too few tokens, and what their linears are rounded by."""
    if groups[0].consumers[0] not in experts:
        return
    few = {experts[g.consumers[0]].number: s.n_tokens for g, s in zip(groups, found, strict=True) if few_tokens(s)}
    if not few:
        return
    roles = " and ".join(experts[name].name for name in groups[0].consumers)
    numbers = ", ".join(map(str, list(few)[:8])) + (", ..." if len(few) > 8 else "")
    job.emit(
        e.Warned(
            f"block {job.index}: {len(few)} of {len(groups)} experts ({numbers}) read only {min(few.values())} to "
            f"{max(few.values())} calibration tokens; their {roles} {stand_in(groups, experts)}"
        )
    )


def _present_statistics(job: BlockJob, bench: Bench, groups: Family) -> list[InputStatistics]:
    """Of what the groups read in the block as it is now; for one group, passes go no further than it."""
    first = groups[0].consumers[0]
    if len(groups) > 1 or first in expert_linears(job.block):
        return list(job.collect(groups).values())
    moments = job.passes().add_up(ReadOnlyInput(first, bench.calls.get(first, 0)), Moments())
    return [job.statistics_of(moments, first)]


def _folded_grams(bench: Bench, name: str, rows: torch.Tensor) -> list[torch.Tensor] | None:
    """The linear's output gradients' Gram matrix now that its rows are divided by `rows`."""
    if bench.output_grams is None or name not in bench.output_grams:
        return None
    grams = bench.output_grams.get(name, rows.device)
    blocks = rows.split([len(gram) for gram in grams])
    return [gram * block[:, None] * block for gram, block in zip(grams, blocks, strict=True)]
