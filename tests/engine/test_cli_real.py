"""The commands that need torch, on a tiny random model with the bundled tokenizer."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from awq_engine import cli
from tests.engine.rounded_checkpoint import demo_model, write_float_folder

Capture = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Finished:
    """A quantization that ran as a person would run it."""

    folder: Path
    result: subprocess.CompletedProcess[str]

    @property
    def data(self) -> dict:
        return json.loads(self.result.stdout)


def awq_tui(folder: Path, *arguments: str, **streams: object) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "AWQ_TUI_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 240, **streams}
    return subprocess.run([sys.executable, "-m", "awq_tui", *arguments], env=env, cwd=folder, check=False, **options)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("work")
    write_float_folder(folder / "tiny", vocab_size=2048)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(demo_model() / name, folder / "tiny" / name)
    options = ["--group-size", "32", "--samples", "4", "--seq-len", "64", "--json"]
    return Finished(folder, awq_tui(folder, "quantize", "tiny", *options))


@pytest.fixture
def at_work(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AWQ_TUI_HOME", str(finished.folder / "home"))
    monkeypatch.chdir(finished.folder)
    return finished.folder


def test_quantize_reports_what_it_promised(finished: Finished) -> None:
    assert finished.result.returncode == 0, finished.result.stderr
    data = finished.data
    assert data["output"] == str(finished.folder / "tiny-AWQ-W4-G32")
    assert (data["bits"], data["group_size"], data["format"], data["blocks"]) == (4, 32, "awq", 2)
    assert data["bits_per_weight"] == pytest.approx(4 + 20 / 32)
    written = sum(file.stat().st_size for file in Path(data["output"]).glob("*.safetensors"))
    assert 0 <= written - data["bytes_after"] < 20_000
    assert "block 2/2" in finished.result.stderr


def test_dry_run_says_the_same_as_the_run_and_writes_nothing(
    at_work: Path, finished: Finished, capsys: Capture
) -> None:
    before = sorted(at_work.rglob("*"))
    arguments = ["quantize", "tiny", "--group-size", "32", "-o", "other", "--dry-run"]
    assert cli.main([*arguments, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert len(plan["linears"]) == 14
    assert plan["bytes_after"] == finished.data["bytes_after"]
    assert plan["bits_per_weight"] == finished.data["bits_per_weight"]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert "14 linears in 2 blocks" in text
    assert "a guess" in text  # a run this small tells nothing about the machine's speed
    assert sorted(at_work.rglob("*")) == before


def test_eval_against_the_original(at_work: Path, finished: Finished, capsys: Capture) -> None:
    arguments = ["eval", finished.data["run_id"], "--against", "tiny", "--seq-len", "64", "--max-tokens", "256"]
    assert cli.main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert 0 < data["kl"] < 0.1
    assert data["tokens"] == 4 * 63
    assert "evaluated 2 of 4 windows" in captured.err
    assert cli.main(arguments) == 0
    assert f"kl          {data['kl']:.6f}" in capsys.readouterr().out
    assert at_work.is_dir()


@pytest.mark.usefixtures("at_work")
def test_chat_prints_only_the_reply(capsys: Capture) -> None:
    options = ["--temperature", "0", "--max-tokens", "6", "--backend", "reference"]
    assert cli.main(["chat", "tiny-AWQ-W4-G32", "--prompt", "Hello", *options]) == 0
    first = capsys.readouterr()
    assert "[6 tokens" in first.err
    assert "reference on cpu" in first.err or "reference on cuda" in first.err
    assert cli.main(["chat", "latest", "--prompt", "Hello", *options]) == 0
    assert capsys.readouterr().out == first.out


def test_chat_takes_the_prompt_from_a_pipe(finished: Finished) -> None:
    arguments = ["chat", "tiny-AWQ-W4-G32", "--temperature", "0", "--max-tokens", "3"]
    piped = awq_tui(finished.folder, *arguments, stdin=None, input="Hello")
    assert piped.returncode == 0, piped.stderr
    assert "[3 tokens" in piped.stderr


def test_chat_without_any_prompt_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
    assert cli.main(["chat", str(demo_model())]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "There is no prompt" in captured.err


@pytest.mark.usefixtures("at_work")
def test_doctor_reports_in_words_and_json(capsys: Capture) -> None:
    assert cli.main(["doctor"]) == 0
    assert "torch" in capsys.readouterr().out
    assert cli.main(["doctor", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


def test_program_without_command_or_terminal_shows_the_help(tmp_path: Path) -> None:
    result = awq_tui(tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert "usage: awq-tui" in result.stderr
    assert "the app needs a terminal" in result.stderr
