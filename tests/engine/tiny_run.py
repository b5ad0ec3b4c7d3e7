"""Small runs, as many tests want them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from awq_engine.config import RunConfig
from awq_engine.journal import Journal
from awq_engine.pipeline import execute
from awq_engine.runs import Run, create_run

TEXT = "The cat sat on the mat and looked at the rain. Nobody knew why the door was open. "


def tiny_request(folder: Path, model: Path, **options: Any) -> RunConfig:
    """Of a run on a tiny model that reads a text in `folder` and writes to `folder`/out, on one thread."""
    text = folder / "calibration.txt"
    text.write_text(TEXT * 60)
    usual = {
        "model": str(model), "output": str(folder / "out"), "group_size": 32, "calibration": str(text), "samples": 4,
        "seq_len": 64, "threads": 1, "device": "cpu",
    }  # fmt: skip
    return RunConfig(**{**usual, **options})


def executed(config: RunConfig) -> Run:
    """The run of a request, executed in this process."""
    run = create_run(config)
    with Journal(run.journal_path) as emit:
        execute(run, emit)
    return run
