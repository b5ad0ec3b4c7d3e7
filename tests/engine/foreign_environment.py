"""Other people's loaders in environments of their own, made when a test first asks for one, and kept in the cache.

Each has its exact versions in `loaders/NAME.txt`. torch is installed first and alone, from wherever pip is configured
to look, in the version of our own pin; the rest follows without dependencies, since gptqmodel's metadata asks for a
newer torch than it needs.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest

HERE = Path(__file__).parent / "loaders"
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def run_in(name: str, script: str, *arguments: str | Path) -> None:
    """Run one of the scripts in `loaders/` by the Python of the environment `name`; a failure shows its last words."""
    python = environment(name) / "bin" / "python"
    command = [str(python), "-W", "ignore", str(HERE / script), *map(str, arguments)]
    settings = {**os.environ, "GPTQMODEL_CPU_WORKERS": "2", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    settings.pop("PYTHONPATH", None)
    where = python.parents[1]  # where it leaves its logs
    done = subprocess.run(command, env=settings, cwd=where, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def environment(name: str) -> Path:
    """The folder of the environment `name`; the test is skipped where pip cannot install it."""
    wanted = (HERE / f"{name}.txt").read_bytes()
    digest = hashlib.sha256(wanted + sys.version.encode()).hexdigest()[:12]
    folder = Path(platformdirs.user_cache_dir("awq-tui")) / "test-environments" / f"{name}-{digest}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        _make(folder, HERE / f"{name}.txt")
        (folder / "complete").touch()
    return folder


def _make(folder: Path, requirements: Path) -> None:
    torch_pin = re.search(r"^torch==\S+", CONSTRAINTS.read_text(), re.MULTILINE)
    assert torch_pin is not None
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    for step in (["setuptools", torch_pin[0]], ["--no-deps", "-r", str(requirements)]):
        done = subprocess.run([*pip, *step], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"pip cannot install {requirements.name}: {done.stderr.strip().splitlines()[-1]}")
