"""What people install: a wheel with everything in it, which works in an environment that has nothing else.

Run with `pytest -m slow tests/test_package.py`: it builds and installs for real, torch included, from wherever pip is
configured to look.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {"awq_tui": ROOT, "awq_engine": ROOT / "engine", "awq_kernels": ROOT / "kernels"}
MAX_WHEEL = 13_000_000
"""Bytes; the demo model alone may have 12 MB."""

pytestmark = [pytest.mark.slow, pytest.mark.network]


def run(command: Sequence[str | Path], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command that has to succeed, in an environment without ours, its standard input closed."""
    foreign = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**foreign, **environment}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT], cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an empty environment into which only the wheel, and so what it declares to need, was installed."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(folder, with_pip=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, "-c", ROOT / "constraints.txt", wheel], cwd=folder)
    return folder / "bin"


def test_wheel_holds_every_source_and_every_data_file(wheel: Path) -> None:
    tracked = {Path(name) for name in run(["git", "ls-files", *SOURCES.values()], cwd=ROOT).stdout.splitlines()}
    wanted = {
        str(path.relative_to(source.relative_to(ROOT)))
        for package, source in SOURCES.items()
        for path in tracked
        if path.is_relative_to(source.relative_to(ROOT) / package)
    }
    assert "awq_engine/data/demo-model/model.safetensors" in wanted
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == wanted
    assert wheel.stat().st_size < MAX_WHEEL


def test_installed_wheel_runs_the_demo(scripts: Path, tmp_path: Path) -> None:
    result = run([scripts / "awq-tui", "demo"], cwd=tmp_path, AWQ_TUI_HOME=str(tmp_path / "home"), HOME=str(tmp_path))
    assert "block 4/4" in result.stderr
    starts = ("q_proj", "down_proj", "size", "perplexity", "KL", "chat", "took", "output")
    for start in starts:
        assert any(line.startswith(start) for line in result.stdout.splitlines()), f"no line for {start}"
    assert "tokens/s" in result.stdout
    assert (tmp_path / "home" / "demo" / "demo-model-AWQ-W4-G128" / "model.safetensors").is_file()


def test_installed_commands_start_from_anywhere(scripts: Path, tmp_path: Path) -> None:
    assert run([scripts / "awq-tui", "--version"], cwd=tmp_path).stdout.startswith("awq-tui ")
    code = "import awq_tui.app, awq_engine, awq_kernels; print(awq_tui.__file__)"
    assert str(scripts.parent) in run([scripts / "python", "-c", code], cwd=tmp_path).stdout
