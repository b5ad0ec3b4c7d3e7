"""One run from request to verified checkpoint; reads as the algorithm.

    resolve the model, read its headers, plan        nothing expensive has happened yet
    capture what enters the first block; for `best`, carry the prediction's gradients to every block
    for each block: quantize it, or, if an earlier process did, replay it
    write, verify, publish

Every block is written before it is announced, and goes on through the pipeline as read back from its packed form, so a
resumed run computes with the very same numbers as one that was never interrupted.
"""

from __future__ import annotations

import dataclasses
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from awq_engine import events as e
from awq_engine.architecture import value_dim
from awq_engine.calibration import Calibration, check_vocabulary
from awq_engine.capture import BlockInputs, capture_inputs, finish_forward
from awq_engine.card import model_card
from awq_engine.checkpoint import Checkpoint, read_checkpoint, read_header
from awq_engine.config import Format, RunConfig
from awq_engine.disk import check_disk
from awq_engine.errors import BadInputError, InterruptedRunError
from awq_engine.estimate import estimate
from awq_engine.fingerprint import check_fingerprint, take_fingerprint
from awq_engine.format import size
from awq_engine.formats.registry import CODECS
from awq_engine.journal import EventSink
from awq_engine.memory import available_bytes, peak_resident_bytes
from awq_engine.models import resolve_model
from awq_engine.outer import TORCH_DTYPES, refuse_non_finite
from awq_engine.output import check_output, check_run
from awq_engine.plan import Plan, make_plan
from awq_engine.quantize_block import BlockJob, BlockResult, quantize_block
from awq_engine.recipe import Recipe, recipe_of
from awq_engine.report import build_report, read_report
from awq_engine.run_calibration import run_calibration
from awq_engine.runs import Run
from awq_engine.runtime import pick_device
from awq_engine.sensitivity import NoGradientsError, Sensitivity, measure_sensitivity
from awq_engine.size_target import meet_target
from awq_engine.skeleton import Skeleton, build_skeleton
from awq_engine.skip_list import skip_list
from awq_engine.spill import Batches, NewBatches, SpilledBatches, copied
from awq_engine.state import RunState, replay
from awq_engine.verify import verify_output
from awq_engine.writer import (
    file_sha256,
    output_tensors,
    publish,
    save_block,
    staging_folder,
    write_shards,
    write_side_files,
)
from awq_kernels.reference import dequantize

BATCH_TOKENS = 4096
BATCH_NUMBERS = 1 << 23
"""Tokens, and numbers that the widest linear reads of them, that go through a block at once."""
PROBE_TOKENS = 64
"""Length of the sequence on which folds are probed and the output is verified."""
PROGRESS_SECONDS = 0.2
"""Progress is reported at most this often."""


@torch.no_grad()
def execute(run: Run, emit: EventSink) -> None:
    """Do, or finish, the run. Raises the errors of `errors.py`; everything else is our bug."""
    config = run.config()
    folder = resolve_model(config.model, _download_reporter(emit)).path
    checkpoint = read_checkpoint(folder)
    if _already_published(run, config):
        emit(e.RunFinished(read_report(Path(config.output))["result"]))
        _remove_leftovers(run)
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
    probe = quantize_blocks(run, plan, skeleton, calibration.ids, emit, calibration.weights)
    write_output(run, plan, skeleton, probe, calibration.ids[:1, :PROBE_TOKENS], emit)


def _announce(plan: Plan, emit: EventSink) -> None:
    emit(plan.event)
    for warning in plan.event.warnings:
        emit(e.Warned(warning))


