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
