"""The output folder: its default name, and what would be in its way.

A folder that exists is replaced only on request, and only if it is a model's: `--overwrite` must never be able to
delete a home directory. Standard library only: the app imports this module.
"""

from __future__ import annotations

import os
from pathlib import Path

from awq_engine.checkpoint import Checkpoint
from awq_engine.config import Method, RunConfig
from awq_engine.disk import check_disk, existing_parent
from awq_engine.errors import UsageError
from awq_engine.estimate import Estimate
from awq_engine.formats.limits import Format
from awq_engine.storage import runs_dir


def default_output(
    name: str,
    *,
    bits: int = 4,
    group_size: int = 128,
    symmetric: bool = False,
    method: Method = Method.AWQ,
    layout: Format = Format.AWQ,
    target_bpw: float = 0.0,
) -> Path:
    """`./NAME-AWQ-W4-G128` for a model called `name`, absolute; formats other than `awq` are named too.

    With a size to meet, that stands for bits and groups: `./NAME-AWQ-4.25bpw`.
    """
    if target_bpw:
        shape = f"{name}-{method.upper()}-{target_bpw:g}bpw{'-sym' if symmetric else ''}"
    else:
        shape = folder_name(f"{name}-{method.upper()}", bits=bits, group_size=group_size, symmetric=symmetric)
    return Path.cwd() / (shape if layout is Format.AWQ else f"{shape}-{layout}")


def folder_name(name: str, *, bits: int, group_size: int, symmetric: bool) -> str:
    """`NAME-W4-G128`."""
    group = "row" if group_size == -1 else f"G{group_size}"
    return f"{name}-W{bits}-{group}{'-sym' if symmetric else ''}"


def check_output(output: Path, model: Path | None, overwrite: bool) -> None:
    """Raise `UsageError` when `output` cannot be written; `model` is the folder that is quantized, if it is local."""
    if model is not None and (output.resolve() == model or output.resolve() in model.parents):
        raise UsageError(f"The output {output} would replace the model itself; choose another with -o.")
    if output.exists() or output.is_symlink():
        _check_replaceable(output, overwrite)
    parent = existing_parent(output.parent)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"The output {output} cannot be made: {parent} is not a folder that can be written to.")


def _check_replaceable(output: Path, overwrite: bool) -> None:
    if not overwrite:
        raise UsageError(f"The output {output} exists already; choose another with -o, or replace it with --overwrite.")
    is_model = output.is_dir() and not output.is_symlink() and (output / "config.json").is_file()
    is_empty = output.is_dir() and not any(output.iterdir())
    if not is_model and not is_empty:
        raise UsageError(f"{output} is not a model folder, so --overwrite does not touch it; choose another with -o.")


def check_space(output: Path, forecast: Estimate) -> None:
    """Raise `ResourceError` when the finished blocks and the output do not fit on their disks."""
    blocks, checkpoint = runs_dir(), output.absolute()
    if existing_parent(blocks).stat().st_dev == existing_parent(checkpoint).stat().st_dev:
        check_disk(checkpoint, forecast.bytes_after + forecast.blocks_bytes, "the output and the finished blocks")
    else:
        check_disk(checkpoint, forecast.bytes_after, "the output")
        check_disk(blocks, forecast.blocks_bytes, "the finished blocks")


def check_run(config: RunConfig, checkpoint: Checkpoint, forecast: Estimate) -> None:
    """Both checks for a model that is on this machine."""
    check_output(Path(config.output), checkpoint.path, config.overwrite)
    check_space(Path(config.output), forecast)
