"""`compare`: several recipes on one model, each in an engine of its own, all measured on the same windows."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from awq_engine.checkpoint import Checkpoint, read_checkpoint
from awq_engine.commands.console import note, result, result_json, table
from awq_engine.commands.following import attend, look_on
from awq_engine.commands.quantize import check_before_start
from awq_engine.comparison import (
    HEADER,
    Entry,
    Row,
    as_json,
    cells,
    earlier_run,
    entries,
    markdown,
    row,
)
from awq_engine.config import Format, RunConfig
from awq_engine.errors import BadInputError, ExitCode, InterruptedRunError, UsageError
from awq_engine.evaluations import evaluation_settings, newest_change, store_evaluation, stored_evaluation
from awq_engine.models import HubId, ResolvedModel, parse_model, resolve_model
from awq_engine.paths import typed_path
from awq_engine.report import read_report
from awq_engine.runs import Run, RunStatus, create_run, spawn_engine
from awq_engine.sanitize import one_line
from awq_engine.state import RunState, replay
from awq_engine.storage import write_atomically
from awq_engine.text_sources import absolute_mix, absolute_spec


def compare(args: argparse.Namespace) -> int:
    """Do what is not done yet, measure it, print and store the table."""
    model = resolve_model(args.model)
    base = _base(args, model)
    chosen = entries(base, args.recipes.split(","), _numbers("bits", args.bits), _numbers("groups", args.group_sizes))
    text = absolute_spec(args.text)
    _check(chosen, model, text, args.max_tokens)
    settings = evaluation_settings(text, args.seq_len, args.max_tokens, args.device)
    rows: list[Row] = []
    data: dict[str, Any] = {}
    for number, entry in enumerate(chosen, 1):
        note(f"[{number}/{len(chosen)}] {entry.label}")
        line, found = measure(entry, model, settings, args.keep)
        rows.append(line)
        data = _summary(rows, found, model, base)
        _store(Path(base.output), data, rows)
    _print(args, data, rows)
    return ExitCode.OK


def measure(entry: Entry, model: ResolvedModel, settings: dict[str, Any], keep: bool) -> tuple[Row, dict[str, Any]]:
    """Quantize and evaluate one entry, or take what an earlier comparison left of it; the row and the evaluation."""
    checkpoint = read_checkpoint(model.path)
    run, state = _earlier(entry.config, checkpoint)
    found = stored_evaluation(run, settings) if run else None
    if run is None or state is None or ((found is None or keep) and not _has_output(run)):
        run, state = _quantized(entry.config, run if state is None else None)
        found = stored_evaluation(run, settings)
    if found is None:
        found = _evaluated(run, model, settings)
        store_evaluation(run, settings, found)
    if not keep and _has_output(run):
        shutil.rmtree(run.config().output)
    assert state.result is not None
    return row(entry, state.result, found), found


def _base(args: argparse.Namespace, model: ResolvedModel) -> RunConfig:
    """The request that all entries share; its output is the folder of the comparison."""
    target = parse_model(args.model)
    folder = typed_path(args.output) if args.output else Path.cwd() / f"{model.name}-comparison"
    return RunConfig(
        model=args.model if isinstance(target, HubId) else str(target), output=str(folder.absolute()),
        symmetric=args.symmetric, format=Format(args.format), samples=args.samples, seq_len=args.seq_len,
        calibration=absolute_mix(args.calibration), device=args.device, seed=args.seed,
    )  # fmt: skip


def _numbers(what: str, text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"The {what} must be whole numbers with commas between them, not '{text}'.") from None


def _check(chosen: Sequence[Entry], model: ResolvedModel, text: str, max_tokens: int) -> None:
    """Raise what would stop the comparison halfway: impossible requests, outputs in the way, too little text."""
    from awq_engine.evaluate import check_max_tokens, load_windows
    from awq_engine.runtime import load_tokenizer

    check_max_tokens(max_tokens)
    checkpoint = read_checkpoint(model.path)
    for entry in chosen:
        run, state = _earlier(entry.config, checkpoint)
        if run is None or (state is None and not run.is_locked()):
            check_before_start(entry.config)
    load_windows(text, load_tokenizer(model.path), chosen[0].config.seq_len, max_tokens)


def _earlier(config: RunConfig, checkpoint: Checkpoint) -> tuple[Run | None, RunState | None]:
    """The run that did or does this already, with its state if it is finished; not one whose inputs have changed."""
    from awq_engine.fingerprint import began_with

    run = earlier_run(config)
    if run is None or not began_with(run, checkpoint) or newest_change(config.calibration) > run.file().created:
        return None, None
    return run, replay(run.records()) if run.status() is RunStatus.DONE else None


def _has_output(run: Run) -> bool:
    """Whether the run's model is still in its folder."""
    try:
        return read_report(Path(run.config().output))["result"]["run_id"] == run.id
    except (BadInputError, KeyError, TypeError):
        return False


