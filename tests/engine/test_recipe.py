"""Methods and presets: the steps they stand for, and what they do to a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from awq_engine.checkpoint import read_checkpoint
from awq_engine.config import Method, Preset, RunConfig
from awq_engine.estimate import work
from awq_engine.recipe import Recipe, recipe_of
from awq_engine.report import read_report
from tests.engine.tiny_model import write_tiny_model
from tests.engine.tiny_run import executed, tiny_request


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A run on the tiny model, `balanced`."""
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    return tiny_request(tmp_path, write_tiny_model(tmp_path / "model"), method=Method.GPTQ)


def test_rounding_has_no_presets():
    for preset in Preset:
        assert recipe_of(RunConfig("m", "o", method=Method.RTN, preset=preset)) == Recipe()


def test_a_more_patient_preset_takes_every_step_of_the_quicker_one():
    """Both methods that look at text grow with the preset; GPTQ never has scales or clips."""
    for method in (Method.AWQ, Method.GPTQ):
        recipes = [recipe_of(RunConfig("m", "o", method=method, preset=preset)) for preset in Preset]
        steps = [{name for name, taken in vars(recipe).items() if taken} for recipe in recipes]
        assert steps[0] < steps[1] < steps[2]
        assert all((method is Method.AWQ) == recipe.scales == recipe.clips for recipe in recipes)


def test_work_follows_the_steps():
    """The forecast of the time knows that GPTQ searches nothing and that patience costs."""
    shapes = [(64, 64), (128, 64)]
    costs = {
        (method, preset): work(shapes, RunConfig("m", "o", method=method, preset=preset, samples=4, seq_len=64))
        for method in Method
        for preset in Preset
    }
    assert costs[Method.RTN, Preset.BEST] < costs[Method.GPTQ, Preset.FAST] < costs[Method.AWQ, Preset.FAST]
    assert costs[Method.GPTQ, Preset.FAST] < costs[Method.GPTQ, Preset.BALANCED] < costs[Method.GPTQ, Preset.BEST]


@pytest.mark.parametrize("preset", list(Preset))
def test_gptq_is_error_feedback_and_nothing_else(config: RunConfig, preset: Preset):
    """No fold is even tried, what is not a quantized weight keeps its bytes, and less is lost than by rounding."""
    executed(replace(config, preset=preset))
    source, written = read_checkpoint(Path(config.model)), read_checkpoint(Path(config.output))
    report = read_report(Path(config.output))

    kept = [name for name in source.tensors if name in written.tensors]
    assert any("layernorm" in name for name in kept)
    for name in kept:
        old, new = source.tensors[name], written.tensors[name]
        assert (
            old.file.read_bytes()[old.start : old.start + old.nbytes]
            == new.file.read_bytes()[new.start : new.start + new.nbytes]
        )
    assert report["folds"] == report["fallbacks"] == []
    for layer in report["layers"]:
        assert list(layer["losses"]) == ["rounding", "feedback"]
        assert (layer["clipped_share"], layer["alpha"]) == (0, None)
    gain = sum(x["loss_final"] for x in report["layers"]) / sum(x["loss_rounding"] for x in report["layers"])
    assert gain < 0.9
