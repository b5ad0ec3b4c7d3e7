"""Staying with a run until no engine works on it, and ending as it ended.

A run that did not finish becomes the exception that its end means: the engine's own sentence and exit code, a
cancellation, or a death without a word.
"""

from __future__ import annotations

from subprocess import Popen

from awq_engine.commands.console import note
from awq_engine.errors import AwqError, ExitCode, InterruptedRunError, ResourceError
from awq_engine.progress import ProgressLines, follow
from awq_engine.runs import Run
from awq_engine.sanitize import one_line
from awq_engine.state import Phase, RunState


class EngineFailedError(AwqError):
    """The engine's own last word, with its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        try:
            self.exit_code = ExitCode(exit_code)
        except ValueError:
            self.exit_code = ExitCode.BUG


def attend(run: Run, engine: Popen[bytes]) -> RunState:
    """Follow a run this process started to its end: the first ctrl-c cancels it, the second only stops watching.

    Returns the state of a finished run; raises what any other end means.
    """
    try:
        return _ended(run, _follow(run, engine), engine)
    except KeyboardInterrupt:
        run.request_cancel()
        note("Cancelling: the engine stops after the present step (ctrl-c again leaves it to that).")
    try:
        return _ended(run, _follow(run, engine, quiet=True), engine)
    except KeyboardInterrupt:
        raise InterruptedRunError(f"Run {run.id} is stopping; {_go_on(run)}.") from None


def look_on(run: Run) -> RunState:
    """Follow or replay a run that somebody else started; ctrl-c leaves it alone. Ends as `attend` does."""
    try:
        return _ended(run, _follow(run, None))
    except KeyboardInterrupt:
        raise InterruptedRunError(f"Run {run.id} goes on; watch it again with `awq-tui watch {run.id}`.") from None


def _follow(run: Run, engine: Popen[bytes] | None, quiet: bool = False) -> RunState:
    progress = ProgressLines()
    for record in follow(run, engine):
        for line in progress.lines(record) if record else ():
            if not quiet:
                note(line)
    return progress.state


def _ended(run: Run, state: RunState, engine: Popen[bytes] | None = None) -> RunState:
    if state.phase is Phase.DONE and state.result is not None:
        return state
    if state.phase is Phase.FAILED and state.error is not None:
        raise EngineFailedError(one_line(state.error.message), state.error.exit_code)
    if state.phase is Phase.CANCELLED:
        done = f"{state.blocks_done} of {state.n_blocks} blocks done" if state.n_blocks else "nothing done yet"
        raise InterruptedRunError(f"Run {run.id} was cancelled with {done}; {_go_on(run)}.")
    if engine is not None and engine.returncode == ExitCode.NO_RESOURCES:  # not even its last event could be written
        raise ResourceError(f"The disk with {run.path} is full; free some space, then {_go_on(run)}.")
    last_words = log_tail(run, lines=1)
    said = f" Its last words: {last_words[0]}" if last_words else ""
    raise AwqError(f"The engine of run {run.id} died (see {run.log_path}); {_go_on(run)}.{said}")


def _go_on(run: Run) -> str:
    return f"go on with `awq-tui resume {run.id}`"


def log_tail(run: Run, lines: int) -> list[str]:
    """The last lines the engine wrote outside its journal."""
    try:
        text = run.log_path.read_bytes()[-8192:].decode(errors="replace")
    except OSError:
        return []
    return [one_line(line) for line in text.splitlines() if line.strip()][-lines:]
