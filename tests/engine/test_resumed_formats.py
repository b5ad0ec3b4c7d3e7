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

BLOCKS = 3


def quantize(folder: Path, name: str, layout: Format, bits: int, preset: Preset, stop: bool) -> bytes:
    """The weights a run writes; with `stop` it keeps its hidden states on disk, and each process ends after a block."""
    config = RunConfig(
        str(folder / "model"), str(folder / name), bits=bits, group_size=32, format=layout, preset=preset,
        calibration=str(folder / "text.txt"), samples=4, seq_len=64, device="cpu", max_memory=1 if stop else 1 << 60,
    )  # fmt: skip
    run = create_run(config)
    with Journal(run.journal_path) as journal:

        def emit(event: e.Event) -> None:
            journal(event)
            if stop and isinstance(event, e.BlockFinished):
                raise InterruptedRunError("stopped by the test")

        for _ in range(BLOCKS if stop else 0):
            with pytest.raises(InterruptedRunError):
                execute(run, emit)
        execute(run, emit)
    return (folder / name / "model.safetensors").read_bytes()


def check_resumed(folder: Path, monkeypatch: pytest.MonkeyPatch, layout: Format, bits: int, preset: Preset) -> None:
    monkeypatch.setenv("AWQ_TUI_HOME", str(folder / "home"))
    write_tiny_model(folder / "model", dtype=torch.bfloat16, num_hidden_layers=BLOCKS)
    (folder / "text.txt").write_text("A bird looked at the river and thought of bread. " * 100)
    whole, resumed = (quantize(folder, name, layout, bits, preset, name == "resumed") for name in ("whole", "resumed"))
    assert whole == resumed


@pytest.mark.parametrize(
    ("layout", "bits"),
    [
        (Format.COMPRESSED_TENSORS, 3),
        pytest.param(Format.GPTQ, 2, marks=pytest.mark.slow),
        pytest.param(Format.GPTQ_V2, 8, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_writes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Format, bits: int
) -> None:
    check_resumed(tmp_path, monkeypatch, layout, bits, Preset.BEST)


@pytest.mark.slow
@pytest.mark.parametrize("preset", list(Preset))
@pytest.mark.parametrize("layout", list(Format))
def test_every_preset_in_every_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Format, preset: Preset
) -> None:
    check_resumed(tmp_path, monkeypatch, layout, 4, preset)
