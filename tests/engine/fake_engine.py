"""An engine that only talks: `fake_engine.py RUN_DIR LOCK_FD` journals a whole run and ends as FAKE_ENGINE says.

It lets the command line be tested with real processes, locks and journals, and without torch.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from awq_engine import events as e
from awq_engine.journal import Journal
from awq_engine.runs import Run
from tests.engine.journals import RESULT, whole_run

REPOSITORY = Path(__file__).parents[2]
PYTHON = sys.executable
"""The real one, however often `install` has put another in its place."""


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, ending: str) -> None:
    """Let every engine started from now on be this one; `ending` is done, failed, died or cancelled."""
    script = folder / "python-with-fake-engine"
    script.write_text(f'#!/bin/sh\nexec "{PYTHON}" -m tests.engine.fake_engine "$3" "$4"\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setenv("FAKE_ENGINE", ending)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "engine")]))


def main(run: Run, ending: str) -> None:
    with Journal(run.journal_path) as emit:
        for event in whole_run()[:-1]:
            emit(event)
        if ending == "done":
            emit(e.RunFinished({**RESULT, "run_id": run.id, "output": run.config().output}))
        elif ending == "failed":
            emit(e.RunFailed("The disk is full\x1b[2J; free some space.", 3))
        elif ending == "cancelled":
            while not run.cancel_requested():
                time.sleep(0.01)
            emit(e.RunCancelled(2))
        else:
            print("terminate called after throwing an instance of 'a test'", file=sys.stderr)


if __name__ == "__main__":
    main(Run(Path(sys.argv[1])), os.environ["FAKE_ENGINE"])
