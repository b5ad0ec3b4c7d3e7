"""The changes that `scripts/mutate.py` makes, and that tests which notice nothing are told apart from those that do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from mutate import mutants  # noqa: E402

SOURCE = '''
"""Not this."""

@cached(size=3)
def f(x: int = 1) -> bool:
    """Nor this."""
    if x < 2 and not done:
        raise ValueError(f"{x} is too small, {9 - x} missing")
    return min(x, -x)
'''


def test_one_thing_is_changed_at_a_time() -> None:
    whole = ast.unparse(ast.parse(SOURCE))
    found = {mutant.change: ast.unparse(mutant.tree) for mutant in mutants(SOURCE)}
    assert set(found) == {
        "x < 2  ->  x <= 2", "x < 2 and (not done)  ->  x < 2 or not done", "not done  ->  done", "2  ->  3",
        "if x < 2 and (not done):  ->  if not (x < 2 and (not done)):", "return min(x, -x)  ->  return None",
        "raise ValueError(f'{x} is too small, {9 - x} missing')  ->  pass", "min  ->  max", "-x  ->  x", "1  ->  2",
    }  # fmt: skip
    assert len(set(found.values()) - {whole}) == len(found)


def test_what_no_test_notices_is_told(tmp_path: Path) -> None:
    module, tests = ROOT / "engine" / "awq_engine" / "paths.py", tmp_path / "test_paths.py"
    tests.write_text("from awq_engine import paths\ndef test_name(): assert paths.LONGEST_NAME == 255\n")
    command = [sys.executable, "scripts/mutate.py", str(module), str(tests), "--mutants", "1000"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "255  ->  256" not in done.stdout
    assert "4095  ->  4096\n" in done.stdout
    assert "(no test runs it)" in done.stdout
