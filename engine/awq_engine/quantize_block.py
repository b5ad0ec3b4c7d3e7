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

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from awq_engine import events as e
from awq_engine.capture import BlockInputs
from awq_engine.clip_search import choose_clip
from awq_engine.drift import collect_cross_statistics, correct_drift
from awq_engine.error_feedback import round_with_feedback
from awq_engine.folds import Fold, FoldKind, InputGroup, divide_producer, find_fold, input_groups, scale_consumers
from awq_engine.histogram import histogram, scale_statistics
from awq_engine.journal import EventSink
from awq_engine.originals import Originals
from awq_engine.quantize import (
    QParams,
    choose_qparams,
    group_ranges,
    round_to_grid,
    round_to_nearest,
    to_int_weight,
)
from awq_engine.recipe import Recipe
from awq_engine.scale_search import ScaleChoice, choose_scale
from awq_engine.sensitivity import Sensitivity
from awq_engine.spec import QuantSpec
from awq_engine.statistics import InputStatistics, Tap, collect_statistics
from awq_engine.two_sided_feedback import round_with_two_sided_feedback
from awq_engine.uncalled import read_past_module, uncalled
from awq_kernels.int_weight import IntWeight

INVARIANCE_TOLERANCE = 1e-4
"""Allowed change of the block's update by a fold, relative RMS; float32 noise is about 1e-6."""
CHECK_TOKENS = 8192
"""Calibration tokens on which a block is compared with plain rounding."""


@dataclass
class BlockJob:
    """One block with its weights loaded, and all that is needed to quantize it."""

    index: int
    block: nn.Module
    specs: dict[str, QuantSpec]
    """The linears to quantize, by their names inside the block, and how finely each is rounded."""
    inputs: BlockInputs
    """What the block reads: from the original model (`fast`) or from the quantized blocks before it."""
    original: BlockInputs | None
    """What the original block reads, where drift is to be corrected."""
    sensitivity: Sensitivity | None
    """Gradients of the model's prediction at this block's output; only for `best`."""
    probe: BlockInputs
    """One short sequence that has passed through the quantized blocks."""
    recipe: Recipe
    seed: int
    """Of the random scales that folds are probed with."""
    head_dim: int
    stored_dtype: Callable[[str], torch.dtype | None]
    """Parameter inside the block -> dtype it is stored in; None when it cannot be rewritten."""
    emit: EventSink
    checkpoint_cancel: Callable[[], None]
    """Raises when the run is to stop; called between steps."""


@dataclass
class BlockResult:
    """What comes out of a block."""

    weights: dict[str, IntWeight]
    """By linear name inside the block."""
    changed: dict[str, torch.Tensor]
    """Other parameters that folds changed, in the dtype they are stored in."""
    outputs: list[torch.Tensor]
    """Of the original block: the next block's inputs for `fast`, its original inputs where drift is corrected."""
    loss_rounding: float
    """MSE of the block's output under plain rounding."""
    loss_final: float


@dataclass
class _Bench:
    """The block on the workbench: original weights, and what has been folded so far."""

    originals: Originals
    columns: dict[str, torch.Tensor] = field(default_factory=dict)
    """By linear: what its input columns were multiplied by, [in]."""
    rows: dict[str, torch.Tensor] = field(default_factory=dict)
    """By linear: what its output rows were divided by, [out]."""
    output_grams: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    """By linear: E[g g^T] of the gradients at its original outputs, in diagonal blocks."""
    alphas: dict[str, float] = field(default_factory=dict)
    folds: list[Fold] = field(default_factory=list)


@torch.no_grad()
def quantize_block(job: BlockJob) -> BlockResult:
    """Quantize one block; the block is left holding the dequantized weights."""
    bench = _Bench(Originals(job.block))
    groups = input_groups(job.block, list(job.specs), lambda: _probe_forward(job))
    job, groups = _settle_uncalled(job, groups)
    if job.sensitivity is not None:
        bench.output_grams = job.sensitivity.output_grams(job.block, job.index, list(job.specs))
    statistics, targets = _observe(job, groups)
    loss_rounding = _loss_of_plain_rounding(job, bench, targets)
    if job.recipe.scales:
        for group, stats in zip(groups, statistics, strict=True):
            _fold_group(job, bench, group, stats)
    if job.recipe.sequential:
        statistics.clear()  # they are taken again, group by group
    weights: dict[str, IntWeight] = {}
    for group in groups:
        weights |= _round_group(job, bench, group, statistics.pop(0) if statistics else None)
    loss_final = _check_loss(job, targets)
    if not loss_final <= loss_rounding:
        reason = "plain rounding changes the block's output less"
        job.emit(e.BlockFellBack(job.index, reason, loss_rounding, loss_final))
        weights, loss_final = _fall_back(job, bench, groups), loss_rounding
    return BlockResult(weights, _changed_parameters(job, bench), targets, loss_rounding, loss_final)


