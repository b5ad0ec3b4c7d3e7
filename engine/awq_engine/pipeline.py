"""One run from request to verified checkpoint; reads as the algorithm.

    resolve the model, read its headers, plan        nothing expensive has happened yet
    capture what enters the first block; for `best`, carry the prediction's gradients to every block
    for each block: quantize it, or, if an earlier process did, replay it; then the output head, if it is to be
    write, verify, publish

Every block is written before it is announced, and goes on through the pipeline as read back from its packed form, so a
resumed run computes with the very same numbers as one that was never interrupted.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import nn

from awq_engine import events as e
from awq_engine.architecture import value_dim
from awq_engine.block_store import block_file, finish_block, finished_blocks, install_block, stored_tensors
from awq_engine.calibration import Calibration, check_vocabulary
from awq_engine.capture import BlockInputs, capture_inputs
from awq_engine.checkpoint import read_checkpoint
from awq_engine.config import Format, RunConfig, check_cluster
from awq_engine.errors import BadInputError
from awq_engine.estimate import estimate
from awq_engine.fingerprint import check_fingerprint, take_fingerprint
from awq_engine.journal import EventSink, throttled
from awq_engine.models import resolve_model
from awq_engine.outer import TORCH_DTYPES, refuse_non_finite
from awq_engine.output import check_run
from awq_engine.plan import Plan, make_plan
from awq_engine.publishing import already_published, remove_leftovers, write_output
from awq_engine.quantize_block import BlockJob, quantize_block
from awq_engine.quantize_head import quantize_head
from awq_engine.recipe import recipe_of
from awq_engine.report import read_report
from awq_engine.run_calibration import run_calibration
from awq_engine.runs import Run
from awq_engine.runtime import pick_device
from awq_engine.sensitivity import NoGradientsError, Sensitivity, measure_sensitivity
from awq_engine.size_target import meet_target
from awq_engine.skeleton import Skeleton, build_skeleton
from awq_engine.spill import NewBatches
from awq_engine.streams import BatchSize, Streams, hidden_store
from awq_engine.workers import ALONE, Workers, hired

PROBE_TOKENS = 64
"""Length of the sequence on which folds are probed and the output is verified."""


@torch.no_grad()
def execute(run: Run, emit: EventSink) -> None:
    """Do, or finish, the run. Raises the errors of `errors.py`; everything else is our bug."""
    config = run.config()
    check_cluster(config.on)
    folder = resolve_model(config.model, _download_reporter(emit)).path
    checkpoint = read_checkpoint(folder)
    if already_published(run, config):
        emit(e.RunFinished(read_report(Path(config.output))["result"]))
        remove_leftovers(run)
        return
    check_run(config, checkpoint, estimate(checkpoint, config))
    skeleton = build_skeleton(checkpoint, str(pick_device(config.device)))
    plan = make_plan(config, skeleton)
    _announce(plan, emit)
    calibration = run_calibration(run, config, checkpoint)
    check_fingerprint(run, take_fingerprint(checkpoint, calibration, skeleton.device))
    emit(_calibration_event(calibration))
    if config.target_bpw:
        progress = _cancellable(run, throttled(lambda done, total: emit(e.PhaseProgress("measuring", done, total))))
        met = meet_target(run, config, skeleton, calibration.ids, progress, lambda text: emit(e.Warned(text)))
        plan = make_plan(met, skeleton)
        _announce(plan, emit)
    with hired(config, skeleton.device, lambda text: emit(e.Warned(text))) as workers:
        probe = quantize_blocks(run, plan, skeleton, calibration.ids, emit, calibration.weights, workers)
    write_output(run, plan, skeleton, probe, calibration.ids[:1, :PROBE_TOKENS], emit)


def _announce(plan: Plan, emit: EventSink) -> None:
    emit(plan.event)
    for warning in plan.event.warnings:
        emit(e.Warned(warning))


def quantize_blocks(
    run: Run, plan: Plan, skeleton: Skeleton, ids: torch.Tensor, emit: EventSink, weights: torch.Tensor | None = None,
    workers: Workers = ALONE,
) -> BlockInputs:  # fmt: skip
    """Quantize every block, and the head, that is not done yet; return the probe as it leaves the last block.

    `ids` is int64 [samples, seq_len]; `weights`, float32 of the same shape, is what each token counts.
    """
    for key in skeleton.outer_keys():
        refuse_non_finite(skeleton.checkpoint.tensors[key])
    check_vocabulary(ids, skeleton.model.get_input_embeddings().num_embeddings)  # pyright: ignore
    sizes = BatchSize(run, plan, ids)
    while True:
        try:
            return _quantize_in_batches(run, plan, skeleton, ids, weights, sizes.now, emit, workers)
        except torch.OutOfMemoryError:  # of a GPU; on the host there is no such moment to step back
            if not sizes.halve():
                raise
        gc.collect()
        torch.cuda.empty_cache()
        emit(e.Warned(f"the GPU's memory is full; going on with {sizes.now} sequences at a time"))


def _quantize_in_batches(
    run: Run, plan: Plan, skeleton: Skeleton, ids: torch.Tensor, weights: torch.Tensor | None, batch_size: int,
    emit: EventSink, workers: Workers,
) -> BlockInputs:  # fmt: skip
    progress = throttled(lambda done, total: emit(e.PhaseProgress("calibrating", done, total)))
    store = hidden_store(plan.config, run.path, plan.forecast, lambda message: emit(e.Warned(message)))
    inputs = capture_inputs(skeleton, ids.split(batch_size), progress, store)
    inputs.weights = None if weights is None else list(weights.split(batch_size))
    recipe = recipe_of(plan.config)
    streams = Streams(recipe, inputs, capture_inputs(skeleton, [ids[:1, :PROBE_TOKENS]]), workers)
    sensitivity = _measure_sensitivity(run, skeleton, ids, inputs.store, emit, workers) if recipe.sensitivity else None
    finished = finished_blocks(run)
    for index in range(len(skeleton.blocks)):
        run.raise_if_cancelled()
        started = time.perf_counter()
        with skeleton.loaded_block(index) as block:
            _refuse_non_finite(block, skeleton.block_name(index))
            if index in finished:
                tensors = load_file(block_file(run, index))
                streams.replay(block, index, lambda b=block, t=tensors, i=index: install_block(b, t, plan, skeleton, i))
                emit(e.PhaseProgress("replaying", index + 1, len(finished)))
            else:
                job = _block_job(run, plan, skeleton, streams, sensitivity, block, index, emit)
                _quantize_one(run, plan, skeleton, streams, job, started)
    if plan.head is not None and plan.head.block not in finished:
        run.raise_if_cancelled()
        quantize_head(run, plan, skeleton, streams, ids, emit)
    return streams.probe


def _measure_sensitivity(
    run: Run, skeleton: Skeleton, ids: torch.Tensor, store: NewBatches, emit: EventSink, workers: Workers
) -> Sensitivity | None:
    progress = _cancellable(run, throttled(lambda done, total: emit(e.PhaseProgress("calibrating", done, total))))
    try:
        return measure_sensitivity(skeleton, ids, run.gradients_dir, run.config().seed, progress, store, workers)
    except NoGradientsError as error:
        why = f"gradients cannot be carried through this model ({error})"
        emit(e.Warned(f"{why}; blocks are rounded as by the preset balanced"))
        return None


def _quantize_one(
    run: Run, plan: Plan, skeleton: Skeleton, streams: Streams, job: BlockJob, started: float
) -> None:  # fmt: skip
    """The block of `job`; `started` is when it began to be read, by `time.perf_counter`."""
    block, index, emit = job.block, job.index, job.emit
    emit(e.BlockStarted(index, skeleton.block_name(index)))
    result = quantize_block(job)
    tensors = stored_tensors(result, plan, skeleton, index)
    install_block(block, tensors, plan, skeleton, index)
    streams.advance(block, index, result.outputs)
    _warn_of_overflow(plan.config, streams.inputs.hidden[0], index, emit)
    finish_block(run, index, tensors, (result.loss_rounding, result.loss_final), started, emit)


def _warn_of_overflow(config: RunConfig, hidden: torch.Tensor, index: int, emit: EventSink) -> None:
    """The AWQ format is float16, whatever the model was made in: say where its readers will see infinities."""
    loudest, limit = float(hidden.abs().max()), torch.finfo(torch.float16).max
    if config.format is Format.AWQ and loudest > limit:
        emit(
            e.Warned(
                f"block {index}: hidden states reach {loudest:.0f}, above float16's {limit:.0f}; programs that run AWQ "
                "files in float16 will fail, --format compressed-tensors keeps bfloat16"
            )
        )


def _block_job(
    run: Run, plan: Plan, skeleton: Skeleton, streams: Streams, sensitivity: Sensitivity | None, block: nn.Module,
    index: int, emit: EventSink,
) -> BlockJob:  # fmt: skip
    def stored_dtype(parameter: str) -> torch.dtype | None:
        source = skeleton.sources.get(f"{skeleton.block_name(index)}.{parameter}")
        return TORCH_DTYPES.get(skeleton.checkpoint.tensors[source.key].dtype) if source else None

    specs = {linear.name: linear.spec for linear in plan.block_linears(index)}
    return BlockJob(
        index=index, block=block, specs=specs, inputs=streams.inputs,
        original=streams.original, sensitivity=sensitivity, probe=streams.probe, recipe=streams.recipe,
        seed=plan.config.seed,
        head_dim=value_dim(block, skeleton.model.config), stored_dtype=stored_dtype, emit=emit,
        checkpoint_cancel=run.raise_if_cancelled, workers=streams.workers,
    )  # fmt: skip


def _download_reporter(emit: EventSink) -> Callable[[int, int, str], None]:
    name = ""
    report = throttled(lambda done, total: emit(e.DownloadProgress(done, total, name)))

    def call(done: int, total: int, file: str) -> None:
        nonlocal name
        name = file
        report(done, total)

    return call


def _calibration_event(calibration: Calibration) -> e.CalibrationReady:
    sequences, seq_len = calibration.ids.shape
    uses = calibration.sources
    return e.CalibrationReady(
        "+".join(use.source for use in uses), sequences, seq_len, calibration.ids.numel(),
        sum(use.dropped_tokens for use in uses), "; ".join(use.detail for use in uses if use.detail),
        [cast(e.TextUse, dataclasses.asdict(use)) for use in uses],
        None if calibration.weights is None else int(calibration.weights.count_nonzero()),
    )  # fmt: skip


def _cancellable(run: Run, report: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """`report`, and the moment to stop where a cancel was asked for."""

    def call(done: int, total: int) -> None:
        run.raise_if_cancelled()
        report(done, total)

    return call


def _refuse_non_finite(block: nn.Module, name: str) -> None:
    for parameter_name, parameter in block.named_parameters():
        if not parameter.is_meta and not torch.isfinite(parameter).all():
            full_name = f"{name}.{parameter_name}".lstrip(".")
            raise BadInputError(f"The tensor {full_name} holds NaN or infinite values; the model is damaged.")
