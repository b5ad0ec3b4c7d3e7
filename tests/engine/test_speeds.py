"""Timing a run's output in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from awq_engine.config import RunConfig
from awq_engine.demo import MODEL
from awq_engine.runs import create_run
from awq_engine.speeds import SPEED, read_speeds
from tests.engine.rounded_checkpoint import demo_model, write_awq_folder


@pytest.mark.slow
def test_products_and_writing_are_timed_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    output = write_awq_folder(demo_model(), tmp_path / "model")
    run = create_run(RunConfig(str(MODEL), str(output)))
    assert read_speeds(run) is None
    process = SPEED.spawn([run], {"backend": "auto", "device": "cpu"})
    assert process is not None
    assert SPEED.standing(run).going_on
    assert process.wait(180) == 0, (run.path / "speed.log").read_text()
    found = read_speeds(run)
    assert found is not None
    assert found.products
    assert all(product.relative_error < 1e-2 for product in found.products)
    assert found.writing is not None
    assert found.writing.tokens_per_second > 0
    assert (SPEED.standing(run).going_on, SPEED.standing(run).error) == (False, "")


def test_a_model_that_is_not_quantized_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path))
    run = create_run(RunConfig(str(MODEL), str(MODEL)))
    process = SPEED.spawn([run], {"backend": "auto", "device": "cpu"})
    assert process is not None
    assert process.wait(180) == 2
    assert "is not quantized" in SPEED.standing(run).error


GOOD = {"device": "cpu", "backend": "cpu", "copy_bytes_per_second": 1e9, "products": [], "writing": None}


@pytest.mark.parametrize(
    "damage", [{"products": 3}, {"products": [{}]}, {"device": None}, {"copy_bytes_per_second": "fast"}]
)
def test_damaged_results_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: dict[str, object]) -> None:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path))
    run = create_run(RunConfig("m", "out"))
    for data, readable in ((GOOD, True), (GOOD | damage, False)):
        (run.path / "speed.json").write_text(json.dumps(data))
        assert (read_speeds(run) is not None) == readable
    (run.path / "speed.json").write_text("[")
    assert read_speeds(run) is None