def _observe(job: BlockJob, groups: list[InputGroup]) -> tuple[list[InputStatistics], list[torch.Tensor]]:
    """The input statistics of every group in the original block, and of its outputs as many as will be read."""
    outputs: list[torch.Tensor] = []
    enough = len(job.inputs.first(CHECK_TOKENS)) if job.recipe.sequential else len(job.inputs)

    def forward() -> None:
        for output in job.inputs.outputs(job.block, job.index):
            if job.original is None and len(outputs) < enough:
                outputs.append(output)

    statistics = collect_statistics(_firsts(job, groups), forward, job.inputs.token_weights)
    if job.original is not None:
        outputs.extend(job.original.outputs(job.block, job.index))
    return statistics, outputs


def _firsts(job: BlockJob, groups: list[InputGroup]) -> list[nn.Linear]:
    """One linear of each group: what it reads they all read."""
    return [_linear(job, group.consumers[0]) for group in groups]


def _settle_uncalled(job: BlockJob, groups: list[InputGroup]) -> tuple[BlockJob, list[InputGroup]]:
    """Linears that never run get groups of their own, or leave the job where they have to stay in floats."""
    idle = uncalled(job.specs, groups)
    floats = read_past_module(job.block, idle, lambda: job.probe.handed_on(job.block, job.index))
    unseen = [name for name in idle if name not in floats]
    if floats:
        job.emit(
            e.Warned(f"block {job.index}: {', '.join(floats)} stays in floats; its weight is read past the module")
        )
    if unseen:
        job.emit(e.Warned(f"block {job.index}: calibration never calls {', '.join(unseen)}; rounded without data"))
    specs = {name: spec for name, spec in job.specs.items() if name not in floats}
    alone = [InputGroup((name,), _linear(job, name).in_features, ()) for name in unseen]
    return replace(job, specs=specs), groups + alone


def _loss_of_plain_rounding(job: BlockJob, bench: _Bench, targets: list[torch.Tensor]) -> float:
    """Block loss when nothing but rounding is done; the block is left as it was."""
    for name, spec in job.specs.items():
        weight = _linear(job, name).weight.data
        weight.copy_(round_to_nearest(weight, spec))
    loss = _check_loss(job, targets)
    bench.originals.restore()
    return loss


def _check_loss(job: BlockJob, targets: list[torch.Tensor]) -> float:
    """MSE of the present block's output against `targets` on the leading calibration batches."""
    check = job.inputs.first(CHECK_TOKENS)
    squares = [
        (output - target).square().mean()
        for output, target in zip(check.outputs(job.block, job.index), targets, strict=False)
    ]
    return float(torch.stack(squares).mean())


def _fall_back(job: BlockJob, bench: _Bench, groups: list[InputGroup]) -> dict[str, IntWeight]:
    """Start the block over with plain rounding."""
    bench.originals.restore()
    bench.columns.clear()
    bench.rows.clear()
    bench.alphas.clear()
    bench.folds.clear()
    plain = replace(job, recipe=Recipe())
    statistics = collect_statistics(_firsts(job, groups), lambda: _run_through(job), job.inputs.token_weights)
    return {
        name: _round_linear(plain, bench, name, stats, None)
        for group, stats in zip(groups, statistics, strict=True)
        for name in group.consumers
    }


def _changed_parameters(job: BlockJob, bench: _Bench) -> dict[str, torch.Tensor]:
    """What folds changed besides the weights that were quantized, as it will be stored."""
    quantized = {f"{name}.weight" for name in job.specs}
    changed: dict[str, torch.Tensor] = {}
    for producer in dict.fromkeys(fold.producer for fold in bench.folds):
        for name, parameter in job.block.get_submodule(producer).named_parameters(prefix=producer, recurse=False):
            dtype = job.stored_dtype(name)
            if name not in quantized and dtype is not None:
                changed[name] = parameter.data.to(dtype).cpu()
    return changed


def _probe_forward(job: BlockJob) -> torch.Tensor:
    return next(job.probe.outputs(job.block, job.index))


def _ones(like: torch.Tensor) -> torch.Tensor:
    return torch.ones(like.shape, device=like.device)


def _linear(job: BlockJob, name: str) -> nn.Linear:
    linear = job.block.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear


def _fold_group(job: BlockJob, bench: _Bench, group: InputGroup, stats: InputStatistics) -> None:
    """Find the fold of one group, choose its scale, apply it and keep it only if the function is unchanged."""
    job.checkpoint_cancel()
    group = _storable_producers(job, group)
    probe = find_fold(job.block, group, lambda: job.probe.handed_on(job.block, job.index), job.head_dim, job.seed)
    accepted = probe.fold is not None
    reason = "" if accepted else "no earlier module cancels a channel scale"
    job.emit(e.FoldTested(job.index, probe.producer, list(group.consumers), accepted, probe.error, reason))
    if probe.fold is None:
        return
    weights = [bench.originals[f"{name}.weight"] for name in group.consumers]
    choice = choose_scale(probe.fold, weights, stats, [job.specs[name] for name in group.consumers])
    job.emit(_scale_event(job, probe.fold, choice))
    if _apply_fold(job, bench, probe.fold, choice.channel_scale):
        bench.alphas |= dict.fromkeys(group.consumers, choice.alpha)


