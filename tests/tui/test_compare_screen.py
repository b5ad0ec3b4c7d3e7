"""Finished runs side by side, and measuring from the screen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from awq_engine.config import Format, Preset
from awq_engine.errors import AwqError
from awq_engine.evaluations import EVALUATION, measuring
from awq_engine.runs import Run
from awq_engine.side_jobs import SideJob
from awq_engine.speeds import SPEED
from awq_tui.app import AwqApp
from awq_tui.results import as_markdown, frontier, result_rows
from awq_tui.run_book import RunBook
from awq_tui.screens.compare import CompareScreen
from awq_tui.screens.evaluate import EvaluateModal, Measurement, read_measurement
from awq_tui.screens.inspect import InspectScreen
from awq_tui.widgets.frontier_chart import Dot, FrontierChart
from awq_tui.widgets.plot import row_text
from tests.tui.hosting import SIZES, screen_text, until
from tests.tui.recorded_run import measured_run, recorded_run


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "awq-home"


def three_results(home: Path) -> list[Run]:
    """Small and far, large and near, and one that both beat."""
    shapes = (
        (0.11, {"bits": 3, "format": Format.GPTQ}, 380_000_000),
        (0.009, {"preset": Preset.BEST}, 457_000_000),
        (0.2, {}, 460_000_000),
    )
    return [measured_run(home, kl, recipe, size) for kl, recipe, size in shapes]


@pytest.mark.parametrize("size", SIZES)
async def test_measured_runs_stand_in_a_table_and_a_chart(size: tuple[int, int], home: Path) -> None:
    three_results(home)
    recorded_run(home, finished_blocks=1)
    app = AwqApp()
    async with app.run_test(size=size, notifications=True) as pilot:
        await pilot.press("5")
        await until(pilot, lambda: "3 finished runs, 3 measured" in screen_text(pilot))
        await until(pilot, lambda: "W4 g128 best" in screen_text(pilot) and "0.0090" in screen_text(pilot))
        await until(pilot, lambda: "builtin in windows of 512" in screen_text(pilot))
        assert "KL from the original against size" in screen_text(pilot)
        await pilot.press("slash", *"w3", "enter")
        await until(pilot, lambda: "1 finished run," in screen_text(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, InspectScreen))


async def test_nothing_finished_says_what_to_do() -> None:
    app = AwqApp()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await pilot.press("5")
        await until(pilot, lambda: "Nothing has been quantized yet" in screen_text(pilot))
        await pilot.press("e", "x", "c", "p", "enter")
        assert isinstance(app.screen, CompareScreen)


async def test_a_result_is_measured_in_another_process(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = measured_run(home, None)
    asked = []

    def fake(runs: list[Run], settings: dict[str, object]) -> subprocess.Popen[bytes]:
        asked.append((runs, settings["seq_len"]))
        locks = [EVALUATION.take_lock(run) for run in runs]
        EVALUATION.report(runs[0], done=3, total=12)
        keep.extend(locks)
        return subprocess.Popen([sys.executable, "-c", ""])

    keep: list[int | None] = []
    monkeypatch.setattr("awq_tui.screens.compare.spawn_evaluation", fake)
    app = AwqApp()
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await pilot.press("5")
        await until(pilot, lambda: "e measures this result" in screen_text(pilot))
        await pilot.press("e")
        await until(pilot, lambda: isinstance(app.screen, EvaluateModal))
        app.screen.query_one("#text").value = "/nowhere.txt"
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "There is no text /nowhere.txt" in screen_text(pilot))
        app.screen.query_one("#text").value = "builtin"
        app.screen.query_one("#seq_len").value = "256"
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "measuring: 3 of 12 windows" in screen_text(pilot))
        assert asked == [([run], 256)]
        await pilot.press("x")
        await until(pilot, lambda: (run.path / "stop-evaluation").exists())


async def test_the_table_is_written_out(home: Path) -> None:
    three_results(home)
    app = AwqApp()
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        await pilot.press("5")
        await until(pilot, lambda: "3 measured" in screen_text(pilot))
        await pilot.press("p")
        await until(pilot, lambda: Path("awq-results.md").exists())
    assert Path("awq-results.csv").read_text().splitlines()[0].startswith("label,model,recipe,bits_per_weight,bytes")
    assert "| Qwen2.5-0.5B | W4 g128 best |" in Path("awq-results.md").read_text()


def test_only_what_nothing_beats_is_on_the_frontier(home: Path) -> None:
    small, near, beaten = three_results(home)
    rows = result_rows(RunBook().refresh())
    assert frontier(rows) == {small, near}
    assert beaten in {row.run for row in rows}
    assert as_markdown(rows).count("\n") == 5


def test_the_chart_shows_every_letter_even_on_one_place() -> None:
    chart = FrontierChart()
    chart.show([Dot("a", 100, 0.1, True), Dot("b", 100, 0.1, False), Dot("c", 300, 0.01, True)])
    text = "\n".join(row_text(row) for row in chart.draw(60, 12))
    assert all(letter in text for letter in "abc")
    assert all(len(row_text(row)) <= 60 for row in chart.draw(60, 12))
    chart.show([Dot("a", 100, 0.0, True)], "nothing yet")
    assert "nothing yet" in "".join(row_text(row) for row in chart.draw(60, 12))


def test_a_measurement_that_died_is_neither_going_on_nor_complete(home: Path) -> None:
    run = measured_run(home, None)
    EVALUATION.report(run, done=1, total=9)
    assert not measuring(run).going_on
    EVALUATION.report(run, error="The disk is full.")
    assert measuring(run).error == "The disk is full."
    (run.path / "evaluation.json").write_text('{"result": {"kl": "x"}}')
    assert measuring(run).evaluation is None


@pytest.mark.parametrize("values", [{"seq_len": "1"}, {"max_tokens": "x"}, {"text": "/no"}])
def test_values_that_cannot_be_measured_with_are_named(values: dict[str, str]) -> None:
    good = {"text": "builtin", "seq_len": "64", "max_tokens": "512"}
    assert read_measurement(good) == Measurement("builtin", 64, 512)
    with pytest.raises(AwqError):
        read_measurement({**good, **values})


SPEEDS = {
    "device": "cpu", "backend": "cpu", "copy_bytes_per_second": 2e10,
    "products": [{
        "out_features": 2048, "in_features": 512, "bits": 4, "group_size": 128, "count": 7, "tokens": 1,
        "backend": "cpu", "seconds": 1.5e-4, "spread": 0.1, "bytes_per_second": 9e9, "share_of_copy": 0.45,
        "times_floats": 3.25, "relative_error": 1e-4,
    }],
    "writing": {"tokens": 32, "tokens_per_second": 31.5, "seconds_to_first_token": 0.38, "decoding": "our own decoder"},
}  # fmt: skip


async def test_a_result_is_timed_in_another_process(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, keep = measured_run(home, 0.1), []

    def fake(job: SideJob, runs: list[Run], settings: dict[str, object]) -> subprocess.Popen[bytes]:
        assert runs == [run]
        keep.extend(job.take_lock(run) for run in runs)
        job.report(run, done=2, total=4)
        return subprocess.Popen([sys.executable, "-c", ""])

    monkeypatch.setattr(SideJob, "spawn", fake)
    app = AwqApp()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await pilot.press("5")
        await until(pilot, lambda: "1 measured" in screen_text(pilot))
        await pilot.press("b")
        await until(pilot, lambda: "timing" in screen_text(pilot) and "50 %" in screen_text(pilot))
        await pilot.press("x")
        await until(pilot, lambda: (run.path / "stop-speed").exists())
        SPEED.store(run, SPEEDS)
        SPEED.end(run)
        os.close(keep[0])
        await until(pilot, lambda: "31.5 tokens/s" in screen_text(pilot) and "3.25x" in screen_text(pilot))
        await pilot.press("v")
        await until(pilot, lambda: "KL from the original" in screen_text(pilot))
        await pilot.resize_terminal(200, 60)
        await until(pilot, lambda: "KL from the original" in screen_text(pilot) and "3.25x" in screen_text(pilot))
