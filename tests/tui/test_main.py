"""The `awq-tui` command: where the app opens, and where the headless command line takes over."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

from awq_engine import demo
from awq_engine.errors import UsageError
from awq_tui import __main__ as program


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Every run the app was opened on; the app itself stays out of it."""
    seen: list[str | None] = []

    def open_app(run_id: str | None = None) -> int:
        seen.append(run_id)
        return 7

    module = types.ModuleType("awq_tui.app")
    module.main = open_app  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "awq_tui.app", module)
    monkeypatch.setattr(program, "_has_terminal", lambda: True)
    return seen


def test_no_arguments_in_a_terminal_open_the_app(opened: list[str | None]) -> None:
    assert program.main([]) == 7
    assert opened == [None]


def test_no_arguments_without_a_terminal_show_the_help(
    opened: list[str | None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "_has_terminal", lambda: False)
    assert program.main([]) == 2
    assert opened == []
    assert "the app needs a terminal" in capsys.readouterr().err


def test_demo_in_a_terminal_opens_the_app_on_its_run(opened: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["true"]) as engine:
        monkeypatch.setattr(demo, "start_demo", lambda: (types.SimpleNamespace(id="the-run"), engine))
        assert program.main(["demo"]) == 7
    assert opened == ["the-run"]


def test_demo_that_cannot_start_says_why(
    opened: list[str | None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise UsageError("There is no room.")

    monkeypatch.setattr(demo, "start_demo", refuse)
    assert program.main(["demo"]) == 2
    assert capsys.readouterr().err == "awq-tui: There is no room.\n"
    assert opened == []


@pytest.mark.parametrize("arguments", [["runs"], ["demo", "--help"], ["--help"]])
@pytest.mark.usefixtures("capsys")
def test_commands_stay_headless_in_a_terminal(
    opened: list[str | None], arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path))
    assert program.main(arguments) == 0
    assert opened == []
