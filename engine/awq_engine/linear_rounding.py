"""The rounding of one linear: drift, clip, round, and what each step loses.

Nothing but what is given decides the result, so linears that read the same inputs, and experts, can be rounded in any
order and in several processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from awq_engine.clip_search import choose_clip
from awq_engine.drift import correct_drift
from awq_engine.error_feedback import round_with_feedback_
from awq_engine.events import LinearQuantized
from awq_engine.quantize import (
    choose_qparams,
    group_ranges,
    round_to_grid,
    round_to_nearest,
    row_slices,
    to_int_weight,
)
from awq_engine.recipe import Recipe
from awq_engine.spec import QuantSpec
from awq_engine.statistics import InputStatistics
from awq_engine.two_sided_feedback import round_with_two_sided_feedback_
from awq_kernels.int_weight import IntWeight


@dataclass(frozen=True)
class LinearJob:
    """One linear, and all that decides how it is rounded."""

    block: int
    name: str
    spec: QuantSpec
    recipe: Recipe
    folded: torch.Tensor
    """The weight after folds, float32 [out, in]."""
    original: torch.Tensor
    """The weight as it was, of any float dtype."""
    columns: torch.Tensor
    """What folds multiplied the columns by, [in]."""
    units: torch.Tensor
    """What folds divided the rows by, [out]."""
    statistics: InputStatistics
    """Of the present inputs (folded)."""
    cross: torch.Tensor | None
    """E[p(x) x'^T] where drift is to be corrected."""
    output_grams: list[torch.Tensor] | None
    """Diagonal blocks of E[g g^T] in the units of the present outputs; only for `best`."""
    alpha: float | None
    """Of the channel scale, where there is one."""


@dataclass(frozen=True)
class RoundedLinear:
    """What comes of it."""

    weight: IntWeight
    event: LinearQuantized


def round_linears(jobs: list[LinearJob]) -> list[RoundedLinear]:
    """Some linears, one after the other."""
    return [round_linear(job) for job in jobs]


def round_linear(job: LinearJob) -> RoundedLinear:
    """Round one linear and measure what every step loses."""
    started = time.perf_counter()
    folded, kept, columns, units = job.folded, job.original, job.columns, job.units
    spec, stats = job.spec, job.statistics
    pieces = list(row_slices(folded))
    target = folded.clone() if job.cross is None else correct_drift(folded, stats, _wanted(job.cross, kept, units))

    def loss(rounded: Callable[[slice], torch.Tensor]) -> float:
        return stats.output_mse((rounded(rows) - folded[rows]) * units[rows, None] for rows in pieces)

    losses = {"rounding": stats.output_mse(_rounding_error(kept[rows], spec) * columns for rows in pieces)}
    qparams, clipped = choose_qparams(*group_ranges(target, spec), spec), 0.0
    if job.recipe.scales:
        losses["scale"] = loss(lambda rows: round_to_nearest(folded[rows], spec))
    if job.recipe.clips:
        qparams, clipped = choose_clip(target, stats, spec)
        losses["clip"] = loss(lambda rows: round_to_grid(target[rows], qparams.of(rows), spec))
    if job.recipe.feedback and job.output_grams is not None:
        round_with_two_sided_feedback_(target, stats, job.output_grams, qparams, spec)
    elif job.recipe.feedback:
        round_with_feedback_(target, stats, qparams, spec)
    else:
        for rows in pieces:
            target[rows] = round_to_grid(target[rows], qparams.of(rows), spec)
    if job.recipe.feedback:
        losses["feedback"] = loss(lambda rows: target[rows])
    plain_mse = _mean_square(_rounding_error(kept[rows], spec) for rows in pieces)
    final_mse = _mean_square((target[rows] - folded[rows]) * units[rows, None] / columns for rows in pieces)
    event = LinearQuantized(
        job.block, job.name, len(folded), folded.shape[1], losses, plain_mse, final_mse, clipped,
        time.perf_counter() - started, job.alpha, stats.n_tokens,
    )  # fmt: skip
    return RoundedLinear(to_int_weight(target, qparams, spec), event)


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
