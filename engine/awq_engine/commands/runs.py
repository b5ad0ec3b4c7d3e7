"""`runs`, `pause`, `cancel` and `rm`: what there is, and how to be rid of it."""

from __future__ import annotations

import argparse
import time
from typing import Any

from awq_engine.commands.console import note, result, result_json, table
from awq_engine.errors import BadInputError, ExitCode, UsageError
from awq_engine.format import duration, preset_label
from awq_engine.runs import Run, find_run, list_runs
from awq_engine.state import at_a_glance, replay
from awq_engine.storage import runs_dir


def show_runs(args: argparse.Namespace) -> int:
    """Every run, newest first; one that cannot be read is listed as such."""
    rows = [_describe(run) for run in list_runs()]
    if args.json:
        result_json({"runs": rows})
    elif not rows:
        note(f"There are no runs in {runs_dir()}; start one with `awq-tui quantize MODEL`.")
    else:
        result(table(("run", "status", "done", "time", "what", "output"), [_cells(row) for row in rows], "done time"))
    return ExitCode.OK


def cancel(args: argparse.Namespace) -> int:
    """Ask the engine to stop after its present step."""
    run = _running(args.run, "cancel")
    run.request_cancel()
    note(f"Run {run.id} stops after the present step; go on with `awq-tui resume {run.id}`.")
    return ExitCode.OK


def pause(args: argparse.Namespace) -> int:
    """Ask the engine to lie still after its present step."""
    run = _running(args.run, "pause")
    run.request_pause()
    note(f"Run {run.id} pauses after the present step; go on with `awq-tui resume {run.id}`.")
    return ExitCode.OK


def _running(name: str, purpose: str) -> Run:
    run = find_run(name)
    if not run.is_locked():
        raise UsageError(f"Run {run.id} is not running (it is {run.status()}), so there is nothing to {purpose}.")
    return run


def remove(args: argparse.Namespace) -> int:
    """Delete run directories, never the models they wrote."""
    for run in [find_run(name) for name in args.run]:
        run.remove()
        note(f"Removed run {run.id}; its output folder, if any, was left alone.")
    return ExitCode.OK


def _describe(run: Run) -> dict[str, Any]:
    status = run.status()
    state = at_a_glance(run.last_record()) or replay(run.records())
    row: dict[str, Any] = {
        "run_id": run.id, "status": "paused" if status == "running" and state.paused else str(status),
        "fraction": state.fraction(),
        "seconds": state.elapsed(time.time() if status == "running" else state.updated or 0.0),
    }  # fmt: skip
    try:
        return {**row, "config": run.config().to_json()}
    except BadInputError as error:
        return {**row, "status": "unreadable", "error": str(error)}


def _cells(row: dict[str, Any]) -> list[str]:
    config = row.get("config")
    what = "-"
    if config:
        what = preset_label(
            config["bits"],
            config["group_size"],
            config["preset"],
            method=config["method"],
            symmetric=config["symmetric"],
        )
    done, output = f"{100 * row['fraction']:.0f}%", config["output"] if config else row["error"]
    return [row["run_id"], row["status"], done, duration(row["seconds"]), what, output]