def quantize_blocks(
    run: Run, plan: Plan, skeleton: Skeleton, ids: torch.Tensor, emit: EventSink, weights: torch.Tensor | None = None
) -> BlockInputs:
    """Quantize every block that is not done yet; return the probe as it leaves the last block.

    `ids` is int64 [samples, seq_len]; `weights`, float32 of the same shape, is what each token counts.
    """
    width = max((linear.in_features for linear in plan.linears), default=1)
    batch_size = max(1, min(BATCH_TOKENS, BATCH_NUMBERS // width) // ids.shape[1])
    for key in skeleton.outer_keys():
        refuse_non_finite(skeleton.checkpoint.tensors[key])
    check_vocabulary(ids, skeleton.model.get_input_embeddings().num_embeddings)  # pyright: ignore
    progress = throttled(lambda done, total: emit(e.PhaseProgress("calibrating", done, total)))
    inputs = capture_inputs(skeleton, ids.split(batch_size), progress, _hidden_store(run, skeleton.checkpoint, emit))
    inputs.weights = None if weights is None else list(weights.split(batch_size))
    recipe = recipe_of(plan.config)
    streams = _Streams(recipe, inputs, capture_inputs(skeleton, [ids[:1, :PROBE_TOKENS]]))
    sensitivity = _measure_sensitivity(run, skeleton, ids, inputs.store, emit) if recipe.sensitivity else None
    finished = finished_blocks(run)
    for index in range(len(skeleton.blocks)):
        _raise_if_cancelled(run)
        with skeleton.loaded_block(index) as block:
            _refuse_non_finite(block, skeleton.block_name(index))
            if index in finished:
                tensors = load_file(block_file(run, index))
                streams.replay(block, index, lambda b=block, t=tensors, i=index: install_block(b, t, plan, skeleton, i))
                emit(e.PhaseProgress("replaying", index + 1, len(finished)))
            else:
                job = _block_job(run, plan, skeleton, streams, sensitivity, block, index, emit)
                _quantize_one(run, plan, skeleton, streams, job)
    return streams.probe


def _hidden_store(run: Run, checkpoint: Checkpoint, emit: EventSink) -> NewBatches:
    """Memory, or a file in the run directory where memory is too small; the numbers are the same."""
    config = run.config()
    forecast = estimate(checkpoint, dataclasses.replace(config, max_memory=0))
    limit = config.max_memory or available_bytes()
    if forecast.peak_host_bytes <= limit:
        return list
    check_disk(run.path, forecast.hidden_bytes, "hidden states that do not fit into memory")
    why = f"the run takes about {size(forecast.peak_host_bytes)}, and may take {size(limit)}"
    emit(e.Warned(f"hidden states ({size(forecast.hidden_bytes)}) are kept on disk: {why} of memory"))
    return lambda: SpilledBatches(run.path)


def _measure_sensitivity(
    run: Run, skeleton: Skeleton, ids: torch.Tensor, store: NewBatches, emit: EventSink
) -> Sensitivity | None:
    progress = _cancellable(run, throttled(lambda done, total: emit(e.PhaseProgress("calibrating", done, total))))
    try:
        return measure_sensitivity(skeleton, ids, run.gradients_dir, run.config().seed, progress, store)
    except NoGradientsError as error:
        why = f"gradients cannot be carried through this model ({error})"
        emit(e.Warned(f"{why}; blocks are rounded as by the preset balanced"))
        return None


def _quantize_one(run: Run, plan: Plan, skeleton: Skeleton, streams: _Streams, job: BlockJob) -> None:
    started = time.perf_counter()
    block, index, emit = job.block, job.index, job.emit
    emit(e.BlockStarted(index, skeleton.block_name(index)))
    result = quantize_block(job)
    tensors = _stored_tensors(result, plan, skeleton, index)
    install_block(block, tensors, plan, skeleton, index)
    streams.advance(block, index, result.outputs)
    _warn_of_overflow(plan.config, streams.inputs.hidden[0], index, emit)
    path = block_file(run, index)
    digest = save_block(path, tensors)
    emit(
        e.BlockFinished(
            index, result.loss_rounding, result.loss_final, time.perf_counter() - started,
            str(path.relative_to(run.path)), digest, peak_host_bytes(), peak_device_bytes(),
        )
    )  # fmt: skip


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


class _Streams:
    """The hidden states that travel through the model: which ones depends on the recipe."""

    def __init__(self, recipe: Recipe, inputs: BlockInputs, probe: BlockInputs) -> None:
        self.recipe = recipe
        self.inputs = inputs
        """What blocks are calibrated on: of the original model, or of the quantized one (`recipe.sequential`)."""
        self.original: BlockInputs | None = None
        """Of the original model, when both are needed."""
        if recipe.drift:
            self.original = inputs.fork()
        self.probe = probe
        """One sequence through the quantized model, always."""

    def advance(self, block: nn.Module, index: int, outputs: Batches) -> None:
        """Move on past a quantized `block`, given the original block's `outputs`."""
        if self.recipe.sequential:
            self.inputs.advance(block, index)
        if self.original is not None:
            self.original.hidden = outputs
        elif not self.recipe.sequential:
            self.inputs.hidden = outputs
        self.probe.advance(block, index)

    def replay(self, block: nn.Module, index: int, install: Callable[[], None]) -> None:
        """Move on past a block that is done: first as the original, then, after `install`, as quantized."""
        with torch.no_grad():
            source = self.original or (None if self.recipe.sequential else self.inputs)
            outputs = [] if source is None else copied(source.outputs(block, index), source.store)
            install()
            self.advance(block, index, outputs)


def _block_job(
    run: Run, plan: Plan, skeleton: Skeleton, streams: _Streams, sensitivity: Sensitivity | None, block: nn.Module,
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
        checkpoint_cancel=lambda: _raise_if_cancelled(run),
    )  # fmt: skip


def _stored_tensors(result: BlockResult, plan: Plan, skeleton: Skeleton, index: int) -> dict[str, torch.Tensor]:
    """A block's new tensors under their names in the checkpoint."""
    linears = {linear.name: linear for linear in plan.block_linears(index)}
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in result.weights.items():
        linear = linears[name]
        parts = CODECS[plan.config.format].pack(weight.to("cpu"), linear.spec, linear.key)
        tensors |= {f"{linear.key}.{part}": tensor for part, tensor in parts.items()}
    for name, tensor in result.changed.items():
        source = skeleton.sources[f"{skeleton.block_name(index)}.{name}"]
        tensors[source.name] = source.restore(tensor)
    paths = [f"{skeleton.block_name(index)}.{name}" for name in result.weights]
    done = tensors.keys() | {f"{linears[name].key}.weight" for name in result.weights}
    return tensors | skeleton.read_neighbours(paths, done)


@torch.no_grad()
def install_block(
    block: nn.Module, tensors: dict[str, torch.Tensor], plan: Plan, skeleton: Skeleton, index: int
) -> None:
    """Put a block's stored tensors into its modules, integers as floats: the block now computes as readers will."""
    parameters, codec = dict(block.named_parameters()), CODECS[plan.config.format]
    for linear in plan.written_linears(index, tensors):
        weight = codec.unpack(codec.of(tensors, linear.key), linear.spec, linear.key)
        parameters[f"{linear.name}.weight"].copy_(dequantize(weight))
    for name, parameter in parameters.items():
        source = skeleton.sources.get(f"{skeleton.block_name(index)}.{name}")
        if source is not None and source.name in tensors:
            parameter.copy_(source.restore(tensors[source.name]))


def block_file(run: Run, index: int) -> Path:
    return run.blocks_dir / f"{index:05d}" / "block.safetensors"


def finished_blocks(run: Run) -> set[int]:
    """The leading blocks whose files are on disk and intact; a damaged one ends the list."""
    state = replay(run.records())
    finished: set[int] = set()
    while (index := len(finished)) in state.blocks:
        if file_sha256(block_file(run, index)) != state.blocks[index].sha256:
            break
        finished.add(index)
    return finished


def write_output(
    run: Run, plan: Plan, skeleton: Skeleton, probe: BlockInputs, probe_ids: torch.Tensor, emit: EventSink
) -> None:
    """Assemble the checkpoint beside its final place, verify it, publish it."""
    _raise_if_cancelled(run)
    plan = _as_done(run, plan)
    output = Path(plan.config.output)
    blocks = [block_file(run, index) for index in range(len(skeleton.blocks))]
    parts = skeleton.split_keys(linear.path for linear in plan.linears)
    tensors = output_tensors(skeleton.checkpoint, blocks, {linear.key for linear in plan.linears}, parts)
    with staging_folder(run.staging(output)) as staging:
        write_shards(staging, tensors, throttled(lambda done, total: emit(e.PhaseProgress("writing", done, total))))
        state = replay(run.records())
        result = run_result(run, plan, state, sum(tensor.nbytes for tensor in tensors))
        card, quantization = model_card(plan, skeleton.checkpoint), quantization_config(plan, skeleton)
        write_side_files(staging, skeleton.checkpoint, quantization, card, build_report(state, result))
        emit(e.PhaseProgress("verifying", 0, 1))
        expected = finish_forward(skeleton, probe_ids, probe.hidden[0])
        emit(verify_output(staging, probe_ids, expected, skeleton.device))
        _raise_if_cancelled(run)
        check_output(output, skeleton.checkpoint.path, plan.config.overwrite)  # another run may have been faster
        publish(staging, output)
    emit(e.RunFinished(result))
    _remove_leftovers(run)


def _remove_leftovers(run: Run) -> None:
    """What a published run no longer needs."""
    shutil.rmtree(run.blocks_dir, ignore_errors=True)
    shutil.rmtree(run.gradients_dir, ignore_errors=True)


def _as_done(run: Run, plan: Plan) -> Plan:
    """The plan without the linears that had to stay in floats."""
    done = [
        linear
        for index in range(plan.event.n_blocks)
        for linear in plan.written_linears(index, read_header(block_file(run, index)))
    ]
    return dataclasses.replace(plan, linears=tuple(done))


def quantization_config(plan: Plan, skeleton: Skeleton) -> dict[str, Any]:
    """The `quantization_config` of the output, as the readers of its format expect it."""
    specs = {linear.key: linear.spec for linear in plan.linears}
    return CODECS[plan.config.format].settings(specs, skip_list(skeleton, specs))


def run_result(run: Run, plan: Plan, state: RunState, bytes_after: int) -> dict[str, Any]:
    """What `quantize --json` prints."""
    return {
        "run_id": run.id, "output": plan.config.output, "bits": plan.config.bits,
        "group_size": plan.config.group_size, "symmetric": plan.config.symmetric, "format": plan.config.format.value,
        "method": plan.config.method.value, "preset": plan.config.preset.value,
        "overrides": list(plan.config.overrides), "target_bpw": run.config().target_bpw or None,
        "bytes_before": plan.event.bytes_before, "bytes_after": bytes_after,
        "bits_per_weight": plan.event.bits_per_weight, "seconds": round(state.elapsed(time.time()), 2),
        "peak_host_bytes": max([peak_host_bytes(), *(b.peak_host_bytes for b in state.blocks.values())]),
        "peak_device_bytes": max([peak_device_bytes(), *(b.peak_device_bytes for b in state.blocks.values())]),
        "blocks": len(state.blocks), "linears": len(plan.linears), "folds": len(state.folds),
        "fallbacks": len(state.fallbacks), "warnings": len(state.warnings),
    }  # fmt: skip


def peak_host_bytes() -> int:
    """Largest resident size of this process so far; `getrusage` would count what its parent was when it forked."""
    return peak_resident_bytes() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_device_bytes() -> int:
    """Largest CUDA allocation of this process so far."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def throttled(report: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """`report(done, total)`, but not more often than the screen can use; the last call always gets through."""
    last = 0.0

    def call(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= PROGRESS_SECONDS:
            last = now
            report(done, total)

    return call


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
        [dataclasses.asdict(use) for use in uses],
        None if calibration.weights is None else int(calibration.weights.count_nonzero()),
    )  # fmt: skip


def _already_published(run: Run, config: RunConfig) -> bool:
    """Whether this very run's output is complete: the engine died between publishing and saying so."""
    try:
        return read_report(Path(config.output))["result"].get("run_id") == run.id
    except (BadInputError, KeyError, AttributeError):
        return False


def _cancellable(run: Run, report: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """`report`, and the moment to stop where a cancel was asked for."""

    def call(done: int, total: int) -> None:
        _raise_if_cancelled(run)
        report(done, total)

    return call


def _raise_if_cancelled(run: Run) -> None:
    if run.cancel_requested():
        raise InterruptedRunError(f"Run {run.id} was cancelled; continue it with `awq-tui resume {run.id}`.")


def _refuse_non_finite(block: nn.Module, name: str) -> None:
    for parameter_name, parameter in block.named_parameters():
        if not parameter.is_meta and not torch.isfinite(parameter).all():
            full_name = f"{name}.{parameter_name}".lstrip(".")
            raise BadInputError(f"The tensor {full_name} holds NaN or infinite values; the model is damaged.")
