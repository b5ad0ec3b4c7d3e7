"""The demonstration's run: the bundled model, quantized offline. Standard library only: the app imports this module."""

from __future__ import annotations

import os
from pathlib import Path
from subprocess import Popen

from awq_engine.config import RunConfig
from awq_engine.output import check_output
from awq_engine.runs import Run, create_run, spawn_engine
from awq_engine.storage import home

MODEL = Path(__file__).parent / "data" / "demo-model"
EVALUATION_TEXT = MODEL.parent / "evaluation" / "stories.txt"
"""Held-out text of the kind the bundled model knows; on all of the built-in text its perplexity says little."""
SEQ_LEN = 256
"""Tokens; the length the bundled model was trained at."""


def demo_config() -> RunConfig:
    """Default settings on the bundled model; only the demonstration's own earlier output is ever replaced."""
    output = home() / "demo" / "demo-model-AWQ-W4-G128"
    return RunConfig(str(MODEL), str(output.absolute()), seq_len=SEQ_LEN, overwrite=True)


def start_demo() -> tuple[Run, Popen[bytes]]:
    """Start the run in a detached engine that may not use the network; returns it and the engine's process."""
    go_offline()
    config = demo_config()
    check_output(Path(config.output), MODEL, config.overwrite)
    run = create_run(config)
    return run, spawn_engine(run)


def go_offline() -> None:
    """Keep the Hub's libraries off the network, in this process and in those it starts."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
