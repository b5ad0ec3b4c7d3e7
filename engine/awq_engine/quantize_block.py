"""The recipe for one decoder block, top to bottom.

    group the linears by the tensor they read          folds.input_groups
    find and prove the folds                           folds.find_fold
    one pass over the calibration tokens               statistics.collect_statistics
    for each fold: choose a channel scale, apply it,   scale_search.choose_scale
        check that the block's function is unchanged
    for each linear: choose the clip, round            clip_search, error_feedback
    compare with plain rounding; keep the better

`fast` takes all statistics from the original block. `balanced` takes them again before each group is rounded, when the
groups before it are rounded already, moves the weights first, so that on these inputs they give what the original gave
on the original inputs (drift correction), and rounds with error feedback. `best` gives the feedback along rows and
columns, weighing outputs by the gradients of the model's prediction (sensitivity).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from awq_engine import events as e
from awq_engine.block_folds import fold_sites
from awq_engine.block_job import Bench, BlockJob, BlockResult
from awq_engine.block_rounding import round_groups
from awq_engine.families import Family, families, held_at_once
from awq_engine.folds import InputGroup, input_groups
from awq_engine.originals import Originals
from awq_engine.passes import Batch, Passes
from awq_engine.quantize import round_to_nearest, row_slices
from awq_engine.recipe import Recipe
from awq_engine.rounded import Rounded
from awq_engine.spill import Batches, copied
from awq_engine.statistics import InputStatistics, MomentsByName, ReadInputs
from awq_engine.uncalled import read_past_module, uncalled

CHECK_TOKENS = 4096
"""Calibration tokens on which a block is compared with plain rounding."""


@torch.no_grad()
def quantize_block(job: BlockJob) -> BlockResult:
    """Quantize one block; the block is left holding the dequantized weights."""
    bench = Bench(Originals(job.block))
    job = _leave_in_floats(job, bench.originals)
    traced = input_groups(job.block, list(job.specs), job.probe_forward)
    sites = families(job.block, traced, job.specs)
    sites += _alone(job, uncalled(job.specs, [group for family in sites for group in family]))
    if job.sensitivity is not None:
        bench.output_grams = job.sensitivity.output_grams(job.block, job.index, list(job.specs), job.workers)
    statistics, targets = _observe(job, bench, [group for family in sites for group in next(held_at_once(family))])
    loss_rounding = _loss_of_plain_rounding(job, bench, targets)
    if job.recipe.scales:
        fold_sites(job, bench, sites, statistics)
    if job.recipe.sequential:
        statistics.clear()  # they are taken again, site by site
    with Rounded(job.block) as rounded:
        for family in sites:
            for groups in held_at_once(family):
                round_groups(job, bench, groups, statistics, rounded)
        loss_final = _check_loss(job, targets)
        if not loss_final <= loss_rounding:
            reason = "plain rounding changes the block's output less"
            job.emit(e.BlockFellBack(job.index, reason, loss_rounding, loss_final))
            loss_final = loss_rounding
            _fall_back(job, bench, sites, rounded)
        rounded.fill()
        return BlockResult(rounded.weights, _changed_parameters(job, bench), targets, loss_rounding, loss_final)


@dataclass
class _Seen:
    """What a pass through the original block shows."""

    moments: MomentsByName = field(default_factory=MomentsByName)
    outputs: Batches = field(default_factory=list)

    def merge(self, other: _Seen) -> None:
        self.moments.merge(other.moments)
        for output in other.outputs:
            self.outputs.append(output)


@dataclass(frozen=True)
class _See:
    """Takes in what some linears read, and what the block gives out for the leading batches."""

    linears: Sequence[str]
    batches: int

    def __call__(self, batch: Batch, seen: _Seen) -> None:
        output = ReadInputs(self.linears)(batch, seen.moments)
        if batch.number < self.batches:
            seen.outputs.append(output)


def _observe(job: BlockJob, bench: Bench, groups: list[InputGroup]) -> tuple[dict[str, InputStatistics], Batches]:
    """What the groups read in the original block, by their first linear, and of its outputs as many as will be read."""
    firsts = [group.consumers[0] for group in groups]
    batches = len(job.inputs.first(CHECK_TOKENS)) if job.recipe.sequential else len(job.inputs)
    see = _See(firsts, 0 if job.original is not None else batches)
    seen = job.passes().add_up(see, _Seen(outputs=job.inputs.store()))
    bench.calls |= {name: moments.calls // len(job.inputs) for name, moments in seen.moments.found.items()}
    if job.original is not None:
        outputs = Passes(job.workers, job.block, job.index, job.original).outputs()
        seen.outputs = copied(outputs, job.inputs.store)
    return job.statistics(seen.moments, firsts), seen.outputs


def _leave_in_floats(job: BlockJob, originals: Originals) -> BlockJob:
    """The job without linears whose weights are read past their modules."""

    def forward() -> torch.Tensor:
        with originals.computing():
            return job.handed_on()

    floats = read_past_module(job.block, list(job.specs), forward)
    if floats:
        job.emit(
            e.Warned(f"block {job.index}: {', '.join(floats)} stays in floats; its weight is read past the module")
        )
    return replace(job, specs={name: spec for name, spec in job.specs.items() if name not in floats})


def _alone(job: BlockJob, names: list[str]) -> list[Family]:
    """Linears that never run, in groups of their own."""
    if names:
        job.emit(e.Warned(f"block {job.index}: calibration never calls {', '.join(names)}; rounded without data"))
    return [(InputGroup((name,), job.linear(name).in_features, ()),) for name in names]


def _loss_of_plain_rounding(job: BlockJob, bench: Bench, targets: Batches) -> float:
    """Block loss when nothing but rounding is done; the block is left as it was."""
    for name, spec in job.specs.items():
        weight = job.linear(name).weight.data
        for rows in row_slices(weight):
            weight[rows] = round_to_nearest(weight[rows], spec)
    loss = _check_loss(job, targets)
    bench.originals.restore()
    return loss


def _check_loss(job: BlockJob, targets: Batches) -> float:
    """MSE of the present block's output against `targets` on the leading calibration batches."""
    check = job.inputs.first(CHECK_TOKENS)
    squares = [
        (output - target).square().mean()
        for output, target in zip(check.outputs(job.block, job.index), targets, strict=False)
    ]
    return float(torch.stack(squares).mean())


def _fall_back(job: BlockJob, bench: Bench, sites: list[Family], rounded: Rounded) -> None:
    """Start the block over with plain rounding."""
    rounded.forget()
    bench.originals.restore()
    bench.columns.clear()
    bench.rows.clear()
    bench.alphas.clear()
    bench.folds.clear()
    plain = replace(job, recipe=Recipe())
    for family in sites:
        for groups in held_at_once(family):
            round_groups(plain, bench, groups, {}, rounded)


def _changed_parameters(job: BlockJob, bench: Bench) -> dict[str, torch.Tensor]:
    """What folds changed besides the weights that were quantized, as it will be stored."""
    quantized = {f"{name}.weight" for name in job.specs}
    changed: dict[str, torch.Tensor] = {}
    for touched in dict.fromkeys(name for fold in bench.folds for name in (fold.producer, *fold.passive)):
        for name, parameter in job.block.get_submodule(touched).named_parameters(prefix=touched, recurse=False):
            dtype = job.stored_dtype(name)
            if name not in quantized and dtype is not None:
                changed[name] = parameter.data.to(dtype).cpu()
    return changed
