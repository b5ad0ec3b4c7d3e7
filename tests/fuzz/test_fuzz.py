"""Damaged inputs of every kind, tried on everything that parses; `harness` says what passes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awq_engine.errors import AwqError
from tests.fuzz.harness import Tally, fuzz_all
from tests.fuzz.mutators import mutate_json
from tests.fuzz.parsers import PARSERS, Parser

INPUTS = 2_000
MANY_INPUTS = 200_000
JSON_PARSERS = [parser for parser in PARSERS if parser.mutate is mutate_json and parser.share >= 0.3]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=8,
)


def _told(tallies: list[Tally]) -> dict[str, Any]:
    return {f"{tally.parser}: {defect}": data[:500] for tally in tallies for defect, data in tally.defects.items()}


def test_damaged_inputs() -> None:
    tallies = fuzz_all(INPUTS, seed=0)
    assert sum(tally.tried for tally in tallies) >= INPUTS
    assert _told(tallies) == {}


@pytest.mark.slow
@pytest.mark.parametrize("piece", range(8))
def test_very_many_damaged_inputs(piece: int) -> None:
    """In processes of their own, so that a crash or a leak of one shows."""
    command = [sys.executable, "-m", "tests.fuzz.harness", "--inputs", str(MANY_INPUTS // 8), "--seed", str(piece + 1)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env={**os.environ}, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.parametrize("parser", JSON_PARSERS, ids=lambda parser: parser.name)
def test_any_json_at_all(parser: Parser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that have nothing to do with what is expected, and those in the place of one that is."""
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))
    parser.prepare(tmp_path)
    good = json.loads(parser.seeds(tmp_path)[0])
    keys = sorted(good) if isinstance(good, dict) else [""]

    @settings(max_examples=12)
    @given(value=values, key=st.sampled_from(keys))
    def check(value: Any, key: str) -> None:
        for tried in (value, {**good, key: value} if isinstance(good, dict) else [value]):
            with contextlib.suppress(AwqError):
                parser.parse(json.dumps(tried).encode(), tmp_path)

    check()
