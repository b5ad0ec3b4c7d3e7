"""From finished blocks to the checkpoint: assembled beside its final place, read back and verified, then renamed."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from awq_engine import events as e
from awq_engine.block_store import block_file, read_packed
from awq_engine.capture import BlockInputs, finish_forward
from awq_engine.card import model_card
from awq_engine.checkpoint import read_header
from awq_engine.config import RunConfig
from awq_engine.errors import BadInputError
from awq_engine.formats.registry import CODECS
from awq_engine.journal import EventSink, throttled
from awq_engine.memory import peak_host_bytes
from awq_engine.output import check_output
from awq_engine.plan import Plan
from awq_engine.report import build_report, read_report
from awq_engine.runs import Run
from awq_engine.runtime import peak_device_bytes
from awq_engine.skeleton import Skeleton
from awq_engine.skip_list import skip_list
from awq_engine.state import RunState, replay
from awq_engine.verify import verify_output
from awq_engine.writer import output_tensors, publish, staging_folder, write_shards, write_side_files


def write_output(
    run: Run, plan: Plan, skeleton: Skeleton, probe: BlockInputs, probe_ids: torch.Tensor, emit: EventSink
) -> None:
    """Assemble the checkpoint beside its final place, verify it, publish it."""
    run.raise_if_cancelled()
    plan = _as_done(run, plan)
    output = Path(plan.config.output)
    blocks = [block_file(run, index) for index in range(plan.n_units)]
    parts = skeleton.split_keys(linear.path for linear in plan.linears)
    tensors = output_tensors(skeleton.checkpoint, blocks, {linear.key for linear in plan.linears}, parts)
    with staging_folder(run.staging(output)) as staging:
        write_shards(staging, tensors, throttled(lambda done, total: emit(e.PhaseProgress("writing", done, total))))
        state = replay(run.records())
        result = run_result(run, plan, state, sum(tensor.nbytes for tensor in tensors))
        card, quantization = model_card(plan, skeleton.checkpoint, run.config()), quantization_config(plan, skeleton)
        write_side_files(staging, skeleton.checkpoint, quantization, card, build_report(state, result))
        emit(e.PhaseProgress("verifying", 0, 1))
        if head := plan.head:
            skeleton.read_head = lambda: read_packed(block_file(run, head.block), head, plan.config.format)
        expected = finish_forward(skeleton, probe_ids, probe.hidden[0])
        emit(verify_output(staging, probe_ids, expected, skeleton.device))
        run.raise_if_cancelled()
        check_output(output, skeleton.checkpoint.path, plan.config.overwrite)  # another run may have been faster
        publish(staging, output)
    emit(e.RunFinished(result))
    remove_leftovers(run)


def remove_leftovers(run: Run) -> None:
    """What a published run no longer needs; its staging folder holds the model that was overwritten."""
    for folder in (run.blocks_dir, run.gradients_dir, run.staging(Path(run.config().output))):
        shutil.rmtree(folder, ignore_errors=True)


def _as_done(run: Run, plan: Plan) -> Plan:
    """The plan without the linears that had to stay in floats."""
    done = [
        linear
        for index in range(plan.n_units)
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
        "blocks": plan.event.n_blocks, "lm_head": plan.head is not None, "linears": len(plan.linears),
        "folds": len(state.folds), "fallbacks": len(state.fallbacks), "warnings": len(state.warnings),
    }  # fmt: skip


def already_published(run: Run, config: RunConfig) -> bool:
    """Whether this very run's output is complete: the engine died between publishing and saying so.

    A run that was begun within a second of one that was deleted can have its name; it has verified nothing yet.
    """
    if replay(run.records()).verified is None:
        return False
    try:
        return read_report(Path(config.output))["result"].get("run_id") == run.id
    except (BadInputError, KeyError, AttributeError):
        return False
