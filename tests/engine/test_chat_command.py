"""What `chat` says around the answer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from awq_engine import cli
from tests.engine.rounded_checkpoint import demo_model


def test_folder_name_cannot_command_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(demo_model(), tmp_path / "evil\x1b]0;title\x07\nname")
    assert cli.main(["chat", str(folder), "--prompt", "Hello", "--max-tokens", "2", "--device", "cpu"]) == 0
    error = capsys.readouterr().err
    assert "evil␛]0;title␇␤name: " in error
    assert "\x1b" not in error
    assert "\x07" not in error


def test_an_answer_ends_before_a_stop_string(capsys: pytest.CaptureFixture[str]) -> None:
    """With every option that says how to draw."""
    command = ["chat", str(demo_model()), "--prompt", "Tell me about a dog.", "--max-tokens", "60", "--device", "cpu"]
    options = ["--top-p", "0.9", "--top-k", "9", "--min-p", "0.1", "--repetition-penalty", "1.1", "--seed", "1"]
    assert cli.main([*command, *options]) == 0
    whole = capsys.readouterr().out.rstrip("\n")
    stop = whole[12:20]
    assert cli.main([*command, *options, "--stop", "never there", "--stop", stop]) == 0
    captured = capsys.readouterr()
    assert captured.out.rstrip("\n") == whole[: whole.index(stop)]
    assert ", stop, seed 1]" in captured.err


@pytest.mark.parametrize("option", [("--top-k", "-1"), ("--min-p", "2"), ("--repetition-penalty", "0"), ("--stop", "")])
def test_settings_that_make_no_sense_are_refused_before_anything_is_loaded(
    option: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["chat", "nowhere", "--prompt", "x", *option]) == 2
    assert option[0].strip("-").replace("-", "_") in capsys.readouterr().err
