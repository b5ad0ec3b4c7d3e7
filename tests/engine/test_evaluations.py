"""Measuring a run's output in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq_engine.config import RunConfig
from awq_engine.evaluations import EVALUATION, evaluation_settings, measuring, spawn_evaluation
from awq_engine.runs import Run, create_run

DEMO = Path(__file__).parents[2] / "engine" / "awq_engine" / "data" / "demo-model"
SETTINGS = evaluation_settings("builtin", 32, 64, "cpu")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run whose output is the original itself: nothing is lost."""
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path))
    return create_run(RunConfig(str(DEMO), str(DEMO)))


def test_a_run_is_measured_and_the_result_kept_with_it(run: Run) -> None:
    process = spawn_evaluation([run], SETTINGS)
    assert process is not None
    assert measuring(run).going_on
    assert spawn_evaluation([run], SETTINGS) is None
    assert process.wait(120) == 0
    found = measuring(run)
    assert found.evaluation is not None
    assert (found.going_on, found.error) == (False, "")
    assert (found.evaluation.kl, found.evaluation.top1_agreement, found.evaluation.tokens) == (0.0, 1.0, 62)


def test_what_goes_wrong_is_kept_as_a_sentence(run: Run, tmp_path: Path) -> None:
    process = spawn_evaluation([run], evaluation_settings(str(tmp_path / "gone.txt"), 32, 64, "cpu"))
    assert process is not None
    assert process.wait(120) != 0
    assert "gone.txt" in measuring(run).error


def test_one_that_was_stopped_before_its_turn_measures_nothing(run: Run) -> None:
    other = create_run(RunConfig(str(DEMO), str(DEMO)))
    lock = EVALUATION.take_lock(other)
    assert lock is not None
    process = spawn_evaluation([run, other], SETTINGS)
    assert process is not None
    EVALUATION.request_stop(run)
    assert process.wait(120) == 130
    assert measuring(run).error == "The measurement was stopped."
    assert measuring(other).evaluation is None
