"""The command line that starts a run, for a form's "copy as command" and for model cards. Standard library only."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from awq_engine.config import RunConfig
from awq_engine.text_sources import split_mix


def command(config: RunConfig) -> str:
    """The command line that starts the same run, quoted for a shell."""
    words = ["awq-tui", "quantize", config.model, *(["-o", config.output] if config.output else [])]
    words += ["--bits", str(config.bits), "--group-size", str(config.group_size), "--preset", config.preset]
    words += ["--samples", str(config.samples), "--seq-len", str(config.seq_len)]
    defaults = RunConfig(config.model, config.output)
    for flag, field in (
        ("--method", "method"),
        ("--format", "format"),
        ("--calibration", "calibration"),
        ("--device", "device"),
        ("--seed", "seed"),
        ("--max-memory", "max_memory"),
        ("--threads", "threads"),
        ("--workers", "workers"),
        ("--on", "on"),
    ):
        if getattr(config, field) != getattr(defaults, field):
            words += [flag, str(getattr(config, field))]
    words += ["--target-bpw", f"{config.target_bpw:g}"] if config.target_bpw else []
    words += [word for override in config.overrides for word in ("--override", override)]
    words += ["--lm-head"] if config.lm_head else []
    words += ["--symmetric"] if config.symmetric else []
    words += ["--answer-only"] if config.answer_only else []
    words += ["--overwrite"] if config.overwrite else []
    return shlex.join(words)


def shared_command(config: RunConfig, model: str) -> str:
    """The same for other people's machines: `model` as they know it, files by their names, no place for the output."""
    shared = dataclasses.replace(
        config, model=model, output="", calibration=shared_calibration(config.calibration),
        device="auto", max_memory=0, overwrite=False, threads=0, workers=1, on="",
    )  # fmt: skip
    return command(shared)


def shared_calibration(spec: str) -> str:
    """Files by their names alone: where they lie is nobody else's business."""
    return "+".join(Path(part).name if Path(part).is_absolute() else part for part in split_mix(spec))
