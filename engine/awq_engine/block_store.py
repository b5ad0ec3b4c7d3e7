"""Finished blocks in the run's directory, one file each: written before they are announced, and read back to go on."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from awq_engine.block_job import BlockResult
from awq_engine.config import Format
from awq_engine.events import BlockFinished
from awq_engine.formats.registry import CODECS
from awq_engine.journal import EventSink
from awq_engine.memory import peak_host_bytes
from awq_engine.plan import LinearPlan, Plan
from awq_engine.runs import Run
from awq_engine.runtime import peak_device_bytes
from awq_engine.skeleton import Skeleton
from awq_engine.state import replay
from awq_engine.writer import file_sha256, save_block
from awq_kernels.int_weight import IntWeight
from awq_kernels.reference import dequantize


def stored_tensors(result: BlockResult, plan: Plan, skeleton: Skeleton, index: int) -> dict[str, torch.Tensor]:
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


def read_packed(file: Path, linear: LinearPlan, layout: Format) -> IntWeight:
    """A quantized linear out of the file of its block."""
    codec, tensors = CODECS[layout], load_file(file)
    return codec.unpack(codec.of(tensors, linear.key), linear.spec, linear.key)


def finish_block(
    run: Run, index: int, tensors: dict[str, torch.Tensor], losses: tuple[float, float], started: float, emit: EventSink
) -> None:
    """Write a block's file, then announce it.

    Args:
        losses: MSE of its output under plain rounding, and as it is now.
        started: when work on it began, by `time.perf_counter`.
    """
    path = block_file(run, index)
    digest = save_block(path, tensors)
    emit(
        BlockFinished(
            index, *losses, time.perf_counter() - started, str(path.relative_to(run.path)), digest, peak_host_bytes(),
            peak_device_bytes(),
        )
    )  # fmt: skip


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