def _quantized(config: RunConfig, stopped: Run | None) -> tuple[Run, RunState]:
    """Go on with the `stopped` run, follow it if another engine does, or start a new one; to its end."""
    try:
        if stopped is not None and stopped.is_locked():
            return stopped, look_on(stopped)
        run = stopped or create_run(replace(config, overwrite=False))
        return run, attend(run, spawn_engine(run))
    except InterruptedRunError as error:
        raise InterruptedRunError(f"{error} The same comparison started again goes on from there.") from error


def _evaluated(run: Run, model: ResolvedModel, settings: dict[str, Any]) -> dict[str, Any]:
    from awq_engine.commands.evaluate import window_counter
    from awq_engine.evaluate import evaluate

    return evaluate(
        Path(run.config().output), against=model.path, text=settings["text"], seq_len=settings["seq_len"],
        max_tokens=settings["max_tokens"], device=settings["device"], on_progress=window_counter(2),
    ).to_json()  # fmt: skip


def _summary(rows: list[Row], found: dict[str, Any], model: ResolvedModel, base: RunConfig) -> dict[str, Any]:
    original = {
        "bytes": read_checkpoint(model.path).nbytes, "perplexity": found["perplexity_original"],
        "nll": found["nll_original"],
    }  # fmt: skip
    about = {
        "model": base.model, "folder": base.output, "calibration": base.calibration, "samples": base.samples,
        "calibration_seq_len": base.seq_len, "text": found["text"], "tokens": found["tokens"],
        "seq_len": found["seq_len"], "format": base.format.value, "symmetric": base.symmetric,
    }  # fmt: skip
    return as_json(rows, original, about)


def _caption(data: dict[str, Any]) -> str:
    return one_line(
        f"{Path(data['model']).name}, {data['tokens']} tokens of {_short(data['text'])} in windows of "
        f"{data['seq_len']}; calibrated on {data['samples']} x {data['calibration_seq_len']} tokens of "
        f"{_short(data['calibration'])}; KL from the original in nats per token."
    )


def _short(text: str) -> str:
    """The name of a file, or the words for what is not one."""
    return Path(text).name if text.startswith("/") else text


def _store(folder: Path, data: dict[str, Any], rows: list[Row]) -> None:
    """Keep the table as far as it is; a comparison that dies leaves what it has."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "comparison.json", (json.dumps(data, indent=2) + "\n").encode())
    write_atomically(folder / "comparison.md", (markdown(rows, data["original"], _caption(data)) + "\n").encode())


def _print(args: argparse.Namespace, data: dict[str, Any], rows: list[Row]) -> None:
    if args.json:
        result_json(data)
    elif args.markdown:
        result(markdown(rows, data["original"], _caption(data)))
    else:
        result(f"{_caption(data)}\n\n{table(HEADER, cells(rows, data['original']), right=' '.join(HEADER[1:]))}")
        note(f"stored in {data['folder']}/comparison.md and comparison.json")
