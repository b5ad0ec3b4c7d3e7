"""The engine process: `python -m awq_engine.worker RUN_DIR LOCK_FD`.

It inherits the run's lock, appends to the run's journal, and ends with one of `run_finished`, `run_cancelled` or
`run_failed`; if it is killed it says nothing, and the lock it no longer holds says so instead.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import traceback
from pathlib import Path

from awq_engine import events as e
from awq_engine.crash import versions, write_crash_report
from awq_engine.detached import NICENESS
from awq_engine.errors import ExitCode, InterruptedRunError, as_known_error
from awq_engine.journal import EventSink, Journal
from awq_engine.run_queue import wait_for_turn
from awq_engine.runs import Run
from awq_engine.sanitize import redacted
from awq_engine.state import replay


def main(argv: list[str]) -> int:
    """Work on the run in `argv[0]`, whose lock is held through the inherited descriptor `argv[1]`."""
    run, descriptor = Run(Path(argv[0])), int(argv[1])
    os.set_inheritable(descriptor, False)
    with Journal(run.journal_path) as emit:
        try:
            return _work(run, emit)
        except InterruptedRunError as error:
            emit(e.RunCancelled(len(replay(run.records()).blocks)))
            print(error, file=sys.stderr)
            return ExitCode.INTERRUPTED
        except BaseException as error:
            return _fail(run, emit, error)


def _work(run: Run, emit: EventSink) -> int:
    wait_for_turn(run, lambda ahead: emit(e.Queued(ahead)))
    resumed = len(replay(run.records()).blocks)
    config = run.config()
    emit(e.RunStarted(run.id, config.to_json(), versions(), os.getpid(), socket.gethostname(), config.device, resumed))
    import torch

    from awq_engine.fingerprint import stored_threads
    from awq_engine.pausing import PausableRun
    from awq_engine.pipeline import execute

    threads = config.threads or stored_threads(run) or max(1, torch.get_num_threads() // config.workers)
    torch.set_num_threads(threads)
    execute(PausableRun(run.path, emit), emit)
    return ExitCode.OK


def _fail(run: Run, emit: EventSink, error: BaseException) -> int:
    """Say what went wrong in the journal; details go to the engine's log."""
    with contextlib.suppress(OSError):
        print(redacted(traceback.format_exc()), file=sys.stderr)
    known = as_known_error(error)
    if known is not None:
        with contextlib.suppress(OSError):  # the disk may be full: then the exit code alone has to say so
            emit(e.RunFailed(redacted(str(known)), int(known.exit_code)))
        return int(known.exit_code)
    where = write_crash_report(error)
    message = f"A bug in awq-tui stopped the run ({type(error).__name__}: {error}); the report is in {where}."
    with contextlib.suppress(OSError):
        emit(e.RunFailed(redacted(message), int(ExitCode.BUG)))
    return int(ExitCode.BUG)


if __name__ == "__main__":
    os.nice(NICENESS)
    sys.exit(main(sys.argv[1:]))
