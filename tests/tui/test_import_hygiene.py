"""The app paints before torch could even load: no module of it, and nothing it imports, needs a heavy package."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import awq_tui

HEAVY = {"torch", "transformers", "numpy", "triton", "safetensors", "tokenizers", "datasets", "pyarrow"}
FIRST_PAINT = HEAVY | {"huggingface_hub", "httpx2"}
"""What must not be imported before the first screen is drawn; the Hub's client is, later, on a thread."""


def app_modules() -> list[str]:
    """Every module of the package but its entry point, which runs."""
    found = (module.name for module in pkgutil.walk_packages(awq_tui.__path__, "awq_tui."))
    return sorted(name for name in found if not name.endswith("__main__"))


def imported_by(statement: str) -> set[str]:
    """Top-level packages loaded in a new interpreter that ran `statement`."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_every_module_of_the_app_is_light() -> None:
    modules = app_modules()
    assert "awq_tui.app" in modules
    assert not imported_by(f"import {', '.join(modules)}") & HEAVY


@pytest.mark.parametrize("module", ["awq_tui.app", "awq_tui.screens.models", "awq_tui.screens.configure"])
def test_first_paint_waits_for_nothing(module: str) -> None:
    assert not imported_by(f"import {module}") & FIRST_PAINT


def test_the_probe_sees_what_is_imported() -> None:
    assert "numpy" in imported_by("import numpy")
