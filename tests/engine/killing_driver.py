"""Runs engines that kill themselves with SIGKILL at chosen events, then resumes them.

For each `EVENT=RUN_DIR` argument a child process works on the run and kills itself the moment that event has been
journalled; a second child resumes it. One process imports torch and forks the rest, so a death costs milliseconds.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

import awq_engine.pipeline  # noqa: F401  imported before forking, so that children start at once
from awq_engine import worker
from awq_engine.events import Event
from awq_engine.journal import Journal
from awq_engine.runs import Run


def run_engine(run: Run, deadly_kind: str | None) -> int:
    """Fork an engine; return its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        if deadly_kind:
            _arm(deadly_kind)
        os._exit(worker.main([str(run.path), str(run.take_lock())]))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _arm(kind: str) -> None:
    append = Journal.__call__

    def append_and_die(self: Journal, event: Event) -> None:
        append(self, event)
        if event.kind() == kind:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.__call__ = append_and_die  # type: ignore[method-assign]


def main() -> None:
    for argument in sys.argv[1:]:
        kind, _, path = argument.partition("=")
        run = Run(Path(path))
        died = run_engine(run, kind) if kind != "none" else None
        finished = run_engine(run, None)
        print(kind, died, finished, flush=True)


if __name__ == "__main__":
    main()
