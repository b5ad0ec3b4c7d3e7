"""Recipes side by side: which runs that takes, what is taken from earlier ones, and the table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from awq_engine.cli import main
from awq_engine.comparison import (
    HEADER,
    RECIPES,
    cells,
    earlier_run,
    entries,
    markdown,
    row,
)
from awq_engine.config import Method, Preset, RunConfig
from awq_engine.errors import UsageError
from awq_engine.evaluations import evaluation_settings, newest_change, store_evaluation, stored_evaluation
from awq_engine.runs import create_run, list_runs
from tests.engine.tiny_model import write_tiny_model

Capture = pytest.CaptureFixture[str]
BASE = RunConfig("/m", "/folder", samples=2)
RESULT = {
    "bits_per_weight": 4.16, "bytes_after": 2_700_000, "seconds": 12.34, "peak_host_bytes": 5e8, "peak_device_bytes": 0,
    "run_id": "r", "output": "/gone",
}  # fmt: skip
FOUND = {"perplexity": 9.87654, "kl": 0.0123456, "kl_error": None, "top1_agreement": 0.87654}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_every_recipe_at_every_size_has_a_request_of_its_own():
    found = entries(BASE, list(RECIPES), [4, 4], [32, -1])

    assert len(found) == 2 * len(RECIPES) == len({entry.config.output for entry in found})
    assert len({replace(entry.config, output="") for entry in found}) == 2 * len(RECIPES)
    assert found[0].config.output == "/folder/rtn-W4-G32"
    assert found[-1].label == "best W4 row"
    gptq = next(entry.config for entry in found if entry.recipe == "gptq")
    assert (gptq.method, gptq.preset) == (Method.GPTQ, Preset.BALANCED)


def test_unknown_recipes_are_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"no recipe 'awq'; choose from rtn, .*best"):
        entries(BASE, ["awq"], [4], [32])


def test_an_earlier_run_is_the_one_with_the_same_request():
    run = create_run(replace(BASE, output="/folder/a", overwrite=True))

    assert earlier_run(replace(BASE, output="/folder/a")) == run
    assert earlier_run(replace(BASE, output="/folder/a", samples=3)) is None
    (run.path / "run.json").write_text("{")
    assert earlier_run(replace(BASE, output="/folder/a")) is None


def test_the_newest_file_of_a_mix_tells_when_its_text_changed(tmp_path: Path):
    for number, name in enumerate(("old.txt", "new.txt")):
        (tmp_path / name).write_text("Some text.")
        os.utime(tmp_path / name, (number, number))
    assert newest_change(f"{tmp_path}/new.txt+self+{tmp_path}/old.txt") == 1
    assert newest_change("builtin+self") == 0


def test_a_measurement_is_kept_for_its_settings_only(tmp_path: Path):
    """Another window length, or a text that changed since, is another measurement."""
    run, text = create_run(BASE), tmp_path / "text.txt"
    text.write_text("a")
    settings = evaluation_settings(str(text), 64, 512, "cpu")
    store_evaluation(run, settings, FOUND)

    assert stored_evaluation(run, settings) == FOUND
    assert stored_evaluation(run, evaluation_settings(str(text), 128, 512, "cpu")) is None
    os.utime(text, (1, 1))
    assert stored_evaluation(run, evaluation_settings(str(text), 64, 512, "cpu")) is None
    (run.path / "evaluation.json").write_text('{"settings"')
    assert stored_evaluation(run, settings) is None


def test_the_table_says_what_was_measured():
    line = row(entries(BASE, ["rtn"], [4], [-1])[0], RESULT, FOUND)
    original = {"bytes": 7_300_000, "perplexity": None}
    (first, second), text = cells([line], original), markdown([line], original, "caption")

    assert len(first) == len(second) == len(HEADER)
    assert first[:6] == ["original", "", "", "", "7.3 MB", "too large"]
    assert second == ["rtn", "4", "row", "4.16", "2.7 MB", "9.8765", "0.01235", "-", "87.65%", "12.3", "500 MB"]
    assert line.output is None
    rows = text.splitlines()[2:]
    assert len(rows) == 4
    assert {one.count("|") for one in rows} == {len(HEADER) + 1}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--recipes", "rtn,magic"], "no recipe 'magic'"),
        (["--bits", "four"], "must be whole numbers"),
        (["--group-sizes", "48"], "48"),
        (["--text", "absent.txt"], "There is no text"),
        (["--max-tokens", "0"], "at least 1"),
        (["--seq-len", "4096"], "4096"),
    ],
)
def test_what_cannot_work_is_refused_before_any_run(tmp_path: Path, capsys: Capture, options: list[str], words: str):
    model = write_tiny_model(tmp_path / "model")
    assert main(["compare", str(model), "--group-sizes", "32", "--samples", "2", "--seq-len", "64", *options]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""
    assert list_runs() == []


@pytest.mark.slow
def test_a_killed_comparison_goes_on_where_it_stopped(tmp_path: Path, capsys: Capture):
    """Killed in its second recipe, it does neither again; the table agrees with `eval`, and `--keep` makes models."""
    model, folder = write_tiny_model(tmp_path / "model"), tmp_path / "side-by-side"
    options = ["--recipes", "rtn,fast", "--group-sizes", "32", "--samples", "2", "--seq-len", "64"]
    command = ["compare", str(model), *options, "--max-tokens", "256", "-o", str(folder), "--keep", "--json"]
    first = subprocess.Popen([sys.executable, "-m", "awq_engine.cli", *command], stderr=subprocess.DEVNULL)
    _wait(lambda: len(list_runs()) == 2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    runs = list_runs()
    assert stored_evaluation(runs[1], evaluation_settings("builtin", 64, 256, "auto")) is not None

    assert main(command) == 0
    data = json.loads(capsys.readouterr().out)
    assert list_runs() == runs
    assert [line["run_id"] for line in data["rows"]] == [runs[1].id, runs[0].id]
    assert json.loads((folder / "comparison.json").read_text()) == data
    line = data["rows"][1]
    evaluation = ["eval", line["output"], "--against", str(model), "--seq-len", "64", "--max-tokens", "256", "--json"]
    assert main(evaluation) == 0
    found = json.loads(capsys.readouterr().out)
    assert {key: line[key] for key in ("kl", "perplexity", "top1_agreement")} == {
        key: found[key] for key in ("kl", "perplexity", "top1_agreement")
    }

    assert main([word for word in command if word not in ("--keep", "--json")]) == 0
    assert list_runs() == runs
    assert [path.name for path in sorted(folder.iterdir())] == ["comparison.json", "comparison.md"]
    assert f"{found['kl']:.5f}" in capsys.readouterr().out


def _wait(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
