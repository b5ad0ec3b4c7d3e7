"""The demonstration from end to end, on less calibration text so that it is quick."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from awq_engine import cli, demo
from awq_engine.commands import demo as command
from awq_engine.config import Preset
from awq_engine.report import RoleSummary
from tests.engine.journals import RESULT


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(demo, "go_offline", lambda: None)  # it would stay on for the tests after this one
    return tmp_path / "home"


def test_output_lies_in_the_users_data_folder_and_may_be_replaced(home: Path) -> None:
    config = demo.demo_config()
    assert Path(config.output).parent == home / "demo"
    assert config.overwrite
    assert Path(config.model).joinpath("config.json").is_file()


def test_engine_is_kept_off_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(os, "environ", {})
    demo.go_offline()
    assert os.environ == {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def test_demo_does_the_whole_job(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    config = dataclasses.replace(demo.demo_config(), samples=8, seq_len=64, preset=Preset.FAST, threads=1)
    monkeypatch.setattr(demo, "demo_config", lambda: config)
    monkeypatch.setattr(command, "REPLY_TOKENS", 8)
    assert cli.main(["demo", "--json"]) == 0
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert "block 4/4" in captured.err
    assert {role["role"] for role in data["types"]} >= {"q_proj", "k_proj", "v_proj", "o_proj", "down_proj"}
    assert all(role["loss_final"] < role["loss_rounding"] for role in data["types"])
    assert data["bytes_after"] < data["bytes_before"] / 2
    assert 0 < data["eval"]["kl"] < 0.2
    assert data["chat"]["new_tokens"] > 0
    assert data["demo_seconds"] > data["seconds"] > 0


def test_summary_names_every_figure() -> None:
    data = {
        **RESULT,
        "eval": {
            "perplexity": 20.5,
            "perplexity_original": 20.25,
            "tokens": 1000,
            "kl": 0.0123,
            "top1_agreement": 0.95,
        },
        "chat": {"prompt": "Hi?", "reply": "One\x1b[2J\nTwo", "tokens_per_second": 123.4, "backend": "cpu"},
        "demo_seconds": 61.0,
    }
    text = command.describe(data, [RoleSummary("q_proj", 2, 0.5, 3.0, 4e-4, 2e-4, 1e-4, 0.25)])
    for part in (
        "q_proj           2    4.0e-4  2.0e-4  1.0e-4           0.25x",
        "7.3 MB -> 2.7 MB, 4.16 bits per quantized weight",
        "20.25 -> 20.50 on 1000 tokens of held-out stories",
        "0.0123 nats per token, same top-1 95.0 %",
        "One␛[2J\n            Two",
        "123 tokens/s (cpu backend)",
        "1:01, of it 0:21 quantizing; peak memory 900 MB",
    ):
        assert part in text, part