def _storable_producers(job: BlockJob, group: InputGroup) -> InputGroup:
    """The group without candidates that could not be written back."""

    def storable(name: str) -> bool:
        parameters = job.block.get_submodule(name).named_parameters(prefix=name, recurse=False)
        return all(job.stored_dtype(parameter) is not None for parameter, _ in parameters)

    return InputGroup(group.consumers, group.in_features, tuple(name for name in group.earlier if storable(name)))


def _scale_event(job: BlockJob, fold: Fold, choice: ScaleChoice) -> e.ScaleChosen:
    channels = fold.expand(choice.channel_scale)
    return e.ScaleChosen(
        job.index, fold.producer, list(fold.consumers), choice.alpha, choice.duo, choice.curve, choice.loss_before,
        choice.loss_after, scale_statistics(channels), histogram(channels),
    )  # fmt: skip


def _apply_fold(job: BlockJob, bench: _Bench, fold: Fold, channel_scale: torch.Tensor) -> bool:
    """Fold the scale in; undo it, and say so, if the block's function changed."""
    touched = [
        parameter.data
        for name in (fold.producer, *fold.consumers)
        for parameter in job.block.get_submodule(name).parameters(recurse=False)
    ]
    saved = [tensor.clone() for tensor in touched]
    before = _probe_forward(job)
    dtype = None if fold.kind is FoldKind.ROWS else job.stored_dtype(f"{fold.producer}.weight")
    effective = divide_producer(job.block, fold, channel_scale, dtype)
    scale_consumers(job.block, fold, effective)
    error = _relative_change(before, _probe_forward(job), job.probe.hidden[0])
    if not error <= INVARIANCE_TOLERANCE:
        for tensor, old in zip(touched, saved, strict=True):
            tensor.copy_(old)
        reason = f"the fold changed the block's output by {error:.1e} and was undone"
        job.emit(e.FoldTested(job.index, fold.producer, list(fold.consumers), False, error, reason))
        job.emit(e.Warned(f"block {job.index} {fold.producer}: {reason}"))
        return False
    for name in fold.consumers:
        columns = fold.expand(effective)
        bench.columns[name] = bench.columns[name] * columns if name in bench.columns else columns
    if fold.kind is FoldKind.ROWS:
        rows = bench.rows.setdefault(fold.producer, _ones(_linear(job, fold.producer).weight[:, 0]))
        rows[fold.row_offset : fold.row_offset + fold.width] *= effective
    bench.folds.append(fold)
    return True


def _relative_change(before: torch.Tensor, after: torch.Tensor, hidden: torch.Tensor) -> float:
    """Change of the block's update of the residual stream, relative to the update."""
    return float((after - before).norm() / (before - hidden).norm().clamp(min=1e-12))


def _round_group(
    job: BlockJob, bench: _Bench, group: InputGroup, stats: InputStatistics | None
) -> dict[str, IntWeight]:
    """Clip and round the linears of one group; the block gets the rounded weights.

    Args:
        stats: of the group's inputs in the original block; None to take them from the block as it is now.
    """
    first, columns = _linear(job, group.consumers[0]), bench.columns.get(group.consumers[0])
    if stats is None:
        stats = _present_statistics(job, first)
    elif columns is not None:
        stats = stats.scaled(columns)
    cross = None
    if job.recipe.drift and job.original is not None and stats.n_tokens:
        cross = collect_cross_statistics(job.block, bench.originals, first, job.inputs, job.original, job.index)
    weights = {}
    for name in group.consumers:
        job.checkpoint_cancel()
        weights[name] = _round_linear(job, bench, name, stats, cross)
    return weights


def _run_through(job: BlockJob) -> None:
    for _ in job.inputs.outputs(job.block, job.index):
        pass


def _present_statistics(job: BlockJob, linear: nn.Linear) -> InputStatistics:
    """Of what the linear reads in the block as it is now; the passes go no further than the linear."""
    tap = Tap(linear)

    def forward() -> None:
        for batch in range(len(job.inputs)):
            tap.read(lambda batch=batch: job.inputs.output(job.block, job.index, batch))

    (stats,) = collect_statistics([linear], forward, job.inputs.token_weights)
    return stats


def _round_linear(
    job: BlockJob, bench: _Bench, name: str, stats: InputStatistics, cross: torch.Tensor | None
) -> IntWeight:
    """Round one linear and report every step's loss.

    Args:
        stats: of the linear's present inputs (folded).
        cross: E[x_present x_original^T] where drift is to be corrected.
    """
    started = time.perf_counter()
    linear, spec = _linear(job, name), job.specs[name]
    folded = linear.weight.data.clone()
    original = bench.originals[f"{name}.weight"]
    columns = bench.columns.get(name, _ones(linear.weight[0]))
    rows = bench.rows.get(name, _ones(linear.weight[:, 0]))
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
        )
    )  # fmt: skip
    return to_int_weight(rounded, qparams, spec)


def _folded_grams(bench: _Bench, name: str, rows: torch.Tensor) -> list[torch.Tensor] | None:
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
