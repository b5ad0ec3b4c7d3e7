"""The report on this installation: true, complete, and silent about secrets."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest
import torch

from awq_engine import doctor as doctor_module
from awq_engine.doctor import doctor, render


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return doctor()


def test_the_report_is_json_and_names_the_versions(report: dict[str, Any]) -> None:
    assert json.loads(json.dumps(report)) == report
    assert report["versions"]["python"] == platform.python_version()
    assert report["versions"]["torch"] == torch.__version__


def test_auto_takes_an_available_backend_that_computes(report: dict[str, Any]) -> None:
    auto = report["auto"]
    assert auto["backend"] in [status["name"] for status in report["backends"] if status["available"]]
    assert auto["problem"] is None
    assert 0 < auto["relative_error"] < 1e-2


def test_the_decoder_of_the_bundled_model_is_told(report: dict[str, Any]) -> None:
    assert report["decoding"] == "our own decoder for the bundled model"
    assert report["decoding"] in render(report)


def test_memory_and_disk_are_plausible(report: dict[str, Any]) -> None:
    cpu = report["devices"][0]
    assert cpu["name"] == "cpu"
    assert 0 < cpu["memory_free"] <= cpu["memory_total"]
    assert 0 < report["disk"]["free"] <= report["disk"]["total"]


def test_the_text_says_what_the_report_says(report: dict[str, Any]) -> None:
    text = render(report)
    for words in (torch.__version__, report["auto"]["backend"], report["disk"]["runs_dir"], report["hub"]["cache"]):
        assert words in text
    for status in report["backends"]:
        assert status["reason"] in text


def test_a_token_is_told_of_but_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_thisIsASecretOfTheTest")
    found = doctor()
    assert found["hub"]["token"] is True
    assert "thisIsASecret" not in json.dumps(found) + render(found)


def test_offline_and_runs_directory_follow_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "elsewhere"))
    found = doctor()
    assert found["hub"]["offline"] is True
    assert found["disk"]["runs_dir"] == str(tmp_path / "elsewhere/runs")
    assert "offline" in render(found)


def test_a_backend_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing compiler shows up here and not in the middle of a chat."""

    def broken(*_: object) -> float:
        raise RuntimeError("no C compiler\nlong traceback")

    monkeypatch.setattr(doctor_module, "_check", broken)
    found = doctor()
    assert found["auto"]["problem"] == "RuntimeError: no C compiler"
    assert "FAILED: RuntimeError: no C compiler" in render(found)


def test_what_is_not_installed_is_said(report: dict[str, Any]) -> None:
    without = report | {"versions": report["versions"] | {"triton": None}}
    assert "triton           not installed" in render(without)
