"""awq_tui -> awq_engine -> awq_kernels, never back; checked in the sources and in what really gets imported."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import awq_engine
import awq_kernels

ROOT = Path(__file__).parent.parent


def modules_of(package: object) -> list[str]:
    """The names of a package's modules, those that run on import left out."""
    name, path = package.__name__, package.__path__  # type: ignore[attr-defined]
    found = (module.name for module in pkgutil.walk_packages(path, f"{name}."))
    return sorted(name for name in found if not name.endswith("__main__"))


def test_import_contracts_hold() -> None:
    """The contracts of pyproject.toml: layers, no textual below the app, kernels on torch and triton only."""
    importlinter = pytest.importorskip("importlinter.cli")
    assert importlinter is not None
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [(awq_engine, {"textual", "awq_tui"}), (awq_kernels, {"textual", "awq_tui", "awq_engine", "transformers"})],
    ids=["engine", "kernels"],
)
def test_lower_packages_never_load_what_is_above(package: object, forbidden: set[str]) -> None:
    code = (
        f"import sys, {', '.join(modules_of(package))}\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & forbidden


def test_every_module_is_on_the_map() -> None:
    """ARCHITECTURE.md names every module, and no module that is gone."""
    named = set(re.findall(r"`((?:[a-z_0-9]+/)?[a-z_0-9]+)`", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")))
    packages = (ROOT / "awq_tui", ROOT / "engine/awq_engine", ROOT / "kernels/awq_kernels")
    modules = {
        file.relative_to(package).with_suffix("").as_posix()
        for package in packages
        for file in package.rglob("*.py")
        if not file.stem.startswith("__")
    }

    assert modules - named == set()
    assert named - modules == set()
