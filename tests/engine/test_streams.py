"""Batches that a GPU's memory is too small for: simulated, since the host has no such moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import write_tiny_model

from awq_engine.capture import BlockInputs
from awq_engine.config import Preset, RunConfig
from awq_engine.errors import InterruptedRunError, ResourceError, as_known_error
from awq_engine.events import BlockFinished, Event
from awq_engine.journal import Journal
from awq_engine.pipeline import execute
from awq_engine.runs import Run, create_run
from awq_engine.state import replay


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Run]:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    write_tiny_model(tmp_path / "model")
    (tmp_path / "text.txt").write_text("A bird looked at the river and thought of bread. " * 100)

    def make(name: str) -> Run:
        config = RunConfig(
            str(tmp_path / "model"), str(tmp_path / name), group_size=32, calibration=str(tmp_path / "text.txt"),
            samples=8, seq_len=32, device="cpu", preset=Preset.BALANCED,
        )  # fmt: skip
        return create_run(config)

    return make


def small_gpu(monkeypatch: pytest.MonkeyPatch, sequences: int) -> list[int]:
    """From the second block on, more than so many at once are too many; the sizes of all batches that ran."""
    output, sizes = BlockInputs.output, list[int]()

    def limited(self: BlockInputs, block: Any, index: int, batch: int, final: bool = False) -> torch.Tensor:
        size = len(self.hidden[batch])
        if index == 1 and size > sequences:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        sizes.append(size)
        return output(self, block, index, batch, final)

    monkeypatch.setattr(BlockInputs, "output", limited)
    return sizes


def finish(run: Run, stop: bool = False) -> bytes:
    """The weights a run writes; with `stop` it is interrupted after its first block and resumed."""

    def emit(event: Event) -> None:
        journal(event)
        if stop and isinstance(event, BlockFinished) and event.block == 0:
            raise InterruptedRunError("stopped by the test")

    with Journal(run.journal_path) as journal:
        if stop:
            with pytest.raises(InterruptedRunError):
                execute(run, emit)
            stop = False
        execute(run, emit)
    return (Path(run.config().output) / "model.safetensors").read_bytes()


def test_batches_are_halved_until_they_fit(make_run: Callable[[str], Run], monkeypatch: pytest.MonkeyPatch):
    """Finished blocks stay as they are, the rest goes on in smaller batches, and a resumed run does the same."""
    sizes = small_gpu(monkeypatch, 2)
    run = make_run("whole")
    whole = finish(run)
    warnings = replay(run.records()).warnings

    told = [warning.partition("with ")[2] for warning in warnings if "the GPU's memory is full" in warning]
    assert told == ["4 sequences at a time", "2 sequences at a time"]
    assert set(sizes) == {8, 4, 2, 1}
    assert finish(make_run("resumed"), stop=True) == whole


def test_one_sequence_too_many_is_a_sentence(make_run: Callable[[str], Run], monkeypatch: pytest.MonkeyPatch):
    small_gpu(monkeypatch, 0)
    run = make_run("none")
    with Journal(run.journal_path) as journal, pytest.raises(torch.OutOfMemoryError) as caught:
        execute(run, journal)

    assert isinstance(as_known_error(caught.value), ResourceError)
    assert list(replay(run.records()).blocks) == [0]
