"""A run that was stopped and resumed writes the same bytes in every format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_model import write_tiny_model

from awq_engine import events as e
from awq_engine.config import Format, Preset, RunConfig
from awq_engine.errors import InterruptedRunError
from awq_engine.journal import Journal
from awq_engine.pipeline import execute
from awq_engine.runs import create_run


def quantize(folder: Path, name: str, layout: Format, bits: int, stop: bool) -> bytes:
    """The weights a run writes, which is stopped after its first block and resumed if `stop`."""
    config = RunConfig(
        str(folder / "model"), str(folder / name), bits=bits, group_size=32, format=layout, preset=Preset.BEST,
        calibration=str(folder / "text.txt"), samples=4, seq_len=64, device="cpu",
    )  # fmt: skip
    run = create_run(config)
    with Journal(run.journal_path) as journal:

        def emit(event: e.Event) -> None:
            journal(event)
            if stop and isinstance(event, e.BlockFinished):
                raise InterruptedRunError("stopped by the test")

        if stop:
            with pytest.raises(InterruptedRunError):
                execute(run, emit)
            execute(run, journal)
        else:
            execute(run, emit)
    return (folder / name / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("layout", "bits"), [(Format.COMPRESSED_TENSORS, 3), (Format.GPTQ, 2), (Format.GPTQ_V2, 8)])
def test_a_resumed_run_writes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Format, bits: int
) -> None:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    write_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    (tmp_path / "text.txt").write_text("A bird looked at the river and thought of bread. " * 100)
    assert quantize(tmp_path, "whole", layout, bits, False) == quantize(tmp_path, "resumed", layout, bits, True)
