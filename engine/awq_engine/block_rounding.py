"""The rounding of one block's linears, input group by input group: drift, clip, round, report.

Which of these steps are taken is the recipe's business; what a group reads is measured anew where the recipe wants
everything rounded before to be seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

import torch

from awq_engine import events as e
from awq_engine.block_job import Bench, BlockJob, ones
from awq_engine.clip_search import choose_clip
from awq_engine.drift import Projection, as_they_are, collect_drift, correct_drift
from awq_engine.error_feedback import round_with_feedback_
from awq_engine.experts import ExpertLinear, expert_linears
from awq_engine.families import Family, few_tokens, settle_few, stand_in
from awq_engine.folds import InputGroup
from awq_engine.quantize import (
    QParams,
    choose_qparams,
    group_ranges,
    round_to_grid,
    round_to_nearest,
    row_slices,
    to_int_weight,
)
from awq_engine.rounded import Rounded
from awq_engine.routing import collect_expert_drift
from awq_engine.spec import QuantSpec
from awq_engine.statistics import InputStatistics, Tap
from awq_engine.two_sided_feedback import round_with_two_sided_feedback_
from awq_kernels.int_weight import IntWeight


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
    for group in groups:
        stats, cross = statistics.pop(0), crosses.pop(0)  # nothing is kept of a group that is done
        for name in group.consumers:
            job.checkpoint_cancel()
            if bench.output_grams and name in experts and few_tokens(stats):
                bench.output_grams.drop(name)  # as few gradients say as little
            rounded.add(name, _round_linear(job, bench, name, stats, cross))


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
        return _present_statistics(job, groups), [None] * len(groups)
    firsts = {group.consumers[0]: job.linear(group.consumers[0]) for group in groups}
    projections = [_projection(job, bench, group) for group in groups]
    streams = (job.inputs, job.original, job.index)
    if len(groups) > 1 or next(iter(firsts)) in expert_linears(job.block):
        found, crosses = collect_expert_drift(job.block, bench.originals, firsts, *streams, projections)
        return found, [None if few_tokens(stats) else cross for stats, cross in zip(found, crosses, strict=True)]
    (linear,) = firsts.values()
    statistics, cross = collect_drift(job.block, bench.originals, linear, *streams, projections[0])
    return [statistics], [cross]


def _projection(job: BlockJob, bench: Bench, group: InputGroup) -> Projection:
    """To the original outputs where they are narrower than the inputs, and so is what they leave in memory."""
    name, *others = group.consumers
    if others or job.linear(name).out_features >= group.in_features:
        return as_they_are
    return lambda x: _original_outputs(bench, name, x)


def _original_outputs(bench: Bench, name: str, x: torch.Tensor) -> torch.Tensor:
    """What the original linear makes of x, float32 [tokens, in], in the units of its present outputs: [tokens, out]."""
    weight = bench.originals[f"{name}.weight"]
    outputs = torch.cat([x @ weight[rows].float().T for rows in row_slices(weight)], -1)
    return outputs.div_(bench.rows[name]) if name in bench.rows else outputs


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
        cross: E[p(x) x'^T] where drift is to be corrected.
    """
    started = time.perf_counter()
    linear, spec, kept = job.linear(name), job.specs[name], bench.originals[f"{name}.weight"]
    folded = linear.weight.data
    columns, units = bench.columns.get(name, ones(folded[0])), bench.rows.get(name, ones(folded[:, 0]))
    pieces = list(row_slices(folded))
    target = folded.clone() if cross is None else correct_drift(folded, stats, _wanted(cross, kept, units))

    def loss(rounded: Callable[[slice], torch.Tensor]) -> float:
        return stats.output_mse((rounded(rows) - folded[rows]) * units[rows, None] for rows in pieces)

    losses = {"rounding": stats.output_mse(_rounding_error(kept[rows], spec) * columns for rows in pieces)}
    qparams, clipped = choose_qparams(*group_ranges(target, spec), spec), 0.0
    if job.recipe.scales:
        losses["scale"] = loss(lambda rows: round_to_nearest(folded[rows], spec))
    if job.recipe.clips:
        qparams, clipped = choose_clip(target, stats, spec)
        losses["clip"] = loss(lambda rows: round_to_grid(target[rows], qparams.of(rows), spec))
    if job.recipe.feedback:
        _feed_back_(target, stats, _folded_grams(bench, name, units), qparams, spec)
        losses["feedback"] = loss(lambda rows: target[rows])
    else:
        for rows in pieces:
            target[rows] = round_to_grid(target[rows], qparams.of(rows), spec)
    plain_mse = _mean_square(_rounding_error(kept[rows], spec) for rows in pieces)
    final_mse = _mean_square((target[rows] - folded[rows]) * units[rows, None] / columns for rows in pieces)
    job.emit(
        e.LinearQuantized(
            job.index, name, linear.out_features, linear.in_features, losses, plain_mse, final_mse, clipped,
            time.perf_counter() - started, bench.alphas.get(name), stats.n_tokens,
        )
    )  # fmt: skip
    return to_int_weight(target, qparams, spec)


def _wanted(cross: torch.Tensor, kept: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    """E[o x'^T], float32 [out, in], from E[p(x) x'^T]: o = W x are the original outputs in the present units."""
    if len(cross) < cross.shape[1]:
        return cross
    wanted = torch.empty(kept.shape, device=cross.device)
    for rows in row_slices(kept):
        torch.mm(kept[rows].float() / units[rows, None], cross, out=wanted[rows])
    return wanted


def _rounding_error(rows: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    """What plain rounding does to some rows, float32."""
    rows = rows.float()
    return round_to_nearest(rows, spec).sub_(rows)


def _mean_square(pieces: Iterable[torch.Tensor]) -> float:
    """Of all numbers in rows of one weight, taken piece by piece."""
    return float(torch.cat([piece.square().mean(1) for piece in pieces]).mean())


def _folded_grams(bench: Bench, name: str, rows: torch.Tensor) -> list[torch.Tensor] | None:
    """The linear's output gradients' Gram matrix now that its rows are divided by `rows`."""
    if bench.output_grams is None or name not in bench.output_grams:
        return None
    grams = bench.output_grams.get(name, rows.device)
    blocks = rows.split([len(gram) for gram in grams])
    return [gram * block[:, None] * block for gram, block in zip(grams, blocks, strict=True)]


def _feed_back_(
    target: torch.Tensor, stats: InputStatistics, grams: list[torch.Tensor] | None, qparams: QParams, spec: QuantSpec
) -> None:
    """Round `target` in its place."""
    if grams is None:
        round_with_feedback_(target, stats, qparams, spec)
    else:
        round_with_two_sided_feedback_(target, stats, grams, qparams, spec)
