"""The rounding of one block's linears, input group by input group: drift, clip, round, report.

Which of these steps are taken is the recipe's business; what a group reads is measured anew where the recipe wants
everything rounded before to be seen.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from awq_engine import events as e
from awq_engine.block_job import Bench, BlockJob, ones
from awq_engine.clip_search import choose_clip
from awq_engine.drift import collect_cross_statistics, correct_drift
from awq_engine.error_feedback import round_with_feedback
from awq_engine.experts import ExpertLinear, expert_linears
from awq_engine.families import Family, few_tokens, settle_few, stand_in
from awq_engine.quantize import (
    QParams,
    choose_qparams,
    group_ranges,
    round_to_grid,
    round_to_nearest,
    to_int_weight,
)
from awq_engine.routing import collect_expert_cross_statistics
from awq_engine.spec import QuantSpec
from awq_engine.statistics import InputStatistics, Tap
from awq_engine.two_sided_feedback import round_with_two_sided_feedback
from awq_kernels.int_weight import IntWeight


def round_groups(job: BlockJob, bench: Bench, groups: Family, held: dict[str, InputStatistics]) -> dict[str, IntWeight]:
    """Clip and round the linears of some groups; the block gets the rounded weights.

    Args:
        held: what groups read in the original block; what is not there is taken from the block as it is now.
    """
    experts = expert_linears(job.block)
    found = [_scaled(bench, name, held) for name in (group.consumers[0] for group in groups)]
    if None in found:
        found = _present_statistics(job, groups)
    statistics = [stats for stats in found if stats is not None]
    _warn_of_few(job, groups, statistics, experts)
    statistics = settle_few(groups, statistics, experts)
    crosses = _cross_statistics(job, bench, groups, statistics)
    weights = {}
    for group, stats, cross in zip(groups, statistics, crosses, strict=True):
        for name in group.consumers:
            job.checkpoint_cancel()
            if name in experts and few_tokens(stats):
                bench.output_grams.pop(name, None)  # as few gradients say as little
            weights[name] = _round_linear(job, bench, name, stats, cross)
    return weights


def _scaled(bench: Bench, first: str, held: dict[str, InputStatistics]) -> InputStatistics | None:
    """What a group reads now that folds were applied; given up by `held`, where memory is short."""
    stats = held.pop(first, None)
    columns = bench.columns.get(first)
    return stats if stats is None or columns is None else stats.scaled(columns)


def _cross_statistics(
    job: BlockJob, bench: Bench, groups: Family, statistics: list[InputStatistics]
) -> list[torch.Tensor | None]:
    """E[x_present x_original^T] for each group where drift is to be corrected and can be told, else None."""
    nothing: list[torch.Tensor | None] = [None] * len(groups)
    if not job.recipe.drift or job.original is None:
        return nothing
    firsts = [group.consumers[0] for group in groups]
    if len(groups) == 1 and firsts[0] not in expert_linears(job.block):
        if not statistics[0].n_tokens:
            return nothing
        first = job.linear(firsts[0])
        return [collect_cross_statistics(job.block, bench.originals, first, job.inputs, job.original, job.index)]
    found = collect_expert_cross_statistics(job.block, bench.originals, firsts, job.inputs, job.original, job.index)
    return [None if few_tokens(stats) else cross for stats, cross in zip(statistics, found, strict=True)]


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


def _present_statistics(job: BlockJob, groups: Family) -> list[InputStatistics]:
    """Of what the groups read in the block as it is now; for one group, passes go no further than it."""
    first, *others = groups
    if others:
        return list(job.collect(groups).values())
    tap = Tap(job.linear(first.consumers[0]))

    def forward() -> None:
        for batch in range(len(job.inputs)):
            tap.read(lambda batch=batch: job.inputs.output(job.block, job.index, batch))

    return list(job.collect(groups, forward).values())


def _round_linear(
    job: BlockJob, bench: Bench, name: str, stats: InputStatistics, cross: torch.Tensor | None
) -> IntWeight:
    """Round one linear and report every step's loss.

    Args:
        stats: of the linear's present inputs (folded).
        cross: E[x_present x_original^T] where drift is to be corrected.
    """
    started = time.perf_counter()
    linear, spec = job.linear(name), job.specs[name]
    folded = linear.weight.data.clone()
    original = bench.originals[f"{name}.weight"]
    columns = bench.columns.get(name, ones(linear.weight[0]))
    rows = bench.rows.get(name, ones(linear.weight[:, 0]))
    target = folded if cross is None else correct_drift(folded, original / rows[:, None], stats, cross)

    def loss(rounded: torch.Tensor) -> float:
        return stats.output_mse((rounded - folded) * rows[:, None])

    plain = round_to_nearest(original, spec) - original
    losses = {"rounding": stats.output_mse(plain * columns)}
    qparams, clipped = choose_qparams(*group_ranges(target, spec), spec), 0.0
    if job.recipe.scales:
        losses["scale"] = loss(round_to_nearest(folded, spec))
    if job.recipe.clips:
        qparams, clipped = choose_clip(target, stats, spec)
    rounded = round_to_grid(target, qparams, spec)
    if job.recipe.clips:
        losses["clip"] = loss(rounded)
    if job.recipe.feedback:
        rounded = _feed_back(target, stats, _folded_grams(bench, name, rows), qparams, spec)
        losses["feedback"] = loss(rounded)
    linear.weight.data.copy_(rounded)
    error = (rounded - folded) * rows[:, None] / columns
    job.emit(
        e.LinearQuantized(
            job.index, name, linear.out_features, linear.in_features, losses, float(plain.square().mean()),
            float(error.square().mean()), clipped, time.perf_counter() - started, bench.alphas.get(name),
            stats.n_tokens,
        )
    )  # fmt: skip
    return to_int_weight(rounded, qparams, spec)


def _folded_grams(bench: Bench, name: str, rows: torch.Tensor) -> list[torch.Tensor] | None:
    """The linear's output gradients' Gram matrix now that its rows are divided by `rows`."""
    if name not in bench.output_grams:
        return None
    grams = bench.output_grams.pop(name)
    blocks = rows.split([len(gram) for gram in grams])
    return [gram * block[:, None] * block for gram, block in zip(grams, blocks, strict=True)]


def _feed_back(
    target: torch.Tensor, stats: InputStatistics, grams: list[torch.Tensor] | None, qparams: QParams, spec: QuantSpec
) -> torch.Tensor:
    if grams is None:
        return round_with_feedback(target, stats, qparams, spec)
    return round_with_two_sided_feedback(target, stats, grams, qparams, spec)
